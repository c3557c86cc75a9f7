//! `fairlead` as a process, against a double of the API: exit codes, what goes where, retries,
//! tokens that are mixed up, streams, keys.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot be set up should stop there"
)]

mod double;
mod reading;
mod acting;
mod streaming;
mod trusting;
mod keeping;
mod signing;
