//! The world of the model: processes, links, an engine and a server, between which everything may happen.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{Hash, Hasher};
use std::time::Duration;

use fairlead_protocol::CommandId;
use fairlead_protocol::command::Lane;

use super::super::decide::{Action, Decider, Event, Key, Phase, Times, Versions};
use super::super::role::Role;
use crate::executor::lanes::{Lanes, Manner};

type Id = u8;

fn wire(id: Id) -> CommandId {
    CommandId::from_bytes([id; 16])
}

#[derive(Debug, Clone, Hash)]
enum Word {
    Yield(u64),
    Grant(u64, Option<Key>),
    Gone(Key),
    Released(Id),
}

#[derive(Debug, Clone, Hash)]
enum Said {
    Proved,
    Yielded(u64),
    CommandsDone(u64),
    Released(Id),
}

#[derive(Debug, Clone)]
struct Process {
    /// Who it is to its link; the executor's role follows, once it is known what another has under way.
    standing: Role,
    role: Role,
    /// The grant that the executor has not heard of.
    pending: Option<(u64, Option<Key>)>,
    /// It is on its way to the server that this instance is the owner.
    owns_said: bool,
    frozen: bool,
    lanes: Lanes,
    acting: Option<Id>,
    /// What it knows to have ended.
    ended: BTreeSet<Id>,
    to_settle: BTreeSet<Id>,
    hears: VecDeque<Word>,
    says: VecDeque<Said>,
    linked: bool,
    /// From the server, in order, each meant for an epoch.
    down: VecDeque<(Id, u64)>,
    /// What came for an epoch that the executor has not heard of.
    waiting: Vec<(Id, u64)>,
    proved: bool,
    yielded_to: u64,
    done_said: bool,
}

#[derive(Debug, Clone)]
pub(super) struct World {
    /// How it came to this, for failures.
    trail: Vec<Step>,
    now: Duration,
    decider: Decider,
    processes: BTreeMap<Key, Process>,
    /// What an instance that yielded wrote for the next: what it has under way.
    shares: BTreeMap<Key, BTreeSet<Id>>,
    /// Deaths that the supervisor has not noticed.
    dead: BTreeSet<Key>,
    /// Who has begun what: the journals.
    begun: BTreeMap<Id, Key>,
    done: BTreeSet<Id>,
    /// What the engine is at, whoever asked.
    engine: Option<Id>,
    asked: Vec<Id>,
    recorded: BTreeSet<Id>,
    routes_to: Option<(Key, u64)>,
    epoch_on_disk: u64,
    granted: u64,
    /// What may still go wrong.
    commands: u8,
    pub(super) upgrades: u8,
    crashes: u8,
    freezes: u8,
    cuts: u8,
    full_disks: u8,
    pub(super) early_ticks: u8,
}

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

impl Process {
    fn take(&mut self, id: Id, meant_for: u64) {
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

    fn decide(&mut self, event: Event) {
        let actions = self.decider.on(self.now, event);
        for action in actions {
            self.perform(action);
        }
    }

    fn spawn(&mut self, key: Key, role: Role) {
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
    fn read_journals(&self, process: &mut Process) {
        process.ended.extend(&self.done);
        for (id, by) in &self.begun {
            if !self.processes.contains_key(by) && !self.done.contains(id) {
                let place = (wire(*id), Lane::Host, Manner::Changes);
                process.lanes.accept_running(place.0, place.1, place.2);
                process.to_settle.insert(*id);
            }
        }
    }

    fn perform(&mut self, action: Action) {
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

    fn tell(&mut self, key: Key, word: Word) {
        if let Some(process) = self.processes.get_mut(&key) {
            process.hears.push_back(word);
        }
    }

    fn process(&mut self, key: Key) -> &mut Process {
        self.processes.get_mut(&key).unwrap()
    }

    fn die(&mut self, key: Key) {
        if self.processes.remove(&key).is_some() {
            self.dead.insert(key);
            self.unroute(key);
        }
    }

    fn unroute(&mut self, key: Key) {
        if self.routes_to.is_some_and(|(to, _)| to == key) {
            self.routes_to = None;
        }
    }

    /// The server sends all that is open to whoever owns the host, if the epoch is not an old one.
    fn own(&mut self, key: Key) {
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

    fn link(&mut self, key: Key) {
        self.process(key).linked = true;
        self.own(key);
    }

    fn hear(&mut self, key: Key) {
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
    fn take_over(&mut self, key: Key) {
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

    fn maybe_done(&mut self, key: Key) {
        let process = self.process(key);
        if !process.role.owns() && process.lanes.is_empty() && !process.done_said {
            process.done_said = true;
            process
                .says
                .push_back(Said::CommandsDone(process.yielded_to));
        }
    }

    fn say(&mut self, key: Key) {
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

    fn ended(&mut self, key: Key, id: Id) {
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
            Step::Begin(key) => {
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

    pub(super) fn check(&self) {
        let owners = self.processes.values().filter(|p| p.role.owns()).count();
        assert!(owners <= 1, "{owners} own the host: {:?}", self.trail);
        let acting = self.processes.values().filter(|p| p.acting.is_some());
        assert!(acting.count() <= 1, "two act on one lane: {:?}", self.trail);
    }

    /// Nothing more happens by itself.
    pub(super) fn check_end(&self) {
        let Phase::Steady { owner } = *self.decider.phase() else {
            panic!("it ends in {:?}: {:?}", self.decider.phase(), self.trail);
        };
        let process = &self.processes[&owner];
        if process.frozen {
            // A version that is not on trial may be silent: the machine may be busy.
            assert_eq!(self.decider.versions().tries_left, None);
            return;
        }
        let Role::Owner(epoch) = process.role else {
            panic!("the owner does not know it");
        };
        assert_eq!(self.routes_to, Some((owner, epoch)), "{:?}", self.trail);
        let all: BTreeSet<Id> = self.asked.iter().copied().collect();
        assert_eq!(self.done, all, "not all was carried out: {:?}", self.trail);
        assert_eq!(
            self.recorded, all,
            "the server does not know: {:?}",
            self.trail
        );
    }

    pub(super) fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.decider.hash(&mut hasher);
        (self.now, &self.shares, &self.dead, &self.begun, &self.done).hash(&mut hasher);
        (self.engine, &self.asked, &self.recorded, self.routes_to).hash(&mut hasher);
        (self.commands, self.upgrades, self.crashes, self.freezes).hash(&mut hasher);
        (self.cuts, self.full_disks, self.early_ticks).hash(&mut hasher);
        for (key, process) in &self.processes {
            (key, process.role, process.frozen, process.acting).hash(&mut hasher);
            (process.standing, process.pending, process.owns_said).hash(&mut hasher);
            (
                &process.ended,
                &process.to_settle,
                &process.hears,
                &process.says,
            )
                .hash(&mut hasher);
            (
                process.linked,
                &process.down,
                &process.waiting,
                process.proved,
                process.yielded_to,
                process.done_said,
            )
                .hash(&mut hasher);
            for id in 0..4 {
                let lanes = &process.lanes;
                let at = wire(id);
                (lanes.holds(at), lanes.is_running(at), lanes.waits_for(at)).hash(&mut hasher);
            }
        }
        hasher.finish()
    }
}
