//! The port for access servers: who is connected, the doors, one task per uplink.
//!
//! A region has one uplink at a time; a newer one displaces the older. Entries are fenced by the
//! connection's number, as in the region's own registry.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use fairlead_daemon::arrivals::Arrivals;
use fairlead_daemon::clock::Clock;
use fairlead_daemon::shutdown::Shutdown;
use fairlead_identity::Role;
use fairlead_link::accept::{Accepted, Acceptor, Door};
use fairlead_link::doorkeeper::{self, Waiting};
use fairlead_protocol::{HostId, UplinkDown, uplink_down};
use fairlead_store::Store;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::authority::CertificateAuthority;
use crate::dispatch::Dispatch;
use crate::feed::Feed;
use crate::fleet::Fleet;
use crate::metrics::Metrics;
use crate::packages::Packages;
use crate::streams::Streams;

mod clones;
mod enrolment;
mod reports;
pub mod terminals;
mod uplink;

/// Connections that have not said anything yet, or wait for their handshake.
const WAITING: Waiting = Waiting {
    max: 512,
    per_address_max: 64,
};
/// Connections behind the enrol door at a time.
const STRANGERS_MAX: usize = 32;
/// Messages that may be lost and wait for one uplink.
const VOLATILE_MAX: usize = 256;

struct Entry {
    connection: u64,
    volatile: mpsc::Sender<UplinkDown>,
    outbox_grew: Arc<Notify>,
    end: CancellationToken,
}

/// The connected regions.
#[derive(Default)]
pub struct Regions {
    entries: Mutex<HashMap<String, Entry>>,
    next_connection: AtomicU64,
}

/// What an uplink task hears from the rest of the controller.
struct Wire {
    connection: u64,
    volatile: mpsc::Receiver<UplinkDown>,
    outbox_grew: Arc<Notify>,
    end: CancellationToken,
}

impl Regions {
    fn entries(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There is something new in the region's outbox.
    pub fn outbox_grew(&self, region: &str) {
        if let Some(entry) = self.entries().get(region) {
            entry.outbox_grew.notify_one();
        }
    }

    /// Sends something that may be lost; whether the region is connected and has room.
    pub fn send(&self, region: &str, kind: uplink_down::Kind) -> bool {
        self.entries().get(region).is_some_and(|entry| {
            entry
                .volatile
                .try_send(UplinkDown { kind: Some(kind) })
                .is_ok()
        })
    }

    /// Takes a region's new uplink in; an older one is told to end.
    fn attach(&self, region: &str) -> Wire {
        let connection = self.next_connection.fetch_add(1, Ordering::Relaxed) + 1;
        let (volatile, queue) = mpsc::channel(VOLATILE_MAX);
        let outbox_grew = Arc::new(Notify::new());
        let end = CancellationToken::new();
        let entry = Entry {
            connection,
            volatile,
            outbox_grew: Arc::clone(&outbox_grew),
            end: end.clone(),
        };
        if let Some(older) = self.entries().insert(region.to_owned(), entry) {
            older.end.cancel();
        }
        Wire {
            connection,
            volatile: queue,
            outbox_grew,
            end,
        }
    }

    /// An uplink has ended; whether it still was the region's.
    fn detach(&self, region: &str, connection: u64) -> bool {
        let mut entries = self.entries();
        let current = entries
            .get(region)
            .is_some_and(|entry| entry.connection == connection);
        if current {
            entries.remove(region);
        }
        current
    }
}

/// What the tasks behind the port work with.
pub struct Centre {
    /// Durable state.
    pub store: Store,
    /// Certificates.
    pub authority: Arc<CertificateAuthority>,
    /// The fleet as told.
    pub fleet: Arc<Fleet>,
    /// Commands.
    pub dispatch: Arc<Dispatch>,
    /// Events.
    pub feed: Arc<Feed>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Who is connected.
    pub regions: Arc<Regions>,
    /// Streams.
    pub streams: Arc<Streams>,
    /// Who decides about terminals.
    pub desk: Arc<dyn terminals::TerminalDesk>,
    /// Time.
    pub clock: Clock,
    /// Which region each host belongs to: no region may speak for another's hosts.
    pub homes: RwLock<HashMap<HostId, String>>,
    /// What regions serve their agents.
    pub packages: Arc<Packages>,
    /// What becomes of clones.
    pub clones: crate::config::Clones,
}

impl Centre {
    /// Whether the host is one of that region's.
    fn is_home(&self, region: &str, host: &[u8]) -> bool {
        let homes = self.homes.read().unwrap_or_else(PoisonError::into_inner);
        HostId::from_wire(host).is_ok_and(|host| homes.get(&host).is_some_and(|r| r == region))
    }

    /// A host belongs to a region from now on.
    fn settle_in(&self, region: &str, host: HostId) {
        self.homes
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(host, region.to_owned());
    }
}

/// Accepts access servers until shutdown.
pub async fn run(listener: Arrivals, acceptor: Acceptor, centre: Arc<Centre>, shutdown: Shutdown) {
    let strangers = Arc::new(Semaphore::new(STRANGERS_MAX));
    let ends = shutdown.clone();
    let then = move |finished| {
        let (centre, strangers) = (Arc::clone(&centre), Arc::clone(&strangers));
        let shutdown = shutdown.clone();
        async move {
            match finished {
                Ok(accepted) => through_door(accepted, centre, &strangers, shutdown).await,
                Err(error) => tracing::debug!(%error, "connection refused"),
            }
        }
    };
    doorkeeper::run(listener, acceptor, WAITING, ends.cancelled(), then).await;
}

async fn through_door(
    accepted: Accepted,
    centre: Arc<Centre>,
    strangers: &Semaphore,
    shutdown: Shutdown,
) {
    let server = accepted.peer.as_ref().and_then(|peer| match &peer.role {
        Role::AccessServer { region, name } => Some((region.clone(), name.clone())),
        _ => None,
    });
    match (accepted.door, server) {
        (Door::Uplink, Some((region, name))) => {
            // A small task of its own: the handshake's future is large and must not stay.
            tokio::spawn(uplink::run(
                accepted.messages(),
                region,
                name,
                centre,
                shutdown,
            ));
        }
        (Door::Stream(id), Some((region, _))) => {
            if !centre.streams.arrived(id, &region, accepted.stream()) {
                tracing::warn!(region, stream = %id, "a stream was dialled that nobody expects");
            }
        }
        (Door::Package, Some((region, _))) => {
            let packages = Arc::clone(&centre.packages);
            // Ends with the file, or when either side stalls.
            tokio::spawn(async move { packages.give(accepted.stream(), &region).await });
        }
        (Door::Enrol, _) if accepted.peer.is_none() => {
            let Ok(_permit) = strangers.try_acquire() else {
                return;
            };
            enrolment::region(accepted.messages(), &centre).await;
        }
        (door, _) => {
            tracing::warn!(remote = %accepted.remote, ?door, peer = ?accepted.peer.map(|p| p.role.to_string()),
                "a door stays closed to this peer");
        }
    }
}
