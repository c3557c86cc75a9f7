//! What can be said of each command by itself.

use std::collections::{BTreeMap, HashMap};

use super::history::{Act, Asked, Effect, History, Record, What};
use super::{Promise, Violation};

/// What the engine may note a moment earlier or later than it happened.
const MOMENT_US: i64 = 5_000;

pub(super) fn judge(history: &History) -> Vec<Violation> {
    let mut found = Vec::new();
    let index = Index::of(history);
    for asked in &history.asked {
        let records = index
            .records
            .get(&asked.id[..])
            .cloned()
            .unwrap_or_default();
        lost(history, asked, &records, &mut found);
        recorded_once(history, asked, &records, &mut found);
        late(history, asked, &records, &index, &mut found);
        if asked.act == Act::Exec {
            exec(history, asked, &index, &mut found);
        } else if index
            .end(&asked.id)
            .is_some_and(|end| end.state == "unknown")
        {
            let mut violation = broken(history, asked, Promise::P2, "unknown_without_cause");
            "only a process may be forgotten by the engine; this act leaves traces"
                .clone_into(&mut violation.what);
            found.push(violation);
        }
    }
    nobody_asked(history, &mut found);
    order(history, &mut found);
    found
}

struct Index<'a> {
    records: HashMap<&'a str, Vec<&'a Record>>,
    of_exec: HashMap<&'a str, Vec<&'a Effect>>,
    of_container: HashMap<&'a str, Vec<&'a Effect>>,
}

impl<'a> Index<'a> {
    fn of(history: &'a History) -> Self {
        let mut index = Self {
            records: HashMap::new(),
            of_exec: HashMap::new(),
            of_container: HashMap::new(),
        };
        for record in &history.records {
            index.records.entry(&record.id).or_default().push(record);
        }
        for effect in &history.effects {
            if let What::ExecStart(id) | What::ExecDie(id, _) = &effect.what {
                index.of_exec.entry(id).or_default().push(effect);
            }
            let container = index.of_container.entry(&effect.container).or_default();
            container.push(effect);
        }
        index
    }

    fn end(&self, id: &str) -> Option<&'a Record> {
        let records = self.records.get(id)?;
        let of_controller = |record: &&&Record| record.by == "controller" && record.is_final();
        records.iter().rfind(of_controller).copied()
    }
}

fn broken(history: &History, asked: &Asked, promise: Promise, rule: &'static str) -> Violation {
    Violation {
        promise,
        rule,
        command: asked.id.clone(),
        what: String::new(),
        evidence: vec![history.line_of(asked)],
    }
}

/// P1: what was acknowledged is on record to the end, and its last record is final on each side that
/// knows it.
fn lost(history: &History, asked: &Asked, records: &[&Record], found: &mut Vec<Violation>) {
    let Some(acked_us) = asked.acked_us else {
        return;
    };
    let mut last: BTreeMap<&str, &Record> = BTreeMap::new();
    for record in records.iter().filter(|record| record.read_us >= acked_us) {
        last.insert(&record.by, record);
    }
    let controller = last.get("controller");
    if !controller.is_some_and(|record| record.is_final()) {
        let mut violation = broken(history, asked, Promise::P1, "lost");
        "it was acknowledged and has no final state at the controller"
            .clone_into(&mut violation.what);
        violation.evidence.extend(records.iter().map(|r| r.line()));
        found.push(violation);
    }
    for (by, record) in last.iter().filter(|(by, _)| **by != "controller") {
        if controller.is_some_and(|c| c.is_final())
            && !record.is_final()
            && record.state != "absent"
        {
            let mut violation = broken(history, asked, Promise::P1, "not_told");
            violation.what = format!("the controller has its end, and {by} has not");
            violation.evidence.push(record.line());
            found.push(violation);
        }
    }
}

/// P2: one result. Whoever has a final state has the same, always.
fn recorded_once(
    history: &History,
    asked: &Asked,
    records: &[&Record],
    found: &mut Vec<Violation>,
) {
    let ends: Vec<&&Record> = records.iter().filter(|record| record.is_final()).collect();
    let Some(first) = ends.first() else { return };
    for other in &ends {
        let same_side = first.by == other.by;
        let differs = (&first.state, &first.code) != (&other.state, &other.code)
            || first.exit_code.unwrap_or(0) != other.exit_code.unwrap_or(0)
            || (same_side && first.finished_us != other.finished_us);
        if differs {
            let mut violation = broken(history, asked, Promise::P2, "two_results");
            "it has more than one result".clone_into(&mut violation.what);
            violation.evidence.extend([first.line(), other.line()]);
            return found.push(violation);
        }
    }
    // A final state was on record, and later a lesser one.
    for side in ["controller", "region", "host"] {
        let mut of_side = records.iter().filter(|record| record.by == side);
        if let Some(end) = of_side.by_ref().find(|record| record.is_final())
            && let Some(later) = of_side.find(|record| !record.is_final())
        {
            let mut violation = broken(history, asked, Promise::P2, "result_forgotten");
            violation.what = format!("{side} had its end on record and has it no more");
            violation.evidence.extend([end.line(), later.line()]);
            found.push(violation);
        }
    }
}

/// P2: never begun after its deadline. By the agent's own stamp, and by the engine's time for what
/// begins at once.
fn late(
    history: &History,
    asked: &Asked,
    records: &[&Record],
    index: &Index<'_>,
    found: &mut Vec<Violation>,
) {
    let Some(not_after_us) = asked.not_after_us else {
        return;
    };
    let latest = not_after_us + history.stamps_apart_us;
    let stamps = records.iter().flat_map(|record| &record.stamps);
    let called = stamps
        .filter(|(stage, at_us)| stage == "engine_called" && *at_us > latest)
        .map(|(stage, at_us)| format!("{at_us} stamp: {stage}"));
    let execs = index.of_exec.get(&asked.id[..]).into_iter().flatten();
    let begun = execs
        .filter(|effect| matches!(effect.what, What::ExecStart(_)) && effect.at_us > latest)
        .map(|effect| effect.line());
    let evidence: Vec<String> = called.chain(begun).collect();
    if !evidence.is_empty() {
        let mut violation = broken(history, asked, Promise::P2, "begun_too_late");
        violation.what = format!("it was begun after its deadline, {not_after_us}");
        violation.evidence.extend(evidence);
        found.push(violation);
    }
}

/// P2 for a process in a container: started at most once, once where its end is known, never where
/// nothing is said to have been done; and its exit code is the engine's.
fn exec(history: &History, asked: &Asked, index: &Index<'_>, found: &mut Vec<Violation>) {
    let effects = index
        .of_exec
        .get(&asked.id[..])
        .cloned()
        .unwrap_or_default();
    let starts: Vec<&&Effect> = effects
        .iter()
        .filter(|effect| matches!(effect.what, What::ExecStart(_)))
        .collect();
    let marks = history.marks.get(&asked.id).copied().unwrap_or(0);
    let mut say = |rule, what: String| {
        let mut violation = broken(history, asked, Promise::P2, rule);
        violation.what = what;
        violation.evidence.extend(effects.iter().map(|e| e.line()));
        violation
            .evidence
            .push(format!("marks left in the container: {marks}"));
        found.push(violation);
    };
    if starts.len() > 1 || marks > 1 {
        let times = starts.len();
        say(
            "doubled",
            format!("its process was started {times} times and left {marks} marks"),
        );
        return;
    }
    let Some(end) = index.end(&asked.id) else {
        return;
    };
    let ran = end.state == "succeeded" || end.code == "exit_code";
    // Its start may be among the last words of an engine that went; the mark tells all the same.
    let unheard =
        marks == 1 && history.engine_was_away(asked.asked_us, end.finished_us.unwrap_or(i64::MAX));
    if ran && starts.is_empty() && !unheard {
        say(
            "untrue",
            "its end is known, and the engine never started it".to_owned(),
        );
    }
    if end.state == "succeeded" && marks == 0 {
        say("untrue", "it succeeded, and left no mark".to_owned());
    }
    if !ran && did_nothing(end) && (marks > 0 || !starts.is_empty()) {
        say(
            "untrue",
            format!("{} {}, and yet it ran", end.state, end.code),
        );
    }
    let code = effects.iter().find_map(|effect| match effect.what {
        What::ExecDie(_, code) => Some(code),
        _ => None,
    });
    if ran
        && let (Some(code), Some(told)) = (code, end.exit_code)
        && code != told
    {
        say("untrue", format!("it ended with {code}, not with {told}"));
    }
    if end.state == "unknown" {
        let began = starts.first().map_or(asked.asked_us, |effect| effect.at_us) - MOMENT_US;
        let until = end.finished_us.unwrap_or(i64::MAX);
        let of_container = index.of_container.get(&asked.container[..]);
        let ended = of_container.into_iter().flatten().any(|effect| {
            matches!(effect.what, What::Die | What::Destroy)
                && effect.at_us >= began
                && effect.at_us <= until
        });
        if !ended && !history.engine_was_away(began, until) {
            let why = "neither the engine nor the container was restarted while it ran";
            say("unknown_without_cause", why.to_owned());
        }
    }
}

/// Whether that end says that nothing was done at all.
pub(super) fn did_nothing(end: &Record) -> bool {
    matches!(
        &end.state[..],
        "expired" | "cancelled" | "conflict" | "superseded"
    ) || matches!(
        &end.code[..],
        "not_running"
            | "container_not_found"
            | "name_in_use"
            | "image_not_found"
            | "journal_unavailable"
            | "host_busy"
            | "unsupported"
            | "forbidden_by_host"
            | "signature_rejected"
            | "stream_not_attached"
    )
}

/// P2: what carries a command's id was asked for, and made once.
fn nobody_asked(history: &History, found: &mut Vec<Violation>) {
    let asked: HashMap<&str, &Asked> = history.asked.iter().map(|a| (&a.id[..], a)).collect();
    let mut made: HashMap<&str, &Effect> = HashMap::new();
    for effect in &history.effects {
        let (What::ExecStart(id) | What::Create(id)) = &effect.what else {
            continue;
        };
        let Some(asked) = asked.get(&id[..]) else {
            found.push(Violation {
                promise: Promise::P2,
                rule: "unasked",
                command: id.clone(),
                what: "nobody asked for it".to_owned(),
                evidence: vec![effect.line()],
            });
            continue;
        };
        if let What::Create(id) = &effect.what
            && let Some(first) = made.insert(id, effect)
        {
            let mut violation = broken(history, asked, Promise::P2, "doubled");
            "its container was made twice".clone_into(&mut violation.what);
            violation.evidence.extend([first.line(), effect.line()]);
            found.push(violation);
        }
    }
}

/// P3: the order in which commands were taken in is the one in which they were asked (where one was
/// acknowledged before the other was asked), and the region's is the controller's.
fn order(history: &History, found: &mut Vec<Violation>) {
    for (by, ids) in &history.orders {
        let place: HashMap<&str, usize> =
            ids.iter().enumerate().map(|(n, id)| (&id[..], n)).collect();
        let mut placed: Vec<(&Asked, usize)> = history
            .asked
            .iter()
            .filter_map(|asked| Some((asked, *place.get(&asked.id[..])?)))
            .collect();
        placed.sort_by_key(|(_, place)| *place);
        // Walking backwards: the earliest acknowledgement among those with a later place.
        let mut earliest: Option<(&Asked, i64)> = None;
        for (asked, _) in placed.iter().rev() {
            if let Some((before, acked_us)) = earliest
                && acked_us < asked.asked_us
            {
                let mut violation = broken(history, asked, Promise::P3, "order_of_acceptance");
                violation.what =
                    format!("{by} took it in before one that was acknowledged earlier");
                violation.evidence.push(history.line_of(before));
                found.push(violation);
            }
            if let Some(acked_us) = asked.acked_us
                && earliest.is_none_or(|(_, earliest)| acked_us < earliest)
            {
                earliest = Some((asked, acked_us));
            }
        }
    }
    let (Some(controller), Some(region)) = (
        history.orders.get("controller"),
        history.orders.get("region"),
    ) else {
        return;
    };
    let place: HashMap<&str, usize> = region
        .iter()
        .enumerate()
        .map(|(n, id)| (&id[..], n))
        .collect();
    let both: Vec<(&String, usize)> = controller
        .iter()
        .filter_map(|id| Some((id, *place.get(&id[..])?)))
        .collect();
    for pair in both.windows(2) {
        if pair[0].1 > pair[1].1
            && let Some(asked) = history.asked.iter().find(|asked| asked.id == *pair[1].0)
        {
            let mut violation = broken(history, asked, Promise::P3, "order_of_acceptance");
            violation.what = format!(
                "the region took it in before {}, which the controller had first",
                pair[0].0
            );
            found.push(violation);
        }
    }
}
