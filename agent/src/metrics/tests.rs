//! On recorded trees: v1 from a Docker 20.10 with the cgroupfs driver (a container that had written
//! 4 MiB of files), v2 in the kernel's documented format, with the systemd driver's and the cgroupfs
//! driver's layouts.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fairlead_protocol::{ContainerSample, LinkUp, Message, MetricsPart, limits, link_up};

use super::Sampler;
use crate::runtime::{ContainerProcess, Load};

const V1_ID: &str = "f0828a2336b7e1c596fea80817a2653d797a199382306e059a2964cb58cbf1f8";
const V1_PID: u32 = 21413;

fn recorded(version: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("src/metrics/testdata")
        .join(version)
}

fn process(id: &str, pid: u32) -> ContainerProcess {
    ContainerProcess {
        id: id.to_owned(),
        pid,
        host_network: false,
    }
}

fn samples(parts: Vec<MetricsPart>) -> Vec<ContainerSample> {
    parts.into_iter().flat_map(|part| part.containers).collect()
}

/// A copy of a recorded tree that may be changed.
fn copied(version: &str) -> tempfile::TempDir {
    fn copy(from: &Path, to: &Path) {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let target = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                copy(&entry.path(), &target);
            } else {
                std::fs::write(&target, std::fs::read(entry.path()).unwrap()).unwrap();
            }
        }
    }
    let dir = tempfile::tempdir().unwrap();
    copy(&recorded(version), dir.path());
    dir
}

#[test]
fn v1_as_docker_stats_counts() {
    let mut sampler = Sampler::at(recorded("v1"), "/");
    let load = Load::Processes(vec![process(V1_ID, V1_PID)]);
    let sample = samples(sampler.round(&load, Instant::now(), 0)).remove(0);
    let expected = ContainerSample {
        id: V1_ID.to_owned(),
        cpu_permille: 0,
        memory_used: 5_267_456 - 4_194_304,
        memory_limit: 67_108_864,
        network_rx: 426,
        network_tx: 0,
        pids: 2,
    };
    assert_eq!(sample, expected);
}

#[test]
fn v2_in_both_layouts() {
    let (systemd, cgroupfs) = ("5d3c1e0f".repeat(8), "9a7b6c5d".repeat(8));
    let mut sampler = Sampler::at(recorded("v2"), "/");
    let mut other = process(&cgroupfs, 4102);
    other.host_network = true;
    let load = Load::Processes(vec![process(&systemd, 4101), other]);
    let samples = samples(sampler.round(&load, Instant::now(), 0));
    let expected = [
        ContainerSample {
            id: systemd,
            cpu_permille: 0,
            memory_used: 56_885_248 - 8_388_608,
            memory_limit: 268_435_456,
            network_rx: 2_048_576,
            network_tx: 1_024_288,
            pids: 11,
        },
        ContainerSample {
            id: cgroupfs,
            memory_used: 1_048_576,
            pids: 1,
            ..Default::default()
        },
    ];
    assert_eq!(samples, expected);
}

#[test]
fn rates_need_two_readings_and_survive_resets() {
    let dir = copied("v1");
    let usage = dir.path().join(format!(
        "sys/fs/cgroup/cpuacct/docker/{V1_ID}/cpuacct.usage"
    ));
    let mut sampler = Sampler::at(dir.path(), "/");
    let begun = Instant::now();
    let mut at = |second: u64, used_ns: u64, pid: u32| {
        std::fs::write(&usage, format!("{used_ns}\n")).unwrap();
        let load = Load::Processes(vec![process(V1_ID, pid)]);
        let now = begun + Duration::from_secs(second);
        samples(sampler.round(&load, now, 0))
            .first()
            .map(|sample| sample.cpu_permille)
    };
    assert_eq!(at(0, 5_000_000_000, V1_PID), Some(0));
    assert_eq!(at(10, 20_000_000_000, V1_PID), Some(1500));
    assert_eq!(
        at(10, 30_000_000_000, V1_PID),
        Some(0),
        "no time has passed"
    );
    assert_eq!(
        at(20, 1_000_000, V1_PID),
        Some(0),
        "the counter began again"
    );
    assert_eq!(at(30, 1_001_000_000, V1_PID), Some(100));
    assert_eq!(at(40, 9_000_000_000, 77), None, "its process is gone");
    assert_eq!(
        at(50, 9_000_000_000, V1_PID),
        Some(0),
        "and its counters with it"
    );
}

#[test]
fn a_process_of_another_container_is_not_this_ones() {
    let mut sampler = Sampler::at(recorded("v1"), "/");
    let load = Load::Processes(vec![process(&"0".repeat(64), V1_PID)]);
    assert_eq!(samples(sampler.round(&load, Instant::now(), 0)), []);
}

#[test]
fn parts_fit_a_link() {
    let sample = |n: u64| ContainerSample {
        id: format!("{n:064}"),
        cpu_permille: u32::MAX,
        memory_used: u64::MAX,
        memory_limit: u64::MAX,
        network_rx: u64::MAX,
        network_tx: u64::MAX,
        pids: u32::MAX,
    };
    let all: Vec<_> = (0..500).map(sample).collect();
    let mut sampler = Sampler::new("/");
    let parts = sampler.round(&Load::Samples(all.clone()), Instant::now(), 42);
    assert!(parts.len() > 1);
    for (index, part) in parts.iter().enumerate() {
        assert_eq!((part.at_us, part.host.is_some()), (42, index == 0));
        let message = LinkUp {
            kind: Some(link_up::Kind::Metrics(part.clone())),
        };
        assert!(message.encoded_len() <= limits::LINK_MESSAGE_BYTES_MAX);
    }
    assert_eq!(samples(parts), all);
    assert_eq!(
        sampler
            .round(&Load::Samples(Vec::new()), Instant::now(), 0)
            .len(),
        1
    );
}
