//! `dev`: a controller, a region's access server and a supervised agent on this machine, each a
//! process of its own, all links mutually authenticated TLS, set up through the same API, tokens and
//! setup link as anywhere else. Keeps them alive until it is told to stop.
//!
//! With `FAIRLEAD_DIE_WITH_PARENT` set it ends when its parent does, as its children do with it.
//!
//! `DIR/ready.json` appears once all are connected and is replaced whenever a process was.

use std::path::{Path, PathBuf};
use std::time::Duration;

use fairlead_api::types::{
    Host, JoinTokenRequest, NewApiToken, NewJoinToken, NewRegion, Region, RegionRequest,
    SetupRequest,
};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use self::process::Process;
use self::programs::{
    Ports, access_server_arguments, agent_arguments, controller_arguments, program,
};
use super::Context;
use crate::args::Dev;
use crate::client::Client;
use crate::config::{self, Settings, Token, replace_file, server_url, setup_secret};
use crate::exit::{Exit, Failure};
use crate::output::{clean, say};
use crate::tls::Trust;

mod process;
mod programs;

/// The region that is made.
const REGION: &str = "local";
/// Between two looks at the processes.
const LOOK: Duration = Duration::from_millis(50);
/// How long each step of the start may take.
const STEP_MAX: Duration = Duration::from_secs(60);
/// Lines of each log that are shown when the start fails.
const LAST_WORDS: usize = 8;
/// A daemon that dies so often right after its start will not come up.
const FAST_DEATHS_MAX: u32 = 5;

/// What is kept from one start to the next.
#[derive(Serialize, Deserialize)]
struct Kept {
    url: String,
    ports: Ports,
}

/// `DIR/ready.json`.
#[derive(Clone, PartialEq, Eq, Serialize)]
struct Ready {
    url: String,
    region_url: String,
    ca_file: PathBuf,
    token: String,
    region: String,
    host: String,
    pid: Pids,
}

#[derive(Clone, PartialEq, Eq, Serialize)]
struct Pids {
    controller: u32,
    access_server: u32,
    supervisor: u32,
    agent: u32,
}

/// The supervisor's own word about its instance.
#[derive(Deserialize)]
struct SupervisorStatus {
    supervisor: u32,
    agent: u32,
}

/// `fairlead dev`
pub(crate) async fn dev(_: &Context, args: Dev) -> Result<Exit, Failure> {
    let signals = |kind| signal(kind).map_err(|e| Failure::local("cannot receive signals", &e));
    if config::process_env("FAIRLEAD_DIE_WITH_PARENT").is_some() {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))
            .map_err(|e| Failure::local("cannot notice the parent's end", &e.into()))?;
    }
    let mut terminate = signals(SignalKind::terminate())?;
    let mut interrupt = signals(SignalKind::interrupt())?;
    let mut hangup = signals(SignalKind::hangup())?;
    // Its directory holds tokens and the daemons' logs: for their owner only.
    let _ = rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    let mut keeper = Keeper::new(&args)?;
    let ended = tokio::select! {
        never = keeper.keep(&args) => Err(match never {
            Ok(never) => match never {},
            Err(failure) => failure,
        }),
        _ = terminate.recv() => Ok(Exit::Ok),
        _ = interrupt.recv() => Ok(Exit::Ok),
        _ = hangup.recv() => Ok(Exit::Ok),
    };
    keeper.stop().await;
    ended
}

struct Keeper {
    dir: PathBuf,
    /// Held as long as this process lives: one keeper per directory.
    _lock: std::fs::File,
    controller: Option<Process>,
    access_server: Option<Process>,
    supervisor: Option<Process>,
}

/// The last lines of a log, each said once: a daemon that is started again and again says the same each
/// time, but for the time.
fn last_lines(text: &str) -> Vec<&str> {
    let said = |line: &str| match line.split_once(' ') {
        Some((time, rest)) if time.parse::<jiff::Timestamp>().is_ok() => rest.trim().to_owned(),
        _ => line.trim().to_owned(),
    };
    let mut lines: Vec<&str> = Vec::new();
    for line in text.lines().rev() {
        if lines.len() < LAST_WORDS && !lines.iter().any(|known| said(known) == said(line)) {
            lines.push(line);
        }
    }
    lines.reverse();
    lines
}

impl Keeper {
    fn new(args: &Dev) -> Result<Self, Failure> {
        use std::os::unix::fs::DirBuilderExt;
        let failed = |e: std::io::Error| {
            Failure::local(&format!("cannot use {}", args.data_dir.display()), &e)
        };
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&args.data_dir)
            .map_err(failed)?;
        let dir = std::fs::canonicalize(&args.data_dir).map_err(failed)?;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir.join("log"))
            .map_err(failed)?;
        let lock = std::fs::File::create(dir.join("dev.lock")).map_err(failed)?;
        lock.try_lock().map_err(|_| {
            Failure::new(
                Exit::Conflict,
                format!("another `fairlead dev` uses {}", dir.display()),
            )
        })?;
        // Nobody may take an earlier run's word for this one's.
        match std::fs::remove_file(dir.join("ready.json")) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(e)),
            _ => {}
        }
        Ok(Self {
            dir,
            _lock: lock,
            controller: None,
            access_server: None,
            supervisor: None,
        })
    }

    /// Starts all, says when they are ready, keeps them alive.
    async fn keep(&mut self, args: &Dev) -> Result<std::convert::Infallible, Failure> {
        let ports = Ports::from(args.ports_from);
        let kept = self.kept()?;
        if let Some(kept) = &kept
            && kept.ports != ports
        {
            return Err(Failure::new(
                Exit::Conflict,
                format!(
                    "{} was set up on other ports ({:?})",
                    self.dir.display(),
                    kept.ports
                ),
            )
            .hint("use the same --ports-from, or another --data-dir"));
        }
        self.controller = Some(Process::start(
            "controller",
            self.log("controller"),
            program("fairlead-controller")?,
            controller_arguments(&self.dir, ports),
        )?);
        let (client, kept, token) = self.log_in(kept, ports).await?;
        let region = self.start_region(&client, ports).await?;
        let host = self.start_host(&client, args, ports).await?;
        let mut ready = Ready {
            url: kept.url,
            region_url: region.url,
            ca_file: self.ca_file(),
            token: token.reveal().to_owned(),
            region: region.name,
            host: host.name,
            pid: Pids {
                controller: 0,
                access_server: 0,
                supervisor: 0,
                agent: 0,
            },
        };
        let mut is_new = true;
        loop {
            self.tick()?;
            // While a process is away the last word stands; it is replaced as soon as it is back.
            if let Some(pid) = self.pids()
                && ready.pid != pid
            {
                ready.pid = pid;
                self.write_ready(&ready)?;
                if std::mem::take(&mut is_new) {
                    say(&format!("ready: {}", self.dir.join("ready.json").display()));
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn tick(&mut self) -> Result<(), Failure> {
        for process in [
            &mut self.controller,
            &mut self.access_server,
            &mut self.supervisor,
        ]
        .into_iter()
        .flatten()
        {
            process.tick()?;
        }
        Ok(())
    }

    /// Looks after the processes until `check` has something; `what` is said when it takes too long.
    async fn until<T>(
        &mut self,
        what: &str,
        mut check: impl AsyncFnMut() -> Result<Option<T>, Failure>,
    ) -> Result<T, Failure> {
        let began = Instant::now();
        loop {
            self.tick()?;
            let hopeless = [&self.controller, &self.access_server, &self.supervisor]
                .into_iter()
                .flatten()
                .any(|process| process.fast_deaths >= FAST_DEATHS_MAX);
            if hopeless || began.elapsed() > STEP_MAX {
                self.last_words();
                return Err(
                    Failure::new(Exit::Failed, format!("{what} did not come about")).hint(
                        "the ends of their logs are above; are the ports free? --ports-from N",
                    ),
                );
            }
            match check().await {
                Ok(Some(value)) => return Ok(value),
                Ok(None) => {}
                Err(failure) if failure.transient || failure.exit == Exit::Unreachable => {}
                Err(failure) => return Err(failure),
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Where a daemon's log goes.
    fn log(&self, name: &str) -> PathBuf {
        self.dir.join("log").join(format!("{name}.log"))
    }

    /// The ends of the daemons' logs, for who has to find out why they do not come up.
    fn last_words(&self) {
        for name in ["controller", "access-server", "agent"] {
            let text = std::fs::read_to_string(self.log(name)).unwrap_or_default();
            for line in last_lines(&text) {
                say(&format!("{name}: {}", clean(line)));
            }
        }
    }

    fn ca_file(&self) -> PathBuf {
        self.dir.join("controller/ca.pem")
    }

    fn kept(&self) -> Result<Option<Kept>, Failure> {
        let Some(text) = read_if_there(&self.dir.join("dev.json"))? else {
            return Ok(None);
        };
        serde_json::from_str(&text).map(Some).map_err(|_| {
            Failure::new(
                Exit::Failed,
                format!("{}/dev.json is damaged", self.dir.display()),
            )
            .hint("use another --data-dir")
        })
    }

    fn client(&self, url: &str, token: Option<Token>) -> Result<Client, Failure> {
        let trust = Trust::from_file(&self.ca_file(), "the controller's directory")?.0;
        Client::new(Settings {
            url: server_url(url)?,
            token,
            trust,
        })
    }

    /// The first start claims the controller by its setup link, as anybody would.
    async fn log_in(
        &mut self,
        kept: Option<Kept>,
        ports: Ports,
    ) -> Result<(Client, Kept, Token), Failure> {
        let ca_file = self.ca_file();
        self.until("the controller's CA", async || {
            Ok(read_if_there(&ca_file)?.filter(|text| !text.is_empty()))
        })
        .await?;
        let kept = match kept {
            Some(kept) => kept,
            None => {
                let link_file = self.dir.join("controller/setup-link");
                let link = self
                    .until("the controller's setup link", async || {
                        read_if_there(&link_file)
                    })
                    .await?;
                let link = link.trim();
                let secret = setup_secret(link).ok_or_else(|| {
                    Failure::new(
                        Exit::Failed,
                        "the controller's setup link is not understood",
                    )
                })?;
                let url = server_url(link)?.as_str().trim_end_matches('/').to_owned();
                let anybody = self.client(&url, None)?;
                let body = SetupRequest {
                    secret,
                    name: "dev".to_owned(),
                };
                let made: NewApiToken = self
                    .until("the first admin", async || {
                        anybody.post(&["setup"], &body).await.map(Some)
                    })
                    .await?;
                write(&self.dir.join("token"), made.token.as_bytes())?;
                let kept = Kept { url, ports };
                let text = serde_json::to_vec(&kept)
                    .map_err(|e| Failure::new(Exit::Failed, e.to_string()))?;
                write(&self.dir.join("dev.json"), &text)?;
                kept
            }
        };
        let text = read_if_there(&self.dir.join("token"))?.unwrap_or_default();
        let token = Token::parse(&text, "the token file in the data directory")?;
        Ok((self.client(&kept.url, Some(token.clone()))?, kept, token))
    }

    async fn start_region(&mut self, client: &Client, ports: Ports) -> Result<Region, Failure> {
        let token_file = self.dir.join("region-token");
        let find = async || match client.get::<Region>(&["regions", REGION], &[]).await {
            Ok(region) => Ok(Some(Some(region))),
            Err(failure) if failure.exit == Exit::NotFound => Ok(Some(None)),
            Err(failure) => Err(failure),
        };
        if self.until("the controller's answer", find).await?.is_none() {
            let body = RegionRequest {
                again: false,
                name: REGION.to_owned(),
                ttl_s: None,
            };
            let made: NewRegion = client.post(&["regions"], &body).await?;
            write(&token_file, made.join_token.token.as_bytes())?;
        }
        self.access_server = Some(Process::start(
            "access server",
            self.log("access-server"),
            program("fairlead-access-server")?,
            access_server_arguments(&self.dir, ports, token_file.exists().then_some(&token_file)),
        )?);
        let region = self
            .until("the region's link to the controller", async || {
                let region: Region = client.get(&["regions", REGION], &[]).await?;
                Ok((region.state == "online").then_some(region))
            })
            .await?;
        Ok(region)
    }

    async fn start_host(
        &mut self,
        client: &Client,
        args: &Dev,
        ports: Ports,
    ) -> Result<Host, Failure> {
        let token_file = self.dir.join("join-token");
        let known: Vec<Host> = client.list(&["hosts"], &[]).await?;
        if known.is_empty() && !self.dir.join("agent/identity").exists() {
            let body = JoinTokenRequest {
                region: Some(REGION.to_owned()),
                ..Default::default()
            };
            let made: NewJoinToken = client.post(&["join-tokens"], &body).await?;
            write(&token_file, made.token.as_bytes())?;
        }
        self.supervisor = Some(Process::start(
            "supervisor",
            self.log("agent"),
            program("fairlead-agent")?,
            agent_arguments(
                &self.dir,
                ports,
                args,
                token_file.exists().then_some(&token_file),
            ),
        )?);
        let host = self
            .until("the agent's link", async || {
                let hosts: Vec<Host> = client.list(&["hosts"], &[]).await?;
                Ok(hosts.into_iter().find(|host| host.state == "online"))
            })
            .await?;
        Ok(host)
    }

    /// All pids, when all run.
    fn pids(&self) -> Option<Pids> {
        let supervisor = self.supervisor.as_ref()?.pid()?;
        let status = std::fs::read(self.dir.join("agent/status.json")).ok()?;
        let status: SupervisorStatus = serde_json::from_slice(&status).ok()?;
        // An earlier supervisor's status says nothing about this one's agent.
        (status.supervisor == supervisor).then_some(Pids {
            controller: self.controller.as_ref()?.pid()?,
            access_server: self.access_server.as_ref()?.pid()?,
            supervisor,
            agent: status.agent,
        })
    }

    fn write_ready(&self, ready: &Ready) -> Result<(), Failure> {
        let mut text = serde_json::to_vec_pretty(ready)
            .map_err(|e| Failure::new(Exit::Failed, e.to_string()))?;
        text.push(b'\n');
        write(&self.dir.join("ready.json"), &text)
    }

    /// Stops all, side by side.
    async fn stop(&mut self) {
        let stop = async |process: &mut Option<Process>| {
            if let Some(process) = process {
                process.stop().await;
            }
        };
        tokio::join!(
            stop(&mut self.supervisor),
            stop(&mut self.access_server),
            stop(&mut self.controller)
        );
        // A reader must not take it for a running installation; it may not have been there yet.
        drop(std::fs::remove_file(self.dir.join("ready.json")));
    }
}

fn write(path: &Path, content: &[u8]) -> Result<(), Failure> {
    replace_file(path, content)
        .map_err(|e| Failure::local(&format!("cannot write {}", path.display()), &e))
}

fn read_if_there(path: &Path) -> Result<Option<String>, Failure> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Failure::local(
            &format!("cannot read {}", path.display()),
            &e,
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_line_of_each_start_is_said_once() {
        let line = |second: u32, text: &str| format!("2026-11-20T14:00:0{second}.5Z {text}\n");
        let text: String = (0..5)
            .map(|n| line(n, " INFO starting") + &line(n, "ERROR cannot listen: in use"))
            .collect();
        let lines = last_lines(&text);
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].ends_with("starting") && lines[1].ends_with("in use"));
        assert_eq!(last_lines("a\nb\na\n"), ["b", "a"]);
    }
}
