//! Dispatch without regions: stores synced, answers duplicates, tells changes, and ends commands
//! when the test says so. Streams echo what they are sent.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use fairlead_api::{ApiError, ClientStream};
use fairlead_daemon::clock::Clock;
use fairlead_protocol::{
    Command, CommandId, CommandResult, Message, Progress, SignedCommand, Stage, Stamp, State,
    codes, uplink_down,
};
use fairlead_store::Store;
use fairlead_store::commands::CommandRow;
use fairlead_store::hosts::HostRow;
use tokio::sync::{broadcast, mpsc};

use crate::backend::dispatch::{Dispatching, NewCommand};
use crate::backend::live::Live;
use crate::backend::store_error;

pub(super) struct Double {
    store: Store,
    clock: Clock,
    live: Arc<Live>,
    changes: broadcast::Sender<CommandId>,
    progress: Mutex<HashMap<CommandId, Progress>>,
    /// Commands end as soon as they are taken.
    pub(super) ends_at_once: Mutex<Option<CommandResult>>,
    pub(super) revocations_pushed: AtomicUsize,
    pub(super) submitted: Mutex<Vec<NewCommand>>,
    /// What regions were told.
    pub(super) told: Mutex<Vec<(String, uplink_down::Kind)>>,
    /// No host dials.
    pub(super) no_streams: AtomicBool,
    pub(super) streams_asked: AtomicUsize,
}

impl Double {
    pub(super) fn new(store: Store, clock: Clock, live: Arc<Live>) -> Arc<Self> {
        Arc::new(Self {
            store,
            clock,
            live,
            changes: broadcast::Sender::new(16),
            progress: Mutex::default(),
            ends_at_once: Mutex::default(),
            revocations_pushed: AtomicUsize::new(0),
            submitted: Mutex::default(),
            told: Mutex::default(),
            no_streams: AtomicBool::new(false),
            streams_asked: AtomicUsize::new(0),
        })
    }

    pub(super) async fn end(&self, id: CommandId, mut result: CommandResult) {
        let now = self.clock.now_us();
        result.stamps = vec![
            Stamp {
                stage: Stage::Accepted.into(),
                at_us: now,
                note: String::new(),
            },
            Stamp {
                stage: Stage::EngineCalled.into(),
                at_us: now + 1000,
                note: String::new(),
            },
            Stamp {
                stage: Stage::EngineAnswered.into(),
                at_us: now + 9000,
                note: String::new(),
            },
            Stamp {
                stage: Stage::Recorded.into(),
                at_us: now + 10_500,
                note: String::new(),
            },
        ];
        let done = self
            .store
            .write(move |tx| tx.finish_command(id, &result, now + 10_500));
        assert!(done.await.unwrap(), "ended twice");
        let _ = self.changes.send(id);
    }

    pub(super) fn tell(&self, id: CommandId, progress: Progress) {
        self.progress.lock().unwrap().insert(id, progress);
        let _ = self.changes.send(id);
    }

    pub(super) fn last(&self) -> NewCommand {
        self.submitted.lock().unwrap().last().unwrap().clone()
    }
}

pub(super) fn succeeded() -> CommandResult {
    CommandResult {
        state: State::Succeeded.into(),
        ..CommandResult::default()
    }
}

/// The command without a signature, which nobody here looks at.
fn as_signed(new: &NewCommand) -> Vec<u8> {
    let command = Command {
        precondition: new.precondition.clone(),
        kind: Some(new.kind.clone()),
        ..Command::default()
    };
    let signed = SignedCommand {
        command: command.encode_to_vec().into(),
        ..SignedCommand::default()
    };
    signed.encode_to_vec()
}

#[async_trait]
impl Dispatching for Double {
    async fn submit(&self, new: NewCommand) -> Result<(CommandRow, bool), ApiError> {
        self.submitted.lock().unwrap().push(new.clone());
        let (id, audit) = (new.id, new.audit.clone());
        let signed = as_signed(&new);
        let row = CommandRow {
            id,
            tenant: new.host.tenant.clone(),
            host: new.host.id.unwrap(),
            region: new.host.region.clone(),
            kind: new.kind.name().to_owned(),
            target: new.kind.target().to_owned(),
            issuer: new.issuer,
            token_id: new.token_id,
            signed,
            request_hash: new.request_hash.to_vec(),
            state: State::Queued,
            code: String::new(),
            message: String::new(),
            exit_code: None,
            container_id: String::new(),
            body: Vec::new(),
            body_truncated: false,
            stamps: Vec::new(),
            issued_us: new.accepted_us,
            not_after_us: new.accepted_us + i64::try_from(new.deadline.as_micros()).unwrap(),
            finished_us: 0,
            place: 0,
            cancel_by: String::new(),
        };
        let (created, row) = self
            .store
            .write(move |tx| {
                let created = tx.insert_command(&row)?;
                if created {
                    tx.append_audit(&audit, fairlead_identity::digest::sha256)?;
                }
                Ok((created, tx.command(id)?.unwrap()))
            })
            .await
            .map_err(store_error)?;
        if !created && row.request_hash != new.request_hash {
            return Err(ApiError::new(codes::DUPLICATE_ID, "the id was used"));
        }
        let at_once = self.ends_at_once.lock().unwrap().clone();
        if let (true, Some(result)) = (created, at_once) {
            self.end(id, result).await;
        }
        Ok((row, created))
    }

    fn progress(&self, id: CommandId) -> Option<Progress> {
        self.progress.lock().unwrap().get(&id).cloned()
    }

    fn changes(&self) -> broadcast::Receiver<CommandId> {
        self.changes.subscribe()
    }

    async fn cancel(
        &self,
        row: &CommandRow,
        by: &str,
        audit: fairlead_store::audit::AuditEntry,
    ) -> Result<(), ApiError> {
        let (id, by) = (row.id, by.to_owned());
        self.store
            .write(move |tx| {
                tx.append_audit(&audit, fairlead_identity::digest::sha256)?;
                tx.withdraw_command(id, &by)
            })
            .await
            .map_err(store_error)?;
        let _ = self.changes.send(row.id);
        Ok(())
    }

    async fn open_stream(&self, row: &CommandRow) -> Result<ClientStream, ApiError> {
        self.streams_asked.fetch_add(1, Ordering::SeqCst);
        if self.no_streams.load(Ordering::SeqCst) {
            return Err(ApiError::new(codes::HOST_OFFLINE, "nobody dials"));
        }
        let (to_agent, mut input) = mpsc::channel::<bytes::Bytes>(4);
        let (output, from_agent) = mpsc::channel(4);
        tokio::spawn(async move {
            while let Some(frame) = input.recv().await {
                if output.send(frame).await.is_err() {
                    break;
                }
            }
        });
        Ok(ClientStream {
            to_agent,
            from_agent,
            cut: self.live.of(&row.token_id, 0),
        })
    }

    fn tell_region(&self, region: &str, kind: uplink_down::Kind) -> bool {
        self.told.lock().unwrap().push((region.to_owned(), kind));
        true
    }

    async fn push_approval(&self, _host: &HostRow) -> Result<(), ApiError> {
        Ok(())
    }

    async fn push_revocations(&self) -> Result<(), ApiError> {
        self.revocations_pushed.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}
