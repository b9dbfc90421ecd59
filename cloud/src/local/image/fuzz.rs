//! What must hold of any manifest and of any file that is given as an image: targets of `tests/fuzz/run`, whose corpora a
//! test replays as well.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::fs::symlink;

use super::*;

/// Small, so that a bomb is one soon.
const LIMITS: Limits = Limits { content_bytes: 1 << 20, entries: 200 };
const CANARY: &str = "as it was";

/// A manifest. What is taken keeps within its limits, and is taken again as it was when it is written anew.
///
/// # Panics
/// When it does not hold.
pub(crate) fn manifest(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let path = Path::new("image");
    let Ok(manifest) = parse_manifest(text, path) else { return };
    for text in [&manifest.name, &manifest.version] {
        assert!((1..=TEXT_MAX_CHARS).contains(&text.len()) && text.chars().all(|c| c.is_ascii_graphic() && c != '/'));
    }
    assert!(manifest.command.first().is_some_and(|program| !program.is_empty()));
    assert!(manifest.port > 0 && manifest.health_path.starts_with('/'));
    // It becomes the target of a request.
    let target: http::Uri =
        manifest.health_path.parse().unwrap_or_else(|why| panic!("{}: {why}", manifest.health_path));
    assert_eq!(target.path_and_query().map(http::uri::PathAndQuery::as_str), Some(manifest.health_path.as_str()));
    let printed = toml::to_string(&manifest).expect("it can be written");
    let again = parse_manifest(&printed, path).unwrap_or_else(|why| panic!("{why}\n{printed}"));
    assert_eq!(again, manifest, "{printed}");
}

/// Any bytes as a tarball. Refused: nothing is left. Taken: all of it lies in the image's folder, every link stays there,
/// and the unpacked folder is the same image. Outside of it nothing changes either way.
///
/// # Panics
/// When it does not hold.
pub(crate) fn tarball(data: &[u8]) {
    let memory = Path::new("/dev/shm");
    let desk = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.expect("a folder");
    let (images, outside, file) = (desk.path().join("images"), desk.path().join("outside"), desk.path().join("tar"));
    for folder in [&images, &outside] {
        fs::create_dir(folder).expect("a folder");
    }
    fs::write(outside.join("canary"), CANARY).expect("a file");
    symlink(&outside, desk.path().join("link")).expect("a link");
    fs::write(&file, data).expect("a file");
    let taken = import_within(&images, &file, Timestamp::UNIX_EPOCH, LIMITS);
    assert_eq!(names(desk.path()), ["images", "link", "outside", "tar"]);
    assert_eq!(names(&outside), ["canary"]);
    assert_eq!(fs::read_to_string(outside.join("canary")).expect("it is there"), CANARY);
    let Ok(package) = taken else { return assert_eq!(names(&images), [""; 0], "{taken:?}") };
    let id = package.image.id.as_str();
    assert_eq!(names(&images), [id]);
    assert_eq!(names(&images.join(id)), [FACTS, ROOT]);
    let root = root_of(&images, &package.image.id).canonicalize().expect("the image");
    let (mut bytes, mut entries) = (0, 0);
    walk(&root, &root, &mut |meta| {
        entries += 1;
        bytes += if meta.is_file() { meta.len() } else { 0 };
    });
    assert!(bytes <= LIMITS.content_bytes && entries <= LIMITS.entries, "{entries} entries of {bytes} bytes");
    assert_eq!(load(&images.join(id)).expect("it is stored"), package);
    let again = import_within(&images, &root, Timestamp::UNIX_EPOCH, LIMITS).expect("the unpacked folder is an image");
    assert_eq!(again.image.id, package.image.id, "the same content is the same image");
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    let mut names: Vec<_> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn walk(root: &Path, folder: &Path, see: &mut impl FnMut(&fs::Metadata)) {
    for name in fs::read_dir(folder).expect("a folder") {
        let path = name.expect("an entry").path();
        let meta = fs::symlink_metadata(&path).expect("it is there");
        see(&meta);
        let mode = meta.permissions().mode() & 0o7777;
        if meta.is_symlink() {
            // What leads nowhere leads nowhere outside either: that is checked where it is taken.
            if let Ok(real) = path.canonicalize() {
                assert!(real.starts_with(root), "{} leads to {}", path.display(), real.display());
            }
            assert!(!fs::read_link(&path).expect("a link").is_absolute());
        } else if meta.is_dir() {
            assert_eq!(mode, 0o755);
            walk(root, &path, see);
        } else {
            assert!(meta.is_file() && [0o444, 0o555].contains(&mode), "{} {mode:o}", path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_corpora_hold() {
        for (name, target) in [("manifest", manifest as fn(&[u8])), ("tarball", tarball)] {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus").join(name);
            let inputs: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
            assert!(inputs.len() >= 10, "{name}");
            inputs.iter().for_each(|path| target(&fs::read(path).unwrap()));
        }
    }
}
