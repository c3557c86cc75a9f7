//! What a public CA asks for over ACME: a request that names the names, the self-signed certificate that
//! answers a TLS-ALPN-01 challenge (RFC 8737), and how long what it issues is good.
//!
//! Nothing here is about roles: certificates of public CAs are for people's https only, and open no door
//! among daemons.

use rcgen::{CertificateParams, CustomExtension, DistinguishedName};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::authority::{AuthorityError, PrivateKey};
use crate::chain::ChainError;
use crate::tls::Credentials;

/// The application protocol by which a CA that looks for a challenge's answer makes itself known.
pub const CHALLENGE_ALPN: &[u8] = b"acme-tls/1";

/// From when to when a certificate is good, in seconds since 1970 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// From.
    pub not_before_s: i64,
    /// To.
    pub not_after_s: i64,
}

/// A certificate request for these names.
///
/// # Errors
/// When a name is none, or the library cannot make one.
pub fn request(key: &PrivateKey, names: &[String]) -> Result<Vec<u8>, AuthorityError> {
    params(names)?
        .serialize_request(&key.0)
        .map(|request| request.der().to_vec())
        .map_err(|error| AuthorityError::Make(error.to_string()))
}

/// What is shown to a CA that looks whether `name` is ours; `digest` is the SHA-256 of the challenge's key
/// authorization.
///
/// # Errors
/// When the name is none, or the library cannot make one.
pub fn challenge(name: &str, digest: &[u8]) -> Result<Credentials, AuthorityError> {
    // The library panics at any other length.
    if digest.len() != 32 {
        return Err(AuthorityError::Make(
            "a challenge's digest has 32 bytes".to_owned(),
        ));
    }
    let key = PrivateKey::generate()?;
    let mut params = params(&[name.to_owned()])?;
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let certificate = params
        .self_signed(&key.0)
        .map_err(|error| AuthorityError::Make(error.to_string()))?;
    Ok(Credentials {
        chain: vec![certificate.der().clone()],
        key: key.for_tls(),
    })
}

/// From when to when it is good.
///
/// # Errors
/// When the certificate cannot be read.
pub fn validity(certificate: &CertificateDer<'_>) -> Result<Validity, ChainError> {
    let (_, parsed) = X509Certificate::from_der(certificate)
        .map_err(|error| ChainError::Unreadable(error.to_string()))?;
    let validity = parsed.validity();
    Ok(Validity {
        not_before_s: validity.not_before.timestamp(),
        not_after_s: validity.not_after.timestamp(),
    })
}

fn params(names: &[String]) -> Result<CertificateParams, AuthorityError> {
    let mut params =
        CertificateParams::new(names).map_err(|error| AuthorityError::Make(error.to_string()))?;
    params.distinguished_name = DistinguishedName::new();
    Ok(params)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::public_key;
    use x509_parser::certification_request::X509CertificationRequest;
    use x509_parser::extensions::ParsedExtension;

    #[test]
    fn a_request_names_the_names_and_nobody() {
        let key = PrivateKey::generate().unwrap();
        let der = request(&key, &["fleet.example.com".to_owned()]).unwrap();
        let (_, parsed) = X509CertificationRequest::from_der(&der).unwrap();
        let info = &parsed.certification_request_info;
        assert_eq!(info.subject.iter_attributes().count(), 0);
        let names: Vec<String> = parsed
            .requested_extensions()
            .unwrap()
            .filter_map(|extension| match extension {
                ParsedExtension::SubjectAlternativeName(names) => Some(names.general_names.clone()),
                _ => None,
            })
            .flatten()
            .map(|name| name.to_string())
            .collect();
        assert_eq!(names, ["DNSName(fleet.example.com)"]);
        assert!(request(&key, &["über.example".to_owned()]).is_err());
    }

    #[test]
    fn a_challenge_is_answered_by_a_critical_extension_and_a_key_of_its_own() {
        let digest = [7; 32];
        let answer = challenge("fleet.example.com", &digest).unwrap();
        let (_, parsed) = X509Certificate::from_der(&answer.chain[0]).unwrap();
        let extension = parsed
            .extensions()
            .iter()
            .find(|extension| extension.oid.to_id_string() == "1.3.6.1.5.5.7.1.31")
            .unwrap();
        assert!(extension.critical);
        // An octet string of 32 bytes.
        assert_eq!(extension.value[..2], [4, 32]);
        assert_eq!(extension.value[2..], digest);
        let again = challenge("fleet.example.com", &digest).unwrap();
        assert_ne!(
            public_key(&answer.chain[0]).unwrap(),
            public_key(&again.chain[0]).unwrap()
        );
        assert!(challenge("fleet.example.com", &digest[1..]).is_err());
        let validity = validity(&answer.chain[0]).unwrap();
        assert!(validity.not_before_s < validity.not_after_s);
    }
}
