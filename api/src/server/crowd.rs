//! How many connections of one address wait: without a request in progress at a server, or for whom they
//! are meant at a shared port.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fairlead_protocol::origin::Origin;

/// Waiting connections by address.
#[derive(Debug)]
pub struct Crowd {
    max: isize,
    /// Places for all addresses together, where they share a number of places.
    places: isize,
    idle: Mutex<Idle>,
}

#[derive(Debug, Default)]
struct Idle {
    /// Below zero for a moment, where a request begins while the one before is just ending.
    of: HashMap<Origin, isize>,
    together: isize,
}

impl Crowd {
    /// A crowd with at most so many of one address.
    #[must_use]
    pub fn new(max: usize) -> Arc<Self> {
        Self::sharing(usize::MAX, max)
    }

    /// A crowd with at most so many of one address, which shares that many places: no address ever takes
    /// more than half of those that are free, so however few addresses crowd in, one that is not there yet
    /// finds a place.
    #[must_use]
    pub fn sharing(places: usize, max: usize) -> Arc<Self> {
        Arc::new(Self {
            max: isize::try_from(max).unwrap_or(isize::MAX),
            places: isize::try_from(places).unwrap_or(isize::MAX),
            idle: Mutex::default(),
        })
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a new connection as idle; `None` when its address has too many of those.
    pub fn enter(self: &Arc<Self>, from: IpAddr) -> Option<Place> {
        let origin = Origin::from(from);
        let mut all = self.idle();
        let share = ((self.places - all.together) / 2).max(1).min(self.max);
        let idle = all.of.entry(origin).or_default();
        if *idle >= share {
            return None;
        }
        *idle += 1;
        all.together += 1;
        Some(Place {
            crowd: Arc::clone(self),
            origin,
        })
    }
}

/// One connection's, until it is dropped.
#[derive(Debug)]
pub struct Place {
    crowd: Arc<Crowd>,
    origin: Origin,
}

impl Place {
    /// It is busy now.
    pub fn leave(&self) {
        self.count(-1);
    }

    fn count(&self, more: isize) {
        let mut all = self.crowd.idle();
        let idle = all.of.entry(self.origin).or_default();
        *idle += more;
        if *idle == 0 {
            all.of.remove(&self.origin);
        }
        all.together += more;
    }

    /// It is idle again: it was there before, so it stays, however many there are.
    pub fn come_back(&self) {
        self.count(1);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const THERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    #[test]
    fn only_the_idle_of_one_address_are_counted() {
        let crowd = Crowd::new(2);
        let one = crowd.enter(HERE).unwrap();
        let two = crowd.enter(HERE).unwrap();
        assert!(crowd.enter(HERE).is_none());
        assert!(crowd.enter(THERE).is_some());
        one.leave();
        let three = crowd.enter(HERE).unwrap();
        one.come_back();
        assert!(crowd.enter(HERE).is_none());
        drop((one, two, three));
        assert!(crowd.idle().of.is_empty());
        assert_eq!(crowd.idle().together, 0);
    }

    #[test]
    fn eight_addresses_do_not_fill_what_all_share() {
        let crowd = Crowd::sharing(4096, 512);
        let mut here = Vec::new();
        // One after the other, and then again: what the first left is not for it to take.
        for _ in 0..2 {
            for address in 1..=8 {
                let from = std::net::Ipv4Addr::new(192, 0, 2, address).into();
                here.extend(std::iter::from_fn(|| crowd.enter(from)));
            }
        }
        assert!(here.len() < 4096 - 64, "{}", here.len());
        // Hundreds of newcomers, each of an address of its own.
        for address in 0..60 {
            let from = std::net::Ipv4Addr::new(198, 51, 100, address).into();
            here.push(crowd.enter(from).expect("a place"));
        }
        drop(here);
        assert_eq!(crowd.idle().together, 0);
        // And alone an address has its whole share.
        let alone: Vec<_> = std::iter::from_fn(|| crowd.enter(HERE)).collect();
        assert_eq!(alone.len(), 512);
    }
}
