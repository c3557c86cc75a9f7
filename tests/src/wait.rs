//! Waiting for a condition: the only place in the tests that sleeps.

use std::time::Duration;

use tokio::time::Instant;

/// Between two looks.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(20);

/// Looks until `look` has a value; `what` and the last thing that `look` said are the words of the
/// failure when it takes longer than `within`.
///
/// # Panics
/// When the time is over.
#[track_caller]
pub fn wait_for<T>(
    what: &str,
    within: Duration,
    look: impl AsyncFnMut() -> Result<T, String>,
) -> impl Future<Output = T> {
    let place = std::panic::Location::caller();
    let what = what.to_owned();
    async move {
        let mut look = look;
        let began = Instant::now();
        loop {
            let last = match look().await {
                Ok(value) => return value,
                Err(last) => last,
            };
            assert!(
                began.elapsed() < within,
                "{what}: not within {within:?} (asked at {place}); last seen: {last}"
            );
            tokio::time::sleep(LOOK_AGAIN_AFTER).await;
        }
    }
}

/// Looks for the whole of `during`, and fails as soon as `look` says that something is wrong: for what
/// must *not* happen.
///
/// # Panics
/// When it happens.
#[track_caller]
pub fn stays_so(
    what: &str,
    during: Duration,
    look: impl AsyncFnMut() -> Result<(), String>,
) -> impl Future<Output = ()> {
    let place = std::panic::Location::caller();
    let what = what.to_owned();
    async move {
        let mut look = look;
        let began = Instant::now();
        while began.elapsed() < during {
            if let Err(wrong) = look().await {
                panic!(
                    "{what}: not so after {:?} (asked at {place}): {wrong}",
                    began.elapsed()
                );
            }
            tokio::time::sleep(LOOK_AGAIN_AFTER).await;
        }
    }
}

/// Lets a moment pass, where *when* something happens is what is tried: a kill at a random time. Never
/// to wait for something.
pub async fn moment(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
}
