//! One port for everybody, usually 443, because that is what customers' firewalls let out. The name in
//! the first TLS record (SNI) says who knocks: agents are let in here, access servers and people are
//! passed on to the controller on the same machine as the raw connections they are (`daemon::passing`).
//! Nothing is decrypted here, and which port somebody came through opens no door.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fairlead_api::server::crowd::Crowd;
use fairlead_daemon::arrivals::Arrivals;
use fairlead_daemon::passing::{PassedTo, Passer};
use fairlead_daemon::shutdown::Shutdown;
use fairlead_protocol::limits;
use fairlead_protocol::version::sni;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;

/// Connections whose first record is not complete yet.
const KNOCKING_MAX: usize = 4096;
/// Of these, those of one address; hundreds of hosts may come back at once behind one.
const KNOCKING_PER_ADDRESS_MAX: usize = 512;
/// Largest first record that is looked at. With post-quantum keys it has about 1,800 bytes.
const HELLO_BYTES_MAX: usize = 16 * 1024;
/// Between two looks at a record that comes in pieces.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(5);

/// Where connections go.
pub struct Front {
    agents: mpsc::Sender<TcpStream>,
    web: mpsc::Sender<TcpStream>,
    /// The controller on this machine, if it shares the port.
    controller: Option<Passer>,
}

/// Who knocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Caller {
    Agent,
    AccessServer,
    Person,
}

impl Front {
    /// A front that hands agents and (without a controller here) people to those channels.
    #[must_use]
    pub fn new(
        agents: mpsc::Sender<TcpStream>,
        web: mpsc::Sender<TcpStream>,
        controller: Option<&Path>,
    ) -> Arc<Self> {
        Arc::new(Self {
            agents,
            web,
            controller: controller.map(Passer::new),
        })
    }

    /// Accepts until shutdown.
    pub async fn run(self: Arc<Self>, listener: TcpListener, shutdown: Shutdown) {
        let mut listener = Arrivals::from(listener);
        let (knocking, crowd) = (
            Arc::new(Semaphore::new(KNOCKING_MAX)),
            Crowd::sharing(KNOCKING_MAX, KNOCKING_PER_ADDRESS_MAX),
        );
        loop {
            let Ok(place) = Arc::clone(&knocking).acquire_owned().await else {
                return;
            };
            let (tcp, remote) = tokio::select! {
                () = shutdown.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let Some(seat) = crowd.enter(remote.ip()) else {
                continue;
            };
            let front = Arc::clone(&self);
            // Ends within the time for the first record.
            tokio::spawn(async move {
                let _held = (place, seat);
                if let Err(error) = front.let_in(tcp).await {
                    tracing::debug!(%remote, %error, "not let in");
                }
            });
        }
    }

    async fn let_in(&self, tcp: TcpStream) -> io::Result<()> {
        let gone = |_| io::Error::from(io::ErrorKind::ConnectionAborted);
        match who_knocks(&tcp).await? {
            Caller::Agent => self.agents.send(tcp).await.map_err(gone),
            Caller::AccessServer => match &self.controller {
                Some(controller) => controller.pass(tcp, PassedTo::Uplinks).await,
                None => Err(io::ErrorKind::ConnectionRefused.into()),
            },
            Caller::Person => match &self.controller {
                Some(controller) => controller.pass(tcp, PassedTo::Web).await,
                None => self.web.send(tcp).await.map_err(gone),
            },
        }
    }
}

/// Looks at the first record without taking it from the connection.
async fn who_knocks(tcp: &TcpStream) -> io::Result<Caller> {
    let until = Instant::now() + limits::HANDSHAKE_TIMEOUT;
    let mut first = [0; 1];
    let spoke = tokio::time::timeout_at(until, tcp.peek(&mut first)).await;
    if spoke.map_err(io::Error::from)?? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    // On the heap: thousands may be looked at while they dawdle.
    let mut record = vec![0; HELLO_BYTES_MAX];
    let mut seen = 0;
    loop {
        let now = tcp.peek(&mut record).await?;
        if now > seen {
            seen = now;
            if let Some(caller) = caller(&record[..seen])? {
                return Ok(caller);
            }
        }
        if seen == HELLO_BYTES_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the first record is too long",
            ));
        }
        if Instant::now() >= until {
            return Err(io::ErrorKind::TimedOut.into());
        }
        tokio::time::sleep(LOOK_AGAIN_AFTER).await;
    }
}

/// Who is meant by a client's first record; `None` while it is not complete.
fn caller(record: &[u8]) -> io::Result<Option<Caller>> {
    let mut reader = rustls::server::Acceptor::default();
    let mut rest = record;
    while !rest.is_empty() {
        reader.read_tls(&mut rest)?;
    }
    let hello = match reader.accept() {
        Ok(None) => return Ok(None),
        Ok(Some(hello)) => hello,
        Err((error, _)) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
    };
    Ok(Some(match hello.client_hello().server_name() {
        Some(sni::AGENTS) => Caller::Agent,
        Some(sni::UPLINK) => Caller::AccessServer,
        _ => Caller::Person,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Once;
    use tokio::io::AsyncWriteExt;

    fn hello(name: &'static str) -> Vec<u8> {
        static PROVIDER: Once = Once::new();
        PROVIDER.call_once(|| {
            let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        });
        let config = rustls::ClientConfig::builder()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let name = rustls::pki_types::ServerName::try_from(name).unwrap();
        let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let mut record = Vec::new();
        client.write_tls(&mut record).unwrap();
        record
    }

    #[test]
    fn the_name_says_who_knocks_however_the_record_is_cut() {
        for (name, expected) in [
            (sni::AGENTS, Caller::Agent),
            (sni::UPLINK, Caller::AccessServer),
            ("fleet.example.com", Caller::Person),
            // An address is no name: browsers send none then.
            ("192.0.2.1", Caller::Person),
        ] {
            let record = hello(name);
            for cut in 0..record.len() {
                assert_eq!(caller(&record[..cut]).unwrap(), None, "{name} cut at {cut}");
            }
            assert_eq!(caller(&record).unwrap(), Some(expected), "{name}");
        }
        assert!(caller(b"GET / HTTP/1.1\r\n\r\n").is_err());
        assert!(caller(&[0x16; 600]).is_err());
    }

    #[tokio::test]
    async fn each_is_handed_to_its_own_with_what_it_said() {
        let (to_agents, mut agents) = mpsc::channel(1);
        let (to_web, mut web) = mpsc::channel(1);
        let front = Front::new(to_agents, to_web, None);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = Shutdown::new();
        let running = tokio::spawn(Arc::clone(&front).run(listener, shutdown.clone()));

        for (name, is_agent) in [(sni::AGENTS, true), ("fleet.example.com", false)] {
            let record = hello(name);
            let mut dialled = TcpStream::connect(address).await.unwrap();
            dialled.write_all(&record[..40]).await.unwrap();
            dialled.flush().await.unwrap();
            dialled.write_all(&record[40..]).await.unwrap();
            let handed = if is_agent { &mut agents } else { &mut web };
            let handed = handed.recv().await.unwrap();
            let mut said = vec![0; HELLO_BYTES_MAX];
            let length = handed.peek(&mut said).await.unwrap();
            assert_eq!(&said[..length], &record[..length]);
            assert_eq!(handed.peer_addr().unwrap(), dialled.local_addr().unwrap());
        }
        // Nobody is there for access servers: the connection is closed.
        let mut dialled = TcpStream::connect(address).await.unwrap();
        dialled.write_all(&hello(sni::UPLINK)).await.unwrap();
        let mut end = [0; 1];
        let closed = dialled.peek(&mut end).await;
        assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
        shutdown.cancel();
        running.await.unwrap();
    }
}
