//! The table before anything is done: what it finds, and in which words.

use std::time::{SystemTime, UNIX_EPOCH};

use super::faulty::{Fault, Server, TlsServer};
use super::kit::{Host, Repository, TOKEN, here, shells};
use super::trees::tree;

#[test]
fn a_clock_that_is_wrong_is_measured_in_seconds() {
    if !here("curl") {
        return;
    }
    let repository = Repository::new();
    // 1998-01-01 and a leap day: seconds since 1970.
    for (date, seconds) in [
        ("Thu, 01 Jan 1998 00:00:00 GMT", 883_612_800),
        ("Thu, 29 Feb 2024 08:09:08 GMT", 1_709_194_148),
    ] {
        let server = Server::start(repository.path(), vec![("/", Fault::Date(date))]);
        for shell in shells() {
            let host = Host::new();
            let said = host
                .install(shell, &repository, &["--from", &server.url(), "--dry-run"])
                .with_token()
                .ok();
            let off: u64 = said
                .split("this clock is ")
                .nth(1)
                .and_then(|rest| rest.split(" s ahead of 127.0.0.1").next())
                .and_then(|number| number.parse().ok())
                .unwrap_or_else(|| panic!("{shell:?}: {said}"));
            let now = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap()
                .as_secs();
            assert!(off.abs_diff(now - seconds) < 60, "{shell:?}: {off}: {said}");
        }
    }
    for date in ["yesterday", "Thu, 01 Jan 1998 00:00:00 $(touch a)", ""] {
        let server = Server::start(repository.path(), vec![("/", Fault::Date(date))]);
        let said = Host::new()
            .install(
                &["sh"],
                &repository,
                &["--from", &server.url(), "--dry-run"],
            )
            .with_token()
            .ok();
        assert!(!said.contains("clock"), "{said}");
    }
}

#[test]
fn somebody_in_between_who_opens_tls_is_told_from_the_fleets_own_door() {
    if !here("curl") {
        return;
    }
    let repository = Repository::new();
    let door = TlsServer::start(&repository.path());
    let address = format!("127.0.0.1:{}", door.port);
    let host = Host::new();
    let table = |token: &str| {
        host.install(&["sh"], &repository, &["--dry-run", "--address", &address])
            .env("FAIRLEAD_JOIN_TOKEN", token)
            .ok()
    };
    let said = table(TOKEN);
    assert!(
        said.contains("another CA than the token names") && said.contains("localhost"),
        "it says whose: {said}"
    );
    assert!(!said.contains(super::kit::SECRET));
    let of_this_door = TOKEN.replace(&TOKEN[3..67], &door.certificate_sha256);
    let said = table(&of_this_door);
    assert!(said.contains("shows the CA that the token names"), "{said}");
}

#[test]
fn what_no_agent_could_use_is_said_before_it_is_installed() {
    let repository = Repository::new();
    let host = Host::new();
    let before = tree(&host.root());
    for proxy in [
        "https://proxy.example.com:3128",
        "socks5://proxy.example.com",
    ] {
        let said = host
            .install(&["sh"], &repository, &[])
            .with_token()
            .env("HTTPS_PROXY", proxy)
            .refused(3, "installer_proxy");
        assert!(said.contains("only http:// proxies"), "{said}");
    }
    // A password goes into no message.
    let said = host
        .install(&["sh"], &repository, &["--dry-run"])
        .with_token()
        .env("HTTPS_PROXY", "http://user:geheim@127.0.0.1:1")
        .ok();
    assert!(
        said.contains("through 127.0.0.1:1") && !said.contains("geheim"),
        "{said}"
    );
    assert_eq!(tree(&host.root()), before);
}
