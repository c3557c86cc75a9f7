//! What is printed: data on standard output (table, JSON or YAML), talk on standard error.
//!
//! Everything that came from a server, host or container passes through [`clean`] (or, for a
//! container's own output on a terminal, [`terminal::Filter`]) before it reaches a terminal.

use std::borrow::Cow;
use std::io::{IsTerminal, Write};

use clap::ValueEnum;
use serde::Serialize;

use crate::exit::{Exit, Failure};

pub(crate) mod human;
pub(crate) mod table;
pub(crate) mod terminal;
#[cfg(test)]
pub(crate) mod samples;

/// How data is written. The variants carry no help, so that `--help` of each verb names them in one line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    // For people.
    Table,
    // For people with wide screens.
    Wide,
    // The API's own types.
    Json,
    // The same as YAML.
    Yaml,
}

/// Where output goes and what it may contain.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    /// As asked for with `-o`.
    pub(crate) format: Format,
    /// Whether standard output may be coloured.
    pub(crate) colour: bool,
    /// Whether standard output is a terminal.
    pub(crate) stdout_tty: bool,
    /// Whether standard error is a terminal.
    pub(crate) stderr_tty: bool,
}

impl Output {
    /// Output for this process's standard streams.
    pub(crate) fn of_process(format: Format) -> Self {
        let stdout_tty = std::io::stdout().is_terminal();
        let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self {
            format,
            colour: colour(
                stdout_tty,
                env("NO_COLOR").as_deref(),
                env("CLICOLOR_FORCE").as_deref(),
                env("TERM").as_deref(),
            ),
            stdout_tty,
            stderr_tty: std::io::stderr().is_terminal(),
        }
    }

    /// Whether data is for programs.
    pub(crate) fn is_structured(&self) -> bool {
        matches!(self.format, Format::Json | Format::Yaml)
    }

    /// Writes one value as JSON or YAML, or as `text` makes it for people.
    pub(crate) fn data<T: Serialize + ?Sized>(
        &self,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        match self.format {
            Format::Table | Format::Wide => self.write(text(value).as_bytes()),
            Format::Json | Format::Yaml => self.structured(value),
        }
    }

    /// Writes one value as YAML where that was asked for, else as JSON.
    pub(crate) fn structured<T: Serialize + ?Sized>(&self, value: &T) -> Result<(), Failure> {
        let mut text = if self.format == Format::Yaml {
            serde_saphyr::to_string(&value)
                .map_err(|e| Failure::new(Exit::Failed, format!("cannot write YAML: {e}")))?
        } else {
            serde_json::to_string_pretty(value)
                .map_err(|e| Failure::new(Exit::Failed, format!("cannot write JSON: {e}")))?
        };
        if !text.ends_with('\n') {
            text.push('\n');
        }
        if self.stdout_tty {
            text = terminal::escape_controls(&text);
        }
        self.write(text.as_bytes())
    }

    /// Writes one value of a stream: a line of JSON, a document of YAML, or a line of text.
    pub(crate) fn item<T: Serialize>(
        &self,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        match self.format {
            Format::Table | Format::Wide => self.write(format!("{}\n", text(value)).as_bytes()),
            Format::Yaml => {
                self.write(b"---\n")?;
                self.structured(value)
            }
            Format::Json => {
                let line = serde_json::to_string(value)
                    .map_err(|e| Failure::new(Exit::Failed, format!("cannot write JSON: {e}")))?;
                let line = if self.stdout_tty {
                    terminal::escape_controls(&line)
                } else {
                    line
                };
                self.write(format!("{line}\n").as_bytes())
            }
        }
    }

    /// Writes bytes to standard output. A reader that has gone away is not an error: the process
    /// ends quietly, as the others in a pipe do.
    pub(crate) fn write(&self, bytes: &[u8]) -> Result<(), Failure> {
        let mut stdout = std::io::stdout().lock();
        match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
            Err(e) => Err(Failure::local("cannot write to standard output", &e)),
            Ok(()) => Ok(()),
        }
    }

    /// `text` in this colour, where colour is wanted.
    pub(crate) fn paint(&self, colour: Colour, text: &str) -> String {
        if self.colour {
            format!("\x1b[{}m{text}\x1b[0m", colour.code())
        } else {
            text.to_owned()
        }
    }
}

/// Says something on standard error. Nobody listening is no error.
pub(crate) fn say(text: &str) {
    drop(writeln!(std::io::stderr().lock(), "{text}"));
}

/// Says what went wrong: what, why it is coded so, and what to do next.
pub(crate) fn report(failure: &Failure) {
    say(&failure_text(failure));
}

fn failure_text(failure: &Failure) -> String {
    let now = jiff::Timestamp::now();
    let mut text = format!(
        "error: {}",
        clean_lines(&human::with_times(&failure.message, now))
    );
    if !failure.code.is_empty() {
        text.push_str(&format!(" ({})", clean(&failure.code)));
    }
    if !failure.hint.is_empty() {
        let hint = human::with_times(&failure.hint, now);
        text.push_str(&format!("\nhint: {}", clean_lines(&hint)));
    }
    if !failure.request_id.is_empty() {
        text.push_str(&format!("\nrequest: {}", clean(&failure.request_id)));
    }
    text
}

/// The few colours that are used, by what they mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Colour {
    /// As it should be.
    Good,
    /// Deserves a look.
    Doubtful,
    /// Wrong.
    Bad,
    /// Less important.
    Faint,
}

impl Colour {
    fn code(self) -> &'static str {
        match self {
            Self::Good => "32",
            Self::Doubtful => "33",
            Self::Bad => "31",
            Self::Faint => "2",
        }
    }
}

/// Whether to colour: <https://no-color.org>, <https://bixense.com/clicolors>.
fn colour(tty: bool, no_color: Option<&str>, force: Option<&str>, term: Option<&str>) -> bool {
    if no_color.is_some() {
        return false;
    }
    force.is_some_and(|value| value != "0") || (tty && term != Some("dumb"))
}

/// Text from elsewhere, in one line, without anything that a terminal would obey or that turns the
/// reading direction round.
pub(crate) fn clean(text: &str) -> Cow<'_, str> {
    if text.chars().any(is_unsafe) {
        Cow::Owned(
            text.chars()
                .filter_map(|c| match c {
                    '\n' | '\t' | '\r' => Some(' '),
                    c if is_unsafe(c) => None,
                    c => Some(c),
                })
                .collect(),
        )
    } else {
        Cow::Borrowed(text)
    }
}

/// The same for text of several lines; those after the first are set in.
pub(crate) fn clean_lines(text: &str) -> String {
    text.lines().map(clean).collect::<Vec<_>>().join("\n  ")
}

/// Control characters of every kind, and those that change the reading direction.
pub(crate) fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_follows_the_conventions() {
        assert!(colour(true, None, None, Some("xterm")));
        assert!(!colour(true, Some("1"), None, Some("xterm")));
        assert!(!colour(true, None, None, Some("dumb")));
        assert!(!colour(false, None, None, Some("xterm")));
        assert!(colour(false, None, Some("1"), None));
        assert!(!colour(false, None, Some("0"), None));
        assert!(
            !colour(false, Some("1"), Some("1"), None),
            "NO_COLOR has the last word"
        );
    }

    #[test]
    fn remote_text_cannot_steer_a_terminal() {
        assert_eq!(clean("\u{1b}]0;owned\u{7}web\u{9b}2J"), "]0;ownedweb2J");
        assert_eq!(clean("a\nb\tc"), "a b c");
        assert_eq!(clean("evil\u{202e}txt.exe"), "eviltxt.exe");
        assert!(matches!(clean("plain ü"), Cow::Borrowed(_)));
        assert_eq!(clean_lines("one\ntwo\u{1b}[31m"), "one\n  two[31m");
    }

    #[test]
    fn an_error_says_what_the_code_is_and_what_to_do() {
        let failure = Failure::new(Exit::NotFound, "no container web\x1b[2J")
            .code("container_not_found")
            .hint("fairlead ps -a lists them");
        assert_eq!(
            failure_text(&failure),
            "error: no container web[2J (container_not_found)\nhint: fairlead ps -a lists them"
        );
    }
}
