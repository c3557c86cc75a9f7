//! What inspects have told about each container, and when that has to be asked again.
//!
//! The list call is cheap and says most; an inspect for each container at each pass would not be.
//! So a container is inspected again only when its row contradicts what is known, when an event or
//! an act of ours concerned it, and while it is younger than a minute (a crash loop shows only as
//! a row that stays young).

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::answers::{Depth, Row};

/// The engine's words for a time lie within this of the truth: its clock reading and ours are
/// taken at different moments.
const SLACK_S: i64 = 5;

#[derive(Debug)]
struct Known {
    state: String,
    depth: Depth,
    dirty: bool,
}

/// The inspects' answers, by full id.
#[derive(Debug, Default)]
pub(super) struct Cache {
    /// Grows with every invalidation: an inspect that was under way meanwhile may tell old news.
    invalidations: AtomicU64,
    known: Mutex<HashMap<String, Known>>,
}

impl Cache {
    /// What is known of the row's container, unless it must be asked again.
    pub(super) fn fresh(&self, row: &Row, now_us: i64) -> Option<Depth> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = known.get(&row.id)?;
        let fresh = !entry.dirty && entry.state == row.state && agrees(row, &entry.depth, now_us);
        fresh.then(|| entry.depth.clone())
    }

    /// The mark to take before an inspect and to hand to [`Cache::keep`] after it.
    pub(super) fn mark(&self) -> u64 {
        self.invalidations.load(Ordering::SeqCst)
    }

    /// Keeps what an inspect said that was begun at `mark`.
    pub(super) fn keep(&self, row: &Row, depth: Depth, mark: u64) {
        let dirty = self.mark() != mark;
        let entry = Known {
            state: row.state.clone(),
            depth,
            dirty,
        };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(row.id.clone(), entry);
    }

    /// Asks again at the next pass.
    pub(super) fn invalidate(&self, id: &str) {
        self.invalidations.fetch_add(1, Ordering::SeqCst);
        if let Some(entry) = self
            .known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_mut(id)
        {
            entry.dirty = true;
        }
    }

    /// Asks again for all at the next pass: events may have been missed.
    pub(super) fn invalidate_all(&self) {
        self.invalidations.fetch_add(1, Ordering::SeqCst);
        for entry in self
            .known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .values_mut()
        {
            entry.dirty = true;
        }
    }

    /// Forgets containers that are gone.
    pub(super) fn retain(&self, rows: &[Row]) {
        let ids: std::collections::HashSet<&str> = rows.iter().map(|r| r.id.as_str()).collect();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|id, _| ids.contains(id.as_str()));
    }

    /// Whether the event is the exec of the container's own health check.
    pub(super) fn is_probe(&self, id: &str, action: &str) -> bool {
        let Some((word, line)) = action.split_once(':') else {
            return false;
        };
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let probe = known.get(id).map_or("", |entry| entry.depth.probe.as_str());
        word.starts_with("exec_") && !probe.is_empty() && line.trim() == probe.trim()
    }

    /// Id and depth of each container that had a process at the last pass.
    pub(super) fn with_process(&self) -> Vec<(String, Depth)> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known
            .iter()
            .filter(|(_, entry)| entry.depth.pid != 0)
            .map(|(id, entry)| (id.clone(), entry.depth.clone()))
            .collect()
    }
}

/// Whether what the row's status says fits what is known.
fn agrees(row: &Row, depth: &Depth, now_us: i64) -> bool {
    let status = row.status.as_str();
    if let Some(rest) = status.strip_prefix("Up ") {
        let (age, health) = rest
            .split_once(" (")
            .map_or((rest, ""), |(age, note)| (age, note.trim_end_matches(')')));
        let health = match health {
            "healthy" | "unhealthy" => health,
            "health: starting" => "starting",
            _ => "",
        };
        return health == depth.health && age_fits(age, depth.started_us, now_us);
    }
    if let Some(rest) = status.strip_prefix("Exited (") {
        let Some((code, rest)) = rest.split_once(") ") else {
            return false;
        };
        let age = rest.trim_end_matches(" ago");
        return code.parse() == Ok(depth.exit_code) && age_fits(age, depth.finished_us, now_us);
    }
    // "Created", "Dead", "Removal In Progress" say no more than the state; "Restarting (1) 2
    // seconds ago" changes by the second and is asked each time.
    !status.starts_with("Restarting")
}

/// Whether the engine's words for an age fit a time. Ages in seconds never do: see the module.
fn age_fits(words: &str, since_us: i64, now_us: i64) -> bool {
    let Some((at_least, at_most)) = bounds(words) else {
        return false;
    };
    let age = (now_us - since_us) / 1_000_000;
    age + SLACK_S >= at_least && age - SLACK_S <= at_most
}

/// The ages in seconds for which the engine uses these words (`units.HumanDuration`); `None` for
/// the first minute and for words that are not known.
fn bounds(words: &str) -> Option<(i64, i64)> {
    const MINUTE: i64 = 60;
    const HOUR: i64 = 60 * MINUTE;
    const DAY: i64 = 24 * HOUR;
    match words {
        "About a minute" => return Some((MINUTE, 2 * MINUTE)),
        "About an hour" => return Some((45 * MINUTE, 2 * HOUR)),
        _ => {}
    }
    let (number, unit) = words.split_once(' ')?;
    let number: i64 = number.parse().ok()?;
    let unit = match unit {
        "minutes" => return Some((number * MINUTE, (number + 1) * MINUTE)),
        "hours" => HOUR,
        "days" => DAY,
        "weeks" => 7 * DAY,
        "months" => 30 * DAY,
        "years" => 365 * DAY,
        _ => return None,
    };
    // Days and all that is longer are counted in hours, and those are rounded to the nearest.
    Some((number * unit - HOUR / 2, (number + 1) * unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_US: i64 = 3_600_000_000;

    fn row(state: &str, status: &str) -> Row {
        Row {
            id: "1".into(),
            state: state.into(),
            status: status.into(),
            ..Row::default()
        }
    }

    fn known(health: &str, started_us: i64) -> Depth {
        Depth {
            health: health.into(),
            started_us,
            ..Depth::default()
        }
    }

    #[test]
    fn a_quiet_container_is_not_asked_again() {
        let now = 100 * HOUR_US;
        let cases = [
            ("Up 10 hours", "", now - 10 * HOUR_US, true),
            ("Up 10 hours (healthy)", "healthy", now - 10 * HOUR_US, true),
            (
                "Up 10 hours (unhealthy)",
                "healthy",
                now - 10 * HOUR_US,
                false,
            ),
            ("Up 2 minutes", "", now - 10 * HOUR_US, false),
            ("Up 5 seconds", "", now - 5_000_000, false),
            ("Up Less than a second", "", now, false),
            ("Up About an hour", "", now - HOUR_US, true),
            ("Up 5 minutes (Paused)", "", now - 330_000_000, true),
            (
                "Up 2 days (health: starting)",
                "starting",
                now - 50 * HOUR_US,
                true,
            ),
        ];
        for (status, health, started, fresh) in cases {
            let cache = Cache::default();
            cache.keep(&row("running", ""), known(health, started), cache.mark());
            assert_eq!(
                cache.fresh(&row("running", status), now).is_some(),
                fresh,
                "{status}"
            );
        }
    }

    #[test]
    fn every_age_fits_its_own_words() {
        // What the engine prints, after docker/go-units.
        let words = |seconds: i64| match (seconds, seconds / 60, (seconds + 1800) / 3600) {
            (_, 1, _) => "About a minute".to_owned(),
            (_, minutes, _) if minutes < 60 => format!("{minutes} minutes"),
            (_, _, 1) => "About an hour".to_owned(),
            (_, _, hours) if hours < 48 => format!("{hours} hours"),
            (_, _, hours) if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
            (_, _, hours) if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
            (_, _, hours) if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
            (_, _, hours) => format!("{} years", hours / 24 / 365),
        };
        for seconds in (60..90 * 24 * 3600)
            .step_by(97)
            .chain((60..7400).step_by(1))
        {
            assert!(
                age_fits(&words(seconds), 0, seconds * 1_000_000),
                "{}",
                words(seconds)
            );
        }
    }

    #[test]
    fn an_event_makes_it_asked_again() {
        let cache = Cache::default();
        let created = || row("created", "Created");
        cache.keep(&created(), Depth::default(), cache.mark());
        assert!(cache.fresh(&created(), 0).is_some());
        cache.invalidate("1");
        assert!(cache.fresh(&created(), 0).is_none());
        let mark = cache.mark();
        cache.invalidate("1");
        cache.keep(&created(), Depth::default(), mark);
        assert!(
            cache.fresh(&created(), 0).is_none(),
            "the inspect was begun before the event"
        );
        cache.retain(&[]);
        let depth = Depth {
            exit_code: 3,
            ..Depth::default()
        };
        cache.keep(&row("exited", ""), depth, cache.mark());
        let later = 3 * HOUR_US;
        assert!(
            cache
                .fresh(&row("exited", "Exited (3) 3 hours ago"), later)
                .is_some()
        );
        assert!(
            cache
                .fresh(&row("exited", "Exited (4) 3 hours ago"), later)
                .is_none()
        );
    }

    #[test]
    fn the_exec_of_a_health_check_is_told_from_a_hand() {
        let cache = Cache::default();
        let told = |answer: &str| {
            let inspected: super::super::answers::Inspected = serde_json::from_str(answer).unwrap();
            cache.keep(&row("running", ""), inspected.depth(), cache.mark());
        };
        assert!(!cache.is_probe("1", "exec_start: true"), "not known yet");
        told(r#"{"Config":{"Healthcheck":{"Test":["CMD-SHELL","wget -q x"]},"Shell":null}}"#);
        assert!(cache.is_probe("1", "exec_start: /bin/sh -c wget -q x"));
        assert!(cache.is_probe("1", "exec_create: /bin/sh -c wget -q x"));
        assert!(!cache.is_probe("1", "exec_start: /bin/sh -c wget -q y"));
        assert!(!cache.is_probe("1", "start"));
        told(r#"{"Config":{"Healthcheck":{"Test":["CMD","/probe","-v"]}}}"#);
        assert!(cache.is_probe("1", "exec_start: /probe -v"));
        told(r#"{"Config":{"Healthcheck":{"Test":["NONE"]}}}"#);
        assert!(!cache.is_probe("1", "exec_start: "));
        told(r#"{"Config":{"Healthcheck":null}}"#);
        assert!(!cache.is_probe("1", "exec_start: "));
    }
}
