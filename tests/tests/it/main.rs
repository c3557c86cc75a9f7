//! End-to-end tests: real processes, real sockets, and (where its effects are judged) the machine's
//! real container engine. One module per promise or topic; each says at its beginning what it holds.
#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "these are tests, the helpers between them too"
)]

mod acme;
mod acts;
mod bad_lines;
mod cli;
mod commands;
mod enrol;
mod clones;
mod offline;
mod policy;
mod proxied;
mod sick_disks;
mod skew;
mod sick_engine;
mod engine_restarts;
mod storage;
mod power_cut;
mod storm;
mod survive;
mod upgrade;
mod causes;
mod withdrawn;
mod wrong_clocks;
mod containers;
mod exec;
mod hostile;
mod installer;
mod hosts;
mod line;
mod leaving;
mod debian;
mod machines;
mod malicious_agent;
mod servers;
mod server_upgrade;
mod server_packages;
mod systemd;
mod lanes;
mod terminal;
mod host_shell;
mod archives;
mod terminal_page;
mod terminal_region;
mod terminal_restart;
mod stream_restart;
mod liar;
mod installation;
mod one_process;
mod other_machines;
mod oracle;
mod planted;
mod readiness;
mod security;
mod self_update;
