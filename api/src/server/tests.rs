//! Real sockets and TLS: who is silent or slow is cut, who is good is served, a drain ends.

use axum::routing::{get, post};
use http_body_util::Empty;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsConnector;

use super::*;

const SOON: Duration = Duration::from_secs(10);

struct Served {
    address: SocketAddr,
    connector: TlsConnector,
    shutdown: CancellationToken,
    server: tokio::task::JoinHandle<std::io::Result<()>>,
}

async fn served(limits: Limits, alpn: &[&[u8]]) -> Served {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let certificate = made.cert.der().clone();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let mut tls = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    tls.alpn_protocols = ALPN.iter().map(|protocol| protocol.to_vec()).collect();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).unwrap();
    let mut client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let router = Router::new()
        .route(
            "/from",
            get(async |request: Request<Body>| Peer::of(request.extensions())),
        )
        .route(
            "/body",
            post(async |_: crate::input::Body<serde_json::Value>| "taken"),
        )
        .route("/never", get(std::future::pending::<&'static str>));
    let server = tokio::spawn(serve(
        listener,
        Arc::new(tls),
        router,
        shutdown.clone(),
        limits,
    ));
    Served {
        address,
        connector: TlsConnector::from(Arc::new(client)),
        shutdown,
        server,
    }
}

impl Served {
    async fn dial(&self) -> tokio_rustls::client::TlsStream<TcpStream> {
        let socket = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        self.connector.connect(name, socket).await.unwrap()
    }

    async fn ask(&self, path: &str) -> String {
        let mut stream = self.dial().await;
        let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn drained(self) {
        self.shutdown.cancel();
        tokio::time::timeout(SOON, self.server)
            .await
            .expect("no end")
            .unwrap()
            .unwrap();
    }
}

#[tokio::test]
async fn s24_silent_clients_slow_nobody_and_are_cut() {
    let limits = Limits {
        handshake_timeout: Duration::from_millis(300),
        ..Limits::default()
    };
    let served = served(limits, &[b"http/1.1"]).await;
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(TcpStream::connect(served.address).await.unwrap());
    }
    let answer = tokio::time::timeout(SOON, served.ask("/from"))
        .await
        .unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.ends_with("127.0.0.1"),
        "{answer}"
    );
    for socket in &mut silent {
        let read = tokio::time::timeout(SOON, socket.read(&mut [0; 16]))
            .await
            .expect("not cut");
        assert!(matches!(read, Ok(0) | Err(_)));
    }
    served.drained().await;
}

#[tokio::test]
async fn s24_headers_that_dawdle_and_connections_without_requests_are_cut() {
    for (alpn, begun) in [
        (&b"http/1.1"[..], &b"GET / HTTP/1.1\r\nx: "[..]),
        (b"h2", b""),
    ] {
        let limits = Limits {
            header_timeout: Duration::from_millis(200),
            idle_timeout: Duration::from_millis(200),
            ..Limits::default()
        };
        let served = served(limits, &[alpn]).await;
        let mut stream = served.dial().await;
        stream.write_all(begun).await.unwrap();
        let mut rest = Vec::new();
        let read = tokio::time::timeout(SOON, stream.read_to_end(&mut rest)).await;
        assert!(read.is_ok(), "not cut: {}", String::from_utf8_lossy(alpn));
        served.drained().await;
    }
}

#[tokio::test]
async fn http2_is_served_and_a_request_without_end_does_not_hold_the_drain() {
    let limits = Limits {
        drain_timeout: Duration::from_millis(200),
        ..Limits::default()
    };
    let served = served(limits, &[b"h2"]).await;
    let (mut sender, connection) = hyper::client::conn::http2::handshake(
        TokioExecutor::new(),
        TokioIo::new(served.dial().await),
    )
    .await
    .unwrap();
    let connection = tokio::spawn(connection);
    let asked = |path: &str| {
        Request::get(format!("https://localhost{path}"))
            .body(Empty::<bytes::Bytes>::new())
            .unwrap()
    };
    let answer = sender.send_request(asked("/from")).await.unwrap();
    assert_eq!(answer.version(), axum::http::Version::HTTP_2);
    assert_eq!(
        answer.into_body().collect().await.unwrap().to_bytes(),
        "127.0.0.1"
    );
    let never = sender.send_request(asked("/never"));
    served.drained().await;
    never.await.unwrap_err();
    connection.abort();
}

#[tokio::test]
async fn no_more_connections_than_allowed_are_served_at_once() {
    let limits = Limits {
        connections_max: 1,
        ..Limits::default()
    };
    let served = served(limits, &[b"http/1.1"]).await;
    let first = served.dial().await;
    let mut asks = Box::pin(served.ask("/from"));
    let early = tokio::time::timeout(Duration::from_millis(200), &mut asks).await;
    assert!(early.is_err(), "served beyond the limit");
    drop(first);
    let answer = tokio::time::timeout(SOON, asks)
        .await
        .expect("never served");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    served.drained().await;
}

#[tokio::test]
async fn idle_connections_of_one_address_are_bounded_and_cost_no_other() {
    let limits = Limits {
        idle_per_address_max: 3,
        ..Limits::default()
    };
    let served = served(limits, &[b"http/1.1"]).await;
    let from = async |address: &str| {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket
            .bind(format!("{address}:0").parse().unwrap())
            .unwrap();
        socket.connect(served.address).await.unwrap()
    };
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(from("127.0.0.2").await);
    }
    let mut one_more = from("127.0.0.2").await;
    let read = tokio::time::timeout(SOON, one_more.read(&mut [0; 16]))
        .await
        .expect("not cut");
    assert!(matches!(read, Ok(0) | Err(_)));
    // Of another address, one after another, and those with a request in progress do not count.
    for _ in 0..5 {
        assert!(served.ask("/from").await.starts_with("HTTP/1.1 200"));
    }
    let mut busy = Vec::new();
    for _ in 0..5 {
        let mut stream = served.dial().await;
        stream
            .write_all(b"GET /never HTTP/1.1\r\nhost: x\r\n\r\n")
            .await
            .unwrap();
        // It has begun once another connection of this address is served beside it.
        assert!(served.ask("/from").await.starts_with("HTTP/1.1 200"));
        busy.push(stream);
    }
}

#[tokio::test]
async fn s24_a_body_that_is_too_large_is_answered_even_while_it_is_written() {
    let served = served(Limits::default(), &[b"http/1.1"]).await;
    let mut stream = served.dial().await;
    let length = 20_000_000;
    let head = format!(
        "POST /body HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&vec![b' '; length]).await.unwrap();
    // The last records may wait in TLS until the socket has room, and reading does not send them.
    stream.flush().await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert!(answer.contains("too large"), "{answer}");
}

#[tokio::test]
async fn s24_a_body_that_is_announced_as_far_too_large_is_refused_at_once() {
    let served = served(Limits::default(), &[b"http/1.1"]).await;
    let mut stream = served.dial().await;
    let head = "POST /body HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
                content-length: 100000000000\r\n\r\n{";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    tokio::time::timeout(SOON, stream.read_exact(&mut answer))
        .await
        .expect("it waits for the body")
        .unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");
}
