//! How late this machine wakes a thread that wants nothing else: what no program on it can be faster than.
//!
//! One thread on each processor, because a neighbour may take the one and leave the other alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

const BEAT: Duration = Duration::from_millis(1);

/// Measures until it is asked.
#[derive(Debug)]
pub struct Lateness {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Duration>>,
}

impl Lateness {
    /// Begins to measure.
    ///
    /// # Panics
    /// When the kernel does not say on which processors this process may run.
    #[must_use]
    pub fn begin() -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let allowed = sched_getaffinity(None).expect("processors");
        let threads = (0..CpuSet::MAX_CPU)
            .filter(|cpu| allowed.is_set(*cpu))
            .map(|cpu| {
                let until = Arc::clone(&over);
                std::thread::spawn(move || measure(cpu, &until))
            })
            .collect();
        Self { over, threads }
    }

    /// The latest that it was.
    ///
    /// # Panics
    /// When a thread did.
    #[must_use]
    pub fn end(self) -> Duration {
        self.over.store(true, Ordering::Relaxed);
        self.threads
            .into_iter()
            .map(|thread| thread.join().expect("it measures"))
            .max()
            .unwrap_or_default()
    }
}

/// Holds somebody to a time that was promised, but for how late the machine itself was meanwhile.
#[derive(Debug)]
pub struct Promised {
    began: Instant,
    lateness: Lateness,
}

impl Promised {
    /// From now on.
    #[must_use]
    pub fn begin() -> Self {
        Self {
            began: Instant::now(),
            lateness: Lateness::begin(),
        }
    }

    /// It has come to pass now.
    ///
    /// # Panics
    /// When that is later than `within`. A few programs are on the way, and each may have been late.
    #[track_caller]
    pub fn kept(self, within: Duration) {
        let took = self.began.elapsed();
        let late = self.lateness.end();
        assert!(
            took < within + 3 * late,
            "{took:?}, the machine {late:?} late"
        );
    }
}

fn measure(cpu: usize, until: &AtomicBool) -> Duration {
    let mut only = CpuSet::new();
    only.set(cpu);
    sched_setaffinity(None, &only).expect("it may run there");
    let mut latest = Duration::ZERO;
    while !until.load(Ordering::Relaxed) {
        let asked = Instant::now();
        std::thread::sleep(BEAT);
        latest = latest.max(asked.elapsed().saturating_sub(BEAT));
    }
    latest
}
