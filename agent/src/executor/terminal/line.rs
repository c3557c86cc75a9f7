//! The two directions of a terminal, a process, a copy or a container's log, on one stream after another.
//!
//! A server that restarts in order asks for them to be held. Then nothing more is read of the process, what
//! was read is sent, and the server is told how much input the process has taken; so nothing is on its way, and
//! nothing has to be kept here. On the stream that the server's next process asks for both go on at the same byte.
//! A stream that breaks without that ends a terminal, a copy or the log, but not a process: its output is read on.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use fairlead_link::socket::{StreamReceiver, StreamSender, StreamSocket};
use fairlead_protocol::CommandId;
use fairlead_protocol::stream::{CAN_BE_HELD, Channel, Position, frame, is_hold, parse};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;

use super::super::attached::{send_output, size};
use super::super::copy::Spooled;
use super::super::surroundings::News;
use crate::pty::Pty;
use crate::runtime::{ContainerRuntime, Output, RuntimeError};

/// What is heard of a client before the process takes it. A client that keeps input sends no more ahead than half
/// of that, so that it is always heard.
const AHEAD_BYTES_MAX: usize = 1024 * 1024;
/// The same in pieces: sizes come between what is typed.
const AHEAD_PIECES_MAX: usize = 1024;
/// A client that keeps input is told of what was taken in steps of so much.
const TELL_EVERY: u64 = 16 * 1024;
/// How long the last output may take to the server that asked for it.
const QUIET_WITHIN: Duration = Duration::from_secs(5);
/// How long the server's next process has for its first word.
const RESUME_WITHIN: Duration = Duration::from_secs(10);
/// A stream that could not be dialled is waited for again after so long.
const AGAIN_AFTER: Duration = Duration::from_millis(100);
/// How often a client is tried that cannot be heard.
const BEAT_EVERY: Duration = Duration::from_secs(3);
/// How often a size is tried: an engine may say for a moment that the exec does not run yet.
const RESIZES_MAX: u32 = 20;
/// See [`RESIZES_MAX`].
const RESIZED_AGAIN_AFTER: Duration = Duration::from_millis(10);

/// Where a terminal's output comes from.
pub(in crate::executor) enum Source<'a> {
    /// An exec, a log, or an archive.
    Engine(BoxStream<'static, Result<Output, RuntimeError>>),
    /// A terminal of our own; its end is learnt elsewhere.
    Own(&'a Pty),
}

impl Source<'_> {
    async fn next(&mut self) -> Option<Result<Output, RuntimeError>> {
        match self {
            Self::Engine(output) => output.next().await,
            Self::Own(pty) => Some(Ok(Output::Stdout(pty.read().await.ok()?.into()))),
        }
    }
}

/// Where its input goes.
pub(in crate::executor) enum Sink<'a> {
    /// To an exec.
    Engine {
        runtime: &'a dyn ContainerRuntime,
        exec_id: &'a str,
        input: std::pin::Pin<Box<dyn AsyncWrite + Send>>,
        /// The size (columns, rows) that it is to have, and may not have yet.
        size: Option<(u16, u16)>,
    },
    /// To a terminal of our own.
    Own(&'a Pty),
    /// To an exec without a terminal, which its client's leaving does not end. What it does not take any more is
    /// thrown away.
    Process {
        input: std::pin::Pin<Box<dyn AsyncWrite + Send>>,
        is_closed: bool,
    },
    /// To the disk: a copy.
    File(&'a mut Spooled),
    /// Nowhere: a log.
    Nothing,
}

impl Sink<'_> {
    /// Some of it, and how much. What is dropped before it returns has taken nothing.
    async fn take(&mut self, data: &[u8]) -> std::io::Result<usize> {
        match self {
            Self::Engine { input, .. } => input.write(data).await,
            Self::Own(pty) => pty.write_some(data).await,
            Self::Process { input, is_closed } => {
                if !*is_closed {
                    match input.write(data).await {
                        Ok(some) if some > 0 => return Ok(some),
                        _ => *is_closed = true,
                    }
                }
                Ok(data.len())
            }
            Self::File(spooled) => spooled.take(data).await,
            Self::Nothing => Ok(data.len()),
        }
    }

    async fn flush(&mut self) -> std::io::Result<()> {
        match self {
            Self::Engine { input, .. } => input.flush().await,
            Self::Process { input, is_closed } => {
                *is_closed |= input.flush().await.is_err();
                Ok(())
            }
            Self::File(spooled) => spooled.flush().await,
            Self::Own(_) | Self::Nothing => Ok(()),
        }
    }

    /// The client sends nothing more.
    async fn end(&mut self) {
        match self {
            Self::Process { input, is_closed } => {
                let _ = input.shutdown().await;
                *is_closed = true;
            }
            Self::File(spooled) => spooled.end(),
            Self::Engine { .. } | Self::Own(_) | Self::Nothing => {}
        }
    }

    fn tie(&self) -> Tie {
        match self {
            Self::Engine { .. } | Self::Own(_) => Tie::Terminal,
            Self::Process { .. } => Tie::Process,
            Self::File(_) => Tie::Copy,
            Self::Nothing => Tie::Log,
        }
    }

    /// A terminal of the old size is still a terminal.
    async fn resize(&mut self, columns: u16, rows: u16) {
        match self {
            Self::Engine {
                runtime,
                exec_id,
                size,
                ..
            } => {
                *size = Some((columns, rows));
                for _ in 0..RESIZES_MAX {
                    if runtime.exec_resize(exec_id, columns, rows).await.is_ok() {
                        break;
                    }
                    tokio::time::sleep(RESIZED_AGAIN_AFTER).await;
                }
                *size = None;
            }
            Self::Own(pty) => {
                let _ = pty.resize(columns, rows);
            }
            Self::Process { .. } | Self::File(_) | Self::Nothing => {}
        }
    }
}

/// What binds it to its client.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tie {
    /// It ends with its client, and with its client's input.
    Terminal,
    /// It outlives its client, whose input may end.
    Process,
    /// It ends with its client, who is heard to the end.
    Copy,
    /// It ends with its client, who has nothing to say: a log, or a copy out of a container.
    Log,
}

/// Why nothing passes any more.
pub(in crate::executor) enum Left {
    /// The output has ended.
    Ended,
    /// The client has gone.
    Gone,
    /// It has, and comes back.
    Held,
    /// The engine broke.
    Failed(RuntimeError),
}

/// What runs, as a client sees it.
pub(in crate::executor) struct Line<'a> {
    source: Source<'a>,
    sink: Sink<'a>,
    sent: u64,
    taken: AtomicU64,
    /// The first of the output.
    pub(in crate::executor) beginning: Vec<u8>,
    beginning_max: usize,
}

impl<'a> Line<'a> {
    pub(in crate::executor) fn new(
        source: Source<'a>,
        sink: Sink<'a>,
        beginning_max: usize,
    ) -> Self {
        Self {
            source,
            sink,
            sent: 0,
            taken: AtomicU64::new(0),
            beginning: Vec::new(),
            beginning_max,
        }
    }

    /// Where it goes on.
    pub(in crate::executor) fn position(&self) -> Position {
        Position {
            output: self.sent,
            input: self.taken.load(Ordering::Relaxed),
        }
    }

    /// Its input ends, and its output goes nowhere, until that ends too.
    pub(in crate::executor) async fn drain(&mut self) -> Result<(), RuntimeError> {
        self.sink.end().await;
        while let Some(piece) = self.source.next().await {
            piece?;
        }
        Ok(())
    }

    /// Both ways on one stream, until one of its ends. Of what outlives its client only the output's end is one.
    pub(in crate::executor) async fn pass(
        &mut self,
        sender: &mut StreamSender,
        receiver: &mut StreamReceiver,
    ) -> Left {
        // A stream that broke already is noticed by the two below.
        let _ = sender.send(frame(Channel::Begun, CAN_BE_HELD)).await;
        let (way, quiet) = (Way::from(self.position().input), Notify::new());
        let tie = self.sink.tie();
        let left = {
            let inward = inward(receiver, &mut self.sink, &self.taken, &way);
            let outward = Outward {
                source: &mut self.source,
                sent: &mut self.sent,
                beginning: &mut self.beginning,
                beginning_max: self.beginning_max,
                tie,
            };
            let outward = outward.run(sender, &way, &quiet);
            tokio::pin!(inward, outward);
            tokio::select! {
                is_held = &mut inward => if is_held {
                    quiet.notify_one();
                    let last = tokio::time::timeout(QUIET_WITHIN, outward).await;
                    last.unwrap_or(Left::Gone)
                } else {
                    Left::Gone
                },
                left = &mut outward => left,
            }
        };
        if matches!(left, Left::Held) {
            let at = self.position().to_bytes();
            if sender.send(frame(Channel::Held, &at)).await.is_err() {
                return Left::Gone;
            }
            sender.close_behind(receiver).await;
        }
        left
    }
}

/// What was heard and not yet taken, and what is to be said of it.
struct Way {
    heard: Mutex<VecDeque<Word>>,
    came: Notify,
    room: Notify,
    /// Nobody hears the client now: it is noticed only by sending to it whether it has gone.
    deaf: AtomicBool,
    /// The client keeps input until it hears that it was taken.
    keeps: AtomicBool,
    told: AtomicU64,
    taken: AtomicU64,
    due: Notify,
}

enum Word {
    Input(BytesMut),
    Resize(u16, u16),
    /// Of the input.
    End,
    /// Of the client.
    Gone,
}

impl Way {
    fn from(taken: u64) -> Self {
        Self {
            heard: Mutex::default(),
            came: Notify::new(),
            room: Notify::new(),
            deaf: AtomicBool::new(false),
            keeps: AtomicBool::new(false),
            told: AtomicU64::new(taken),
            taken: AtomicU64::new(taken),
            due: Notify::new(),
        }
    }

    fn heard(&self) -> MutexGuard<'_, VecDeque<Word>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_full(&self) -> bool {
        let heard = self.heard();
        let bytes = heard.iter().map(|word| match word {
            Word::Input(data) => data.len(),
            Word::Resize(..) | Word::End | Word::Gone => 0,
        });
        heard.len() >= AHEAD_PIECES_MAX || bytes.sum::<usize>() >= AHEAD_BYTES_MAX
    }

    async fn until_room(&self) {
        while self.is_full() {
            self.deaf.store(true, Ordering::Relaxed);
            self.room.notified().await;
        }
        self.deaf.store(false, Ordering::Relaxed);
    }

    fn push(&self, word: Word) {
        let mut heard = self.heard();
        match (heard.back_mut(), word) {
            (Some(Word::Input(last)), Word::Input(more)) => last.extend_from_slice(&more),
            (Some(Word::Resize(columns, rows)), Word::Resize(c, r)) => (*columns, *rows) = (c, r),
            (_, word) => heard.push_back(word),
        }
        drop(heard);
        self.came.notify_one();
    }

    async fn next(&self) -> Word {
        loop {
            let next = self.heard().pop_front();
            if let Some(word) = next {
                self.room.notify_one();
                return word;
            }
            self.came.notified().await;
        }
    }

    fn took(&self, until: u64) {
        self.taken.store(until, Ordering::Relaxed);
        let untold = until - self.told.load(Ordering::Relaxed);
        if untold >= TELL_EVERY && self.keeps.load(Ordering::Relaxed) {
            self.due.notify_one();
        }
    }

    /// What the client is to be told now.
    async fn due(&self) -> Bytes {
        self.due.notified().await;
        let input = self.taken.load(Ordering::Relaxed);
        self.told.store(input, Ordering::Relaxed);
        let at = Position { output: 0, input };
        frame(Channel::Taken, &at.to_bytes())
    }

    /// Returns when a client is to be tried.
    async fn beat(&self) {
        loop {
            tokio::time::sleep(BEAT_EVERY).await;
            if self.deaf.load(Ordering::Relaxed) {
                return;
            }
        }
    }
}

/// Client to process; whether it is to be held.
async fn inward(
    receiver: &mut StreamReceiver,
    sink: &mut Sink<'_>,
    taken: &AtomicU64,
    way: &Way,
) -> bool {
    let tie = sink.tie();
    let giving = give(sink, taken, way);
    tokio::pin!(giving);
    let is_held = tokio::select! {
        is_held = hear(receiver, way, tie) => is_held,
        // It takes nothing any more.
        _ = &mut giving => return false,
    };
    // It gets all that its client has said before it went.
    let last = match tie {
        Tie::Process => Word::End,
        Tie::Copy => Word::Gone,
        Tie::Terminal | Tie::Log => return is_held,
    };
    if !is_held {
        way.push(last);
        let _ = giving.await;
    }
    is_held
}

async fn hear(receiver: &mut StreamReceiver, way: &Way, tie: Tie) -> bool {
    loop {
        way.until_room().await;
        let Ok(Some(bytes)) = receiver.hear().await else {
            return false;
        };
        match parse(bytes) {
            Some((Channel::Input, data)) => way.push(Word::Input(data.into())),
            Some((Channel::Resize, data)) => {
                if let Some((columns, rows)) = size(&data) {
                    way.push(Word::Resize(columns, rows));
                }
            }
            Some((Channel::Keep, _)) => {
                way.keeps.store(true, Ordering::Relaxed);
                way.took(way.taken.load(Ordering::Relaxed));
            }
            Some((Channel::InputEnd, _)) if tie != Tie::Terminal => way.push(Word::End),
            Some((Channel::Hold, _)) => return true,
            // Who was asked to hold before it began.
            Some((Channel::Resume, said))
                if Position::parse(&said) == Some(Position::default()) => {}
            Some(_) | None if tie == Tie::Log => {}
            // Nothing else may come from a client; and a terminal ends with its client's input.
            Some(_) | None => return false,
        }
    }
}

/// Returns when the process takes nothing any more, or its client has gone. Dropped at any moment, `taken` says how far
/// it came.
async fn give(sink: &mut Sink<'_>, taken: &AtomicU64, way: &Way) -> std::io::Result<()> {
    // An engine takes it when the process has begun. Beside that its output flows.
    if let Sink::Engine {
        size: Some((columns, rows)),
        ..
    } = *sink
    {
        sink.resize(columns, rows).await;
    }
    loop {
        match way.next().await {
            Word::Input(mut data) => {
                while !data.is_empty() {
                    let some = sink.take(&data).await?;
                    if some == 0 {
                        return Err(std::io::ErrorKind::WriteZero.into());
                    }
                    data.advance(some);
                    let before = taken.fetch_add(some as u64, Ordering::Relaxed);
                    way.took(before + some as u64);
                }
                sink.flush().await?;
            }
            Word::Resize(columns, rows) => sink.resize(columns, rows).await,
            Word::End => sink.end().await,
            Word::Gone => return Ok(()),
        }
    }
}

/// Process to client.
struct Outward<'a, 'b> {
    source: &'a mut Source<'b>,
    sent: &'a mut u64,
    beginning: &'a mut Vec<u8>,
    beginning_max: usize,
    tie: Tie,
}

impl Outward<'_, '_> {
    async fn run(self, sender: &mut StreamSender, way: &Way, quiet: &Notify) -> Left {
        // Where the client has gone and what runs has not, it is read and not sent.
        let mut listens = true;
        loop {
            let piece = tokio::select! {
                biased;
                () = quiet.notified() => return Left::Held,
                due = way.due(), if listens => {
                    listens = sender.send(due).await.is_ok();
                    None
                }
                piece = self.source.next() => match piece {
                    Some(Ok(piece)) => Some(piece),
                    Some(Err(error)) => return Left::Failed(error),
                    None => return Left::Ended,
                },
                () = way.beat(), if listens => {
                    listens = sender.send(frame(Channel::Output, &[])).await.is_ok();
                    None
                }
            };
            if let Some(piece) = piece {
                let (Output::Stdout(data) | Output::Stderr(data)) = &piece;
                let room = self.beginning_max.saturating_sub(self.beginning.len());
                self.beginning
                    .extend_from_slice(&data[..room.min(data.len())]);
                *self.sent += data.len() as u64;
                listens = listens && send_output(sender, piece).await;
            }
            if !listens && matches!(self.tie, Tie::Terminal | Tie::Log) {
                return Left::Gone;
            }
        }
    }
}

/// The next stream of what is held.
pub(in crate::executor) struct Again<'a> {
    pub(in crate::executor) id: CommandId,
    pub(in crate::executor) news: &'a mpsc::Sender<News>,
    /// How long it is held.
    pub(in crate::executor) within: Duration,
}

impl Again<'_> {
    /// The stream on which it goes on there; `None` when nobody came for it, or somebody who goes on elsewhere.
    pub(in crate::executor) async fn stream(&self, at: Position) -> Option<StreamSocket> {
        let until = Instant::now() + self.within;
        loop {
            let (slot, coming) = oneshot::channel();
            let news = News::AwaitsStream { id: self.id, slot };
            self.news.send(news).await.ok()?;
            match tokio::time::timeout_at(until, coming).await {
                Ok(Ok(mut stream)) => match first(&mut stream).await {
                    Some(word) if !is_hold(&word) => return resumes(word, at).then_some(stream),
                    // Who came for it has gone without a word of its own: its server restarts as well.
                    Some(_) | None => tokio::time::sleep(AGAIN_AFTER).await,
                },
                // There was no link to dial on.
                Ok(Err(_)) => tokio::time::sleep(AGAIN_AFTER).await,
                Err(_) => return None,
            }
        }
    }
}

async fn first(stream: &mut StreamSocket) -> Option<Bytes> {
    let first = tokio::time::timeout(RESUME_WITHIN, stream.hear()).await;
    first.ok()?.ok()?
}

fn resumes(word: Bytes, at: Position) -> bool {
    matches!(parse(word), Some((Channel::Resume, said)) if Position::parse(&said) == Some(at))
}

#[cfg(test)]
mod tests;
