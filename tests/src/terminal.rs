//! A terminal's socket, as the page uses it.

use std::time::{Duration, Instant};

use fairlead_api::types::TerminalTicket;
use futures_util::{SinkExt, StreamExt};
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::client::Api;

/// How long the other side may say nothing.
const SILENT_MAX: Duration = Duration::from_secs(30);
/// How long something that is waited for may take.
const UNTIL_MAX: Duration = Duration::from_secs(120);
/// What is shown is told in steps of so much.
const TELL_EVERY: u64 = 32 * 1024;

/// A page, as far as the server sees one.
pub struct Page {
    socket: WebSocketStream<TlsStream<TcpStream>>,
    /// All output since it was opened, as it came.
    pub output: Vec<u8>,
    /// The byte of the session's output at which it begins.
    pub from: u64,
    told: u64,
    /// How much of what was typed had come when it was let in.
    pub received: u64,
    /// How much of what was typed the server has passed on.
    pub taken: u64,
    /// Whether the far side has begun.
    pub begun: bool,
    /// What the server said at the end.
    pub ended: Option<Value>,
}

/// The socket's handshake, with that origin; the status when it was refused.
///
/// # Errors
/// The HTTP status.
///
/// # Panics
/// When the server cannot be reached.
pub async fn connect(
    api: &Api,
    origins: &[&str],
) -> Result<WebSocketStream<TlsStream<TcpStream>>, u16> {
    connect_at(api, &api.url, origins).await
}

/// The same at another server of the installation.
///
/// # Errors
/// The HTTP status.
///
/// # Panics
/// When the server cannot be reached.
pub async fn connect_at(
    api: &Api,
    server: &str,
    origins: &[&str],
) -> Result<WebSocketStream<TlsStream<TcpStream>>, u16> {
    let reached = reach(api, server, origins).await;
    reached.expect("the server can be reached, and is ours")
}

/// The same at a server that may be away: then it is an error.
async fn reach(
    api: &Api,
    server: &str,
    origins: &[&str],
) -> std::io::Result<Result<WebSocketStream<TlsStream<TcpStream>>, u16>> {
    let authority = server.trim_start_matches("https://").to_owned();
    let tcp = TcpStream::connect(authority.replace("localhost", "127.0.0.1")).await?;
    let name = ServerName::try_from("localhost").expect("a name");
    let tls = TlsConnector::from(std::sync::Arc::clone(&api.tls))
        .connect(name, tcp)
        .await?;
    let mut request = format!("wss://{authority}/terminal/socket")
        .into_client_request()
        .expect("a request");
    let headers = request.headers_mut();
    for origin in origins {
        let value = HeaderValue::from_str(origin).expect("a header");
        headers.append("origin", value);
    }
    headers.insert(
        "sec-websocket-protocol",
        HeaderValue::from_static("fairlead.terminal.v1"),
    );
    match tokio_tungstenite::client_async(request, tls).await {
        Ok((socket, _)) => Ok(Ok(socket)),
        Err(Error::Http(answer)) => Ok(Err(answer.status().as_u16())),
        Err(error) => Err(std::io::Error::other(error)),
    }
}

impl Page {
    /// Opens the socket and shows a ticket; the server's first word comes later.
    ///
    /// # Panics
    /// When the socket cannot be opened.
    pub async fn enter(api: &Api, ticket: &str, from: Option<u64>) -> Self {
        Self::enter_at(api, &api.url, ticket, from).await
    }

    /// The same at another server of the installation, from a page of the controller.
    ///
    /// # Panics
    /// When the socket cannot be opened.
    pub async fn enter_at(api: &Api, server: &str, ticket: &str, from: Option<u64>) -> Self {
        let socket = connect_at(api, server, &[&api.url])
            .await
            .expect("the controller's own origin");
        Self::greet(socket, ticket, from)
            .await
            .expect("a socket that takes it")
    }

    /// The same at a server that may be away, or just starting.
    ///
    /// # Errors
    /// When it is.
    pub async fn try_enter_at(
        api: &Api,
        server: &str,
        ticket: &str,
        from: Option<u64>,
    ) -> Result<Self, String> {
        let reached = reach(api, server, &[&api.url]).await;
        let socket = reached.map_err(|error| error.to_string())?;
        let socket = socket.map_err(|status| format!("HTTP {status}"))?;
        let greeted = Self::greet(socket, ticket, from).await;
        greeted.map_err(|error| error.to_string())
    }

    async fn greet(
        mut socket: WebSocketStream<TlsStream<TcpStream>>,
        ticket: &str,
        from: Option<u64>,
    ) -> Result<Self, Error> {
        let mut hello = json!({ "ticket": ticket, "columns": 80, "rows": 25 });
        if let Some(from) = from {
            hello["from"] = from.into();
        }
        let text = Message::Text(hello.to_string().into());
        socket.send(text).await?;
        Ok(Self {
            socket,
            output: Vec::new(),
            from: 0,
            told: 0,
            received: 0,
            taken: 0,
            begun: false,
            ended: None,
        })
    }

    /// The same, and it is let in and the shell has begun.
    ///
    /// # Panics
    /// When it is not.
    pub async fn open(api: &Api, ticket: &str) -> Self {
        let mut page = Self::enter(api, ticket, None).await;
        page.until("the shell has begun", |page| page.begun).await;
        page
    }

    /// Opens the socket where the ticket says, and the shell has begun.
    ///
    /// # Panics
    /// When it has not.
    pub async fn open_there(api: &Api, given: &TerminalTicket) -> Self {
        let server = given.server.as_deref().expect("its region's server");
        let mut page = Self::enter_at(api, server, &given.ticket, None).await;
        page.until("the shell has begun", |page| page.begun).await;
        page
    }

    /// Takes what comes until that holds.
    ///
    /// # Panics
    /// When it ends before, or nothing comes.
    pub async fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let until = Instant::now() + UNTIL_MAX;
        while !holds(self) {
            // Signs of life come all the time.
            assert!(
                Instant::now() < until && self.hear().await,
                "{what}: ended with {:?} after {:?}",
                self.ended,
                self.text()
            );
        }
    }

    /// Takes one message; `false` at the end.
    ///
    /// # Panics
    /// When nothing comes for half a minute.
    pub async fn hear(&mut self) -> bool {
        let heard = tokio::time::timeout(SILENT_MAX, self.socket.next())
            .await
            .unwrap_or_else(|_| panic!("nothing comes after {:?}", self.text()));
        match heard {
            Some(Ok(Message::Binary(bytes))) => {
                self.output.extend_from_slice(&bytes);
                let have = self.from + self.output.len() as u64;
                if have - self.told >= TELL_EVERY {
                    self.told = have;
                    self.say(&json!({ "shown": have })).await;
                }
                true
            }
            Some(Ok(Message::Text(text))) => {
                let said: Value = serde_json::from_str(&text).expect("JSON");
                if said == "begun" {
                    self.begun = true;
                } else if let Some(from) = said["open"]["from"].as_u64() {
                    (self.from, self.told) = (from, from);
                    self.received = said["open"]["received"].as_u64().unwrap_or_default();
                    self.taken = said["open"]["taken"].as_u64().unwrap_or_default();
                } else if let Some(taken) = said["taken"].as_u64() {
                    self.taken = taken;
                } else if said["ended"].is_object() {
                    self.ended = Some(said["ended"].clone());
                    // Closing tells the server that this was heard.
                    let _ = tokio::time::timeout(SILENT_MAX, self.socket.close(None)).await;
                    return false;
                }
                true
            }
            Some(Ok(Message::Close(_)) | Err(_)) | None => false,
            Some(Ok(_)) => true,
        }
    }

    /// Why it ended, after all that came before.
    ///
    /// # Panics
    /// When it ends without a word.
    pub async fn end(&mut self) -> String {
        while self.hear().await {}
        let ended = self.ended.as_ref().expect("a last word");
        ended["code"].as_str().unwrap_or_default().to_owned()
    }

    /// Says something.
    pub async fn say(&mut self, what: &Value) {
        let text = Message::Text(what.to_string().into());
        let _ = self.socket.send(text).await;
    }

    /// Types.
    pub async fn type_in(&mut self, text: &str) {
        let bytes = text.as_bytes().to_vec();
        let _ = self.socket.send(Message::Binary(bytes.into())).await;
    }

    /// The output as text.
    #[must_use]
    pub fn text(&self) -> String {
        let tail = self.output.len().saturating_sub(2_000);
        String::from_utf8_lossy(&self.output[tail..]).into_owned()
    }
}
