//! P8, P9: what must hold of each part by itself, each named after its row in docs/guide/security.md.
//!
//! Holds: SECURITY S11, S24, S25, S26, and in `host` S28, S30, S32, as far as it takes real processes to show
//! them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fairlead_api::types::Action;
use fairlead_identity::random;
use fairlead_identity::tls::{self, Expected, Trust};
use fairlead_protocol::version::{self, paths, sni};
use fairlead_protocol::{HostIdentity, Message};
use fairlead_tests::fleet::{Fleet, Options};
use fairlead_tests::process::{Process, is_alive};
use fairlead_tests::wait::wait_for;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::hostile::Stolen;
use crate::malicious_agent::rss_kb;

mod host;

const SOON: Duration = Duration::from_secs(60);
/// Nobody is listened to for so many bytes.
const POURED_MAX: usize = 16 << 20;

/// Starts a process that must not come up, and says why.
async fn refuses_to_start(process: &mut Process, words: &str) {
    let heard = process.said().len();
    process.start_again();
    wait_for(&format!("{} refuses", process.name), SOON, async || {
        let said = process.said()[heard..].to_owned();
        match process.ended() {
            Some(status) if !status.success() && said.contains(words) => Ok(()),
            _ => Err(said),
        }
    })
    .await;
    process.kill();
}

#[tokio::test]
async fn s11_who_believes_nobody_does_not_start() {
    let mut fleet = Fleet::start(Options::simulated()).await;

    // An agent whose identity names no root, or is empty.
    fleet.hosts[0].kill();
    fleet.api.host_is("box", "offline", SOON).await;
    let identity = fleet.hosts[0].dir.join("identity");
    let good = std::fs::read(&identity).unwrap();
    let mut rootless = HostIdentity::decode(&good[..]).unwrap();
    rootless.enrolment.as_mut().unwrap().certificates.clear();
    for bad in [Vec::new(), rootless.encode_to_vec()] {
        std::fs::write(&identity, bad).unwrap();
        let heard = fleet.hosts[0].supervisor.said().len();
        fleet.hosts[0].start();
        let host = &fleet.hosts[0];
        wait_for("the agent refuses", SOON, async || {
            let said = host.supervisor.said()[heard..].to_owned();
            let refused = said.contains("does not hold an identity that can be used");
            refused.then_some(()).ok_or(said)
        })
        .await;
        let said = host.supervisor.said()[heard..].to_owned();
        assert!(!said.contains("link up"), "{said}");
        fleet.hosts[0].kill();
    }

    // An access server without its certificates, which hold the root.
    let certificates = fleet.regions[0].dir.join("certificates");
    let kept = std::fs::read(&certificates).unwrap();
    std::fs::write(&certificates, []).unwrap();
    refuses_to_start(&mut fleet.regions[0].process, "no root").await;

    // A controller whose root has no certificate.
    let root = fleet.dir().join("controller/root.chain");
    let chain = std::fs::read(&root).unwrap();
    std::fs::write(&root, []).unwrap();
    refuses_to_start(&mut fleet.controller, "error").await;

    // With what they believed they are as before.
    for (path, content) in [(identity, good), (certificates, kept), (root, chain)] {
        std::fs::write(path, content).unwrap();
    }
    fleet.controller.start_again();
    fleet.regions[0].process.start_again();
    fleet.hosts[0].start();
    fleet.all_online().await;
    fleet.done(Action::Ping {}).await;
}

/// The agents' port by TLS, as a host.
async fn as_host(stolen: &Stolen, address: &str) -> std::io::Result<TlsStream<TcpStream>> {
    let config = tls::client(
        Trust::Root(stolen.root.clone()),
        Expected::AnyAccessServer,
        Some(stolen.credentials.clone()),
    );
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from(sni::AGENTS).unwrap();
    let connector = TlsConnector::from(Arc::new(config.unwrap()));
    connector.connect(name, stream).await
}

/// What a WebSocket's client asks, with a wish for compression.
fn upgrade() -> String {
    format!(
        "GET {} HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Protocol: {}\r\n\
         Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n",
        paths::LINK,
        version::SUBPROTOCOL
    )
}

/// Until the blank line.
async fn heading(stream: &mut TlsStream<TcpStream>) -> std::io::Result<String> {
    let mut heard = Vec::new();
    while !heard.ends_with(b"\r\n\r\n") {
        heard.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&heard).to_lowercase())
}

/// Says `first`, then `more` again and again; how many bytes were taken until the server hung up.
async fn pour(stream: TlsStream<TcpStream>, first: &[u8], more: &[u8]) -> usize {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let reading = tokio::spawn(async move {
        let _ = tokio::io::copy(&mut reader, &mut tokio::io::sink()).await;
    });
    let mut taken = first.len();
    if writer.write_all(first).await.is_ok() {
        while taken < POURED_MAX && writer.write_all(more).await.is_ok() {
            taken += more.len();
        }
    }
    // Nothing more comes; whoever still listens has its time for a handshake.
    let hung_up = tokio::time::timeout(SOON, reading).await;
    assert!(hung_up.is_ok(), "the server goes on listening");
    taken
}

/// Headers without end.
async fn pour_headers(stolen: &Stolen, address: &str) -> std::io::Result<usize> {
    let stream = as_host(stolen, address).await?;
    let line = format!("X-{}: {}\r\n", "n".repeat(20), "v".repeat(8_000));
    let asked = upgrade();
    // Without the blank line.
    let asked = &asked.as_bytes()[..asked.len() - 2];
    Ok(pour(stream, asked, line.as_bytes()).await)
}

/// A frame that is announced as far too large.
async fn pour_a_frame(stolen: &Stolen, address: &str) -> std::io::Result<usize> {
    let mut stream = as_host(stolen, address).await?;
    stream.write_all(upgrade().as_bytes()).await?;
    heading(&mut stream).await?;
    let mut announced = vec![0x82, 0xff];
    announced.extend((POURED_MAX as u64).to_be_bytes());
    announced.extend([0; 4]);
    Ok(pour(stream, &announced, &[0; 16 * 1024]).await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s24_headers_frames_and_bombs_at_the_agents_port_cost_next_to_nothing() {
    let mut fleet = Fleet::start(Options::simulated().hosts(&["box", "evil"])).await;
    let address = fleet.regions[0].agents.address();
    fleet.hosts[1].kill();
    let stolen = Arc::new(Stolen::of(&fleet.hosts[1].dir));
    let server = fleet.regions[0].process.pid();
    fleet.done(Action::Ping {}).await;
    let before = rss_kb(server);

    // Compression is not agreed to, and who compresses all the same is cut at the first frame.
    let mut stream = as_host(&stolen, &address).await.unwrap();
    stream.write_all(upgrade().as_bytes()).await.unwrap();
    let answer = heading(&mut stream).await.unwrap();
    assert!(answer.starts_with("http/1.1 101"), "{answer}");
    assert!(!answer.contains("extensions"), "{answer}");
    let compressed = [0xc2, 0x84, 0, 0, 0, 0, 0x4a, 0x4c, 4, 0];
    stream.write_all(&compressed).await.unwrap();
    let mut rest = Vec::new();
    // A reset says the same.
    let _ = stream.read_to_end(&mut rest).await;
    assert!(rest.len() < 256, "{rest:?}");

    // Sixteen of each at once.
    let mut pouring = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let (thief, at) = (Arc::clone(&stolen), address.clone());
        pouring.spawn(async move { pour_headers(&thief, &at).await });
        let (thief, at) = (Arc::clone(&stolen), address.clone());
        pouring.spawn(async move { pour_a_frame(&thief, &at).await });
    }
    let (mut most, mut grown, mut let_in) = (0, 0, 0);
    let began = Instant::now();
    while let Some(taken) = pouring.join_next().await {
        // Some were not let in at all, beside so many of one address.
        if let Ok(taken) = taken.unwrap() {
            most = most.max(taken);
            let_in += 1;
        }
        grown = rss_kb(server).saturating_sub(before).max(grown);
        fleet.done(Action::Ping {}).await;
    }
    println!(
        "{let_in} let in, {most} bytes taken at most, {grown} kB more, {:?}",
        began.elapsed()
    );
    assert!(let_in >= 8, "{let_in}");
    assert!(most < POURED_MAX, "somebody was listened to to the end");
    assert!(grown < 64 * 1024, "{grown} kB more");
    assert!(is_alive(server));
}

#[test]
fn s25_no_version_that_is_known_to_be_broken_is_in_the_lock() {
    let lock = include_str!("../../../Cargo.lock");
    let version = |text: &str| -> Vec<u32> {
        let plain = text.split(['-', '+']).next().unwrap();
        plain.split('.').map(|part| part.parse().unwrap()).collect()
    };
    for (name, at_least) in [
        ("rustls", "0.23.45"),
        ("rustls-webpki", "0.103.13"),
        ("tracing-subscriber", "0.3.20"),
        ("tungstenite", "0.20.1"),
    ] {
        let line = format!("name = \"{name}\"\nversion = \"");
        let found: Vec<&str> = lock
            .split(&line)
            .skip(1)
            .map(|rest| rest.split('"').next().unwrap())
            .collect();
        assert!(!found.is_empty(), "{name}");
        for found in found {
            assert!(version(found) >= version(at_least), "{name} {found}");
        }
    }
}

/// One request by a connection of its own; the answer, whole. `None` when it was not let in.
async fn ask(tls: &Arc<ClientConfig>, address: &str, request: &str) -> Option<String> {
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = TlsConnector::from(Arc::clone(tls))
        .connect(name, stream)
        .await
        .ok()?;
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = Vec::new();
    // Some end their TLS without a word.
    let _ = stream.read_to_end(&mut answer).await;
    Some(String::from_utf8_lossy(&answer).into_owned())
}

async fn metric_names(tls: &Arc<ClientConfig>, address: &str) -> BTreeSet<String> {
    let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let answer = ask(tls, address, request).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let lines = answer.lines().filter(|line| !line.starts_with('#'));
    let names = lines.filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned()));
    names.filter(|name| name.starts_with("fairlead_")).collect()
}

fn word() -> String {
    random::bytes::<8>()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// What a stranger asks, never twice the same.
fn strange(number: usize) -> String {
    let odd = word();
    let (path, method) = match number % 5 {
        0 => (format!("/{odd}"), "GET"),
        1 => (format!("/api/v1/hosts/{odd}"), "GET"),
        2 => ("/api/v1/setup".to_owned(), "POST"),
        3 => (format!("/api/v1/commands?host={odd}"), "GET"),
        _ => (format!("/packages/{odd}"), "GET"),
    };
    let body = format!("{{\"secret\":\"{odd}\"}}");
    format!(
        "{method} {path} HTTP/1.1\r\nHost: {odd}.example.com\r\nAuthorization: Bearer FA1{odd}.{odd}\r\n\
         User-Agent: {odd}\r\nX-{odd}: {odd}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    )
}

async fn audit_rows(fleet: &Fleet) -> usize {
    let page: serde_json::Value = fleet.api.get("audit?limit=1000").await.unwrap();
    page["items"].as_array().unwrap().len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s26_strangers_leave_nothing_behind() {
    const STRANGERS: usize = 200;
    let fleet = Fleet::start(Options::simulated()).await;
    let tls = Arc::clone(&fleet.api.tls);
    let web = fleet.api.url.trim_start_matches("https://").to_owned();
    let addresses = [web, fleet.regions[0].web.address()];
    let pids = [fleet.controller.pid(), fleet.regions[0].process.pid()];
    let strangers = async |count: usize| {
        for number in 0..count {
            for address in &addresses {
                ask(&tls, address, &strange(number)).await;
                if number % 8 == 0 {
                    // A name that nobody has; the certificate that is shown is not its own.
                    let stream = TcpStream::connect(address).await.unwrap();
                    let name = ServerName::try_from(format!("{}.example.com", word())).unwrap();
                    let named = TlsConnector::from(Arc::clone(&tls))
                        .connect(name, stream)
                        .await;
                    assert!(named.is_err(), "nobody certifies that");
                }
            }
        }
    };
    // Once round, so that whatever is made on demand has been made.
    strangers(20).await;
    for address in &addresses {
        metric_names(&tls, address).await;
    }
    let audited = audit_rows(&fleet).await;
    let mut metrics = Vec::new();
    for address in &addresses {
        metrics.push(metric_names(&tls, address).await);
    }
    let before = pids.map(rss_kb);
    strangers(STRANGERS).await;
    for (known, address) in metrics.iter().zip(&addresses) {
        assert!(known.len() > 3, "{known:?}");
        let now = metric_names(&tls, address).await;
        let new: Vec<_> = now.difference(known).collect();
        assert!(new.is_empty(), "{new:?}");
    }
    assert_eq!(audit_rows(&fleet).await, audited, "no rows of strangers");
    let grown = [0, 1].map(|n| rss_kb(pids[n]).saturating_sub(before[n]));
    println!("{STRANGERS} strangers each: {grown:?} kB");
    assert!(grown.iter().all(|kb| *kb < 16 * 1024), "{grown:?} kB");
}
