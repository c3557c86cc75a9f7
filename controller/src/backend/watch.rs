//! Following one command: its state now, and with each change until its end.

use std::sync::Arc;

use fairlead_api::types::Command;
use fairlead_protocol::CommandId;
use fairlead_store::Store;
use fairlead_store::commands::CommandRow;
use fairlead_store::hosts::HostRow;
use tokio::sync::broadcast::{self, error::RecvError};

use super::dispatch::Dispatching;
use super::{show, store_error};
use crate::fleet::Fleet;

/// Waits until that command (or, after a lag, any) has changed; `false` when nothing more comes.
pub(super) async fn changed(changes: &mut broadcast::Receiver<CommandId>, id: CommandId) -> bool {
    loop {
        match changes.recv().await {
            Ok(other) if other != id => {}
            Ok(_) | Err(RecvError::Lagged(_)) => return true,
            Err(RecvError::Closed) => return false,
        }
    }
}

/// One follower of one command.
pub(super) struct Watcher {
    pub(super) store: Store,
    pub(super) fleet: Arc<Fleet>,
    pub(super) dispatch: Arc<dyn Dispatching>,
    pub(super) changes: broadcast::Receiver<CommandId>,
    pub(super) host: HostRow,
    pub(super) id: CommandId,
    /// What is to be shown next; absent: wait for a change.
    pub(super) next: Option<CommandRow>,
}

impl Watcher {
    pub(super) async fn next(mut self) -> Option<(Command, Self)> {
        let row = match self.next.take() {
            Some(row) => row,
            None => {
                if !changed(&mut self.changes, self.id).await {
                    return None;
                }
                let id = self.id;
                self.store
                    .read(move |tx| tx.command(id))
                    .await
                    .map_err(store_error)
                    .ok()??
            }
        };
        let progress = self.dispatch.progress(self.id);
        // Told when something changes: that nothing does is no news here.
        let now_us = row.issued_us;
        let shown = show::command(
            &row,
            progress.as_ref(),
            Some(&self.host),
            &self.fleet,
            now_us,
        );
        if row.state.is_final() {
            // Nothing more happens: the next turn ends the stream.
            let (_, closed) = broadcast::channel(1);
            self.changes = closed;
        }
        Some((shown, self))
    }
}
