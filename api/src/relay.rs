//! Between a client's WebSocket and a command's stream: frames pass unread, both ways at once.
//!
//! The two directions are independent, so that a process which waits for its input to be read
//! cannot block its own output. Both are bounded by the channels and by TCP. Ends when either side
//! ends, the token or host is revoked, the server drains, or the client has been silent too long.

use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::backend::ClientStream;

/// The client is pinged this often.
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// A client that said nothing (not even a pong) for so long is gone.
const SILENT_AFTER: Duration = Duration::from_secs(70);
/// How long the last frames and the close may take to go out.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a stream is closed, as the WebSocket's close frame says it.
type Ending = (u16, &'static str);

/// Relays until the end.
pub(crate) async fn run(
    socket: WebSocket,
    far: ClientStream,
    ended: CancellationToken,
    shutdown: CancellationToken,
) {
    let (mut sink, stream) = socket.split();
    let ClientStream {
        to_agent,
        from_agent,
        cut,
    } = far;
    let ending: Ending = tokio::select! {
        // The revocations first: nothing more passes once a token or host is revoked.
        biased;
        () = ended.cancelled() => (close_code::POLICY, "the API token was revoked"),
        () = cut.cancelled() => (close_code::POLICY, "revoked"),
        () = shutdown.cancelled() => (close_code::RESTART, "the server is restarting"),
        ending = down(&mut sink, from_agent) => ending,
        ending = up(stream, to_agent) => ending,
    };
    let close = Message::Close(Some(CloseFrame {
        code: ending.0,
        reason: ending.1.into(),
    }));
    // A client that does not take it is left to its fate.
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, async {
        if sink.send(close).await.is_ok() {
            let _ = sink.close().await;
        }
    })
    .await;
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
async fn up(mut stream: SplitStream<WebSocket>, to_agent: mpsc::Sender<Bytes>) -> Ending {
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
