//! Servers that are restarted in order: a host that was connected before is expected back, and is not shown as
//! down meanwhile. One that is not back in time is.

use std::sync::Arc;

use fairlead_protocol::HostId;

use super::{Fleet, HostNow, Presence};

impl HostNow {
    fn is_there(&self) -> bool {
        matches!(
            self.presence,
            Presence::Online | Presence::Suspect | Presence::Returning
        )
    }

    fn expect_back(&mut self, by_us: i64) {
        self.presence = Presence::Returning;
        self.back_by_us = by_us;
        self.reason = "its access server is restarted; it is expected back".into();
    }
}

impl Fleet {
    /// A region's access server has ended in order, and its hosts were told to come back.
    pub fn region_restarts(&self, region: &str, at_us: i64, back_by_us: i64) {
        self.region_offline(region, at_us);
        let mut inner = self.write();
        if let Some(now) = inner.regions.get_mut(region) {
            now.back_by_us = back_by_us;
        }
        for host in inner.hosts.values_mut() {
            if &*host.region == region && host.is_there() {
                host.expect_back(back_by_us);
            }
        }
    }

    /// Who is connected just now, to be expected by the controller that is started next.
    #[must_use]
    pub fn connected(&self) -> Vec<HostId> {
        let inner = self.read();
        let there = inner
            .hosts
            .iter()
            .filter(|(_, host)| host.is_there() && inner.region_is_there(&host.region));
        there.map(|(id, _)| *id).collect()
    }

    /// Those were connected when the controller before this one ended in order: they and their regions are expected.
    pub fn expect_back(&self, hosts: &[(HostId, String)], at_us: i64, back_by_us: i64) {
        let mut inner = self.write();
        for (id, region) in hosts {
            let region = inner.region_name(region);
            if let Some(now) = inner.regions.get_mut(&region) {
                now.since_us = at_us;
                now.back_by_us = back_by_us;
            }
            let host = inner
                .hosts
                .entry(*id)
                .or_insert_with(|| HostNow::new(region));
            host.expect_back(back_by_us);
            host.reason = "the controller was restarted; its region is expected back".into();
        }
    }

    /// Whoever was expected by now, and is not back, is away; gives the regions of which that became true.
    pub fn give_up_waiting(&self, now_us: i64) -> Vec<Arc<str>> {
        let mut inner = self.write();
        let mut away = Vec::new();
        for (name, region) in &mut inner.regions {
            if region.back_by_us != 0 && region.back_by_us <= now_us {
                region.back_by_us = 0;
                away.push(Arc::clone(name));
            }
        }
        for host in inner.hosts.values_mut() {
            if host.presence == Presence::Returning && host.back_by_us <= now_us {
                host.presence = Presence::Offline;
                host.since_us = now_us;
                host.reason =
                    "not back since its access server or the controller was restarted".into();
            }
        }
        away
    }
}
