//! Terminals in containers: between a browser (or the CLI) and a command's stream.
//!
//! Knows the protocol and identities, and no server: it is given streams, a clock, a directory for
//! recordings, and somebody to ask when a terminal is to be opened ([`terminals::Opening`]).
//!
//! ```text
//! page ──first message: ticket──▶ socket ─▶ terminals ─▶ session ◀══frames══▶ agent ◀══▶ engine
//!                                   origin    tickets      backlog, recording
//! ```
//!
//! | module | what it decides |
//! |---|---|
//! | `origin` | which pages may open a socket at all |
//! | `tickets` | that a ticket is spent once |
//! | `message` | what page and bridge say to each other |
//! | `backlog` | output kept for a page that comes back, and how much may be under way |
//! | `recording` | asciicast, each line chained to the one before |
//! | `session` | one terminal: the agent's stream, at most one page, the recording |
//! | `terminals` | all of them: opening, coming back, listing, ending |
//! | `strangers` | how many sockets may wait without a ticket |
//! | `socket` | the WebSocket's side |
//! | `page` | the terminal page, as it was built |

pub mod origin;
pub mod tickets;
pub mod message;
pub mod backlog;
pub mod recording;
pub mod session;
pub mod terminals;
mod frozen;
mod strangers;
pub mod socket;
pub mod page;

pub use frozen::Frozen;
pub use origin::Origins;
pub use session::{Ended, Info, Pipe};
pub use terminals::{Admitted, Opening, Parts, Refused, Resumed, Shown, Terminals};

/// Now, in microseconds since 1970.
pub type Now = std::sync::Arc<dyn Fn() -> i64 + Send + Sync>;
