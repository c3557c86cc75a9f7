//! Start, stop and restart, with a signal of one's own where the engine is too old to take one.
//!
//! Engines before API 1.42 know no `signal` in stop and restart. For them it is done in steps: the
//! signal by `kill`, a wait for the end up to the grace, then the engine's own stop with no grace,
//! which also keeps the restart policy from bringing the container back (a plain kill does not when
//! the signal is not the container's stop signal). Such a restart is stop and start and not one act
//! of the engine: a crash between the two leaves the container stopped, which the executor's
//! settling reports.
//!
//! An engine that was restarted while a container ended takes requests before it has tidied up what is left
//! of that container, and refuses to start it meanwhile. Nothing has been done then: it is asked again.

use std::time::Duration;

use bollard::errors::Error;
use bollard::query_parameters::{
    KillContainerOptions, RestartContainerOptions, StopContainerOptions,
};
use hyper::Method;
use tokio::time::Instant;

use super::DockerRuntime;
use super::answers::Inspected;
use super::errors::{Subject, container_name, is_stale_task, runtime_error};
use super::transport::ApiVersion;
use crate::runtime::RuntimeError;

/// From here on stop and restart take a signal.
const API_STOP_SIGNAL: ApiVersion = ApiVersion::new(1, 42);
/// The engine's own grace, for a container that has none.
const GRACE_DEFAULT_S: u32 = 10;
/// An engine has tidied up by then, or never will.
const TIDIED_WITHIN: Duration = Duration::from_secs(5);
/// How often it is asked again until then.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(200);

impl DockerRuntime {
    pub(super) async fn start_container(&self, container: &str) -> Result<(), RuntimeError> {
        let name = container_name(container)?;
        let result = self.start_once_tidied(name).await;
        self.changed(container);
        result.map_err(|error| runtime_error(error, Subject::Container(name)))
    }

    async fn start_once_tidied(&self, name: &str) -> Result<(), Error> {
        let until = Instant::now() + TIDIED_WITHIN;
        loop {
            match self.client.start_container(name, None).await {
                Err(error) if is_untidied(&error) && Instant::now() < until => {
                    tracing::debug!(container = name, %error, "asked again");
                    tokio::time::sleep(ASK_AGAIN_AFTER).await;
                }
                ended => return ended,
            }
        }
    }

    pub(super) async fn stop_container(
        &self,
        container: &str,
        grace_s: Option<u32>,
        signal: &str,
    ) -> Result<(), RuntimeError> {
        let name = container_name(container)?;
        let subject = Subject::Container(name);
        let t = grace_s.map(|grace| i32::try_from(grace).unwrap_or(i32::MAX));
        let result = if signal.is_empty() || self.takes_stop_signal(subject).await? {
            let signal = (!signal.is_empty()).then(|| signal.to_owned());
            let options = StopContainerOptions { signal, t };
            self.client.stop_container(name, Some(options)).await
        } else {
            self.stop_in_steps(name, grace_s, signal).await
        };
        self.changed(container);
        result.map_err(|error| runtime_error(error, subject))
    }

    pub(super) async fn restart_container(
        &self,
        container: &str,
        grace_s: Option<u32>,
        signal: &str,
    ) -> Result<(), RuntimeError> {
        let name = container_name(container)?;
        let subject = Subject::Container(name);
        let t = grace_s.map(|grace| i32::try_from(grace).unwrap_or(i32::MAX));
        let result = if signal.is_empty() || self.takes_stop_signal(subject).await? {
            let signal = (!signal.is_empty()).then(|| signal.to_owned());
            let options = RestartContainerOptions { signal, t };
            match self.client.restart_container(name, Some(options)).await {
                // It does not run: only its start is left to do.
                Err(error) if is_untidied(&error) => self.start_once_tidied(name).await,
                ended => ended,
            }
        } else {
            self.refuse_auto_remove(name).await?;
            match self.stop_in_steps(name, grace_s, signal).await {
                Ok(()) => self.start_once_tidied(name).await,
                Err(error) => Err(error),
            }
        };
        self.changed(container);
        result.map_err(|error| runtime_error(error, subject))
    }

    async fn takes_stop_signal(&self, subject: Subject<'_>) -> Result<bool, RuntimeError> {
        let version = self.engine.version().await;
        Ok(version.map_err(|error| runtime_error(error, subject))? >= API_STOP_SIGNAL)
    }

    /// A container that is removed when it ends cannot be stopped and started again in steps.
    async fn refuse_auto_remove(&self, name: &str) -> Result<(), RuntimeError> {
        let inspected = self.inspected(name).await?;
        if inspected.host_config.auto_remove {
            let text = "this engine (before API 1.42) cannot restart a container that is removed \
                        when it ends with a signal of one's own; leave the signal out";
            return Err(RuntimeError::Engine(text.to_owned()));
        }
        Ok(())
    }

    async fn stop_in_steps(
        &self,
        name: &str,
        grace_s: Option<u32>,
        signal: &str,
    ) -> Result<(), Error> {
        let inspected: Inspected = self.engine.ask(&format!("/containers/{name}/json")).await?;
        if inspected.state.running {
            let options = KillContainerOptions {
                signal: signal.to_owned(),
            };
            match self.client.kill_container(name, Some(options)).await {
                // It ended on its own in between.
                Err(Error::DockerResponseServerError {
                    status_code: 409, ..
                }) => {}
                other => other?,
            }
            let own = inspected.config.stop_timeout;
            let grace = match (grace_s, own) {
                (Some(grace), _) => Some(u64::from(grace)),
                (None, Some(own)) => u64::try_from(own).ok(), // negative: without limit
                (None, None) => Some(u64::from(GRACE_DEFAULT_S)),
            };
            self.wait_for_end(name, grace.map(Duration::from_secs))
                .await?;
        }
        let options = StopContainerOptions {
            signal: None,
            t: Some(0),
        };
        self.client.stop_container(name, Some(options)).await
    }

    /// Waits until it does not run or the grace is over.
    async fn wait_for_end(&self, name: &str, grace: Option<Duration>) -> Result<(), Error> {
        let path = format!("/containers/{name}/wait?condition=not-running");
        let wait = async {
            let answer = self.engine.call(Method::POST, &path, None).await?;
            // The headers come at once, the body when it has ended.
            let body = http_body_util::BodyExt::collect(answer.into_body()).await?;
            drop(body);
            Ok(())
        };
        match grace {
            None => wait.await,
            Some(grace) => tokio::time::timeout(grace, wait).await.unwrap_or(Ok(())),
        }
    }
}

/// What is left of the container's last run, or of a start that was cut short, is in the way: its directory, its
/// task, its name, in the words of containerd and runc.
fn is_untidied(error: &Error) -> bool {
    const WORDS: [&str; 3] = [
        "container with id exists",
        "container with given id already exists",
        "id already in use",
    ];
    let Error::DockerResponseServerError { message, .. } = error else {
        return false;
    };
    let message = message.to_ascii_lowercase();
    (message.contains("failed to start shim") && message.contains("file exists"))
        || is_stale_task(&message)
        || WORDS.iter().any(|words| message.contains(words))
}
