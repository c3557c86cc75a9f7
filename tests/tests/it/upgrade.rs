//! P3, P4, P5: the agent is upgraded under commands, and nobody notices; a version that does not work never gets
//! the host, or gives it back.
//!
//! Real processes, real packages, the machine's real engine. The judges are the engine's own record, what
//! processes in containers wrote, and the timelines of the commands.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use fairlead_api::types::Action;
use fairlead_protocol::stream::Channel;
use fairlead_tests::engine::{self, Names};
use fairlead_tests::fleet::{Fleet, Options};
use fairlead_tests::process::{is_alive, send};
use fairlead_tests::terminal::Page;
use fairlead_tests::versions::{FIRST, Versions, said};
use fairlead_tests::wait::wait_for;
use rustix::process::Signal;

use crate::acts::{attach, logs, restart};
use crate::terminal::ticket;

mod deaths;
mod from_centre;
mod rollout;
mod under_commands;

const IN_TIME: Duration = Duration::from_secs(60);
/// How soon somebody owns the host again, whatever died.
const OWNED_AGAIN_WITHIN: Duration = Duration::from_secs(30);

fn options(versions: &Versions) -> Options {
    Options::docker()
        .agent_program(versions.supervisor())
        .agent_env("FAIRLEAD_UPGRADE_PROVE_MS", "12000")
        .agent_env("FAIRLEAD_UPGRADE_SILENT_MS", "20000")
        .agent_env("FAIRLEAD_UPGRADE_YIELD_MS", "20000")
}

/// Waits until one instance owns the host and no other is there but for streams; its version.
async fn settled(fleet: &Fleet, within: Duration) -> String {
    wait_for("one instance owns the host", within, async || {
        let status = fleet.hosts[0].status().unwrap_or_default();
        let owner = status["agent"]
            .as_u64()
            .and_then(|pid| u32::try_from(pid).ok());
        match (status["phase"].as_str(), owner) {
            (Some("steady"), Some(pid)) if is_alive(pid) => {
                let all = status["instances"].as_array().cloned().unwrap_or_default();
                let version = all
                    .iter()
                    .find(|one| one["pid"] == pid)
                    .map(|one| one["version"].as_str().unwrap_or_default().to_owned());
                version.ok_or_else(|| status.to_string())
            }
            _ => Err(format!(
                "{status} {}",
                fleet.hosts[0].supervisor.last_words()
            )),
        }
    })
    .await
}

async fn upgraded(versions: &Versions, fleet: &Fleet, package: &Path) -> std::process::Output {
    let mut command = versions.upgrade_command(&fleet.hosts[0], package);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    tokio::task::spawn_blocking(move || command.output().expect("the tool runs"))
        .await
        .expect("it ends")
}

async fn must_upgrade(versions: &Versions, fleet: &Fleet, package: &Path) {
    let output = upgraded(versions, fleet, package).await;
    assert!(
        output.status.success(),
        "{}\n{}",
        said(&output),
        fleet.hosts[0].supervisor.last_words()
    );
}

#[tokio::test]
async fn a_new_version_takes_over_and_says_so() {
    let versions = Versions::new();
    let fleet = Fleet::start(options(&versions)).await;
    let names = Names::new();
    let web = names.polite("web");
    assert_eq!(settled(&fleet, IN_TIME).await, FIRST);
    let before = fleet.hosts[0].agent_pid().await;

    must_upgrade(&versions, &fleet, &versions.package("1.1.0")).await;

    assert_eq!(settled(&fleet, IN_TIME).await, "1.1.0");
    assert_eq!(versions.linked("current"), "1.1.0");
    assert_eq!(versions.linked("supervisor"), FIRST, "later, and by itself");
    let after = fleet.hosts[0].agent_pid().await;
    assert_ne!(before, after);
    fleet.done(restart(&web)).await;
    wait_for("the instance before has left", IN_TIME, async || {
        if is_alive(before) {
            Err(format!("{before} is there"))
        } else {
            Ok(())
        }
    })
    .await;
    wait_for("its version is shown", IN_TIME, async || {
        let host = fleet.api.host("box").await.map_err(|no| no.to_string())?;
        match host.facts.map(|facts| facts.agent_version) {
            Some(version) if version == "1.1.0" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    fleet.done(restart(&web)).await;
    assert_eq!(engine::count(&web, "restart"), 2);
}

#[tokio::test]
async fn a_log_follow_and_an_exec_go_on_across_an_upgrade() {
    let versions = Versions::new();
    let fleet = Fleet::start(options(&versions)).await;
    let names = Names::new();
    let counting =
        "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); sleep 0.01; done; sleep 3600";
    let talking = names.by_hand("talking", &[], &["sh", "-c", counting]);
    let (web, other) = (names.polite("web"), names.polite("other"));

    let (_, mut follow) = attach(&fleet.api, "box", logs(&talking, None, true)).await;
    follow.begun().await;
    let script = "while read line; do echo \"<$line>\"; done; echo bye; exit 4";
    let talk = Action::Exec {
        container: web.clone(),
        command: ["sh", "-c", script].map(str::to_owned).to_vec(),
        env: Vec::new(),
        user: String::new(),
        workdir: String::new(),
        stdin: true,
        privileged: false,
    };
    let (running, mut talk) = attach(&fleet.api, "box", talk).await;
    talk.begun().await;
    talk.send(Channel::Input, b"before\n").await;

    let before = fleet.hosts[0].agent_pid().await;
    must_upgrade(&versions, &fleet, &versions.package("1.1.0")).await;
    assert_ne!(fleet.hosts[0].agent_pid().await, before);
    assert!(is_alive(before), "it sees its streams to their end");
    fleet.done(restart(&other)).await;

    talk.send(Channel::Input, b"after\n").await;
    talk.send(Channel::InputEnd, b"").await;
    let heard = talk.rest().await;
    assert_eq!(heard.text(), "<before>\n<after>\nbye\n");
    let ended = fleet.api.ended(&running.id, IN_TIME).await;
    assert_eq!(ended.exit_code, Some(4), "{ended:#?}");

    let mut text = Vec::new();
    while !String::from_utf8_lossy(&text).contains("line 1999\n") {
        let (channel, data) = follow.hear().await.expect("it was not closed");
        assert_eq!(channel, Channel::Output);
        text.extend_from_slice(&data);
    }
    let wanted: String = (0..2000).map(|n| format!("line {n}\n")).collect();
    assert_eq!(String::from_utf8_lossy(&text), wanted, "no byte is lost");
    drop(follow);
    wait_for("the instance before has left", IN_TIME, async || {
        if is_alive(before) {
            Err(format!("{:?}", fleet.hosts[0].status()))
        } else {
            Ok(())
        }
    })
    .await;
}

#[tokio::test]
async fn a_terminal_goes_on_across_an_upgrade() {
    let versions = Versions::new();
    let fleet = Fleet::start(options(&versions)).await;
    let names = Names::new();
    let web = names.polite("web");
    let given = ticket(&fleet.api, &web, &[]).await;
    let mut page = Page::open(&fleet.api, &given.ticket).await;
    page.type_in("n=40; top -b -d 1 >/dev/null & echo begun$((n+2))\r")
        .await;
    page.until("it runs", |page| page.text().contains("begun42"))
        .await;

    let before = fleet.hosts[0].agent_pid().await;
    must_upgrade(&versions, &fleet, &versions.package("1.1.0")).await;
    assert_ne!(fleet.hosts[0].agent_pid().await, before);
    fleet.done(restart(&names.polite("other"))).await;

    page.type_in("echo still$((n+3)); jobs; exit 3\r").await;
    assert_eq!(page.end().await, "");
    assert!(page.text().contains("still43"), "{}", page.text());
    assert!(page.text().contains("top -b"), "{}", page.text());
    assert_eq!(page.ended.as_ref().expect("its end")["exit_code"], 3);
    wait_for("the instance before has left", IN_TIME, async || {
        if is_alive(before) {
            Err(format!("{:?}", fleet.hosts[0].status()))
        } else {
            Ok(())
        }
    })
    .await;
}

#[tokio::test]
async fn versions_that_do_not_work_never_get_the_host() {
    let versions = Versions::new();
    let fleet = Fleet::start(options(&versions)).await;
    let names = Names::new();
    let web = names.polite("web");
    let agent = fleet.hosts[0].agent_pid().await;
    let real = versions
        .prefix()
        .join("versions")
        .join(FIRST)
        .join("fairlead-agent");
    let no_way_out = format!(
        "exec env HTTPS_PROXY=http://127.0.0.1:9 https_proxy=http://127.0.0.1:9 {} \"$@\"",
        real.display()
    );
    let pretenders = [
        ("2.0.1", "exit 3", "exit code 3"),
        ("2.0.2", "exit 0", "exit code 0"),
        ("2.0.3", "kill -SEGV $$", "signal"),
        ("2.0.4", "exec sleep 600", "did not prove"),
        ("2.0.5", &no_way_out, "did not prove"),
    ];
    for (version, run, why) in pretenders {
        let package = versions.pretender(version, run);
        let began = Instant::now();
        let output = upgraded(&versions, &fleet, &package).await;
        assert!(!output.status.success(), "{version}: {}", said(&output));
        assert!(said(&output).contains(why), "{version}: {}", said(&output));
        assert!(began.elapsed() < Duration::from_secs(90), "{version}");
        assert_eq!(settled(&fleet, OWNED_AGAIN_WITHIN).await, FIRST);
        assert_eq!(fleet.hosts[0].agent_pid().await, agent, "it never knew");
        assert_eq!(versions.linked("current"), FIRST);
        fleet.done(restart(&web)).await;
    }

    // What is seen before anything runs.
    let cut = versions.package("2.1.0");
    let packed = Versions::packed(&cut);
    let whole = std::fs::read(&packed).expect("the program");
    std::fs::write(&packed, &whole[..whole.len() / 2]).expect("half of it");
    let output = versions.upgrade(&fleet.hosts[0], &cut);
    assert!(
        said(&output).contains("bytes instead of"),
        "{}",
        said(&output)
    );

    let altered = versions.package("2.1.1");
    let manifest = altered.join("manifest");
    let text = std::fs::read_to_string(&manifest).expect("the manifest");
    std::fs::write(&manifest, text.replace("2.1.1", "2.1.2")).expect("another");
    let output = versions.upgrade(&fleet.hosts[0], &altered);
    assert!(
        said(&output).contains("does not match"),
        "{}",
        said(&output)
    );

    let mut foreign = versions.stamped("2.1.3");
    // The machine that an ELF file is for.
    foreign[18..20].copy_from_slice(&[0xf3, 0]);
    let foreign = versions.package_of("2.1.3", &foreign);
    let output = versions.upgrade(&fleet.hosts[0], &foreign);
    assert!(
        said(&output).contains("cannot be started"),
        "{}",
        said(&output)
    );

    let elsewhere = Versions::new();
    let output = versions.upgrade(&fleet.hosts[0], &elsewhere.package("2.1.4"));
    assert!(said(&output).contains("not trusted"), "{}", said(&output));
    assert_eq!(fleet.hosts[0].agent_pid().await, agent);
    fleet.done(restart(&web)).await;
}

#[tokio::test]
async fn a_version_that_dies_on_trial_makes_room_for_the_one_before() {
    let versions = Versions::new();
    let fleet = Fleet::start(options(&versions)).await;
    let names = Names::new();
    let web = names.polite("web");
    must_upgrade(&versions, &fleet, &versions.package("1.1.0")).await;
    assert_eq!(settled(&fleet, IN_TIME).await, "1.1.0");

    let began = Instant::now();
    wait_for(
        "the version before is back",
        Duration::from_secs(90),
        async || {
            let status = fleet.hosts[0].status().unwrap_or_default();
            if status["current"] == FIRST && status["phase"] == "steady" {
                return Ok(());
            }
            if let Some(pid) = fleet.hosts[0].agent() {
                send(pid, Signal::KILL);
            }
            Err(status.to_string())
        },
    )
    .await;
    println!("back after {:?}", began.elapsed());

    assert_eq!(versions.linked("current"), FIRST);
    assert_eq!(settled(&fleet, IN_TIME).await, FIRST);
    fleet.all_online().await;
    fleet.done(restart(&web)).await;
    let status = fleet.hosts[0].status().unwrap_or_default();
    assert_eq!(status["returned"]["from"], "1.1.0", "{status}");
    let why = status["returned"]["why"].as_str().unwrap_or_default();
    assert!(why.contains("signal 9"), "{status}");
}

/// The supervisor becomes the new version too, in the same process; its agents notice nothing.
#[tokio::test]
async fn the_supervisor_becomes_the_new_version_and_its_agent_goes_on() {
    let versions = Versions::new();
    let options = options(&versions).agent_env("FAIRLEAD_UPGRADE_TRIAL_MS", "2500");
    let fleet = Fleet::start(options).await;
    let names = Names::new();
    let web = names.polite("web");
    must_upgrade(&versions, &fleet, &versions.package("1.1.0")).await;
    let agent = fleet.hosts[0].agent_pid().await;
    let supervisor = fleet.hosts[0].supervisor.pid();

    wait_for(
        "the supervisor is of the new version",
        IN_TIME,
        async || {
            let status = fleet.hosts[0].status().unwrap_or_default();
            if status["supervisor_version"] == "1.1.0" {
                Ok(())
            } else {
                Err(status.to_string())
            }
        },
    )
    .await;
    assert_eq!(fleet.hosts[0].supervisor.pid(), supervisor);
    assert_eq!(fleet.hosts[0].agent_pid().await, agent, "its agent goes on");
    fleet.done(restart(&web)).await;
    wait_for(
        "the service would start it",
        IN_TIME,
        async || match versions.linked("supervisor") {
            link if link == "1.1.0" => Ok(()),
            link => Err(link),
        },
    )
    .await;
    // It still is the parent: a death is noticed, and an upgrade goes on.
    fleet.hosts[0].kill_agent().await;
    settled(&fleet, OWNED_AGAIN_WITHIN).await;
    fleet.all_online().await;
    must_upgrade(&versions, &fleet, &versions.package("1.2.0")).await;
    assert_eq!(settled(&fleet, IN_TIME).await, "1.2.0");
    fleet.done(restart(&web)).await;
}
