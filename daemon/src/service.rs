//! Telling the service manager (systemd) how this process is. Without one nothing is said.

use sd_notify::NotifyState;

/// It does its work from now on.
pub fn ready() {
    if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
        tracing::warn!(%error, "the service manager could not be told");
    }
}
