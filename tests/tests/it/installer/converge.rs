//! Run again, the script changes only what is asked for; run dry, nothing; and what it made it takes away.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use super::kit::{Host, Repository, TOKEN, Wish, shells};
use super::trees::{inodes, tree};

const CURRENT: &str = "/opt/fairlead/current";

#[test]
fn an_installation_lies_where_the_guide_says_and_belongs_to_root() {
    let repository = Repository::new();
    for shell in shells() {
        let host = Host::new();
        host.install(shell, &repository, &["--host-name", "box-7"])
            .with_token()
            .ok();
        for (link, target) in [
            (CURRENT, "versions/0.2.0"),
            ("/opt/fairlead/supervisor", "versions/0.2.0"),
            (
                "/usr/local/bin/fairlead-agent",
                "/opt/fairlead/current/fairlead-agent",
            ),
        ] {
            assert_eq!(fs::read_link(host.path(link)).unwrap(), Path::new(target));
        }
        for (file, mode) in [
            ("/opt/fairlead/versions/0.2.0/fairlead-agent", 0o755),
            ("/etc/fairlead/agent.env", 0o600),
            ("/etc/fairlead/join-token", 0o600),
            ("/etc/systemd/system/fairlead-agent.service", 0o644),
        ] {
            let about = fs::metadata(host.path(file)).unwrap();
            assert_eq!(about.mode() & 0o7777, mode, "{file}");
            assert_eq!(
                about.uid(),
                fs::metadata(host.root()).unwrap().uid(),
                "{file}"
            );
        }
        // Nobody but root may write anywhere in it.
        for (path, entry) in tree(&host.path("/opt/fairlead")) {
            let link = entry.mode & 0o170_000 == 0o120_000;
            assert!(link || entry.mode & 0o022 == 0, "{}", path.display());
        }
        let settings = host.read("/etc/fairlead/agent.env");
        for line in [
            "FAIRLEAD_ADDRESS='127.0.0.1:1'",
            "FAIRLEAD_JOIN_TOKEN_FILE='/etc/fairlead/join-token'",
            "FAIRLEAD_HOST_NAME='box-7'",
        ] {
            assert!(
                settings.lines().any(|found| found == line),
                "{line}: {settings}"
            );
        }
        // What it believes itself, the agent believes when it is upgraded from the centre.
        let keys = format!("FAIRLEAD_PACKAGE_KEYS='{}'", repository.key.public);
        assert!(settings.contains(&keys), "{keys}: {settings}");
        let unit = host.read("/etc/systemd/system/fairlead-agent.service");
        for line in [
            "Type=notify",
            "Restart=always",
            "StartLimitIntervalSec=0",
            "EnvironmentFile=-/etc/fairlead/agent.env",
            "ExecStart=/opt/fairlead/supervisor/fairlead-agent supervise",
        ] {
            assert!(unit.lines().any(|found| found == line), "{line}: {unit}");
        }
        assert!(!unit.contains(TOKEN) && !settings.contains(TOKEN));
    }
}

#[test]
fn twice_is_once() {
    let repository = Repository::new();
    for shell in shells() {
        let host = Host::new();
        host.install(shell, &repository, &[]).with_token().ok();
        let before = tree(&host.root());
        let file = host.path("/opt/fairlead/versions/0.2.0/fairlead-agent");
        let inode = fs::metadata(&file).unwrap().ino();
        host.install(shell, &repository, &[]).with_token().ok();
        assert_eq!(tree(&host.root()), before, "{shell:?}");
        assert_eq!(
            fs::metadata(&file).unwrap().ino(),
            inode,
            "not written again"
        );

        // And without what was said the first time.
        let mut again = host.run(shell, &repository.install_sh(), &[]);
        again.command.arg("--from").arg(repository.path());
        again.ok();
        assert_eq!(tree(&host.root()), before, "{shell:?}");
    }
}

#[test]
fn a_dry_run_changes_no_inode() {
    let repository = Repository::new();
    for shell in shells() {
        let host = Host::new();
        let before = inodes(&host.root());
        let said = host
            .install(shell, &repository, &["--dry-run"])
            .with_token()
            .ok();
        assert_eq!(inodes(&host.root()), before, "{shell:?}: {said}");
        assert!(
            said.contains("would write /etc/fairlead/agent.env"),
            "{said}"
        );

        host.install(shell, &repository, &[]).with_token().ok();
        repository.pack(&Wish {
            version: "0.3.0",
            ..Wish::default()
        });
        let before = inodes(&host.root());
        for args in [
            &["--dry-run"][..],
            &["--dry-run", "--uninstall"],
            &["--dry-run", "--channel", "stable"],
        ] {
            let said = host.install(shell, &repository, args).with_token().ok();
            assert!(said.contains("would "), "{said}");
        }
        host.run_verb(shell, &repository.install_sh(), &["check"], &[])
            .ok();
        assert_eq!(inodes(&host.root()), before, "{shell:?}");
        assert_eq!(host.recorded().matches("leave").count(), 0);
        repository.pack(&Wish::default());
    }
}

#[test]
fn uninstalling_leaves_the_tree_as_it_was() {
    let repository = Repository::new();
    for shell in shells() {
        let host = Host::new();
        fs::create_dir_all(host.path("/etc/docker")).unwrap();
        fs::write(host.path("/etc/docker/daemon.json"), "{}").unwrap();
        fs::remove_dir(host.path("/opt")).unwrap();
        fs::remove_dir(host.path("/usr/local/bin")).unwrap();
        let before = tree(&host.root());
        host.install(shell, &repository, &[]).with_token().ok();
        repository.pack(&Wish {
            version: "0.3.0",
            ..Wish::default()
        });
        host.install(shell, &repository, &[]).with_token().ok();
        host.join();
        host.run(shell, &repository.install_sh(), &["--uninstall"])
            .ok();
        assert!(
            host.recorded().ends_with("fairlead-agent leave\n"),
            "{}",
            host.recorded()
        );
        let mut after = tree(&host.root());
        after.remove(Path::new("var/lib"));
        let mut expected = before.clone();
        expected.remove(Path::new("var/lib"));
        assert_eq!(after, expected, "{shell:?}");

        // Again: there is nothing, and that is fine.
        host.run(shell, &repository.install_sh(), &["--uninstall"])
            .ok();
        repository.pack(&Wish::default());
    }
}

#[test]
fn an_identity_that_could_not_be_ended_is_said_and_kept_until_purged() {
    let repository = Repository::new();
    let host = Host::new();
    let before = tree(&host.root());
    fs::create_dir_all(host.path("/etc/fairlead")).unwrap();
    fs::write(
        host.path("/etc/fairlead/policy.toml"),
        "forbid_exec = true\n",
    )
    .unwrap();
    host.install(&["sh"], &repository, &[]).with_token().ok();
    host.join();
    let said = host
        .run(&["sh"], &repository.install_sh(), &["--uninstall"])
        .env("FAIRLEAD_TEST_LEAVE", "1")
        .ok();
    assert!(said.contains("fairlead host rm"), "{said}");
    assert!(
        said.contains("could not be told (a:1: nobody is there)"),
        "{said}"
    );
    assert!(host.path("/var/lib/fairlead-agent/identity").is_file());
    assert!(
        host.path("/etc/fairlead/policy.toml").is_file(),
        "the owner's own"
    );
    assert!(!host.path("/opt/fairlead").exists());

    host.run(
        &["sh"],
        &repository.install_sh(),
        &["--uninstall", "--purge"],
    )
    .ok();
    assert_eq!(tree(&host.root()), before);
}

#[test]
fn an_agent_that_was_ordered_away_keeps_nothing_but_the_owners_policy() {
    let repository = Repository::new();
    for shell in shells() {
        let host = Host::new();
        fs::create_dir_all(host.path("/etc/fairlead")).unwrap();
        let policy = host.path("/etc/fairlead/policy.toml");
        fs::write(&policy, "forbid_exec = true\n").unwrap();
        let before = tree(&host.root());
        host.install(shell, &repository, &[]).with_token().ok();
        host.join();
        let said = host
            .run(
                shell,
                &repository.install_sh(),
                &["--uninstall", "--forget"],
            )
            .env("FAIRLEAD_TEST_LEAVE", "1")
            .ok();
        assert!(host.recorded().ends_with("fairlead-agent leave\n"));
        assert!(!said.contains("its state stays"), "{said}");
        assert_eq!(tree(&host.root()), before, "{shell:?}");
        host.install(shell, &repository, &["--forget"])
            .refused(2, "installer_usage");
    }
}

#[test]
fn a_new_token_never_replaces_a_living_identity_unless_told() {
    let repository = Repository::new();
    let host = Host::new();
    host.install(&["sh"], &repository, &[]).with_token().ok();
    host.join();
    fs::remove_file(host.path("/etc/fairlead/join-token")).unwrap();
    let before = tree(&host.root());
    let said = host.install(&["sh"], &repository, &[]).with_token().ok();
    assert!(said.contains("has joined already"), "{said}");
    assert_eq!(tree(&host.root()), before);

    host.install(&["sh"], &repository, &["--re-enrol"])
        .refused(2, "installer_no_token");
    host.install(&["sh"], &repository, &["--re-enrol"])
        .with_token()
        .ok();
    assert!(host.recorded().contains("fairlead-agent leave"));
    assert!(!host.path("/var/lib/fairlead-agent/identity").exists());
    assert!(host.path("/etc/fairlead/join-token").is_file());
}

#[test]
fn an_identity_that_was_taken_back_is_said_to_be_and_left_until_told() {
    let repository = Repository::new();
    for shell in shells() {
        let host = Host::new();
        host.install(shell, &repository, &[]).with_token().ok();
        host.join();
        fs::remove_file(host.path("/etc/fairlead/join-token")).unwrap();
        fs::write(host.path("/var/lib/fairlead-agent/revoked"), "").unwrap();
        let before = tree(&host.root());
        for said in [
            host.install(shell, &repository, &[])
                .refused(1, "installer_revoked"),
            host.install(shell, &repository, &[])
                .with_token()
                .refused(1, "installer_revoked"),
        ] {
            assert!(
                said.contains("(revoked)") && said.contains("--re-enrol"),
                "{said}"
            );
            assert!(said.contains("--uninstall"), "{said}");
        }
        assert_eq!(tree(&host.root()), before);
        host.install(shell, &repository, &["--re-enrol"])
            .with_token()
            .ok();
        assert!(host.path("/etc/fairlead/join-token").is_file());
    }
}

#[test]
fn versions_go_forward_and_back_only_when_told() {
    let repository = Repository::new();
    repository.pack(&Wish {
        version: "0.10.0",
        ..Wish::default()
    });
    let host = Host::new();
    let current = || {
        fs::read_link(host.path(CURRENT))
            .unwrap()
            .display()
            .to_string()
    };
    host.install(&["sh"], &repository, &["--version", "0.2.0"])
        .with_token()
        .ok();
    host.install(&["sh"], &repository, &[]).with_token().ok();
    assert_eq!(current(), "versions/0.10.0");
    // The line of long ago, run again by some tool.
    let mut old = host.run(&["sh"], &repository.file("0.2.0/install.sh"), &[]);
    old.command.arg("--from").arg(repository.path());
    let said = old.ok();
    assert!(said.contains("newer than 0.2.0, and stays"), "{said}");
    assert_eq!(current(), "versions/0.10.0");
    host.install(
        &["sh"],
        &repository,
        &["--version", "0.2.0", "--allow-downgrade"],
    )
    .ok();
    assert_eq!(current(), "versions/0.2.0");

    // A program that somebody damaged is put right.
    let program = host.path("/opt/fairlead/versions/0.2.0/fairlead-agent");
    let good = fs::read(&program).unwrap();
    fs::write(&program, "rubbish").unwrap();
    host.install(&["sh"], &repository, &["--version", "0.2.0"])
        .ok();
    assert_eq!(fs::read(&program).unwrap(), good);
}

#[test]
fn settings_change_when_told_and_what_was_written_by_hand_stays() {
    let repository = Repository::new();
    let host = Host::new();
    let at = "/etc/fairlead/agent.env";
    host.install(&["sh"], &repository, &[])
        .with_token()
        .env("HTTPS_PROXY", "http://user:p%40ss@127.0.0.1:9")
        .env("NO_PROXY", "localhost,10.0.0.0/8")
        .ok();
    let settings = host.read(at);
    assert!(
        settings.contains("\nHTTPS_PROXY='http://user:p%40ss@127.0.0.1:9'\n"),
        "{settings}"
    );
    fs::write(
        host.path(at),
        format!("{settings}FAIRLEAD_METRICS_EVERY_S=60\n"),
    )
    .unwrap();
    let mut run = host.run(
        &["sh"],
        &repository.install_sh(),
        &["--address", "127.0.0.1:2"],
    );
    run.command.arg("--from").arg(repository.path());
    run.ok();
    let settings = host.read(at);
    for line in [
        "FAIRLEAD_METRICS_EVERY_S=60",
        "FAIRLEAD_ADDRESS='127.0.0.1:2'",
        "NO_PROXY='localhost,10.0.0.0/8'",
    ] {
        assert!(
            settings.lines().any(|found| found == line),
            "{line}: {settings}"
        );
    }
    assert_eq!(settings.matches("FAIRLEAD_ADDRESS").count(), 1);
}

#[test]
fn what_is_in_the_way_is_not_overwritten() {
    let repository = Repository::new();
    let host = Host::new();
    fs::write(host.path("/usr/local/bin/fairlead-agent"), "somebody's own").unwrap();
    host.install(&["sh"], &repository, &[])
        .with_token()
        .refused(1, "installer_in_the_way");
    assert_eq!(host.read("/usr/local/bin/fairlead-agent"), "somebody's own");

    let host = Host::new();
    fs::create_dir_all(host.path("/lib/systemd/system")).unwrap();
    fs::write(host.path("/lib/systemd/system/fairlead-agent.service"), "").unwrap();
    host.install(&["sh"], &repository, &[])
        .with_token()
        .refused(1, "installer_packaged");
}

#[test]
fn two_at_once_do_not_mix() {
    let repository = Repository::new();
    let host = Host::new();
    host.install(&["sh"], &repository, &[]).with_token().ok();
    let lock = fs::File::open(host.path("/opt/fairlead/.lock")).unwrap();
    if !super::kit::here("flock") {
        return;
    }
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    let said = host
        .install(&["sh"], &repository, &[])
        .with_token()
        .refused(1, "installer_busy");
    let holder = format!("process {} (", std::process::id());
    assert!(said.contains(&holder), "it says who: {said}");
    // Whoever can open it could hold it for ever; also one that an older version made.
    let only_root = |when: &str| {
        let mode = lock.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{when}");
    };
    only_root("made");
    lock.set_permissions(fs::Permissions::from_mode(0o644))
        .unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::Unlock).unwrap();
    host.install(&["sh"], &repository, &[]).with_token().ok();
    only_root("mended");
}
