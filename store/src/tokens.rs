//! API tokens and join tokens. Only hashes of their secrets are kept.

use std::collections::BTreeMap;

use fairlead_protocol::codes;
use rusqlite::{OptionalExtension, Row, named_params};

use crate::{StoreError, Tx};

/// How old the note of a token's last use may get before it is written again.
pub const LAST_USED_STEP_US: i64 = 60_000_000;

/// An API token.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ApiTokenRow {
    /// Public part.
    pub id: String,
    /// Whose things it sees.
    pub tenant: String,
    /// What it is for.
    pub name: String,
    /// SHA-256 of the secret.
    pub secret_hash: [u8; 32],
    /// Names of permissions.
    pub permissions: Vec<String>,
    /// Where they hold, as JSON; this crate does not look inside.
    pub scope: String,
    /// Who made it.
    pub created_by: String,
    /// When.
    pub created_us: i64,
    /// When it ends; 0: never by itself.
    pub expires_us: i64,
    /// When it was last used, to the minute; 0: never.
    pub last_used_us: i64,
    /// When it was revoked; 0: it is not.
    pub revoked_us: i64,
}

impl ApiTokenRow {
    /// Whether it opens anything at that time.
    #[must_use]
    pub fn is_good(&self, now_us: i64) -> bool {
        self.revoked_us == 0 && (self.expires_us == 0 || now_us < self.expires_us)
    }
}

/// A join token.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JoinTokenRow {
    /// Public part.
    pub id: String,
    /// Tenant of the hosts that it lets in.
    pub tenant: String,
    /// [`PURPOSE_HOST`] or [`PURPOSE_ACCESS_SERVER`].
    pub purpose: String,
    /// Into which region.
    pub region: String,
    /// With which labels.
    pub labels: BTreeMap<String, String>,
    /// SHA-256 of the secret.
    pub secret_hash: [u8; 32],
    /// How many it may let in.
    pub uses_max: u32,
    /// How many it has let in.
    pub uses: u32,
    /// Who made it.
    pub created_by: String,
    /// When.
    pub created_us: i64,
    /// When it ends.
    pub expires_us: i64,
    /// When it was revoked; 0: it is not.
    pub revoked_us: i64,
}

/// Purpose of a join token that lets in hosts.
pub const PURPOSE_HOST: &str = "host";
/// Purpose of a join token that lets in a region's access server.
pub const PURPOSE_ACCESS_SERVER: &str = "access-server";

const API_COLUMNS: &str = "id, tenant, name, secret_hash, permissions, scope, created_by, \
     created_us, expires_us, last_used_us, revoked_us";
const JOIN_COLUMNS: &str = "id, tenant, purpose, region, labels, secret_hash, uses_max, uses, \
     created_by, created_us, expires_us, revoked_us";

fn api_row(row: &Row<'_>) -> rusqlite::Result<ApiTokenRow> {
    let permissions: String = row.get(4)?;
    Ok(ApiTokenRow {
        id: row.get(0)?,
        tenant: row.get(1)?,
        name: row.get(2)?,
        secret_hash: row.get(3)?,
        // Unreadable permissions permit nothing.
        permissions: serde_json::from_str(&permissions).unwrap_or_default(),
        scope: row.get(5)?,
        created_by: row.get(6)?,
        created_us: row.get(7)?,
        expires_us: row.get(8)?,
        last_used_us: row.get(9)?,
        revoked_us: row.get(10)?,
    })
}

fn join_row(row: &Row<'_>) -> rusqlite::Result<JoinTokenRow> {
    let labels: String = row.get(4)?;
    Ok(JoinTokenRow {
        id: row.get(0)?,
        tenant: row.get(1)?,
        purpose: row.get(2)?,
        region: row.get(3)?,
        labels: serde_json::from_str(&labels).unwrap_or_default(),
        secret_hash: row.get(5)?,
        uses_max: row.get(6)?,
        uses: row.get(7)?,
        created_by: row.get(8)?,
        created_us: row.get(9)?,
        expires_us: row.get(10)?,
        revoked_us: row.get(11)?,
    })
}

/// Compares two hashes in a time that does not depend on where they differ.
fn same_hash(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a.iter()
        .zip(b)
        .fold(0u8, |different, (x, y)| different | (x ^ y))
        == 0
}

impl Tx<'_> {
    /// Keeps a new API token; `false` when its id is taken.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn insert_api_token(&self, row: &ApiTokenRow) -> Result<bool, StoreError> {
        Ok(self.sql.execute(
            "INSERT INTO api_tokens (id, tenant, name, secret_hash, permissions, scope, \
             created_by, created_us, expires_us) VALUES (:id, :tenant, :name, :secret_hash, \
             :permissions, :scope, :created_by, :created_us, :expires_us) ON CONFLICT DO NOTHING",
            named_params! {
                ":id": row.id, ":tenant": row.tenant, ":name": row.name,
                ":secret_hash": row.secret_hash,
                ":permissions": serde_json::to_string(&row.permissions).unwrap_or_default(),
                ":scope": row.scope, ":created_by": row.created_by,
                ":created_us": row.created_us, ":expires_us": row.expires_us,
            },
        )? == 1)
    }

    /// The token of that id, if the secret is its own; expired and revoked ones too, so that the
    /// caller can say so.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn api_token_by_secret(
        &self,
        id: &str,
        secret_hash: &[u8; 32],
    ) -> Result<Option<ApiTokenRow>, StoreError> {
        Ok(self
            .api_token(id)?
            .filter(|row| same_hash(&row.secret_hash, secret_hash)))
    }

    /// The token of that id.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn api_token(&self, id: &str) -> Result<Option<ApiTokenRow>, StoreError> {
        Ok(self
            .sql
            .prepare_cached(&format!(
                "SELECT {API_COLUMNS} FROM api_tokens WHERE id = ?1"
            ))?
            .query_row([id], api_row)
            .optional()?)
    }

    /// A tenant's API tokens, newest first, revoked ones included.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn api_tokens(&self, tenant: &str, limit: u32) -> Result<Vec<ApiTokenRow>, StoreError> {
        let mut statement = self.sql.prepare_cached(&format!(
            "SELECT {API_COLUMNS} FROM api_tokens WHERE tenant = ?1 \
             ORDER BY created_us DESC, id LIMIT ?2"
        ))?;
        let rows = statement.query_map((tenant, limit), api_row)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Ends a tenant's API token; `false` when there is no such one or it had ended before.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn revoke_api_token(&self, tenant: &str, id: &str, at_us: i64) -> Result<bool, StoreError> {
        Ok(self.sql.execute(
            "UPDATE api_tokens SET revoked_us = ?3 WHERE id = ?2 AND tenant = ?1 \
             AND revoked_us = 0",
            (tenant, id, at_us),
        )? == 1)
    }

    /// Notes that a token was used, at most once a minute; whether it was noted.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn touch_api_token(&self, id: &str, at_us: i64) -> Result<bool, StoreError> {
        Ok(self
            .sql
            .prepare_cached(
                "UPDATE api_tokens SET last_used_us = ?2 WHERE id = ?1 AND last_used_us <= ?3",
            )?
            .execute((id, at_us, at_us.saturating_sub(LAST_USED_STEP_US)))?
            == 1)
    }

    /// Whether any token with that permission is good.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn has_good_api_token(&self, permission: &str, now_us: i64) -> Result<bool, StoreError> {
        Ok(self
            .sql
            .prepare_cached(
                "SELECT 1 FROM api_tokens, json_each(api_tokens.permissions) AS p \
                 WHERE p.value = ?1 AND revoked_us = 0 AND (expires_us = 0 OR expires_us > ?2)",
            )?
            .exists((permission, now_us))?)
    }

    /// Keeps a new join token; `false` when its id is taken.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn insert_join_token(&self, row: &JoinTokenRow) -> Result<bool, StoreError> {
        Ok(self.sql.execute(
            "INSERT INTO join_tokens (id, tenant, purpose, region, labels, secret_hash, \
             uses_max, uses, created_by, created_us, expires_us) VALUES (:id, :tenant, :purpose, \
             :region, :labels, :secret_hash, :uses_max, 0, :created_by, :created_us, \
             :expires_us) ON CONFLICT DO NOTHING",
            named_params! {
                ":id": row.id, ":tenant": row.tenant, ":purpose": row.purpose,
                ":region": row.region,
                ":labels": serde_json::to_string(&row.labels).unwrap_or_default(),
                ":secret_hash": row.secret_hash, ":uses_max": row.uses_max,
                ":created_by": row.created_by, ":created_us": row.created_us,
                ":expires_us": row.expires_us,
            },
        )? == 1)
    }

    /// The join token of that id.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn join_token(&self, id: &str) -> Result<Option<JoinTokenRow>, StoreError> {
        Ok(self
            .sql
            .prepare_cached(&format!(
                "SELECT {JOIN_COLUMNS} FROM join_tokens WHERE id = ?1"
            ))?
            .query_row([id], join_row)
            .optional()?)
    }

    /// A tenant's join tokens, newest first, ended ones included.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn join_tokens(&self, tenant: &str, limit: u32) -> Result<Vec<JoinTokenRow>, StoreError> {
        let mut statement = self.sql.prepare_cached(&format!(
            "SELECT {JOIN_COLUMNS} FROM join_tokens WHERE tenant = ?1 \
             ORDER BY created_us DESC, id LIMIT ?2"
        ))?;
        let rows = statement.query_map((tenant, limit), join_row)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Ends a tenant's join token; `false` when there is no such one or it had ended before.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn revoke_join_token(
        &self,
        tenant: &str,
        id: &str,
        at_us: i64,
    ) -> Result<bool, StoreError> {
        Ok(self.sql.execute(
            "UPDATE join_tokens SET revoked_us = ?3 WHERE id = ?2 AND tenant = ?1 \
             AND revoked_us = 0",
            (tenant, id, at_us),
        )? == 1)
    }

    /// Whether the token would let in such a machine now; counts nothing. The inner error is the
    /// stable code of the refusal. A wrong secret is `token_unknown`: who does not know the secret
    /// learns nothing about the token.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn check_join_token(
        &self,
        id: &str,
        secret_hash: &[u8; 32],
        purpose: &str,
        region: Option<&str>,
        now_us: i64,
    ) -> Result<Result<JoinTokenRow, &'static str>, StoreError> {
        let Some(row) = self
            .join_token(id)?
            .filter(|row| same_hash(&row.secret_hash, secret_hash))
        else {
            return Ok(Err(codes::TOKEN_UNKNOWN));
        };
        Ok(if row.revoked_us != 0 {
            Err(codes::TOKEN_REVOKED)
        } else if row.purpose != purpose || region.is_some_and(|region| region != row.region) {
            Err(codes::TOKEN_FOREIGN)
        } else if now_us >= row.expires_us {
            Err(codes::TOKEN_EXPIRED)
        } else if row.uses >= row.uses_max {
            Err(codes::TOKEN_USED_UP)
        } else {
            Ok(row)
        })
    }

    /// As [`Tx::check_join_token`], and counts the use. The row returned has it counted.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn consume_join_token(
        &self,
        id: &str,
        secret_hash: &[u8; 32],
        purpose: &str,
        region: Option<&str>,
        now_us: i64,
    ) -> Result<Result<JoinTokenRow, &'static str>, StoreError> {
        let mut row = match self.check_join_token(id, secret_hash, purpose, region, now_us)? {
            Ok(row) => row,
            Err(code) => return Ok(Err(code)),
        };
        // The condition again: the count alone decides, however this is called.
        let counted = self.sql.execute(
            "UPDATE join_tokens SET uses = uses + 1 WHERE id = ?1 AND uses < uses_max",
            [id],
        )?;
        if counted == 0 {
            return Ok(Err(codes::TOKEN_USED_UP));
        }
        row.uses += 1;
        Ok(Ok(row))
    }
}

#[cfg(test)]
mod tests;
