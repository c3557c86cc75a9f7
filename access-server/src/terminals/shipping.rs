//! Recordings, from this disk to the controller's: while they happen, in the order of their bytes, one piece at
//! a time. What the controller has looked through and kept is removed here; what it has not stays, and counts.
//! When all that stays takes all the room there is, no terminal is opened here any more: no recorder, no shell.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fairlead_protocol::{CommandId, RecordingPart, RecordingTaken, codes, uplink_up};
use tokio::sync::oneshot;

use super::{Desk, lock};
use crate::region::Region;

/// How often it is looked whether there is something new.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long the controller is left alone when it cannot keep any.
const LEFT_ALONE: Duration = Duration::from_secs(30);
/// How long it may take for a piece; looking a long recording through takes its time.
const TAKEN_WITHIN: Duration = Duration::from_secs(120);
/// Pieces of one recording, until it is another's turn.
const PIECES_AT_ONCE: usize = 16;

/// Why no more is shipped in this round.
enum Pause {
    /// There is no controller, or it did not answer.
    Alone,
    /// It cannot keep any now.
    Full(String),
}

/// Ships until it is dropped.
pub(super) async fn ship(region: &Region, desk: &Desk) {
    // Those that the controller does not take; they stay here for people to look at.
    let mut strange = HashSet::new();
    loop {
        let wait = match round(region, desk, &mut strange).await {
            Ok(true) => Duration::ZERO,
            Ok(false) | Err(Pause::Alone) => LOOK_EVERY,
            Err(Pause::Full(why)) => {
                tracing::error!(why, "the controller keeps no recordings now");
                LEFT_ALONE
            }
        };
        // One that has ended is shipped at once.
        let _ = tokio::time::timeout(wait, desk.ended.notified()).await;
    }
}

/// All that is here, once; whether some of it is left.
async fn round(
    region: &Region,
    desk: &Desk,
    strange: &mut HashSet<CommandId>,
) -> Result<bool, Pause> {
    if !region.is_attached() {
        return Err(Pause::Alone);
    }
    let made = match desk.recordings.made_here().await {
        Ok(made) => made,
        Err(error) => {
            tracing::error!(%error, "recordings cannot be read");
            return Ok(false);
        }
    };
    let mut more = false;
    for session in made {
        if strange.contains(&session) {
            continue;
        }
        // Asked before it is read: one that ends meanwhile is shipped to its end next time.
        let open = desk.terminals().and_then(|all| all.find(session));
        // One that has not begun yet is nothing that the controller knows of.
        if open
            .as_ref()
            .is_some_and(|open| open.output.load(Ordering::Relaxed) == 0)
        {
            continue;
        }
        match pass(region, desk, session, open.is_some()).await? {
            Passed::UpToHere => {}
            Passed::Some => more = true,
            Passed::NotTaken(why) => {
                tracing::error!(%session, why, "the controller does not take a recording; it stays here");
                strange.insert(session);
            }
        }
    }
    Ok(more)
}

enum Passed {
    /// All that is there.
    UpToHere,
    /// A part; the rest next time.
    Some,
    NotTaken(String),
}

async fn pass(
    region: &Region,
    desk: &Desk,
    session: CommandId,
    is_open: bool,
) -> Result<Passed, Pause> {
    // Nothing from the beginning: what is there already is said.
    let mut part = RecordingPart {
        session: session.to_wire(),
        ..RecordingPart::default()
    };
    for _ in 0..PIECES_AT_ONCE {
        let (sent, is_last) = (part.offset + part.data.len() as u64, part.last);
        let taken = tell(region, desk, part).await?;
        match &taken.code[..] {
            "" => {}
            codes::BUSY => return Ok(Passed::UpToHere),
            codes::STORAGE_UNAVAILABLE => return Err(Pause::Full(taken.message)),
            _ => return Ok(Passed::NotTaken(taken.message)),
        }
        if taken.done {
            if let Err(error) = desk.recordings.remove(session).await {
                tracing::error!(%session, %error, "a recording that is kept elsewhere stays here too");
            }
            return Ok(Passed::UpToHere);
        }
        if is_last && taken.have == sent {
            return Ok(Passed::NotTaken("it says nothing to its end".to_owned()));
        }
        let piece = match desk.recordings.piece(session, taken.have).await {
            Ok(piece) => piece,
            // It was discarded: its terminal never began.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Passed::UpToHere);
            }
            Err(error) => {
                tracing::error!(%session, %error, "a recording cannot be read");
                return Ok(Passed::UpToHere);
            }
        };
        let last = piece.is_last && !is_open;
        if piece.data.is_empty() && !last {
            return Ok(Passed::UpToHere);
        }
        part = RecordingPart {
            session: session.to_wire(),
            offset: taken.have,
            data: piece.data.into(),
            last,
        };
    }
    Ok(Passed::Some)
}

async fn tell(region: &Region, desk: &Desk, part: RecordingPart) -> Result<RecordingTaken, Pause> {
    let session = part.session.clone();
    let (answer, answered) = oneshot::channel();
    *lock(&desk.shipped) = Some(answer);
    // Whoever detaches from here on finds it, and ends the wait.
    if !region.is_attached() {
        lock(&desk.shipped).take();
        return Err(Pause::Alone);
    }
    region.tell_if_room(uplink_up::Kind::Recording(part));
    let outcome = tokio::time::timeout(TAKEN_WITHIN, answered).await;
    lock(&desk.shipped).take();
    let taken = outcome.ok().and_then(Result::ok).ok_or(Pause::Alone)?;
    if taken.session == session {
        Ok(taken)
    } else {
        Err(Pause::Alone)
    }
}
