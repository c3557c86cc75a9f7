//! `fairlead-bench`: measures, and is the processes that measuring needs.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use fairlead_bench::figures::{self, Figure};
use fairlead_bench::{
    agent_cost, echo, engine, fleet, hosts, link_server, links, sizes, soak, terminal,
};
use fairlead_daemon::{process, telemetry};

/// Measures Fairlead on this machine.
#[derive(Parser)]
#[command(name = "fairlead-bench", version = fairlead_protocol::software::version())]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run benchmarks (all but fleet45k, when none is named) and print a table.
    Run {
        /// links, fleet, engine, terminal, agent, sizes, fleet45k.
        names: Vec<String>,
        /// A tenth of everything: does it still work?
        #[arg(long)]
        quick: bool,
        /// Hosts at one access server, in links, fleet and fleet45k.
        #[arg(long, default_value_t = 15_000, conflicts_with = "quick")]
        hosts: usize,
        /// Where the figures are written.
        #[arg(long, default_value = "bench.json")]
        out: PathBuf,
        /// How the programs were built, for the table.
        #[arg(long, default_value = "unknown")]
        build: String,
    },
    /// Agents come and go, commands, log follows, kills; fails when something grows.
    Soak {
        /// How long: 90s, 30m, 2h.
        #[arg(value_parser = soak::duration)]
        during: Duration,
        /// Simulated hosts.
        #[arg(long, default_value = "500")]
        hosts: usize,
    },
    /// Be simulated hosts.
    #[command(hide = true)]
    Hosts(hosts::Hosts),
    /// Be an access server without uplink.
    #[command(hide = true)]
    LinkServer(link_server::Server),
    /// Be the floor.
    #[command(hide = true)]
    EchoServer(link_server::Server),
}

fn main() -> ExitCode {
    telemetry::start();
    process::raise_open_files();
    let verb = Cli::parse().verb;
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("fairlead-bench: {error}");
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(async {
        match verb {
            Verb::Run {
                names,
                quick,
                hosts,
                out,
                build,
            } => {
                let hosts = if quick { 1_500 } else { hosts };
                run(&names, quick, hosts, &out, &build).await
            }
            Verb::Soak { during, hosts } => soak::run(&own(), during, hosts).await,
            Verb::Hosts(wanted) => {
                hosts::run(wanted).await;
                ExitCode::SUCCESS
            }
            Verb::LinkServer(server) => {
                link_server::run(server).await;
                ExitCode::SUCCESS
            }
            Verb::EchoServer(server) => {
                echo::run(server).await;
                ExitCode::SUCCESS
            }
        }
    })
}

fn own() -> PathBuf {
    std::env::current_exe().unwrap_or_else(|_| "fairlead-bench".into())
}

const ALL: &[&str] = &["sizes", "links", "fleet", "engine", "terminal", "agent"];

async fn run(
    names: &[String],
    quick: bool,
    hosts: usize,
    out: &std::path::Path,
    build: &str,
) -> ExitCode {
    let program = own();
    let programs = program.parent().unwrap_or(std::path::Path::new("."));
    let wanted: Vec<&str> = match names {
        [] => ALL.to_vec(),
        names => names.iter().map(String::as_str).collect(),
    };
    let mut all: Vec<Figure> = Vec::new();
    for name in wanted {
        eprintln!("== {name}");
        let measured = match name {
            "sizes" => sizes::measure(programs),
            "links" => links::measure(&program, hosts, if quick { 1_000 } else { 10_000 }).await,
            "fleet" => fleet::measure(&program, hosts).await,
            "engine" => engine::measure(if quick { 10 } else { 60 }).await,
            "terminal" if quick => terminal::measure(2, 50).await,
            "terminal" => terminal::measure(6, 400).await,
            "agent" => agent_cost::measure(if quick { &[5] } else { &[20, 100] }, quick).await,
            "fleet45k" => fleet::hold(&program, hosts, quick).await,
            other => {
                eprintln!("there is no benchmark '{other}': {ALL:?}, fleet45k");
                return ExitCode::from(2);
            }
        };
        eprint!("{}", figures::table(&measured));
        all.extend(measured);
        // What was measured is kept, whatever becomes of the rest.
        figures::write(out, &all, build, quick);
    }
    println!("{}", figures::table(&all));
    println!("build: {build}; figures in {}", out.display());
    ExitCode::SUCCESS
}
