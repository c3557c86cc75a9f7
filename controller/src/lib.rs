//! The controller: API, CA, fleet-wide view, dispatch to regions.
//!
//! | task | owns | hears from | tells |
//! |---|---|---|---|
//! | https (`api` crate, `backend`) | requests | CLI, browsers | store, dispatch |
//! | uplink port (`regions`) | its listener | the network | one task per uplink, door or stream |
//! | uplink, per region (`regions::uplink`) | one WebSocket | access server, outbox | store, fleet, dispatch |
//! | housekeeping (`app`) | nothing | time | store |
//! | ACME (`acme`) | the https certificate | time, the CA | https, `acme/` in the data directory |
//!
//! Modules in the order in which data flows:

pub mod config;
pub mod app;
pub mod authority;
pub mod installation;
pub mod provision;
pub mod doors;
pub mod https;
pub mod web_status;
pub mod acme;
pub mod packages;
pub mod rollouts;
pub mod setup;
pub mod backend;
pub mod dispatch;
pub mod regions;
pub mod streams;
pub mod fleet;
pub mod restart;
pub mod feed;
pub mod metrics;
