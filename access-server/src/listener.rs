//! The agents' port: accepts, lets a bounded number through the handshake at once, and hands each
//! finished connection to the task of its door. A connection that says nothing takes no place among
//! the handshakes.

use std::sync::Arc;

use fairlead_daemon::shutdown::Shutdown;
use fairlead_identity::Role;
use fairlead_link::accept::{Accepted, Acceptor, Door};
use fairlead_protocol::limits;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::region::Region;
use crate::{doors, link};

/// Handshakes at a time: they cost CPU and memory before anybody has proved anything. More wait in the
/// kernel's queue.
const HANDSHAKES_MAX: usize = 64;
/// Connections that have not said anything yet, or wait for their handshake. They cost a socket and a
/// small task each; more wait in the kernel's queue.
const WAITING_MAX: usize = 8192;
/// Connections behind the doors for strangers at a time.
const STRANGERS_MAX: usize = 256;

/// Accepts until shutdown. Connections end by themselves when the process does.
pub async fn run(
    listener: TcpListener,
    acceptor: Acceptor,
    region: Arc<Region>,
    shutdown: Shutdown,
) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let strangers = Arc::new(Semaphore::new(STRANGERS_MAX));
    let waiting = Arc::new(Semaphore::new(WAITING_MAX));
    loop {
        let Ok(place) = Arc::clone(&waiting).acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (tcp, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, most likely: waiting is the only cure.
                tracing::error!(%error, "cannot accept connections");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let (acceptor, region) = (acceptor.clone(), Arc::clone(&region));
        let (strangers, shutdown) = (Arc::clone(&strangers), shutdown.clone());
        let handshakes = Arc::clone(&handshakes);
        // One task a connection; its end is the connection's end.
        tokio::spawn(async move {
            let mut first = [0; 1];
            let spoke = tokio::time::timeout(limits::HANDSHAKE_TIMEOUT, tcp.peek(&mut first)).await;
            if !matches!(spoke, Ok(Ok(1))) {
                region.counters.handshakes_failed.increment();
                return;
            }
            let Ok(permit) = handshakes.acquire_owned().await else {
                return;
            };
            drop(place);
            // On the heap: those who wait must not pay for the handshake's large future.
            let finished = Box::pin(acceptor.accept(tcp, remote)).await;
            drop(permit);
            match finished {
                Ok(accepted) => through_door(accepted, region, strangers, shutdown).await,
                Err(error) => {
                    region.counters.handshakes_failed.increment();
                    tracing::debug!(%remote, %error, "connection refused");
                }
            }
        });
    }
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
            // A small task of its own: the handshake's future is large and must not stay.
            tokio::spawn(link::run(
                accepted.messages(),
                host,
                serial,
                region,
                shutdown,
            ));
        }
        (Door::Stream(id), Some((host, _))) if !accepted.expired && revoked.is_none() => {
            if !region.streams.arrived(id, host, accepted.stream()) {
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
