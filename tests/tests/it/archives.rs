//! A copy's archive as a body: what the terminal page's files go by. The same rules as for `fairlead cp`: who
//! asked, what the owner says, what was signed; and no path leads out of the container.

use std::time::Duration;

use fairlead_api::types::{Action, Command, Permission};
use fairlead_identity::digest::{hex, sha256};
use fairlead_tests::client::{Api, request};
use fairlead_tests::engine::{Names, docker, docker_says};
use fairlead_tests::fleet::{Fleet, Options};
use fairlead_tests::stream::Stream;
use fairlead_tests::wait::wait_for;
use reqwest::Method;

use crate::terminal::audit;

const SOON: Duration = Duration::from_secs(30);

async fn asked(api: &Api, action: Action) -> Command {
    let mut request = request("box", action);
    request.attach = true;
    wait_for("the container is known", SOON, async || {
        api.submit(&request, Duration::ZERO)
            .await
            .map_err(|no| no.to_string())
    })
    .await
}

/// The archive's route, which is there a moment after the command is.
async fn at(api: &Api, method: Method, id: &str, body: &[u8]) -> (u16, Vec<u8>, bool) {
    let path = format!("commands/{id}/archive");
    wait_for("the command has reached its host", SOON, async || {
        let answer = api.raw(method.clone(), &path, body.to_vec()).await;
        let said = String::from_utf8_lossy(&answer.1).into_owned();
        let not_yet = answer.0 >= 400 && (said.contains("no_stream") || said.contains("_offline"));
        if not_yet { Err(said) } else { Ok(answer) }
    })
    .await
}

async fn out(api: &Api, container: &str, path: &str) -> (u16, Vec<u8>, bool) {
    let action = Action::CopyOut {
        container: container.to_owned(),
        path: path.to_owned(),
    };
    let command = asked(api, action).await;
    at(api, Method::GET, &command.id, &[]).await
}

fn copy_in(container: &str, path: &str, archive: &[u8]) -> Action {
    Action::CopyIn {
        container: container.to_owned(),
        path: path.to_owned(),
        size: archive.len() as u64,
        sha256: hex(&sha256(archive)),
    }
}

fn packed(name: &str, content: &[u8]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, name, content).unwrap();
    builder.into_inner().unwrap()
}

/// The one file of an archive.
fn only(archive: &[u8]) -> Vec<u8> {
    let mut archive = tar::Archive::new(archive);
    let mut entry = archive.entries().unwrap().next().unwrap().unwrap();
    let mut content = Vec::new();
    std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
    content
}

fn code(body: &[u8]) -> String {
    let body: serde_json::Value = serde_json::from_slice(body).expect("an error's shape");
    body["error"]["code"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

#[tokio::test]
async fn what_goes_in_comes_out_byte_for_byte_and_nobody_elses_command_is_served() {
    let fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let web = names.polite("web");
    let content: Vec<u8> = (0..3_000_000u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let archive = packed("in.bin", &content);
    let eve = fleet
        .api
        .new_api_token("eve", &[Permission::Admin])
        .await
        .unwrap();
    let eve = fleet.api.with_token(&eve.token);
    let command = asked(&fleet.api, copy_in(&web, "/tmp", &archive)).await;
    // Another's token has no part in it, whatever it may do.
    let (status, body, _) = at(&eve, Method::PUT, &command.id, &archive).await;
    assert_eq!((status, &code(&body)[..]), (403, "permission_denied"));
    let (status, body, _) = at(&fleet.api, Method::GET, &command.id, &[]).await;
    assert_eq!(
        (status, &code(&body)[..]),
        (400, "invalid_request"),
        "it goes in, not out"
    );
    let (status, body, _) = at(&fleet.api, Method::PUT, &command.id, &archive).await;
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
    // It has been done, but not by these.
    let path = format!("commands/{}/archive", command.id);
    for api in [&fleet.api, &eve] {
        let (status, body, _) = api.raw(Method::PUT, &path, archive.clone()).await;
        assert!(status >= 400, "{}", String::from_utf8_lossy(&body));
    }
    let (status, body, whole) = out(&fleet.api, &web, "/tmp/in.bin").await;
    assert_eq!((status, whole), (200, true));
    assert!(only(&body) == content, "{} bytes came", body.len());
    // Who may not copy may not ask; and the audit log says what went where.
    let reader = fleet
        .api
        .new_api_token("reader", &[Permission::Read])
        .await
        .unwrap();
    let action = Action::CopyOut {
        container: web.clone(),
        path: "/etc/passwd".to_owned(),
    };
    let reader = fleet.api.with_token(&reader.token);
    let refused = reader.submit(&request("box", action), Duration::ZERO).await;
    assert_eq!(refused.unwrap_err().code, "permission_denied");
    let rows = audit(&fleet.api, "command.copy-in").await;
    let said = format!("; {} B into /tmp", archive.len());
    assert!(
        rows.iter().any(|row| row.detail.ends_with(&said)),
        "{rows:?}"
    );
    let rows = audit(&fleet.api, "command.copy-out").await;
    assert!(
        rows.iter().any(|row| row.detail.ends_with("; /tmp/in.bin")),
        "{rows:?}"
    );
}

#[tokio::test]
async fn what_is_not_whole_or_not_signed_or_forbidden_changes_nothing() {
    let fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let web = names.polite("web");
    let archive = packed("x", &[7; 5000]);
    let mut altered = archive.clone();
    altered[600] ^= 1;
    let lacks = || {
        !docker(&["exec", &web, "test", "-e", "/tmp/x"])
            .status
            .success()
    };
    for body in [&altered[..], &archive[..2048]] {
        let command = asked(&fleet.api, copy_in(&web, "/tmp", &archive)).await;
        let (status, answer, _) = at(&fleet.api, Method::PUT, &command.id, body).await;
        assert_eq!((status, &code(&answer)[..]), (400, "digest_mismatch"));
        assert!(lacks());
    }
    let (status, answer, _) = out(&fleet.api, &web, "/tmp/nothing-here").await;
    assert!(status >= 400, "{}", String::from_utf8_lossy(&answer));
    std::fs::write(&fleet.hosts[0].policy, "forbid_copy = true\n").unwrap();
    let command = asked(&fleet.api, copy_in(&web, "/tmp", &archive)).await;
    let ended = wait_for("it has ended", SOON, async || {
        let now = fleet.api.command(&command.id).await.unwrap();
        if now.is_final {
            Ok(now)
        } else {
            Err(now.state)
        }
    })
    .await;
    assert_eq!(ended.code, "forbidden_by_host");
    assert!(lacks());
}

/// Links lead within the container, however they are written.
#[tokio::test]
async fn no_path_leads_out_of_the_container() {
    let fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let web = names.polite("web");
    let mark = format!("fairlead-outside-{}", std::process::id());
    let outside = std::env::temp_dir().join(&mark);
    std::fs::write(&outside, "outside").unwrap();
    let up = "../../../../../../../../../..";
    let links = format!(
        "ln -s {up}{} /root-of-host; ln -s {up} /up",
        std::env::temp_dir().display()
    );
    docker_says(&["exec", &web, "sh", "-c", &links]);
    for path in [
        format!("/root-of-host/{mark}"),
        format!("/up{}", outside.display()),
        format!("/{up}{}", outside.display()),
        format!("/proc/1/root/{up}{}", outside.display()),
    ] {
        let (status, body, _) = out(&fleet.api, &web, &path).await;
        assert!(status >= 400, "{path}: {} bytes came", body.len());
    }
    // What is sent there lands in the container; names in an archive that lead up do not leave it either.
    let archive = packed("landed", b"inside");
    let command = asked(&fleet.api, copy_in(&web, "/up", &archive)).await;
    let (status, body, _) = at(&fleet.api, Method::PUT, &command.id, &archive).await;
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
    assert!(!std::path::Path::new("/landed").exists());
    assert_eq!(
        docker_says(&["exec", &web, "cat", "/landed"]).trim(),
        "inside"
    );
    let mut evil = packed("placeholder", b"evil");
    let name = format!("{up}{}-evil", outside.display());
    evil[..100].fill(0);
    evil[..name.len()].copy_from_slice(name.as_bytes());
    evil[148..156].fill(b' ');
    let sum: u32 = evil[..512].iter().map(|byte| u32::from(*byte)).sum();
    evil[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let command = asked(&fleet.api, copy_in(&web, "/tmp", &evil)).await;
    let (_, answer, _) = at(&fleet.api, Method::PUT, &command.id, &evil).await;
    let landed = std::env::temp_dir().join(format!("{mark}-evil"));
    assert!(!landed.exists(), "{}", String::from_utf8_lossy(&answer));
    std::fs::remove_file(&outside).unwrap();
}

/// A terminal's stream is its session's: else there would be one that nobody records.
#[tokio::test]
async fn nobody_attaches_to_a_terminals_command() {
    let fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let web = names.polite("web");
    let given = crate::terminal::ticket(&fleet.api, &web, &["sleep", "300"]).await;
    let _page = fairlead_tests::terminal::Page::open(&fleet.api, &given.ticket).await;
    let refused = Stream::open(&fleet.api, &given.session).await.unwrap_err();
    assert_eq!(refused.code, "permission_denied");
    assert!(refused.message.contains("terminal"), "{refused}");
}
