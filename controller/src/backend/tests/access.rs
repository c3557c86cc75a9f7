//! Who gets in, and what is refused with which words.

use super::*;
use fairlead_api::access::{Need, table};
use fairlead_identity::token::JoinToken;

/// A path of the table with something in its variable.
fn filled(path: &str) -> String {
    path.replace("{host}", "box")
        .replace("{id}", "0000000000")
        .replace("{name}", "here")
}

#[tokio::test]
async fn s29_without_a_good_token_nothing_but_the_open_routes_answers() {
    let world = World::new().await;
    let stranger = ApiToken::generate().to_string();
    for rule in table().iter().filter(|rule| rule.need != Need::Nothing) {
        for token in ["", "FA1", "FA1x.y", "nonsense", stranger.as_str()] {
            let answer = world
                .send(request(
                    rule.method.clone(),
                    token,
                    &filled(rule.path),
                    Some(json!({})),
                ))
                .await;
            assert_eq!(
                answer.status,
                StatusCode::UNAUTHORIZED,
                "{} {}",
                rule.method,
                rule.path
            );
            assert_eq!(answer.code(), codes::UNAUTHENTICATED);
            assert!(answer.headers.contains_key(header::WWW_AUTHENTICATE));
        }
    }
    assert!(
        world.audit_rows().await.is_empty(),
        "s26: strangers make no audit rows"
    );
    for path in ["/healthz", "/readyz", "/metrics", "/api/v1/openapi.json"] {
        assert_eq!(world.get("", path).await.status, StatusCode::OK, "{path}");
    }
}

#[tokio::test]
async fn each_route_refuses_a_token_that_lacks_its_permission_and_audits_that() {
    let world = World::new().await;
    let mut refusals = 0;
    for rule in table() {
        let Need::Permission(needed) = rule.need else {
            continue;
        };
        let others: Vec<Permission> = Permission::ALL
            .into_iter()
            .filter(|p| *p != needed && *p != Permission::Admin)
            .collect();
        let token = world.token_of("default", &others, json!({})).await;
        let answer = world
            .send(request(
                rule.method.clone(),
                &token,
                &filled(rule.path),
                None,
            ))
            .await;
        assert_eq!(
            answer.status,
            StatusCode::FORBIDDEN,
            "{} {}",
            rule.method,
            rule.path
        );
        assert_eq!(answer.code(), codes::PERMISSION_DENIED);
        refusals += 1;
    }
    let rows = world.audit_rows().await;
    assert_eq!(rows.len(), refusals);
    assert!(rows.iter().all(|row| row.entry.outcome == "denied"));
}

#[tokio::test]
async fn each_kind_of_token_is_recognised_where_the_other_is_needed() {
    let world = World::new().await;
    let join = JoinToken::generate([9; 32]).to_string();
    let answer = world.get(&join, "/api/v1/whoami").await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    assert!(
        answer.message().contains("join token"),
        "{}",
        answer.message()
    );
    let admin = world.admin().await;
    let path = format!("/api/v1/join-tokens/{}", ApiToken::generate());
    let answer = world.delete(&admin, &path).await;
    assert_eq!(answer.code(), codes::TOKEN_MALFORMED);
    let answer = world
        .delete(
            &admin,
            &format!("/api/v1/api-tokens/{}", join.replace(':', "")),
        )
        .await;
    assert_eq!(answer.code(), codes::TOKEN_MALFORMED);
    let secret = join.rsplit('.').next().unwrap();
    assert!(!answer.text.contains(secret), "a secret never comes back");
    for row in world.audit_rows().await {
        assert!(
            !format!("{row:?}").contains(secret),
            "nor does it reach the audit log"
        );
    }
}

#[tokio::test]
async fn an_expired_or_revoked_token_opens_nothing_and_says_why() {
    let world = World::new().await;
    let admin = world.admin().await;
    let made = world
        .post(
            &admin,
            "/api/v1/api-tokens",
            json!({
                "name": "ci", "permissions": ["read"], "ttl_s": 60
            }),
        )
        .await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text);
    let token = made.body["token"].as_str().unwrap().to_owned();
    let id = made.body["id"].as_str().unwrap().to_owned();
    assert_eq!(
        world.get(&token, "/api/v1/hosts").await.status,
        StatusCode::OK
    );
    world.clock.advance_us(60_000_000);
    let answer = world.get(&token, "/api/v1/hosts").await;
    assert!(answer.message().contains("expired"), "{}", answer.text);

    let listed = world.get(&admin, "/api/v1/api-tokens").await;
    assert!(listed.text.contains(&id));
    let secret = token.split('.').nth(1).unwrap();
    assert!(
        !listed.text.contains(secret),
        "s21: listings hold no secrets"
    );
    let other = world
        .token_of("default", &[Permission::Read], json!({}))
        .await;
    let other_id = other["FA1".len()..].split('.').next().unwrap().to_owned();
    let path = format!("/api/v1/api-tokens/{other_id}");
    for _ in 0..2 {
        let answer = world.delete(&admin, &path).await;
        assert_eq!(answer.status, StatusCode::OK, "revoking twice is no error");
        assert!(answer.body["revoked_at"].is_string());
    }
    let answer = world.get(&other, "/api/v1/whoami").await;
    assert!(answer.message().contains("revoked"), "{}", answer.text);
    let revocations = world.audit_rows().await;
    let revocations = revocations
        .iter()
        .filter(|r| r.entry.action == "api-token.revoke")
        .count();
    assert_eq!(revocations, 1);
    let missing = world.delete(&admin, "/api/v1/api-tokens/nothere").await;
    assert_eq!(missing.code(), codes::TOKEN_NOT_FOUND);
}

#[tokio::test]
async fn a_token_reaches_no_further_than_its_maker() {
    let world = World::new().await;
    let narrow = json!({"regions": ["here"], "labels": {"env": "prod"}});
    let maker = world
        .token_of("default", &[Permission::Admin], narrow)
        .await;
    let make = |scope: Value| json!({"name": "x", "permissions": ["read"], "scope": scope});
    for scope in [
        json!({}),
        json!({"regions": ["here"]}),
        json!({"labels": {"env": "prod"}}),
        json!({"regions": ["here", "there"], "labels": {"env": "prod"}}),
        json!({"regions": ["here"], "labels": {"env": "test"}}),
    ] {
        let answer = world
            .post(&maker, "/api/v1/api-tokens", make(scope.clone()))
            .await;
        assert_eq!(answer.code(), codes::PERMISSION_DENIED, "{scope}");
    }
    let same = json!({"regions": ["here"], "labels": {"env": "prod", "app": "x"}});
    let answer = world.post(&maker, "/api/v1/api-tokens", make(same)).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text);
    for (body, part) in [
        (json!({"name": "x", "permissions": []}), "permissions"),
        (json!({"name": "", "permissions": ["read"]}), "name"),
        (
            json!({"name": "x\u{7}", "permissions": ["read"]}),
            "control",
        ),
        (
            json!({"name": "x".repeat(129), "permissions": ["read"]}),
            "too long",
        ),
        (json!({"name": "x", "permissions": ["root"]}), "root"),
        (
            json!({"name": "x", "permissions": ["read"], "ttl_s": 0}),
            "ttl_s",
        ),
        (
            json!({"name": "x", "permissions": ["read"], "scope": {"regions": [""]}}),
            "regions",
        ),
        (
            json!({"name": "x", "permissions": ["read"], "scope": {"region": "a"}}),
            "region",
        ),
    ] {
        let answer = world
            .post(&world.admin().await, "/api/v1/api-tokens", body)
            .await;
        assert_eq!(answer.code(), codes::INVALID_REQUEST, "{part}");
        assert!(
            answer.message().contains(part),
            "{part}: {}",
            answer.message()
        );
    }
    let answer = world.get(&maker, "/api/v1/audit").await;
    assert_eq!(
        answer.code(),
        codes::PERMISSION_DENIED,
        "audit is of the whole tenant"
    );
}

#[tokio::test]
async fn setup_is_claimed_once_over_http_and_audited() {
    let world = World::new().await;
    let opening = world.setup.open("https://c:7400").await.unwrap().unwrap();
    let claims = (0..8).map(|_| {
        world.post(
            "",
            "/api/v1/setup",
            json!({"secret": opening.secret, "name": "me"}),
        )
    });
    let answers = futures_util::future::join_all(claims).await;
    let won: Vec<&Answer> = answers
        .iter()
        .filter(|answer| answer.status == StatusCode::CREATED)
        .collect();
    assert_eq!(won.len(), 1, "s20");
    assert!(
        answers
            .iter()
            .filter(|a| a.code() == codes::SETUP_CLOSED)
            .count()
            == 7
    );
    let token = won[0].body["token"].as_str().unwrap();
    let who = world.get(token, "/api/v1/whoami").await;
    assert_eq!(who.body["permissions"], json!(["admin"]));
    assert_eq!(who.body["server_version"], "1.2.3");
    assert_eq!(world.audit_rows().await.len(), 1);
}

#[tokio::test]
async fn every_refusal_has_the_one_shape_and_every_answer_its_headers() {
    let world = World::new().await;
    let admin = world.admin().await;
    let broken = Request::builder()
        .method(Method::POST)
        .uri("/api/v1/commands")
        .header(header::AUTHORIZATION, format!("Bearer {admin}"))
        .header(header::CONTENT_TYPE, "application/json");
    let with = |body: Vec<u8>| {
        Request::builder()
            .method(Method::POST)
            .uri("/api/v1/commands")
            .header(header::AUTHORIZATION, format!("Bearer {admin}"))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(body))
            .unwrap()
    };
    let plain = request(Method::POST, &admin, "/api/v1/commands", None);
    let cases = [
        (broken.body(Body::from("{\"action\"")).unwrap(), 400),
        (with(vec![0xff, 0xfe]), 400),
        (with(vec![b' '; 70_000]), 413),
        (with(b"[".repeat(5000)), 400),
        (plain, 415),
        (request(Method::GET, &admin, "/api/v1/nothing", None), 404),
        (request(Method::GET, "", "/", None), 404),
        (request(Method::PUT, &admin, "/api/v1/hosts", None), 405),
        (
            request(Method::GET, &admin, "/api/v1/commands?limit=0", None),
            400,
        ),
        (
            request(Method::GET, &admin, "/api/v1/commands?limit=x", None),
            400,
        ),
        (
            request(Method::GET, &admin, "/api/v1/commands?unknown=1", None),
            400,
        ),
        (
            request(Method::GET, &admin, "/api/v1/commands/x%ff", None),
            400,
        ),
        (
            request(
                Method::GET,
                &admin,
                &format!("/api/v1/hosts/{}", "x".repeat(200)),
                None,
            ),
            400,
        ),
        (
            request(Method::GET, &admin, &format!("/{}", "x".repeat(5000)), None),
            414,
        ),
        (
            request(Method::GET, &admin, "/api/v1/commands/x/stream", None),
            400,
        ),
    ];
    let mut ids = std::collections::BTreeSet::new();
    for (index, (request, status)) in cases.into_iter().enumerate() {
        let answer = world.send(request).await;
        assert_eq!(
            answer.status.as_u16(),
            status,
            "number {index}: {}",
            answer.text
        );
        assert!(
            !answer.code().is_empty() && !answer.message().is_empty(),
            "number {index}"
        );
        let id = answer.body["error"]["request_id"]
            .as_str()
            .unwrap()
            .to_owned();
        assert_eq!(answer.headers["x-request-id"], id.as_str());
        assert_eq!(answer.headers["x-content-type-options"], "nosniff");
        assert_eq!(answer.headers["cache-control"], "no-store");
        assert_eq!(answer.headers["content-type"], "application/json");
        assert!(ids.insert(id), "a request id came twice");
    }
    let allowed = world
        .send(request(Method::PUT, &admin, "/api/v1/hosts", None))
        .await;
    assert!(allowed.headers["allow"].to_str().unwrap().contains("GET"));
}

#[tokio::test]
async fn s14_headers_of_proxies_and_callers_ids_are_not_believed() {
    let world = World::new().await;
    let opening = world.setup.open("https://c:7400").await.unwrap().unwrap();
    let request = Request::builder()
        .method(Method::POST)
        .uri("/api/v1/setup")
        .header(header::CONTENT_TYPE, "application/json")
        .header("x-forwarded-for", "6.6.6.6")
        .header("x-request-id", "mine")
        .body(Body::from(json!({"secret": opening.secret}).to_string()))
        .unwrap();
    let answer = world.send(request).await;
    assert_eq!(answer.status, StatusCode::CREATED);
    assert_ne!(answer.headers["x-request-id"], "mine");
    assert!(
        world
            .audit_rows()
            .await
            .iter()
            .all(|row| !row.entry.source.contains("6.6.6.6"))
    );
}

#[tokio::test]
async fn the_use_of_a_token_is_noted_by_housekeeping() {
    let world = World::new().await;
    let admin = world.admin().await;
    world.get(&admin, "/api/v1/whoami").await;
    world.backend.housekeep().await.unwrap();
    let listed = world.get(&admin, "/api/v1/api-tokens").await;
    assert!(
        listed.body[0]["last_used_at"].is_string(),
        "{}",
        listed.text
    );
}
