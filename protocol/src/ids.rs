//! Typed ids: 16 random bytes, written as 26 characters of lower-case Crockford base32.
//!
//! An id carries no meaning. People may type any unique prefix; tables show the first six.

use std::fmt;

/// Letters of Crockford's base32: no `i`, `l`, `o`, `u`, so an id survives being read aloud.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// 128 bits in groups of five.
const TEXT_LEN: usize = 26;

/// The text or bytes given are not an id of this kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an id: expected {TEXT_LEN} characters of base32")]
pub struct InvalidId;

/// The 26 characters for 16 bytes.
fn encode(bytes: &[u8; 16]) -> String {
    let mut value = u128::from_be_bytes(*bytes);
    let mut text = [0u8; TEXT_LEN];
    // The lowest two bits of the text are padding: 26 * 5 = 130.
    let last = ((value & 0x7) << 2) as usize;
    value >>= 3;
    text[TEXT_LEN - 1] = ALPHABET[last];
    for slot in text[..TEXT_LEN - 1].iter_mut().rev() {
        *slot = ALPHABET[(value & 0x1f) as usize];
        value >>= 5;
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// The 16 bytes for 26 characters; padding bits must be zero so that text and bytes are one to one.
fn decode(text: &str) -> Result<[u8; 16], InvalidId> {
    if text.len() != TEXT_LEN {
        return Err(InvalidId);
    }
    let mut value: u128 = 0;
    for (index, byte) in text.bytes().enumerate() {
        let digit = ALPHABET
            .iter()
            .position(|letter| *letter == byte)
            .ok_or(InvalidId)? as u128;
        if index == TEXT_LEN - 1 {
            if digit & 0x3 != 0 {
                return Err(InvalidId);
            }
            value = (value << 3) | (digit >> 2);
        } else {
            value = (value << 5) | digit;
        }
    }
    Ok(value.to_be_bytes())
}

/// Whether `text` could be the beginning of an id.
#[must_use]
pub fn is_prefix(text: &str) -> bool {
    !text.is_empty() && text.len() <= TEXT_LEN && text.bytes().all(|b| ALPHABET.contains(&b))
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 16]);

        impl $name {
            /// The id made of these bytes, which the caller took from a cryptographic source.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }

            /// The id that a peer sent.
            ///
            /// # Errors
            /// When it is not exactly 16 bytes long.
            pub fn from_wire(bytes: &[u8]) -> Result<Self, InvalidId> {
                bytes.try_into().map(Self).map_err(|_| InvalidId)
            }

            /// The bytes for the wire.
            #[must_use]
            pub fn to_wire(self) -> bytes::Bytes {
                bytes::Bytes::copy_from_slice(&self.0)
            }

            /// The raw bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }

            /// The first six characters: enough for people, in tables.
            #[must_use]
            pub fn short(&self) -> String {
                encode(&self.0)[..6].to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&encode(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), encode(&self.0))
            }
        }

        impl std::str::FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                decode(text).map(Self)
            }
        }
    };
}

id!(
    /// A machine with an agent, for as long as it is enrolled.
    HostId
);
id!(
    /// One imperative act on one host; also its idempotency key.
    CommandId
);
id!(
    /// One start of an agent (or server) process.
    InstanceId
);
id!(
    /// One start of a host's supervisor, shared by the agent instances under it.
    RunId
);
id!(
    /// One stream: a separate, short-lived WebSocket.
    StreamId
);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn text_and_bytes_are_one_to_one(bytes: [u8; 16]) {
            let id = CommandId::from_bytes(bytes);
            let text = id.to_string();
            prop_assert_eq!(text.len(), TEXT_LEN);
            prop_assert_eq!(text.parse::<CommandId>(), Ok(id));
        }

        #[test]
        fn any_text_is_refused_or_round_trips(text in "[0-9a-z]{0,30}") {
            if let Ok(id) = text.parse::<HostId>() {
                prop_assert_eq!(id.to_string(), text);
            }
        }
    }

    #[test]
    fn wrong_lengths_are_refused() {
        assert_eq!(HostId::from_wire(&[0; 15]), Err(InvalidId));
        assert_eq!("".parse::<HostId>(), Err(InvalidId));
    }
}
