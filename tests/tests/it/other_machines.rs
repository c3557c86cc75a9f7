//! Programs for another kind of machine, started here under qemu's user emulation: they are no different
//! in what they do.
//!
//! Holds: issue "packages": the aarch64 agent starts. It enrols (TLS, keys, CSR), journals, and answers.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use fairlead_api::types::JoinTokenRequest;
use fairlead_tests::fleet::{Fleet, Options};
use fairlead_tests::process::Process;

use crate::acts::run_simulated;

/// Every instruction is translated.
const ONLINE_WITHIN: Duration = Duration::from_secs(60);
const QEMU: &str = "qemu-aarch64";
const TARGET: &str = "linux-aarch64";

/// The newest package that `./dev package` made, and how its programs are started here.
fn program(name: &str) -> (PathBuf, Vec<PathBuf>) {
    let repository = std::env::var_os("FAIRLEAD_TEST_PACKAGES").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../.dev/packages"),
        PathBuf::from,
    );
    let channel = repository.join("channels/stable");
    let version = std::fs::read_to_string(&channel).unwrap_or_else(|error| {
        panic!(
            "{}: {error}; ./dev package makes it, and ./dev test --long does so first",
            channel.display()
        )
    });
    let program = repository
        .join(version.trim())
        .join(format!("{name}-{TARGET}"));
    assert!(program.is_file(), "{} is not there", program.display());
    if cfg!(target_arch = "aarch64") {
        return (program, Vec::new());
    }
    let qemu = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .map(|folder| folder.join(QEMU))
        .find(|path| path.is_file())
        .unwrap_or_else(|| panic!("{QEMU} is not here: apt-get install qemu-user"));
    (qemu, vec![program])
}

fn run(name: &str, arguments: &[&str]) -> String {
    let (program, first) = program(name);
    let output = Command::new(program)
        .args(first)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("it can be started");
    assert!(output.status.success(), "{name} {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
#[ignore = "long: needs the packages that ./dev package makes"]
fn long_all_programs_for_aarch64_start_and_sign() {
    for name in [
        "fairlead",
        "fairlead-agent",
        "fairlead-access-server",
        "fairlead-controller",
    ] {
        let says = run(name, &["--version"]);
        assert!(says.starts_with(&format!("{name} ")), "{says}");
    }
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key.pem");
    let key = key.to_str().unwrap();
    let made = run("fairlead", &["agent", "keygen", "--out", key]);
    assert_eq!(run("fairlead", &["agent", "public-key", key]), made);
}

#[tokio::test]
#[ignore = "long: needs the packages that ./dev package makes"]
async fn long_the_agent_for_aarch64_joins_a_fleet_and_obeys() {
    let fleet = Fleet::start(Options::simulated().hosts(&[])).await;
    let request = JoinTokenRequest {
        region: Some(fleet.regions[0].name.clone()),
        ..JoinTokenRequest::default()
    };
    let token = fleet.api.new_join_token(&request).await.unwrap();
    let token = fleet.secret_file("arm.token", &token.token);
    let (qemu, first) = program("fairlead-agent");
    let state = fleet.dir().join("arm");
    let address = fleet.regions[0].agents.address();
    let policy = fleet.dir().join("policy-arm.toml");
    let mut words: Vec<std::ffi::OsString> = first.into_iter().map(Into::into).collect();
    words.push("run".into());
    for (flag, value) in [
        ("--state-dir", state.as_os_str()),
        ("--address", address.as_ref()),
        ("--engine", "simulated".as_ref()),
        ("--host-name", "arm".as_ref()),
        ("--policy", policy.as_os_str()),
        ("--token-file", token.as_os_str()),
    ] {
        words.extend([flag.into(), value.to_owned()]);
    }
    // An instance, as its supervisor starts it: the supervisor itself would start its agent without qemu.
    let agent = Process::start(
        "the agent for aarch64",
        qemu,
        words,
        vec![
            ("FAIRLEAD_EPOCH".to_owned(), "1".to_owned()),
            (
                "FAIRLEAD_RUN".to_owned(),
                fairlead_protocol::RunId::from_bytes([7; 16]).to_string(),
            ),
        ],
        fleet.dir().join("arm.log"),
    );
    let host = fleet.api.host_is("arm", "online", ONLINE_WITHIN).await;
    let facts = host.facts.expect("the agent has said where it is");
    assert_eq!(facts.arch, "aarch64");
    let command = fleet.api.done("arm", run_simulated("web")).await;
    assert_eq!(command.state, "succeeded", "{}", agent.last_words());
}
