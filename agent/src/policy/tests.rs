use std::os::unix::fs::PermissionsExt;

use fairlead_protocol::command::Kind;
use fairlead_protocol::{
    Command, ContainerSpec, CopyIn, CopyOut, Exec, HostShell, Inspect, List, Logs, MountSpec, Pull,
    Run, Stop, UninstallAgent, UpgradeAgent,
};

use super::{Policy, PolicyFile};

struct Written {
    _dir: tempfile::TempDir,
    path: std::path::PathBuf,
}

fn written(text: &str) -> Written {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("policy.toml");
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    Written { _dir: dir, path }
}

fn policy(text: &str) -> Policy {
    Policy::load_for(&written(text).path, false)
}

fn command(kind: Kind) -> Command {
    Command {
        kind: Some(kind),
        ..Command::default()
    }
}

fn run(change: impl FnOnce(&mut ContainerSpec)) -> Command {
    let mut spec = ContainerSpec {
        name: "app-1".into(),
        image: "nginx".into(),
        ..Default::default()
    };
    change(&mut spec);
    command(Kind::Run(Run { spec: Some(spec) }))
}

fn bind(kind: &str, source: &str) -> Command {
    run(|s| {
        let mount = MountSpec {
            kind: kind.into(),
            source: source.into(),
            target: "/x".into(),
            ..Default::default()
        };
        s.mounts = vec![mount];
    })
}

fn exec(tty: bool, privileged: bool) -> Command {
    let exec = Exec {
        container: "app-1".into(),
        tty,
        privileged,
        ..Default::default()
    };
    command(Kind::Exec(exec))
}

fn stop(container: &str) -> Command {
    command(Kind::Stop(Stop {
        container: container.into(),
        ..Default::default()
    }))
}

fn list(text: &str) -> Vec<String> {
    vec![text.to_owned()]
}

/// Each rule, with what breaks it however it is written.
#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn forbidden() {
    let cases: Vec<(&str, &str, Vec<Command>)> = vec![
        (
            "forbid_privileged",
            "forbid_privileged = true",
            vec![run(|s| s.privileged = true), exec(false, true)],
        ),
        (
            "forbid_host_namespaces",
            "forbid_host_namespaces = true",
            vec![
                run(|s| s.network = "host".into()),
                run(|s| s.network = " HOST ".into()),
                run(|s| s.network = "3fa8".into()),
                run(|s| s.pid_mode = "host".into()),
                run(|s| s.ipc_mode = "host".into()),
                run(|s| s.uts_mode = "host".into()),
                run(|s| s.userns_mode = "host".into()),
            ],
        ),
        (
            "forbid_sensitive_binds",
            "forbid_sensitive_binds = true",
            vec![
                bind("bind", "/"),
                bind("bind", "//"),
                bind("bind", "/."),
                bind("bind", "/tmp/.."),
                bind("bind", "/etc"),
                bind("bind", "/etc/"),
                bind("bind", "//etc"),
                bind("bind", "/./etc/shadow"),
                bind("bind", "/srv/../etc/passwd"),
                bind("bind", "/var/run/docker.sock"),
                bind("bind", "/run/docker.sock"),
                bind("bind", "/var"),
                bind("bind", "/var/run/"),
                bind("bind", "/var/lib"),
                bind("bind", "/var/lib/docker/volumes"),
                bind("bind", "/proc/1/root"),
                bind("bind", "/proc/self/root"),
                bind("bind", "/proc/self/cwd"),
                bind("bind", "/dev/../dev/sda"),
                bind("bind", "/sys/fs/cgroup"),
                bind("bind", "etc"),
                bind("bind", "../etc"),
                bind("bind", ""),
                bind("Bind", "/etc"),
                bind("", "/etc"),
                bind("npipe", "/etc"),
                bind("volume", "/etc"),
                bind("volume", "../../etc"),
            ],
        ),
        (
            "forbid_sensitive_binds",
            "forbid_sensitive_binds = true\nsensitive_paths = [\"/srv/secret/\"]",
            vec![
                bind("bind", "/srv/secret"),
                bind("bind", "/srv"),
                bind("bind", "/srv/secret/a"),
            ],
        ),
        (
            "forbid_devices",
            "forbid_devices = true",
            vec![
                run(|s| s.devices = list("/dev/sda")),
                run(|s| s.privileged = true),
                exec(false, true),
            ],
        ),
        (
            "allowed_capabilities",
            "allowed_capabilities = [\"NET_ADMIN\"]",
            vec![
                run(|s| s.cap_add = list("SYS_ADMIN")),
                run(|s| s.cap_add = list("cap_sys_admin")),
                run(|s| s.cap_add = list("ALL")),
                run(|s| s.cap_add = list("all")),
                run(|s| s.cap_add = vec!["NET_ADMIN".into(), "SYS_PTRACE".into()]),
                run(|s| s.privileged = true),
                exec(false, true),
            ],
        ),
        (
            "allowed_capabilities",
            "allowed_capabilities = []",
            vec![run(|s| s.cap_add = list("CHOWN"))],
        ),
        (
            "forbid_unconfined",
            "forbid_unconfined = true",
            vec![
                run(|s| s.security_opt = list("seccomp=unconfined")),
                run(|s| s.security_opt = list("seccomp:unconfined")),
                run(|s| s.security_opt = list("apparmor=Unconfined")),
                run(|s| s.security_opt = list("label=disable")),
                run(|s| s.security_opt = list("label:type:spc_t")),
                run(|s| s.security_opt = list("systempaths=unconfined")),
                run(|s| s.security_opt = list("no-new-privileges=false")),
                run(|s| s.security_opt = list("seccomp={\"defaultAction\":\"SCMP_ACT_ALLOW\"}")),
                run(|s| s.privileged = true),
            ],
        ),
        (
            "forbid_host_tuning",
            "forbid_host_tuning = true",
            vec![
                run(|s| s.cgroup_parent = "/".into()),
                run(|s| s.runtime = "evil".into()),
                run(|s| s.oom_kill_disable = true),
                run(|s| s.oom_score_adj = -1000),
            ],
        ),
        (
            "forbid_exec",
            "forbid_exec = true",
            vec![exec(false, false), exec(true, false)],
        ),
        (
            "forbid_shell",
            "forbid_shell = true",
            vec![exec(true, false)],
        ),
        (
            "forbid_copy",
            "forbid_copy = true",
            vec![
                command(Kind::CopyIn(CopyIn::default())),
                command(Kind::CopyOut(CopyOut::default())),
            ],
        ),
        (
            "forbid_uninstall",
            "forbid_uninstall = true",
            vec![command(Kind::UninstallAgent(UninstallAgent {}))],
        ),
        (
            "forbid_upgrade",
            "forbid_upgrade = true",
            vec![command(Kind::UpgradeAgent(UpgradeAgent::default()))],
        ),
        (
            "allowed_images",
            "allowed_images = [\"busybox\", \"reg.example.com/*\"]",
            vec![
                run(|_| {}),
                run(|s| s.image = "busybox.evil.io/x".into()),
                run(|s| s.image = "sha256:0123".into()),
                run(|s| s.image = "0123456789ab".into()),
                command(Kind::Pull(Pull {
                    image: "nginx:1".into(),
                    ..Default::default()
                })),
            ],
        ),
        (
            "allowed_containers",
            "allowed_containers = [\"app-*\"]",
            vec![
                stop("web"),
                stop("/web"),
                stop("0123456789ab"),
                stop("deadbeef"),
                run(|s| s.name = "web".into()),
                run(|s| s.name = String::new()),
                run(|s| s.network = "container:web".into()),
                run(|s| s.pid_mode = "container:0123".into()),
            ],
        ),
        (
            "denied_containers",
            "denied_containers = [\"db-*\"]",
            vec![
                stop("db-1"),
                stop("/db-1"),
                stop("abcd"),
                run(|s| s.name = "db-2".into()),
                command(Kind::Logs(Logs {
                    container: "db-1".into(),
                    ..Default::default()
                })),
            ],
        ),
    ];
    for (key, text, commands) in cases {
        let policy = policy(text);
        for command in commands {
            let refusal = policy
                .check(&command)
                .expect_err(&format!("{text}: {command:?}"));
            assert_eq!(refusal.code, "forbidden_by_host");
            assert!(refusal.message.contains(key), "{key}: {}", refusal.message);
            assert!(
                refusal.message.contains("policy.toml"),
                "{}",
                refusal.message
            );
        }
    }
}

#[test]
fn allowed() {
    let all = "forbid_privileged = true\nforbid_host_namespaces = true\n\
        forbid_sensitive_binds = true\nforbid_devices = true\nforbid_unconfined = true\n\
        forbid_host_tuning = true\nforbid_shell = true\nallowed_capabilities = [\"net_admin\"]\n\
        allowed_images = [\"nginx\"]\nallowed_containers = [\"app-*\"]\n\
        denied_containers = [\"*-db\"]\n";
    let policy = policy(all);
    let commands = [
        run(|_| {}),
        run(|s| s.image = "docker.io/library/nginx:1".into()),
        run(|s| s.cap_add = list("CAP_NET_ADMIN")),
        run(|s| s.security_opt = list("no-new-privileges")),
        run(|s| s.network = "container:app-2".into()),
        run(|s| s.network = "front".into()),
        bind("bind", "/srv/data"),
        bind("volume", "data"),
        bind("volume", ""),
        bind("tmpfs", ""),
        exec(false, false),
        stop("app-7"),
        command(Kind::List(List { all: true })),
        command(Kind::Inspect(Inspect {
            object: "0123".into(),
            kind: "image".into(),
        })),
    ];
    for command in commands {
        assert_eq!(policy.check(&command), Ok(()), "{command:?}");
    }
    // An id is judged by the name of its container, once that is known.
    assert_eq!(policy.check_named(&stop("0123456789ab"), "app-1"), Ok(()));
    assert!(policy.check_named(&stop("0123456789ab"), "web").is_err());
    assert!(policy.check_named(&stop("app-1"), "app-db").is_err());
}

#[test]
fn no_file_forbids_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let policy = Policy::load(&dir.path().join("none.toml"));
    assert_eq!(policy.check(&run(|s| s.privileged = true)), Ok(()));
    assert_eq!(policy.summary(), "");
}

#[test]
fn a_broken_file_refuses_every_change() {
    let broken = [
        "forbid_privileged = maybe",
        "forbid_priviledged = true",
        "forbid_exec = 1",
        "sensitive_paths = [\"etc\"]",
        "allowed_images = \"x\"",
        "forbid_exec = true\nforbid_exec = true",
        "[forbid]\nexec = true",
        "\u{0}",
    ];
    for text in broken {
        let policy = policy(text);
        for command in [
            run(|_| {}),
            exec(false, false),
            stop("app-1"),
            command(Kind::CopyOut(CopyOut::default())),
        ] {
            let refusal = policy.check(&command).expect_err(text);
            assert!(
                refusal.message.contains("policy.toml"),
                "{}",
                refusal.message
            );
        }
        assert_eq!(
            policy.check(&command(Kind::List(List::default()))),
            Ok(()),
            "{text}"
        );
        assert!(
            policy.summary().contains("cannot be used"),
            "{}",
            policy.summary()
        );
    }
}

#[test]
fn a_file_that_others_may_write_is_not_believed() {
    let file = written("forbid_exec = false");
    for mode in [0o664, 0o646, 0o666] {
        std::fs::set_permissions(&file.path, std::fs::Permissions::from_mode(mode)).unwrap();
        let refusal = Policy::load(&file.path).check(&stop("a")).unwrap_err();
        assert!(refusal.message.contains("write"), "{}", refusal.message);
    }
    let dir = tempfile::tempdir().unwrap();
    assert!(
        Policy::load(dir.path()).check(&stop("a")).is_err(),
        "a directory is no policy"
    );
    let link = dir.path().join("policy.toml");
    std::os::unix::fs::symlink("nowhere", &link).unwrap();
    assert!(
        Policy::load(&link).check(&stop("a")).is_err(),
        "nor is a link to nothing"
    );
    if rustix::process::geteuid().is_root() {
        std::fs::set_permissions(&file.path, std::fs::Permissions::from_mode(0o644)).unwrap();
        std::os::unix::fs::chown(&file.path, Some(1234), None).unwrap();
        let refusal = Policy::load(&file.path).check(&stop("a")).unwrap_err();
        assert!(refusal.message.contains("1234"), "{}", refusal.message);
    }
}

#[test]
fn a_changed_file_is_read_again() {
    let file = written("");
    let policy = PolicyFile::new(&file.path);
    assert_eq!(policy.check(&exec(false, false)), Ok(()));
    std::fs::write(&file.path, "forbid_exec = true").unwrap();
    assert!(policy.check(&exec(false, false)).is_err());
    assert_eq!(policy.summary(), "exec");
    // As editors do it: another file takes its place.
    let beside = file.path.with_extension("new");
    std::fs::write(&beside, "forbid_copy = true").unwrap();
    std::fs::rename(&beside, &file.path).unwrap();
    assert_eq!(policy.summary(), "copying files");
    std::fs::set_permissions(&file.path, std::fs::Permissions::from_mode(0o666)).unwrap();
    assert!(
        policy.check(&exec(false, false)).is_err(),
        "its mode counts, too"
    );
    std::fs::remove_file(&file.path).unwrap();
    assert_eq!(policy.check(&exec(false, false)), Ok(()));
}

#[test]
fn the_summary_is_one_sentence() {
    let text = "forbid_exec = true\nforbid_shell = true\nallowed_images = [\"a/*\", \"b\"]\n\
        allowed_capabilities = []\ndenied_containers = [\"db\"]";
    assert_eq!(
        policy(text).summary(),
        "exec; all added capabilities; images other than a/*, b; the containers db"
    );
}

#[test]
fn a_shell_on_the_host_itself_is_forbidden_until_it_is_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("policy.toml");
    let shell = command(Kind::HostShell(HostShell::default()));
    let refused = |shell: &Command| {
        let policy = Policy::load(&path);
        let refusal = policy.check(shell).err().map(|refusal| refusal.message);
        assert_eq!(refusal.is_none(), policy.allows_host_shell());
        refusal.unwrap_or_default()
    };
    assert!(refused(&shell).contains("allow_host_shell"), "no file");
    for text in [
        "",
        "allow_host_shell = false\n",
        "allow_host_shell = true\nforbid_shell = true\n",
        "allow_host_shell = true\nforbid_exec = true\n",
    ] {
        std::fs::write(&path, text).unwrap();
        assert!(refused(&shell).contains("allow_host_shell"), "{text}");
    }
    std::fs::write(&path, "allow_host_shell = true\n").unwrap();
    assert_eq!(refused(&shell), "");
    // One who wrote a rule that nobody can read has allowed nothing.
    std::fs::write(&path, "allow_host_shell = true\nallow_host_shel = true\n").unwrap();
    assert!(refused(&shell).contains("cannot be used"));
}
