//! Dialling: address, TCP, TLS, WebSocket, in one deadline.

use std::sync::Arc;

use fairlead_identity::chain::Usage;
use fairlead_identity::{Identity, Root};
use fairlead_protocol::{StreamId, limits, version};
use prost::Message;
use rustls::ClientConfig;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, TlsStream};
use tokio_tungstenite::client_async_with_config;
use tokio_tungstenite::tungstenite::ClientRequestBuilder;

use crate::socket::{Raw, Socket, StreamSocket, config};

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
    /// TLS failed: one side does not believe the other.
    #[error("no trust between us and {address}: {reason}")]
    Tls {
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
}

/// A way to reach servers: TLS configuration and the root behind it.
#[derive(Clone)]
pub struct Dialler {
    tls: Arc<ClientConfig>,
    root: Option<Root>,
}

impl Dialler {
    /// A dialler. Without a root (enrolment) the server's identity was checked during the
    /// handshake only, which is enough because such a connection is never resumed.
    #[must_use]
    pub fn new(mut tls: ClientConfig, root: Option<Root>) -> Self {
        if root.is_none() {
            tls.resumption = rustls::client::Resumption::disabled();
        }
        Self {
            tls: Arc::new(tls),
            root,
        }
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
        let (raw, _, peer) = self
            .open(address, &path, limits::STREAM_MESSAGE_BYTES_MAX)
            .await?;
        let name = peer
            .map(|identity| identity.role.to_string())
            .unwrap_or_default();
        if name == server {
            Ok(StreamSocket::new(raw))
        } else {
            Err(DialError::Identity {
                address: address.to_owned(),
                reason: format!("it is {name}, the stream was asked for by {server}"),
            })
        }
    }

    async fn open(
        &self,
        address: &str,
        path: &str,
        message_bytes_max: usize,
    ) -> Result<(Raw, Vec<CertificateDer<'static>>, Option<Identity>), DialError> {
        tokio::time::timeout(
            limits::HANDSHAKE_TIMEOUT,
            self.open_unbounded(address, path, message_bytes_max),
        )
        .await
        .unwrap_or_else(|_| {
            Err(DialError::Timeout {
                address: address.to_owned(),
            })
        })
    }

    async fn open_unbounded(
        &self,
        address: &str,
        path: &str,
        message_bytes_max: usize,
    ) -> Result<(Raw, Vec<CertificateDer<'static>>, Option<Identity>), DialError> {
        let owned = || address.to_owned();
        let (host, _) = address
            .rsplit_once(':')
            .ok_or_else(|| DialError::Address(owned()))?;
        let bare = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let name = ServerName::try_from(bare).map_err(|_| DialError::Address(owned()))?;
        let tcp = TcpStream::connect(address)
            .await
            .map_err(|error| DialError::Unreachable {
                address: owned(),
                reason: error.to_string(),
            })?;
        // Commands are small and must not wait for more bytes to share a packet with.
        let _ = tcp.set_nodelay(true);
        let tls = TlsConnector::from(Arc::clone(&self.tls))
            .connect(name, tcp)
            .await
            .map_err(|error| DialError::Tls {
                address: owned(),
                reason: error.to_string(),
            })?;
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
            .map_err(|error| DialError::Upgrade {
                address: owned(),
                reason: error.to_string(),
            })?;
        Ok((raw, chain, peer))
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
