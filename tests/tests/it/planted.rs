//! The tests are tested: each defect that is planted in the programs must be caught, by the storm of
//! kills or by the power cuts, and by the oracle's own word.
//!
//! The programs are built with the feature `defects` into `target/planted`, unless
//! `FAIRLEAD_TEST_PLANTED_PROGRAMS` names a folder with them. `FAIRLEAD_TEST_DEFECT` picks one defect.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use fairlead_planted::Defect;
use fairlead_tests::fleet::{Fleet, Options};
use fairlead_tests::loop_disk::LoopDisk;
use fairlead_tests::oracle::{Promise, Violation, judge};
use fairlead_tests::process::send;
use fairlead_tests::wait::moment;
use rustix::process::Signal;

use crate::power_cut;
use crate::storm::kills::Kills;
use crate::storm::stream::{Dice, Size, Stream, count_ends};

/// Chances that a defect gets to show itself.
const RUNS_MAX: usize = 4;
const SIZE: Size = Size {
    commands: 250,
    grace_s: 2,
    process_s: 3,
    patience: Duration::from_secs(20),
};
/// Kills or cuts in one run; the stream goes on after them.
const BLOWS: usize = 4;

/// The promises that a defect breaks: one of these the oracle must name.
fn breaks(defect: Defect) -> &'static [Promise] {
    use Promise::{P1, P2, P3};
    match defect {
        Defect::AckBeforeSync | Defect::LateCloseRemovesNewer => &[P1],
        Defect::LaneIgnored | Defect::StragglerOvertaken => &[P3],
        Defect::JournalUnsynced => &[P1, P2],
        Defect::ResultNotKept
        | Defect::IdForgotten
        | Defect::BlindAfterCrash
        | Defect::ExpiredIsBegun
        | Defect::TwoResults => &[P2],
    }
}

fn needs_power_cut(defect: Defect) -> bool {
    matches!(defect, Defect::AckBeforeSync | Defect::JournalUnsynced)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: ./dev test --long"]
async fn long_each_planted_defect_is_caught() {
    let programs = programs();
    let wanted = std::env::var("FAIRLEAD_TEST_DEFECT").ok();
    let power_can_be_cut = LoopDisk::can_be_had();
    let mut missed = Vec::new();
    for defect in Defect::ALL {
        let name = defect.name();
        if wanted.as_ref().is_some_and(|wanted| *wanted != name)
            || needs_power_cut(defect) && !power_can_be_cut
        {
            continue;
        }
        let mut caught = false;
        for run in 1..=RUNS_MAX {
            let found = blows(&programs, defect).await;
            let telling = |v: &&Violation| breaks(defect).contains(&v.promise);
            let rules: BTreeSet<_> = found.iter().map(|v| (v.promise, v.rule)).collect();
            println!("{name}, run {run}: {} violations of {rules:?}", found.len());
            if let Some(violation) = found.iter().find(telling) {
                println!("{name} is caught: {violation}");
                caught = true;
                break;
            }
        }
        if !caught {
            missed.push(name);
        }
    }
    assert!(missed.is_empty(), "not caught: {missed:?}");
}

/// A storm (or a row of power cuts) over programs with that defect.
async fn blows(programs: &Path, defect: Defect) -> Vec<Violation> {
    let mut dice = Dice::seeded();
    let options = match needs_power_cut(defect) {
        true => power_cut::on_loop_disks(),
        false => Options::docker(),
    };
    let mut fleet = Fleet::start(Options {
        programs: Some(programs.to_owned()),
        env: vec![("FAIRLEAD_PLANTED_DEFECT".to_owned(), defect.name())],
        ..options
    })
    .await;
    // What was written long ago is on every disk.
    fleet.loop_disks.iter().for_each(LoopDisk::sync);
    let stream = Stream::begin(&fleet, SIZE, &mut dice);
    let mut kills = Kills::new(SIZE);
    for _ in 0..BLOWS {
        if stream.is_over() {
            break;
        }
        if needs_power_cut(defect) {
            moment(300 + dice.roll(700)).await;
            power_cut::cut(&mut fleet, dice.roll(3) as usize);
        } else {
            kills.load(&stream, &mut dice).await;
            moment(dice.roll(400)).await;
            kills.strike(&mut fleet, &mut dice).await;
        }
        // A system with a defect may not come back.
        moment(1_500).await;
    }
    if !needs_power_cut(defect) {
        // What comes late comes after the last blow, and nothing else mends it. A supervisor that has
        // seen many deaths would wait too long.
        fleet.hosts[0].kill();
        fleet.hosts[0].start();
        moment(4_000).await;
        send(fleet.hosts[0].agent_pid().await, Signal::KILL);
    }
    let history = stream.end(&mut fleet).await;
    println!("{:?}", count_ends(&history));
    judge(&history)
}

fn programs() -> PathBuf {
    if let Some(given) = std::env::var_os("FAIRLEAD_TEST_PLANTED_PROGRAMS") {
        return given.into();
    }
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let packages = ["agent", "access-server", "controller", "planted"];
    let built = Command::new(cargo)
        .args(["build", "--quiet", "--target-dir", "target/planted"])
        .args(packages.map(|package| format!("--package=fairlead-{package}")))
        .args(["--features", "fairlead-planted/defects"])
        .current_dir(root)
        .output()
        .expect("cargo can be started");
    assert!(
        built.status.success(),
        "{}",
        String::from_utf8_lossy(&built.stderr)
    );
    root.join("target/planted/debug")
}
