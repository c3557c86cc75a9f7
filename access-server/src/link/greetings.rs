//! How many links are greeted at once, and how many wait for that. Touches nothing else.
//!
//! Thousands may come back at once. If all of them were let in, each would wait for the ledger behind all others,
//! longer than an agent waits for its welcome; those that gave up would come again, and none would ever be
//! through. If those that find no place were sent away at once, each would shake hands several times before it is
//! through, and the processors would do little else. So as many wait as are through in time.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Links between their hello and the main loop.
const AT_ONCE_MAX: usize = 1024;
/// Links that wait for that.
const WAITING_MAX: usize = 4096;
/// For so long at most: an agent waits twice as long for its welcome.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// Places to be greeted in, and places to wait for one.
#[derive(Debug)]
pub struct Greetings {
    places: Arc<Semaphore>,
    waiting: Semaphore,
}

impl Default for Greetings {
    fn default() -> Self {
        Self {
            places: Arc::new(Semaphore::new(AT_ONCE_MAX)),
            waiting: Semaphore::new(WAITING_MAX),
        }
    }
}

impl Greetings {
    /// A place among those that are greeted, in the order in which they came; `None`: come back later.
    pub(super) async fn enter(&self) -> Option<OwnedSemaphorePermit> {
        let places = Arc::clone(&self.places);
        if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
            return Some(place);
        }
        let _waits = self.waiting.try_acquire().ok()?;
        let place = tokio::time::timeout(WAIT_MAX, places.acquire_owned()).await;
        place.ok()?.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn so_many_are_greeted_so_many_wait_and_nobody_waits_too_long() {
        let greetings = Arc::new(Greetings::default());
        let mut here = Vec::new();
        for _ in 0..AT_ONCE_MAX {
            here.push(greetings.enter().await.unwrap());
        }
        let comes = || {
            let greetings = Arc::clone(&greetings);
            tokio::spawn(async move { greetings.enter().await })
        };
        let mut waiting: Vec<_> = (0..WAITING_MAX).map(|_| comes()).collect();
        tokio::task::yield_now().await;
        assert!(comes().await.unwrap().is_none(), "one more than may wait");
        drop(here.pop());
        let next = waiting.remove(0).await.unwrap();
        assert!(next.is_some(), "the first that came");
        for one in waiting {
            assert!(one.await.unwrap().is_none(), "waited for ever");
        }
        drop(next);
        assert!(greetings.enter().await.is_some());
    }
}
