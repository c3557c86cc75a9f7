//! Terminals: who may have one, tickets for them, opening, ending, recordings.
//!
//! | module | what it decides |
//! |---|---|
//! | `tickets` | who is given a ticket, for what: permission, scope, host, container |
//! | `freezing` | what is kept of those that live here over an orderly restart |
//! | `opening` | that all of it still holds when the ticket comes back; then the command is signed |
//! | `regional` | what is known of those whose session lives at a region's access server |
//! | `beyond` | what a region is answered: tickets, lists, recordings that arrive |
//! | `listing` | which of those that are open somebody sees, and ends |
//! | `recordings` | who reads recordings, and how long they are kept |

use std::collections::HashMap;
use std::sync::atomic::AtomicI64;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use fairlead_api::input::plain;
use fairlead_api::types::Permission;
use fairlead_api::{ApiError, Caller};
use fairlead_identity::digest::sha256;
use fairlead_identity::signing::Signer;
use fairlead_protocol::command::{HOST_ITSELF, Kind};
use fairlead_protocol::{Command, CommandId, Message, SignedCommand, codes};
use fairlead_store::audit::AuditEntry;
use fairlead_store::commands::CommandRow;
use fairlead_store::hosts::HostRow;
use fairlead_webssh::recording::file::Recordings;
use fairlead_webssh::{Origins, Refused, Terminals};
use tokio_util::sync::CancellationToken;

use super::{ControllerBackend, cut};
use regional::Regional;

mod beyond;
pub mod freezing;
mod listing;
mod opening;
mod recordings;
mod regional;
mod tickets;

/// What terminals need of the controller.
pub struct Desk {
    /// The signer of tickets, as it is now.
    pub signer: Box<dyn Fn() -> Arc<Signer> + Send + Sync>,
    /// Which pages may have terminals.
    pub origins: Origins,
    /// Where recordings lie.
    pub recordings: Recordings,
    regional: Regional,
    promised: Mutex<HashMap<CommandId, Promised>>,
    terminals: OnceLock<Weak<Terminals>>,
    tidied_us: AtomicI64,
}

/// What a terminal is to be.
struct Wanted {
    kind: Kind,
    /// As it is shown.
    container: String,
    exec_user: String,
    size: (u16, u16),
}

impl Wanted {
    /// What that kind is as a terminal, if it is one.
    fn of(kind: Kind) -> Option<Self> {
        let (container, exec_user, columns, rows) = match &kind {
            Kind::Exec(exec) if exec.tty => {
                let names = (exec.container.clone(), exec.user.clone());
                (names.0, names.1, exec.columns, exec.rows)
            }
            Kind::HostShell(shell) => {
                let names = (HOST_ITSELF.to_owned(), String::new());
                (names.0, names.1, shell.columns, shell.rows)
            }
            _ => return None,
        };
        let or = |number, else_| u16::try_from(number).unwrap_or(else_);
        Some(Self {
            kind,
            container,
            exec_user,
            size: (or(columns, 80), or(rows, 25)),
        })
    }

    /// The permission without which there is none.
    fn needs(&self) -> Permission {
        match self.kind {
            Kind::HostShell(_) => Permission::HostShell,
            _ => Permission::Shell,
        }
    }
}

/// Whether a command is a terminal, by what was signed.
pub(super) fn is_terminal(row: &CommandRow) -> bool {
    let signed = SignedCommand::decode(&row.signed[..]);
    let command = signed.and_then(|signed| Command::decode(&signed.command[..]));
    let kind = command.ok().and_then(|command| command.kind);
    kind.and_then(Wanted::of).is_some()
}

/// A terminal for which a ticket was given out.
struct Promised {
    caller: Caller,
    host: HostRow,
    wanted: Wanted,
    container_id: String,
    /// The region at whose access server the session will live; else it does here.
    region: Option<String>,
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
            regional: Regional::default(),
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
            None => self.origins.first().ok_or_else(denied),
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
    Refused::new(error.code, error.message.clone())
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

    /// The access servers at which terminals may be, for the page's policy.
    #[must_use]
    pub fn terminal_servers(self: &Arc<Self>) -> fairlead_webssh::page::Servers {
        let backend = Arc::clone(self);
        Arc::new(move || backend.parts.desk.regional.addresses())
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

    /// Writes a row about what has happened already; where that is not possible the log says it.
    async fn note_down(&self, entry: AuditEntry) {
        let (action, detail) = (entry.action.clone(), entry.detail.clone());
        let written = self
            .write(move |tx| tx.append_audit(&entry, sha256).map(|_| ()))
            .await;
        if let Err(error) = written {
            tracing::error!(error = %error.message, action, detail, "this could not be audited");
        }
    }
}
