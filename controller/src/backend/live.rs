//! Which API tokens have something open, so that revoking one closes it at once.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

#[derive(Debug, Default)]
struct Inner {
    tokens: HashMap<String, (CancellationToken, i64)>,
    /// Revoked while this process ran: a request that read the token just before its revocation
    /// and registers just after it must not slip through.
    ended: HashSet<String>,
    used: HashMap<String, i64>,
}

/// Tokens in use. Entries are made for good tokens only, so strangers cannot grow it.
#[derive(Debug, Default)]
pub struct Live {
    inner: Mutex<Inner>,
}

impl Live {
    /// Nothing open.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What fires when that token is revoked or its time is over (`expires_us`, 0: never); fired
    /// already when it was revoked.
    #[must_use]
    pub fn of(&self, token_id: &str, expires_us: i64) -> CancellationToken {
        let mut inner = self.lock();
        if inner.ended.contains(token_id) {
            let fired = CancellationToken::new();
            fired.cancel();
            return fired;
        }
        if let Some((token, _)) = inner.tokens.get(token_id) {
            return token.clone();
        }
        let token = CancellationToken::new();
        inner
            .tokens
            .insert(token_id.to_owned(), (token.clone(), expires_us));
        token
    }

    /// The token is revoked: closes all that is open with it, now and later.
    pub fn end(&self, token_id: &str) {
        let mut inner = self.lock();
        inner.ended.insert(token_id.to_owned());
        inner.used.remove(token_id);
        if let Some((token, _)) = inner.tokens.remove(token_id) {
            token.cancel();
        }
    }

    /// Closes what is open with tokens whose time is over.
    pub fn end_expired(&self, now_us: i64) {
        self.lock().tokens.retain(|_, (token, expires_us)| {
            let is_over = *expires_us != 0 && *expires_us <= now_us;
            if is_over {
                token.cancel();
            }
            !is_over
        });
    }

    /// The token was used; written down later by [`Live::take_used`]'s caller.
    pub fn used(&self, token_id: &str, at_us: i64) {
        let mut inner = self.lock();
        match inner.used.get_mut(token_id) {
            Some(at) => *at = at_us,
            None => {
                inner.used.insert(token_id.to_owned(), at_us);
            }
        }
    }

    /// Tokens used since this was last called, and when.
    #[must_use]
    pub fn take_used(&self) -> Vec<(String, i64)> {
        std::mem::take(&mut self.lock().used).into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revoking_fires_what_is_open_and_what_registers_too_late() {
        let live = Live::new();
        let open = live.of("a", 0);
        let other = live.of("b", 50);
        live.end("a");
        assert!(open.is_cancelled());
        assert!(live.of("a", 0).is_cancelled());
        live.end_expired(49);
        assert!(!other.is_cancelled());
        live.end_expired(50);
        assert!(other.is_cancelled());
    }
}
