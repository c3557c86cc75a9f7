//! A version from the centre: a command names it, the host fetches it from its region, verifies it and becomes it,
//! or says truly why not. Holds: S33, each refusal by the way of the command.

use std::time::Duration;

use fairlead_api::types::{Action, Command};
use fairlead_tests::client::request;
use fairlead_tests::engine::{self, Names};
use fairlead_tests::fleet::{Fleet, Options};
use fairlead_tests::process::send;
use fairlead_tests::versions::{FIRST, Versions};
use fairlead_tests::wait::wait_for;
use rustix::process::Signal;

use super::{IN_TIME, OWNED_AGAIN_WITHIN, options, settled};
use crate::acts::restart;

/// Longest that a host may take, when nothing is wrong but the machine's being busy.
const ENDED_WITHIN: Duration = Duration::from_secs(120);

fn upgrade(version: &str) -> Action {
    Action::UpgradeAgent {
        version: version.to_owned(),
        manifest: String::new(),
        allow_older: false,
    }
}

fn trusting(versions: &Versions) -> Options {
    options(versions).agent_env("FAIRLEAD_PACKAGE_KEYS", versions.trusted())
}

async fn told(fleet: &Fleet, action: Action) -> Command {
    let begun = fleet.begin(action).await;
    fleet.api.ended(&begun.id, ENDED_WITHIN).await
}

/// The host, once what it says of its versions holds.
async fn shows(fleet: &Fleet, started: &str, previous: &str, returned: Option<(&str, &str)>) {
    wait_for("the host shows its versions", IN_TIME, async || {
        let host = fleet.api.host("box").await.map_err(|no| no.to_string())?;
        let facts = host.facts.ok_or("no facts")?;
        let shown = facts.versions.clone().ok_or("no versions")?;
        let last = shown.last_return.as_ref();
        let as_said = match (returned, last) {
            (None, None) => true,
            (Some((from, why)), Some(last)) => last.from == from && last.why.contains(why),
            _ => false,
        };
        if shown.started == started
            && shown.previous == previous
            && facts.agent_version == started
            && as_said
        {
            Ok(())
        } else {
            Err(format!("{} {shown:?}", facts.agent_version))
        }
    })
    .await;
}

#[tokio::test]
async fn a_command_brings_a_version_to_a_host_and_ends_when_it_has_the_host() {
    let versions = Versions::new();
    let fleet = Fleet::start(trusting(&versions)).await;
    let names = Names::new();
    let web = names.polite("web");
    shows(&fleet, FIRST, "", None).await;
    versions.publish(&fleet, "1.1.0", &versions.package("1.1.0"));

    let done = told(&fleet, upgrade("1.1.0")).await;

    assert_eq!(done.state, "succeeded", "{done:#?}");
    assert_eq!(versions.linked("current"), "1.1.0", "its end is true");
    assert_eq!(settled(&fleet, IN_TIME).await, "1.1.0");
    shows(&fleet, "1.1.0", FIRST, None).await;
    fleet.done(restart(&web)).await;
    assert_eq!(engine::count(&web, "restart"), 1);
    let again = told(&fleet, upgrade("1.1.0")).await;
    assert_eq!(again.state, "succeeded", "it is there: {again:#?}");
    let left = std::fs::read_dir(fleet.hosts[0].dir.join("packages")).expect("the folder");
    assert_eq!(left.count(), 0, "what was fetched is not kept twice");

    // A version that never proves that it works: the end says why, and so does the host.
    versions.publish(
        &fleet,
        "2.0.0",
        &versions.pretender("2.0.0", "echo broken >&2; exit 3"),
    );
    let failed = told(&fleet, upgrade("2.0.0")).await;
    assert_eq!(failed.state, "failed", "{failed:#?}");
    assert_eq!(failed.code, "upgrade_returned", "{failed:#?}");
    assert!(failed.message.contains("exit code 3"), "{failed:#?}");
    assert_eq!(settled(&fleet, IN_TIME).await, "1.1.0");
    shows(&fleet, "1.1.0", FIRST, Some(("2.0.0", "exit code 3"))).await;
    fleet.done(restart(&web)).await;
}

#[tokio::test]
async fn s33_what_is_not_to_be_believed_is_refused_by_the_command_and_nothing_of_it_runs() {
    let versions = Versions::new();
    let fleet = Fleet::start(trusting(&versions)).await;
    let agent = fleet.hosts[0].agent_pid().await;
    let refused = async |version: &str, why: &str| {
        let ended = told(&fleet, upgrade(version)).await;
        let as_expected = ended.code == "package_refused" && ended.message.contains(why);
        assert!(as_expected, "{version}: {ended:#?}");
        assert_eq!(ended.state, "failed");
        let installed = versions.prefix().join("versions").join(version);
        assert!(!installed.exists(), "{version} was put beside the others");
    };
    let marker = fleet.dir().join("it-ran");
    let evil = format!("#!/bin/sh\ntouch {}\n", marker.display());

    let elsewhere = Versions::new();
    let package = elsewhere.package_of("3.0.0", evil.as_bytes());
    versions.publish(&fleet, "3.0.0", &package);
    refused("3.0.0", "not trusted").await;

    let package = versions.package_of("3.0.1", evil.as_bytes());
    let manifest = package.join("manifest");
    let text = std::fs::read_to_string(&manifest).expect("the manifest");
    let altered = text.replace("min-from 0.0.1", "min-from 0.0.2");
    std::fs::write(&manifest, altered).expect("another");
    versions.publish(&fleet, "3.0.1", &package);
    refused("3.0.1", "does not match its signature").await;

    let package = versions.package_with("3.0.2", evil.as_bytes(), -10, "0.0.1");
    versions.publish(&fleet, "3.0.2", &package);
    refused("3.0.2", "expired").await;

    let package = versions.package_with("3.0.3", evil.as_bytes(), 3600, "2.9.9");
    versions.publish(&fleet, "3.0.3", &package);
    refused("3.0.3", "can follow on 2.9.9").await;

    // Another program than the manifest names, of the same length; and one that was cut.
    let package = versions.package_of("3.0.4", evil.as_bytes());
    let other = evil.replace("touch", "chmod");
    std::fs::write(Versions::packed(&package), &other).expect("another program");
    versions.publish(&fleet, "3.0.4", &package);
    refused("3.0.4", "not what the manifest names").await;
    let package = versions.package_of("3.0.5", evil.as_bytes());
    let longer = format!("{evil}# more\n");
    std::fs::write(Versions::packed(&package), &longer).expect("another program");
    versions.publish(&fleet, "3.0.5", &package);
    refused("3.0.5", "not what the manifest names").await;

    // A manifest of another version under this one's hash.
    let package = versions.package_of("3.0.6", evil.as_bytes());
    versions.publish(&fleet, "3.0.6", &package);
    let text = std::fs::read(package.join("manifest")).expect("the manifest");
    let hash = fairlead_identity::digest::hex(&fairlead_identity::digest::sha256(&text));
    let mixed = Action::UpgradeAgent {
        version: "3.0.7".to_owned(),
        manifest: hash,
        allow_older: false,
    };
    let ended = told(&fleet, mixed).await;
    assert_eq!(ended.code, "package_refused", "{ended:#?}");
    assert!(ended.message.contains("3.0.7 was asked for"), "{ended:#?}");

    let nowhere = request("box", upgrade("3.9.9"));
    let no = fleet.api.submit(&nowhere, Duration::ZERO).await;
    assert_eq!(no.expect_err("no such package").code, "package_not_found");
    std::fs::write(&fleet.hosts[0].policy, "forbid_upgrade = true\n").expect("a policy");
    let ended = told(&fleet, upgrade("3.0.6")).await;
    assert_eq!(ended.code, "forbidden_by_host", "{ended:#?}");
    std::fs::remove_file(&fleet.hosts[0].policy).expect("no policy");

    assert!(!marker.exists(), "something of it was executed");
    assert_eq!(fleet.hosts[0].agent_pid().await, agent, "it never knew");
    assert_eq!(settled(&fleet, IN_TIME).await, FIRST);
}

#[tokio::test]
async fn s33_below_what_was_here_only_by_a_directive() {
    let versions = Versions::new();
    let fleet = Fleet::start(trusting(&versions)).await;
    for version in ["1.2.0", "1.1.0"] {
        versions.publish(&fleet, version, &versions.package(version));
    }
    let up = told(&fleet, upgrade("1.2.0")).await;
    assert_eq!(up.state, "succeeded", "{up:#?}");
    let down = told(&fleet, upgrade("1.1.0")).await;
    assert_eq!(down.code, "package_refused", "{down:#?}");
    assert!(down.message.contains("older than 1.2.0"), "{down:#?}");
    assert_eq!(settled(&fleet, IN_TIME).await, "1.2.0");
    let directed = Action::UpgradeAgent {
        version: "1.1.0".to_owned(),
        manifest: String::new(),
        allow_older: true,
    };
    let down = told(&fleet, directed).await;
    assert_eq!(down.state, "succeeded", "{down:#?}");
    assert_eq!(settled(&fleet, IN_TIME).await, "1.1.0");
    // One who was directed down stays warned: the highest version is remembered.
    let up = told(&fleet, upgrade("1.2.0")).await;
    assert_eq!(up.state, "succeeded", "{up:#?}");
}

#[tokio::test]
async fn a_region_that_is_cut_off_serves_what_it_has() {
    let versions = Versions::new();
    let late = versions.beside();
    let options = trusting(&versions)
        .hosts(&["box", "late"])
        .agent_program_of("late", late.supervisor());
    let mut fleet = Fleet::start(options).await;
    versions.publish(&fleet, "1.1.0", &versions.package("1.1.0"));
    fleet.hosts[1].kill();
    fleet.api.host_is("late", "offline", IN_TIME).await;
    let begun = fleet.api.begin("late", upgrade("1.1.0")).await;
    let first = told(&fleet, upgrade("1.1.0")).await;
    assert_eq!(first.state, "succeeded", "{first:#?}");
    // In the region's hands, and with it the package.
    wait_for("the region has the command", IN_TIME, async || {
        let region = fleet.api.region("local").await;
        match region.map_err(|no| no.to_string())?.orders_waiting {
            0 => Ok(()),
            waiting => Err(format!("{waiting} orders wait")),
        }
    })
    .await;
    fleet.controller.kill();
    fleet.hosts[1].start();
    wait_for(
        "the second host has the version",
        ENDED_WITHIN,
        async || match late.linked("current") {
            version if version == "1.1.0" => Ok(()),
            version => Err(format!(
                "{version}: {}",
                fleet.hosts[1].supervisor.last_words()
            )),
        },
    )
    .await;
    fleet.controller.start_again();
    let ended = fleet.api.ended(&begun.id, ENDED_WITHIN).await;
    assert_eq!(ended.state, "succeeded", "{ended:#?}");
}

#[tokio::test]
async fn whoever_dies_meanwhile_the_end_of_the_command_is_true() {
    let versions = Versions::new();
    let fleet = Fleet::start(trusting(&versions)).await;
    let names = Names::new();
    let web = names.polite("web");
    for (round, phase) in ["proving", "draining", "proving"].into_iter().enumerate() {
        let version = format!("1.{}.0", round + 1);
        versions.publish(&fleet, &version, &versions.package(&version));
        let begun = fleet.begin(upgrade(&version)).await;
        let first = settled_pid(&fleet);
        wait_for("the upgrade is under way", IN_TIME, async || {
            let status = fleet.hosts[0].status().unwrap_or_default();
            if status["phase"] == phase || versions.linked("current") == version {
                Ok(())
            } else {
                Err(status.to_string())
            }
        })
        .await;
        // The instance that has the command.
        if let Some(pid) = first {
            send(pid, Signal::KILL);
        }
        let ended = fleet.api.ended(&begun.id, ENDED_WITHIN).await;
        let now = settled(&fleet, OWNED_AGAIN_WITHIN).await;
        match ended.state.as_str() {
            "succeeded" => assert_eq!(now, version, "{ended:#?}"),
            "failed" => {
                assert_ne!(now, version, "{ended:#?}");
                assert_eq!(ended.code, "upgrade_returned", "{ended:#?}");
            }
            _ => panic!("{ended:#?}"),
        }
        println!("killed while {phase}: {} {}", ended.state, ended.message);
        fleet.done(restart(&web)).await;
    }
    assert_eq!(engine::count(&web, "restart"), 3);
}

fn settled_pid(fleet: &Fleet) -> Option<u32> {
    fleet.hosts[0].agent()
}
