//! What happened in a run, from three sides: the clients', the recorders', the engine's. All times are
//! microseconds since 1970 by the one clock of the machine, but for stamps, which are server time as
//! each agent's instance reckons it.

use std::collections::BTreeMap;

/// What kind of act a command is, as far as the oracle must know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// Make and start a container.
    Run,
    /// Start it.
    Start,
    /// Stop it.
    Stop,
    /// Stop (if it runs) and start it.
    Restart,
    /// Send it a signal; `ends`: what runs in it leaves on that signal.
    Kill {
        /// The signal's number.
        signal: u32,
        /// Whether the container ends on it.
        ends: bool,
    },
    /// Remove it, running or not.
    Remove,
    /// Run a process in it that leaves a mark.
    Exec,
}

impl Act {
    /// Whether it has the lane to itself.
    #[must_use]
    pub fn changes(&self) -> bool {
        *self != Self::Exec
    }
}

/// What a client asked.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The command's id.
    pub id: String,
    /// Which client.
    pub client: usize,
    /// The container's name: the lane.
    pub container: String,
    /// What.
    pub act: Act,
    /// When it was first sent.
    pub asked_us: i64,
    /// When the API first answered that it has it.
    pub acked_us: Option<i64>,
    /// Not to be begun after this, where the API has told.
    pub not_after_us: Option<i64>,
}

/// What somebody had on record about a command at some time.
#[derive(Debug, Clone)]
pub struct Record {
    /// Who: `controller`, `region`, `host`.
    pub by: String,
    /// When it was read.
    pub read_us: i64,
    /// The command.
    pub id: String,
    /// Its state; `absent` where it was not known.
    pub state: String,
    /// Stable code.
    pub code: String,
    /// Exit code, where there is one.
    pub exit_code: Option<i64>,
    /// When it got its final state, by that side's record; not told by hosts.
    pub finished_us: Option<i64>,
    /// Stations of its way.
    pub stamps: Vec<(String, i64)>,
}

impl Record {
    /// Whether the state is a final one.
    #[must_use]
    pub fn is_final(&self) -> bool {
        !matches!(
            &self.state[..],
            "absent" | "queued" | "delivered" | "running"
        )
    }

    pub(super) fn line(&self) -> String {
        format!(
            "{} {}: {} is {} {} exit {:?}, finished {:?}",
            self.read_us, self.by, self.id, self.state, self.code, self.exit_code, self.finished_us
        )
    }
}

/// What the engine showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A container was made, labelled with this command's id (or none).
    Create(String),
    /// It was started.
    Start,
    /// Its process ended.
    Die,
    /// A stop came to its end.
    Stop,
    /// A restart came to its end.
    Restart,
    /// A signal was sent.
    Kill(u32),
    /// It was removed.
    Destroy,
    /// A process was started in it, for this command.
    ExecStart(String),
    /// That process ended with this code.
    ExecDie(String, i64),
}

/// One line of the engine's own record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effect {
    /// When.
    pub at_us: i64,
    /// The container's name.
    pub container: String,
    /// What.
    pub what: What,
}

impl Effect {
    pub(super) fn line(&self) -> String {
        format!("{} engine: {} {:?}", self.at_us, self.container, self.what)
    }
}

/// How a container is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Presence {
    /// It is not.
    Absent,
    /// It does not run.
    Stopped,
    /// It runs.
    Running,
}

/// A run.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// What was asked, in the order of asking.
    pub asked: Vec<Asked>,
    /// What was on record, in the order of reading.
    pub records: Vec<Record>,
    /// The order in which each side took commands in (`controller`, `region`), oldest first.
    pub orders: BTreeMap<String, Vec<String>>,
    /// What the engine showed, in its order.
    pub effects: Vec<Effect>,
    /// How often each command's process left its mark.
    pub marks: BTreeMap<String, usize>,
    /// The containers at the beginning.
    pub before: BTreeMap<String, Presence>,
    /// The containers at the end.
    pub after: BTreeMap<String, Presence>,
    /// From when to when the engine was away. It forgets what runs by exec, and nobody hears what it told
    /// last; containers go on.
    pub engine_away: Vec<(i64, i64)>,
    /// How far stamps of different instances may be apart, because each reckons server time from its
    /// own hello.
    pub stamps_apart_us: i64,
}

/// The stations that evidence shows.
const STATIONS: [&str; 5] = [
    "delivered",
    "intent_stored",
    "engine_called",
    "engine_answered",
    "settled",
];

impl History {
    /// Its final record at the controller that was read last.
    #[must_use]
    pub fn end_of(&self, id: &str) -> Option<&Record> {
        let of_controller = |record: &&Record| record.by == "controller" && record.is_final();
        self.records
            .iter()
            .rfind(|record| record.id == id && of_controller(record))
    }

    /// Whether the engine was away at some time of these.
    pub(super) fn engine_was_away(&self, from_us: i64, until_us: i64) -> bool {
        let mut away = self.engine_away.iter();
        away.any(|(gone, back)| *gone <= until_us && *back >= from_us)
    }

    pub(super) fn line_of(&self, asked: &Asked) -> String {
        let end = self.end_of(&asked.id).map_or_else(
            || "no end".to_owned(),
            |end| {
                let stamps = end.stamps.iter();
                let stamps = stamps.filter(|(stage, _)| STATIONS.contains(&&stage[..]));
                let stamps: Vec<String> = stamps
                    .map(|(stage, at_us)| format!("{stage} {at_us}"))
                    .collect();
                format!("{} {} ({})", end.state, end.code, stamps.join(", "))
            },
        );
        format!(
            "{} client {}: {} {:?} {}, acknowledged {:?}: {end}",
            asked.asked_us, asked.client, asked.id, asked.act, asked.container, asked.acked_us
        )
    }
}
