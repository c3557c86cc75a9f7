//! An agent that reaches its region through an HTTP proxy only.
//!
//! Holds: DESIGN §5 (proxies), and that every dial of an agent names the kind of server in SNI.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fairlead_protocol::version::sni;
use fairlead_tests::fleet::{Fleet, Options};
use fairlead_tests::wait::wait_for;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::acts::{attach, exec, run_simulated};

const SOON: Duration = Duration::from_secs(30);
/// `me:secret`, as Basic authentication writes it.
const GOOD: &str = "Proxy-Authorization: Basic bWU6c2VjcmV0";

/// A proxy that takes CONNECT from one user, and can be told to take nobody.
pub(crate) struct Double {
    pub(crate) address: String,
    closed: Arc<AtomicBool>,
    /// Takes what it is asked, and answers nothing.
    hangs: Arc<AtomicBool>,
    /// What was connected to, and whether the right SNI went there.
    made: Arc<Mutex<Vec<(String, bool)>>>,
    cut: tokio::sync::watch::Sender<()>,
    _serving: JoinSet<()>,
}

impl Double {
    async fn start() -> Self {
        Self::start_at(Ipv4Addr::LOCALHOST, None).await
    }

    /// One at that address of this machine, to which all names lead there.
    pub(crate) async fn start_at(at: Ipv4Addr, all_names: Option<Ipv4Addr>) -> Self {
        let listener = TcpListener::bind((at, 0)).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (cut, _) = tokio::sync::watch::channel(());
        let closed = Arc::new(AtomicBool::new(false));
        let hangs = Arc::new(AtomicBool::new(false));
        let made = Arc::<Mutex<Vec<_>>>::default();
        let mut serving = JoinSet::new();
        let (closed_too, made_too, cut_too) = (closed.clone(), made.clone(), cut.clone());
        let hangs_too = hangs.clone();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                let (closed, made) = (closed_too.clone(), made_too.clone());
                let hangs = hangs_too.clone();
                let mut cut = cut_too.subscribe();
                connections.spawn(async move {
                    tokio::select! {
                        _ = cut.changed() => {}
                        () = serve(tcp, all_names, &closed, &hangs, &made) => {}
                    }
                });
            }
        });
        Self {
            address,
            closed,
            hangs,
            made,
            cut,
            _serving: serving,
        }
    }

    /// What was connected to, and whether by an agent.
    pub(crate) fn made(&self) -> Vec<(String, bool)> {
        self.made.lock().unwrap().clone()
    }
}

async fn serve(
    mut client: TcpStream,
    all_names: Option<Ipv4Addr>,
    closed: &AtomicBool,
    hangs: &AtomicBool,
    made: &Mutex<Vec<(String, bool)>>,
) {
    let mut asked = Vec::new();
    while !asked.ends_with(b"\r\n\r\n") {
        if client.read_buf(&mut asked).await.unwrap_or(0) == 0 {
            return;
        }
    }
    if hangs.load(Ordering::SeqCst) {
        std::future::pending::<()>().await;
    }
    let asked = String::from_utf8_lossy(&asked).into_owned();
    if closed.load(Ordering::SeqCst) || !asked.contains(GOOD) {
        let _ = client
            .write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
            .await;
        return;
    }
    let address = asked.split(' ').nth(1).unwrap_or_default().to_owned();
    let (name, port) = address.rsplit_once(':').unwrap_or_default();
    let host = all_names.map_or_else(|| name.to_owned(), |ip| ip.to_string());
    let Ok(mut server) = TcpStream::connect(format!("{host}:{port}")).await else {
        return;
    };
    let _ = client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
    // The hello whole: its record says how long it is, and it may come in parts.
    let mut first = Vec::with_capacity(4096);
    let whole = |first: &[u8]| match first {
        [_, _, _, high, low, ..] => {
            first.len() >= 5 + usize::from(u16::from_be_bytes([*high, *low]))
        }
        _ => false,
    };
    while !whole(&first) && client.read_buf(&mut first).await.unwrap_or(0) > 0 {}
    let sni = sni::AGENTS.as_bytes();
    let named = first.windows(sni.len()).any(|part| part == sni);
    made.lock().unwrap().push((address, named));
    let _ = server.write_all(&first).await;
    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
}

#[tokio::test]
async fn an_agent_lives_behind_a_proxy() {
    let proxy = Double::start().await;
    let options = Options::simulated()
        .agent_env("HTTPS_PROXY", format!("http://me:secret@{}", proxy.address))
        .agent_env("NO_PROXY", "elsewhere.example");
    let fleet = Fleet::start(options).await;
    assert!(proxy.made().len() >= 2, "enrolment and link");

    // A stream takes the same way.
    fleet.done(run_simulated("web")).await;
    let before = proxy.made().len();
    let (_, mut stream) = attach(&fleet.api, "box", exec("web", &["echo", "hello"])).await;
    assert_eq!(stream.rest().await.text(), "hello\n");
    assert_eq!(proxy.made().len(), before + 1);
    let at = fleet.regions[0].agents.address();
    assert!(
        proxy.made().iter().all(|made| *made == (at.clone(), true)),
        "{:?}",
        proxy.made()
    );

    // A proxy that takes us no more is named in words, and nothing goes around it.
    proxy.closed.store(true, Ordering::SeqCst);
    proxy.cut.send_replace(());
    let said = "wants a user and password: set them in HTTPS_PROXY";
    fleet.hosts[0].supervisor.says(said, SOON).await;
    fleet.api.host_is("box", "offline", SOON).await;
    proxy.closed.store(false, Ordering::SeqCst);
    fleet.online("box").await;

    // One that takes what it is asked and answers nothing is said to, and given up in time.
    proxy.hangs.store(true, Ordering::SeqCst);
    proxy.cut.send_replace(());
    let said = "it did not answer within";
    fleet.hosts[0].supervisor.says(said, SOON).await;
    proxy.hangs.store(false, Ordering::SeqCst);
    fleet.online("box").await;
    fleet.done(run_simulated("other")).await;
    assert!(!fleet.hosts[0].supervisor.said().contains("secret"));
}

#[tokio::test]
async fn a_proxy_that_cannot_be_used_is_refused_in_words() {
    let options = Options::simulated()
        .hosts(&[])
        .agent_env("HTTPS_PROXY", "https://proxy.example:3128");
    let fleet = Fleet::start(options).await;
    let host = fleet.start_host("box", "FL1");
    let said = "https:// proxies are not supported";
    host.supervisor.says(said, SOON).await;
    wait_for("the supervisor waits for a person", SOON, async || {
        let said = host.supervisor.said();
        said.contains("waits for a person")
            .then_some(())
            .ok_or(said)
    })
    .await;
}
