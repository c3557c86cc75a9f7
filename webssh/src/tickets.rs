//! That a ticket is spent once: the nonces of those that were, for as long as they would be good.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use fairlead_identity::ticket::NONCE_BYTES;

/// Tickets that are remembered. Each needed an API token with the permission; beyond that nothing is
/// opened until the oldest are over, seconds later.
const SPENT_MAX: usize = 65_536;

/// Tickets that were used and could still be taken for good.
#[derive(Debug, Default)]
pub struct Spent(Mutex<HashMap<[u8; NONCE_BYTES], i64>>);

impl Spent {
    /// Spends a ticket; `false` when it was spent before, or when too many are remembered.
    pub fn spend(&self, nonce: [u8; NONCE_BYTES], not_after_us: i64, now_us: i64) -> bool {
        let mut spent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if spent.len() >= SPENT_MAX {
            spent.retain(|_, until_us| *until_us >= now_us);
        }
        if spent.len() >= SPENT_MAX || spent.contains_key(&nonce) {
            return false;
        }
        spent.insert(nonce, not_after_us);
        true
    }

    /// All that are remembered.
    pub fn all(&self) -> Vec<([u8; NONCE_BYTES], i64)> {
        let spent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        spent
            .iter()
            .map(|(nonce, until)| (*nonce, *until))
            .collect()
    }

    /// Forgets those whose time is over anyway.
    pub fn tidy(&self, now_us: i64) {
        let mut spent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        spent.retain(|_, until_us| *until_us >= now_us);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn s02_each_ticket_is_spent_once(uses in prop::collection::vec((0u8..8, 0i64..50), 1..60)) {
            let spent = Spent::default();
            let mut seen = std::collections::HashSet::new();
            let mut now = 0;
            for (nonce, step) in uses {
                now += step;
                // Good until long after: forgetting must not bring one back.
                let taken = spent.spend([nonce; 16], 1_000_000, now);
                prop_assert_eq!(taken, seen.insert(nonce));
                spent.tidy(now);
            }
        }
    }

    #[test]
    fn the_memory_is_bounded_and_time_frees_it() {
        let spent = Spent::default();
        for n in 0..SPENT_MAX as u128 {
            assert!(spent.spend(n.to_be_bytes(), 10, 0));
        }
        assert!(!spent.spend(u128::MAX.to_be_bytes(), 10, 5), "full: no");
        assert!(spent.spend(u128::MAX.to_be_bytes(), 30, 11));
    }
}
