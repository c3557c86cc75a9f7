//! The world of the model: processes, links, an engine and a server, between which everything may happen.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::Hash;
use std::time::Duration;

use fairlead_protocol::CommandId;
use fairlead_protocol::command::Lane;

use super::super::decide::{Action, Decider, Event, Key, Times, Versions};
use super::super::role::Role;
use super::steps::Step;
use crate::executor::lanes::{Lanes, Manner};

pub(super) type Id = u8;

pub(super) fn wire(id: Id) -> CommandId {
    CommandId::from_bytes([id; 16])
}

#[derive(Debug, Clone, Hash)]
pub(super) enum Word {
    Yield(u64),
    Grant(u64, Option<Key>),
    Gone(Key),
    Released(Id),
}

#[derive(Debug, Clone, Hash)]
pub(super) enum Said {
    Proved,
    Yielded(u64),
    CommandsDone(u64),
    Released(Id),
}

#[derive(Debug, Clone)]
pub(super) struct Process {
    /// Who it is to its link; the executor's role follows, once it is known what another has under way.
    pub(super) standing: Role,
    pub(super) role: Role,
    /// The grant that the executor has not heard of.
    pub(super) pending: Option<(u64, Option<Key>)>,
    /// It is on its way to the server that this instance is the owner.
    pub(super) owns_said: bool,
    pub(super) frozen: bool,
    pub(super) lanes: Lanes,
    pub(super) acting: Option<Id>,
    /// What it knows to have ended.
    pub(super) ended: BTreeSet<Id>,
    pub(super) to_settle: BTreeSet<Id>,
    pub(super) hears: VecDeque<Word>,
    pub(super) says: VecDeque<Said>,
    pub(super) linked: bool,
    /// From the server, in order, each meant for an epoch.
    pub(super) down: VecDeque<(Id, u64)>,
    /// What came for an epoch that the executor has not heard of.
    pub(super) waiting: Vec<(Id, u64)>,
    pub(super) proved: bool,
    pub(super) yielded_to: u64,
    pub(super) done_said: bool,
}

#[derive(Debug, Clone)]
pub(super) struct World {
    /// How it came to this, for failures.
    pub(super) trail: Vec<Step>,
    pub(super) now: Duration,
    pub(super) decider: Decider,
    pub(super) processes: BTreeMap<Key, Process>,
    /// What an instance that yielded wrote for the next: what it has under way.
    pub(super) shares: BTreeMap<Key, BTreeSet<Id>>,
    /// Deaths that the supervisor has not noticed.
    pub(super) dead: BTreeSet<Key>,
    /// Who has begun what: the journals.
    pub(super) begun: BTreeMap<Id, Key>,
    pub(super) done: BTreeSet<Id>,
    /// What the engine is at, whoever asked.
    pub(super) engine: Option<Id>,
    pub(super) asked: Vec<Id>,
    pub(super) recorded: BTreeSet<Id>,
    pub(super) routes_to: Option<(Key, u64)>,
    pub(super) epoch_on_disk: u64,
    pub(super) granted: u64,
    /// What may still go wrong.
    pub(super) commands: u8,
    pub(super) upgrades: u8,
    pub(super) crashes: u8,
    pub(super) freezes: u8,
    pub(super) cuts: u8,
    pub(super) full_disks: u8,
    pub(super) early_ticks: u8,
}

impl Process {
    pub(super) fn take(&mut self, id: Id, meant_for: u64) {
        if self.role.takes(meant_for) {
            if !self.ended.contains(&id) {
                self.lanes.accept(wire(id), Lane::Host, Manner::Changes);
            }
        } else if meant_for > self.role.epoch() {
            self.waiting.push((id, meant_for));
        }
        // What was meant for an earlier epoch the server sends again.
    }
}

impl World {
    pub(super) fn new(commands: u8, crashes: u8, freezes: u8, cuts: u8, full_disks: u8) -> Self {
        let versions = Versions {
            current: "1".to_owned(),
            ..Versions::default()
        };
        // What is bounded by hours is no part of this.
        let forever = Duration::from_secs(1_000_000);
        let times = Times {
            streams: forever,
            trial: forever,
            notice: forever,
            ..Times::default()
        };
        let mut world = Self {
            trail: Vec::new(),
            now: Duration::ZERO,
            decider: Decider::new(times, 0, versions),
            processes: BTreeMap::new(),
            shares: BTreeMap::new(),
            dead: BTreeSet::new(),
            begun: BTreeMap::new(),
            done: BTreeSet::new(),
            engine: None,
            asked: Vec::new(),
            recorded: BTreeSet::new(),
            routes_to: None,
            epoch_on_disk: 0,
            granted: 0,
            commands,
            upgrades: 1,
            crashes,
            freezes,
            cuts,
            full_disks,
            early_ticks: 2,
        };
        world.decide(Event::Tick);
        world.link(1);
        world
    }

    pub(super) fn decide(&mut self, event: Event) {
        let actions = self.decider.on(self.now, event);
        for action in actions {
            self.perform(action);
        }
    }

    pub(super) fn spawn(&mut self, key: Key, role: Role) {
        // An owner's start reads the journals of the dead: what they had begun is settled first.
        let mut process = Process {
            standing: role,
            role,
            pending: None,
            owns_said: false,
            frozen: false,
            lanes: Lanes::new(4),
            acting: None,
            ended: BTreeSet::new(),
            to_settle: BTreeSet::new(),
            hears: VecDeque::new(),
            says: VecDeque::new(),
            linked: false,
            down: VecDeque::new(),
            waiting: Vec::new(),
            proved: false,
            yielded_to: 0,
            done_said: false,
        };
        if role.owns() {
            self.read_journals(&mut process);
        }
        self.processes.insert(key, process);
    }

    /// What the dead had begun is to be settled, and what has ended is known.
    pub(super) fn read_journals(&self, process: &mut Process) {
        process.ended.extend(&self.done);
        for (id, by) in &self.begun {
            if !self.processes.contains_key(by) && !self.done.contains(id) {
                let place = (wire(*id), Lane::Host, Manner::Changes);
                process.lanes.accept_running(place.0, place.1, place.2);
                process.to_settle.insert(*id);
            }
        }
    }

    pub(super) fn perform(&mut self, action: Action) {
        match action {
            Action::StartOwner { key, epoch, .. } => {
                assert!(epoch > self.granted, "an epoch is granted once");
                self.epoch_on_disk = epoch;
                self.granted = epoch;
                self.spawn(key, Role::Owner(epoch));
            }
            Action::StartBeside { key, .. } => self.spawn(key, Role::Standby),
            Action::Reserve(epoch) => {
                if self.full_disks > 0 {
                    self.full_disks -= 1;
                    return self.decide(Event::NotReserved("full".to_owned()));
                }
                self.epoch_on_disk = epoch + 1;
                self.decide(Event::Reserved);
            }
            Action::Yield(key, epoch) => self.tell(key, Word::Yield(epoch)),
            Action::Grant { key, epoch, from } => {
                assert!(epoch > self.granted, "an epoch is granted once");
                assert!(epoch <= self.epoch_on_disk, "and on disk before");
                self.granted = epoch;
                self.tell(key, Word::Grant(epoch, from));
            }
            Action::Gone { tell, gone } => self.tell(tell, Word::Gone(gone)),
            Action::Kill(key) => self.die(key),
            Action::Leave(_) | Action::Notice(_) => unreachable!("hours have not passed"),
            Action::Commit(_) => {
                if self.full_disks > 0 {
                    self.full_disks -= 1;
                    return self.decide(Event::NotCommitted);
                }
                self.decide(Event::Committed);
            }
            Action::Note(_) | Action::Believed | Action::Answer(_) => {}
        }
    }

    pub(super) fn tell(&mut self, key: Key, word: Word) {
        if let Some(process) = self.processes.get_mut(&key) {
            process.hears.push_back(word);
        }
    }

    pub(super) fn process(&mut self, key: Key) -> &mut Process {
        self.processes.get_mut(&key).unwrap()
    }

    pub(super) fn die(&mut self, key: Key) {
        if self.processes.remove(&key).is_some() {
            self.dead.insert(key);
            self.unroute(key);
        }
    }

    pub(super) fn unroute(&mut self, key: Key) {
        if self.routes_to.is_some_and(|(to, _)| to == key) {
            self.routes_to = None;
        }
    }

    /// The server sends all that is open to whoever owns the host, if the epoch is not an old one.
    pub(super) fn own(&mut self, key: Key) {
        let process = &self.processes[&key];
        let Role::Owner(epoch) = process.standing else {
            return;
        };
        if !process.linked || self.routes_to.is_some_and(|(_, known)| known > epoch) {
            return;
        }
        self.routes_to = Some((key, epoch));
        let open: Vec<(Id, u64)> = self
            .asked
            .iter()
            .filter(|id| !self.recorded.contains(id))
            .map(|id| (*id, epoch))
            .collect();
        self.process(key).down.extend(open);
    }

    pub(super) fn link(&mut self, key: Key) {
        self.process(key).linked = true;
        self.own(key);
    }

    pub(super) fn hear(&mut self, key: Key) {
        let word = self.process(key).hears.pop_front().unwrap();
        match word {
            Word::Yield(epoch) => {
                let process = self.process(key);
                if !process.standing.yields() {
                    return;
                }
                process.role.yields();
                let to_settle = process.to_settle.clone();
                let keep = |id: CommandId| to_settle.contains(&id.as_bytes()[0]);
                process.lanes.give_up_waiting(keep);
                process.done_said = false;
                process.yielded_to = epoch;
                process.says.push_back(Said::Yielded(epoch));
                let flying = (0..10)
                    .filter(|id| process.lanes.holds(wire(*id)))
                    .collect();
                self.shares.insert(key, flying);
                self.maybe_done(key);
            }
            Word::Grant(epoch, from) => {
                let process = self.process(key);
                assert!(process.standing.granted(epoch));
                process.owns_said = true;
                process.pending = Some((epoch, from));
            }
            Word::Gone(_) => {
                let mut process = self.processes.remove(&key).unwrap();
                self.read_journals(&mut process);
                for id in process.ended.clone() {
                    process.lanes.finish(wire(id));
                }
                process.owns_said |= process.standing.owns();
                self.processes.insert(key, process);
            }
            Word::Released(id) => {
                let process = self.process(key);
                process.ended.insert(id);
                process.lanes.finish(wire(id));
            }
        }
    }

    /// The executor hears of the grant, and what the one before has under way.
    pub(super) fn take_over(&mut self, key: Key) {
        let (done, shares) = (self.done.clone(), self.shares.clone());
        let process = self.process(key);
        let (epoch, from) = process.pending.take().unwrap();
        assert!(process.role.granted(epoch));
        // The journal of the one before tells what has ended, its share what it has under way.
        process.ended.extend(done);
        for id in from.iter().filter_map(|from| shares.get(from)).flatten() {
            if !process.ended.contains(id) {
                let lanes = &mut process.lanes;
                lanes.accept_running(wire(*id), Lane::Host, Manner::Changes);
            }
        }
        for (id, meant_for) in std::mem::take(&mut process.waiting) {
            process.take(id, meant_for);
        }
    }

    pub(super) fn maybe_done(&mut self, key: Key) {
        let process = self.process(key);
        if !process.role.owns() && process.lanes.is_empty() && !process.done_said {
            process.done_said = true;
            process
                .says
                .push_back(Said::CommandsDone(process.yielded_to));
        }
    }

    pub(super) fn say(&mut self, key: Key) {
        match self.process(key).says.pop_front().unwrap() {
            Said::Proved => self.decide(Event::Proved(key)),
            Said::Yielded(epoch) => self.decide(Event::Yielded(key, epoch)),
            Said::CommandsDone(epoch) => self.decide(Event::CommandsDone(key, epoch)),
            Said::Released(id) => {
                if let Some(owner) = self.decider.owner().filter(|owner| *owner != key) {
                    self.tell(owner, Word::Released(id));
                }
            }
        }
    }

    pub(super) fn ended(&mut self, key: Key, id: Id) {
        self.engine = None;
        self.done.insert(id);
        let process = self.process(key);
        process.acting = None;
        process.to_settle.remove(&id);
        process.ended.insert(id);
        process.lanes.finish(wire(id));
        if !process.role.owns() {
            process.says.push_back(Said::Released(id));
        }
        self.maybe_done(key);
    }
}
