//! The agents' port: hands each connection that came through the handshake to the task of its door.

use std::sync::Arc;

use fairlead_daemon::arrivals::Arrivals;
use fairlead_daemon::shutdown::Shutdown;
use fairlead_identity::Role;
use fairlead_link::accept::{Accepted, Acceptor, Door};
use fairlead_link::doorkeeper::{self, Waiting};
use tokio::sync::Semaphore;

use crate::region::Region;
use crate::streams::Arrived;
use crate::{doors, link};

/// Of those that have not said anything yet, or wait for their handshake, those of one address. Hundreds of hosts
/// behind it may come back at once.
const WAITING_PER_ADDRESS_MAX: usize = 512;
/// Connections behind the doors for strangers at a time.
const STRANGERS_MAX: usize = 256;

/// Accepts until shutdown. Connections end by themselves when the process does.
pub async fn run(listener: Arrivals, acceptor: Acceptor, region: Arc<Region>, shutdown: Shutdown) {
    let strangers = Arc::new(Semaphore::new(STRANGERS_MAX));
    let ends = shutdown.clone();
    let waiting_max = region.capacity.waiting;
    let then = move |finished| {
        let (region, strangers) = (Arc::clone(&region), Arc::clone(&strangers));
        let shutdown = shutdown.clone();
        async move {
            match finished {
                Ok(accepted) => through_door(accepted, region, strangers, shutdown).await,
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
}

async fn through_door(
    accepted: Accepted,
    region: Arc<Region>,
    strangers: Arc<Semaphore>,
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
            tokio::spawn(link::run(
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
            if !matches!(door, Door::Stream(_)) {
                doors::refuse(&mut accepted.messages(), refusal, 0).await;
            }
        }
    }
}
