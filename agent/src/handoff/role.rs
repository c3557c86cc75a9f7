//! What an instance may do: pure.

/// Who an instance is to its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// It has been started and is being tried; another owns the host.
    Standby,
    /// It owns the host in this epoch: it accepts commands and begins them.
    Owner(u64),
    /// It owned the host up to this epoch: it finishes what it had begun and begins nothing.
    Yielded(u64),
}

impl Role {
    /// Whether it takes commands and begins them.
    #[must_use]
    pub fn owns(self) -> bool {
        matches!(self, Self::Owner(_))
    }

    /// Whether it takes a command that the server meant for the owner in that epoch. A server that knows no
    /// handoff does not say: 0.
    #[must_use]
    pub fn takes(self, meant_for: u64) -> bool {
        matches!(self, Self::Owner(epoch) if meant_for == epoch || meant_for == 0)
    }

    /// The epoch that it owns the host in, or owned it last; 0: never.
    #[must_use]
    pub fn epoch(self) -> u64 {
        match self {
            Self::Standby => 0,
            Self::Owner(epoch) | Self::Yielded(epoch) => epoch,
        }
    }

    /// The supervisor grants it an epoch. Whether that changes anything: an epoch that is not beyond the
    /// last one does not.
    pub fn granted(&mut self, epoch: u64) -> bool {
        let higher = epoch > self.epoch();
        if higher {
            *self = Self::Owner(epoch);
        }
        higher
    }

    /// The supervisor asks it to yield. Whether it was the owner.
    pub fn yields(&mut self) -> bool {
        let Self::Owner(epoch) = *self else {
            return false;
        };
        *self = Self::Yielded(epoch);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_granted_once_and_never_backwards() {
        let mut role = Role::Standby;
        assert!(!role.yields());
        assert!(role.granted(4));
        assert!(!role.granted(4) && !role.granted(3));
        assert!(role.owns());
        assert!(role.yields());
        assert!(!role.granted(4), "the epoch that it gave away");
        assert!(role.granted(6));
        assert!(role.takes(6) && role.takes(0) && !role.takes(4) && !role.takes(7));
        assert_eq!(role, Role::Owner(6));
    }
}
