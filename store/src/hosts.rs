//! Hosts: identity, certificate counter, epoch, revocation, last known facts and containers.

use std::collections::BTreeMap;

use fairlead_protocol::{HostId, InventoryPart, Message};
use rusqlite::{OptionalExtension, Row, named_params};

use crate::{StoreError, Tx};

/// A host.
#[derive(Debug, Clone, Default)]
pub struct HostRow {
    /// Its id (absent only in a default row).
    pub id: Option<HostId>,
    /// Its name.
    pub name: String,
    /// Its tenant.
    pub tenant: String,
    /// Its region.
    pub region: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// SHA-256 of the public key it enrolled with.
    pub key_hash: Vec<u8>,
    /// X25519 public key for sealed secrets.
    pub sealing_key: Vec<u8>,
    /// The join token that let it in.
    pub token_id: String,
    /// When.
    pub enrolled_us: i64,
    /// Highest epoch seen.
    pub epoch: u64,
    /// How many certificates it has had.
    pub certificate_counter: u64,
    /// SHA-256 of the public key in its newest certificate.
    pub certificate_key_hash: Vec<u8>,
    /// Encoded `RenewReply`: the newest answer.
    pub certificate: Vec<u8>,
    /// End of its newest certificate.
    pub certificate_not_after_us: i64,
    /// Why it is held; empty: it is not.
    pub held: String,
    /// When it was revoked; 0: it is not.
    pub revoked_us: i64,
    /// When it was last connected.
    pub last_seen_us: i64,
    /// Encoded `HostFacts`.
    pub facts: Vec<u8>,
}

/// What stands in place of a join token's id at a host that came as a clone of another. No token's id has a
/// colon.
#[must_use]
pub fn clone_token(of: HostId) -> String {
    format!("clone:{of}")
}

const COLUMNS: &str = "id, name, tenant, region, labels, key_hash, sealing_key, token_id, \
     enrolled_us, epoch, certificate_counter, certificate_key_hash, certificate, \
     certificate_not_after_us, held, revoked_us, last_seen_us, facts";

fn host_row(row: &Row<'_>) -> rusqlite::Result<HostRow> {
    let labels: String = row.get(4)?;
    Ok(HostRow {
        id: Some(HostId::from_bytes(row.get(0)?)),
        name: row.get(1)?,
        tenant: row.get(2)?,
        region: row.get(3)?,
        labels: serde_json::from_str(&labels).unwrap_or_default(),
        key_hash: row.get(5)?,
        sealing_key: row.get(6)?,
        token_id: row.get(7)?,
        enrolled_us: row.get(8)?,
        epoch: row.get(9)?,
        certificate_counter: row.get(10)?,
        certificate_key_hash: row.get(11)?,
        certificate: row.get(12)?,
        certificate_not_after_us: row.get(13)?,
        held: row.get(14)?,
        revoked_us: row.get(15)?,
        last_seen_us: row.get(16)?,
        facts: row.get(17)?,
    })
}

impl Tx<'_> {
    /// Takes a host in, or does nothing when its id is known. The name must be free (see
    /// [`Tx::free_host_name`]).
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn insert_host(&self, id: HostId, host: &HostRow) -> Result<(), StoreError> {
        self.sql
            .prepare_cached(
                "INSERT INTO hosts (id, name, tenant, region, labels, key_hash, sealing_key, \
                 token_id, enrolled_us) VALUES (:id, :name, :tenant, :region, :labels, :key_hash, \
                 :sealing_key, :token_id, :enrolled_us) ON CONFLICT (id) DO NOTHING",
            )?
            .execute(named_params! {
                ":id": id.as_bytes(), ":name": host.name, ":tenant": host.tenant,
                ":region": host.region,
                ":labels": serde_json::to_string(&host.labels).unwrap_or_default(),
                ":key_hash": host.key_hash, ":sealing_key": host.sealing_key,
                ":token_id": host.token_id, ":enrolled_us": host.enrolled_us,
            })?;
        Ok(())
    }

    /// `wanted`, or `wanted-2`, `wanted-3`, … whichever is the first that no living host has.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn free_host_name(&self, tenant: &str, wanted: &str) -> Result<String, StoreError> {
        let mut taken = self.sql.prepare_cached(
            "SELECT 1 FROM hosts WHERE tenant = ?1 AND name = ?2 AND revoked_us = 0",
        )?;
        let mut name = wanted.to_owned();
        let mut number = 1u64;
        while taken.exists((tenant, &name))? {
            number += 1;
            name = format!("{wanted}-{number}");
        }
        Ok(name)
    }

    /// The host of that id, revoked ones included.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn host(&self, id: HostId) -> Result<Option<HostRow>, StoreError> {
        Ok(self
            .sql
            .prepare_cached(&format!("SELECT {COLUMNS} FROM hosts WHERE id = ?1"))?
            .query_row([id.as_bytes()], host_row)
            .optional()?)
    }

    /// The living host of that name.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn host_named(&self, tenant: &str, name: &str) -> Result<Option<HostRow>, StoreError> {
        Ok(self
            .sql
            .prepare_cached(&format!(
                "SELECT {COLUMNS} FROM hosts WHERE tenant = ?1 AND name = ?2 AND revoked_us = 0"
            ))?
            .query_row((tenant, name), host_row)
            .optional()?)
    }

    /// The living host that enrolled with that key and token: asking twice gives one host.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn host_by_key(
        &self,
        key_hash: &[u8],
        token_id: &str,
    ) -> Result<Option<HostRow>, StoreError> {
        Ok(self
            .sql
            .query_row(
                &format!(
                    "SELECT {COLUMNS} FROM hosts WHERE key_hash = ?1 AND token_id = ?2 \
                     AND revoked_us = 0"
                ),
                (key_hash, token_id),
                host_row,
            )
            .optional()?)
    }

    /// How many hosts were let in by that token (or as clones, see [`clone_token`]) that are held still, or
    /// came after that moment. Revoked ones count among the latter.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn hosts_waiting(&self, token_id: &str, since_us: i64) -> Result<u64, StoreError> {
        Ok(self.sql.query_row(
            "SELECT count(*) FROM hosts WHERE token_id = ?1 \
             AND (enrolled_us > ?2 OR (held <> '' AND revoked_us = 0))",
            (token_id, since_us),
            |row| row.get(0),
        )?)
    }

    /// All hosts by name, revoked ones last; of one tenant or (`None`) of all.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn hosts(&self, tenant: Option<&str>) -> Result<Vec<HostRow>, StoreError> {
        let mut statement = self.sql.prepare_cached(&format!(
            "SELECT {COLUMNS} FROM hosts WHERE ?1 IS NULL OR tenant = ?1 \
             ORDER BY revoked_us > 0, name"
        ))?;
        let rows = statement.query_map([tenant], host_row)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// A certificate was issued: its counter, key, and the answer that carried it.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn host_certified(
        &self,
        id: HostId,
        counter: u64,
        key_hash: &[u8],
        answer: &[u8],
        not_after_us: i64,
    ) -> Result<(), StoreError> {
        self.sql.execute(
            "UPDATE hosts SET certificate_counter = max(certificate_counter, ?2), \
             certificate_key_hash = ?3, certificate = ?4, certificate_not_after_us = ?5 \
             WHERE id = ?1",
            (id.as_bytes(), counter, key_hash, answer, not_after_us),
        )?;
        Ok(())
    }

    /// The host was connected at that time, with that epoch and (when not empty) those facts.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn host_seen(
        &self,
        id: HostId,
        at_us: i64,
        epoch: u64,
        facts: &[u8],
    ) -> Result<(), StoreError> {
        self.sql
            .prepare_cached(
                "UPDATE hosts SET last_seen_us = max(last_seen_us, ?2), epoch = max(epoch, ?3), \
                 facts = CASE WHEN ?4 = x'' THEN facts ELSE ?4 END WHERE id = ?1",
            )?
            .execute((id.as_bytes(), at_us, epoch, facts))?;
        Ok(())
    }

    /// Holds a host (or, with an empty reason, lets it go on).
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn hold_host(&self, id: HostId, reason: &str) -> Result<(), StoreError> {
        self.sql.execute(
            "UPDATE hosts SET held = ?2 WHERE id = ?1",
            (id.as_bytes(), reason),
        )?;
        Ok(())
    }

    /// An admin accepts that epoch and counter went back: the counter that the host quotes next is
    /// adopted, and its next hello with a lower epoch is let in (see [`Tx::use_approval`]).
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn approve_host(&self, id: HostId) -> Result<(), StoreError> {
        self.sql.execute(
            "UPDATE hosts SET held = '', certificate_counter = 0, certificate_key_hash = x'' \
             WHERE id = ?1",
            [id.as_bytes()],
        )?;
        self.set_meta(&format!("approved/{id}"), &[])
    }

    /// Uses up an approval; whether there was one.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn use_approval(&self, id: HostId) -> Result<bool, StoreError> {
        self.take_meta(&format!("approved/{id}"))
    }

    /// Ends a host's identity; `false` when it was not known or had ended before.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn revoke_host(&self, id: HostId, at_us: i64) -> Result<bool, StoreError> {
        Ok(self.sql.execute(
            "UPDATE hosts SET revoked_us = ?2 WHERE id = ?1 AND revoked_us = 0",
            (id.as_bytes(), at_us),
        )? == 1)
    }

    /// All revoked hosts.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn revoked_hosts(&self) -> Result<Vec<HostId>, StoreError> {
        let mut statement = self
            .sql
            .prepare("SELECT id FROM hosts WHERE revoked_us > 0")?;
        let rows = statement.query_map([], |row| row.get(0).map(HostId::from_bytes))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Ends one certificate.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn revoke_serial(&self, serial: &str, at_us: i64) -> Result<(), StoreError> {
        self.sql.execute(
            "INSERT INTO revoked_serials (serial, revoked_us) VALUES (?1, ?2) \
             ON CONFLICT DO NOTHING",
            (serial, at_us),
        )?;
        Ok(())
    }

    /// All revoked certificates.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn revoked_serials(&self) -> Result<Vec<String>, StoreError> {
        let mut statement = self.sql.prepare("SELECT serial FROM revoked_serials")?;
        let rows = statement.query_map([], |row| row.get(0))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Keeps the newest picture of a host's containers.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn set_picture(&self, id: HostId, picture: &InventoryPart) -> Result<(), StoreError> {
        self.sql.execute(
            "INSERT OR REPLACE INTO pictures (host, as_of_us, payload) VALUES (?1, ?2, ?3)",
            (id.as_bytes(), picture.as_of_us, picture.encode_to_vec()),
        )?;
        Ok(())
    }

    /// The pictures that were kept.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn pictures(&self) -> Result<Vec<(HostId, InventoryPart)>, StoreError> {
        let mut statement = self.sql.prepare("SELECT host, payload FROM pictures")?;
        let rows = statement.query_map([], |row| {
            Ok((HostId::from_bytes(row.get(0)?), row.get::<_, Vec<u8>>(1)?))
        })?;
        let mut pictures = Vec::new();
        for row in rows {
            let (host, payload) = row?;
            // A picture that cannot be read is only a picture: the host sends a new one.
            if let Ok(part) = InventoryPart::decode(&payload[..]) {
                pictures.push((host, part));
            }
        }
        Ok(pictures)
    }
}
