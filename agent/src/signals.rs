//! Signals as people and engines write them: with a name or a number, with `SIG` or without. Touches nothing.

/// Its number on Linux; `None`: none of those that are told apart here. Without a name it is the one that a `kill`
/// sends.
#[must_use]
pub fn number(signal: &str) -> Option<u32> {
    let upper = signal.to_ascii_uppercase();
    Some(match upper.strip_prefix("SIG").unwrap_or(&upper) {
        "" | "KILL" => 9,
        "HUP" => 1,
        "INT" => 2,
        "QUIT" => 3,
        "USR1" => 10,
        "USR2" => 12,
        "TERM" => 15,
        "CHLD" => 17,
        "CONT" => 18,
        "WINCH" => 28,
        other => return other.parse().ok(),
    })
}
