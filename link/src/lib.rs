//! One authenticated WebSocket, both ends: TLS, hello, liveness, backoff, streams.
//!
//! The same code carries the link (agent ↔ access server) and the uplink (access server ↔
//! controller). This crate knows how a connection is made, kept and told apart; it knows nothing
//! about commands.
//!
//! # The handshake, step by step (the specification)
//!
//! 1. The dialler opens TCP (where there is a proxy, by CONNECT through it) and TLS 1.3, naming the kind
//!    of server in SNI (`agents.fairlead.internal`, `uplink.fairlead.internal`). Unless it is enrolling
//!    it shows its certificate. The server shows leaf, intermediate and root.
//! 2. The dialler checks the server's chain against the installation's root (or finds the root by the
//!    hash in its join token) and demands the role that it dialled: an agent an access server of its
//!    region, an access server the controller. Failure: TLS alert, nothing was sent.
//! 3. The server checks the dialler's chain in the same way. A certificate that has expired for less
//!    than 90 days passes, for the renew door only. Failure: TLS alert.
//! 4. WebSocket upgrade with subprotocol `fairlead.v1`. The path is the door: `/v1/link`,
//!    `/v1/enrol`, `/v1/renew`, `/v1/uplink`, `/v1/stream/<id>`, `/v1/package`. Steps 1 to 4 share one deadline of
//!    10 s, once the dialler has said its first byte (5 s) and it is its address's turn (`doorkeeper`;
//!    10 s). Failure: an HTTP status, or the connection closes.
//! 5. The server looks at the verified chain again on the finished connection, because a resumed TLS
//!    session skips step 3: role, expiry, revocation. A door that is not open to this peer is
//!    answered with `Refused`.
//! 6. The dialler sends `Hello` (versions, features, instance, run, epoch) within 10 s.
//! 7. The server answers `Welcome` (version chosen, its own name, connection id, server time), or
//!    `Refused` with a code and when to come back, and closes.
//! 8. From here both send what they have to say; each pings every 15 s (uplink: 2 s), and counts
//!    whatever it hears as life. Two missed pings: suspect; three: the connection is cut (uplink:
//!    10 s).
//! 9. A stream (`/v1/stream/<id>`) skips 6 to 8: its id was announced on the link of the very same
//!    host, anything else is refused.
//! 10. The door for packages skips 6 to 8, too: the first frame says which file is wanted (`package`).

pub mod backoff;
pub mod socket;
pub mod carry;
pub mod package;
mod reach;
pub mod proxy;
pub mod dial;
pub mod accept;
pub mod doorkeeper;
