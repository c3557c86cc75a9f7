//! `login`: proves a token (or claims a new server by its setup link), then saves it.

use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Mutex};

use fairlead_api::types::{NewApiToken, SetupRequest, WhoAmI};
use reqwest::Url;

use super::Context;
use crate::args::Login;
use crate::client::Client;
use crate::config::{self, Saved, Settings, Token};
use crate::exit::{Exit, Failure};
use crate::output::{clean, human, say};
use crate::tls::{self, Trust};

/// Longest token or link that is read from a file or standard input.
const SECRET_BYTES_MAX: u64 = 4096;

/// What is logged in to.
enum Place {
    /// A server that the token is for.
    Server(Url),
    /// A new one, and the secret of its setup link.
    New(Url, String),
}

/// `fairlead login`
pub(crate) async fn login(context: &Context, args: Login) -> Result<Exit, Failure> {
    let place = place(&args)?;
    let env = &config::process_env;
    let path = config::path(env)?;
    let found = Arc::new(Mutex::new(None));
    let (trust, mut ca_pem) = match (&args.ca, &args.ca_fingerprint) {
        (Some(file), _) => Trust::from_file(file, "--ca").map(|(trust, pem)| (trust, Some(pem)))?,
        (None, Some(text)) => (
            Trust::Fingerprint(tls::fingerprint(text)?, Arc::clone(&found)),
            None,
        ),
        (None, None) => match env("FAIRLEAD_CA") {
            Some(file) => Trust::from_file(Path::new(&file), "FAIRLEAD_CA")
                .map(|(trust, pem)| (trust, Some(pem)))?,
            None => (Trust::Platform, None),
        },
    };
    let is_new = matches!(place, Place::New(..));
    let (url, token) = match place {
        Place::Server(url) => (url, given_token(args.token.as_deref(), env)?),
        Place::New(url, secret) => {
            let settings = Settings {
                url: url.clone(),
                token: None,
                trust: trust.clone(),
            };
            let body = SetupRequest {
                secret,
                name: args.name,
            };
            let made: NewApiToken = Client::new(settings)?.post(&["setup"], &body).await?;
            (url, Token::parse(&made.token, "the server's answer")?)
        }
    };
    let settings = Settings {
        url: url.clone(),
        token: Some(token.clone()),
        trust,
    };
    let client = Client::new(settings)?;
    if ca_pem.is_none() {
        ca_pem = found_ca(&found);
    }
    let saved = |ca_pem: Option<String>| Saved {
        url: url.as_str().trim_end_matches('/').to_owned(),
        token: token.reveal().to_owned(),
        ca_pem,
    };
    if is_new {
        // A claimed server's token exists only here: it is saved before anything else can fail.
        config::save(&path, &saved(ca_pem.clone()))?;
    }
    let me: WhoAmI = client.get(&["whoami"], &[]).await?;
    config::save(&path, &saved(ca_pem.or_else(|| found_ca(&found))))?;
    let permissions: Vec<String> = me
        .permissions
        .iter()
        .map(super::token::permission_name)
        .collect();
    say(&format!(
        "logged in to {} as {} (may: {}{})",
        clean(url.as_str().trim_end_matches('/')),
        clean(&me.name),
        permissions.join(", "),
        me.expires_at
            .map(|at| format!("; ends {}", human::ago(at, jiff::Timestamp::now())))
            .unwrap_or_default(),
    ));
    if context.out.is_structured() {
        context.out.structured(&me)?;
    }
    Ok(Exit::Ok)
}

fn found_ca(found: &Mutex<Option<rustls_pki_types::CertificateDer<'static>>>) -> Option<String> {
    found.lock().ok()?.as_ref().map(tls::to_pem)
}

/// The server, or the setup link from where `--setup-link` says it is. Never from the command line itself:
/// everybody on the machine could see it there, and claim the server first.
fn place(args: &Login) -> Result<Place, Failure> {
    let Some(source) = args.setup_link.as_deref() else {
        let text = args.url.as_deref().unwrap_or_default();
        if config::is_api_token(text) || config::is_join_token(text) {
            return Err(
                Failure::usage("the first argument is the server's URL, not a token")
                    .hint("fairlead login URL --token - reads the token from standard input"),
            );
        }
        if config::setup_secret(text).is_some() {
            return Err(seen_by_all());
        }
        return config::server_url(text).map(Place::Server);
    };
    // Without its scheme it could as well be a file's path.
    let is_link = source.contains("://") && config::setup_secret(source).is_some();
    let (name, text) = if is_link {
        return Err(seen_by_all());
    } else if source == "-" {
        let name = "standard input";
        (name, read_secret(&mut std::io::stdin().lock(), name)?)
    } else {
        (source, read_link(source)?)
    };
    let link = text.trim();
    match config::setup_secret(link) {
        Some(secret) => Ok(Place::New(config::server_url(link)?, secret)),
        None => Err(Failure::usage(format!("there is no setup link in {name}"))
            .hint("it has the form https://…/setup/…; the controller's log says where it lies")),
    }
}

fn seen_by_all() -> Failure {
    Failure::usage("a setup link on the command line can be seen by everybody here").hint(
        "fairlead login --setup-link - reads it from standard input, --setup-link FILE from a file; \
         whoever has seen this one can use it until it ends: restart the controller, which makes another",
    )
}

fn read_link(file: &str) -> Result<String, Failure> {
    let mut open = std::fs::File::open(file).map_err(|error| {
        let failure = Failure::local(&format!("cannot read {file}"), &error);
        match error.kind() {
            std::io::ErrorKind::NotFound => failure.hint(
                "the controller writes it when it starts without an admin, and removes it when one has \
                 claimed it",
            ),
            std::io::ErrorKind::PermissionDenied => {
                failure.hint("it is for the controller's user only: run this as root (sudo)")
            }
            _ => failure,
        }
    })?;
    read_secret(&mut open, file)
}

fn read_secret(reader: &mut dyn Read, name: &str) -> Result<String, Failure> {
    let mut text = String::new();
    reader
        .take(SECRET_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(|e| Failure::local(&format!("cannot read {name}"), &e))?;
    Ok(text)
}

/// The token, from where `--token` says it is. Never from the command line itself: everybody on
/// the machine could see it there.
fn given_token(source: Option<&str>, env: config::Env<'_>) -> Result<Token, Failure> {
    let read = |reader: &mut dyn Read, name: &str| Token::parse(&read_secret(reader, name)?, name);
    match source {
        Some(text) if config::is_api_token(text) || config::is_join_token(text) => {
            Token::parse(text, "--token")?;
            Err(
                Failure::usage("a token on the command line can be seen by everybody here").hint(
                    "fairlead login URL --token - reads it from standard input; revoke this one",
                ),
            )
        }
        Some("env") => match env("FAIRLEAD_TOKEN") {
            Some(text) => Token::parse(&text, "FAIRLEAD_TOKEN"),
            None => Err(Failure::usage("FAIRLEAD_TOKEN is not set")),
        },
        Some("-") => read(&mut std::io::stdin().lock(), "standard input"),
        Some(file) => {
            let mut open = std::fs::File::open(file)
                .map_err(|e| Failure::local(&format!("cannot read {file}"), &e))?;
            read(&mut open, file)
        }
        None => match env("FAIRLEAD_TOKEN") {
            Some(text) => Token::parse(&text, "FAIRLEAD_TOKEN"),
            None => Err(Failure::usage("no API token was given").hint(
                "--token - reads it from standard input, --token FILE from a file; \
                 a new server is claimed by its setup link: fairlead login --setup-link FILE",
            )),
        },
    }
}
