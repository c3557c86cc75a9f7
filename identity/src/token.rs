//! Tokens in text: join tokens (`FL1…`) let a machine enrol, API tokens (`FA1…`) let a program use
//! the API. Each kind, used as the other, is recognised so that the mistake can be named.

use std::fmt;
use std::str::FromStr;

use crate::digest::{hex, sha256, unhex32};
use crate::random;

/// Beginning of every join token.
pub const JOIN_PREFIX: &str = "FL1";
/// Beginning of every API token.
pub const API_PREFIX: &str = "FA1";
/// Characters of a token's public id.
const ID_CHARS: usize = 10;
/// Characters of its secret: 32 of 5 bits each are 160 bits.
const SECRET_CHARS: usize = 32;

/// Why a text is not the token that is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It is an API token where a join token is needed.
    #[error("this is an API token (FA1…); a machine enrols with a join token (FL1…)")]
    ApiTokenGiven,
    /// It is a join token where an API token is needed.
    #[error("this is a join token (FL1…); the API needs an API token (FA1…)")]
    JoinTokenGiven,
    /// It is neither, or is damaged.
    #[error("this is not a token: it may have been cut or changed when it was copied")]
    Malformed,
}

/// A join token: where it belongs (the CA's hash) comes before its secret, so that a machine can
/// check the first before it tells the second.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// SHA-256 of the installation's root certificate.
    pub ca_hash: [u8; 32],
    /// Public part.
    pub id: String,
    /// Secret part.
    pub secret: String,
}

impl JoinToken {
    /// A new token for the installation with that root.
    #[must_use]
    pub fn generate(ca_hash: [u8; 32]) -> Self {
        Self {
            ca_hash,
            id: random::text(ID_CHARS),
            secret: random::text(SECRET_CHARS),
        }
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{JOIN_PREFIX}{}::{}.{}",
            hex(&self.ca_hash),
            self.id,
            self.secret
        )
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({})", self.id)
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.starts_with(API_PREFIX) {
            return Err(TokenError::ApiTokenGiven);
        }
        let rest = text
            .strip_prefix(JOIN_PREFIX)
            .ok_or(TokenError::Malformed)?;
        let (hash, rest) = rest.split_once("::").ok_or(TokenError::Malformed)?;
        let (id, secret) = rest.split_once('.').ok_or(TokenError::Malformed)?;
        let ca_hash = unhex32(hash).ok_or(TokenError::Malformed)?;
        if !is_part(id, ID_CHARS) || !is_part(secret, SECRET_CHARS) {
            return Err(TokenError::Malformed);
        }
        Ok(Self {
            ca_hash,
            id: id.to_owned(),
            secret: secret.to_owned(),
        })
    }
}

/// An API token.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiToken {
    /// Public part.
    pub id: String,
    /// Secret part.
    pub secret: String,
}

impl ApiToken {
    /// A new token.
    #[must_use]
    pub fn generate() -> Self {
        Self {
            id: random::text(ID_CHARS),
            secret: random::text(SECRET_CHARS),
        }
    }
}

impl fmt::Display for ApiToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{API_PREFIX}{}.{}", self.id, self.secret)
    }
}

impl fmt::Debug for ApiToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiToken({})", self.id)
    }
}

impl FromStr for ApiToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.starts_with(JOIN_PREFIX) {
            return Err(TokenError::JoinTokenGiven);
        }
        let rest = text.strip_prefix(API_PREFIX).ok_or(TokenError::Malformed)?;
        let (id, secret) = rest.split_once('.').ok_or(TokenError::Malformed)?;
        if !is_part(id, ID_CHARS) || !is_part(secret, SECRET_CHARS) {
            return Err(TokenError::Malformed);
        }
        Ok(Self {
            id: id.to_owned(),
            secret: secret.to_owned(),
        })
    }
}

fn is_part(text: &str, length: usize) -> bool {
    text.len() == length
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
}

/// What is kept of a secret. Secrets are 160 random bits, so a plain hash cannot be searched.
#[must_use]
pub fn secret_hash(secret: &str) -> [u8; 32] {
    sha256(secret.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn tokens_round_trip_and_hide_their_secret_in_debug() {
        let join = JoinToken::generate([3; 32]);
        assert_eq!(join.to_string().parse::<JoinToken>(), Ok(join.clone()));
        assert!(!format!("{join:?}").contains(&join.secret));
        let api = ApiToken::generate();
        assert_eq!(format!(" {api}\n").parse::<ApiToken>(), Ok(api.clone()));
        assert!(!format!("{api:?}").contains(&api.secret));
    }

    #[test]
    fn each_kind_is_recognised_where_the_other_is_needed() {
        let join = JoinToken::generate([3; 32]).to_string();
        let api = ApiToken::generate().to_string();
        assert_eq!(join.parse::<ApiToken>(), Err(TokenError::JoinTokenGiven));
        assert_eq!(api.parse::<JoinToken>(), Err(TokenError::ApiTokenGiven));
    }

    proptest! {
        #[test]
        fn a_damaged_token_is_refused(cut in 0usize..110) {
            let text = JoinToken::generate([3; 32]).to_string();
            prop_assume!(cut < text.len());
            prop_assert_eq!(text[..cut].parse::<JoinToken>(), Err(TokenError::Malformed));
        }
    }
}
