//! What the programs are made of (CycloneDX 1.5, JSON), from what `cargo metadata` says.
//!
//! Listed is what the programs depend on (macros, which cargo does not tell apart, included), not what
//! their build scripts and tests do, and of what is optional only what is switched on: cargo's metadata names
//! a crate that a weak feature (`name?/feature`) would have wanted also where it is not built. The same
//! metadata gives the same bytes.

use std::collections::{BTreeMap, BTreeSet};

use fairlead_identity::package::{Timestamp, Version};
use serde::Deserialize;
use serde_json::{Value, json};

/// Crates whose programs are packed.
const ROOTS: [&str; 4] = [
    "fairlead-access-server",
    "fairlead-agent",
    "fairlead-cli",
    "fairlead-controller",
];

/// Why there is no list.
#[derive(Debug, thiserror::Error)]
pub enum SbomError {
    /// Not what `cargo metadata --format-version 1` writes.
    #[error("the metadata cannot be read: {0}")]
    Metadata(#[from] serde_json::Error),
    /// A program is not in it.
    #[error("the metadata does not know {0}")]
    Root(&'static str),
    /// A crate without a licence would be passed on with unknown terms.
    #[error("{0} names no licence")]
    Licence(String),
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Crate>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Crate {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
    #[serde(default)]
    dependencies: Vec<Declared>,
    /// What each feature switches on.
    #[serde(default)]
    features: BTreeMap<String, Vec<String>>,
}

/// A dependency as a crate's `Cargo.toml` has it.
#[derive(Deserialize)]
struct Declared {
    name: String,
    rename: Option<String>,
    optional: bool,
    kind: Option<String>,
}

impl Crate {
    /// Whether something of that name is built for this crate, with these features.
    fn wants(&self, name: &str, enabled: &[String]) -> bool {
        let mut ways = self
            .dependencies
            .iter()
            .filter(|declared| declared.name == name && declared.kind.is_none())
            .peekable();
        // Nothing is known against it.
        ways.peek().is_none() || ways.any(|way| !way.optional || self.enables(way, enabled))
    }

    fn enables(&self, way: &Declared, enabled: &[String]) -> bool {
        let key = way.rename.as_ref().unwrap_or(&way.name);
        let switches = enabled.iter().filter_map(|name| self.features.get(name));
        switches.flatten().any(|switch| {
            switch.strip_prefix("dep:") == Some(key)
                || switch.split_once('/').is_some_and(|(name, _)| name == key)
        })
    }
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
    #[serde(default)]
    features: Vec<String>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<Kind>,
}

#[derive(Deserialize)]
struct Kind {
    /// Nothing for an ordinary dependency, else `build` or `dev`.
    kind: Option<String>,
}

/// One crate in the list.
struct Component {
    name: String,
    version: String,
    licence: String,
    ours: bool,
    depends_on: BTreeSet<String>,
}

/// The list for a version, from the metadata of each target.
///
/// # Errors
/// When the metadata is not complete.
pub fn document<'a>(
    metadata: impl IntoIterator<Item = &'a [u8]>,
    version: &Version,
    released: Timestamp,
) -> Result<String, SbomError> {
    let mut components = BTreeMap::new();
    for bytes in metadata {
        collect(&serde_json::from_slice(bytes)?, version, &mut components)?;
    }
    let dependencies: Vec<_> = components
        .iter()
        .map(
            |(reference, component)| json!({ "ref": reference, "dependsOn": component.depends_on }),
        )
        .collect();
    let listed: Vec<_> = components.iter().map(written).collect();
    let document = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "timestamp": released.to_string(),
            "component": {
                "bom-ref": "fairlead",
                "type": "application",
                "name": "fairlead",
                "version": version.to_string(),
                "licenses": [{ "expression": "Apache-2.0" }],
            },
        },
        "components": listed,
        "dependencies": dependencies,
    });
    Ok(format!("{document:#}\n"))
}

fn written((reference, component): (&String, &Component)) -> Value {
    let mut value = json!({
        "bom-ref": reference,
        "type": if ROOTS.contains(&component.name.as_str()) { "application" } else { "library" },
        "name": component.name,
        "version": component.version,
        "licenses": [{ "expression": component.licence }],
    });
    if !component.ours {
        value["purl"] = json!(reference);
    }
    value
}

fn collect(
    metadata: &Metadata,
    version: &Version,
    components: &mut BTreeMap<String, Component>,
) -> Result<(), SbomError> {
    let crates: BTreeMap<_, _> = metadata.packages.iter().map(|c| (&c.id, c)).collect();
    let nodes: BTreeMap<_, _> = metadata.resolve.nodes.iter().map(|n| (&n.id, n)).collect();
    let mut open = Vec::new();
    for root in ROOTS {
        let found = metadata
            .packages
            .iter()
            .find(|c| c.name == root && c.source.is_none());
        open.push(&found.ok_or(SbomError::Root(root))?.id);
    }
    let mut seen = BTreeSet::new();
    while let Some(id) = open.pop() {
        let (Some(this), Some(node)) = (crates.get(id), nodes.get(id)) else {
            continue;
        };
        if !seen.insert(id) {
            continue;
        }
        let shipped = node
            .deps
            .iter()
            .filter(|d| d.dep_kinds.iter().any(|k| k.kind.is_none()));
        let mut depends_on = BTreeSet::new();
        for dependency in shipped {
            if let Some(there) = crates.get(&dependency.pkg)
                && this.wants(&there.name, &node.features)
            {
                depends_on.insert(reference(there));
                open.push(&dependency.pkg);
            }
        }
        components
            .entry(reference(this))
            .or_insert(component(this, version)?)
            .depends_on
            .extend(depends_on);
    }
    Ok(())
}

fn component(this: &Crate, version: &Version) -> Result<Component, SbomError> {
    let ours = this.source.is_none();
    let licence = this
        .license
        .as_ref()
        .ok_or_else(|| SbomError::Licence(this.name.clone()))?;
    Ok(Component {
        name: this.name.clone(),
        version: if ours {
            version.to_string()
        } else {
            this.version.clone()
        },
        // An older way of writing "or", which is no SPDX expression.
        licence: licence
            .split('/')
            .map(str::trim)
            .collect::<Vec<_>>()
            .join(" OR "),
        ours,
        depends_on: BTreeSet::new(),
    })
}

fn reference(this: &Crate) -> String {
    if this.source.is_none() {
        this.name.clone()
    } else {
        format!("pkg:cargo/{}@{}", this.name, this.version)
    }
}
