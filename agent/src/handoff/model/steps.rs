//! What may happen next in the model, and what it brings about.

use std::time::Duration;

use super::super::decide::{Event, Key};
use super::super::role::Role;
use super::world::{Said, World};

#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    Command,
    Upgrade,
    Crash(Key),
    Freeze(Key),
    Cut(Key),
    Link(Key),
    Notice(Key),
    Hear(Key),
    Say(Key),
    Prove(Key),
    /// The server hears who the owner is.
    Own(Key),
    /// The executor hears of a grant.
    TakeOver(Key),
    Take(Key),
    Begin(Key),
    End(Key),
    Settle(Key),
    Report(Key),
    /// One that gave the host away and has nothing left goes.
    Leave(Key),
    Tick,
}

impl World {
    pub(super) fn step(&mut self, step: Step) {
        self.trail.push(step);
        match step {
            Step::Command => {
                self.commands -= 1;
                let id = u8::try_from(self.asked.len()).unwrap();
                self.asked.push(id);
                if let Some((key, epoch)) = self.routes_to {
                    self.process(key).down.push_back((id, epoch));
                }
            }
            Step::Upgrade => {
                self.upgrades -= 1;
                self.decide(Event::Upgrade((9 - self.upgrades).to_string()));
            }
            Step::Crash(key) => {
                self.crashes -= 1;
                self.die(key);
            }
            Step::Freeze(key) => {
                self.freezes -= 1;
                self.process(key).frozen = true;
            }
            Step::Cut(key) => {
                self.cuts -= 1;
                let process = self.process(key);
                process.linked = false;
                process.down.clear();
                process.owns_said = false;
                self.unroute(key);
            }
            Step::Link(key) => self.link(key),
            Step::Notice(key) => {
                self.dead.remove(&key);
                self.decide(Event::Ended {
                    key,
                    how: "died".to_owned(),
                    needs_help: false,
                });
            }
            Step::Hear(key) => self.hear(key),
            Step::Say(key) => self.say(key),
            Step::Prove(key) => {
                let process = self.process(key);
                process.proved = true;
                process.says.push_back(Said::Proved);
            }
            Step::Own(key) => {
                self.process(key).owns_said = false;
                self.own(key);
            }
            Step::TakeOver(key) => self.take_over(key),
            Step::Take(key) => {
                let process = self.process(key);
                let (id, meant_for) = process.down.pop_front().unwrap();
                process.take(id, meant_for);
            }
            Step::Begin(key) => self.begin(key),
            Step::End(key) => {
                let id = self.process(key).acting.unwrap();
                self.ended(key, id);
            }
            Step::Settle(key) => {
                let id = *self.process(key).to_settle.first().unwrap();
                self.begun.insert(id, key);
                self.ended(key, id);
            }
            Step::Report(key) => {
                let known = self.process(key).ended.clone();
                self.recorded.extend(known);
            }
            Step::Leave(key) => self.die(key),
            Step::Tick => {
                self.early_ticks = self.early_ticks.saturating_sub(1);
                let dt = self.next_tick().unwrap();
                self.pass(dt);
            }
        }
    }

    fn begin(&mut self, key: Key) {
        assert!(
            self.engine.is_none(),
            "two act on one lane: {:?}",
            self.trail
        );
        let process = self.process(key);
        let begun = process.lanes.begin();
        assert_eq!(begun.len(), 1);
        let id = begun[0].as_bytes()[0];
        process.acting = Some(id);
        let before = self.begun.insert(id, key);
        assert_eq!(before, None, "command {id} begins twice");
        let first_open = self.asked.iter().find(|id| !self.done.contains(id));
        assert_eq!(first_open, Some(&id), "out of order: {:?}", self.trail);
        self.engine = Some(id);
    }

    fn pass(&mut self, dt: Duration) {
        self.now += dt;
        let alive: Vec<Key> = self
            .processes
            .iter()
            .filter(|(_, process)| !process.frozen)
            .map(|(key, _)| *key)
            .collect();
        for key in alive {
            self.decide(Event::Heard(key));
        }
        self.decide(Event::Tick);
    }

    /// How long it takes until time alone makes the supervisor do something.
    fn next_tick(&self) -> Option<Duration> {
        [1, 200, 400, 800, 1600, 2000, 5000, 30_000, 60_000]
            .map(Duration::from_millis)
            .into_iter()
            .find(|dt| {
                let mut decider = self.decider.clone();
                for (key, process) in &self.processes {
                    if !process.frozen {
                        decider.on(self.now + *dt, Event::Heard(*key));
                    }
                }
                !decider.on(self.now + *dt, Event::Tick).is_empty()
            })
    }

    pub(super) fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        if self.commands > 0 {
            steps.push(Step::Command);
        }
        if self.upgrades > 0 {
            steps.push(Step::Upgrade);
        }
        steps.extend(self.dead.iter().map(|key| Step::Notice(*key)));
        for (&key, process) in &self.processes {
            if self.crashes > 0 {
                steps.push(Step::Crash(key));
            }
            if !process.says.is_empty() {
                steps.push(Step::Say(key));
            }
            if process.frozen {
                continue;
            }
            if self.freezes > 0 {
                steps.push(Step::Freeze(key));
            }
            if self.cuts > 0 && process.linked {
                steps.push(Step::Cut(key));
            }
            if !process.linked {
                steps.push(Step::Link(key));
            }
            if process.linked && process.owns_said {
                steps.push(Step::Own(key));
            }
            // What a word brings about is done before the next one is heard.
            if process.pending.is_some() {
                steps.push(Step::TakeOver(key));
            } else if !process.hears.is_empty() {
                steps.push(Step::Hear(key));
            }
            if process.linked && process.role == Role::Standby && !process.proved {
                steps.push(Step::Prove(key));
            }
            if !process.down.is_empty() {
                steps.push(Step::Take(key));
            }
            if process.acting.is_some() {
                steps.push(Step::End(key));
            } else if process.role.owns() && !process.lanes.clone().begin().is_empty() {
                steps.push(Step::Begin(key));
            }
            if !process.to_settle.is_empty() {
                steps.push(Step::Settle(key));
            }
            let reported = process.ended.iter().all(|id| self.recorded.contains(id));
            if process.done_said && !process.role.owns() && process.says.is_empty() && reported {
                steps.push(Step::Leave(key));
            }
            if process.linked && process.ended.iter().any(|id| !self.recorded.contains(id)) {
                steps.push(Step::Report(key));
            }
        }
        if (steps.is_empty() || self.early_ticks > 0) && self.next_tick().is_some() {
            steps.push(Step::Tick);
        }
        steps
    }
}
