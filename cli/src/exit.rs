//! How `fairlead` ends: the exit codes that scripts may rely on, and the one error type of the CLI.

use fairlead_api::types::{Command, ErrorBody};
use fairlead_protocol::codes;

/// Exit codes. They are part of the interface and never change their meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// 0
    Ok,
    /// 1: it was tried and did not succeed.
    Failed,
    /// 2: the request makes no sense as it was typed.
    Usage,
    /// 3: there is no such host, container, image, command, token.
    NotFound,
    /// 4: no valid token, or one that may not do this.
    NotAllowed,
    /// 5: something else is there already, or a condition did not hold.
    Conflict,
    /// 6: several were asked for, and some failed.
    SomeFailed,
    /// 7: the deadline passed before it could begin.
    Expired,
    /// 8: the server (or the host) could not be reached.
    Unreachable,
    /// 130: Ctrl-C.
    Interrupted,
    /// The code of the remote process.
    Remote(u8),
}

impl Exit {
    /// The number given to the operating system.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::NotAllowed => 4,
            Self::Conflict => 5,
            Self::SomeFailed => 6,
            Self::Expired => 7,
            Self::Unreachable => 8,
            Self::Interrupted => 130,
            Self::Remote(code) => code,
        }
    }

    /// The exit code for a stable error code; `None` for those that only say "failed".
    pub(crate) fn of_code(code: &str) -> Option<Self> {
        Some(match code {
            codes::HOST_NOT_FOUND
            | codes::CONTAINER_NOT_FOUND
            | codes::COMMAND_NOT_FOUND
            | codes::REGION_NOT_FOUND
            | codes::TOKEN_NOT_FOUND
            | codes::IMAGE_NOT_FOUND
            | codes::NOT_FOUND => Self::NotFound,
            codes::UNAUTHENTICATED
            | codes::PERMISSION_DENIED
            | codes::FORBIDDEN_BY_HOST
            | codes::TOKEN_UNKNOWN
            | codes::TOKEN_EXPIRED
            | codes::TOKEN_REVOKED
            | codes::SETUP_CLOSED => Self::NotAllowed,
            codes::ALREADY_EXISTS
            | codes::AMBIGUOUS
            | codes::DUPLICATE_ID
            | codes::NAME_IN_USE
            | codes::PRECONDITION_FAILED => Self::Conflict,
            codes::INVALID_REQUEST | codes::TOKEN_MALFORMED | codes::COMMAND_TOO_LARGE => {
                Self::Usage
            }
            codes::DEADLINE_PASSED => Self::Expired,
            codes::HOST_OFFLINE | codes::REGION_OFFLINE => Self::Unreachable,
            _ => return None,
        })
    }
}

/// Why a verb did not do what it was asked, for people (message, hint) and scripts (exit, code).
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    /// Exit code.
    pub(crate) exit: Exit,
    /// Stable code; empty when the failure is the CLI's own.
    pub(crate) code: String,
    /// What failed.
    pub(crate) message: String,
    /// What to do next; empty when there is nothing to say.
    pub(crate) hint: String,
    /// The server's request id, where there is one.
    pub(crate) request_id: String,
    /// The connection broke or never came to be: the same request may be sent again.
    pub(crate) transient: bool,
}

impl Failure {
    /// A failure with an exit code and a message.
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            code: String::new(),
            message: message.into(),
            hint: String::new(),
            request_id: String::new(),
            transient: false,
        }
    }

    /// Something typed that makes no sense.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// A failure on this machine: a file, a pipe.
    pub(crate) fn local(doing: &str, error: &std::io::Error) -> Self {
        Self::new(Exit::Failed, format!("{doing}: {error}"))
    }

    /// The same, with what to do next.
    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// The same, with a stable code.
    #[must_use]
    pub(crate) fn code(mut self, code: impl Into<String>) -> Self {
        self.code = code.into();
        self
    }

    /// The same, worth sending again.
    #[must_use]
    pub(crate) fn transient(mut self) -> Self {
        self.transient = true;
        self
    }

    /// What an answer other than 2xx means.
    pub(crate) fn of_answer(status: u16, body: &[u8]) -> Self {
        let by_status = match status {
            400 | 413 => Exit::Usage,
            401 | 403 => Exit::NotAllowed,
            404 => Exit::NotFound,
            409 => Exit::Conflict,
            502..=504 => Exit::Unreachable,
            _ => Exit::Failed,
        };
        let Ok(body) = serde_json::from_slice::<ErrorBody>(body) else {
            let mut failure = Self::new(
                by_status,
                format!("the server answered with HTTP {status} and no explanation"),
            )
            .hint("is this a Fairlead server, and the right version of it? See `fairlead version`");
            failure.transient = matches!(status, 502..=504);
            return failure;
        };
        let error = body.error;
        let mut hint = error.hint;
        if hint.is_empty() && status == 401 {
            hint = "log in again: fairlead login URL".to_owned();
        }
        Self {
            exit: Exit::of_code(&error.code).unwrap_or(by_status),
            code: error.code,
            message: error.message,
            hint,
            request_id: error.request_id,
            transient: false,
        }
    }

    /// What a command's final state means; `None` when it succeeded.
    pub(crate) fn of_command(command: &Command) -> Option<Self> {
        let by_state = match command.state.as_str() {
            "succeeded" => return None,
            "expired" => Exit::Expired,
            "conflict" | "superseded" => Exit::Conflict,
            _ => Exit::Failed,
        };
        let exit = match (command.code.as_str(), command.exit_code) {
            (codes::EXIT_CODE, Some(code)) => Exit::Remote(remote_code(code)),
            _ if by_state == Exit::Failed => Exit::of_code(&command.code).unwrap_or(by_state),
            _ => by_state,
        };
        let what = subject(command);
        let message = if command.message.is_empty() {
            format!("{what}: {} is {}", command.kind, command.state)
        } else if command.message.contains(&command.host) {
            format!("{} {}: {}", command.kind, command.state, command.message)
        } else {
            format!(
                "{what}: {} {}: {}",
                command.kind, command.state, command.message
            )
        };
        let hint = format!("its way: fairlead command show {}", short(&command.id));
        Some(
            Self::new(exit, message)
                .code(command.code.clone())
                .hint(hint),
        )
    }
}

/// A process's exit code as this process can pass it on.
pub(crate) fn remote_code(code: i32) -> u8 {
    u8::try_from(code).unwrap_or(if code & 0xff == 0 {
        1
    } else {
        (code & 0xff) as u8
    })
}

/// `box/demo-web`, or `box` for a command on the host as a whole.
pub(crate) fn subject(command: &Command) -> String {
    if command.target.is_empty() {
        command.host.clone()
    } else {
        format!("{}/{}", command.host, command.target)
    }
}

/// The first six characters of an id: enough for people.
pub(crate) fn short(id: &str) -> &str {
    id.get(..6).unwrap_or(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, code: &str) -> Failure {
        let body = format!(r#"{{"error":{{"code":"{code}","message":"m"}}}}"#);
        Failure::of_answer(status, body.as_bytes())
    }

    #[test]
    fn http_statuses_and_codes_become_exit_codes() {
        for (status, code, exit) in [
            (400, codes::INVALID_REQUEST, 2),
            (401, codes::UNAUTHENTICATED, 4),
            (403, codes::PERMISSION_DENIED, 4),
            (404, codes::CONTAINER_NOT_FOUND, 3),
            (409, codes::AMBIGUOUS, 5),
            (413, codes::COMMAND_TOO_LARGE, 2),
            (429, codes::BUSY, 1),
            (503, codes::HOST_OFFLINE, 8),
            (503, codes::STORAGE_UNAVAILABLE, 8),
            (500, codes::INTERNAL, 1),
        ] {
            assert_eq!(answer(status, code).exit.code(), exit, "{status} {code}");
        }
        assert_eq!(Failure::of_answer(502, b"<html>").exit, Exit::Unreachable);
        assert!(answer(401, codes::UNAUTHENTICATED).hint.contains("login"));
    }

    #[test]
    fn final_states_become_exit_codes() {
        let command = |state: &str, code: &str, exit_code: Option<i32>| Command {
            state: state.to_owned(),
            code: code.to_owned(),
            exit_code,
            ..crate::output::samples::command()
        };
        for (state, code, remote, exit) in [
            ("failed", codes::ENGINE_ERROR, None, 1),
            ("failed", codes::CONTAINER_NOT_FOUND, None, 3),
            ("failed", codes::FORBIDDEN_BY_HOST, None, 4),
            ("failed", codes::NAME_IN_USE, None, 5),
            ("failed", codes::EXIT_CODE, Some(42), 42),
            ("failed", codes::EXIT_CODE, Some(256), 1),
            ("expired", codes::DEADLINE_PASSED, None, 7),
            ("conflict", codes::PRECONDITION_FAILED, None, 5),
            ("superseded", "", None, 5),
            ("cancelled", codes::WITHDRAWN, None, 1),
            ("unknown", codes::OUTCOME_UNKNOWN, None, 1),
        ] {
            let failure = Failure::of_command(&command(state, code, remote)).unwrap();
            assert_eq!(failure.exit.code(), exit, "{state} {code}");
        }
        assert!(Failure::of_command(&command("succeeded", "", Some(0))).is_none());
    }
}
