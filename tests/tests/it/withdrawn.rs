//! Withdrawing what has its turn and waits for the engine: nothing of it has begun, so it can be.
//!
//! Holds: DESIGN §7 (a cancel is refused once the command runs, and not before), P10 (a dead Docker).

use std::time::Duration;

use fairlead_tests::engine::Names;
use fairlead_tests::fleet::{Fleet, Options};
use fairlead_tests::wait::wait_for;

use crate::acts::{restart, run, spec};

const SOON: Duration = Duration::from_secs(30);

#[tokio::test]
async fn what_waits_for_an_engine_that_is_not_there_can_be_withdrawn() {
    let nowhere = tempfile::tempdir().unwrap();
    let socket = nowhere.path().join("no-engine.sock");
    let options = Options::docker().agent_flag("--engine-socket", socket.display().to_string());
    let fleet = Fleet::start(options).await;
    let name = Names::new().name("never");
    // One that looks at its container before its intent is written, and one that looks at nothing.
    for action in [restart(&name), run(spec(&name, &[]))] {
        let waiting = fleet.begin(action).await;
        wait_for("it waits for the engine", SOON, async || {
            let command = fleet.api.command(&waiting.id).await.unwrap();
            let waits = command.waiting_for.contains("engine does not answer");
            waits.then_some(()).ok_or(format!("{command:#?}"))
        })
        .await;
        fleet.api.cancel(&waiting.id).await.unwrap();
        let ended = fleet.api.ended(&waiting.id, SOON).await;
        let how = (&ended.state[..], &ended.code[..]);
        assert_eq!(how, ("cancelled", "withdrawn"), "{ended:#?}");
    }
}
