//! Orders of the centre: into the ledger in their order, and on to the hosts. What has arrived together is
//! written together. Touches ledger, registry and router.

use fairlead_protocol::{
    Cancel, Command, CommandId, Deliver, HostId, HostRecord, Message, Numbered, Order, Stage,
    Stamp, State, numbered,
};
use fairlead_store::Enqueued;
use fairlead_store::commands::CommandRow;
use fairlead_store::exchange::CENTRE;

use super::{Uplink, UplinkEnd};
use crate::router;

impl Uplink {
    /// Takes orders in their order; returns once all are on disk.
    pub(super) async fn on_orders(&self, orders: Vec<Numbered>) -> Result<(), UplinkEnd> {
        let mut begun = Vec::new();
        let begin_all = async {
            for order in orders {
                match order.kind {
                    Some(numbered::Kind::Order(command)) => {
                        begun.extend(self.begin_command(order.seq, command).await?);
                    }
                    _ => {
                        // What is about a command finds it taken.
                        self.commands_taken(&mut begun).await?;
                        self.on_order(order).await?;
                    }
                }
            }
            Ok(())
        };
        let all_begun: Result<(), UplinkEnd> = begin_all.await;
        // Those that are in the ledger are not sent again, so they are seen to whatever became of the rest.
        self.commands_taken(&mut begun).await?;
        all_begun
    }

    async fn on_order(&self, order: Numbered) -> Result<(), UplinkEnd> {
        use numbered::Kind as K;
        let seq = order.seq;
        match order.kind {
            Some(K::Cancel(cancel)) => self.take_cancel(seq, cancel).await,
            Some(K::Revocations(list)) => {
                self.region.on_revocations(list).await?;
                self.take(seq).await
            }
            Some(K::CommandKeys(keys)) => {
                self.region.on_command_keys(keys).await?;
                self.take(seq).await
            }
            Some(K::Host(record)) => self.take_host(seq, record).await,
            // What flows the other way, or a kind of a later version: taken, so that it does not
            // come again, and said.
            _ => {
                tracing::warn!(seq, "an order of unknown kind");
                self.take(seq).await
            }
        }
    }

    async fn take(&self, seq: u64) -> Result<(), UplinkEnd> {
        self.region
            .ledger
            .write(move |tx| tx.take_from(CENTRE, seq))
            .await?;
        Ok(())
    }

    /// The ledger's sync and the agent's work go side by side: until the order is acknowledged the
    /// controller keeps it, and the agent carries out an id once, however often it comes.
    async fn begin_command(&self, seq: u64, order: Order) -> Result<Option<Begun>, UplinkEnd> {
        let region = &self.region;
        let received_us = region.clock.now_us();
        let Some(signed) = order.command.clone() else {
            return self.take(seq).await.map(|()| None);
        };
        let Some(mut row) = row_of(&order, &region.name, received_us) else {
            tracing::error!(seq, "an order that is not a command");
            return self.take(seq).await.map(|()| None);
        };
        let (id, host) = (row.id, row.host);
        // A connected agent may have it any moment: from then on only the agent ends it.
        let was_at = region.registry.get(host).map(|entry| entry.connection);
        let present = was_at.is_some();
        row.state = if present {
            State::Delivered
        } else {
            State::Queued
        };
        let taking = region
            .ledger
            .enqueue(move |tx| Ok(tx.take_from(CENTRE, seq)? && tx.insert_command(&row)?))
            .await?;
        region.under_way.taken(id, host, received_us);
        let deliver = Deliver {
            command: Some(signed),
            // Whose it is the router knows.
            epoch: 0,
            region_received_us: received_us,
        };
        let sent = present && router::deliver(&region.registry, host, deliver.clone());
        Ok(Some(Begun {
            taking,
            id,
            host,
            sent_at: was_at.filter(|_| sent),
            deliver,
        }))
    }

    async fn commands_taken(&self, begun: &mut Vec<Begun>) -> Result<(), UplinkEnd> {
        let region = &self.region;
        let mut failed = None;
        for command in begun.drain(..) {
            let Begun { id, host, .. } = command;
            match command.taking.outcome().await {
                Ok(true) => {}
                Ok(false) => continue,
                Err(error) => {
                    failed = failed.or(Some(error));
                    continue;
                }
            }
            region.under_way.stored(id, region.clock.now_us());
            region.counters.commands_taken.increment();
            let now_at = region.registry.get(host).map(|entry| entry.connection);
            if now_at.is_some() && now_at != command.sent_at {
                // It has connected meanwhile and may have read the ledger before this was in it, or there
                // was no room then.
                region.ledger.write(move |tx| tx.command_sent(id)).await?;
                router::deliver(&region.registry, host, command.deliver);
            }
        }
        failed.map_or(Ok(()), |error| Err(error.into()))
    }

    async fn take_cancel(&self, seq: u64, cancel: Cancel) -> Result<(), UplinkEnd> {
        let region = &self.region;
        let Ok(id) = CommandId::from_wire(&cancel.command) else {
            return self.take(seq).await;
        };
        let by = cancel.by.clone();
        let host = region
            .ledger
            .write(move |tx| {
                tx.take_from(CENTRE, seq)?;
                tx.withdraw_command(id, &by)?;
                Ok(tx.command(id)?.map(|row| row.host))
            })
            .await?;
        if let Some(host) = host {
            router::withdraw(&region.registry, host, cancel);
        }
        Ok(())
    }

    async fn take_host(&self, seq: u64, record: HostRecord) -> Result<(), UplinkEnd> {
        let Ok(host) = HostId::from_wire(&record.host) else {
            return self.take(seq).await;
        };
        let approved = record.approved;
        self.region
            .ledger
            .write(move |tx| {
                tx.take_from(CENTRE, seq)?;
                let held = tx.host(host)?.filter(|row| !row.held.is_empty());
                match held {
                    // Nothing of it can have gone back: it was held before it was ever let in.
                    Some(row) if approved && row.epoch == 0 => tx.hold_host(host, ""),
                    Some(_) if approved => tx.approve_host(host),
                    // An approval that nobody waits for would let the next older copy in.
                    _ => Ok(()),
                }
            })
            .await?;
        Ok(())
    }
}

/// A command that is on its way into the ledger, and perhaps to its host.
struct Begun {
    taking: Enqueued<bool>,
    id: CommandId,
    host: HostId,
    /// The connection that it was sent on.
    sent_at: Option<u64>,
    deliver: Deliver,
}

/// A command as the ledger keeps it.
fn row_of(order: &Order, region: &str, received_us: i64) -> Option<CommandRow> {
    let signed = order.command.as_ref()?;
    let command = Command::decode(&signed.command[..]).ok()?;
    let stamp = Stamp::at(Stage::RegionReceived, received_us);
    CommandRow::taken_in(&command, signed, region, stamp)
}
