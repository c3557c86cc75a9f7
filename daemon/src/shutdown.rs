//! Shutdown as a value: one token that everybody watches, cancelled by SIGTERM or SIGINT.

pub use tokio_util::sync::CancellationToken as Shutdown;
use tokio::signal::unix::{SignalKind, signal};

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
