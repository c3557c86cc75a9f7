//! The terminal page: three files, built from `web/` and part of the program.
//!
//! Nothing is read from a disk and no name is looked up: these paths, and no others. The policy lets the
//! page load its own script and talk to its own server, and nothing else. (Styles may be made by the script:
//! the terminal's grid is measured when it is shown.)

use axum::Router;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;

/// Where the page is.
pub const PATH: &str = "/terminal";

const HTML: &str = include_str!("../web/dist/index.html");
const SCRIPT: &str = include_str!("../web/dist/terminal.js");
const STYLE: &str = include_str!("../web/dist/terminal.css");

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
    connect-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

/// The page's routes; at `/` people are sent to it.
pub fn router() -> Router {
    Router::new()
        .route(
            "/",
            get(|| async { dressed(Redirect::to(PATH).into_response()) }),
        )
        .route(PATH, get(|| file("text/html; charset=utf-8", HTML)))
        .route(
            "/terminal/terminal.js",
            get(|| file("text/javascript; charset=utf-8", SCRIPT)),
        )
        .route(
            "/terminal/terminal.css",
            get(|| file("text/css; charset=utf-8", STYLE)),
        )
}

async fn file(kind: &'static str, text: &'static str) -> Response {
    dressed((StatusCode::OK, [(header::CONTENT_TYPE, kind)], text).into_response())
}

fn dressed(mut answer: Response) -> Response {
    let fixed: [(HeaderName, &'static str); 8] = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
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
    for (name, value) in fixed {
        answer
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
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
        assert!(POLICY.contains("default-src 'none'"));
        assert!(POLICY.contains("script-src 'self';"));
        assert!(!POLICY.contains("unsafe-eval") && !POLICY.contains('*'));
    }
}
