//! The certificate that https shows, from one of three sources: the installation's own CA, files that
//! somebody else renews, or a public CA by ACME.

use std::sync::Arc;
use std::time::Duration;

use fairlead_daemon::clock::Clock;
use fairlead_daemon::shutdown::Shutdown;
use fairlead_identity::public;
use fairlead_identity::tls;

use crate::acme::Acme;
use crate::app::AppError;
use crate::authority::CertificateAuthority;
use crate::config::Config;
use crate::web_certificate::WebCertificate;
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
