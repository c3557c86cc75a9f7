//! Random bytes from the operating system's cryptographic source.

/// `N` random bytes.
///
/// # Panics
/// When the operating system has no randomness to give: nothing secure can be done then.
#[must_use]
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut out = [0; N];
    #[expect(
        clippy::expect_used,
        reason = "without randomness no key, id or nonce is safe"
    )]
    aws_lc_rs::rand::fill(&mut out).expect("the operating system gives random bytes");
    out
}

/// `length` random characters of lower-case base32, for parts of tokens that people copy.
#[must_use]
pub fn text(length: usize) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
    let mut text = String::with_capacity(length);
    while text.len() < length {
        for byte in bytes::<32>() {
            if text.len() < length {
                text.push(char::from(ALPHABET[usize::from(byte & 31)]));
            }
        }
    }
    text
}
