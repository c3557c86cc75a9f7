//! The agent: the process on a host that carries out commands and says what it sees.
//!
//! It dials out and listens on no port. `supervise` starts it and grants it ownership of the host for
//! an epoch; `app` builds the tasks below and runs them until shutdown.
//!
//! | task | owns | hears from | tells |
//! |---|---|---|---|
//! | connection (`connection`, `session`) | the link, one at a time | access server | executor, observer |
//! | executor (`executor`) | journal, lanes, commands | connection, its jobs | connection |
//! | observer (`observe`) | picture of the containers, metrics, events | engine | connection |
//!
//! Modules in the order in which data flows:

pub mod config;
pub mod supervise;
pub mod handoff;
pub mod upgrade;
pub mod leave;
pub mod uninstall;
pub mod app;
pub mod identity;
pub mod enrol;
pub mod connection;
pub mod clone;
pub mod session;
pub mod link_report;
pub mod status;
pub mod executor;
pub mod journal;
pub mod runtime;
pub mod observe;
pub mod inventory;
pub mod metrics;
pub mod host_facts;
pub mod host_check;
pub mod policy;
pub mod owner_log;
pub mod pty;
pub mod signals;
