//! Manifests, signatures, versions: there is one way to write a manifest, and nobody signs it without a key.
#![no_main]

use std::sync::LazyLock;

use fairlead_identity::package::{Manifest, SigningKey, Timestamp, TrustedKeys, Version};
use libfuzzer_sys::fuzz_target;

static TRUSTED: LazyLock<TrustedKeys> =
    LazyLock::new(|| TrustedKeys::new(vec![SigningKey::generate().expect("a key").public()]));

fuzz_target!(|input: (&[u8], &[u8])| {
    let (manifest, signatures) = input;
    assert!(TRUSTED.verify(manifest, signatures).is_err());
    if let Ok(parsed) = Manifest::parse(manifest) {
        assert_eq!(parsed.to_string().as_bytes(), manifest);
        let _ = parsed.check_not_expired(Timestamp::from_seconds(1_800_000_000).expect("a time"));
        let _ = parsed.check_from(parsed.min_from());
        parsed.check_version(parsed.version()).expect("it is its own version");
    }
    if let Ok(text) = std::str::from_utf8(manifest)
        && let Ok(version) = text.parse::<Version>()
    {
        assert_eq!(version.to_string(), text);
    }
});
