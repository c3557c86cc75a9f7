//! Messages and frames: any bytes are refused, or mean something that is written back the same.
#![no_main]

use bytes::Bytes;
use fairlead_identity::roles::Role;
use fairlead_protocol::stream::{frame, parse};
use fairlead_protocol::{
    Command, CommandId, HostId, JournalRecord, LinkDown, LinkUp, Message, SignedCommand, UplinkDown, UplinkUp, version,
};
use libfuzzer_sys::fuzz_target;

fn stable<T: Message + Default + PartialEq + std::fmt::Debug>(input: &[u8]) {
    if let Ok(message) = T::decode(input) {
        let written = message.encode_to_vec();
        // NaN is not itself; bytes are.
        let again = T::decode(&written[..]).expect("our own bytes");
        assert_eq!(again.encode_to_vec(), written);
    }
}

fuzz_target!(|input: &[u8]| {
    stable::<LinkUp>(input);
    stable::<LinkDown>(input);
    stable::<UplinkUp>(input);
    stable::<UplinkDown>(input);
    stable::<JournalRecord>(input);
    stable::<SignedCommand>(input);
    stable::<Command>(input);
    if let Ok(command) = Command::decode(input)
        && let Some(kind) = &command.kind
    {
        let _ = (kind.changes(), kind.target().len(), kind.lane());
    }
    if let Some((channel, payload)) = parse(Bytes::copy_from_slice(input)) {
        assert_eq!(frame(channel, &payload), input);
    }
    let _ = (CommandId::from_wire(input), HostId::from_wire(input));
    if let Some((min, max)) = input.split_first_chunk::<4>().and_then(|(min, rest)| Some((min, rest.first_chunk::<4>()?)))
    {
        let (min, max) = (u32::from_le_bytes(*min), u32::from_le_bytes(*max));
        if let Some(agreed) = version::negotiate(min, max) {
            assert!((min..=max).contains(&agreed));
        }
    }
    if let Ok(text) = std::str::from_utf8(input)
        && let Some((domain, role)) = Role::parse(text)
    {
        assert_eq!(role.uri(&domain), text, "a role has one spelling");
    }
});
