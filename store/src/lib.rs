//! Durable state of the controller and of a region (its ledger): one SQLite file, the same tables.
//!
//! The only crate that knows SQL. Callers use named methods ([`Store::write`] and [`Store::read`]
//! take closures over [`Tx`], whose methods live in one module per table). All writes go through one
//! thread, which puts everything that waits into one transaction and one sync: a hundred commands
//! accepted at once cost one fsync, and "written" always means "synced".
//!
//! | module | tables |
//! |---|---|
//! | `commands` | commands |
//! | `exchange` | outbox, exchange (numbered messages between region and centre) |
//! | `hosts` | hosts, revoked_serials, pictures |
//! | `regions` | regions |
//! | `rollouts` | rollouts |
//! | `tokens` | api_tokens, join_tokens |
//! | `audit` | audit |
//! | `events` | events |
//! | `meta` | meta |

mod database;
pub mod audit;
pub mod events;
pub mod tokens;
pub mod commands;
pub mod exchange;
pub mod hosts;
pub mod regions;
pub mod rollouts;
pub mod meta;

pub use database::{Enqueued, Store, StoreError, Tx};

/// The tenant of everything until tenants can be made.
pub const DEFAULT_TENANT: &str = "default";
