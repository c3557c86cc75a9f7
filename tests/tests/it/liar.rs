//! P8: an access server that has been taken over, with its real certificates, against a real agent: it
//! can neither forge, alter, redirect nor replay a command.
//!
//! Holds: DESIGN §7 (signatures; the agent verifies before it writes the intent); SECURITY S11.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fairlead_identity::authority::{Authority, LeafUse, PrivateKey, RequestedKey};
use fairlead_identity::signing::Signer;
use fairlead_identity::tls::{self, Credentials};
use fairlead_identity::token::JoinToken;
use fairlead_identity::{Role, Root, random};
use fairlead_link::accept::{Acceptor, Door};
use fairlead_link::socket::Socket;
use fairlead_protocol::command::Kind;
use fairlead_protocol::{
    Command, CommandId, CommandKeys, CommandResult, ContainerSpec, Deliver, EnrolReply, HostId,
    LinkDown, LinkUp, OpenStream, Restart, ResultAck, Run, SignedCommand, State, Welcome, limits,
    link_down, link_up, version,
};
use fairlead_tests::process::{Process, send};
use fairlead_tests::programs::program;
use fairlead_tests::wait::wait_for;
use rustix::process::Signal;
use tokio::net::TcpListener;

mod lies;

const SOON: Duration = Duration::from_secs(20);

fn now_us() -> i64 {
    jiff::Timestamp::now().as_microsecond()
}

/// An installation, and its only access server, in the hands of somebody else.
pub(crate) struct Liar {
    root: Root,
    agents_ca: Authority,
    /// The controller's: the liar has what the controller signed, not this key. The test has both.
    pub(crate) controller: Signer,
    pub(crate) host: HostId,
    role: Role,
    acceptor: Acceptor,
    listener: TcpListener,
    /// What it calls command keys.
    keys: CommandKeys,
    /// What it says first, beside what is needed.
    pub(crate) says: Welcome,
}

/// A key that signs commands, certified by that root.
fn signer(root: &Authority) -> Signer {
    let now = jiff::Timestamp::now().as_second();
    let ca = root.new_intermediate(&Role::CommandKeysCa, now).unwrap();
    let key = PrivateKey::generate_ed25519().unwrap();
    let times = (now, Duration::from_secs(3600));
    let leaf = ca
        .certify_own(&key, &Role::CommandKey, LeafUse::CommandSigning, &[], times)
        .unwrap();
    Signer::new(&key.to_der(), &leaf.chain).unwrap()
}

impl Liar {
    pub(crate) async fn new() -> Self {
        let now = jiff::Timestamp::now().as_second();
        let times = (now, Duration::from_secs(3600));
        let authority = Authority::new_root("fairlead.internal", now).unwrap();
        let root = Root::from_der(authority.chain()[0].clone()).unwrap();
        let servers = authority.new_intermediate(&Role::ServersCa, now).unwrap();
        let agents_ca = authority
            .new_intermediate(
                &Role::AgentsCa {
                    region: "local".to_owned(),
                },
                now,
            )
            .unwrap();
        let key = PrivateKey::generate().unwrap();
        let role = Role::AccessServer {
            region: "local".to_owned(),
            name: "a1".to_owned(),
        };
        let leaf = servers
            .certify_own(&key, &role, LeafUse::Both, &[], times)
            .unwrap();
        let own = Credentials {
            chain: leaf.chain,
            key: key.for_tls(),
        };
        let config = tls::server(root.clone(), own, limits::RENEW_GRACE).unwrap();
        let controller = signer(&authority);
        Self {
            acceptor: Acceptor::new(Arc::new(config), root.clone(), limits::RENEW_GRACE),
            keys: CommandKeys {
                chains: vec![controller.chain()],
            },
            host: HostId::from_bytes(random::bytes()),
            listener: TcpListener::bind("127.0.0.1:0").await.unwrap(),
            root,
            agents_ca,
            controller,
            role,
            says: Welcome::default(),
        }
    }

    fn address(&self) -> String {
        self.listener.local_addr().unwrap().to_string()
    }

    /// Serves the enrol door until an agent opens a link; welcomes it.
    pub(crate) async fn link(&self) -> Socket<LinkDown, LinkUp> {
        loop {
            let (tcp, remote) = self.listener.accept().await.unwrap();
            let Ok(accepted) = self.acceptor.accept(tcp, remote).await else {
                continue;
            };
            let door = accepted.door;
            let mut socket: Socket<LinkDown, LinkUp> = accepted.messages();
            let first = socket.hear_message(SOON).await.unwrap();
            let answer = match (door, first.kind) {
                (Door::Enrol, Some(link_up::Kind::Enrol(request))) => {
                    let key = RequestedKey::from_request(&request.csr_der).unwrap();
                    link_down::Kind::Enrolled(self.enrolled(&key))
                }
                (Door::Link, Some(link_up::Kind::Hello(_))) => link_down::Kind::Welcome(Welcome {
                    version: version::NEWEST,
                    server: self.role.to_string(),
                    connection: 1,
                    server_time_us: now_us() + self.says.server_time_us,
                    ping_interval_ms: 15_000,
                    command_keys: Some(self.keys.clone()),
                    ..self.says.clone()
                }),
                other => panic!("{other:?}"),
            };
            let linked = matches!(answer, link_down::Kind::Welcome(_));
            socket.send(&LinkDown { kind: Some(answer) }).await.unwrap();
            if linked {
                return socket;
            }
        }
    }

    fn enrolled(&self, key: &RequestedKey) -> EnrolReply {
        let now = jiff::Timestamp::now().as_second();
        let role = Role::Agent {
            region: "local".to_owned(),
            host: self.host,
        };
        let times = (now, Duration::from_secs(3600 * 24 * 7));
        let leaf = self
            .agents_ca
            .certify(key, &role, LeafUse::Client, &[], times)
            .unwrap();
        EnrolReply {
            host: self.host.to_wire(),
            name: "box".to_owned(),
            tenant: "default".to_owned(),
            region: "local".to_owned(),
            certificates: leaf
                .chain
                .iter()
                .map(|c| Bytes::copy_from_slice(c))
                .collect(),
            certificate_counter: 1,
            addresses: vec![self.address()],
            command_keys: Some(CommandKeys {
                chains: vec![self.controller.chain()],
            }),
            ..EnrolReply::default()
        }
    }

    fn command(&self, kind: Kind) -> Command {
        Command {
            id: CommandId::from_bytes(random::bytes()).to_wire(),
            tenant: "default".to_owned(),
            host: self.host.to_wire(),
            issuer: "admin (token test)".to_owned(),
            issued_at_us: now_us(),
            not_after_us: now_us() + 60_000_000,
            kind: Some(kind),
            ..Command::default()
        }
    }
}

fn restart(container: &str) -> Kind {
    Kind::Restart(Restart {
        container: container.to_owned(),
        ..Restart::default()
    })
}

pub(crate) async fn tell(socket: &mut Socket<LinkDown, LinkUp>, kind: link_down::Kind) {
    socket.send(&LinkDown { kind: Some(kind) }).await.unwrap();
}

/// The process that is the agent now. Its supervisor says so a moment after it has started it.
async fn pid(agent: &Agent) -> u32 {
    wait_for("the supervisor says who runs", SOON, async || {
        let status = std::fs::read(agent.dir.join("status.json")).map_err(|no| no.to_string())?;
        let status: serde_json::Value =
            serde_json::from_slice(&status).map_err(|no| no.to_string())?;
        let pid = status["agent"].as_u64();
        pid.and_then(|pid| u32::try_from(pid).ok())
            .ok_or(status.to_string())
    })
    .await
}

async fn deliver(socket: &mut Socket<LinkDown, LinkUp>, command: &SignedCommand) {
    let deliver = Deliver {
        command: Some(command.clone()),
        ..Deliver::default()
    };
    socket
        .send(&LinkDown {
            kind: Some(link_down::Kind::Deliver(deliver)),
        })
        .await
        .unwrap();
}

/// The agent's result for an id.
pub(crate) async fn result(socket: &mut Socket<LinkDown, LinkUp>, id: &Bytes) -> CommandResult {
    loop {
        let message = socket.hear_message(SOON).await.expect("the agent answers");
        if let Some(link_up::Kind::Result(result)) = message.kind
            && result.command == *id
        {
            return result;
        }
    }
}

pub(crate) struct Agent {
    supervisor: Process,
    dir: PathBuf,
}

impl Agent {
    pub(crate) fn start(liar: &Liar, dir: &std::path::Path) -> Self {
        let token = dir.join("token");
        std::fs::write(&token, JoinToken::generate(liar.root.hash()).to_string()).unwrap();
        let state = dir.join("agent");
        let words: Vec<std::ffi::OsString> = vec![
            "supervise".into(),
            "--state-dir".into(),
            state.clone().into(),
            "--address".into(),
            liar.address().into(),
            "--engine".into(),
            "simulated".into(),
            "--policy".into(),
            dir.join("policy.toml").into(),
            "--token-file".into(),
            token.into(),
        ];
        let supervisor = Process::start(
            "the agent of the liar",
            program("fairlead-agent"),
            words,
            Vec::new(),
            dir.join("agent.log"),
        );
        Self {
            supervisor,
            dir: state,
        }
    }

    fn owner_log(&self) -> String {
        std::fs::read_to_string(self.dir.join("owner.log")).unwrap_or_default()
    }
}

/// What the controller signed is carried out: the double is a good one.
async fn run_web(liar: &Liar, socket: &mut Socket<LinkDown, LinkUp>) {
    let spec = ContainerSpec {
        name: "web".to_owned(),
        image: "demo/web:1".to_owned(),
        ..ContainerSpec::default()
    };
    let run = liar
        .controller
        .sign(&liar.command(Kind::Run(Run { spec: Some(spec) })));
    deliver(socket, &run).await;
    let id = Bytes::copy_from_slice(
        &<Command as fairlead_protocol::Message>::decode(&run.command[..])
            .unwrap()
            .id,
    );
    let ran = result(socket, &id).await;
    assert_eq!(ran.state(), State::Succeeded, "{ran:#?}");
    let ack = ResultAck {
        command: id,
        connection: 1,
    };
    tell(socket, link_down::Kind::ResultAck(ack)).await;
}

/// What a taken-over access server would try, each with the id of the command that it claims to be.
fn attacks(
    liar: &Liar,
    rogue: &Signer,
    genuine: &Command,
) -> [(&'static str, Bytes, SignedCommand); 4] {
    // Forged: by a key of the liar's.
    let forged = liar.command(restart("web"));
    // Altered: another id inside the signed bytes would be another command; one bit is enough.
    let mut altered = liar.controller.sign(genuine);
    let mut bytes = altered.command.to_vec();
    let at = bytes.windows(3).position(|w| w == b"web").unwrap();
    bytes[at] = b'v';
    altered.command = bytes.into();
    // Redirected: signed for another host.
    let mut other = liar.command(restart("web"));
    other.host = HostId::from_bytes(random::bytes()).to_wire();
    // Without a signature at all.
    let unsigned = liar.command(restart("web"));
    let mut bare = liar.controller.sign(&unsigned);
    bare.signature = Bytes::new();

    [
        ("forged", forged.id.clone(), rogue.sign(&forged)),
        ("altered", genuine.id.clone(), altered),
        ("redirected", other.id.clone(), liar.controller.sign(&other)),
        ("unsigned", unsigned.id.clone(), bare),
    ]
}

#[tokio::test]
async fn a_taken_over_access_server_cannot_command_anything() {
    let dir = tempfile::tempdir().unwrap();
    let mut liar = Liar::new().await;
    let elsewhere =
        Authority::new_root("fairlead.internal", jiff::Timestamp::now().as_second()).unwrap();
    let rogue = signer(&elsewhere);
    // It offers a key of its own beside the true one.
    liar.keys.chains.push(rogue.chain());
    let agent = Agent::start(&liar, dir.path());
    let mut socket = liar.link().await;

    run_web(&liar, &mut socket).await;
    let genuine = liar.command(restart("web"));
    let attacks = attacks(&liar, &rogue, &genuine);
    for (what, id, signed) in &attacks {
        deliver(&mut socket, signed).await;
        let refused = result(&mut socket, id).await;
        assert_eq!(
            (refused.state(), &refused.code[..]),
            (State::Failed, "signature_rejected"),
            "{what}: {refused:#?}"
        );
    }
    assert!(
        !agent.owner_log().contains("restart"),
        "{}",
        agent.owner_log()
    );
    assert_eq!(
        agent.owner_log().matches("a command was refused").count(),
        attacks.len(),
        "the owner is told of each"
    );

    // The true command still comes through under its id: an alteration has not used it up.
    deliver(&mut socket, &liar.controller.sign(&genuine)).await;
    let done = result(&mut socket, &genuine.id).await;
    assert_eq!(done.state(), State::Succeeded, "{done:#?}");

    // Replayed: at once, after the acknowledgement, and to the next instance of the agent.
    deliver(&mut socket, &liar.controller.sign(&genuine)).await;
    let again = result(&mut socket, &genuine.id).await;
    assert_eq!(
        (again.state(), &again.stamps),
        (State::Succeeded, &done.stamps)
    );
    let ack = ResultAck {
        command: genuine.id.clone(),
        connection: 1,
    };
    tell(&mut socket, link_down::Kind::ResultAck(ack)).await;
    deliver(&mut socket, &liar.controller.sign(&genuine)).await;
    assert_eq!(
        result(&mut socket, &genuine.id).await.state(),
        State::Succeeded
    );
    drop(socket);
    send(pid(&agent).await, Signal::KILL);
    let mut socket = liar.link().await;
    deliver(&mut socket, &liar.controller.sign(&genuine)).await;
    assert_eq!(
        result(&mut socket, &genuine.id).await.state(),
        State::Succeeded
    );

    // Too late, however it was delayed.
    let mut late = liar.command(restart("web"));
    late.issued_at_us = now_us() - 120_000_000;
    late.not_after_us = now_us() - 60_000_000;
    deliver(&mut socket, &liar.controller.sign(&late)).await;
    assert_eq!(result(&mut socket, &late.id).await.state(), State::Expired);

    // A stream for a command that the agent has not verified is not dialled.
    let open = OpenStream {
        id: random::bytes::<16>().to_vec().into(),
        host: liar.host.to_wire(),
        command: random::bytes::<16>().to_vec().into(),
        ..OpenStream::default()
    };
    tell(&mut socket, link_down::Kind::OpenStream(open)).await;
    loop {
        let message = socket.hear_message(SOON).await.expect("the agent answers");
        if matches!(message.kind, Some(link_up::Kind::StreamRefused(_))) {
            break;
        }
    }
    let begun = agent
        .owner_log()
        .matches("began: restart container web")
        .count();
    assert_eq!(begun, 1, "{}", agent.owner_log());
    drop(agent.supervisor);
}
