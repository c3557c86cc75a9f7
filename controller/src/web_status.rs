//! What https shows of itself: whose certificate, until when, and what keeps a better one from being had.
//! Written by whoever changes the certificate, read by status, probes, monitoring and the line that adds a
//! host.

use std::sync::{PoisonError, RwLock};

use fairlead_api::types::{HttpsCertificate, HttpsTrouble};
use fairlead_identity::public::{self, Validity};
use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

/// Whose certificate it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The installation's own CA's.
    OwnCa,
    /// One in files, that somebody else renews.
    Files,
    /// A CA's, had by ACME.
    Acme,
}

impl Source {
    fn word(self) -> &'static str {
        match self {
            Self::OwnCa => "own-ca",
            Self::Files => "files",
            Self::Acme => "acme",
        }
    }
}

/// Why there is no (newer) certificate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trouble {
    /// One of `protocol::codes`.
    pub code: String,
    /// In words.
    pub message: String,
    /// Since when.
    pub at_s: i64,
    /// When the next try is made; 0: not known.
    #[serde(default)]
    pub next_s: i64,
}

struct State {
    source: Source,
    names: Vec<String>,
    validity: Option<Validity>,
    is_public: bool,
    trouble: Option<Trouble>,
}

/// It.
pub struct WebStatus {
    pin: String,
    state: RwLock<State>,
}

impl WebStatus {
    /// https shows one of the own CA; `pin` is what `curl --pinnedpubkey` takes for its key.
    #[must_use]
    pub fn new(pin: String, names: Vec<String>, leaf: Option<&CertificateDer<'_>>) -> Self {
        Self {
            pin,
            state: RwLock::new(State {
                source: Source::OwnCa,
                names,
                validity: leaf.and_then(|leaf| public::validity(leaf).ok()),
                is_public: false,
                trouble: None,
            }),
        }
    }

    /// It shows another. `is_public`: everybody knows its CA.
    pub fn now_shows(
        &self,
        source: Source,
        names: Vec<String>,
        validity: Option<Validity>,
        is_public: bool,
    ) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        *state = State {
            source,
            names,
            validity,
            is_public,
            trouble: state.trouble.take(),
        };
    }

    /// What keeps a better one from being had, or nothing.
    pub fn set_trouble(&self, trouble: Option<Trouble>) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.trouble = trouble;
    }

    /// Whose is shown.
    #[must_use]
    pub fn source(&self) -> Source {
        self.read().source
    }

    /// What `curl --pinnedpubkey` needs to be told; empty when everybody knows the CA.
    #[must_use]
    pub fn pin(&self) -> String {
        if self.read().is_public {
            String::new()
        } else {
            self.pin.clone()
        }
    }

    /// Whether what is shown is no public one, or has less than a sixth of its life left.
    #[must_use]
    pub fn ends_soon(&self, now_s: i64) -> bool {
        let state = self.read();
        let soon = state.validity.is_none_or(|validity| {
            let life_s = validity.not_after_s - validity.not_before_s;
            validity.not_after_s - now_s < life_s / 6
        });
        state.source == Source::OwnCa || soon
    }

    /// For the API.
    #[must_use]
    pub fn shown(&self) -> HttpsCertificate {
        let state = self.read();
        HttpsCertificate {
            source: state.source.word().to_owned(),
            names: state.names.clone(),
            not_after: state.validity.and_then(|v| time(v.not_after_s)),
            trouble: state.trouble.as_ref().map(|trouble| HttpsTrouble {
                code: trouble.code.clone(),
                message: trouble.message.clone(),
                at: time(trouble.at_s),
                next_try: Some(trouble.next_s).filter(|at| *at > 0).and_then(time),
            }),
        }
    }

    /// When it ends, seconds since 1970 UTC, and whose it is; for monitoring.
    #[must_use]
    pub fn ends(&self) -> (&'static str, u64) {
        let state = self.read();
        let end_s = state.validity.map_or(0, |validity| validity.not_after_s);
        (state.source.word(), u64::try_from(end_s).unwrap_or(0))
    }

    /// One line for probes, which ask without a token: nothing that TLS does not tell anybody.
    #[must_use]
    pub fn line(&self) -> String {
        let shown = self.shown();
        let until = shown
            .not_after
            .map(|until| format!(" until {until}"))
            .unwrap_or_default();
        let trouble = shown
            .trouble
            .map(|trouble| format!("; {}", trouble.code))
            .unwrap_or_default();
        format!("https {}{until}{trouble}", shown.source)
    }

    /// One line for people, when they should do or know something.
    #[must_use]
    pub fn attention(&self) -> Option<String> {
        let shown = self.shown();
        let trouble = shown.trouble?;
        let state = match (shown.source.as_str(), shown.not_after) {
            ("acme", Some(until)) => format!("its certificate ends {until} and was not renewed"),
            _ => "it shows a certificate of the installation's own CA".to_owned(),
        };
        let next = trouble
            .next_try
            .map(|at| format!("; next try {at}"))
            .unwrap_or_default();
        Some(format!(
            "https: {state} ({}): {}{next}",
            trouble.code, trouble.message
        ))
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }
}

fn time(at_s: i64) -> Option<Timestamp> {
    Timestamp::from_second(at_s).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_named_until_everybody_knows_the_ca() {
        let status = WebStatus::new("sha256//AbC=".to_owned(), Vec::new(), None);
        assert_eq!(
            (status.pin().as_str(), status.source()),
            ("sha256//AbC=", Source::OwnCa)
        );
        assert_eq!(status.line(), "https own-ca");
        assert!(status.ends_soon(0), "no public certificate at all");
        status.set_trouble(Some(Trouble {
            code: "acme_waiting".to_owned(),
            message: "not yet".to_owned(),
            at_s: 5,
            next_s: 10,
        }));
        assert_eq!(status.line(), "https own-ca; acme_waiting");
        let words = status.attention().unwrap();
        assert!(
            words.contains("own CA (acme_waiting): not yet; next try 1970"),
            "{words}"
        );
        let validity = Validity {
            not_before_s: 0,
            not_after_s: 600,
        };
        let names = || vec!["fleet.example.com".to_owned()];
        status.now_shows(Source::Acme, names(), Some(validity), false);
        assert_eq!(
            status.pin(),
            "sha256//AbC=",
            "a CA that only we were told of"
        );
        status.now_shows(Source::Acme, names(), Some(validity), true);
        assert_eq!(status.pin(), "");
        assert_eq!(
            status.line(),
            "https acme until 1970-01-01T00:10:00Z; acme_waiting"
        );
        assert!(!status.ends_soon(499) && status.ends_soon(501));
        status.set_trouble(None);
        assert!(status.attention().is_none());
        assert_eq!(status.ends(), ("acme", 600));
    }
}
