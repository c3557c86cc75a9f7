//! Streams from clients down to agents: asked for on the uplink, dialled by the access server, relayed
//! without being decoded.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fairlead_api::ClientStream;
use fairlead_link::carry::carry;
use fairlead_link::socket::StreamSocket;
use fairlead_protocol::stream::{Channel, frame};
use fairlead_protocol::{HostId, StreamId, limits};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// Frames under way in each direction of one stream: with frames of 32 KiB half a megabyte at most.
const FRAMES_MAX: usize = 8;
/// Streams at a time.
const STREAMS_MAX: usize = 4096;

struct Expected {
    region: String,
    arrived: oneshot::Sender<StreamSocket>,
}

struct Open {
    host: HostId,
    cut: CancellationToken,
}

/// All streams, expected and open.
#[derive(Default)]
pub struct Streams {
    expected: Mutex<HashMap<StreamId, Expected>>,
    open: Mutex<HashMap<StreamId, Open>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Streams {
    /// Expects a region to dial a stream for a host; gives the client's end at once. `None` when there
    /// are too many.
    pub fn expect(
        self: &Arc<Self>,
        id: StreamId,
        region: &str,
        host: HostId,
    ) -> Option<ClientStream> {
        if lock(&self.open).len() >= STREAMS_MAX {
            return None;
        }
        let (arrived, socket) = oneshot::channel();
        let cut = CancellationToken::new();
        lock(&self.expected).insert(
            id,
            Expected {
                region: region.to_owned(),
                arrived,
            },
        );
        lock(&self.open).insert(
            id,
            Open {
                host,
                cut: cut.clone(),
            },
        );
        let (to_agent, from_client) = mpsc::channel(FRAMES_MAX);
        let (to_client, from_agent) = mpsc::channel(FRAMES_MAX);
        let streams = Arc::clone(self);
        let ended = cut.clone();
        // Ends with the stream, with its refusal, or when nobody dials in time.
        tokio::spawn(async move {
            // The access server waits this long for the host, and then dials itself.
            let patience = limits::STREAM_DIAL_TIMEOUT * 2;
            if let Ok(Ok(mut socket)) = tokio::time::timeout(patience, socket).await {
                // The host begins now. Where it is not so far, its end comes below.
                let _ = socket.send(frame(Channel::Input, &[])).await;
                tokio::select! {
                    () = ended.cancelled() => {}
                    () = carry(socket, from_client, to_client) => {}
                }
            }
            lock(&streams.expected).remove(&id);
            lock(&streams.open).remove(&id);
        });
        Some(ClientStream {
            to_agent,
            from_agent,
            cut,
        })
    }

    /// An access server has dialled; whether its region was asked for that stream.
    pub fn arrived(&self, id: StreamId, region: &str, socket: StreamSocket) -> bool {
        let mut expected = lock(&self.expected);
        if expected
            .get(&id)
            .is_none_or(|expected| expected.region != region)
        {
            return false;
        }
        expected
            .remove(&id)
            .is_some_and(|expected| expected.arrived.send(socket).is_ok())
    }

    /// The region or the host said no.
    pub fn refused(&self, id: StreamId, region: &str) {
        let mut expected = lock(&self.expected);
        if expected
            .get(&id)
            .is_some_and(|expected| expected.region == region)
        {
            expected.remove(&id);
        }
    }

    /// The region's uplink is lost, and with it what it was asked for and has not dialled.
    pub fn lost(&self, region: &str) {
        lock(&self.expected).retain(|_, expected| expected.region != region);
    }

    /// Ends the streams of hosts that are not believed any more.
    pub fn cut(&self, ended: &[HostId]) {
        for open in lock(&self.open)
            .values()
            .filter(|open| ended.contains(&open.host))
        {
            open.cut.cancel();
        }
    }
}
