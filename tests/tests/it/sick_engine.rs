//! P10, P2: an engine that is stopped, frozen or slow: commands wait and say for what, deadlines hold, other
//! lanes and heartbeats go on, and nothing is done twice when it comes back.
//!
//! Between agent and engine lies a relay (`tests/src/line.rs`). What it holds while it stalls reaches the
//! engine later, as what was sent to a frozen engine does, also when nobody waits for it any more. One test
//! freezes an engine itself: that of a test host.

use std::time::{Duration, Instant};

use fairlead_api::types::{Action, CommandRequest, Precondition};
use fairlead_tests::client::request;
use fairlead_tests::engine::{self, Names};
use fairlead_tests::fleet::{Fleet, Options};
use fairlead_tests::hosts::Hosts;
use fairlead_tests::line::{Cut, Line, Weather};
use fairlead_tests::oracle::{judge, tell};
use fairlead_tests::process::send;
use fairlead_tests::wait::{moment, wait_for};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::acts::{exec, restart};
use crate::storm::stream::{self, Dice, Size, Stream};

const SOON: Duration = Duration::from_secs(40);
/// What a heartbeat and a command without the engine may take meanwhile.
const PING_WITHIN: Duration = Duration::from_secs(20);

/// A fleet whose agent reaches the machine's engine by a line of ours.
async fn behind_a_line() -> (Fleet, Line, TempDir) {
    let sockets = tempfile::tempdir().unwrap();
    let at = sockets.path().join("engine.sock");
    let line = Line::to_socket(&engine::socket(), &at).await;
    let options = Options::docker().agent_flag("--engine-socket", at.to_str().unwrap());
    (Fleet::start(options).await, line, sockets)
}

/// Stopped, frozen, slow, frozen and then stopped, restarted: in turn.
async fn ail(line: &Line, times_as_long: u64) {
    let last = |seconds: u64| moment(seconds * times_as_long * 1_000);
    println!("stopped");
    line.set(Weather::refusing());
    line.cut(Cut::Reset);
    last(2).await;
    line.heal();
    last(1).await;
    println!("frozen");
    line.set(Weather::stalled());
    last(3).await;
    line.heal();
    last(1).await;
    println!("slow");
    line.set(Weather::round_trip(Duration::from_secs(2)));
    last(4).await;
    line.heal();
    println!("frozen, then stopped");
    line.set(Weather::stalled());
    last(2).await;
    line.set(Weather::refusing());
    line.cut(Cut::Reset);
    last(1).await;
    line.heal();
    last(1).await;
    for _ in 0..3 {
        println!("restarted");
        line.cut(Cut::Reset);
        last(1).await;
    }
}

async fn sick_engine(times_as_long: u64) {
    let (fleet, line, _sockets) = behind_a_line().await;
    // What it was asked for in time a frozen engine begins late.
    let late = Duration::from_secs(10) * u32::try_from(times_as_long).unwrap();
    under_commands(fleet, ail(&line, times_as_long), late, 20).await;
}

/// A stream of commands while the engine ails; the oracle judges. Pings and heartbeats go on meanwhile.
async fn under_commands(
    mut fleet: Fleet,
    ailing: impl Future<Output = ()>,
    late: Duration,
    least: usize,
) {
    let mut dice = Dice::seeded();
    let size = Size {
        commands: usize::MAX / 2,
        grace_s: 2,
        process_s: 2,
        patience: Duration::from_secs(150),
    };
    let stream = Stream::begin(&fleet, size, &mut dice);
    let api = fleet.api.clone();
    let beating = async {
        let mut slowest = Duration::ZERO;
        loop {
            let asked = Instant::now();
            api.done("box", Action::Ping {}).await;
            slowest = slowest.max(asked.elapsed());
            assert!(slowest < PING_WITHIN, "a ping took {slowest:?}");
            let host = api.host("box").await.unwrap();
            assert_eq!(host.state, "online", "{}", host.reason);
            moment(100).await;
        }
    };
    tokio::select! {
        () = ailing => {}
        () = beating => {}
    }
    stream.is_enough(least).await;
    let mut history = stream.end(&mut fleet).await;
    history.stamps_apart_us = i64::try_from(late.as_micros()).unwrap();
    let found = judge(&history);
    let ends = stream::count_ends(&history);
    println!("{} commands: {ends:?}", history.asked.len());
    assert!(found.is_empty(), "seed {}: {}", dice.seed, tell(&found));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sick_engine_doubles_nothing_and_stops_no_heartbeat() {
    sick_engine(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: ./dev test --long"]
async fn long_a_sick_engine_doubles_nothing_and_stops_no_heartbeat() {
    sick_engine(12).await;
}

#[tokio::test]
async fn a_frozen_engine_holds_no_deadline_up_and_does_late_what_it_was_asked_once() {
    let (fleet, line, _sockets) = behind_a_line().await;
    let names = Names::new();
    let (web, other) = (names.polite("web"), names.polite("other"));
    let third = names.polite("third");
    fleet.done(restart(&web)).await;
    wait_for("all are in the picture", SOON, async || {
        let seen = fleet.api.containers("box").await.unwrap();
        let all = [&web, &other, &third];
        let all = all.iter().all(|name| seen.iter().any(|c| c.name == **name));
        if all {
            Ok(())
        } else {
            Err(format!("{seen:?}"))
        }
    })
    .await;
    line.set(Weather::stalled());

    // Its picture is fresh, so the engine is asked at once, and gives no answer within the time that
    // the command has.
    let impatient = CommandRequest {
        timeout_ms: Some(1_500),
        ..request("box", restart(&web))
    };
    let impatient = fleet.api.submit(&impatient, Duration::ZERO).await.unwrap();
    let behind = CommandRequest {
        deadline_s: Some(3),
        ..request("box", restart(&web))
    };
    let behind = fleet.api.submit(&behind, Duration::ZERO).await.unwrap();
    // One that has to look first says for what it waits, and neither begins past its deadline nor when
    // it has been withdrawn.
    let looks = |deadline_s| CommandRequest {
        deadline_s: Some(deadline_s),
        precondition: Some(Precondition {
            container_id: engine::id(&third),
            ..Precondition::default()
        }),
        ..request("box", restart(&third))
    };
    let looking = fleet.api.submit(&looks(15), Duration::ZERO).await.unwrap();
    wait_for("it says that the engine is silent", SOON, async || {
        let command = fleet.api.command(&looking.id).await.unwrap();
        let said = command.waiting_for.contains("engine does not answer");
        if said {
            Ok(())
        } else {
            Err(format!("{command:#?}"))
        }
    })
    .await;
    let late = fleet.api.ended(&looking.id, SOON).await;
    assert_eq!(
        (&late.state[..], &late.code[..]),
        ("expired", "deadline_passed")
    );
    let looking = fleet.api.submit(&looks(60), Duration::ZERO).await.unwrap();
    fleet.api.cancel(&looking.id).await.unwrap();
    let withdrawn = fleet.api.ended(&looking.id, SOON).await;
    assert_eq!(withdrawn.state, "cancelled", "{withdrawn:#?}");
    let elsewhere = fleet.begin(restart(&other)).await;
    let asked = Instant::now();
    fleet.done(Action::Ping {}).await;
    assert!(asked.elapsed() < PING_WITHIN, "{:?}", asked.elapsed());
    let late = fleet.api.ended(&behind.id, SOON).await;
    assert_eq!(
        (&late.state[..], &late.code[..]),
        ("expired", "deadline_passed"),
        "{late:#?}"
    );
    assert_eq!(fleet.api.host("box").await.unwrap().state, "online");
    moment(2_000).await;

    line.heal();
    let first = fleet.api.ended(&impatient.id, SOON).await;
    let told = (&first.state[..], &first.code[..]);
    assert!(
        told == ("succeeded", "") || told == ("failed", "timeout"),
        "{first:#?}"
    );
    let ended = fleet.api.ended(&elsewhere.id, SOON).await;
    assert_eq!(ended.state, "succeeded", "{ended:#?}");
    assert_eq!(engine::count(&other, "restart"), 1);
    fleet.done(restart(&web)).await;
    assert_eq!(engine::count(&third, "restart"), 0);
    // The first, the one that the frozen engine did late, and this one. It was asked for the second only
    // where the picture was still fresh; else that one had to look, and its time passed.
    let restarts = engine::count(&web, "restart");
    assert!((2..=3).contains(&restarts), "{restarts}: {first:#?}");
}

#[tokio::test]
async fn a_process_is_not_begun_by_a_slow_engine_when_its_deadline_has_passed() {
    let (fleet, line, _sockets) = behind_a_line().await;
    let names = Names::new();
    let web = names.polite("web");
    fleet.done(restart(&web)).await;
    wait_for("it is in the picture", SOON, async || {
        let seen = fleet.api.containers("box").await.unwrap();
        let is_there = seen.iter().any(|container| container.name == web);
        is_there.then_some(()).ok_or_else(|| format!("{seen:?}"))
    })
    .await;
    // Making a process takes longer than it may take to begin.
    line.set(Weather::round_trip(Duration::from_secs(3)));
    let asked = CommandRequest {
        deadline_s: Some(2),
        ..request("box", exec(&web, &["touch", "/tmp/it-ran"]))
    };
    let ended = fleet.api.submit(&asked, SOON).await.unwrap();
    assert_eq!(
        (&ended.state[..], &ended.code[..]),
        ("expired", "deadline_passed"),
        "{ended:#?}"
    );
    line.heal();
    fleet
        .done(exec(&web, &["test", "!", "-e", "/tmp/it-ran"]))
        .await;
}

/// Says to the test below that it runs beside a test host's engine: the pid of that machine's init.
const BESIDE: &str = "FAIRLEAD_TEST_BESIDE";
/// How long the engine is frozen, how often, and how long not in between, in milliseconds.
const FREEZES: [(u64, u64); 4] = [(1_500, 700), (3_000, 700), (200, 300), (2_000, 700)];

/// The engine of a test host is stopped and continued under commands. All that is known of an engine here
/// comes by `DOCKER_HOST`, so the test runs itself once more, with that engine for its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_dockerd_doubles_nothing_and_stops_no_heartbeat() {
    if let Ok(init) = std::env::var(BESIDE) {
        return frozen_dockerd(&init).await;
    }
    let Some(hosts) = Hosts::here().await else {
        return;
    };
    let host = hosts.start("vm").await;
    let init = engine::field(host.container(), "{{.State.Pid}}").expect("it runs");
    let name = "sick_engine::a_frozen_dockerd_doubles_nothing_and_stops_no_heartbeat";
    let again = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(BESIDE, &init)
        .env(
            "DOCKER_HOST",
            format!("unix:///proc/{init}/root/run/docker.sock"),
        )
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(SOON * 15, again)
        .await
        .expect("it ends")
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}"
    );
    println!("{said}");
}

async fn frozen_dockerd(init: &str) {
    let dockerd = dockerd_beside(init);
    let fleet = Fleet::start(
        Options::docker().agent_flag("--engine-socket", engine::socket().to_str().unwrap()),
    )
    .await;
    let ailing = async {
        for (frozen_ms, well_ms) in FREEZES {
            let frozen = Frozen::now(dockerd);
            moment(frozen_ms).await;
            drop(frozen);
            moment(well_ms).await;
        }
    };
    under_commands(fleet, ailing, Duration::from_secs(10), 10).await;
}

/// SIGSTOP, and SIGCONT at the end, however it comes.
struct Frozen(u32);

impl Frozen {
    fn now(pid: u32) -> Self {
        send(pid, Signal::STOP);
        Self(pid)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        send(self.0, Signal::CONT);
    }
}

/// The engine that runs in the same machine as that process: never this machine's own.
fn dockerd_beside(init: &str) -> u32 {
    let machine = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let (theirs, own) = (machine(init), machine("self"));
    assert!(theirs.is_some() && theirs != own, "{theirs:?}, {own:?}");
    let found: Vec<u32> = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c == "dockerd\n")
        })
        .filter(|pid| machine(pid) == theirs)
        .filter_map(|pid| pid.parse().ok())
        .collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found[0]
}
