//! Regions: made, shown, chosen for joining; the packages that their hosts take.

use std::collections::BTreeMap;

use fairlead_api::input::{invalid, plain};
use fairlead_api::types::{
    Download, NewJoinToken, NewRegion, Packages, Region, RegionRequest, time,
};
use fairlead_api::{ApiError, Caller};
use fairlead_identity::digest::sha256;
use fairlead_protocol::codes;
use fairlead_store::hosts::HostRow;
use fairlead_store::regions::RegionRow;
use fairlead_store::tokens::PURPOSE_ACCESS_SERVER;

use super::access::{join_shown, join_ttl, out_of_scope};
use super::{ControllerBackend, Note};

/// Longest name of a region: it becomes part of certificates and DNS names.
const REGION_CHARS_MAX: usize = 63;
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
}

fn no_region(name: &str) -> ApiError {
    ApiError::new(
        codes::REGION_NOT_FOUND,
        format!("there is no region {:?}", plain(name)),
    )
    .hint("fairlead region ls")
}
