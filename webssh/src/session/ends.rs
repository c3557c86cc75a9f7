//! What ends a session from outside.

use std::sync::{Arc, OnceLock};

use fairlead_protocol::codes;
use tokio_util::sync::CancellationToken;

use super::freezing::Room;
use super::{Pipe, end};
use crate::message::End;

/// Ends a session, with a reason; the first reason holds.
#[derive(Clone, Default)]
pub(crate) struct Kick {
    pub(super) fired: CancellationToken,
    why: Arc<OnceLock<End>>,
}

impl Kick {
    pub(crate) fn end(&self, why: End) {
        // Somebody else was first.
        let _ = self.why.set(why);
        self.fired.cancel();
    }

    pub(super) fn why(&self) -> End {
        let unsaid = || end(codes::WITHDRAWN, "somebody ended this terminal");
        self.why.get().cloned().unwrap_or_else(unsaid)
    }
}

/// What ends a session from outside.
#[derive(Clone, Default)]
pub(crate) struct Ends {
    /// The API token ended.
    pub(crate) token: CancellationToken,
    /// When it ends by itself; 0: never.
    pub(crate) until_us: i64,
    /// Somebody ended it, or may not have it any more.
    pub(crate) kick: Kick,
    /// The server drains.
    pub(crate) shutdown: CancellationToken,
    /// Room for sessions that go on in the server's next process.
    pub(crate) room: Room,
}

impl Ends {
    /// What has ended it by now.
    pub(super) fn fired(&self, pipe: &Pipe) -> Option<End> {
        if self.token.is_cancelled() {
            Some(token_ended())
        } else if pipe.cut.is_cancelled() {
            Some(host_revoked())
        } else {
            self.kick.fired.is_cancelled().then(|| self.kick.why())
        }
    }
}

pub(super) fn token_ended() -> End {
    end(codes::UNAUTHENTICATED, "the API token ended or was revoked")
}

pub(super) fn host_revoked() -> End {
    end(codes::REVOKED, "the host was revoked")
}
