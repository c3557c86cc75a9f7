//! Commands: submitted once, waited for, reported.

use serde_json::{Value, json};

use crate::double::{self, Double};

fn succeed(asked: &double::Asked, _: usize) -> double::Answer {
    (201, double::command(&asked.body, "succeeded"))
}

#[test]
fn a_restart_says_what_happened_and_how_long_it_took() {
    let server = Double::new(succeed);
    let ran = server.run(&["restart", "box/web", "-t", "3", "--deadline", "10m"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let asked = &server.asked()[0];
    let id = asked.body["id"].as_str().unwrap();
    assert_eq!(id.len(), 26);
    assert_eq!(
        ran.out,
        format!(
            "box/web  restarted  418 ms (engine 416, Fairlead 2)   command {}\n",
            &id[..6]
        )
    );
    assert_eq!(asked.what, "POST /api/v1/commands");
    assert_eq!(asked.body["host"], "box");
    assert_eq!(asked.body["deadline_s"], 600);
    assert_eq!(
        asked.body["action"],
        json!({ "kind": "restart", "container": "web", "grace_s": 3, "signal": "" })
    );
    let ran = server.run(&["restart", "web", "-o", "json"]);
    assert_eq!(
        serde_json::from_str::<Value>(&ran.out).unwrap()["state"],
        "succeeded"
    );
}

#[test]
fn a_lost_answer_is_asked_for_again_under_the_same_id() {
    let server = Double::with(2, axum::Router::new(), succeed);
    let ran = server.run(&["restart", "web"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let id = server.asked()[0].body["id"].as_str().unwrap().to_owned();
    assert_eq!(server.asked().len(), 1);
    let dropped = server.dropped();
    assert_eq!(dropped.len(), 2);
    for request in dropped {
        assert!(
            request.starts_with("POST /api/v1/commands?wait_ms="),
            "{request}"
        );
    }
    assert_eq!(id.len(), 26);
}

#[test]
fn final_states_become_exit_codes() {
    for (state, code, exit) in [
        ("failed", "engine_error", 1),
        ("failed", "container_not_found", 3),
        ("failed", "forbidden_by_host", 4),
        ("conflict", "precondition_failed", 5),
        ("expired", "deadline_passed", 7),
        ("unknown", "outcome_unknown", 1),
    ] {
        let server = Double::new(move |asked, _| {
            let mut command = double::command(&asked.body, state);
            command["code"] = code.into();
            command["message"] = "the engine said no".into();
            (201, command)
        });
        let ran = server.run(&["stop", "web"]);
        assert_eq!(ran.code, exit, "{ran:?}");
        assert!(
            ran.err.contains(&format!("the engine said no ({code})")),
            "{ran:?}"
        );
        assert!(ran.err.contains("fairlead command show"), "{ran:?}");
        assert!(ran.out.is_empty(), "{ran:?}");
    }
}

#[test]
fn of_several_some_may_fail() {
    let server = Double::new(|asked, _| {
        if asked.body["action"]["container"] == "b" {
            return double::error(404, "container_not_found", "no container b");
        }
        (201, double::command(&asked.body, "succeeded"))
    });
    let ran = server.run(&["start", "a", "b", "c"]);
    assert_eq!(ran.code, 6, "{ran:?}");
    assert_eq!(ran.out.lines().count(), 2, "{ran:?}");
    assert!(
        ran.err
            .contains("error: no container b (container_not_found)"),
        "{ran:?}"
    );
    let ran = server.run(&["start", "a", "c", "-o", "json"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let value: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(
        (&value[0]["target"], &value[1]["target"]),
        (&json!("a"), &json!("c"))
    );
}

#[test]
fn a_host_that_is_away_is_said_with_the_way_out() {
    let server = Double::new(|asked, count| match asked.what.as_str() {
        "POST /api/v1/commands" => {
            let mut command = double::sample("queued");
            command["waiting_for"] = "host offline".into();
            (201, command)
        }
        "GET /api/v1/hosts/h1" => (200, double::host("offline")),
        _ if count == 0 => double::error(503, "storage_unavailable", "starting"),
        _ => (200, double::sample("succeeded")),
    });
    // The first look fails for good reason: not a lost connection, so it is reported.
    let ran = server.run(&["restart", "web"]);
    assert_eq!(ran.code, 8, "{ran:?}");
    assert!(
        ran.err.contains("restart waits: host box is offline since"),
        "{ran:?}"
    );
    assert!(
        ran.err
            .contains("withdraw it: fairlead command cancel 7q3k9m"),
        "{ran:?}"
    );
    let ran = server.run(&["restart", "web"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.out.contains("box/web  restarted"), "{ran:?}");
}

#[test]
fn without_waiting_only_the_id_is_printed() {
    let server = Double::new(|_, _| (201, double::sample("queued")));
    let ran = server.run(&["restart", "web", "--no-wait"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(ran.out, "7q3k9m2x7q3k9m2x7q3k9m2x70\n");
    assert_eq!(server.asked()[0].query, "wait_ms=0");
}

#[test]
fn ctrl_c_says_that_it_goes_on() {
    let server = Double::new(|asked, _| {
        if asked.what.starts_with("GET /api/v1/commands/") {
            // Long enough for the signal to come first.
            std::thread::sleep(std::time::Duration::from_millis(300));
        }
        (200, double::sample("running"))
    });
    let child = server.command(&["restart", "web"]).spawn().unwrap();
    while server.asked().len() < 2 {
        std::thread::yield_now();
    }
    let pid = child.id().to_string();
    let sent = std::process::Command::new("kill")
        .args(["-INT", &pid])
        .status()
        .unwrap();
    assert!(sent.success());
    let output = child.wait_with_output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{err}");
    assert!(err.contains("goes on"), "{err}");
    assert!(err.contains("fairlead command watch"), "{err}");
    assert!(err.contains("fairlead command cancel"), "{err}");
}

#[test]
fn run_takes_dockers_words() {
    let server = Double::new(succeed);
    let ran = server.run(&[
        "run", "-d", "--host", "box", "--name", "web", "-p", "8080:80", "-m", "64m", "--rm",
        "demo:1", "httpd", "-f", "--name", "not-ours",
    ]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.out.starts_with("box/web  running"), "{ran:?}");
    assert!(ran.err.is_empty(), "{ran:?}");
    let spec = &server.asked()[0].body["action"]["spec"];
    assert_eq!(
        spec["command"],
        json!(["httpd", "-f", "--name", "not-ours"])
    );
    assert_eq!(spec["memory_bytes"], 64 << 20);
    assert_eq!(spec["ports"][0]["host_port"], 8080);
    let ran = server.run(&["run", "demo:1"]);
    assert!(ran.err.contains("fairlead logs -f"), "{ran:?}");

    let file = server.home.path().join("id");
    let path = file.to_str().unwrap();
    assert_eq!(
        server.run(&["run", "-d", "--cidfile", path, "demo:1"]).code,
        0
    );
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "c0ffee");
    assert_eq!(
        server.run(&["run", "-d", "--cidfile", path, "demo:1"]).code,
        1,
        "it is there"
    );
}

#[test]
fn a_command_is_shown_and_watched() {
    let mut done = double::sample("succeeded");
    done["timeline"] = json!([
        { "stage": "stored", "at": "2026-11-20T14:00:00Z", "after_ms": 0.3 },
        { "stage": "verified", "at": "2026-11-20T14:00:00Z", "after_ms": 0.6 }
    ]);
    let server = Double::new(move |asked, _| match asked.what.as_str() {
        "GET /api/v1/commands/7q3k9m2x7q3k9m2x7q3k9m2x70/watch" => (
            200,
            Value::String(format!("event: command\ndata: {done}\n\n")),
        ),
        "GET /api/v1/commands/7q3k" => (200, double::sample("running")),
        _ => (200, done.clone()),
    });
    let ran = server.run(&["command", "show", "abcd"]);
    assert!(ran.out.contains("0.6  signature good"), "{ran:?}");
    let ran = server.run(&["command", "watch", "7q3k"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(
        ran.out.contains("queued, on the controller's disk"),
        "{ran:?}"
    );
    assert!(
        ran.out
            .ends_with("succeeded, 418 ms (engine 416, Fairlead 2)\n"),
        "{ran:?}"
    );
}

#[test]
fn events_are_followed_through_a_break_each_once() {
    let event = |seq: i64| {
        json!({
            "seq": seq, "at": "2026-11-20T14:00:00Z", "host": "box", "host_id": "h1",
            "region": "local", "action": "container.start", "container": "web",
            "container_id": "c", "image": "", "command": "", "cause": "by-hand", "detail": ""
        })
    };
    let stream = move |seqs: &[i64]| {
        let text = seqs
            .iter()
            .map(|seq| format!("event: event\nid: {seq}\ndata: {}\n\n", event(*seq)))
            .collect();
        (200, Value::String(text))
    };
    let server = Double::new(move |asked, count| match (asked.what.as_str(), count) {
        ("GET /api/v1/events", _) => double::page(vec![event(3)]),
        (_, 0) => stream(&[4, 5]),
        (_, 1) => stream(&[5, 6]),
        _ => double::error(401, "token_revoked", "the token was revoked"),
    });
    let ran = server.run(&["events", "-f", "-o", "json"]);
    assert_eq!(ran.code, 4, "{ran:?}");
    let seqs: Vec<i64> = ran
        .out
        .lines()
        .map(|line| {
            serde_json::from_str::<Value>(line).unwrap()["seq"]
                .as_i64()
                .unwrap()
        })
        .collect();
    assert_eq!(seqs, [4, 5, 6]);
    let asked = server.asked();
    let ids: Vec<&str> = asked
        .iter()
        .map(|asked| asked.last_event_id.as_str())
        .collect();
    assert_eq!(ids, ["", "3", "5", "6"]);
}

#[test]
fn a_command_whose_host_says_nothing_past_its_deadline_is_not_waited_for_for_ever() {
    let server = Double::new(|asked, _| {
        let mut command = double::sample("queued");
        // Over as soon as it was taken.
        command["not_after"] = command["issued_at"].clone();
        match asked.what.as_str() {
            "POST /api/v1/commands" => (201, command),
            "GET /api/v1/hosts/h1" => (200, double::host("suspect")),
            _ => (200, command),
        }
    });
    let ran = server.run(&["restart", "web"]);
    assert_eq!(ran.code, 8, "{ran:?}");
    let words = "its deadline has passed; whether it had begun is known when the host is back";
    assert!(ran.err.contains(words), "{ran:?}");
    assert!(ran.err.contains("fairlead command watch 7q3k9m"), "{ran:?}");
}

#[test]
fn only_hosts_that_have_been_silent_for_so_long_lose_their_identity() {
    let yesterday = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(24);
    let named = |name: &str, state: &str, last_seen: Value| {
        let mut host = double::host(state);
        host["name"] = name.into();
        host["last_seen"] = last_seen;
        host["enrolled_at"] = "2020-01-01T00:00:00Z".into();
        host
    };
    let long_ago = json!("2020-02-01T00:00:00Z");
    let hosts = json!([
        named("gone", "offline", long_ago.clone()),
        named("never-came-back", "offline", Value::Null),
        named("rebooting", "offline", yesterday.to_string().into()),
        named("busy", "online", long_ago.clone()),
        // Its region is not connected: it may be well.
        named("cut-off", "unknown", long_ago.clone()),
        named("copy", "held", long_ago),
    ]);
    let server = Double::new(move |asked, _| match asked.what.as_str() {
        "GET /api/v1/hosts" => (200, hosts.clone()),
        _ => (200, Value::Null),
    });
    let ends = |args: &[&str]| {
        let ran = server.run(args);
        assert_eq!(ran.code, 0, "{ran:?}");
        ran.err
    };
    let line = ["host", "rm", "--offline-for", "30d"];
    let said = ends(&[&line[..], &["--dry-run"]].concat());
    assert_eq!(said.lines().count(), 2, "{said}");
    assert_eq!(server.asked().len(), 1, "nothing is done");
    ends(&line);
    let mut done: Vec<String> = server.asked().into_iter().map(|asked| asked.what).collect();
    done[2..].sort();
    assert_eq!(
        done[2..],
        [
            "DELETE /api/v1/hosts/gone",
            "DELETE /api/v1/hosts/never-came-back"
        ]
    );
    let said = ends(&["host", "rm", "--offline-for", "9000d"]);
    assert!(said.contains("no host has been away"), "{said}");
}

#[test]
fn a_check_of_a_host_says_it_in_a_table_and_ends_with_one_when_something_is_bad() {
    for (verdict, code) in [("good", 0), ("mind", 0), ("bad", 1)] {
        let server = Double::new(move |asked, _| {
            let mut command = double::command(&asked.body, "succeeded");
            command["output"] = json!({
                "is_good": verdict != "bad",
                "checks": [{
                    "name": "live-restore", "verdict": verdict, "found": "off, 2 running containers",
                    "means": "a restart stops them", "later": "a newer agent says more"
                }]
            });
            (201, command)
        });
        let ran = server.run(&["host", "check", "box"]);
        assert_eq!(ran.code, code, "{ran:?}");
        assert!(
            ran.out.contains(&format!("live-restore  {verdict}")),
            "{ran:?}"
        );
        let asked = &server.asked()[0];
        assert_eq!(asked.body["host"], "box");
        assert_eq!(
            asked.body["action"],
            json!({ "kind": "inspect", "object": "", "object_kind": "host" })
        );
        let ran = server.run(&["host", "check", "box", "-o", "json"]);
        assert_eq!(ran.code, code, "{ran:?}");
        let told: Value = serde_json::from_str(&ran.out).unwrap();
        assert_eq!(told["checks"][0]["verdict"], verdict);
    }
}
