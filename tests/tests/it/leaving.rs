//! How a host leaves: its agent takes itself off, its identity ends, and nothing else is touched.
//!
//! Holds: issue 3, `host rm --uninstall`; the file tree of a machine is as it was before; what the owner
//! forbids is not done; a host that is away keeps its identity until it has answered.

use std::time::Duration;

use fairlead_api::types::{Action, JoinTokenRequest};
use fairlead_tests::client::request;
use fairlead_tests::fleet::{Fleet, Options, START_WITHIN};
use fairlead_tests::hosts::{Hosts, TestHost};
use fairlead_tests::process::Process;
use fairlead_tests::programs::program;
use fairlead_tests::wait::wait_for;
use tokio::net::TcpListener;

use crate::cli::Cli;
use crate::line::{owners_things, shop};
use crate::servers::{Servers, ran};

const SOON: Duration = Duration::from_secs(60);

/// Everything of the agent's is gone: the last that goes is the state.
async fn is_gone(host: &TestHost) {
    wait_for("the agent has taken itself off", SOON, async || {
        let left = host
            .exec(
                "ls -d /opt/fairlead /var/lib/fairlead-agent /usr/local/bin/fairlead-agent \
                 /etc/systemd/system/fairlead-agent.service 2>/dev/null; pgrep -a fairlead-agent; \
                 systemctl is-active fairlead-uninstall | grep -x active; \
                 ps -eo args | grep '[-]-uninstall'",
            )
            .await
            .stdout;
        if left.is_empty() {
            Ok(())
        } else {
            let log = host.exec("journalctl -n 30 -o cat --no-pager").await.stdout;
            Err(format!("{left}\n{log}"))
        }
    })
    .await;
}

#[tokio::test]
async fn an_agent_takes_itself_off_and_leaves_the_machine_as_it_was() {
    let Some(hosts) = Hosts::here().await else {
        return;
    };
    let vm = hosts.start("vm").await;
    shop(&vm).await;
    let before = (owners_things(&vm).await, vm.snapshot_files().await);
    let servers = Servers::install(&hosts).await;
    ran(&vm, &servers.line).await;
    servers.host_is("vm", "online").await;
    let token = vm.exec("ls /etc/fairlead/join-token").await;
    assert_ne!(token.code, 0, "the used token is gone");
    // A copy of the identity, as a backup would have it.
    ran(
        &vm,
        "mkdir -p /var/tmp/copy && \
         cp /var/lib/fairlead-agent/identity /opt/fairlead/current/fairlead-agent /var/tmp/copy/",
    )
    .await;

    // The owner's no comes first.
    vm.write_file(
        "/etc/fairlead/policy.toml",
        0o644,
        b"forbid_uninstall = true\n",
    )
    .await;
    let no = servers.host.exec("fairlead host rm vm --uninstall").await;
    assert_eq!(no.code, 4, "{}{}", no.stdout, no.stderr);
    assert!(no.stderr.contains("forbid_uninstall"), "{}", no.stderr);
    servers.host_is("vm", "online").await;
    ran(&vm, "rm /etc/fairlead/policy.toml").await;

    let yes = ran(&servers.host, "fairlead host rm vm --uninstall").await;
    assert!(yes.stdout.contains("identity has ended"), "{}", yes.stdout);
    let known = servers.host.says("fairlead host ls").await;
    assert!(!known.contains("vm"), "at once: {known}");
    is_gone(&vm).await;
    let left = before.1.difference(&vm.snapshot_files().await);
    assert_eq!(left, Vec::<String>::new(), "files");
    assert_eq!(owners_things(&vm).await, before.0, "nothing was touched");
    let audit = servers.host.says("fairlead audit").await;
    assert!(audit.contains("command.uninstall-agent"), "{audit}");
    assert!(audit.contains("host.revoke"), "{audit}");

    // Whoever has a copy of the identity is refused.
    ran(
        &vm,
        "cd /var/tmp/copy; ./fairlead-agent supervise --state-dir . --policy /none >log 2>&1 & \
         echo $! >/var/tmp/copy/pid",
    )
    .await;
    wait_for("the copy is refused", SOON, async || {
        let said = vm.exec("cat /var/tmp/copy/log").await.stdout;
        if said.contains("(revoked)") {
            Ok(())
        } else {
            Err(said)
        }
    })
    .await;
    ran(
        &vm,
        "kill $(cat /var/tmp/copy/pid); while pgrep fairlead-agent; do :; done",
    )
    .await;

    // Where nothing supervises: the same from a supervisor that somebody started by hand.
    let line = servers.host.says("fairlead host add --no-wait").await;
    let line = line.replace("sh -s --", "sh -s -- --init none --no-start");
    ran(&vm, &line).await;
    ran(
        &vm,
        "set -a; . /etc/fairlead/agent.env; set +a; \
         setsid /opt/fairlead/supervisor/fairlead-agent supervise </dev/null >/run/agent.log 2>&1 &",
    )
    .await;
    servers.host_is("vm", "online").await;
    ran(&servers.host, "fairlead host rm vm --uninstall").await;
    is_gone(&vm).await;
    let left = before.1.difference(&vm.snapshot_files().await);
    assert_eq!(left, Vec::<String>::new(), "files, without a service");
    assert_eq!(owners_things(&vm).await, before.0, "nothing was touched");
}

#[tokio::test]
async fn what_cannot_be_taken_off_stays_a_host() {
    let fleet = Fleet::start(Options::simulated()).await;
    let no = fleet.act(Action::UninstallAgent {}).await;
    assert_eq!(
        (&no.state[..], &no.code[..]),
        ("failed", "cannot_uninstall")
    );
    assert!(no.message.contains("install.sh"), "{}", no.message);
    assert!(!fleet.hosts[0].dir.join("uninstall").exists());
    fleet.done(Action::Ping {}).await;

    // Without a host's name it is no request, however few there are.
    let mut nameless = request("box", Action::UninstallAgent {});
    nameless.host = None;
    let refused = fleet.api.submit(&nameless, Duration::ZERO).await;
    assert_eq!(refused.unwrap_err().code, "invalid_request");
}

#[tokio::test]
async fn a_host_that_is_away_keeps_its_identity_until_it_has_answered() {
    let mut fleet = Fleet::start(Options::simulated()).await;
    fleet.hosts[0].kill();
    fleet.api.host_is("box", "offline", SOON).await;
    let cli = Cli::of(&fleet);
    let words = ["host", "rm", "box", "--uninstall", "--deadline", "1s"];
    let said = cli.says(&words).await;
    assert_eq!(said.code, 7, "{}{}", said.out, said.err);
    assert!(said.err.contains("box is offline"), "{}", said.err);
    assert!(said.err.contains("fairlead host rm box"), "{}", said.err);
    fleet.hosts[0].start();
    fleet.online("box").await;
    fleet.done(Action::Ping {}).await;

    // Machines that do not return: only those that are silent for so long.
    let long = ["host", "rm", "--offline-for", "30d"];
    let said = cli.says(&long).await;
    assert!(said.err.contains("no host has been away"), "{}", said.err);
    fleet.hosts[0].kill();
    fleet.api.host_is("box", "offline", SOON).await;
    let said = cli.says(&long).await;
    assert_eq!(said.code, 0, "{}", said.err);
    fleet.api.host_is("box", "offline", SOON).await;
    wait_for("it has been away for a second", SOON, async || {
        let said = cli.says(&["host", "rm", "--offline-for", "1s"]).await;
        if said.err.contains("box: identity revoked") {
            Ok(())
        } else {
            Err(said.err)
        }
    })
    .await;
    fleet.hosts[0].start();
    fleet.hosts[0].supervisor.says("(revoked)", SOON).await;
}

#[tokio::test]
async fn each_copy_of_a_prepared_image_becomes_a_host_of_its_own() {
    let mut fleet = Fleet::start(Options::simulated()).await;
    let golden = fleet.hosts[0].dir.clone();
    let prepare = async || {
        let mut command = tokio::process::Command::new(program("fairlead-agent"));
        command.arg("prepare-image").arg("--state-dir").arg(&golden);
        let said = command.output().await.unwrap();
        let words = [said.stdout, said.stderr].concat();
        (said.status.code(), String::from_utf8(words).unwrap())
    };
    let (code, said) = prepare().await;
    assert!(code == Some(1) && said.contains("stop it first"), "{said}");
    fleet.online("box").await;
    fleet.hosts[0].kill();
    let (code, said) = prepare().await;
    assert!(code == Some(0) && said.contains("--uses"), "{said}");

    let token = JoinTokenRequest {
        uses: Some(2),
        ..JoinTokenRequest::default()
    };
    let token = fleet.api.new_join_token(&token).await.unwrap().token;
    let address = fleet.regions[0].dialled_at();
    let first = fleet.api.host("box").await.unwrap().id;
    let mut ids = vec![first];
    let mut copies = Vec::new();
    for name in ["copy-a", "copy-b"] {
        let dir = fleet.dir().join(name);
        let copied = tokio::process::Command::new("cp")
            .arg("-a")
            .args([&golden, &dir])
            .status();
        assert!(copied.await.unwrap().success());
        let file = fleet.secret_file(&format!("{name}.token"), &token);
        copies.push(fleet.start_host_in(name, dir, &address, Some(&file)));
        fleet.online(name).await;
        ids.push(fleet.api.host(name).await.unwrap().id);
    }
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 3, "no two of them are one host");
    assert_eq!(fleet.api.hosts().await.unwrap().len(), 3, "nor a clone");
}

#[tokio::test]
async fn no_supervisor_begins_while_a_host_leaves() {
    let mut fleet = Fleet::start(Options::simulated()).await;
    fleet.hosts[0].kill();
    // Leaving takes as long as this proxy says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = format!("http://{}", silent.local_addr().unwrap());
    let state_dir = fleet.hosts[0].dir.clone();
    let mut leaves = Process::start(
        "leave",
        program("fairlead-agent"),
        vec![
            "leave".into(),
            "--state-dir".into(),
            state_dir.clone().into(),
        ],
        vec![
            ("HTTPS_PROXY".to_owned(), proxy),
            ("NO_PROXY".to_owned(), String::new()),
        ],
        fleet.dir().join("leave.log"),
    );
    let held = tokio::time::timeout(START_WITHIN, silent.accept()).await;
    let (connection, _) = held.expect("it dials").unwrap();
    fleet.hosts[0].start();
    let refused = &mut fleet.hosts[0].supervisor;
    refused.says("another supervisor", START_WITHIN).await;
    wait_for("the supervisor ends", START_WITHIN, async || {
        refused
            .ended()
            .map(drop)
            .ok_or_else(|| "it runs".to_owned())
    })
    .await;
    assert!(
        leaves.ended().is_none(),
        "it was still at it: {}",
        leaves.said()
    );
    drop((connection, silent));
    wait_for("leaving fails", START_WITHIN, async || {
        leaves.ended().map(drop).ok_or_else(|| "it runs".to_owned())
    })
    .await;
    assert!(
        leaves.said().contains("no access server could be told"),
        "{}",
        leaves.said()
    );
    assert!(state_dir.join("identity").exists(), "nothing was changed");
    // The right is free again.
    fleet.hosts[0].start();
    fleet.online("box").await;
}
