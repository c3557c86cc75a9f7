//! Commands: who may ask for what, which host and container are meant, waiting for the end.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use fairlead_api::backend::{CommandQuery, Submitted};
use fairlead_api::input::{invalid, plain};
use fairlead_api::types::{Action, Command, CommandRequest, Page, Permission};
use fairlead_api::{ApiError, Attach, Caller, ClientStream};
use fairlead_identity::digest::{hex, sha256};
use fairlead_identity::random;
use fairlead_protocol::command::Kind;
use fairlead_protocol::stream::flow::Client;
use fairlead_protocol::{CommandId, HostId, Precondition, State, codes, ids, limits};
use fairlead_store::commands::{CommandFilter, CommandRow};
use fairlead_store::hosts::HostRow;
use futures_util::stream::{self, BoxStream};
use tokio::sync::broadcast;
use tokio::time::Instant;

use super::aim::{aim, container_of};
use super::dispatch::NewCommand;
use super::hosts::{is_visible, pick};
use super::watch::{Watcher, changed};
use super::{ControllerBackend, Note, convert, show, spec};

/// How many of the newest commands a prefix is looked for in.
const PREFIX_LOOKED_AT: u32 = 20_000;
/// How many pages are read to fill one for a caller with a narrow scope, or with commands in one state of those open.
const PAGES_READ_MAX: u32 = 20;
/// How many open commands are read at a time to find those in one state.
const OPEN_AT_A_TIME: u32 = 500;

impl ControllerBackend {
    pub(super) async fn take_command(
        &self,
        caller: &Caller,
        request: CommandRequest,
        wait_ms: u32,
    ) -> Result<Submitted, ApiError> {
        let accepted_us = self.now_us();
        let action = format!("command.{}", request.action.name());
        let object = request.host.clone().unwrap_or_default();
        // Before anything is sent, so that the end cannot come unnoticed.
        let mut changes = self.parts.dispatch.changes();
        let taken = self.sign_and_store(caller, request, accepted_us).await;
        let (row, created, host) = match taken {
            Ok(taken) => taken,
            Err(error) => {
                self.audit_refusal(caller, Note::refused(&action, object, &error))
                    .await;
                return Err(error);
            }
        };
        let until = Instant::now() + Duration::from_millis(u64::from(wait_ms));
        let wait = self.wait_for_end(row.clone(), &mut changes, until, caller);
        let row = wait.await?;
        let command = self.shown(&row, Some(&host));
        Ok(Submitted { command, created })
    }

    async fn sign_and_store(
        &self,
        caller: &Caller,
        request: CommandRequest,
        accepted_us: i64,
    ) -> Result<(CommandRow, bool, HostRow), ApiError> {
        caller.require(Permission::for_kind(request.action.name()))?;
        // As a terminal does: what reaches out of its container is more than a process in it.
        if matches!(
            request.action,
            Action::Exec {
                privileged: true,
                ..
            }
        ) {
            caller.require(Permission::Admin)?;
        }
        let id = request
            .id
            .as_deref()
            .map(str::parse::<CommandId>)
            .transpose()
            .map_err(|_| {
                invalid("id must be 26 characters of base32, as the server's own ids are")
            })?;
        let request_hash = request_hash(caller, &request)?;
        if let Some(id) = id
            && let Some((row, host)) = self.taken_before(caller, id, &request_hash).await?
        {
            return Ok((row, false, host));
        }
        let deadline_s = request
            .deadline_s
            .unwrap_or(limits::NOT_AFTER_DEFAULT.as_secs());
        if !(1..=limits::NOT_AFTER_AHEAD_MAX.as_secs()).contains(&deadline_s) {
            let max = limits::NOT_AFTER_AHEAD_MAX.as_secs();
            return Err(invalid(format!("deadline_s must be 1 to {max}")));
        }
        let names_host = matches!(
            request.action,
            Action::UninstallAgent {} | Action::UpgradeAgent { .. }
        );
        if names_host && request.host.is_none() {
            let kind = request.action.name();
            return Err(invalid(format!("an {kind} names its host")));
        }
        let mut precondition = convert::precondition(request.precondition.as_ref())?;
        let (host, mut action) = (request.host.as_deref(), request.action);
        self.name_manifest(&mut action)?;
        let container = container_of(&mut action).map(|container| container.as_str());
        let hosts = self.meant_hosts(caller, host, container).await?;
        let aimed = aim(&self.parts.fleet, hosts, host, action)?;
        if let Some(container_id) = aimed.must_be
            && precondition
                .as_ref()
                .is_none_or(|p| p.container_id.is_empty())
        {
            precondition
                .get_or_insert_with(Precondition::default)
                .container_id = container_id;
        }
        let kind = convert::kind(&aimed.action)?;
        if request.attach && !kind.streams() {
            return Err(invalid(format!(
                "a {} has no stream to attach to",
                kind.name()
            )));
        }
        let host = aimed.host;
        let id = id.unwrap_or_else(|| CommandId::from_bytes(random::bytes()));
        let note = Note::ok(
            &format!("command.{}", kind.name()),
            format!("{}/{}", host.name, kind.target()),
        )
        .detail(format!("command {id}{}", reach(&kind)));
        let new = NewCommand {
            id,
            audit: self.entry(caller, &note),
            host: host.clone(),
            kind,
            issuer: caller.actor(),
            token_id: caller.token_id.clone(),
            deadline: Duration::from_secs(deadline_s),
            timeout_ms: request.timeout_ms.unwrap_or(0),
            precondition,
            attach: request.attach,
            request_hash,
            accepted_us,
        };
        let (row, created) = self.parts.dispatch.submit(new).await?;
        Ok((row, created, host))
    }

    /// A version is signed by the hash of its manifest: the one that is here.
    fn name_manifest(&self, action: &mut Action) -> Result<(), ApiError> {
        if let Action::UpgradeAgent {
            version, manifest, ..
        } = action
            && manifest.is_empty()
        {
            let (_, hash) = self.parts.packages.manifest(version).ok_or_else(|| {
                let message = format!("there is no package of version {:?} here", plain(version));
                ApiError::new(codes::PACKAGE_NOT_FOUND, message).hint("fairlead agent versions")
            })?;
            *manifest = hex(&hash);
        }
        Ok(())
    }

    /// The command of that id, when the same request made it before.
    async fn taken_before(
        &self,
        caller: &Caller,
        id: CommandId,
        request_hash: &[u8; 32],
    ) -> Result<Option<(CommandRow, HostRow)>, ApiError> {
        let found = self.look(|tx| {
            let Some(row) = tx.command(id)? else {
                return Ok(None);
            };
            let host = tx.host(row.host)?;
            Ok(Some((row, host)))
        })?;
        let Some((row, host)) = found else {
            return Ok(None);
        };
        let host = host.filter(|host| is_visible(caller, host));
        match host {
            Some(host)
                if row.tenant == caller.tenant
                    && row.token_id == caller.token_id
                    && row.request_hash == request_hash =>
            {
                Ok(Some((row, host)))
            }
            _ => Err(ApiError::new(
                codes::DUPLICATE_ID,
                format!("the id {id} was used for another command"),
            )
            .hint("make a new id for each command; send the same one only to ask again")),
        }
    }

    /// Waits until the command has its final state, the time is over, or the token ends.
    async fn wait_for_end(
        &self,
        mut row: CommandRow,
        changes: &mut broadcast::Receiver<CommandId>,
        until: Instant,
        caller: &Caller,
    ) -> Result<CommandRow, ApiError> {
        let id = row.id;
        while !row.state.is_final() && Instant::now() < until {
            tokio::select! {
                is_open = changed(changes, id) => if !is_open { break },
                () = tokio::time::sleep_until(until) => break,
                () = caller.ended.cancelled() => break,
            }
            row = self.look(|tx| tx.command(id))?.unwrap_or(row);
        }
        Ok(row)
    }

    fn shown(&self, row: &CommandRow, host: Option<&HostRow>) -> Command {
        let progress = self.parts.dispatch.progress(row.id);
        show::command(
            row,
            progress.as_ref(),
            host,
            &self.parts.fleet,
            self.parts.clock.now_us(),
        )
    }

    /// A command that the caller sees, by id or unique prefix, and its host.
    async fn find(&self, caller: &Caller, id: &str) -> Result<(CommandRow, HostRow), ApiError> {
        let missing = || {
            ApiError::new(
                codes::COMMAND_NOT_FOUND,
                format!("there is no command {:?}", plain(id)),
            )
            .hint("fairlead command ls")
        };
        if !ids::is_prefix(id) {
            return Err(missing());
        }
        let (tenant, prefix) = (caller.tenant.clone(), id.to_owned());
        let whole = id.parse::<CommandId>().ok();
        let found = self
            .read(move |tx| {
                let wanted = match whole {
                    Some(id) => vec![id],
                    None => tx
                        .command_ids(&tenant, PREFIX_LOOKED_AT)?
                        .into_iter()
                        .filter(|id| id.to_string().starts_with(&prefix))
                        .take(50)
                        .collect(),
                };
                let mut found = Vec::new();
                for id in wanted {
                    if let Some(row) = tx.command(id)?
                        && let Some(host) = tx.host(row.host)?
                    {
                        found.push((row, host));
                    }
                }
                Ok(found)
            })
            .await?;
        let mut visible: Vec<(CommandRow, HostRow)> = found
            .into_iter()
            .filter(|(row, host)| row.tenant == caller.tenant && is_visible(caller, host))
            .collect();
        match visible.len() {
            0 => Err(missing()),
            1 => Ok(visible.remove(0)),
            _ => Err(ApiError::new(
                codes::AMBIGUOUS,
                format!("{:?} begins the ids of several commands", plain(id)),
            )
            .hint("use more of the id")),
        }
    }

    pub(super) async fn show_command(
        &self,
        caller: &Caller,
        id: &str,
        wait_ms: u32,
    ) -> Result<Command, ApiError> {
        let mut changes = self.parts.dispatch.changes();
        let (row, host) = self.find(caller, id).await?;
        let until = Instant::now() + Duration::from_millis(u64::from(wait_ms));
        let row = self.wait_for_end(row, &mut changes, until, caller).await?;
        Ok(self.shown(&row, Some(&host)))
    }

    pub(super) async fn list_commands(
        &self,
        caller: &Caller,
        query: CommandQuery,
    ) -> Result<Page<Command>, ApiError> {
        let state = query
            .state
            .map(|name| {
                State::from_name(&name)
                    .filter(|state| *state != State::Unspecified)
                    .ok_or_else(|| invalid(format!("{:?} is not a state", plain(&name))))
            })
            .transpose()?;
        let tenant = caller.tenant.clone();
        let rows = self.read(move |tx| tx.hosts(Some(&tenant))).await?;
        let hosts: HashMap<HostId, HostRow> = rows
            .into_iter()
            .filter(|row| is_visible(caller, row))
            .filter_map(|row| row.id.map(|id| (id, row)))
            .collect();
        let host = match &query.host {
            Some(host) => pick(hosts.values(), host)?.id,
            None => None,
        };
        let mut filter = CommandFilter {
            tenant: caller.tenant.clone(),
            host,
            state,
            target: query.container,
            before: query.before,
            limit: query.limit,
        };
        // Where an open command is just now is not in the store, so it is looked at as it is shown.
        let open_state = state.filter(|state| !state.is_final());
        if open_state.is_some() {
            filter.limit = query.limit.max(OPEN_AT_A_TIME);
        }
        let wanted = query.limit as usize;
        let mut items = Vec::new();
        for _ in 0..PAGES_READ_MAX {
            let page = filter.clone();
            let rows = self.read(move |tx| tx.commands(&page)).await?;
            let is_last = rows.len() < filter.limit as usize;
            for row in rows {
                filter.before = Some(row.place);
                if let Some(host) = hosts.get(&row.host) {
                    let shown = self.shown(&row, Some(host));
                    if open_state.is_some_and(|state| shown.state != state.name()) {
                        continue;
                    }
                    items.push(shown);
                    if items.len() == wanted {
                        return Ok(Page {
                            items,
                            next: filter.before,
                        });
                    }
                }
            }
            if is_last {
                return Ok(Page { items, next: None });
            }
        }
        Ok(Page {
            items,
            next: filter.before,
        })
    }

    pub(super) async fn withdraw(&self, caller: &Caller, id: &str) -> Result<Command, ApiError> {
        let (row, host) = self.find(caller, id).await?;
        caller.require(Permission::for_kind(&row.kind))?;
        if row.state.is_final() {
            let mut error = invalid(format!(
                "command {} has ended: {}",
                row.id,
                row.state.name()
            ));
            error.status = axum::http::StatusCode::CONFLICT;
            return Err(error);
        }
        let note = Note::ok("command.cancel", format!("{}/{}", host.name, row.target))
            .detail(format!("command {}", row.id));
        let audit = self.entry(caller, &note);
        self.parts
            .dispatch
            .cancel(&row, &caller.actor(), audit)
            .await?;
        let id = row.id;
        let row = self.look(|tx| tx.command(id))?.unwrap_or(row);
        Ok(self.shown(&row, Some(&host)))
    }

    pub(super) async fn watch_command(
        &self,
        caller: &Caller,
        id: &str,
    ) -> Result<BoxStream<'static, Command>, ApiError> {
        let changes = self.parts.dispatch.changes();
        let (row, host) = self.find(caller, id).await?;
        let watcher = Watcher {
            store: self.parts.store.clone(),
            fleet: Arc::clone(&self.parts.fleet),
            dispatch: Arc::clone(&self.parts.dispatch),
            changes,
            host,
            id: row.id,
            next: Some(row),
        };
        Ok(Box::pin(stream::unfold(watcher, Watcher::next)))
    }

    /// Only who asked for a command may attach to its stream: an id is no capability.
    pub(super) async fn stream_of(
        &self,
        caller: &Caller,
        id: &str,
        attach: Attach,
    ) -> Result<ClientStream, ApiError> {
        let (row, host) = self.find(caller, id).await?;
        let object = format!("{}/{}", host.name, row.target);
        let allowed = caller
            .require(Permission::for_kind(&row.kind))
            .and_then(|()| {
                if row.token_id == caller.token_id {
                    return Ok(());
                }
                Err(ApiError::new(
                    codes::PERMISSION_DENIED,
                    format!("command {} was asked for with another token", row.id),
                )
                .hint("only who asked for a command may attach to its stream"))
            })
            .and_then(|()| {
                if !super::terminals::is_terminal(&row) {
                    return Ok(());
                }
                // Else there would be a terminal that nobody records.
                Err(ApiError::new(
                    codes::PERMISSION_DENIED,
                    format!(
                        "command {} is a terminal: its stream is its session's",
                        row.id
                    ),
                )
                .hint("a terminal is opened by a ticket (POST /api/v1/terminals)"))
            });
        if let Err(error) = allowed {
            self.audit_refusal(caller, Note::refused("command.stream", object, &error))
                .await;
            return Err(error);
        }
        if row.state.is_final() {
            return Err(ApiError::new(
                codes::NO_STREAM,
                format!("command {} has ended: {}", row.id, row.state.name()),
            )
            .hint("fairlead command show prints what is left of it"));
        }
        let client = match attach {
            Attach::Plain => Client::Plain,
            Attach::Keeping => Client::Keeps,
            // It is asked for when the client says where it goes on.
            Attach::Resuming => return Ok(self.lasting(row.id, Client::Keeps, None, false)),
        };
        let stream = self.parts.dispatch.open_stream(&row).await?;
        Ok(self.lasting(row.id, client, Some(stream), false))
    }
}

/// Tells a repeated request from another one: tenant and request, written in one way.
fn request_hash(caller: &Caller, request: &CommandRequest) -> Result<[u8; 32], ApiError> {
    let text = serde_json::to_vec(request)
        .map_err(|_| ApiError::new(codes::INTERNAL, "the request cannot be written again"))?;
    let tenant = sha256(caller.tenant.as_bytes());
    Ok(sha256(&[&tenant[..], &text].concat()))
}

/// What a command reaches beyond its container, for the audit log.
fn reach(kind: &Kind) -> String {
    let out = match kind {
        Kind::Run(k) => k.spec.as_ref().map(spec::reach).unwrap_or_default(),
        Kind::Create(k) => k.spec.as_ref().map(spec::reach).unwrap_or_default(),
        Kind::Exec(k) if k.privileged => "privileged".to_owned(),
        Kind::CopyIn(k) => return format!("; {} B into {}", k.size, plain(&k.path)),
        Kind::CopyOut(k) => return format!("; {}", plain(&k.path)),
        _ => String::new(),
    };
    if out.is_empty() {
        out
    } else {
        format!("; reaches out: {out}")
    }
}
