//! Which of two versions the script takes for the older: it must be the one that the manifest's own rule
//! takes for it, or a downgrade passes as an upgrade.

use std::process::Command;

use fairlead_identity::package::Version;

use super::kit::shells;

/// In order.
const VERSIONS: [&str; 15] = [
    "0.9.0",
    "0.9.10",
    "0.10.0-1",
    "0.10.0-alpha",
    "0.10.0-rc",
    "0.10.0-rc.8",
    "0.10.0-rc.9",
    "0.10.0-rc.10",
    "0.10.0-rc.10.1",
    "0.10.0-rc.x",
    "0.10.0-rc2",
    "0.10.0",
    "1.0.0-rc.1",
    "1.0.0",
    "12.0.0",
];

#[test]
fn the_script_orders_versions_as_the_manifest_does() {
    let script = std::fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../installer/install.sh"
    ))
    .unwrap();
    let begin = script.find("\nolder() {").expect("the function");
    let end = begin
        + script[begin..]
            .find("\nleading_number() {")
            .expect("its helper");
    let end = end + script[end..].find("\n}\n").unwrap() + 3;
    let asks = format!(
        "set -eu\n{}\nwhile read -r a b; do if older \"$a\" \"$b\"; then echo yes; else echo no; fi; done",
        &script[begin..end]
    );
    let mut pairs = String::new();
    let mut expected = Vec::new();
    for a in VERSIONS {
        for b in VERSIONS {
            let parsed: (Version, Version) = (a.parse().unwrap(), b.parse().unwrap());
            pairs.push_str(&format!("{a} {b}\n"));
            expected.push(if parsed.0 < parsed.1 { "yes" } else { "no" });
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pairs");
    std::fs::write(&file, &pairs).unwrap();
    for shell in shells() {
        let output = Command::new(shell[0])
            .args(&shell[1..])
            .args(["-c", &asks])
            .stdin(std::fs::File::open(&file).unwrap())
            .output()
            .unwrap();
        assert!(output.status.success(), "{shell:?}: {output:?}");
        let said = String::from_utf8(output.stdout).unwrap();
        for ((pair, expected), said) in pairs.lines().zip(&expected).zip(said.lines()) {
            assert_eq!(said, *expected, "{shell:?}: older {pair}");
        }
        assert_eq!(said.lines().count(), expected.len(), "{shell:?}");
    }
}
