//! The controller's own machine: a data directory that is not there is no new installation, and root there
//! makes another admin when all tokens are lost.
//!
//! Holds: issue 3, deliverable 1 (the servers are what they were, or say why not; the setup link works once).

use std::process::Command;
use std::time::Duration;

use fairlead_api::types::{Action, ApiToken, AuditRow, Page};
use fairlead_tests::fleet::{Fleet, Options};
use fairlead_tests::process::Process;
use fairlead_tests::programs::program;
use fairlead_tests::wait::wait_for;

const SOON: Duration = Duration::from_secs(60);

async fn ends(process: &mut Process) -> Option<i32> {
    wait_for("the controller ends", SOON, async || {
        let status = process.ended();
        status
            .map(|status| status.code())
            .ok_or_else(|| "it runs".to_owned())
    })
    .await
}

#[tokio::test]
async fn an_empty_data_directory_is_not_made_another_installation_unsaid() {
    let mut fleet = Fleet::start(Options::simulated()).await;
    let token = fleet
        .api
        .new_region("spare")
        .await
        .unwrap()
        .join_token
        .token;
    let ca = token[3..67].to_owned();
    let data = fleet.dir().join("controller");
    let aside = fleet.dir().join("unmounted");

    // It is told which installation it is.
    fleet.controller.set_env("FAIRLEAD_CA_SHA256", Some(&ca));
    fleet.controller.start_again();
    fleet.all_online().await;

    // Its disk is not there: it makes nothing.
    fleet.controller.kill();
    std::fs::rename(&data, &aside).unwrap();
    fleet.controller.start_again();
    assert_eq!(ends(&mut fleet.controller).await, Some(1));
    let said = fleet.controller.last_words();
    assert!(
        said.contains("installation_missing") && said.contains(&ca),
        "{said}"
    );
    let made: Vec<_> = std::fs::read_dir(&data)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(made, ["lock"], "but for its lock");

    // Untold it makes another installation, and says so; so does who dials it.
    fleet.controller.set_env("FAIRLEAD_CA_SHA256", None);
    fleet.controller.start_again();
    fleet
        .controller
        .says("a new installation is made here", SOON)
        .await;
    fleet.regions[0]
        .process
        .says("not signed by this installation's CA", SOON)
        .await;

    // With its disk it is what it was.
    fleet.controller.kill();
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::rename(&aside, &data).unwrap();
    fleet.controller.set_env("FAIRLEAD_CA_SHA256", Some(&ca));
    fleet.controller.start_again();
    fleet.all_online().await;
    fleet.done(Action::Ping {}).await;
}

#[tokio::test]
async fn root_of_the_controllers_machine_makes_another_admin_when_all_tokens_are_lost() {
    let fleet = Fleet::start(Options::simulated()).await;
    let data = fleet.dir().join("controller");
    let asked = async || {
        let mut command = tokio::process::Command::new(program("fairlead-controller"));
        command.arg("new-admin").arg("--data-dir").arg(&data);
        command.output().await.unwrap()
    };
    let said = asked().await;
    let line = String::from_utf8(said.stdout).unwrap();
    assert!(said.status.success() && line.lines().count() == 1, "{line}");

    // As it is printed, so that it can be pasted.
    let home = fleet.dir().join("home");
    std::fs::create_dir(&home).unwrap();
    let fairlead = program("fairlead");
    let run = |words: &str| {
        let path = format!("{}:/usr/bin:/bin", fairlead.parent().unwrap().display());
        let output = Command::new("sh")
            .args(["-c", words])
            .env_clear()
            .env("HOME", &home)
            .env("PATH", path)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), said)
    };
    let words = line.trim().to_owned();
    let (code, said) = run(&words);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("may: admin"), "{said}");
    let tokens: Vec<ApiToken> = fleet.api.get("api-tokens").await.unwrap();
    assert_eq!(tokens.len(), 2, "{tokens:#?}");

    // Once, and it is known who asked.
    let (code, said) = run(&words);
    assert!(code != Some(0), "{said}");
    let audit: Page<AuditRow> = fleet.api.get("audit").await.unwrap();
    let opened = audit.items.iter().find(|row| row.action == "setup.open");
    let opened = opened.unwrap_or_else(|| panic!("{audit:#?}"));
    let uid = rustix::process::getuid().as_raw();
    assert!(
        opened.detail.ends_with(&format!("uid {uid}")),
        "{opened:#?}"
    );

    // Where no controller runs, it says so.
    let mut fleet = fleet;
    fleet.controller.kill();
    let said = asked().await;
    let words = String::from_utf8_lossy(&said.stderr);
    assert_eq!(said.status.code(), Some(1), "{words}");
    assert!(words.contains("does not run"), "{words}");
    assert!(said.stdout.is_empty());
    // And writes the link when it starts.
    fleet.controller.start_again();
    wait_for("a link is written", SOON, async || {
        std::fs::read_to_string(data.join("setup-link")).map_err(|error| error.to_string())
    })
    .await;
}
