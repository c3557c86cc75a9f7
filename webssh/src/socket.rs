//! A terminal's WebSocket: the origin before anything else, then the ticket, then bytes.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Request, State};
use axum::http::{Extensions, HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use fairlead_protocol::codes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::sync::mpsc;

use crate::message::{Down, End, Hello, MESSAGE_BYTES_MAX, SUBPROTOCOL, Up};
use crate::session::{FromPage, ToPage};
use crate::strangers::Strangers;
use crate::terminals::{Attachment, Refused, Terminals};

/// The path of the socket.
pub const PATH: &str = "/terminal/socket";
/// How long a socket has for its first message.
const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// The page is pinged this often.
const PING_EVERY: Duration = Duration::from_secs(15);
/// A page that said nothing (not even a pong) for so long is gone.
const SILENT_AFTER: Duration = Duration::from_secs(40);
/// How long one message to a page may take.
const SEND_WITHIN: Duration = Duration::from_secs(40);
/// Buffers of the WebSocket; the library's own are 128 KiB each.
const BUFFER_BYTES: usize = 8 * 1024;
/// Close codes: refused (as HTTP's 403), ended, against the protocol.
const CLOSE_REFUSED: u16 = 4403;
const CLOSE_ENDED: u16 = 1000;
const CLOSE_VIOLATION: u16 = 1008;
/// The server leaves, and its next process has the session: come back.
const CLOSE_RESTART: u16 = 1012;
const RESTART: &str = "the server is restarting";
/// Why a socket is closed once its session has said how it ended.
const LAST_WORD: &str = "the terminal has ended";
/// How long closing may take.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);

struct Door {
    terminals: Arc<Terminals>,
    strangers: Arc<Strangers>,
    peer: fn(&Extensions) -> String,
}

/// The socket's route; `peer` tells where a request comes from.
pub fn router(terminals: Arc<Terminals>, peer: fn(&Extensions) -> String) -> Router {
    let door = Arc::new(Door {
        terminals,
        strangers: Arc::default(),
        peer,
    });
    Router::new().route(PATH, get(open)).with_state(door)
}

fn said(status: StatusCode, text: &'static str) -> Response {
    (status, text).into_response()
}

async fn open(
    State(door): State<Arc<Door>>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
    request: Request,
) -> Response {
    // Whose pages may come in a region learns from its controller.
    if door.terminals.origins().first().is_none() || door.terminals.is_leaving() {
        return said(
            StatusCode::SERVICE_UNAVAILABLE,
            "the server is starting or going\n",
        );
    }
    // Before any other work.
    let Some(origin) = door.terminals.origins().of(&headers) else {
        return said(
            StatusCode::FORBIDDEN,
            "terminals are opened by this server's own pages only (Origin)\n",
        );
    };
    let Ok(upgrade) = upgrade else {
        return said(StatusCode::UPGRADE_REQUIRED, "this path is a WebSocket\n");
    };
    let upgrade = upgrade
        .protocols([SUBPROTOCOL])
        .read_buffer_size(BUFFER_BYTES)
        .write_buffer_size(0)
        .max_write_buffer_size(256 * 1024)
        .max_message_size(MESSAGE_BYTES_MAX)
        .max_frame_size(MESSAGE_BYTES_MAX);
    if upgrade.selected_protocol().is_none() {
        return said(StatusCode::BAD_REQUEST, "the subprotocol is another\n");
    }
    let from = (door.peer)(request.extensions());
    let Some(place) = door.strangers.take(&from) else {
        return said(StatusCode::SERVICE_UNAVAILABLE, "too many at once\n");
    };
    let terminals = Arc::clone(&door.terminals);
    upgrade.on_upgrade(move |mut socket| async move {
        let hello = hello(&mut socket).await;
        // Opening may take its time, and takes no other's.
        drop(place);
        let entered = match hello {
            Ok(hello) => Box::pin(terminals.enter(hello, &origin, &from)).await,
            Err(refused) => Err(refused),
        };
        match entered {
            Ok(attachment) => relay(socket, attachment, &terminals).await,
            Err(refused) if refused.code == codes::BUSY && terminals.is_leaving() => {
                // Without a last word: it is none.
                let say = socket.send(close(CLOSE_RESTART, RESTART));
                let _ = tokio::time::timeout(CLOSE_WITHIN, say).await;
            }
            Err(refused) => refuse(socket, refused).await,
        }
    })
}

async fn hello(socket: &mut WebSocket) -> Result<Hello, Refused> {
    let none = || Refused::new(codes::TICKET_REFUSED, "the first message must be a ticket");
    let first = tokio::time::timeout(HELLO_WITHIN, socket.recv());
    match first.await {
        Ok(Some(Ok(Message::Text(text)))) => Hello::parse(&text).ok_or_else(none),
        _ => Err(none()),
    }
}

async fn refuse(mut socket: WebSocket, refused: Refused) {
    let end = Down::Ended(End {
        code: refused.code,
        message: refused.message,
        exit_code: None,
        resumable: false,
    });
    let say = async {
        if socket.send(text(&end)).await.is_ok() {
            let _ = socket.send(close(CLOSE_REFUSED, "refused")).await;
        }
    };
    // One that takes nothing is left to its fate.
    let _ = tokio::time::timeout(SEND_WITHIN, say).await;
}

fn text(down: &Down) -> Message {
    // A struct of texts and numbers always has a JSON form.
    Message::Text(serde_json::to_string(down).unwrap_or_default().into())
}

fn close(code: u16, reason: &'static str) -> Message {
    Message::Close(Some(CloseFrame {
        code,
        reason: reason.into(),
    }))
}

async fn relay(socket: WebSocket, attachment: Attachment, terminals: &Terminals) {
    let Attachment {
        to_session,
        from_session,
    } = attachment;
    let (mut sink, mut stream) = socket.split();
    let (code, reason) = tokio::select! {
        // Once the last word is out, an answer to it is read below.
        biased;
        ended = down(&mut sink, from_session, terminals) => ended,
        ended = up(&mut stream, &to_session) => ended,
    };
    let last = async {
        if sink.send(close(code, reason)).await.is_err() {
            return;
        }
        if reason == LAST_WORD {
            // Closing is a page's answer. Where it does not come, the last word may not have come either.
            while let Some(Ok(said)) = stream.next().await {
                if matches!(said, Message::Close(_)) {
                    let _ = to_session.send(FromPage::HeardEnd).await;
                    break;
                }
            }
        }
        let _ = sink.close().await;
    };
    let _ = tokio::time::timeout(CLOSE_WITHIN, last).await;
}

async fn down(
    sink: &mut SplitSink<WebSocket, Message>,
    mut from_session: mpsc::Receiver<ToPage>,
    terminals: &Terminals,
) -> (u16, &'static str) {
    let mut pings = tokio::time::interval(PING_EVERY);
    pings.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let message = tokio::select! {
            next = from_session.recv() => match next {
                Some(ToPage::Output(bytes)) => Message::Binary(bytes),
                Some(ToPage::Say(say)) => {
                    let is_last = matches!(say, Down::Ended(_));
                    let sent = tokio::time::timeout(SEND_WITHIN, sink.send(text(&say))).await;
                    if !matches!(sent, Ok(Ok(()))) {
                        return (CLOSE_ENDED, "");
                    }
                    if is_last {
                        return (CLOSE_ENDED, LAST_WORD);
                    }
                    continue;
                }
                None if terminals.is_leaving() => return (CLOSE_RESTART, RESTART),
                // The session let this page go: against the protocol, or another has its place.
                None => return (CLOSE_VIOLATION, "let go"),
            },
            _ = pings.tick() => Message::Ping(Bytes::new()),
        };
        match tokio::time::timeout(SEND_WITHIN, sink.send(message)).await {
            Ok(Ok(())) => {}
            _ => return (CLOSE_ENDED, ""),
        }
    }
}

async fn up(
    stream: &mut SplitStream<WebSocket>,
    to_session: &mpsc::Sender<FromPage>,
) -> (u16, &'static str) {
    loop {
        let Ok(message) = tokio::time::timeout(SILENT_AFTER, stream.next()).await else {
            return (CLOSE_ENDED, "silent for too long");
        };
        let said = match message {
            Some(Ok(Message::Binary(bytes))) => FromPage::Input(bytes),
            Some(Ok(Message::Text(text))) => match Up::parse(&text) {
                Some(up) => FromPage::Say(up),
                None => return (CLOSE_VIOLATION, "not a message"),
            },
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
            Some(Ok(Message::Close(_)) | Err(_)) | None => return (CLOSE_ENDED, ""),
        };
        if to_session.send(said).await.is_err() {
            // What the session still has to say comes down.
            std::future::pending::<()>().await;
        }
    }
}
