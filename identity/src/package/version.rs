//! Versions of Fairlead's programs: `MAJOR.MINOR.PATCH`, with `-PRE.RELEASE` before the final one.
//!
//! The order is SemVer's. Build metadata (`+…`) is not known here: two versions of equal rank could
//! hide a downgrade.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// Longest version text.
const CHARS_MAX: usize = 48;

/// The text is not a version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a version: it should look like 1.2.3 or 1.2.3-rc.1")]
pub struct VersionError;

/// A version of Fairlead's programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    numbers: [u32; 3],
    /// Empty for a final version.
    pre: Vec<Part>,
}

/// Variants in SemVer's order: numbers rank below words.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Number(u32),
    Word(String),
}

impl FromStr for Version {
    type Err = VersionError;

    fn from_str(text: &str) -> Result<Self, VersionError> {
        if text.len() > CHARS_MAX {
            return Err(VersionError);
        }
        let (numbers, pre) = match text.split_once('-') {
            Some((numbers, pre)) => (numbers, Some(pre)),
            None => (text, None),
        };
        let mut parts = numbers.split('.').map(number);
        let mut next = || parts.next().flatten().ok_or(VersionError);
        let numbers = [next()?, next()?, next()?];
        if parts.next().is_some() {
            return Err(VersionError);
        }
        let pre = match pre {
            None => Vec::new(),
            Some(pre) => pre.split('.').map(part).collect::<Result<_, _>>()?,
        };
        Ok(Self { numbers, pre })
    }
}

/// Decimal digits without leading zeros: one number, one way to write it.
fn number(text: &str) -> Option<u32> {
    let canonical = text == "0" || (!text.starts_with('0') && !text.is_empty());
    if canonical && text.bytes().all(|b| b.is_ascii_digit()) {
        text.parse().ok()
    } else {
        None
    }
}

fn part(text: &str) -> Result<Part, VersionError> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_alphanumeric()) {
        Err(VersionError)
    } else if text.bytes().all(|b| b.is_ascii_digit()) {
        number(text).map(Part::Number).ok_or(VersionError)
    } else {
        Ok(Part::Word(text.to_owned()))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.numbers;
        write!(f, "{major}.{minor}.{patch}")?;
        for (index, part) in self.pre.iter().enumerate() {
            f.write_str(if index == 0 { "-" } else { "." })?;
            match part {
                Part::Number(number) => write!(f, "{number}")?,
                Part::Word(word) => f.write_str(word)?,
            }
        }
        Ok(())
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        self.numbers.cmp(&other.numbers).then_with(|| {
            // A final version comes after all its pre-releases.
            match (self.pre.is_empty(), other.pre.is_empty()) {
                (true, false) => Ordering::Greater,
                (false, true) => Ordering::Less,
                _ => self.pre.cmp(&other.pre),
            }
        })
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
