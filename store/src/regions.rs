//! Regions and what is known of their access servers.

use rusqlite::{OptionalExtension, Row};

use crate::{StoreError, Tx};

/// A region.
#[derive(Debug, Clone, Default)]
pub struct RegionRow {
    /// Its name.
    pub name: String,
    /// Its tenant.
    pub tenant: String,
    /// When it was made.
    pub created_us: i64,
    /// Its access server's name; empty: none has joined.
    pub access_server: String,
    /// Where agents dial.
    pub addresses: Vec<String>,
    /// Its own https address.
    pub url: String,
    /// When its access server was last connected.
    pub last_seen_us: i64,
    /// The access server's version.
    pub version: String,
}

fn region_row(row: &Row<'_>) -> rusqlite::Result<RegionRow> {
    let addresses: String = row.get(4)?;
    Ok(RegionRow {
        name: row.get(0)?,
        tenant: row.get(1)?,
        created_us: row.get(2)?,
        access_server: row.get(3)?,
        addresses: serde_json::from_str(&addresses).unwrap_or_default(),
        url: row.get(5)?,
        last_seen_us: row.get(6)?,
        version: row.get(7)?,
    })
}

const COLUMNS: &str =
    "name, tenant, created_us, access_server, addresses, url, last_seen_us, version";

impl Tx<'_> {
    /// Makes a region; `false` when there is one of that name.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn insert_region(
        &self,
        name: &str,
        tenant: &str,
        created_us: i64,
    ) -> Result<bool, StoreError> {
        Ok(self.sql.execute(
            "INSERT INTO regions (name, tenant, created_us) VALUES (?1, ?2, ?3) \
             ON CONFLICT DO NOTHING",
            (name, tenant, created_us),
        )? == 1)
    }

    /// The region of that name.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn region(&self, name: &str) -> Result<Option<RegionRow>, StoreError> {
        Ok(self
            .sql
            .prepare_cached(&format!("SELECT {COLUMNS} FROM regions WHERE name = ?1"))?
            .query_row([name], region_row)
            .optional()?)
    }

    /// A tenant's regions by name.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn regions(&self, tenant: &str) -> Result<Vec<RegionRow>, StoreError> {
        let mut statement = self.sql.prepare_cached(&format!(
            "SELECT {COLUMNS} FROM regions WHERE tenant = ?1 ORDER BY name"
        ))?;
        let rows = statement.query_map([tenant], region_row)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// An access server has joined the region.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn region_joined(
        &self,
        name: &str,
        access_server: &str,
        addresses: &[String],
        url: &str,
    ) -> Result<(), StoreError> {
        self.sql.execute(
            "UPDATE regions SET access_server = ?2, addresses = ?3, url = ?4 WHERE name = ?1",
            (
                name,
                access_server,
                serde_json::to_string(addresses).unwrap_or_default(),
                url,
            ),
        )?;
        Ok(())
    }

    /// The region's access server is (or was, just now) connected.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn region_seen(&self, name: &str, at_us: i64, version: &str) -> Result<(), StoreError> {
        self.sql.execute(
            "UPDATE regions SET last_seen_us = ?2, version = ?3 WHERE name = ?1",
            (name, at_us, version),
        )?;
        Ok(())
    }
}
