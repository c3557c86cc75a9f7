//! Terminals over an orderly restart of the server at which their sessions live: what is shown and typed is exact,
//! the recording is one, what was forbidden meanwhile ends, and what nobody goes on with leaves nothing.

use std::time::Duration;

use fairlead_api::types::{Terminal, TerminalTicket};
use fairlead_identity::digest::{hex, sha256};
use fairlead_tests::client::Api;
use fairlead_tests::engine::{Names, docker, docker_says};
use fairlead_tests::fleet::{Fleet, Options};
use fairlead_tests::terminal::Page;
use fairlead_tests::wait::wait_for;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::ChildStdout;

use crate::cli::Cli;
use crate::terminal::{again, alone, ask, audit, own_processes, processes, row_of, ticket};

const SOON: Duration = Duration::from_secs(30);
/// How long a session is kept for its page.
const COMES_BACK_WITHIN: Duration = Duration::from_secs(55);
/// Counts as fast as it can, and writes down what is typed meanwhile.
const COUNTER: &str = "exec 3<&0; stty raw -echo; cat <&3 >/tmp/typed & i=0; \
    while [ ! -e /tmp/enough ]; do i=$((i+1)); echo n$i; done; echo the end";

/// A page whose connection may break at any moment: it comes back, goes on at its byte, and types again what had
/// not come.
struct Typist {
    api: Api,
    session: String,
    page: Page,
    output: Vec<u8>,
    typed: Vec<u8>,
    sent: u64,
    returns: usize,
}

impl Typist {
    async fn open(api: &Api, given: &TerminalTicket) -> Self {
        let page = match &given.server {
            Some(_) => Page::open_there(api, given).await,
            None => Page::open(api, &given.ticket).await,
        };
        Self {
            api: api.clone(),
            session: given.session.clone(),
            page,
            output: Vec::new(),
            typed: Vec::new(),
            sent: 0,
            returns: 0,
        }
    }

    fn type_in(&mut self, text: &str) {
        self.typed.extend_from_slice(text.as_bytes());
    }

    /// Sends what may be sent, and hears one message; `false` at the end.
    async fn step(&mut self) -> bool {
        let ahead = self.sent - self.page.taken.min(self.sent);
        if self.page.begun && ahead < 16 * 1024 && self.sent < self.typed.len() as u64 {
            let from = usize::try_from(self.sent).unwrap();
            let until = self.typed.len().min(from + 4096);
            let piece = String::from_utf8(self.typed[from..until].to_vec()).unwrap();
            self.page.type_in(&piece).await;
            self.sent = until as u64;
        }
        if self.page.hear().await {
            self.output.append(&mut self.page.output);
            self.page.from = self.output.len() as u64;
            return true;
        }
        if self.page.ended.is_some() {
            return false;
        }
        self.come_back().await;
        true
    }

    async fn come_back(&mut self) {
        let have = self.output.len() as u64;
        let mut page = wait_for(
            "the session is come back to",
            COMES_BACK_WITHIN,
            async || {
                let next = again(&self.api, &self.session).await;
                let next = next.map_err(|no| no.to_string())?;
                let there = next.server.as_deref().unwrap_or(&self.api.url);
                Page::try_enter_at(&self.api, there, &next.ticket, Some(have)).await
            },
        )
        .await;
        page.until("it is the same session, and begun", |p| p.begun)
            .await;
        assert_eq!(page.from, have, "it goes on at the very byte");
        // What came with the first words.
        self.output.append(&mut page.output);
        page.from = self.output.len() as u64;
        self.sent = page.received;
        self.page = page;
        self.returns += 1;
    }

    /// Takes what comes, and types, until that holds.
    async fn until(&mut self, what: &str, mut holds: impl FnMut(&mut Self) -> bool) {
        while !holds(self) {
            assert!(self.step().await, "{what}: {:?}", self.page.ended);
        }
    }

    /// How it ended.
    async fn end(&mut self) -> Value {
        while self.step().await {}
        self.output.append(&mut self.page.output);
        self.page.ended.clone().unwrap()
    }
}

/// Whether each hash in a recording is that of all lines before it, and the last one ends it.
fn is_whole(text: &str) -> bool {
    let (mut chain, mut is_ended) = ([0u8; 32], false);
    for (n, line) in text.lines().enumerate() {
        let said = serde_json::from_str::<(f64, String, String)>(line).ok();
        if let Some((_, _, said)) = said.filter(|(_, kind, _)| kind == "h") {
            let now = format!("{n} {}", hex(&chain));
            is_ended = said == format!("{now} end");
            if !is_ended && said != now {
                return false;
            }
        }
        chain = sha256(&[&chain[..], line.as_bytes()].concat());
    }
    is_ended
}

/// All that was recorded of the output, of a recording that is whole.
fn recorded(fleet: &Fleet, session: &str) -> String {
    let path = fleet
        .dir()
        .join(format!("controller/recordings/{session}.cast"));
    let text = std::fs::read_to_string(path).unwrap();
    assert!(is_whole(&text), "an unbroken chain, to its end");
    text.lines()
        .filter_map(|line| serde_json::from_str::<(f64, String, String)>(line).ok())
        .filter(|(_, kind, _)| kind == "o")
        .map(|(_, _, data)| data)
        .collect()
}

/// Which server restarts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    Region,
    Controller,
    /// The session is at the controller, and the access server between restarts.
    Between,
}

async fn restart(fleet: &mut Fleet, at: At) {
    let process = match at {
        At::Region | At::Between => &mut fleet.regions[0].process,
        At::Controller => &mut fleet.controller,
    };
    assert!(process.leave().await.success());
    process.start_again();
}

/// A counter that floods, somebody who types, and two restarts of their server.
async fn goes_on_byte_for_byte(mut fleet: Fleet, at: At) {
    let names = Names::new();
    let web = names.polite("web");
    let own = own_processes(&web).await;
    let given = ticket(&fleet.api, &web, &["sh", "-c", COUNTER]).await;
    assert_eq!(given.server.is_some(), at == At::Region);
    let mut typist = Typist::open(&fleet.api, &given).await;
    // Until then the terminal echoes what is typed.
    typist
        .until("it counts", |typist| !typist.output.is_empty())
        .await;
    for round in 1..=2 {
        let had = typist.output.len();
        let mut keys = 0;
        typist
            .until("it counts", |typist| {
                keys += 1;
                typist.type_in(&format!("{round}-{keys} "));
                typist.output.len() - had > 300_000
            })
            .await;
        let is_over = std::cell::Cell::new(false);
        let restarted = async {
            restart(&mut fleet, at).await;
            fleet.all_online().await;
            is_over.set(true);
        };
        let typing = async {
            typist
                .until("it goes on after the restart", |typist| {
                    if typist.typed.len() < round * 40_000 {
                        typist.type_in(&format!("{round}+{} ", typist.typed.len()));
                    }
                    // Who is between is not noticed at all.
                    let returns = if at == At::Between { 0 } else { round };
                    typist.returns == returns && is_over.get()
                })
                .await;
        };
        tokio::join!(restarted, typing);
    }
    let had = typist.output.len();
    typist
        .until("it counts on", |t| {
            t.output.len() - had > 300_000 && t.sent == t.typed.len() as u64
        })
        .await;
    let came = |whole: &[u8]| docker(&["exec", &web, "cat", "/tmp/typed"]).stdout == whole;
    typist
        .until("all that was typed has come, once", |t| came(&t.typed))
        .await;
    docker_says(&["exec", &web, "touch", "/tmp/enough"]);
    assert_eq!(typist.end().await["exit_code"], 0);
    assert!(came(&typist.typed));

    let text = String::from_utf8(typist.output).unwrap();
    let mut lines = text.lines();
    assert_eq!(lines.next_back(), Some("the end"));
    let mut count = 0;
    for line in lines {
        count += 1;
        assert_eq!(line, format!("n{count}"), "every byte, once and in order");
    }
    alone(&web, &own).await;

    // One session, one recording, one row of its end.
    let ended = row_of(&fleet.api, "terminal.end", &given.session).await;
    assert!(ended.detail.contains("the shell ended with 0"), "{ended:?}");
    if at == At::Region {
        let arrived = row_of(&fleet.api, "recording.arrive", &given.session).await;
        assert_eq!(arrived.outcome, "ok", "{arrived:?}");
    }
    assert_eq!(audit(&fleet.api, "terminal.end").await.len(), 1);
    assert!(
        recorded(&fleet, &given.session) == text,
        "all was recorded, once"
    );
}

#[tokio::test]
async fn a_terminal_goes_on_over_its_access_servers_restart_byte_for_byte() {
    let fleet = Fleet::start(Options::docker().terminals_at_regions()).await;
    Box::pin(goes_on_byte_for_byte(fleet, At::Region)).await;
}

#[tokio::test]
async fn a_terminal_goes_on_over_its_controllers_restart_byte_for_byte() {
    let fleet = Fleet::start(Options::docker()).await;
    Box::pin(goes_on_byte_for_byte(fleet, At::Controller)).await;
}

#[tokio::test]
async fn a_relayed_terminal_goes_on_over_the_access_servers_restart_byte_for_byte() {
    let fleet = Fleet::start(Options::docker()).await;
    Box::pin(goes_on_byte_for_byte(fleet, At::Between)).await;
}

/// Input that nobody reads must not keep the host from hearing that it is to hold the terminal, and is neither lost
/// nor doubled.
#[tokio::test]
async fn what_waits_for_a_process_that_reads_late_comes_once() {
    let mut fleet = Fleet::start(Options::docker().terminals_at_regions()).await;
    let names = Names::new();
    let web = names.polite("web");
    let script = "stty raw -echo; echo ready; while [ ! -e /tmp/go ]; do sleep 0.1; done; \
        head -c 1200000 >/tmp/typed; echo read";
    let given = ticket(&fleet.api, &web, &["sh", "-c", script]).await;
    let mut typist = Typist::open(&fleet.api, &given).await;
    typist
        .until("it runs", |t| t.output.starts_with(b"ready"))
        .await;
    let all: String = (100_000..271_429).map(|n| format!("{n} ")).collect();
    typist.type_in(&all);
    // Until all hops are full, the engine's too.
    let began = std::time::Instant::now();
    loop {
        match tokio::time::timeout(Duration::from_secs(2), typist.step()).await {
            Ok(more) => assert!(more, "{:?}", typist.page.ended),
            Err(_) if typist.page.taken >= 100_000 => break,
            Err(_) => assert!(began.elapsed() < SOON, "{} B", typist.page.taken),
        }
    }
    assert!(typist.page.taken < 1_200_000, "{} B", typist.page.taken);
    restart(&mut fleet, At::Region).await;
    typist.until("it is back", |t| t.returns == 1).await;
    docker_says(&["exec", &web, "touch", "/tmp/go"]);
    assert_eq!(typist.end().await["exit_code"], 0);
    let came = docker(&["exec", &web, "cat", "/tmp/typed"]).stdout;
    assert!(came == all.as_bytes()[..1_200_000], "{} B", came.len());
}

#[tokio::test]
async fn s02_s05_a_used_ticket_stays_used_and_what_was_revoked_meanwhile_ends() {
    let mut fleet = Fleet::start(Options::docker().terminals_at_regions()).await;
    let names = Names::new();
    let web = names.polite("web");
    let own = own_processes(&web).await;
    let given = ticket(&fleet.api, &web, &[]).await;
    let mut page = Page::open_there(&fleet.api, &given).await;
    page.type_in("echo f$((1+1))rst; sleep 311\r").await;
    page.until("it runs", |p| p.text().contains("f2rst")).await;
    let body = json!({ "name": "ada", "permissions": ["read", "shell"] });
    let made: Value = fleet.api.post("api-tokens", &body).await.unwrap();
    let ada = fleet.api.with_token(made["token"].as_str().unwrap());
    let hers = ask(&ada, &web, &[]).await.unwrap();
    let mut other = Page::open_there(&ada, &hers).await;
    other.type_in("echo s$((1+1))cond; sleep 312\r").await;
    other
        .until("it runs", |p| p.text().contains("s2cond"))
        .await;

    assert!(fleet.regions[0].process.leave().await.success());
    while page.hear().await {}
    while other.hear().await {}
    assert!(page.ended.is_none() && other.ended.is_none(), "both go on");
    let id = made["id"].as_str().unwrap();
    fleet.api.revoke_api_token(id).await.unwrap();
    let kept = fleet.regions[0].dir.join("terminals.frozen");
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&kept).unwrap());
    assert_eq!(mode & 0o777, 0o600);
    fleet.regions[0].process.start_again();

    let ended = row_of(&fleet.api, "terminal.end", &hers.session).await;
    assert!(ended.detail.contains("unauthenticated"), "{ended:?}");
    assert!(!kept.exists(), "it is for one process");
    let there = given.server.as_deref().unwrap();
    let refused = wait_for("the region lets pages in", SOON, async || {
        Page::try_enter_at(&fleet.api, there, &given.ticket, Some(0)).await
    });
    assert_eq!(refused.await.end().await, "ticket_refused");
    // The first goes on meanwhile, and ends when somebody ends it.
    let open: Vec<Terminal> = fleet.api.get("terminals").await.unwrap();
    assert_eq!(open.len(), 1, "{open:?}");
    assert!(processes(&web).iter().any(|args| args == "sleep 311"));
    let path = format!("terminals/{}", given.session);
    let _: Terminal = fleet.api.delete(&path).await.unwrap();
    alone(&web, &own).await;
}

#[tokio::test]
async fn a_terminal_that_nobody_goes_on_with_leaves_no_process() {
    let options = Options::docker()
        .terminals_at_regions()
        .agent_env("FAIRLEAD_TERMINALS_HELD_S", "15");
    let mut fleet = Fleet::start(options).await;
    let names = Names::new();
    let web = names.polite("web");
    let own = own_processes(&web).await;
    let given = ticket(&fleet.api, &web, &[]).await;
    let mut page = Page::open_there(&fleet.api, &given).await;
    page.type_in("echo r$((1+1))ns; trap '' HUP; sleep 313\r")
        .await;
    page.until("it runs", |p| p.text().contains("r2ns")).await;
    assert!(fleet.regions[0].process.leave().await.success());
    assert!(processes(&web).len() > own.len(), "it is held");
    alone(&web, &own).await;

    // The server comes too late for it: the recording and the audit log say how it ended.
    fleet.regions[0].process.start_again();
    row_of(&fleet.api, "terminal.end", &given.session).await;
    let arrived = row_of(&fleet.api, "recording.arrive", &given.session).await;
    assert_eq!(arrived.outcome, "ok", "{arrived:?}");
    assert!(recorded(&fleet, &given.session).contains("r2ns"));
}

/// Reads the screen until those words are on it.
async fn shows(screen: &mut ChildStdout, all: &mut Vec<u8>, words: &str) {
    let read = async {
        while !String::from_utf8_lossy(all).contains(words) {
            let mut piece = [0; 4096];
            let length = screen.read(&mut piece).await.unwrap();
            assert!(length > 0, "{words}: {:?}", String::from_utf8_lossy(all));
            all.extend_from_slice(&piece[..length]);
        }
    };
    let read = tokio::time::timeout(COMES_BACK_WITHIN, read).await;
    read.unwrap_or_else(|_| panic!("{words} does not come"));
}

#[tokio::test]
async fn fairlead_shell_comes_back_by_itself() {
    let mut fleet = Fleet::start(Options::docker().terminals_at_regions()).await;
    let names = Names::new();
    let web = names.polite("web");
    ticket(&fleet.api, &web, &[]).await;
    let cli = Cli::of(&fleet);
    let mut shell = cli.in_terminal(&format!("shell {web}"));
    let mut keys = shell.stdin.take().unwrap();
    let (mut screen, mut all) = (shell.stdout.take().unwrap(), Vec::new());
    keys.write_all(b"echo b$((1+1))fore\n").await.unwrap();
    shows(&mut screen, &mut all, "b2fore").await;
    restart(&mut fleet, At::Region).await;
    // Typed while its server is away.
    keys.write_all(b"echo a$((1+1))fter\n").await.unwrap();
    shows(&mut screen, &mut all, "a2fter").await;
    keys.write_all(b"exit 5\n").await.unwrap();
    let ended = tokio::time::timeout(SOON, shell.wait()).await.unwrap();
    assert_eq!(ended.unwrap().code(), Some(5));
    let text = String::from_utf8_lossy(&all).into_owned();
    assert_eq!(text.matches("a2fter").count(), 1, "{text}");
}
