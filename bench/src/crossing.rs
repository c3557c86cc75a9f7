//! Round trips and fan-out over links that are there: one way of measuring for the product and the floor.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::measuring::micros;

/// Commands under way while one goes to every host: the product's way to the controller holds 1,024.
const WINDOW: usize = 512;
/// An answer that has not come by then is lost.
const LOST_AFTER: Duration = Duration::from_secs(20);
/// What a command weighs, encoded.
pub const COMMAND_BYTES: usize = 200;

/// Links to measure.
pub trait Links {
    /// How many there are.
    fn count(&self) -> usize;
    /// Sends the command of that number over one of them.
    fn send(&mut self, link: usize, number: u64);
    /// The number of the next answer.
    fn answered(&mut self) -> impl Future<Output = u64>;
}

/// What was measured.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Crossed {
    /// Links.
    pub links: usize,
    /// Round trips, microseconds.
    pub round_trips_us: Vec<f64>,
    /// One command to every link: commands a second.
    pub fan_out_per_s: Vec<f64>,
}

/// Follows an order: `links`, `round-trips N`, `fan-out`.
pub async fn follow(links: &mut impl Links, order: &str) -> Crossed {
    let mut crossed = Crossed {
        links: links.count(),
        ..Crossed::default()
    };
    let words: Vec<&str> = order.split(' ').collect();
    match words.as_slice() {
        ["round-trips", count] => {
            let count = count.parse().unwrap_or(0);
            crossed.round_trips_us = round_trips(links, count).await;
        }
        ["fan-out"] => crossed.fan_out_per_s = vec![fan_out(links).await],
        _ => {}
    }
    crossed
}

async fn answer_of(links: &mut impl Links) -> u64 {
    tokio::time::timeout(LOST_AFTER, links.answered())
        .await
        .expect("an answer")
}

/// One after another, each over a link by chance.
async fn round_trips(links: &mut impl Links, count: u64) -> Vec<f64> {
    let first = u64::from(u32::from_le_bytes(fairlead_identity::random::bytes())) << 16;
    let mut times = Vec::new();
    for number in first..first + count {
        let chance = u32::from_le_bytes(fairlead_identity::random::bytes()) as usize;
        let link = chance % links.count();
        let began = Instant::now();
        links.send(link, number);
        while answer_of(links).await != number {}
        times.push(micros(began.elapsed()));
    }
    times
}

async fn fan_out(links: &mut impl Links) -> f64 {
    let count = links.count();
    let first = u64::from(u32::from_le_bytes(fairlead_identity::random::bytes())) << 16;
    let numbers = first..first + count as u64;
    let began = Instant::now();
    let (mut sent, mut answered) = (0, 0);
    while answered < count {
        while sent < count && sent - answered < WINDOW {
            links.send(sent, first + sent as u64);
            sent += 1;
        }
        if numbers.contains(&answer_of(links).await) {
            answered += 1;
        }
    }
    count as f64 / began.elapsed().as_secs_f64()
}
