//! Terminals whose sessions live here: where the bytes are. Opened by tickets of the controller, which is asked
//! again before anything begins; they go on while it is away.
//!
//! | module | what it decides |
//! |---|---|
//! | `opening` | that a ticket is good, and how a session reaches its host |
//! | `freezing` | what is kept of them over an orderly restart |
//! | `shipping` | recordings, from this disk to the controller's |
//!
//! What the centre wants ended is ended within its word's way here. It wants nothing while it is cut off, so a
//! session without it has a bound of its own.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, Weak};
use std::time::Duration;

use fairlead_daemon::shutdown::Shutdown;
use fairlead_identity::Root;
use fairlead_identity::signing::Keys;
use fairlead_identity::ticket::{self, TicketError};
use fairlead_protocol::{
    CommandId, CommandKeys, EndTerminal, OpenTerminal, OpenTerminals, RecordingTaken,
    TerminalAnswer, TerminalAsk, Ticket, codes, terminal_ask, uplink_up,
};
use fairlead_webssh::message::End;
use fairlead_webssh::recording::file::Recordings;
use fairlead_webssh::{Origins, Refused, Terminals};
use rustls::pki_types::UnixTime;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::region::Region;

pub mod freezing;
mod opening;
mod shipping;

/// How long the centre may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Without the centre nobody can end a session from there: it is not to go on for ever.
const CUT_OFF_MAX: Duration = Duration::from_secs(3600);
/// How often it is looked at what is open.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What is open is told when it changes, and every so many looks.
const TOLD_EVERY_LOOKS: u32 = 30;

/// What terminals need of the region, and the uplink of terminals.
pub struct Desk {
    address: String,
    origins: Origins,
    recordings: Recordings,
    keys: RwLock<Keys>,
    /// How far our clock is ahead of the centre's, which tickets and recordings go by.
    ahead_us: AtomicI64,
    asked: Mutex<HashMap<u64, oneshot::Sender<TerminalAnswer>>>,
    shipped: Mutex<Option<oneshot::Sender<RecordingTaken>>>,
    next_request: AtomicU64,
    /// Since when there is no uplink.
    cut_off: Mutex<Option<Instant>>,
    /// A session has ended: its recording can be shipped to its end.
    ended: Notify,
    terminals: OnceLock<Weak<Terminals>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Desk {
    /// No terminals yet; pages reach this server at that address.
    #[must_use]
    pub fn new(address: String, recordings: Recordings, root: Root) -> Self {
        Self {
            address,
            origins: Origins::default(),
            recordings,
            keys: RwLock::new(Keys::new(root)),
            ahead_us: AtomicI64::new(0),
            asked: Mutex::default(),
            shipped: Mutex::default(),
            next_request: AtomicU64::new(1),
            cut_off: Mutex::new(Some(Instant::now())),
            ended: Notify::new(),
            terminals: OnceLock::new(),
        }
    }

    /// The https address at which pages reach it.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The terminals of this region, served from now on.
    pub fn open(region: &Arc<Region>, desk: &Arc<Self>, shutdown: Shutdown) -> Arc<Terminals> {
        let (clock, time) = (region.clock.clone(), Arc::clone(desk));
        let terminals = Terminals::new(fairlead_webssh::Parts {
            opening: Arc::new(opening::Counter::new(region, desk)),
            origins: desk.origins.clone(),
            recordings: desk.recordings.clone(),
            now: Arc::new(move || time.centre_time(clock.now_us())),
            shutdown,
        });
        // A second call would be a defect; the first holds.
        let _ = desk.terminals.set(Arc::downgrade(&terminals));
        terminals
    }

    fn terminals(&self) -> Option<Arc<Terminals>> {
        self.terminals.get().and_then(Weak::upgrade)
    }

    /// The centre's time, when ours is that.
    fn centre_time(&self, now_us: i64) -> i64 {
        now_us.saturating_sub(self.ahead_us.load(Ordering::Relaxed))
    }

    // === the uplink

    /// The uplink is up.
    pub fn attached(&self, browser_origins: &[String], ahead_us: i64) {
        self.origins.set(browser_origins.iter().map(String::as_str));
        self.ahead_us.store(ahead_us, Ordering::Relaxed);
        *lock(&self.cut_off) = None;
    }

    /// The uplink is gone: nobody answers any more.
    pub fn detached(&self) {
        lock(&self.cut_off).get_or_insert_with(Instant::now);
        lock(&self.asked).clear();
        lock(&self.shipped).take();
    }

    /// The keys that may sign tickets.
    pub fn learn(&self, keys: &CommandKeys, now_us: i64) {
        let now_s = self.centre_time(now_us).max(0).unsigned_abs() / 1_000_000;
        let now = UnixTime::since_unix_epoch(Duration::from_secs(now_s));
        let mut known = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        for error in known.learn(keys, now) {
            tracing::error!(%error, "a command key is not believed");
        }
    }

    /// The ticket in that text, when it is one for this region.
    fn read(&self, text: &str, region: &Region) -> Result<Ticket, TicketError> {
        let now_us = self.centre_time(region.clock.now_us());
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let ticket = ticket::read_known(&keys, text, now_us)?;
        if ticket.region == region.name {
            Ok(ticket)
        } else {
            Err(TicketError::Wrong)
        }
    }

    /// Asks the centre.
    async fn ask(
        &self,
        region: &Region,
        what: terminal_ask::What,
    ) -> Result<TerminalAnswer, Refused> {
        let cut_off = || {
            let message = "the region has no connection to its controller, and opens no terminals until it has";
            Refused::new(codes::REGION_OFFLINE, message)
        };
        let request = self.next_request.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        lock(&self.asked).insert(request, answer);
        // Whoever detaches from here on finds it, and ends the wait.
        if !region.is_attached() {
            lock(&self.asked).remove(&request);
            return Err(cut_off());
        }
        region.tell(uplink_up::Kind::TerminalAsk(TerminalAsk {
            request,
            what: Some(what),
        }));
        let outcome = tokio::time::timeout(ANSWER_WITHIN, answered).await;
        lock(&self.asked).remove(&request);
        let answer = outcome.ok().and_then(Result::ok).ok_or_else(cut_off)?;
        if answer.code.is_empty() {
            Ok(answer)
        } else {
            Err(Refused::new(codes::known(&answer.code), answer.message))
        }
    }

    /// The centre has answered.
    pub fn answered(&self, answer: TerminalAnswer) {
        if let Some(asker) = lock(&self.asked).remove(&answer.request) {
            // Whoever asked may have given up.
            let _ = asker.send(answer);
        }
    }

    /// The centre says what became of a piece of a recording.
    pub fn taken(&self, taken: RecordingTaken) {
        if let Some(shipper) = lock(&self.shipped).take() {
            let _ = shipper.send(taken);
        }
    }

    /// The centre wants one ended.
    pub fn end(&self, end: &EndTerminal) {
        let Ok(session) = CommandId::from_wire(&end.session) else {
            return;
        };
        if let Some(terminals) = self.terminals() {
            terminals.end(session, End::new(codes::known(&end.code), &end.message));
        }
    }

    /// What is open here, for the centre.
    #[must_use]
    pub fn list(&self) -> OpenTerminals {
        let shared = self.terminals().map(|terminals| terminals.list());
        let mut open: Vec<OpenTerminal> = shared
            .unwrap_or_default()
            .iter()
            .map(|shared| OpenTerminal {
                session: shared.info.session.to_wire(),
                started_us: shared.started_us,
                typed_us: shared.typed_us.load(Ordering::Relaxed),
                has_page: shared.has_page.load(Ordering::Relaxed),
                output: shared.output.load(Ordering::Relaxed),
                input: shared.input.load(Ordering::Relaxed),
            })
            .collect();
        open.sort_unstable_by(|a, b| a.session.cmp(&b.session));
        OpenTerminals { open }
    }

    /// Whether there has been no centre for too long.
    fn is_forgotten(&self) -> bool {
        let since = *lock(&self.cut_off);
        since.is_some_and(|since| since.elapsed() >= CUT_OFF_MAX)
    }

    /// Ends all that have gone on without the centre for too long.
    fn end_forgotten(&self) {
        let Some(terminals) = self.terminals().filter(|_| self.is_forgotten()) else {
            return;
        };
        let why = "the region has had no connection to its controller for an hour: nobody there could have \
                   ended this terminal";
        for shared in terminals.list() {
            terminals.end(shared.info.session, End::new(codes::REGION_OFFLINE, why));
        }
    }
}

/// Tells what is open, ends what must not go on, ships recordings; until shutdown.
pub async fn run(region: Arc<Region>, desk: Arc<Desk>, shutdown: Shutdown) {
    let looking = async {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut told, mut looks) = (OpenTerminals::default(), 0u32);
        loop {
            ticks.tick().await;
            desk.end_forgotten();
            looks = looks.wrapping_add(1);
            let now = desk.list();
            if now != told || looks.is_multiple_of(TOLD_EVERY_LOOKS) {
                region.tell_if_room(uplink_up::Kind::Terminals(now.clone()));
                told = now;
            }
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = looking => {}
        () = shipping::ship(&region, &desk) => {}
    }
}

#[cfg(test)]
mod tests;
