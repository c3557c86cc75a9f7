//! What is out there now, in memory: presence, containers, measurements of every host.
//!
//! Fed by the regions' reports, asked by the API. Losing it loses nothing that was promised: hosts
//! and regions are in the store, pictures are saved at leisure, the rest is told again. Nothing
//! here waits: locks are held for copying only.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use fairlead_protocol::{
    HostFacts, HostId, HostInventory, HostMetrics, HostPresence, HostSample, InventoryPart,
};

mod picture;
mod resolve;
mod returning;
mod view;

pub use resolve::Resolved;
pub use view::{ContainerFilter, Counts, RegionState};

use picture::Picture;

/// Connection of a host as its region tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Presence {
    Online,
    Suspect,
    Offline,
    /// Not told yet by its region (since that connected).
    Untold,
    /// It was connected when a server between here and it was restarted in order, and is expected back.
    Returning,
}

#[derive(Debug)]
struct HostNow {
    region: Arc<str>,
    presence: Presence,
    since_us: i64,
    reason: Box<str>,
    epoch: u64,
    facts: Option<Box<HostFacts>>,
    address: Box<str>,
    clock_offset_us: i64,
    sample: Option<Box<(i64, HostSample)>>,
    picture: Option<Box<Picture>>,
    /// A whole picture whose parts are still arriving.
    arriving: Option<Box<Picture>>,
    /// Whether the picture has changed since it was last taken for saving.
    unsaved: bool,
    /// When a copy of it was last refused.
    clone_refused_us: i64,
    /// Until when it is expected back, where it is.
    back_by_us: i64,
}

impl HostNow {
    fn new(region: Arc<str>) -> Self {
        Self {
            region,
            presence: Presence::Untold,
            since_us: 0,
            reason: Box::default(),
            epoch: 0,
            facts: None,
            address: Box::default(),
            clock_offset_us: 0,
            sample: None,
            picture: None,
            arriving: None,
            unsaved: false,
            clone_refused_us: 0,
            back_by_us: 0,
        }
    }
}

#[derive(Debug, Default)]
struct RegionNow {
    is_online: bool,
    since_us: i64,
    server: String,
    version: String,
    trouble: String,
    clock: String,
    /// Until when its access server is expected back, where that said so.
    back_by_us: i64,
}

#[derive(Debug, Default)]
struct Inner {
    hosts: HashMap<HostId, HostNow>,
    regions: HashMap<Arc<str>, RegionNow>,
}

impl Inner {
    fn region_name(&mut self, name: &str) -> Arc<str> {
        if let Some((known, _)) = self.regions.get_key_value(name) {
            return Arc::clone(known);
        }
        let name: Arc<str> = Arc::from(name);
        self.regions.insert(Arc::clone(&name), RegionNow::default());
        name
    }

    /// Connected, or expected back.
    fn region_is_there(&self, name: &str) -> bool {
        self.regions
            .get(name)
            .is_some_and(|region| region.is_online || region.back_by_us != 0)
    }

    fn region_is_online(&self, name: &str) -> bool {
        self.regions
            .get(name)
            .is_some_and(|region| region.is_online)
    }
}

/// The fleet as last told.
#[derive(Debug, Default)]
pub struct Fleet {
    inner: RwLock<Inner>,
}

impl Fleet {
    /// Nothing known yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// A region tells how a host is connected. Messages with an id that is none are ignored.
    pub fn apply_presence(&self, region: &str, presence: &HostPresence) {
        let Ok(id) = HostId::from_wire(&presence.host) else {
            return;
        };
        let mut inner = self.write();
        let region = inner.region_name(region);
        let host = inner
            .hosts
            .entry(id)
            .or_insert_with(|| HostNow::new(Arc::clone(&region)));
        host.region = region;
        host.presence = match presence.state.as_str() {
            "online" => Presence::Online,
            "suspect" => Presence::Suspect,
            _ => Presence::Offline,
        };
        host.since_us = presence.since_us;
        host.reason = presence.reason.as_str().into();
        host.epoch = host.epoch.max(presence.epoch);
        if let Some(facts) = &presence.facts {
            host.facts = Some(Box::new(facts.clone()));
        }
        if !presence.address.is_empty() {
            host.address = presence.address.as_str().into();
        }
        host.clock_offset_us = presence.clock_offset_us;
    }

    /// A host tells its containers, whole or by difference.
    pub fn apply_inventory(&self, inventory: &HostInventory) {
        let (Ok(id), Some(part)) = (HostId::from_wire(&inventory.host), &inventory.part) else {
            return;
        };
        let mut inner = self.write();
        // Presence comes first on an uplink; a host nobody told of has no region to show it in.
        let Some(host) = inner.hosts.get_mut(&id) else {
            return;
        };
        host.take_part(part);
    }

    /// A host tells its measurements.
    pub fn apply_metrics(&self, metrics: &HostMetrics) {
        let (Ok(id), Some(part)) = (HostId::from_wire(&metrics.host), &metrics.part) else {
            return;
        };
        let mut inner = self.write();
        let Some(host) = inner.hosts.get_mut(&id) else {
            return;
        };
        if let Some(sample) = part.host {
            host.sample = Some(Box::new((part.at_us, sample)));
        }
        if let Some(picture) = &mut host.picture {
            picture.measure(part.at_us, &part.containers);
        }
    }

    /// Whether somebody else lives in the same time: a region is connected, and its clock is not another one.
    /// By a clock that is years ahead everything would be old.
    #[must_use]
    pub fn agrees_on_the_time(&self) -> bool {
        let inner = self.read();
        let agrees = |now: &RegionNow| now.is_online && now.clock.is_empty();
        inner.regions.values().any(agrees)
    }

    /// A region's access server is connected. What it tells about its hosts follows; until it has,
    /// their state is not known.
    pub fn region_online(&self, region: &str, server: &str, version: &str, at_us: i64) {
        let mut inner = self.write();
        let name = inner.region_name(region);
        if let Some(now) = inner.regions.get_mut(&name) {
            now.is_online = true;
            now.since_us = at_us;
            now.back_by_us = 0;
            server.clone_into(&mut now.server);
            version.clone_into(&mut now.version);
        }
        for host in inner.hosts.values_mut().filter(|host| host.region == name) {
            if host.presence != Presence::Returning {
                host.presence = Presence::Untold;
            }
        }
    }

    /// A region's access server is not connected any more.
    pub fn region_offline(&self, region: &str, at_us: i64) {
        let mut inner = self.write();
        let name = inner.region_name(region);
        if let Some(now) = inner.regions.get_mut(&name) {
            now.is_online = false;
            now.since_us = at_us;
        }
    }

    /// A region cannot write its ledger, or (empty) can again.
    pub fn region_trouble(&self, region: &str, reason: &str) {
        let mut inner = self.write();
        let name = inner.region_name(region);
        if let Some(now) = inner.regions.get_mut(&name) {
            reason.clone_into(&mut now.trouble);
        }
    }

    /// A region's clock is not ours, or (empty) agrees again.
    pub fn region_clock(&self, region: &str, apart: &str) {
        let mut inner = self.write();
        let name = inner.region_name(region);
        if let Some(now) = inner.regions.get_mut(&name) {
            apart.clone_into(&mut now.clock);
        }
    }

    /// A machine with a copy of the host's identity was refused.
    pub fn clone_refused(&self, region: &str, host: HostId, at_us: i64) {
        let mut inner = self.write();
        let region = inner.region_name(region);
        let host = inner
            .hosts
            .entry(host)
            .or_insert_with(|| HostNow::new(region));
        host.clone_refused_us = host.clone_refused_us.max(at_us);
    }

    /// The region has told of all hosts that are connected to it: the others are not.
    pub fn presence_complete(&self, region: &str) {
        let mut inner = self.write();
        let since = inner.regions.get(region).map_or(0, |now| now.since_us);
        for host in inner
            .hosts
            .values_mut()
            .filter(|host| &*host.region == region)
        {
            if host.presence == Presence::Untold {
                host.presence = Presence::Offline;
                host.since_us = since;
                host.reason = "not connected to its region".into();
            }
        }
    }

    /// Pictures that were saved, of hosts of those regions; what was told since goes before them.
    pub fn load_pictures(&self, pictures: Vec<(HostId, String, InventoryPart)>) {
        let mut inner = self.write();
        for (id, region, part) in pictures {
            let region = inner.region_name(&region);
            let host = inner
                .hosts
                .entry(id)
                .or_insert_with(|| HostNow::new(region));
            if host.picture.is_none() {
                host.picture = Some(Box::new(Picture::whole(&part)));
            }
        }
    }

    /// The host's identity has ended.
    pub fn forget_host(&self, id: HostId) {
        self.write().hosts.remove(&id);
    }

    /// The host's newest picture, for saving.
    #[must_use]
    pub fn picture(&self, id: HostId) -> Option<InventoryPart> {
        self.read()
            .hosts
            .get(&id)?
            .picture
            .as_ref()
            .map(|picture| picture.to_part())
    }

    /// Pictures that changed since this was last called; at most `limit` of them.
    #[must_use]
    pub fn take_unsaved(&self, limit: usize) -> Vec<(HostId, InventoryPart)> {
        let mut inner = self.write();
        let unsaved = inner.hosts.iter_mut().filter(|(_, host)| host.unsaved);
        unsaved
            .take(limit)
            .filter_map(|(id, host)| {
                host.unsaved = false;
                host.picture
                    .as_ref()
                    .map(|picture| (*id, picture.to_part()))
            })
            .collect()
    }
}

impl HostNow {
    fn take_part(&mut self, part: &InventoryPart) {
        if part.full {
            self.arriving = Some(Box::new(Picture::whole(part)));
        } else if let Some(arriving) = &mut self.arriving {
            arriving.change(part);
        } else {
            self.picture.get_or_insert_default().change(part);
            self.unsaved = true;
        }
        if part.last
            && let Some(mut whole) = self.arriving.take()
        {
            if let Some(before) = &mut self.picture {
                whole.keep_measurements_of(before);
            }
            self.picture = Some(whole);
            self.unsaved = true;
        }
    }
}

#[cfg(test)]
mod tests;
