//! What clients, balancer workers and the cloud process say to each other over STATE/run/cloud.sock.
//!
//! Frames are a 4-byte big-endian length and that many bytes of JSON ([`FRAME_MAX_BYTES`] at most). A connection opens
//! with one [`Hello`]. A client then sends [`Request`]s and gets one [`Response`] each, in order. A worker gets a
//! [`Routes`] whenever it changed, answers each with [`FromWorker::Applied`], and reports on its own every 250 ms.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use bytes::{Bytes, BytesMut};
use futures::{Sink, SinkExt as _, Stream, StreamExt as _};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio_util::codec::{Framed, LengthDelimitedCodec};
use troop_policies::intent::{Intent, Outcome};
use troop_policies::inventory::Inventory;
use troop_policies::{ClusterName, GroupName, InstanceId, RegionName};

use crate::{Image, Traffic};

/// Longest frame either side takes: an inventory of 10,000 instances is about 4 MB of JSON.
pub const FRAME_MAX_BYTES: usize = 16 << 20;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "hello")]
pub enum Hello {
    Client {
        version: u32,
    },
    /// `worker` tells workers of one balancer apart; a restarted worker takes its predecessor's number.
    Balancer {
        version: u32,
        worker: u32,
    },
}

/// Raised whenever a frame changes its meaning. Supervisor and children are one binary, so a mismatch is an error.
pub const PROTOCOL_VERSION: u32 = 1;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "request")]
pub enum Request {
    Inventory {
        region: RegionName,
    },
    Images,
    Traffic {
        region: RegionName,
        cluster: ClusterName,
    },
    /// The client has checked the permit; the socket is the supervisor's own, mode 0600.
    Perform {
        intent: Box<Intent>,
    },
    Resolve {
        intent: Box<Intent>,
    },
    Mark {
        group: GroupName,
        mark: String,
    },
    ImportImage {
        path: PathBuf,
    },
    /// What `troop ps` shows beside the inventory: pids and log files.
    Processes,
    /// Ends everything in order: SIGTERM to instances, SIGKILL after 2 s, then the cloud process itself.
    Shutdown,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "response", content = "body")]
pub enum Response {
    Inventory(Inventory),
    Images(Vec<Image>),
    Traffic(BTreeMap<GroupName, Traffic>),
    Outcome(Outcome),
    Image(Image),
    Processes(Vec<ProcessRow>),
    Ok,
    /// The request was understood and cannot be answered.
    Error(String),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProcessRow {
    pub instance: InstanceId,
    pub group: GroupName,
    /// As the sandbox sees it.
    pub pid: Option<u32>,
    pub log: PathBuf,
}

/// Where every cluster's traffic goes, and whom to ask for health. Replaced whole, so a flip is one assignment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Routes {
    pub version: u64,
    /// A request whose Host names no cluster goes here: the cluster pushed first.
    pub default_cluster: Option<ClusterName>,
    pub clusters: BTreeMap<ClusterName, Vec<Target>>,
    /// Every instance of every group that has targets, in rotation or not, is checked.
    pub checks: Vec<Check>,
    /// Instances that Troop is ending by a recorded kill; requests in flight to them that fail are counted apart.
    pub being_killed: Vec<InstanceId>,
    /// Instances of disabled groups whose drain is over: tunnels to them are cut.
    #[serde(default)]
    pub drained: Vec<InstanceId>,
}

/// An instance in rotation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    pub instance: InstanceId,
    pub group: GroupName,
    pub address: SocketAddr,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    pub instance: InstanceId,
    pub group: GroupName,
    pub address: SocketAddr,
    pub health_path: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "from_worker")]
pub enum FromWorker {
    /// Requests that arrive from now on follow these routes.
    Applied { version: u64 },
    Report {
        health: BTreeMap<InstanceId, Verdict>,
        traffic: BTreeMap<GroupName, Traffic>,
        in_flight: BTreeMap<InstanceId, u64>,
    },
}

/// A worker's own verdict on one instance. The cloud process takes the worst over the workers that report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    pub healthy: bool,
    pub checked_at: Timestamp,
    pub reason: Option<String>,
}

/// A connection cut into frames.
pub type Frames = Framed<UnixStream, LengthDelimitedCodec>;

/// Cuts a connection into frames.
#[must_use]
pub fn frames(stream: UnixStream) -> Frames {
    Framed::new(stream, LengthDelimitedCodec::builder().max_frame_length(FRAME_MAX_BYTES).new_codec())
}

/// Writes one frame. `to` is the connection or its writing half.
///
/// # Errors
/// The connection's, or when the frame would be longer than [`FRAME_MAX_BYTES`].
pub async fn send<S, T>(to: &mut S, what: &T) -> std::io::Result<()>
where
    S: Sink<Bytes, Error = std::io::Error> + Unpin,
    T: Serialize,
{
    to.send(serde_json::to_vec(what)?.into()).await
}

/// Reads one frame; `None` at the end of the connection. `from` is the connection or its reading half.
///
/// # Errors
/// The connection's, or when what came is no frame of this kind.
pub async fn receive<S, T>(from: &mut S) -> std::io::Result<Option<T>>
where
    S: Stream<Item = std::io::Result<BytesMut>> + Unpin,
    T: DeserializeOwned,
{
    match from.next().await {
        None => Ok(None),
        Some(frame) => Ok(Some(serde_json::from_slice(&frame?)?)),
    }
}
