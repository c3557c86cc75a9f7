//! What is written into finished files: the version into programs, and into `install.sh` the hash of
//! the manifest that it may install without asking anybody.

use fairlead_identity::package::{PublicKey, Version};
use fairlead_protocol::software::{MARK_BYTES, MARK_HEAD};

/// Why a file cannot be stamped, or is not stamped as it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StampError {
    /// Not one of ours, or stripped of what it needs.
    #[error("it has no place for a version: is it a program of Fairlead's?")]
    NoMark,
    /// Which of them is read at run time cannot be known.
    #[error("it has {0} places for a version instead of one")]
    Marks(usize),
    /// What is in the place is not a version.
    #[error("the place for its version is overwritten")]
    Damaged,
    /// Longer than its place.
    #[error("the version is too long for its place")]
    TooLong,
    /// A line of `install.sh` that is to be filled in.
    #[error("install.sh should have the line {0} exactly once")]
    ScriptLine(String),
}

/// Where the version stands in a program.
fn mark(program: &[u8]) -> Result<std::ops::Range<usize>, StampError> {
    let mut starts = (0..program.len()).filter(|&at| {
        program.get(at) == MARK_HEAD.first()
            && program
                .get(at..)
                .is_some_and(|rest| rest.starts_with(MARK_HEAD))
    });
    let start = starts.next().ok_or(StampError::NoMark)?;
    let more = starts.count();
    if more > 0 {
        return Err(StampError::Marks(more + 1));
    }
    let range = start + MARK_HEAD.len()..start + MARK_BYTES;
    if range.end > program.len() {
        return Err(StampError::Damaged);
    }
    Ok(range)
}

/// The version that a program says it is.
///
/// # Errors
/// When it says none.
pub fn version_of(program: &[u8]) -> Result<Version, StampError> {
    let text = program.get(mark(program)?).unwrap_or_default();
    std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.trim_end_matches(' ').parse().ok())
        .ok_or(StampError::Damaged)
}

/// Makes a program say that it is that version.
///
/// # Errors
/// When it has no place for it, or more than one.
pub fn stamp_program(program: &mut [u8], version: &Version) -> Result<(), StampError> {
    version_of(program)?;
    let range = mark(program)?;
    let place = program.get_mut(range).ok_or(StampError::Damaged)?;
    let text = version.to_string();
    let (written, rest) = place
        .split_at_mut_checked(text.len())
        .ok_or(StampError::TooLong)?;
    written.copy_from_slice(text.as_bytes());
    rest.fill(b' ');
    Ok(())
}

/// The lines of `install.sh` that are filled in, with what they are filled in with.
fn script_lines(version: &Version, hash: &str, keys: &[PublicKey]) -> [(&'static str, String); 3] {
    let keys: Vec<_> = keys.iter().map(ToString::to_string).collect();
    [
        ("stamped_version", version.to_string()),
        ("stamped_manifest_sha256", hash.to_owned()),
        ("stamped_keys", keys.join(" ")),
    ]
}

/// `install.sh` of a version.
///
/// # Errors
/// When one of its lines to be filled in is not there exactly once, empty.
pub fn stamp_script(
    script: &str,
    version: &Version,
    manifest_sha256: &str,
    keys: &[PublicKey],
) -> Result<String, StampError> {
    let mut text = script.to_owned();
    for (name, value) in script_lines(version, manifest_sha256, keys) {
        let empty = format!("\n{name}=''\n");
        if text.matches(&empty).count() != 1 {
            return Err(StampError::ScriptLine(format!("{name}=''")));
        }
        text = text.replace(&empty, &format!("\n{name}='{value}'\n"));
    }
    Ok(text)
}

/// Whether `install.sh` was filled in for that version and that manifest.
///
/// # Errors
/// Names the line that was not.
pub fn check_script(
    script: &str,
    version: &Version,
    manifest_sha256: &str,
) -> Result<(), StampError> {
    for (name, value) in script_lines(version, manifest_sha256, &[])
        .into_iter()
        .take(2)
    {
        let line = format!("{name}='{value}'");
        if script.lines().filter(|found| *found == line).count() != 1 {
            return Err(StampError::ScriptLine(line));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use fairlead_protocol::software::NOT_PACKED;

    use super::*;

    fn program() -> Vec<u8> {
        let mut bytes = b"\x7fELF....".to_vec();
        bytes.extend_from_slice(MARK_HEAD);
        bytes.extend_from_slice(format!("{NOT_PACKED:<48}").as_bytes());
        bytes.extend_from_slice(b"....");
        bytes
    }

    #[test]
    fn a_program_says_what_was_stamped_last() {
        let mut bytes = program();
        let length = bytes.len();
        assert_eq!(version_of(&bytes).unwrap().to_string(), NOT_PACKED);
        for text in ["1.2.3-rc.12345", "1.2.3"] {
            let version = text.parse().unwrap();
            stamp_program(&mut bytes, &version).unwrap();
            assert_eq!(version_of(&bytes), Ok(version));
        }
        assert_eq!(bytes.len(), length);
        assert!(bytes.ends_with(b" ...."));
        assert!(bytes.starts_with(b"\x7fELF...."));
    }

    #[test]
    fn the_longest_version_fits() {
        let text = format!("1.2.3-{}", "a".repeat(42));
        let version = text.parse().unwrap();
        let mut bytes = program();
        stamp_program(&mut bytes, &version).unwrap();
        assert_eq!(version_of(&bytes), Ok(version));
    }

    #[test]
    fn a_program_is_stamped_only_where_that_is_sure() {
        let version = "1.2.3".parse().unwrap();
        let mut none = b"hello".to_vec();
        assert_eq!(stamp_program(&mut none, &version), Err(StampError::NoMark));
        let mut two = [program(), program()].concat();
        assert_eq!(stamp_program(&mut two, &version), Err(StampError::Marks(2)));
        let mut cut = program();
        cut.truncate(30);
        assert_eq!(stamp_program(&mut cut, &version), Err(StampError::Damaged));
        let mut other = program();
        other[24..30].fill(0);
        assert_eq!(
            stamp_program(&mut other, &version),
            Err(StampError::Damaged)
        );
    }

    const SCRIPT: &str = "#!/bin/sh\nstamped_version=''\nstamped_manifest_sha256=''\nstamped_keys=''\necho \"$stamped_version\"\n";

    #[test]
    fn the_script_is_filled_in_once() {
        let version: Version = "1.2.3".parse().unwrap();
        let key = PublicKey::from_bytes([7; 32]);
        let stamped = stamp_script(SCRIPT, &version, "00ff", &[key.clone(), key.clone()]).unwrap();
        assert_eq!(
            stamped,
            format!(
                "#!/bin/sh\nstamped_version='1.2.3'\nstamped_manifest_sha256='00ff'\nstamped_keys='{key} {key}'\necho \"$stamped_version\"\n"
            )
        );
        check_script(&stamped, &version, "00ff").unwrap();
        assert!(check_script(&stamped, &version, "00fe").is_err());
        assert!(check_script(&stamped, &"1.2.4".parse().unwrap(), "00ff").is_err());
        // A second time, or another script.
        assert!(stamp_script(&stamped, &version, "00ff", &[]).is_err());
        assert!(stamp_script("#!/bin/sh\n", &version, "00ff", &[]).is_err());
        assert!(stamp_script(&SCRIPT.repeat(2), &version, "00ff", &[]).is_err());
    }
}
