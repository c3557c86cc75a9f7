use tokio::io::AsyncReadExt;

use super::*;
use crate::runtime::simulated::{SimulatedOptions, SimulatedRuntime};

fn whole(length: u32) -> Vec<u8> {
    (0..length)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}

/// A hold may come while a piece is being taken: what is said to be taken is what the process gets.
#[tokio::test(start_paused = true)]
async fn what_is_dropped_at_any_moment_has_taken_what_it_says() {
    let runtime = SimulatedRuntime::new(SimulatedOptions::default()).unwrap();
    let (near, mut far) = tokio::io::duplex(1000);
    let mut sink = Sink::Engine {
        runtime: &runtime,
        exec_id: "none",
        input: Box::pin(near),
        size: Some((80, 25)),
    };
    let (taken, whole) = (AtomicU64::new(0), whole(60_000));
    let (mut came, mut holds) = (Vec::new(), 0);
    while came.len() < whole.len() {
        // The next server goes on where this one was told to.
        let at = taken.load(Ordering::Relaxed);
        let way = Way::from(at);
        let rest = &whole[usize::try_from(at).unwrap()..];
        for piece in rest.chunks(777).take(1 + holds % 5) {
            way.push(Word::Input(piece.into()));
            way.push(Word::Resize(80, 25));
        }
        let mut piece = vec![0; 1 + holds * 37 % 900];
        let read = tokio::select! {
            biased;
            ended = give(&mut sink, &taken, &way) => panic!("{ended:?}"),
            read = far.read(&mut piece) => read.unwrap(),
        };
        came.extend_from_slice(&piece[..read]);
        holds += 1;
    }
    assert!(came == whole && holds > 60, "{holds}");
    assert_eq!(taken.load(Ordering::Relaxed), 60_000);
}

#[tokio::test(start_paused = true)]
async fn a_client_is_told_in_steps_and_only_if_it_keeps() {
    let way = Way::from(5);
    let soon = Duration::from_millis(1);
    way.took(5 + TELL_EVERY);
    assert!(tokio::time::timeout(soon, way.due()).await.is_err());
    way.keeps.store(true, Ordering::Relaxed);
    way.took(6 + TELL_EVERY);
    let (channel, said) = parse(way.due().await).unwrap();
    assert_eq!(channel, Channel::Taken);
    assert_eq!(Position::parse(&said).unwrap().input, 6 + TELL_EVERY);
    way.took(5 + 2 * TELL_EVERY);
    assert!(tokio::time::timeout(soon, way.due()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn what_is_heard_ahead_is_bounded_and_room_comes_back() {
    let way = Way::from(0);
    let mut bytes = 0;
    while !way.is_full() {
        way.push(Word::Input(BytesMut::from(&[0; 1000][..])));
        bytes += 1000;
    }
    assert!(bytes <= AHEAD_BYTES_MAX + 1000);
    let waits = tokio::time::timeout(Duration::from_secs(1), way.until_room()).await;
    assert!(waits.is_err() && way.deaf.load(Ordering::Relaxed));
    assert!(matches!(way.next().await, Word::Input(all) if all.len() == bytes));
    way.until_room().await;
    assert!(!way.deaf.load(Ordering::Relaxed));
    // Sizes and bytes in turn are no way around it; sizes alone are one.
    for n in 0..3000 {
        way.push(Word::Resize(n, 25));
    }
    assert!(!way.is_full());
    while !way.is_full() {
        way.push(Word::Input(BytesMut::from(&b"x"[..])));
        way.push(Word::Resize(80, 25));
    }
    assert!(way.heard().len() <= AHEAD_PIECES_MAX + 1);
}
