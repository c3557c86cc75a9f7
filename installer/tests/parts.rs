//! What the programs are built from, held against deny.toml: licences, sources, what is banned. The same that
//! `cargo deny` looks at, for machines where it is not installed; and the list of parts of the real build.

#![cfg(test)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use fairlead_packer::sbom;
use serde_json::Value;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const TARGETS: [&str; 2] = ["x86_64-unknown-linux-musl", "aarch64-unknown-linux-musl"];

static METADATA: OnceLock<Vec<Vec<u8>>> = OnceLock::new();

/// What cargo says of each target that is shipped.
fn metadata() -> &'static [Vec<u8>] {
    METADATA.get_or_init(|| {
        TARGETS
            .map(|target| {
                let output = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()))
                    .args(["metadata", "--locked", "--offline", "--format-version", "1"])
                    .args(["--filter-platform", target])
                    .current_dir(ROOT)
                    .output()
                    .unwrap();
                let error = String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success(), "cargo metadata: {error}");
                output.stdout
            })
            .to_vec()
    })
}

/// All crates of the graphs, by name and version.
fn crates() -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    for bytes in metadata() {
        let metadata: Value = serde_json::from_slice(bytes).unwrap();
        let nodes = metadata["resolve"]["nodes"].as_array().unwrap();
        let ids: BTreeSet<_> = nodes
            .iter()
            .map(|node| node["id"].as_str().unwrap())
            .collect();
        for one in metadata["packages"].as_array().unwrap() {
            if ids.contains(one["id"].as_str().unwrap()) {
                let name = format!("{} {}", text(&one["name"]), text(&one["version"]));
                found.insert(name, one.clone());
            }
        }
    }
    assert!(found.len() > 100, "{} crates", found.len());
    found
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn rules() -> toml::Table {
    let rules = std::fs::read_to_string(Path::new(ROOT).join("deny.toml")).unwrap();
    rules.parse().unwrap()
}

fn strings(value: &toml::Value) -> Vec<&str> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_str().unwrap())
        .collect()
}

/// Whether a licence expression can be fulfilled with these licences alone.
fn allows(expression: &str, allowed: &[&str]) -> bool {
    let spaced = expression
        .replace('(', " ( ")
        .replace(')', " ) ")
        .replace('/', " OR ");
    let mut words = spaced.split_whitespace().peekable();
    let good = either(&mut words, allowed);
    assert_eq!(words.next(), None, "not read to its end: {expression}");
    good
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn either(words: &mut Words<'_>, allowed: &[&str]) -> bool {
    let mut good = both(words, allowed);
    while words.next_if_eq(&"OR").is_some() {
        good |= both(words, allowed);
    }
    good
}

fn both(words: &mut Words<'_>, allowed: &[&str]) -> bool {
    let mut good = one(words, allowed);
    while words.next_if_eq(&"AND").is_some() {
        good &= one(words, allowed);
    }
    good
}

fn one(words: &mut Words<'_>, allowed: &[&str]) -> bool {
    let word = words.next().expect("a licence");
    if word == "(" {
        let good = either(words, allowed);
        assert_eq!(words.next(), Some(")"));
        return good;
    }
    // An exception is another licence than the one without it.
    if words.next_if_eq(&"WITH").is_some() {
        let exception = words.next().expect("an exception");
        return allowed.contains(&format!("{word} WITH {exception}").as_str());
    }
    allowed.contains(&word)
}

#[test]
fn licence_expressions_are_read_as_spdx_says() {
    let allowed = ["MIT", "ISC", "Apache-2.0"];
    for good in [
        "MIT",
        "MIT/GPL-3.0",
        "GPL-3.0 OR MIT AND ISC",
        "MIT AND (ISC OR GPL-3.0)",
        "Apache-2.0 WITH LLVM-exception OR MIT",
    ] {
        assert!(allows(good, &allowed), "{good}");
    }
    for bad in [
        "GPL-3.0",
        "MIT AND GPL-3.0",
        "(MIT OR ISC) AND GPL-3.0",
        "Apache-2.0 WITH LLVM-exception",
    ] {
        assert!(!allows(bad, &allowed), "{bad}");
    }
}

#[test]
fn every_crate_has_a_licence_and_a_source_that_are_allowed() {
    let rules = rules();
    let licences = strings(&rules["licenses"]["allow"]);
    let sources = strings(&rules["sources"]["allow-registry"]);
    for (name, one) in crates() {
        let source = text(&one["source"]);
        if source.is_empty() {
            continue;
        }
        let registry = source.strip_prefix("registry+").unwrap_or(source);
        assert!(sources.contains(&registry), "{name} comes from {source}");
        let licence = text(&one["license"]);
        assert!(allows(licence, &licences), "{name} is under {licence:?}");
    }
}

/// The list of parts of the real build.
fn parts() -> Value {
    let metadata = metadata().iter().map(Vec::as_slice);
    let released = "2026-11-21T00:00:00Z".parse().unwrap();
    let text = sbom::document(metadata, &"1.2.3".parse().unwrap(), released).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn nothing_that_is_banned_is_shipped() {
    let rules = rules();
    let parts = parts();
    let parts = parts["components"].as_array().unwrap();
    for banned in rules["bans"]["deny"].as_array().unwrap() {
        let name = banned["crate"].as_str().unwrap();
        let found = parts.iter().any(|one| text(&one["name"]) == name);
        assert!(!found, "{name}: {}", banned["reason"]);
    }
}

#[test]
fn the_list_of_parts_is_that_of_the_lock_file() {
    let document = parts();
    let lock = std::fs::read_to_string(Path::new(ROOT).join("Cargo.lock")).unwrap();
    let lock: toml::Table = lock.parse().unwrap();
    let locked: BTreeSet<_> = lock["package"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| {
            format!(
                "pkg:cargo/{}@{}",
                one["name"].as_str().unwrap(),
                one["version"].as_str().unwrap()
            )
        })
        .collect();
    let components = document["components"].as_array().unwrap();
    let (mut ours, mut theirs) = (0, 0);
    for component in components {
        assert_ne!(
            text(&component["licenses"][0]["expression"]),
            "",
            "{component}"
        );
        match component["purl"].as_str() {
            Some(purl) => {
                assert!(locked.contains(purl), "{purl} is not in Cargo.lock");
                theirs += 1;
            }
            None => {
                assert_eq!(component["version"], "1.2.3", "{component}");
                ours += 1;
            }
        }
    }
    // What every program needs is there, and what only tests need is not.
    let names: BTreeSet<_> = components.iter().map(|c| text(&c["name"])).collect();
    for name in [
        "tokio",
        "rustls",
        "aws-lc-sys",
        "libsqlite3-sys",
        "fairlead-protocol",
    ] {
        assert!(names.contains(name), "{name}");
    }
    for name in ["proptest", "fairlead-tests"] {
        assert!(!names.contains(name), "{name}");
    }
    assert!(ours >= 10 && theirs > 100, "{ours} and {theirs}");
}
