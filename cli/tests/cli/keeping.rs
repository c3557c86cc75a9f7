//! `fairlead dev`: starts, waits, keeps alive, stops. The daemons are stand-ins; what they are told
//! and when is what counts here.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::double::{self, Double};

const JOIN: &str = r#"{"token":"FL1x::k.s","addresses":["localhost:1"],"id":"k","purpose":"host",
    "region":"local","labels":{},"uses_max":1,"uses":0,"created_by":"dev",
    "created_at":"2026-11-20T14:00:00Z","expires_at":"2026-11-20T15:00:00Z","revoked_at":null}"#;

fn region(state: &str) -> Value {
    json!({
        "name": "local", "state": state, "since": "2026-11-20T14:00:00Z", "access_server": "a1",
        "addresses": [], "url": "https://localhost:7500", "version": "", "hosts": 0,
        "hosts_online": 0, "orders_waiting": 0
    })
}

fn api(asked: &double::Asked, count: usize) -> double::Answer {
    let join: Value = serde_json::from_str(JOIN).unwrap();
    match asked.what.as_str() {
        "POST /api/v1/setup" => (
            200,
            json!({
                "token": "FA1dev", "id": "t", "name": "dev", "permissions": ["admin"],
                "scope": { "regions": [], "labels": {} }, "created_by": "setup",
                "created_at": "2026-11-20T14:00:00Z", "expires_at": null, "last_used_at": null,
                "revoked_at": null
            }),
        ),
        "GET /api/v1/regions/local" if count == 0 => {
            double::error(404, "region_not_found", "no region local")
        }
        "POST /api/v1/regions" => (
            201,
            json!({ "region": region("waiting"), "join_token": join }),
        ),
        "GET /api/v1/regions/local" => (200, region(if count < 2 { "waiting" } else { "online" })),
        "POST /api/v1/join-tokens" => (201, join),
        "GET /api/v1/hosts" if count == 0 => double::page(Vec::new()),
        "GET /api/v1/hosts" => double::page(vec![double::host("online")]),
        other => panic!("{other}"),
    }
}

fn program(dir: &Path, name: &str, script: &str) {
    let file = dir.join(name);
    fs::write(
        &file,
        format!(
            "#!/bin/sh\necho \"$0 $*\" >> \"{}/said\"\n{script}",
            dir.display()
        ),
    )
    .unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
}

fn wait_for<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn ready(data: &Path) -> Option<Value> {
    serde_json::from_slice(&fs::read(data.join("ready.json")).ok()?).ok()
}

fn signal(pid: u64, name: &str) {
    assert!(
        Command::new("kill")
            .args([name, &pid.to_string()])
            .status()
            .unwrap()
            .success()
    );
}

/// A folder with the CLI and stand-ins for the daemons beside it.
fn stand_ins(url: &str) -> tempfile::TempDir {
    let bin = tempfile::tempdir().unwrap();
    fs::copy(env!("CARGO_BIN_EXE_fairlead"), bin.path().join("fairlead")).unwrap();
    fs::write(bin.path().join("ca.pem"), crate::trusting::any_ca_pem()).unwrap();
    let link = format!("{url}/setup/s3cret");
    program(
        bin.path(),
        "fairlead-controller",
        &format!(
            "mkdir -p \"$3\"; echo {link} > \"$3/setup-link\"\n\
             cp {}/ca.pem \"$3/ca.pem\"; exec sleep 600\n",
            bin.path().display()
        ),
    );
    program(bin.path(), "fairlead-access-server", "exec sleep 600\n");
    program(
        bin.path(),
        "fairlead-agent",
        "mkdir -p \"$3\"; echo \"{\\\"supervisor\\\":$$,\\\"agent\\\":4242,\\\"epoch\\\":1}\" > \
         \"$3/status.json\"; exec sleep 600\n",
    );
    bin
}

#[test]
fn all_are_started_kept_and_stopped() {
    let server = Double::new(api);
    let bin = stand_ins(&server.url);
    let data = bin.path().join("data");
    let start = || {
        Command::new(bin.path().join("fairlead"))
            .args([
                "dev",
                "--data-dir",
                data.to_str().unwrap(),
                "--engine",
                "simulated",
            ])
            .args(["--ports-from", "20000", "--host-name", "box"])
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("FAIRLEAD_TOKEN", "FA1somebody-elses")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let keeper = start();
    let first = wait_for("ready.json", || ready(&data));
    assert_eq!(first["url"], server.url);
    assert_eq!(
        (&first["region"], &first["host"]),
        (&json!("local"), &json!("box"))
    );
    assert_eq!(first["token"], "FA1dev");
    assert_eq!(first["pid"]["agent"], 4242);
    let mode = fs::metadata(data.join("ready.json"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let said = fs::read_to_string(bin.path().join("said")).unwrap();
    for expected in [
        "--token-file",
        "--engine simulated",
        "--host-name box",
        "127.0.0.1:20003",
    ] {
        assert!(said.contains(expected), "{expected}: {said}");
    }

    // One that dies is started again, and ready.json names the new one.
    signal(first["pid"]["access_server"].as_u64().unwrap(), "-KILL");
    let second = wait_for("another access server", || {
        ready(&data).filter(|now| now["pid"]["access_server"] != first["pid"]["access_server"])
    });
    assert_eq!(second["pid"]["controller"], first["pid"]["controller"]);

    // Nobody else may use the directory meanwhile; at the end all are gone.
    let other = start().wait_with_output().unwrap();
    assert_eq!(other.status.code(), Some(5));
    signal(keeper.id().into(), "-TERM");
    let output = keeper.wait_with_output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{err}");
    assert!(err.contains("access server ended"), "{err}");
    for name in ["controller", "access_server", "supervisor"] {
        let pid = second["pid"][name].as_u64().unwrap();
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "{name}");
    }
    assert!(!data.join("ready.json").exists());

    // The next start logs in with what it has kept.
    let again = start();
    wait_for("ready.json", || ready(&data));
    signal(again.id().into(), "-INT");
    assert_eq!(again.wait_with_output().unwrap().status.code(), Some(0));
    let claims = server
        .asked()
        .iter()
        .filter(|asked| asked.what.ends_with("/setup"))
        .count();
    assert_eq!(claims, 1);
}
