//! What can only be said of all changing commands of one container together.
//!
//! The engine does not say for whom it started or stopped a container. So the commands of a lane, in
//! the order in which the region took them, must explain what the engine showed of it, line by line and
//! with nothing left over: a search over (how many lines are explained, how the container is there).
//! The few choices in it are a kill within the grace of a stop (whose end of the process was it?) and
//! an end that does not say whether anything was done.

use std::collections::{BTreeMap, HashMap};

use super::history::{Act, Asked, Effect, History, Presence, Record, What};
use super::rules::did_nothing;
use super::{Promise, Violation};

/// What the engine may note a moment earlier or later than it happened.
const MOMENT_US: i64 = 5_000;
/// An engine may answer a moment before it notes the end of a process; on a busy machine, a long one.
const NOTED_WITHIN_US: i64 = 2_000_000;
/// Lines of evidence around the place where the two stories part.
const AROUND: usize = 6;

pub(super) fn judge(history: &History) -> Vec<Violation> {
    let mut found = Vec::new();
    for lane in lanes(history) {
        match explain(&lane, &lane.changing) {
            Ok(explained) => overtaken(history, &lane, &explained, &mut found),
            Err(parted) => found.push(blame(history, &lane, &parted)),
        }
        signals(history, &lane, &mut found);
        side_by_side(history, &lane, &mut found);
    }
    found
}

/// What a command's end says of its effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Did {
    Yes,
    No,
    Maybe,
}

struct Placed<'a> {
    asked: &'a Asked,
    end: Option<&'a Record>,
    did: Did,
    place: usize,
}

struct Lane<'a> {
    container: &'a str,
    changing: Vec<Placed<'a>>,
    looking: Vec<Placed<'a>>,
    /// Of the container, those that explain themselves by a changing command.
    effects: Vec<&'a Effect>,
    all: Vec<&'a Effect>,
    before: Presence,
    after: Option<Presence>,
}

fn lanes(history: &History) -> Vec<Lane<'_>> {
    let order = ["region", "controller"]
        .iter()
        .find_map(|side| history.orders.get(*side));
    let place: HashMap<&str, usize> = order
        .into_iter()
        .flatten()
        .enumerate()
        .map(|(n, id)| (&id[..], n))
        .collect();
    let mut ends: HashMap<&str, &Record> = HashMap::new();
    for record in &history.records {
        if record.by == "controller" && record.is_final() {
            ends.insert(&record.id, record);
        }
    }
    let mut lanes: BTreeMap<&str, Lane<'_>> = BTreeMap::new();
    for name in history.before.keys().chain(history.after.keys()) {
        lanes.entry(name).or_insert_with(|| empty(history, name));
    }
    for asked in &history.asked {
        // Without a place nobody has it: it was never acknowledged, or `lost` says so.
        let Some(place) = place.get(&asked.id[..]) else {
            continue;
        };
        let lane = lanes
            .entry(&asked.container)
            .or_insert_with(|| empty(history, &asked.container));
        let end = ends.get(&asked.id[..]).copied();
        let placed = Placed {
            asked,
            end,
            did: did(end),
            place: *place,
        };
        if asked.act.changes() {
            lane.changing.push(placed);
        } else {
            lane.looking.push(placed);
        }
    }
    for effect in &history.effects {
        let lane = lanes
            .entry(&effect.container)
            .or_insert_with(|| empty(history, &effect.container));
        lane.all.push(effect);
        if matches!(
            effect.what,
            What::Create(_) | What::Start | What::Die | What::Destroy
        ) {
            lane.effects.push(effect);
        }
    }
    let mut lanes: Vec<Lane<'_>> = lanes.into_values().collect();
    for lane in &mut lanes {
        lane.changing.sort_by_key(|placed| placed.place);
        lane.looking.sort_by_key(|placed| placed.place);
    }
    lanes
}

fn empty<'a>(history: &History, container: &'a str) -> Lane<'a> {
    Lane {
        container,
        changing: Vec::new(),
        looking: Vec::new(),
        effects: Vec::new(),
        all: Vec::new(),
        before: history
            .before
            .get(container)
            .copied()
            .unwrap_or(Presence::Absent),
        after: history.after.get(container).copied(),
    }
}

fn did(end: Option<&Record>) -> Did {
    match end {
        Some(end) if end.state == "succeeded" => Did::Yes,
        Some(end) if did_nothing(end) => Did::No,
        _ => Did::Maybe,
    }
}

/// What an act does to a container that is there in that way.
fn done(placed: &Placed<'_>, now: Presence, in_grace: bool) -> Vec<(Vec<What>, Presence)> {
    use Presence::{Absent, Running, Stopped};
    let id = placed.asked.id.clone();
    let mut ways = match (&placed.asked.act, now) {
        (Act::Run, Absent) => vec![(vec![What::Create(id), What::Start], Running)],
        (Act::Start | Act::Restart, Stopped) => vec![(vec![What::Start], Running)],
        (Act::Start, Running) => vec![(vec![], Running)],
        (Act::Restart, Running) => vec![(vec![What::Die, What::Start], Running)],
        (Act::Stop, Running) => vec![(vec![What::Die], Stopped)],
        (Act::Stop, Stopped) => vec![(vec![], Stopped)],
        (Act::Kill { ends: true, .. }, Running) => vec![(vec![What::Die], Stopped)],
        (Act::Kill { ends: false, .. }, Running) => vec![(vec![], Running)],
        (Act::Remove, Running) => vec![(vec![What::Die, What::Destroy], Absent)],
        (Act::Remove, Stopped) => vec![(vec![What::Destroy], Absent)],
        _ => vec![],
    };
    // It came within the grace of the stop before it, whose end of the process it was.
    if in_grace && matches!(placed.asked.act, Act::Kill { .. }) && now != Absent {
        ways.push((vec![], now));
    }
    ways
}

fn ways(placed: &Placed<'_>, now: Presence, in_grace: bool) -> Vec<(Vec<What>, Presence)> {
    let mut ways = match placed.did {
        Did::No => vec![],
        Did::Yes | Did::Maybe => done(placed, now, in_grace),
    };
    let code = placed.end.map_or("", |end| &end.code[..]);
    let contradicts = match code {
        "name_in_use" => now == Presence::Absent,
        "container_not_found" => now != Presence::Absent,
        "not_running" => now == Presence::Running && !in_grace,
        _ => false,
    };
    if placed.did != Did::Yes && !contradicts {
        ways.push((vec![], now));
    }
    if placed.did == Did::Maybe && placed.asked.act == Act::Run && now == Presence::Absent {
        let made = What::Create(placed.asked.id.clone());
        ways.push((vec![made], Presence::Stopped));
    }
    ways
}

type State = (usize, Presence);

/// Where the two stories part.
struct Parted {
    /// The command that does not fit; past the end: all fit, and something is left over.
    command: usize,
    /// How many lines are explained there.
    explained: usize,
    now: Presence,
}

/// Which lines each changing command explains.
fn explain(lane: &Lane<'_>, commands: &[Placed<'_>]) -> Result<Vec<(usize, usize)>, Parted> {
    let mut steps: Vec<BTreeMap<State, State>> = Vec::new();
    let mut states: Vec<State> = vec![(0, lane.before)];
    // The stop or restart within whose grace a kill may come.
    let mut grace: Option<&Placed<'_>> = None;
    for (number, placed) in commands.iter().enumerate() {
        let in_grace = grace.is_some_and(|stop| stop.is_at_work(placed.asked.asked_us));
        let mut step: BTreeMap<State, State> = BTreeMap::new();
        for &(explained, now) in &states {
            for (whats, then) in ways(placed, now, in_grace) {
                let lines = lane.effects.get(explained..explained + whats.len());
                let fits = lines.is_some_and(|lines| {
                    let pairs = lines.iter().zip(&whats);
                    pairs
                        .into_iter()
                        .all(|(line, what)| fits(placed, line, what))
                });
                if fits {
                    step.entry((explained + whats.len(), then))
                        .or_insert((explained, now));
                }
            }
        }
        if step.is_empty() {
            return Err(parted(number, &states));
        }
        states = step.keys().copied().collect();
        steps.push(step);
        grace = match placed.asked.act {
            _ if placed.never_began() => grace,
            Act::Stop | Act::Restart => (placed.did != Did::No).then_some(placed),
            Act::Kill { .. } => grace,
            _ => None,
        };
    }
    let whole = |state: &&State| {
        state.0 == lane.effects.len() && lane.after.is_none_or(|after| after == state.1)
    };
    let Some(mut at) = states.iter().find(whole).copied() else {
        return Err(parted(commands.len(), &states));
    };
    let mut explained = vec![(0, 0); commands.len()];
    for (number, step) in steps.iter().enumerate().rev() {
        let from = step[&at];
        explained[number] = (from.0, at.0);
        at = from;
    }
    Ok(explained)
}

fn parted(command: usize, states: &[State]) -> Parted {
    let (explained, now) = states
        .iter()
        .copied()
        .max()
        .unwrap_or((0, Presence::Absent));
    Parted {
        command,
        explained,
        now,
    }
}

/// Whether that line may be what the command did: the right thing, neither before it was asked nor
/// after its end was recorded.
fn fits(placed: &Placed<'_>, line: &Effect, what: &What) -> bool {
    let finished_us = placed.end.and_then(|end| end.finished_us);
    line.what == *what
        && line.at_us >= placed.asked.asked_us - MOMENT_US
        && finished_us.is_none_or(|finished_us| line.at_us <= finished_us + NOTED_WITHIN_US)
}

/// Says what is wrong. Where the lines are those of two neighbours in the other order, that is it.
fn blame(history: &History, lane: &Lane<'_>, parted: &Parted) -> Violation {
    let mut evidence = vec![format!(
        "{} lines of the engine about {} are explained; it is {:?} then, and {:?} in the end",
        parted.explained, lane.container, parted.now, lane.after
    )];
    let from = parted.command.saturating_sub(AROUND);
    for (number, placed) in lane.changing.iter().enumerate().skip(from).take(2 * AROUND) {
        let here = if number == parted.command {
            "→ "
        } else {
            "  "
        };
        evidence.push(format!("{here}{}", history.line_of(placed.asked)));
    }
    let next = lane.effects.get(parted.explained);
    let at = next.map_or(lane.all.len(), |next| {
        let same = |line: &&Effect| std::ptr::eq(*line, *next);
        lane.all.iter().position(same).unwrap_or(0)
    });
    for line in lane
        .all
        .iter()
        .skip(at.saturating_sub(AROUND))
        .take(2 * AROUND)
    {
        let here = if next.is_some_and(|next| std::ptr::eq(*next, *line)) {
            "→ "
        } else {
            "  "
        };
        evidence.push(format!("{here}{}", line.line()));
    }
    let out_of_order = (1..lane.changing.len()).find(|&second| {
        let mut other: Vec<Placed<'_>> = lane.changing.iter().map(Placed::again).collect();
        other.swap(second - 1, second);
        explain(lane, &other).is_ok()
    });
    let violation = |promise, rule, command: usize, what: String| Violation {
        promise,
        rule,
        command: lane
            .changing
            .get(command)
            .map_or_else(String::new, |placed| placed.asked.id.clone()),
        what,
        evidence: evidence.clone(),
    };
    if let Some(second) = out_of_order {
        let what = format!(
            "on {} the engine shows it before {}, which was taken in earlier",
            lane.container,
            lane.changing[second - 1].asked.id
        );
        return violation(Promise::P3, "out_of_order", second, what);
    }
    if parted.command == lane.changing.len() {
        let what = match next {
            Some(_) => format!(
                "{}: the engine shows more than was asked for",
                lane.container
            ),
            None => format!("{} is not as its last command left it", lane.container),
        };
        return violation(Promise::P2, "more_than_asked", parted.command, what);
    }
    let what = format!(
        "{}: the engine does not show what its end says",
        lane.container
    );
    violation(Promise::P2, "untrue", parted.command, what)
}

impl<'a> Placed<'a> {
    fn again(&self) -> Self {
        Placed {
            asked: self.asked,
            end: self.end,
            did: self.did,
            place: self.place,
        }
    }

    /// Whether it had no end yet at that time.
    fn is_at_work(&self, at_us: i64) -> bool {
        let finished_us = self.end.and_then(|end| end.finished_us);
        finished_us.is_none_or(|finished_us| at_us <= finished_us)
    }

    fn stamp(&self, stages: &[&str]) -> impl Iterator<Item = i64> {
        self.end
            .into_iter()
            .flat_map(|end| &end.stamps)
            .filter(move |(stage, _)| stages.contains(&&stage[..]))
            .map(|(_, at_us)| *at_us)
    }

    /// It was withdrawn, or its time was over, while it waited: it never had the lane.
    fn never_began(&self) -> bool {
        self.did == Did::No && self.began_us().is_none()
    }

    fn began_us(&self) -> Option<i64> {
        self.stamp(&["engine_called", "settled"]).min()
    }

    fn left_us(&self) -> Option<i64> {
        self.stamp(&["engine_answered", "settled"]).max()
    }
}

/// P3: what only looks waits for what changes and was taken in before it. By the engine's own times.
fn overtaken(
    history: &History,
    lane: &Lane<'_>,
    explained: &[(usize, usize)],
    found: &mut Vec<Violation>,
) {
    for looking in &lane.looking {
        let id = &looking.asked.id;
        let start = lane
            .all
            .iter()
            .find(|line| line.what == What::ExecStart(id.clone()));
        let Some(start) = start else { continue };
        for (placed, (from, to)) in lane.changing.iter().zip(explained) {
            let later = lane.effects[*from..*to]
                .iter()
                .find(|line| line.at_us > start.at_us + MOMENT_US);
            if placed.place < looking.place
                && let Some(later) = later
            {
                found.push(Violation {
                    promise: Promise::P3,
                    rule: "overtaken",
                    command: id.clone(),
                    what: format!("it began before {} was done", placed.asked.id),
                    evidence: vec![
                        history.line_of(placed.asked),
                        history.line_of(looking.asked),
                        start.line(),
                        later.line(),
                    ],
                });
                break;
            }
        }
    }
}

/// P2 for signals: the engine sent each as often as commands say. (TERM and KILL it sends by itself,
/// for stops.)
fn signals(history: &History, lane: &Lane<'_>, found: &mut Vec<Violation>) {
    let mut asked: BTreeMap<u32, (usize, usize)> = BTreeMap::new();
    for placed in &lane.changing {
        if let Act::Kill { signal, .. } = placed.asked.act {
            let (yes, maybe) = asked.entry(signal).or_default();
            *yes += usize::from(placed.did == Did::Yes);
            *maybe += usize::from(placed.did == Did::Maybe);
        }
    }
    let sent = |signal: u32| {
        let lines = lane.all.iter();
        lines.filter(move |line| line.what == What::Kill(signal))
    };
    for (signal, (yes, maybe)) in asked {
        let count = sent(signal).count();
        if matches!(signal, 9 | 15) || (yes..=yes + maybe).contains(&count) {
            continue;
        }
        let kills = lane.changing.iter();
        let kills =
            kills.filter(|p| matches!(p.asked.act, Act::Kill { signal: s, .. } if s == signal));
        let mut evidence: Vec<String> = kills.map(|p| history.line_of(p.asked)).collect();
        evidence.extend(sent(signal).map(|line| line.line()));
        found.push(Violation {
            promise: Promise::P2,
            rule: if count > yes { "doubled" } else { "untrue" },
            command: String::new(),
            what: format!(
                "{}: signal {signal} was sent {count} times, {yes} commands say that they did, {maybe} may have",
                lane.container
            ),
            evidence,
        });
    }
}

/// P3: nobody begins while another one of the lane is at work, by the agent's own stamps; but for a
/// kill within a grace.
fn side_by_side(history: &History, lane: &Lane<'_>, found: &mut Vec<Violation>) {
    let mut all: Vec<&Placed<'_>> = lane.changing.iter().chain(&lane.looking).collect();
    all.sort_by_key(|placed| placed.place);
    // When the lane was last left, and by whom; and the same before the stop within whose grace we are.
    let mut left: Option<(i64, &Placed<'_>)> = None;
    let mut left_before_grace: Option<(i64, &Placed<'_>)> = None;
    for placed in all {
        let must_follow = match placed.asked.act {
            Act::Kill { .. } => left_before_grace,
            _ => left,
        };
        if let (Some(began_us), Some((left_us, other))) = (placed.began_us(), must_follow)
            && began_us + history.stamps_apart_us < left_us
        {
            found.push(Violation {
                promise: Promise::P3,
                rule: "side_by_side",
                command: placed.asked.id.clone(),
                what: format!(
                    "on {} it began at {began_us}, and {} was at work until {left_us}",
                    lane.container, other.asked.id
                ),
                evidence: vec![history.line_of(other.asked), history.line_of(placed.asked)],
            });
        }
        if !placed.asked.act.changes() || placed.never_began() {
            continue;
        }
        if matches!(placed.asked.act, Act::Stop | Act::Restart) {
            left_before_grace = left;
        }
        if let Some(left_us) = placed.left_us()
            && left.is_none_or(|(latest, _)| latest < left_us)
        {
            left = Some((left_us, placed));
        }
        if !matches!(
            placed.asked.act,
            Act::Stop | Act::Restart | Act::Kill { .. }
        ) {
            left_before_grace = left;
        }
    }
}
