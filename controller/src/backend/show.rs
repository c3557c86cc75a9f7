//! A command as the API shows it: its row, and where it is just now.

use fairlead_api::types::{Command, Stamp as ApiStamp, time, time_or_never};
use fairlead_protocol::{Progress, Stage, Stamp, State};
use fairlead_store::commands::CommandRow;

use fairlead_store::hosts::HostRow;

use crate::fleet::Fleet;

/// A command that a host has not taken within this time is said to wait for it.
const UNDELIVERED_AFTER_US: i64 = 3_000_000;

/// The command. `host` is absent when its row is gone.
pub(super) fn command(
    row: &CommandRow,
    progress: Option<&Progress>,
    host: Option<&HostRow>,
    fleet: &Fleet,
    now_us: i64,
) -> Command {
    let stored = row.state;
    let is_final = stored.is_final();
    let progress = progress.filter(|_| !is_final);
    let told = progress.and_then(|p| State::try_from(p.state).ok());
    let state = told
        .filter(|told| *told != State::Unspecified)
        .unwrap_or(stored);
    // Progress may say "final" before the result is on our disk: until then it is running.
    let state = if !is_final && state.is_final() {
        State::Running
    } else {
        state
    };
    let stamps = merged(
        &row.stamps,
        progress.map(|p| p.stamps.as_slice()).unwrap_or_default(),
    );
    let (engine_ms, overhead_ms) = times(&stamps, is_final);
    Command {
        id: row.id.to_string(),
        kind: row.kind.clone(),
        target: row.target.clone(),
        host: host.map(|host| host.name.clone()).unwrap_or_default(),
        host_id: row.host.to_string(),
        region: row.region.clone(),
        issuer: row.issuer.clone(),
        state: state.name().to_owned(),
        is_final,
        waiting_for: match state {
            _ if is_final => String::new(),
            // It has its lane; the engine or a disk may still be waited for.
            State::Running => progress.map(|p| p.waiting_for.clone()).unwrap_or_default(),
            _ => match waiting_for(row, progress, host, fleet) {
                said if said.is_empty() && state == State::Queued => undelivered(row, host, now_us),
                said => said,
            },
        },
        code: row.code.clone(),
        message: row.message.clone(),
        exit_code: row.exit_code,
        container_id: row.container_id.clone(),
        output: output(&row.kind, &row.body),
        output_truncated: row.body_truncated,
        issued_at: time(row.issued_us),
        not_after: time(row.not_after_us),
        finished_at: time_or_never(row.finished_us),
        overhead_ms,
        engine_ms,
        timeline: timeline(&stamps),
    }
}

/// True before and after that moment: a command of a host that does not answer may have begun in time.
fn until_when(until: jiff::Timestamp) -> String {
    format!("waits until {until}, and is not begun after that")
}

/// What is said of one that nobody knows a reason for: its host has not said yet that it has it.
fn undelivered(row: &CommandRow, host: Option<&HostRow>, now_us: i64) -> String {
    match host {
        Some(host) if now_us - row.issued_us >= UNDELIVERED_AFTER_US => format!(
            "host {} has not taken it yet; {}",
            host.name,
            until_when(time(row.not_after_us))
        ),
        _ => String::new(),
    }
}

/// Why it has not begun, in words.
fn waiting_for(
    row: &CommandRow,
    progress: Option<&Progress>,
    host: Option<&HostRow>,
    fleet: &Fleet,
) -> String {
    if !row.cancel_by.is_empty() {
        return format!("being withdrawn by {}", row.cancel_by);
    }
    let until = time(row.not_after_us);
    if let Some(host) = host {
        let name = &host.name;
        let (state, since_us, reason) = fleet.host_state(host);
        let since = time(since_us);
        match state {
            "offline" => {
                return format!(
                    "host {name} is offline since {since}; {}",
                    until_when(until)
                );
            }
            "suspect" => {
                return format!(
                    "host {name} does not answer since {since}; {}",
                    until_when(until)
                );
            }
            "unknown" => {
                let region = &host.region;
                return format!(
                    "region {region} is not connected since {since}; {}",
                    until_when(until)
                );
            }
            "held" => return format!("host {name} is held: {reason}; {}", until_when(until)),
            "revoked" => return format!("host {name} was revoked; ends at {until}"),
            "online" if !reason.is_empty() => {
                return format!("host {name}: {reason}; {}", until_when(until));
            }
            _ => {}
        }
    }
    progress
        .map(|progress| progress.waiting_for.clone())
        .unwrap_or_default()
}

/// Stored stamps and newer ones of the progress, each station once (the first time it was passed;
/// what can happen again is kept each time), by time.
fn merged(stored: &[Stamp], told: &[Stamp]) -> Vec<Stamp> {
    let mut all: Vec<Stamp> = stored.to_vec();
    for stamp in told {
        let again = matches!(stamp.stage(), Stage::Resent | Stage::Settled);
        let is_known = all
            .iter()
            .any(|known| known.stage == stamp.stage && (!again || known.at_us == stamp.at_us));
        if !is_known {
            all.push(stamp.clone());
        }
    }
    // Clocks of several machines meet here; the order of stations decides between equal times.
    all.sort_by_key(|stamp| (stamp.at_us, stamp.stage));
    all
}

fn first(stamps: &[Stamp], stage: Stage) -> Option<i64> {
    stamps
        .iter()
        .filter(|stamp| stamp.stage() == stage)
        .map(|stamp| stamp.at_us)
        .min()
}

fn last(stamps: &[Stamp], stage: Stage) -> Option<i64> {
    stamps
        .iter()
        .filter(|stamp| stamp.stage() == stage)
        .map(|stamp| stamp.at_us)
        .max()
}

fn ms(us: i64) -> f64 {
    // Exact for anything below centuries; only shown.
    #[expect(
        clippy::cast_precision_loss,
        reason = "durations are far below 2^52 microseconds"
    )]
    let us = us as f64;
    us / 1000.0
}

/// Engine time, and everything else between acceptance and record.
fn times(stamps: &[Stamp], is_final: bool) -> (Option<f64>, Option<f64>) {
    let called = first(stamps, Stage::EngineCalled);
    let answered = last(stamps, Stage::EngineAnswered);
    let engine_us = called
        .zip(answered)
        .map(|(called, answered)| (answered - called).max(0));
    let whole_us = first(stamps, Stage::Accepted)
        .zip(last(stamps, Stage::Recorded))
        .map(|(accepted, recorded)| recorded - accepted);
    let overhead = engine_us.zip(whole_us).filter(|_| is_final);
    (
        engine_us.map(ms),
        overhead.map(|(engine, whole)| ms((whole - engine).max(0))),
    )
}

fn timeline(stamps: &[Stamp]) -> Vec<ApiStamp> {
    let from = first(stamps, Stage::Accepted)
        .or_else(|| stamps.first().map(|stamp| stamp.at_us))
        .unwrap_or(0);
    stamps
        .iter()
        .map(|stamp| ApiStamp {
            stage: stamp.stage().name().to_owned(),
            at: time(stamp.at_us),
            after_ms: ms(stamp.at_us - from),
            note: stamp.note.clone(),
        })
        .collect()
}

/// JSON where it is JSON, text otherwise; nothing when there is nothing. What a process or a log
/// wrote is text, whatever it looks like.
fn output(kind: &str, body: &[u8]) -> Option<serde_json::Value> {
    if body.is_empty() {
        return None;
    }
    let is_text = matches!(kind, "exec" | "logs");
    let is_structured = !is_text && matches!(body.first(), Some(b'{' | b'['));
    let parsed = is_structured
        .then(|| serde_json::from_slice(body).ok())
        .flatten();
    Some(parsed.unwrap_or_else(|| String::from_utf8_lossy(body).into_owned().into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(stage: Stage, at_us: i64) -> Stamp {
        Stamp {
            stage: stage.into(),
            at_us,
            note: String::new(),
        }
    }

    #[test]
    fn overhead_is_what_was_not_the_engine() {
        let stamps = [
            stamp(Stage::Accepted, 1_000),
            stamp(Stage::EngineCalled, 2_000),
            stamp(Stage::EngineAnswered, 12_000),
            stamp(Stage::Recorded, 13_500),
        ];
        assert_eq!(times(&stamps, true), (Some(10.0), Some(2.5)));
        assert_eq!(times(&stamps, false), (Some(10.0), None));
        assert_eq!(times(&stamps[..1], true), (None, None));
    }

    #[test]
    fn stations_are_shown_once_and_in_order() {
        let stored = [stamp(Stage::Accepted, 1), stamp(Stage::Stored, 2)];
        let told = [
            stamp(Stage::Stored, 3),
            stamp(Stage::Resent, 9),
            stamp(Stage::Verified, 7),
            stamp(Stage::Resent, 8),
        ];
        let stages: Vec<String> = timeline(&merged(&stored, &told))
            .into_iter()
            .map(|s| s.stage)
            .collect();
        assert_eq!(
            stages,
            ["accepted", "stored", "verified", "resent", "resent"]
        );
    }

    #[test]
    fn output_is_json_only_where_it_is() {
        assert_eq!(output("list", b""), None);
        assert_eq!(output("list", b"{\"a\":1}").unwrap()["a"], 1);
        assert_eq!(output("exec", b"{\"a\":1}").unwrap(), "{\"a\":1}");
        assert_eq!(output("list", b"[broken").unwrap(), "[broken");
        assert_eq!(output("ping", b"12").unwrap(), "12");
    }
}
