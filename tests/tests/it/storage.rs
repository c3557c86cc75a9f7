//! P10 (beginnings): a full disk is a clear state, no half results, recovery by itself.
//!
//! Holds: of "bad input": a journal or ledger with a torn tail or a foreign version; nothing lost,
//! nothing half done, no process down that could stay up.

use std::path::Path;
use std::time::Duration;

use fairlead_api::types::{Action, CommandRequest};
use fairlead_protocol::{
    HostId, InstanceId, JournalHeader, JournalRecord, Message, journal_record::Kind,
};
use fairlead_tests::client::{new_id, request};
use fairlead_tests::disk::Disk;
use fairlead_tests::engine::{self, Names};
use fairlead_tests::fleet::{Fleet, Options};
use fairlead_tests::process::is_alive;
use fairlead_tests::wait::wait_for;

use crate::acts::{restart, run_simulated, start};

const SOON: Duration = Duration::from_secs(40);

#[tokio::test]
async fn a_full_disk_at_the_agent_is_waited_for_and_nothing_is_half_done() {
    if !Disk::can_be_had() {
        return;
    }
    let fleet = Fleet::start(Options::docker().small_disk("agent-box")).await;
    let names = Names::new();
    let (web, other) = (names.polite("web"), names.polite("other"));
    fleet.done(restart(&web)).await;
    let agent = fleet.hosts[0].agent_pid().await;

    fleet.disk().fill();
    // What is left of the last page takes some more records.
    let mut stuck = None;
    for _ in 0..100 {
        let asked = fleet.begin(start(&web)).await;
        let waits = wait_for("it ends or waits", SOON, async || {
            let command = fleet
                .api
                .command(&asked.id)
                .await
                .map_err(|no| no.to_string())?;
            match command.waiting_for.contains("journal") {
                true => Ok(true),
                false if command.is_final => Ok(false),
                false => Err(format!("{command:#?}")),
            }
        })
        .await;
        if waits {
            stuck = Some(asked);
            break;
        }
    }
    let stuck = stuck.expect("a full disk is noticed");
    let waiting = fleet.begin(restart(&other)).await;
    wait_for("it says what it waits for", SOON, async || {
        let command = fleet
            .api
            .command(&waiting.id)
            .await
            .map_err(|no| no.to_string())?;
        assert!(!command.is_final, "{command:#?}");
        if command.waiting_for.contains("journal") {
            Ok(())
        } else {
            Err(format!("{command:#?}"))
        }
    })
    .await;
    assert_eq!(
        engine::count(&other, "restart"),
        0,
        "nothing is done that is not on disk first"
    );
    // What changes nothing still works.
    fleet.done(Action::Ping {}).await;
    fleet.done(Action::List { all: true }).await;

    fleet.disk().free();
    for command in [&stuck, &waiting] {
        let ended = fleet.api.ended(&command.id, SOON).await;
        assert_eq!(ended.state, "succeeded", "{ended:#?}");
    }
    assert_eq!(engine::count(&other, "restart"), 1);
    assert_eq!(
        fleet.hosts[0].agent_pid().await,
        agent,
        "the same process all the time"
    );
}

#[tokio::test]
async fn a_full_disk_at_the_region_leaves_commands_queued_until_there_is_room() {
    if !Disk::can_be_had() {
        return;
    }
    let fleet = Fleet::start(Options::simulated().small_disk("access-server-local")).await;
    fleet.done(run_simulated("web")).await;
    let server = fleet.regions[0].process.pid();

    fleet.disk().fill();
    let mut asked = Vec::new();
    for _ in 0..20 {
        asked.push(fleet.begin(restart("web")).await);
    }
    wait_for("the region cannot store", SOON, async || {
        let said = fleet.regions[0].process.said();
        if said.contains("disk is full") || said.contains("cannot write") {
            Ok(())
        } else {
            Err(said)
        }
    })
    .await;
    assert!(is_alive(server));

    fleet.disk().free();
    for command in asked {
        let ended = fleet.api.ended(&command.id, SOON).await;
        assert_eq!(ended.state, "succeeded", "{ended:#?}");
    }
    let begun = fleet.hosts[0]
        .owner_log()
        .matches("began: restart container web")
        .count();
    assert_eq!(begun, 20, "each once");
    assert_eq!(fleet.regions[0].process.pid(), server);
    assert!(is_alive(server), "the same process all the time");
}

#[tokio::test]
async fn a_full_disk_at_the_controller_refuses_and_keeps_what_it_has_taken() {
    if !Disk::can_be_had() {
        return;
    }
    let fleet = Fleet::start(Options::simulated().small_disk("controller")).await;
    fleet.done(run_simulated("web")).await;
    let controller = fleet.controller.pid();

    fleet.disk().fill();
    let mut taken = Vec::new();
    let mut refused = None;
    for _ in 0..300 {
        let asked = CommandRequest {
            id: Some(new_id()),
            ..request("box", restart("web"))
        };
        match fleet.api.submit(&asked, Duration::ZERO).await {
            Ok(command) => taken.push(command.id),
            Err(no) => {
                refused = Some((asked.id.unwrap(), no));
                break;
            }
        }
    }
    let (refused, no) = refused.expect("a full disk refuses");
    assert_eq!(
        (no.status, &no.code[..]),
        (503, "storage_unavailable"),
        "{no}"
    );
    // Looking still works, and what was refused is not known.
    assert_eq!(fleet.api.hosts().await.unwrap().len(), 1);
    let unknown = fleet.api.command(&refused).await.unwrap_err();
    assert_eq!(unknown.code, "command_not_found");

    fleet.disk().free();
    wait_for("it takes commands again by itself", SOON, async || {
        fleet
            .api
            .submit(&request("box", Action::Ping {}), SOON)
            .await
            .map(|_| ())
            .map_err(|no| no.to_string())
    })
    .await;
    for id in &taken {
        let ended = fleet.api.ended(id, SOON).await;
        assert_eq!(ended.state, "succeeded", "{ended:#?}");
    }
    let begun = fleet.hosts[0]
        .owner_log()
        .matches("began: restart container web")
        .count();
    assert_eq!(
        begun,
        taken.len(),
        "what was acknowledged, once each; what was refused, never"
    );
    assert_eq!(fleet.controller.pid(), controller);
    assert!(is_alive(controller), "the same process all the time");
}

#[tokio::test]
async fn a_journal_with_a_torn_tail_is_used_up_to_the_tear() {
    let mut fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let web = names.polite("web");
    let asked = CommandRequest {
        id: Some(new_id()),
        ..request("box", restart(&web))
    };
    let before = fleet.api.submit(&asked, SOON).await.unwrap();
    fleet.hosts[0].kill();
    for journal in fleet.hosts[0].journals() {
        let mut bytes = std::fs::read(&journal).unwrap();
        // A record of which the power left the head and half of the body.
        bytes.extend_from_slice(&[200, 0, 0, 0, 1, 2, 3, 4, 10, 20, 30]);
        std::fs::write(&journal, bytes).unwrap();
    }

    fleet.hosts[0].start();
    fleet.hosts[0].supervisor.says("torn tail", SOON).await;
    fleet.online("box").await;
    fleet.done(restart(&web)).await;
    assert_eq!(
        fleet.api.submit(&asked, SOON).await.unwrap().state,
        before.state
    );
    assert_eq!(engine::count(&web, "restart"), 2);
}

/// A journal as a version of the future would begin it.
fn future_journal(dir: &Path) -> std::path::PathBuf {
    let instance = InstanceId::from_bytes(fairlead_identity::random::bytes());
    let header = JournalHeader {
        format: 99,
        instance: instance.to_wire(),
        epoch: 1,
        at_us: 1,
        host: HostId::from_bytes([1; 16]).to_wire(),
    };
    let payload = JournalRecord {
        kind: Some(Kind::Header(header)),
    }
    .encode_to_vec();
    let mut bytes = u32::try_from(payload.len()).unwrap().to_le_bytes().to_vec();
    bytes.extend_from_slice(&crc32fast::hash(&payload).to_le_bytes());
    bytes.extend_from_slice(&payload);
    let path = dir.join("journal").join(instance.to_string());
    std::fs::write(&path, bytes).unwrap();
    path
}

#[tokio::test]
async fn a_journal_of_a_newer_version_stops_changes_and_is_left_as_it_is() {
    let mut fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let web = names.polite("web");
    fleet.hosts[0].kill();
    let journal = future_journal(&fleet.hosts[0].dir);
    let bytes = std::fs::read(&journal).unwrap();

    fleet.hosts[0].start();
    fleet.online("box").await;
    let refused = fleet.act(restart(&web)).await;
    assert_eq!(
        (&refused.state[..], &refused.code[..]),
        ("failed", "journal_unavailable")
    );
    assert!(refused.message.contains("format 99"), "{}", refused.message);
    assert_eq!(engine::count(&web, "restart"), 0);
    fleet.done(Action::Ping {}).await;
    assert_eq!(std::fs::read(&journal).unwrap(), bytes);

    fleet.hosts[0].kill();
    std::fs::remove_file(&journal).unwrap();
    fleet.hosts[0].start();
    fleet.online("box").await;
    fleet.done(restart(&web)).await;
}

/// What is done to a database file.
type Damage = fn(&Path);

fn damages() -> [(&'static str, Damage); 2] {
    [
        ("garbage", |path| {
            let text = b"this is no database, and it is long enough to be looked at";
            std::fs::write(path, text.repeat(40)).unwrap();
        }),
        ("of a newer version", |path| {
            let database = rusqlite::Connection::open(path).unwrap();
            database.pragma_update(None, "user_version", 9999).unwrap();
        }),
    ]
}

/// Brings everything into the file itself, so that nothing beside it matters.
fn close_in_order(path: &Path) {
    let database = rusqlite::Connection::open(path).unwrap();
    database
        .pragma_update(None, "wal_checkpoint", "TRUNCATE")
        .unwrap();
}

#[tokio::test]
async fn a_database_that_is_not_ours_stops_the_start_and_is_left_as_it_is() {
    let mut fleet = Fleet::start(Options::simulated()).await;
    fleet.done(run_simulated("web")).await;
    let ledger = fleet.regions[0].dir.join("ledger.db");
    let store = fleet.dir().join("controller/controller.db");
    for (name, path) in [("access server", &ledger), ("controller", &store)] {
        let process = match name {
            "controller" => &mut fleet.controller,
            _ => &mut fleet.regions[0].process,
        };
        process.leave().await;
        close_in_order(path);
        let good = std::fs::read(path).unwrap();
        for (what, damage) in damages() {
            std::fs::write(path, &good).unwrap();
            damage(path);
            let bad = std::fs::read(path).unwrap();
            let heard = process.said().len();
            process.start_again();
            let status = wait_for(
                &format!("{name} ends, its file is {what}"),
                SOON,
                async || process.ended().ok_or_else(|| process.last_words()),
            )
            .await;
            assert!(!status.success(), "{name}, {what}");
            let said = process.said()[heard..].to_owned();
            let file = path.file_name().unwrap().to_string_lossy();
            assert!(
                said.contains(&*file),
                "{name} names the file that is {what}: {said}"
            );
            assert!(
                std::fs::read(path).unwrap() == bad,
                "{name} changed the file that is {what}"
            );
        }
        std::fs::write(path, &good).unwrap();
        process.start_again();
    }
    fleet.all_online().await;
    fleet.done(restart("web")).await;
}
