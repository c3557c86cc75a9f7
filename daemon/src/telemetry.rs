//! Logs: to standard error, one line an event, level by `FAIRLEAD_LOG` (default `info`), as JSON
//! with `FAIRLEAD_LOG_FORMAT=json`.
//!
//! Levels say what the operator must do: error = act now, warn = look soon, info = nothing.

use std::error::Error;
use std::fmt;

use tracing_subscriber::EnvFilter;

/// Starts logging. Called once, by `main`.
pub fn start() {
    let filter = EnvFilter::try_from_env("FAIRLEAD_LOG")
        .unwrap_or_else(|_| EnvFilter::new("info,tungstenite=warn,hyper=warn"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false);
    let json = std::env::var("FAIRLEAD_LOG_FORMAT").is_ok_and(|format| format == "json");
    if json {
        builder.json().init();
    } else {
        builder.init();
    }
}

/// An error with all its causes, for the one place where it is logged.
pub struct Chain<'a>(pub &'a dyn Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
