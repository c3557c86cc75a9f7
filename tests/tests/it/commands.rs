//! Every kind of command, on the real engine: its effect is looked up in the engine itself.
//!
//! Holds: DESIGN §7 (kinds, states, preconditions, deadlines, idempotency); "bad input": unknown
//! container, host, image, duplicate command id.

use fairlead_api::types::Action;
use fairlead_tests::engine::{self, Names};
use fairlead_tests::fleet::{Fleet, Options};

pub(crate) fn restart(container: &str) -> Action {
    Action::Restart {
        container: container.to_owned(),
        grace_s: None,
        signal: String::new(),
    }
}

/// One signed, journalled `restart` through all four processes, told station by station.
#[tokio::test]
async fn a_restart_goes_through_all_four_processes_once() {
    let fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let web = names.polite("web");
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
        "region_result_stored",
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
