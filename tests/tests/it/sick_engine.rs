//! P10, P2: an engine that is stopped, frozen or slow: commands wait and say for what, deadlines hold, other
//! lanes and heartbeats go on, and nothing is done twice when it comes back.
//!
//! Between agent and engine lies a relay (`tests/src/line.rs`). What it holds while it stalls reaches the
//! engine later, as what was sent to a frozen engine does, also when nobody waits for it any more.

use std::time::{Duration, Instant};

use fairlead_api::types::{Action, CommandRequest, Precondition};
use fairlead_tests::client::request;
use fairlead_tests::engine::{self, Names};
use fairlead_tests::fleet::{Fleet, Options};
use fairlead_tests::line::{Cut, Line, Weather};
use fairlead_tests::oracle::{judge, tell};
use fairlead_tests::wait::{moment, wait_for};
use tempfile::TempDir;

use crate::acts::restart;
use crate::storm::stream::{self, Dice, Size, Stream};

const SOON: Duration = Duration::from_secs(40);
/// What a heartbeat and a command without the engine may take meanwhile.
const PING_WITHIN: Duration = Duration::from_secs(5);

/// A fleet whose agent reaches the machine's engine by a line of ours.
async fn behind_a_line() -> (Fleet, Line, TempDir) {
    let sockets = tempfile::tempdir().unwrap();
    let at = sockets.path().join("engine.sock");
    let host = std::env::var("DOCKER_HOST").unwrap_or_default();
    let real = host
        .strip_prefix("unix://")
        .unwrap_or("/var/run/docker.sock");
    let line = Line::to_socket(real.as_ref(), &at).await;
    let options = Options::docker().agent_flag("--engine-socket", at.to_str().unwrap());
    (Fleet::start(options).await, line, sockets)
}

/// Stopped, frozen, slow, frozen and then stopped, restarted: in turn.
async fn ail(line: &Line, times_as_long: u64) {
    let last = |seconds: u64| moment(seconds * times_as_long * 1_000);
    println!("stopped");
    line.set(Weather::refusing());
    line.cut(Cut::Reset);
    last(3).await;
    line.heal();
    last(1).await;
    println!("frozen");
    line.set(Weather::stalled());
    last(4).await;
    line.heal();
    last(1).await;
    println!("slow");
    line.set(Weather::round_trip(Duration::from_secs(2)));
    last(5).await;
    line.heal();
    println!("frozen, then stopped");
    line.set(Weather::stalled());
    last(2).await;
    line.set(Weather::refusing());
    line.cut(Cut::Reset);
    last(2).await;
    line.heal();
    last(1).await;
    for _ in 0..3 {
        println!("restarted");
        line.cut(Cut::Reset);
        last(1).await;
    }
}

async fn sick_engine(times_as_long: u64) {
    let (mut fleet, line, _sockets) = behind_a_line().await;
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
        () = ail(&line, times_as_long) => {}
        () = beating => {}
    }
    stream.is_enough();
    let mut history = stream.end(&mut fleet).await;
    // What it was asked for in time a frozen engine begins late.
    history.stamps_apart_us = i64::try_from(times_as_long * 10_000_000).unwrap();
    let found = judge(&history);
    let ends = stream::count_ends(&history);
    println!("{} commands: {ends:?}", history.asked.len());
    assert!(found.is_empty(), "seed {}: {}", dice.seed, tell(&found));
    assert!(history.asked.len() >= 20, "{}", history.asked.len());
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
    let looking = fleet.api.submit(&looks(3), Duration::ZERO).await.unwrap();
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
    let late = fleet.api.ended(&looking.id, PING_WITHIN * 2).await;
    assert_eq!(
        (&late.state[..], &late.code[..]),
        ("expired", "deadline_passed")
    );
    let looking = fleet.api.submit(&looks(60), Duration::ZERO).await.unwrap();
    fleet.api.cancel(&looking.id).await.unwrap();
    let withdrawn = fleet.api.ended(&looking.id, PING_WITHIN * 2).await;
    assert_eq!(withdrawn.state, "cancelled", "{withdrawn:#?}");
    let elsewhere = fleet.begin(restart(&other)).await;
    let asked = Instant::now();
    fleet.done(Action::Ping {}).await;
    assert!(asked.elapsed() < PING_WITHIN, "{:?}", asked.elapsed());
    let late = fleet.api.ended(&behind.id, PING_WITHIN * 2).await;
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
