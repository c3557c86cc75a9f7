//! The agents' port of a real access server: raw bytes, WebSocket frames, hellos and messages of a host
//! with a good certificate or a stranger with none. The server refuses or goes on; it never falls over,
//! and never leaves anybody without an answer.
#![no_main]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use bytes::Bytes;
use clap::Parser;
use fairlead_access_server::{app::App, config::Config};
use fairlead_daemon::shutdown::Shutdown;
use fairlead_fuzz::{Installation, REGION, RUNTIME, dir, now_s, pieces};
use fairlead_identity::authority::{LeafUse, PrivateKey};
use fairlead_identity::roles::Role;
use fairlead_identity::tls::{self, Credentials, Expected, Trust};
use fairlead_protocol::{Hello, HostId, InstanceId, LinkUp, Message, RegionEnrolReply, RunId, link_up, version};
use futures_util::{SinkExt, StreamExt};
use libfuzzer_sys::fuzz_target;
use rustls::pki_types::ServerName;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message as Frame;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;

/// Longest until the server has answered, or hung up.
const IN_TIME: Duration = Duration::from_secs(20);
/// Inputs under one host; then comes another, because the region holds what behaves as a copy.
const INPUTS_A_HOST: u64 = 32;

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    config: Config,
}

struct Server {
    installation: Installation,
    agents: SocketAddr,
}

static SERVER: LazyLock<Server> = LazyLock::new(|| {
    let installation = Installation::new();
    let data_dir = dir().join("access-server");
    std::fs::create_dir_all(&data_dir).expect("a directory");
    let key = |name: &str| {
        let key = PrivateKey::generate().expect("a key");
        std::fs::write(data_dir.join(name), key.to_der()).expect("written");
        key
    };
    let (server, web) = (key("server.key"), key("web.key"));
    std::fs::write(data_dir.join("agents-ca.key"), installation.agents.key_der()).expect("written");
    let times = (now_s() - 60, Duration::from_secs(24 * 3600));
    let web_role = Role::Web { name: "a1".to_owned() };
    let web = installation.web.certify_own(&web, &web_role, LeafUse::Server, &["127.0.0.1".to_owned()], times);
    let ders = |chain: &[rustls::pki_types::CertificateDer<'_>]| -> Vec<Bytes> {
        chain.iter().map(|der| Bytes::copy_from_slice(der)).collect()
    };
    let reply = RegionEnrolReply {
        region: REGION.to_owned(),
        server_certificates: ders(&installation.access_server(&server).chain),
        agents_ca_certificates: ders(installation.agents.chain()),
        web_certificates: ders(&web.expect("a certificate").chain),
        domain: installation.trusted().domain().to_owned(),
    };
    std::fs::write(data_dir.join("certificates"), reply.encode_to_vec()).expect("written");
    let free = || std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port").local_addr().expect("its own");
    let (agents, listen) = (free(), free());
    let flag = |name: &str, value: &str| format!("--{name}={value}");
    let flags = Flags::try_parse_from([
        "fairlead-access-server".to_owned(),
        flag("data-dir", &data_dir.display().to_string()),
        // Nobody is there: a region by itself.
        flag("controller", "127.0.0.1:1"),
        flag("agent-listen", &agents.to_string()),
        flag("agent-address", &agents.to_string()),
        flag("listen", &listen.to_string()),
        flag("public-url", &format!("https://{listen}")),
    ]);
    let config = flags.expect("a configuration").config;
    let app = RUNTIME.block_on(App::build(config)).expect("an access server");
    RUNTIME.spawn(app.run(Shutdown::new()));
    Server { installation, agents }
});

/// The host of the moment: its id, and how it dials.
static HOST: Mutex<Option<(u64, HostId, TlsConnector)>> = Mutex::new(None);
static INPUTS: AtomicU64 = AtomicU64::new(0);

fn host(server: &Server) -> (HostId, TlsConnector) {
    let turn = INPUTS.fetch_add(1, Ordering::Relaxed) / INPUTS_A_HOST;
    let mut held = HOST.lock().expect("not poisoned");
    if let Some((of, host, connector)) = &*held
        && *of == turn
    {
        return (*host, connector.clone());
    }
    let mut id = [7; 16];
    id[..8].copy_from_slice(&turn.to_be_bytes());
    let host = HostId::from_bytes(id);
    let key = PrivateKey::generate().expect("a key");
    let leaf = server.installation.agent(host, &key);
    let credentials = Credentials { chain: leaf.chain, key: key.for_tls() };
    let connector = connector(server, Some(credentials));
    *held = Some((turn, host, connector.clone()));
    (host, connector)
}

fn connector(server: &Server, credentials: Option<Credentials>) -> TlsConnector {
    let trust = Trust::Root(server.installation.trusted());
    let mut config = tls::client(trust, Expected::AnyAccessServer, credentials).expect("a configuration");
    config.resumption = rustls::client::Resumption::disabled();
    TlsConnector::from(Arc::new(config))
}

async fn dial(server: &Server, tls: &TlsConnector) -> TlsStream<TcpStream> {
    let socket = TcpSocket::new_v4().expect("a socket");
    // Closed with a reset, so that no port waits after each of many thousand inputs.
    socket.set_zero_linger().expect("an option");
    socket.set_nodelay(true).expect("an option");
    let stream = socket.connect(server.agents).await.expect("it listens");
    let name = ServerName::try_from(version::sni::AGENTS).expect("a name");
    tls.connect(name, stream).await.expect("it takes everybody in so far")
}

async fn open(server: &Server, tls: &TlsConnector, path: &str) -> Option<WebSocketStream<TlsStream<TcpStream>>> {
    let mut request = format!("wss://{}{path}", version::sni::AGENTS).into_client_request().expect("a request");
    let protocol = HeaderValue::from_static(version::SUBPROTOCOL);
    request.headers_mut().insert("Sec-WebSocket-Protocol", protocol);
    let stream = dial(server, tls).await;
    tokio_tungstenite::client_async(request, stream).await.ok().map(|(socket, _)| socket)
}

fn hello() -> Frame {
    let hello = Hello {
        version_min: 1,
        version_max: 1,
        instance: InstanceId::from_bytes([3; 16]).to_wire(),
        run: RunId::from_bytes([4; 16]).to_wire(),
        epoch: 1,
        ..Hello::default()
    };
    let message = LinkUp { kind: Some(link_up::Kind::Hello(hello)) };
    Frame::Binary(message.encode_to_vec().into())
}

/// Sends the pieces, then waits until the server has answered a ping or hung up.
async fn talk(mut socket: WebSocketStream<TlsStream<TcpStream>>, known: bool, pieces: &[&[u8]]) {
    if known && socket.send(hello()).await.is_err() {
        return;
    }
    for piece in pieces {
        if socket.feed(Frame::Binary(Bytes::copy_from_slice(piece))).await.is_err() {
            return;
        }
    }
    if socket.send(Frame::Ping(Bytes::from_static(b"still there?"))).await.is_err() {
        return;
    }
    while let Some(Ok(frame)) = socket.next().await {
        if matches!(frame, Frame::Pong(_)) {
            return;
        }
    }
}

async fn raw(mut stream: TlsStream<TcpStream>, bytes: &[u8]) {
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
}

async fn one(input: &[u8]) {
    let server = &*SERVER;
    let Some((&way, rest)) = input.split_first() else { return };
    let (_, ours) = host(server);
    let tls = if way & 8 == 0 { ours } else { connector(server, None) };
    let path = match way & 3 {
        0 | 1 => version::paths::LINK,
        2 => version::paths::ENROL,
        _ => version::paths::RENEW,
    };
    if way & 4 == 0 {
        if let Some(socket) = open(server, &tls, path).await {
            talk(socket, way & 3 == 0, &pieces(rest)).await;
        }
    } else if way & 16 == 0 {
        raw(dial(server, &tls).await, rest).await;
    } else if let Some(socket) = open(server, &tls, path).await {
        // Bytes where frames should be.
        raw(socket.into_inner(), rest).await;
    }
}

fuzz_target!(|input: &[u8]| {
    LazyLock::force(&SERVER);
    RUNTIME.block_on(async {
        tokio::time::timeout(IN_TIME, one(input)).await.expect("the server answers or hangs up");
    });
});
