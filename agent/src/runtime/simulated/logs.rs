//! The log of a simulated container: made from its runs when somebody reads it, never stored.

use super::programs::Plan;
use super::world::{Run, Simulated};

/// A service writes a line this often.
const LINE_EVERY_US: i64 = 1_000_000;
/// Lines of one run that are still there: the log's rotation.
const LINES_KEPT: i64 = 10_000;

/// A line and its time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) at_us: i64,
    pub(super) text: String,
}

/// The lines from `from_us` on that have been written until now, oldest first.
pub(super) fn lines(container: &Simulated, from_us: i64, now_us: i64) -> Vec<Line> {
    let plan = container.plan();
    container
        .runs
        .iter()
        .flat_map(|run| run_lines(&container.name, &plan, *run, from_us, now_us))
        .collect()
}

fn run_lines(name: &str, plan: &Plan, run: Run, from_us: i64, now_us: i64) -> Vec<Line> {
    match plan {
        Plan::Missing(_) => Vec::new(),
        Plan::Ends { output, .. } => output
            .lines()
            .filter(|_| (from_us..=now_us).contains(&run.started_us))
            .map(|line| Line {
                at_us: run.started_us,
                text: format!("{line}\n"),
            })
            .collect(),
        Plan::Service => {
            let end_us = if run.ended_us == 0 {
                now_us
            } else {
                run.ended_us.min(now_us)
            };
            let last = (end_us - run.started_us).div_euclid(LINE_EVERY_US);
            let first_asked = (from_us - run.started_us + LINE_EVERY_US - 1)
                .div_euclid(LINE_EVERY_US)
                .max(0);
            (first_asked.max(last - LINES_KEPT + 1)..=last)
                .map(|number| Line {
                    at_us: run.started_us + number * LINE_EVERY_US,
                    text: match number {
                        0 => format!("{name}: started\n"),
                        _ => format!("{name}: served {number} requests\n"),
                    },
                })
                .collect()
        }
    }
}

/// How long until a running service writes again.
pub(super) fn next_line_in_us(container: &Simulated, now_us: i64) -> i64 {
    LINE_EVERY_US - (now_us - container.started_us()).rem_euclid(LINE_EVERY_US)
}

/// `text` as Docker prints it before a line.
pub(super) fn stamp(at_us: i64) -> String {
    let time = jiff::Timestamp::from_microsecond(at_us).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    format!("{time:.9} ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_writes_each_second() {
        let run = Run {
            started_us: 10_000_000,
            ended_us: 13_500_000,
        };
        let all = run_lines("w", &Plan::Service, run, 0, 99_000_000);
        assert_eq!(all.len(), 4);
        assert_eq!(all[0].text, "w: started\n");
        let later = run_lines("w", &Plan::Service, run, 11_000_001, 99_000_000);
        assert_eq!(later, all[2..]);
        let long = Run {
            started_us: 0,
            ended_us: 0,
        };
        assert_eq!(
            run_lines("w", &Plan::Service, long, 0, 1_000_000_000_000).len(),
            10_000
        );
        assert_eq!(stamp(1_000_002), "1970-01-01T00:00:01.000002000Z ");
    }
}
