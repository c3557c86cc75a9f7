//! P1, P2 across versions: N and a next version work together, whichever side is the newer one, on the link and on
//! the uplink, under commands; and what is too old or too new is refused in one sentence.
//!
//! The next version is today's programs with a double in between (`tests/src/skew.rs`), which adds to everything that
//! one side says unknown fields, unknown kinds, an unknown feature and a higher version.

use std::sync::atomic::Ordering;
use std::time::Duration;

use fairlead_api::types::{Action, JoinTokenRequest};
use fairlead_tests::fleet::{Fleet, Options};
use fairlead_tests::process::is_alive;
use fairlead_tests::skew::{Manner, Skew, Speech};
use fairlead_tests::wait::wait_for;

use crate::acts::{attach, exec, logs, remove, restart, run_simulated, start, stop, text};

mod transcripts;

const SOON: Duration = Duration::from_secs(40);
/// Commands of each kind that are under way at the same time.
const AT_ONCE: usize = 20;

/// A fleet whose agent and access server have the double between them.
async fn with_agent(manner: Manner) -> (Fleet, Skew) {
    let skew = Skew::claim().await;
    let options = Options::simulated().agents_dial(skew.address());
    let mut fleet = Fleet::start_centre(options).await;
    fleet.add_region("local").await;
    let (server, agents) = (fleet.regions[0].dir.clone(), &fleet.regions[0].agents);
    let agent = fleet.dir().join("agent-box");
    skew.between_agent(&server, &agent, &agents.address(), manner);
    fleet.add_host("box").await;
    (fleet, skew)
}

/// A fleet whose access server and controller have it between them.
pub(crate) async fn with_region(manner: Manner) -> (Fleet, Skew) {
    let skew = Skew::claim().await;
    let options = Options::simulated().regions_dial(skew.address());
    let mut fleet = Fleet::start_centre(options).await;
    let controller = fleet.dir().join("controller");
    let server = fleet.dir().join("access-server-local");
    skew.between_region(&controller, &server, &fleet.uplink.address(), manner);
    fleet.add_region("local").await;
    fleet.add_host("box").await;
    (fleet, skew)
}

/// Every kind of thing that goes over link and uplink, and many at once.
pub(crate) async fn under_commands(fleet: &Fleet) {
    fleet.done(run_simulated("web")).await;
    for action in [restart("web"), stop("web"), start("web")] {
        fleet.done(action).await;
    }
    let said = fleet.done(exec("web", &["echo", "hello"])).await;
    assert_eq!(text(&said).trim(), "hello");
    let inspected = fleet
        .done(Action::Inspect {
            object: "web".to_owned(),
            object_kind: String::new(),
        })
        .await;
    assert!(inspected.output.is_some(), "{inspected:#?}");
    let (_, mut stream) = attach(&fleet.api, "box", logs("web", Some(1), false)).await;
    let heard = stream.rest().await;
    assert!(heard.end.is_some(), "{heard:?}");
    let refused = fleet.act(restart("not-there")).await;
    assert_eq!(refused.code, "container_not_found", "{refused:#?}");

    let mut open = Vec::new();
    for _ in 0..AT_ONCE {
        open.push(fleet.begin(Action::Ping {}).await.id);
        open.push(fleet.begin(restart("web")).await.id);
    }
    for id in open {
        let ended = fleet.api.ended(&id, SOON).await;
        assert_eq!(ended.state, "succeeded", "{ended:#?}");
    }
    wait_for("it is in the picture", SOON, async || {
        let seen = fleet
            .api
            .containers("box")
            .await
            .map_err(|no| no.to_string())?;
        let is_there = seen.iter().any(|one| one.name == "web" && one.live);
        is_there.then_some(()).ok_or(format!("{seen:?}"))
    })
    .await;
    fleet.api.event("container.start", "box", SOON).await;
    fleet.done(remove("web", true)).await;
}

/// Until what nobody knew has been answered, but for so many that were under way when a side was killed.
async fn answered(skew: &Skew, lost: usize) {
    wait_for("what is not known is answered", SOON, async || {
        let counts = skew.counts();
        let of = |count: &std::sync::atomic::AtomicUsize| count.load(Ordering::SeqCst);
        let is_answered = of(&counts.unsupported) + lost >= of(&counts.put_in);
        is_answered.then_some(()).ok_or(format!("{counts:?}"))
    })
    .await;
}

/// What a next version said was heard, and answered as this version promises.
async fn was_heard(skew: &Skew, manner: Manner) {
    answered(skew, 3).await;
    let counts = skew.counts();
    let of = |count: &std::sync::atomic::AtomicUsize| count.load(Ordering::SeqCst);
    let (changed, put_in) = (of(&counts.changed), of(&counts.put_in));
    println!("{manner:?}: {counts:?}");
    assert!(changed > AT_ONCE && put_in > 3, "{counts:?}");
}

pub(crate) const NEWER_BELOW: Manner = Manner {
    up: Speech::Later,
    down: Speech::AsItIs,
    hello: None,
    welcome: None,
};
pub(crate) const NEWER_ABOVE: Manner = Manner {
    up: Speech::AsItIs,
    down: Speech::Later,
    hello: None,
    welcome: None,
};

async fn link(manner: Manner) {
    let (fleet, skew) = with_agent(manner).await;
    under_commands(&fleet).await;
    // And again with another instance of the agent, and another process of the server.
    answered(&skew, 1).await;
    let before = fleet.hosts[0].agent_pid().await;
    fleet.hosts[0].kill_agent().await;
    assert!(!is_alive(before));
    under_commands(&fleet).await;
    assert!(skew.counts().streams.load(Ordering::SeqCst) >= 2);
    was_heard(&skew, manner).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_agent_and_an_older_access_server_work_together() {
    link(NEWER_BELOW).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_access_server_and_an_older_agent_work_together() {
    link(NEWER_ABOVE).await;
}

async fn uplink(manner: Manner) {
    let (mut fleet, skew) = with_region(manner).await;
    under_commands(&fleet).await;
    answered(&skew, 1).await;
    fleet.controller.kill();
    fleet.controller.start_again();
    fleet.all_online().await;
    under_commands(&fleet).await;
    was_heard(&skew, manner).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_access_server_and_an_older_controller_work_together() {
    uplink(NEWER_BELOW).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_controller_and_an_older_access_server_work_together() {
    uplink(NEWER_ABOVE).await;
}

/// Versions that nobody here speaks.
const TOO_NEW: (u32, u32) = (7, 9);
const TOO_OLD: (u32, u32) = (0, 0);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_too_old_or_too_new_is_refused_in_one_sentence() {
    for versions in [TOO_NEW, TOO_OLD] {
        let manner = Manner {
            hello: Some(versions),
            ..Manner::default()
        };
        let said = refused_link(manner).await;
        let (least, most) = versions;
        let words = format!(
            "the agent speaks {least} to {most}, this server 1 to 1: upgrade the older one"
        );
        assert!(said.contains(&words), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_access_server_that_chooses_a_version_of_its_own_is_refused_in_one_sentence() {
    let manner = Manner {
        welcome: Some(TOO_NEW.1),
        ..Manner::default()
    };
    let said = refused_link(manner).await;
    assert!(
        said.contains("the server chose version 9, and this program speaks 1 to 1"),
        "{said}"
    );
}

/// What an agent says of its link that is refused.
async fn refused_link(manner: Manner) -> String {
    let skew = Skew::claim().await;
    let options = Options::simulated().agents_dial(skew.address());
    let mut fleet = Fleet::start_centre(options).await;
    fleet.add_region("local").await;
    let (server, agents) = (fleet.regions[0].dir.clone(), &fleet.regions[0].agents);
    let agent = fleet.dir().join("agent-box");
    skew.between_agent(&server, &agent, &agents.address(), manner);
    let token = fleet
        .api
        .new_join_token(&JoinTokenRequest {
            region: Some("local".to_owned()),
            ..JoinTokenRequest::default()
        })
        .await
        .unwrap();
    let host = fleet.start_host("box", &token.token);
    let said = wait_for("it says why it has no link", SOON, async || {
        let said = host.supervisor.last_words();
        if said.contains("version_mismatch") {
            Ok(said)
        } else {
            Err(said)
        }
    })
    .await;
    // Where it is the agent that refuses, the server has taken the host for online until then, and
    // learns of it by the link's end.
    wait_for("the host is not online", SOON, async || {
        let state = fleet.api.host("box").await.unwrap().state;
        if state == "online" {
            Err(state)
        } else {
            Ok(())
        }
    })
    .await;
    said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uplinks_that_are_too_old_or_too_new_are_refused_in_one_sentence() {
    let spoken = |(least, most)| {
        format!(
            "the access server speaks {least} to {most}, the controller 1 to 1: upgrade the older one"
        )
    };
    let hello = |versions| Manner {
        hello: Some(versions),
        ..Manner::default()
    };
    let welcome = Manner {
        welcome: Some(TOO_NEW.1),
        ..Manner::default()
    };
    for (manner, words) in [
        (hello(TOO_NEW), spoken(TOO_NEW)),
        (hello(TOO_OLD), spoken(TOO_OLD)),
        (
            welcome,
            "the server chose version 9, and this program speaks 1 to 1".to_owned(),
        ),
    ] {
        // It has joined, and dials anew with a double in between.
        let mut fleet = Fleet::start(Options::simulated()).await;
        let skew = Skew::claim().await;
        let (controller, server) = (fleet.dir().join("controller"), fleet.regions[0].dir.clone());
        skew.between_region(&controller, &server, &fleet.uplink.address(), manner);
        let region = &mut fleet.regions[0].process;
        region.set_flag("--controller", &skew.address());
        region.start_again();
        let said = wait_for("it says why it has no uplink", SOON, async || {
            let said = fleet.regions[0].process.last_words();
            let told = said.contains("version_mismatch");
            told.then_some(said.clone()).ok_or(said)
        })
        .await;
        assert!(said.contains(&words), "{said}");
    }
}
