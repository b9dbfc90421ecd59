//! `troop demo --cloud aws --endpoint URL`: the same control plane on the calls of AWS, against a server on this machine that
//! stands in for it: a site is made ready, a cluster pushed, killed by draw and on demand, pushed again and rolled back, and
//! every API call counted.
//!
//! It is `troop serve` in this process, with a site file and policies of its own in a temporary folder. What such a server
//! lacks is added in front of it (`front`); what people bring to an account is brought first
//! ([`troop_cloud::aws::operator`]).

pub mod front;
mod site;
mod story;

use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use tokio_util::sync::CancellationToken;
use troop_cloud::Cloud;
use troop_cloud::aws::Credentials;
use troop_cloud::aws::operator::Operator;
use troop_policies::{ClusterName, RegionName};

use self::front::Front;
use super::report::{Kill, Push};
use super::watch::failed;
use super::{CALENDAR_FACTOR, DemoError, chapters, say};
use crate::clock::{self, Calendar};
use crate::serve::process::Alone;
use crate::state::StateDir;
use crate::supervisor::{Seat, UpError};
use crate::world::World;
use crate::{accounts, ui};

const CHAPTER: &str = "start";
const REGION: &str = "us-east-1";
pub(super) const CLUSTER: &str = "hello-web";

/// What is wanted.
#[derive(Debug, Clone)]
pub struct Options {
    /// The server, such as `http://127.0.0.1:5000`.
    pub endpoint: String,
    pub summary: Option<PathBuf>,
}

/// What was seen.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Summary {
    pub schema: u32,
    pub seconds: f64,
    pub kills: Vec<Kill>,
    pub pushes: Vec<Push>,
    /// Notices that the team's channel took.
    pub notices: u64,
    /// API calls by kind, `ec2:DescribeInstances`.
    pub calls: std::collections::BTreeMap<String, u64>,
}

/// Runs it. Returns also what it promises and did not keep.
///
/// # Errors
/// [`DemoError`]; everything that was started is ended first.
pub async fn run(options: &Options, stop: CancellationToken) -> Result<(Summary, Vec<String>), DemoError> {
    let began = tokio::time::Instant::now();
    let io = |what| move |source| DemoError::Io { what, source };
    let folder = tempfile::Builder::new().prefix("troop-demo-aws-").tempdir();
    let folder = folder.map_err(io("make the demo's folder"))?;
    let region = RegionName::new(REGION).map_err(|e| failed(CHAPTER, e.to_string()))?;
    let operator = Operator::at(&options.endpoint, &region).map_err(|e| failed(CHAPTER, e.to_string()))?;
    let cluster = ClusterName::new(CLUSTER).map_err(|e| failed(CHAPTER, e.to_string()))?;
    let brought = operator.bring(&["hello-1.0.0", "hello-1.1.0"], &[cluster]).await;
    let brought = brought.map_err(|e| failed(CHAPTER, e.to_string()))?;
    let registering = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(operator.keep_registering()));
    let front = Front::start(&options.endpoint, REGION).await.map_err(io("stand before the endpoint"))?;
    let room = site::Room::open().await.map_err(io("open the team's channel"))?;
    let site = site::write(folder.path(), &front.url, &room.url, &brought.settings)?;

    let state = StateDir::find(Some(&folder.path().join("state")), |_| None).map_err(UpError::State)?;
    // Whoever has keys of AWS shows them to no stand-in.
    let keys = Credentials::Static { key_id: "TROOPDEMO".to_owned(), secret: "a stand-in takes any".to_owned() };
    let clouds = accounts::aws_clouds_by(&site, &keys).await.map_err(|why| failed(CHAPTER, why))?;
    let clouds: Vec<Arc<dyn Cloud>> = clouds.into_iter().map(|cloud| Arc::new(cloud) as Arc<dyn Cloud>).collect();
    let seat = Seat::take(&state, &site)?;
    let calendar = Calendar::standing(chapters::calendar_start(clock::real_now()));
    let alone = Alone::open(seat, state.clone(), site, World::new(clouds, None), calendar.clone()).await;
    let alone = alone.map_err(|why| failed(CHAPTER, why))?;
    let core = Arc::clone(&alone.core);
    say(began, "aws", &format!("{} stands in for account prod, {REGION}; state: a folder that goes", options.endpoint));
    let told = format!("only the scheduler's calendar is fast (1 s = {} min)", CALENDAR_FACTOR / 60);
    say(began, "clock", &told);

    let end = stop.child_token();
    let mut running = tokio::spawn(alone.run(end.clone()));
    let stage = story::Stage { state, core, calendar, images: brought.images, front, began };
    let told = tokio::select! {
        told = story::tell(&stage) => told,
        () = stop.cancelled() => Err(DemoError::Interrupted),
        ended = &mut running => Err(match ended {
            Ok(Err(why)) => failed(CHAPTER, why),
            Ok(Ok(())) | Err(_) => DemoError::Interrupted,
        }),
    };
    if !running.is_finished() {
        end.cancel();
        let _ended = running.await;
    }
    drop(registering);
    let (kills, pushes, mut broken) = told?;
    let calls = stage.front.calls();
    let summary =
        Summary { schema: 1, seconds: began.elapsed().as_secs_f64(), kills, pushes, notices: room.taken(), calls };
    if summary.notices == 0 {
        broken.push("the team was told nothing".to_owned());
    }
    print(&summary);
    if let Some(path) = &options.summary {
        let text = serde_json::to_string_pretty(&summary).unwrap_or_default();
        std::fs::write(path, text + "\n").map_err(io("write the summary"))?;
    }
    Ok((summary, broken))
}

fn print(summary: &Summary) {
    ui::line(&format!(" API CALLS {} in all, {} notices", summary.calls.values().sum::<u64>(), summary.notices));
    for (call, count) in &summary.calls {
        ui::line(&format!(" {count:>8}  {call}"));
    }
}
