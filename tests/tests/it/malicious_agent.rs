//! P9: a hostile agent, with the real certificate of a host, costs bounded memory and slows nobody else.
//!
//! Holds: SECURITY S13, S24, S26, S28 (against one's own agents); issue 4 (floods, oversized and nested
//! messages, lies about its id, streams that are not its own, never reads, one byte a second).

use std::time::{Duration, Instant};

use bytes::Bytes;
use fairlead_api::types::Action;
use fairlead_identity::authority::PrivateKey;
use fairlead_identity::random;
use fairlead_identity::tls::Expected;
use fairlead_link::socket::Socket;
use fairlead_protocol::stream::{Channel, frame};
use fairlead_protocol::version::paths;
use fairlead_protocol::{
    CancelRefused, Command, CommandId, CommandResult, Container, HostEvent, InventoryPart,
    LinkDown, LinkUp, Message, MetricsPart, OpenStream, Progress, RenewRequest, Restart,
    ResultPart, State, StreamId, StreamRefused, command, limits, link_down, link_up,
};
use fairlead_tests::client::{Api, request};
use fairlead_tests::fleet::{Fleet, Options};
use fairlead_tests::lateness::Lateness;
use fairlead_tests::line::{Line, Weather};
use fairlead_tests::process::is_alive;
use fairlead_tests::stream::Stream;
use fairlead_tests::wait::moment;
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;

use crate::acts::{exec, run_simulated};
use crate::hostile::{Stolen, verdict};

const SOON: Duration = Duration::from_secs(20);
/// What the access server, and the controller behind it, may grow by, whatever one host says.
const GROWTH_MAX_KB: u64 = 64 * 1024;
/// Round trips measured during each attack.
const ROUND_TRIPS: usize = 60;

/// Resident memory.
pub(crate) fn rss_kb(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    number.unwrap().parse().unwrap()
}

/// Half of them took no longer, and 95 of a hundred: of so few as are made here the slowest one tells how slow the
/// machine's disk can be.
fn percentiles(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort();
    (times[times.len() / 2], times[times.len() * 95 / 100])
}

/// The other agent's round trips: through API, region, agent and back, with all syncs.
async fn round_trips(api: &Api, count: usize) -> Vec<Duration> {
    let mut times = Vec::new();
    for _ in 0..count {
        let asked = Instant::now();
        let command = api
            .submit(&request("box", Action::Ping {}), SOON)
            .await
            .unwrap();
        times.push(asked.elapsed());
        assert_eq!(command.state, "succeeded", "{command:#?}");
    }
    times
}

fn up(kind: link_up::Kind) -> LinkUp {
    LinkUp { kind: Some(kind) }
}

fn fresh_id() -> Bytes {
    Bytes::copy_from_slice(&random::bytes::<16>())
}

/// Of what a flood is made.
#[derive(Debug, Clone, Copy)]
enum Flood {
    Results,
    HeavyResults,
    EmptyParts,
    Events,
    Containers,
    EmptyContainers,
    Chatter,
    Renewals,
    Nested,
    /// What has to be answered, and the answers are not read.
    Questions,
}

const FLOODS: [Flood; 10] = [
    Flood::Results,
    Flood::HeavyResults,
    Flood::EmptyParts,
    Flood::Events,
    Flood::Containers,
    Flood::EmptyContainers,
    Flood::Chatter,
    Flood::Nested,
    Flood::Questions,
    // By the end of it the host is held.
    Flood::Renewals,
];

impl Flood {
    /// What is said once.
    fn messages(self, number: u64) -> Vec<LinkUp> {
        let filler = || "x".repeat(limits::LINK_MESSAGE_BYTES_MAX - 400);
        let result = |id: &Bytes, body_length| {
            up(link_up::Kind::Result(CommandResult {
                command: id.clone(),
                state: State::Succeeded.into(),
                body_length,
                ..CommandResult::default()
            }))
        };
        let one = match self {
            Self::Results => result(&fresh_id(), 0),
            Self::HeavyResults => {
                let id = fresh_id();
                let count = limits::RESULT_BODY_BYTES_MAX / limits::RESULT_PART_BYTES;
                let part = |index: usize| {
                    up(link_up::Kind::ResultPart(ResultPart {
                        command: id.clone(),
                        offset: u32::try_from(index * limits::RESULT_PART_BYTES).unwrap(),
                        data: vec![7; limits::RESULT_PART_BYTES].into(),
                    }))
                };
                let length = u32::try_from(count * limits::RESULT_PART_BYTES).unwrap();
                return (0..count).map(part).chain([result(&id, length)]).collect();
            }
            Self::EmptyParts => up(link_up::Kind::ResultPart(ResultPart {
                command: fresh_id(),
                ..ResultPart::default()
            })),
            Self::Events => up(link_up::Kind::Event(HostEvent {
                seq: number + 1,
                id: fresh_id(),
                action: "container.start".to_owned(),
                detail: filler(),
                ..HostEvent::default()
            })),
            Self::Containers => up(link_up::Kind::Inventory(InventoryPart {
                generation: 1,
                upserts: vec![Container {
                    id: format!("{number:064}"),
                    name: filler(),
                    ..Container::default()
                }],
                ..InventoryPart::default()
            })),
            Self::EmptyContainers => up(link_up::Kind::Inventory(InventoryPart {
                generation: 1,
                upserts: vec![Container::default(); 3_000],
                ..InventoryPart::default()
            })),
            Self::Chatter => {
                let refused = StreamRefused {
                    id: fresh_id(),
                    ..StreamRefused::default()
                };
                let progress = Progress {
                    command: fresh_id(),
                    waiting_for: filler(),
                    ..Progress::default()
                };
                let metrics = MetricsPart::default();
                return vec![
                    up(link_up::Kind::StreamRefused(refused)),
                    up(link_up::Kind::Progress(progress)),
                    up(link_up::Kind::Metrics(metrics)),
                ];
            }
            Self::Renewals => up(link_up::Kind::Renew(RenewRequest {
                csr_der: PrivateKey::generate().unwrap().request().unwrap().into(),
                counter: 1,
            })),
            Self::Nested | Self::Questions => LinkUp::default(),
        };
        vec![one]
    }

    /// Says it until it is cut, or for ever.
    async fn pour(self, stolen: &Stolen, address: &str) {
        if matches!(self, Self::Nested | Self::Questions) {
            return self.pour_oddities(stolen, address).await;
        }
        let mut socket: Socket<LinkUp, LinkDown> = stolen.knock(address, paths::LINK).await;
        // It may be held by now; then this is what it says.
        let _ = socket.send(&stolen.hello()).await;
        for number in 0.. {
            for message in self.messages(number) {
                if socket.send(&message).await.is_err() {
                    return;
                }
            }
        }
    }

    /// A `Command` has bytes where `LinkUp` has its hello, and kinds where `LinkUp` has none: with it a
    /// message can be said that is none of today's, and one whose inside is whatever we like.
    async fn pour_oddities(self, stolen: &Stolen, address: &str) {
        let mut socket: Socket<Command, LinkDown> = stolen.knock(address, paths::LINK).await;
        let Some(link_up::Kind::Hello(hello)) = stolen.hello().kind else {
            return;
        };
        let hello = Command {
            id: hello.encode_to_vec().into(),
            ..Command::default()
        };
        socket.send(&hello).await.unwrap();
        let answer = socket.hear_message(SOON).await.unwrap();
        assert!(matches!(answer.kind, Some(link_down::Kind::Welcome(_))));
        let odd = match self {
            // A group that no version knows begins within the one before, as often as there is room.
            Self::Nested => Command {
                id: [0xf3, 0x07].repeat(2_000).into(),
                ..Command::default()
            },
            _ => Command {
                kind: Some(command::Kind::Restart(Restart::default())),
                ..Command::default()
            },
        };
        while socket.send(&odd).await.is_ok() {}
    }
}

/// Sockets that say one byte a second, from an address of their own, for as long as the value lives.
fn drip(address: &str, count: usize) -> JoinSet<()> {
    let target: std::net::SocketAddr = address.parse().unwrap();
    let mut tasks = JoinSet::new();
    for _ in 0..count {
        tasks.spawn(async move {
            loop {
                let socket = tokio::net::TcpSocket::new_v4().unwrap();
                socket.bind("127.0.0.3:0".parse().unwrap()).unwrap();
                let Ok(mut stream) = socket.connect(target).await else {
                    continue;
                };
                // A TLS record of 16 KiB begins.
                for byte in [22, 3, 1, 64, 0].into_iter().chain(std::iter::repeat(1)) {
                    if stream.write_all(&[byte]).await.is_err() {
                        break;
                    }
                    moment(1_000).await;
                }
            }
        });
    }
    tasks
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_one_host_cost_bounded_memory_and_slow_nobody_else() {
    let mut fleet = Fleet::start(Options::simulated().hosts(&["box", "evil"])).await;
    let address = fleet.regions[0].agents.address();
    fleet.hosts[1].kill();
    fleet.api.host_is("evil", "offline", SOON).await;
    let stolen = Stolen::of(&fleet.hosts[1].dir).from("127.0.0.2");
    let server = fleet.regions[0].process.pid();
    let pids = [server, fleet.controller.pid()];
    round_trips(&fleet.api, ROUND_TRIPS).await;
    let quiet = percentiles(round_trips(&fleet.api, ROUND_TRIPS * 2).await);
    let before = pids.map(rss_kb);
    let mut most = before;
    println!("quiet: {quiet:?}, kB {before:?}");
    let _dripping = drip(&address, 64);
    let stolen = std::sync::Arc::new(stolen);
    let mut slowest = Duration::ZERO;
    for flood in FLOODS {
        let (thief, at) = (std::sync::Arc::clone(&stolen), address.clone());
        let mut pouring = JoinSet::new();
        pouring.spawn(async move {
            loop {
                flood.pour(&thief, &at).await;
                // Cut: it comes again, not so often that it is only told to stay away.
                moment(400).await;
            }
        });
        let lateness = Lateness::begin();
        let mut times = Vec::new();
        for _ in 0..6 {
            times.extend(round_trips(&fleet.api, ROUND_TRIPS / 6).await);
            for (most, pid) in most.iter_mut().zip(pids) {
                *most = rss_kb(pid).max(*most);
            }
            moment(150).await;
        }
        let late = lateness.end();
        let said = percentiles(times);
        println!(
            "{flood:?}: {said:?}, late {late:?}, kB {:?}",
            pids.map(rss_kb)
        );
        slowest = slowest.max(said.1);
        pouring.shutdown().await;
        // The machine is small and busy, and the flood itself is made on it. Nothing is faster than it wakes.
        let is_slow = |calm: (Duration, Duration)| {
            said.0 >= calm.0 * 5 + Duration::from_millis(50)
                || said.1 >= calm.1 * 5 + Duration::from_millis(250) + late * 2
        };
        let mut calm = quiet;
        if is_slow(quiet) {
            // Its disk may be slower by now than it was.
            let now = percentiles(round_trips(&fleet.api, ROUND_TRIPS).await);
            calm = (quiet.0.max(now.0), quiet.1.max(now.1));
        }
        assert!(
            !is_slow(calm),
            "{flood:?}: {said:?}, late {late:?}, quiet {quiet:?}, now {calm:?}"
        );
    }
    println!("slowest {slowest:?}; kB {before:?}, at most {most:?}");
    for (before, most) in before.iter().zip(most) {
        assert!(most - before < GROWTH_MAX_KB, "from {before} to {most} kB");
    }
    fleet.api.event("host.flooding", "evil", SOON).await;
    assert!(is_alive(server), "it is still the same process");
    let box_said = fleet.hosts[0].supervisor.said();
    assert!(!box_said.contains("no link"), "box was not disturbed");
}

#[tokio::test]
async fn who_does_not_read_or_dawdles_is_cut_and_who_comes_without_end_is_kept_away() {
    let mut fleet = Fleet::start(Options::simulated().hosts(&["box", "evil"]).pings(1_000)).await;
    let address = fleet.regions[0].agents.address();
    fleet.hosts[1].kill();
    fleet.api.host_is("evil", "offline", SOON).await;
    let stolen = Stolen::of(&fleet.hosts[1].dir).from("127.0.0.2");
    let server = fleet.regions[0].process.pid();
    let before = rss_kb(server);

    // It takes nothing: what it is sent waits in the ledger, and it is offline after three pings.
    let socket = stolen.link(&address).await;
    fleet.api.host_is("evil", "online", SOON).await;
    let silent = Instant::now();
    let mut asked = JoinSet::new();
    for _ in 0..50 {
        let api = fleet.api.clone();
        asked.spawn(async move {
            let long = vec!["x".repeat(1_000); 5];
            let words: Vec<&str> = long.iter().map(String::as_str).collect();
            api.begin("evil", exec("web", &words)).await
        });
    }
    fleet.api.host_is("evil", "offline", SOON).await;
    assert!(
        silent.elapsed() < Duration::from_secs(12),
        "{:?}",
        silent.elapsed()
    );
    asked.join_all().await;
    drop(socket);

    // One byte a second of a message: no sign of life.
    let line = Line::to(&address).await;
    let near = Stolen::of(&fleet.hosts[1].dir);
    let mut socket = near.link(&line.address()).await;
    fleet.api.host_is("evil", "online", SOON).await;
    line.set(Weather {
        bytes_per_s: Some(1),
        ..Weather::default()
    });
    let slow = Instant::now();
    let dawdling = tokio::spawn(async move {
        let event = HostEvent {
            detail: "x".repeat(7_000),
            ..HostEvent::default()
        };
        let _ = socket.send(&up(link_up::Kind::Event(event))).await;
        let _ = verdict(&mut socket).await;
    });
    fleet.api.host_is("evil", "offline", SOON).await;
    assert!(
        slow.elapsed() < Duration::from_secs(12),
        "{:?}",
        slow.elapsed()
    );
    dawdling.abort();

    // It comes and goes: each is two events, so after a while it may not.
    let mut welcomed = 0;
    let refusal = loop {
        let mut socket: Socket<LinkUp, LinkDown> = stolen.knock(&address, paths::LINK).await;
        socket.send(&stolen.hello()).await.unwrap();
        match socket.hear_message(SOON).await.unwrap().kind {
            Some(link_down::Kind::Welcome(_)) => welcomed += 1,
            Some(link_down::Kind::Refused(refused)) => break refused,
            other => panic!("{other:?}"),
        }
        assert!(welcomed < 200, "it may come for ever");
    };
    assert_eq!(refusal.code, "busy", "{refusal:?}");
    assert!(refusal.retry_after_ms >= 1_000, "{refusal:?}");
    fleet.api.event("host.flooding", "evil", SOON).await;
    let grown = rss_kb(server).saturating_sub(before);
    assert!(grown < GROWTH_MAX_KB, "{grown} kB");
    fleet.api.done("box", Action::Ping {}).await;
}

/// The stream that the server asks for next.
async fn asked_for_stream(socket: &mut Socket<LinkUp, LinkDown>) -> OpenStream {
    loop {
        let message = socket.hear_message(SOON).await.expect("the server asks");
        if let Some(link_down::Kind::OpenStream(open)) = message.kind {
            return open;
        }
    }
}

#[tokio::test]
async fn a_host_gets_no_stream_and_changes_no_command_of_another() {
    let mut fleet = Fleet::start(Options::simulated().hosts(&["box", "evil", "victim"])).await;
    let address = fleet.regions[0].agents.address();
    fleet.done(run_simulated("web")).await;
    for host in &mut fleet.hosts[1..] {
        host.kill();
    }
    for name in ["evil", "victim"] {
        fleet.api.host_is(name, "offline", SOON).await;
    }
    let thief = Stolen::of(&fleet.hosts[1].dir).from("127.0.0.2");
    let owner = Stolen::of(&fleet.hosts[2].dir);
    let mut evil = thief.link(&address).await;
    let mut victim = owner.link(&address).await;

    // A person opens a stream to the victim; the thief knows its id and comes first.
    let attached = fairlead_api::types::CommandRequest {
        attach: true,
        ..request("victim", exec("web", &["sh"]))
    };
    let command = fleet.api.submit(&attached, Duration::ZERO).await.unwrap();
    let (api, id) = (fleet.api.clone(), command.id.clone());
    let person = tokio::spawn(async move { Stream::open(&api, &id).await });
    let open = asked_for_stream(&mut victim).await;
    let stream = StreamId::from_wire(&open.id).unwrap();
    let refused = StreamRefused {
        id: open.id.clone(),
        code: "no_stream".to_owned(),
        ..StreamRefused::default()
    };
    evil.send(&up(link_up::Kind::StreamRefused(refused)))
        .await
        .unwrap();
    let server = "region/local/access-server/a1";
    let stolen = thief
        .dialler(Expected::AnyAccessServer)
        .stream(&address, stream, server)
        .await;
    if let Ok(mut stolen) = stolen {
        let _ = stolen.send(frame(Channel::Output, b"lies")).await;
        assert!(!matches!(stolen.hear().await, Ok(Some(_))), "it was joined");
    }
    let mut own = owner
        .dialler(Expected::AnyAccessServer)
        .stream(&address, stream, server)
        .await
        .unwrap();
    own.send(frame(Channel::Output, b"truth")).await.unwrap();
    let mut person = person.await.unwrap().unwrap();
    let heard = person.hear().await;
    assert_eq!(heard, Some((Channel::Output, Bytes::from_static(b"truth"))));

    // Many streams that nobody asked for: each is closed, and costs nobody else a thing.
    let mut dials = JoinSet::new();
    for _ in 0..100 {
        let (dialler, at) = (thief.dialler(Expected::AnyAccessServer), address.clone());
        dials.spawn(async move {
            let id = StreamId::from_bytes(random::bytes());
            match dialler.stream(&at, id, server).await {
                Ok(mut socket) => !matches!(socket.hear().await, Ok(Some(_))),
                Err(_) => true,
            }
        });
    }
    while let Some(closed) = dials.join_next().await {
        assert!(closed.unwrap());
    }

    tell_lies(&mut evil, &command.id).await;
    fleet.api.event("container.start", "evil", SOON).await;
    let seen = fleet.api.command(&command.id).await.unwrap();
    assert!(!format!("{seen:?}").contains("lies"), "{seen:#?}");
    assert_ne!(seen.state, "running", "{seen:#?}");
    let said = fleet.hosts[0].supervisor.said();
    assert!(!said.contains("no link"), "box was not disturbed");
    fleet.done(Action::Ping {}).await;
}

/// About another host's command; then an event, so that it is known when all has been heard.
async fn tell_lies(evil: &mut Socket<LinkUp, LinkDown>, command: &str) {
    let id: CommandId = command.parse().unwrap();
    let progress = Progress {
        command: id.to_wire(),
        state: State::Running.into(),
        waiting_for: "lies".to_owned(),
        ..Progress::default()
    };
    let unwilling = CancelRefused {
        command: id.to_wire(),
        ..CancelRefused::default()
    };
    for kind in [
        link_up::Kind::Progress(progress),
        link_up::Kind::CancelRefused(unwilling),
    ] {
        evil.send(&up(kind)).await.unwrap();
    }
    let event = HostEvent {
        seq: 1,
        id: fresh_id(),
        action: "container.start".to_owned(),
        ..HostEvent::default()
    };
    evil.send(&up(link_up::Kind::Event(event))).await.unwrap();
}
