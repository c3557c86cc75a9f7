//! Numbered messages between region and centre: outbox, and what was taken of the peer.
//!
//! Each side numbers its messages from 1 without gaps, keeps each until the peer has acknowledged
//! it, and takes each number of the peer once. `peer` is the region's name at the controller and
//! [`CENTRE`] in a region.

use fairlead_protocol::{Message, Numbered, numbered};
use rusqlite::OptionalExtension;

use crate::{StoreError, Tx};

/// The controller, as a region's peer.
pub const CENTRE: &str = "centre";

/// Both ends of an exchange with one peer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Watermarks {
    /// Highest number given to a message to the peer.
    pub sent: u64,
    /// Highest number of the peer that is on our disk.
    pub taken: u64,
    /// Lowest number that can still be sent; `sent + 1` when nothing waits.
    pub kept_from: u64,
}

impl Tx<'_> {
    /// Numbers a message and keeps it for the peer.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn send_later(&self, peer: &str, kind: numbered::Kind) -> Result<Numbered, StoreError> {
        let seq: u64 = self
            .sql
            .prepare_cached(
                "INSERT INTO exchange (peer, sent) VALUES (?1, 1) \
                 ON CONFLICT (peer) DO UPDATE SET sent = sent + 1 RETURNING sent",
            )?
            .query_row([peer], |row| row.get(0))?;
        let message = Numbered {
            seq,
            kind: Some(kind),
        };
        self.sql
            .prepare_cached("INSERT INTO outbox (peer, seq, payload) VALUES (?1, ?2, ?3)")?
            .execute((peer, seq, message.encode_to_vec()))?;
        Ok(message)
    }

    /// What waits for the peer from that number on, in order.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn waiting_for(
        &self,
        peer: &str,
        from: u64,
        limit: u32,
    ) -> Result<Vec<Numbered>, StoreError> {
        let mut statement = self.sql.prepare_cached(
            "SELECT payload FROM outbox WHERE peer = ?1 AND seq >= ?2 ORDER BY seq LIMIT ?3",
        )?;
        let rows = statement.query_map((peer, from, limit), |row| row.get::<_, Vec<u8>>(0))?;
        rows.map(|payload| {
            Numbered::decode(&payload?[..])
                .map_err(|error| StoreError::Statement(format!("outbox row: {error}")))
        })
        .collect()
    }

    /// How many messages wait for the peer.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn count_waiting_for(&self, peer: &str) -> Result<u64, StoreError> {
        Ok(self.sql.query_row(
            "SELECT count(*) FROM outbox WHERE peer = ?1",
            [peer],
            |row| row.get(0),
        )?)
    }

    /// The peer has everything up to that number on its disk: it is kept no longer.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn acknowledged_by(&self, peer: &str, up_to: u64) -> Result<(), StoreError> {
        self.sql
            .prepare_cached("DELETE FROM outbox WHERE peer = ?1 AND seq <= ?2")?
            .execute((peer, up_to))?;
        Ok(())
    }

    /// Takes the peer's message of that number, unless it was taken before (`false`). Messages are
    /// taken in order and without gaps: an acknowledgement of one means all before it.
    ///
    /// # Errors
    /// When it does not follow the last one, or the store cannot be written.
    pub fn take_from(&self, peer: &str, seq: u64) -> Result<bool, StoreError> {
        let taken: u64 = self
            .sql
            .prepare_cached("SELECT taken FROM exchange WHERE peer = ?1")?
            .query_row([peer], |row| row.get(0))
            .optional()?
            .unwrap_or(0);
        if seq <= taken {
            return Ok(false);
        }
        if seq != taken + 1 {
            return Err(StoreError::Gap {
                seq,
                expected: taken + 1,
            });
        }
        self.set_taken(peer, seq)?;
        Ok(true)
    }

    fn set_taken(&self, peer: &str, taken: u64) -> Result<(), StoreError> {
        self.sql
            .prepare_cached(
                "INSERT INTO exchange (peer, taken) VALUES (?1, ?2) \
                 ON CONFLICT (peer) DO UPDATE SET taken = excluded.taken",
            )?
            .execute((peer, taken))?;
        Ok(())
    }

    /// Brings both sides to one view at the beginning of a connection: `taken` is the highest of our
    /// numbers that the peer has, `kept_from` the lowest of its own that it can still send. What the
    /// peer has is kept no longer. Where one side's numbers went back (a restored backup), it goes on
    /// above what the other has; what the peer can no longer send is given up, and counted.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn meet(&self, peer: &str, taken: u64, kept_from: u64) -> Result<u64, StoreError> {
        if taken > self.watermarks(peer)?.sent {
            self.renumber_above(peer, taken)?;
        }
        self.acknowledged_by(peer, taken)?;
        let marks = self.watermarks(peer)?;
        let missing = kept_from.saturating_sub(marks.taken + 1);
        if missing > 0 {
            self.set_taken(peer, kept_from - 1)?;
        }
        Ok(missing)
    }

    /// Where the exchange with that peer stands.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn watermarks(&self, peer: &str) -> Result<Watermarks, StoreError> {
        let marks: Option<(u64, u64)> = self
            .sql
            .query_row(
                "SELECT sent, taken FROM exchange WHERE peer = ?1",
                [peer],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )
            .optional()?;
        let (sent, taken) = marks.unwrap_or_default();
        let kept_from: Option<u64> = self.sql.query_row(
            "SELECT min(seq) FROM outbox WHERE peer = ?1",
            [peer],
            |row| row.get(0),
        )?;
        Ok(Watermarks {
            sent,
            taken,
            kept_from: kept_from.unwrap_or(sent + 1),
        })
    }

    /// Our numbers went back: what waits was numbered anew since, with numbers that the peer has seen on
    /// other messages. It gets numbers above those; what the peer has had before it knows by its ids.
    fn renumber_above(&self, peer: &str, taken: u64) -> Result<(), StoreError> {
        let waiting = self.waiting_for(peer, 0, u32::MAX)?;
        self.sql
            .execute("DELETE FROM outbox WHERE peer = ?1", [peer])?;
        self.number_from(peer, taken)?;
        for message in waiting {
            if let Some(kind) = message.kind {
                self.send_later(peer, kind)?;
            }
        }
        Ok(())
    }

    fn number_from(&self, peer: &str, sent: u64) -> Result<(), StoreError> {
        self.sql.execute(
            "INSERT INTO exchange (peer, sent) VALUES (?1, ?2) \
             ON CONFLICT (peer) DO UPDATE SET sent = max(sent, excluded.sent)",
            (peer, sent),
        )?;
        Ok(())
    }
}
