//! Shutdown as a value: one token that everybody watches, cancelled by SIGTERM or SIGINT.

use tokio::signal::unix::{SignalKind, signal};
pub use tokio_util::sync::CancellationToken as Shutdown;

/// A token that is cancelled at the first SIGTERM or SIGINT.
///
/// # Errors
/// When signal handlers cannot be installed.
pub fn on_signal() -> std::io::Result<Shutdown> {
    let shutdown = Shutdown::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let token = shutdown.clone();
    // Lives as long as the process; there is nobody to join it.
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        token.cancel();
    });
    Ok(shutdown)
}

/// With `FAIRLEAD_DIE_WITH_PARENT=1` in the environment, this process ends when the one that started
/// it does: `fairlead dev` must leave nothing behind, however it ends.
pub fn die_with_parent_if_asked() {
    if std::env::var("FAIRLEAD_DIE_WITH_PARENT").is_ok_and(|value| value == "1") {
        let asked =
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM));
        if let Err(error) = asked {
            tracing::warn!(%error, "the parent's end will not be noticed");
        }
    }
}
