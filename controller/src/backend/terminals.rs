//! Terminals: who may have one, tickets for them, opening, ending, recordings.
//!
//! A ticket is promised after all has been asked: permission, scope, host, container. When it comes back on
//! the socket all of it is asked again, and only then is the command signed that the host verifies.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use fairlead_api::backend::RecordingQuery;
use fairlead_api::input::{invalid, plain};
use fairlead_api::types::{
    Action, Permission, Recording, Terminal, TerminalRequest, TerminalTicket, time,
};
use fairlead_api::{ApiError, Caller};
use fairlead_identity::digest::sha256;
use fairlead_identity::random;
use fairlead_identity::signing::Signer;
use fairlead_identity::ticket::{self, TicketError};
use fairlead_protocol::command::Kind;
use fairlead_protocol::{CommandId, Exec, HostId, Message, Precondition, State, Ticket, codes};
use fairlead_store::audit::AuditEntry;
use fairlead_store::hosts::HostRow;
use fairlead_webssh::message::{End, is_size};
use fairlead_webssh::recording::file::{Listed, Recordings};
use fairlead_webssh::session::Shared;
use fairlead_webssh::{Ended, Info, Opened, Opening, Origins, Pipe, Refused, Terminals};
use futures_util::stream::{self, BoxStream, StreamExt};
use tokio::io::AsyncReadExt;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::aim::aim;
use super::dispatch::NewCommand;
use super::hosts::is_visible;
use super::{ControllerBackend, Note, convert, cut};
use crate::fleet::Resolved;

/// Tickets that were given out and have not come back.
const PROMISED_MAX: usize = 4096;
/// The command of a terminal is not begun later than this after its ticket came back.
const BEGIN_WITHIN: Duration = Duration::from_secs(20);
/// How long the end of a command whose stream broke is waited for.
const OUTCOME_WITHIN: Duration = Duration::from_secs(3);
/// Recordings are kept for so long.
const RECORDINGS_KEPT_S: i64 = 90 * 24 * 3600;
/// How often old ones are looked for.
const TIDY_EVERY_US: i64 = 3600 * 1_000_000;
/// Pieces in which a recording is read.
const READ_BYTES: usize = 64 * 1024;

/// What terminals need of the controller.
pub struct Desk {
    /// The signer of tickets, as it is now.
    pub signer: Box<dyn Fn() -> Arc<Signer> + Send + Sync>,
    /// Which pages may have terminals.
    pub origins: Origins,
    /// Where recordings lie.
    pub recordings: Recordings,
    promised: Mutex<HashMap<CommandId, Promised>>,
    terminals: OnceLock<Weak<Terminals>>,
    tidied_us: AtomicI64,
}

/// A terminal for which a ticket was given out.
struct Promised {
    caller: Caller,
    host: HostRow,
    exec: Exec,
    container_id: String,
    until_us: i64,
}

impl Desk {
    /// No terminals yet.
    pub fn new(
        signer: impl Fn() -> Arc<Signer> + Send + Sync + 'static,
        origins: Origins,
        recordings: Recordings,
    ) -> Self {
        Self {
            signer: Box::new(signer),
            origins,
            recordings,
            promised: Mutex::default(),
            terminals: OnceLock::new(),
            tidied_us: AtomicI64::new(0),
        }
    }

    /// Makes the terminals known, once.
    pub fn serve(&self, terminals: &Arc<Terminals>) {
        // A second call would be a defect; the first holds.
        let _ = self.terminals.set(Arc::downgrade(terminals));
    }

    fn terminals(&self) -> Result<Arc<Terminals>, ApiError> {
        self.terminals
            .get()
            .and_then(Weak::upgrade)
            .ok_or_else(|| ApiError::new(codes::BUSY, "the server is starting or going"))
    }

    fn promised(&self) -> MutexGuard<'_, HashMap<CommandId, Promised>> {
        self.promised.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The origin that a ticket is to be good for.
    fn origin(&self, asked: Option<&str>) -> Result<String, ApiError> {
        let denied = || {
            ApiError::new(
                codes::PERMISSION_DENIED,
                "terminals are opened by this server's own pages only",
            )
            .hint("open the console at the controller's public address")
        };
        match asked {
            // A program is no page: it says the origin that it is told.
            None => self.origins.first().map(str::to_owned).ok_or_else(denied),
            Some(asked) => {
                let mut headers = axum::http::HeaderMap::new();
                let value = axum::http::HeaderValue::from_str(asked).map_err(|_| denied())?;
                headers.insert(axum::http::header::ORIGIN, value);
                self.origins.of(&headers).ok_or_else(denied)
            }
        }
    }
}

fn api_error(refused: Refused) -> ApiError {
    ApiError::new(codes::known(&refused.code), refused.message)
}

fn refused(error: &ApiError) -> Refused {
    Refused::new(&error.code, error.message.clone())
}

fn no_terminal(id: &str) -> ApiError {
    ApiError::new(
        codes::TERMINAL_NOT_FOUND,
        format!("there is no open terminal {:?}", plain(id)),
    )
    .hint("GET /api/v1/terminals lists those that are open")
}

impl ControllerBackend {
    /// The terminals of this controller; what is asked of them goes there from now on.
    pub fn terminals_of(self: &Arc<Self>, shutdown: CancellationToken) -> Arc<Terminals> {
        let clock = self.parts.clock.clone();
        let desk = &self.parts.desk;
        let terminals = Terminals::new(fairlead_webssh::Parts {
            opening: Arc::<Self>::clone(self),
            origins: desk.origins.clone(),
            recordings: desk.recordings.clone(),
            now: Arc::new(move || clock.now_us()),
            shutdown,
        });
        desk.serve(&terminals);
        terminals
    }

    pub(super) async fn promise_terminal(
        &self,
        caller: &Caller,
        origin: Option<&str>,
        request: TerminalRequest,
    ) -> Result<TerminalTicket, ApiError> {
        let object = plain(&request.container);
        let made = self.promise(caller, origin, request).await;
        let (ticket, note) = self.judged(caller, "terminal.ask", &object, made).await?;
        self.audited(caller, note).await?;
        Ok(ticket)
    }

    async fn promise(
        &self,
        caller: &Caller,
        origin: Option<&str>,
        request: TerminalRequest,
    ) -> Result<(TerminalTicket, Note), ApiError> {
        let desk = &self.parts.desk;
        let origin = desk.origin(origin)?;
        if !is_size(request.columns, request.rows) {
            return Err(invalid("columns and rows must be 1 to 1000"));
        }
        if request.privileged {
            caller.require(Permission::Admin)?;
        }
        let (host, exec, container_id) = self.aimed(caller, request).await?;
        let host_id = host.id.ok_or_else(|| invalid("the host has no id"))?;
        let shown = self.parts.fleet.host(&host);
        if !matches!(shown.state.as_str(), "online" | "suspect") {
            return Err(ApiError::new(
                codes::HOST_OFFLINE,
                format!("host {} is {}", host.name, shown.state),
            )
            .hint("fairlead host show says since when")
            .retry_after(5));
        }
        desk.terminals()?
            .room(host_id, &caller.token_id)
            .map_err(api_error)?;
        let session = CommandId::from_bytes(random::bytes());
        let now_us = self.now_us();
        let ticket = self.ticket(caller, session, host_id, &container_id, &exec.user, origin);
        let note = Note::ok("terminal.ask", format!("{}/{}", host.name, exec.container))
            .detail(format!("terminal {session}"));
        let answer = answer(&ticket, &*(desk.signer)(), &host.name, &exec.container);
        let mut promised = desk.promised();
        promised.retain(|_, promise| promise.until_us >= now_us);
        if promised.len() >= PROMISED_MAX {
            return Err(ApiError::new(codes::BUSY, "too many tickets are out").retry_after(5));
        }
        let promise = Promised {
            caller: caller.clone(),
            host,
            exec,
            container_id,
            until_us: ticket.not_after_us,
        };
        promised.insert(session, promise);
        Ok((answer, note))
    }

    /// Host, exec and the container's id, of what the caller sees.
    async fn aimed(
        &self,
        caller: &Caller,
        request: TerminalRequest,
    ) -> Result<(HostRow, Exec, String), ApiError> {
        let shell = request.command.is_empty();
        let action = Action::Exec {
            container: request.container.clone(),
            // Checked like any other; the host chooses the shell where none is named.
            command: if shell {
                vec!["sh".to_owned()]
            } else {
                request.command
            },
            env: request.env,
            user: request.user,
            workdir: request.workdir,
            stdin: true,
            privileged: request.privileged,
        };
        let host = request.host.as_deref();
        let hosts = self
            .meant_hosts(caller, host, Some(&request.container))
            .await?;
        let aimed = aim(&self.parts.fleet, hosts, host, action)?;
        let Kind::Exec(mut exec) = convert::kind(&aimed.action)? else {
            return Err(invalid("not a terminal"));
        };
        exec.tty = true;
        exec.shell = shell;
        if shell {
            exec.command.clear();
        }
        exec.columns = request.columns.into();
        exec.rows = request.rows.into();
        let candidates = std::slice::from_ref(&aimed.host);
        match self
            .parts
            .fleet
            .resolve_container(candidates, &exec.container)
        {
            Resolved::Found { id, .. } => Ok((aimed.host, exec, id)),
            Resolved::NotFound | Resolved::Ambiguous(_) => Err(ApiError::new(
                codes::CONTAINER_NOT_FOUND,
                format!(
                    "host {} has told of no container {:?}",
                    aimed.host.name, exec.container
                ),
            )
            .hint("fairlead ps -a; one that was just made is known in a moment")),
        }
    }

    fn ticket(
        &self,
        caller: &Caller,
        session: CommandId,
        host: HostId,
        container_id: &str,
        exec_user: &str,
        origin: String,
    ) -> Ticket {
        let life_us = i64::try_from(ticket::LIFE.as_micros()).unwrap_or(0);
        Ticket {
            nonce: random::bytes::<{ ticket::NONCE_BYTES }>().to_vec().into(),
            session: session.to_wire(),
            token_id: caller.token_id.clone(),
            tenant: caller.tenant.clone(),
            host: host.to_wire(),
            container_id: container_id.to_owned(),
            exec_user: exec_user.to_owned(),
            origin,
            not_after_us: self.now_us().saturating_add(life_us),
        }
    }

    /// An open terminal that this caller may see: its own, or as admin any in scope.
    async fn seen(&self, caller: &Caller, id: &str) -> Result<Arc<Shared>, ApiError> {
        let session = id.parse::<CommandId>().map_err(|_| no_terminal(id))?;
        let found = self.parts.desk.terminals()?.find(session);
        let found = found.ok_or_else(|| no_terminal(id))?;
        if self.sees_terminal(caller, &found.info)? {
            Ok(found)
        } else {
            Err(no_terminal(id))
        }
    }

    fn sees_terminal(&self, caller: &Caller, info: &Info) -> Result<bool, ApiError> {
        let own = info.token_id == caller.token_id || caller.may(Permission::Admin);
        let host = self.look(|tx| tx.host(info.host_id))?;
        Ok(own && host.is_some_and(|host| is_visible(caller, &host)))
    }

    pub(super) async fn return_to_terminal(
        &self,
        caller: &Caller,
        origin: Option<&str>,
        id: &str,
    ) -> Result<TerminalTicket, ApiError> {
        let made = self.another_ticket(caller, origin, id).await;
        self.judged(caller, "terminal.return", id, made).await
    }

    async fn another_ticket(
        &self,
        caller: &Caller,
        origin: Option<&str>,
        id: &str,
    ) -> Result<TerminalTicket, ApiError> {
        let desk = &self.parts.desk;
        let origin = desk.origin(origin)?;
        let found = self.seen(caller, id).await?;
        let info = &found.info;
        // An admin may end another's terminal, and not sit down in it: a session's id is no capability.
        if info.token_id != caller.token_id {
            return Err(ApiError::new(
                codes::PERMISSION_DENIED,
                "this terminal was opened with another token",
            ));
        }
        let (session, host) = (info.session, info.host_id);
        let ticket = self.ticket(
            caller,
            session,
            host,
            &info.container_id,
            &info.exec_user,
            origin,
        );
        Ok(answer(
            &ticket,
            &*(desk.signer)(),
            &info.host,
            &info.container,
        ))
    }

    pub(super) async fn open_terminals(&self, caller: &Caller) -> Result<Vec<Terminal>, ApiError> {
        let mut shown = Vec::new();
        for found in self.parts.desk.terminals()?.list() {
            if self.sees_terminal(caller, &found.info)? {
                shown.push(terminal(&found));
            }
        }
        shown.sort_unstable_by_key(|terminal| terminal.started_at);
        Ok(shown)
    }

    pub(super) async fn close_terminal(
        &self,
        caller: &Caller,
        id: &str,
    ) -> Result<Terminal, ApiError> {
        let found = self.seen(caller, id).await;
        let found = self.judged(caller, "terminal.kick", id, found).await?;
        let object = format!("{}/{}", found.info.host, found.info.container);
        let note = Note::ok("terminal.kick", object).detail(format!("terminal {id}"));
        self.audited(caller, note).await?;
        self.parts.desk.terminals()?.end(found.info.session);
        Ok(terminal(&found))
    }

    pub(super) async fn list_recordings(
        &self,
        caller: &Caller,
        query: RecordingQuery,
    ) -> Result<Vec<Recording>, ApiError> {
        let listed = self
            .parts
            .desk
            .recordings
            .list()
            .await
            .map_err(unreadable)?;
        let mut shown = Vec::new();
        for Listed { header, bytes } in listed {
            let about = &header.fairlead;
            let is = |wanted: &Option<String>, has: &str| {
                wanted.as_deref().is_none_or(|wanted| wanted == has)
            };
            let by = query
                .user
                .as_deref()
                .is_none_or(|user| about.user.contains(user));
            if by
                && is(&query.host, &about.host)
                && is(&query.container, &about.container)
                && self.sees_recording(caller, &about.tenant, &about.host_id)?
            {
                shown.push(Recording {
                    session: about.session.clone(),
                    user: about.user.clone(),
                    host: about.host.clone(),
                    container: about.container.clone(),
                    container_id: about.container_id.clone(),
                    started_at: time(header.timestamp.saturating_mul(1_000_000)),
                    bytes,
                });
            }
        }
        Ok(shown)
    }

    fn sees_recording(
        &self,
        caller: &Caller,
        tenant: &str,
        host_id: &str,
    ) -> Result<bool, ApiError> {
        let Ok(id) = host_id.parse::<HostId>() else {
            return Ok(false);
        };
        let host = self.look(|tx| tx.host(id))?;
        Ok(tenant == caller.tenant && host.is_some_and(|host| is_visible(caller, &host)))
    }

    pub(super) async fn read_recording(
        &self,
        caller: &Caller,
        id: &str,
    ) -> Result<BoxStream<'static, std::io::Result<Bytes>>, ApiError> {
        let missing = || {
            ApiError::new(codes::TERMINAL_NOT_FOUND, "there is no such recording")
                .hint("GET /api/v1/recordings lists them")
        };
        let session = id.parse::<CommandId>().map_err(|_| missing())?;
        let recordings = &self.parts.desk.recordings;
        let header = recordings.header(session).await.map_err(unreadable)?;
        let about = header.ok_or_else(missing)?.fairlead;
        if !self.sees_recording(caller, &about.tenant, &about.host_id)? {
            return Err(missing());
        }
        let file = recordings.read(session).await.map_err(unreadable)?;
        let file = tokio::fs::File::from_std(file.ok_or_else(missing)?);
        let object = format!("{}/{}", about.host, about.container);
        let note = Note::ok("recording.read", object).detail(format!("terminal {session}"));
        self.audited(caller, note).await?;
        let pieces = stream::unfold(Some(file), |file| async move {
            let mut file = file?;
            let mut piece = vec![0; READ_BYTES];
            match file.read(&mut piece).await {
                Ok(0) => None,
                Ok(read) => {
                    piece.truncate(read);
                    Some((Ok(Bytes::from(piece)), Some(file)))
                }
                Err(error) => Some((Err(error), None)),
            }
        });
        Ok(pieces.boxed())
    }

    /// Forgets old recordings, now and then.
    pub(super) async fn tidy_recordings(&self) {
        let desk = &self.parts.desk;
        let now_us = self.now_us();
        if now_us - desk.tidied_us.load(Ordering::Relaxed) < TIDY_EVERY_US {
            return;
        }
        desk.tidied_us.store(now_us, Ordering::Relaxed);
        let before_s = now_us.div_euclid(1_000_000) - RECORDINGS_KEPT_S;
        if let Err(error) = desk.recordings.forget_before(before_s).await {
            tracing::error!(%error, "old recordings could not be removed");
        }
    }

    /// All is asked again, and the command signed.
    async fn begin_terminal(&self, ticket: &Ticket) -> Result<Opened, ApiError> {
        let gone = || ApiError::new(codes::TERMINAL_NOT_FOUND, "the terminal has ended");
        let session = CommandId::from_wire(&ticket.session).map_err(|_| gone())?;
        let promise = self
            .parts
            .desk
            .promised()
            .remove(&session)
            .ok_or_else(gone)?;
        let Promised {
            caller,
            host,
            exec,
            container_id,
            ..
        } = promise;
        let host_id = host.id.ok_or_else(gone)?;
        let same = ticket.token_id == caller.token_id
            && ticket.tenant == caller.tenant
            && ticket.host[..] == host_id.as_bytes()[..]
            && ticket.container_id == container_id
            && ticket.exec_user == exec.user;
        let host = self.look(|tx| tx.host(host_id))?.ok_or_else(gone)?;
        if !same || caller.ended.is_cancelled() || host.revoked_us != 0 {
            return Err(ApiError::new(
                codes::TICKET_REFUSED,
                "the ticket opens nothing any more",
            ));
        }
        caller.require(Permission::Shell)?;
        if !is_visible(&caller, &host) {
            return Err(ApiError::new(
                codes::PERMISSION_DENIED,
                "the host is out of scope",
            ));
        }
        let note = Note::ok("terminal.open", format!("{}/{}", host.name, exec.container))
            .detail(words_of(session, &exec));
        let info = Info {
            session,
            user: caller.actor(),
            token_id: caller.token_id.clone(),
            tenant: caller.tenant.clone(),
            region: host.region.clone(),
            host_id,
            host: host.name.clone(),
            container: exec.container.clone(),
            container_id: container_id.clone(),
            exec_user: exec.user.clone(),
            size: (
                u16::try_from(exec.columns).unwrap_or(80),
                u16::try_from(exec.rows).unwrap_or(25),
            ),
        };
        let new = NewCommand {
            id: session,
            audit: self.entry(&caller, &note),
            host,
            kind: Kind::Exec(exec),
            issuer: caller.actor(),
            token_id: caller.token_id.clone(),
            deadline: BEGIN_WITHIN,
            timeout_ms: 0,
            precondition: Some(Precondition {
                container_id,
                ..Precondition::default()
            }),
            attach: true,
            request_hash: sha256(&ticket.encode_to_vec()),
            accepted_us: self.now_us(),
        };
        let (row, _) = self.parts.dispatch.submit(new).await?;
        let stream = match self.parts.dispatch.open_stream(&row).await {
            Ok(stream) => stream,
            Err(error) => {
                self.withdraw_terminal(session).await;
                return Err(error);
            }
        };
        Ok(Opened {
            info,
            pipe: Pipe {
                to_agent: stream.to_agent,
                from_agent: stream.from_agent,
                cut: stream.cut,
            },
            token_ended: caller.ended,
        })
    }

    /// A command whose terminal nobody has any more is not begun.
    async fn withdraw_terminal(&self, session: CommandId) {
        let Ok(Some(row)) = self.look(|tx| tx.command(session)) else {
            return;
        };
        if row.state.is_final() {
            return;
        }
        let audit = self.own_entry(
            &row.tenant,
            "terminal.withdraw",
            "",
            format!("terminal {session}"),
        );
        if let Err(error) = self
            .parts
            .dispatch
            .cancel(&row, "the terminal", audit)
            .await
        {
            tracing::warn!(%session, error = error.message, "a terminal's command was not withdrawn");
        }
    }

    fn own_entry(&self, tenant: &str, action: &str, object: &str, detail: String) -> AuditEntry {
        AuditEntry {
            at_us: self.now_us(),
            tenant: tenant.to_owned(),
            actor: "controller".to_owned(),
            source: String::new(),
            action: action.to_owned(),
            object: cut(object),
            outcome: "ok".to_owned(),
            detail: cut(&detail),
        }
    }
}

fn words_of(session: CommandId, exec: &Exec) -> String {
    let program = if exec.shell {
        "shell".to_owned()
    } else {
        exec.command.join(" ")
    };
    let user = if exec.user.is_empty() {
        "its own user"
    } else {
        &exec.user
    };
    let reach = if exec.privileged {
        "; reaches out: privileged"
    } else {
        ""
    };
    format!("command {session}{reach}: {program}, as {user}")
}

fn unreadable(error: std::io::Error) -> ApiError {
    tracing::error!(%error, "recordings cannot be read");
    ApiError::new(codes::STORAGE_UNAVAILABLE, "recordings cannot be read now").retry_after(5)
}

fn answer(ticket: &Ticket, signer: &Signer, host: &str, container: &str) -> TerminalTicket {
    TerminalTicket {
        session: CommandId::from_wire(&ticket.session)
            .map(|id| id.to_string())
            .unwrap_or_default(),
        ticket: ticket::write(signer, ticket),
        socket: fairlead_webssh::socket::PATH.to_owned(),
        origin: ticket.origin.clone(),
        expires_at: time(ticket.not_after_us),
        host: host.to_owned(),
        container: container.to_owned(),
    }
}

fn terminal(shared: &Shared) -> Terminal {
    let info = &shared.info;
    Terminal {
        session: info.session.to_string(),
        user: info.user.clone(),
        host: info.host.clone(),
        container: info.container.clone(),
        container_id: info.container_id.clone(),
        exec_user: info.exec_user.clone(),
        started_at: time(shared.started_us),
        typed_at: time(shared.typed_us.load(Ordering::Relaxed)),
        has_page: shared.has_page.load(Ordering::Relaxed),
        output_bytes: shared.output.load(Ordering::Relaxed),
        input_bytes: shared.input.load(Ordering::Relaxed),
    }
}

#[async_trait]
impl Opening for ControllerBackend {
    fn read(&self, text: &str) -> Result<Ticket, TicketError> {
        ticket::read(&(self.parts.desk.signer)(), text, self.now_us())
    }

    async fn open(&self, ticket: &Ticket, _from: &str) -> Result<Opened, Refused> {
        self.begin_terminal(ticket)
            .await
            .map_err(|error| refused(&error))
    }

    async fn outcome(&self, session: CommandId) -> Option<End> {
        let mut changes = self.parts.dispatch.changes();
        let until = Instant::now() + OUTCOME_WITHIN;
        loop {
            let row = self.look(|tx| tx.command(session)).ok().flatten()?;
            if row.state.is_final() {
                let failed = row.state != State::Succeeded;
                return failed.then(|| End {
                    code: row.code,
                    message: row.message,
                    exit_code: None,
                    resumable: false,
                });
            }
            if tokio::time::timeout_at(until, changes.recv())
                .await
                .is_err()
            {
                self.withdraw_terminal(session).await;
                return None;
            }
        }
    }

    async fn refused(&self, ticket: Option<&Ticket>, from: &str, why: &Refused) {
        self.parts.metrics.denied();
        let Some(ticket) = ticket else {
            // Strangers write nothing into the audit log, which is kept for ever.
            tracing::warn!(
                from,
                code = why.code,
                "a socket without a good ticket was refused"
            );
            return;
        };
        let session = CommandId::from_wire(&ticket.session)
            .map(|id| id.to_string())
            .unwrap_or_default();
        let entry = AuditEntry {
            actor: cut(&format!("token {}", ticket.token_id)),
            source: cut(from),
            outcome: "denied".to_owned(),
            ..self.own_entry(
                &ticket.tenant,
                "terminal.refused",
                &session,
                format!("{}: {}", why.code, why.message),
            )
        };
        let written = self
            .write(move |tx| tx.append_audit(&entry, sha256).map(|_| ()))
            .await;
        if let Err(error) = written {
            tracing::error!(error = %error.message, "a refusal could not be audited");
        }
    }

    async fn ended(&self, ended: &Ended) {
        let info = &ended.info;
        let why = if ended.end.code.is_empty() {
            match ended.end.exit_code {
                Some(code) => format!("the shell ended with {code}"),
                None => "the shell ended".to_owned(),
            }
        } else {
            ended.end.code.clone()
        };
        let detail = format!(
            "terminal {}: {why}; {} s, {} B out, {} B in; recording {}",
            info.session,
            ended.lasted.as_secs(),
            ended.output,
            ended.input,
            ended.recording,
        );
        let entry = AuditEntry {
            actor: cut(&info.user),
            ..self.own_entry(
                &info.tenant,
                "terminal.end",
                &format!("{}/{}", info.host, info.container),
                detail,
            )
        };
        let written = self
            .write(move |tx| tx.append_audit(&entry, sha256).map(|_| ()))
            .await;
        if let Err(error) = written {
            tracing::error!(error = %error.message, "the end of a terminal could not be audited");
        }
    }
}
