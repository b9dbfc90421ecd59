//! What the sandbox and its instances see of files.
//!
//! The sandbox sees the host's files as they are, since its roles work on STATE and read policies, and one more mount:
//! a tmpfs on STATE/run/sandbox, the *scene*. It holds this executable (so a rebuilt or deleted one harms no running
//! sandbox) and, under `root`, the tree that every instance gets as its `/`: the host's files read-only, STATE hidden.
//! It is made once; an instance adds four small mounts to its own copy and moves in.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::steps::{Step as _, StepFailed, own_exe};

/// Where an instance finds its image; also its working directory.
pub(crate) const IMAGE: &str = "/image";
/// The folder on an instance's PATH that holds this executable as `troop`.
pub(crate) const TROOP_BIN: &str = "/troop/bin";
/// The writable folder of an instance.
pub(crate) const TMP: &str = "/tmp";
/// An instance's /tmp, /run and /dev/shm each: enough for a small service, too little to press the machine's memory.
const SCRATCH: &str = "mode=1777,size=64m";
/// Entries of the host's `/` that an instance gets anew, or that are Troop's own.
const OWN_ENTRIES: [&str; 6] = ["proc", "tmp", "run", "dev", "image", "troop"];
/// Devices every program expects; none gives access to the machine.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// The scene's folder.
pub(crate) fn scene(state_dir: &Path) -> PathBuf {
    state_dir.join("run").join("sandbox")
}

/// The root that instances start from.
pub(crate) fn instance_root(state_dir: &Path) -> PathBuf {
    scene(state_dir).join("root")
}

/// This executable, at a path that lasts as long as the sandbox.
pub(crate) fn kept_exe(state_dir: &Path) -> PathBuf {
    scene(state_dir).join("bin").join("troop")
}

/// Cuts this mount namespace off from the host's: from now on no mount is seen outside, nor any of outside here.
pub(crate) fn cut_off() -> Result<(), StepFailed> {
    plain(Path::new("/"), MsFlags::MS_REC | MsFlags::MS_PRIVATE).step("mount / as private")
}

/// A /proc of the pid namespace this process is in.
pub(crate) fn fresh_proc(at: &Path) -> Result<(), StepFailed> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), at, Some("proc"), flags, None::<&str>).step("mount a fresh /proc")
}

/// An empty, writable folder over an existing one.
pub(crate) fn scratch(at: &Path) -> Result<(), StepFailed> {
    tmpfs(at, "mode=1777").step("mount a tmpfs")
}

/// Makes the scene. Everything in it ends with this mount namespace.
pub(crate) fn make_scene(state_dir: &Path) -> Result<(), StepFailed> {
    let dir = scene(state_dir);
    fs::create_dir_all(&dir).step("make STATE/run/sandbox")?;
    tmpfs(&dir, "mode=0755").step("mount a tmpfs on STATE/run/sandbox")?;
    // A recursive bind of the folder above must not copy the scene into itself.
    plain(&dir, MsFlags::MS_UNBINDABLE).step("mount the scene as unbindable")?;
    // On a mount of its own: instances are shown it by a bind, which the scene itself refuses.
    let bin = dir.join("bin");
    fs::create_dir(&bin).step("keep the executable")?;
    tmpfs(&bin, "mode=0755").step("mount a tmpfs for the executable")?;
    keep_exe(&kept_exe(state_dir)).step("keep the executable")?;
    let root = instance_root(state_dir);
    fs::create_dir(&root).step("make the instances' root")?;
    tmpfs(&root, "mode=0755").step("mount the instances' root")?;
    show_host(&root)?;
    make_devices(&root.join("dev")).step("make the instances' /dev")?;
    for entry in ["proc", "tmp", "run", "image", "troop"] {
        fs::create_dir(root.join(entry)).step("make the instances' root")?;
    }
    let troop = root.join(&TROOP_BIN[1..]).join("troop");
    place(&kept_exe(state_dir), &troop).step("show the executable to instances")?;
    hide(&root, state_dir)?;
    seal(&root)
}

/// Moves this process, alone in a new mount and pid namespace, into an instance's root with the image at [`IMAGE`].
pub(crate) fn move_in(root: &Path, image: &Path) -> Result<(), StepFailed> {
    let shown = root.join(&IMAGE[1..]);
    bind(image, &shown).step("mount the image")?;
    read_only(&shown, kept_flags(&mount_points().step("read mountinfo")?, &shown)).step("mount the image read-only")?;
    for scratch in ["tmp", "run", "dev/shm"] {
        tmpfs(&root.join(scratch), SCRATCH).step("mount an instance's scratch space")?;
    }
    fresh_proc(&root.join("proc"))?;
    std::env::set_current_dir(root).step("chdir(the instance's root)")?;
    match nix::unistd::pivot_root(".", ".") {
        // The old root now lies over the new one.
        Ok(()) => umount2(".", MntFlags::MNT_DETACH).step("unmount the old root")?,
        // The kernel pivots no initial ramdisk. Moving over it hides it as well, as `switch_root` does.
        Err(Errno::EINVAL) => {
            mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).step("move the instance's root")?;
            nix::unistd::chroot(".").step("chroot(the instance's root)")?;
        }
        Err(errno) => return Err(errno).step("pivot_root"),
    }
    std::env::set_current_dir("/").step("chdir(/)")
}

/// The executable at a path that neither a rebuild nor `rm` touches. Instances may run as another user, so one that
/// only its owner may read is copied.
fn keep_exe(to: &Path) -> io::Result<()> {
    let exe = own_exe();
    if open_to_all(&exe)? && exe != Path::new("/proc/self/exe") && place(&exe, to).is_ok() {
        return Ok(());
    }
    fs::copy("/proc/self/exe", to)?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o755))
}

/// Shows the host's folders below `root`, with everything mounted on them.
fn show_host(root: &Path) -> Result<(), StepFailed> {
    let mut entries = Vec::new();
    for entry in fs::read_dir("/").step("read /")? {
        entries.push(entry.step("read /")?.path());
    }
    entries.sort();
    for from in entries {
        let Some(name) = from.file_name().filter(|name| !OWN_ENTRIES.iter().any(|own| *own == *name)) else { continue };
        // What cannot be shown (a folder of another user's, a mount of a server that is gone) is left out: a command
        // that needs it says so, one that does not should run.
        if let Err(error) = show(&from, &root.join(name)) {
            tracing::warn!(path = %from.display(), %error, "instances will not see this");
        }
    }
    Ok(())
}

fn show(from: &Path, to: &Path) -> io::Result<()> {
    let kind = fs::symlink_metadata(from)?.file_type();
    if kind.is_symlink() {
        symlink(fs::read_link(from)?, to)
    } else if kind.is_dir() {
        fs::create_dir(to)?;
        Ok(bind(from, to)?)
    } else if kind.is_file() {
        place(from, to)
    } else {
        Ok(())
    }
}

fn make_devices(dev: &Path) -> io::Result<()> {
    fs::create_dir(dev)?;
    for name in DEVICES {
        let host = Path::new("/dev").join(name);
        if host.exists() {
            place(&host, &dev.join(name))?;
        }
    }
    for (name, target) in [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")] {
        symlink(target, dev.join(name))?;
    }
    fs::create_dir(dev.join("shm"))
}

/// Lays an empty folder over STATE, wherever it lies in the instances' root.
fn hide(root: &Path, state_dir: &Path) -> Result<(), StepFailed> {
    let Ok(below) = state_dir.strip_prefix("/") else { return Ok(()) };
    let shown = root.join(below);
    // Below /tmp or /run it is not shown to begin with.
    if !shown.is_dir() {
        return Ok(());
    }
    tmpfs(&shown, "mode=0555,size=4k").step("hide STATE from instances")
}

/// Makes every mount below `root`, and `root` itself, read-only. What cannot be made so is covered up.
fn seal(root: &Path) -> Result<(), StepFailed> {
    let points = mount_points().step("read mountinfo")?;
    for (point, _) in points.iter().filter(|(point, _)| point.starts_with(root)) {
        match read_only(point, kept_flags(&points, point)) {
            // Out of our reach or under another mount, hence out of an instance's reach too.
            Ok(()) | Err(Errno::EACCES | Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(errno) if point == root => return Err(errno).step("mount the instances' root read-only"),
            Err(_) => tmpfs(point, "mode=0555,size=4k").step("cover a mount that cannot be read-only")?,
        }
    }
    Ok(())
}

fn tmpfs(at: &Path, options: &str) -> Result<(), Errno> {
    mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some(options))
}

fn bind(from: &Path, to: &Path) -> Result<(), Errno> {
    // Recursively: a less privileged mount namespace may not show what other mounts cover.
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
}

fn plain(at: &Path, flags: MsFlags) -> Result<(), Errno> {
    mount(None::<&str>, at, None::<&str>, flags, None::<&str>)
}

fn read_only(at: &Path, kept: MsFlags) -> Result<(), Errno> {
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID;
    plain(at, flags | kept)
}

/// Binds a file onto an empty one.
fn place(from: &Path, to: &Path) -> io::Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(to, [])?;
    Ok(bind(from, to)?)
}

/// Flags that a remount has to repeat: leaving one out that the host had set is refused.
fn kept_flags(points: &[(PathBuf, MsFlags)], at: &Path) -> MsFlags {
    // The last one mounted is the one on top.
    points.iter().rev().find(|(point, _)| point == at).map_or(MsFlags::empty(), |(_, flags)| *flags)
}

/// Mount points of this namespace, in the order they were mounted (proc_pid_mountinfo(5)).
fn mount_points() -> io::Result<Vec<(PathBuf, MsFlags)>> {
    let text = fs::read("/proc/self/mountinfo")?;
    Ok(text.split(|b| *b == b'\n').filter_map(mount_point).collect())
}

fn mount_point(line: &[u8]) -> Option<(PathBuf, MsFlags)> {
    let mut fields = line.split(|b| *b == b' ');
    let point = unescape(fields.nth(4)?);
    let mut flags = MsFlags::empty();
    for option in fields.next()?.split(|b| *b == b',') {
        flags |= match option {
            b"nosuid" => MsFlags::MS_NOSUID,
            b"nodev" => MsFlags::MS_NODEV,
            b"noexec" => MsFlags::MS_NOEXEC,
            b"noatime" => MsFlags::MS_NOATIME,
            b"nodiratime" => MsFlags::MS_NODIRATIME,
            b"relatime" => MsFlags::MS_RELATIME,
            _ => MsFlags::empty(),
        };
    }
    Some((point, flags))
}

/// Spaces, tabs, newlines and backslashes are written as `\ooo`.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = rest
            .get(1..4)
            .filter(|_| *first == b'\\')
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match octal {
            Some(byte) => {
                bytes.push(byte);
                rest = &rest[4..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

/// Whether users other than the owner may use what lies at `path`.
pub(crate) fn open_to_all(path: &Path) -> io::Result<bool> {
    Ok(fs::metadata(path)?.permissions().mode() & 0o005 == 0o005)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_keeps_the_flags_that_a_remount_must_repeat() {
        let line = b"36 35 98:0 /mnt1 /mnt\\040two rw,nosuid,noexec,relatime shared:1 - ext3 /dev/root rw";
        let (point, flags) = mount_point(line).unwrap();
        assert_eq!(point, Path::new("/mnt two"));
        assert_eq!(flags, MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_RELATIME);
    }

    #[test]
    fn a_backslash_that_begins_no_number_is_itself() {
        assert_eq!(unescape(b"/a\\134b\\x"), Path::new("/a\\b\\x"));
        assert_eq!(unescape(b"/a\\0"), Path::new("/a\\0"));
    }

    #[test]
    fn of_two_mounts_on_one_point_the_later_counts() {
        let at = PathBuf::from("/x");
        let points = [(at.clone(), MsFlags::MS_NOEXEC), (at.clone(), MsFlags::MS_NODEV)];
        assert_eq!(kept_flags(&points, &at), MsFlags::MS_NODEV);
    }
}
