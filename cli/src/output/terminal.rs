//! Keeps what a container writes from steering the operator's terminal.
//!
//! Only used when standard output is a terminal; files and pipes get the bytes as they are.

/// Longest escape sequence that is swallowed whole. What pretends to be longer is shown as text, so
/// that nothing can hide the rest of a log.
const SEQUENCE_CHARS_MAX: usize = 256;

/// Where in an escape sequence the text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Within {
    Text,
    Escape,
    /// `ESC [` up to a final byte.
    Control,
    /// `ESC ]`, `ESC P` and the like, up to BEL or `ESC \`.
    Command,
    CommandEscape,
}

/// Takes bytes as they come, in pieces of any size, and gives text that a terminal only shows.
#[derive(Debug)]
pub(crate) struct Filter {
    within: Within,
    length: usize,
    partial: Vec<u8>,
}

impl Default for Filter {
    fn default() -> Self {
        Self {
            within: Within::Text,
            length: 0,
            partial: Vec::new(),
        }
    }
}

impl Filter {
    /// The text of the next piece.
    pub(crate) fn pass(&mut self, bytes: &[u8]) -> String {
        let mut held = std::mem::take(&mut self.partial);
        held.extend_from_slice(bytes);
        let mut text = String::with_capacity(held.len());
        let mut rest: &[u8] = &held;
        while !rest.is_empty() {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    self.take(valid, &mut text);
                    rest = &[];
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    self.take(std::str::from_utf8(valid).unwrap_or_default(), &mut text);
                    match error.error_len() {
                        Some(length) => {
                            self.take("\u{fffd}", &mut text);
                            rest = &after[length..];
                        }
                        // The piece ended within a character: the next one has its rest.
                        None => {
                            self.partial = after.to_vec();
                            rest = &[];
                        }
                    }
                }
            }
        }
        text
    }

    fn take(&mut self, valid: &str, text: &mut String) {
        for c in valid.chars() {
            if self.within != Within::Text {
                self.length += 1;
                if self.length > SEQUENCE_CHARS_MAX || c == '\n' {
                    self.within = Within::Text;
                }
            }
            match (self.within, c) {
                (Within::Text, '\x1b') => self.enter(Within::Escape),
                (Within::Text, '\u{9b}') => self.enter(Within::Control),
                (Within::Text, '\u{90}' | '\u{98}' | '\u{9d}'..='\u{9f}') => {
                    self.enter(Within::Command);
                }
                (Within::Text, '\n' | '\t' | '\r') => text.push(c),
                (Within::Text, c) if super::is_unsafe(c) => {}
                (Within::Text, c) => text.push(c),
                (Within::Escape, '[') => self.within = Within::Control,
                (Within::Escape, ']' | 'P' | 'X' | '^' | '_') => self.within = Within::Command,
                // Intermediate bytes, as in `ESC ( B`.
                (Within::Escape, ' '..='/') => {}
                (Within::Escape | Within::CommandEscape, _) => self.within = Within::Text,
                (Within::Control, '@'..='~') => self.within = Within::Text,
                (Within::Command, '\x07' | '\u{9c}') => self.within = Within::Text,
                (Within::Command, '\x1b') => self.within = Within::CommandEscape,
                (Within::Control | Within::Command, _) => {}
            }
        }
    }

    fn enter(&mut self, within: Within) {
        self.within = within;
        self.length = 0;
    }
}

/// JSON or YAML text with control characters that the serialiser left as they are (C1, DEL) written
/// as escapes; they only occur within strings.
pub(crate) fn escape_controls(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if c != '\n' && super::is_unsafe(c) {
            safe.push_str(&format!("\\u{:04x}", c as u32));
        } else {
            safe.push(c);
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(pieces: &[&[u8]]) -> String {
        let mut filter = Filter::default();
        pieces.iter().map(|piece| filter.pass(piece)).collect()
    }

    #[test]
    fn colours_titles_and_clipboard_writes_are_dropped() {
        assert_eq!(all(&[b"\x1b[31mred\x1b[0m\r\n"]), "red\r\n");
        assert_eq!(all(&[b"\x1b]0;title\x07text"]), "text");
        assert_eq!(all(&[b"\x1b]52;c;ZXZpbA==\x1b\\text"]), "text");
        assert_eq!(all(&[b"\x1bP+q544e\x1b\\x\x1b(By\x07\x08z"]), "xyz");
        assert_eq!(
            all(&["\u{9b}2Jclear \u{9d}0;t\u{9c}end".as_bytes()]),
            "clear end"
        );
    }

    #[test]
    fn pieces_may_break_anywhere() {
        assert_eq!(all(&[b"\x1b", b"[3", b"1mred"]), "red");
        assert_eq!(all(&[b"gr\xc3", b"\xbcn"]), "grün");
        assert_eq!(all(&[b"bad \xff byte"]), "bad \u{fffd} byte");
    }

    #[test]
    fn nothing_hides_the_rest_of_a_log() {
        assert_eq!(all(&[b"\x1b]0;never ends\nnext line"]), "\nnext line");
        let long = format!("\x1b]{}shown", "a".repeat(SEQUENCE_CHARS_MAX));
        assert!(all(&[long.as_bytes()]).ends_with("shown"));
    }
}
