//! How late this machine wakes a thread that wants nothing else: what no program on it can be faster than.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const BEAT: Duration = Duration::from_millis(1);

/// Measures until it is asked.
#[derive(Debug)]
pub struct Lateness {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Duration>,
}

impl Lateness {
    /// Begins to measure.
    #[must_use]
    pub fn begin() -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            let mut latest = Duration::ZERO;
            while !until.load(Ordering::Relaxed) {
                let asked = Instant::now();
                std::thread::sleep(BEAT);
                latest = latest.max(asked.elapsed().saturating_sub(BEAT));
            }
            latest
        });
        Self { over, thread }
    }

    /// The latest that it was.
    ///
    /// # Panics
    /// When the thread did.
    #[must_use]
    pub fn end(self) -> Duration {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().expect("it measures")
    }
}
