//! Which version of Fairlead's software this program is.
//!
//! The version is stamped into the finished program when it is packed, not compiled in: what is built
//! once can be packed as any version, and the same sources give the same bytes. The packer
//! (`installer/`) finds [`MARK_HEAD`], which is in each program exactly once, and overwrites what
//! follows. A program that was built and not packed is `0.0.0-dev`, older than all that were.

use std::hint::black_box;

/// How the mark begins. Not used by the programs themselves: it would be in them a second time.
pub const MARK_HEAD: &[u8; 16] = b"fairlead-stamp:\n";
/// Length of the mark: its head, then the version, then spaces.
pub const MARK_BYTES: usize = 64;
/// What a program is called that has not been packed.
pub const NOT_PACKED: &str = "0.0.0-dev";

#[used]
static MARK: [u8; MARK_BYTES] =
    *b"fairlead-stamp:\n0.0.0-dev                                       ";

/// The version that was stamped into this program.
#[must_use]
pub fn version() -> &'static str {
    // The optimizer must not take what it sees in MARK for what will be there at run time.
    let mark: &'static [u8; MARK_BYTES] = black_box(&MARK);
    std::str::from_utf8(&mark[MARK_HEAD.len()..])
        .unwrap_or(NOT_PACKED)
        .trim_end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_is_as_it_is_described() {
        assert_eq!(&MARK[..MARK_HEAD.len()], MARK_HEAD);
        assert_eq!(version(), NOT_PACKED);
    }
}
