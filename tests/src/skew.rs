//! A double that stands between two programs, with the certificates of both, and speaks for one of them as a next
//! version would: unknown fields in every message, unknown kinds in between, unknown features and versions in the
//! greeting. It can write down what both said as well. May use: the data directories of the programs.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Buf, BufMut};
use fairlead_identity::authority::{Authority, LeafUse, PrivateKey};
use fairlead_identity::chain::Usage;
use fairlead_identity::tls::{self, Credentials, Expected, Trust};
use fairlead_identity::{Role, Root};
use fairlead_link::accept::{Accepted, Acceptor, Door};
use fairlead_link::dial::Dialler;
use fairlead_link::socket::{Heard, Socket, StreamSocket};
use fairlead_protocol::version::{paths, sni};
use fairlead_protocol::{
    Hello, HostIdentity, LinkDown, LinkUp, Message, RegionEnrolReply, UplinkDown, UplinkUp,
    Welcome, limits, link_down, link_up, uplink_down, uplink_up,
};
use prost::DecodeError;
use prost::encoding::{DecodeContext, WireType, decode_varint, encode_varint, skip_field};
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// A feature that nobody has yet.
const FEATURE: &str = "levitation";
/// Field 1000, a number, and field 1001, a text: of no message today.
const FIELDS: &[u8] = &[
    0xc0, 0x3e, 0x01, 0xca, 0x3e, 0x05, b'l', b'a', b't', b'e', b'r',
];
/// Kind 900 of a frame, with something in it.
const KIND: &[u8] = &[0xa2, 0x38, 0x03, b'n', b'e', b'w'];
/// An unknown kind comes after so many known ones.
const KIND_EVERY: usize = 4;

/// How one side's words are passed on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Speech {
    /// As they are.
    #[default]
    AsItIs,
    /// As a next version would say them.
    Later,
}

/// What the double makes of what it hears.
#[derive(Debug, Clone, Copy, Default)]
pub struct Manner {
    /// Of what the dialling side says.
    pub up: Speech,
    /// Of what the accepting side says.
    pub down: Speech,
    /// The versions that the dialling side says that it speaks, instead of its own.
    pub hello: Option<(u32, u32)>,
    /// The version that the accepting side says that it has chosen.
    pub welcome: Option<u32>,
}

/// What has gone through.
#[derive(Debug, Default)]
pub struct Counts {
    /// Messages.
    pub messages: AtomicUsize,
    /// Of them, those that were changed.
    pub changed: AtomicUsize,
    /// Unknown kinds that were put in between.
    pub put_in: AtomicUsize,
    /// Of these, those that were answered with `Unsupported`.
    pub unsupported: AtomicUsize,
    /// Greetings that were answered.
    pub greeted: AtomicUsize,
    /// Streams.
    pub streams: AtomicUsize,
}

/// Something that was said: by the dialling side or not, and the bytes.
pub type Said = (bool, Vec<u8>);

/// Between which two.
#[derive(Debug, Clone)]
enum Between {
    /// Agents and their access server: its data directory, and the agent's.
    Link { server: PathBuf, agent: PathBuf },
    /// Access servers and the controller: its data directory, and the access server's.
    Uplink {
        controller: PathBuf,
        server: PathBuf,
    },
}

/// The double.
#[derive(Debug)]
pub struct Skew {
    address: String,
    listener: Mutex<Option<TcpListener>>,
    counts: Arc<Counts>,
    said: Arc<Mutex<Vec<Said>>>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Skew {
    /// Takes a port; who dials it waits until it serves.
    ///
    /// # Panics
    /// When there is no port.
    pub async fn claim() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        Self {
            address: listener.local_addr().expect("its address").to_string(),
            listener: Mutex::new(Some(listener)),
            counts: Arc::default(),
            said: Arc::default(),
            task: Mutex::default(),
        }
    }

    /// Where it is dialled.
    #[must_use]
    pub fn address(&self) -> String {
        self.address.clone()
    }

    /// What has gone through so far.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// All that was said after the handshake, as it was passed on, in the order in which it was heard.
    #[must_use]
    pub fn said(&self) -> Vec<Said> {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.clone()
    }

    /// Serves between an agent and its access server, whose data directories these are, and which listens there.
    pub fn between_agent(&self, server: &Path, agent: &Path, address: &str, manner: Manner) {
        let between = Between::Link {
            server: server.to_owned(),
            agent: agent.to_owned(),
        };
        self.serve(between, address, manner);
    }

    /// Serves between an access server and its controller.
    pub fn between_region(&self, controller: &Path, server: &Path, address: &str, manner: Manner) {
        let between = Between::Uplink {
            controller: controller.to_owned(),
            server: server.to_owned(),
        };
        self.serve(between, address, manner);
    }

    fn serve(&self, between: Between, address: &str, manner: Manner) {
        let listener = self
            .listener
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let listener = listener.expect("it serves once");
        let middle = Arc::new(Middle {
            between,
            address: address.to_owned(),
            manner,
            counts: Arc::clone(&self.counts),
            said: Arc::clone(&self.said),
        });
        let task = tokio::spawn(async move {
            // Ends with this task: a connection has no life beyond it.
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    Ok((tcp, _)) = listener.accept() => {
                        let middle = Arc::clone(&middle);
                        connections.spawn(async move { Box::pin(middle.connection(tcp)).await });
                    }
                    Some(_) = connections.join_next() => {}
                }
            }
        });
        *self.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
    }
}

impl Drop for Skew {
    fn drop(&mut self) {
        let task = self
            .task
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(task) = task {
            task.abort();
        }
    }
}

struct Middle {
    between: Between,
    address: String,
    manner: Manner,
    counts: Arc<Counts>,
    said: Arc<Mutex<Vec<Said>>>,
}

/// Who a program is, from its data directory.
struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKey,
}

impl Identity {
    fn credentials(&self) -> Credentials {
        Credentials {
            chain: self.chain.clone(),
            key: self.key.for_tls(),
        }
    }

    fn root(&self) -> Root {
        let root = self.chain.last().cloned().expect("a root");
        Root::from_der(root).expect("a root")
    }
}

fn key(path: &Path) -> PrivateKey {
    PrivateKey::from_der(&std::fs::read(path).expect("a key")).expect("a key")
}

fn chain(certificates: &[bytes::Bytes]) -> Vec<CertificateDer<'static>> {
    let certificates = certificates.iter();
    certificates
        .map(|one| CertificateDer::from(one.to_vec()))
        .collect()
}

/// Of an agent; `None` until it has enrolled.
fn agent(dir: &Path) -> Option<Identity> {
    let kept = std::fs::read(dir.join("identity")).ok()?;
    let kept = HostIdentity::decode(&kept[..]).ok()?;
    Some(Identity {
        chain: chain(&kept.enrolment?.certificates),
        key: PrivateKey::from_der(&kept.key_der).ok()?,
    })
}

/// Of an access server; `None` until it has joined.
fn access_server(dir: &Path) -> Option<Identity> {
    let kept = std::fs::read(dir.join("certificates")).ok()?;
    let kept = RegionEnrolReply::decode(&kept[..]).ok()?;
    Some(Identity {
        chain: chain(&kept.server_certificates),
        key: key(&dir.join("server.key")),
    })
}

/// Of a controller: made anew, as it does itself at each start.
fn controller(dir: &Path) -> Identity {
    let packed = std::fs::read(dir.join("servers-ca.chain")).expect("the servers' CA");
    let mut rest = &packed[..];
    let mut above = Vec::new();
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let (certificate, after) = after.split_at(u32::from_be_bytes(*length) as usize);
        above.push(CertificateDer::from(certificate.to_vec()));
        rest = after;
    }
    let root = Root::from_der(above.last().cloned().expect("a root")).expect("a root");
    let ca_key = std::fs::read(dir.join("servers-ca.key")).expect("its key");
    let ca = Authority::from_parts(&ca_key, above, root.domain()).expect("the servers' CA");
    let own = key(&dir.join("controller.key"));
    let times = (
        jiff::Timestamp::now().as_second(),
        Duration::from_secs(3600),
    );
    let leaf = ca
        .certify_own(&own, &Role::Controller, LeafUse::Server, &[], times)
        .expect("a certificate");
    Identity {
        chain: leaf.chain,
        key: own,
    }
}

impl Middle {
    fn server(&self) -> Identity {
        match &self.between {
            Between::Link { server, .. } => access_server(server).expect("it has joined"),
            Between::Uplink {
                controller: dir, ..
            } => controller(dir),
        }
    }

    /// As the one that dialled here; as a stranger where it has no certificate yet.
    fn dialler(&self, door: Door, root: Root) -> Option<Dialler> {
        let (identity, expected, sni) = match &self.between {
            Between::Link { agent: dir, .. } => {
                (agent(dir), Expected::AnyAccessServer, sni::AGENTS)
            }
            Between::Uplink { server: dir, .. } => {
                (access_server(dir), Expected::Controller, sni::UPLINK)
            }
        };
        let credentials = match door {
            Door::Enrol => None,
            _ => Some(identity?.credentials()),
        };
        let config = tls::client(Trust::Root(root.clone()), expected, credentials);
        Some(Dialler::new(config.ok()?, Some(root), sni))
    }

    async fn connection(&self, tcp: TcpStream) {
        let Ok(remote) = tcp.peer_addr() else { return };
        let server = self.server();
        let root = server.root();
        let Ok(config) = tls::server(root.clone(), server.credentials(), limits::RENEW_GRACE)
        else {
            return;
        };
        let acceptor = Acceptor::new(Arc::new(config), root.clone(), limits::RENEW_GRACE);
        let Ok(accepted) = acceptor.accept(tcp, remote).await else {
            return;
        };
        let Some(dialler) = self.dialler(accepted.door, root.clone()) else {
            return;
        };
        match (&self.between, accepted.door) {
            (_, Door::Stream(id)) => {
                let who = root.identify(&server.chain, Usage::Server, UnixTime::now());
                let name = who.expect("a server's certificate").role.to_string();
                if let Ok(far) = dialler.stream(&self.address, id, &name).await {
                    self.counts.streams.fetch_add(1, Ordering::SeqCst);
                    join(accepted.stream(), far).await;
                }
            }
            (Between::Link { .. }, _) => {
                let max = limits::LINK_MESSAGE_BYTES_MAX;
                Box::pin(self.speak::<LinkUp, LinkDown>(accepted, dialler, max)).await;
            }
            (Between::Uplink { .. }, _) => {
                let max = limits::UPLINK_MESSAGE_BYTES_MAX;
                Box::pin(self.speak::<UplinkUp, UplinkDown>(accepted, dialler, max)).await;
            }
        }
    }

    async fn speak<Up: Spoken, Down: Spoken>(
        &self,
        accepted: Accepted,
        dialler: Dialler,
        message_bytes_max: usize,
    ) {
        let path = match accepted.door {
            Door::Link => paths::LINK,
            Door::Enrol => paths::ENROL,
            Door::Renew => paths::RENEW,
            _ => paths::UPLINK,
        };
        let greets = matches!(accepted.door, Door::Link | Door::Uplink);
        let mut near: Socket<Frame, Up> = accepted.messages();
        let far = dialler.messages(&self.address, path, message_bytes_max);
        let Ok((mut far, _)): Result<(Socket<Frame, Down>, _), _> = far.await else {
            return near.close().await;
        };
        // Without a greeting there are no versions.
        let manner = if greets {
            self.manner
        } else {
            Manner::default()
        };
        let mut greeted = false;
        loop {
            let passed = tokio::select! {
                heard = near.hear() => match heard {
                    Ok(Heard::Message(mut message)) => {
                        if let (Some(versions), Some(hello)) = (manner.hello, message.hello()) {
                            (hello.version_min, hello.version_max) = versions;
                        }
                        self.pass(&mut far, message, true, (manner.up, manner.down), greeted).await
                    }
                    Ok(Heard::Life) => Ok(()),
                    Err(_) => Err(()),
                },
                heard = far.hear() => match heard {
                    Ok(Heard::Message(mut message)) => {
                        if let Some(welcome) = message.welcome() {
                            greeted = greets;
                            if let Some(version) = manner.welcome {
                                welcome.version = version;
                            }
                        }
                        self.pass(&mut near, message, false, (manner.down, manner.up), greeted).await
                    }
                    Ok(Heard::Life) => Ok(()),
                    Err(_) => Err(()),
                },
            };
            if passed.is_err() {
                // Whoever is left hears a closed connection, as from the other.
                near.close().await;
                return far.close().await;
            }
        }
    }

    /// Passes a message on as its speaker is to sound; `speech` is that, and how the hearer sounds.
    async fn pass<M: Spoken, In: Message + Default>(
        &self,
        to: &mut Socket<Frame, In>,
        mut message: M,
        from_dialler: bool,
        speech: (Speech, Speech),
        greeted: bool,
    ) -> Result<(), ()> {
        let (own, other) = speech;
        if other == Speech::Later && message.is_unsupported() {
            // The other side has not said what this answers.
            self.counts.unsupported.fetch_add(1, Ordering::SeqCst);
            return Ok(());
        }
        let count = self.counts.messages.fetch_add(1, Ordering::SeqCst);
        let mut bytes = message.encode_to_vec();
        if own == Speech::Later {
            if let Some(hello) = message.hello() {
                hello.version_max += 1;
                hello.features.push(FEATURE.to_owned());
            }
            if let Some(welcome) = message.welcome() {
                welcome.features.push(FEATURE.to_owned());
                self.counts.greeted.fetch_add(1, Ordering::SeqCst);
            }
            bytes = with_fields(&message.encode_to_vec());
            self.counts.changed.fetch_add(1, Ordering::SeqCst);
        }
        {
            let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
            said.push((from_dialler, bytes.clone()));
        }
        to.send(&Frame(bytes)).await.map_err(|_| ())?;
        if own == Speech::Later && greeted && count.is_multiple_of(KIND_EVERY) {
            self.counts.put_in.fetch_add(1, Ordering::SeqCst);
            to.send(&Frame(KIND.to_vec())).await.map_err(|_| ())?;
        }
        Ok(())
    }
}

/// Passes frames on both ways until one of them has closed.
async fn join(near: StreamSocket, far: StreamSocket) {
    let ((mut to_near, mut from_near), (mut to_far, mut from_far)) = (near.split(), far.split());
    let outward = async {
        while let Ok(Some(frame)) = from_near.hear().await {
            if to_far.send(frame).await.is_err() {
                break;
            }
        }
        to_far.close().await;
    };
    let inward = async {
        while let Ok(Some(frame)) = from_far.hear().await {
            if to_near.send(frame).await.is_err() {
                break;
            }
        }
        to_near.close().await;
    };
    tokio::join!(outward, inward);
}

/// The same message with fields that nobody knows, in the frame and in what it carries.
fn with_fields(bytes: &[u8]) -> Vec<u8> {
    let mut rest = bytes;
    let mut out = Vec::new();
    if let (Ok(tag), Ok(length)) = (decode_varint(&mut rest), decode_varint(&mut rest)) {
        assert_eq!(tag & 7, 2, "a kind is a message");
        assert_eq!(length as usize, rest.len(), "a frame has one kind");
        encode_varint(tag, &mut out);
        encode_varint(length + FIELDS.len() as u64, &mut out);
        out.extend_from_slice(rest);
        out.extend_from_slice(FIELDS);
    }
    out.extend_from_slice(FIELDS);
    out
}

/// The bytes of a message that has been encoded.
#[derive(Debug, Default, Clone)]
pub struct Frame(pub Vec<u8>);

impl Message for Frame {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        buf.put_slice(&self.0);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        skip_field(wire_type, tag, buf, ctx)
    }

    fn encoded_len(&self) -> usize {
        self.0.len()
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}

/// What the double must know of a message.
trait Spoken: Message + Default + Send + 'static {
    fn hello(&mut self) -> Option<&mut Hello>;
    fn welcome(&mut self) -> Option<&mut Welcome>;
    fn is_unsupported(&self) -> bool;
}

impl Spoken for LinkUp {
    fn hello(&mut self) -> Option<&mut Hello> {
        match &mut self.kind {
            Some(link_up::Kind::Hello(hello)) => Some(hello),
            _ => None,
        }
    }

    fn welcome(&mut self) -> Option<&mut Welcome> {
        None
    }

    fn is_unsupported(&self) -> bool {
        matches!(self.kind, Some(link_up::Kind::Unsupported(_)))
    }
}

impl Spoken for LinkDown {
    fn hello(&mut self) -> Option<&mut Hello> {
        None
    }

    fn welcome(&mut self) -> Option<&mut Welcome> {
        match &mut self.kind {
            Some(link_down::Kind::Welcome(welcome)) => Some(welcome),
            _ => None,
        }
    }

    fn is_unsupported(&self) -> bool {
        matches!(self.kind, Some(link_down::Kind::Unsupported(_)))
    }
}

impl Spoken for UplinkUp {
    fn hello(&mut self) -> Option<&mut Hello> {
        match &mut self.kind {
            Some(uplink_up::Kind::Hello(hello)) => Some(hello),
            _ => None,
        }
    }

    fn welcome(&mut self) -> Option<&mut Welcome> {
        None
    }

    fn is_unsupported(&self) -> bool {
        matches!(self.kind, Some(uplink_up::Kind::Unsupported(_)))
    }
}

impl Spoken for UplinkDown {
    fn hello(&mut self) -> Option<&mut Hello> {
        None
    }

    fn welcome(&mut self) -> Option<&mut Welcome> {
        match &mut self.kind {
            Some(uplink_down::Kind::Welcome(welcome)) => Some(welcome),
            _ => None,
        }
    }

    fn is_unsupported(&self) -> bool {
        matches!(self.kind, Some(uplink_down::Kind::Unsupported(_)))
    }
}
