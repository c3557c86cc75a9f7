//! Telling the service manager (systemd) how this process is. Without one nothing is said.

use sd_notify::NotifyState;

/// It does its work from now on.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// It was asked to end and is about to.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager could not be told");
    }
}
