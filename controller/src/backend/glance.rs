//! The fleet at a glance: for people, with what deserves their attention, and for what monitors it.

use std::collections::BTreeMap;

use fairlead_api::types::Status;
use fairlead_api::{ApiError, Caller};
use fairlead_store::DEFAULT_TENANT;
use fairlead_store::hosts::HostRow;
use fairlead_store::regions::RegionRow;

use super::ControllerBackend;
use crate::metrics::Gauge;

/// Most things that the glance calls attention to.
const ATTENTION_MAX: usize = 20;
/// A host's clock that is further off deserves attention.
const CLOCK_OFF_MS: i64 = 5_000;
/// A refused copy of a host tries again each minute; it is shown until it has not for so long.
const CLONE_SHOWN_US: i64 = 10 * 60 * 1_000_000;

impl ControllerBackend {
    pub(super) async fn glance(&self, caller: &Caller) -> Result<Status, ApiError> {
        let regions = self.list_regions(caller).await?;
        let hosts = self.visible_hosts(caller).await?;
        let tenant = caller.tenant.clone();
        let commands_open = if caller.sees_everything() {
            self.read(move |tx| tx.count_open_commands(&tenant)).await?
        } else {
            let ids: Vec<_> = hosts.iter().filter_map(|host| host.id).collect();
            let open = self.read(|tx| tx.open_commands_in_brief()).await?;
            open.iter().filter(|row| ids.contains(&row.host)).count() as u64
        };
        let mut status = Status {
            version: self.parts.version.clone(),
            regions: regions.len() as u64,
            regions_online: regions.iter().filter(|r| r.state == "online").count() as u64,
            hosts: hosts.len() as u64,
            hosts_online: 0,
            containers: 0,
            containers_running: 0,
            containers_unwell: 0,
            commands_open,
            attention: Vec::new(),
            https: caller.sees_everything().then(|| self.parts.web.shown()),
        };
        if let Some(trouble) = self.parts.store.trouble() {
            status.attention.push(format!(
                "the controller cannot write to its disk, and accepts nothing: {trouble}"
            ));
        }
        if caller.sees_everything() {
            status.attention.extend(self.parts.web.attention());
        }
        for region in &regions {
            let now = self.parts.fleet.region(&region.name);
            let (trouble, clock) = (now.trouble, now.clock);
            if !clock.is_empty() && region.state == "online" {
                status.attention.push(format!(
                    "the clock of region {} is {clock} of the controller's: set both; commands expire \
                     or wait wrongly until then",
                    region.name
                ));
            }
            if !trouble.is_empty() {
                status.attention.push(format!(
                    "region {} cannot write to its disk; its commands wait here: {trouble}",
                    region.name
                ));
            }
        }
        for region in regions.iter().filter(|region| region.state == "offline") {
            status.attention.push(format!(
                "region {} is not connected since {}; {} host(s) go on by themselves",
                region.name, region.since, region.hosts
            ));
        }
        for row in &hosts {
            self.look_at(row, &mut status);
        }
        status.attention.truncate(ATTENTION_MAX);
        Ok(status)
    }

    fn look_at(&self, row: &HostRow, status: &mut Status) {
        let host = self.parts.fleet.host(row);
        let counts = row
            .id
            .map(|id| self.parts.fleet.count(id))
            .unwrap_or_default();
        status.hosts_online += u64::from(matches!(host.state.as_str(), "online" | "suspect"));
        status.containers += counts.all;
        status.containers_running += counts.running;
        status.containers_unwell += counts.unwell;
        let name = &host.name;
        let mut notice = |text: String| status.attention.push(text);
        match host.state.as_str() {
            "offline" => notice(format!("host {name} is offline since {}", host.since)),
            "suspect" => notice(format!("host {name} does not answer since {}", host.since)),
            "held" => notice(format!(
                "host {name} is held: {}; fairlead host approve {name} lets it go on",
                host.reason
            )),
            _ => {}
        }
        let clone_us = row.id.map_or(0, |id| self.parts.fleet.clone_refused_us(id));
        if clone_us + CLONE_SHOWN_US > self.now_us() {
            notice(format!(
                "a second machine uses the identity of {name}, and was refused: give it one of its own"
            ));
        }
        if let Some(facts) = host
            .facts
            .as_ref()
            .filter(|facts| !facts.engine.error.is_empty())
        {
            notice(format!(
                "the engine on {name} does not answer: {}",
                facts.engine.error
            ));
        }
        if host.clock_offset_ms.abs() > CLOCK_OFF_MS {
            notice(format!(
                "the clock of {name} is off by {} ms",
                host.clock_offset_ms
            ));
        }
        if counts.unwell > 0 {
            notice(format!(
                "{} container(s) on {name} are not well",
                counts.unwell
            ));
        }
    }

    pub(super) async fn prometheus(&self) -> String {
        let read = self
            .read(|tx| {
                let hosts = tx.hosts(None)?;
                let regions = tx.regions(DEFAULT_TENANT)?;
                let open = tx.count_open_commands(DEFAULT_TENANT)?;
                let waiting = regions
                    .iter()
                    .map(|region| tx.count_waiting_for(&region.name))
                    .collect::<Result<Vec<u64>, _>>()?;
                Ok((hosts, regions, open, waiting))
            })
            .await;
        let Ok((hosts, regions, open, waiting)) = read else {
            return self.parts.metrics.text(&self.parts.version, &[]);
        };
        let fleet = &self.parts.fleet;
        let mut by_state: BTreeMap<&'static str, u64> =
            ["online", "suspect", "offline", "unknown", "held"]
                .map(|s| (s, 0))
                .into();
        let (mut all, mut running) = (0, 0);
        for row in hosts.iter().filter(|row| row.revoked_us == 0) {
            *by_state.entry(fleet.host_state(row).0).or_default() += 1;
            let counts = row.id.map(|id| fleet.count(id)).unwrap_or_default();
            all += counts.all;
            running += counts.running;
        }
        let of_region = |value: &dyn Fn(&RegionRow, u64) -> u64| {
            let pairs = regions.iter().zip(&waiting);
            pairs
                .map(|(region, waiting)| {
                    (
                        vec![("region", region.name.clone())],
                        value(region, *waiting),
                    )
                })
                .collect::<Vec<_>>()
        };
        let (source, ends_s) = self.parts.web.ends();
        let gauges = [
            gauge(
                "hosts",
                "Hosts by state.",
                by_state
                    .into_iter()
                    .map(|(state, count)| (vec![("state", state.to_owned())], count))
                    .collect(),
            ),
            gauge(
                "containers",
                "Containers by state.",
                vec![
                    (vec![("state", "running".to_owned())], running),
                    (vec![("state", "other".to_owned())], all - running),
                ],
            ),
            gauge(
                "region_up",
                "Whether the region's access server is connected.",
                of_region(&|region, _| u64::from(fleet.region(&region.name).is_online)),
            ),
            gauge(
                "region_orders_waiting",
                "Durable messages that the region has not acknowledged.",
                of_region(&|_, waiting| waiting),
            ),
            gauge(
                "commands_open",
                "Commands without a final state.",
                vec![(Vec::new(), open)],
            ),
            gauge(
                "https_certificate_ends_seconds",
                "When the https certificate ends, seconds since 1970 UTC.",
                vec![(vec![("source", source.to_owned())], ends_s)],
            ),
        ];
        self.parts.metrics.text(&self.parts.version, &gauges)
    }
}

fn gauge(
    name: &'static str,
    help: &'static str,
    series: Vec<(Vec<(&'static str, String)>, u64)>,
) -> Gauge {
    Gauge { name, help, series }
}
