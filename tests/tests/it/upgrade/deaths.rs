//! Whoever dies in an upgrade, and whenever: one instance owns the host, and every command has had its effect
//! once.

use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use fairlead_tests::engine::{self, Names, docker_says};
use fairlead_tests::fleet::Fleet;
use fairlead_tests::process::send;
use fairlead_tests::versions::Versions;
use fairlead_tests::wait::wait_for;
use rustix::process::Signal;

use super::{IN_TIME, OWNED_AGAIN_WITHIN, options, settled};
use crate::acts::{exec, restart, start, stop};
use crate::survive::under_way;

/// The phase that the supervisor is in, as it says.
fn phase(fleet: &Fleet) -> String {
    let status = fleet.hosts[0].status().unwrap_or_default();
    status["phase"].as_str().unwrap_or_default().to_owned()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Victim {
    Old,
    New,
    Supervisor,
}

/// Begins an upgrade, and kills somebody as soon as the supervisor is in that phase.
pub(super) async fn strike(
    versions: &Versions,
    fleet: &mut Fleet,
    package: &Path,
    when: &str,
    victim: Victim,
) {
    let old = fleet.hosts[0].agent_pid().await;
    let mut tool = versions
        .upgrade_command(&fleet.hosts[0], package)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the tool runs");
    wait_for(when, IN_TIME, async || match phase(fleet) {
        phase if phase == when => Ok(()),
        phase => Err(phase),
    })
    .await;
    match victim {
        Victim::Supervisor => fleet.hosts[0].supervisor.start_again(),
        Victim::Old => send(old, Signal::KILL),
        Victim::New => {
            let status = fleet.hosts[0].status().unwrap_or_default();
            let all = status["instances"].as_array().cloned().unwrap_or_default();
            let new = all.iter().filter_map(|one| one["pid"].as_u64());
            // The youngest; there may be some that only see their streams to their end.
            let new = new.map(|pid| u32::try_from(pid).unwrap()).next_back();
            send(new.expect("a candidate"), Signal::KILL);
        }
    }
    let _ = tool.kill();
    let _ = tool.wait();
}

/// Kills somebody as soon as the supervisor is in that phase, with a slow stop, a queue behind it and an exec
/// under way; then one instance owns the host, and every command has had its effect once.
async fn killed_in(when: &str, victim: Victim) {
    let versions = Versions::new();
    let mut fleet = Fleet::start(options(&versions)).await;
    let names = Names::new();
    let (deaf, web) = (names.deaf("deaf", 3), names.polite("web"));
    let package = versions.package("1.1.0");
    let stopping = fleet.begin(stop(&deaf)).await;
    let starting = fleet.begin(start(&deaf)).await;
    let script = "echo once >> /tmp/log; sleep 4; echo end >> /tmp/log";
    let running = fleet.begin(exec(&web, &["sh", "-c", script])).await;
    under_way(&fleet.api, &stopping.id).await;
    under_way(&fleet.api, &running.id).await;

    strike(&versions, &mut fleet, &package, when, victim).await;
    let began = Instant::now();
    let version = settled(&fleet, OWNED_AGAIN_WITHIN).await;
    println!(
        "{victim:?} in {when}: {version} after {:?}",
        began.elapsed()
    );

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

/// The kernel tells an agent of its supervisor's death once it has been asked to. One that died before that would
/// leave an agent that holds the host's lock for ever.
#[test]
fn an_agent_whose_supervisor_has_gone_already_goes_too() {
    let dir = tempfile::tempdir().unwrap();
    let ended = std::process::Command::new(fairlead_tests::programs::program("fairlead-agent"))
        .args(["run", "--state-dir"])
        .arg(dir.path())
        .env("FAIRLEAD_EPOCH", "1")
        .env("FAIRLEAD_RUN", "0".repeat(26))
        // Nobody's parent here.
        .env("FAIRLEAD_SUPERVISOR", u32::MAX.to_string())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(said.contains("the supervisor has gone"), "{said}");
    assert!(std::fs::read_dir(dir.path()).unwrap().next().is_none());
}
