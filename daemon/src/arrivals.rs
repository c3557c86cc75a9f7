//! Connections that arrive: at a port of this process's own, and passed on by another process that
//! shares one port among several (see `passing`). Whoever serves them need not know which.

use std::io;
use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// Passed connections that wait to be accepted; beyond that the sender waits.
pub const PASSED_WAITING_MAX: usize = 64;

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
    ///
    /// # Errors
    /// When the port takes no more (no file descriptors are left): waiting helps.
    pub async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
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
        let (_, from) = arrivals.accept().await.unwrap();
        assert_eq!(from, dialled.local_addr().unwrap());

        drop(sender);
        let dialled = TcpStream::connect(to_own).await.unwrap();
        let (_, from) = arrivals.accept().await.unwrap();
        assert_eq!(from, dialled.local_addr().unwrap());
    }
}
