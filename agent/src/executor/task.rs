//! The actor: takes commands in, keeps order, hands them to jobs, sends what they report.
//!
//! One loop, no waiting inside it. Its arms by rank: news from jobs (they free lanes), requests from
//! the session, the tidy timer. What it sends goes to the present link's bounded queue: progress is
//! dropped when that is full, results wait in the journal's index and are sent again every second
//! until the region has acknowledged them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use fairlead_daemon::clock::{Clock, ServerTime};
use fairlead_daemon::shutdown::Shutdown;
use fairlead_identity::signing::Verifier;
use fairlead_link::socket::StreamSocket;
use fairlead_planted::{self as planted, Defect};
use fairlead_protocol::command::{Kind, Lane};
use fairlead_protocol::{
    Command, CommandId, CommandResult, HostId, InstanceId, LinkUp, Message, OpenStream,
    SignedCommand, Stamp, State, codes, limits,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::fleeting::Fleeting;
use super::handover::{Beside, resolved};
use super::job::{Job, carry_out, has_effect};
use super::lane_lock::LaneLocks;
use super::lanes::{Lanes, Manner};
use super::outcome::Outcome;
use super::surroundings::{News, Surroundings};
use super::turn::Turn;
use super::{Request, StreamDialler, in_words, unix};
use crate::app::RenewNow;
use crate::handoff::role::Role;
use crate::handoff::words::ToSupervisor;
use crate::journal::{Journal, Phase};
use crate::observe::Picture;
use crate::observe::acts::objects;
use crate::owner_log::OwnerLog;
use crate::policy::PolicyFile;
use crate::runtime::ContainerRuntime;
use crate::uninstall::Departure;
use crate::upgrade::ordered::Orders;

mod acceptance;
mod sending;

/// Commands that run at a time.
const RUNNING_MAX: usize = 64;
/// Commands that are accepted and have not finished; more are refused with `host_busy`.
const ACCEPTED_MAX: usize = 1024;
/// Streams announced before their command has come.
const EARLY_STREAMS_MAX: usize = 64;
/// Withdrawals that came before their command; a server that sends more of them than this withholds
/// nothing that it could not withhold anyway.
const WITHDRAWN_EARLY_MAX: usize = 1024;
/// How often results without an acknowledgement are looked through, and old ids forgotten.
const TIDY_EVERY: Duration = Duration::from_secs(1);
/// A result that is not acknowledged within this is sent again.
const SEND_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// What the executor is made of.
pub struct Parts {
    /// The host it acts for.
    pub host: HostId,
    /// This start of the agent.
    pub instance: InstanceId,
    /// Whether it owns the host, and in which epoch.
    pub role: Role,
    /// No version of the agent can be kept running here: nothing is changed.
    pub safe: bool,
    /// To the supervisor, where it listens.
    pub say: Option<mpsc::Sender<ToSupervisor>>,
    /// The journal, opened.
    pub journal: Journal,
    /// The engine.
    pub runtime: Arc<dyn ContainerRuntime>,
    /// The host owner's policy.
    pub policy: Arc<PolicyFile>,
    /// Knows the keys that may sign commands.
    pub verifier: Verifier,
    /// Server time.
    pub time: Arc<ServerTime>,
    /// The machine's clock.
    pub clock: Clock,
    /// The newest picture of the containers, for resolving ids to names.
    pub picture: Picture,
    /// The log for the host's owner.
    pub owner_log: OwnerLog,
    /// Where archives wait for their digest.
    pub spool: std::path::PathBuf,
    /// The kernel's locks on lanes.
    pub lane_locks: LaneLocks,
    /// Where renewals are asked for.
    pub renew: mpsc::Sender<RenewNow>,
    /// Where an order to take the agent off is kept.
    pub departure: Departure,
    /// How long a terminal is held for a server that restarts.
    pub terminals_held: Duration,
    /// How another version is fetched and let run.
    pub upgrades: Arc<Orders>,
    /// Where the floor of server time is persisted.
    pub floor: Box<dyn Fn(i64) + Send>,
}

/// A command that has been accepted and has not ended.
pub(super) struct Live {
    pub(super) command: Command,
    pub(super) signed: SignedCommand,
    pub(super) stamps: Vec<Stamp>,
    pub(super) lane: Lane,
    pub(super) stream: Option<oneshot::Receiver<StreamSocket>>,
    pub(super) unsettled: Option<(fairlead_protocol::Intent, Option<String>)>,
    pub(super) waiting_for: String,
    /// Its intent is on disk (or it needs none).
    pub(super) begun: bool,
    pub(super) turn: Arc<Turn>,
}

pub(super) struct Link {
    pub(super) outbound: mpsc::Sender<LinkUp>,
    connection: u64,
    streams: StreamDialler,
}

/// The actor.
pub struct Executor {
    pub(super) parts: Parts,
    pub(super) lanes: Lanes,
    pub(super) beside: Beside,
    pub(super) live: HashMap<CommandId, Live>,
    pub(super) stream_slots: HashMap<CommandId, oneshot::Sender<StreamSocket>>,
    early_streams: Vec<(OpenStream, Instant)>,
    withdrawn_early: HashMap<CommandId, String>,
    pub(super) link: Option<Link>,
    /// Its number, for the jobs.
    link_is: watch::Sender<Option<u64>>,
    around: Arc<Surroundings>,
    news: mpsc::Receiver<News>,
    /// Results of commands without effect: kept until acknowledged, not journalled.
    pub(super) fleeting: Fleeting,
    /// When each result without an acknowledgement was last sent on this link; only those of late.
    sent: HashMap<CommandId, Instant>,
    /// The command with which the agent leaves: it succeeded.
    leaves_with: Option<CommandId>,
    /// The servers know that it leaves.
    departs: bool,
}

impl Executor {
    /// An executor that will settle first what an earlier instance had begun.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let (news_sender, news) = mpsc::channel(256);
        let (link_is, link) = watch::channel(None);
        let around = Arc::new(Surroundings {
            runtime: Arc::clone(&parts.runtime),
            policy: Arc::clone(&parts.policy),
            time: Arc::clone(&parts.time),
            clock: parts.clock.clone(),
            appender: parts.journal.appender(),
            picture: parts.picture.clone(),
            spool: parts.spool.clone(),
            lane_locks: parts.lane_locks.clone(),
            renew: parts.renew.clone(),
            departure: parts.departure.clone(),
            terminals_held: parts.terminals_held,
            link,
            upgrades: Arc::clone(&parts.upgrades),
            news: news_sender,
        });
        let mut executor = Self {
            beside: Beside::new(parts.role),
            parts,
            lanes: Lanes::new(RUNNING_MAX),
            live: HashMap::new(),
            stream_slots: HashMap::new(),
            early_streams: Vec::new(),
            withdrawn_early: HashMap::new(),
            link: None,
            link_is,
            around,
            news,
            fleeting: Fleeting::default(),
            sent: HashMap::new(),
            leaves_with: None,
            departs: false,
        };
        if executor.beside.role.owns() {
            executor.take_up_unsettled();
            executor.take_up_departure();
        }
        executor
    }

    /// Runs until shutdown, or until the agent is to be taken off: whether that is so.
    pub async fn run(mut self, mut requests: mpsc::Receiver<Request>, shutdown: Shutdown) -> bool {
        let mut tidy = tokio::time::interval(TIDY_EVERY);
        tidy.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        if !self.departs {
            self.begin_ready();
        }
        loop {
            if self.departs {
                shutdown.cancel();
            }
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return self.departs,
                Some(news) = self.news.recv() => self.on_news(news),
                request = requests.recv() => match request {
                    Some(request) => self.on_request(request),
                    None => return self.departs,
                },
                _ = tidy.tick() => {
                    self.tidy();
                    if self.is_over() {
                        tracing::info!("nothing is left to do for this instance");
                        shutdown.cancel();
                        return false;
                    }
                }
            }
            self.begin_ready();
        }
    }

    pub(super) fn take_up_unsettled(&mut self) {
        for (id, intent, exec) in self.parts.journal.unsettled() {
            if self.live.contains_key(&id) {
                continue;
            }
            let Some(signed) = intent.command.clone() else {
                continue;
            };
            let Ok(command) = Command::decode(&signed.command[..]) else {
                continue;
            };
            let Some(kind) = command.kind.as_ref() else {
                continue;
            };
            tracing::info!(command = %id, kind = kind.name(), "settling what an earlier instance began");
            let lane = resolved(&intent.lane, kind);
            self.lanes.accept(id, lane.clone(), manner(kind));
            let live = Live {
                stamps: intent.stamps.clone(),
                unsettled: Some((intent, exec)),
                waiting_for: String::new(),
                begun: true,
                turn: Arc::new(Turn::taken()),
                stream: None,
                command,
                signed,
                lane,
            };
            self.live.insert(id, live);
        }
    }

    /// An earlier instance was to be taken off.
    pub(super) fn take_up_departure(&mut self) {
        let Some(id) = self.parts.departure.kept() else {
            return;
        };
        match self.parts.journal.entry(id).map(|entry| &entry.phase) {
            // It settles it, as any command.
            Some(Phase::Begun { .. }) => {}
            Some(Phase::Done { result, acked }) if result.state == i32::from(State::Succeeded) => {
                self.leaves_with = Some(id);
                self.departs = *acked;
            }
            Some(Phase::Done { .. }) => self.parts.departure.forget(),
            // Acknowledged so long ago that the journal has forgotten it.
            None => self.departs = true,
        }
    }

    fn on_request(&mut self, request: Request) {
        match request {
            Request::Deliver { command, epoch } => self.deliver(command, epoch),
            Request::Cancel { id, by } => self.cancel(id, &by),
            Request::Acked { id } => {
                self.sent.remove(&id);
                self.fleeting.remove(id);
                self.parts.journal.acked(id);
                self.departs |= self.leaves_with == Some(id);
            }
            // The controller ends the identity with the result, and may be faster than its acknowledgement.
            Request::Revoked => self.departs |= self.leaves_with.is_some(),
            Request::LinkUp {
                outbound,
                connection,
                streams,
            } => {
                self.parts.upgrades.linked(Some(streams.clone()));
                self.link_is.send_replace(Some(connection));
                self.link = Some(Link {
                    outbound,
                    connection,
                    streams,
                });
                // What the last link's peer was sent, this one's may not have.
                self.sent.clear();
                for (open, _) in std::mem::take(&mut self.early_streams) {
                    let why = "it was asked for on a link that has ended";
                    self.refuse_stream(open.id, codes::NO_STREAM, why);
                }
                self.send_unacked();
            }
            Request::LinkDown { connection } => {
                if self
                    .link
                    .as_ref()
                    .is_some_and(|link| link.connection == connection)
                {
                    self.parts.upgrades.linked(None);
                    self.link_is.send_replace(None);
                    self.link = None;
                }
            }
            Request::OpenStream(open) => {
                let command = CommandId::from_wire(&open.command);
                if command.is_ok_and(|id| self.is_elsewhere(id)) {
                    self.pass_stream(&open);
                } else {
                    self.open_stream(open);
                }
            }
            Request::OpenStreamHere(open) => {
                let command = CommandId::from_wire(&open.command);
                if command.is_ok_and(|id| self.live.contains_key(&id)) {
                    self.open_stream(open);
                }
            }
            Request::Probe { nonce } => self.probe(nonce),
            Request::Yield { answer } => drop(answer.send(self.give_away())),
            Request::Yielded { epoch } => self.yielded(epoch),
            Request::Own {
                epoch,
                flying,
                known,
            } => self.own(epoch, flying, known),
            Request::Released { id } => self.released(id),
            Request::Gone { key, dead } => self.gone(key, dead),
            Request::LearnKeys(keys) => {
                let now = unix(self.parts.time.now_us());
                for error in self.parts.verifier.learn(&keys, now) {
                    tracing::error!(%error, "a command key was offered that is not the installation's");
                }
            }
        }
    }

    /// One that does not own the host has nothing here but what it is to see to its end.
    fn begin_ready(&mut self) {
        for id in self.lanes.begin() {
            let Some(live) = self.live.get_mut(&id) else {
                continue;
            };
            live.waiting_for.clear();
            let kind = live.command.kind.as_ref();
            for (object, words) in kind.into_iter().flat_map(|kind| objects(kind, &live.lane)) {
                let now_us = self.parts.clock.now_us();
                self.parts.picture.acts(&object, id, words, now_us);
            }
            let job = Job {
                id,
                command: live.command.clone(),
                signed: live.signed.clone(),
                stamps: live.stamps.clone(),
                stream: live.stream.take(),
                unsettled: live.unsettled.take(),
                blocked: self.parts.journal.blocked().map(ToOwned::to_owned),
                lane: live.lane.to_string(),
                turn: Arc::clone(&live.turn),
            };
            // Its owner is the lane: the job always ends with `News::Ended`.
            tokio::spawn(carry_out(job, Arc::clone(&self.around)));
        }
    }

    fn on_news(&mut self, news: News) {
        match news {
            News::Begun { id, intent, stamps } => {
                let Some(live) = self.live.get_mut(&id) else {
                    return;
                };
                live.stamps = stamps;
                live.begun = true;
                self.parts
                    .journal
                    .note_intent(id, intent, live.command.not_after_us);
                self.send_progress(id, None);
            }
            News::Called { id, again } => {
                if let Some(live) = self.live.get(&id) {
                    self.parts.owner_log.begun(id, &live.command, again);
                }
            }
            News::ExecMade { id, exec } => self.parts.journal.note_exec(id, &exec),
            News::Attached { id } => self.send_progress(id, None),
            News::AwaitsStream { id, slot } => {
                if self.live.contains_key(&id) {
                    self.stream_slots.insert(id, slot);
                }
            }
            News::Waits { id, why } => {
                if let Some(live) = self.live.get_mut(&id)
                    && live.waiting_for != why
                {
                    live.waiting_for = why;
                    self.send_progress(id, None);
                }
            }
            News::Ended { id, result } => self.ended(id, result),
        }
    }

    fn ended(&mut self, id: CommandId, mut result: CommandResult) {
        self.lanes.finish(id);
        self.stream_slots.remove(&id);
        let Some(live) = self.live.remove(&id) else {
            return;
        };
        let kind = live.command.kind.as_ref();
        for (object, _) in kind.into_iter().flat_map(|kind| objects(kind, &live.lane)) {
            let now_us = self.parts.clock.now_us();
            self.parts.picture.acted(&object, id, now_us);
        }
        result.instance = self.parts.instance.to_wire();
        result.epoch = self.beside.role.epoch();
        let effect = live.command.kind.as_ref().is_some_and(has_effect);
        let state = State::try_from(result.state).unwrap_or(State::Unknown);
        if matches!(live.command.kind, Some(Kind::UninstallAgent(_))) {
            if state == State::Succeeded {
                self.leaves_with = Some(id);
            } else if self.leaves_with.is_none() {
                self.parts.departure.forget();
            }
        }
        if effect {
            self.parts
                .owner_log
                .ended(id, &live.command, in_words(state), &result.message);
            self.parts
                .journal
                .note_result(id, result.clone(), live.command.not_after_us);
            self.parts.picture.look_again();
        } else {
            if matches!(
                live.command.kind,
                Some(Kind::Logs(_) | Kind::CopyOut(_) | Kind::Inspect(_))
            ) {
                let (how, why) = (in_words(state), &result.message);
                self.parts.owner_log.ended(id, &live.command, how, why);
            }
            self.fleeting.insert(id, result.clone());
        }
        self.send_result(&result);
        if planted::is(Defect::TwoResults) {
            result.state = State::Failed.into();
            codes::ENGINE_ERROR.clone_into(&mut result.code);
            self.send_result(&result);
        }
        if planted::is(Defect::IdForgotten) {
            self.parts.journal.forget(id);
        }
        self.say_released(id);
    }

    fn tidy(&mut self) {
        let now_us = self.parts.time.now_us();
        self.parts.journal.tidy(now_us);
        let overdue: Vec<_> = {
            let (overdue, kept) = std::mem::take(&mut self.early_streams)
                .into_iter()
                .partition(|(_, since)| since.elapsed() > limits::STREAM_DIAL_TIMEOUT);
            self.early_streams = kept;
            overdue
        };
        for (open, _) in overdue {
            self.refuse_stream(open.id, codes::NO_STREAM, "its command has not come");
        }
        self.expire_waiting(now_us);
        self.sent
            .retain(|_, sent| sent.elapsed() < SEND_AGAIN_AFTER);
        if self.link.is_some() {
            self.send_unacked();
        }
    }

    /// Commands that still wait for their lane when their deadline passes end here and now.
    fn expire_waiting(&mut self, now_us: i64) {
        if planted::is(Defect::ExpiredIsBegun) {
            return;
        }
        let expired: Vec<CommandId> = self
            .live
            .iter()
            .filter(|(id, live)| {
                let waits = self.lanes.holds(**id) && !self.lanes.is_running(**id);
                waits && live.command.not_after_us < now_us
            })
            .map(|(id, _)| *id)
            .collect();
        for id in expired {
            let outcome = Outcome::ended(
                State::Expired,
                codes::DEADLINE_PASSED,
                "its deadline passed while it waited for its turn; nothing was done",
            );
            self.end_before_it_began(id, outcome);
        }
    }
}

pub(super) fn manner(kind: &Kind) -> Manner {
    match kind {
        Kind::Stop(_) | Kind::Restart(_) => Manner::ChangesWithGrace,
        Kind::Kill(_) => Manner::Kills,
        other if other.changes() => Manner::Changes,
        _ => Manner::Looks,
    }
}
