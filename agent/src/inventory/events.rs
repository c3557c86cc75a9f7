//! From the engine's events to Fairlead's: what to call them, and who was the cause.
//!
//! The cause is judged from what the engine said about the container shortly before:
//!
//! | cause | when |
//! |---|---|
//! | `command` | the container carries the label of one of our commands and is just being created, or a command of ours acts on it |
//! | `by-hand` | somebody on the host created, started, stopped, killed, renamed, removed it, or opened an exec |
//! | `itself` | it ended, or changed its health, without anybody having told it to |
//! | `engine` | its restart policy (or the engine's own start) brought it back; the kernel killed it for want of memory |

use std::collections::{HashMap, VecDeque};

use fairlead_protocol::{CommandId, HostEvent};

use crate::runtime::EngineEvent;
use crate::signals;

/// A signal explains an end that comes within this.
const SIGNAL_EXPLAINS_US: i64 = 15 * 60 * 1_000_000;
/// A stop (or an end) explains a start that comes within this: restart policies wait up to a
/// minute.
const END_EXPLAINS_US: i64 = 70 * 1_000_000;
/// A restart starts a container this soon after its end; nobody's hand is as quick.
const RESTART_TAKES_US: i64 = 1_000_000;
/// Events remembered of one container.
const EVENTS_KEPT: usize = 16;
/// Containers remembered; the one that was heard of least lately goes first.
const CONTAINERS_KEPT: usize = 4096;
/// Longest detail that is passed on.
const DETAIL_CHARS_MAX: usize = 300;

/// Who brought something about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// A command of ours.
    Command,
    /// Somebody on the host.
    ByHand,
    /// The container's own process.
    Itself,
    /// The engine, by a policy, or the kernel.
    Engine,
}

impl Cause {
    /// As it is written in [`HostEvent::cause`].
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Command => "command",
            Self::ByHand => "by-hand",
            Self::Itself => "itself",
            Self::Engine => "engine",
        }
    }
}

/// What of an earlier event counts for later ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Past {
    /// When, by the engine's clock.
    pub at_us: i64,
    /// The first word of the engine's action.
    pub action: String,
    /// Its detail.
    pub detail: String,
    /// Whose doing it was held to be.
    pub cause: Cause,
    /// Ours, where it was a command of ours.
    pub command: Option<CommandId>,
}

/// Signals that do not end a process by themselves.
fn ends_nothing(signal: &str) -> bool {
    // HUP, USR1, USR2, CHLD, CONT, WINCH.
    matches!(signals::number(signal), Some(1 | 10 | 12 | 17 | 18 | 28))
}

/// Who caused the event. `past` are earlier events of the same container, oldest first; `ours`
/// says whether a command of ours acts on it now.
#[must_use]
pub fn cause(event: &EngineEvent, past: &[Past], ours: bool) -> Cause {
    let recent = |explains_us: i64| {
        past.iter()
            .rev()
            .take_while(move |p| event.at_us - p.at_us <= explains_us)
    };
    match first_word(&event.action) {
        // The label outlives the command: it speaks for the creation only.
        "create" if !event.command_label.is_empty() => Cause::Command,
        "oom" => Cause::Engine,
        "health_status" => Cause::Itself,
        "die" => {
            // What ended it: the last signal since it was started, and its sender's cause.
            let told = recent(SIGNAL_EXPLAINS_US)
                .take_while(|p| p.action != "start")
                .find(|p| match p.action.as_str() {
                    "kill" => !ends_nothing(&p.detail),
                    "stop" | "oom" => true,
                    _ => false,
                });
            match told {
                Some(told) => told.cause,
                None if ours => Cause::Command,
                None => Cause::Itself,
            }
        }
        _ if ours => Cause::Command,
        "start" => {
            // A hand's start follows a creation, a stop, or nothing; a policy's follows an end that
            // nobody asked for. What somebody killed and a policy brought back is the policy's too,
            // unless it was stopped or restarted.
            let before =
                recent(END_EXPLAINS_US).find(|p| matches!(p.action.as_str(), "die" | "stop"));
            match before {
                Some(p)
                    if p.action == "die" && matches!(p.cause, Cause::Itself | Cause::Engine) =>
                {
                    Cause::Engine
                }
                // A restart of ours whose events are told after the command has ended.
                Some(p)
                    if p.cause == Cause::Command && event.at_us - p.at_us <= RESTART_TAKES_US =>
                {
                    Cause::Command
                }
                _ => Cause::ByHand,
            }
        }
        // What follows from an act has the act's cause.
        "stop" | "restart" => recent(SIGNAL_EXPLAINS_US)
            .find(|p| matches!(p.action.as_str(), "kill" | "start"))
            .map_or(Cause::ByHand, |p| {
                if p.cause == Cause::Command {
                    p.cause
                } else {
                    Cause::ByHand
                }
            }),
        "destroy" => {
            // `--rm`: the engine removes what has ended by itself.
            let ended = recent(5_000_000).find(|p| p.action == "die");
            match ended {
                Some(p) if p.cause == Cause::Itself => Cause::Engine,
                Some(p) if p.cause == Cause::Command => Cause::Command,
                _ => Cause::ByHand,
            }
        }
        _ => Cause::ByHand,
    }
}

/// The engine's action without what follows it (`exec_start: sh` → `exec_start`).
#[must_use]
pub fn first_word(action: &str) -> &str {
    action.split(':').next().unwrap_or(action).trim()
}

/// What the container's events have been, so that the next can be judged.
#[derive(Debug, Default)]
pub struct EventLog {
    past: HashMap<String, VecDeque<Past>>,
    health: HashMap<String, String>,
    /// Ids in the order in which they were heard of, oldest first.
    heard: VecDeque<String>,
}

impl EventLog {
    /// Nothing heard yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The event to report, without its `seq` and `id`; `None` for noise. `ours` is the command of
    /// ours that acts on that container (or image) now.
    pub fn report(&mut self, event: &EngineEvent, ours: Option<CommandId>) -> Option<HostEvent> {
        let (cause, command, action) = match event.object.as_str() {
            "container" => {
                let (cause, command) = self.judged(event, ours);
                (cause, command, self.container_action(event)?)
            }
            "image" if ours.is_some() => (Cause::Command, ours, image_action(event)?),
            "image" => (Cause::ByHand, None, image_action(event)?),
            _ => return None,
        };
        if action == "container.exec" && cause == Cause::Command {
            return None; // The command itself is on record.
        }
        let container = event.object == "container";
        let name = || event.name.clone();
        Some(HostEvent {
            at_us: event.at_us,
            action,
            container: if container { name() } else { String::new() },
            container_id: if container {
                event.id.clone()
            } else {
                String::new()
            },
            image: if container {
                event.image.clone()
            } else {
                name()
            },
            command: command.map(CommandId::to_wire).unwrap_or_default(),
            cause: cause.name().to_owned(),
            detail: detail(event),
            ..HostEvent::default()
        })
    }

    /// Cause and, where it is one of ours, the command.
    fn judged(
        &mut self,
        event: &EngineEvent,
        ours: Option<CommandId>,
    ) -> (Cause, Option<CommandId>) {
        let action = first_word(&event.action);
        if !self.past.contains_key(&event.id) {
            self.heard.push_back(event.id.clone());
            if self.heard.len() > CONTAINERS_KEPT
                && let Some(oldest) = self.heard.pop_front()
            {
                self.past.remove(&oldest);
                self.health.remove(&oldest);
            }
        }
        let past = self.past.entry(event.id.clone()).or_default();
        let cause = cause(event, past.make_contiguous(), ours.is_some());
        let labelled = || match action {
            "create" => event.command_label.parse::<CommandId>().ok(),
            _ => past.iter().rev().find_map(|p| p.command),
        };
        let command = (cause == Cause::Command)
            .then(|| ours.or_else(labelled))
            .flatten();
        if !action.starts_with("exec_") && action != "health_status" {
            past.push_back(Past {
                at_us: event.at_us,
                action: action.to_owned(),
                detail: event.detail.clone(),
                cause,
                command,
            });
            if past.len() > EVENTS_KEPT {
                past.pop_front();
            }
        }
        if action == "destroy" {
            self.past.remove(&event.id);
            self.health.remove(&event.id);
            self.heard.retain(|id| *id != event.id);
        }
        (cause, command)
    }

    /// Fairlead's word for it; `None` for what is not reported.
    fn container_action(&mut self, event: &EngineEvent) -> Option<String> {
        let word = match first_word(&event.action) {
            "exec_start" => "exec",
            "health_status" => {
                let status = event
                    .action
                    .split_once(':')
                    .map_or("", |(_, status)| status.trim());
                let status = if status.is_empty() {
                    event.detail.trim()
                } else {
                    status
                };
                let before = self.health.insert(event.id.clone(), status.to_owned());
                if before.as_deref() == Some(status) {
                    return None;
                }
                "health"
            }
            word @ ("create" | "start" | "die" | "kill" | "stop" | "restart" | "destroy"
            | "oom" | "pause" | "unpause" | "rename" | "update") => word,
            // exec_create, exec_die, exec_detach, attach, detach, resize, top, copy, export, commit,
            // archive-path, extract-to-dir, prune: noise, or told by another.
            _ => return None,
        };
        Some(format!("container.{word}"))
    }
}

fn image_action(event: &EngineEvent) -> Option<String> {
    let word = first_word(&event.action);
    let told = matches!(
        word,
        "pull" | "push" | "delete" | "import" | "load" | "tag" | "untag"
    );
    told.then(|| format!("image.{word}"))
}

/// In words for the operator.
fn detail(event: &EngineEvent) -> String {
    let after_colon = || {
        event
            .action
            .split_once(':')
            .map_or("", |(_, rest)| rest.trim())
            .to_owned()
    };
    let text = match first_word(&event.action) {
        "die" if !event.detail.is_empty() => format!("exit code {}", event.detail),
        "kill" if !event.detail.is_empty() => format!("signal {}", event.detail),
        "rename" if !event.detail.is_empty() => {
            format!("was {}", event.detail.trim_start_matches('/'))
        }
        "health_status" | "exec_start" => after_colon(),
        _ => String::new(),
    };
    text.chars()
        .filter(|c| !c.is_control())
        .take(DETAIL_CHARS_MAX)
        .collect()
}

#[cfg(test)]
mod tests;
