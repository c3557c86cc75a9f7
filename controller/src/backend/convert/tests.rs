//! What is refused, and that what is taken arrives unchanged.

use super::*;
use fairlead_api::types::{ContainerSpec, Mount, Port};
use proptest::prelude::*;

fn exec_with(workdir: &str, command: &[&str], env: &[&str]) -> Action {
    Action::Exec {
        container: "web".to_owned(),
        command: command.iter().map(ToString::to_string).collect(),
        env: env.iter().map(ToString::to_string).collect(),
        user: String::new(),
        workdir: workdir.to_owned(),
        stdin: false,
        privileged: false,
    }
}

#[test]
fn s35_relative_and_escaping_working_directories_are_refused() {
    for workdir in [
        "relative",
        "./x",
        "..",
        "/a/../b",
        "/proc/self/fd/8",
        "//proc/1/cwd",
        "/a\nb",
    ] {
        kind(&exec_with(workdir, &["sh"], &[])).unwrap_err();
        let spec = ContainerSpec {
            image: "a".to_owned(),
            workdir: workdir.to_owned(),
            ..ContainerSpec::default()
        };
        kind(&Action::Run {
            spec: Box::new(spec),
        })
        .unwrap_err();
    }
    kind(&exec_with("/srv/app", &["sh"], &[])).unwrap();
}

#[test]
fn s32_arguments_arrive_as_they_were_given() {
    let words = ["sh", "-c", "echo $(id) `id` ; rm -rf / && \"'\n"];
    let Kind::Exec(exec) = kind(&exec_with("", &words, &["A=b c\nd", "B="])).unwrap() else {
        panic!("an exec")
    };
    assert_eq!(exec.command, words);
    assert_eq!(exec.env, ["A=b c\nd", "B="]);
    for (command, env) in [
        (&[][..], &[][..]),
        (&[""][..], &[][..]),
        (&["a\0b"][..], &[][..]),
        (&["a"][..], &["novalue"][..]),
        (&["a"][..], &["=x"][..]),
        (&["a"][..], &["A B=x"][..]),
    ] {
        kind(&exec_with("", command, env)).unwrap_err();
    }
}

#[test]
fn signals_are_named_in_one_way() {
    for (given, want) in [
        ("hup", "SIGHUP"),
        ("SIGTERM", "SIGTERM"),
        ("9", "9"),
        ("sigrtmin+3", "SIGRTMIN+3"),
        ("", ""),
    ] {
        assert_eq!(signal(given).unwrap(), want);
    }
    for wrong in ["0", "65", "-9", "NONSENSE", "SIG", "TERM\n", "SIGRTMIN+99"] {
        signal(wrong).unwrap_err();
    }
}

#[test]
fn a_container_without_a_name_gets_one() {
    let spec = ContainerSpec {
        image: "busybox".to_owned(),
        ..ContainerSpec::default()
    };
    let Kind::Run(run) = kind(&Action::Run {
        spec: Box::new(spec),
    })
    .unwrap() else {
        panic!("a run")
    };
    container_name(&run.spec.unwrap().name).unwrap();
}

#[test]
fn what_an_engine_would_misunderstand_is_refused() {
    let with = |change: fn(&mut ContainerSpec)| {
        let mut spec = ContainerSpec {
            image: "busybox".to_owned(),
            ..ContainerSpec::default()
        };
        change(&mut spec);
        kind(&Action::Create {
            spec: Box::new(spec),
        })
        .map(|_| ())
    };
    with(|_| {}).unwrap();
    with(|s| {
        s.ports = vec![Port {
            container_port: 80,
            ..Port::default()
        }];
    })
    .unwrap();
    let refused: [fn(&mut ContainerSpec); 17] = [
        |s| s.image = String::new(),
        |s| s.image = "-v".to_owned(),
        |s| s.name = "a/b".to_owned(),
        |s| s.ports = vec![Port::default()],
        |s| {
            s.ports = vec![Port {
                container_port: 1,
                proto: "x".to_owned(),
                ..Port::default()
            }];
        },
        |s| {
            s.ports = vec![Port {
                container_port: 1,
                host_ip: "a".to_owned(),
                ..Port::default()
            }];
        },
        |s| {
            s.mounts = vec![Mount {
                kind: "npipe".to_owned(),
                ..Mount::default()
            }];
        },
        |s| {
            s.mounts = vec![Mount {
                kind: "bind".to_owned(),
                source: "relative".to_owned(),
                target: "/x".to_owned(),
                ..Mount::default()
            }];
        },
        |s| s.restart_policy = "sometimes".to_owned(),
        |s| s.restart_max = 3,
        |s| s.memory_bytes = -1,
        |s| s.memory_bytes = 1024,
        |s| s.oom_score_adj = 2000,
        |s| s.pull = "perhaps".to_owned(),
        |s| s.ip = "nowhere".to_owned(),
        |s| s.network = "a b".to_owned(),
        |s| s.labels = [("fairlead.command".to_owned(), "x".to_owned())].into(),
    ];
    for (index, change) in refused.into_iter().enumerate() {
        assert!(with(change).is_err(), "number {index} was taken");
    }
}

#[test]
fn a_command_that_no_link_can_carry_is_refused() {
    let long = "x".repeat(COMMAND_BYTES_MAX);
    let error = kind(&exec_with("", &["sh", &long], &[])).unwrap_err();
    assert_eq!(error.code, codes::COMMAND_TOO_LARGE);
}

proptest! {
    #[test]
    fn names_are_taken_or_refused_without_panic(name in ".*") {
        let taken = container_name(&name).is_ok();
        prop_assert!(!taken || name.is_ascii());
        let _ = image(&name);
        let _ = signal(&name);
        let _ = workdir_of(&name);
        let _ = platform(&name);
    }
}
