//! `fairlead-packer`: makes keys, packages, bundles, and checks packages.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Parser, Subcommand};
use fairlead_identity::package::{Manifest, PublicKey, Timestamp, TrustedKeys, Version};
use fairlead_packer::programs::Target;
use fairlead_packer::{bundle, keys, pack, verify};

type Failure = Box<dyn std::error::Error>;

const DAY_S: i64 = 24 * 3600;
/// Lowest version that an agent may come from, when nothing else is said: the first there was.
const FIRST_VERSION: &str = "0.1.0";

/// Makes signed packages of Fairlead's programs.
#[derive(Parser)]
#[command(name = "fairlead-packer")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Make a key: the private part goes to a new file (0600), the public part is printed
    Keygen {
        /// The file
        #[arg(long)]
        out: PathBuf,
    },
    /// Print the public part of a key
    PublicKey {
        /// The key's file
        file: PathBuf,
    },
    /// Make a package of built programs
    Pack(Box<Pack>),
    /// Check a package
    Verify {
        /// The package's folder
        folder: PathBuf,
        #[command(flatten)]
        trust: Trust,
    },
    /// Write a package to one tar file, for hosts without a network
    Bundle {
        /// The package's folder
        folder: PathBuf,
        /// The file
        #[arg(long)]
        out: PathBuf,
        #[command(flatten)]
        trust: Trust,
    },
}

#[derive(clap::Args)]
struct Trust {
    /// Believe this key (KEYID:BASE64)
    #[arg(long = "key", required = true)]
    keys: Vec<PublicKey>,
    /// Judge expiry by this time instead of the clock's
    #[arg(long)]
    now: Option<Timestamp>,
}

#[derive(clap::Args)]
struct Pack {
    /// Folder with linux-x86_64/ and linux-aarch64/, each with all programs
    #[arg(long)]
    programs: PathBuf,
    /// Targets to pack
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "linux-x86_64,linux-aarch64"
    )]
    targets: Vec<Target>,
    /// install.sh, not filled in
    #[arg(long, default_value = "installer/install.sh")]
    installer: PathBuf,
    /// Output of `cargo metadata --format-version 1 --filter-platform TARGET`; once for each target
    #[arg(long, required = true)]
    metadata: Vec<PathBuf>,
    /// The version, for instance 1.2.3 or 1.2.3-rc.1
    #[arg(long)]
    version: Version,
    /// When it was made [default: now]
    #[arg(long)]
    released: Option<Timestamp>,
    /// Days until it is not installed any more
    #[arg(long, default_value_t = 365)]
    expires_days: i64,
    /// Lowest version that an agent may come from
    #[arg(long)]
    min_from: Option<Version>,
    /// File with a key that signs it; again for a second one
    #[arg(long = "key", required = true)]
    keys: Vec<PathBuf>,
    /// Also have install.sh believe this key (KEYID:BASE64): the next one
    #[arg(long)]
    trust: Vec<PublicKey>,
    /// Channel whose newest version it is; `none` for none
    #[arg(long, default_value = "stable")]
    channel: String,
    /// Repository of packages; made if it is not there
    #[arg(long)]
    out: PathBuf,
}

fn main() -> ExitCode {
    match run(Cli::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Keygen { out } => println!("{}", keys::generate(&out)?),
        Verb::PublicKey { file } => println!("{}", keys::read(&file)?.public()),
        Verb::Pack(pack) => listed(&pack::pack(&pack.order()?)?),
        Verb::Verify { folder, trust } => {
            let now = trust.now()?;
            let verified = verify::verify(&folder, &TrustedKeys::new(trust.keys), now)?;
            verify::check_folder_name(&folder, &verified.manifest)?;
            println!(
                "{} is whole, signed by {}, expires {}",
                verified.manifest.version(),
                verified.key,
                verified.manifest.expires()
            );
        }
        Verb::Bundle { folder, out, trust } => {
            let now = trust.now()?;
            bundle::bundle(&folder, &TrustedKeys::new(trust.keys), now, &out)?;
            println!("{}", out.display());
        }
    }
    Ok(())
}

fn listed(manifest: &Manifest) {
    for file in manifest.files() {
        println!("{:>12}  {}", file.size, file.name);
    }
}

fn now() -> Result<Timestamp, Failure> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    Timestamp::from_seconds(i64::try_from(seconds)?).ok_or_else(|| "what is the time?".into())
}

impl Trust {
    fn now(&self) -> Result<Timestamp, Failure> {
        self.now.map_or_else(now, Ok)
    }
}

impl Pack {
    fn order(self) -> Result<pack::Order, Failure> {
        let released = self.released.map_or_else(now, Ok)?;
        let expires = self
            .expires_days
            .checked_mul(DAY_S)
            .and_then(|life| Timestamp::from_seconds(released.seconds().checked_add(life)?))
            .ok_or("--expires-days is out of range")?;
        let min_from = match self.min_from {
            Some(version) => version,
            None => FIRST_VERSION.parse::<Version>()?.min(self.version.clone()),
        };
        let keys = self.keys.iter().map(|path| keys::read(path));
        Ok(pack::Order {
            programs: self.programs,
            targets: self.targets,
            installer: self.installer,
            metadata: self.metadata,
            released,
            expires,
            min_from,
            keys: keys.collect::<Result<_, _>>()?,
            trust: self.trust,
            channel: (self.channel != "none").then_some(self.channel),
            version: self.version,
            out: self.out,
        })
    }
}
