//! What is kept of the terminals that live here over an orderly restart of the controller, and how the next process
//! comes to a host's stream again.

use std::sync::Arc;
use std::time::Duration;

use fairlead_api::ClientStream;
use fairlead_protocol::{CommandId, FrozenTerminals};
use fairlead_webssh::{Frozen, Info, Pipe, Resumed, Terminals};
use tokio_util::sync::CancellationToken;

use super::super::ControllerBackend;
use fairlead_protocol::stream::flow::Client;

/// Keeps what goes on in the next process.
pub async fn keep(frozen: &Frozen, now_us: i64, left: Option<FrozenTerminals>) {
    let Some(mut left) = left else { return };
    left.at_us = now_us;
    frozen.keep(left).await;
}

/// Goes on with what the process before has kept.
pub async fn thaw(frozen: &Frozen, now_us: i64, terminals: &Arc<Terminals>) {
    let Some(kept) = frozen.take().await else {
        return;
    };
    let age_us = now_us.saturating_sub(kept.at_us).max(0);
    let age = Duration::from_micros(age_us.unsigned_abs());
    let count = terminals.thaw(kept, age).await;
    tracing::info!(count, ?age, "terminals go on after the restart");
}

impl ControllerBackend {
    /// Another stream for a session that its host holds.
    pub(super) fn resumed(&self, info: &Info) -> Resumed {
        Resumed {
            pipe: self.pipe(info.session, None),
            token_ended: self.token_of(info),
        }
    }

    /// A session's way to its host; without a stream it is asked for, when the session says where it goes on.
    pub(super) fn pipe(&self, session: CommandId, stream: Option<ClientStream>) -> Pipe {
        let ClientStream {
            to_agent,
            from_agent,
            cut,
        } = self.lasting(session, Client::Keeps, stream, true);
        Pipe {
            to_agent,
            from_agent,
            cut,
        }
    }

    /// Fires when the session's API token ends, and has fired when it has.
    fn token_of(&self, info: &Info) -> CancellationToken {
        let ended = || {
            let fired = CancellationToken::new();
            fired.cancel();
            fired
        };
        let row = self.look(|tx| tx.api_token(&info.token_id));
        let host = self.look(|tx| tx.host(info.host_id));
        let (Ok(Some(row)), Ok(Some(host))) = (row, host) else {
            return ended();
        };
        if row.revoked_us != 0 || host.revoked_us != 0 {
            return ended();
        }
        self.parts.live.of(&row.id, row.expires_us)
    }
}
