//! What can be done to simulated containers and images, with an engine's own errors.

use std::collections::{BTreeMap, VecDeque};

use fairlead_protocol::{ContainerSpec, Message};

use super::{CODE_KILLED, Ends, Event, Phase, Simulated, World, full_reference};
use crate::runtime::RuntimeError;
use crate::runtime::simulated::files::Tree;
use crate::runtime::simulated::programs::{self, Plan};

/// First port given to whom any port will do.
const FREE_PORT_FIRST: u32 = 32_768;

/// How a container is told to end.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::runtime::simulated) struct Stop<'a> {
    pub(in crate::runtime::simulated) grace_s: Option<u32>,
    /// Empty: the container's own, else TERM.
    pub(in crate::runtime::simulated) signal: &'a str,
    /// How long a process takes that obeys.
    pub(in crate::runtime::simulated) ends_after_us: i64,
    /// Whether it begins again.
    pub(in crate::runtime::simulated) again: bool,
}

impl World {
    /// The container of that name, id or unique prefix of an id.
    pub(in crate::runtime::simulated) fn find(&self, wanted: &str) -> Result<usize, RuntimeError> {
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
    pub(in crate::runtime::simulated) fn image(
        &self,
        reference: &str,
    ) -> Option<(&String, &String)> {
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

    pub(in crate::runtime::simulated) fn create(
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
            told_healthy: false,
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

    pub(in crate::runtime::simulated) fn start(
        &mut self,
        wanted: &str,
        now_us: i64,
    ) -> Result<(), RuntimeError> {
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
    pub(in crate::runtime::simulated) fn stop(
        &mut self,
        wanted: &str,
        how: Stop<'_>,
        now_us: i64,
    ) -> Result<Ends, RuntimeError> {
        let index = self.find(wanted)?;
        let again = how.again;
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
        let stubborn = spec.image.starts_with(programs::STUBBORN_PREFIX);
        let signal = match (how.signal, spec.stop_signal.as_str()) {
            ("", "") => "TERM",
            ("", own) => own,
            (given, _) => given,
        };
        let (number, ends_with) = programs::on_signal(signal, stubborn)
            .ok_or_else(|| RuntimeError::Engine(format!("Invalid signal: {signal}")))?;
        let own = if spec.stop_timeout_s == 0 {
            10
        } else {
            spec.stop_timeout_s
        };
        let grace_us = i64::from(how.grace_s.unwrap_or(own)) * 1_000_000;
        let (after_us, code) = match ends_with {
            Some(code) if how.ends_after_us <= grace_us => (how.ends_after_us, code),
            // It ignores the signal, or does not make it in time.
            _ => (grace_us, CODE_KILLED),
        };
        self.tell(index, now_us, "kill", number);
        let at_us = now_us + after_us;
        self.containers[index].by_hand = true;
        self.containers[index].phase = Phase::Ending { at_us, code, again };
        Ok(Ends::At(at_us))
    }

    pub(in crate::runtime::simulated) fn kill(
        &mut self,
        wanted: &str,
        signal: &str,
        now_us: i64,
    ) -> Result<(), RuntimeError> {
        let index = self.find(wanted)?;
        if !self.containers[index].is_running() {
            return Err(RuntimeError::NotRunning(wanted.to_owned()));
        }
        let stubborn = self.containers[index]
            .spec()
            .image
            .starts_with(programs::STUBBORN_PREFIX);
        let (number, code) = programs::on_signal(signal, stubborn)
            .ok_or_else(|| RuntimeError::Engine(format!("Invalid signal: {signal}")))?;
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

    pub(in crate::runtime::simulated) fn remove(
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

    pub(in crate::runtime::simulated) fn add_image(
        &mut self,
        reference: &str,
        id: String,
        now_us: i64,
    ) -> String {
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
    pub(in crate::runtime::simulated) fn prune(&mut self, all: bool) -> Vec<String> {
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
}
