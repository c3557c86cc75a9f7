//! What a command asks of the agent itself: to renew its certificate, to take itself off. Never the engine.

use fairlead_protocol::{CommandId, State, codes};
use tokio::sync::oneshot;

use super::job::Surroundings;
use super::outcome::Outcome;
use crate::app::RenewNow;
use crate::uninstall::Way;

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
