//! What else a taken-over access server can do: withhold, delay, reorder, acknowledge at the wrong time, lie
//! about epoch and time, send its agents away, flood them.
//!
//! Not to be noticed by the host: that a command was withheld or withdrawn, that one came before an older one,
//! and, with a wrong time, that one is later than it should be, until a newer one has come.

use std::time::Duration;

use bytes::Bytes;
use fairlead_identity::authority::Authority;
use fairlead_identity::random;
use fairlead_link::socket::Socket;
use fairlead_protocol::{
    HostIdentity, LinkDown, LinkUp, Message, OpenStream, Reconnect, ResultAck, State, Welcome,
    link_down,
};

use super::{Agent, Liar, SOON, deliver, now_us, pid, restart, result, run_web, signer, tell};
use crate::malicious_agent::rss_kb;

async fn ack(socket: &mut Socket<LinkDown, LinkUp>, id: &Bytes, connection: u64) {
    let ack = ResultAck {
        command: id.clone(),
        connection,
    };
    tell(socket, link_down::Kind::ResultAck(ack)).await;
}

/// How often the owner's log says that it began.
fn begun(agent: &Agent, words: &str) -> usize {
    agent
        .owner_log()
        .matches(&format!("began: {words}"))
        .count()
}

#[tokio::test]
async fn withheld_early_and_old_acks_lose_no_result_and_double_no_effect() {
    let dir = tempfile::tempdir().unwrap();
    let liar = Liar::new().await;
    let agent = Agent::start(&liar, dir.path());
    let mut socket = liar.link().await;
    run_web(&liar, &mut socket).await;

    // Acknowledged before it is sent, while it runs, and for a connection of long ago: the result
    // comes all the same.
    let first = liar.command(restart("web"));
    ack(&mut socket, &first.id, 1).await;
    deliver(&mut socket, &liar.controller.sign(&first)).await;
    for connection in [0, 7, u64::MAX] {
        ack(&mut socket, &first.id, connection).await;
    }
    let told = result(&mut socket, &first.id).await;
    assert_eq!(told.state(), State::Succeeded, "{told:#?}");

    // Withheld: it is said again, on this link and on the next, and done once.
    let second = liar.command(restart("web"));
    deliver(&mut socket, &liar.controller.sign(&second)).await;
    let told = result(&mut socket, &second.id).await;
    let again = result(&mut socket, &second.id).await;
    drop(socket);
    let mut socket = liar.link().await;
    let later = result(&mut socket, &second.id).await;
    for again in [&again, &later] {
        assert_eq!((again.state(), &again.stamps), (told.state(), &told.stamps));
    }
    assert_eq!(begun(&agent, "restart container web"), 2);

    // Reordered: each is done once. That the second was signed first nobody but the controller can know,
    // who sees it in the times of the results.
    let (older, newer) = (liar.command(restart("web")), liar.command(restart("web")));
    for command in [&newer, &older] {
        deliver(&mut socket, &liar.controller.sign(command)).await;
    }
    for command in [&newer, &older] {
        let told = result(&mut socket, &command.id).await;
        assert_eq!(told.state(), State::Succeeded, "{told:#?}");
    }
    assert_eq!(begun(&agent, "restart container web"), 4);
}

#[tokio::test]
async fn a_wrong_time_revives_nothing_older_than_the_newest_command_and_other_lies_do_not_stay() {
    let dir = tempfile::tempdir().unwrap();
    let mut liar = Liar::new().await;
    let agent = Agent::start(&liar, dir.path());
    let mut socket = liar.link().await;
    run_web(&liar, &mut socket).await;

    // Delayed beyond its deadline, and a time from before it.
    let mut old = liar.command(restart("web"));
    old.issued_at_us = now_us() - 120_000_000;
    old.not_after_us = now_us() - 60_000_000;
    liar.says.server_time_us = -3_600_000_000;
    drop(socket);
    let mut socket = liar.link().await;
    deliver(&mut socket, &liar.controller.sign(&old)).await;
    let told = result(&mut socket, &old.id).await;
    assert_eq!(told.state(), State::Expired, "{told:#?}");
    assert_eq!(begun(&agent, "restart container web"), 0);

    // An epoch that would leave no next one, times of other ages: nothing of it is kept.
    for lie in [
        Welcome {
            epoch: u64::MAX,
            ..Welcome::default()
        },
        Welcome {
            server_time_us: i64::MAX - now_us() - 1_000_000_000_000,
            ..Welcome::default()
        },
        Welcome {
            server_time_us: -now_us(),
            ..Welcome::default()
        },
    ] {
        liar.says = lie;
        drop(socket);
        socket = liar.link().await;
        let heard = socket.hear_message(SOON).await;
        assert!(heard.is_err(), "the agent stays: {heard:?}");
    }
    let epoch = std::fs::read_to_string(agent.dir.join("epoch")).unwrap();
    assert_eq!(epoch.trim(), "1");

    // Come back in seven weeks; ping me each millisecond; try these first.
    liar.says = Welcome {
        ping_interval_ms: 1,
        addresses: (1..400).map(|n| format!("127.0.0.1:{n}")).collect(),
        ..Welcome::default()
    };
    drop(socket);
    let mut socket = liar.link().await;
    let wish = Reconnect {
        after_ms: u32::MAX,
        spread_ms: u32::MAX,
        reason: "because".to_owned(),
    };
    tell(&mut socket, link_down::Kind::Reconnect(wish)).await;
    let said = std::time::Instant::now();
    agent
        .supervisor
        .says("the server asks to come back", SOON)
        .await;
    let log = agent.supervisor.said();
    let line = log
        .lines()
        .rfind(|line| line.contains("the server asks to come back"))
        .unwrap();
    let wait = line.rsplit("retry_in_ms=").next().unwrap();
    let wait_ms: u64 = wait.split_whitespace().next().unwrap().parse().unwrap();
    assert!(wait_ms <= 400_000, "{line}");
    let kept =
        HostIdentity::decode(&std::fs::read(agent.dir.join("identity")).unwrap()[..]).unwrap();
    let kept = kept.enrolment.unwrap().addresses;
    assert!(kept.len() <= 16, "{}", kept.len());
    println!(
        "{wait_ms} ms instead of seven weeks, after {:?}",
        said.elapsed()
    );
}

#[tokio::test]
async fn floods_of_an_access_server_cost_its_agent_bounded_memory() {
    let dir = tempfile::tempdir().unwrap();
    let liar = Liar::new().await;
    let elsewhere =
        Authority::new_root("fairlead.internal", jiff::Timestamp::now().as_second()).unwrap();
    let rogue = signer(&elsewhere);
    let agent = Agent::start(&liar, dir.path());
    let mut socket = liar.link().await;
    run_web(&liar, &mut socket).await;
    let process = pid(&agent).await;
    let before = rss_kb(process);

    let genuine = liar.command(restart("web"));
    let signed = liar.controller.sign(&genuine);
    let (mut told, mut most) = (0, before);
    for round in 0..3_000 {
        // The same again, forged ones, streams that nobody asked for, acks of nothing.
        deliver(&mut socket, &signed).await;
        deliver(&mut socket, &rogue.sign(&liar.command(restart("web")))).await;
        let open = OpenStream {
            id: random::bytes::<16>().to_vec().into(),
            host: liar.host.to_wire(),
            command: random::bytes::<16>().to_vec().into(),
            ..OpenStream::default()
        };
        tell(&mut socket, link_down::Kind::OpenStream(open)).await;
        ack(
            &mut socket,
            &Bytes::copy_from_slice(&random::bytes::<16>()),
            round,
        )
        .await;
        // What it answers is read, but not faster than it is asked.
        while let Ok(Ok(_)) = tokio::time::timeout(Duration::from_micros(200), socket.hear()).await
        {
            told += 1;
        }
        most = rss_kb(process).max(most);
    }
    assert!(told > 0);
    let last = liar.command(restart("web"));
    deliver(&mut socket, &liar.controller.sign(&last)).await;
    let done = result(&mut socket, &last.id).await;
    assert_eq!(done.state(), State::Succeeded, "{done:#?}");
    assert_eq!(pid(&agent).await, process, "the same process");
    println!("{told} answers, kB {before}, at most {most}");
    assert!(most - before < 64 * 1024, "from {before} to {most} kB");
    let log = agent.dir.join("owner.log");
    let written = std::fs::metadata(&log).unwrap().len();
    assert!(written < 16 << 20, "the owner's log: {written} bytes");
    assert!(begun(&agent, "restart container web") <= 2);
}
