//! Logs: to standard error, one line an event, level by `FAIRLEAD_LOG` (default `info`), as JSON
//! with `FAIRLEAD_LOG_FORMAT=json`. `FAIRLEAD_LOG` is `LEVEL` or `MODULE=LEVEL`, several with commas.
//!
//! Levels say what the operator must do: error = act now, warn = look soon, info = nothing.

use std::error::Error;
use std::fmt;

use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Starts logging. Called once, by `main`.
pub fn start() {
    let filter = std::env::var("FAIRLEAD_LOG")
        .ok()
        // Modules and levels only: with regular expressions over fields, as EnvFilter has them, the
        // agent would be 200 KB larger.
        .and_then(|asked| asked.parse().ok())
        .unwrap_or_else(|| {
            Targets::new()
                .with_default(LevelFilter::INFO)
                .with_target("tungstenite", LevelFilter::WARN)
                .with_target("hyper", LevelFilter::WARN)
        });
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false);
    let json = std::env::var("FAIRLEAD_LOG_FORMAT").is_ok_and(|format| format == "json");
    let lines = if json {
        lines.json().boxed()
    } else {
        lines.boxed()
    };
    tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .init();
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
