//! P1, P2, P10: the engine is restarted, stopped and installed again under commands, with live-restore on: containers
//! keep ids and start times, nothing is lost or doubled, and what waits says for what. `fairlead host check` has
//! told before what a restart would do.
//!
//! The engine is that of a test host, the fleet runs here. All that is known of an engine here comes by
//! `DOCKER_HOST`, so the test runs itself once more, with that engine for its own.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use fairlead_api::types::Action;
use fairlead_tests::client::Api;
use fairlead_tests::engine::{self, Names, docker_says};
use fairlead_tests::fleet::{Fleet, Options};
use fairlead_tests::hosts::Hosts;
use fairlead_tests::oracle::{judge, tell};
use fairlead_tests::wait::{moment, wait_for};
use fairlead_tests::witness::now_us;
use tokio::process::Command;

use crate::acts::{restart, start, stop};
use crate::cli::Cli;
use crate::storm::stream::{self, Dice, Size, Stream};

/// Says to the test that it runs beside a test host's engine: that machine's container, in this machine's engine.
const BESIDE: &str = "FAIRLEAD_TEST_ENGINE_OF";
const SOON: Duration = Duration::from_secs(60);
const ENGINES_LOG: &str = "journalctl -u docker -u containerd -o short-precise --no-pager -n 300";
/// How long the engine is let alone in between: long enough for some of what waits to be done.
const WELL_MS: u64 = 4_000;
/// Restart upon restart, of an engine that says nothing for half a minute after each.
const LONG: Duration = Duration::from_secs(300);
/// Less would tell nothing.
const PROCESSES_MIN: usize = 30;
const TURNS_MIN: usize = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_of_the_engine_lose_and_double_nothing() {
    restarts("restarts_of_the_engine_lose_and_double_nothing", 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: ./dev test --long"]
async fn long_restarts_of_the_engine_lose_and_double_nothing() {
    restarts("long_restarts_of_the_engine_lose_and_double_nothing", 20).await;
}

async fn restarts(name: &str, times: u32) {
    with_its_engine(name, async |machine| beside(machine, times).await).await;
}

/// An engine that ends between making a container's process and beginning it: a Docker before 23.0 stands in its own
/// way from then on, and what the error says on that mends it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_the_engine_cut_short_is_told_with_its_cure() {
    let name = "a_start_that_the_engine_cut_short_is_told_with_its_cure";
    with_its_engine(name, async |machine| cut_short(machine).await).await;
}

/// Does that on a test host, in a run of this test that has its engine for its own.
async fn with_its_engine(name: &str, test: impl AsyncFnOnce(&Machine)) {
    if let Ok(machine) = std::env::var(BESIDE) {
        return test(&Machine(machine)).await;
    }
    let Some(hosts) = Hosts::here().await else {
        return;
    };
    let host = hosts.start("vm").await;
    let init = engine::field(host.container(), "{{.State.Pid}}").expect("it runs");
    let name = format!("engine_restarts::{name}");
    let again = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &name, "--nocapture", "--include-ignored"])
        .env(BESIDE, host.container())
        .env(
            "DOCKER_HOST",
            format!("unix:///proc/{init}/root/run/docker.sock"),
        )
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(SOON * 20, again)
        .await
        .expect("it ends")
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    if !output.status.success() || !said.contains("1 passed") {
        let machine = Machine(host.container().to_owned());
        let log = machine.tries(ENGINES_LOG).await;
        panic!("{said}\n{}", log.unwrap_or_else(|no| no));
    }
    println!("{said}");
}

/// The machine whose engine this is, to be root of.
struct Machine(String);

impl Machine {
    async fn says(&self, command: &str) -> String {
        let said = self.tries(command).await;
        said.unwrap_or_else(|no| panic!("{command}: {no}"))
    }

    /// What it says, or why it does not succeed.
    async fn tries(&self, command: &str) -> Result<String, String> {
        let output = Command::new("docker")
            .env_remove("DOCKER_HOST")
            .args(["exec", &self.0, "sh", "-c", command])
            .output()
            .await
            .expect("the docker CLI is here");
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            return Err(format!("{text} {errors}"));
        }
        Ok(text)
    }

    /// Does that to the engine, and waits until it answers; from when to when it was away.
    async fn without_engine(&self, command: &str) -> (i64, i64) {
        let process = "systemctl show -p MainPID --value docker.service";
        let before = self.says(process).await;
        let gone = now_us();
        // systemd lets nobody restart a service as often as this.
        self.says(&format!("systemctl reset-failed docker.service; {command}"))
            .await;
        wait_for("the engine answers", SOON, async || {
            let output = engine::docker(&["version"]);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            output.status.success().then_some(()).ok_or(said)
        })
        .await;
        assert_ne!(
            self.says(process).await,
            before,
            "{command}: the same engine"
        );
        (gone, now_us())
    }
}

/// Id, start and process of every container that runs.
fn running() -> Vec<String> {
    let ids = docker_says(&["ps", "-q", "--no-trunc"]);
    let mut arguments = vec![
        "container",
        "inspect",
        "--format",
        "{{.Id}} {{.State.StartedAt}} {{.State.Pid}} {{.RestartCount}} {{.Name}}",
    ];
    arguments.extend(ids.lines());
    let mut all: Vec<String> = docker_says(&arguments).lines().map(str::to_owned).collect();
    all.sort();
    all
}

/// The containers and their processes, by the kernel's record of when each was started. Of containers in which a process
/// was just being begun the engine says nothing for half a minute after its restart: so long containerd waits for it.
struct Going(Vec<(String, String, String)>);

impl Going {
    fn of(running: &[String]) -> Self {
        let each = running.iter().map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            let (id, pid) = (words[0].to_owned(), words[2].to_owned());
            let since = since(&pid).expect("it runs");
            (id, pid, since)
        });
        Self(each.collect())
    }

    /// Each is there as it was, and the engine knows that it runs.
    fn still(&self, when: &str) {
        let known = docker_says(&["ps", "-q", "--no-trunc"]);
        for (id, pid, began) in &self.0 {
            assert!(known.lines().any(|line| line == id), "{when}: {id}");
            assert_eq!(since(pid).as_ref(), Some(began), "{when}: {id}");
        }
    }
}

/// When a process of the engine's machine was started, in the kernel's words.
fn since(pid: &str) -> Option<String> {
    let stat = Path::new("/proc").join(pid).join("stat");
    let stat = std::fs::read_to_string(engine::seen_from_here(&stat)).ok()?;
    // The 22nd field; the second, in parentheses, may hold blanks.
    let after_name = stat.rsplit(") ").next()?;
    after_name.split(' ').nth(19).map(str::to_owned)
}

/// Stops and starts a container that takes its grace, in turn, as long as it goes on; `done`: how often. What each
/// command says is true of the engine.
async fn stop_and_start(
    machine: &Machine,
    api: &Api,
    container: &str,
    (over, done): (&AtomicBool, &AtomicUsize),
) {
    while !over.load(Ordering::SeqCst) {
        for (action, runs) in [(stop(container), "false"), (start(container), "true")] {
            let ended = loop {
                let command = api.begin("box", action.clone()).await;
                let ended = api.ended(&command.id, LONG).await;
                let Some(cure) = cure(&ended.message) else {
                    break ended;
                };
                // This engine restarted between making a process and beginning it, and stands in its own way.
                println!("on the host: {cure}");
                wait_for("the cure", SOON, async || machine.tries(cure).await).await;
            };
            assert_eq!(ended.state, "succeeded", "{ended:#?}");
            let is = wait_for("the engine answers", SOON, async || {
                engine::field(container, "{{.State.Running}}").ok_or("it is away".to_owned())
            })
            .await;
            assert_eq!(is, runs, "{ended:#?}");
            done.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// What is to be done on the host, by what a start says that cannot be.
fn cure(message: &str) -> Option<&str> {
    let (_, then) = message.split_once("; on the host: ")?;
    let (cure, _) = then.split_once(" and then start it again")?;
    Some(cure)
}

async fn beside(machine: &Machine, times: u32) {
    let mut fleet = Fleet::start(
        Options::docker().agent_flag("--engine-socket", engine::socket().to_str().unwrap()),
    )
    .await;
    let names = Names::new();
    let deaf = names.deaf("deaf", 1);
    checked(machine, &fleet, &deaf).await;

    let mut dice = Dice::seeded();
    let size = Size {
        commands: usize::MAX / 2,
        grace_s: 2,
        process_s: 2,
        patience: LONG,
    };
    let stream = Stream::begin_processes(&fleet, size, &mut dice);
    let others = |all: Vec<String>| -> Vec<String> {
        let own = format!("/{deaf}");
        let others = all.into_iter().filter(|line| !line.ends_with(&own));
        others.collect()
    };
    let before = others(running());
    let going = Going::of(&before);
    let (over, turns) = (AtomicBool::new(false), AtomicUsize::new(0));
    let outages = async {
        let mut away = Vec::new();
        for turn in 0..times {
            away.push(machine.without_engine("systemctl restart docker").await);
            going.still(&format!("restart {turn}"));
            moment(WELL_MS).await;
        }
        away.push(waits(machine, &fleet, &stream.boxes.queue).await);
        going.still("stopped and started");
        away.push(machine.without_engine(REINSTALL).await);
        going.still("installed again");
        moment(WELL_MS).await;
        wait_for("enough was stopped and started", LONG, async || {
            let turns = turns.load(Ordering::SeqCst);
            (turns >= TURNS_MIN).then_some(()).ok_or(format!("{turns}"))
        })
        .await;
        over.store(true, Ordering::SeqCst);
        away
    };
    let so_far = (&over, &turns);
    let ((), away) = tokio::join!(stop_and_start(machine, &fleet.api, &deaf, so_far), outages);

    stream.is_enough(PROCESSES_MIN).await;
    let mut history = stream.end(&mut fleet).await;
    let outages: Vec<i64> = away
        .iter()
        .map(|(gone, back)| (back - gone) / 1_000)
        .collect();
    history.engine_away = away;
    let found = judge(&history);
    let ends = stream::count_ends(&history);
    println!(
        "{} processes: {ends:?}, {turns:?} stops and starts; the engine was away for {outages:?} ms",
        history.asked.len()
    );
    assert!(found.is_empty(), "seed {}: {}", dice.seed, tell(&found));
    assert_eq!(others(running()), before);
}

async fn cut_short(machine: &Machine) {
    machine.says(CUTS_SHORT).await;
    let fleet = Fleet::start(
        Options::docker().agent_flag("--engine-socket", engine::socket().to_str().unwrap()),
    )
    .await;
    let names = Names::new();
    let flags = ["--runtime", "cut-short", "--stop-timeout", "1"];
    let container = names.by_hand("cut", &flags, &["sleep", "3600"]);
    fleet.done(stop(&container)).await;

    machine.says("touch /run/cut-short").await;
    // The first one meets the engine's end, the second one only what it has left.
    for _ in 0..2 {
        let ended = fleet.act(start(&container)).await;
        assert_eq!(ended.code, "engine_error", "{ended:#?}");
        assert!(cure(&ended.message).is_some(), "{ended:#?}");
        let state = machine
            .says("test ! -e /run/cut-short; ctr -n moby tasks ls")
            .await;
        assert!(state.contains("CREATED"), "{state}");
    }
    let ended = fleet.act(start(&container)).await;
    machine.says(cure(&ended.message).expect("a cure")).await;
    fleet.done(start(&container)).await;
    assert!(engine::is_running(&container));
}

/// Gives the engine a runtime that, once, kills the engine instead of beginning the process that it has made.
const CUTS_SHORT: &str = r#"
set -e
cat > /usr/local/bin/cut-short <<'END'
#!/bin/sh
for word in "$@"; do
    if [ "$word" = start ] && [ -e /run/cut-short ]; then
        systemctl kill -s KILL docker.service
        rm /run/cut-short
        exit 1
    fi
done
exec runc "$@"
END
chmod +x /usr/local/bin/cut-short
mkdir -p /etc/docker
echo '{ "live-restore": true, "runtimes": { "cut-short": { "path": "/usr/local/bin/cut-short" } } }' > /etc/docker/daemon.json
systemctl reload docker
"#;

/// What a check says before, and that its advice is good: it takes no restart.
async fn checked(machine: &Machine, fleet: &Fleet, container: &str) {
    let cli = Cli::of(fleet);
    let before = running();
    let said = cli.ends(1, &["host", "check", "box"]).await;
    assert!(
        said.out.contains("off, 1 running container"),
        "{}",
        said.out
    );
    let named = format!("not started again by it: {container};");
    assert!(said.out.contains(&named), "{}", said.out);
    let setting = r#"{ "live-restore": true }"#;
    machine
        .says(&format!(
            "mkdir -p /etc/docker; echo '{setting}' > /etc/docker/daemon.json; systemctl reload docker"
        ))
        .await;
    wait_for("the engine has taken it", SOON, async || {
        let said = cli.says(&["host", "check", "box"]).await;
        let taken = said.code == 0 && said.out.contains("on, 1 running container");
        taken.then_some(()).ok_or(said.out)
    })
    .await;
    assert_eq!(running(), before);
}

/// While the engine is stopped what waits says so, everywhere; and goes on by itself.
async fn waits(machine: &Machine, fleet: &Fleet, container: &str) -> (i64, i64) {
    let cli = Cli::of(fleet);
    let gone = now_us();
    machine
        .says("systemctl reset-failed docker.service; systemctl stop docker.socket docker.service")
        .await;
    let inspect = Action::Inspect {
        object: container.to_owned(),
        object_kind: String::new(),
    };
    let waiting = [
        fleet.api.begin("box", inspect).await,
        fleet.api.begin("box", restart("not-there")).await,
    ];
    for command in &waiting {
        wait_for("it says for what it waits", SOON, async || {
            let command = fleet.api.command(&command.id).await.unwrap();
            let said = command.waiting_for.contains("engine does not answer");
            said.then_some(()).ok_or(format!("{command:#?}"))
        })
        .await;
    }
    let shown = cli.ends(0, &["command", "show", &waiting[0].id]).await;
    assert!(
        shown.out.contains("engine does not answer"),
        "{}",
        shown.out
    );
    wait_for("the host says so too", SOON, async || {
        let said = cli.says(&["status"]).await;
        let told = said.out.contains("the engine on box does not answer");
        told.then_some(()).ok_or(said.out)
    })
    .await;
    let check = cli.ends(1, &["host", "check", "box"]).await;
    assert!(check.out.contains("it does not answer"), "{}", check.out);
    let (_, back) = machine
        .without_engine("systemctl start docker.socket docker.service")
        .await;
    let ended = fleet.api.ended(&waiting[0].id, SOON).await;
    assert_eq!(ended.state, "succeeded", "{ended:#?}");
    let ended = fleet.api.ended(&waiting[1].id, SOON).await;
    assert_eq!(ended.code, "container_not_found", "{ended:#?}");
    (gone, back)
}

/// The engine's package as it is installed, packed, removed and installed again, with all that its own scripts do then:
/// they stop the engine when it is removed, and an upgrade alone would leave the old one running. Packed without
/// compression, which would take minutes of a busy processor.
const REINSTALL: &str = r#"
set -e
at=$(mktemp -d)
mkdir $at/DEBIAN
dpkg -L docker.io | while read -r path; do
    case $path in /lib | /bin | /sbin) mkdir -p "$at$path"; continue ;; esac
    if [ -d "$path" ] && [ ! -L "$path" ]; then mkdir -p "$at$path"
    elif [ -e "$path" ] || [ -L "$path" ]; then cp -a "$path" "$at$path"; fi
done
for script in preinst postinst prerm postrm conffiles; do
    [ ! -e /var/lib/dpkg/info/docker.io.$script ] || cp -p /var/lib/dpkg/info/docker.io.$script $at/DEBIAN/$script
done
dpkg-query -s docker.io | sed '/^Status:/d; /^Conffiles:/,/^[^ C]/{/^Conffiles:/d;/^ /d}' > $at/DEBIAN/control
dpkg-deb -Znone -b $at /root/docker.io.deb >&2
dpkg -r --force-depends docker.io >&2
DEBIAN_FRONTEND=noninteractive dpkg --force-confold -i /root/docker.io.deb >&2
rm -rf $at /root/docker.io.deb
"#;
