//! What holds for every command, whatever its kind.
//!
//! Holds: DESIGN §7 (stations, states, preconditions, deadlines, idempotency, cancel) and of "bad
//! input": unknown container, host, image; a duplicate command id; an engine that is not there.

use std::time::Duration;

use fairlead_api::types::{Action, CommandRequest, Precondition};
use fairlead_tests::client::{new_id, request};
use fairlead_tests::engine::{self, Names};
use fairlead_tests::fleet::{Fleet, Options};

use crate::acts::{exec, kill, restart, run, run_simulated, spec, start, stop};

const SOON: Duration = Duration::from_secs(30);

/// One signed, journalled `restart` through all four processes, told station by station.
#[tokio::test]
async fn a_restart_goes_through_all_four_processes_once() {
    let fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    // It takes long enough that the region's disk is not the slower one.
    let web = names.deaf("web", 3);
    let before = engine::started_at(&web);

    let command = fleet.done(restart(&web)).await;

    assert_ne!(
        engine::started_at(&web),
        before,
        "the engine says it was not restarted"
    );
    assert_eq!(engine::count(&web, "restart"), 1);
    assert_eq!(command.container_id, engine::id(&web));
    let stations: Vec<&str> = command.timeline.iter().map(|s| s.stage.as_str()).collect();
    let way = [
        "accepted",
        "stored",
        "region_received",
        "region_stored",
        "delivered",
        "verified",
        "intent_stored",
        "engine_called",
        "engine_answered",
        "result_stored",
        "region_result_received",
        "recorded",
    ];
    for station in way {
        assert!(
            stations.contains(&station),
            "{station} is missing in {stations:?}"
        );
    }
    assert!(
        command.overhead_ms.is_some_and(|ms| ms >= 0.0),
        "{command:#?}"
    );
}

#[tokio::test]
async fn the_same_id_with_the_same_body_is_one_command_and_with_another_is_refused() {
    let fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let (web, other) = (names.polite("web"), names.polite("other"));
    let asked = CommandRequest {
        id: Some(new_id()),
        ..request(&fleet.host(), restart(&web))
    };

    let first = fleet.api.submit(&asked, SOON).await.unwrap();
    let again = fleet.api.submit(&asked, SOON).await.unwrap();

    assert_eq!(
        (&first.state[..], &again.state[..]),
        ("succeeded", "succeeded")
    );
    assert_eq!(first.id, again.id);
    assert_eq!(
        engine::count(&web, "restart"),
        1,
        "asked twice under one id, done once"
    );

    let changed = CommandRequest {
        action: restart(&other),
        ..asked
    };
    let refused = fleet.api.submit(&changed, SOON).await.unwrap_err();
    assert_eq!((refused.status, &refused.code[..]), (409, "duplicate_id"));
    assert_eq!(engine::count(&other, "restart"), 0);
}

#[tokio::test]
async fn many_askers_with_one_id_at_once_get_one_effect() {
    let fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let web = names.polite("web");
    let asked = CommandRequest {
        id: Some(new_id()),
        ..request(&fleet.host(), restart(&web))
    };

    let askers: Vec<_> = (0..12)
        .map(|_| {
            let (api, asked) = (fleet.api.clone(), asked.clone());
            tokio::spawn(async move { api.submit(&asked, SOON).await })
        })
        .collect();
    for asker in askers {
        let command = asker.await.unwrap().unwrap();
        assert_eq!(command.state, "succeeded", "{command:#?}");
    }

    assert_eq!(engine::count(&web, "restart"), 1);
}

#[tokio::test]
async fn what_is_not_there_is_named_with_a_code() {
    let fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let web = names.polite("web");
    let nobody = names.name("nobody");

    let refused = fleet
        .api
        .submit(&request("no-such-host", restart(&web)), SOON)
        .await
        .unwrap_err();
    assert_eq!((refused.status, &refused.code[..]), (404, "host_not_found"));

    // With the host named, the host itself judges: the picture here may be older than the container.
    let failed = fleet.act(restart(&nobody)).await;
    assert_eq!(
        (&failed.state[..], &failed.code[..]),
        ("failed", "container_not_found")
    );
    assert!(failed.message.contains(&nobody), "{}", failed.message);

    let unnamed = CommandRequest {
        host: None,
        ..request("", restart(&nobody))
    };
    match fleet.api.submit(&unnamed, SOON).await {
        Err(refused) => assert_eq!(refused.code, "container_not_found"),
        Ok(command) => assert_eq!(command.code, "container_not_found"),
    }

    let image = format!("{}:none", names.name("image"));
    let pulled = fleet
        .act(Action::Pull {
            image: image.clone(),
            platform: String::new(),
        })
        .await;
    assert_eq!(
        (&pulled.state[..], &pulled.code[..]),
        ("failed", "image_not_found")
    );
    let mut missing = spec(&names.name("never"), &["true"]);
    missing.image = image;
    let ran = fleet.act(run(missing)).await;
    assert_eq!(
        (&ran.state[..], &ran.code[..]),
        ("failed", "image_not_found")
    );
    assert_eq!(
        engine::field(&names.name("never"), "{{.Id}}"),
        None,
        "nothing half done"
    );

    let unknown = fleet.api.command(&new_id()).await.unwrap_err();
    assert_eq!(
        (unknown.status, &unknown.code[..]),
        (404, "command_not_found")
    );

    engine::docker_says(&["stop", "-t", "0", &web]);
    let not_running = fleet.act(exec(&web, &["true"])).await;
    assert_eq!(
        (&not_running.state[..], &not_running.code[..]),
        ("failed", "not_running")
    );

    let mut taken = spec(&web, &["true"]);
    taken.labels.insert("who".to_owned(), "second".to_owned());
    let ran = fleet.act(run(taken)).await;
    assert_eq!((&ran.state[..], &ran.code[..]), ("failed", "name_in_use"));
}

#[tokio::test]
async fn a_precondition_that_does_not_hold_is_a_conflict_without_effect() {
    let fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let web = names.polite("web");
    let host = fleet.host();
    let with = |precondition| CommandRequest {
        precondition: Some(precondition),
        ..request(&host, restart(&web))
    };
    let container = |id: &str| Precondition {
        container_id: id.to_owned(),
        ..Precondition::default()
    };
    let image = |id: &str| Precondition {
        image_digest: id.to_owned(),
        ..Precondition::default()
    };
    let (id, image_id) = (engine::id(&web), engine::field(&web, "{{.Image}}").unwrap());

    for wrong in [
        container(&"0".repeat(64)),
        image(&format!("sha256:{}", "1".repeat(64))),
    ] {
        let command = fleet.api.submit(&with(wrong), SOON).await.unwrap();
        assert_eq!(
            (&command.state[..], &command.code[..]),
            ("conflict", "precondition_failed")
        );
    }
    assert_eq!(engine::count(&web, "restart"), 0);

    for right in [container(&id), container(&id[..12]), image(&image_id)] {
        let command = fleet.api.submit(&with(right), SOON).await.unwrap();
        assert_eq!(command.state, "succeeded", "{command:#?}");
    }
    assert_eq!(engine::count(&web, "restart"), 3);
}

#[tokio::test]
async fn an_act_that_takes_too_long_ends_as_timeout() {
    let fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let web = names.polite("web");
    let asked = CommandRequest {
        timeout_ms: Some(700),
        ..request(&fleet.host(), exec(&web, &["sleep", "30"]))
    };

    let command = fleet.api.submit(&asked, SOON).await.unwrap();

    assert_eq!(
        (&command.state[..], &command.code[..]),
        ("failed", "timeout")
    );
    // The lane is free again.
    fleet.done(restart(&web)).await;
}

#[tokio::test]
async fn an_engine_that_is_not_there_is_waited_for_and_said_so() {
    let sockets = tempfile::tempdir().unwrap();
    let socket = sockets.path().join("engine.sock");
    let names = Names::new();
    let web = names.polite("web");
    let options = Options::docker().agent_flag("--engine-socket", socket.to_str().unwrap());
    let fleet = Fleet::start(options).await;

    let waiting = fleet.begin(restart(&web)).await;
    let late = CommandRequest {
        deadline_s: Some(2),
        ..request(&fleet.host(), start(&web))
    };
    let late = fleet.api.submit(&late, SOON).await.unwrap();
    assert_eq!(
        (&late.state[..], &late.code[..]),
        ("expired", "deadline_passed")
    );
    let said = fleet.api.command(&waiting.id).await.unwrap();
    assert!(!said.is_final, "{said:#?}");
    assert!(
        said.waiting_for.contains("engine"),
        "it says what it waits for: {said:#?}"
    );
    let facts = fleet.api.host(&fleet.host()).await.unwrap().facts.unwrap();
    assert!(!facts.engine.error.is_empty(), "{facts:#?}");
    assert_eq!(facts.engine.code, "engine_unavailable");

    std::os::unix::fs::symlink("/var/run/docker.sock", &socket).unwrap();
    let ended = fleet.api.ended(&waiting.id, SOON).await;
    assert_eq!(ended.state, "succeeded", "{ended:#?}");
    assert_eq!(engine::count(&web, "restart"), 1);
}

#[tokio::test]
async fn a_command_that_waits_for_its_lane_can_be_withdrawn_and_one_that_runs_cannot() {
    let fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let slow = names.deaf("slow", 25);

    let stopping = fleet.begin(stop(&slow)).await;
    fleet.api.reaches(&stopping.id, "running", SOON).await;
    let waiting = fleet.begin(start(&slow)).await;
    let seen = fleet.api.command(&waiting.id).await.unwrap();
    assert!(!seen.is_final, "{seen:#?}");
    fleet.api.cancel(&waiting.id).await.unwrap();
    let cancelled = fleet.api.ended(&waiting.id, SOON).await;
    assert_eq!(
        (&cancelled.state[..], &cancelled.code[..]),
        ("cancelled", "withdrawn")
    );

    // The one that runs goes on to its end, whether or not the withdrawal is refused at once.
    let _ = fleet.api.cancel(&stopping.id).await;
    fleet.done(kill(&slow, "KILL")).await;
    let ended = fleet.api.ended(&stopping.id, SOON).await;
    assert_eq!(ended.state, "succeeded", "{ended:#?}");
    assert!(!engine::is_running(&slow));
    assert_eq!(
        engine::count(&slow, "start"),
        1,
        "the withdrawn start was never begun"
    );

    // One that has ended stays as it is.
    let _ = fleet.api.cancel(&stopping.id).await;
    assert_eq!(
        fleet.api.command(&stopping.id).await.unwrap().state,
        "succeeded"
    );
}

#[tokio::test]
async fn requests_that_make_no_sense_are_refused_before_they_are_signed() {
    let fleet = Fleet::start(Options::simulated()).await;
    let host = fleet.host();
    fleet.done(run_simulated("web")).await;
    let asked = request(&host, restart("web"));
    let refused = [
        CommandRequest {
            id: Some("nonsense".to_owned()),
            ..asked.clone()
        },
        CommandRequest {
            deadline_s: Some(8 * 24 * 3600),
            ..asked.clone()
        },
        CommandRequest {
            action: restart(""),
            ..asked.clone()
        },
        CommandRequest {
            action: exec("web", &[]),
            ..asked.clone()
        },
        CommandRequest {
            action: restart(&"x".repeat(5000)),
            ..asked.clone()
        },
    ];
    for request in refused {
        let no = fleet
            .api
            .submit(&request, Duration::ZERO)
            .await
            .unwrap_err();
        assert_eq!(
            (no.status, &no.code[..]),
            (400, "invalid_request"),
            "{request:?}"
        );
    }
    let words = "w".repeat(900);
    let many: Vec<&str> = (0..20).map(|_| &words[..]).collect();
    let no = fleet
        .api
        .submit(&request(&host, exec("web", &many)), Duration::ZERO)
        .await
        .unwrap_err();
    assert_eq!(no.code, "command_too_large");
    let known = fleet
        .api
        .get::<serde_json::Value>("commands")
        .await
        .unwrap();
    assert_eq!(
        known["items"].as_array().unwrap().len(),
        1,
        "only the run is recorded"
    );
}
