//! When to ask the CA: pure functions of what is known. CAs count what is asked of them by account, name and
//! hour (Let's Encrypt: 5 failed proofs of a name in an hour), and a wish that they refuse now they will most
//! likely refuse again.

use fairlead_identity::digest::sha256;
use fairlead_identity::public::Validity;
use serde::{Deserialize, Serialize};

use crate::web_status::Trouble;

/// Orders in any hour, whatever happens: restarts, other wishes, broken disks.
const HOURLY_MAX: usize = 4;
const HOUR_S: i64 = 3600;
/// After the CA said no for the first time; twice as long each time.
const REFUSED_FIRST_S: i64 = 5 * 60;
/// And at last.
const REFUSED_MAX_S: i64 = 6 * HOUR_S;
/// After a CA that was not reached: that costs it nothing.
const UNREACHED_FIRST_S: i64 = 5;
/// And at last.
const UNREACHED_MAX_S: i64 = 10 * 60;
/// Longest time that a CA may tell us to stay away; what is later is a clock that was wrong.
const WAIT_MAX_S: i64 = 8 * 24 * HOUR_S;

/// When a certificate is to be renewed: with a third of its life left, and a little earlier by a share of
/// its own, so that those of many installations do not come at once.
pub(super) fn renew_at_s(validity: Validity, leaf: &[u8]) -> i64 {
    let life_s = (validity.not_after_s - validity.not_before_s).max(0);
    let share = i64::from(sha256(leaf)[0]);
    validity.not_after_s - life_s / 3 - life_s / 24 * share / 256
}

/// What was tried; kept on disk.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Tries {
    /// What was asked for. Another wish begins anew, but for the hourly limit.
    pub(super) wish: String,
    /// Refusals in a row.
    pub(super) failures: u32,
    /// In a row, how often the CA was not even reached.
    pub(super) unreached: u32,
    /// No try before.
    pub(super) not_before_s: i64,
    /// When orders were begun lately.
    pub(super) begun_s: Vec<i64>,
    /// Why there was none the last time.
    pub(super) trouble: Option<Trouble>,
}

impl Tries {
    /// How long until one may be begun.
    pub(super) fn wait_s(&self, wish: &str, now_s: i64) -> i64 {
        let after_failure_s = if self.wish == wish {
            self.not_before_s - now_s
        } else {
            0
        };
        // Longer than we ever wait: written while the clock was wrong.
        let after_failure_s = if after_failure_s > WAIT_MAX_S {
            0
        } else {
            after_failure_s
        };
        let lately: Vec<i64> = lately(&self.begun_s, now_s);
        let for_the_hour_s = match lately.len().checked_sub(HOURLY_MAX) {
            Some(beyond) => lately
                .get(beyond)
                .map_or(0, |begun_s| begun_s + HOUR_S - now_s),
            None => 0,
        };
        after_failure_s.max(for_the_hour_s).max(0)
    }

    /// One is about to be begun. Until it has ended it counts as failed: a process that dies in it has lost
    /// no count.
    pub(super) fn begin(&mut self, wish: &str, now_s: i64, jitter: f64) {
        if self.wish != wish {
            self.wish = wish.to_owned();
            (self.failures, self.unreached) = (0, 0);
            self.trouble = None;
        }
        self.begun_s = lately(&self.begun_s, now_s);
        self.begun_s.push(now_s);
        self.failures = self.failures.saturating_add(1);
        self.not_before_s = now_s + grown(REFUSED_FIRST_S, REFUSED_MAX_S, self.failures, jitter);
    }

    /// It ended without a certificate. `ordered`: the CA has counted it.
    pub(super) fn failed(
        &mut self,
        now_s: i64,
        ordered: bool,
        retry_after_s: Option<i64>,
        jitter: f64,
    ) {
        let wait_s = if ordered {
            self.unreached = 0;
            grown(REFUSED_FIRST_S, REFUSED_MAX_S, self.failures, jitter)
        } else {
            self.begun_s.pop();
            self.failures = self.failures.saturating_sub(1);
            self.unreached = self.unreached.saturating_add(1);
            grown(UNREACHED_FIRST_S, UNREACHED_MAX_S, self.unreached, jitter)
        };
        let wait_s = wait_s.max(retry_after_s.unwrap_or(0)).min(WAIT_MAX_S);
        self.not_before_s = now_s + wait_s;
    }

    /// It ended with one.
    pub(super) fn succeeded(&mut self) {
        (self.failures, self.unreached) = (0, 0);
        self.not_before_s = 0;
        self.trouble = None;
    }

    /// We broke it off ourselves: as before, but for the hourly limit.
    pub(super) fn broken_off(&mut self, before: Self) {
        let begun_s = std::mem::take(&mut self.begun_s);
        *self = Self { begun_s, ..before };
    }
}

fn lately(begun_s: &[i64], now_s: i64) -> Vec<i64> {
    let lately = |begun_s: &&i64| (now_s - HOUR_S..=now_s).contains(*begun_s);
    begun_s.iter().filter(lately).copied().collect()
}

/// `first_s`, doubled with each failure, up to `last_s`; of that, between half and all.
fn grown(first_s: i64, last_s: i64, failures: u32, jitter: f64) -> i64 {
    let doubled = first_s.saturating_mul(1 << failures.saturating_sub(1).min(20));
    let half = doubled.min(last_s) / 2;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        reason = "a few hours in seconds"
    )]
    let more = (half as f64 * jitter.clamp(0.0, 1.0)) as i64;
    (half + more).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_S: i64 = 1_700_000_000;

    #[test]
    fn renewal_is_due_with_a_third_left_or_a_little_more() {
        let validity = Validity {
            not_before_s: 0,
            not_after_s: 90 * 24 * HOUR_S,
        };
        let due: Vec<i64> = (0u8..64)
            .map(|leaf| renew_at_s(validity, &[leaf]))
            .collect();
        let (first, last) = (due.iter().min().unwrap(), due.iter().max().unwrap());
        assert!(*last <= 60 * 24 * HOUR_S);
        assert!(*first > 56 * 24 * HOUR_S);
        assert!(last - first > 2 * 24 * HOUR_S, "spread");
        assert_eq!(renew_at_s(validity, &[1]), renew_at_s(validity, &[1]));
    }

    #[test]
    fn a_refused_wish_is_repeated_ever_more_rarely_and_another_one_at_once() {
        let mut tries = Tries::default();
        let mut now_s = NOW_S;
        let mut waits = Vec::new();
        for _ in 0..12 {
            assert_eq!(tries.wait_s("a", now_s), 0);
            tries.begin("a", now_s, 1.0);
            tries.failed(now_s, true, None, 1.0);
            waits.push(tries.wait_s("a", now_s));
            now_s += waits.last().unwrap();
        }
        assert_eq!(waits[..4], [300, 600, 1200, 2400]);
        assert_eq!(*waits.last().unwrap(), REFUSED_MAX_S);
        assert_eq!(tries.wait_s("b", now_s - 1), 0);
        tries.begin("b", now_s, 0.0);
        assert_eq!(tries.failures, 1);
        tries.failed(now_s, true, None, 0.0);
        assert_eq!(tries.wait_s("b", now_s), 150, "jitter takes half at most");
    }

    #[test]
    fn a_crash_loop_and_changing_wishes_stay_below_the_hourly_limit() {
        let mut tries = Tries::default();
        let mut begun = 0;
        for second in 0..HOUR_S {
            // The process dies in every try, and each time something else is wished.
            if tries.wait_s(&second.to_string(), NOW_S + second) == 0 {
                tries.begin(&second.to_string(), NOW_S + second, 0.5);
                begun += 1;
            }
        }
        assert_eq!(begun, HOURLY_MAX);
        assert!(tries.begun_s.len() <= HOURLY_MAX);
        assert_eq!(tries.wait_s("x", NOW_S + HOUR_S + 5), 0);
    }

    #[test]
    fn a_ca_that_was_not_reached_is_tried_soon_again_and_nothing_is_counted() {
        let mut tries = Tries::default();
        for _ in 0..3 {
            tries.begin("a", NOW_S, 1.0);
            tries.failed(NOW_S, false, None, 1.0);
        }
        assert_eq!(tries.wait_s("a", NOW_S), 20);
        assert!(tries.begun_s.is_empty());
        for _ in 0..20 {
            tries.begin("a", NOW_S, 1.0);
            tries.failed(NOW_S, false, None, 1.0);
        }
        assert_eq!(tries.wait_s("a", NOW_S), UNREACHED_MAX_S);
        // Nor does it count when the CA then refuses.
        tries.begin("a", NOW_S, 1.0);
        tries.failed(NOW_S, true, None, 1.0);
        assert_eq!(tries.wait_s("a", NOW_S), REFUSED_FIRST_S);
    }

    #[test]
    fn the_ca_may_ask_for_more_patience_and_a_wrong_clock_is_not_believed() {
        let mut tries = Tries::default();
        tries.begin("a", NOW_S, 1.0);
        tries.failed(NOW_S, true, Some(7200), 1.0);
        assert_eq!(tries.wait_s("a", NOW_S), 7200);
        // Written by a clock that was years ahead.
        assert_eq!(tries.wait_s("a", NOW_S - 400 * 24 * HOUR_S), 0);
    }

    #[test]
    fn what_we_break_off_ourselves_is_no_failure_but_counts() {
        let mut tries = Tries::default();
        let before = tries.clone();
        tries.begin("a", NOW_S, 1.0);
        tries.broken_off(before);
        assert_eq!(tries.wait_s("a", NOW_S), 0);
        assert_eq!(tries.begun_s, [NOW_S]);
    }
}
