//! Carrying out commands: accept, wait for the lane, journal, act, journal, report.
//!
//! | module | what lives there |
//! |---|---|
//! | `task` | the actor: owns journal index, lanes and verifier; the only one that decides |
//! | `lanes` | pure: which command may begin |
//! | `lane_lock` | the kernel's word on who acts on a lane |
//! | `job` | one command's life in a task of its own: checks, intent, act, result |
//! | `look` | before the act: the container, precondition and policy |
//! | `act` | what each kind asks of the engine |
//! | `issuer` | the stream on which who issued a command wants to hear of it |
//! | `exec` | a process: made, journalled, started |
//! | `own` | what is asked of the agent itself |
//! | `turn` | who is first: the job that begins, or the person who withdraws |
//! | `handover` | another instance beside this one: what is given away, what is left alone |
//! | `fleeting` | results that are not journalled |
//! | `attached` | exec and logs, with or without a stream |
//! | `copy` | copies into a container and out of one |
//! | `terminal` | terminals; and (`line`) both ways of them, of processes, logs and copies, on one stream after another |
//! | `host_shell` | a shell on the host itself |
//! | `settle` | after a crash: what became of a command that had begun |
//!
//! The actor never waits for the engine, the disk or the network; the jobs do.

use std::time::Duration;

use bytes::Bytes;
use fairlead_protocol::{CommandId, LinkUp, OpenStream, SignedCommand, Stage, Stamp, State};
use rustls::pki_types::UnixTime;
use tokio::sync::{mpsc, oneshot};

use crate::handoff::decide::Key;
use crate::handoff::part::Flying;
use crate::journal::{Dead, Known};

pub mod lanes;
mod act;
mod attached;
mod copy;
mod exec;
mod fleeting;
pub mod host_shell;
mod handover;
mod issuer;
mod job;
mod lane_lock;
mod look;
mod outcome;
mod own;
mod settle;
mod surroundings;
mod task;
mod terminal;
mod turn;

pub use lane_lock::LaneLocks;
pub use outcome::Outcome;
pub use task::{Executor, Parts};

/// What the session tells the executor.
#[derive(Debug)]
pub enum Request {
    /// A command came over the link.
    Deliver {
        /// As it came; not yet verified.
        command: SignedCommand,
        /// The epoch that the server meant; 0: it did not say.
        epoch: u64,
    },
    /// Withdraw it, if it has not begun.
    Cancel {
        /// Which.
        id: CommandId,
        /// Who asks.
        by: String,
    },
    /// The region has the result on its disk.
    Acked {
        /// Of which command.
        id: CommandId,
    },
    /// A link is up: what is to be sent goes here, streams are dialled there.
    LinkUp {
        /// The link's queue.
        outbound: mpsc::Sender<LinkUp>,
        /// The connection's number, quoted in results.
        connection: u64,
        /// How to dial streams to this link's server.
        streams: StreamDialler,
    },
    /// The link of that number is gone.
    LinkDown {
        /// Which.
        connection: u64,
    },
    /// The server asks for a stream.
    OpenStream(OpenStream),
    /// The region says that this host's identity has ended.
    Revoked,
    /// Keys that may sign commands.
    LearnKeys(fairlead_protocol::CommandKeys),
    /// The server asks for a stream whose command this instance has under way, and another told.
    OpenStreamHere(OpenStream),
    /// The server tries whether commands could be carried out here.
    Probe {
        /// Quoted in the answer.
        nonce: u64,
    },
    /// Begin nothing more.
    Yield {
        /// Where what is under way goes.
        answer: oneshot::Sender<Vec<Flying>>,
    },
    /// The supervisor knows that this instance has yielded.
    Yielded {
        /// The epoch of the one that gets the host.
        epoch: u64,
    },
    /// This instance owns the host.
    Own {
        /// Its epoch.
        epoch: u64,
        /// What the instance before has under way, and which that is.
        flying: Vec<(Key, Flying)>,
        /// What is in its journal.
        known: Known,
    },
    /// What another instance had under way has ended.
    Released {
        /// Which.
        id: CommandId,
    },
    /// Another instance is gone.
    Gone {
        /// Which.
        key: Key,
        /// What the journals of those that are gone hold.
        dead: Vec<Dead>,
    },
}

/// Dials streams to the server of the present link.
#[derive(Clone)]
pub struct StreamDialler {
    /// TLS with this host's certificate.
    pub dialler: fairlead_link::dial::Dialler,
    /// Where the link goes.
    pub address: String,
    /// The role in that server's certificate.
    pub server: String,
}

impl std::fmt::Debug for StreamDialler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StreamDialler({} at {})", self.server, self.address)
    }
}

/// A time in microseconds as certificates are judged by.
pub(crate) fn unix(at_us: i64) -> UnixTime {
    let since = Duration::from_micros(u64::try_from(at_us).unwrap_or(0));
    UnixTime::since_unix_epoch(since)
}

fn stamp(stage: Stage, at_us: i64) -> Stamp {
    Stamp {
        stage: stage.into(),
        at_us,
        note: String::new(),
    }
}

/// The last frame of a stream.
fn end_frame(outcome: &Outcome) -> Bytes {
    let text = serde_json::json!({
        "state": outcome.state.name(),
        "code": outcome.code,
        "message": outcome.message,
        "exit_code": outcome.exit_code,
    });
    fairlead_protocol::stream::frame(
        fairlead_protocol::stream::Channel::End,
        text.to_string().as_bytes(),
    )
}

/// How a state reads in the log of the host's owner.
fn in_words(state: State) -> &'static str {
    match state {
        State::Succeeded => "done",
        State::Failed => "failed",
        State::Expired => "not begun: its time was over",
        State::Cancelled => "withdrawn",
        State::Conflict => "not begun: things had changed",
        State::Superseded => "overtaken",
        State::Unknown => "outcome unknown",
        State::Unspecified | State::Queued | State::Delivered | State::Running => "going on",
    }
}
