//! The agents' port: hands each connection that came through the handshake to the task of its door.

use std::sync::Arc;

use fairlead_daemon::arrivals::Arrivals;
use fairlead_daemon::shutdown::Shutdown;
use fairlead_identity::Role;
use fairlead_link::accept::{Accepted, Acceptor, Door};
use fairlead_link::doorkeeper::{self, Waiting};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use crate::link::departure;
use crate::packages::Shelf;
use crate::region::Region;
use crate::streams::Arrived;
use crate::{doors, link};

/// Of those that have not said anything yet, or wait for their handshake, those of one address. Hundreds of hosts
/// behind it may come back at once.
const WAITING_PER_ADDRESS_MAX: usize = 512;
/// Connections behind the doors for strangers at a time.
const STRANGERS_MAX: usize = 256;

/// Accepts until shutdown, then waits until the hosts have heard of it. Without a shelf no packages are served. What
/// else is connected ends with the process.
pub async fn run(
    listener: Arrivals,
    acceptor: Acceptor,
    region: Arc<Region>,
    shelf: Option<Arc<Shelf>>,
    shutdown: Shutdown,
) {
    let strangers = Arc::new(Semaphore::new(STRANGERS_MAX));
    let links = TaskTracker::new();
    let begun = links.clone();
    let ends = shutdown.clone();
    let waiting_max = region.capacity.waiting;
    let then = move |finished| {
        let (region, strangers) = (Arc::clone(&region), Arc::clone(&strangers));
        let (shelf, links) = (shelf.clone(), begun.clone());
        let shutdown = shutdown.clone();
        async move {
            match finished {
                Ok(accepted) => {
                    through_door(accepted, region, shelf, strangers, &links, shutdown).await;
                }
                Err(error) => {
                    region.counters.handshakes_failed.increment();
                    tracing::debug!(%error, "connection refused");
                }
            }
        }
    };
    let waiting = Waiting {
        max: waiting_max,
        per_address_max: WAITING_PER_ADDRESS_MAX,
    };
    doorkeeper::run(listener, acceptor, waiting, ends.cancelled(), then).await;
    links.close();
    let told = tokio::time::timeout(departure::HEARD_WITHIN, links.wait()).await;
    if told.is_err() {
        tracing::warn!(
            links = links.len(),
            "not every host took the word that this server ends"
        );
    }
}

async fn through_door(
    accepted: Accepted,
    region: Arc<Region>,
    shelf: Option<Arc<Shelf>>,
    strangers: Arc<Semaphore>,
    links: &TaskTracker,
    shutdown: Shutdown,
) {
    let agent = accepted.peer.as_ref().and_then(|peer| match &peer.role {
        Role::Agent { region: of, host } if *of == region.name => {
            Some((*host, peer.serial.clone()))
        }
        _ => None,
    });
    let revoked = agent
        .as_ref()
        .and_then(|(host, serial)| region.revoked(*host, serial));
    match (accepted.door, agent) {
        (Door::Link, Some((host, serial))) if !accepted.expired && revoked.is_none() => {
            // A small task of its own: the handshake's is large and must not stay. It ends with the link,
            // or with the process.
            links.spawn(link::run(
                accepted.messages(),
                host,
                serial,
                region,
                shutdown,
            ));
        }
        (Door::Stream(id), Some((host, serial))) if !accepted.expired && revoked.is_none() => {
            let arrived = Arrived {
                socket: accepted.stream(),
                serial,
            };
            if !region.streams.arrived(id, host, arrived) {
                tracing::warn!(%host, stream = %id, "a stream was dialled that nobody expects");
            }
        }
        (Door::Package, Some(_)) if !accepted.expired && revoked.is_none() => {
            // Ends with the file, or when either side stalls.
            let socket = accepted.stream();
            tokio::spawn(async move {
                if let Some(shelf) = shelf {
                    shelf.serve(socket).await;
                }
            });
        }
        (Door::Enrol, _) if accepted.peer.is_none() => {
            let Ok(_permit) = strangers.try_acquire_owned() else {
                return;
            };
            doors::enrol(accepted.messages(), &region).await;
        }
        (Door::Renew, Some((host, _))) if revoked.is_none() => {
            let Ok(_permit) = strangers.try_acquire_owned() else {
                return;
            };
            doors::renew(accepted.messages(), host, &region).await;
        }
        (door, _) => {
            let refusal = revoked.unwrap_or_else(|| doors::closed(accepted.expired));
            tracing::info!(remote = %accepted.remote, ?door, code = refusal.0, "door stays closed");
            if !matches!(door, Door::Stream(_) | Door::Package) {
                doors::refuse(&mut accepted.messages(), refusal, 0).await;
            }
        }
    }
}
