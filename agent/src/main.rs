//! `fairlead-agent`: supervise, run, and tools for the machine's owner.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use fairlead_agent::config::{Config, Grant, UpgradeTimes};
use fairlead_agent::executor::host_shell;
use fairlead_agent::{app, leave, owner_log, status, supervise, uninstall, upgrade};
use fairlead_daemon::{files, shutdown, telemetry};

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
    Supervise {
        #[command(flatten)]
        config: Config,
        #[command(flatten)]
        times: UpgradeTimes,
    },
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
    /// Let another version of the agent take this machine over, without interruption.
    Upgrade {
        #[command(flatten)]
        config: Config,
        /// The folder of a signed package.
        #[arg(long, value_name = "FOLDER")]
        to: std::path::PathBuf,
        /// Also a version below one that was here before.
        #[arg(long)]
        allow_older: bool,
        /// Say why not as JSON (a command asks).
        #[arg(long, hide = true)]
        json: bool,
    },
    /// Take the terminal on standard input, and become the program that follows (what a shell on this machine
    /// itself begins as).
    #[command(hide = true, name = host_shell::LEADER_VERB)]
    LeadTerminal {
        #[arg(last = true, required = true)]
        words: Vec<String>,
    },
    /// Whether this program could work here (what an upgrade asks a new version).
    #[command(hide = true)]
    Check(Config),
    /// What runs here, whether it has a link (or why not), and whether the engine, the policy and the
    /// identity are as they should be. Exit code 1 when no agent runs.
    Status(Config),
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(2).collect();
    match Cli::parse().verb {
        Verb::Supervise { config, times } => supervise_verb(&config, &times, &arguments),
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
        Verb::Upgrade {
            config,
            to,
            allow_older,
            json,
        } => {
            let wanted = upgrade::Wanted {
                package: &to,
                trusted: config.trust.clone(),
                allow_older,
            };
            upgrade_verb(&config, wanted, json)
        }
        Verb::LeadTerminal { words } => fail(&host_shell::lead(&words)),
        Verb::Check(config) => check_verb(&config),
        Verb::Status(config) => status_verb(&config),
    }
}

fn fail(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("error: {}", telemetry::Chain(error));
    ExitCode::FAILURE
}

fn supervise_verb(config: &Config, times: &UpgradeTimes, arguments: &[String]) -> ExitCode {
    files::private_by_default();
    telemetry::start();
    shutdown::die_with_parent_if_asked();
    let arguments = without_own_flags(arguments);
    match supervise::supervise(&config.state_dir, &arguments, times.times()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

/// What is the supervisor's only.
const OWN_FLAGS: [&str; 7] = [
    "--state-dir",
    "--prove-ms",
    "--yield-ms",
    "--silent-ms",
    "--trial-ms",
    "--streams-ms",
    "--notice-ms",
];

/// The supervisor passes its own arguments on, and the state directory by itself.
fn without_own_flags(arguments: &[String]) -> Vec<String> {
    let mut kept = Vec::new();
    let mut skip = false;
    for argument in arguments {
        if skip {
            skip = false;
        } else if OWN_FLAGS.contains(&argument.as_str()) {
            skip = true;
        } else if !argument
            .split_once('=')
            .is_some_and(|(flag, _)| OWN_FLAGS.contains(&flag))
        {
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
    // One that died before that was asked for is noticed now. A supervisor that becomes another version keeps
    // its pid.
    if grant.supervisor != 0 && std::os::unix::process::parent_id() != grant.supervisor {
        tracing::warn!(
            supervisor = grant.supervisor,
            "the supervisor has gone; so does this agent"
        );
        return ExitCode::SUCCESS;
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

fn upgrade_verb(config: &Config, wanted: upgrade::Wanted<'_>, json: bool) -> ExitCode {
    match upgrade::upgrade(config, wanted, |step| eprintln!("{step}")) {
        Ok(version) => {
            println!("version {version} has this machine");
            ExitCode::SUCCESS
        }
        Err(error) if json => {
            let (code, message) = (error.code(), telemetry::Chain(&error).to_string());
            println!(
                "{}",
                serde_json::json!({ "code": code, "message": message })
            );
            ExitCode::FAILURE
        }
        Err(error) => fail(&error),
    }
}

fn check_verb(config: &Config) -> ExitCode {
    match upgrade::check_here(config) {
        Ok(()) => {
            println!("fairlead-agent {}", fairlead_protocol::software::version());
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
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
    if status::print(config) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
