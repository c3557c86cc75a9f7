//! A command's stream: the WebSocket that carries what a process reads and writes, log lines, or an
//! archive. Frames are those of `fairlead_protocol::stream`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fairlead_api::types::TerminalTicket;
use fairlead_protocol::limits::STREAM_MESSAGE_BYTES_MAX;
use reqwest::Url;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use crate::client::{Client, unreachable};
use crate::exit::{Exit, Failure};

/// The subprotocol of a command's stream.
const SUBPROTOCOL: &str = "fairlead.stream.v1";
/// The subprotocol of a terminal's socket.
const TERMINAL_SUBPROTOCOL: &str = "fairlead.terminal.v1";
/// How long the connection and its handshakes may take.
const OPEN_TIMEOUT: Duration = Duration::from_secs(15);

/// A connection, with or without TLS.
pub(crate) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// An open stream.
pub(crate) type Stream = WebSocketStream<Box<dyn Io>>;

/// Opens the stream of a command, for the first time or after it was held.
pub(crate) async fn open(client: &Client, id: &str, is_again: bool) -> Result<Stream, Failure> {
    let mut url = client.url(&["commands", id, "stream"]);
    url.set_query(Some(if is_again { "resume=true" } else { "hold=true" }));
    match tokio::time::timeout(OPEN_TIMEOUT, connect(client, url)).await {
        Ok(opened) => opened,
        Err(_) => Err(Failure::new(
            Exit::Unreachable,
            format!(
                "{} does not answer",
                client.base().host_str().unwrap_or_default()
            ),
        )
        .transient()),
    }
}

/// Opens the socket of a terminal, here or at its region's access server; it is a ticket that opens the
/// terminal.
pub(crate) async fn open_terminal(
    client: &Client,
    ticket: &TerminalTicket,
) -> Result<Stream, Failure> {
    let wrong = |_| Failure::new(Exit::Failed, "the server names a socket that is none");
    let server = match &ticket.server {
        Some(server) => Url::parse(server).map_err(wrong)?,
        None => client.base().clone(),
    };
    if server.scheme() != client.base().scheme() {
        let text = "the server names a socket that is not as safe as itself";
        return Err(Failure::new(Exit::Failed, text));
    }
    let url = server.join(&ticket.socket).map_err(wrong)?;
    let slow = || {
        let host = server.host_str().unwrap_or_default();
        let text = format!("{host} does not answer the terminal's socket");
        Failure::new(Exit::Unreachable, text).transient()
    };
    let connected = connect_with(client, url, TERMINAL_SUBPROTOCOL, Some(&ticket.origin));
    tokio::time::timeout(OPEN_TIMEOUT, connected)
        .await
        .map_err(|_| slow())?
}

async fn connect(client: &Client, url: Url) -> Result<Stream, Failure> {
    connect_with(client, url, SUBPROTOCOL, None).await
}

/// With an origin it is a terminal's socket, which is shown a ticket and no token.
async fn connect_with(
    client: &Client,
    url: Url,
    subprotocol: &'static str,
    origin: Option<&str>,
) -> Result<Stream, Failure> {
    let host = url
        .host_str()
        .unwrap_or_default()
        .trim_matches(['[', ']'])
        .to_owned();
    let port = url.port_or_known_default().unwrap_or_default();
    let base = url.clone();
    let broken = |e: &(dyn std::error::Error + 'static)| unreachable(&base, false, e);
    let tcp = TcpStream::connect((host.as_str(), port))
        .await
        .map_err(|e| broken(&e))?;
    tcp.set_nodelay(true).map_err(|e| broken(&e))?;
    let secure = url.scheme() == "https";
    let io: Box<dyn Io> = if secure {
        let name = ServerName::try_from(host.clone())
            .map_err(|_| Failure::usage(format!("{host} is not a server's name")))?;
        let connector = TlsConnector::from(Arc::new(client.tls().clone()));
        Box::new(connector.connect(name, tcp).await.map_err(|e| broken(&e))?)
    } else {
        Box::new(tcp)
    };
    let mut ws_url = url;
    let scheme = if secure { "wss" } else { "ws" };
    let wrong = || Failure::new(Exit::Failed, "the server's address cannot carry a stream");
    ws_url.set_scheme(scheme).map_err(|()| wrong())?;
    let mut request = ws_url.as_str().into_client_request().map_err(|_| wrong())?;
    let headers = request.headers_mut();
    headers.insert(
        "sec-websocket-protocol",
        HeaderValue::from_static(subprotocol),
    );
    if let Some(origin) = origin {
        headers.insert(
            "origin",
            HeaderValue::from_str(origin).map_err(|_| wrong())?,
        );
    } else if let Some(token) = client.token() {
        let mut value =
            HeaderValue::from_str(&format!("Bearer {}", token.reveal())).map_err(|_| wrong())?;
        value.set_sensitive(true);
        headers.insert("authorization", value);
    }
    let config = WebSocketConfig::default()
        .max_message_size(Some(STREAM_MESSAGE_BYTES_MAX))
        .max_frame_size(Some(STREAM_MESSAGE_BYTES_MAX));
    match tokio_tungstenite::client_async_with_config(request, io, Some(config)).await {
        Ok((stream, _)) => Ok(stream),
        Err(WsError::Http(answer)) => {
            let status = answer.status().as_u16();
            Err(Failure::of_answer(
                status,
                answer.body().as_deref().unwrap_or_default(),
            ))
        }
        Err(error) => Err(broken(&error)),
    }
}

/// The payload of a message that carries a frame; `None` for the others.
pub(crate) fn payload(message: Message) -> Option<Bytes> {
    match message {
        Message::Binary(bytes) => Some(bytes),
        _ => None,
    }
}
