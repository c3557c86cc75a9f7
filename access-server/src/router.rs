//! From ledger to link: what a link task is told, and what happens when its queue is full.

use std::sync::atomic::Ordering;

use fairlead_protocol::{Deliver, HostId, LinkDown, link_down};

use crate::registry::Registry;

/// What waits for one link task. Few, because the ledger remembers commands anyway.
pub const TO_HOST_MAX: usize = 16;

/// What a link task is told.
#[derive(Debug)]
pub enum ToHost {
    /// Send this.
    Send(LinkDown),
    /// Prove that you are alive; the answer is the sender's end being used.
    Challenge {
        /// Quoted in the answer.
        nonce: u64,
        /// Where the answer goes.
        answered: tokio::sync::oneshot::Sender<()>,
    },
    /// End: the host was taken over, revoked, or the server goes.
    End {
        /// Stable.
        code: &'static str,
        /// In words.
        message: String,
    },
}

/// Hands a stored command to the host's link, if there is one. A full queue is no loss: the link is
/// marked as lagging, and reads the ledger when it has caught up.
pub fn deliver(registry: &Registry, host: HostId, deliver: Deliver) {
    let Some(entry) = registry.get(host) else {
        return;
    };
    let message = LinkDown {
        kind: Some(link_down::Kind::Deliver(deliver)),
    };
    if entry.to_host.try_send(ToHost::Send(message)).is_err() {
        entry.lagging.store(true, Ordering::SeqCst);
    }
}

/// Sends something that may be lost to the host's link; whether there was room.
pub fn send(registry: &Registry, host: HostId, kind: link_down::Kind) -> bool {
    registry.get(host).is_some_and(|entry| {
        entry
            .to_host
            .try_send(ToHost::Send(LinkDown { kind: Some(kind) }))
            .is_ok()
    })
}
