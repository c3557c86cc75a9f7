//! The host's owner has the last word on the host, and can read who did what there.
//!
//! Holds: SECURITY S9; DESIGN §7 (a policy file on the host, enforced by the agent).

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use fairlead_api::types::{Action, Mount};
use fairlead_tests::engine::{self, Names, field};
use fairlead_tests::fleet::{Fleet, HostSide, Options};
use fairlead_tests::programs::program;

use crate::acts::{exec, restart, run, spec};

fn set_policy(host: &HostSide, text: &str) {
    std::fs::write(&host.policy, text).unwrap();
    std::fs::set_permissions(&host.policy, std::fs::Permissions::from_mode(0o644)).unwrap();
}

#[tokio::test]
async fn what_the_owner_forbids_is_not_done_and_the_owner_reads_who_asked() {
    let fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let web = names.polite("web");
    set_policy(
        &fleet.hosts[0],
        "forbid_privileged = true\nforbid_sensitive_binds = true\nforbid_exec = true\n\
         forbid_host_namespaces = true\nallowed_capabilities = []\n",
    );

    let mut privileged = spec(&names.name("privileged"), &["true"]);
    privileged.privileged = true;
    let mut bound = spec(&names.name("bound"), &["true"]);
    bound.mounts = vec![Mount {
        kind: "bind".to_owned(),
        source: "/var/run/docker.sock".to_owned(),
        target: "/sock".to_owned(),
        ..Mount::default()
    }];
    let mut shared = spec(&names.name("shared"), &["true"]);
    shared.pid_mode = "host".to_owned();
    let mut capable = spec(&names.name("capable"), &["true"]);
    capable.cap_add = vec!["SYS_ADMIN".to_owned()];
    let cases = [
        (run(privileged), "forbid_privileged"),
        (run(bound), "forbid_sensitive_binds"),
        (run(shared), "forbid_host_namespaces"),
        (run(capable), "allowed_capabilities"),
        (exec(&web, &["true"]), "forbid_exec"),
    ];
    for (action, key) in cases {
        let refused = fleet.act(action).await;
        assert_eq!(
            (&refused.state[..], &refused.code[..]),
            ("failed", "forbidden_by_host")
        );
        assert!(
            refused.message.contains(key),
            "it names the key {key}: {}",
            refused.message
        );
    }
    for name in ["privileged", "bound", "shared", "capable"] {
        assert_eq!(
            field(&names.name(name), "{{.Id}}"),
            None,
            "{name} was made all the same"
        );
    }
    fleet.done(restart(&web)).await;

    // A typing error switches nothing off: every change is refused.
    set_policy(&fleet.hosts[0], "forbid_privilegd = true\n");
    let refused = fleet.act(restart(&web)).await;
    assert_eq!(refused.code, "forbidden_by_host", "{refused:#?}");
    assert_eq!(engine::count(&web, "restart"), 1);

    // Without the file the engine alone decides; nothing has to be restarted.
    std::fs::remove_file(&fleet.hosts[0].policy).unwrap();
    fleet.done(exec(&web, &["true"])).await;

    let log = std::process::Command::new(program("fairlead-agent"))
        .args(["log", "--state-dir"])
        .arg(&fleet.hosts[0].dir)
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&log.stdout).into_owned();
    assert!(log.contains(&format!("restart container {web}")), "{log}");
    assert!(log.contains("token"), "it says who: {log}");
    assert!(
        log.contains("privileged"),
        "it tells of what was refused as well: {log}"
    );
}

#[tokio::test]
async fn the_fleet_sees_in_a_sentence_what_the_owner_forbids() {
    let mut fleet = Fleet::start(Options::simulated()).await;
    set_policy(&fleet.hosts[0], "forbid_privileged = true\n");
    fleet.hosts[0].kill();
    fleet.hosts[0].start();
    fairlead_tests::wait::wait_for(
        "the facts tell of the policy",
        Duration::from_secs(60),
        async || {
            let host = fleet.api.host("box").await.map_err(|no| no.to_string())?;
            let facts = host.facts.unwrap_or_default();
            if facts.policy.contains("privileged") {
                Ok(())
            } else {
                Err(facts.policy)
            }
        },
    )
    .await;
    fleet.online("box").await;
    fleet.done(Action::Ping {}).await;
}
