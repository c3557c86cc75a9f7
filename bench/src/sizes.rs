//! How large the programs are.

use std::path::Path;

use crate::figures::Figure;

/// Sizes of the programs beside this one.
///
/// # Panics
/// When one is not there.
#[must_use]
pub fn measure(programs: &Path) -> Vec<Figure> {
    [
        "fairlead-agent",
        "fairlead-access-server",
        "fairlead-controller",
        "fairlead",
    ]
    .into_iter()
    .map(|name| {
        let size = std::fs::metadata(programs.join(name))
            .expect("the program")
            .len();
        let figure = Figure::new("sizes", name, size as f64 / 1e6, "MB");
        match name {
            "fairlead-agent" => figure.at_most(6.0),
            _ => figure,
        }
    })
    .collect()
}
