//! The oracle: takes the history of a run and says which promise was broken, by which command, with
//! the lines that show it. Pure: no files, sockets or clocks; `witness` collects histories.
//!
//! | module | what lives there |
//! |---|---|
//! | `history` | what clients asked, what each side recorded, what the engine showed |
//! | `rules` | what can be said of each command by itself: lost, doubled, late, two results |
//! | `lane` | what can only be said of all changing commands of one container together |
//!
//! P1: what was acknowledged has a final state on every side in the end. P2: it took effect at most
//! once (once where it succeeded, never where it says so), and its one result is true of the engine.
//! P3: the changing commands of a lane took effect in the order in which the region took them, and
//! none while another was at work.

use std::fmt;

pub mod history;
mod lane;
mod rules;

use history::History;

/// A promise of the product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Promise {
    /// An acknowledged command is not lost.
    P1,
    /// It takes effect at most once; its one result is true.
    P2,
    /// Changing commands of one lane never overlap and keep their order.
    P3,
}

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which promise.
    pub promise: Promise,
    /// Which of the oracle's rules found it.
    pub rule: &'static str,
    /// By which command; empty where no command can be named.
    pub command: String,
    /// What is wrong, in words.
    pub what: String,
    /// The lines of the history that show it.
    pub evidence: Vec<String>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}: {}", self.promise, self.rule, self.what)?;
        for line in &self.evidence {
            write!(f, "\n    {line}")?;
        }
        Ok(())
    }
}

/// Every broken promise in a history.
#[must_use]
pub fn judge(history: &History) -> Vec<Violation> {
    let mut found = rules::judge(history);
    found.extend(lane::judge(history));
    found.sort_by(|a, b| (a.promise, a.rule, &a.command).cmp(&(b.promise, b.rule, &b.command)));
    found
}

/// All of them as text, for the failure of a test; the first ones whole.
#[must_use]
pub fn tell(violations: &[Violation]) -> String {
    const WHOLE: usize = 12;
    let mut text = format!("{} promises broken", violations.len());
    for violation in violations.iter().take(WHOLE) {
        text.push_str(&format!("\n  {violation}"));
    }
    if violations.len() > WHOLE {
        text.push_str(&format!("\n  … and {} more", violations.len() - WHOLE));
    }
    text
}
