//! The controller's https gets its certificate from a public CA by ACME, over the people's own port, and
//! keeps it good. The CA is a real one (`fairlead_tests::acme`).
//!
//! Holds: DESIGN §6 (nothing but TLS that somebody vouches for), and that a CA is never asked more than it
//! should be.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use fairlead_api::types::HttpsCertificate;
use fairlead_identity::chain::public_key;
use fairlead_tests::acme::{Ca, Wanted};
use fairlead_tests::client::{Api, tls};
use fairlead_tests::ports::Port;
use fairlead_tests::process::Process;
use fairlead_tests::programs::program;
use fairlead_tests::wait::{stays_so, wait_for};
use rustls_pki_types::{CertificateDer, ServerName};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const SOON: Duration = Duration::from_secs(60);
const NAME: &str = "fleet.example.test";

/// A controller that asks a CA for its certificate.
struct Controller {
    process: Process,
    web: Port,
    _uplink: Port,
    dir: TempDir,
}

impl Controller {
    /// One with those flags besides.
    fn start(web: Port, ca: &Ca, more: &[(&str, &str)]) -> Self {
        let (dir, uplink) = (tempfile::tempdir().unwrap(), Port::claim());
        let mut flags = flags(dir.path(), &web, &uplink);
        flags.extend(["--acme".into(), "--acme-agree-tos".into()]);
        let (directory, roots) = (ca.directory(), ca.own_roots());
        for (flag, value) in [
            ("--acme-directory", directory.as_str()),
            ("--acme-ca", roots.to_str().unwrap()),
        ]
        .iter()
        .chain(more)
        {
            flags.extend([OsString::from(flag), OsString::from(value)]);
        }
        flags.insert(0, "run".into());
        let process = Process::start(
            "controller",
            program("fairlead-controller"),
            flags,
            Vec::new(),
            dir.path().join("log"),
        );
        Self {
            process,
            web,
            _uplink: uplink,
            dir,
        }
    }

    /// The file with the root of its own CA.
    fn own_ca(&self) -> PathBuf {
        self.dir.path().join("data/ca.pem")
    }

    /// Until its https shows that name's certificate of that root.
    async fn shows(&self, root: &Path) -> TlsStream<TcpStream> {
        let what = format!("https shows what {} vouches for", root.display());
        wait_for(&what, SOON, async || {
            let shown = knock(&self.web, NAME, root, b"http/1.1").await;
            shown.map_err(|no| format!("{no}; {}", self.process.last_words()))
        })
        .await
    }

    /// What probes are told.
    async fn ready(&self) -> Result<String, String> {
        let no = |error: reqwest::Error| error.to_string();
        let tls = tls(&self.own_ca());
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured((*tls).clone())
            .build()
            .unwrap();
        let url = format!("{}/readyz", self.web.url());
        let answer = client.get(url).send().await.map_err(no)?;
        answer.text().await.map_err(no)
    }

    /// Until probes are told those words.
    async fn says_ready(&self, words: &str) {
        wait_for(&format!("readyz says {words:?}"), SOON, async || {
            let said = if self.own_ca().exists() {
                self.ready().await
            } else {
                Err("no CA yet".to_owned())
            };
            match said {
                Ok(said) if said.contains(words) => Ok(()),
                other => Err(format!("{other:?}; {}", self.process.last_words())),
            }
        })
        .await;
    }

    /// As its first admin.
    async fn claim(&self) -> Api {
        let file = self.dir.path().join("data/setup-link");
        let link = wait_for("the setup link", SOON, async || {
            std::fs::read_to_string(&file).map_err(|error| error.to_string())
        })
        .await;
        let mut api = Api::new(&self.web.url(), &self.own_ca(), "");
        let secret = link.trim().rsplit('/').next().unwrap().to_owned();
        let token = wait_for("the controller is claimed", SOON, async || {
            api.setup(&secret).await.map_err(|no| no.to_string())
        })
        .await;
        api.token = token.token;
        api
    }
}

fn flags(dir: &Path, web: &Port, uplink: &Port) -> Vec<OsString> {
    let url = format!("https://{NAME}:{}", web.number);
    [
        ("--data-dir", dir.join("data").into_os_string()),
        ("--listen", web.address().into()),
        ("--uplink-listen", uplink.address().into()),
        ("--uplink-address", uplink.address().into()),
        ("--public-url", url.into()),
        ("--web-name", NAME.into()),
        ("--web-name", "localhost".into()),
    ]
    .into_iter()
    .flat_map(|(flag, value)| [flag.into(), value])
    .collect()
}

/// Goes through the handshake as somebody who asks for that name and believes that root.
async fn knock(
    port: &Port,
    name: &'static str,
    root: &Path,
    protocol: &[u8],
) -> Result<TlsStream<TcpStream>, String> {
    if !root.exists() {
        return Err("no root yet".to_owned());
    }
    let mut config = (*tls(root)).clone();
    config.alpn_protocols = vec![protocol.to_vec()];
    // What is shown is looked at, never remembered.
    config.resumption = rustls::client::Resumption::disabled();
    let tcp = TcpStream::connect(port.address());
    let tcp = tcp.await.map_err(|error| error.to_string())?;
    let name = ServerName::try_from(name).unwrap();
    let connected = TlsConnector::from(Arc::new(config))
        .connect(name, tcp)
        .await;
    connected.map_err(|error| error.to_string())
}

fn leaf(stream: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    let shown = stream.get_ref().1.peer_certificates().unwrap();
    shown[0].clone().into_owned()
}

async fn https(api: &Api) -> HttpsCertificate {
    api.status().await.unwrap().https.unwrap()
}

/// One that is issued for `life_s`, and a controller's port that it looks at.
async fn ca(life_s: u32) -> (Ca, Port) {
    let web = Port::claim();
    let wanted = Wanted {
        looks_at: web.number,
        life_s,
        refuses: vec!["blocked.example.test".to_owned()],
    };
    (Ca::start(&wanted).await, web)
}

#[tokio::test]
async fn the_first_certificate_is_had_kept_and_not_asked_for_again() {
    if !Ca::can_be_had("the_first_certificate_is_had_kept_and_not_asked_for_again") {
        return;
    }
    let (mut ca, web) = ca(7_776_000).await;
    let contact = [("--acme-contact", "mailto:ops@fleet.example.test")];
    let mut controller = Controller::start(web, &ca, &contact);
    let stream = controller.shows(&ca.root()).await;
    assert_eq!((ca.accounts() > 0, ca.orders() > 0), (true, true));

    // Whoever was given the key's fingerprint can go on believing it; other names are the own CA's.
    let own = knock(
        &controller.web,
        "localhost",
        &controller.own_ca(),
        b"http/1.1",
    )
    .await;
    let own = leaf(&own.unwrap());
    assert_ne!(leaf(&stream), own);
    assert_eq!(
        public_key(&leaf(&stream)).unwrap(),
        public_key(&own).unwrap()
    );

    // It is said.
    let api = controller.claim().await;
    let shown = https(&api).await;
    assert_eq!(shown.source, "acme");
    assert_eq!(shown.names, [NAME]);
    assert!(shown.trouble.is_none(), "{shown:?}");
    let said = controller.ready().await.unwrap();
    let line = format!("ok\nhttps acme until {}\n", shown.not_after.unwrap());
    assert_eq!(said, line);

    // Nobody but a CA in the middle of a challenge is shown anything by its protocol.
    let no = knock(&controller.web, NAME, &ca.root(), b"acme-tls/1").await;
    assert!(no.is_err());

    for name in ["account", "certificate", "tries"] {
        let path = controller.dir.path().join("data/acme").join(name);
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }

    // Started again, with its CA gone, it shows the same one at once and asks nobody.
    let (accounts, orders, root) = (ca.accounts(), ca.orders(), ca.root());
    controller.process.start_again();
    let again = controller.shows(&root).await;
    assert_eq!(leaf(&again), leaf(&stream));
    stays_so("nothing is asked", Duration::from_secs(2), async || {
        let now = (ca.accounts(), ca.orders());
        (now == (accounts, orders))
            .then_some(())
            .ok_or(format!("{now:?}"))
    })
    .await;
    ca.down();
    controller.process.start_again();
    assert_eq!(leaf(&controller.shows(&root).await), leaf(&stream));
}

#[tokio::test]
async fn it_is_renewed_while_a_connection_goes_on() {
    if !Ca::can_be_had("it_is_renewed_while_a_connection_goes_on") {
        return;
    }
    let (ca, web) = ca(24).await;
    let controller = Controller::start(web, &ca, &[]);
    let mut before = controller.shows(&ca.root()).await;
    let first = leaf(&before);
    let mut asked = 0;
    wait_for("another certificate is shown", SOON, async || {
        ask(&mut before).await;
        asked += 1;
        let shown = knock(&controller.web, NAME, &ca.root(), b"http/1.1").await?;
        if leaf(&shown) == first {
            return Err("still the first".to_owned());
        }
        Ok(())
    })
    .await;
    ask(&mut before).await;
    assert!(asked > 1, "{asked}");
    controller.says_ready("https acme until").await;
}

/// A request on an open connection, and its answer.
async fn ask(stream: &mut TlsStream<TcpStream>) {
    let request = b"GET /healthz HTTP/1.1\r\nhost: fleet.example.test\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\nok\n") {
        assert!(
            stream.read_buf(&mut answer).await.unwrap() > 0,
            "it was cut"
        );
    }
}

#[tokio::test]
async fn a_ca_that_is_away_is_waited_for() {
    if !Ca::can_be_had("a_ca_that_is_away_is_waited_for") {
        return;
    }
    let web = Port::claim();
    let mut ca = Ca::prepare(&Wanted {
        looks_at: web.number,
        life_s: 7_776_000,
        refuses: Vec::new(),
    });
    let controller = Controller::start(web, &ca, &[]);
    controller.says_ready("https own-ca until").await;
    controller.says_ready("; acme_unreachable").await;
    // Setting up works meanwhile, and the status says what is missing.
    let own = knock(&controller.web, NAME, &controller.own_ca(), b"http/1.1").await;
    own.unwrap();
    let api = controller.claim().await;
    let status = api.status().await.unwrap();
    assert!(
        status.attention.iter().any(|line| {
            line.contains("installation's own CA (acme_unreachable)") && line.contains("next try")
        }),
        "{:?}",
        status.attention
    );
    ca.up().await;
    controller.shows(&ca.root()).await;
    wait_for("nothing deserves attention", SOON, async || {
        let status = api.status().await.map_err(|no| no.to_string())?;
        let none = status.attention.is_empty();
        none.then_some(()).ok_or(format!("{:?}", status.attention))
    })
    .await;
}

#[tokio::test]
async fn a_ca_that_refuses_is_not_bothered() {
    if !Ca::can_be_had("a_ca_that_refuses_is_not_bothered") {
        return;
    }
    let (ca, web) = ca(7_776_000).await;
    let url = format!("https://blocked.example.test:{}", web.number);
    let mut controller = Controller::start(web, &ca, &[]);
    controller.shows(&ca.root()).await;
    let orders = ca.orders();

    // Another name, which the CA does not certify: asked for once, restart or not.
    controller.process.set_flag("--public-url", &url);
    controller.process.start_again();
    controller.says_ready("; acme_refused").await;
    let api = controller.claim().await;
    let trouble = https(&api).await.trouble.unwrap();
    assert!(
        trouble.message.contains("blocked.example.test"),
        "{trouble:?}"
    );
    let pause = trouble.next_try.unwrap().as_second() - trouble.at.unwrap().as_second();
    assert!((140..=310).contains(&pause), "{trouble:?}");
    // The first name's certificate is shown as before to whoever asks for that name.
    controller.shows(&ca.root()).await;

    let asked = ca.orders();
    assert!(asked > orders);
    controller.process.start_again();
    controller.says_ready("; acme_refused").await;
    stays_so("nothing is asked", Duration::from_secs(2), async || {
        let now = ca.orders();
        (now == asked).then_some(()).ok_or(format!("{now}"))
    })
    .await;

    // A contact that it does not take: the same, before there is an account.
    let contact = [("--acme-contact", "fax:123")];
    let (web, data) = (Port::claim(), ca.accounts());
    let second = Controller::start(web, &ca, &contact);
    second.says_ready("https own-ca").await;
    second.says_ready("; acme_refused").await;
    assert!(ca.accounts() > data);
    assert_eq!(ca.orders(), asked);
}

#[tokio::test]
async fn a_renewal_that_fails_takes_nothing_away() {
    if !Ca::can_be_had("a_renewal_that_fails_takes_nothing_away") {
        return;
    }
    let (ca, web) = ca(40).await;
    let controller = Controller::start(web, &ca, &[]);
    let first = leaf(&controller.shows(&ca.root()).await);
    let api = controller.claim().await;
    // The name leads elsewhere, where nobody answers.
    ca.leads(NAME, "127.0.0.2").await;
    controller.says_ready("; acme_challenge_failed").await;
    let shown = https(&api).await;
    assert_eq!(shown.source, "acme");
    let attention = api.status().await.unwrap().attention;
    assert!(
        attention[0].contains("was not renewed (acme_challenge_failed)"),
        "{attention:?}"
    );
    assert_eq!(leaf(&controller.shows(&ca.root()).await), first);
}

#[tokio::test]
async fn through_the_one_port() {
    if !Ca::can_be_had("through_the_one_port") {
        return;
    }
    // The CA looks at the port that everybody comes through.
    let (ca, front) = ca(7_776_000).await;
    let (web, uplink) = (Port::claim(), Port::claim());
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    let prepared = Command::new(program("fairlead-controller"))
        .arg("setup")
        .args(flags(dir.path(), &web, &uplink))
        .arg("--region-token-file")
        .arg(&token)
        .output()
        .unwrap();
    assert!(prepared.status.success(), "{prepared:?}");
    let socket = dir.path().join("front.sock");
    let mut words = flags(dir.path(), &web, &uplink);
    words.insert(0, "run".into());
    let (directory, roots) = (ca.directory(), ca.own_roots());
    words
        .extend(["--acme", "--acme-agree-tos", "--acme-directory", &directory].map(OsString::from));
    words.extend(["--acme-ca".into(), roots.into_os_string()]);
    words.extend(["--front-socket".into(), socket.clone().into_os_string()]);
    let controller = Process::start(
        "controller",
        program("fairlead-controller"),
        words,
        Vec::new(),
        dir.path().join("controller.log"),
    );
    let (agents, region) = (Port::claim(), Port::claim());
    let mut server_words: Vec<OsString> = vec!["run".into()];
    for (flag, value) in [
        ("--data-dir", dir.path().join("region").into_os_string()),
        ("--controller", uplink.address().into()),
        ("--token-file", token.into_os_string()),
        ("--name", "a1".into()),
        ("--agent-listen", agents.address().into()),
        ("--agent-address", front.address().into()),
        ("--listen", region.address().into()),
        ("--public-url", region.url().into()),
        ("--front-listen", front.address().into()),
        ("--front-socket", socket.into_os_string()),
    ] {
        server_words.extend([flag.into(), value]);
    }
    let server = Process::start(
        "access server",
        program("fairlead-access-server"),
        server_words,
        Vec::new(),
        dir.path().join("region.log"),
    );
    wait_for("the one port shows it", SOON, async || {
        let shown = knock(&front, NAME, &ca.root(), b"http/1.1").await;
        shown
            .map(drop)
            .map_err(|no| format!("{no}; {}; {}", controller.last_words(), server.last_words()))
    })
    .await;
}

#[test]
fn what_makes_no_sense_is_refused_at_the_start() {
    let (dir, web, uplink) = (tempfile::tempdir().unwrap(), Port::claim(), Port::claim());
    let refused = |more: &[&str]| {
        let said = Command::new(program("fairlead-controller"))
            .arg("run")
            .args(flags(dir.path(), &web, &uplink))
            .arg("--acme")
            .args(more)
            .env("FAIRLEAD_DIE_WITH_PARENT", "1")
            .output()
            .unwrap();
        assert_eq!(said.status.code(), Some(1), "{said:?}");
        String::from_utf8(said.stderr).unwrap()
    };
    let said = refused(&[]);
    assert!(
        said.contains("acme_terms") && said.contains("--acme-agree-tos"),
        "{said}"
    );
    assert!(said.contains("letsencrypt.org"), "{said}");
    let said = refused(&["--acme-agree-tos", "--acme-directory", "http://ca.example"]);
    assert!(said.contains("not an https address"), "{said}");
    let said = refused(&["--acme-agree-tos", "--acme-ca", "/nowhere.pem"]);
    assert!(said.contains("/nowhere.pem"), "{said}");
}
