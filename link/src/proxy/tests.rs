//! The environment's words, and the exchange with proxies good and bad.

use tokio::net::TcpListener;

use super::*;

#[test]
fn a_proxy_is_a_host_a_port_and_perhaps_a_user() {
    let proxy = |url: &str| {
        let proxy = Proxy::new(url, "").unwrap();
        (
            proxy.address().to_owned(),
            proxy.0.authorization.clone().unwrap_or_default(),
        )
    };
    let plain = |address: &str| (address.to_owned(), String::new());
    assert_eq!(proxy("http://proxy:3128"), plain("proxy:3128"));
    assert_eq!(proxy(" HTTP://proxy:3128/ "), plain("proxy:3128"));
    assert_eq!(proxy("proxy:3128"), plain("proxy:3128"));
    assert_eq!(proxy("http://proxy"), plain("proxy:80"));
    assert_eq!(proxy("http://[::1]:3128"), plain("[::1]:3128"));
    let (address, authorization) = proxy("http://me:p%40ss%3aword@proxy:1");
    assert_eq!(address, "proxy:1");
    assert_eq!(
        authorization,
        format!("Basic {}", STANDARD.encode("me:p@ss:word"))
    );
    assert_eq!(
        proxy("http://a@b@proxy:1").1,
        format!("Basic {}", STANDARD.encode("a@b:"))
    );
}

#[test]
fn a_proxy_that_cannot_be_used_is_refused_in_words() {
    let error = |url: &str| Proxy::new(url, "").unwrap_err().to_string();
    assert!(error("https://proxy:3128").starts_with("https:// proxies are not supported"));
    assert!(error("socks5://proxy:1080").starts_with("socks5:// proxies"));
    for url in [
        "http://",
        "",
        "http://:80",
        "http://proxy:port",
        "http://pro xy:1",
        "http://a%4:b@proxy:1",
        "http://a:b%zz@proxy:1",
    ] {
        assert!(error(url).contains("is not understood"), "{url}");
    }
    let secret = Proxy::new("http://me:hush@proxy:1", "").unwrap();
    assert!(!format!("{secret:?}").contains("hush"));
}

#[test]
fn no_proxy_excepts_names_addresses_networks_and_all() {
    let serves = |except: &str, address: &str| {
        Proxy::new("http://proxy:1", except)
            .unwrap()
            .serves(address)
    };
    assert!(serves("", "a.example:443"));
    assert!(!serves("*", "a.example:443"));
    assert!(!serves("b.example, example", "a.example:443"));
    assert!(!serves(".example", "a.EXAMPLE.:443"));
    assert!(!serves("*.example", "a.example:443"));
    assert!(serves("xample", "a.example:443"));
    assert!(serves("a.example.org", "a.example:443"));
    assert!(!serves("a.example:443", "a.example:443"));
    assert!(serves("a.example:444", "a.example:443"));
    assert!(!serves("10.1.2.3", "10.1.2.3:443"));
    assert!(serves("10.1.2.3", "10.1.2.30:443"));
    assert!(!serves("10.0.0.0/8", "10.1.2.3:443"));
    assert!(serves("10.0.0.0/8", "11.1.2.3:443"));
    assert!(!serves("0.0.0.0/0", "11.1.2.3:443"));
    assert!(serves("10.0.0.0/33", "10.0.0.0:443"));
    assert!(!serves("fd00::/8", "[fd12::1]:443"));
    assert!(serves("fd00::/8", "[fe80::1]:443"));
    assert!(!serves("[::1]", "[::1]:443"));
    assert!(!serves("10.0.0.0/8", "[::ffff:10.1.1.1]:443"));
    assert!(serves("10.0.0.0/8", "ten.example:443"));
}

/// One exchange with a proxy that answers with those bytes (nothing: it closes); what it was asked, and
/// how that ended.
async fn exchange(url_user: &str, answer: &[u8]) -> (String, Result<(), Refusal>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let answer = answer.to_vec();
    let server = tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        let mut asked = Vec::new();
        while !asked.ends_with(b"\r\n\r\n") {
            assert_ne!(tcp.read_buf(&mut asked).await.unwrap(), 0);
        }
        // In two pieces, as networks do.
        let (first, second) = answer.split_at(answer.len() / 2);
        tcp.write_all(first).await.unwrap();
        tcp.flush().await.unwrap();
        tokio::task::yield_now().await;
        let _ = tcp.write_all(second).await;
        let _ = tcp.shutdown().await;
        String::from_utf8(asked).unwrap()
    });
    let proxy = Proxy::new(&format!("http://{url_user}{at}"), "").unwrap();
    let mut tcp = TcpStream::connect(at).await.unwrap();
    let outcome = proxy.connect(&mut tcp, "server.example:7501").await;
    (server.await.unwrap(), outcome)
}

#[tokio::test]
async fn a_connection_is_asked_for_and_made() {
    let (asked, outcome) = exchange("", b"HTTP/1.1 200 Connection established\r\n\r\n").await;
    assert_eq!(outcome, Ok(()));
    assert_eq!(
        asked,
        "CONNECT server.example:7501 HTTP/1.1\r\nHost: server.example:7501\r\n\r\n"
    );
    let (asked, outcome) = exchange("me:secret@", b"HTTP/1.0 200\r\nVia: x\r\n\r\n").await;
    assert_eq!(outcome, Ok(()));
    let expected = STANDARD.encode("me:secret");
    assert!(asked.contains(&format!("\r\nProxy-Authorization: Basic {expected}\r\n")));
}

#[tokio::test]
async fn what_is_no_connection_is_told_apart() {
    let refused = async |answer: &[u8]| exchange("", answer).await.1.unwrap_err();
    assert_eq!(
        refused(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n").await,
        Refusal::Auth
    );
    assert_eq!(
        refused(b"HTTP/1.1 403 Forb\x07idden\r\nX: y\r\n\r\nno").await,
        Refusal::Status("403 Forbidden".to_owned())
    );
    for answer in [
        &b"SSH-2.0-OpenSSH_9\r\n\r\n"[..],
        b"HTTP/1.1 all right\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\n",
        b"",
    ] {
        assert!(matches!(refused(answer).await, Refusal::Broken(_)));
    }
    let endless = [b"HTTP/1.1 200 OK\r\n".as_slice(), &[b'x'; 20_000]].concat();
    assert_eq!(
        refused(&endless).await,
        Refusal::Broken("its answer does not end".to_owned())
    );
}
