//! A session over an orderly restart of its server: the host holds the terminal, what is known of it goes to
//! the server's disk, and the server's next process takes it up from there.
//!
//! Nothing is on its way when it is frozen: the host sends what it has read of the process, says how much input
//! the process has taken, and reads no more. So both sides go on at the same byte.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use fairlead_protocol::stream::{Channel, Position, frame, parse};
use fairlead_protocol::{CommandId, FrozenEnd, FrozenTerminal, HostId, TerminalInfo, codes};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::input::Input;
use super::{
    Ends, Info, Page, Pipe, Session, Shared, against_protocol, end, not_recorded, restarting,
};
use crate::Now;
use crate::backlog::Backlog;
use crate::message::End;
use crate::recording::file::Recorder;

/// How long the host has to hold it. Its last output comes within that.
const HELD_WITHIN: Duration = Duration::from_secs(3);
/// Output that may still be on its way: no connection holds more.
const UNDER_WAY_MAX: u64 = 8 << 20;
/// All that is frozen of one server.
const FROZEN_BYTES_MAX: u64 = 256 << 20;

/// Room for what is frozen.
#[derive(Debug, Clone, Default)]
pub(crate) struct Room(Arc<AtomicU64>);

impl Room {
    fn take(&self, bytes: u64) -> Result<(), End> {
        let before = self.0.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) > FROZEN_BYTES_MAX {
            return Err(restarting());
        }
        Ok(())
    }
}

impl Session {
    /// All that is needed to go on with it; an end where that cannot be.
    pub(super) async fn freeze(&mut self) -> Result<FrozenTerminal, End> {
        let room = self.ends.room.clone();
        let kept = self.backlog.end() - self.backlog.start();
        room.take(kept + self.input.rest().len() as u64)?;
        if self.over.is_none() {
            if !self.can_be_held {
                return Err(restarting());
            }
            let held = tokio::time::timeout(HELD_WITHIN, self.hold(&room)).await;
            held.unwrap_or_else(|_| Err(restarting()))?;
        }
        let now_us = (self.now)();
        let recording = self.recorder.freeze(now_us).await;
        let recording = recording.map_err(|error| not_recorded(&error))?;
        Ok(FrozenTerminal {
            session: self.shared.info.session.to_wire(),
            info: Some(self.shared.info.told(0)),
            region: self.shared.info.region.clone(),
            started_us: self.shared.started_us,
            typed_us: self.shared.typed_us.load(Ordering::Relaxed),
            columns: self.size.0.into(),
            rows: self.size.1.into(),
            until_us: self.ends.until_us,
            output: self.backlog.kept(),
            output_end: self.backlog.end(),
            output_shown: self.backlog.shown_until(),
            input_received: self.input.received(),
            input_taken: self.input.taken(),
            input: self.input.rest(),
            input_passed: self.input.passed(),
            recording: Some(recording),
            over: self.over.as_ref().map(frozen_end),
            ends: self.ends.fired(&self.pipe).as_ref().map(frozen_end),
        })
    }

    /// Asks the host to hold it, and takes what was on its way. Where the shell ends in that moment, there is
    /// nothing to be held.
    async fn hold(&mut self, room: &Room) -> Result<(), End> {
        let lost = || end(codes::STREAM_LOST, "the connection to the host was lost");
        let first = self.backlog.end();
        let mut asked = false;
        loop {
            let heard = tokio::select! {
                place = self.pipe.to_agent.reserve(), if !asked => {
                    place.map_err(|_| lost())?.send(frame(Channel::Hold, &[]));
                    asked = true;
                    continue;
                }
                heard = self.pipe.from_agent.recv() => heard.ok_or_else(lost)?,
            };
            if let Some((Channel::Held, said)) = parse(heard.clone()) {
                return self.held(&said);
            }
            room.take(heard.len() as u64)?;
            if let Some(end) = self.on_frame(Some(heard)).await {
                return Err(end);
            }
            if self.over.is_some() {
                return Ok(());
            }
            if self.backlog.end() - first > UNDER_WAY_MAX {
                return Err(restarting());
            }
        }
    }

    fn held(&mut self, said: &[u8]) -> Result<(), End> {
        let at = Position::parse(said).filter(|at| at.output == self.backlog.end());
        let at = at.ok_or_else(against_protocol)?;
        let taken = self.input.was_taken(at.input);
        taken.map_err(|_| against_protocol())
    }

    /// A session that was frozen `age` ago, on another stream of the same terminal.
    pub(crate) fn thawed(frozen: &FrozenTerminal, on: Thawed) -> Option<Self> {
        let output = (frozen.output_end, frozen.output_shown);
        let input = (
            frozen.input_received,
            frozen.input_taken,
            frozen.input_passed,
        );
        let backlog = Backlog::thawed(&frozen.output, output.0, output.1)?;
        let input = Input::thawed(input.0, input.1, input.2, &frozen.input)?;
        let now_us = (on.now)();
        let typed_ago = now_us.saturating_sub(frozen.typed_us).max(0);
        let size = (
            u16::try_from(frozen.columns).ok()?,
            u16::try_from(frozen.rows).ok()?,
        );
        let at = Position {
            output: frozen.output_end,
            input: frozen.input_taken,
        };
        // The first that is said on that stream.
        let _ = on
            .pipe
            .to_agent
            .try_send(frame(Channel::Resume, &at.to_bytes()));
        let mut session = Self::new(on.shared, on.pipe, on.recorder, on.pages, on.ends, on.now);
        session.alone_since = ago(on.age);
        session.typed_at = ago(Duration::from_micros(typed_ago.unsigned_abs()));
        session.backlog = backlog;
        session.input = input;
        session.size = size;
        // It may have been on its way.
        session.resize = Some(size);
        session.over = frozen.over.as_ref().map(thawed_end);
        Some(session)
    }
}

/// What a session that was frozen goes on with.
pub(crate) struct Thawed {
    pub(crate) shared: Arc<Shared>,
    pub(crate) pipe: Pipe,
    pub(crate) recorder: Recorder,
    pub(crate) pages: mpsc::Receiver<Page>,
    pub(crate) ends: Ends,
    pub(crate) now: Now,
    pub(crate) age: Duration,
}

/// What is looked at from outside, as it was.
pub(crate) fn thawed_shared(frozen: &FrozenTerminal, info: Info) -> Arc<Shared> {
    Arc::new(Shared {
        info,
        started_us: frozen.started_us,
        has_page: AtomicBool::new(false),
        output: AtomicU64::new(frozen.output_end),
        input: AtomicU64::new(frozen.input_passed),
        typed_us: AtomicI64::new(frozen.typed_us),
    })
}

/// A stream of which nothing is wanted any more.
pub(crate) fn no_pipe() -> Pipe {
    Pipe {
        to_agent: mpsc::channel(1).0,
        from_agent: mpsc::channel(1).1,
        cut: CancellationToken::new(),
    }
}

fn ago(age: Duration) -> Instant {
    let now = Instant::now();
    now.checked_sub(age).unwrap_or(now)
}

fn frozen_end(end: &End) -> FrozenEnd {
    FrozenEnd {
        code: end.code.clone(),
        message: end.message.clone(),
        exit_code: end.exit_code,
    }
}

pub(crate) fn thawed_end(end: &FrozenEnd) -> End {
    End {
        exit_code: end.exit_code,
        ..End::new(&end.code, &end.message)
    }
}

impl Info {
    /// As another process is told of it; `until_us`: when its API token ends.
    #[must_use]
    pub fn told(&self, until_us: i64) -> TerminalInfo {
        TerminalInfo {
            user: self.user.clone(),
            token_id: self.token_id.clone(),
            tenant: self.tenant.clone(),
            host: self.host_id.to_wire(),
            host_name: self.host.clone(),
            container: self.container.clone(),
            container_id: self.container_id.clone(),
            exec_user: self.exec_user.clone(),
            columns: self.size.0.into(),
            rows: self.size.1.into(),
            until_us,
        }
    }
}

/// Whose it was, and where.
pub(crate) fn thawed_info(frozen: &FrozenTerminal) -> Option<Info> {
    let said = frozen.info.clone()?;
    Some(Info {
        session: CommandId::from_wire(&frozen.session).ok()?,
        user: said.user,
        token_id: said.token_id,
        tenant: said.tenant,
        region: frozen.region.clone(),
        host_id: HostId::from_wire(&said.host).ok()?,
        host: said.host_name,
        container: said.container,
        container_id: said.container_id,
        exec_user: said.exec_user,
        size: (
            u16::try_from(said.columns).ok()?,
            u16::try_from(said.rows).ok()?,
        ),
    })
}
