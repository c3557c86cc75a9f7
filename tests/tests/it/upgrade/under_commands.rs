//! Upgrades back and forth under commands: none is lost, doubled, out of order or overlapping, and each is
//! accepted at once.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fairlead_api::types::{Action, Command};
use fairlead_tests::client::Api;
use fairlead_tests::engine::{self, Names, docker_says};
use fairlead_tests::fleet::Fleet;
use fairlead_tests::lateness::Lateness;
use fairlead_tests::oracle::{judge, tell};
use fairlead_tests::versions::{FIRST, Versions};

use tokio::time::MissedTickBehavior;

use super::deaths::{Victim, strike};
use super::{IN_TIME, OWNED_AGAIN_WITHIN, must_upgrade, options, settled};
use crate::acts::{exec, restart, start, stop};
use crate::storm::kills::Kills;
use crate::storm::stream::{Dice, STAMPS_APART_US, Size, Stream, count_ends};

fn stamp(command: &Command, stage: &str) -> f64 {
    let found = command.timeline.iter().find(|stamp| stamp.stage == stage);
    found
        .unwrap_or_else(|| panic!("no {stage}: {command:#?}"))
        .after_ms
}

/// What waits on one container at a time: enough to be under way at each cut-over, and not so much that a
/// slow machine never comes to its end.
const OPEN_MAX: usize = 6;
/// Probes under way at a time.
const PROBES_MAX: usize = 500;

/// How a command ended.
async fn end_of(api: &Api, id: &str) -> Command {
    let until = Instant::now() + 2 * IN_TIME;
    loop {
        let path = format!("commands/{id}?wait_ms=1000");
        match api.get::<Command>(&path).await {
            Ok(command) if command.is_final => return command,
            told => assert!(Instant::now() < until, "{told:#?}"),
        }
    }
}

/// Asks for `make(n)` again and again until told to stop; how everything ended.
fn busy(
    api: Api,
    every: Duration,
    open_max: usize,
    stop: Arc<AtomicBool>,
    make: impl Fn(u32) -> Action + Send + 'static,
) -> tokio::task::JoinHandle<Vec<Command>> {
    tokio::spawn(async move {
        let mut open: VecDeque<String> = VecDeque::new();
        let mut ended = Vec::new();
        let mut turn = tokio::time::interval(every);
        turn.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for number in 0.. {
            if stop.load(Ordering::SeqCst) {
                break;
            }
            turn.tick().await;
            if open.len() == open_max
                && let Some(oldest) = open.pop_front()
            {
                ended.push(end_of(&api, &oldest).await);
            }
            open.push_back(api.begin("box", make(number)).await.id);
        }
        for id in open {
            ended.push(end_of(&api, &id).await);
        }
        ended
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
            OPEN_MAX,
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
            OPEN_MAX,
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
        OPEN_MAX,
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
        PROBES_MAX,
        Arc::clone(&over),
        |_| Action::Ping {},
    );

    // What a busy machine costs without an upgrade, for comparison.
    fairlead_tests::wait::moment(3000).await;
    let began = Instant::now();
    let upgrading_since = jiff::Timestamp::now();
    let lateness = Lateness::begin();
    for round in 0..rounds {
        must_upgrade(&versions, &fleet, &packages[round % 2]).await;
    }
    let took = began.elapsed();
    let late = lateness.end().as_secs_f64() * 1000.0;
    over.store(true, Ordering::SeqCst);

    let mut ends: Vec<Vec<Command>> = Vec::new();
    for task in tasks {
        let ended = task.await.expect("it ends");
        let bad = ended.iter().find(|end| end.state != "succeeded");
        assert!(bad.is_none(), "{bad:#?}");
        ends.push(ended);
    }
    let asked: usize = ends.iter().map(Vec::len).sum();
    once_and_in_order(&restarted, &written, &ends);
    let probes = probes.await.expect("it ends");
    println!("{rounds} upgrades in {took:?}, {asked} commands");
    accepted_in_time(&probes, upgrading_since, late);
}

/// By the engine's record and what processes wrote: nothing lost, doubled, out of order or overlapping.
fn once_and_in_order(restarted: &[String], written: &[String], ends: &[Vec<Command>]) {
    for (container, ended) in restarted.iter().zip(ends) {
        // A restart, whole, behind the other: two at once would mix what they make happen.
        let record = engine::record(container);
        let happened = record.iter().map(|one| one.action.as_str());
        // A second signal follows where the shell had not set its trap when the first one came.
        let happened: Vec<&str> = happened.filter(|what| *what != "kill").collect();
        let begun = happened.iter().position(|what| *what == "start");
        let restarts = &happened[begun.expect("it was started") + 1..];
        let each = restarts.len() / ended.len();
        let first = &restarts[..each];
        assert!(
            first.ends_with(&["start", "restart"]),
            "{container}: {first:?}"
        );
        // Which of `die` and `stop` is noted first is the engine's affair.
        let sorted = |one: &[&str]| {
            let mut one: Vec<String> = one.iter().map(ToString::to_string).collect();
            one.sort_unstable();
            one
        };
        let is_alike =
            |one: &[&str]| one.ends_with(&["start", "restart"]) && sorted(one) == sorted(first);
        assert!(
            restarts.len() == each * ended.len() && restarts.chunks(each).all(is_alike),
            "{container}: {} restarts, {restarts:?}",
            ended.len()
        );
    }
    for (container, ended) in written.iter().zip(&ends[restarted.len()..]) {
        let log = docker_says(&["exec", container, "cat", "/tmp/log"]);
        let mut lines: Vec<usize> = log.lines().map(|line| line.parse().unwrap()).collect();
        lines.sort_unstable();
        let wanted: Vec<usize> = (0..ended.len()).collect();
        assert_eq!(lines, wanted, "{container}: each process ran exactly once");
    }
    // In order: each began when the one before had been answered.
    let held = restarted.len() + written.len();
    for ended in ends[..restarted.len()].iter().chain([&ends[held]]) {
        for pair in ended.windows(2) {
            let at = |command: &Command, stage: &str| {
                let found = command.timeline.iter().rfind(|s| s.stage == stage);
                found.map(|s| s.at.as_microsecond()).expect("a stamp")
            };
            let (answered, called) = (
                at(&pair[0], "engine_answered"),
                at(&pair[1], "engine_called"),
            );
            assert!(called + STAMPS_APART_US >= answered, "{pair:#?}");
        }
    }
}

/// Every probe was accepted within 50 ms.
fn accepted_in_time(probes: &[Command], upgrading_since: jiff::Timestamp, late: f64) {
    let (mut before, mut waits, mut syncs) = (Vec::new(), Vec::new(), Vec::new());
    for probe in probes {
        assert_eq!(probe.state, "succeeded", "{probe:#?}");
        let waited = stamp(probe, "delivered") - stamp(probe, "region_received");
        // A very fast answer is there before the sync is.
        if probe.timeline.iter().any(|s| s.stage == "region_stored") {
            syncs.push(stamp(probe, "region_stored") - stamp(probe, "region_received"));
        }
        let early = probe
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
    let sync = longest(&mut syncs);
    println!(
        "{} probes, accepted within {:.1} ms (half), \
         {:.1} ms (99 of 100), {with:.1} ms (all); without an upgrade {without:.1} ms (all of {}); \
         the region's longest sync took {sync:.1} ms, the machine was {late:.1} ms late at most",
        waits.len(),
        waits[waits.len() / 2],
        waits[waits.len() * 99 / 100],
        before.len(),
    );
    // The region reads behind the sync that is under way, and three programs are woken one after the other. Where
    // others keep disk and processors busy, more than what that costs anyway is too much.
    let bound = f64::max(50.0, f64::max(2.0 * without.max(sync), sync + 3.0 * late));
    assert!(
        with <= bound,
        "a probe was accepted after {with} ms; {without} ms without an upgrade, sync {sync} ms, late {late} ms"
    );
}

/// The storm's stream, upgrades all the while, and in every second one somebody is killed somewhere. The
/// judge is the engine's own event stream, by way of the oracle.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_upgrades_and_deaths() {
    storm(Size {
        commands: 250,
        grace_s: 2,
        process_s: 4,
        patience: Duration::from_secs(120),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: ./dev test --long"]
async fn long_storm_of_upgrades_and_deaths() {
    storm(Size {
        commands: 2_000,
        grace_s: 5,
        process_s: 20,
        patience: Duration::from_secs(120),
    })
    .await;
}

async fn storm(size: Size) {
    let mut dice = Dice::seeded();
    let versions = Versions::new();
    let mut fleet = Fleet::start(options(&versions)).await;
    let stream = Stream::begin(&fleet, size, &mut dice);
    let packages = [versions.package("1.1.0"), versions.package(FIRST)];
    let mut kills = Kills::new(size);
    let (mut done, mut disturbed) = (0, 0);
    while !stream.is_over() || done + disturbed < 2 {
        kills.load(&stream, &mut dice).await;
        let runs = settled(&fleet, IN_TIME).await;
        let package = &packages[usize::from(runs != FIRST)];
        if dice.roll(2) == 0 {
            must_upgrade(&versions, &fleet, package).await;
            done += 1;
        } else {
            let when = *dice.pick(&["proving", "draining"]);
            let whom = *dice.pick(&[Victim::Old, Victim::New, Victim::Supervisor]);
            strike(&versions, &mut fleet, package, when, whom).await;
            disturbed += 1;
        }
        settled(&fleet, OWNED_AGAIN_WITHIN).await;
        fleet.all_online().await;
    }
    let history = stream.end(&mut fleet).await;
    let found = judge(&history);
    println!(
        "{} commands, {done} upgrades, {disturbed} with a death in the middle: {:?}",
        history.asked.len(),
        count_ends(&history)
    );
    assert!(found.is_empty(), "seed {}: {}", dice.seed, tell(&found));
}
