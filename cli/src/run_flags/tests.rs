//! What `docker run` would have understood.

use std::io;
use std::path::Path;

use clap::Parser;
use fairlead_api::types::{ContainerSpec, Mount, Port};

use super::table::{FLAGS, Shape};
use super::{RunFlags, Surroundings};
use crate::exit::{Exit, Failure};

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    flags: RunFlags,
}

fn read(path: &Path) -> io::Result<String> {
    match path.to_str() {
        Some("vars") => Ok("# comment\n\nA=file\n  B=2 \nHOME\nMISSING\n".to_owned()),
        Some("bad-vars") => Ok("A B=1\n".to_owned()),
        Some("labels") => Ok("\u{feff}team=ops\nflag\n".to_owned()),
        _ => Err(io::ErrorKind::NotFound.into()),
    }
}

fn env(name: &str) -> Option<String> {
    (name == "HOME").then(|| "/root".to_owned())
}

fn parse(words: &[&str], is_run: bool) -> Result<ContainerSpec, Failure> {
    let line = Line::try_parse_from(std::iter::once("run").chain(words.iter().copied()))
        .map_err(|e| Failure::usage(e.to_string()))?;
    line.flags.spec(
        is_run,
        &Surroundings {
            env: &env,
            read: &read,
        },
    )
}

fn run(line: &str) -> ContainerSpec {
    let words: Vec<&str> = line.split_whitespace().collect();
    parse(&words, true).unwrap_or_else(|e| panic!("{line}: {e}"))
}

fn refused(line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    let failure = parse(&words, true).expect_err(line);
    assert_eq!(failure.exit, Exit::Usage, "{line}");
    failure.message
}

#[test]
fn flags_after_the_image_belong_to_the_command() {
    let spec = run("-d --name web --rm nginx:1 -d --name x --gpus all -h");
    assert_eq!(spec.name, "web");
    assert_eq!(spec.image, "nginx:1");
    assert_eq!(spec.command, ["-d", "--name", "x", "--gpus", "all", "-h"]);
    assert!(spec.auto_remove);
    let spec = parse(&["-d", "a", "sh", "-c", "echo hi; sleep 1"], true).unwrap();
    assert_eq!(spec.command, ["sh", "-c", "echo hi; sleep 1"]);
    assert!(refused("--no-such-flag nginx").contains("--no-such-flag"));
}

#[test]
fn switches_bundle_and_take_values() {
    let spec = run("-dit --init=false --read-only=true -h name busybox");
    assert!(spec.tty && spec.stdin_open && spec.read_only && !spec.init);
    assert_eq!(spec.hostname, "name");
    assert!(run("-qdP a").publish_all);
    assert!(!run("--rm=false a").auto_remove);
    assert!(refused("--rm=maybe a").contains("true or false"));
    assert!(refused("-it busybox").contains("fairlead shell"));
    assert!(refused("-i busybox").contains("fairlead shell"));
    assert!(
        parse(&["-it", "busybox"], false).unwrap().tty,
        "create attaches to nothing"
    );
}

#[test]
fn every_refused_flag_is_refused_by_name() {
    for flag in FLAGS.iter().filter(|flag| flag.refused) {
        let line = match flag.shape {
            Shape::Switch => format!("-d --{} a", flag.long),
            Shape::One | Shape::Many => format!("-d --{} 1 a", flag.long),
        };
        let message = refused(&line);
        assert!(
            message.starts_with(&format!(
                "--{} is not supported by Fairlead yet: ",
                flag.long
            )),
            "{message}"
        );
    }
    assert!(refused("--gpus all nginx").contains("GPUs"));
    assert!(refused("--link db nginx").contains("--network"));
    assert!(refused("--disable-content-trust=false a").contains("Content Trust"));
    run("--disable-content-trust a");
}

/// The flags of docker 28's `docker run --help`, with those that it hides from older engines.
const DOCKERS: &str = "add-host annotation attach blkio-weight blkio-weight-device cap-add cap-drop \
    cgroup-parent cgroupns cidfile cpu-count cpu-percent cpu-period cpu-quota cpu-rt-period \
    cpu-rt-runtime cpu-shares cpus cpuset-cpus cpuset-mems detach detach-keys device \
    device-cgroup-rule device-read-bps device-read-iops device-write-bps device-write-iops \
    disable-content-trust dns dns-option dns-search domainname entrypoint env env-file expose gpus \
    group-add health-cmd health-interval health-retries health-start-interval health-start-period \
    health-timeout hostname init interactive io-maxbandwidth io-maxiops ip ip6 ipc isolation \
    kernel-memory label label-file link link-local-ip log-driver log-opt mac-address memory \
    memory-reservation memory-swap memory-swappiness mount name network network-alias \
    no-healthcheck oom-kill-disable oom-score-adj pid pids-limit platform privileged publish \
    publish-all pull quiet read-only restart rm runtime security-opt shm-size sig-proxy stop-signal \
    stop-timeout storage-opt sysctl tmpfs tty ulimit use-api-socket user userns uts volume \
    volume-driver volumes-from workdir";

#[test]
fn no_flag_of_docker_is_missing_and_none_is_invented() {
    let ours: Vec<&str> = FLAGS.iter().map(|flag| flag.long).collect();
    let dockers: Vec<&str> = DOCKERS.split_whitespace().collect();
    assert_eq!(ours, dockers);
}

#[test]
fn resources() {
    let spec = run(
        "-m 64m --memory-reservation 32m --memory-swap -1 --cpus 1.5 -c 512 \
         --cpuset-cpus 0-1 --pids-limit 100 --shm-size 1g --ulimit nofile=1024:2048 \
         --ulimit core=-1 --oom-score-adj -500 a",
    );
    assert_eq!(spec.memory_bytes, 64 << 20);
    assert_eq!(spec.memory_reservation_bytes, 32 << 20);
    assert_eq!(spec.memory_swap_bytes, -1);
    assert_eq!(spec.nano_cpus, 1_500_000_000);
    assert_eq!(
        (spec.cpu_shares, spec.pids_limit, spec.shm_bytes),
        (512, 100, 1 << 30)
    );
    assert_eq!(spec.ulimits, ["nofile=1024:2048", "core=-1"]);
    assert_eq!(spec.oom_score_adj, -500);
    for line in [
        "-m lots a",
        "--memory-swap 1g a",
        "-m 2g --memory-swap 1g a",
        "--cpus two a",
        "--ulimit files=1 a",
        "--ulimit nofile=9:1 a",
        "--oom-score-adj 2000 a",
        "--pids-limit many a",
    ] {
        refused(line);
    }
}

#[test]
fn ports() {
    let port = |ip: &str, host, container, proto: &str| Port {
        host_ip: ip.to_owned(),
        host_port: host,
        container_port: container,
        proto: proto.to_owned(),
    };
    for (text, expected) in [
        ("80", vec![port("", 0, 80, "tcp")]),
        ("8080:80", vec![port("", 8080, 80, "tcp")]),
        (
            "127.0.0.1:8080:80/udp",
            vec![port("127.0.0.1", 8080, 80, "udp")],
        ),
        ("127.0.0.1::80", vec![port("127.0.0.1", 0, 80, "tcp")]),
        ("[::1]:8080:80", vec![port("::1", 8080, 80, "tcp")]),
        (
            "8000-8001:9000-9001/SCTP",
            vec![port("", 8000, 9000, "sctp"), port("", 8001, 9001, "sctp")],
        ),
        (
            "80-81",
            vec![port("", 0, 80, "tcp"), port("", 0, 81, "tcp")],
        ),
    ] {
        assert_eq!(run(&format!("-p {text} a")).ports, expected, "{text}");
    }
    for text in [
        "0",
        "x",
        "80:",
        "80/icmp",
        "8000-8010:80",
        "8000-8001:80-82",
        "81-80",
        "box:1:2",
        "70000",
    ] {
        refused(&format!("-p {text} a"));
    }
    assert_eq!(run("--expose 80-81/udp a").expose, ["80/udp", "81/udp"]);
    refused("--expose 1:2 a");
}

#[test]
fn mounts() {
    let mount = |kind: &str, source: &str, target: &str, read_only| Mount {
        kind: kind.to_owned(),
        source: source.to_owned(),
        target: target.to_owned(),
        read_only,
        propagation: String::new(),
    };
    for (line, expected) in [
        ("-v /data", mount("volume", "", "/data", false)),
        ("-v cache:/data/", mount("volume", "cache", "/data", false)),
        (
            "-v /srv:/data:ro,cached",
            mount("bind", "/srv", "/data", true),
        ),
        (
            "--mount type=bind,src=/srv,dst=/data,readonly",
            mount("bind", "/srv", "/data", true),
        ),
        (
            "--mount source=cache,target=/data,ro=false",
            mount("volume", "cache", "/data", false),
        ),
        (
            "--mount type=volume,target=/data",
            mount("volume", "", "/data", false),
        ),
    ] {
        assert_eq!(run(&format!("{line} a")).mounts, [expected], "{line}");
    }
    assert_eq!(run("-v /a:/b:rslave a").mounts[0].propagation, "rslave");
    assert_eq!(run("--tmpfs /run:size=1m a").tmpfs, ["/run:size=1m"]);
    assert_eq!(
        run("--mount type=tmpfs,target=/run,tmpfs-size=1m,tmpfs-mode=1777 a").tmpfs,
        ["/run:size=1048576,mode=1777"]
    );
    assert!(refused("-v ./here:/data a").contains("on the host"));
    for line in [
        "-v data",
        "-v /a:b",
        "-v /a:/b:ro:x",
        "-v /a:/",
        "-v /a:/b:Z",
        "-v /a:/b:sometimes",
        "-v -x:/b",
        "--mount type=bind,src=rel,dst=/d",
        "--mount type=bind,src=/a",
        "--mount type=npipe,src=/a,dst=/b",
        "--mount type=volume,src=/a,dst=/b",
        "--mount type=volume,dst=/b,volume-driver=x",
        "--mount type=bind,src=/a,dst=/b,tmpfs-size=1",
        "-v /a:/d --tmpfs /d",
    ] {
        refused(&format!("{line} a"));
    }
}

#[test]
fn variables_and_labels() {
    let spec = run("--env-file vars -e A=flag -e EMPTY= -e HOME -e ALSO_MISSING a");
    assert_eq!(spec.env, ["A=flag", "B=2 ", "HOME=/root", "EMPTY="]);
    let spec = run("--label-file labels -l team=web -l plain a");
    let labels: Vec<(&str, &str)> = spec
        .labels
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect();
    assert_eq!(labels, [("flag", ""), ("plain", ""), ("team", "web")]);
    for line in ["--env-file bad-vars", "--env-file gone", "-e =x", "-l =x"] {
        refused(&format!("{line} a"));
    }
}

#[test]
fn policies_health_and_networks() {
    let spec = run("--restart on-failure:3 a");
    assert_eq!(
        (spec.restart_policy.as_str(), spec.restart_max),
        ("on-failure", 3)
    );
    for line in [
        "--restart sometimes",
        "--restart always:3",
        "--restart always --rm",
    ] {
        refused(&format!("{line} a"));
    }
    let health = parse(
        &[
            "--health-cmd",
            "wget -q localhost",
            "--health-interval",
            "1m30s",
            "--health-retries",
            "2",
            "a",
        ],
        true,
    )
    .unwrap()
    .health
    .unwrap();
    assert_eq!(health.command, "wget -q localhost");
    assert_eq!((health.interval_ms, health.retries), (90_000, 2));
    assert!(run("--no-healthcheck a").health.unwrap().disabled);
    assert!(run("a").health.is_none());
    refused("--no-healthcheck --health-cmd x a");

    assert_eq!(run("--net host a").network, "host");
    assert_eq!(run("--network default a").network, "");
    let spec = run("--network name=shop,alias=db,ip=10.0.0.2 --network-alias also a");
    assert_eq!(
        (spec.network.as_str(), spec.ip.as_str()),
        ("shop", "10.0.0.2")
    );
    assert_eq!(spec.network_aliases, ["db", "also"]);
    refused("--network a --network b c");
    refused("--ip here a");
    refused("--dns here a");
    assert_eq!(
        run("--add-host db:10.0.0.1 --add-host gw=host-gateway --add-host six:[::1] a").extra_hosts,
        ["db:10.0.0.1", "gw:host-gateway", "six:::1"]
    );
}

#[test]
fn privileges() {
    let spec = run(
        "--device /dev/fuse --device /dev/sda:r --device /dev/a:/dev/b:rw \
         --cap-add NET_ADMIN --cap-drop ALL --security-opt no-new-privileges \
         --security-opt seccomp=unconfined --sysctl net.core.somaxconn=1024 --entrypoint= a",
    );
    assert_eq!(
        spec.devices,
        ["/dev/fuse", "/dev/sda:/dev/sda:r", "/dev/a:/dev/b:rw"]
    );
    assert_eq!(spec.cap_add, ["NET_ADMIN"]);
    assert_eq!(
        spec.security_opt,
        ["no-new-privileges", "seccomp=unconfined"]
    );
    assert_eq!(spec.sysctls["net.core.somaxconn"], "1024");
    assert_eq!(spec.entrypoint, Some(vec![String::new()]));
    for line in [
        "--device vendor/class=1",
        "--device /dev/a:/dev/b:x",
        "--security-opt seccomp=file.json",
        "--security-opt nonsense",
        "--pull sometimes",
    ] {
        refused(&format!("{line} a"));
    }
}
