//! The script as root of a small system: with systemd, with OpenRC, with neither.

use std::fs;
use std::time::{Duration, Instant};

use super::faulty::Server;
use super::kit::{Repository, SECRET, TOKEN, Wish, words};
use super::system::System;

/// Far below what the script waits for an agent that does not come up, and far above what the rest takes.
const NOT_THE_WHOLE_TIME: Duration = Duration::from_secs(28);

#[test]
fn the_line_installs_starts_and_joins_and_again_restarts_nothing() {
    let Some(system) = System::new("systemd") else {
        return;
    };
    let repository = Repository::new();
    let server = Server::start(repository.path(), Vec::new());
    let before = system.state();
    let began = Instant::now();
    let said = system.install(&server);
    assert!(
        began.elapsed() < NOT_THE_WHOLE_TIME,
        "{:?}",
        began.elapsed()
    );
    assert!(said.contains("fairlead-agent 0.2.0 runs on"), "{said}");
    assert!(said.contains("enrolled as box in region hz"), "{said}");
    assert!(said.contains("no Docker and no Podman socket"), "{said}");
    let calls = system.calls();
    for call in [
        "systemctl daemon-reload",
        "enable fairlead-agent",
        "start fairlead-agent",
    ] {
        assert!(calls.contains(call), "{call}: {calls}");
    }
    let identity = fs::read_to_string(system.path("/var/lib/fairlead-agent/identity")).unwrap();
    assert_eq!(
        identity.trim(),
        TOKEN,
        "the agent found the token in its file"
    );
    assert!(
        !system.path("/etc/fairlead/join-token").exists(),
        "used up, it goes"
    );

    let installed = system.state();
    let said = system.install(&server);
    assert!(said.contains("nothing of it changed"), "{said}");
    let calls = system.calls();
    assert!(
        !calls.contains("start ") && !calls.contains("reload"),
        "{calls}"
    );
    assert_eq!(system.state(), installed);

    // A new version is a restart; nothing else is done twice.
    repository.pack(&Wish {
        version: "0.3.0",
        ..Wish::default()
    });
    system.install(&server);
    let calls = system.calls();
    assert!(
        calls.contains("restart fairlead-agent") && !calls.contains("enable fairlead"),
        "{calls}"
    );

    let output = system.line(&server, "--uninstall");
    assert!(output.status.success(), "{}", words(&output));
    let calls = system.calls();
    let stopped = calls
        .find("disable --now fairlead-agent")
        .expect("it is stopped");
    let left = calls.find("fairlead-agent leave").expect("it leaves");
    assert!(
        stopped < left,
        "two with one identity are never at work: {calls}"
    );
    assert_eq!(system.state(), before);
}

#[test]
fn a_refused_token_is_said_in_the_agents_words() {
    let Some(system) = System::new("systemd") else {
        return;
    };
    let repository = Repository::new();
    let server = Server::start(repository.path(), Vec::new());
    fs::write(system.path("refuse"), "").unwrap();
    let began = Instant::now();
    let output = system.line(&server, "--address 127.0.0.1:1 --allow-unreachable");
    let said = words(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("(installer_not_enrolled)") && said.contains("the token was used up"),
        "{said}"
    );
    assert!(
        began.elapsed() < NOT_THE_WHOLE_TIME,
        "it does not wait for the whole time"
    );
    assert!(!said.contains(SECRET));

    // With a good one the same line goes on from there.
    fs::remove_file(system.path("refuse")).unwrap();
    system.install(&server);
}

#[test]
fn with_openrc_it_is_a_supervised_service() {
    let Some(system) = System::new("openrc") else {
        return;
    };
    let repository = Repository::new();
    let server = Server::start(repository.path(), Vec::new());
    fs::create_dir_all(system.path("var/log")).unwrap();
    let before = system.state();
    system.install(&server);
    let script = fs::read_to_string(system.path("/etc/init.d/fairlead-agent")).unwrap();
    for line in [
        "supervisor=supervise-daemon",
        "command=/opt/fairlead/supervisor/fairlead-agent",
        "respawn_max=0",
    ] {
        assert!(
            script.lines().any(|found| found == line),
            "{line}: {script}"
        );
    }
    let parsed =
        system.shell("sh -n /etc/init.d/fairlead-agent && test -x /etc/init.d/fairlead-agent");
    assert!(parsed.status.success(), "{}", words(&parsed));
    let calls = system.calls();
    assert!(
        calls.contains("rc-update --quiet add fairlead-agent default"),
        "{calls}"
    );
    assert!(
        calls.contains("rc-service --quiet fairlead-agent start"),
        "{calls}"
    );
    system.install(&server);
    let calls = system.calls();
    assert!(
        !calls.contains("start") && !calls.contains("rc-update"),
        "{calls}"
    );
    let output = system.line(&server, "--uninstall");
    assert!(output.status.success(), "{}", words(&output));
    assert_eq!(system.state(), before);
}

#[test]
fn without_an_init_system_it_says_how_to_start_it() {
    let Some(system) = System::new("none") else {
        return;
    };
    let repository = Repository::new();
    let server = Server::start(repository.path(), Vec::new());
    let before = system.state();
    let said = system.install(&server);
    assert!(
        said.contains("exec /opt/fairlead/supervisor/fairlead-agent supervise"),
        "{said}"
    );
    assert!(
        system.path("/etc/fairlead/join-token").is_file(),
        "whoever starts it needs the token"
    );
    let output = system.line(&server, "--uninstall");
    assert!(output.status.success(), "{}", words(&output));
    assert_eq!(system.state(), before);
}
