//! P1: an acknowledged command survives any single crash, kill or cut. P2: it takes effect at most
//! once and its result is recorded exactly once.
//!
//! The judge is the engine: its own record of each container is counted. Every process is killed with
//! SIGKILL and started again with its directory as it was.

use std::time::Duration;

use fairlead_api::types::{Action, Command, CommandRequest};
use fairlead_tests::client::{Api, new_id, request};
use fairlead_tests::engine::{self, Names, docker_says};
use fairlead_tests::fleet::{Fleet, Options};
use fairlead_tests::wait::{moment, wait_for};

use crate::acts::{exec, restart, start, stop};

const IN_TIME: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Agent,
    Supervisor,
    AccessServer,
    Controller,
}

const VICTIMS: [Victim; 4] = [
    Victim::Agent,
    Victim::Supervisor,
    Victim::AccessServer,
    Victim::Controller,
];

/// kill -9, and started again.
async fn kill(fleet: &mut Fleet, victim: Victim) {
    match victim {
        Victim::Agent => fleet.hosts[0].kill_agent().await,
        Victim::Supervisor => fleet.hosts[0].supervisor.start_again(),
        Victim::AccessServer => fleet.regions[0].process.start_again(),
        Victim::Controller => fleet.controller.start_again(),
    }
}

/// Until it is under way, or has ended where the machine was late.
pub(crate) async fn under_way(api: &Api, id: &str) {
    wait_for("it is under way", IN_TIME, async || {
        let now = api.command(id).await.map_err(|no| no.to_string())?;
        if now.is_final || now.state == "running" {
            Ok(())
        } else {
            Err(now.state)
        }
    })
    .await;
}

/// Asks under an id of our own until it is acknowledged.
async fn insist(fleet: &Fleet, action: Action) -> Command {
    let asked = CommandRequest {
        id: Some(new_id()),
        ..request("box", action)
    };
    wait_for("the command is acknowledged", IN_TIME, async || {
        fleet
            .api
            .submit(&asked, Duration::ZERO)
            .await
            .map_err(|no| no.to_string())
    })
    .await
}

#[tokio::test]
async fn killed_while_a_stop_is_under_way() {
    let mut fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    for victim in VICTIMS {
        let slow = names.deaf(&format!("{victim:?}"), 3);
        let stopping = insist(&fleet, stop(&slow)).await;
        under_way(&fleet.api, &stopping.id).await;

        kill(&mut fleet, victim).await;

        let ended = fleet.api.ended(&stopping.id, IN_TIME).await;
        assert_eq!(ended.state, "succeeded", "{victim:?}: {ended:#?}");
        assert!(!engine::is_running(&slow), "{victim:?}");
        assert_eq!(engine::count(&slow, "die"), 1, "{victim:?}");
        fleet.all_online().await;
    }
}

#[tokio::test]
async fn killed_while_a_restart_is_under_way() {
    let mut fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    for victim in VICTIMS {
        let slow = names.deaf(&format!("{victim:?}"), 3);
        let restarting = insist(&fleet, restart(&slow)).await;
        under_way(&fleet.api, &restarting.id).await;

        kill(&mut fleet, victim).await;

        let ended = fleet.api.ended(&restarting.id, IN_TIME).await;
        assert_eq!(ended.state, "succeeded", "{victim:?}: {ended:#?}");
        assert!(engine::is_running(&slow), "{victim:?}");
        assert_eq!(
            engine::count(&slow, "start"),
            2,
            "{victim:?}: {:#?}",
            engine::record(&slow)
        );
        fleet.all_online().await;
    }
}

/// The grace is the container's own and longer than Docker's usual one: who settles must wait for it.
#[tokio::test]
async fn killed_while_a_restart_with_a_long_grace_of_its_own_is_under_way() {
    let mut fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let slow = names.deaf("slow", 19);
    let restarting = insist(&fleet, restart(&slow)).await;
    fleet.api.reaches(&restarting.id, "running", IN_TIME).await;

    kill(&mut fleet, Victim::Agent).await;

    let ended = fleet.api.ended(&restarting.id, IN_TIME).await;
    assert_eq!(ended.state, "succeeded", "{ended:#?}");
    assert_eq!(
        engine::count(&slow, "start"),
        2,
        "{:#?}",
        engine::record(&slow)
    );
    let settled = ended.timeline.iter().any(|stamp| stamp.stage == "settled");
    assert!(settled, "its timeline says that it was settled: {ended:#?}");
}

#[tokio::test]
async fn killed_while_a_process_runs_in_a_container() {
    let mut fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let web = names.polite("web");
    for victim in VICTIMS {
        let file = format!("/tmp/{victim:?}");
        let script = format!("echo once >> {file}; sleep 2; echo end >> {file}; exit 5");
        let running = insist(&fleet, exec(&web, &["sh", "-c", &script])).await;
        wait_for("the process has begun", IN_TIME, async || {
            let seen = engine::docker(&["exec", &web, "cat", &file]);
            if seen.status.success() {
                Ok(())
            } else {
                Err(format!("{seen:?}"))
            }
        })
        .await;

        kill(&mut fleet, victim).await;

        let ended = fleet.api.ended(&running.id, IN_TIME).await;
        assert_eq!(
            (&ended.state[..], ended.exit_code),
            ("failed", Some(5)),
            "{victim:?}: {ended:#?}"
        );
        assert_eq!(
            docker_says(&["exec", &web, "cat", &file]),
            "once\nend",
            "{victim:?}"
        );
        fleet.all_online().await;
    }
}

#[tokio::test]
async fn killed_right_after_the_acknowledgement() {
    let mut fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    for victim in VICTIMS {
        let web = names.polite(&format!("{victim:?}"));
        let asked = insist(&fleet, restart(&web)).await;

        kill(&mut fleet, victim).await;

        let ended = fleet.api.ended(&asked.id, IN_TIME).await;
        assert_eq!(ended.state, "succeeded", "{victim:?}: {ended:#?}");
        assert_eq!(
            engine::count(&web, "start"),
            2,
            "{victim:?}: {:#?}",
            engine::record(&web)
        );
        fleet.all_online().await;
    }
}

#[tokio::test]
async fn everything_killed_before_the_command_could_be_delivered() {
    let mut fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let web = names.polite("web");
    fleet.hosts[0].kill();
    fleet.api.host_is("box", "offline", IN_TIME).await;
    let asked = insist(&fleet, restart(&web)).await;
    // It is on the region's disk as well by then, or on its way.
    fleet.controller.kill();
    fleet.regions[0].process.kill();

    fleet.controller.start_again();
    fleet.regions[0].process.start_again();
    fleet.hosts[0].start();

    let ended = fleet.api.ended(&asked.id, IN_TIME).await;
    assert_eq!(ended.state, "succeeded", "{ended:#?}");
    assert_eq!(engine::count(&web, "restart"), 1);
}

/// A made container is found again by its label, not made twice.
#[tokio::test]
async fn killed_while_a_container_is_made() {
    let mut fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    for round in 0u32..4 {
        let name = names.name(&format!("made{round}"));
        let spec = crate::acts::spec(&name, &["sleep", "3600"]);
        let asked = insist(&fleet, crate::acts::run(spec)).await;
        moment(u64::from(round) * 40).await;
        kill(&mut fleet, Victim::Agent).await;
        let ended = fleet.api.ended(&asked.id, IN_TIME).await;
        assert_eq!(ended.state, "succeeded", "round {round}: {ended:#?}");
        assert_eq!(engine::count(&name, "create"), 1, "round {round}");
        assert_eq!(engine::count(&name, "start"), 1, "round {round}");
        assert!(engine::is_running(&name));
        fleet.all_online().await;
    }
}

/// Small and repeatable.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

#[tokio::test]
async fn thirty_commands_while_anything_dies_at_any_moment() {
    let seed = std::env::var("FAIRLEAD_TEST_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| u64::from_le_bytes(fairlead_identity::random::bytes()) | 1);
    println!("FAIRLEAD_TEST_SEED={seed}");
    let mut dice = Dice(seed);
    let mut fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let restarted: Vec<String> = (0..2).map(|n| names.polite(&format!("r{n}"))).collect();
    let switched = names.polite("switched");
    let still = names.polite("still");

    let mut asked = Vec::new();
    for number in 0..30 {
        let action = match dice.roll(3) {
            0 => restart(&restarted[dice.roll(2) as usize]),
            1 => exec(&still, &["sh", "-c", &format!("echo {number} >> /tmp/log")]),
            _ if dice.roll(2) == 0 => start(&switched),
            _ => stop(&switched),
        };
        asked.push((number, insist(&fleet, action).await));
        if dice.roll(3) == 0 {
            moment(dice.roll(150)).await;
            kill(&mut fleet, VICTIMS[dice.roll(4) as usize]).await;
        }
    }

    let mut ends = Vec::new();
    for (number, command) in asked {
        let ended = fleet.api.ended(&command.id, IN_TIME).await;
        assert!(
            ended.state == "succeeded",
            "seed {seed}, command {number}: {ended:#?}"
        );
        ends.push((number, ended));
    }
    for container in &restarted {
        let wanted = ends
            .iter()
            .filter(|(_, c)| c.kind == "restart" && c.target == *container)
            .count();
        let record = engine::record(container);
        let starts = record.iter().filter(|r| r.action == "start").count();
        assert_eq!(starts, wanted + 1, "seed {seed}, {container}: {record:#?}");
    }
    let log = engine::docker(&["exec", &still, "cat", "/tmp/log"]);
    let mut lines: Vec<u32> = String::from_utf8_lossy(&log.stdout)
        .lines()
        .map(|line| line.parse().unwrap())
        .collect();
    lines.sort_unstable();
    let mut wanted: Vec<u32> = ends
        .iter()
        .filter(|(_, c)| c.kind == "exec")
        .map(|(number, _)| *number)
        .collect();
    wanted.sort_unstable();
    assert_eq!(lines, wanted, "seed {seed}: each process ran exactly once");
    let last = ends
        .iter()
        .rev()
        .find(|(_, c)| c.kind == "start" || c.kind == "stop");
    let runs = last.is_none_or(|(_, c)| c.kind == "start");
    assert_eq!(
        engine::is_running(&switched),
        runs,
        "seed {seed}: the last word counts"
    );
}
