//! What monitoring reads: Prometheus text, written by hand because it is short.
//!
//! Every label comes from a closed set (routes of the table, HTTP statuses, states, region names
//! that an admin made), so that nobody outside can make series.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use fairlead_api::backend::Observed;
use fairlead_protocol::State;

/// Upper bounds of the buckets of request times, microseconds.
const BUCKETS_US: [u64; 8] = [500, 1_000, 2_500, 5_000, 10_000, 50_000, 250_000, 1_000_000];

#[derive(Debug, Default, Clone, Copy)]
struct Requests {
    count: u64,
    sum_us: u64,
    buckets: [u64; BUCKETS_US.len()],
}

/// Counters of this process.
#[derive(Debug, Default)]
pub struct Metrics {
    requests: Mutex<BTreeMap<(&'static str, &'static str, u16), Requests>>,
    finished: [AtomicU64; 11],
    denied: AtomicU64,
}

/// A number that is read when monitoring asks.
#[derive(Debug, Clone)]
pub struct Gauge {
    /// Name without the prefix `fairlead_`.
    pub name: &'static str,
    /// What it means.
    pub help: &'static str,
    /// One series each: labels (name and value) and the number.
    pub series: Vec<(Vec<(&'static str, String)>, u64)>,
}

impl Metrics {
    /// Nothing counted yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A request was answered.
    pub fn request(&self, observed: Observed) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = requests
            .entry((observed.route, observed.method, observed.status))
            .or_default();
        entry.count += 1;
        entry.sum_us = entry.sum_us.saturating_add(observed.took_us);
        for (bucket, bound) in entry.buckets.iter_mut().zip(BUCKETS_US) {
            *bucket += u64::from(observed.took_us <= bound);
        }
    }

    /// A command got its final state.
    pub fn command_finished(&self, state: State) {
        let index = usize::try_from(i32::from(state)).unwrap_or(0);
        if let Some(counter) = self.finished.get(index) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A known caller was refused.
    pub fn denied(&self) {
        self.denied.fetch_add(1, Ordering::Relaxed);
    }

    /// All of it as Prometheus text, with gauges read just now.
    #[must_use]
    pub fn text(&self, version: &str, gauges: &[Gauge]) -> String {
        let mut out = String::with_capacity(4096);
        head(&mut out, "build_info", "gauge", "The running version.");
        line(&mut out, "build_info", &[("version", version)], 1);
        for gauge in gauges {
            head(&mut out, gauge.name, "gauge", gauge.help);
            for (labels, value) in &gauge.series {
                let labels: Vec<_> = labels.iter().map(|(k, v)| (*k, v.as_str())).collect();
                line(&mut out, gauge.name, &labels, *value);
            }
        }
        head(
            &mut out,
            "commands_finished_total",
            "counter",
            "Commands by final state.",
        );
        for (index, counter) in self.finished.iter().enumerate() {
            let state = i32::try_from(index)
                .ok()
                .and_then(|n| State::try_from(n).ok());
            if let Some(state) = state.filter(|state| state.is_final()) {
                let labels = [("state", state.name())];
                let value = counter.load(Ordering::Relaxed);
                line(&mut out, "commands_finished_total", &labels, value);
            }
        }
        head(
            &mut out,
            "api_denied_total",
            "counter",
            "Requests of known callers refused.",
        );
        line(
            &mut out,
            "api_denied_total",
            &[],
            self.denied.load(Ordering::Relaxed),
        );
        self.write_requests(&mut out);
        out
    }

    fn write_requests(&self, out: &mut String) {
        const NAME: &str = "api_request_seconds";
        head(
            out,
            NAME,
            "histogram",
            "API requests until the answer's head.",
        );
        let requests = self
            .requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        for ((route, method, status), seen) in requests {
            let status = status.to_string();
            let base = format!("route=\"{route}\",method=\"{method}\",status=\"{status}\"");
            // Writing to a String cannot fail.
            for (bound, count) in BUCKETS_US.iter().zip(seen.buckets) {
                let le = seconds(*bound);
                let _ = writeln!(out, "fairlead_{NAME}_bucket{{{base},le=\"{le}\"}} {count}");
            }
            let count = seen.count;
            let _ = writeln!(out, "fairlead_{NAME}_bucket{{{base},le=\"+Inf\"}} {count}");
            let _ = writeln!(
                out,
                "fairlead_{NAME}_sum{{{base}}} {}",
                seconds(seen.sum_us)
            );
            let _ = writeln!(out, "fairlead_{NAME}_count{{{base}}} {count}");
        }
    }
}

fn seconds(us: u64) -> String {
    format!("{}.{:06}", us / 1_000_000, us % 1_000_000)
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(
        out,
        "# HELP fairlead_{name} {help}\n# TYPE fairlead_{name} {kind}"
    );
}

fn line(out: &mut String, name: &str, labels: &[(&str, &str)], value: u64) {
    let _ = write!(out, "fairlead_{name}");
    if !labels.is_empty() {
        let labels: Vec<String> = labels
            .iter()
            .map(|(key, value)| format!("{key}=\"{}\"", escaped(value)))
            .collect();
        let _ = write!(out, "{{{}}}", labels.join(","));
    }
    let _ = writeln!(out, " {value}");
}

fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_every_final_state_and_escapes_labels() {
        let metrics = Metrics::new();
        metrics.command_finished(State::Succeeded);
        metrics.request(Observed {
            route: "/healthz",
            method: "GET",
            status: 200,
            took_us: 700,
        });
        let gauge = Gauge {
            name: "hosts",
            help: "Hosts.",
            series: vec![(vec![("region", "a\"b\n".to_owned())], 2)],
        };
        let text = metrics.text("1.0", &[gauge]);
        assert!(text.contains("fairlead_commands_finished_total{state=\"succeeded\"} 1\n"));
        assert!(text.contains("fairlead_commands_finished_total{state=\"unknown\"} 0\n"));
        assert!(text.contains("fairlead_hosts{region=\"a\\\"b\\n\"} 2\n"));
        assert!(text.contains("status=\"200\",le=\"0.000500\"} 0\n"));
        assert!(text.contains("status=\"200\",le=\"0.001000\"} 1\n"));
        assert!(text.contains("status=\"200\"} 0.000700\n"));
    }
}
