//! The simulated engine's containers and images, and how time changes them. Pure: the present is
//! always given.
//!
//! Nothing runs in the background. Whoever asks first lets time pass (`settle`): processes that
//! would have ended have ended, policies have started them again, a stop whose caller is gone has
//! come to its end, each with its event at its own time.

use std::collections::{BTreeMap, VecDeque};

use fairlead_protocol::{ContainerSpec, Message};
use serde::{Deserialize, Serialize};

use super::files::Tree;
use super::programs::{self, Plan};
use crate::runtime::{EngineEvent, ExecSpec, ExecState, RuntimeError};

/// Events that can be asked for again, as many as Docker keeps.
const EVENTS_KEPT: usize = 256;
/// Runs of a container whose lines its log still holds.
const RUNS_KEPT: usize = 16;
/// Execs that are remembered.
const EXECS_KEPT: usize = 1024;
/// First delay of a restart policy; doubles up to a minute, as Docker's.
const RESTART_DELAY_US: i64 = 100_000;
const RESTART_DELAY_MAX_US: i64 = 60_000_000;
/// A process that ran so long begins again with the first delay.
const RAN_WELL_US: i64 = 10_000_000;
/// What a killed process ends with.
const CODE_KILLED: i64 = 137;
/// First port given to whom any port will do.
const FREE_PORT_FIRST: u32 = 32_768;

/// Everything the engine knows; written to its file as JSON.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct World {
    pub(super) containers: Vec<Simulated>,
    pub(super) images: BTreeMap<String, String>,
    pub(super) execs: VecDeque<Exec>,
    events: VecDeque<Event>,
    next_event: u64,
}

/// One container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Simulated {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) image_id: String,
    #[serde(with = "super::files::hex")]
    spec: Vec<u8>,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) created_us: i64,
    pub(super) runs: VecDeque<Run>,
    pub(super) phase: Phase,
    pub(super) exit_code: i64,
    pub(super) restarts: u32,
    /// Stopped by hand: `unless-stopped` and `always` leave it alone.
    by_hand: bool,
    delay_us: i64,
    pub(super) files: Tree,
}

/// One run of a main process; `ended_us` 0 while it lasts.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct Run {
    pub(super) started_us: i64,
    pub(super) ended_us: i64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum Phase {
    Created,
    Running,
    /// Told to end; it has ended at this time with this code, and may begin again.
    Ending {
        at_us: i64,
        code: i64,
        again: bool,
    },
    /// The policy starts it at this time.
    Waiting {
        until_us: i64,
    },
    Exited,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Exec {
    pub(super) id: String,
    pub(super) container: String,
    pub(super) command: Vec<String>,
    pub(super) env: Vec<String>,
    pub(super) tty: bool,
    pub(super) stdin: bool,
    pub(super) started: bool,
    pub(super) exit_code: Option<i64>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Event {
    number: u64,
    at_us: i64,
    object: String,
    action: String,
    id: String,
    name: String,
    image: String,
    detail: String,
    command_label: String,
}

/// When a stop or restart will be over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ends {
    Now,
    At(i64),
}

impl Simulated {
    pub(super) fn spec(&self) -> ContainerSpec {
        ContainerSpec::decode(self.spec.as_slice()).unwrap_or_default()
    }

    pub(super) fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Running | Phase::Ending { .. })
    }

    pub(super) fn plan(&self) -> Plan {
        let spec = self.spec();
        let mut line = if spec.entrypoint_set {
            spec.entrypoint.clone()
        } else {
            Vec::new()
        };
        line.extend(spec.command.iter().cloned());
        programs::plan(&spec.image, &line)
    }

    pub(super) fn started_us(&self) -> i64 {
        self.runs.back().map_or(0, |run| run.started_us)
    }

    pub(super) fn finished_us(&self) -> i64 {
        self.runs
            .iter()
            .rev()
            .map(|run| run.ended_us)
            .find(|at| *at != 0)
            .unwrap_or(0)
    }

    fn begin(&mut self, at_us: i64) {
        self.runs.push_back(Run {
            started_us: at_us,
            ended_us: 0,
        });
        if self.runs.len() > RUNS_KEPT {
            self.runs.pop_front();
        }
        self.phase = Phase::Running;
    }

    fn end(&mut self, at_us: i64, code: i64) {
        if let Some(run) = self.runs.back_mut() {
            run.ended_us = at_us;
        }
        self.exit_code = code;
        self.phase = Phase::Exited;
    }

    /// When the policy starts it again after an end by itself.
    fn next_start(&mut self, at_us: i64, code: i64) -> Option<i64> {
        let spec = self.spec();
        let wanted = match spec.restart_policy.as_str() {
            "always" | "unless-stopped" => !self.by_hand,
            "on-failure" => {
                code != 0
                    && !self.by_hand
                    && (spec.restart_max == 0 || self.restarts < spec.restart_max)
            }
            _ => false,
        };
        if !wanted {
            return None;
        }
        let ran_us = at_us - self.started_us();
        self.delay_us = if ran_us >= RAN_WELL_US || self.delay_us == 0 {
            RESTART_DELAY_US
        } else {
            (self.delay_us * 2).min(RESTART_DELAY_MAX_US)
        };
        Some(at_us + self.delay_us)
    }
}

impl World {
    /// A world of images, by full reference and id, and nothing else.
    pub(super) fn with_images(images: impl Iterator<Item = (String, String)>) -> Self {
        Self {
            images: images.collect(),
            ..Self::default()
        }
    }

    /// Lets time pass.
    pub(super) fn settle(&mut self, now_us: i64) {
        let ids: Vec<String> = self.containers.iter().map(|c| c.id.clone()).collect();
        for id in ids {
            while self.step(&id, now_us) {}
        }
    }

    /// The next change of one container that is due; false when there is none.
    fn step(&mut self, id: &str, now_us: i64) -> bool {
        let Some(index) = self.containers.iter().position(|c| c.id == id) else {
            return false;
        };
        match self.containers[index].phase.clone() {
            Phase::Created | Phase::Exited => false,
            Phase::Waiting { until_us } if until_us <= now_us => {
                self.containers[index].restarts += 1;
                self.containers[index].begin(until_us);
                self.tell(index, until_us, "start", "");
                true
            }
            Phase::Waiting { .. } => false,
            Phase::Ending { at_us, code, again } if at_us <= now_us => {
                self.containers[index].end(at_us, code);
                self.tell(index, at_us, "die", &code.to_string());
                self.tell(index, at_us, "stop", "");
                if again {
                    self.containers[index].by_hand = false;
                    self.containers[index].begin(at_us);
                    self.tell(index, at_us, "start", "");
                    self.tell(index, at_us, "restart", "");
                } else {
                    self.remove_if_asked(index, at_us);
                }
                true
            }
            Phase::Ending { .. } => false,
            Phase::Running => {
                let container = &self.containers[index];
                let Plan::Ends { after_us, code, .. } = container.plan() else {
                    return false;
                };
                let at_us = container.started_us().saturating_add(after_us);
                if at_us > now_us {
                    return false;
                }
                self.died(index, at_us, code);
                true
            }
        }
    }

    /// The main process ended without a stop.
    fn died(&mut self, index: usize, at_us: i64, code: i64) {
        self.containers[index].end(at_us, code);
        self.tell(index, at_us, "die", &code.to_string());
        match self.containers[index].next_start(at_us, code) {
            Some(until_us) => self.containers[index].phase = Phase::Waiting { until_us },
            None => self.remove_if_asked(index, at_us),
        }
    }

    fn remove_if_asked(&mut self, index: usize, at_us: i64) {
        if self.containers[index].spec().auto_remove {
            self.tell(index, at_us, "destroy", "");
            self.containers.remove(index);
        }
    }

    /// Whether some container is still on its way to an end at this very time.
    pub(super) fn ends_at(&self, end_us: i64) -> bool {
        self.containers
            .iter()
            .any(|c| matches!(c.phase, Phase::Ending { at_us, .. } if at_us == end_us))
    }

    /// The container of that name, id or unique prefix of an id.
    pub(super) fn find(&self, wanted: &str) -> Result<usize, RuntimeError> {
        let bare = wanted.strip_prefix('/').unwrap_or(wanted);
        let exact = self
            .containers
            .iter()
            .position(|c| c.name == bare || c.id == bare);
        if let Some(index) = exact {
            return Ok(index);
        }
        let mut hits = self
            .containers
            .iter()
            .enumerate()
            .filter(|(_, c)| c.id.starts_with(bare));
        match (hits.next(), hits.next()) {
            (Some((index, _)), None) if !bare.is_empty() => Ok(index),
            (Some(_), Some(_)) if !bare.is_empty() => {
                let text = format!("multiple IDs found with provided prefix: {bare}");
                Err(RuntimeError::Engine(text))
            }
            _ => Err(RuntimeError::NoSuchContainer(wanted.to_owned())),
        }
    }

    /// The id of an image by reference or id.
    pub(super) fn image(&self, reference: &str) -> Option<(&String, &String)> {
        let full = full_reference(reference);
        self.images
            .iter()
            .find(|(name, id)| **name == full || *id == reference)
            .or_else(|| {
                let prefix = format!("sha256:{reference}");
                let long_enough = reference.len() >= 12;
                self.images
                    .iter()
                    .find(|(_, id)| long_enough && id.starts_with(&prefix))
            })
    }

    pub(super) fn create(
        &mut self,
        spec: &ContainerSpec,
        labels: &[(String, String)],
        id: String,
        now_us: i64,
    ) -> Result<String, RuntimeError> {
        let image_id = self
            .image(&spec.image)
            .map(|(_, id)| id.clone())
            .ok_or_else(|| RuntimeError::NoSuchImage(spec.image.clone()))?;
        let mut spec = spec.clone();
        if spec.name.is_empty() {
            spec.name = format!("simulated_{}", &id[..8]);
        }
        if self.containers.iter().any(|c| c.name == spec.name) {
            return Err(RuntimeError::NameInUse(spec.name));
        }
        for port in &mut spec.ports {
            if port.host_port == 0 {
                port.host_port = self.free_port();
            }
        }
        let mut all: BTreeMap<String, String> = spec
            .labels
            .iter()
            .map(|l| (l.key.clone(), l.value.clone()))
            .collect();
        all.extend(labels.iter().cloned());
        self.containers.push(Simulated {
            id: id.clone(),
            name: spec.name.clone(),
            image_id,
            spec: spec.encode_to_vec(),
            labels: all,
            created_us: now_us,
            runs: VecDeque::new(),
            phase: Phase::Created,
            exit_code: 0,
            restarts: 0,
            by_hand: false,
            delay_us: 0,
            files: Tree::fresh(&spec.name),
        });
        self.tell(self.containers.len() - 1, now_us, "create", "");
        Ok(id)
    }

    fn free_port(&self) -> u32 {
        let taken: Vec<u32> = self
            .containers
            .iter()
            .flat_map(|c| c.spec().ports.into_iter().map(|p| p.host_port))
            .collect();
        (FREE_PORT_FIRST..)
            .find(|port| !taken.contains(port))
            .unwrap_or(FREE_PORT_FIRST)
    }

    pub(super) fn start(&mut self, wanted: &str, now_us: i64) -> Result<(), RuntimeError> {
        let index = self.find(wanted)?;
        if self.containers[index].is_running() {
            return Ok(());
        }
        if let Plan::Missing(program) = self.containers[index].plan() {
            self.containers[index].exit_code = programs::NOT_FOUND;
            return Err(RuntimeError::Engine(format!(
                "failed to create task for container: exec: \"{program}\": executable file not \
                 found in $PATH"
            )));
        }
        let mine: Vec<u32> = self.containers[index]
            .spec()
            .ports
            .iter()
            .map(|p| p.host_port)
            .collect();
        let clash = self
            .containers
            .iter()
            .filter(|c| c.is_running())
            .flat_map(|c| c.spec().ports.into_iter().map(|p| p.host_port))
            .find(|port| mine.contains(port));
        if let Some(port) = clash {
            return Err(RuntimeError::Engine(format!(
                "driver failed programming external connectivity: Bind for 0.0.0.0:{port} \
                 failed: port is already allocated"
            )));
        }
        let container = &mut self.containers[index];
        container.by_hand = false;
        container.restarts = 0;
        container.begin(now_us);
        self.tell(index, now_us, "start", "");
        self.settle(now_us);
        Ok(())
    }

    /// Tells a container to end (and to begin again); says when that will be over.
    pub(super) fn stop(
        &mut self,
        wanted: &str,
        grace_s: Option<u32>,
        ends_after_us: i64,
        again: bool,
        now_us: i64,
    ) -> Result<Ends, RuntimeError> {
        let index = self.find(wanted)?;
        let spec = self.containers[index].spec();
        match self.containers[index].phase.clone() {
            Phase::Created | Phase::Exited if again => {
                self.start(wanted, now_us)?;
                return Ok(Ends::Now);
            }
            Phase::Created | Phase::Exited => return Ok(Ends::Now),
            Phase::Waiting { .. } => {
                self.containers[index].by_hand = true;
                self.containers[index].phase = Phase::Exited;
                self.tell(index, now_us, "stop", "");
                if again {
                    self.start(wanted, now_us)?;
                }
                return Ok(Ends::Now);
            }
            // Somebody else stops it already: wait for that end.
            Phase::Ending { at_us, .. } => return Ok(Ends::At(at_us)),
            Phase::Running => {}
        }
        let own = if spec.stop_timeout_s == 0 {
            10
        } else {
            spec.stop_timeout_s
        };
        let grace_us = i64::from(grace_s.unwrap_or(own)) * 1_000_000;
        let stubborn = spec.image.starts_with(programs::STUBBORN_PREFIX);
        let (after_us, code) = if stubborn || grace_us < ends_after_us {
            (grace_us, CODE_KILLED)
        } else {
            (ends_after_us, 0)
        };
        self.tell(index, now_us, "kill", "15");
        let at_us = now_us + after_us;
        self.containers[index].by_hand = true;
        self.containers[index].phase = Phase::Ending { at_us, code, again };
        Ok(Ends::At(at_us))
    }

    pub(super) fn kill(
        &mut self,
        wanted: &str,
        signal: &str,
        now_us: i64,
    ) -> Result<(), RuntimeError> {
        let index = self.find(wanted)?;
        if !self.containers[index].is_running() {
            return Err(RuntimeError::NotRunning(wanted.to_owned()));
        }
        let upper = signal.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        let stubborn = self.containers[index]
            .spec()
            .image
            .starts_with(programs::STUBBORN_PREFIX);
        let (number, code) = match name {
            "" | "KILL" | "9" => ("9", Some(CODE_KILLED)),
            "TERM" | "15" => ("15", (!stubborn).then_some(0)),
            "INT" | "2" => ("2", (!stubborn).then_some(130)),
            "QUIT" | "3" => ("3", (!stubborn).then_some(131)),
            "HUP" | "1" => ("1", None),
            "USR1" | "10" => ("10", None),
            "USR2" | "12" => ("12", None),
            _ => return Err(RuntimeError::Engine(format!("Invalid signal: {signal}"))),
        };
        self.tell(index, now_us, "kill", number);
        let Some(code) = code else { return Ok(()) };
        self.containers[index].by_hand = true;
        match &mut self.containers[index].phase {
            // A stop or restart waits for the end: it has come.
            Phase::Ending {
                at_us,
                code: ends_with,
                ..
            } => {
                *at_us = now_us;
                *ends_with = code;
                self.settle(now_us);
            }
            _ => self.died(index, now_us, code),
        }
        Ok(())
    }

    pub(super) fn remove(
        &mut self,
        wanted: &str,
        force: bool,
        now_us: i64,
    ) -> Result<(), RuntimeError> {
        let index = self.find(wanted)?;
        if self.containers[index].is_running() {
            if !force {
                return Err(RuntimeError::Engine(format!(
                    "You cannot remove a running container {}. Stop the container before \
                     attempting removal or force remove",
                    self.containers[index].id
                )));
            }
            self.tell(index, now_us, "kill", "9");
            self.containers[index].end(now_us, CODE_KILLED);
            self.tell(index, now_us, "die", &CODE_KILLED.to_string());
        }
        self.tell(index, now_us, "destroy", "");
        self.containers.remove(index);
        Ok(())
    }

    pub(super) fn add_image(&mut self, reference: &str, id: String, now_us: i64) -> String {
        let full = full_reference(reference);
        let id = self.images.entry(full.clone()).or_insert(id).clone();
        self.push_event(Event {
            number: 0,
            at_us: now_us,
            object: "image".to_owned(),
            action: "pull".to_owned(),
            id: full.clone(),
            name: full,
            image: String::new(),
            detail: String::new(),
            command_label: String::new(),
        });
        id
    }

    /// Removes images that no container uses; only tagged ones exist here.
    pub(super) fn prune(&mut self, all: bool) -> Vec<String> {
        if !all {
            return Vec::new();
        }
        let used: Vec<&String> = self.containers.iter().map(|c| &c.image_id).collect();
        let gone: Vec<String> = self
            .images
            .iter()
            .filter(|(_, id)| !used.contains(id))
            .map(|(name, _)| name.clone())
            .collect();
        self.images.retain(|name, _| !gone.contains(name));
        gone
    }

    pub(super) fn exec_create(
        &mut self,
        wanted: &str,
        spec: &ExecSpec,
        id: String,
        now_us: i64,
    ) -> Result<String, RuntimeError> {
        let index = self.find(wanted)?;
        if !self.containers[index].is_running() {
            return Err(RuntimeError::NotRunning(wanted.to_owned()));
        }
        if spec.command.is_empty() {
            return Err(RuntimeError::Engine("No exec command specified".to_owned()));
        }
        self.execs.push_back(Exec {
            id: id.clone(),
            container: self.containers[index].id.clone(),
            command: spec.command.clone(),
            env: spec.env.clone(),
            tty: spec.tty,
            stdin: spec.stdin,
            started: false,
            exit_code: None,
        });
        if self.execs.len() > EXECS_KEPT {
            self.execs.pop_front();
        }
        let action = format!("exec_create: {}", spec.command.join(" "));
        self.tell(index, now_us, &action, "");
        Ok(id)
    }

    /// Marks an exec as started; a second start is refused.
    pub(super) fn exec_start(&mut self, id: &str, now_us: i64) -> Result<Exec, RuntimeError> {
        let unknown = || RuntimeError::Engine(format!("No such exec instance: {id}"));
        let position = self
            .execs
            .iter()
            .position(|e| e.id == id)
            .ok_or_else(unknown)?;
        let exec = self.execs[position].clone();
        if exec.started {
            return Err(RuntimeError::Engine(format!(
                "Exec command {id} is already running"
            )));
        }
        let index = self.find(&exec.container)?;
        if !self.containers[index].is_running() {
            return Err(RuntimeError::NotRunning(exec.container));
        }
        self.execs[position].started = true;
        let action = format!("exec_start: {}", exec.command.join(" "));
        self.tell(index, now_us, &action, "");
        Ok(exec)
    }

    pub(super) fn exec_ended(&mut self, id: &str, code: i64) {
        if let Some(exec) = self.execs.iter_mut().find(|e| e.id == id) {
            exec.exit_code = Some(code);
        }
    }

    pub(super) fn exec_state(&self, id: &str) -> ExecState {
        match self.execs.iter().find(|e| e.id == id) {
            None => ExecState::Forgotten,
            Some(Exec {
                exit_code: Some(code),
                ..
            }) => ExecState::Exited(*code),
            Some(Exec { started: true, .. }) => ExecState::Running,
            Some(_) => ExecState::Created,
        }
    }

    /// After the process that held this world has ended: its execs ended with it.
    pub(super) fn after_a_break(&mut self) {
        for exec in self
            .execs
            .iter_mut()
            .filter(|e| e.started && e.exit_code.is_none())
        {
            exec.exit_code = Some(CODE_KILLED);
        }
    }

    fn tell(&mut self, index: usize, at_us: i64, action: &str, detail: &str) {
        let container = &self.containers[index];
        let event = Event {
            number: 0,
            at_us,
            object: "container".to_owned(),
            action: action.to_owned(),
            id: container.id.clone(),
            name: container.name.clone(),
            image: container.spec().image,
            detail: detail.to_owned(),
            command_label: container
                .labels
                .get("fairlead.command")
                .cloned()
                .unwrap_or_default(),
        };
        self.push_event(event);
    }

    fn push_event(&mut self, mut event: Event) {
        event.number = self.next_event;
        self.next_event += 1;
        self.events.push_back(event);
        if self.events.len() > EVENTS_KEPT {
            self.events.pop_front();
        }
    }

    /// The number that the next event will have.
    pub(super) fn next_event(&self) -> u64 {
        self.next_event
    }

    /// Events from a number (and time) on.
    pub(super) fn events_from(&self, number: u64, since_us: i64) -> Vec<EngineEvent> {
        self.events
            .iter()
            .filter(|event| event.number >= number && event.at_us >= since_us)
            .map(|event| EngineEvent {
                at_us: event.at_us,
                object: event.object.clone(),
                action: event.action.clone(),
                id: event.id.clone(),
                name: event.name.clone(),
                image: event.image.clone(),
                detail: event.detail.clone(),
                command_label: event.command_label.clone(),
            })
            .collect()
    }
}

/// The reference with its tag.
pub(super) fn full_reference(reference: &str) -> String {
    let last = reference.rsplit('/').next().unwrap_or(reference);
    if last.contains(':') || last.contains('@') {
        reference.to_owned()
    } else {
        format!("{reference}:latest")
    }
}

#[cfg(test)]
mod tests;
