//! The servers from their Debian packages: `dpkg -i`, the line that they print, and a host from what came
//! with them; and away again.

use std::path::Path;
use std::time::Duration;

use fairlead_tests::hosts::{Hosts, Output, TestHost};
use fairlead_tests::package;
use fairlead_tests::wait::wait_for;

const NAME: &str = "fleet.example.test";
const SOON: Duration = Duration::from_secs(60);

async fn ran(host: &TestHost, command: &str) -> Output {
    let output = host.exec(command).await;
    let words = format!("{}\n{}", output.stdout, output.stderr);
    assert!(output.is_ok(), "{command} on {}: {words}", host.name());
    output
}

/// The rest of the line that begins with a word.
fn after(output: &Output, word: &str) -> String {
    let line = output
        .stdout
        .lines()
        .find_map(|line| line.strip_prefix(word));
    line.unwrap_or_else(|| panic!("no {word:?} in {:?}", output.stdout))
        .trim()
        .to_owned()
}

/// Both packages, as they lie in that repository, into a folder of the host.
pub(crate) async fn copy_debs(host: &TestHost, repository: &Path, folder: &str) {
    let version = std::fs::read_to_string(repository.join("channels/stable")).unwrap();
    let arch = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    for name in ["controller", "access_server"] {
        let deb = format!("fairlead_{name}_{arch}.deb");
        let from = repository.join(version.trim()).join(&deb);
        host.copy_in(&from, &format!("{folder}/{deb}")).await;
    }
}

#[tokio::test]
async fn the_servers_debian_packages_bring_all_that_a_first_host_needs() {
    let Some(hosts) = Hosts::here().await else {
        return;
    };
    let servers = hosts.start_known_as("servers", &[NAME]).await;
    let vm = hosts.start("vm").await;
    copy_debs(&servers, package::repository(), "/srv").await;

    let installed = ran(&servers, "dpkg -i /srv/*.deb").await;
    let line = installed
        .stdout
        .split('`')
        .find(|part| part.starts_with("sh /usr/share/fairlead/install.sh server"))
        .unwrap_or_else(|| panic!("no line to go on with: {}", installed.stdout));
    let said = ran(&servers, &line.replace("NAME", NAME)).await;
    assert_eq!(said.stdout.lines().count(), 3, "{}", said.stdout);
    assert!(!said.stderr.contains("no package"), "{}", said.stderr);
    let login = after(&said, "first admin");
    ran(&servers, login.split("  (").next().unwrap()).await;

    // The line as it is printed, on a machine that knows nothing yet.
    ran(&vm, &after(&said, "add a host")).await;
    wait_for("vm is online", SOON, async || {
        let said = servers.exec("fairlead host ls").await;
        let row = said.stdout.lines().find(|row| row.starts_with("vm"));
        if row.is_some_and(|row| row.contains("online")) {
            Ok(())
        } else {
            Err(format!("{}{}", said.stdout, said.stderr))
        }
    })
    .await;
    // What a careful person fetches lies beside the script.
    for file in ["install.sh", "install.sh.sig"] {
        let fetch = format!("curl -fsSk https://{NAME}/{file} | sha256sum | cut -d' ' -f1");
        let here = format!("cat /usr/share/fairlead/packages/*/{file} | sha256sum | cut -d' ' -f1");
        assert_eq!(vm.says(&fetch).await, servers.says(&here).await, "{file}");
    }

    // The same line again changes nothing; dpkg takes its own away, with the data when it is told so.
    let process = "systemctl show -p MainPID --value fairlead-controller";
    let before = servers.says(process).await;
    ran(&servers, &line.replace("NAME", NAME)).await;
    assert_eq!(servers.says(process).await, before, "no restart");
    ran(
        &servers,
        "dpkg -P fairlead-controller fairlead-access-server",
    )
    .await;
    let left = servers
        .says("ls -d /usr/share/fairlead /var/lib/fairlead* /usr/bin/fairlead* 2>/dev/null; true")
        .await;
    assert_eq!(left, "");
}

/// Hosts would run it as root: what came with another signature is not kept for them.
#[tokio::test]
async fn s17_a_server_keeps_no_script_that_was_changed() {
    let Some(hosts) = Hosts::here().await else {
        return;
    };
    let servers = hosts.start("servers").await;
    servers
        .copy_in(package::repository(), "/srv/packages")
        .await;
    ran(
        &servers,
        "cp /srv/packages/install.sh /srv/genuine.sh && \
         for f in /srv/packages/*/install.sh; do echo 'true' >>$f; done",
    )
    .await;
    // From standard input, so that it fetches what it is to keep.
    let line = format!("sh -s -- server --name {NAME} --from /srv/packages </srv/genuine.sh");
    let said = servers.exec(&line).await;
    assert_eq!(said.code, 1, "{}", said.stderr);
    assert!(
        said.stderr.contains("(installer_signature)"),
        "{}",
        said.stderr
    );
    let kept = servers
        .says("ls -A /var/lib/fairlead-controller/packages 2>/dev/null; true")
        .await;
    assert_eq!(kept, "");
    assert!(
        !servers
            .exec("systemctl is-active fairlead-controller")
            .await
            .is_ok()
    );
}
