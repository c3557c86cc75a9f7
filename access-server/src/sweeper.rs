//! What only time brings about: commands of absent hosts whose deadline passes end as `expired`, old
//! rows are forgotten.
//!
//! A command that may have reached its agent is never ended here: only the agent knows what became of
//! it. Of a command that was stored while the host was away, and has not been sent since, it is known
//! that nothing was done.

use std::sync::Arc;
use std::time::Duration;

use fairlead_daemon::shutdown::Shutdown;
use fairlead_protocol::{CommandResult, RegionResult, State, codes, command, numbered};
use fairlead_store::commands::OpenCommand;
use fairlead_store::exchange::CENTRE;
use fairlead_store::{Store, StoreError, Tx};

use crate::region::Region;

/// How often.
const SWEEP_EVERY: Duration = Duration::from_millis(500);
/// Finished commands are kept so long after their end and deadline.
const KEPT_US: i64 = 24 * 3_600_000_000;
/// Rows forgotten in one go, so that no other write waits long; there are as many goes as it takes.
const FORGET_AT_ONCE: u32 = 500;

/// Sweeps until shutdown.
pub async fn run(region: Arc<Region>, shutdown: Shutdown) {
    let mut ticks = tokio::time::interval(SWEEP_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut rounds = 0u32;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        if let Err(error) = sweep(&region).await {
            tracing::error!(%error, "the ledger could not be swept");
        }
        rounds = rounds.wrapping_add(1);
        if rounds.is_multiple_of(20) {
            region.ledger.probe().await;
        }
        if rounds.is_multiple_of(120) {
            let before = region.clock.now_us() - KEPT_US;
            region.under_way.tidy(before);
            region.comings.tidy(tokio::time::Instant::now());
            if let Err(error) = forget(&region.ledger, before).await {
                tracing::error!(%error, "old rows could not be forgotten");
            }
        }
    }
}

async fn forget(ledger: &Store, before_us: i64) -> Result<(), StoreError> {
    loop {
        let forgotten = ledger
            .write(move |tx| {
                let commands = tx.forget_commands(before_us, FORGET_AT_ONCE)?;
                Ok(commands.max(tx.forget_events(before_us, FORGET_AT_ONCE)?))
            })
            .await?;
        if forgotten < FORGET_AT_ONCE as usize {
            return Ok(());
        }
    }
}

async fn sweep(region: &Arc<Region>) -> Result<(), StoreError> {
    let now_us = region.clock.now_us();
    let open = region.ledger.read(|tx| tx.open_commands_in_brief()).await?;
    for row in open {
        let present = region.registry.get(row.host).is_some();
        let revoked = region.revoked(row.host, "").is_some();
        let Some(result) = end_of(&row, present, revoked, now_us) else {
            continue;
        };
        let recorded = region
            .ledger
            .write(move |tx| finish(tx, &row, result, now_us))
            .await?;
        if recorded {
            region.outbox_grew.notify_one();
        }
    }
    Ok(())
}

/// How a command ends without its agent, if it does.
fn end_of(row: &OpenCommand, present: bool, revoked: bool, now_us: i64) -> Option<CommandResult> {
    let never_sent = row.state == State::Queued;
    let (state, code, message) = if revoked && never_sent {
        (
            State::Cancelled,
            codes::REVOKED,
            "its host's identity was ended; nothing was done",
        )
    } else if revoked && command::Kind::only_looks(&row.kind) {
        (
            State::Failed,
            codes::REVOKED,
            "its host's identity was ended while the host had the command, which only looks",
        )
    } else if revoked {
        (
            State::Unknown,
            codes::OUTCOME_UNKNOWN,
            "its host's identity was ended while the host had the command",
        )
    } else if !present && !never_sent && row.not_after_us + KEPT_US < now_us {
        // By now its agent has forgotten the id as well.
        (
            State::Unknown,
            codes::OUTCOME_UNKNOWN,
            "its host has not come back for a day after the deadline",
        )
    } else if present || !never_sent {
        return None;
    } else if !row.cancel_by.is_empty() {
        (
            State::Cancelled,
            codes::WITHDRAWN,
            "withdrawn while the host was away",
        )
    } else if row.not_after_us < now_us {
        (
            State::Expired,
            codes::DEADLINE_PASSED,
            "its deadline passed while the host was away; nothing was done",
        )
    } else {
        return None;
    };
    Some(CommandResult {
        command: row.id.to_wire(),
        state: state.into(),
        code: code.to_owned(),
        message: message.to_owned(),
        ..CommandResult::default()
    })
}

fn finish(
    tx: &Tx<'_>,
    row: &OpenCommand,
    mut result: CommandResult,
    now_us: i64,
) -> Result<bool, StoreError> {
    // It may have been sent (or have ended) since it was looked at.
    let Some(now) = tx.command(row.id)? else {
        return Ok(false);
    };
    if now.state != row.state {
        return Ok(false);
    }
    result.stamps.clone_from(&now.stamps);
    if !tx.finish_command(row.id, &result, now_us)? {
        return Ok(false);
    }
    let report = RegionResult {
        host: row.host.to_wire(),
        result: Some(result),
    };
    tx.send_later(CENTRE, numbered::Kind::Result(report))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fairlead_protocol::{CommandId, HostId};

    fn row(state: State, cancel_by: &str) -> OpenCommand {
        OpenCommand {
            id: CommandId::from_bytes([1; 16]),
            host: HostId::from_bytes([2; 16]),
            kind: "exec".to_owned(),
            state,
            not_after_us: 100,
            cancel_by: cancel_by.to_owned(),
        }
    }

    fn state(end: Option<CommandResult>) -> Option<State> {
        end.map(|result| State::try_from(result.state).unwrap())
    }

    #[test]
    fn only_what_was_never_sent_expires_here() {
        assert_eq!(
            state(end_of(&row(State::Queued, ""), false, false, 101)),
            Some(State::Expired)
        );
        assert_eq!(
            state(end_of(&row(State::Queued, ""), false, false, 100)),
            None
        );
        assert_eq!(
            state(end_of(&row(State::Delivered, ""), false, false, 101)),
            None
        );
        assert_eq!(
            state(end_of(&row(State::Queued, ""), true, false, 101)),
            None
        );
    }

    #[test]
    fn a_withdrawn_command_of_an_absent_host_ends_at_once() {
        let end = end_of(&row(State::Queued, "admin"), false, false, 1);
        assert_eq!(state(end), Some(State::Cancelled));
        assert_eq!(
            state(end_of(&row(State::Delivered, "admin"), false, false, 1)),
            None
        );
    }

    #[test]
    fn a_revoked_host_leaves_nothing_open() {
        assert_eq!(
            state(end_of(&row(State::Queued, ""), false, true, 1)),
            Some(State::Cancelled)
        );
        assert_eq!(
            state(end_of(&row(State::Delivered, ""), true, true, 1)),
            Some(State::Unknown)
        );
        let logs = OpenCommand {
            kind: "logs".to_owned(),
            ..row(State::Delivered, "")
        };
        assert_eq!(
            state(end_of(&logs, true, true, 1)),
            Some(State::Failed),
            "of what only looks nothing is in doubt"
        );
    }

    #[tokio::test]
    async fn all_that_is_old_is_forgotten_however_much_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Store::open(&dir.path().join("l.db")).unwrap();
        ledger
            .write(|tx| {
                for number in 0..FORGET_AT_ONCE * 2 + 7 {
                    let event = fairlead_protocol::HostEvent {
                        id: number.to_be_bytes().repeat(4).into(),
                        at_us: i64::from(number),
                        ..fairlead_protocol::HostEvent::default()
                    };
                    tx.insert_event("t", None, "r", &event)?;
                }
                Ok(())
            })
            .await
            .unwrap();
        forget(&ledger, i64::from(FORGET_AT_ONCE * 2 + 5))
            .await
            .unwrap();
        let filter = fairlead_store::events::EventFilter {
            tenant: "t".to_owned(),
            limit: 100,
            ..Default::default()
        };
        let left = ledger.read(move |tx| tx.events(&filter)).await.unwrap();
        assert_eq!(left.len(), 2);
    }
}
