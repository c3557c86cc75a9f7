//! Time, injected: wall time, and time since boot that goes on while the machine sleeps.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// A clock. Cheap to clone; tests set one by hand.
#[derive(Clone)]
pub struct Clock(Arc<Source>);

enum Source {
    System,
    Manual {
        wall_us: AtomicI64,
        boot_us: AtomicI64,
    },
}

impl Clock {
    /// The machine's clocks.
    #[must_use]
    pub fn system() -> Self {
        Self(Arc::new(Source::System))
    }

    /// A clock that only moves when told.
    #[must_use]
    pub fn manual(wall_us: i64) -> Self {
        Self(Arc::new(Source::Manual {
            wall_us: AtomicI64::new(wall_us),
            boot_us: AtomicI64::new(0),
        }))
    }

    /// Wall time, microseconds since 1970 UTC. May jump.
    #[must_use]
    pub fn now_us(&self) -> i64 {
        match &*self.0 {
            Source::System => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |d| i64::try_from(d.as_micros()).unwrap_or(i64::MAX)),
            Source::Manual { wall_us, .. } => wall_us.load(Ordering::SeqCst),
        }
    }

    /// Wall time, seconds since 1970 UTC.
    #[must_use]
    pub fn now_s(&self) -> i64 {
        self.now_us() / 1_000_000
    }

    /// Microseconds since boot, sleep included. Never jumps.
    #[must_use]
    pub fn boot_us(&self) -> i64 {
        match &*self.0 {
            Source::System => {
                let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
                time.tv_sec * 1_000_000 + time.tv_nsec / 1000
            }
            Source::Manual { boot_us, .. } => boot_us.load(Ordering::SeqCst),
        }
    }

    /// Moves a manual clock: time passes.
    pub fn advance_us(&self, us: i64) {
        if let Source::Manual { wall_us, boot_us } = &*self.0 {
            wall_us.fetch_add(us, Ordering::SeqCst);
            boot_us.fetch_add(us, Ordering::SeqCst);
        }
    }

    /// Jumps a manual clock's wall time, without time passing.
    pub fn jump_us(&self, us: i64) {
        if let Source::Manual { wall_us, .. } = &*self.0 {
            wall_us.fetch_add(us, Ordering::SeqCst);
        }
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

/// Server time on a machine whose own clock may be wrong: the server's time at hello plus the time
/// since boot that has passed, never below the highest `issued_at` of a verified command.
#[derive(Debug)]
pub struct ServerTime {
    clock: Clock,
    /// Server time minus time since boot, microseconds; `i64::MIN`: no server has told yet.
    offset_us: AtomicI64,
    floor_us: AtomicI64,
}

impl ServerTime {
    /// Server time that nobody has told yet: the own clock, but never below `floor_us`.
    #[must_use]
    pub fn new(clock: Clock, floor_us: i64) -> Self {
        Self {
            clock,
            offset_us: AtomicI64::new(i64::MIN),
            floor_us: AtomicI64::new(floor_us),
        }
    }

    /// A server told its time.
    pub fn told(&self, server_us: i64) {
        self.offset_us
            .store(server_us - self.clock.boot_us(), Ordering::SeqCst);
    }

    /// A verified command was issued at that time, so it is at least that late. Whether the floor
    /// rose (then it is to be persisted).
    pub fn at_least(&self, us: i64) -> bool {
        self.floor_us.fetch_max(us, Ordering::SeqCst) < us
    }

    /// The server's time now.
    #[must_use]
    pub fn now_us(&self) -> i64 {
        let now = match self.offset_us.load(Ordering::SeqCst) {
            i64::MIN => self.clock.now_us(),
            offset => offset + self.clock.boot_us(),
        };
        now.max(self.floor_us.load(Ordering::SeqCst))
    }

    /// How far the own clock is ahead of the server's.
    #[must_use]
    pub fn own_clock_ahead_us(&self) -> i64 {
        match self.offset_us.load(Ordering::SeqCst) {
            i64::MIN => 0,
            offset => self.clock.now_us() - (offset + self.clock.boot_us()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_of_the_own_clock_does_not_move_server_time() {
        let clock = Clock::manual(1_000_000);
        let time = ServerTime::new(clock.clone(), 0);
        assert_eq!(time.now_us(), 1_000_000);
        time.told(50_000_000);
        clock.jump_us(-900_000);
        assert_eq!(time.now_us(), 50_000_000);
        clock.advance_us(10);
        assert_eq!(time.now_us(), 50_000_010);
        assert!(time.at_least(60_000_000));
        assert!(!time.at_least(55_000_000));
        assert_eq!(
            time.now_us(),
            60_000_000,
            "never below a verified command's time"
        );
    }
}
