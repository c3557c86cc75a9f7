//! TCP to whatever addresses a name has: IPv6 and IPv4 in turn, and the next one is begun when the one
//! before is silent for a moment, so that a family that leads nowhere costs a moment and no more (RFC 8305).

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::net::TcpStream;

/// The next address is tried when this one has neither answered nor failed within that.
const NEXT_AFTER: Duration = Duration::from_millis(250);
/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 8;

/// Connects to `host:port`.
///
/// # Errors
/// When none of its addresses answers; what the first that failed said.
pub(crate) async fn connect(address: &str) -> io::Result<TcpStream> {
    let found: Vec<SocketAddr> = tokio::net::lookup_host(address).await?.collect();
    first_of(in_turn(found), TcpStream::connect::<SocketAddr>).await
}

/// The resolver's order, but the families alternate, the resolver's first choice first.
fn in_turn(found: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_v6 = found.first().is_some_and(SocketAddr::is_ipv6);
    let (mut first, mut second): (Vec<_>, Vec<_>) = found
        .into_iter()
        .partition(|address| address.is_ipv6() == first_is_v6);
    let mut all = Vec::new();
    first.reverse();
    second.reverse();
    while all.len() < ADDRESSES_MAX && !(first.is_empty() && second.is_empty()) {
        all.extend(first.pop());
        all.extend(second.pop());
    }
    all.truncate(ADDRESSES_MAX);
    all
}

/// The first that connects; those that are slower are dropped.
async fn first_of<Connected, Trying>(
    addresses: Vec<SocketAddr>,
    connect: impl Fn(SocketAddr) -> Trying,
) -> io::Result<Connected>
where
    Trying: Future<Output = io::Result<Connected>>,
{
    let mut waiting = addresses.into_iter();
    let mut trying = FuturesUnordered::new();
    let mut failed: Option<io::Error> = None;
    loop {
        let next = waiting.next();
        let is_last = next.is_none();
        trying.extend(next.map(&connect));
        let outcome = if is_last {
            trying.next().await
        } else {
            match tokio::time::timeout(NEXT_AFTER, trying.next()).await {
                Ok(outcome) => outcome,
                // Silent: the next one is tried beside it.
                Err(_) => continue,
            }
        };
        match outcome {
            Some(Ok(connected)) => return Ok(connected),
            Some(Err(error)) => failed = failed.or(Some(error)),
            None if is_last => {
                return Err(failed.unwrap_or_else(|| {
                    io::Error::new(io::ErrorKind::NotFound, "the name has no address")
                }));
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn families_alternate_and_the_resolvers_choice_is_first() {
        let found = ["[2001:db8::1]:1", "[2001:db8::2]:1", "192.0.2.1:1"].map(address);
        let order = in_turn(found.to_vec());
        assert_eq!(order, [found[0], found[2], found[1]]);
        let found = ["192.0.2.1:1", "192.0.2.2:1", "[2001:db8::1]:1"].map(address);
        assert_eq!(in_turn(found.to_vec()), [found[0], found[2], found[1]]);
        let many: Vec<_> = (0..20)
            .map(|n| address(&format!("192.0.2.{n}:1")))
            .collect();
        assert_eq!(in_turn(many).len(), ADDRESSES_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn a_family_that_leads_nowhere_costs_a_moment() {
        let (silent, refused, good) = (
            address("[2001:db8::1]:1"),
            address("192.0.2.1:1"),
            address("192.0.2.2:1"),
        );
        let connect = |to: SocketAddr| async move {
            if to == silent {
                std::future::pending::<()>().await;
            }
            if to == good {
                Ok(to)
            } else {
                Err(io::Error::from(io::ErrorKind::ConnectionRefused))
            }
        };
        let began = tokio::time::Instant::now();
        let reached = first_of(vec![silent, refused, good], connect).await;
        assert_eq!(reached.unwrap(), good);
        assert_eq!(began.elapsed(), NEXT_AFTER, "one that fails costs nothing");
        let none = first_of(vec![refused, refused], connect).await.unwrap_err();
        assert_eq!(none.kind(), io::ErrorKind::ConnectionRefused);
        assert!(first_of(Vec::new(), connect).await.is_err());
    }

    #[tokio::test]
    async fn both_families_of_this_machine_are_reached() {
        for at in ["127.0.0.1:0", "[::1]:0"] {
            let listener = match tokio::net::TcpListener::bind(at).await {
                Ok(listener) => listener,
                // A machine without IPv6.
                Err(error) if at.starts_with('[') => {
                    eprintln!("not looked at: {at}: {error}");
                    continue;
                }
                Err(error) => panic!("{error}"),
            };
            let own = listener.local_addr().unwrap().to_string();
            connect(&own).await.unwrap();
        }
    }
}
