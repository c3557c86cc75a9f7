//! Short words for what tests ask for.

use fairlead_api::types::{Action, Command, CommandRequest, ContainerSpec};
use fairlead_tests::client::{Api, request};
use fairlead_tests::engine;
use fairlead_tests::stream::Stream;
use std::time::Duration;

pub(crate) fn start(container: &str) -> Action {
    Action::Start {
        container: container.to_owned(),
    }
}

pub(crate) fn stop(container: &str) -> Action {
    Action::Stop {
        container: container.to_owned(),
        grace_s: None,
        signal: String::new(),
    }
}

pub(crate) fn restart(container: &str) -> Action {
    Action::Restart {
        container: container.to_owned(),
        grace_s: None,
        signal: String::new(),
    }
}

pub(crate) fn kill(container: &str, signal: &str) -> Action {
    Action::Kill {
        container: container.to_owned(),
        signal: signal.to_owned(),
    }
}

pub(crate) fn remove(container: &str, force: bool) -> Action {
    Action::Remove {
        container: container.to_owned(),
        force,
        volumes: true,
    }
}

pub(crate) fn exec(container: &str, command: &[&str]) -> Action {
    Action::Exec {
        container: container.to_owned(),
        command: command.iter().map(|&word| word.to_owned()).collect(),
        env: Vec::new(),
        user: String::new(),
        workdir: String::new(),
        stdin: false,
        privileged: false,
    }
}

pub(crate) fn logs(container: &str, tail: Option<u64>, follow: bool) -> Action {
    Action::Logs {
        container: container.to_owned(),
        follow,
        tail,
        since: None,
        until: None,
        timestamps: false,
    }
}

/// A container from the tests' image.
pub(crate) fn spec(name: &str, command: &[&str]) -> ContainerSpec {
    ContainerSpec {
        name: name.to_owned(),
        image: engine::IMAGE.to_owned(),
        command: command.iter().map(|&word| word.to_owned()).collect(),
        ..ContainerSpec::default()
    }
}

pub(crate) fn run(spec: ContainerSpec) -> Action {
    Action::Run {
        spec: Box::new(spec),
    }
}

/// A container on the simulated engine, which knows no `sh` to trap with.
pub(crate) fn run_simulated(name: &str) -> Action {
    let spec = ContainerSpec {
        name: name.to_owned(),
        image: "demo/web:1".to_owned(),
        ..ContainerSpec::default()
    };
    Action::Run {
        spec: Box::new(spec),
    }
}

/// Asks for a command with a stream and opens it.
pub(crate) async fn attach(api: &Api, host: &str, action: Action) -> (Command, Stream) {
    let request = CommandRequest {
        attach: true,
        ..request(host, action)
    };
    let command = api
        .submit(&request, Duration::ZERO)
        .await
        .unwrap_or_else(|no| panic!("not taken: {no}"));
    let stream = Stream::open(api, &command.id)
        .await
        .unwrap_or_else(|no| panic!("no stream: {no}"));
    (command, stream)
}

/// The output of a command as text.
pub(crate) fn text(command: &Command) -> String {
    command
        .output
        .as_ref()
        .and_then(|o| o.as_str())
        .unwrap_or_default()
        .to_owned()
}
