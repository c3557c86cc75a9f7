//! Where the controller is reached: https for people, a port for access servers, and (where the machine's
//! access server shares one port with it) a socket through which it passes connections on.

use std::sync::Arc;
use std::time::Duration;

use fairlead_daemon::arrivals::{self, Arrivals, ListenError, listen};
use fairlead_daemon::passing;
use fairlead_daemon::shutdown::Shutdown;
use fairlead_identity::tls;
use tokio::net::{TcpStream, UnixListener};
use tokio::sync::mpsc;

use crate::app::AppError;
use crate::authority::CertificateAuthority;
use crate::config::Config;
use crate::web_certificate::WebCertificate;

/// How often the files of the https certificate are looked at.
const CERTIFICATE_LOOKED_AT_EVERY: Duration = Duration::from_secs(30);

/// The ports, listening.
pub struct Doors {
    /// For people.
    pub web: Arrivals,
    /// For access servers.
    pub uplinks: Arrivals,
    front: Option<Front>,
}

/// What another process passes on to us.
struct Front {
    listener: UnixListener,
    web: mpsc::Sender<TcpStream>,
    uplinks: mpsc::Sender<TcpStream>,
}

impl Doors {
    /// Listens.
    ///
    /// # Errors
    /// When a port or the socket cannot be had.
    pub async fn open(config: &Config) -> Result<Self, ListenError> {
        let web = Arrivals::from(listen(config.listen).await?);
        let uplinks = Arrivals::from(listen(config.uplink_listen).await?);
        let Some(path) = &config.front_socket else {
            return Ok(Self {
                web,
                uplinks,
                front: None,
            });
        };
        let (to_web, passed_to_web) = mpsc::channel(arrivals::PASSED_WAITING_MAX);
        let (to_uplinks, passed_to_uplinks) = mpsc::channel(arrivals::PASSED_WAITING_MAX);
        Ok(Self {
            web: web.and(Some(passed_to_web)),
            uplinks: uplinks.and(Some(passed_to_uplinks)),
            front: Some(Front {
                listener: passing::listen(path).map_err(|reason| ListenError {
                    address: path.display().to_string(),
                    reason,
                })?,
                web: to_web,
                uplinks: to_uplinks,
            }),
        })
    }

    /// The ports, and the work of taking what is passed on, until shutdown.
    pub fn split(self, shutdown: Shutdown) -> (Arrivals, Arrivals, impl Future<Output = ()>) {
        let taking = async move {
            if let Some(front) = self.front {
                passing::receive(front.listener, front.web, front.uplinks, shutdown).await;
            }
        };
        (self.web, self.uplinks, taking)
    }
}

/// The certificate that https shows: one of our own CA, or one in files that somebody else renews.
pub struct WebTls {
    /// For the server.
    pub config: Arc<rustls::ServerConfig>,
    files: Option<Arc<WebCertificate>>,
}

impl WebTls {
    /// As configured.
    ///
    /// # Errors
    /// When the files cannot be used.
    pub fn new(config: &Config, authority: &CertificateAuthority) -> Result<Self, AppError> {
        let (Some(chain), Some(key)) = (&config.web_certificate, &config.web_key) else {
            return Ok(Self {
                config: Arc::new(tls::https(authority.web.clone())?),
                files: None,
            });
        };
        let files = WebCertificate::open(chain, key)?;
        Ok(Self {
            config: Arc::new(tls::https_with(Arc::<WebCertificate>::clone(&files))?),
            files: Some(files),
        })
    }

    /// Takes the files up anew when they change, until shutdown.
    pub async fn keep(files: Option<Arc<WebCertificate>>, shutdown: Shutdown) {
        let Some(files) = files else {
            return;
        };
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(CERTIFICATE_LOOKED_AT_EVERY) => {}
            }
            match files.refresh() {
                Ok(false) => {}
                Ok(true) => tracing::info!("https has a new certificate"),
                Err(error) => tracing::error!(%error, "the new https certificate cannot be used"),
            }
        }
    }

    /// The files, for [`Self::keep`].
    #[must_use]
    pub fn files(&self) -> Option<Arc<WebCertificate>> {
        self.files.clone()
    }
}
