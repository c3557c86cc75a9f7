//! What one token may have open at a time, so that one program does not take all there is.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fairlead_protocol::codes;

use crate::error::ApiError;

/// Open things by token.
#[derive(Debug)]
pub(crate) struct Shares {
    max: usize,
    open: Mutex<HashMap<String, usize>>,
}

impl Shares {
    pub(crate) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self {
            max,
            open: Mutex::default(),
        })
    }

    fn open(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more of that token's.
    ///
    /// # Errors
    /// `busy`, when it has as many as it may.
    pub(crate) fn take(self: &Arc<Self>, token_id: &str, what: &str) -> Result<Share, ApiError> {
        let mut all = self.open();
        let open = all.entry(token_id.to_owned()).or_default();
        if *open >= self.max {
            let message = format!("this token has {} {what} open, as many as it may", self.max);
            return Err(ApiError::new(codes::BUSY, message)
                .hint("close one of them, or share one among those who read it")
                .retry_after(5));
        }
        *open += 1;
        Ok(Share {
            shares: Arc::clone(self),
            token_id: token_id.to_owned(),
        })
    }
}

/// Held as long as the thing is open.
#[derive(Debug)]
pub(crate) struct Share {
    shares: Arc<Shares>,
    token_id: String,
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut all = self.shares.open();
        if let Some(open) = all.get_mut(&self.token_id) {
            *open -= 1;
            if *open == 0 {
                all.remove(&self.token_id);
            }
        }
    }
}
