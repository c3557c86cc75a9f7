//! A bad line: a relay of the test's own between two of the processes, or between agent and engine, which
//! can do to their bytes what lines do. It delays, stalls, throttles, loses, swallows what is large, cuts, and refuses; it counts
//! who dials. It reads no message and makes none up.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::ports::Port;

/// Read at a time.
const CHUNK_BYTES: usize = 16 * 1024;
/// Chunks on their way in one direction; beyond them the sender's own buffers fill.
const ON_THE_WAY_MAX: usize = 64;
/// What a lost packet costs the ones behind it, at the first loss; doubled with each loss in a row.
const SENT_AGAIN_AFTER: Duration = Duration::from_millis(200);

/// What the line does to all its connections.
#[derive(Debug, Clone, Copy, Default)]
pub struct Weather {
    /// Each direction takes so long.
    pub delay: Duration,
    /// Bytes are taken and kept; they go on when this ends. So do ends of connections.
    pub stalled: bool,
    /// Nobody can connect.
    pub refusing: bool,
    /// No more than that in each direction.
    pub bytes_per_s: Option<u32>,
    /// After the first packet above that size the direction is dead, for as long as the connection lives.
    pub swallows_above: Option<usize>,
    /// Of 100 packets so many are lost, and come later; those behind them wait.
    pub loses_of_100: u8,
}

impl Weather {
    /// Nothing goes through, and nobody is told.
    #[must_use]
    pub fn stalled() -> Self {
        Self {
            stalled: true,
            ..Self::default()
        }
    }

    /// Nobody can connect.
    #[must_use]
    pub fn refusing() -> Self {
        Self {
            refusing: true,
            ..Self::default()
        }
    }

    /// There and back again in that time.
    #[must_use]
    pub fn round_trip(time: Duration) -> Self {
        Self {
            delay: time / 2,
            ..Self::default()
        }
    }
}

/// How connections end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Both ends are reset.
    Reset,
    /// Both ends are closed in order.
    Close,
    /// Nobody is told: a middlebox has forgotten them. New ones work.
    Forgotten,
}

/// A line to one server. Ends with its value, and cuts what is on it then.
#[derive(Debug)]
pub struct Line {
    port: Option<Port>,
    weather: watch::Sender<Weather>,
    cuts: watch::Sender<(u64, Cut)>,
    dials: Arc<Mutex<Vec<Instant>>>,
    _serving: JoinSet<()>,
}

impl Line {
    /// A good line to that address.
    ///
    /// # Panics
    /// When its port cannot be had.
    pub async fn to(target: &str) -> Self {
        let port = Port::claim();
        let route = Route::Tcp {
            at: port.address(),
            target: target.to_owned(),
        };
        Self::by(route, Some(port)).await
    }

    /// A good line to an engine, whose socket seems to be `at`.
    ///
    /// # Panics
    /// When the socket cannot be made.
    pub async fn to_socket(target: &Path, at: &Path) -> Self {
        let route = Route::Unix {
            at: at.to_owned(),
            target: target.to_owned(),
        };
        Self::by(route, None).await
    }

    async fn by(route: Route, port: Option<Port>) -> Self {
        let (weather, weather_seen) = watch::channel(Weather::default());
        let (cuts, cuts_seen) = watch::channel((0, Cut::Close));
        let dials = Arc::<Mutex<Vec<Instant>>>::default();
        let mut serving = JoinSet::new();
        let listener = route.listen().await;
        let relay = Relay {
            route,
            weather: weather_seen,
            cuts: cuts_seen,
            dials: Arc::clone(&dials),
        };
        serving.spawn(relay.serve(listener));
        Self {
            port,
            weather,
            cuts,
            dials,
            _serving: serving,
        }
    }

    /// Where to dial instead of the server.
    ///
    /// # Panics
    /// When it is a line to an engine.
    #[must_use]
    pub fn address(&self) -> String {
        self.port.as_ref().expect("a line of TCP").address()
    }

    /// From now on it is like that.
    pub fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }

    /// From now on it is a good line again.
    pub fn heal(&self) {
        self.set(Weather::default());
    }

    /// Ends all connections that are on it.
    pub fn cut(&self, how: Cut) {
        self.cuts.send_modify(|(number, cut)| {
            *number += 1;
            *cut = how;
        });
    }

    /// How often it was dialled.
    #[must_use]
    pub fn dials(&self) -> usize {
        self.dials
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    /// Most dials within any time of that length.
    #[must_use]
    pub fn most_dials_within(&self, length: Duration) -> usize {
        let dials = self.dials.lock().unwrap_or_else(PoisonError::into_inner);
        let within = |from: Instant| {
            let until = from + length;
            dials
                .iter()
                .filter(|at| **at >= from && **at < until)
                .count()
        };
        dials.iter().map(|from| within(*from)).max().unwrap_or(0)
    }
}

/// From where to where.
#[derive(Debug, Clone)]
enum Route {
    Tcp { at: String, target: String },
    Unix { at: PathBuf, target: PathBuf },
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// One end of a connection.
enum End {
    Tcp(TcpStream),
    Unix(UnixStream),
}

type Reader<'a> = Box<dyn AsyncRead + Send + Unpin + 'a>;
type Writer<'a> = Box<dyn AsyncWrite + Send + Unpin + 'a>;

impl Route {
    /// Nobody else may be there: the port is claimed, the socket is in a directory of the test's own.
    async fn listen(&self) -> Listener {
        match self {
            Self::Tcp { at, .. } => {
                Listener::Tcp(TcpListener::bind(at).await.expect("its own port"))
            }
            Self::Unix { at, .. } => {
                // What an earlier one left behind.
                let _ = std::fs::remove_file(at);
                Listener::Unix(UnixListener::bind(at).expect("its own socket"))
            }
        }
    }

    async fn connect(&self) -> Option<End> {
        match self {
            Self::Tcp { target, .. } => TcpStream::connect(target).await.ok().map(End::Tcp),
            Self::Unix { target, .. } => UnixStream::connect(target).await.ok().map(End::Unix),
        }
    }
}

impl Listener {
    async fn accept(&self) -> std::io::Result<End> {
        match self {
            Self::Tcp(listener) => listener.accept().await.map(|(tcp, _)| End::Tcp(tcp)),
            Self::Unix(listener) => listener.accept().await.map(|(unix, _)| End::Unix(unix)),
        }
    }
}

impl End {
    fn split(&mut self) -> (Reader<'_>, Writer<'_>) {
        match self {
            Self::Tcp(tcp) => {
                let _ = tcp.set_nodelay(true);
                let (reader, writer) = tcp.split();
                (Box::new(reader), Box::new(writer))
            }
            Self::Unix(unix) => {
                let (reader, writer) = unix.split();
                (Box::new(reader), Box::new(writer))
            }
        }
    }

    async fn cut(&mut self, how: Cut) {
        match (how, self) {
            (Cut::Reset, Self::Tcp(tcp)) => drop(tcp.set_zero_linger()),
            (Cut::Close, Self::Tcp(tcp)) => drop(tcp.shutdown().await),
            _ => {}
        }
    }
}

struct Relay {
    route: Route,
    weather: watch::Receiver<Weather>,
    cuts: watch::Receiver<(u64, Cut)>,
    dials: Arc<Mutex<Vec<Instant>>>,
}

impl Relay {
    async fn serve(mut self, listener: Listener) {
        let mut listener = Some(listener);
        let mut connections = JoinSet::new();
        loop {
            let refusing = self.weather.borrow_and_update().refusing;
            if refusing {
                listener = None;
            } else if listener.is_none() {
                listener = Some(self.route.listen().await);
            }
            let accepted = async {
                match &listener {
                    Some(listener) => listener.accept().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = self.weather.changed() => if changed.is_err() { return },
                Ok(near) = accepted => {
                    self.dials.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
                    let (weather, cuts) = (self.weather.clone(), self.cuts.clone());
                    connections.spawn(carry(near, self.route.clone(), weather, cuts));
                }
                Some(_) = connections.join_next() => {}
            }
        }
    }
}

/// One connection, from its dial to its end.
async fn carry(
    mut near: End,
    route: Route,
    weather: watch::Receiver<Weather>,
    mut cuts: watch::Receiver<(u64, Cut)>,
) {
    cuts.mark_unchanged();
    let Some(mut far) = route.connect().await else {
        return;
    };
    let both = async {
        let (near_in, near_out) = near.split();
        let (far_in, far_out) = far.split();
        tokio::join!(
            pass(near_in, far_out, weather.clone()),
            pass(far_in, near_out, weather.clone())
        );
    };
    tokio::select! {
        () = both => return,
        changed = cuts.changed() => if changed.is_err() { return },
    }
    let (_, how) = *cuts.borrow();
    if how == Cut::Forgotten {
        std::future::pending::<()>().await;
    }
    near.cut(how).await;
    far.cut(how).await;
}

/// One direction, until its sender ends it.
async fn pass(mut from: Reader<'_>, mut to: Writer<'_>, mut weather: watch::Receiver<Weather>) {
    let (taken, mut on_the_way) = mpsc::channel(ON_THE_WAY_MAX);
    let take = async move {
        loop {
            let mut chunk = vec![0; CHUNK_BYTES];
            match from.read(&mut chunk).await {
                Ok(length @ 1..) => chunk.truncate(length),
                // However it ended, the other side sees an end.
                Ok(_) | Err(_) => return,
            }
            if taken.send((Instant::now(), chunk)).await.is_err() {
                return;
            }
        }
    };
    let give = async move {
        while let Some((at, chunk)) = on_the_way.recv().await {
            let now = *weather.borrow_and_update();
            if now.swallows_above.is_some_and(|size| chunk.len() > size) {
                std::future::pending::<()>().await;
            }
            sleep_until(at + now.delay + sent_again_after(now.loses_of_100)).await;
            if !passes(&mut weather).await || !write(&mut to, &chunk, now.bytes_per_s).await {
                return;
            }
        }
        // An end is held up like anything else.
        if passes(&mut weather).await {
            let _ = to.shutdown().await;
        }
    };
    tokio::join!(take, give);
}

/// Waits while the line is stalled; `false` when the line is gone.
async fn passes(weather: &mut watch::Receiver<Weather>) -> bool {
    weather.wait_for(|now| !now.stalled).await.is_ok()
}

async fn write(to: &mut Writer<'_>, chunk: &[u8], bytes_per_s: Option<u32>) -> bool {
    let Some(rate) = bytes_per_s else {
        return to.write_all(chunk).await.is_ok();
    };
    // A tenth of a second's worth at a time.
    for piece in chunk.chunks((rate as usize / 10).max(1)) {
        let next = Instant::now() + Duration::from_secs(1) * piece.len() as u32 / rate;
        if to.write_all(piece).await.is_err() {
            return false;
        }
        sleep_until(next).await;
    }
    true
}

fn sent_again_after(loses_of_100: u8) -> Duration {
    let mut wait = Duration::ZERO;
    let mut next = SENT_AGAIN_AFTER;
    // No packet is lost more than eight times in a row: TCP would have given up.
    for _ in 0..8 {
        let [dice] = fairlead_identity::random::bytes::<1>();
        if u32::from(dice) * 100 / 256 >= u32::from(loses_of_100) {
            break;
        }
        wait += next;
        next *= 2;
    }
    wait
}
