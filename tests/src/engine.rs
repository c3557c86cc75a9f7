//! The container engine, asked through its own CLI: the judge of what really happened.
//!
//! Every name is this test's own and is removed with the guard; nothing else is touched.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};

/// The image that tests use, made here from busybox.
pub const IMAGE: &str = "fairlead-test-bb:1";

static NEXT: AtomicU32 = AtomicU32::new(1);
static IMAGE_MADE: OnceLock<()> = OnceLock::new();

/// `docker ARGUMENTS…`
///
/// # Panics
/// When there is no docker CLI.
#[must_use]
pub fn docker(arguments: &[&str]) -> Output {
    Command::new("docker")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("the docker CLI is here")
}

/// The same; what it printed, trimmed.
///
/// # Panics
/// When it fails.
pub fn docker_says(arguments: &[&str]) -> String {
    let output = docker(arguments);
    assert!(
        output.status.success(),
        "docker {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Where the engine's socket is, by `DOCKER_HOST`.
#[must_use]
pub fn socket() -> PathBuf {
    let host = std::env::var("DOCKER_HOST").unwrap_or_default();
    host.strip_prefix("unix://")
        .unwrap_or("/var/run/docker.sock")
        .into()
}

/// Where a path of the engine's machine is seen from here: the same, unless that machine is a test host.
#[must_use]
pub fn seen_from_here(path: &Path) -> PathBuf {
    let socket = socket();
    match socket.to_str().and_then(|at| at.split_once("/root/run/")) {
        Some((process, _)) if process.starts_with("/proc/") => Path::new(process)
            .join("root")
            .join(path.strip_prefix("/").unwrap_or(path)),
        _ => path.to_owned(),
    }
}

/// Makes the tests' image, unless it is there.
///
/// # Panics
/// When it cannot be made.
pub fn image() {
    IMAGE_MADE.get_or_init(|| {
        if docker(&["image", "inspect", IMAGE]).status.success() {
            return;
        }
        let busybox = std::env::var("FAIRLEAD_TEST_BUSYBOX").unwrap_or("/bin/busybox".to_owned());
        let root = tempfile::tempdir().expect("a directory");
        let bin = root.path().join("bin");
        for folder in ["bin", "tmp", "etc", "proc", "sys", "dev", "root"] {
            std::fs::create_dir(root.path().join(folder)).expect("a directory");
        }
        std::fs::copy(&busybox, bin.join("busybox")).expect("busybox-static is installed");
        let list = Command::new(&busybox)
            .arg("--list")
            .output()
            .expect("busybox runs");
        for applet in String::from_utf8_lossy(&list.stdout)
            .lines()
            .filter(|a| *a != "busybox")
        {
            std::os::unix::fs::symlink("busybox", bin.join(applet)).expect("a link");
        }
        import(root.path());
    });
}

fn import(root: &Path) {
    let mut child = Command::new("docker")
        .args(["import", "-c", r#"CMD ["/bin/sleep", "3600"]"#, "-", IMAGE])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("the docker CLI is here");
    let mut tar = tar::Builder::new(child.stdin.take().expect("a pipe"));
    tar.follow_symlinks(false);
    tar.append_dir_all(".", root).expect("the archive is taken");
    drop(tar.into_inner());
    assert!(
        child.wait().expect("docker import ends").success(),
        "docker import failed"
    );
}

/// Names of this test's own. What was made under them is removed at the end.
#[derive(Debug)]
pub struct Names {
    prefix: String,
}

impl Default for Names {
    fn default() -> Self {
        Self::new()
    }
}

impl Names {
    /// A prefix that no other test has. Makes the image too.
    #[must_use]
    pub fn new() -> Self {
        image();
        listen();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self {
            prefix: format!("flt-{}-{number}", std::process::id()),
        }
    }

    /// A name.
    #[must_use]
    pub fn name(&self, what: &str) -> String {
        format!("{}-{what}", self.prefix)
    }

    /// Makes and starts a container by hand, past Fairlead; returns its name.
    ///
    /// # Panics
    /// When the engine refuses.
    #[must_use]
    pub fn by_hand(&self, what: &str, flags: &[&str], command: &[&str]) -> String {
        let name = self.name(what);
        let mut arguments = vec!["run", "-d", "--name", &name];
        arguments.extend(flags);
        arguments.push(IMAGE);
        arguments.extend(command);
        docker_says(&arguments);
        name
    }

    /// A container that leaves at once when it is asked to.
    #[must_use]
    pub fn polite(&self, what: &str) -> String {
        self.by_hand(
            what,
            &[],
            &["sh", "-c", "trap 'exit 0' TERM; sleep 3600 & wait"],
        )
    }

    /// A container that does not hear TERM: a stop takes its whole grace.
    #[must_use]
    pub fn deaf(&self, what: &str, grace_s: u32) -> String {
        self.by_hand(
            what,
            &["--stop-timeout", &grace_s.to_string()],
            &["sleep", "3600"],
        )
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        let filter = format!("name=^/?{}-", self.prefix);
        let listed = docker(&["ps", "-aq", "--filter", &filter]);
        let ids = String::from_utf8_lossy(&listed.stdout).into_owned();
        let ids: Vec<&str> = ids.split_whitespace().collect();
        if !ids.is_empty() {
            let mut arguments = vec!["rm", "-f", "-v"];
            arguments.extend(ids);
            let _ = docker(&arguments);
        }
    }
}

/// A field of the engine's own description; `None` when there is no such container.
#[must_use]
pub fn field(container: &str, format: &str) -> Option<String> {
    let output = docker(&["container", "inspect", "--format", format, container]);
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Whether the engine says that it runs.
#[must_use]
pub fn is_running(container: &str) -> bool {
    field(container, "{{.State.Running}}").as_deref() == Some("true")
}

/// When it was last started, in the engine's words.
///
/// # Panics
/// When there is no such container.
#[must_use]
pub fn started_at(container: &str) -> String {
    field(container, "{{.State.StartedAt}}").expect("the container is there")
}

/// Its id.
///
/// # Panics
/// When there is no such container.
#[must_use]
pub fn id(container: &str) -> String {
    field(container, "{{.Id}}").expect("the container is there")
}

/// One line of the engine's own record: time (nanoseconds since 1970) and action.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Record {
    /// Nanoseconds since 1970.
    pub at_ns: i64,
    /// `create`, `start`, `die`, `kill`, `stop`, `restart`, `destroy`, …
    pub action: String,
    /// The container's id.
    pub id: String,
    /// Its name.
    pub name: String,
}

/// What the engine has told since the first test of this process began. An engine itself remembers
/// its last 256 events only, which is less than a busy minute.
static TOLD: OnceLock<Mutex<Vec<Record>>> = OnceLock::new();

fn parse_event(line: &str) -> Option<Record> {
    let event: serde_json::Value = serde_json::from_str(line).ok()?;
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    Some(Record {
        at_ns: event["timeNano"].as_i64()?,
        action: text(&event["Action"]),
        id: text(&event["Actor"]["ID"]),
        name: text(&event["Actor"]["Attributes"]["name"]),
    })
}

/// Listens to the engine for as long as this process lives.
fn listen() {
    TOLD.get_or_init(|| {
        let mut socket = UnixStream::connect(socket()).expect("the engine's socket");
        let since = jiff::Timestamp::now().as_second();
        // HTTP/1.0, so that the answer comes without chunks.
        let filters = "%7B%22type%22%3A%5B%22container%22%5D%7D";
        write!(
            socket,
            "GET /events?since={since}&filters={filters} HTTP/1.0\r\n\r\n"
        )
        .expect("the engine takes the question");
        std::thread::spawn(move || {
            for line in BufReader::new(socket).lines().map_while(Result::ok) {
                if let (Some(record), Some(told)) = (parse_event(&line), TOLD.get()) {
                    told.lock().expect("nobody panics with it").push(record);
                }
            }
        });
        Mutex::default()
    });
}

/// The engine's own record of a container (by id or name) since its beginning.
///
/// # Panics
/// When the engine does not answer.
#[must_use]
pub fn record(container: &str) -> Vec<Record> {
    // The last events may not have come to the listener yet; the engine remembers those.
    let filter = format!("container={container}");
    let now = jiff::Timestamp::now();
    let until = format!("{}.{:09}", now.as_second(), now.subsec_nanosecond());
    let said = docker_says(&[
        "events",
        "--since",
        "24h",
        "--until",
        &until,
        "--filter",
        &filter,
        "--format",
        "{{json .}}",
    ]);
    let mut all: Vec<Record> = said.lines().filter_map(parse_event).collect();
    let told = TOLD
        .get()
        .expect("a test takes its names first")
        .lock()
        .expect("never poisoned");
    let meant = |record: &&Record| record.id == container || record.name == container;
    all.extend(told.iter().filter(meant).cloned());
    drop(told);
    all.sort();
    all.dedup();
    all
}

/// How often the engine has recorded an action of a container.
#[must_use]
pub fn count(container: &str, action: &str) -> usize {
    record(container)
        .iter()
        .filter(|record| record.action == action)
        .count()
}
