//! The floor: the same TLS, certificates and WebSocket buffers, and nothing of the product behind them. A
//! server that sends 200 bytes to one of its connections and waits until they come back; and the other end.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use fairlead_daemon::arrivals::{Arrivals, listen};
use fairlead_identity::Role;
use fairlead_link::accept::Accepted;
use fairlead_link::backoff::{Backoff, Last, random_share};
use fairlead_link::dial::Dialler;
use fairlead_link::doorkeeper::{self, Waiting};
use fairlead_protocol::StreamId;
use tokio::sync::mpsc;

use crate::crossing::{COMMAND_BYTES, Links, follow};
use crate::installation::Installation;
use crate::link_server::{Server, acceptor};
use crate::simulated_host::{Counts, Manner};
use crate::worker::{answer, orders};

/// As the product's.
const WAITING: Waiting = Waiting {
    max: 8192,
    per_address_max: 512,
};

/// What the server's certificate says it is.
#[must_use]
pub fn server_of(region: &str) -> String {
    let role = Role::AccessServer {
        region: region.to_owned(),
        name: "a1".to_owned(),
    };
    role.to_string()
}

type Connections = Arc<Mutex<Vec<mpsc::Sender<Bytes>>>>;

struct EchoLinks {
    connections: Connections,
    links: Vec<mpsc::Sender<Bytes>>,
    answers: mpsc::Receiver<u64>,
}

impl Links for EchoLinks {
    fn count(&self) -> usize {
        self.links.len()
    }

    fn send(&mut self, link: usize, number: u64) {
        let mut message = vec![0; COMMAND_BYTES];
        message[..8].copy_from_slice(&number.to_le_bytes());
        assert!(
            self.links[link].try_send(message.into()).is_ok(),
            "a connection's queue is full, or the connection has gone"
        );
    }

    async fn answered(&mut self) -> u64 {
        self.answers.recv().await.expect("the listener lives")
    }
}

/// Serves until the parent goes.
///
/// # Panics
/// When it cannot serve.
pub async fn run(server: Server) {
    let installation = Installation::load(&server.installation);
    let (sender, answers) = mpsc::channel(1024);
    let connections = Connections::default();
    let listener = Arrivals::from(listen(server.listen).await.expect("a port"));
    let known = Arc::clone(&connections);
    let then = move |finished: Result<Accepted, _>| {
        let (known, sender) = (Arc::clone(&known), sender.clone());
        async move {
            if let Ok(accepted) = finished {
                // A small task of its own: the handshake's future must not stay.
                tokio::spawn(serve(accepted, known, sender));
            }
        }
    };
    // Ends with the process.
    tokio::spawn(doorkeeper::run(
        listener,
        acceptor(&installation),
        WAITING,
        std::future::pending(),
        then,
    ));
    let mut links = EchoLinks {
        connections,
        links: Vec::new(),
        answers,
    };
    let mut orders = orders();
    while let Some(order) = orders.recv().await {
        {
            let mut connections = links
                .connections
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            connections.retain(|connection| !connection.is_closed());
            links.links.clone_from(&connections);
        }
        answer(&follow(&mut links, &order).await);
    }
}

async fn serve(accepted: Accepted, known: Connections, answers: mpsc::Sender<u64>) {
    let mut socket = accepted.stream();
    let (sender, mut queue) = mpsc::channel::<Bytes>(2);
    known
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(sender);
    loop {
        tokio::select! {
            biased;
            Some(message) = queue.recv() => if socket.send(message).await.is_err() {
                return;
            },
            heard = socket.hear() => match heard {
                Ok(Some(message)) => if let Some(number) = message.first_chunk::<8>() {
                    let _ = answers.send(u64::from_le_bytes(*number)).await;
                },
                _ => return,
            },
        }
    }
}

/// The other end: sends back what it hears, and dials again when the connection ends.
pub async fn live(
    dialler: Dialler,
    manner: Arc<Manner>,
    server: String,
    counts: Arc<Counts>,
    begin_after: Duration,
) {
    tokio::time::sleep(begin_after).await;
    let mut backoff = Backoff::default();
    loop {
        let id = StreamId::from_bytes(fairlead_identity::random::bytes());
        let dialled = Box::pin(dialler.stream(&manner.address, id, &server)).await;
        let count = |counter: &AtomicU64| {
            counter.fetch_add(1, Ordering::Relaxed);
        };
        match dialled {
            Ok(mut socket) => {
                count(&counts.connected);
                while let Ok(Some(message)) = socket.hear().await {
                    if socket.send(message).await.is_err() {
                        break;
                    }
                    count(&counts.answered);
                }
                counts.connected.fetch_sub(1, Ordering::Relaxed);
            }
            Err(error) => {
                counts.failed(error.to_string());
            }
        }
        tokio::time::sleep(backoff.next_wait(Last::NotTaken, random_share(), None)).await;
    }
}
