//! What the decider wants is done: processes, epochs on disk, words on the handoff socket.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fairlead_protocol::RunId;
use rustix::process::Signal;
use rustix::time::{ClockId, clock_gettime};

use super::layout::Layout;
use super::replace::{Resumed, replace};
use super::socket::Socket;
use super::{epoch_path, keep_epoch, read_epoch};
use crate::handoff::decide::{Action, Decider, Event, Key, Phase, Refused, Times};
use crate::handoff::words::{FromSupervisor, Status, ToSupervisor};

/// What may wait for an instance that has not connected yet.
const WORDS_WAITING_MAX: usize = 64;

/// More time than passes between two looks while the machine runs.
const LATE: Duration = Duration::from_secs(2);

/// The supervisor's hands.
pub(super) struct Host<'a> {
    pub(super) state_dir: &'a Path,
    pub(super) arguments: &'a [String],
    pub(super) layout: Layout,
    pub(super) run: RunId,
    pub(super) decider: Decider,
    pub(super) pids: BTreeMap<Key, u32>,
    pub(super) socket: Option<Socket>,
    pub(super) socket_path: PathBuf,
    /// For instances that have not connected (again).
    pub(super) waiting: BTreeMap<Key, Vec<FromSupervisor>>,
    /// Whether the owner's server lets a second link in; absent: it has no link.
    pub(super) handoff: Option<bool>,
    /// Which process wants to know whether its upgrade has begun.
    pub(super) asking: Option<u32>,
    pub(super) said: Option<Status>,
    /// When time last passed here.
    pub(super) ticked: Duration,
    /// This supervisor is a new version and is believed from then on.
    pub(super) believed_at: Option<Duration>,
    pub(super) replace_to: Option<String>,
    /// The agent is to be taken off this machine.
    pub(super) departs: bool,
}

/// Time that goes on while this process is another program, and stops while the machine sleeps.
pub(super) fn now() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::try_from(now).unwrap_or_default()
}

impl<'a> Host<'a> {
    pub(super) fn new(
        state_dir: &'a Path,
        arguments: &'a [String],
        layout: Layout,
        run: RunId,
        decider: Decider,
    ) -> Self {
        let socket_path = state_dir.join("handoff").join("socket");
        let socket = Socket::listen(&socket_path)
            .inspect_err(|error| {
                tracing::error!(path = %socket_path.display(), %error, "no handoff socket: the agent runs, but cannot be upgraded");
            })
            .ok();
        Self {
            state_dir,
            arguments,
            layout,
            run,
            decider,
            pids: BTreeMap::new(),
            socket,
            socket_path,
            waiting: BTreeMap::new(),
            handoff: None,
            asking: None,
            said: None,
            ticked: now(),
            believed_at: None,
            replace_to: None,
            departs: false,
        }
    }

    /// Goes on where the program that this process was before left.
    pub(super) fn resume(
        state_dir: &'a Path,
        arguments: &'a [String],
        layout: Layout,
        times: Times,
        resumed: Resumed,
    ) -> Self {
        let Resumed {
            run,
            epoch,
            owner,
            instances,
        } = resumed;
        let versions = layout.versions(state_dir);
        let (pids, instances): (BTreeMap<_, _>, BTreeMap<_, _>) = instances
            .into_iter()
            .map(|(key, pid, instance)| ((key, pid), (key, instance)))
            .unzip();
        let decider = Decider::resume(times, epoch, versions, instances, owner);
        let mut host = Self::new(state_dir, arguments, layout, run, decider);
        host.pids = pids;
        host.believed_at = Some(now() + times.trial);
        tracing::info!(
            version = host.layout.own_version(),
            "the supervisor goes on as a new version"
        );
        host
    }

    /// Time has passed. Where this process was not run for long, the others were not either, and nobody is
    /// blamed for silence.
    pub(super) fn tick(&mut self) {
        let late = now().saturating_sub(self.ticked) > LATE;
        self.ticked = now();
        if late {
            for key in self.pids.keys().copied().collect::<Vec<_>>() {
                self.on(Event::Heard(key));
            }
        }
        self.on(Event::Tick);
    }

    /// Takes an event to the decider and does what it says.
    pub(super) fn on(&mut self, event: Event) {
        let mut todo: std::collections::VecDeque<_> = self.decider.on(now(), event).into();
        while let Some(action) = todo.pop_front() {
            if let Some(event) = self.perform(action) {
                todo.extend(self.decider.on(now(), event));
            }
        }
    }

    fn perform(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::StartOwner {
                key,
                version,
                epoch,
            } => return self.start_owner(key, &version, epoch),
            Action::StartBeside { key, version } => {
                tracing::info!(version, "a candidate is started beside the agent");
                return self.spawn(key, &version, None);
            }
            Action::Reserve(epoch) => {
                let kept = keep_epoch(self.state_dir, epoch + 1);
                return Some(match kept {
                    Ok(()) => Event::Reserved,
                    Err(error) => Event::NotReserved(error.to_string()),
                });
            }
            Action::Yield(key, epoch) => self.tell(key, FromSupervisor::Yield { epoch }),
            Action::Grant { key, epoch, from } => {
                tracing::info!(key, epoch, "the host is given to another instance");
                self.tell(key, FromSupervisor::Grant { epoch, from });
            }
            Action::Gone { tell, gone } => self.tell(tell, FromSupervisor::Gone { key: gone }),
            Action::Notice(key) => {
                let in_s = self.decider.times().notice.as_secs();
                self.tell(key, FromSupervisor::Notice { in_s });
            }
            Action::Leave(key) => self.signal(key, Signal::TERM),
            Action::Kill(key) => {
                tracing::warn!(key, "an instance is ended");
                self.signal(key, Signal::KILL);
            }
            Action::Commit(versions) => {
                return Some(match self.layout.keep(self.state_dir, &versions) {
                    Ok(()) => {
                        tracing::info!(version = versions.current, "committed");
                        Event::Committed
                    }
                    Err(error) => {
                        tracing::error!(%error, "a version cannot be committed; it is tried again");
                        Event::NotCommitted
                    }
                });
            }
            Action::Note(versions) => {
                if let Some(returned) = &versions.returned {
                    tracing::error!(
                        from = returned.from,
                        to = returned.to,
                        why = returned.why,
                        "a version does not have the host"
                    );
                }
                if let Err(error) = self.layout.keep(self.state_dir, &versions) {
                    tracing::warn!(%error, "why a version returned could not be kept");
                }
            }
            Action::Believed => {
                let version = self.decider.versions().current.clone();
                tracing::info!(version, "the version is believed");
                self.replace_to = Some(version);
            }
            Action::Answer(answer) => self.answer(answer),
        }
        None
    }

    /// Says something to an instance, now or when it has connected.
    fn tell(&mut self, key: Key, word: FromSupervisor) {
        let pid = self.pids.get(&key).copied();
        let told = match (&mut self.socket, pid) {
            (Some(socket), Some(pid)) => socket.tell(pid, &word),
            _ => return,
        };
        let waiting = self.waiting.entry(key).or_default();
        if !told && waiting.len() < WORDS_WAITING_MAX {
            waiting.push(word);
        }
    }

    fn key_of(&self, pid: u32) -> Option<Key> {
        let mut pids = self.pids.iter();
        pids.find(|(_, known)| **known == pid).map(|(key, _)| *key)
    }

    /// Hears what was said on the socket.
    pub(super) fn listen(&mut self) {
        let said = match &mut self.socket {
            Some(socket) => socket.turn(),
            None => return,
        };
        for (pid, word) in said {
            match self.key_of(pid) {
                Some(key) => self.hear(key, pid, word),
                None => self.hear_tool(pid, &word),
            }
        }
    }

    fn hear(&mut self, key: Key, pid: u32, word: ToSupervisor) {
        let greeted = self
            .socket
            .iter_mut()
            .flat_map(|socket| &mut socket.peers)
            .rfind(|peer| peer.pid == pid)
            .is_none_or(|peer| std::mem::replace(&mut peer.greeted, true));
        if !greeted {
            for word in self.waiting.remove(&key).unwrap_or_default() {
                self.tell(key, word);
            }
        }
        self.on(Event::Heard(key));
        match word {
            ToSupervisor::Alive { handoff } => {
                if self.decider.owner() == Some(key) {
                    self.handoff = handoff;
                }
            }
            ToSupervisor::Proved => self.on(Event::Proved(key)),
            ToSupervisor::Yielded { epoch } => self.on(Event::Yielded(key, epoch)),
            ToSupervisor::CommandsDone { epoch } => self.on(Event::CommandsDone(key, epoch)),
            ToSupervisor::Peer(peer) => {
                // From one that gave the host away to the owner, and the other way round.
                let owner = self.decider.owner();
                let others: Vec<Key> = self.pids.keys().copied().collect();
                for other in others.into_iter().filter(|other| *other != key) {
                    if owner == Some(key) || owner == Some(other) {
                        self.tell(other, FromSupervisor::Peer(peer.clone()));
                    }
                }
            }
            ToSupervisor::Upgrade { .. } | ToSupervisor::Status => {}
        }
    }

    fn hear_tool(&mut self, pid: u32, word: &ToSupervisor) {
        match word {
            ToSupervisor::Upgrade { version } => {
                self.asking = Some(pid);
                match self.cannot_upgrade(version) {
                    Some(why) => {
                        self.asking = None;
                        // The link may be down, or has not been heard of: this supervisor has just begun.
                        let soon = self.handoff.is_none();
                        self.tell_tool(pid, &FromSupervisor::Refused { why, soon });
                    }
                    None => self.on(Event::Upgrade(version.clone())),
                }
            }
            ToSupervisor::Status => {
                // Who asks finds the file as new as the answer.
                self.say_status();
                let status = Box::new(self.status());
                self.tell_tool(pid, &FromSupervisor::Status(status));
            }
            _ => {}
        }
    }

    fn cannot_upgrade(&self, version: &str) -> Option<String> {
        let Some(folder) = self.layout.folder(version) else {
            return Some(
                "this agent's program does not lie in a folder of versions (PREFIX/versions/V), as \
                 the installer lays it out; install it with install.sh"
                    .to_owned(),
            );
        };
        if !folder.join(super::PROGRAM).is_file() {
            return Some(format!(
                "there is no version {version} in {}",
                folder.display()
            ));
        }
        match self.handoff {
            Some(true) => None,
            Some(false) => Some(
                "the region's access server is of a version that knows no handoff: upgrade it first"
                    .to_owned(),
            ),
            None => Some(
                "the agent is not connected to its region, so a new version could not prove that it \
                 works; try again when it is (fairlead-agent status)"
                    .to_owned(),
            ),
        }
    }

    fn answer(&mut self, answer: Result<(), Refused>) {
        let Some(pid) = self.asking.take() else {
            return;
        };
        let word = match answer {
            Ok(()) => FromSupervisor::Begun,
            Err(refused) => FromSupervisor::Refused {
                why: refused.to_string(),
                soon: false,
            },
        };
        self.tell_tool(pid, &word);
    }

    fn tell_tool(&mut self, pid: u32, word: &FromSupervisor) {
        if let Some(socket) = &mut self.socket {
            socket.tell(pid, word);
        }
    }

    /// A server may have told an instance of a higher epoch, which it then put on disk.
    pub(super) fn hear_of_epochs(&mut self) {
        if let Ok(epoch) = read_epoch(&epoch_path(self.state_dir)) {
            self.on(Event::Raised(epoch));
        }
    }

    /// A version that is believed becomes the supervisor's too, and a supervisor that has lived long enough is
    /// what the system's service starts.
    pub(super) fn replace_if_due(&mut self) {
        if self.believed_at.is_some_and(|at| now() >= at) {
            self.believed_at = None;
            let version = self.layout.own_version();
            match self.layout.link("supervisor", &version) {
                Ok(()) => tracing::info!(version, "the service starts this supervisor from now on"),
                Err(error) => {
                    tracing::error!(%error, "the supervisor's link could not be moved; it is tried again");
                    self.believed_at = Some(now() + Duration::from_secs(60));
                }
            }
        }
        let Phase::Steady { owner } = *self.decider.phase() else {
            return;
        };
        let Some(version) = self.replace_to.take() else {
            return;
        };
        if version.is_empty() || version == self.layout.own_version() {
            return;
        }
        let instances = self.decider.instances();
        let resumed = Resumed {
            run: self.run,
            epoch: self.decider.epoch(),
            owner,
            instances: self
                .pids
                .iter()
                .filter_map(|(key, pid)| Some((*key, *pid, instances.get(key)?.clone())))
                .collect(),
        };
        // It returns only when it could not be done: then this supervisor goes on.
        let error = replace(self.state_dir, &self.layout, &version, &resumed);
        tracing::error!(version, %error, "the supervisor stays what it is");
    }
}
