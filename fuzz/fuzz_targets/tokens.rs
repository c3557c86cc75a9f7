//! Join tokens and API tokens: any text is refused, or is written back the same; never one for the other.
#![no_main]

use fairlead_identity::token::{ApiToken, JoinToken};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let join = text.parse::<JoinToken>();
    let api = text.parse::<ApiToken>();
    assert!(join.is_err() || api.is_err());
    if let Ok(token) = join {
        assert!(token.to_string().eq_ignore_ascii_case(text.trim()));
        assert!(!format!("{token:?}").contains(&token.secret));
    }
    if let Ok(token) = api {
        assert_eq!(token.to_string(), text.trim());
        assert!(!format!("{token:?}").contains(&token.secret));
    }
});
