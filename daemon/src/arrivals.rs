//! Connections that arrive: at a port of this process's own, and passed on by another process that
//! shares one port among several (see `passing`). Whoever serves them need not know which.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;

/// Passed connections that wait to be accepted. Beyond that those of the same process wait their turn, and
/// those that another process passes are closed.
pub const PASSED_WAITING_MAX: usize = 64;
/// Connections that wait in the kernel to be accepted, as many as by default.
const BACKLOG: u32 = 1024;
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

/// Listens at a port. `[::]` is all addresses of this machine, IPv4 too, whatever the system's setting;
/// where there is no IPv6, it is all of IPv4.
///
/// # Errors
/// When it cannot be had.
pub async fn listen(address: SocketAddr) -> Result<TcpListener, ListenError> {
    let listening = if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        match everywhere(address) {
            Err(error) if is_without_ipv6(&error) => {
                TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
            }
            done => done,
        }
    } else {
        TcpListener::bind(address).await
    };
    listening.map_err(|reason| ListenError {
        address: address.to_string(),
        reason,
    })
}

fn everywhere(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v6()?;
    rustix::net::sockopt::set_ipv6_v6only(&socket, false)?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn is_without_ipv6(error: &io::Error) -> bool {
    [
        rustix::io::Errno::AFNOSUPPORT,
        rustix::io::Errno::ADDRNOTAVAIL,
    ]
    .iter()
    .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
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
                // An IPv4 address looks the same whichever kind of socket it came to.
                Ok((tcp, from)) => {
                    return (tcp, SocketAddr::new(from.ip().to_canonical(), from.port()));
                }
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
    async fn one_listener_serves_both_families_and_names_callers_as_they_are() {
        let listener = listen("[::]:0".parse().unwrap()).await.unwrap();
        let at = listener.local_addr().unwrap();
        let mut arrivals = Arrivals::from(listener);
        let mut callers = vec![IpAddr::V4(Ipv4Addr::LOCALHOST)];
        // On a machine without IPv6 the same words mean IPv4 only.
        if at.is_ipv6() {
            callers.push(IpAddr::V6(Ipv6Addr::LOCALHOST));
        }
        for caller in callers {
            let dialled = TcpStream::connect((caller, at.port())).await.unwrap();
            let (_, from) = arrivals.accept().await;
            assert_eq!(from, dialled.local_addr().unwrap());
        }
        let taken = listen(at).await.unwrap_err();
        assert!(taken.to_string().contains("cannot listen at"), "{taken}");
    }

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
