//! One request to the CA, with an end in time and in size. A proxy is taken from `HTTPS_PROXY` and
//! `NO_PROXY`, as `reqwest` does.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use axum::http::header::RETRY_AFTER;
use axum::http::{Request, Response};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::AcmeError;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest answer: a chain has a few KiB.
const ANSWER_BYTES_MAX: usize = 256 * 1024;

/// What makes requests.
pub(super) struct Http {
    client: reqwest::Client,
    /// What the CA said last of how long to stay away, in seconds; below zero: nothing.
    retry_after_s: Arc<AtomicI64>,
}

impl Http {
    /// One that believes the CA's own roots, or those of the system.
    pub(super) fn new(ca: Option<&Path>) -> Result<Self, Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(other)?;
        let mut tls = match ca {
            Some(path) => builder
                .with_root_certificates(roots(path).map_err(other)?)
                .with_no_client_auth(),
            None => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(
                    rustls_platform_verifier::Verifier::new(provider).map_err(other)?,
                ))
                .with_no_client_auth(),
        };
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .https_only(true)
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(ANSWER_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(other)?;
        Ok(Self {
            client,
            retry_after_s: Arc::new(AtomicI64::new(-1)),
        })
    }

    /// Where it is found how long the CA wants us to stay away.
    pub(super) fn retry_after_s(&self) -> Arc<AtomicI64> {
        Arc::clone(&self.retry_after_s)
    }
}

impl HttpClient for Http {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let (client, retry_after_s) = (self.client.clone(), Arc::clone(&self.retry_after_s));
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let Ok(body) = body.collect().await;
            let mut response = client
                .request(parts.method, parts.uri.to_string())
                .headers(parts.headers)
                .body(body.to_bytes())
                .send()
                .await
                .map_err(other)?;
            if !response.status().is_success() {
                let asked = response.headers().get(RETRY_AFTER);
                let seconds = asked.and_then(|value| value.to_str().ok()?.trim().parse().ok());
                retry_after_s.store(seconds.unwrap_or(-1), Ordering::Relaxed);
            }
            let mut content = BytesMut::new();
            while let Some(chunk) = response.chunk().await.map_err(other)? {
                if content.len() + chunk.len() > ANSWER_BYTES_MAX {
                    return Err(Error::Other("the answer is too long".into()));
                }
                content.extend_from_slice(&chunk);
            }
            let mut answer = Response::new(());
            *answer.status_mut() = response.status();
            *answer.headers_mut() = std::mem::take(response.headers_mut());
            Ok(BytesResponse {
                parts: answer.into_parts().0,
                body: Box::new(content.freeze()),
            })
        })
    }
}

/// The certificates in a PEM file.
pub(super) fn roots(path: &Path) -> Result<RootCertStore, AcmeError> {
    let unusable = |reason: String| AcmeError::Roots {
        path: path.display().to_string(),
        reason,
    };
    let text = std::fs::read(path).map_err(|error| unusable(error.to_string()))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&text) {
        let certificate = certificate.map_err(|error| unusable(error.to_string()))?;
        roots
            .add(certificate)
            .map_err(|error| unusable(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(unusable("it holds no certificate".to_owned()));
    }
    Ok(roots)
}

fn other(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Other(Box::new(error))
}
