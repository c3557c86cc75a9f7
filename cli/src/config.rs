//! Which server, with which token, trusting which CA: the environment, else what `fairlead login`
//! saved. The saved token goes to the saved server only, never to another one named by the
//! environment.

use std::io::Write;
use std::path::{Path, PathBuf};

use reqwest::Url;
use serde::{Deserialize, Serialize};

use crate::exit::{Exit, Failure};
use crate::tls::Trust;

/// Begins every API token.
const API_TOKEN: &str = "FA1";
/// Begins every join token.
const JOIN_TOKEN: &str = "FL1";

/// The file that `login` writes, readable by its owner only.
#[derive(Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Saved {
    /// The server.
    pub(crate) url: String,
    /// The API token.
    pub(crate) token: String,
    /// The server's CA, PEM; absent: what the platform trusts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ca_pem: Option<String>,
}

/// An API token; it has no way to be printed by accident.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Token(String);

impl Token {
    /// The token in `text`, which came from `source`.
    pub(crate) fn parse(text: &str, source: &str) -> Result<Self, Failure> {
        let text = text.trim();
        if text.starts_with(JOIN_TOKEN) {
            return Err(Failure::usage(format!(
                "{source} holds a join token (FL1…): it lets a machine join and opens nothing here"
            ))
            .code("token_malformed")
            .hint(
                "the API needs an API token (FA1…), made by `fairlead api-token create`; \
                 the join token belongs into the install line of a machine",
            ));
        }
        if !text.starts_with(API_TOKEN) || !text.chars().all(|c| c.is_ascii_graphic()) {
            return Err(
                Failure::usage(format!("{source} holds no API token (FA1…)"))
                    .code("token_malformed")
                    .hint("fairlead api-token create NAME makes one; copy it whole"),
            );
        }
        Ok(Self(text.to_owned()))
    }

    /// The text that goes into the Authorization header and the saved file.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

/// Whether `text` is (or pretends to be) an API token.
pub(crate) fn is_api_token(text: &str) -> bool {
    text.starts_with(API_TOKEN)
}

/// Whether `text` is (or pretends to be) a join token.
pub(crate) fn is_join_token(text: &str) -> bool {
    text.starts_with(JOIN_TOKEN)
}

/// What a request needs to know.
pub(crate) struct Settings {
    /// The server's root.
    pub(crate) url: Url,
    /// Absent: not logged in.
    pub(crate) token: Option<Token>,
    /// Who vouches for the server.
    pub(crate) trust: Trust,
}

/// Reads an environment variable; tests pass their own.
pub(crate) type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The real environment.
pub(crate) fn process_env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Where `login` saves.
pub(crate) fn path(env: Env<'_>) -> Result<PathBuf, Failure> {
    let base = match (env("XDG_CONFIG_HOME"), env("HOME")) {
        (Some(base), _) if Path::new(&base).is_absolute() => PathBuf::from(base),
        (_, Some(home)) => Path::new(&home).join(".config"),
        _ => {
            return Err(
                Failure::new(Exit::Failed, "neither HOME nor XDG_CONFIG_HOME is set")
                    .hint("set FAIRLEAD_URL, FAIRLEAD_TOKEN and FAIRLEAD_CA instead"),
            );
        }
    };
    Ok(base.join("fairlead/config.toml"))
}

/// What `login` saved; `None` when nobody has logged in.
pub(crate) fn saved(path: &Path) -> Result<Option<Saved>, Failure> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => {
            return Err(Failure::local(
                &format!("cannot read {}", path.display()),
                &e,
            ));
        }
    };
    // The parser's own message quotes the line, and that could be the token's.
    toml::from_str(&text).map(Some).map_err(|_| {
        Failure::new(Exit::Failed, format!("{} is damaged", path.display()))
            .hint("log in again: fairlead login URL")
    })
}

/// Saves the login.
pub(crate) fn save(path: &Path, saved: &Saved) -> Result<(), Failure> {
    let failed =
        |e: std::io::Error| Failure::local(&format!("cannot write {}", path.display()), &e);
    std::fs::create_dir_all(path.parent().unwrap_or(Path::new("."))).map_err(failed)?;
    let text = toml::to_string(saved).map_err(|e| {
        Failure::new(
            Exit::Failed,
            format!("cannot write {}: {e}", path.display()),
        )
    })?;
    replace_file(path, text.as_bytes()).map_err(failed)
}

/// Writes a file for its owner only, so that a reader (or a crash) finds the old one or the new one,
/// never a part.
pub(crate) fn replace_file(path: &Path, content: &[u8]) -> std::io::Result<()> {
    // Made with mode 0600.
    let mut file = tempfile::NamedTempFile::new_in(path.parent().unwrap_or(Path::new(".")))?;
    file.write_all(content)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|e| e.error)?;
    Ok(())
}

/// The settings for a request.
pub(crate) fn settings(env: Env<'_>) -> Result<Settings, Failure> {
    let path = path(env);
    let saved = match &path {
        Ok(path) => saved(path)?,
        Err(_) => None,
    };
    let from_env = env("FAIRLEAD_URL")
        .map(|text| server_url(&text))
        .transpose()?;
    let from_file = match &saved {
        Some(saved) => Some(server_url(&saved.url)?),
        None => None,
    };
    let same = from_env.is_none() || from_env == from_file;
    let saved = saved.filter(|_| same);
    let Some(url) = from_env.or(from_file) else {
        path?;
        return Err(
            Failure::new(Exit::NotAllowed, "not logged in to any server")
                .hint("fairlead login URL, or set FAIRLEAD_URL, FAIRLEAD_TOKEN and FAIRLEAD_CA"),
        );
    };
    let token = match (env("FAIRLEAD_TOKEN"), &saved) {
        (Some(text), _) => Some(Token::parse(&text, "FAIRLEAD_TOKEN")?),
        (None, Some(saved)) => Some(Token::parse(&saved.token, "the saved login")?),
        (None, None) => None,
    };
    let trust = match (env("FAIRLEAD_CA"), saved.and_then(|saved| saved.ca_pem)) {
        (Some(file), _) => Trust::from_file(Path::new(&file), "FAIRLEAD_CA")?.0,
        (None, Some(pem)) => Trust::from_pem(pem.as_bytes(), "the saved login")?,
        (None, None) => Trust::Platform,
    };
    Ok(Settings { url, token, trust })
}

/// The root of a server's URL. Without TLS only on this very machine.
pub(crate) fn server_url(text: &str) -> Result<Url, Failure> {
    let full = with_scheme(text);
    let wrong = |why: &str| {
        Failure::usage(format!("{text} is not the address of a server: {why}"))
            .hint("it looks like https://fairlead.example.com:7400")
    };
    let mut url = Url::parse(&full).map_err(|e| wrong(&e.to_string()))?;
    let host = url.host_str().unwrap_or_default();
    let loopback = matches!(host, "localhost" | "[::1]") || host.starts_with("127.");
    match url.scheme() {
        "https" => {}
        "http" if loopback => {}
        "http" => {
            return Err(wrong(
                "without TLS everybody on the way could read the token",
            ));
        }
        _ => return Err(wrong("it must begin with https://")),
    }
    if host.is_empty() {
        return Err(wrong("it names no host"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong("no user or password belongs there"));
    }
    url.set_path("/");
    url.set_query(None);
    url.set_fragment(None);
    Ok(url)
}

fn with_scheme(text: &str) -> String {
    if text.contains("://") {
        text.to_owned()
    } else {
        format!("https://{text}")
    }
}

/// The secret of a one-time setup link, `https://host:port/setup/SECRET`; as with [`server_url`], the
/// scheme may be left out.
pub(crate) fn setup_secret(text: &str) -> Option<String> {
    let url = Url::parse(&with_scheme(text)).ok()?;
    let secret = url.path().strip_prefix("/setup/")?.trim_end_matches('/');
    (!secret.is_empty() && !secret.contains('/')).then(|| secret.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env<'a>(pairs: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + 'a {
        |name| {
            pairs
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).to_owned())
        }
    }

    #[test]
    fn each_token_says_where_it_belongs() {
        let join = Token::parse("FL1abc::id.secret", "FAIRLEAD_TOKEN")
            .err()
            .unwrap();
        assert_eq!(join.exit, Exit::Usage);
        assert!(join.message.contains("FAIRLEAD_TOKEN holds a join token"));
        assert!(join.hint.contains("API token (FA1…)"));
        assert!(!join.message.contains("secret"));
        assert!(Token::parse("nonsense", "x").is_err());
        assert!(Token::parse("FA1 with space", "x").is_err());
        assert_eq!(
            Token::parse(" FA1abc\n", "x").ok().unwrap().reveal(),
            "FA1abc"
        );
    }

    #[test]
    fn urls_are_https_or_loopback() {
        assert_eq!(
            server_url("box:7400").unwrap().as_str(),
            "https://box:7400/"
        );
        assert_eq!(
            server_url("https://a/setup/x?y#z").unwrap().as_str(),
            "https://a/"
        );
        assert!(server_url("http://localhost:7402").is_ok());
        assert!(server_url("http://127.0.0.1:1").is_ok());
        assert!(server_url("http://example.com").is_err());
        assert!(server_url("ftp://example.com").is_err());
        assert!(server_url("https://u:p@example.com").is_err());
        assert_eq!(
            setup_secret("https://a:1/setup/s3cret").as_deref(),
            Some("s3cret")
        );
        assert_eq!(setup_secret("a:1/setup/s3cret").as_deref(), Some("s3cret"));
        assert_eq!(setup_secret("/var/lib/c/setup-link"), None);
        assert_eq!(setup_secret("https://a:1/setup/"), None);
        assert_eq!(setup_secret("https://a:1/"), None);
    }

    #[test]
    fn the_saved_token_goes_to_the_saved_server_only() {
        let home = tempfile::tempdir().unwrap();
        let home_text = home.path().to_str().unwrap();
        let file = path(&env(&[("HOME", home_text)])).unwrap();
        let login = Saved {
            url: "https://one:7400".into(),
            token: "FA1abc".into(),
            ca_pem: None,
        };
        save(&file, &login).unwrap();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(
                std::fs::metadata(&file).unwrap().permissions().mode() & 0o777,
                0o600
            );
        }
        let same = settings(&env(&[("HOME", home_text)])).unwrap();
        assert!(same.token.is_some());
        let other = settings(&env(&[
            ("HOME", home_text),
            ("FAIRLEAD_URL", "https://two:7400"),
        ]))
        .unwrap();
        assert!(other.token.is_none());
        let own = settings(&env(&[
            ("HOME", home_text),
            ("FAIRLEAD_URL", "https://two:7400"),
            ("FAIRLEAD_TOKEN", "FA1xyz"),
        ]))
        .unwrap();
        assert_eq!(own.token.unwrap().reveal(), "FA1xyz");
    }

    #[test]
    fn without_a_login_it_says_what_to_do() {
        let home = tempfile::tempdir().unwrap();
        let pairs = [("HOME", home.path().to_str().unwrap())];
        let failure = settings(&env(&pairs)).err().unwrap();
        assert_eq!(failure.exit, Exit::NotAllowed);
        assert!(failure.hint.contains("fairlead login"));
    }

    #[test]
    fn a_damaged_file_is_named_and_not_quoted() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("config.toml");
        std::fs::write(&file, "token = FA1secret").unwrap();
        let failure = saved(&file).err().unwrap();
        assert!(failure.message.contains("is damaged"));
        assert!(!failure.message.contains("secret"));
    }
}
