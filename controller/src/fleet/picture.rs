//! One host's containers, compact: sorted by id, measurements beside.

use fairlead_protocol::{Container, ContainerSample, EngineFacts, InventoryPart};

/// A container and its newest measurements.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) container: Container,
    pub(super) sample: Option<Box<(i64, ContainerSample)>>,
}

/// All containers of a host.
#[derive(Debug, Default)]
pub(super) struct Picture {
    pub(super) generation: u64,
    pub(super) as_of_us: i64,
    pub(super) engine: Option<Box<EngineFacts>>,
    /// Sorted by id.
    entries: Vec<Entry>,
}

impl Picture {
    /// The picture that begins (and perhaps ends) with this part.
    pub(super) fn whole(part: &InventoryPart) -> Self {
        let mut picture = Self::default();
        picture.change(part);
        picture
    }

    /// Takes a part in.
    pub(super) fn change(&mut self, part: &InventoryPart) {
        self.generation = part.generation;
        if let Some(engine) = &part.engine {
            self.engine = Some(Box::new(engine.clone()));
        }
        // While the engine does not answer nobody has seen the containers.
        if self.engine_answers() || self.as_of_us == 0 {
            self.as_of_us = self.as_of_us.max(part.as_of_us);
        }
        for container in &part.upserts {
            let container = container.clone();
            match self.place_of(&container.id) {
                Ok(index) => {
                    if container.state != "running" {
                        self.entries[index].sample = None;
                    }
                    self.entries[index].container = container;
                }
                Err(index) => self.entries.insert(
                    index,
                    Entry {
                        container,
                        sample: None,
                    },
                ),
            }
        }
        for id in &part.removed {
            if let Ok(index) = self.place_of(id) {
                self.entries.remove(index);
            }
        }
    }

    /// Whether the engine answered when it was asked last.
    pub(super) fn engine_answers(&self) -> bool {
        let engine = self.engine.as_deref();
        engine.is_none_or(|engine| engine.error.is_empty())
    }

    /// Takes measurements in; of containers that are not known, none.
    pub(super) fn measure(&mut self, at_us: i64, samples: &[ContainerSample]) {
        for sample in samples {
            if let Ok(index) = self.place_of(&sample.id) {
                // The id is the entry's; a second copy of it would be the larger half.
                let sample = ContainerSample {
                    id: String::new(),
                    ..sample.clone()
                };
                self.entries[index].sample = Some(Box::new((at_us, sample)));
            }
        }
    }

    /// Takes over the measurements of the picture before, of what still runs.
    pub(super) fn keep_measurements_of(&mut self, before: &mut Self) {
        for entry in &mut self.entries {
            if entry.container.state == "running"
                && let Ok(index) = before.place_of(&entry.container.id)
            {
                entry.sample = before.entries[index].sample.take();
            }
        }
    }

    fn place_of(&self, id: &str) -> Result<usize, usize> {
        self.entries
            .binary_search_by(|entry| entry.container.id.as_str().cmp(id))
    }

    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// As one part, for saving.
    pub(super) fn to_part(&self) -> InventoryPart {
        InventoryPart {
            generation: self.generation,
            full: true,
            last: true,
            upserts: self
                .entries
                .iter()
                .map(|entry| entry.container.clone())
                .collect(),
            removed: Vec::new(),
            as_of_us: self.as_of_us,
            engine: self.engine.as_deref().cloned(),
        }
    }
}
