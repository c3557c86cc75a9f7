//! The listener's loop, and who may come as far as the handshake: a bounded number at a time, and of one
//! address never so many that the others have to wait for it.
//!
//! A connection first has to say something, then it waits for its turn, then it shakes hands; each of the
//! three has its time. Turns are given address by address: whoever holds all those of its own address
//! takes nothing from anybody else. Many hosts may share one address and come back at once, so what
//! is above the turns waits instead of being cut. Handshakes run on threads of their own: each takes a
//! processor for longer than everything that is said on a link in a minute.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fairlead_daemon::arrivals::Arrivals;
use fairlead_protocol::limits;
use fairlead_protocol::origin::Origin;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::accept::{AcceptError, Accepted, Acceptor};

mod handshakes;

use handshakes::Handshakes;

/// Handshakes at a time: they cost CPU and memory before anybody has proved anything.
const HANDSHAKES_MAX: usize = 64;
/// Of these, those of one address.
const HANDSHAKES_PER_ADDRESS_MAX: usize = 8;

/// How many may wait for a handshake. Each costs a socket and a small task.
#[derive(Debug, Clone, Copy)]
pub struct Waiting {
    /// Together; more wait in the kernel's queue.
    pub max: usize,
    /// Of one address; more are cut.
    pub per_address_max: usize,
}

/// Accepts until shutdown, and hands on each connection that came through the handshake, and why another
/// did not. Each is its own task and ends with what `then` does; nobody waits for them.
pub async fn run<Then, Done>(
    listener: impl Into<Arrivals>,
    acceptor: Acceptor,
    waiting: Waiting,
    shutdown: impl Future<Output = ()>,
    then: Then,
) where
    Then: Fn(Result<Accepted, AcceptError>) -> Done + Clone + Send + 'static,
    Done: Future<Output = ()> + Send + 'static,
{
    let mut listener = listener.into();
    let doorkeeper = Doorkeeper::new(waiting);
    let handshakes = Handshakes::start();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let Ok(place) = Arc::clone(&doorkeeper.places).acquire_owned().await else {
            return;
        };
        let (tcp, remote) = tokio::select! {
            () = &mut shutdown => return,
            accepted = listener.accept() => accepted,
        };
        let Some(visitor) = doorkeeper.receive(remote.ip(), place) else {
            // Closed here; its address has more than its share.
            tokio::spawn(then(Err(AcceptError::Crowded)));
            continue;
        };
        let (acceptor, then) = (acceptor.clone(), then.clone());
        let handshakes = handshakes.threads();
        // One task a connection; its end is the connection's end.
        tokio::spawn(async move {
            let turn = match visitor.turn(&tcp).await {
                Ok(turn) => turn,
                Err(error) => return Box::pin(then(Err(error))).await,
            };
            let finished = handshakes::shake(handshakes, acceptor, tcp, remote).await;
            drop(turn);
            // On the heap: those who wait must not pay for the large futures of what follows.
            Box::pin(then(finished)).await;
        });
    }
}

/// What one address has at this port.
struct Address {
    /// Waiting or shaking hands.
    here: usize,
    turns: Arc<Semaphore>,
}

struct Doorkeeper {
    handshakes: Arc<Semaphore>,
    places: Arc<Semaphore>,
    here_max: usize,
    addresses: Mutex<HashMap<Origin, Address>>,
}

impl Doorkeeper {
    fn new(waiting: Waiting) -> Arc<Self> {
        Arc::new(Self {
            handshakes: Arc::new(Semaphore::new(HANDSHAKES_MAX)),
            places: Arc::new(Semaphore::new(waiting.max)),
            here_max: waiting.per_address_max + HANDSHAKES_PER_ADDRESS_MAX,
            addresses: Mutex::default(),
        })
    }

    fn addresses(&self) -> MutexGuard<'_, HashMap<Origin, Address>> {
        self.addresses
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a connection among those of its address; `None` when that has too many.
    fn receive(self: &Arc<Self>, from: IpAddr, place: OwnedSemaphorePermit) -> Option<Visitor> {
        let origin = Origin::from(from);
        let mut addresses = self.addresses();
        let address = addresses.entry(origin).or_insert_with(|| Address {
            here: 0,
            turns: Arc::new(Semaphore::new(HANDSHAKES_PER_ADDRESS_MAX)),
        });
        if address.here >= self.here_max {
            return None;
        }
        address.here += 1;
        let turns = Arc::clone(&address.turns);
        let seat = Seat {
            doorkeeper: Arc::clone(self),
            origin,
        };
        Some(Visitor { seat, place, turns })
    }
}

/// One of its address's; gives the place free when it is dropped.
struct Seat {
    doorkeeper: Arc<Doorkeeper>,
    origin: Origin,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut addresses = self.doorkeeper.addresses();
        if let Some(address) = addresses.get_mut(&self.origin) {
            address.here -= 1;
            if address.here == 0 {
                addresses.remove(&self.origin);
            }
        }
    }
}

/// A connection that waits.
struct Visitor {
    seat: Seat,
    place: OwnedSemaphorePermit,
    turns: Arc<Semaphore>,
}

/// Leave to shake hands, for as long as this lives.
struct Turn {
    _handshake: OwnedSemaphorePermit,
    _of_address: OwnedSemaphorePermit,
    _seat: Seat,
}

impl Visitor {
    /// Waits until it has said something and it is its turn.
    async fn turn(self, tcp: &TcpStream) -> Result<Turn, AcceptError> {
        let mut first = [0; 1];
        let spoke = tokio::time::timeout(limits::FIRST_BYTE_TIMEOUT, tcp.peek(&mut first)).await;
        if !matches!(spoke, Ok(Ok(1))) {
            return Err(AcceptError::Silent);
        }
        let handshakes = Arc::clone(&self.seat.doorkeeper.handshakes);
        let turns = async {
            // The address's own first: whoever waits for that holds up nobody else.
            let of_address = self.turns.acquire_owned().await.ok()?;
            let handshake = handshakes.acquire_owned().await.ok()?;
            Some((of_address, handshake))
        };
        let (of_address, handshake) = tokio::time::timeout(limits::HANDSHAKE_TIMEOUT, turns)
            .await
            .ok()
            .flatten()
            .ok_or(AcceptError::Timeout)?;
        drop(self.place);
        Ok(Turn {
            _handshake: handshake,
            _of_address: of_address,
            _seat: self.seat,
        })
    }
}

#[cfg(test)]
mod tests;
