//! `troop demo`: the main job in about a minute, on real processes with real packets, every figure measured in the run.
//!
//! The demo is itself the supervisor of its own embedded cloud. Only the scheduler's calendar is fast: it stands at 09:55
//! until the first version serves, then runs, and the demo's policy opens at 10:00 with odds of one. Boots, heals,
//! delays and limits are real time.

#[cfg(feature = "aws")]
pub mod aws;
mod chapters;
mod images;
mod latency;
mod leftovers;
mod logs;
mod report;
mod watch;

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use troop_cloud::local::sandbox::Isolation;

use self::leftovers::{Family, Folder};
use crate::clock::{self, CalendarFile};
use crate::state::StateDir;
use crate::supervisor::{Supervisor, UpError, UpOptions};
use crate::ui;

pub use report::Summary;

/// Seconds of calendar a second of real time: 09:55 reaches the window's end at 12:00 in 12.5 s.
pub const CALENDAR_FACTOR: i32 = 600;
/// Instances of the demo boot for this long, so that a push is worth watching.
const BOOT_DELAY: Duration = Duration::from_secs(2);
/// A new instance may be unhealthy for this long before its group replaces it; longer than v002 is given.
const GRACE: Duration = Duration::from_secs(60);
/// How long a story that failed waits for what its processes have to say.
const LAST_WORDS: Duration = Duration::from_millis(500);

#[derive(Debug, Clone)]
pub struct DemoOptions {
    /// Leave it running at the end, in a state folder that stays.
    pub keep: bool,
    pub summary: Option<PathBuf>,
    pub isolation: Isolation,
    pub state: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    #[error(transparent)]
    Up(#[from] UpError),
    #[error("could not {what}")]
    Io {
        what: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("{chapter}: {what}")]
    Chapter { chapter: &'static str, what: String },
    #[error("interrupted")]
    Interrupted,
}

/// How a demo ended.
#[derive(Debug)]
pub struct Ended {
    pub summary: Summary,
    /// What the demo promises and did not keep, in words.
    pub broken: Vec<String>,
}

/// Runs the demo.
///
/// # Errors
/// [`DemoError`]; everything that was started is ended first.
pub async fn run(options: DemoOptions, stop: CancellationToken) -> Result<Ended, DemoError> {
    let io = |what| move |source| DemoError::Io { what, source };
    leftovers::sweep_dead_demos();
    let folder = Folder::new(options.state.as_deref()).map_err(io("use the state folder"))?;
    if options.keep {
        folder.keep().map_err(io("make the state folder"))?;
        return run_in(&options, &folder.path, stop).await.map(|(ended, _)| ended);
    }
    let others = Family::default().left(&folder.path);
    let result = run_in(&options, &folder.path, stop).await;
    let removed = folder.remove();
    let (mut ended, family) = result?;
    removed.map_err(io("remove the demo's state folder"))?;
    ended.summary.left_over = family.left(&folder.path).saturating_sub(others);
    if ended.summary.left_over > 0 {
        ended
            .broken
            .push(format!("{} processes, namespaces, mounts or interfaces were left over", ended.summary.left_over));
    }
    report::print_end(&ended.summary, false);
    write_summary(&options, &ended.summary)?;
    Ok(ended)
}

/// Runs it in its folder, to the end of everything that was started. Returns also what hung below this process before.
async fn run_in(options: &DemoOptions, folder: &Path, stop: CancellationToken) -> Result<(Ended, Family), DemoError> {
    let io = |what| move |source| DemoError::Io { what, source };
    let state = StateDir::find(Some(folder), |_| None).map_err(UpError::State)?;
    state.create().map_err(UpError::State)?;
    let policies = folder.join("policies");
    std::fs::create_dir_all(&policies).map_err(io("make the policies folder"))?;
    std::fs::write(policies.join("demo.toml"), include_str!("../../../policies/examples/demo.toml"))
        .map_err(io("write the demo's policy"))?;
    let images = images::write(folder).map_err(io("write the demo's images"))?;
    let calendar_file = folder.join("calendar.json");
    let calendar =
        CalendarFile { at: chapters::calendar_start(clock::real_now()), running_since: None, factor: CALENDAR_FACTOR };
    calendar.save(&calendar_file).map_err(UpError::State)?;

    let began = tokio::time::Instant::now();
    let up = UpOptions {
        state: state.clone(),
        isolation: options.isolation,
        policies,
        site_file: None,
        boot_delay: BOOT_DELAY,
        grace: GRACE,
        port: None,
        calendar_file: Some(calendar_file.clone()),
    };
    let supervisor = Supervisor::start(up, &stop).await.map_err(interrupted)?;
    let info = supervisor.info.clone();
    let fate = if options.keep { "kept" } else { "removed at the end" };
    let text =
        format!("region r1, zones r1a r1b r1c; isolation: {}; state: {} ({fate})", info.isolation, folder.display());
    say(began, "cloud", &text);
    if let Some(left_out) = &info.left_out {
        say(began, "cloud", &format!("isolation {}: {left_out}", info.isolation));
    }
    let end = stop.child_token();
    let mut running = tokio::spawn(supervisor.run(end.clone()));
    let stage = chapters::Stage { state, info, images, calendar, calendar_file, began };
    let told = tokio::select! {
        told = chapters::tell(&stage) => told,
        () = stop.cancelled() => Err(DemoError::Interrupted),
        ended = &mut running => return Err(match ended {
            Ok(Err(e)) => e.into(),
            Ok(Ok(())) | Err(_) => DemoError::Interrupted,
        }),
    };
    let ended = match told {
        Ok(ended) => ended,
        Err(error) => {
            let failed = matches!(error, DemoError::Chapter { .. });
            if failed {
                // The supervisor says by itself that a role was started again, a moment after it ended.
                tokio::time::sleep(LAST_WORDS).await;
            }
            end.cancel();
            let _ended = (&mut running).await;
            if failed {
                logs::print_ends(&stage.state.logs());
            }
            return Err(error);
        }
    };
    let family = Family::now();
    if options.keep {
        write_summary(options, &ended.summary)?;
        report::print_end(&ended.summary, true);
        ui::line(&format!(
            " KEPT      http://{} and `troop --state {} status`; Ctrl-C ends it, the folder stays",
            stage.info.balancer,
            folder.display()
        ));
    } else {
        end.cancel();
    }
    // Kept, it ends with a Ctrl-C, or because its sandbox did.
    match running.await {
        Ok(Ok(())) => Ok((ended, family)),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(DemoError::Interrupted),
    }
}

/// One line of the story: when, what about, what.
fn say(began: tokio::time::Instant, what: &str, text: &str) {
    ui::line(&format!("{:5.1}s {what:<8} {text}", began.elapsed().as_secs_f64()));
}

/// A start that was given up was interrupted, as all else that is.
fn interrupted(error: UpError) -> DemoError {
    if matches!(error, UpError::Interrupted) { DemoError::Interrupted } else { DemoError::Up(error) }
}

fn write_summary(options: &DemoOptions, summary: &Summary) -> Result<(), DemoError> {
    let Some(path) = &options.summary else { return Ok(()) };
    let text = serde_json::to_string_pretty(summary).unwrap_or_default();
    std::fs::write(path, text + "\n").map_err(|source| DemoError::Io { what: "write the summary", source })
}
