//! Every bound that both ends of a connection rely on, in one place, each with its reason.

use std::time::Duration;

/// Largest message on a link. tungstenite never gives a grown buffer back, so one large message
/// would cost that memory on that link for ever; what is larger goes in parts or by stream.
pub const LINK_MESSAGE_BYTES_MAX: usize = 8 * 1024;
/// Largest message on an uplink: there are few of them, and results travel whole.
pub const UPLINK_MESSAGE_BYTES_MAX: usize = 1024 * 1024;
/// Largest frame of a stream.
pub const STREAM_MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// What one frame of a stream carries: half the maximum, so that headers always fit.
pub const STREAM_CHUNK_BYTES: usize = 32 * 1024;
/// Largest encoded command: a delivery around it still fits into one link message.
pub const COMMAND_BYTES_MAX: usize = 7 * 1024;
/// What one part of a result's body carries.
pub const RESULT_PART_BYTES: usize = 6 * 1024;
/// Largest body of a result. What an engine says beyond it is cut, and the result says so.
pub const RESULT_BODY_BYTES_MAX: usize = 256 * 1024;
/// Largest archive that is copied into a container: it lies on the host's disk until its digest is checked.
pub const COPY_IN_BYTES_MAX: u64 = 4 << 30;
/// How much of an unattached exec's output is kept as its result.
pub const EXEC_TAIL_BYTES_MAX: usize = 64 * 1024;
/// How far ahead a command's deadline may lie. Journals keep ids until the deadline and a day more.
pub const NOT_AFTER_AHEAD_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long past its deadline the id and final state of a command are kept.
pub const COMMAND_KEPT_AFTER_DEADLINE: Duration = Duration::from_secs(24 * 3600);
/// Clocks of two servers that are further apart are told to people, and a host does not believe a command that
/// says to come from so far ahead.
pub const CLOCKS_APART_MAX: Duration = Duration::from_secs(60);
/// Deadline of a command whose issuer named none.
pub const NOT_AFTER_DEFAULT: Duration = Duration::from_secs(5 * 60);
/// Ping interval of a link, both ways.
pub const LINK_PING_INTERVAL: Duration = Duration::from_secs(15);
/// Ping interval of an uplink.
pub const UPLINK_PING_INTERVAL: Duration = Duration::from_secs(2);
/// An uplink that said nothing for so long is cut.
pub const UPLINK_SILENT_AFTER: Duration = Duration::from_secs(10);
/// Missed pings after which a host is suspect, and after which it is offline.
pub const PINGS_MISSED_SUSPECT: u32 = 2;
/// How long an access server that ends in order waits until its controller has taken the word.
pub const LEAVING_TAKEN_WITHIN: Duration = Duration::from_secs(1);
/// A server that is restarted in order is not waited for beyond this, whatever it says.
pub const BACK_WITHIN_MAX: Duration = Duration::from_secs(5 * 60);
/// See [`PINGS_MISSED_SUSPECT`].
pub const PINGS_MISSED_OFFLINE: u32 = 3;
/// A connection that has not said a single byte for so long is cut.
pub const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(5);
/// TLS and WebSocket handshake together; a peer that dawdles is cut.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// The first message after the handshake must come within this.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// An older link that is challenged for its host must answer within this, else it is a ghost.
pub const CHALLENGE_TIMEOUT: Duration = Duration::from_secs(2);
/// A stream that was asked for must be dialled within this.
pub const STREAM_DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// An expired agent certificate opens the renew door for this long.
pub const RENEW_GRACE: Duration = Duration::from_secs(90 * 24 * 3600);
/// Life of an agent certificate; renewed at a third of it.
pub const AGENT_CERTIFICATE_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Longest name of a container, host, region, token, label.
pub const NAME_CHARS_MAX: usize = 128;
/// Longest free text of any other field in a request.
pub const TEXT_CHARS_MAX: usize = 1024;
