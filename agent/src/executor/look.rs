//! Looking before acting: what the engine and the host's owner say of the container that a command is
//! about. Changes nothing. An engine that does not answer is waited for until the deadline.

use std::time::Duration;

use fairlead_protocol::command::Kind;
use fairlead_protocol::{Command, State, codes};

use super::job::{Job, TRY_AGAIN_AFTER, has_effect};
use super::outcome::Outcome;
use super::surroundings::{Surroundings, waits};
use crate::runtime::{ContainerDetail, RuntimeError};

/// An engine that has not answered a question for so long is waited for, and said to be; deadline and
/// withdrawal are looked at as often.
const SILENT_AFTER: Duration = Duration::from_secs(1);

/// How often it is looked whether what goes on is still allowed.
const POLICY_LOOKED_AT_EVERY: Duration = Duration::from_secs(1);

/// The container that must be there for this kind.
pub(super) fn existing_container(kind: &Kind) -> Option<&str> {
    match kind {
        Kind::Start(k) => Some(&k.container),
        Kind::Stop(k) => Some(&k.container),
        Kind::Restart(k) => Some(&k.container),
        Kind::Kill(k) => Some(&k.container),
        Kind::Remove(k) => Some(&k.container),
        Kind::Exec(k) => Some(&k.container),
        Kind::Logs(k) => Some(&k.container),
        Kind::CopyIn(k) => Some(&k.container),
        Kind::CopyOut(k) => Some(&k.container),
        Kind::Inspect(k) if k.means_container() => Some(&k.object),
        _ => None,
    }
}

/// Whether the host's owner lets the command have a target of that name.
pub(super) fn allowed(job: &Job, target: &str, around: &Surroundings) -> Result<(), Outcome> {
    let checked = around.policy.check_named(&job.command, target);
    checked.map_err(|refusal| Outcome::failed(refusal.code, refusal.message))
}

/// Returns when the host's owner does not let the command go on (in that container, if it is in one) any more: what
/// was allowed when it began may be forbidden since.
pub(super) async fn forbidden(
    command: &Command,
    container: Option<&str>,
    around: &Surroundings,
) -> Outcome {
    let mut ticks = tokio::time::interval(POLICY_LOOKED_AT_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut judged = None;
    loop {
        ticks.tick().await;
        let policy = around.policy.policy();
        if judged.as_ref() == Some(&policy) {
            continue;
        }
        let named = match container {
            Some(container) => around.runtime.inspect(container).await.ok(),
            None => None,
        };
        let allowed = match named {
            Some(detail) => policy.check_named(command, &detail.container.name),
            // There is no name, or it is not to be had: it is judged by what the command says.
            None => policy.check(command),
        };
        if let Err(refusal) = allowed {
            return Outcome::failed(refusal.code, refusal.message);
        }
        judged = Some(policy);
    }
}

/// Looks at the container that the command is about (waiting for the engine), and at the
/// precondition. `None` for commands about no existing container.
pub(super) async fn look_before(
    job: &Job,
    kind: &Kind,
    around: &Surroundings,
) -> Result<Option<ContainerDetail>, Outcome> {
    let Some(container) = existing_container(kind) else {
        return Ok(None);
    };
    let detail = loop {
        match patiently(job, around, around.runtime.inspect(container)).await? {
            Ok(detail) => break detail,
            Err(RuntimeError::Unavailable(why) | RuntimeError::Interrupted(why)) => {
                withdrawn(job)?;
                wait_for_engine(job, around, &why).await?;
            }
            Err(error) => return Err(error.into()),
        }
    };
    let found = &detail.container;
    allowed(job, &found.name, around)?;
    // Under another name it would be beside those that wait for this one's lane.
    let lane = job.lane.strip_prefix("container/");
    if has_effect(kind) && lane.is_some_and(|lane| lane != found.name) {
        return Err(conflict(format!(
            "container {container} is named {}, which was not known when the command was taken: ask \
             again, by its name",
            found.name
        )));
    }
    let wanted = job.command.precondition.clone().unwrap_or_default();
    if !wanted.container_id.is_empty() && !found.id.starts_with(&wanted.container_id) {
        return Err(conflict(format!(
            "container {container} is {} now, not {}: look again and repeat",
            found.id.get(..12).unwrap_or(&found.id),
            wanted.container_id
        )));
    }
    if !wanted.image_digest.is_empty() && found.image_id != wanted.image_digest {
        return Err(conflict(format!(
            "container {container} has image {} now, not {}: look again and repeat",
            found.image_id, wanted.image_digest
        )));
    }
    Ok(Some(detail))
}

fn conflict(message: String) -> Outcome {
    Outcome::ended(State::Conflict, codes::PRECONDITION_FAILED, message)
}

/// Withdrawn while it waited, before anything of it was done.
pub(super) fn withdrawn(job: &Job) -> Result<(), Outcome> {
    job.turn
        .withdrawn()
        .map_or(Ok(()), |by| Err(withdrawn_by(&by)))
}

pub(super) fn withdrawn_by(by: &str) -> Outcome {
    Outcome::ended(
        State::Cancelled,
        codes::WITHDRAWN,
        format!("withdrawn by {by}"),
    )
}

/// The engine's answer to a question. An engine that takes its time, or is frozen, holds neither deadline
/// nor withdrawal up, and it is said that it is waited for.
async fn patiently<Answer>(
    job: &Job,
    around: &Surroundings,
    asking: impl Future<Output = Answer>,
) -> Result<Answer, Outcome> {
    let mut asking = std::pin::pin!(asking);
    let mut told = false;
    loop {
        if let Ok(answer) = tokio::time::timeout(SILENT_AFTER, &mut asking).await {
            return Ok(answer);
        }
        withdrawn(job)?;
        let why = "it takes long to answer a question";
        in_time(job, around, why)?;
        if !std::mem::replace(&mut told, true) {
            waits(around, job.id, &no_answer(why)).await;
        }
    }
}

fn no_answer(why: &str) -> String {
    format!("the container engine does not answer: {why}")
}

/// Whether it may still begin.
fn in_time(job: &Job, around: &Surroundings, why: &str) -> Result<(), Outcome> {
    if around.time.now_us() <= job.command.not_after_us {
        return Ok(());
    }
    Err(Outcome::ended(
        State::Expired,
        codes::DEADLINE_PASSED,
        format!("its deadline passed while the engine did not answer ({why}); nothing was done"),
    ))
}

pub(super) async fn wait_for_engine(
    job: &Job,
    around: &Surroundings,
    why: &str,
) -> Result<(), Outcome> {
    in_time(job, around, why)?;
    waits(around, job.id, &no_answer(why)).await;
    tokio::time::sleep(TRY_AGAIN_AFTER).await;
    Ok(())
}

/// Whether the engine's own answer will say all that a look would: these kinds name the container to the
/// engine, which refuses when it is not there. A precondition is always looked at.
pub(super) fn needs_no_look(
    job: &Job,
    kind: &Kind,
    around: &Surroundings,
) -> Result<bool, Outcome> {
    let (Kind::Start(_) | Kind::Stop(_) | Kind::Restart(_) | Kind::Kill(_)) = kind else {
        return Ok(false);
    };
    let Some(container) = existing_container(kind) else {
        return Ok(false);
    };
    if job.command.precondition.is_some() || !around.picture.is_fresh(container) {
        return Ok(false);
    }
    allowed(job, container, around)?;
    Ok(true)
}
