//! A stream of mixed commands from several clients, and the history of what became of them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fairlead_api::types::{Action, Command, CommandRequest};
use fairlead_tests::client::{Api, new_id, request};
use fairlead_tests::engine::{self, Names};
use fairlead_tests::fleet::Fleet;
use fairlead_tests::oracle::history::{Act, Asked, History, Presence, Record};
use fairlead_tests::wait::{moment, wait_for};
use fairlead_tests::witness::{self, MARK, Witness, now_us};
use tokio::task::JoinSet;

const CLIENTS: usize = 4;
/// Commands that a client has under way at a time.
const OPEN_MAX: usize = 4;
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(90);
/// Instances reckon server time from their own hello, which may have waited on a busy machine.
pub(crate) const STAMPS_APART_US: i64 = 500_000;

/// How much of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) commands: usize,
    /// Of the stop that is under way at each kill.
    pub(crate) grace_s: u32,
    /// How long the process runs that is under way at each kill.
    pub(crate) process_s: u32,
    /// What has no end after so long is given up: the oracle says that it is lost.
    pub(crate) patience: Duration,
}

/// Small and repeatable.
#[derive(Debug, Clone)]
pub(crate) struct Dice {
    pub(crate) seed: u64,
    state: u64,
}

impl Dice {
    pub(crate) fn seeded() -> Self {
        let seed = std::env::var("FAIRLEAD_TEST_SEED")
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or_else(|| u64::from_le_bytes(fairlead_identity::random::bytes()) | 1);
        println!("FAIRLEAD_TEST_SEED={seed}");
        Self { seed, state: seed }
    }

    pub(crate) fn split(&mut self) -> Self {
        let state = self.roll(u64::MAX) | 1;
        Self {
            seed: self.seed,
            state,
        }
    }

    pub(crate) fn roll(&mut self, sides: u64) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state % sides
    }

    pub(crate) fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.roll(of.len() as u64) as usize]
    }
}

/// The containers, by what is done to them.
#[derive(Debug)]
pub(crate) struct Boxes {
    names: Names,
    /// End at once when asked to; with their ids.
    polite: Vec<(String, String)>,
    /// Never end before their grace is over.
    deaf: Vec<String>,
    /// The same, for the kills' own stops.
    pub(crate) slow: Vec<String>,
    /// Run all the time; processes run in them.
    pub(crate) still: Vec<String>,
    /// Made and removed.
    slots: Vec<String>,
    /// Where queues are made.
    pub(crate) queue: String,
    marks: PathBuf,
}

impl Boxes {
    fn make(marks: PathBuf) -> Self {
        std::fs::create_dir_all(&marks).unwrap();
        let names = Names::new();
        let mount = format!("{}:/marks", marks.display());
        let polite_script = "trap 'exit 0' TERM; while :; do sleep 3600 & wait; done";
        let make = |what: String, command: &[&str]| {
            names.by_hand(&what, &["--stop-timeout", "1", "-v", &mount], command)
        };
        let polite = |what: String| make(what, &["sh", "-c", polite_script]);
        let deaf = |what: String| make(what, &["sleep", "36000"]);
        Self {
            polite: (0..4)
                .map(|n| polite(format!("polite{n}")))
                .map(|name| (engine::id(&name), name))
                .map(|(id, name)| (name, id))
                .collect(),
            deaf: (0..2).map(|n| deaf(format!("deaf{n}"))).collect(),
            slow: (0..2).map(|n| deaf(format!("slow{n}"))).collect(),
            still: (0..2).map(|n| deaf(format!("still{n}"))).collect(),
            slots: (0..3).map(|n| names.name(&format!("slot{n}"))).collect(),
            queue: polite("queue".to_owned()),
            names,
            marks,
        }
    }

    fn all(&self) -> Vec<String> {
        let polite = self.polite.iter().map(|(name, _)| name);
        let others = [&self.deaf, &self.slow, &self.still, &self.slots];
        let others = others.into_iter().flatten();
        let all = polite.chain(others).chain([&self.queue]);
        all.cloned().collect()
    }

    fn presence(&self) -> BTreeMap<String, Presence> {
        let all = self.all().into_iter();
        all.map(|name| (name.clone(), witness::presence(&name)))
            .collect()
    }
}

/// What was asked and seen; shared by all clients.
#[derive(Debug, Default)]
struct Book {
    asked: Vec<Asked>,
    records: Vec<Record>,
}

/// One who asks.
pub(crate) struct Asker {
    client: usize,
    api: Api,
    book: Arc<Mutex<Book>>,
}

impl Asker {
    /// Asks under an id of its own until it is acknowledged; its id. `seconds` is the grace of a stop
    /// or restart, and how long a process runs.
    pub(crate) async fn ask(&mut self, container: &str, act: Act, seconds: u32) -> String {
        self.ask_as(container, container, act, seconds, None).await
    }

    /// The same by another of its names, or with a deadline of its own.
    pub(crate) async fn ask_as(
        &mut self,
        container: &str,
        named: &str,
        act: Act,
        seconds: u32,
        deadline_s: Option<u64>,
    ) -> String {
        let id = new_id();
        let asked = CommandRequest {
            id: Some(id.clone()),
            deadline_s,
            ..request("box", action(&id, named, &act, seconds))
        };
        let place = {
            let mut book = self.book.lock().unwrap();
            book.asked.push(Asked {
                id: id.clone(),
                client: self.client,
                container: container.to_owned(),
                act,
                asked_us: now_us(),
                acked_us: None,
                not_after_us: None,
            });
            book.asked.len() - 1
        };
        let command = self.insist(&asked).await;
        {
            let mut book = self.book.lock().unwrap();
            book.asked[place].acked_us = Some(now_us());
            book.asked[place].not_after_us = Some(command.not_after.as_microsecond());
        }
        self.saw(&command);
        id
    }

    async fn insist(&self, asked: &CommandRequest) -> Command {
        let began = Instant::now();
        loop {
            match self.api.submit(asked, Duration::ZERO).await {
                Ok(command) => return command,
                Err(no) => {
                    let late = began.elapsed() > ACKNOWLEDGED_WITHIN;
                    assert!(!late, "never acknowledged: {no}, {asked:?}");
                    moment(20).await;
                }
            }
        }
    }

    fn saw(&self, command: &Command) {
        if command.is_final && command.code == "engine_error" {
            println!("the engine said: {}", command.message);
        }
        let record = witness::told_by_api(command);
        self.book.lock().unwrap().records.push(record);
    }

    async fn cancel(&self, id: &str) {
        // It may have begun, or the controller may be away: the end says which.
        let _ = self.api.cancel(id).await;
    }

    /// Until it has an end or the patience is over, or it is at least under way where that will do.
    pub(crate) async fn sees(&self, id: &str, or_running: bool, patience: Duration) {
        let began = Instant::now();
        while began.elapsed() < patience {
            let path = format!("commands/{id}?wait_ms={}", if or_running { 0 } else { 500 });
            match self.api.get::<Command>(&path).await {
                Ok(command) if command.is_final => return self.saw(&command),
                Ok(command) if or_running && command.state == "running" => return,
                Ok(_) | Err(_) => moment(20).await,
            }
        }
    }
}

fn action(id: &str, container: &str, act: &Act, seconds: u32) -> Action {
    let container = container.to_owned();
    match act {
        Act::Run => {
            let spec = crate::acts::spec(&container, &["sleep", "36000"]);
            crate::acts::run(fairlead_api::types::ContainerSpec {
                stop_timeout_s: 1,
                ..spec
            })
        }
        Act::Start => Action::Start { container },
        Act::Stop => Action::Stop {
            container,
            grace_s: Some(seconds),
            signal: String::new(),
        },
        Act::Restart => Action::Restart {
            container,
            grace_s: Some(seconds),
            signal: String::new(),
        },
        Act::Kill { signal, .. } => crate::acts::kill(&container, &signal.to_string()),
        Act::Remove => crate::acts::remove(&container, true),
        Act::Exec => {
            let script = format!("echo {id} >> /marks/all; sleep {seconds}");
            crate::acts::exec(&container, &["sh", "-c", &script, &format!("{MARK}{id}")])
        }
    }
}

/// The stream.
pub(crate) struct Stream {
    pub(crate) api: Api,
    pub(crate) boxes: Arc<Boxes>,
    size: Size,
    book: Arc<Mutex<Book>>,
    witness: Witness,
    before: BTreeMap<String, Presence>,
    clients: Mutex<JoinSet<()>>,
    asked: Arc<AtomicUsize>,
}

impl Stream {
    /// Makes the containers and lets the clients begin.
    pub(crate) fn begin(fleet: &Fleet, size: Size, dice: &mut Dice) -> Self {
        Self::begin_with(fleet, size, dice, choose)
    }

    /// The same with processes in containers that run all the time, and nothing else: no container changes.
    pub(crate) fn begin_processes(fleet: &Fleet, size: Size, dice: &mut Dice) -> Self {
        Self::begin_with(fleet, size, dice, choose_process)
    }

    fn begin_with(fleet: &Fleet, size: Size, dice: &mut Dice, choice: Choice) -> Self {
        let boxes = Arc::new(Boxes::make(fleet.dir().join("marks")));
        let before = boxes.presence();
        let stream = Self {
            api: fleet.api.clone(),
            size,
            before,
            witness: Witness::listen(),
            boxes,
            book: Arc::default(),
            clients: Mutex::new(JoinSet::new()),
            asked: Arc::default(),
        };
        for client in 0..CLIENTS {
            let asker = stream.asker(client);
            let (boxes, asked) = (Arc::clone(&stream.boxes), Arc::clone(&stream.asked));
            let work = client_of(asker, boxes, dice.split(), asked, size, choice);
            stream.clients.lock().unwrap().spawn(work);
        }
        stream
    }

    pub(crate) fn asker(&self, client: usize) -> Asker {
        Asker {
            client,
            api: self.api.clone(),
            book: Arc::clone(&self.book),
        }
    }

    /// Whether the clients have asked all that they had to ask.
    pub(crate) fn is_over(&self) -> bool {
        self.asked.load(Ordering::SeqCst) >= self.size.commands
    }

    /// What the clients have asked so far.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    /// The clients ask no more, once they have asked so many: how many a machine takes in a given time is not known.
    pub(crate) async fn is_enough(&self, least: usize) {
        wait_for("enough is asked", self.size.patience, async || {
            let asked = self.asked();
            (asked >= least).then_some(()).ok_or(format!("{asked}"))
        })
        .await;
        self.asked.store(self.size.commands, Ordering::SeqCst);
    }

    /// Waits for all ends, kills everything once more, and collects what everybody has on record
    /// before and after.
    pub(crate) async fn end(&self, fleet: &mut Fleet) -> History {
        let mut clients = std::mem::take(&mut *self.clients.lock().unwrap());
        while let Some(ended) = clients.join_next().await {
            ended.expect("no client fails");
        }
        let settled = self.settled(fleet).await;
        let mut history = History {
            before: self.before.clone(),
            stamps_apart_us: STAMPS_APART_US,
            ..History::default()
        };
        self.read(fleet, &mut history).await;
        if settled {
            fleet.controller.kill();
            fleet.regions[0].process.start_again();
            fleet.controller.start_again();
            fleet.hosts[0].kill_agent().await;
            fleet.all_online().await;
            self.read(fleet, &mut history).await;
        }
        history.effects = self
            .witness
            .effects(&self.boxes.names, &self.boxes.names.name(""))
            .await;
        history.after = self.boxes.presence();
        history.marks = witness::marks(&[self.boxes.marks.join("all")]);
        let mut book = self.book.lock().unwrap();
        history.asked = std::mem::take(&mut book.asked);
        let mut records = std::mem::take(&mut book.records);
        records.append(&mut history.records);
        history.records = records;
        history
    }

    /// Until nothing is open at the controller and in the region, or the time is over: what is open
    /// then is lost, and the oracle says so.
    async fn settled(&self, fleet: &Fleet) -> bool {
        let began = Instant::now();
        loop {
            let open = stores(fleet)
                .iter()
                .flat_map(|(by, path)| witness::told_by_store(by, path).0)
                .filter(|record| !record.is_final())
                .count();
            if open == 0 || began.elapsed() > self.size.patience {
                return open == 0;
            }
            moment(200).await;
        }
    }

    async fn read(&self, fleet: &Fleet, history: &mut History) {
        for (by, path) in stores(fleet) {
            let (records, order) = witness::told_by_store(by, &path);
            history.records.extend(records);
            history.orders.insert(by.to_owned(), order);
        }
        let journals = fleet.hosts[0].journals();
        history.records.extend(witness::told_by_journals(&journals));
        let asked: Vec<String> = {
            let book = self.book.lock().unwrap();
            book.asked.iter().map(|asked| asked.id.clone()).collect()
        };
        for id in asked {
            match self.api.command(&id).await {
                Ok(command) => history.records.push(witness::told_by_api(&command)),
                Err(no) if no.code == "command_not_found" => history.records.push(Record {
                    by: "controller".to_owned(),
                    read_us: now_us(),
                    id,
                    state: "absent".to_owned(),
                    code: String::new(),
                    exit_code: None,
                    finished_us: None,
                    stamps: Vec::new(),
                }),
                Err(no) => panic!("the controller does not tell: {no}"),
            }
        }
    }
}

fn stores(fleet: &Fleet) -> [(&'static str, PathBuf); 2] {
    [
        ("controller", fleet.dir().join("controller/controller.db")),
        ("region", fleet.regions[0].dir.join("ledger.db")),
    ]
}

async fn client_of(
    mut asker: Asker,
    boxes: Arc<Boxes>,
    mut dice: Dice,
    asked: Arc<AtomicUsize>,
    size: Size,
    choice: Choice,
) {
    let mut open: Vec<String> = Vec::new();
    while asked.fetch_add(1, Ordering::SeqCst) < size.commands {
        let (container, named, act, seconds) = choice(&boxes, &mut dice);
        let deadline_s = (dice.roll(12) == 0).then(|| 1 + dice.roll(3));
        let id = asker
            .ask_as(&container, &named, act, seconds, deadline_s)
            .await;
        if dice.roll(20) == 0 {
            asker.cancel(&id).await;
        }
        open.push(id);
        if open.len() >= OPEN_MAX {
            let oldest = open.remove(0);
            asker.sees(&oldest, false, size.patience).await;
        }
        moment(dice.roll(120)).await;
    }
    for id in open {
        asker.sees(&id, false, size.patience).await;
    }
}

/// What a client asks next: container, how it is named, act, seconds.
type Choice = fn(&Boxes, &mut Dice) -> (String, String, Act, u32);

fn choose_process(boxes: &Boxes, dice: &mut Dice) -> (String, String, Act, u32) {
    let name = dice.pick(&boxes.still).clone();
    (name.clone(), name, Act::Exec, dice.roll(2) as u32)
}

fn choose(boxes: &Boxes, dice: &mut Dice) -> (String, String, Act, u32) {
    const USR1: Act = Act::Kill {
        signal: 10,
        ends: false,
    };
    const KILL: Act = Act::Kill {
        signal: 9,
        ends: true,
    };
    match dice.roll(12) {
        0..5 => {
            let (name, id) = dice.pick(&boxes.polite).clone();
            let named = if dice.roll(8) == 0 { id } else { name.clone() };
            let act = match dice.roll(20) {
                0..7 => Act::Restart,
                7..10 => Act::Start,
                10..14 => Act::Stop,
                14..16 => KILL,
                16 => USR1,
                _ => Act::Exec,
            };
            (name, named, act, 1)
        }
        5..7 => {
            let name = dice.pick(&boxes.deaf).clone();
            let act = match dice.roll(10) {
                0..4 => Act::Stop,
                4..7 => Act::Start,
                7..9 => KILL,
                _ => Act::Restart,
            };
            (name.clone(), name, act, 1 + dice.roll(2) as u32)
        }
        7..10 => {
            let name = dice.pick(&boxes.still).clone();
            (name.clone(), name, Act::Exec, dice.roll(2) as u32)
        }
        _ => {
            let name = dice.pick(&boxes.slots).clone();
            let act = match dice.roll(10) {
                0..5 => Act::Run,
                5..8 => Act::Remove,
                _ => Act::Restart,
            };
            (name.clone(), name, act, 1)
        }
    }
}

/// How many commands ended how.
pub(crate) fn count_ends(history: &History) -> BTreeMap<String, usize> {
    let mut ends = BTreeMap::new();
    for asked in &history.asked {
        let end = history.end_of(&asked.id);
        let end = end.map_or_else(
            || "no end".to_owned(),
            |end| format!("{} {}", end.state, end.code).trim().to_owned(),
        );
        *ends.entry(end).or_default() += 1;
    }
    ends
}
