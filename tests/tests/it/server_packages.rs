//! A newer package of the servers, installed at any hour, on machines of their own: by the servers' line and by dpkg. Under
//! commands, each of which runs once, and no host is shown as down.

use fairlead_tests::engine;
use fairlead_tests::hosts::{Hosts, TestHost};
use fairlead_tests::package;
use fairlead_tests::wait::wait_for;

use crate::debian::copy_debs;
use crate::servers::{NAME, SOON, Servers, ran};

/// One command after the other, each of which leaves its number; and the list of hosts, all the time. A command whose
/// stream nobody opened has not run, it says; so it is asked for again, and the numbers tell whether that was true.
const ASKS: &str = r#"
(while [ ! -e /tmp/enough ]; do
    fairlead host ls 2>/dev/null | sed -n 's/^vm  *\([a-z]*\).*/\1/p'
done >/tmp/sights) &
n=0
while [ ! -e /tmp/enough ]; do
    n=$((n+1))
    until fairlead exec web sh -c "echo $n >> /tmp/log" >/tmp/said 2>&1; do
        grep -q stream_not_attached /tmp/said || { echo "$n: $(cat /tmp/said)" >>/tmp/failed; break; }
    done
done
wait
echo $n >/tmp/asked
"#;

struct Scene {
    servers: Servers,
    vm: TestHost,
}

impl Scene {
    /// With a host, a container, and somebody who asks.
    async fn set(hosts: &Hosts, servers: Servers) -> Self {
        let vm = hosts.start("vm").await;
        ran(&vm, &servers.line).await;
        servers.host_is("vm", "online").await;
        vm.make_image("web:1").await;
        ran(&vm, "docker run -d --name web web:1 sleep 36000").await;
        servers.shows("web").await;
        let host = &servers.host;
        host.write_file("/root/asks.sh", 0o755, ASKS.as_bytes())
            .await;
        ran(host, "setsid sh /root/asks.sh >/dev/null 2>&1 &").await;
        let scene = Self { servers, vm };
        scene.goes_on().await;
        scene
    }

    async fn count(&self) -> usize {
        let log = self.vm.exec("docker exec web cat /tmp/log").await;
        log.stdout.lines().count()
    }

    /// Two more of the commands have run.
    async fn goes_on(&self) {
        let before = self.count().await;
        wait_for("commands go on", SOON, async || {
            let now = self.count().await;
            (now >= before + 2)
                .then_some(())
                .ok_or_else(|| now.to_string())
        })
        .await;
    }

    /// Both servers are of that version and answer with it.
    async fn are(&self, version: &str) {
        wait_for("the servers are of that version", SOON, async || {
            let said = self.servers.host.exec("fairlead status -o json").await;
            let regions = self.servers.host.exec("fairlead region ls -o json").await;
            let found = [&said.stdout, &regions.stdout];
            let both = found.iter().all(|said| said.contains(version));
            both.then_some(())
                .ok_or(format!("{found:?} {}{}", said.stderr, regions.stderr))
        })
        .await;
    }

    /// Each command ran once, in order; the host was never shown as anything but online.
    async fn was_not_noticed(&self) {
        self.goes_on().await;
        let host = &self.servers.host;
        ran(host, "touch /tmp/enough").await;
        let asked = wait_for("the last one has ended", SOON, async || {
            let said = host.exec("cat /tmp/asked").await;
            said.stdout.trim().parse::<usize>().map_err(|_| said.stderr)
        })
        .await;
        let failed = host.exec("cat /tmp/failed").await;
        assert!(!failed.is_ok(), "{}", failed.stdout);
        let log = self.vm.says("docker exec web cat /tmp/log").await;
        let told: Vec<usize> = log.lines().map(|line| line.parse().unwrap()).collect();
        let wanted: Vec<usize> = (1..=asked).collect();
        assert_eq!(told, wanted, "each once, in order");
        let sights = host.says("sort /tmp/sights | uniq -c").await;
        println!("{asked} commands; the host was seen as: {sights}");
        assert!(
            sights.ends_with(" online") && sights.lines().count() == 1,
            "{sights}"
        );
        // Each was started once more, by the upgrade, and not by systemd.
        let restarts = host
            .says("systemctl show -p NRestarts --value fairlead-controller fairlead-access-server | sort -u")
            .await;
        assert_eq!(restarts.trim(), "0");
    }
}

#[tokio::test]
async fn the_line_of_a_newer_version_upgrades_both_servers() {
    let Some(hosts) = Hosts::here().await else {
        return;
    };
    let servers = Servers::install(&hosts).await;
    let host = &servers.host;
    host.copy_in(package::newer_repository(), "/srv/newer")
        .await;
    let line = |from: &str| format!("sh {from}/install.sh server --name {NAME} --from {from}");
    let scene = Scene::set(&hosts, servers).await;
    let host = &scene.servers.host;
    ran(host, &line("/srv/newer")).await;
    scene.are(package::NEWER).await;
    scene.was_not_noticed().await;

    // Back is refused in one sentence, and nothing is touched.
    let process = "systemctl show -p MainPID --value fairlead-controller fairlead-access-server";
    let before = host.says(process).await;
    let back = host.exec(&line("/srv/packages")).await;
    assert_eq!(back.code, 1, "{}", back.stdout);
    let refused: Vec<&str> = back
        .stderr
        .lines()
        .filter(|line| line.contains("installer_older"))
        .collect();
    assert_eq!(refused.len(), 1, "{}", back.stderr);
    assert_eq!(host.says(process).await, before);
    scene.are(package::NEWER).await;
}

#[tokio::test]
async fn newer_debian_packages_upgrade_both_servers_and_go_back_over_no_format() {
    let Some(hosts) = Hosts::here().await else {
        return;
    };
    let host = hosts.start_known_as("servers", &[NAME]).await;
    for (repository, folder) in [
        (package::repository(), "/srv/first"),
        (package::newer_repository(), "/srv/newer"),
    ] {
        copy_debs(&host, repository, folder).await;
    }
    ran(&host, "dpkg -i /srv/first/*.deb").await;
    let line = format!("sh /usr/share/fairlead/install.sh server --name {NAME}");
    let servers = Servers::run_line(host, &line).await;
    let scene = Scene::set(&hosts, servers).await;
    let host = &scene.servers.host;
    ran(host, "dpkg -i /srv/newer/*.deb").await;
    scene.are(package::NEWER).await;
    scene.was_not_noticed().await;

    // A program that is older than the database leaves that alone and says so in one sentence.
    let ledger = "/var/lib/fairlead-access-server/ledger.db";
    ran(host, "systemctl stop fairlead-access-server").await;
    of_format_99(host, ledger);
    ran(
        host,
        &format!(
            "cksum {ledger} >/tmp/ledger; dpkg -i /srv/first/*.deb; \
             systemctl start --no-block fairlead-access-server"
        ),
    )
    .await;
    let said = wait_for("it says why it does not start", SOON, async || {
        let said = host
            .exec("journalctl -u fairlead-access-server --no-pager -o cat")
            .await;
        let line = said
            .stdout
            .lines()
            .find(|line| line.contains("it has format 99"))
            .map(str::to_owned);
        line.ok_or(said.stdout)
    })
    .await;
    assert!(
        said.contains(ledger) && said.contains("install the newer version"),
        "{said}"
    );
    ran(host, &format!("cksum {ledger} | cmp - /tmp/ledger")).await;
}

/// Done to a copy, into which goes what lies beside it: a library follows the link of `/proc` to our own files.
fn of_format_99(host: &TestHost, file: &str) {
    let init = engine::field(host.container(), "{{.State.Pid}}").expect("it runs");
    let there = |suffix: &str| format!("/proc/{init}/root{file}{suffix}");
    let dir = tempfile::tempdir().unwrap();
    let here = |suffix: &str| dir.path().join(format!("copy{suffix}"));
    std::fs::copy(there(""), here("")).unwrap();
    let beside = std::fs::copy(there("-wal"), here("-wal"));
    let database = rusqlite::Connection::open(here("")).unwrap();
    database.pragma_update(None, "user_version", 99).unwrap();
    database.close().unwrap();
    // In place, so that it stays its owner's.
    std::fs::write(there(""), std::fs::read(here("")).unwrap()).unwrap();
    if beside.is_ok() {
        std::fs::remove_file(there("-wal")).unwrap();
    }
}
