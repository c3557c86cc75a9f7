//! API tokens and join tokens.
