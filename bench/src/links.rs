//! Round trips over one of many idle links, and one command to each of them, against the floor of the same
//! run; the two take turns, so that a busy neighbour meets both.

use std::path::Path;
use std::time::Duration;

use fairlead_tests::ports::Port;

use crate::crossing::Crossed;
use crate::figures::Figure;
use crate::hosts::{Crowd, Hosts, Kind};
use crate::installation::{self, Installation};
use crate::measuring::{percentile, usage};
use crate::simulated_host::Answer;
use crate::worker::Worker;

/// Turns of product and floor.
const TURNS: usize = 5;

/// One side: the server, and its hosts.
struct Side {
    server: Worker,
    hosts: Crowd,
    crossed: Crossed,
    kib_per_link: f64,
}

impl Side {
    async fn start(program: &Path, dir: &Path, count: usize, kind: Kind) -> Self {
        let port = Port::claim();
        let verb = match kind {
            Kind::Links => "link-server",
            Kind::Echo => "echo-server",
        };
        let mut server = Worker::start(
            program,
            &[
                verb.to_owned(),
                format!("--installation={}", dir.display()),
                format!("--listen={}", port.address()),
            ],
        );
        let _: Crossed = server.ask("links").await;
        let before = usage(server.pid()).rss_kib;
        let hosts = Hosts {
            identities: dir.join("hosts"),
            first: 0,
            count,
            address: port.address(),
            kind,
            answer: Answer::Progress,
            spread_ms: count as u64,
            containers: 2,
            metrics: false,
        };
        let mut hosts = Crowd::start(program, &hosts);
        hosts.connected(count, Duration::from_secs(180)).await;
        let kib_per_link = (usage(server.pid()).rss_kib - before) / count as f64;
        Self {
            server,
            hosts,
            crossed: Crossed::default(),
            kib_per_link,
        }
    }

    async fn cross(&mut self, order: &str) {
        let crossed: Crossed = self.server.ask(order).await;
        assert_eq!(crossed.links, self.hosts.count, "all hosts are connected");
        self.crossed.round_trips_us.extend(crossed.round_trips_us);
        self.crossed.fan_out_per_s.extend(crossed.fan_out_per_s);
    }
}

/// Measures.
///
/// # Panics
/// When something fails.
pub async fn measure(program: &Path, count: usize, round_trips: usize) -> Vec<Figure> {
    let dir = tempfile::tempdir().expect("a directory");
    Installation::make(dir.path(), "bench");
    let hosts = Installation::load(dir.path()).hosts(count, &[]);
    installation::save(&dir.path().join("hosts"), &hosts);
    installation::enter(&dir.path().join("ledger.db"), &hosts).await;
    let mut product = Side::start(program, dir.path(), count, Kind::Links).await;
    let mut floor = Side::start(program, dir.path(), count, Kind::Echo).await;
    let order = format!("round-trips {}", round_trips / TURNS);
    for _ in 0..TURNS {
        floor.cross(&order).await;
        product.cross(&order).await;
        floor.cross("fan-out").await;
        product.cross("fan-out").await;
    }
    let mut figures = Vec::new();
    let is = "TLS WebSocket echo";
    for (share, name, times) in [
        (0.5, "p50", Some(1.5)),
        (0.99, "p99", Some(2.0)),
        (0.999, "p99.9", None),
    ] {
        let what = format!("round trip, {count} links, {name}");
        let value = percentile(&product.crossed.round_trips_us, share);
        let figure = Figure::new("links", what, value, "µs")
            .floor(percentile(&floor.crossed.round_trips_us, share), is);
        figures.push(match times {
            Some(times) => figure.at_most_times(times),
            None => figure,
        });
    }
    let fan_out = percentile(&product.crossed.fan_out_per_s, 0.5);
    figures.push(
        Figure::new(
            "links",
            "fan-out, one command to each",
            fan_out,
            "commands/s",
        )
        .floor(percentile(&floor.crossed.fan_out_per_s, 0.5), is)
        .at_least(40_000.0),
    );
    figures.push(
        Figure::new(
            "links",
            "memory per link, without uplink",
            product.kib_per_link,
            "KiB RSS",
        )
        .floor(floor.kib_per_link, is),
    );
    figures
}
