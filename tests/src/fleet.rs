//! A fleet on this machine: controller, access servers, supervised agents, each a process of its own,
//! set up through the same API and tokens as anywhere else.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fairlead_api::types::{Action, Command, JoinTokenRequest};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::client::Api;
use crate::disk::Disk;
use crate::line::Line;
use crate::loop_disk::LoopDisk;
use crate::ports::Port;
use crate::process::{Process, is_alive, send};
use crate::programs::program;
use crate::wait::wait_for;

/// Fleets at a time: each is at least four processes, and the machine is small.
const FLEETS_MAX: usize = 3;
static PLACES: Semaphore = Semaphore::const_new(FLEETS_MAX);

/// How long each step of a start may take on a busy machine.
pub const START_WITHIN: Duration = Duration::from_secs(30);

/// What a fleet is to be.
#[derive(Debug, Clone)]
pub struct Options {
    /// `docker` or `simulated`.
    pub engine: &'static str,
    /// Regions, by name; hosts join the first.
    pub regions: Vec<String>,
    /// Hosts, by name.
    pub hosts: Vec<String>,
    /// Milliseconds between pings of a link.
    pub ping_interval_ms: u32,
    /// More flags of the controller.
    pub controller_flags: Vec<(String, String)>,
    /// Where the programs are; `None`: those that were built with the tests.
    pub programs: Option<PathBuf>,
    /// The environment of each process.
    pub env: Vec<(String, String)>,
    /// The environment of each access server.
    pub region_env: Vec<(String, String)>,
    /// More flags of each agent.
    pub agent_flags: Vec<(String, String)>,
    /// The agent's program; absent: the one under test, as it was built.
    pub agent_program: Option<PathBuf>,
    /// The programs of agents that have one of their own, by their hosts' names.
    pub agent_programs: Vec<(String, PathBuf)>,
    /// The environment of each agent.
    pub agent_env: Vec<(String, String)>,
    /// What each agent's supervisor is started by, before its own words; empty: nothing.
    pub agent_wrapper: Vec<String>,
    /// Data directories (`controller`, `access-server-REGION`, `agent-HOST`) that lie on a small disk
    /// of their own.
    pub small_disks: Vec<String>,
    /// The same, that lie on a disk whose power can be cut.
    pub loop_disks: Vec<String>,
    /// Whether agents and access servers dial through a line that can be made bad.
    pub lines: bool,
    /// Where agents dial, instead of their access server.
    pub agents_dial: Option<String>,
    /// Where access servers dial, instead of the controller.
    pub regions_dial: Option<String>,
}

impl Options {
    /// One region, one host, the agent's simulated engine.
    #[must_use]
    pub fn simulated() -> Self {
        Self {
            engine: "simulated",
            regions: vec!["local".to_owned()],
            hosts: vec!["box".to_owned()],
            ping_interval_ms: 15_000,
            controller_flags: Vec::new(),
            programs: None,
            env: Vec::new(),
            region_env: Vec::new(),
            agent_flags: Vec::new(),
            agent_program: None,
            agent_programs: Vec::new(),
            agent_env: Vec::new(),
            agent_wrapper: Vec::new(),
            small_disks: Vec::new(),
            loop_disks: Vec::new(),
            lines: false,
            agents_dial: None,
            regions_dial: None,
        }
    }

    /// With a small disk of its own under that data directory.
    #[must_use]
    pub fn small_disk(mut self, directory: &str) -> Self {
        self.small_disks.push(directory.to_owned());
        self
    }

    /// With a disk whose power can be cut under that data directory.
    #[must_use]
    pub fn loop_disk(mut self, directory: &str) -> Self {
        self.loop_disks.push(directory.to_owned());
        self
    }

    /// With lines that can be made bad before access servers and controller.
    #[must_use]
    pub fn lines(mut self) -> Self {
        self.lines = true;
        self
    }

    /// With agents that dial there.
    #[must_use]
    pub fn agents_dial(mut self, address: String) -> Self {
        self.agents_dial = Some(address);
        self
    }

    /// With access servers that dial there.
    #[must_use]
    pub fn regions_dial(mut self, address: String) -> Self {
        self.regions_dial = Some(address);
        self
    }

    /// One region, one host, the machine's real engine.
    #[must_use]
    pub fn docker() -> Self {
        Self {
            engine: "docker",
            ..Self::simulated()
        }
    }

    async fn line_to(&self, port: &Port) -> Option<Line> {
        if self.lines {
            Some(Line::to(&port.address()).await)
        } else {
            None
        }
    }

    fn program(&self, name: &str) -> PathBuf {
        self.programs
            .as_ref()
            .map_or_else(|| program(name), |folder| folder.join(name))
    }

    /// With these hosts.
    #[must_use]
    pub fn hosts(mut self, names: &[&str]) -> Self {
        self.hosts = names.iter().map(|&name| name.to_owned()).collect();
        self
    }

    /// With these regions.
    #[must_use]
    pub fn regions(mut self, names: &[&str]) -> Self {
        self.regions = names.iter().map(|&name| name.to_owned()).collect();
        self
    }

    /// With this ping interval, so that silence is noticed sooner.
    #[must_use]
    pub fn pings(mut self, every_ms: u32) -> Self {
        self.ping_interval_ms = every_ms;
        self
    }

    /// With one more flag for the controller.
    #[must_use]
    pub fn controller_flag(mut self, flag: &str, value: impl Into<String>) -> Self {
        self.controller_flags.push((flag.to_owned(), value.into()));
        self
    }

    /// With terminals that live at the regions' access servers.
    #[must_use]
    pub fn terminals_at_regions(mut self) -> Self {
        self.region_env
            .push(("FAIRLEAD_TERMINALS".to_owned(), "true".to_owned()));
        self
    }

    /// With one more flag for each agent.
    #[must_use]
    pub fn agent_flag(mut self, flag: &str, value: impl Into<String>) -> Self {
        self.agent_flags.push((flag.to_owned(), value.into()));
        self
    }

    /// With this program as the agent's.
    #[must_use]
    pub fn agent_program(mut self, path: PathBuf) -> Self {
        self.agent_program = Some(path);
        self
    }

    /// With this program as the agent's of that host.
    #[must_use]
    pub fn agent_program_of(mut self, host: &str, path: PathBuf) -> Self {
        self.agent_programs.push((host.to_owned(), path));
        self
    }

    /// With one more variable in each agent's environment.
    #[must_use]
    pub fn agent_env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.agent_env.push((name.to_owned(), value.into()));
        self
    }
}

/// A region's access server.
#[derive(Debug)]
pub struct RegionSide {
    /// The region's name.
    pub name: String,
    /// The access server.
    pub process: Process,
    /// Its data directory.
    pub dir: PathBuf,
    /// Where it listens for agents.
    pub agents: Port,
    /// Its https.
    pub web: Port,
    /// What its agents dial through, if the options say so.
    line: Option<Line>,
    /// Where its agents dial.
    dialled_at: String,
}

impl RegionSide {
    /// The line between its agents and it.
    ///
    /// # Panics
    /// When the options asked for none.
    #[must_use]
    pub fn line(&self) -> &Line {
        self.line.as_ref().expect("the options ask for lines")
    }

    /// Where agents dial.
    #[must_use]
    pub fn dialled_at(&self) -> String {
        self.dialled_at.clone()
    }
}

/// A host: a supervisor and the agent under it.
#[derive(Debug)]
pub struct HostSide {
    /// The host's name.
    pub name: String,
    /// The supervisor.
    pub supervisor: Process,
    /// The agent's state directory.
    pub dir: PathBuf,
    /// The owner's policy file; there is none at first.
    pub policy: PathBuf,
}

impl HostSide {
    /// What the supervisor says of itself and its agents.
    #[must_use]
    pub fn status(&self) -> Option<serde_json::Value> {
        let text = std::fs::read(self.dir.join("status.json")).ok()?;
        let status: serde_json::Value = serde_json::from_slice(&text).ok()?;
        // An earlier supervisor's status says nothing about this one's agent.
        (status["supervisor"].as_u64() == Some(u64::from(self.supervisor.pid()))).then_some(status)
    }

    /// The agent's pid, when its supervisor has started one.
    #[must_use]
    pub fn agent(&self) -> Option<u32> {
        self.status()?["agent"]
            .as_u64()
            .and_then(|pid| u32::try_from(pid).ok())
    }

    /// The agent's pid, waiting for it.
    ///
    /// # Panics
    /// When there is none in time.
    pub async fn agent_pid(&self) -> u32 {
        wait_for("the supervisor has an agent", START_WITHIN, async || {
            self.agent()
                .filter(|pid| is_alive(*pid))
                .ok_or_else(|| self.supervisor.last_words())
        })
        .await
    }

    /// kill -9 of the agent; its supervisor starts another. Returns when it is gone.
    ///
    /// # Panics
    /// When it does not go.
    pub async fn kill_agent(&self) {
        let pid = self.agent_pid().await;
        send(pid, Signal::KILL);
        wait_for("the agent is gone", START_WITHIN, async || {
            if is_alive(pid) {
                Err(format!("{pid} is there"))
            } else {
                Ok(())
            }
        })
        .await;
    }

    /// kill -9 of supervisor and agent: the host is away until `start`.
    pub fn kill(&mut self) {
        // The agent goes first and by its own pid: one that is frozen does not hear that its
        // supervisor has died.
        self.supervisor.freeze();
        let agent = self.agent();
        if let Some(pid) = agent {
            send(pid, Signal::KILL);
        }
        self.supervisor.kill();
        // Who copies its disk next wants nothing of it to be under way.
        let began = std::time::Instant::now();
        while agent.is_some_and(is_alive) && began.elapsed() < START_WITHIN {
            std::thread::yield_now();
        }
    }

    /// Starts the supervisor again.
    pub fn start(&mut self) {
        self.supervisor.start_again();
    }

    /// What the machine's owner is told.
    #[must_use]
    pub fn owner_log(&self) -> String {
        std::fs::read_to_string(self.dir.join("owner.log")).unwrap_or_default()
    }

    /// The journal files.
    ///
    /// # Panics
    /// When the directory cannot be read.
    #[must_use]
    pub fn journals(&self) -> Vec<PathBuf> {
        std::fs::read_dir(self.dir.join("journal"))
            .expect("a journal directory")
            .map(|entry| entry.expect("an entry").path())
            .collect()
    }
}

impl Drop for HostSide {
    fn drop(&mut self) {
        if self.supervisor.is_started() {
            self.kill();
        }
    }
}

/// A running fleet. Everything ends when it is dropped.
pub struct Fleet {
    /// As admin, at the controller.
    pub api: Api,
    /// The controller.
    pub controller: Process,
    /// The access servers, in the order of the options.
    pub regions: Vec<RegionSide>,
    /// The hosts, in the order of the options.
    pub hosts: Vec<HostSide>,
    /// The controller's port for access servers.
    pub uplink: Port,
    uplink_line: Option<Line>,
    _web: Port,
    /// Small disks, in the order of the options. Unmounted after the processes have gone and before their
    /// directory goes.
    pub disks: Vec<Disk>,
    /// Disks whose power can be cut, in the order of the options.
    pub loop_disks: Vec<LoopDisk>,
    dir: TempDir,
    options: Options,
    _place: SemaphorePermit<'static>,
}

impl Fleet {
    /// Starts a fleet; returns when every host is online.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn start(options: Options) -> Self {
        let mut fleet = Self::start_centre(options).await;
        for name in fleet.options.regions.clone() {
            fleet.add_region(&name).await;
        }
        for name in fleet.options.hosts.clone() {
            fleet.add_host(&name).await;
        }
        fleet
    }

    /// Only the controller, claimed.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn start_centre(options: Options) -> Self {
        let place = PLACES.acquire().await.expect("never closed");
        let dir = tempfile::tempdir().expect("a directory");
        let disks = options
            .small_disks
            .iter()
            .map(|name| Disk::mount(&dir.path().join(name)))
            .collect();
        let loop_disks = options
            .loop_disks
            .iter()
            .map(|name| LoopDisk::mount(&dir.path().join(name)))
            .collect();
        let (web, uplink) = (Port::claim(), Port::claim());
        let data = dir.path().join("controller");
        let (web_address, uplink_address, url) = (web.address(), uplink.address(), web.url());
        let mut pairs: Vec<(&str, &std::ffi::OsStr)> = vec![
            ("--data-dir", data.as_os_str()),
            ("--listen", web_address.as_ref()),
            ("--uplink-listen", uplink_address.as_ref()),
            ("--uplink-address", uplink_address.as_ref()),
            ("--public-url", url.as_ref()),
            ("--web-name", "localhost".as_ref()),
            ("--web-name", "127.0.0.1".as_ref()),
        ];
        for (flag, value) in &options.controller_flags {
            pairs.push((flag, value.as_ref()));
        }
        let mut controller = Process::start(
            "controller",
            options.program("fairlead-controller"),
            flags("run", &pairs),
            options.env.clone(),
            dir.path().join("controller.log"),
        );
        let link = wait_for("the controller's setup link", START_WITHIN, async || {
            if let Some(status) = controller.ended() {
                return Err(format!("ended with {status}: {}", controller.last_words()));
            }
            std::fs::read_to_string(data.join("setup-link"))
                .map_err(|error| format!("{error}: {}", controller.last_words()))
        })
        .await;
        let secret = link.trim().rsplit('/').next().expect("a secret").to_owned();
        let mut api = Api::new(&web.url(), &data.join("ca.pem"), "");
        let token = wait_for("the controller is claimed", START_WITHIN, async || {
            api.setup(&secret)
                .await
                .map_err(|no| format!("{no}: {}", controller.last_words()))
        })
        .await;
        api.token = token.token;
        let uplink_line = options.line_to(&uplink).await;
        Self {
            api,
            controller,
            regions: Vec::new(),
            hosts: Vec::new(),
            uplink,
            uplink_line,
            _web: web,
            disks,
            loop_disks,
            dir,
            options,
            _place: place,
        }
    }

    /// Makes a region and starts its access server; returns when it is online.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn add_region(&mut self, name: &str) {
        let made = self
            .api
            .new_region(name)
            .await
            .unwrap_or_else(|no| panic!("{no}"));
        let token = self.secret_file(&format!("{name}.token"), &made.join_token.token);
        let (agents, web) = (Port::claim(), Port::claim());
        let line = self.options.line_to(&agents).await;
        let dialled_at = line
            .as_ref()
            .map_or_else(|| agents.address(), Line::address);
        let dialled_at = self.options.agents_dial.clone().unwrap_or(dialled_at);
        let controller = self.uplink_line.as_ref();
        let controller = controller.map_or_else(|| self.uplink.address(), Line::address);
        let controller = self.options.regions_dial.clone().unwrap_or(controller);
        let dir = self.dir.path().join(format!("access-server-{name}"));
        let process = Process::start(
            &format!("access server of {name}"),
            self.options.program("fairlead-access-server"),
            flags(
                "run",
                &[
                    ("--data-dir", dir.as_os_str()),
                    ("--controller", controller.as_ref()),
                    ("--token-file", token.as_os_str()),
                    ("--name", "a1".as_ref()),
                    ("--agent-listen", agents.address().as_ref()),
                    ("--agent-address", dialled_at.as_ref()),
                    ("--listen", web.address().as_ref()),
                    ("--public-url", web.url().as_ref()),
                    (
                        "--ping-interval-ms",
                        self.options.ping_interval_ms.to_string().as_ref(),
                    ),
                ],
            ),
            [&self.options.env[..], &self.options.region_env[..]].concat(),
            self.dir.path().join(format!("access-server-{name}.log")),
        );
        self.regions.push(RegionSide {
            name: name.to_owned(),
            process,
            dir,
            agents,
            web,
            line,
            dialled_at,
        });
        self.region_is(name, "online").await;
    }

    /// Waits until a region is in a state.
    ///
    /// # Panics
    /// When it is not in time.
    pub async fn region_is(&self, name: &str, state: &str) {
        wait_for(
            &format!("region {name} is {state}"),
            START_WITHIN,
            async || match self.api.region(name).await {
                Ok(region) if region.state == state => Ok(()),
                Ok(region) => Err(region.state),
                Err(no) => Err(no.to_string()),
            },
        )
        .await;
    }

    /// Enrols a host in the first region; returns when it is online.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn add_host(&mut self, name: &str) {
        let request = JoinTokenRequest {
            region: Some(self.regions[0].name.clone()),
            ..JoinTokenRequest::default()
        };
        let token = self
            .api
            .new_join_token(&request)
            .await
            .unwrap_or_else(|no| panic!("{no}"));
        let host = self.start_host(name, &token.token);
        self.hosts.push(host);
        self.online(name).await;
    }

    /// Starts a supervised agent with that join token at the first region; does not wait for it.
    #[must_use]
    pub fn start_host(&self, name: &str, token: &str) -> HostSide {
        let dir = self.dir.path().join(format!("agent-{name}"));
        let token = self.secret_file(&format!("{name}.token"), token);
        self.start_host_in(name, dir, &self.regions[0].dialled_at(), Some(&token))
    }

    /// The same in a state directory and at an address of the caller's.
    #[must_use]
    pub fn start_host_in(
        &self,
        name: &str,
        dir: PathBuf,
        address: &str,
        token: Option<&Path>,
    ) -> HostSide {
        let policy = self.dir.path().join(format!("policy-{name}.toml"));
        let mut pairs: Vec<(&str, OsString)> = vec![
            ("--state-dir", dir.clone().into()),
            ("--address", address.into()),
            ("--engine", self.options.engine.into()),
            ("--host-name", name.into()),
            ("--policy", policy.clone().into()),
            ("--metrics-every-s", "5".into()),
        ];
        if let Some(token) = token {
            pairs.push(("--token-file", token.into()));
        }
        for (flag, value) in &self.options.agent_flags {
            pairs.push((flag, value.into()));
        }
        let pairs: Vec<(&str, &std::ffi::OsStr)> = pairs
            .iter()
            .map(|(flag, value)| (*flag, value.as_os_str()))
            .collect();
        let mut words: Vec<OsString> = self.options.agent_wrapper.iter().map(Into::into).collect();
        let mut own = self.options.agent_programs.iter();
        let own = own.find(|(host, _)| host == name).map(|(_, path)| path);
        let program = own.or(self.options.agent_program.as_ref()).cloned();
        words.push(
            program
                .unwrap_or_else(|| self.options.program("fairlead-agent"))
                .into(),
        );
        words.extend(flags("supervise", &pairs));
        let supervisor = Process::start(
            &format!("host {name}"),
            words.remove(0).into(),
            words,
            [&self.options.env[..], &self.options.agent_env[..]].concat(),
            dir.with_extension("log"),
        );
        HostSide {
            name: name.to_owned(),
            supervisor,
            dir,
            policy,
        }
    }

    /// Waits until a host is online.
    ///
    /// # Panics
    /// When it is not in time.
    pub async fn online(&self, name: &str) {
        self.api.host_is(name, "online", START_WITHIN).await;
    }

    /// Waits until the region and every host is online.
    ///
    /// # Panics
    /// When one is not in time.
    pub async fn all_online(&self) {
        for region in &self.regions {
            self.region_is(&region.name, "online").await;
        }
        for host in &self.hosts {
            self.online(&host.name).await;
        }
    }

    /// A file of this fleet that only its owner can read.
    ///
    /// # Panics
    /// When it cannot be written.
    #[must_use]
    pub fn secret_file(&self, name: &str, text: &str) -> PathBuf {
        use std::io::Write;
        use std::os::unix::fs::OpenOptionsExt;
        let path = self.dir.path().join(name);
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .expect("a file");
        file.write_all(text.as_bytes()).expect("it is written");
        path
    }

    /// The line between the access servers and the controller.
    ///
    /// # Panics
    /// When the options asked for none.
    #[must_use]
    pub fn uplink_line(&self) -> &Line {
        self.uplink_line
            .as_ref()
            .expect("the options ask for lines")
    }

    /// The first small disk.
    #[must_use]
    pub fn disk(&self) -> &Disk {
        &self.disks[0]
    }

    /// The fleet's own directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The CA's PEM file.
    #[must_use]
    pub fn ca_file(&self) -> PathBuf {
        self.dir.path().join("controller/ca.pem")
    }

    /// The first host's name.
    #[must_use]
    pub fn host(&self) -> String {
        self.hosts[0].name.clone()
    }

    /// Acts on the first host and waits for the end.
    pub async fn act(&self, action: Action) -> Command {
        self.api.act(&self.host(), action).await
    }

    /// The same, and it must succeed.
    pub async fn done(&self, action: Action) -> Command {
        self.api.done(&self.host(), action).await
    }

    /// Begins an act on the first host.
    pub async fn begin(&self, action: Action) -> Command {
        self.api.begin(&self.host(), action).await
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if std::thread::panicking() {
            if std::env::var_os("FAIRLEAD_TEST_KEEP").is_some() {
                self.dir.disable_cleanup(true);
                eprintln!("--- kept: {}", self.dir.path().display());
            }
            let regions = self.regions.iter().map(|region| &region.process);
            let hosts = self.hosts.iter().map(|host| &host.supervisor);
            for process in std::iter::once(&self.controller)
                .chain(regions)
                .chain(hosts)
            {
                eprintln!(
                    "--- the last words of {}:\n{}",
                    process.name,
                    process.last_words()
                );
            }
        }
    }
}

fn flags(verb: &str, pairs: &[(&str, &std::ffi::OsStr)]) -> Vec<OsString> {
    let mut arguments = vec![OsString::from(verb)];
    for (flag, value) in pairs {
        arguments.push((*flag).into());
        arguments.push((*value).to_owned());
    }
    arguments
}
