//! Frames of a stream: one byte of channel, then the payload. The same bytes travel from agent to
//! access server to controller to client, so relays never decode them.

use bytes::{BufMut, Bytes, BytesMut};

pub mod flow;

/// What a frame of a stream carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// Client to agent: input of a process, or the bytes of an archive.
    Input,
    /// Client to agent: no more input follows.
    InputEnd,
    /// Agent to client: output, log lines, or the bytes of an archive.
    Output,
    /// Agent to client: standard error.
    ErrorOutput,
    /// Agent to client, last frame: JSON `{"state":"succeeded","code":"","message":"","exit_code":0}`.
    End,
    /// Agent to client, first frame: the work has begun, input may be sent. Of what can be held (a terminal, a
    /// process, a log, a copy) it has a payload ([`CAN_BE_HELD`]).
    Begun,
    /// Client to agent: JSON `{"columns":80,"rows":25}`.
    Resize,
    /// Client to agent, after a [`Channel::Begun`] that can be held: this client may ask for it, and keeps input
    /// until it is told that it was taken.
    Keep,
    /// Agent to client, to one that keeps: a [`Position`]; the process has taken so much input.
    Taken,
    /// Client (or a relay that goes) to agent: the stream ends, and another one follows within a minute. Nothing
    /// follows it.
    Hold,
    /// Agent to client, last frame of a stream that was held: the [`Position`] at which it goes on.
    Held,
    /// Client to agent, first frame of the stream on which it goes on: the same [`Position`].
    Resume,
}

/// The payload of [`Channel::Begun`] of what can be held.
pub const CAN_BE_HELD: &[u8] = b"hold";

/// How far both directions have come, in bytes since it began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Position {
    /// Output that was sent.
    pub output: u64,
    /// Input that the process has taken.
    pub input: u64,
}

impl Position {
    /// As a payload.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 16] {
        (u128::from(self.output) << 64 | u128::from(self.input)).to_be_bytes()
    }

    /// Of a payload.
    #[must_use]
    pub fn parse(payload: &[u8]) -> Option<Self> {
        let (output, input) = payload.split_first_chunk::<8>()?;
        Some(Self {
            output: u64::from_be_bytes(*output),
            input: u64::from_be_bytes(input.try_into().ok()?),
        })
    }
}

impl Channel {
    fn tag(self) -> u8 {
        match self {
            Self::Input => 0,
            Self::Output => 1,
            Self::ErrorOutput => 2,
            Self::End => 3,
            Self::InputEnd => 4,
            Self::Begun => 5,
            Self::Resize => 6,
            Self::Keep => 7,
            Self::Taken => 8,
            Self::Hold => 9,
            Self::Held => 10,
            Self::Resume => 11,
        }
    }

    fn from_tag(tag: u8) -> Option<Self> {
        Some(match tag {
            0 => Self::Input,
            1 => Self::Output,
            2 => Self::ErrorOutput,
            3 => Self::End,
            4 => Self::InputEnd,
            5 => Self::Begun,
            6 => Self::Resize,
            7 => Self::Keep,
            8 => Self::Taken,
            9 => Self::Hold,
            10 => Self::Held,
            11 => Self::Resume,
            _ => return None,
        })
    }
}

/// One frame: channel and payload.
#[must_use]
pub fn frame(channel: Channel, payload: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(payload.len() + 1);
    bytes.put_u8(channel.tag());
    bytes.put_slice(payload);
    bytes.freeze()
}

/// Channel and payload of a frame; `None` for an empty frame or an unknown channel.
#[must_use]
pub fn parse(mut frame: Bytes) -> Option<(Channel, Bytes)> {
    let channel = Channel::from_tag(*frame.first()?)?;
    Some((channel, frame.split_off(1)))
}

/// Whether it says that the stream ends and another one follows.
#[must_use]
pub fn is_hold(frame: &Bytes) -> bool {
    frame.first() == Some(&Channel::Hold.tag())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_position_is_its_bytes(output: u64, input: u64, other: Vec<u8>) {
            let position = Position { output, input };
            prop_assert_eq!(Position::parse(&position.to_bytes()), Some(position));
            prop_assert_eq!(Position::parse(&other).is_some(), other.len() == 16);
        }

        #[test]
        fn any_bytes_parse_or_are_refused(bytes: Vec<u8>) {
            if let Some((channel, payload)) = parse(Bytes::from(bytes.clone())) {
                prop_assert_eq!(frame(channel, &payload), bytes);
            }
        }
    }
}
