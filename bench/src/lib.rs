//! Benchmarks, and the simulated fleet that they need.
//!
//! A simulated host is a link of its own: the product's code for dialling, TLS, handshake and framing
//! (`link`, `identity`, the agent's `identity`), a certificate of its own, an address of its own
//! (127.16.0.0/12), heartbeats and backoff as the agent has them. Behind the link stands a double, not the
//! agent: it answers a command at once, and neither verifies its signature, nor keeps a journal, nor has an
//! engine. What a whole agent costs is measured with real agents (`engine`, `agent_cost`).
//!
//! The hosts are not enrolled one by one: their certificates are signed with the region's own CA key, and
//! written into ledger and store while both are stopped (`installation`).
//!
//! Every figure stands beside its floor, measured in the same run: absolute times move with the neighbours.
//!
//! | module | what lives there |
//! |---|---|
//! | `measuring` | percentiles, what a process uses, trends |
//! | `installation` | a region's keys; certificates and rows for simulated hosts |
//! | `worker` | child processes of the bench, and how they are asked |
//! | `simulated_host` | one simulated host |
//! | `hosts` | the process that holds thousands of them |
//! | `crossing` | round trips and fan-out, the same for product and floor |
//! | `link_server` | the access server's links, with the bench in the uplink's place |
//! | `echo` | the floor: TLS and WebSocket, nothing else; both ends |
//! | `figures` | figure, floor, goal; the table and `bench.json` |
//! | `links`, `fleet`, `engine`, `terminal`, `agent_cost`, `sizes` | the benchmarks |
//! | `soak` | hours in minutes: what grows |
#![expect(
    clippy::expect_used,
    reason = "what fails in a measurement ends it, with the place and the reason"
)]

pub mod measuring;
pub mod installation;
pub mod worker;
pub mod simulated_host;
pub mod hosts;
pub mod crossing;
pub mod link_server;
pub mod echo;
pub mod figures;
pub mod links;
pub mod fleet;
pub mod engine;
pub mod terminal;
pub mod agent_cost;
pub mod sizes;
pub mod soak;
