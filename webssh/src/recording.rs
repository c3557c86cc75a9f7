//! Recordings: asciicast version 2, each line chained to those before it.
//!
//! Output and sizes are recorded with their times; input is not. After every batch of lines stands a line
//! of type `h`: how many lines lie before it and the SHA-256 over all of them, `H(n) = SHA-256(H(n-1) ‖
//! line n)`. The last line is an `h` line that ends in ` end`. A line that was changed, removed or put in
//! shows at the next `h` line (of the last line, only its time is free), a missing end shows as such, and the last hash goes into the audit log, so
//! that a recording which was written anew as a whole shows too. Players pass `h` lines over.

use fairlead_identity::digest::{hex, sha256};
use fairlead_protocol::FrozenRecording;
use serde::{Deserialize, Serialize};

pub mod file;
pub mod passing;

/// Extension of a recording's file.
pub const EXTENSION: &str = "cast";
/// Extension of one that another server is still sending.
pub const ARRIVING: &str = "arriving";

/// The first line: what was recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Always 2.
    pub version: u32,
    /// Columns at first.
    pub width: u16,
    /// Rows at first.
    pub height: u16,
    /// Seconds since 1970.
    pub timestamp: i64,
    /// `HOST/CONTAINER`.
    pub title: String,
    /// What Fairlead knows of it.
    pub fairlead: About,
}

/// Whose terminal it was, and where.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// The session (and command).
    pub session: String,
    /// Who.
    pub user: String,
    /// With which API token.
    pub token_id: String,
    /// Whose.
    pub tenant: String,
    /// Of which region.
    pub region: String,
    /// Host's name.
    pub host: String,
    /// Host's id.
    pub host_id: String,
    /// Container's name.
    pub container: String,
    /// Container's id.
    pub container_id: String,
}

/// Makes the lines.
#[derive(Debug)]
pub struct Writer {
    lines: u64,
    chain: [u8; 32],
    started_us: i64,
    last_us: i64,
    /// Bytes of a character whose rest is still to come.
    partial: Vec<u8>,
    /// Lines since the last hash.
    open: bool,
    text: String,
}

impl Writer {
    /// Begins a recording.
    #[must_use]
    pub fn new(header: &Header, now_us: i64) -> Self {
        let mut writer = Self {
            lines: 0,
            chain: [0; 32],
            started_us: now_us,
            last_us: now_us,
            partial: Vec::new(),
            open: false,
            text: String::new(),
        };
        // A struct of texts and numbers always has a JSON form.
        let line = serde_json::to_string(header).unwrap_or_default();
        writer.line(&line);
        writer
    }

    /// Goes on with one that was frozen.
    #[must_use]
    pub fn thawed(frozen: &FrozenRecording) -> Option<Self> {
        Some(Self {
            lines: frozen.lines,
            chain: frozen.chain[..].try_into().ok()?,
            started_us: frozen.started_us,
            last_us: frozen.last_us,
            partial: frozen.partial.to_vec(),
            open: false,
            text: String::new(),
        })
    }

    /// How it goes on, once all its lines were taken; its file has that length.
    #[must_use]
    pub fn frozen(&self, length: u64) -> FrozenRecording {
        FrozenRecording {
            lines: self.lines,
            chain: self.chain.to_vec().into(),
            started_us: self.started_us,
            last_us: self.last_us,
            partial: self.partial.clone().into(),
            length,
        }
    }

    fn line(&mut self, line: &str) {
        self.chain = sha256(&[&self.chain[..], line.as_bytes()].concat());
        self.lines += 1;
        self.open = true;
        self.text.push_str(line);
        self.text.push('\n');
    }

    fn event(&mut self, now_us: i64, kind: &str, data: &str) {
        // A clock that goes back does not make the recording do so.
        self.last_us = self.last_us.max(now_us);
        let since = (self.last_us - self.started_us).unsigned_abs();
        let data = escaped(data);
        let (seconds, micros) = (since / 1_000_000, since % 1_000_000);
        self.line(&format!(r#"[{seconds}.{micros:06},"{kind}",{data}]"#));
    }

    /// Output came.
    pub fn output(&mut self, now_us: i64, bytes: &[u8]) {
        let mut held = std::mem::take(&mut self.partial);
        held.extend_from_slice(bytes);
        let cut = whole_characters(&held);
        self.partial = held.split_off(cut);
        if !held.is_empty() {
            let text = String::from_utf8_lossy(&held);
            self.event(now_us, "o", &text);
        }
    }

    /// The terminal has another size.
    pub fn resized(&mut self, now_us: i64, columns: u16, rows: u16) {
        self.event(now_us, "r", &format!("{columns}x{rows}"));
    }

    fn hash(&mut self, now_us: i64, end: &str) {
        let said = format!("{} {}{end}", self.lines, hex(&self.chain));
        self.event(now_us, "h", &said);
        self.open = false;
    }

    /// Takes the lines since last time, with a hash behind them.
    #[must_use]
    pub fn take(&mut self, now_us: i64) -> String {
        if self.open {
            self.hash(now_us, "");
        }
        std::mem::take(&mut self.text)
    }

    /// How much waits to be taken.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.text.len()
    }

    /// Ends the recording: the last lines, and the hash over all of them.
    #[must_use]
    pub fn end(mut self, now_us: i64) -> (String, String) {
        if !self.partial.is_empty() {
            let rest = std::mem::take(&mut self.partial);
            let text = String::from_utf8_lossy(&rest).into_owned();
            self.event(now_us, "o", &text);
        }
        let chain = hex(&self.chain);
        self.hash(now_us, " end");
        (self.text, chain)
    }
}

/// As JSON, with every control character escaped: a recording that is looked at by mistake steers nobody's
/// terminal.
fn escaped(data: &str) -> String {
    // A text always has a JSON form.
    let json = serde_json::to_string(data).unwrap_or_default();
    if !steers(&json) {
        return json;
    }
    json.chars()
        .fold(String::with_capacity(json.len()), |mut text, c| {
            if c.is_control() {
                text.push_str(&format!("\\u{:04x}", u32::from(c)));
            } else {
                text.push(c);
            }
            text
        })
}

/// Whether a control character is in it, other than the end of a line.
fn steers(text: &str) -> bool {
    // Looked at as bytes first, many at once: those beyond ASCII all begin with C2, as few letters do.
    let suspicious = text.bytes().fold(false, |seen, byte| {
        seen | (byte < 0x20 && byte != b'\n') | (byte == 0x7F) | (byte == 0xC2)
    });
    suspicious && text.contains(|c: char| c.is_control() && c != '\n')
}

/// How many bytes from the beginning hold only whole characters (or what is none): at most three bytes of
/// one that is cut stay behind.
fn whole_characters(bytes: &[u8]) -> usize {
    for back in 1..=bytes.len().min(3) {
        let at = bytes.len() - back;
        let needs = match bytes[at] {
            0xC2..=0xDF => 2,
            0xE0..=0xEF => 3,
            0xF0..=0xF4 => 4,
            // The middle of a character: look further back.
            0x80..=0xBF => continue,
            _ => return bytes.len(),
        };
        return if back < needs { at } else { bytes.len() };
    }
    bytes.len()
}

/// What is wrong with a recording.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// The first line is no header.
    #[error("the first line is not a recording's header")]
    Header,
    /// Lines were changed, removed or put in before this one.
    #[error("line {0}: what lies before it is not what was recorded")]
    Chain(u64),
    /// Lines at the end have no hash.
    #[error("the last {0} lines have no hash")]
    Loose(u64),
    /// It has no end.
    #[error("it has no end: it is still going on, or was cut off")]
    NoEnd,
}

/// Looks a recording through, line by line.
#[derive(Debug, Default)]
pub struct Verification {
    chain: [u8; 32],
    header: Option<Header>,
    lines: u64,
    loose: u64,
    ended: Option<String>,
}

impl Verification {
    /// The next line, without its end.
    ///
    /// # Errors
    /// When it shows that the recording is not what it was.
    pub fn line(&mut self, line: &str) -> Result<(), Broken> {
        if self.ended.is_some() {
            return Err(Broken::Chain(self.lines + 1));
        }
        if self.lines == 0 {
            let header = serde_json::from_str::<Header>(line).map_err(|_| Broken::Header)?;
            self.header = Some(header);
        }
        let said = serde_json::from_str::<(serde_json::Number, String, String)>(line).ok();
        self.loose += 1;
        if let Some((_, _, said)) = said.filter(|(_, kind, _)| kind == "h") {
            let now = format!("{} {}", self.lines, hex(&self.chain));
            if said == format!("{now} end") {
                self.ended = Some(hex(&self.chain));
            } else if said != now {
                return Err(Broken::Chain(self.lines + 1));
            }
            self.loose = 0;
        }
        self.chain = sha256(&[&self.chain[..], line.as_bytes()].concat());
        self.lines += 1;
        Ok(())
    }

    /// A line that cannot be one.
    #[must_use]
    pub fn no_line(&self) -> Broken {
        Broken::Chain(self.lines + 1)
    }

    /// After the last line: the header and the last hash of a whole, unchanged recording.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn end(self) -> Result<(Header, String), Broken> {
        let header = self.header.ok_or(Broken::Header)?;
        match self.ended {
            Some(hash) => Ok((header, hash)),
            None if self.loose > 0 => Err(Broken::Loose(self.loose)),
            None => Err(Broken::NoEnd),
        }
    }
}

/// The header and the last hash of a whole, unchanged recording.
///
/// # Errors
/// What is wrong with it.
pub fn verify(text: &str) -> Result<(Header, String), Broken> {
    let mut verification = Verification::default();
    for line in text.lines() {
        verification.line(line)?;
    }
    verification.end()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> Header {
        Header {
            version: 2,
            width: 80,
            height: 25,
            timestamp: 1,
            title: "vm/web".to_owned(),
            fairlead: About::default(),
        }
    }

    fn output_of(text: &str) -> String {
        text.lines()
            .filter_map(|line| serde_json::from_str::<(f64, String, String)>(line).ok())
            .filter(|(_, kind, _)| kind == "o")
            .map(|(_, _, data)| data)
            .collect()
    }

    fn recorded(pieces: &[Vec<u8>]) -> (String, String) {
        let mut writer = Writer::new(&header(), 1_000);
        let mut text = String::new();
        for (n, piece) in pieces.iter().enumerate() {
            writer.output(1_000 + n as i64 * 500, piece);
            if n % 3 == 0 {
                text.push_str(&writer.take(9));
                writer = Writer::thawed(&writer.frozen(text.len() as u64)).unwrap();
            }
        }
        let (rest, hash) = writer.end(5_000);
        (text + &rest, hash)
    }

    proptest! {
        #[test]
        fn text_comes_back_however_it_was_cut(text in "\\PC{0,80}", cuts in prop::collection::vec(1usize..7, 0..40)) {
            let mut bytes = text.as_bytes().to_vec();
            let mut pieces = Vec::new();
            for cut in cuts {
                let rest = bytes.split_off(cut.min(bytes.len()));
                pieces.push(std::mem::replace(&mut bytes, rest));
            }
            pieces.push(bytes);
            let (cast, hash) = recorded(&pieces);
            prop_assert_eq!(output_of(&cast), text);
            prop_assert_eq!(verify(&cast), Ok((header(), hash)));
        }

        #[test]
        fn any_bytes_make_whole_lines(pieces: Vec<Vec<u8>>) {
            let (cast, hash) = recorded(&pieces);
            prop_assert!(!cast.contains(|c: char| c.is_control() && c != '\n'), "escapes are escaped");
            prop_assert_eq!(verify(&cast), Ok((header(), hash)));
        }

        #[test]
        fn what_steers_a_terminal_is_seen(text in "(é|£|\u{7f}|\u{85}|\u{9f}|\u{a0}|\n|\t|\u{1b}|[a-z]){0,6}") {
            prop_assert_eq!(steers(&text), text.contains(|c: char| c.is_control() && c != '\n'));
        }

        #[test]
        fn a_gap_shows(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20), 2..20), at in any::<prop::sample::Index>(), how in 0..4) {
            let (cast, _) = recorded(&pieces);
            let mut lines: Vec<String> = cast.lines().map(str::to_owned).collect();
            // Of the very last line only the time is open to change: nothing comes after it.
            let at = at.index(lines.len() - usize::from(how == 3));
            match how {
                0 => drop(lines.remove(at)),
                1 => lines.insert(at, lines[at].clone()),
                2 => lines.truncate(at),
                _ => lines[at] = lines[at].replacen('0', "1", 1) + " ",
            }
            prop_assert!(verify(&(lines.join("\n") + "\n")).is_err());
        }
    }

    #[test]
    fn what_goes_on_has_no_end_yet() {
        let mut writer = Writer::new(&header(), 0);
        writer.output(1, b"x");
        writer.resized(2, 100, 30);
        let text = writer.take(3);
        assert_eq!(verify(&text), Err(Broken::NoEnd));
        assert!(text.contains(r#"[0.000002,"r","100x30"]"#), "{text}");
        let cut = text.rsplit_once("\n[").unwrap().0;
        assert_eq!(verify(cut), Err(Broken::Loose(3)));
    }
}
