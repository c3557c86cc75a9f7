//! `fairlead self-update`: the CLI makes room for another version of itself, or is what it was and says why.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use fairlead_identity::package::SigningKey;
use fairlead_tests::fleet::{Fleet, Options};
use fairlead_tests::loop_disk::LoopDisk;
use fairlead_tests::programs::program;
use fairlead_tests::versions::{Package, said, stamped};
use tempfile::TempDir;

const PACKED: &str = if cfg!(target_arch = "aarch64") {
    "fairlead-linux-aarch64"
} else {
    "fairlead-linux-x86_64"
};

/// Somebody's own copy of the CLI, of version 1.0.0, and a folder of packages.
struct Desk {
    dir: TempDir,
    key: SigningKey,
    built: Vec<u8>,
}

impl Desk {
    fn new() -> Self {
        let desk = Self {
            dir: tempfile::tempdir().unwrap(),
            key: SigningKey::generate().unwrap(),
            built: std::fs::read(program("fairlead")).unwrap(),
        };
        desk.put(&desk.program());
        desk
    }

    fn put(&self, path: &Path) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::copy(program("fairlead"), path).unwrap();
        std::fs::write(path, stamped(&self.built, "1.0.0")).unwrap();
    }

    fn program(&self) -> PathBuf {
        self.dir.path().join("bin/fairlead")
    }

    fn packages(&self) -> PathBuf {
        self.dir.path().join("packages")
    }

    fn package(&self, version: &str, program: &[u8], expires_in_s: i64) -> PathBuf {
        let folder = self.packages().join(version);
        let package = Package {
            version,
            name: PACKED,
            program,
            expires_in_s,
            min_from: "0.0.1",
        };
        package.write(&folder, &self.key);
        folder
    }

    /// A version whose program works.
    fn good(&self, version: &str) -> PathBuf {
        self.package(version, &stamped(&self.built, version), 3600)
    }

    fn newest(&self, version: &str) {
        let channels = self.packages().join("channels");
        std::fs::create_dir_all(&channels).unwrap();
        std::fs::write(channels.join("stable"), format!("{version}\n")).unwrap();
    }

    fn command(&self, program: &Path, words: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .arg("self-update")
            .args(words)
            .env("HOME", self.dir.path())
            .env("FAIRLEAD_PACKAGE_KEYS", self.key.public().to_string());
        command
    }

    fn update(&self, words: &[&str]) -> Output {
        let packages = self.packages();
        ran(self
            .command(&self.program(), words)
            .arg("--from")
            .arg(packages))
    }

    /// What the program says it is, with nothing left beside it.
    fn version(&self) -> String {
        let bin = std::fs::read_dir(self.dir.path().join("bin")).unwrap();
        assert_eq!(bin.count(), 1, "something is left beside the program");
        let output = ran(Command::new(self.program()).arg("--version"));
        let text = String::from_utf8(output.stdout).unwrap();
        text.trim().strip_prefix("fairlead ").unwrap().to_owned()
    }
}

/// Runs a program that this process has written. What another test begins at that moment holds the file open for
/// writing until it has become its own program; until then the system starts it for nobody.
fn ran(command: &mut Command) -> Output {
    loop {
        match command.output() {
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => {
                std::thread::yield_now();
            }
            output => return output.unwrap(),
        }
    }
}

#[test]
fn the_newest_version_takes_the_programs_place() {
    use std::os::unix::fs::PermissionsExt;
    let desk = Desk::new();
    desk.good("1.1.0");
    desk.good("1.2.0");
    desk.newest("1.2.0");
    let mode = std::fs::Permissions::from_mode(0o750);
    std::fs::set_permissions(desk.program(), mode).unwrap();

    let output = desk.update(&[]);

    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(desk.version(), "1.2.0");
    let mode = desk.program().metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o750, "as it was");
    let again = desk.update(&[]);
    assert!(again.status.success(), "{}", said(&again));
    assert!(said(&again).contains("already"), "{}", said(&again));
    let older = desk.update(&["--to", "1.1.0"]);
    assert_eq!(older.status.code(), Some(1), "{}", said(&older));
    assert!(
        said(&older).contains("older than 1.2.0"),
        "{}",
        said(&older)
    );
    assert_eq!(desk.version(), "1.2.0");
    let older = desk.update(&["--to", "1.1.0", "--allow-downgrade"]);
    assert!(older.status.success(), "{}", said(&older));
    assert_eq!(desk.version(), "1.1.0");
}

#[test]
fn s33_what_is_not_to_be_believed_never_takes_the_programs_place() {
    let desk = Desk::new();
    let before = std::fs::read(desk.program()).unwrap();
    let refused = |version: &str, why: &str| {
        let output = desk.update(&["--to", version]);
        assert!(!output.status.success(), "{version}: {}", said(&output));
        assert!(said(&output).contains(why), "{version}: {}", said(&output));
        assert_eq!(desk.version(), "1.0.0", "{version}");
        assert_eq!(std::fs::read(desk.program()).unwrap(), before, "{version}");
    };

    let elsewhere = Desk::new();
    let foreign = elsewhere.good("2.0.0");
    std::fs::create_dir_all(desk.packages()).unwrap();
    std::fs::rename(foreign, desk.packages().join("2.0.0")).unwrap();
    refused("2.0.0", "not trusted");

    let altered = desk.good("2.0.1").join("manifest");
    let text = std::fs::read_to_string(&altered).unwrap();
    std::fs::write(&altered, text.replace("min-from 0.0.1", "min-from 0.0.2")).unwrap();
    refused("2.0.1", "does not match its signature");

    desk.package("2.0.2", &stamped(&desk.built, "2.0.2"), -10);
    refused("2.0.2", "expired");

    // The manifest of another version in its place.
    let other = desk.good("2.0.3");
    std::fs::rename(other, desk.packages().join("2.0.4")).unwrap();
    refused("2.0.4", "2.0.4 was asked for");

    // Another program than the manifest names: of its length, shorter, and longer.
    let program = desk.good("2.0.5").join(PACKED);
    std::fs::write(&program, stamped(&desk.built, "2.0.6")).unwrap();
    refused("2.0.5", "not the file that the manifest names");
    std::fs::write(&program, &desk.built[..desk.built.len() - 1]).unwrap();
    refused("2.0.5", "bytes instead of");
    std::fs::write(&program, [&desk.built[..], b"more"].concat()).unwrap();
    refused("2.0.5", "longer than");

    // Genuine, and of no use here.
    desk.package("2.0.7", b"#!/bin/sh\nexit 3\n", 3600);
    refused("2.0.7", "cannot run here");
    refused("2.0.8", "cannot read");
}

#[test]
fn a_program_that_something_else_put_there_stays() {
    let desk = Desk::new();
    desk.good("1.1.0");
    desk.newest("1.1.0");
    let installed = desk.dir.path().join("opt/versions/1.0.0/fairlead");
    desk.put(&installed);
    let before = std::fs::read(&installed).unwrap();
    let packages = desk.packages();
    let update = |command: &mut Command| ran(command.arg("--from").arg(&packages));

    let output = update(&mut desk.command(&installed, &[]));
    assert_eq!(output.status.code(), Some(5), "{}", said(&output));
    assert!(said(&output).contains("install.sh"), "{}", said(&output));
    assert_eq!(std::fs::read(&installed).unwrap(), before);

    let mut nobody = desk.command(&desk.program(), &[]);
    let output = update(nobody.env_remove("FAIRLEAD_PACKAGE_KEYS"));
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("no key"), "{}", said(&output));
    assert_eq!(desk.version(), "1.0.0");
}

/// The program lies where it cannot be written, and on a disk that has no room for another one.
#[test]
fn a_program_that_cannot_be_replaced_stays_and_says_who_could() {
    if !LoopDisk::can_be_had() {
        return;
    }
    let desk = Desk::new();
    desk.good("1.1.0");
    desk.newest("1.1.0");
    let bin = desk.dir.path().join("elsewhere");
    let disk = LoopDisk::mount(&bin);
    let own = bin.join("fairlead");
    desk.put(&own);
    let before = std::fs::read(&own).unwrap();
    let stays = |why: &str| {
        let mut command = desk.command(&own, &[]);
        let output = ran(command.arg("--from").arg(desk.packages()));
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(said(&output).contains("cannot write"), "{}", said(&output));
        assert!(said(&output).contains(why), "{}", said(&output));
        assert_eq!(std::fs::read(&own).unwrap(), before);
        let left = std::fs::read_dir(&bin).unwrap().flatten();
        let left: Vec<_> = left.map(|entry| entry.file_name()).collect();
        assert!(left.len() <= 3, "nothing half done is left: {left:?}");
    };
    disk.read_only(true);
    stays("whoever owns that file");
    disk.read_only(false);
    let room = [0; 1 << 20];
    let mut filler = std::fs::File::create(bin.join("filler")).unwrap();
    while std::io::Write::write_all(&mut filler, &room).is_ok() {}
    drop(filler);
    stays("No space left");
    std::fs::remove_file(bin.join("filler")).unwrap();
    let mut command = desk.command(&own, &[]);
    let output = ran(command.arg("--from").arg(desk.packages()));
    assert!(output.status.success(), "{}", said(&output));
}

#[tokio::test]
async fn the_server_has_the_newest_version_and_no_token_is_needed_for_it() {
    let desk = Desk::new();
    let fleet = Fleet::start(Options::simulated()).await;
    desk.good("1.1.0");
    desk.newest("1.1.0");
    let served = fleet.dir().join("controller/packages");
    for file in [
        "channels/stable",
        "1.1.0/manifest",
        "1.1.0/manifest.sig",
        &format!("1.1.0/{PACKED}"),
    ] {
        let to = served.join(file);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(desk.packages().join(file), to).unwrap();
    }
    let update = async |words: &[&str]| {
        let mut command = desk.command(&desk.program(), words);
        command
            .env("FAIRLEAD_URL", &fleet.api.url)
            .env("FAIRLEAD_CA", fleet.ca_file())
            .env_remove("FAIRLEAD_TOKEN");
        let ran = tokio::task::spawn_blocking(move || ran(&mut command));
        ran.await.unwrap()
    };
    let none = update(&["--to", "1.0.9"]).await;
    assert_eq!(none.status.code(), Some(3), "{}", said(&none));
    let done = update(&[]).await;
    assert!(done.status.success(), "{}", said(&done));
    assert_eq!(desk.version(), "1.1.0");
    let url = format!("{}/packages", fleet.api.url.trim_end_matches('/'));
    let again = update(&["--from", &url]).await;
    assert!(again.status.success(), "{}", said(&again));
    assert!(said(&again).contains("already"), "{}", said(&again));
}
