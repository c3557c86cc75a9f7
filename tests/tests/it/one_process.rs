//! One data directory, one process: a second controller or access server refuses to start, and the
//! first does not notice.
//!
//! Holds: P2 (every acknowledged command ends: nothing is acknowledged by a process whose uplinks are
//! another's).

use std::ffi::OsStr;
use std::process::{Command, Output};

use fairlead_api::types::Action;
use fairlead_tests::fleet::{Fleet, Options};
use fairlead_tests::ports::Port;
use fairlead_tests::programs::program;

/// Starts a program that is to refuse; returns what it said.
fn refused(name: &str, flags: &[(&str, &OsStr)]) -> Output {
    let mut command = Command::new(program(name));
    command.arg("run").env("FAIRLEAD_DIE_WITH_PARENT", "1");
    for (flag, value) in flags {
        command.arg(flag).arg(value);
    }
    command.output().unwrap()
}

fn says_why(said: &Output, dir: &OsStr) {
    let text = String::from_utf8_lossy(&said.stderr);
    assert_eq!(said.status.code(), Some(1), "{text}");
    assert!(text.contains("already_running"), "{text}");
    assert!(text.contains(&*dir.to_string_lossy()), "{text}");
    assert!(text.contains("--data-dir"), "{text}");
}

#[tokio::test]
async fn a_second_process_on_the_same_data_refuses_to_start() {
    let mut fleet = Fleet::start(Options::simulated()).await;
    let (one, other) = (Port::claim(), Port::claim());

    let dir = fleet.dir().join("controller");
    let second = refused(
        "fairlead-controller",
        &[
            ("--data-dir", dir.as_os_str()),
            ("--listen", one.address().as_ref()),
            ("--uplink-listen", other.address().as_ref()),
            ("--uplink-address", other.address().as_ref()),
            ("--public-url", one.url().as_ref()),
        ],
    );
    says_why(&second, dir.as_os_str());

    let dir = fleet.regions[0].dir.clone();
    let second = refused(
        "fairlead-access-server",
        &[
            ("--data-dir", dir.as_os_str()),
            ("--controller", fleet.uplink.address().as_ref()),
            ("--agent-listen", one.address().as_ref()),
            ("--agent-address", one.address().as_ref()),
            ("--listen", other.address().as_ref()),
            ("--public-url", other.url().as_ref()),
        ],
    );
    says_why(&second, dir.as_os_str());

    // The first ones work as before, and a killed one leaves no lock behind.
    fleet.done(Action::Ping {}).await;
    fleet.controller.start_again();
    fleet.regions[0].process.start_again();
    fleet.all_online().await;
    fleet.done(Action::Ping {}).await;
}
