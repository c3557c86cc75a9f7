//! The queue before one link task: bounded, and no memory while it is empty. There is one for each of tens
//! of thousands of links, and nearly all of them are empty nearly always; the library's channel would keep
//! room for 32 orders in each.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::ToHost;

/// What waits for one link task. Few, because the ledger remembers commands anyway.
pub const TO_HOST_MAX: usize = 16;

#[derive(Debug, Default)]
struct Queue {
    /// `None` once the link has ended.
    waiting: Mutex<Option<VecDeque<ToHost>>>,
    filled: Notify,
}

impl Queue {
    fn waiting(&self) -> MutexGuard<'_, Option<VecDeque<ToHost>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The end that everybody has.
#[derive(Debug, Clone)]
pub struct ToLink(Arc<Queue>);

/// The link task's end. When it is dropped, what waits is dropped too.
#[derive(Debug)]
pub struct FromRouter(Arc<Queue>);

/// Both ends of a new queue.
#[must_use]
pub fn pair() -> (ToLink, FromRouter) {
    let queue = Arc::new(Queue {
        waiting: Mutex::new(Some(VecDeque::new())),
        filled: Notify::new(),
    });
    (ToLink(Arc::clone(&queue)), FromRouter(queue))
}

impl ToLink {
    /// Puts an order at the end; `false` when there is no room, or nobody who would take it.
    #[must_use]
    pub fn push(&self, order: ToHost) -> bool {
        {
            let mut waiting = self.0.waiting();
            let Some(waiting) = waiting.as_mut().filter(|w| w.len() < TO_HOST_MAX) else {
                return false;
            };
            waiting.push_back(order);
        }
        self.0.filled.notify_one();
        true
    }

    /// Whether the link has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.waiting().is_none()
    }
}

impl FromRouter {
    /// The next order, if there is one.
    pub fn take(&mut self) -> Option<ToHost> {
        let mut waiting = self.0.waiting();
        let waiting = waiting.as_mut()?;
        let next = waiting.pop_front();
        if waiting.is_empty() {
            *waiting = VecDeque::new();
        }
        next
    }

    /// The next order. Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> ToHost {
        loop {
            if let Some(order) = self.take() {
                return order;
            }
            // A push since the look above has left its word here.
            self.0.filled.notified().await;
        }
    }
}

impl Drop for FromRouter {
    fn drop(&mut self) {
        *self.0.waiting() = None;
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    fn send() -> ToHost {
        ToHost::Send(Box::default())
    }

    #[tokio::test]
    async fn it_is_bounded_in_order_and_wakes_its_reader() {
        let (to_link, mut from_router) = pair();
        for _ in 0..TO_HOST_MAX {
            assert!(to_link.push(send()));
        }
        assert!(!to_link.push(send()));
        while from_router.take().is_some() {}
        let sender = to_link.clone();
        let later = tokio::spawn(async move {
            tokio::task::yield_now().await;
            sender.push(send())
        });
        assert!(matches!(from_router.next().await, ToHost::Send(_)));
        assert!(later.await.unwrap());
    }

    #[tokio::test]
    async fn when_the_link_ends_those_who_wait_for_it_are_told() {
        let (to_link, from_router) = pair();
        let (answered, answer) = oneshot::channel();
        let nonce = 1;
        assert!(to_link.push(ToHost::Challenge { nonce, answered }));
        drop(from_router);
        assert!(answer.await.is_err());
        assert!(!to_link.push(send()));
    }
}
