//! Certificates, their SANs, and requests: nothing but what the installation has certified is believed.
#![no_main]

use std::sync::LazyLock;

use fairlead_fuzz::{Installation, now_s, pieces};
use fairlead_identity::authority::{PrivateKey, RequestedKey};
use fairlead_identity::chain::{Root, Usage, public_key};
use fairlead_protocol::HostId;
use libfuzzer_sys::fuzz_target;
use rustls::pki_types::{CertificateDer, UnixTime};

struct Ours {
    root: Root,
    chain: Vec<CertificateDer<'static>>,
    request: Vec<u8>,
}

static OURS: LazyLock<Ours> = LazyLock::new(|| {
    let installation = Installation::new();
    let key = PrivateKey::generate().expect("a key");
    let host = HostId::from_bytes([7; 16]);
    Ours {
        root: installation.trusted(),
        chain: installation.agent(host, &key).chain,
        request: key.request().expect("a request"),
    }
});

/// `bytes` with changes: each piece is an offset and what is put there.
fn changed(bytes: &[u8], changes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for change in pieces(changes) {
        if let Some((at, put)) = change.split_first_chunk::<2>() {
            let at = usize::from(u16::from_be_bytes(*at)) % bytes.len();
            let end = (at + put.len()).min(bytes.len());
            bytes[at..end].copy_from_slice(&put[..end - at]);
        }
    }
    bytes
}

fuzz_target!(|input: &[u8]| {
    let Some((&way, rest)) = input.split_first() else { return };
    let ours = &*OURS;
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now_s().unsigned_abs()));
    match way % 4 {
        // Any bytes at all.
        0 => {
            let given = CertificateDer::from(rest.to_vec());
            let _ = public_key(&given);
            let _ = Root::from_der(given);
            let _ = RequestedKey::from_request(rest);
        }
        // Our own leaf and intermediate, changed: believed only if nothing was.
        1 | 2 => {
            let mut chain = ours.chain.clone();
            let which = usize::from(way % 4 - 1);
            let other = changed(&chain[which], rest);
            let same = chain[which].as_ref() == other;
            chain[which] = CertificateDer::from(other);
            let _ = public_key(&chain[which]);
            let _ = Root::from_der(chain[which].clone());
            let believed = ours.root.identify(&chain, Usage::Client, now);
            assert_eq!(believed.is_ok(), same, "{believed:?}");
        }
        _ => {
            let _ = RequestedKey::from_request(&changed(&ours.request, rest));
        }
    }
});
