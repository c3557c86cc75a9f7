//! How a machine becomes a host, stays one, and stops being one.
//!
//! Holds: P8 (no peer is believed before it proved who it is); DESIGN §6 (join tokens, `held`,
//! revocation within 5 s); SECURITY S13; "bad input": a wrong, expired, used-up or foreign token, a
//! wrong CA hash. Copies of a host are in `clones`.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fairlead_api::types::{Action, Host, JoinTokenRequest, NewJoinToken, Permission};
use fairlead_identity::authority::{Authority, LeafUse, PrivateKey};
use fairlead_identity::tls::{self, Credentials, Expected, Trust};
use fairlead_identity::token::JoinToken;
use fairlead_identity::{Role, Root};
use fairlead_link::dial::Dialler;
use fairlead_link::socket::Socket;
use fairlead_protocol::version::{paths, sni};
use fairlead_protocol::{
    EnrolReply, EnrolRequest, HostFacts, LinkDown, LinkUp, limits, link_down, link_up,
};
use fairlead_tests::engine::Names;
use fairlead_tests::fleet::{Fleet, HostSide, Options};
use fairlead_tests::programs::program;
use fairlead_tests::stream::Stream;
use fairlead_tests::wait::{stays_so, wait_for};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

use crate::acts::{attach, exec, run_simulated};

const SOON: Duration = Duration::from_secs(20);
/// What a revocation may take, everywhere: promised are 5 s, where no disk and no neighbour is slow.
const CUT_WITHIN: Duration = Duration::from_secs(15);

async fn token(fleet: &Fleet, request: JoinTokenRequest) -> NewJoinToken {
    let region = request.region.clone().unwrap_or_else(|| "local".to_owned());
    let request = JoinTokenRequest {
        region: Some(region),
        ..request
    };
    fleet
        .api
        .new_join_token(&request)
        .await
        .unwrap_or_else(|no| panic!("{no}"))
}

#[tokio::test]
async fn a_host_tells_what_it_is_and_the_token_is_used_up() {
    let fleet = Fleet::start(Options::simulated()).await;
    let host = fleet.api.host("box").await.unwrap();
    assert_eq!((&host.region[..], &host.tenant[..]), ("local", "default"));
    assert!(
        host.epoch >= 1 && host.certificate_expires_at.is_some(),
        "{host:#?}"
    );
    let facts = host.facts.unwrap();
    assert!(
        facts.cpus > 0 && facts.memory_bytes > 0 && !facts.kernel.is_empty(),
        "{facts:#?}"
    );
    let mode = |path: &Path| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    };
    assert_eq!(mode(&fleet.hosts[0].dir), 0o700);
    assert_eq!(mode(&fleet.hosts[0].dir.join("identity")), 0o600);
    fleet.api.event("host.enrolled", "box", SOON).await;
}

#[tokio::test]
async fn tokens_that_are_not_good_are_refused_each_with_its_code() {
    let fleet = Fleet::start(Options::simulated()).await;
    let ca_hash = JoinToken::generate([0; 32]);
    let good = token(&fleet, JoinTokenRequest::default()).await;
    let parsed: JoinToken = good.token.parse().unwrap();

    let expired = token(
        &fleet,
        JoinTokenRequest {
            ttl_s: Some(1),
            ..Default::default()
        },
    )
    .await;
    let revoked = token(&fleet, JoinTokenRequest::default()).await;
    let _: serde_json::Value = fleet
        .api
        .delete(&format!("join-tokens/{}", revoked.info.id))
        .await
        .unwrap();
    let other = fleet.api.new_region("other").await.unwrap();
    let foreign = token(
        &fleet,
        JoinTokenRequest {
            region: Some("other".to_owned()),
            ..Default::default()
        },
    )
    .await;
    let used = token(&fleet, JoinTokenRequest::default()).await;
    let second = fleet.start_host("second", &used.token);
    fleet.online("second").await;
    let unknown = JoinToken {
        ca_hash: parsed.ca_hash,
        ..ca_hash
    };
    let guessed = JoinToken {
        secret: unknown.secret.clone(),
        ..parsed.clone()
    };
    wait_for("the token expires", SOON, async || {
        if jiff::Timestamp::now() > expired.info.expires_at {
            Ok(())
        } else {
            Err(String::new())
        }
    })
    .await;

    let cases = [
        ("expired", expired.token.clone(), "token_expired"),
        ("revoked", revoked.token.clone(), "token_revoked"),
        ("foreign", foreign.token.clone(), "token_foreign"),
        ("server", other.join_token.token.clone(), "token_foreign"),
        ("used", used.token.clone(), "token_used_up"),
        ("unknown", unknown.to_string(), "token_unknown"),
        ("guessed", guessed.to_string(), "token_unknown"),
        ("api", fleet.api.token.clone(), "API token"),
        (
            "cut",
            good.token[..good.token.len() - 3].to_owned(),
            "not a token",
        ),
    ];
    let hosts: Vec<(HostSide, &str)> = cases
        .iter()
        .map(|(name, token, code)| (fleet.start_host(name, token), *code))
        .collect();
    for (host, code) in &hosts {
        host.supervisor.says(code, SOON).await;
        assert!(
            !host.dir.join("identity").exists(),
            "{} is not a host",
            host.name
        );
    }
    let mut known: Vec<String> = fleet
        .api
        .hosts()
        .await
        .unwrap()
        .into_iter()
        .map(|host| host.name)
        .collect();
    known.sort();
    assert_eq!(known, ["box", "second"]);

    // The good one still works: no attempt with a wrong secret has used it.
    let third = fleet.start_host("third", &good.token);
    fleet.online("third").await;
    drop((second, third));
}

#[tokio::test]
async fn a_join_token_is_no_api_token() {
    let fleet = Fleet::start(Options::simulated()).await;
    let good = token(&fleet, JoinTokenRequest::default()).await;
    let no = fleet
        .api
        .with_token(&good.token)
        .get::<Vec<Host>>("hosts")
        .await
        .unwrap_err();
    assert_eq!((no.status, &no.code[..]), (401, "unauthenticated"));
    assert!(
        no.message.contains("join token"),
        "it says what it is: {no}"
    );
}

/// An installation of somebody else's, complete with an access server's certificate.
fn another_installation() -> Credentials {
    let now = jiff::Timestamp::now().as_second();
    let root = Authority::new_root("elsewhere.example", now).unwrap();
    let servers = root.new_intermediate(&Role::ServersCa, now).unwrap();
    let key = PrivateKey::generate().unwrap();
    let role = Role::AccessServer {
        region: "local".to_owned(),
        name: "a1".to_owned(),
    };
    let leaf = servers
        .certify_own(
            &key,
            &role,
            LeafUse::Both,
            &[],
            (now, Duration::from_secs(3600)),
        )
        .unwrap();
    Credentials {
        chain: leaf.chain,
        key: key.for_tls(),
    }
}

#[tokio::test]
async fn a_server_of_another_ca_is_told_nothing() {
    let fleet = Fleet::start(Options::simulated()).await;
    let credentials = another_installation();
    let root = Root::from_der(credentials.chain.last().unwrap().clone()).unwrap();
    let config = tls::server(root, credentials, Duration::ZERO).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let heard = Arc::new(AtomicUsize::new(0));
    let knocks = Arc::new(AtomicUsize::new(0));
    let server = {
        let (heard, knocks) = (Arc::clone(&heard), Arc::clone(&knocks));
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                knocks.fetch_add(1, Ordering::SeqCst);
                let Ok(mut tls) = acceptor.accept(tcp).await else {
                    continue;
                };
                let mut byte = [0; 1];
                if let Ok(read) = tls.read(&mut byte).await {
                    heard.fetch_add(read, Ordering::SeqCst);
                }
            }
        })
    };
    let good = token(&fleet, JoinTokenRequest::default()).await;
    let file = fleet.secret_file("mallory.token", &good.token);
    let dir = fleet.dir().join("agent-mallory");

    let host = fleet.start_host_in("mallory", dir, &address, Some(&file));

    host.supervisor.says("ca_mismatch", SOON).await;
    host.supervisor.says("the secret was not sent", SOON).await;
    assert!(knocks.load(Ordering::SeqCst) >= 1);
    assert_eq!(
        heard.load(Ordering::SeqCst),
        0,
        "application bytes were sent"
    );
    server.abort();
    // The token was not given away: it still works.
    let _late = fleet.start_host("late", &good.token);
    fleet.online("late").await;
}

/// Asks at the enrol door by itself, as an agent does.
async fn enrol_by_hand(fleet: &Fleet, token: &JoinToken, key: &PrivateKey) -> EnrolReply {
    let config = tls::client(
        Trust::RootHash(token.ca_hash),
        Expected::AnyAccessServer,
        None,
    )
    .unwrap();
    let (mut socket, _): (Socket<LinkUp, LinkDown>, _) = Dialler::new(config, None, sni::AGENTS)
        .messages(
            &fleet.regions[0].agents.address(),
            paths::ENROL,
            limits::LINK_MESSAGE_BYTES_MAX,
        )
        .await
        .unwrap();
    let request = EnrolRequest {
        token_id: token.id.clone(),
        token_secret: token.secret.clone(),
        csr_der: key.request().unwrap().into(),
        facts: Some(HostFacts {
            hostname: "hand".to_owned(),
            ..HostFacts::default()
        }),
        sealing_key: bytes::Bytes::new(),
    };
    socket
        .send(&LinkUp {
            kind: Some(link_up::Kind::Enrol(request)),
        })
        .await
        .unwrap();
    match socket.hear_message(SOON).await.unwrap().kind {
        Some(link_down::Kind::Enrolled(reply)) => reply,
        other => panic!("not enrolled: {other:?}"),
    }
}

#[tokio::test]
async fn an_enrolment_asked_for_again_with_the_same_key_is_the_same_host() {
    let fleet = Fleet::start(Options::simulated()).await;
    let good = token(&fleet, JoinTokenRequest::default()).await;
    let token: JoinToken = good.token.parse().unwrap();
    let key = PrivateKey::generate().unwrap();

    let first = enrol_by_hand(&fleet, &token, &key).await;
    let again = enrol_by_hand(&fleet, &token, &key).await;

    assert_eq!(
        first.host, again.host,
        "a lost answer must not make a second host"
    );
    assert_eq!(first.name, again.name);
    assert_eq!(fleet.api.hosts().await.unwrap().len(), 2);
}

#[tokio::test]
async fn an_epoch_that_went_back_is_held_until_an_admin_approves() {
    let mut fleet = Fleet::start(Options::simulated()).await;
    for _ in 0..2 {
        fleet.hosts[0].kill_agent().await;
        fleet.hosts[0].agent_pid().await;
    }
    wait_for("the third term is known", SOON, async || {
        let host = fleet.api.host("box").await.map_err(|no| no.to_string())?;
        if host.epoch >= 3 && host.state == "online" {
            Ok(())
        } else {
            Err(format!("{host:?}"))
        }
    })
    .await;
    // Behind the term in the region's ledger.
    fleet.done(Action::Ping {}).await;
    fleet.hosts[0].kill();
    std::fs::write(fleet.hosts[0].dir.join("epoch"), "0").unwrap();
    fleet.hosts[0].start();

    let held = fleet.api.host_is("box", "held", SOON).await;
    assert!(held.reason.contains("epoch"), "{held:#?}");
    fleet.hosts[0].supervisor.says("(held)", SOON).await;
    fleet.api.event("host.held", "box", SOON).await;
    let waiting = fleet.begin(Action::Ping {}).await;
    let seen = fleet.api.command(&waiting.id).await.unwrap();
    assert!(
        !seen.is_final && seen.waiting_for.contains("held"),
        "{seen:#?}"
    );

    let _: Host = fleet.api.post("hosts/box/approve", &()).await.unwrap();
    // It asks again by itself after a minute; a restart asks at once.
    fleet.hosts[0].kill_agent().await;
    fleet.online("box").await;
    assert_eq!(fleet.api.ended(&waiting.id, SOON).await.state, "succeeded");
    // And the term goes on from what the region has seen.
    wait_for("the term is beyond what was seen", SOON, async || {
        let host = fleet.api.host("box").await.map_err(|no| no.to_string())?;
        if host.epoch >= 1 {
            Ok(())
        } else {
            Err(format!("{host:?}"))
        }
    })
    .await;
}

#[tokio::test]
async fn one_state_directory_serves_one_supervisor() {
    let fleet = Fleet::start(Options::simulated()).await;
    let host = &fleet.hosts[0];
    let address = fleet.regions[0].agents.address();
    let mut second = fleet.start_host_in("box", host.dir.clone(), &address, None);
    let status = wait_for("the second leaves", SOON, async || {
        second.supervisor.ended().ok_or_else(String::new)
    })
    .await;
    assert!(!status.success());
    second
        .supervisor
        .says("another supervisor serves", SOON)
        .await;
    fleet.done(Action::Ping {}).await;
}

/// An open stream into a container: what a person has before somebody revokes something.
async fn open_stream(fleet: &Fleet, api: &fairlead_tests::client::Api, container: &str) -> Stream {
    let mut action = exec(container, &["cat"]);
    if let Action::Exec { stdin, .. } = &mut action {
        *stdin = true;
    }
    let (_, mut stream) = attach(api, &fleet.host(), action).await;
    stream.begun().await;
    stream
}

async fn is_cut(stream: &mut Stream) {
    let cut = tokio::time::timeout(CUT_WITHIN, stream.rest()).await;
    assert!(
        cut.is_ok(),
        "the stream was still open after {CUT_WITHIN:?}"
    );
}

#[tokio::test]
async fn a_revoked_host_loses_its_link_and_its_streams_and_stays_out() {
    let names = Names::new();
    let mut fleet = Fleet::start(Options::docker()).await;
    let web = names.polite("web");
    let mut stream = open_stream(&fleet, &fleet.api, &web).await;

    let _: Host = fleet.api.delete("hosts/box").await.unwrap();

    is_cut(&mut stream).await;
    fleet.hosts[0].supervisor.says("no link", CUT_WITHIN).await;
    fleet.hosts[0].kill();
    fleet.hosts[0].start();
    fleet.hosts[0].supervisor.says("(revoked)", SOON).await;
    let state = fleet.api.host("box").await.map(|host| host.state);
    assert!(
        state.as_deref().map_or(true, |state| state == "revoked"),
        "{state:?}"
    );
    assert!(
        fairlead_tests::engine::is_running(&web),
        "its containers are left alone"
    );
}

/// What the machine's owner is told of it there.
async fn status(host: &HostSide) -> (Option<i32>, String) {
    let mut asked = tokio::process::Command::new(program("fairlead-agent"));
    asked
        .args(["status", "--engine", "simulated", "--state-dir"])
        .arg(&host.dir);
    let said = asked.output().await.unwrap();
    let words = [said.stdout, said.stderr].concat();
    (said.status.code(), String::from_utf8(words).unwrap())
}

#[tokio::test]
async fn a_revoked_host_says_so_on_its_own_machine_until_it_joins_again() {
    let mut fleet = Fleet::start(Options::simulated()).await;
    wait_for("its status says that it is enrolled", SOON, async || {
        let (code, said) = status(&fleet.hosts[0]).await;
        let is_said = code == Some(0) && said.contains("enrolled as box");
        is_said.then_some(()).ok_or(said)
    })
    .await;

    let _: Host = fleet.api.delete("hosts/box").await.unwrap();
    wait_for("its status says it", SOON, async || {
        let (code, said) = status(&fleet.hosts[0]).await;
        let wanted = [
            "identity  REVOKED: it was box",
            "(revoked)",
            "--re-enrol",
            "uninstall",
        ];
        if code == Some(1) && wanted.iter().all(|wanted| said.contains(wanted)) {
            Ok(())
        } else {
            Err(format!("{code:?}: {said}"))
        }
    })
    .await;
    // Also while nothing runs.
    fleet.hosts[0].kill();
    let (code, said) = status(&fleet.hosts[0]).await;
    assert!(code == Some(1) && said.contains("REVOKED"), "{said}");

    // What the installer does when it is told --re-enrol.
    std::fs::remove_file(fleet.hosts[0].dir.join("identity")).unwrap();
    let again = token(&fleet, JoinTokenRequest::default()).await.token;
    let _rewritten = fleet.secret_file("box.token", &again);
    fleet.hosts[0].start();
    wait_for("it is a host again", SOON, async || {
        let (code, said) = status(&fleet.hosts[0]).await;
        if code == Some(0) && said.contains("enrolled as box") && said.contains("link      up") {
            Ok(())
        } else {
            Err(format!("{code:?}: {said}"))
        }
    })
    .await;
}

#[tokio::test]
async fn a_revoked_certificate_cuts_the_link() {
    let fleet = Fleet::start(Options::simulated()).await;
    let _: Host = fleet
        .api
        .post("hosts/box/revoke-certificate", &())
        .await
        .unwrap();
    wait_for("the host is not online any more", CUT_WITHIN, async || {
        let host = fleet.api.host("box").await.map_err(|no| no.to_string())?;
        if host.state == "online" {
            Err(host.state)
        } else {
            Ok(())
        }
    })
    .await;
    stays_so("it stays out", Duration::from_secs(2), async || {
        let host = fleet.api.host("box").await.map_err(|no| no.to_string())?;
        if host.state == "online" {
            Err(host.state)
        } else {
            Ok(())
        }
    })
    .await;
}

#[tokio::test]
async fn a_revoked_api_token_cuts_its_streams() {
    let fleet = Fleet::start(Options::simulated()).await;
    fleet.done(run_simulated("web")).await;
    let made = fleet
        .api
        .new_api_token(
            "guest",
            &[Permission::Read, Permission::Operate, Permission::Exec],
        )
        .await
        .unwrap();
    let guest = fleet.api.with_token(&made.token);
    let mut stream = open_stream(&fleet, &guest, "web").await;
    let mut own = open_stream(&fleet, &fleet.api, "web").await;

    fleet.api.revoke_api_token(&made.info.id).await.unwrap();

    is_cut(&mut stream).await;
    let no = guest.status().await.unwrap_err();
    assert_eq!((no.status, &no.code[..]), (401, "unauthenticated"));
    // Nobody else's is.
    own.send(fairlead_protocol::stream::Channel::Input, b"still here\n")
        .await;
    let (_, data) = own.hear().await.expect("the other stream is open");
    assert_eq!(&data[..], b"still here\n");
}

#[tokio::test]
async fn an_api_token_may_do_what_it_was_given_and_nothing_else() {
    let fleet = Fleet::start(Options::simulated()).await;
    fleet.done(run_simulated("web")).await;
    let made = fleet
        .api
        .new_api_token("reader", &[Permission::Read])
        .await
        .unwrap();
    let reader = fleet.api.with_token(&made.token);
    assert_eq!(reader.hosts().await.unwrap().len(), 1);
    let request = fairlead_tests::client::request("box", crate::acts::restart("web"));
    let no = reader.submit(&request, Duration::ZERO).await.unwrap_err();
    assert_eq!((no.status, &no.code[..]), (403, "permission_denied"));
    // What reaches out of a container is more than a process in it.
    let made = fleet.api.new_api_token("execer", &[Permission::Exec]).await;
    let execer = fleet.api.with_token(&made.unwrap().token);
    let mut reaches_out = crate::acts::exec("web", &["true"]);
    if let fairlead_api::types::Action::Exec { privileged, .. } = &mut reaches_out {
        *privileged = true;
    }
    for (action, status) in [
        (reaches_out, 403),
        (crate::acts::exec("web", &["true"]), 201),
    ] {
        let request = fairlead_tests::client::request("box", action);
        let answer = execer.submit(&request, Duration::ZERO).await;
        assert_eq!(answer.map_or_else(|no| no.status, |_| 201), status);
    }
    let no = reader
        .new_api_token("more", &[Permission::Admin])
        .await
        .map(|_| ())
        .unwrap_err();
    assert_eq!((no.status, &no.code[..]), (403, "permission_denied"));
    let no = fleet.api.with_token("").hosts().await.unwrap_err();
    assert_eq!((no.status, &no.code[..]), (401, "unauthenticated"));
    let no = fleet
        .api
        .with_token("")
        .setup("nonsense")
        .await
        .map(|_| ())
        .unwrap_err();
    assert_eq!(no.code, "setup_closed");
}

/// Gives a process an `/etc/hosts` of its own, which is the file that comes first.
const OWN_HOSTS: &str = "mount --bind \"$0\" /etc/hosts && exec \"$@\"";

#[tokio::test]
async fn a_name_that_leads_nowhere_is_tried_until_it_leads_somewhere() {
    if !fairlead_tests::disk::Disk::can_be_had() {
        return;
    }
    let names = tempfile::tempdir().unwrap();
    let hosts = names.path().join("hosts");
    std::fs::write(&hosts, "127.0.0.1 localhost\n").unwrap();
    let mut options = Options::simulated().hosts(&[]);
    let wrapper = [
        "unshare",
        "-m",
        "sh",
        "-c",
        OWN_HOSTS,
        hosts.to_str().unwrap(),
    ];
    options.agent_wrapper = wrapper.map(str::to_owned).to_vec();
    let mut fleet = Fleet::start(options).await;
    let token = fleet
        .api
        .new_join_token(&JoinTokenRequest {
            region: Some("local".to_owned()),
            ..JoinTokenRequest::default()
        })
        .await
        .unwrap_or_else(|no| panic!("{no}"));
    let token = fleet.secret_file("box.token", &token.token);
    let address = format!("region.fairlead.invalid:{}", fleet.regions[0].agents.number);
    let dir = fleet.dir().join("agent-box");
    let host = fleet.start_host_in("box", dir, &address, Some(&token));
    host.supervisor
        .says(&format!("cannot reach {address}"), SOON)
        .await;
    std::fs::write(&hosts, "127.0.0.1 localhost region.fairlead.invalid\n").unwrap();
    fleet.hosts.push(host);
    fleet.online("box").await;
    fleet.done(Action::Ping {}).await;
}
