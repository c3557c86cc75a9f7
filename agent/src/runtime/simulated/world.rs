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
use crate::runtime::EngineEvent;

mod acts;
mod execs;

pub(super) use acts::Stop;

/// Events that can be asked for again, as many as Docker keeps.
const EVENTS_KEPT: usize = 256;
/// Runs of a container whose lines its log still holds.
const RUNS_KEPT: usize = 16;
/// First delay of a restart policy; doubles up to a minute, as Docker's.
const RESTART_DELAY_US: i64 = 100_000;
const RESTART_DELAY_MAX_US: i64 = 60_000_000;
/// A process that ran so long begins again with the first delay.
const RAN_WELL_US: i64 = 10_000_000;
/// Between two health checks, unless said otherwise; as Docker's.
const HEALTH_INTERVAL_MS: i64 = 30_000;
/// What a killed process ends with.
const CODE_KILLED: i64 = 137;

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
    /// Whether the event of this run's passed health check is out.
    #[serde(default)]
    told_healthy: bool,
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

    /// When this run's health check passes: always, one interval after the start. `None` for who
    /// has none, or does not run.
    pub(super) fn healthy_at(&self) -> Option<i64> {
        if !self.is_running() {
            return None;
        }
        let health = self.spec().health?;
        if health.disabled || health.command.is_empty() {
            return None;
        }
        let interval_ms = match health.interval_ms {
            0 => HEALTH_INTERVAL_MS,
            given => i64::from(given),
        };
        Some(self.started_us().saturating_add(interval_ms * 1000))
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
        self.told_healthy = false;
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
            Phase::Running => self.step_running(index, now_us),
        }
    }

    /// A running one's next change: its health check passes, or its process ends, in this order.
    fn step_running(&mut self, index: usize, now_us: i64) -> bool {
        let container = &self.containers[index];
        let end = match container.plan() {
            Plan::Ends { after_us, code, .. } => {
                Some((container.started_us().saturating_add(after_us), code))
            }
            _ => None,
        };
        let lives_until = end.map_or(i64::MAX, |(at_us, _)| at_us);
        if let Some(healthy_at) = container.healthy_at()
            && !container.told_healthy
            && healthy_at <= now_us
            && healthy_at < lives_until
        {
            self.containers[index].told_healthy = true;
            self.tell(index, healthy_at, "health_status: healthy", "");
            return true;
        }
        match end {
            Some((at_us, code)) if at_us <= now_us => {
                self.died(index, at_us, code);
                true
            }
            _ => false,
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
