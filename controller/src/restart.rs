//! A controller that is restarted in order: who was connected is remembered, so that the next one shows nobody as
//! down while the regions dial it again. May touch the store.

use std::collections::HashMap;

use fairlead_protocol::HostId;
use fairlead_store::{Store, StoreError};

use crate::fleet::Fleet;

/// The key in the store: when that was, then the hosts.
const KEY: &str = "restarted";
/// An access server dials again after 4 s at most.
const BACK_WITHIN_US: i64 = 20_000_000;
/// One that was away for longer knows nothing of now.
const AWAY_MAX_US: i64 = 5 * 60 * 1_000_000;

/// Writes down who is connected. Without it they are shown as unknown until their region has told.
pub async fn remember(store: &Store, fleet: &Fleet, now_us: i64) {
    let value = encode(now_us, &fleet.connected());
    if let Err(error) = store.write(move |tx| tx.set_meta(KEY, &value)).await {
        tracing::warn!(%error, "who is connected was not written down");
    }
}

/// Expects those back whom the controller before this one has written down, once.
///
/// # Errors
/// When the store cannot be used.
pub async fn expect_back(
    store: &Store,
    fleet: &Fleet,
    homes: &HashMap<HostId, String>,
    now_us: i64,
) -> Result<(), StoreError> {
    let Some(value) = store.read(|tx| tx.meta(KEY)).await? else {
        return Ok(());
    };
    store.write(|tx| tx.take_meta(KEY)).await?;
    let Some((at_us, hosts)) = decode(&value) else {
        return Ok(());
    };
    if (0..=AWAY_MAX_US).contains(&(now_us - at_us)) {
        let known: Vec<(HostId, String)> = hosts
            .into_iter()
            .filter_map(|host| Some((host, homes.get(&host)?.clone())))
            .collect();
        fleet.expect_back(&known, at_us, now_us + BACK_WITHIN_US);
    }
    Ok(())
}

fn encode(at_us: i64, hosts: &[HostId]) -> Vec<u8> {
    let mut value = at_us.to_le_bytes().to_vec();
    for host in hosts {
        value.extend_from_slice(host.as_bytes());
    }
    value
}

fn decode(value: &[u8]) -> Option<(i64, Vec<HostId>)> {
    let (at_us, rest) = value.split_first_chunk::<8>()?;
    let (hosts, left) = rest.as_chunks::<16>();
    left.is_empty().then(|| {
        let hosts = hosts.iter().map(|id| HostId::from_bytes(*id)).collect();
        (i64::from_le_bytes(*at_us), hosts)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_there_is_read_as_it_was_written() {
        let hosts = [HostId::from_bytes([1; 16]), HostId::from_bytes([2; 16])];
        assert_eq!(decode(&encode(-7, &hosts)), Some((-7, hosts.to_vec())));
        assert_eq!(decode(&encode(7, &[])), Some((7, Vec::new())));
        assert_eq!(decode(b"short"), None);
        assert_eq!(decode(&[0; 8 + 17]), None);
    }
}
