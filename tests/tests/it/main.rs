//! End-to-end tests: real processes, real sockets, and (where its effects are judged) the machine's
//! real container engine. One module per promise or topic; each says at its beginning what it holds.
#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "these are tests, the helpers between them too"
)]

mod acts;
mod cli;
mod commands;
mod enrol;
mod offline;
mod policy;
mod proxied;
mod storage;
mod survive;
mod causes;
mod withdrawn;
mod containers;
mod exec;
mod hostile;
mod installer;
mod hosts;
mod line;
mod lanes;
mod terminal;
mod liar;
mod one_process;
mod readiness;
