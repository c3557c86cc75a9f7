//! The docker runtime against the real engine of this machine.
//!
//! Each test has containers of its own names, removed at its end whatever happens; the image is a
//! busybox imported for the run. Where no engine answers, each test says so and ends.

#![cfg(test)]

mod engine;
mod life;
mod flows;
