//! Recordings: listed and read by admins, which is audited; kept for a time, within a space.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use fairlead_api::backend::RecordingQuery;
use fairlead_api::types::{Recording, time};
use fairlead_api::{ApiError, Caller};
use fairlead_protocol::{CommandId, HostId, codes};
use fairlead_webssh::recording::file::Listed;
use futures_util::stream::{self, BoxStream, StreamExt};
use tokio::io::AsyncReadExt;

use super::super::hosts::is_visible;
use super::super::{ControllerBackend, Note};

/// Recordings are kept for so long.
const RECORDINGS_KEPT_S: i64 = 90 * 24 * 3600;
/// How often old ones are looked for.
const TIDY_EVERY_US: i64 = 3600 * 1_000_000;
/// Pieces in which a recording is read.
const READ_BYTES: usize = 64 * 1024;

impl ControllerBackend {
    pub(in crate::backend) async fn list_recordings(
        &self,
        caller: &Caller,
        query: RecordingQuery,
    ) -> Result<Vec<Recording>, ApiError> {
        // A recording's header tells its second: one that began within the second of `from` is listed.
        let seconds = |us: i64| us.div_euclid(1_000_000);
        let began = query.from_us.map_or(i64::MIN, seconds)..=query.to_us.map_or(i64::MAX, seconds);
        let recordings = &self.parts.desk.recordings;
        let listed = recordings.list(began).await.map_err(unreadable)?;
        let mut shown = Vec::new();
        for Listed { header, bytes } in listed {
            let about = &header.fairlead;
            let is = |wanted: &Option<String>, has: &str| {
                wanted.as_deref().is_none_or(|wanted| wanted == has)
            };
            let by = query
                .user
                .as_deref()
                .is_none_or(|user| about.user.contains(user));
            if by
                && is(&query.host, &about.host)
                && is(&query.container, &about.container)
                && self.sees_recording(caller, &about.tenant, &about.host_id)?
            {
                shown.push(Recording {
                    session: about.session.clone(),
                    user: about.user.clone(),
                    host: about.host.clone(),
                    container: about.container.clone(),
                    container_id: about.container_id.clone(),
                    started_at: time(header.timestamp.saturating_mul(1_000_000)),
                    bytes,
                });
            }
        }
        Ok(shown)
    }

    fn sees_recording(
        &self,
        caller: &Caller,
        tenant: &str,
        host_id: &str,
    ) -> Result<bool, ApiError> {
        let Ok(id) = host_id.parse::<HostId>() else {
            return Ok(false);
        };
        let host = self.look(|tx| tx.host(id))?;
        Ok(tenant == caller.tenant && host.is_some_and(|host| is_visible(caller, &host)))
    }

    pub(in crate::backend) async fn read_recording(
        &self,
        caller: &Caller,
        id: &str,
    ) -> Result<BoxStream<'static, std::io::Result<Bytes>>, ApiError> {
        let missing = || {
            ApiError::new(codes::TERMINAL_NOT_FOUND, "there is no such recording")
                .hint("GET /api/v1/recordings lists them")
        };
        let session = id.parse::<CommandId>().map_err(|_| missing())?;
        let recordings = &self.parts.desk.recordings;
        let header = recordings.header(session).await.map_err(unreadable)?;
        let about = header.ok_or_else(missing)?.fairlead;
        if !self.sees_recording(caller, &about.tenant, &about.host_id)? {
            return Err(missing());
        }
        let file = recordings.read(session).await.map_err(unreadable)?;
        let file = tokio::fs::File::from_std(file.ok_or_else(missing)?);
        let object = format!("{}/{}", about.host, about.container);
        let note = Note::ok("recording.read", object).detail(format!("terminal {session}"));
        self.audited(caller, note).await?;
        let pieces = stream::unfold(Some(file), |file| async move {
            let mut file = file?;
            let mut piece = vec![0; READ_BYTES];
            match file.read(&mut piece).await {
                Ok(0) => None,
                Ok(read) => {
                    piece.truncate(read);
                    Some((Ok(Bytes::from(piece)), Some(file)))
                }
                Err(error) => Some((Err(error), None)),
            }
        });
        Ok(pieces.boxed())
    }

    /// Removes old recordings now and then, and the oldest where all together take too much; each with a row
    /// in the audit log.
    pub(in crate::backend) async fn tidy_recordings(&self) {
        let desk = &self.parts.desk;
        let now_us = self.now_us();
        let is_time = now_us - desk.tidied_us.load(Ordering::Relaxed) >= TIDY_EVERY_US;
        if !is_time && !desk.recordings.is_full() {
            return;
        }
        desk.tidied_us.store(now_us, Ordering::Relaxed);
        let before_s = if self.parts.fleet.agrees_on_the_time() {
            now_us.div_euclid(1_000_000) - RECORDINGS_KEPT_S
        } else {
            0
        };
        let open = desk.terminals().map(|terminals| terminals.list());
        let here = open.unwrap_or_default();
        let here = here.iter().map(|terminal| terminal.info.session);
        let there = desk.regional.all().into_iter().map(|t| t.info.session);
        let open = here.chain(there).collect();
        let removed = match desk.recordings.tidy(before_s, open).await {
            Ok(removed) => removed,
            Err(error) => {
                tracing::error!(%error, "old recordings could not be removed");
                return;
            }
        };
        for Listed { header, bytes } in removed {
            let about = header.fairlead;
            let entry = self.own_entry(
                &about.tenant,
                "recording.remove",
                &format!("{}/{}", about.host, about.container),
                format!("terminal {}, {bytes} B", about.session),
            );
            self.note_down(entry).await;
        }
    }
}

fn unreadable(error: std::io::Error) -> ApiError {
    tracing::error!(%error, "recordings cannot be read");
    ApiError::new(codes::STORAGE_UNAVAILABLE, "recordings cannot be read now").retry_after(5)
}
