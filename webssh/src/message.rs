//! What page and bridge say to each other (WebSocket, subprotocol `fairlead.terminal.v1`).
//!
//! Binary messages are bytes of the terminal: output downwards, input upwards. Both directions are counted
//! from the session's first byte, and each side sends only so far ahead of what the other has acknowledged,
//! so that neither a flood of output nor a long paste grows memory or blocks the other direction. All else
//! is JSON text. The page's first message is [`Hello`].

use serde::{Deserialize, Serialize};

/// The WebSocket's subprotocol.
pub const SUBPROTOCOL: &str = "fairlead.terminal.v1";
/// Output that may be under way, sent and not acknowledged.
pub const OUTPUT_WINDOW: u64 = 256 * 1024;
/// Input that may be under way; a page that sends more is cut.
pub const INPUT_WINDOW: u64 = 64 * 1024;
/// Largest message that a page may send.
pub const MESSAGE_BYTES_MAX: usize = 32 * 1024;
/// Largest and smallest terminal.
pub const SIZE_MAX: u16 = 1000;

/// The first message of a page.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// The ticket.
    pub ticket: String,
    /// Size of the terminal.
    pub columns: u16,
    /// Size of the terminal.
    pub rows: u16,
    /// The byte of output from which to go on; absent: as far back as is kept.
    #[serde(default)]
    pub from: Option<u64>,
}

/// What else a page says.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Up {
    /// The terminal has another size.
    Resize {
        /// Characters in a row.
        columns: u16,
        /// Rows.
        rows: u16,
    },
    /// All output before this byte has been shown.
    Shown(u64),
}

/// What the bridge says.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Down {
    /// The ticket was good.
    Open {
        /// The session; its id opens nothing.
        session: String,
        /// Host's name.
        host: String,
        /// Container's name.
        container: String,
        /// The first byte of output that will come.
        from: u64,
        /// Input that has come so far; what follows goes on there.
        received: u64,
        /// Input that has been passed on so far.
        taken: u64,
        /// What may be sent ahead of `taken`.
        window: u64,
        /// Output before `from` was wanted and is not kept any more.
        gap: bool,
    },
    /// The process has begun (or had): input is taken from here on.
    Begun,
    /// All input before this byte has been passed on.
    Taken(u64),
    /// The session has ended; nothing follows.
    Ended(End),
}

/// How a session ended, in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct End {
    /// Stable code; empty when the shell ended by itself.
    pub code: String,
    /// For people.
    pub message: String,
    /// Exit code of the shell, where it had one.
    pub exit_code: Option<i32>,
    /// Whether the page may ask for another ticket and go on.
    pub resumable: bool,
}

impl End {
    /// One that is no resumable one, and has no exit code.
    #[must_use]
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self {
            code: code.to_owned(),
            message: message.into(),
            exit_code: None,
            resumable: false,
        }
    }
}

impl Hello {
    /// The hello in a text; `None` when it is none, or its size makes no sense.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let hello: Self = serde_json::from_str(text).ok()?;
        is_size(hello.columns, hello.rows).then_some(hello)
    }
}

impl Up {
    /// The message in a text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let up: Self = serde_json::from_str(text).ok()?;
        match up {
            Self::Resize { columns, rows } if !is_size(columns, rows) => None,
            up => Some(up),
        }
    }
}

/// Whether a terminal can have that size.
#[must_use]
pub fn is_size(columns: u16, rows: u16) -> bool {
    (1..=SIZE_MAX).contains(&columns) && (1..=SIZE_MAX).contains(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages_are_these_texts() {
        assert_eq!(
            Up::parse(r#"{"resize":{"columns":80,"rows":25}}"#),
            Some(Up::Resize {
                columns: 80,
                rows: 25
            })
        );
        assert_eq!(Up::parse(r#"{"shown":7}"#), Some(Up::Shown(7)));
        assert_eq!(Up::parse(r#"{"resize":{"columns":0,"rows":25}}"#), None);
        assert!(Hello::parse(r#"{"ticket":"x","columns":80,"rows":25}"#).is_some());
        assert!(Hello::parse(r#"{"ticket":"x","columns":80,"rows":25,"host":"h"}"#).is_none());
        let text = serde_json::to_string(&Down::Taken(9)).unwrap();
        assert_eq!(text, r#"{"taken":9}"#);
        assert_eq!(serde_json::to_string(&Down::Begun).unwrap(), r#""begun""#);
    }

    proptest! {
        #[test]
        fn any_text_parses_or_is_refused(text in ".{0,200}") {
            drop(Up::parse(&text));
            drop(Hello::parse(&text));
        }
    }
}
