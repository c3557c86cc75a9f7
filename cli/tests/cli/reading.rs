//! Login, lists, formats, errors.

use serde_json::json;

use crate::double::{self, Double, bare, finish};

fn whoami() -> serde_json::Value {
    json!({
        "name": "admin", "token_id": "t1", "tenant": "default", "permissions": ["admin"],
        "scope": { "regions": [], "labels": {} }, "expires_at": null, "server_version": "0.1.0"
    })
}

#[test]
fn login_proves_the_token_and_saves_it_for_its_owner_only() {
    let server = Double::new(|_, _| (200, whoami()));
    let mut login = bare(&["login", &server.url, "--token", "-"]);
    login.env("HOME", server.home.path());
    let ran = finish(login, "FA1secret\n");
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.err.contains("as admin (may: admin)"), "{ran:?}");
    assert!(
        !ran.err.contains("FA1secret") && ran.out.is_empty(),
        "{ran:?}"
    );
    assert_eq!(server.asked()[0].authorization, "Bearer FA1secret");
    let file = server.home.path().join(".config/fairlead/config.toml");
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    // And it is used from then on.
    let mut again = bare(&["api", "GET", "whoami"]);
    again.env("HOME", server.home.path());
    let ran = finish(again, "");
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(server.asked()[1].authorization, "Bearer FA1secret");
}

#[test]
fn a_setup_link_is_claimed_once_and_its_token_saved() {
    let server = Double::new(|asked, _| match asked.what.as_str() {
        "POST /api/v1/setup" => (
            200,
            json!({
                "token": "FA1made", "id": "t1", "name": "admin", "permissions": ["admin"],
                "scope": { "regions": [], "labels": {} }, "created_by": "setup",
                "created_at": "2026-11-20T14:00:00Z", "expires_at": null, "last_used_at": null,
                "revoked_at": null
            }),
        ),
        _ => (200, whoami()),
    });
    let link = format!("{}/setup/s3cret\n", server.url);
    let file = server.home.path().join("setup-link");
    std::fs::write(&file, &link).unwrap();
    // The secret is in no command line: those are shown to everybody on the machine.
    let mut login = bare(&["login", "--setup-link", file.to_str().unwrap()]);
    login.env("HOME", server.home.path());
    let ran = finish(login, "");
    assert_eq!(ran.code, 0, "{ran:?}");
    let mut login = bare(&["login", "--setup-link", "-"]);
    login.env("HOME", server.home.path());
    let piped = finish(login, &link);
    assert_eq!(piped.code, 0, "{piped:?}");
    let asked = server.asked();
    assert_eq!(asked[2].body, asked[0].body);
    assert_eq!(
        asked[0].body,
        json!({ "secret": "s3cret", "name": "admin" })
    );
    assert_eq!(asked[0].authorization, "");
    assert_eq!(asked[1].authorization, "Bearer FA1made");
    assert!(
        !ran.err.contains("FA1made") && !ran.out.contains("FA1made"),
        "{ran:?}"
    );
}

#[test]
fn a_setup_link_that_is_none_is_not_used() {
    let server = Double::new(|_, _| (200, whoami()));
    let login = |args: &[&str], input: &str| {
        let mut login = bare(args);
        login.env("HOME", server.home.path());
        finish(login, input)
    };
    let link = format!("{}/setup/s3cret", server.url);
    for (args, input, said) in [
        (vec!["login"], "", "required"),
        (
            vec!["login", "--setup-link", &link],
            "",
            "can be seen by everybody",
        ),
        (vec!["login", &link], "", "can be seen by everybody"),
        (
            vec!["login", &link["http://".len()..]],
            "",
            "can be seen by everybody",
        ),
        (
            vec!["login", "--setup-link", "-"],
            &server.url[..],
            "no setup link in standard input",
        ),
        (
            vec!["login", "--setup-link", "-", &server.url],
            &link[..],
            "cannot be used with",
        ),
    ] {
        let ran = login(&args, input);
        assert_eq!(ran.code, 2, "{args:?}: {ran:?}");
        assert!(ran.err.contains(said), "{args:?}: {ran:?}");
        assert!(!ran.err.contains("s3cret"), "{args:?}: {ran:?}");
    }
    let ran = login(&["login", "--setup-link", "/nowhere/setup-link"], "");
    assert!(ran.code != 0 && ran.err.contains("removes it"), "{ran:?}");
    assert!(server.asked().is_empty());
}

#[test]
fn tokens_of_the_wrong_kind_are_named() {
    let server = Double::new(|_, _| (200, whoami()));
    let mut login = bare(&["login", &server.url, "--token", "-"]);
    login.env("HOME", server.home.path());
    let ran = finish(login, "FL1abc::id.secret\n");
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.err.contains("join token (FL1…)") && ran.err.contains("API token (FA1…)"));
    let mut ps = server.command(&["ps"]);
    ps.env("FAIRLEAD_TOKEN", "FL1abc::id.secret");
    let ran = finish(ps, "");
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(
        ran.err.contains("FAIRLEAD_TOKEN holds a join token"),
        "{ran:?}"
    );
    assert!(!ran.err.contains("secret"), "{ran:?}");
    let ran = server.run(&["join-token", "revoke", "FA1abc"]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(
        ran.err
            .contains("this is an API token (FA1…), not a join token"),
        "{ran:?}"
    );
    let ran = server.run(&["login", &server.url, "--token", "FA1abc"]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.err.contains("can be seen by everybody"), "{ran:?}");
    assert!(server.asked().is_empty(), "nothing was sent anywhere");
}

#[test]
fn without_a_login_it_says_so() {
    let home = tempfile::tempdir().unwrap();
    let mut ps = bare(&["ps"]);
    ps.env("HOME", home.path());
    let ran = finish(ps, "");
    assert_eq!(ran.code, 4, "{ran:?}");
    assert!(ran.err.contains("hint: fairlead login"), "{ran:?}");
}

#[test]
fn a_list_is_a_table_json_or_yaml() {
    let server = Double::new(|_, _| double::page(vec![double::container("web\u{1b}[2J")]));
    let ran = server.run(&["ps", "-a", "--host", "box"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.out.starts_with("HOST  NAME"), "{ran:?}");
    assert!(
        ran.out.contains("web[2J") && !ran.out.contains('\u{1b}'),
        "{ran:?}"
    );
    assert_eq!(server.asked()[0].query, "all=true&host=box");
    assert_eq!(server.asked()[0].authorization, "Bearer FA1test");

    let ran = server.run(&["ps", "-o", "json"]);
    let value: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(value[0]["host"], "box");
    assert_eq!(value[0]["started_at"], "2026-11-20T13:59:48Z");
    assert!(!ran.out.contains('\u{1b}'), "{ran:?}");

    let ran = server.run(&["-o", "yaml", "ps"]);
    assert!(ran.out.contains("host: box"), "{ran:?}");
    assert!(server.run(&["ps", "-o", "wide"]).out.contains("demo:1"));
    assert_eq!(server.run(&["ps", "-q"]).out, "c0ffeec0ffee\n");
}

#[test]
fn a_list_may_come_without_a_page() {
    let server = Double::new(|_, _| (200, json!([double::host("offline")])));
    let ran = server.run(&["host", "ls"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.out.contains("box   offline"), "{ran:?}");
}

#[test]
fn colour_only_when_it_is_wanted() {
    let server = Double::new(|_, _| double::page(vec![double::container("web")]));
    assert!(
        !server.run(&["ps"]).out.contains('\u{1b}'),
        "not into a pipe"
    );
    let mut forced = server.command(&["ps"]);
    forced.env("CLICOLOR_FORCE", "1");
    assert!(finish(forced, "").out.contains("\u{1b}[32mup"));
    let mut never = server.command(&["ps"]);
    never.env("CLICOLOR_FORCE", "1").env("NO_COLOR", "1");
    assert!(!finish(never, "").out.contains('\u{1b}'));
}

#[test]
fn errors_have_a_code_a_hint_and_an_exit_code() {
    for (status, code, exit) in [
        (400, "invalid_request", 2),
        (401, "unauthenticated", 4),
        (403, "permission_denied", 4),
        (404, "host_not_found", 3),
        (409, "ambiguous", 5),
        (413, "command_too_large", 2),
        (429, "busy", 1),
        (503, "region_offline", 8),
    ] {
        let server = Double::new(move |_, _| double::error(status, code, "no such\u{7} thing"));
        let ran = server.run(&["host", "show", "nowhere"]);
        assert_eq!(ran.code, exit, "{status} {code}: {ran:?}");
        assert!(
            ran.err
                .starts_with(&format!("error: no such thing ({code})")),
            "{ran:?}"
        );
        assert!(ran.err.contains("request: r1"), "{ran:?}");
        assert!(ran.out.is_empty(), "{ran:?}");
        assert_eq!(server.asked()[0].what, "GET /api/v1/hosts/nowhere");
    }
}

#[test]
fn a_held_host_is_approved() {
    let server = Double::new(|_, _| (200, double::host("online")));
    let ran = server.run(&["host", "approve", "box"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.err.contains("box: approved"), "{ran:?}");
    assert_eq!(server.asked()[0].what, "POST /api/v1/hosts/box/approve");
}

#[test]
fn a_server_that_is_not_there_is_unreachable() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let home = tempfile::tempdir().unwrap();
    for (url, says) in [
        (
            format!("http://{address}"),
            format!("nothing listens at {address}"),
        ),
        (
            "https://fairlead.invalid:7400".to_owned(),
            "there is no host named".to_owned(),
        ),
    ] {
        let mut status = bare(&["status"]);
        status
            .env("HOME", home.path())
            .env("FAIRLEAD_URL", &url)
            .env("FAIRLEAD_TOKEN", "FA1x");
        let ran = finish(status, "");
        assert_eq!(ran.code, 8, "{ran:?}");
        assert!(ran.err.contains(&says), "{ran:?}");
    }
}

#[test]
fn wrong_words_are_usage_errors() {
    let server = Double::new(|_, _| (500, json!({})));
    for args in [
        &["restart"][..],
        &["ps", "--nonsense"],
        &["ps", "-o", "xml"],
        &["restart", "web", "--deadline", "soon"],
        &["run", "-d", "--gpus", "all", "nginx"],
        &["run", "-it", "busybox"],
        &["restart", "a/b/c"],
        &["restart", "a/web", "--host", "b"],
    ] {
        let ran = server.run(args);
        assert_eq!(ran.code, 2, "{args:?}: {ran:?}");
        assert!(ran.out.is_empty(), "{args:?}: {ran:?}");
    }
    assert!(server.asked().is_empty());
    assert_eq!(server.run(&["run", "--help"]).code, 0);
}

#[test]
fn version_and_completion_need_no_server() {
    let home = tempfile::tempdir().unwrap();
    for (args, says) in [
        (&["version"][..], "fairlead 0."),
        (&["completion", "bash"], "_fairlead"),
        (&["--version"], "fairlead 0."),
    ] {
        let mut command = bare(args);
        command.env("HOME", home.path());
        let ran = finish(command, "");
        assert_eq!(ran.code, 0, "{ran:?}");
        assert!(ran.out.contains(says), "{ran:?}");
    }
}

#[test]
fn terminals_and_recordings_are_listed_ended_and_written_out() {
    let session = "9hmaass3tz3bv6dwgmjqxr23w8";
    let open = json!([{
        "session": session, "user": "ada (token t1)", "host": "vm", "container": "web\u{1b}[31m",
        "container_id": "c1", "exec_user": "", "started_at": "2026-11-20T14:00:00Z",
        "typed_at": "2026-11-20T14:00:00Z", "has_page": false, "output_bytes": 2048, "input_bytes": 3
    }]);
    let server = Double::new(move |asked, _| match asked.what.as_str() {
        "GET /api/v1/terminals" => (200, open.clone()),
        "GET /api/v1/recordings" => (200, json!([])),
        "GET /api/v1/recordings/none" => (
            404,
            json!({ "error": { "code": "terminal_not_found", "message": "there is no such recording",
                "hint": "", "request_id": "r" } }),
        ),
        what if what == format!("DELETE /api/v1/terminals/{session}") => (200, open[0].clone()),
        _ => (200, json!([0.5, "o", "hi"])),
    });
    let ran = server.run(&["terminal", "ls"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(
        ran.out.contains("away") && ran.out.contains("vm/web"),
        "{ran:?}"
    );
    assert!(
        !ran.out.contains('\u{1b}'),
        "what a host says steers nobody's terminal"
    );
    let ran = server.run(&["terminal", "end", session]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let wanted = [
        "terminal",
        "recordings",
        "--user",
        "ada",
        "--container",
        "web",
    ];
    assert_eq!(server.run(&wanted).code, 0);
    let query = server.asked().pop().unwrap().query;
    assert_eq!(query, "user=ada&container=web");
    assert_eq!(
        server.run(&["terminal", "recording", session]).out.trim(),
        r#"[0.5,"o","hi"]"#
    );
    let ran = server.run(&["terminal", "recording", "none"]);
    assert_eq!(ran.code, 3, "{ran:?}");
    let asked: Vec<String> = server.asked().into_iter().map(|asked| asked.what).collect();
    assert!(
        asked.contains(&format!("DELETE /api/v1/terminals/{session}")),
        "{asked:?}"
    );
}
