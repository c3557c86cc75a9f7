//! Terminals: permission to open one, those that are open, recordings.

use super::{Deserialize, Serialize, Timestamp, ToSchema};

/// Asks for a terminal in a container, or on a host itself.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TerminalRequest {
    /// Host by name, id or unique prefix of its id; may be absent when the container says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Container by name, id or unique prefix of its id; empty with `on_host`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub container: String,
    /// A shell on the host itself: needs the permission `host-shell`, and the leave of the host's owner. Nothing
    /// else is named then but the host.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub on_host: bool,
    /// Program and arguments; absent: `bash` where the image has it, else `sh`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// `KEY=VALUE`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// `USER[:GROUP]`; absent: the container's own.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// Absolute; absent: the container's own.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub workdir: String,
    /// Extended privileges; needs the permission `admin`.
    #[serde(default)]
    pub privileged: bool,
    /// Through the controller, also where the region has an address of its own for terminals: for who does not
    /// reach that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub relay: bool,
    /// Columns at first.
    pub columns: u16,
    /// Rows at first.
    pub rows: u16,
}

/// Permission to open one terminal, once, within seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TerminalTicket {
    /// The session; its id opens nothing.
    pub session: String,
    /// For the first message of the socket; never to be put into a URL.
    pub ticket: String,
    /// Path of the socket (subprotocol `fairlead.terminal.v1`).
    pub socket: String,
    /// The server that has the socket, `https://HOST[:PORT]`: the region's access server. Absent: this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// The `Origin` for which alone the ticket is good.
    pub origin: String,
    /// Until when it is good.
    pub expires_at: Timestamp,
    /// The host's name.
    pub host: String,
    /// The container's name; `(host)`: it is on the host itself.
    pub container: String,
}

/// A terminal that is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Terminal {
    /// The session, and the command that it is.
    pub session: String,
    /// Who opened it.
    pub user: String,
    /// The host's name.
    pub host: String,
    /// The container's name; `(host)`: it is on the host itself.
    pub container: String,
    /// Its id.
    pub container_id: String,
    /// The user in the container; empty: the container's own.
    pub exec_user: String,
    /// Since when.
    pub started_at: Timestamp,
    /// When somebody last typed into it.
    pub typed_at: Timestamp,
    /// Whether a page shows it now.
    pub has_page: bool,
    /// Bytes of output so far.
    pub output_bytes: u64,
    /// Bytes of input so far.
    pub input_bytes: u64,
}

/// A recording.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Recording {
    /// The session that was recorded.
    pub session: String,
    /// Whose it was.
    pub user: String,
    /// The host's name.
    pub host: String,
    /// The container's name; `(host)`: it is on the host itself.
    pub container: String,
    /// The container's id.
    pub container_id: String,
    /// When it began.
    pub started_at: Timestamp,
    /// Its size.
    pub bytes: u64,
}
