//! The HTTP surface: types, routes, authentication, errors, OpenAPI.
//!
//! A request goes through these modules in order: `server` (TLS, limits per connection), `envelope`
//! (request id, security headers, one error shape), `guard` (the one table of permissions in
//! `access`, bearer token), `routes` (parsing and caps in `input`), and then into whatever
//! implements [`Backend`]: the controller, or a region's access server. Nothing here knows a
//! database, a host or a region.

pub mod types;
pub mod error;
pub mod access;
pub mod backend;
pub mod input;
mod envelope;
mod guard;
mod routes;
mod relay;
pub mod openapi;
pub mod server;

pub use backend::{Attach, Backend, Caller, ClientStream};
pub use error::ApiError;
pub use routes::{Options, STREAM_SUBPROTOCOL, router};
