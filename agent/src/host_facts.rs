//! What this machine is: the facts that go with hello and enrolment. Reads files of `/proc` and
//! `/etc`, writes nothing.

use std::path::Path;

use fairlead_protocol::{EngineFacts, HostFacts};

/// Longest text that is taken from a file of the host.
const TEXT_CHARS_MAX: usize = 256;

/// The facts of this machine, with the engine's and the policy's own.
#[must_use]
pub fn host_facts(engine: EngineFacts, policy: String) -> HostFacts {
    host_facts_at(Path::new("/"), engine, policy)
}

/// The same, of the machine whose files lie below `root`.
#[must_use]
pub fn host_facts_at(root: &Path, engine: EngineFacts, policy: String) -> HostFacts {
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap_or_default();
    let os_release = match read("etc/os-release") {
        text if text.is_empty() => read("usr/lib/os-release"),
        text => text,
    };
    HostFacts {
        hostname: plain(read("proc/sys/kernel/hostname").trim()),
        os: plain(&pretty_name(&os_release)),
        kernel: plain(read("proc/sys/kernel/osrelease").trim()),
        arch: std::env::consts::ARCH.to_owned(),
        cpus: processors(&read("proc/stat")),
        memory_bytes: memory_total(&read("proc/meminfo")),
        engine: Some(engine),
        agent_version: fairlead_protocol::software::version().to_owned(),
        policy,
        host_shell: false,
        versions: None,
    }
}

/// Without control characters, and not longer than a line.
fn plain(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_control())
        .take(TEXT_CHARS_MAX)
        .collect()
}

/// PRETTY_NAME of an os-release file, unquoted.
fn pretty_name(os_release: &str) -> String {
    let value = |key: &str| {
        os_release
            .lines()
            .find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='))
    };
    let value = value("PRETTY_NAME")
        .or_else(|| value("NAME"))
        .unwrap_or("Linux")
        .trim();
    let unquoted = ['"', '\'']
        .into_iter()
        .find_map(|quote| value.strip_prefix(quote)?.strip_suffix(quote))
        .unwrap_or(value);
    unquoted.replace('\\', "")
}

fn processors(stat: &str) -> u32 {
    let numbered = |line: &&str| {
        line.strip_prefix("cpu")
            .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    u32::try_from(stat.lines().filter(numbered).count()).unwrap_or(u32::MAX)
}

/// MemTotal in bytes; 0 when it is not said.
pub(crate) fn memory_total(meminfo: &str) -> u64 {
    let kib = meminfo.lines().find_map(|line| {
        line.strip_prefix("MemTotal:")?
            .split_whitespace()
            .next()?
            .parse::<u64>()
            .ok()
    });
    kib.unwrap_or(0).saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_known() {
        let facts = host_facts(EngineFacts::default(), "exec".to_owned());
        assert!(!facts.hostname.is_empty() && !facts.kernel.is_empty() && !facts.os.is_empty());
        assert!(facts.cpus > 0 && facts.memory_bytes > 0);
        assert_eq!(facts.policy, "exec");
    }

    #[test]
    fn names_are_unquoted_and_plain() {
        assert_eq!(
            pretty_name("NAME=x\nPRETTY_NAME=\"A \\\"B\\\" 1\"\n"),
            "A \"B\" 1"
        );
        assert_eq!(pretty_name("NAME='x y'"), "x y");
        assert_eq!(pretty_name(""), "Linux");
        assert_eq!(plain("a\u{1b}[31mb"), "a[31mb");
    }

    #[test]
    fn a_machine_without_files_has_no_facts() {
        let dir = tempfile::tempdir().unwrap();
        let facts = host_facts_at(dir.path(), EngineFacts::default(), String::new());
        assert_eq!(
            (facts.cpus, facts.memory_bytes, facts.os.as_str()),
            (0, 0, "Linux")
        );
    }
}
