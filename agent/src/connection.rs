//! Keeping a link: which address, when, through which door.
//!
//! States: *dialling* (an address of the list in turn, with backoff), *renewing* (the certificate has
//! expired: only the renew door opens), *connected* (`session`). Loss of a link changes nothing on the
//! host: containers and commands go on.

use std::sync::Arc;
use std::time::Duration;

use fairlead_daemon::clock::{Clock, ServerTime};
use fairlead_daemon::shutdown::Shutdown;
use fairlead_link::backoff::{Backoff, Last, random_share};
use fairlead_link::dial::{DialError, Dialler};
use fairlead_link::proxy::Proxy;
use fairlead_link::socket::{Socket, SocketError};
use fairlead_protocol::version::{self, paths};
use fairlead_protocol::{
    Hello, HostFacts, InstanceId, LinkDown, LinkUp, RenewReply, RenewRequest, RunId, Welcome,
    codes, limits, link_down, link_up,
};
use tokio::sync::{Mutex, mpsc, watch};

use crate::app::RenewNow;
use crate::clone;
use crate::executor::Request;
use crate::handoff::client::LinkState;
use crate::handoff::part::Standing;
use crate::handoff::role::Role;
use crate::handoff::words::ToSupervisor;
use crate::identity::{Identity, IdentityFiles};
use crate::link_report::LinkReport;
use crate::observe::Watch;
use crate::owner_log::OwnerLog;
use crate::session;

/// No server's wish keeps a host away for longer: one that was taken over must not do so for weeks.
const AWAY_MAX: Duration = Duration::from_secs(5 * 60);
/// Addresses of a region that are kept.
const ADDRESSES_MAX: usize = 16;
/// A server that speaks no version of ours is dialled again after this: it may have been upgraded.
const MISMATCH_AGAIN_AFTER: Duration = Duration::from_secs(60);
/// How long a session may take to say goodbye.
const GOODBYE_WITHIN: Duration = Duration::from_millis(1500);

/// What the connection task works with.
pub struct Connection {
    /// Where the supervisor keeps the epoch.
    pub state_dir: std::path::PathBuf,
    /// Identity on disk.
    pub files: IdentityFiles,
    /// Identity in use.
    pub identity: Mutex<Identity>,
    /// Addresses from the command line, tried after those that the region told.
    pub addresses: Vec<String>,
    /// This start.
    pub instance: InstanceId,
    /// The supervisor's start.
    pub run: RunId,
    /// Whether it owns the host, and in which epoch.
    pub stands: watch::Receiver<Standing>,
    /// To the supervisor.
    pub say: mpsc::Sender<ToSupervisor>,
    /// What the link knows of its server.
    pub link_state: LinkState,
    /// Server time.
    pub time: Arc<ServerTime>,
    /// The machine's clock.
    pub clock: Clock,
    /// To the executor.
    pub executor: mpsc::Sender<Request>,
    /// To the observer.
    pub observer: mpsc::Sender<Watch>,
    /// For the machine's owner.
    pub owner_log: OwnerLog,
    /// What everything is dialled through, where there is one.
    pub proxy: Option<Proxy>,
    /// What the machine is, asked anew for each hello.
    pub facts: crate::app::Facts,
}

/// Why a connection (or the attempt) ended.
#[derive(Debug, thiserror::Error)]
pub enum LinkEnd {
    /// Nobody was reached.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// It broke.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The server said no.
    #[error("refused: {message} ({code})")]
    Refused {
        /// Stable.
        code: String,
        /// In words.
        message: String,
        /// When to come back; zero: as we like.
        after: Duration,
    },
    /// The server asks to come back later.
    #[error("the server asks to come back: {reason}")]
    Reconnect {
        /// When.
        after: Duration,
        /// Why.
        reason: String,
    },
    /// The identity cannot be used or renewed.
    #[error("{0}")]
    Identity(String),
    /// We are going.
    #[error("shutting down")]
    Shutdown,
}

impl LinkEnd {
    /// Whether this host's identity has ended.
    fn is_revoked(&self) -> bool {
        matches!(self, Self::Refused { code, .. } if code == codes::REVOKED)
    }

    /// What that was, for the next wait. One who is refused later, on a link, is not wanted either.
    fn last(&self, was_linked: bool) -> Last {
        match self {
            Self::Dial(error) if error.nobody_there() => Last::NobodyThere,
            Self::Socket(_) | Self::Reconnect { .. } if was_linked => Last::Taken,
            _ => Last::NotTaken,
        }
    }

    /// The stable code of that; empty where there is none.
    fn code(&self) -> &str {
        match self {
            Self::Dial(error) => error.code().unwrap_or_default(),
            Self::Refused { code, .. } => code,
            _ => "",
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { after, .. } | Self::Reconnect { after, .. } if !after.is_zero() => {
                Some(AWAY_MAX.min(*after))
            }
            _ => None,
        }
    }
}

impl Connection {
    /// Keeps a link until shutdown.
    pub async fn run(self, mut renewals: mpsc::Receiver<RenewNow>, shutdown: Shutdown) {
        let mut backoff = Backoff::default();
        let mut attempt = 0usize;
        while !shutdown.is_cancelled() {
            let addresses = self.all_addresses().await;
            let Some(address) = addresses.get(attempt % addresses.len().max(1)).cloned() else {
                tracing::error!(
                    "no address of an access server is known: pass --address HOST:PORT or \
                     FAIRLEAD_ADDRESS"
                );
                // The supervisor starts another instance, which may be told one.
                shutdown.cancel();
                return;
            };
            let started = self.clock.boot_us();
            let mut was_linked = false;
            // A session says goodbye by itself; dialling is simply dropped.
            let end = tokio::select! {
                end = self.connect(&address, &mut renewals, &mut was_linked, &shutdown) => end,
                () = async {
                    shutdown.cancelled().await;
                    tokio::time::sleep(GOODBYE_WITHIN).await;
                } => return,
            };
            if matches!(end, LinkEnd::Shutdown) {
                return;
            }
            if end.is_revoked() {
                // When the executor is gone, so are we.
                let _ = self.executor.send(Request::Revoked).await;
            }
            // A link that lived a while was good: the next wait is short again.
            if self.clock.boot_us() - started > 10_000_000 {
                backoff.reset();
            }
            attempt += 1;
            let wait = backoff.next_wait(end.last(was_linked), random_share(), end.retry_after());
            tracing::warn!(address, error = %end, retry_in_ms = wait.as_millis(), "no link");
            if self.role().owns() {
                LinkReport::down(&address, end.to_string(), end.code(), self.clock.now_us())
                    .keep(&self.state_dir);
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn all_addresses(&self) -> Vec<String> {
        let mut addresses = self.identity.lock().await.enrolment.addresses.clone();
        for address in &self.addresses {
            if !addresses.contains(address) {
                addresses.push(address.clone());
            }
        }
        addresses
    }

    async fn connect(
        &self,
        address: &str,
        renewals: &mut mpsc::Receiver<RenewNow>,
        was_linked: &mut bool,
        shutdown: &Shutdown,
    ) -> LinkEnd {
        if !self.role().owns() {
            self.look_for_renewal().await;
        }
        let identity = self.identity.lock().await.clone();
        if identity.not_after_s() <= self.clock.now_s()
            && let Err(end) = self.renew_at_door(address, &identity, shutdown).await
        {
            return end;
        }
        // What it says in its hello; what changes from here on the session says.
        let standing = *self.stands.borrow();
        match self.open_link(address, standing.role, shutdown).await {
            Ok((socket, welcome, facts)) => {
                *was_linked = true;
                let up = session::Up {
                    address,
                    welcome,
                    standing,
                    facts,
                };
                let end = session::run(self, up, socket, renewals, shutdown).await;
                self.link_state.down();
                end
            }
            Err(end) => end,
        }
    }

    /// Who this instance is now.
    pub fn role(&self) -> Role {
        self.stands.borrow().role
    }

    /// The instance that owns the host renews the certificate for all of them.
    pub async fn look_for_renewal(&self) {
        match self.files.load() {
            Ok(Some(kept)) => *self.identity.lock().await = kept,
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "the identity could not be read anew"),
        }
    }

    /// Dials access servers as this host.
    ///
    /// # Errors
    /// When key and certificate do not fit together.
    pub fn dialler(&self, identity: &Identity) -> Result<Dialler, LinkEnd> {
        identity
            .dialler(self.proxy.clone())
            .map_err(|error| LinkEnd::Identity(error.to_string()))
    }

    async fn open_link(
        &self,
        address: &str,
        role: Role,
        shutdown: &Shutdown,
    ) -> Result<(Socket<LinkUp, LinkDown>, Welcome, HostFacts), LinkEnd> {
        let identity = self.identity.lock().await.clone();
        let dialler = self.dialler(&identity)?;
        let (mut socket, _): (Socket<LinkUp, LinkDown>, _) = dialler
            .messages(address, paths::LINK, limits::LINK_MESSAGE_BYTES_MAX)
            .await?;
        let facts = self.facts.gather().await;
        let hello = Hello {
            version_min: version::OLDEST,
            version_max: version::NEWEST,
            software: format!("fairlead-agent {}", fairlead_protocol::software::version()),
            features: version::AGENT_FEATURES
                .iter()
                .map(|&f| f.to_owned())
                .collect(),
            instance: self.instance.to_wire(),
            run: self.run.to_wire(),
            epoch: role.epoch(),
            beside: !role.owns(),
            certificate_counter: identity.enrolment.certificate_counter,
            facts: Some(facts.clone()),
            ..Hello::default()
        };
        socket
            .send(&LinkUp {
                kind: Some(link_up::Kind::Hello(hello)),
            })
            .await?;
        let answer = socket.hear_message(limits::HELLO_TIMEOUT).await?;
        match answer.kind {
            Some(link_down::Kind::Welcome(welcome)) => match version::not_spoken(welcome.version) {
                Some(message) => Err(LinkEnd::Refused {
                    code: codes::VERSION_MISMATCH.to_owned(),
                    message,
                    after: MISMATCH_AGAIN_AFTER,
                }),
                None => Ok((socket, welcome, facts)),
            },
            Some(link_down::Kind::Refused(refused)) if refused.may_ask_as_clone => {
                tracing::warn!(code = refused.code, reason = refused.message, "no link");
                Err(clone::ask(self, socket, shutdown).await)
            }
            other => Err(refused_or_odd(other)),
        }
    }

    /// The certificate has expired: the renew door takes it for 90 days.
    async fn renew_at_door(
        &self,
        address: &str,
        identity: &Identity,
        shutdown: &Shutdown,
    ) -> Result<(), LinkEnd> {
        let dialler = self.dialler(identity)?;
        let (mut socket, _): (Socket<LinkUp, LinkDown>, _) = dialler
            .messages(address, paths::RENEW, limits::LINK_MESSAGE_BYTES_MAX)
            .await?;
        let request = self.renew_request().await?;
        socket
            .send(&LinkUp {
                kind: Some(link_up::Kind::Renew(request)),
            })
            .await?;
        let answer = socket.hear_message(limits::HELLO_TIMEOUT).await?;
        match answer.kind {
            Some(link_down::Kind::Renewed(reply)) => self
                .take_renewal(reply)
                .await
                .map(|_| ())
                .map_err(LinkEnd::Identity),
            Some(link_down::Kind::Refused(refused)) if refused.may_ask_as_clone => {
                tracing::warn!(code = refused.code, reason = refused.message, "no renewal");
                Err(clone::ask(self, socket, shutdown).await)
            }
            other => Err(refused_or_odd(other)),
        }
    }

    /// The request for the next certificate. Its key is on disk before this returns.
    ///
    /// # Errors
    /// When the key cannot be made or kept.
    pub async fn renew_request(&self) -> Result<RenewRequest, LinkEnd> {
        let key = self
            .files
            .next_key()
            .map_err(|error| LinkEnd::Identity(error.to_string()))?;
        let csr = key
            .request()
            .map_err(|error| LinkEnd::Identity(error.to_string()))?;
        let counter = self.identity.lock().await.enrolment.certificate_counter;
        Ok(RenewRequest {
            csr_der: csr.into(),
            counter,
        })
    }

    /// Takes the new certificate into use; returns its end, seconds since 1970.
    ///
    /// # Errors
    /// When it is not ours or cannot be kept; the old one stays then.
    pub async fn take_renewal(&self, reply: RenewReply) -> Result<i64, String> {
        let mut identity = self.identity.lock().await;
        let key = self.files.next_key().map_err(|error| error.to_string())?;
        let renewed = identity.renewed(reply.certificates, reply.counter, &key)?;
        self.files
            .save(&renewed)
            .map_err(|error| error.to_string())?;
        *identity = renewed;
        let not_after_s = identity.not_after_s();
        tracing::info!(not_after_s, counter = reply.counter, "certificate renewed");
        Ok(not_after_s)
    }

    /// The region has seen a higher epoch of this host than ours: our disk went back. The supervisor's
    /// record is raised and this instance ends, so that the next one gets an epoch beyond it.
    pub fn go_on_above(&self, seen: u64, shutdown: &Shutdown) -> LinkEnd {
        match crate::supervise::raise_epoch(&self.state_dir, seen) {
            Ok(_) => {
                tracing::warn!(
                    seen,
                    epoch = self.role().epoch(),
                    "the epoch went back; starting again above it"
                );
                shutdown.cancel();
                LinkEnd::Shutdown
            }
            Err(error) => LinkEnd::Identity(error.to_string()),
        }
    }

    /// Keeps what a welcome says about the region, if it is new.
    pub async fn learn_region(&self, addresses: &[String]) {
        // Each that leads nowhere costs a wait.
        let addresses = &addresses[..addresses.len().min(ADDRESSES_MAX)];
        let mut identity = self.identity.lock().await;
        if addresses.is_empty() || identity.enrolment.addresses == addresses {
            return;
        }
        let mut next = identity.clone();
        next.enrolment.addresses = addresses.to_vec();
        match self.files.save(&next) {
            Ok(()) => *identity = next,
            Err(error) => tracing::warn!(%error, "the region's new addresses could not be kept"),
        }
    }
}

pub(crate) fn refused_or_odd(answer: Option<link_down::Kind>) -> LinkEnd {
    match answer {
        Some(link_down::Kind::Refused(refused)) => LinkEnd::Refused {
            code: refused.code,
            message: refused.message,
            after: Duration::from_millis(u64::from(refused.retry_after_ms)),
        },
        _ => LinkEnd::Refused {
            code: codes::PROTOCOL_VIOLATION.to_owned(),
            message: "the server answered with something else".to_owned(),
            after: Duration::ZERO,
        },
    }
}
