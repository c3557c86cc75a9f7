//! What is not genuine, not whole or not there is refused in words, and nothing of it is left or run.

use std::fs;
use std::os::unix::process::CommandExt;
use std::time::{Duration, Instant};

use fairlead_tests::disk::Disk;

use super::faulty::{Fault, Server, TlsServer};
use super::kit::{Host, Repository, Wish, here, shells};
use super::trees::tree;

/// Installs from a server with faults; it must be refused, with that code, and leave no trace.
fn refused(faults: Vec<(&'static str, Fault)>, code: &str) -> String {
    let repository = Repository::new();
    let server = Server::start(repository.path(), faults);
    let mut said = String::new();
    for shell in shells() {
        let host = Host::new();
        let before = tree(&host.root());
        said = host
            .run(
                shell,
                &repository.install_sh(),
                &["--address", "127.0.0.1:1"],
            )
            .with_token()
            .env("FAIRLEAD_FROM", server.url())
            .env("FAIRLEAD_DOWNLOAD_TIMEOUT_S", "30")
            .refused(1, code);
        assert_eq!(tree(&host.root()), before, "{shell:?} left something");
        assert_eq!(host.recorded(), "", "{shell:?} ran what was not checked");
    }
    said
}

#[test]
fn a_program_that_is_not_what_the_manifest_says_is_refused() {
    refused(
        vec![
            ("/fairlead-agent-linux-x86_64", Fault::Changed),
            ("/fairlead-agent-linux-aarch64", Fault::Changed),
        ],
        "installer_checksum",
    );
}

#[test]
fn a_manifest_that_is_not_the_one_of_this_script_is_refused() {
    refused(vec![("/manifest", Fault::Changed)], "installer_checksum");
}

#[test]
fn what_is_not_there_is_said() {
    let said = refused(vec![("/manifest", Fault::NotFound)], "installer_not_found");
    assert!(said.contains("404"), "{said}");
    refused(
        vec![
            ("-linux-x86_64", Fault::NotFound),
            ("-linux-aarch64", Fault::NotFound),
        ],
        "installer_not_found",
    );
    refused(
        vec![("/manifest.sig", Fault::NotFound)],
        "installer_not_found",
    );
}

#[test]
fn a_captive_portal_is_called_by_its_name() {
    for path in ["/manifest", "/manifest.sig"] {
        let said = refused(vec![(path, Fault::WebPage)], "installer_web_page");
        assert!(said.contains("captive portal"), "{said}");
    }
    refused(
        vec![("x86_64", Fault::WebPage), ("aarch64", Fault::WebPage)],
        "installer_web_page",
    );
}

#[test]
fn what_breaks_off_is_not_installed() {
    refused(
        vec![("x86_64", Fault::Truncated), ("aarch64", Fault::Truncated)],
        "installer_truncated",
    );
}

#[test]
fn what_never_ends_fills_no_disk() {
    refused(
        vec![("x86_64", Fault::Endless), ("aarch64", Fault::Endless)],
        "installer_size",
    );
    refused(vec![("/manifest", Fault::Endless)], "installer_size");
}

#[test]
fn a_server_that_dawdles_has_its_time_and_no_more() {
    let repository = Repository::new();
    let server = Server::start(repository.path(), vec![("/manifest", Fault::Slow)]);
    let host = Host::new();
    let began = Instant::now();
    host.run(
        &["sh"],
        &repository.install_sh(),
        &["--address", "127.0.0.1:1"],
    )
    .with_token()
    .env("FAIRLEAD_FROM", server.url())
    .env("FAIRLEAD_DOWNLOAD_TIMEOUT_S", "2")
    .refused(1, "installer_timeout");
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "{:?}",
        began.elapsed()
    );
}

#[test]
fn interrupted_it_takes_back_what_it_began() {
    let repository = Repository::new();
    let server = Server::start(repository.path(), vec![("/manifest", Fault::Slow)]);
    for shell in shells() {
        let host = Host::new();
        let before = tree(&host.root());
        let mut run = host
            .install(shell, &repository, &["--from", &server.url()])
            .with_token();
        // A group of its own, as a terminal or a service manager ends it.
        let mut child = run
            .command
            .process_group(0)
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let began = Instant::now();
        while tree(&host.root()) == before {
            assert!(
                began.elapsed() < Duration::from_secs(20),
                "it began nothing"
            );
            std::thread::yield_now();
        }
        let group = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process_group(group, rustix::process::Signal::TERM).unwrap();
        assert!(!child.wait().unwrap().success());
        assert_eq!(tree(&host.root()), before, "{shell:?}");
    }
}

#[test]
fn only_a_known_key_makes_a_package_genuine() {
    let repository = Repository::new();
    // Another version than the one that the script names: its signature decides.
    repository.pack(&Wish {
        version: "0.3.0",
        ..Wish::default()
    });
    let script = repository.file("0.2.0/install.sh");
    let install = |version: &str| {
        let host = Host::new();
        let before = tree(&host.root());
        let mut run = host.run(&["sh"], &script, &["--version", version]);
        run.command
            .args(["--address", "127.0.0.1:1", "--from"])
            .arg(repository.path());
        (host, before, run.with_token())
    };
    let (host, _, run) = install("0.3.0");
    run.ok();
    assert!(
        host.path("/opt/fairlead/versions/0.3.0/fairlead-agent")
            .is_file()
    );

    let manifest = repository.file("0.3.0/manifest");
    let genuine = fs::read_to_string(&manifest).unwrap();
    let refused = |code: &str| {
        let (host, before, run) = install("0.3.0");
        run.refused(1, code);
        assert_eq!(tree(&host.root()), before);
        assert_eq!(host.recorded(), "");
    };
    fs::write(
        &manifest,
        genuine.replace("min-from 0.1.0", "min-from 0.0.1"),
    )
    .unwrap();
    refused("installer_signature");
    fs::write(&manifest, &genuine).unwrap();

    let other = repository.another_key();
    repository.sign("0.3.0", &other);
    refused("installer_unknown_key");

    // Signed by another key that calls itself by the known one's id.
    let signature = repository.file("0.3.0/manifest.sig");
    let forged = fs::read_to_string(&signature)
        .unwrap()
        .replace(other.id(), repository.key.id());
    fs::write(&signature, forged).unwrap();
    refused("installer_signature");
    for rubbish in ["", "rubbish\n", "0123456789abcdef $(touch /tmp/x)\n"] {
        fs::write(&signature, rubbish).unwrap();
        let (host, before, mut run) = install("0.3.0");
        assert_eq!(run.output().status.code(), Some(1), "{rubbish:?}");
        assert_eq!(tree(&host.root()), before);
    }

    // One key of several is enough.
    repository.sign("0.3.0", &repository.key);
    let good = fs::read_to_string(&signature).unwrap();
    fs::write(&signature, format!("{}{good}", other.sign(&manifest))).unwrap();
    install("0.3.0").2.ok();

    // A genuine manifest at another version's place (mix and match).
    fs::create_dir(repository.file("0.4.0")).unwrap();
    for file in ["manifest", "manifest.sig"] {
        fs::copy(
            repository.file("0.3.0").join(file),
            repository.file("0.4.0").join(file),
        )
        .unwrap();
    }
    install("0.4.0").2.refused(1, "installer_wrong_version");
}

#[test]
fn the_pinned_version_needs_no_signature_tool_and_others_do() {
    let repository = Repository::new();
    repository.pack(&Wish {
        version: "0.3.0",
        ..Wish::default()
    });
    let script = repository.file("0.2.0/install.sh");
    let tools = tools_without(&["openssl"]);
    let run = |version: &str| {
        let host = Host::new();
        let mut run = host.run(&["sh"], &script, &["--version", version]);
        run.command
            .args(["--address", "127.0.0.1:1", "--from"])
            .arg(repository.path());
        (host, run.with_token().env("PATH", tools.path()))
    };
    // The script looks in the system's folders too; where openssl is there, it is found.
    if [
        "/usr/sbin/openssl",
        "/sbin/openssl",
        "/usr/local/sbin/openssl",
    ]
    .iter()
    .any(|path| fs::metadata(path).is_ok())
    {
        return;
    }
    fs::remove_file(repository.file("0.2.0/manifest.sig")).unwrap();
    let (host, install) = run("0.2.0");
    install.ok();
    assert!(host.path("/opt/fairlead/current/fairlead-agent").exists());
    let said = run("0.3.0").1.refused(1, "installer_no_verifier");
    assert!(said.contains("install OpenSSL 3"), "{said}");
}

/// A folder of links to all the tools that there are, but for some.
fn tools_without(without: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let path = std::env::var_os("PATH").unwrap();
    for folder in std::env::split_paths(&path) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if !without.iter().any(|tool| name == *tool) {
                // The first in the path wins.
                let _ = std::os::unix::fs::symlink(entry.path(), dir.path().join(name));
            }
        }
    }
    dir
}

#[test]
fn age_and_order_of_versions_are_judged() {
    let repository = Repository::new();
    let old = "2020-01-01T00:00:00Z";
    repository.pack(&Wish {
        version: "0.3.0",
        expires: old,
        ..Wish::default()
    });
    repository.pack(&Wish {
        version: "0.5.0",
        min_from: "0.4.0",
        ..Wish::default()
    });
    let newest = repository.file("0.2.0/install.sh");
    let host = Host::new();
    let run = |version: &str| {
        let mut run = host.run(&["sh"], &newest, &["--version", version]);
        run.command
            .args(["--address", "127.0.0.1:1", "--from"])
            .arg(repository.path());
        run.with_token()
    };
    run("0.3.0").refused(1, "installer_expired");
    run("0.2.0").ok();
    let said = run("0.5.0").refused(1, "installer_min_from");
    assert!(said.contains("0.4.0"), "{said}");
    assert!(
        host.path("/opt/fairlead/current/fairlead-agent").exists(),
        "what was there stays"
    );
    assert!(!host.path("/opt/fairlead/versions/0.5.0").exists());

    // Named by the script itself, a manifest is only old.
    let host = Host::new();
    let mut run = host.run(&["sh"], &repository.file("0.3.0/install.sh"), &[]);
    run.command
        .args(["--address", "127.0.0.1:1", "--from"])
        .arg(repository.path());
    let said = run.with_token().ok();
    assert!(said.contains("expired on 2020-01-01"), "{said}");
}

#[test]
fn the_script_of_the_sources_believes_nobody_by_itself() {
    let repository = Repository::new();
    let unstamped = repository.file("unstamped.sh");
    fs::write(&unstamped, super::kit::script()).unwrap();
    let host = Host::new();
    let run = |args: &[&str]| {
        let mut run = host.run(&["sh"], &unstamped, args);
        run.command
            .args(["--address", "127.0.0.1:1", "--from"])
            .arg(repository.path());
        run.with_token()
    };
    run(&[]).refused(2, "installer_unstamped");
    run(&["--key", "rubbish"]).refused(2, "installer_usage");
    let other = repository.another_key();
    run(&["--key", &other.public]).refused(1, "installer_unknown_key");
    run(&["--key", &repository.key.public]).ok();
}

#[test]
fn a_full_disk_is_said_and_leaves_no_half_program() {
    if !Disk::can_be_had() {
        return;
    }
    let repository = Repository::new();
    let host = Host::new();
    fs::create_dir_all(host.path("/opt")).unwrap();
    let disk = Disk::mount(&host.path("/opt"));
    disk.fill();
    host.install(&["sh"], &repository, &[])
        .with_token()
        .refused(3, "installer_disk");
    assert_eq!(
        fs::read_dir(host.path("/opt")).unwrap().count(),
        1,
        "only the filler"
    );
    assert_eq!(host.recorded(), "");
}

#[test]
fn places_where_nothing_can_be_written_or_run_are_said() {
    if !Disk::can_be_had() {
        return;
    }
    let repository = Repository::new();
    for (option, code) in [
        ("ro", "installer_read_only"),
        ("noexec", "installer_noexec"),
    ] {
        let host = Host::new();
        let opt = host.path("/opt");
        let mounted = Mounted::new(&opt, option);
        let said = host
            .install(&["sh"], &repository, &[])
            .with_token()
            .refused(3, code);
        assert!(said.contains("--prefix DIR"), "{said}");
        host.install(&["sh"], &repository, &["--prefix", "/srv/fairlead"])
            .with_token()
            .ok();
        assert!(host.path("/srv/fairlead/current/fairlead-agent").exists());
        assert!(
            host.read("/etc/systemd/system/fairlead-agent.service")
                .contains("/srv/fairlead/supervisor/")
        );
        drop(mounted);
    }
}

/// A small file system with an option.
struct Mounted<'a>(&'a std::path::Path);

impl<'a> Mounted<'a> {
    fn new(at: &'a std::path::Path, option: &str) -> Self {
        let options = format!("size=64m,{option}");
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "none"])
            .arg(at)
            .status()
            .unwrap();
        assert!(mounted.success());
        Self(at)
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount")
            .arg("-l")
            .arg(self.0)
            .status();
    }
}

#[test]
fn a_bundle_is_read_without_being_unpacked() {
    let repository = Repository::new();
    let bundle = repository.bundle("0.2.0");
    for shell in shells() {
        let host = Host::new();
        let mut run = host.run(
            shell,
            &repository.install_sh(),
            &["--address", "127.0.0.1:1"],
        );
        run.command.arg("--bundle").arg(&bundle);
        run.with_token().ok();
        assert!(
            host.path("/opt/fairlead/versions/0.2.0/fairlead-agent")
                .is_file()
        );
    }
    // Links, devices and names that lead elsewhere: nothing of the tar is ever made.
    let evil = repository.path().join("evil.tar");
    let mut tar = tar::Builder::new(fs::File::create(&evil).unwrap());
    for (name, kind, target) in [
        ("0.2.0/manifest", tar::EntryType::Symlink, "/etc/passwd"),
        (
            "0.2.0/fairlead-agent-linux-x86_64",
            tar::EntryType::Symlink,
            "/bin/true",
        ),
        ("0.2.0/hard", tar::EntryType::Link, "/etc/passwd"),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(0);
        header.set_mode(0o755);
        tar.append_link(&mut header, name, target).unwrap();
    }
    tar.finish().unwrap();
    for bundle in [evil, repository.install_sh()] {
        let host = Host::new();
        let before = tree(&host.root());
        let mut run = host.run(
            &["sh"],
            &repository.install_sh(),
            &["--address", "127.0.0.1:1"],
        );
        run.command.arg("--bundle").arg(&bundle);
        let output = run.with_token().output();
        assert_eq!(
            output.status.code(),
            Some(1),
            "{}",
            super::kit::words(&output)
        );
        assert_eq!(tree(&host.root()), before);
    }
}

#[test]
fn packages_do_not_come_in_the_clear_and_a_pinned_key_is_held_to() {
    let repository = Repository::new();
    let host = Host::new();
    let run = |from: &str| {
        host.run(
            &["sh"],
            &repository.install_sh(),
            &["--address", "127.0.0.1:1", "--from", from],
        )
        .with_token()
    };
    run("http://packages.example.com").refused(2, "installer_insecure_url");
    run("ftp://packages.example.com").refused(2, "installer_usage");
    run("https://packages.example.com/$(id)").refused(2, "installer_usage");
    if !here("curl") {
        return;
    }
    let server = TlsServer::start(&repository.path());
    let from = format!("https://localhost:{}", server.port);
    run(&from).refused(1, "installer_tls");
    let wrong = format!("sha256//{}=", "A".repeat(43));
    let mut pinned = run(&from);
    pinned.command.args(["--pin", &wrong]);
    pinned.refused(1, "installer_pin");
    let mut pinned = run(&from);
    pinned.command.args(["--pin", &server.pin]);
    pinned.ok();
}
