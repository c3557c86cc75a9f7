//! Machines that are copies of one host's disk.
//!
//! Holds: DESIGN §6 (clones: the older link is challenged; silent: a ghost, displaced; it answers: a clone,
//! refused and reported); a clone gets an identity of its own that does nothing until an admin approves; the
//! true host feels none of it.

use std::path::Path;
use std::time::{Duration, Instant};

use fairlead_api::types::{Action, Host};
use fairlead_protocol::limits;
use fairlead_tests::fleet::{Fleet, Options};
use fairlead_tests::wait::{stays_so, wait_for};
use rustix::process::Signal;

use crate::acts::run_simulated;

const SOON: Duration = Duration::from_secs(30);

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else if entry.file_type().unwrap().is_file() {
            // Sockets are made anew.
            match std::fs::copy(entry.path(), target) {
                // It has been put in another's place meanwhile.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                copied => drop(copied.unwrap()),
            }
        }
    }
}

#[tokio::test]
async fn of_two_machines_with_one_identity_the_newcomer_is_refused_and_a_ghost_is_displaced() {
    let refuse = Options::simulated().controller_flag("--clones", "refuse");
    let fleet = Fleet::start(refuse).await;
    let original = &fleet.hosts[0];
    let address = fleet.regions[0].agents.address();
    let dir = fleet.dir().join("agent-copy");
    copy_dir(&original.dir, &dir);

    let mut copy = fleet.start_host_in("box", dir, &address, None);
    copy.supervisor.says("(clone)", SOON).await;
    let event = fleet.api.event("host.clone", "box", SOON).await;
    assert!(event.detail.contains("two machines"), "{event:#?}");
    let host = fleet.api.host("box").await.unwrap();
    assert_eq!(
        (&host.state[..], host.epoch),
        ("online", 1),
        "the original is unaffected"
    );
    fleet.done(Action::Ping {}).await;
    assert!(
        !original.supervisor.said().contains("no link"),
        "the original's link was not cut"
    );
    copy.kill();

    // Now the original is silent, so it is a ghost.
    original.supervisor.freeze();
    fairlead_tests::process::send(original.agent_pid().await, Signal::STOP);
    let began = Instant::now();
    copy.start();
    wait_for("the newcomer has the host", SOON, async || {
        let host = fleet.api.host("box").await.map_err(|no| no.to_string())?;
        if host.epoch > 1 && host.state == "online" {
            Ok(())
        } else {
            Err(format!("{host:?}"))
        }
    })
    .await;
    assert!(
        began.elapsed() >= limits::CHALLENGE_TIMEOUT,
        "it was challenged first"
    );
    fleet.done(Action::Ping {}).await;
}

#[tokio::test]
async fn a_clone_gets_an_identity_of_its_own_and_does_nothing_until_an_admin_approves() {
    let mut fleet = Fleet::start(Options::simulated()).await;
    fleet.done(run_simulated("web")).await;
    let address = fleet.regions[0].agents.address();
    let dir = fleet.dir().join("agent-copy");
    copy_dir(&fleet.hosts[0].dir, &dir);
    let copied_identity = std::fs::read(dir.join("identity")).unwrap();

    let mut copy = fleet.start_host_in("copied-box", dir.clone(), &address, None);
    let held = fleet.api.host_is("box-clone", "held", SOON).await;
    assert!(held.reason.contains("a copy of box"), "{held:#?}");
    assert!(held.reason.contains("copied-box"), "{held:#?}");
    copy.supervisor.says("(held)", SOON).await;
    fleet.api.event("host.clone", "box", SOON).await;
    fleet.api.event("host.held", "box-clone", SOON).await;
    let status = fleet.api.status().await.unwrap();
    let said = status.attention.join("\n");
    assert!(said.contains("fairlead host approve box-clone"), "{said}");
    // Nothing of the other host's is left, and what is kept is its own.
    assert_ne!(
        std::fs::read(dir.join("identity")).unwrap(),
        copied_identity
    );
    assert!(!dir.join("clone").exists());
    assert!(
        copy.owner_log().contains("a copy of box"),
        "{}",
        copy.owner_log()
    );
    let waiting = fleet.api.begin("box-clone", Action::Ping {}).await;
    stays_so("it does nothing", Duration::from_secs(2), async || {
        let seen = fleet.api.command(&waiting.id).await.unwrap();
        if seen.is_final || !seen.waiting_for.contains("held") {
            Err(format!("{seen:#?}"))
        } else {
            Ok(())
        }
    })
    .await;
    // Nor does a restart change that.
    copy.kill();
    copy.start();
    copy.supervisor.says("(held)", SOON).await;
    assert_eq!(fleet.api.host("box-clone").await.unwrap().state, "held");
    assert_eq!(fleet.api.hosts().await.unwrap().len(), 2);

    let _: Host = fleet
        .api
        .post("hosts/box-clone/approve", &())
        .await
        .unwrap();
    fleet.online("box-clone").await;
    assert_eq!(fleet.api.ended(&waiting.id, SOON).await.state, "succeeded");
    // Each does its own work; what the machine ran it still runs.
    fleet
        .api
        .done("box-clone", crate::acts::restart("web"))
        .await;
    fleet.done(crate::acts::restart("web")).await;
    let first = fleet.api.host("box").await.unwrap();
    assert_eq!((&first.state[..], first.epoch), ("online", 1));
    // Its end is its own too.
    let _: Host = fleet.api.delete("hosts/box-clone").await.unwrap();
    copy.kill();
    fleet.done(Action::Ping {}).await;
    fleet.hosts[0].kill();
}

/// A copy of the first host's disk as it is now.
fn copy_of(fleet: &Fleet, name: &str) -> std::path::PathBuf {
    let dir = fleet.dir().join(format!("agent-{name}"));
    copy_dir(&fleet.hosts[0].dir, &dir);
    dir
}

#[tokio::test]
async fn many_clones_at_once_do_not_displace_the_true_host_and_each_gets_an_identity() {
    let fleet = Fleet::start(Options::simulated()).await;
    let address = fleet.regions[0].agents.address();
    let dirs: Vec<_> = (0..5)
        .map(|number| copy_of(&fleet, &format!("copy-{number}")))
        .collect();
    let mut copies: Vec<_> = dirs
        .into_iter()
        .map(|dir| fleet.start_host_in("copy", dir, &address, None))
        .collect();

    for name in [
        "box-clone",
        "box-clone-2",
        "box-clone-3",
        "box-clone-4",
        "box-clone-5",
    ] {
        fleet.api.host_is(name, "held", SOON).await;
    }
    let host = fleet.api.host("box").await.unwrap();
    assert_eq!((&host.state[..], host.epoch), ("online", 1));
    assert!(
        !fleet.hosts[0].supervisor.said().contains("no link"),
        "the true host's link was not cut"
    );
    fleet.done(Action::Ping {}).await;
    assert_eq!(fleet.api.hosts().await.unwrap().len(), 6);
    for copy in &mut copies {
        copy.kill();
    }
}

#[tokio::test]
async fn an_older_copy_beside_the_living_host_does_not_put_that_on_hold() {
    let fleet = Fleet::start(Options::simulated()).await;
    let address = fleet.regions[0].agents.address();
    let dir = copy_of(&fleet, "copy");
    // The true host goes on for some terms; the copy's first will be below them.
    for _ in 0..3 {
        fleet.hosts[0].kill_agent().await;
        fleet.hosts[0].agent_pid().await;
    }
    wait_for("the fourth term is known", SOON, async || {
        let host = fleet.api.host("box").await.map_err(|no| no.to_string())?;
        if host.epoch >= 4 && host.state == "online" {
            Ok(())
        } else {
            Err(format!("{host:?}"))
        }
    })
    .await;

    let mut copy = fleet.start_host_in("copy", dir, &address, None);
    fleet.api.host_is("box-clone", "held", SOON).await;
    copy.supervisor.says("(held)", SOON).await;
    let host = fleet.api.host("box").await.unwrap();
    assert_eq!(&host.state[..], "online", "{host:#?}");
    fleet.hosts[0].kill_agent().await;
    fleet.online("box").await;
    fleet.done(Action::Ping {}).await;
    copy.kill();
}
