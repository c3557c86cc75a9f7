//! The OpenAPI 3.1 description, made from the code, with each route's permission in it.

use utoipa::openapi::extensions::ExtensionsBuilder;
use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    ComponentsBuilder, ContentBuilder, InfoBuilder, OpenApi, OpenApiBuilder, Ref, ResponseBuilder,
};

use crate::access::{self, Need};
use crate::routes;
use crate::types::ErrorBody;

/// Name of the one way to authenticate.
const SCHEME: &str = "api_token";

/// The document without its paths.
pub(crate) fn frame() -> OpenApi {
    let scheme = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .bearer_format("FA1…")
        .description(Some("An API token."))
        .build();
    OpenApiBuilder::new()
        .info(
            InfoBuilder::new()
                .title("Fairlead")
                .version("v1")
                .description(Some(
                    "Every operation names the permission it needs in `x-permission`. \
                     Every error has the body `ErrorBody`.",
                ))
                .build(),
        )
        .components(Some(
            ComponentsBuilder::new()
                .schema_from::<ErrorBody>()
                .schema_from::<crate::types::ErrorDetail>()
                // What a command gives is told by its kind, so no operation names it.
                .schema_from::<crate::types::HostCheck>()
                .schema_from::<crate::types::HostCheckRow>()
                .security_scheme(SCHEME, SecurityScheme::Http(scheme))
                .build(),
        ))
        .build()
}

/// The whole document.
#[must_use]
pub fn document() -> OpenApi {
    let mut document = routes::described().to_openapi();
    for (path, item) in &mut document.paths.paths {
        let operations = [
            ("GET", &mut item.get),
            ("POST", &mut item.post),
            ("PUT", &mut item.put),
            ("PATCH", &mut item.patch),
            ("DELETE", &mut item.delete),
        ];
        for (method, operation) in operations {
            if let Some(operation) = operation {
                complete(operation, method, path);
            }
        }
    }
    document
}

/// Adds what all operations have: permission, security, the shape of errors.
fn complete(operation: &mut Operation, method: &str, path: &str) {
    let rule = access::table()
        .iter()
        .find(|r| r.method.as_str() == method && r.path == path);
    let Some(rule) = rule else { return };
    let extension = ExtensionsBuilder::new()
        .add("x-permission", rule.need.name())
        .build();
    operation
        .extensions
        .get_or_insert_default()
        .merge(extension);
    if rule.need != Need::Nothing {
        let none: [&str; 0] = [];
        operation.security = Some(vec![SecurityRequirement::new(SCHEME, none)]);
    }
    let error = ResponseBuilder::new()
        .description("Any error.")
        .content(
            "application/json",
            ContentBuilder::new()
                .schema(Some(Ref::from_schema_name("ErrorBody")))
                .build(),
        )
        .build();
    operation
        .responses
        .responses
        .insert("default".to_owned(), error.into());
}

/// The document as JSON text, as it is served and kept in `docs/reference/openapi.json`.
#[must_use]
pub fn json() -> String {
    // Serialising a document of our own cannot fail; an empty object would fail its test.
    let mut text = document()
        .to_pretty_json()
        .unwrap_or_else(|_| "{}".to_owned());
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    /// Set it to write the description instead of comparing it.
    const BLESS: &str = "FAIRLEAD_BLESS";

    #[test]
    fn the_description_in_the_repository_is_that_of_the_code() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../docs/reference/openapi.json"
        );
        let now = super::json();
        if std::env::var_os(BLESS).is_some() {
            std::fs::create_dir_all(std::path::Path::new(path).parent().unwrap()).unwrap();
            std::fs::write(path, &now).unwrap();
        }
        let kept = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            kept == now,
            "docs/reference/openapi.json is not what the code says; \
             look at the change and run: {BLESS}=1 cargo test -p fairlead-api openapi"
        );
    }
}
