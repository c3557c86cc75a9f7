//! Dialling: address, TCP (through a proxy, where there is one), TLS, WebSocket, in one deadline.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use fairlead_identity::chain::Usage;
use fairlead_identity::{Identity, Root};
use fairlead_protocol::{StreamId, codes, limits, version};
use prost::Message;
use rustls::ClientConfig;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::{TlsConnector, TlsStream};
use tokio_tungstenite::client_async_with_config;
use tokio_tungstenite::tungstenite::{ClientRequestBuilder, Error as WsError};

use crate::proxy::{Proxy, Refusal};
use crate::reach;
use crate::socket::{Raw, Socket, StreamSocket, config, is_cut};

/// A proxy that has not made the connection within this is held to be gone: there is time left to say so.
const PROXY_WITHIN: Duration = Duration::from_secs(8);

/// Why nobody was reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The address makes no sense.
    #[error("cannot dial {0}: an address is host:port")]
    Address(String),
    /// No TCP connection.
    #[error("cannot reach {address}: {reason}")]
    Unreachable {
        /// What was dialled.
        address: String,
        /// In the system's words.
        reason: String,
    },
    /// It ended without a word.
    #[error(
        "the connection to {address} was cut before anybody spoke: something on the way ends it, or that is no \
         server of Fairlead"
    )]
    Cut {
        /// What was dialled.
        address: String,
    },
    /// TLS failed: one side does not believe the other.
    #[error("no trust between us and {address}: {reason}")]
    Tls {
        /// What was dialled.
        address: String,
        /// In the library's words.
        reason: String,
    },
    /// The server's certificate is not good at the time that our clock shows.
    #[error(
        "the certificate of {address} is not good now ({reason}): is this machine's clock right? \
         (clock_skew)"
    )]
    Clock {
        /// What was dialled.
        address: String,
        /// In the library's words.
        reason: String,
    },
    /// Not a Fairlead server, or not this door.
    #[error("{address} did not open the door: {reason}")]
    Upgrade {
        /// What was dialled.
        address: String,
        /// In the library's words.
        reason: String,
    },
    /// It took too long.
    #[error("{address} did not answer within {:?}", limits::HANDSHAKE_TIMEOUT)]
    Timeout {
        /// What was dialled.
        address: String,
    },
    /// The server that answered is not the one that was meant.
    #[error("{address} is not who it must be: {reason}")]
    Identity {
        /// What was dialled.
        address: String,
        /// What is wrong.
        reason: String,
    },
    /// The proxy asks who we are, or does not believe it.
    #[error(
        "the proxy {proxy} wants a user and password: set them in HTTPS_PROXY \
         (http://USER:PASSWORD@HOST:PORT)"
    )]
    ProxyAuth {
        /// Which.
        proxy: String,
    },
    /// The proxy is not there, or is no proxy.
    #[error("cannot reach {address} through the proxy {proxy}: {reason}")]
    ProxyUnreachable {
        /// Which.
        proxy: String,
        /// What was dialled through it.
        address: String,
        /// In its words, or the system's.
        reason: String,
    },
    /// The proxy will not, or cannot, connect us.
    #[error(
        "the proxy {proxy} does not connect to {address}: it answered {status}; allow that address \
         there, or name it in NO_PROXY"
    )]
    ProxyRefused {
        /// Which.
        proxy: String,
        /// What was dialled through it.
        address: String,
        /// In its words.
        status: String,
    },
}

impl DialError {
    /// Whether nobody was there at all: no name, no way, no answer, or no proxy.
    #[must_use]
    pub fn nobody_there(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. } | Self::ProxyUnreachable { .. }
        )
    }

    /// The stable code of what a person can do something about; none for the rest.
    #[must_use]
    pub fn code(&self) -> Option<&'static str> {
        match self {
            Self::Clock { .. } => Some(codes::CLOCK_SKEW),
            Self::ProxyAuth { .. } => Some(codes::PROXY_AUTH),
            Self::ProxyUnreachable { .. } => Some(codes::PROXY_UNREACHABLE),
            Self::ProxyRefused { .. } => Some(codes::PROXY_REFUSED),
            _ => None,
        }
    }
}

/// A way to reach servers: TLS configuration and the root behind it, and the proxy before them.
#[derive(Clone)]
pub struct Dialler {
    tls: Arc<ClientConfig>,
    root: Option<Root>,
    /// What TLS says it wants: the kind of server. One port can serve several kinds by it. Who the
    /// server is, its certificate's role says, and the name is not compared with it.
    sni: &'static str,
    proxy: Option<Proxy>,
    source: Option<IpAddr>,
}

impl Dialler {
    /// A dialler of one kind of server (`sni`, of [`version::sni`]). Without a root (enrolment) the
    /// server's identity was checked during the handshake only, which is enough because such a
    /// connection is never resumed.
    #[must_use]
    pub fn new(mut tls: ClientConfig, root: Option<Root>, sni: &'static str) -> Self {
        if root.is_none() {
            tls.resumption = rustls::client::Resumption::disabled();
        }
        Self {
            tls: Arc::new(tls),
            root,
            sni,
            proxy: None,
            source: None,
        }
    }

    /// The same through a proxy, but for the hosts that are excepted from it.
    #[must_use]
    pub fn through(mut self, proxy: Option<Proxy>) -> Self {
        self.proxy = proxy;
        self
    }

    /// The same from that address of this machine: many simulated hosts are many addresses.
    #[must_use]
    pub fn leaving_from(mut self, source: IpAddr) -> Self {
        self.source = Some(source);
        self
    }

    /// Opens a door and speaks messages there.
    ///
    /// # Errors
    /// When nobody (or nobody right) was reached.
    pub async fn messages<Out, In>(
        &self,
        address: &str,
        path: &str,
        message_bytes_max: usize,
    ) -> Result<(Socket<Out, In>, Vec<CertificateDer<'static>>), DialError>
    where
        Out: Message,
        In: Message + Default,
    {
        let (raw, chain, peer) = self.open(address, path, message_bytes_max).await?;
        let remote = raw.get_ref().get_ref().0.peer_addr().ok();
        Ok((Socket::new(raw, remote, peer), chain))
    }

    /// Opens a stream at the very server that asked for it.
    ///
    /// # Errors
    /// When nobody was reached, or another server answered.
    pub async fn stream(
        &self,
        address: &str,
        id: StreamId,
        server: &str,
    ) -> Result<StreamSocket, DialError> {
        let path = format!("{}{id}", version::paths::STREAM);
        self.stream_at(address, &path, server).await
    }

    /// Opens the door for packages at that very server.
    ///
    /// # Errors
    /// As [`Self::stream`].
    pub async fn package(&self, address: &str, server: &str) -> Result<StreamSocket, DialError> {
        self.stream_at(address, version::paths::PACKAGE, server)
            .await
    }

    async fn stream_at(
        &self,
        address: &str,
        path: &str,
        server: &str,
    ) -> Result<StreamSocket, DialError> {
        let (raw, _, peer) = self
            .open(address, path, limits::STREAM_MESSAGE_BYTES_MAX)
            .await?;
        let name = peer
            .map(|identity| identity.role.to_string())
            .unwrap_or_default();
        if name == server {
            Ok(StreamSocket::new(raw))
        } else {
            Err(DialError::Identity {
                address: address.to_owned(),
                reason: format!("it is {name}, and {server} was meant"),
            })
        }
    }

    async fn open(
        &self,
        address: &str,
        path: &str,
        message_bytes_max: usize,
    ) -> Result<(Raw, Vec<CertificateDer<'static>>, Option<Identity>), DialError> {
        let until = Instant::now() + limits::HANDSHAKE_TIMEOUT;
        let tcp = timeout_at(until, self.tcp(address))
            .await
            .unwrap_or_else(|_| {
                Err(DialError::Unreachable {
                    address: address.to_owned(),
                    reason: format!("no answer within {:?}", limits::HANDSHAKE_TIMEOUT),
                })
            })?;
        timeout_at(until, self.open_over(tcp, address, path, message_bytes_max))
            .await
            .unwrap_or_else(|_| {
                Err(DialError::Timeout {
                    address: address.to_owned(),
                })
            })
    }

    async fn open_over(
        &self,
        tcp: TcpStream,
        address: &str,
        path: &str,
        message_bytes_max: usize,
    ) -> Result<(Raw, Vec<CertificateDer<'static>>, Option<Identity>), DialError> {
        let owned = || address.to_owned();
        let name = ServerName::try_from(self.sni).map_err(|_| DialError::Address(owned()))?;
        // Commands are small and must not wait for more bytes to share a packet with.
        let _ = tcp.set_nodelay(true);
        let tls = TlsConnector::from(Arc::clone(&self.tls))
            .connect(name, tcp)
            .await
            .map_err(|error| tls_error(owned(), &error))?;
        let chain: Vec<CertificateDer<'static>> = tls
            .get_ref()
            .1
            .peer_certificates()
            .map(|chain| chain.iter().map(|c| c.clone().into_owned()).collect())
            .unwrap_or_default();
        let peer = self.identify(address, &chain)?;
        let uri = format!("wss://{address}{path}").parse().map_err(
            |error: tokio_tungstenite::tungstenite::http::uri::InvalidUri| DialError::Upgrade {
                address: owned(),
                reason: error.to_string(),
            },
        )?;
        let request = ClientRequestBuilder::new(uri).with_sub_protocol(version::SUBPROTOCOL);
        let tls = TlsStream::Client(tls);
        let (raw, _) = client_async_with_config(request, tls, Some(config(message_bytes_max)))
            .await
            .map_err(|error| match error {
                WsError::Io(error) if is_cut(&error) => DialError::Cut { address: owned() },
                other => DialError::Upgrade {
                    address: owned(),
                    reason: other.to_string(),
                },
            })?;
        Ok((raw, chain, peer))
    }

    /// TCP to the address, by itself or through the proxy.
    async fn tcp(&self, address: &str) -> Result<TcpStream, DialError> {
        let whole = address.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty()
                && port.parse::<u16>().is_ok()
                && !address.contains(char::is_whitespace)
        });
        if !whole {
            return Err(DialError::Address(address.to_owned()));
        }
        if let Some(proxy) = self.proxy.as_ref().filter(|proxy| proxy.serves(address)) {
            return via(proxy, address, PROXY_WITHIN).await;
        }
        let connected = match self.source {
            None => reach::connect(address).await,
            Some(source) => connect_from(source, address).await,
        };
        connected.map_err(|error| DialError::Unreachable {
            address: address.to_owned(),
            reason: error.to_string(),
        })
    }

    /// Who the server is, looked at again because a resumed session skips the TLS verifier.
    fn identify(
        &self,
        address: &str,
        chain: &[CertificateDer<'_>],
    ) -> Result<Option<Identity>, DialError> {
        let Some(root) = &self.root else {
            return Ok(None);
        };
        root.identify(chain, Usage::Server, UnixTime::now())
            .map(Some)
            .map_err(|error| DialError::Identity {
                address: address.to_owned(),
                reason: error.to_string(),
            })
    }
}

fn tls_error(address: String, error: &std::io::Error) -> DialError {
    use rustls::CertificateError as C;
    if is_cut(error) {
        return DialError::Cut { address };
    }
    let reason = error.to_string();
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    match inner {
        Some(rustls::Error::InvalidCertificate(
            C::Expired | C::ExpiredContext { .. } | C::NotValidYet | C::NotValidYetContext { .. },
        )) => DialError::Clock { address, reason },
        _ => DialError::Tls { address, reason },
    }
}

/// TCP to the first of the address's that is of the same family.
async fn connect_from(source: IpAddr, address: &str) -> std::io::Result<TcpStream> {
    let target = tokio::net::lookup_host(address)
        .await?
        .find(|found| found.is_ipv4() == source.is_ipv4())
        .ok_or(std::io::ErrorKind::AddrNotAvailable)?;
    let socket = match source {
        IpAddr::V4(_) => TcpSocket::new_v4()?,
        IpAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.bind((source, 0).into())?;
    socket.connect(target).await
}

/// TCP to the address through the proxy.
async fn via(proxy: &Proxy, address: &str, within: Duration) -> Result<TcpStream, DialError> {
    let name = || proxy.address().to_owned();
    let unreachable = |reason: String| DialError::ProxyUnreachable {
        proxy: name(),
        address: address.to_owned(),
        reason,
    };
    let connected = async {
        let mut tcp = reach::connect(proxy.address())
            .await
            .map_err(|error| unreachable(error.to_string()))?;
        match proxy.connect(&mut tcp, address).await {
            Ok(()) => Ok(tcp),
            Err(Refusal::Auth) => Err(DialError::ProxyAuth { proxy: name() }),
            Err(Refusal::Broken(reason)) => Err(unreachable(reason)),
            Err(Refusal::Status(status)) => Err(DialError::ProxyRefused {
                proxy: name(),
                address: address.to_owned(),
                status,
            }),
        }
    };
    match tokio::time::timeout(within, connected).await {
        Ok(done) => done,
        Err(_) => Err(unreachable(format!("it did not answer within {within:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_is_cut_is_no_matter_of_trust() {
        for kind in [
            std::io::ErrorKind::UnexpectedEof,
            std::io::ErrorKind::ConnectionReset,
        ] {
            let error = tls_error("a:1".to_owned(), &kind.into());
            assert!(matches!(error, DialError::Cut { .. }), "{error}");
            assert!(!error.nobody_there() && error.to_string().contains("a:1"));
        }
        let other = std::io::Error::other(rustls::Error::DecryptError);
        assert!(matches!(
            tls_error("a:1".to_owned(), &other),
            DialError::Tls { .. }
        ));
    }

    #[tokio::test]
    async fn a_proxy_that_is_silent_or_gone_is_said_to_be() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let proxy = Proxy::new(&format!("http://me:hush@{at}"), "").unwrap();
        let silent = via(&proxy, "server:1", Duration::from_millis(50)).await;
        let silent = silent.unwrap_err();
        assert_eq!(silent.code(), Some(codes::PROXY_UNREACHABLE));
        assert!(silent.to_string().contains("did not answer"), "{silent}");
        drop(listener);
        let gone = via(&proxy, "server:1", PROXY_WITHIN).await.unwrap_err();
        assert_eq!(gone.code(), Some(codes::PROXY_UNREACHABLE));
        assert!(!gone.to_string().contains("hush"), "{gone}");
    }
}
