//! The controller: API, CA, fleet-wide view, dispatch to regions.

pub mod fleet;
pub mod feed;
pub mod setup;
pub mod metrics;
pub mod backend;
