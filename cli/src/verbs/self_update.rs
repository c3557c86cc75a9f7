//! `self-update`: this program makes room for another version of itself, which a key signed that is trusted here.
//!
//! In this order, and the program is as it was before the last of it: who looks after this file; the manifest, its
//! signature, its expiry, that it is of the version that was asked for and not below this one; the program's size
//! and hash, as they were written beside this one; that it starts; then one rename.
//! Touches this program's own file and its folder.

use std::fs::Permissions;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use fairlead_identity::digest::Sha256;
use fairlead_identity::package::{
    FileEntry, MANIFEST_BYTES_MAX, MANIFEST_NAME, Manifest, SIGNATURES_BYTES_MAX, SIGNATURES_NAME,
    TrustedKeys, Version,
};
use fairlead_protocol::{codes, software};
use jiff::Timestamp;
use reqwest::Url;
use tempfile::{NamedTempFile, TempPath};

use super::Context;
use crate::args::SelfUpdate;
use crate::client::Client;
use crate::config::{self, Settings};
use crate::exit::{Exit, Failure};
use crate::output::say;
use crate::tls::Trust;

/// This program's name in packages for this kind of machine.
const PACKED: &str = if cfg!(target_arch = "aarch64") {
    "fairlead-linux-aarch64"
} else {
    "fairlead-linux-x86_64"
};
/// Which version is the newest.
const CHANNEL: [&str; 2] = ["channels", "stable"];
/// Longest name of a version.
const VERSION_BYTES_MAX: usize = 64;
/// Where the system's packages put programs.
const OF_THE_SYSTEM: [&str; 5] = ["/usr/bin", "/usr/sbin", "/bin", "/sbin", "/nix/store"];

/// `fairlead self-update`
pub(super) async fn self_update(context: &Context, args: SelfUpdate) -> Result<Exit, Failure> {
    if args.key.is_empty() {
        let failure = Failure::usage("no key is trusted here: nobody could say who made a version");
        return Err(failure.hint(
            "--key KEYID:BASE64, or FAIRLEAD_PACKAGE_KEYS; fairlead agent public-key prints it where versions are made",
        ));
    }
    let program = std::env::current_exe()
        .and_then(|path| path.canonicalize())
        .map_err(|error| Failure::local("cannot find this program's file", &error))?;
    others_look_after_it(&program)?;
    let source = Source::of(args.from.as_deref())?;
    let version = match args.to {
        Some(version) => version,
        None => source.newest().await?,
    };
    let name = version.to_string();
    let manifest = source
        .small(&[&name, MANIFEST_NAME], MANIFEST_BYTES_MAX)
        .await?;
    let signatures = source
        .small(&[&name, SIGNATURES_NAME], SIGNATURES_BYTES_MAX)
        .await?;
    let verified = TrustedKeys::new(args.key)
        .verify(&manifest, &signatures)
        .map_err(refused)?;
    let here = software::version();
    let entry = judged(&verified.manifest, &version, here, args.allow_downgrade)?;
    if here == name {
        let is_here = serde_json::json!({ "version": name, "was": here });
        context
            .out
            .data(&is_here, |_| format!("this is version {name} already\n"))?;
        return Ok(Exit::Ok);
    }
    say(&format!("version {name}, signed by {}", verified.key));
    let coming = source.program(&name, &entry, &program).await?;
    starts(&coming, &name)?;
    put_in_place(coming, &program)?;
    let done = serde_json::json!({ "version": name, "was": here });
    context.out.data(&done, |_| {
        format!("this was version {here}, and is {name} from now on\n")
    })?;
    Ok(Exit::Ok)
}

fn refused(error: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Failed, format!("the package is refused: {error}"))
        .code(codes::PACKAGE_REFUSED)
        .hint("nothing was changed")
}

/// A file that something else puts there stays that something's.
fn others_look_after_it(program: &Path) -> Result<(), Failure> {
    let at = program.display();
    if OF_THE_SYSTEM.iter().any(|dir| program.starts_with(dir)) {
        let failure = Failure::new(
            Exit::Conflict,
            format!("{at} belongs to a package of the system"),
        );
        return Err(
            failure.hint("upgrade it as it came, for instance: apt install ./fairlead….deb")
        );
    }
    let folder = program.parent().and_then(Path::parent);
    if folder.is_some_and(|folder| folder.ends_with("versions")) {
        let failure = Failure::new(
            Exit::Conflict,
            format!("{at} is part of an installation, whose versions install.sh puts there"),
        );
        return Err(
            failure.hint("install the newer version: sh install.sh server --name NAME --from DIR")
        );
    }
    Ok(())
}

/// The manifest's word of this program, if that version may be taken.
fn judged(
    manifest: &Manifest,
    asked: &Version,
    here: &str,
    allow_downgrade: bool,
) -> Result<FileEntry, Failure> {
    let now = fairlead_identity::package::Timestamp::from_seconds(Timestamp::now().as_second());
    let now = now.ok_or_else(|| Failure::new(Exit::Failed, "this machine's clock is wrong"))?;
    manifest.check_not_expired(now).map_err(refused)?;
    manifest.check_version(asked).map_err(refused)?;
    if let (false, Ok(here)) = (allow_downgrade, here.parse::<Version>()) {
        let not_below = manifest.check_not_below(&here);
        not_below
            .map_err(|older| refused(older).hint("--allow-downgrade, if that is what you want"))?;
    }
    manifest.file(PACKED).cloned().map_err(|missing| {
        Failure::new(Exit::NotFound, missing.to_string())
            .code(codes::PACKAGE_NOT_FOUND)
            .hint("versions that were pushed hold the agent only; --from names a folder of whole packages")
    })
}

/// Starts it once: what cannot run here must not take this one's place.
fn starts(program: &Path, version: &str) -> Result<(), Failure> {
    let no = |why: String| {
        Failure::new(
            Exit::Failed,
            format!("version {version} cannot run here: {why}"),
        )
        .hint("nothing was changed")
    };
    let output = std::process::Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| no(error.to_string()))?;
    let said = String::from_utf8_lossy(&output.stdout);
    if output.status.success() && said.trim() == format!("fairlead {version}") {
        Ok(())
    } else {
        Err(no(format!("it ended with {}", output.status)))
    }
}

/// From here on, or not at all.
fn put_in_place(coming: TempPath, program: &Path) -> Result<(), Failure> {
    coming
        .persist(program)
        .map_err(|error| cannot_write(program, &error.error))?;
    let dir = program.parent().unwrap_or(Path::new("/"));
    std::fs::File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|error| cannot_write(program, &error))
}

fn cannot_write(program: &Path, error: &std::io::Error) -> Failure {
    let failure = Failure::local(&format!("cannot write {}", program.display()), error);
    match error.kind() {
        std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => failure
            .hint("run it as whoever owns that file, or put a copy of the program where you may write"),
        _ => failure,
    }
}

/// Where versions come from: a folder of packages, or the same served.
enum Source {
    Folder(PathBuf),
    Server(Box<Client>, Url),
}

impl Source {
    fn of(from: Option<&str>) -> Result<Self, Failure> {
        let Some(from) = from else {
            let settings = config::settings(&config::process_env)?;
            let url = below(&settings.url, &["packages"]);
            return Ok(Self::Server(Box::new(Client::new(settings)?), url));
        };
        if !from.contains("://") {
            return Ok(Self::Folder(PathBuf::from(from)));
        }
        let url = config::server_url(from)?;
        let trust = match config::process_env("FAIRLEAD_CA") {
            Some(file) => Trust::from_file(Path::new(&file), "FAIRLEAD_CA")?.0,
            None => Trust::Platform,
        };
        let settings = Settings {
            url,
            token: None,
            trust,
        };
        let whole = Url::parse(from).map_err(|error| Failure::usage(format!("{from}: {error}")))?;
        Ok(Self::Server(Box::new(Client::new(settings)?), whole))
    }

    async fn newest(&self) -> Result<Version, Failure> {
        let text = self.small(&CHANNEL, VERSION_BYTES_MAX).await?;
        let text = String::from_utf8_lossy(&text);
        text.trim()
            .parse()
            .map_err(|error| Failure::new(Exit::Failed, format!("channels/stable: {error}")))
    }

    async fn small(&self, path: &[&str], max: usize) -> Result<Vec<u8>, Failure> {
        let mut bytes = Vec::new();
        self.read(path, max as u64, |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        })
        .await?;
        Ok(bytes)
    }

    /// The program, whole and as the manifest says, in a file beside the one that runs.
    async fn program(
        &self,
        version: &str,
        entry: &FileEntry,
        program: &Path,
    ) -> Result<TempPath, Failure> {
        let failed = |error: &std::io::Error| cannot_write(program, error);
        let dir = program.parent().unwrap_or(Path::new("/"));
        let mut file = NamedTempFile::new_in(dir).map_err(|error| failed(&error))?;
        let (mut size, mut digest) = (0, Sha256::default());
        self.read(&[version, PACKED], entry.size, |piece| {
            size += piece.len() as u64;
            digest.update(piece);
            file.write_all(piece).map_err(|error| failed(&error))
        })
        .await?;
        entry.check(size, &digest.finish()).map_err(refused)?;
        let mode = program
            .metadata()
            .map_or(0o755, |about| about.permissions().mode() & 0o777);
        file.as_file()
            .set_permissions(Permissions::from_mode(mode))
            .and_then(|()| file.as_file().sync_all())
            .map_err(|error| failed(&error))?;
        // Closed: the system starts no file that somebody may write.
        Ok(file.into_temp_path())
    }

    async fn read(
        &self,
        path: &[&str],
        max: u64,
        mut each: impl FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let name = path.join("/");
        let mut came = 0;
        let bounded = |piece: &[u8]| {
            came += piece.len() as u64;
            if came > max {
                return Err(refused(format!("{name} is longer than {max} bytes")));
            }
            each(piece)
        };
        match self {
            Self::Folder(dir) => read_file(&dir.join(&name), bounded),
            Self::Server(client, base) => client.file(below(base, path), bounded).await,
        }
    }
}

fn read_file(
    path: &Path,
    mut each: impl FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let failed = |error| {
        let failure = Failure::local(&format!("cannot read {}", path.display()), &error);
        match error.kind() {
            std::io::ErrorKind::NotFound => Failure {
                exit: Exit::NotFound,
                ..failure.code(codes::PACKAGE_NOT_FOUND)
            },
            _ => failure,
        }
    };
    let mut file = std::fs::File::open(path).map_err(failed)?;
    let mut chunk = vec![0; 64 * 1024];
    loop {
        match file.read(&mut chunk).map_err(failed)? {
            0 => return Ok(()),
            read => each(&chunk[..read])?,
        }
    }
}

fn below(base: &Url, path: &[&str]) -> Url {
    let mut url = base.clone();
    if let Ok(mut parts) = url.path_segments_mut() {
        parts.pop_if_empty().extend(path);
    }
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_something_else_put_there_is_left_to_it() {
        for path in ["/usr/bin/fairlead", "/nix/store/x-fairlead/bin/fairlead"] {
            let no = others_look_after_it(Path::new(path)).err().unwrap();
            assert!(no.message.contains("package of the system"), "{no}");
        }
        let path = "/opt/fairlead-servers/versions/1.0.0/fairlead";
        let no = others_look_after_it(Path::new(path)).err().unwrap();
        assert!(no.message.contains("install.sh"), "{no}");
        for path in ["/usr/local/bin/fairlead", "/home/me/bin/fairlead"] {
            assert!(others_look_after_it(Path::new(path)).is_ok(), "{path}");
        }
    }

    #[test]
    fn files_lie_below_what_was_named() {
        let base = Url::parse("https://fleet.example.com/packages/").unwrap();
        let url = below(&base, &["1.0.0", "manifest"]);
        assert_eq!(url.path(), "/packages/1.0.0/manifest");
    }
}
