//! Who is who: certificates and their roles, tokens, signatures of commands.
//!
//! Pure cryptography and parsing: no sockets, no files. Identity is a URI in a certificate
//! (`fairlead://DOMAIN/…`), believed only over the full chain to the installation's root, and only
//! from the intermediate that may say it (see `roles`).
//!
//! | module | what it decides |
//! |---|---|
//! | `roles` | the URIs, and which intermediate may certify which role |
//! | `chain` | whether a chain of certificates is to be believed, and as what |
//! | `tls` | rustls verifiers on top of `chain` |
//! | `authority` | making roots, intermediates and leaves |
//! | `public` | what a public CA asks for: requests with names, challenge certificates |
//! | `token` | `FL1…` join tokens and `FA1…` API tokens |
//! | `signing` | signing commands, and verifying them on the host |
//! | `ticket` | permission to open one terminal once |
//! | `package` | manifests of packaged versions, and the keys that sign them |

pub mod digest;
pub mod random;
pub mod roles;
pub mod chain;
pub mod tls;
pub mod authority;
pub mod public;
pub mod token;
pub mod signing;
pub mod ticket;
pub mod package;

pub use chain::{Identity, Root};
pub use roles::Role;

#[cfg(test)]
mod tests;
