//! rustls configurations whose verifiers ask `chain`.
//!
//! There is one way in and one way out of each program: `client` for dialling, `server` for
//! accepting. TLS 1.3 only, aws-lc only. Host names in certificates do not matter between daemons;
//! roles do, so the verifiers ignore the name dialled and demand a role instead.

use std::sync::Arc;
use std::time::Duration;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::server::ResolvesServerCert;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use crate::chain::{ChainError, Root, Usage};
use crate::roles::Role;

/// TLS sessions that a dialler remembers.
const SESSIONS_KEPT: usize = 8;

/// A certificate chain and the key of its leaf.
pub struct Credentials {
    /// Leaf first, root last (the root too, so that a machine with a join token can find it).
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's key.
    pub key: PrivateKeyDer<'static>,
}

impl Clone for Credentials {
    fn clone(&self) -> Self {
        Self {
            chain: self.chain.clone(),
            key: self.key.clone_key(),
        }
    }
}

/// Whom a dialler is willing to find.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// The controller.
    Controller,
    /// Any access server of that region.
    AccessServer(String),
    /// An access server of whatever region: at enrolment the region is not known yet.
    AnyAccessServer,
}

impl Expected {
    fn accepts(&self, role: &Role) -> bool {
        match (self, role) {
            (Self::Controller, Role::Controller)
            | (Self::AnyAccessServer, Role::AccessServer { .. }) => true,
            (Self::AccessServer(expected), Role::AccessServer { region, .. }) => expected == region,
            _ => false,
        }
    }
}

/// What a dialler believes in.
#[derive(Clone)]
pub enum Trust {
    /// The installation's root.
    Root(Root),
    /// Whatever root the server shows, if it has this hash (from a join token).
    RootHash([u8; 32]),
}

/// A configuration for dialling. Without credentials only the doors for strangers open.
///
/// # Errors
/// When the credentials do not fit together.
pub fn client(
    trust: Trust,
    expected: Expected,
    credentials: Option<Credentials>,
) -> Result<ClientConfig, Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Arc::new(ServerVerifier {
        trust,
        expected,
        provider: Arc::clone(&provider),
    });
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match credentials {
        Some(own) => builder.with_client_auth_cert(own.chain, own.key)?,
        None => builder.with_no_client_auth(),
    };
    // One server each is dialled; the library's default keeps room for 32.
    config.resumption = Resumption::in_memory_sessions(SESSIONS_KEPT);
    Ok(config)
}

/// A configuration for accepting: peers may show a certificate (then it must be one of ours,
/// expired for less than `grace` at most) or none. What each may do is the listener's decision,
/// by [`Root::identify_with_grace`] on the finished connection.
///
/// # Errors
/// When the credentials do not fit together.
pub fn server(
    root: Root,
    credentials: Credentials,
    grace: Duration,
) -> Result<ServerConfig, Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Arc::new(ClientVerifier {
        root,
        grace,
        provider: Arc::clone(&provider),
    });
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(credentials.chain, credentials.key)?;
    config.ticketer = aws_lc_rs::Ticketer::new()?;
    Ok(config)
}

/// A configuration for https without client certificates (API, console).
///
/// # Errors
/// When the credentials do not fit together.
pub fn https(credentials: Credentials) -> Result<ServerConfig, Error> {
    https_with(Arc::new(SingleCertAndKey::from(certified(credentials)?)))
}

/// The same, for a certificate that changes.
///
/// # Errors
/// When the library has no TLS 1.3.
pub fn https_with(certificate: Arc<dyn ResolvesServerCert>) -> Result<ServerConfig, Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// The same for one that also answers a public CA's challenges (RFC 8737). What is resolved for a client
/// that offers [`crate::public::CHALLENGE_ALPN`] is up to `certificate`.
///
/// # Errors
/// When the library has no TLS 1.3.
pub fn https_with_challenges(
    certificate: Arc<dyn ResolvesServerCert>,
) -> Result<ServerConfig, Error> {
    let mut config = https_with(certificate)?;
    config
        .alpn_protocols
        .push(crate::public::CHALLENGE_ALPN.to_vec());
    Ok(config)
}

/// A chain and its key, checked to belong together.
///
/// # Errors
/// When they do not.
pub fn certified(credentials: Credentials) -> Result<Arc<CertifiedKey>, Error> {
    let provider = aws_lc_rs::default_provider();
    CertifiedKey::from_der(credentials.chain, credentials.key, &provider).map(Arc::new)
}

fn tls_error(error: &ChainError) -> Error {
    match error {
        ChainError::Expired(_) => Error::InvalidCertificate(CertificateError::Expired),
        ChainError::NotYet(_) => Error::InvalidCertificate(CertificateError::NotValidYet),
        ChainError::Incomplete | ChainError::Unreadable(_) => {
            Error::InvalidCertificate(CertificateError::BadEncoding)
        }
        other => Error::General(other.to_string()),
    }
}

fn with_leaf<'a>(
    leaf: &CertificateDer<'a>,
    rest: &[CertificateDer<'a>],
) -> Vec<CertificateDer<'a>> {
    std::iter::once(leaf.clone())
        .chain(rest.iter().cloned())
        .collect()
}

struct ServerVerifier {
    trust: Trust,
    expected: Expected,
    provider: Arc<CryptoProvider>,
}

impl std::fmt::Debug for ServerVerifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ServerVerifier({:?})", self.expected)
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain = with_leaf(end_entity, intermediates);
        let root = match &self.trust {
            Trust::Root(root) => root.clone(),
            Trust::RootHash(hash) => Root::by_hash(&chain, hash).map_err(|e| tls_error(&e))?,
        };
        let identity = root
            .identify(&chain, Usage::Server, now)
            .map_err(|error| tls_error(&error))?;
        if self.expected.accepts(&identity.role) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(Error::General(format!(
                "the server is {}, not what was dialled",
                identity.role
            )))
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.3 is required".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

struct ClientVerifier {
    root: Root,
    grace: Duration,
    provider: Arc<CryptoProvider>,
}

impl std::fmt::Debug for ClientVerifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClientVerifier")
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let chain = with_leaf(end_entity, intermediates);
        self.root
            .identify_with_grace(&chain, Usage::Client, now, self.grace)
            .map(|_| ClientCertVerified::assertion())
            .map_err(|error| tls_error(&error))
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.3 is required".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
