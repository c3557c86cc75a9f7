//! How many hosts one access server can hold: each link is an open file, and the ledger and the uplink need
//! some too, also while thousands come at once. Pure.

/// Most that wait for their handshake, whatever the limit is.
const WAITING_MAX: usize = 8192;

/// Shares of this process's open files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// The limit that these are shares of.
    pub open_files: usize,
    /// Connections that have not said anything yet, or wait for their handshake.
    pub waiting: usize,
    /// Hosts with a link.
    pub links: usize,
}

impl Capacity {
    /// A tenth for those that wait, a tenth for streams, greetings, strangers, the ledger and all else.
    #[must_use]
    pub fn of(open_files: usize) -> Self {
        let tenth = open_files / 10;
        let waiting = tenth.clamp(1, WAITING_MAX);
        Self {
            open_files,
            waiting,
            links: open_files.saturating_sub(waiting + tenth).max(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_always_room_beside_links_and_those_that_wait() {
        for open_files in [64, 1024, 16_384, 20_000, 1_048_576] {
            let capacity = Capacity::of(open_files);
            let rest = open_files - capacity.links - capacity.waiting;
            assert!(rest >= open_files / 10, "{capacity:?}");
        }
        assert_eq!(Capacity::of(20_000).links, 16_000);
        assert_eq!(Capacity::of(1_048_576).waiting, WAITING_MAX);
    }
}
