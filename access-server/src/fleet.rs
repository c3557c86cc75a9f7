//! What is known of the region's hosts right now, so that a new uplink can be told the whole of it:
//! presence, containers, newest metrics. In memory only; agents say it again when they reconnect.
//!
//! It is kept encoded, as it is told on: the structures take three times as much, for each of tens of
//! thousands of hosts, and nobody here looks into them but to change a host's state.

use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::{Mutex, PoisonError};

use fairlead_protocol::{
    AgentVersions, Container, EngineFacts, HostId, HostInventory, HostPresence, InventoryPart,
    Message, MetricsPart, UplinkUp, uplink_up,
};

/// Containers in one message to the controller: about 200 KiB at most.
const CONTAINERS_PER_PART: usize = 128;

/// Containers of one host: what a hostile one says must not fill the memory.
const CONTAINERS_PER_HOST_MAX: usize = 5000;
/// What these may weigh together; one with many labels is about 1 KiB.
const CONTAINERS_BYTES_MAX: usize = 8 << 20;

/// A message, encoded; empty when there is none.
struct Packed<M> {
    bytes: Box<[u8]>,
    message: PhantomData<fn() -> M>,
}

impl<M> Default for Packed<M> {
    fn default() -> Self {
        Self {
            bytes: Box::default(),
            message: PhantomData,
        }
    }
}

impl<M: Message + Default> Packed<M> {
    fn of(message: &M) -> Self {
        Self {
            bytes: message.encode_to_vec().into(),
            message: PhantomData,
        }
    }

    fn get(&self) -> Option<M> {
        // These are our own bytes: they always decode.
        (!self.bytes.is_empty())
            .then(|| M::decode(&self.bytes[..]).ok())
            .flatten()
    }
}

struct KnownContainer {
    id: Box<str>,
    rest: Packed<Container>,
}

impl KnownContainer {
    fn bytes(&self) -> usize {
        self.id.len() + self.rest.bytes.len()
    }
}

#[derive(Default)]
struct Known {
    presence: Packed<HostPresence>,
    /// By id.
    containers: Vec<KnownContainer>,
    containers_bytes: usize,
    generation: u64,
    as_of_us: i64,
    engine: Packed<EngineFacts>,
    metrics: Packed<MetricsPart>,
}

impl Known {
    /// The picture that comes begins anew.
    fn empty(&mut self) {
        self.containers = Vec::new();
        self.containers_bytes = 0;
    }

    fn take_away(&mut self, at: usize) {
        self.containers_bytes -= self.containers.remove(at).bytes();
    }

    fn put(&mut self, at: Result<usize, usize>, newest: KnownContainer) {
        self.containers_bytes += newest.bytes();
        match at {
            Ok(at) => {
                self.containers_bytes -= self.containers[at].bytes();
                self.containers[at] = newest;
            }
            Err(at) => self.containers.insert(at, newest),
        }
    }

    fn find(&self, id: &str) -> Result<usize, usize> {
        self.containers
            .binary_search_by(|container| (*container.id).cmp(id))
    }
}

/// All hosts that have been heard since the start.
#[derive(Default)]
pub struct Fleet {
    // Boxed: a map of tens of thousands has up to twice as many places as entries.
    known: Mutex<HashMap<HostId, Box<Known>>>,
}

impl Fleet {
    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<HostId, Box<Known>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A host came.
    pub fn presence(&self, host: HostId, presence: &HostPresence) {
        self.known().entry(host).or_default().presence = Packed::of(presence);
    }

    /// Since when a host has been online, if it is.
    pub fn online_since_us(&self, host: HostId) -> Option<i64> {
        let presence = self.known().get(&host)?.presence.get()?;
        (presence.state == "online").then_some(presence.since_us)
    }

    /// A host's state changed, since then if it is said; its presence now, if it is known at all.
    pub fn state(
        &self,
        host: HostId,
        state: &str,
        reason: &str,
        since_us: Option<i64>,
    ) -> Option<HostPresence> {
        let mut all = self.known();
        let known = all.get_mut(&host)?;
        let mut presence = known.presence.get()?;
        state.clone_into(&mut presence.state);
        reason.clone_into(&mut presence.reason);
        presence.since_us = since_us.unwrap_or(presence.since_us);
        known.presence = Packed::of(&presence);
        Some(presence)
    }

    /// What its supervisor says of versions has changed; its presence now, if it is known at all.
    pub fn versions(&self, host: HostId, versions: AgentVersions) -> Option<HostPresence> {
        let mut all = self.known();
        let known = all.get_mut(&host)?;
        let mut presence = known.presence.get()?;
        presence.facts.get_or_insert_default().versions = Some(versions);
        known.presence = Packed::of(&presence);
        Some(presence)
    }

    /// Part of a host's inventory; `false` when it has more of containers than a host may have.
    pub fn inventory(&self, host: HostId, part: &InventoryPart) -> bool {
        let mut all = self.known();
        let known = all.entry(host).or_default();
        if part.full {
            known.empty();
        }
        for id in &part.removed {
            if let Ok(at) = known.find(id) {
                known.take_away(at);
            }
        }
        for container in &part.upserts {
            let newest = KnownContainer {
                id: container.id.as_str().into(),
                rest: Packed::of(container),
            };
            known.put(known.find(&container.id), newest);
            if known.containers.len() > CONTAINERS_PER_HOST_MAX
                || known.containers_bytes > CONTAINERS_BYTES_MAX
            {
                // Nothing of it is kept: who comes again must not begin where it was cut.
                known.empty();
                return false;
            }
        }
        known.containers.shrink_to_fit();
        known.generation = part.generation;
        known.as_of_us = part.as_of_us;
        if let Some(engine) = &part.engine {
            known.engine = Packed::of(engine);
        }
        true
    }

    /// A round of measurements (or its first part).
    pub fn metrics(&self, host: HostId, part: &MetricsPart) {
        if part.host.is_some() {
            self.known().entry(host).or_default().metrics = Packed::of(part);
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
            let Some(presence) = known.presence.get() else {
                continue;
            };
            push(&mut messages, uplink_up::Kind::Presence(presence));
            let engine = known.engine.get();
            if engine.is_some() || !known.containers.is_empty() {
                for part in parts(known, engine) {
                    let inventory = HostInventory {
                        host: host.to_wire(),
                        part: Some(part),
                    };
                    push(&mut messages, uplink_up::Kind::Inventory(inventory));
                }
            }
            if let Some(metrics) = known.metrics.get() {
                let metrics = fairlead_protocol::HostMetrics {
                    host: host.to_wire(),
                    part: Some(metrics),
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

fn parts(known: &Known, engine: Option<EngineFacts>) -> Vec<InventoryPart> {
    let all: Vec<Container> = known
        .containers
        .iter()
        .filter_map(|container| container.rest.get())
        .collect();
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
            engine: engine.clone().filter(|_| index == 0),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(id: &str, state: &str) -> Container {
        Container {
            id: id.to_owned(),
            state: state.to_owned(),
            ..Container::default()
        }
    }

    fn told(fleet: &Fleet) -> Vec<(String, String)> {
        let containers = |message: UplinkUp| match message.kind {
            Some(uplink_up::Kind::Inventory(said)) => said.part.unwrap_or_default().upserts,
            _ => Vec::new(),
        };
        let all = fleet.whole().into_iter().flat_map(containers);
        all.map(|container| (container.id, container.state))
            .collect()
    }

    #[test]
    fn a_host_that_has_too_much_is_refused_and_leaves_nothing_behind() {
        let (fleet, host) = (Fleet::default(), HostId::from_bytes([1; 16]));
        let part = |number: usize, bytes: usize| InventoryPart {
            upserts: vec![Container {
                image: "x".repeat(bytes),
                ..container(&number.to_string(), "running")
            }],
            ..InventoryPart::default()
        };
        let taken = |bytes| (0..100_000).find(|n| !fleet.inventory(host, &part(*n, bytes)));
        for _ in 0..2 {
            assert_eq!(taken(10), Some(CONTAINERS_PER_HOST_MAX));
            let by_weight = taken(8_000).unwrap();
            assert!((1_000..1_100).contains(&by_weight), "{by_weight}");
        }
        // The same ones again and again are no more.
        for _ in 0..3 {
            assert!((0..1_000).all(|n| fleet.inventory(host, &part(n, 8_000))));
        }
    }

    #[test]
    fn what_is_told_is_what_was_said_last() {
        let (fleet, host) = (Fleet::default(), HostId::from_bytes([1; 16]));
        let part = InventoryPart {
            full: true,
            upserts: vec![container("b", "running"), container("a", "exited")],
            ..InventoryPart::default()
        };
        assert!(fleet.inventory(host, &part));
        assert!(
            told(&fleet).is_empty(),
            "a host that never came is not told"
        );
        let presence = HostPresence {
            state: "online".to_owned(),
            since_us: 7,
            ..HostPresence::default()
        };
        fleet.presence(host, &presence);
        let part = InventoryPart {
            upserts: vec![container("a", "running"), container("c", "dead")],
            removed: vec!["b".to_owned(), "unknown".to_owned()],
            ..InventoryPart::default()
        };
        assert!(fleet.inventory(host, &part));
        let pair = |id: &str, state: &str| (id.to_owned(), state.to_owned());
        assert_eq!(told(&fleet), [pair("a", "running"), pair("c", "dead")]);

        let suspect = fleet.state(host, "suspect", "silent", None).unwrap();
        assert_eq!((suspect.state.as_str(), suspect.since_us), ("suspect", 7));
        let gone = fleet.state(host, "offline", "", Some(9)).unwrap();
        assert_eq!((gone.state.as_str(), gone.since_us), ("offline", 9));
        fleet.forget(host);
        assert!(fleet.state(host, "online", "", None).is_none());
        assert_eq!(fleet.whole().len(), 1, "only the end of the picture");
    }
}
