//! Opening, refusing what is not ours, grouped writes, and what a failed write leaves behind.

use fairlead_protocol::numbered;

use super::*;

fn open() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store.db")).unwrap();
    (dir, store)
}

#[tokio::test]
async fn what_was_written_is_there_after_reopening() {
    let (dir, store) = open();
    store.write(|tx| tx.set_meta("k", b"v")).await.unwrap();
    drop(store);
    let store = Store::open(&dir.path().join("store.db")).unwrap();
    assert_eq!(store.read(|tx| tx.meta("k")).await.unwrap().unwrap(), b"v");
}

#[tokio::test]
async fn one_failing_write_does_not_undo_its_neighbours() {
    let (_dir, store) = open();
    let good = store.write(|tx| tx.set_meta("good", b"1"));
    let bad = store.write(|tx| -> Result<(), StoreError> {
        tx.set_meta("bad", b"1")?;
        Err(StoreError::Statement("on purpose".to_owned()))
    });
    let (good, bad) = tokio::join!(good, bad);
    good.unwrap();
    bad.unwrap_err();
    assert!(store.read(|tx| tx.meta("good")).await.unwrap().is_some());
    assert!(store.read(|tx| tx.meta("bad")).await.unwrap().is_none());
}

#[tokio::test]
async fn a_foreign_or_newer_file_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("other.db");
    let other = Connection::open(&path).unwrap();
    other.execute_batch("CREATE TABLE theirs (x)").unwrap();
    drop(other);
    let error = Store::open(&path).err().unwrap();
    assert!(matches!(error, StoreError::Foreign { .. }), "{error}");

    let path = dir.path().join("newer.db");
    drop(Store::open(&path).unwrap());
    // The writer thread closes the file when its last handle is gone; WAL lets us in meanwhile.
    let newer = Connection::open(&path).unwrap();
    newer.busy_timeout(Duration::from_secs(5)).unwrap();
    newer.pragma_update(None, "user_version", 99).unwrap();
    drop(newer);
    let error = Store::open(&path).err().unwrap();
    assert!(error.to_string().contains("newer"), "{error}");

    let path = dir.path().join("garbage.db");
    std::fs::write(&path, vec![7u8; 8192]).unwrap();
    let error = Store::open(&path).err().unwrap();
    assert!(matches!(error, StoreError::Foreign { .. }), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), vec![7u8; 8192]);
}

#[tokio::test]
async fn a_torn_write_ahead_log_costs_only_what_was_not_synced() {
    let (dir, store) = open();
    for n in 0..50u8 {
        store
            .write(move |tx| tx.set_meta(&format!("k{n}"), &[n]))
            .await
            .unwrap();
    }
    // A copy of the files as they are, with the tail of the log torn off in the middle of a frame.
    let copy = tempfile::tempdir().unwrap();
    for name in ["store.db", "store.db-wal"] {
        std::fs::copy(dir.path().join(name), copy.path().join(name)).unwrap();
    }
    let wal = copy.path().join("store.db-wal");
    let length = std::fs::metadata(&wal).unwrap().len();
    std::fs::File::options()
        .write(true)
        .open(&wal)
        .unwrap()
        .set_len(length - 100)
        .unwrap();
    let torn = Store::open(&copy.path().join("store.db")).unwrap();
    assert_eq!(torn.read(|tx| tx.meta("k48")).await.unwrap().unwrap(), [48]);
    assert!(torn.read(|tx| tx.meta("k49")).await.unwrap().is_none());
}

#[tokio::test]
async fn numbers_are_given_once_and_taken_once() {
    let (_dir, store) = open();
    let message = || numbered::Kind::Cancel(fairlead_protocol::Cancel::default());
    let first = store
        .write(move |tx| tx.send_later("r", message()))
        .await
        .unwrap();
    let second = store
        .write(move |tx| tx.send_later("r", message()))
        .await
        .unwrap();
    assert_eq!((first.seq, second.seq), (1, 2));
    store.write(|tx| tx.acknowledged_by("r", 2)).await.unwrap();
    let third = store
        .write(move |tx| tx.send_later("r", message()))
        .await
        .unwrap();
    assert_eq!(
        third.seq, 3,
        "an emptied outbox does not start again from one"
    );
    assert_eq!(
        store.read(|tx| tx.watermarks("r")).await.unwrap(),
        crate::exchange::Watermarks {
            sent: 3,
            taken: 0,
            kept_from: 3
        }
    );
    assert!(store.write(|tx| tx.take_from("r", 1)).await.unwrap());
    assert!(
        !store.write(|tx| tx.take_from("r", 1)).await.unwrap(),
        "taken once"
    );
    let gap = store.write(|tx| tx.take_from("r", 3)).await.unwrap_err();
    assert!(
        matches!(
            gap,
            StoreError::Gap {
                seq: 3,
                expected: 2
            }
        ),
        "{gap}"
    );
}

#[tokio::test]
async fn sides_whose_numbers_went_back_meet_above_the_other() {
    let (_dir, store) = open();
    let message = || numbered::Kind::Cancel(fairlead_protocol::Cancel::default());
    store
        .write(move |tx| tx.send_later("r", message()))
        .await
        .unwrap();
    // The peer has 10 of ours (we were restored from a backup) and can send from 4 on.
    let missing = store.write(|tx| tx.meet("r", 10, 4)).await.unwrap();
    assert_eq!(missing, 3, "what the peer cannot send any more is counted");
    let waiting = store.read(|tx| tx.waiting_for("r", 0, 10)).await.unwrap();
    assert_eq!(
        waiting.len(),
        1,
        "numbered since the restore, so not one of the peer's ten"
    );
    assert_eq!(waiting[0].seq, 11);
    let next = store
        .write(move |tx| tx.send_later("r", message()))
        .await
        .unwrap();
    assert_eq!(next.seq, 12);
    assert!(store.write(|tx| tx.take_from("r", 4)).await.unwrap());
    assert_eq!(store.write(|tx| tx.meet("r", 12, 5)).await.unwrap(), 0);
}

#[tokio::test]
async fn that_nothing_can_be_written_is_known_until_something_was() {
    let (_dir, store) = open();
    assert!(store.trouble().is_none());
    let pages = |tx: &Tx<'_>, max: u32| -> Result<(), StoreError> {
        tx.sql
            .pragma_update(None, "max_page_count", max)
            .map_err(StoreError::from)
    };
    store.write(move |tx| pages(tx, 1)).await.unwrap();
    let error = store
        .write(|tx| tx.set_meta("large", &[0; 1_000_000]))
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
    assert!(store.trouble().is_some());
    // A write that changes nothing proves nothing.
    store.write(|_| Ok(())).await.unwrap();
    assert!(store.trouble().is_some());
    store.write(move |tx| pages(tx, 100_000)).await.unwrap();
    store.probe().await;
    assert!(store.trouble().is_none());
    store
        .write(|tx| tx.set_meta("large", &[0; 1_000_000]))
        .await
        .unwrap();
}

/// What SQLite would do, a line a step.
fn plan(tx: &Tx<'_>, statement: &str) -> String {
    let mut explained = tx
        .sql
        .prepare(&format!("EXPLAIN QUERY PLAN {statement}"))
        .unwrap();
    let count = explained.parameter_count();
    let steps = explained
        .query_map(
            rusqlite::params_from_iter(vec![rusqlite::types::Null; count]),
            |row| row.get::<_, String>(3),
        )
        .unwrap();
    steps.collect::<Result<Vec<_>, _>>().unwrap().join("; ")
}

/// Each costs as much as it finds, however many commands and events are kept. One that looked at all of them
/// once kept thousands of hosts from coming back.
#[tokio::test]
async fn what_is_asked_often_is_looked_up() {
    let (_dir, store) = open();
    let plans = |tx: &Tx<'_>| {
        use crate::{commands, events};
        Ok([
            (
                commands::open_of_host(),
                "SEARCH commands USING INDEX commands_open (host=?)",
            ),
            (
                commands::ANY_OPEN_OF_HOST.to_owned(),
                "INDEX commands_open (host=?)",
            ),
            (
                commands::OPEN_IN_BRIEF.to_owned(),
                "SCAN commands USING INDEX commands_open",
            ),
            (
                commands::listing(true, false),
                "USING INDEX commands_by_host (host=? AND place<?)",
            ),
            (
                commands::listing(false, false),
                "USING INDEX commands_by_place (place<?)",
            ),
            (
                commands::listing(true, true),
                "SEARCH commands USING INDEX commands_open (host=? AND place<?)",
            ),
            (
                commands::listing(false, true),
                "SCAN commands USING INDEX commands_open",
            ),
            (
                events::listing(true, false),
                "USING INDEX events_by_host (host=? AND seq>? AND seq<?)",
            ),
            (
                events::listing(false, true),
                "USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)",
            ),
        ]
        .map(|(statement, wanted)| (plan(tx, &statement), wanted)))
    };
    for (planned, wanted) in store.read(plans).await.unwrap() {
        assert!(planned.contains(wanted), "{planned}, not {wanted}");
    }
}
