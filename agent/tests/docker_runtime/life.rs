//! Making, starting, stopping, listing, removing; errors.

use std::process::Command;
use std::time::{Duration, Instant};

use fairlead_agent::runtime::docker::DockerRuntime;
use fairlead_agent::runtime::{ContainerRuntime, Load, RuntimeError};
use fairlead_protocol::{ContainerSpec, HealthSpec, Label, MountSpec, PortMapping};
use futures_util::StreamExt;
use tokio::io::AsyncWriteExt;

use crate::engine::{IMAGE, Name, SERVICE, WAIT, engine, spec, started, until_state};

#[tokio::test]
async fn facts_say_what_it_is() {
    let Some(engine) = engine() else { return };
    let facts = engine.facts().await;
    assert_eq!((facts.error.as_str(), facts.code.as_str()), ("", ""));
    assert!(!facts.version.is_empty() && facts.api_version.starts_with("1."));
    assert!(
        facts.runtime.starts_with("runc") || facts.runtime.starts_with("crun"),
        "{facts:?}"
    );
}

#[tokio::test]
async fn an_engine_that_is_not_there_is_a_fact_and_is_found_later() {
    let Some(real) = engine() else { return };
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("engine.sock");
    let engine = DockerRuntime::new(&socket).unwrap();
    let facts = engine.facts().await;
    assert_eq!(
        (facts.kind.as_str(), facts.code.as_str()),
        ("none", "engine_unavailable")
    );
    assert!(facts.error.contains("engine.sock"), "{}", facts.error);
    assert!(matches!(
        engine.list().await,
        Err(RuntimeError::Unavailable(_))
    ));
    assert!(matches!(
        engine.start("x").await,
        Err(RuntimeError::Unavailable(_))
    ));
    let first = engine.events(0).await.next().await;
    assert!(matches!(first, Some(Err(RuntimeError::Unavailable(_)))));
    std::os::unix::fs::symlink(real.socket(), &socket).unwrap();
    assert_eq!(engine.facts().await.error, "");
    assert!(engine.list().await.is_ok());
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_told_from_an_engine_that_is_away() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("engine.sock");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    // Answers the question for the version, and cuts the connection of everything else.
    let server = tokio::spawn(async move {
        loop {
            let Ok((mut stream, _)) = listener.accept().await else {
                return;
            };
            let mut buffer = [0; 1024];
            let n = tokio::io::AsyncReadExt::read(&mut stream, &mut buffer)
                .await
                .unwrap();
            if buffer[..n].starts_with(b"GET /version") {
                let body = r#"{"ApiVersion":"1.99"}"#;
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
                stream.write_all((head + body).as_bytes()).await.unwrap();
            } else {
                assert!(
                    buffer.starts_with(b"POST /v1.53/containers/x/"),
                    "negotiated"
                );
            }
        }
    });
    let engine = DockerRuntime::new(&socket).unwrap();
    let broken = engine.restart("x", None, "").await;
    assert!(
        matches!(broken, Err(RuntimeError::Interrupted(_))),
        "{broken:?}"
    );
    server.abort();
    let _ = server.await;
    let away = engine.restart("x", None, "").await;
    assert!(
        matches!(away, Err(RuntimeError::Unavailable(_))),
        "{away:?}"
    );
}

/// In the words of containerd, runc and Docker.
const UNTIDIED: [&str; 5] = [
    r#"{"message":"failed to create task for container: failed to start shim: mkdir /run/c/1: file exists"}"#,
    r#"{"message":"task 9f: already exists"}"#,
    r#"{"message":"OCI runtime create failed: container with id exists: 9f: unknown"}"#,
    r#"{"message":"OCI runtime create failed: runc create failed: container with given ID already exists: unknown"}"#,
    r#"{"message":"id already in use"}"#,
];

/// Refusals that are over in a moment, and of another kind one that is passed on at once.
#[tokio::test]
async fn a_container_whose_last_run_is_not_tidied_up_is_started_a_moment_later() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("engine.sock");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let server = tokio::spawn(async move {
        let mut asked = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 1024];
            let n = tokio::io::AsyncReadExt::read(&mut stream, &mut buffer)
                .await
                .unwrap();
            let line = String::from_utf8_lossy(&buffer[..n]);
            let path = line.split(' ').nth(1).unwrap().to_owned();
            let (status, body) = if path.ends_with("/version") {
                ("200 OK", r#"{"ApiVersion":"1.53"}"#)
            } else if path.ends_with("/other/start") {
                (
                    "500 No",
                    r#"{"message":"mounting x: mkdir /x: file exists"}"#,
                )
            } else if let Some(body) = UNTIDIED.get(asked.len()) {
                asked.push(path.clone());
                ("500 No", *body)
            } else {
                ("200 OK", "")
            };
            let head = format!(
                "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(head.as_bytes()).await.unwrap();
            if path.ends_with("/last/start") {
                return asked;
            }
        }
    });
    let engine = DockerRuntime::new(&socket).unwrap();
    let refused = engine.start("other").await;
    assert!(
        matches!(&refused, Err(RuntimeError::Engine(why)) if why.contains("mounting")),
        "{refused:?}"
    );
    engine.restart("web", None, "").await.unwrap();
    engine.start("last").await.unwrap();
    let asked = server.await.unwrap();
    let words: Vec<_> = asked
        .iter()
        .map(|path| path.rsplit('/').next().unwrap().split('?').next().unwrap())
        .collect();
    assert_eq!(words, ["restart", "start", "start", "start", "start"]);
}

fn label(key: &str, value: &str) -> Label {
    Label {
        key: key.into(),
        value: value.into(),
    }
}

/// A container with as many options as this engine can show again.
fn many_options(name: &Name) -> ContainerSpec {
    ContainerSpec {
        env: vec!["A=1".into()],
        labels: vec![label("com.docker.compose.project", "shop"), label("x", "y")],
        ports: vec![PortMapping {
            host_ip: "127.0.0.1".into(),
            container_port: 80,
            ..Default::default()
        }],
        mounts: vec![
            MountSpec {
                kind: "bind".into(),
                source: "/tmp".into(),
                target: "/host".into(),
                read_only: true,
                ..Default::default()
            },
            MountSpec {
                kind: "volume".into(),
                target: "/data".into(),
                ..Default::default()
            },
            MountSpec {
                kind: "tmpfs".into(),
                target: "/scratch".into(),
                ..Default::default()
            },
        ],
        tmpfs: vec!["/run:size=1m".into()],
        restart_policy: "on-failure".into(),
        restart_max: 2,
        memory_bytes: 64 << 20,
        nano_cpus: 500_000_000,
        pids_limit: 50,
        user: "0:0".into(),
        workdir: "/srv".into(),
        hostname: "h1".into(),
        init: true,
        cap_add: vec!["NET_ADMIN".into()],
        cap_drop: vec!["CHOWN".into()],
        devices: vec!["/dev/null:/dev/nothing:r".into()],
        security_opt: vec!["no-new-privileges".into()],
        ulimits: vec!["nofile=100:200".into()],
        extra_hosts: vec!["a:1.2.3.4".into()],
        sysctls: vec![label("net.ipv4.ip_forward", "0")],
        stop_signal: "TERM".into(),
        health: Some(HealthSpec {
            command: "true".into(),
            interval_ms: 60_000,
            ..Default::default()
        }),
        log_driver: "json-file".into(),
        log_options: vec![label("max-size", "1m")],
        shm_bytes: 1 << 20,
        mac_address: "02:42:ac:11:00:77".into(),
        oom_score_adj: 10,
        ..spec(name, SERVICE)
    }
}

#[tokio::test]
async fn create_with_many_options() {
    let Some(engine) = engine() else { return };
    let name = Name::new("create");
    let spec = many_options(&name);
    let labels = [("fairlead.command".to_owned(), "abc".to_owned())];
    let id = engine.create(&spec, &labels).await.unwrap();
    assert_eq!(id.len(), 64);
    engine.start(&name.0).await.unwrap();
    let detail = engine.inspect(&id[..12]).await.unwrap();
    let container = &detail.container;
    assert_eq!(
        (container.name.as_str(), container.state.as_str()),
        (name.0.as_str(), "running")
    );
    assert_eq!(
        (container.project.as_str(), container.image.as_str()),
        ("shop", IMAGE)
    );
    assert_eq!(container.restart_policy, "on-failure");
    assert_eq!(container.memory_limit, 64 << 20);
    assert_eq!(container.ports.len(), 1);
    assert!(container.ports[0].host_port > 0 && container.started_us > 0);
    assert_eq!(container.labels, [label("fairlead.command", "abc")]);
    assert_eq!(detail.stop_timeout_s, Some(1));
    let raw: serde_json::Value = serde_json::from_str(&detail.raw).unwrap();
    assert_eq!(raw["NetworkSettings"]["MacAddress"], "02:42:ac:11:00:77");
    assert_eq!(raw["HostConfig"]["Init"], true);
    assert_eq!(
        raw["HostConfig"]["Devices"][0]["PathInContainer"],
        "/dev/nothing"
    );
    assert_eq!(raw["HostConfig"]["Binds"][0], "/tmp:/host:ro");
    assert_eq!(raw["Mounts"].as_array().unwrap().len(), 3);
    let listed = engine
        .list()
        .await
        .unwrap()
        .into_iter()
        .find(|c| c.id == id)
        .unwrap();
    assert_eq!(listed.health, container.health);
    assert_eq!(
        (listed.started_us, listed.memory_limit),
        (container.started_us, 64 << 20)
    );
    assert_eq!(
        (&listed.ports, &listed.labels),
        (&container.ports, &container.labels)
    );
    assert_eq!(
        (&listed.ip, &listed.networks),
        (&container.ip, &container.networks)
    );
    assert_eq!(listed.image, IMAGE);
    match engine.load().await {
        Load::Processes(all) => {
            let mine = all.iter().find(|p| p.id == id).unwrap();
            assert!(std::path::Path::new(&format!("/proc/{}", mine.pid)).exists());
        }
        Load::Samples(_) => panic!("docker measures nothing"),
    }
}

#[tokio::test]
async fn start_stop_restart_kill_remove() {
    let Some(engine) = engine() else { return };
    let name = Name::new("life");
    let id = started(&engine, &name, SERVICE).await;
    engine.start(&name.0).await.unwrap(); // already running is success
    let first = engine.inspect(&id).await.unwrap().started_us;
    engine.restart(&name.0, Some(5), "").await.unwrap();
    assert!(engine.inspect(&id).await.unwrap().started_us > first);
    engine.stop(&name.0, Some(5), "").await.unwrap();
    engine.stop(&name.0, Some(5), "").await.unwrap(); // stopped is success
    assert!(matches!(
        engine.kill(&name.0, "").await,
        Err(RuntimeError::NotRunning(_))
    ));
    let listed = engine
        .list()
        .await
        .unwrap()
        .into_iter()
        .find(|c| c.id == id)
        .unwrap();
    assert_eq!((listed.state.as_str(), listed.exit_code), ("exited", 0));
    engine.start(&name.0).await.unwrap();
    let refused = engine.remove(&name.0, false, false).await;
    assert!(
        matches!(refused, Err(RuntimeError::Engine(_))),
        "{refused:?}"
    );
    engine.kill(&name.0, "").await.unwrap();
    until_state(&engine, &name.0, "exited").await;
    assert_eq!(engine.inspect(&id).await.unwrap().container.exit_code, 137);
    engine.remove(&name.0, false, true).await.unwrap();
    assert!(matches!(
        engine.inspect(&id).await,
        Err(RuntimeError::NoSuchContainer(_))
    ));
}

#[tokio::test]
async fn a_signal_of_ones_own() {
    let Some(engine) = engine() else { return };
    let name = Name::new("signal");
    // Ends with 7 on HUP, ignores TERM.
    let script = "trap 'exit 7' HUP; trap '' TERM; while true; do sleep 0.1; done";
    let id = started(&engine, &name, script).await;
    let before = engine.inspect(&id).await.unwrap().started_us;
    engine.restart(&name.0, Some(20), "HUP").await.unwrap();
    assert!(engine.inspect(&id).await.unwrap().started_us > before);
    let begun = Instant::now();
    engine.stop(&name.0, Some(20), "HUP").await.unwrap();
    assert!(
        begun.elapsed() < Duration::from_secs(15),
        "the signal was sent"
    );
    assert_eq!(engine.inspect(&id).await.unwrap().container.exit_code, 7);
    engine.start(&name.0).await.unwrap();
    engine.stop(&name.0, Some(1), "TERM").await.unwrap(); // ignored: killed after the grace
    assert_eq!(engine.inspect(&id).await.unwrap().container.exit_code, 137);
}

#[tokio::test]
async fn a_crash_between_two_lists_is_seen() {
    let Some(engine) = engine() else { return };
    let name = Name::new("crash");
    let spec = ContainerSpec {
        restart_policy: "always".into(),
        ..spec(&name, "sleep 0.3; exit 4")
    };
    let id = engine.create(&spec, &[]).await.unwrap();
    engine.start(&name.0).await.unwrap();
    let begun = Instant::now();
    loop {
        let listed = engine
            .list()
            .await
            .unwrap()
            .into_iter()
            .find(|c| c.id == id)
            .unwrap();
        if listed.restarts >= 2 {
            break;
        }
        assert!(begun.elapsed() < WAIT, "{listed:?}");
    }
}

#[tokio::test]
async fn what_is_not_there_and_what_is_taken() {
    let Some(engine) = engine() else { return };
    let name = Name::new("errors");
    let absent = ContainerSpec {
        image: "fl-agent-no-such-image:1".into(),
        ..spec(&name, "true")
    };
    let refused = engine.create(&absent, &[]).await;
    assert!(
        matches!(refused, Err(RuntimeError::NoSuchImage(_))),
        "{refused:?}"
    );
    assert!(matches!(
        engine.inspect_image("fl-agent-nope").await,
        Err(RuntimeError::NoSuchImage(_))
    ));
    assert!(
        engine
            .inspect_image(IMAGE)
            .await
            .unwrap()
            .contains("sha256:")
    );
    engine.create(&spec(&name, "true"), &[]).await.unwrap();
    let taken = engine.create(&spec(&name, "true"), &[]).await;
    assert!(
        matches!(&taken, Err(RuntimeError::NameInUse(n)) if *n == name.0),
        "{taken:?}"
    );
    for nothing in ["fl-agent-nope", "../images/json", "a?all=1"] {
        assert!(matches!(
            engine.start(nothing).await,
            Err(RuntimeError::NoSuchContainer(_))
        ));
        assert!(matches!(
            engine.stop(nothing, None, "").await,
            Err(RuntimeError::NoSuchContainer(_))
        ));
        let stopped = engine.stop(nothing, None, "HUP").await;
        assert!(
            matches!(stopped, Err(RuntimeError::NoSuchContainer(_))),
            "{stopped:?}"
        );
        assert!(matches!(
            engine.inspect(nothing).await,
            Err(RuntimeError::NoSuchContainer(_))
        ));
        let removed = engine.remove(nothing, true, false).await;
        assert!(matches!(removed, Err(RuntimeError::NoSuchContainer(_))));
    }
    // There is no registry to reach here; elsewhere there is no such image.
    assert!(
        engine
            .pull("127.0.0.1:1/fl-agent-nope:1", "")
            .await
            .is_err()
    );
}

#[tokio::test]
async fn a_missing_program_is_the_engines_error() {
    let Some(engine) = engine() else { return };
    let name = Name::new("program");
    let spec = ContainerSpec {
        command: vec!["/no/such".into()],
        ..spec(&name, "")
    };
    engine.create(&spec, &[]).await.unwrap();
    let refused = engine.start(&name.0).await;
    assert!(
        matches!(&refused, Err(RuntimeError::Engine(t)) if t.contains("/no/such")),
        "{refused:?}"
    );
}

#[tokio::test]
async fn unused_images_are_pruned() {
    let Some(engine) = engine() else { return };
    // A prune takes all images without a name: where there are others' already, it is not tried.
    let others = Command::new("docker")
        .args(["images", "-qf", "dangling=true"])
        .output()
        .unwrap();
    if !others.stdout.is_empty() {
        eprintln!("there are images without a name here that are not this test's: skipped");
        return;
    }
    // Such an image, as a rebuild leaves behind.
    let script = "dir=$(mktemp -d) && date +%N > $dir/x && tar -C $dir -c . | docker import -";
    let made = Command::new("sh").args(["-c", script]).output().unwrap();
    let id = String::from_utf8_lossy(&made.stdout).trim().to_owned();
    let (gone, bytes) = engine.prune_images(false).await.unwrap();
    assert!(gone.contains(&id), "{gone:?}");
    assert!(bytes > 0);
    assert!(engine.inspect_image(IMAGE).await.is_ok());
}

/// How much this layer adds to the engine's own time; printed, not judged.
#[tokio::test]
async fn overhead_of_a_restart() {
    let Some(engine) = engine() else { return };
    let name = Name::new("overhead");
    started(&engine, &name, SERVICE).await;
    let (mut ours, mut raw) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        let begun = Instant::now();
        engine.restart(&name.0, Some(5), "").await.unwrap();
        ours.push(begun.elapsed());
        let begun = Instant::now();
        let socket = engine.socket().to_path_buf();
        let mut stream = tokio::net::UnixStream::connect(socket).await.unwrap();
        let request = format!(
            "POST /v1.41/containers/{}/restart?t=5 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            name.0
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut answer)
            .await
            .unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 204"));
        raw.push(begun.elapsed());
    }
    ours.sort();
    raw.sort();
    let begun = Instant::now();
    for _ in 0..50 {
        assert!(engine.start(&name.0).await.is_ok());
    }
    let each = begun.elapsed() / 50;
    println!(
        "restart: {:?} here, {:?} raw (medians of 5); a no-op start: {each:?}",
        ours[2], raw[2]
    );
}

#[tokio::test]
async fn podman_is_known_by_its_own_words() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("engine.sock");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let server = tokio::spawn(async move {
        loop {
            let Ok((mut stream, _)) = listener.accept().await else {
                return;
            };
            let mut buffer = [0; 1024];
            let n = tokio::io::AsyncReadExt::read(&mut stream, &mut buffer)
                .await
                .unwrap();
            let body = if String::from_utf8_lossy(&buffer[..n]).contains("/version") {
                r#"{"Version":"4.9.3","ApiVersion":"1.41","Components":[
                    {"Name":"Podman Engine","Version":"4.9.3","Details":{}},
                    {"Name":"OCI Runtime (crun)","Version":"crun version 1.14\ncommit: 1"}]}"#
            } else {
                "{}"
            };
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
            stream.write_all((head + body).as_bytes()).await.unwrap();
        }
    });
    let facts = DockerRuntime::new(&socket).unwrap().facts().await;
    assert_eq!(
        (facts.kind.as_str(), facts.version.as_str()),
        ("podman", "4.9.3")
    );
    assert_eq!(
        (facts.api_version.as_str(), facts.runtime.as_str()),
        ("1.41", "crun version 1.14")
    );
    server.abort();
}
