//! The event feed: what happened, stored first, then told to whoever follows.
//!
//! Followers read from the store by number, so one that was away misses nothing, a slow one costs
//! nothing, and all that is kept in memory is the newest number.

use std::sync::Arc;

use fairlead_daemon::clock::Clock;
use fairlead_identity::random;
use fairlead_protocol::{HostEvent, HostId};
use fairlead_store::events::{EventFilter, EventRow};
use fairlead_store::{Store, StoreError};
use futures_util::stream::{self, Stream};
use tokio::sync::watch;

/// Events read from the store at a time.
const BATCH: u32 = 200;

/// The feed.
pub struct Feed {
    store: Store,
    clock: Clock,
    newest: watch::Sender<i64>,
}

impl Feed {
    /// The feed over that store.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn open(store: Store, clock: Clock) -> Result<Arc<Self>, StoreError> {
        let newest = store.read(|tx| tx.newest_event()).await?;
        Ok(Arc::new(Self {
            store,
            clock,
            newest: watch::Sender::new(newest),
        }))
    }

    /// An event was stored under this number (by the caller, in a transaction of its own).
    pub fn announce(&self, seq: i64) {
        self.newest.send_if_modified(|newest| {
            let newer = seq > *newest;
            *newest = seq.max(*newest);
            newer
        });
    }

    /// Stores an event of the controller's own (a host that enrolled, a region that went away) and
    /// announces it. Id and time are given here.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn record(
        &self,
        tenant: &str,
        host: Option<HostId>,
        region: &str,
        action: &str,
        detail: &str,
    ) -> Result<(), StoreError> {
        let event = HostEvent {
            id: random::bytes::<16>().to_vec().into(),
            at_us: self.clock.now_us(),
            action: action.to_owned(),
            detail: detail.to_owned(),
            ..HostEvent::default()
        };
        let (tenant, region) = (tenant.to_owned(), region.to_owned());
        let seq = self
            .store
            .write(move |tx| tx.insert_event(&tenant, host, &region, &event))
            .await?;
        if let Some(seq) = seq {
            self.announce(seq);
        }
        Ok(())
    }

    /// The number of the newest event.
    #[must_use]
    pub fn newest(&self) -> i64 {
        *self.newest.borrow()
    }

    /// A tenant's events from after that number on, oldest first, for ever. Ends when the store
    /// can no longer be read or the feed is gone.
    pub fn follow(
        &self,
        tenant: String,
        host: Option<HostId>,
        after: i64,
    ) -> impl Stream<Item = EventRow> + Send + use<> {
        let follower = Follower {
            store: self.store.clone(),
            newest: self.newest.subscribe(),
            tenant,
            host,
            after,
            read: Vec::new().into_iter(),
        };
        stream::unfold(follower, Follower::next)
    }
}

struct Follower {
    store: Store,
    newest: watch::Receiver<i64>,
    tenant: String,
    host: Option<HostId>,
    after: i64,
    read: std::vec::IntoIter<EventRow>,
}

impl Follower {
    async fn next(mut self) -> Option<(EventRow, Self)> {
        loop {
            if let Some(row) = self.read.next() {
                self.after = row.seq;
                return Some((row, self));
            }
            // Noted before reading: what arrives while we read wakes us again.
            let newest = *self.newest.borrow_and_update();
            let filter = EventFilter {
                tenant: self.tenant.clone(),
                host: self.host,
                after: Some(self.after),
                oldest_first: true,
                limit: BATCH,
                ..EventFilter::default()
            };
            let rows = self.store.read(move |tx| tx.events(&filter)).await.ok()?;
            if rows.is_empty() {
                self.after = self.after.max(newest);
                self.newest.changed().await.ok()?;
            }
            self.read = rows.into_iter();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::StreamExt;

    #[tokio::test]
    async fn a_follower_that_comes_back_misses_nothing_and_sees_nothing_twice() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("s.db")).unwrap();
        let feed = Feed::open(store, Clock::manual(1)).await.unwrap();
        for action in ["a", "b"] {
            feed.record("t", None, "r", action, "").await.unwrap();
        }
        feed.record("other", None, "r", "not for us", "")
            .await
            .unwrap();
        let mut first = Box::pin(feed.follow("t".to_owned(), None, 0));
        let seen = first.next().await.unwrap();
        assert_eq!(seen.event.action, "a");
        drop(first);
        let mut again = Box::pin(feed.follow("t".to_owned(), None, seen.seq));
        assert_eq!(again.next().await.unwrap().event.action, "b");
        let (next, recorded) = tokio::join!(again.next(), feed.record("t", None, "r", "c", "live"));
        recorded.unwrap();
        assert_eq!(next.unwrap().event.action, "c");
    }
}
