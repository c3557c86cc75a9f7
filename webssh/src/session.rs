//! One terminal: the agent's stream, at most one page, the recording.
//!
//! The task owns all three. Nothing waits for anything else: input goes on while output waits and the
//! other way round, each within its window. A page that goes leaves the session for a minute; one that
//! comes back goes on at the byte that it names.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use fairlead_protocol::limits::STREAM_CHUNK_BYTES;
use fairlead_protocol::stream::{CAN_BE_HELD, Channel, Position, frame, parse};
use fairlead_protocol::{CommandId, FrozenTerminal, HostId, codes};
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::Now;
use crate::backlog::Backlog;
use crate::message::{Down, End, INPUT_WINDOW, Up};
use crate::recording::file::Recorder;
pub(crate) use ends::{Ends, Kick};
use ends::{host_revoked, token_ended};
use input::Input;

mod ends;
pub(crate) mod freezing;
mod input;

/// A session without a page is kept for so long.
pub const KEPT_ALONE: Duration = Duration::from_secs(60);
/// A session into which nobody has typed for so long is ended.
pub const IDLE_MAX: Duration = Duration::from_secs(12 * 3600);
/// How often the recording is written and time looked at.
const TICK: Duration = Duration::from_millis(200);
/// How long a page has to take the last words.
const LAST_WORDS_WITHIN: Duration = Duration::from_secs(2);

/// Both ends of a command's stream; the bytes are frames of `fairlead_protocol::stream`.
pub struct Pipe {
    /// Towards the agent.
    pub to_agent: mpsc::Sender<Bytes>,
    /// From the agent; ends when the stream ends.
    pub from_agent: mpsc::Receiver<Bytes>,
    /// Fires when the host is revoked.
    pub cut: CancellationToken,
}

/// Whose terminal it is, and where.
#[derive(Debug, Clone)]
pub struct Info {
    /// The session: the command's id.
    pub session: CommandId,
    /// Who.
    pub user: String,
    /// With which API token.
    pub token_id: String,
    /// Whose.
    pub tenant: String,
    /// The region's name.
    pub region: String,
    /// The host.
    pub host_id: HostId,
    /// Its name.
    pub host: String,
    /// The container's name.
    pub container: String,
    /// Its id.
    pub container_id: String,
    /// The user in the container; empty: the container's own.
    pub exec_user: String,
    /// Size at first.
    pub size: (u16, u16),
}

/// What may be looked at from outside while it goes on.
#[derive(Debug)]
pub struct Shared {
    /// Whose it is, and where.
    pub info: Info,
    /// When it was opened.
    pub started_us: i64,
    /// Whether a page is there.
    pub has_page: AtomicBool,
    /// Bytes of output that came.
    pub output: AtomicU64,
    /// Bytes of input that were passed on.
    pub input: AtomicU64,
    /// When somebody last typed.
    pub typed_us: AtomicI64,
}

/// How it was.
#[derive(Debug, Clone)]
pub struct Ended {
    /// Whose it was, and where.
    pub info: Info,
    /// How it ended.
    pub end: End,
    /// How long it was open.
    pub lasted: Duration,
    /// Bytes of output.
    pub output: u64,
    /// Bytes of input.
    pub input: u64,
    /// The last hash of its recording; empty when it could not be ended.
    pub recording: String,
}

impl Ended {
    /// Why, in few words: a code, or how the shell ended.
    #[must_use]
    pub fn why(&self) -> String {
        match self.end.exit_code {
            _ if !self.end.code.is_empty() => self.end.code.clone(),
            Some(code) => format!("the shell ended with {code}"),
            None => "the shell ended".to_owned(),
        }
    }
}

/// To a page.
#[derive(Debug)]
pub(crate) enum ToPage {
    Say(Down),
    Output(Bytes),
}

/// From a page.
#[derive(Debug)]
pub(crate) enum FromPage {
    Say(Up),
    Input(Bytes),
    /// It has had the last word, and has closed.
    HeardEnd,
}

/// A page that comes to a session.
pub(crate) struct Page {
    pub(crate) to: mpsc::Sender<ToPage>,
    pub(crate) from: mpsc::Receiver<FromPage>,
    pub(crate) size: (u16, u16),
    pub(crate) go_on_at: Option<u64>,
}

/// What became of a session in this process.
pub(crate) enum Finished {
    Ended(Box<Ended>),
    /// It goes on in the next one.
    Frozen(Box<FrozenTerminal>),
}

struct Attached {
    to: mpsc::Sender<ToPage>,
    from: mpsc::Receiver<FromPage>,
    /// The next byte of output to send.
    next: u64,
    open: Option<Down>,
    begun_told: bool,
    taken_told: u64,
    end_told: bool,
}

pub(crate) struct Session {
    pub(crate) shared: Arc<Shared>,
    pub(crate) pipe: Pipe,
    pub(crate) recorder: Recorder,
    pub(crate) pages: mpsc::Receiver<Page>,
    pub(crate) ends: Ends,
    pub(crate) now: Now,
    backlog: Backlog,
    page: Option<Attached>,
    alone_since: Instant,
    typed_at: Instant,
    size: (u16, u16),
    input: Input,
    resize: Option<(u16, u16)>,
    begun: bool,
    /// The host holds it while we are away, if we ask.
    can_be_held: bool,
    /// The shell has ended, or the stream.
    over: Option<End>,
}

enum Event {
    Page(Option<Page>),
    Said(Option<FromPage>),
    PageReady(bool),
    AgentReady(bool),
    Frame(Option<Bytes>),
    Tick,
    End(End),
    Leaves,
}

/// The last frame of a command's stream.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct LastFrame {
    code: String,
    message: String,
    exit_code: Option<i32>,
}

fn end(code: &str, message: impl Into<String>) -> End {
    End::new(code, message)
}

impl Session {
    pub(crate) fn new(
        shared: Arc<Shared>,
        pipe: Pipe,
        recorder: Recorder,
        pages: mpsc::Receiver<Page>,
        ends: Ends,
        now: Now,
    ) -> Self {
        let size = shared.info.size;
        Self {
            shared,
            pipe,
            recorder,
            pages,
            ends,
            now,
            backlog: Backlog::default(),
            page: None,
            alone_since: Instant::now(),
            typed_at: Instant::now(),
            size,
            input: Input::default(),
            resize: None,
            begun: false,
            can_be_held: false,
            over: None,
        }
    }

    /// Until the shell, somebody, or time ends it, or the server drains. `lost` says of a stream that ended
    /// without a word why it did.
    pub(crate) async fn run(mut self, lost: impl Future<Output = Option<End>>) -> Finished {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ending = loop {
            let event = self.next(&mut ticks).await;
            if matches!(event, Event::Leaves) {
                match self.freeze().await {
                    Ok(frozen) => return Finished::Frozen(Box::new(frozen)),
                    Err(end) => break end,
                }
            }
            if let Some(end) = self.on(event).await {
                break end;
            }
        };
        if ending.code == codes::STREAM_LOST
            && let Some(known) = lost.await
        {
            ending = known;
        }
        Finished::Ended(Box::new(self.close(ending).await))
    }

    async fn next(&mut self, ticks: &mut tokio::time::Interval) -> Event {
        let passed = self.passed();
        let reads = self.over.is_none() && self.backlog.wants_more();
        let passes =
            self.begun && self.over.is_none() && (self.resize.is_some() || self.input.has_next());
        let (to, from, has_news) = match &mut self.page {
            Some(page) => {
                let has_news = (self.over.is_some() && !page.end_told)
                    || page.has_news(&self.backlog, self.begun, passed, self.input.is_empty());
                (Some(&page.to), Some(&mut page.from), has_news)
            }
            None => (None, None, false),
        };
        let said = async {
            match from {
                Some(from) => from.recv().await,
                None => std::future::pending().await,
            }
        };
        let ready = async {
            match to {
                Some(to) => to.reserve().await.is_ok(),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // What ends it comes first: nothing more passes once a token is revoked.
            biased;
            () = self.ends.token.cancelled() => Event::End(token_ended()),
            () = self.pipe.cut.cancelled() => Event::End(host_revoked()),
            () = self.ends.kick.fired.cancelled() => Event::End(self.ends.kick.why()),
            () = self.ends.shutdown.cancelled() => Event::Leaves,
            page = self.pages.recv() => Event::Page(page),
            said = said => Event::Said(said),
            // This task is the only sender: what there is room for now can be sent afterwards.
            room = self.pipe.to_agent.reserve(), if passes => Event::AgentReady(room.is_ok()),
            frame = self.pipe.from_agent.recv(), if reads => Event::Frame(frame),
            room = ready, if has_news => Event::PageReady(room),
            _ = ticks.tick() => Event::Tick,
        }
    }

    /// `Some`: it is over.
    async fn on(&mut self, event: Event) -> Option<End> {
        match event {
            Event::End(end) => return Some(end),
            Event::Page(Some(page)) => self.attach(page),
            // Whoever lets pages in has gone: the server is going.
            Event::Page(None) | Event::Leaves => return Some(restarting()),
            Event::Said(Some(said)) => return self.on_said(said),
            Event::Said(None) | Event::PageReady(false) => self.detach(),
            Event::PageReady(true) => self.tell(),
            Event::AgentReady(true) => self.pass_on(),
            // The end of the stream is heard next: not while there is something to pass on.
            Event::AgentReady(false) => {
                self.input.drop_waiting();
                self.resize = None;
            }
            Event::Frame(frame) => return self.on_frame(frame).await,
            Event::Tick => return self.on_tick().await,
        }
        None
    }

    fn attach(&mut self, page: Page) {
        if let Some(before) = self.page.take() {
            let moved = End {
                resumable: true,
                ..end(
                    codes::ALREADY_EXISTS,
                    "this terminal was opened in another place",
                )
            };
            // One that takes nothing notices by its socket's end.
            let _ = before.to.try_send(ToPage::Say(Down::Ended(moved)));
        }
        let (next, gap) = self.backlog.resume(page.go_on_at);
        let info = &self.shared.info;
        let open = Down::Open {
            session: info.session.to_string(),
            host: info.host.clone(),
            container: info.container.clone(),
            from: next,
            received: self.input.received(),
            taken: self.passed(),
            window: INPUT_WINDOW,
            gap,
        };
        self.page = Some(Attached {
            to: page.to,
            from: page.from,
            next,
            open: Some(open),
            begun_told: false,
            taken_told: self.passed(),
            end_told: false,
        });
        self.shared.has_page.store(true, Ordering::Relaxed);
        self.resized(page.size);
    }

    /// Input that has been passed on.
    fn passed(&self) -> u64 {
        self.input.passed()
    }

    fn detach(&mut self) {
        self.page = None;
        self.alone_since = Instant::now();
        self.shared.has_page.store(false, Ordering::Relaxed);
    }

    fn resized(&mut self, size: (u16, u16)) {
        if size != self.size {
            self.size = size;
            self.resize = Some(size);
            self.recorder.resized((self.now)(), size.0, size.1);
        }
    }

    fn on_said(&mut self, said: FromPage) -> Option<End> {
        match said {
            FromPage::Say(Up::Resize { columns, rows }) => self.resized((columns, rows)),
            FromPage::Say(Up::Shown(until)) => {
                if !self.backlog.shown(until) {
                    self.detach();
                }
            }
            FromPage::Input(bytes) => {
                self.typed_at = Instant::now();
                self.shared.typed_us.store((self.now)(), Ordering::Relaxed);
                // A page keeps to its window; one that does not is let go.
                if !self.input.receive(&bytes) {
                    self.detach();
                }
            }
            // A page whose connection broke before that comes back, and hears how it ended.
            FromPage::HeardEnd => return self.over.clone(),
        }
        None
    }

    /// There is room towards the agent.
    fn pass_on(&mut self) {
        let next = if let Some((columns, rows)) = self.resize.take() {
            let size = serde_json::json!({ "columns": columns, "rows": rows }).to_string();
            frame(Channel::Resize, size.as_bytes())
        } else {
            let (input, new) = self.input.next();
            self.shared.input.fetch_add(new as u64, Ordering::Relaxed);
            frame(Channel::Input, &input)
        };
        // A stream that broke in this moment says so by its end.
        let _ = self.pipe.to_agent.try_send(next);
    }

    async fn on_frame(&mut self, heard: Option<Bytes>) -> Option<End> {
        let Some(heard) = heard else {
            self.over = Some(end(
                codes::STREAM_LOST,
                "the connection to the host was lost",
            ));
            return self.over.clone();
        };
        match parse(heard) {
            Some((Channel::Begun, said)) => {
                self.begun = true;
                if said == CAN_BE_HELD {
                    self.can_be_held = true;
                    self.input.keep();
                    // Nothing has been passed on yet, so there is room.
                    let _ = self.pipe.to_agent.try_send(frame(Channel::Keep, &[]));
                }
            }
            Some((Channel::Taken, said)) if self.input.is_kept() => {
                let said = Position::parse(&said).map(|position| position.input);
                if said.is_none_or(|until| self.input.was_taken(until).is_err()) {
                    return Some(against_protocol());
                }
            }
            Some((Channel::Output | Channel::ErrorOutput, data)) => {
                self.shared
                    .output
                    .fetch_add(data.len() as u64, Ordering::Relaxed);
                if let Err(error) = self.recorder.output((self.now)(), &data).await {
                    return Some(not_recorded(&error));
                }
                self.backlog.push(data);
            }
            Some((Channel::End, data)) => {
                let said: LastFrame = serde_json::from_slice(&data).unwrap_or_default();
                // That a shell's last program failed is no failure of the terminal.
                let own = said.code == codes::EXIT_CODE;
                self.over = Some(End {
                    code: if own { String::new() } else { said.code },
                    message: if own { String::new() } else { said.message },
                    exit_code: said.exit_code,
                    resumable: false,
                });
            }
            _ => return Some(against_protocol()),
        }
        None
    }

    async fn on_tick(&mut self) -> Option<End> {
        if self.recorder.is_waiting()
            && let Err(error) = self.recorder.flush((self.now)()).await
        {
            return Some(not_recorded(&error));
        }
        if self.page.is_none() && self.alone_since.elapsed() >= KEPT_ALONE {
            let left = end(codes::TIMEOUT, "nobody came back to it within a minute");
            return Some(self.over.clone().unwrap_or(left));
        }
        if self.ends.until_us != 0 && (self.now)() >= self.ends.until_us {
            return Some(end(codes::UNAUTHENTICATED, "the API token has expired"));
        }
        if self.typed_at.elapsed() >= IDLE_MAX {
            return Some(end(codes::TIMEOUT, "nobody has typed into it for 12 hours"));
        }
        None
    }

    /// There is room towards the page.
    fn tell(&mut self) {
        let passed = self.passed();
        let Some(page) = &mut self.page else { return };
        let say = if let Some(open) = page.open.take() {
            ToPage::Say(open)
        } else if self.begun && !page.begun_told {
            page.begun_told = true;
            ToPage::Say(Down::Begun)
        } else if page.owes_taken(passed, self.input.is_empty()) {
            page.taken_told = passed;
            ToPage::Say(Down::Taken(passed))
        } else if let Some(end) = self
            .over
            .as_ref()
            .filter(|_| page.next == self.backlog.end())
        {
            page.end_told = true;
            ToPage::Say(Down::Ended(end.clone()))
        } else {
            let piece = self.backlog.read(page.next, STREAM_CHUNK_BYTES);
            page.next += piece.len() as u64;
            ToPage::Output(piece)
        };
        // There is room: this task alone sends. One that went in this moment is noticed next.
        let _ = page.to.try_send(say);
    }

    async fn close(mut self, end: End) -> Ended {
        let now_us = (self.now)();
        if let Some(page) = self.page.take() {
            let last = page.to.send(ToPage::Say(Down::Ended(end.clone())));
            // A page that takes nothing is left to its fate.
            let _ = tokio::time::timeout(LAST_WORDS_WITHIN, last).await;
        }
        let recording = match self.recorder.end(now_us).await {
            Ok(hash) => hash,
            Err(error) => {
                tracing::error!(session = %self.shared.info.session, %error, "a recording has no end");
                String::new()
            }
        };
        let lasted_us = now_us.saturating_sub(self.shared.started_us).max(0);
        Ended {
            info: self.shared.info.clone(),
            end,
            lasted: Duration::from_micros(lasted_us.unsigned_abs()),
            output: self.shared.output.load(Ordering::Relaxed),
            input: self.shared.input.load(Ordering::Relaxed),
            recording,
        }
    }
}

fn restarting() -> End {
    end(codes::BUSY, "the server is restarting")
}

fn against_protocol() -> End {
    end(
        codes::PROTOCOL_VIOLATION,
        "the host said what no host may say",
    )
}

fn not_recorded(error: &std::io::Error) -> End {
    end(
        codes::STORAGE_UNAVAILABLE,
        format!("it cannot be recorded: {error}; without a recording there is no terminal"),
    )
}

impl Attached {
    fn owes_taken(&self, passed: u64, all: bool) -> bool {
        // In steps, so that a long paste does not cost a message for each piece of it.
        passed > self.taken_told && (all || passed - self.taken_told >= INPUT_WINDOW / 4)
    }

    fn has_news(&self, backlog: &Backlog, begun: bool, passed: u64, all: bool) -> bool {
        self.open.is_some()
            || (begun && !self.begun_told)
            || self.owes_taken(passed, all)
            || self.next < backlog.end()
    }
}

#[cfg(test)]
mod tests;
