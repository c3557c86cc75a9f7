//! The access server: ends the links of a region's agents, keeps the region's ledger, holds the
//! uplink to the controller.
//!
//! | task | owns | hears from | tells |
//! |---|---|---|---|
//! | listener (`listener`) | the agents' port | the network | one link or door task per connection |
//! | link, per host (`link`) | one agent's WebSocket | agent, router | ledger, uplink |
//! | uplink (`uplink`) | the WebSocket to the controller | controller, outbox | ledger, router, streams |
//! | session, per terminal (`terminals`) | a page's socket, a host's stream, a recording | page, agent | ledger |
//! | shipper (`terminals`) | nothing | recordings on this disk | uplink |
//! | sweeper (`sweeper`) | nothing | time | ledger |
//!
//! Facts have one owner each: who is connected is the registry's, what is accepted is the ledger's,
//! which streams are expected is `streams`'. Modules in the order in which data flows:

pub mod config;
pub mod capacity;
pub mod app;
pub mod join;
pub mod listener;
pub mod front;
pub mod doors;
pub mod clones;
pub mod link;
pub mod registry;
pub mod router;
pub mod region;
pub mod fleet;
pub mod streams;
pub mod packages;
pub mod terminals;
pub mod sweeper;
pub mod under_way;
pub mod uplink;
pub mod metrics;
