//! Tickets: given out after all has been asked, for a terminal that is promised by it, or for one that is open
//! and one's own.

use fairlead_api::input::{invalid, plain};
use fairlead_api::types::{Action, Permission, TerminalRequest, TerminalTicket, time};
use fairlead_api::{ApiError, Caller};
use fairlead_identity::random;
use fairlead_identity::signing::Signer;
use fairlead_identity::ticket;
use fairlead_protocol::command::{HOST_ITSELF, Kind};
use fairlead_protocol::{CommandId, HostId, HostShell, Ticket, codes};
use fairlead_store::hosts::HostRow;
use fairlead_webssh::message::is_size;

use super::super::aim::aim;
use super::super::hosts::pick;
use super::super::{ControllerBackend, Note, convert};
use super::listing::Seen;
use super::{Promised, Wanted, api_error};
use crate::fleet::Resolved;

/// Tickets that were given out and have not come back.
const PROMISED_MAX: usize = 4096;
/// Of one API token.
const PROMISED_PER_TOKEN_MAX: usize = 64;

impl ControllerBackend {
    pub(in crate::backend) async fn promise_terminal(
        &self,
        caller: &Caller,
        origin: Option<&str>,
        request: TerminalRequest,
    ) -> Result<TerminalTicket, ApiError> {
        let object = match &request.host {
            Some(host) if request.on_host => format!("{}/{HOST_ITSELF}", plain(host)),
            _ => plain(&request.container),
        };
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
        let relay = request.relay;
        let (host, wanted, container_id) = self.aimed(caller, request).await?;
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
        let server = desk.regional.address(&host.region).filter(|_| !relay);
        let region = server.as_ref().map(|_| host.region.clone());
        let about = About {
            session,
            host: host_id,
            container_id: &container_id,
            exec_user: &wanted.exec_user,
            region: region.as_deref(),
        };
        let ticket = self.ticket(caller, about, origin);
        let note = Note::ok(
            "terminal.ask",
            format!("{}/{}", host.name, wanted.container),
        )
        .detail(format!("terminal {session}"));
        let names = (&host.name[..], &wanted.container[..]);
        let answer = answer(&ticket, &(desk.signer)(), names, server);
        let mut promised = desk.promised();
        promised.retain(|_, promise| promise.until_us >= now_us);
        let own = promised
            .values()
            .filter(|p| p.caller.token_id == caller.token_id);
        if promised.len() >= PROMISED_MAX || own.count() >= PROMISED_PER_TOKEN_MAX {
            return Err(ApiError::new(codes::BUSY, "too many tickets are out").retry_after(5));
        }
        let promise = Promised {
            caller: caller.clone(),
            host,
            wanted,
            container_id,
            region,
            until_us: ticket.not_after_us,
        };
        promised.insert(session, promise);
        Ok((answer, note))
    }

    /// The host, of those that the caller sees, for a shell on it.
    async fn host_itself(
        &self,
        caller: &Caller,
        request: &TerminalRequest,
    ) -> Result<(HostRow, Wanted, String), ApiError> {
        caller.require(Permission::HostShell)?;
        let is_named = [&request.container, &request.user, &request.workdir]
            .iter()
            .any(|word| !word.is_empty());
        if is_named || request.privileged || !request.command.is_empty() || !request.env.is_empty()
        {
            let message = "a shell on the host itself has no container, command, user, workdir or environment";
            return Err(invalid(message));
        }
        let host = request.host.as_deref();
        let host = host.ok_or_else(|| invalid("a shell on the host itself names its host"))?;
        let hosts = self.meant_hosts(caller, Some(host), None).await?;
        let host = pick(&hosts, host)?;
        let kind = Kind::HostShell(HostShell {
            columns: request.columns.into(),
            rows: request.rows.into(),
        });
        let wanted = Wanted::of(kind).ok_or_else(|| invalid("not a terminal"))?;
        Ok((host, wanted, String::new()))
    }

    /// Host, what is to run there, and the container's id, of what the caller sees.
    async fn aimed(
        &self,
        caller: &Caller,
        request: TerminalRequest,
    ) -> Result<(HostRow, Wanted, String), ApiError> {
        if request.on_host {
            return self.host_itself(caller, &request).await;
        }
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
            Resolved::Found { id, .. } => {
                let wanted = Wanted::of(Kind::Exec(exec));
                let wanted = wanted.ok_or_else(|| invalid("not a terminal"))?;
                Ok((aimed.host, wanted, id))
            }
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

    fn ticket(&self, caller: &Caller, about: About<'_>, origin: String) -> Ticket {
        let life_us = i64::try_from(ticket::LIFE.as_micros()).unwrap_or(0);
        Ticket {
            nonce: random::bytes::<{ ticket::NONCE_BYTES }>().to_vec().into(),
            session: about.session.to_wire(),
            token_id: caller.token_id.clone(),
            tenant: caller.tenant.clone(),
            host: about.host.to_wire(),
            container_id: about.container_id.to_owned(),
            exec_user: about.exec_user.to_owned(),
            origin,
            not_after_us: self.now_us().saturating_add(life_us),
            region: about.region.unwrap_or_default().to_owned(),
        }
    }

    pub(in crate::backend) async fn return_to_terminal(
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
        let info = found.info();
        // An admin may end another's terminal, and not sit down in it: a session's id is no capability.
        if info.token_id != caller.token_id {
            return Err(ApiError::new(
                codes::PERMISSION_DENIED,
                "this terminal was opened with another token",
            ));
        }
        let (region, server) = match &found {
            Seen::Here(_) => (None, None),
            Seen::There(there, at) => (Some(&there.info.region[..]), at.clone()),
        };
        if region.is_some() && server.is_none() {
            return Err(ApiError::new(
                codes::REGION_OFFLINE,
                "its region has no address for terminals any more",
            ));
        }
        let about = About {
            session: info.session,
            host: info.host_id,
            container_id: &info.container_id,
            exec_user: &info.exec_user,
            region,
        };
        let ticket = self.ticket(caller, about, origin);
        let names = (&info.host[..], &info.container[..]);
        Ok(answer(&ticket, &(desk.signer)(), names, server))
    }
}

/// What a ticket is for.
struct About<'a> {
    session: CommandId,
    host: HostId,
    container_id: &'a str,
    exec_user: &'a str,
    region: Option<&'a str>,
}

fn answer(
    ticket: &Ticket,
    signer: &Signer,
    (host, container): (&str, &str),
    server: Option<String>,
) -> TerminalTicket {
    TerminalTicket {
        session: CommandId::from_wire(&ticket.session)
            .map(|id| id.to_string())
            .unwrap_or_default(),
        ticket: ticket::write(signer, ticket),
        socket: fairlead_webssh::socket::PATH.to_owned(),
        server,
        origin: ticket.origin.clone(),
        expires_at: time(ticket.not_after_us),
        host: host.to_owned(),
        container: container.to_owned(),
    }
}
