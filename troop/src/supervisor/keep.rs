//! Keeps one role running: starts it in the sandbox, and again whenever it ends, until it is to stop.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use troop_cloud::local::sandbox::{Sandbox, SandboxError};

use super::roles::{AGENTS, CONNECTIONS, LISTENER};
use crate::world::chain;

/// A role that dies is started again after this, then after twice as long each time, up to [`RESTART_MAX`].
const RESTART_MIN: Duration = Duration::from_millis(100);
const RESTART_MAX: Duration = Duration::from_secs(5);
/// A role that ran this long has earned a quick restart.
const RAN_WELL: Duration = Duration::from_secs(30);
/// A log is begun anew beyond this size, as the cloud process's is.
const LOG_MAX_BYTES: u64 = 8 << 20;
/// How often the logs of running roles are looked at.
const LOGS_EVERY: Duration = Duration::from_secs(60);

/// Where the control plane that runs now gets accepted connections from.
pub(super) type ToServe = watch::Sender<Option<Arc<OwnedFd>>>;

/// What a role is handed beside its arguments.
#[derive(Debug)]
pub(super) enum Handed {
    Nothing,
    /// The listener that all workers of the balancer share.
    Listener(Arc<TcpListener>),
    /// A new pair at each start, whose other end the acceptor of the control socket is told; and the listener for agents of other
    /// machines, where there is one.
    Connections(ToServe, Option<TcpListener>),
}

/// One of the processes in the sandbox.
#[derive(Debug)]
pub(super) struct Role {
    /// For logs, and of STATE/logs/NAME.log.
    pub(super) name: String,
    /// `role`, the role's name, and its flags.
    pub(super) args: Vec<OsString>,
    pub(super) handed: Handed,
    /// What it gets to end after SIGTERM, before SIGKILL.
    pub(super) ends_within: Duration,
}

/// Runs the role until `stop`, then ends it and returns when it is gone.
pub(super) async fn keep(role: Role, sandbox: Arc<Mutex<Sandbox>>, logs: Arc<Path>, stop: CancellationToken) {
    let mut pause = RESTART_MIN;
    loop {
        let began = Instant::now();
        let why = match start(&role, &sandbox, &logs) {
            Ok((mut child, line)) => {
                let ended = tokio::select! {
                    status = child.wait() => status,
                    () = stop.cancelled() => return end(&role, &mut child).await,
                };
                // The role sees the end of the line, should it have outlived its helper.
                drop(line);
                ended
                    .map_or_else(|e| format!("it could not be waited for: {e}"), |status| format!("it ended: {status}"))
            }
            Err(error) => chain(&error),
        };
        if let Handed::Connections(to_serve, _) = &role.handed {
            to_serve.send_replace(None);
        }
        if began.elapsed() > RAN_WELL {
            pause = RESTART_MIN;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        // Only now: when the whole sandbox ended, the roles' ends are not what a person must hear of.
        let log = logs.join(format!("{}.log", role.name));
        tracing::warn!(role = role.name, why, log = %log.display(), "a role is started again");
        pause = (pause * 2).min(RESTART_MAX);
    }
}

#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error("could not open its log, or start its helper")]
    Io(#[from] io::Error),
}

fn start(role: &Role, sandbox: &Mutex<Sandbox>, logs: &Path) -> Result<(Child, UnixStream), StartError> {
    let mut fds: Vec<(&str, BorrowedFd<'_>)> = Vec::new();
    let theirs;
    match &role.handed {
        Handed::Nothing => {}
        Handed::Listener(listener) => fds.push((LISTENER, listener.as_fd())),
        Handed::Connections(to_serve, agents) => {
            fds.extend(agents.iter().map(|listener| (AGENTS, listener.as_fd())));
            let (ours, other) = UnixStream::pair()?;
            theirs = other;
            fds.push((CONNECTIONS, theirs.as_fd()));
            to_serve.send_replace(Some(Arc::new(ours.into())));
        }
    }
    let entered = sandbox.lock().unwrap_or_else(PoisonError::into_inner).enter(&role.args, &fds)?;
    let log = open_log(logs, &role.name)?;
    let mut command = Command::from(entered.command);
    command.stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
    Ok((command.spawn()?, entered.line))
}

/// STATE/logs/NAME.log, from its beginning where it has grown too long.
fn open_log(folder: &Path, name: &str) -> io::Result<File> {
    fs::create_dir_all(folder)?;
    let log = OpenOptions::new().create(true).append(true).open(folder.join(format!("{name}.log")))?;
    cut(&log)?;
    Ok(log)
}

fn cut(log: &File) -> io::Result<()> {
    if log.metadata()?.len() > LOG_MAX_BYTES { log.set_len(0) } else { Ok(()) }
}

/// Begins every log anew that has grown too long, for ever. Whoever writes appends, so it goes on at the new end.
pub(super) async fn cut_logs(folder: Arc<Path>) {
    let mut every = tokio::time::interval(LOGS_EVERY);
    loop {
        every.tick().await;
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let log = OpenOptions::new().append(true).open(entry.path());
            if let Err(error) = log.and_then(|log| cut(&log)) {
                tracing::debug!(path = %entry.path().display(), %error, "a log could not be looked at");
            }
        }
    }
}

/// SIGTERM, which the helper passes on to the role; after its time SIGKILL, by which the role dies with its helper.
async fn end(role: &Role, child: &mut Child) {
    // Not waited for yet, so the number is still the child's.
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        let _gone = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
    }
    match tokio::time::timeout(role.ends_within, child.wait()).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::error!(role = role.name, %error, "a role could not be waited for"),
        Err(_) => {
            tracing::warn!(role = role.name, "a role did not end in time and is killed");
            if let Err(error) = child.kill().await {
                tracing::error!(role = role.name, %error, "a role could not be killed");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_begun_anew_beyond_its_size_and_else_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("serve.log");
        fs::write(&path, "kept").unwrap();
        drop(open_log(folder.path(), "serve").unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"kept");
        File::create(&path).unwrap().set_len(LOG_MAX_BYTES + 1).unwrap();
        drop(open_log(folder.path(), "serve").unwrap());
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    }
}
