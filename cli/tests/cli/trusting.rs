//! TLS: which servers are believed.

use std::sync::Arc;

use axum::Router;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::double::{bare, finish};

struct Secure {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl axum::serve::Listener for Secure {
    type Io = TlsStream<TcpStream>;
    type Addr = std::net::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (tcp, address) = self.listener.accept().await.unwrap();
            // A client that does not believe us goes away during the handshake.
            if let Ok(tls) = self.acceptor.accept(tcp).await {
                return (tls, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

struct Ca {
    pem: String,
    fingerprint: String,
    issuer: Issuer<'static, KeyPair>,
    der: rustls_pki_types::CertificateDer<'static>,
}

fn ca() -> Ca {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).unwrap();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate.der());
    Ca {
        pem: certificate.pem(),
        fingerprint: digest
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect(),
        der: certificate.der().clone(),
        issuer: Issuer::new(params, key),
    }
}

/// A server for `name` that shows its CA; gives its port and what keeps it alive.
fn serve(ca: &Ca, name: &str) -> (u16, tokio::runtime::Runtime) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    let leaf = params.signed_by(&key, &ca.issuer).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![leaf.der().clone(), ca.der.clone()],
            PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der())),
        )
        .unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let port = listener.local_addr().unwrap().port();
    let router = Router::new().fallback(|| async {
        axum::Json(json!({
            "name": "admin", "token_id": "t1", "tenant": "default", "permissions": ["admin"],
            "scope": { "regions": [], "labels": {} }, "expires_at": null,
            "server_version": "0.1.0"
        }))
    });
    let secure = Secure {
        listener,
        acceptor: TlsAcceptor::from(Arc::new(config)),
    };
    runtime.spawn(async move { axum::serve(secure, router).await.unwrap() });
    (port, runtime)
}

#[test]
fn only_the_named_ca_is_believed() {
    let (ours, theirs) = (ca(), ca());
    let (port, _alive) = serve(&ours, "localhost");
    let home = tempfile::tempdir().unwrap();
    let ask = |url: &str, pem: Option<&str>| {
        let file = home.path().join("ca.pem");
        let mut command = bare(&["api", "GET", "/whoami"]);
        command
            .env("HOME", home.path())
            .env("FAIRLEAD_URL", url)
            .env("FAIRLEAD_TOKEN", "FA1x");
        if let Some(pem) = pem {
            std::fs::write(&file, pem).unwrap();
            command.env("FAIRLEAD_CA", &file);
        }
        finish(command, "")
    };
    let url = format!("https://localhost:{port}");
    let ran = ask(&url, Some(&ours.pem));
    assert_eq!(ran.code, 0, "{ran:?}");
    for (pem, says) in [
        (Some(theirs.pem.as_str()), "another key of a CA"),
        (None, "not made by the CA"),
    ] {
        let ran = ask(&url, pem);
        assert_eq!(ran.code, 8, "{ran:?}");
        assert!(
            ran.err.contains("not to be trusted") && ran.err.contains(says),
            "{ran:?}"
        );
    }
    let ran = ask(&format!("https://127.0.0.1:{port}"), Some(&ours.pem));
    assert_eq!(ran.code, 8, "{ran:?}");
    assert!(ran.err.contains("for another name"), "{ran:?}");
    assert_eq!(ask(&url, Some("no PEM")).code, 1);
}

#[test]
fn a_fingerprint_finds_the_ca_and_the_login_keeps_it() {
    let (ours, theirs) = (ca(), ca());
    let (port, _alive) = serve(&ours, "localhost");
    let url = format!("https://localhost:{port}");
    let home = tempfile::tempdir().unwrap();
    let login = |fingerprint: &str| {
        let mut command = bare(&[
            "login",
            &url,
            "--token",
            "-",
            "--ca-fingerprint",
            fingerprint,
        ]);
        command.env("HOME", home.path());
        finish(command, "FA1x")
    };
    let ran = login(&theirs.fingerprint);
    assert_eq!(ran.code, 8, "{ran:?}");
    assert!(!home.path().join(".config/fairlead/config.toml").exists());
    let ran = login(&ours.fingerprint);
    assert_eq!(ran.code, 0, "{ran:?}");
    let mut again = bare(&["api", "GET", "/whoami"]);
    again.env("HOME", home.path());
    let ran = finish(again, "");
    assert_eq!(ran.code, 0, "{ran:?}");
}

/// A CA's PEM, for tests that need one to be there.
pub(crate) fn any_ca_pem() -> String {
    ca().pem
}
