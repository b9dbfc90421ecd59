//! A first process for this crate's own tests of the sandbox: it launches what STATE/trial.json lists and writes down
//! what became of it. The cloud process is tested by itself, over a fake runtime.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_util::sync::CancellationToken;
use troop_policies::InstanceId;

use super::runtime::{EndBy, Exit, Launch, Runtime};
use super::steps::{Step as _, StepFailed};

#[derive(Debug, Deserialize)]
struct Wanted {
    instance: InstanceId,
    zone: u8,
    address: Ipv4Addr,
    image_root: PathBuf,
    command: Vec<String>,
    env: BTreeMap<String, String>,
    boot_delay_ms: u64,
    log: PathBuf,
    /// End it this long after its launch.
    end_after_ms: Option<u64>,
    #[serde(default)]
    kill: bool,
}

/// Runs the trial until `stop`. STATE/trial.out gets a line of JSON for each launch and each end.
pub(crate) async fn run(
    state_dir: &Path,
    runtime: Arc<dyn Runtime>,
    mut exits: UnboundedReceiver<Exit>,
    ready: Box<dyn FnOnce() + Send>,
    stop: CancellationToken,
) -> Result<(), StepFailed> {
    let mut out = std::fs::File::create(state_dir.join("trial.out")).step("write the trial's results")?;
    let mut write = |line: serde_json::Value| writeln!(out, "{line}").step("write the trial's results");
    let wanted = std::fs::read(state_dir.join("trial.json")).unwrap_or_else(|_| b"[]".to_vec());
    let wanted: Vec<Wanted> =
        serde_json::from_slice(&wanted).map_err(std::io::Error::from).step("read STATE/trial.json")?;
    ready();
    let mut endings = tokio::task::JoinSet::new();
    for want in wanted {
        let launch = Launch {
            instance: want.instance.clone(),
            zone: want.zone,
            address: want.address,
            image_root: want.image_root,
            command: want.command,
            env: want.env,
            boot_delay: Duration::from_millis(want.boot_delay_ms),
            log: want.log,
        };
        let began = tokio::time::Instant::now();
        let launched = runtime.launch(launch).await;
        let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        write(match launched {
            Ok(pid) => serde_json::json!({"launched": want.instance, "pid": pid, "ms": ms}),
            Err(failed) => serde_json::json!({"failed": want.instance, "step": failed.step, "detail": failed.detail}),
        })?;
        if let Some(after) = want.end_after_ms {
            let runtime = Arc::clone(&runtime);
            endings.spawn(async move {
                tokio::time::sleep(Duration::from_millis(after)).await;
                runtime.end(&want.instance, if want.kill { EndBy::Kill } else { EndBy::Term });
            });
        }
    }
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            exit = exits.recv() => {
                let Some(exit) = exit else { return Ok(()) };
                runtime.clean(&exit.instance).await;
                write(serde_json::json!({"ended": exit.instance, "status": exit.status}))?;
            }
        }
    }
}
