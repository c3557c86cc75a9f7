//! The HTTP API as a program sees it, typed.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fairlead_api::types::{
    Action, ApiToken, ApiTokenRequest, Command, CommandRequest, Container, ErrorBody, Event, Host,
    JoinTokenRequest, NewApiToken, NewJoinToken, NewRegion, Page, Permission, Region,
    RegionRequest, Scope, SetupRequest, Status,
};
use reqwest::Method;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::wait::wait_for;

/// How long an answer may take beyond what it was asked to wait.
const ANSWER_WITHIN: Duration = Duration::from_secs(70);

/// What the API said instead of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status; 0: there was no answer.
    pub status: u16,
    /// Stable code; `unreachable` when there was no answer.
    pub code: String,
    /// In words.
    pub message: String,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}: {}", self.status, self.code, self.message)
    }
}

/// One server, with one token.
#[derive(Clone)]
pub struct Api {
    http: reqwest::Client,
    /// TLS that believes the installation's CA and nothing else.
    pub tls: Arc<ClientConfig>,
    /// `https://localhost:PORT`
    pub url: String,
    /// `FA1…`; empty: none.
    pub token: String,
}

/// TLS that believes the CA in that file.
///
/// # Panics
/// When there is none in it.
#[must_use]
pub fn tls(ca_file: &Path) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca_file).expect("a PEM file") {
        roots
            .add(certificate.expect("a certificate"))
            .expect("a CA");
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("protocol versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}

impl Api {
    /// A client; connects to nothing yet.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn new(url: &str, ca_file: &Path, token: &str) -> Self {
        let tls = tls(ca_file);
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured((*tls).clone())
            .connect_timeout(Duration::from_secs(5))
            .timeout(ANSWER_WITHIN)
            .build()
            .expect("an HTTP client");
        Self {
            http,
            tls,
            url: url.to_owned(),
            token: token.to_owned(),
        }
    }

    /// The same server with another token.
    #[must_use]
    pub fn with_token(&self, token: &str) -> Self {
        Self {
            token: token.to_owned(),
            ..self.clone()
        }
    }

    /// Any request below `/api/v1/`; the raw answer.
    ///
    /// # Errors
    /// What the server said, when it is not a success.
    pub async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<T, Refusal> {
        let mut request = self
            .http
            .request(method, format!("{}/api/v1/{path}", self.url));
        if !self.token.is_empty() {
            request = request.bearer_auth(&self.token);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let unreachable = |error: reqwest::Error| Refusal {
            status: 0,
            code: "unreachable".to_owned(),
            message: format!("{error:?}"),
        };
        let answer = request.send().await.map_err(unreachable)?;
        let status = answer.status();
        let text = answer.text().await.map_err(unreachable)?;
        if status.is_success() {
            return Ok(serde_json::from_str(&text).expect("an answer of the described shape"));
        }
        let error = serde_json::from_str::<ErrorBody>(&text)
            .unwrap_or_else(|_| panic!("an error without the error's shape: {status} {text}"));
        Err(Refusal {
            status: status.as_u16(),
            code: error.error.code,
            message: error.error.message,
        })
    }

    /// Any request below `/api/v1/` with a body of bytes; status and body of the answer, as far as it came.
    ///
    /// # Panics
    /// When there is no answer.
    pub async fn raw(&self, method: Method, path: &str, body: Vec<u8>) -> (u16, Vec<u8>, bool) {
        let url = format!("{}/api/v1/{path}", self.url);
        let request = self.http.request(method, url).bearer_auth(&self.token);
        let mut answer = request.body(body).send().await.expect("an answer");
        let status = answer.status().as_u16();
        let mut all = Vec::new();
        loop {
            match answer.chunk().await {
                Ok(Some(piece)) => all.extend_from_slice(&piece),
                Ok(None) => return (status, all, true),
                Err(_) => return (status, all, false),
            }
        }
    }

    /// GET.
    ///
    /// # Errors
    /// What the server said.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Refusal> {
        self.ask(Method::GET, path, None::<&()>).await
    }

    /// POST.
    ///
    /// # Errors
    /// What the server said.
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<T, Refusal> {
        self.ask(Method::POST, path, Some(body)).await
    }

    /// DELETE.
    ///
    /// # Errors
    /// What the server said.
    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, Refusal> {
        self.ask(Method::DELETE, path, None::<&()>).await
    }

    /// Claims the installation.
    ///
    /// # Errors
    /// What the server said.
    pub async fn setup(&self, secret: &str) -> Result<NewApiToken, Refusal> {
        let body = SetupRequest {
            secret: secret.to_owned(),
            name: "test".to_owned(),
        };
        self.post("setup", &body).await
    }

    /// A new region and its token.
    ///
    /// # Errors
    /// What the server said.
    pub async fn new_region(&self, name: &str) -> Result<NewRegion, Refusal> {
        self.post(
            "regions",
            &RegionRequest {
                again: false,
                name: name.to_owned(),
                ttl_s: None,
            },
        )
        .await
    }

    /// A region.
    ///
    /// # Errors
    /// What the server said.
    pub async fn region(&self, name: &str) -> Result<Region, Refusal> {
        self.get(&format!("regions/{name}")).await
    }

    /// A new join token.
    ///
    /// # Errors
    /// What the server said.
    pub async fn new_join_token(
        &self,
        request: &JoinTokenRequest,
    ) -> Result<NewJoinToken, Refusal> {
        self.post("join-tokens", request).await
    }

    /// A new API token with these permissions everywhere.
    ///
    /// # Errors
    /// What the server said.
    pub async fn new_api_token(
        &self,
        name: &str,
        permissions: &[Permission],
    ) -> Result<NewApiToken, Refusal> {
        let request = ApiTokenRequest {
            name: name.to_owned(),
            permissions: permissions.to_vec(),
            scope: Scope::default(),
            ttl_s: None,
        };
        self.post("api-tokens", &request).await
    }

    /// Revokes an API token.
    ///
    /// # Errors
    /// What the server said.
    pub async fn revoke_api_token(&self, id: &str) -> Result<ApiToken, Refusal> {
        self.delete(&format!("api-tokens/{id}")).await
    }

    /// The fleet in one glance.
    ///
    /// # Errors
    /// What the server said.
    pub async fn status(&self) -> Result<Status, Refusal> {
        self.get("status").await
    }

    /// All hosts.
    ///
    /// # Errors
    /// What the server said.
    pub async fn hosts(&self) -> Result<Vec<Host>, Refusal> {
        self.get("hosts").await
    }

    /// A host.
    ///
    /// # Errors
    /// What the server said.
    pub async fn host(&self, host: &str) -> Result<Host, Refusal> {
        self.get(&format!("hosts/{host}")).await
    }

    /// All containers of a host, stopped ones included.
    ///
    /// # Errors
    /// What the server said.
    pub async fn containers(&self, host: &str) -> Result<Vec<Container>, Refusal> {
        self.get(&format!("containers?all=true&host={host}")).await
    }

    /// The newest events, newest first.
    ///
    /// # Errors
    /// What the server said.
    pub async fn events(&self) -> Result<Vec<Event>, Refusal> {
        self.get::<Page<Event>>("events?limit=1000")
            .await
            .map(|page| page.items)
    }

    /// Asks for a command; waits for its end as long as `wait` says (60 s at most).
    ///
    /// # Errors
    /// What the server said.
    pub async fn submit(
        &self,
        request: &CommandRequest,
        wait: Duration,
    ) -> Result<Command, Refusal> {
        let path = format!("commands?wait_ms={}", wait.as_millis().min(60_000));
        self.post(&path, request).await
    }

    /// A command.
    ///
    /// # Errors
    /// What the server said.
    pub async fn command(&self, id: &str) -> Result<Command, Refusal> {
        self.get(&format!("commands/{id}")).await
    }

    /// Withdraws a command.
    ///
    /// # Errors
    /// What the server said.
    pub async fn cancel(&self, id: &str) -> Result<Command, Refusal> {
        self.post(&format!("commands/{id}/cancel"), &()).await
    }

    /// Asks for an act on a host and does not wait.
    ///
    /// # Panics
    /// When it is not taken.
    pub async fn begin(&self, host: &str, action: Action) -> Command {
        let request = request(host, action);
        self.submit(&request, Duration::ZERO)
            .await
            .unwrap_or_else(|no| panic!("not taken: {no}"))
    }

    /// Asks for an act on a host and waits for its end.
    ///
    /// # Panics
    /// When it is not taken or has no end within a minute.
    pub async fn act(&self, host: &str, action: Action) -> Command {
        let request = request(host, action);
        let command = self
            .submit(&request, Duration::from_secs(60))
            .await
            .unwrap_or_else(|no| panic!("not taken: {no}"));
        assert!(command.is_final, "no end within a minute: {command:#?}");
        command
    }

    /// The same, and it must succeed.
    ///
    /// # Panics
    /// When it does not.
    pub async fn done(&self, host: &str, action: Action) -> Command {
        let command = self.act(host, action).await;
        assert_eq!(command.state, "succeeded", "{command:#?}");
        command
    }

    /// Waits for a command's end, however often the server goes away meanwhile.
    ///
    /// # Panics
    /// When it has none in time.
    pub async fn ended(&self, id: &str, within: Duration) -> Command {
        wait_for(&format!("command {id} ends"), within, async || {
            match self
                .get::<Command>(&format!("commands/{id}?wait_ms=1000"))
                .await
            {
                Ok(command) if command.is_final => Ok(command),
                Ok(command) => Err(format!("{command:#?}")),
                Err(no) => Err(no.to_string()),
            }
        })
        .await
    }

    /// Waits until a command is in a state.
    ///
    /// # Panics
    /// When it is not in time.
    pub async fn reaches(&self, id: &str, state: &str, within: Duration) -> Command {
        wait_for(
            &format!("command {id} is {state}"),
            within,
            async || match self.command(id).await {
                Ok(command) if command.state == state => Ok(command),
                Ok(command) => Err(format!("{command:#?}")),
                Err(no) => Err(no.to_string()),
            },
        )
        .await
    }

    /// Waits until a host is in a state.
    ///
    /// # Panics
    /// When it is not in time.
    pub async fn host_is(&self, host: &str, state: &str, within: Duration) -> Host {
        wait_for(
            &format!("host {host} is {state}"),
            within,
            async || match self.host(host).await {
                Ok(host) if host.state == state => Ok(host),
                Ok(host) => Err(format!(
                    "{} since {}: {}",
                    host.state, host.since, host.reason
                )),
                Err(no) => Err(no.to_string()),
            },
        )
        .await
    }

    /// Waits until the centre knows of a container that was made beside it.
    ///
    /// # Panics
    /// When it does not in time.
    pub async fn knows(&self, host: &str, container: &str, within: Duration) {
        wait_for("the container is known", within, async || {
            let known = self.containers(host).await;
            let known = known.map_err(|no| no.to_string())?;
            let found = known.iter().any(|c| c.name == container);
            found.then_some(()).ok_or("not yet".to_owned())
        })
        .await;
    }

    /// Waits for an event of that action on that host.
    ///
    /// # Panics
    /// When there is none in time.
    pub async fn event(&self, action: &str, host: &str, within: Duration) -> Event {
        wait_for(&format!("event {action} of {host}"), within, async || {
            let events = self.events().await.map_err(|no| no.to_string())?;
            let seen: Vec<String> = events
                .iter()
                .map(|e| format!("{} {}", e.action, e.host))
                .collect();
            events
                .into_iter()
                .find(|e| e.action == action && (e.host == host || e.host_id == host))
                .ok_or_else(|| format!("only {seen:?}"))
        })
        .await
    }
}

/// A request for an act on a host, with everything else left to the server.
#[must_use]
pub fn request(host: &str, action: Action) -> CommandRequest {
    CommandRequest {
        id: None,
        host: Some(host.to_owned()),
        action,
        deadline_s: None,
        timeout_ms: None,
        precondition: None,
        attach: false,
    }
}

/// A new command id, as a client makes it.
#[must_use]
pub fn new_id() -> String {
    fairlead_protocol::CommandId::from_bytes(fairlead_identity::random::bytes()).to_string()
}
