//! The verbs, one module per noun, and what they share.

use std::sync::{Arc, Mutex};

use crate::args::{Cli, Verb};
use crate::client::Client;
use crate::config;
use crate::exit::{Exit, Failure, short};
use crate::output::{Output, clean, report, say};

mod login;
mod fleet;
pub(crate) mod host_add;
mod host_check;
mod token;
mod region;
mod rollout;
mod agent;
mod container;
mod act;
mod lifecycle;
mod attach;
mod process;
mod shell;
mod terminal;
mod copy;
mod command;
mod journal;
mod raw;
mod self_update;
mod dev;

/// What every verb gets.
pub(crate) struct Context {
    /// Where data and talk go.
    pub(crate) out: Output,
    /// What goes on when this process ends early.
    pub(crate) open: Arc<Open>,
}

impl Context {
    /// A client for the server that environment and login name.
    pub(crate) fn client(&self) -> Result<Client, Failure> {
        let settings = config::settings(&config::process_env)?;
        if settings.token.is_none() {
            return Err(Failure::new(
                Exit::NotAllowed,
                format!(
                    "no API token for {}",
                    settings.url.as_str().trim_end_matches('/')
                ),
            )
            .hint("fairlead login URL, or set FAIRLEAD_TOKEN"));
        }
        Client::new(settings)
    }
}

/// What goes on without this process: commands that were handed over and whose end it has not seen, and the rollout
/// that it follows.
#[derive(Debug, Default)]
pub(crate) struct Open {
    commands: Mutex<Vec<String>>,
    rollout: Mutex<Option<String>>,
}

impl Open {
    /// From now on `id` may go on without this process.
    pub(crate) fn add(&self, id: &str) {
        if let Ok(mut ids) = self.commands.lock() {
            ids.push(id.to_owned());
        }
    }

    /// `id` has ended, or never was.
    pub(crate) fn remove(&self, id: &str) {
        if let Ok(mut ids) = self.commands.lock() {
            ids.retain(|open| open != id);
        }
    }

    /// That rollout is followed; `None`: none is any more.
    pub(crate) fn follow_rollout(&self, id: Option<&str>) {
        if let Ok(mut followed) = self.rollout.lock() {
            *followed = id.map(str::to_owned);
        }
    }

    /// What is said at Ctrl-C; `None` when nothing goes on.
    pub(crate) fn farewell(&self) -> Option<String> {
        if let Some(id) = self.rollout.lock().ok()?.as_deref() {
            let id = short(id);
            return Some(format!(
                "interrupted here; the rollout goes on\n\
                 watch it: fairlead agent upgrade watch {id}\n\
                 stop it: fairlead agent upgrade pause {id}, or abort {id}"
            ));
        }
        let ids = self.commands.lock().ok()?;
        let ids: Vec<&str> = ids.iter().map(|id| short(id)).collect();
        match ids.as_slice() {
            [] => None,
            [id] => Some(format!(
                "interrupted here; command {id} goes on\n\
                 watch it: fairlead command watch {id}\n\
                 withdraw it, if it has not begun: fairlead command cancel {id}"
            )),
            ids => {
                let ids = ids.join(" ");
                Some(format!(
                    "interrupted here; these commands go on: {ids}\n\
                     watch one: fairlead command watch ID\n\
                     withdraw those that have not begun: fairlead command cancel {ids}"
                ))
            }
        }
    }
}

/// Does what was typed.
pub(crate) async fn run(cli: Cli) -> Result<Exit, Failure> {
    let context = Context {
        out: Output::of_process(cli.output),
        open: Arc::default(),
    };
    // `dev` has processes to stop first and sees to its signals itself.
    if !matches!(cli.verb, Verb::Dev(_)) {
        say_farewell(Arc::clone(&context.open));
    }
    // Boxed: the futures of the verbs are large and of very different size.
    Box::pin(dispatch(&context, cli.verb)).await
}

/// At Ctrl-C says what goes on, and ends the process.
fn say_farewell(open: Arc<Open>) {
    // Owned by the process: it lives until the verb is done and has nothing to put away.
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            if let Some(text) = open.farewell() {
                say(&text);
            }
            std::process::exit(Exit::Interrupted.code().into());
        }
    });
}

async fn dispatch(context: &Context, verb: Verb) -> Result<Exit, Failure> {
    match verb {
        Verb::Dev(args) => dev::dev(context, args).await,
        Verb::Login(args) => login::login(context, args).await,
        Verb::Status => fleet::status(context).await,
        Verb::Host(verb) => fleet::host(context, verb).await,
        Verb::JoinToken(verb) => token::join(context, verb).await,
        Verb::ApiToken(verb) => token::api(context, verb).await,
        Verb::Audit(args) => journal::audit(context, args).await,
        Verb::Region(verb) => region::region(context, verb).await,
        Verb::Agent(verb) => agent::agent(context, verb).await,
        Verb::Ps(args) => container::ps(context, args).await,
        Verb::Run(args) => lifecycle::run(context, args).await,
        Verb::Create(args) => lifecycle::create(context, args).await,
        Verb::Start(args) => lifecycle::start(context, args).await,
        Verb::Stop(args) => lifecycle::stop(context, args).await,
        Verb::Restart(args) => lifecycle::restart(context, args).await,
        Verb::Kill(args) => lifecycle::kill(context, args).await,
        Verb::Rm(args) => lifecycle::rm(context, args).await,
        Verb::Pull(args) => lifecycle::pull(context, args).await,
        Verb::Image(verb) => lifecycle::image(context, verb).await,
        Verb::Inspect(args) => container::inspect(context, args).await,
        Verb::Ping(args) => lifecycle::ping(context, args).await,
        Verb::Command(verb) => command::command(context, verb).await,
        Verb::Events(args) => journal::events(context, args).await,
        Verb::Version => raw::version(context).await,
        Verb::SelfUpdate(args) => self_update::self_update(context, args).await,
        Verb::Completion { shell } => raw::completion(context, shell),
        Verb::Api(args) => raw::api(context, args).await,
        Verb::Logs(args) => process::logs(context, args).await,
        Verb::Exec(args) if args.tty => shell::exec(context, args).await,
        Verb::Exec(args) => process::exec(context, args).await,
        Verb::Shell(args) => shell::shell(context, args).await,
        Verb::Terminal(verb) => terminal::terminal(context, verb).await,
        Verb::Cp(args) => copy::cp(context, args).await,
    }
}

/// Does the same for each, one after the other, and goes on when one fails.
async fn each(
    names: Vec<String>,
    act: impl AsyncFn(&str) -> Result<(), Failure>,
) -> Result<Exit, Failure> {
    let one = names.len() == 1;
    let mut exit = Exit::Ok;
    for name in &names {
        match act(name).await {
            Ok(()) => {}
            Err(failure) if one => return Err(failure),
            Err(failure) => {
                report(&failure);
                exit = Exit::SomeFailed;
            }
        }
    }
    Ok(exit)
}

/// Rows of name and value; those without a value are left out.
fn facts(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    rows.iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| format!("{name:width$}  {}\n", clean(value)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ctrl_c_says_what_goes_on() {
        let open = Open::default();
        assert_eq!(open.farewell(), None);
        open.add("7q3k9m2x7q3k9m2x7q3k9m2x70");
        let text = open.farewell().unwrap();
        assert!(text.contains("command 7q3k9m goes on"), "{text}");
        assert!(text.contains("fairlead command cancel 7q3k9m"), "{text}");
        open.add("aaaaaabbbb");
        assert!(
            open.farewell()
                .unwrap()
                .contains("these commands go on: 7q3k9m aaaaaa")
        );
        open.remove("7q3k9m2x7q3k9m2x7q3k9m2x70");
        open.remove("aaaaaabbbb");
        assert_eq!(open.farewell(), None);
    }
}
