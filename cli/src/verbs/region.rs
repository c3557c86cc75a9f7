//! `region`.

use fairlead_api::types::{NewRegion, Region, RegionRequest};
use jiff::Timestamp;

use super::Context;
use super::fleet::state_colour;
use crate::args::RegionVerb;
use crate::exit::{Exit, Failure};
use crate::output::human::{ago, since};
use crate::output::table::{Cell, Table};
use crate::output::{clean, say};

/// `fairlead region …`
pub(crate) async fn region(context: &Context, verb: RegionVerb) -> Result<Exit, Failure> {
    let client = context.client()?;
    match verb {
        RegionVerb::Add { name, ttl, again } => {
            let body = RegionRequest {
                again,
                name,
                ttl_s: ttl.map(|ttl| ttl.as_secs().max(1)),
            };
            let made: NewRegion = client.post(&["regions"], &body).await?;
            say(&format!(
                "region {} is made; its access server joins with this token (ends {}, shown only \
                 now) at {}",
                clean(&made.region.name),
                ago(made.join_token.info.expires_at, Timestamp::now()),
                clean(&made.join_token.addresses.join(", ")),
            ));
            context
                .out
                .data(&made, |made| format!("{}\n", made.join_token.token))?;
        }
        RegionVerb::Ls => {
            let regions: Vec<Region> = client.list(&["regions"], &[]).await?;
            context.out.data(&regions, |regions| {
                table(regions, Timestamp::now()).render(&context.out)
            })?;
        }
        RegionVerb::Show { name } => {
            let region: Region = client.get(&["regions", &name], &[]).await?;
            context
                .out
                .data(&region, |region| text(region, Timestamp::now()))?;
        }
    }
    Ok(Exit::Ok)
}

fn table(regions: &[Region], now: Timestamp) -> Table {
    let mut table = Table::new([
        "NAME",
        "STATE",
        "SINCE",
        "HOSTS",
        "ACCESS SERVER",
        "AGENTS DIAL",
        "URL",
        "VERSION",
    ]);
    for region in regions {
        table.row([
            Cell::from(&region.name),
            Cell::painted(state_colour(&region.state), &region.state),
            since(region.since, now).into(),
            format!("{}/{}", region.hosts_online, region.hosts).into(),
            (&region.access_server).into(),
            region.addresses.join(" ").into(),
            (&region.url).into(),
            (&region.version).into(),
        ]);
    }
    table
}

fn text(region: &Region, now: Timestamp) -> String {
    super::facts(&[
        ("name", region.name.clone()),
        (
            "state",
            format!("{} since {}", region.state, since(region.since, now)),
        ),
        ("access server", region.access_server.clone()),
        ("version", region.version.clone()),
        ("agents dial", region.addresses.join(", ")),
        ("own address", region.url.clone()),
        (
            "hosts",
            format!("{} connected of {}", region.hosts_online, region.hosts),
        ),
        ("orders waiting", region.orders_waiting.to_string()),
    ])
}
