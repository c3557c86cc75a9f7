//! A real ACME CA on this machine: Let's Encrypt's test server `pebble`, and the DNS that it asks
//! (`pebble-challtestsrv`), each a process of the test's own. Every name leads to 127.0.0.1 unless told
//! otherwise.

use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;

use crate::ports::Port;
use crate::process::Process;
use crate::wait::wait_for;

/// How long it may take to make its keys and listen.
const UP_WITHIN: Duration = Duration::from_secs(30);

/// What a CA is to be.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Where it looks for the answers to its challenges.
    pub looks_at: u16,
    /// How long its certificates are good, seconds.
    pub life_s: u32,
    /// Names that it refuses.
    pub refuses: Vec<String>,
}

/// A CA.
pub struct Ca {
    /// Its directory.
    pub port: Port,
    manage: Port,
    dns_manage: Port,
    pebble: Option<Process>,
    _dns: Process,
    dns_address: String,
    dir: TempDir,
}

impl Ca {
    /// Whether there can be one here. In CI there has to be.
    ///
    /// # Panics
    /// In CI, when there cannot.
    #[must_use]
    pub fn can_be_had(test: &str) -> bool {
        let here = ["pebble", "pebble-challtestsrv"]
            .iter()
            .all(|name| which(name).is_some());
        if !here {
            assert!(
                std::env::var_os("CI").is_none(),
                "pebble is missing, and in CI nothing is left out"
            );
            eprintln!("SKIPPED test {test}: pebble is not here (apt-get install pebble)");
        }
        here
    }

    /// One that is there.
    pub async fn start(wanted: &Wanted) -> Self {
        let mut ca = Self::prepare(wanted);
        ca.up().await;
        ca
    }

    /// One whose name and files are known, and that does not run yet.
    ///
    /// # Panics
    /// When its files cannot be made.
    #[must_use]
    pub fn prepare(wanted: &Wanted) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let (port, manage) = (Port::claim(), Port::claim());
        let (dns, dns_manage) = (Port::claim(), Port::claim());
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])
            .expect("a certificate for the CA's own https");
        let write = |name: &str, text: String| {
            std::fs::write(dir.path().join(name), text).expect("a file");
        };
        write("own.pem", made.cert.pem());
        write("own.key", made.signing_key.serialize_pem());
        let file = |name: &str| dir.path().join(name);
        let config = serde_json::json!({"pebble": {
            "listenAddress": port.address(),
            "managementListenAddress": manage.address(),
            "certificate": file("own.pem"),
            "privateKey": file("own.key"),
            // Nobody listens there, and nobody is asked to.
            "httpPort": 9,
            "tlsPort": wanted.looks_at,
            "certificateValidityPeriod": wanted.life_s,
            "domainBlocklist": wanted.refuses,
        }});
        write("pebble.json", config.to_string());
        let dns_flags = [
            ("-dns01", dns.address()),
            ("-management", dns_manage.address()),
            ("-http01", String::new()),
            ("-https01", String::new()),
            ("-tlsalpn01", String::new()),
            ("-defaultIPv4", "127.0.0.1".to_owned()),
            ("-defaultIPv6", String::new()),
        ];
        let dns_process = Process::start(
            "pebble's DNS",
            which("pebble-challtestsrv").expect("it is here"),
            dns_flags
                .into_iter()
                .flat_map(|(flag, value)| [flag.into(), value.into()])
                .collect(),
            Vec::new(),
            file("dns.log"),
        );
        Self {
            dns_address: dns.address(),
            port,
            manage,
            dns_manage,
            pebble: None,
            _dns: dns_process,
            dir,
        }
    }

    /// Starts it, or starts it again: it forgets everything, its own keys too.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn up(&mut self) {
        self.pebble = Some(Process::start(
            "pebble",
            which("pebble").expect("it is here"),
            vec![
                "-config".into(),
                self.dir.path().join("pebble.json").into(),
                "-dnsserver".into(),
                self.dns_address.clone().into(),
            ],
            vec![
                ("PEBBLE_VA_NOSLEEP".to_owned(), "1".to_owned()),
                // Otherwise it refuses one request in twenty, and three in a row now and then.
                ("PEBBLE_WFE_NONCEREJECT".to_owned(), "0".to_owned()),
                // Each order is to be proved.
                ("PEBBLE_AUTHZREUSE".to_owned(), "0".to_owned()),
            ],
            self.dir.path().join("pebble.log"),
        ));
        let root = wait_for("the CA is up", UP_WITHIN, async || {
            let url = format!("{}/roots/0", self.manage.url());
            let answer = self.http().get(&url).send().await;
            let answer = answer.map_err(|error| format!("{error}: {}", self.said()))?;
            answer.text().await.map_err(|error| error.to_string())
        })
        .await;
        std::fs::write(self.root(), root).expect("a file");
    }

    /// kill -9.
    pub fn down(&mut self) {
        self.pebble = None;
    }

    /// Address of its directory.
    #[must_use]
    pub fn directory(&self) -> String {
        format!("{}/dir", self.port.url())
    }

    /// By whom its own https is believed.
    #[must_use]
    pub fn own_roots(&self) -> PathBuf {
        self.dir.path().join("own.pem")
    }

    /// The root of what it has issued since it was started.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root.pem")
    }

    /// All it has said, of all its lives.
    #[must_use]
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("pebble.log")).unwrap_or_default()
    }

    /// How many accounts were asked for.
    #[must_use]
    pub fn accounts(&self) -> usize {
        self.said().matches("POST /sign-me-up").count()
    }

    /// How many orders were asked for.
    #[must_use]
    pub fn orders(&self) -> usize {
        self.said().matches("POST /order-plz").count()
    }

    /// From now on that name leads there.
    ///
    /// # Panics
    /// When the DNS does not take it.
    pub async fn leads(&self, name: &str, address: &str) {
        let url = format!("http://{}/add-a", self.dns_manage.address());
        let body = serde_json::json!({"host": name, "addresses": [address]});
        wait_for("the DNS takes a record", UP_WITHIN, async || {
            let answer = self.http().post(&url).body(body.to_string());
            match answer.send().await {
                Ok(answer) if answer.status().is_success() => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }

    fn http(&self) -> reqwest::Client {
        let tls = crate::client::tls(&self.own_roots());
        reqwest::Client::builder()
            .tls_backend_preconfigured((*tls).clone())
            .build()
            .expect("an HTTP client")
    }
}

impl Drop for Ca {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let said = self.said();
            let lines: Vec<&str> = said.lines().collect();
            let last = lines.len().saturating_sub(25);
            eprintln!(
                "--- the last words of pebble:\n{}",
                lines[last..].join("\n")
            );
        }
    }
}

fn which(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}
