//! Files of a policies directory as bytes: what is read at all, for the control plane and for `policy check` alike.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::OFlags;
use troop_policies::file::FILE_BYTES_MAX;
use troop_scheduler::calendar::CalendarError;

use crate::world::chain;

/// Why a file is not read, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unreadable {
    pub(crate) why: String,
    pub(crate) hint: String,
}

fn not<T>(path: &Path, what: &str, hint: &str) -> Result<T, Unreadable> {
    Err(Unreadable { why: format!("`{}` {what}", path.display()), hint: hint.to_owned() })
}

/// Reads a policy or a calendar of the directory, at most [`FILE_BYTES_MAX`] bytes of it.
///
/// # Errors
/// [`Unreadable`] for what is no file, is too large, or lies outside of the directory, also behind links: whoever may
/// write a link there must not thereby choose what this process reads and shows.
pub(crate) fn read(directory: &Path, path: &Path) -> Result<Vec<u8>, Unreadable> {
    let failed = |error: io::Error| {
        let hint = if error.kind() == io::ErrorKind::NotFound {
            "give its path from the policy's folder; a link must lead to a file"
        } else {
            "see to its permissions, and those of the folders above it"
        };
        Unreadable { why: format!("`{}` cannot be read: {error}", path.display()), hint: hint.to_owned() }
    };
    let (root, real) = (directory.canonicalize().map_err(failed)?, path.canonicalize().map_err(failed)?);
    if !real.starts_with(&root) {
        let hint = "nothing outside of it is read: put a copy into the directory";
        return not(path, "leads out of the policies directory", hint);
    }
    // A pipe in its place would wait for a writer for ever.
    let flags = i32::try_from((OFlags::NONBLOCK | OFlags::NOCTTY).bits()).unwrap_or(0);
    let file = OpenOptions::new().read(true).custom_flags(flags).open(&real).map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    if !meta.is_file() {
        return not(path, "is no file", "remove it, or give it a name that does not end so");
    }
    let bytes = whole(file, meta.len()).map_err(failed)?;
    if bytes.len() > FILE_BYTES_MAX {
        let what = format!("has {} bytes or more; {FILE_BYTES_MAX} is the most", bytes.len().max(size(meta.len())));
        return not(path, &what, "a policy has some kilobytes; is this another file?");
    }
    Ok(bytes)
}

/// Reads a calendar that a policy of the directory names.
///
/// # Errors
/// [`Unreadable`], also when it is no text.
pub(crate) fn calendar(directory: &Path, file: &Path) -> Result<String, Unreadable> {
    let path = directory.join(file);
    String::from_utf8(read(directory, &path)?).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
        Unreadable {
            why: format!("`{}`: from line {line} on it is not UTF-8", path.display()),
            hint: "export the calendar anew as iCalendar, which is UTF-8".to_owned(),
        }
    })
}

/// A calendar that was read, and cannot be used.
pub(crate) fn unusable(error: &CalendarError) -> Unreadable {
    Unreadable { why: chain(error), hint: "until it is mended, or not named any more, the team is spared".to_owned() }
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.why, self.hint)
    }
}

/// One byte more than allowed, to tell the limit from the end.
fn whole(file: File, expected: u64) -> io::Result<Vec<u8>> {
    let most = u64::try_from(FILE_BYTES_MAX).unwrap_or(u64::MAX).saturating_add(1);
    let mut bytes = Vec::with_capacity(size(expected.min(most)));
    file.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn refused(make: impl FnOnce(&Path, &Path)) -> Unreadable {
        let (inside, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let path = inside.path().join("p.toml");
        fs::write(outside.path().join("p.toml"), "team = \"x\"\n").unwrap();
        make(&path, outside.path());
        let refused = read(inside.path(), &path).unwrap_err();
        assert!(!refused.hint.is_empty() && refused.why.contains("p.toml"), "{refused:?}");
        refused
    }

    #[test]
    fn links_inside_of_the_directory_are_followed_and_others_are_not() {
        let inside = tempfile::tempdir().unwrap();
        // As Kubernetes mounts a map of files.
        fs::create_dir(inside.path().join("..data-1")).unwrap();
        fs::write(inside.path().join("..data-1/p.toml"), "x").unwrap();
        symlink("..data-1", inside.path().join("..data")).unwrap();
        symlink("..data/p.toml", inside.path().join("p.toml")).unwrap();
        assert_eq!(read(inside.path(), &inside.path().join("p.toml")).unwrap(), b"x");
        for (why, to) in [("leads out", "p.toml"), ("cannot be read", "gone")] {
            let refused = refused(|path, outside| symlink(outside.join(to), path).unwrap());
            assert!(refused.why.contains(why), "{refused:?}");
        }
        let folder = refused(|path, outside| {
            fs::create_dir(path.with_extension("d")).unwrap();
            symlink(outside, path.with_extension("d").join("l")).unwrap();
            symlink("p.d/l/p.toml", path).unwrap();
        });
        assert!(folder.why.contains("leads out"), "{folder:?}");
        let circle = refused(|path, _| symlink("p.toml", path).unwrap());
        assert!(circle.why.contains("cannot be read"), "{circle:?}");
    }

    #[test]
    fn what_is_no_file_is_refused_and_not_waited_for() {
        let folder = refused(|path, _| fs::create_dir(path).unwrap());
        assert!(folder.why.contains("is no file"), "{folder:?}");
        let pipe = refused(|path, _| nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap());
        assert!(pipe.why.contains("is no file"), "{pipe:?}");
    }

    #[test]
    fn the_largest_file_is_read_and_a_larger_one_is_not() {
        let inside = tempfile::tempdir().unwrap();
        let path = inside.path().join("p.toml");
        fs::write(&path, vec![b'#'; FILE_BYTES_MAX]).unwrap();
        assert_eq!(read(inside.path(), &path).unwrap().len(), FILE_BYTES_MAX);
        let large = refused(|path, _| File::create(path).unwrap().set_len(1 << 40).unwrap());
        assert!(large.why.contains("has 1099511627776 bytes or more; 1048576 is the most"), "{large:?}");
    }
}
