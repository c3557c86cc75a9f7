//! Archives as they are, and as somebody hostile would make them.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use tar::{Builder, EntryType, Header};

use super::unpack::{UnpackError, Unpacked, unpack};
use super::{first_entry, pack};

/// An archive with paths and links written as they are, unchecked.
fn raw(entries: &[(&str, EntryType, &str, &[u8])]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (path, kind, link, data) in entries {
        let mut header = Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(0o4755);
        header.set_size(data.len() as u64);
        header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        builder.append(&header, *data).unwrap();
    }
    builder.into_inner().unwrap()
}

const FILE: EntryType = EntryType::Regular;
const DIR: EntryType = EntryType::Directory;
const LINK: EntryType = EntryType::Symlink;

fn to(dir: &Path, archive: &[u8]) -> Result<Unpacked, UnpackError> {
    unpack(archive, dir.to_str().unwrap())
}

#[test]
fn a_folder_goes_there_and_back() {
    let from = tempfile::tempdir().unwrap();
    let tree = from.path().join("tree");
    fs::create_dir_all(tree.join("sub")).unwrap();
    fs::write(tree.join("sub/file"), b"hello").unwrap();
    fs::set_permissions(tree.join("sub/file"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::write(tree.join("x".repeat(150)), b"long name").unwrap();
    symlink("sub/file", tree.join("link")).unwrap();
    let packed = pack(&tree, "renamed").unwrap();
    assert_eq!(packed.sha256.len(), 64);
    let mut bytes = Vec::new();
    (&packed.file).read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len() as u64, packed.size);
    assert_eq!(first_entry(&bytes), Some(DIR));

    let into = tempfile::tempdir().unwrap();
    let done = to(into.path(), &bytes).unwrap();
    let copy = into.path().join("renamed");
    assert_eq!((done.files, done.left_out.len()), (2, 0));
    assert_eq!(fs::read(copy.join("sub/file")).unwrap(), b"hello");
    let mode = fs::metadata(copy.join("sub/file"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o640);
    assert_eq!(fs::read(copy.join("link")).unwrap(), b"hello");
    assert!(copy.join("x".repeat(150)).exists());

    // Under a new name where that is not there, and contents only.
    let fresh = into.path().join("fresh");
    to(&fresh, &bytes).unwrap();
    assert!(fresh.join("sub/file").exists());
    let packed = pack(&tree, "").unwrap();
    let mut bytes = Vec::new();
    (&packed.file).read_to_end(&mut bytes).unwrap();
    assert!(!bytes.is_empty());
}

#[test]
fn contents_of_a_folder_have_no_top() {
    let into = tempfile::tempdir().unwrap();
    let archive = raw(&[
        ("./", DIR, "", b""),
        ("./a", FILE, "", b"1"),
        ("./d/", DIR, "", b""),
    ]);
    to(into.path(), &archive).unwrap();
    assert_eq!(fs::read(into.path().join("a")).unwrap(), b"1");
    assert!(into.path().join("d").is_dir());
}

#[test]
fn paths_that_lead_out_end_it() {
    for path in ["../evil", "/etc/evil", "top/../../evil"] {
        let into = tempfile::tempdir().unwrap();
        let inner = into.path().join("inner");
        fs::create_dir(&inner).unwrap();
        let archive = raw(&[("top/", DIR, "", b""), (path, FILE, "", b"x")]);
        assert!(
            matches!(to(&inner, &archive), Err(UnpackError::Hostile(_))),
            "{path}"
        );
        assert!(!into.path().join("evil").exists());
    }
    let into = tempfile::tempdir().unwrap();
    let archive = raw(&[("top/", DIR, "", b""), ("other", FILE, "", b"x")]);
    assert!(matches!(
        to(into.path(), &archive),
        Err(UnpackError::Hostile(_))
    ));
    assert!(matches!(
        to(into.path(), &[0; 1024]),
        Err(UnpackError::Hostile(_))
    ));
}

#[test]
fn links_that_lead_out_are_left_out() {
    let into = tempfile::tempdir().unwrap();
    let archive = raw(&[
        ("top/", DIR, "", b""),
        ("top/d/", DIR, "", b""),
        ("top/abs", LINK, "/etc/passwd", b""),
        ("top/up", LINK, "../../x", b""),
        ("top/d/sly", LINK, "../d/../../x", b""),
        ("top/d/good", LINK, "../d", b""),
        ("top/dev", EntryType::Char, "", b""),
        ("top/pipe", EntryType::Fifo, "", b""),
        ("top/hard", EntryType::Link, "elsewhere/file", b""),
    ]);
    let done = to(into.path(), &archive).unwrap();
    assert_eq!(done.left_out.len(), 6, "{:?}", done.left_out);
    for name in ["abs", "up", "d/sly", "dev", "pipe", "hard"] {
        assert!(
            fs::symlink_metadata(into.path().join("top").join(name)).is_err(),
            "{name}"
        );
    }
    assert!(fs::symlink_metadata(into.path().join("top/d/good")).is_ok());
}

#[test]
fn a_file_goes_to_what_the_operators_link_leads_to_and_replaces_nothing_special() {
    let into = tempfile::tempdir().unwrap();
    let archive = raw(&[("one", FILE, "", b"new")]);
    let (real, link) = (into.path().join("real"), into.path().join("link"));
    fs::write(&real, "old").unwrap();
    std::os::unix::fs::symlink("real", &link).unwrap();
    to(&link, &archive).unwrap();
    assert_eq!(fs::read(&real).unwrap(), b"new");
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());

    let socket = into.path().join("one");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    for place in [&socket, into.path()] {
        let refused = to(place, &archive);
        assert!(matches!(refused, Err(UnpackError::Destination(_))));
    }
    let still = fs::symlink_metadata(&socket).unwrap().file_type();
    assert!(std::os::unix::fs::FileTypeExt::is_socket(&still));
}

#[test]
fn nothing_is_written_through_a_link() {
    let outside = tempfile::tempdir().unwrap();
    let into = tempfile::tempdir().unwrap();
    let top = into.path().join("top");
    fs::create_dir(&top).unwrap();
    // As if an earlier archive (or somebody else) had left it.
    symlink(outside.path(), top.join("way")).unwrap();
    let archive = raw(&[("top/", DIR, "", b""), ("top/way/evil", FILE, "", b"x")]);
    assert!(matches!(
        to(into.path(), &archive),
        Err(UnpackError::Hostile(_))
    ));
    assert!(!outside.path().join("evil").exists());

    // A file in the place of a link replaces the link, not what it leads to.
    fs::write(outside.path().join("victim"), b"old").unwrap();
    symlink(outside.path().join("victim"), top.join("file")).unwrap();
    let archive = raw(&[("top/", DIR, "", b""), ("top/file", FILE, "", b"new")]);
    to(into.path(), &archive).unwrap();
    assert_eq!(fs::read(outside.path().join("victim")).unwrap(), b"old");
    assert_eq!(fs::read(top.join("file")).unwrap(), b"new");

    // A top that is a link takes nothing below it.
    let linked = into.path().join("linked");
    symlink(outside.path(), &linked).unwrap();
    let archive = raw(&[("linked/", DIR, "", b""), ("linked/evil", FILE, "", b"x")]);
    assert!(to(into.path(), &archive).is_err());
    assert!(!outside.path().join("evil").exists());
}

#[test]
fn files_are_whole_or_not_there_and_never_set_uid() {
    let into = tempfile::tempdir().unwrap();
    let archive = raw(&[("file", FILE, "", &[7; 2000])]);
    assert!(matches!(
        to(into.path(), &archive[..1500]),
        Err(UnpackError::Read(_))
    ));
    assert_eq!(
        fs::read_dir(into.path()).unwrap().count(),
        0,
        "nothing half done"
    );
    to(into.path(), &archive).unwrap();
    let mode = fs::metadata(into.path().join("file"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o755);
    // A single file under another name, over a file, and not over a folder.
    to(&into.path().join("other"), &archive).unwrap();
    to(&into.path().join("other"), &archive).unwrap();
    fs::create_dir(into.path().join("dir")).unwrap();
    to(&into.path().join("dir"), &archive).unwrap();
    assert!(into.path().join("dir/file").is_file());
    assert!(unpack(&archive[..], into.path().join("gone/").to_str().unwrap()).is_err());
    let folder = raw(&[("f/", DIR, "", b"")]);
    assert!(matches!(
        to(&into.path().join("other"), &folder),
        Err(UnpackError::Destination(_))
    ));
}
