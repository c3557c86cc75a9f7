//! Quantities as Docker's command line writes them: durations, sizes, processors, moments.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// A duration: `90s`, `1h30m`, `1.5h`, `500ms`, or a plain number of seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration; write 90s, 10m or 1h30m");
    let seconds = |value: f64| Duration::try_from_secs_f64(value).map_err(|_| wrong());
    if let Ok(value) = text.parse::<u32>() {
        return Ok(Duration::from_secs(value.into()));
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(wrong)?;
        let (number, after) = rest.split_at(digits);
        let letters = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (unit, next) = after.split_at(letters);
        let factor = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            "d" => 86_400.0,
            _ => return Err(wrong()),
        };
        let number: f64 = number.parse().map_err(|_| wrong())?;
        total = total
            .checked_add(seconds(number * factor)?)
            .ok_or_else(wrong)?;
        rest = next;
    }
    Ok(total)
}

/// A size in bytes: `64m`, `1.5g`, `512k`, `1073741824`, `10MiB`. Units are powers of 1024.
pub(crate) fn size(text: &str) -> Result<i64, String> {
    let wrong = || format!("{text:?} is not a size; write 64m, 1.5g or a number of bytes");
    let split = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let power = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 1,
        "m" | "mb" | "mib" => 2,
        "g" | "gb" | "gib" => 3,
        "t" | "tb" | "tib" => 4,
        "p" | "pb" | "pib" => 5,
        _ => return Err(wrong()),
    };
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let bytes = number * 1024f64.powi(power);
    if bytes < 9.0e18 {
        Ok(bytes as i64)
    } else {
        Err(wrong())
    }
}

/// Processors, `1.5`, in billionths.
pub(crate) fn nano_cpus(text: &str) -> Result<i64, String> {
    let wrong = || format!("{text:?} is not a number of processors; write 0.5 or 2");
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if whole.len() + fraction.len() == 0 || !digits(whole) || !digits(fraction) {
        return Err(wrong());
    }
    if fraction.len() > 9 {
        return Err(format!(
            "{text:?} is more precise than a billionth of a processor"
        ));
    }
    let whole: i64 = if whole.is_empty() {
        0
    } else {
        whole.parse().map_err(|_| wrong())?
    };
    let fraction: i64 = format!("{fraction:0<9}").parse().map_err(|_| wrong())?;
    whole
        .checked_mul(1_000_000_000)
        .and_then(|nano| nano.checked_add(fraction))
        .ok_or_else(wrong)
}

/// A moment: RFC 3339, seconds since 1970, or a duration before `now` (`10m`).
pub(crate) fn moment(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    let wrong =
        || format!("{text:?} is not a time; write 10m, 2026-11-20T14:00:00Z or Unix seconds");
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(at);
    }
    // Docker takes a date, or a time without zone; both are UTC here. So is what this program itself shows.
    let bare = text
        .strip_suffix(" UTC")
        .unwrap_or(text)
        .replacen(' ', "T", 1);
    let with_zone = if bare.contains('T') {
        format!("{bare}Z")
    } else {
        format!("{bare}T00:00:00Z")
    };
    if text.len() >= 10
        && let Ok(at) = with_zone.parse::<Timestamp>()
    {
        return Ok(at);
    }
    if let Ok(seconds) = text.parse::<f64>() {
        return Timestamp::from_microsecond((seconds * 1e6) as i64).map_err(|_| wrong());
    }
    let back =
        SignedDuration::try_from(duration(text).map_err(|_| wrong())?).map_err(|_| wrong())?;
    now.checked_sub(back).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, ms) in [
            ("90s", 90_000),
            ("1h30m", 5_400_000),
            ("1.5h", 5_400_000),
            ("500ms", 500),
            ("10", 10_000),
            ("0s", 0),
            ("2d", 172_800_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "s", "-1s", "1x", "1m30", "1..5s", "ten"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("64m", 64 << 20),
            ("1.5g", 3 << 29),
            ("512K", 512 << 10),
            ("10MiB", 10 << 20),
            ("7b", 7),
            ("2 GB", 2 << 30),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "m", "-1", "64x", "9999999p", "1.2.3m"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn processors() {
        assert_eq!(nano_cpus("1.5"), Ok(1_500_000_000));
        assert_eq!(nano_cpus(".25"), Ok(250_000_000));
        assert_eq!(nano_cpus("2"), Ok(2_000_000_000));
        for text in ["", ".", "-1", "1.0000000001", "one", "99999999999999999999"] {
            assert!(nano_cpus(text).is_err(), "{text}");
        }
    }

    #[test]
    fn moments() {
        let now: Timestamp = "2026-11-20T14:00:00Z".parse().unwrap();
        for (text, expected) in [
            ("10m", "2026-11-20T13:50:00Z"),
            ("2026-11-20T13:00:00Z", "2026-11-20T13:00:00Z"),
            ("2026-11-20T15:00:00+02:00", "2026-11-20T13:00:00Z"),
            ("2026-11-20T13:00:00", "2026-11-20T13:00:00Z"),
            ("2026-11-20 13:00:00", "2026-11-20T13:00:00Z"),
            ("2026-11-20 13:00:00 UTC", "2026-11-20T13:00:00Z"),
            ("2026-11-20", "2026-11-20T00:00:00Z"),
            ("1763640000.5", "2025-11-20T12:00:00.5Z"),
        ] {
            assert_eq!(moment(text, now), Ok(expected.parse().unwrap()), "{text}");
        }
        assert!(moment("yesterday", now).is_err());
    }
}
