//! `fairlead-controller`: the centre.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use fairlead_controller::app::App;
use fairlead_controller::config::Config;
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
    tracing::error!(error = %telemetry::Chain(error), "the controller cannot run");
    ExitCode::FAILURE
}
