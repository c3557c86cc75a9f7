//! Who vouches for a server: a CA file, a CA's fingerprint, or what the platform trusts. TLS 1.3
//! only, and there is no switch that turns verification off.

use std::path::Path;
use std::sync::{Arc, Mutex};

use base64::Engine;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::exit::{Exit, Failure};

/// SHA-256 of a certificate.
pub(crate) type Fingerprint = [u8; 32];

/// Who vouches for the server.
#[derive(Clone)]
pub(crate) enum Trust {
    /// The platform's own roots.
    Platform,
    /// These CAs and no other.
    Ca(Vec<CertificateDer<'static>>),
    /// The CA in the server's own chain that has this fingerprint; it is left in the cell.
    Fingerprint(Fingerprint, Arc<Mutex<Option<CertificateDer<'static>>>>),
}

impl Trust {
    /// The CAs in a PEM file, and the file's text.
    pub(crate) fn from_file(file: &Path, source: &str) -> Result<(Self, String), Failure> {
        let text = std::fs::read_to_string(file).map_err(|e| {
            Failure::new(Exit::Failed, format!("cannot read {}: {e}", file.display())).hint(
                format!("{source} must name the PEM file of the server's CA"),
            )
        })?;
        Ok((Self::from_pem(text.as_bytes(), source)?, text))
    }

    /// The CAs in PEM text.
    pub(crate) fn from_pem(pem: &[u8], source: &str) -> Result<Self, Failure> {
        let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem)
            .collect::<Result<_, _>>()
            .unwrap_or_default();
        if certificates.is_empty() {
            return Err(
                Failure::new(Exit::Failed, format!("no certificate in {source}"))
                    .hint("it must be a PEM file, with -----BEGIN CERTIFICATE----- in it"),
            );
        }
        Ok(Self::Ca(certificates))
    }

    /// The TLS configuration that believes these.
    pub(crate) fn client_config(&self) -> Result<ClientConfig, Failure> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let failed =
            |e: rustls::Error| Failure::new(Exit::Failed, format!("cannot set up TLS: {e}"));
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(failed)?;
        let mut config = match self {
            Self::Platform => {
                let verifier = rustls_platform_verifier::Verifier::new(provider).map_err(failed)?;
                builder
                    .dangerous()
                    .with_custom_certificate_verifier(Arc::new(verifier))
                    .with_no_client_auth()
            }
            Self::Ca(certificates) => {
                let mut roots = RootCertStore::empty();
                roots.add_parsable_certificates(certificates.iter().cloned());
                if roots.is_empty() {
                    return Err(Failure::new(Exit::Failed, "the CA file holds no usable CA"));
                }
                builder.with_root_certificates(roots).with_no_client_auth()
            }
            Self::Fingerprint(wanted, found) => {
                let verifier = FingerprintVerifier {
                    wanted: *wanted,
                    found: Arc::clone(found),
                    provider,
                };
                builder
                    .dangerous()
                    .with_custom_certificate_verifier(Arc::new(verifier))
                    .with_no_client_auth()
            }
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

/// A fingerprint as people write it: 64 hex digits, with or without colons and `sha256:`.
pub(crate) fn fingerprint(text: &str) -> Result<Fingerprint, Failure> {
    let digits: String = text
        .trim()
        .trim_start_matches("sha256:")
        .trim_start_matches("SHA256:")
        .chars()
        .filter(|c| *c != ':')
        .collect();
    let wrong = || Failure::usage("a fingerprint is a SHA-256: 64 hexadecimal digits");
    if digits.len() != 64 || !digits.is_ascii() {
        return Err(wrong());
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks(2)) {
        let pair = std::str::from_utf8(pair).map_err(|_| wrong())?;
        *byte = u8::from_str_radix(pair, 16).map_err(|_| wrong())?;
    }
    Ok(bytes)
}

fn sha256(bytes: &[u8]) -> Fingerprint {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    let mut out = [0; 32];
    out.copy_from_slice(digest.as_ref());
    out
}

/// A certificate as PEM, for the saved login.
pub(crate) fn to_pem(certificate: &CertificateDer<'_>) -> String {
    let body = base64::engine::general_purpose::STANDARD.encode(certificate);
    let lines: Vec<&str> = body
        .as_bytes()
        .chunks(64)
        .map(|l| std::str::from_utf8(l).unwrap_or_default())
        .collect();
    format!(
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        lines.join("\n")
    )
}

/// Believes the CA of that fingerprint, and of the server's certificate all else that is usual:
/// signed by it, for that name, now.
#[derive(Debug)]
struct FingerprintVerifier {
    wanted: Fingerprint,
    found: Arc<Mutex<Option<CertificateDer<'static>>>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for FingerprintVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let ca = intermediates
            .iter()
            .find(|certificate| sha256(certificate) == self.wanted)
            .ok_or(CertificateError::UnknownIssuer)?
            .clone()
            .into_owned();
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
            .build()
            .map_err(|e| rustls::Error::General(e.to_string()))?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        if let Ok(mut found) = self.found.lock() {
            *found = Some(ca);
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General(
            "TLS 1.2 is not spoken here".to_owned(),
        ))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// A TLS error in words, and what to do about it.
pub(crate) fn explain(error: &rustls::Error) -> (String, String) {
    use CertificateError as C;
    match error {
        rustls::Error::InvalidCertificate(C::UnknownIssuer) => (
            "its certificate was not made by the CA that is trusted here".to_owned(),
            "is it the right server? Its CA: FAIRLEAD_CA, or fairlead login URL --ca FILE"
                .to_owned(),
        ),
        rustls::Error::InvalidCertificate(
            C::NotValidForName | C::NotValidForNameContext { .. },
        ) => (
            "its certificate is for another name".to_owned(),
            "use the name that is in the certificate".to_owned(),
        ),
        rustls::Error::InvalidCertificate(C::Expired | C::ExpiredContext { .. }) => (
            "its certificate has expired (or the clock here is ahead)".to_owned(),
            String::new(),
        ),
        rustls::Error::InvalidCertificate(C::NotValidYet | C::NotValidYetContext { .. }) => (
            "its certificate is not valid yet: the clock here or there is wrong".to_owned(),
            String::new(),
        ),
        rustls::Error::InvalidCertificate(C::BadSignature) => (
            "its certificate is signed by another key of a CA with the same name".to_owned(),
            "was the installation set up anew? Fetch its CA again".to_owned(),
        ),
        rustls::Error::InvalidMessage(_) => (
            "it does not speak TLS on that port".to_owned(),
            "is the port right?".to_owned(),
        ),
        other => (format!("TLS: {other}"), String::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_are_read_as_people_write_them() {
        let plain = "ab".repeat(32);
        assert_eq!(fingerprint(&plain).unwrap(), [0xab; 32]);
        let colons = ["AB"; 32].join(":");
        assert_eq!(
            fingerprint(&format!("sha256:{colons}")).unwrap(),
            [0xab; 32]
        );
        assert!(fingerprint("abcd").is_err());
        assert!(fingerprint(&"zz".repeat(32)).is_err());
    }

    #[test]
    fn pem_round_trips() {
        for length in [1, 2, 3, 47, 48, 49, 500] {
            let der = CertificateDer::from(vec![0xa5u8; length]);
            let pem = to_pem(&der);
            assert_eq!(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap(), der);
        }
        assert!(Trust::from_pem(b"nothing", "x").is_err());
    }
}
