//! Names of events that one end makes and another end looks for.

/// A machine with a copy of a host's identity was refused.
pub const HOST_CLONE: &str = "host.clone";
/// The owner of a machine gave its identity up.
pub const HOST_LEFT: &str = "host.left";
/// A host is held until an admin approves it.
pub const HOST_HELD: &str = "host.held";
/// A host says more than it may, or comes more often, and is slowed down (the detail says which).
pub const HOST_FLOODING: &str = "host.flooding";
/// A region cannot write its ledger (the detail says why), or can again (empty). Sent unnumbered: what
/// cannot be written cannot be numbered either.
pub const REGION_STORAGE: &str = "region.storage";

/// The clocks of a region and the centre are apart (the detail says how far), or agree again (empty). Sent
/// unnumbered.
pub const REGION_CLOCK: &str = "region.clock";

/// Whether an event is a server's own word of a host or region, which no agent may say.
#[must_use]
pub fn is_servers(action: &str) -> bool {
    action.starts_with("host.") || action.starts_with("region.")
}
