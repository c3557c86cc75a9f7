//! From ledger to link: what a link task is told, and what happens when its queue is full.

use std::sync::atomic::Ordering;

use fairlead_protocol::{Cancel, Deliver, HostId, LinkDown, link_down};

use crate::registry::Registry;

pub mod queue;

/// What a link task is told.
#[derive(Debug)]
pub enum ToHost {
    /// Send this.
    Send(Box<LinkDown>),
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

/// Hands a command to the host's link, if there is one; whether there was room. A full queue is no loss: the link is
/// marked as lagging, and reads the ledger when it has caught up.
pub fn deliver(registry: &Registry, host: HostId, mut deliver: Deliver) -> bool {
    let Some(entry) = registry.get(host) else {
        return false;
    };
    deliver.epoch = entry.epoch;
    let message = LinkDown {
        kind: Some(link_down::Kind::Deliver(deliver)),
    };
    let sent = entry.to_host.push(ToHost::Send(Box::new(message)));
    if !sent {
        entry.lagging.store(true, Ordering::SeqCst);
    }
    sent
}

/// Sends something that may be lost to the host's link; whether there was room.
pub fn send(registry: &Registry, host: HostId, kind: link_down::Kind) -> bool {
    registry.get(host).is_some_and(|entry| {
        let message = Box::new(LinkDown { kind: Some(kind) });
        entry.to_host.push(ToHost::Send(message))
    })
}

/// Tells the host's link that a command is not to be begun. Without room the link reads it from the ledger;
/// when the host is away, the sweeper ends it.
pub fn withdraw(registry: &Registry, host: HostId, cancel: Cancel) {
    if !send(registry, host, link_down::Kind::Cancel(cancel))
        && let Some(entry) = registry.get(host)
    {
        entry.lagging.store(true, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use fairlead_protocol::{InstanceId, RunId};

    use super::queue::{FromRouter, TO_HOST_MAX};
    use super::*;
    use crate::registry::Entry;

    fn connected(registry: &Registry, host: HostId) -> (FromRouter, Arc<AtomicBool>) {
        let (to_host, queue) = queue::pair();
        let lagging = Arc::new(AtomicBool::new(false));
        let entry = Entry {
            connection: 1,
            instance: InstanceId::from_bytes([1; 16]),
            run: RunId::from_bytes([1; 16]),
            epoch: 1,
            serial: String::new(),
            to_host,
            lagging: Arc::clone(&lagging),
            end: tokio_util::sync::CancellationToken::new(),
        };
        registry.admit(host, entry, None);
        (queue, lagging)
    }

    #[test]
    fn a_full_queue_loses_nothing_it_makes_the_link_read_the_ledger() {
        let registry = Registry::default();
        let host = HostId::from_bytes([1; 16]);
        let (mut queue, lagging) = connected(&registry, host);
        for _ in 0..TO_HOST_MAX {
            deliver(&registry, host, Deliver::default());
        }
        assert!(!lagging.load(Ordering::SeqCst));
        deliver(&registry, host, Deliver::default());
        assert!(lagging.load(Ordering::SeqCst));
        let mut waiting = 0;
        while queue.take().is_some() {
            waiting += 1;
        }
        assert_eq!(waiting, TO_HOST_MAX, "memory stays bounded");
    }

    #[test]
    fn what_is_meant_for_one_host_reaches_no_other() {
        let registry = Registry::default();
        let (here, there) = (HostId::from_bytes([1; 16]), HostId::from_bytes([2; 16]));
        let (mut queue, _) = connected(&registry, here);
        deliver(&registry, there, Deliver::default());
        assert!(!send(
            &registry,
            there,
            link_down::Kind::Cancel(fairlead_protocol::Cancel::default())
        ));
        assert!(queue.take().is_none());
    }
}
