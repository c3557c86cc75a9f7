//! What a command asks of the agent itself: to renew its certificate, to become another version, to take itself
//! off, to say how its host is. It makes the engine do nothing.

use std::time::Duration;

use fairlead_protocol::{CommandId, State, UpgradeAgent, codes};
use tokio::sync::oneshot;

use super::outcome::Outcome;
use super::settle::Settled;
use super::surroundings::{Surroundings, waits};
use crate::app::RenewNow;
use crate::host_check;
use crate::uninstall::Way;
use crate::upgrade::ordered::Known;

/// How long a package may take to come.
const FETCH_WITHIN: Duration = Duration::from_secs(15 * 60);
/// How long it is waited for what the supervisor was at when an instance died.
const SETTLED_WITHIN: Duration = Duration::from_secs(15 * 60);

/// Fetches the version and has the supervisor let it run. What the instance that does so is then is no matter: it
/// stays until the version is committed, and sends this result itself.
pub(super) async fn upgrade(id: CommandId, order: &UpgradeAgent, around: &Surroundings) -> Outcome {
    let say = |why: String| async move { waits(around, id, &why).await };
    match around.upgrades.carry_out(order, FETCH_WITHIN, say).await {
        Ok(()) => upgraded(&order.version),
        Err(failed) => Outcome::failed(failed.code, failed.message),
    }
}

fn upgraded(version: &str) -> Outcome {
    let body = serde_json::json!({ "version": version });
    Outcome::done().with_body(body.to_string())
}

/// The instance that was at it is gone; the supervisor knows what came of it.
pub(super) async fn upgrade_settled(order: &UpgradeAgent, around: &Surroundings) -> Settled {
    let known = around.upgrades.settled(&order.version, SETTLED_WITHIN);
    match known.await {
        Known::Done => Settled::Done(upgraded(&order.version)),
        Known::Returned(why) => {
            let message = format!("version {} does not have the host: {why}", order.version);
            Settled::Done(Outcome::failed(codes::UPGRADE_RETURNED, message))
        }
        Known::Nothing => Settled::NotDone,
        Known::UnderWay => Settled::Done(Outcome::ended(
            State::Unknown,
            codes::OUTCOME_UNKNOWN,
            "the supervisor is still at it; fairlead host show tells which version the host has",
        )),
    }
}

/// Makes sure that the agent can be taken off, and keeps the order. It is carried out once the region has
/// this result on disk.
pub(super) async fn depart(id: CommandId, around: &Surroundings) -> Outcome {
    let departure = around.departure.clone();
    let kept = tokio::task::spawn_blocking(move || departure.keep(id)).await;
    match kept {
        Ok(Ok(Way::Script(_))) => Outcome::done(),
        Ok(Ok(Way::Package)) => Outcome::ended(
            State::Succeeded,
            codes::INSTALLER_PACKAGED,
            "the agent stops and leaves; its files came with a package of the system and stay there: \
             apt-get purge fairlead-agent",
        ),
        Ok(Err(error)) => Outcome::failed(codes::CANNOT_UNINSTALL, error.to_string()),
        Err(error) => Outcome::failed(codes::INTERNAL, error.to_string()),
    }
}

/// What a restart of the engine would do here. An engine that does not answer is an answer too.
pub(super) async fn check_host(around: &Surroundings) -> Outcome {
    let found = host_check::look(&*around.runtime, around.time.own_clock_ahead_us()).await;
    Outcome::done().with_body(host_check::report(&found))
}

/// Asks the session to renew the certificate, and waits for it.
pub(super) async fn renew(around: &Surroundings) -> Outcome {
    let (done, renewed) = oneshot::channel();
    let unavailable = || {
        Outcome::failed(
            codes::CERTIFICATE_REJECTED,
            "the link was lost before it was renewed",
        )
    };
    if around.renew.send(RenewNow { done }).await.is_err() {
        return unavailable();
    }
    match renewed.await {
        Ok(Ok(not_after)) => {
            let body = serde_json::json!({ "not_after_s": not_after });
            Outcome::done().with_body(body.to_string())
        }
        Ok(Err(why)) => Outcome::failed(codes::CERTIFICATE_REJECTED, why),
        Err(_) => unavailable(),
    }
}
