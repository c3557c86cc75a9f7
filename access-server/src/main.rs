//! `fairlead-access-server`: serves a region.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use fairlead_access_server::app::App;
use fairlead_access_server::config::Config;
use fairlead_daemon::{files, process, shutdown, telemetry};

/// The Fairlead access server: ends the links of a region's agents and keeps the region's ledger.
#[derive(Parser)]
#[command(name = "fairlead-access-server", version = fairlead_protocol::software::version())]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Serve the region (joining it first, with its join token, when that has not been done).
    Run(Config),
}

fn main() -> ExitCode {
    let Verb::Run(config) = Cli::parse().verb;
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
    let outcome = runtime.block_on(async {
        let shutdown = shutdown::on_signal()?;
        let app = Box::pin(App::build(config)).await?;
        Box::pin(app.run(shutdown)).await;
        Ok::<(), Box<dyn std::error::Error>>(())
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&*error),
    }
}

fn fail(error: &dyn std::error::Error) -> ExitCode {
    tracing::error!(error = %telemetry::Chain(error), "the access server cannot run");
    ExitCode::FAILURE
}
