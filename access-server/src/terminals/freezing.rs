//! What is kept of this region's terminals over an orderly restart of its access server: beside the sessions, how far
//! its clock is from the centre's, and since when it has had no uplink.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fairlead_protocol::FrozenTerminals;
use fairlead_webssh::{Frozen, Terminals};
use tokio::time::Instant;

use super::{Desk, lock};
use crate::region::Region;

/// Keeps what goes on in the next process.
pub async fn keep(frozen: &Frozen, region: &Region, desk: &Desk, left: Option<FrozenTerminals>) {
    let Some(mut left) = left else { return };
    let now_us = region.clock.now_us();
    left.at_us = now_us;
    left.ahead_us = desk.ahead_us.load(Ordering::Relaxed);
    if let Some(since) = *lock(&desk.cut_off) {
        let ago_us = i64::try_from(since.elapsed().as_micros()).unwrap_or(i64::MAX);
        left.cut_off_us = now_us.saturating_sub(ago_us);
    }
    frozen.keep(left).await;
}

/// Goes on with what the process before has kept.
pub async fn thaw(frozen: &Frozen, region: &Region, desk: &Desk, terminals: &Arc<Terminals>) {
    let Some(kept) = frozen.take().await else {
        return;
    };
    let now_us = region.clock.now_us();
    let since =
        |at_us: i64| Duration::from_micros(now_us.saturating_sub(at_us).max(0).unsigned_abs());
    desk.ahead_us.store(kept.ahead_us, Ordering::Relaxed);
    if kept.cut_off_us != 0 {
        let began = Instant::now().checked_sub(since(kept.cut_off_us));
        *lock(&desk.cut_off) = Some(began.unwrap_or_else(Instant::now));
    }
    let age = since(kept.at_us);
    let count = terminals.thaw(kept, age).await;
    tracing::info!(count, ?age, "terminals go on after the restart");
}
