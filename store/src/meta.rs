//! Single values: installation id, revocation version, and the like.

use rusqlite::OptionalExtension;

use crate::{StoreError, Tx};

impl Tx<'_> {
    /// The value of that key.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn meta(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self
            .sql
            .prepare_cached("SELECT value FROM meta WHERE key = ?1")?
            .query_row([key], |row| row.get(0))
            .optional()?)
    }

    /// Sets (or replaces) the value of that key.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn set_meta(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        self.sql
            .prepare_cached("INSERT OR REPLACE INTO meta (key, value) VALUES (?1, ?2)")?
            .execute((key, value))?;
        Ok(())
    }

    /// Removes a key; whether it was there. Makes "exactly one wins" of concurrent claims.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn take_meta(&self, key: &str) -> Result<bool, StoreError> {
        Ok(self.sql.execute("DELETE FROM meta WHERE key = ?1", [key])? == 1)
    }
}
