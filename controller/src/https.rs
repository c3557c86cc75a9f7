//! The certificate that https shows, from one of three sources: the installation's own CA, files that
//! somebody else renews, or a public CA by ACME.

use std::sync::Arc;
use std::time::Duration;

use fairlead_api::server::web_certificate::WebCertificate;
use fairlead_daemon::clock::Clock;
use fairlead_daemon::shutdown::Shutdown;
use fairlead_identity::public;
use fairlead_identity::tls;

use crate::acme::Acme;
use crate::app::AppError;
use crate::authority::CertificateAuthority;
use crate::config::Config;
use crate::web_status::{Source, WebStatus};

/// How often the files of the https certificate are looked at.
const LOOKED_AT_EVERY: Duration = Duration::from_secs(30);

/// The TLS of https, and what it shows.
pub struct Https {
    /// For the server.
    pub config: Arc<rustls::ServerConfig>,
    /// What it shows.
    pub status: Arc<WebStatus>,
    keeper: Keeper,
}

enum Keeper {
    Nobody,
    Files(Arc<WebCertificate>),
    Acme(Arc<Acme>),
}

impl Https {
    /// As configured.
    ///
    /// # Errors
    /// When the files cannot be used, or ACME is configured in a way that makes no sense.
    pub fn new(
        config: &Config,
        authority: &CertificateAuthority,
        clock: Clock,
    ) -> Result<Self, AppError> {
        let status = Arc::new(WebStatus::new(
            authority.web_pin(),
            config.web_names.clone(),
            authority.web.chain.first(),
        ));
        let (tls, keeper) = if config.acme.wanted {
            let acme = Acme::open(config, authority.web.clone(), Arc::clone(&status), clock)?;
            let tls = tls::https_with_challenges(acme.door())?;
            (tls, Keeper::Acme(acme))
        } else if let (Some(chain), Some(key)) = (&config.web_certificate, &config.web_key) {
            let files = WebCertificate::open(chain, key)?;
            show_files(&files, &status);
            let tls = tls::https_with(Arc::<WebCertificate>::clone(&files))?;
            (tls, Keeper::Files(files))
        } else {
            (tls::https(authority.web.clone())?, Keeper::Nobody)
        };
        Ok(Self {
            config: Arc::new(tls),
            status,
            keeper,
        })
    }

    /// Keeps the certificate good, until shutdown.
    pub async fn keep(self, shutdown: Shutdown) {
        match self.keeper {
            Keeper::Nobody => {}
            Keeper::Files(files) => keep_files(&files, &self.status, shutdown).await,
            Keeper::Acme(acme) => acme.keep(shutdown).await,
        }
    }
}

fn show_files(files: &WebCertificate, status: &WebStatus) {
    let validity = public::validity(&files.leaf()).ok();
    status.now_shows(Source::Files, Vec::new(), validity, true);
}

/// Takes the files up anew when they change.
async fn keep_files(files: &WebCertificate, status: &WebStatus, shutdown: Shutdown) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(LOOKED_AT_EVERY) => {}
        }
        match files.refresh() {
            Ok(false) => {}
            Ok(true) => {
                show_files(files, status);
                tracing::info!("https has a new certificate");
            }
            Err(error) => tracing::error!(%error, "the new https certificate cannot be used"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::SystemTime;

    use fairlead_api::server::web_certificate::WebCertificateError;

    use super::*;
    use crate::authority::CertificateAuthority;

    /// A chain and its key, as an ACME client would leave them.
    fn files(dir: &Path, name: &str) -> [String; 2] {
        let ca = CertificateAuthority::open(
            &dir.join(name),
            "fairlead.internal",
            &["fleet.example.com".to_owned()],
            Clock::system(),
        )
        .unwrap();
        let pem = |kind: &str, der: &[u8]| {
            use base64::Engine;
            let text = base64::engine::general_purpose::STANDARD.encode(der);
            format!("-----BEGIN {kind}-----\n{text}\n-----END {kind}-----\n")
        };
        let chain = ca.web.chain.iter().map(|one| pem("CERTIFICATE", one));
        [chain.collect(), pem("PRIVATE KEY", ca.web.key.secret_der())]
    }

    #[test]
    fn changed_files_are_taken_up_and_damaged_ones_leave_what_is_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (files(dir.path(), "a"), files(dir.path(), "b"));
        let paths = [dir.path().join("chain.pem"), dir.path().join("key.pem")];
        let put = |content: [&str; 2], age_s: u64| {
            for (path, text) in paths.iter().zip(content) {
                std::fs::write(path, text).unwrap();
                let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(age_s);
                let file = std::fs::File::options().write(true).open(path).unwrap();
                file.set_modified(at).unwrap();
            }
        };
        put([&first[0], &first[1]], 1);
        let used = WebCertificate::open(&paths[0], &paths[1]).unwrap();
        assert!(!used.refresh().unwrap());
        let before = used.leaf();
        put([&second[0], &first[1]], 2);
        let error = used.refresh().unwrap_err();
        assert!(
            matches!(error, WebCertificateError::Mismatch { .. }),
            "{error}"
        );
        assert_eq!(used.leaf(), before);
        assert!(!used.refresh().unwrap(), "said once");
        put([&second[0], &second[1]], 3);
        assert!(used.refresh().unwrap());
        assert_ne!(used.leaf(), before);
        put(["nothing", &second[1]], 4);
        assert!(
            used.refresh()
                .unwrap_err()
                .to_string()
                .contains("chain.pem")
        );
    }
}
