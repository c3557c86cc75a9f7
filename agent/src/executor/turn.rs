//! Who is first: the job, which asks the engine, or the person, who withdraws the command.

use std::sync::{Mutex, PoisonError};

/// Shared by a command's job and the actor. As long as nothing of the command has been asked of the
/// engine it can be withdrawn; from then on it cannot; never both.
#[derive(Debug, Default)]
pub(super) struct Turn(Mutex<Whose>);

#[derive(Debug, Default)]
enum Whose {
    #[default]
    Nobodys,
    /// The engine is being asked, or may act still.
    Taken,
    /// By whom.
    Withdrawn(String),
}

impl Turn {
    /// Of a command that an earlier instance began: until that is settled it cannot be withdrawn.
    pub(super) fn taken() -> Self {
        Self(Mutex::new(Whose::Taken))
    }

    fn whose(&self) -> std::sync::MutexGuard<'_, Whose> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Withdraws the command; `false` when it has begun.
    pub(super) fn withdraw(&self, by: &str) -> bool {
        let mut whose = self.whose();
        if matches!(*whose, Whose::Nobodys) {
            *whose = Whose::Withdrawn(by.to_owned());
        }
        matches!(*whose, Whose::Withdrawn(_))
    }

    /// The engine is asked from here on.
    ///
    /// # Errors
    /// When the command was withdrawn before, with the name of who did it.
    pub(super) fn take(&self) -> Result<(), String> {
        let mut whose = self.whose();
        if let Whose::Withdrawn(by) = &*whose {
            return Err(by.clone());
        }
        *whose = Whose::Taken;
        Ok(())
    }

    /// The engine did nothing of it, and will not.
    pub(super) fn give_back(&self) {
        let mut whose = self.whose();
        if matches!(*whose, Whose::Taken) {
            *whose = Whose::Nobodys;
        }
    }

    /// Who withdrew it.
    pub(super) fn withdrawn(&self) -> Option<String> {
        match &*self.whose() {
            Whose::Withdrawn(by) => Some(by.clone()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_wins_and_the_second_is_told() {
        let turn = Turn::default();
        assert!(turn.withdraw("ann"));
        assert!(turn.withdraw("bob"), "it is withdrawn, by ann");
        assert_eq!(turn.take(), Err("ann".to_owned()));
        turn.give_back();
        assert_eq!(turn.withdrawn().as_deref(), Some("ann"));

        let turn = Turn::default();
        assert_eq!(turn.take(), Ok(()));
        assert!(!turn.withdraw("ann"));
        turn.give_back();
        assert!(turn.withdraw("ann"), "the engine was not there");

        let turn = Turn::taken();
        assert!(!turn.withdraw("ann"));
    }
}
