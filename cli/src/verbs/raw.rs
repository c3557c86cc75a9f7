//! `version`, `completion`, and `api`: any request, for what has no verb yet.

use std::io::Read;
use std::time::Duration;

use clap::CommandFactory;
use fairlead_api::types::Status;
use reqwest::Method;

use super::Context;
use crate::args::{Api, Cli};
use crate::exit::{Exit, Failure};
use crate::output::{Format, clean};

/// How long `version` waits for the server's.
const SERVER_VERSION_WITHIN: Duration = Duration::from_secs(3);

/// `fairlead version`
pub(crate) async fn version(context: &Context) -> Result<Exit, Failure> {
    let client = fairlead_protocol::software::version();
    let server = match context.client() {
        Ok(client) => {
            let asked = client.get::<Status>(&["status"], &[]);
            match tokio::time::timeout(SERVER_VERSION_WITHIN, asked).await {
                Ok(Ok(status)) => Ok(status.version),
                Ok(Err(failure)) => Err(failure.message),
                Err(_) => Err("it does not answer".to_owned()),
            }
        }
        Err(failure) => Err(failure.message),
    };
    let value = serde_json::json!({ "client": client, "server": server.as_ref().ok() });
    context.out.data(&value, |_| {
        let server = match &server {
            Ok(version) => clean(version).into_owned(),
            Err(why) => format!("not known ({})", clean(why)),
        };
        format!("fairlead {client}\nserver {server}\n")
    })?;
    Ok(Exit::Ok)
}

/// `fairlead completion`
pub(crate) fn completion(context: &Context, shell: clap_complete::Shell) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "fairlead", &mut script);
    context.out.write(&script)?;
    Ok(Exit::Ok)
}

/// `fairlead api`
pub(crate) async fn api(context: &Context, args: Api) -> Result<Exit, Failure> {
    let method = Method::from_bytes(args.method.to_ascii_uppercase().as_bytes())
        .map_err(|_| Failure::usage(format!("{:?} is not an HTTP method", args.method)))?;
    let path = path(&args.path)?;
    let body = match args.data.as_deref() {
        None => None,
        Some("-") => {
            let mut body = Vec::new();
            std::io::stdin()
                .lock()
                .read_to_end(&mut body)
                .map_err(|e| Failure::local("cannot read standard input", &e))?;
            Some(body)
        }
        Some(text) => match text.strip_prefix('@') {
            Some(file) => Some(
                std::fs::read(file)
                    .map_err(|e| Failure::local(&format!("cannot read {file}"), &e))?,
            ),
            None => Some(text.as_bytes().to_vec()),
        },
    };
    let answer = context.client()?.raw(method, &path, body).await?;
    match serde_json::from_slice::<serde_json::Value>(&answer) {
        Ok(value) if context.out.stdout_tty || context.out.format == Format::Yaml => {
            context.out.structured(&value)?;
        }
        _ if context.out.stdout_tty => {
            let text = crate::output::terminal::Filter::default().pass(&answer);
            context.out.write(text.as_bytes())?;
        }
        _ => context.out.write(&answer)?,
    }
    Ok(Exit::Ok)
}

/// The path from the root.
fn path(text: &str) -> Result<String, Failure> {
    let text = text.trim_start_matches('/');
    let first = text.split(['/', '?']).next().unwrap_or_default();
    if text.contains("..") || text.contains("://") {
        return Err(Failure::usage(format!("{text:?} is not a path of the API")));
    }
    Ok(match first {
        "api" | "healthz" | "readyz" | "metrics" => format!("/{text}"),
        _ => format!("/api/v1/{text}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_below_the_api_unless_they_say_otherwise() {
        assert_eq!(path("/status").unwrap(), "/api/v1/status");
        assert_eq!(path("hosts?x=1").unwrap(), "/api/v1/hosts?x=1");
        assert_eq!(path("/api/v1/hosts").unwrap(), "/api/v1/hosts");
        assert_eq!(path("healthz").unwrap(), "/healthz");
        assert!(path("//evil.example/").unwrap().starts_with("/api/v1/"));
        assert!(path("https://evil.example").is_err());
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
