use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use super::*;

const WAITING: Waiting = Waiting {
    max: 1000,
    per_address_max: 20,
};
const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
const THERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

fn visitor(doorkeeper: &Arc<Doorkeeper>, from: IpAddr) -> Option<Visitor> {
    let place = Arc::clone(&doorkeeper.places).try_acquire_owned().unwrap();
    doorkeeper.receive(from, place)
}

/// Both ends of a connection; the first has said something.
async fn spoken() -> (TcpStream, TcpStream) {
    let (mut client, server) = silent().await;
    client.write_all(b"x").await.unwrap();
    (client, server)
}

async fn silent() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap());
    let (client, accepted) = tokio::join!(client, listener.accept());
    (client.unwrap(), accepted.unwrap().0)
}

#[tokio::test]
async fn an_address_that_takes_all_it_can_takes_nothing_from_another() {
    let doorkeeper = Doorkeeper::new(WAITING);
    let (_client, tcp) = spoken().await;
    let mut turns = Vec::new();
    for _ in 0..HANDSHAKES_PER_ADDRESS_MAX {
        let visitor = visitor(&doorkeeper, HERE).unwrap();
        turns.push(visitor.turn(&tcp).await.unwrap());
    }
    let mut waiting = Vec::new();
    for _ in 0..WAITING.per_address_max {
        waiting.push(visitor(&doorkeeper, HERE).unwrap());
    }
    assert!(visitor(&doorkeeper, HERE).is_none(), "its queue is full");
    // The next of that address waits, another address does not.
    let next = waiting.pop().unwrap().turn(&tcp);
    let mut next = std::pin::pin!(next);
    assert!(
        tokio::time::timeout(Duration::from_millis(50), &mut next)
            .await
            .is_err()
    );
    visitor(&doorkeeper, THERE)
        .unwrap()
        .turn(&tcp)
        .await
        .unwrap();
    // Until one of its own is done.
    turns.pop();
    next.await.unwrap();
}

#[tokio::test]
async fn places_are_given_free_and_addresses_forgotten() {
    let doorkeeper = Doorkeeper::new(WAITING);
    let (_client, tcp) = spoken().await;
    let one = visitor(&doorkeeper, HERE).unwrap();
    let turn = visitor(&doorkeeper, HERE)
        .unwrap()
        .turn(&tcp)
        .await
        .unwrap();
    assert_eq!(doorkeeper.places.available_permits(), WAITING.max - 1);
    assert_eq!(doorkeeper.addresses().len(), 1);
    drop((one, turn));
    assert_eq!(doorkeeper.places.available_permits(), WAITING.max);
    assert!(doorkeeper.addresses().is_empty());
    assert_eq!(doorkeeper.handshakes.available_permits(), HANDSHAKES_MAX);
}

#[tokio::test(start_paused = true)]
async fn silence_and_waiting_have_their_time() {
    let doorkeeper = Doorkeeper::new(WAITING);
    let (_client, quiet) = silent().await;
    let began = tokio::time::Instant::now();
    let error = visitor(&doorkeeper, HERE).unwrap().turn(&quiet).await;
    assert!(matches!(error, Err(AcceptError::Silent)));
    assert_eq!(began.elapsed(), limits::FIRST_BYTE_TIMEOUT);

    let mut held = Vec::new();
    for _ in 0..HANDSHAKES_PER_ADDRESS_MAX {
        let visitor = visitor(&doorkeeper, HERE).unwrap();
        held.push(visitor.turns.clone().acquire_owned().await.unwrap());
        std::mem::forget(visitor);
    }
    let (_client, tcp) = spoken().await;
    tcp.readable().await.unwrap();
    let error = visitor(&doorkeeper, HERE).unwrap().turn(&tcp).await;
    assert!(matches!(error, Err(AcceptError::Timeout)));
}
