//! P1, P2, P3: access server and controller are replaced by another version, in order, under commands, and nobody
//! notices. Nothing is lost or doubled, no host is shown as down, streams end as they are said to, and hosts come
//! back spread. N and N-1 are side by side after each step.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fairlead_protocol::stream::Channel;
use fairlead_tests::client::Api;
use fairlead_tests::engine::Names;
use fairlead_tests::fleet::{Fleet, HostSide, Options};
use fairlead_tests::oracle::{judge, tell};
use fairlead_tests::stream::Stream as Attached;
use fairlead_tests::versions::program_as;
use fairlead_tests::wait::{moment, wait_for};
use tokio::task::JoinHandle;

use crate::acts::{attach, exec, logs, run_simulated};
use crate::skew::{NEWER_ABOVE, NEWER_BELOW, under_commands, with_region};
use crate::storm::kills::Kills;
use crate::storm::stream::{Dice, Size, Stream, count_ends};

const SOON: Duration = Duration::from_secs(40);
const CONTROLLER: &str = "fairlead-controller";
const ACCESS_SERVER: &str = "fairlead-access-server";
const LOOK_EVERY_MS: u64 = 25;
/// Less would tell nothing.
const COMMANDS_MIN: usize = 80;
const LOOKS_MIN: usize = 20;

/// Looks at the list of hosts all the time, and keeps whatever is not online.
struct Sights {
    over: Arc<AtomicBool>,
    looking: JoinHandle<(usize, Vec<String>)>,
}

impl Sights {
    fn begin(api: &Api) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let (api, until) = (api.clone(), Arc::clone(&over));
        let looking = tokio::spawn(async move {
            let began = Instant::now();
            let (mut looks, mut down) = (0, Vec::new());
            while !until.load(Ordering::SeqCst) {
                // While the controller is restarted nobody answers.
                if let Ok(hosts) = api.hosts().await {
                    looks += 1;
                    let others = hosts.iter().filter(|host| host.state != "online");
                    down.extend(others.map(|host| {
                        let at = began.elapsed();
                        format!("{at:.2?}: {} is {}: {}", host.name, host.state, host.reason)
                    }));
                }
                moment(LOOK_EVERY_MS).await;
            }
            (looks, down)
        });
        Self { over, looking }
    }

    /// No host was ever shown as anything but online; how often that was looked at.
    async fn end(self) -> usize {
        self.over.store(true, Ordering::SeqCst);
        let (looks, down) = self.looking.await.expect("it looks");
        assert!(down.is_empty(), "of {looks} looks: {down:#?}");
        looks
    }
}

/// Ends one of the servers in order and starts it as that version; how long it was away.
async fn replace(fleet: &mut Fleet, which: &str, version: &str) -> Duration {
    let program = program_as(which, version, fleet.dir());
    let process = if which == CONTROLLER {
        &mut fleet.controller
    } else {
        &mut fleet.regions[0].process
    };
    let began = Instant::now();
    let status = process.leave().await;
    assert!(status.success(), "{which}: {status}");
    process.set_program(program);
    process.start_again();
    wait_for("it is of that version", SOON, async || {
        let said = if which == CONTROLLER {
            fleet.api.status().await.map(|status| status.version)
        } else {
            fleet.api.region("local").await.map(|region| region.version)
        };
        match said {
            Ok(said) if said.ends_with(version) => Ok(()),
            Ok(said) => Err(said),
            Err(no) => Err(no.to_string()),
        }
    })
    .await;
    began.elapsed()
}

/// A follow of what a container writes, and a process that writes: both open when a server ends.
struct Open {
    follow: Attached,
    process: Attached,
    /// What the process had said by then.
    said: String,
    command: String,
}

impl Open {
    async fn begin(api: &Api, talker: &str) -> Self {
        let (_, mut follow) = attach(api, "box", logs(talker, Some(1), true)).await;
        let script =
            "for n in 1 2 3 4 5 6 7 8; do echo $n; sleep 1; done; echo end >> /tmp/ended; exit 5";
        let (command, mut process) = attach(api, "box", exec(talker, &["sh", "-c", script])).await;
        follow.begun().await;
        process.begun().await;
        let line = follow.hear().await;
        assert!(matches!(line, Some((Channel::Output, _))), "{line:?}");
        let said = match process.hear().await {
            Some((Channel::Output, data)) => String::from_utf8_lossy(&data).into_owned(),
            other => panic!("{other:?}"),
        };
        Self {
            follow,
            process,
            said,
            command: command.id,
        }
    }

    /// Over an access server's restart the streams have gone on. A controller's are its own: those of a client that
    /// holds nothing, as here, have ended with it, and say nothing false of it. The process has not ended either way: its end is on record.
    async fn ended(mut self, api: &Api, which: &str) {
        let process = self.process.rest().await;
        if which == ACCESS_SERVER {
            let end = process.end.as_ref().expect("an end");
            assert_eq!(end["exit_code"], 5, "{end:?}");
            let said = self.said + &process.text();
            assert_eq!(said, "1\n2\n3\n4\n5\n6\n7\n8\n");
            for _ in 0..10 {
                let line = self.follow.hear().await;
                assert!(matches!(line, Some((Channel::Output, _))), "{line:?}");
            }
        } else {
            let follow = self.follow.rest().await;
            for heard in [process, follow] {
                let says = heard.end.as_ref().map(|end| end["state"].clone());
                let true_end = says.is_none_or(|state| state != "succeeded");
                assert!(true_end, "{:?}", heard.end);
            }
        }
        let ended = api.ended(&self.command, SOON).await;
        assert_eq!(
            (&ended.state[..], ended.exit_code),
            ("failed", Some(5)),
            "{ended:#?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_are_replaced_under_commands_and_nobody_notices() {
    let mut dice = Dice::seeded();
    let mut fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let talk = "n=0; while :; do n=$((n+1)); echo line $n; sleep 0.2; done";
    let talker = names.by_hand("talker", &[], &["sh", "-c", talk]);
    let size = Size {
        commands: usize::MAX / 2,
        grace_s: 3,
        process_s: 4,
        patience: Duration::from_secs(120),
    };
    let stream = Stream::begin(&fleet, size, &mut dice);
    let mut kills = Kills::new(size);
    let sights = Sights::begin(&fleet.api);
    let mut away = Vec::new();
    // The newer one of the two is the access server, none, the controller, none.
    let steps = [
        (ACCESS_SERVER, "1.1.0"),
        (CONTROLLER, "1.1.0"),
        (ACCESS_SERVER, "1.0.0"),
        (CONTROLLER, "1.0.0"),
    ];
    for (which, version) in steps {
        kills.load(&stream, &mut dice).await;
        let open = Open::begin(&fleet.api, &talker).await;
        let took = replace(&mut fleet, which, version).await;
        away.push(took);
        fleet.all_online().await;
        open.ended(&fleet.api, which).await;
        // It goes on: what is asked now is done now.
        let began = Instant::now();
        fleet.done(exec(&talker, &["true"])).await;
        println!(
            "{which} {version}: back after {took:.2?}, and a process ran within {:.2?}",
            began.elapsed()
        );
    }
    stream.is_enough(COMMANDS_MIN).await;
    let looks = sights.end().await;
    let history = stream.end(&mut fleet).await;
    let found = judge(&history);
    let ends = count_ends(&history);
    println!(
        "{} commands, {} restarts in order ({away:.2?}), {looks} looks at the hosts: {ends:?}",
        history.asked.len(),
        away.len()
    );
    assert!(found.is_empty(), "seed {}: {}", dice.seed, tell(&found));
    assert!(looks > LOOKS_MIN, "{looks}");
}

/// Hosts that come back after a restart of their access server.
const MANY: usize = 8;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_are_told_when_to_come_back_and_are_spread() {
    let names: Vec<String> = (0..MANY).map(|n| format!("h{n}")).collect();
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut fleet = Fleet::start(Options::simulated().hosts(&all)).await;
    let events = |events: Vec<fairlead_api::types::Event>, action: &str| {
        events.iter().filter(|event| event.action == action).count()
    };
    let offline = events(fleet.api.events().await.unwrap(), "host.offline");
    let sights = Sights::begin(&fleet.api);
    replace(&mut fleet, ACCESS_SERVER, "1.1.0").await;
    let mut waits = Vec::new();
    for host in &fleet.hosts {
        let told = "the server asks to come back: the access server is restarted retry_in_ms=";
        host.supervisor.says(told, SOON).await;
        let said = host.supervisor.said();
        let after = said.split(told).nth(1).unwrap();
        let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
        waits.push(digits.parse::<u64>().unwrap());
        // Back, not only expected.
        wait_for("it is back", SOON, async || {
            let now = fleet
                .api
                .host(&host.name)
                .await
                .map_err(|no| no.to_string())?;
            let back = now.state == "online" && now.reason.is_empty();
            back.then_some(()).ok_or(now.reason)
        })
        .await;
    }
    let (least, most) = (*waits.iter().min().unwrap(), *waits.iter().max().unwrap());
    println!("told to come back after {waits:?} ms");
    assert!(
        least >= 200 && most < 200 + 500 + 250 && most - least > 50,
        "{waits:?}"
    );
    let mut all = fleet.api.events().await.unwrap();
    assert_eq!(events(all.clone(), "host.offline"), offline, "{all:#?}");
    all.retain(|event| event.action == "region.restarting");
    assert_eq!(all.len(), 1, "{all:#?}");

    // The controller: its regions and their hosts go on, and the next one expects them.
    // (A host says it again for each dial that fails, so before there may be more than one.)
    let lost = |host: &HostSide| host.supervisor.said().matches("no link").count();
    let before: Vec<usize> = fleet.hosts.iter().map(lost).collect();
    replace(&mut fleet, CONTROLLER, "1.1.0").await;
    fleet.all_online().await;
    sights.end().await;
    let after: Vec<usize> = fleet.hosts.iter().map(lost).collect();
    assert_eq!(after, before, "the links stayed");
}

/// Who is expected and does not come is shown as down, and a server that is killed is none that comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_does_not_come_back_is_shown_as_down() {
    let mut fleet = Fleet::start(Options::simulated().hosts(&["here", "gone"])).await;
    // It hears nothing any more, and its access server ends without noticing that.
    let agent = fleet.hosts[1].agent_pid().await;
    fairlead_tests::process::send(agent, rustix::process::Signal::STOP);
    replace(&mut fleet, ACCESS_SERVER, "1.1.0").await;
    fleet.hosts[1].kill();
    let host = fleet.api.host("gone").await.unwrap();
    assert_eq!(host.state, "online", "{host:#?}");
    assert!(host.reason.contains("expected back"), "{host:#?}");
    fleet.online("here").await;
    fleet.api.host_is("gone", "offline", SOON).await;
    fleet.regions[0].process.kill();
    fleet.api.host_is("here", "unknown", SOON).await;
}

/// What the version before has written is brought forward at the first start, with all that is in it; and a command that
/// waits for that goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn databases_of_the_version_before_are_brought_forward() {
    let mut fleet = Fleet::start(Options::simulated()).await;
    fleet.done(run_simulated("web")).await;
    let before = fleet.done(crate::acts::restart("web")).await;
    let sights = Sights::begin(&fleet.api);
    let ledger = fleet.regions[0].dir.join("ledger.db");
    let store = fleet.dir().join("controller/controller.db");
    for (which, path) in [(ACCESS_SERVER, &ledger), (CONTROLLER, &store)] {
        let waits = (which == ACCESS_SERVER).then(|| fleet.api.clone());
        let process = if which == CONTROLLER {
            &mut fleet.controller
        } else {
            &mut fleet.regions[0].process
        };
        process.leave().await;
        // As a program of format 1 has left it.
        let database = rusqlite::Connection::open(path).unwrap();
        assert_eq!(format_of(&database), 2, "{which}");
        database
            .execute_batch("DROP TABLE rollouts; PRAGMA user_version = 1")
            .unwrap();
        drop(database);
        let asked = match &waits {
            Some(api) => Some(api.begin("box", crate::acts::restart("web")).await.id),
            None => None,
        };
        process.start_again();
        fleet.all_online().await;
        if let Some(id) = asked {
            let ended = fleet.api.ended(&id, SOON).await;
            assert_eq!(ended.state, "succeeded", "{ended:#?}");
        }
        let database = rusqlite::Connection::open(path).unwrap();
        assert_eq!(format_of(&database), 2, "{which}");
        let tables = "SELECT count(*) FROM sqlite_schema WHERE name = 'rollouts'";
        let count: i64 = database.query_row(tables, [], |row| row.get(0)).unwrap();
        assert_eq!(count, 1, "{which}");
        fleet.done(crate::acts::restart("web")).await;
    }
    let kept = fleet.api.command(&before.id).await.unwrap();
    assert_eq!(
        (kept.state, kept.finished_at),
        (before.state, before.finished_at)
    );
    sights.end().await;
}

fn format_of(database: &rusqlite::Connection) -> i64 {
    database
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .unwrap()
}

/// Both servers are restarted while the one speaks to the other as a next version would.
async fn beside_a_next_version(manner: fairlead_tests::skew::Manner) {
    let (mut fleet, _skew) = with_region(manner).await;
    let sights = Sights::begin(&fleet.api);
    fleet.done(run_simulated("stays")).await;
    for which in [ACCESS_SERVER, CONTROLLER] {
        replace(&mut fleet, which, "1.1.0").await;
        fleet.all_online().await;
        under_commands(&fleet).await;
    }
    sights.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_are_restarted_beside_a_newer_access_server() {
    beside_a_next_version(NEWER_BELOW).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_are_restarted_beside_a_newer_controller() {
    beside_a_next_version(NEWER_ABOVE).await;
}
