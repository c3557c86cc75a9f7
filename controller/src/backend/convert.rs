//! From what the API was asked to what goes over the wire: every field checked on the way.
//!
//! What an engine would refuse later, or understand in another way than its writer meant, is
//! refused here with words. Whether a host allows it is the host owner's policy, decided there.

use fairlead_api::ApiError;
use fairlead_api::input::{invalid, text};
use fairlead_api::types::{Action, Precondition};
use fairlead_identity::digest::unhex32;
use fairlead_identity::package::Version;
use fairlead_protocol::command::{INSPECT_HOST, Kind};
use fairlead_protocol::limits::{
    COMMAND_BYTES_MAX, COPY_IN_BYTES_MAX, NAME_CHARS_MAX, TEXT_CHARS_MAX,
};
use fairlead_protocol::{
    CopyIn, CopyOut, Create, Exec, Inspect, Kill, List, Logs, Message, Ping, PruneImages, Pull,
    Remove, RenewCertificate, Restart, Run, Start, Stop, UninstallAgent, UpgradeAgent, codes,
};

use super::spec;

/// Longest grace of a stop.
const GRACE_S_MAX: u32 = 24 * 3600;
/// Most words of a command line.
pub(super) const WORDS_MAX: usize = 256;
/// Most settings of one kind (environment, labels, ports, …).
pub(super) const SETTINGS_MAX: usize = 256;
/// What command, ids and times around the kind may need.
const AROUND_BYTES: usize = 512;

type Checked<T> = Result<T, ApiError>;

/// The wire's form of an action. A container to be made gets a name here where it has none.
///
/// # Errors
/// `invalid_request`, saying which field and why; `command_too_large`.
pub fn kind(action: &Action) -> Checked<Kind> {
    let kind = match action {
        Action::Run { spec } => Kind::Run(Run {
            spec: Some(spec::container(spec)?),
        }),
        Action::Create { spec } => Kind::Create(Create {
            spec: Some(spec::container(spec)?),
        }),
        Action::Start { container } => Kind::Start(Start {
            container: target(container)?,
        }),
        Action::Stop {
            container,
            grace_s,
            signal,
        } => Kind::Stop(Stop {
            container: target(container)?,
            grace_s: grace(*grace_s)?,
            signal: self::signal(signal)?,
        }),
        Action::Restart {
            container,
            grace_s,
            signal,
        } => Kind::Restart(Restart {
            container: target(container)?,
            grace_s: grace(*grace_s)?,
            signal: self::signal(signal)?,
        }),
        Action::Kill { container, signal } => Kind::Kill(Kill {
            container: target(container)?,
            signal: self::signal(signal)?,
        }),
        Action::Remove {
            container,
            force,
            volumes,
        } => Kind::Remove(Remove {
            container: target(container)?,
            force: *force,
            volumes: *volumes,
        }),
        Action::Pull { image, platform } => Kind::Pull(Pull {
            image: self::image(image)?,
            platform: self::platform(platform)?,
        }),
        Action::Inspect {
            object,
            object_kind,
        } => inspect(object, object_kind)?,
        Action::Exec { .. } => exec(action)?,
        Action::Logs { .. } => logs(action)?,
        Action::CopyIn {
            container,
            path,
            size,
            sha256,
        } => copy_in(container, path, *size, sha256)?,
        Action::CopyOut { container, path } => Kind::CopyOut(CopyOut {
            container: target(container)?,
            path: absolute("path", path)?,
        }),
        Action::List { all } => Kind::List(List { all: *all }),
        Action::PruneImages { all } => Kind::PruneImages(PruneImages { all: *all }),
        Action::RenewCertificate {} => Kind::RenewCertificate(RenewCertificate {}),
        Action::Ping {} => Kind::Ping(Ping {}),
        Action::UpgradeAgent {
            version,
            manifest,
            allow_older,
        } => upgrade(version, manifest, *allow_older)?,
        Action::UninstallAgent {} => Kind::UninstallAgent(UninstallAgent {}),
    };
    let around = fairlead_protocol::Command {
        kind: Some(kind.clone()),
        ..Default::default()
    };
    if around.encoded_len() + AROUND_BYTES > COMMAND_BYTES_MAX {
        return Err(ApiError::new(
            codes::COMMAND_TOO_LARGE,
            format!(
                "the command has {} bytes; a link carries {COMMAND_BYTES_MAX}",
                around.encoded_len()
            ),
        )
        .hint("put long scripts and settings into a file of the image, or send them by copy-in"));
    }
    Ok(kind)
}

fn upgrade(version: &str, manifest: &str, allow_older: bool) -> Checked<Kind> {
    let parsed: Version = version
        .parse()
        .map_err(|_| invalid(format!("{version:?} is not a version, such as 1.4.0")))?;
    let hash = unhex32(manifest)
        .ok_or_else(|| invalid("manifest must be a SHA-256 in 64 hexadecimal digits"))?;
    Ok(Kind::UpgradeAgent(UpgradeAgent {
        version: parsed.to_string(),
        manifest: hash.to_vec().into(),
        allow_older,
    }))
}

fn inspect(object: &str, object_kind: &str) -> Checked<Kind> {
    let object = match object_kind {
        "" | "container" => target(object)?,
        "image" => image(object)?,
        INSPECT_HOST if object.is_empty() => String::new(),
        INSPECT_HOST => {
            return Err(invalid("object must be empty where object_kind is host")
                .hint("name the host as \"host\" of the request"));
        }
        other => {
            return Err(invalid(format!(
                "object_kind {other:?} is not container, image or host"
            )));
        }
    };
    Ok(Kind::Inspect(Inspect {
        object,
        kind: object_kind.to_owned(),
    }))
}

fn exec(action: &Action) -> Checked<Kind> {
    let Action::Exec {
        container,
        command,
        env,
        user,
        workdir,
        stdin,
        privileged,
    } = action
    else {
        return Err(invalid("not an exec"));
    };
    if command.first().is_none_or(String::is_empty) {
        return Err(invalid("command is empty: it needs a program").hint("exec CONTAINER PROGRAM"));
    }
    Ok(Kind::Exec(Exec {
        container: target(container)?,
        command: words("command", command)?,
        env: environment(env)?,
        user: self::user(user)?,
        workdir: workdir_of(workdir)?,
        stdin: *stdin,
        privileged: *privileged,
        ..Exec::default()
    }))
}

fn logs(action: &Action) -> Checked<Kind> {
    let Action::Logs {
        container,
        follow,
        tail,
        since,
        until,
        timestamps,
    } = action
    else {
        return Err(invalid("not logs"));
    };
    Ok(Kind::Logs(Logs {
        container: target(container)?,
        follow: *follow,
        tail: tail.map_or_else(|| "all".to_owned(), |lines| lines.to_string()),
        since_us: since.map_or(0, jiff::Timestamp::as_microsecond),
        until_us: until.map_or(0, jiff::Timestamp::as_microsecond),
        timestamps: *timestamps,
    }))
}

fn copy_in(container: &str, path: &str, size: u64, sha256: &str) -> Checked<Kind> {
    let digest = unhex32(sha256).ok_or_else(|| invalid("sha256 must be 64 hexadecimal digits"))?;
    if size == 0 || size > COPY_IN_BYTES_MAX {
        return Err(invalid(format!(
            "the archive has {size} bytes; 1 to {COPY_IN_BYTES_MAX} (4 GiB) may be copied in at once"
        )));
    }
    Ok(Kind::CopyIn(CopyIn {
        container: target(container)?,
        path: absolute("path", path)?,
        size,
        sha256: digest.to_vec().into(),
    }))
}

/// The wire's form of a precondition.
///
/// # Errors
/// When a part of it is not what it must be.
pub fn precondition(
    asked: Option<&Precondition>,
) -> Checked<Option<fairlead_protocol::Precondition>> {
    let Some(asked) = asked else { return Ok(None) };
    let id = &asked.container_id;
    let is_hex = id
        .bytes()
        .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if !id.is_empty() && (!is_hex || !(12..=64).contains(&id.len())) {
        return Err(invalid(
            "precondition.container_id must be 12 to 64 hexadecimal digits",
        ));
    }
    text(
        "precondition.image_digest",
        &asked.image_digest,
        NAME_CHARS_MAX,
    )?;
    if id.is_empty() && asked.image_digest.is_empty() {
        return Err(invalid(
            "the precondition is empty; leave it out to mean none",
        ));
    }
    Ok(Some(fairlead_protocol::Precondition {
        container_id: id.clone(),
        image_digest: asked.image_digest.clone(),
    }))
}

/// A container's name or id.
fn target(container: &str) -> Checked<String> {
    container_name(container)?;
    Ok(container.to_owned())
}

/// What docker takes as a container's name.
///
/// # Errors
/// When it is none.
pub fn container_name(name: &str) -> Checked<()> {
    let mut bytes = name.bytes();
    let is_name = name.len() <= NAME_CHARS_MAX
        && bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    if is_name {
        return Ok(());
    }
    Err(invalid(format!(
        "{:?} is not a container's name: letters, digits, '_', '.', '-', beginning with a letter \
         or digit, at most {NAME_CHARS_MAX}",
        fairlead_api::input::plain(name)
    )))
}

/// An image reference.
pub(super) fn image(reference: &str) -> Checked<String> {
    let is_reference = !reference.is_empty()
        && reference.len() <= 512
        && reference.as_bytes()[0].is_ascii_alphanumeric()
        && reference.bytes().all(|b| {
            b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'/' | b':' | b'@' | b'+')
        });
    if is_reference {
        return Ok(reference.to_owned());
    }
    Err(invalid(format!(
        "{:?} is not an image",
        fairlead_api::input::plain(reference)
    )))
}

/// `os/arch[/variant]`, or nothing.
pub(super) fn platform(platform: &str) -> Checked<String> {
    let parts: Vec<&str> = platform.split('/').collect();
    let is_part = |part: &&str| {
        !part.is_empty() && part.len() <= 32 && part.bytes().all(|b| b.is_ascii_alphanumeric())
    };
    if platform.is_empty() || ((2..=3).contains(&parts.len()) && parts.iter().all(is_part)) {
        return Ok(platform.to_owned());
    }
    Err(invalid("platform must be os/arch or os/arch/variant"))
}

/// A signal by name or number, as docker takes it; empty: the default.
pub(super) fn signal(signal: &str) -> Checked<String> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
        "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
        "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    if signal.is_empty() {
        return Ok(String::new());
    }
    let upper = signal.to_ascii_uppercase();
    if let Ok(number) = upper.parse::<u8>()
        && (1..=64).contains(&number)
    {
        return Ok(number.to_string());
    }
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let is_real_time = name
        .strip_prefix("RTMIN+")
        .or_else(|| name.strip_prefix("RTMAX-"))
        .is_some_and(|n| n.parse::<u8>().is_ok_and(|n| n <= 30))
        || matches!(name, "RTMIN" | "RTMAX" | "CLD" | "IOT" | "POLL");
    if NAMES.contains(&name) || is_real_time {
        return Ok(format!("SIG{name}"));
    }
    Err(invalid(format!(
        "{:?} is not a signal",
        fairlead_api::input::plain(signal)
    )))
}

fn grace(grace_s: Option<u32>) -> Checked<Option<u32>> {
    if grace_s.is_some_and(|seconds| seconds > GRACE_S_MAX) {
        return Err(invalid(format!("grace_s must be at most {GRACE_S_MAX}")));
    }
    Ok(grace_s)
}

/// `USER[:GROUP]`, or nothing.
pub(super) fn user(user: &str) -> Checked<String> {
    text("user", user, NAME_CHARS_MAX)?;
    if user.chars().any(char::is_whitespace) {
        return Err(invalid("user contains white space"));
    }
    Ok(user.to_owned())
}

/// A working directory, or nothing. Relative ones and those that lead through another process are
/// how runc was escaped from (CVE-2024-21626).
pub(super) fn workdir_of(workdir: &str) -> Checked<String> {
    if workdir.is_empty() {
        return Ok(String::new());
    }
    let workdir = absolute("workdir", workdir)?;
    let mut parts = workdir
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".");
    if workdir.split('/').any(|part| part == "..") || parts.next() == Some("proc") {
        return Err(invalid("workdir must not contain '..' nor lie in /proc"));
    }
    Ok(workdir)
}

/// An absolute path.
pub(super) fn absolute(what: &str, path: &str) -> Checked<String> {
    text(what, path, TEXT_CHARS_MAX)?;
    if !path.starts_with('/') {
        return Err(invalid(format!("{what} must be absolute")));
    }
    Ok(path.to_owned())
}

/// A command line: any text, never through a shell.
pub(super) fn words(what: &str, words: &[String]) -> Checked<Vec<String>> {
    if words.len() > WORDS_MAX {
        return Err(invalid(format!("{what} has more than {WORDS_MAX} words")));
    }
    if words.iter().any(|word| word.contains('\0')) {
        return Err(invalid(format!("{what} contains a NUL character")));
    }
    Ok(words.to_vec())
}

/// `KEY=VALUE` each.
pub(super) fn environment(env: &[String]) -> Checked<Vec<String>> {
    if env.len() > SETTINGS_MAX {
        return Err(invalid(format!("env has more than {SETTINGS_MAX} members")));
    }
    for setting in env {
        let key = setting.split_once('=').map_or("", |(key, _)| key);
        if key.is_empty() || key.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(invalid("env must be KEY=VALUE each").hint("-e KEY=VALUE"));
        }
        if setting.contains('\0') {
            return Err(invalid("env contains a NUL character"));
        }
    }
    Ok(env.to_vec())
}

#[cfg(test)]
mod tests;
