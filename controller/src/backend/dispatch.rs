//! What the API needs of dispatch: the seam between a request and the regions.

use std::time::Duration;

use async_trait::async_trait;
use fairlead_api::ApiError;
pub use fairlead_api::ClientStream;
use fairlead_protocol::{CommandId, Precondition, Progress, command::Kind, uplink_down};
use fairlead_store::audit::AuditEntry;
use fairlead_store::commands::CommandRow;
use fairlead_store::hosts::HostRow;
use tokio::sync::broadcast;

/// A command to be signed, stored and sent.
#[derive(Debug, Clone)]
pub struct NewCommand {
    /// The client's id, or one that was made for it.
    pub id: CommandId,
    /// Its host.
    pub host: HostRow,
    /// What to do.
    pub kind: Kind,
    /// Who asks, in words.
    pub issuer: String,
    /// With which API token.
    pub token_id: String,
    /// Not begun later than this from now.
    pub deadline: Duration,
    /// Bounds the act; 0: the kind's default.
    pub timeout_ms: u32,
    /// What must hold when it begins.
    pub precondition: Option<Precondition>,
    /// A client will open its stream.
    pub attach: bool,
    /// Tells a repeated request from another one with the same id.
    pub request_hash: [u8; 32],
    /// When the request arrived.
    pub accepted_us: i64,
    /// The row for the audit log; written in the same transaction as the command, so that neither is
    /// there without the other.
    pub audit: AuditEntry,
}

/// Signs, stores and sends commands; knows where they are.
#[async_trait]
pub trait Dispatching: Send + Sync + 'static {
    /// Signs, stores (synced), queues for the region. The same id and request hash give the row
    /// that is there (`false`); the same id and another hash are `duplicate_id`.
    async fn submit(&self, new: NewCommand) -> Result<(CommandRow, bool), ApiError>;
    /// Newest volatile progress of an open command.
    fn progress(&self, id: CommandId) -> Option<Progress>;
    /// Fires with the id on each progress and final state; receivers that lag read again.
    fn changes(&self) -> broadcast::Receiver<CommandId>;
    /// Asks the host not to begin the command.
    async fn cancel(&self, row: &CommandRow, by: &str, audit: AuditEntry) -> Result<(), ApiError>;
    /// Opens the command's stream down to the agent.
    async fn open_stream(&self, row: &CommandRow) -> Result<ClientStream, ApiError>;
    /// Revoked hosts and certificates changed: tells all regions.
    async fn push_revocations(&self) -> Result<(), ApiError>;
    /// Tells a region something that may be lost; whether the region is connected and has room.
    fn tell_region(&self, region: &str, kind: uplink_down::Kind) -> bool;
    /// An admin lets a held host go on: tells its region.
    async fn push_approval(&self, host: &HostRow) -> Result<(), ApiError>;
}
