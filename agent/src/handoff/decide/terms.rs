//! What the supervisor's machine is told, what it knows, and what it wants done.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// An instance, in the order of starts.
pub type Key = u32;

/// How long everything may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Times {
    /// For a candidate, from its start until it has proved itself.
    pub prove: Duration,
    /// For an owner, from being asked until it has yielded.
    pub yields: Duration,
    /// An instance on trial that says nothing for so long is ended.
    pub silent: Duration,
    /// For an instance that gave the host away, until its last command and stream has ended.
    pub streams: Duration,
    /// The oldest of too many of those is told so long before it is ended.
    pub notice: Duration,
    /// For an instance that was asked to leave.
    pub leave: Duration,
    /// So long a new version has to live until it is believed.
    pub trial: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            prove: Duration::from_secs(60),
            yields: Duration::from_secs(2),
            silent: Duration::from_secs(5),
            streams: Duration::from_secs(24 * 3600),
            notice: Duration::from_secs(600),
            leave: Duration::from_secs(10),
            trial: Duration::from_secs(600),
        }
    }
}

/// Which version runs here and what is known of it; kept on disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Versions {
    /// What is started. Empty: the supervisor's own program, where there is no folder of versions.
    pub current: String,
    /// What is started when that cannot be kept running.
    pub previous: Option<String>,
    /// Starts that the current version has left while it is on trial; absent: it is believed.
    pub tries_left: Option<u32>,
    /// No version can be kept running: the last good one runs, and takes no commands that change anything.
    #[serde(default)]
    pub safe: bool,
    /// The last time that a version did not get or not keep the host.
    #[serde(default)]
    pub returned: Option<Returned>,
}

/// A version that did not get or not keep the host.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Returned {
    /// Which version.
    pub from: String,
    /// Which has the host instead.
    pub to: String,
    /// Why, in words.
    pub why: String,
}

/// A running instance.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Instance {
    /// Its version.
    pub version: String,
    /// The epoch that it owns the host in, or owned it last; 0: none.
    pub epoch: u64,
    /// When it was started, got the host, or gave it away.
    pub since: Duration,
    /// When it last said something.
    pub heard: Duration,
    /// Told that its time will be over.
    pub noticed: Option<Duration>,
    /// Asked to leave.
    pub leaving: Option<Duration>,
    /// It is being killed.
    pub killed: bool,
}

/// Where the host's ownership is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Nobody's; somebody is started at that time.
    Vacant {
        /// When.
        at: Duration,
    },
    /// One owns it.
    Steady {
        /// Who.
        owner: Key,
    },
    /// A candidate runs beside the owner.
    Proving {
        /// Who owns it.
        owner: Key,
        /// The candidate.
        new: Key,
    },
    /// It has proved itself; epochs go to disk.
    Reserving {
        /// Who owns it.
        owner: Key,
        /// The candidate.
        new: Key,
    },
    /// The owner was asked to yield.
    Yielding {
        /// Who was asked.
        old: Key,
        /// Who gets the host.
        new: Key,
        /// Since when.
        since: Duration,
    },
    /// The new one owns it, the old one finishes what it had begun.
    Draining {
        /// Who had the host before; absent: it is gone.
        old: Option<Key>,
        /// Who owns it.
        new: Key,
        /// Whether the version is being committed.
        commit: Commit,
    },
}

/// How far the commit of a version is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Commit {
    /// The instance before has commands left.
    NotYet,
    /// It is on its way to disk.
    Asked,
    /// The disk did not take it; it is tried again at that time.
    Again(Duration),
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Event {
    /// Time has passed.
    Tick,
    /// Somebody wants that version to run.
    Upgrade(String),
    /// A start did not happen, because the disk did not take what has to be there before.
    NotStarted(Key, String),
    /// An instance said that it is there.
    Heard(Key),
    /// A candidate has proved itself.
    Proved(Key),
    /// An epoch is on disk, and the one after it.
    Reserved,
    /// The disk did not take it.
    NotReserved(String),
    /// An owner has yielded to that epoch.
    Yielded(Key, u64),
    /// An instance that yielded to that epoch has no command left.
    CommandsDone(Key, u64),
    /// The version is committed.
    Committed,
    /// The disk did not take that.
    NotCommitted,
    /// A process has ended.
    Ended {
        /// Which.
        key: Key,
        /// How, in words.
        how: String,
        /// It said that it needs somebody's help.
        needs_help: bool,
    },
    /// A server has seen this epoch of the host.
    Raised(u64),
}

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Action {
    /// Start an instance that owns the host at once. The epoch and the versions go to disk before.
    StartOwner {
        /// Which.
        key: Key,
        /// What is started.
        version: String,
        /// Its epoch.
        epoch: u64,
    },
    /// Start a candidate beside the owner.
    StartBeside {
        /// Which.
        key: Key,
        /// What is started.
        version: String,
    },
    /// Put this epoch and the next one on disk: [`Event::Reserved`].
    Reserve(u64),
    /// Ask the owner to yield to the one that gets that epoch.
    Yield(Key, u64),
    /// Grant an epoch that is on disk.
    Grant {
        /// To whom.
        key: Key,
        /// Which.
        epoch: u64,
        /// Who gave the host away and says what it has under way.
        from: Option<Key>,
    },
    /// Tell the owner that another is gone: what it had begun can be settled.
    Gone {
        /// Whom.
        tell: Key,
        /// Who.
        gone: Key,
    },
    /// Tell an instance that its time will be over.
    Notice(Key),
    /// Ask it to leave.
    Leave(Key),
    /// End it.
    Kill(Key),
    /// Put these on disk, and the link `current` to them: [`Event::Committed`].
    Commit(Versions),
    /// Put these on disk, when the disk takes them.
    Note(Versions),
    /// The current version is believed: the supervisor may become it too.
    Believed,
    /// Answer whoever wanted an upgrade.
    Answer(Result<(), Refused>),
}

/// Why an upgrade was not begun.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refused {
    /// One at a time.
    #[error("another upgrade is under way")]
    UnderWay,
    /// It runs already.
    #[error("version {0} runs here already")]
    Same(String),
    /// There is nobody to take over from.
    #[error("no agent runs at the moment; try again when it does")]
    Vacant,
}
