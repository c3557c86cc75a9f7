//! What has to be true in every state of the model, and in every end.

use std::collections::BTreeSet;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use super::super::decide::Phase;
use super::super::role::Role;
use super::world::{Id, World, wire};

impl World {
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
