//! A small system of its own to be root of: a root directory with busybox and nothing else, so without
//! curl, openssl and GNU tools, and with a systemctl (or OpenRC) that writes down what it is told.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};

use fairlead_tests::programs;

use super::faulty::Server;
use super::kit::{TOKEN, which, words};
use super::trees::{Entry, tree};

/// A systemctl: what is started joins, if it finds a token, and stays.
const SYSTEMCTL: &str = r#"#!/bin/sh
echo "systemctl $*" >>/record
case " $* " in
*" is-active "*) [ -e /active-$2 ] || { echo inactive; exit 3; }; echo active ;;
*" is-enabled "*) [ -e /enabled-$3 ] ;;
*" enable "*) touch /enabled-$3 ;;
*" disable "*) rm -f /enabled-$4 /active-$4 /pid-$4 ;;
*" show "*) cat /pid-$4 2>/dev/null ;;
*" stop "*) rm -f /active-$2 /pid-$2 ;;
*" start "* | *" restart "*)
    for unit in "$@"; do :; done
    [ -e /etc/systemd/system/$unit.service ] || [ -e /lib/systemd/system/$unit.service ] || exit 5
    touch /active-$unit
    echo MainPID=$$ >/pid-$unit
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
pub(super) struct System {
    dir: tempfile::TempDir,
}

impl System {
    /// One with that init system, if this machine lets us have it.
    pub(super) fn new(init: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        // Users of its own look around in it.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
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
        let busybox = fs::read(&busybox).unwrap();
        programs::write(&system.path("bin/busybox"), &busybox);
        let made = Command::new("mknod")
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

    pub(super) fn path(&self, inside: &str) -> PathBuf {
        self.dir.path().join(inside.trim_start_matches('/'))
    }

    pub(super) fn tool(&self, name: &str, text: &str) {
        programs::write(&self.path("usr/bin").join(name), text.as_bytes());
    }

    /// This machine's openssl, with what it is linked to.
    pub(super) fn openssl(&self) {
        let program = which("openssl");
        let linked = Command::new("ldd").arg(&program).output().unwrap();
        let linked = String::from_utf8(linked.stdout).unwrap();
        let libraries = linked
            .split_whitespace()
            .filter(|word| word.starts_with('/'))
            .map(PathBuf::from);
        for file in libraries.chain([program]) {
            let to = self.path(file.to_str().unwrap());
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(&file, to).unwrap();
        }
    }

    pub(super) fn shell(&self, words: &str) -> Output {
        // Services of its own write into it too.
        let record = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path("record"))
            .unwrap();
        record
            .set_permissions(fs::Permissions::from_mode(0o666))
            .unwrap();
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
    pub(super) fn line(&self, server: &Server, args: &str) -> Output {
        let url = server.url();
        self.shell(&format!(
            "wget -q -O - {url}/install.sh | sh -s -- {args} --from {url}"
        ))
    }

    pub(super) fn install(&self, server: &Server) -> String {
        let output = self.line(server, "--address 127.0.0.1:1 --allow-unreachable");
        let said = words(&output);
        assert!(output.status.success(), "{said}");
        said
    }

    /// What was called since the last time that somebody asked.
    pub(super) fn calls(&self) -> String {
        let calls = fs::read_to_string(self.path("record")).unwrap_or_default();
        let _ = fs::remove_file(self.path("record"));
        calls
    }

    /// The tree without the doubles' own marks.
    pub(super) fn state(&self) -> BTreeMap<PathBuf, Entry> {
        let _ = self.calls();
        tree(self.dir.path())
    }
}
