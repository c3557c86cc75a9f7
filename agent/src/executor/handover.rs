//! Two instances on one host: this one gives away what it has not begun, or takes the host over and leaves
//! alone what another has under way.

use std::collections::HashMap;
use std::sync::Arc;

use fairlead_identity::digest::hex;
use fairlead_protocol::command::{Kind, Lane};
use fairlead_protocol::{
    Command, CommandId, LinkUp, Message, OpenStream, ProbeAnswer, SignedCommand, Stage, link_up,
};
use tokio::time::Instant;

use super::job::has_effect;
use super::stamp;
use super::task::{Executor, Live, manner};
use super::turn::Turn;
use crate::handoff::decide::Key;
use crate::handoff::part::{Flying, from_hex};
use crate::handoff::role::Role;
use crate::handoff::words::{Peer, ToSupervisor};
use crate::journal::{Dead, Known, Phase};
use crate::observe::acts::objects;

/// Commands that come before it is known what another instance has under way; beyond, the server sends them
/// again with the next link.
const WAITING_MAX: usize = 2048;
/// How often an engine is asked that does not answer a probe.
const PROBE_AGAIN_AFTER: std::time::Duration = std::time::Duration::from_millis(500);
/// An instance that has nothing left waits so long for the server to take its last results.
const LINGER_MAX: std::time::Duration = std::time::Duration::from_secs(10);
/// And so long in any case: until the version is committed it may have to take the host back.
const LINGER_MIN: std::time::Duration = std::time::Duration::from_millis(1500);

/// A command that another instance has under way.
struct Elsewhere {
    /// Which instance.
    at: Key,
    command: Command,
    signed: SignedCommand,
    lane: Lane,
    /// Whether it holds a place on the lane.
    held: bool,
}

/// Where this instance stands beside others.
pub(super) struct Beside {
    pub(super) role: Role,
    /// Commands that came early, for which epoch and when.
    waiting: Vec<(SignedCommand, u64, i64)>,
    /// What other instances have under way.
    elsewhere: HashMap<CommandId, Elsewhere>,
    /// What has ended there: they send the results themselves. Whose it was, where that is known.
    ended_elsewhere: HashMap<CommandId, Option<Key>>,
    /// The epoch that it yielded to last.
    yielded_to: u64,
    done_said: bool,
    idle_since: Option<Instant>,
}

impl Beside {
    pub(super) fn new(role: Role) -> Self {
        Self {
            role,
            waiting: Vec::new(),
            elsewhere: HashMap::new(),
            ended_elsewhere: HashMap::new(),
            yielded_to: 0,
            done_said: false,
            idle_since: None,
        }
    }
}

impl Executor {
    /// Whether another instance answers for that command.
    pub(super) fn is_elsewhere(&self, id: CommandId) -> bool {
        self.beside.elsewhere.contains_key(&id)
            || self.beside.ended_elsewhere.contains_key(&id)
            || self.parts.journal.is_theirs(id)
    }

    /// Whether a command that came is to be taken now; if not it waits, or is another's.
    pub(super) fn takes(&mut self, signed: &SignedCommand, epoch: u64) -> bool {
        let role = self.beside.role;
        if role.takes(epoch) {
            return true;
        }
        // The link may know of a grant before it is known here what another has under way. What was meant
        // for an earlier epoch the server sends again, in its place.
        if epoch > role.epoch() && self.beside.waiting.len() < WAITING_MAX {
            let at_us = self.parts.time.now_us();
            self.beside.waiting.push((signed.clone(), epoch, at_us));
        }
        false
    }

    /// Begins nothing more. What has not begun is given up: the server has it, and sends it to the next.
    pub(super) fn give_away(&mut self) -> Vec<Flying> {
        self.beside.role.yields();
        // Not before the supervisor knows that it has yielded.
        self.beside.done_said = true;
        // An earlier instance had begun it, and it is this one's to settle.
        let settles = |id| {
            self.live
                .get(&id)
                .is_some_and(|live| live.unsettled.is_some())
        };
        for id in self.lanes.give_up_waiting(settles) {
            self.live.remove(&id);
            self.stream_slots.remove(&id);
        }
        let others = self.beside.elsewhere.values().map(|other| Flying {
            at: Some(other.at),
            signed: hex(&other.signed.encode_to_vec()),
            lane: other.lane.to_string(),
            held: other.held,
        });
        let flying = self.live.iter().map(|(id, live)| Flying {
            at: None,
            signed: hex(&live.signed.encode_to_vec()),
            lane: live.lane.to_string(),
            held: self.lanes.holds(*id),
        });
        flying.chain(others).collect()
    }

    /// The supervisor knows that it has yielded: from here on it says what ends.
    pub(super) fn yielded(&mut self, to: u64) {
        self.beside.yielded_to = to;
        self.beside.done_said = false;
        self.say_when_done();
    }

    /// Owns the host. What another has under way keeps its lane until that one says that it has ended.
    pub(super) fn own(&mut self, epoch: u64, flying: Vec<(Key, Flying)>, known: Known) {
        if !self.beside.role.granted(epoch) {
            return;
        }
        self.beside.idle_since = None;
        self.parts.journal.know(known);
        for (at, flying) in flying {
            self.respect(at, &flying);
        }
        self.take_up_unsettled();
        self.take_up_departure();
        for (signed, meant_for, at_us) in std::mem::take(&mut self.beside.waiting) {
            if self.beside.role.takes(meant_for) {
                self.deliver_that_came(signed, at_us);
            }
        }
    }

    fn respect(&mut self, at: Key, flying: &Flying) {
        let signed = from_hex(&flying.signed).and_then(|b| SignedCommand::decode(&b[..]).ok());
        let Some(signed) = signed else { return };
        let Ok(command) = Command::decode(&signed.command[..]) else {
            return;
        };
        let (Ok(id), Some(kind)) = (CommandId::from_wire(&command.id), command.kind.as_ref())
        else {
            return;
        };
        let known = self.parts.journal.entry(id).is_some() || self.live.contains_key(&id);
        // It may have ended since it was written down.
        if known || self.beside.ended_elsewhere.contains_key(&id) {
            return;
        }
        let lane = resolved(&flying.lane, kind);
        if flying.held {
            self.lanes.accept_running(id, lane.clone(), manner(kind));
        }
        let now_us = self.parts.clock.now_us();
        for (object, words) in objects(kind, &lane) {
            self.parts.picture.acts(&object, id, words, now_us);
        }
        let elsewhere = Elsewhere {
            at,
            command,
            signed,
            lane,
            held: flying.held,
        };
        self.beside.elsewhere.insert(id, elsewhere);
    }

    /// What another had under way has ended there.
    pub(super) fn released(&mut self, id: CommandId) {
        let was = self.beside.elsewhere.remove(&id);
        let at = was.as_ref().map(|was| was.at);
        self.beside.ended_elsewhere.insert(id, at);
        if let Some(was) = was {
            self.freed(id, &was);
            self.parts.picture.look_again();
        }
    }

    fn freed(&mut self, id: CommandId, was: &Elsewhere) {
        self.lanes.finish(id);
        let now_us = self.parts.clock.now_us();
        let kind = was.command.kind.iter();
        for (object, _) in kind.flat_map(|kind| objects(kind, &was.lane)) {
            self.parts.picture.acted(&object, id, now_us);
        }
    }

    /// Another instance is gone: what it had begun is settled here, in the place that it had.
    pub(super) fn gone(&mut self, key: Key, dead: Vec<Dead>) {
        self.parts.journal.take_over(dead);
        self.beside
            .ended_elsewhere
            .retain(|_, at| at.is_some_and(|at| at != key));
        let all = std::mem::take(&mut self.beside.elsewhere);
        for (id, was) in all {
            if was.at != key {
                self.beside.elsewhere.insert(id, was);
                continue;
            }
            let entry = self.parts.journal.entry(id);
            let unsettled = match entry.map(|entry| &entry.phase) {
                Some(Phase::Done { .. }) => {
                    self.freed(id, &was);
                    continue;
                }
                Some(Phase::Begun { intent, exec }) => Some(((**intent).clone(), exec.clone())),
                None => None,
            };
            let Elsewhere {
                command,
                signed,
                lane,
                held,
                ..
            } = was;
            if !held {
                continue;
            }
            self.lanes.give_back(id);
            let settles = unsettled.is_some();
            let effect = command.kind.as_ref().is_some_and(has_effect);
            let live = Live {
                stamps: match &unsettled {
                    Some((intent, _)) => intent.stamps.clone(),
                    None => vec![stamp(Stage::DeliveredToHost, self.parts.time.now_us())],
                },
                unsettled,
                waiting_for: String::new(),
                begun: settles || !effect,
                turn: Arc::new(if settles {
                    Turn::taken()
                } else {
                    Turn::default()
                }),
                stream: None,
                command,
                signed,
                lane,
            };
            self.live.insert(id, live);
        }
        self.take_up_unsettled();
        self.send_unacked();
    }

    /// The server asks for a stream whose command another instance has under way.
    pub(super) fn pass_stream(&self, open: &OpenStream) {
        let stream = hex(&open.encode_to_vec());
        self.say(ToSupervisor::Peer(Peer::OpenStream { stream }));
    }

    /// A command has ended in an instance that does not own the host any more.
    pub(super) fn say_released(&mut self, id: CommandId) {
        if !self.beside.role.owns() {
            let id = id.to_string();
            self.say(ToSupervisor::Peer(Peer::Released { id }));
            self.say_when_done();
        }
    }

    /// All but streams has ended.
    fn say_when_done(&mut self) {
        let commands = self
            .live
            .values()
            .any(|live| !only_streams(&live.command) && !upgrades(&live.command));
        if !commands && !self.beside.done_said {
            self.beside.done_said = true;
            let epoch = self.beside.yielded_to;
            self.say(ToSupervisor::CommandsDone { epoch });
        }
    }

    fn say(&self, word: ToSupervisor) {
        if let Some(say) = &self.parts.say
            && say.try_send(word).is_err()
        {
            tracing::error!("the supervisor does not hear this instance");
        }
    }

    /// Whether an instance that gave the host away has nothing more to do.
    pub(super) fn is_over(&mut self) -> bool {
        if !matches!(self.beside.role, Role::Yielded(_)) || !self.live.is_empty() {
            self.beside.idle_since = None;
            return false;
        }
        let since = *self.beside.idle_since.get_or_insert_with(Instant::now);
        let owed = !self.parts.journal.unacked().is_empty() || !self.fleeting.all().is_empty();
        since.elapsed() > if owed { LINGER_MAX } else { LINGER_MIN }
    }

    /// Tries whether commands could be carried out here, and answers when they could.
    pub(super) fn probe(&mut self, nonce: u64) {
        let Some(link) = &self.link else { return };
        let outbound = link.outbound.clone();
        let runtime = Arc::clone(&self.parts.runtime);
        let error = self.parts.journal.blocked().unwrap_or_default().to_owned();
        // Ends with the answer, or with its link.
        tokio::spawn(async move {
            while !outbound.is_closed() {
                let engine = runtime.facts().await;
                if engine.error.is_empty() {
                    break;
                }
                tracing::warn!(
                    error = engine.error,
                    "the engine does not answer the probe yet"
                );
                tokio::time::sleep(PROBE_AGAIN_AFTER).await;
            }
            let answer = link_up::Kind::ProbeAnswer(ProbeAnswer { nonce, error });
            let _ = outbound.send(LinkUp { kind: Some(answer) }).await;
        });
    }
}

/// Whether nothing of it is left once its stream has ended: it need not be waited for.
fn only_streams(command: &Command) -> bool {
    let kind = command.kind.as_ref();
    command.attach
        && kind.is_some_and(|kind| {
            matches!(
                kind,
                Kind::Exec(_) | Kind::HostShell(_) | Kind::Logs(_) | Kind::CopyOut(_)
            )
        })
}

/// It ends when the version is committed, which waits for all other commands of this instance.
fn upgrades(command: &Command) -> bool {
    matches!(command.kind, Some(Kind::UpgradeAgent(_)))
}

/// The lane as it was resolved when the command was accepted.
pub(super) fn resolved(lane: &str, kind: &Kind) -> Lane {
    match lane.strip_prefix("container/") {
        Some(name) => Lane::Container(name.to_owned()),
        None => kind.lane(),
    }
}
