//! The token: taken from environment, file or standard input, and shown to nobody.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::process::Stdio;

use fairlead_tests::programs;

use super::kit::{Host, Repository, SECRET, TOKEN, shells, words};
use super::trees::tree;

const AT: &str = "/etc/fairlead/join-token";

#[test]
fn a_token_comes_by_environment_file_or_standard_input_and_is_kept_for_root_alone() {
    let repository = Repository::new();
    let file = repository.path().join("token");
    for shell in shells() {
        let host = Host::new();
        host.install(shell, &repository, &[]).with_token().ok();
        assert_eq!(host.read(AT), format!("{TOKEN}\n"));
        let about = fs::metadata(host.path(AT)).unwrap();
        assert_eq!(about.mode() & 0o7777, 0o600);

        let host = Host::new();
        fs::write(&file, format!("{TOKEN}\n")).unwrap();
        let mut run = host.install(shell, &repository, &["--token-file"]);
        run.command.arg(&file);
        run.ok();
        assert_eq!(host.read(AT), format!("{TOKEN}\n"));

        let host = Host::new();
        let mut run = host.install(shell, &repository, &["--token-file", "-"]);
        let mut child = run
            .command
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(TOKEN.as_bytes())
            .unwrap();
        assert!(child.wait().unwrap().success());
        assert_eq!(host.read(AT), format!("{TOKEN}\n"));
    }
}

#[test]
fn what_is_no_join_token_is_refused_before_anything_is_done_and_never_repeated() {
    let repository = Repository::new();
    let corpus = [
        (
            "FA1abcdefghij.abcdefghijkmnpqrstuvwxyz23456789".to_owned(),
            "installer_api_token",
        ),
        ("hello".to_owned(), "installer_token"),
        (TOKEN[..TOKEN.len() - 1].to_owned(), "installer_token"),
        (format!("{TOKEN}x"), "installer_token"),
        (format!("{TOKEN}\n{TOKEN}"), "installer_token"),
        (format!("'{TOKEN}'"), "installer_token"),
        (format!("\"{TOKEN}\""), "installer_token"),
        (TOKEN.replace("::", ":"), "installer_token"),
        (
            TOKEN.replace("abcdefghij.", "abcdefghi\r\n."),
            "installer_token",
        ),
        (
            TOKEN.replace("abcdefghij.", "$(touch a)."),
            "installer_token",
        ),
        (
            TOKEN.replace("abcdefghij.", "`touch a`x."),
            "installer_token",
        ),
        (
            TOKEN.replace("abcdefghij.", "';touch a;'"),
            "installer_token",
        ),
        (
            TOKEN.replace("abcdefghij.", "aaaa\u{e4}aaa."),
            "installer_token",
        ),
        (TOKEN.replace("abcdefghij", "ABCDEFGHIJ"), "installer_token"),
        (format!("{TOKEN} --uninstall"), "installer_token"),
        (format!("FL1{}", "f".repeat(100_000)), "installer_token"),
    ];
    for shell in shells() {
        let host = Host::new();
        let before = tree(&host.root());
        for (token, code) in &corpus {
            let run = host
                .install(shell, &repository, &[])
                .env("FAIRLEAD_JOIN_TOKEN", token);
            let said = run.refused(2, code);
            assert!(
                !said.contains("23456789"),
                "{shell:?}: it repeats the secret: {said}"
            );
        }
        assert_eq!(tree(&host.root()), before, "{shell:?} did something");
        assert_eq!(host.recorded(), "");
    }
}

#[test]
fn blanks_and_line_ends_that_copying_adds_are_no_part_of_a_token() {
    let repository = Repository::new();
    for shell in shells() {
        for around in [
            format!(" {TOKEN}"),
            format!("{TOKEN}\r\n"),
            format!("\n\t{TOKEN} \n"),
        ] {
            let host = Host::new();
            host.install(shell, &repository, &[])
                .env("FAIRLEAD_JOIN_TOKEN", &around)
                .ok();
            assert_eq!(host.read(AT), format!("{TOKEN}\n"), "{shell:?} {around:?}");
        }
    }
}

#[test]
fn a_token_among_the_arguments_is_refused_and_told_to_be_revoked() {
    let repository = Repository::new();
    let host = Host::new();
    let in_one_word = format!("--token={TOKEN}");
    for args in [
        &[TOKEN][..],
        &["--token-file", TOKEN],
        &[&in_one_word],
        &["--host-name", "FA1abc"],
    ] {
        let said = host
            .install(&["sh"], &repository, args)
            .refused(2, "installer_token_in_arguments");
        assert!(
            said.contains("revoke it") && !said.contains(SECRET),
            "{said}"
        );
    }
    let mut run = host.install(&["sh"], &repository, &[]);
    run.command
        .env_remove("FAIRLEAD_JOIN_TOKEN")
        .args(["--token-file", "/nonexistent/token"]);
    run.refused(2, "installer_token_file");
}

#[test]
fn no_program_that_the_script_starts_is_told_the_token() {
    let repository = Repository::new();
    let spies = tempfile::tempdir().unwrap();
    let told = spies.path().join("told");
    let path = std::env::var_os("PATH").unwrap();
    let tools = spies.path().join("tools");
    fs::create_dir(&tools).unwrap();
    let mut seen = Vec::new();
    for folder in std::env::split_paths(&path) {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let name = entry.file_name().into_string().unwrap();
            let real = entry.path();
            if !real.is_file() || seen.contains(&name) {
                continue;
            }
            let spy = tools.join(&name);
            // Arguments and environment, as everybody sees the one and root the other.
            let text = format!(
                "#!/bin/sh\n{{ echo \"{name} $*\"; export -p; }} >>'{}'\nexec '{}' \"$@\"\n",
                told.display(),
                real.display()
            );
            programs::write(&spy, text.as_bytes());
            seen.push(name);
        }
    }
    // Busybox would not go through the path.
    for shell in shells().into_iter().filter(|shell| shell.len() == 1) {
        let host = Host::new();
        let mut run = host
            .install(shell, &repository, &[])
            .with_token()
            .env("PATH", &tools);
        let output = run.output();
        assert!(output.status.success(), "{}", words(&output));
        assert!(!words(&output).contains(SECRET));
        let told_text = fs::read_to_string(&told).unwrap();
        assert!(told_text.contains("sha256sum"), "the spies were asked");
        assert!(!told_text.contains(SECRET), "somebody was told the token");
        fs::remove_file(&told).unwrap();
        assert!(!host.recorded().contains(SECRET));
    }
}

#[test]
fn what_else_comes_from_outside_stays_words() {
    let repository = Repository::new();
    let host = Host::new();
    let before = tree(&host.root());
    for (flag, value) in [
        ("--address", "a1.example.com"),
        ("--address", "$(touch a):1"),
        ("--address", "a:1,b:99999"),
        ("--address", "a:1,,b:2"),
        ("--address", "a:1' X='y"),
        ("--host-name", "a b"),
        ("--host-name", "a'b"),
        ("--version", "../../etc"),
        ("--version", "1"),
        ("--channel", "../stable"),
        ("--prefix", "/opt/../etc"),
        ("--prefix", "relative"),
        ("--prefix", "/opt/a b"),
        ("--prefix", "/opt/a\nExecStartPre=/bin/sh"),
        ("--engine-socket", "/run/x'; id"),
        ("--pin", "sha256//$(id)"),
        ("--init", "upstart"),
        ("--nonsense", "x"),
        ("--purge", "--quiet"),
    ] {
        let output = host
            .install(&["sh"], &repository, &[flag, value])
            .with_token()
            .output();
        assert_eq!(
            output.status.code(),
            Some(2),
            "{flag} {value}: {}",
            words(&output)
        );
    }
    for (key, value) in [
        ("HTTPS_PROXY", "http://u:p'x@proxy:3128"),
        ("HTTPS_PROXY", "http://proxy:3128\nX=y"),
        ("NO_PROXY", "a'b"),
        ("FAIRLEAD_ADDRESS", "`id`"),
    ] {
        let mut run = host.run(&["sh"], &repository.install_sh(), &[]);
        run.command
            .env("FAIRLEAD_ADDRESS", "127.0.0.1:1")
            .arg("--from")
            .arg(repository.path());
        let output = run.with_token().env(key, value).output();
        assert_eq!(
            output.status.code(),
            Some(2),
            "{key} {value}: {}",
            words(&output)
        );
    }
    assert_eq!(tree(&host.root()), before);
}
