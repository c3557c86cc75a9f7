//! A version goes to a fleet, wave by wave, while commands run; one that does not work halts by itself; and it goes
//! on when the controller dies in the middle.

use std::path::Path;
use std::time::Duration;

use fairlead_api::types::{AgentVersion, Rollout, RolloutRequest};
use fairlead_tests::client::Refusal;
use fairlead_tests::engine::{self, Names};
use fairlead_tests::fleet::{Fleet, Options};
use fairlead_tests::programs::program;
use fairlead_tests::versions::{FIRST, Versions};
use fairlead_tests::wait::wait_for;

use super::{IN_TIME, options};
use crate::acts::restart;

/// Longest that three hosts may take, when nothing is wrong but the machine's being busy.
const OVER_WITHIN: Duration = Duration::from_secs(240);
const HOSTS: [&str; 3] = ["box", "second", "third"];

/// Three hosts, each with its own folder of versions.
struct Three {
    versions: Vec<Versions>,
}

impl Three {
    fn new() -> Self {
        let first = Versions::new();
        let (second, third) = (first.beside(), first.beside());
        Self {
            versions: vec![first, second, third],
        }
    }

    fn options(&self) -> Options {
        let mut options = options(&self.versions[0]).hosts(&HOSTS);
        for (host, versions) in HOSTS.iter().zip(&self.versions) {
            options = options.agent_program_of(host, versions.supervisor());
        }
        let trusted = self.versions[0].trusted();
        let both = ("FAIRLEAD_PACKAGE_KEYS".to_owned(), trusted);
        options.env.push(both);
        options
    }

    fn package(&self, version: &str) -> std::path::PathBuf {
        self.versions[0].package(version)
    }

    fn current(&self) -> Vec<String> {
        let all = self.versions.iter();
        all.map(|versions| versions.linked("current")).collect()
    }
}

async fn cli(fleet: &Fleet, words: &[&str]) -> (bool, String) {
    let mut command = tokio::process::Command::new(program("fairlead"));
    command
        .args(words)
        .env("FAIRLEAD_URL", &fleet.api.url)
        .env("FAIRLEAD_TOKEN", &fleet.api.token)
        .env("FAIRLEAD_CA", fleet.ca_file());
    let output = command.output().await.expect("the CLI runs");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    (output.status.success(), said)
}

async fn push(fleet: &Fleet, package: &Path) {
    let folder = package.to_string_lossy();
    let (done, said) = cli(fleet, &["agent", "push", &folder]).await;
    assert!(done, "{said}");
}

async fn begin(fleet: &Fleet, version: &str, between_s: u32) -> Result<Rollout, Refusal> {
    let request = RolloutRequest {
        version: version.to_owned(),
        between_s: Some(between_s),
        silent_s: Some(60),
        ..RolloutRequest::default()
    };
    fleet.api.post("agent/rollouts", &request).await
}

async fn shown(fleet: &Fleet, id: &str) -> Result<Rollout, String> {
    let path = format!("agent/rollouts/{id}");
    fleet
        .api
        .get(&path)
        .await
        .map_err(|no: Refusal| no.to_string())
}

async fn reaches(fleet: &Fleet, id: &str, state: &str) -> Rollout {
    wait_for(
        &format!("the rollout is {state}"),
        OVER_WITHIN,
        async || {
            let rollout = shown(fleet, id).await?;
            if rollout.state == state {
                Ok(rollout)
            } else {
                Err(format!("{rollout:#?}"))
            }
        },
    )
    .await
}

#[tokio::test]
async fn a_version_goes_over_three_hosts_while_commands_run() {
    let three = Three::new();
    let fleet = Fleet::start(three.options()).await;
    let names = Names::new();
    let web = names.polite("web");
    push(&fleet, &three.package("1.1.0")).await;
    let listed: Vec<AgentVersion> = fleet.api.get("agent/versions").await.expect("a list");
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].version.as_str(), listed[0].hosts), ("1.1.0", 0));

    let words = ["agent", "upgrade", "--to", "1.1.0", "--dry-run"];
    let (done, said) = cli(&fleet, &words).await;
    assert!(done && said.contains("wave 1: 1 hosts"), "{said}");
    assert!(said.contains("wave 2: 2 hosts"), "{said}");
    assert_eq!(three.current(), [FIRST; 3], "that was dry");

    let words = ["agent", "upgrade", "--to", "1.1.0", "--between", "1s"];
    let following = cli(&fleet, &words);
    let mut restarts = 0;
    let acting = async {
        while three.current() != ["1.1.0"; 3] && restarts < 400 {
            let host = HOSTS[restarts % HOSTS.len()];
            fleet.api.done(host, restart(&web)).await;
            restarts += 1;
        }
    };
    let ((done, said), ()) = tokio::join!(following, acting);
    assert!(done, "{said}");
    assert!(said.contains("finished"), "{said}");
    for host in HOSTS {
        assert!(said.contains(&format!("{host}  done")), "{said}");
    }
    println!("{restarts} restarts meanwhile");
    assert!(restarts > 0);
    assert_eq!(engine::count(&web, "restart"), restarts, "each once");
    assert_eq!(three.current(), ["1.1.0"; 3]);
    let (done, said) = cli(&fleet, &["agent", "upgrade", "ls"]).await;
    assert!(done && said.contains("finished"), "{said}");
    let again = begin(&fleet, "1.1.0", 1).await;
    assert_eq!(again.expect_err("all have it").code, "invalid_request");
}

#[tokio::test]
async fn a_version_that_does_not_start_halts_and_every_host_is_on_the_old_one() {
    let three = Three::new();
    let fleet = Fleet::start(three.options()).await;
    let broken = three.versions[0].pretender("2.0.0", "exit 3");
    push(&fleet, &broken).await;
    let begun = begin(&fleet, "2.0.0", 1).await.expect("it begins");
    let halted = reaches(&fleet, &begun.id, "halted").await;
    assert!(halted.reason.contains("exit code 3"), "{halted:#?}");
    let states: Vec<&str> = halted
        .hosts
        .iter()
        .map(|host| host.state.as_str())
        .collect();
    assert_eq!(states, ["failed", "waiting", "waiting"], "{halted:#?}");
    assert_eq!(three.current(), [FIRST; 3]);
    let (done, said) = cli(&fleet, &["agent", "upgrade", "watch", &begun.id]).await;
    assert!(!done && said.contains("halted"), "{said}");
    // The command's end and the host's facts come by themselves.
    let last = wait_for("the host says from what it returned", IN_TIME, async || {
        let host = fleet.api.host(&halted.hosts[0].host).await;
        let facts = host.map_err(|no| no.to_string())?.facts;
        let versions = facts.and_then(|facts| facts.versions);
        versions
            .and_then(|versions| versions.last_return)
            .ok_or("of none".to_owned())
    })
    .await;
    assert_eq!(last.from, "2.0.0");
    let (done, said) = cli(&fleet, &["agent", "upgrade", "abort", &begun.id]).await;
    assert!(done, "{said}");
    assert_eq!(shown(&fleet, &begun.id).await.expect("it").state, "aborted");
}

#[tokio::test]
async fn the_controller_dies_in_the_middle_and_a_host_that_was_away_follows() {
    let three = Three::new();
    let mut fleet = Fleet::start(three.options()).await;
    push(&fleet, &three.package("1.1.0")).await;
    fleet.hosts[2].kill();
    fleet.api.host_is(HOSTS[2], "offline", IN_TIME).await;
    let begun = begin(&fleet, "1.1.0", 3).await.expect("it begins");
    wait_for("a host was asked", IN_TIME, async || {
        let rollout = shown(&fleet, &begun.id).await?;
        let asked = rollout.hosts.iter().any(|host| host.state == "asked");
        if asked {
            Ok(())
        } else {
            Err(format!("{rollout:#?}"))
        }
    })
    .await;
    fleet.controller.kill();
    fleet.controller.start_again();
    let trailing = reaches(&fleet, &begun.id, "trailing").await;
    let done = trailing
        .hosts
        .iter()
        .filter(|host| host.state == "done")
        .count();
    assert_eq!(done, 2, "{trailing:#?}");
    assert_eq!(three.current(), ["1.1.0", "1.1.0", FIRST]);
    fleet.hosts[2].start();
    let finished = reaches(&fleet, &begun.id, "finished").await;
    assert!(
        finished.hosts.iter().all(|host| host.state == "done"),
        "{finished:#?}"
    );
    assert_eq!(three.current(), ["1.1.0"; 3]);
}
