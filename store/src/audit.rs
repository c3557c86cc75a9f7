//! Rows of the audit log: append-only, each hashed together with the hash of the row before.
//!
//! Nothing here changes or removes a row. Somebody who can write the file can cut rows off its end
//! unseen (an anchor elsewhere is needed for that), but cannot alter, insert or remove one in
//! between. The hash function comes from the caller, because this crate does no cryptography.

use rusqlite::{OptionalExtension, Row, named_params};

use crate::{StoreError, Tx};

/// SHA-256.
pub type Sha256 = fn(&[u8]) -> [u8; 32];

/// What is to be noted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditEntry {
    /// When.
    pub at_us: i64,
    /// Whose things are concerned.
    pub tenant: String,
    /// Who.
    pub actor: String,
    /// From which address.
    pub source: String,
    /// What was done.
    pub action: String,
    /// To what.
    pub object: String,
    /// `ok`, `denied`, `failed`.
    pub outcome: String,
    /// More, in words.
    pub detail: String,
}

/// A row of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRow {
    /// Grows by one.
    pub seq: i64,
    /// What was noted.
    pub entry: AuditEntry,
    /// Over this row and the previous row's hash.
    pub hash: [u8; 32],
}

/// Which rows to list.
#[derive(Debug, Clone, Default)]
pub struct AuditFilter {
    /// Only of this tenant.
    pub tenant: String,
    /// Only older than this number.
    pub before: Option<i64>,
    /// At most so many.
    pub limit: u32,
}

/// What a walk over the chain found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chain {
    /// Rows that are as they were written.
    pub good: u64,
    /// The first row that is not, or that does not follow its predecessor.
    pub broken_at: Option<i64>,
}

const COLUMNS: &str = "seq, at_us, tenant, actor, source, action, object, outcome, detail, hash";

fn audit_row(row: &Row<'_>) -> rusqlite::Result<AuditRow> {
    Ok(AuditRow {
        seq: row.get(0)?,
        entry: AuditEntry {
            at_us: row.get(1)?,
            tenant: row.get(2)?,
            actor: row.get(3)?,
            source: row.get(4)?,
            action: row.get(5)?,
            object: row.get(6)?,
            outcome: row.get(7)?,
            detail: row.get(8)?,
        },
        hash: row.get(9)?,
    })
}

/// The hash of a row: every field with its length before it, so that no two rows read alike.
fn row_hash(previous: &[u8; 32], seq: i64, entry: &AuditEntry, sha256: Sha256) -> [u8; 32] {
    let mut bytes = Vec::with_capacity(256);
    bytes.extend_from_slice(previous);
    bytes.extend_from_slice(&seq.to_be_bytes());
    bytes.extend_from_slice(&entry.at_us.to_be_bytes());
    for text in [
        &entry.tenant,
        &entry.actor,
        &entry.source,
        &entry.action,
        &entry.object,
        &entry.outcome,
        &entry.detail,
    ] {
        bytes.extend_from_slice(&(text.len() as u64).to_be_bytes());
        bytes.extend_from_slice(text.as_bytes());
    }
    sha256(&bytes)
}

impl Tx<'_> {
    /// Appends a row and returns its number.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn append_audit(&self, entry: &AuditEntry, sha256: Sha256) -> Result<i64, StoreError> {
        let last: Option<(i64, [u8; 32])> = self
            .sql
            .prepare_cached("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1")?
            .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let (last_seq, previous) = last.unwrap_or((0, [0; 32]));
        let seq = last_seq + 1;
        self.sql
            .prepare_cached(
                "INSERT INTO audit (seq, at_us, tenant, actor, source, action, object, outcome, \
                 detail, hash) VALUES (:seq, :at_us, :tenant, :actor, :source, :action, :object, \
                 :outcome, :detail, :hash)",
            )?
            .execute(named_params! {
                ":seq": seq, ":at_us": entry.at_us, ":tenant": entry.tenant,
                ":actor": entry.actor, ":source": entry.source, ":action": entry.action,
                ":object": entry.object, ":outcome": entry.outcome, ":detail": entry.detail,
                ":hash": row_hash(&previous, seq, entry, sha256),
            })?;
        Ok(seq)
    }

    /// A tenant's rows, newest first.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn audit(&self, filter: &AuditFilter) -> Result<Vec<AuditRow>, StoreError> {
        let mut statement = self.sql.prepare_cached(&format!(
            "SELECT {COLUMNS} FROM audit WHERE tenant = :tenant \
             AND (:before IS NULL OR seq < :before) ORDER BY seq DESC LIMIT :limit"
        ))?;
        let rows = statement.query_map(
            named_params! {
                ":tenant": filter.tenant, ":before": filter.before, ":limit": filter.limit,
            },
            audit_row,
        )?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Walks the whole log from its first row.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn verify_audit_chain(&self, sha256: Sha256) -> Result<Chain, StoreError> {
        let mut statement = self
            .sql
            .prepare(&format!("SELECT {COLUMNS} FROM audit ORDER BY seq"))?;
        let mut previous = [0; 32];
        let mut good = 0u64;
        for row in statement.query_map([], audit_row)? {
            let row = row?;
            let follows = u64::try_from(row.seq) == Ok(good + 1);
            if !follows || row_hash(&previous, row.seq, &row.entry, sha256) != row.hash {
                return Ok(Chain {
                    good,
                    broken_at: Some(row.seq),
                });
            }
            previous = row.hash;
            good += 1;
        }
        Ok(Chain {
            good,
            broken_at: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Store;

    /// Not SHA-256, but depends on every byte and its place: enough to show the chaining.
    fn mixed(bytes: &[u8]) -> [u8; 32] {
        let mut state = [0u8; 32];
        for (index, byte) in bytes.iter().enumerate() {
            let slot = index % 32;
            state[slot] =
                state[slot].rotate_left(3) ^ byte.wrapping_mul(31) ^ state[(slot + 7) % 32];
        }
        state
    }

    fn entry(action: &str) -> AuditEntry {
        AuditEntry {
            tenant: "t".to_owned(),
            action: action.to_owned(),
            outcome: "ok".to_owned(),
            ..AuditEntry::default()
        }
    }

    async fn with_rows() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("s.db")).unwrap();
        store
            .write(|tx| {
                for action in ["a", "b", "c", "d"] {
                    tx.append_audit(&entry(action), mixed)?;
                }
                Ok(())
            })
            .await
            .unwrap();
        (dir, store)
    }

    #[tokio::test]
    async fn an_untouched_chain_is_good() {
        let (_dir, store) = with_rows().await;
        let chain = store.read(|tx| tx.verify_audit_chain(mixed)).await.unwrap();
        assert_eq!(
            chain,
            Chain {
                good: 4,
                broken_at: None
            }
        );
        let filter = AuditFilter {
            tenant: "t".to_owned(),
            before: Some(4),
            limit: 2,
        };
        let rows = store.read(move |tx| tx.audit(&filter)).await.unwrap();
        assert_eq!(rows.iter().map(|r| r.seq).collect::<Vec<_>>(), [3, 2]);
    }

    #[tokio::test]
    async fn a_changed_or_missing_row_is_found() {
        for (statement, at) in [
            ("UPDATE audit SET detail = 'x' WHERE seq = 2", 2),
            (
                "UPDATE audit SET actor = action, action = '' WHERE seq = 3",
                3,
            ),
            ("DELETE FROM audit WHERE seq = 2", 3),
            ("DELETE FROM audit WHERE seq = 1", 2),
        ] {
            let (_dir, store) = with_rows().await;
            store
                .write(move |tx| Ok(tx.sql.execute_batch(statement)?))
                .await
                .unwrap();
            let chain = store.read(|tx| tx.verify_audit_chain(mixed)).await.unwrap();
            assert_eq!(chain.broken_at, Some(at), "{statement}");
        }
    }
}
