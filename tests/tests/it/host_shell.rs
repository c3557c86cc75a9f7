//! Shells on a host itself (DESIGN §12): off by default. The token, the host's owner and the recorder each can say
//! no; what runs in one ends with it; who looks afterwards finds it like every other terminal.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use fairlead_api::types::{Host, Permission, Recording, Terminal, TerminalTicket};
use fairlead_tests::client::{Api, Refusal};
use fairlead_tests::fleet::{Fleet, Options};
use fairlead_tests::hosts::{Hosts, TestHost};
use fairlead_tests::lateness::Promised;
use fairlead_tests::terminal::Page;
use fairlead_tests::wait::wait_for;
use serde_json::{Value, json};

use crate::servers::{Servers, ran};
use crate::terminal::{ENDED_WITHIN, audit};

const SOON: Duration = Duration::from_secs(30);
const ALLOWED: &str = "allow_host_shell = true\n";

async fn ask(api: &Api) -> Result<TerminalTicket, Refusal> {
    let body = json!({ "host": "box", "on_host": true, "columns": 80, "rows": 25 });
    api.post("terminals", &body).await
}

/// A token that may have shells on hosts.
async fn rooted(fleet: &Fleet) -> (Api, String) {
    let permissions = [Permission::Read, Permission::Shell, Permission::HostShell];
    let made = fleet.api.new_api_token("rooted", &permissions).await;
    let made = made.unwrap();
    (fleet.api.with_token(&made.token), made.info.id)
}

async fn token(fleet: &Fleet, body: Value) -> Api {
    let made: Value = fleet.api.post("api-tokens", &body).await.unwrap();
    fleet.api.with_token(made["token"].as_str().unwrap())
}

/// Processes of this machine with that word in their command line.
fn running(word: &str) -> Vec<String> {
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.starts_with("sleep") && line.contains(word))
        .collect()
}

async fn none_runs(word: &str) {
    wait_for("no process is left of the shell", SOON, async || {
        let now = running(word);
        now.is_empty().then_some(()).ok_or(format!("{now:?}"))
    })
    .await;
}

async fn runs(word: &str, count: usize) {
    wait_for("what was typed runs", SOON, async || {
        let now = running(word);
        (now.len() == count).then_some(()).ok_or(format!("{now:?}"))
    })
    .await;
}

/// A number of seconds that nobody else sleeps.
fn seconds() -> String {
    static BEFORE: AtomicU32 = AtomicU32::new(1000);
    let number = BEFORE.fetch_add(1, Ordering::Relaxed);
    format!("{number}.{}", std::process::id())
}

#[tokio::test]
async fn it_is_off_and_token_owner_and_recorder_each_can_say_no() {
    let fleet = Fleet::start(Options::docker()).await;
    let policy = fleet.hosts[0].policy.clone();
    std::fs::write(&policy, ALLOWED).unwrap();

    // The token: not even an admin has it without being given it.
    let denied = ask(&fleet.api).await.unwrap_err();
    assert_eq!(
        (denied.status, &denied.code[..]),
        (403, "permission_denied")
    );
    assert!(denied.message.contains("host-shell"), "{denied}");
    for permissions in [json!(["read", "shell"]), json!(["read", "host-shell"])] {
        let body = json!({ "name": "less", "permissions": permissions });
        let less = token(&fleet, body).await;
        assert_eq!(ask(&less).await.unwrap_err().code, "permission_denied");
    }
    let body = json!({ "name": "far", "permissions": ["read", "shell", "host-shell"],
        "scope": { "labels": { "stage": "test" } } });
    let far = token(&fleet, body).await;
    assert_eq!(ask(&far).await.unwrap_err().status, 404);
    // Nothing else leads to one.
    let command = json!({ "host": "box", "action": { "kind": "host-shell" } });
    let refused = fleet.api.post::<Value>("commands", &command).await;
    assert_eq!(refused.unwrap_err().status, 400);
    let (rooted, _) = rooted(&fleet).await;
    let both =
        json!({ "host": "box", "on_host": true, "container": "web", "columns": 80, "rows": 25 });
    let refused = rooted.post::<Value>("terminals", &both).await;
    assert_eq!(refused.unwrap_err().code, "invalid_request");
    let nowhere = json!({ "on_host": true, "columns": 80, "rows": 25 });
    let refused = rooted.post::<Value>("terminals", &nowhere).await;
    assert_eq!(refused.unwrap_err().code, "invalid_request");

    // The owner: nothing said is no, and so is one word more.
    for text in [
        None,
        Some("forbid_copy = true\n"),
        Some("allow_host_shell = true\nforbid_shell = true\n"),
    ] {
        match text {
            None => std::fs::remove_file(&policy).unwrap(),
            Some(text) => std::fs::write(&policy, text).unwrap(),
        }
        let given = ask(&rooted).await.unwrap();
        let mut page = Page::enter(&rooted, &given.ticket, None).await;
        assert_eq!(page.end().await, "forbidden_by_host", "{text:?}");
        assert!(!page.begun);
        let said = page.ended.unwrap()["message"].to_string();
        assert!(said.contains("allow_host_shell"), "{said}");
    }

    // The recorder.
    std::fs::write(&policy, ALLOWED).unwrap();
    let given = ask(&rooted).await.unwrap();
    std::fs::remove_dir_all(fleet.dir().join("controller/recordings")).unwrap();
    let mut page = Page::enter(&rooted, &given.ticket, None).await;
    assert_eq!(page.end().await, "storage_unavailable");
    let opened = audit(&fleet.api, "terminal.open").await;
    assert_eq!(opened.len(), 3, "the host was not asked again: {opened:?}");
    assert!(
        opened.iter().all(|row| row.object == "box/(host)"),
        "{opened:?}"
    );
}

#[tokio::test]
async fn where_all_agree_it_is_a_terminal_like_every_other() {
    Box::pin(lives(Options::docker())).await;
}

#[tokio::test]
async fn at_the_region_too() {
    Box::pin(lives(Options::docker().terminals_at_regions())).await;
}

async fn enter(api: &Api) -> (TerminalTicket, Page) {
    let given = ask(api).await.unwrap();
    let page = match &given.server {
        Some(_) => Page::open_there(api, &given).await,
        None => Page::open(api, &given.ticket).await,
    };
    (given, page)
}

async fn lives(options: Options) {
    let fleet = Fleet::start(options).await;
    std::fs::write(&fleet.hosts[0].policy, ALLOWED).unwrap();
    let (rooted, id) = rooted(&fleet).await;
    let (given, mut page) = enter(&rooted).await;
    assert_eq!(given.container, "(host)");
    let own = std::fs::read_link("/proc/self/ns/mnt").unwrap();
    page.type_in(
        "echo h$((40+2))t; stty size; tty; readlink /proc/self/ns/mnt; env | grep -c FAIRLEAD_\r",
    )
    .await;
    page.until(
        "what was typed ran, on this machine, without anything of the agent's",
        |p| {
            let text = p.text();
            text.contains("h42t")
                && text.contains("25 80")
                && text.contains("/dev/pts/")
                && text.contains(own.to_str().unwrap())
                && text.contains("\n1\r")
        },
    )
    .await;
    page.say(&json!({ "resize": { "columns": 132, "rows": 43 } }))
        .await;
    page.type_in("sleep 0.2; stty size\r").await;
    page.until("it has the new size", |p| p.text().contains("43 132"))
        .await;
    // Ctrl-C reaches what runs: the terminal is its own. It throws away what was typed ahead, so each waits for the
    // one before.
    let word = seconds();
    page.type_in(&format!("sleep {word}\r")).await;
    runs(&word, 1).await;
    page.type_in("\u{3}").await;
    none_runs(&word).await;
    page.until("it says so", |p| p.text().contains("^C")).await;
    page.type_in("echo int$((1+1))\r").await;
    page.until("it was interrupted", |p| p.text().contains("int2"))
        .await;

    let open: Vec<Terminal> = rooted.get("terminals").await.unwrap();
    assert_eq!(
        (&open[0].session, &open[0].container[..]),
        (&given.session, "(host)")
    );
    let word = seconds();
    page.type_in(&format!("nohup sleep {word} >/dev/null 2>&1 &\r"))
        .await;
    runs(&word, 1).await;
    page.type_in("exit 3\r").await;
    assert_eq!(page.end().await, "");
    assert_eq!(page.ended.as_ref().unwrap()["exit_code"], 3);
    none_runs(&word).await;
    wait_for("its recording is listed", SOON, async || {
        let rows: Vec<Recording> = fleet.api.get("recordings?container=(host)").await.unwrap();
        let found = rows.iter().any(|row| row.session == given.session);
        found.then_some(()).ok_or(format!("{rows:?}"))
    })
    .await;
    let log = fleet.hosts[0].owner_log();
    assert!(log.contains("open a shell on this machine itself"), "{log}");

    // Whoever goes without a word takes all of it along, also what hangs on.
    let word = seconds();
    let (given, mut page) = enter(&rooted).await;
    let hangs_on = format!(
        "trap '' HUP TERM; sleep {word} & (env -u FAIRLEAD_TERMINAL sleep {word} &) ; sleep {word}\r"
    );
    page.type_in(&hangs_on).await;
    runs(&word, 3).await;
    drop(page);
    let _: Terminal = rooted
        .delete(&format!("terminals/{}", given.session))
        .await
        .unwrap();
    none_runs(&word).await;

    // The owner's second thought; and the end of the token.
    let (_, mut page) = enter(&rooted).await;
    std::fs::write(&fleet.hosts[0].policy, "forbid_copy = true\n").unwrap();
    let promised = Promised::begin();
    assert_eq!(page.end().await, "forbidden_by_host");
    promised.kept(ENDED_WITHIN);
    std::fs::write(&fleet.hosts[0].policy, ALLOWED).unwrap();
    let word = seconds();
    let (_, mut page) = enter(&rooted).await;
    page.type_in(&format!("sleep {word}\r")).await;
    runs(&word, 1).await;
    fleet.api.revoke_api_token(&id).await.unwrap();
    assert_eq!(page.end().await, "unauthenticated");
    none_runs(&word).await;
}

#[tokio::test]
async fn an_agent_that_dies_leaves_nothing_of_it_and_tells_what_its_owner_allows() {
    let fleet = Fleet::start(Options::docker()).await;
    let told = async || {
        let host: Host = fleet.api.get("hosts/box").await.unwrap();
        host.facts.is_some_and(|facts| facts.host_shell)
    };
    assert!(!told().await, "off by default");
    std::fs::write(&fleet.hosts[0].policy, ALLOWED).unwrap();
    let (rooted, _) = rooted(&fleet).await;
    let word = seconds();
    let (_, mut page) = enter(&rooted).await;
    page.type_in(&format!("trap '' HUP; sleep {word}\r")).await;
    runs(&word, 1).await;
    fleet.hosts[0].kill_agent().await;
    assert_eq!(page.end().await, "stream_lost");
    none_runs(&word).await;
    wait_for("the next link tells it", SOON, async || {
        told().await.then_some(()).ok_or("not yet".to_owned())
    })
    .await;
}

/// Types into a terminal of that machine's own, as somebody there would.
async fn typed(host: &TestHost, line: &str, keys: &str) -> fairlead_tests::hosts::Output {
    let command = format!("script -qec '{line}' /dev/null");
    host.exec_with_input(&command, keys.as_bytes()).await
}

/// Where systemd runs the agent, its service is shut in: the shell is not.
#[tokio::test]
async fn under_systemd_it_is_a_unit_of_its_own_that_can_do_what_root_can() {
    let Some(hosts) = Hosts::here().await else {
        return;
    };
    let servers = Servers::install(&hosts).await;
    let vm = hosts.start("vm").await;
    ran(&vm, &servers.line).await;
    servers.host_is("vm", "online").await;
    let made = "fairlead api-token create rooted --permission read,shell,host-shell -o json";
    let made: Value = serde_json::from_str(&servers.host.says(made).await).unwrap();
    let token = made["token"].as_str().unwrap();
    let shell = format!("FAIRLEAD_TOKEN={token} fairlead shell --host vm");

    let no = typed(&servers.host, &shell, "").await;
    assert_eq!(no.code, 4, "{}{}", no.stdout, no.stderr);
    assert!(no.stdout.contains("allow_host_shell"), "{}", no.stdout);

    vm.write_file("/etc/fairlead/policy.toml", 0o644, ALLOWED.as_bytes())
        .await;
    let keys = "cat /proc/self/cgroup; echo mended > /etc/mended; id -u; sleep 1234 & exit 5\r";
    let yes = typed(&servers.host, &shell, keys).await;
    println!("{}", yes.stdout);
    assert_eq!(yes.code, 5, "{}{}", yes.stdout, yes.stderr);
    assert!(
        yes.stdout.contains("fairlead-host-shell-"),
        "{}",
        yes.stdout
    );
    assert_eq!(
        vm.says("cat /etc/mended").await,
        "mended",
        "its service may write nothing there"
    );
    let left = vm
        .exec("pgrep -ax sleep; systemctl list-units --all --no-legend 'fairlead-host-shell*'")
        .await;
    assert_eq!(left.stdout, "", "nothing is left");
}
