//! The file trees of simulated containers, in and out as tar archives.

use std::collections::BTreeMap;
use std::io::Read;

use serde::{Deserialize, Serialize};

use crate::runtime::RuntimeError;

/// What one container's tree may hold; the tree lives in memory and in a JSON file.
pub(super) const TREE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Files and directories by absolute path; the root itself is not listed.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Tree {
    nodes: BTreeMap<String, Node>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Node {
    Directory {
        mode: u32,
    },
    File {
        mode: u32,
        #[serde(with = "hex")]
        bytes: Vec<u8>,
    },
}

/// Bytes as hex, so that the JSON stays readable and short.
pub(super) mod hex {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(in super::super) fn serialize<S: Serializer>(
        bytes: &[u8],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let mut text = String::with_capacity(bytes.len() * 2);
        for byte in bytes {
            for digit in [byte >> 4, byte & 15] {
                text.push(char::from_digit(u32::from(digit), 16).unwrap_or('0'));
            }
        }
        serializer.serialize_str(&text)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits: Option<Vec<u8>> = text
            .chars()
            .map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
            .collect();
        let digits = digits.ok_or_else(|| serde::de::Error::custom("not hex"))?;
        Ok(digits
            .chunks(2)
            .map(|pair| pair.iter().fold(0, |all, d| (all << 4) | d))
            .collect())
    }
}

fn failed(error: impl std::fmt::Display) -> RuntimeError {
    RuntimeError::Engine(format!("the archive cannot be read: {error}"))
}

/// The path without `.`, `..`, double and trailing slashes; always absolute.
fn normal(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

impl Tree {
    /// What a new container has.
    pub(super) fn fresh(name: &str) -> Self {
        let mut tree = Self::default();
        for directory in ["/bin", "/etc", "/root", "/srv", "/tmp", "/var"] {
            tree.nodes
                .insert(directory.to_owned(), Node::Directory { mode: 0o755 });
        }
        let hostname = format!("{name}\n").into_bytes();
        tree.nodes.insert(
            "/etc/hostname".to_owned(),
            Node::File {
                mode: 0o644,
                bytes: hostname,
            },
        );
        tree
    }

    pub(super) fn is_directory(&self, path: &str) -> bool {
        let path = normal(path);
        path == "/" || matches!(self.nodes.get(&path), Some(Node::Directory { .. }))
    }

    fn size(&self) -> u64 {
        self.nodes
            .values()
            .map(|node| match node {
                Node::File { bytes, .. } => bytes.len() as u64,
                Node::Directory { .. } => 0,
            })
            .sum()
    }

    /// Unpacks an archive into a directory: all of it or, when it is broken, nothing.
    pub(super) fn unpack(&mut self, directory: &str, archive: &[u8]) -> Result<(), RuntimeError> {
        let mut next = self.clone();
        let base = normal(directory);
        let mut reader = tar::Archive::new(archive);
        for entry in reader.entries().map_err(failed)? {
            let mut entry = entry.map_err(failed)?;
            let inner = entry.path().map_err(failed)?.to_string_lossy().into_owned();
            // An archive never reaches out of the directory that it is unpacked into.
            let path = normal(&format!("{base}{}", normal(&inner)));
            if path == base || path == "/" {
                continue;
            }
            let mode = entry.header().mode().unwrap_or(0o644) & 0o7777;
            let node = match entry.header().entry_type() {
                tar::EntryType::Directory => Node::Directory { mode },
                tar::EntryType::Regular => {
                    let mut bytes = Vec::new();
                    entry.read_to_end(&mut bytes).map_err(failed)?;
                    Node::File { mode, bytes }
                }
                // Links and devices are beyond this engine.
                other => {
                    let text = format!("the simulated engine has no {other:?} ({inner})");
                    return Err(RuntimeError::Engine(text));
                }
            };
            next.add_parents(&path);
            let clash = matches!(
                (next.nodes.get(&path), &node),
                (Some(Node::Directory { .. }), Node::File { .. })
                    | (Some(Node::File { .. }), Node::Directory { .. })
            );
            if clash {
                let text = format!("cannot replace a directory with a file or back: {path}");
                return Err(RuntimeError::Engine(text));
            }
            next.nodes.insert(path, node);
        }
        if next.size() > TREE_BYTES_MAX {
            return Err(RuntimeError::Engine(
                "no space left on the simulated disk".to_owned(),
            ));
        }
        *self = next;
        Ok(())
    }

    fn add_parents(&mut self, path: &str) {
        let mut end = 1;
        while let Some(slash) = path[end..].find('/') {
            end += slash;
            self.nodes
                .entry(path[..end].to_owned())
                .or_insert(Node::Directory { mode: 0o755 });
            end += 1;
        }
    }

    /// A path as an archive whose names begin with the path's last part, as the engine does.
    pub(super) fn pack(&self, path: &str, mtime_s: u64) -> Result<Option<Vec<u8>>, RuntimeError> {
        let path = normal(path);
        let root = path == "/";
        if !root && !self.nodes.contains_key(&path) {
            return Ok(None);
        }
        let parent = path
            .rsplit_once('/')
            .map_or(0, |(parent, _)| parent.len() + 1);
        let below = if root {
            "/".to_owned()
        } else {
            format!("{path}/")
        };
        let mut builder = tar::Builder::new(Vec::new());
        for (name, node) in &self.nodes {
            if *name != path && !name.starts_with(&below) {
                continue;
            }
            let mut header = tar::Header::new_gnu();
            header.set_mtime(mtime_s);
            let inner = if root { &name[1..] } else { &name[parent..] };
            let (kind, mode, bytes): (_, _, &[u8]) = match node {
                Node::Directory { mode } => (tar::EntryType::Directory, *mode, &[]),
                Node::File { mode, bytes } => (tar::EntryType::Regular, *mode, bytes),
            };
            header.set_entry_type(kind);
            header.set_mode(mode);
            header.set_size(bytes.len() as u64);
            builder
                .append_data(&mut header, inner, bytes)
                .map_err(failed)?;
        }
        builder.into_inner().map(Some).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, bytes) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o600);
            header.set_cksum();
            builder.append_data(&mut header, name, *bytes).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn what_goes_in_comes_out() {
        let mut tree = Tree::fresh("web");
        tree.unpack("/srv/", &archive(&[("a/b.txt", b"hello"), ("c", b"x")]))
            .unwrap();
        assert!(tree.is_directory("/srv/a"));
        let mut other = Tree::default();
        other
            .unpack("/tmp", &tree.pack("/srv/a", 0).unwrap().unwrap())
            .unwrap();
        assert_eq!(other.nodes["/tmp/a/b.txt"], tree.nodes["/srv/a/b.txt"]);
        assert!(!other.nodes.contains_key("/tmp/c"));
        assert!(tree.pack("/nope", 0).unwrap().is_none());
        let whole = tree.pack("/", 0).unwrap().unwrap();
        let mut copy = Tree::default();
        copy.unpack("/", &whole).unwrap();
        assert_eq!(copy.nodes, tree.nodes);
    }

    #[test]
    fn a_broken_archive_changes_nothing() {
        let mut tree = Tree::fresh("web");
        let before = tree.nodes.clone();
        let mut bytes = archive(&[("a", b"1"), ("b", &[7; 2000])]);
        bytes.truncate(1800);
        assert!(tree.unpack("/srv", &bytes).is_err());
        assert_eq!(tree.nodes, before);
    }

    #[test]
    fn paths_are_normal() {
        assert_eq!(normal("a//b/../c/./"), "/a/c");
        assert_eq!(normal("../../x"), "/x");
    }

    #[test]
    fn trees_survive_json() {
        let tree = Tree::fresh("web");
        let back: Tree = serde_json::from_str(&serde_json::to_string(&tree).unwrap()).unwrap();
        assert_eq!(back.nodes, tree.nodes);
    }
}
