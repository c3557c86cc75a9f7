//! The HTTP API as the verbs see it. A lost connection is repaired where that is safe: a command is
//! sent again under the same id, and waiting for one goes on after a restart of the server.

use std::path::Path;
use std::time::Duration;

use fairlead_api::types::{Command, CommandRequest, Page};
use fairlead_protocol::codes;
use futures_util::StreamExt;
use reqwest::{Method, RequestBuilder, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::config::{Settings, Token};
use crate::exit::{Exit, Failure};
use crate::sse::{Parser, ServerEvent};

/// How long a connection may take to come to be.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an answer may take, beyond what the server was asked to wait.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a command is sent again while the server cannot be reached.
pub(crate) const RESEND_FOR: Duration = Duration::from_secs(10);
/// Longest pause between two tries.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Largest answer that is taken.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Query parameters.
pub(crate) type Query<'a> = &'a [(&'a str, String)];

/// One server, with one token.
pub(crate) struct Client {
    http: reqwest::Client,
    base: Url,
    token: Option<Token>,
    tls: rustls::ClientConfig,
}

impl Client {
    /// A client for these settings; connects to nothing yet.
    pub(crate) fn new(settings: Settings) -> Result<Self, Failure> {
        let tls = settings.trust.client_config()?;
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls.clone())
            .connect_timeout(CONNECT_TIMEOUT)
            // A redirect could carry the token elsewhere.
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(format!(
                "fairlead/{}",
                fairlead_protocol::software::version()
            ))
            .build()
            .map_err(|e| Failure::new(Exit::Failed, format!("cannot set up HTTP: {e}")))?;
        Ok(Self {
            http,
            base: settings.url,
            token: settings.token,
            tls,
        })
    }

    /// The server's root.
    pub(crate) fn base(&self) -> &Url {
        &self.base
    }

    /// The token, where there is one.
    pub(crate) fn token(&self) -> Option<&Token> {
        self.token.as_ref()
    }

    /// The TLS configuration, for streams.
    pub(crate) fn tls(&self) -> &rustls::ClientConfig {
        &self.tls
    }

    /// The URL of a path below `/api/v1`, each part escaped.
    pub(crate) fn url(&self, parts: &[&str]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.clear().extend(["api", "v1"]).extend(parts);
        }
        url
    }

    fn request(&self, method: Method, url: Url) -> RequestBuilder {
        let request = self.http.request(method, url);
        match &self.token {
            Some(token) => request.bearer_auth(token.reveal()),
            None => request,
        }
    }

    /// Reads.
    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        parts: &[&str],
        query: Query<'_>,
    ) -> Result<T, Failure> {
        let request = self.request(Method::GET, self.url(parts)).query(query);
        decode(&self.answer(request.timeout(ANSWER_TIMEOUT)).await?)
    }

    /// Reads a whole list, which comes as such or as a page.
    pub(crate) async fn list<T: DeserializeOwned>(
        &self,
        parts: &[&str],
        query: Query<'_>,
    ) -> Result<Vec<T>, Failure> {
        let request = self.request(Method::GET, self.url(parts)).query(query);
        let body = self.answer(request.timeout(ANSWER_TIMEOUT)).await?;
        if body.trim_ascii_start().starts_with(b"[") {
            decode(&body)
        } else {
            decode::<Page<T>>(&body).map(|page| page.items)
        }
    }

    /// Reads something of any size, in pieces as it comes.
    pub(crate) async fn pieces(
        &self,
        parts: &[&str],
        write: impl Fn(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let request = self.request(Method::GET, self.url(parts));
        let response = request.send().await.map_err(|e| self.unreachable(&e))?;
        if !response.status().is_success() {
            return self.whole(response).await.map(drop);
        }
        let mut pieces = response.bytes_stream();
        while let Some(piece) = pieces.next().await {
            write(&piece.map_err(|e| self.unreachable(&e))?)?;
        }
        Ok(())
    }

    /// Reads a file that is there for everybody, in pieces as it comes, and so without the token.
    pub(crate) async fn file(
        &self,
        url: Url,
        mut each: impl FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let asked = self.http.get(url.clone()).send();
        let response = tokio::time::timeout(ANSWER_TIMEOUT, asked)
            .await
            .map_err(|_| stalled(&url))?
            .map_err(|e| self.unreachable(&e))?;
        match response.status().as_u16() {
            200 => {}
            404 => {
                let failure = Failure::new(Exit::NotFound, format!("there is no {url}"));
                return Err(failure.code(codes::PACKAGE_NOT_FOUND));
            }
            status => {
                let what = format!("{url} was answered with HTTP {status}");
                return Err(Failure::new(Exit::Failed, what));
            }
        }
        let mut pieces = response.bytes_stream();
        loop {
            let piece = tokio::time::timeout(ANSWER_TIMEOUT, pieces.next()).await;
            match piece.map_err(|_| stalled(&url))? {
                Some(piece) => each(&piece.map_err(|e| self.unreachable(&e))?)?,
                None => return Ok(()),
            }
        }
    }

    /// Writes.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        parts: &[&str],
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        let request = self.request(Method::POST, self.url(parts)).json(body);
        decode(&self.answer(request.timeout(ANSWER_TIMEOUT)).await?)
    }

    /// Sends a file as it is. However long that takes: an answer comes when all of it is there.
    pub(crate) async fn put_file<T: DeserializeOwned>(
        &self,
        parts: &[&str],
        path: &Path,
    ) -> Result<T, Failure> {
        let reading = |error| Failure::local(&format!("cannot read {}", path.display()), &error);
        let file = tokio::fs::File::open(path).await.map_err(reading)?;
        let length = file.metadata().await.map_err(reading)?.len();
        let request = self
            .request(Method::PUT, self.url(parts))
            .header("content-type", "application/octet-stream")
            .header("content-length", length)
            .body(file);
        decode(&self.answer(request).await?)
    }

    /// Deletes.
    pub(crate) async fn delete(&self, parts: &[&str]) -> Result<(), Failure> {
        let request = self.request(Method::DELETE, self.url(parts));
        self.answer(request.timeout(ANSWER_TIMEOUT)).await.map(drop)
    }

    /// Any request, for `fairlead api`.
    pub(crate) async fn raw(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Vec<u8>, Failure> {
        let url = self
            .base
            .join(path)
            .ok()
            .filter(|url| url.origin() == self.base.origin())
            .ok_or_else(|| Failure::usage(format!("{path} is not a path")))?;
        let mut request = self.request(method, url);
        if let Some(body) = body {
            request = request
                .header("content-type", "application/json")
                .body(body);
        }
        self.answer(request.timeout(ANSWER_TIMEOUT)).await
    }

    /// Hands a command over and waits up to `wait` for its end. The id in the request makes it safe
    /// to send it again while the server cannot be reached.
    pub(crate) async fn submit(
        &self,
        request: &CommandRequest,
        wait: Duration,
    ) -> Result<Command, Failure> {
        let mut retry = Retry::until(Instant::now() + RESEND_FOR);
        loop {
            let call = self
                .request(Method::POST, self.url(&["commands"]))
                .query(&[("wait_ms", wait.as_millis().to_string())])
                .json(request)
                .timeout(wait + ANSWER_TIMEOUT);
            match self.answer(call).await.and_then(|body| decode(&body)) {
                Err(failure) if failure.transient => retry.pause(failure).await?,
                done => return done,
            }
        }
    }

    /// The command as it is, or as it is when it ends or `wait` is over.
    pub(crate) async fn command(&self, id: &str, wait: Duration) -> Result<Command, Failure> {
        let call = self
            .request(Method::GET, self.url(&["commands", id]))
            .query(&[("wait_ms", wait.as_millis().to_string())])
            .timeout(wait + ANSWER_TIMEOUT);
        decode(&self.answer(call).await?)
    }

    /// Opens a stream of server-sent events and gives each to `each` until that says to stop.
    /// Ends with `Ok` when the server closed, with a transient failure when the connection broke.
    pub(crate) async fn events(
        &self,
        parts: &[&str],
        query: Query<'_>,
        last_id: &str,
        mut each: impl FnMut(ServerEvent) -> Result<bool, Failure>,
    ) -> Result<(), Failure> {
        let mut call = self
            .request(Method::GET, self.url(parts))
            .query(query)
            .header("accept", "text/event-stream");
        if !last_id.is_empty() {
            call = call.header("last-event-id", last_id);
        }
        let response = call.send().await.map_err(|e| self.unreachable(&e))?;
        let status = response.status();
        if !status.is_success() {
            let body = response.bytes().await.map_err(|e| self.unreachable(&e))?;
            return Err(Failure::of_answer(status.as_u16(), &body));
        }
        let mut parser = Parser::default();
        let mut body = response.bytes_stream();
        while let Some(piece) = body.next().await {
            let piece = piece.map_err(|e| self.unreachable(&e))?;
            let events = parser
                .feed(&piece)
                .map_err(|e| Failure::new(Exit::Failed, e.to_string()))?;
            for event in events {
                if !each(event)? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// The body of a good answer.
    async fn answer(&self, request: RequestBuilder) -> Result<Vec<u8>, Failure> {
        let response = request.send().await.map_err(|e| self.unreachable(&e))?;
        self.whole(response).await
    }

    async fn whole(&self, response: reqwest::Response) -> Result<Vec<u8>, Failure> {
        let status = response.status();
        let mut body = Vec::new();
        let mut pieces = response.bytes_stream();
        while let Some(piece) = pieces.next().await {
            body.extend_from_slice(&piece.map_err(|e| self.unreachable(&e))?);
            if body.len() > ANSWER_BYTES_MAX {
                return Err(Failure::new(
                    Exit::Failed,
                    "the server's answer is too large",
                ));
            }
        }
        if status.is_success() {
            Ok(body)
        } else {
            Err(Failure::of_answer(status.as_u16(), &body))
        }
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        let timeout = error.is_timeout();
        unreachable(&self.base, timeout, error)
    }
}

/// Tries again with growing pauses until a moment is over.
pub(crate) struct Retry {
    until: Instant,
    pause: Duration,
}

impl Retry {
    /// Tries until then.
    pub(crate) fn until(until: Instant) -> Self {
        Self {
            until,
            pause: Duration::from_millis(100),
        }
    }

    /// Waits before the next try; gives `failure` back when there is to be none.
    pub(crate) async fn pause(&mut self, failure: Failure) -> Result<(), Failure> {
        if Instant::now() + self.pause >= self.until {
            return Err(failure);
        }
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        Ok(())
    }
}

fn stalled(url: &Url) -> Failure {
    let seconds = ANSWER_TIMEOUT.as_secs();
    Failure::new(
        Exit::Unreachable,
        format!("nothing of {url} came within {seconds} s"),
    )
}

/// The value in an answer.
fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(body).map_err(|e| {
        Failure::new(
            Exit::Failed,
            format!("the server's answer is not understood: {e}"),
        )
        .hint("are `fairlead` and the server of the same version? See `fairlead version`")
    })
}

/// The TLS error within. An I/O error does not name what it wraps as its source, so it is opened.
fn tls_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    if let Some(tls) = error.downcast_ref() {
        return Some(tls);
    }
    let wrapped = error.downcast_ref::<std::io::Error>()?.get_ref()?;
    tls_error(wrapped)
}

/// Why a server could not be reached, in words.
pub(crate) fn unreachable(
    base: &Url,
    timeout: bool,
    error: &(dyn std::error::Error + 'static),
) -> Failure {
    let host = base.host_str().unwrap_or_default();
    let at = format!(
        "{host}:{}",
        base.port_or_known_default().unwrap_or_default()
    );
    let mut chain = vec![error];
    while let Some(next) = chain.last().and_then(|error| error.source()) {
        chain.push(next);
    }
    let mut io = None;
    for link in &chain {
        io = io.or_else(|| link.downcast_ref().map(std::io::Error::kind));
        if let Some(tls) = tls_error(*link) {
            let (what, hint) = crate::tls::explain(tls);
            return Failure::new(
                Exit::Unreachable,
                format!("{at} is not to be trusted: {what}"),
            )
            .hint(hint);
        }
    }
    let failure = |text: String| Failure::new(Exit::Unreachable, text).transient();
    let running = "is the controller running, and the address right? FAIRLEAD_URL or login";
    if chain
        .iter()
        .any(|link| link.to_string().contains("dns error"))
    {
        return failure(format!("there is no host named {host}"))
            .hint("check the name: FAIRLEAD_URL, or fairlead login URL");
    }
    match io {
        Some(std::io::ErrorKind::ConnectionRefused) => {
            failure(format!("nothing listens at {at}")).hint(running)
        }
        _ if timeout => failure(format!("{at} does not answer")).hint(running),
        Some(std::io::ErrorKind::HostUnreachable | std::io::ErrorKind::NetworkUnreachable) => {
            failure(format!("there is no way to {at}")).hint("check this machine's network")
        }
        _ => {
            let last = chain.last().map(ToString::to_string).unwrap_or_default();
            failure(format!("the connection to {at} broke: {last}")).hint(running)
        }
    }
}
