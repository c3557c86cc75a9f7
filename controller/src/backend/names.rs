//! Names for containers that come without one, of the kind docker gives: adjective and noun.

use fairlead_identity::random;

const ADJECTIVES: [&str; 32] = [
    "agile", "bold", "brave", "bright", "calm", "clever", "crisp", "daring", "eager", "fair",
    "fleet", "gentle", "happy", "hardy", "keen", "kind", "lively", "lucid", "mellow", "merry",
    "nimble", "patient", "proud", "quick", "quiet", "sharp", "sober", "steady", "sunny", "swift",
    "vivid", "warm",
];
const NOUNS: [&str; 32] = [
    "anchor", "ballast", "beacon", "bollard", "bowline", "bridge", "buoy", "capstan", "cleat",
    "compass", "cutter", "ferry", "halyard", "harbour", "hawser", "helm", "jetty", "keel",
    "lantern", "mast", "mooring", "oar", "pilot", "quay", "rudder", "sail", "schooner", "sextant",
    "skiff", "tiller", "windlass", "wharf",
];

/// A new name. Four random digits make a clash on one host unlikely; if there is one, the engine
/// refuses and nothing is lost.
#[must_use]
pub(super) fn generate() -> String {
    let [a, n, x, y] = random::bytes::<4>();
    let number = u16::from_be_bytes([x, y]) % 10_000;
    let adjective = ADJECTIVES[usize::from(a) % ADJECTIVES.len()];
    let noun = NOUNS[usize::from(n) % NOUNS.len()];
    format!("{adjective}_{noun}_{number:04}")
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_are_names() {
        for _ in 0..100 {
            let name = super::generate();
            assert!(
                super::super::convert::container_name(&name).is_ok(),
                "{name}"
            );
        }
    }
}
