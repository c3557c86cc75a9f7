//! Who is connected: the only owner of this fact.
//!
//! A host has one link that owns it: commands go there. While its agent is upgraded, or finishes what it had
//! begun before, there are links *beside* it, of other instances of the same supervisor: they answer for
//! what they have, and get nothing new. Which instance owns the host its supervisor decides; here the
//! higher epoch counts.
//!
//! An entry is fenced by the connection's number: whoever removes or answers quotes it, so the late
//! end of an old connection can never remove a newer one. Pure: no sockets, no clocks; the link tasks
//! act on what it decides.

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use fairlead_planted::{self as planted, Defect};
use fairlead_protocol::{HostId, InstanceId, RunId};
use tokio_util::sync::CancellationToken;

use crate::router::queue::ToLink;

/// A link that has said hello.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Fences everything that this connection says.
    pub connection: u64,
    /// The agent's start.
    pub instance: InstanceId,
    /// Its supervisor's start.
    pub run: RunId,
    /// Its term of ownership.
    pub epoch: u64,
    /// Its certificate's serial.
    pub serial: String,
    /// To its link task.
    pub to_host: ToLink,
    /// Set when that queue had no room for a command: the ledger is to be read again.
    pub lagging: Arc<AtomicBool>,
    /// Ends the link even when it is stuck.
    pub end: CancellationToken,
}

/// Links beside the owner's that a host may have: one that is to take over, or to return, and two that only
/// see streams to their end.
const BESIDE_MAX: usize = 4;

/// The links of a host.
#[derive(Debug, Default)]
struct Links {
    owner: Option<Entry>,
    /// Oldest first.
    beside: Vec<Entry>,
}

impl Links {
    fn all(&self) -> impl Iterator<Item = &Entry> {
        self.owner.iter().chain(&self.beside)
    }
}

/// What is to be done about a newcomer.
#[derive(Debug)]
pub enum Admission {
    /// It is in; the older link (if any) is to be told that it was displaced.
    Admitted(Option<Entry>),
    /// Another supervisor's agent holds the host: challenge it first.
    Challenge(Entry),
    /// A younger instance of the same supervisor is there already.
    Outdated,
}

/// All connected hosts.
#[derive(Debug, Default)]
pub struct Registry {
    hosts: Mutex<HashMap<HostId, Links>>,
}

impl Registry {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<HostId, Links>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a newcomer in, unless an older link has to be challenged first. `displaces` is the
    /// connection that has been challenged and did not answer.
    pub fn admit(&self, host: HostId, newcomer: Entry, displaces: Option<u64>) -> Admission {
        let mut hosts = self.lock();
        let owner = hosts.get(&host).and_then(|links| links.owner.as_ref());
        match owner {
            Some(older) if older.run != newcomer.run && Some(older.connection) != displaces => {
                Admission::Challenge(older.clone())
            }
            Some(older) if older.run == newcomer.run && older.epoch > newcomer.epoch => {
                Admission::Outdated
            }
            _ => {
                let links = hosts.entry(host).or_default();
                Admission::Admitted(links.owner.replace(newcomer))
            }
        }
    }

    /// Takes a link in beside the owner's; it must be of the same supervisor. An older link of the same
    /// instance, or one too many, is to be told that its time is over.
    pub fn admit_beside(&self, host: HostId, newcomer: Entry) -> Admission {
        let mut hosts = self.lock();
        let links = hosts.entry(host).or_default();
        let stranger = links.all().find(|other| other.run != newcomer.run);
        if let Some(older) = stranger {
            return Admission::Challenge(older.clone());
        }
        let same = |entry: &Entry| entry.instance == newcomer.instance;
        let gone = match links.beside.iter().position(same) {
            Some(at) => Some(links.beside.remove(at)),
            None if links.beside.len() >= BESIDE_MAX => Some(links.beside.remove(0)),
            None => links.owner.take_if(|owner| same(owner)),
        };
        links.beside.push(newcomer);
        Admission::Admitted(gone)
    }

    /// The instance behind this link owns the host from now on, if nobody there has a higher epoch; the
    /// link that owned it stays beside. Whether it is the owner now.
    pub fn own(&self, host: HostId, connection: u64, epoch: u64) -> bool {
        let mut hosts = self.lock();
        let Some(links) = hosts.get_mut(&host) else {
            return false;
        };
        if links
            .owner
            .as_ref()
            .is_some_and(|owner| owner.epoch > epoch)
        {
            return false;
        }
        if let Some(owner) = links.owner.as_mut().filter(|o| o.connection == connection) {
            owner.epoch = epoch;
            return true;
        }
        let found = links.beside.iter().position(|b| b.connection == connection);
        let Some(at) = found else {
            return false;
        };
        let mut new = links.beside.remove(at);
        new.epoch = epoch;
        links.beside.extend(links.owner.replace(new));
        true
    }

    /// Removes a link; whether it was the one that owned the host.
    pub fn remove(&self, host: HostId, connection: u64) -> bool {
        let mut hosts = self.lock();
        let Some(links) = hosts.get_mut(&host) else {
            return false;
        };
        let is_it = |entry: &Entry| {
            entry.connection == connection || planted::is(Defect::LateCloseRemovesNewer)
        };
        let held = links.owner.take_if(|owner| is_it(owner)).is_some();
        links.beside.retain(|entry| !is_it(entry));
        if links.owner.is_none() && links.beside.is_empty() {
            hosts.remove(&host);
        }
        held
    }

    /// The link that owns the host.
    pub fn get(&self, host: HostId) -> Option<Entry> {
        self.lock().get(&host)?.owner.clone()
    }

    /// Whether this connection holds the host.
    pub fn holds(&self, host: HostId, connection: u64) -> bool {
        if planted::is(Defect::LateCloseRemovesNewer) {
            return true;
        }
        let hosts = self.lock();
        let owner = hosts.get(&host).and_then(|links| links.owner.as_ref());
        owner.is_some_and(|entry| entry.connection == connection)
    }

    /// Whether this connection is there, holding the host or beside the one that does.
    pub fn knows(&self, host: HostId, connection: u64) -> bool {
        if planted::is(Defect::LateCloseRemovesNewer) {
            return true;
        }
        let hosts = self.lock();
        let mut all = hosts.get(&host).into_iter().flat_map(Links::all);
        all.any(|entry| entry.connection == connection)
    }

    /// Whether an instance of that supervisor is there.
    pub fn knows_run(&self, host: HostId, run: RunId) -> bool {
        let hosts = self.lock();
        let mut all = hosts.get(&host).into_iter().flat_map(Links::all);
        all.any(|entry| entry.run == run)
    }

    /// The links of all hosts, those beside the owners' too.
    pub fn links(&self) -> Vec<(HostId, Entry)> {
        let hosts = self.lock();
        hosts
            .iter()
            .flat_map(|(host, links)| links.all().map(|entry| (*host, entry.clone())))
            .collect()
    }

    /// How many hosts have a link of any kind; costs nothing, unlike [`Self::len`].
    pub fn taken(&self) -> usize {
        self.lock().len()
    }

    /// How many hosts are connected.
    pub fn len(&self) -> usize {
        let hosts = self.lock();
        hosts.values().filter(|links| links.owner.is_some()).count()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn host() -> HostId {
        HostId::from_bytes([1; 16])
    }

    fn entry(connection: u64, run: u8, epoch: u64) -> Entry {
        Entry {
            connection,
            instance: InstanceId::from_bytes([2; 16]),
            run: RunId::from_bytes([run; 16]),
            epoch,
            serial: String::new(),
            to_host: crate::router::queue::pair().0,
            lagging: Arc::default(),
            end: CancellationToken::new(),
        }
    }

    #[test]
    fn the_late_end_of_an_old_connection_removes_nothing() {
        let registry = Registry::default();
        assert!(matches!(
            registry.admit(host(), entry(1, 1, 1), None),
            Admission::Admitted(None)
        ));
        let Admission::Admitted(Some(older)) = registry.admit(host(), entry(2, 1, 1), None) else {
            panic!("a reconnect of the same supervisor displaces the old link");
        };
        assert_eq!(older.connection, 1);
        assert!(!registry.remove(host(), 1));
        assert_eq!(registry.get(host()).unwrap().connection, 2);
        assert!(registry.remove(host(), 2));
    }

    #[test]
    fn another_supervisor_must_wait_until_the_older_link_was_challenged() {
        let registry = Registry::default();
        registry.admit(host(), entry(1, 1, 5), None);
        assert!(matches!(
            registry.admit(host(), entry(2, 2, 9), None),
            Admission::Challenge(_)
        ));
        assert!(registry.holds(host(), 1));
        assert!(matches!(
            registry.admit(host(), entry(2, 2, 1), Some(1)),
            Admission::Admitted(_)
        ));
        assert!(registry.holds(host(), 2));
    }

    #[test]
    fn an_older_instance_does_not_displace_a_younger_one() {
        let registry = Registry::default();
        registry.admit(host(), entry(1, 1, 5), None);
        assert!(matches!(
            registry.admit(host(), entry(2, 1, 4), None),
            Admission::Outdated
        ));
    }

    fn beside(connection: u64, instance: u8) -> Entry {
        Entry {
            instance: InstanceId::from_bytes([instance; 16]),
            ..entry(connection, 1, 5)
        }
    }

    #[test]
    fn a_link_beside_gets_the_host_by_a_higher_epoch_only() {
        let registry = Registry::default();
        registry.admit(host(), entry(1, 1, 5), None);
        assert!(matches!(
            registry.admit_beside(host(), beside(2, 9)),
            Admission::Admitted(None)
        ));
        assert!(registry.holds(host(), 1), "beside, not instead");
        assert!(registry.knows(host(), 2));
        assert!(!registry.own(host(), 2, 4), "an older grant");
        assert!(registry.own(host(), 2, 6));
        assert!(registry.holds(host(), 2) && registry.knows(host(), 1));
        assert!(!registry.own(host(), 1, 5), "it was owner before");
        assert!(registry.own(host(), 1, 7), "it takes over again");
        assert!(!registry.remove(host(), 2), "nobody was away");
        assert!(registry.remove(host(), 1));
        assert!(!registry.knows(host(), 1));
    }

    #[test]
    fn another_supervisor_gets_no_link_beside() {
        let registry = Registry::default();
        registry.admit(host(), entry(1, 2, 5), None);
        assert!(matches!(
            registry.admit_beside(host(), beside(2, 9)),
            Admission::Challenge(_)
        ));
        assert!(!registry.knows(host(), 2));
    }

    #[test]
    fn an_instance_has_one_link() {
        let registry = Registry::default();
        registry.admit_beside(host(), beside(1, 9));
        let Admission::Admitted(Some(older)) = registry.admit_beside(host(), beside(2, 9)) else {
            panic!("the older one is over");
        };
        assert_eq!(older.connection, 1);
        assert!(!registry.knows(host(), 1));
        assert!(registry.is_empty(), "nobody owns the host");
    }

    proptest! {
        /// Whatever comes, owns and goes: one owner, and its epoch never falls while it is there.
        #[test]
        fn owners_only_go_up(steps in prop::collection::vec((0u8..3, 1u64..6, 0u64..9), 0..60)) {
            let registry = Registry::default();
            let mut last = 0;
            for (what, connection, epoch) in steps {
                match what {
                    0 => drop(registry.admit_beside(
                        host(),
                        beside(connection, u8::try_from(connection).unwrap()),
                    )),
                    1 => drop(registry.own(host(), connection, epoch)),
                    _ => drop(registry.remove(host(), connection)),
                }
                let now = registry.get(host());
                if let Some(owner) = &now {
                    prop_assert!(owner.epoch >= last);
                    prop_assert!(registry.knows(host(), owner.connection));
                }
                last = now.map_or(0, |owner| owner.epoch);
            }
        }

        /// Against a model: whatever opens and closes in whatever order, the holder is the last that
        /// was admitted and has not been removed by its own number.
        #[test]
        fn the_holder_is_the_last_admitted(steps in prop::collection::vec((any::<bool>(), 0u64..8), 0..60)) {
            let registry = Registry::default();
            let mut model: Option<u64> = None;
            let mut next = 100;
            for (open, target) in steps {
                if open {
                    next += 1;
                    registry.admit(host(), entry(next, 1, 1), None);
                    model = Some(next);
                } else {
                    let connection = 100 + target;
                    let removed = registry.remove(host(), connection);
                    prop_assert_eq!(removed, model == Some(connection));
                    if removed {
                        model = None;
                    }
                }
                prop_assert_eq!(registry.get(host()).map(|entry| entry.connection), model);
            }
        }
    }
}
