//! Tokens, permissions, setup, audit, regions.

use super::{Deserialize, Labels, Serialize, Timestamp, ToSchema};

/// What a caller may do. Each endpoint names the one it needs; `admin` includes all others but `host-shell`.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Permission {
    /// See hosts, containers, commands, events, logs.
    Read,
    /// Run, start, stop, restart, remove, pull.
    Operate,
    /// Run a command in a container.
    Exec,
    /// Open a terminal in a container.
    Shell,
    /// Open a terminal on a host itself, where its owner allows it; `shell` is needed too.
    HostShell,
    /// Copy files into and out of containers.
    Copy,
    /// Upgrade agents.
    Upgrade,
    /// Tokens, regions, hosts' identities, audit.
    Admin,
}

/// Where a permission holds. Empty lists and maps restrict nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Scope {
    /// Only hosts of these regions.
    pub regions: Vec<String>,
    /// Only hosts that carry all of these labels.
    pub labels: Labels,
}

/// Who is asking.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct WhoAmI {
    /// The token's name.
    pub name: String,
    /// Its id.
    pub token_id: String,
    /// The tenant whose things it sees.
    pub tenant: String,
    /// What it may do.
    pub permissions: Vec<Permission>,
    /// Where.
    pub scope: Scope,
    /// Until when; absent: until revoked.
    pub expires_at: Option<Timestamp>,
    /// The server's version.
    pub server_version: String,
}

/// Claims a new installation: the secret of the one-time setup link.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetupRequest {
    /// From the setup link; works once, for 15 minutes after the controller's first start.
    pub secret: String,
    /// Name of the admin token that is made.
    #[serde(default)]
    pub name: String,
}

/// Makes an API token.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ApiTokenRequest {
    /// What it is for; shown in audit.
    pub name: String,
    /// What it may do; at least one.
    pub permissions: Vec<Permission>,
    /// Where; absent: everywhere in the tenant.
    #[serde(default)]
    pub scope: Scope,
    /// Seconds until it ends by itself; absent: until revoked.
    #[serde(default)]
    pub ttl_s: Option<u64>,
}

/// An API token, without its secret.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ApiToken {
    /// Public part; names it in `revoke` and audit.
    pub id: String,
    /// What it is for.
    pub name: String,
    /// What it may do.
    pub permissions: Vec<Permission>,
    /// Where.
    pub scope: Scope,
    /// Who made it.
    pub created_by: String,
    /// When.
    pub created_at: Timestamp,
    /// When it ends by itself.
    pub expires_at: Option<Timestamp>,
    /// When it was last used, to the minute.
    pub last_used_at: Option<Timestamp>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

/// A new API token. The secret is shown here and never again.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct NewApiToken {
    /// The token, `FA1…`.
    pub token: String,
    /// What is kept of it.
    #[serde(flatten)]
    pub info: ApiToken,
}

/// What a join token lets in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum JoinPurpose {
    /// A host.
    #[default]
    Host,
    /// A region's access server.
    AccessServer,
}

/// Makes a join token.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct JoinTokenRequest {
    /// The region that the hosts join; absent: the only one there is.
    pub region: Option<String>,
    /// Labels that the hosts get.
    pub labels: Labels,
    /// Seconds until it ends; absent: an hour. At most 30 days.
    pub ttl_s: Option<u64>,
    /// How many hosts it lets in; absent: one. At most 10 000.
    pub uses: Option<u32>,
}

/// A join token, without its secret.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct JoinToken {
    /// Public part; names it in `revoke` and audit.
    pub id: String,
    /// What it lets in.
    pub purpose: JoinPurpose,
    /// Into which region.
    pub region: String,
    /// With which labels.
    pub labels: Labels,
    /// How many it may let in.
    pub uses_max: u32,
    /// How many it has let in.
    pub uses: u32,
    /// Who made it.
    pub created_by: String,
    /// When.
    pub created_at: Timestamp,
    /// When it ends.
    pub expires_at: Timestamp,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

/// A new join token. The secret is shown here and never again.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct NewJoinToken {
    /// The token, `FL1<sha256 of CA>::<id>.<secret>`.
    pub token: String,
    /// Where agents of the region dial; for a region's first access server: the controller's.
    pub addresses: Vec<String>,
    /// What is kept of it.
    #[serde(flatten)]
    pub info: JoinToken,
}

/// Makes a region.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RegionRequest {
    /// Lower-case letters, digits and dashes; at most 63.
    pub name: String,
    /// Seconds until the access server's join token ends; absent: an hour.
    #[serde(default)]
    pub ttl_s: Option<u64>,
    /// The region may be there already: a token for an access server whose keys were lost.
    #[serde(default)]
    pub again: bool,
}

/// A new region, with what its access server needs to join.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct NewRegion {
    /// The region.
    pub region: Region,
    /// The token with which its access server joins.
    pub join_token: NewJoinToken,
}

/// A region.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Region {
    /// Its name.
    pub name: String,
    /// `waiting` (no access server has joined yet), `online`, `restarting` (it ended in order, or the controller
    /// did, and is expected back) or `offline`.
    pub state: String,
    /// Since when.
    pub since: Timestamp,
    /// The access server's name; empty while waiting.
    pub access_server: String,
    /// Where agents dial.
    pub addresses: Vec<String>,
    /// The region's own https address.
    pub url: String,
    /// The access server's version.
    pub version: String,
    /// Hosts enrolled in the region.
    pub hosts: u64,
    /// Of these, connected now (or when last heard).
    pub hosts_online: u64,
    /// Durable messages to the region that it has not acknowledged.
    pub orders_waiting: u64,
}

/// One row of the audit log.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct AuditRow {
    /// Grows by one with each row.
    pub seq: i64,
    /// When.
    pub at: Timestamp,
    /// Who: a token's name and id, a host, `fairlead`.
    pub actor: String,
    /// From where: the client's address; empty for internal actors.
    pub from: String,
    /// What was done, for instance `command.restart`, `api-token.create`, `host.enrol`.
    pub action: String,
    /// To what.
    pub object: String,
    /// `ok`, `denied` or `failed`.
    pub outcome: String,
    /// More, in words; never a secret.
    pub detail: String,
    /// SHA-256 over this row and the previous row's hash, hex.
    pub hash: String,
}
