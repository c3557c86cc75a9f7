//! `join-token` and `api-token`. A secret is printed once, when it is made, alone on standard output.

use std::time::Duration;

use fairlead_api::types::{
    ApiToken, ApiTokenRequest, JoinToken, JoinTokenRequest, Labels, NewApiToken, NewJoinToken,
    Permission, Scope,
};
use jiff::Timestamp;

use super::Context;
use crate::args::{ApiTokenVerb, JoinTokenVerb};
use crate::config::{is_api_token, is_join_token};
use crate::exit::{Exit, Failure};
use crate::output::human::{ago, ago_or};
use crate::output::table::{Cell, Table};
use crate::output::{Colour, clean, say};

/// `fairlead join-token …`
pub(crate) async fn join(context: &Context, verb: JoinTokenVerb) -> Result<Exit, Failure> {
    match verb {
        JoinTokenVerb::Create {
            region,
            labels,
            ttl,
            uses,
        } => {
            let body = JoinTokenRequest {
                region,
                labels: key_values(&labels)?,
                ttl_s: ttl.map(seconds),
                uses,
            };
            let made: NewJoinToken = context.client()?.post(&["join-tokens"], &body).await?;
            let now = Timestamp::now();
            say(&format!(
                "join token {} for region {}: lets in {}, ends {}; it is shown only now",
                clean(&made.info.id),
                clean(&made.info.region),
                crate::output::human::count(made.info.uses_max.into(), "host"),
                ago(made.info.expires_at, now),
            ));
            if !made.addresses.is_empty() {
                say(&format!(
                    "agents dial {}",
                    clean(&made.addresses.join(", "))
                ));
            }
            context
                .out
                .data(&made, |made| format!("{}\n", made.token))?;
            Ok(Exit::Ok)
        }
        JoinTokenVerb::Ls => {
            let tokens: Vec<JoinToken> = context.client()?.list(&["join-tokens"], &[]).await?;
            context.out.data(&tokens, |tokens| {
                join_table(tokens, Timestamp::now()).render(&context.out)
            })?;
            Ok(Exit::Ok)
        }
        JoinTokenVerb::Revoke { ids } => {
            let ids = ids
                .iter()
                .map(|id| join_token_id(id))
                .collect::<Result<Vec<_>, _>>()?;
            revoke(context, "join-tokens", ids).await
        }
    }
}

/// `fairlead api-token …`
pub(crate) async fn api(context: &Context, verb: ApiTokenVerb) -> Result<Exit, Failure> {
    match verb {
        ApiTokenVerb::Create {
            name,
            permissions,
            regions,
            labels,
            ttl,
        } => {
            let body = ApiTokenRequest {
                name,
                permissions: permissions
                    .iter()
                    .map(|name| permission(name))
                    .collect::<Result<_, _>>()?,
                scope: Scope {
                    regions,
                    labels: key_values(&labels)?,
                },
                ttl_s: ttl.map(seconds),
            };
            let made: NewApiToken = context.client()?.post(&["api-tokens"], &body).await?;
            say(&format!(
                "API token {} ({}); it is shown only now",
                clean(&made.info.id),
                clean(&made.info.name)
            ));
            context
                .out
                .data(&made, |made| format!("{}\n", made.token))?;
            Ok(Exit::Ok)
        }
        ApiTokenVerb::Ls => {
            let tokens: Vec<ApiToken> = context.client()?.list(&["api-tokens"], &[]).await?;
            context.out.data(&tokens, |tokens| {
                api_table(tokens, Timestamp::now()).render(&context.out)
            })?;
            Ok(Exit::Ok)
        }
        ApiTokenVerb::Revoke { ids } => {
            for id in &ids {
                if is_join_token(id) {
                    return Err(
                        Failure::usage("this is a join token (FL1…), not an API token")
                            .hint("fairlead join-token revoke ID"),
                    );
                }
                if is_api_token(id) {
                    return Err(Failure::usage("this is the API token itself; give its id")
                        .hint("fairlead api-token ls shows the ids"));
                }
            }
            revoke(context, "api-tokens", ids).await
        }
    }
}

async fn revoke(context: &Context, kind: &str, ids: Vec<String>) -> Result<Exit, Failure> {
    let client = context.client()?;
    super::each(ids, async |id| {
        client.delete(&[kind, id]).await?;
        say(&format!("{}: revoked", clean(id)));
        Ok(())
    })
    .await
}

/// The id in what was typed: an id, or a whole join token, whose secret goes nowhere.
fn join_token_id(text: &str) -> Result<String, Failure> {
    if is_api_token(text) {
        return Err(
            Failure::usage("this is an API token (FA1…), not a join token")
                .hint("fairlead api-token revoke ID; fairlead api-token ls shows the ids"),
        );
    }
    if !is_join_token(text) {
        return Ok(text.to_owned());
    }
    text.split_once("::")
        .and_then(|(_, rest)| rest.split_once('.'))
        .map(|(id, _)| id.to_owned())
        .filter(|id| !id.is_empty())
        .ok_or_else(|| {
            Failure::usage("this join token is cut short").hint("fairlead join-token ls")
        })
}

fn seconds(duration: Duration) -> u64 {
    duration.as_secs().max(1)
}

/// `KEY=VALUE` labels.
pub(crate) fn key_values(labels: &[String]) -> Result<Labels, Failure> {
    labels
        .iter()
        .map(|label| match label.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            _ => Err(Failure::usage(format!(
                "{label:?} is not a label; write KEY=VALUE"
            ))),
        })
        .collect()
}

fn permission(name: &str) -> Result<Permission, Failure> {
    serde_json::from_value(serde_json::Value::String(name.trim().to_owned())).map_err(|_| {
        Failure::usage(format!("{name:?} is not a permission")).hint(format!(
            "there are {}",
            Permission::ALL.map(Permission::name).join(", ")
        ))
    })
}

/// A permission as it is typed.
pub(crate) fn permission_name(permission: &Permission) -> String {
    match serde_json::to_value(permission) {
        Ok(serde_json::Value::String(name)) => name,
        _ => String::new(),
    }
}

fn join_table(tokens: &[JoinToken], now: Timestamp) -> Table {
    let mut table = Table::new([
        "ID", "FOR", "REGION", "LABELS", "USED", "STATE", "MADE", "BY",
    ]);
    for token in tokens {
        let purpose = match token.purpose {
            fairlead_api::types::JoinPurpose::Host => "host",
            fairlead_api::types::JoinPurpose::AccessServer => "access server",
        };
        let used_up = token.uses >= token.uses_max;
        table.row([
            Cell::from(&token.id),
            purpose.into(),
            (&token.region).into(),
            super::fleet::labels(&token.labels).into(),
            format!("{} of {}", token.uses, token.uses_max).into(),
            state(token.revoked_at, Some(token.expires_at), used_up, now),
            ago(token.created_at, now).into(),
            (&token.created_by).into(),
        ]);
    }
    table
}

fn state(
    revoked: Option<Timestamp>,
    expires: Option<Timestamp>,
    used_up: bool,
    now: Timestamp,
) -> Cell {
    let over = |text: String| Cell::painted(Some(Colour::Faint), text);
    match (revoked, expires) {
        (Some(at), _) => over(format!("revoked {}", ago(at, now))),
        _ if used_up => over("used up".to_owned()),
        (None, Some(at)) if at <= now => over(format!("expired {}", ago(at, now))),
        (None, Some(at)) => Cell::painted(Some(Colour::Good), format!("ends {}", ago(at, now))),
        (None, None) => Cell::painted(Some(Colour::Good), "until revoked"),
    }
}

fn api_table(tokens: &[ApiToken], now: Timestamp) -> Table {
    let mut table = Table::new([
        "ID",
        "NAME",
        "MAY",
        "WHERE",
        "STATE",
        "LAST USED",
        "MADE",
        "BY",
    ]);
    for token in tokens {
        let mut place = token.scope.regions.clone();
        place.extend(
            token
                .scope
                .labels
                .iter()
                .map(|(key, value)| format!("{key}={value}")),
        );
        let place = if place.is_empty() {
            "everywhere".to_owned()
        } else {
            place.join(" ")
        };
        let may: Vec<String> = token.permissions.iter().map(permission_name).collect();
        table.row([
            Cell::from(&token.id),
            (&token.name).into(),
            may.join(" ").into(),
            place.into(),
            state(token.revoked_at, token.expires_at, false, now),
            ago_or(token.last_used_at, now, "never").into(),
            ago(token.created_at, now).into(),
            (&token.created_by).into(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_join_token_names_its_id_and_keeps_its_secret() {
        assert_eq!(join_token_id("FL1abc::k7.s3cret").unwrap(), "k7");
        assert_eq!(join_token_id("k7").unwrap(), "k7");
        assert!(join_token_id("FL1abc").is_err());
        let mixed = join_token_id("FA1abc").unwrap_err();
        assert!(mixed.message.contains("API token (FA1…)"));
        assert!(mixed.hint.contains("api-token revoke"));
    }

    #[test]
    fn permissions_and_labels_are_checked_here() {
        assert_eq!(permission("operate").unwrap(), Permission::Operate);
        assert_eq!(permission_name(&Permission::Admin), "admin");
        assert!(permission("root").is_err());
        assert!(key_values(&["a".to_owned()]).is_err());
        assert_eq!(key_values(&["a=b=c".to_owned()]).unwrap()["a"], "b=c");
    }
}
