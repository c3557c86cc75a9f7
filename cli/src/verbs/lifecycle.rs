//! The changing verbs, and `ping`: each becomes one command per target.

use std::path::Path;

use fairlead_api::types::{Action, Command, CommandRequest, ContainerSpec};

use super::Context;
use super::act::{self, act, result_line};
use crate::args::{Containers, ImageVerb, Kill, Ping, Pull, Rm, RunArgs, Start, Stop};
use crate::config::process_env;
use crate::exit::{Exit, Failure};
use crate::output::{clean, human, say};
use crate::run_flags::{Detached, Surroundings};

/// `fairlead run`
pub(crate) async fn run(context: &Context, args: RunArgs) -> Result<Exit, Failure> {
    let flags = &args.flags;
    if flags.detached() == Detached::No && !args.waiting.no_wait {
        say(
            "note: Fairlead runs containers detached (-d says so without this note); \
             follow its output: fairlead logs -f NAME",
        );
    }
    make(
        context,
        &args,
        |spec| Action::Run {
            spec: Box::new(spec),
        },
        |c| result_line(c, "running"),
    )
    .await
}

/// `fairlead create`
pub(crate) async fn create(context: &Context, args: RunArgs) -> Result<Exit, Failure> {
    make(
        context,
        &args,
        |spec| Action::Create {
            spec: Box::new(spec),
        },
        |c| result_line(c, "created"),
    )
    .await
}

async fn make(
    context: &Context,
    args: &RunArgs,
    action: fn(ContainerSpec) -> Action,
    line: fn(&Command) -> String,
) -> Result<Exit, Failure> {
    let is_run = matches!(action(ContainerSpec::default()), Action::Run { .. });
    let spec = args.flags.spec(
        is_run,
        &Surroundings {
            env: &process_env,
            read: &|path: &Path| std::fs::read_to_string(path),
        },
    )?;
    let request = act::request(args.host.clone(), action(spec), args.waiting.deadline)?;
    let Some(file) = args.flags.cidfile() else {
        return act(context, vec![request], &args.waiting, line).await;
    };
    let id_file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&file)
        .map_err(|e| Failure::local(&format!("cannot make the file {file} (--cidfile)"), &e))?;
    let made = with_cidfile(context, request, args, id_file, line).await;
    if made.is_err() {
        // Docker leaves no empty file behind either; a failure to remove it changes nothing.
        drop(std::fs::remove_file(&file));
    }
    made
}

async fn with_cidfile(
    context: &Context,
    request: CommandRequest,
    args: &RunArgs,
    mut file: std::fs::File,
    line: fn(&Command) -> String,
) -> Result<Exit, Failure> {
    use std::io::Write;
    if args.waiting.no_wait {
        return Err(Failure::usage(
            "--cidfile needs the result; --no-wait does not wait for it",
        ));
    }
    let command = act::until_final(context, &context.client()?, request).await?;
    if context.out.is_structured() {
        context.out.structured(&command)?;
    }
    if let Some(failure) = Failure::of_command(&command) {
        return Err(failure);
    }
    file.write_all(command.container_id.as_bytes())
        .map_err(|e| Failure::local("cannot write the --cidfile", &e))?;
    if !context.out.is_structured() {
        context
            .out
            .write(format!("{}\n", line(&command)).as_bytes())?;
    }
    Ok(Exit::Ok)
}

/// One request per container.
fn requests(
    on: &Containers,
    action: impl Fn(String) -> Action,
) -> Result<Vec<CommandRequest>, Failure> {
    on.containers
        .iter()
        .map(|text| {
            let target = act::target(text, on.host.as_deref())?;
            let request = act::request(target.host, action(target.name), on.waiting.deadline)?;
            Ok(act::only_if(request, on.if_id.as_deref()))
        })
        .collect()
}

/// `fairlead start`
pub(crate) async fn start(context: &Context, args: Start) -> Result<Exit, Failure> {
    let requests = requests(&args.on, |container| Action::Start { container })?;
    act(context, requests, &args.on.waiting, |c| {
        result_line(c, "started")
    })
    .await
}

/// `fairlead stop`
pub(crate) async fn stop(context: &Context, args: Stop) -> Result<Exit, Failure> {
    let requests = requests(&args.on, |container| Action::Stop {
        container,
        grace_s: args.timeout,
        signal: args.signal.clone(),
    })?;
    act(context, requests, &args.on.waiting, |c| {
        result_line(c, "stopped")
    })
    .await
}

/// `fairlead restart`
pub(crate) async fn restart(context: &Context, args: Stop) -> Result<Exit, Failure> {
    let requests = requests(&args.on, |container| Action::Restart {
        container,
        grace_s: args.timeout,
        signal: args.signal.clone(),
    })?;
    act(context, requests, &args.on.waiting, |c| {
        result_line(c, "restarted")
    })
    .await
}

/// `fairlead kill`
pub(crate) async fn kill(context: &Context, args: Kill) -> Result<Exit, Failure> {
    let requests = requests(&args.on, |container| Action::Kill {
        container,
        signal: args.signal.clone(),
    })?;
    act(context, requests, &args.on.waiting, |c| {
        result_line(c, "signalled")
    })
    .await
}

/// `fairlead rm`
pub(crate) async fn rm(context: &Context, args: Rm) -> Result<Exit, Failure> {
    let requests = requests(&args.on, |container| Action::Remove {
        container,
        force: args.force,
        volumes: args.volumes,
    })?;
    act(context, requests, &args.on.waiting, |c| {
        result_line(c, "removed")
    })
    .await
}

/// One request per host; without hosts one that lets the server choose where there is one only.
fn on_hosts(
    hosts: Vec<String>,
    deadline: Option<std::time::Duration>,
    action: &Action,
) -> Result<Vec<CommandRequest>, Failure> {
    if hosts.is_empty() {
        return Ok(vec![act::request(None, action.clone(), deadline)?]);
    }
    hosts
        .into_iter()
        .map(|host| act::request(Some(host), action.clone(), deadline))
        .collect()
}

/// `fairlead pull`
pub(crate) async fn pull(context: &Context, args: Pull) -> Result<Exit, Failure> {
    let action = Action::Pull {
        image: args.image,
        platform: args.platform,
    };
    let requests = on_hosts(args.hosts, args.waiting.deadline, &action)?;
    act(context, requests, &args.waiting, |c| {
        let time = act::timing(c)
            .map(|time| format!("  {time}"))
            .unwrap_or_default();
        format!(
            "{}  {} pulled{time}   command {}",
            clean(&c.host),
            clean(&c.target),
            crate::exit::short(&c.id)
        )
    })
    .await
}

/// `fairlead image …`
pub(crate) async fn image(context: &Context, verb: ImageVerb) -> Result<Exit, Failure> {
    let ImageVerb::Prune {
        all,
        force: _,
        hosts,
        waiting,
    } = verb;
    let requests = on_hosts(hosts, waiting.deadline, &Action::PruneImages { all })?;
    act(context, requests, &waiting, |c| result_line(c, &pruned(c))).await
}

/// What a prune took away, from its output: a list of images and the bytes freed.
fn pruned(command: &Command) -> String {
    let object = command
        .output
        .as_ref()
        .and_then(|output| output.as_object());
    let images = object.and_then(|o| o.values().find_map(|value| value.as_array()));
    let freed = object.and_then(|o| o.values().find_map(serde_json::Value::as_u64));
    match (images, freed) {
        (Some(images), freed) => format!(
            "removed {}, {} freed",
            human::count(images.len() as u64, "image"),
            human::bytes(freed.unwrap_or(0))
        ),
        _ => "pruned".to_owned(),
    }
}

/// `fairlead ping`
pub(crate) async fn ping(context: &Context, args: Ping) -> Result<Exit, Failure> {
    let requests = on_hosts(args.hosts, args.waiting.deadline, &Action::Ping {})?;
    act(context, requests, &args.waiting, |c| {
        result_line(c, "answered")
    })
    .await
}
