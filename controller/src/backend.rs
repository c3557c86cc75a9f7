//! What stands behind the controller's API: the store, the fleet as told, dispatch, the feed.
//!
//! | module | endpoints |
//! |---|---|
//! | `access` | who is asking, API tokens, join tokens, audit |
//! | `hosts` | hosts and containers, within scope |
//! | `commands`, `aim`, `watch` | asking (of which host and container), waiting, withdrawing, streams, following |
//! | `regions` | regions, packages |
//! | `glance`, `events` | status, metrics; events |
//! | `convert`, `spec`, `names` | from the API's words to the wire's, checked |
//! | `show` | from rows to the API's words |
//! | `versions`, `rollouts` | versions of the agent, and upgrades of many hosts |
//! | `terminals` | tickets, opening, ending, recordings |
//! | `live` | what is open with which token |
//!
//! What a caller may not see does not exist for it: hosts out of scope or of another tenant are
//! "not found" everywhere.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use fairlead_api::backend::{
    CommandQuery, ContainerQuery, EventQuery, Observed, RecordingQuery, RolloutOrder, Submitted,
};
use fairlead_api::types::{
    AgentVersion, ApiToken, ApiTokenRequest, AuditRow, Command, CommandRequest, Container, Event,
    Host, JoinToken, JoinTokenRequest, NewApiToken, NewJoinToken, NewRegion, Packages, Page,
    PushedFile, Recording, Region, RegionRequest, Rollout, RolloutRequest, SetupRequest, Status,
    Terminal, TerminalRequest, TerminalTicket,
};
use fairlead_api::{ApiError, Attach, Backend, Caller, ClientStream};
use fairlead_daemon::clock::Clock;
use fairlead_identity::digest::sha256;
use fairlead_identity::package::PublicKey;
use fairlead_protocol::codes;
use fairlead_store::audit::AuditEntry;
use fairlead_store::{DEFAULT_TENANT, Store, StoreError};
use futures_util::stream::BoxStream;

use crate::feed::Feed;
use crate::fleet::Fleet;
use crate::metrics::Metrics;
use crate::packages::Packages as PackageFiles;
use crate::setup::Setup;
use crate::web_status::WebStatus;

pub mod dispatch;
pub mod live;
mod access;
mod again;
mod aim;
mod commands;
pub mod convert;
mod events;
mod glance;
mod hosts;
mod names;
mod regions;
mod rollouts;
mod show;
mod spec;
pub mod terminals;
mod versions;
mod watch;

use dispatch::Dispatching;
use live::Live;
use terminals::Desk;

/// Finished commands older than this are forgotten; the audit log keeps that they were.
const COMMANDS_KEPT_US: i64 = 90 * 24 * 3600 * 1_000_000;
/// Events older than this are forgotten.
const EVENTS_KEPT_US: i64 = 30 * 24 * 3600 * 1_000_000;
/// More events than this are not kept.
const EVENTS_KEPT_MAX: u32 = 1_000_000;
/// Rows that one round of housekeeping removes or writes at most, so that no write waits long.
const HOUSEKEEPING_ROWS: u32 = 1000;

/// What the backend works with.
pub struct Parts {
    /// The store.
    pub store: Store,
    /// The fleet as told.
    pub fleet: Arc<Fleet>,
    /// Where commands go.
    pub dispatch: Arc<dyn Dispatching>,
    /// The event feed.
    pub feed: Arc<Feed>,
    /// What is open with which token.
    pub live: Arc<Live>,
    /// Terminals.
    pub desk: Desk,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// The first admin's door.
    pub setup: Arc<Setup>,
    /// Time.
    pub clock: Clock,
    /// SHA-256 of the root certificate, for join tokens.
    pub ca_hash: [u8; 32],
    /// Where access servers dial this controller (host:port).
    pub uplink_addresses: Vec<String>,
    /// What machines install from here.
    pub packages: Arc<PackageFiles>,
    /// Keys whose versions of the agent may be pushed here.
    pub trusted: Vec<PublicKey>,
    /// The https address that people use.
    pub public_url: String,
    /// What https shows of itself.
    pub web: Arc<WebStatus>,
    /// This program's version.
    pub version: String,
}

/// The controller's side of the API.
pub struct ControllerBackend {
    parts: Parts,
    /// Held by whoever reads a rollout in order to write it.
    steering: tokio::sync::Mutex<()>,
    /// When this process began, by its clock.
    began_us: i64,
}

/// A store's error as the API tells it; its cause goes to the log.
pub(crate) fn store_error(error: StoreError) -> ApiError {
    tracing::error!(error = %error, "the store did not answer");
    match error {
        StoreError::Unavailable { .. } | StoreError::Closed => ApiError::new(
            codes::STORAGE_UNAVAILABLE,
            "the controller cannot write to its disk; nothing was accepted",
        )
        .hint("free space on the controller's data directory, then try again")
        .retry_after(5),
        StoreError::Foreign { .. } | StoreError::Statement(_) | StoreError::Gap { .. } => {
            ApiError::new(codes::INTERNAL, "the controller's store failed")
                .hint("look the request id up in the controller's log")
        }
    }
}

/// One row for the audit log, without time and tenant.
#[derive(Debug, Clone)]
struct Note {
    action: String,
    object: String,
    outcome: &'static str,
    detail: String,
}

impl Note {
    fn ok(action: &str, object: impl Into<String>) -> Self {
        Self {
            action: action.to_owned(),
            object: object.into(),
            outcome: "ok",
            detail: String::new(),
        }
    }

    fn refused(action: &str, object: impl Into<String>, error: &ApiError) -> Self {
        let outcome = if error.code == codes::PERMISSION_DENIED {
            "denied"
        } else {
            "failed"
        };
        Self {
            action: action.to_owned(),
            object: object.into(),
            outcome,
            detail: format!("{}: {}", error.code, error.message),
        }
    }

    fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = detail.into();
        self
    }
}

/// Audit texts are cut here, whatever their source.
fn cut(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(400).collect()
}

impl ControllerBackend {
    /// A backend over these parts.
    #[must_use]
    pub fn new(parts: Parts) -> Arc<Self> {
        Arc::new(Self {
            began_us: parts.clock.now_us(),
            steering: tokio::sync::Mutex::default(),
            parts,
        })
    }

    fn now_us(&self) -> i64 {
        self.parts.clock.now_us()
    }

    async fn read<T, F>(&self, work: F) -> Result<T, ApiError>
    where
        T: Send + 'static,
        F: FnOnce(&fairlead_store::Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        self.parts.store.read(work).await.map_err(store_error)
    }

    /// A few rows by their key, without handing the work to another thread.
    fn look<T, F>(&self, work: F) -> Result<T, ApiError>
    where
        F: FnOnce(&fairlead_store::Tx<'_>) -> Result<T, StoreError>,
    {
        self.parts.store.look(work).map_err(store_error)
    }

    async fn write<T, F>(&self, work: F) -> Result<T, ApiError>
    where
        T: Send + 'static,
        F: FnOnce(&fairlead_store::Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        self.parts.store.write(work).await.map_err(store_error)
    }

    fn entry(&self, caller: &Caller, note: &Note) -> AuditEntry {
        AuditEntry {
            at_us: self.now_us(),
            tenant: caller.tenant.clone(),
            actor: cut(&caller.actor()),
            source: cut(&caller.from),
            action: cut(&note.action),
            object: cut(&note.object),
            outcome: note.outcome.to_owned(),
            detail: cut(&note.detail),
        }
    }

    /// Writes an audit row.
    async fn audited(&self, caller: &Caller, note: Note) -> Result<(), ApiError> {
        let entry = self.entry(caller, &note);
        self.write(move |tx| tx.append_audit(&entry, sha256).map(|_| ()))
            .await
    }

    /// Writes an audit row of a refusal; the caller gets its refusal even when that fails.
    async fn audit_refusal(&self, caller: &Caller, note: Note) {
        self.parts.metrics.denied();
        if let Err(error) = self.audited(caller, note).await {
            tracing::error!(error = %error, "a refusal could not be audited");
        }
    }

    /// Passes the outcome of a change on; one that failed goes into the audit log.
    async fn judged<T>(
        &self,
        caller: &Caller,
        action: &str,
        object: &str,
        done: Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        if let Err(error) = &done {
            // Of what may be a whole token, put where an id belongs, only the public part.
            let object = object.split('.').next().unwrap_or_default();
            self.audit_refusal(caller, Note::refused(action, object, error))
                .await;
        }
        done
    }

    /// What is to be done every few seconds: closes what is open with expired tokens, gives up waiting for whom a
    /// restart should have brought back, writes down when tokens were last used and which pictures changed,
    /// forgets old events.
    ///
    /// # Errors
    /// When the store cannot be written; the next round tries again.
    pub async fn housekeep(&self) -> Result<(), StoreError> {
        let now_us = self.now_us();
        self.parts.live.end_expired(now_us);
        for region in self.parts.fleet.give_up_waiting(now_us) {
            let detail = "not back since its access server or the controller was restarted";
            let feed = &self.parts.feed;
            feed.record(DEFAULT_TENANT, None, &region, "region.offline", detail)
                .await?;
        }
        self.end_forbidden_there();
        self.tidy_recordings().await;
        let used = self.parts.live.take_used();
        let pictures = self.parts.fleet.take_unsaved(HOUSEKEEPING_ROWS as usize);
        let is_time_known = self.parts.fleet.agrees_on_the_time();
        self.parts
            .store
            .write(move |tx| {
                for (id, at_us) in &used {
                    tx.touch_api_token(id, *at_us)?;
                }
                for (id, picture) in &pictures {
                    tx.set_picture(*id, picture)?;
                }
                if is_time_known {
                    tx.forget_commands(now_us - COMMANDS_KEPT_US, HOUSEKEEPING_ROWS)?;
                    tx.forget_events(now_us - EVENTS_KEPT_US, HOUSEKEEPING_ROWS)?;
                }
                tx.forget_events_beyond(EVENTS_KEPT_MAX, HOUSEKEEPING_ROWS)?;
                Ok(())
            })
            .await
    }
}

#[async_trait]
impl Backend for ControllerBackend {
    fn version(&self) -> &str {
        &self.parts.version
    }

    async fn authenticate(&self, bearer: &str, from: &str) -> Result<Caller, ApiError> {
        self.who_is(bearer, from).await
    }

    async fn refused(&self, caller: &Caller, action: &str, object: &str, why: &ApiError) {
        self.audit_refusal(caller, Note::refused(action, object, why))
            .await;
    }

    fn observe(&self, observed: Observed) {
        self.parts.metrics.request(observed);
    }

    async fn ready(&self) -> Result<Vec<String>, ApiError> {
        self.read(|tx| tx.meta("ready").map(|_| ())).await?;
        match self.parts.store.trouble() {
            Some(trouble) => Err(store_error(trouble)),
            None => Ok(vec![self.parts.web.line()]),
        }
    }

    async fn metrics(&self) -> String {
        self.prometheus().await
    }

    async fn setup(&self, from: &str, request: SetupRequest) -> Result<NewApiToken, ApiError> {
        self.claim(from, request).await
    }

    async fn status(&self, caller: &Caller) -> Result<Status, ApiError> {
        self.glance(caller).await
    }

    async fn hosts(&self, caller: &Caller) -> Result<Vec<Host>, ApiError> {
        self.list_hosts(caller).await
    }

    async fn host(&self, caller: &Caller, host: &str) -> Result<Host, ApiError> {
        let row = self.one_host(caller, host).await?;
        Ok(self.parts.fleet.host(&row))
    }

    async fn delete_host(&self, caller: &Caller, host: &str) -> Result<Host, ApiError> {
        let done = self.end_host(caller, host).await;
        self.judged(caller, "host.revoke", host, done).await
    }

    async fn revoke_certificate(&self, caller: &Caller, host: &str) -> Result<Host, ApiError> {
        let done = self.end_certificate(caller, host).await;
        self.judged(caller, "host.revoke-certificate", host, done)
            .await
    }

    async fn packages(&self, caller: &Caller) -> Result<Packages, ApiError> {
        Ok(self.packages_shown(caller))
    }

    async fn agent_versions(&self, caller: &Caller) -> Result<Vec<AgentVersion>, ApiError> {
        self.list_versions(caller).await
    }

    async fn push_version(
        &self,
        caller: &Caller,
        version: &str,
        file: &str,
        body: BoxStream<'static, std::io::Result<Bytes>>,
    ) -> Result<PushedFile, ApiError> {
        let done = self.take_version(caller, version, file, body).await;
        self.judged(caller, "agent.push", version, done).await
    }

    async fn begin_rollout(
        &self,
        caller: &Caller,
        request: RolloutRequest,
    ) -> Result<Rollout, ApiError> {
        let version = request.version.clone();
        let done = self.plan_rollout(caller, request).await;
        self.judged(caller, "agent.upgrade", &version, done).await
    }

    async fn rollouts(&self, caller: &Caller) -> Result<Vec<Rollout>, ApiError> {
        self.list_rollouts(caller).await
    }

    async fn rollout(
        &self,
        caller: &Caller,
        id: &str,
        order: Option<RolloutOrder>,
    ) -> Result<Rollout, ApiError> {
        let done = self.steer_rollout(caller, id, order).await;
        match order {
            Some(_) => self.judged(caller, "agent.upgrade", id, done).await,
            None => done,
        }
    }

    async fn approve_host(&self, caller: &Caller, host: &str) -> Result<Host, ApiError> {
        let done = self.release_host(caller, host).await;
        self.judged(caller, "host.approve", host, done).await
    }

    async fn containers(
        &self,
        caller: &Caller,
        query: ContainerQuery,
    ) -> Result<Vec<Container>, ApiError> {
        self.list_containers(caller, query).await
    }

    async fn submit(
        &self,
        caller: &Caller,
        request: CommandRequest,
        wait_ms: u32,
    ) -> Result<Submitted, ApiError> {
        self.take_command(caller, request, wait_ms).await
    }

    async fn commands(
        &self,
        caller: &Caller,
        query: CommandQuery,
    ) -> Result<Page<Command>, ApiError> {
        self.list_commands(caller, query).await
    }

    async fn command(&self, caller: &Caller, id: &str, wait_ms: u32) -> Result<Command, ApiError> {
        self.show_command(caller, id, wait_ms).await
    }

    async fn cancel(&self, caller: &Caller, id: &str) -> Result<Command, ApiError> {
        let done = self.withdraw(caller, id).await;
        self.judged(caller, "command.cancel", id, done).await
    }

    async fn watch(
        &self,
        caller: &Caller,
        id: &str,
    ) -> Result<BoxStream<'static, Command>, ApiError> {
        self.watch_command(caller, id).await
    }

    async fn open_stream(
        &self,
        caller: &Caller,
        id: &str,
        attach: Attach,
    ) -> Result<ClientStream, ApiError> {
        self.stream_of(caller, id, attach).await
    }

    async fn create_terminal(
        &self,
        caller: &Caller,
        origin: Option<&str>,
        request: TerminalRequest,
    ) -> Result<TerminalTicket, ApiError> {
        self.promise_terminal(caller, origin, request).await
    }

    async fn terminal_ticket(
        &self,
        caller: &Caller,
        origin: Option<&str>,
        id: &str,
    ) -> Result<TerminalTicket, ApiError> {
        self.return_to_terminal(caller, origin, id).await
    }

    async fn terminals(&self, caller: &Caller) -> Result<Vec<Terminal>, ApiError> {
        self.open_terminals(caller).await
    }

    async fn end_terminal(&self, caller: &Caller, id: &str) -> Result<Terminal, ApiError> {
        self.close_terminal(caller, id).await
    }

    async fn recordings(
        &self,
        caller: &Caller,
        query: RecordingQuery,
    ) -> Result<Vec<Recording>, ApiError> {
        self.list_recordings(caller, query).await
    }

    async fn recording(
        &self,
        caller: &Caller,
        id: &str,
    ) -> Result<BoxStream<'static, std::io::Result<Bytes>>, ApiError> {
        self.read_recording(caller, id).await
    }

    async fn events(&self, caller: &Caller, query: EventQuery) -> Result<Page<Event>, ApiError> {
        self.list_events(caller, query).await
    }

    async fn follow_events(
        &self,
        caller: &Caller,
        host: Option<&str>,
        after: Option<i64>,
    ) -> Result<BoxStream<'static, Event>, ApiError> {
        self.follow(caller, host, after).await
    }

    async fn audit(
        &self,
        caller: &Caller,
        limit: u32,
        before: Option<i64>,
    ) -> Result<Page<AuditRow>, ApiError> {
        self.audit_page(caller, limit, before).await
    }

    async fn create_join_token(
        &self,
        caller: &Caller,
        request: JoinTokenRequest,
    ) -> Result<NewJoinToken, ApiError> {
        let done = self.make_join_token(caller, request).await;
        self.judged(caller, "join-token.create", "", done).await
    }

    async fn join_tokens(&self, caller: &Caller) -> Result<Vec<JoinToken>, ApiError> {
        self.list_join_tokens(caller).await
    }

    async fn revoke_join_token(&self, caller: &Caller, id: &str) -> Result<JoinToken, ApiError> {
        let done = self.end_join_token(caller, id).await;
        self.judged(caller, "join-token.revoke", id, done).await
    }

    async fn create_api_token(
        &self,
        caller: &Caller,
        request: ApiTokenRequest,
    ) -> Result<NewApiToken, ApiError> {
        let done = self.make_api_token(caller, request).await;
        self.judged(caller, "api-token.create", "", done).await
    }

    async fn api_tokens(&self, caller: &Caller) -> Result<Vec<ApiToken>, ApiError> {
        self.list_api_tokens(caller).await
    }

    async fn revoke_api_token(&self, caller: &Caller, id: &str) -> Result<ApiToken, ApiError> {
        let done = self.end_api_token(caller, id).await;
        self.judged(caller, "api-token.revoke", id, done).await
    }

    async fn create_region(
        &self,
        caller: &Caller,
        request: RegionRequest,
    ) -> Result<NewRegion, ApiError> {
        let done = self.make_region(caller, request).await;
        self.judged(caller, "region.create", "", done).await
    }

    async fn regions(&self, caller: &Caller) -> Result<Vec<Region>, ApiError> {
        self.list_regions(caller).await
    }

    async fn region(&self, caller: &Caller, name: &str) -> Result<Region, ApiError> {
        self.one_region(caller, name).await
    }
}

#[cfg(test)]
mod tests;
