//! Terminals that are open: one's own, and for admins all in scope.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use fairlead_api::types::{Permission, Terminal, time};
use fairlead_api::{ApiError, Caller};
use fairlead_protocol::CommandId;
use fairlead_webssh::Info;
use fairlead_webssh::session::Shared;

use super::super::hosts::is_visible;
use super::super::{ControllerBackend, Note};
use super::no_terminal;

impl ControllerBackend {
    /// An open terminal that this caller may see: its own, or as admin any in scope.
    pub(super) async fn seen(&self, caller: &Caller, id: &str) -> Result<Arc<Shared>, ApiError> {
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

    pub(in crate::backend) async fn open_terminals(
        &self,
        caller: &Caller,
    ) -> Result<Vec<Terminal>, ApiError> {
        let mut shown = Vec::new();
        for found in self.parts.desk.terminals()?.list() {
            if self.sees_terminal(caller, &found.info)? {
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
        let object = format!("{}/{}", found.info.host, found.info.container);
        let note = Note::ok("terminal.kick", object).detail(format!("terminal {id}"));
        self.audited(caller, note).await?;
        self.parts.desk.terminals()?.end(found.info.session);
        Ok(terminal(&found))
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
