//! A tree before and after: what is in it, and whether anything happened to it at all.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// One thing in a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) mode: u32,
    pub(super) owner: (u32, u32),
    pub(super) content: Vec<u8>,
}

/// The tree, file by file: kind, mode, owner, content.
pub(super) fn tree(root: &Path) -> BTreeMap<PathBuf, Entry> {
    walk(root)
        .into_iter()
        .map(|path| {
            let about = fs::symlink_metadata(&path).unwrap();
            let content = if about.is_symlink() {
                fs::read_link(&path)
                    .unwrap()
                    .into_os_string()
                    .into_encoded_bytes()
            } else if about.is_file() {
                fs::read(&path).unwrap()
            } else {
                Vec::new()
            };
            let entry = Entry {
                mode: about.mode(),
                owner: (about.uid(), about.gid()),
                content,
            };
            (path.strip_prefix(root).unwrap().to_owned(), entry)
        })
        .collect()
}

/// The tree's inodes with their times: nothing at all may have happened where two of these are equal.
pub(super) fn inodes(root: &Path) -> BTreeMap<PathBuf, (u64, i64, i64, i64, i64)> {
    walk(root)
        .into_iter()
        .map(|path| {
            let about = fs::symlink_metadata(&path).unwrap();
            let times = (
                about.ino(),
                about.mtime(),
                about.mtime_nsec(),
                about.ctime(),
                about.ctime_nsec(),
            );
            (path, times)
        })
        .collect()
}

fn walk(root: &Path) -> Vec<PathBuf> {
    let mut found = vec![root.to_owned()];
    let mut next = 0;
    while next < found.len() {
        let path = found[next].clone();
        next += 1;
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            found.extend(
                fs::read_dir(path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        }
    }
    found
}
