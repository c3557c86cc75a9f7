//! Request and response types of the HTTP API: the only description of its JSON.
//!
//! Conventions: names are `snake_case`; times are RFC 3339 UTC with microseconds; durations carry
//! their unit in the name (`_ms`, `_s`); sizes are bytes. Unknown fields in requests are refused.
//! A missing optional field means what its documentation says.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

mod access;
mod command;
mod fleet;
mod packages;
mod terminals;
mod upgrades;

pub use access::*;
pub use command::*;
pub use fleet::*;
pub use packages::*;
pub use terminals::*;
pub use upgrades::*;

/// Labels of a host.
pub type Labels = BTreeMap<String, String>;

/// Every error answer has this body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// What went wrong.
    pub error: ErrorDetail,
}

/// What went wrong, for programs (`code`) and people (the rest).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorDetail {
    /// Stable; see the list of codes in the guide.
    pub code: String,
    /// What failed, on which host.
    pub message: String,
    /// What to do next; empty when there is nothing to say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hint: String,
    /// Quote it when you ask for help: it is in the server's log.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub request_id: String,
}

/// A page of a listing, newest first unless said otherwise.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    /// The rows.
    pub items: Vec<T>,
    /// Pass it as `before` to get the rows that follow; absent on the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<i64>,
}

/// Microseconds since 1970 as an API time. Out-of-range values become the nearest one in range.
#[must_use]
pub fn time(us: i64) -> Timestamp {
    Timestamp::from_microsecond(us).unwrap_or(if us < 0 {
        Timestamp::MIN
    } else {
        Timestamp::MAX
    })
}

/// The same, with 0 for "never".
#[must_use]
pub fn time_or_never(us: i64) -> Option<Timestamp> {
    (us != 0).then(|| time(us))
}
