//! P8: no peer is believed before it proved who it is. P9 (beginnings): a slow, hostile or broken peer
//! slows nobody else.
//!
//! Holds: SECURITY S10, S12, S13, S24, S26; DESIGN §7 (a compromised access server can neither
//! forge, alter, redirect nor replay what the controller signs); "bad input": truncated, oversized,
//! unknown and hostile frames.

use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use fairlead_api::types::Action;
use fairlead_identity::authority::{Authority, LeafUse, PrivateKey};
use fairlead_identity::tls::{self, Credentials, Expected, Trust};
use fairlead_identity::{Role, Root, random};
use fairlead_link::dial::{DialError, Dialler};
use fairlead_link::socket::Socket;
use fairlead_protocol::version::{self, paths, sni};
use fairlead_protocol::{
    Cancel, CommandId, CommandResult, Hello, HostEvent, HostId, HostIdentity, InventoryPart,
    LinkDown, LinkUp, Message, Numbered, ResultPart, State, UplinkDown, UplinkUp, limits,
    link_down, link_up, numbered, uplink_down,
};
use fairlead_tests::fleet::{Fleet, Options};
use fairlead_tests::process::is_alive;
use fairlead_tests::wait::wait_for;
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

const SOON: Duration = Duration::from_secs(20);

/// Who a host is, from its own disk: what an attacker who owns a host has.
pub(crate) struct Stolen {
    pub(crate) root: Root,
    host: HostId,
    counter: u64,
    pub(crate) credentials: Credentials,
    /// Where it dials from.
    source: Option<IpAddr>,
}

impl Stolen {
    pub(crate) fn of(dir: &Path) -> Self {
        let stored =
            HostIdentity::decode(&std::fs::read(dir.join("identity")).unwrap()[..]).unwrap();
        let enrolment = stored.enrolment.unwrap();
        let chain: Vec<CertificateDer<'static>> = enrolment
            .certificates
            .iter()
            .map(|c| CertificateDer::from(c.to_vec()))
            .collect();
        Self {
            root: Root::from_der(chain.last().unwrap().clone()).unwrap(),
            host: HostId::from_wire(&enrolment.host).unwrap(),
            counter: enrolment.certificate_counter,
            credentials: Credentials {
                chain,
                key: PrivateKey::from_der(&stored.key_der).unwrap().for_tls(),
            },
            source: None,
        }
    }

    /// The same from another address of this machine.
    pub(crate) fn from(self, source: &str) -> Self {
        Self {
            source: Some(source.parse().unwrap()),
            ..self
        }
    }

    pub(crate) fn dialler(&self, expected: Expected) -> Dialler {
        let config = tls::client(
            Trust::Root(self.root.clone()),
            expected,
            Some(self.credentials.clone()),
        );
        let dialler = Dialler::new(config.unwrap(), Some(self.root.clone()), sni::AGENTS);
        match self.source {
            Some(source) => dialler.leaving_from(source),
            None => dialler,
        }
    }

    pub(crate) async fn knock<Out: Message>(
        &self,
        address: &str,
        path: &str,
    ) -> Socket<Out, LinkDown> {
        let (socket, _) = self
            .dialler(Expected::AnyAccessServer)
            .messages(address, path, limits::UPLINK_MESSAGE_BYTES_MAX)
            .await
            .unwrap();
        socket
    }

    pub(crate) fn hello(&self) -> LinkUp {
        let hello = Hello {
            version_min: version::OLDEST,
            version_max: version::NEWEST,
            instance: random::bytes::<16>().to_vec().into(),
            run: random::bytes::<16>().to_vec().into(),
            epoch: 1_000,
            certificate_counter: self.counter,
            ..Hello::default()
        };
        LinkUp {
            kind: Some(link_up::Kind::Hello(hello)),
        }
    }

    /// A link as a real agent has one, after the welcome.
    pub(crate) async fn link(&self, address: &str) -> Socket<LinkUp, LinkDown> {
        let mut socket = self.knock(address, paths::LINK).await;
        socket.send(&self.hello()).await.unwrap();
        let answer = socket.hear_message(SOON).await.unwrap();
        assert!(
            matches!(answer.kind, Some(link_down::Kind::Welcome(_))),
            "{answer:?}"
        );
        socket
    }
}

/// What the server says last: the code of a refusal, or that it has closed.
pub(crate) async fn verdict<Out: Message>(socket: &mut Socket<Out, LinkDown>) -> String {
    loop {
        match socket.hear_message(SOON).await {
            Ok(LinkDown {
                kind: Some(link_down::Kind::Refused(refused)),
            }) => return refused.code,
            Ok(LinkDown {
                kind: Some(link_down::Kind::Unsupported(_)),
            }) => {
                return "unsupported".to_owned();
            }
            Ok(_) => {}
            Err(fairlead_link::socket::SocketError::Silent) => return "silent".to_owned(),
            Err(_) => return "closed".to_owned(),
        }
    }
}

#[tokio::test]
async fn strangers_find_only_the_door_for_strangers() {
    let fleet = Fleet::start(Options::simulated().regions(&["local", "far"])).await;
    let agents = fleet.regions[0].agents.address();
    let stolen = Stolen::of(&fleet.hosts[0].dir);

    // No certificate at the doors for agents.
    let nobody = tls::client(
        Trust::Root(stolen.root.clone()),
        Expected::AnyAccessServer,
        None,
    );
    let nobody = Dialler::new(nobody.unwrap(), Some(stolen.root.clone()), sni::AGENTS);
    for path in [paths::LINK, paths::RENEW] {
        let (mut socket, _): (Socket<LinkUp, LinkDown>, _) = nobody
            .messages(&agents, path, limits::LINK_MESSAGE_BYTES_MAX)
            .await
            .unwrap();
        assert_eq!(verdict(&mut socket).await, "certificate_rejected", "{path}");
    }

    // The right names, signed by somebody else.
    let now = jiff::Timestamp::now().as_second();
    let elsewhere = Authority::new_root(stolen.root.domain(), now).unwrap();
    let agents_ca = elsewhere
        .new_intermediate(
            &Role::AgentsCa {
                region: "local".to_owned(),
            },
            now,
        )
        .unwrap();
    let key = PrivateKey::generate().unwrap();
    let role = Role::Agent {
        region: "local".to_owned(),
        host: stolen.host,
    };
    let times = (now, Duration::from_secs(3600));
    let leaf = agents_ca
        .certify_own(&key, &role, LeafUse::Client, &[], times)
        .unwrap();
    let forged = Stolen {
        credentials: Credentials {
            chain: leaf.chain,
            key: key.for_tls(),
        },
        ..Stolen::of(&fleet.hosts[0].dir)
    };
    let opened: Result<(Socket<LinkUp, LinkDown>, _), DialError> = forged
        .dialler(Expected::AnyAccessServer)
        .messages(&agents, paths::LINK, limits::LINK_MESSAGE_BYTES_MAX)
        .await;
    match opened {
        Err(_) => {}
        Ok((mut socket, _)) => assert_eq!(verdict(&mut socket).await, "closed"),
    }

    // A true agent certificate where it does not belong: another region, other doors, the controller.
    let far = fleet.regions[1].agents.address();
    let mut socket = stolen.knock::<LinkUp>(&far, paths::LINK).await;
    assert_eq!(verdict(&mut socket).await, "certificate_rejected");
    for path in [paths::ENROL, paths::UPLINK] {
        let mut socket = stolen.knock::<LinkUp>(&agents, path).await;
        assert_eq!(verdict(&mut socket).await, "certificate_rejected", "{path}");
    }
    for path in [paths::UPLINK, paths::LINK, paths::ENROL] {
        let opened: Result<(Socket<UplinkUp, UplinkDown>, _), DialError> = stolen
            .dialler(Expected::Controller)
            .messages(
                &fleet.uplink.address(),
                path,
                limits::LINK_MESSAGE_BYTES_MAX,
            )
            .await;
        // Not even the handshake, or a refusal; never a welcome.
        if let Ok((mut socket, _)) = opened {
            match socket.hear_message(SOON).await {
                Ok(UplinkDown {
                    kind: Some(uplink_down::Kind::Refused(_)),
                })
                | Err(_) => {}
                Ok(other) => panic!("{path}: {other:?}"),
            }
        }
    }
    fleet.done(Action::Ping {}).await;
    assert_eq!(fleet.api.hosts().await.unwrap().len(), 1);
}

/// Messages that an agent must not send at that moment, or with that content.
fn out_of_turn(stolen: &Stolen) -> [(&'static str, LinkUp); 5] {
    [
        ("a second hello", stolen.hello()),
        (
            "a part of a result that has no beginning",
            LinkUp {
                kind: Some(link_up::Kind::ResultPart(ResultPart {
                    command: random::bytes::<16>().to_vec().into(),
                    offset: 4_000_000_000,
                    data: vec![7; 100].into(),
                })),
            },
        ),
        (
            "a result without a final state",
            LinkUp {
                kind: Some(link_up::Kind::Result(CommandResult {
                    command: random::bytes::<16>().to_vec().into(),
                    state: State::Running.into(),
                    ..CommandResult::default()
                })),
            },
        ),
        (
            "an event that only servers report",
            LinkUp {
                kind: Some(link_up::Kind::Event(HostEvent {
                    seq: 1,
                    id: random::bytes::<16>().to_vec().into(),
                    action: "host.held".to_owned(),
                    ..HostEvent::default()
                })),
            },
        ),
        (
            "an id that is none",
            LinkUp {
                kind: Some(link_up::Kind::Result(CommandResult {
                    command: vec![1, 2, 3].into(),
                    state: State::Succeeded.into(),
                    ..CommandResult::default()
                })),
            },
        ),
    ]
}

#[tokio::test]
async fn broken_frames_cost_their_sender_its_link_and_nobody_else_anything() {
    let mut fleet = Fleet::start(Options::simulated().hosts(&["box", "evil"])).await;
    let agents = fleet.regions[0].agents.address();
    fleet.hosts[1].kill();
    fleet.api.host_is("evil", "offline", SOON).await;
    let stolen = Stolen::of(&fleet.hosts[1].dir);
    let server = fleet.regions[0].process.pid();

    // Before hello.
    let first: [(&str, Vec<u8>); 3] = [
        ("garbage", vec![0xff; 40]),
        ("nothing", Vec::new()),
        ("oversized", vec![1; limits::LINK_MESSAGE_BYTES_MAX + 1000]),
    ];
    for (what, bytes) in first {
        // A `Vec<u8>` travels as one field: to the server that is a hello that cannot be read.
        let mut socket = stolen.knock::<Vec<u8>>(&agents, paths::LINK).await;
        socket.send(&bytes).await.unwrap();
        let said = verdict(&mut socket).await;
        assert!(
            said == "closed" || said == "protocol_violation",
            "{what}: {said}"
        );
    }

    // After it, out of turn or too much.
    for (what, message) in out_of_turn(&stolen) {
        let mut socket = stolen.link(&agents).await;
        socket.send(&message).await.unwrap();
        let said = verdict(&mut socket).await;
        assert!(
            said == "closed" || said == "protocol_violation",
            "{what}: {said}"
        );
    }
    {
        let mut socket = stolen.link(&agents).await;
        let huge = InventoryPart {
            generation: 1,
            removed: vec!["x".repeat(limits::LINK_MESSAGE_BYTES_MAX)],
            ..InventoryPart::default()
        };
        socket
            .send(&LinkUp {
                kind: Some(link_up::Kind::Inventory(huge)),
            })
            .await
            .unwrap();
        assert_eq!(
            verdict(&mut socket).await,
            "closed",
            "oversized after hello"
        );
    }

    // A kind from the future is answered, not ignored, and the link stays.
    let (mut socket, _): (Socket<Numbered, LinkDown>, _) = stolen
        .dialler(Expected::AnyAccessServer)
        .messages(&agents, paths::LINK, limits::LINK_MESSAGE_BYTES_MAX)
        .await
        .unwrap();
    // A `Numbered` whose field is none of the link's stands for a message of tomorrow.
    let tomorrow = Numbered {
        seq: 0,
        kind: Some(numbered::Kind::Cancel(Cancel::default())),
    };
    socket.send(&tomorrow).await.unwrap();
    let said = verdict(&mut socket).await;
    assert!(
        said == "protocol_violation" || said == "closed",
        "as a first message: {said}"
    );

    assert!(
        is_alive(server),
        "the access server is still the same process"
    );
    fleet.api.done("box", Action::Ping {}).await;
    assert!(
        !fleet.hosts[0].supervisor.said().contains("no link"),
        "box was not disturbed"
    );
    // And the true agent of that host comes back.
    fleet.hosts[1].start();
    wait_for("the host says why not, or is back", SOON, async || {
        let host = fleet.api.host("evil").await.map_err(|no| no.to_string())?;
        // Its stolen identity claimed a far higher epoch: it is held, or has gone on from there.
        if host.state == "online" || host.state == "held" {
            Ok(())
        } else {
            Err(host.state)
        }
    })
    .await;
}

#[tokio::test]
async fn a_host_cannot_answer_for_another() {
    let mut fleet = Fleet::start(Options::simulated().hosts(&["box", "evil"])).await;
    let agents = fleet.regions[0].agents.address();
    for host in &mut fleet.hosts {
        host.kill();
    }
    fleet.api.host_is("box", "offline", SOON).await;
    fleet.api.host_is("evil", "offline", SOON).await;
    let waiting = fleet.begin(Action::Ping {}).await;
    wait_for("the region has it", SOON, async || {
        let command = fleet
            .api
            .command(&waiting.id)
            .await
            .map_err(|no| no.to_string())?;
        let stored = fleet
            .api
            .region("local")
            .await
            .map_err(|no| no.to_string())?;
        if stored.orders_waiting == 0 {
            Ok(())
        } else {
            Err(format!("{command:?}"))
        }
    })
    .await;

    let stolen = Stolen::of(&fleet.hosts[1].dir);
    let mut socket = stolen.link(&agents).await;
    let id: CommandId = waiting.id.parse().unwrap();
    let lie = CommandResult {
        command: id.to_wire(),
        state: State::Succeeded.into(),
        ..CommandResult::default()
    };
    socket
        .send(&LinkUp {
            kind: Some(link_up::Kind::Result(lie)),
        })
        .await
        .unwrap();
    let said = verdict(&mut socket).await;
    assert!(said == "closed" || said == "protocol_violation", "{said}");

    let seen = fleet.api.command(&waiting.id).await.unwrap();
    assert!(!seen.is_final, "{seen:#?}");
    fleet.hosts[0].start();
    assert_eq!(fleet.api.ended(&waiting.id, SOON).await.state, "succeeded");
}

#[tokio::test]
async fn two_hundred_sockets_that_say_nothing_keep_nobody_out() {
    let mut fleet = Fleet::start(Options::simulated()).await;
    let agents = fleet.regions[0].agents.address();
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(TcpStream::connect(&agents).await.unwrap());
    }
    // Behind those it would wait until they are cut.
    let stolen = Stolen::of(&fleet.hosts[0].dir);
    let began = Instant::now();
    drop(stolen.knock::<LinkUp>(&agents, paths::LINK).await);
    let took = began.elapsed();
    assert!(took < limits::FIRST_BYTE_TIMEOUT, "it took {took:?}");
    fleet.add_host("good").await;
    fleet.api.done("box", Action::Ping {}).await;
    drop(silent);
}

/// A flood from another address: each dials, says one byte or nothing, and dials again when it is cut.
/// It ends when it is dropped.
fn flood(address: &str) -> JoinSet<()> {
    let target: std::net::SocketAddr = address.parse().unwrap();
    let mut tasks = JoinSet::new();
    for number in 0..300 {
        tasks.spawn(async move {
            loop {
                let socket = tokio::net::TcpSocket::new_v4().unwrap();
                socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
                let Ok(mut stream) = socket.connect(target).await else {
                    tokio::task::yield_now().await;
                    continue;
                };
                if number % 2 == 0 {
                    // The first of a TLS record; no more follow.
                    let _ = stream.write_all(&[22]).await;
                }
                let _ = stream.read(&mut [0; 16]).await;
            }
        });
    }
    tasks
}

#[tokio::test]
async fn a_flood_from_one_address_keeps_no_other_address_out() {
    let fleet = Fleet::start(Options::simulated()).await;
    let agents = fleet.regions[0].agents.address();
    let stolen = Stolen::of(&fleet.hosts[0].dir);
    let _floods = [flood(&agents), flood(&fleet.uplink.address())];
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(3) {
        let dialled = Instant::now();
        let _socket = stolen.knock::<LinkUp>(&agents, paths::LINK).await;
        let took = dialled.elapsed();
        // In one queue with the flood it would wait for places that are kept for so long, several times.
        assert!(took < limits::FIRST_BYTE_TIMEOUT, "a dial took {took:?}");
    }
    // A killed agent is back at once, and so is an access server.
    let began = Instant::now();
    fleet.hosts[0].kill_agent().await;
    fleet.online("box").await;
    fleet.done(Action::Ping {}).await;
    let took = began.elapsed();
    assert!(
        took < limits::HANDSHAKE_TIMEOUT * 2,
        "the agent took {took:?}"
    );
}
