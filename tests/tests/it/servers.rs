//! The servers on a test host, installed by their line, and what their CLI says: what the tests on machines
//! of their own begin with.

use std::time::Duration;

use fairlead_tests::hosts::{Hosts, Output, TestHost};
use fairlead_tests::package;
use fairlead_tests::wait::wait_for;

/// How long what comes by itself may take, on a machine that builds beside.
pub(crate) const SOON: Duration = Duration::from_secs(60);
pub(crate) const NAME: &str = "fleet.example.test";

/// The servers' machine, and how the CLI is called there.
pub(crate) struct Servers {
    pub(crate) host: TestHost,
    /// The line that adds a host, as it was printed.
    pub(crate) line: String,
}

impl Servers {
    /// Runs the servers' line on a bare machine and claims the installation.
    pub(crate) async fn install(hosts: &Hosts) -> Self {
        let host = hosts.start_known_as("servers", &[NAME]).await;
        host.copy_in(package::repository(), "/srv/packages").await;
        let line = format!("sh /srv/packages/install.sh server --name {NAME} --from /srv/packages");
        Self::run_line(host, &line).await
    }

    /// Runs that line on a machine that has what it needs, and claims the installation.
    pub(crate) async fn run_line(host: TestHost, line: &str) -> Self {
        let said = ran(&host, line).await;
        println!("{}{}", said.stderr, said.stdout);
        let after = |word: &str| {
            let line = said.stdout.lines().find(|line| line.starts_with(word));
            let line = line.unwrap_or_else(|| panic!("no {word:?} in {:?}", said.stdout));
            line[word.len()..].trim().to_owned()
        };
        assert_eq!(
            said.stdout.lines().count(),
            3,
            "three lines: {}",
            said.stdout
        );
        // As it is printed, so that it can be pasted.
        let login = after("first admin");
        let login = login.split("  (").next().unwrap();
        assert!(
            login.starts_with("fairlead login --setup-link /var/"),
            "{login}"
        );
        ran(&host, login).await;
        Self {
            line: after("add a host"),
            host,
        }
    }

    /// Containers on the screen.
    pub(crate) async fn screen(&self) -> String {
        let said = self.host.exec("fairlead ps -a").await;
        format!("{}{}", said.stdout, said.stderr)
    }

    /// Waits until a host's identity has ended: the region answers the host first, and then tells the controller.
    pub(crate) async fn knows_no(&self, host: &str) {
        wait_for(&format!("{host} is no host any more"), SOON, async || {
            let said = self.host.says("fairlead host ls").await;
            if said.contains(host) {
                Err(said)
            } else {
                Ok(())
            }
        })
        .await;
    }

    pub(crate) async fn shows(&self, what: &str) {
        wait_for(&format!("{what} on the screen"), SOON, async || {
            let screen = self.screen().await;
            if screen.contains(what) {
                Ok(())
            } else {
                Err(screen)
            }
        })
        .await;
    }

    /// A line for one more machine.
    pub(crate) async fn another_line(&self) -> String {
        self.host.says("fairlead host add --no-wait").await
    }

    /// What the CLI says to programs.
    pub(crate) async fn json(&self, verb: &str) -> serde_json::Value {
        let said = self.host.says(&format!("fairlead {verb} -o json")).await;
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("{verb}: {error}: {said}"))
    }

    pub(crate) async fn host_is(&self, name: &str, state: &str) {
        wait_for(&format!("host {name} is {state}"), SOON, async || {
            let said = self.host.exec("fairlead host ls").await;
            let row = said.stdout.lines().find(|line| line.starts_with(name));
            if row.is_some_and(|row| row.contains(state)) {
                Ok(())
            } else {
                Err(format!("{}{}", said.stdout, said.stderr))
            }
        })
        .await;
    }
}

/// Runs it there; it must succeed.
pub(crate) async fn ran(host: &TestHost, command: &str) -> Output {
    let output = host.exec(command).await;
    assert!(
        output.is_ok(),
        "{} on {}: {}\n{}\n{}",
        command,
        host.name(),
        output.code,
        output.stdout,
        output.stderr
    );
    output
}
