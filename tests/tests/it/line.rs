//! One line for the servers, one line for a host, on machines with systemd and an engine of their own:
//! from nothing to another machine's containers on the screen, and back to nothing.
//!
//! Holds: what was on a machine before is as it was, after the line and after it was taken away again.

use std::time::{Duration, Instant};

use fairlead_tests::hosts::{Hosts, TestHost};
use fairlead_tests::package;

use crate::servers::{Servers, ran};

/// From the servers' line to the other machine's containers on the screen.
const ALL_WITHIN: Duration = Duration::from_secs(60);

/// What the machine's owner had there before, and would notice.
pub(crate) async fn owners_things(host: &TestHost) -> String {
    let mut things = String::new();
    for question in [
        "docker inspect shop-web-1 shop-db-1 | grep -v '\"Pid\"'",
        "docker network inspect shop_default",
        "cat /etc/docker/daemon.json",
        "getent group; getent passwd",
        "iptables-save | sed 's/\\[[0-9:]*\\]//; /^#/d'",
    ] {
        things.push_str(&ran(host, question).await.stdout);
    }
    things
}

/// The supervisor, as systemd knows it.
async fn main_pid(host: &TestHost) -> String {
    host.says("systemctl show -p MainPID --value fairlead-agent")
        .await
}

/// A Compose project, as Compose labels it.
pub(crate) async fn shop(host: &TestHost) {
    host.write_file("/etc/docker/daemon.json", 0o644, b"{ \"debug\": false }\n")
        .await;
    host.make_image("shop:1").await;
    ran(
        host,
        "docker network create --label com.docker.compose.project=shop shop_default",
    )
    .await;
    for service in ["web", "db"] {
        let labels = format!(
            "--label com.docker.compose.project=shop --label com.docker.compose.service={service}"
        );
        ran(
            host,
            &format!(
                "docker run -d --name shop-{service}-1 --network shop_default --restart always {labels} \
                 shop:1 sh -c 'trap exit TERM; while :; do sleep 1 & wait; done'"
            ),
        )
        .await;
    }
}

#[tokio::test]
async fn from_the_servers_line_to_another_machines_containers_and_back() {
    let Some(hosts) = Hosts::here().await else {
        return;
    };
    let repository = package::repository();
    assert!(repository.join("channels/stable").is_file());
    let vm = hosts.start("vm").await;
    shop(&vm).await;
    let before = (owners_things(&vm).await, vm.snapshot_files().await);

    let began = Instant::now();
    let servers = Servers::install(&hosts).await;
    let servers_took = began.elapsed();
    let line_began = Instant::now();
    let said = ran(&vm, &servers.line).await;
    let line_took = line_began.elapsed();
    println!("{}{}", said.stderr, said.stdout);
    servers.shows("shop-web-1").await;
    let all = began.elapsed();
    println!(
        "servers {:.1} s, the line {:.1} s, all to the screen {:.1} s",
        servers_took.as_secs_f64(),
        line_took.as_secs_f64(),
        all.as_secs_f64()
    );
    assert!(all < ALL_WITHIN, "{all:?}");
    assert!(
        servers.screen().await.contains("shop"),
        "Compose's project has its column"
    );
    assert_eq!(owners_things(&vm).await, before.0, "nothing was touched");
    let secrets = vm
        .exec("grep -rlE 'FL1[0-9a-f]{64}' /etc/fairlead /opt/fairlead /var/log 2>/dev/null")
        .await;
    assert_eq!(secrets.stdout, "", "the token is gone once it was used");

    // The same line again changes nothing; the agent is the same process.
    let process = main_pid(&vm).await;
    ran(&vm, &servers.line).await;
    assert_eq!(main_pid(&vm).await, process, "no restart");

    // Both machines lose their power's button; everything comes back by itself.
    vm.reboot().await;
    servers.host.reboot().await;
    servers.host_is("vm", "online").await;
    servers.shows("shop-db-1").await;
    let done = ran(&servers.host, "fairlead restart -t 0 vm/shop-web-1").await;
    assert!(done.stdout.contains("restarted"), "{}", done.stdout);

    // And back: the machine as it was, but for what ran meanwhile.
    ran(
        &vm,
        "sh -c 'curl -fsSk https://fleet.example.test/install.sh | sh -s -- --uninstall --purge'",
    )
    .await;
    let left = before.1.difference(&vm.snapshot_files().await);
    assert_eq!(left, Vec::<String>::new(), "files");
    assert_eq!(vm.exec("id fairlead").await.code, 1);
    ran(&vm, "docker inspect shop-web-1 shop-db-1").await;
    servers.knows_no("vm").await;
}
