//! Commands with a stream: hands the command over, opens its stream, carries bytes both ways, and
//! finds out how it ended when the stream breaks. Where the server restarts in order the stream goes on at the next one.

use std::cell::Cell;
use std::convert::Infallible;
use std::io;
use std::ops::ControlFlow;
use std::time::Duration;

use bytes::Bytes;
use fairlead_api::types::{Command, CommandRequest};
use fairlead_protocol::codes;
use fairlead_protocol::limits::STREAM_CHUNK_BYTES;
use fairlead_protocol::stream::flow::{self, Flow};
use fairlead_protocol::stream::{Channel, frame, parse};
use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;

use super::Context;
use super::act::{self, Patience, Teller};
use crate::client::Client;
use crate::exit::{Exit, Failure, remote_code, short};
use crate::output::say;
use crate::stream::{self, Stream};

/// Between two looks at a command whose stream has not begun.
const LOOK: Duration = Duration::from_secs(2);
/// A host holds no longer.
const HELD_FOR: Duration = Duration::from_secs(60);
/// Between two tries of what is held.
const AGAIN_EVERY: Duration = Duration::from_millis(200);
/// Before that nobody need know.
const SAID_AFTER: Duration = Duration::from_millis(3_500);
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
    /// The connection broke.
    Broken,
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
    let begun = Cell::new(false);
    loop {
        if command.is_final {
            return over(context, client, command).await;
        }
        match stream::open(client, &command.id, false).await {
            Ok(opened) => {
                let carried = tokio::select! {
                    carried = carry(client, &command, opened, &begun, &mut input, take) => carried?,
                    never = look_on(context, client, &command, &begun, &mut teller) => match never {},
                };
                match carried {
                    Carried::Ended(end) => return Ok(ended(command, end)),
                    Carried::Enough => return Ok(command),
                    Carried::Broken if begun.get() => return broke(context, client, command).await,
                    Carried::Broken => {}
                }
            }
            Err(failure) if worth_another_try(&failure) => {}
            Err(failure) => {
                // The reason may be that it has ended: then its end is the better answer.
                let newest = client.command(&command.id, Duration::ZERO).await?;
                return if newest.is_final {
                    over(context, client, newest).await
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

/// It has ended, and nothing of its stream was seen. What has run has lost its stream before the first word.
async fn over(context: &Context, client: &Client, command: Command) -> Result<Command, Failure> {
    let has_run = command.state == "succeeded" || command.exit_code.is_some();
    if has_run && command.kind != "copy-in" {
        return broke(context, client, command).await;
    }
    Ok(command)
}

/// What is left to say when a stream breaks that had begun. The end of a copy into a container says whether it is
/// whole; of what a command wrote a part is lost, and that is no success, however the process itself ended.
async fn broke(context: &Context, client: &Client, command: Command) -> Result<Command, Failure> {
    let lost = |exit: Exit, how: &str| {
        let text = format!("the connection to its output broke, and a part of it may be lost{how}");
        Failure::new(exit, text).code(codes::STREAM_LOST)
    };
    match command.kind.as_str() {
        "copy-in" => {
            say("the connection broke; whether the copy is whole is asked");
            act::wait(context, client, command).await
        }
        "exec" => {
            if !command.is_final {
                say(
                    "the connection to its output broke; the process goes on without input, and is waited for",
                );
            }
            let show = format!("fairlead command show {}", short(&command.id));
            let ended = act::wait(context, client, command).await?;
            let (exit, how) = match ended.exit_code {
                Some(0) => (Exit::Unreachable, "; the process ended with 0".to_owned()),
                Some(code) => {
                    let how = format!("; the process ended with {code}");
                    (Exit::Remote(remote_code(code)), how)
                }
                None => (Exit::Unreachable, format!("; it is {}", ended.state)),
            };
            Err(lost(exit, &how).hint(show))
        }
        _ => Err(lost(Exit::Unreachable, "").hint("ask for it again")),
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
    begun: &Cell<bool>,
    teller: &mut Teller,
) -> Infallible {
    loop {
        tokio::time::sleep(LOOK).await;
        if begun.get() {
            return std::future::pending().await;
        }
        match client.command(&command.id, Duration::ZERO).await {
            Ok(newest) if newest.state == "queued" => teller.look(context, client, &newest).await,
            // It is under way (or the stream will say what is wrong): nothing more to tell.
            Ok(_) | Err(_) => std::future::pending().await,
        }
    }
}

/// Carries bytes both ways until the command ends, over streams that are held.
async fn carry(
    client: &Client,
    command: &Command,
    mut stream: Stream,
    begun: &Cell<bool>,
    input: &mut Option<Input>,
    take: Taker<'_>,
) -> Result<Carried, Failure> {
    let mut flow = Flow::new(flow::Client::Plain);
    loop {
        if let Some(carried) = carry_one(stream, &mut flow, begun, input, take).await? {
            return Ok(carried);
        }
        match again(client, command, &mut flow).await? {
            Some(next) => stream = next,
            None => return Ok(Carried::Broken),
        }
    }
}

/// The same on one stream; `None` when the host holds it: the server restarts.
async fn carry_one(
    stream: Stream,
    flow: &mut Flow,
    begun: &Cell<bool>,
    input: &mut Option<Input>,
    take: Taker<'_>,
) -> Result<Option<Carried>, Failure> {
    let (mut sink, mut source) = stream.split();
    let (to_sink, mut frames) = mpsc::channel(INPUT_PIECES);
    // Both directions at once: a process that echoes would otherwise stand still, each side waiting for the other
    // to read. A broken connection is noticed on the receiving side, with its reason.
    let send = async {
        while let Some(frame) = frames.recv().await {
            if sink.send(Message::Binary(frame)).await.is_err() {
                break;
            }
        }
        std::future::pending().await
    };
    let both = async {
        loop {
            if let Some(heard) = flow.up.take()
                && let Some(carried) = heard_of_host(heard, begun, take)?
            {
                return Ok(Some(carried));
            }
            tokio::select! {
                message = source.next() => match message {
                    Some(Ok(message)) => if let Some(heard) = stream::payload(message)
                        && flow.on_host(heard).is_break()
                    {
                        return Ok(None);
                    },
                    _ => return Ok(Some(Carried::Broken)),
                },
                place = to_sink.reserve(), if !flow.down.is_empty() => {
                    if let (Ok(place), Some(frame)) = (place, flow.down.pop_front()) {
                        place.send(frame);
                    }
                }
                piece = next_piece(input), if begun.get() && input.is_some() && flow.has_room() => {
                    said_by_us(flow, input, piece)?;
                }
            }
        }
    };
    tokio::select! {
        carried = both => carried,
        never = send => match never {},
    }
}

async fn next_piece(input: &mut Option<Input>) -> Option<io::Result<Bytes>> {
    input.as_mut()?.recv().await
}

/// A piece of input, or its end.
fn said_by_us(
    flow: &mut Flow,
    input: &mut Option<Input>,
    piece: Option<io::Result<Bytes>>,
) -> Result<(), Failure> {
    let Some(piece) = piece else {
        *input = None;
        flow.on_client(frame(Channel::InputEnd, b""));
        return Ok(());
    };
    let piece = piece.map_err(|e| Failure::local("cannot read the input", &e))?;
    for chunk in piece.chunks(STREAM_CHUNK_BYTES) {
        flow.on_client(frame(Channel::Input, chunk));
    }
    Ok(())
}

/// What came, and whether no more does.
fn heard_of_host(
    heard: Bytes,
    begun: &Cell<bool>,
    take: Taker<'_>,
) -> Result<Option<Carried>, Failure> {
    let taken = match parse(heard) {
        Some((Channel::Begun, _)) => {
            begun.set(true);
            return Ok(None);
        }
        Some((Channel::Output, data)) => take(Piece::Out(data))?,
        Some((Channel::ErrorOutput, data)) => take(Piece::Err(data))?,
        Some((Channel::End, said)) => {
            let end = serde_json::from_slice(&said).map_err(|e| {
                Failure::new(Exit::Failed, format!("the stream's end is garbled: {e}"))
            })?;
            return Ok(Some(Carried::Ended(end)));
        }
        _ => return Ok(None),
    };
    Ok(taken.is_break().then_some(Carried::Enough))
}

async fn first(stream: &mut Stream) -> Option<Bytes> {
    while let Some(Ok(message)) = stream.next().await {
        if let Some(said) = stream::payload(message) {
            return Some(said);
        }
    }
    None
}

/// The stream on which the host goes on with what it holds; `None` when it does not.
async fn again(
    client: &Client,
    command: &Command,
    flow: &mut Flow,
) -> Result<Option<Stream>, Failure> {
    let began = Instant::now();
    let mut told = false;
    while began.elapsed() < HELD_FOR {
        let mut refused = None;
        match stream::open(client, &command.id, true).await {
            Ok(mut stream) => {
                let word = Message::Binary(flow.resume());
                let left = HELD_FOR.saturating_sub(began.elapsed());
                if stream.send(word).await.is_ok()
                    && let Ok(Some(said)) = tokio::time::timeout(left, first(&mut stream)).await
                {
                    flow.begin_again();
                    // It is held still when that server restarts as well.
                    if flow.on_host(said).is_continue() {
                        return Ok(Some(stream));
                    }
                }
            }
            Err(failure) if worth_another_try(&failure) => {}
            Err(failure) => refused = Some(failure),
        }
        if let Ok(newest) = client.command(&command.id, Duration::ZERO).await
            && newest.is_final
        {
            return Ok(None);
        }
        if let Some(refused) = refused {
            return Err(refused);
        }
        if !told && began.elapsed() > SAID_AFTER {
            told = true;
            say("the server restarts; the output goes on when it is back");
        }
        tokio::time::sleep(AGAIN_EVERY).await;
    }
    Ok(None)
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
