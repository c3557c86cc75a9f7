//! `command`: what was asked for, and its way through all processes.

use std::time::Duration;

use fairlead_api::types::{Command, Page, Stamp};
use jiff::Timestamp;

use super::{Context, act};
use crate::args::CommandVerb;
use crate::exit::{Exit, Failure, short, subject};
use crate::output::human::{ago, clock, millis, since, with_times};
use crate::output::table::{Cell, Table};
use crate::output::{Colour, clean, say};

/// `fairlead command …`
pub(crate) async fn command(context: &Context, verb: CommandVerb) -> Result<Exit, Failure> {
    let client = context.client()?;
    match verb {
        CommandVerb::Ls {
            host,
            state,
            container,
            limit,
            before,
        } => {
            let mut query = vec![("limit", limit.to_string())];
            query.extend(host.map(|host| ("host", host)));
            query.extend(state.map(|state| ("state", state)));
            query.extend(container.map(|container| ("container", container)));
            query.extend(before.map(|before| ("before", before.to_string())));
            let page: Page<Command> = client.get(&["commands"], &query).await?;
            context.out.data(&page.items, |commands| {
                table(commands, Timestamp::now()).render(&context.out)
            })?;
            super::journal::more(page.next);
            Ok(Exit::Ok)
        }
        CommandVerb::Show { id } => {
            let command = client.command(&id, Duration::ZERO).await?;
            context
                .out
                .data(&command, |command| story(command, Timestamp::now()))?;
            Ok(Exit::Ok)
        }
        CommandVerb::Watch { id } => watch(context, &client, &id).await,
        CommandVerb::Cancel { ids } => {
            super::each(ids, async |id| {
                let command: Command = client
                    .post(&["commands", id, "cancel"], &serde_json::json!({}))
                    .await?;
                if context.out.is_structured() {
                    context.out.structured(&command)?;
                }
                cancelled(&command)
            })
            .await
        }
    }
}

fn cancelled(command: &Command) -> Result<(), Failure> {
    let what = format!("{} {}", command.kind, subject(command));
    match command.state.as_str() {
        "cancelled" => say(&format!("{}: withdrawn before it began", clean(&what))),
        _ if command.is_final => {
            return Err(Failure::new(
                Exit::Conflict,
                format!("{what} is {} already", command.state),
            ));
        }
        "running" => {
            return Err(Failure::new(
                Exit::Conflict,
                format!("{what} has begun and goes on"),
            ));
        }
        state => say(&format!(
            "{}: asked to withdraw it; it is {} until its host has answered: fairlead command watch {}",
            clean(&what),
            clean(state),
            short(&command.id)
        )),
    }
    Ok(())
}

/// Prints each station as it is passed, until the end.
async fn watch(
    context: &Context,
    client: &crate::client::Client,
    id: &str,
) -> Result<Exit, Failure> {
    let mut command = client.command(id, Duration::ZERO).await?;
    let mut shown = Shown::default();
    shown.show(context, &command)?;
    while !command.is_final {
        let parts = ["commands", command.id.as_str(), "watch"];
        let mut newest = None;
        let streamed = client
            .events(&parts, &[], "", |event| {
                if event.event != "command" {
                    return Ok(true);
                }
                let Ok(command) = serde_json::from_str::<Command>(&event.data) else {
                    return Err(Failure::new(
                        Exit::Failed,
                        "the server sent a command that is not understood",
                    ));
                };
                shown.show(context, &command)?;
                let goes_on = !command.is_final;
                newest = Some(command);
                Ok(goes_on)
            })
            .await;
        match streamed {
            Err(failure) if !failure.transient => return Err(failure),
            Err(_) | Ok(()) => {}
        }
        match newest {
            Some(newer) if newer.is_final => command = newer,
            // The stream ended early: the server was restarted. Waiting asks until it is back.
            _ => {
                command = act::wait(context, client, command).await?;
                shown.show(context, &command)?;
            }
        }
    }
    match Failure::of_command(&command) {
        Some(failure) => Err(failure),
        None => Ok(Exit::Ok),
    }
}

/// How much of a command's way has been printed.
#[derive(Default)]
struct Shown {
    head: bool,
    stamps: usize,
    waiting_for: String,
    state: String,
}

impl Shown {
    fn show(&mut self, context: &Context, command: &Command) -> Result<(), Failure> {
        if context.out.is_structured() {
            return if self.state == command.state && self.stamps == command.timeline.len() {
                Ok(())
            } else {
                self.state.clone_from(&command.state);
                self.stamps = command.timeline.len();
                context.out.item(command, |_| String::new())
            };
        }
        let mut text = String::new();
        if !std::mem::replace(&mut self.head, true) {
            text.push_str(&head(command, Timestamp::now()));
        }
        for stamp in command.timeline.iter().skip(self.stamps) {
            text.push_str(&station(stamp, command));
        }
        self.stamps = self.stamps.max(command.timeline.len());
        if !command.is_final
            && !command.waiting_for.is_empty()
            && command.waiting_for != self.waiting_for
        {
            text.push_str(&format!(
                "            waits: {}\n",
                clean(&with_times(&command.waiting_for, Timestamp::now()))
            ));
            self.waiting_for.clone_from(&command.waiting_for);
        }
        if command.is_final && self.state != command.state {
            text.push_str(&tail(command));
        }
        self.state.clone_from(&command.state);
        context.out.write(text.as_bytes())
    }
}

fn table(commands: &[Command], now: Timestamp) -> Table {
    let mut table = Table::new([
        "ID", "HOST", "KIND", "TARGET", "STATE", "ASKED", "BY", "TOOK",
    ]);
    for command in commands {
        let state = if command.is_final || command.waiting_for.is_empty() {
            command.state.clone()
        } else {
            let why = with_times(&command.waiting_for, now);
            format!("{}: {why}", command.state)
        };
        let colour = match command.state.as_str() {
            "succeeded" => Some(Colour::Good),
            "failed" | "expired" | "conflict" | "unknown" => Some(Colour::Bad),
            "cancelled" | "superseded" => Some(Colour::Faint),
            _ => Some(Colour::Doubtful),
        };
        table.row([
            Cell::from(short(&command.id)),
            (&command.host).into(),
            (&command.kind).into(),
            (&command.target).into(),
            Cell::painted(colour, state),
            ago(command.issued_at, now).into(),
            (&command.issuer).into(),
            if command.is_final {
                act::timing(command).unwrap_or_default()
            } else {
                String::new()
            }
            .into(),
        ]);
    }
    table
}

/// The whole way of a command, in words.
fn story(command: &Command, now: Timestamp) -> String {
    let mut text = head(command, now);
    for stamp in &command.timeline {
        text.push_str(&station(stamp, command));
    }
    if command.is_final {
        text.push_str(&tail(command));
    } else {
        if !command.waiting_for.is_empty() {
            text.push_str(&format!(
                "            waits: {}\n",
                clean(&with_times(&command.waiting_for, now))
            ));
        }
        text.push_str(&format!(
            "{} for {}; begins until {} ({}) or not at all\n",
            clean(&command.state),
            since(command.issued_at, now),
            clock(command.not_after, now),
            ago(command.not_after, now),
        ));
    }
    text
}

fn head(command: &Command, now: Timestamp) -> String {
    format!(
        "command {}  {} {}\nasked by {} at {} ({})\n",
        clean(&command.id),
        clean(&command.kind),
        clean(&subject(command)),
        clean(&command.issuer),
        clock(command.issued_at, now),
        ago(command.issued_at, now),
    )
}

/// One station: milliseconds since acceptance, and what happened there.
fn station(stamp: &Stamp, command: &Command) -> String {
    let what = match stamp.stage.as_str() {
        "accepted" => "accepted".to_owned(),
        "stored" => "queued, on the controller's disk".to_owned(),
        "region_received" => format!("reached region {}", command.region),
        "region_stored" => format!("on region {}'s disk", command.region),
        "delivered" => format!("delivered to {}", command.host),
        "verified" => "signature good".to_owned(),
        "intent_stored" => "intent on the host's disk".to_owned(),
        "engine_called" => "engine called".to_owned(),
        "engine_answered" => "engine answered".to_owned(),
        "result_stored" => "result on the host's disk".to_owned(),
        "region_result_received" => format!("result reached region {}", command.region),
        "recorded" => "result on the controller's disk".to_owned(),
        "settled" => "settled after a crash".to_owned(),
        "resent" => "delivered again".to_owned(),
        other => other.replace('_', " "),
    };
    let note = if stamp.note.is_empty() {
        String::new()
    } else {
        format!(": {}", stamp.note)
    };
    format!(
        "{:>10.1}  {}{}\n",
        stamp.after_ms,
        clean(&what),
        clean(&note)
    )
}

fn tail(command: &Command) -> String {
    let mut text = clean(&command.state).into_owned();
    if let Some(code) = command.exit_code
        && code != 0
    {
        text.push_str(&format!(", exit code {code}"));
    }
    if !command.code.is_empty() {
        text.push_str(&format!(" ({})", clean(&command.code)));
    }
    if !command.message.is_empty() {
        text.push_str(&format!(": {}", clean(&command.message)));
    }
    let engine_not_called = command.engine_ms.is_none() && command.overhead_ms.is_some();
    if let Some(time) = act::timing(command)
        && !engine_not_called
    {
        text.push_str(&format!(", {time}"));
    } else if let Some(overhead) = command.overhead_ms {
        text.push_str(&format!(", {}, engine not called", millis(overhead)));
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::samples;

    #[test]
    fn the_story_names_every_station_with_its_time() {
        let mut command = samples::command();
        let stages = [
            ("accepted", 0.0),
            ("stored", 0.31),
            ("region_received", 0.4),
            ("region_stored", 0.5),
            ("delivered", 0.6),
            ("verified", 0.7),
            ("intent_stored", 0.9),
            ("engine_called", 0.95),
            ("engine_answered", 416.9),
            ("result_stored", 417.0),
            ("recorded", 418.0),
        ];
        command.timeline = stages
            .map(|(stage, after_ms)| Stamp {
                stage: stage.to_owned(),
                at: command.issued_at,
                after_ms,
                note: String::new(),
            })
            .to_vec();
        let now = "2026-11-20T14:03:00Z".parse().unwrap();
        let text = story(&command, now);
        for line in [
            "command 7q3k9m2x7q3k9m2x7q3k9m2x70  restart box/demo-web",
            "asked by admin at 14:00:00 UTC (3 min ago)",
            "       0.3  queued, on the controller's disk",
            "       0.6  delivered to box",
            "       0.7  signature good",
            "       0.9  intent on the host's disk",
            "succeeded, 418 ms (engine 416, Fairlead 2)",
        ] {
            assert!(text.lines().any(|l| l == line), "{line:?} not in\n{text}");
        }
        command.is_final = false;
        command.state = "queued".into();
        command.waiting_for = "host offline".into();
        let text = story(&command, now);
        assert!(text.contains("waits: host offline"), "{text}");
        assert!(
            text.contains("begins until 14:05:00 UTC (in 2 min) or not at all"),
            "{text}"
        );
    }

    #[test]
    fn cancelling_what_has_begun_is_a_conflict() {
        let mut command = samples::command();
        assert_eq!(cancelled(&command).unwrap_err().exit, Exit::Conflict);
        command.state = "cancelled".into();
        assert!(cancelled(&command).is_ok());
        command.is_final = false;
        command.state = "running".into();
        assert!(cancelled(&command).unwrap_err().message.contains("goes on"));
        command.state = "delivered".into();
        assert!(cancelled(&command).is_ok());
    }
}
