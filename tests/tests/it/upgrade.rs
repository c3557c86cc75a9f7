//! P3, P4, P5: the agent is upgraded under commands, and nobody notices; a version that does not work never gets
//! the host, or gives it back.
//!
//! Real processes, real packages, the machine's real engine. The judges are the engine's own record, what
//! processes in containers wrote, and the timelines of the commands.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fairlead_api::types::{Action, Command};
use fairlead_protocol::stream::Channel;
use fairlead_tests::client::Api;
use fairlead_tests::engine::{self, Names, docker_says};
use fairlead_tests::fleet::{Fleet, Options};
use fairlead_tests::process::{is_alive, send};
use fairlead_tests::versions::{FIRST, Versions, said};
use fairlead_tests::wait::wait_for;
use rustix::process::Signal;

use crate::acts::{attach, exec, logs, restart, start, stop};

const IN_TIME: Duration = Duration::from_secs(60);
/// How soon somebody owns the host again, whatever died.
const OWNED_AGAIN_WITHIN: Duration = Duration::from_secs(15);

fn options(versions: &Versions) -> Options {
    Options::docker()
        .agent_program(versions.supervisor())
        .agent_env("FAIRLEAD_UPGRADE_PROVE_MS", "12000")
        .agent_env("FAIRLEAD_UPGRADE_SILENT_MS", "4000")
}

/// The phase that the supervisor is in, as it says.
fn phase(fleet: &Fleet) -> String {
    let status = fleet.hosts[0].status().unwrap_or_default();
    status["phase"].as_str().unwrap_or_default().to_owned()
}

/// Waits until one instance owns the host and no other is there but for streams; its version.
async fn settled(fleet: &Fleet, within: Duration) -> String {
    wait_for("one instance owns the host", within, async || {
        let status = fleet.hosts[0].status().unwrap_or_default();
        let owner = status["agent"]
            .as_u64()
            .and_then(|pid| u32::try_from(pid).ok());
        match (status["phase"].as_str(), owner) {
            (Some("steady"), Some(pid)) if is_alive(pid) => {
                let all = status["instances"].as_array().cloned().unwrap_or_default();
                let version = all
                    .iter()
                    .find(|one| one["pid"] == pid)
                    .map(|one| one["version"].as_str().unwrap_or_default().to_owned());
                version.ok_or_else(|| status.to_string())
            }
            _ => Err(format!(
                "{status} {}",
                fleet.hosts[0].supervisor.last_words()
            )),
        }
    })
    .await
}

fn stamp(command: &Command, stage: &str) -> f64 {
    let found = command.timeline.iter().find(|stamp| stamp.stage == stage);
    found
        .unwrap_or_else(|| panic!("no {stage}: {command:#?}"))
        .after_ms
}

async fn upgraded(versions: &Versions, fleet: &Fleet, package: &Path) -> std::process::Output {
    let mut command = versions.upgrade_command(&fleet.hosts[0], package);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    tokio::task::spawn_blocking(move || command.output().expect("the tool runs"))
        .await
        .expect("it ends")
}

async fn must_upgrade(versions: &Versions, fleet: &Fleet, package: &Path) {
    let output = upgraded(versions, fleet, package).await;
    assert!(
        output.status.success(),
        "{}\n{}",
        said(&output),
        fleet.hosts[0].supervisor.last_words()
    );
}

#[tokio::test]
async fn a_new_version_takes_over_and_says_so() {
    let versions = Versions::new();
    let fleet = Fleet::start(options(&versions)).await;
    let names = Names::new();
    let web = names.polite("web");
    assert_eq!(settled(&fleet, IN_TIME).await, FIRST);
    let before = fleet.hosts[0].agent_pid().await;

    must_upgrade(&versions, &fleet, &versions.package("1.1.0")).await;

    assert_eq!(settled(&fleet, IN_TIME).await, "1.1.0");
    assert_eq!(versions.linked("current"), "1.1.0");
    assert_eq!(versions.linked("supervisor"), FIRST, "later, and by itself");
    let after = fleet.hosts[0].agent_pid().await;
    assert_ne!(before, after);
    fleet.done(restart(&web)).await;
    wait_for("the instance before has left", IN_TIME, async || {
        if is_alive(before) {
            Err(format!("{before} is there"))
        } else {
            Ok(())
        }
    })
    .await;
    wait_for("its version is shown", IN_TIME, async || {
        let host = fleet.api.host("box").await.map_err(|no| no.to_string())?;
        match host.facts.map(|facts| facts.agent_version) {
            Some(version) if version == "1.1.0" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    fleet.done(restart(&web)).await;
    assert_eq!(engine::count(&web, "restart"), 2);
}

/// Asks for `make(n)` again and again until told to stop; everything that was asked.
fn busy(
    api: Api,
    every: Duration,
    stop: Arc<AtomicBool>,
    make: impl Fn(u32) -> Action + Send + 'static,
) -> tokio::task::JoinHandle<Vec<Command>> {
    tokio::spawn(async move {
        let mut asked = Vec::new();
        let mut turn = tokio::time::interval(every);
        while !stop.load(Ordering::SeqCst) {
            turn.tick().await;
            let number = u32::try_from(asked.len()).expect("few");
            asked.push(api.begin("box", make(number)).await);
        }
        asked
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn back_and_forth_under_commands() {
    back_and_forth(6).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes too long for every day: ./dev test --long"]
async fn long_back_and_forth_under_commands() {
    back_and_forth(100).await;
}

async fn back_and_forth(rounds: usize) {
    let versions = Versions::new();
    let fleet = Fleet::start(options(&versions)).await;
    let names = Names::new();
    let packages = [versions.package("1.1.0"), versions.package(FIRST)];
    let over = Arc::new(AtomicBool::new(false));
    let mut tasks = Vec::new();
    let mut restarted = Vec::new();
    for n in 0..5 {
        let container = names.polite(&format!("r{n}"));
        restarted.push(container.clone());
        tasks.push(busy(
            fleet.api.clone(),
            Duration::from_millis(400),
            Arc::clone(&over),
            move |_| restart(&container),
        ));
    }
    let mut written = Vec::new();
    for n in 0..4 {
        let container = names.polite(&format!("e{n}"));
        written.push(container.clone());
        tasks.push(busy(
            fleet.api.clone(),
            Duration::from_millis(500),
            Arc::clone(&over),
            move |number| {
                let script = format!("echo {number} >> /tmp/log");
                exec(&container, &["sh", "-c", &script])
            },
        ));
    }
    // A stop that takes its whole grace, and what waits behind it: under way at every cut-over.
    let deaf = names.deaf("deaf", 2);
    let aim = deaf.clone();
    tasks.push(busy(
        fleet.api.clone(),
        Duration::from_millis(1200),
        Arc::clone(&over),
        move |number| {
            if number % 2 == 0 {
                stop(&aim)
            } else {
                start(&aim)
            }
        },
    ));
    let probes = busy(
        fleet.api.clone(),
        Duration::from_millis(10),
        Arc::clone(&over),
        |_| Action::Ping {},
    );

    // What a busy machine costs without an upgrade, for comparison.
    fairlead_tests::wait::moment(3000).await;
    let began = Instant::now();
    let upgrading_since = jiff::Timestamp::now();
    for round in 0..rounds {
        must_upgrade(&versions, &fleet, &packages[round % 2]).await;
    }
    let took = began.elapsed();
    over.store(true, Ordering::SeqCst);

    let mut ends: Vec<Vec<Command>> = Vec::new();
    for task in tasks {
        let mut ended = Vec::new();
        for command in task.await.expect("it ends") {
            let end = fleet.api.ended(&command.id, Duration::from_secs(120)).await;
            assert_eq!(end.state, "succeeded", "{end:#?}");
            ended.push(end);
        }
        ends.push(ended);
    }
    let asked: usize = ends.iter().map(Vec::len).sum();
    once_and_in_order(&restarted, &written, &ends);
    let probes = probes.await.expect("it ends");
    println!("{rounds} upgrades in {took:?}, {asked} commands");
    accepted_in_time(&fleet.api, probes, upgrading_since).await;
}

/// By the engine's record and what processes wrote: nothing lost, doubled, out of order or overlapping.
fn once_and_in_order(restarted: &[String], written: &[String], ends: &[Vec<Command>]) {
    for (container, ended) in restarted.iter().zip(ends) {
        assert_eq!(
            engine::count(container, "restart"),
            ended.len(),
            "{container}"
        );
        assert_eq!(
            engine::count(container, "start"),
            ended.len() + 1,
            "{container}"
        );
    }
    for (container, ended) in written.iter().zip(&ends[restarted.len()..]) {
        let log = docker_says(&["exec", container, "cat", "/tmp/log"]);
        let mut lines: Vec<usize> = log.lines().map(|line| line.parse().unwrap()).collect();
        lines.sort_unstable();
        let wanted: Vec<usize> = (0..ended.len()).collect();
        assert_eq!(lines, wanted, "{container}: each process ran exactly once");
    }
    // In order and without overlap: each began when the one before had been answered.
    let held = restarted.len() + written.len();
    for ended in ends[..restarted.len()].iter().chain([&ends[held]]) {
        for pair in ended.windows(2) {
            let at = |command: &Command, stage: &str| {
                let found = command.timeline.iter().rfind(|s| s.stage == stage);
                found.map(|s| s.at).expect("a stamp")
            };
            assert!(
                at(&pair[1], "engine_called") >= at(&pair[0], "engine_answered"),
                "{pair:#?}"
            );
        }
    }
}

/// Every probe was accepted within 50 ms.
async fn accepted_in_time(api: &Api, probes: Vec<Command>, upgrading_since: jiff::Timestamp) {
    let (mut before, mut waits) = (Vec::new(), Vec::new());
    for probe in probes {
        let end = api.ended(&probe.id, IN_TIME).await;
        assert_eq!(end.state, "succeeded", "{end:#?}");
        let waited = stamp(&end, "delivered") - stamp(&end, "region_received");
        let early = end
            .timeline
            .iter()
            .any(|s| s.stage == "delivered" && s.at < upgrading_since);
        if early { &mut before } else { &mut waits }.push(waited);
    }
    let longest = |waits: &mut Vec<f64>| {
        waits.sort_by(f64::total_cmp);
        waits.last().copied().unwrap_or_default()
    };
    let (without, with) = (longest(&mut before), longest(&mut waits));
    println!(
        "{} probes, accepted within {:.1} ms (half), \
         {:.1} ms (99 of 100), {with:.1} ms (all); without an upgrade {without:.1} ms (all of {})",
        waits.len(),
        waits[waits.len() / 2],
        waits[waits.len() * 99 / 100],
        before.len(),
    );
    // Where other programs keep the processors busy, more than twice what that costs anyway is too much.
    let bound = f64::max(50.0, 2.0 * without);
    assert!(
        with <= bound,
        "a probe was accepted after {with} ms, {without} ms without an upgrade"
    );
}

#[tokio::test]
async fn a_log_follow_and_an_exec_go_on_across_an_upgrade() {
    let versions = Versions::new();
    let fleet = Fleet::start(options(&versions)).await;
    let names = Names::new();
    let counting =
        "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); sleep 0.01; done; sleep 3600";
    let talking = names.by_hand("talking", &[], &["sh", "-c", counting]);
    let (web, other) = (names.polite("web"), names.polite("other"));

    let (_, mut follow) = attach(&fleet.api, "box", logs(&talking, None, true)).await;
    follow.begun().await;
    let script = "while read line; do echo \"<$line>\"; done; echo bye; exit 4";
    let talk = Action::Exec {
        container: web.clone(),
        command: ["sh", "-c", script].map(str::to_owned).to_vec(),
        env: Vec::new(),
        user: String::new(),
        workdir: String::new(),
        stdin: true,
        privileged: false,
    };
    let (running, mut talk) = attach(&fleet.api, "box", talk).await;
    talk.begun().await;
    talk.send(Channel::Input, b"before\n").await;

    let before = fleet.hosts[0].agent_pid().await;
    must_upgrade(&versions, &fleet, &versions.package("1.1.0")).await;
    assert_ne!(fleet.hosts[0].agent_pid().await, before);
    assert!(is_alive(before), "it sees its streams to their end");
    fleet.done(restart(&other)).await;

    talk.send(Channel::Input, b"after\n").await;
    talk.send(Channel::InputEnd, b"").await;
    let heard = talk.rest().await;
    assert_eq!(heard.text(), "<before>\n<after>\nbye\n");
    let ended = fleet.api.ended(&running.id, IN_TIME).await;
    assert_eq!(ended.exit_code, Some(4), "{ended:#?}");

    let mut text = Vec::new();
    while !String::from_utf8_lossy(&text).contains("line 1999\n") {
        let (channel, data) = follow.hear().await.expect("it was not closed");
        assert_eq!(channel, Channel::Output);
        text.extend_from_slice(&data);
    }
    let wanted: String = (0..2000).map(|n| format!("line {n}\n")).collect();
    assert_eq!(String::from_utf8_lossy(&text), wanted, "no byte is lost");
    drop(follow);
    wait_for("the instance before has left", IN_TIME, async || {
        if is_alive(before) {
            Err(format!("{:?}", fleet.hosts[0].status()))
        } else {
            Ok(())
        }
    })
    .await;
}

#[tokio::test]
async fn versions_that_do_not_work_never_get_the_host() {
    let versions = Versions::new();
    let fleet = Fleet::start(options(&versions)).await;
    let names = Names::new();
    let web = names.polite("web");
    let agent = fleet.hosts[0].agent_pid().await;
    let real = versions
        .prefix()
        .join("versions")
        .join(FIRST)
        .join("fairlead-agent");
    let no_way_out = format!(
        "exec env HTTPS_PROXY=http://127.0.0.1:9 https_proxy=http://127.0.0.1:9 {} \"$@\"",
        real.display()
    );
    let pretenders = [
        ("2.0.1", "exit 3", "exit code 3"),
        ("2.0.2", "exit 0", "exit code 0"),
        ("2.0.3", "kill -SEGV $$", "signal"),
        ("2.0.4", "exec sleep 600", "did not prove"),
        ("2.0.5", &no_way_out, "did not prove"),
    ];
    for (version, run, why) in pretenders {
        let package = versions.pretender(version, run);
        let began = Instant::now();
        let output = upgraded(&versions, &fleet, &package).await;
        assert!(!output.status.success(), "{version}: {}", said(&output));
        assert!(said(&output).contains(why), "{version}: {}", said(&output));
        assert!(began.elapsed() < Duration::from_secs(90), "{version}");
        assert_eq!(settled(&fleet, OWNED_AGAIN_WITHIN).await, FIRST);
        assert_eq!(fleet.hosts[0].agent_pid().await, agent, "it never knew");
        assert_eq!(versions.linked("current"), FIRST);
        fleet.done(restart(&web)).await;
    }

    // What is seen before anything runs.
    let cut = versions.package("2.1.0");
    let packed = Versions::packed(&cut);
    let whole = std::fs::read(&packed).expect("the program");
    std::fs::write(&packed, &whole[..whole.len() / 2]).expect("half of it");
    let output = versions.upgrade(&fleet.hosts[0], &cut);
    assert!(
        said(&output).contains("bytes instead of"),
        "{}",
        said(&output)
    );

    let altered = versions.package("2.1.1");
    let manifest = altered.join("manifest");
    let text = std::fs::read_to_string(&manifest).expect("the manifest");
    std::fs::write(&manifest, text.replace("2.1.1", "2.1.2")).expect("another");
    let output = versions.upgrade(&fleet.hosts[0], &altered);
    assert!(
        said(&output).contains("does not match"),
        "{}",
        said(&output)
    );

    let mut foreign = versions.stamped("2.1.3");
    // The machine that an ELF file is for.
    foreign[18..20].copy_from_slice(&[0xf3, 0]);
    let foreign = versions.package_of("2.1.3", &foreign);
    let output = versions.upgrade(&fleet.hosts[0], &foreign);
    assert!(
        said(&output).contains("cannot be started"),
        "{}",
        said(&output)
    );

    let elsewhere = Versions::new();
    let output = versions.upgrade(&fleet.hosts[0], &elsewhere.package("2.1.4"));
    assert!(said(&output).contains("not trusted"), "{}", said(&output));
    assert_eq!(fleet.hosts[0].agent_pid().await, agent);
    fleet.done(restart(&web)).await;
}

#[tokio::test]
async fn a_version_that_dies_on_trial_makes_room_for_the_one_before() {
    let versions = Versions::new();
    let fleet = Fleet::start(options(&versions)).await;
    let names = Names::new();
    let web = names.polite("web");
    must_upgrade(&versions, &fleet, &versions.package("1.1.0")).await;
    assert_eq!(settled(&fleet, IN_TIME).await, "1.1.0");

    let began = Instant::now();
    wait_for(
        "the version before is back",
        Duration::from_secs(90),
        async || {
            let status = fleet.hosts[0].status().unwrap_or_default();
            if status["current"] == FIRST && status["phase"] == "steady" {
                return Ok(());
            }
            if let Some(pid) = fleet.hosts[0].agent() {
                send(pid, Signal::KILL);
            }
            Err(status.to_string())
        },
    )
    .await;
    println!("back after {:?}", began.elapsed());

    assert_eq!(versions.linked("current"), FIRST);
    assert_eq!(settled(&fleet, IN_TIME).await, FIRST);
    fleet.all_online().await;
    fleet.done(restart(&web)).await;
    let status = fleet.hosts[0].status().unwrap_or_default();
    assert_eq!(status["returned"]["from"], "1.1.0", "{status}");
    let why = status["returned"]["why"].as_str().unwrap_or_default();
    assert!(why.contains("signal 9"), "{status}");
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Old,
    New,
    Supervisor,
}

/// Kills somebody as soon as the supervisor is in that phase, with a slow stop, a queue behind it and an exec
/// under way; then one instance owns the host, and every command has had its effect once.
async fn killed_in(when: &str, victim: Victim) {
    let versions = Versions::new();
    let mut fleet = Fleet::start(options(&versions)).await;
    let names = Names::new();
    let (deaf, web) = (names.deaf("deaf", 3), names.polite("web"));
    let old = fleet.hosts[0].agent_pid().await;
    let package = versions.package("1.1.0");
    let stopping = fleet.begin(stop(&deaf)).await;
    let starting = fleet.begin(start(&deaf)).await;
    let script = "echo once >> /tmp/log; sleep 4; echo end >> /tmp/log";
    let running = fleet.begin(exec(&web, &["sh", "-c", script])).await;
    fleet.api.reaches(&stopping.id, "running", IN_TIME).await;
    fleet.api.reaches(&running.id, "running", IN_TIME).await;

    let mut tool = versions
        .upgrade_command(&fleet.hosts[0], &package)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the tool runs");
    wait_for(when, IN_TIME, async || {
        if phase(&fleet) == when {
            Ok(())
        } else {
            Err(phase(&fleet))
        }
    })
    .await;
    match victim {
        Victim::Supervisor => fleet.hosts[0].supervisor.start_again(),
        Victim::Old => send(old, Signal::KILL),
        Victim::New => {
            let status = fleet.hosts[0].status().unwrap_or_default();
            let all = status["instances"].as_array().cloned().unwrap_or_default();
            let new = all.iter().filter_map(|one| one["pid"].as_u64());
            let new = new
                .map(|pid| u32::try_from(pid).unwrap())
                .find(|pid| *pid != old);
            send(new.expect("a candidate"), Signal::KILL);
        }
    }
    let began = Instant::now();
    let version = settled(&fleet, OWNED_AGAIN_WITHIN).await;
    println!(
        "{victim:?} in {when}: {version} after {:?}",
        began.elapsed()
    );
    let _ = tool.kill();
    let _ = tool.wait();

    fleet.all_online().await;
    for command in [&stopping, &starting, &running] {
        let ended = fleet.api.ended(&command.id, IN_TIME).await;
        assert_eq!(ended.state, "succeeded", "{victim:?} in {when}: {ended:#?}");
    }
    assert_eq!(
        engine::count(&deaf, "stop"),
        1,
        "{:#?}",
        engine::record(&deaf)
    );
    assert_eq!(
        engine::count(&deaf, "start"),
        2,
        "{:#?}",
        engine::record(&deaf)
    );
    assert_eq!(
        docker_says(&["exec", &web, "cat", "/tmp/log"]),
        "once\nend",
        "{victim:?} in {when}"
    );
    fleet.done(restart(&web)).await;
    assert_eq!(versions.linked("current"), settled(&fleet, IN_TIME).await);
}

#[tokio::test]
async fn the_old_one_dies_while_the_new_one_proves_itself() {
    killed_in("proving", Victim::Old).await;
}

#[tokio::test]
async fn the_new_one_dies_while_it_proves_itself() {
    killed_in("proving", Victim::New).await;
}

#[tokio::test]
async fn the_supervisor_dies_while_a_version_proves_itself() {
    killed_in("proving", Victim::Supervisor).await;
}

#[tokio::test]
async fn the_old_one_dies_while_it_finishes_what_it_had_begun() {
    killed_in("draining", Victim::Old).await;
}

#[tokio::test]
async fn the_new_one_dies_while_the_old_one_finishes_and_the_old_one_takes_over_again() {
    killed_in("draining", Victim::New).await;
}

#[tokio::test]
async fn the_supervisor_dies_while_the_old_one_finishes() {
    killed_in("draining", Victim::Supervisor).await;
}

/// The supervisor becomes the new version too, in the same process; its agents notice nothing.
#[tokio::test]
async fn the_supervisor_becomes_the_new_version_and_its_agent_goes_on() {
    let versions = Versions::new();
    let options = options(&versions).agent_env("FAIRLEAD_UPGRADE_TRIAL_MS", "2500");
    let fleet = Fleet::start(options).await;
    let names = Names::new();
    let web = names.polite("web");
    must_upgrade(&versions, &fleet, &versions.package("1.1.0")).await;
    let agent = fleet.hosts[0].agent_pid().await;
    let supervisor = fleet.hosts[0].supervisor.pid();

    wait_for(
        "the supervisor is of the new version",
        IN_TIME,
        async || {
            let status = fleet.hosts[0].status().unwrap_or_default();
            if status["supervisor_version"] == "1.1.0" {
                Ok(())
            } else {
                Err(status.to_string())
            }
        },
    )
    .await;
    assert_eq!(fleet.hosts[0].supervisor.pid(), supervisor);
    assert_eq!(fleet.hosts[0].agent_pid().await, agent, "its agent goes on");
    fleet.done(restart(&web)).await;
    wait_for(
        "the service would start it",
        IN_TIME,
        async || match versions.linked("supervisor") {
            link if link == "1.1.0" => Ok(()),
            link => Err(link),
        },
    )
    .await;
    // It still is the parent: a death is noticed, and an upgrade goes on.
    fleet.hosts[0].kill_agent().await;
    settled(&fleet, OWNED_AGAIN_WITHIN).await;
    fleet.all_online().await;
    must_upgrade(&versions, &fleet, &versions.package("1.2.0")).await;
    assert_eq!(settled(&fleet, IN_TIME).await, "1.2.0");
    fleet.done(restart(&web)).await;
}
