//! Ports that nobody else takes.
//!
//! Below the range from which the kernel takes ports for outgoing connections, so that a server that
//! was killed gets its port again. A claimed port is marked by an abstract unix socket of its number,
//! which other test processes see and which goes with this one.

use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

/// First port that is tried.
const FIRST: u16 = 12_000;
/// Behind the last.
const END: u16 = 32_000;

/// A port that is this test's as long as the value lives.
#[derive(Debug)]
pub struct Port {
    /// Its number.
    pub number: u16,
    _mark: UnixListener,
}

impl Port {
    /// A free port of the loopback address.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn claim() -> Self {
        let count = END - FIRST;
        let random = u16::from_le_bytes(fairlead_identity::random::bytes::<2>());
        (0..count)
            .map(|step| FIRST + (random % count + step) % count)
            .find_map(Self::take)
            .expect("no free port on this machine")
    }

    /// That very port, if it is free.
    #[must_use]
    pub fn take(number: u16) -> Option<Self> {
        let name = SocketAddr::from_abstract_name(format!("fairlead-test-port-{number}")).ok()?;
        let mark = UnixListener::bind_addr(&name).ok()?;
        TcpListener::bind(("127.0.0.1", number)).ok()?;
        Some(Self {
            number,
            _mark: mark,
        })
    }

    /// `127.0.0.1:PORT`
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.number)
    }

    /// `https://localhost:PORT`
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://localhost:{}", self.number)
    }
}
