//! From an accepted request to a signed, stored command on its way to a region; and back: progress,
//! results, who is told.
//!
//! A command is accepted when it and its place in the region's outbox are on disk, in one transaction.
//! From there it cannot be lost: the outbox keeps it until the region's ledger has it, the ledger until
//! the agent has answered.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use fairlead_api::ApiError;
use fairlead_daemon::clock::Clock;
use fairlead_identity::digest::sha256;
use fairlead_identity::random;
use fairlead_protocol::{
    Cancel, Command, CommandId, CommandResult, HostId, HostRecord, Message, OpenStream, Order,
    Progress, Revocations, Stage, Stamp, State, StreamId, codes, limits, numbered, uplink_down,
};
use fairlead_store::audit::AuditEntry;
use fairlead_store::commands::CommandRow;
use fairlead_store::hosts::HostRow;
use fairlead_store::{Store, StoreError, Tx};
use tokio::sync::broadcast;

use crate::authority::{CaError, CertificateAuthority};
use crate::backend::dispatch::{ClientStream, Dispatching, NewCommand};
use crate::backend::store_error;
use crate::regions::Regions;
use crate::streams::Streams;

mod departure;

pub use departure::Departed;

/// Changes that a slow receiver may miss before it has to read again.
const CHANGES_MAX: usize = 1024;

/// Signs, stores, sends.
pub struct Dispatch {
    store: Store,
    authority: Arc<CertificateAuthority>,
    regions: Arc<Regions>,
    streams: Arc<Streams>,
    clock: Clock,
    changes: broadcast::Sender<CommandId>,
    progress: Mutex<HashMap<CommandId, Progress>>,
    stored_at: Mutex<HashMap<CommandId, i64>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why the command key's certificate was not renewed, or not told.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// It could not be made.
    #[error(transparent)]
    Authority(#[from] CaError),
    /// It is told when regions connect again.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A result that was news.
#[derive(Debug)]
pub struct Recorded {
    /// Of which command.
    pub id: CommandId,
    /// Its final state.
    pub state: State,
    /// The host whose identity ended with it.
    pub departed: Option<Departed>,
}

enum Taken {
    New(CommandRow),
    Known(CommandRow),
}

impl Dispatch {
    /// Dispatch over these parts.
    #[must_use]
    pub fn new(
        store: Store,
        authority: Arc<CertificateAuthority>,
        regions: Arc<Regions>,
        streams: Arc<Streams>,
        clock: Clock,
    ) -> Arc<Self> {
        Arc::new(Self {
            store,
            authority,
            regions,
            streams,
            clock,
            changes: broadcast::channel(CHANGES_MAX).0,
            progress: Mutex::default(),
            stored_at: Mutex::default(),
        })
    }

    fn command(&self, new: &NewCommand, id: CommandId, host: HostId) -> Command {
        let deadline = new.deadline.min(limits::NOT_AFTER_AHEAD_MAX);
        let issued_at_us = self.clock.now_us();
        Command {
            id: id.to_wire(),
            tenant: new.host.tenant.clone(),
            host: host.to_wire(),
            issuer: new.issuer.clone(),
            issued_at_us,
            not_after_us: issued_at_us.saturating_add(micros(deadline)),
            timeout_ms: new.timeout_ms,
            precondition: new.precondition.clone(),
            required_features: vec![new.kind.feature().to_owned()],
            attach: new.attach,
            kind: Some(new.kind.clone()),
        }
    }

    fn row(&self, new: &NewCommand, command: &Command) -> Option<CommandRow> {
        let signed = self.authority.signer().sign(command);
        let stamp = Stamp::at(Stage::Accepted, new.accepted_us);
        let row = CommandRow::taken_in(command, &signed, &new.host.region, stamp)?;
        Some(CommandRow {
            token_id: new.token_id.clone(),
            request_hash: new.request_hash.to_vec(),
            ..row
        })
    }

    /// Renews the command key's certificate when it is time, and tells all regions.
    ///
    /// # Errors
    /// When store or data directory cannot be written; the next round tries again.
    pub async fn renew_command_key(&self) -> Result<(), RenewError> {
        if !self.authority.renew_command_key()? {
            return Ok(());
        }
        let keys = self.authority.command_keys();
        let regions = self
            .store
            .write(move |tx| {
                let mut regions = Vec::new();
                for region in tx.regions(fairlead_store::DEFAULT_TENANT)? {
                    tx.send_later(&region.name, numbered::Kind::CommandKeys(keys.clone()))?;
                    regions.push(region.name);
                }
                Ok(regions)
            })
            .await?;
        tracing::info!("the command key has its next certificate");
        for region in regions {
            self.regions.outbox_grew(&region);
        }
        Ok(())
    }

    // === what regions say

    /// A command is somewhere on its way.
    pub fn on_progress(&self, region: &str, host: &[u8], progress: Progress) {
        let Ok(id) = CommandId::from_wire(&progress.command) else {
            return;
        };
        // Of a command that has ended, or is another region's, nothing is believed or kept.
        let open = self.store.look(|tx| tx.command(id)).ok().flatten();
        let theirs = |row: &CommandRow| row.region == region && row.host.as_bytes()[..] == *host;
        if open.is_none_or(|row| row.finished_us != 0 || !theirs(&row)) {
            return;
        }
        lock(&self.progress).insert(id, progress);
        // Nobody may be waiting.
        let _ = self.changes.send(id);
    }

    /// Makes a region's result this controller's; to be called within the transaction that takes the
    /// report. Whether it was news.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn record_result(
        &self,
        tx: &Tx<'_>,
        region: &str,
        host: &[u8],
        result: &CommandResult,
    ) -> Result<Option<Recorded>, StoreError> {
        let Ok(id) = CommandId::from_wire(&result.command) else {
            return Ok(None);
        };
        let Some(row) = tx.command(id)? else {
            return Ok(None);
        };
        if row.region != region || row.host.as_bytes()[..] != *host {
            tracing::error!(region, command = %id, "a result for a command of another region or host");
            return Ok(None);
        }
        let now_us = self.clock.now_us();
        let stored = lock(&self.stored_at)
            .get(&id)
            .map(|at_us| Stamp::at(Stage::Stored, *at_us));
        let mut result = result.clone();
        let reported = std::mem::take(&mut result.stamps);
        result.stamps = row
            .stamps
            .iter()
            .cloned()
            .chain(stored)
            .chain(reported)
            .collect();
        result.stamps.push(Stamp::at(Stage::Recorded, now_us));
        if !tx.finish_command(id, &result, now_us)? {
            return Ok(None);
        }
        let state = State::try_from(result.state).unwrap_or(State::Unknown);
        let departed = departure::depart(tx, &row, state, now_us)?;
        Ok(Some(Recorded {
            id,
            state,
            departed,
        }))
    }

    /// The result is on disk: whoever waits is told.
    pub fn on_recorded(&self, id: CommandId) {
        lock(&self.progress).remove(&id);
        lock(&self.stored_at).remove(&id);
        let _ = self.changes.send(id);
    }

    /// That a host's identity has ended is on disk: its streams are cut, and regions are told.
    pub fn on_departed(&self, departed: &Departed) {
        self.streams.cut(&[departed.host]);
        for region in &departed.regions {
            self.regions.outbox_grew(region);
        }
    }
}

/// Puts the whole list in every region's outbox; the regions.
fn tell_revocations(tx: &Tx<'_>, now_us: i64) -> Result<Vec<String>, StoreError> {
    let list = revocations(tx, now_us)?;
    let mut regions = Vec::new();
    for region in tx.regions(fairlead_store::DEFAULT_TENANT)? {
        tx.send_later(&region.name, numbered::Kind::Revocations(list.clone()))?;
        regions.push(region.name);
    }
    Ok(regions)
}

/// The whole list as it stands.
///
/// # Errors
/// When the store cannot be read.
pub(crate) fn revocations(tx: &Tx<'_>, now_us: i64) -> Result<Revocations, StoreError> {
    Ok(Revocations {
        version: now_us.unsigned_abs(),
        hosts: tx
            .revoked_hosts()?
            .into_iter()
            .map(HostId::to_wire)
            .collect(),
        serials: tx.revoked_serials()?,
        as_of_us: now_us,
    })
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

#[async_trait]
impl Dispatching for Dispatch {
    async fn submit(&self, new: NewCommand) -> Result<(CommandRow, bool), ApiError> {
        let id = new.id;
        let host = new
            .host
            .id
            .ok_or_else(|| ApiError::new(codes::INTERNAL, "a host without id"))?;
        let command = self.command(&new, id, host);
        let encoded = command.encoded_len();
        if encoded > limits::COMMAND_BYTES_MAX {
            let message = format!(
                "the command has {encoded} bytes, a link carries {} at most",
                limits::COMMAND_BYTES_MAX
            );
            return Err(ApiError::new(codes::COMMAND_TOO_LARGE, message)
                .hint("put long environments or arguments into a file and copy it in"));
        }
        let row = self
            .row(&new, &command)
            .ok_or_else(|| ApiError::new(codes::INTERNAL, "a command without kind"))?;
        let (region, audit) = (row.region.clone(), new.audit.clone());
        let taken = self
            .store
            .write(move |tx| {
                if let Some(known) = tx.command(id)? {
                    return Ok(Taken::Known(known));
                }
                let signed = fairlead_protocol::SignedCommand::decode(&row.signed[..])
                    .map_err(|error| StoreError::Statement(error.to_string()))?;
                let order = Order {
                    command: Some(signed),
                };
                tx.insert_command(&row)?;
                tx.append_audit(&audit, sha256)?;
                tx.send_later(&row.region, numbered::Kind::Order(order))?;
                Ok(Taken::New(row))
            })
            .await
            .map_err(store_error)?;
        match taken {
            Taken::New(row) => {
                lock(&self.stored_at).insert(id, self.clock.now_us());
                self.regions.outbox_grew(&region);
                Ok((row, true))
            }
            Taken::Known(known)
                if known.request_hash == new.request_hash
                    && known.tenant == new.host.tenant
                    && known.host == host =>
            {
                Ok((known, false))
            }
            Taken::Known(_) => Err(ApiError::new(
                codes::DUPLICATE_ID,
                format!("the id {id} was used for another command"),
            )
            .hint("leave the id out, or make a new one for each command")),
        }
    }

    fn progress(&self, id: CommandId) -> Option<Progress> {
        let mut progress = lock(&self.progress).get(&id).cloned().unwrap_or_default();
        if let Some(at_us) = lock(&self.stored_at).get(&id) {
            progress.stamps.insert(0, Stamp::at(Stage::Stored, *at_us));
        }
        (!progress.stamps.is_empty()).then_some(progress)
    }

    fn changes(&self) -> broadcast::Receiver<CommandId> {
        self.changes.subscribe()
    }

    async fn cancel(&self, row: &CommandRow, by: &str, audit: AuditEntry) -> Result<(), ApiError> {
        let (id, region) = (row.id, row.region.clone());
        let cancel = Cancel {
            command: id.to_wire(),
            by: by.to_owned(),
        };
        let (by, peer) = (by.to_owned(), region.clone());
        self.store
            .write(move |tx| {
                tx.append_audit(&audit, sha256)?;
                if tx.withdraw_command(id, &by)? {
                    tx.send_later(&peer, numbered::Kind::Cancel(cancel))?;
                }
                Ok(())
            })
            .await
            .map_err(store_error)?;
        self.regions.outbox_grew(&region);
        Ok(())
    }

    async fn open_stream(&self, row: &CommandRow) -> Result<ClientStream, ApiError> {
        let id = StreamId::from_bytes(random::bytes());
        let client = self
            .streams
            .expect(id, &row.region, row.host)
            .ok_or_else(|| {
                ApiError::new(codes::BUSY, "too many streams are open at this controller")
                    .retry_after(5)
            })?;
        let open = OpenStream {
            id: id.to_wire(),
            host: row.host.to_wire(),
            command: row.id.to_wire(),
            speaks_first: true,
        };
        if self
            .regions
            .send(&row.region, uplink_down::Kind::OpenStream(open))
        {
            Ok(client)
        } else {
            self.streams.refused(id, &row.region);
            Err(ApiError::new(
                codes::REGION_OFFLINE,
                format!("region {} is not connected", row.region),
            )
            .hint("the command waits; its stream can be opened once the region is back")
            .retry_after(2))
        }
    }

    async fn push_revocations(&self) -> Result<(), ApiError> {
        let now_us = self.clock.now_us();
        let (hosts, regions) = self
            .store
            .write(move |tx| {
                let hosts = tx.revoked_hosts()?;
                Ok((hosts, tell_revocations(tx, now_us)?))
            })
            .await
            .map_err(store_error)?;
        self.streams.cut(&hosts);
        for region in regions {
            self.regions.outbox_grew(&region);
        }
        Ok(())
    }

    fn tell_region(&self, region: &str, kind: uplink_down::Kind) -> bool {
        self.regions.send(region, kind)
    }

    async fn push_approval(&self, host: &HostRow) -> Result<(), ApiError> {
        let Some(id) = host.id else { return Ok(()) };
        let record = HostRecord {
            host: id.to_wire(),
            name: host.name.clone(),
            tenant: host.tenant.clone(),
            approved: true,
            ..HostRecord::default()
        };
        let region = host.region.clone();
        self.store
            .write(move |tx| {
                tx.send_later(&region, numbered::Kind::Host(record))
                    .map(|_| ())
            })
            .await
            .map_err(store_error)?;
        self.regions.outbox_grew(&host.region);
        Ok(())
    }
}
