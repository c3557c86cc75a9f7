//! `fairlead`: the command line. Modules in the order in which a request passes them.

use clap::Parser;

mod args;
mod run_flags;
mod quantities;
mod config;
mod tls;
mod verbs;
mod client;
mod sse;
mod stream;
mod archive;
mod output;
mod exit;

fn main() {
    let cli = args::Cli::parse();
    let code = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime.block_on(async {
            match verbs::run(cli).await {
                Ok(exit) => exit.code(),
                Err(failure) => {
                    output::report(&failure);
                    failure.exit.code()
                }
            }
        }),
        Err(error) => {
            output::say(&format!("error: cannot start: {error}"));
            exit::Exit::Failed.code()
        }
    };
    // Not a return: a thread may still wait for standard input.
    std::process::exit(code.into());
}
