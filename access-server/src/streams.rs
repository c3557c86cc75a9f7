//! Streams between controller and agents: expected, dialled, joined.
//!
//! A stream id is announced to one host on its link. Only that host's certificate may dial it, once,
//! within ten seconds. The bytes are relayed without being decoded; TCP is the flow control: a side that
//! does not read makes the other wait. When this server ends in order, hosts are asked to hold what is relayed.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use fairlead_link::carry::carry;
use fairlead_link::socket::{StreamReceiver, StreamSender, StreamSocket};
use fairlead_protocol::stream::{Channel, frame};
use fairlead_protocol::{HostId, StreamId, limits};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Streams that may be expected at a time.
const EXPECTED_MAX: usize = 4096;
/// How long hosts have to hold what is relayed, and the controller to take the last of it.
const HELD_WITHIN: Duration = Duration::from_secs(3);

/// Streams that hosts were asked to dial, and those that are joined.
#[derive(Default)]
pub struct Streams {
    expected: Mutex<HashMap<StreamId, (HostId, oneshot::Sender<Arrived>)>>,
    joined: Mutex<HashMap<StreamId, Joined>>,
    /// This server ends.
    leaves: CancellationToken,
    relays: TaskTracker,
}

/// A host's end of a stream.
pub struct Arrived {
    /// The socket.
    pub socket: StreamSocket,
    /// Serial of the certificate that it was dialled with.
    pub serial: String,
}

struct Joined {
    host: HostId,
    serial: String,
    cut: CancellationToken,
}

impl Streams {
    fn expected(&self) -> MutexGuard<'_, HashMap<StreamId, (HostId, oneshot::Sender<Arrived>)>> {
        self.expected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Expects a host to dial; `None` when too many are expected already.
    pub fn expect(&self, id: StreamId, host: HostId) -> Option<oneshot::Receiver<Arrived>> {
        let mut expected = self.expected();
        if expected.len() >= EXPECTED_MAX {
            return None;
        }
        let (arrived, socket) = oneshot::channel();
        expected.insert(id, (host, arrived));
        Some(socket)
    }

    /// A host has dialled; whether it was expected. Another host's stream stays expected.
    pub fn arrived(&self, id: StreamId, host: HostId, socket: Arrived) -> bool {
        let mut expected = self.expected();
        if expected.get(&id).is_none_or(|(meant, _)| *meant != host) {
            return false;
        }
        expected
            .remove(&id)
            .is_some_and(|(_, arrived)| arrived.send(socket).is_ok())
    }

    /// That host does not open the stream; whether it was asked to.
    pub fn refused(&self, id: StreamId, host: HostId) -> bool {
        let mut expected = self.expected();
        let asked = expected.get(&id).is_some_and(|(meant, _)| *meant == host);
        if asked {
            expected.remove(&id);
        }
        asked
    }

    /// Nobody waits for it any more.
    pub fn forget(&self, id: StreamId) {
        self.expected().remove(&id);
    }

    /// The host's socket, within the time for dialling.
    pub async fn wait(&self, id: StreamId, socket: oneshot::Receiver<Arrived>) -> Option<Arrived> {
        let arrived = tokio::time::timeout(limits::STREAM_DIAL_TIMEOUT, socket).await;
        self.forget(id);
        arrived.ok()?.ok()
    }
}

impl Streams {
    /// Joins a host's stream with the controller's until one of them ends, or the host is cut.
    /// `ended` says of a host and a certificate whether they are not believed any more.
    pub async fn join(
        &self,
        id: StreamId,
        host: HostId,
        from_host: Arrived,
        to_controller: StreamSocket,
        ended: impl Fn(HostId, &str) -> bool,
    ) {
        let Arrived { socket, serial } = from_host;
        let cut = CancellationToken::new();
        self.enter(id, host, serial, &cut, ended);
        tokio::select! {
            biased;
            () = cut.cancelled() => {}
            () = relay_both(socket, to_controller, &self.leaves) => {}
        }
        self.joined().remove(&id);
    }

    /// What a host has dialled for is waited for before this server has ended: it is joined, so that it can be held.
    pub async fn seen_to_its_end(&self, relay: impl Future<Output = ()>) {
        self.relays.track_future(relay).await;
    }

    /// This server ends: hosts are asked to hold what is relayed here, and what is on its way passes.
    pub async fn drain(&self) {
        self.leaves.cancel();
        self.relays.close();
        if tokio::time::timeout(HELD_WITHIN, self.relays.wait())
            .await
            .is_err()
        {
            tracing::warn!(
                left = self.relays.len(),
                "streams were cut off: they could not be held in time"
            );
        }
    }

    /// Carries a host's stream to and from two queues of this server until one of them ends, or the host is cut,
    /// which fires `cut`.
    pub async fn carry(
        &self,
        id: StreamId,
        host: HostId,
        from_host: Arrived,
        (from_here, to_here): (mpsc::Receiver<Bytes>, mpsc::Sender<Bytes>),
        cut: CancellationToken,
        ended: impl Fn(HostId, &str) -> bool,
    ) {
        let Arrived { socket, serial } = from_host;
        self.enter(id, host, serial, &cut, ended);
        tokio::select! {
            biased;
            () = cut.cancelled() => {}
            () = carry(socket, from_here, to_here) => {}
        }
        self.joined().remove(&id);
    }

    /// From here on `cut` finds the stream; what was ended between door and here is found now.
    fn enter(
        &self,
        id: StreamId,
        host: HostId,
        serial: String,
        cut: &CancellationToken,
        ended: impl Fn(HostId, &str) -> bool,
    ) {
        let entry = Joined {
            host,
            serial: serial.clone(),
            cut: cut.clone(),
        };
        self.joined().insert(id, entry);
        if ended(host, &serial) {
            cut.cancel();
        }
    }

    fn joined(&self) -> MutexGuard<'_, HashMap<StreamId, Joined>> {
        self.joined.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the streams of hosts and certificates that are not believed any more.
    pub fn cut(&self, ended: impl Fn(HostId, &str) -> bool) {
        self.expected().retain(|_, (host, _)| !ended(*host, ""));
        for joined in self.joined().values() {
            if ended(joined.host, &joined.serial) {
                joined.cut.cancel();
            }
        }
    }
}

/// Relays both ways until one is done, or breaks. When this server `leaves` the host is asked to hold the stream, and
/// hears nothing more.
async fn relay_both(host: StreamSocket, controller: StreamSocket, leaves: &CancellationToken) {
    let (mut one_out, mut one_in) = host.split();
    let (mut other_out, mut other_in) = controller.split();
    let to_host = async {
        tokio::select! {
            biased;
            () = leaves.cancelled() => {}
            () = relay(&mut other_in, &mut one_out) => return,
        }
        let _ = one_out.send(frame(Channel::Hold, &[])).await;
        // The controller repeats what the process has not taken.
        while let Ok(Some(_)) = other_in.hear().await {}
    };
    // When either direction ends, the stream is over: each end says all it has to say before it
    // closes.
    tokio::select! {
        () = relay(&mut one_in, &mut other_out) => {}
        () = to_host => {}
    }
    tokio::join!(
        one_out.close_behind(&mut one_in),
        other_out.close_behind(&mut other_in),
    );
}

/// Until one of them ends; it may have said something before, which passes the other way. Where the other end takes
/// nothing more, its own end is what counts.
async fn relay(from: &mut StreamReceiver, to: &mut StreamSender) {
    let mut is_taken = true;
    while let Ok(Some(frame)) = from.hear().await {
        is_taken = is_taken && to.send(frame).await.is_ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: StreamId = StreamId::from_bytes([9; 16]);
    const HOST: HostId = HostId::from_bytes([1; 16]);
    const OTHER: HostId = HostId::from_bytes([2; 16]);

    #[test]
    fn what_was_revoked_between_door_and_join_is_cut_at_once() {
        let streams = Streams::default();
        let cut = CancellationToken::new();
        streams.enter(ID, HOST, "aa".to_owned(), &cut, |_, serial| serial == "aa");
        assert!(cut.is_cancelled());
        let cut = CancellationToken::new();
        streams.enter(ID, HOST, "bb".to_owned(), &cut, |_, serial| serial == "aa");
        assert!(!cut.is_cancelled());
        streams.cut(|host, serial| host == HOST && serial == "aa");
        assert!(!cut.is_cancelled(), "another certificate of the same host");
        streams.cut(|_, serial| serial == "bb");
        assert!(cut.is_cancelled());
    }

    #[tokio::test]
    async fn only_the_host_that_was_asked_refuses_a_stream() {
        let streams = Streams::default();
        let arrival = streams.expect(ID, HOST).unwrap();
        assert!(!streams.refused(ID, OTHER));
        assert!(streams.refused(ID, HOST));
        assert!(streams.wait(ID, arrival).await.is_none());
        assert!(!streams.refused(ID, HOST));
    }
}
