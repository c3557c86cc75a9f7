//! Terminals that are open: one's own, and for admins all in scope.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use fairlead_api::types::{Permission, Terminal, time};
use fairlead_api::{ApiError, Caller};
use fairlead_protocol::{CommandId, codes};
use fairlead_webssh::Info;
use fairlead_webssh::message::End;
use fairlead_webssh::session::Shared;

use super::super::hosts::is_visible;
use super::super::{ControllerBackend, Note};
use super::no_terminal;
use super::regional::There;

/// A terminal that somebody may see.
pub(super) enum Seen {
    /// Its session lives here.
    Here(Arc<Shared>),
    /// At its region's access server, which is reached there.
    There(Box<There>, Option<String>),
}

impl Seen {
    pub(super) fn info(&self) -> &Info {
        match self {
            Self::Here(shared) => &shared.info,
            Self::There(there, _) => &there.info,
        }
    }
}

impl ControllerBackend {
    /// An open terminal that this caller may see: its own, or as admin any in scope.
    pub(super) async fn seen(&self, caller: &Caller, id: &str) -> Result<Seen, ApiError> {
        let session = id.parse::<CommandId>().map_err(|_| no_terminal(id))?;
        let desk = &self.parts.desk;
        let here = desk.terminals()?.find(session).map(Seen::Here);
        let there = || desk.regional.find(session);
        let found = here.or_else(|| there().map(|(there, at)| Seen::There(Box::new(there), at)));
        let Some(found) = found else {
            return Err(self.not_open(caller, session, id)?);
        };
        if self.sees_terminal(caller, found.info())? {
            Ok(found)
        } else {
            Err(no_terminal(id))
        }
    }

    /// Why a session is not found: it has ended; or this controller has just started, and its region has not
    /// told yet what goes on there.
    fn not_open(
        &self,
        caller: &Caller,
        session: CommandId,
        id: &str,
    ) -> Result<ApiError, ApiError> {
        let row = self.look(|tx| tx.command(session))?;
        let untold = row.is_some_and(|row| {
            let own = row.token_id == caller.token_id && !row.state.is_final();
            own && self.parts.desk.regional.is_untold(&row.region)
        });
        Ok(if untold {
            let message = "its region has not told yet what is open there";
            ApiError::new(codes::REGION_OFFLINE, message).retry_after(1)
        } else {
            no_terminal(id)
        })
    }

    fn sees_terminal(&self, caller: &Caller, info: &Info) -> Result<bool, ApiError> {
        let own = info.token_id == caller.token_id || caller.may(Permission::Admin);
        let host = self.look(|tx| tx.host(info.host_id))?;
        Ok(own && host.is_some_and(|host| is_visible(caller, &host)))
    }

    pub(in crate::backend) async fn open_terminals(
        &self,
        caller: &Caller,
    ) -> Result<Vec<Terminal>, ApiError> {
        let desk = &self.parts.desk;
        let here = desk.terminals()?.list().into_iter().map(Seen::Here);
        let there = desk.regional.all().into_iter();
        let mut shown = Vec::new();
        for found in here.chain(there.map(|there| Seen::There(Box::new(there), None))) {
            if self.sees_terminal(caller, found.info())? {
                shown.push(terminal(&found));
            }
        }
        shown.sort_unstable_by_key(|terminal| terminal.started_at);
        Ok(shown)
    }

    pub(in crate::backend) async fn close_terminal(
        &self,
        caller: &Caller,
        id: &str,
    ) -> Result<Terminal, ApiError> {
        let found = self.seen(caller, id).await;
        let found = self.judged(caller, "terminal.kick", id, found).await?;
        let info = found.info();
        let object = format!("{}/{}", info.host, info.container);
        let note = Note::ok("terminal.kick", object).detail(format!("terminal {id}"));
        self.audited(caller, note).await?;
        let why = End::new(codes::WITHDRAWN, "somebody ended this terminal");
        match &found {
            Seen::Here(_) => {
                self.parts.desk.terminals()?.end(info.session, why);
            }
            Seen::There(..) if !self.end_there(info.session, why) => {
                let message = format!(
                    "region {} is cut off: the terminal ends when it is back, within an hour at the latest",
                    info.region
                );
                return Err(ApiError::new(codes::REGION_OFFLINE, message));
            }
            Seen::There(..) => {}
        }
        Ok(terminal(&found))
    }
}

fn terminal(seen: &Seen) -> Terminal {
    let info = seen.info();
    let shown = Terminal {
        session: info.session.to_string(),
        user: info.user.clone(),
        host: info.host.clone(),
        container: info.container.clone(),
        container_id: info.container_id.clone(),
        exec_user: info.exec_user.clone(),
        started_at: time(0),
        typed_at: time(0),
        has_page: false,
        output_bytes: 0,
        input_bytes: 0,
    };
    match seen {
        Seen::Here(shared) => Terminal {
            started_at: time(shared.started_us),
            typed_at: time(shared.typed_us.load(Ordering::Relaxed)),
            has_page: shared.has_page.load(Ordering::Relaxed),
            output_bytes: shared.output.load(Ordering::Relaxed),
            input_bytes: shared.input.load(Ordering::Relaxed),
            ..shown
        },
        Seen::There(there, _) => Terminal {
            started_at: time(there.said.started_us),
            typed_at: time(there.said.typed_us),
            has_page: there.said.has_page,
            output_bytes: there.said.output,
            input_bytes: there.said.input,
            ..shown
        },
    }
}
