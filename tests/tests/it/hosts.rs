//! The test hosts themselves: what the other tests take for granted about them.
//!
//! Holds: nothing of the products; a test on test hosts is worth what these hold.

use std::io::{Read, Write};
use std::net::{SocketAddrV4, TcpListener};
use std::process::Command;
use std::time::{Duration, Instant};

use fairlead_tests::engine::{docker, docker_says};
use fairlead_tests::hosts::{Hosts, Slow, TestHost, leftovers};
use fairlead_tests::wait::wait_for;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const SOON: Duration = Duration::from_secs(30);

/// A web server in a container of the host's own engine, on its port 8080, that counts upwards in
/// `/count` all the time.
async fn serve(host: &TestHost, more: &str) {
    host.make_image("web:1").await;
    let counts = "i=0; (while :; do i=$((i+1)); echo $i > /tmp/next; mv /tmp/next /tmp/count; sleep 0.02; done) & \
                  trap exit TERM; httpd -f -p 80 -h /tmp & wait";
    host.says(&format!(
        "docker run -d --name web --restart always -p 8080:80 {more} web:1 sh -c '{counts}'"
    ))
    .await;
}

async fn count(host: &TestHost) -> Result<u64, String> {
    let ask = async {
        let mut stream = TcpStream::connect((host.ip(), 8080)).await?;
        stream.write_all(b"GET /count HTTP/1.0\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = tokio::time::timeout(Duration::from_secs(1), ask)
        .await
        .map_err(|_| "silence".to_owned())?
        .map_err(|error| error.to_string())?;
    let text = answer.rsplit("\r\n").next().unwrap_or_default();
    text.trim().parse().map_err(|_| format!("{answer:?}"))
}

async fn counts(host: &TestHost) -> u64 {
    wait_for("the web server counts", SOON, async || count(host).await).await
}

/// A listener of this machine that answers each connection with what it says; to be dialled by hosts.
fn echo(hosts: &Hosts) -> SocketAddrV4 {
    let listener = TcpListener::bind((hosts.gateway(), 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let mut bytes = [0; 1024];
                while let Ok(count @ 1..) = stream.read(&mut bytes) {
                    if stream.write_all(&bytes[..count]).is_err() {
                        break;
                    }
                }
            });
        }
    });
    SocketAddrV4::new(hosts.gateway(), port)
}

/// What the host hears from `to` when it says hello, on a busy machine too.
async fn hello(host: &TestHost, to: SocketAddrV4) -> String {
    hello_within(host, to, 20).await
}

/// The same where nothing is expected: empty when there is no answer within two seconds.
async fn silence(host: &TestHost, to: SocketAddrV4) -> String {
    hello_within(host, to, 2).await
}

async fn hello_within(host: &TestHost, to: SocketAddrV4, seconds: u32) -> String {
    let command = format!(
        "timeout {seconds} bash -c 'exec 3<>/dev/tcp/{}/{}; echo hello >&3; read -r line <&3; echo $line'",
        to.ip(),
        to.port()
    );
    host.exec(&command).await.stdout.trim().to_owned()
}

#[tokio::test]
async fn a_host_boots_in_seconds_and_again_after_a_reboot_with_its_state() {
    let Some(hosts) = Hosts::here().await else {
        return;
    };
    let host = hosts.start("vm").await;
    assert_eq!(host.says("hostname").await, "vm");
    assert_eq!(host.says("cat /proc/1/comm").await, "systemd");
    serve(&host, "").await;
    counts(&host).await;
    host.write_file("/etc/mine/note", 0o640, b"kept").await;
    let machine_id = host.says("cat /etc/machine-id").await;
    let address = host.ip();
    host.says("touch /run/gone").await;

    host.reboot().await;

    assert_eq!(
        host.says("cat /etc/mine/note; stat -c %a /etc/mine/note")
            .await,
        "kept640"
    );
    assert_eq!(host.says("cat /etc/machine-id").await, machine_id);
    assert!(
        !host.exec("test -e /run/gone").await.is_ok(),
        "/run outlived a reboot"
    );
    assert_eq!(host.ip(), address);
    assert!(
        host.says("hostname -I")
            .await
            .contains(&address.to_string())
    );
    // By itself: the host's own engine has started it again.
    counts(&host).await;

    let other = hosts.start("other").await;
    assert_ne!(other.says("cat /etc/machine-id").await, machine_id);
    assert!(
        other
            .says("getent hosts vm")
            .await
            .starts_with(&address.to_string())
    );
    // One machine's containers are not another's.
    assert_eq!(other.says("docker ps -aq").await, "");
}

#[tokio::test]
async fn a_container_in_a_host_has_its_memory_limit_and_its_published_port() {
    let Some(hosts) = Hosts::here().await else {
        return;
    };
    let host = hosts.start("vm").await;
    serve(&host, "-m 64m").await;
    counts(&host).await;
    let limit = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max";
    let seen = host.says(&format!("docker exec web sh -c '{limit}'")).await;
    assert_eq!(seen, (64 << 20).to_string());
    // Two times the limit: the kernel ends it, with 9.
    let hungry = "docker run --rm -m 16m --memory-swap 16m web:1 dd if=/dev/zero of=/dev/null bs=32M count=1";
    let ended = host.exec(hungry).await;
    assert_eq!(ended.code, 137, "{}{}", ended.stdout, ended.stderr);
    counts(&host).await;
}

#[tokio::test]
async fn a_cut_network_is_silent_both_ways_and_mended_it_is_as_before() {
    let Some(hosts) = Hosts::here().await else {
        return;
    };
    let mut host = hosts.start("vm").await;
    let here = echo(&hosts);
    serve(&host, "").await;
    counts(&host).await;
    assert_eq!(hello(&host, here).await, "hello");
    let rules = host
        .says("iptables -S; iptables -t nat -S; iptables -t mangle -S")
        .await;

    host.cut_network().await;
    assert_eq!(silence(&host, here).await, "");
    let heard = count(&host).await;
    assert!(heard.is_err(), "{heard:?} came through a cut");
    // Only the network is cut: it lives on.
    let before: u64 = host
        .says("docker exec web cat /tmp/count")
        .await
        .parse()
        .unwrap();
    wait_for("it counts", SOON, async || {
        let now: u64 = host
            .says("docker exec web cat /tmp/count")
            .await
            .parse()
            .unwrap_or(0);
        if now > before {
            Ok(())
        } else {
            Err(format!("{now}"))
        }
    })
    .await;

    host.mend_network().await;
    assert_eq!(hello(&host, here).await, "hello");
    counts(&host).await;
    let mended = host
        .says("iptables -S; iptables -t nat -S; iptables -t mangle -S")
        .await;
    assert_eq!(mended, rules);

    // Unplugged, it stays so over a reboot, and has its address again afterwards.
    host.unplug().await;
    assert_eq!(silence(&host, here).await, "");
    host.reboot().await;
    assert_eq!(silence(&host, here).await, "");
    host.plug_in().await;
    assert_eq!(hello(&host, here).await, "hello");
    counts(&host).await;
}

#[tokio::test]
async fn a_slow_network_delays_and_loses_what_goes_through_it() {
    let Some(hosts) = Hosts::here().await else {
        return;
    };
    let mut host = hosts.start("vm").await;
    let here = echo(&hosts);
    let delay = Duration::from_millis(150);
    let ask = async |host: &TestHost| {
        let began = Instant::now();
        assert_eq!(hello(host, here).await, "hello");
        began.elapsed()
    };
    ask(&host).await;

    host.slow_network(&[here], Slow { delay, loss: 0.0 }).await;
    let slow = ask(&host).await;
    assert!(slow >= delay * 2, "a round trip took {slow:?}");
    host.mend_network().await;

    host.slow_network(
        &[],
        Slow {
            delay: Duration::ZERO,
            loss: 0.3,
        },
    )
    .await;
    // The rules count what they lose.
    let lost = "iptables -t mangle -nvxL | awk '/test-network/ { lost += $1 } END { print lost }'";
    wait_for("packets are lost", SOON, async || {
        silence(&host, here).await;
        match host.says(lost).await.as_str() {
            "0" => Err("none".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
    host.mend_network().await;
    ask(&host).await;
}

/// A connection that the host has dialled to this machine and keeps open.
async fn dialled_by(host: &TestHost, hosts: &Hosts) -> TcpStream {
    let listener = tokio::net::TcpListener::bind((hosts.gateway(), 0))
        .await
        .unwrap();
    let port = listener.local_addr().unwrap().port();
    let hold = format!(
        "exec 3<>/dev/tcp/{}/{port}; exec sleep inf",
        hosts.gateway()
    );
    host.says(&format!("systemd-run -q bash -c '{hold}'")).await;
    let accepted = tokio::time::timeout(SOON, listener.accept()).await;
    accepted.expect("the host dials").unwrap().0
}

#[tokio::test]
async fn a_frozen_host_does_nothing_and_a_power_cut_ends_everything_in_it() {
    let Some(hosts) = Hosts::here().await else {
        return;
    };
    let host = hosts.start("vm").await;
    serve(&host, "").await;
    counts(&host).await;

    host.freeze().await;
    let heard = count(&host).await;
    assert!(heard.is_err(), "{heard:?} came from a frozen host");
    host.thaw().await;
    counts(&host).await;

    // What is under way is not ended in order: this unit would say so.
    let unit = "[Service]\nExecStart=/bin/sleep inf\nExecStop=/bin/touch /etc/stopped-in-order\n\
                [Install]\nWantedBy=multi-user.target\n";
    host.write_file("/etc/systemd/system/tell.service", 0o644, unit.as_bytes())
        .await;
    host.says("systemctl enable --now tell.service").await;
    host.says("touch /run/gone").await;
    let mut connection = dialled_by(&host, &hosts).await;
    host.pull_plug().await;
    // Whoever it had a connection to is not told that it is gone.
    let told = tokio::time::timeout(Duration::from_millis(500), connection.read_u8()).await;
    assert!(told.is_err(), "{told:?} from a host without power");
    host.power_on().await;
    assert!(!host.exec("test -e /etc/stopped-in-order").await.is_ok());
    assert_eq!(
        host.says("systemctl is-active tell.service").await,
        "active"
    );
    assert!(!host.exec("test -e /run/gone").await.is_ok());
    // Its own engine found the container dead, and started it.
    counts(&host).await;
    host.reboot().await;
    assert!(host.exec("test -e /etc/stopped-in-order").await.is_ok());
}

#[tokio::test]
async fn an_untouched_host_has_the_same_files_and_a_touched_one_tells_which() {
    let Some(hosts) = Hosts::here().await else {
        return;
    };
    let host = hosts.start("vm").await;
    let before = host.snapshot_files().await;
    assert!(before.0.len() > 3000, "{} files", before.0.len());
    let passwd = &before.0["/etc/passwd"];
    assert_eq!(
        (passwd.kind, passwd.mode, passwd.owner.as_str()),
        ('f', 0o644, "0:0")
    );
    let hash = host.says("sha256sum < /etc/passwd | cut -d' ' -f1").await;
    assert_eq!(passwd.content, hash);

    serve(&host, "").await;
    counts(&host).await;
    assert_eq!(
        before.touched(&host.snapshot_files().await),
        Vec::<String>::new()
    );
    host.reboot().await;
    assert_eq!(
        before.difference(&host.snapshot_files().await),
        Vec::<String>::new()
    );

    host.write_file("/opt/new/file", 0o600, b"x").await;
    host.says("chmod 600 /etc/issue; touch /etc/debian_version; rm /etc/issue.net")
        .await;
    let after = host.snapshot_files().await;
    let paths = |lines: Vec<String>| -> Vec<String> {
        let path = |line: &String| line.split(": ").next().unwrap().to_owned();
        lines.iter().map(path).collect()
    };
    let altered = [
        "altered /etc/issue",
        "removed /etc/issue.net",
        "added /opt/new",
        "added /opt/new/file",
    ];
    assert_eq!(paths(before.difference(&after)), altered);
    assert!(paths(before.touched(&after)).contains(&"altered /etc/debian_version".to_owned()));
}

#[tokio::test]
async fn a_clone_has_the_same_disk_and_its_own_place_in_the_network() {
    let Some(hosts) = Hosts::here().await else {
        return;
    };
    let host = hosts.start("golden").await;
    serve(&host, "").await;
    counts(&host).await;
    host.write_file("/var/lib/mine/state", 0o600, b"golden")
        .await;

    let clone = host.clone_disk("clone").await;

    assert_eq!(clone.says("cat /var/lib/mine/state").await, "golden");
    let id = "cat /etc/machine-id";
    assert_eq!(clone.says(id).await, host.says(id).await);
    assert_ne!(clone.ip(), host.ip());
    // Both engines run what was on the one disk; neither is the other's.
    counts(&clone).await;
    clone.says("docker rm -f web").await;
    counts(&host).await;
    let difference = host
        .snapshot_files()
        .await
        .difference(&clone.snapshot_files().await);
    let own: Vec<_> = difference
        .iter()
        .filter(|line| !line.contains("/etc/hostname"))
        .collect();
    assert!(own.is_empty(), "{own:?}");
}

#[tokio::test]
async fn a_host_reaches_what_listens_on_this_machine() {
    let Some(hosts) = Hosts::here().await else {
        return;
    };
    let host = hosts.start("vm").await;
    let here = echo(&hosts);
    assert_eq!(hello(&host, here).await, "hello");
    assert_eq!(host.gateway(), *here.ip());
    // And nothing is there on the next port.
    let nowhere = SocketAddrV4::new(*here.ip(), 1);
    assert_eq!(silence(&host, nowhere).await, "");
}

#[tokio::test]
async fn what_a_killed_run_left_behind_is_removed_and_what_a_living_one_has_is_not() {
    let Some(hosts) = Hosts::here().await else {
        return;
    };
    let mut run = Command::new("sleep").arg("600").spawn().unwrap();
    let label = leftovers::label_of(run.id()).unwrap();
    let (container, network) = (
        format!("fl-th-{}-c", run.id()),
        format!("fl-th-{}-n", run.id()),
    );
    docker_says(&["network", "create", "--label", &label, &network]);
    let held = ["--network", &network, "-v", "/var/lib/docker"];
    let create = ["create", "--name", &container, "--label", &label];
    docker_says(&[&create[..], &held, &[hosts.image(), "true"]].concat());
    let there = || {
        let container = docker(&["container", "inspect", &container])
            .status
            .success();
        let network = docker(&["network", "inspect", &network]).status.success();
        (container, network)
    };

    leftovers::sweep().await;
    assert_eq!(there(), (true, true));

    run.kill().unwrap();
    run.wait().unwrap();
    leftovers::sweep().await;
    assert_eq!(there(), (false, false));
}
