//! What the fuzz targets share: an installation's keys, a place in memory for files, one runtime.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fairlead_identity::authority::{Authority, Leaf, LeafUse, PrivateKey};
use fairlead_identity::chain::Root;
use fairlead_identity::roles::Role;
use fairlead_protocol::HostId;
use tokio::runtime::Runtime;

/// The region of everything here.
pub const REGION: &str = "hz";
const DOMAIN: &str = "fuzz.test";
const LIFE: Duration = Duration::from_secs(7 * 24 * 3600);

/// One runtime for all iterations.
pub static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    // A Rust program ignores it; libFuzzer's main does not.
    let ignored = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGPIPE, ignored).expect("a handler");
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
});

/// Seconds since 1970.
pub fn now_s() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    i64::try_from(now.expect("after 1970").as_secs()).expect("fits")
}

/// A directory of this process, in memory where there is such a place: syncs cost nothing there.
pub fn dir() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let base = Path::new("/dev/shm");
        let base = if base.is_dir() { base.to_owned() } else { std::env::temp_dir() };
        // libFuzzer leaves by _exit, so nothing is removed at the end; ./dev sweeps what is no living process's.
        let prefix = format!("fairlead-fuzz-{}-", std::process::id());
        let made = tempfile::Builder::new().prefix(&prefix).tempdir_in(base);
        made.expect("a directory").keep()
    })
}

/// The certificates of an installation with one region.
pub struct Installation {
    /// Its root.
    pub root: Authority,
    /// Certifies access servers.
    pub servers: Authority,
    /// Certifies the region's agents.
    pub agents: Authority,
    /// Certifies https.
    pub web: Authority,
}

impl Installation {
    /// A new one.
    pub fn new() -> Self {
        let now = now_s() - 60;
        let root = Authority::new_root(DOMAIN, now).expect("a root");
        let under = |role: &Role| root.new_intermediate(role, now).expect("an intermediate");
        let agents = Role::AgentsCa { region: REGION.to_owned() };
        Self {
            servers: under(&Role::ServersCa),
            agents: under(&agents),
            web: under(&Role::WebCa),
            root,
        }
    }

    /// What is believed.
    pub fn trusted(&self) -> Root {
        let certificate = self.root.chain().first().expect("itself").clone();
        Root::from_der(certificate).expect("our own root")
    }

    /// A certificate for a host of the region.
    pub fn agent(&self, host: HostId, key: &PrivateKey) -> Leaf {
        let role = Role::Agent { region: REGION.to_owned(), host };
        let times = (now_s() - 60, LIFE);
        let made = self.agents.certify_own(key, &role, LeafUse::Client, &[], times);
        made.expect("a certificate")
    }

    /// A certificate for an access server of the region.
    pub fn access_server(&self, key: &PrivateKey) -> Leaf {
        let role = Role::AccessServer { region: REGION.to_owned(), name: "a1".to_owned() };
        let times = (now_s() - 60, LIFE);
        let made = self.servers.certify_own(key, &role, LeafUse::Both, &[], times);
        made.expect("a certificate")
    }
}

impl Default for Installation {
    fn default() -> Self {
        Self::new()
    }
}

/// The input as pieces, each with its length (two bytes, big-endian) before it.
pub fn pieces(mut input: &[u8]) -> Vec<&[u8]> {
    let mut found = Vec::new();
    while let Some((length, rest)) = input.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes(*length)).min(rest.len());
        let (piece, after) = rest.split_at(length);
        found.push(piece);
        input = after;
    }
    found
}
