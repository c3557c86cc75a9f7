//! Terminals at a region, without one: what a region is answered, and what it is not believed.

use super::*;
use crate::regions::terminals::TerminalDesk;
use fairlead_protocol::{
    CommandId, OpenTerminal, OpenTerminals, RecordingPart, RecordingTaken, TerminalAnswer,
    TerminalAsk, terminal_ask::What, uplink_down,
};
use fairlead_webssh::recording::{About, Header, Writer};

impl World {
    async fn ticket(&self, token: &str, relay: bool) -> Value {
        let body =
            json!({ "host": "box", "container": "web", "columns": 80, "rows": 25, "relay": relay });
        let answer = self.post(token, "/api/v1/terminals", body).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
        answer.body
    }

    async fn asked(&self, region: &str, what: What) -> TerminalAnswer {
        let ask = TerminalAsk {
            request: 5,
            what: Some(what),
        };
        let answer = self.backend.asked(region, ask).await;
        assert_eq!(answer.request, 5);
        answer
    }

    /// A terminal that has begun at region `here`.
    async fn begun(&self, token: &str) -> CommandId {
        let given = self.ticket(token, false).await;
        let text = given["ticket"].as_str().unwrap().to_owned();
        let admitted = self.asked("here", What::Admit(text)).await;
        assert_eq!(admitted.code, "");
        let session: CommandId = given["session"].as_str().unwrap().parse().unwrap();
        let begun = self.asked("here", What::Begin(session.to_wire())).await;
        assert_eq!(begun.code, "", "{}", begun.message);
        session
    }

    async fn shipped(&self, region: &str, part: RecordingPart) -> RecordingTaken {
        TerminalDesk::recording(&*self.backend, region, part).await
    }

    async fn shown(&self, token: &str) -> usize {
        let answer = self.get(token, "/api/v1/terminals").await;
        answer.body.as_array().unwrap().len()
    }
}

fn list(of: &[CommandId]) -> OpenTerminals {
    let open = of.iter().map(|session| OpenTerminal {
        session: session.to_wire(),
        output: 7,
        ..OpenTerminal::default()
    });
    OpenTerminals {
        open: open.collect(),
    }
}

async fn world() -> (World, Arc<fairlead_webssh::Terminals>, String) {
    let w = World::new().await;
    let terminals = w.backend.terminals_of(CancellationToken::new());
    w.show_containers(BOX, &[("c0ffee000000", "web")]);
    w.backend.attached("here", "https://here.example.com");
    w.backend.attached("there", "");
    let token = w.admin().await;
    (w, terminals, token)
}

#[tokio::test]
async fn s03_a_ticket_is_one_regions_and_begins_once() {
    let (w, _terminals, token) = world().await;
    let given = w.ticket(&token, false).await;
    assert_eq!(given["server"], "https://here.example.com");
    let text = given["ticket"].as_str().unwrap().to_owned();
    let session: CommandId = given["session"].as_str().unwrap().parse().unwrap();
    // Another region neither reads it nor begins it.
    let other = w.asked("there", What::Admit(text.clone())).await;
    assert_eq!(other.code, "ticket_refused");
    let other = w.asked("there", What::Begin(session.to_wire())).await;
    assert_eq!(other.code, "terminal_not_found");
    let admitted = w.asked("here", What::Admit(text.clone())).await;
    let info = admitted.info.unwrap();
    assert_eq!((&info.host_name[..], &info.container[..]), ("box", "web"));
    assert!(
        w.dispatch.submitted.lock().unwrap().is_empty(),
        "nothing has begun"
    );
    let begun = w.asked("here", What::Begin(session.to_wire())).await;
    assert_eq!(begun.code, "");
    assert_eq!(w.dispatch.last().id, session);
    let again = w.asked("here", What::Begin(session.to_wire())).await;
    assert_eq!(again.code, "terminal_not_found");
    assert_eq!(w.shown(&token).await, 1);

    // Altered, or for a session that lives here.
    let altered = w.asked("here", What::Admit(text.replace('A', "B"))).await;
    assert_eq!(altered.code, "ticket_refused");
    let relayed = w.ticket(&token, true).await;
    assert_eq!(relayed["server"], Value::Null);
    let text = relayed["ticket"].as_str().unwrap().to_owned();
    assert_eq!(
        w.asked("here", What::Admit(text)).await.code,
        "ticket_refused"
    );
    // Cut off, a region gets no tickets any more; to come back to a session there is one.
    w.backend.detached("here");
    assert_eq!(w.ticket(&token, false).await["server"], Value::Null);
    let path = format!("/api/v1/terminals/{session}/ticket");
    let back = w.post(&token, &path, json!({})).await;
    assert_eq!(back.body["server"], "https://here.example.com");
}

#[tokio::test]
async fn s05_what_a_token_opened_at_a_region_ends_with_it_and_is_said_until_it_has() {
    let (w, _terminals, admin) = world().await;
    let token = w
        .token_of("default", &[Permission::Read, Permission::Shell], json!({}))
        .await;
    let session = w.begun(&token).await;
    let whoami = w.get(&token, "/api/v1/whoami").await;
    let id = whoami.body["token_id"].as_str().unwrap().to_owned();
    let ends = || {
        let told = std::mem::take(&mut *w.dispatch.told.lock().unwrap());
        told.into_iter()
            .filter_map(|(region, kind)| match kind {
                uplink_down::Kind::EndTerminal(end) => Some((region, end.session, end.code)),
                _ => None,
            })
            .collect::<Vec<_>>()
    };
    w.backend.housekeep().await.unwrap();
    assert!(ends().is_empty(), "nothing forbids it");
    w.delete(&admin, &format!("/api/v1/api-tokens/{id}")).await;
    let said = vec![(
        "here".to_owned(),
        session.to_wire(),
        "unauthenticated".to_owned(),
    )];
    assert_eq!(ends(), said);
    w.backend.housekeep().await.unwrap();
    assert_eq!(ends(), said, "until it has ended");
    assert_eq!(w.backend.told("here", list(&[session])).len(), 1);
    assert!(w.backend.told("here", list(&[])).is_empty());
    w.backend.housekeep().await.unwrap();
    assert!(ends().is_empty());
}

#[tokio::test]
async fn s04_a_region_makes_up_no_sessions_and_no_owners() {
    let (w, _terminals, token) = world().await;
    let session = w.begun(&token).await;
    // One that this controller never heard of, and one of another region.
    w.backend.told("there", list(&[session]));
    w.backend
        .told("here", list(&[CommandId::from_bytes([9; 16])]));
    assert_eq!(w.shown(&token).await, 0);
    // As after a restart: it is known by the store, and whose it is as well.
    w.backend.told("here", list(&[session]));
    assert_eq!(w.shown(&token).await, 1);
    let other = w
        .token_of("default", &[Permission::Read, Permission::Shell], json!({}))
        .await;
    assert_eq!(w.shown(&other).await, 0);
    let path = format!("/api/v1/terminals/{session}/ticket");
    assert_eq!(
        w.post(&other, &path, json!({})).await.status,
        StatusCode::NOT_FOUND
    );
}

#[tokio::test]
async fn after_a_restart_a_session_that_no_region_has_told_of_may_still_be_there() {
    let (w, _terminals, token) = world().await;
    let session = w.begun(&token).await;
    w.backend.told("here", list(&[]));
    let path = format!("/api/v1/terminals/{session}/ticket");
    let gone = w.post(&token, &path, json!({})).await;
    assert_eq!(gone.code(), "terminal_not_found", "it has ended");

    let (w, _terminals, token) = world().await;
    let new = w.ticket(&token, false).await;
    let session: CommandId = new["session"].as_str().unwrap().parse().unwrap();
    w.backend.ordered(session, Some("here")).await.unwrap();
    let path = format!("/api/v1/terminals/{session}/ticket");
    let untold = w.post(&token, &path, json!({})).await;
    assert_eq!(untold.code(), "region_offline", "{}", untold.text);
    let other = w.admin().await;
    assert_eq!(
        w.post(&other, &path, json!({})).await.status,
        StatusCode::NOT_FOUND
    );
}

#[tokio::test]
async fn a_region_ships_recordings_of_its_own_sessions_and_what_is_found_is_audited() {
    let (w, _terminals, token) = world().await;
    let session = w.begun(&token).await;
    let open = w.get(&token, "/api/v1/terminals").await;
    let user = open.body[0]["user"].as_str().unwrap().to_owned();
    let token_id = user
        .rsplit_once("token ")
        .unwrap()
        .1
        .trim_end_matches(')')
        .to_owned();
    let header = |host: HostId, user: &str| Header {
        version: 2,
        width: 80,
        height: 25,
        timestamp: NOW / 1_000_000,
        title: "box/web".to_owned(),
        fairlead: About {
            session: session.to_string(),
            user: user.to_owned(),
            token_id: token_id.clone(),
            tenant: "default".to_owned(),
            region: "here".to_owned(),
            host: "box".to_owned(),
            host_id: host.to_string(),
            container: "web".to_owned(),
            container_id: "c0ffee000000".to_owned(),
        },
    };
    let part = |header: &Header, last: bool| {
        let mut writer = Writer::new(header, NOW);
        writer.output(NOW + 5, b"hello");
        let (text, hash) = writer.end(NOW + 9);
        let part = RecordingPart {
            session: session.to_wire(),
            offset: 0,
            data: text.into_bytes().into(),
            last,
        };
        (part, hash)
    };
    // Of another host, in another's name, or by another region.
    for wrong in [header(FAR, &user), header(BOX, "ada (token x)")] {
        let taken = w.shipped("here", part(&wrong, true).0).await;
        assert_eq!((&taken.code[..], taken.done), ("protocol_violation", false));
    }
    let (good, hash) = part(&header(BOX, &user), true);
    let taken = w.shipped("there", good.clone()).await;
    assert_eq!(taken.code, "protocol_violation");
    let listed = w.get(&token, "/api/v1/recordings").await;
    assert_eq!(listed.body.as_array().unwrap().len(), 0);

    let taken = w.shipped("here", good.clone()).await;
    assert_eq!(
        (&taken.code[..], taken.done),
        ("", true),
        "{}",
        taken.message
    );
    let taken = w.shipped("here", good).await;
    assert!(taken.done, "the answer was lost, and it is said again");
    let rows = w.audit_rows().await;
    let found: Vec<_> = rows
        .iter()
        .filter(|row| row.entry.action == "recording.arrive")
        .collect();
    assert_eq!((found.len(), &found[0].entry.outcome[..]), (1, "ok"));
    assert!(found[0].entry.detail.ends_with(&hash), "{:?}", found[0]);
    let listed = async |query: &str| {
        let path = format!("/api/v1/recordings?{query}");
        let answer = w.get(&token, &path).await;
        answer.body.as_array().map(Vec::len)
    };
    // 2023-11-14T22:13:20Z.
    assert_eq!(
        listed("from=2023-11-14T22:13:20Z&to=2023-11-14T22:13:20Z").await,
        Some(1)
    );
    assert_eq!(listed("from=2023-11-14T22:13:21Z").await, Some(0));
    assert_eq!(listed("to=2023-11-14T22:13:19Z").await, Some(0));
    assert_eq!(listed("from=yesterday").await, None);
}
