//! The https certificate from a public CA: asked for by ACME (RFC 8555), proved by the TLS-ALPN-01 challenge
//! (RFC 8737) on the very port that people use, renewed when a third of its life is left.
//!
//! One task asks; everybody else only reads what it shows. Until there is a certificate, and for every other
//! name, https shows the one of the installation's own CA. Its key is the one of https from the first day
//! on, so that a line with `--pinnedpubkey` stays good whoever has signed. A try that fails takes nothing
//! away. Tries are counted on disk before they begin: a controller that starts again and again does not use
//! up what the CA allows.
//!
//! | module | what lives there |
//! |---|---|
//! | `door` | which certificate a client is shown |
//! | `schedule` | when to ask next |
//! | `kept` | the files: account, certificate, tries |
//! | `ask` | the conversation with the CA |
//! | `http` | one request to it |

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fairlead_daemon::clock::Clock;
use fairlead_daemon::shutdown::Shutdown;
use fairlead_identity::authority::{AuthorityError, PrivateKey};
use fairlead_identity::tls::{self, Credentials};
use fairlead_identity::{public, random};
use fairlead_protocol::codes;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};

use crate::config::{AcmeConfig, Config};
use crate::web_status::{Source, Trouble, WebStatus};

mod ask;
mod door;
mod http;
mod kept;
mod schedule;

pub use door::Door;

use ask::{Asking, Failed};
use kept::{Certificate, Kept};
use schedule::Tries;

/// Longest sleep: wall clocks jump, and machines sleep.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(600);
/// A whole conversation with the CA.
const TRY_WITHIN: Duration = Duration::from_secs(180);
/// How often in a row the CA may not be reached before that is worth an error in the log: two minutes or so.
const UNREACHED_QUIETLY: u32 = 5;
/// Certificates in a chain, at most.
const CHAIN_MAX: usize = 8;

/// Why ACME cannot be used as configured.
#[derive(Debug, thiserror::Error)]
pub enum AcmeError {
    /// Nobody has agreed to the CA's terms.
    #[error(
        "--acme needs the CA's terms of service to be agreed to (acme_terms): read them, they are named at \
         {0}, then add --acme-agree-tos"
    )]
    Terms(String),
    /// The public address has no name that a CA could certify.
    #[error(
        "--acme cannot get a certificate for {0} (acme_name): --public-url has to have a DNS name that the CA \
         can reach at port 443, no address; international names in their xn-- form"
    )]
    Name(String),
    /// The directory is no https address.
    #[error("--acme-directory {0} is not an https address")]
    Directory(String),
    /// Two sources of one certificate.
    #[error("--acme and --web-certificate are two sources of one certificate: choose one")]
    TwoSources,
    /// The file with the CA's roots.
    #[error("cannot use {path}: {reason}")]
    Roots {
        /// Which file.
        path: String,
        /// Why.
        reason: String,
    },
    /// What is kept cannot be read.
    #[error("cannot read {path}: {reason}")]
    Kept {
        /// Which file.
        path: String,
        /// Why.
        reason: String,
    },
    /// The certificates and keys do not fit.
    #[error("cannot use the https key: {0}")]
    Tls(#[from] rustls::Error),
    /// No request can be made of it.
    #[error("cannot use the https key: {0}")]
    Key(#[from] AuthorityError),
}

/// The certificate, and whoever keeps it good.
pub struct Acme {
    name: String,
    wish: String,
    config: AcmeConfig,
    csr: Vec<u8>,
    own: Credentials,
    door: Arc<Door>,
    kept: Kept,
    tries: Mutex<Tries>,
    status: Arc<WebStatus>,
    clock: Clock,
}

impl Acme {
    /// As configured; `own` is what https shows without it. Takes up the certificate that is kept.
    ///
    /// # Errors
    /// When the configuration makes no sense, or what is kept cannot be read.
    pub fn open(
        config: &Config,
        own: Credentials,
        status: Arc<WebStatus>,
        clock: Clock,
    ) -> Result<Arc<Self>, AcmeError> {
        let acme = config.acme.clone();
        if config.web_certificate.is_some() {
            return Err(AcmeError::TwoSources);
        }
        if !acme.directory.starts_with("https://") {
            return Err(AcmeError::Directory(acme.directory));
        }
        if !acme.agree_tos {
            return Err(AcmeError::Terms(acme.directory));
        }
        if let Some(path) = &acme.ca {
            http::roots(path)?;
        }
        let name = name_in(&config.public_url)
            .ok_or_else(|| AcmeError::Name(config.public_url.clone()))?;
        let key = PrivateKey::from_der(own.key.secret_der())?;
        let kept = Kept::open(&config.data_dir)?;
        let this = Arc::new(Self {
            csr: public::request(&key, std::slice::from_ref(&name))?,
            wish: acme.wish(&name),
            name,
            config: acme,
            door: Door::new(tls::certified(own.clone())?),
            own,
            tries: Mutex::new(kept.tries()),
            kept,
            status,
            clock,
        });
        this.begin();
        Ok(this)
    }

    /// What https asks for its certificate.
    #[must_use]
    pub fn door(&self) -> Arc<Door> {
        Arc::clone(&self.door)
    }

    /// Takes up what is kept, and says where things stand.
    fn begin(&self) {
        let tries = self.tries().clone();
        if let Some(certificate) = self.kept.certificate() {
            match self.show(&certificate) {
                Ok(()) => {
                    tracing::info!(name = self.name, "https shows the certificate had by ACME");
                }
                // As good as none: another is asked for.
                Err(reason) => tracing::warn!(reason, "the certificate had by ACME cannot be used"),
            }
        }
        if self.status.source() != Source::Acme {
            tracing::info!(
                code = codes::ACME_WAITING,
                name = self.name,
                directory = self.config.directory,
                "https shows a certificate of the installation's own CA until the ACME CA has issued one"
            );
        }
        let wait_s = tries.wait_s(&self.wish, self.clock.now_s());
        let trouble = match tries.trouble {
            Some(trouble) if tries.wish == self.wish => Some(trouble),
            _ if self.status.source() == Source::Acme => None,
            _ => Some(Trouble {
                code: codes::ACME_WAITING.to_owned(),
                message: format!("{} has not issued a certificate yet", self.config.directory),
                at_s: self.clock.now_s(),
                next_s: 0,
            }),
        };
        self.trouble(trouble, wait_s);
    }

    /// Asks when it is time, until shutdown.
    pub async fn keep(self: Arc<Self>, shutdown: Shutdown) {
        loop {
            let wait = self.wait();
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(wait.min(LOOK_AGAIN_AFTER)) => {}
            }
            if !self.wait().is_zero() {
                continue;
            }
            let before = self.tries().clone();
            tokio::select! {
                () = shutdown.cancelled() => {
                    // Broken off by us: no failure. That it was begun stays counted.
                    let mut tries = self.tries();
                    tries.broken_off(before);
                    let _ = self.kept.save_tries(&tries);
                    return;
                }
                () = self.try_once() => {}
            }
        }
    }

    /// How long until the next try; nothing when it is time.
    fn wait(&self) -> Duration {
        let now_s = self.clock.now_s();
        let due_s = match self.kept.certificate() {
            Some(kept) if kept.wish == self.wish => self.renew_at_s(&kept).unwrap_or(now_s),
            _ => now_s,
        };
        let wait_s = (due_s - now_s).max(self.tries().wait_s(&self.wish, now_s));
        Duration::from_secs(u64::try_from(wait_s).unwrap_or(0))
    }

    fn renew_at_s(&self, kept: &Certificate) -> Option<i64> {
        let leaf = chain_of(&kept.chain).ok()?.into_iter().next()?;
        let validity = public::validity(&leaf).ok()?;
        Some(schedule::renew_at_s(validity, &leaf))
    }

    async fn try_once(&self) {
        let now_s = self.clock.now_s();
        let counted = {
            let mut tries = self.tries();
            tries.begin(&self.wish, now_s, jitter());
            self.kept.save_tries(&tries)
        };
        if let Err(error) = counted {
            self.tries().failed(now_s, false, None, jitter());
            self.failed(&not_kept(&error));
            return;
        }
        let asking = Asking {
            name: &self.name,
            config: &self.config,
            csr: &self.csr,
            door: &self.door,
            kept: &self.kept,
        };
        let answer = tokio::time::timeout(TRY_WITHIN, Box::pin(ask::ask(&asking))).await;
        let outcome = answer
            .unwrap_or_else(|_| Err(Failed::slow(TRY_WITHIN)))
            .and_then(|chain| self.take_up(chain));
        let now_s = self.clock.now_s();
        match outcome {
            Ok(()) => self.tries().succeeded(),
            Err(failed) => {
                self.tries()
                    .failed(now_s, failed.ordered, failed.retry_after_s, jitter());
                self.failed(&failed);
            }
        }
        if let Err(error) = self.kept.save_tries(&self.tries()) {
            tracing::error!(code = codes::ACME_NOT_KEPT, %error, "what became of the try was not kept");
        }
    }

    /// A chain was issued: shown at once, kept if the disk takes it.
    fn take_up(&self, chain: String) -> Result<(), Failed> {
        let certificate = Certificate {
            wish: self.wish.clone(),
            name: self.name.clone(),
            chain,
        };
        self.show(&certificate).map_err(Failed::refused)?;
        let saved = self.kept.save_certificate(&certificate);
        self.status.set_trouble(None);
        tracing::info!(
            name = self.name,
            until = self.status.shown().not_after.map(tracing::field::display),
            "https has a new certificate, had by ACME"
        );
        saved.map_err(|error| not_kept(&error))
    }

    fn show(&self, certificate: &Certificate) -> Result<(), String> {
        let chain = chain_of(&certificate.chain)?;
        let leaf = chain.first().ok_or("the chain is empty")?;
        let validity = public::validity(leaf).map_err(|error| error.to_string())?;
        let shown = tls::certified(Credentials {
            chain,
            key: self.own.key.clone_key(),
        })
        .map_err(|error| format!("it is not for the key of https: {error}"))?;
        self.door.show(&certificate.name, shown);
        self.status.now_shows(
            Source::Acme,
            vec![certificate.name.clone()],
            Some(validity),
            // Whoever was told of a CA of his own has to tell his hosts of the key.
            self.config.ca.is_none(),
        );
        Ok(())
    }

    fn failed(&self, failed: &Failed) {
        let now_s = self.clock.now_s();
        let wait_s = self.tries().wait_s(&self.wish, now_s);
        let trouble = Trouble {
            code: failed.code.to_owned(),
            message: failed.message.clone(),
            at_s: now_s,
            next_s: 0,
        };
        self.tries().trouble = Some(trouble.clone());
        self.trouble(Some(trouble), wait_s);
        let again = format!("{wait_s} s");
        // A CA that is away for a moment is nothing to be woken for.
        let is_passing = !failed.ordered && self.tries().unreached <= UNREACHED_QUIETLY;
        if self.status.ends_soon(now_s) && !is_passing {
            tracing::error!(
                code = failed.code,
                name = self.name,
                error = failed.message,
                again,
                "no https certificate by ACME"
            );
        } else {
            tracing::warn!(
                code = failed.code,
                name = self.name,
                error = failed.message,
                again,
                "no newer https certificate by ACME; the present one stays"
            );
        }
    }

    fn trouble(&self, trouble: Option<Trouble>, wait_s: i64) {
        let next_s = self.clock.now_s().saturating_add(wait_s);
        self.status
            .set_trouble(trouble.map(|trouble| Trouble { next_s, ..trouble }));
    }

    fn tries(&self) -> std::sync::MutexGuard<'_, Tries> {
        self.tries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn not_kept(error: &std::io::Error) -> Failed {
    Failed {
        code: codes::ACME_NOT_KEPT,
        message: format!("the data directory cannot be written: {error}"),
        ordered: true,
        retry_after_s: None,
    }
}

/// Between 0 and 1.
fn jitter() -> f64 {
    f64::from(u16::from_le_bytes(random::bytes::<2>())) / f64::from(u16::MAX)
}

fn chain_of(pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .take(CHAIN_MAX)
        .collect::<Result<_, _>>()
        .map_err(|error| error.to_string())
}

/// The DNS name in an https address, if a CA could certify it.
fn name_in(url: &str) -> Option<String> {
    let rest = url.strip_prefix("https://")?;
    let host = rest
        .split(['/', ':', '?', '#'])
        .next()?
        .to_ascii_lowercase();
    let host = host.trim_end_matches('.').to_owned();
    match ServerName::try_from(host.as_str()) {
        Ok(ServerName::DnsName(_)) if host != "localhost" => Some(host),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::name_in;

    #[test]
    fn only_a_dns_name_can_be_certified() {
        let name = |url: &str| name_in(url);
        assert_eq!(
            name("https://Fleet.Example.com:8443/x").as_deref(),
            Some("fleet.example.com")
        );
        assert_eq!(
            name("https://fleet.example.com.").as_deref(),
            Some("fleet.example.com")
        );
        for no in [
            "https://192.0.2.1",
            "https://[2001:db8::1]:443",
            "https://localhost:7400",
            "https://über.example",
            "https://",
            "fleet.example.com",
        ] {
            assert_eq!(name(no), None, "{no}");
        }
    }
}
