//! What flows between engine and agent: pulls, exec, logs, archives, events.

use std::sync::Arc;
use std::time::Duration;

use bollard::errors::Error;
use bollard::query_parameters::UploadToContainerOptions;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use hyper::Method;
use serde::Deserialize;

use super::answers::EventLine;
use super::errors::{Subject, clean, container_name, exec_id, image_name, runtime_error};
use super::transport::{query_value, within};
use super::{DockerRuntime, ImageId, now_us, streams};
use crate::runtime::{
    ContainerRuntime, ENGINE_QUESTION_TIMEOUT, EngineEvent, ExecIo, ExecState, LogOptions, Output,
    RuntimeError,
};

/// A time in the engine's words: seconds with a fraction.
fn engine_time(us: i64) -> String {
    format!(
        "{}.{:06}",
        us.div_euclid(1_000_000),
        us.rem_euclid(1_000_000)
    )
}

/// Name and tag (or digest) of a reference. Without a tag the engine would pull all of them.
fn reference_parts(image: &str) -> (&str, &str) {
    if let Some((name, digest)) = image.split_once('@') {
        return (name, digest);
    }
    match image.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, tag),
        _ => (image, "latest"),
    }
}

/// A line of a pull's progress.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PullLine {
    error: String,
}

/// Whether the event can mean that an inspect would say something new. Health checks are execs and
/// would otherwise cost an inspect each.
fn may_change(action: &str) -> bool {
    let quiet = [
        "exec_",
        "attach",
        "detach",
        "resize",
        "top",
        "archive-path",
        "copy",
        "export",
    ];
    !quiet.iter().any(|word| action.starts_with(word))
}

impl DockerRuntime {
    pub(super) async fn pull_image(
        &self,
        image: &str,
        platform: &str,
    ) -> Result<String, RuntimeError> {
        let name = image_name(image)?;
        let error = |error| runtime_error(error, Subject::Image(name));
        let (repository, tag) = reference_parts(name);
        let mut path = format!(
            "/images/create?fromImage={}&tag={}",
            query_value(repository),
            query_value(tag)
        );
        if !platform.is_empty() {
            path.push_str(&format!("&platform={}", query_value(platform)));
        }
        let answer = self
            .engine
            .call(Method::POST, &path, None)
            .await
            .map_err(error)?;
        let lines = streams::json_lines::<PullLine>(streams::body_bytes(answer.into_body()));
        let mut lines = std::pin::pin!(lines);
        while let Some(line) = lines.next().await {
            let message = line?.error;
            if !message.is_empty() {
                // The headers said 200 before the registry was asked; this is the real answer.
                return Err(error(bollard::errors::Error::DockerResponseServerError {
                    status_code: 404,
                    message,
                }));
            }
        }
        let pulled: ImageId = self
            .engine
            .ask(&format!("/images/{name}/json"))
            .await
            .map_err(error)?;
        Ok(pulled.id)
    }

    pub(super) async fn attach_exec(&self, exec: &str, tty: bool) -> Result<ExecIo, RuntimeError> {
        let id = exec_id(exec)?;
        // The engine accepts the connection first and writes a refusal into it as if the program
        // had said so. Only a question beforehand tells the two apart.
        match self.exec_state(id).await? {
            ExecState::Created => {}
            ExecState::Forgotten => return Err(RuntimeError::NoSuchExec(id.to_owned())),
            ExecState::Running | ExecState::Exited(_) => {
                return Err(RuntimeError::Engine(format!(
                    "exec {id} was started before"
                )));
            }
        }
        let body = serde_json::json!({ "Detach": false, "Tty": tty });
        let connection = self
            .engine
            .upgrade(&format!("/exec/{id}/start"), &body)
            .await
            .map_err(|error| runtime_error(error, Subject::Exec))?;
        let (reader, writer) = tokio::io::split(connection);
        let output = streams::output(streams::reader_bytes(reader), tty);
        Ok(ExecIo {
            output,
            input: Box::pin(writer),
        })
    }

    pub(super) async fn read_logs(
        &self,
        container: &str,
        options: &LogOptions,
    ) -> Result<BoxStream<'static, Result<Output, RuntimeError>>, RuntimeError> {
        let name = container_name(container)?;
        // The answer does not say (before API 1.42) whether it is a terminal's, and so unframed.
        let tty = self.inspected(name).await?.config.tty;
        let mut path = format!("/containers/{name}/logs?stdout=true&stderr=true");
        if options.follow {
            path.push_str("&follow=true");
        }
        if options.timestamps {
            path.push_str("&timestamps=true");
        }
        if let Some(tail) = options.tail {
            path.push_str(&format!("&tail={tail}"));
        }
        if options.since_us != 0 {
            path.push_str(&format!("&since={}", engine_time(options.since_us)));
        }
        if options.until_us != 0 {
            path.push_str(&format!("&until={}", engine_time(options.until_us)));
        }
        let answer = self
            .engine
            .call(Method::GET, &path, None)
            .await
            .map_err(|error| runtime_error(error, Subject::Container(name)))?;
        Ok(streams::output(
            streams::body_bytes(answer.into_body()),
            tty,
        ))
    }

    pub(super) async fn unpack(
        &self,
        container: &str,
        path: &str,
        archive: BoxStream<'static, Result<Bytes, std::io::Error>>,
    ) -> Result<(), RuntimeError> {
        let name = container_name(container)?;
        // Asked first, because an engine that refuses does not read the archive, and its refusal
        // can get lost behind our broken upload.
        let query = format!("/containers/{name}/archive?path={}", query_value(path));
        let there = self.engine.call(Method::HEAD, &query, None);
        if let Err(error) = within(ENGINE_QUESTION_TIMEOUT, there).await {
            self.inspected(name).await?;
            return Err(match runtime_error(error, Subject::Engine) {
                RuntimeError::Engine(_) => RuntimeError::Engine(format!(
                    "there is no directory {} in container {name}",
                    clean(path)
                )),
                other => other,
            });
        }
        let options = UploadToContainerOptions {
            path: path.to_owned(),
            // As `docker cp`: a directory never replaces a file nor a file a directory.
            no_overwrite_dir_non_dir: Some("true".to_owned()),
            copy_uidgid: None,
        };
        self.client
            .upload_to_container(name, Some(options), bollard::body_try_stream(archive))
            .await
            .map_err(|error| runtime_error(error, Subject::Container(name)))
    }

    pub(super) async fn follow_events(
        &self,
        since_us: i64,
    ) -> BoxStream<'static, Result<EngineEvent, RuntimeError>> {
        // What happened while nobody listened is not known.
        self.cache.invalidate_all();
        let mut path = events_path();
        if since_us != 0 {
            path.push_str(&format!("&since={}", engine_time(since_us)));
        }
        let answer = match self.engine.call(Method::GET, &path, None).await {
            Ok(answer) => answer,
            Err(error) => {
                let error = runtime_error(error, Subject::Engine);
                return stream::iter([Err(error)]).boxed();
            }
        };
        // Health checks are known by their words once their containers have been looked at; what
        // goes wrong with this look will be said by the next.
        drop(self.list().await);
        let (cache, engine) = (Arc::clone(&self.cache), Arc::clone(&self.engine));
        let lines = streams::json_lines::<EventLine>(streams::body_bytes(answer.into_body()));
        let events = lines.filter_map(move |line| {
            let told = line.map(|line| line.event());
            let told = match told {
                Ok(event) if event.object == "container" => {
                    if may_change(&event.action) {
                        cache.invalidate(&event.id);
                    }
                    // Every few seconds, of every container that has one, and nobody's hand.
                    (!cache.is_probe(&event.id, &event.action)).then_some(Ok(event))
                }
                other => Some(other),
            };
            std::future::ready(told)
        });
        // The engine ends this stream only by going away.
        let end = stream::once(async move {
            engine.forget_version();
            Err(RuntimeError::Unavailable(
                "the engine closed its stream of events".to_owned(),
            ))
        });
        events.chain(end).boxed()
    }

    /// With a time until which it is asked for, the engine ends its answer itself, when it has said all.
    pub(super) async fn remembered_events(
        &self,
        since_us: i64,
        listening: Duration,
    ) -> Result<Vec<EngineEvent>, RuntimeError> {
        let now_us = now_us();
        let until_us = now_us + i64::try_from(listening.as_micros()).unwrap_or(0);
        let path = format!(
            "{}&since={}&until={}",
            events_path(),
            engine_time(since_us.min(now_us)),
            engine_time(until_us)
        );
        let answer = self.engine.question(&path).await;
        let answer = answer.map_err(|error| runtime_error(error, Subject::Engine))?;
        let lines = serde_json::Deserializer::from_slice(&answer).into_iter::<EventLine>();
        lines
            .map(|line| match line {
                Ok(line) => Ok(line.event()),
                Err(error) => Err(runtime_error(Error::from(error), Subject::Engine)),
            })
            .collect()
    }
}

/// What the agent listens for.
fn events_path() -> String {
    let filters = query_value(r#"{"type":["container","image"]}"#);
    format!("/events?filters={filters}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_pulled_with_one_tag() {
        assert_eq!(reference_parts("nginx"), ("nginx", "latest"));
        assert_eq!(reference_parts("r:5000/a/b"), ("r:5000/a/b", "latest"));
        assert_eq!(reference_parts("r:5000/a/b:2"), ("r:5000/a/b", "2"));
        assert_eq!(reference_parts("a@sha256:1"), ("a", "sha256:1"));
    }

    #[test]
    fn times_are_seconds_with_a_fraction() {
        assert_eq!(engine_time(1_000_002), "1.000002");
    }
}
