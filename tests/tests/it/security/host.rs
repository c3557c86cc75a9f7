//! The host's side: no way in, files for their owner only, and no shell between a command and the engine.
//!
//! Holds: SECURITY S28, S30, S32.

use std::collections::BTreeSet;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use fairlead_tests::engine::{self, Names, field};
use fairlead_tests::fleet::{Fleet, Options};

use super::{SOON, refuses_to_start};
use crate::acts::{exec, restart, run, run_simulated, spec, text};

/// The inodes of a process's sockets.
fn sockets(pid: u32) -> BTreeSet<String> {
    std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter_map(|link| {
            let text = link.to_string_lossy().into_owned();
            Some(text.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
        })
        .collect()
}

/// TCP ports and unix sockets on which a process listens.
fn listens(pid: u32) -> (usize, usize) {
    let own = sockets(pid);
    let count = |table: &str, state: (usize, &str), inode: usize| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap();
        let is_own = |line: &&str| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            fields.get(state.0) == Some(&state.1)
                && fields.get(inode).is_some_and(|inode| own.contains(*inode))
        };
        text.lines().filter(is_own).count()
    };
    let tcp = count("tcp", (3, "0A"), 9) + count("tcp6", (3, "0A"), 9);
    // A flag says that a unix socket takes connections.
    (tcp, count("unix", (3, "00010000"), 6))
}

#[tokio::test]
async fn s28_an_agent_listens_on_no_port() {
    let mut fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let web = names.polite("web");
    fleet.done(restart(&web)).await;
    let listener = tempfile::tempdir().unwrap();
    let _own = std::os::unix::net::UnixListener::bind(listener.path().join("s")).unwrap();
    assert!(
        listens(std::process::id()).1 >= 1,
        "the judge can see sockets"
    );
    assert_eq!(listens(fleet.regions[0].process.pid()).0, 2, "and ports");
    assert_eq!(listens(fleet.controller.pid()).0, 2);
    let nothing = |fleet: &Fleet, agent: u32| {
        assert_eq!(listens(agent), (0, 0));
        // Its one socket is for the instances that it has started, in a folder of its own.
        assert_eq!(listens(fleet.hosts[0].supervisor.pid()), (0, 1));
        let handoff = std::fs::metadata(fleet.hosts[0].dir.join("handoff")).unwrap();
        assert_eq!(handoff.permissions().mode() & 0o777, 0o700);
    };
    let agent = fleet.hosts[0].agent_pid().await;
    nothing(&fleet, agent);
    // Nor when the server is gone that it belongs to.
    fleet.regions[0].process.kill();
    fleet.hosts[0].supervisor.says("no link", SOON).await;
    nothing(&fleet, agent);
}

fn files_below(dir: &Path, found: &mut Vec<PathBuf>) {
    found.push(dir.to_owned());
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        // What was written beside and has been put in its place meanwhile is there under its own name.
        let Ok(meta) = path.symlink_metadata() else {
            continue;
        };
        if meta.is_dir() {
            files_below(&path, found);
        } else {
            found.push(path);
        }
    }
}

/// Files that a process has open for writing, but for those it was started with.
fn written_by(pid: u32) -> Vec<PathBuf> {
    let mut written = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let entry = entry.unwrap();
        let number = entry.file_name().into_string().unwrap();
        let info = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}"));
        let (Ok(info), Ok(path)) = (info, std::fs::read_link(entry.path())) else {
            continue;
        };
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = u32::from_str_radix(flags.unwrap().trim(), 8).unwrap();
        if number.parse::<u32>().unwrap() > 2 && flags & 3 != 0 && path.is_file() {
            written.push(path);
        }
    }
    written
}

#[tokio::test]
async fn s30_all_that_is_kept_is_for_its_owner_only_and_lies_where_it_belongs() {
    let mut fleet = Fleet::start(Options::simulated()).await;
    fleet.done(run_simulated("web")).await;
    fleet.done(restart("web")).await;
    fleet.hosts[0].kill_agent().await;
    fleet.online("box").await;
    fleet.done(restart("web")).await;
    let dirs = [
        fleet.dir().join("controller"),
        fleet.regions[0].dir.clone(),
        fleet.hosts[0].dir.clone(),
    ];
    let mut found = Vec::new();
    for dir in &dirs {
        files_below(dir, &mut found);
    }
    assert!(found.len() > 20, "{found:?}");
    for path in &found {
        let Ok(meta) = path.symlink_metadata() else {
            continue;
        };
        assert!(!meta.is_symlink(), "{}", path.display());
        assert_eq!(
            meta.mode() & 0o077,
            0,
            "{}: {:o}",
            path.display(),
            meta.mode()
        );
        assert_eq!(
            meta.uid(),
            rustix::process::getuid().as_raw(),
            "{}",
            path.display()
        );
    }
    let agent = fleet.hosts[0].agent_pid().await;
    let processes = [
        (fleet.controller.pid(), &dirs[0]),
        (fleet.regions[0].process.pid(), &dirs[1]),
        (fleet.hosts[0].supervisor.pid(), &dirs[2]),
        (agent, &dirs[2]),
    ];
    for (pid, dir) in processes {
        let written = written_by(pid);
        assert!(!written.is_empty(), "{}", dir.display());
        for path in written {
            assert!(
                path.starts_with(dir),
                "{} of {}",
                path.display(),
                dir.display()
            );
        }
    }

    // Where others may write nothing is kept, and nothing is believed.
    fleet.hosts[0].kill();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o1777);
    std::fs::set_permissions(&dirs[2], open).unwrap();
    refuses_to_start(&mut fleet.hosts[0].supervisor, "chmod").await;
}

/// What shells, formats and paths are misled by.
const INJECTIONS: [&str; 14] = [
    "; touch /tmp/pwned",
    "$(touch /tmp/pwned)",
    "`touch /tmp/pwned`",
    "| touch /tmp/pwned",
    "&& touch /tmp/pwned",
    "\n touch /tmp/pwned\n",
    "' touch /tmp/pwned '",
    "\" touch /tmp/pwned \"",
    "${IFS}touch${IFS}/tmp/pwned",
    "--privileged",
    "-v /:/host",
    "%s%n{{.}}",
    "\\'; touch /tmp/pwned; \\'",
    "Ünïcode \u{202e} *?[a-z]~ #",
];

#[tokio::test]
async fn s32_no_word_of_a_command_reaches_a_shell() {
    let fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let name = names.name("web");
    let mut wanted = spec(&name, &["sleep", "3600"]);
    for (number, word) in INJECTIONS.iter().enumerate() {
        wanted.env.push(format!("V{number}={word}"));
        wanted
            .labels
            .insert(format!("l{number}"), word.replace('\n', " "));
    }
    fleet.done(run(wanted)).await;
    let json = |format: &str| -> serde_json::Value {
        serde_json::from_str(&field(&name, format).unwrap()).unwrap()
    };
    let (env, labels) = (
        json("{{json .Config.Env}}"),
        json("{{json .Config.Labels}}"),
    );
    for (number, word) in INJECTIONS.iter().enumerate() {
        let given = format!("V{number}={word}");
        let kept = env
            .as_array()
            .unwrap()
            .iter()
            .any(|is| is.as_str() == Some(&given));
        assert!(kept, "{given}: {env}");
        assert_eq!(labels[format!("l{number}")], word.replace('\n', " "));
    }
    assert_eq!(field(&name, "{{.HostConfig.Privileged}}").unwrap(), "false");

    // Arguments arrive one for one.
    let mut command = vec!["printf", "<%s>"];
    command.extend(INJECTIONS);
    let printed = fleet.done(exec(&name, &command)).await;
    let all: String = INJECTIONS.iter().map(|word| format!("<{word}>")).collect();
    assert_eq!(text(&printed), all);
    fleet
        .done(exec(&name, &["test", "!", "-e", "/tmp/pwned"]))
        .await;
    assert!(!Path::new("/tmp/pwned").exists());

    // As a name none of them is taken, nor is anything made or found by one.
    for word in INJECTIONS {
        for action in [
            restart(word),
            run(spec(word, &["true"])),
            exec(word, &["true"]),
        ] {
            let asked = fairlead_tests::client::request("box", action);
            let taken = fleet.api.submit(&asked, SOON).await;
            let no = taken.err().unwrap_or_else(|| panic!("{word:?} was taken"));
            assert_eq!(no.status / 100, 4, "{word:?}: {no}");
        }
    }
    assert_eq!(engine::count(&name, "create"), 1);
}
