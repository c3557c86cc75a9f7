//! A package of made-up programs: made, checked, tampered with, unpacked by Debian's own tools.

#![cfg(test)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use fairlead_identity::digest::{hex, sha256};
use fairlead_identity::package::{SigningKey, Timestamp, TrustedKeys, Version};
use fairlead_packer::keys::{self, KeyFileError};
use fairlead_packer::pack::{self, Order, PackError};
use fairlead_packer::programs::{PROGRAMS, Target};
use fairlead_packer::verify::{self, VerifyError};
use fairlead_packer::{bundle, stamp};
use fairlead_protocol::software::{MARK_HEAD, NOT_PACKED};
use tempfile::TempDir;

const VERSION: &str = "0.2.0-rc.1";
const METADATA: &str = r#"{
  "packages": [
    {"id": "a", "name": "fairlead-agent", "version": "0.1.0", "license": "Apache-2.0", "source": null,
     "dependencies": [
       {"name": "used", "rename": null, "optional": true, "kind": null},
       {"name": "switched-off", "rename": "off", "optional": true, "kind": null}],
     "features": {"default": ["dep:used", "off?/std"], "off": ["dep:off"]}},
    {"id": "s", "name": "fairlead-access-server", "version": "0.1.0", "license": "Apache-2.0", "source": null},
    {"id": "c", "name": "fairlead-controller", "version": "0.1.0", "license": "Apache-2.0", "source": null},
    {"id": "f", "name": "fairlead-cli", "version": "0.1.0", "license": "Apache-2.0", "source": null},
    {"id": "x", "name": "used", "version": "1.0.0", "license": "MIT / Apache-2.0", "source": "registry"},
    {"id": "z", "name": "switched-off", "version": "3.0.0", "license": "GPL-3.0", "source": "registry"},
    {"id": "y", "name": "tested-with", "version": "2.0.0", "license": null, "source": "registry"}
  ],
  "resolve": {"nodes": [
    {"id": "a", "features": ["default"], "deps": [
      {"pkg": "z", "dep_kinds": [{"kind": null}]},
      {"pkg": "x", "dep_kinds": [{"kind": "build"}, {"kind": null}]},
      {"pkg": "y", "dep_kinds": [{"kind": "dev"}]}]},
    {"id": "s", "deps": []}, {"id": "c", "deps": []}, {"id": "f", "deps": []},
    {"id": "x", "deps": []}, {"id": "y", "deps": []}, {"id": "z", "deps": []}
  ]}
}"#;

/// A folder with what a build leaves, and a key.
struct Workshop {
    dir: TempDir,
    pem: String,
}

impl Workshop {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for target in Target::ALL {
            let folder = dir.path().join("programs").join(target.name());
            fs::create_dir_all(&folder).unwrap();
            for program in PROGRAMS {
                fs::write(folder.join(program), fake(program, target)).unwrap();
            }
        }
        fs::write(dir.path().join("metadata.json"), METADATA).unwrap();
        let pem = SigningKey::generate().unwrap().to_pem().unwrap();
        Self { dir, pem }
    }

    fn key(&self) -> SigningKey {
        SigningKey::from_pem(self.pem.as_bytes()).unwrap()
    }

    fn trusted(&self) -> TrustedKeys {
        TrustedKeys::new(vec![self.key().public()])
    }

    fn order(&self, version: &str, out: &str) -> Order {
        Order {
            programs: self.dir.path().join("programs"),
            targets: Target::ALL.to_vec(),
            installer: Path::new(env!("CARGO_MANIFEST_DIR")).join("install.sh"),
            metadata: vec![self.dir.path().join("metadata.json")],
            version: version.parse().unwrap(),
            released: time("2026-11-21T00:00:00Z"),
            expires: time("2027-11-21T00:00:00Z"),
            min_from: "0.1.0".parse().unwrap(),
            keys: vec![self.key()],
            trust: Vec::new(),
            channel: Some("stable".to_owned()),
            out: self.dir.path().join(out),
        }
    }

    /// A finished package's folder.
    fn packed(&self) -> PathBuf {
        let order = self.order(VERSION, "packages");
        pack::pack(&order).unwrap();
        order.out.join(VERSION)
    }

    fn check(&self, folder: &Path) -> Result<(), VerifyError> {
        verify::verify(folder, &self.trusted(), time("2027-01-01T00:00:00Z")).map(drop)
    }
}

fn fake(program: &str, target: Target) -> Vec<u8> {
    let mut bytes = format!("\x7fELF {program} for {target} ").into_bytes();
    bytes.extend_from_slice(MARK_HEAD);
    bytes.extend_from_slice(format!("{NOT_PACKED:<48}").as_bytes());
    bytes.extend_from_slice(b" the rest");
    bytes
}

fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// Every path below with its mode and content.
fn tree(folder: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(tree(&path));
        } else {
            let mode = path.metadata().unwrap().mode();
            found.insert(path.clone(), (mode, fs::read(path).unwrap()));
        }
    }
    found
}

fn relative(folder: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    tree(folder)
        .into_iter()
        .map(|(path, file)| (path.strip_prefix(folder).unwrap().to_owned(), file))
        .collect()
}

#[test]
fn a_package_has_what_the_installer_expects() {
    let workshop = Workshop::new();
    let folder = workshop.packed();
    workshop.check(&folder).unwrap();
    let names: Vec<_> = relative(&folder)
        .into_keys()
        .map(|path| path.display().to_string())
        .collect();
    let mut expected = vec![
        "SHA256SUMS",
        "SHA256SUMS.sig",
        "install.sh",
        "install.sh.sig",
        "manifest",
        "manifest.sig",
        "sbom.cdx.json",
    ]
    .into_iter()
    .map(str::to_owned)
    .collect::<Vec<_>>();
    for target in Target::ALL {
        expected.extend(PROGRAMS.map(|program| format!("{program}-{target}")));
        for deb in ["agent", "access_server", "controller"] {
            expected.push(format!("fairlead_{deb}_{}.deb", target.debian()));
        }
    }
    expected.sort();
    assert_eq!(names, expected);

    let repository = folder.parent().unwrap();
    let stable = fs::read_to_string(repository.join("channels/stable")).unwrap();
    assert_eq!(stable, format!("{VERSION}\n"));
    let script = fs::read_to_string(folder.join("install.sh")).unwrap();
    for name in ["install.sh", "install.sh.sig"] {
        assert_eq!(
            fs::read(repository.join(name)).unwrap(),
            fs::read(folder.join(name)).unwrap(),
            "{name}"
        );
    }
    let hash = hex(&sha256(&fs::read(folder.join("manifest")).unwrap()));
    assert!(script.contains(&format!("\nstamped_version='{VERSION}'\n")));
    assert!(script.contains(&format!("\nstamped_manifest_sha256='{hash}'\n")));
    let key = workshop.key().public();
    assert!(script.contains(&format!("\nstamped_keys='{key}'\n")));
    for name in ["install.sh", "fairlead-linux-x86_64"] {
        let mode = fs::metadata(folder.join(name)).unwrap().mode();
        assert_eq!(mode & 0o777, 0o755, "{name}");
    }
    let program = fs::read(folder.join("fairlead-agent-linux-aarch64")).unwrap();
    assert_eq!(stamp::version_of(&program).unwrap().to_string(), VERSION);
}

#[test]
fn the_same_makes_the_same_bytes() {
    let workshop = Workshop::new();
    for out in ["one", "two"] {
        pack::pack(&workshop.order(VERSION, out)).unwrap();
    }
    let one = relative(&workshop.dir.path().join("one"));
    assert!(one == relative(&workshop.dir.path().join("two")));
    assert!(one.len() > 15);
}

#[test]
fn one_build_is_packed_as_any_version() {
    let workshop = Workshop::new();
    for version in ["0.2.0", "0.3.0"] {
        pack::pack(&workshop.order(version, "packages")).unwrap();
        let folder = workshop.dir.path().join("packages").join(version);
        workshop.check(&folder).unwrap();
    }
}

#[test]
fn every_tampering_is_refused() {
    let workshop = Workshop::new();
    let folder = workshop.packed();
    for (path, (_, content)) in tree(&folder) {
        // One bit in the middle, cut short, longer, gone.
        let mut flipped = content.clone();
        flipped[content.len() / 2] ^= 1;
        let cut = content[..content.len() - 1].to_vec();
        let longer = [content.as_slice(), b"\n"].concat();
        for changed in [flipped, cut, longer] {
            fs::write(&path, changed).unwrap();
            assert!(workshop.check(&folder).is_err(), "{}", path.display());
        }
        fs::remove_file(&path).unwrap();
        let error = workshop.check(&folder).unwrap_err();
        assert!(matches!(error, VerifyError::File(_)), "{error}");
        fs::write(&path, content).unwrap();
        workshop.check(&folder).unwrap();
    }
}

#[test]
fn what_does_not_belong_there_is_refused() {
    let workshop = Workshop::new();
    let folder = workshop.packed();
    let refused = || workshop.check(&folder).unwrap_err();

    fs::write(folder.join("extra"), "").unwrap();
    assert!(matches!(refused(), VerifyError::Stranger(name) if name == "extra"));
    fs::remove_file(folder.join("extra")).unwrap();

    fs::create_dir(folder.join("extra")).unwrap();
    assert!(matches!(refused(), VerifyError::NotPlain(name) if name == "extra"));
    fs::remove_dir(folder.join("extra")).unwrap();

    let (program, aside) = (folder.join("sbom.cdx.json"), folder.with_extension("aside"));
    fs::rename(&program, &aside).unwrap();
    std::os::unix::fs::symlink(&aside, &program).unwrap();
    assert!(matches!(refused(), VerifyError::NotPlain(_)));
    fs::remove_file(&program).unwrap();
    fs::rename(&aside, &program).unwrap();

    // The two targets' agents in each other's place.
    let (one, two) = (
        folder.join("fairlead-agent-linux-x86_64"),
        folder.join("fairlead-agent-linux-aarch64"),
    );
    for (from, to) in [(&one, &aside), (&two, &one), (&aside, &two)] {
        fs::rename(from, to).unwrap();
    }
    assert!(matches!(refused(), VerifyError::Content(_)));
    for (from, to) in [(&one, &aside), (&two, &one), (&aside, &two)] {
        fs::rename(from, to).unwrap();
    }

    // A genuine script of another version, in this one's place.
    let (script, signatures) = (folder.join("install.sh"), folder.join("install.sh.sig"));
    let before = [&script, &signatures].map(|path| fs::read(path).unwrap());
    let other = String::from_utf8_lossy(&before[0]).replace("sha256='", "sha256='0");
    fs::write(&script, &other).unwrap();
    assert!(matches!(
        refused(),
        VerifyError::Signed {
            name: "install.sh",
            ..
        }
    ));
    fs::write(&signatures, workshop.key().sign(other.as_bytes())).unwrap();
    assert!(matches!(refused(), VerifyError::Stamp { .. }));
    fs::write(&script, &before[0]).unwrap();
    fs::write(&signatures, &before[1]).unwrap();

    // A Debian package that the list of checksums does not know so.
    let deb = folder.join("fairlead_agent_amd64.deb");
    let content = fs::read(&deb).unwrap();
    fs::write(&deb, "another").unwrap();
    assert!(matches!(refused(), VerifyError::Checksum(name) if name == "fairlead_agent_amd64.deb"));
    fs::write(&deb, content).unwrap();
    workshop.check(&folder).unwrap();
}

#[test]
fn a_stranger_or_an_old_package_is_refused() {
    let workshop = Workshop::new();
    let folder = workshop.packed();
    let now = time("2027-01-01T00:00:00Z");
    let other = TrustedKeys::new(vec![SigningKey::generate().unwrap().public()]);
    let error = verify::verify(&folder, &other, now).unwrap_err();
    assert!(matches!(error, VerifyError::Signature(_)), "{error}");
    let late = time("2028-01-01T00:00:00Z");
    let error = verify::verify(&folder, &workshop.trusted(), late).unwrap_err();
    assert!(matches!(error, VerifyError::Refused(_)), "{error}");
    let verified = verify::verify(&folder, &workshop.trusted(), now).unwrap();
    verify::check_folder_name(&folder, &verified.manifest).unwrap();
    let renamed = folder.with_file_name("0.9.9");
    fs::rename(&folder, &renamed).unwrap();
    let error = verify::check_folder_name(&renamed, &verified.manifest).unwrap_err();
    assert!(matches!(error, VerifyError::Folder { .. }), "{error}");
}

#[test]
fn a_version_that_is_out_stays_as_it_is() {
    let workshop = Workshop::new();
    let folder = workshop.packed();
    let repository = folder.parent().unwrap();
    let before = tree(repository);
    let error = pack::pack(&workshop.order(VERSION, "packages")).unwrap_err();
    assert!(matches!(error, PackError::VersionThere(_)), "{error}");
    let error = pack::pack(&workshop.order("0.1.5", "packages")).unwrap_err();
    assert!(matches!(error, PackError::ChannelAhead { .. }), "{error}");
    assert!(tree(repository) == before);

    // Beside the channel it can be there.
    let mut order = workshop.order("0.1.5", "packages");
    order.channel = None;
    pack::pack(&order).unwrap();
    order.channel = Some("../stable".to_owned());
    assert!(matches!(pack::pack(&order), Err(PackError::ChannelName(_))));
    let stable = fs::read_to_string(repository.join("channels/stable")).unwrap();
    assert_eq!(stable.trim(), VERSION);
}

#[test]
fn nothing_is_left_of_what_cannot_be_packed() {
    let workshop = Workshop::new();
    let agent = workshop
        .dir
        .path()
        .join("programs/linux-x86_64/fairlead-agent");
    let content = fs::read(&agent).unwrap();
    for bad in [
        b"no mark".to_vec(),
        [content.clone(), content.clone()].concat(),
    ] {
        fs::write(&agent, bad).unwrap();
        let error = pack::pack(&workshop.order(VERSION, "packages")).unwrap_err();
        assert!(matches!(error, PackError::Stamp { .. }), "{error}");
    }
    fs::remove_file(&agent).unwrap();
    let error = pack::pack(&workshop.order(VERSION, "packages")).unwrap_err();
    assert!(error.to_string().contains("fairlead-agent"), "{error}");
    assert!(!workshop.dir.path().join("packages").exists());
    fs::write(&agent, content).unwrap();

    let mut order = workshop.order(VERSION, "packages");
    order.keys.clear();
    assert!(matches!(pack::pack(&order), Err(PackError::Incomplete(_))));
}

#[test]
fn a_key_file_is_for_its_owner_only() {
    let workshop = Workshop::new();
    let file = workshop.dir.path().join("key.pem");
    let public = keys::generate(&file).unwrap();
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
    assert_eq!(keys::read(&file).unwrap().public(), public);
    // A key is never overwritten.
    assert!(matches!(keys::generate(&file), Err(KeyFileError::File(_))));
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(keys::read(&file), Err(KeyFileError::Open(_))));
}

#[test]
fn the_list_of_parts_names_what_is_shipped() {
    let workshop = Workshop::new();
    let text = fs::read_to_string(workshop.packed().join("sbom.cdx.json")).unwrap();
    let parts: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(parts["bomFormat"], "CycloneDX");
    assert_eq!(parts["metadata"]["component"]["version"], VERSION);
    let components = parts["components"].as_array().unwrap();
    let names: Vec<_> = components
        .iter()
        .map(|c| c["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "fairlead-access-server",
            "fairlead-agent",
            "fairlead-cli",
            "fairlead-controller",
            "used"
        ]
    );
    assert_eq!(components[4]["purl"], "pkg:cargo/used@1.0.0");
    assert_eq!(
        components[4]["licenses"][0]["expression"],
        "MIT OR Apache-2.0"
    );
    assert_eq!(components[1]["version"], VERSION);
    let of_agent = &parts["dependencies"][1];
    assert_eq!(of_agent["ref"], "fairlead-agent");
    assert_eq!(of_agent["dependsOn"][0], "pkg:cargo/used@1.0.0");
}

/// What a tool says, or `None` where it is not on this machine.
fn said(program: &str, arguments: &[&str], at: &Path) -> Option<String> {
    let output = match Command::new(program)
        .args(arguments)
        .current_dir(at)
        .output()
    {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(error) => panic!("{program}: {error}"),
    };
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {error}");
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn people_and_openssl_come_to_the_same_verdict() {
    let workshop = Workshop::new();
    let folder = workshop.packed();
    said("sha256sum", &["--quiet", "-c", "SHA256SUMS"], &folder).unwrap();
    // The signature as install.sh checks it: base64 to bytes, key in the fixed beginning of RFC 8410.
    let signature = fs::read_to_string(folder.join("manifest.sig")).unwrap();
    let public = workshop.key().public().to_string();
    let key = public.split_once(':').unwrap().1;
    let script = format!(
        "printf %s '{}' | openssl base64 -d -A >../sig && \
         printf '%s\\n' '-----BEGIN PUBLIC KEY-----' 'MCowBQYDK2VwAyEA{key}' '-----END PUBLIC KEY-----' >../pub && \
         openssl pkeyutl -verify -pubin -inkey ../pub -rawin -in manifest -sigfile ../sig",
        signature.trim().split_once(' ').unwrap().1
    );
    if said("openssl", &["version"], &folder).is_some() {
        said("sh", &["-c", &script], &folder).unwrap();
        // And the private key is one that OpenSSL reads.
        fs::write(folder.join("../key.pem"), &workshop.pem).unwrap();
        said("openssl", &["pkey", "-in", "../key.pem", "-noout"], &folder).unwrap();
    }
}

/// The lines of the guide that check a downloaded script, as they stand there.
fn guides_lines() -> String {
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/guide/packages.md");
    let guide = fs::read_to_string(guide).unwrap();
    let block = guide
        .split("```")
        .find(|block| block.contains("openssl pkeyutl"))
        .expect("the guide says how to check the script");
    let from = block.find("{ echo").expect("after the download");
    block[from..].to_owned()
}

#[test]
fn s17_the_guides_lines_tell_the_genuine_script_from_any_other() {
    let workshop = Workshop::new();
    if said("openssl", &["version"], workshop.dir.path()).is_none() {
        return;
    }
    let folder = workshop.packed();
    let public = workshop.key().public().to_string();
    let lines = guides_lines();
    let check = |key: &str| {
        Command::new("sh")
            .args(["-ec", &lines])
            .env("key", key)
            .current_dir(&folder)
            .output()
            .unwrap()
    };
    let good = check(&public);
    assert!(good.status.success(), "{good:?}");
    // Somebody else's key under ours, and ours with another script.
    let stranger = SigningKey::generate().unwrap().public().to_string();
    assert!(!check(&stranger).status.success());
    let mixed = format!(
        "{}:{}",
        public.split(':').next().unwrap(),
        stranger.split(':').nth(1).unwrap()
    );
    assert!(!check(&mixed).status.success());
    let script = folder.join("install.sh");
    let text = fs::read_to_string(&script).unwrap();
    fs::write(&script, format!("{text}\n")).unwrap();
    assert!(!check(&public).status.success());
}

#[test]
fn the_controllers_package_brings_what_hosts_ask_for() {
    let workshop = Workshop::new();
    let folder = workshop.packed();
    let out = workshop.dir.path().join("deb");
    let unpack = ["-x", "fairlead_controller_amd64.deb", out.to_str().unwrap()];
    if said("dpkg-deb", &unpack, &folder).is_none() {
        return;
    }
    let shared = out.join("usr/share/fairlead");
    let brought = relative(&shared.join("packages").join(VERSION));
    let names: Vec<_> = brought
        .keys()
        .map(|path| path.display().to_string())
        .collect();
    assert_eq!(
        names,
        [
            "fairlead-agent-linux-aarch64",
            "fairlead-agent-linux-x86_64",
            "install.sh",
            "install.sh.sig",
            "manifest",
            "manifest.sig",
        ]
    );
    for (name, (_, content)) in brought {
        assert!(
            content == fs::read(folder.join(&name)).unwrap(),
            "{}",
            name.display()
        );
    }
    assert_eq!(
        fs::read(shared.join("install.sh")).unwrap(),
        fs::read(folder.join("install.sh")).unwrap()
    );
    let unit = out.join("usr/lib/systemd/system/fairlead-controller.service");
    let unit = fs::read_to_string(unit).unwrap();
    let told = "Environment=FAIRLEAD_PACKAGES_FROM=/usr/share/fairlead/packages";
    assert!(unit.lines().any(|line| line == told), "{unit}");
}

#[test]
fn debians_tools_read_the_packages() {
    let workshop = Workshop::new();
    let folder = workshop.packed();
    let Some(fields) = said("dpkg-deb", &["-f", "fairlead_agent_arm64.deb"], &folder) else {
        return;
    };
    for line in [
        "Package: fairlead-agent",
        "Version: 0.2.0~rc.1",
        "Architecture: arm64",
    ] {
        assert!(fields.lines().any(|found| found == line), "{fields}");
    }
    let listed = said("dpkg-deb", &["-c", "fairlead_agent_arm64.deb"], &folder).unwrap();
    for line in [
        "-rwxr-xr-x root/root",
        " ./opt/fairlead/versions/0.2.0-rc.1/fairlead-agent",
        " ./usr/lib/systemd/system/fairlead-agent.service",
        " ./usr/bin/fairlead-agent -> /opt/fairlead/current/fairlead-agent",
        " 2026-11-21 00:00 ",
    ] {
        assert!(listed.contains(line), "{line:?} in\n{listed}");
    }
    for (deb, unit) in [
        ("controller", "fairlead-controller"),
        ("access_server", "fairlead-access-server"),
    ] {
        let out = workshop.dir.path().join(unit);
        let deb = format!("fairlead_{deb}_amd64.deb");
        said("dpkg-deb", &["-R", &deb, out.to_str().unwrap()], &folder).unwrap();
        for script in ["postinst", "prerm", "postrm"] {
            let path = out.join("DEBIAN").join(script);
            said("sh", &["-n", path.to_str().unwrap()], &folder).unwrap();
            let text = fs::read_to_string(path).unwrap();
            assert!(!text.contains("@U") && !text.contains("@H"), "{text}");
        }
        let path = out.join(format!("usr/lib/systemd/system/{unit}.service"));
        let text = fs::read_to_string(path).unwrap();
        let start = format!("ExecStart=/usr/bin/{unit} run");
        assert!(text.lines().any(|line| line == start), "{text}");
    }
    let program = fs::read(
        workshop
            .dir
            .path()
            .join("fairlead-controller/usr/bin/fairlead"),
    )
    .unwrap();
    let version: Version = VERSION.parse().unwrap();
    assert_eq!(stamp::version_of(&program), Ok(version));
}

#[test]
fn a_bundle_is_the_package_in_one_file() {
    let workshop = Workshop::new();
    let folder = workshop.packed();
    let now = time("2027-01-01T00:00:00Z");
    let out = workshop.dir.path().join("bundle.tar");
    bundle::bundle(&folder, &workshop.trusted(), now, &out).unwrap();
    let place = workshop.dir.path().join("unpacked");
    fs::create_dir(&place).unwrap();
    let unpack = ["-xf", out.to_str().unwrap(), "-C", place.to_str().unwrap()];
    said("tar", &unpack, &place).unwrap();
    let unpacked = place.join(VERSION);
    workshop.check(&unpacked).unwrap();
    let (ours, theirs) = (relative(&folder), relative(&unpacked));
    assert_eq!(ours.len(), theirs.len());
    assert!(
        ours.iter()
            .all(|(path, (_, content))| theirs[path].1 == *content)
    );

    // A damaged package is not bundled, and a bundle is not overwritten.
    assert!(bundle::bundle(&folder, &workshop.trusted(), now, &out).is_err());
    fs::write(folder.join("sbom.cdx.json"), "{}").unwrap();
    let other = workshop.dir.path().join("other.tar");
    assert!(bundle::bundle(&folder, &workshop.trusted(), now, &other).is_err());
    assert!(!other.exists());
}
