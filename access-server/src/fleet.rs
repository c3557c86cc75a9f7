//! What is known of the region's hosts right now, so that a new uplink can be told the whole of it:
//! presence, containers, newest metrics. In memory only; agents say it again when they reconnect.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

use fairlead_protocol::{
    Container, EngineFacts, HostId, HostInventory, HostPresence, InventoryPart, MetricsPart,
    UplinkUp, uplink_up,
};

/// Containers in one message to the controller: about 200 KiB at most.
const CONTAINERS_PER_PART: usize = 128;

/// Containers of one host: what a hostile one says must not fill the memory.
const CONTAINERS_PER_HOST_MAX: usize = 5000;

#[derive(Default)]
struct Known {
    presence: HostPresence,
    containers: BTreeMap<String, Container>,
    generation: u64,
    as_of_us: i64,
    engine: Option<EngineFacts>,
    metrics: Option<MetricsPart>,
}

/// All hosts that have been heard since the start.
#[derive(Default)]
pub struct Fleet {
    known: Mutex<HashMap<HostId, Known>>,
}

impl Fleet {
    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<HostId, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A host came, went or changed.
    pub fn presence(&self, host: HostId, presence: HostPresence) {
        self.known().entry(host).or_default().presence = presence;
    }

    /// Part of a host's inventory; `false` when it has more containers than a host may have.
    pub fn inventory(&self, host: HostId, part: &InventoryPart) -> bool {
        let mut all = self.known();
        let known = all.entry(host).or_default();
        if part.full {
            known.containers.clear();
        }
        for id in &part.removed {
            known.containers.remove(id);
        }
        for container in &part.upserts {
            known
                .containers
                .insert(container.id.clone(), container.clone());
        }
        known.generation = part.generation;
        known.as_of_us = part.as_of_us;
        if part.engine.is_some() {
            known.engine.clone_from(&part.engine);
        }
        known.containers.len() <= CONTAINERS_PER_HOST_MAX
    }

    /// A round of measurements (or its first part).
    pub fn metrics(&self, host: HostId, part: &MetricsPart) {
        if part.host.is_some() {
            self.known().entry(host).or_default().metrics = Some(part.clone());
        }
    }

    /// The host's identity has ended.
    pub fn forget(&self, host: HostId) {
        self.known().remove(&host);
    }

    /// Everything, as messages for a new uplink.
    pub fn whole(&self) -> Vec<UplinkUp> {
        let mut messages = Vec::new();
        for (host, known) in self.known().iter() {
            if known.presence.state.is_empty() {
                continue;
            }
            push(
                &mut messages,
                uplink_up::Kind::Presence(known.presence.clone()),
            );
            if known.engine.is_some() || !known.containers.is_empty() {
                for part in parts(known) {
                    let inventory = HostInventory {
                        host: host.to_wire(),
                        part: Some(part),
                    };
                    push(&mut messages, uplink_up::Kind::Inventory(inventory));
                }
            }
            if let Some(metrics) = &known.metrics {
                let metrics = fairlead_protocol::HostMetrics {
                    host: host.to_wire(),
                    part: Some(metrics.clone()),
                };
                push(&mut messages, uplink_up::Kind::Metrics(metrics));
            }
        }
        push(
            &mut messages,
            uplink_up::Kind::PresenceComplete(fairlead_protocol::PresenceComplete {}),
        );
        messages
    }
}

fn push(messages: &mut Vec<UplinkUp>, kind: uplink_up::Kind) {
    messages.push(UplinkUp { kind: Some(kind) });
}

fn parts(known: &Known) -> Vec<InventoryPart> {
    let all: Vec<Container> = known.containers.values().cloned().collect();
    let chunks: Vec<&[Container]> = if all.is_empty() {
        vec![&[]]
    } else {
        all.chunks(CONTAINERS_PER_PART).collect()
    };
    let last = chunks.len() - 1;
    chunks
        .iter()
        .enumerate()
        .map(|(index, chunk)| InventoryPart {
            generation: known.generation,
            full: index == 0,
            last: index == last,
            upserts: chunk.to_vec(),
            removed: Vec::new(),
            as_of_us: known.as_of_us,
            engine: known.engine.clone().filter(|_| index == 0),
        })
        .collect()
}
