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
    /// Below zero for a moment, where a request begins while the one before is just ending.
    idle: Mutex<HashMap<Origin, isize>>,
}

impl Crowd {
    /// A crowd with at most so many of one address.
    #[must_use]
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self {
            max: isize::try_from(max).unwrap_or(isize::MAX),
            idle: Mutex::default(),
        })
    }

    fn idle(&self) -> MutexGuard<'_, HashMap<Origin, isize>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a new connection as idle; `None` when its address has too many of those.
    pub fn enter(self: &Arc<Self>, from: IpAddr) -> Option<Place> {
        let origin = Origin::from(from);
        let mut all = self.idle();
        let idle = all.entry(origin).or_default();
        if *idle >= self.max {
            return None;
        }
        *idle += 1;
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
        let idle = all.entry(self.origin).or_default();
        *idle += more;
        if *idle == 0 {
            all.remove(&self.origin);
        }
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
        assert!(crowd.idle().is_empty());
    }
}
