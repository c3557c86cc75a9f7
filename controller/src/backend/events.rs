//! Events: read in pages, followed, and who may see which.

use fairlead_api::backend::EventQuery;
use fairlead_api::types::{Event, Page, time};
use fairlead_api::{ApiError, Caller};
use fairlead_protocol::CommandId;
use fairlead_store::events::{EventFilter, EventRow};
use fairlead_store::hosts::HostRow;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;

use super::ControllerBackend;
use super::hosts::{is_visible, pick};

/// Pages read to fill one for a caller with a narrow scope.
const PAGES_READ_MAX: u32 = 20;

impl ControllerBackend {
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
