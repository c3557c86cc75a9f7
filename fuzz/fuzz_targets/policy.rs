//! The owner's policy file: any text gives rules or refuses every change; a rule that is there is never lost.
#![no_main]

use fairlead_agent::policy::Policy;
use fairlead_fuzz::dir;
use fairlead_protocol::command::Kind;
use fairlead_protocol::{Command, ContainerSpec, Exec, Message, Run};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&str, &[u8])| {
    let (text, asked) = input;
    let path = dir().join("policy.toml");
    std::fs::write(&path, text).expect("a file");
    let policy = Policy::load(&path);
    if let Ok(command) = Command::decode(asked) {
        let _ = policy.check(&command);
        let _ = policy.check_named(&command, "web");
    }
    let ask = |kind| policy.check(&Command { kind: Some(kind), ..Command::default() }).is_ok();
    let privileged = ask(Kind::Run(Run {
        spec: Some(ContainerSpec { image: "busybox".to_owned(), name: "x".to_owned(), privileged: true, ..ContainerSpec::default() }),
        ..Run::default()
    }));
    // A line that says so forbids it, whatever else is in the file.
    if text.lines().any(|line| line == "forbid_privileged = true") && !text.contains(['"', '\'', '[']) {
        assert!(!privileged, "{text}");
    }
    let _ = ask(Kind::Exec(Exec { container: "web".to_owned(), command: vec!["sh".to_owned()], ..Exec::default() }));
});
