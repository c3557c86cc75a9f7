//! What every job needs, and what it tells the actor while it goes on.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fairlead_daemon::clock::{Clock, ServerTime};
use fairlead_link::socket::StreamSocket;
use fairlead_planted::{self as planted, Defect};
use fairlead_protocol::{CommandId, CommandResult, Intent, Stamp};
use tokio::sync::{mpsc, oneshot, watch};

use super::lane_lock::LaneLocks;
use super::terminal::line::Again;
use crate::app::RenewNow;
use crate::journal::Appender;
use crate::observe::Picture;
use crate::policy::PolicyFile;
use crate::runtime::ContainerRuntime;
use crate::uninstall::Departure;
use crate::upgrade::ordered::Orders;

/// What a job tells the actor while it goes on.
pub(super) enum News {
    /// The intent is on disk.
    Begun {
        id: CommandId,
        intent: Intent,
        stamps: Vec<Stamp>,
    },
    /// The engine is about to be asked for it; `again`: an earlier instance was at it and had not done it.
    Called { id: CommandId, again: bool },
    /// The exec's id is on disk.
    ExecMade { id: CommandId, exec: String },
    /// It only reads, and may do so for long: its client is there.
    Attached { id: CommandId },
    /// Its next stream goes there: what runs is held, or the last one could not be dialled.
    AwaitsStream {
        id: CommandId,
        slot: oneshot::Sender<StreamSocket>,
    },
    /// It waits for something outside.
    Waits { id: CommandId, why: String },
    /// It has ended; its result is on disk, where its kind has an effect.
    Ended {
        id: CommandId,
        result: CommandResult,
    },
}

/// What every job needs.
pub(super) struct Surroundings {
    pub(super) runtime: Arc<dyn ContainerRuntime>,
    pub(super) policy: Arc<PolicyFile>,
    pub(super) time: Arc<ServerTime>,
    pub(super) clock: Clock,
    pub(super) appender: Appender,
    pub(super) picture: Picture,
    pub(super) spool: PathBuf,
    pub(super) lane_locks: LaneLocks,
    pub(super) renew: mpsc::Sender<RenewNow>,
    pub(super) departure: Departure,
    /// How long a terminal is held for a server that restarts.
    pub(super) terminals_held: Duration,
    /// The number of the link that is up, if one is.
    pub(super) link: watch::Receiver<Option<u64>>,
    pub(super) upgrades: Arc<Orders>,
    pub(super) news: mpsc::Sender<News>,
}

impl Surroundings {
    /// Where a terminal that is held goes on.
    pub(super) fn again(&self, id: CommandId) -> Again<'_> {
        Again {
            id,
            news: &self.news,
            within: self.terminals_held,
        }
    }

    /// Whether a deadline has passed.
    pub(super) fn is_past(&self, not_after_us: i64) -> bool {
        self.time.now_us() > not_after_us && !planted::is(Defect::ExpiredIsBegun)
    }
}

/// Tells what it waits for.
pub(super) async fn waits(around: &Surroundings, id: CommandId, why: &str) {
    let _ = around
        .news
        .send(News::Waits {
            id,
            why: why.to_owned(),
        })
        .await;
}
