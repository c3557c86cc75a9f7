//! The supervisor's part of the handoff, as a pure state machine: events to actions, no clock, no process.
//!
//! Phases: *vacant* (nobody runs; somebody is started soon), *steady* (one owns the host), *proving* (a
//! candidate runs beside), *reserving* (two epochs go to disk: one for the candidate, one for a return),
//! *yielding* (the owner was asked), *draining* (the candidate owns; the instance before finishes what it had
//! begun). Each but steady has a time after which it ends by itself.

use std::collections::BTreeMap;
use std::time::Duration;

mod terms;
mod trial;

pub use terms::{Action, Commit, Event, Instance, Key, Phase, Refused, Returned, Times, Versions};

/// How often a version on trial is started again before the one before it gets the host.
pub const TRIES: u32 = 3;
/// Instances that only see streams to their end.
const STREAMING_MAX: usize = 2;
/// An agent that lived so long was healthy: the next wait is short again.
const HEALTHY_AFTER: Duration = Duration::from_secs(10);
/// First wait before an agent is started again.
const WAIT_FIRST: Duration = Duration::from_millis(100);
/// Longest wait: the supervisor never gives up.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// Wait after something that the disk or the system did not allow.
const WAIT_FAILED: Duration = Duration::from_secs(2);

/// The machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Decider {
    times: Times,
    epoch: u64,
    versions: Versions,
    instances: BTreeMap<Key, Instance>,
    phase: Phase,
    next: Key,
    wait: Duration,
    confirming: bool,
}

impl Decider {
    /// Nobody runs; the next tick starts somebody. `epoch` is the highest that was ever granted.
    #[must_use]
    pub fn new(times: Times, epoch: u64, versions: Versions) -> Self {
        Self {
            times,
            epoch,
            versions,
            instances: BTreeMap::new(),
            phase: Phase::Vacant { at: Duration::ZERO },
            next: 1,
            wait: WAIT_FIRST,
            confirming: false,
        }
    }

    /// Goes on where another supervisor process left, with these instances; one of them is the owner.
    #[must_use]
    pub fn resume(
        times: Times,
        epoch: u64,
        versions: Versions,
        instances: BTreeMap<Key, Instance>,
        owner: Key,
    ) -> Self {
        let next = instances.keys().max().map_or(1, |key| key + 1);
        Self {
            instances,
            next,
            phase: Phase::Steady { owner },
            ..Self::new(times, epoch, versions)
        }
    }

    /// How long everything may take.
    #[must_use]
    pub fn times(&self) -> &Times {
        &self.times
    }

    /// Where the host's ownership is.
    #[must_use]
    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    /// All instances.
    #[must_use]
    pub fn instances(&self) -> &BTreeMap<Key, Instance> {
        &self.instances
    }

    /// The versions.
    #[must_use]
    pub fn versions(&self) -> &Versions {
        &self.versions
    }

    /// The highest epoch that was granted or is reserved.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The instance that owns the host.
    #[must_use]
    pub fn owner(&self) -> Option<Key> {
        match self.phase {
            Phase::Vacant { .. } => None,
            Phase::Steady { owner }
            | Phase::Proving { owner, .. }
            | Phase::Reserving { owner, .. } => Some(owner),
            // In between nobody's word counts: the old one does not begin anything any more.
            Phase::Yielding { old, .. } => Some(old),
            Phase::Draining { new, .. } => Some(new),
        }
    }

    /// Takes an event, and says what is to be done.
    pub fn on(&mut self, now: Duration, event: Event) -> Vec<Action> {
        let mut todo = Vec::new();
        match event {
            Event::Tick => self.tick(now, &mut todo),
            Event::Upgrade(version) => self.upgrade(now, version, &mut todo),
            Event::NotStarted(key, why) => self.ended(now, key, &why, false, true, &mut todo),
            Event::Heard(key) => {
                if let Some(instance) = self.instances.get_mut(&key) {
                    instance.heard = now;
                }
            }
            Event::Proved(key) => {
                if let Phase::Proving { owner, new } = self.phase
                    && new == key
                {
                    self.phase = Phase::Reserving { owner, new };
                    todo.push(Action::Reserve(self.epoch + 1));
                }
            }
            Event::Reserved => {
                if let Phase::Reserving { owner, new } = self.phase {
                    // One for the candidate and one for a return: in between no disk is needed.
                    self.epoch += 2;
                    self.phase = Phase::Yielding {
                        old: owner,
                        new,
                        since: now,
                    };
                    todo.push(Action::Yield(owner, self.epoch - 1));
                }
            }
            Event::NotReserved(why) => {
                if let Phase::Reserving { owner, new } = self.phase {
                    self.abandon(owner, new, &why, &mut todo);
                }
            }
            // A word of an earlier hand-over may have been long on its way.
            Event::Yielded(key, to) => {
                if let Phase::Yielding { old, new, .. } = self.phase
                    && old == key
                    && to == self.epoch - 1
                {
                    self.give(now, new, Some(old), &mut todo);
                }
            }
            Event::CommandsDone(key, to) => {
                if let Phase::Draining {
                    old: Some(old),
                    commit: Commit::NotYet,
                    ..
                } = self.phase
                    && old == key
                    && to == self.epoch - 1
                {
                    self.commit(&mut todo);
                }
            }
            Event::Committed => self.committed(now, &mut todo),
            Event::NotCommitted => {
                self.confirming = false;
                if let Phase::Draining { commit, .. } = &mut self.phase {
                    *commit = Commit::Again(now + WAIT_FAILED);
                }
            }
            Event::Ended {
                key,
                how,
                needs_help,
            } => self.ended(now, key, &how, needs_help, false, &mut todo),
            Event::Raised(epoch) => self.epoch = self.epoch.max(epoch),
        }
        todo
    }

    fn upgrade(&mut self, now: Duration, version: String, todo: &mut Vec<Action>) {
        let owner = match self.phase {
            Phase::Steady { owner } if version != self.versions.current => owner,
            Phase::Steady { .. } => {
                return todo.push(Action::Answer(Err(Refused::Same(version))));
            }
            Phase::Vacant { .. } => return todo.push(Action::Answer(Err(Refused::Vacant))),
            _ => return todo.push(Action::Answer(Err(Refused::UnderWay))),
        };
        let new = self.insert(now, version.clone(), 0);
        self.phase = Phase::Proving { owner, new };
        todo.push(Action::StartBeside { key: new, version });
        todo.push(Action::Answer(Ok(())));
    }

    fn insert(&mut self, now: Duration, version: String, epoch: u64) -> Key {
        let key = self.next;
        self.next += 1;
        let instance = Instance {
            version,
            epoch,
            since: now,
            heard: now,
            noticed: None,
            leaving: None,
            killed: false,
        };
        self.instances.insert(key, instance);
        key
    }

    /// The candidate does not get the host; the owner keeps it and never knew.
    fn abandon(&mut self, owner: Key, new: Key, why: &str, todo: &mut Vec<Action>) {
        self.phase = Phase::Steady { owner };
        self.returned(new, owner, why, todo);
        self.kill(new, todo);
    }

    fn returned(&mut self, from: Key, to: Key, why: &str, todo: &mut Vec<Action>) {
        let version = |key| {
            let instance: Option<&Instance> = self.instances.get(&key);
            instance.map(|i| i.version.clone()).unwrap_or_default()
        };
        self.versions.returned = Some(Returned {
            from: version(from),
            to: version(to),
            why: why.to_owned(),
        });
        todo.push(Action::Note(self.versions.clone()));
    }

    fn kill(&mut self, key: Key, todo: &mut Vec<Action>) {
        if let Some(instance) = self.instances.get_mut(&key)
            && !instance.killed
        {
            instance.killed = true;
            todo.push(Action::Kill(key));
        }
    }

    /// The candidate gets the host. Both epochs are on disk.
    fn give(&mut self, now: Duration, new: Key, from: Option<Key>, todo: &mut Vec<Action>) {
        let epoch = self.epoch - 1;
        self.phase = Phase::Draining {
            old: from,
            new,
            commit: Commit::NotYet,
        };
        for key in from.into_iter().chain([new]) {
            if let Some(instance) = self.instances.get_mut(&key) {
                instance.since = now;
            }
        }
        if let Some(instance) = self.instances.get_mut(&new) {
            instance.epoch = epoch;
        }
        todo.push(Action::Grant {
            key: new,
            epoch,
            from,
        });
    }

    /// The instance before takes the host back.
    fn take_back(&mut self, now: Duration, old: Key, gone: Key, todo: &mut Vec<Action>) {
        let epoch = self.epoch;
        if let Some(instance) = self.instances.get_mut(&old) {
            instance.epoch = epoch;
            instance.since = now;
        }
        self.phase = Phase::Steady { owner: old };
        todo.push(Action::Gone { tell: old, gone });
        todo.push(Action::Grant {
            key: old,
            epoch,
            from: None,
        });
    }

    /// The versions once the candidate's is committed.
    fn with_new(&self, new: Key) -> Versions {
        let version = self.instances.get(&new).map(|i| i.version.clone());
        Versions {
            current: version.unwrap_or_default(),
            previous: Some(self.versions.current.clone()),
            tries_left: Some(TRIES),
            safe: false,
            returned: self.versions.returned.clone(),
        }
    }

    fn commit(&mut self, todo: &mut Vec<Action>) {
        if let Phase::Draining { new, commit, .. } = &mut self.phase {
            *commit = Commit::Asked;
            let new = *new;
            todo.push(Action::Commit(self.with_new(new)));
        }
    }

    fn committed(&mut self, now: Duration, todo: &mut Vec<Action>) {
        if std::mem::take(&mut self.confirming) {
            let was_safe = self.versions.safe;
            self.versions = self.believed();
            match self.owner() {
                // What makes it take commands again is a start.
                Some(owner) if was_safe => todo.push(Action::Leave(owner)),
                _ => todo.push(Action::Believed),
            }
            return;
        }
        let Phase::Draining { old, new, .. } = self.phase else {
            return;
        };
        self.versions = self.with_new(new);
        self.phase = Phase::Steady { owner: new };
        self.wait = WAIT_FIRST;
        if let Some(old) = old.and_then(|old| self.instances.get_mut(&old)) {
            old.since = now;
        }
        let streaming = self.instances.len() - 1;
        if streaming > STREAMING_MAX
            && let Some((oldest, instance)) = self
                .instances
                .iter_mut()
                .find(|(key, instance)| **key != new && instance.noticed.is_none())
        {
            instance.noticed = Some(now);
            todo.push(Action::Notice(*oldest));
        }
    }

    fn ended(
        &mut self,
        now: Duration,
        key: Key,
        how: &str,
        needs_help: bool,
        failed: bool,
        todo: &mut Vec<Action>,
    ) {
        let Some(instance) = self.instances.get(&key).cloned() else {
            return;
        };
        match self.phase {
            Phase::Steady { owner } if owner == key => {
                self.vacate(now, &instance, how, needs_help, failed);
            }
            Phase::Proving { owner, new } | Phase::Reserving { owner, new } => {
                if new == key {
                    self.phase = Phase::Steady { owner };
                    self.returned(new, owner, how, todo);
                } else if owner == key {
                    // Nobody is to take over from: whoever is started next reads its journal.
                    let why = format!("the agent that had the host ended meanwhile ({how})");
                    self.returned(new, owner, &why, todo);
                    self.kill(new, todo);
                    self.vacate(now, &instance, how, needs_help, failed);
                }
            }
            Phase::Yielding { old, new, .. } => {
                if old == key {
                    // First what is to be settled, then the right to begin anything.
                    todo.push(Action::Gone {
                        tell: new,
                        gone: old,
                    });
                    self.give(now, new, None, todo);
                    self.commit(todo);
                } else if new == key {
                    self.returned(new, old, how, todo);
                    self.take_back(now, old, new, todo);
                }
            }
            Phase::Draining { old, new, commit } => {
                if new == key {
                    match old {
                        Some(old) => {
                            self.returned(new, old, how, todo);
                            self.take_back(now, old, new, todo);
                        }
                        None => self.vacate(now, &instance, how, needs_help, failed),
                    }
                } else if old == Some(key) {
                    self.phase = Phase::Draining {
                        old: None,
                        new,
                        commit,
                    };
                    todo.push(Action::Gone {
                        tell: new,
                        gone: key,
                    });
                    if commit == Commit::NotYet {
                        self.commit(todo);
                    }
                }
            }
            Phase::Vacant { .. } | Phase::Steady { .. } => {}
        }
        self.instances.remove(&key);
        let told = |action: &Action| matches!(action, Action::Gone { gone, .. } if *gone == key);
        if let Some(owner) = self.owner()
            && !todo.iter().any(told)
        {
            todo.push(Action::Gone {
                tell: owner,
                gone: key,
            });
        }
    }

    fn tick(&mut self, now: Duration, todo: &mut Vec<Action>) {
        let over = |since: Duration, time: Duration| now >= since + time;
        let silent = |decider: &Self, key: Key| {
            let heard = decider.instances.get(&key).map(|i| i.heard);
            heard.is_some_and(|heard| over(heard, decider.times.silent))
        };
        match self.phase {
            Phase::Vacant { at } if now >= at => self.start_owner(now, todo),
            Phase::Vacant { .. } | Phase::Reserving { .. } => {}
            Phase::Steady { owner } => self.watch_trial(now, owner, silent(self, owner), todo),
            Phase::Proving { owner, new } => {
                let since = self.instances.get(&new).map_or(now, |i| i.since);
                if over(since, self.times.prove) {
                    let seconds = self.times.prove.as_secs_f64();
                    let why = format!("it did not prove within {seconds} s that it can work here");
                    self.abandon(owner, new, &why, todo);
                }
            }
            Phase::Yielding { old, new, since } => {
                if over(since, self.times.yields) {
                    self.kill(old, todo);
                }
                if silent(self, new) {
                    self.kill(new, todo);
                }
            }
            Phase::Draining { old, new, commit } => {
                if silent(self, new) {
                    self.kill(new, todo);
                }
                // It holds lanes: what it has under way is settled when it is gone.
                if let Some(old) = old.filter(|old| silent(self, *old)) {
                    self.kill(old, todo);
                }
                let old_since = old
                    .and_then(|old| self.instances.get(&old))
                    .map(|i| i.since);
                if let (Some(old), Some(since)) = (old, old_since)
                    && over(since, self.times.streams)
                {
                    self.kill(old, todo);
                }
                if matches!(commit, Commit::Again(at) if now >= at) {
                    self.commit(todo);
                }
            }
        }
        self.tend_streaming(now, todo);
    }

    /// Instances that gave the host away end when their time is over.
    fn tend_streaming(&mut self, now: Duration, todo: &mut Vec<Action>) {
        let busy: [Option<Key>; 2] = match self.phase {
            Phase::Vacant { .. } => [None, None],
            Phase::Steady { owner } => [Some(owner), None],
            Phase::Proving { owner, new } | Phase::Reserving { owner, new } => {
                [Some(owner), Some(new)]
            }
            Phase::Yielding { old, new, .. } => [Some(old), Some(new)],
            Phase::Draining { old, new, .. } => [old, Some(new)],
        };
        let times = self.times;
        for (key, instance) in &mut self.instances {
            if busy.contains(&Some(*key)) || instance.killed {
                continue;
            }
            if let Some(asked) = instance.leaving {
                if now >= asked + times.leave {
                    instance.killed = true;
                    todo.push(Action::Kill(*key));
                }
                continue;
            }
            let told = instance.noticed.is_some_and(|at| now >= at + times.notice);
            if told || now >= instance.since + times.streams {
                instance.leaving = Some(now);
                todo.push(Action::Leave(*key));
            }
        }
    }
}

#[cfg(test)]
mod tests;
