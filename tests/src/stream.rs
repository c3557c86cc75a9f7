//! A command's stream, as the CLI opens it: a WebSocket of one-byte-channel frames.

use std::time::Duration;

use bytes::Bytes;
use fairlead_protocol::limits::STREAM_MESSAGE_BYTES_MAX;
use fairlead_protocol::stream::{Channel, frame, parse};
use futures_util::{SinkExt, StreamExt};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::client::{Api, Refusal};

/// How long the other side may say nothing.
const SILENT_MAX: Duration = Duration::from_secs(30);

/// An open stream.
#[derive(Debug)]
pub struct Stream(WebSocketStream<TlsStream<TcpStream>>);

/// All that came until the end.
#[derive(Debug, Default)]
pub struct Heard {
    /// Output.
    pub output: Vec<u8>,
    /// Error output.
    pub errors: Vec<u8>,
    /// What the end frame says.
    pub end: Option<serde_json::Value>,
}

impl Heard {
    /// The output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.output).into_owned()
    }
}

impl Stream {
    /// Opens a command's stream.
    ///
    /// # Errors
    /// What the server said instead.
    ///
    /// # Panics
    /// When it cannot be reached.
    pub async fn open(api: &Api, command: &str) -> Result<Self, Refusal> {
        let authority = api.url.trim_start_matches("https://").to_owned();
        let tcp = TcpStream::connect(authority.replace("localhost", "127.0.0.1"))
            .await
            .expect("the server can be reached");
        let name = ServerName::try_from("localhost").expect("a name");
        let tls = TlsConnector::from(std::sync::Arc::clone(&api.tls))
            .connect(name, tcp)
            .await
            .expect("the server is ours");
        let mut request = format!("wss://{authority}/api/v1/commands/{command}/stream")
            .into_client_request()
            .expect("a request");
        let headers = request.headers_mut();
        headers.insert(
            "sec-websocket-protocol",
            HeaderValue::from_static("fairlead.stream.v1"),
        );
        let bearer = format!("Bearer {}", api.token);
        headers.insert(
            "authorization",
            HeaderValue::from_str(&bearer).expect("a header"),
        );
        let config = WebSocketConfig::default()
            .max_message_size(Some(STREAM_MESSAGE_BYTES_MAX))
            .max_frame_size(Some(STREAM_MESSAGE_BYTES_MAX));
        match tokio_tungstenite::client_async_with_config(request, tls, Some(config)).await {
            Ok((socket, _)) => Ok(Self(socket)),
            Err(Error::Http(answer)) => {
                let text = answer.body().clone().unwrap_or_default();
                let body: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
                let field =
                    |name: &str| body["error"][name].as_str().unwrap_or_default().to_owned();
                Err(Refusal {
                    status: answer.status().as_u16(),
                    code: field("code"),
                    message: field("message"),
                })
            }
            Err(error) => panic!("the stream cannot be opened: {error}"),
        }
    }

    /// Sends one frame; a stream that is over takes nothing, which is no failure here.
    pub async fn send(&mut self, channel: Channel, data: &[u8]) {
        let _ = self.0.send(Message::Binary(frame(channel, data))).await;
    }

    /// The next frame; `None` at the end of the stream.
    ///
    /// # Panics
    /// When nothing comes for half a minute.
    pub async fn hear(&mut self) -> Option<(Channel, Bytes)> {
        loop {
            let message = tokio::time::timeout(SILENT_MAX, self.0.next())
                .await
                .expect("the stream says something");
            match message {
                Some(Ok(Message::Binary(bytes))) => {
                    return Some(parse(bytes).expect("a frame"));
                }
                Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
                Some(Ok(_)) => {}
            }
        }
    }

    /// Everything until the end.
    pub async fn rest(&mut self) -> Heard {
        let mut heard = Heard::default();
        while let Some((channel, data)) = self.hear().await {
            match channel {
                Channel::Output => heard.output.extend_from_slice(&data),
                Channel::ErrorOutput => heard.errors.extend_from_slice(&data),
                Channel::End => heard.end = serde_json::from_slice(&data).ok(),
                _ => {}
            }
        }
        heard
    }

    /// Waits until the far side has begun.
    ///
    /// # Panics
    /// When something else comes first.
    pub async fn begun(&mut self) {
        let first = self.hear().await;
        assert!(
            matches!(first, Some((Channel::Begun, _))),
            "not begun but {first:?}"
        );
    }
}
