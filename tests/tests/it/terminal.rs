//! Terminals (DESIGN §12): one ticket opens one terminal in one container, once; what is typed and shown is
//! exact; nothing stays behind. Each attack of the rows S1 to S5, S15 and S23 is tried.

use std::time::Duration;

use fairlead_api::types::{AuditRow, Page as Rows, Recording, Terminal, TerminalTicket};
use fairlead_identity::digest::{hex, sha256};
use fairlead_tests::client::{Api, Refusal};
use fairlead_tests::engine::{Names, docker, docker_says, id};
use fairlead_tests::fleet::{Fleet, Options};
use fairlead_tests::lateness::Promised;
use fairlead_tests::terminal::{Page, connect};
use fairlead_tests::wait::wait_for;
use serde_json::json;

const SOON: Duration = Duration::from_secs(30);

pub(crate) async fn ask(
    api: &Api,
    container: &str,
    command: &[&str],
) -> Result<TerminalTicket, Refusal> {
    let body = json!({ "host": "box", "container": container, "command": command,
        "columns": 80, "rows": 25 });
    api.post("terminals", &body).await
}

/// A ticket, once the host has told of the container.
pub(crate) async fn ticket(api: &Api, container: &str, command: &[&str]) -> TerminalTicket {
    wait_for("the container is known", SOON, async || {
        ask(api, container, command)
            .await
            .map_err(|no| no.to_string())
    })
    .await
}

pub(crate) async fn again(api: &Api, session: &str) -> Result<TerminalTicket, Refusal> {
    api.post(&format!("terminals/{session}/ticket"), &json!({}))
        .await
}

/// What an end that was ordered may take.
pub(crate) const ENDED_WITHIN: Duration = Duration::from_secs(5);

/// The command lines of all processes of that container.
pub(crate) fn processes(container: &str) -> Vec<String> {
    docker_says(&["top", container, "-eo", "pid,args"])
        .lines()
        .skip(1)
        .filter_map(|line| line.trim().split_once(' '))
        .map(|(_, args)| args.trim().to_owned())
        .collect()
}

/// Those of a polite container by itself, once it has begun what it waits for.
pub(crate) async fn own_processes(container: &str) -> Vec<String> {
    wait_for("the container waits", SOON, async || {
        let now = processes(container);
        let is_there = now.iter().any(|args| args == "sleep 3600");
        if is_there {
            Ok(now)
        } else {
            Err(format!("{now:?}"))
        }
    })
    .await
}

pub(crate) async fn audit(api: &Api, action: &str) -> Vec<AuditRow> {
    let rows: Rows<AuditRow> = api.get("audit?limit=200").await.unwrap();
    rows.items
        .into_iter()
        .filter(|row| row.action == action)
        .collect()
}

/// The row that this action wrote about that session.
pub(crate) async fn row_of(api: &Api, action: &str, session: &str) -> AuditRow {
    wait_for(&format!("{action} is in the audit log"), SOON, async || {
        let rows = audit(api, action).await;
        let of = rows.into_iter().find(|row| row.detail.contains(session));
        of.ok_or("no row".to_owned())
    })
    .await
}

pub(crate) async fn alone(container: &str, own: &[String]) {
    wait_for("no process is left of the terminal", SOON, async || {
        let now = processes(container);
        if now == own {
            Ok(())
        } else {
            Err(format!("{now:?}"))
        }
    })
    .await;
}

#[tokio::test]
async fn a_shell_is_typed_into_resized_recorded_and_listed() {
    let fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let web = names.polite("web");
    let own = own_processes(&web).await;

    let given = ticket(&fleet.api, &web, &[]).await;
    let mut page = Page::open(&fleet.api, &given.ticket).await;
    page.type_in("echo a$((40+2))b; stty size; echo $TERM\r")
        .await;
    page.until("what was typed ran", |p| {
        let text = p.text();
        text.contains("a42b") && text.contains("25 80") && text.contains("xterm-256color")
    })
    .await;
    page.say(&json!({ "resize": { "columns": 132, "rows": 43 } }))
        .await;
    page.type_in("sleep 0.2; stty size\r").await;
    page.until("it has the new size", |p| p.text().contains("43 132"))
        .await;

    let open: Vec<Terminal> = fleet.api.get("terminals").await.unwrap();
    assert_eq!(open.len(), 1);
    assert_eq!((&open[0].session, open[0].has_page), (&given.session, true));
    assert_eq!(open[0].container_id, id(&web));

    page.type_in("sleep 300 &\rexit 3\r").await;
    assert_eq!(page.end().await, "");
    assert_eq!(page.ended.as_ref().unwrap()["exit_code"], 3);
    alone(&web, &own).await;

    // The recording is whole, and its hash is in the audit log.
    let rows: Vec<Recording> = fleet
        .api
        .get(&format!("recordings?container={web}"))
        .await
        .unwrap();
    assert_eq!(rows[0].session, given.session);
    wait_for("its end is in the audit log", SOON, async || {
        let rows = audit(&fleet.api, "terminal.end").await;
        rows.into_iter().next().ok_or("no row".to_owned())
    })
    .await;
    let ended = &audit(&fleet.api, "terminal.end").await[0];
    assert!(ended.detail.contains("the shell ended with 3"), "{ended:?}");
    let opened = &audit(&fleet.api, "terminal.open").await[0];
    assert!(opened.detail.contains(&given.session), "{opened:?}");
}

#[tokio::test]
async fn ten_megabytes_come_byte_for_byte_over_a_broken_connection() {
    let fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let web = names.polite("web");
    let make = "i=0; while [ $i -lt 20 ]; do head -c 393216 /dev/urandom | base64 -w 0; i=$((i+1)); \
        done > /tmp/big";
    docker_says(&["exec", &web, "sh", "-c", make]);
    let whole = docker(&["exec", &web, "cat", "/tmp/big"]).stdout;
    assert!(whole.len() > 10_000_000);

    let given = ticket(&fleet.api, &web, &["sh", "-c", "stty raw; cat /tmp/big"]).await;
    let mut page = Page::open(&fleet.api, &given.ticket).await;
    page.until("some of it came", |p| p.output.len() > 3_000_000)
        .await;
    let mut all = std::mem::take(&mut page.output);
    drop(page);
    let next = again(&fleet.api, &given.session).await.unwrap();
    let mut page = Page::enter(&fleet.api, &next.ticket, Some(all.len() as u64)).await;
    assert_eq!(page.end().await, "");
    assert_eq!(page.from, all.len() as u64, "it goes on at the very byte");
    all.extend_from_slice(&page.output);
    assert_eq!(hex(&sha256(&all)), hex(&sha256(&whole)));
}

#[tokio::test]
async fn s01_a_missing_or_foreign_origin_gets_403() {
    let fleet = Fleet::start(Options::simulated()).await;
    let own = fleet.api.url.clone();
    let port = own.rsplit(':').next().unwrap();
    let foreign = [
        "https://evil.example".to_owned(),
        format!("{own}.evil.example"),
        format!("http://localhost:{port}"),
        "https://localhost".to_owned(),
        "null".to_owned(),
    ];
    for origin in &foreign {
        assert_eq!(
            connect(&fleet.api, &[origin]).await.err(),
            Some(403),
            "{origin}"
        );
    }
    assert_eq!(connect(&fleet.api, &[]).await.err(), Some(403), "no origin");
    assert_eq!(
        connect(&fleet.api, &[&own, &own]).await.err(),
        Some(403),
        "two"
    );
    assert!(connect(&fleet.api, &[&own]).await.is_ok());
}

#[tokio::test]
async fn s02_a_ticket_opens_once_and_altered_or_guessed_ones_never() {
    let fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let web = names.polite("web");
    let given = ticket(&fleet.api, &web, &[]).await;
    let mut page = Page::open(&fleet.api, &given.ticket).await;
    let mut second = Page::enter(&fleet.api, &given.ticket, None).await;
    assert_eq!(second.end().await, "ticket_refused");
    let refused = audit(&fleet.api, "terminal.refused").await;
    assert!(refused[0].detail.contains("used before"), "{refused:?}");
    // Nor does the one that has it notice anything.
    page.type_in("echo s$((1+1))ll\r").await;
    page.until("it goes on", |p| p.text().contains("s2ll"))
        .await;

    let another = again(&fleet.api, &given.session).await.unwrap().ticket;
    let mut altered = another.clone().into_bytes();
    let middle = altered.len() / 2;
    altered[middle] = if altered[middle] == b'A' { b'B' } else { b'A' };
    let altered = String::from_utf8(altered).unwrap();
    for bad in [&altered[..], "", "AAAA", &fleet.api.token, &given.session] {
        let mut page = Page::enter(&fleet.api, bad, None).await;
        assert_eq!(page.end().await, "ticket_refused", "{bad}");
    }
    // The good one was not spent by those.
    drop(Page::open(&fleet.api, &another).await);
}

#[tokio::test]
async fn s03_s04_another_token_and_another_container_are_refused() {
    let fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let (web, db) = (names.polite("web"), names.polite("db"));
    let given = ticket(&fleet.api, &web, &[]).await;
    let _page = Page::open(&fleet.api, &given.ticket).await;

    // A session's id, guessed or leaked, is nothing to another token, be it an admin's.
    let body = json!({ "name": "eve", "permissions": ["read", "shell"] });
    let eve: serde_json::Value = fleet.api.post("api-tokens", &body).await.unwrap();
    let eve = fleet.api.with_token(eve["token"].as_str().unwrap());
    assert_eq!(again(&eve, &given.session).await.unwrap_err().status, 404);
    let kick: Result<Terminal, _> = eve.delete(&format!("terminals/{}", given.session)).await;
    assert_eq!(kick.unwrap_err().status, 404);
    assert!(
        eve.get::<Vec<Terminal>>("terminals")
            .await
            .unwrap()
            .is_empty()
    );
    let body = json!({ "name": "root", "permissions": ["admin"] });
    let root: serde_json::Value = fleet.api.post("api-tokens", &body).await.unwrap();
    let root = fleet.api.with_token(root["token"].as_str().unwrap());
    assert_eq!(again(&root, &given.session).await.unwrap_err().status, 403);

    // Without the permission, or out of scope, there is no ticket.
    let body = json!({ "name": "reader", "permissions": ["read", "exec", "operate", "copy"] });
    let reader: serde_json::Value = fleet.api.post("api-tokens", &body).await.unwrap();
    let reader = fleet.api.with_token(reader["token"].as_str().unwrap());
    assert_eq!(
        ask(&reader, &web, &[]).await.unwrap_err().code,
        "permission_denied"
    );
    let body = json!({ "name": "far", "permissions": ["read", "shell"],
        "scope": { "labels": { "stage": "test" } } });
    let far: serde_json::Value = fleet.api.post("api-tokens", &body).await.unwrap();
    let far = fleet.api.with_token(far["token"].as_str().unwrap());
    assert_eq!(ask(&far, &web, &[]).await.unwrap_err().status, 404);

    // The ticket names the container by its id: another that took its name meanwhile is not entered.
    let given = ticket(&fleet.api, &db, &[]).await;
    docker_says(&["rm", "-f", &db]);
    let image = docker_says(&["inspect", "-f", "{{.Config.Image}}", &web]);
    docker_says(&["run", "-d", "--name", &db, image.trim(), "sleep", "300"]);
    let mut page = Page::enter(&fleet.api, &given.ticket, None).await;
    assert_eq!(page.end().await, "precondition_failed");
}

#[tokio::test]
async fn s05_revoking_the_token_or_the_host_ends_it_within_five_seconds() {
    let fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let web = names.polite("web");
    let own = own_processes(&web).await;
    let body = json!({ "name": "ada", "permissions": ["read", "shell"] });
    let made: serde_json::Value = fleet.api.post("api-tokens", &body).await.unwrap();
    let ada = fleet.api.with_token(made["token"].as_str().unwrap());
    let given = ticket(&ada, &web, &[]).await;
    let unused = ask(&ada, &web, &[]).await.unwrap();
    let mut page = Page::open(&ada, &given.ticket).await;
    page.type_in("sleep 301\r").await;
    let promised = Promised::begin();
    fleet
        .api
        .revoke_api_token(made["id"].as_str().unwrap())
        .await
        .unwrap();
    assert_eq!(page.end().await, "unauthenticated");
    promised.kept(ENDED_WITHIN);
    alone(&web, &own).await;
    // A ticket that was given out before is worth nothing now.
    let mut late = Page::enter(&fleet.api, &unused.ticket, None).await;
    assert_eq!(late.end().await, "ticket_refused");

    // An admin ends it by hand.
    let given = ticket(&fleet.api, &web, &[]).await;
    let mut page = Page::open(&fleet.api, &given.ticket).await;
    let _: Terminal = fleet
        .api
        .delete(&format!("terminals/{}", given.session))
        .await
        .unwrap();
    assert_eq!(page.end().await, "withdrawn");
    alone(&web, &own).await;

    let given = ticket(&fleet.api, &web, &[]).await;
    let mut page = Page::open(&fleet.api, &given.ticket).await;
    let _: serde_json::Value = fleet.api.delete("hosts/box").await.unwrap();
    assert_eq!(page.end().await, "revoked");
    alone(&web, &own).await;
}

#[tokio::test]
async fn s15_what_the_far_side_refuses_is_told_and_both_halves_end() {
    let fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let web = names.polite("web");
    let given = ticket(&fleet.api, &web, &[]).await;
    std::fs::write(&fleet.hosts[0].policy, "forbid_shell = true\n").unwrap();
    let mut page = Page::enter(&fleet.api, &given.ticket, None).await;
    // Typed before the far side has said a word: it goes nowhere.
    page.type_in("touch /tmp/typed\r").await;
    assert_eq!(page.end().await, "forbidden_by_host");
    assert!(!page.begun);
    assert!(
        !docker(&["exec", &web, "test", "-e", "/tmp/typed"])
            .status
            .success()
    );
    // Its page is told before its recording is on the disk.
    wait_for("it is listed no more", SOON, async || {
        let left: Vec<Terminal> = fleet.api.get("terminals").await.unwrap();
        left.is_empty().then_some(()).ok_or(format!("{left:?}"))
    })
    .await;
}

#[tokio::test]
async fn what_the_hosts_owner_forbids_meanwhile_ends_within_seconds() {
    let fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let web = names.polite("web");
    let own = own_processes(&web).await;
    let given = ticket(&fleet.api, &web, &[]).await;
    let mut page = Page::open(&fleet.api, &given.ticket).await;
    page.type_in("trap '' HUP; sleep 310\r").await;
    page.until("it runs", |p| p.text().contains("sleep 310"))
        .await;
    // A rule that is about something else ends nothing.
    let policy = &fleet.hosts[0].policy;
    std::fs::write(policy, "forbid_copy = true\n").unwrap();
    let forbidden = "forbid_copy = true\nforbid_shell = true\n";
    let another = ask(&fleet.api, &web, &["sleep", "1.5"]).await.unwrap();
    let mut one = Page::open(&fleet.api, &another.ticket).await;
    assert_eq!(one.end().await, "");
    std::fs::write(policy, forbidden).unwrap();
    let promised = Promised::begin();
    assert_eq!(page.end().await, "forbidden_by_host");
    promised.kept(ENDED_WITHIN);
    let message = page.ended.as_ref().unwrap()["message"].as_str().unwrap();
    assert!(message.contains("forbid_shell"), "{message}");
    alone(&web, &own).await;
    wait_for("the reason is in the audit log", SOON, async || {
        let rows = audit(&fleet.api, "terminal.end").await;
        let said = rows
            .iter()
            .any(|row| row.detail.contains("forbidden_by_host"));
        said.then_some(()).ok_or(format!("{rows:?}"))
    })
    .await;
}

#[tokio::test]
async fn abrupt_ends_leave_no_process_behind() {
    closed_abruptly(40).await;
}

#[tokio::test]
#[ignore = "long: takes some minutes"]
async fn long_a_thousand_abrupt_ends_leave_no_process_behind() {
    closed_abruptly(1000).await;
}

/// A paste that nobody reads: some of it waits at each hop, and the agent hears its client go all the same.
#[tokio::test]
async fn a_paste_that_nobody_reads_keeps_nothing_alive() {
    let fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let web = names.polite("web");
    let own = own_processes(&web).await;
    let script = "stty raw -echo; echo ready; sleep 309";
    let given = ticket(&fleet.api, &web, &["sh", "-c", script]).await;
    let mut page = Page::open(&fleet.api, &given.ticket).await;
    page.until("it runs", |p| p.text().contains("ready")).await;
    let (mut sent, began) = (0, std::time::Instant::now());
    loop {
        if sent - page.taken <= 32 * 1024 {
            page.type_in(&"x".repeat(16 * 1024)).await;
            sent += 16 * 1024;
        } else if tokio::time::timeout(Duration::from_secs(2), page.hear())
            .await
            .is_err()
        {
            if sent > 200_000 {
                break;
            }
            assert!(began.elapsed() < SOON, "{sent} B were taken");
        }
        assert!(sent < 64 << 20, "somebody reads it");
    }
    drop(page);
    let _: Terminal = fleet
        .api
        .delete(&format!("terminals/{}", given.session))
        .await
        .unwrap();
    alone(&web, &own).await;
}

async fn closed_abruptly(times: usize) {
    let fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let web = names.polite("web");
    let own = own_processes(&web).await;
    for round in 0..times {
        let given = ticket(&fleet.api, &web, &[]).await;
        let mut page = Page::open(&fleet.api, &given.ticket).await;
        let program = match round % 3 {
            0 => "sleep 302\r",
            1 => "trap '' HUP TERM; sleep 303 & sleep 304\r",
            _ => "(setsid sleep 305 &) ; cat\r",
        };
        page.type_in(program).await;
        drop(page);
        // Nobody comes back: an admin does not wait for the minute.
        let _: Terminal = fleet
            .api
            .delete(&format!("terminals/{}", given.session))
            .await
            .unwrap();
    }
    alone(&web, &own).await;
}

#[tokio::test]
async fn a_dead_agent_leaves_no_process_behind_either() {
    let fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let web = names.polite("web");
    let own = own_processes(&web).await;
    let given = ticket(&fleet.api, &web, &[]).await;
    let mut page = Page::open(&fleet.api, &given.ticket).await;
    page.type_in("trap '' HUP; sleep 306\r").await;
    page.until("it runs", |p| p.text().contains("sleep 306"))
        .await;
    fleet.hosts[0].kill_agent().await;
    assert_eq!(page.end().await, "stream_lost");
    alone(&web, &own).await;
}

#[tokio::test]
async fn without_a_recorder_there_is_no_shell() {
    let fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let web = names.polite("web");
    let given = ticket(&fleet.api, &web, &["touch", "/tmp/ran"]).await;
    std::fs::remove_dir_all(fleet.dir().join("controller/recordings")).unwrap();
    let mut page = Page::enter(&fleet.api, &given.ticket, None).await;
    assert_eq!(page.end().await, "storage_unavailable");
    // The host was not even asked.
    assert!(audit(&fleet.api, "terminal.open").await.is_empty());
    let ran = docker(&["exec", &web, "test", "-e", "/tmp/ran"]);
    assert!(!ran.status.success());
    let refused = audit(&fleet.api, "terminal.refused").await;
    assert!(refused[0].detail.contains("recorded"), "{refused:?}");
    assert!(
        fleet
            .api
            .get::<Vec<Terminal>>("terminals")
            .await
            .unwrap()
            .is_empty()
    );
}

/// One that leaves in order is another matter (`terminal_restart.rs`).
#[tokio::test]
async fn a_server_that_dies_leaves_no_process() {
    let mut fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let web = names.polite("web");
    let own = own_processes(&web).await;
    let given = ticket(&fleet.api, &web, &[]).await;
    let mut page = Page::open(&fleet.api, &given.ticket).await;
    page.type_in("trap '' HUP; sleep 308\r").await;
    page.until("it runs", |p| p.text().contains("sleep 308"))
        .await;
    fleet.controller.kill();
    while page.hear().await {}
    alone(&web, &own).await;
}

#[tokio::test]
async fn a_container_without_a_shell_says_so() {
    let fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let web = names.polite("web");
    docker_says(&["exec", &web, "rm", "-f", "/bin/sh", "/bin/ash", "/bin/bash"]);
    let given = ticket(&fleet.api, &web, &[]).await;
    let mut page = Page::enter(&fleet.api, &given.ticket, None).await;
    assert_eq!(page.end().await, "no_shell");
    let message = page.ended.unwrap()["message"].as_str().unwrap().to_owned();
    assert!(message.contains("has no shell"), "{message}");
}

/// An engine lets who resizes what could not be started wait for 10 s, again and again.
#[tokio::test]
async fn a_user_whom_the_container_does_not_have_is_said_at_once() {
    let fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let web = names.polite("web");
    fleet.api.knows("box", &web, SOON).await;
    let body = json!({ "host": "box", "container": web, "user": "nobody-here", "columns": 80, "rows": 25 });
    let given: TerminalTicket = fleet.api.post("terminals", &body).await.unwrap();
    let asked = std::time::Instant::now();
    let mut page = Page::enter(&fleet.api, &given.ticket, None).await;
    page.end().await;
    assert!(asked.elapsed() < Duration::from_secs(10), "{asked:?}");
    assert_eq!(page.ended.as_ref().unwrap()["exit_code"], 126);
    let said = String::from_utf8_lossy(&page.output);
    assert!(said.contains("unable to find user"), "{said}");
}

#[tokio::test]
async fn s23_a_recording_holds_escapes_only_as_text() {
    let fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let web = names.polite("web");
    let attack = r"printf '\033]0;evil\007\033]52;c;ZXZpbA==\007\033P$q\033\\\302\233'";
    let given = ticket(&fleet.api, &web, &["sh", "-c", attack]).await;
    let mut page = Page::enter(&fleet.api, &given.ticket, None).await;
    assert_eq!(page.end().await, "");
    assert!(page.output.contains(&0x1b), "the terminal gets it as it is");
    let dir = fleet.dir().join("controller").join("recordings");
    let file = dir.join(format!("{}.cast", given.session));
    let text = std::fs::read_to_string(file).unwrap();
    let control = |c: char| c.is_control() && c != '\n';
    assert!(!text.contains(control), "{text}");
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(&dir).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}
