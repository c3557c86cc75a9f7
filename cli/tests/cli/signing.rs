//! Keys that sign versions: made, read again, never overwritten, never read when others can; no server is
//! asked.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::double::{Ran, bare, finish};

fn agent(verb: &[&str], file: &Path) -> Ran {
    let mut command = bare(&["agent"]);
    command.args(verb).arg(file);
    finish(command, "")
}

#[test]
fn a_key_is_made_once_and_its_public_part_is_printed_again() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("release.pem");
    let made = agent(&["keygen", "--out"], &file);
    assert_eq!(made.code, 0, "{made:?}");
    let public = made.out.trim_end();
    let (id, key) = public.split_once(':').unwrap();
    assert_eq!((id.len(), key.len()), (16, 44), "{public}");
    assert_eq!(made.out, format!("{public}\n"), "nothing but the key");
    let mode = fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let pem = fs::read(&file).unwrap();
    assert!(pem.starts_with(b"-----BEGIN PRIVATE KEY-----\n"));

    assert_eq!(agent(&["public-key"], &file).out, made.out);
    let json = agent(&["-o", "json", "public-key"], &file).out;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["id"], id);
    assert_eq!(json["public_key"], public);

    let again = agent(&["keygen", "--out"], &file);
    assert_eq!(again.code, 5, "{again:?}");
    assert!(again.err.contains("never overwritten"), "{again:?}");
    assert_eq!(fs::read(&file).unwrap(), pem);
    // A link that leads nowhere is something that is there, too.
    let link = dir.path().join("link.pem");
    std::os::unix::fs::symlink(dir.path().join("elsewhere.pem"), &link).unwrap();
    assert_eq!(agent(&["keygen", "--out"], &link).code, 5);
    assert!(!dir.path().join("elsewhere.pem").exists());
}

#[test]
fn a_key_that_cannot_be_used_is_said_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("release.pem");
    for (verb, word) in [
        (&["public-key"][..], "cannot read"),
        (&["keygen", "--out"], "cannot write"),
    ] {
        let file = dir.path().join("no/such/folder/release.pem");
        let ran = agent(verb, &file);
        assert_eq!(ran.code, 1, "{ran:?}");
        assert!(ran.err.contains(word), "{ran:?}");
        assert!(ran.err.contains("is the path right"), "{ran:?}");
    }
    agent(&["keygen", "--out"], &file);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    let ran = agent(&["public-key"], &file);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.err.contains("chmod 600"), "{ran:?}");
    fs::write(&file, "no key").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let ran = agent(&["public-key"], &file);
    assert!(ran.err.contains("fairlead agent keygen"), "{ran:?}");
}

#[test]
fn the_help_says_where_the_key_belongs() {
    let ran = finish(bare(&["agent", "keygen", "--help"]), "");
    for words in ["where versions are made", "not on a controller"] {
        assert!(ran.out.contains(words), "{ran:?}");
    }
}
