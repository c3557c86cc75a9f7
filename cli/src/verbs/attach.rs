//! Commands with a stream: hands the command over, opens its stream, carries bytes both ways, and
//! finds out how it ended when the stream breaks.

use std::io;
use std::ops::ControlFlow;
use std::time::Duration;

use bytes::Bytes;
use fairlead_api::types::{Command, CommandRequest};
use fairlead_protocol::codes;
use fairlead_protocol::limits::STREAM_CHUNK_BYTES;
use fairlead_protocol::stream::{Channel, frame, parse};
use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot};
use tokio_tungstenite::tungstenite::Message;

use super::Context;
use super::act::{self, Patience, Teller};
use crate::client::Client;
use crate::exit::{Exit, Failure};
use crate::output::say;
use crate::stream::{self, Stream};

/// Between two looks at a command whose stream has not begun.
const LOOK: Duration = Duration::from_secs(2);
/// Pieces of input that wait to be sent.
const INPUT_PIECES: usize = 4;

/// What comes out of a stream.
pub(crate) enum Piece {
    /// Standard output, log lines, an archive.
    Out(Bytes),
    /// Standard error.
    Err(Bytes),
}

/// What goes into a stream.
pub(crate) type Input = mpsc::Receiver<io::Result<Bytes>>;

/// Takes what comes; `Break` when no more is wanted.
pub(crate) type Taker<'a> = &'a mut dyn FnMut(Piece) -> Result<ControlFlow<()>, Failure>;

/// The last frame of a stream.
#[derive(Debug, Deserialize)]
struct End {
    state: String,
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    exit_code: Option<i32>,
}

/// How carrying came to its end.
enum Carried {
    /// The host said how the command ended.
    Ended(End),
    /// No more is wanted.
    Enough,
    /// The connection broke; whether the work had begun.
    Broken { begun: bool },
}

/// Does the command with its stream, and gives it back as it ended. It is not final when `take`
/// wanted no more.
pub(crate) async fn attached(
    context: &Context,
    client: &Client,
    request: CommandRequest,
    mut input: Option<Input>,
    take: Taker<'_>,
) -> Result<Command, Failure> {
    let mut command = client
        .submit(&request, Duration::ZERO)
        .await
        .map_err(|e| act::not_known(e, &request))?;
    let mut teller = Teller::default();
    let patience = Patience::with(&command);
    loop {
        if command.is_final {
            return Ok(command);
        }
        match stream::open(client, &command.id).await {
            Ok(opened) => {
                let carried = tokio::select! {
                    carried = carry(opened, &mut input, take) => carried?,
                    never = look_on(context, client, &command, &mut teller) => match never {},
                };
                match carried {
                    Carried::Ended(end) => return Ok(ended(command, end)),
                    Carried::Enough => return Ok(command),
                    Carried::Broken { begun: true } => {
                        say("the connection to its output broke: what was to come is lost");
                        return act::wait(context, client, command).await;
                    }
                    Carried::Broken { begun: false } => {}
                }
            }
            Err(failure) if worth_another_try(&failure) => {}
            Err(failure) => {
                // The reason may be that it has ended: then its end is the better answer.
                let newest = client.command(&command.id, Duration::ZERO).await?;
                return if newest.is_final {
                    Ok(newest)
                } else {
                    Err(failure)
                };
            }
        }
        teller.look(context, client, &command).await;
        let look = patience.next_look().min(LOOK);
        command = act::look_again(client, command, look, &mut teller).await?;
        patience.check(client, &command).await?;
    }
}

fn worth_another_try(failure: &Failure) -> bool {
    failure.transient
        || matches!(
            failure.code.as_str(),
            codes::HOST_OFFLINE | codes::REGION_OFFLINE | codes::NO_STREAM | codes::BUSY
        )
}

fn ended(command: Command, end: End) -> Command {
    Command {
        state: end.state,
        code: end.code,
        message: end.message,
        exit_code: end.exit_code,
        is_final: true,
        ..command
    }
}

/// Says why nothing comes yet, as long as nothing does.
async fn look_on(
    context: &Context,
    client: &Client,
    command: &Command,
    teller: &mut Teller,
) -> std::convert::Infallible {
    loop {
        tokio::time::sleep(LOOK).await;
        match client.command(&command.id, Duration::ZERO).await {
            Ok(newest) if newest.state == "queued" => teller.look(context, client, &newest).await,
            // It is under way (or the stream will say what is wrong): nothing more to tell.
            Ok(_) | Err(_) => std::future::pending().await,
        }
    }
}

/// Carries bytes both ways until the stream ends.
async fn carry(
    stream: Stream,
    input: &mut Option<Input>,
    take: Taker<'_>,
) -> Result<Carried, Failure> {
    let (mut sink, mut source) = stream.split();
    let (begin, begun) = oneshot::channel();
    let send = async {
        // Both directions at once: a process that echoes would otherwise stand still, each side
        // waiting for the other to read.
        if begun.await.is_ok()
            && let Some(input) = input
        {
            while let Some(piece) = input.recv().await {
                let piece = piece.map_err(|e| Failure::local("cannot read the input", &e))?;
                for chunk in piece.chunks(STREAM_CHUNK_BYTES) {
                    if sink
                        .send(Message::Binary(frame(Channel::Input, chunk)))
                        .await
                        .is_err()
                    {
                        return Ok(());
                    }
                }
            }
            // A broken connection is noticed on the receiving side, with its reason.
            drop(
                sink.send(Message::Binary(frame(Channel::InputEnd, b"")))
                    .await,
            );
        }
        Ok(())
    };
    let receive = async {
        let mut begin = Some(begin);
        while let Some(Ok(message)) = source.next().await {
            let Some((channel, payload)) = stream::payload(message).and_then(parse) else {
                continue;
            };
            let taken = match channel {
                Channel::Begun => {
                    // The sender may have ended already; then nobody waits for this.
                    let _ = begin.take().map(|begin| begin.send(()));
                    ControlFlow::Continue(())
                }
                Channel::Output => take(Piece::Out(payload))?,
                Channel::ErrorOutput => take(Piece::Err(payload))?,
                Channel::End => {
                    let end = serde_json::from_slice(&payload).map_err(|e| {
                        Failure::new(Exit::Failed, format!("the stream's end is garbled: {e}"))
                    })?;
                    return Ok(Carried::Ended(end));
                }
                _ => ControlFlow::Continue(()),
            };
            if taken.is_break() {
                return Ok(Carried::Enough);
            }
        }
        Ok(Carried::Broken {
            begun: begin.is_none(),
        })
    };
    tokio::pin!(send);
    tokio::pin!(receive);
    tokio::select! {
        received = &mut receive => received,
        sent = &mut send => match sent {
            Ok(()) => receive.await,
            Err(failure) => Err(failure),
        },
    }
}

/// Reads a file or standard input on a thread of its own, as fast as the stream takes it.
pub(crate) fn read_all(mut reader: impl io::Read + Send + 'static) -> Input {
    let (pieces, input) = mpsc::channel(INPUT_PIECES);
    // It ends with its input, or when nobody takes the pieces any more; a read of a terminal that
    // never ends is ended with the process.
    std::thread::spawn(move || {
        let mut buffer = vec![0; STREAM_CHUNK_BYTES];
        loop {
            let piece = match reader.read(&mut buffer) {
                Ok(0) => return,
                Ok(length) => Ok(Bytes::copy_from_slice(&buffer[..length])),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => Err(e),
            };
            let failed = piece.is_err();
            if pieces.blocking_send(piece).is_err() || failed {
                return;
            }
        }
    });
    input
}
