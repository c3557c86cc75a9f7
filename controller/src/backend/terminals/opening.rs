//! Opening: a ticket comes back on a socket. All is asked again; the recording begins; only then is the command
//! signed that the host verifies.

use std::time::Duration;

use async_trait::async_trait;
use fairlead_api::ApiError;
use fairlead_api::types::Permission;
use fairlead_identity::digest::sha256;
use fairlead_identity::ticket::{self, TicketError};
use fairlead_protocol::command::Kind;
use fairlead_protocol::{Command, CommandId, Message, Precondition, State, Ticket, codes};
use fairlead_store::audit::AuditEntry;
use fairlead_store::commands::CommandRow;
use fairlead_webssh::message::End;
use fairlead_webssh::{Admitted, Ended, Info, Opening, Pipe, Refused, Resumed, Shown};
use tokio::time::Instant;

use super::super::dispatch::NewCommand;
use super::super::hosts::is_visible;
use super::super::{ControllerBackend, Note, cut};
use super::{Promised, refused};

/// The command of a terminal is not begun later than this after its ticket came back.
const BEGIN_WITHIN: Duration = Duration::from_secs(20);
/// How long the end of a command whose stream broke is waited for.
const OUTCOME_WITHIN: Duration = Duration::from_secs(3);

fn gone() -> ApiError {
    ApiError::new(codes::TERMINAL_NOT_FOUND, "the terminal has ended")
}

impl ControllerBackend {
    /// All is asked again, by the server at which the session is to live (here, or a region's); nothing begins
    /// by it.
    pub(super) fn admitted(
        &self,
        ticket: &Ticket,
        region: Option<&str>,
    ) -> Result<Admitted, ApiError> {
        let session = CommandId::from_wire(&ticket.session).map_err(|_| gone())?;
        let promised = self.parts.desk.promised();
        let promise = promised.get(&session).ok_or_else(gone)?;
        let (caller, wanted) = (&promise.caller, &promise.wanted);
        let host_id = promise.host.id.ok_or_else(gone)?;
        let same = promise.region.as_deref() == region
            && ticket.region == region.unwrap_or_default()
            && ticket.token_id == caller.token_id
            && ticket.tenant == caller.tenant
            && ticket.host[..] == host_id.as_bytes()[..]
            && ticket.container_id == promise.container_id
            && ticket.exec_user == wanted.exec_user;
        let host = self.look(|tx| tx.host(host_id))?.ok_or_else(gone)?;
        if !same || caller.ended.is_cancelled() || host.revoked_us != 0 {
            return Err(ApiError::new(
                codes::TICKET_REFUSED,
                "the ticket opens nothing any more",
            ));
        }
        caller.require(Permission::Shell)?;
        caller.require(wanted.needs())?;
        if !is_visible(caller, &host) {
            return Err(ApiError::new(
                codes::PERMISSION_DENIED,
                "the host is out of scope",
            ));
        }
        Ok(Admitted {
            info: Info {
                session,
                user: caller.actor(),
                token_id: caller.token_id.clone(),
                tenant: caller.tenant.clone(),
                region: host.region.clone(),
                host_id,
                host: host.name.clone(),
                container: wanted.container.clone(),
                container_id: promise.container_id.clone(),
                exec_user: wanted.exec_user.clone(),
                size: wanted.size,
            },
            token_ended: caller.ended.clone(),
            until_us: caller.expires_us,
        })
    }

    /// Signs the command that the terminal is, and sends it on its way, once.
    pub(in crate::backend) async fn ordered(
        &self,
        session: CommandId,
        region: Option<&str>,
    ) -> Result<CommandRow, ApiError> {
        let promise = {
            let mut promised = self.parts.desk.promised();
            let there = promised.get(&session).ok_or_else(gone)?;
            if there.region.as_deref() != region {
                return Err(gone());
            }
            promised.remove(&session)
        };
        let Promised {
            caller,
            host,
            wanted,
            container_id,
            ..
        } = promise.ok_or_else(gone)?;
        let note = Note::ok(
            "terminal.open",
            format!("{}/{}", host.name, wanted.container),
        )
        .detail(words_of(session, &wanted.kind));
        let new = NewCommand {
            id: session,
            audit: self.entry(&caller, &note),
            host,
            request_hash: sha256(&hashed(&wanted.kind)),
            kind: wanted.kind,
            issuer: caller.actor(),
            token_id: caller.token_id.clone(),
            deadline: BEGIN_WITHIN,
            timeout_ms: 0,
            precondition: (!container_id.is_empty()).then(|| Precondition {
                container_id,
                ..Precondition::default()
            }),
            attach: true,
            accepted_us: self.now_us(),
        };
        Ok(self.parts.dispatch.submit(new).await?.0)
    }

    /// The same for a session that lives here, and opens its stream.
    async fn begun(&self, session: CommandId) -> Result<Pipe, ApiError> {
        let row = self.ordered(session, None).await?;
        match self.parts.dispatch.open_stream(&row).await {
            Ok(stream) => Ok(self.pipe(session, Some(stream))),
            Err(error) => {
                self.withdraw_terminal(session).await;
                Err(error)
            }
        }
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
}

/// What was asked, as bytes.
fn hashed(kind: &Kind) -> Vec<u8> {
    let command = Command {
        kind: Some(kind.clone()),
        ..Command::default()
    };
    command.encode_to_vec()
}

fn words_of(session: CommandId, kind: &Kind) -> String {
    let Kind::Exec(exec) = kind else {
        return format!("command {session}: shell on the host itself");
    };
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

#[async_trait]
impl Opening for ControllerBackend {
    fn read(&self, text: &str) -> Result<Ticket, TicketError> {
        ticket::read(&(self.parts.desk.signer)(), text, self.now_us())
    }

    async fn admit(&self, shown: &Shown) -> Result<Admitted, Refused> {
        let admitted = self.admitted(&shown.ticket, None);
        admitted.map_err(|error| refused(&error))
    }

    async fn begin(&self, info: &Info) -> Result<Pipe, Refused> {
        let begun = self.begun(info.session).await;
        begun.map_err(|error| refused(&error))
    }

    fn resume(&self, info: &Info) -> Resumed {
        self.resumed(info)
    }

    async fn outcome(&self, session: CommandId) -> Option<End> {
        let mut changes = self.parts.dispatch.changes();
        let until = Instant::now() + OUTCOME_WITHIN;
        loop {
            let row = self.look(|tx| tx.command(session)).ok().flatten()?;
            if row.state.is_final() {
                let failed = row.state != State::Succeeded;
                return failed.then(|| End::new(&row.code, row.message));
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
        self.note_down(entry).await;
    }

    async fn ended(&self, ended: &Ended) {
        let info = &ended.info;
        let why = ended.why();
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
        self.note_down(entry).await;
    }
}
