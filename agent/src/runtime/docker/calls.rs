//! The calls that are made at an engine, and no others: whatever a command or a mistake of ours would make
//! of a path, what is not listed here is not sent.

use hyper::Method;

/// Method and path. `*` stands for one part of it, `**` for one or more (an image's name has several).
const LISTED: [(&str, &str); 23] = [
    ("GET", "/version"),
    ("GET", "/info"),
    ("GET", "/events"),
    ("GET", "/containers/json"),
    ("POST", "/containers/create"),
    ("GET", "/containers/*/json"),
    ("POST", "/containers/*/start"),
    ("POST", "/containers/*/stop"),
    ("POST", "/containers/*/restart"),
    ("POST", "/containers/*/kill"),
    ("POST", "/containers/*/wait"),
    ("DELETE", "/containers/*"),
    ("GET", "/containers/*/logs"),
    ("HEAD", "/containers/*/archive"),
    ("GET", "/containers/*/archive"),
    ("PUT", "/containers/*/archive"),
    ("POST", "/containers/*/exec"),
    ("POST", "/exec/*/start"),
    ("POST", "/exec/*/resize"),
    ("GET", "/exec/*/json"),
    ("POST", "/images/create"),
    ("POST", "/images/prune"),
    ("GET", "/images/**/json"),
];

/// Whether a call (its path without version and query) is one of those.
pub(super) fn is_listed(method: &Method, path: &str) -> bool {
    let parts: Vec<&str> = path.strip_prefix('/').unwrap_or("").split('/').collect();
    // What an engine might read as another path than we do.
    let plain = parts.iter().all(|part| {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-:@".contains(&byte);
        !matches!(*part, "" | "." | "..") && part.bytes().all(known)
    });
    let listed = |(verb, pattern): &(&str, &str)| {
        *verb == method.as_str() && fits(&parts, pattern.trim_start_matches('/'))
    };
    plain && LISTED.iter().any(listed)
}

fn fits(parts: &[&str], pattern: &str) -> bool {
    let pattern: Vec<&str> = pattern.split('/').collect();
    let one = |(part, wanted): (&&str, &&str)| *wanted == "*" || part == wanted;
    match pattern.iter().position(|wanted| *wanted == "**") {
        None => parts.len() == pattern.len() && parts.iter().zip(&pattern).all(one),
        Some(at) => {
            let after = pattern.len() - at - 1;
            parts.len() > at + after
                && parts.iter().zip(&pattern[..at]).all(one)
                && parts
                    .iter()
                    .rev()
                    .zip(pattern.iter().rev())
                    .take(after)
                    .all(one)
        }
    }
}

#[cfg(test)]
mod tests;
