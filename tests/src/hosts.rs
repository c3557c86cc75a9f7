//! Test hosts: machines with systemd as their first process and a container engine of their own, each
//! in a container of this machine's engine. May use: the docker CLI, and nothing of the products.
//!
//! A test asks for its hosts with `Hosts::here()`. Where the image cannot be had it says SKIPPED with
//! the reason and gets none; under `CI=true` that is a failure.
//!
//! | module | what lives there |
//! |---|---|
//! | `host` | one machine: boot, commands in it, files, reboot, power cut, freeze, a clone of its disk |
//! | `network` | its network: cut, unplugged, lossy, slow |
//! | `files` | its file tree, to compare before and after |
//! | `leftovers` | what runs that died left behind |
//! | `run` | the docker CLI, asked without blocking |
//!
//! What such a machine is not: its kernel, its clock and its boot id are this machine's.

mod files;
mod host;
pub mod leftovers;
mod network;
mod run;

use std::future::Future;
use std::io::Write;
use std::net::Ipv4Addr;
use std::panic::Location;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore};

pub use files::{Entry, Files};
pub use host::TestHost;
pub use network::Slow;
pub use run::Output;
use run::{docker, docker_says};

/// The recipe of the image; the image's tag is its hash, here as in `./dev`.
const RECIPE: &[u8] = include_bytes!("hosts/recipe.sh");

/// Tests that have hosts at the same time, in one process. A host is a second of one core to boot.
const TESTS_AT_ONCE: usize = 2;

/// The first host of a test has this number as the last of its address; the gateway has 1.
const FIRST_ADDRESS: u8 = 10;

static TURNS: OnceCell<Arc<Semaphore>> = OnceCell::const_new();
static SWEPT: OnceCell<()> = OnceCell::const_new();
static NEXT: AtomicU32 = AtomicU32::new(1);

/// One test's hosts: a network of their own, in which they know each other by name.
#[derive(Debug, Clone)]
pub struct Hosts {
    ground: Arc<Ground>,
}

/// What all hosts of one test stand on. Goes with the last of them.
#[derive(Debug)]
struct Ground {
    image: String,
    /// Begins every name of this test.
    prefix: String,
    network: String,
    gateway: Ipv4Addr,
    next_address: AtomicU8,
    label: String,
    test: String,
    began: Instant,
    /// How long each boot took.
    boots: Mutex<Vec<Duration>>,
    _turn: OwnedSemaphorePermit,
}

impl Hosts {
    /// Hosts for one test, or `None` where there cannot be any: then it was said that the test is
    /// skipped, and why. Waits for its turn.
    ///
    /// # Panics
    /// Under `CI=true` where there cannot be any.
    #[track_caller]
    pub fn here() -> impl Future<Output = Option<Self>> {
        let place = Location::caller();
        // libtest names the thread after the test.
        let test = match std::thread::current().name() {
            Some(name) if name != "main" => name.to_owned(),
            _ => place.to_string(),
        };
        async move {
            let turns = TURNS
                .get_or_init(async || Arc::new(Semaphore::new(TESTS_AT_ONCE)))
                .await;
            let turn = turns.clone().acquire_owned().await.expect("never closed");
            let began = Instant::now();
            match image().await {
                Ok(image) => Some(Self::on_new_ground(image, test, began, turn).await),
                Err(why) => {
                    assert!(
                        std::env::var("CI").as_deref() != Ok("true"),
                        "no test hosts, and in CI that is a failure: {why}"
                    );
                    say(&format!("SKIPPED test {test}: no test hosts: {why}"));
                    None
                }
            }
        }
    }

    async fn on_new_ground(
        image: String,
        test: String,
        began: Instant,
        turn: OwnedSemaphorePermit,
    ) -> Self {
        SWEPT.get_or_init(leftovers::sweep).await;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("fl-th-{}-{number}", std::process::id());
        let label = leftovers::label_of(std::process::id()).expect("this process is there");
        let (network, gateway) = network::make(&prefix, &label).await;
        Self {
            ground: Arc::new(Ground {
                image,
                prefix,
                network,
                gateway,
                next_address: AtomicU8::new(FIRST_ADDRESS),
                label,
                test,
                began,
                boots: Mutex::default(),
                _turn: turn,
            }),
        }
    }

    /// A new machine, booted, with its engine up. `name` is its hostname and how the other hosts of this
    /// test find it.
    ///
    /// # Panics
    /// When it does not boot, or a unit failed at it.
    pub async fn start(&self, name: &str) -> TestHost {
        self.start_known_as(name, &[]).await
    }

    /// The same; the other hosts find it under these names too, for instance `fleet.example.com`.
    ///
    /// # Panics
    /// When it does not boot, or a unit failed at it.
    pub async fn start_known_as(&self, name: &str, also: &[&str]) -> TestHost {
        TestHost::start(&self.ground, name, also).await
    }

    /// The engine's name of the image, for what is no host.
    #[must_use]
    pub fn image(&self) -> &str {
        &self.ground.image
    }

    /// Where the hosts reach what listens on this machine: bind a listener to it.
    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        self.ground.gateway
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        // The hosts hold the ground, so none is left in it.
        run::docker_now(&["network", "rm", &self.network]);
        let hosts = self.next_address.load(Ordering::Relaxed) - FIRST_ADDRESS;
        let boots = self
            .boots
            .lock()
            .map(|boots| boots.clone())
            .unwrap_or_default();
        let longest = boots.iter().max().copied().unwrap_or_default();
        say(&format!(
            "{}: {:.1} s; test hosts: {hosts}, boots: {}, the longest {:.1} s",
            self.test,
            self.began.elapsed().as_secs_f32(),
            boots.len(),
            longest.as_secs_f32()
        ));
    }
}

/// Past libtest, which keeps for itself what a passing test prints.
fn say(line: &str) {
    // Nobody to tell is no failure.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// The image's name, once it is in the engine; else why it cannot be.
async fn image() -> Result<String, String> {
    static IMAGE: OnceCell<Result<String, String>> = OnceCell::const_new();
    IMAGE.get_or_init(find_image).await.clone()
}

async fn find_image() -> Result<String, String> {
    let hash = fairlead_identity::digest::hex(&fairlead_identity::digest::sha256(RECIPE));
    let hash = &hash[..12];
    let image = format!("fairlead-test-host:{hash}");
    let engine = docker(&["version", "--format", "{{.Server.Version}}"]).await;
    if !engine.is_ok() {
        return Err(format!("no engine answers: {}", engine.stderr.trim()));
    }
    if docker(&["image", "inspect", &image]).await.is_ok() {
        return Ok(image);
    }
    let state = state_folder();
    let archive = state.join(format!("cache/test-host-{hash}.tar.gz"));
    if archive.is_file() {
        docker_says(&["import", &archive.to_string_lossy(), &image]).await;
        return Ok(image);
    }
    let why = std::fs::read_to_string(state.join("test-host-why")).unwrap_or_default();
    Err(match why.trim() {
        "" => format!("there is no image {image}; ./dev test-image makes it"),
        why => why.to_owned(),
    })
}

/// `.dev`, which is `./dev`'s.
fn state_folder() -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.dev")).to_owned()
}

/// How long a machine may take to boot or to leave, on a machine that builds beside.
const BOOT_WITHIN: Duration = Duration::from_secs(120);
