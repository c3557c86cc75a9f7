//! The script as root of a small system of its own: a root directory with busybox and nothing else, so
//! without curl, openssl and GNU tools, and with a systemctl (or OpenRC) that writes down what it is told.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use super::faulty::Server;
use super::kit::{Repository, TOKEN, Wish, tree, words};

/// A systemctl: what is started joins, if it finds a token, and stays.
const SYSTEMCTL: &str = r#"#!/bin/sh
echo "systemctl $*" >>/record
case " $* " in
*" is-active "*) [ -e /active-$2 ] || { echo inactive; exit 3; }; echo active ;;
*" is-enabled "*) [ -e /enabled-$3 ] ;;
*" enable "*) touch /enabled-$3 ;;
*" disable "*) rm -f /enabled-$4 /active-$4 ;;
*" stop "*) rm -f /active-$2 ;;
*" start "* | *" restart "*)
    for unit in "$@"; do :; done
    [ -e /etc/systemd/system/$unit.service ] || exit 5
    touch /active-$unit
    case $unit in
    fairlead-controller) echo https://fleet.example.com/setup/SECRET >/var/lib/$unit/setup-link ;;
    fairlead-access-server) touch /var/lib/$unit/certificates ;;
    esac
    if [ -s /etc/fairlead/join-token ] && [ ! -e /refuse ]; then
        mkdir -p /var/lib/fairlead-agent
        cat /etc/fairlead/join-token >/var/lib/fairlead-agent/identity
    fi ;;
esac
"#;

const JOURNALCTL: &str =
    "#!/bin/sh\n[ ! -e /refuse ] || echo 'agent cannot run error=the token was used up'\n";

const RC_SERVICE: &str = r#"#!/bin/sh
echo "rc-service $*" >>/record
case " $* " in
*" status "*) [ -e /active ] ;;
*" start "* | *" restart "*)
    touch /active
    mkdir -p /var/lib/fairlead-agent /var/log
    touch /var/lib/fairlead-agent/identity /var/log/fairlead-agent.log ;;
*" stop "*) rm -f /active ;;
esac
"#;

const RC_UPDATE: &str = r#"#!/bin/sh
echo "rc-update $*" >>/record
case " $* " in
*" add "*) ln -s /etc/init.d/fairlead-agent /etc/runlevels/default/fairlead-agent ;;
*" delete "*) rm -f /etc/runlevels/default/fairlead-agent ;;
esac
"#;

const USERADD: &str = r#"#!/bin/sh
for user in "$@"; do :; done
id=$((900 + $(wc -l </etc/passwd)))
echo "$user:x:$id:$id::/:/bin/false" >>/etc/passwd
echo "$user:x:$id:" >>/etc/group
"#;

const USERDEL: &str = r#"#!/bin/sh
sed -i "/^$1:/d" /etc/passwd /etc/group
"#;

/// A root directory.
struct System {
    dir: tempfile::TempDir,
}

impl System {
    /// One with that init system, if this machine lets us have it.
    fn new(init: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let system = Self { dir };
        let busybox = std::env::var_os("FAIRLEAD_TEST_BUSYBOX")
            .map_or_else(|| PathBuf::from("/bin/busybox"), PathBuf::from);
        for folder in [
            "bin",
            "usr/bin",
            "usr/local/bin",
            "etc/systemd/system",
            "var/lib",
            "opt",
            "tmp",
            "dev",
            "run",
            "root",
        ] {
            fs::create_dir_all(system.path(folder)).unwrap();
        }
        let made = fs::copy(&busybox, system.path("bin/busybox")).is_ok()
            && Command::new("mknod")
                .arg(system.path("dev/null"))
                .args(["c", "1", "3"])
                .status()
                .is_ok_and(|s| s.success())
            && system
                .shell("/bin/busybox --install -s /bin")
                .status
                .success();
        if !made {
            assert!(
                std::env::var_os("CI").is_none(),
                "no chroot with a static busybox, in CI"
            );
            eprintln!("SKIPPED: no chroot with a static busybox can be had here (it takes root)");
            return None;
        }
        fs::write(system.path("etc/passwd"), "root:x:0:0::/root:/bin/sh\n").unwrap();
        fs::write(system.path("etc/group"), "root:x:0:\n").unwrap();
        match init {
            "systemd" => {
                fs::create_dir_all(system.path("run/systemd/system")).unwrap();
                system.tool("systemctl", SYSTEMCTL);
                system.tool("journalctl", JOURNALCTL);
                system.tool("useradd", USERADD);
                system.tool("userdel", USERDEL);
            }
            "openrc" => {
                fs::create_dir_all(system.path("run/openrc")).unwrap();
                fs::create_dir_all(system.path("etc/init.d")).unwrap();
                fs::create_dir_all(system.path("etc/runlevels/default")).unwrap();
                system.tool("rc-service", RC_SERVICE);
                system.tool("rc-update", RC_UPDATE);
            }
            _ => {}
        }
        Some(system)
    }

    fn path(&self, inside: &str) -> PathBuf {
        self.dir.path().join(inside.trim_start_matches('/'))
    }

    fn tool(&self, name: &str, text: &str) {
        let path = self.path("usr/bin").join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn shell(&self, words: &str) -> Output {
        // By its path: what is looked up is looked up in the new root's path.
        Command::new("/usr/sbin/chroot")
            .arg(self.dir.path())
            .args(["/bin/busybox", "sh", "-c", words])
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("FAIRLEAD_TEST_RECORD", "/record")
            .env("FAIRLEAD_JOIN_TOKEN", TOKEN)
            .output()
            .unwrap()
    }

    /// The line that people paste, with busybox's wget in curl's place.
    fn line(&self, server: &Server, args: &str) -> Output {
        let url = server.url();
        self.shell(&format!(
            "wget -q -O - {url}/install.sh | sh -s -- {args} --from {url}"
        ))
    }

    fn install(&self, server: &Server) -> String {
        let output = self.line(server, "--address 127.0.0.1:1 --allow-unreachable");
        let said = words(&output);
        assert!(output.status.success(), "{said}");
        said
    }

    /// What was called since the last time that somebody asked.
    fn calls(&self) -> String {
        let calls = fs::read_to_string(self.path("record")).unwrap_or_default();
        let _ = fs::remove_file(self.path("record"));
        calls
    }

    /// The tree without the doubles' own marks.
    fn state(&self) -> std::collections::BTreeMap<PathBuf, super::kit::Entry> {
        let _ = self.calls();
        tree(self.dir.path())
    }
}

#[test]
fn the_line_installs_starts_and_joins_and_again_restarts_nothing() {
    let Some(system) = System::new("systemd") else {
        return;
    };
    let repository = Repository::new();
    let server = Server::start(repository.path(), Vec::new());
    let before = system.state();
    let began = Instant::now();
    let said = system.install(&server);
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
    assert!(said.contains("fairlead-agent 0.2.0 runs on"), "{said}");
    assert!(said.contains("enrolled as box in region hz"), "{said}");
    assert!(said.contains("no Docker and no Podman socket"), "{said}");
    let calls = system.calls();
    for call in [
        "systemctl daemon-reload",
        "enable fairlead-agent",
        "start fairlead-agent",
    ] {
        assert!(calls.contains(call), "{call}: {calls}");
    }
    let identity = fs::read_to_string(system.path("/var/lib/fairlead-agent/identity")).unwrap();
    assert_eq!(
        identity.trim(),
        TOKEN,
        "the agent found the token in its file"
    );
    assert!(
        !system.path("/etc/fairlead/join-token").exists(),
        "used up, it goes"
    );

    let installed = system.state();
    let said = system.install(&server);
    assert!(said.contains("nothing of it changed"), "{said}");
    let calls = system.calls();
    assert!(
        !calls.contains("start ") && !calls.contains("reload"),
        "{calls}"
    );
    assert_eq!(system.state(), installed);

    // A new version is a restart; nothing else is done twice.
    repository.pack(&Wish {
        version: "0.3.0",
        ..Wish::default()
    });
    system.install(&server);
    let calls = system.calls();
    assert!(
        calls.contains("restart fairlead-agent") && !calls.contains("enable fairlead"),
        "{calls}"
    );

    let output = system.line(&server, "--uninstall");
    assert!(output.status.success(), "{}", words(&output));
    let calls = system.calls();
    let stopped = calls
        .find("disable --now fairlead-agent")
        .expect("it is stopped");
    let left = calls.find("fairlead-agent leave").expect("it leaves");
    assert!(
        stopped < left,
        "two with one identity are never at work: {calls}"
    );
    assert_eq!(system.state(), before);
}

#[test]
fn a_refused_token_is_said_in_the_agents_words() {
    let Some(system) = System::new("systemd") else {
        return;
    };
    let repository = Repository::new();
    let server = Server::start(repository.path(), Vec::new());
    fs::write(system.path("refuse"), "").unwrap();
    let began = Instant::now();
    let output = system.line(&server, "--address 127.0.0.1:1 --allow-unreachable");
    let said = words(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("(installer_not_enrolled)") && said.contains("the token was used up"),
        "{said}"
    );
    assert!(
        began.elapsed() < Duration::from_secs(15),
        "it does not wait for the whole time"
    );
    assert!(!said.contains(super::kit::SECRET));

    // With a good one the same line goes on from there.
    fs::remove_file(system.path("refuse")).unwrap();
    system.install(&server);
}

#[test]
fn with_openrc_it_is_a_supervised_service() {
    let Some(system) = System::new("openrc") else {
        return;
    };
    let repository = Repository::new();
    let server = Server::start(repository.path(), Vec::new());
    fs::create_dir_all(system.path("var/log")).unwrap();
    let before = system.state();
    system.install(&server);
    let script = fs::read_to_string(system.path("/etc/init.d/fairlead-agent")).unwrap();
    for line in [
        "supervisor=supervise-daemon",
        "command=/opt/fairlead/supervisor/fairlead-agent",
        "respawn_max=0",
    ] {
        assert!(
            script.lines().any(|found| found == line),
            "{line}: {script}"
        );
    }
    let parsed =
        system.shell("sh -n /etc/init.d/fairlead-agent && test -x /etc/init.d/fairlead-agent");
    assert!(parsed.status.success(), "{}", words(&parsed));
    let calls = system.calls();
    assert!(
        calls.contains("rc-update --quiet add fairlead-agent default"),
        "{calls}"
    );
    assert!(
        calls.contains("rc-service --quiet fairlead-agent start"),
        "{calls}"
    );
    system.install(&server);
    let calls = system.calls();
    assert!(
        !calls.contains("start") && !calls.contains("rc-update"),
        "{calls}"
    );
    let output = system.line(&server, "--uninstall");
    assert!(output.status.success(), "{}", words(&output));
    assert_eq!(system.state(), before);
}

#[test]
fn without_an_init_system_it_says_how_to_start_it() {
    let Some(system) = System::new("none") else {
        return;
    };
    let repository = Repository::new();
    let server = Server::start(repository.path(), Vec::new());
    let before = system.state();
    let said = system.install(&server);
    assert!(
        said.contains("exec /opt/fairlead/supervisor/fairlead-agent supervise"),
        "{said}"
    );
    assert!(
        system.path("/etc/fairlead/join-token").is_file(),
        "whoever starts it needs the token"
    );
    let output = system.line(&server, "--uninstall");
    assert!(output.status.success(), "{}", words(&output));
    assert_eq!(system.state(), before);
}

#[test]
fn the_servers_get_users_units_and_their_package_and_setup_does_the_rest() {
    let Some(system) = System::new("systemd") else {
        return;
    };
    let repository = Repository::new();
    let server = Server::start(repository.path(), Vec::new());
    let output = system.line(&server, "server");
    assert!(
        words(&output).contains("needs --name"),
        "{}",
        words(&output)
    );
    assert_eq!(output.status.code(), Some(2));

    let before = system.state();
    let line = "server --name fleet.example.com";
    let output = system.line(&server, line);
    let said = words(&output);
    assert!(output.status.success(), "{said}");
    let asked_for = String::from_utf8_lossy(&output.stdout);
    assert_eq!(
        asked_for,
        format!(
            "address      https://fleet.example.com (own CA, sha256 0123)\n\
             first admin  https://fleet.example.com/setup/SECRET (works once, for 15 minutes)\n\
             add a host   curl -fsSL -k --pinnedpubkey sha256//PIN= https://fleet.example.com/install.sh \
             | FAIRLEAD_JOIN_TOKEN={TOKEN} sh -s -- --from https://fleet.example.com/packages \
             --address fleet.example.com:443 --pin sha256//PIN=\n"
        ),
        "three lines on standard output, and nothing else"
    );
    let calls = system.calls();
    assert!(
        calls.contains("fairlead-controller setup --region local"),
        "{calls}"
    );
    assert!(
        !system
            .path("/var/lib/fairlead-access-server/join-token")
            .exists()
    );
    for (file, line) in [
        (
            "controller",
            "FAIRLEAD_UPLINK_ADDRESS='fleet.example.com:443'",
        ),
        ("access-server", "FAIRLEAD_FRONT_LISTEN='0.0.0.0:443'"),
    ] {
        let text =
            fs::read_to_string(system.path("/etc/fairlead").join(format!("{file}.env"))).unwrap();
        assert!(text.lines().any(|found| found == line), "{line}: {text}");
    }
    for (unit, user) in [
        ("fairlead-controller", "fairlead-controller"),
        ("fairlead-access-server", "fairlead-access"),
    ] {
        let text = fs::read_to_string(
            system
                .path("/etc/systemd/system")
                .join(format!("{unit}.service")),
        )
        .unwrap();
        for line in [
            format!("User={user}"),
            format!("ExecStart=/opt/fairlead-servers/current/{unit} run"),
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
    }
    for program in ["fairlead", "fairlead-controller", "fairlead-access-server"] {
        let link = fs::read_link(system.path("/usr/local/bin").join(program)).unwrap();
        assert_eq!(
            link,
            Path::new("/opt/fairlead-servers/current").join(program)
        );
    }
    let packages = system.path("/var/lib/fairlead-controller/packages");
    for file in [
        "install.sh",
        "channels/stable",
        "0.2.0/manifest",
        "0.2.0/manifest.sig",
        "0.2.0/fairlead-agent-linux-aarch64",
    ] {
        assert_eq!(
            fs::read(packages.join(file)).unwrap(),
            fs::read(repository.file(file)).unwrap(),
            "{file}"
        );
    }

    let installed = system.state();
    let output = system.line(&server, line);
    assert!(output.status.success(), "{}", words(&output));
    let calls = system.calls();
    assert!(
        !calls.contains("restart") && !calls.contains("daemon-reload"),
        "{calls}"
    );
    assert_eq!(system.state(), installed);

    // Hosts are served from there.
    let hosts = Server::start(packages.clone(), Vec::new());
    let host = super::kit::Host::new();
    host.run(
        &["sh"],
        &packages.join("install.sh"),
        &["--from", &hosts.url(), "--address", "127.0.0.1:1"],
    )
    .with_token()
    .ok();
    drop(host);

    // An older one is refused; what is there stays.
    repository.pack(&Wish {
        version: "0.1.0",
        ..Wish::default()
    });
    let output = system.line(&server, line);
    assert!(
        words(&output).contains("(installer_older)"),
        "{}",
        words(&output)
    );

    let output = system.line(&server, "server --uninstall");
    assert!(output.status.success(), "{}", words(&output));
    assert!(packages.join("0.2.0/manifest").is_file(), "data stays");
    assert!(!system.path("/opt/fairlead-servers").exists());
    let output = system.line(&server, "server --uninstall --purge");
    assert!(output.status.success(), "{}", words(&output));
    assert_eq!(system.state(), before);
}
