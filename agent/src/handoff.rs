//! The handoff: one instance of the agent gives the host to another, and nobody notices.
//!
//! ```text
//! supervisor                      V1 (owner)                V2                       access server
//!   start V2, beside               |                        | link beside the owner's ──▶ probe
//!   ◀───────────────────────────────────────────── proved ──| ◀── proven
//!   two epochs on disk             |                        |
//!   yield ────────────────────────▶| begins nothing more    |
//!   ◀─────── yielded, what it has under way                 |
//!   grant E+1 ─────────────────────────────────────────────▶| own E+1 ───────────────▶ commands go
//!   ◀──────────── each end, and the last ──────────────────▶| acts on a lane once V1    to V2, all
//!   `current` is V2's              | only streams, then ends| has left it              open ones first
//! ```
//!
//! | module | what lives there |
//! |---|---|
//! | `decide` | pure: the supervisor's part, events to actions |
//! | `role` | pure: what an instance may do |
//! | `words` | what supervisor and instances say to each other |
//! | `client` | the instance's end of the handoff socket |
//! | `part` | the instance's part: what the supervisor says becomes what executor, observer and link do |
//!
//! Until V1 has yielded, V2 is only killed when something goes wrong. From then until it has no command left
//! V1 takes the host back, with the next epoch, when V2 dies or goes silent. Then the version is committed;
//! it is on trial, and one that cannot be kept running makes room for the version before it.

pub mod client;
pub mod decide;
pub mod part;
pub mod role;
pub mod words;

#[cfg(test)]
mod model;
