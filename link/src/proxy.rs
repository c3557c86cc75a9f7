//! Dialling through an HTTP proxy: what `HTTPS_PROXY` and `NO_PROXY` say, and the CONNECT exchange.
//!
//! The proxy sees host, port and TLS bytes and nothing else: TLS, with its check of who the server is,
//! runs through it as without it. Pure but for the exchange itself.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The largest answer to CONNECT that is read.
const ANSWER_BYTES_MAX: usize = 8 * 1024;
/// Longest piece of a proxy's own words that is passed on.
const WORDS_MAX: usize = 120;
/// Where an `http://` proxy without a port listens.
const PORT_DEFAULT: u16 = 80;

/// Why the environment's proxy cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    /// TLS to the proxy itself, SOCKS or something else.
    #[error(
        "{0}:// proxies are not supported: name one that takes plain CONNECT, as in \
         HTTPS_PROXY=http://proxy.example:3128 (what goes through it is TLS in any case)"
    )]
    Scheme(String),
    /// It is not understood.
    #[error(
        "HTTPS_PROXY is not understood ({0}): write it as http://[USER:PASSWORD@]HOST:PORT, special \
         characters of user and password as %XX"
    )]
    Malformed(&'static str),
}

/// What a proxy answered instead of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// 407.
    Auth,
    /// It broke off, or said what cannot be understood.
    Broken(String),
    /// Another status, in its words.
    Status(String),
}

/// The proxy that everything is dialled through, but for the hosts that `NO_PROXY` names.
#[derive(Clone)]
pub struct Proxy(Arc<Inner>);

struct Inner {
    /// `host:port`.
    address: String,
    /// The value of `Proxy-Authorization`.
    authorization: Option<String>,
    except: Vec<Exception>,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the password.
        write!(f, "Proxy({})", self.0.address)
    }
}

/// Hosts that are dialled directly.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Exception {
    All,
    /// The address, or those that share its first bits.
    Network(IpAddr, u8),
    /// That name and all below it, on that port or on any.
    Name(String, Option<u16>),
}

impl Proxy {
    /// What `HTTPS_PROXY` (or `https_proxy`) and `NO_PROXY` (or `no_proxy`) say; `None` without a proxy.
    ///
    /// # Errors
    /// When there is one that cannot be used: silently going around it would be worse.
    pub fn from_env() -> Result<Option<Self>, ProxyError> {
        let read = |names: [&str; 2]| {
            names
                .iter()
                .filter_map(std::env::var_os)
                .find(|value| !value.is_empty())
        };
        let Some(proxy) = read(["HTTPS_PROXY", "https_proxy"]) else {
            return Ok(None);
        };
        let proxy = proxy
            .into_string()
            .map_err(|_| ProxyError::Malformed("it is not UTF-8"))?;
        let except = read(["NO_PROXY", "no_proxy"])
            .and_then(|value| value.into_string().ok())
            .unwrap_or_default();
        Self::new(&proxy, &except).map(Some)
    }

    /// A proxy from its URL, and the comma-separated list of hosts to be dialled directly.
    ///
    /// # Errors
    /// When the URL cannot be used.
    pub fn new(url: &str, except: &str) -> Result<Self, ProxyError> {
        let (scheme, rest) = url.trim().split_once("://").unwrap_or(("http", url.trim()));
        if !scheme.eq_ignore_ascii_case("http") {
            return Err(ProxyError::Scheme(in_words(scheme)));
        }
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, authority),
        };
        let authorization = match user {
            None => None,
            Some(user) => {
                let (user, password) = user.split_once(':').unwrap_or((user, ""));
                let mut both = decoded(user)?;
                both.push(b':');
                both.extend(decoded(password)?);
                Some(format!("Basic {}", STANDARD.encode(both)))
            }
        };
        let (name, port) = split_port(host);
        let port = match port {
            None => PORT_DEFAULT,
            Some(port) => port
                .parse()
                .map_err(|_| ProxyError::Malformed("its port is not a number"))?,
        };
        let odd = |c: char| c.is_control() || c.is_whitespace();
        if name.is_empty() || name.contains(odd) {
            return Err(ProxyError::Malformed("it names no host"));
        }
        Ok(Self(Arc::new(Inner {
            address: format!("{name}:{port}"),
            authorization,
            except: except
                .split([',', ' ', '\t'])
                .filter_map(Exception::read)
                .collect(),
        })))
    }

    /// `host:port` of the proxy.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.0.address
    }

    /// Whether `host:port` is dialled through it.
    #[must_use]
    pub fn serves(&self, address: &str) -> bool {
        let (host, port) = split_port(address);
        let host = bare(host).trim_end_matches('.').to_ascii_lowercase();
        let port = port.and_then(|port| port.parse().ok());
        !self.0.except.iter().any(|e| e.covers(&host, port))
    }

    /// Asks the proxy, on a fresh connection to it, for one to `address`.
    pub(crate) async fn connect(&self, tcp: &mut TcpStream, address: &str) -> Result<(), Refusal> {
        let broken = |error: std::io::Error| Refusal::Broken(error.to_string());
        let authorization = self
            .0
            .authorization
            .as_ref()
            .map(|value| format!("Proxy-Authorization: {value}\r\n"))
            .unwrap_or_default();
        let request =
            format!("CONNECT {address} HTTP/1.1\r\nHost: {address}\r\n{authorization}\r\n");
        tcp.write_all(request.as_bytes()).await.map_err(broken)?;
        let mut answer = Vec::new();
        let head = loop {
            if let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") {
                break end;
            }
            if !b"HTTP/1.".starts_with(answer.get(..7).unwrap_or(&answer)) {
                return Err(Refusal::Broken("it does not speak HTTP".to_owned()));
            }
            if answer.len() > ANSWER_BYTES_MAX {
                return Err(Refusal::Broken("its answer does not end".to_owned()));
            }
            if tcp.read_buf(&mut answer).await.map_err(broken)? == 0 {
                return Err(Refusal::Broken("it closed the connection".to_owned()));
            }
        };
        judge(&String::from_utf8_lossy(&answer[..head]))?;
        // TLS begins with us: whatever is there already is not the server's.
        if answer.len() == head + 4 {
            Ok(())
        } else {
            Err(Refusal::Broken("it says more than it was asked".to_owned()))
        }
    }
}

/// Whether the head of an answer says that the connection stands.
fn judge(head: &str) -> Result<(), Refusal> {
    let line = head.lines().next().unwrap_or_default();
    let status = line.split_once(' ').map_or("", |(_, status)| status.trim());
    let code: Option<u16> = status.get(..3).and_then(|code| code.parse().ok());
    match code {
        Some(200..=299) => Ok(()),
        Some(407) => Err(Refusal::Auth),
        Some(_) => Err(Refusal::Status(in_words(status))),
        None => Err(Refusal::Broken("it does not speak HTTP".to_owned())),
    }
}

impl Exception {
    fn read(text: &str) -> Option<Self> {
        let text = text.trim();
        if text.is_empty() {
            return None;
        }
        if text == "*" {
            return Some(Self::All);
        }
        if let Some((network, bits)) = text.split_once('/')
            && let (Ok(network), Ok(bits)) = (network.parse::<IpAddr>(), bits.parse::<u8>())
        {
            return (bits <= width(network)).then_some(Self::Network(network, bits));
        }
        if let Ok(address) = bare(text).parse::<IpAddr>() {
            return Some(Self::Network(address, width(address)));
        }
        let (name, port) = split_port(text);
        let port = port.and_then(|port| port.parse().ok());
        let name = name.trim_start_matches("*.").trim_matches('.');
        Some(Self::Name(bare(name).to_ascii_lowercase(), port))
    }

    fn covers(&self, host: &str, port: Option<u16>) -> bool {
        match self {
            Self::All => true,
            Self::Network(network, bits) => host
                .parse::<IpAddr>()
                .is_ok_and(|address| shares(*network, address, *bits)),
            Self::Name(name, on) => {
                let below = host
                    .strip_suffix(name.as_str())
                    .is_some_and(|before| before.is_empty() || before.ends_with('.'));
                below && !name.is_empty() && (on.is_none() || *on == port)
            }
        }
    }
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// Whether both have the same first bits.
fn shares(network: IpAddr, address: IpAddr, bits: u8) -> bool {
    let bits = u32::from(bits);
    match (network, address.to_canonical()) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            let differ = a.to_bits() ^ b.to_bits();
            differ.checked_shr(32 - bits).unwrap_or(0) == 0
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            let differ = a.to_bits() ^ b.to_bits();
            differ.checked_shr(128 - bits).unwrap_or(0) == 0
        }
        _ => false,
    }
}

/// `host:port`, `[v6]:port`, `host`: the host as written, and the port where there is one.
fn split_port(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once(':') {
        Some((host, port)) if host.ends_with(']') || !host.contains(':') => (host, Some(port)),
        _ => (text, None),
    }
}

fn bare(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

/// `%XX` back to bytes.
fn decoded(text: &str) -> Result<Vec<u8>, ProxyError> {
    let wrong = || ProxyError::Malformed("a % is not followed by two hexadecimal digits");
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || {
            let digit = rest.next().and_then(|b| char::from(b).to_digit(16));
            digit.and_then(|d| u8::try_from(d).ok()).ok_or_else(wrong)
        };
        bytes.push(digit()? << 4 | digit()?);
    }
    Ok(bytes)
}

fn in_words(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_control())
        .take(WORDS_MAX)
        .collect()
}

#[cfg(test)]
mod tests;
