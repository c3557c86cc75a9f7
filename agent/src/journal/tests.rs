//! What a journal keeps through crashes, torn tails, foreign files and take-overs.

use fairlead_protocol::{Command, Message};
use proptest::prelude::*;

use super::*;

const HOUR_US: i64 = 3_600_000_000;

fn id(n: u8) -> CommandId {
    CommandId::from_bytes([n; 16])
}

fn intent(n: u8, not_after_us: i64) -> Intent {
    let command = Command {
        id: id(n).to_wire(),
        not_after_us,
        ..Command::default()
    };
    let signed = SignedCommand {
        command: command.encode_to_vec().into(),
        ..SignedCommand::default()
    };
    Intent {
        command: Some(signed),
        at_us: i64::from(n),
        ..Intent::default()
    }
}

fn result(n: u8) -> CommandResult {
    CommandResult {
        command: id(n).to_wire(),
        state: State::Succeeded.into(),
        body: vec![n; 10].into(),
        ..CommandResult::default()
    }
}

fn open(dir: &Path, instance: u8, now_us: i64) -> Journal {
    let instance = InstanceId::from_bytes([instance; 16]);
    Journal::open(dir, instance, HostId::from_bytes([9; 16]), 1, now_us).unwrap()
}

/// Waits until an instance's file is let go: its writer is a thread of its own.
async fn gone(dir: &Path, instance: u8) {
    let path = dir.join(InstanceId::from_bytes([instance; 16]).to_string());
    while !file::is_dead(&path) {
        tokio::task::yield_now().await;
    }
}

/// What it wrote is in another's journal by then.
#[test]
fn a_journal_that_is_taken_over_while_all_are_read_blocks_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = |n: u8| dir.path().join(InstanceId::from_bytes([n; 16]).to_string());
    drop(open(dir.path(), 1, 0));
    let written = std::fs::read(path(1)).unwrap();
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                for n in 3..20 {
                    std::fs::write(path(n), &written).unwrap();
                    std::fs::remove_file(path(n)).unwrap();
                }
            }
        });
        for _ in 0..2_000 {
            let all = file::read_others(dir.path(), InstanceId::from_bytes([2; 16])).unwrap();
            // One that is being written is whole or has not begun.
            for other in all {
                assert!(other.reading.is_ok(), "{:?}", other.reading.err());
            }
        }
        over.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[tokio::test]
async fn the_next_instance_takes_over_what_is_live_and_removes_the_dead_file() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path(), 1, 0);
    let appender = first.appender();
    appender.intent(intent(1, HOUR_US)).await.unwrap();
    appender.result(id(1), result(1), HOUR_US).await.unwrap();
    appender.intent(intent(2, HOUR_US)).await.unwrap();
    appender.exec_created(id(2), "e2").await.unwrap();
    drop((first, appender));
    gone(dir.path(), 1).await;

    let second = open(dir.path(), 2, 10);
    assert_eq!(second.unacked(), vec![result(1)]);
    let unsettled = second.unsettled();
    assert_eq!(unsettled.len(), 1);
    assert_eq!(
        (unsettled[0].0, unsettled[0].2.as_deref()),
        (id(2), Some("e2"))
    );
    drop(second);
    gone(dir.path(), 2).await;

    // A day after the deadline a finished id is forgotten once the region has its result; until then,
    // and as long as it is unsettled, never.
    let mut third = open(dir.path(), 3, 30 * HOUR_US);
    assert!(third.entry(id(1)).is_some());
    third.acked(id(1));
    third.tidy(30 * HOUR_US);
    assert!(third.entry(id(1)).is_none());
    assert!(third.entry(id(2)).is_some());
}

#[tokio::test]
async fn a_living_instance_is_read_but_not_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let living = open(dir.path(), 1, 0);
    living.appender().intent(intent(1, HOUR_US)).await.unwrap();
    let other = open(dir.path(), 2, 0);
    assert!(other.is_theirs(id(1)), "its ids count");
    assert_eq!(other.unsettled(), [], "and are its own to settle");
    assert!(
        dir.path()
            .join(InstanceId::from_bytes([1; 16]).to_string())
            .exists()
    );
}

#[tokio::test]
async fn what_an_instance_leaves_is_taken_over_when_it_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let host = HostId::from_bytes([9; 16]);
    let old = open(dir.path(), 1, 0);
    old.appender().intent(intent(1, HOUR_US)).await.unwrap();
    // It does not own the host yet.
    let new_id = InstanceId::from_bytes([2; 16]);
    let mut new = Journal::open(dir.path(), new_id, host, 0, 0).unwrap();
    let appender = old.appender();
    appender.intent(intent(2, HOUR_US)).await.unwrap();
    appender.result(id(2), result(2), HOUR_US).await.unwrap();
    let old_name = InstanceId::from_bytes([1; 16]).to_string();
    new.know(read_of(dir.path(), &old_name).unwrap());
    assert!(new.entry(id(2)).is_some(), "it has ended");
    assert_eq!(new.unacked(), [], "and its result is the other's to send");
    assert_eq!(new.unsettled(), []);
    assert!(of_the_dead(dir.path(), new_id, host).unwrap().is_empty());

    drop((old, appender));
    gone(dir.path(), 1).await;
    let dead = of_the_dead(dir.path(), new_id, host).unwrap();
    new.take_over(dead);
    assert_eq!(new.unacked(), [result(2)], "now it is ours to send");
    assert_eq!(new.unsettled().len(), 1);
    assert!(!new.is_theirs(id(1)));
    while dir.path().join(&old_name).exists() {
        tokio::task::yield_now().await;
    }
    drop(new);
    gone(dir.path(), 2).await;
    let next = open(dir.path(), 3, 0);
    assert_eq!((next.unacked().len(), next.unsettled().len()), (1, 1));
}

#[tokio::test]
async fn a_newer_or_foreign_file_blocks_and_stays() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(InstanceId::from_bytes([7; 16]).to_string());
    let header = JournalHeader {
        format: FORMAT + 1,
        ..JournalHeader::default()
    };
    let record = JournalRecord {
        kind: Some(Kind::Header(header)),
    }
    .encode_to_vec();
    let mut bytes = u32::try_from(record.len()).unwrap().to_le_bytes().to_vec();
    bytes.extend(crc32fast::hash(&record).to_le_bytes());
    bytes.extend(&record);
    std::fs::write(&path, &bytes).unwrap();
    assert!(
        open(dir.path(), 1, 0)
            .blocked()
            .unwrap()
            .contains("format 2")
    );
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    std::fs::write(&path, vec![b'x'; 5000]).unwrap();
    assert!(
        open(dir.path(), 2, 0)
            .blocked()
            .unwrap()
            .contains("not a journal")
    );
}

#[tokio::test]
async fn compaction_keeps_what_matters_and_appends_go_on_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path(), 1, 0);
    let appender = journal.appender();
    for n in 1..=3 {
        appender.intent(intent(n, HOUR_US)).await.unwrap();
    }
    appender.result(id(1), result(1), HOUR_US).await.unwrap();
    journal.writer.compact(still_mattering(0));
    appender.result(id(2), result(2), HOUR_US).await.unwrap();
    drop((journal, appender));
    gone(dir.path(), 1).await;
    let next = open(dir.path(), 2, 0);
    assert_eq!(next.unacked().len(), 2);
    assert_eq!(next.unsettled().len(), 1);
}

proptest! {
    /// Wherever a file is cut, what was written before the cut is read and nothing is made up.
    #[test]
    fn a_torn_tail_costs_only_the_tail(cut in 0..whole_journal().len()) {
        let whole = whole_journal();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(InstanceId::from_bytes([1; 16]).to_string());
        std::fs::write(&path, &whole[..cut]).unwrap();
        let next = open(dir.path(), 2, 0);
        let found = next.unsettled();
        prop_assert!(next.blocked().is_none());
        for (index, (found_id, _, _)) in found.iter().enumerate() {
            prop_assert_eq!(*found_id, id(u8::try_from(index + 1).unwrap()));
        }
    }
}

/// The bytes of a journal with twenty intents, made once.
fn whole_journal() -> &'static [u8] {
    static WHOLE: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    WHOLE.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let dir = tempfile::tempdir().unwrap();
        let journal = open(dir.path(), 1, 0);
        runtime.block_on(async {
            for n in 1..=20 {
                journal.appender().intent(intent(n, HOUR_US)).await.unwrap();
            }
        });
        drop(journal);
        std::fs::read(dir.path().join(InstanceId::from_bytes([1; 16]).to_string())).unwrap()
    })
}

#[tokio::test]
async fn a_journal_of_another_host_is_kept_and_not_acted_on() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path(), 1, 0);
    let appender = first.appender();
    appender.intent(intent(1, HOUR_US)).await.unwrap();
    appender.result(id(2), result(2), HOUR_US).await.unwrap();
    drop((first, appender));
    gone(dir.path(), 1).await;

    let instance = InstanceId::from_bytes([2; 16]);
    let other = HostId::from_bytes([8; 16]);
    let second = Journal::open(dir.path(), instance, other, 1, 10).unwrap();
    assert_eq!(second.unsettled(), []);
    assert_eq!(second.unacked(), []);
    assert_eq!(second.blocked(), None);
    let aside = InstanceId::from_bytes([1; 16]).to_string() + ".other-host";
    assert!(dir.path().join(&aside).is_file(), "it is kept");

    let third = open(dir.path(), 3, 20);
    assert_eq!(third.entry(id(1)), None, "and not looked at again");
}
