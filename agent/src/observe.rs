//! Looking at the host: which containers there are, how they do, what happens to them.
//!
//! By level: the picture is taken again every so often and after each command; the engine's events are
//! only hints to look sooner. A difference goes to the link in parts. Events are numbered and kept until
//! the region has acknowledged them (`untold`); pictures and measurements are not kept, because the next
//! one says it all again. Which events are a command's of ours, `acts` knows.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use fairlead_daemon::clock::ServerTime;
use fairlead_daemon::shutdown::Shutdown;
use fairlead_identity::random;
use fairlead_protocol::{CommandId, Container, EngineFacts, HostEvent, LinkUp, link_up};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use crate::inventory::Inventory;
use crate::inventory::events::{EventLog, first_word};
use crate::metrics::Sampler;
use crate::runtime::{ContainerRuntime, EngineEvent, RuntimeError};

pub mod acts;
mod untold;

use acts::Acts;
use untold::Untold;

/// The picture is taken again at least so often, whatever the events say.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// Several events at once (a restart is five) lead to one look.
const LOOK_AFTER_EVENT: Duration = Duration::from_millis(60);
/// A command that has ended leads to one sooner, but not before its result is on the way: a look keeps
/// the processors busy for a moment, here and in the servers.
const LOOK_AFTER_ACT: Duration = Duration::from_millis(15);
/// An engine that went away is asked again after this.
const ENGINE_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Events without an acknowledgement are told again after this.
const TELL_AGAIN_AFTER: Duration = Duration::from_secs(10);
/// Docker's data directory, whose file system is the one that fills up.
const ENGINE_DATA_DIR: &str = "/var/lib/docker";

/// What the session tells the observer.
#[derive(Debug)]
pub enum Watch {
    /// A link is up: tell it everything.
    LinkUp {
        /// Its queue.
        outbound: mpsc::Sender<LinkUp>,
        /// Its number.
        connection: u64,
    },
    /// It is gone.
    LinkDown {
        /// Its number.
        connection: u64,
    },
    /// The region has this event.
    Acked {
        /// Its number.
        seq: u64,
    },
}

/// The containers as last listed.
#[derive(Debug, Default)]
struct Listed {
    containers: Vec<Container>,
    /// When the engine was asked; absent while the engine or its events are away, because then nothing
    /// says what has changed since.
    asked: Option<Instant>,
    /// Containers with which something happened since, by name.
    touched: HashMap<String, Instant>,
}

/// Which instance of the agent tells what it sees: the one that owns the host.
#[derive(Debug, Default)]
struct Teller {
    /// Another does.
    silent: bool,
    /// Another has told the events up to this time of the engine.
    floor_us: i64,
    /// The time of the last event that this one has told.
    until_us: i64,
}

/// The newest picture, shared with the executor.
#[derive(Clone, Default)]
pub struct Picture {
    teller: Arc<Mutex<Teller>>,
    listed: Arc<RwLock<Listed>>,
    acts: Arc<Mutex<Acts>>,
    look: Arc<Notify>,
}

impl Picture {
    /// The name of the container that is meant: a name means itself, else an id or its prefix.
    #[must_use]
    pub fn name_of(&self, text: &str) -> String {
        let listed = self.listed();
        let containers = &listed.containers;
        if containers.iter().any(|container| container.name == text) {
            return text.to_owned();
        }
        let is_id = text.len() >= 4 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let mut found = containers
            .iter()
            .filter(|c| is_id && c.id.starts_with(text));
        match (found.next(), found.next()) {
            (Some(only), None) => only.name.clone(),
            _ => text.to_owned(),
        }
    }

    /// Id and start time of the container of that name, as last seen.
    #[must_use]
    pub fn seen(&self, name: &str) -> Option<(String, i64)> {
        let listed = self.listed();
        let found = listed.containers.iter().find(|c| c.name == name)?;
        Some((found.id.clone(), found.started_us))
    }

    /// Whether what was last seen of that container still holds, as far as can be known without asking:
    /// the engine's events flow, and none told of it and no command of ours ended on it since.
    #[must_use]
    pub fn is_fresh(&self, name: &str) -> bool {
        let listed = self.listed();
        let touched = listed.touched.get(name);
        listed
            .asked
            .is_some_and(|asked| touched.is_none_or(|at| *at < asked))
    }

    /// Another instance tells what happens from now on; up to which time of the engine it has been told.
    #[must_use]
    pub fn leave_events_to_another(&self) -> i64 {
        let mut teller = self.teller();
        teller.silent = true;
        teller.until_us.max(teller.floor_us)
    }

    /// This instance tells what happens after that time.
    pub fn take_events(&self, until_us: i64) {
        let mut teller = self.teller();
        teller.silent = false;
        teller.floor_us = teller.floor_us.max(until_us);
        drop(teller);
        self.look_again();
    }

    fn teller(&self) -> std::sync::MutexGuard<'_, Teller> {
        self.teller.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn touch(&self, name: &str) {
        let mut listed = self.listed.write().unwrap_or_else(PoisonError::into_inner);
        listed.touched.insert(name.to_owned(), Instant::now());
    }

    fn listed(&self) -> std::sync::RwLockReadGuard<'_, Listed> {
        self.listed.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on nothing is known to be as it was seen.
    fn stale(&self) {
        let mut listed = self.listed.write().unwrap_or_else(PoisonError::into_inner);
        listed.asked = None;
    }

    /// Something was done: look now.
    pub fn look_again(&self) {
        self.look.notify_one();
    }

    /// A command of ours acts on the object (a container's name, or an image's key) from now on, and
    /// brings about events of these words.
    pub fn acts(
        &self,
        object: &str,
        command: CommandId,
        words: &'static [&'static str],
        now_us: i64,
    ) {
        self.acting().begin(object, command, words, now_us);
    }

    /// It has ended.
    pub fn acted(&self, object: &str, command: CommandId, now_us: i64) {
        self.touch(object);
        self.acting().end(object, command, now_us);
    }

    fn acting(&self) -> std::sync::MutexGuard<'_, Acts> {
        self.acts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, containers: Vec<Container>, asked: Instant) {
        self.acting().tidy();
        let mut listed = self.listed.write().unwrap_or_else(PoisonError::into_inner);
        listed.containers = containers;
        listed.asked = Some(asked);
        listed.touched.retain(|_, at| *at >= asked);
    }
}

/// Events that are kept while another instance tells them.
const HEARD_MAX: usize = 512;

struct Link {
    outbound: mpsc::Sender<LinkUp>,
    connection: u64,
}

/// The observer.
pub struct Observer {
    runtime: Arc<dyn ContainerRuntime>,
    picture: Picture,
    time: Arc<ServerTime>,
    metrics_every: Duration,
    sampler: Option<Sampler>,
    inventory: Inventory,
    log: EventLog,
    engine: EngineFacts,
    link: Option<Link>,
    events: Untold,
    /// When all that waits was last told.
    events_told_at: Instant,
    last_event_us: i64,
    /// Events while another instance tells them: it may go before it has told all.
    heard: std::collections::VecDeque<EngineEvent>,
    /// Whether the engine has been asked at all.
    looked: bool,
    /// Whether the last look failed, so that the engine's going and coming are told once.
    engine_gone: bool,
}

impl Observer {
    /// An observer of that engine.
    #[must_use]
    pub fn new(
        runtime: Arc<dyn ContainerRuntime>,
        picture: Picture,
        time: Arc<ServerTime>,
        metrics_every: Duration,
    ) -> Self {
        Self {
            runtime,
            picture,
            time,
            metrics_every,
            sampler: Some(Sampler::new(ENGINE_DATA_DIR)),
            inventory: Inventory::new(),
            log: EventLog::new(),
            engine: EngineFacts::default(),
            link: None,
            events: Untold::default(),
            events_told_at: Instant::now(),
            last_event_us: 0,
            heard: std::collections::VecDeque::new(),
            looked: false,
            engine_gone: false,
        }
    }

    /// Observes until shutdown.
    pub async fn run(mut self, mut watch: mpsc::Receiver<Watch>, shutdown: Shutdown) {
        self.engine = self.runtime.facts().await;
        let mut events = self.runtime.events(self.last_event_us).await;
        // Whether the engine's events are followed; if not, when that is tried again.
        let (mut follows, mut follow_at) = (true, Instant::now());
        let mut look_at = Instant::now();
        let mut measure = tokio::time::interval(self.metrics_every);
        measure.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let look = Arc::clone(&self.picture.look);
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                request = watch.recv() => match request {
                    Some(request) => self.on_watch(request),
                    None => return,
                },
                () = look.notified() => look_at = look_at.min(Instant::now() + LOOK_AFTER_ACT),
                () = tokio::time::sleep_until(look_at) => {
                    self.look().await;
                    look_at = Instant::now() + LOOK_EVERY;
                }
                _ = measure.tick() => self.measure().await,
                () = tokio::time::sleep_until(follow_at), if !follows => {
                    events = self.events_again().await;
                    follows = true;
                    look_at = Instant::now();
                }
                // Last, because it is always ready while the engine floods.
                event = events.next(), if follows => match event {
                    Some(Ok(event)) => {
                        self.on_event(event);
                        look_at = look_at.min(Instant::now() + LOOK_AFTER_EVENT);
                    }
                    ended => {
                        if let Some(Err(error)) = ended {
                            tracing::debug!(%error, "the engine's events ended");
                        }
                        self.picture.stale();
                        follows = false;
                        follow_at = Instant::now() + ENGINE_AGAIN_AFTER;
                        look_at = Instant::now();
                    }
                },
            }
        }
    }

    async fn events_again(&self) -> BoxStream<'static, Result<EngineEvent, RuntimeError>> {
        // From the microsecond after the last one: what happened meanwhile is not missed.
        let since = if self.last_event_us == 0 {
            0
        } else {
            self.last_event_us + 1
        };
        self.runtime.events(since).await
    }

    fn on_watch(&mut self, request: Watch) {
        match request {
            Watch::LinkUp {
                outbound,
                connection,
            } => {
                self.link = Some(Link {
                    outbound,
                    connection,
                });
                self.inventory.start_over();
                self.events.start_over();
                self.events_told_at = Instant::now();
                self.tell_picture();
                self.tell_events();
            }
            Watch::LinkDown { connection } => {
                if self
                    .link
                    .as_ref()
                    .is_some_and(|link| link.connection == connection)
                {
                    self.link = None;
                }
            }
            Watch::Acked { seq } => self.events.acked(seq),
        }
    }

    /// Sends what may be lost; whether there was room.
    fn send(&self, kind: link_up::Kind) -> bool {
        self.link
            .as_ref()
            .is_some_and(|link| link.outbound.try_send(LinkUp { kind: Some(kind) }).is_ok())
    }

    fn on_event(&mut self, event: EngineEvent) {
        self.last_event_us = self.last_event_us.max(event.at_us);
        if !first_word(&event.action).starts_with("exec_") && event.object != "image" {
            self.picture.touch(&event.name);
        }
        if self.heard.len() >= HEARD_MAX {
            self.heard.pop_front();
        }
        self.heard.push_back(event);
        self.report_heard();
    }

    /// Reports what was heard, and left to another instance so far; not what that one has told.
    fn report_heard(&mut self) {
        let floor_us = {
            let teller = self.picture.teller();
            if teller.silent {
                return;
            }
            teller.floor_us
        };
        for event in std::mem::take(&mut self.heard) {
            if event.at_us > floor_us {
                self.report(&event);
            }
            let mut teller = self.picture.teller();
            teller.until_us = teller.until_us.max(event.at_us);
        }
    }

    fn report(&mut self, event: &EngineEvent) {
        let word = first_word(&event.action);
        let ours = if event.object == "image" {
            let names = [&event.id[..], &event.name[..]];
            self.picture.acting().image_cause(names, word, event.at_us)
        } else {
            self.picture.acting().cause(&event.name, word, event.at_us)
        };
        if let Some(mut report) = self.log.report(event, ours) {
            report.at_us -= self.time.own_clock_ahead_us();
            self.keep(report);
        }
    }

    fn keep(&mut self, event: HostEvent) {
        self.events.keep(event, random::bytes::<16>);
    }

    /// Sends the events that this link has not carried. With the looks and not one by one: a restart is
    /// five events, which then share their syncs, and do not stand in the way of its result.
    fn tell_events(&mut self) {
        // What was told and not acknowledged is told again: it may have found no room.
        if self.events_told_at.elapsed() > TELL_AGAIN_AFTER {
            self.events.start_over();
            self.events_told_at = Instant::now();
        }
        let link = self.link.as_ref();
        self.events.tell(|event| {
            let kind = Some(link_up::Kind::Event(event.clone()));
            link.is_some_and(|link| link.outbound.try_send(LinkUp { kind }).is_ok())
        });
    }

    async fn look(&mut self) {
        self.report_heard();
        let asked = Instant::now();
        match self.runtime.list().await {
            Ok(containers) => {
                self.picture.set(containers, asked);
                if self.engine_gone || !self.engine.error.is_empty() || self.engine.kind.is_empty()
                {
                    self.engine = self.runtime.facts().await;
                }
                if self.engine_gone {
                    self.engine_gone = false;
                    self.engine_changed("engine.back", String::new());
                }
            }
            Err(error) => {
                self.picture.stale();
                self.engine = self.runtime.facts().await;
                if !self.engine_gone {
                    self.engine_gone = true;
                    tracing::warn!(%error, "the container engine does not answer");
                    self.engine_changed("engine.gone", error.to_string());
                }
            }
        }
        self.looked = true;
        self.tell_picture();
        self.tell_events();
    }

    fn engine_changed(&mut self, action: &str, detail: String) {
        if self.picture.teller().silent {
            return;
        }
        let event = HostEvent {
            at_us: self.time.now_us(),
            action: action.to_owned(),
            cause: "engine".to_owned(),
            detail,
            ..HostEvent::default()
        };
        self.keep(event);
    }

    fn tell_picture(&mut self) {
        if self.picture.teller().silent {
            // Whoever is told next is told all of it.
            return self.inventory.start_over();
        }
        // Before the first look there is none: an empty one would wipe out what the others know, and an id
        // would mean nothing there until the next.
        if self.link.is_none() || self.engine.kind.is_empty() || !self.looked {
            return;
        }
        let containers = self.picture.listed().containers.clone();
        for part in self
            .inventory
            .parts(&containers, &self.engine, self.time.now_us())
        {
            if !self.send(link_up::Kind::Inventory(part)) {
                // The other side has lost a part: it gets the whole picture with the next look.
                self.inventory.start_over();
                return;
            }
        }
    }

    async fn measure(&mut self) {
        if self.link.is_none() || self.picture.teller().silent {
            return;
        }
        let Some(mut sampler) = self.sampler.take() else {
            return;
        };
        let load = self.runtime.load().await;
        let at_us = self.time.now_us();
        let round = tokio::task::spawn_blocking(move || {
            let parts = sampler.round(&load, std::time::Instant::now(), at_us);
            (sampler, parts)
        });
        if let Ok((sampler, parts)) = round.await {
            self.sampler = Some(sampler);
            for part in parts {
                self.send(link_up::Kind::Metrics(part));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> CommandId {
        CommandId::from_bytes([n; 16])
    }

    #[test]
    fn an_id_means_its_container_and_a_name_means_itself() {
        let picture = Picture::default();
        let container = |name: &str, id: &str| Container {
            name: name.to_owned(),
            id: id.to_owned(),
            ..Container::default()
        };
        let listed = vec![container("web", "abcd1234"), container("abcd", "ffff0000")];
        picture.set(listed, Instant::now());
        assert_eq!(picture.name_of("abcd12"), "web");
        assert_eq!(picture.name_of("abcd"), "abcd", "names beat prefixes");
        assert_eq!(picture.name_of("new"), "new");
    }

    #[test]
    fn a_picture_is_fresh_until_something_happens() {
        let picture = Picture::default();
        assert!(!picture.is_fresh("web"), "nothing was listed yet");
        picture.set(Vec::new(), Instant::now());
        assert!(picture.is_fresh("web"));
        let asked_before = Instant::now();
        picture.acts("web", id(1), &["start"], 1);
        assert!(picture.is_fresh("web"), "the act itself may rely on it");
        picture.acted("web", id(1), 2);
        assert!(!picture.is_fresh("web"));
        assert!(picture.is_fresh("db"));
        picture.set(Vec::new(), asked_before);
        assert!(
            !picture.is_fresh("web"),
            "it was listed before the act ended"
        );
        picture.set(Vec::new(), Instant::now());
        assert!(picture.is_fresh("web"));
        picture.stale();
        assert!(!picture.is_fresh("web"));
    }

    #[tokio::test]
    async fn an_engine_that_is_away_is_said_although_its_events_fail_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let engine = crate::runtime::docker::DockerRuntime::new(dir.path().join("none.sock"));
        let clock = fairlead_daemon::clock::Clock::system();
        let observer = Observer::new(
            Arc::new(engine.unwrap()),
            Picture::default(),
            Arc::new(ServerTime::new(clock, 0)),
            Duration::from_secs(15),
        );
        let (watch, requests) = mpsc::channel(4);
        let shutdown = Shutdown::new();
        let running = tokio::spawn(observer.run(requests, shutdown.clone()));
        let (outbound, mut told) = mpsc::channel(64);
        let up = Watch::LinkUp {
            outbound,
            connection: 1,
        };
        watch.send(up).await.unwrap();
        let gone = async {
            while let Some(message) = told.recv().await {
                if let Some(link_up::Kind::Event(event)) = message.kind {
                    return event.action;
                }
            }
            String::new()
        };
        let gone = tokio::time::timeout(Duration::from_secs(10), gone).await;
        assert_eq!(gone.unwrap(), "engine.gone");
        shutdown.cancel();
        running.await.unwrap();
    }

    #[tokio::test]
    async fn nothing_is_told_of_the_containers_before_they_were_looked_at() {
        use crate::runtime::simulated::{SimulatedOptions, SimulatedRuntime};
        let engine = SimulatedRuntime::new(SimulatedOptions::default()).unwrap();
        let clock = fairlead_daemon::clock::Clock::system();
        let mut observer = Observer::new(
            Arc::new(engine),
            Picture::default(),
            Arc::new(ServerTime::new(clock, 0)),
            Duration::from_secs(15),
        );
        observer.engine = observer.runtime.facts().await;
        let (outbound, mut told) = mpsc::channel(64);
        observer.on_watch(Watch::LinkUp {
            outbound,
            connection: 1,
        });
        assert!(told.try_recv().is_err(), "an empty picture is a wrong one");
        observer.look().await;
        let inventory = told.try_recv().unwrap().kind;
        assert!(matches!(inventory, Some(link_up::Kind::Inventory(part)) if part.full));
    }
}
