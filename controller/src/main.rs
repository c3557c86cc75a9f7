//! `fairlead-controller`: the centre.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use fairlead_controller::app::App;
use fairlead_controller::config::Config;
use fairlead_controller::packages;
use fairlead_controller::provision::{Preparation, provision};
use fairlead_controller::setup::wish::wish;
use fairlead_daemon::{files, process, shutdown, telemetry};

/// The Fairlead controller: API, CA, and the view of the whole fleet.
#[derive(Parser)]
#[command(name = "fairlead-controller", version = fairlead_protocol::software::version())]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Serve the installation, making it first when the data directory is empty.
    Run(Config),
    /// Prepare an installation before its controller runs for the first time: CA, store, the first region,
    /// join tokens. The installer calls it.
    Setup(Preparation),
    /// Make another admin, when all tokens are lost: has the controller of this machine write a link that
    /// works once, for 15 minutes. As root, or as the controller's user; the controller may go on running.
    NewAdmin {
        /// The controller's.
        #[arg(
            long,
            env = "FAIRLEAD_DATA_DIR",
            default_value = "/var/lib/fairlead-controller"
        )]
        data_dir: PathBuf,
    },
}

fn main() -> ExitCode {
    let verb = Cli::parse().verb;
    telemetry::start();
    files::private_by_default();
    process::raise_open_files();
    shutdown::die_with_parent_if_asked();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    let outcome = match verb {
        Verb::Run(config) => runtime.block_on(run(config)),
        Verb::Setup(preparation) => runtime.block_on(prepare(&preparation)),
        Verb::NewAdmin { data_dir } => return new_admin(&data_dir),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&*error),
    }
}

async fn run(config: Config) -> Result<(), Box<dyn std::error::Error>> {
    let shutdown = shutdown::on_signal()?;
    let app = Box::pin(App::build(config)).await?;
    Box::pin(app.run(shutdown)).await;
    Ok(())
}

/// What was prepared goes to standard output as `name=value` lines, for the installer.
async fn prepare(preparation: &Preparation) -> Result<(), Box<dyn std::error::Error>> {
    files::claim(&preparation.config.data_dir)?;
    let made = provision(preparation).await?;
    println!("ca_sha256={}", made.ca_sha256);
    println!("pin={}", made.pin);
    println!(
        "region_waits={}",
        if made.region_waits { "yes" } else { "no" }
    );
    match &made.packages {
        Some(version) => println!("packages={version}"),
        None => eprintln!(
            "machines find no package here yet: let --packages-from name a repository of packages \
             (that of the .deb is /usr/share/fairlead/packages), or copy one to {}",
            preparation.config.data_dir.join(packages::DIR).display()
        ),
    }
    Ok(())
}

/// The line to type goes to standard output.
fn new_admin(data_dir: &Path) -> ExitCode {
    let line = match wish(data_dir) {
        Ok(line) => line,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    println!("{line}");
    eprintln!(
        "works once, for 15 minutes, until the controller is restarted; without --ca where https has a \
         certificate of a public CA. Then revoke the tokens that are lost: fairlead api-token ls"
    );
    ExitCode::SUCCESS
}

fn fail(error: &dyn std::error::Error) -> ExitCode {
    tracing::error!(error = %telemetry::Chain(error), "the controller cannot run");
    ExitCode::FAILURE
}
