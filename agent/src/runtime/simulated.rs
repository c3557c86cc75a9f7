//! A container engine in memory: the same trait, the same errors, no containers.
//!
//! It is shipped: for a demo on a machine without an engine, for the simulation and for
//! benchmarks. Its containers, images and events are kept in a JSON file where it is given one, so
//! that a restart of the agent finds them as it left them, still running; what their processes
//! would have done meanwhile is worked out from the time (`world`). One process at a time may hold
//! that file. Images of `demo/stubborn` ignore every signal but KILL; a pull of `missing/…` fails,
//! any other reference is pulled. Numbers of load are made up.

use std::hash::{BuildHasher, Hasher};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use fairlead_protocol::{Container, ContainerSpec, EngineFacts};
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::{
    ContainerDetail, ContainerRuntime, EngineEvent, EngineState, ExecIo, ExecSpec, ExecState, Load,
    LogOptions, Output, RuntimeError,
};
use world::{Ends, Stop, World, full_reference};

mod world;
mod programs;
mod files;
mod logs;
mod describe;
mod flows;

/// Images that are there from the start.
const IMAGES: &[&str] = &[
    "busybox:latest",
    "demo/stubborn:1",
    "demo/web:1",
    "demo/web:2",
    "demo/worker:1",
    "hello-world:latest",
];
/// A pull of these never succeeds.
const MISSING_PREFIX: &str = "missing/";

/// How the simulated engine behaves.
#[derive(Debug, Clone)]
pub struct SimulatedOptions {
    /// Where it keeps its state; `None`: nowhere.
    pub state_file: Option<PathBuf>,
    /// How long a process takes to end that was asked to.
    pub end_takes: Duration,
    /// How long a pull takes.
    pub pull_takes: Duration,
}

impl Default for SimulatedOptions {
    fn default() -> Self {
        Self {
            state_file: None,
            end_takes: Duration::from_millis(20),
            pull_takes: Duration::from_millis(200),
        }
    }
}

/// The simulated engine.
pub struct SimulatedRuntime {
    inner: Arc<Inner>,
    /// Programs of exec; they end with this engine.
    programs: Mutex<JoinSet<()>>,
    options: SimulatedOptions,
}

struct Inner {
    world: Mutex<World>,
    state_file: Option<PathBuf>,
    changed: Notify,
}

fn now_us() -> i64 {
    jiff::Timestamp::now().as_microsecond()
}

/// Microseconds as a time to sleep.
fn span(us: i64) -> Duration {
    Duration::from_micros(u64::try_from(us).unwrap_or(0))
}

/// 64 random hex digits; an id must be unlikely to come twice, not secret.
fn random_id() -> String {
    let word = || std::hash::RandomState::new().build_hasher().finish();
    (0..4).map(|_| format!("{:016x}", word())).collect()
}

impl Inner {
    /// The world as it is now.
    fn now(&self) -> (MutexGuard<'_, World>, i64) {
        let mut world = self.world.lock().unwrap_or_else(PoisonError::into_inner);
        let now_us = now_us();
        world.settle(now_us);
        (world, now_us)
    }

    /// Changes the world and keeps it. What cannot be kept is not done.
    fn change<T>(
        &self,
        act: impl FnOnce(&mut World, i64) -> Result<T, RuntimeError>,
    ) -> Result<T, RuntimeError> {
        let (mut world, now_us) = self.now();
        let before = self.state_file.as_ref().map(|_| world.clone());
        let result = act(&mut world, now_us);
        if let (Some(path), Some(before)) = (&self.state_file, before)
            && let Err(error) = write(path, &world)
        {
            *world = before;
            return Err(RuntimeError::Engine(format!(
                "the simulated engine cannot write {}: {error}",
                path.display()
            )));
        }
        drop(world);
        self.changed.notify_waiters();
        result
    }
}

/// Writes the whole world beside the old one and puts it in its place.
fn write(path: &std::path::Path, world: &World) -> std::io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = std::fs::File::create(&beside)?;
    serde_json::to_writer(&mut file, world)?;
    file.sync_all()?;
    std::fs::rename(&beside, path)
}

impl SimulatedRuntime {
    /// Takes up the state file where there is one, else begins with the fixed images only.
    ///
    /// # Errors
    /// When the file is there and cannot be read: it is not overwritten.
    pub fn new(options: SimulatedOptions) -> Result<Self, RuntimeError> {
        let fresh = || {
            let images = IMAGES.iter().map(|name| (*name).to_owned());
            World::with_images(images.map(|name| (name, format!("sha256:{}", random_id()))))
        };
        let mut world = match &options.state_file {
            None => fresh(),
            Some(path) => match std::fs::read(path) {
                Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
                    let path = path.display();
                    RuntimeError::Engine(format!("the state file {path} cannot be read: {error}"))
                })?,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => fresh(),
                Err(error) => {
                    let path = path.display();
                    let text = format!("the state file {path} cannot be read: {error}");
                    return Err(RuntimeError::Engine(text));
                }
            },
        };
        world.after_a_break();
        let inner = Inner {
            world: Mutex::new(world),
            state_file: options.state_file.clone(),
            changed: Notify::new(),
        };
        Ok(Self {
            inner: Arc::new(inner),
            programs: Mutex::new(JoinSet::new()),
            options,
        })
    }

    /// Waits for the end of a stop or restart. Dropping this wait does not undo it: as in a real
    /// engine, it comes to its end without its caller.
    async fn end(&self, ends: Ends) {
        if let Ends::At(at_us) = ends {
            loop {
                let changed = self.inner.changed.notified();
                let left = at_us - now_us();
                if left <= 0 {
                    break;
                }
                // A kill may bring the end earlier; then the phase is another one.
                tokio::select! {
                    () = tokio::time::sleep(span(left)) => {}
                    () = changed => {
                        let (world, _) = self.inner.now();
                        if !world.ends_at(at_us) {
                            break;
                        }
                    }
                }
            }
        }
        // Lets time pass and keeps what it did.
        let _ = self.inner.change(|_, _| Ok(()));
    }
}

#[async_trait]
impl ContainerRuntime for SimulatedRuntime {
    async fn facts(&self) -> EngineFacts {
        EngineFacts {
            kind: "simulated".to_owned(),
            version: fairlead_protocol::software::version().to_owned(),
            api_version: "0".to_owned(),
            live_restore: self.options.state_file.is_some(),
            ..EngineFacts::default()
        }
    }

    async fn state(&self) -> EngineState {
        EngineState {
            facts: self.facts().await,
            ..EngineState::default()
        }
    }

    async fn list(&self) -> Result<Vec<Container>, RuntimeError> {
        let (world, now_us) = self.inner.now();
        let containers = world.containers.iter().enumerate();
        Ok(containers
            .map(|(index, container)| container.container(index, now_us))
            .collect())
    }

    async fn inspect(&self, container: &str) -> Result<ContainerDetail, RuntimeError> {
        let (world, now_us) = self.inner.now();
        let index = world.find(container)?;
        let found = &world.containers[index];
        let container = found.container(index, now_us);
        let stop_timeout_s = found.spec().stop_timeout_s;
        Ok(ContainerDetail {
            started_us: container.started_us,
            finished_us: container.finished_us,
            labels: found.labels.clone().into_iter().collect(),
            stop_timeout_s: (stop_timeout_s != 0).then_some(stop_timeout_s),
            raw: found.inspect_json(&container),
            container,
        })
    }

    async fn inspect_image(&self, image: &str) -> Result<String, RuntimeError> {
        let (world, _) = self.inner.now();
        let (name, id) = world
            .image(image)
            .ok_or_else(|| RuntimeError::NoSuchImage(image.to_owned()))?;
        Ok(serde_json::json!({ "Id": id, "RepoTags": [name], "Simulated": true }).to_string())
    }

    async fn create(
        &self,
        spec: &ContainerSpec,
        labels: &[(String, String)],
    ) -> Result<String, RuntimeError> {
        self.inner
            .change(|world, now_us| world.create(spec, labels, random_id(), now_us))
    }

    async fn start(&self, container: &str) -> Result<(), RuntimeError> {
        self.inner
            .change(|world, now_us| world.start(container, now_us))
    }

    async fn stop(
        &self,
        container: &str,
        grace_s: Option<u32>,
        signal: &str,
    ) -> Result<(), RuntimeError> {
        let ends_after_us = i64::try_from(self.options.end_takes.as_micros()).unwrap_or(0);
        let how = Stop {
            grace_s,
            signal,
            ends_after_us,
            again: false,
        };
        let ends = self
            .inner
            .change(|world, now| world.stop(container, how, now))?;
        self.end(ends).await;
        Ok(())
    }

    async fn restart(
        &self,
        container: &str,
        grace_s: Option<u32>,
        signal: &str,
    ) -> Result<(), RuntimeError> {
        let ends_after_us = i64::try_from(self.options.end_takes.as_micros()).unwrap_or(0);
        let how = Stop {
            grace_s,
            signal,
            ends_after_us,
            again: true,
        };
        let ends = self
            .inner
            .change(|world, now| world.stop(container, how, now))?;
        self.end(ends).await;
        Ok(())
    }

    async fn kill(&self, container: &str, signal: &str) -> Result<(), RuntimeError> {
        self.inner
            .change(|world, now_us| world.kill(container, signal, now_us))
    }

    async fn remove(
        &self,
        container: &str,
        force: bool,
        _volumes: bool,
    ) -> Result<(), RuntimeError> {
        self.inner
            .change(|world, now_us| world.remove(container, force, now_us))
    }

    async fn pull(&self, image: &str, _platform: &str) -> Result<String, RuntimeError> {
        let bare = image
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_.-/:@".contains(&b));
        if image.is_empty() || !bare || image.starts_with(MISSING_PREFIX) {
            return Err(RuntimeError::NoSuchImage(image.to_owned()));
        }
        tokio::time::sleep(self.options.pull_takes).await;
        let id = format!("sha256:{}", random_id());
        self.inner
            .change(|world, now_us| Ok(world.add_image(&full_reference(image), id, now_us)))
    }

    async fn prune_images(&self, all: bool) -> Result<(Vec<String>, u64), RuntimeError> {
        let gone = self.inner.change(|world, _| Ok(world.prune(all)))?;
        let bytes = gone.len() as u64 * 5_000_000;
        Ok((gone, bytes))
    }

    async fn exec_create(&self, container: &str, spec: &ExecSpec) -> Result<String, RuntimeError> {
        self.inner
            .change(|world, now_us| world.exec_create(container, spec, random_id(), now_us))
    }

    async fn exec_start(&self, exec: &str, tty: bool) -> Result<ExecIo, RuntimeError> {
        self.attach_exec(exec, tty)
    }

    async fn exec_state(&self, exec: &str) -> Result<ExecState, RuntimeError> {
        Ok(self.inner.now().0.exec_state(exec))
    }

    async fn exec_end(&self, _exec: &str, _marker: &str) -> Result<(), RuntimeError> {
        // Its programs end with their input, which ended with the stream, and start no others.
        Ok(())
    }

    async fn exec_resize(&self, exec: &str, _columns: u16, _rows: u16) -> Result<(), RuntimeError> {
        match self.inner.now().0.exec_state(exec) {
            ExecState::Running => Ok(()),
            _ => Err(RuntimeError::Engine(format!("exec {exec} is not running"))),
        }
    }

    async fn logs(
        &self,
        container: &str,
        options: &LogOptions,
    ) -> Result<BoxStream<'static, Result<Output, RuntimeError>>, RuntimeError> {
        self.read_logs(container, options)
    }

    async fn copy_in(
        &self,
        container: &str,
        path: &str,
        mut archive: BoxStream<'static, Result<Bytes, std::io::Error>>,
    ) -> Result<(), RuntimeError> {
        let mut bytes = Vec::new();
        while let Some(piece) = archive.next().await {
            let piece = piece.map_err(|error| RuntimeError::Interrupted(error.to_string()))?;
            bytes.extend_from_slice(&piece);
            if bytes.len() as u64 > files::TREE_BYTES_MAX {
                return Err(RuntimeError::Engine(
                    "no space left on the simulated disk".to_owned(),
                ));
            }
        }
        self.inner.change(|world, _| {
            let index = world.find(container)?;
            let tree = &mut world.containers[index].files;
            if !tree.is_directory(path) {
                let text = format!("there is no directory {path} in container {container}");
                return Err(RuntimeError::Engine(text));
            }
            tree.unpack(path, &bytes)
        })
    }

    async fn copy_out(
        &self,
        container: &str,
        path: &str,
    ) -> Result<BoxStream<'static, Result<Bytes, RuntimeError>>, RuntimeError> {
        let (world, now_us) = self.inner.now();
        let tree = &world.containers[world.find(container)?].files;
        let mtime_s = u64::try_from(now_us / 1_000_000).unwrap_or(0);
        let packed = tree.pack(path, mtime_s)?.ok_or_else(|| {
            let text = format!("Could not find the file {path} in container {container}");
            RuntimeError::Engine(text)
        })?;
        let mut packed = Bytes::from(packed);
        let mut pieces = Vec::new();
        while !packed.is_empty() {
            pieces.push(Ok(packed.split_to(packed.len().min(32 * 1024))));
        }
        Ok(stream::iter(pieces).boxed())
    }

    async fn load(&self) -> Load {
        let (world, now_us) = self.inner.now();
        let running = world.containers.iter().filter(|c| c.is_running());
        Load::Samples(running.map(|container| container.sample(now_us)).collect())
    }

    async fn events(&self, since_us: i64) -> BoxStream<'static, Result<EngineEvent, RuntimeError>> {
        self.follow_events(since_us)
    }

    async fn past_events(
        &self,
        since_us: i64,
        _listening: Duration,
    ) -> Result<Vec<EngineEvent>, RuntimeError> {
        Ok(self.inner.now().0.events_from(0, since_us))
    }
}

#[cfg(test)]
mod tests;
