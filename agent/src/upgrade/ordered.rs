//! An upgrade that a command asks for: the package is fetched from this host's access server, by the manifest's
//! hash that the command names, and then it goes on as when the tool on the host is given that folder.
//!
//! In this order, and nothing of a package runs before the last of it: manifest and signatures come, the manifest is
//! what the command names, its signature is by a key that is trusted here, it has not expired, may follow on what is
//! here, and is not below what was here; then the program comes, resumed where it broke off, and has the size and
//! hash that the manifest says. The tool, which is started with it, checks all of that again on what it then runs.
//!
//! May use: the agent's own files, its access server's door for packages, and this very program as that tool.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fairlead_daemon::clock::ServerTime;
use fairlead_daemon::files;
use fairlead_daemon::telemetry::Chain;
use fairlead_identity::digest::{self, hex, sha256};
use fairlead_identity::package::{
    FileEntry, MANIFEST_BYTES_MAX, MANIFEST_NAME, PublicKey, Refusal, SIGNATURES_BYTES_MAX,
    SIGNATURES_NAME, Timestamp, Version,
};
use fairlead_link::package::{self, FetchError, Wanted};
use fairlead_protocol::{UpgradeAgent, codes};
use serde::Deserialize;
use tokio::fs::OpenOptions;
use tokio::process::Command;
use tokio::sync::watch;

use super::{Rules, TARGET, UpgradeError, check_room};
use crate::config::Config;
use crate::executor::StreamDialler;
use crate::handoff::words::Status;
use crate::status;
use crate::supervise::{Layout, PROGRAM};

/// Packages that are being fetched, below the state directory.
const DIR: &str = "packages";
/// First wait before a package that did not come is asked for again; it doubles.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Longest such wait.
const AGAIN_AFTER_MAX: Duration = Duration::from_secs(20);
/// How often the supervisor's word is looked at after a crash.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// What the tool says is a line; more of it is not read.
const SAID_BYTES_MAX: u64 = 8 * 1024;

/// Why an ordered upgrade did not succeed.
#[derive(Debug)]
pub struct Failed {
    /// Stable.
    pub code: &'static str,
    /// In words.
    pub message: String,
}

impl From<UpgradeError> for Failed {
    fn from(error: UpgradeError) -> Self {
        Self {
            code: error.code(),
            message: Chain(&error).to_string(),
        }
    }
}

fn failed(code: &'static str, message: impl Into<String>) -> Failed {
    Failed {
        code,
        message: message.into(),
    }
}

/// What an upgrade that had begun has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    /// The version has the host.
    Done,
    /// It did not get or not keep it, and why.
    Returned(String),
    /// The supervisor does not know of it.
    Nothing,
    /// It goes on.
    UnderWay,
}

/// What orders to upgrade need.
pub struct Orders {
    state_dir: PathBuf,
    trusted: Vec<PublicKey>,
    time: Arc<ServerTime>,
    link: watch::Sender<Option<StreamDialler>>,
    /// One at a time: they share the folder.
    one: tokio::sync::Mutex<()>,
    /// Why a file did not come at last.
    last: Mutex<String>,
}

impl Orders {
    /// As this agent is configured.
    #[must_use]
    pub fn new(config: &Config, time: Arc<ServerTime>) -> Self {
        Self {
            state_dir: config.state_dir.clone(),
            trusted: config.trust.clone(),
            time,
            link: watch::Sender::new(None),
            one: tokio::sync::Mutex::new(()),
            last: Mutex::default(),
        }
    }

    /// Where packages are fetched from now on; `None`: nowhere at the moment.
    pub fn linked(&self, link: Option<StreamDialler>) {
        self.link.send_replace(link);
    }

    /// Carries one out; `say` is told what it waits for. It is done when the version is the one that is started
    /// from now on: it has the host, and its trial has begun.
    ///
    /// # Errors
    /// When it is not done; what ran before goes on then.
    pub async fn carry_out<F: Future<Output = ()>>(
        &self,
        order: &UpgradeAgent,
        fetch_within: Duration,
        say: impl Fn(String) -> F,
    ) -> Result<(), Failed> {
        let _one = self.one.lock().await;
        let layout = Layout::of_this_program().map_err(|_| UpgradeError::NoLayout)?;
        let prefix = layout.prefix().ok_or(UpgradeError::NoLayout)?.to_owned();
        let asked: Version = order
            .version
            .parse()
            .map_err(|_| failed(codes::PACKAGE_REFUSED, "the command names no version"))?;
        let manifest: [u8; 32] = order.manifest[..]
            .try_into()
            .map_err(|_| failed(codes::PACKAGE_REFUSED, "the command names no manifest"))?;
        if self.trusted.is_empty() {
            return Err(UpgradeError::NoKeys.into());
        }
        if self.known(&order.version) == Known::Done {
            return Ok(());
        }
        let folder = self.folder(&manifest)?;
        self.note(String::new());
        let fetching = self.fetched(order, &asked, manifest, &folder, &prefix, &say);
        let fetched = match tokio::time::timeout(fetch_within, fetching).await {
            Ok(fetched) => fetched,
            Err(_) => {
                let seconds = fetch_within.as_secs();
                let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
                let why = format!("the package did not come within {seconds} s: {last}");
                Err(failed(codes::PACKAGE_UNAVAILABLE, why))
            }
        };
        if let Err(error) = fetched {
            if error.code != codes::PACKAGE_UNAVAILABLE {
                let _ = std::fs::remove_dir_all(&folder);
            }
            return Err(error);
        }
        say(format!("version {asked} is tried beside the one that runs")).await;
        let ran = self.run_tool(order, &folder).await;
        let _ = std::fs::remove_dir_all(&folder);
        ran
    }

    /// The package's folder, with no other beside it.
    fn folder(&self, manifest: &[u8; 32]) -> Result<PathBuf, Failed> {
        let all = self.state_dir.join(DIR);
        let folder = all.join(hex(manifest));
        let made = || -> io::Result<()> {
            files::private_dir(&all)?;
            for entry in std::fs::read_dir(&all)? {
                let path = entry?.path();
                if path != folder {
                    std::fs::remove_dir_all(&path)?;
                }
            }
            files::private_dir(&folder)
        };
        made().map_err(|error| {
            let why = format!("{} cannot be used: {error}", folder.display());
            failed(codes::CANNOT_UPGRADE, why)
        })?;
        Ok(folder)
    }

    async fn fetched<F: Future<Output = ()>>(
        &self,
        order: &UpgradeAgent,
        asked: &Version,
        manifest: [u8; 32],
        folder: &Path,
        prefix: &Path,
        say: &impl Fn(String) -> F,
    ) -> Result<(), Failed> {
        let fetch = Fetch {
            orders: self,
            manifest,
            folder,
        };
        fetch
            .whole(MANIFEST_NAME, MANIFEST_BYTES_MAX as u64, say)
            .await?;
        fetch
            .whole(SIGNATURES_NAME, SIGNATURES_BYTES_MAX as u64, say)
            .await?;
        let entry = self.judged(order, asked, &manifest, folder)?;
        for disk in [&self.state_dir, prefix] {
            check_room(disk, entry.size)?;
        }
        fetch.whole(&entry.name, entry.size, say).await?;
        let path = folder.join(&entry.name);
        let measured = tokio::task::spawn_blocking(move || digest::of_file(&path)).await;
        let (size, digest) = measured
            .map_err(io::Error::other)
            .and_then(|measured| measured)
            .map_err(|error| failed(codes::CANNOT_UPGRADE, error.to_string()))?;
        entry
            .check(size, &digest)
            .map_err(|error| UpgradeError::from(error).into())
    }

    /// The program that the manifest names, if the manifest is to be believed and may be used.
    fn judged(
        &self,
        order: &UpgradeAgent,
        asked: &Version,
        manifest: &[u8; 32],
        folder: &Path,
    ) -> Result<FileEntry, Failed> {
        let bytes = super::read_bounded(&folder.join(MANIFEST_NAME), MANIFEST_BYTES_MAX)?;
        if sha256(&bytes) != *manifest {
            let why = "the manifest that came is not the one that the command names";
            return Err(failed(codes::PACKAGE_REFUSED, why));
        }
        let now_s = self.time.now_us() / 1_000_000;
        let now = Timestamp::from_seconds(now_s).ok_or(UpgradeError::Clock)?;
        let current = self.status().current;
        let rules = Rules {
            state_dir: &self.state_dir,
            trusted: &self.trusted,
            allow_older: order.allow_older,
            current: &current,
            now,
        };
        let verified = rules.verified(folder)?;
        let refused = |refusal: Refusal| UpgradeError::from(refusal);
        let named = verified.manifest.version();
        if named != asked {
            return Err(refused(Refusal::OtherVersion {
                asked: asked.clone(),
                version: named.clone(),
            })
            .into());
        }
        let name = format!("{PROGRAM}-{TARGET}");
        let entry = verified.manifest.file(&name).map_err(refused)?;
        Ok(entry.clone())
    }

    /// Starts this program as the tool that the machine's owner would use, and waits for its end.
    async fn run_tool(&self, order: &UpgradeAgent, folder: &Path) -> Result<(), Failed> {
        let unusable = |error: io::Error| {
            let why = format!("fairlead-agent upgrade cannot be started: {error}");
            failed(codes::CANNOT_UPGRADE, why)
        };
        let program = std::env::current_exe().map_err(unusable)?;
        let mut tool = Command::new(program);
        tool.args(["upgrade", "--json", "--to"])
            .arg(folder)
            .arg("--state-dir")
            .arg(&self.state_dir)
            .env_remove("FAIRLEAD_PACKAGE_KEYS")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        for key in &self.trusted {
            tool.arg("--trust").arg(key.to_string());
        }
        if order.allow_older {
            tool.arg("--allow-older");
        }
        let output = tool.output().await.map_err(unusable)?;
        if output.status.success() {
            return Ok(());
        }
        #[derive(Deserialize)]
        struct Said {
            code: String,
            message: String,
        }
        let mut line = String::new();
        let mut said = output.stdout.as_slice().take(SAID_BYTES_MAX);
        let _ = said.read_to_string(&mut line);
        match serde_json::from_str::<Said>(line.trim()) {
            Ok(said) => Err(failed(codes::known(&said.code), said.message)),
            Err(_) => Err(failed(
                codes::CANNOT_UPGRADE,
                format!(
                    "fairlead-agent upgrade ended without a word ({})",
                    output.status
                ),
            )),
        }
    }

    fn note(&self, why: String) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    fn status(&self) -> Status {
        status::read(&self.state_dir).unwrap_or_default()
    }

    fn known(&self, version: &str) -> Known {
        known(&self.status(), version)
    }

    /// What became of an order that an instance had begun which is gone.
    pub async fn settled(&self, version: &str, within: Duration) -> Known {
        let until = tokio::time::Instant::now() + within;
        loop {
            match self.known(version) {
                Known::UnderWay if tokio::time::Instant::now() < until => {
                    tokio::time::sleep(LOOK_EVERY).await;
                }
                known => return known,
            }
        }
    }
}

/// What the supervisor's word says of an upgrade to that version.
fn known(status: &Status, version: &str) -> Known {
    let settled = ["steady", "vacant"].contains(&status.phase.as_str());
    if !settled {
        return Known::UnderWay;
    }
    if status.current == version {
        return Known::Done;
    }
    match &status.returned {
        Some(returned) if returned.from == version => Known::Returned(returned.why.clone()),
        _ => Known::Nothing,
    }
}

/// One package on its way here.
struct Fetch<'a> {
    orders: &'a Orders,
    manifest: [u8; 32],
    folder: &'a Path,
}

impl Fetch<'_> {
    /// Fetches a file until it is there, or will not come.
    async fn whole<F: Future<Output = ()>>(
        &self,
        name: &str,
        max: u64,
        say: &impl Fn(String) -> F,
    ) -> Result<(), Failed> {
        let path = self.folder.join(name);
        if path.is_file() {
            return Ok(());
        }
        let part = self.folder.join(format!("{name}.part"));
        let unusable = |error: io::Error| {
            let why = format!("{} cannot be written: {error}", part.display());
            failed(codes::CANNOT_UPGRADE, why)
        };
        let mut wait = AGAIN_AFTER;
        loop {
            let file = open_part(&part);
            let mut file = file.await.map_err(unusable)?;
            let offset = file.metadata().await.map_err(unusable)?.len();
            let wanted = Wanted {
                manifest: self.manifest,
                file: name.to_owned(),
                offset,
            };
            say(format!("{name} is fetched, {offset} bytes of it are here")).await;
            match self.once(&wanted, max, &mut file).await {
                Ok(_) => {
                    file.sync_all().await.map_err(unusable)?;
                    std::fs::rename(&part, &path).map_err(unusable)?;
                    return Ok(());
                }
                Err(FetchError::Disk(error)) => return Err(unusable(error)),
                Err(error @ FetchError::TooLarge { .. }) => {
                    return Err(failed(codes::PACKAGE_REFUSED, error.to_string()));
                }
                Err(FetchError::Refused { code, message }) if !passes(&code) => {
                    return Err(failed(codes::known(&code), message));
                }
                Err(error) => {
                    let came = file.metadata().await.map_or(0, |about| about.len()) > offset;
                    if matches!(error, FetchError::BrokeOff) && !came {
                        // What is here is no beginning of what is there.
                        let _ = std::fs::remove_file(&part);
                    }
                    let why = error.to_string();
                    say(format!(
                        "{name} does not come, it is asked for again: {why}"
                    ))
                    .await;
                    self.orders.note(why);
                    wait = if came {
                        AGAIN_AFTER
                    } else {
                        (wait * 2).min(AGAIN_AFTER_MAX)
                    };
                    let share = fairlead_link::backoff::random_share();
                    tokio::time::sleep(wait.mul_f64(0.5 + share / 2.0)).await;
                }
            }
        }
    }

    async fn once(
        &self,
        wanted: &Wanted,
        max: u64,
        to: &mut tokio::fs::File,
    ) -> Result<u64, FetchError> {
        let away = |message: String| FetchError::Refused {
            code: codes::PACKAGE_UNAVAILABLE.to_owned(),
            message,
        };
        let link = self.orders.link.borrow().clone();
        let link = link.ok_or_else(|| away("the agent has no link to its region".to_owned()))?;
        let dialled = link.dialler.package(&link.address, &link.server).await;
        let mut socket = dialled.map_err(|error| away(error.to_string()))?;
        package::fetch(&mut socket, wanted, max, to).await
    }
}

async fn open_part(part: &Path) -> io::Result<tokio::fs::File> {
    let mut options = OpenOptions::new();
    options.create(true).append(true).open(part).await
}

/// Whether it may be otherwise soon.
fn passes(code: &str) -> bool {
    [codes::BUSY, codes::PACKAGE_UNAVAILABLE].contains(&code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handoff::decide::Returned;

    #[test]
    fn an_upgrade_is_done_when_its_version_is_started_from_now_on() {
        let status = |phase: &str, current: &str, returned: Option<&str>| Status {
            phase: phase.to_owned(),
            current: current.to_owned(),
            returned: returned.map(|from| Returned {
                from: from.to_owned(),
                to: "1.0.0".to_owned(),
                why: "it hung".to_owned(),
            }),
            ..Status::default()
        };
        let of = |phase, current, returned| known(&status(phase, current, returned), "1.1.0");
        assert_eq!(of("steady", "1.1.0", None), Known::Done);
        assert_eq!(of("steady", "1.1.0", Some("1.1.0")), Known::Done);
        assert_eq!(of("draining", "1.1.0", None), Known::UnderWay);
        assert_eq!(of("proving", "1.0.0", Some("1.1.0")), Known::UnderWay);
        assert_eq!(of("steady", "1.0.0", Some("1.0.9")), Known::Nothing);
        let back = Known::Returned("it hung".to_owned());
        assert_eq!(of("steady", "1.0.0", Some("1.1.0")), back);
        assert_eq!(of("vacant", "1.0.0", Some("1.1.0")), back);
    }
}
