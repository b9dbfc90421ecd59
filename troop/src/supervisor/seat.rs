//! The state folder taken for one process, and the sockets on which it is asked.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;
use troop_cloud::local::client::SOCKET_PATH_MAX_BYTES;
use troop_cloud::local::sandbox::SandboxError;
use troop_policies::policy::Site;

use super::UpError;
use crate::state::StateDir;

/// What a control plane without a supervisor needs: STATE for itself alone, and where it is asked.
#[derive(Debug)]
pub struct Seat {
    pub control: UnixListener,
    /// For agents of other machines, where the site says so.
    pub agents: Option<TcpListener>,
    /// Held for as long as the process lives.
    pub taken: Taken,
}

/// The control socket, removed before STATE is given free.
#[derive(Debug)]
pub struct Taken {
    _announced: Announced,
    _lock: nix::fcntl::Flock<fs::File>,
}

impl Seat {
    /// Takes STATE and opens the sockets.
    ///
    /// # Errors
    /// [`UpError`]: another process has STATE, or a socket cannot be opened.
    pub fn take(state: &StateDir, site: &Site) -> Result<Self, UpError> {
        let path = state.control_socket();
        fits(&path)?;
        state.create()?;
        // Where the agents' secret is.
        let made = fs::create_dir_all(state.cloud());
        made.map_err(|source| UpError::Io { what: "make a folder of the state folder", source })?;
        let lock = take(state)?;
        let agents = site.agents.as_ref().map(|agents| listen_on(agents.address)).transpose()?;
        let io = |source| UpError::Io { what: "open the control socket", source };
        let control = listen(&path).map_err(io)?;
        Ok(Self { control, agents, taken: Taken { _announced: Announced(vec![path]), _lock: lock } })
    }
}

/// Files that say that somebody serves. A kill leaves them behind, and the next start replaces them.
#[derive(Debug)]
pub(super) struct Announced(pub(super) Vec<PathBuf>);

impl Drop for Announced {
    fn drop(&mut self) {
        for path in &self.0 {
            let _gone = fs::remove_file(path);
        }
    }
}

/// # Errors
/// [`SandboxError::PathTooLong`]: the kernel takes no socket of such a path.
pub(super) fn fits(path: &Path) -> Result<(), UpError> {
    let length = path.as_os_str().len();
    if length > SOCKET_PATH_MAX_BYTES {
        return Err(SandboxError::PathTooLong { path: path.to_owned(), length }.into());
    }
    Ok(())
}

/// Locks STATE for this supervisor. The kernel lets go when the process ends, however it ends.
pub(super) fn take(state: &StateDir) -> Result<nix::fcntl::Flock<fs::File>, UpError> {
    let path = state.lock_file();
    let io = |source| UpError::Io { what: "open the lock of the state folder", source };
    let file = fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(io)?;
    match nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock) {
        Ok(lock) => {
            fs::write(&path, std::process::id().to_string()).map_err(io)?;
            Ok(lock)
        }
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
            let pid = fs::read_to_string(&path).unwrap_or_default().trim().to_owned();
            Err(UpError::Taken { pid, state: state.path().to_path_buf() })
        }
        Err((_, errno)) => Err(io(errno.into())),
    }
}

/// Opens the control socket for its owner alone, in place of a stale one. The lock on STATE says that nobody listens.
pub(super) fn listen(path: &Path) -> io::Result<UnixListener> {
    // No longer than the last name, so that it fits where that one does.
    let unready = path.with_file_name("control.new");
    match fs::remove_file(&unready) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(&unready)?;
    fs::set_permissions(&unready, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    fs::rename(&unready, path)?;
    Ok(listener)
}

pub(super) fn listen_on(address: SocketAddr) -> Result<TcpListener, UpError> {
    TcpListener::bind(address).map_err(|source| UpError::Listen { address, source })
}
