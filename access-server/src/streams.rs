//! Streams between controller and agents: expected, dialled, joined.
//!
//! A stream id is announced to one host on its link. Only that host's certificate may dial it, once,
//! within ten seconds. The bytes are relayed without being decoded; TCP is the flow control: a side that
//! does not read makes the other wait.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use fairlead_link::socket::{StreamReceiver, StreamSender, StreamSocket};
use fairlead_protocol::{HostId, StreamId, limits};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// Streams that may be expected at a time.
const EXPECTED_MAX: usize = 4096;

/// Streams that hosts were asked to dial, and those that are joined.
#[derive(Default)]
pub struct Streams {
    expected: Mutex<HashMap<StreamId, (HostId, oneshot::Sender<StreamSocket>)>>,
    joined: Mutex<HashMap<StreamId, (HostId, CancellationToken)>>,
}

impl Streams {
    fn expected(
        &self,
    ) -> std::sync::MutexGuard<'_, HashMap<StreamId, (HostId, oneshot::Sender<StreamSocket>)>> {
        self.expected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Expects a host to dial; `None` when too many are expected already.
    pub fn expect(&self, id: StreamId, host: HostId) -> Option<oneshot::Receiver<StreamSocket>> {
        let mut expected = self.expected();
        if expected.len() >= EXPECTED_MAX {
            return None;
        }
        let (arrived, socket) = oneshot::channel();
        expected.insert(id, (host, arrived));
        Some(socket)
    }

    /// A host has dialled; whether it was expected. Another host's stream stays expected.
    pub fn arrived(&self, id: StreamId, host: HostId, socket: StreamSocket) -> bool {
        let mut expected = self.expected();
        if expected.get(&id).is_none_or(|(meant, _)| *meant != host) {
            return false;
        }
        expected
            .remove(&id)
            .is_some_and(|(_, arrived)| arrived.send(socket).is_ok())
    }

    /// Nobody waits for it any more.
    pub fn forget(&self, id: StreamId) {
        self.expected().remove(&id);
    }

    /// The host's socket, within the time for dialling.
    pub async fn wait(
        &self,
        id: StreamId,
        socket: oneshot::Receiver<StreamSocket>,
    ) -> Option<StreamSocket> {
        let arrived = tokio::time::timeout(limits::STREAM_DIAL_TIMEOUT, socket).await;
        self.forget(id);
        arrived.ok()?.ok()
    }
}

impl Streams {
    /// Joins a host's stream with the controller's until one of them ends, or the host is cut.
    pub async fn join(
        &self,
        id: StreamId,
        host: HostId,
        from_host: StreamSocket,
        to_controller: StreamSocket,
    ) {
        let cut = CancellationToken::new();
        let joined = || self.joined.lock().unwrap_or_else(PoisonError::into_inner);
        joined().insert(id, (host, cut.clone()));
        tokio::select! {
            () = cut.cancelled() => {}
            () = relay_both(from_host, to_controller) => {}
        }
        joined().remove(&id);
    }

    /// Ends the streams of hosts that are not believed any more.
    pub fn cut(&self, ended: impl Fn(HostId) -> bool) {
        self.expected().retain(|_, (host, _)| !ended(*host));
        let joined = self.joined.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, cut) in joined.values().filter(|(host, _)| ended(*host)) {
            cut.cancel();
        }
    }
}

/// Relays both ways until one is done, or breaks.
async fn relay_both(one: StreamSocket, other: StreamSocket) {
    let (mut one_out, mut one_in) = one.split();
    let (mut other_out, mut other_in) = other.split();
    // When either direction ends, the stream is over: each end says all it has to say before it
    // closes.
    tokio::select! {
        () = relay(&mut one_in, &mut other_out) => {}
        () = relay(&mut other_in, &mut one_out) => {}
    }
    one_out.close().await;
    other_out.close().await;
}

async fn relay(from: &mut StreamReceiver, to: &mut StreamSender) {
    while let Ok(Some(frame)) = from.hear().await {
        if to.send(frame).await.is_err() {
            return;
        }
    }
}
