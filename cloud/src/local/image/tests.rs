use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;

const GOOD: &str =
    "name = \"hello\"\nversion = \"1.0.0\"\ncommand = [\"./serve\"]\nport = 8080\nhealth_path = \"/health\"\n";

struct Desk {
    _dir: tempfile::TempDir,
    images: PathBuf,
    source: PathBuf,
}

fn desk() -> Desk {
    let dir = tempfile::tempdir().unwrap();
    let (images, source) = (dir.path().join("images"), dir.path().join("source"));
    fs::create_dir_all(source.join("lib/empty")).unwrap();
    fs::create_dir(&images).unwrap();
    fs::write(source.join(MANIFEST), GOOD).unwrap();
    fs::write(source.join("serve"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(source.join("serve"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(source.join("lib/data"), "data").unwrap();
    symlink("lib/data", source.join("data")).unwrap();
    Desk { _dir: dir, images, source }
}

fn now() -> Timestamp {
    "2026-11-24T10:00:00Z".parse().unwrap()
}

fn error(desk: &Desk) -> String {
    let error = import(&desk.images, &desk.source, now()).unwrap_err();
    let source = std::error::Error::source(&error).map(|e| format!(": {e}")).unwrap_or_default();
    format!("{error}{source}")
}

fn manifest(text: &str) -> String {
    let desk = desk();
    fs::write(desk.source.join(MANIFEST), text).unwrap();
    error(&desk)
}

/// A tarball of raw entries: name, kind, link target, content. Written by hand, since the library refuses to write
/// what an attacker would.
fn tarball(entries: &[(&str, tar::EntryType, &str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, kind, link, content) in entries {
        let mut header = tar::Header::new_old();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(if *name == "serve" { 0o700 } else { 0o600 });
        header.set_size(u64::try_from(content.len()).unwrap());
        header.set_mtime(1_700_000_000);
        header.set_cksum();
        tar.append(&header, content.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap()
}

fn import_tarball(desk: &Desk, entries: &[(&str, tar::EntryType, &str, &str)]) -> Result<Package, ImageError> {
    let path = desk.source.with_extension("tar");
    fs::write(&path, tarball(entries)).unwrap();
    import(&desk.images, &path, now())
}

#[test]
fn a_directory_becomes_an_image_that_nobody_writes_to() {
    let desk = desk();
    let package = import(&desk.images, &desk.source, now()).unwrap();
    assert_eq!((package.image.name.as_str(), package.port), ("hello", 8080));
    assert!(package.image.registry_required);
    let id = package.image.id.as_str();
    assert!(id.starts_with("ami-") && id.len() == 21, "{id}");
    let root = root_of(&desk.images, &package.image.id);
    let mode = |name: &str| fs::metadata(root.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("serve"), mode("lib/data"), mode("lib")), (0o555, 0o444, 0o755));
    assert_eq!(fs::read_to_string(root.join("data")).unwrap(), "data");
    assert_eq!(load_all(&desk.images).unwrap(), [package]);
}

#[test]
fn the_same_content_is_the_same_image_however_it_was_packed() {
    use tar::EntryType::{Directory, Link, Regular, Symlink};
    let desk = desk();
    let first = import(&desk.images, &desk.source, now()).unwrap();
    let later = "2027-01-01T00:00:00Z".parse().unwrap();
    // Other times, modes that differ for others only, another order, folders left out.
    fs::set_permissions(desk.source.join("lib/data"), fs::Permissions::from_mode(0o666)).unwrap();
    assert_eq!(import(&desk.images, &desk.source, later).unwrap(), first, "the stored one is answered");
    let entries = [
        ("./", Directory, "", ""),
        ("./serve", Regular, "", "#!/bin/sh\n"),
        ("serve", Regular, "", "#!/bin/sh\n"),
        ("lib/data", Regular, "", "data"),
        ("data", Symlink, "lib/data", ""),
        ("lib/empty/", Directory, "", ""),
        (MANIFEST, Regular, "", GOOD),
    ];
    let packed: Vec<_> = entries.iter().filter(|e| e.0 != "./serve").copied().collect();
    assert_eq!(import_tarball(&desk, &packed).unwrap(), first);
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(&tarball(&packed)).unwrap();
    let path = desk.source.with_extension("tar.gz");
    fs::write(&path, gz.finish().unwrap()).unwrap();
    assert_eq!(import(&desk.images, &path, now()).unwrap(), first);
    assert_eq!(load_all(&desk.images).unwrap().len(), 1, "stored once");
    // A hard link is a second file.
    let mut twice = packed.clone();
    twice.push(("second", Link, "lib/data", ""));
    let second = import_tarball(&desk, &twice).unwrap();
    fs::write(desk.source.join("second"), "data").unwrap();
    assert_eq!(import(&desk.images, &desk.source, now()).unwrap(), second);
    assert_ne!(second.image.id, first.image.id);
}

#[test]
fn a_changed_byte_or_mode_is_another_image() {
    let desk = desk();
    let first = import(&desk.images, &desk.source, now()).unwrap();
    fs::set_permissions(desk.source.join("lib/data"), fs::Permissions::from_mode(0o755)).unwrap();
    let executable = import(&desk.images, &desk.source, now()).unwrap();
    assert_ne!(executable.image.id, first.image.id);
    fs::write(desk.source.join("lib/data"), "Data").unwrap();
    assert_ne!(import(&desk.images, &desk.source, now()).unwrap().image.id, executable.image.id);
}

#[test]
fn a_manifest_that_is_wrong_says_where() {
    assert!(manifest(&GOOD.replace("port", "prot")).contains("prot"));
    assert!(manifest(&format!("{GOOD}extra = 1\n")).contains("line 6"));
    assert!(manifest(&GOOD.replace("8080", "0")).contains("`port` must be 1 to 65535"));
    assert!(manifest(&GOOD.replace("8080", "70000")).contains("70000"));
    assert!(manifest(&GOOD.replace("[\"./serve\"]", "[]")).contains("`command`"));
    for path in ["health", "/a b", "/a?b<c", "/a#b", "/ä", "//h:0/a\\u0007"] {
        assert!(manifest(&GOOD.replace("/health", path)).contains("`health_path`"), "{path}");
    }
    assert!(manifest(&GOOD.replace("hello", "a/b")).contains("`name`"));
    assert!(manifest(&format!("{GOOD}registry = \"maybe\"\n")).contains("maybe"));
    let none = desk();
    fs::remove_file(none.source.join(MANIFEST)).unwrap();
    assert!(error(&none).contains("has no `troop-image.toml`"));
    assert_eq!(fs::read_dir(&none.images).unwrap().count(), 0, "a refused import leaves nothing");
}

#[test]
fn links_that_leave_the_image_are_refused_also_by_detours() {
    for (name, to) in [("a", "/etc/passwd"), ("a", "../x"), ("lib/a", "../../x"), ("a", "a"), ("a", "lib/../../x")] {
        let desk = desk();
        symlink(to, desk.source.join(name)).unwrap();
        assert!(error(&desk).contains("link"), "{name} -> {to}");
    }
    // Each alone looks as if it stayed inside.
    let desk = desk();
    symlink("..", desk.source.join("lib/up")).unwrap();
    import(&desk.images, &desk.source, now()).unwrap();
    symlink("lib/up/..", desk.source.join("out")).unwrap();
    assert!(error(&desk).contains("leads outside"));
    assert_eq!(load_all(&desk.images).unwrap().len(), 1);
}

#[test]
fn tarballs_that_reach_outside_are_refused_and_write_nothing_there() {
    use tar::EntryType::{Block, Char, Fifo, Link, Regular, Symlink};
    let outside = std::path::Path::new("/tmp/troop-image-test-was-here");
    for entry in [
        ("../troop-image-test", Regular, "", "x"),
        ("/tmp/troop-image-test-was-here", Regular, "", "x"),
        ("a/../../b", Regular, "", "x"),
        ("dev", Char, "", ""),
        ("dev", Block, "", ""),
        ("pipe", Fifo, "", ""),
        ("hard", Link, "/etc/passwd", ""),
        ("hard", Link, "../images", ""),
        ("soft", Symlink, "/etc", ""),
        (MANIFEST, Regular, "", GOOD),
    ] {
        let desk = desk();
        let refused = import_tarball(&desk, &[(MANIFEST, Regular, "", GOOD), entry]).unwrap_err();
        assert!(matches!(refused, ImageError::Entry { .. }), "{entry:?}: {refused}");
        assert_eq!(fs::read_dir(&desk.images).unwrap().count(), 0);
    }
    assert!(!outside.exists());
    let desk = desk();
    let through = [(MANIFEST, Regular, "", GOOD), ("l", Symlink, "lib", ""), ("l/x", Regular, "", "x")];
    assert!(import_tarball(&desk, &through).is_err(), "nothing is written through a link");
    let manifest_link = [("m", Regular, "", GOOD), (MANIFEST, Symlink, "m", "")];
    assert!(matches!(import_tarball(&desk, &manifest_link), Err(ImageError::NoManifest { .. })));
}

#[test]
fn a_small_file_that_unpacks_to_too_much_is_refused() {
    let desk = desk();
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut header = tar::Header::new_gnu();
    header.set_path("big").unwrap();
    header.set_size((1 << 30) + 1);
    header.set_mode(0o644);
    header.set_cksum();
    gz.write_all(header.as_bytes()).unwrap();
    // A hole: what is not there need not be sent, and a file that is cut short must not pass for a whole one.
    gz.write_all(&[0; 4096]).unwrap();
    let path = desk.source.with_extension("tar.gz");
    fs::write(&path, gz.finish().unwrap()).unwrap();
    assert!(import(&desk.images, &path, now()).is_err());
    assert_eq!(fs::read_dir(&desk.images).unwrap().count(), 0);
}

#[test]
fn a_name_that_would_fill_the_memory_is_refused_before_it_is_held() {
    let long = usize::try_from(stage::HEADERS_BYTES_MAX).unwrap();
    for (length, too_large) in [(long * 16, true), (long - 2_048, false)] {
        let desk = desk();
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::GNULongName);
        header.set_path("././@LongLink").unwrap();
        header.set_size(u64::try_from(length).unwrap());
        header.set_cksum();
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(header.as_bytes()).unwrap();
        gz.write_all(&vec![b'x'; length]).unwrap();
        gz.write_all(&tarball(&[(MANIFEST, tar::EntryType::Regular, "", GOOD)])).unwrap();
        let path = desk.source.with_extension("tar.gz");
        fs::write(&path, gz.finish().unwrap()).unwrap();
        // The shorter one is only a name that no file system takes.
        let refused = import(&desk.images, &path, now()).unwrap_err();
        assert_eq!(matches!(refused, ImageError::TooLarge { .. }), too_large, "{refused}");
        assert_eq!(fs::read_dir(&desk.images).unwrap().count(), 0);
    }
}

#[test]
fn content_and_entries_end_at_their_limits() {
    use tar::EntryType::Regular;
    let bytes = u64::try_from(GOOD.len()).unwrap();
    for (content_bytes, entries, fits) in [(bytes + 4, 2, true), (bytes + 3, 2, false), (bytes + 4, 1, false)] {
        let desk = desk();
        let path = desk.source.with_extension("tar");
        fs::write(&path, tarball(&[(MANIFEST, Regular, "", GOOD), ("data", Regular, "", "data")])).unwrap();
        let imported = import_within(&desk.images, &path, now(), Limits { content_bytes, entries });
        assert_eq!(imported.is_ok(), fits, "{imported:?}");
        assert!(fits || matches!(imported, Err(ImageError::TooLarge { .. })), "{imported:?}");
    }
}

#[test]
fn what_is_no_tarball_is_refused() {
    let desk = desk();
    let path = desk.source.with_extension("tar");
    fs::write(&path, "this is no tarball, only some text that is longer than nothing\n".repeat(20)).unwrap();
    assert!(import(&desk.images, &path, now()).is_err());
    assert!(import(&desk.images, &desk.source.join("missing"), now()).is_err());
}

#[test]
fn an_import_that_was_cut_off_is_cleaned_at_start() {
    let desk = desk();
    let half = desk.images.join(format!("{STAGED}0011"));
    fs::create_dir_all(half.join(ROOT)).unwrap();
    assert_eq!(load_all(&desk.images).unwrap(), []);
    assert!(!half.exists());
}

#[test]
fn a_stored_image_that_was_tampered_with_is_named() {
    let desk = desk();
    let package = import(&desk.images, &desk.source, now()).unwrap();
    let home = desk.images.join(package.image.id.as_str());
    fs::rename(&home, desk.images.join("ami-00000000000000000")).unwrap();
    assert!(load_all(&desk.images).unwrap_err().to_string().contains("ami-00000000000000000"));
}
