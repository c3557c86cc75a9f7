//! What the decider wants is done: processes, epochs on disk, words on the handoff socket.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use fairlead_daemon::files;
use fairlead_protocol::RunId;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, waitpid};
use rustix::time::{ClockId, clock_gettime};

use super::layout::Layout;
use super::replace::{Resumed, replace};
use super::socket::Socket;
use super::{EXIT_NEEDS_HELP, epoch_path, keep_epoch, read_epoch};
use crate::handoff::decide::{Action, Decider, Event, Key, Phase, Refused, Times};
use crate::handoff::words::{FromSupervisor, OneInstance, Status, ToSupervisor};
use crate::uninstall;

/// What may wait for an instance that has not connected yet.
const WORDS_WAITING_MAX: usize = 64;

/// More time than passes between two looks while the machine runs.
const LATE: Duration = Duration::from_secs(2);

/// The supervisor's hands.
pub(super) struct Host<'a> {
    state_dir: &'a Path,
    arguments: &'a [String],
    layout: Layout,
    run: RunId,
    pub(super) decider: Decider,
    pids: BTreeMap<Key, u32>,
    pub(super) socket: Option<Socket>,
    socket_path: PathBuf,
    /// For instances that have not connected (again).
    waiting: BTreeMap<Key, Vec<FromSupervisor>>,
    /// Whether the owner's server lets a second link in; absent: it has no link.
    handoff: Option<bool>,
    /// Which process wants to know whether its upgrade has begun.
    asking: Option<u32>,
    said: Option<Status>,
    /// When time last passed here.
    ticked: Duration,
    /// This supervisor is a new version and is believed from then on.
    believed_at: Option<Duration>,
    replace_to: Option<String>,
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

    fn start_owner(&mut self, key: Key, version: &str, epoch: u64) -> Option<Event> {
        let kept = keep_epoch(self.state_dir, epoch).map_err(|error| error.to_string());
        let kept = kept.and_then(|()| {
            let versions = self.decider.versions();
            let kept = self.layout.keep(self.state_dir, versions);
            kept.map_err(|error| error.to_string())
        });
        if let Err(error) = kept {
            // A full disk passes; a supervisor that gave up would be gone for good.
            tracing::error!(error, "the agent cannot be started; it is tried again");
            self.hear_of_epochs();
            return Some(Event::NotStarted(key, error));
        }
        self.handoff = None;
        self.spawn(key, version, Some(epoch))
    }

    fn spawn(&mut self, key: Key, version: &str, epoch: Option<u64>) -> Option<Event> {
        let mut command = Command::new(self.layout.program(version));
        command
            .arg("run")
            .arg("--state-dir")
            .arg(self.state_dir)
            .args(self.arguments)
            .env("FAIRLEAD_EPOCH", epoch.unwrap_or(0).to_string())
            .env("FAIRLEAD_RUN", self.run.to_string())
            .env("FAIRLEAD_INSTANCE_KEY", key.to_string())
            .env_remove("FAIRLEAD_SAFE")
            .env_remove("FAIRLEAD_AMONG_OTHERS");
        if self.socket.is_some() {
            command.env("FAIRLEAD_HANDOFF", &self.socket_path);
        }
        if !self.pids.is_empty() {
            command.env("FAIRLEAD_AMONG_OTHERS", "true");
        }
        if self.decider.versions().safe && epoch.is_some() {
            command.env("FAIRLEAD_SAFE", "true");
        }
        match command.spawn() {
            Ok(child) => {
                tracing::info!(pid = child.id(), key, version, epoch, "agent started");
                self.pids.insert(key, child.id());
                None
            }
            Err(error) => Some(Event::Ended {
                key,
                how: format!("it cannot be started: {error}"),
                needs_help: false,
            }),
        }
    }

    fn signal(&self, key: Key, signal: Signal) {
        let pid = self.pids.get(&key).copied();
        if let Some(pid) = pid.and_then(raw) {
            // It may have gone already.
            let _ = kill_process(pid, signal);
        }
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
                        self.tell_tool(pid, &FromSupervisor::Refused { why });
                    }
                    None => self.on(Event::Upgrade(version.clone())),
                }
            }
            ToSupervisor::Status => {
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
    fn hear_of_epochs(&mut self) {
        if let Ok(epoch) = read_epoch(&epoch_path(self.state_dir)) {
            self.on(Event::Raised(epoch));
        }
    }

    /// Notices which processes have ended.
    pub(super) fn reap(&mut self) {
        let pids: Vec<(Key, u32)> = self.pids.iter().map(|(key, pid)| (*key, *pid)).collect();
        for (key, pid) in pids {
            let Some(status) = ended(pid) else {
                continue;
            };
            self.pids.remove(&key);
            self.waiting.remove(&key);
            self.hear_of_epochs();
            let how = in_words(status);
            tracing::warn!(pid, key, how, "agent ended");
            let code = status.and_then(WaitStatus::exit_status);
            self.departs |= code == Some(uninstall::EXIT_DEPARTS);
            self.on(Event::Ended {
                key,
                how,
                needs_help: code == Some(EXIT_NEEDS_HELP),
            });
        }
    }

    /// Asks all agents to leave, and makes them.
    pub(super) fn stop(&mut self, within: Duration) {
        let keys: Vec<Key> = self.pids.keys().copied().collect();
        for key in &keys {
            self.signal(*key, Signal::TERM);
        }
        let until = now() + within;
        while now() < until && !self.pids.is_empty() {
            self.pids.retain(|_, pid| ended(*pid).is_none());
            std::thread::sleep(Duration::from_millis(20));
        }
        for key in keys {
            self.signal(key, Signal::KILL);
        }
        for pid in std::mem::take(&mut self.pids).into_values().filter_map(raw) {
            let _ = waitpid(Some(pid), WaitOptions::empty());
        }
    }

    fn status(&self) -> Status {
        let owner = self.decider.owner();
        let versions = self.decider.versions();
        let instances = self.decider.instances();
        let phase = match self.decider.phase() {
            Phase::Vacant { .. } => "vacant",
            Phase::Steady { .. } => "steady",
            Phase::Proving { .. } | Phase::Reserving { .. } => "proving",
            Phase::Yielding { .. } => "yielding",
            Phase::Draining { .. } => "draining",
        };
        let role = |key: Key, epoch: u64| {
            if owner == Some(key) {
                "owner"
            } else if epoch == 0 {
                "candidate"
            } else {
                "finishing"
            }
        };
        Status {
            supervisor: std::process::id(),
            agent: owner.and_then(|owner| self.pids.get(&owner)).copied(),
            epoch: owner
                .and_then(|owner| instances.get(&owner))
                .map_or(0, |instance| instance.epoch),
            phase: phase.to_owned(),
            current: versions.current.clone(),
            previous: versions.previous.clone(),
            tries_left: versions.tries_left,
            safe: versions.safe,
            supervisor_version: self.layout.own_version(),
            returned: versions.returned.clone(),
            instances: instances
                .iter()
                .filter_map(|(key, instance)| {
                    Some(OneInstance {
                        pid: *self.pids.get(key)?,
                        version: instance.version.clone(),
                        epoch: instance.epoch,
                        role: role(*key, instance.epoch).to_owned(),
                    })
                })
                .collect(),
        }
    }

    /// Tells other programs of this machine who runs, when that has changed.
    pub(super) fn say_status(&mut self) {
        let status = self.status();
        if status.agent.is_none() || self.said.as_ref() == Some(&status) {
            return;
        }
        let written = serde_json::to_vec(&status)
            .map_err(io::Error::from)
            .and_then(|text| files::replace(&self.state_dir.join("status.json"), &text));
        match written {
            Ok(()) => self.said = Some(status),
            Err(error) => tracing::warn!(%error, "status could not be written"),
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

fn raw(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

/// How a process ended, if it has. One that is not ours any more has ended too.
fn ended(pid: u32) -> Option<Option<WaitStatus>> {
    match waitpid(Some(raw(pid)?), WaitOptions::NOHANG) {
        Ok(Some((_, status))) => Some(Some(status)),
        Ok(None) | Err(rustix::io::Errno::INTR) => None,
        Err(_) => Some(None),
    }
}

fn in_words(status: Option<WaitStatus>) -> String {
    let exited = status.and_then(WaitStatus::exit_status);
    let killed = status.and_then(WaitStatus::terminating_signal);
    match (exited, killed) {
        (Some(code), _) => format!("it ended with exit code {code}"),
        (None, Some(signal)) => format!("it was ended by signal {signal}"),
        (None, None) => "it ended".to_owned(),
    }
}
