//! The agent: the process on a host that carries out commands and says what it sees.

pub mod runtime;
pub mod metrics;
pub mod policy;
pub mod inventory;
pub mod host_facts;
