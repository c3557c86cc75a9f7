//! Percentiles, what a process uses by the kernel's own count, and whether a series grows.

use std::fs;
use std::time::Duration;

/// What of the samples lies below.
///
/// # Panics
/// When there are no samples.
#[must_use]
pub fn percentile(samples: &[f64], share: f64) -> f64 {
    assert!(!samples.is_empty(), "no samples");
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len() - 1;
    // An index: never negative, never beyond the last.
    let at = (last as f64 * share).round() as usize;
    sorted[at.min(last)]
}

/// Microseconds.
#[must_use]
pub fn micros(elapsed: Duration) -> f64 {
    elapsed.as_secs_f64() * 1e6
}

/// Milliseconds.
#[must_use]
pub fn millis(elapsed: Duration) -> f64 {
    elapsed.as_secs_f64() * 1e3
}

/// What a process uses.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// Resident memory, KiB.
    pub rss_kib: f64,
    /// Open files.
    pub files: f64,
    /// Processor time of all its threads that live, milliseconds.
    pub cpu_ms: f64,
}

/// What a process uses now; zeros when it is not there.
#[must_use]
pub fn usage(pid: u32) -> Usage {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let files = fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
    let nanoseconds: f64 = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("schedstat")).ok())
        .filter_map(|text| text.split(' ').next()?.parse::<f64>().ok())
        .sum();
    Usage {
        rss_kib: kib_in(&status, "VmRSS:"),
        files: files as f64,
        cpu_ms: nanoseconds / 1e6,
    }
}

/// The kernel's slab of this machine, KiB: sockets live there, of both ends of a loopback connection.
#[must_use]
pub fn slab_kib() -> f64 {
    kib_in(
        &fs::read_to_string("/proc/meminfo").unwrap_or_default(),
        "Slab:",
    )
}

/// How busy the machine was in the last minute.
#[must_use]
pub fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ')
        .next()
        .and_then(|first| first.parse().ok())
        .unwrap_or_default()
}

fn kib_in(text: &str, field: &str) -> f64 {
    text.lines()
        .find_map(|line| line.strip_prefix(field))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or_default()
}

/// How much a series grows in all, by the straight line that fits it best: last point of the line minus
/// first.
#[must_use]
pub fn growth(series: &[f64]) -> f64 {
    let count = series.len() as f64;
    if count < 2.0 {
        return 0.0;
    }
    let middle = (count - 1.0) / 2.0;
    let mean = series.iter().sum::<f64>() / count;
    let (mut along, mut across) = (0.0, 0.0);
    for (index, value) in series.iter().enumerate() {
        let distance = index as f64 - middle;
        along += distance * distance;
        across += distance * (value - mean);
    }
    across / along * (count - 1.0)
}
