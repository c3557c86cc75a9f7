//! `fairlead` as a process, against a double of the API: exit codes, what goes where, retries,
//! tokens that are mixed up, streams.

mod double;
mod reading;
mod acting;
