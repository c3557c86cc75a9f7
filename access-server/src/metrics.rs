//! Counters of the access server in Prometheus' text format. Labels are fixed: nothing that a peer
//! says becomes one.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::region::Region;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn increment(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// All counters.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections that failed at TLS or WebSocket.
    pub handshakes_failed: Counter,
    /// Commands taken from the centre.
    pub commands_taken: Counter,
    /// Streams joined.
    pub streams_joined: Counter,
}

/// The text for `/metrics`.
#[must_use]
pub fn render(region: &Region) -> String {
    let mut text = String::new();
    let counters = &region.counters;
    let rows: [(&str, &str, u64); 5] = [
        ("fairlead_links", "gauge", region.registry.len() as u64),
        (
            "fairlead_uplink_up",
            "gauge",
            u64::from(region.is_attached()),
        ),
        (
            "fairlead_handshakes_failed_total",
            "counter",
            counters.handshakes_failed.get(),
        ),
        (
            "fairlead_commands_taken_total",
            "counter",
            counters.commands_taken.get(),
        ),
        (
            "fairlead_streams_joined_total",
            "counter",
            counters.streams_joined.get(),
        ),
    ];
    for (name, kind, value) in rows {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "# TYPE {name} {kind}\n{name} {value}");
    }
    text
}
