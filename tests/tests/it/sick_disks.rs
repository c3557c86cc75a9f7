//! P10: a disk that can only be read, and one that takes no more files, are a clear state; nothing is half
//! done, and it goes on by itself, or where a machine has to be rebooted, from there. (Full disks, one by one:
//! `storage`; here at any moment, under commands.)
//!
//! Holds: issue 4 (read-only file system at agent, access server and controller; the inode table; disk full at
//! every write).

use std::time::Duration;

use fairlead_api::types::{Action, JoinTokenRequest};
use fairlead_tests::disk::Disk;
use fairlead_tests::engine::{self, Names};
use fairlead_tests::fleet::{Fleet, Options};
use fairlead_tests::loop_disk::LoopDisk;
use fairlead_tests::oracle::{judge, tell};
use fairlead_tests::process::{is_alive, send};
use fairlead_tests::wait::{moment, wait_for};
use rustix::process::Signal;

use crate::acts::{restart, run_simulated};
use crate::storm::stream::{self, Dice, Size, Stream};

const SOON: Duration = Duration::from_secs(40);

/// Waits until a command says that it waits for that.
async fn waits_for(fleet: &Fleet, id: &str, words: &str) {
    wait_for(&format!("{id} waits for {words}"), SOON, async || {
        let command = fleet.api.command(id).await.map_err(|no| no.to_string())?;
        assert!(!command.is_final, "{command:#?}");
        if command.waiting_for.contains(words) {
            Ok(())
        } else {
            Err(format!("{command:#?}"))
        }
    })
    .await;
}

#[tokio::test]
async fn a_disk_that_can_only_be_read_at_the_agent_is_waited_for() {
    if !LoopDisk::can_be_had() {
        return;
    }
    let mut fleet = Fleet::start(Options::docker().loop_disk("agent-box")).await;
    let names = Names::new();
    let web = names.polite("web");
    fleet.done(restart(&web)).await;
    let agent = fleet.hosts[0].agent_pid().await;

    fleet.loop_disks[0].breaks();
    let waiting = fleet.begin(restart(&web)).await;
    waits_for(&fleet, &waiting.id, "journal").await;
    assert_eq!(engine::count(&web, "restart"), 1, "first it is on disk");
    // What changes nothing still works, and the agent is the same.
    fleet.done(Action::Ping {}).await;
    fleet.done(Action::List { all: true }).await;
    assert_eq!(fleet.hosts[0].agent_pid().await, agent);

    // An agent that dies now cannot come back before there is a disk; its supervisor says why.
    fleet.hosts[0].kill_agent().await;
    fleet.hosts[0]
        .supervisor
        .says("Read-only file system", SOON)
        .await;
    fleet.api.host_is("box", "offline", SOON).await;

    // What a reboot does; at first the disk is still mounted for reading only.
    fleet.hosts[0].kill();
    fleet.loop_disks[0].repair();
    fleet.loop_disks[0].read_only(true);
    let heard = fleet.hosts[0].supervisor.said().len();
    fleet.hosts[0].start();
    wait_for("the supervisor says what is wrong", SOON, async || {
        let said = fleet.hosts[0].supervisor.said()[heard..].to_owned();
        if said.contains("Read-only file system") {
            Ok(())
        } else {
            Err(said)
        }
    })
    .await;
    fleet.loop_disks[0].read_only(false);
    let ended = fleet.api.ended(&waiting.id, SOON).await;
    assert_eq!(ended.state, "succeeded", "{ended:#?}");
    assert_eq!(engine::count(&web, "restart"), 2, "once");
}

#[tokio::test]
async fn a_disk_that_can_only_be_read_at_the_servers_refuses_and_loses_nothing() {
    if !LoopDisk::can_be_had() {
        return;
    }
    let options = Options::simulated()
        .loop_disk("access-server-local")
        .loop_disk("controller");
    let mut fleet = Fleet::start(options).await;
    fleet.done(run_simulated("web")).await;
    let (server, controller) = (fleet.regions[0].process.pid(), fleet.controller.pid());

    // The region's: what is asked waits at the controller.
    fleet.loop_disks[0].breaks();
    let mut asked = Vec::new();
    for _ in 0..3 {
        asked.push(fleet.begin(restart("web")).await);
    }
    wait_for("people are told", SOON, async || {
        let status = fleet.api.status().await.map_err(|no| no.to_string())?;
        let said = "region local cannot write to its disk";
        if status.attention.iter().any(|line| line.contains(said)) {
            Ok(())
        } else {
            Err(format!("{:?}", status.attention))
        }
    })
    .await;
    assert!(is_alive(server), "it stays up");
    fleet.regions[0].process.kill();
    fleet.loop_disks[0].repair();
    fleet.regions[0].process.start_again();
    for command in &asked {
        let ended = fleet.api.ended(&command.id, SOON).await;
        assert_eq!(ended.state, "succeeded", "{ended:#?}");
    }

    // The controller's: what changes something is refused, what only looks works.
    fleet.loop_disks[1].breaks();
    let token = JoinTokenRequest::default();
    let no = fleet.api.new_join_token(&token).await.err().unwrap();
    assert_eq!(
        (no.status, &no.code[..]),
        (503, "storage_unavailable"),
        "{no}"
    );
    let no = fleet
        .api
        .submit(
            &fairlead_tests::client::request("box", restart("web")),
            SOON,
        )
        .await
        .unwrap_err();
    assert_eq!(
        (no.status, &no.code[..]),
        (503, "storage_unavailable"),
        "{no}"
    );
    assert_eq!(fleet.api.hosts().await.unwrap().len(), 1);
    assert!(is_alive(controller), "it stays up");
    fleet.controller.kill();
    fleet.loop_disks[1].repair();
    fleet.controller.start_again();
    fleet.all_online().await;
    fleet.done(restart("web")).await;
    let begun = fleet.hosts[0]
        .owner_log()
        .matches("began: restart container web")
        .count();
    assert_eq!(
        begun, 4,
        "each that was confirmed once, and none that was refused"
    );
}

/// Agent, access server and controller on a small disk each, in this order.
fn small_disks() -> Options {
    Options::docker()
        .small_disk("agent-box")
        .small_disk("access-server-local")
        .small_disk("controller")
}

/// Disks that are full at any moment, in the midst of any write.
async fn full_disks(times: usize) {
    if !Disk::can_be_had() {
        return;
    }
    let mut dice = Dice::seeded();
    let mut fleet = Fleet::start(small_disks()).await;
    let size = Size {
        commands: usize::MAX / 2,
        grace_s: 1,
        process_s: 1,
        patience: Duration::from_secs(120),
    };
    let stream = Stream::begin(&fleet, size, &mut dice);
    let mut full = [0; 3];
    for _ in 0..times {
        moment(200 + dice.roll(400)).await;
        let which = dice.roll(3) as usize;
        fleet.disks[which].fill();
        moment(200 + dice.roll(1_000)).await;
        // An agent that dies now finds no room for the next one's journal; the next one may not be there yet.
        let agent = fleet.hosts[0].agent().filter(|pid| is_alive(*pid));
        if let Some(agent) = agent
            && which == 0
            && dice.roll(2) == 0
        {
            send(agent, Signal::KILL);
            moment(300).await;
        }
        fleet.disks[which].free();
        full[which] += 1;
    }
    fleet.all_online().await;
    stream.is_enough(times).await;
    let history = stream.end(&mut fleet).await;
    let found = judge(&history);
    println!(
        "{} commands, full were the disks of agent, access server, controller: {full:?}: {:?}",
        history.asked.len(),
        stream::count_ends(&history)
    );
    assert!(found.is_empty(), "seed {}: {}", dice.seed, tell(&found));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disks_that_are_full_at_any_moment_lose_and_double_nothing() {
    full_disks(6).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: ./dev test --long"]
async fn long_disks_that_are_full_at_any_moment_lose_and_double_nothing() {
    full_disks(100).await;
}

#[tokio::test]
async fn a_disk_that_takes_no_more_files_stops_nothing_that_runs() {
    if !Disk::can_be_had() {
        return;
    }
    let fleet = Fleet::start(small_disks()).await;
    let names = Names::new();
    let web = names.polite("web");
    fleet.done(restart(&web)).await;
    for disk in &fleet.disks {
        disk.take_files();
    }
    // Databases and journal are there, and grow.
    for _ in 0..5 {
        fleet.done(restart(&web)).await;
    }
    // The next agent needs a journal of its own.
    fleet.hosts[0].kill_agent().await;
    fleet.hosts[0]
        .supervisor
        .says("No space left on device", SOON)
        .await;
    let waiting = fleet.begin(restart(&web)).await;
    for disk in &fleet.disks {
        disk.give_files();
    }
    let ended = fleet.api.ended(&waiting.id, SOON).await;
    assert_eq!(ended.state, "succeeded", "{ended:#?}");
    assert_eq!(engine::count(&web, "restart"), 7, "each once");
}
