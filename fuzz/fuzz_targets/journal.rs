//! Journal files: whatever lies there, opening ends with entries or a reason, and opening again what was
//! taken over gives the same.
#![no_main]

use std::collections::BTreeSet;
use std::path::Path;

use fairlead_agent::journal::Journal;
use fairlead_fuzz::{RUNTIME, dir, pieces};
use fairlead_protocol::{HostId, InstanceId, JournalHeader, JournalRecord, Message, journal_record::Kind};
use libfuzzer_sys::fuzz_target;

const NOW_US: i64 = 1_800_000_000_000_000;

fn instance(n: u8) -> InstanceId {
    InstanceId::from_bytes([n; 16])
}

fn framed(payload: &[u8], into: &mut Vec<u8>) {
    into.extend_from_slice(&u32::try_from(payload.len()).expect("small").to_le_bytes());
    into.extend_from_slice(&crc32(payload).to_le_bytes());
    into.extend_from_slice(payload);
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

/// What a start would do with what is there: ids to settle, ids whose results are to be sent.
fn opened(dir: &Path, n: u8) -> Option<(BTreeSet<String>, BTreeSet<String>)> {
    let host = HostId::from_bytes([9; 16]);
    let journal = Journal::open(dir, instance(n), host, u64::from(n), NOW_US).ok()?;
    if journal.blocked().is_some() {
        return None;
    }
    let unsettled = journal.unsettled().iter().map(|(id, ..)| id.to_string()).collect();
    let unacked = journal.unacked().iter().map(|result| format!("{result:?}")).collect();
    Some((unsettled, unacked))
}

fuzz_target!(|input: &[u8]| {
    let Some((&way, rest)) = input.split_first() else { return };
    let mut file = Vec::new();
    if way & 1 == 0 {
        // Good frames and a good beginning; what is in them is anybody's.
        let header = JournalHeader { format: 1, instance: instance(1).to_wire(), epoch: 1, at_us: NOW_US, ..JournalHeader::default() };
        framed(&JournalRecord { kind: Some(Kind::Header(header)) }.encode_to_vec(), &mut file);
        for piece in pieces(rest) {
            framed(piece, &mut file);
        }
        if way & 2 != 0 {
            file.truncate(file.len().saturating_sub(usize::from(way >> 2)));
        }
    } else {
        file.extend_from_slice(rest);
    }
    let dir = dir().join("journal");
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).expect("a directory");
    std::fs::write(dir.join(instance(1).to_string()), &file).expect("a file");
    let _context = RUNTIME.enter();
    if let Some(first) = opened(&dir, 2) {
        // Its own file now says the same as the one that it took over.
        let second = opened(&dir, 3).expect("what was just written can be read");
        assert_eq!(first, second);
    }
});
