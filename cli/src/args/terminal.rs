//! `shell` and `terminal`.

use clap::{Args, Subcommand};

#[derive(Debug, Args)]
pub(crate) struct Shell {
    /// The container; without one: a shell on the host itself (--host), where its owner and your token allow it
    #[arg(required_unless_present = "host")]
    pub(crate) container: Option<String>,
    /// USER[:GROUP]
    #[arg(
        short,
        long,
        default_value = "",
        hide_default_value = true,
        requires = "container"
    )]
    pub(crate) user: String,
    /// Working directory
    #[arg(
        short,
        long,
        default_value = "",
        hide_default_value = true,
        requires = "container"
    )]
    pub(crate) workdir: String,
    /// The host, where the container's name does not say it, or whose own shell is meant
    #[arg(long)]
    pub(crate) host: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TerminalVerb {
    /// Those that are open: your own; for admins, all
    Ls,
    /// End them, and all that runs in them
    End {
        /// Sessions, as `ls` has them
        #[arg(required = true)]
        sessions: Vec<String>,
    },
    /// Recordings, newest first; for admins
    Recordings {
        /// Of this user, or part of it
        #[arg(long)]
        user: Option<String>,
        /// Of this host
        #[arg(long)]
        host: Option<String>,
        /// Of this container
        #[arg(long)]
        container: Option<String>,
        /// Begun at that moment or later: 2h, 3d, or a time (2026-11-21T09:00:00Z)
        #[arg(long, value_name = "WHEN")]
        from: Option<String>,
        /// Begun at that moment or before, in the same form
        #[arg(long, value_name = "WHEN")]
        to: Option<String>,
    },
    /// One recording, on standard output (asciicast; `asciinema play` and the terminal page play it)
    Recording {
        /// The session
        session: String,
    },
}
