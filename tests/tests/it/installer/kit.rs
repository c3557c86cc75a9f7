//! What the tests of the script share: a signed package of shell scripts, a tree to install into, and the
//! tree's state before and after.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use fairlead_identity::digest::{hex, sha256};

/// A join token as the script wants it; nobody else does.
pub(super) const TOKEN: &str = concat!(
    "FL1",
    "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    "::abcdefghij.abcdefghijkmnpqrstuvwxyz23456789"
);

/// The part of it that nobody may learn.
pub(super) const SECRET: &str = "abcdefghijkmnpqrstuvwxyz23456789";

/// The script as it is in the sources.
pub(super) fn script() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../installer/install.sh");
    fs::read_to_string(path).unwrap()
}

/// Whether a tool is here. In CI all of them are.
pub(super) fn here(tool: &str) -> bool {
    let here = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(tool).is_file()));
    if !here {
        assert!(
            std::env::var_os("CI").is_none(),
            "{tool} is missing, and in CI nothing is left out"
        );
        eprintln!("SKIPPED in part: {tool} is not here");
    }
    here
}

/// Where a tool is.
pub(super) fn which(tool: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap();
    std::env::split_paths(&path)
        .map(|folder| folder.join(tool))
        .find(|path| path.is_file())
        .unwrap()
}

/// The shells that are here: each is a name and the words that start it.
pub(super) fn shells() -> Vec<&'static [&'static str]> {
    let all: [&[&str]; 3] = [&["dash"], &["bash"], &["busybox", "ash"]];
    all.into_iter().filter(|shell| here(shell[0])).collect()
}

/// An Ed25519 key of openssl's.
pub(super) struct Key {
    file: PathBuf,
    /// `KEYID:BASE64`, as the script takes it.
    pub(super) public: String,
}

impl Key {
    pub(super) fn new(dir: &Path, name: &str) -> Self {
        let file = dir.join(name);
        openssl(&["genpkey", "-algorithm", "ed25519", "-out"], &file);
        let der = openssl(&["pkey", "-pubout", "-outform", "DER", "-in"], &file);
        let raw = &der[der.len() - 32..];
        let id = &hex(&sha256(raw))[..16];
        Self {
            public: format!("{id}:{}", base64(raw)),
            file,
        }
    }

    pub(super) fn id(&self) -> &str {
        self.public.split(':').next().unwrap()
    }

    pub(super) fn sign(&self, file: &Path) -> String {
        let signature = Command::new("openssl")
            .args(["pkeyutl", "-sign", "-rawin", "-inkey"])
            .arg(&self.file)
            .arg("-in")
            .arg(file)
            .output()
            .unwrap();
        assert!(signature.status.success());
        format!("{} {}\n", self.id(), base64(&signature.stdout))
    }
}

fn openssl(args: &[&str], file: &Path) -> Vec<u8> {
    let output = Command::new("openssl")
        .args(args)
        .arg(file)
        .output()
        .expect("the tests of the installer need openssl");
    assert!(output.status.success(), "openssl {args:?}");
    output.stdout
}

/// Base64 of a few bytes.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for part in bytes.chunks(3) {
        let word = part
            .iter()
            .fold(0_u32, |word, byte| (word << 8) | u32::from(*byte))
            << (8 * (3 - part.len()));
        for place in 0..4 {
            let letter = LETTERS[(word >> (18 - 6 * place)) as usize & 63];
            text.push(if place <= part.len() {
                char::from(letter)
            } else {
                '='
            });
        }
    }
    text
}

/// What of a package a test wants otherwise.
pub(super) struct Wish<'a> {
    pub(super) version: &'a str,
    pub(super) expires: &'a str,
    pub(super) min_from: &'a str,
    /// Bytes behind the program's text, to make it large.
    pub(super) padding: usize,
}

impl Default for Wish<'_> {
    fn default() -> Self {
        Self {
            version: "0.2.0",
            expires: "2099-01-01T00:00:00Z",
            min_from: "0.1.0",
            padding: 0,
        }
    }
}

/// A repository of packages, and the key that signed them.
pub(super) struct Repository {
    dir: tempfile::TempDir,
    pub(super) key: Key,
}

impl Repository {
    pub(super) fn new() -> Self {
        let repository = Self::empty();
        repository.pack(&Wish::default());
        repository
    }

    pub(super) fn empty() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let key = Key::new(dir.path(), "private.pem");
        fs::create_dir(dir.path().join("packages")).unwrap();
        Self { dir, key }
    }

    pub(super) fn path(&self) -> PathBuf {
        self.dir.path().join("packages")
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// The script that belongs to the newest package.
    pub(super) fn install_sh(&self) -> PathBuf {
        self.file("install.sh")
    }

    /// Adds a version: programs that say what they were asked, manifest, signature, stamped script.
    pub(super) fn pack(&self, wish: &Wish<'_>) {
        let version = wish.version;
        let folder = self.file(version);
        fs::create_dir_all(&folder).unwrap();
        let mut files = BTreeMap::new();
        for name in [
            "fairlead-agent",
            "fairlead-controller",
            "fairlead-access-server",
            "fairlead",
        ] {
            for target in ["linux-x86_64", "linux-aarch64"] {
                let program = format!("{}{}", program(name, version), "#".repeat(wish.padding));
                files.insert(format!("{name}-{target}"), program);
            }
        }
        let mut manifest = format!(
            "fairlead-manifest 1\nversion {version}\nreleased 2026-11-21T00:00:00Z\n\
             expires {}\nmin-from {}\n",
            wish.expires, wish.min_from
        );
        for (name, text) in &files {
            fs::write(folder.join(name), text).unwrap();
            let hash = hex(&sha256(text.as_bytes()));
            writeln!(manifest, "file {name} {} {hash}", text.len()).unwrap();
        }
        fs::write(folder.join("manifest"), &manifest).unwrap();
        self.sign(version, &self.key);
        let stamped = stamp(&script(), version, &manifest, &self.key.public);
        for place in [folder, self.path()] {
            let script = place.join("install.sh");
            fs::write(&script, &stamped).unwrap();
            fs::write(place.join("install.sh.sig"), self.key.sign(&script)).unwrap();
        }
        fs::create_dir_all(self.file("channels")).unwrap();
        fs::write(self.file("channels/stable"), format!("{version}\n")).unwrap();
    }

    pub(super) fn sign(&self, version: &str, key: &Key) {
        let manifest = self.file(version).join("manifest");
        let signature = key.sign(&manifest);
        fs::write(manifest.with_extension("sig"), signature).unwrap();
    }

    pub(super) fn another_key(&self) -> Key {
        Key::new(self.dir.path(), "another.pem")
    }

    /// The bundle of a version, as a tar file.
    pub(super) fn bundle(&self, version: &str) -> PathBuf {
        let path = self.dir.path().join("bundle.tar");
        let mut tar = tar::Builder::new(fs::File::create(&path).unwrap());
        tar.append_dir_all(version, self.file(version)).unwrap();
        tar.finish().unwrap();
        path
    }
}

/// A program that writes down what it is asked, and gets by.
fn program(name: &str, version: &str) -> String {
    let ca = &TOKEN[3..67];
    format!(
        "#!/bin/sh\n\
         echo \"{name} $*\" >>\"${{FAIRLEAD_TEST_RECORD:-/dev/null}}\"\n\
         case $1 in\n\
         --version) echo {name} {version} ;;\n\
         status)\n\
         if [ -e \"$FAIRLEAD_STATE_DIR/revoked\" ]; then\n\
         echo 'identity  REVOKED: it was box in region hz (revoked)'\n\
         exit 1\n\
         fi\n\
         echo 'identity  enrolled as box in region hz'\n\
         echo 'ca        {ca}' ;;\n\
         leave)\n\
         [ \"${{FAIRLEAD_TEST_LEAVE:-0}}\" = 0 ] && exit\n\
         echo 'error: no access server could be told (a:1: nobody is there), so the identity lives' >&2\n\
         exit \"$FAIRLEAD_TEST_LEAVE\" ;;\n\
         setup)\n\
         while [ $# -gt 0 ]; do\n\
         case $1 in *-token-file) echo {TOKEN} >\"$2\" ;; esac\n\
         shift\n\
         done\n\
         echo ca_sha256=0123\n\
         echo pin=sha256//PIN= ;;\n\
         *) exit 9 ;;\n\
         esac\n"
    )
}

/// What the packer does to the script: three lines, nothing else.
pub(super) fn stamp(script: &str, version: &str, manifest: &str, keys: &str) -> String {
    let hash = hex(&sha256(manifest.as_bytes()));
    let mut stamped = script.to_owned();
    for (line, value) in [
        (
            "stamped_version=''\n",
            format!("stamped_version='{version}'\n"),
        ),
        (
            "stamped_manifest_sha256=''\n",
            format!("stamped_manifest_sha256='{hash}'\n"),
        ),
        ("stamped_keys=''\n", format!("stamped_keys='{keys}'\n")),
    ] {
        let line = format!("\n{line}");
        assert_eq!(stamped.matches(&line).count(), 1, "one place for {line}");
        stamped = stamped.replace(&line, &format!("\n{value}"));
    }
    stamped
}

/// A tree that stands for a host with systemd.
pub(super) struct Host {
    dir: tempfile::TempDir,
}

impl Host {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let host = Self { dir };
        for folder in [
            "root/etc/systemd/system",
            "root/usr/local/bin",
            "root/var/lib",
            "root/opt",
        ] {
            fs::create_dir_all(host.dir.path().join(folder)).unwrap();
        }
        host
    }

    pub(super) fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    pub(super) fn path(&self, inside: &str) -> PathBuf {
        self.root().join(inside.trim_start_matches('/'))
    }

    pub(super) fn record(&self) -> PathBuf {
        self.dir.path().join("record")
    }

    /// What programs of the package were asked so far.
    pub(super) fn recorded(&self) -> String {
        fs::read_to_string(self.record()).unwrap_or_default()
    }

    pub(super) fn read(&self, inside: &str) -> String {
        let path = self.path(inside);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// Makes it a host that has joined.
    pub(super) fn join(&self) {
        let state = self.path("/var/lib/fairlead-agent");
        fs::create_dir_all(&state).unwrap();
        fs::write(state.join("identity"), "the identity").unwrap();
    }

    /// A run of a script on this host, with nothing of our environment.
    pub(super) fn run(&self, shell: &[&str], script: &Path, args: &[&str]) -> Run {
        self.run_verb(shell, script, &[], args)
    }

    /// The same with a verb.
    pub(super) fn run_verb(
        &self,
        shell: &[&str],
        script: &Path,
        verb: &[&str],
        args: &[&str],
    ) -> Run {
        // By its path: a test may change what the script finds.
        let mut command = Command::new(which(shell[0]));
        command
            .args(&shell[1..])
            .arg(script)
            .args(verb)
            .arg("--root")
            .arg(self.root())
            .args(["--init", "systemd"])
            .args(args);
        self.surround(&mut command);
        Run { command }
    }

    /// The usual line, from a folder.
    pub(super) fn install(&self, shell: &[&str], from: &Repository, args: &[&str]) -> Run {
        let mut run = self.run(
            shell,
            &from.install_sh(),
            &["--address", "127.0.0.1:1", "--from"],
        );
        run.command.arg(from.path()).args(args);
        run
    }

    fn surround(&self, command: &mut Command) {
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("FAIRLEAD_TEST_RECORD", self.record())
            // No test of the script leaves the machine.
            .env("HTTPS_PROXY", "")
            .stdin(Stdio::null());
    }
}

/// A run of the script.
pub(super) struct Run {
    pub(super) command: Command,
}

impl Run {
    pub(super) fn env(mut self, key: &str, value: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    pub(super) fn with_token(self) -> Self {
        self.env("FAIRLEAD_JOIN_TOKEN", TOKEN)
    }

    pub(super) fn output(&mut self) -> Output {
        self.command.output().unwrap()
    }

    /// It must succeed; what it said.
    pub(super) fn ok(mut self) -> String {
        let output = self.output();
        let said = words(&output);
        assert!(output.status.success(), "{:?}: {said}", self.command);
        said
    }

    /// It must end with the exit code, and say the code word, where, and what to do next.
    pub(super) fn refused(mut self, exit: i32, code: &str) -> String {
        let output = self.output();
        let said = words(&output);
        assert_eq!(
            output.status.code(),
            Some(exit),
            "{:?}: {said}",
            self.command
        );
        for needed in [
            format!("({code})"),
            "  host: ".to_owned(),
            "  next: ".to_owned(),
        ] {
            assert!(said.contains(&needed), "{needed} is missing: {said}");
        }
        let errors = said
            .lines()
            .filter(|line| line.starts_with("error: "))
            .count();
        assert_eq!(errors, 1, "one error: {said}");
        said
    }
}

pub(super) fn words(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}
