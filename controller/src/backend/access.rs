//! Who is asking, tokens, the audit log.

use fairlead_api::input::{invalid, text};
use fairlead_api::types::{
    ApiToken, ApiTokenRequest, AuditRow, JoinPurpose, JoinToken, JoinTokenRequest, Labels,
    NewApiToken, NewJoinToken, Page, Permission, Scope, SetupRequest, time, time_or_never,
};
use fairlead_api::{ApiError, Caller};
use fairlead_identity::digest::{hex, sha256};
use fairlead_identity::token::{ApiToken as ApiSecret, JoinToken as JoinSecret, secret_hash};
use fairlead_protocol::codes;
use fairlead_protocol::limits::NAME_CHARS_MAX;
use fairlead_store::audit::AuditFilter;
use fairlead_store::tokens::{ApiTokenRow, JoinTokenRow, PURPOSE_ACCESS_SERVER, PURPOSE_HOST};

use super::{ControllerBackend, Note, cut};

/// Most tokens in a listing.
const TOKENS_LISTED_MAX: u32 = 1000;
/// Life of a join token that names none.
const JOIN_TTL_S: u64 = 3600;
/// Longest life of a join token.
const JOIN_TTL_S_MAX: u64 = 30 * 24 * 3600;
/// Most machines of one join token.
const JOIN_USES_MAX: u32 = 10_000;
/// Longest life of an API token that names one.
const API_TTL_S_MAX: u64 = 10 * 366 * 24 * 3600;
/// Most labels of a token.
const LABELS_MAX: usize = 64;
/// Most regions of a scope.
const REGIONS_MAX: usize = 256;

impl ControllerBackend {
    /// Who carries this token. What is wrong with it is told apart only to who knows its secret.
    pub(super) async fn who_is(&self, bearer: &str, from: &str) -> Result<Caller, ApiError> {
        let unauthenticated = |message: &str| ApiError::new(codes::UNAUTHENTICATED, message);
        let token: ApiSecret = bearer
            .parse()
            .map_err(|error| unauthenticated(&format!("{error}")))?;
        let hash = secret_hash(&token.secret);
        let row = self
            .look(|tx| tx.api_token_by_secret(&token.id, &hash))?
            .ok_or_else(|| unauthenticated("the API token is not known here"))?;
        let now_us = self.now_us();
        if row.revoked_us != 0 {
            return Err(unauthenticated("the API token was revoked"));
        }
        if !row.is_good(now_us) {
            return Err(unauthenticated("the API token has expired"));
        }
        // A scope that cannot be read must not widen what the token sees.
        let scope: Scope = serde_json::from_str(&row.scope)
            .map_err(|_| ApiError::new(codes::INTERNAL, "the API token's scope is damaged"))?;
        let ended = self.parts.live.of(&row.id, row.expires_us);
        if ended.is_cancelled() {
            return Err(unauthenticated("the API token was revoked"));
        }
        self.parts.live.used(&row.id, now_us);
        Ok(Caller {
            permissions: permissions_of(&row),
            token_id: row.id,
            name: row.name,
            tenant: row.tenant,
            scope,
            expires_us: row.expires_us,
            from: from.to_owned(),
            ended,
        })
    }

    /// Claims the installation. Unsuccessful claims make no audit rows: anybody can try.
    pub(super) async fn claim(
        &self,
        from: &str,
        request: SetupRequest,
    ) -> Result<NewApiToken, ApiError> {
        text("name", &request.name, NAME_CHARS_MAX)?;
        let (token, row) = self
            .parts
            .setup
            .claim(&request.secret, &cut(&request.name), &cut(from))
            .await?;
        Ok(NewApiToken {
            token: token.to_string(),
            info: shown(&row),
        })
    }

    pub(super) async fn make_api_token(
        &self,
        caller: &Caller,
        request: ApiTokenRequest,
    ) -> Result<NewApiToken, ApiError> {
        let mut permissions = request.permissions;
        permissions.sort_unstable();
        permissions.dedup();
        if permissions.is_empty() {
            return Err(invalid("permissions are empty: a token needs at least one"));
        }
        if request.name.is_empty() {
            return Err(invalid("name is empty: say what the token is for"));
        }
        text("name", &request.name, NAME_CHARS_MAX)?;
        scope_checked(&request.scope)?;
        within(caller, &request.scope)?;
        let now_us = self.now_us();
        let expires_us = match request.ttl_s {
            None => 0,
            Some(seconds @ 1..=API_TTL_S_MAX) => now_us + us(seconds),
            Some(_) => return Err(invalid(format!("ttl_s must be 1 to {API_TTL_S_MAX}"))),
        };
        let token = ApiSecret::generate();
        let row = ApiTokenRow {
            id: token.id.clone(),
            tenant: caller.tenant.clone(),
            name: request.name,
            secret_hash: secret_hash(&token.secret),
            permissions: permissions.iter().map(|p| p.name().to_owned()).collect(),
            scope: serde_json::to_string(&request.scope)
                .map_err(|_| ApiError::new(codes::INTERNAL, "the scope cannot be written"))?,
            created_by: caller.actor(),
            created_us: now_us,
            expires_us,
            ..ApiTokenRow::default()
        };
        let note = Note::ok(
            "api-token.create",
            format!("{} (token {})", row.name, row.id),
        )
        .detail(format!(
            "permissions {}; scope {}",
            row.permissions.join(", "),
            row.scope
        ));
        let entry = self.entry(caller, &note);
        let insert = row.clone();
        let is_new = self
            .write(move |tx| {
                tx.append_audit(&entry, sha256)?;
                tx.insert_api_token(&insert)
            })
            .await?;
        if !is_new {
            return Err(ApiError::new(
                codes::ALREADY_EXISTS,
                "the token's id is taken; try again",
            ));
        }
        Ok(NewApiToken {
            token: token.to_string(),
            info: shown(&row),
        })
    }

    pub(super) async fn list_api_tokens(&self, caller: &Caller) -> Result<Vec<ApiToken>, ApiError> {
        let tenant = caller.tenant.clone();
        let rows = self
            .read(move |tx| tx.api_tokens(&tenant, TOKENS_LISTED_MAX))
            .await?;
        let visible = rows.iter().filter(|row| token_is_within(caller, row));
        Ok(visible.map(shown).collect())
    }

    pub(super) async fn end_api_token(
        &self,
        caller: &Caller,
        id: &str,
    ) -> Result<ApiToken, ApiError> {
        mistaken_kind(id, "FL1", "join token", "fairlead join-token revoke")?;
        let wanted = id.to_owned();
        let row = self
            .read(move |tx| tx.api_token(&wanted))
            .await?
            .filter(|row| row.tenant == caller.tenant && token_is_within(caller, row))
            .ok_or_else(|| no_token("API", id, "fairlead api-token ls"))?;
        let now_us = self.now_us();
        let note = Note::ok(
            "api-token.revoke",
            format!("{} (token {})", row.name, row.id),
        );
        let entry = self.entry(caller, &note);
        let (tenant, id) = (row.tenant.clone(), row.id.clone());
        let row = self
            .write(move |tx| {
                // Revoking twice is no error and no second row: the first moment stays.
                if tx.revoke_api_token(&tenant, &id, now_us)? {
                    tx.append_audit(&entry, sha256)?;
                }
                tx.api_token(&id)
            })
            .await?
            .unwrap_or(row);
        self.parts.live.end(&row.id);
        self.end_forbidden_there();
        Ok(shown(&row))
    }

    pub(super) async fn make_join_token(
        &self,
        caller: &Caller,
        request: JoinTokenRequest,
    ) -> Result<NewJoinToken, ApiError> {
        labels_checked(&request.labels)?;
        let region = self
            .region_for_joining(caller, request.region.as_deref())
            .await?;
        if !caller.sees(&region.name, &request.labels) {
            return Err(out_of_scope("hosts of that region with those labels"));
        }
        let uses = request.uses.unwrap_or(1);
        if !(1..=JOIN_USES_MAX).contains(&uses) {
            return Err(invalid(format!("uses must be 1 to {JOIN_USES_MAX}")));
        }
        let ttl_s = join_ttl(request.ttl_s)?;
        let (secret, row) = self.new_join_token(
            caller,
            PURPOSE_HOST,
            &region.name,
            request.labels,
            uses,
            ttl_s,
        );
        let note = Note::ok("join-token.create", format!("token {}", row.id))
            .detail(format!("region {}, {uses} use(s), {ttl_s} s", row.region));
        let entry = self.entry(caller, &note);
        let insert = row.clone();
        self.write(move |tx| {
            tx.append_audit(&entry, sha256)?;
            tx.insert_join_token(&insert)
        })
        .await?;
        let info = join_shown(&row);
        Ok(NewJoinToken {
            token: secret.to_string(),
            addresses: region.addresses,
            info,
        })
    }

    /// A join token that is not stored yet.
    pub(super) fn new_join_token(
        &self,
        caller: &Caller,
        purpose: &str,
        region: &str,
        labels: Labels,
        uses_max: u32,
        ttl_s: u64,
    ) -> (JoinSecret, JoinTokenRow) {
        let secret = JoinSecret::generate(self.parts.ca_hash);
        let now_us = self.now_us();
        let row = JoinTokenRow {
            id: secret.id.clone(),
            tenant: caller.tenant.clone(),
            purpose: purpose.to_owned(),
            region: region.to_owned(),
            labels,
            secret_hash: secret_hash(&secret.secret),
            uses_max,
            created_by: caller.actor(),
            created_us: now_us,
            expires_us: now_us + us(ttl_s),
            ..JoinTokenRow::default()
        };
        (secret, row)
    }

    pub(super) async fn list_join_tokens(
        &self,
        caller: &Caller,
    ) -> Result<Vec<JoinToken>, ApiError> {
        let tenant = caller.tenant.clone();
        let rows = self
            .read(move |tx| tx.join_tokens(&tenant, TOKENS_LISTED_MAX))
            .await?;
        let visible = rows
            .iter()
            .filter(|row| caller.sees(&row.region, &row.labels));
        Ok(visible.map(join_shown).collect())
    }

    pub(super) async fn end_join_token(
        &self,
        caller: &Caller,
        id: &str,
    ) -> Result<JoinToken, ApiError> {
        mistaken_kind(id, "FA1", "API token", "fairlead api-token revoke")?;
        let wanted = id.to_owned();
        let row = self
            .read(move |tx| tx.join_token(&wanted))
            .await?
            .filter(|row| row.tenant == caller.tenant && caller.sees(&row.region, &row.labels))
            .ok_or_else(|| no_token("join", id, "fairlead join-token ls"))?;
        let now_us = self.now_us();
        let entry = self.entry(
            caller,
            &Note::ok("join-token.revoke", format!("token {}", row.id)),
        );
        let (tenant, id) = (row.tenant.clone(), row.id.clone());
        let row = self
            .write(move |tx| {
                if tx.revoke_join_token(&tenant, &id, now_us)? {
                    tx.append_audit(&entry, sha256)?;
                }
                tx.join_token(&id)
            })
            .await?
            .unwrap_or(row);
        Ok(join_shown(&row))
    }

    pub(super) async fn audit_page(
        &self,
        caller: &Caller,
        limit: u32,
        before: Option<i64>,
    ) -> Result<Page<AuditRow>, ApiError> {
        if !caller.sees_everything() {
            return Err(out_of_scope("the audit log of the whole tenant"));
        }
        let filter = AuditFilter {
            tenant: caller.tenant.clone(),
            before,
            limit,
        };
        let rows = self.read(move |tx| tx.audit(&filter)).await?;
        let next = (rows.len() == limit as usize)
            .then(|| rows.last().map(|row| row.seq))
            .flatten();
        let items = rows
            .into_iter()
            .map(|row| AuditRow {
                seq: row.seq,
                at: time(row.entry.at_us),
                actor: row.entry.actor,
                from: row.entry.source,
                action: row.entry.action,
                object: row.entry.object,
                outcome: row.entry.outcome,
                detail: row.entry.detail,
                hash: hex(&row.hash),
            })
            .collect();
        Ok(Page { items, next })
    }
}

fn us(seconds: u64) -> i64 {
    i64::try_from(seconds)
        .unwrap_or(i64::MAX / 1_000_000)
        .saturating_mul(1_000_000)
}

pub(super) fn join_ttl(asked: Option<u64>) -> Result<u64, ApiError> {
    match asked {
        None => Ok(JOIN_TTL_S),
        Some(seconds @ 1..=JOIN_TTL_S_MAX) => Ok(seconds),
        Some(_) => Err(invalid(format!("ttl_s must be 1 to {JOIN_TTL_S_MAX}"))),
    }
}

/// The permissions of a row; names that are not known permit nothing.
fn permissions_of(row: &ApiTokenRow) -> Vec<Permission> {
    row.permissions
        .iter()
        .filter_map(|name| Permission::from_name(name))
        .collect()
}

fn scope_checked(scope: &Scope) -> Result<(), ApiError> {
    if scope.regions.len() > REGIONS_MAX {
        return Err(invalid(format!(
            "scope.regions has more than {REGIONS_MAX} members"
        )));
    }
    if scope.regions.iter().any(String::is_empty) {
        return Err(invalid("scope.regions has an empty member"));
    }
    labels_checked(&scope.labels)
}

fn labels_checked(labels: &Labels) -> Result<(), ApiError> {
    if labels.len() > LABELS_MAX {
        return Err(invalid(format!("there are more than {LABELS_MAX} labels")));
    }
    for (key, value) in labels {
        if key.is_empty() {
            return Err(invalid("a label's key is empty"));
        }
        text("a label's key", key, NAME_CHARS_MAX)?;
        text("a label's value", value, NAME_CHARS_MAX)?;
    }
    Ok(())
}

/// A token made by a caller whose scope is restricted reaches no further than its maker.
fn within(caller: &Caller, scope: &Scope) -> Result<(), ApiError> {
    if scope_is_within(caller, scope) {
        return Ok(());
    }
    Err(out_of_scope(
        "a token that reaches further than the one that makes it",
    ))
}

fn scope_is_within(caller: &Caller, scope: &Scope) -> bool {
    let own = &caller.scope;
    let regions_fit = own.regions.is_empty()
        || (!scope.regions.is_empty() && scope.regions.iter().all(|r| own.regions.contains(r)));
    let labels_fit = own
        .labels
        .iter()
        .all(|(key, value)| scope.labels.get(key) == Some(value));
    regions_fit && labels_fit
}

fn token_is_within(caller: &Caller, row: &ApiTokenRow) -> bool {
    serde_json::from_str::<Scope>(&row.scope).map_or_else(
        |_| caller.sees_everything(),
        |scope| scope_is_within(caller, &scope),
    )
}

pub(super) fn out_of_scope(what: &str) -> ApiError {
    ApiError::new(
        codes::PERMISSION_DENIED,
        format!("out of this token's scope: {what}"),
    )
    .hint("fairlead api-token ls shows the scope of each token")
}

fn mistaken_kind(id: &str, prefix: &str, kind: &str, verb: &str) -> Result<(), ApiError> {
    if id.starts_with(prefix) {
        return Err(ApiError::new(
            codes::TOKEN_MALFORMED,
            format!("this is a {kind} ({prefix}…); here the other kind is meant, by its id"),
        )
        .hint(verb));
    }
    Ok(())
}

fn no_token(kind: &str, id: &str, hint: &str) -> ApiError {
    // Somebody may have put the whole token in: the secret must not come back.
    let shown = fairlead_api::input::plain(id.split('.').next().unwrap_or_default());
    ApiError::new(
        codes::TOKEN_NOT_FOUND,
        format!("there is no {kind} token {shown:?}"),
    )
    .hint(hint)
}

fn shown(row: &ApiTokenRow) -> ApiToken {
    ApiToken {
        id: row.id.clone(),
        name: row.name.clone(),
        permissions: permissions_of(row),
        scope: serde_json::from_str(&row.scope).unwrap_or_default(),
        created_by: row.created_by.clone(),
        created_at: time(row.created_us),
        expires_at: time_or_never(row.expires_us),
        last_used_at: time_or_never(row.last_used_us),
        revoked_at: time_or_never(row.revoked_us),
    }
}

pub(super) fn join_shown(row: &JoinTokenRow) -> JoinToken {
    JoinToken {
        id: row.id.clone(),
        purpose: if row.purpose == PURPOSE_ACCESS_SERVER {
            JoinPurpose::AccessServer
        } else {
            JoinPurpose::Host
        },
        region: row.region.clone(),
        labels: row.labels.clone(),
        uses_max: row.uses_max,
        uses: row.uses,
        created_by: row.created_by.clone(),
        created_at: time(row.created_us),
        expires_at: time(row.expires_us),
        revoked_at: time_or_never(row.revoked_us),
    }
}
