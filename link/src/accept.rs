//! Accepting: TCP to TLS to WebSocket, in one deadline: a peer that dawdles is cut after ten seconds.
//! How many handshakes go on side by side is the `doorkeeper`'s decision.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use fairlead_identity::chain::Usage;
use fairlead_identity::{Identity, Root};
use fairlead_protocol::{StreamId, limits, version};
use prost::Message;
use rustls::ServerConfig;
use rustls_pki_types::UnixTime;
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsStream};
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::{HeaderValue, StatusCode, header};
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::{WebSocketStream, accept_hdr_async_with_config};

use crate::socket::{Raw, Socket, StreamSocket, config};

/// Why a connection was not accepted. Logged at debug level: the internet is full of them.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// TLS failed.
    #[error("tls handshake: {0}")]
    Tls(String),
    /// The certificate is not to be believed.
    #[error("certificate: {0}")]
    Certificate(String),
    /// Not a WebSocket of ours.
    #[error("websocket handshake: {0}")]
    Upgrade(String),
    /// It took too long.
    #[error("handshake took too long")]
    Timeout,
    /// Nothing was said.
    #[error("connected and said nothing")]
    Silent,
    /// Its address has more connections in front of the handshake than it may.
    #[error("too many connections of one address at once")]
    Crowded,
}

/// A door that a peer knocked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// An agent's control link.
    Link,
    /// A stranger that wants to enrol.
    Enrol,
    /// An agent with an expired certificate.
    Renew,
    /// An access server's uplink.
    Uplink,
    /// A stream.
    Stream(StreamId),
    /// Files of packages.
    Package,
}

impl Door {
    fn of(path: &str) -> Option<Self> {
        use version::paths;
        match path {
            paths::LINK => Some(Self::Link),
            paths::ENROL => Some(Self::Enrol),
            paths::RENEW => Some(Self::Renew),
            paths::UPLINK => Some(Self::Uplink),
            paths::PACKAGE => Some(Self::Package),
            other => other
                .strip_prefix(paths::STREAM)?
                .parse()
                .ok()
                .map(Self::Stream),
        }
    }

    /// The largest message behind the door.
    fn message_bytes_max(self) -> usize {
        match self {
            Self::Link | Self::Enrol | Self::Renew => limits::LINK_MESSAGE_BYTES_MAX,
            Self::Uplink => limits::UPLINK_MESSAGE_BYTES_MAX,
            Self::Stream(_) | Self::Package => limits::STREAM_MESSAGE_BYTES_MAX,
        }
    }
}

/// A finished handshake. What the peer may do is the caller's decision.
pub struct Accepted {
    raw: Raw,
    /// Which door.
    pub door: Door,
    /// Where from.
    pub remote: SocketAddr,
    /// Who, by its certificate; absent when it showed none.
    pub peer: Option<Identity>,
    /// Whether that certificate has expired (within the grace).
    pub expired: bool,
}

impl Accepted {
    /// Speaks messages.
    #[must_use]
    pub fn messages<Out: Message, In: Message + Default>(self) -> Socket<Out, In> {
        Socket::new(self.raw, Some(self.remote), self.peer)
    }

    /// Is a stream.
    #[must_use]
    pub fn stream(self) -> StreamSocket {
        StreamSocket::new(self.raw)
    }
}

/// Accepts connections for one listener.
#[derive(Clone)]
pub struct Acceptor {
    tls: TlsAcceptor,
    root: Root,
    grace: Duration,
}

impl Acceptor {
    /// An acceptor with a configuration from `identity::tls::server`, the root that peers must
    /// belong to, and how long an expired certificate still opens the renew door.
    #[must_use]
    pub fn new(tls: Arc<ServerConfig>, root: Root, grace: Duration) -> Self {
        Self {
            tls: TlsAcceptor::from(tls),
            root,
            grace,
        }
    }

    /// Takes a TCP connection through both handshakes.
    ///
    /// # Errors
    /// When the peer fails at any of them, or takes too long.
    pub async fn accept(
        &self,
        tcp: TcpStream,
        remote: SocketAddr,
    ) -> Result<Accepted, AcceptError> {
        tokio::time::timeout(
            limits::HANDSHAKE_TIMEOUT,
            self.accept_unbounded(tcp, remote),
        )
        .await
        .unwrap_or(Err(AcceptError::Timeout))
    }

    async fn accept_unbounded(
        &self,
        tcp: TcpStream,
        remote: SocketAddr,
    ) -> Result<Accepted, AcceptError> {
        // Commands are small and must not wait for more bytes to share a packet with.
        let _ = tcp.set_nodelay(true);
        let tls = self
            .tls
            .accept(tcp)
            .await
            .map_err(|error| AcceptError::Tls(error.to_string()))?;
        let identified = match tls.get_ref().1.peer_certificates() {
            Some(chain) => Some(
                self.root
                    .identify_with_grace(chain, Usage::Client, UnixTime::now(), self.grace)
                    .map_err(|error| AcceptError::Certificate(error.to_string()))?,
            ),
            None => None,
        };
        let (peer, expired) = match identified {
            Some((identity, expired)) => (Some(identity), expired),
            None => (None, false),
        };
        let mut knocked = None;
        #[expect(clippy::result_large_err, reason = "the library's callback type")]
        let callback =
            |request: &Request, response: Response| open_door(request, response, &mut knocked);
        let upgraded = accept_hdr_async_with_config(
            TlsStream::Server(tls),
            callback,
            Some(config(limits::LINK_MESSAGE_BYTES_MAX)),
        )
        .await
        .map_err(|error| AcceptError::Upgrade(error.to_string()))?;
        let door = knocked.ok_or_else(|| AcceptError::Upgrade("no such door".to_owned()))?;
        // The door decides the limits, and is known only now. Nothing is lost between the two: a
        // client that sends before it has our answer fails the handshake.
        let limits = config(door.message_bytes_max());
        let raw =
            WebSocketStream::from_raw_socket(upgraded.into_inner(), Role::Server, Some(limits))
                .await;
        Ok(Accepted {
            raw,
            door,
            remote,
            peer,
            expired,
        })
    }
}

#[expect(clippy::result_large_err, reason = "the library's callback type")]
fn open_door(
    request: &Request,
    mut response: Response,
    knocked: &mut Option<Door>,
) -> Result<Response, ErrorResponse> {
    let speaks_ours = request
        .headers()
        .get(header::SEC_WEBSOCKET_PROTOCOL)
        .is_some_and(|wanted| wanted.as_bytes() == version::SUBPROTOCOL.as_bytes());
    *knocked = Door::of(request.uri().path()).filter(|_| speaks_ours);
    if knocked.is_none() {
        let mut refusal = ErrorResponse::new(Some("no such door".to_owned()));
        *refusal.status_mut() = StatusCode::NOT_FOUND;
        return Err(refusal);
    }
    response.headers_mut().insert(
        header::SEC_WEBSOCKET_PROTOCOL,
        HeaderValue::from_static(version::SUBPROTOCOL),
    );
    Ok(response)
}
