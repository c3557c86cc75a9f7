//! Asking for commands: who may, which container, what is told while and after.

use super::double::succeeded;
use super::*;
use fairlead_protocol::command::Kind;
use fairlead_protocol::{CommandId, CommandResult, Progress, State};

fn restart(container: &str) -> Value {
    json!({"action": {"kind": "restart", "container": container}})
}

fn id_of(answer: &Answer) -> CommandId {
    answer.body["id"].as_str().unwrap().parse().unwrap()
}

async fn ready() -> (World, String) {
    let world = World::new().await;
    world.show_containers(BOX, &[("aaaa01", "web"), ("bbbb01", "db")]);
    world.show_containers(FAR, &[("aaaa02", "web")]);
    world.show_containers(THEIRS, &[("cccc01", "vault")]);
    let admin = world.admin().await;
    (world, admin)
}

#[tokio::test]
async fn the_container_says_which_host_is_meant() {
    let (world, admin) = ready().await;
    let cases = [
        (
            json!({"action": {"kind": "restart", "container": "db"}}),
            "box",
            "db",
        ),
        (
            json!({"host": "far", "action": {"kind": "restart", "container": "web"}}),
            "far",
            "web",
        ),
        (restart("box/web"), "box", "web"),
        (restart("bbbb"), "box", "db"),
        // Not in any picture yet, but the host is certain: the agent decides.
        (restart("far/just-made"), "far", "just-made"),
    ];
    for (body, host, target) in cases {
        let answer = world.post(&admin, "/api/v1/commands", body.clone()).await;
        assert_eq!(
            answer.status,
            StatusCode::CREATED,
            "{body}: {}",
            answer.text
        );
        assert_eq!(answer.body["host"], host, "{body}");
        assert_eq!(answer.body["target"], target, "{body}");
        assert_eq!(answer.body["state"], "queued");
    }
    let by_id = world
        .post(&admin, "/api/v1/commands", restart("bbbb01"))
        .await;
    assert_eq!(by_id.status, StatusCode::CREATED);
    let pinned = world.dispatch.last().precondition.unwrap().container_id;
    assert_eq!(
        pinned, "bbbb01",
        "named by its id, it must still be that one"
    );
    for (body, code) in [
        (restart("web"), codes::AMBIGUOUS),
        (restart("aaaa"), codes::AMBIGUOUS),
        (restart("nowhere"), codes::CONTAINER_NOT_FOUND),
        (restart("vault"), codes::CONTAINER_NOT_FOUND),
        (restart("secret/vault"), codes::HOST_NOT_FOUND),
        (restart("nohost/web"), codes::HOST_NOT_FOUND),
        (restart(""), codes::INVALID_REQUEST),
        (restart("a b"), codes::INVALID_REQUEST),
        (
            json!({"host": "", "action": {"kind": "ping"}}),
            codes::HOST_NOT_FOUND,
        ),
        (json!({"action": {"kind": "ping"}}), codes::INVALID_REQUEST),
        (
            json!({"host": "box", "action": {"kind": "restart", "container": "far/web"}}),
            codes::INVALID_REQUEST,
        ),
    ] {
        let answer = world.post(&admin, "/api/v1/commands", body.clone()).await;
        assert_eq!(answer.code(), code, "{body}: {}", answer.text);
    }
    let answer = world.post(&admin, "/api/v1/commands", restart("web")).await;
    assert!(
        answer.message().contains("box/web, far/web"),
        "{}",
        answer.message()
    );
}

#[tokio::test]
async fn each_kind_needs_its_permission() {
    let (world, _) = ready().await;
    let exec = json!({"kind": "exec", "container": "db", "command": ["true"]});
    let copy = json!({"kind": "copy-out", "container": "db", "path": "/etc"});
    let kinds = [
        (
            json!({"kind": "restart", "container": "db"}),
            Permission::Operate,
        ),
        (
            json!({"kind": "run", "spec": {"image": "busybox"}}),
            Permission::Operate,
        ),
        (json!({"kind": "logs", "container": "db"}), Permission::Read),
        (json!({"kind": "inspect", "object": "db"}), Permission::Read),
        (exec, Permission::Exec),
        (copy, Permission::Copy),
        (json!({"kind": "renew-certificate"}), Permission::Admin),
        (json!({"kind": "uninstall-agent"}), Permission::Admin),
        (
            json!({"kind": "upgrade-agent", "version": "1.4.0", "manifest": "0".repeat(64)}),
            Permission::Upgrade,
        ),
    ];
    for (action, needed) in kinds {
        for has in Permission::ALL {
            let token = world.token_of("default", &[has], json!({})).await;
            let body = json!({"host": "box", "action": action});
            let answer = world.post(&token, "/api/v1/commands", body).await;
            let may = has == needed || has == Permission::Admin;
            let want = if may {
                StatusCode::CREATED
            } else {
                StatusCode::FORBIDDEN
            };
            assert_eq!(
                answer.status, want,
                "{action} with {has:?}: {}",
                answer.text
            );
        }
    }
    let rows = world.audit_rows().await;
    assert!(
        rows.iter()
            .any(|r| r.entry.action == "command.exec" && r.entry.outcome == "denied")
    );
    let ok = rows
        .iter()
        .find(|r| r.entry.action == "command.restart" && r.entry.outcome == "ok");
    let ok = &ok.unwrap().entry;
    assert_eq!(ok.object, "box/db");
    assert!(
        ok.detail.contains("command ") && ok.actor.contains("token "),
        "{ok:?}"
    );
}

#[tokio::test]
async fn a_run_that_reaches_out_is_noted_in_the_audit_log() {
    let (world, admin) = ready().await;
    let spec = json!({"image": "busybox", "privileged": true, "network": "host",
        "mounts": [{"kind": "bind", "source": "/var/run/docker.sock", "target": "/s"}]});
    let body = json!({"host": "box", "action": {"kind": "run", "spec": spec}});
    let answer = world.post(&admin, "/api/v1/commands", body).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text);
    let rows = world.audit_rows().await;
    let detail = &rows[0].entry.detail;
    for word in ["privileged", "host network", "bind of /var/run/docker.sock"] {
        assert!(detail.contains(word), "{detail}");
    }
}

#[tokio::test]
async fn the_same_id_is_one_command() {
    let (world, admin) = ready().await;
    let id = CommandId::from_bytes([7; 16]).to_string();
    let body = json!({"id": id, "action": {"kind": "restart", "container": "db"}});
    let first = world.post(&admin, "/api/v1/commands", body.clone()).await;
    assert_eq!(first.status, StatusCode::CREATED, "{}", first.text);
    world.show_containers(BOX, &[("ffff", "other")]);
    let again = world.post(&admin, "/api/v1/commands", body.clone()).await;
    assert_eq!(
        again.status,
        StatusCode::OK,
        "even when the container is gone: {}",
        again.text
    );
    assert_eq!(again.body["id"], first.body["id"]);
    let other = json!({"id": id, "action": {"kind": "ping"}, "host": "box"});
    let answer = world.post(&admin, "/api/v1/commands", other).await;
    assert_eq!(answer.status, StatusCode::CONFLICT);
    assert_eq!(answer.code(), codes::DUPLICATE_ID);
    let theirs = world
        .token_of("theirs", &[Permission::Admin], json!({}))
        .await;
    let answer = world.post(&theirs, "/api/v1/commands", body).await;
    assert_eq!(
        answer.code(),
        codes::DUPLICATE_ID,
        "and tells another tenant nothing"
    );
    assert!(!answer.text.contains("box"));
    assert_eq!(world.dispatch.submitted.lock().unwrap().len(), 1);
    for wrong in ["", "short", "ILOU56789012345678901234ab"] {
        let body = json!({"id": wrong, "host": "box", "action": {"kind": "ping"}});
        let answer = world.post(&admin, "/api/v1/commands", body).await;
        assert_eq!(answer.code(), codes::INVALID_REQUEST, "{wrong}");
    }
}

#[tokio::test]
async fn an_answer_waits_for_the_end_and_shows_the_times() {
    let (world, admin) = ready().await;
    *world.dispatch.ends_at_once.lock().unwrap() = Some(CommandResult {
        body: b"[{\"Id\":1}]".to_vec().into(),
        ..succeeded()
    });
    let body = json!({"host": "box", "action": {"kind": "list"}});
    let answer = world
        .post(&admin, "/api/v1/commands?wait_ms=60000", body)
        .await;
    assert_eq!(answer.body["state"], "succeeded", "{}", answer.text);
    assert_eq!(answer.body["is_final"], true);
    assert_eq!(answer.body["output"][0]["Id"], 1);
    assert_eq!(answer.body["engine_ms"], 8.0);
    assert_eq!(answer.body["overhead_ms"], 2.5);
    assert_eq!(answer.body["timeline"][1]["stage"], "engine_called");

    *world.dispatch.ends_at_once.lock().unwrap() = None;
    let body = json!({"host": "box", "action": {"kind": "ping"}});
    let taken = world.post(&admin, "/api/v1/commands", body).await;
    let id = id_of(&taken);
    assert_eq!(taken.body["state"], "queued");
    let path = format!("/api/v1/commands/{id}?wait_ms=60000");
    let (shown, ()) = tokio::join!(
        world.get(&admin, &path),
        world.dispatch.end(id, succeeded())
    );
    assert_eq!(shown.body["state"], "succeeded");
    let too_long = world
        .get(&admin, &format!("/api/v1/commands/{id}?wait_ms=60001"))
        .await;
    assert_eq!(too_long.code(), codes::INVALID_REQUEST);
}

#[tokio::test]
async fn while_a_command_waits_it_says_for_what() {
    let (world, admin) = ready().await;
    world.fleet.apply_presence(
        "here",
        &HostPresence {
            host: BOX.to_wire(),
            state: "offline".to_owned(),
            since_us: NOW,
            ..HostPresence::default()
        },
    );
    let answer = world.post(&admin, "/api/v1/commands", restart("db")).await;
    let waiting = answer.body["waiting_for"].as_str().unwrap().to_owned();
    assert!(
        waiting.starts_with("host box is offline since 2023-11-14"),
        "{waiting}"
    );
    assert!(
        waiting.contains("waits until 2023-11-14T22:18:20Z"),
        "{waiting}"
    );
    let path = format!("/api/v1/commands/{}", id_of(&answer));
    let is = |state: &str| {
        let presence = HostPresence {
            host: BOX.to_wire(),
            state: state.to_owned(),
            since_us: NOW,
            ..HostPresence::default()
        };
        world.fleet.apply_presence("here", &presence);
    };
    is("suspect");
    let silent = world.get(&admin, &path).await;
    let waiting = silent.body["waiting_for"].as_str().unwrap();
    assert!(
        waiting.starts_with("host box does not answer since 2023-11-14"),
        "{waiting}"
    );
    is("online");
    let young = world.get(&admin, &path).await;
    assert_eq!(young.body["waiting_for"], "");
    world.clock.advance_us(3_000_000);
    let late = world.get(&admin, &path).await;
    let waiting = late.body["waiting_for"].as_str().unwrap();
    assert!(
        waiting.starts_with("host box has not taken it yet; waits until"),
        "{waiting}"
    );
    world.fleet.region_offline("here", NOW);
    let answer = world.get(&admin, &path).await;
    let waiting = answer.body["waiting_for"].as_str().unwrap();
    assert!(
        waiting.starts_with("region here is not connected"),
        "{waiting}"
    );
}

#[tokio::test]
async fn progress_shows_but_only_a_recorded_result_is_final() {
    let (world, admin) = ready().await;
    let answer = world.post(&admin, "/api/v1/commands", restart("db")).await;
    let id = id_of(&answer);
    let progress = Progress {
        command: id.to_wire(),
        state: State::Delivered.into(),
        stamps: Vec::new(),
        waiting_for: "lane held by another".to_owned(),
    };
    world.dispatch.tell(id, progress.clone());
    let shown = world
        .get(&admin, &format!("/api/v1/commands/{}", id.short()))
        .await;
    assert_eq!(shown.body["state"], "delivered");
    assert_eq!(shown.body["waiting_for"], "lane held by another");
    world.dispatch.tell(
        id,
        Progress {
            state: State::Succeeded.into(),
            ..progress
        },
    );
    let shown = world.get(&admin, &format!("/api/v1/commands/{id}")).await;
    assert_eq!(shown.body["state"], "running");
    assert_eq!(shown.body["is_final"], false);
    // It is found by the state that is shown, and by no other.
    for (query, count) in [
        ("state=running", 1),
        ("state=running&container=db&host=box", 1),
        ("state=queued", 0),
        ("state=delivered", 0),
        ("state=succeeded", 0),
    ] {
        let path = format!("/api/v1/commands?{query}");
        let listed = world.get(&admin, &path).await;
        let items = listed.body["items"].as_array().unwrap();
        assert_eq!(items.len(), count, "{query}: {}", listed.text);
    }
}

#[tokio::test]
async fn a_command_is_withdrawn_once_and_not_after_its_end() {
    let (world, admin) = ready().await;
    let id = id_of(&world.post(&admin, "/api/v1/commands", restart("db")).await);
    let path = format!("/api/v1/commands/{id}/cancel");
    let reader = world
        .token_of("default", &[Permission::Read], json!({}))
        .await;
    let refused = world.post(&reader, &path, json!({})).await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN);
    let answer = world.post(&admin, &path, json!({})).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.text);
    let waiting = answer.body["waiting_for"].as_str().unwrap();
    assert!(
        waiting.starts_with("being withdrawn by test (token "),
        "{waiting}"
    );
    let cancelled = CommandResult {
        state: State::Cancelled.into(),
        ..CommandResult::default()
    };
    world.dispatch.end(id, cancelled).await;
    let answer = world.post(&admin, &path, json!({})).await;
    assert_eq!(answer.status, StatusCode::CONFLICT);
    assert!(answer.message().contains("cancelled"));
}

#[tokio::test]
async fn listings_are_narrowed_and_pages_join_up() {
    let (world, admin) = ready().await;
    for n in 0..7 {
        let (host, container) = if n % 2 == 0 {
            ("box", "db")
        } else {
            ("far", "web")
        };
        let body = json!({"host": host, "action": {"kind": "restart", "container": container}});
        world.post(&admin, "/api/v1/commands", body).await;
    }
    let first = world.get(&admin, "/api/v1/commands?limit=3").await;
    assert_eq!(first.body["items"].as_array().unwrap().len(), 3);
    let next = first.body["next"].as_i64().unwrap();
    let rest = world
        .get(&admin, &format!("/api/v1/commands?limit=10&before={next}"))
        .await;
    assert_eq!(rest.body["items"].as_array().unwrap().len(), 4);
    assert!(rest.body["next"].is_null());
    let scoped = world
        .token_of(
            "default",
            &[Permission::Read],
            json!({"regions": ["there"]}),
        )
        .await;
    let own = world.get(&scoped, "/api/v1/commands?limit=2").await;
    let hosts: Vec<&str> = own.body["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["host"].as_str().unwrap())
        .collect();
    assert_eq!(hosts, ["far", "far"]);
    let filtered = world
        .get(
            &admin,
            "/api/v1/commands?host=box&state=queued&container=db",
        )
        .await;
    assert_eq!(filtered.body["items"].as_array().unwrap().len(), 4);
    for wrong in [
        "state=done",
        "state=unspecified",
        "host=secret",
        "host=",
        "container=",
    ] {
        let answer = world
            .get(&admin, &format!("/api/v1/commands?{wrong}"))
            .await;
        assert!(answer.status.is_client_error(), "{wrong}");
    }
    let hidden = id_of(&world.post(&admin, "/api/v1/commands", restart("db")).await);
    for path in ["", "/watch", "/stream"] {
        let answer = world
            .get(&scoped, &format!("/api/v1/commands/{hidden}{path}"))
            .await;
        assert!(answer.status == StatusCode::NOT_FOUND || answer.status == StatusCode::BAD_REQUEST);
        assert!(!answer.text.contains("box"));
    }
}

#[tokio::test]
async fn deadlines_and_attachment_are_checked() {
    let (world, admin) = ready().await;
    for body in [
        json!({"host": "box", "action": {"kind": "ping"}, "deadline_s": 0}),
        json!({"host": "box", "action": {"kind": "ping"}, "deadline_s": 604_801}),
        json!({"host": "box", "action": {"kind": "ping"}, "attach": true}),
        json!({"host": "box", "action": {"kind": "ping"}, "precondition": {}}),
        json!({"host": "box", "action": {"kind": "ping"}, "precondition": {"container_id": "abc"}}),
    ] {
        let answer = world.post(&admin, "/api/v1/commands", body.clone()).await;
        assert_eq!(answer.code(), codes::INVALID_REQUEST, "{body}");
    }
    let body = json!({"host": "box", "action": {"kind": "run", "spec": {"image": "busybox"}}});
    let answer = world.post(&admin, "/api/v1/commands", body).await;
    let name = answer.body["target"].as_str().unwrap();
    assert!(name.contains('_'), "the API names what has no name: {name}");
    let new = world.dispatch.last();
    let Kind::Run(run) = &new.kind else {
        panic!("a run")
    };
    assert_eq!(run.spec.as_ref().unwrap().name, name);
    assert_eq!(new.deadline.as_secs(), 300);
    assert_eq!(new.accepted_us, NOW);
}
