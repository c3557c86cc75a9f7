//! The packer: makes a package (`VERSION/`) of built programs, signs it, checks it, bundles it.
//!
//! It runs where versions are made, never on a host; `fairlead agent keygen` uses its key files. Everything it writes is a function of what it is
//! given: the same programs, version, time and key make the same bytes.
//!
//! | module | what it does |
//! |---|---|
//! | `programs` | which programs there are, for which targets |
//! | `stamp` | writes the version into finished programs, and the manifest's hash into `install.sh` |
//! | `archive` | tar and ar, the same bytes each time |
//! | `deb` | Debian packages |
//! | `sbom` | what the programs are made of, as CycloneDX |
//! | `files` | reading and writing with the path in the error |
//! | `keys` | key files |
//! | `pack` | all of the above, in order, into a repository of packages |
//! | `verify` | whether a package is whole and genuine |
//! | `bundle` | a package as one tar file, for hosts without a network |
//!
//! The formats are described in `docs/guide/packages.md` and docs/adr/0012-packages.md.

pub mod programs;
pub mod stamp;
pub mod archive;
pub mod deb;
pub mod sbom;
pub mod files;
pub mod keys;
pub mod pack;
pub mod verify;
pub mod bundle;
