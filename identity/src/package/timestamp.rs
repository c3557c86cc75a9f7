//! Points in time as manifests write them: `2026-11-21T00:00:00Z`, UTC, to the second.

use std::fmt;
use std::str::FromStr;

use time::{Date, Month, OffsetDateTime, Time};

/// The text is not a point in time, or not written in the one way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a time: it should look like 2026-11-21T00:00:00Z")]
pub struct TimestampError;

/// Seconds since 1970, of a year between 1970 and 9999.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(i64);

/// The last second of the year 9999.
const LAST: i64 = 253_402_300_799;

impl Timestamp {
    /// From seconds since 1970; `None` when no manifest could say it.
    #[must_use]
    pub fn from_seconds(seconds: i64) -> Option<Self> {
        (0..=LAST).contains(&seconds).then_some(Self(seconds))
    }

    /// Seconds since 1970.
    #[must_use]
    pub fn seconds(self) -> i64 {
        self.0
    }
}

impl FromStr for Timestamp {
    type Err = TimestampError;

    fn from_str(text: &str) -> Result<Self, TimestampError> {
        let at = |from: usize, to: usize| {
            text.get(from..to)
                .filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))
                .and_then(|digits| digits.parse::<u16>().ok())
                .ok_or(TimestampError)
        };
        let small = |from, to| u8::try_from(at(from, to)?).map_err(|_| TimestampError);
        let month = Month::try_from(small(5, 7)?).map_err(|_| TimestampError)?;
        let date = Date::from_calendar_date(i32::from(at(0, 4)?), month, small(8, 10)?)
            .map_err(|_| TimestampError)?;
        let time = Time::from_hms(small(11, 13)?, small(14, 16)?, small(17, 19)?)
            .map_err(|_| TimestampError)?;
        let seconds = OffsetDateTime::new_utc(date, time).unix_timestamp();
        // Separators and length: what it would be written as is what was read.
        Self::from_seconds(seconds)
            .filter(|timestamp| timestamp.to_string() == text)
            .ok_or(TimestampError)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = OffsetDateTime::from_unix_timestamp(self.0).map_err(|_| fmt::Error)?;
        write!(
            f,
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
            at.year(),
            u8::from(at.month()),
            at.day(),
            at.hour(),
            at.minute(),
            at.second()
        )
    }
}
