//! Defects that are planted on purpose, so that the tests can be tested: each must be caught.
//!
//! Without the feature `defects` (that is, in everything that is shipped) [`is`] is the constant
//! `false`, and what depends on it is not in the program. With it, the environment variable
//! `FAIRLEAD_PLANTED_DEFECT` of a process names the one defect that it has.

#[cfg(all(feature = "defects", not(debug_assertions)))]
compile_error!("planted defects are for tests and not for what is shipped");

/// A way to break a promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defect {
    /// The store answers before it has synced.
    AckBeforeSync,
    /// The journal does not sync.
    JournalUnsynced,
    /// A result is sent and not journalled.
    ResultNotKept,
    /// An id is forgotten as soon as its command has ended.
    IdForgotten,
    /// After a crash what had begun is done again in the blind.
    BlindAfterCrash,
    /// Changing commands do not wait for their lane.
    LaneIgnored,
    /// What is open is delivered again in the wrong order, so that stragglers are overtaken.
    StragglerOvertaken,
    /// Nobody compares numbers of connections: the late end of an old one removes a newer one.
    LateCloseRemovesNewer,
    /// A command is begun after its deadline.
    ExpiredIsBegun,
    /// Each result is sent twice, the second time as a failure, and the last one counts.
    TwoResults,
}

impl Defect {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::AckBeforeSync,
        Self::JournalUnsynced,
        Self::ResultNotKept,
        Self::IdForgotten,
        Self::BlindAfterCrash,
        Self::LaneIgnored,
        Self::StragglerOvertaken,
        Self::LateCloseRemovesNewer,
        Self::ExpiredIsBegun,
        Self::TwoResults,
    ];

    /// As the environment variable names it.
    #[must_use]
    pub fn name(self) -> String {
        format!("{self:?}")
    }
}

/// Whether this process has that defect.
#[must_use]
#[cfg(feature = "defects")]
pub fn is(defect: Defect) -> bool {
    use std::sync::OnceLock;
    static CHOSEN: OnceLock<String> = OnceLock::new();
    let chosen =
        CHOSEN.get_or_init(|| std::env::var("FAIRLEAD_PLANTED_DEFECT").unwrap_or_default());
    *chosen == defect.name()
}

/// Whether this process has that defect: it has none.
#[must_use]
#[cfg(not(feature = "defects"))]
pub const fn is(_: Defect) -> bool {
    false
}
