//! Which certificate a client is shown: a challenge's answer to the CA that looks for it, the certificate of
//! the public CA to whoever asks for its name, the one of the own CA to everybody else.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use fairlead_identity::public::CHALLENGE_ALPN;
use fairlead_identity::tls::Credentials;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

/// What answers a challenge, as the TLS library wants it. It is not looked at as certificates are otherwise
/// (`tls::certified`): that would refuse the very extension that it is about, because it is critical.
pub(super) fn answer(credentials: Credentials) -> Result<Arc<CertifiedKey>, rustls::Error> {
    let key = any_supported_type(&credentials.key)?;
    Ok(Arc::new(CertifiedKey::new(credentials.chain, key)))
}

/// The certificates of the people's https port.
pub struct Door {
    own: Arc<CertifiedKey>,
    shown: RwLock<Option<(String, Arc<CertifiedKey>)>>,
    challenges: RwLock<HashMap<String, Arc<CertifiedKey>>>,
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Door")
    }
}

impl Door {
    /// A door that shows that one.
    pub(super) fn new(own: Arc<CertifiedKey>) -> Arc<Self> {
        Arc::new(Self {
            own,
            shown: RwLock::default(),
            challenges: RwLock::default(),
        })
    }

    /// From now on, whoever asks for the name is shown this one.
    pub(super) fn show(&self, name: &str, certificate: Arc<CertifiedKey>) {
        let mut shown = self.shown.write().unwrap_or_else(PoisonError::into_inner);
        *shown = Some((name.to_owned(), certificate));
    }

    /// The answer to a challenge, until the value is dropped.
    pub(super) fn answer(self: &Arc<Self>, name: &str, answer: Arc<CertifiedKey>) -> Answer {
        let mut challenges = self
            .challenges
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        challenges.insert(name.to_owned(), answer);
        Answer {
            door: Arc::clone(self),
            name: name.to_owned(),
        }
    }

    fn for_client(&self, name: Option<&str>, is_challenge: bool) -> Option<Arc<CertifiedKey>> {
        let name = name.map(str::to_ascii_lowercase);
        if is_challenge {
            let challenges = self
                .challenges
                .read()
                .unwrap_or_else(PoisonError::into_inner);
            return challenges.get(&name?).cloned();
        }
        let shown = self.shown.read().unwrap_or_else(PoisonError::into_inner);
        match &*shown {
            Some((of, certificate)) if Some(of) == name.as_ref() => Some(Arc::clone(certificate)),
            _ => Some(Arc::clone(&self.own)),
        }
    }
}

impl ResolvesServerCert for Door {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // A CA offers that protocol and no other (RFC 8737, section 3).
        let is_challenge = hello.alpn().is_some_and(|mut offered| {
            offered.next() == Some(CHALLENGE_ALPN) && offered.next().is_none()
        });
        self.for_client(hello.server_name(), is_challenge)
    }
}

/// A challenge's answer, shown as long as this lives.
pub(super) struct Answer {
    door: Arc<Door>,
    name: String,
}

impl Drop for Answer {
    fn drop(&mut self) {
        let mut challenges = self
            .door
            .challenges
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        challenges.remove(&self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fairlead_identity::public;

    fn certificate(name: &str) -> Arc<CertifiedKey> {
        answer(public::challenge(name, &[1; 32]).unwrap()).unwrap()
    }

    #[test]
    fn each_is_shown_its_own() {
        let (own, had, proof) = (certificate("a"), certificate("b"), certificate("c"));
        let door = Door::new(Arc::clone(&own));
        let shown = |name, is_challenge| door.for_client(name, is_challenge);
        let same = |one: Option<Arc<CertifiedKey>>, other: &Arc<CertifiedKey>| {
            Arc::ptr_eq(&one.unwrap(), other)
        };
        assert!(same(shown(Some("fleet.example.com"), false), &own));
        door.show("fleet.example.com", Arc::clone(&had));
        assert!(same(shown(Some("Fleet.example.com"), false), &had));
        assert!(same(shown(Some("localhost"), false), &own));
        assert!(same(shown(None, false), &own));

        // Nobody but a CA with a challenge in progress gets anything by that protocol.
        assert!(shown(Some("fleet.example.com"), true).is_none());
        let held = door.answer("fleet.example.com", Arc::clone(&proof));
        assert!(same(shown(Some("FLEET.example.com"), true), &proof));
        assert!(shown(Some("other.example.com"), true).is_none());
        assert!(shown(None, true).is_none());
        assert!(same(shown(Some("fleet.example.com"), false), &had));
        drop(held);
        assert!(shown(Some("fleet.example.com"), true).is_none());
    }
}
