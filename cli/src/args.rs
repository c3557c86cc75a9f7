//! What may be typed. Words are Docker's where Docker has them.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::output::Format;
use crate::quantities::duration;
use crate::run_flags::RunFlags;

mod agent;
mod self_update;
mod terminal;

pub(crate) use agent::{AgentVerb, Upgrade, UpgradeVerb};
pub(crate) use self_update::SelfUpdate;
pub(crate) use terminal::{Shell, TerminalVerb};

/// See and steer containers on machines that nobody can log in to.
#[derive(Debug, Parser)]
#[command(
    name = "fairlead",
    version = fairlead_protocol::software::version(),
    arg_required_else_help = true,
    disable_help_subcommand = true,
    after_help = "A container is HOST/NAME, a NAME that is unique, or the beginning of its id.\n\
        FAIRLEAD_URL, FAIRLEAD_TOKEN (an API token, FA1…) and FAIRLEAD_CA (a PEM file) say where to \
        and as whom; otherwise what `fairlead login` saved.\n\
        Exit codes: 0 ok, 1 failed, 2 usage, 3 not found, 4 not allowed, 5 conflict, 6 some hosts \
        failed, 7 expired, 8 unreachable, 130 interrupted; exec passes the remote code on."
)]
pub(crate) struct Cli {
    /// How data is written
    #[arg(
        short = 'o',
        long = "output",
        global = true,
        value_enum,
        value_name = "FORMAT",
        default_value = "table"
    )]
    pub(crate) output: Format,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Start a controller, an access server and an agent on this machine, and keep them alive
    Dev(Dev),
    /// Log in to a server, or claim a new one by its setup link
    Login(Login),
    /// The whole fleet in one glance
    Status,
    /// Hosts
    #[command(subcommand)]
    Host(HostVerb),
    /// Join tokens (FL1…): what lets a machine join
    #[command(subcommand)]
    JoinToken(JoinTokenVerb),
    /// API tokens (FA1…): what lets a program use the API
    #[command(subcommand)]
    ApiToken(ApiTokenVerb),
    /// Who did what
    Audit(AuditArgs),
    /// Regions
    #[command(subcommand)]
    Region(RegionVerb),
    /// Versions of the agents: pushed, brought to the hosts, and the keys that sign them
    #[command(subcommand)]
    Agent(AgentVerb),
    /// Containers
    Ps(Ps),
    /// Make a container and start it
    Run(RunArgs),
    /// Make a container
    Create(RunArgs),
    /// Start containers
    Start(Start),
    /// Stop containers
    Stop(Stop),
    /// Stop and start containers
    Restart(Stop),
    /// Send a signal to containers
    Kill(Kill),
    /// Remove containers
    Rm(Rm),
    /// Pull an image
    Pull(Pull),
    /// Images
    #[command(subcommand)]
    Image(ImageVerb),
    /// The engine's own description of containers or images
    Inspect(Inspect),
    /// A container's log
    Logs(Logs),
    /// Run a process in a container
    Exec(Exec),
    /// Open a shell in a container, or on a host itself, in this terminal
    Shell(Shell),
    /// Terminals that are open, and recordings of them
    #[command(subcommand)]
    Terminal(TerminalVerb),
    /// Copy files into or out of a container
    Cp(Cp),
    /// Ask agents for a sign of life
    Ping(Ping),
    /// Commands and what became of them
    #[command(subcommand)]
    Command(CommandVerb),
    /// What happened on the hosts
    Events(Events),
    /// The versions of this program and of the server
    Version,
    /// Make this program another version of itself, signed by a key that is trusted here
    SelfUpdate(SelfUpdate),
    /// Completions for a shell
    Completion {
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Any request to the API
    Api(Api),
}

/// `fairlead dev`
#[derive(Debug, Args)]
pub(crate) struct Dev {
    /// Where all of it keeps its data; used again at the next start
    #[arg(long)]
    pub(crate) data_dir: PathBuf,
    /// First of the four ports that are used
    #[arg(long, value_name = "PORT", default_value_t = 7400,
          value_parser = clap::value_parser!(u16).range(1024..=65_000))]
    pub(crate) ports_from: u16,
    /// The container engine: docker, or simulated (containers in memory only)
    #[arg(long, default_value = "docker", value_parser = ["docker", "simulated"])]
    pub(crate) engine: String,
    /// What the host is called [default: this machine's name]
    #[arg(long)]
    pub(crate) host_name: Option<String>,
}

/// `fairlead login`
#[derive(Debug, Args)]
pub(crate) struct Login {
    /// The server
    #[arg(required_unless_present = "setup_link")]
    pub(crate) url: Option<String>,
    /// Claim a new server: where its setup link is, `-` (standard input) or a file
    #[arg(long, value_name = "-|FILE", conflicts_with_all = ["url", "token"])]
    pub(crate) setup_link: Option<String>,
    /// Where the API token is: `-` (standard input), `env` (FAIRLEAD_TOKEN) or a file
    #[arg(long, value_name = "-|env|FILE")]
    pub(crate) token: Option<String>,
    /// PEM file of the server's CA
    #[arg(long, value_name = "FILE", conflicts_with = "ca_fingerprint")]
    pub(crate) ca: Option<PathBuf>,
    /// SHA-256 of the server's CA certificate, which the server then shows
    #[arg(long, value_name = "SHA256")]
    pub(crate) ca_fingerprint: Option<String>,
    /// Name of the admin token that a setup link makes
    #[arg(long, default_value = "admin")]
    pub(crate) name: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum HostVerb {
    /// Print the line that makes a machine a host, and follow what becomes of it
    Add(crate::verbs::host_add::HostAdd),
    /// All hosts
    Ls,
    /// One host in full
    Show {
        /// Name, id or beginning of the id
        host: String,
    },
    /// Say what a restart of the host's engine would do, before somebody does it
    ///
    /// The agent looks at engine, live-restore, disk, kernel limits and clock. Ends with 1 when something is bad.
    Check {
        /// Name, id or beginning of the id
        host: String,
        /// Time after which it is not begun any more [default: 5m]
        #[arg(long, value_parser = duration, value_name = "DURATION")]
        deadline: Option<Duration>,
    },
    /// Let hosts go on that are held: clones, and those that look like an older copy of themselves
    Approve {
        /// Names, ids or beginnings of ids
        #[arg(required = true)]
        hosts: Vec<String>,
    },
    /// Revoke hosts' identities; their containers go on
    Rm {
        /// Names, ids or beginnings of ids
        #[arg(
            required_unless_present = "offline_for",
            conflicts_with = "offline_for"
        )]
        hosts: Vec<String>,
        /// All that have not been heard for so long (30d): machines that never return
        #[arg(long, value_parser = duration)]
        offline_for: Option<Duration>,
        /// Only say which that would be
        #[arg(long, requires = "offline_for")]
        dry_run: bool,
        /// The agent takes itself off its machine first; one that is away is waited for until the deadline
        #[arg(long, conflicts_with = "offline_for")]
        uninstall: bool,
        /// With --uninstall: do not wait for the agents' answers
        #[arg(long, requires = "uninstall")]
        no_wait: bool,
        /// With --uninstall: time after which it is not begun any more [default: 5m]
        #[arg(long, value_parser = duration, value_name = "DURATION", requires = "uninstall")]
        deadline: Option<Duration>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum JoinTokenVerb {
    /// Make one; it is shown once
    Create {
        /// The region that hosts join; needed where there are several
        #[arg(long)]
        region: Option<String>,
        /// Labels that the hosts get
        #[arg(short, long = "label", value_name = "KEY=VALUE")]
        labels: Vec<String>,
        /// Time until it ends [default: 1h]
        #[arg(long, value_parser = duration)]
        ttl: Option<Duration>,
        /// How many hosts it lets in [default: 1]
        #[arg(long)]
        uses: Option<u32>,
    },
    /// All of them, without their secrets
    Ls,
    /// Take it back
    Revoke {
        /// Ids
        #[arg(required = true)]
        ids: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ApiTokenVerb {
    /// Make one; it is shown once
    Create {
        /// What it is for
        name: String,
        /// What it may do: read, operate, exec, shell, host-shell, copy, upgrade, admin (all but host-shell)
        #[arg(
            short,
            long = "permission",
            value_delimiter = ',',
            default_value = "read"
        )]
        permissions: Vec<String>,
        /// Only hosts of these regions
        #[arg(long = "region", value_name = "REGION")]
        regions: Vec<String>,
        /// Only hosts that carry all of these labels
        #[arg(short, long = "label", value_name = "KEY=VALUE")]
        labels: Vec<String>,
        /// Time until it ends by itself [default: until revoked]
        #[arg(long, value_parser = duration)]
        ttl: Option<Duration>,
    },
    /// All of them, without their secrets
    Ls,
    /// Take it back; what runs with it is cut within seconds
    Revoke {
        /// Ids
        #[arg(required = true)]
        ids: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct AuditArgs {
    /// How many rows
    #[arg(short = 'n', long, default_value_t = 50)]
    pub(crate) limit: u32,
    /// Only rows before this number
    #[arg(long, value_name = "SEQ")]
    pub(crate) before: Option<i64>,
    /// Only this action, for instance command.restart
    #[arg(long)]
    pub(crate) action: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RegionVerb {
    /// Make a region and what its access server needs to join
    Add {
        /// Lower-case letters, digits and dashes
        name: String,
        /// Time until the access server's join token ends [default: 1h]
        #[arg(long, value_parser = duration)]
        ttl: Option<Duration>,
        /// The region is there, but the keys of its access server are lost: let it join once more
        #[arg(long)]
        again: bool,
    },
    /// All regions
    Ls,
    /// One region in full
    Show { name: String },
}

#[derive(Debug, Args)]
pub(crate) struct Ps {
    /// Stopped ones too
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Only this host
    #[arg(long)]
    pub(crate) host: Option<String>,
    /// Only this Compose project
    #[arg(long)]
    pub(crate) project: Option<String>,
    /// Only the ids
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// HOST/NAME, NAME or the beginning of an id
    pub(crate) name: Option<String>,
}

/// How a command is waited for.
#[derive(Debug, Clone, Args)]
pub(crate) struct Waiting {
    /// Print the command's id and do not wait for its end
    #[arg(long)]
    pub(crate) no_wait: bool,
    /// Time after which it is not begun any more [default: 5m]
    #[arg(long, value_parser = duration, value_name = "DURATION")]
    pub(crate) deadline: Option<Duration>,
}

/// Containers, conditions, waiting.
#[derive(Debug, Args)]
pub(crate) struct Containers {
    /// HOST/NAME, NAME or the beginning of an id
    #[arg(required = true, value_name = "CONTAINER")]
    pub(crate) containers: Vec<String>,
    /// The host, where the containers' names do not say it
    #[arg(long)]
    pub(crate) host: Option<String>,
    /// Only if the container still has this id (12 digits or more)
    #[arg(long, value_name = "ID")]
    pub(crate) if_id: Option<String>,
    #[command(flatten)]
    pub(crate) waiting: Waiting,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The host; not needed where there is only one
    #[arg(long)]
    pub(crate) host: Option<String>,
    #[command(flatten)]
    pub(crate) waiting: Waiting,
    #[command(flatten)]
    pub(crate) flags: RunFlags,
}

#[derive(Debug, Args)]
pub(crate) struct Start {
    #[command(flatten)]
    pub(crate) on: Containers,
}

#[derive(Debug, Args)]
pub(crate) struct Stop {
    /// Seconds before it is killed [default: the container's own, else 10]
    #[arg(short = 't', long, alias = "time", value_name = "SECONDS")]
    pub(crate) timeout: Option<u32>,
    /// First signal [default: the container's own, else TERM]
    #[arg(short, long, default_value = "", hide_default_value = true)]
    pub(crate) signal: String,
    #[command(flatten)]
    pub(crate) on: Containers,
}

#[derive(Debug, Args)]
pub(crate) struct Kill {
    /// The signal [default: KILL]
    #[arg(short, long, default_value = "", hide_default_value = true)]
    pub(crate) signal: String,
    #[command(flatten)]
    pub(crate) on: Containers,
}

#[derive(Debug, Args)]
pub(crate) struct Rm {
    /// Also when it runs
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Its anonymous volumes too
    #[arg(short, long)]
    pub(crate) volumes: bool,
    #[command(flatten)]
    pub(crate) on: Containers,
}

#[derive(Debug, Args)]
pub(crate) struct Pull {
    /// Reference of the image
    pub(crate) image: String,
    /// The hosts; not needed where there is only one
    #[arg(long = "host", value_name = "HOST")]
    pub(crate) hosts: Vec<String>,
    /// os/arch[/variant] [default: the host's]
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(crate) platform: String,
    #[command(flatten)]
    pub(crate) waiting: Waiting,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImageVerb {
    /// Remove unused images
    Prune {
        /// Not only untagged ones
        #[arg(short, long)]
        all: bool,
        /// Docker's word for "do not ask"; nothing is asked here
        #[arg(short, long)]
        force: bool,
        /// The hosts; not needed where there is only one
        #[arg(long = "host", value_name = "HOST")]
        hosts: Vec<String>,
        #[command(flatten)]
        waiting: Waiting,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// HOST/NAME, NAME or the beginning of an id; with --type image a reference
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,
    /// The host, where the names do not say it
    #[arg(long)]
    pub(crate) host: Option<String>,
    /// container or image
    #[arg(long = "type", value_name = "TYPE", default_value = "container",
          value_parser = ["container", "image"])]
    pub(crate) kind: String,
    /// Time after which it is not begun any more [default: 5m]
    #[arg(long, value_parser = duration, value_name = "DURATION")]
    pub(crate) deadline: Option<Duration>,
}

#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// HOST/NAME, NAME or the beginning of an id
    pub(crate) container: String,
    /// The host, where the container's name does not say it
    #[arg(long)]
    pub(crate) host: Option<String>,
    /// Go on as lines appear
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// The last so many lines
    #[arg(short = 'n', long, value_name = "LINES", default_value = "all")]
    pub(crate) tail: String,
    /// Not before: a time, or how long ago
    #[arg(long)]
    pub(crate) since: Option<String>,
    /// Not after: a time, or how long ago
    #[arg(long)]
    pub(crate) until: Option<String>,
    /// Begin each line with its time
    #[arg(short, long)]
    pub(crate) timestamps: bool,
    /// Time after which it is not begun any more [default: 5m]
    #[arg(long, value_parser = duration, value_name = "DURATION")]
    pub(crate) deadline: Option<Duration>,
}

#[derive(Debug, Args)]
pub(crate) struct Exec {
    /// Attach standard input
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// In a terminal, with -i
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Set a variable; KEY alone takes it from here
    #[arg(short, long = "env", value_name = "KEY[=VALUE]")]
    pub(crate) env: Vec<String>,
    /// File of variables
    #[arg(long = "env-file", value_name = "FILE")]
    pub(crate) env_files: Vec<PathBuf>,
    /// USER[:GROUP]
    #[arg(short, long, default_value = "", hide_default_value = true)]
    pub(crate) user: String,
    /// Working directory
    #[arg(short, long, default_value = "", hide_default_value = true)]
    pub(crate) workdir: String,
    /// Extended privileges
    #[arg(long)]
    pub(crate) privileged: bool,
    /// Do not wait for its end
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// The host, where the container's name does not say it
    #[arg(long)]
    pub(crate) host: Option<String>,
    /// Time after which it is not begun any more [default: 5m]
    #[arg(long, value_parser = duration, value_name = "DURATION")]
    pub(crate) deadline: Option<Duration>,
    /// The container, the program and its arguments
    #[arg(required = true, num_args = 2.., trailing_var_arg = true,
          value_names = ["CONTAINER", "COMMAND"])]
    pub(crate) container_and_command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Cp {
    /// HOST/NAME:PATH, a local path, or - (a tar archive on standard input)
    pub(crate) source: String,
    /// HOST/NAME:PATH, a local path, or - (a tar archive on standard output)
    pub(crate) destination: String,
    /// Time after which it is not begun any more [default: 5m]
    #[arg(long, value_parser = duration, value_name = "DURATION")]
    pub(crate) deadline: Option<Duration>,
}

#[derive(Debug, Args)]
pub(crate) struct Ping {
    /// Hosts
    #[arg(required = true)]
    pub(crate) hosts: Vec<String>,
    #[command(flatten)]
    pub(crate) waiting: Waiting,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CommandVerb {
    /// Newest first
    Ls {
        /// Only this host
        #[arg(long)]
        host: Option<String>,
        /// Only in this state
        #[arg(long)]
        state: Option<String>,
        /// Only this container
        #[arg(long)]
        container: Option<String>,
        /// How many
        #[arg(short = 'n', long, default_value_t = 20)]
        limit: u32,
        /// Only those before this number
        #[arg(long)]
        before: Option<i64>,
    },
    /// Its way, station by station
    Show {
        /// Id or its beginning
        id: String,
    },
    /// Follow it until it ends
    Watch {
        /// Id or its beginning
        id: String,
    },
    /// Withdraw it, if it has not begun
    Cancel {
        /// Ids or their beginnings
        #[arg(required = true)]
        ids: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Go on as they happen
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only this host
    #[arg(long)]
    pub(crate) host: Option<String>,
    /// Not before: a time, or how long ago
    #[arg(long)]
    pub(crate) since: Option<String>,
    /// How many
    #[arg(short = 'n', long, default_value_t = 50)]
    pub(crate) limit: u32,
}

#[derive(Debug, Args)]
pub(crate) struct Api {
    /// GET, POST, DELETE, …
    pub(crate) method: String,
    /// Below /api/v1, or from the root when it begins with /api, /healthz, /readyz or /metrics
    pub(crate) path: String,
    /// Body: JSON, @FILE, or - for standard input
    #[arg(short, long)]
    pub(crate) data: Option<String>,
}
