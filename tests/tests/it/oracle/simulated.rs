//! A correct executor, without an engine: what it would leave behind. Lanes one after the other, a
//! kill within a grace, processes side by side, an agent that dies in between and settles.

use std::collections::BTreeMap;

use fairlead_tests::oracle::history::{Act, Asked, Effect, History, Presence, Record, What};
use proptest::prelude::*;

const CONTAINERS: usize = 3;
/// A stop takes so long, all else much less.
const GRACE_US: i64 = 1_000_000;
const STEP_US: i64 = 10_000;

/// One command of a run.
#[derive(Debug, Clone)]
pub(super) struct Step {
    container: usize,
    kind: usize,
    /// After the one before.
    pause_us: i64,
    /// 0: its deadline is over when its turn comes.
    deadline: u8,
    /// 0: the agent dies after its effect and settles.
    dies: u8,
}

/// A run.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    steps: Vec<Step>,
}

impl Plan {
    pub(super) fn any() -> impl Strategy<Value = Self> {
        let step = (0..CONTAINERS, 0usize..8, 0i64..400_000, 0u8..10, 0u8..10).prop_map(
            |(container, kind, pause_us, deadline, dies)| Step {
                container,
                kind,
                pause_us,
                deadline,
                dies,
            },
        );
        prop::collection::vec(step, 1..40).prop_map(|steps| Self { steps })
    }
}

struct Simulated {
    history: History,
    presence: Vec<Presence>,
    free_at: Vec<i64>,
    /// When the last stop began and ended, if nothing else was taken in since.
    grace: Vec<Option<(i64, i64)>>,
}

/// The history of a plan, as a system without a fault leaves it.
pub(super) fn simulate(plan: &Plan) -> History {
    let first = [Presence::Running, Presence::Stopped, Presence::Absent];
    let mut run = Simulated {
        history: History {
            stamps_apart_us: 1_000,
            ..History::default()
        },
        presence: first.to_vec(),
        free_at: vec![0; CONTAINERS],
        grace: vec![None; CONTAINERS],
    };
    for (number, presence) in first.iter().enumerate() {
        run.history.before.insert(name(number), *presence);
    }
    let mut now_us = 1_000_000;
    let mut order = Vec::new();
    for (number, step) in plan.steps.iter().enumerate() {
        now_us += step.pause_us + 10;
        let id = format!("c{number}");
        order.push(id.clone());
        run.take(step, &id, number, now_us);
    }
    run.history
        .orders
        .insert("controller".to_owned(), order.clone());
    run.history.orders.insert("region".to_owned(), order);
    run.history.effects.sort_by_key(|effect| effect.at_us);
    for (number, presence) in run.presence.iter().enumerate() {
        run.history.after.insert(name(number), *presence);
    }
    run.history
}

fn name(container: usize) -> String {
    format!("box{container}")
}

fn act(kind: usize) -> Act {
    match kind {
        0 => Act::Run,
        1 => Act::Start,
        2 => Act::Stop,
        3 => Act::Restart,
        4 => Act::Kill {
            signal: 2,
            ends: true,
        },
        5 => Act::Kill {
            signal: 10,
            ends: false,
        },
        6 => Act::Remove,
        _ => Act::Exec,
    }
}

impl Simulated {
    fn take(&mut self, step: &Step, id: &str, number: usize, now_us: i64) {
        let act = act(step.kind);
        let at = step.container;
        let in_grace = matches!(act, Act::Kill { .. })
            && self.grace[at]
                .is_some_and(|(began, ends)| began < now_us && now_us + STEP_US < ends);
        let begins = if in_grace {
            now_us + 1_000
        } else {
            now_us.max(self.free_at[at]) + 1_000
        };
        let expired = step.deadline == 0 && !in_grace;
        if act.changes() && !in_grace {
            self.grace[at] = None;
        }
        let (end, exit_code, ends) = if expired {
            (("expired", "deadline_passed"), None, begins)
        } else {
            self.carry_out(&act, id, at, begins, in_grace)
        };
        if act.changes() && !in_grace {
            self.free_at[at] = ends;
        }
        self.history.asked.push(Asked {
            id: id.to_owned(),
            client: number % 4,
            container: name(at),
            act,
            asked_us: now_us,
            acked_us: (number % 7 != 6).then_some(now_us + 5),
            not_after_us: Some(if expired {
                begins - 1
            } else {
                begins + 300_000_000
            }),
        });
        let mut stamps = BTreeMap::new();
        if !expired {
            // Who died and settled has no answer, but knows when it had settled.
            let last = if step.dies == 0 {
                "settled"
            } else {
                "engine_answered"
            };
            stamps.insert("engine_called".to_owned(), begins);
            stamps.insert(last.to_owned(), ends);
        }
        for by in ["controller", "region", "host"] {
            self.history.records.push(Record {
                by: by.to_owned(),
                read_us: i64::MAX,
                id: id.to_owned(),
                state: end.0.to_owned(),
                code: end.1.to_owned(),
                exit_code,
                finished_us: (by != "host").then_some(ends + 500),
                stamps: stamps.clone().into_iter().collect(),
            });
        }
    }

    fn show(&mut self, at: usize, at_us: i64, what: What) {
        self.history.effects.push(Effect {
            at_us,
            container: name(at),
            what,
        });
    }

    /// What the engine does, how it ends, and when.
    fn carry_out(
        &mut self,
        act: &Act,
        id: &str,
        at: usize,
        begins: i64,
        in_grace: bool,
    ) -> ((&'static str, &'static str), Option<i64>, i64) {
        use Presence::{Absent, Running, Stopped};
        const DONE: (&str, &str) = ("succeeded", "");
        let then = begins + STEP_US;
        match (act, self.presence[at]) {
            (Act::Run, Absent) => {
                self.show(at, begins + 10, What::Create(id.to_owned()));
                self.show(at, begins + 20, What::Start);
                self.presence[at] = Running;
            }
            (Act::Run, _) => return (("failed", "name_in_use"), None, then),
            (_, Absent) => return (("failed", "container_not_found"), None, then),
            (Act::Start, Stopped) => {
                self.show(at, begins + 10, What::Start);
                self.presence[at] = Running;
            }
            (Act::Start, Running) | (Act::Stop, Stopped) => {}
            (Act::Stop | Act::Restart, Running) => {
                self.show(at, begins + 10, What::Kill(15));
                let end = begins + GRACE_US;
                self.show(at, end - 30, What::Die);
                self.show(at, end - 20, What::Stop);
                self.presence[at] = Stopped;
                if *act == Act::Restart {
                    self.show(at, end - 10, What::Start);
                    self.presence[at] = Running;
                }
                self.grace[at] = Some((begins, end));
                return (DONE, None, end);
            }
            (Act::Restart, Stopped) => {
                self.show(at, begins + 10, What::Start);
                self.presence[at] = Running;
            }
            (Act::Kill { signal, .. }, _) if in_grace => {
                // The engine's own second signal comes first, here: one end for both.
                self.show(at, begins + 10, What::Kill(*signal));
            }
            (Act::Kill { .. } | Act::Exec, Stopped) => {
                return (("failed", "not_running"), None, then);
            }
            (Act::Kill { signal, ends }, Running) => {
                self.show(at, begins + 10, What::Kill(*signal));
                if *ends {
                    self.show(at, begins + 20, What::Die);
                    self.presence[at] = Stopped;
                }
            }
            (Act::Remove, Running) => {
                self.show(at, begins + 10, What::Die);
                self.show(at, begins + 20, What::Destroy);
                self.presence[at] = Absent;
            }
            (Act::Remove, Stopped) => {
                self.show(at, begins + 20, What::Destroy);
                self.presence[at] = Absent;
            }
            (Act::Exec, Running) => {
                self.show(at, begins + 10, What::ExecStart(id.to_owned()));
                self.show(at, begins + 20, What::ExecDie(id.to_owned(), 0));
                self.history.marks.insert(id.to_owned(), 1);
                return (DONE, Some(0), then);
            }
        }
        (DONE, None, then)
    }
}
