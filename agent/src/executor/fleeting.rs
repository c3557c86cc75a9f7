//! Results of commands without effect: in memory until the region has them, and bounded. One that had to
//! go is no loss: its command is delivered again, and looks again.

use std::collections::{HashMap, VecDeque};

use fairlead_protocol::{CommandId, CommandResult};

/// Results that are kept.
const COUNT_MAX: usize = 1024;
/// Bytes of their bodies.
const BYTES_MAX: usize = 16 * 1024 * 1024;

/// The results, oldest first.
#[derive(Default)]
pub(super) struct Fleeting {
    results: HashMap<CommandId, CommandResult>,
    order: VecDeque<CommandId>,
    bytes: usize,
}

impl Fleeting {
    pub(super) fn insert(&mut self, id: CommandId, result: CommandResult) {
        self.remove(id);
        self.bytes += result.body.len();
        self.results.insert(id, result);
        self.order.push_back(id);
        while self.order.len() > COUNT_MAX || self.bytes > BYTES_MAX && self.order.len() > 1 {
            if let Some(oldest) = self.order.front().copied() {
                self.remove(oldest);
            }
        }
    }

    pub(super) fn remove(&mut self, id: CommandId) {
        if let Some(result) = self.results.remove(&id) {
            self.bytes -= result.body.len();
            self.order.retain(|other| *other != id);
        }
    }

    pub(super) fn get(&self, id: CommandId) -> Option<&CommandResult> {
        self.results.get(&id)
    }

    /// All of them, oldest first.
    pub(super) fn all(&self) -> Vec<CommandResult> {
        self.order
            .iter()
            .filter_map(|id| self.results.get(id).cloned())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: usize) -> CommandId {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&n.to_le_bytes());
        CommandId::from_bytes(bytes)
    }

    fn result(bytes: usize) -> CommandResult {
        CommandResult {
            body: vec![0; bytes].into(),
            ..CommandResult::default()
        }
    }

    #[test]
    fn a_server_that_never_acknowledges_costs_bounded_memory() {
        let mut fleeting = Fleeting::default();
        for n in 0..2 * COUNT_MAX {
            fleeting.insert(id(n), result(1));
        }
        assert_eq!(fleeting.all().len(), COUNT_MAX);
        assert!(fleeting.get(id(0)).is_none(), "the oldest went");
        assert!(fleeting.get(id(2 * COUNT_MAX - 1)).is_some());
        for n in 0..100 {
            fleeting.insert(id(n), result(256 * 1024));
        }
        assert!(fleeting.bytes <= BYTES_MAX);
        fleeting.insert(id(7), result(BYTES_MAX + 1));
        assert_eq!(fleeting.all().len(), 1, "the newest is kept, however large");
        fleeting.remove(id(7));
        assert_eq!((fleeting.all().len(), fleeting.bytes), (0, 0));
    }
}
