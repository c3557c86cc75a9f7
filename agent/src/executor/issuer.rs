//! The stream on which the issuer of a command wants to see it carried out: waited for, for a time.
//!
//! Who waits at the other end is asked for over the link. While that is down nobody can come, so that time does not
//! count: a server that restarts costs its clients a moment and not their command. In all it is bounded by what is
//! kept for a server that restarts anyway, since the command holds its lane meanwhile.

use std::time::Duration;

use fairlead_link::socket::StreamSocket;
use fairlead_protocol::{codes, limits};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep_until};

use super::job::Job;
use super::outcome::Outcome;
use super::surroundings::Surroundings;

/// The stream that the issuer wanted, once it is there; none where none was wanted.
pub(super) async fn stream_of(
    job: &mut Job,
    around: &Surroundings,
) -> Result<Option<StreamSocket>, Outcome> {
    if !job.command.attach {
        return Ok(None);
    }
    let Some(coming) = job.stream.take() else {
        return Err(nobody("since the agent was restarted"));
    };
    let stream = arrival(coming, around.link.clone(), around.terminals_held).await?;
    Ok(Some(stream))
}

/// What comes, if it does so within the time for dialling, counted anew with each link; and, links or not, within
/// `held` beyond that.
async fn arrival<T>(
    mut coming: oneshot::Receiver<T>,
    mut link: watch::Receiver<Option<u64>>,
    held: Duration,
) -> Result<T, Outcome> {
    let last = Instant::now() + limits::STREAM_DIAL_TIMEOUT + held;
    loop {
        let linked = link.borrow_and_update().is_some();
        let until = if linked {
            last.min(Instant::now() + limits::STREAM_DIAL_TIMEOUT)
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
                    format!("within {} s", limits::STREAM_DIAL_TIMEOUT.as_secs())
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
        let outcome = arrival(coming, link, HELD).await.unwrap_err();
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
        let coming = tokio::spawn(arrival(coming, link, HELD));
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
