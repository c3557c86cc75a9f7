//! `fairlead-agent`: supervise, run, and tools for the machine's owner.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use fairlead_agent::config::{Config, Grant};
use fairlead_agent::{app, leave, owner_log, policy, supervise, uninstall};
use fairlead_daemon::{files, shutdown, telemetry};
use fairlead_identity::digest::hex;

/// The Fairlead agent: carries out signed commands on this machine's containers. It dials out and
/// listens on no port.
#[derive(Parser)]
#[command(name = "fairlead-agent", version = fairlead_protocol::software::version())]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Start the agent, watch it, start it again (what the system's service runs).
    Supervise(Config),
    /// Run one agent instance (what the supervisor runs).
    #[command(hide = true)]
    Run {
        #[command(flatten)]
        config: Config,
        #[command(flatten)]
        grant: Grant,
    },
    /// Who did what on this machine, in plain words.
    Log {
        #[command(flatten)]
        config: Config,
        /// The last so many lines.
        #[arg(long, short = 'n', default_value_t = 50)]
        tail: usize,
        /// As JSON, one object a line.
        #[arg(long)]
        json: bool,
    },
    /// Give this machine's identity up: revoked at the servers, removed here. Containers are not touched.
    Leave {
        #[command(flatten)]
        config: Config,
        /// Only remove it here, without telling anybody (an admin has revoked it, or will).
        #[arg(long)]
        forget: bool,
    },
    /// Take the agent off this machine, as `install.sh --uninstall` does: leave the fleet, remove what the
    /// installation made. Containers are not touched.
    Uninstall {
        #[command(flatten)]
        config: Config,
        #[command(flatten)]
        options: uninstall::Options,
    },
    /// Remove what makes this machine one host, before an image is made of its disk: each copy of it
    /// enrols as a host of its own.
    PrepareImage(Config),
    /// What runs here, and whether the engine, the policy and the identity are as they should be.
    Status(Config),
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(2).collect();
    match Cli::parse().verb {
        Verb::Supervise(config) => supervise_verb(&config, &arguments),
        Verb::Run { config, grant } => run_verb(config, grant),
        Verb::Log { config, tail, json } => log_verb(&config, tail, json),
        Verb::Leave { config, forget } => leave_verb(&config, forget),
        Verb::Uninstall { config, options } => {
            match uninstall::uninstall(&config.state_dir, &options) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => fail(&error),
            }
        }
        Verb::PrepareImage(config) => prepare_image_verb(&config),
        Verb::Status(config) => status_verb(&config),
    }
}

fn fail(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("error: {}", telemetry::Chain(error));
    ExitCode::FAILURE
}

fn supervise_verb(config: &Config, arguments: &[String]) -> ExitCode {
    files::private_by_default();
    telemetry::start();
    shutdown::die_with_parent_if_asked();
    match supervise::supervise(&config.state_dir, &without_state_dir(arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

/// The supervisor passes its own arguments on, and the state directory by itself.
fn without_state_dir(arguments: &[String]) -> Vec<String> {
    let mut kept = Vec::new();
    let mut skip = false;
    for argument in arguments {
        if skip {
            skip = false;
        } else if argument == "--state-dir" {
            skip = true;
        } else if !argument.starts_with("--state-dir=") {
            kept.push(argument.clone());
        }
    }
    kept
}

fn run_verb(config: Config, grant: Grant) -> ExitCode {
    files::private_by_default();
    telemetry::start();
    // An agent whose supervisor has died must not act beside the one that the next supervisor
    // starts.
    let parent_gone =
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM));
    if let Err(error) = parent_gone {
        tracing::warn!(%error, "the supervisor's death will not be noticed");
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    let outcome = runtime.block_on(async {
        let shutdown = shutdown::on_signal().map_err(|error| app::AppError::State {
            path: "signals".to_owned(),
            reason: error.to_string(),
        })?;
        Box::pin(app::run(config, grant, shutdown)).await
    });
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    match outcome {
        Ok(app::Ended::Shutdown) => ExitCode::SUCCESS,
        Ok(app::Ended::Departs) => exit_code(uninstall::EXIT_DEPARTS),
        Err(error) => {
            tracing::error!(error = %telemetry::Chain(&error), "agent cannot run");
            if error.may_pass() {
                ExitCode::FAILURE
            } else {
                exit_code(supervise::EXIT_NEEDS_HELP)
            }
        }
    }
}

fn exit_code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

fn leave_verb(config: &Config, forget: bool) -> ExitCode {
    files::private_by_default();
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    match runtime.block_on(leave::leave(config, forget)) {
        Ok(Some(name)) if forget => {
            println!(
                "{name}: its identity is gone from here; whoever has a copy of it is let in until an admin revokes it"
            );
            ExitCode::SUCCESS
        }
        Ok(Some(name)) => {
            println!("{name}: its identity is revoked and gone; its containers go on");
            ExitCode::SUCCESS
        }
        Ok(None) => {
            println!("this machine is no host: there is nothing to give up");
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error),
    }
}

fn prepare_image_verb(config: &Config) -> ExitCode {
    match leave::prepare_image(config) {
        Ok(true) => {
            println!(
                "this machine is no host any more; its image needs a join token that lets in as many as \
                 there will be copies (fairlead join-token create --uses N), in the file that --token-file \
                 names"
            );
            ExitCode::SUCCESS
        }
        Ok(false) => {
            println!("this machine is no host: there is nothing to remove");
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error),
    }
}

fn log_verb(config: &Config, tail: usize, json: bool) -> ExitCode {
    let lines = match owner_log::read(&config.owner_log()) {
        Ok(lines) => lines,
        Err(error) => {
            eprintln!(
                "error: cannot read {}: {error}; run it as the user of the agent, or pass --state-dir",
                config.owner_log().display()
            );
            return ExitCode::FAILURE;
        }
    };
    for line in lines.iter().skip(lines.len().saturating_sub(tail)) {
        if json {
            println!("{}", serde_json::to_string(line).unwrap_or_default());
        } else {
            println!("{}", owner_log::in_one_line(line));
        }
    }
    if lines.is_empty() {
        eprintln!("nothing has been done on this machine yet");
    }
    ExitCode::SUCCESS
}

fn status_verb(config: &Config) -> ExitCode {
    let identity = fairlead_agent::identity::IdentityFiles::new(&config.state_dir).load();
    let enrolled = match &identity {
        Ok(Some(identity)) => format!(
            "enrolled as {} in region {}, certificate {}",
            identity.enrolment.name,
            identity.enrolment.region,
            identity.enrolment.certificate_counter
        ),
        Ok(None) => "not enrolled".to_owned(),
        Err(error) => error.to_string(),
    };
    println!("identity  {enrolled}");
    // The installer holds it against a token's.
    if let Ok(Some(identity)) = &identity {
        println!("ca        {}", hex(&identity.root.hash()));
    }
    let running = std::fs::read_to_string(config.state_dir.join("status.json"));
    println!(
        "processes {}",
        running.unwrap_or_else(|_| "the supervisor has not run here".to_owned())
    );
    println!(
        "policy    {}",
        policy::PolicyFile::new(&config.policy).summary()
    );
    let engine = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .ok()
        .map(|runtime| {
            runtime.block_on(async {
                match app::runtime(config) {
                    Ok(engine) => engine.facts().await,
                    Err(error) => fairlead_protocol::EngineFacts {
                        error: error.to_string(),
                        ..fairlead_protocol::EngineFacts::default()
                    },
                }
            })
        });
    match engine {
        Some(facts) if facts.error.is_empty() => {
            println!(
                "engine    {} {} (API {})",
                facts.kind, facts.version, facts.api_version
            );
        }
        Some(facts) => println!("engine    {}", facts.error),
        None => println!("engine    could not be asked"),
    }
    if identity.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
