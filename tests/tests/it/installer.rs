//! The install script, in a sandbox: packages made here, a tree of the test's own as the host.
//!
//! Holds: issue "one line for a host"; SECURITY S16 (nothing of the token reaches a shell, an argument
//! or another program), S17 (nothing unverified is executed), S30 (modes and owners), S31 (archives).
//! The package is not the packer's and the agent is a few lines of shell, so that what fails here is the
//! script. Real hosts with systemd are elsewhere.

mod kit;
mod faulty;
mod trees;
mod system;
mod prefixes;
mod preflight;
mod refusals;
mod tokens;
mod converge;
mod versions;
mod services;
mod servers;
mod again;
mod surroundings;
