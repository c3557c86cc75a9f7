//! Patterns for names of images and containers.

/// Whether `text` is what `pattern` says; `*` stands for anything, also for nothing and for
/// slashes, `?` for one character.
pub(super) fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t) = (0, 0);
    // Where the last `*` was, and how far the text had come then.
    let mut back: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                back = Some((p, t));
                p += 1;
            }
            Some(c) if *c == '?' || *c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match back {
                Some((star, from)) => {
                    back = Some((star, from + 1));
                    p = star + 1;
                    t = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// Whether the engine could take it for (the beginning of) an id.
pub(super) fn could_be_id(text: &str) -> bool {
    let bare = text.strip_prefix('/').unwrap_or(text);
    let bare = bare.strip_prefix("sha256:").unwrap_or(bare);
    !bare.is_empty() && bare.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Whether one of the patterns allows the image. A pattern without a tag allows every tag and
/// digest of its repository. What could be an image's id is allowed only by that very text: an id
/// says nothing about where the image comes from.
pub(super) fn image_allowed(image: &str, patterns: &[String]) -> bool {
    if could_be_id(image) {
        return patterns.iter().any(|pattern| pattern == image);
    }
    let forms = image_forms(image);
    patterns
        .iter()
        .any(|pattern| forms.iter().any(|form| matches(pattern, form)))
}

/// The ways in which a reference may be written: with and without registry, with and without tag.
fn image_forms(image: &str) -> Vec<String> {
    let (named, digest) = match image.split_once('@') {
        Some((named, digest)) => (named, Some(digest)),
        None => (image, None),
    };
    let (repository, tag) = match named.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag)),
        _ => (named, None),
    };
    let first = repository.split('/').next().unwrap_or_default();
    let has_registry =
        repository.contains('/') && (first.contains(['.', ':']) || first == "localhost");
    let full = match (has_registry, repository.contains('/')) {
        (true, _) => repository.to_owned(),
        (false, true) => format!("docker.io/{repository}"),
        (false, false) => format!("docker.io/library/{repository}"),
    };
    let full = match full.strip_prefix("index.docker.io/") {
        Some(rest) => format!("docker.io/{rest}"),
        None => full,
    };
    let mut repositories = vec![full.clone()];
    if let Some(rest) = full.strip_prefix("docker.io/") {
        repositories.push(rest.to_owned());
        repositories.extend(rest.strip_prefix("library/").map(str::to_owned));
    }
    let mut forms = Vec::new();
    for repository in repositories {
        forms.push(match (tag, digest) {
            (Some(tag), None) => format!("{repository}:{tag}"),
            (None, None) => format!("{repository}:latest"),
            // The digest decides; a tag beside it is decoration.
            (_, Some(digest)) => format!("{repository}@{digest}"),
        });
        forms.push(repository);
    }
    forms
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn images() {
        let allowed = |image: &str, pattern: &str| image_allowed(image, &[pattern.to_owned()]);
        for (image, pattern) in [
            ("nginx", "nginx"),
            ("nginx:1.27", "nginx"),
            ("nginx", "nginx:latest"),
            ("docker.io/library/nginx:1", "nginx:1"),
            ("index.docker.io/library/nginx", "nginx"),
            ("nginx", "docker.io/library/*"),
            ("reg.example.com/a/b:2", "reg.example.com/*"),
            ("reg.example.com:5000/a@sha256:12", "reg.example.com:5000/a"),
            ("a/b", "a/*"),
            ("sha256:12", "sha256:12"),
        ] {
            assert!(allowed(image, pattern), "{image} {pattern}");
        }
        for (image, pattern) in [
            ("reg.example.com.evil.io/a", "reg.example.com/*"),
            ("evil.io/reg.example.com/a", "reg.example.com/*"),
            ("evil/nginx", "nginx"),
            ("nginx:2", "nginx:1"),
            ("nginx:1@sha256:99", "nginx:1"),
            ("deadbeef", "docker.io/*"),
            ("deadbeef", "*"),
            ("sha256:deadbeef", "*"),
            ("localhost/nginx", "docker.io/*"),
        ] {
            assert!(!allowed(image, pattern), "{image} {pattern}");
        }
    }

    proptest! {
        #[test]
        fn a_star_matches_what_it_covers(a in "[a-z]{0,5}", b in "[a-z/]{0,8}", c in "[a-z]{0,5}") {
            let pattern = format!("{a}*{c}");
            let text = format!("{a}{b}{c}");
            prop_assert!(matches(&pattern, &text));
            prop_assert!(matches(&text, &text));
        }

        #[test]
        fn any_pattern_ends(pattern in "[a*?]{0,12}", text in "[ab]{0,20}") {
            matches(&pattern, &text);
        }
    }
}
