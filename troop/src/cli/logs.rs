//! `troop logs`: what an instance, or a part of Troop itself, wrote. Read from files, so that it works for the dead.

use std::fs::{self, File};
use std::io::{self, IsTerminal as _, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use troop_policies::{InstanceId, file};

use super::context::{self, Context};
use crate::exit::{CliError, Code};
use crate::state::StateDir;
use crate::ui;

/// How often a followed log is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Show what an instance wrote, also after its end
///
/// INSTANCE may also be a part of Troop itself: serve, registry, balancer-0, balancer-1 or cloud.
#[derive(Debug, Args)]
pub(super) struct LogsArgs {
    /// An instance id, as `troop ps` and `troop history` show it
    instance: InstanceId,
    /// Wait for more
    #[arg(long, short)]
    follow: bool,
    /// How many of the last lines
    #[arg(long, short = 'n', value_name = "N", default_value_t = 100)]
    lines: usize,
}

pub(super) async fn run(cx: &Context, args: &LogsArgs) -> Result<Code, CliError> {
    let state = cx.state()?;
    let path = find(&state, &args.instance)?;
    let unreadable =
        |e: io::Error| CliError::new(Code::Unavailable, format!("could not read `{}`: {e}", path.display()));
    let mut log = File::open(&path).map_err(unreadable)?;
    let mut text = Vec::new();
    log.read_to_end(&mut text).map_err(unreadable)?;
    show(last_lines(&text, args.lines));
    let mut read = text.len() as u64;
    if !args.follow {
        return Ok(Code::Ok);
    }
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let length = fs::metadata(&path).map_err(unreadable)?.len();
        if length < read {
            // The older half was cut off; what is left was shown already, but for what came at that very moment.
            ui::note("older lines of the log were cut off");
            read = length;
        }
        log.seek(SeekFrom::Start(read)).map_err(unreadable)?;
        text.clear();
        log.read_to_end(&mut text).map_err(unreadable)?;
        read += text.len() as u64;
        show(&text);
    }
}

/// On a terminal what an instance wrote must not move the cursor; elsewhere it is passed on as it is.
fn show(bytes: &[u8]) {
    if io::stdout().is_terminal() {
        ui::data(ui::harmless(&String::from_utf8_lossy(bytes)));
    } else {
        ui::data(bytes);
    }
}

fn find(state: &StateDir, instance: &InstanceId) -> Result<PathBuf, CliError> {
    let folders = [state.cloud().join("logs"), state.logs()];
    let found = folders.iter().map(|folder| folder.join(format!("{instance}.log"))).find(|path| path.is_file());
    if let Some(path) = found {
        return Ok(path);
    }
    if !context::exists(state) {
        let what = format!("there is no state folder `{}`, and so no log", state.path().display());
        return Err(CliError::new(Code::Input, what).hint("name the folder of your `troop up` with `--state DIR`"));
    }
    let known: Vec<_> = folders.iter().flat_map(|folder| names(folder)).collect();
    let near = file::nearest(instance.as_str(), known.iter().map(String::as_str));
    let hint = near.map_or_else(
        || "`troop ps` lists the instances that run, `troop history` those that were killed".to_owned(),
        |near| format!("did you mean `{near}`?"),
    );
    Err(CliError::new(Code::Input, format!("there is no log of `{instance}` in `{}`", state.path().display()))
        .hint(hint))
}

/// The names of the logs in a folder; none where it cannot be read.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.map(|e| e.file_name().to_string_lossy().into_owned());
    names.filter_map(|n| n.strip_suffix(".log").map(str::to_owned)).collect()
}

fn last_lines(text: &[u8], lines: usize) -> &[u8] {
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    let ends = body.iter().enumerate().rev().filter(|(_, b)| **b == b'\n').map(|(at, _)| at);
    match lines {
        0 => &[],
        lines => ends.into_iter().nth(lines - 1).map_or(text, |at| &text[at + 1..]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_whole() {
        let text = b"one\ntwo\nthree\n";
        assert_eq!(last_lines(text, 2), b"two\nthree\n");
        assert_eq!(last_lines(text, 3), text);
        assert_eq!(last_lines(text, 9), text);
        assert_eq!(last_lines(text, 0), b"");
        assert_eq!(last_lines(b"one\ntw", 1), b"tw");
        assert_eq!(last_lines(b"", 1), b"");
    }

    #[test]
    fn a_log_is_found_after_the_instance_is_gone_and_an_unknown_one_is_told_with_the_nearest() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::find(Some(dir.path()), |_| None).unwrap();
        fs::create_dir_all(state.cloud().join("logs")).unwrap();
        fs::write(state.cloud().join("logs/i-0a1b2c3d.log"), "x").unwrap();
        assert!(find(&state, &"i-0a1b2c3d".parse().unwrap()).is_ok());
        let error = find(&state, &"i-0a1b2c3e".parse().unwrap()).unwrap_err();
        assert_eq!((error.code, error.hint.as_deref()), (Code::Input, Some("did you mean `i-0a1b2c3d`?")));
    }
}
