//! When this server ends in order: how soon its hosts come back, and how far apart. Pure.

use std::time::Duration;

/// Hosts that are greeted in a second on two processors. What they are told spreads them no faster than this.
const GREETED_IN_A_SECOND: u32 = 3_000;
/// Nobody comes back before: so long a process takes to end and to begin.
const AFTER_MS: u32 = 200;
/// A few hosts need no more.
const SPREAD_MS_MIN: u32 = 500;
/// Nobody is sent away for longer.
const SPREAD_MS_MAX: u32 = 120_000;
/// What ending, starting, and dialling once more in vain may take beside.
const SLACK_MS: u32 = 20_000;
/// How long the links have to hear it. A host that takes nothing notices its closed connection.
pub const HEARD_WITHIN: Duration = Duration::from_secs(5);

/// What hosts are told, and the centre with them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Departure {
    /// Not before.
    pub after_ms: u32,
    /// Each as much later as it finds for itself, up to this.
    pub spread_ms: u32,
}

impl Departure {
    /// For so many hosts.
    #[must_use]
    pub fn of(hosts: usize) -> Self {
        let hosts = u32::try_from(hosts).unwrap_or(u32::MAX);
        let spread_ms = hosts.saturating_mul(1_000) / GREETED_IN_A_SECOND;
        Self {
            after_ms: AFTER_MS,
            spread_ms: spread_ms.clamp(SPREAD_MS_MIN, SPREAD_MS_MAX),
        }
    }

    /// By when all of them are back.
    #[must_use]
    pub fn back_within_ms(self) -> u32 {
        self.after_ms + self.spread_ms + SLACK_MS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_hosts_are_spread_and_few_are_back_at_once() {
        let spread = |hosts| Departure::of(hosts).spread_ms;
        assert_eq!(spread(0), SPREAD_MS_MIN);
        assert_eq!(spread(10), SPREAD_MS_MIN);
        assert_eq!(spread(45_000), 15_000);
        assert_eq!(spread(usize::MAX), SPREAD_MS_MAX);
        assert!(Departure::of(usize::MAX).back_within_ms() < 5 * 60 * 1_000);
    }
}
