//! What every daemon's process needs and nothing about what it does: clock, shutdown, logs, durable
//! small files.

pub mod clock;
pub mod shutdown;
pub mod telemetry;
pub mod files;
pub mod process;
pub mod service;
pub mod arrivals;
pub mod passing;
