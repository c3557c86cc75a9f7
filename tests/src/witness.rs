//! Collects the history of a run, for the oracle: listens to the engine, reads the stores and journals
//! of all sides. Changes nothing but a container of its own that marks the end.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fairlead_api::types::Command;
use fairlead_protocol::{
    CommandId, CommandResult, JournalRecord, Message, Stamp, State, journal_record::Kind,
};

use crate::engine::{IMAGE, Names, docker_says, field, seen_from_here, socket};
use crate::oracle::history::{Effect, Presence, Record, What};
use crate::wait::wait_for;

/// Written before a command's id in the words of an exec, so that the engine's record names it.
pub const MARK: &str = "fairlead-mark:";
/// Digits of a command's id.
const ID_LENGTH: usize = 26;
/// How long the engine may take to tell its last event.
const TOLD_WITHIN: Duration = Duration::from_secs(60);

/// An engine that is away is asked again after this.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(100);
/// More events than an engine tells in a second.
const LAST_ONES: usize = 4_096;

/// Microseconds since 1970.
#[must_use]
pub fn now_us() -> i64 {
    jiff::Timestamp::now().as_microsecond()
}

/// Listens to the engine from its making on.
#[derive(Debug)]
pub struct Witness {
    told: Arc<Mutex<Vec<Effect>>>,
}

impl Default for Witness {
    fn default() -> Self {
        Self::listen()
    }
}

impl Witness {
    /// Begins to listen. Ends with this process.
    ///
    /// # Panics
    /// When there is no engine.
    #[must_use]
    pub fn listen() -> Self {
        let since_us = now_us();
        let mut socket = events_since(since_us).expect("the engine takes the question");
        let told = Arc::new(Mutex::new(Vec::new()));
        let telling = Arc::clone(&told);
        std::thread::spawn(move || {
            let mut execs = HashMap::new();
            // Events of one moment do not come in the order of their stamps, so only the newest stamp is kept
            // to ask again from, and none is left out for being older than another.
            let mut newest_us = since_us;
            let mut asked_again_from_us = i64::MAX;
            loop {
                for line in BufReader::new(socket).lines().map_while(Result::ok) {
                    let effect = parse(&line, &mut execs);
                    if let Some(effect) = effect.filter(|effect| effect.at_us >= since_us) {
                        newest_us = newest_us.max(effect.at_us);
                        let mut told = telling.lock().unwrap_or_else(PoisonError::into_inner);
                        let again = effect.at_us >= asked_again_from_us
                            && told.iter().rev().take(LAST_ONES).any(|one| *one == effect);
                        if !again {
                            told.push(effect);
                        }
                    }
                }
                // The engine was restarted. It tells whole seconds, so the last one comes again.
                asked_again_from_us = newest_us - newest_us % 1_000_000;
                socket = loop {
                    match events_since(newest_us) {
                        Ok(socket) => break socket,
                        Err(_) => std::thread::sleep(ASK_AGAIN_AFTER),
                    }
                };
            }
        });
        Self { told }
    }

    /// All that the engine has shown of containers whose name begins so, up to now.
    ///
    /// # Panics
    /// When it does not tell in time.
    pub async fn effects(&self, names: &Names, prefix: &str) -> Vec<Effect> {
        // Events come in order: when this one has come, all before it have.
        let last = names.name("the-end");
        docker_says(&["create", "--name", &last, IMAGE]);
        docker_says(&["rm", &last]);
        wait_for("the engine's last event", TOLD_WITHIN, async || {
            let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            let end = |effect: &Effect| effect.container == last && effect.what == What::Destroy;
            if !told.iter().any(end) {
                return Err(format!("{} events", told.len()));
            }
            let of_test =
                |effect: &&Effect| effect.container.starts_with(prefix) && effect.container != last;
            let mut effects: Vec<Effect> = told.iter().filter(of_test).cloned().collect();
            effects.sort_by_key(|effect| effect.at_us);
            Ok(effects)
        })
        .await
    }
}

fn events_since(from_us: i64) -> std::io::Result<UnixStream> {
    let mut socket = UnixStream::connect(socket())?;
    let since = from_us / 1_000_000;
    // HTTP/1.0, so that the answer comes without chunks.
    let filters = "%7B%22type%22%3A%5B%22container%22%5D%7D";
    write!(
        socket,
        "GET /events?since={since}&filters={filters} HTTP/1.0\r\n\r\n"
    )?;
    Ok(socket)
}

fn parse(line: &str, execs: &mut HashMap<String, String>) -> Option<Effect> {
    let event: serde_json::Value = serde_json::from_str(line).ok()?;
    let attributes = &event["Actor"]["Attributes"];
    let text = |key: &str| attributes[key].as_str().unwrap_or_default().to_owned();
    let action = event["Action"].as_str()?;
    let what = match action.split_once(": ").map_or(action, |(word, _)| word) {
        "create" => What::Create(text("fairlead.command")),
        "start" => What::Start,
        "die" => What::Die,
        "stop" => What::Stop,
        "restart" => What::Restart,
        "destroy" => What::Destroy,
        "kill" => What::Kill(text("signal").parse().ok()?),
        "exec_start" => {
            let at = action.find(MARK)? + MARK.len();
            let id = action.get(at..at + ID_LENGTH)?.to_owned();
            execs.insert(text("execID"), id.clone());
            What::ExecStart(id)
        }
        "exec_die" => {
            let id = execs.get(&text("execID"))?.clone();
            What::ExecDie(id, text("exitCode").parse().ok()?)
        }
        _ => return None,
    };
    Some(Effect {
        at_us: event["timeNano"].as_i64()? / 1000,
        container: text("name"),
        what,
    })
}

/// How a container is there, by the engine's own description.
#[must_use]
pub fn presence(container: &str) -> Presence {
    match field(container, "{{.State.Running}}").as_deref() {
        None => Presence::Absent,
        Some("true") => Presence::Running,
        Some(_) => Presence::Stopped,
    }
}

/// How often each command's id is in files of marks of the engine's machine, one id to a line.
#[must_use]
pub fn marks(files: &[PathBuf]) -> BTreeMap<String, usize> {
    let mut marks = BTreeMap::new();
    for file in files {
        let text = std::fs::read_to_string(seen_from_here(file)).unwrap_or_default();
        for line in text.lines() {
            *marks.entry(line.trim().to_owned()).or_default() += 1;
        }
    }
    marks
}

/// A command as the API tells it.
#[must_use]
pub fn told_by_api(command: &Command) -> Record {
    let stamps = command.timeline.iter();
    Record {
        by: "controller".to_owned(),
        read_us: now_us(),
        id: command.id.clone(),
        state: command.state.clone(),
        code: command.code.clone(),
        exit_code: command.exit_code.map(i64::from),
        finished_us: command.finished_at.map(|at| at.as_microsecond()),
        stamps: stamps
            .map(|stamp| (stamp.stage.clone(), stamp.at.as_microsecond()))
            .collect(),
    }
}

fn named(stamps: &[Stamp]) -> Vec<(String, i64)> {
    let named = stamps.iter();
    named
        .map(|stamp| (stamp.stage().name().to_owned(), stamp.at_us))
        .collect()
}

/// What a store (`controller.db` or `ledger.db`) has on record, and in which order it took it in.
///
/// # Panics
/// When it cannot be read.
#[must_use]
pub fn told_by_store(by: &str, path: &Path) -> (Vec<Record>, Vec<String>) {
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_WRITE;
    let database = rusqlite::Connection::open_with_flags(path, flags).expect("a store");
    database
        .busy_timeout(Duration::from_secs(10))
        .expect("a time to wait");
    let mut statement = database
        .prepare(
            "SELECT id, state, code, exit_code, finished_us, stamps FROM commands ORDER BY place",
        )
        .expect("the table of commands");
    let read_us = now_us();
    let rows = statement
        .query_map([], |row| {
            let finished_us: i64 = row.get(4)?;
            let stamps: Vec<u8> = row.get(5)?;
            let stamps = CommandResult::decode(&stamps[..])
                .unwrap_or_default()
                .stamps;
            Ok(Record {
                by: by.to_owned(),
                read_us,
                id: CommandId::from_bytes(row.get(0)?).to_string(),
                state: row.get(1)?,
                code: row.get(2)?,
                exit_code: row.get(3)?,
                finished_us: (finished_us != 0).then_some(finished_us),
                stamps: named(&stamps),
            })
        })
        .expect("the table of commands");
    let records: Vec<Record> = rows.map(|row| row.expect("a command")).collect();
    let order = records.iter().map(|record| record.id.clone()).collect();
    (records, order)
}

/// What an agent's journals have on record: results, and of what has begun that it has.
#[must_use]
pub fn told_by_journals(paths: &[PathBuf]) -> Vec<Record> {
    let read_us = now_us();
    let mut records: BTreeMap<String, Record> = BTreeMap::new();
    for bytes in paths.iter().filter_map(|path| std::fs::read(path).ok()) {
        let mut rest = &bytes[..];
        while let Some((record, after)) = next_record(rest) {
            rest = after;
            let Some(Kind::Result(result)) = record.kind else {
                continue;
            };
            let Ok(id) = CommandId::from_wire(&result.command) else {
                continue;
            };
            let state = State::try_from(result.state).unwrap_or(State::Unspecified);
            let told = Record {
                by: "host".to_owned(),
                read_us,
                id: id.to_string(),
                state: state.name().to_owned(),
                code: result.code.clone(),
                exit_code: Some(i64::from(result.exit_code)),
                finished_us: None,
                stamps: named(&result.stamps),
            };
            records.insert(id.to_string(), told);
        }
    }
    records.into_values().collect()
}

/// `length u32 | crc32 u32 | protobuf`; a torn tail ends the file.
fn next_record(bytes: &[u8]) -> Option<(JournalRecord, &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (checksum, rest) = rest.split_first_chunk::<4>()?;
    let (payload, after) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    let whole = crc32fast::hash(payload) == u32::from_le_bytes(*checksum);
    let record = JournalRecord::decode(payload).ok()?;
    whole.then_some((record, after))
}
