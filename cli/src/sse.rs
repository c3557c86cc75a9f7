//! Server-sent events, as far as the API uses them: `event`, `data`, `id`, comments.

/// Largest event that is taken; a server that sends more is broken.
const EVENT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// One event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ServerEvent {
    /// Its name; empty: `message`.
    pub(crate) event: String,
    /// Its data.
    pub(crate) data: String,
    /// The id that a reconnect quotes; empty: none.
    pub(crate) id: String,
}

/// The server sent more than an event may hold.
#[derive(Debug, thiserror::Error)]
#[error("the server sent an event that is too large")]
pub(crate) struct TooLarge;

/// Takes bytes as they come and gives whole events.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    line: Vec<u8>,
    event: ServerEvent,
    has_data: bool,
    after_cr: bool,
}

impl Parser {
    /// The events that are whole after these bytes.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<Vec<ServerEvent>, TooLarge> {
        let mut events = Vec::new();
        for byte in bytes {
            let after_cr = std::mem::replace(&mut self.after_cr, *byte == b'\r');
            match byte {
                b'\n' if after_cr => {}
                b'\n' | b'\r' => {
                    let line = std::mem::take(&mut self.line);
                    self.line(&String::from_utf8_lossy(&line), &mut events);
                }
                byte => self.line.push(*byte),
            }
            if self.line.len() + self.event.data.len() > EVENT_BYTES_MAX {
                return Err(TooLarge);
            }
        }
        Ok(events)
    }

    fn line(&mut self, line: &str, events: &mut Vec<ServerEvent>) {
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            if std::mem::take(&mut self.has_data) {
                events.push(event);
            }
            return;
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.event.event),
            "id" => value.clone_into(&mut self.event.id),
            "data" => {
                if self.has_data {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(value);
                self.has_data = true;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_whole_however_the_bytes_are_cut() {
        let text = b": hello\n\nevent: command\nid: 7\ndata: {\"a\":\ndata: 1}\r\n\r\ndata:x\n\n";
        for size in 1..text.len() {
            let mut parser = Parser::default();
            let events: Vec<_> = text
                .chunks(size)
                .flat_map(|chunk| parser.feed(chunk).unwrap())
                .collect();
            assert_eq!(
                events,
                [
                    ServerEvent {
                        event: "command".into(),
                        data: "{\"a\":\n1}".into(),
                        id: "7".into()
                    },
                    ServerEvent {
                        data: "x".into(),
                        ..ServerEvent::default()
                    },
                ]
            );
        }
    }
}
