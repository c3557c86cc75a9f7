//! The host as a whole: processors, memory, load and uptime by sysinfo, network and disk from the
//! kernel itself.

use std::path::{Path, PathBuf};

use fairlead_protocol::HostSample;
use sysinfo::System;

use super::read;

/// Network devices whose bytes are counted elsewhere already: every packet of a container on a
/// bridge passes its veth, the bridge, and the machine's own device.
const PASSED_ON: &[&str] = &[
    "lo", "veth", "docker", "br-", "virbr", "cni", "podman", "ifb",
];

/// Reads the host's numbers. One for the life of the process: processor load is a difference.
pub(super) struct HostReader {
    root: PathBuf,
    data_dir: PathBuf,
    /// `None` where sysinfo does not know this system.
    system: Option<System>,
}

impl HostReader {
    pub(super) fn new(root: PathBuf, data_dir: PathBuf) -> Self {
        let mut system = System::new().ok();
        if let Some(system) = &mut system {
            system.refresh_cpu_usage();
        }
        Self {
            root,
            data_dir,
            system,
        }
    }

    pub(super) fn sample(&mut self) -> HostSample {
        let (disk_used, disk_total) = disk(&self.data_dir);
        let (network_rx, network_tx) = network(&self.root.join("proc/net/dev"), PASSED_ON);
        let mut sample = HostSample {
            disk_used,
            disk_total,
            network_rx,
            network_tx,
            ..HostSample::default()
        };
        if let Some(system) = &mut self.system {
            system.refresh_cpu_usage();
            system.refresh_memory();
            sample.cpu_permille = (system.global_cpu_usage().clamp(0.0, 100.0) * 10.0) as u32;
            sample.memory_total = system.total_memory();
            sample.memory_used = system
                .total_memory()
                .saturating_sub(system.available_memory());
        }
        let load = System::load_average().map_or(0.0, |load| load.one);
        sample.load1_centi = (load.max(0.0) * 100.0) as u32;
        sample.uptime_s = System::uptime().unwrap_or(0);
        sample
    }
}

/// Used and total bytes of the file system that holds the directory, or its nearest ancestor that
/// is there. One call for one file system: a list of all of them hangs on a dead network share.
fn disk(directory: &Path) -> (u64, u64) {
    let about = directory
        .ancestors()
        .find_map(|path| rustix::fs::statvfs(path).ok());
    about.map_or((0, 0), |about| {
        let used = about.f_blocks.saturating_sub(about.f_bfree);
        (
            used.saturating_mul(about.f_frsize),
            about.f_blocks.saturating_mul(about.f_frsize),
        )
    })
}

/// Bytes received and sent by all devices of a `net/dev` file whose names do not begin so.
pub(super) fn network(path: &Path, without: &[&str]) -> (u64, u64) {
    let text = read(path).unwrap_or_default();
    let devices = text.lines().filter_map(|line| line.split_once(':'));
    devices
        .filter(|(name, _)| !without.iter().any(|prefix| name.trim().starts_with(prefix)))
        .fold((0, 0), |(rx, tx), (_, numbers)| {
            let at = |index| {
                let number: Option<&str> = numbers.split_whitespace().nth(index);
                number
                    .and_then(|number| number.parse::<u64>().ok())
                    .unwrap_or(0)
            };
            (rx + at(0), tx + at(8))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_numbers() {
        let mut reader = HostReader::new("/".into(), "/var/lib/not/there".into());
        let sample = reader.sample();
        assert!(sample.memory_total > sample.memory_used && sample.memory_used > 0);
        assert!(sample.disk_total >= sample.disk_used && sample.disk_used > 0);
        assert!(sample.cpu_permille <= 1000);
        assert!(sample.uptime_s > 0);
    }

    #[test]
    fn what_is_passed_on_is_counted_once() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/metrics/testdata/v2");
        assert_eq!(
            network(&root.join("proc/net/dev"), PASSED_ON),
            (88_123_456, 71_234_567)
        );
        assert_eq!(network(Path::new("/no/such/file"), PASSED_ON), (0, 0));
    }
}
