//! The access server's listener, doors, registry, router and link tasks, with this program where the uplink
//! is: it hands commands to the router and hears what the links tell the centre. So what is measured is the
//! link itself: a command's delivery, and the agent's progress, without ledger and controller.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use fairlead_access_server::region::{Region, RegionParts};
use fairlead_access_server::{listener, router};
use fairlead_daemon::arrivals::{Arrivals, listen};
use fairlead_daemon::clock::Clock;
use fairlead_daemon::shutdown::Shutdown;
use fairlead_identity::tls;
use fairlead_link::accept::Acceptor;
use fairlead_protocol::{
    Command, Deliver, HostId, Message, Ping, SignedCommand, UplinkUp, command, limits, uplink_up,
};
use fairlead_store::Store;
use tokio::sync::mpsc;

use crate::crossing::{COMMAND_BYTES, Links, follow};
use crate::installation::Installation;
use crate::worker::{answer, orders};

/// Where, and as whom.
#[derive(Debug, Clone, Args)]
pub struct Server {
    /// The access server's data directory.
    #[arg(long)]
    pub installation: PathBuf,
    /// Where agents dial.
    #[arg(long)]
    pub listen: std::net::SocketAddr,
}

/// The server's TLS, as the product sets it up.
///
/// # Panics
/// When certificates and keys do not fit.
#[must_use]
pub fn acceptor(installation: &Installation) -> Acceptor {
    let tls = tls::server(
        installation.root.clone(),
        installation.server.clone(),
        limits::RENEW_GRACE,
    )
    .expect("certificates");
    let root = installation.root.clone();
    Acceptor::new(Arc::new(tls), root, limits::RENEW_GRACE)
}

struct ProductLinks {
    region: Arc<Region>,
    uplink: mpsc::Receiver<UplinkUp>,
    hosts: Vec<HostId>,
}

impl Links for ProductLinks {
    fn count(&self) -> usize {
        self.hosts.len()
    }

    fn send(&mut self, link: usize, number: u64) {
        let host = self.hosts[link];
        let mut id = [0; 16];
        id[..8].copy_from_slice(&number.to_le_bytes());
        let mut command = Command {
            id: bytes::Bytes::copy_from_slice(&id),
            tenant: fairlead_store::DEFAULT_TENANT.to_owned(),
            host: host.to_wire(),
            kind: Some(command::Kind::Ping(Ping {})),
            ..Command::default()
        };
        // As long as the floor's message; the issuer's name is free text.
        let missing = COMMAND_BYTES.saturating_sub(command.encoded_len() + 2);
        command.issuer = "x".repeat(missing);
        let deliver = Deliver {
            command: Some(SignedCommand {
                command: command.encode_to_vec().into(),
                key_id: bytes::Bytes::from_static(&[0; 16]),
                signature: bytes::Bytes::from_static(&[0; 64]),
            }),
            ..Deliver::default()
        };
        assert!(
            router::deliver(&self.region.registry, host, deliver),
            "a link's queue is full, or the link has gone"
        );
    }

    async fn answered(&mut self) -> u64 {
        loop {
            let said = self.uplink.recv().await.expect("the region lives");
            if let Some(uplink_up::Kind::Progress(said)) = said.kind
                && let Some(id) = said
                    .progress
                    .and_then(|progress| progress.command.first_chunk::<8>().copied())
            {
                return u64::from_le_bytes(id);
            }
        }
    }
}

/// Serves links until the parent goes.
///
/// # Panics
/// When it cannot serve.
pub async fn run(server: Server) {
    let installation = Installation::load(&server.installation);
    let acceptor = acceptor(&installation);
    let parts = RegionParts {
        name: installation.region,
        server: installation.role,
        addresses: vec![server.listen.to_string()],
        root: installation.root,
        agents_ca: installation.agents_ca,
        ledger: Store::open(&server.installation.join("ledger.db")).expect("a ledger"),
        desk: None,
        clock: Clock::system(),
        ping_interval_ms: 15_000,
    };
    let (region, uplink) = Region::new(parts).await.expect("a region");
    let region = Arc::new(region);
    region.set_attached(true);
    let agents = Arrivals::from(listen(server.listen).await.expect("a port"));
    // Ends with the process.
    tokio::spawn(listener::run(
        agents,
        acceptor,
        Arc::clone(&region),
        None,
        Shutdown::new(),
    ));
    let mut links = ProductLinks {
        region,
        uplink,
        hosts: Vec::new(),
    };
    let mut orders = orders();
    loop {
        tokio::select! {
            order = orders.recv() => {
                let Some(order) = order else { return };
                if links.hosts.len() != links.region.registry.len() {
                    let connected: HashMap<_, _> = links.region.registry.links().into_iter().collect();
                    links.hosts = connected.into_keys().collect();
                }
                answer(&follow(&mut links, &order).await);
            }
            // What the hosts say while nobody measures.
            _ = links.uplink.recv() => {}
        }
    }
}
