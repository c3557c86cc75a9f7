//! The conversation with the CA: account, order, proof that the name is ours, certificate.

use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fairlead_identity::public;
use fairlead_protocol::codes;
use instant_acme::{
    Account as Client, AccountCredentials, AuthorizationStatus, ChallengeType, Error, Identifier,
    NewAccount, NewOrder, Order, OrderStatus, Problem, RetryPolicy,
};

use tokio::net::TcpStream;

use super::door::{self, Answer, Door};
use super::http::Http;
use super::kept::{Account, Kept};
use crate::config::AcmeConfig;

/// How long the CA may take to look, and then to sign.
const EACH_WITHIN: Duration = Duration::from_secs(60);
/// The port where a CA looks, always.
const CA_LOOKS_AT: u16 = 443;
/// How long nobody may listen there before the CA is asked all the same.
const OWN_PORT_WITHIN: Duration = Duration::from_secs(30);
/// Between two looks.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(500);
/// The beginning of the names of ACME's errors.
const ERRORS: &str = "urn:ietf:params:acme:error:";
/// Longest text of a CA that is passed on.
const TEXT_MAX: usize = 400;

/// What is asked, and with what.
pub(super) struct Asking<'a> {
    pub(super) name: &'a str,
    pub(super) config: &'a AcmeConfig,
    pub(super) csr: &'a [u8],
    pub(super) door: &'a Arc<Door>,
    pub(super) kept: &'a Kept,
}

/// Why there is no certificate.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) code: &'static str,
    pub(super) message: String,
    /// The CA has counted it.
    pub(super) ordered: bool,
    /// How long the CA wants us to stay away.
    pub(super) retry_after_s: Option<i64>,
}

impl Failed {
    fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            ordered: true,
            retry_after_s: None,
        }
    }

    /// What came cannot be used.
    pub(super) fn refused(message: String) -> Self {
        Self::new(codes::ACME_REFUSED, message)
    }

    /// It took too long.
    pub(super) fn slow(within: Duration) -> Self {
        let message = format!(
            "the CA has not come to an end within {} s",
            within.as_secs()
        );
        Self::new(codes::ACME_UNREACHABLE, message)
    }

    fn unreachable(error: &Error) -> Self {
        Self {
            ordered: false,
            ..Self::new(codes::ACME_UNREACHABLE, words(error))
        }
    }

    /// By what the CA says is wrong.
    fn by(problem: &Problem) -> Self {
        let kind = problem.r#type.as_deref().unwrap_or_default();
        let code = match kind.strip_prefix(ERRORS).unwrap_or(kind) {
            "rateLimited" => codes::ACME_RATE_LIMITED,
            "serverInternal" => codes::ACME_UNREACHABLE,
            "dns" | "connection" | "tls" | "unauthorized" | "incorrectResponse" | "caa" => {
                codes::ACME_CHALLENGE_FAILED
            }
            _ => codes::ACME_REFUSED,
        };
        Self::new(code, plain(&problem.to_string()))
    }
}

impl From<Error> for Failed {
    /// From when on the CA has an order.
    fn from(error: Error) -> Self {
        match &error {
            Error::Api(problem) => Self::by(problem),
            other => Self::new(codes::ACME_UNREACHABLE, words(other)),
        }
    }
}

/// Asks for a certificate; its chain as PEM.
pub(super) async fn ask(asking: &Asking<'_>) -> Result<String, Failed> {
    wait_while_refused((asking.name, CA_LOOKS_AT), OWN_PORT_WITHIN).await;
    let http = Http::new(asking.config.ca.as_deref()).map_err(|e| Failed::unreachable(&e))?;
    let retry_after_s = http.retry_after_s();
    let mut answer = order(asking, http).await;
    if let Err(failed) = &mut answer
        && failed.code == codes::ACME_RATE_LIMITED
    {
        let seconds = retry_after_s.load(Ordering::Relaxed);
        failed.retry_after_s = (seconds > 0).then_some(seconds);
    }
    answer
}

async fn order(asking: &Asking<'_>, http: Http) -> Result<String, Failed> {
    let names = [Identifier::Dns(asking.name.to_owned())];
    let wanted = NewOrder::new(&names);
    let client = account(asking, http).await?;
    let mut order = match client.new_order(&wanted).await {
        // The CA has forgotten us: as for the first time, once.
        Err(Error::Api(problem)) if is(&problem, "accountDoesNotExist") => {
            let http =
                Http::new(asking.config.ca.as_deref()).map_err(|e| Failed::unreachable(&e))?;
            let client = new_account(asking, http).await?;
            client.new_order(&wanted).await?
        }
        other => other?,
    };
    let _shown = prove(asking, &mut order).await?;
    let within = RetryPolicy::new().timeout(EACH_WITHIN);
    match order.poll_ready(&within).await {
        Ok(OrderStatus::Ready) => {}
        Ok(_) => return Err(why_invalid(&mut order, None).await),
        Err(Error::Api(problem)) => return Err(why_invalid(&mut order, Some(problem)).await),
        Err(error) => return Err(error.into()),
    }
    order.finalize_csr(asking.csr).await?;
    Ok(order.poll_certificate(&within).await?)
}

/// Waits until somebody listens where the CA will look: when a machine starts, the access server that passes
/// the one port's connections on may come later than we do. Whatever else is wrong there, or only seems so
/// from here, the CA will say.
async fn wait_while_refused(address: (&str, u16), within: Duration) {
    let refused = async {
        while let Err(error) = TcpStream::connect(address).await {
            if error.kind() != std::io::ErrorKind::ConnectionRefused {
                return;
            }
            tokio::time::sleep(LOOK_AGAIN_AFTER).await;
        }
    };
    let _ = tokio::time::timeout(within, refused).await;
}

/// The account that is kept, or a new one.
async fn account(asking: &Asking<'_>, http: Http) -> Result<Client, Failed> {
    let AcmeConfig {
        directory,
        contacts,
        ..
    } = asking.config;
    // One that cannot be read is as good as none.
    let Some(mut kept) = asking.kept.account(directory).unwrap_or_default() else {
        return new_account(asking, http).await;
    };
    let text = serde_json::to_value(&kept.credentials).map_err(|e| not_kept(&e))?;
    let credentials: AccountCredentials = serde_json::from_value(text).map_err(|e| not_kept(&e))?;
    let client = Client::builder_with_http(Box::new(http))
        .from_credentials(credentials)
        .await
        .map_err(|error| Failed::unreachable(&error))?;
    if kept.contacts != *contacts {
        let texts: Vec<&str> = contacts.iter().map(String::as_str).collect();
        match client.update_contacts(&texts).await {
            Ok(()) => {
                kept.contacts.clone_from(contacts);
                asking.kept.save_account(&kept).map_err(|e| not_kept(&e))?;
            }
            // Found out again, and healed, when the order is made.
            Err(Error::Api(problem)) if is(&problem, "accountDoesNotExist") => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(client)
}

async fn new_account(asking: &Asking<'_>, http: Http) -> Result<Client, Failed> {
    let AcmeConfig {
        directory,
        contacts,
        agree_tos,
        ..
    } = asking.config;
    let contact: Vec<&str> = contacts.iter().map(String::as_str).collect();
    let wanted = NewAccount {
        contact: &contact,
        terms_of_service_agreed: *agree_tos,
        only_return_existing: false,
    };
    let made = Client::builder_with_http(Box::new(http))
        .create(&wanted, directory.clone(), None)
        .await;
    let (client, credentials) = made.map_err(|error| match &error {
        Error::Api(problem) => Failed::by(problem),
        other => Failed::unreachable(other),
    })?;
    let account = Account {
        directory: directory.clone(),
        contacts: contacts.clone(),
        credentials,
    };
    asking
        .kept
        .save_account(&account)
        .map_err(|e| not_kept(&e))?;
    tracing::info!(directory, "an ACME account was made");
    Ok(client)
}

/// Shows the answer to each open challenge, and has the CA look.
async fn prove(asking: &Asking<'_>, order: &mut Order) -> Result<Vec<Answer>, Failed> {
    let mut shown = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        match authorization.status {
            AuthorizationStatus::Valid => continue,
            AuthorizationStatus::Pending => {}
            other => {
                let message = format!("the CA's authorization of {} is {other:?}", asking.name);
                return Err(Failed::refused(message));
            }
        }
        let Some(mut challenge) = authorization.challenge(ChallengeType::TlsAlpn01) else {
            let message = format!("the CA offers no tls-alpn-01 challenge for {}", asking.name);
            return Err(Failed::refused(message));
        };
        let digest = challenge.key_authorization().digest();
        let answer = public::challenge(asking.name, digest.as_ref())
            .map_err(|error| Failed::refused(error.to_string()))?;
        let answer = door::answer(answer).map_err(|error| Failed::refused(error.to_string()))?;
        shown.push(asking.door.answer(asking.name, answer));
        challenge.set_ready().await?;
    }
    Ok(shown)
}

/// An order that failed seldom says why; its challenges do.
async fn why_invalid(order: &mut Order, said: Option<Problem>) -> Failed {
    let mut authorizations = order.authorizations();
    while let Some(Ok(authorization)) = authorizations.next().await {
        let mut challenges = authorization.challenges.iter();
        if let Some(problem) = challenges.find_map(|challenge| challenge.error.as_ref()) {
            return Failed {
                code: codes::ACME_CHALLENGE_FAILED,
                ..Failed::by(problem)
            };
        }
    }
    match said {
        Some(problem) => Failed::by(&problem),
        None => Failed::refused("the CA has ended the order and does not say why".to_owned()),
    }
}

fn is(problem: &Problem, kind: &str) -> bool {
    problem
        .r#type
        .as_deref()
        .and_then(|t| t.strip_prefix(ERRORS))
        == Some(kind)
}

fn not_kept(error: &dyn std::fmt::Display) -> Failed {
    let message = format!("the account cannot be kept: {error}");
    Failed::new(codes::ACME_NOT_KEPT, message)
}

/// The error with its causes.
fn words(error: &Error) -> String {
    let mut text = match error {
        Error::Json(_) => "what answers is no ACME server".to_owned(),
        other => other.to_string(),
    };
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    plain(&text)
}

/// Text of somebody else, for one line of a log.
fn plain(text: &str) -> String {
    let line = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    line.take(TEXT_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_that_refuses_is_waited_for_and_nothing_else_is() {
        // An address that nobody else uses: the port is free for a moment.
        const OWN: &str = "127.83.7.1";
        let listener = tokio::net::TcpListener::bind((OWN, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let within = Duration::from_secs(60);
        let (came, ()) = tokio::join!(
            async {
                wait_while_refused((OWN, port), within).await;
                tokio::time::Instant::now()
            },
            async {
                let refused = TcpStream::connect((OWN, port)).await;
                refused.unwrap_err();
                let again = tokio::net::TcpListener::bind((OWN, port)).await;
                // Until the other side has been here.
                again.unwrap().accept().await.unwrap();
            }
        );
        assert!(came.elapsed() < within);
        wait_while_refused(("name.invalid", port), within).await;
    }

    #[test]
    fn what_the_ca_says_is_told_apart() {
        let failed = |kind: &str| {
            let text =
                format!(r#"{{"type": "urn:ietf:params:acme:error:{kind}", "detail": "so\n"}}"#);
            let problem: Problem = serde_json::from_str(&text.replace('\n', " ")).unwrap();
            Failed::from(Error::Api(problem))
        };
        for (kind, code) in [
            ("rateLimited", codes::ACME_RATE_LIMITED),
            ("serverInternal", codes::ACME_UNREACHABLE),
            ("caa", codes::ACME_CHALLENGE_FAILED),
            ("rejectedIdentifier", codes::ACME_REFUSED),
            ("never heard of", codes::ACME_REFUSED),
        ] {
            let failed = failed(kind);
            assert_eq!(failed.code, code, "{kind}");
            assert!(
                failed.ordered && failed.message.contains("so"),
                "{failed:?}"
            );
        }
        assert!(!Failed::unreachable(&Error::Str("no")).ordered);
        assert!(plain(&"x\n".repeat(1000)).len() == TEXT_MAX && !plain("a\nb").contains('\n'));
    }
}
