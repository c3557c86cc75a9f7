//! Which pages may open a terminal's socket: exactly those of a list, by scheme, host and port.
//!
//! A browser says in `Origin` which page opens a socket, and no page can lie in it. Nothing is matched by
//! suffix or prefix; a missing `Origin`, two of them, `null` and an empty list all mean no.

use std::sync::{Arc, PoisonError, RwLock};

use axum::http::{HeaderMap, header};

/// No origin is longer.
const ORIGIN_BYTES_MAX: usize = 300;

/// The origins that are let in; copies of it are one list.
#[derive(Debug, Clone, Default)]
pub struct Origins(Arc<RwLock<Vec<String>>>);

/// An address as an origin: `scheme://host[:port]`, lower case, without the scheme's own port. `None` for
/// what is not one.
#[must_use]
pub fn normal(text: &str) -> Option<String> {
    if text.len() > ORIGIN_BYTES_MAX || !text.is_ascii() {
        return None;
    }
    let lower = text.to_ascii_lowercase();
    let (scheme, rest) = lower.split_once("://")?;
    let own_port = match scheme {
        "https" => "443",
        "http" => "80",
        _ => return None,
    };
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    let (host, port) = if let Some(inner) = authority.strip_prefix('[') {
        let (address, after) = inner.split_once(']')?;
        address.parse::<std::net::Ipv6Addr>().ok()?;
        (&authority[..address.len() + 2], after)
    } else {
        let end = authority.find(':').unwrap_or(authority.len());
        let (host, port) = authority.split_at(end);
        if host.is_empty() || !host.bytes().all(plain) {
            return None;
        }
        (host, port)
    };
    match port.strip_prefix(':') {
        None if port.is_empty() => Some(format!("{scheme}://{host}")),
        Some(number) => {
            let digits = number.bytes().all(|b| b.is_ascii_digit());
            let number: u16 = number.parse().ok().filter(|_| digits)?;
            Some(if number.to_string() == own_port {
                format!("{scheme}://{host}")
            } else {
                format!("{scheme}://{host}:{number}")
            })
        }
        None => None,
    }
}

impl Origins {
    /// The origins of these addresses; what is not one is left out.
    #[must_use]
    pub fn new<'a>(addresses: impl IntoIterator<Item = &'a str>) -> Self {
        let origins = Self::default();
        origins.set(addresses);
        origins
    }

    /// From now on those of these addresses, and no others.
    pub fn set<'a>(&self, addresses: impl IntoIterator<Item = &'a str>) {
        let list = addresses.into_iter().filter_map(normal).collect();
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = list;
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> Vec<String> {
        let list = self.0.read().unwrap_or_else(PoisonError::into_inner);
        list.clone()
    }

    /// The origin of a request, when it is in the list.
    #[must_use]
    pub fn of(&self, headers: &HeaderMap) -> Option<String> {
        let mut values = headers.get_all(header::ORIGIN).iter();
        let value = values.next()?.to_str().ok()?;
        if values.next().is_some() {
            return None;
        }
        // Browsers write origins in this one way; another writing of it is another origin.
        let origin = normal(value).filter(|origin| origin == value)?;
        let list = self.0.read().unwrap_or_else(PoisonError::into_inner);
        list.contains(&origin).then_some(origin)
    }

    /// The first: where people are sent.
    #[must_use]
    pub fn first(&self) -> Option<String> {
        let list = self.0.read().unwrap_or_else(PoisonError::into_inner);
        list.first().cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn headers(origins: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for origin in origins {
            headers.append(header::ORIGIN, origin.parse().unwrap());
        }
        headers
    }

    #[test]
    fn s01_only_the_very_origin_is_let_in() {
        let origins = Origins::new(["https://fleet.example.com:7400/"]);
        let allowed = |given: &[&str]| origins.of(&headers(given)).is_some();
        assert!(allowed(&["https://fleet.example.com:7400"]));
        for foreign in [
            "",
            "null",
            "https://fleet.example.com",
            "http://fleet.example.com:7400",
            "https://fleet.example.com:7401",
            "https://fleet.example.com:7400.evil.example",
            "https://evil.fleet.example.com:7400",
            "https://fleet.example.com:7400/",
            "https://fleet.example.com:07400",
            "HTTPS://fleet.example.com:7400",
            "https://evil.example#https://fleet.example.com:7400",
            "https://x@fleet.example.com:7400",
        ] {
            assert!(!allowed(&[foreign]), "{foreign}");
        }
        assert!(!allowed(&[]), "a missing Origin");
        let twice = "https://fleet.example.com:7400";
        assert!(!allowed(&[twice, twice]), "two of them");
    }

    #[test]
    fn s01_an_empty_list_lets_nobody_in() {
        let origins = Origins::new(["nonsense", "ftp://a"]);
        assert!(origins.of(&headers(&["https://a"])).is_none());
        assert!(origins.of(&headers(&["ftp://a"])).is_none());
        origins.set(["https://a"]);
        assert!(origins.of(&headers(&["https://a"])).is_some());
        origins.set([]);
        assert!(origins.of(&headers(&["https://a"])).is_none());
        assert!(Origins::default().of(&headers(&["null"])).is_none());
    }

    #[test]
    fn a_schemes_own_port_is_not_written() {
        assert_eq!(normal("https://a:443").as_deref(), Some("https://a"));
        assert_eq!(normal("http://[::1]:80/").as_deref(), Some("http://[::1]"));
        assert_eq!(
            normal("http://[::1]:81").as_deref(),
            Some("http://[::1]:81")
        );
        assert_eq!(normal("https://a:"), None);
        assert_eq!(normal("https://a:+1"), None);
    }

    proptest! {
        #[test]
        fn s01_nothing_but_the_listed_text_passes(text in "[a-z:/.@#?\\[\\]0-9-]{0,40}") {
            let origins = Origins::new(["https://a.b:1"]);
            let let_in = origins.of(&headers(&[&text])).is_some();
            prop_assert_eq!(let_in, text == "https://a.b:1");
        }

        #[test]
        fn normal_is_its_own_normal(text in "https?://[a-zA-Z.:0-9-]{1,30}/?") {
            if let Some(origin) = normal(&text) {
                prop_assert_eq!(normal(&origin), Some(origin));
            }
        }
    }
}
