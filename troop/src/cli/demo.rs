//! `troop demo`.

use std::path::{Path, PathBuf};

use clap::Args;
use troop_cloud::local::sandbox::Isolation;

use super::context::{self, Context};
use crate::demo::{self, DemoError, DemoOptions};
use crate::exit::{CliError, Code};
use crate::supervisor::stop;
use crate::{logging, ui};

/// Watch the main job on this machine, in about a minute
///
/// Deploys a service, kills instances of it by draw and on demand, pushes a good version, one that never becomes ready
/// and one that answers with errors, and counts every request of a client. It touches no host networking and leaves
/// nothing behind. Exit 5 when it did not keep what it promises, 6 when something is left over, 3 after Ctrl-C.
#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// Leave it running at the end, until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// Also write the figures as JSON
    #[arg(long, value_name = "FILE")]
    summary: Option<PathBuf>,
    /// How instances are kept apart: namespaces, processes or auto
    #[arg(long, value_name = "HOW", default_value_t = Isolation::Auto)]
    isolation: Isolation,
    /// The cloud: the embedded one, or the calls of AWS against a server on this machine that stands in for it
    #[arg(long, value_name = "CLOUD", default_value = "local", requires_if("aws", "endpoint"))]
    cloud: CloudKind,
    /// That server, such as moto's
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum CloudKind {
    Local,
    Aws,
}

pub(super) fn run(cx: &Context, args: DemoArgs) -> Result<Code, CliError> {
    logging::for_a_person();
    if let Some(folder) = cx.state_flag() {
        is_free(folder)?;
    }
    if let Some(file) = &args.summary {
        can_be_written(file)?;
    }
    if let (CloudKind::Aws, Some(endpoint)) = (args.cloud, args.endpoint) {
        return on_aws(endpoint, args.summary);
    }
    let options = DemoOptions {
        keep: args.keep,
        summary: args.summary,
        isolation: args.isolation,
        state: cx.state_flag().cloned(),
    };
    let runtime = context::runtime()?;
    let local = tokio::task::LocalSet::new();
    let ended = local.block_on(&runtime, async {
        let stop = stop::on_signals()
            .map_err(|e| CliError::new(Code::Unavailable, format!("could not watch for signals: {e}")))?;
        demo::run(options, stop).await.map_err(error)
    })?;
    ended.broken.iter().for_each(|promise| ui::note(&format!("NOT KEPT  {promise}")));
    match (ended.summary.left_over, ended.broken.is_empty()) {
        (0, true) => Ok(Code::Ok),
        (0, false) => Ok(Code::CheckFalse),
        (_, _) => Ok(Code::LeftBehind),
    }
}

#[cfg(feature = "aws")]
fn on_aws(endpoint: String, summary: Option<PathBuf>) -> Result<Code, CliError> {
    let options = demo::aws::Options { endpoint, summary };
    let (_, broken) = context::block_on(async {
        let stop = stop::on_signals()
            .map_err(|e| CliError::new(Code::Unavailable, format!("could not watch for signals: {e}")))?;
        demo::aws::run(&options, stop).await.map_err(error)
    })?;
    broken.iter().for_each(|promise| ui::note(&format!("NOT KEPT  {promise}")));
    Ok(if broken.is_empty() { Code::Ok } else { Code::CheckFalse })
}

#[cfg(not(feature = "aws"))]
fn on_aws(_endpoint: String, _summary: Option<PathBuf>) -> Result<Code, CliError> {
    Err(context::no_aws())
}

/// Tries the file of the figures before the demo runs for a minute. One that was not there is not left behind.
fn can_be_written(file: &Path) -> Result<(), CliError> {
    let was_there = file.symlink_metadata().is_ok();
    match std::fs::OpenOptions::new().append(true).create(true).open(file) {
        Ok(_) if was_there => Ok(()),
        Ok(_) => {
            let _gone = std::fs::remove_file(file);
            Ok(())
        }
        Err(e) => Err(CliError::new(Code::Usage, format!("--summary {}: could not be written: {e}", file.display()))
            .hint("name a file in a folder that is there and yours to write to")),
    }
}

/// The demo writes a policy into its folder, and removes the folder at its end: never one with somebody's state in it.
fn is_free(folder: &Path) -> Result<(), CliError> {
    let taken = match std::fs::read_dir(folder) {
        Ok(mut entries) => entries.next().is_some().then(|| "is not empty, and a demo removes its folder".to_owned()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
        Err(e) => Some(format!("cannot be a demo's folder: {e}")),
    };
    match taken {
        None => Ok(()),
        Some(why) => Err(CliError::new(Code::Input, format!("`{}` {why}", folder.display()))
            .hint("leave --state out, or name a folder that is not there yet")),
    }
}

fn error(e: DemoError) -> CliError {
    match e {
        DemoError::Interrupted => CliError::new(Code::Refused, "interrupted; everything that was started has ended"),
        DemoError::Up(e) => e.into(),
        DemoError::Chapter { .. } => CliError::of(Code::CheckFalse, &e),
        DemoError::Io { .. } => CliError::of(Code::Unavailable, &e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_demo_never_takes_a_folder_that_holds_something() {
        let dir = tempfile::tempdir().unwrap();
        assert!(is_free(dir.path()).is_ok());
        assert!(is_free(&dir.path().join("new")).is_ok());
        std::fs::write(dir.path().join("ledger.db"), "").unwrap();
        assert_eq!(is_free(dir.path()).unwrap_err().code, Code::Input);
    }

    #[test]
    fn a_summary_that_cannot_be_written_is_refused_before_anything_begins_and_trying_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("summary.json");
        can_be_written(&file).unwrap();
        assert!(!file.exists());
        std::fs::write(&file, "of an earlier demo").unwrap();
        can_be_written(&file).unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"of an earlier demo");
        for bad in [dir.path().to_owned(), dir.path().join("no/summary.json"), file.join("summary.json")] {
            let refused = can_be_written(&bad).unwrap_err();
            assert_eq!(refused.code, Code::Usage);
            assert!(refused.what.contains(&bad.display().to_string()) && refused.hint.is_some(), "{refused:?}");
        }
    }
}
