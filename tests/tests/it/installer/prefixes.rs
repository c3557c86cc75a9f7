//! A script that arrived in part does nothing: every prefix is piped to every shell.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use fairlead_tests::programs;

use super::kit::{Repository, TOKEN, shells, stamp, which};
use super::trees::inodes;

/// Names that a script could call; each is there, and writes down that it was called.
const TOOLS: &[&str] = &[
    "awk",
    "cat",
    "chmod",
    "chown",
    "cp",
    "curl",
    "cut",
    "date",
    "df",
    "find",
    "flock",
    "grep",
    "head",
    "id",
    "ln",
    "m",
    "ma",
    "mai",
    "main",
    "mkdir",
    "mktemp",
    "mv",
    "openssl",
    "rm",
    "rmdir",
    "sed",
    "sha256sum",
    "sleep",
    "sort",
    "sync",
    "systemctl",
    "tail",
    "tar",
    "timeout",
    "tr",
    "uname",
    "useradd",
    "wc",
    "wget",
];

struct Sandbox {
    dir: tempfile::TempDir,
    script: Vec<u8>,
}

impl Sandbox {
    fn new() -> Self {
        let repository = Repository::new();
        let dir = tempfile::tempdir().unwrap();
        for folder in ["tools", "work"] {
            fs::create_dir(dir.path().join(folder)).unwrap();
        }
        for tool in TOOLS {
            let path = dir.path().join("tools").join(tool);
            let text = format!(
                "#!/bin/sh\necho {tool} \"$@\" >>'{}/called'\n",
                dir.path().display()
            );
            programs::write(&path, text.as_bytes());
        }
        let script = fs::read(repository.install_sh()).unwrap();
        Self { dir, script }
    }

    fn called(&self) -> String {
        fs::read_to_string(self.dir.path().join("called")).unwrap_or_default()
    }

    /// Pipes the file's content to a shell that would install at once, if it came so far.
    fn pipe(&self, shell: &[&str], part: &Path) -> std::process::Output {
        Command::new(which(shell[0]))
            .args(&shell[1..])
            .env_clear()
            .env("PATH", self.dir.path().join("tools"))
            .env("HOME", self.dir.path().join("work"))
            .env("TMPDIR", self.dir.path().join("work"))
            .env("FAIRLEAD_JOIN_TOKEN", TOKEN)
            .env("FAIRLEAD_ADDRESS", "127.0.0.1:1")
            .env("FAIRLEAD_FROM", self.dir.path())
            .env("FAIRLEAD_PREFIX", self.dir.path().join("work/opt"))
            .current_dir(self.dir.path().join("work"))
            .stdin(Stdio::from(File::open(part).unwrap()))
            .output()
            .unwrap()
    }

    /// The lengths that `wanted` names for a shell, in each; two threads share the work.
    fn check(&self, wanted: impl Fn(&str) -> Vec<usize>) {
        let before = inodes(&self.dir.path().join("work"));
        // Up to the brace there are comments, and a shell that reads only these is content.
        let brace = self
            .script
            .windows(3)
            .position(|part| part == b"\n{\n")
            .unwrap()
            + 1;
        for shell in shells() {
            let lengths = &wanted(shell[0]);
            let next = AtomicUsize::new(0);
            std::thread::scope(|scope| {
                for worker in 0..2 {
                    let next = &next;
                    let part = self.dir.path().join(format!("part-{worker}"));
                    scope.spawn(move || {
                        while let Some(length) = lengths.get(next.fetch_add(1, Ordering::SeqCst)) {
                            fs::write(&part, &self.script[..*length]).unwrap();
                            let output = self.pipe(shell, &part);
                            assert!(
                                output.stdout.is_empty(),
                                "{shell:?}, {length} bytes: it said something"
                            );
                            assert!(
                                *length <= brace || !output.status.success(),
                                "{shell:?}, {length} bytes: taken for a whole script"
                            );
                        }
                    });
                }
            });
            assert_eq!(self.called(), "", "{shell:?} called something");
        }
        assert_eq!(
            inodes(&self.dir.path().join("work")),
            before,
            "something was made"
        );
    }
}

/// The script is whole with its last brace, with or without the line end behind it.
fn parts(sandbox: &Sandbox) -> usize {
    assert!(sandbox.script.ends_with(b"\nexit 0\n}\n"));
    sandbox.script.len() - 2
}

/// The whole script, to see that the sandbox would notice.
fn the_whole_one_is_noticed(sandbox: &Sandbox) {
    for shell in shells() {
        let part = sandbox.dir.path().join("whole");
        fs::write(&part, &sandbox.script).unwrap();
        let output = sandbox.pipe(shell, &part);
        assert!(
            !output.status.success(),
            "{shell:?}: in this sandbox nothing can be installed"
        );
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("(installer_"), "{shell:?}: {said}");
    }
    assert!(sandbox.called().contains("uname"), "the recorder works");
    fs::remove_file(sandbox.dir.path().join("called")).unwrap();
}

#[test]
fn the_script_cut_short_does_nothing_at_any_line_nor_at_every_16th_byte() {
    let sandbox = Sandbox::new();
    the_whole_one_is_noticed(&sandbox);
    let last = parts(&sandbox);
    sandbox.check(|shell| {
        // Time is the only reason for the difference; the long test has every byte in every shell.
        let step = if shell == "dash" { 16 } else { 64 };
        (0..=last)
            .filter(|&length| {
                length % step == 0 || length + 32 > last || sandbox.script[length] == b'\n'
            })
            .collect()
    });
}

#[test]
#[ignore = "long: 80,000 prefixes in three shells take ten minutes of a processor"]
fn long_the_script_cut_short_does_nothing_at_any_byte() {
    let sandbox = Sandbox::new();
    the_whole_one_is_noticed(&sandbox);
    let last = parts(&sandbox);
    sandbox.check(|_| (0..=last).collect());
}

#[test]
fn the_script_is_the_same_bytes_for_everybody_but_for_three_lines() {
    let script = super::kit::script();
    assert!(
        script.is_ascii() || !script.contains('\u{feff}'),
        "no byte order mark"
    );
    assert!(!script.contains('\r'), "no line ends of Windows");
    let stamped = stamp(&script, "0.2.0", "a manifest\n", "0123456789abcdef:key");
    let changed: Vec<_> = script
        .lines()
        .zip(stamped.lines())
        .filter(|(before, after)| before != after)
        .collect();
    assert_eq!(changed.len(), 3, "{changed:?}");
    // No placeholder that a server could be tempted to fill in.
    for mark in ["{{", "<%", "@@", "__FAIRLEAD"] {
        assert!(!script.contains(mark), "{mark}");
    }
}

#[test]
fn shellcheck_has_nothing_to_say() {
    if !super::kit::here("shellcheck") {
        return;
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../installer/install.sh");
    let output = Command::new("shellcheck")
        // All checks, but for: braces around every variable, and notes about `set -e` in conditions,
        // which say nothing about the place where they are.
        .args(["-s", "sh", "-o", "all", "-e", "SC2250,SC2310,SC2311,SC2312"])
        .arg(path)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}
