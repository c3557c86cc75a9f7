//! Which container is meant by what a person typed.

use fairlead_protocol::HostId;
use fairlead_store::hosts::HostRow;

use super::Fleet;

/// Shortest prefix of a container's id that is taken as one.
const ID_PREFIX_MIN: usize = 4;

/// What was meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolved {
    /// That one.
    Found {
        /// Its host.
        host: HostId,
        /// Its name.
        name: String,
        /// Its full id.
        id: String,
        /// It was named by its id (or the beginning of it).
        by_id: bool,
    },
    /// None that is known.
    NotFound,
    /// Several: `HOST/NAME` of each, at most ten.
    Ambiguous(Vec<String>),
}

impl Fleet {
    /// Hosts that are known to have a container of that name, or whose id begins so.
    #[must_use]
    pub fn hosts_with(&self, container: &str) -> Vec<HostId> {
        let inner = self.read();
        let is_meant = |known: &fairlead_protocol::Container| {
            known.name == container || (is_prefix(container) && known.id.starts_with(container))
        };
        let pictures = inner
            .hosts
            .iter()
            .filter_map(|(id, host)| Some((*id, host.picture.as_ref()?)));
        pictures
            .filter(|(_, picture)| {
                picture
                    .entries()
                    .iter()
                    .any(|entry| is_meant(&entry.container))
            })
            .map(|(id, _)| id)
            .collect()
    }

    /// The container of that name, or whose id begins so, on one of these hosts. Names go before
    /// ids, so that nothing that happens to look like an id hides a name.
    #[must_use]
    pub fn resolve_container(&self, hosts: &[HostRow], container: &str) -> Resolved {
        let inner = self.read();
        let is_prefix = is_prefix(container);
        let mut named = Vec::new();
        let mut begun = Vec::new();
        for row in hosts {
            let Some(id) = row.id else { continue };
            let Some(picture) = inner.hosts.get(&id).and_then(|host| host.picture.as_ref()) else {
                continue;
            };
            for entry in picture.entries() {
                let known = &entry.container;
                if known.name == container {
                    named.push((row, id, known));
                } else if is_prefix && known.id.starts_with(container) {
                    begun.push((row, id, known));
                }
            }
        }
        let by_id = named.is_empty();
        let candidates = if by_id { begun } else { named };
        match candidates.as_slice() {
            [] => Resolved::NotFound,
            [(_, host, found)] => Resolved::Found {
                host: *host,
                name: found.name.clone(),
                id: found.id.clone(),
                by_id,
            },
            several => {
                let mut all: Vec<String> = several
                    .iter()
                    .map(|(row, _, found)| format!("{}/{}", row.name, found.name))
                    .collect();
                all.sort_unstable();
                all.truncate(10);
                Resolved::Ambiguous(all)
            }
        }
    }
}

fn is_prefix(text: &str) -> bool {
    let is_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    text.len() >= ID_PREFIX_MIN && text.bytes().all(is_hex)
}
