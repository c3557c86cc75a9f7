//! What happens while a host, a region or the controller is away.
//!
//! Holds: DESIGN §7 (deadlines, cancel) and §10 (agents run without the centre); of the issue: a host
//! that is offline gets its queued commands when it returns, if their deadline has not passed.

use std::time::Duration;

use fairlead_api::types::CommandRequest;
use fairlead_tests::client::request;
use fairlead_tests::engine::{self, Names};
use fairlead_tests::fleet::{Fleet, Options};
use fairlead_tests::wait::wait_for;

use crate::acts::{restart, stop};
use crate::cli::Cli;

const SOON: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_host_that_was_away_gets_its_commands_once_and_in_order() {
    let mut fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let (web, db) = (names.polite("web"), names.polite("db"));
    fleet.hosts[0].kill();
    fleet.api.host_is("box", "offline", SOON).await;

    let first = fleet.begin(restart(&web)).await;
    let second = fleet.begin(stop(&db)).await;
    let seen = fleet.api.command(&first.id).await.unwrap();
    assert_eq!(seen.state, "queued");
    assert!(seen.waiting_for.contains("offline since"), "{seen:#?}");
    assert!(fleet.api.status().await.unwrap().commands_open >= 2);
    let gone = fleet.api.host("box").await.unwrap();
    assert!(
        gone.reason.contains("connection") && !gone.reason.contains("TLS"),
        "in plain words: {gone:#?}"
    );
    let since = gone.since.to_string();
    let cli = Cli::of(&fleet);
    for verb in [&["status"][..], &["command", "ls"]] {
        let said = cli.says(verb).await.out;
        assert!(
            said.contains("offline since") && said.contains(" ago)") && !said.contains(&since),
            "as people say it: {said}"
        );
        let exact = cli.says(&[verb, &["-o", "json"]].concat()).await.out;
        assert!(exact.contains(&since), "{since} in {exact}");
    }

    fleet.hosts[0].start();
    for command in [&first, &second] {
        let ended = fleet.api.ended(&command.id, SOON).await;
        assert_eq!(ended.state, "succeeded", "{ended:#?}");
    }
    assert_eq!(engine::count(&web, "restart"), 1);
    assert!(!engine::is_running(&db));
}

#[tokio::test]
async fn what_its_deadline_passes_while_the_host_is_away_is_never_done() {
    let mut fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let web = names.polite("web");
    fleet.hosts[0].kill();
    fleet.api.host_is("box", "offline", SOON).await;

    let short = CommandRequest {
        deadline_s: Some(2),
        ..request("box", restart(&web))
    };
    let expired = fleet.api.submit(&short, SOON).await.unwrap();
    assert_eq!(
        (&expired.state[..], &expired.code[..]),
        ("expired", "deadline_passed")
    );

    fleet.hosts[0].start();
    fleet.online("box").await;
    fleet.done(fairlead_api::types::Action::Ping {}).await;
    assert_eq!(engine::count(&web, "restart"), 0);
    assert_eq!(
        fleet.api.command(&expired.id).await.unwrap().state,
        "expired"
    );
}

#[tokio::test]
async fn what_is_withdrawn_while_the_host_is_away_is_never_done() {
    let mut fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let web = names.polite("web");
    fleet.hosts[0].kill();
    fleet.api.host_is("box", "offline", SOON).await;

    let waiting = fleet.begin(restart(&web)).await;
    fleet.api.cancel(&waiting.id).await.unwrap();
    let cancelled = fleet.api.ended(&waiting.id, SOON).await;
    assert_eq!(
        (&cancelled.state[..], &cancelled.code[..]),
        ("cancelled", "withdrawn")
    );

    fleet.hosts[0].start();
    fleet.online("box").await;
    fleet.done(fairlead_api::types::Action::Ping {}).await;
    assert_eq!(engine::count(&web, "restart"), 0);
}

#[tokio::test]
async fn a_region_that_was_away_gets_its_commands_once() {
    let mut fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let web = names.polite("web");
    fleet.regions[0].process.kill();
    fleet.region_is("local", "offline").await;
    assert_eq!(
        fleet.api.host("box").await.unwrap().state,
        "unknown",
        "nobody can know"
    );

    let waiting = fleet.begin(restart(&web)).await;
    let seen = fleet.api.command(&waiting.id).await.unwrap();
    assert!(
        seen.waiting_for.contains("region local is not connected"),
        "{seen:#?}"
    );
    let withdrawn = fleet.begin(stop(&web)).await;
    fleet.api.cancel(&withdrawn.id).await.unwrap();

    fleet.regions[0].process.start_again();
    let ended = fleet.api.ended(&waiting.id, SOON).await;
    assert_eq!(ended.state, "succeeded", "{ended:#?}");
    assert_eq!(
        fleet.api.ended(&withdrawn.id, SOON).await.state,
        "cancelled"
    );
    assert_eq!(engine::count(&web, "restart"), 1);
    assert!(engine::is_running(&web), "the withdrawn stop was not done");
}

#[tokio::test]
async fn without_the_controller_hosts_stay_and_results_wait_for_it() {
    let mut fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let slow = names.deaf("slow", 10);
    let stopping = fleet.begin(stop(&slow)).await;
    fleet.api.reaches(&stopping.id, "running", SOON).await;

    fleet.controller.kill();
    let no = fleet.api.status().await.unwrap_err();
    assert_eq!(no.code, "unreachable");
    wait_for(
        "the stop is finished without the controller",
        SOON,
        async || {
            if engine::is_running(&slow) {
                Err("it runs".to_owned())
            } else {
                Ok(())
            }
        },
    )
    .await;
    let agent = fleet.hosts[0].agent_pid().await;
    fleet.controller.start_again();

    let ended = fleet.api.ended(&stopping.id, SOON).await;
    assert_eq!(ended.state, "succeeded", "{ended:#?}");
    fleet.all_online().await;
    assert_eq!(
        fleet.hosts[0].agent_pid().await,
        agent,
        "the agent was not restarted"
    );
    assert_eq!(
        fleet.hosts[0].supervisor.said().matches("link up").count(),
        1,
        "the agent's link was never cut"
    );
    let page: serde_json::Value = fleet.api.get("audit?limit=1000").await.unwrap();
    let results = page["items"].as_array().unwrap().iter().filter(|row| {
        row["object"].to_string().contains(&stopping.id)
            || row["detail"].to_string().contains(&stopping.id)
    });
    assert!(results.count() <= 2, "recorded once: {page:#}");
}
