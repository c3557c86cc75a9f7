use fairlead_protocol::{ContainerSpec, HealthSpec, Label, MountSpec, PortMapping};
use serde_json::{Value, json};

use super::{create_request, some_list};
use crate::runtime::RuntimeError;
use crate::runtime::docker::transport::ApiVersion;

const OLD: ApiVersion = ApiVersion::new(1, 41);
const NEW: ApiVersion = ApiVersion::new(1, 47);

fn label(key: &str, value: &str) -> Label {
    Label {
        key: key.into(),
        value: value.into(),
    }
}

fn spec() -> ContainerSpec {
    ContainerSpec {
        name: "web".into(),
        image: "nginx".into(),
        ..ContainerSpec::default()
    }
}

fn body(spec: &ContainerSpec) -> Value {
    create_request(spec, &[], OLD).unwrap().body
}

fn refused(spec: &ContainerSpec, field: &str) {
    match create_request(spec, &[], OLD) {
        Err(RuntimeError::Engine(text)) => assert!(text.contains(field), "{text}"),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("{field} was taken"),
    }
}

#[test]
fn an_empty_spec_says_only_what_it_says() {
    let request = create_request(&spec(), &[("fairlead.command".into(), "x".into())], OLD).unwrap();
    assert_eq!(request.path_and_query, "/containers/create?name=web");
    let expected = json!({"Image": "nginx", "Labels": {"fairlead.command": "x"}, "HostConfig": {}});
    assert_eq!(request.body, expected);
}

#[test]
fn resources_and_namespaces() {
    let spec = ContainerSpec {
        memory_bytes: 1 << 20,
        memory_reservation_bytes: 5,
        memory_swap_bytes: -1,
        nano_cpus: 1_500_000_000,
        cpu_shares: 2,
        cpuset_cpus: "0-1".into(),
        pids_limit: 9,
        pid_mode: "host".into(),
        ipc_mode: "private".into(),
        uts_mode: "host".into(),
        userns_mode: "host".into(),
        privileged: true,
        read_only: true,
        init: true,
        cap_add: vec!["NET_ADMIN".into()],
        cap_drop: vec!["ALL".into()],
        devices: vec![
            "/dev/a".into(),
            "/dev/a:r".into(),
            "/dev/a:/dev/b:rw".into(),
        ],
        ulimits: vec!["nofile=5:6".into(), "core=-1".into()],
        shm_bytes: 4,
        oom_score_adj: -5,
        oom_kill_disable: true,
        cgroup_parent: "p".into(),
        runtime: "runc".into(),
        sysctls: vec![label("net.a", "1")],
        group_add: vec!["7".into()],
        security_opt: vec!["no-new-privileges".into()],
        ..spec()
    };
    let host = &body(&spec)["HostConfig"];
    assert_eq!(host["Memory"], 1 << 20);
    assert_eq!(host["MemoryReservation"], 5);
    assert_eq!(host["MemorySwap"], -1);
    assert_eq!(host["NanoCpus"], 1_500_000_000);
    assert_eq!(host["CpuShares"], 2);
    assert_eq!(host["CpusetCpus"], "0-1");
    assert_eq!(host["PidsLimit"], 9);
    assert_eq!(
        (&host["PidMode"], &host["IpcMode"]),
        (&json!("host"), &json!("private"))
    );
    assert_eq!(
        (&host["UTSMode"], &host["UsernsMode"]),
        (&json!("host"), &json!("host"))
    );
    assert_eq!(host["Privileged"], true);
    assert_eq!(host["ReadonlyRootfs"], true);
    assert_eq!(host["Init"], true);
    assert_eq!(host["CapAdd"], json!(["NET_ADMIN"]));
    assert_eq!(host["CapDrop"], json!(["ALL"]));
    assert_eq!(host["Devices"][1]["CgroupPermissions"], "r");
    assert_eq!(host["Devices"][2]["PathInContainer"], "/dev/b");
    assert_eq!(
        host["Ulimits"][0],
        json!({"Name": "nofile", "Soft": 5, "Hard": 6})
    );
    assert_eq!(
        host["Ulimits"][1],
        json!({"Name": "core", "Soft": -1, "Hard": -1})
    );
    assert_eq!(host["ShmSize"], 4);
    assert_eq!(host["OomScoreAdj"], -5);
    assert_eq!(host["OomKillDisable"], true);
    assert_eq!(host["CgroupParent"], "p");
    assert_eq!(host["Runtime"], "runc");
    assert_eq!(host["Sysctls"], json!({"net.a": "1"}));
    assert_eq!(host["GroupAdd"], json!(["7"]));
    assert_eq!(host["SecurityOpt"], json!(["no-new-privileges"]));
}

#[test]
fn network_ports_and_names() {
    let port = |host_port, container_port, proto: &str| PortMapping {
        host_ip: "127.0.0.1".into(),
        host_port,
        container_port,
        proto: proto.into(),
    };
    let spec = ContainerSpec {
        ports: vec![
            port(80, 8080, ""),
            port(0, 8080, "tcp"),
            port(53, 53, "udp"),
        ],
        expose: vec!["9000-9001".into(), "8080/tcp".into()],
        publish_all: true,
        network: "front".into(),
        network_aliases: vec!["www".into()],
        ip: "10.0.0.9".into(),
        mac_address: "02:00:00:00:00:01".into(),
        dns: vec!["1.1.1.1".into()],
        dns_search: vec!["a".into()],
        dns_options: vec!["b".into()],
        extra_hosts: vec!["h:1.2.3.4".into()],
        hostname: "h".into(),
        domainname: "d".into(),
        ..spec()
    };
    let body = body(&spec);
    let host = &body["HostConfig"];
    assert_eq!(
        host["PortBindings"]["8080/tcp"],
        json!([{"HostIp": "127.0.0.1", "HostPort": "80"}, {"HostIp": "127.0.0.1", "HostPort": ""}])
    );
    assert_eq!(host["PortBindings"]["53/udp"][0]["HostPort"], "53");
    let exposed: Vec<_> = body["ExposedPorts"]
        .as_object()
        .unwrap()
        .keys()
        .cloned()
        .collect();
    assert_eq!(exposed.len(), 4);
    assert_eq!(host["PublishAllPorts"], true);
    assert_eq!(host["NetworkMode"], "front");
    let endpoint = &body["NetworkingConfig"]["EndpointsConfig"]["front"];
    assert_eq!(endpoint["Aliases"], json!(["www"]));
    assert_eq!(endpoint["IPAMConfig"]["IPv4Address"], "10.0.0.9");
    assert_eq!(endpoint.get("MacAddress"), None);
    assert_eq!(body["MacAddress"], "02:00:00:00:00:01");
    assert_eq!(host["Dns"], json!(["1.1.1.1"]));
    assert_eq!(host["DnsSearch"], json!(["a"]));
    assert_eq!(host["DnsOptions"], json!(["b"]));
    assert_eq!(host["ExtraHosts"], json!(["h:1.2.3.4"]));
    assert_eq!(
        (&body["Hostname"], &body["Domainname"]),
        (&json!("h"), &json!("d"))
    );
    let newer = create_request(&spec, &[], NEW).unwrap().body;
    assert_eq!(
        newer["NetworkingConfig"]["EndpointsConfig"]["front"]["MacAddress"],
        "02:00:00:00:00:01"
    );
    assert_eq!(newer.get("MacAddress"), None);
}

#[test]
fn process_storage_and_life() {
    let mount = |kind: &str, source: &str, propagation: &str| MountSpec {
        kind: kind.into(),
        source: source.into(),
        target: "/t".into(),
        read_only: true,
        propagation: propagation.into(),
    };
    let spec = ContainerSpec {
        command: vec!["a".into(), "b c".into()],
        entrypoint_set: true,
        env: vec!["A=1".into()],
        user: "u:g".into(),
        workdir: "/w".into(),
        tty: true,
        stdin_open: true,
        mounts: vec![
            mount("bind", "/s", "rslave"),
            mount("bind", "/s:x", "shared"),
            mount("volume", "v", ""),
            mount("volume", "", ""),
            mount("tmpfs", "", ""),
        ],
        tmpfs: vec!["/x:size=1m".into(), "/y".into()],
        restart_policy: "on-failure".into(),
        restart_max: 3,
        stop_signal: "QUIT".into(),
        stop_timeout_s: 30,
        auto_remove: true,
        log_driver: "local".into(),
        log_options: vec![label("max-size", "1m")],
        platform: "linux/amd64".into(),
        health: Some(HealthSpec {
            command: "true".into(),
            interval_ms: 1500,
            timeout_ms: 2,
            start_period_ms: 3,
            retries: 4,
            disabled: false,
        }),
        ..spec()
    };
    let request = create_request(&spec, &[], OLD).unwrap();
    assert_eq!(
        request.path_and_query,
        "/containers/create?name=web&platform=linux%2Famd64"
    );
    let (body, host) = (&request.body, &request.body["HostConfig"]);
    assert_eq!(body["Cmd"], json!(["a", "b c"]));
    assert_eq!(body["Entrypoint"], json!([""]));
    assert_eq!(body["Env"], json!(["A=1"]));
    assert_eq!(
        (&body["User"], &body["WorkingDir"]),
        (&json!("u:g"), &json!("/w"))
    );
    assert_eq!(
        (&body["Tty"], &body["OpenStdin"]),
        (&json!(true), &json!(true))
    );
    assert_eq!(host["Binds"], json!(["/s:/t:ro,rslave"]));
    assert_eq!(host["Mounts"][0]["BindOptions"]["Propagation"], "shared");
    assert_eq!(
        host["Mounts"][1],
        json!({"Type": "volume", "Source": "v", "Target": "/t", "ReadOnly": true})
    );
    assert_eq!(host["Mounts"][2].get("Source"), None);
    assert_eq!(host["Mounts"][3]["Type"], "tmpfs");
    assert_eq!(host["Tmpfs"], json!({"/x": "size=1m", "/y": ""}));
    assert_eq!(
        host["RestartPolicy"],
        json!({"Name": "on-failure", "MaximumRetryCount": 3})
    );
    assert_eq!(
        (&body["StopSignal"], &body["StopTimeout"]),
        (&json!("QUIT"), &json!(30))
    );
    assert_eq!(host["AutoRemove"], true);
    assert_eq!(
        host["LogConfig"],
        json!({"Type": "local", "Config": {"max-size": "1m"}})
    );
    assert_eq!(
        body["Healthcheck"],
        json!({"Test": ["CMD-SHELL", "true"], "Interval": 1_500_000_000_i64,
        "Timeout": 2_000_000, "StartPeriod": 3_000_000, "Retries": 4})
    );
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn what_cannot_be_mapped_is_named() {
    let bad_mount = |kind: &str, source: &str| MountSpec {
        kind: kind.into(),
        source: source.into(),
        target: "/t".into(),
        ..MountSpec::default()
    };
    let cases: Vec<(&str, ContainerSpec)> = vec![
        (
            "image",
            ContainerSpec {
                image: String::new(),
                ..spec()
            },
        ),
        (
            "pull",
            ContainerSpec {
                pull: "sometimes".into(),
                ..spec()
            },
        ),
        (
            "workdir",
            ContainerSpec {
                workdir: "../x".into(),
                ..spec()
            },
        ),
        (
            "restart_policy",
            ContainerSpec {
                restart_policy: "perhaps".into(),
                ..spec()
            },
        ),
        (
            "restart_max",
            ContainerSpec {
                restart_max: 1,
                ..spec()
            },
        ),
        (
            "devices",
            ContainerSpec {
                devices: vec!["a".into()],
                ..spec()
            },
        ),
        (
            "devices",
            ContainerSpec {
                devices: vec!["/a:/b:q".into()],
                ..spec()
            },
        ),
        (
            "ulimits",
            ContainerSpec {
                ulimits: vec!["nofile".into()],
                ..spec()
            },
        ),
        (
            "expose",
            ContainerSpec {
                expose: vec!["9-8".into()],
                ..spec()
            },
        ),
        (
            "expose",
            ContainerSpec {
                expose: vec!["0".into()],
                ..spec()
            },
        ),
        (
            "tmpfs",
            ContainerSpec {
                tmpfs: vec!["x".into()],
                ..spec()
            },
        ),
        (
            "ip",
            ContainerSpec {
                ip: "10.0.0.1".into(),
                ..spec()
            },
        ),
        (
            "ip",
            ContainerSpec {
                ip: "x".into(),
                network: "n".into(),
                ..spec()
            },
        ),
        (
            "network_aliases",
            ContainerSpec {
                network_aliases: vec!["a".into()],
                ..spec()
            },
        ),
        (
            "security_opt",
            ContainerSpec {
                security_opt: vec!["seccomp=/x".into()],
                ..spec()
            },
        ),
        (
            "entrypoint",
            ContainerSpec {
                entrypoint: vec!["x".into()],
                ..spec()
            },
        ),
        (
            "mounts.kind",
            ContainerSpec {
                mounts: vec![bad_mount("npipe", "")],
                ..spec()
            },
        ),
        (
            "mounts.source",
            ContainerSpec {
                mounts: vec![bad_mount("bind", "x")],
                ..spec()
            },
        ),
        (
            "mounts.source",
            ContainerSpec {
                mounts: vec![bad_mount("volume", "/x")],
                ..spec()
            },
        ),
        (
            "mounts.source",
            ContainerSpec {
                mounts: vec![bad_mount("tmpfs", "/x")],
                ..spec()
            },
        ),
        (
            "labels",
            ContainerSpec {
                labels: vec![label("", "x")],
                ..spec()
            },
        ),
        (
            "health",
            ContainerSpec {
                health: Some(HealthSpec {
                    disabled: true,
                    retries: 1,
                    ..HealthSpec::default()
                }),
                ..spec()
            },
        ),
    ];
    for (field, spec) in cases {
        refused(&spec, field);
    }
    assert_eq!(some_list::<String>(Vec::new()), None);
}
