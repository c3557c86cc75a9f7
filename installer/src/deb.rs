//! Debian packages of the agent and of the servers.
//!
//! A `.deb` is an ar archive of `debian-binary`, `control.tar.gz` and `data.tar.gz`. The agent lies
//! where `install.sh` puts it (`/opt/fairlead/versions/VERSION`), because it upgrades itself there; the
//! servers are ordinary programs in `/usr/bin`. The controller's package brings what hosts ask it for (script
//! and agents for all machines) in `/usr/share/fairlead`, and its unit tells the controller, which puts it
//! into its own folder when it starts. The maintainer's scripts are in `deb/`; none touches
//! anything but our own unit, users and folders.

use std::collections::BTreeMap;
use std::io;

use fairlead_identity::package::{INSTALLER_NAME, Version};

use crate::archive::{self, Entry};
use crate::programs::{ACCESS_SERVER, AGENT, CLI, CONTROLLER, Target};

const FORMAT: &[u8] = b"2.0\n";
const MAINTAINER: &str = "Fairlead <packages@fairlead.dev>";
const HOMEPAGE: &str = "https://fairlead.dev";
const UNITS: &str = "./usr/lib/systemd/system";
/// Where the controller's package keeps what hosts ask a controller for.
const FOR_HOSTS: &str = "/usr/share/fairlead/packages";
/// The script that prepares an installation, and that hosts run.
const INSTALLER_AT: &str = "./usr/share/fairlead/install.sh";
/// Where `install.sh print-unit` lets the servers start from.
const SERVERS_AT: &str = "ExecStart=/opt/fairlead-servers/current/";
/// Before it a unit's own settings: those in the file count more.
const SETTINGS: &str = "EnvironmentFile=";
const COPYRIGHT: &str = "Fairlead is distributed under the Apache License, version 2.0; on Debian systems \
    its text is in\n/usr/share/common-licenses/Apache-2.0. What it is built from, with licences, is listed in\n\
    the version's sbom.cdx.json.\n";

/// Why a package cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum DebError {
    /// An archive.
    #[error(transparent)]
    Archive(#[from] io::Error),
    /// A unit does not start what it should.
    #[error(
        "the unit of {0} should start it from /opt/fairlead-servers/current and name one file of settings"
    )]
    Unit(&'static str),
}

/// Unit files, as `install.sh print-unit` prints them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Units {
    /// `systemd`
    pub agent: String,
    /// `controller`
    pub controller: String,
    /// `access-server`
    pub access_server: String,
}

/// What the Debian packages of a version have in common.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    /// The version.
    pub version: &'a Version,
    /// For which machines.
    pub target: Target,
    /// Time of every file, seconds since 1970.
    pub mtime_s: u64,
}

/// A version as Debian writes it: what comes before the final one sorts before it.
#[must_use]
pub fn debian_version(version: &Version) -> String {
    version.to_string().replacen('-', "~", 1)
}

/// The agent's package; gives its file name and content.
///
/// # Errors
/// When it cannot be made.
pub fn agent(
    origin: &Origin<'_>,
    program: Vec<u8>,
    units: &Units,
) -> Result<(String, Vec<u8>), DebError> {
    let version = origin.version;
    let mut tree = Tree::default();
    tree.program(
        &format!("./opt/fairlead/versions/{version}/{AGENT}"),
        program,
    );
    tree.put(
        "./usr/bin/fairlead-agent",
        Entry::Link("/opt/fairlead/current/fairlead-agent".to_owned()),
    );
    tree.text(
        &format!("{UNITS}/fairlead-agent.service"),
        units.agent.clone(),
    );
    tree.put("./etc/fairlead", Entry::Folder);
    // The machine's own: named here, it would be removed with the last package that lies in it.
    tree.0.remove("./opt/");
    let package = Package {
        name: AGENT,
        depends: "",
        suggests: "docker.io | docker-ce | podman",
        description: "Fairlead agent: carries out signed commands on this host's containers\n \
            It dials out to its region's access server over mutually authenticated TLS and\n \
            listens on no port. Containers are never touched by installing or removing it.",
        scripts: &[
            ("preinst", include_str!("deb/agent.preinst")),
            ("postinst", include_str!("deb/agent.postinst")),
            ("prerm", include_str!("deb/agent.prerm")),
            ("postrm", include_str!("deb/agent.postrm")),
        ],
        names: vec![("@VERSION@", version.to_string())],
        tree,
    };
    Ok((file_name(origin, AGENT), package.build(origin)?))
}

/// The access server's package; gives its file name and content.
///
/// # Errors
/// When it cannot be made.
pub fn access_server(
    origin: &Origin<'_>,
    program: Vec<u8>,
    units: &Units,
) -> Result<(String, Vec<u8>), DebError> {
    let mut tree = Tree::default();
    tree.program("./usr/bin/fairlead-access-server", program);
    tree.text(
        &format!("{UNITS}/fairlead-access-server.service"),
        server_unit(&units.access_server, ACCESS_SERVER)?,
    );
    let package = server(
        ACCESS_SERVER,
        "fairlead-access",
        "its settings belong into /etc/fairlead/access-server.env; beside a controller, \
         `sh /usr/share/fairlead/install.sh server --name NAME` writes them and starts it",
        "Fairlead access server: the links of a region's hosts\n It ends the links of a region's agents and \
         keeps the region's ledger.",
        tree,
    );
    Ok((file_name(origin, ACCESS_SERVER), package.build(origin)?))
}

/// The package of the controller and the command line; gives its file name and content.
///
/// # Errors
/// When it cannot be made.
pub fn controller(
    origin: &Origin<'_>,
    program: Vec<u8>,
    cli: Vec<u8>,
    for_hosts: &[(String, u32, Vec<u8>)],
    units: &Units,
) -> Result<(String, Vec<u8>), DebError> {
    let mut tree = Tree::default();
    tree.program("./usr/bin/fairlead-controller", program);
    tree.program(&format!("./usr/bin/{CLI}"), cli);
    let unit = server_unit(&units.controller, CONTROLLER)?;
    tree.text(
        &format!("{UNITS}/fairlead-controller.service"),
        unit.replacen(
            SETTINGS,
            &format!("Environment=FAIRLEAD_PACKAGES_FROM={FOR_HOSTS}\n{SETTINGS}"),
            1,
        ),
    );
    let version = origin.version;
    for (name, mode, content) in for_hosts {
        let entry = Entry::File(*mode, content.clone());
        tree.put(&format!(".{FOR_HOSTS}/{version}/{name}"), entry);
    }
    tree.put(
        INSTALLER_AT,
        Entry::Link(format!("packages/{version}/{INSTALLER_NAME}")),
    );
    let package = server(
        CONTROLLER,
        "fairlead-controller",
        "next: `sh /usr/share/fairlead/install.sh server --name NAME` (the name that people and hosts \
         use for this machine) writes its settings and starts it",
        "Fairlead controller: API, CA and the view of the whole fleet\n With the command line, fairlead.",
        tree,
    );
    Ok((file_name(origin, CONTROLLER), package.build(origin)?))
}

fn file_name(origin: &Origin<'_>, name: &str) -> String {
    format!("{}_{}.deb", name.replace('-', "_"), origin.target.debian())
}

fn server_unit(unit: &str, name: &'static str) -> Result<String, DebError> {
    if unit.matches(SERVERS_AT).count() == 1 && unit.matches(SETTINGS).count() == 1 {
        Ok(unit.replace(SERVERS_AT, "ExecStart=/usr/bin/"))
    } else {
        Err(DebError::Unit(name))
    }
}

fn server(
    name: &'static str,
    user: &str,
    next: &str,
    description: &'static str,
    mut tree: Tree,
) -> Package {
    tree.put("./etc/fairlead", Entry::Folder);
    Package {
        name,
        depends: "passwd",
        suggests: "",
        description,
        scripts: &[
            ("postinst", include_str!("deb/server.postinst")),
            ("prerm", include_str!("deb/server.prerm")),
            ("postrm", include_str!("deb/server.postrm")),
        ],
        names: vec![
            ("@UNIT@", name.to_owned()),
            ("@USER@", user.to_owned()),
            ("@HOME@", format!("/var/lib/{name}")),
            (
                "@SETTINGS@",
                format!("/etc/fairlead/{}.env", name.trim_start_matches("fairlead-")),
            ),
            ("@NEXT@", next.to_owned()),
        ],
        tree,
    }
}

/// Paths with what lies there; each folder above is there too.
#[derive(Debug, Default)]
struct Tree(BTreeMap<String, Entry>);

impl Tree {
    fn put(&mut self, path: &str, entry: Entry) {
        for (at, _) in path.match_indices('/') {
            self.0.insert(path[..=at].to_owned(), Entry::Folder);
        }
        let path = if entry == Entry::Folder {
            format!("{path}/")
        } else {
            path.to_owned()
        };
        self.0.insert(path, entry);
    }

    fn program(&mut self, path: &str, content: Vec<u8>) {
        self.put(path, Entry::File(0o755, content));
    }

    fn text(&mut self, path: &str, content: String) {
        self.put(path, Entry::File(0o644, content.into_bytes()));
    }

    fn kib(&self) -> usize {
        self.0
            .values()
            .map(|entry| match entry {
                Entry::File(_, content) => content.len().div_ceil(1024),
                Entry::Folder | Entry::Link(_) => 1,
            })
            .sum()
    }

    fn pack(&self, mtime_s: u64) -> io::Result<Vec<u8>> {
        let entries = self.0.iter().map(|(path, entry)| (path.as_str(), entry));
        archive::gzip(&archive::tar(entries, mtime_s)?)
    }
}

struct Package {
    name: &'static str,
    depends: &'static str,
    suggests: &'static str,
    description: &'static str,
    scripts: &'static [(&'static str, &'static str)],
    /// What stands for what in the scripts.
    names: Vec<(&'static str, String)>,
    tree: Tree,
}

impl Package {
    fn build(mut self, origin: &Origin<'_>) -> Result<Vec<u8>, DebError> {
        self.tree.text(
            &format!("./usr/share/doc/{}/copyright", self.name),
            COPYRIGHT.to_owned(),
        );
        let mut control = Tree::default();
        control.text("./control", self.control(origin));
        for (name, text) in self.scripts {
            let text = self
                .names
                .iter()
                .fold((*text).to_owned(), |text, (from, to)| {
                    text.replace(from, to)
                });
            control.program(&format!("./{name}"), text.into_bytes());
        }
        let mtime_s = origin.mtime_s;
        let (control, data) = (control.pack(mtime_s)?, self.tree.pack(mtime_s)?);
        Ok(archive::ar(
            &[
                ("debian-binary", FORMAT),
                ("control.tar.gz", &control),
                ("data.tar.gz", &data),
            ],
            mtime_s,
        ))
    }

    fn control(&self, origin: &Origin<'_>) -> String {
        let fields = [
            ("Package", self.name.to_owned()),
            ("Version", debian_version(origin.version)),
            ("Architecture", origin.target.debian().to_owned()),
            ("Maintainer", MAINTAINER.to_owned()),
            ("Installed-Size", self.tree.kib().to_string()),
            ("Depends", self.depends.to_owned()),
            ("Suggests", self.suggests.to_owned()),
            ("Section", "admin".to_owned()),
            ("Priority", "optional".to_owned()),
            ("Homepage", HOMEPAGE.to_owned()),
            ("Description", self.description.to_owned()),
        ];
        fields
            .iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(name, value)| format!("{name}: {value}\n"))
            .collect()
    }
}
