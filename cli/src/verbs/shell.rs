//! `shell` and `exec -it`: a terminal in a container, or on a host itself, in this terminal. The same session as the browser's:
//! one ticket, one recording, one list.

use std::collections::VecDeque;
use std::io::{IsTerminal, Read, Write};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fairlead_api::types::{TerminalRequest, TerminalTicket};
use futures_util::{SinkExt, StreamExt};
use rustix::termios::{self, OptionalActions, Termios};
use serde::Deserialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;

use super::{Context, act, process};
use crate::args::{Exec, Shell};
use crate::client::Client;
use crate::exit::{Exit, Failure, remote_code};
use crate::output::{clean, say};
use crate::stream::{self, Stream};

/// Pieces of input that wait to be sent; what is read beyond waits in the terminal.
const INPUT_PIECES: usize = 4;
/// What is read of the keyboard at once.
const INPUT_BYTES: usize = 4096;
/// Output is acknowledged in steps.
const TELL_EVERY: u64 = 32 * 1024;
/// How long a goodbye may take.
const CLOSE_WITHIN: Duration = Duration::from_secs(1);
/// A session without us is kept for a minute; some of that is the way.
const COME_BACK_WITHIN: Duration = Duration::from_secs(58);

/// This terminal, raw until it is dropped.
struct Raw(Termios);

impl Raw {
    fn begin() -> Result<Self, Failure> {
        let failed = |e: rustix::io::Errno| {
            Failure::local("cannot set this terminal up", &std::io::Error::from(e))
        };
        let before = termios::tcgetattr(std::io::stdin()).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(std::io::stdin(), OptionalActions::Now, &raw).map_err(failed)?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // There is nothing to be done about a terminal that has gone.
        let _ = termios::tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
    }
}

fn size() -> (u16, u16) {
    match termios::tcgetwinsize(std::io::stdout()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
            (size.ws_col.min(1000), size.ws_row.min(1000))
        }
        _ => (80, 25),
    }
}

#[derive(Debug, Default, Deserialize)]
struct Open {
    from: u64,
    received: u64,
    taken: u64,
    window: u64,
    gap: bool,
}

#[derive(Debug, Default, Deserialize)]
struct Ended {
    code: String,
    message: String,
    exit_code: Option<i32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Said {
    open: Option<Open>,
    taken: Option<u64>,
    ended: Option<Ended>,
}

/// `fairlead shell`
pub(crate) async fn shell(context: &Context, args: Shell) -> Result<Exit, Failure> {
    let (columns, rows) = size();
    let Some(container) = &args.container else {
        let request = TerminalRequest {
            host: args.host,
            on_host: true,
            columns,
            rows,
            ..TerminalRequest::default()
        };
        return run(context, request).await;
    };
    let target = act::target(container, args.host.as_deref())?;
    let request = TerminalRequest {
        host: target.host,
        container: target.name,
        user: args.user,
        workdir: args.workdir,
        columns,
        rows,
        ..TerminalRequest::default()
    };
    run(context, request).await
}

/// `fairlead exec -it`
pub(crate) async fn exec(context: &Context, args: Exec) -> Result<Exit, Failure> {
    if args.detach || !args.interactive {
        return Err(Failure::usage(
            "a terminal is interactive: write exec -it, without -d",
        ));
    }
    let env = process::exec_env(&args)?;
    let mut words = args.container_and_command.into_iter();
    let target = act::target(&words.next().unwrap_or_default(), args.host.as_deref())?;
    let (columns, rows) = size();
    let request = TerminalRequest {
        host: target.host,
        container: target.name,
        command: words.collect(),
        env,
        user: args.user,
        workdir: args.workdir,
        privileged: args.privileged,
        columns,
        rows,
        ..TerminalRequest::default()
    };
    run(context, request).await
}

async fn run(context: &Context, request: TerminalRequest) -> Result<Exit, Failure> {
    if !std::io::stdin().is_terminal() || !std::io::stdout().is_terminal() {
        return Err(Failure::usage("the input is not a terminal")
            .hint("without a terminal: fairlead exec -i CONTAINER COMMAND"));
    }
    let client = context.client()?;
    let (ticket, socket) = first(&client, request).await?;
    let mut session = Session {
        id: ticket.session.clone(),
        keys: keyboard(),
        resized: signal(SignalKind::window_change())
            .map_err(|e| Failure::local("cannot hear of this terminal's size", &e))?,
        typed: VecDeque::new(),
        received: None,
        told: 0,
        taken: 0,
        sent: 0,
        window: 0,
        begun: false,
    };
    let raw = Raw::begin()?;
    let ended = session.live(&client, ticket, socket).await;
    drop(raw);
    let ended = ended?;
    match ended.exit_code {
        Some(code) if ended.code.is_empty() && code != 0 => Ok(Exit::Remote(remote_code(code))),
        _ if ended.code.is_empty() => Ok(Exit::Ok),
        _ => Err(Failure::new(
            Exit::of_code(&ended.code).unwrap_or(Exit::Failed),
            ended.message,
        )
        .code(ended.code)),
    }
}

/// The first ticket, and its socket: at the region's access server, or through the controller where that is
/// not reached from here.
async fn first(
    client: &Client,
    mut request: TerminalRequest,
) -> Result<(TerminalTicket, Stream), Failure> {
    let ticket: TerminalTicket = client.post(&["terminals"], &request).await?;
    let why = match stream::open_terminal(client, &ticket).await {
        Ok(socket) => return Ok((ticket, socket)),
        Err(failure) => failure,
    };
    let Some(server) = &ticket.server else {
        return Err(why);
    };
    say(&format!(
        "through the controller: {} is not reached from here ({})",
        clean(server),
        clean(&why.message)
    ));
    request.relay = true;
    let ticket: TerminalTicket = client.post(&["terminals"], &request).await?;
    let socket = stream::open_terminal(client, &ticket).await?;
    Ok((ticket, socket))
}

/// Reads the keyboard on a thread of its own; it ends with the process.
fn keyboard() -> mpsc::Receiver<Bytes> {
    let (pieces, keys) = mpsc::channel(INPUT_PIECES);
    std::thread::spawn(move || {
        let mut buffer = [0; INPUT_BYTES];
        let mut stdin = std::io::stdin().lock();
        while let Ok(length) = stdin.read(&mut buffer) {
            let piece = Bytes::copy_from_slice(&buffer[..length]);
            if length == 0 || pieces.blocking_send(piece).is_err() {
                return;
            }
        }
    });
    keys
}

struct Session {
    id: String,
    keys: mpsc::Receiver<Bytes>,
    resized: tokio::signal::unix::Signal,
    /// What was typed and is not yet taken, from byte `taken` on.
    typed: VecDeque<u8>,
    received: Option<u64>,
    told: u64,
    taken: u64,
    sent: u64,
    window: u64,
    begun: bool,
}

impl Session {
    /// Until it ends; comes back to it when the connection breaks.
    async fn live(
        &mut self,
        client: &Client,
        first: TerminalTicket,
        socket: Stream,
    ) -> Result<Ended, Failure> {
        let mut ticket = first;
        let mut socket = Some(socket);
        let mut away: Option<Instant> = None;
        loop {
            match self.connected(client, &ticket, socket.take()).await {
                Ok(Some(ended)) => return Ok(ended),
                Ok(None) => away = Some(Instant::now()),
                Err(failure) if self.received.is_none() => return Err(failure),
                Err(failure) if !failure.transient => return Err(failure),
                // Its server is away for longer than it keeps a session.
                Err(failure) if away.is_some_and(|since| since.elapsed() >= COME_BACK_WITHIN) => {
                    return Err(failure);
                }
                Err(_) => {}
            }
            let since = *away.get_or_insert_with(Instant::now);
            loop {
                tokio::time::sleep(Duration::from_millis(500)).await;
                let path = ["terminals", &self.id, "ticket"];
                match client.post(&path, &serde_json::json!({})).await {
                    Ok(next) => {
                        ticket = next;
                        break;
                    }
                    Err(failure) if failure.transient && since.elapsed() < COME_BACK_WITHIN => {}
                    Err(failure) => return Err(failure),
                }
            }
        }
    }

    /// One connection, which may be there already; `None` when it broke.
    async fn connected(
        &mut self,
        client: &Client,
        ticket: &TerminalTicket,
        socket: Option<Stream>,
    ) -> Result<Option<Ended>, Failure> {
        let mut socket = match socket {
            Some(socket) => socket,
            None => stream::open_terminal(client, ticket).await?,
        };
        let (columns, rows) = size();
        let mut hello = serde_json::json!({
            "ticket": ticket.ticket, "columns": columns, "rows": rows,
        });
        if let Some(from) = self.received {
            hello["from"] = from.into();
        }
        if !say_to(&mut socket, &hello).await {
            return Ok(None);
        }
        self.begun = false;
        loop {
            if !self.send_typed(&mut socket).await {
                return Ok(None);
            }
            let room = self.typed.len() < INPUT_BYTES * INPUT_PIECES;
            tokio::select! {
                heard = socket.next() => match heard {
                    Some(Ok(Message::Binary(bytes))) => {
                        if !self.show(&mut socket, &bytes).await? {
                            return Ok(None);
                        }
                    }
                    Some(Ok(Message::Text(text))) => {
                        if let Some(ended) = self.on_said(&text) {
                            // Closing tells the server that this was heard.
                            let close = tokio::time::timeout(CLOSE_WITHIN, socket.close(None));
                            let _ = close.await;
                            return Ok(Some(ended));
                        }
                    }
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return Ok(None),
                    Some(Ok(_)) => {}
                },
                Some(keys) = self.keys.recv(), if room => self.typed.extend(keys),
                _ = self.resized.recv() => {
                    let (columns, rows) = size();
                    let resize = serde_json::json!({
                        "resize": { "columns": columns, "rows": rows }
                    });
                    if !say_to(&mut socket, &resize).await {
                        return Ok(None);
                    }
                }
            }
        }
    }

    fn on_said(&mut self, text: &str) -> Option<Ended> {
        if text == r#""begun""# {
            self.begun = true;
            return None;
        }
        let said: Said = serde_json::from_str(text).unwrap_or_default();
        if let Some(open) = said.open {
            self.drop_taken(open.taken);
            self.sent = open.received;
            self.window = open.window;
            self.received = Some(open.from);
            self.told = open.from;
            if open.gap {
                say("some output is lost");
            }
        }
        if let Some(taken) = said.taken {
            self.drop_taken(taken);
        }
        said.ended
    }

    fn drop_taken(&mut self, until: u64) {
        let gone = usize::try_from(until.saturating_sub(self.taken)).unwrap_or(usize::MAX);
        self.typed.drain(..gone.min(self.typed.len()));
        self.taken = self.taken.max(until);
    }

    /// Sends what the window allows; `false` when the connection broke.
    async fn send_typed(&mut self, socket: &mut Stream) -> bool {
        while self.begun {
            let ahead = self.sent.saturating_sub(self.taken);
            let skip = usize::try_from(ahead).unwrap_or(usize::MAX);
            let room = usize::try_from(self.window.saturating_sub(ahead)).unwrap_or(0);
            let piece: Vec<u8> = self
                .typed
                .iter()
                .skip(skip)
                .take(room.min(INPUT_BYTES))
                .copied()
                .collect();
            if piece.is_empty() {
                break;
            }
            self.sent += piece.len() as u64;
            if socket.send(Message::Binary(piece.into())).await.is_err() {
                return false;
            }
        }
        true
    }

    async fn show(&mut self, socket: &mut Stream, bytes: &[u8]) -> Result<bool, Failure> {
        let mut out = std::io::stdout().lock();
        out.write_all(bytes)
            .and_then(|()| out.flush())
            .map_err(|e| Failure::local("cannot write to this terminal", &e))?;
        drop(out);
        let received = self.received.unwrap_or_default() + bytes.len() as u64;
        self.received = Some(received);
        if received - self.told < TELL_EVERY {
            return Ok(true);
        }
        self.told = received;
        Ok(say_to(socket, &serde_json::json!({ "shown": received })).await)
    }
}

async fn say_to(socket: &mut Stream, what: &serde_json::Value) -> bool {
    let text = Message::Text(what.to_string().into());
    socket.send(text).await.is_ok()
}
