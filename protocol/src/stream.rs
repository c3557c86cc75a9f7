//! Frames of a stream: one byte of channel, then the payload. The same bytes travel from agent to
//! access server to controller to client, so relays never decode them.

use bytes::{BufMut, Bytes, BytesMut};

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
    /// Agent to client, first frame: the work has begun, input may be sent.
    Begun,
    /// Client to agent: JSON `{"columns":80,"rows":25}`.
    Resize,
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_parse_or_are_refused(bytes: Vec<u8>) {
            if let Some((channel, payload)) = parse(Bytes::from(bytes.clone())) {
                prop_assert_eq!(frame(channel, &payload), bytes);
            }
        }
    }
}
