//! The harness of the end-to-end tests: a fleet of real processes on this machine, a typed client of
//! its API, the container engine's own word, and waiting that says what it waited for.
//!
//! Nothing here sleeps and hopes: `wait::wait_for` is the only place that sleeps, and it ends as soon
//! as its condition holds. Everything is a test's own: ports, directories, names, processes. What a
//! test started ends with it, also when it fails.
//!
//! | module | what lives there |
//! |---|---|
//! | `fleet` | controller, access servers, supervised agents as child processes |
//! | `process` | one child process: start, kill -9, stop and continue, start again |
//! | `programs` | where the programs under test are, built once; writes others that are started |
//! | `acme` | a real ACME CA and the DNS that it asks |
//! | `versions` | versions of the agent, installed and packed |
//! | `client` | the HTTP API, typed |
//! | `skew` | a double that speaks a next version of the protocol, or writes down what is said |
//! | `stream` | a command's stream |
//! | `lateness` | how late this machine itself is, and times that were promised |
//! | `disk` | a small disk that can be filled |
//! | `line` | a bad line between two of the processes |
//! | `loop_disk` | a disk whose power can be cut |
//! | `hosts` | machines with systemd and an engine of their own |
//! | `engine` | the container engine, asked through its own CLI |
//! | `oracle` | judges a history: which promise was broken, by which command |
//! | `ports` | ports that nobody else takes |
//! | `wait` | the one place that sleeps |
//! | `wrong_clock` | a process whose clock is wrong |
//! | `witness` | collects a history for the oracle: engine, stores, journals |
#![expect(
    clippy::expect_used,
    reason = "what fails in the harness fails the test that uses it, with the place and the reason"
)]

pub mod acme;
pub mod client;
pub mod disk;
pub mod engine;
pub mod fleet;
pub mod hosts;
pub mod lateness;
pub mod line;
pub mod loop_disk;
pub mod oracle;
pub mod package;
pub mod ports;
pub mod process;
pub mod programs;
pub mod skew;
pub mod stream;
pub mod terminal;
pub mod versions;
pub mod wait;
pub mod witness;
pub mod wrong_clock;
