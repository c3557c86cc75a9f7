//! The ledger's file with changes anywhere: it opens or is refused, and what is read is rows or an error.
#![no_main]

use std::sync::LazyLock;

use fairlead_fuzz::{RUNTIME, dir, pieces};
use fairlead_store::Store;
use libfuzzer_sys::fuzz_target;

/// A ledger with nothing but its tables and one value.
static GOOD: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let path = dir().join("good.db");
    RUNTIME.block_on(async {
        let store = Store::open(&path).expect("a new ledger");
        store.write(|tx| tx.set_meta("probe", b"1")).await.expect("written");
        drop(store);
    });
    // The writer's thread may still be on its way out; what it wrote is in the log beside the file.
    let copy = dir().join("copy.db");
    for _ in 0..1000 {
        if !dir().join("good.db-wal").exists() {
            break;
        }
        std::thread::yield_now();
    }
    std::fs::copy(&path, &copy).expect("copied");
    std::fs::read(copy).expect("read")
});

fuzz_target!(|input: &[u8]| {
    let mut file = GOOD.clone();
    for change in pieces(input) {
        let Some((at, put)) = change.split_first_chunk::<3>() else { continue };
        let at = usize::from(at[0]) << 16 | usize::from(at[1]) << 8 | usize::from(at[2]);
        if put.is_empty() {
            file.truncate(at);
        } else if !file.is_empty() {
            let at = at % file.len();
            let end = (at + put.len()).min(file.len());
            file[at..end].copy_from_slice(&put[..end - at]);
        }
    }
    let path = dir().join("ledger.db");
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(dir().join(format!("ledger.db{suffix}")));
    }
    std::fs::write(&path, &file).expect("a file");
    RUNTIME.block_on(async {
        let Ok(store) = Store::open(&path) else { return };
        let _ = store.read(|tx| tx.open_commands_in_brief()).await;
        let _ = store.read(|tx| tx.hosts(None)).await;
        let _ = store.read(|tx| tx.meta("probe")).await;
        let _ = store.write(|tx| tx.set_meta("probe", b"2")).await;
    });
});
