//! Which version is started, and what becomes of one that cannot be kept running: it is tried a few times, then
//! the one before gets the host, then that one runs in safe mode.

use std::time::Duration;

use super::terms::{Action, Instance, Key, Phase, Returned, Versions};
use super::{Decider, HEALTHY_AFTER, TRIES, WAIT_FAILED, WAIT_FIRST, WAIT_MAX};

impl Decider {
    /// Nobody owns the host; somebody is started soon.
    pub(super) fn vacate(
        &mut self,
        now: Duration,
        gone: &Instance,
        how: &str,
        needs_help: bool,
        failed: bool,
    ) {
        let lived = now.saturating_sub(gone.since);
        let on_trial = self.versions.tries_left.is_some();
        let wait = if failed {
            WAIT_FAILED
        } else if needs_help && !on_trial {
            WAIT_MAX
        } else if lived > HEALTHY_AFTER {
            WAIT_FIRST
        } else {
            (self.wait * 2).min(WAIT_MAX)
        };
        if !failed {
            self.wait = wait;
        } else if let Some(left) = &mut self.versions.tries_left {
            // It was no try.
            *left += 1;
        }
        self.phase = Phase::Vacant { at: now + wait };
        self.confirming = false;
        if let (Some(0), false) = (self.versions.tries_left, failed) {
            self.fall_back(how);
        }
    }

    /// The version on trial cannot be kept running: the one before it gets the host, or, when that cannot
    /// be kept running either, it runs in safe mode.
    fn fall_back(&mut self, how: &str) {
        let why = format!(
            "it ended {} times on trial; the last time: {how}",
            TRIES + 1
        );
        match self.versions.previous.take() {
            Some(previous) => {
                let from = std::mem::replace(&mut self.versions.current, previous.clone());
                self.versions.tries_left = Some(TRIES);
                self.versions.returned = Some(Returned {
                    from,
                    to: previous,
                    why,
                });
                self.wait = WAIT_FIRST;
            }
            None => {
                self.versions.tries_left = None;
                self.versions.safe = true;
            }
        }
    }

    pub(super) fn start_owner(&mut self, now: Duration, todo: &mut Vec<Action>) {
        if let Some(left) = &mut self.versions.tries_left {
            *left = left.saturating_sub(1);
        }
        self.epoch += 1;
        let (version, epoch) = (self.versions.current.clone(), self.epoch);
        let key = self.insert(now, version.clone(), epoch);
        self.phase = Phase::Steady { owner: key };
        todo.push(Action::StartOwner {
            key,
            version,
            epoch,
        });
    }

    /// A version on trial may not be silent; one that has lived long enough is believed.
    pub(super) fn watch_trial(
        &mut self,
        now: Duration,
        owner: Key,
        silent: bool,
        todo: &mut Vec<Action>,
    ) {
        if self.versions.tries_left.is_none() && !self.versions.safe {
            return;
        }
        if silent {
            return self.kill(owner, todo);
        }
        let since = self.instances.get(&owner).map_or(now, |i| i.since);
        if now >= since + self.times.trial && !self.confirming {
            self.confirming = true;
            todo.push(Action::Commit(self.believed()));
        }
    }

    /// The versions once the current one has lived long enough. Out of safe mode it is tried anew.
    pub(super) fn believed(&self) -> Versions {
        Versions {
            tries_left: self.versions.safe.then_some(TRIES),
            safe: false,
            ..self.versions.clone()
        }
    }
}
