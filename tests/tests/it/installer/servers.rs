//! The servers in one line, in a small system: programs, users, units, settings, the package for the
//! hosts, and the three lines at the end.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Output;

use fairlead_identity::digest::{hex, sha256};

use super::faulty::Server;
use super::kit::{Host, Repository, TOKEN, Wish, words};
use super::system::System;

const PACKAGES: &str = "/var/lib/fairlead-controller/packages";

fn three_lines(output: &Output) {
    let asked_for = String::from_utf8_lossy(&output.stdout);
    assert_eq!(
        asked_for,
        format!(
            "address      https://fleet.example.com (own CA, sha256 0123)\n\
             first admin  fairlead login --setup-link /var/lib/fairlead-controller/setup-link \
             --ca /var/lib/fairlead-controller/ca.pem   (works once, for 15 minutes)\n\
             add a host   curl -fsSLk --pinnedpubkey 'sha256//PIN=' https://fleet.example.com/install.sh \
             | FAIRLEAD_JOIN_TOKEN={TOKEN} sh -s -- --from https://fleet.example.com/packages \
             --address fleet.example.com:443 --pin 'sha256//PIN='\n"
        ),
        "three lines on standard output, and nothing else"
    );
}

fn what_they_got(system: &System, repository: &Repository) {
    let calls = system.calls();
    assert!(
        calls.contains("fairlead-controller setup --region local"),
        "{calls}"
    );
    assert!(
        !system
            .path("/var/lib/fairlead-access-server/join-token")
            .exists()
    );
    // Versions that the installer's own key signed may be pushed to the controller.
    let keys = format!("FAIRLEAD_PACKAGE_KEYS='{}'", repository.key.public);
    for (file, line) in [
        (
            "controller",
            "FAIRLEAD_UPLINK_ADDRESS='fleet.example.com:443'",
        ),
        ("controller", keys.as_str()),
        ("access-server", "FAIRLEAD_FRONT_LISTEN='[::]:443'"),
    ] {
        let text =
            fs::read_to_string(system.path("/etc/fairlead").join(format!("{file}.env"))).unwrap();
        assert!(text.lines().any(|found| found == line), "{line}: {text}");
    }
    for (unit, user) in [
        ("fairlead-controller", "fairlead-controller"),
        ("fairlead-access-server", "fairlead-access"),
    ] {
        let text = fs::read_to_string(
            system
                .path("/etc/systemd/system")
                .join(format!("{unit}.service")),
        )
        .unwrap();
        for line in [
            format!("User={user}"),
            format!("ExecStart=/opt/fairlead-servers/current/{unit} run"),
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
    }
    for program in ["fairlead", "fairlead-controller", "fairlead-access-server"] {
        let link = fs::read_link(system.path("/usr/local/bin").join(program)).unwrap();
        assert_eq!(
            link,
            Path::new("/opt/fairlead-servers/current").join(program)
        );
    }
    let packages = system.path(PACKAGES);
    for file in [
        "install.sh",
        "install.sh.sig",
        "0.2.0/install.sh",
        "0.2.0/install.sh.sig",
        "channels/stable",
        "0.2.0/manifest",
        "0.2.0/manifest.sig",
        "0.2.0/fairlead-agent-linux-aarch64",
    ] {
        assert_eq!(
            fs::read(packages.join(file)).unwrap(),
            fs::read(repository.file(file)).unwrap(),
            "{file}"
        );
    }
}

#[test]
fn the_servers_get_users_units_and_their_package_and_setup_does_the_rest() {
    let Some(system) = System::new("systemd") else {
        return;
    };
    system.openssl();
    let repository = Repository::new();
    let server = Server::start(repository.path(), Vec::new());
    let output = system.line(&server, "server");
    assert!(
        words(&output).contains("needs --name"),
        "{}",
        words(&output)
    );
    assert_eq!(output.status.code(), Some(2));

    let before = system.state();
    let packages = system.path(PACKAGES);
    let line = "server --name fleet.example.com";
    let output = system.line(&server, line);
    let said = words(&output);
    assert!(output.status.success(), "{said}");
    three_lines(&output);
    what_they_got(&system, &repository);

    let installed = system.state();
    let output = system.line(&server, line);
    assert!(output.status.success(), "{}", words(&output));
    let calls = system.calls();
    assert!(
        !calls.contains("restart") && !calls.contains("daemon-reload"),
        "{calls}"
    );
    assert_eq!(system.state(), installed);

    // Hosts are served from there.
    let hosts = Server::start(packages.clone(), Vec::new());
    let host = Host::new();
    host.run(
        &["sh"],
        &packages.join("install.sh"),
        &["--from", &hosts.url(), "--address", "127.0.0.1:1"],
    )
    .with_token()
    .ok();
    drop(host);

    // An older one is refused; what is there stays.
    repository.pack(&Wish {
        version: "0.1.0",
        ..Wish::default()
    });
    let output = system.line(&server, line);
    assert!(
        words(&output).contains("(installer_older)"),
        "{}",
        words(&output)
    );

    let output = system.line(&server, "server --uninstall");
    assert!(output.status.success(), "{}", words(&output));
    assert!(packages.join("0.2.0/manifest").is_file(), "data stays");
    assert!(!system.path("/opt/fairlead-servers").exists());
    let output = system.line(&server, "server --uninstall --purge");
    assert!(output.status.success(), "{}", words(&output));
    assert_eq!(system.state(), before);
}

#[test]
fn after_deb_files_the_same_line_does_the_rest() {
    let Some(system) = System::new("systemd") else {
        return;
    };
    let repository = Repository::new();
    let server = Server::start(repository.path(), Vec::new());
    as_deb_files_leave_it(&system, &repository);
    let url = server.url();
    let output = system.shell(&format!(
        "wget -q -O - {url}/install.sh | sh -s -- server --name fleet.example.com"
    ));
    assert!(output.status.success(), "{}", words(&output));
    three_lines(&output);
    assert!(!system.path("/opt/fairlead-servers").exists());
    assert!(
        !system
            .path("/etc/systemd/system/fairlead-controller.service")
            .exists()
    );
    let output = system.shell(&format!(
        "wget -q -O - {url}/install.sh | sh -s -- server --uninstall"
    ));
    assert!(
        words(&output).contains("(installer_packaged)"),
        "{}",
        words(&output)
    );
}

/// What the packages of the system bring: users, programs, data directories and units.
fn as_deb_files_leave_it(system: &System, repository: &Repository) {
    fs::create_dir_all(system.path("/lib/systemd/system")).unwrap();
    for user in ["fairlead-controller", "fairlead-access"] {
        assert!(system.shell(&format!("useradd {user}")).status.success());
    }
    for program in ["fairlead-controller", "fairlead-access-server"] {
        let from = repository
            .file("0.2.0")
            .join(format!("{program}-linux-x86_64"));
        system.tool(program, &fs::read_to_string(from).unwrap());
        fs::create_dir_all(system.path("/var/lib").join(program)).unwrap();
        let unit = system
            .path("/lib/systemd/system")
            .join(format!("{program}.service"));
        fs::write(unit, "").unwrap();
    }
    let owned = system.shell(
        "chown fairlead-controller /var/lib/fairlead-controller && \
         chown fairlead-access /var/lib/fairlead-access-server",
    );
    assert!(owned.status.success(), "{}", words(&owned));
}

const LINE: &str = "server --name fleet.example.com";

/// Hosts run as root what the servers hand out.
#[test]
fn s17_only_the_signed_script_is_handed_out_whatever_lies_about_and_what_was_changed_is_mended() {
    let Some(system) = System::new("systemd") else {
        return;
    };
    let repository = Repository::new();
    let server = Server::start(repository.path(), Vec::new());
    // The signature is the only proof of it.
    let before = system.state();
    let refused = system.line(&server, LINE);
    let said = words(&refused);
    assert_eq!(refused.status.code(), Some(3), "{said}");
    assert!(said.contains("installer_no_verifier"), "{said}");
    assert_eq!(system.state(), before);

    // Through a pipe $0 is "sh": a file of that name in the folder is nobody's script.
    system.openssl();
    let manifest = fs::read(repository.file("0.2.0/manifest")).unwrap();
    let planted = format!(
        "#!/bin/sh\nstamped_manifest_sha256='{}'\ntouch /taken-over\n",
        hex(&sha256(&manifest))
    );
    fs::write(system.path("/sh"), &planted).unwrap();
    let output = system.line(&server, LINE);
    assert!(output.status.success(), "{}", words(&output));
    what_they_got(&system, &repository);

    // What was changed there is not published again.
    for changed in [
        "install.sh",
        "install.sh.sig",
        "0.2.0/install.sh",
        "0.2.0/manifest.sig",
        "0.2.0/fairlead-agent-linux-aarch64",
    ] {
        let path = system.path(PACKAGES).join(changed);
        fs::write(&path, &planted).unwrap();
        let output = system.line(&server, LINE);
        assert!(output.status.success(), "{}", words(&output));
        let mended = fs::read(&path).unwrap();
        assert_eq!(
            mended,
            fs::read(repository.file(changed)).unwrap(),
            "{changed}"
        );
        let data = fs::metadata(system.path("/var/lib/fairlead-controller")).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().uid(),
            data.uid(),
            "{changed} is the service's"
        );
    }
}

/// A service that was broken into lays links where root will write.
#[test]
fn root_follows_no_link_in_a_folder_of_the_services() {
    let Some(system) = System::new("systemd") else {
        return;
    };
    system.openssl();
    let repository = Repository::new();
    let server = Server::start(repository.path(), Vec::new());
    let output = system.line(&server, LINE);
    assert!(output.status.success(), "{}", words(&output));
    let packages = system.path(PACKAGES);
    let victim = system.path("/victim");
    fs::create_dir(&victim).unwrap();
    fs::write(victim.join("secret"), "root's").unwrap();
    fs::set_permissions(victim.join("secret"), fs::Permissions::from_mode(0o600)).unwrap();

    // What root may read and the service may not is not copied to where everybody can fetch it.
    let script = packages.join("0.2.0/install.sh");
    fs::remove_file(&script).unwrap();
    std::os::unix::fs::symlink("/victim/secret", &script).unwrap();
    let output = system.line(&server, LINE);
    assert!(output.status.success(), "{}", words(&output));
    what_they_got_again(&system, &repository);

    // Nothing is written where the service could not.
    fs::remove_dir_all(packages.join("channels")).unwrap();
    std::os::unix::fs::symlink("/victim", packages.join("channels")).unwrap();
    let output = system.line(&server, LINE);
    let said = words(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("(installer_disk)"), "{said}");
    assert!(!said.contains("cp:") && !said.contains("chmod:"), "{said}");
    let left: Vec<_> = fs::read_dir(&victim)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(left, ["secret"]);
}

fn what_they_got_again(system: &System, repository: &Repository) {
    for file in ["install.sh", "0.2.0/install.sh"] {
        assert_eq!(
            fs::read(system.path(PACKAGES).join(file)).unwrap(),
            fs::read(repository.file(file)).unwrap(),
            "{file}"
        );
    }
}

#[test]
fn a_certificate_by_acme_is_waited_for_and_then_no_fingerprint_is_printed() {
    let acme = "server --name fleet.example.com --certificate acme";
    for (ready, is_had) in [
        ("https acme until 2027-02-19T06:00:00Z", true),
        (
            "https own-ca until 2027-12-22T06:00:00Z; acme_challenge_failed",
            false,
        ),
    ] {
        let Some(system) = System::new("systemd") else {
            return;
        };
        let repository = Repository::new();
        let server = Server::start(repository.path(), Vec::new());
        as_deb_files_leave_it(&system, &repository);
        fs::write(system.path("/ready"), format!("ok\n{ready}\n")).unwrap();
        system.tool(
            "curl",
            "#!/bin/sh\ncase \"$*\" in *--output*) ;; *readyz*) cat /ready ;; *) exit 7 ;; esac\n",
        );
        let url = server.url();
        let line = |more: &str| {
            system.shell(&format!(
                "wget -q -O - {url}/install.sh | sh -s -- {acme} {more}"
            ))
        };
        let before = system.state();
        let refused = line("");
        assert_eq!(refused.status.code(), Some(2), "{}", words(&refused));
        assert!(
            words(&refused).contains("--acme-agree-tos"),
            "{}",
            words(&refused)
        );
        let refused = line("--acme-agree-tos --acme-contact fax:1");
        assert_eq!(refused.status.code(), Some(2), "{}", words(&refused));
        assert_eq!(system.state(), before);

        let output = line("--acme-agree-tos --acme-contact mailto:ops@example.com");
        assert!(output.status.success(), "{}", words(&output));
        let env = fs::read_to_string(system.path("/etc/fairlead/controller.env")).unwrap();
        for wanted in [
            "FAIRLEAD_ACME='true'",
            "FAIRLEAD_ACME_AGREE_TOS='true'",
            "FAIRLEAD_ACME_CONTACT='mailto:ops@example.com'",
        ] {
            assert!(env.lines().any(|found| found == wanted), "{wanted}: {env}");
        }
        if is_had {
            let asked_for = String::from_utf8_lossy(&output.stdout);
            assert_eq!(
                asked_for,
                format!(
                    "address      https://fleet.example.com\n\
                     first admin  fairlead login --setup-link /var/lib/fairlead-controller/setup-link   \
                     (works once, for 15 minutes)\n\
                     add a host   curl -fsSL https://fleet.example.com/install.sh \
                     | FAIRLEAD_JOIN_TOKEN={TOKEN} sh -s -- --from https://fleet.example.com/packages \
                     --address fleet.example.com:443\n"
                )
            );
        } else {
            three_lines(&output);
            let said = words(&output);
            assert!(
                said.contains("no certificate by ACME yet (acme_challenge_failed)"),
                "{said}"
            );
        }
    }
}
