//! Copying a directory or tarball into a staging folder, normalised, and refusing what an image may not hold.
//!
//! Links are written last and nothing is ever written through one, so an entry cannot leave the folder by a link that
//! came before it.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Seek as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use flate2::read::MultiGzDecoder;

use super::{ImageError, io_error};

/// Most content taken. Images here are small services; a root file system by mistake should be an error soon.
const CONTENT_BYTES_MAX: u64 = 1 << 30;
/// Most entries taken, for the same reason.
const ENTRIES_MAX: usize = 100_000;
/// Most bytes of a tarball between the contents of two files: headers, and names that did not fit there, which are held in
/// memory. Paths end at 4 KiB.
pub(super) const HEADERS_BYTES_MAX: u64 = 64 << 10;
/// Links followed one after the other, as the kernel's own limit (path_resolution(7)).
const LINKS_MAX: usize = 40;

/// What an entry is. Modes are reduced to whether a file may be executed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Folder,
    File { executable: bool },
    Link { to: PathBuf },
}

/// What an import may cost.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) content_bytes: u64,
    pub(super) entries: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { content_bytes: CONTENT_BYTES_MAX, entries: ENTRIES_MAX }
    }
}

/// What was staged: every entry by its path from the root, the root itself excepted.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) entries: BTreeMap<PathBuf, Kind>,
    bytes: u64,
    limits: Limits,
    /// What is being imported, for errors.
    path: PathBuf,
}

impl Stage {
    /// Copies the directory or tarball at `path` into the empty folder `root`.
    pub(super) fn fill(root: &Path, path: &Path, limits: Limits) -> Result<Self, ImageError> {
        let mut stage = Self { entries: BTreeMap::new(), bytes: 0, limits, path: path.to_owned() };
        let meta = fs::metadata(path).map_err(io_error("read", path))?;
        if meta.is_dir() {
            stage.take_folder(root, path, Path::new(""))?;
        } else if meta.is_file() {
            stage.take_tarball(root, path)?;
        } else {
            return Err(ImageError::Entry {
                path: path.to_owned(),
                entry: ".".to_owned(),
                why: "is neither a directory nor a tarball",
            });
        }
        stage.write_links(root)?;
        Ok(stage)
    }

    /// Takes write permission from every file. Folders keep theirs, so that their owner can remove them.
    pub(super) fn make_read_only(&self, root: &Path) -> Result<(), ImageError> {
        for (name, kind) in &self.entries {
            if let Kind::File { executable } = kind {
                let file = root.join(name);
                let mode = if *executable { 0o555 } else { 0o444 };
                fs::set_permissions(&file, fs::Permissions::from_mode(mode)).map_err(io_error("protect", &file))?;
            }
        }
        Ok(())
    }

    fn take_folder(&mut self, root: &Path, from: &Path, name: &Path) -> Result<(), ImageError> {
        for entry in fs::read_dir(from).map_err(io_error("read", from))? {
            let entry = entry.map_err(io_error("read", from))?;
            let (path, name) = (entry.path(), name.join(entry.file_name()));
            let meta = fs::symlink_metadata(&path).map_err(io_error("read", &path))?;
            if meta.is_dir() {
                self.folder(root, &name)?;
                self.take_folder(root, &path, &name)?;
            } else if meta.is_symlink() {
                self.link(&name, fs::read_link(&path).map_err(io_error("read", &path))?)?;
            } else if meta.is_file() {
                // Should it have become a link or a pipe meanwhile, this is an error and no wait.
                let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
                let flags = i32::try_from(flags.bits()).unwrap_or(0);
                let file = OpenOptions::new().read(true).custom_flags(flags).open(&path);
                self.file(root, &name, meta.permissions().mode(), file.map_err(io_error("read", &path))?)?;
            } else {
                return Err(self.refuse(&name, "is a device, pipe or socket"));
            }
        }
        Ok(())
    }

    fn take_tarball(&mut self, root: &Path, path: &Path) -> Result<(), ImageError> {
        let mut file = File::open(path).map_err(io_error("open", path))?;
        let mut magic = Vec::new();
        (&file).take(2).read_to_end(&mut magic).map_err(io_error("read", path))?;
        file.rewind().map_err(io_error("read", path))?;
        let file = BufReader::new(file);
        // By content, not by name: `.tgz`, `.tar.gz` and none at all are all in use.
        let tar: Box<dyn Read> =
            if magic == [0x1f, 0x8b] { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
        let left = Rc::new(Cell::new(0));
        let mut archive = tar::Archive::new(Bounded { tar, left: Rc::clone(&left) });
        let mut entries = archive.entries().map_err(io_error("read", path))?;
        loop {
            left.set(HEADERS_BYTES_MAX);
            let Some(entry) = entries.next() else { return Ok(()) };
            let entry = entry.map_err(|e| self.reading(e))?;
            // One more than allowed, to tell the limit from the end.
            left.set(self.limits.content_bytes - self.bytes + 1);
            self.take_entry(root, entry)?;
        }
    }

    fn take_entry<R: Read>(&mut self, root: &Path, entry: tar::Entry<'_, R>) -> Result<(), ImageError> {
        use tar::EntryType;
        let raw = entry.path().map_err(|e| self.reading(e))?.into_owned();
        let target = |entry: &tar::Entry<'_, R>| entry.link_name().ok().flatten().map(std::borrow::Cow::into_owned);
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            return Ok(());
        }
        let name = self.inside(&raw)?;
        if name.as_os_str().is_empty() {
            // The root itself, `./`.
            return if kind == EntryType::Directory { Ok(()) } else { Err(self.refuse(&raw, "stands for the root")) };
        }
        #[expect(clippy::wildcard_enum_match_arm, reason = "a library's enum; whatever else a tar may hold is refused")]
        match kind {
            EntryType::Directory => self.folder(root, &name),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let mode = entry.header().mode().map_err(|e| self.reading(e))?;
                self.file(root, &name, mode, entry)
            }
            EntryType::Symlink => {
                let to = target(&entry).ok_or_else(|| self.refuse(&name, "is a link to nothing"))?;
                self.link(&name, to)
            }
            // Packers write the second name of a file so. In an image both are files.
            EntryType::Link => {
                let to = target(&entry).ok_or_else(|| self.refuse(&name, "is a link to nothing"))?;
                let to = self.inside(&to)?;
                let Some(Kind::File { executable }) = self.entries.get(&to).cloned() else {
                    return Err(self.refuse(&name, "is a hard link to no file before it"));
                };
                let from = root.join(&to);
                let mode = if executable { 0o755 } else { 0o644 };
                self.file(root, &name, mode, File::open(&from).map_err(io_error("read", &from))?)
            }
            _ => Err(self.refuse(&name, "is a device, pipe or another kind that images do not hold")),
        }
    }

    /// The path from the root, or a refusal of one that is absolute or has `..` in it.
    fn inside(&self, raw: &Path) -> Result<PathBuf, ImageError> {
        let mut name = PathBuf::new();
        for part in raw.components() {
            match part {
                Component::Normal(part) => name.push(part),
                Component::CurDir => {}
                Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                    return Err(self.refuse(raw, "leads outside of the image"));
                }
            }
        }
        Ok(name)
    }

    /// Notes an entry, and the folders above it, which a tarball may leave out.
    fn note(&mut self, root: &Path, name: &Path, kind: Kind) -> Result<(), ImageError> {
        if let Some(above) = name.parent().filter(|above| !above.as_os_str().is_empty())
            && self.entries.get(above) != Some(&Kind::Folder)
        {
            self.folder(root, above)?;
        }
        if self.entries.len() >= self.limits.entries {
            return Err(self.too_large(format!("{} entries", self.limits.entries)));
        }
        if self.entries.insert(name.to_owned(), kind).is_some() {
            return Err(self.refuse(name, "is there twice, or lies below a file or link"));
        }
        Ok(())
    }

    fn folder(&mut self, root: &Path, name: &Path) -> Result<(), ImageError> {
        if self.entries.get(name) == Some(&Kind::Folder) {
            return Ok(());
        }
        self.note(root, name, Kind::Folder)?;
        let folder = root.join(name);
        fs::create_dir(&folder).map_err(io_error("make", &folder))?;
        // Whatever the umask is: instances may run as another user.
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).map_err(io_error("make", &folder))
    }

    fn file(&mut self, root: &Path, name: &Path, mode: u32, from: impl Read) -> Result<(), ImageError> {
        let executable = mode & 0o100 != 0;
        self.note(root, name, Kind::File { executable })?;
        let path = root.join(name);
        let mut file = OpenOptions::new().write(true).create_new(true).open(&path).map_err(io_error("write", &path))?;
        let left = self.limits.content_bytes - self.bytes;
        // One more than allowed, to tell the limit from the end.
        let copied = io::copy(&mut from.take(left + 1), &mut file).map_err(|e| self.reading(e))?;
        if copied > left {
            return Err(self.too_large(format!("{} MiB", self.limits.content_bytes >> 20)));
        }
        self.bytes += copied;
        Ok(())
    }

    fn link(&mut self, name: &Path, to: PathBuf) -> Result<(), ImageError> {
        if to.as_os_str().is_empty() || to.is_absolute() {
            return Err(self.refuse(name, "is a link to an absolute path or to nothing"));
        }
        // Its folder is made when it is written, if nothing else makes it.
        if self.entries.len() >= self.limits.entries {
            return Err(self.too_large(format!("{} entries", self.limits.entries)));
        }
        if self.entries.insert(name.to_owned(), Kind::Link { to }).is_some() {
            return Err(self.refuse(name, "is there twice"));
        }
        Ok(())
    }

    fn write_links(&mut self, root: &Path) -> Result<(), ImageError> {
        let links: Vec<(PathBuf, PathBuf)> = self
            .entries
            .iter()
            .filter_map(
                |(name, kind)| if let Kind::Link { to } = kind { Some((name.clone(), to.clone())) } else { None },
            )
            .collect();
        for (name, to) in links {
            if !self.stays_inside(&name, &to) {
                return Err(self.refuse(&name, "is a link that leads outside of the image, or in a circle"));
            }
            if let Some(above) = name.parent().filter(|above| !above.as_os_str().is_empty()) {
                for part in above.ancestors().collect::<Vec<_>>().into_iter().rev().skip(1) {
                    self.folder(root, part)?;
                }
            }
            let path = root.join(&name);
            symlink(&to, &path).map_err(io_error("write", &path))?;
        }
        Ok(())
    }

    /// Follows a link through all others as the kernel would. What is missing at the end does no harm.
    fn stays_inside(&self, name: &Path, to: &Path) -> bool {
        let mut at: PathBuf = name.parent().unwrap_or(Path::new("")).to_owned();
        let mut rest: Vec<PathBuf> = parts_reversed(to);
        let mut followed = 0;
        while let Some(part) = rest.pop() {
            if part == Path::new("..") {
                if !at.pop() {
                    return false;
                }
                continue;
            }
            let next = at.join(&part);
            if let Some(Kind::Link { to }) = self.entries.get(&next) {
                followed += 1;
                if followed > LINKS_MAX || to.is_absolute() {
                    return false;
                }
                rest.extend(parts_reversed(to));
            } else {
                at = next;
            }
        }
        true
    }

    fn refuse(&self, entry: &Path, why: &'static str) -> ImageError {
        ImageError::Entry { path: self.path.clone(), entry: entry.display().to_string(), why }
    }

    fn too_large(&self, limit: String) -> ImageError {
        ImageError::TooLarge { path: self.path.clone(), limit }
    }

    fn reading(&self, error: io::Error) -> ImageError {
        if error.kind() == io::ErrorKind::FileTooLarge {
            return self.too_large(format!("{} KiB of headers for one entry", HEADERS_BYTES_MAX >> 10));
        }
        io_error("copy", &self.path)(error)
    }
}

fn parts_reversed(path: &Path) -> Vec<PathBuf> {
    let keep = |part: &Component<'_>| !matches!(part, Component::CurDir);
    path.components().filter(keep).map(|part| PathBuf::from(part.as_os_str())).rev().collect()
}

/// A reader that errs beyond a limit, where `take` would only end.
struct Bounded {
    tar: Box<dyn Read>,
    left: Rc<Cell<u64>>,
}

impl Read for Bounded {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.tar.read(into)?;
        let left = self.left.get().checked_sub(u64::try_from(read).unwrap_or(u64::MAX));
        self.left.set(left.ok_or_else(|| io::Error::from(io::ErrorKind::FileTooLarge))?);
        Ok(read)
    }
}
