//! The HTTP surface: types, routes, authentication, errors, OpenAPI.

pub mod types;
pub mod error;
