//! What every command starts from: the state folder, the control plane's socket, the ledger.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use troop_ledger::{Ledger, LedgerError};
use troop_policies::policy::Site;

use crate::api::peer;
use crate::client::{Client, ClientError};
use crate::exit::{CliError, Code};
use crate::state::StateDir;

/// See the module.
#[derive(Debug)]
pub(super) struct Context {
    state_flag: Option<PathBuf>,
}

impl Context {
    pub(super) fn new(state_flag: Option<PathBuf>) -> Self {
        Self { state_flag }
    }

    pub(super) fn state_flag(&self) -> Option<&PathBuf> {
        self.state_flag.as_ref()
    }

    /// The state folder, which need not exist, but must not be closed to us.
    pub(super) fn state(&self) -> Result<StateDir, CliError> {
        let state = StateDir::find(self.state_flag.as_deref(), env)?;
        is_open_to_us(&state)?;
        Ok(state)
    }

    /// The state folder of a site: its file's, where it names one and no flag does.
    pub(super) fn state_of(&self, site: &Site) -> Result<StateDir, CliError> {
        match (&self.state_flag, &site.state) {
            (None, Some(path)) => Self::new(Some(path.clone())).state(),
            (Some(_), _) | (None, None) => self.state(),
        }
    }
}

/// A variable of the environment, where it is set and is text.
pub(super) fn env(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Without this a folder of another user would look like one in which nothing runs.
fn is_open_to_us(state: &StateDir) -> Result<(), CliError> {
    let path = state.path();
    match std::fs::read_dir(path) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            let owner = std::fs::symlink_metadata(path).ok().map(|m| peer::user_name(m.uid()));
            let whose = owner.map_or_else(|| "may not be entered".to_owned(), |owner| format!("belongs to {owner}"));
            Err(CliError::new(Code::Unavailable, format!("the state folder `{}` {whose}", path.display()))
                .hint("run this as that user, or name your own folder with `--state DIR`"))
        }
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => {
            Err(CliError::new(Code::Input, format!("the state folder `{}` is a file", path.display()))
                .hint("name a folder with `--state DIR`"))
        }
        // A folder that is not there yet is the command's own business.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Whether there is a state folder at all.
pub(super) fn exists(state: &StateDir) -> bool {
    !matches!(std::fs::symlink_metadata(state.path()), Err(e) if e.kind() == io::ErrorKind::NotFound)
}

/// The ledger, for reading. `None` where there is none: nothing was ever done here.
pub(super) async fn ledger(state: &StateDir) -> Result<Option<Ledger>, LedgerError> {
    match Ledger::open_read_only(&state.ledger()).await {
        Ok(ledger) => Ok(Some(ledger)),
        Err(LedgerError::Missing { .. }) => Ok(None),
        Err(e) => Err(e),
    }
}

/// The ledger, where there must be one to answer from.
pub(super) async fn ledger_that_is_there(state: &StateDir) -> Result<Ledger, CliError> {
    ledger(state).await?.ok_or_else(|| nothing_was_done(state))
}

/// No control plane, and none that ever ran here.
pub(super) fn nothing_was_done(state: &StateDir) -> CliError {
    let what = format!("there is no ledger in `{}`: no control plane has ever run there", state.path().display());
    CliError::new(Code::Unavailable, what).hint("start one with `troop up`, or name its folder with `--state DIR`")
}

/// `None` while the control plane certainly does not run; every other trouble stays one.
pub(super) fn if_running<T>(answer: Result<T, ClientError>) -> Result<Option<T>, CliError> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(e) if e.is_not_running() => Ok(None),
        Err(e) => Err(e.into()),
    }
}

pub(super) fn client(state: &StateDir) -> Client {
    Client::new(state)
}

/// Runs a command on one thread: it waits for one thing at a time.
pub(super) fn block_on<T>(command: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    runtime()?.block_on(command)
}

/// The runtime of [`block_on`].
pub(super) fn runtime() -> Result<tokio::runtime::Runtime, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|e| CliError::new(Code::Unavailable, format!("this machine lets no command run: {e}")))
}

/// What only a build with AWS can do.
pub(super) fn no_aws() -> CliError {
    CliError::new(Code::Unavailable, "this build has no AWS")
        .hint("build it with `cargo build --release --features aws`")
}

/// Our own name, for records that are written without a control plane.
pub(super) fn own_name() -> String {
    peer::user_name(nix::unistd::getuid().as_raw())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_no_state_folder_and_an_absent_one_is_fine() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let error = Context::new(Some(file)).state().unwrap_err();
        assert_eq!(error.code, Code::Input);
        let state = Context::new(Some(dir.path().join("none"))).state().unwrap();
        assert!(!exists(&state));
    }

    #[tokio::test]
    async fn without_a_ledger_the_error_says_what_to_type() {
        let dir = tempfile::tempdir().unwrap();
        let state = Context::new(Some(dir.path().to_owned())).state().unwrap();
        assert!(ledger(&state).await.unwrap().is_none());
        let error = ledger_that_is_there(&state).await.unwrap_err();
        assert_eq!(error.code, Code::Unavailable);
        assert!(error.hint.unwrap().contains("troop up"));
    }
}
