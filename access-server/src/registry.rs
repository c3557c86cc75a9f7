//! Who is connected: the only owner of this fact.
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
    entries: Mutex<HashMap<HostId, Entry>>,
}

impl Registry {
    fn entries(&self) -> std::sync::MutexGuard<'_, HashMap<HostId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a newcomer in, unless an older link has to be challenged first. `displaces` is the
    /// connection that has been challenged and did not answer.
    pub fn admit(&self, host: HostId, newcomer: Entry, displaces: Option<u64>) -> Admission {
        let mut entries = self.entries();
        match entries.get(&host) {
            Some(older) if older.run != newcomer.run && Some(older.connection) != displaces => {
                Admission::Challenge(older.clone())
            }
            Some(older) if older.run == newcomer.run && older.epoch > newcomer.epoch => {
                Admission::Outdated
            }
            _ => Admission::Admitted(entries.insert(host, newcomer)),
        }
    }

    /// Removes a host, if this connection is still the one that holds it.
    pub fn remove(&self, host: HostId, connection: u64) -> bool {
        let mut entries = self.entries();
        let holds = entries
            .get(&host)
            .is_some_and(|entry| entry.connection == connection);
        let holds = holds || planted::is(Defect::LateCloseRemovesNewer);
        if holds {
            entries.remove(&host);
        }
        holds
    }

    /// The host's present link.
    pub fn get(&self, host: HostId) -> Option<Entry> {
        self.entries().get(&host).cloned()
    }

    /// Whether this connection holds the host.
    pub fn holds(&self, host: HostId, connection: u64) -> bool {
        if planted::is(Defect::LateCloseRemovesNewer) {
            return true;
        }
        self.entries()
            .get(&host)
            .is_some_and(|entry| entry.connection == connection)
    }

    /// All connected hosts.
    pub fn hosts(&self) -> Vec<(HostId, Entry)> {
        self.entries()
            .iter()
            .map(|(host, entry)| (*host, entry.clone()))
            .collect()
    }

    /// How many are connected.
    pub fn len(&self) -> usize {
        self.entries().len()
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

    proptest! {
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
