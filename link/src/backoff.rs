//! When to dial again: exponential, full jitter, a cap, and the server's wish above all.

use std::time::Duration;

/// First ceiling.
const FIRST: Duration = Duration::from_millis(250);
/// Highest ceiling while somebody is there who does not take us.
const CAP: Duration = Duration::from_secs(60);
/// Failures that count where nobody is there, or where the connection was good before it broke: the
/// ceiling is 4 s then. Who is not there is not hurt by being asked, and a line that comes back, or comes
/// and goes, is to be used at once.
const SOON_FAILURES_MAX: u32 = 4;

/// What the attempt before came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Last {
    /// Nobody answered.
    NobodyThere,
    /// Somebody answered and did not take us, or took too long.
    NotTaken,
    /// We were taken, and it ended later.
    Taken,
}

/// Waiting times between attempts. The random source is passed in so that tests can fix it.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The next wait. `random` is anything between 0 and 1; the wait is that share of a ceiling
    /// that doubles with each failure. A server's `retry_after` is a floor, with jitter on top.
    pub fn next_wait(
        &mut self,
        last: Last,
        random: f64,
        retry_after: Option<Duration>,
    ) -> Duration {
        if last != Last::NotTaken {
            self.failures = self.failures.min(SOON_FAILURES_MAX);
        }
        let ceiling = CAP.min(FIRST.saturating_mul(1 << self.failures.min(16)));
        self.failures = self.failures.saturating_add(1);
        let jitter = ceiling.mul_f64(random.clamp(0.0, 1.0));
        retry_after.unwrap_or_default() + jitter
    }

    /// The connection was good: begin again with short waits.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

/// A random number between 0 and 1 for [`Backoff::next_wait`].
#[must_use]
pub fn random_share() -> f64 {
    let number = u32::from_le_bytes(fairlead_identity::random::bytes());
    f64::from(number) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_cap_and_the_server_is_obeyed() {
        let mut backoff = Backoff::default();
        let mut wait = |random, wish| backoff.next_wait(Last::NotTaken, random, wish);
        let waits: Vec<_> = (0..12).map(|_| wait(1.0, None)).collect();
        assert_eq!(waits[0], FIRST);
        assert_eq!(waits[1], FIRST * 2);
        assert_eq!(*waits.last().unwrap(), CAP);
        assert_eq!(
            wait(0.0, None),
            Duration::ZERO,
            "full jitter reaches to zero"
        );
        let wished = Duration::from_secs(7);
        assert!(wait(0.5, Some(wished)) >= wished);
        backoff.reset();
        assert_eq!(backoff.next_wait(Last::NotTaken, 1.0, None), FIRST);
    }

    #[test]
    fn who_is_not_there_or_breaks_off_is_asked_again_within_seconds() {
        for last in [Last::NobodyThere, Last::Taken] {
            let mut backoff = Backoff::default();
            let waits: Vec<_> = (0..100)
                .map(|_| backoff.next_wait(last, 1.0, None))
                .collect();
            assert_eq!(waits[0], FIRST);
            assert_eq!(*waits.iter().max().unwrap(), Duration::from_secs(4));
            // When many come back at once and do not get through, they spread from there.
            backoff.next_wait(Last::NotTaken, 1.0, None);
            let next = backoff.next_wait(Last::NotTaken, 1.0, None);
            assert_eq!(next, Duration::from_secs(16));
            assert_eq!(backoff.next_wait(last, 1.0, None), Duration::from_secs(4));
        }
    }
}
