//! P1, P2, P3 when the power goes: what was not synced is gone. (kill -9 alone proves nothing about
//! that: the kernel keeps what was written.)
//!
//! Agent, access server and controller each work on an ext4 of their own in a file. At a random moment
//! under a stream of commands one of them is killed, and goes on from a copy of what its disk held.

use std::time::Duration;

use fairlead_tests::fleet::{Fleet, Options};
use fairlead_tests::loop_disk::LoopDisk;
use fairlead_tests::oracle::{judge, tell};
use fairlead_tests::wait::moment;

use crate::storm::stream::{self, Dice, Size, Stream};

/// Their data directories, in the order in which they are mounted.
const AGENT: usize = 0;
const ACCESS_SERVER: usize = 1;
const CONTROLLER: usize = 2;

pub(crate) fn on_loop_disks() -> Options {
    Options::docker()
        .loop_disk("agent-box")
        .loop_disk("access-server-local")
        .loop_disk("controller")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn some_power_cuts() {
    power_cuts(Size {
        commands: 150,
        grace_s: 2,
        process_s: 2,
        patience: Duration::from_secs(120),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: ./dev test --long"]
async fn long_row_of_power_cuts() {
    power_cuts(Size {
        commands: 1_000,
        grace_s: 2,
        process_s: 2,
        patience: Duration::from_secs(120),
    })
    .await;
}

async fn power_cuts(size: Size) {
    if !LoopDisk::can_be_had() {
        return;
    }
    let mut dice = Dice::seeded();
    let mut fleet = Fleet::start(on_loop_disks()).await;
    let stream = Stream::begin(&fleet, size, &mut dice);
    let mut cuts = [0; 3];
    while !stream.is_over() {
        moment(300 + dice.roll(700)).await;
        let victim = dice.roll(3) as usize;
        cut(&mut fleet, victim);
        fleet.all_online().await;
        cuts[victim] += 1;
    }
    let history = stream.end(&mut fleet).await;
    let found = judge(&history);
    let ends = stream::count_ends(&history);
    println!(
        "{} commands, cuts of agent, access server, controller: {cuts:?}: {ends:?}",
        history.asked.len()
    );
    assert!(found.is_empty(), "seed {}: {}", dice.seed, tell(&found));
    assert!(cuts.iter().sum::<usize>() > 0);
}

/// Cuts the power of one of them, and starts it from what is left.
pub(crate) fn cut(fleet: &mut Fleet, victim: usize) {
    match victim {
        AGENT => {
            fleet.hosts[0].kill();
            fleet.loop_disks[AGENT].cut();
            fleet.hosts[0].start();
        }
        ACCESS_SERVER => {
            fleet.regions[0].process.kill();
            fleet.loop_disks[ACCESS_SERVER].cut();
            fleet.regions[0].process.start_again();
        }
        _ => {
            fleet.controller.kill();
            fleet.loop_disks[CONTROLLER].cut();
            fleet.controller.start_again();
        }
    }
}
