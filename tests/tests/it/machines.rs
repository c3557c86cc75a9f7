//! What befalls installed machines, on machines with systemd and an engine of their own: copies of a disk,
//! an engine that comes later, the time from the line to the first heartbeat, somebody's Compose project.
//!
//! Holds: a clone is noticed, refused, and gets an identity of its own, which does nothing before an admin
//! approves; no engine is no reason not to be in the fleet; what was on a machine before is as it was.

use std::time::{Duration, Instant};

use fairlead_tests::hosts::{Hosts, TestHost};
use fairlead_tests::wait::wait_for;

use crate::proxied::Double;
use crate::servers::{SOON, Servers, ran};

/// From the moment at which the program is whole on the machine's disk to the first heartbeat, on a machine that
/// does a dozen other things. What was measured is printed; without them it is below 3 s.
const HEARTBEAT_WITHIN: Duration = Duration::from_secs(20);

async fn host_row(servers: &Servers, name: &str) -> serde_json::Value {
    let hosts = servers.json("host ls").await;
    let row = hosts.as_array().into_iter().flatten();
    let row = row.into_iter().find(|row| row["name"] == name).cloned();
    row.unwrap_or_else(|| panic!("no host {name} in {hosts}"))
}

/// The engine that the screen shows for a host.
async fn engine_is(servers: &Servers, name: &str, told: impl Fn(&serde_json::Value) -> bool) {
    wait_for(
        &format!("the engine of {name} is shown"),
        SOON,
        async || {
            let engine = host_row(servers, name).await["facts"]["engine"].clone();
            if told(&engine) {
                Ok(())
            } else {
                Err(engine.to_string())
            }
        },
    )
    .await;
}

async fn main_pid(host: &TestHost) -> String {
    host.says("systemctl show -p MainPID --value fairlead-agent")
        .await
}

#[tokio::test]
async fn three_clones_of_a_host_are_refused_and_become_hosts_of_their_own_once_approved() {
    let Some(hosts) = Hosts::here().await else {
        return;
    };
    let servers = Servers::install(&hosts).await;
    let vm = hosts.start("vm").await;
    ran(&vm, &servers.line).await;
    servers.host_is("vm", "online").await;
    let first = host_row(&servers, "vm").await;

    // Each is a host of its own by name, and held. One after the other, because the true one is frozen while
    // its disk is copied, and who is silent then is taken for a ghost.
    let names = ["vm-clone", "vm-clone-2", "vm-clone-3"];
    let mut clones = Vec::new();
    for (copy, name) in ["copy-a", "copy-b", "copy-c"].into_iter().zip(names) {
        clones.push(vm.clone_disk(copy).await);
        servers.host_is(name, "held").await;
    }
    let status = servers.host.says("fairlead status").await;
    for name in names {
        let advice = format!("fairlead host approve {name}");
        assert!(status.contains(&advice), "{advice}: {status}");
    }
    assert!(status.contains("a second machine uses"), "{status}");
    let events = servers.host.says("fairlead events -n 200").await;
    assert!(events.contains("host.clone"), "{events}");
    let rows = servers.json("host ls").await.to_string();
    for clone in &clones {
        let address = clone.ip().to_string();
        assert!(
            rows.contains(&address),
            "it is told where {address} is: {rows}"
        );
    }
    // The true one has not felt it.
    servers.host_is("vm", "online").await;
    let now = host_row(&servers, "vm").await;
    assert_eq!(
        (&now["state"], &now["id"]),
        (&"online".into(), &first["id"])
    );
    assert_eq!(now["epoch"], first["epoch"], "no new term");
    let held = servers
        .host
        .exec("fairlead ping --deadline 2s vm-clone-2")
        .await;
    assert!(!held.is_ok(), "{}{}", held.stdout, held.stderr);

    ran(
        &servers.host,
        &format!("fairlead host approve {}", names.join(" ")),
    )
    .await;
    for name in names {
        servers.host_is(name, "online").await;
    }
    // Four hosts, four keys, four ids; and a reboot of a clone is no new clone.
    let ids = "sha256sum /var/lib/fairlead-agent/identity | cut -c 1-16";
    let mut keys = vec![vm.says(ids).await];
    for clone in &clones {
        keys.push(clone.says(ids).await);
    }
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 4);
    clones[0].reboot().await;
    wait_for("all four are there", SOON, async || {
        let all = servers.host.says("fairlead host ls").await;
        let online = all.lines().filter(|line| line.contains("online")).count();
        if online == 4 && all.lines().count() == 5 {
            Ok(())
        } else {
            Err(all)
        }
    })
    .await;
}

#[tokio::test]
async fn without_an_engine_the_agent_is_installed_and_finds_it_when_it_comes() {
    let Some(hosts) = Hosts::here().await else {
        return;
    };
    let servers = Servers::install(&hosts).await;
    let vm = hosts.start("vm").await;
    ran(
        &vm,
        "systemctl stop docker.socket docker.service; systemctl mask docker.socket docker.service; \
         rm -f /run/docker.sock",
    )
    .await;

    let said = ran(&vm, &servers.line).await;
    let said = format!("{}{}", said.stdout, said.stderr);
    assert!(said.contains("installed all the same"), "{said}");
    servers.host_is("vm", "online").await;
    engine_is(&servers, "vm", |engine| {
        engine["error"]
            .as_str()
            .is_some_and(|error| !error.is_empty())
    })
    .await;
    let status = servers.host.says("fairlead status").await;
    assert!(
        status.contains("the engine on vm does not answer"),
        "{status}"
    );
    let process = main_pid(&vm).await;
    let agent = vm.says("pgrep -f '[f]airlead-agent run'").await;

    ran(
        &vm,
        "systemctl unmask docker.socket docker.service; systemctl start docker.service",
    )
    .await;
    engine_is(&servers, "vm", |engine| engine["kind"] == "docker").await;
    vm.make_image("web:1").await;
    ran(
        &servers.host,
        "fairlead run -d --name web --host vm web:1 sleep 600",
    )
    .await;
    servers.shows("web").await;
    assert_eq!(main_pid(&vm).await, process, "no restart");
    assert_eq!(vm.says("pgrep -f '[f]airlead-agent run'").await, agent);
}

#[tokio::test]
async fn from_the_line_to_the_first_heartbeat_on_a_fresh_machine_twice() {
    let Some(hosts) = Hosts::here().await else {
        return;
    };
    let servers = Servers::install(&hosts).await;
    for name in ["one", "two"] {
        let line = servers.another_line().await;
        let vm = hosts.start(name).await;
        let began = jiff::Timestamp::now();
        let clock = Instant::now();
        ran(&vm, &line).await;
        let line_took = clock.elapsed();
        servers.host_is(name, "online").await;
        let online = wait_for("host.online is recorded", SOON, async || {
            let events = servers.json(&format!("events --host {name} -n 200")).await;
            let online = events
                .as_array()
                .into_iter()
                .flatten()
                .find(|event| event["action"] == "host.online")
                .and_then(|event| event["at"].as_str()?.parse().ok());
            online.ok_or_else(|| events.to_string())
        })
        .await;
        let online: jiff::Timestamp = online;
        // When the program was whole on the machine's disk.
        let bytes = vm
            .says("stat -L -c %.6Y /opt/fairlead/current/fairlead-agent")
            .await;
        let bytes_us = (bytes.parse::<f64>().unwrap() * 1e6) as i64;
        let bytes = jiff::Timestamp::from_microsecond(bytes_us).unwrap();
        let after_bytes = Duration::try_from(online.duration_since(bytes)).expect("after it");
        let all = Duration::try_from(online.duration_since(began)).expect("after the line");
        println!(
            "{name}: from the line to the first heartbeat {:.2} s, of it since the bytes were there {:.2} s; \
             the line itself {:.2} s",
            all.as_secs_f64(),
            after_bytes.as_secs_f64(),
            line_took.as_secs_f64(),
        );
        assert!(after_bytes < HEARTBEAT_WITHIN, "{name}: {after_bytes:?}");
    }
}

#[tokio::test]
async fn a_host_that_reaches_nothing_but_a_proxy_with_a_password_joins_and_leaves() {
    let Some(hosts) = Hosts::here().await else {
        return;
    };
    let servers = Servers::install(&hosts).await;
    let vm = hosts.start("vm").await;
    let proxy = Double::start_at(hosts.gateway(), Some(servers.host.ip())).await;
    // As a customer's firewall does: nothing goes out but to the proxy.
    ran(
        &vm,
        &format!("iptables -I OUTPUT -d {} -j DROP", servers.host.ip()),
    )
    .await;
    let direct = "curl -sk --max-time 2 --noproxy '*' https://fleet.example.test/readyz";
    assert!(!vm.exec(direct).await.is_ok(), "there is a way around");
    vm.make_image("web:1").await;

    // Without the password it is said in words.
    let script = servers.line.split(" | ").next().unwrap();
    let fetched = format!(
        "HTTPS_PROXY=http://me:secret@{} {script} >/root/install.sh",
        proxy.address
    );
    ran(&vm, &fetched).await;
    let rest = servers.line.split_once(" | ").unwrap().1;
    let from_file = rest.replace("sh -s --", "sh /root/install.sh");
    let refused = format!(
        "export HTTPS_PROXY=http://me@{}; {from_file}",
        proxy.address
    );
    let refused = vm.exec(&refused).await;
    assert_ne!(refused.code, 0, "{}", refused.stderr);
    assert!(
        refused.stderr.contains("wants a user and a password"),
        "{}",
        refused.stderr
    );

    let through = format!("export HTTPS_PROXY=http://me:secret@{}; ", proxy.address);
    ran(&vm, &format!("{through}{}", servers.line)).await;
    servers.host_is("vm", "online").await;
    ran(
        &servers.host,
        "fairlead run -d --name web --host vm web:1 sleep 600",
    )
    .await;
    let said = servers.host.says("fairlead exec web echo through").await;
    assert_eq!(said, "through");
    let made = proxy.made();
    for by_agent in [true, false] {
        assert!(
            made.iter()
                .any(|made| *made == ("fleet.example.test:443".to_owned(), by_agent)),
            "{made:?}"
        );
    }
    // The password is for root alone, and in no log.
    let leaks = vm
        .exec("journalctl --no-pager | grep -c me:secret; find /etc/fairlead -perm /044 -type f")
        .await;
    assert_eq!(leaks.stdout.trim(), "0", "{}", leaks.stdout);
    ran(&vm, "fairlead-agent uninstall --purge").await;
    servers.knows_no("vm").await;
}

const COMPOSE: &str = r#"
version: "2.4"
services:
  web:
    image: shop:1
    command: ["sh", "-c", "trap exit TERM; while :; do sleep 1 & wait; done"]
    restart: always
    ports: ["8081:80"]
    networks: [front, back]
    depends_on: [db]
  db:
    image: shop:1
    command: ["sh", "-c", "trap exit TERM; while :; do sleep 1 & wait; done"]
    restart: unless-stopped
    volumes: ["data:/data", "/srv/shop:/etc/shop:ro"]
    networks: [back]
    mem_limit: 64m
  cron:
    image: shop:1
    command: ["sh", "-c", "trap exit TERM; while :; do sleep 1 & wait; done"]
    restart: on-failure
    environment: {SECRET: "not yours"}
    networks: [back]
networks:
  front: {}
  back: {internal: true}
volumes:
  data: {}
"#;

/// All that the project is, as the engine and the system tell it.
async fn projects_things(vm: &TestHost) -> String {
    let asked = ran(vm, "docker ps -aq --no-trunc | sort | xargs docker inspect").await;
    let mut inspected: serde_json::Value = serde_json::from_str(&asked.stdout).unwrap();
    for container in inspected.as_array_mut().unwrap() {
        // The engine keeps these in a map, and tells them in another order each time.
        let mounts = container["Mounts"].as_array_mut().unwrap();
        mounts.sort_by_key(|mount| mount["Destination"].to_string());
    }
    let mut things = serde_json::to_string_pretty(&inspected).unwrap();
    for question in [
        "docker network ls -q | sort | xargs docker network inspect",
        "docker volume ls -q | sort | xargs docker volume inspect",
        "docker images --no-trunc --format '{{.Repository}}:{{.Tag}} {{.ID}}' | sort",
        "cat /etc/docker/daemon.json; stat -c '%n %a %u %g %Y' /etc/docker/daemon.json",
        "cat /etc/group /etc/gshadow /etc/passwd",
        "iptables-save | sed 's/\\[[0-9:]*\\]//; /^#/d'",
        "systemctl show -p MainPID --value docker.service",
    ] {
        things.push_str(&ran(vm, question).await.stdout);
    }
    things
}

#[tokio::test]
async fn a_compose_project_is_the_same_to_the_last_field_after_install_and_after_uninstall() {
    let Some(hosts) = Hosts::here().await else {
        return;
    };
    let servers = Servers::install(&hosts).await;
    let vm = hosts.start("vm").await;
    vm.write_file(
        "/etc/docker/daemon.json",
        0o644,
        b"{ \"debug\": false, \"log-opts\": { \"max-size\": \"1m\" } }\n",
    )
    .await;
    ran(&vm, "systemctl restart docker").await;
    vm.make_image("shop:1").await;
    vm.write_file("/srv/shop/docker-compose.yml", 0o644, COMPOSE.as_bytes())
        .await;
    ran(&vm, "cd /srv/shop && docker-compose up -d --scale cron=2").await;
    let before = projects_things(&vm).await;
    assert_eq!(
        before.matches("com.docker.compose.service").count(),
        4,
        "{before}"
    );

    ran(&vm, &servers.line).await;
    servers.host_is("vm", "online").await;
    for service in ["shop_web_1", "shop_db_1", "shop_cron_2"] {
        servers.shows(service).await;
    }
    // The agent has looked at all of it for some rounds.
    wait_for("it is measured", SOON, async || {
        let screen = servers.screen().await;
        if screen.contains(" KB") || screen.contains(" MB") {
            Ok(())
        } else {
            Err(screen)
        }
    })
    .await;
    same(&before, &projects_things(&vm).await, "after install");

    ran(
        &vm,
        "sh -c 'curl -fsSk https://fleet.example.test/install.sh | sh -s -- --uninstall --purge'",
    )
    .await;
    same(&before, &projects_things(&vm).await, "after uninstall");
    ran(
        &vm,
        "cd /srv/shop && docker-compose ps && docker-compose down",
    )
    .await;
}

/// Names the first line that differs: the whole is thousands of lines.
fn same(before: &str, after: &str, when: &str) {
    for (line, (old, new)) in before.lines().zip(after.lines()).enumerate() {
        assert_eq!(old, new, "{when}, line {line}");
    }
    assert_eq!(before.lines().count(), after.lines().count(), "{when}");
}
