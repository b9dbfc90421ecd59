//! Images: what is taken as one, how its id comes about, and where it is kept.
//!
//! An image is a directory or tarball with a manifest at its root. Its identity is the SHA-256 of a normalised tar of
//! it, so that the same content is the same image whoever packed it and when. An import is staged in a folder of its
//! own and becomes an image by one rename; half an image is never seen.

#[cfg(any(feature = "fuzzing", test))]
pub(crate) mod fuzz;
mod stage;

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use troop_policies::ImageId;

use self::stage::{Kind, Limits, Stage};
use super::state::write_whole;
use crate::Image;

/// The manifest's name, at the image's root.
pub(crate) const MANIFEST: &str = "troop-image.toml";
/// Longest manifest read: a screenful is some hundred bytes.
const MANIFEST_MAX_BYTES: u64 = 64 << 10;
/// Hexadecimal digits of an image id, as at AWS.
const ID_DIGITS: usize = 17;
/// What the folder of an image holds beside [`ROOT`].
const FACTS: &str = "image.json";
/// The unpacked image.
const ROOT: &str = "root";
/// Names of staging folders begin so; no image's does.
const STAGED: &str = ".import-";
/// Longest name or version: both stand in tables, in tags (AWS ends them at 256) and in the environment.
const TEXT_MAX_CHARS: usize = 128;

/// Why something is no image, or could not be stored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    #[error("could not {what} `{path}`")]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{path}` has no `{MANIFEST}` at its root; write one with name, version, command, port and health_path")]
    NoManifest { path: PathBuf },
    #[error("`{MANIFEST}` of `{path}` cannot be read")]
    Manifest {
        path: PathBuf,
        #[source]
        source: Box<toml::de::Error>,
    },
    #[error("`{MANIFEST}` of `{path}`: `{key}` {why}")]
    BadValue { path: PathBuf, key: &'static str, why: &'static str },
    #[error("`{path}` is taken as no image: its entry `{entry}` {why}")]
    Entry { path: PathBuf, entry: String, why: &'static str },
    #[error("`{path}` is taken as no image: it holds more than {limit}")]
    TooLarge { path: PathBuf, limit: String },
    #[error("the stored image `{path}` cannot be read: {why}; remove that folder and import the image again")]
    Stored { path: PathBuf, why: String },
}

/// What the cloud process knows of an image: what it tells, and how to run it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Package {
    pub(crate) image: Image,
    pub(crate) command: Vec<String>,
    pub(crate) port: u16,
    pub(crate) health_path: String,
}

/// `troop-image.toml`.
#[derive(Debug, Deserialize)]
#[cfg_attr(any(feature = "fuzzing", test), derive(Serialize, PartialEq))]
#[serde(deny_unknown_fields)]
struct Manifest {
    name: String,
    version: String,
    command: Vec<String>,
    port: u16,
    health_path: String,
    #[serde(default)]
    registry: Registry,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(any(feature = "fuzzing", test), derive(Serialize))]
#[serde(rename_all = "snake_case")]
enum Registry {
    #[default]
    Required,
    Optional,
}

/// Where an image lies unpacked.
pub(crate) fn root_of(images: &Path, id: &ImageId) -> PathBuf {
    images.join(id.as_str()).join(ROOT)
}

/// Stores the directory or tarball at `path` (.tar or .tar.gz) below `images`. What is stored already is left as it is.
///
/// # Errors
/// [`ImageError`]; nothing is stored then.
pub(crate) fn import(images: &Path, path: &Path, now: Timestamp) -> Result<Package, ImageError> {
    import_within(images, path, now, Limits::default())
}

fn import_within(images: &Path, path: &Path, now: Timestamp, limits: Limits) -> Result<Package, ImageError> {
    let staged = Staged::new(images)?;
    let root = staged.0.join(ROOT);
    fs::create_dir(&root).map_err(io_error("make", &root))?;
    // Whatever the umask is: instances may run as another user.
    fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).map_err(io_error("make", &root))?;
    let stage = Stage::fill(&root, path, limits)?;
    let manifest = read_manifest(&root, path, &stage)?;
    let id = identity(&root, &stage)?;
    let home = images.join(id.as_str());
    if home.exists() {
        return load(&home);
    }
    let Manifest { name, version, command, port, health_path, registry } = manifest;
    let registry_required = registry == Registry::Required;
    let image = Image { id, name, version, created_at: now, registry_required };
    let package = Package { image, command, port, health_path };
    stage.make_read_only(&root)?;
    let text = serde_json::to_vec_pretty(&package).map_err(io::Error::from);
    let facts = staged.0.join(FACTS);
    text.and_then(|text| write_whole(&facts, &text)).map_err(io_error("write", &facts))?;
    // Once for all its files, before the rename makes it an image.
    let all = fs::File::open(&staged.0).map_err(io_error("open", &staged.0))?;
    rustix::fs::syncfs(&all).map_err(|e| io_error("sync", &staged.0)(e.into()))?;
    match fs::rename(&staged.0, &home) {
        Ok(()) => Ok(package),
        // Somebody else's import of the same content came first.
        Err(_) if home.exists() => load(&home),
        Err(e) => Err(io_error("name", &home)(e)),
    }
}

/// Removes what is left of imports that were cut off, and reads every stored image.
///
/// # Errors
/// [`ImageError`] when the folder or an image in it cannot be read.
pub(crate) fn load_all(images: &Path) -> Result<Vec<Package>, ImageError> {
    fs::create_dir_all(images).map_err(io_error("make", images))?;
    let mut homes = Vec::new();
    for entry in fs::read_dir(images).map_err(io_error("read", images))? {
        let entry = entry.map_err(io_error("read", images))?;
        if entry.file_name().to_string_lossy().starts_with(STAGED) {
            fs::remove_dir_all(entry.path()).map_err(io_error("remove", &entry.path()))?;
        } else {
            homes.push(entry.path());
        }
    }
    homes.sort();
    homes.iter().map(|home| load(home)).collect()
}

fn load(home: &Path) -> Result<Package, ImageError> {
    let bad = |why: String| ImageError::Stored { path: home.to_owned(), why };
    let text = fs::read(home.join(FACTS)).map_err(|e| bad(format!("{FACTS}: {e}")))?;
    let package: Package = serde_json::from_slice(&text).map_err(|e| bad(format!("{FACTS}: {e}")))?;
    if home.file_name().and_then(|name| name.to_str()) != Some(package.image.id.as_str()) {
        return Err(bad(format!("it calls itself `{}`", package.image.id)));
    }
    if !home.join(ROOT).is_dir() {
        return Err(bad(format!("its folder `{ROOT}` is missing")));
    }
    Ok(package)
}

fn read_manifest(root: &Path, path: &Path, stage: &Stage) -> Result<Manifest, ImageError> {
    let file = root.join(MANIFEST);
    // A link would be read through before it was checked where it leads.
    if !matches!(stage.entries.get(Path::new(MANIFEST)), Some(Kind::File { .. })) {
        return Err(ImageError::NoManifest { path: path.to_owned() });
    }
    let bad = |key, why| ImageError::BadValue { path: path.to_owned(), key, why };
    if fs::metadata(&file).map_err(io_error("read", &file))?.len() > MANIFEST_MAX_BYTES {
        return Err(bad("the whole", "is longer than 64 KiB"));
    }
    let text = fs::read_to_string(&file).map_err(io_error("read", &file))?;
    parse_manifest(&text, path)
}

/// Reads and checks a manifest. `path` is what is being imported, for errors.
fn parse_manifest(text: &str, path: &Path) -> Result<Manifest, ImageError> {
    let bad = |key, why| ImageError::BadValue { path: path.to_owned(), key, why };
    let manifest: Manifest = toml::from_str(text)
        .map_err(|source| ImageError::Manifest { path: path.to_owned(), source: Box::new(source) })?;
    for (key, value) in [("name", &manifest.name), ("version", &manifest.version)] {
        if value.is_empty() || value.len() > TEXT_MAX_CHARS {
            return Err(bad(key, "must have 1 to 128 characters"));
        }
        if !value.chars().all(|c| c.is_ascii_graphic() && c != '/') {
            return Err(bad(key, "may hold only visible ASCII characters other than `/`"));
        }
    }
    if manifest.command.first().is_none_or(String::is_empty) {
        return Err(bad("command", "must name a program, such as [\"./serve\", \"--port\", \"8080\"]"));
    }
    if manifest.command.iter().any(|word| word.contains('\0')) {
        return Err(bad("command", "holds a zero byte"));
    }
    if manifest.port == 0 {
        return Err(bad("port", "must be 1 to 65535"));
    }
    // As it is it becomes the target of a request. A fragment would be lost on the way.
    let path = manifest.health_path.as_str();
    let is_target = path.parse::<http::uri::PathAndQuery>().is_ok_and(|target| target.as_str() == path);
    if !path.starts_with('/') || !path.is_ascii() || !is_target {
        return Err(bad("health_path", "must be the path of a URL: `/` first, what is special in it as `%xx`, no `#`"));
    }
    Ok(manifest)
}

/// `ami-` and the first digits of the SHA-256 over a tar with sorted names, mtime 0, uid and gid 0, modes 0755 and 0644.
fn identity(root: &Path, stage: &Stage) -> Result<ImageId, ImageError> {
    let mut tar = tar::Builder::new(Hashing(Sha256::new()));
    for (name, kind) in &stage.entries {
        let file = root.join(name);
        append(&mut tar, &file, name, kind).map_err(io_error("read", &file))?;
    }
    let digest = tar.into_inner().map_err(io_error("hash", root))?.0.finalize();
    let id = format!("ami-{}", &hex::encode(digest)[..ID_DIGITS]);
    ImageId::new(id).map_err(|e| io_error("name", root)(io::Error::other(e)))
}

fn append(tar: &mut tar::Builder<Hashing>, file: &Path, name: &Path, kind: &Kind) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mode(if matches!(kind, Kind::File { executable: false }) { 0o644 } else { 0o755 });
    header.set_size(0);
    match kind {
        Kind::Folder => {
            header.set_entry_type(tar::EntryType::Directory);
            tar.append_data(&mut header, name, io::empty())
        }
        Kind::File { .. } => {
            let file = fs::File::open(file)?;
            header.set_size(file.metadata()?.len());
            header.set_entry_type(tar::EntryType::Regular);
            tar.append_data(&mut header, name, file)
        }
        Kind::Link { to } => {
            header.set_entry_type(tar::EntryType::Symlink);
            tar.append_link(&mut header, name, to)
        }
    }
}

struct Hashing(Sha256);

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A staging folder, gone when dropped (unless it was renamed to an image).
#[derive(Debug)]
struct Staged(PathBuf);

impl Staged {
    fn new(images: &Path) -> Result<Self, ImageError> {
        let mut name = [0; 8];
        rustix::rand::getrandom(&mut name, rustix::rand::GetRandomFlags::empty())
            .map_err(|e| io_error("name a folder in", images)(e.into()))?;
        let folder = images.join(format!("{STAGED}{}", hex::encode(name)));
        fs::create_dir(&folder).map_err(io_error("make", &folder))?;
        Ok(Self(folder))
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // Gone after the rename; what cannot be removed now is removed at the next start.
        drop(fs::remove_dir_all(&self.0));
    }
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ImageError {
    let path = path.to_owned();
    move |source| ImageError::Io { what, path, source }
}

#[cfg(test)]
mod tests;
