//! From the engine's answers to [`RuntimeError`], and the names that may go into a request's path.

use bollard::errors::Error;

use crate::runtime::RuntimeError;

/// Longest text of the engine that is passed on.
const MESSAGE_CHARS_MAX: usize = 2000;

/// What a request was about: decides how its errors read.
#[derive(Debug, Clone, Copy)]
pub(super) enum Subject<'a> {
    /// A container, by the name that was asked for.
    Container(&'a str),
    /// An image.
    Image(&'a str),
    /// A container to be made.
    Creation { name: &'a str, image: &'a str },
    /// An exec.
    Exec,
    /// The engine itself.
    Engine,
}

/// The engine's text without control characters (it may hold what a container printed) and not
/// longer than anybody reads.
pub(crate) fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len().min(MESSAGE_CHARS_MAX));
    for character in text.trim().chars().take(MESSAGE_CHARS_MAX) {
        if character.is_control() {
            if !out.ends_with(' ') {
                out.push(' ');
            }
        } else {
            out.push(character);
        }
    }
    out.truncate(out.trim_end().len());
    out
}

/// What an error of a request means.
pub(super) fn runtime_error(error: Error, subject: Subject<'_>) -> RuntimeError {
    match error {
        Error::DockerResponseServerError {
            status_code,
            message,
        } => answered(status_code, &clean(&message), subject),
        // Our transport's word for "the connect itself failed".
        Error::SocketNotFoundError(text) => RuntimeError::Unavailable(clean(&text)),
        Error::RequestTimeoutError => {
            RuntimeError::Unavailable("no answer within the limit for questions".to_owned())
        }
        Error::HyperResponseError { err } => RuntimeError::Interrupted(chain(&err)),
        Error::IOError { err } => RuntimeError::Interrupted(chain(&err)),
        Error::DockerStreamError { error } => RuntimeError::Interrupted(clean(&error)),
        Error::JsonSerdeError { err } => {
            RuntimeError::Engine(format!("the engine's answer cannot be read: {err}"))
        }
        other => RuntimeError::Engine(chain(&other)),
    }
}

fn answered(status: u16, message: &str, subject: Subject<'_>) -> RuntimeError {
    let lower = message.to_ascii_lowercase();
    let text = || {
        if message.is_empty() {
            format!("the engine answered with status {status} and no text")
        } else {
            message.to_owned()
        }
    };
    let no_container = lower.contains("no such container") || lower.contains("no container with");
    let no_image = lower.contains("no such image")
        || lower.contains("image not known")
        || lower.contains("pull access denied")
        || lower.contains("manifest unknown")
        || (lower.contains("manifest for") && lower.contains("not found"));
    match (status, subject) {
        (404, Subject::Container(name)) if no_container || message.is_empty() => {
            RuntimeError::NoSuchContainer(name.to_owned())
        }
        (404, Subject::Creation { image, .. }) if no_image || message.is_empty() => {
            RuntimeError::NoSuchImage(image.to_owned())
        }
        (404, _) if no_container => {
            let name = message.rsplit(": ").next().unwrap_or(message);
            RuntimeError::NoSuchContainer(name.to_owned())
        }
        (404, Subject::Image(name)) if lower.starts_with("no such image") || message.is_empty() => {
            RuntimeError::NoSuchImage(name.to_owned())
        }
        (404 | 500, Subject::Image(name)) if no_image => {
            RuntimeError::NoSuchImage(format!("{name} ({message})"))
        }
        (409 | 500, Subject::Creation { name, .. })
            if lower.contains("already in use") && lower.contains("name") =>
        {
            RuntimeError::NameInUse(name.to_owned())
        }
        (409 | 500, Subject::Container(name)) if says_not_running(&lower) => {
            RuntimeError::NotRunning(name.to_owned())
        }
        (404, Subject::Exec) if lower.starts_with("no such exec instance") => {
            let id = message.rsplit(' ').next().unwrap_or_default();
            RuntimeError::NoSuchExec(id.to_owned())
        }
        (409 | 500, Subject::Exec) if says_not_running(&lower) => {
            // "Container <id> is not running"
            let id = message.split_whitespace().nth(1).unwrap_or("of this exec");
            RuntimeError::NotRunning(id.to_owned())
        }
        // What containerd holds has the container's id; a start that is to go on would have to end it.
        // containerd knows the task and not its container: none of its own tools reaches it.
        (_, Subject::Container(name)) if is_stale_task(&lower) => RuntimeError::Engine(format!(
            "{message}: containerd holds what is left of the last run, which ended while Docker was restarted; on the \
             host: pkill -KILL -f -- \"-namespace moby -id $(docker inspect -f '{{{{.Id}}}}' {name})\" and then start \
             it again"
        )),
        (_, Subject::Container(name)) if lower.contains("id already in use") => {
            RuntimeError::Engine(format!(
                "{message}: containerd holds what is left of an earlier start that was cut short, and Docker before \
                 23.0 does not end that; on the host: ctr -n moby tasks kill -s SIGKILL \
                 $(docker inspect -f '{{{{.Id}}}}' {name}) and then start it again"
            ))
        }
        _ => RuntimeError::Engine(text()),
    }
}

/// Whether the container cannot be started because containerd still has the task of its last run.
pub(super) fn is_stale_task(lower: &str) -> bool {
    lower.contains("task ") && lower.contains(": already exists")
}

fn says_not_running(lower: &str) -> bool {
    lower.contains("is not running") || lower.contains("can only create exec sessions on running")
}

/// An error with its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    clean(&text)
}

/// A container's name or id, fit for a path: nothing else can be said with it.
///
/// # Errors
/// When it could not be the name of any container.
pub(super) fn container_name(name: &str) -> Result<&str, RuntimeError> {
    let bare = name.strip_prefix('/').unwrap_or(name);
    let mut bytes = bare.bytes();
    let first_is_fine = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric());
    if first_is_fine && bytes.all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b)) {
        Ok(bare)
    } else {
        Err(RuntimeError::NoSuchContainer(clean(name)))
    }
}

/// An image reference, fit for a path.
///
/// # Errors
/// When it could not be a reference.
pub(super) fn image_name(name: &str) -> Result<&str, RuntimeError> {
    let fine = name
        .bytes()
        .next()
        .is_some_and(|b| b.is_ascii_alphanumeric())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_.-/:@+".contains(&b))
        && name
            .split('/')
            .all(|part| !part.is_empty() && part != "." && part != "..");
    if fine {
        Ok(name)
    } else {
        Err(RuntimeError::NoSuchImage(clean(name)))
    }
}

/// An exec's id, fit for a path.
///
/// # Errors
/// When it is not one.
pub(super) fn exec_id(id: &str) -> Result<&str, RuntimeError> {
    if !id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric()) {
        Ok(id)
    } else {
        Err(RuntimeError::Engine(format!(
            "not the id of an exec: {}",
            clean(id)
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(status_code: u16, message: &str, subject: Subject<'_>) -> RuntimeError {
        let error = Error::DockerResponseServerError {
            status_code,
            message: message.to_owned(),
        };
        runtime_error(error, subject)
    }

    #[test]
    fn answers_become_errors_that_say_what_is_wrong() {
        use RuntimeError as E;
        let c = Subject::Container("web");
        let create = Subject::Creation {
            name: "web",
            image: "nginx",
        };
        assert!(
            matches!(map(404, "No such container: web", c), E::NoSuchContainer(n) if n == "web")
        );
        assert!(
            matches!(map(404, "no container with name or ID \"web\" found: no such container", c),
            E::NoSuchContainer(n) if n == "web")
        );
        assert!(
            matches!(map(404, "network nope not found", c), E::Engine(t) if t.contains("nope"))
        );
        assert!(
            matches!(map(404, "No such image: nginx:latest", create), E::NoSuchImage(n) if n == "nginx")
        );
        assert!(
            matches!(map(404, "No such container: other", create), E::NoSuchContainer(n) if n == "other")
        );
        assert!(
            matches!(map(409, "Conflict. The container name \"/web\" is already in use by container \"1\".", create),
            E::NameInUse(n) if n == "web")
        );
        assert!(
            matches!(map(409, "Container 1f is not running", c), E::NotRunning(n) if n == "web")
        );
        assert!(matches!(
            map(
                500,
                "Cannot kill container: web: Container 1f is not running",
                c
            ),
            E::NotRunning(_)
        ));
        assert!(
            matches!(map(409, "Container 1f is not running", Subject::Exec), E::NotRunning(n) if n == "1f")
        );
        assert!(
            matches!(map(404, "No such exec instance: 7d", Subject::Exec), E::NoSuchExec(n) if n == "7d")
        );
        assert!(matches!(
            map(409, "You cannot remove a running container 1f.", c),
            E::Engine(_)
        ));
        assert!(matches!(map(409, "id already in use", c), E::Engine(t)
            if t.contains("SIGKILL $(docker inspect -f '{{.Id}}' web) ")));
        assert!(
            matches!(map(409, "task 1f: already exists", c), E::Engine(t)
            if t.contains("-id $(docker inspect -f '{{.Id}}' web)\" and then start it again"))
        );
        assert!(
            matches!(map(404, "pull access denied for x, repository does not exist", Subject::Image("x")),
            E::NoSuchImage(t) if t.contains("denied"))
        );
        assert!(matches!(map(500, "boom\u{1b}[31m\nred", c), E::Engine(t) if t == "boom [31m red"));
    }

    #[test]
    fn names_cannot_reach_other_paths_of_the_api() {
        for bad in [
            "",
            "../images/prune",
            "a/b",
            "a?x=1",
            "a#b",
            "a%2e",
            "-a",
            ".",
            "..",
            "a b",
            "a\n",
        ] {
            assert!(container_name(bad).is_err(), "{bad:?}");
        }
        assert_eq!(container_name("/web_1.x-y").unwrap(), "web_1.x-y");
        for bad in [
            "", "../x", "a/../b", "a//b", "a?b", "/a", "a#b", "a b", "a%2f",
        ] {
            assert!(image_name(bad).is_err(), "{bad:?}");
        }
        let digest = format!("reg.example:5000/a/b:1@sha256:{}", "a".repeat(64));
        assert!(image_name(&digest).is_ok());
        assert!(exec_id("../x").is_err());
    }
}
