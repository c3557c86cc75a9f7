//! What each kind asks of the engine. One function per family; no journal, no lanes, no retries.

use std::time::Duration;

use fairlead_protocol::command::Kind;
use fairlead_protocol::{CommandId, ContainerSpec, codes};

use super::outcome::Outcome;
use crate::runtime::{ContainerDetail, ContainerRuntime, RuntimeError};

/// Label on everything that a command makes: after a crash it tells what was made.
pub(super) const COMMAND_LABEL: &str = "fairlead.command";

/// How long an engine may take to show a container whose name it has taken.
const MADE_WITHIN: Duration = Duration::from_secs(5);
/// How often it is asked.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// How long a kind may take when its issuer did not say.
pub(super) fn default_timeout(kind: &Kind) -> Duration {
    let minutes = |n: u64| Duration::from_secs(n * 60);
    let with_grace =
        |grace: Option<u32>| minutes(2) + Duration::from_secs(u64::from(grace.unwrap_or(60)));
    match kind {
        Kind::Stop(stop) => with_grace(stop.grace_s),
        Kind::Restart(restart) => with_grace(restart.grace_s),
        Kind::Run(_) | Kind::Pull(_) | Kind::UpgradeAgent(_) => minutes(30),
        Kind::Create(_) | Kind::PruneImages(_) | Kind::CopyIn(_) | Kind::CopyOut(_) => minutes(30),
        // They end when the process, the log or the reader does.
        Kind::Exec(_) | Kind::HostShell(_) | Kind::Logs(_) => minutes(7 * 24 * 60),
        Kind::Start(_)
        | Kind::Kill(_)
        | Kind::Remove(_)
        | Kind::Inspect(_)
        | Kind::List(_)
        | Kind::RenewCertificate(_)
        | Kind::Ping(_)
        | Kind::UninstallAgent(_) => minutes(2),
    }
}

/// The grace that the engine gives when a stop or restart does not say: the container's own, or
/// Docker's ten seconds.
pub(super) fn grace(asked: Option<u32>, own: Option<u32>) -> Duration {
    Duration::from_secs(u64::from(asked.or(own).unwrap_or(10)))
}

/// Carries out a kind that needs no stream.
pub(super) async fn act(
    runtime: &dyn ContainerRuntime,
    id: CommandId,
    kind: &Kind,
) -> Result<Outcome, RuntimeError> {
    match kind {
        Kind::Run(run) => make(runtime, id, run.spec.as_ref(), true).await,
        Kind::Create(create) => make(runtime, id, create.spec.as_ref(), false).await,
        Kind::Start(start) => runtime
            .start(&start.container)
            .await
            .map(|()| Outcome::done()),
        Kind::Stop(stop) => runtime
            .stop(&stop.container, stop.grace_s, &stop.signal)
            .await
            .map(|()| Outcome::done()),
        Kind::Restart(restart) => runtime
            .restart(&restart.container, restart.grace_s, &restart.signal)
            .await
            .map(|()| Outcome::done()),
        Kind::Kill(kill) => runtime
            .kill(&kill.container, &kill.signal)
            .await
            .map(|()| Outcome::done()),
        Kind::Remove(remove) => runtime
            .remove(&remove.container, remove.force, remove.volumes)
            .await
            .map(|()| Outcome::done()),
        Kind::Pull(pull) => {
            let image = match runtime.pull(&pull.image, &pull.platform).await {
                Err(RuntimeError::Engine(reason)) if is_missing(runtime, &pull.image).await => {
                    return Err(cannot_be_pulled(&pull.image, &reason));
                }
                other => other?,
            };
            let body = serde_json::json!({ "image": pull.image, "image_id": image });
            Ok(Outcome::done().with_body(body.to_string()))
        }
        Kind::Inspect(inspect) if inspect.kind == "image" => {
            Ok(Outcome::done().with_body(runtime.inspect_image(&inspect.object).await?))
        }
        Kind::Inspect(inspect) if !inspect.means_container() => Ok(Outcome::failed(
            codes::UNSUPPORTED,
            format!("this agent cannot inspect a {}: upgrade it", inspect.kind),
        )),
        Kind::Inspect(inspect) => {
            let detail = runtime.inspect(&inspect.object).await?;
            Ok(Outcome::done()
                .with_body(detail.raw)
                .on(detail.container.id))
        }
        Kind::List(list) => Ok(list_containers(runtime, list.all).await?),
        Kind::PruneImages(prune) => {
            let (images, bytes) = runtime.prune_images(prune.all).await?;
            let body = serde_json::json!({ "images": images, "bytes_reclaimed": bytes });
            Ok(Outcome::done().with_body(body.to_string()))
        }
        Kind::Ping(_) => Ok(Outcome::done()),
        // Handled where their stream (or the certificate, the supervisor, the uninstaller) is.
        Kind::Exec(_)
        | Kind::HostShell(_)
        | Kind::Logs(_)
        | Kind::CopyIn(_)
        | Kind::CopyOut(_)
        | Kind::RenewCertificate(_)
        | Kind::UpgradeAgent(_)
        | Kind::UninstallAgent(_) => Err(RuntimeError::Engine(format!(
            "{} is not an engine call",
            kind.name()
        ))),
    }
}

async fn list_containers(
    runtime: &dyn ContainerRuntime,
    all: bool,
) -> Result<Outcome, RuntimeError> {
    let containers = runtime.list().await?;
    let rows: Vec<_> = containers
        .iter()
        .filter(|container| all || container.state == "running")
        .map(|c| {
            serde_json::json!({
                "id": c.id, "name": c.name, "image": c.image, "state": c.state,
                "health": c.health, "project": c.project, "service": c.service,
            })
        })
        .collect();
    Ok(Outcome::done().with_body(serde_json::Value::Array(rows).to_string()))
}

/// `run` and `create`. A container that this very command made before is taken up, not doubled.
pub(super) async fn make(
    runtime: &dyn ContainerRuntime,
    id: CommandId,
    spec: Option<&ContainerSpec>,
    start: bool,
) -> Result<Outcome, RuntimeError> {
    let spec = spec.ok_or_else(|| RuntimeError::Engine("the command names no container".into()))?;
    if spec.pull == "always" {
        runtime.pull(&spec.image, &spec.platform).await?;
    }
    let labels = [(COMMAND_LABEL.to_owned(), id.to_string())];
    let mut made = runtime.create(spec, &labels).await;
    if let Err(RuntimeError::NoSuchImage(image)) = &made
        && spec.pull != "never"
        && spec.pull != "always"
    {
        pull_missing(runtime, spec, image).await?;
        made = runtime.create(spec, &labels).await;
    }
    let (container, started) = match made {
        Err(error @ RuntimeError::NameInUse(_)) => {
            let own = made_before(runtime, id, &spec.name).await?;
            own.map(|detail| (detail.container.id, detail.started_us != 0))
                .ok_or(error)?
        }
        other => (other?, false),
    };
    if start
        && !started
        && let Err(error) = runtime.start(&container).await
    {
        return start_failed(runtime, &container, error).await;
    }
    let body = serde_json::json!({ "id": container, "name": spec.name });
    Ok(Outcome::done().with_body(body.to_string()).on(container))
}

/// Whether a container was made by that command.
pub(super) fn is_made_by(detail: &ContainerDetail, id: CommandId) -> bool {
    let id = id.to_string();
    detail
        .labels
        .iter()
        .any(|(key, value)| key == COMMAND_LABEL && *value == id)
}

/// The container of that name, if this very command made it. An engine goes on making a container whose
/// client died, and shows it only when it is done with it, though its name is taken from the beginning.
async fn made_before(
    runtime: &dyn ContainerRuntime,
    id: CommandId,
    name: &str,
) -> Result<Option<ContainerDetail>, RuntimeError> {
    let mut waited = Duration::ZERO;
    loop {
        match runtime.inspect(name).await {
            Ok(detail) => return Ok(is_made_by(&detail, id).then_some(detail)),
            Err(RuntimeError::NoSuchContainer(_)) if waited < MADE_WITHIN => {
                tokio::time::sleep(ASK_AGAIN_AFTER).await;
                waited += ASK_AGAIN_AFTER;
            }
            Err(RuntimeError::NoSuchContainer(_)) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

async fn pull_missing(
    runtime: &dyn ContainerRuntime,
    spec: &ContainerSpec,
    image: &str,
) -> Result<(), RuntimeError> {
    match runtime.pull(&spec.image, &spec.platform).await {
        Ok(_) => Ok(()),
        Err(RuntimeError::Engine(reason)) => Err(cannot_be_pulled(image, &reason)),
        Err(other) => Err(other),
    }
}

async fn is_missing(runtime: &dyn ContainerRuntime, image: &str) -> bool {
    matches!(
        runtime.inspect_image(image).await,
        Err(RuntimeError::NoSuchImage(_))
    )
}

fn cannot_be_pulled(image: &str, reason: &str) -> RuntimeError {
    RuntimeError::NoSuchImage(format!("{image}, and it cannot be pulled: {reason}"))
}

/// As `docker run` does, a container that could not start stays, so that it can be looked at.
async fn start_failed(
    runtime: &dyn ContainerRuntime,
    container: &str,
    error: RuntimeError,
) -> Result<Outcome, RuntimeError> {
    match error {
        RuntimeError::Unavailable(_) | RuntimeError::Interrupted(_) => {
            // It was made: what is left to do is found out once the engine is back.
            Err(RuntimeError::Interrupted(error.to_string()))
        }
        refused => {
            let kept = runtime.inspect(container).await.is_ok();
            let mut outcome = Outcome::from(refused).on(container);
            if kept {
                outcome
                    .message
                    .push_str("; the container was made but did not start, and is kept");
            }
            Ok(outcome)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::simulated::{SimulatedOptions, SimulatedRuntime};

    fn spec() -> ContainerSpec {
        ContainerSpec {
            name: "web".to_owned(),
            image: "demo/web:1".to_owned(),
            ..ContainerSpec::default()
        }
    }

    /// An agent died while the engine made the container, and settled before the engine showed it.
    #[tokio::test]
    async fn a_container_that_this_command_made_before_is_taken_up_and_one_of_another_is_not() {
        let runtime = SimulatedRuntime::new(SimulatedOptions::default()).unwrap();
        let (id, other) = (
            CommandId::from_bytes([1; 16]),
            CommandId::from_bytes([2; 16]),
        );
        let label = [(COMMAND_LABEL.to_owned(), id.to_string())];
        let made = runtime.create(&spec(), &label).await.unwrap();

        let refused = make(&runtime, other, Some(&spec()), true).await;
        assert!(matches!(refused, Err(RuntimeError::NameInUse(_))));
        let outcome = make(&runtime, id, Some(&spec()), true).await.unwrap();
        assert_eq!(outcome.container_id, made);
        let detail = runtime.inspect("web").await.unwrap();
        assert_eq!(detail.container.state, "running");
        let again = make(&runtime, id, Some(&spec()), true).await.unwrap();
        assert_eq!(again.container_id, made);
    }
}
