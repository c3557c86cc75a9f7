//! What stands behind the routes: one trait, implemented by the controller and by a region.
//!
//! Implementations authorise by scope and tenant (they know the hosts), write the audit log, and
//! answer in API types. Permissions were checked before a method is called, except those that
//! depend on a command's kind, which the implementation checks with [`Caller::require`].

use std::collections::BTreeMap;

use async_trait::async_trait;
use bytes::Bytes;
use fairlead_protocol::codes;
use futures_util::stream::BoxStream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::error::ApiError;
use crate::types::{
    AgentVersion, ApiToken, ApiTokenRequest, AuditRow, Command, CommandRequest, Container, Event,
    Host, JoinToken, JoinTokenRequest, NewApiToken, NewJoinToken, NewRegion, Packages, Page,
    Permission, PushedFile, Recording, Region, RegionRequest, Rollout, RolloutRequest, Scope,
    SetupRequest, Status, Terminal, TerminalRequest, TerminalTicket, time,
};

/// Who is asking: a good API token, and where the request comes from.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The token's public part.
    pub token_id: String,
    /// The token's name.
    pub name: String,
    /// The tenant whose things it sees.
    pub tenant: String,
    /// What it may do.
    pub permissions: Vec<Permission>,
    /// Where.
    pub scope: Scope,
    /// When it ends, microseconds since 1970; 0: never by itself.
    pub expires_us: i64,
    /// The address that the connection comes from (never a header's).
    pub from: String,
    /// Fires when the token is revoked or ends: whatever is open with it is closed.
    pub ended: CancellationToken,
}

impl Caller {
    /// Whether it has that permission. An admin has all others, but a shell on a host itself is never implied.
    #[must_use]
    pub fn may(&self, permission: Permission) -> bool {
        self.permissions.iter().any(|has| {
            *has == permission || (*has == Permission::Admin && permission != Permission::HostShell)
        })
    }

    /// Refuses a caller without that permission.
    ///
    /// # Errors
    /// `permission_denied`, naming what is missing.
    pub fn require(&self, permission: Permission) -> Result<(), ApiError> {
        if self.may(permission) {
            return Ok(());
        }
        Err(denied(permission, &self.name))
    }

    /// Whether a host of that region with those labels lies in its scope.
    #[must_use]
    pub fn sees(&self, region: &str, labels: &BTreeMap<String, String>) -> bool {
        self.sees_region(region)
            && self
                .scope
                .labels
                .iter()
                .all(|(key, value)| labels.get(key) == Some(value))
    }

    /// Whether anything of that region can lie in its scope.
    #[must_use]
    pub fn sees_region(&self, region: &str) -> bool {
        self.scope.regions.is_empty() || self.scope.regions.iter().any(|name| name == region)
    }

    /// Whether its scope restricts nothing.
    #[must_use]
    pub fn sees_everything(&self) -> bool {
        self.scope.regions.is_empty() && self.scope.labels.is_empty()
    }

    /// In words that a host's owner understands.
    #[must_use]
    pub fn actor(&self) -> String {
        format!("{} (token {})", self.name, self.token_id)
    }

    /// When it ends, as an API time.
    #[must_use]
    pub fn expires_at(&self) -> Option<jiff::Timestamp> {
        (self.expires_us != 0).then(|| time(self.expires_us))
    }
}

/// The refusal of a caller that lacks a permission.
pub(crate) fn denied(permission: Permission, name: &str) -> ApiError {
    let needed = permission.name();
    ApiError::new(
        codes::PERMISSION_DENIED,
        format!("the API token {name:?} may not do this: it lacks the permission {needed:?}"),
    )
    .hint(format!(
        "ask an admin for a token with {needed:?} (fairlead api-token create)"
    ))
}

/// Both ends of a command's stream; the bytes are frames of `fairlead_protocol::stream`.
pub struct ClientStream {
    /// Towards the agent.
    pub to_agent: mpsc::Sender<Bytes>,
    /// From the agent; ends when the stream ends.
    pub from_agent: mpsc::Receiver<Bytes>,
    /// Fires when the token or the host is revoked: the client's WebSocket is closed.
    pub cut: CancellationToken,
}

/// How a client attaches to a command's stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attach {
    /// It knows nothing of streams that are held.
    Plain,
    /// Its stream may be held; it comes back then.
    Keeping,
    /// It comes back: its first frame says where its stream goes on.
    Resuming,
}

/// A command as it was taken (or found).
#[derive(Debug, Clone)]
pub struct Submitted {
    /// The command.
    pub command: Command,
    /// Whether this request made it; `false`: its id was known, nothing was changed.
    pub created: bool,
}

/// Which containers.
#[derive(Debug, Clone, Default)]
pub struct ContainerQuery {
    /// Host by name, id or prefix.
    pub host: Option<String>,
    /// Stopped ones too.
    pub all: bool,
    /// Of that Compose project.
    pub project: Option<String>,
    /// Name, or part of it.
    pub name: Option<String>,
}

/// Which commands.
#[derive(Debug, Clone, Default)]
pub struct CommandQuery {
    /// Host by name, id or prefix.
    pub host: Option<String>,
    /// In that state.
    pub state: Option<String>,
    /// Of that container (or image).
    pub container: Option<String>,
    /// At most so many.
    pub limit: u32,
    /// Older than this place.
    pub before: Option<i64>,
}

/// Which events.
#[derive(Debug, Clone, Default)]
pub struct EventQuery {
    /// Host by name, id or prefix.
    pub host: Option<String>,
    /// Not before, microseconds since 1970.
    pub since_us: Option<i64>,
    /// At most so many.
    pub limit: u32,
    /// Older than this number.
    pub before: Option<i64>,
}

/// Which recordings.
#[derive(Debug, Clone, Default)]
pub struct RecordingQuery {
    /// Of this user, or part of it.
    pub user: Option<String>,
    /// Of this host.
    pub host: Option<String>,
    /// Of this container.
    pub container: Option<String>,
    /// Begun at that moment or later, microseconds since 1970.
    pub from_us: Option<i64>,
    /// Begun at that moment or before, microseconds since 1970.
    pub to_us: Option<i64>,
}

/// What somebody wants of a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RolloutOrder {
    /// Ask nobody more until it is resumed.
    Pause,
    /// Go on.
    Resume,
    /// End it.
    Abort,
}

/// One request as it was answered, for metrics. Labels are bounded: routes come from the table.
#[derive(Debug, Clone, Copy)]
pub struct Observed {
    /// Path of the route as in the table; `other` for everything else.
    pub route: &'static str,
    /// `GET`, `POST`, `DELETE` or `other`.
    pub method: &'static str,
    /// HTTP status.
    pub status: u16,
    /// Microseconds until the answer's head.
    pub took_us: u64,
}

/// What the routes are answered by.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// The server's version.
    fn version(&self) -> &str;
    /// Who carries this bearer token (`FA1…`).
    async fn authenticate(&self, bearer: &str, from: &str) -> Result<Caller, ApiError>;
    /// A known caller was refused: goes into the audit log.
    async fn refused(&self, caller: &Caller, action: &str, object: &str, why: &ApiError);
    /// A request was answered.
    fn observe(&self, observed: Observed);
    /// Whether requests can be served; the error says why not. What monitoring may want to know besides, a
    /// line each, that anybody may read.
    async fn ready(&self) -> Result<Vec<String>, ApiError>;
    /// Prometheus text.
    async fn metrics(&self) -> String;

    /// Claims a new installation.
    async fn setup(&self, from: &str, request: SetupRequest) -> Result<NewApiToken, ApiError>;

    /// The fleet in one glance.
    async fn status(&self, caller: &Caller) -> Result<Status, ApiError>;
    /// What machines install from here.
    async fn packages(&self, caller: &Caller) -> Result<Packages, ApiError>;
    /// Versions of the agent that are here, the newest first.
    async fn agent_versions(&self, caller: &Caller) -> Result<Vec<AgentVersion>, ApiError>;
    /// Takes a file of a version.
    async fn push_version(
        &self,
        caller: &Caller,
        version: &str,
        file: &str,
        body: BoxStream<'static, std::io::Result<Bytes>>,
    ) -> Result<PushedFile, ApiError>;
    /// Begins a rollout, or says what it would be.
    async fn begin_rollout(
        &self,
        caller: &Caller,
        request: RolloutRequest,
    ) -> Result<Rollout, ApiError>;
    /// Rollouts, newest first, without their hosts.
    async fn rollouts(&self, caller: &Caller) -> Result<Vec<Rollout>, ApiError>;
    /// One rollout by id or prefix, after what is wanted of it.
    async fn rollout(
        &self,
        caller: &Caller,
        id: &str,
        order: Option<RolloutOrder>,
    ) -> Result<Rollout, ApiError>;
    /// Hosts in scope, by name.
    async fn hosts(&self, caller: &Caller) -> Result<Vec<Host>, ApiError>;
    /// One host by name, id or prefix.
    async fn host(&self, caller: &Caller, host: &str) -> Result<Host, ApiError>;
    /// Ends a host's identity.
    async fn delete_host(&self, caller: &Caller, host: &str) -> Result<Host, ApiError>;
    /// Ends a host's newest certificate; it must renew or enrol again.
    async fn revoke_certificate(&self, caller: &Caller, host: &str) -> Result<Host, ApiError>;
    /// Lets a held host go on.
    async fn approve_host(&self, caller: &Caller, host: &str) -> Result<Host, ApiError>;
    /// Containers in scope, by host and name.
    async fn containers(
        &self,
        caller: &Caller,
        query: ContainerQuery,
    ) -> Result<Vec<Container>, ApiError>;

    /// Takes a command, waits for its end up to `wait_ms`.
    async fn submit(
        &self,
        caller: &Caller,
        request: CommandRequest,
        wait_ms: u32,
    ) -> Result<Submitted, ApiError>;
    /// Commands in scope, newest first.
    async fn commands(
        &self,
        caller: &Caller,
        query: CommandQuery,
    ) -> Result<Page<Command>, ApiError>;
    /// One command by id or prefix; waits for its end up to `wait_ms`.
    async fn command(&self, caller: &Caller, id: &str, wait_ms: u32) -> Result<Command, ApiError>;
    /// Withdraws a command.
    async fn cancel(&self, caller: &Caller, id: &str) -> Result<Command, ApiError>;
    /// A command each time it changes, ending with its final state.
    async fn watch(
        &self,
        caller: &Caller,
        id: &str,
    ) -> Result<BoxStream<'static, Command>, ApiError>;
    /// Opens a command's stream.
    async fn open_stream(
        &self,
        caller: &Caller,
        id: &str,
        attach: Attach,
    ) -> Result<ClientStream, ApiError>;

    /// Asks for a terminal; `origin` is that of the page that asks, where it is one.
    async fn create_terminal(
        &self,
        caller: &Caller,
        origin: Option<&str>,
        request: TerminalRequest,
    ) -> Result<TerminalTicket, ApiError>;
    /// Asks to come back to a terminal.
    async fn terminal_ticket(
        &self,
        caller: &Caller,
        origin: Option<&str>,
        id: &str,
    ) -> Result<TerminalTicket, ApiError>;
    /// Terminals that are open.
    async fn terminals(&self, caller: &Caller) -> Result<Vec<Terminal>, ApiError>;
    /// Ends a terminal.
    async fn end_terminal(&self, caller: &Caller, id: &str) -> Result<Terminal, ApiError>;
    /// Recordings, newest first.
    async fn recordings(
        &self,
        caller: &Caller,
        query: RecordingQuery,
    ) -> Result<Vec<Recording>, ApiError>;
    /// One recording, in pieces.
    async fn recording(
        &self,
        caller: &Caller,
        id: &str,
    ) -> Result<BoxStream<'static, std::io::Result<Bytes>>, ApiError>;

    /// Events in scope, newest first.
    async fn events(&self, caller: &Caller, query: EventQuery) -> Result<Page<Event>, ApiError>;
    /// Events in scope from after `after` (absent: from now) on, oldest first.
    async fn follow_events(
        &self,
        caller: &Caller,
        host: Option<&str>,
        after: Option<i64>,
    ) -> Result<BoxStream<'static, Event>, ApiError>;
    /// Audit rows, newest first.
    async fn audit(
        &self,
        caller: &Caller,
        limit: u32,
        before: Option<i64>,
    ) -> Result<Page<AuditRow>, ApiError>;

    /// Makes a join token for hosts.
    async fn create_join_token(
        &self,
        caller: &Caller,
        request: JoinTokenRequest,
    ) -> Result<NewJoinToken, ApiError>;
    /// Join tokens, newest first.
    async fn join_tokens(&self, caller: &Caller) -> Result<Vec<JoinToken>, ApiError>;
    /// Ends a join token.
    async fn revoke_join_token(&self, caller: &Caller, id: &str) -> Result<JoinToken, ApiError>;
    /// Makes an API token.
    async fn create_api_token(
        &self,
        caller: &Caller,
        request: ApiTokenRequest,
    ) -> Result<NewApiToken, ApiError>;
    /// API tokens, newest first.
    async fn api_tokens(&self, caller: &Caller) -> Result<Vec<ApiToken>, ApiError>;
    /// Ends an API token and all that is open with it.
    async fn revoke_api_token(&self, caller: &Caller, id: &str) -> Result<ApiToken, ApiError>;

    /// Makes a region.
    async fn create_region(
        &self,
        caller: &Caller,
        request: RegionRequest,
    ) -> Result<NewRegion, ApiError>;
    /// Regions in scope, by name.
    async fn regions(&self, caller: &Caller) -> Result<Vec<Region>, ApiError>;
    /// One region.
    async fn region(&self, caller: &Caller, name: &str) -> Result<Region, ApiError>;
}
