//! Connections that arrive: at a port of this process's own, and passed on by another process that
//! shares one port among several (see `passing`). Whoever serves them need not know which.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// Passed connections that wait to be accepted. Beyond that those of the same process wait their turn, and
/// those that another process passes are closed.
pub const PASSED_WAITING_MAX: usize = 64;
/// After a failed accept the next try waits this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A port (or socket) cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen at {address}: {reason}")]
pub struct ListenError {
    /// Where.
    pub address: String,
    /// Why.
    pub reason: io::Error,
}

/// Listens at a port.
///
/// # Errors
/// When it cannot be had.
pub async fn listen(address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address)
        .await
        .map_err(|reason| ListenError {
            address: address.to_string(),
            reason,
        })
}

/// Where connections come from.
#[derive(Debug)]
pub struct Arrivals {
    listener: TcpListener,
    passed: Option<mpsc::Receiver<TcpStream>>,
}

impl From<TcpListener> for Arrivals {
    fn from(listener: TcpListener) -> Self {
        Self {
            listener,
            passed: None,
        }
    }
}

impl Arrivals {
    /// Also what comes through that channel, as if it had come to the port.
    #[must_use]
    pub fn and(mut self, passed: Option<mpsc::Receiver<TcpStream>>) -> Self {
        self.passed = passed;
        self
    }

    /// The next connection and whom it is from. Nothing is lost when the future is dropped.
    pub async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            match self.try_accept().await {
                Ok(accepted) => return accepted,
                Err(error) => {
                    // Out of file descriptors, most likely: waiting is the only cure.
                    tracing::error!(%error, "cannot accept connections");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn try_accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        loop {
            let Some(passed) = &mut self.passed else {
                return self.listener.accept().await;
            };
            tokio::select! {
                accepted = self.listener.accept() => return accepted,
                next = passed.recv() => match next {
                    // One that is gone already has no address any more.
                    Some(tcp) => if let Ok(from) = tcp.peer_addr() {
                        return Ok((tcp, from));
                    },
                    None => self.passed = None,
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn both_ways_lead_in_and_the_port_goes_on_when_the_other_ends() {
        let own = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let shared = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (to_own, to_shared) = (own.local_addr().unwrap(), shared.local_addr().unwrap());
        let (sender, receiver) = mpsc::channel(1);
        let mut arrivals = Arrivals::from(own).and(Some(receiver));

        let dialled = TcpStream::connect(to_shared).await.unwrap();
        sender.send(shared.accept().await.unwrap().0).await.unwrap();
        let (_, from) = arrivals.accept().await;
        assert_eq!(from, dialled.local_addr().unwrap());

        drop(sender);
        let dialled = TcpStream::connect(to_own).await.unwrap();
        let (_, from) = arrivals.accept().await;
        assert_eq!(from, dialled.local_addr().unwrap());
    }
}
