//! The servers' line run again, with other words: what it waits for, what it takes back, what it refuses.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use super::kit::{Repository, words};
use super::system::System;

/// The door to the outside answers at the third time, and not while `/deaf` is there.
const CURL: &str = r#"#!/bin/sh
case "$*" in
*fleet.example.com:*/readyz*)
    echo "$*" >>/asked
    [ ! -e /deaf ] && [ "$(wc -l </asked)" -gt 2 ] ;;
*readyz*) ;;
*) exit 7 ;;
esac
"#;

const SETTINGS: [&str; 2] = [
    "/etc/fairlead/controller.env",
    "/etc/fairlead/access-server.env",
];

fn prepared() -> Option<System> {
    let system = System::new("systemd")?;
    system.openssl();
    system.tool("curl", CURL);
    let repository = Repository::new();
    let copied = Command::new("cp")
        .arg("-r")
        .arg(repository.path())
        .arg(system.path("/srv"))
        .status()
        .unwrap();
    assert!(copied.success());
    fs::set_permissions(system.path("/srv"), fs::Permissions::from_mode(0o755)).unwrap();
    Some(system)
}

fn line(system: &System, args: &str) -> Output {
    system.shell(&format!(
        "FAIRLEAD_WAIT_S=2 sh /srv/install.sh server {args} --from /srv"
    ))
}

fn settings(system: &System) -> Vec<String> {
    let read = |path: &str| fs::read_to_string(system.path(path)).unwrap();
    SETTINGS.iter().map(|path| read(path)).collect()
}

fn asked(system: &System) -> usize {
    let path = system.path("/asked");
    let lines = fs::read_to_string(&path)
        .unwrap_or_default()
        .lines()
        .count();
    let _ = fs::remove_file(Path::new(&path));
    lines
}

#[test]
fn the_line_ends_when_the_door_answers_and_settings_with_which_it_never_does_are_taken_back() {
    let Some(system) = prepared() else {
        return;
    };
    let first = "--name fleet.example.com --port 8443";
    let output = line(&system, first);
    assert!(output.status.success(), "{}", words(&output));
    assert_eq!(asked(&system), 3, "until it answers");
    assert!(words(&output).contains("--address fleet.example.com:8443"));

    // Again it is asked, although nothing is restarted; the port need not be said.
    let output = line(&system, "--name fleet.example.com");
    assert!(output.status.success(), "{}", words(&output));
    assert_eq!(asked(&system), 3);

    let before = settings(&system);
    let _ = system.calls();
    fs::write(system.path("/deaf"), "").unwrap();
    let acme = format!("{first} --certificate acme --acme-agree-tos");
    let output = line(&system, &acme);
    let said = words(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for wanted in [
        "(installer_not_started)",
        "does not answer at port 8443",
        "its settings are as they were before",
    ] {
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
    assert_eq!(settings(&system), before);
    let calls = system.calls();
    assert!(
        calls.contains("restart fairlead-controller fairlead-access-server"),
        "with the old settings: {calls}"
    );
    let left = fs::read_dir(system.path("/etc/fairlead")).unwrap().count();
    assert_eq!(left, 2, "the settings and nothing else");
}

#[test]
fn another_name_port_or_region_is_refused_before_anything_is_changed() {
    let Some(system) = prepared() else {
        return;
    };
    let output = line(&system, "--name fleet.example.com --region hz");
    assert!(output.status.success(), "{}", words(&output));
    let before = system.state();
    for (args, code, advice) in [
        (
            "--name other.example.com",
            "(installer_other_name)",
            "--name fleet.example.com --port 443",
        ),
        (
            "--name fleet.example.com --port 8443",
            "(installer_other_name)",
            "--name fleet.example.com --port 443",
        ),
        (
            "--name fleet.example.com --region other",
            "(installer_other_region)",
            "fairlead region add other",
        ),
    ] {
        let output = line(&system, args);
        let said = words(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(code) && said.contains(advice), "{said}");
        assert_eq!(system.state(), before, "{args}");
    }
    // Left out, it is the region that is here.
    let output = line(&system, "--name fleet.example.com");
    assert!(output.status.success(), "{}", words(&output));
    let _ = asked(&system);
}
