//! The demo's own site: its file, the team's policy, and the room in which the team is told.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::routing::post;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;
use troop_policies::policy::{RegionSettings, Site};

use super::super::DemoError;
use super::super::watch::failed;
use super::{CHAPTER, REGION};
use crate::site;

/// What `policies/examples/demo.toml` begins with, after which the team's channel is named.
const TEAM: &str = "team     = \"demo\"\n";

/// A channel on this machine that takes every notice. Ends with this value.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) url: String,
    taken: Arc<AtomicU64>,
    _serving: AbortOnDropHandle<()>,
}

impl Room {
    pub(super) async fn open() -> std::io::Result<Self> {
        let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await?;
        let url = format!("http://{}/room", listener.local_addr()?);
        let taken = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&taken);
        let take = post(async move || {
            counted.fetch_add(1, Ordering::Relaxed);
            "ok"
        });
        let router = Router::new().route("/room", take);
        let serving = AbortOnDropHandle::new(tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "the room is closed");
            }
        }));
        Ok(Self { url, taken, _serving: serving })
    }

    pub(super) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }
}

/// Writes the site into `folder` and reads it as `troop serve` would.
pub(super) fn write(folder: &Path, endpoint: &str, room: &str, region: &RegionSettings) -> Result<Site, DemoError> {
    let put = |name: &str, text: &str| {
        std::fs::write(folder.join(name), text)
            .map_err(|source| DemoError::Io { what: "write the demo's site", source })
    };
    let made = std::fs::create_dir(folder.join("policies"));
    made.map_err(|source| DemoError::Io { what: "write the demo's site", source })?;
    let policy = include_str!("../../../../policies/examples/demo.toml");
    put("policies/demo.toml", &policy.replacen(TEAM, &format!("{TEAM}notify   = [\"room:demo\"]\n"), 1))?;
    put("room.url", room)?;
    let first = region.first.as_ref().ok_or_else(|| failed(CHAPTER, "there is nothing to make a group from"))?;
    put(
        "troop.toml",
        &format!(
            "site = \"demo\"\nleashed = false\n\
             [caps]\nacts_per_hour = 10\nunhealed_per_account = 1\n\
             [aws]\nendpoint = \"{endpoint}\"\n\
             [[accounts]]\nname = \"prod\"\nregions = [\"{REGION}\"]\n\
             [accounts.region.{REGION}]\nload_balancers = {:?}\n\
             [accounts.region.{REGION}.first]\nlaunch_template = {:?}\nsubnets = {:?}\nport = {}\nhealth_path = {:?}\n\
             [channels.room]\nkind = \"slack\"\nurl_file = \"room.url\"\n",
            region.load_balancers, first.launch_template, first.subnets, first.port, first.health_path,
        ),
    )?;
    let read = site::read(Some(&folder.join("troop.toml"))).map_err(|e| failed(CHAPTER, e.to_string()))?;
    Ok(read.site)
}
