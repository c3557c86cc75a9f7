//! What is told about the containers of this host: differences of the picture, in parts that fit a
//! link, and what happened, with its cause. Pure: no clock, no engine.

use std::collections::BTreeMap;

use fairlead_protocol::{Container, EngineFacts, InventoryPart, Message, limits};

pub mod events;

/// Left free in a message for what is around a part.
const ENVELOPE_BYTES: usize = 256;
/// Largest encoded part.
pub const PART_BYTES_MAX: usize = limits::LINK_MESSAGE_BYTES_MAX - ENVELOPE_BYTES;
/// Bounds of a container's fields. Together they keep one container, and the engine's facts beside
/// it, well within a part.
const TEXT_BYTES_MAX: usize = 256;
const COMMAND_BYTES_MAX: usize = 512;
const PORTS_MAX: usize = 24;
const LABELS_MAX: usize = 8;
const NETWORKS_MAX: usize = 6;

/// The picture as it was told last, and what to tell next.
#[derive(Debug, Default)]
pub struct Inventory {
    generation: u64,
    /// By id, fields already cut.
    told: BTreeMap<String, Container>,
    /// The engine's facts as they were told last.
    told_engine: EngineFacts,
    /// Whether the other side has a picture to which a difference can be applied.
    begun: bool,
}

impl Inventory {
    /// Nothing told yet: the first picture is sent whole.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The next picture is sent whole: the other side is another one, or says that it lost track.
    pub fn start_over(&mut self) {
        self.begun = false;
    }

    /// The parts that lead from the picture told last to this one; none when nothing changed, the
    /// engine's facts included.
    pub fn parts(
        &mut self,
        containers: &[Container],
        engine: &EngineFacts,
        as_of_us: i64,
    ) -> Vec<InventoryPart> {
        let now: BTreeMap<String, Container> = containers
            .iter()
            .map(|c| (c.id.clone(), fitted(c)))
            .collect();
        let full = !self.begun;
        let known = if full {
            BTreeMap::new()
        } else {
            std::mem::take(&mut self.told)
        };
        let upserts = now
            .iter()
            .filter(|(id, c)| known.get(*id) != Some(c))
            .map(|(_, c)| c);
        let removed = known.keys().filter(|id| !now.contains_key(*id));
        let changes = removed
            .map(|id| Change::Removed(id.clone()))
            .chain(upserts.map(|container| Change::Upsert(Box::new(container.clone()))));
        let engine = fitted_engine(engine);
        let same_engine = engine == self.told_engine;
        self.told_engine.clone_from(&engine);
        let mut parts = packed(changes, engine);
        self.told = now;
        let nothing =
            parts.len() == 1 && parts[0].upserts.is_empty() && parts[0].removed.is_empty();
        if nothing && same_engine && !full {
            return Vec::new();
        }
        self.begun = true;
        self.generation += 1;
        let last = parts.len() - 1;
        for (index, part) in parts.iter_mut().enumerate() {
            part.generation = self.generation;
            part.as_of_us = as_of_us;
            part.full = full && index == 0;
            part.last = index == last;
        }
        parts
    }
}

enum Change {
    Removed(String),
    Upsert(Box<Container>),
}

/// As few parts as will do; at least one, which carries the engine's facts.
fn packed(changes: impl Iterator<Item = Change>, engine: EngineFacts) -> Vec<InventoryPart> {
    // Numbers that are set later take their room now.
    let blank = || InventoryPart {
        generation: u64::MAX,
        full: true,
        last: true,
        as_of_us: i64::MIN,
        ..InventoryPart::default()
    };
    let mut part = InventoryPart {
        engine: Some(engine),
        ..blank()
    };
    let mut size = part.encoded_len();
    let mut parts = Vec::new();
    for change in changes {
        let length = match &change {
            Change::Removed(id) => id.len(),
            Change::Upsert(container) => container.encoded_len(),
        };
        // A tag of one or two bytes and a length of up to three.
        let more = length + 5;
        if size + more > PART_BYTES_MAX {
            let full = std::mem::replace(&mut part, blank());
            parts.push(full);
            size = part.encoded_len();
        }
        size += more;
        match change {
            Change::Removed(id) => part.removed.push(id),
            Change::Upsert(container) => part.upserts.push(*container),
        }
    }
    parts.push(part);
    parts
}

/// Applies a part to a picture: what the receiving side does, kept here for the tests of both.
pub fn apply(picture: &mut BTreeMap<String, Container>, part: &InventoryPart) {
    if part.full {
        picture.clear();
    }
    for id in &part.removed {
        picture.remove(id);
    }
    for container in &part.upserts {
        picture.insert(container.id.clone(), container.clone());
    }
}

/// At most so many bytes, cut where a character ends.
fn cut(text: &str, bytes_max: usize) -> String {
    let mut end = bytes_max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

/// The container with every field within its bound.
fn fitted(container: &Container) -> Container {
    let text = |text: &String| cut(text, TEXT_BYTES_MAX);
    let mut fitted = Container {
        id: text(&container.id),
        name: text(&container.name),
        image: text(&container.image),
        image_id: text(&container.image_id),
        state: cut(&container.state, 32),
        health: cut(&container.health, 32),
        ip: cut(&container.ip, 64),
        project: text(&container.project),
        service: text(&container.service),
        command: cut(&container.command, COMMAND_BYTES_MAX),
        restart_policy: cut(&container.restart_policy, 32),
        networks: container
            .networks
            .iter()
            .take(NETWORKS_MAX)
            .map(&text)
            .collect(),
        ports: container.ports.iter().take(PORTS_MAX).cloned().collect(),
        labels: container.labels.iter().take(LABELS_MAX).cloned().collect(),
        ..container.clone()
    };
    for port in &mut fitted.ports {
        port.host_ip = cut(&port.host_ip, 64);
        port.proto = cut(&port.proto, 16);
    }
    for label in &mut fitted.labels {
        label.key = cut(&label.key, 64);
        label.value = cut(&label.value, 128);
    }
    fitted
}

fn fitted_engine(engine: &EngineFacts) -> EngineFacts {
    let text = |text: &String| cut(text, 64);
    EngineFacts {
        kind: text(&engine.kind),
        version: text(&engine.version),
        api_version: text(&engine.api_version),
        error: cut(&engine.error, TEXT_BYTES_MAX),
        code: text(&engine.code),
        live_restore: engine.live_restore,
        runtime: text(&engine.runtime),
    }
}

#[cfg(test)]
mod tests;
