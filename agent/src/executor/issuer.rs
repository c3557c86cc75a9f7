//! The stream on which the issuer of a command wants to see it carried out: waited for, for a time.
//!
//! Who waits at the other end is asked for over the link. While that is down nobody can come, so that time does not
//! count: a server that restarts costs its clients a moment and not their command. In all it is bounded by what is
//! kept for a server that restarts anyway, since the command holds its lane meanwhile.
//!
//! A stream that came before the command's turn may lead to a server that has gone meanwhile, or is going. What was
//! run then would have no reader, though there is one, who asks for another stream: that one is waited for.

use std::time::Duration;

use fairlead_link::socket::StreamSocket;
use fairlead_protocol::stream::is_hold;
use fairlead_protocol::{codes, limits};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep_until};

use super::job::Job;
use super::outcome::Outcome;
use super::surroundings::{News, Surroundings};

/// What a client may have said before the command's turn; behind more of it no server's word is looked for.
const SAID_BYTES_MAX: usize = 1024 * 1024;

/// The stream that the issuer wanted, once it is there; none where none was wanted.
pub(super) async fn stream_of(
    job: &mut Job,
    around: &Surroundings,
) -> Result<Option<StreamSocket>, Outcome> {
    if !job.command.attach {
        return Ok(None);
    }
    let Some(mut coming) = job.stream.take() else {
        return Err(nobody("since the agent was restarted"));
    };
    let mut patience = Patience::new(around.terminals_held);
    loop {
        let mut stream = arrival(coming, around.link.clone(), patience).await?;
        match stream.has_come(is_hold, SAID_BYTES_MAX) {
            // One that was closed in order was closed by its client: who has gone is not waited for.
            Ok(false) => return Ok(Some(stream)),
            // As for what is held when it runs: whose server has said that it restarts may take so long.
            Ok(true) => patience.each = around.terminals_held,
            Err(_) => {}
        }
        tracing::info!(command = %job.id, "its stream was lost with a server that restarts: the next one is waited for");
        let (slot, next) = oneshot::channel();
        let news = News::AwaitsStream { id: job.id, slot };
        let _ = around.news.send(news).await;
        coming = next;
    }
}

/// How long a stream is waited for.
#[derive(Clone, Copy)]
struct Patience {
    /// Over one link, counted anew with each.
    each: Duration,
    /// Links or not.
    last: Instant,
}

impl Patience {
    fn new(held: Duration) -> Self {
        Self {
            each: limits::STREAM_DIAL_TIMEOUT,
            last: Instant::now() + limits::STREAM_DIAL_TIMEOUT + held,
        }
    }
}

/// What comes while there is patience.
async fn arrival<T>(
    mut coming: oneshot::Receiver<T>,
    mut link: watch::Receiver<Option<u64>>,
    patience: Patience,
) -> Result<T, Outcome> {
    let Patience { each, last } = patience;
    loop {
        let linked = link.borrow_and_update().is_some();
        let until = if linked {
            last.min(Instant::now() + each)
        } else {
            last
        };
        tokio::select! {
            biased;
            came = &mut coming => {
                return came.map_err(|_| nobody("because it could not be opened"));
            }
            // The actor, which tells it, outlives its jobs.
            Ok(()) = link.changed() => {}
            () = sleep_until(until) => {
                let why = if linked {
                    format!("within {} s", each.as_secs())
                } else {
                    "while the link to the access server was down".to_owned()
                };
                return Err(nobody(&why));
            }
        }
    }
}

fn nobody(why: &str) -> Outcome {
    Outcome::failed(
        codes::STREAM_NOT_ATTACHED,
        format!("nobody attached to the command's stream {why}; nothing was run"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELD: Duration = Duration::from_secs(60);

    /// When it was given up, and with which words.
    async fn given_up(link: watch::Receiver<Option<u64>>) -> (Duration, String) {
        let (_slot, coming) = oneshot::channel::<()>();
        let began = Instant::now();
        let outcome = arrival(coming, link, Patience::new(HELD))
            .await
            .unwrap_err();
        assert_eq!(outcome.code, codes::STREAM_NOT_ATTACHED);
        (began.elapsed(), outcome.message)
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_comes_over_a_link_that_is_up() {
        let (_number, link) = watch::channel(Some(1));
        let (after, message) = given_up(link).await;
        assert_eq!(after.as_secs(), 10);
        assert!(message.contains("within 10 s"), "{message}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_link_that_stays_down_is_not_waited_for_without_end() {
        let (_number, link) = watch::channel(None);
        let (after, message) = given_up(link).await;
        assert_eq!(after.as_secs(), 70);
        assert!(message.contains("was down"), "{message}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_link_that_comes_and_goes_keeps_it_and_not_for_ever() {
        let (number, link) = watch::channel(Some(0));
        let flapping = async {
            for each in 1.. {
                tokio::time::sleep(Duration::from_secs(4)).await;
                number.send_replace(None);
                tokio::time::sleep(Duration::from_secs(8)).await;
                number.send_replace(Some(each));
            }
        };
        let given_up = tokio::select! {
            given_up = given_up(link) => given_up,
            () = flapping => unreachable!(),
        };
        assert_eq!(given_up.0.as_secs(), 70);
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_on_the_second_link_is_taken() {
        let (number, link) = watch::channel(Some(1));
        let (slot, coming) = oneshot::channel();
        let coming = tokio::spawn(arrival(coming, link, Patience::new(HELD)));
        for (seconds, now) in [
            (9, None),
            (30, Some(2)),
            (9, None),
            (1, Some(3)),
            (9, Some(3)),
        ] {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            number.send_replace(now);
        }
        slot.send("a stream").unwrap();
        assert_eq!(coming.await.unwrap(), Ok("a stream"));
    }
}
