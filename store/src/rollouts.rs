//! Rollouts of versions of the agent. What is in one its owner knows: here it is text.

use rusqlite::{OptionalExtension, Row};

use crate::{StoreError, Tx};

/// A rollout.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RolloutRow {
    /// Its id.
    pub id: String,
    /// Its tenant.
    pub tenant: String,
    /// When it was made.
    pub created_us: i64,
    /// Whether it has no end yet.
    pub open: bool,
    /// Who asked for it, in words.
    pub asked_by: String,
    /// With which API token.
    pub token_id: String,
    /// Where it is, as JSON.
    pub payload: String,
}

fn rollout_row(row: &Row<'_>) -> rusqlite::Result<RolloutRow> {
    Ok(RolloutRow {
        id: row.get(0)?,
        tenant: row.get(1)?,
        created_us: row.get(2)?,
        open: row.get(3)?,
        asked_by: row.get(4)?,
        token_id: row.get(5)?,
        payload: row.get(6)?,
    })
}

const COLUMNS: &str = "id, tenant, created_us, open, asked_by, token_id, payload";

impl Tx<'_> {
    /// Keeps a rollout as it is now.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn set_rollout(&self, row: &RolloutRow) -> Result<(), StoreError> {
        self.sql
            .prepare_cached(
                "INSERT OR REPLACE INTO rollouts (id, tenant, created_us, open, asked_by, token_id, payload) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?
            .execute((
                &row.id,
                &row.tenant,
                row.created_us,
                row.open,
                &row.asked_by,
                &row.token_id,
                &row.payload,
            ))?;
        Ok(())
    }

    /// The rollout of that id.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn rollout(&self, id: &str) -> Result<Option<RolloutRow>, StoreError> {
        Ok(self
            .sql
            .prepare_cached(&format!("SELECT {COLUMNS} FROM rollouts WHERE id = ?1"))?
            .query_row([id], rollout_row)
            .optional()?)
    }

    /// Rollouts, newest first; only those without an end where that is asked.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn rollouts(&self, only_open: bool, limit: u32) -> Result<Vec<RolloutRow>, StoreError> {
        let which = if only_open { "WHERE open = 1" } else { "" };
        let mut statement = self.sql.prepare_cached(&format!(
            "SELECT {COLUMNS} FROM rollouts {which} ORDER BY created_us DESC LIMIT ?1"
        ))?;
        let rows = statement.query_map([limit], rollout_row)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Forgets rollouts that have ended and were made before then.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn forget_rollouts(&self, before_us: i64) -> Result<(), StoreError> {
        self.sql
            .prepare_cached("DELETE FROM rollouts WHERE open = 0 AND created_us < ?1")?
            .execute([before_us])?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Store;

    #[tokio::test]
    async fn rollouts_are_kept_listed_and_forgotten_when_they_have_ended() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("controller.db")).unwrap();
        let row = |id: &str, created_us, open| RolloutRow {
            id: id.to_owned(),
            created_us,
            open,
            payload: "{}".to_owned(),
            ..RolloutRow::default()
        };
        let rows = [row("a", 1, false), row("b", 2, true), row("c", 3, true)];
        let all = rows.clone();
        store
            .write(move |tx| all.iter().try_for_each(|row| tx.set_rollout(row)))
            .await
            .unwrap();
        let ids = |rows: Vec<RolloutRow>| rows.into_iter().map(|row| row.id).collect::<String>();
        assert_eq!(ids(store.look(|tx| tx.rollouts(true, 9)).unwrap()), "cb");
        assert_eq!(ids(store.look(|tx| tx.rollouts(false, 2)).unwrap()), "cb");
        assert_eq!(
            store.look(|tx| tx.rollout("b")).unwrap().as_ref(),
            Some(&rows[1])
        );
        store.write(|tx| tx.forget_rollouts(3)).await.unwrap();
        assert_eq!(ids(store.look(|tx| tx.rollouts(false, 9)).unwrap()), "cb");
    }
}
