//! A test host's network: a bridge of the test's own, and what can be wrong with it.
//!
//! Cuts and losses are rules in the host's own firewall (table mangle, so before anything that its
//! engine or its owner set), and gone at its next boot. A delay needs a relay, because not every kernel
//! can delay a packet: connections to the places named go through a task of this process.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::host::TestHost;
use super::run::{docker, docker_says};

/// Networks of ours are `10.213.N.0/24`. Given by us, because only then an address can be kept for life.
const SUBNETS: &str = "10.213";

/// Makes a network of one test's own; its name and this machine's address in it.
pub(super) async fn make(prefix: &str, label: &str) -> (String, Ipv4Addr) {
    let name = format!("{prefix}-net");
    let [first] = fairlead_identity::random::bytes::<1>();
    let mut last_words = String::new();
    for step in 0..=u8::MAX {
        let number = first.wrapping_add(step);
        let gateway = format!("{SUBNETS}.{number}.1");
        let subnet = format!("{SUBNETS}.{number}.0/24");
        let made = docker(&[
            "network",
            "create",
            "--label",
            label,
            "--subnet",
            &subnet,
            "--gateway",
            &gateway,
            &name,
        ])
        .await;
        if made.is_ok() {
            return (name, gateway.parse().expect("an address"));
        }
        last_words = made.stderr;
        assert!(
            last_words.to_lowercase().contains("overlap"),
            "no network: {last_words}"
        );
    }
    panic!("no network is free: {last_words}");
}

/// A bad link.
#[derive(Debug, Clone, Copy)]
pub struct Slow {
    /// One way; a round trip takes twice that.
    pub delay: Duration,
    /// Of packets, each way: 0.0 none, 1.0 all.
    pub loss: f64,
}

/// Rules that lose packets: each way, and names asked of the resolver that the outer engine gives it.
fn losing(how: &str) -> [String; 3] {
    [
        format!("PREROUTING -i eth0 {how} -m comment --comment test-network -j DROP"),
        format!("POSTROUTING -o eth0 {how} -m comment --comment test-network -j DROP"),
        format!("OUTPUT -d 127.0.0.11 {how} -m comment --comment test-network -j DROP"),
    ]
}

impl TestHost {
    /// No packet comes in or goes out, names are not resolved, and nobody is told: to both sides the other
    /// is silent. Until `mend_network` or its next boot.
    ///
    /// # Panics
    /// When it is off or frozen.
    pub async fn cut_network(&self) {
        self.lose("").await;
    }

    async fn lose(&self, how: &str) {
        for rule in losing(how) {
            self.says(&format!("iptables -w -t mangle -I {rule}")).await;
        }
    }

    /// Undoes `cut_network` and `slow_network`. Connections that went through a relay are reset.
    ///
    /// # Panics
    /// When it is off or frozen.
    pub async fn mend_network(&mut self) {
        self.relays.clear();
        for table in ["mangle", "nat"] {
            // -S writes a rule as it was added; only ours bear the mark.
            self.says(&format!(
                "iptables -w -t {table} -S | sed -n '/test-network/s/^-A/-D/p' | \
                 while read -r rule; do eval \"iptables -w -t {table} $rule\" || exit 1; done"
            ))
            .await;
        }
    }

    /// Loses `slow.loss` of all its packets, and delays what it says to and hears from `to`, if it dials it
    /// after this call. Until `mend_network` or its next boot.
    ///
    /// The delay is a relay's: for TCP, seen from `to` such a connection comes from this machine, and
    /// dialling it is answered at once although nothing is heard for a round trip.
    ///
    /// # Panics
    /// When it is off or frozen.
    pub async fn slow_network(&mut self, to: &[SocketAddrV4], slow: Slow) {
        if slow.loss > 0.0 {
            let how = format!("-m statistic --mode random --probability {}", slow.loss);
            self.lose(&how).await;
        }
        for place in to {
            let relay = Relay::start(self.gateway(), *place, slow.delay).await;
            let rule = format!(
                "OUTPUT -p tcp -d {} --dport {} -m comment --comment test-network -j DNAT --to-destination {}",
                place.ip(),
                place.port(),
                relay.address
            );
            self.says(&format!("iptables -w -t nat -I {rule}")).await;
            self.relays.push(relay);
        }
    }

    /// The cable is pulled: its interface is gone, what it dials fails at once, and it stays so over a
    /// reboot. Until `plug_in`.
    ///
    /// # Panics
    /// When it is unplugged.
    pub async fn unplug(&self) {
        docker_says(&[
            "network",
            "disconnect",
            &self.ground.network,
            &self.container,
        ])
        .await;
    }

    /// The cable is back, and with it its address and its names.
    ///
    /// # Panics
    /// When it is plugged in.
    pub async fn plug_in(&self) {
        let address = self.ip().to_string();
        let mut arguments = vec!["network", "connect", "--ip", &address];
        for name in self.known_as() {
            arguments.extend(["--alias", name]);
        }
        arguments.extend([self.ground.network.as_str(), &self.container]);
        docker_says(&arguments).await;
    }
}

/// Read at once; a chunk has one time.
const CHUNK: usize = 16 * 1024;

/// Chunks on their way, each direction of a connection. When it is full the relay reads no more and TCP
/// pushes back: a long line holds so much and no more.
const ON_THE_WAY: usize = 256;

/// Takes connections and passes them on, later. Ends, with all of them, when dropped.
#[derive(Debug)]
pub(super) struct Relay {
    address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Relay {
    async fn start(at: Ipv4Addr, to: SocketAddrV4, delay: Duration) -> Self {
        let listener = TcpListener::bind((at, 0))
            .await
            .expect("a port of this machine");
        let address = listener.local_addr().expect("it has an address");
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                connections.spawn(pass_on(near, to, delay));
                while connections.try_join_next().is_some() {}
            }
        });
        Self {
            address,
            _tasks: tasks,
        }
    }
}

async fn pass_on(near: TcpStream, to: SocketAddrV4, delay: Duration) {
    tokio::time::sleep(delay).await;
    // Nobody there: the near end sees its connection close.
    let Ok(far) = TcpStream::connect(to).await else {
        return;
    };
    for end in [&near, &far] {
        // Small things are not held back: only the delay asked for counts.
        let _ = end.set_nodelay(true);
    }
    let (near_in, near_out) = near.into_split();
    let (far_in, far_out) = far.into_split();
    tokio::join!(
        one_way(near_in, far_out, delay),
        one_way(far_in, near_out, delay)
    );
}

/// Each chunk arrives `delay` after it came, in order; so does the end.
async fn one_way(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    delay: Duration,
) {
    let (sender, mut receiver) = mpsc::channel::<(Instant, Vec<u8>)>(ON_THE_WAY);
    let reading = async move {
        let mut chunk = vec![0; CHUNK];
        while let Ok(count @ 1..) = from.read(&mut chunk).await {
            let due = Instant::now() + delay;
            if sender.send((due, chunk[..count].to_vec())).await.is_err() {
                break;
            }
        }
    };
    let writing = async move {
        while let Some((due, chunk)) = receiver.recv().await {
            tokio::time::sleep_until(due).await;
            if to.write_all(&chunk).await.is_err() {
                return;
            }
        }
        // The end travels as long as anything else.
        tokio::time::sleep(delay).await;
        let _ = to.shutdown().await;
    };
    tokio::join!(reading, writing);
}
