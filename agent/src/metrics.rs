//! Host and container metrics from `/proc` and cgroup files. Reads only.
//!
//! The engine's own statistics call takes a second for each container and costs the engine work;
//! the kernel's files cost microseconds. The engine is asked for one thing only, and that while
//! listing: each container's process. The root of the file system can be another one, so that
//! tests run on recorded trees. A container of which nothing can be read (it has just ended) has
//! no sample in that round.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use fairlead_protocol::{ContainerSample, HostSample, Message, MetricsPart, limits};

use crate::runtime::{ContainerProcess, Load};
use cgroup::Mounts;
use host::HostReader;

mod cgroup;
mod host;

/// Left free in a message for what is around a part.
const ENVELOPE_BYTES: usize = 64;
/// Largest encoded part.
pub const PART_BYTES_MAX: usize = limits::LINK_MESSAGE_BYTES_MAX - ENVELOPE_BYTES;

/// Processor time of a container when it was read last.
#[derive(Debug, Clone, Copy)]
struct Before {
    pid: u32,
    cpu_ns: u64,
    at: Instant,
}

/// Takes samples; keeps the counters of the last round, because rates need two.
pub struct Sampler {
    root: PathBuf,
    host: HostReader,
    before: HashMap<String, Before>,
}

impl Sampler {
    /// For this machine. `data_dir` is where the engine keeps its data: its file system is the one
    /// whose space is reported.
    #[must_use]
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self::at("/", data_dir)
    }

    /// With the files of `/proc` and `/sys` below another root.
    #[must_use]
    pub fn at(root: impl Into<PathBuf>, data_dir: impl Into<PathBuf>) -> Self {
        let root = root.into();
        let host = HostReader::new(root.clone(), data_dir.into());
        Self {
            root,
            host,
            before: HashMap::new(),
        }
    }

    /// One round: the host, then the containers, in parts that fit a link. Reads files, so it is
    /// for a thread that may block. Rates are zero in the first round and after a counter went
    /// backwards.
    pub fn round(&mut self, load: &Load, now: Instant, at_us: i64) -> Vec<MetricsPart> {
        let host = self.host.sample();
        let mut samples = match load {
            Load::Samples(samples) => samples.clone(),
            Load::Processes(processes) => self.containers(processes, host.memory_total, now),
        };
        samples.sort_by(|a, b| a.id.cmp(&b.id));
        packed(host, samples, at_us)
    }

    fn containers(
        &mut self,
        processes: &[ContainerProcess],
        memory_total: u64,
        now: Instant,
    ) -> Vec<ContainerSample> {
        let mounts = Mounts::read(&self.root);
        let mut before = HashMap::new();
        let mut samples = Vec::new();
        for process in processes {
            let Some(read) = mounts.counters(&self.root, process) else {
                continue;
            };
            let last = self
                .before
                .get(&process.id)
                .filter(|last| last.pid == process.pid);
            let cpu_permille = last.map_or(0, |last| rate(last, read.cpu_ns, now));
            let kept = Before {
                pid: process.pid,
                cpu_ns: read.cpu_ns,
                at: now,
            };
            before.insert(process.id.clone(), kept);
            let (network_rx, network_tx) = if process.host_network {
                (0, 0)
            } else {
                host::network(
                    &self.root.join(format!("proc/{}/net/dev", process.pid)),
                    &["lo"],
                )
            };
            // Without a limit the kernel writes a number beyond any memory.
            let limited = memory_total == 0 || read.memory_limit < memory_total;
            samples.push(ContainerSample {
                id: process.id.clone(),
                cpu_permille,
                memory_used: read.memory_used,
                memory_limit: if limited { read.memory_limit } else { 0 },
                network_rx,
                network_tx,
                pids: read.pids,
            });
        }
        // Containers that are gone take their counters with them.
        self.before = before;
        samples
    }
}

/// Thousandths of a processor between two readings.
fn rate(last: &Before, cpu_ns: u64, now: Instant) -> u32 {
    let wall_ns = now.saturating_duration_since(last.at).as_nanos();
    let Some(used_ns) = cpu_ns.checked_sub(last.cpu_ns) else {
        return 0;
    };
    if wall_ns == 0 {
        return 0;
    }
    u32::try_from(u128::from(used_ns) * 1000 / wall_ns).unwrap_or(u32::MAX)
}

fn packed(host: HostSample, samples: Vec<ContainerSample>, at_us: i64) -> Vec<MetricsPart> {
    let mut part = MetricsPart {
        at_us,
        host: Some(host),
        containers: Vec::new(),
    };
    let mut size = part.encoded_len();
    let mut parts = Vec::new();
    for sample in samples {
        // A tag of one byte and a length of up to two.
        let more = sample.encoded_len() + 3;
        if size + more > PART_BYTES_MAX {
            parts.push(std::mem::take(&mut part));
            part.at_us = at_us;
            size = part.encoded_len();
        }
        size += more;
        part.containers.push(sample);
    }
    parts.push(part);
    parts
}

/// A file's text; `None` when it cannot be read (processes end while one looks).
fn read(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

#[cfg(test)]
mod tests;
