//! Docker (or Podman's compatible socket) behind [`ContainerRuntime`].
//!
//! Requests that change something go through bollard, over a transport of ours that knows whether
//! the engine was reached (`transport`). Answers that are passed on or listed are read by ourselves
//! (`answers`): the engine's JSON stays the engine's JSON, and an unknown word does not make a list
//! unreadable. Questions have a time limit; what changes something or flows has none here, because
//! only the executor knows how long it may take.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bollard::Docker;
use bollard::models::ExecConfig;
use bollard::query_parameters::{
    KillContainerOptions, PruneImagesOptions, RemoveContainerOptions, ResizeExecOptions,
};
use bytes::Bytes;
use fairlead_protocol::{Container, ContainerSpec, EngineFacts, codes};
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, StreamExt};
use hyper::Method;
use serde::Deserialize;

use super::{
    ContainerDetail, ContainerProcess, ContainerRuntime, ENGINE_QUESTION_TIMEOUT, EngineEvent,
    EngineState, ExecIo, ExecSpec, ExecState, Load, LogOptions, Output, RuntimeError,
};
use answers::{InfoAnswer, Inspected, Row, VersionAnswer};
use errors::{Subject, clean, container_name, exec_id, image_name, runtime_error};
use listing::Cache;
use transport::{Engine, query_value, within};

mod transport;
mod calls;
pub(crate) mod processes;
pub(crate) mod errors;
mod answers;
mod listing;
mod create;
mod lifecycle;
mod flows;
mod streams;

/// bollard's own limit, which would cut a stop with a long grace: the executor has its own.
const NO_LIMIT: Duration = Duration::from_secs(365 * 24 * 3600);
/// Where Docker listens.
const DOCKER_SOCKET: &str = "/var/run/docker.sock";
/// Where Podman's system service listens.
const PODMAN_SOCKET: &str = "/run/podman/podman.sock";
/// Inspects that run side by side while a list is completed.
const INSPECTS_AT_ONCE: usize = 4;
/// How often it is tried to end what an exec has left, and how long in between.
const EXEC_ENDS_MAX: u32 = 20;
const EXEC_ENDS_EVERY: Duration = Duration::from_millis(100);

/// Docker's engine, or one that speaks like it.
pub struct DockerRuntime {
    engine: Arc<Engine>,
    client: Docker,
    cache: Arc<Cache>,
}

/// The socket of this machine's engine: `docker_host` (the value of DOCKER_HOST) when it names a
/// unix socket, else Docker's, else Podman's where only that one is there.
#[must_use]
pub fn default_socket(docker_host: Option<&str>) -> PathBuf {
    if let Some(path) = docker_host.and_then(|host| host.strip_prefix("unix://")) {
        return PathBuf::from(path);
    }
    if !Path::new(DOCKER_SOCKET).exists() && Path::new(PODMAN_SOCKET).exists() {
        return PathBuf::from(PODMAN_SOCKET);
    }
    PathBuf::from(DOCKER_SOCKET)
}

impl DockerRuntime {
    /// The engine behind this socket. It need not be there yet.
    ///
    /// # Errors
    /// When the client cannot be made at all.
    pub fn new(socket: impl Into<PathBuf>) -> Result<Self, RuntimeError> {
        let engine = Engine::new(socket.into());
        let transport = {
            let engine = Arc::clone(&engine);
            move |request: bollard::BollardRequest| {
                let engine = Arc::clone(&engine);
                async move { engine.send(request).await }.boxed()
            }
        };
        let client = Docker::connect_with_custom_transport(
            transport,
            Some("http://engine"),
            NO_LIMIT.as_secs(),
            bollard::API_DEFAULT_VERSION,
        )
        .map_err(|error| runtime_error(error, Subject::Engine))?;
        Ok(Self {
            engine,
            client,
            cache: Arc::new(Cache::default()),
        })
    }

    /// The socket in use.
    #[must_use]
    pub fn socket(&self) -> &Path {
        self.engine.socket()
    }

    /// The container is another one now than what was last heard of it.
    fn changed(&self, container: &str) {
        // Acts may name it by name or prefix; those find no entry and the next row, being young,
        // contradicts what is known.
        self.cache.invalidate(container);
    }

    async fn inspected(&self, name: &str) -> Result<Inspected, RuntimeError> {
        self.engine
            .ask(&format!("/containers/{name}/json"))
            .await
            .map_err(|error| runtime_error(error, Subject::Container(name)))
    }

    async fn asked_state(&self) -> Result<EngineState, bollard::errors::Error> {
        let api_version = self.engine.version().await?;
        let version: VersionAnswer = self.engine.ask("/version").await?;
        let info: InfoAnswer = self.engine.ask("/info").await.unwrap_or_default();
        let component = |wanted: &str| version.components.iter().find(|c| c.name == wanted);
        let podman = component("Podman Engine");
        // Podman calls it "OCI Runtime (crun)", and its version is a text of several lines.
        let oci = version
            .components
            .iter()
            .find(|c| c.name.starts_with("OCI Runtime"));
        let runtime = match (
            ["runc", "crun", "containerd"]
                .into_iter()
                .find_map(component),
            oci,
        ) {
            (Some(found), _) => format!("{} {}", found.name, found.version),
            (None, Some(oci)) => oci.version.lines().next().unwrap_or_default().to_owned(),
            (None, None) => String::new(),
        };
        let facts = EngineFacts {
            kind: if podman.is_some() { "podman" } else { "docker" }.to_owned(),
            version: clean(podman.map_or(&version.version, |podman| &podman.version)),
            api_version: api_version.to_string(),
            live_restore: info.live_restore_enabled,
            runtime: clean(&runtime),
            ..EngineFacts::default()
        };
        Ok(info.state(facts))
    }

    /// The row completed; `None` when the container has gone meanwhile.
    async fn completed(&self, row: Row, now_us: i64) -> Result<Option<Container>, RuntimeError> {
        if let Some(depth) = self.cache.fresh(&row, now_us) {
            return Ok(Some(row.container(&depth)));
        }
        let name = container_name(&row.id)?;
        let mark = self.cache.mark();
        match self.inspected(name).await {
            Ok(inspected) => {
                let depth = inspected.depth();
                let container = row.container(&depth);
                self.cache.keep(&row, depth, mark);
                Ok(Some(container))
            }
            Err(RuntimeError::NoSuchContainer(_)) => Ok(None),
            // A container that is half removed or broken answers with an error of its own: it is
            // still listed, with what the row says.
            Err(RuntimeError::Engine(text)) => {
                tracing::debug!(container = %row.id, %text, "container cannot be inspected");
                Ok(Some(row.container(&answers::Depth::default())))
            }
            Err(error) => Err(error),
        }
    }
}

fn now_us() -> i64 {
    jiff::Timestamp::now().as_microsecond()
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct ImageId {
    id: String,
}

#[async_trait]
impl ContainerRuntime for DockerRuntime {
    async fn facts(&self) -> EngineFacts {
        self.state().await.facts
    }

    async fn state(&self) -> EngineState {
        match self.asked_state().await {
            Ok(state) => state,
            Err(error) => EngineState {
                facts: EngineFacts {
                    kind: "none".to_owned(),
                    error: match runtime_error(error, Subject::Engine) {
                        RuntimeError::Unavailable(text) => text,
                        other => other.to_string(),
                    },
                    code: codes::ENGINE_UNAVAILABLE.to_owned(),
                    ..EngineFacts::default()
                },
                ..EngineState::default()
            },
        }
    }

    async fn list(&self) -> Result<Vec<Container>, RuntimeError> {
        let rows: Vec<Row> = self
            .engine
            .ask("/containers/json?all=true")
            .await
            .map_err(|error| runtime_error(error, Subject::Engine))?;
        self.cache.retain(&rows);
        let now_us = now_us();
        let mut completed = stream::iter(rows)
            .map(|row| self.completed(row, now_us))
            .buffered(INSPECTS_AT_ONCE);
        let mut containers = Vec::new();
        while let Some(container) = completed.next().await {
            containers.extend(container?);
        }
        Ok(containers)
    }

    async fn inspect(&self, container: &str) -> Result<ContainerDetail, RuntimeError> {
        let name = container_name(container)?;
        let error = |error| runtime_error(error, Subject::Container(name));
        let path = format!("/containers/{name}/json");
        let raw = self.engine.question(&path).await.map_err(error)?;
        let inspected: Inspected =
            serde_json::from_slice(&raw).map_err(|e| error(bollard::errors::Error::from(e)))?;
        let container = inspected.container();
        Ok(ContainerDetail {
            started_us: container.started_us,
            finished_us: container.finished_us,
            container,
            stop_timeout_s: inspected
                .config
                .stop_timeout
                .and_then(|s| u32::try_from(s).ok()),
            labels: inspected.config.labels.into_iter().collect(),
            raw: String::from_utf8_lossy(&raw).trim_end().to_owned(),
        })
    }

    async fn inspect_image(&self, image: &str) -> Result<String, RuntimeError> {
        let name = image_name(image)?;
        let raw = self.engine.question(&format!("/images/{name}/json")).await;
        let raw = raw.map_err(|error| runtime_error(error, Subject::Image(name)))?;
        Ok(String::from_utf8_lossy(&raw).trim_end().to_owned())
    }

    async fn create(
        &self,
        spec: &ContainerSpec,
        labels: &[(String, String)],
    ) -> Result<String, RuntimeError> {
        let subject = Subject::Creation {
            name: &spec.name,
            image: &spec.image,
        };
        let error = |error| runtime_error(error, subject);
        let version = self.engine.version().await.map_err(error)?;
        let request = create::create_request(spec, labels, version)?;
        let answer = self
            .engine
            .call(Method::POST, &request.path_and_query, Some(&request.body))
            .await
            .map_err(error)?;
        let body = http_body_util::BodyExt::collect(answer.into_body())
            .await
            .map_err(|e| error(bollard::errors::Error::from(e)))?;
        let made: ImageId = serde_json::from_slice(&body.to_bytes())
            .map_err(|e| error(bollard::errors::Error::from(e)))?;
        Ok(made.id)
    }

    async fn start(&self, container: &str) -> Result<(), RuntimeError> {
        self.start_container(container).await
    }

    async fn stop(
        &self,
        container: &str,
        grace_s: Option<u32>,
        signal: &str,
    ) -> Result<(), RuntimeError> {
        self.stop_container(container, grace_s, signal).await
    }

    async fn restart(
        &self,
        container: &str,
        grace_s: Option<u32>,
        signal: &str,
    ) -> Result<(), RuntimeError> {
        self.restart_container(container, grace_s, signal).await
    }

    async fn kill(&self, container: &str, signal: &str) -> Result<(), RuntimeError> {
        let name = container_name(container)?;
        let signal = if signal.is_empty() { "KILL" } else { signal };
        let options = KillContainerOptions {
            signal: signal.to_owned(),
        };
        let result = self.client.kill_container(name, Some(options)).await;
        self.changed(container);
        result.map_err(|error| runtime_error(error, Subject::Container(name)))
    }

    async fn remove(
        &self,
        container: &str,
        force: bool,
        volumes: bool,
    ) -> Result<(), RuntimeError> {
        let name = container_name(container)?;
        let options = RemoveContainerOptions {
            v: volumes,
            force,
            link: false,
        };
        let result = self.client.remove_container(name, Some(options)).await;
        result.map_err(|error| runtime_error(error, Subject::Container(name)))
    }

    async fn pull(&self, image: &str, platform: &str) -> Result<String, RuntimeError> {
        self.pull_image(image, platform).await
    }

    async fn prune_images(&self, all: bool) -> Result<(Vec<String>, u64), RuntimeError> {
        let filters = HashMap::from([("dangling".to_owned(), vec![(!all).to_string()])]);
        let options = PruneImagesOptions {
            filters: Some(filters),
        };
        let pruned = self
            .client
            .prune_images(Some(options))
            .await
            .map_err(|error| runtime_error(error, Subject::Engine))?;
        let images = pruned
            .images_deleted
            .unwrap_or_default()
            .into_iter()
            .filter_map(|item| item.untagged.or(item.deleted))
            .map(|image| clean(&image))
            .collect();
        let bytes = pruned
            .space_reclaimed
            .and_then(|bytes| u64::try_from(bytes).ok());
        Ok((images, bytes.unwrap_or(0)))
    }

    async fn exec_create(&self, container: &str, spec: &ExecSpec) -> Result<String, RuntimeError> {
        let name = container_name(container)?;
        if !spec.workdir.is_empty() && !spec.workdir.starts_with('/') {
            let text = "the field workdir cannot be used: it must be absolute";
            return Err(RuntimeError::Engine(text.to_owned()));
        }
        let some = |text: &String| (!text.is_empty()).then(|| text.clone());
        let config = ExecConfig {
            attach_stdin: Some(spec.stdin),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            tty: Some(spec.tty),
            env: (!spec.env.is_empty()).then(|| spec.env.clone()),
            cmd: Some(spec.command.clone()),
            privileged: Some(spec.privileged),
            user: some(&spec.user),
            working_dir: some(&spec.workdir),
            ..ExecConfig::default()
        };
        let made = self.client.create_exec(name, config).await;
        Ok(made
            .map_err(|error| runtime_error(error, Subject::Container(name)))?
            .id)
    }

    async fn exec_start(&self, exec: &str, tty: bool) -> Result<ExecIo, RuntimeError> {
        self.attach_exec(exec, tty).await
    }

    async fn exec_state(&self, exec: &str) -> Result<ExecState, RuntimeError> {
        use bollard::errors::Error;
        let id = exec_id(exec)?;
        match within(ENGINE_QUESTION_TIMEOUT, self.client.inspect_exec(id)).await {
            Ok(inspected) if inspected.running == Some(true) => Ok(ExecState::Running),
            Ok(inspected) => Ok(inspected
                .exit_code
                .map_or(ExecState::Created, ExecState::Exited)),
            Err(Error::DockerResponseServerError {
                status_code: 404, ..
            }) => Ok(ExecState::Forgotten),
            Err(error) => Err(runtime_error(error, Subject::Exec)),
        }
    }

    async fn exec_end(&self, exec: &str, marker: &str) -> Result<(), RuntimeError> {
        let id = exec_id(exec)?;
        let mut left = 0;
        for _ in 0..EXEC_ENDS_MAX {
            // An engine may answer before it has started the process, and a process that is being started
            // shows no marker: the engine's own word decides.
            let inspected = within(ENGINE_QUESTION_TIMEOUT, self.client.inspect_exec(id)).await;
            let inspected = inspected.ok();
            let running = inspected.as_ref().is_some_and(|i| i.running == Some(true));
            let begins = inspected
                .as_ref()
                .is_some_and(|i| !running && i.exit_code.is_none());
            let leader = inspected.and_then(|i| u32::try_from(i.pid?).ok());
            left = processes::end(leader, marker).await;
            if left == 0 && !running && !begins {
                return Ok(());
            }
            tokio::time::sleep(EXEC_ENDS_EVERY).await;
        }
        tracing::error!(exec, left, "processes of a terminal could not be ended");
        Ok(())
    }

    async fn exec_resize(&self, exec: &str, columns: u16, rows: u16) -> Result<(), RuntimeError> {
        let id = exec_id(exec)?;
        let options = ResizeExecOptions {
            h: i32::from(rows),
            w: i32::from(columns),
        };
        within(
            ENGINE_QUESTION_TIMEOUT,
            self.client.resize_exec(id, options),
        )
        .await
        .map_err(|error| runtime_error(error, Subject::Exec))
    }

    async fn logs(
        &self,
        container: &str,
        options: &LogOptions,
    ) -> Result<BoxStream<'static, Result<Output, RuntimeError>>, RuntimeError> {
        self.read_logs(container, options).await
    }

    async fn copy_in(
        &self,
        container: &str,
        path: &str,
        archive: BoxStream<'static, Result<Bytes, std::io::Error>>,
    ) -> Result<(), RuntimeError> {
        self.unpack(container, path, archive).await
    }

    async fn copy_out(
        &self,
        container: &str,
        path: &str,
    ) -> Result<BoxStream<'static, Result<Bytes, RuntimeError>>, RuntimeError> {
        let name = container_name(container)?;
        let path = format!("/containers/{name}/archive?path={}", query_value(path));
        let answer = self
            .engine
            .call(Method::GET, &path, None)
            .await
            .map_err(|error| runtime_error(error, Subject::Container(name)))?;
        Ok(streams::body_bytes(answer.into_body()))
    }

    async fn load(&self) -> Load {
        let processes = self
            .cache
            .with_process()
            .into_iter()
            .map(|(id, depth)| ContainerProcess {
                id,
                pid: depth.pid,
                host_network: depth.host_network,
            });
        Load::Processes(processes.collect())
    }

    async fn events(&self, since_us: i64) -> BoxStream<'static, Result<EngineEvent, RuntimeError>> {
        self.follow_events(since_us).await
    }

    async fn past_events(
        &self,
        since_us: i64,
        listening: Duration,
    ) -> Result<Vec<EngineEvent>, RuntimeError> {
        self.remembered_events(since_us, listening).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_found() {
        let given = default_socket(Some("unix:///x/y.sock"));
        assert_eq!(given, PathBuf::from("/x/y.sock"));
        assert!(default_socket(Some("tcp://1.2.3.4:5")).is_absolute());
    }
}
