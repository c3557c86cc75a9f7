//! Ages, durations and sizes as people say them.

use jiff::Timestamp;

/// "12 s", "3 min", "2 h", "9 days".
pub(crate) fn span(seconds: i64) -> String {
    let seconds = seconds.max(0);
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// How long ago something was, as seen at `now`.
pub(crate) fn since(then: Timestamp, now: Timestamp) -> String {
    span(now.as_second() - then.as_second())
}

/// "3 min ago", or "in 5 min" when it lies ahead.
pub(crate) fn ago(then: Timestamp, now: Timestamp) -> String {
    if then > now {
        format!("in {}", span(then.as_second() - now.as_second()))
    } else {
        format!("{} ago", since(then, now))
    }
}

/// "3 min ago" or "never".
pub(crate) fn ago_or(then: Option<Timestamp>, now: Timestamp, never: &str) -> String {
    then.map_or_else(|| never.to_owned(), |then| ago(then, now))
}

/// "14:02:07 UTC", or with its date where that is another day than `now`.
pub(crate) fn clock(at: Timestamp, now: Timestamp) -> String {
    let text = at.to_string();
    let today = now.to_string();
    let (date, time) = text.split_once('T').unwrap_or((&text, ""));
    let time = time.get(..8).unwrap_or(time);
    if today.starts_with(date) {
        format!("{time} UTC")
    } else {
        format!("{date} {time} UTC")
    }
}

/// A server's text, in which exact times are said as people do: "since 14:02:07 UTC (3 min ago)".
pub(crate) fn with_times(text: &str, now: Timestamp) -> String {
    let said = text.split_inclusive(char::is_whitespace).map(|word| {
        // What follows a time in a sentence is no part of it.
        let exact = word.trim_end_matches(|c: char| c.is_whitespace() || ",;.:)".contains(c));
        let is_time = exact.ends_with('Z') && exact.starts_with(|c: char| c.is_ascii_digit());
        match exact.parse::<Timestamp>() {
            Ok(at) if is_time => format!(
                "{} ({}){}",
                clock(at, now),
                ago(at, now),
                &word[exact.len()..]
            ),
            _ => word.to_owned(),
        }
    });
    said.collect()
}

/// Milliseconds: "418 ms", "1.2 s", "2 min 5 s".
pub(crate) fn millis(ms: f64) -> String {
    if ms < 9.95 {
        format!("{ms:.1} ms")
    } else if ms < 999.5 {
        format!("{ms:.0} ms")
    } else if ms < 60_000.0 {
        format!("{:.1} s", ms / 1000.0)
    } else {
        format!(
            "{} min {} s",
            (ms / 60_000.0) as u64,
            (ms % 60_000.0 / 1000.0) as u64
        )
    }
}

const UNITS: [&str; 6] = ["B", "KB", "MB", "GB", "TB", "PB"];

/// The unit in which `bytes` is said, as a power of 1024.
fn unit(bytes: u64) -> usize {
    let mut unit = 0;
    let mut rest = bytes;
    while rest >= 1024 && unit < UNITS.len() - 1 {
        rest /= 1024;
        unit += 1;
    }
    unit
}

fn scaled(bytes: u64, unit: usize) -> String {
    let value = bytes as f64 / 1024f64.powi(unit as i32);
    if unit == 0 || value >= 9.95 || value == value.trunc() {
        format!("{value:.0}")
    } else {
        format!("{value:.1}")
    }
}

/// "212 MB".
pub(crate) fn bytes(bytes: u64) -> String {
    let unit = unit(bytes);
    format!("{} {}", scaled(bytes, unit), UNITS[unit])
}

/// "1/64 MB": used of limit, in the limit's unit.
pub(crate) fn bytes_of(used: u64, limit: u64) -> String {
    if limit == 0 {
        return bytes(used);
    }
    let unit = unit(limit);
    format!(
        "{}/{} {}",
        scaled(used, unit),
        scaled(limit, unit),
        UNITS[unit]
    )
}

/// "1 container", "2 containers".
pub(crate) fn count(number: u64, noun: &str) -> String {
    if number == 1 {
        format!("1 {noun}")
    } else {
        format!("{number} {noun}s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_said_as_people_do() {
        for (seconds, text) in [
            (-5, "0 s"),
            (12, "12 s"),
            (119, "119 s"),
            (180, "3 min"),
            (7200, "2 h"),
            (9 * 86_400, "9 days"),
        ] {
            assert_eq!(span(seconds), text);
        }
        let now: Timestamp = "2026-11-20T14:00:00Z".parse().unwrap();
        let then: Timestamp = "2026-11-20T13:57:00Z".parse().unwrap();
        assert_eq!(ago(then, now), "3 min ago");
        assert_eq!(ago(now, then), "in 3 min");
        assert_eq!(clock(then, now), "13:57:00 UTC");
        let yesterday: Timestamp = "2026-11-19T13:57:00Z".parse().unwrap();
        assert_eq!(clock(yesterday, now), "2026-11-19 13:57:00 UTC");
    }

    #[test]
    fn exact_times_in_a_sentence_are_said_as_people_do() {
        let now: Timestamp = "2026-11-20T14:00:00Z".parse().unwrap();
        assert_eq!(
            with_times(
                "host box is offline since 2026-11-20T13:57:00.123456Z; waits until \
                 2026-11-20T14:05:00Z, and is not begun after that",
                now
            ),
            "host box is offline since 13:57:00 UTC (3 min ago); waits until 14:05:00 UTC (in 5 min), \
             and is not begun after that"
        );
        for plain in ["", "  engine does not answer ", "0.2.0 on Z, 12:00Z"] {
            assert_eq!(with_times(plain, now), plain);
        }
    }

    #[test]
    fn sizes_and_times_are_short() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1536), "1.5 KB");
        assert_eq!(bytes(212 << 20), "212 MB");
        assert_eq!(bytes_of(1 << 20, 64 << 20), "1/64 MB");
        assert_eq!(bytes_of(1 << 20, 0), "1 MB");
        assert_eq!(millis(0.04), "0.0 ms");
        assert_eq!(millis(418.2), "418 ms");
        assert_eq!(millis(1234.0), "1.2 s");
        assert_eq!(millis(125_000.0), "2 min 5 s");
    }
}
