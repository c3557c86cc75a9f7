//! The real `fairlead` against a real fleet: words, exit codes, `dev`.
//!
//! Holds: deliverable 7 of the issue (CLI); SECURITY S23 is held by the CLI's own tests.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use fairlead_api::types::JoinTokenRequest;
use fairlead_tests::engine::{self, Names};
use fairlead_tests::fleet::{Fleet, Options};
use fairlead_tests::ports::Port;
use fairlead_tests::process::{is_alive, send};
use fairlead_tests::programs::program;
use fairlead_tests::wait::wait_for;
use rustix::process::Signal;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

const SOON: Duration = Duration::from_secs(40);

pub(crate) struct Cli {
    url: String,
    ca: std::path::PathBuf,
    token: String,
    home: tempfile::TempDir,
}

pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Cli {
    pub(crate) fn of(fleet: &Fleet) -> Self {
        Self {
            url: fleet.api.url.clone(),
            ca: fleet.ca_file(),
            token: fleet.api.token.clone(),
            home: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(program("fairlead"));
        command.args(words);
        self.for_user(command)
    }

    /// The same in a terminal of its own, with pipes for keyboard and screen.
    pub(crate) fn in_terminal(&self, words: &str) -> tokio::process::Child {
        let line = format!("{} {words}", program("fairlead").display());
        let mut command = Command::new("script");
        command.args(["-qfec", &line, "/dev/null"]);
        let mut command = self.for_user(command);
        command.stdin(Stdio::piped()).spawn().unwrap()
    }

    fn for_user(&self, mut command: Command) -> Command {
        command
            .env_clear()
            .env("HOME", self.home.path())
            .env("PATH", "/usr/bin:/bin")
            .env("FAIRLEAD_URL", &self.url)
            .env("FAIRLEAD_TOKEN", &self.token)
            .env("FAIRLEAD_CA", &self.ca)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    pub(crate) async fn says(&self, words: &[&str]) -> Said {
        let output = tokio::time::timeout(SOON, self.command(words).output()).await;
        output
            .unwrap_or_else(|_| panic!("fairlead {words:?} does not end"))
            .unwrap()
            .into()
    }

    /// Must end with that code.
    pub(crate) async fn ends(&self, code: i32, words: &[&str]) -> Said {
        let said = self.says(words).await;
        assert_eq!(
            said.code, code,
            "fairlead {words:?}\n{}\n{}",
            said.out, said.err
        );
        said
    }

    async fn with_input(&self, words: &[&str], input: &str) -> Said {
        let mut child = self.command(words).stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(input.as_bytes()).await.unwrap();
        drop(stdin);
        child.wait_with_output().await.unwrap().into()
    }
}

#[tokio::test]
async fn containers_from_run_to_rm() {
    let fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let cli = Cli::of(&fleet);
    let web = names.name("web");

    let words = [
        "run",
        "-d",
        "--name",
        &web,
        "--memory",
        "32m",
        "--label",
        "a=b",
        engine::IMAGE,
    ];
    let polite = [
        "sh",
        "-c",
        "trap 'exit 0' TERM; echo hello; sleep 3600 & wait",
    ];
    cli.ends(0, &[&words[..], &polite[..]].concat()).await;
    assert_eq!(
        engine::field(&web, "{{.State.Running}} {{.HostConfig.Memory}}").as_deref(),
        Some("true 33554432")
    );
    wait_for("ps shows it", SOON, async || {
        let said = cli.says(&["ps"]).await;
        if said.out.contains(&web) {
            Ok(())
        } else {
            Err(said.out)
        }
    })
    .await;
    let listed = cli.ends(0, &["ps", "-a", "-o", "json"]).await;
    let listed: serde_json::Value = serde_json::from_str(&listed.out).unwrap();
    let rows = listed
        .as_array()
        .or_else(|| listed["items"].as_array())
        .unwrap();
    assert!(
        rows.iter()
            .any(|row| row["name"] == web.as_str() && row["state"] == "running")
    );
    let id = engine::id(&web);
    for name in [web.clone(), format!("box/{web}"), id[..12].to_owned()] {
        cli.ends(0, &["restart", &name]).await;
    }
    assert_eq!(engine::count(&web, "restart"), 3);

    let said = cli.ends(0, &["logs", "--tail", "1", &web]).await;
    assert_eq!(said.out, "hello\n");
    let said = cli
        .ends(
            7,
            &["exec", &web, "sh", "-c", "echo in; echo bad >&2; exit 7"],
        )
        .await;
    assert_eq!(
        (&said.out[..], said.err.contains("bad")),
        ("in\n", true),
        "{}",
        said.err
    );
    let said = cli
        .with_input(&["exec", "-i", &web, "cat"], "through and back")
        .await;
    assert_eq!((said.code, &said.out[..]), (0, "through and back"));
    let inspected = cli.ends(0, &["inspect", &web]).await;
    assert!(inspected.out.contains(&id));

    cli.ends(0, &["stop", &web]).await;
    cli.ends(0, &["start", &web]).await;
    cli.ends(1, &["rm", &web]).await;
    cli.ends(0, &["rm", "-f", &web]).await;
    assert_eq!(engine::field(&web, "{{.Id}}"), None);
}

#[tokio::test]
async fn exit_codes_say_what_went_wrong() {
    let mut fleet = Fleet::start(Options::simulated().hosts(&["one", "two"])).await;
    let cli = Cli::of(&fleet);
    for host in ["one", "two"] {
        cli.ends(
            0,
            &["run", "-d", "--host", host, "--name", "both", "demo/web:1"],
        )
        .await;
    }
    cli.ends(
        0,
        &[
            "run",
            "-d",
            "--host",
            "one",
            "--name",
            "alone",
            "demo/web:1",
        ],
    )
    .await;
    for (host, name) in [("one", "both"), ("two", "both"), ("one", "alone")] {
        fleet.api.knows(host, name, SOON).await;
    }

    cli.ends(2, &["run", "--no-such-flag", "demo/web:1"]).await;
    cli.ends(3, &["restart", "nobody"]).await;
    cli.ends(3, &["host", "show", "nobody"]).await;
    let ambiguous = cli.says(&["restart", "both"]).await;
    assert!(ambiguous.code != 0 && ambiguous.err.contains("one") && ambiguous.err.contains("two"));
    cli.ends(0, &["restart", "alone"]).await;
    cli.ends(0, &["restart", "one/both"]).await;

    let mut stranger = Cli::of(&fleet);
    stranger.token = format!("FA1{}.{}", "a".repeat(10), "b".repeat(32));
    stranger.ends(4, &["ps"]).await;
    let join = fleet
        .api
        .new_join_token(&JoinTokenRequest {
            region: Some("local".to_owned()),
            ..Default::default()
        })
        .await
        .unwrap();
    stranger.token = join.token;
    let said = stranger.says(&["ps"]).await;
    assert!(
        said.code != 0 && said.err.contains("join token"),
        "{}: {}",
        said.code,
        said.err
    );

    let waiting = {
        fleet.hosts[1].kill();
        fleet.api.host_is("two", "offline", SOON).await;
        let said = cli
            .ends(7, &["restart", "--deadline", "8s", "two/both"])
            .await;
        assert!(
            said.err.contains("offline"),
            "it says since when: {}",
            said.err
        );
        let said = cli.ends(0, &["restart", "--no-wait", "two/both"]).await;
        said.out
            .split_whitespace()
            .find(|word| word.len() == 26)
            .expect("the id is printed")
            .to_owned()
    };
    cli.ends(0, &["command", "show", &waiting[..8]]).await;
    fleet.hosts[1].start();
    cli.ends(0, &["command", "watch", &waiting]).await;
    let listed = cli.ends(0, &["command", "ls"]).await;
    assert!(listed.out.contains(&waiting[..6]), "{}", listed.out);
    cli.ends(0, &["audit"]).await;
    cli.ends(0, &["events"]).await;
    cli.ends(0, &["status"]).await;

    fleet.controller.kill();
    cli.ends(8, &["ps"]).await;
}

fn ready(dir: &Path) -> Option<serde_json::Value> {
    serde_json::from_slice(&std::fs::read(dir.join("ready.json")).ok()?).ok()
}

/// Four ports in a row that nobody listens on.
fn row_of_ports() -> (u16, Vec<Port>) {
    for _ in 0..200 {
        let first = Port::claim();
        let rest: Vec<Port> = (1..4)
            .filter_map(|step| Port::take(first.number + step))
            .collect();
        if rest.len() == 3 {
            let number = first.number;
            return (number, rest.into_iter().chain([first]).collect());
        }
    }
    panic!("no four free ports in a row");
}

#[tokio::test]
async fn dev_starts_all_and_starts_again_what_dies() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let (first, _held) = row_of_ports();
    let mut keeper = Command::new(program("fairlead"))
        .args([
            "dev",
            "--engine",
            "simulated",
            "--ports-from",
            &first.to_string(),
            "--data-dir",
        ])
        .arg(&data)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(dir.path().join("dev.log")).unwrap())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let words = || std::fs::read_to_string(dir.path().join("dev.log")).unwrap_or_default();
    let mut now = wait_for("ready.json", SOON, async || ready(&data).ok_or_else(words)).await;

    let text = |value: &serde_json::Value, key: &str| value[key].as_str().unwrap().to_owned();
    assert_eq!(text(&now, "url"), format!("https://localhost:{first}"));
    assert_eq!(
        text(&now, "region_url"),
        format!("https://localhost:{}", first + 2)
    );
    assert_eq!(text(&now, "region"), "local");
    let cli = Cli {
        url: text(&now, "url"),
        ca: text(&now, "ca_file").into(),
        token: text(&now, "token"),
        home: tempfile::tempdir().unwrap(),
    };
    cli.ends(0, &["ping", &text(&now, "host")]).await;

    for name in ["agent", "access_server", "controller", "supervisor"] {
        let pid = |value: &serde_json::Value| value["pid"][name].as_u64().unwrap() as u32;
        let old = pid(&now);
        assert!(is_alive(old), "{name}");
        send(old, Signal::KILL);
        now = wait_for(
            &format!("{name} is there again"),
            SOON,
            async || match ready(&data) {
                Some(ready) if pid(&ready) != old && is_alive(pid(&ready)) => Ok(ready),
                other => Err(format!("{other:?}: {}", words())),
            },
        )
        .await;
        cli.ends(0, &["ping", &text(&now, "host")]).await;
    }

    let pids: Vec<u32> = now["pid"]
        .as_object()
        .unwrap()
        .values()
        .map(|pid| pid.as_u64().unwrap() as u32)
        .collect();
    send(keeper.id().unwrap(), Signal::TERM);
    let status = tokio::time::timeout(SOON, keeper.wait())
        .await
        .expect("dev ends")
        .unwrap();
    assert!(status.success(), "{status}: {}", words());
    for pid in pids {
        assert!(!is_alive(pid), "process {pid} was left behind");
    }
    assert!(!data.join("ready.json").exists());
}
