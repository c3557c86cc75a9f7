//! P3: two changing commands never overlap on one lane, and keep their order. The judge is the
//! engine's own record.
//!
//! Holds: DESIGN §7 (lanes; only `kill` may act within the grace of a stop or restart).

use std::time::{Duration, Instant};

use fairlead_tests::engine::{self, Names, Record};
use fairlead_tests::fleet::{Fleet, Options};

use crate::acts::{exec, kill, restart, start, stop};

const SOON: Duration = Duration::from_secs(60);

/// The actions of a record without what belongs to one act anyway.
fn main_acts(record: &[Record]) -> Vec<&str> {
    let main = ["start", "stop", "restart", "die"];
    record
        .iter()
        .map(|r| &r.action[..])
        .filter(|action| main.contains(action))
        .collect()
}

#[tokio::test]
async fn changing_commands_on_one_container_keep_their_order_and_never_overlap() {
    let fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let slow = names.deaf("slow", 2);

    let first = fleet.begin(stop(&slow)).await;
    let second = fleet.begin(start(&slow)).await;
    let third = fleet.begin(restart(&slow)).await;
    let looked = fleet.begin(exec(&slow, &["true"])).await;

    let mut ends = Vec::new();
    for command in [&first, &second, &third, &looked] {
        let ended = fleet.api.ended(&command.id, SOON).await;
        assert_eq!(ended.state, "succeeded", "{ended:#?}");
        let stamp = |stage: &str| {
            ended
                .timeline
                .iter()
                .find(|s| s.stage == stage)
                .map(|s| s.at)
                .expect("a stamp")
        };
        ends.push((stamp("engine_called"), stamp("engine_answered")));
    }
    for pair in ends.windows(2) {
        assert!(
            pair[1].0 >= pair[0].1,
            "the next began before the one before had ended: {ends:?}"
        );
    }
    let record = engine::record(&slow);
    assert_eq!(
        main_acts(&record),
        [
            "start", "die", "stop", "start", "die", "stop", "start", "restart"
        ],
        "{record:#?}"
    );
}

#[tokio::test]
async fn a_kill_may_act_within_the_grace_of_a_stop() {
    let fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let slow = names.deaf("slow", 25);
    let began = Instant::now();

    let stopping = fleet.begin(stop(&slow)).await;
    fleet.api.reaches(&stopping.id, "running", SOON).await;
    fleet.done(kill(&slow, "KILL")).await;
    let stopped = fleet.api.ended(&stopping.id, SOON).await;

    assert_eq!(stopped.state, "succeeded", "{stopped:#?}");
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "the grace was waited out"
    );
    assert!(!engine::is_running(&slow));
}

#[tokio::test]
async fn lanes_run_side_by_side() {
    let fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let slow: Vec<String> = (0..4)
        .map(|n| names.deaf(&format!("slow{n}"), 10))
        .collect();
    let began = Instant::now();
    let mut stops = Vec::new();
    for container in &slow {
        stops.push(fleet.begin(stop(container)).await);
    }
    for command in stops {
        assert_eq!(fleet.api.ended(&command.id, SOON).await.state, "succeeded");
    }
    assert!(
        began.elapsed() < Duration::from_secs(30),
        "one after the other: {:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn thirty_commands_at_once_on_five_containers_all_end_and_none_is_doubled() {
    let fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let boxes: Vec<String> = (0..5).map(|n| names.polite(&format!("box{n}"))).collect();

    let asked: Vec<_> = (0..30)
        .map(|n| {
            let (api, container) = (fleet.api.clone(), boxes[n % 5].clone());
            let action = if n % 3 == 2 {
                exec(&container, &["true"])
            } else {
                restart(&container)
            };
            tokio::spawn(async move { api.act("box", action).await })
        })
        .collect();
    for asker in asked {
        let command = asker.await.unwrap();
        // An exec holds no lane: a later restart may end its process.
        assert!(
            command.state == "succeeded" || command.kind == "exec",
            "{command:#?}"
        );
    }

    for (n, container) in boxes.iter().enumerate() {
        let wanted = (0..30).filter(|k| k % 5 == n && k % 3 != 2).count();
        assert_eq!(engine::count(container, "restart"), wanted, "{container}");
        let record = engine::record(container);
        let mut running = false;
        for record in &record {
            match &record.action[..] {
                "start" => {
                    assert!(!running, "{container} was started while it ran");
                    running = true;
                }
                "die" => running = false,
                _ => {}
            }
        }
    }
}
