//! What the machine and the caller's environment may do to the script, and what is said of it.

use std::fs;
use std::os::unix::net::UnixListener;

use fairlead_tests::programs;

use super::kit::{Host, Repository, TOKEN};

#[test]
fn a_host_name_is_printed_without_what_moves_a_terminal() {
    let repository = Repository::new();
    let tools = tempfile::tempdir().unwrap();
    let uname = tools.path().join("uname");
    programs::write(
        &uname,
        b"#!/bin/sh\ncase $1 in\n-n) printf 'web\\033[2J7\\n' ;;\n-m) echo x86_64 ;;\n*) echo Linux ;;\nesac\n",
    );
    let path = format!(
        "{}:{}",
        tools.path().display(),
        std::env::var("PATH").unwrap()
    );
    let host = Host::new();
    let run = |path: &str| {
        host.install(&["sh"], &repository, &["--dry-run"])
            .env("PATH", path)
    };
    let said = run(&path).with_token().ok();
    assert!(said.contains("preflight on web??2J7"), "{said}");
    let said = run(&path)
        .env("FAIRLEAD_JOIN_TOKEN", "FA1x")
        .refused(2, "installer_api_token");
    assert!(
        said.contains("host: web?") && !said.contains('\x1b'),
        "{said:?}"
    );
}

#[test]
fn every_code_word_is_in_the_guide() {
    let script = super::kit::script();
    let guide = include_str!("../../../../docs/guide/install.md");
    let mut codes = 0;
    for rest in script.split("installer_").skip(1) {
        let code: String = rest
            .chars()
            .take_while(|c| c.is_ascii_lowercase() || *c == '_')
            .collect();
        codes += 1;
        assert!(guide.contains(&format!("`installer_{code}`")), "{code}");
    }
    assert!(codes > 100, "{codes}");
}

#[test]
fn the_callers_options_for_tar_are_not_the_scripts() {
    let repository = Repository::new();
    let mark = tempfile::tempdir().unwrap();
    let mark = mark.path().join("executed");
    let bundle = repository.bundle("0.2.0");
    let host = Host::new();
    host.run(
        &["sh"],
        &repository.install_sh(),
        &[
            "--address",
            "127.0.0.1:1",
            "--bundle",
            bundle.to_str().unwrap(),
        ],
    )
    .with_token()
    .env(
        "TAR_OPTIONS",
        format!(
            "--checkpoint=1 --checkpoint-action=exec=touch\\ {}",
            mark.display()
        ),
    )
    .env("GREP_OPTIONS", "-v")
    .ok();
    assert!(!mark.exists());
}

#[test]
fn a_page_in_a_folder_is_told_with_a_way_out_that_can_be_gone() {
    let repository = Repository::new();
    fs::write(repository.file("0.2.0/manifest"), "<html>Log in</html>").unwrap();
    let said = Host::new()
        .install(&["sh"], &repository, &[])
        .with_token()
        .refused(1, "installer_web_page");
    assert!(said.contains("past the portal"), "{said}");
}

#[test]
fn the_engines_socket_that_was_named_is_the_one_that_is_tried() {
    let repository = Repository::new();
    let host = Host::new();
    fs::create_dir_all(host.path("/var/run")).unwrap();
    let docker = UnixListener::bind(host.path("/var/run/docker.sock")).unwrap();
    let said = host.install(&["sh"], &repository, &[]).with_token().ok();
    assert!(
        said.contains("Docker's socket /var/run/docker.sock"),
        "{said}"
    );
    host.join();
    let missing = "there is no socket /run/other.sock";
    let said = host
        .install(
            &["sh"],
            &repository,
            &["--engine-socket", "/run/other.sock"],
        )
        .ok();
    assert!(said.contains(missing), "named now: {said}");
    let said = host.install(&["sh"], &repository, &[]).ok();
    assert!(said.contains(missing), "named before: {said}");
    drop(docker);
}

#[test]
fn a_token_of_another_installation_is_told_to_a_host_that_has_joined() {
    let repository = Repository::new();
    let host = Host::new();
    host.install(&["sh"], &repository, &[]).with_token().ok();
    host.join();
    let said = host.install(&["sh"], &repository, &[]).with_token().ok();
    assert!(said.contains("has joined already"), "{said}");
    let another = TOKEN.replace(&TOKEN[3..67], &"ab".repeat(32));
    let before = super::trees::tree(&host.root());
    let said = host
        .install(&["sh"], &repository, &[])
        .env("FAIRLEAD_JOIN_TOKEN", &another)
        .refused(1, "ca_mismatch");
    assert!(said.contains("--re-enrol"), "{said}");
    assert_eq!(super::trees::tree(&host.root()), before);
    // And that is the way.
    host.install(&["sh"], &repository, &["--re-enrol"])
        .env("FAIRLEAD_JOIN_TOKEN", &another)
        .ok();
}
