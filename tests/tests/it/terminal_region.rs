//! Terminals whose sessions live at the region's access server: nothing of them passes the controller, which
//! may be away; what it forbids ends; recordings and audit rows arrive. The attacks of S1 to S5 again, there.

use std::path::PathBuf;
use std::time::Duration;

use fairlead_api::types::{Recording, Terminal, TerminalTicket};
use fairlead_tests::client::Api;
use fairlead_tests::engine::{Names, docker, docker_says};
use fairlead_tests::fleet::{Fleet, Options};
use fairlead_tests::lateness::Promised;
use fairlead_tests::line::{Cut, Weather};
use fairlead_tests::terminal::{Page, connect_at};
use fairlead_tests::wait::wait_for;
use serde_json::{Value, json};

use crate::terminal::{ENDED_WITHIN, again, alone, ask, audit, own_processes, row_of, ticket};

const SOON: Duration = Duration::from_secs(30);

fn options() -> Options {
    Options::docker().terminals_at_regions()
}

fn server(fleet: &Fleet) -> String {
    fleet.regions[0].web.url()
}

/// What lies on the region's disk of recordings.
fn at_region(fleet: &Fleet) -> Vec<PathBuf> {
    let dir = fleet.regions[0].dir.join("recordings");
    let entries = std::fs::read_dir(dir).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

fn at_centre(fleet: &Fleet, session: &str) -> String {
    let dir = fleet.dir().join("controller/recordings");
    std::fs::read_to_string(dir.join(format!("{session}.cast"))).unwrap()
}

async fn come_back(api: &Api, session: &str, from: u64) -> Page {
    let next = again(api, session).await.unwrap();
    let there = next.server.as_deref().unwrap();
    Page::enter_at(api, there, &next.ticket, Some(from)).await
}

#[tokio::test]
async fn a_shell_lives_at_the_region_and_its_recording_and_audit_rows_arrive() {
    let fleet = Fleet::start(options()).await;
    let names = Names::new();
    let web = names.polite("web");
    let own = own_processes(&web).await;
    let given = ticket(&fleet.api, &web, &[]).await;
    assert_eq!(given.server, Some(server(&fleet)));
    let mut page = Page::open_there(&fleet.api, &given).await;
    page.type_in("echo a$((40+2))b; stty size\r").await;
    page.until("what was typed ran", |p| {
        p.text().contains("a42b") && p.text().contains("25 80")
    })
    .await;
    wait_for("it is listed", SOON, async || {
        let open: Vec<Terminal> = fleet.api.get("terminals").await.unwrap();
        match &open[..] {
            [one] if one.session == given.session && one.has_page && one.output_bytes > 0 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    // The recording is shipped while it happens, and can be read.
    wait_for("the recording is listed", SOON, async || {
        let rows: Vec<Recording> = fleet.api.get("recordings").await.unwrap();
        let ours = rows.iter().any(|row| row.session == given.session);
        ours.then_some(()).ok_or("no recording".to_owned())
    })
    .await;

    // A page that was loaded anew goes on at the very byte.
    let have = page.output.len() as u64;
    drop(page);
    let mut page = come_back(&fleet.api, &given.session, have).await;
    page.type_in("echo s$((1+1))me; sleep 300 &\rexit 3\r")
        .await;
    assert_eq!(page.end().await, "");
    assert_eq!(page.from, have);
    assert!(page.text().contains("s2me"), "{}", page.text());
    assert_eq!(page.ended.as_ref().unwrap()["exit_code"], 3);
    alone(&web, &own).await;

    let opened = row_of(&fleet.api, "terminal.open", &given.session).await;
    assert!(opened.detail.contains("shell"), "{opened:?}");
    let ended = row_of(&fleet.api, "terminal.end", &given.session).await;
    assert!(ended.detail.contains("the shell ended with 3"), "{ended:?}");
    assert_eq!(
        (&ended.actor, &ended.object),
        (&opened.actor, &opened.object)
    );
    let arrived = row_of(&fleet.api, "recording.arrive", &given.session).await;
    let hash = arrived.detail.rsplit(' ').next().unwrap();
    assert_eq!(
        (&arrived.outcome[..], hash.len()),
        ("ok", 64),
        "{arrived:?}"
    );
    assert!(ended.detail.ends_with(hash), "{ended:?} {arrived:?}");
    let text = at_centre(&fleet, &given.session);
    assert!(text.contains("a42b") && text.contains("s2me"), "{text}");
    wait_for(
        "the region keeps none that the centre has",
        SOON,
        async || {
            let left = at_region(&fleet);
            if left.is_empty() {
                Ok(())
            } else {
                Err(format!("{left:?}"))
            }
        },
    )
    .await;
    let open: Vec<Terminal> = fleet.api.get("terminals").await.unwrap();
    assert!(open.is_empty(), "{open:?}");
}

#[tokio::test]
async fn who_does_not_reach_the_region_goes_through_the_controller() {
    let fleet = Fleet::start(options()).await;
    let names = Names::new();
    let web = names.polite("web");
    ticket(&fleet.api, &web, &[]).await;
    let body = json!({ "host": "box", "container": web, "columns": 80, "rows": 25, "relay": true });
    let given: TerminalTicket = fleet.api.post("terminals", &body).await.unwrap();
    assert_eq!(given.server, None);
    let mut page = Page::open(&fleet.api, &given.ticket).await;
    page.type_in("echo r$((1+1))lay\r").await;
    page.until("it runs", |p| p.text().contains("r2lay")).await;
}

#[tokio::test]
async fn s01_s02_at_the_region_too_a_ticket_opens_once_for_one_page_at_one_server() {
    let fleet = Fleet::start(options()).await;
    let names = Names::new();
    let web = names.polite("web");
    let there = server(&fleet);
    let own = fleet.api.url.clone();
    // Its own origin serves no page, and lets none in.
    for foreign in [
        "https://evil.example",
        &there[..],
        "null",
        "https://localhost",
    ] {
        let refused = connect_at(&fleet.api, &there, &[foreign]).await.err();
        assert_eq!(refused, Some(403), "{foreign}");
    }
    assert_eq!(connect_at(&fleet.api, &there, &[]).await.err(), Some(403));
    assert!(connect_at(&fleet.api, &there, &[&own]).await.is_ok());

    let given = ticket(&fleet.api, &web, &[]).await;
    // At the controller it opens nothing, and is not spent by that.
    let mut elsewhere = Page::enter(&fleet.api, &given.ticket, None).await;
    assert_eq!(elsewhere.end().await, "ticket_refused");
    let mut page = Page::open_there(&fleet.api, &given).await;
    let mut second = Page::enter_at(&fleet.api, &there, &given.ticket, None).await;
    assert_eq!(second.end().await, "ticket_refused");
    page.type_in("echo s$((1+1))ll\r").await;
    page.until("it goes on", |p| p.text().contains("s2ll"))
        .await;
    wait_for("the refusal is in the audit log", SOON, async || {
        let rows = audit(&fleet.api, "terminal.refused").await;
        let said = rows
            .iter()
            .any(|row| row.detail.contains("used before") && row.from.contains("at region local"));
        said.then_some(()).ok_or(format!("{rows:?}"))
    })
    .await;

    let another = again(&fleet.api, &given.session).await.unwrap().ticket;
    let mut altered = another.clone().into_bytes();
    let middle = altered.len() / 2;
    altered[middle] = if altered[middle] == b'A' { b'B' } else { b'A' };
    let altered = String::from_utf8(altered).unwrap();
    let body = json!({ "host": "box", "container": web, "columns": 80, "rows": 25, "relay": true });
    let relayed: TerminalTicket = fleet.api.post("terminals", &body).await.unwrap();
    for bad in [
        &altered[..],
        "",
        "AAAA",
        &fleet.api.token,
        &given.session,
        &relayed.ticket,
    ] {
        let mut page = Page::enter_at(&fleet.api, &there, bad, None).await;
        assert_eq!(page.end().await, "ticket_refused", "{bad}");
    }
    let mut page = Page::enter_at(&fleet.api, &there, &another, None).await;
    page.until("the good one was not spent by those", |p| p.begun)
        .await;
}

#[tokio::test]
async fn s03_s04_at_the_region_too_another_token_and_another_container_are_refused() {
    let fleet = Fleet::start(options()).await;
    let names = Names::new();
    let (web, db) = (names.polite("web"), names.polite("db"));
    let given = ticket(&fleet.api, &web, &[]).await;
    let _page = Page::open_there(&fleet.api, &given).await;
    let token = async |name: &str, permissions: &[&str]| {
        let body = json!({ "name": name, "permissions": permissions });
        let made: Value = fleet.api.post("api-tokens", &body).await.unwrap();
        fleet.api.with_token(made["token"].as_str().unwrap())
    };
    let eve = token("eve", &["read", "shell"]).await;
    assert_eq!(again(&eve, &given.session).await.unwrap_err().status, 404);
    let kick: Result<Terminal, _> = eve.delete(&format!("terminals/{}", given.session)).await;
    assert_eq!(kick.unwrap_err().status, 404);
    let root = token("root", &["admin"]).await;
    assert_eq!(again(&root, &given.session).await.unwrap_err().status, 403);

    // Another container that took the name meanwhile is not entered.
    let given = ticket(&fleet.api, &db, &[]).await;
    docker_says(&["rm", "-f", &db]);
    let image = docker_says(&["inspect", "-f", "{{.Config.Image}}", &web]);
    docker_says(&["run", "-d", "--name", &db, image.trim(), "sleep", "300"]);
    let mut page = Page::enter_at(&fleet.api, &server(&fleet), &given.ticket, None).await;
    assert_eq!(page.end().await, "precondition_failed");
}

#[tokio::test]
async fn s05_at_the_region_too_what_is_revoked_ends_within_five_seconds() {
    let fleet = Fleet::start(options()).await;
    let names = Names::new();
    let web = names.polite("web");
    let own = own_processes(&web).await;
    let body = json!({ "name": "ada", "permissions": ["read", "shell"] });
    let made: Value = fleet.api.post("api-tokens", &body).await.unwrap();
    let ada = fleet.api.with_token(made["token"].as_str().unwrap());
    let given = ticket(&ada, &web, &[]).await;
    let unused = ask(&ada, &web, &[]).await.unwrap();
    let mut page = Page::open_there(&ada, &given).await;
    page.type_in("sleep 301\r").await;
    let promised = Promised::begin();
    let id = made["id"].as_str().unwrap();
    fleet.api.revoke_api_token(id).await.unwrap();
    assert_eq!(page.end().await, "unauthenticated");
    promised.kept(ENDED_WITHIN);
    alone(&web, &own).await;
    let mut late = Page::enter_at(&fleet.api, &server(&fleet), &unused.ticket, None).await;
    assert_eq!(late.end().await, "ticket_refused");

    let given = ticket(&fleet.api, &web, &[]).await;
    let mut page = Page::open_there(&fleet.api, &given).await;
    let path = format!("terminals/{}", given.session);
    let _: Terminal = fleet.api.delete(&path).await.unwrap();
    assert_eq!(page.end().await, "withdrawn");
    alone(&web, &own).await;

    let given = ticket(&fleet.api, &web, &[]).await;
    let mut page = Page::open_there(&fleet.api, &given).await;
    let _: Value = fleet.api.delete("hosts/box").await.unwrap();
    assert_eq!(page.end().await, "revoked");
    alone(&web, &own).await;
}

#[tokio::test]
async fn a_controller_that_restarts_ends_no_session_and_knows_them_afterwards() {
    let mut fleet = Fleet::start(options()).await;
    let names = Names::new();
    let web = names.polite("web");
    let given = ticket(&fleet.api, &web, &[]).await;
    let mut page = Page::open_there(&fleet.api, &given).await;
    fleet.controller.kill();
    page.type_in("echo w$((1+1))thout\r").await;
    page.until("it goes on without the controller", |p| {
        p.text().contains("w2thout")
    })
    .await;
    fleet.controller.start_again();
    fleet.all_online().await;
    wait_for("it is listed again", SOON, async || {
        let open: Vec<Terminal> = fleet.api.get("terminals").await.unwrap();
        let ours = open.iter().any(|one| one.session == given.session);
        ours.then_some(()).ok_or(format!("{open:?}"))
    })
    .await;
    let have = page.output.len() as u64;
    drop(page);
    let mut page = come_back(&fleet.api, &given.session, have).await;
    page.type_in("echo b$((1+1))ck\r").await;
    page.until("it is the same session", |p| p.text().contains("b2ck"))
        .await;
    let path = format!("terminals/{}", given.session);
    let _: Terminal = fleet.api.delete(&path).await.unwrap();
    assert_eq!(page.end().await, "withdrawn");
    row_of(&fleet.api, "terminal.end", &given.session).await;
    let arrived = row_of(&fleet.api, "recording.arrive", &given.session).await;
    assert_eq!(arrived.outcome, "ok", "{arrived:?}");
    let text = at_centre(&fleet, &given.session);
    assert!(text.contains("w2thout") && text.contains("b2ck"), "{text}");
}

#[tokio::test]
async fn a_region_that_is_cut_off_goes_on_and_ends_what_was_forbidden_when_it_is_back() {
    let fleet = Fleet::start(options().lines()).await;
    let names = Names::new();
    let web = names.polite("web");
    let body = json!({ "name": "ada", "permissions": ["read", "shell"] });
    let made: Value = fleet.api.post("api-tokens", &body).await.unwrap();
    let ada = fleet.api.with_token(made["token"].as_str().unwrap());
    let given = ticket(&fleet.api, &web, &[]).await;
    let (mut one, first) = (Page::open_there(&fleet.api, &given).await, given);
    let given = ask(&ada, &web, &[]).await.unwrap();
    let mut two = Page::open_there(&ada, &given).await;
    let given = ask(&fleet.api, &web, &[]).await.unwrap();
    let (mut three, third) = (Page::open_there(&fleet.api, &given).await, given);

    let line = fleet.uplink_line();
    line.set(Weather::refusing());
    line.cut(Cut::Reset);
    fleet.region_is("local", "offline").await;
    for page in [&mut one, &mut two, &mut three] {
        page.type_in("echo c$((1+1))t\r").await;
        page.until("it goes on", |p| p.text().contains("c2t")).await;
    }
    // What was known last stays; to come back to a session needs no uplink.
    let have = one.output.len() as u64;
    drop(one);
    let mut one = come_back(&fleet.api, &first.session, have).await;
    one.type_in("echo st$((1+1))ll; exit\r").await;
    assert_eq!(one.end().await, "");
    assert!(one.text().contains("st2ll"));
    // None is opened, and none can be ended from here now.
    let refused = ask(&fleet.api, &web, &[]).await.unwrap_err();
    assert_eq!(refused.status, 503, "{refused}");
    let kick: Result<Terminal, _> = fleet
        .api
        .delete(&format!("terminals/{}", third.session))
        .await;
    assert_eq!(kick.unwrap_err().code, "region_offline");
    let id = made["id"].as_str().unwrap();
    fleet.api.revoke_api_token(id).await.unwrap();

    line.heal();
    let (two, three) = tokio::join!(two.end(), three.end());
    assert_eq!((&two[..], &three[..]), ("unauthenticated", "withdrawn"));
    row_of(&fleet.api, "terminal.end", &first.session).await;
    let arrived = row_of(&fleet.api, "recording.arrive", &first.session).await;
    assert_eq!(arrived.outcome, "ok", "{arrived:?}");
    assert!(at_centre(&fleet, &first.session).contains("st2ll"));
}

#[tokio::test]
async fn an_access_server_that_dies_leaves_no_process_and_its_recordings_gap_shows() {
    let mut fleet = Fleet::start(options()).await;
    let names = Names::new();
    let web = names.polite("web");
    let own = own_processes(&web).await;
    let given = ticket(&fleet.api, &web, &[]).await;
    let mut page = Page::open_there(&fleet.api, &given).await;
    page.type_in("echo b$((1+1))fore; sleep 309\r").await;
    page.until("it runs", |p| p.text().contains("b2fore")).await;
    wait_for("the recording has it", SOON, async || {
        let text = at_region(&fleet);
        let text = text
            .first()
            .map(|path| std::fs::read_to_string(path).unwrap());
        let has = text.is_some_and(|text| text.contains("b2fore"));
        has.then_some(()).ok_or("not yet".to_owned())
    })
    .await;
    fleet.regions[0].process.kill();
    while page.hear().await {}
    alone(&web, &own).await;
    fleet.regions[0].process.start_again();
    fleet.all_online().await;
    let arrived = row_of(&fleet.api, "recording.arrive", &given.session).await;
    assert_eq!(arrived.outcome, "failed", "{arrived:?}");
    assert!(arrived.detail.contains("it has no end"), "{arrived:?}");
    assert!(at_centre(&fleet, &given.session).contains("b2fore"));
    let open: Vec<Terminal> = fleet.api.get("terminals").await.unwrap();
    assert!(open.is_empty(), "{open:?}");
}

#[tokio::test]
async fn without_a_recorder_at_the_region_there_is_no_shell() {
    let fleet = Fleet::start(options()).await;
    let names = Names::new();
    let web = names.polite("web");
    let given = ticket(&fleet.api, &web, &["touch", "/tmp/ran"]).await;
    std::fs::remove_dir_all(fleet.regions[0].dir.join("recordings")).unwrap();
    let mut page = Page::enter_at(&fleet.api, &server(&fleet), &given.ticket, None).await;
    assert_eq!(page.end().await, "storage_unavailable");
    // The host was not even asked.
    assert!(audit(&fleet.api, "terminal.open").await.is_empty());
    let ran = docker(&["exec", &web, "test", "-e", "/tmp/ran"]);
    assert!(!ran.status.success());
}
