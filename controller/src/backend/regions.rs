//! Regions, the glance, events, what monitoring reads.

use std::collections::BTreeMap;

use fairlead_api::backend::EventQuery;
use fairlead_api::input::{invalid, plain};
use fairlead_api::types::{
    Download, Event, NewJoinToken, NewRegion, Packages, Page, Region, RegionRequest, Status, time,
};
use fairlead_api::{ApiError, Caller};
use fairlead_identity::digest::sha256;
use fairlead_protocol::{CommandId, codes};
use fairlead_store::DEFAULT_TENANT;
use fairlead_store::events::{EventFilter, EventRow};
use fairlead_store::hosts::HostRow;
use fairlead_store::regions::RegionRow;
use fairlead_store::tokens::PURPOSE_ACCESS_SERVER;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;

use super::access::{join_shown, join_ttl, out_of_scope};
use super::hosts::{is_visible, pick};
use super::{ControllerBackend, Note};
use crate::metrics::Gauge;

/// Most things that the glance calls attention to.
const ATTENTION_MAX: usize = 20;
/// Longest name of a region: it becomes part of certificates and DNS names.
const REGION_CHARS_MAX: usize = 63;
/// A host's clock that is further off deserves attention.
const CLOCK_OFF_MS: i64 = 5_000;
/// A refused copy of a host tries again each minute; it is shown until it has not for so long.
const CLONE_SHOWN_US: i64 = 10 * 60 * 1_000_000;
/// Pages read to fill one for a caller with a narrow scope.
const PAGES_READ_MAX: u32 = 20;

impl ControllerBackend {
    pub(super) async fn make_region(
        &self,
        caller: &Caller,
        request: RegionRequest,
    ) -> Result<NewRegion, ApiError> {
        let (name, again) = (request.name, request.again);
        let is_name = (1..=REGION_CHARS_MAX).contains(&name.len())
            && name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !name.starts_with('-')
            && !name.ends_with('-');
        if !is_name || name == fairlead_store::exchange::CENTRE {
            return Err(invalid(format!(
                "{:?} is not a region's name: lower-case letters, digits and dashes, at most \
                 {REGION_CHARS_MAX}",
                plain(&name)
            )));
        }
        if !caller.sees_everything() {
            return Err(out_of_scope("making regions"));
        }
        let ttl_s = join_ttl(request.ttl_s)?;
        let (secret, token) = self.new_join_token(
            caller,
            PURPOSE_ACCESS_SERVER,
            &name,
            BTreeMap::new(),
            1,
            ttl_s,
        );
        let note = Note::ok("region.create", format!("region {name}"))
            .detail(format!("join token {}", token.id));
        let entry = self.entry(caller, &note);
        let (insert, tenant, now_us) = (token.clone(), caller.tenant.clone(), self.now_us());
        let region_name = name.clone();
        let made = self
            .write(move |tx| {
                if !tx.insert_region(&region_name, &tenant, now_us)? {
                    let known = tx.region(&region_name)?.filter(|row| row.tenant == tenant);
                    if !again || known.is_none() {
                        return Ok(false);
                    }
                }
                tx.insert_join_token(&insert)?;
                tx.append_audit(&entry, sha256)?;
                Ok(true)
            })
            .await?;
        if !made {
            return Err(ApiError::new(
                codes::ALREADY_EXISTS,
                format!("there is a region {name:?} already"),
            )
            .hint("fairlead region add NAME --again lets its access server join once more"));
        }
        let region = self.one_region(caller, &name).await?;
        let join_token = NewJoinToken {
            token: secret.to_string(),
            addresses: self.parts.uplink_addresses.clone(),
            info: join_shown(&token),
        };
        Ok(NewRegion { region, join_token })
    }

    async fn visible_regions(&self, caller: &Caller) -> Result<Vec<RegionRow>, ApiError> {
        let tenant = caller.tenant.clone();
        let rows = self.read(move |tx| tx.regions(&tenant)).await?;
        Ok(rows
            .into_iter()
            .filter(|row| caller.sees_region(&row.name))
            .collect())
    }

    pub(super) async fn list_regions(&self, caller: &Caller) -> Result<Vec<Region>, ApiError> {
        let rows = self.visible_regions(caller).await?;
        self.regions_shown(caller, rows).await
    }

    pub(super) async fn one_region(&self, caller: &Caller, name: &str) -> Result<Region, ApiError> {
        let mut rows = self.visible_regions(caller).await?;
        rows.retain(|row| row.name == name);
        self.regions_shown(caller, rows)
            .await?
            .pop()
            .ok_or_else(|| no_region(name))
    }

    async fn regions_shown(
        &self,
        caller: &Caller,
        rows: Vec<RegionRow>,
    ) -> Result<Vec<Region>, ApiError> {
        let hosts = self.visible_hosts(caller).await?;
        let names: Vec<String> = rows.iter().map(|row| row.name.clone()).collect();
        let waiting = self
            .read(move |tx| {
                names
                    .iter()
                    .map(|name| tx.count_waiting_for(name))
                    .collect()
            })
            .await?;
        let waiting: Vec<u64> = waiting;
        Ok(rows
            .into_iter()
            .zip(waiting)
            .map(|(row, orders_waiting)| self.region_shown(row, &hosts, orders_waiting))
            .collect())
    }

    fn region_shown(&self, row: RegionRow, hosts: &[HostRow], orders_waiting: u64) -> Region {
        let now = self.parts.fleet.region(&row.name);
        let own: Vec<&HostRow> = hosts
            .iter()
            .filter(|host| host.region == row.name)
            .collect();
        let online = own
            .iter()
            .filter(|host| matches!(self.parts.fleet.host_state(host).0, "online" | "suspect"));
        let state = match (row.access_server.is_empty(), now.is_online) {
            (_, true) => "online",
            (_, false) if now.is_returning => "restarting",
            (true, false) => "waiting",
            (false, false) => "offline",
        };
        let since_us = if now.since_us != 0 {
            now.since_us
        } else {
            row.last_seen_us.max(row.created_us)
        };
        Region {
            state: state.to_owned(),
            since: time(since_us),
            access_server: if now.server.is_empty() {
                row.access_server
            } else {
                now.server
            },
            addresses: row.addresses,
            url: row.url,
            version: if now.version.is_empty() {
                row.version
            } else {
                now.version
            },
            hosts: own.len() as u64,
            hosts_online: online.count() as u64,
            orders_waiting,
            name: row.name,
        }
    }

    /// The region that a join token is for: the one named, or the only one.
    pub(super) async fn region_for_joining(
        &self,
        caller: &Caller,
        name: Option<&str>,
    ) -> Result<RegionRow, ApiError> {
        let mut rows = self.visible_regions(caller).await?;
        if let Some(name) = name {
            return rows
                .into_iter()
                .find(|row| row.name == name)
                .ok_or_else(|| no_region(name));
        }
        match rows.len() {
            1 => Ok(rows.remove(0)),
            0 => Err(
                ApiError::new(codes::REGION_NOT_FOUND, "there is no region yet")
                    .hint("fairlead region add NAME"),
            ),
            count => Err(invalid(format!("there are {count} regions: say which one"))
                .hint("fairlead region ls; then --region NAME")),
        }
    }

    pub(super) fn packages_shown(&self, caller: &Caller) -> Packages {
        let packages = &self.parts.packages;
        let url = self.parts.public_url.trim_end_matches('/');
        let downloads = if caller.sees_everything() {
            packages.downloads_since(0)
        } else {
            Vec::new()
        };
        let shown = downloads.into_iter().map(|download| Download {
            at: time(download.at_us),
            version: download.version,
            file: download.file,
            from: download.from,
        });
        Packages {
            stable: packages.stable(),
            versions: packages.versions(),
            script_url: format!("{url}/install.sh"),
            packages_url: format!("{url}/packages"),
            pin: self.parts.web.pin(),
            downloads: shown.collect(),
        }
    }

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

    pub(super) async fn list_events(
        &self,
        caller: &Caller,
        query: EventQuery,
    ) -> Result<Page<Event>, ApiError> {
        let tenant = caller.tenant.clone();
        let hosts = self.read(move |tx| tx.hosts(Some(&tenant))).await?;
        let hosts: Vec<HostRow> = hosts
            .into_iter()
            .filter(|row| is_visible(caller, row))
            .collect();
        let host = match &query.host {
            Some(host) => pick(&hosts, host)?.id,
            None => None,
        };
        let mut filter = EventFilter {
            tenant: caller.tenant.clone(),
            host,
            since_us: query.since_us,
            before: query.before,
            limit: query.limit,
            ..EventFilter::default()
        };
        let wanted = query.limit as usize;
        let mut items = Vec::new();
        for _ in 0..PAGES_READ_MAX {
            let page = filter.clone();
            let rows = self.read(move |tx| tx.events(&page)).await?;
            let is_last = rows.len() < wanted;
            for row in rows {
                filter.before = Some(row.seq);
                let host = hosts
                    .iter()
                    .find(|host| row.host.is_some() && host.id == row.host);
                if is_event_visible(caller, &row, host) {
                    items.push(event_shown(row, host));
                    if items.len() == wanted {
                        return Ok(Page {
                            items,
                            next: filter.before,
                        });
                    }
                }
            }
            if is_last {
                return Ok(Page { items, next: None });
            }
        }
        Ok(Page {
            items,
            next: filter.before,
        })
    }

    pub(super) async fn follow(
        &self,
        caller: &Caller,
        host: Option<&str>,
        after: Option<i64>,
    ) -> Result<BoxStream<'static, Event>, ApiError> {
        let host = match host {
            Some(host) => self.one_host(caller, host).await?.id,
            None => None,
        };
        let newest = self.parts.feed.newest();
        // A number above ours is of another history (a restored backup): go on from now.
        let after = after.map_or(newest, |after| after.clamp(0, newest));
        let rows = self.parts.feed.follow(caller.tenant.clone(), host, after);
        let (store, caller) = (self.parts.store.clone(), caller.clone());
        let shown = rows.filter_map(move |row| {
            let (store, caller) = (store.clone(), caller.clone());
            async move {
                let host = match row.host {
                    Some(id) => store.read(move |tx| tx.host(id)).await.ok().flatten(),
                    None => None,
                };
                let host = host.filter(|host| is_visible(&caller, host));
                is_event_visible(&caller, &row, host.as_ref())
                    .then(|| event_shown(row, host.as_ref()))
            }
        });
        Ok(Box::pin(shown))
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

fn no_region(name: &str) -> ApiError {
    ApiError::new(
        codes::REGION_NOT_FOUND,
        format!("there is no region {:?}", plain(name)),
    )
    .hint("fairlead region ls")
}

/// An event of a host is visible with its host; one of a region with the region; others only to
/// who sees everything.
fn is_event_visible(caller: &Caller, row: &EventRow, host: Option<&HostRow>) -> bool {
    match (row.host, row.region.as_str()) {
        (Some(_), _) => host.is_some(),
        (None, "") => caller.sees_everything(),
        (None, region) => caller.sees_region(region),
    }
}

fn event_shown(row: EventRow, host: Option<&HostRow>) -> Event {
    let event = row.event;
    Event {
        seq: row.seq,
        at: time(event.at_us),
        host: host.map(|host| host.name.clone()).unwrap_or_default(),
        host_id: row.host.map(|id| id.to_string()).unwrap_or_default(),
        region: row.region,
        action: event.action,
        container: event.container,
        container_id: event.container_id,
        image: event.image,
        command: CommandId::from_wire(&event.command)
            .map(|id| id.to_string())
            .unwrap_or_default(),
        cause: event.cause,
        detail: event.detail,
    }
}
