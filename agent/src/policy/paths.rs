//! Whether a bind reaches a sensitive path, however it is written.

use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

/// The sensitive path that the bind's source is, lies below or holds; judged for the source as
/// written and as the file system resolves it.
pub(super) fn reached<'a>(source: &str, sensitive: &'a [String]) -> Option<&'a str> {
    let sources = forms(source);
    sensitive.iter().map(String::as_str).find(|path| {
        forms(path)
            .iter()
            .any(|path| sources.iter().any(|source| touches(source, path)))
    })
}

/// Whether binding `source` gives (part of) `sensitive`. The root itself is sensitive only as a
/// whole: everything lies below it.
fn touches(source: &Path, sensitive: &Path) -> bool {
    let below = source.starts_with(sensitive) && sensitive != Path::new("/");
    below || sensitive.starts_with(source)
}

/// A path as the engine cleans it (by its words), and as the kernel would follow it.
fn forms(path: &str) -> Vec<PathBuf> {
    let lexical = lexical(Path::new(path));
    let mut forms = vec![resolved(&lexical), resolved(Path::new(path))];
    forms.push(lexical);
    forms.dedup();
    forms
}

/// Without `.`, `..`, double and trailing slashes.
fn lexical(path: &Path) -> PathBuf {
    let mut out = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => {
                out.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    out
}

/// With links followed as far as the path exists; the rest by its words.
fn resolved(path: &Path) -> PathBuf {
    let mut there = path.to_owned();
    let mut rest: Vec<OsString> = Vec::new();
    loop {
        if let Ok(mut real) = there.canonicalize() {
            real.extend(rest.iter().rev());
            return lexical(&real);
        }
        let last = there
            .components()
            .next_back()
            .map(|part| part.as_os_str().to_owned());
        match last {
            Some(name) if there.pop() => rest.push(name),
            _ => return lexical(path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().to_str().unwrap();
        std::fs::create_dir_all(format!("{base}/secret/inner")).unwrap();
        std::fs::create_dir_all(format!("{base}/free/deep")).unwrap();
        std::os::unix::fs::symlink("../secret", format!("{base}/free/link")).unwrap();
        std::os::unix::fs::symlink("../../secret/inner", format!("{base}/free/deep/in")).unwrap();
        let sensitive = [format!("{base}/secret")];
        let seen = |source: &str| reached(&format!("{base}/{source}"), &sensitive).is_some();
        for source in [
            "secret",
            "secret/",
            "/secret",
            "//secret//",
            "./secret",
            "free/../secret",
            "secret/inner",
            "secret/not/there",
            "free/link",
            "free/link/",
            "free/link/inner",
            "free/link/not/there",
            "free/deep/in",
            "free/deep/in/../x",
            "",
            ".",
            "free/x/../link",
        ] {
            assert!(seen(source), "{source:?}");
        }
        for source in [
            "free",
            "free/deep",
            "secrets",
            "secret2/inner",
            "other/secret",
        ] {
            assert!(!seen(source), "{source:?}");
        }
    }

    #[test]
    fn the_root_is_sensitive_as_a_whole() {
        let sensitive = ["/".to_owned()];
        for source in ["/", "//", "/.", "/tmp/..", "/../..", ""] {
            assert!(reached(source, &sensitive).is_some(), "{source:?}");
        }
        assert!(reached("/srv/data", &sensitive).is_none());
    }

    #[test]
    fn what_holds_it_gives_it() {
        let sensitive = ["/var/run/docker.sock".to_owned()];
        for source in ["/var/run/docker.sock", "/var", "/var/run", "/var/run/", "/"] {
            assert!(reached(source, &sensitive).is_some(), "{source:?}");
        }
        assert!(reached("/var/lib/data", &sensitive).is_none());
    }
}
