//! P10 (beginnings): a server whose disk takes nothing says so where people and load balancers look, and
//! says when it is over.

use std::time::Duration;

use fairlead_api::types::JoinTokenRequest;
use fairlead_tests::disk::Disk;
use fairlead_tests::fleet::{Fleet, Options};
use fairlead_tests::wait::wait_for;

use crate::acts::{restart, run_simulated};

const SOON: Duration = Duration::from_secs(40);

/// Waits until a line of the status says it, or none does any more.
pub(crate) async fn attention(fleet: &Fleet, words: &str, is_said: bool) {
    wait_for(&format!("{words:?} is said: {is_said}"), SOON, async || {
        let status = fleet.api.status().await.map_err(|no| no.to_string())?;
        let said = status.attention.iter().any(|line| line.contains(words));
        if said == is_said {
            Ok(())
        } else {
            Err(format!("{:?}", status.attention))
        }
    })
    .await;
}

#[tokio::test]
async fn a_full_disk_at_the_controller_is_said_and_so_is_its_end() {
    if !Disk::can_be_had() {
        return;
    }
    let fleet = Fleet::start(Options::simulated().small_disk("controller")).await;
    fleet.disk().fill();
    wait_for("a write fails", SOON, async || {
        match fleet.api.new_join_token(&JoinTokenRequest::default()).await {
            Ok(_) => Err("it was taken".to_owned()),
            Err(_) => Ok(()),
        }
    })
    .await;
    attention(&fleet, "the controller cannot write", true).await;
    // Beside the API's own paths; a good answer would not be JSON.
    let no = fleet
        .api
        .get::<serde_json::Value>("../../readyz")
        .await
        .unwrap_err();
    assert_eq!((no.status, no.code.as_str()), (503, "storage_unavailable"));
    fleet.disk().free();
    attention(&fleet, "the controller cannot write", false).await;
}

#[tokio::test]
async fn a_full_disk_at_a_region_is_said_at_the_centre() {
    if !Disk::can_be_had() {
        return;
    }
    let fleet = Fleet::start(Options::simulated().small_disk("access-server-local")).await;
    fleet.done(run_simulated("web")).await;
    fleet.disk().fill();
    // What is left of the last page takes some more records.
    for _ in 0..20 {
        fleet.begin(restart("web")).await;
    }
    attention(&fleet, "region local cannot write to its disk", true).await;
    fleet.disk().free();
    attention(&fleet, "region local cannot write to its disk", false).await;
}
