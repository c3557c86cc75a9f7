//! What a caller sees, and that what it may not see does not exist for it.

use super::*;
use fairlead_api::access::table;
use std::sync::atomic::Ordering;

fn names(answer: &Answer) -> Vec<&str> {
    answer
        .body
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["name"].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn scope_narrows_lists_and_hides_single_things() {
    let world = World::new().await;
    world.show_containers(BOX, &[("aa", "web")]);
    world.show_containers(FAR, &[("bb", "db")]);
    let admin = world.admin().await;
    assert_eq!(
        names(&world.get(&admin, "/api/v1/hosts").await),
        ["box", "far"]
    );
    for (scope, hosts, containers) in [
        (json!({}), vec!["box", "far"], vec!["web", "db"]),
        (json!({"regions": ["there"]}), vec!["far"], vec!["db"]),
        (json!({"labels": {"env": "prod"}}), vec!["box"], vec!["web"]),
        (
            json!({"regions": ["there"], "labels": {"env": "prod"}}),
            vec![],
            vec![],
        ),
        (json!({"regions": ["nowhere"]}), vec![], vec![]),
        (
            json!({"regions": ["there", "there", "nowhere"]}),
            vec!["far"],
            vec!["db"],
        ),
    ] {
        let token = world
            .token_of("default", &[Permission::Read], scope.clone())
            .await;
        assert_eq!(
            names(&world.get(&token, "/api/v1/hosts").await),
            hosts,
            "{scope}"
        );
        assert_eq!(
            names(&world.get(&token, "/api/v1/containers").await),
            containers,
            "{scope}"
        );
        let status = world.get(&token, "/api/v1/status").await;
        assert_eq!(status.body["hosts"], hosts.len(), "{scope}");
        for host in ["box", "far"] {
            let answer = world.get(&token, &format!("/api/v1/hosts/{host}")).await;
            let want = if hosts.contains(&host) { 200 } else { 404 };
            assert_eq!(answer.status.as_u16(), want, "{scope} {host}");
        }
    }
    let by_prefix = BOX.to_string();
    let answer = world
        .get(&admin, &format!("/api/v1/hosts/{}", &by_prefix[..8]))
        .await;
    assert_eq!(answer.body["name"], "box");
    // Ids of [1; 16] and [2; 16] begin alike.
    let answer = world.get(&admin, "/api/v1/hosts/0").await;
    assert_eq!(answer.code(), codes::AMBIGUOUS, "{}", answer.text);
}

#[tokio::test]
async fn s07_nothing_of_another_tenant_is_seen_or_changed() {
    let world = World::new().await;
    world.show_containers(BOX, &[("aa", "web")]);
    let admin = world.admin().await;
    let theirs = world
        .token_of("theirs", &[Permission::Admin], json!({}))
        .await;
    let body = json!({"host": "box", "action": {"kind": "restart", "container": "web"}});
    let command = world.post(&admin, "/api/v1/commands", body.clone()).await;
    let command = command.body["id"].as_str().unwrap().to_owned();
    let join = world
        .post(&admin, "/api/v1/join-tokens", json!({"region": "here"}))
        .await;
    let join = join.body["id"].as_str().unwrap().to_owned();
    let token = admin["FA1".len()..].split('.').next().unwrap().to_owned();
    for rule in table().iter().filter(|rule| rule.path.contains('{')) {
        let id = match rule.path {
            path if path.contains("join-tokens") => &join,
            path if path.contains("api-tokens") => &token,
            _ => &command,
        };
        for host in ["box", &BOX.to_string()] {
            let path = rule
                .path
                .replace("{id}", id)
                .replace("{host}", host)
                .replace("{name}", "here");
            let answer = world
                .send(request(
                    rule.method.clone(),
                    &theirs,
                    &path,
                    Some(json!({})),
                ))
                .await;
            assert!(answer.status.is_client_error(), "{} {path}", rule.method);
            assert_ne!(
                answer.status,
                StatusCode::FORBIDDEN,
                "{path}: that would tell it exists"
            );
            assert!(!answer.text.contains("\"region\""), "{path}");
        }
    }
    let answer = world.post(&theirs, "/api/v1/commands", body).await;
    assert_eq!(answer.code(), codes::HOST_NOT_FOUND);
    for path in [
        "hosts",
        "containers",
        "commands",
        "events",
        "join-tokens",
        "regions",
    ] {
        let answer = world.get(&theirs, &format!("/api/v1/{path}")).await;
        assert_eq!(answer.status, StatusCode::OK);
        for ours in [
            "\"box\"",
            "\"far\"",
            "\"here\"",
            command.as_str(),
            join.as_str(),
        ] {
            assert!(!answer.text.contains(ours), "{path} shows {ours}");
        }
    }
    assert_eq!(
        world.get(&admin, "/api/v1/whoami").await.status,
        StatusCode::OK
    );
}

#[tokio::test]
async fn s06_odd_values_never_mean_everything() {
    let world = World::new().await;
    let admin = world.admin().await;
    for query in [
        "host=",
        "host=%00",
        "name=",
        "project=",
        "all=maybe",
        "host=box&host=far",
    ] {
        let answer = world
            .get(&admin, &format!("/api/v1/containers?{query}"))
            .await;
        assert!(answer.status.is_client_error(), "{query}: {}", answer.text);
    }
    for body in [
        json!(null),
        json!([]),
        json!({"region": null, "labels": null}),
        json!("x"),
    ] {
        let answer = world
            .post(&admin, "/api/v1/join-tokens", body.clone())
            .await;
        assert!(answer.status.is_client_error(), "{body}: {}", answer.text);
    }
    for scope in [
        json!({"regions": null}),
        json!({"regions": "here"}),
        json!([]),
        json!(null),
    ] {
        let body = json!({"name": "x", "permissions": ["read"], "scope": scope});
        let answer = world.post(&admin, "/api/v1/api-tokens", body).await;
        assert!(answer.status.is_client_error(), "{scope}: {}", answer.text);
    }
    let damaged = ApiToken::generate();
    let row = ApiTokenRow {
        id: damaged.id.clone(),
        tenant: "default".to_owned(),
        secret_hash: secret_hash(&damaged.secret),
        permissions: vec!["admin".to_owned()],
        scope: "damaged".to_owned(),
        ..ApiTokenRow::default()
    };
    world
        .store
        .write(move |tx| tx.insert_api_token(&row))
        .await
        .unwrap();
    let answer = world.get(&damaged.to_string(), "/api/v1/hosts").await;
    assert_eq!(
        answer.status,
        StatusCode::INTERNAL_SERVER_ERROR,
        "a damaged scope opens nothing"
    );
}

#[tokio::test]
async fn a_hosts_identity_ends_and_regions_are_told() {
    let world = World::new().await;
    let admin = world.admin().await;
    let answer = world
        .post(&admin, "/api/v1/hosts/box/revoke-certificate", json!({}))
        .await;
    assert_eq!(
        answer.code(),
        codes::CERTIFICATE_REJECTED,
        "none is known yet"
    );
    world
        .store
        .write(|tx| {
            tx.host_certified(BOX, 1, &[], b"0a1b2c", NOW + 1)?;
            tx.hold_host(BOX, "counter went back")
        })
        .await
        .unwrap();
    assert_eq!(
        world.get(&admin, "/api/v1/hosts/box").await.body["state"],
        "held"
    );
    let answer = world
        .post(&admin, "/api/v1/hosts/box/approve", json!({}))
        .await;
    assert_eq!(answer.body["state"], "online", "{}", answer.text);
    let answer = world
        .post(&admin, "/api/v1/hosts/box/revoke-certificate", json!({}))
        .await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    assert_eq!(
        world.store.read(|tx| tx.revoked_serials()).await.unwrap(),
        ["0a1b2c"]
    );
    assert_eq!(
        world.delete(&admin, "/api/v1/hosts/box").await.status,
        StatusCode::OK
    );
    assert_eq!(world.dispatch.revocations_pushed.load(Ordering::SeqCst), 2);
    assert_eq!(
        world.delete(&admin, "/api/v1/hosts/box").await.code(),
        codes::HOST_NOT_FOUND
    );
    assert_eq!(names(&world.get(&admin, "/api/v1/hosts").await), ["far"]);
    let events = world.get(&admin, "/api/v1/events?limit=1").await;
    assert_eq!(events.body["items"][0]["action"], "host.revoked");
    assert_eq!(events.body["items"][0]["host"], "box");
    let audit = world.get(&admin, "/api/v1/audit").await;
    let actions: Vec<&str> = audit.body["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["action"].as_str().unwrap())
        .collect();
    assert_eq!(
        actions[..4],
        [
            "host.revoke",
            "host.revoke",
            "host.revoke-certificate",
            "host.approve"
        ]
    );
    let chain = world
        .store
        .read(|tx| tx.verify_audit_chain(fairlead_identity::digest::sha256))
        .await
        .unwrap();
    assert_eq!(chain.broken_at, None);
}

#[tokio::test]
async fn a_region_is_made_with_what_its_access_server_needs() {
    let world = World::new().await;
    let admin = world.admin().await;
    let made = world
        .post(&admin, "/api/v1/regions", json!({"name": "new"}))
        .await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text);
    assert_eq!(made.body["region"]["state"], "waiting");
    assert_eq!(
        made.body["join_token"]["addresses"],
        json!(["controller:7401"])
    );
    assert_eq!(made.body["join_token"]["purpose"], "access-server");
    let text = made.body["join_token"]["token"].as_str().unwrap();
    let token: fairlead_identity::token::JoinToken = text.parse().unwrap();
    assert_eq!(token.ca_hash, [9; 32]);
    let hash = secret_hash(&token.secret);
    let row = world
        .store
        .read(move |tx| tx.check_join_token(&token.id, &hash, "access-server", Some("new"), NOW))
        .await
        .unwrap();
    assert!(row.is_ok());
    let again = world
        .post(&admin, "/api/v1/regions", json!({"name": "new"}))
        .await;
    assert_eq!(again.code(), codes::ALREADY_EXISTS);
    for wrong in [
        "",
        "A",
        "a b",
        "-a",
        "a-",
        "centre",
        "../x",
        &"x".repeat(64),
    ] {
        let answer = world
            .post(&admin, "/api/v1/regions", json!({"name": wrong}))
            .await;
        assert_eq!(answer.code(), codes::INVALID_REQUEST, "{wrong}");
    }
    let several = world.post(&admin, "/api/v1/join-tokens", json!({})).await;
    assert_eq!(
        several.code(),
        codes::INVALID_REQUEST,
        "which region is not certain"
    );
    let listed = world.get(&admin, "/api/v1/join-tokens").await;
    assert!(!listed.text.contains("FL1"), "s21");
    let scoped = world
        .token_of(
            "default",
            &[Permission::Admin],
            json!({"regions": ["here"]}),
        )
        .await;
    let answer = world
        .post(&scoped, "/api/v1/join-tokens", json!({"region": "there"}))
        .await;
    assert_eq!(answer.code(), codes::REGION_NOT_FOUND);
    let only = world
        .post(
            &scoped,
            "/api/v1/join-tokens",
            json!({"uses": 3, "ttl_s": 60}),
        )
        .await;
    assert_eq!(only.body["region"], "here", "{}", only.text);
    let path = format!("/api/v1/join-tokens/{}", only.body["id"].as_str().unwrap());
    assert!(world.delete(&admin, &path).await.body["revoked_at"].is_string());
    for body in [
        json!({"region": "here", "uses": 0}),
        json!({"region": "here", "ttl_s": 0}),
        json!({"region": "here", "uses": 10_001}),
        json!({"region": "here", "ttl_s": 2_592_001}),
    ] {
        let answer = world.post(&admin, "/api/v1/join-tokens", body).await;
        assert_eq!(answer.code(), codes::INVALID_REQUEST);
    }
}

#[tokio::test]
async fn the_glance_says_what_deserves_attention() {
    let world = World::new().await;
    let admin = world.admin().await;
    world.fleet.region_offline("there", NOW);
    world
        .store
        .write(|tx| tx.region_joined("there", "s", &[], ""))
        .await
        .unwrap();
    let status = world.get(&admin, "/api/v1/status").await;
    assert_eq!(status.body["hosts_online"], 1);
    assert_eq!(status.body["regions_online"], 1);
    let first = status.body["attention"][0].as_str().unwrap();
    assert!(
        first.starts_with("region there is not connected"),
        "{first}"
    );
    let text = world.get("", "/metrics").await.text;
    assert!(
        text.contains("fairlead_region_up{region=\"there\"} 0"),
        "{text}"
    );
    assert!(
        text.contains("fairlead_hosts{state=\"online\"} 2"),
        "{text}"
    );
    assert!(
        text.contains("route=\"/api/v1/status\",method=\"GET\",status=\"200\""),
        "{text}"
    );
    world.get("", "/some/path/nobody/has").await;
    // What hurts before it shows elsewhere.
    world.fleet.region_trouble("here", "disk full");
    world.fleet.clone_refused("here", BOX, world.clock.now_us());
    let status = world.get(&admin, "/api/v1/status").await;
    let attention = status.body["attention"].to_string();
    assert!(
        attention.contains("region here cannot write to its disk")
            && attention.contains("disk full"),
        "{attention}"
    );
    assert!(
        attention.contains("a second machine uses the identity of box"),
        "{attention}"
    );
    let text = world.get("", "/metrics").await.text;
    assert!(!text.contains("nobody"), "s26: strangers make no series");
}
