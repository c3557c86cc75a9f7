//! One command's life, in a task of its own: checks, intent, act, result.
//!
//! ```text
//! deadline? policy? engine there? precondition?  →  intent on disk  →  act  →  result on disk
//! ```
//! Whatever is found before the intent ends the command without effect. An engine that is not there
//! and a disk that is full are waited for until the deadline. Once the engine has been asked, a broken
//! answer leads to `settle`, never to a second try in the blind.

use std::sync::Arc;
use std::time::Duration;

use fairlead_link::socket::StreamSocket;
use fairlead_planted::{self as planted, Defect};
use fairlead_protocol::command::{INSPECT_HOST, Kind};
use fairlead_protocol::{
    Command, CommandId, CommandResult, Intent, SignedCommand, Stage, Stamp, State, codes,
};
use tokio::sync::oneshot;

use super::issuer::stream_of;
use super::lane_lock::{self, LaneLock};
use super::look::{
    allowed, existing_container, forbidden, look_before, needs_no_look, wait_for_engine, withdrawn,
    withdrawn_by,
};
use super::outcome::Outcome;
use super::settle::{Before, Settled, settle};
use super::surroundings::{News, Surroundings, waits};
use super::turn::Turn;
use super::{act, attached, copy, exec, host_shell, own, stamp};
use crate::runtime::{ContainerDetail, RuntimeError};

/// How often an engine that is not there, or a disk that is full, is tried again.
pub(super) const TRY_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// A command that may begin.
pub(super) struct Job {
    pub(super) id: CommandId,
    pub(super) command: Command,
    pub(super) signed: SignedCommand,
    pub(super) stamps: Vec<Stamp>,
    pub(super) stream: Option<oneshot::Receiver<StreamSocket>>,
    /// Begun by an earlier instance: settle first.
    pub(super) unsettled: Option<(Intent, Option<String>)>,
    /// Why the journal takes nothing, if so.
    pub(super) blocked: Option<String>,
    /// Whether it may still be withdrawn, or was.
    pub(super) turn: Arc<Turn>,
    pub(super) lane: String,
}

/// Whether a kind changes something that doing it twice would change again.
pub(super) fn has_effect(kind: &Kind) -> bool {
    kind.changes()
        || matches!(
            kind,
            Kind::Exec(_) | Kind::HostShell(_) | Kind::RenewCertificate(_) | Kind::UpgradeAgent(_)
        )
}

/// Carries a command out and reports its end.
pub(super) async fn carry_out(mut job: Job, around: Arc<Surroundings>) {
    let id = job.id;
    // Until the result is on disk.
    let held = hold_lane(&job, &around).await;
    let outcome = match job.command.kind.clone() {
        Some(kind) => live(&mut job, &kind, &around).await,
        None => Outcome::failed(codes::UNSUPPORTED, "this agent does not know that kind"),
    };
    let journalled =
        job.command.kind.as_ref().is_some_and(has_effect) && !planted::is(Defect::ResultNotKept);
    let not_after_us = job.command.not_after_us;
    let mut result = CommandResult {
        command: id.to_wire(),
        state: outcome.state.into(),
        code: outcome.code.to_owned(),
        message: outcome.message,
        exit_code: outcome.exit_code,
        body_length: u32::try_from(outcome.body.len()).unwrap_or(u32::MAX),
        body: outcome.body,
        body_truncated: outcome.truncated,
        stamps: job.stamps,
        container_id: outcome.container_id,
        ..CommandResult::default()
    };
    if journalled {
        // A result is sent only when it is on disk. A full disk is waited for: what happened,
        // happened.
        while let Err(error) = around
            .appender
            .result(id, result.clone(), not_after_us)
            .await
        {
            waits(&around, id, &error.to_string()).await;
            tokio::time::sleep(TRY_AGAIN_AFTER).await;
        }
        result
            .stamps
            .push(stamp(Stage::ResultStored, around.time.now_us()));
    }
    drop(held);
    // The actor outlives its jobs; when it is gone, the process is going.
    let _ = around.news.send(News::Ended { id, result }).await;
}

/// The kernel's lock on the lane, for what changes something. A kill does its work within another's hold.
async fn hold_lane(job: &Job, around: &Surroundings) -> Option<LaneLock> {
    let kind = job.command.kind.as_ref()?;
    if !kind.changes() || matches!(kind, Kind::Kill(_)) {
        return None;
    }
    let mut said = false;
    loop {
        match around.lane_locks.try_lock(&job.lane) {
            Ok(Some(held)) => return Some(held),
            Ok(None) => {
                if !std::mem::replace(&mut said, true) {
                    tracing::warn!(command = %job.id, lane = job.lane, "another instance acts on the lane");
                    waits(around, job.id, "another instance of the agent acts on it").await;
                }
                tokio::time::sleep(lane_lock::TRY_AGAIN_AFTER).await;
            }
            Err(error) => {
                // Which command may begin has been decided without it.
                tracing::warn!(%error, "the lane's lock cannot be had; it goes on without");
                return None;
            }
        }
    }
}

/// From the first check to the outcome.
async fn live(job: &mut Job, kind: &Kind, around: &Surroundings) -> Outcome {
    if let Some((intent, exec)) = job.unsettled.take() {
        let settled = if planted::is(Defect::BlindAfterCrash) {
            Settled::NotDone
        } else {
            settle_patiently(job, kind, &intent, exec.as_deref(), around).await
        };
        match settled {
            Settled::Done(outcome) => return outcome,
            Settled::NotDone => job.turn.give_back(),
        }
        // Nothing of it was done: what could have kept it from beginning may still do so.
        if let Some(outcome) = may_not_begin(job, kind, around) {
            return outcome;
        }
        if let Err(outcome) = look_before(job, kind, around).await {
            return outcome;
        }
        return begin(job, kind, intent, true, around).await;
    }
    if let Some(outcome) = may_not_begin(job, kind, around) {
        return outcome;
    }
    match prepare(job, kind, around).await {
        Ok(intent) => begin(job, kind, intent, false, around).await,
        Err(outcome) => outcome,
    }
}

/// Looks at the container and puts the intent on disk. Where the newest picture of it still holds it is
/// not looked at again; else the two go side by side: the intent is written with what the picture shows,
/// and written again in the rare case that the engine shows something else.
async fn prepare(job: &mut Job, kind: &Kind, around: &Surroundings) -> Result<Intent, Outcome> {
    let pictured = existing_container(kind).and_then(|name| around.picture.seen(name));
    let mut intent = Intent {
        command: Some(job.signed.clone()),
        at_us: around.clock.now_us(),
        stamps: job.stamps.clone(),
        container_id: pictured
            .as_ref()
            .map_or_else(String::new, |(id, _)| id.clone()),
        started_us: pictured.as_ref().map_or(0, |(_, started_us)| *started_us),
        lane: job.lane.clone(),
        boot_us: around.clock.boot_us(),
    };
    if !has_effect(kind) {
        look_before(job, kind, around).await?;
        return Ok(intent);
    }
    let before = if pictured.is_some() && needs_no_look(job, kind, around)? {
        write_intent(job, &intent, around).await?;
        None
    } else if pictured.is_some() {
        let (before, written) = tokio::join!(
            look_before(job, kind, around),
            around.appender.intent(intent.clone())
        );
        let before = before?;
        if written.is_err() {
            write_intent(job, &intent, around).await?;
        }
        before
    } else {
        let before = look_before(job, kind, around).await?;
        if let Some(detail) = &before {
            see(&mut intent, detail);
        }
        write_intent(job, &intent, around).await?;
        before
    };
    if let Some(detail) = before
        && (intent.container_id != detail.container.id || intent.started_us != detail.started_us)
    {
        see(&mut intent, &detail);
        write_intent(job, &intent, around).await?;
    }
    job.stamps
        .push(stamp(Stage::IntentStored, around.time.now_us()));
    let news = News::Begun {
        id: job.id,
        intent: intent.clone(),
        stamps: job.stamps.clone(),
    };
    let _ = around.news.send(news).await;
    Ok(intent)
}

fn see(intent: &mut Intent, detail: &ContainerDetail) {
    intent.container_id.clone_from(&detail.container.id);
    intent.started_us = detail.started_us;
}

fn past_deadline(job: &Job, around: &Surroundings) -> Option<Outcome> {
    around
        .is_past(job.command.not_after_us)
        .then(Outcome::too_late)
}

/// What forbids it, without asking the engine.
fn may_not_begin(job: &Job, kind: &Kind, around: &Surroundings) -> Option<Outcome> {
    if let Some(outcome) = past_deadline(job, around) {
        return Some(outcome);
    }
    let known = fairlead_protocol::version::AGENT_FEATURES;
    if let Some(missing) = job
        .command
        .required_features
        .iter()
        .find(|feature| !known.contains(&feature.as_str()))
    {
        return Some(Outcome::failed(
            codes::UNSUPPORTED,
            format!("this agent lacks the feature {missing}: upgrade it"),
        ));
    }
    if let Some(why) = job.blocked.as_ref().filter(|_| has_effect(kind)) {
        return Some(Outcome::failed(codes::JOURNAL_UNAVAILABLE, why.clone()));
    }
    // Where a container is meant, its true name decides, which is known once it has been looked at.
    if existing_container(kind).is_some() {
        return None;
    }
    allowed(job, kind.target(), around).err()
}

/// Intent on disk, waiting for a full disk until the deadline.
async fn write_intent(job: &Job, intent: &Intent, around: &Surroundings) -> Result<(), Outcome> {
    while let Err(error) = around.appender.intent(intent.clone()).await {
        if around.time.now_us() > job.command.not_after_us {
            return Err(Outcome::ended(
                State::Expired,
                codes::DEADLINE_PASSED,
                format!("its deadline passed while {error}; nothing was done"),
            ));
        }
        withdrawn(job)?;
        waits(around, job.id, &error.to_string()).await;
        tokio::time::sleep(TRY_AGAIN_AFTER).await;
    }
    Ok(())
}

/// Asks the engine, and again after a broken answer once it is known what became of the first.
async fn begin(
    job: &mut Job,
    kind: &Kind,
    mut intent: Intent,
    again: bool,
    around: &Surroundings,
) -> Outcome {
    let allowed = match job.command.timeout_ms {
        0 => act::default_timeout(kind),
        asked => Duration::from_millis(u64::from(asked)),
    };
    let mut stream = match stream_of(job, around).await {
        Ok(stream) => stream,
        Err(outcome) => return outcome,
    };
    let id = job.id;
    if stream.is_some() && !has_effect(kind) {
        let _ = around.news.send(News::Attached { id }).await;
    }
    let mut call = has_effect(kind).then_some(News::Called { id, again });
    loop {
        // The stream, a slow disk or a broken answer may have used the time up.
        if let Some(outcome) = past_deadline(job, around) {
            return outcome;
        }
        if let Err(by) = job.turn.take() {
            return withdrawn_by(&by);
        }
        // Of an exec it is said when it has been made.
        if !matches!(kind, Kind::Exec(_)) {
            tell(&mut call, around).await;
        }
        job.stamps
            .push(stamp(Stage::EngineCalled, around.time.now_us()));
        let mut exec = None;
        let command = &job.command;
        let asking = ask_engine(command, kind, &mut stream, &mut exec, &mut call, around);
        let Ok(answer) = tokio::time::timeout(allowed, asking).await else {
            job.stamps
                .push(stamp(Stage::EngineAnswered, around.time.now_us()));
            return timed_out(job, kind, &intent, exec.as_deref(), allowed, around).await;
        };
        match answer {
            Ok(mut outcome) => {
                job.stamps
                    .push(stamp(Stage::EngineAnswered, around.time.now_us()));
                if outcome.container_id.is_empty() {
                    outcome.container_id.clone_from(&intent.container_id);
                }
                return outcome;
            }
            Err(RuntimeError::Unavailable(why)) => {
                job.turn.give_back();
                if let Err(outcome) = wait_for_engine(job, around, &why).await {
                    return outcome;
                }
            }
            Err(RuntimeError::Interrupted(why)) => {
                waits(around, job.id, &why).await;
                let settled = settle_patiently(job, kind, &intent, exec.as_deref(), around).await;
                if let Settled::Done(outcome) = settled {
                    return outcome;
                }
                job.turn.give_back();
                intent.at_us = around.clock.now_us();
                intent.boot_us = around.clock.boot_us();
            }
            Err(error) => {
                job.stamps
                    .push(stamp(Stage::EngineAnswered, around.time.now_us()));
                return Outcome::from(error).on(intent.container_id);
            }
        }
    }
}

/// Tells it, once.
pub(super) async fn tell(news: &mut Option<News>, around: &Surroundings) {
    if let Some(news) = news.take() {
        let _ = around.news.send(news).await;
    }
}

/// The engine goes on with a stop or restart that nobody waits for any more: the lane is kept until its
/// effect shows or can no longer come. Shells are ended. Of other kinds the time is simply over.
async fn timed_out(
    job: &mut Job,
    kind: &Kind,
    intent: &Intent,
    exec: Option<&str>,
    allowed: Duration,
    around: &Surroundings,
) -> Outcome {
    if matches!(kind, Kind::Stop(_) | Kind::Restart(_))
        && let Settled::Done(outcome) = settle_patiently(job, kind, intent, exec, around).await
    {
        return outcome;
    }
    let seconds = allowed.as_secs_f64();
    let then = match (kind, exec) {
        (Kind::HostShell(_), _) => {
            host_shell::end(job.id, None).await;
            "it was ended"
        }
        (Kind::Exec(terminal), Some(exec)) if terminal.tty => {
            let marker = super::terminal::marker(job.id);
            match around.runtime.exec_end(exec, &marker).await {
                Ok(()) => "it was ended",
                Err(_) => "it could not be ended",
            }
        }
        (Kind::UpgradeAgent(_), _) => "the supervisor may still finish it",
        _ => "the engine may still finish it",
    };
    let message = format!("not finished after {seconds} s; {then}");
    Outcome::failed(codes::TIMEOUT, message).on(intent.container_id.clone())
}

/// Asks the engine; `exec` becomes the id of the exec that was made on the way.
async fn ask_engine(
    command: &Command,
    kind: &Kind,
    stream: &mut Option<StreamSocket>,
    exec: &mut Option<String>,
    call: &mut Option<News>,
    around: &Surroundings,
) -> Result<Outcome, RuntimeError> {
    let runtime = &*around.runtime;
    let id = CommandId::from_wire(&command.id)
        .map_err(|error| RuntimeError::Engine(error.to_string()))?;
    let on = |stream: &mut Option<StreamSocket>| Some((stream.take()?, around.again(id)));
    match kind {
        Kind::Exec(wanted) => {
            let asked = exec::Asked {
                id,
                command,
                wanted,
            };
            exec::carry_out(&asked, stream, exec, call, around).await
        }
        Kind::HostShell(wanted) => {
            let forbidden = forbidden(command, None, around);
            Box::pin(host_shell::run(
                wanted,
                stream.take(),
                around.again(id),
                forbidden,
            ))
            .await
        }
        Kind::Logs(logs) => Box::pin(attached::run_logs(runtime, logs, on(stream))).await,
        Kind::CopyOut(wanted) => Box::pin(copy::run_out(runtime, wanted, on(stream))).await,
        Kind::CopyIn(wanted) => {
            Box::pin(copy::run_in(runtime, id, wanted, on(stream), &around.spool)).await
        }
        Kind::Inspect(inspect) if inspect.kind == INSPECT_HOST => Ok(own::check_host(around).await),
        Kind::RenewCertificate(_) => Ok(own::renew(around).await),
        Kind::UpgradeAgent(upgrade) => Ok(own::upgrade(id, upgrade, around).await),
        Kind::UninstallAgent(_) => Ok(own::depart(id, around).await),
        other => act::act(runtime, id, other).await,
    }
}

/// Settles, however often the engine has to be asked: what has begun must get its true end.
async fn settle_patiently(
    job: &mut Job,
    kind: &Kind,
    intent: &Intent,
    exec: Option<&str>,
    around: &Surroundings,
) -> Settled {
    if let Kind::UpgradeAgent(upgrade) = kind {
        job.stamps.push(stamp(Stage::Settled, around.time.now_us()));
        return own::upgrade_settled(upgrade, around).await;
    }
    let (now_us, boot_us) = (around.clock.now_us(), around.clock.boot_us());
    // A smaller time since boot means that the machine was booted since: nothing of the act goes on.
    let since_us = if boot_us >= intent.boot_us {
        boot_us - intent.boot_us
    } else {
        i64::MAX
    };
    let waited = Duration::from_micros(since_us.unsigned_abs());
    // Where the wall clock was set back meanwhile, what came after the intent carries earlier times.
    let set_back_us = ((intent.at_us - intent.boot_us) - (now_us - boot_us)).max(0);
    let set_back_us = if boot_us >= intent.boot_us {
        set_back_us
    } else {
        0
    };
    let not_before_us = intent.at_us - set_back_us;
    let not_after_us = job.command.not_after_us;
    let before = Before {
        id: job.id,
        kind,
        intent,
        exec,
        waited,
        not_before_us,
        is_late: &|| around.is_past(not_after_us),
    };
    loop {
        match settle(&*around.runtime, &before).await {
            Ok(settled) => {
                job.stamps.push(stamp(Stage::Settled, around.time.now_us()));
                return settled;
            }
            Err(error @ (RuntimeError::Unavailable(_) | RuntimeError::Interrupted(_))) => {
                waits(
                    around,
                    job.id,
                    &format!("what became of it is being found out: {error}"),
                )
                .await;
                tokio::time::sleep(TRY_AGAIN_AFTER).await;
            }
            // An engine that answers, but not this question, will not answer it later either.
            Err(error) => {
                return Settled::Done(Outcome::ended(
                    State::Unknown,
                    codes::OUTCOME_UNKNOWN,
                    format!("what became of it cannot be found out: {error}"),
                ));
            }
        }
    }
}
