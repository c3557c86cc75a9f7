//! P10: a clock that is wrong, at host, access server or controller: nothing expires or revives that should
//! not, people are told, and everything goes on when the clock is right again.
//!
//! Holds: DESIGN §7 (deadlines are judged by the server's time); issue 4 (clock ±1 h and ±10 y).

use std::time::Duration;

use fairlead_api::types::{Action, CommandRequest};
use fairlead_tests::client::request;
use fairlead_tests::fleet::{Fleet, Options};
use fairlead_tests::wait::wait_for;
use fairlead_tests::wrong_clock;

use crate::acts::{restart, run_simulated};
use crate::readiness::attention;

const SOON: Duration = Duration::from_secs(40);
const HOUR: [&str; 2] = ["+3600", "-3600"];

#[tokio::test]
async fn a_hosts_wrong_clock_neither_ends_nor_revives_a_command() {
    if !wrong_clock::can_be_had() {
        return;
    }
    let mut fleet = Fleet::start(Options::simulated()).await;
    fleet.done(run_simulated("web")).await;
    for offset in HOUR {
        fleet.hosts[0].kill();
        fleet.api.host_is("box", "offline", SOON).await;
        let good = fleet.begin(restart("web")).await;
        let short = CommandRequest {
            deadline_s: Some(1),
            ..request("box", restart("web"))
        };
        let late = fleet.api.submit(&short, SOON).await.unwrap();
        assert_eq!(late.code, "deadline_passed", "{late:#?}");
        wrong_clock::set(&mut fleet.hosts[0].supervisor, Some(offset));
        fleet.hosts[0].start();
        let ended = fleet.api.ended(&good.id, SOON).await;
        assert_eq!(ended.state, "succeeded", "{offset}: {ended:#?}");
        fleet.done(restart("web")).await;
    }
    // Ten years: servers' certificates are not good then. It says what is wrong, and is back when its
    // clock is right.
    for offset in ["+10y", "-10y"] {
        fleet.hosts[0].kill();
        fleet.api.host_is("box", "offline", SOON).await;
        let heard = fleet.hosts[0].supervisor.said().len();
        wrong_clock::set(&mut fleet.hosts[0].supervisor, Some(offset));
        fleet.hosts[0].start();
        wait_for("the agent says what is wrong", SOON, async || {
            let said = fleet.hosts[0].supervisor.said()[heard..].to_owned();
            if said.contains("clock_skew") {
                Ok(())
            } else {
                Err(said)
            }
        })
        .await;
        let waiting = fleet.begin(restart("web")).await;
        fleet.hosts[0].kill();
        wrong_clock::set(&mut fleet.hosts[0].supervisor, None);
        fleet.hosts[0].start();
        let ended = fleet.api.ended(&waiting.id, SOON).await;
        assert_eq!(ended.state, "succeeded", "{offset}: {ended:#?}");
    }
    let begun = fleet.hosts[0]
        .owner_log()
        .matches("began: restart container web")
        .count();
    assert_eq!(begun, 6, "each once");
}

#[tokio::test]
async fn a_controllers_wrong_clock_is_told_and_leaves_nothing_behind() {
    if !wrong_clock::can_be_had() {
        return;
    }
    let mut fleet = Fleet::start(Options::simulated()).await;
    fleet.done(run_simulated("web")).await;
    for (offset, ends) in [("+3600", "clock_skew"), ("-3600", "deadline_passed")] {
        fleet.controller.kill();
        wrong_clock::set(&mut fleet.controller, Some(offset));
        fleet.controller.start_again();
        fleet.all_online().await;
        attention(&fleet, "the clock of region local is", true).await;
        let wrong = fleet.act(restart("web")).await;
        assert_eq!(wrong.code, ends, "{offset}: {wrong:#?}");

        fleet.controller.kill();
        wrong_clock::set(&mut fleet.controller, None);
        fleet.controller.start_again();
        fleet.all_online().await;
        attention(&fleet, "the clock of region local is", false).await;
        // With the time of the wrong command as its floor the host would do nothing for an hour.
        fleet.done(restart("web")).await;
    }
    let begun = fleet.hosts[0]
        .owner_log()
        .matches("began: restart container web")
        .count();
    assert_eq!(begun, 2, "only what was asked at a right time");
}

/// Its certificates are of a time that nobody else lives in, so nobody believes it: it says what is wrong,
/// orders nothing, and keeps nothing of that time.
#[tokio::test]
async fn a_controller_ten_years_off_is_believed_by_nobody_and_leaves_nothing_behind() {
    if !wrong_clock::can_be_had() {
        return;
    }
    let mut fleet = Fleet::start(Options::simulated()).await;
    fleet.done(run_simulated("web")).await;
    let agent = fleet.hosts[0].agent_pid().await;
    for offset in ["+10y", "-10y"] {
        let before = fleet.act(Action::Ping {}).await;
        fleet.controller.kill();
        let heard = fleet.regions[0].process.said().len();
        wrong_clock::set(&mut fleet.controller, Some(offset));
        fleet.controller.start_again();
        wait_for("the region says what is wrong", SOON, async || {
            let said = fleet.regions[0].process.said()[heard..].to_owned();
            let told = said.contains("clock right");
            told.then_some(()).ok_or_else(|| fleet.controller.said())
        })
        .await;
        assert!(!fleet.regions[0].process.said()[heard..].contains("uplink up"));

        fleet.controller.kill();
        wrong_clock::set(&mut fleet.controller, None);
        fleet.controller.start_again();
        fleet.all_online().await;
        // What was known is known, and the key that signs is good now.
        let known = fleet.api.command(&before.id).await.unwrap();
        assert_eq!(known.state, "succeeded", "{offset}: {known:#?}");
        fleet.done(restart("web")).await;
    }
    let begun = fleet.hosts[0]
        .owner_log()
        .matches("began: restart container web")
        .count();
    assert_eq!(begun, 2, "each once");
    let same = fleet.hosts[0].agent_pid().await;
    assert_eq!(same, agent, "the agent was not restarted");
    let links = fleet.hosts[0].supervisor.said().matches("link up").count();
    assert_eq!(links, 1, "nor was its link cut");
}

#[tokio::test]
async fn a_regions_wrong_clock_is_told_and_leaves_nothing_behind() {
    if !wrong_clock::can_be_had() {
        return;
    }
    let mut fleet = Fleet::start(Options::simulated()).await;
    fleet.done(run_simulated("web")).await;
    for offset in HOUR {
        fleet.regions[0].process.kill();
        wrong_clock::set(&mut fleet.regions[0].process, Some(offset));
        fleet.regions[0].process.start_again();
        fleet.all_online().await;
        attention(&fleet, "the clock of region local is", true).await;
        // What only time can end, it may end wrongly: that is what people are told. A command that the
        // host's clock agrees with is carried out.
        let asked = fleet.act(Action::Ping {}).await;
        let ends = if offset == "+3600" {
            "deadline_passed"
        } else {
            ""
        };
        assert_eq!(asked.code, ends, "{offset}: {asked:#?}");

        fleet.regions[0].process.kill();
        wrong_clock::set(&mut fleet.regions[0].process, None);
        fleet.regions[0].process.start_again();
        fleet.all_online().await;
        attention(&fleet, "the clock of region local is", false).await;
        fleet.done(restart("web")).await;
    }
    // Ten years: nobody believes it, or it nobody. Back when its clock is right, nothing lost.
    for offset in ["+10y", "-10y"] {
        fleet.regions[0].process.kill();
        let heard = fleet.regions[0].process.said().len();
        wrong_clock::set(&mut fleet.regions[0].process, Some(offset));
        fleet.regions[0].process.start_again();
        fleet.region_is("local", "offline").await;
        let waiting = fleet.begin(restart("web")).await;
        // It dials, or (its own certificate has ended by then) ends and has to be started again.
        wait_for("it says what is wrong", SOON, async || {
            let said = fleet.regions[0].process.said()[heard..].to_owned();
            if said.contains("clock right") {
                Ok(())
            } else {
                Err(said)
            }
        })
        .await;
        fleet.regions[0].process.kill();
        wrong_clock::set(&mut fleet.regions[0].process, None);
        fleet.regions[0].process.start_again();
        let ended = fleet.api.ended(&waiting.id, SOON).await;
        assert_eq!(ended.state, "succeeded", "{offset}: {ended:#?}");
    }
}
