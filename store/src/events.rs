//! Events of hosts, regions and the controller, in the order in which they arrived here.

use fairlead_protocol::{HostEvent, HostId, Message};
use rusqlite::{OptionalExtension, Row, named_params};

use crate::{StoreError, Tx};

/// An event as it is kept.
#[derive(Debug, Clone)]
pub struct EventRow {
    /// Order of arrival here.
    pub seq: i64,
    /// Its tenant.
    pub tenant: String,
    /// Its host; absent for regions and the controller.
    pub host: Option<HostId>,
    /// Its region.
    pub region: String,
    /// The event.
    pub event: HostEvent,
}

/// Which events to list.
#[derive(Debug, Clone, Default)]
pub struct EventFilter {
    /// Only of this tenant.
    pub tenant: String,
    /// Only of this host.
    pub host: Option<HostId>,
    /// Only at or after this time.
    pub since_us: Option<i64>,
    /// Only older than this number.
    pub before: Option<i64>,
    /// Only newer than this number.
    pub after: Option<i64>,
    /// Oldest first (for following), instead of newest first.
    pub oldest_first: bool,
    /// At most so many.
    pub limit: u32,
}

fn event_row(row: &Row<'_>) -> rusqlite::Result<EventRow> {
    let host: Vec<u8> = row.get(2)?;
    let payload: Vec<u8> = row.get(4)?;
    Ok(EventRow {
        seq: row.get(0)?,
        tenant: row.get(1)?,
        host: HostId::from_wire(&host).ok(),
        region: row.get(3)?,
        // An event that cannot be read is shown without its content rather than hidden.
        event: HostEvent::decode(&payload[..]).unwrap_or_default(),
    })
}

/// Bounds are never absent, so that they are looked up instead of being asked of each event (as in `commands`).
pub(crate) fn listing(of_host: bool, oldest_first: bool) -> String {
    let order = if oldest_first { "ASC" } else { "DESC" };
    let host = if of_host {
        "host = :host"
    } else {
        ":host IS NULL"
    };
    format!(
        "SELECT seq, tenant, host, region, payload FROM events WHERE tenant = :tenant AND {host} \
         AND (:since IS NULL OR at_us >= :since) AND seq < coalesce(:before, {}) \
         AND seq > coalesce(:after, -1) ORDER BY seq {order} LIMIT :limit",
        i64::MAX
    )
}

impl Tx<'_> {
    /// Keeps an event and returns its number; `None` when it (by its id) is there already.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn insert_event(
        &self,
        tenant: &str,
        host: Option<HostId>,
        region: &str,
        event: &HostEvent,
    ) -> Result<Option<i64>, StoreError> {
        Ok(self
            .sql
            .prepare_cached(
                "INSERT INTO events (id, at_us, tenant, host, region, payload) VALUES (:id, \
                 :at_us, :tenant, :host, :region, :payload) ON CONFLICT (id) DO NOTHING \
                 RETURNING seq",
            )?
            .query_row(
                named_params! {
                    ":id": &event.id[..], ":at_us": event.at_us, ":tenant": tenant,
                    ":host": host.as_ref().map_or(&[][..], |h| h.as_bytes().as_slice()),
                    ":region": region, ":payload": event.encode_to_vec(),
                },
                |row| row.get(0),
            )
            .optional()?)
    }

    /// Events, newest first unless the filter says otherwise.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn events(&self, filter: &EventFilter) -> Result<Vec<EventRow>, StoreError> {
        let text = listing(filter.host.is_some(), filter.oldest_first);
        let mut statement = self.sql.prepare_cached(&text)?;
        let rows = statement.query_map(
            named_params! {
                ":tenant": filter.tenant,
                ":host": filter.host.as_ref().map(|h| h.as_bytes().as_slice()),
                ":since": filter.since_us, ":before": filter.before, ":after": filter.after,
                ":limit": filter.limit,
            },
            event_row,
        )?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The highest event number given out so far; 0: none.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn newest_event(&self) -> Result<i64, StoreError> {
        Ok(self
            .sql
            .query_row(
                "SELECT seq FROM sqlite_sequence WHERE name = 'events'",
                [],
                |r| r.get(0),
            )
            .optional()?
            .unwrap_or(0))
    }

    /// Forgets up to `limit` events that happened before that time; returns how many.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn forget_events(&self, before_us: i64, limit: u32) -> Result<usize, StoreError> {
        Ok(self.sql.execute(
            "DELETE FROM events WHERE seq IN \
             (SELECT seq FROM events WHERE at_us < ?1 ORDER BY seq LIMIT ?2)",
            (before_us, limit),
        )?)
    }

    /// Keeps only the newest `kept` events; returns how many were forgotten, at most `limit`.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn forget_events_beyond(&self, kept: u32, limit: u32) -> Result<usize, StoreError> {
        Ok(self.sql.execute(
            "DELETE FROM events WHERE seq IN (SELECT seq FROM events WHERE seq <= \
             (SELECT coalesce(max(seq), 0) FROM events) - ?1 ORDER BY seq LIMIT ?2)",
            (kept, limit),
        )?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Store;
    use fairlead_protocol::HostEvent;

    fn event(number: u8, at_us: i64) -> HostEvent {
        HostEvent {
            id: vec![number; 16].into(),
            at_us,
            action: "container.start".to_owned(),
            ..HostEvent::default()
        }
    }

    #[tokio::test]
    async fn an_event_sent_again_is_kept_once_and_numbers_are_not_reused() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("s.db")).unwrap();
        let host = HostId::from_bytes([1; 16]);
        let seqs = store
            .write(move |tx| {
                let first = tx.insert_event("a", Some(host), "r", &event(1, 10))?;
                let again = tx.insert_event("a", Some(host), "r", &event(1, 10))?;
                let second = tx.insert_event("a", None, "r", &event(2, 20))?;
                tx.insert_event("b", Some(host), "r", &event(3, 30))?;
                tx.forget_events(1000, 100)?;
                let third = tx.insert_event("a", Some(host), "r", &event(4, 2000))?;
                Ok((first, again, second, third))
            })
            .await
            .unwrap();
        assert_eq!(seqs.0, Some(1));
        assert_eq!(seqs.1, None);
        assert!(seqs.3 > Some(3), "{seqs:?}");
    }

    #[tokio::test]
    async fn filters_narrow_and_pages_join_up() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("s.db")).unwrap();
        let host = HostId::from_bytes([1; 16]);
        store
            .write(move |tx| {
                for n in 0..10u8 {
                    let of = (n % 2 == 0).then_some(host);
                    let tenant = if n < 8 { "a" } else { "b" };
                    tx.insert_event(tenant, of, "r", &event(n, i64::from(n) * 10))?;
                }
                Ok(())
            })
            .await
            .unwrap();
        let list = |filter: EventFilter| {
            let store = store.clone();
            async move {
                let rows = store.read(move |tx| tx.events(&filter)).await.unwrap();
                rows.iter().map(|row| row.seq).collect::<Vec<_>>()
            }
        };
        let all = EventFilter {
            tenant: "a".to_owned(),
            limit: 3,
            ..EventFilter::default()
        };
        let first = list(all.clone()).await;
        assert_eq!(first, [8, 7, 6]);
        assert_eq!(
            list(EventFilter {
                before: Some(6),
                ..all.clone()
            })
            .await,
            [5, 4, 3]
        );
        assert_eq!(
            list(EventFilter {
                after: Some(4),
                oldest_first: true,
                ..all.clone()
            })
            .await,
            [5, 6, 7]
        );
        assert_eq!(
            list(EventFilter {
                host: Some(host),
                ..all.clone()
            })
            .await,
            [7, 5, 3]
        );
        assert_eq!(
            list(EventFilter {
                since_us: Some(70),
                ..all
            })
            .await,
            [8]
        );
        assert_eq!(store.read(|tx| tx.newest_event()).await.unwrap(), 10);
        assert_eq!(
            store
                .write(|tx| tx.forget_events_beyond(4, 100))
                .await
                .unwrap(),
            6
        );
    }
}
