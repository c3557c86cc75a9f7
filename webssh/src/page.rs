//! The terminal page: three files, built from `web/` and part of the program.
//!
//! Nothing is read from a disk and no name is looked up: these paths, and no others. The policy lets the
//! page load its own script and talk to its own server and to the regions' access servers at which terminals
//! are, and nothing else. (Styles may be made by the script: the terminal's grid is measured when it is shown.)

use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;

use crate::origin;

/// Where the page is.
pub const PATH: &str = "/terminal";

const HTML: &str = include_str!("../web/dist/index.html");
const SCRIPT: &str = include_str!("../web/dist/terminal.js");
const STYLE: &str = include_str!("../web/dist/terminal.css");

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
    connect-src 'self'{servers}; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

/// Addresses (https) of access servers at which terminals may be, as they are now.
pub type Servers = Arc<dyn Fn() -> Vec<String> + Send + Sync>;

/// The page's routes; at `/` people are sent to it.
pub fn router(servers: Servers) -> Router {
    Router::new()
        .route(
            "/",
            get(|| async { dressed(Redirect::to(PATH).into_response(), &[]) }),
        )
        .route(
            PATH,
            get(move || {
                let page = file("text/html; charset=utf-8", HTML, &servers());
                async move { page }
            }),
        )
        .route(
            "/terminal/terminal.js",
            get(|| async { file("text/javascript; charset=utf-8", SCRIPT, &[]) }),
        )
        .route(
            "/terminal/terminal.css",
            get(|| async { file("text/css; charset=utf-8", STYLE, &[]) }),
        )
}

/// With what the page may talk to. What is not an origin becomes no part of it.
fn policy(servers: &[String]) -> String {
    let mut sockets: Vec<String> = servers
        .iter()
        .filter_map(|server| origin::normal(server))
        .filter_map(|origin| Some(format!(" wss://{}", origin.strip_prefix("https://")?)))
        .collect();
    sockets.sort_unstable();
    sockets.dedup();
    POLICY.replace("{servers}", &sockets.concat())
}

fn file(kind: &'static str, text: &'static str, servers: &[String]) -> Response {
    let answer = (StatusCode::OK, [(header::CONTENT_TYPE, kind)], text);
    dressed(answer.into_response(), servers)
}

fn dressed(mut answer: Response, servers: &[String]) -> Response {
    let fixed: [(HeaderName, &'static str); 7] = [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::STRICT_TRANSPORT_SECURITY, "max-age=31536000"),
        (
            HeaderName::from_static("cross-origin-opener-policy"),
            "same-origin",
        ),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
        // Asked for anew after each upgrade of the server; the files are small.
        (header::CACHE_CONTROL, "no-cache"),
    ];
    let headers = answer.headers_mut();
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
    // Origins are plain ASCII; were one not, the page would be let do nothing at all.
    let policy = HeaderValue::from_str(&policy(servers));
    let nothing = HeaderValue::from_static("default-src 'none'");
    headers.insert(header::CONTENT_SECURITY_POLICY, policy.unwrap_or(nothing));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_holds_nothing_inline_and_nothing_of_others() {
        assert!(
            !HTML.contains("<script>") && !HTML.contains("onclick"),
            "no inline script"
        );
        assert!(!HTML.contains("<style"), "no inline style");
        assert!(!HTML.contains("http"), "nothing from elsewhere");
        assert!(!STYLE.contains("@import"), "nothing from elsewhere");
        for part in STYLE.split("url(").skip(1) {
            assert!(part.starts_with("data:"), "{part}");
        }
        for attribute in ["src=\"", "href=\""] {
            for part in HTML.split(attribute).skip(1) {
                assert!(
                    part.starts_with("/terminal/") || part.starts_with("data:,"),
                    "{part}"
                );
            }
        }
    }

    #[test]
    fn the_policy_lets_no_foreign_script_in() {
        let policy = policy(&[]);
        assert!(policy.contains("default-src 'none'"));
        assert!(policy.contains("script-src 'self';"));
        assert!(policy.contains("connect-src 'self';"));
        assert!(!policy.contains("unsafe-eval") && !policy.contains('*'));
    }

    #[test]
    fn of_other_servers_only_sockets_of_regions_are_let_in() {
        let servers = [
            "https://eu.example.com:7500".to_owned(),
            "https://eu.example.com:7500/".to_owned(),
            "http://plain.example.com".to_owned(),
            "https://x; script-src *".to_owned(),
        ];
        let policy = policy(&servers);
        assert!(policy.contains("connect-src 'self' wss://eu.example.com:7500;"));
        assert!(
            !policy.contains("plain") && !policy.contains('*'),
            "{policy}"
        );
    }
}
