//! Between a client's WebSocket and a command's stream: frames pass unread, both ways at once.
//!
//! The two directions are independent, so that a process which waits for its input to be read
//! cannot block its own output. Both are bounded by the channels and by TCP. Ends when either side
//! ends, the token or host is revoked, the server drains, or the client has been silent too long. Before a server drains
//! it asks the host to hold the streams of clients that know of it, so that they go on at the next one.

use std::pin::pin;
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use bytes::Bytes;
use fairlead_protocol::stream::{Channel, frame};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::backend::{Attach, ClientStream};

/// The client is pinged this often.
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// A client that said nothing (not even a pong) for so long is gone.
const SILENT_AFTER: Duration = Duration::from_secs(70);
/// How long the last frames and the close may take to go out.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the host may take to hold a stream, and what is under way to arrive.
const HELD_WITHIN: Duration = Duration::from_secs(3);

/// Why a stream is closed, as the WebSocket's close frame says it.
type Ending = (u16, &'static str);

const RESTARTS: Ending = (close_code::RESTART, "the server is restarting");

/// Relays until the end.
pub(crate) async fn run(
    socket: WebSocket,
    far: ClientStream,
    attach: Attach,
    ended: CancellationToken,
    shutdown: CancellationToken,
) {
    let (mut sink, mut stream) = socket.split();
    let ClientStream {
        to_agent,
        from_agent,
        cut,
    } = far;
    let to_hold = to_agent.clone();
    let revoked = async {
        tokio::select! {
            () = ended.cancelled() => (close_code::POLICY, "the API token was revoked"),
            () = cut.cancelled() => (close_code::POLICY, "revoked"),
        }
    };
    let ending: Ending = {
        let mut down = pin!(down(&mut sink, from_agent));
        let mut revoked = pin!(revoked);
        let ending = tokio::select! {
            // The revocations first: nothing more passes once a token or host is revoked.
            biased;
            ending = &mut revoked => ending,
            () = shutdown.cancelled() => RESTARTS,
            ending = &mut down => ending,
            ending = up(&mut stream, to_agent) => ending,
        };
        if ending == RESTARTS && attach != Attach::Plain {
            let held = async {
                // Its host is gone when it takes no word: then its stream ends as well.
                let _ = to_hold.send(frame(Channel::Hold, &[])).await;
                down.await
            };
            tokio::select! {
                biased;
                ending = revoked => ending,
                _ = tokio::time::timeout(HELD_WITHIN, held) => ending,
                // What its client still says, it says again to the next server.
                () = unheard(&mut stream) => ending,
            }
        } else {
            ending
        }
    };
    let close = Message::Close(Some(CloseFrame {
        code: ending.0,
        reason: ending.1.into(),
    }));
    // A client that does not take it is left to its fate.
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, async {
        if sink.send(close).await.is_ok() {
            // A connection that is closed with something unread is reset, which overtakes the last words.
            unheard(&mut stream).await;
            let _ = sink.close().await;
        }
    })
    .await;
}

/// Reads on, for nobody.
async fn unheard(stream: &mut SplitStream<WebSocket>) {
    while let Some(Ok(_)) = stream.next().await {}
}

/// From the agent to the client.
async fn down(
    sink: &mut SplitSink<WebSocket, Message>,
    mut from_agent: mpsc::Receiver<Bytes>,
) -> Ending {
    let mut pings = tokio::time::interval(PING_INTERVAL);
    pings.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let message = tokio::select! {
            frame = from_agent.recv() => match frame {
                Some(frame) => Message::Binary(frame),
                None => return (close_code::NORMAL, ""),
            },
            _ = pings.tick() => Message::Ping(Bytes::new()),
        };
        if sink.send(message).await.is_err() {
            return (close_code::AWAY, "");
        }
    }
}

/// From the client to the agent. When the agent takes no more input its side goes on: the process
/// may still have something to say.
async fn up(stream: &mut SplitStream<WebSocket>, to_agent: mpsc::Sender<Bytes>) -> Ending {
    loop {
        let Ok(message) = tokio::time::timeout(SILENT_AFTER, stream.next()).await else {
            return (close_code::AWAY, "silent for too long");
        };
        match message {
            Some(Ok(Message::Binary(frame))) => {
                // Waits when the agent's side is full: the client's TCP then waits too.
                let _ = to_agent.send(frame).await;
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(Message::Text(_))) => {
                return (close_code::UNSUPPORTED, "only binary frames");
            }
            Some(Ok(Message::Close(_)) | Err(_)) | None => return (close_code::AWAY, ""),
        }
    }
}
