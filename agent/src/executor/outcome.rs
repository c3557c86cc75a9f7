//! How a command ended, before it becomes a result on disk and wire.

use bytes::Bytes;
use fairlead_protocol::{State, codes, limits};

use crate::runtime::RuntimeError;

/// How a command ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// A final state.
    pub state: State,
    /// Stable code; empty on success.
    pub code: &'static str,
    /// What happened and what to do next.
    pub message: String,
    /// Of an exec.
    pub exit_code: i32,
    /// JSON or text, by kind.
    pub body: Bytes,
    /// Whether the body was cut.
    pub truncated: bool,
    /// The container acted upon or made.
    pub container_id: String,
}

impl Outcome {
    /// It was done.
    pub fn done() -> Self {
        Self {
            state: State::Succeeded,
            code: "",
            message: String::new(),
            exit_code: 0,
            body: Bytes::new(),
            truncated: false,
            container_id: String::new(),
        }
    }

    /// It ended otherwise.
    pub fn ended(state: State, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            state,
            code,
            message: message.into(),
            ..Self::done()
        }
    }

    /// It failed.
    pub fn failed(code: &'static str, message: impl Into<String>) -> Self {
        Self::ended(State::Failed, code, message)
    }

    /// Its deadline passed first.
    pub fn too_late() -> Self {
        Self::ended(
            State::Expired,
            codes::DEADLINE_PASSED,
            "its deadline passed before it could begin; nothing was done",
        )
    }

    /// With a body, cut to what a result may carry.
    pub fn with_body(mut self, body: impl Into<Bytes>) -> Self {
        let mut body = body.into();
        if body.len() > limits::RESULT_BODY_BYTES_MAX {
            body.truncate(limits::RESULT_BODY_BYTES_MAX);
            self.truncated = true;
        }
        self.body = body;
        self
    }

    /// On this container.
    pub fn on(mut self, container_id: impl Into<String>) -> Self {
        self.container_id = container_id.into();
        self
    }
}

impl From<RuntimeError> for Outcome {
    fn from(error: RuntimeError) -> Self {
        let code = match &error {
            RuntimeError::Unavailable(_) | RuntimeError::Interrupted(_) => {
                codes::ENGINE_UNAVAILABLE
            }
            RuntimeError::NoSuchContainer(_) => codes::CONTAINER_NOT_FOUND,
            RuntimeError::NoSuchImage(_) => codes::IMAGE_NOT_FOUND,
            RuntimeError::NameInUse(_) => codes::NAME_IN_USE,
            RuntimeError::NotRunning(_) => codes::NOT_RUNNING,
            RuntimeError::NoSuchExec(_) | RuntimeError::Engine(_) => codes::ENGINE_ERROR,
        };
        Self::failed(code, error.to_string())
    }
}
