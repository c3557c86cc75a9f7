//! The threads that handshakes run on. Touches nothing but them.
//!
//! A handshake takes a processor for half a millisecond at a stretch, and thousands may come at once. On the
//! runtime of the links each would stand in the queue before every message of every host; on threads of its own
//! the kernel shares the processors out, and what a link has to say waits for nobody's signature.

use std::net::SocketAddr;

use tokio::net::TcpStream;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinError;

use crate::accept::{AcceptError, Accepted, Acceptor};

/// The threads of one listener; they end with it.
pub(super) struct Handshakes(Option<Runtime>);

impl Handshakes {
    /// As many threads as there are processors. Where there are none to be had, handshakes run beside the links.
    pub(super) fn start() -> Self {
        // The sockets are driven by the runtime that accepted them.
        let built = Builder::new_multi_thread()
            .thread_name("handshakes")
            .enable_time()
            .build();
        if let Err(error) = &built {
            tracing::warn!(%error, "no threads for handshakes; they share those of the links");
        }
        Self(built.ok())
    }

    pub(super) fn threads(&self) -> Handle {
        self.0
            .as_ref()
            .map_or_else(Handle::current, |runtime| runtime.handle().clone())
    }
}

impl Drop for Handshakes {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // Waiting for them is not possible here, and nobody needs them.
            runtime.shutdown_background();
        }
    }
}

/// Takes a connection through its handshake on those threads.
pub(super) async fn shake(
    threads: Handle,
    acceptor: Acceptor,
    tcp: TcpStream,
    remote: SocketAddr,
) -> Result<Accepted, AcceptError> {
    let shaking = threads.spawn(async move { acceptor.accept(tcp, remote).await });
    shaking.await.unwrap_or_else(|error| Err(given_up(error)))
}

fn given_up(error: JoinError) -> AcceptError {
    match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        // The listener ended meanwhile.
        Err(_) => AcceptError::Timeout,
    }
}
