//! Where the controller is reached: https for people, a port for access servers, and (where the machine's
//! access server shares one port with it) a socket through which it passes connections on.

use fairlead_daemon::arrivals::{self, Arrivals, ListenError, listen};
use fairlead_daemon::passing;
use fairlead_daemon::shutdown::Shutdown;
use tokio::net::{TcpStream, UnixListener};
use tokio::sync::mpsc;

use crate::config::Config;

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
