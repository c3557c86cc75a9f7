//! A terminal through the whole path, beside `docker exec -it` on the same machine: both are programs on a
//! pseudo-terminal of ours, with the same process in the same container at their far end. `fairlead exec -it`
//! goes through CLI, TLS, the session with its recording, access server and agent to the engine; `docker exec -it`
//! through its CLI to the engine. They take turns. Where `wetty` is installed (`FAIRLEAD_BENCH_WETTY`), it does too.

use std::process::{Child, Command};
use std::time::{Duration, Instant};

use fairlead_agent::pty::Pty;
use fairlead_tests::engine::{Names, docker_says};
use fairlead_tests::fleet::{Fleet, Options};
use fairlead_tests::programs::program;
use fairlead_tests::wait::wait_for;

use crate::figures::Figure;
use crate::measuring::{millis, percentile};

mod wetty;

/// Written by whatever is at the far end when it is ready.
const READY: &str = "READY";
/// Written by it at the end; what is typed never has it.
const END: &[u8] = b"=END=";
/// How long one of them may say nothing.
const SILENT_MAX: Duration = Duration::from_secs(60);
/// What a file for `cat` has.
const CAT_BYTES: usize = 30_000_000;
/// How often it is looked whether a program has gone by itself, 10 ms apart.
const LAST_LOOKS: u32 = 50;
/// As PERFORMANCE's goals: a key's way, what `cat` and line after line bring.
const KEY_GOAL_MS: f64 = 0.8;
const CAT_GOAL_MB_S: f64 = 40.0;
const LINES_GOAL_MB_S: f64 = 6.0;
/// What may be added to the engine's own time until there is a prompt.
const OPEN_GOAL_MS: f64 = 20.0;

/// One way to the container.
enum Way<'a> {
    Engine,
    Fairlead {
        fleet: &'a Fleet,
        home: &'a std::path::Path,
    },
    Wetty(&'a wetty::Wetty),
}

impl Way<'_> {
    /// The program on a pseudo-terminal of ours that goes this way.
    fn command(&self, container: &str) -> Option<Command> {
        let mut command = match self {
            Self::Wetty(_) => return None,
            Self::Engine => {
                let mut command = Command::new("docker");
                command.args(["exec", "-it", container]);
                command
            }
            Self::Fairlead { fleet, home } => {
                let mut command = Command::new(program("fairlead"));
                command
                    .args(["exec", "-it", &format!("box/{container}")])
                    .env("HOME", home)
                    .env("FAIRLEAD_URL", &fleet.api.url)
                    .env("FAIRLEAD_TOKEN", &fleet.api.token)
                    .env("FAIRLEAD_CA", fleet.ca_file());
                command
            }
        };
        command.args(["sh", "-c"]).env("TERM", "xterm");
        Some(command)
    }
}

/// Where it is typed and read.
enum End {
    Pty(Pty, Child),
    Page(wetty::Page),
}

impl End {
    async fn open(way: &Way<'_>, container: &str, script: &str) -> Self {
        if let Way::Wetty(wetty) = way {
            return Self::Page(wetty::Page::open(wetty, script).await);
        }
        let pty = Pty::open(80, 25).expect("a pseudo-terminal");
        let far = || pty.far().expect("its far end");
        let mut command = way.command(container).expect("a program");
        command.arg(script).stdin(far()).stdout(far()).stderr(far());
        let child = command.spawn().expect("the program is here");
        // It has its own of the far end.
        drop(command);
        Self::Pty(pty, child)
    }

    async fn read(&mut self) -> Vec<u8> {
        match self {
            Self::Pty(pty, _) => pty.read().await.expect("the terminal is there"),
            Self::Page(page) => page.read().await,
        }
    }

    async fn write(&mut self, bytes: &[u8]) {
        match self {
            Self::Pty(pty, _) => pty.write(bytes).await.expect("it is typed"),
            Self::Page(page) => page.write(bytes).await,
        }
    }

    async fn close(self) {
        match self {
            Self::Page(page) => page.close().await,
            Self::Pty(pty, mut child) => {
                pty.write(b"\n").await.expect("it is typed");
                let gone = tokio::task::spawn_blocking(move || {
                    // What waits for a line has ended by then; an echo has to be ended.
                    for _ in 0..LAST_LOOKS {
                        if matches!(child.try_wait(), Ok(Some(_))) {
                            break;
                        }
                        std::thread::sleep(Duration::from_millis(10));
                    }
                    drop(pty);
                    let _ = child.kill();
                    child.wait()
                });
                let ended = tokio::time::timeout(SILENT_MAX, gone).await;
                ended.expect("it ends").expect("a thread").expect("an end");
            }
        }
    }
}

/// One terminal.
struct Line {
    end: End,
    seen: Vec<u8>,
}

impl Line {
    /// Starts it; ready when the far end is.
    async fn open(way: &Way<'_>, container: &str, script: &str) -> (Self, f64) {
        let began = Instant::now();
        let end = End::open(way, container, script).await;
        let mut line = Self {
            end,
            seen: Vec::new(),
        };
        line.until(READY.as_bytes()).await;
        (line, millis(began.elapsed()))
    }

    async fn read(&mut self) -> Vec<u8> {
        let read = tokio::time::timeout(SILENT_MAX, self.end.read());
        read.await.expect("it goes on")
    }

    /// Reads until that has come; how many bytes came.
    async fn until(&mut self, what: &[u8]) -> usize {
        let mut came = 0;
        loop {
            if let Some(at) = self.seen.windows(what.len()).position(|part| part == what) {
                self.seen.drain(..at + what.len());
                return came;
            }
            // Only an end that is still to be completed is kept.
            let kept = self.seen.len().min(what.len() - 1);
            self.seen.drain(..self.seen.len() - kept);
            let piece = self.read().await;
            came += piece.len();
            self.seen.extend(piece);
        }
    }

    /// One key, until it is back.
    async fn key(&mut self, key: u8) -> f64 {
        let began = Instant::now();
        self.end.write(&[key]).await;
        self.until(&[key]).await;
        millis(began.elapsed())
    }

    /// What comes from a word of ours to its end, MB/s.
    async fn flood(&mut self) -> f64 {
        let began = Instant::now();
        self.end.write(b"\n").await;
        let came = self.until(END).await;
        came as f64 / 1e6 / began.elapsed().as_secs_f64()
    }

    async fn close(self) {
        self.end.close().await;
    }
}

#[derive(Default)]
struct Series {
    open: Vec<f64>,
    keys: Vec<f64>,
    cat: Vec<f64>,
    lines: Vec<f64>,
}

async fn measured(way: &Way<'_>, container: &str, keys: usize, into: &mut Series) {
    let echo = format!("stty raw -echo; echo {READY}; exec cat");
    let (mut line, opened) = Line::open(way, container, &echo).await;
    into.open.push(opened);
    for number in 0..keys {
        // Never a control character, and never the same twice in a row.
        let key = b'a' + u8::try_from(number % 26).unwrap_or(0);
        into.keys.push(line.key(key).await);
    }
    line.close().await;
    let floods = [
        ("cat /tmp/flood", &mut into.cat),
        ("seq 1 400000", &mut into.lines),
    ];
    for (what, series) in floods {
        let script = format!(
            "stty -echo -opost; echo {READY}; read -r x; {what}; printf '=EN''D='; read -r x"
        );
        let (mut line, _) = Line::open(way, container, &script).await;
        series.push(line.flood().await);
        line.close().await;
    }
}

fn figures(through: &Series, engine: &Series, where_: &str) -> Vec<Figure> {
    const FLOOR: &str = "docker exec -it";
    let figure = |what: &str, pick: fn(&Series) -> &Vec<f64>, share, unit| {
        let value = percentile(pick(through), share);
        Figure::new("terminal", format!("{what}, {where_}"), value, unit)
            .floor(percentile(pick(engine), share), FLOOR)
    };
    let open_floor = percentile(&engine.open, 0.5);
    vec![
        figure("open, p50", |s| &s.open, 0.5, "ms").at_most(open_floor + OPEN_GOAL_MS),
        figure("a key comes back, p50", |s| &s.keys, 0.5, "ms").at_most(KEY_GOAL_MS),
        figure("a key comes back, p99", |s| &s.keys, 0.99, "ms"),
        figure("cat of 30 MB, p50", |s| &s.cat, 0.5, "MB/s").at_least(CAT_GOAL_MB_S),
        figure("line after line (seq), p50", |s| &s.lines, 0.5, "MB/s").at_least(LINES_GOAL_MB_S),
    ]
}

/// Measures.
///
/// # Panics
/// When something fails.
pub async fn measure(rounds: usize, keys: usize) -> Vec<Figure> {
    let names = Names::new();
    let script = "trap 'exit 0' TERM; sleep 3600 & wait";
    let container = names.by_hand("term", &["--network", "none"], &["sh", "-c", script]);
    let make = format!(
        "yes 'a line of sixty-three characters, as a log of a program may be.' | head -c {CAT_BYTES} > /tmp/flood"
    );
    docker_says(&["exec", &container, "sh", "-c", &make]);
    let home = tempfile::tempdir().expect("a directory");
    let centre = Fleet::start(Options::docker()).await;
    let region = Fleet::start(Options::docker().terminals_at_regions()).await;
    for fleet in [&centre, &region] {
        wait_for("the container is known", SILENT_MAX, async || {
            let known = fleet
                .api
                .containers("box")
                .await
                .map_err(|no| no.to_string())?;
            let found = known.iter().any(|known| known.name == container);
            found.then_some(()).ok_or("not yet".to_owned())
        })
        .await;
    }
    let (mut engine, mut at_region, mut through) =
        (Series::default(), Series::default(), Series::default());
    let (peer, mut through_peer) = (wetty::Wetty::start(&container).await, Series::default());
    for _ in 0..rounds {
        measured(&Way::Engine, &container, keys, &mut engine).await;
        let way = Way::Fairlead {
            fleet: &region,
            home: home.path(),
        };
        measured(&way, &container, keys, &mut at_region).await;
        let way = Way::Fairlead {
            fleet: &centre,
            home: home.path(),
        };
        measured(&way, &container, keys, &mut through).await;
        if let Some(peer) = &peer {
            measured(&Way::Wetty(peer), &container, keys, &mut through_peer).await;
        }
    }
    let mut all = figures(&at_region, &engine, "at the region");
    all.extend(figures(&through, &engine, "through the controller"));
    if peer.is_some() {
        let peers = figures(&through_peer, &engine, "of the peer wetty");
        all.extend(peers.into_iter().map(Figure::without_goal));
    }
    all
}
