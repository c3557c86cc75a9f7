//! The codec: hostile bytes, unknown fields and kinds, and bytes that must mean the same for ever.

use proptest::prelude::*;
use prost::Message;

use crate::command::Kind;
use crate::{
    Command, JournalRecord, LinkDown, LinkUp, Restart, SignedCommand, UplinkDown, UplinkUp,
};

/// A restart as it was encoded when version 1 was made. If this test fails, a field number or a type
/// was changed, which is never allowed.
const RESTART_V1: &str = "0a1001010101010101010101010101010101120764656661756c741a10020202020202\
                          02020202020202020202220561646d696e280a3064c201070a037765621005";

fn bytes_of(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn restart() -> Command {
    Command {
        id: vec![1; 16].into(),
        tenant: "default".into(),
        host: vec![2; 16].into(),
        issuer: "admin".into(),
        issued_at_us: 10,
        not_after_us: 100,
        kind: Some(Kind::Restart(Restart {
            container: "web".into(),
            grace_s: Some(5),
            signal: String::new(),
        })),
        ..Command::default()
    }
}

#[test]
fn version_one_bytes_mean_what_they_meant() {
    assert_eq!(
        Command::decode(&bytes_of(RESTART_V1)[..]).unwrap(),
        restart()
    );
    assert_eq!(restart().encode_to_vec(), bytes_of(RESTART_V1));
}

#[test]
fn an_unknown_field_is_passed_over_and_an_unknown_kind_is_seen_as_none() {
    // Field 1000, a later version's addition.
    let mut later = restart().encode_to_vec();
    later.extend([0xc0, 0x3e, 0x01]);
    assert_eq!(Command::decode(&later[..]).unwrap(), restart());
    // Kind 900 of a frame: nothing that this version knows, and no error.
    let unknown = LinkUp::decode(&[0xa2, 0x38, 0x00][..]).unwrap();
    assert_eq!(unknown.kind, None);
}

proptest! {
    #[test]
    fn any_bytes_decode_or_are_refused(bytes: Vec<u8>) {
        let _ = LinkUp::decode(&bytes[..]);
        let _ = LinkDown::decode(&bytes[..]);
        let _ = UplinkUp::decode(&bytes[..]);
        let _ = UplinkDown::decode(&bytes[..]);
        let _ = JournalRecord::decode(&bytes[..]);
        let _ = SignedCommand::decode(&bytes[..]);
    }

    #[test]
    fn a_truncated_command_is_never_another_command(cut in 0usize..60) {
        let whole = restart().encode_to_vec();
        prop_assume!(cut < whole.len());
        if let Ok(part) = Command::decode(&whole[..cut]) {
            prop_assert_ne!(part, restart());
        }
    }
}
