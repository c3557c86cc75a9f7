//! After a crash: what became of a command whose intent is on disk and whose result is not.
//!
//! An engine goes on with a stop or restart whose client died, so the answer may lie in the future:
//! settling waits until the effect shows, or until the grace and five seconds are over, and decides
//! then. Nothing else begins on the lane meanwhile. `NotDone` means that no effect took place and none
//! will, so that the command may be carried out (once).

use std::time::Duration;

use fairlead_protocol::command::Kind;
use fairlead_protocol::{CommandId, Intent, State, codes};

use super::act::{grace, is_made_by};
use super::outcome::Outcome;
use crate::runtime::{ContainerDetail, ContainerRuntime, EngineEvent, ExecState, RuntimeError};
use crate::signals;

/// Added to the grace: what an engine may need besides.
const AFTER_GRACE: Duration = Duration::from_secs(5);
/// How often the engine is asked.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(200);
/// What the engine is just doing, asked for by who died, is among its events by then.
const EVENTS_COME_WITHIN: Duration = Duration::from_millis(500);
/// How long an engine may take to remove a container.
const REMOVED_WITHIN: Duration = Duration::from_secs(60);
/// An engine that answers has begun by then what it was asked to start before.
const STARTED_WITHIN: Duration = Duration::from_secs(3);

/// What became of it.
pub(super) enum Settled {
    /// It has a final state.
    Done(Outcome),
    /// No effect took place.
    NotDone,
}

/// What is known of the command from before the crash.
pub(super) struct Before<'a> {
    pub(super) id: CommandId,
    pub(super) kind: &'a Kind,
    pub(super) intent: &'a Intent,
    pub(super) exec: Option<&'a str>,
    /// How long ago the intent was written.
    pub(super) waited: Duration,
    /// What happened since the intent carries no earlier time than this, by the machine's clock.
    pub(super) not_before_us: i64,
    /// Whether its deadline has passed by now.
    pub(super) is_late: &'a (dyn Fn() -> bool + Sync),
}

/// Finds out what became of it.
///
/// # Errors
/// When the engine does not answer; ask again when it does.
pub(super) async fn settle(
    runtime: &dyn ContainerRuntime,
    before: &Before<'_>,
) -> Result<Settled, RuntimeError> {
    match before.kind {
        Kind::Run(run) => {
            made(
                runtime,
                before,
                run.spec.as_ref().map_or("", |s| &s.name),
                true,
            )
            .await
        }
        Kind::Create(create) => {
            made(
                runtime,
                before,
                create.spec.as_ref().map_or("", |s| &s.name),
                false,
            )
            .await
        }
        Kind::Start(start) => {
            let detail = inspect(runtime, before, &start.container).await?;
            Ok(match detail {
                Some(now) if started_since(&now, before) => done_on(&now),
                _ => Settled::NotDone,
            })
        }
        Kind::Stop(stop) => {
            wait_for(runtime, before, &stop.container, stop.grace_s, |now| {
                now.container.state != "running"
            })
            .await
        }
        Kind::Restart(restart) => {
            wait_for(
                runtime,
                before,
                &restart.container,
                restart.grace_s,
                |now| started_since(now, before),
            )
            .await
        }
        Kind::Kill(kill) => killed(runtime, before, &kill.container, &kill.signal).await,
        Kind::Remove(_) => removed(runtime, before).await,
        Kind::Exec(_) => executed(runtime, before).await,
        Kind::HostShell(_) => {
            super::host_shell::end(before.id, None).await;
            Ok(Settled::Done(terminal_lost()))
        }
        Kind::CopyIn(_) => Ok(Settled::Done(Outcome::failed(
            codes::STREAM_LOST,
            "the agent was restarted during the copy: some of the files may be there; copy again",
        ))),
        // Doing these again has no further effect.
        Kind::Pull(_)
        | Kind::PruneImages(_)
        | Kind::RenewCertificate(_)
        | Kind::Inspect(_)
        | Kind::Logs(_)
        | Kind::CopyOut(_)
        | Kind::List(_)
        | Kind::Ping(_)
        // Of an upgrade the supervisor knows (`own::upgrade_settled`).
        | Kind::UpgradeAgent(_)
        | Kind::UninstallAgent(_) => Ok(Settled::NotDone),
    }
}

fn done_on(detail: &ContainerDetail) -> Settled {
    Settled::Done(Outcome::done().on(detail.container.id.clone()))
}

/// Whether it was started after the intent. The start time in the intent may be a little old (it comes
/// from the newest picture), so a start between that picture and the intent must not count.
fn started_since(now: &ContainerDetail, before: &Before<'_>) -> bool {
    now.started_us != before.intent.started_us && now.started_us >= before.not_before_us
}

/// The container that the command was about, by the id it had then; `None` when it is gone.
async fn inspect(
    runtime: &dyn ContainerRuntime,
    before: &Before<'_>,
    name: &str,
) -> Result<Option<ContainerDetail>, RuntimeError> {
    let known = &before.intent.container_id;
    match runtime
        .inspect(if known.is_empty() { name } else { known })
        .await
    {
        Ok(detail) => Ok(Some(detail)),
        Err(RuntimeError::NoSuchContainer(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Asks until the effect shows or the grace and a little more (counted from the intent) are over. A
/// command that names no grace leaves it to the container's own.
async fn wait_for(
    runtime: &dyn ContainerRuntime,
    before: &Before<'_>,
    name: &str,
    asked_grace_s: Option<u32>,
    effect: impl Fn(&ContainerDetail) -> bool,
) -> Result<Settled, RuntimeError> {
    let mut waited = before.waited;
    loop {
        match inspect(runtime, before, name).await? {
            None => {
                return Ok(Settled::Done(Outcome::failed(
                    codes::CONTAINER_NOT_FOUND,
                    format!("container {name} was removed meanwhile"),
                )));
            }
            Some(now) if effect(&now) => return Ok(done_on(&now)),
            Some(now) if waited >= grace(asked_grace_s, now.stop_timeout_s) + AFTER_GRACE => {
                return Ok(Settled::NotDone);
            }
            Some(_) => {
                tokio::time::sleep(ASK_AGAIN_AFTER).await;
                waited += ASK_AGAIN_AFTER;
            }
        }
    }
}

/// A container that this command made, found by its label; or the engine's memory of one.
async fn made(
    runtime: &dyn ContainerRuntime,
    before: &Before<'_>,
    name: &str,
    start: bool,
) -> Result<Settled, RuntimeError> {
    let found = match runtime.inspect(name).await {
        Ok(detail) => Some(detail),
        Err(RuntimeError::NoSuchContainer(_)) => None,
        Err(error) => return Err(error),
    };
    let ours = |detail: &ContainerDetail| is_made_by(detail, before.id);
    let detail = match found.filter(ours) {
        Some(detail) => detail,
        // It may have been made, have run and have been removed again (--rm, or by hand); or it was being
        // made while we looked.
        None => match made_meanwhile(runtime, before, start).await? {
            Meanwhile::Lives(detail) => *detail,
            Meanwhile::Settled(settled) => return Ok(settled),
        },
    };
    if start && detail.started_us == 0 {
        match runtime.start(&detail.container.id).await {
            Ok(()) => {}
            Err(error @ (RuntimeError::Unavailable(_) | RuntimeError::Interrupted(_))) => {
                return Err(error);
            }
            // It was made but cannot start: that is its end.
            Err(error) => {
                return Ok(Settled::Done(Outcome::from(error).on(detail.container.id)));
            }
        }
    }
    let body = serde_json::json!({ "id": detail.container.id, "name": name });
    Ok(Settled::Done(
        Outcome::done()
            .with_body(body.to_string())
            .on(detail.container.id),
    ))
}

/// What the engine remembers of a container that is not found by its name.
enum Meanwhile {
    /// It is there after all.
    Lives(Box<ContainerDetail>),
    /// It is not.
    Settled(Settled),
}

/// Looks for the container that this command made in what the engine remembers, and then by its id.
async fn made_meanwhile(
    runtime: &dyn ContainerRuntime,
    before: &Before<'_>,
    start: bool,
) -> Result<Meanwhile, RuntimeError> {
    let label = before.id.to_string();
    let past = remembered(runtime, before).await?;
    let created = past
        .iter()
        .find(|event| event.action == "create" && event.command_label == label);
    let Some(created) = created else {
        return Ok(Meanwhile::Settled(Settled::NotDone));
    };
    match runtime.inspect(&created.id).await {
        Ok(detail) => return Ok(Meanwhile::Lives(Box::new(detail))),
        Err(RuntimeError::NoSuchContainer(_)) => {}
        Err(error) => return Err(error),
    }
    let of_it = |event: &&EngineEvent| event.id == created.id;
    let started = past.iter().filter(of_it).any(|e| e.action == "start");
    Ok(Meanwhile::Settled(Settled::Done(if start && !started {
        Outcome::failed(
            codes::CONTAINER_NOT_FOUND,
            "the container was made, and removed before it was started",
        )
    } else {
        Outcome::done()
    })))
}

/// The id is asked for, not the name: another container may have the name by now. An engine goes on with
/// a removal whose client died, and refuses a second one meanwhile.
async fn removed(
    runtime: &dyn ContainerRuntime,
    before: &Before<'_>,
) -> Result<Settled, RuntimeError> {
    let id = &before.intent.container_id;
    let mut waited = Duration::ZERO;
    loop {
        match runtime.inspect(id).await {
            Err(RuntimeError::NoSuchContainer(_)) => {
                return Ok(Settled::Done(Outcome::done().on(id.clone())));
            }
            Err(error) => return Err(error),
            Ok(now) if now.container.state == "removing" && waited < REMOVED_WITHIN => {
                tokio::time::sleep(ASK_AGAIN_AFTER).await;
                waited += ASK_AGAIN_AFTER;
            }
            Ok(_) => return Ok(Settled::NotDone),
        }
    }
}

/// A signal leaves no trace in the container, but one in the engine's events.
async fn killed(
    runtime: &dyn ContainerRuntime,
    before: &Before<'_>,
    name: &str,
    signal: &str,
) -> Result<Settled, RuntimeError> {
    let Some(now) = inspect(runtime, before, name).await? else {
        return Ok(Settled::Done(
            Outcome::done().on(before.intent.container_id.clone()),
        ));
    };
    let has_ended = now.container.state != "running";
    if has_ended && now.finished_us < before.not_before_us {
        // One that had ended before was never sent anything: the engine is to say so itself.
        return Ok(Settled::NotDone);
    }
    let past = remembered(runtime, before).await?;
    let mut kills = past
        .iter()
        .filter(|event| event.action == "kill" && event.id == now.container.id)
        .peekable();
    // Within the grace of a stop it is sent signals for that one too. An engine that remembers none at all
    // has forgotten: then the end speaks.
    let forgotten = has_ended && kills.peek().is_none();
    Ok(
        if forgotten || kills.any(|event| is_same_signal(&event.detail, signal)) {
            done_on(&now)
        } else {
            Settled::NotDone
        },
    )
}

/// What cannot be told apart counts as the same.
fn is_same_signal(told: &str, asked: &str) -> bool {
    match (signals::number(told), signals::number(asked)) {
        (Some(told), Some(asked)) => told == asked,
        _ => true,
    }
}

/// What the engine remembers since the intent, all of it: half an answer would be taken for a deed that was not
/// done. An engine that keeps no record remembers nothing.
async fn remembered(
    runtime: &dyn ContainerRuntime,
    before: &Before<'_>,
) -> Result<Vec<EngineEvent>, RuntimeError> {
    match runtime
        .past_events(before.not_before_us, EVENTS_COME_WITHIN)
        .await
    {
        Err(RuntimeError::Engine(why)) => {
            tracing::warn!(command = %before.id, why, "the engine does not say what it remembers");
            Ok(Vec::new())
        }
        answer => answer,
    }
}

fn terminal_lost() -> Outcome {
    Outcome::failed(
        codes::STREAM_LOST,
        "the agent was restarted: the terminal and its processes were ended",
    )
}

/// The exit code that an engine notes for an exec that it could not attach to, or not any more.
const UNREAD: i64 = 126;

/// An exec is known to the engine by its id, which was journalled before it was started.
async fn executed(
    runtime: &dyn ContainerRuntime,
    before: &Before<'_>,
) -> Result<Settled, RuntimeError> {
    let Some(exec) = before.exec else {
        return Ok(Settled::NotDone);
    };
    if let Kind::Exec(wanted) = before.kind
        && wanted.tty
    {
        // A terminal does not outlive the agent that held its stream, nor do its processes.
        runtime
            .exec_end(exec, &super::terminal::marker(before.id))
            .await?;
        return Ok(Settled::Done(terminal_lost()));
    }
    let mut not_started = Duration::ZERO;
    loop {
        match runtime.exec_state(exec).await? {
            ExecState::Running => tokio::time::sleep(ASK_AGAIN_AFTER).await,
            // Past its deadline it is not begun. Whether it was is seen by waiting: what was said to an
            // engine that hung is read when it goes on.
            ExecState::Created if (before.is_late)() => {
                if not_started >= STARTED_WITHIN {
                    return Ok(Settled::Done(Outcome::too_late()));
                }
                tokio::time::sleep(ASK_AGAIN_AFTER).await;
                not_started += ASK_AGAIN_AFTER;
            }
            // Made and not started, as far as is known: this very one is started, because the engine
            // refuses to start it twice, and a new one might run beside it.
            ExecState::Created => {
                let Kind::Exec(wanted) = before.kind else {
                    return Ok(Settled::NotDone);
                };
                let io = runtime.exec_start(exec, wanted.tty).await?;
                let never = std::future::pending();
                let outcome =
                    super::attached::run_exec(runtime, (exec, io), wanted, None, never).await?;
                return Ok(Settled::Done(outcome));
            }
            // What an engine also notes when it could not write to who read: to the agent before this one.
            ExecState::Exited(UNREAD) => {
                return Ok(Settled::Done(Outcome::ended(
                    State::Unknown,
                    codes::OUTCOME_UNKNOWN,
                    "the agent was restarted while the process wrote, and the engine has noted that nobody read \
                     it (126), and not how it ended",
                )));
            }
            ExecState::Exited(code) => {
                let mut outcome = exited(code);
                "the agent was restarted while it ran: its output was lost"
                    .clone_into(&mut outcome.message);
                return Ok(Settled::Done(outcome));
            }
            ExecState::Forgotten => {
                return Ok(Settled::Done(Outcome::ended(
                    State::Unknown,
                    codes::OUTCOME_UNKNOWN,
                    "the engine or the container was restarted while the process ran: whether it \
                     finished cannot be found out",
                )));
            }
        }
    }
}

/// How an exec ended, by its exit code.
pub(super) fn exited(code: i64) -> Outcome {
    let exit_code = i32::try_from(code).unwrap_or(-1);
    if exit_code == 0 {
        Outcome::done()
    } else {
        let mut outcome = Outcome::failed(
            codes::EXIT_CODE,
            format!("the process ended with {exit_code}"),
        );
        outcome.exit_code = exit_code;
        outcome
    }
}

#[cfg(test)]
mod tests;
