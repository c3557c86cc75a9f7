//! Whose doing an event is: what our commands bring about names the command, all else does not.
//!
//! Holds: of the issue, "what somebody does on the host by hand appears in `events` as such"; and that
//! what the agent writes is for its owner only.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use fairlead_api::types::Action;
use fairlead_tests::engine::{Names, docker_says};
use fairlead_tests::fleet::{Fleet, Options};

use crate::acts::{restart, run_simulated};

const SOON: Duration = Duration::from_secs(30);

#[tokio::test]
async fn an_image_that_we_pull_is_pulled_by_that_command() {
    let fleet = Fleet::start(Options::simulated()).await;
    let pull = Action::Pull {
        image: "demo/fresh".to_owned(),
        platform: String::new(),
    };
    let pulled = fleet.done(pull).await;
    let event = fleet.api.event("image.pull", "box", SOON).await;
    assert_eq!(event.cause, "command", "{event:#?}");
    assert_eq!(&event.command[..], &pulled.id[..], "{event:#?}");

    fleet.done(run_simulated("web")).await;
    let state = fleet.hosts[0].dir.join("simulated-engine.json");
    for path in [state, fleet.hosts[0].dir.join("owner.log")] {
        let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{}", path.display());
    }
}

#[tokio::test]
async fn a_kill_by_hand_right_after_our_restart_is_by_hand() {
    let fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let web = names.polite("web");
    let ours = fleet.done(restart(&web)).await;
    docker_says(&["kill", &web]);
    let at = std::time::Instant::now();
    let kills = loop {
        let events = fleet.api.events().await.unwrap();
        let kills: Vec<_> = events
            .into_iter()
            .filter(|e| e.container == web && e.action == "container.kill")
            .collect();
        if kills.len() >= 2 {
            break kills;
        }
        assert!(at.elapsed() < SOON, "{kills:#?}");
        tokio::task::yield_now().await;
    };
    let by_hand = kills.iter().filter(|e| e.cause == "by-hand").count();
    let by_us = kills
        .iter()
        .filter(|e| e.cause == "command" && e.command == ours.id)
        .count();
    assert_eq!((by_hand, by_us), (1, 1), "{kills:#?}");
}
