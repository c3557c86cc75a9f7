//! What may be typed behind `fairlead agent`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::quantities::duration;

#[derive(Debug, Subcommand)]
pub(crate) enum AgentVerb {
    /// Versions of the agent that hosts can be upgraded to
    Versions,
    /// Put a signed package onto the controller, from which hosts get it by way of their regions
    Push {
        /// The package's folder, as ./dev package makes it
        folder: PathBuf,
    },
    /// Upgrade hosts' agents, wave by wave, without interruption
    Upgrade(Upgrade),
    /// Make a key that signs versions: its private part goes to a new file (0600), its public part is
    /// printed, KEYID:BASE64
    #[command(
        after_help = "The private key belongs where versions are made (./dev package --key FILE, \
        fairlead-packer), with a copy offline, and nowhere else: not on a controller, not in a repository, \
        not in CI logs. Whoever has it can run programs as root on every host. The public key goes to \
        install.sh --key and fairlead-packer verify --key, and is printed again by: fairlead agent \
        public-key FILE"
    )]
    Keygen {
        /// The private key's file, which must not be there yet
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Print the public part of a key, KEYID:BASE64
    PublicKey {
        /// The private key's file
        file: PathBuf,
    },
}

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "The first host is a canary; then come waves, with a time between them in which those that \
    have the version are watched. When more than 2 % of a wave fail or are not heard of any more it halts by \
    itself. A host that is away is upgraded when it returns. Ctrl-C only stops following: the rollout goes on."
)]
pub(crate) struct Upgrade {
    #[command(subcommand)]
    pub(crate) verb: Option<UpgradeVerb>,
    /// The version
    #[arg(long, required = true, value_name = "VERSION")]
    pub(crate) to: Option<String>,
    /// These hosts, with commas between them [default: all]
    #[arg(long, value_delimiter = ',', value_name = "HOST")]
    pub(crate) hosts: Vec<String>,
    /// Hosts that are first and alone [default: 1]
    #[arg(long, value_name = "N")]
    pub(crate) canary: Option<u32>,
    /// After each wave, so much of all hosts has been asked [default: 5%,25%,100%]
    #[arg(long, value_delimiter = ',', value_parser = percent, value_name = "PERCENT")]
    pub(crate) wave: Vec<u32>,
    /// Time between two waves, and after the last [default: 10m]
    #[arg(long, value_parser = duration, value_name = "DURATION")]
    pub(crate) between: Option<Duration>,
    /// Also on hosts that had a higher version
    #[arg(long)]
    pub(crate) allow_older: bool,
    /// Only print the waves
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print the rollout's id and do not follow it
    #[arg(long)]
    pub(crate) no_wait: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum UpgradeVerb {
    /// Rollouts, the newest first
    Ls,
    /// One rollout in full
    Show { id: String },
    /// Follow a rollout to its end
    Watch { id: String },
    /// Ask no more hosts until it is resumed
    Pause { id: String },
    /// Go on with one that is paused or halted; what has failed so far is not held against it
    Resume { id: String },
    /// End a rollout; hosts that were asked already go on
    Abort { id: String },
}

/// `25%` or `25`.
fn percent(text: &str) -> Result<u32, String> {
    let number = text.strip_suffix('%').unwrap_or(text);
    let percent = number.parse::<u32>().ok();
    percent
        .filter(|percent| (1..=100).contains(percent))
        .ok_or_else(|| format!("{text:?} is not a share; write 5%,25%,100%"))
}
