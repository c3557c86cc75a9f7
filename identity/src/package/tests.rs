//! Each way in which a version is refused, and that nothing else is.

use proptest::prelude::*;

use super::*;
use crate::digest::sha256;

const TEXT: &str = "\
fairlead-manifest 1
version 0.2.0
released 2026-11-21T00:00:00Z
expires 2027-11-21T00:00:00Z
min-from 0.1.0
file fairlead-agent-linux-aarch64 4000000 00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff
file fairlead-agent-linux-x86_64 5812340 e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
";

fn version(text: &str) -> Version {
    text.parse().unwrap()
}

fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn manifest() -> Manifest {
    Manifest::parse(TEXT.as_bytes()).unwrap()
}

fn refused(text: &str) -> ManifestError {
    Manifest::parse(text.as_bytes()).unwrap_err()
}

/// The manifest with one line replaced (counted from 1).
fn with_line(number: usize, line: &str) -> String {
    let mut lines: Vec<_> = TEXT.lines().collect();
    lines[number - 1] = line;
    lines.join("\n") + "\n"
}

#[test]
fn a_manifest_is_read_and_written_the_same() {
    let manifest = manifest();
    assert_eq!(manifest.to_string(), TEXT);
    assert_eq!(manifest.version(), &version("0.2.0"));
    assert_eq!(manifest.released().seconds(), 1_795_219_200);
    assert_eq!(manifest.files().len(), 2);
}

#[test]
fn a_manifest_has_exactly_one_form() {
    for (number, line) in [
        (1, "fairlead-manifest"),
        (1, "fairlead-manifest  1"),
        (2, "version 0.2"),
        (2, "version 0.2.0 "),
        (2, "Version 0.2.0"),
        (2, "version 0.2.0+build"),
        (2, "version 00.2.0"),
        (3, "released 2026-11-21"),
        (3, "released 2026-11-21t00:00:00Z"),
        (3, "released 2026-02-29T00:00:00Z"),
        (4, "expires 2027-11-21T24:00:00Z"),
        (4, "min-from 0.1.0"),
        (5, "expires 2027-11-21T00:00:00Z"),
        (6, ""),
        (6, "file a 1"),
        (
            6,
            "file a +1 00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff",
        ),
        (
            6,
            "file a 01 00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff",
        ),
        (
            6,
            "file a 1 00FF00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff",
        ),
        (
            6,
            "file a 1 00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff x",
        ),
        (
            6,
            "file a 1 00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff\r",
        ),
        (
            6,
            "link a 1 00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff",
        ),
    ] {
        let error = refused(&with_line(number, line));
        assert!(
            matches!(error, ManifestError::Line { line, .. } if line == number),
            "{line:?}: {error}"
        );
    }
    assert_eq!(
        refused(&with_line(1, "fairlead-manifest 2")),
        ManifestError::Format
    );
    assert_eq!(refused(&TEXT.replace("\n", "\r\n")).to_string(), {
        "line 1 of the manifest should be fairlead-manifest 1"
    });
    assert_eq!(refused(&format!("{TEXT}\n")), {
        ManifestError::Line {
            line: 8,
            expected: "`file NAME SIZE SHA256`",
        }
    });
    assert_eq!(
        Manifest::parse(b"fairlead-manifest \xff1\n").unwrap_err(),
        ManifestError::Damaged
    );
}

#[test]
fn a_manifest_cut_short_at_any_byte_is_refused_or_has_fewer_files() {
    for end in 0..TEXT.len() {
        // Cut at the end of a line of files it still reads well; then the signature refuses it.
        if let Ok(cut) = Manifest::parse(&TEXT.as_bytes()[..end]) {
            assert_eq!(cut.files().len(), 1);
        }
    }
}

#[test]
fn a_manifest_names_no_file_that_leads_elsewhere() {
    for name in [
        "../fairlead-agent",
        "a/b",
        "/etc/passwd",
        "..",
        ".hidden",
        "-rf",
        "a\\b",
        "a$b",
        "a\tb",
        "\u{e4}",
        "",
        "manifest",
        "manifest.sig",
        "install.sh",
    ] {
        let line = format!("file {name} 1 {}", "0".repeat(64));
        let error = refused(&with_line(6, &line));
        assert!(
            matches!(&error, ManifestError::Name(named) if named == name),
            "{name:?}: {error}"
        );
    }
    let long = format!("file {} 1 {}", "a".repeat(129), "0".repeat(64));
    assert!(matches!(
        refused(&with_line(6, &long)),
        ManifestError::Name(_)
    ));
}

#[test]
fn a_manifest_names_each_file_once_in_order_and_of_a_size_that_may_be() {
    let zeros = "0".repeat(64);
    let seventh = "fairlead-agent-linux-x86_64";
    assert_eq!(
        refused(&with_line(6, &format!("file {seventh} 1 {zeros}"))),
        ManifestError::Twice(seventh.to_owned())
    );
    assert_eq!(
        refused(&with_line(6, &format!("file z 1 {zeros}"))),
        ManifestError::Order(seventh.to_owned())
    );
    let size = FILE_BYTES_MAX + 1;
    assert_eq!(
        refused(&with_line(6, &format!("file a {size} {zeros}"))),
        ManifestError::FileSize("a".to_owned())
    );
    let head: String = TEXT.split_inclusive('\n').take(5).collect();
    assert_eq!(refused(&head), ManifestError::FileCount);
    let many: String = (0..=FILES_MAX)
        .map(|n| format!("file f{n:04} 1 {zeros}\n"))
        .collect();
    assert_eq!(refused(&format!("{head}{many}")), ManifestError::FileCount);
    assert_eq!(
        refused(&"x".repeat(MANIFEST_BYTES_MAX + 1)),
        ManifestError::TooLong
    );
}

#[test]
fn a_manifest_does_not_contradict_itself() {
    for (number, line) in [
        (4, "expires 2026-11-21T00:00:00Z"),
        (5, "min-from 0.2.1"),
        (2, "version 0.1.0-rc.1"),
    ] {
        assert!(matches!(
            refused(&with_line(number, line)),
            ManifestError::Contradiction(_)
        ));
    }
}

#[test]
fn an_expired_version_is_refused() {
    let manifest = manifest();
    manifest
        .check_not_expired(time("2027-11-20T23:59:59Z"))
        .unwrap();
    let refusal = manifest
        .check_not_expired(time("2027-11-21T00:00:00Z"))
        .unwrap_err();
    assert!(matches!(refusal, Refusal::Expired { .. }), "{refusal}");
}

#[test]
fn another_version_than_asked_for_is_refused() {
    manifest().check_version(&version("0.2.0")).unwrap();
    for asked in ["0.2.1", "0.2.0-rc.1", "0.1.0"] {
        let refusal = manifest().check_version(&version(asked)).unwrap_err();
        assert!(matches!(refusal, Refusal::OtherVersion { .. }), "{refusal}");
    }
}

#[test]
fn a_host_that_is_too_far_behind_is_refused() {
    manifest().check_from(&version("0.1.0")).unwrap();
    manifest().check_from(&version("0.3.0")).unwrap();
    let refusal = manifest().check_from(&version("0.1.0-rc.1")).unwrap_err();
    assert!(matches!(refusal, Refusal::TooFarBehind { .. }), "{refusal}");
}

#[test]
fn an_older_version_is_refused() {
    manifest().check_not_below(&version("0.2.0")).unwrap();
    let refusal = manifest().check_not_below(&version("0.2.1")).unwrap_err();
    assert!(matches!(refusal, Refusal::Older { .. }), "{refusal}");
}

#[test]
fn a_swapped_or_truncated_file_is_refused() {
    let manifest = manifest();
    let refusal = manifest.file("fairlead-agent-linux-riscv64").unwrap_err();
    assert!(matches!(refusal, Refusal::NoSuchFile { .. }), "{refusal}");
    let empty = sha256(b"");
    let file = manifest.file("fairlead-agent-linux-x86_64").unwrap();
    file.check(5_812_340, &empty).unwrap();
    assert!(matches!(
        file.check(5_812_339, &empty),
        Err(FileRefused::Size { .. })
    ));
    // The other target's program under this one's name.
    let other = manifest.file("fairlead-agent-linux-aarch64").unwrap();
    assert!(matches!(
        other.check(4_000_000, &empty),
        Err(FileRefused::Content { .. })
    ));
}

#[test]
fn versions_have_semvers_order() {
    let ascending = [
        "0.0.0-dev",
        "0.0.9",
        "0.0.10",
        "0.2.0-1",
        "0.2.0-2",
        "0.2.0-10",
        "0.2.0-alpha",
        "0.2.0-alpha.1",
        "0.2.0-rc.9",
        "0.2.0-rc.10",
        "0.2.0",
        "1.0.0",
        "10.0.0",
    ];
    for (index, low) in ascending.iter().enumerate() {
        assert_eq!(version(low).to_string(), *low);
        for high in &ascending[index + 1..] {
            assert!(version(low) < version(high), "{low} < {high}");
        }
    }
    for text in [
        "",
        "1",
        "1.2",
        "1.2.3.4",
        "v1.2.3",
        "1.2.3-",
        "1.2.3-a..b",
        "1.2.3-01",
        "1.2.3-a-b",
        "1.2.3+a",
        "1.-2.3",
        "+1.2.3",
        "1.2.99999999999999999999",
        "1.2.3 ",
        "1.2.3-\u{e4}",
    ] {
        assert!(text.parse::<Version>().is_err(), "{text:?}");
    }
}

#[test]
fn a_key_is_read_as_it_was_written() {
    let key = SigningKey::generate().unwrap();
    let pem = key.to_pem().unwrap();
    let again = SigningKey::from_pem(pem.as_bytes()).unwrap();
    assert_eq!(again.public(), key.public());
    let text = key.public().to_string();
    assert_eq!(text.len(), 16 + 1 + 44);
    assert_eq!(text.parse::<PublicKey>().unwrap(), key.public());
    assert!(!format!("{key:?}").contains("PRIVATE"));
}

#[test]
fn a_key_under_anothers_id_is_refused() {
    let (one, two) = (
        SigningKey::generate().unwrap().public(),
        SigningKey::generate().unwrap().public(),
    );
    let text = format!("{}:{}", one.id(), base64_of(&two));
    assert!(matches!(
        text.parse::<PublicKey>(),
        Err(KeyError::OtherId { .. })
    ));
    for text in ["", "abc", ":", "0011223344556677:AAAA"] {
        assert_eq!(text.parse::<PublicKey>(), Err(KeyError::Public));
    }
    for pem in [
        &b""[..],
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
    ] {
        assert!(matches!(SigningKey::from_pem(pem), Err(KeyError::Private)));
    }
}

/// The base64 part of a key.
fn base64_of(key: &PublicKey) -> String {
    key.to_string().split_once(':').unwrap().1.to_owned()
}

#[test]
fn a_signed_manifest_is_believed() {
    let (old, new) = (
        SigningKey::generate().unwrap(),
        SigningKey::generate().unwrap(),
    );
    let signatures = old.sign(TEXT.as_bytes()) + &new.sign(TEXT.as_bytes());
    for key in [&old, &new] {
        let verified = TrustedKeys::new(vec![key.public()])
            .verify(TEXT.as_bytes(), signatures.as_bytes())
            .unwrap();
        assert_eq!(verified.key, key.public().id());
        assert_eq!(verified.manifest, manifest());
    }
}

#[test]
fn a_manifest_of_an_unknown_key_is_refused() {
    let (ours, theirs) = (
        SigningKey::generate().unwrap(),
        SigningKey::generate().unwrap(),
    );
    let signature = theirs.sign(TEXT.as_bytes());
    let error = TrustedKeys::new(vec![ours.public()])
        .verify(TEXT.as_bytes(), signature.as_bytes())
        .unwrap_err();
    assert_eq!(error, VerifyError::UnknownKey(theirs.public().id()));
    // Their signature under our name.
    let renamed = signature.replace(
        &theirs.public().id().to_string(),
        &ours.public().id().to_string(),
    );
    let error = TrustedKeys::new(vec![ours.public()])
        .verify(TEXT.as_bytes(), renamed.as_bytes())
        .unwrap_err();
    assert_eq!(error, VerifyError::Wrong(ours.public().id()));
    let none = TrustedKeys::new(Vec::new());
    assert!(none.verify(TEXT.as_bytes(), signature.as_bytes()).is_err());
}

#[test]
fn signatures_have_exactly_one_form() {
    let key = SigningKey::generate().unwrap();
    let keys = TrustedKeys::new(vec![key.public()]);
    let good = key.sign(TEXT.as_bytes());
    for bad in [
        String::new(),
        "\n".to_owned(),
        good.trim_end().to_owned(),
        format!("{good}\n"),
        format!("\n{good}"),
        good.replace(' ', "  "),
        good.replace('\n', "\r\n"),
        good.replace('\n', " x\n"),
        good.to_uppercase(),
        format!("+{}", &good[1..]),
        good.replace("==", ""),
        good.repeat(SIGNATURES_MAX + 1),
        good.repeat(SIGNATURES_BYTES_MAX),
    ] {
        let error = keys.verify(TEXT.as_bytes(), bad.as_bytes()).unwrap_err();
        assert_eq!(error, VerifyError::Signatures, "{bad:?}");
    }
}

#[test]
fn what_is_signed_and_no_manifest_is_refused() {
    let key = SigningKey::generate().unwrap();
    let keys = TrustedKeys::new(vec![key.public()]);
    for bytes in [&b"hello\n"[..], &vec![b'x'; MANIFEST_BYTES_MAX + 1]] {
        let error = keys.verify(bytes, key.sign(bytes).as_bytes()).unwrap_err();
        assert!(matches!(error, VerifyError::Manifest(_)), "{error}");
    }
}

fn versions() -> impl Strategy<Value = Version> {
    "(0|[1-9][0-9]{0,3})\\.(0|[1-9][0-9]{0,3})\\.(0|[1-9][0-9]{0,3})(-[a-z]{1,4}(\\.(0|[1-9][0-9]{0,2}))?)?"
        .prop_map(|text| text.parse().unwrap())
}

fn manifests() -> impl Strategy<Value = Manifest> {
    let file = (0..=FILE_BYTES_MAX, any::<[u8; 32]>());
    (
        (versions(), versions()),
        (0..2_000_000_000_i64, 1..2_000_000_000_i64),
        proptest::collection::btree_map("[a-z0-9][A-Za-z0-9._+-]{0,20}", file, 1..8),
    )
        .prop_filter_map("reserved names", |((a, b), (released, life), files)| {
            let files = files
                .into_iter()
                .map(|(name, (size, sha256))| FileEntry { name, size, sha256 })
                .collect();
            Manifest::new(
                a.clone().max(b.clone()),
                Timestamp::from_seconds(released)?,
                Timestamp::from_seconds(released + life)?,
                a.min(b),
                files,
            )
            .ok()
        })
}

proptest! {
    #[test]
    fn what_is_written_is_read(manifest in manifests()) {
        prop_assert_eq!(Manifest::parse(manifest.to_string().as_bytes()), Ok(manifest));
    }

    #[test]
    fn what_is_read_is_written_the_same(at in any::<proptest::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = TEXT.as_bytes().to_vec();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(manifest) = Manifest::parse(&bytes) {
            prop_assert_eq!(manifest.to_string().into_bytes(), bytes);
        }
    }

    #[test]
    fn any_flipped_bit_is_refused(
        manifest in manifests(),
        at in any::<proptest::sample::Index>(),
        bit in 0..8_u8,
    ) {
        let key = SigningKey::generate().unwrap();
        let keys = TrustedKeys::new(vec![key.public()]);
        let manifest = manifest.to_string().into_bytes();
        let signatures = key.sign(&manifest).into_bytes();
        prop_assert!(keys.verify(&manifest, &signatures).is_ok());
        let index = at.index(manifest.len() + signatures.len());
        let (mut manifest, mut signatures) = (manifest, signatures);
        match index.checked_sub(manifest.len()) {
            None => manifest[index] ^= 1 << bit,
            Some(index) => signatures[index] ^= 1 << bit,
        }
        prop_assert!(keys.verify(&manifest, &signatures).is_err());
    }

    #[test]
    fn anything_is_answered(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Manifest::parse(&bytes);
        let keys = TrustedKeys::new(vec![SigningKey::generate().unwrap().public()]);
        prop_assert!(keys.verify(TEXT.as_bytes(), &bytes).is_err());
    }

    #[test]
    fn every_time_is_read_as_it_was_written(seconds in 0..253_402_300_800_i64) {
        let time = Timestamp::from_seconds(seconds).unwrap();
        prop_assert_eq!(time.to_string().parse(), Ok(time));
    }
}
