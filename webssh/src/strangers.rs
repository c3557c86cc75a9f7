//! Sockets that have not shown a ticket yet: few at a time, and of one address fewer still, so that whoever
//! opens many and says nothing takes no place from the others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// At a time.
const STRANGERS_MAX: usize = 256;
/// Of one address, behind which may be many people.
const PER_PEER_MAX: usize = 16;

/// Those that are there, by address.
#[derive(Debug, Default)]
pub(crate) struct Strangers(Mutex<HashMap<String, usize>>);

/// A stranger's place, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    strangers: Arc<Strangers>,
    peer: String,
}

impl Strangers {
    fn there(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more; `None` when there is none.
    pub(crate) fn take(self: &Arc<Self>, peer: &str) -> Option<Place> {
        let mut there = self.there();
        let own = there.get(peer).copied().unwrap_or(0);
        if own >= PER_PEER_MAX || there.values().sum::<usize>() >= STRANGERS_MAX {
            return None;
        }
        there.insert(peer.to_owned(), own + 1);
        Some(Place {
            strangers: Arc::clone(self),
            peer: peer.to_owned(),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut there = self.strangers.there();
        if let Some(own) = there.get_mut(&self.peer) {
            *own -= 1;
            if *own == 0 {
                there.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_takes_no_place_from_others_and_places_come_back() {
        let strangers = Arc::new(Strangers::default());
        let mut held: Vec<Place> = (0..PER_PEER_MAX)
            .map(|_| strangers.take("192.0.2.1").unwrap())
            .collect();
        assert!(strangers.take("192.0.2.1").is_none());
        for n in 0..STRANGERS_MAX - PER_PEER_MAX {
            held.push(strangers.take(&format!("2001:db8::{n:x}")).unwrap());
        }
        assert!(strangers.take("192.0.2.2").is_none(), "all together");
        held.clear();
        assert!(strangers.take("192.0.2.1").is_some());
        assert!(strangers.there().is_empty());
    }
}
