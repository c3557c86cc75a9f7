//! How much one agent may say: the rate at which its link is heard, what of it may cost disk, and how often
//! it may come. Pure: no sockets, no tasks.
//!
//! An honest agent never notices. One that floods is heard at its rate, and TCP makes it wait; the loop
//! of its link goes on meanwhile, and nobody else's is touched.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use fairlead_protocol::HostId;
use tokio::time::Instant;

/// Messages and signs of life that are heard of one agent per second, in the long run. Each is 8 KiB at
/// most, and a command takes five or so.
const PER_SECOND: f64 = 1_000.0;
/// At once: an inventory of 5,000 containers takes some hundreds.
const AT_ONCE: f64 = 4_000.0;
/// A link that has used its allowance up is not heard for so long.
const PAUSE: Duration = Duration::from_millis(200);

/// What is recorded of one host within [`WINDOW`], in results. Whoever asks a host a hundred things a second must
/// not be made to wait by this.
const RECORDED_MAX: u32 = 4_000;
/// What a result counts.
pub(super) const RESULT: u32 = 1;
/// What an event counts: nobody has asked for it, and it is kept longer. A restart makes five.
pub(super) const EVENT: u32 = 4;
/// What these may weigh: the body of a result is 256 KiB at most.
const RECORDED_BYTES_MAX: usize = 16 << 20;
/// See [`RECORDED_MAX`].
const WINDOW: Duration = Duration::from_secs(10);
/// A renewal costs a signature and a row at the centre, and is due every other day.
const RENEWALS_MAX: u32 = 10;

/// Links of one host within [`COMINGS_WINDOW`]. Each is two events. A line that breaks each second makes
/// a third of that.
const COMINGS_MAX: u32 = 60;
/// See [`COMINGS_MAX`].
const COMINGS_WINDOW: Duration = Duration::from_secs(60);

/// What is left of one link's.
#[derive(Debug)]
pub(super) struct Allowance {
    /// Messages that may be heard; at `at`.
    left: f32,
    recorded: u32,
    recorded_bytes: u32,
    renewals: u32,
    /// It has been slowed down on this link.
    pub(super) slowed: bool,
    at: Instant,
    window: Instant,
}

impl Allowance {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            left: AT_ONCE as f32,
            recorded: 0,
            recorded_bytes: 0,
            renewals: 0,
            slowed: false,
            at: now,
            window: now,
        }
    }

    /// Something was heard; how long nothing more shall be, if it was too much.
    pub(super) fn heard(&mut self, now: Instant) -> Option<Duration> {
        let gained = now.duration_since(self.at).as_secs_f64() * PER_SECOND;
        self.left = (f64::from(self.left) + gained).min(AT_ONCE) as f32 - 1.0;
        self.at = now;
        (self.left < 0.0).then_some(PAUSE)
    }

    /// Whether so much more may cost disk, here and at the centre. What may not is not acknowledged: the
    /// agent keeps it and says it again.
    pub(super) fn may_record(&mut self, counts: u32, bytes: usize, now: Instant) -> bool {
        self.begin_window(now);
        self.recorded = self.recorded.saturating_add(counts);
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let together = self.recorded_bytes.saturating_add(bytes);
        if self.recorded > RECORDED_MAX || together as usize > RECORDED_BYTES_MAX {
            return false;
        }
        self.recorded_bytes = together;
        true
    }

    /// Whether it may renew its certificate once more.
    pub(super) fn may_renew(&mut self, now: Instant) -> bool {
        self.begin_window(now);
        self.renewals = self.renewals.saturating_add(1);
        self.renewals <= RENEWALS_MAX
    }

    fn begin_window(&mut self, now: Instant) {
        if now.duration_since(self.window) >= WINDOW {
            self.window = now;
            self.recorded = 0;
            self.recorded_bytes = 0;
            self.renewals = 0;
        }
    }
}

/// How often hosts have come lately.
#[derive(Debug, Default)]
pub struct Comings {
    lately: Mutex<HashMap<HostId, (Instant, u32)>>,
}

/// What is to be done about a host that comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coming {
    /// It may.
    Welcome,
    /// It comes too often, and that is news.
    TooOften,
    /// The same once more.
    StillTooOften,
}

impl Comings {
    pub(super) fn comes(&self, host: HostId, now: Instant) -> Coming {
        let mut lately = self.lately.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, count) = lately.entry(host).or_insert((now, 0));
        if now.duration_since(*since) >= COMINGS_WINDOW {
            (*since, *count) = (now, 0);
        }
        *count = count.saturating_add(1);
        match *count {
            ..=COMINGS_MAX => Coming::Welcome,
            count if count == COMINGS_MAX + 1 => Coming::TooOften,
            _ => Coming::StillTooOften,
        }
    }

    /// Forgets those that stay: to be called now and then.
    pub fn tidy(&self, now: Instant) {
        let mut lately = self.lately.lock().unwrap_or_else(PoisonError::into_inner);
        lately.retain(|_, (since, _)| now.duration_since(*since) < COMINGS_WINDOW);
        lately.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: HostId = HostId::from_bytes([1; 16]);

    #[test]
    fn a_flood_is_heard_at_its_rate_and_an_inventory_at_once() {
        let began = Instant::now();
        let mut allowance = Allowance::new(began);
        let mut now = began;
        let mut heard = 0;
        while now < began + Duration::from_secs(10) {
            heard += 1;
            if let Some(pause) = allowance.heard(now) {
                now += pause;
            }
        }
        assert!((13_500..14_500).contains(&heard), "{heard}");
        // Once it is quiet it may say much again.
        now += Duration::from_secs(4);
        assert!((0..3_900).all(|_| allowance.heard(now).is_none()));
    }

    #[test]
    fn what_costs_disk_is_bounded_by_number_and_by_weight() {
        let now = Instant::now();
        let mut allowance = Allowance::new(now);
        let few = (0..5_000)
            .filter(|_| allowance.may_record(RESULT, 100, now))
            .count();
        assert_eq!(few, RECORDED_MAX as usize);
        let now = now + WINDOW;
        let events = (0..5_000)
            .filter(|_| allowance.may_record(EVENT, 100, now))
            .count();
        assert_eq!(events, (RECORDED_MAX / EVENT) as usize);
        let later = now + WINDOW;
        let heavy = (0..500)
            .filter(|_| allowance.may_record(RESULT, 256 * 1024, later))
            .count();
        assert_eq!(heavy, 64);
        assert!(allowance.may_record(RESULT, 256 * 1024, later + WINDOW));
        let renewed = (0..50).filter(|_| allowance.may_renew(later)).count();
        assert!(renewed <= RENEWALS_MAX as usize, "{renewed}");
    }

    #[test]
    fn who_comes_too_often_is_told_apart_and_forgotten_later() {
        let (comings, now) = (Comings::default(), Instant::now());
        for _ in 0..COMINGS_MAX {
            assert_eq!(comings.comes(HOST, now), Coming::Welcome);
        }
        assert_eq!(comings.comes(HOST, now), Coming::TooOften);
        assert_eq!(comings.comes(HOST, now), Coming::StillTooOften);
        let other = HostId::from_bytes([2; 16]);
        assert_eq!(comings.comes(other, now), Coming::Welcome);
        let later = now + COMINGS_WINDOW;
        comings.tidy(later);
        assert!(comings.lately.lock().unwrap().is_empty());
        assert_eq!(comings.comes(HOST, later), Coming::Welcome);
    }
}
