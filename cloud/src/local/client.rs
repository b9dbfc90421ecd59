//! The embedded cloud as everyone else sees it: a client of the cloud process over STATE/run/cloud.sock.
//!
//! One connection per call: what was sent and what was not is then never in doubt, and a restarted cloud process is
//! found by the next call.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::net::UnixStream;
use troop_policies::ids::BadId;
use troop_policies::intent::{Intent, Outcome};
use troop_policies::inventory::Inventory;
use troop_policies::leash::Permit;
use troop_policies::step::Step;
use troop_policies::{AccountName, ClusterName, GroupName, RegionName};

use super::protocol::{Frames, Hello, PROTOCOL_VERSION, ProcessRow, Request, Response, frames, receive, send};
use super::server::{ACCOUNT, REGION};
use crate::{Cloud, CloudError, Image, Traffic};

/// Longest path of a unix socket: `sun_path` is 108 bytes with its ending zero (unix(7)).
pub const SOCKET_PATH_MAX_BYTES: usize = 107;

/// How long connecting, and then answering, may take.
const CALL_MAX: Duration = Duration::from_secs(5);
/// How long a step may take to be answered. The longest is a crash, which is looked for for 10 s.
const STEP_MAX: Duration = Duration::from_secs(13);
/// How long an import may take: a gigabyte is copied and hashed.
const IMPORT_MAX: Duration = Duration::from_secs(120);

/// Where the cloud process of a state folder listens.
#[must_use]
pub fn socket_path(state_dir: &Path) -> PathBuf {
    state_dir.join("run").join("cloud.sock")
}

/// The embedded cloud of one state folder.
#[derive(Debug, Clone)]
pub struct LocalCloud {
    socket: PathBuf,
    account: AccountName,
    regions: Vec<RegionName>,
}

/// Why a call got no answer, by what may have happened meanwhile.
enum NoAnswer {
    /// Nothing was sent.
    NotSent(io::Error),
    /// It may have been taken in.
    Lost(io::Error),
}

impl LocalCloud {
    /// A client of the cloud process whose STATE is `state_dir`. Connects at each call.
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        Self::at(socket_path(state_dir))
    }

    pub(crate) fn at(socket: PathBuf) -> Self {
        let checked = |e: BadId| -> ! { unreachable!("a built-in name: {e}") };
        let account = AccountName::new(ACCOUNT).unwrap_or_else(|e| checked(e));
        let region = RegionName::new(REGION).unwrap_or_else(|e| checked(e));
        Self { socket, account, regions: vec![region] }
    }

    /// Asks the cloud process to end every instance and itself, and returns when the instances are gone.
    ///
    /// # Errors
    /// [`CloudError`] when it cannot be asked, or does not answer within 5 s.
    pub async fn shutdown(&self) -> Result<(), CloudError> {
        let Response::Ok = self.ask(&Request::Shutdown, CALL_MAX).await? else { return Err(self.garbled("Ok")) };
        Ok(())
    }

    /// Every instance with its pid, as the sandbox sees it, and its log.
    ///
    /// # Errors
    /// [`CloudError`] when the cloud process cannot be asked.
    pub async fn processes(&self) -> Result<Vec<ProcessRow>, CloudError> {
        let Response::Processes(rows) = self.ask(&Request::Processes, CALL_MAX).await? else {
            return Err(self.garbled("Processes"));
        };
        Ok(rows)
    }

    async fn call(&self, request: &Request, within: Duration) -> Result<Response, NoAnswer> {
        let connecting = tokio::time::timeout(CALL_MAX, self.connect()).await;
        let mut cloud = connecting.unwrap_or_else(|late| Err(late.into())).map_err(NoAnswer::NotSent)?;
        let asking = async {
            send(&mut cloud, request).await?;
            receive(&mut cloud).await?.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))
        };
        let answer = tokio::time::timeout(within, asking).await;
        answer.unwrap_or_else(|late| Err(late.into())).map_err(NoAnswer::Lost)
    }

    /// Connects and says who is there. Of the request nothing is sent yet.
    async fn connect(&self) -> io::Result<Frames> {
        let mut cloud = frames(UnixStream::connect(&self.socket).await?);
        send(&mut cloud, &Hello::Client { version: PROTOCOL_VERSION }).await?;
        Ok(cloud)
    }

    async fn ask(&self, request: &Request, within: Duration) -> Result<Response, CloudError> {
        let account = self.account.clone();
        match self.call(request, within).await {
            Ok(Response::Error(why)) => Err(CloudError::Refused { account, why }),
            Ok(response) => Ok(response),
            Err(NoAnswer::Lost(e)) if e.kind() == io::ErrorKind::InvalidData => {
                Err(CloudError::Garbled { account, why: e.to_string() })
            }
            Err(NoAnswer::NotSent(source) | NoAnswer::Lost(source)) => Err(CloudError::Unreachable { account, source }),
        }
    }

    fn garbled(&self, wanted: &str) -> CloudError {
        CloudError::Garbled { account: self.account.clone(), why: format!("it is no answer of the kind `{wanted}`") }
    }
}

#[async_trait]
impl Cloud for LocalCloud {
    fn account(&self) -> &AccountName {
        &self.account
    }

    fn regions(&self) -> &[RegionName] {
        &self.regions
    }

    async fn inventory(&self, region: &RegionName) -> Result<Inventory, CloudError> {
        let Response::Inventory(inventory) = self.ask(&Request::Inventory { region: region.clone() }, CALL_MAX).await?
        else {
            return Err(self.garbled("Inventory"));
        };
        Ok(inventory)
    }

    async fn images(&self, _region: &RegionName) -> Result<Vec<Image>, CloudError> {
        let Response::Images(images) = self.ask(&Request::Images, CALL_MAX).await? else {
            return Err(self.garbled("Images"));
        };
        Ok(images)
    }

    async fn traffic(
        &self,
        region: &RegionName,
        cluster: &ClusterName,
    ) -> Result<BTreeMap<GroupName, Traffic>, CloudError> {
        let request = Request::Traffic { region: region.clone(), cluster: cluster.clone() };
        let Response::Traffic(traffic) = self.ask(&request, CALL_MAX).await? else {
            return Err(self.garbled("Traffic"));
        };
        Ok(traffic)
    }

    async fn perform(&self, intent: &Intent, permit: Permit<'_>, now: Timestamp) -> Outcome {
        if let Err(e) = permit.check(&intent.step, now) {
            return Outcome::refused(e.to_string());
        }
        let request = Request::Perform { intent: Box::new(intent.clone()) };
        match self.call(&request, STEP_MAX).await {
            Ok(response) => {
                // Every refusal of a step is an outcome; anything else says that the request was not understood, and
                // whether part of it was is not ours to guess.
                let odd = || Outcome::unknown(self.garbled("Outcome").to_string());
                if let Response::Outcome(outcome) = response { outcome } else { odd() }
            }
            Err(NoAnswer::NotSent(e)) => {
                let socket = self.socket.display();
                Outcome::refused(format!("could not reach the cloud at `{socket}`; nothing was sent: {e}"))
            }
            Err(NoAnswer::Lost(e)) => Outcome::unknown(format!("it was sent, and no answer came: {e}")),
        }
    }

    async fn resolve(&self, intent: &Intent) -> Result<Outcome, CloudError> {
        let Response::Outcome(outcome) =
            self.ask(&Request::Resolve { intent: Box::new(intent.clone()) }, CALL_MAX).await?
        else {
            return Err(self.garbled("Outcome"));
        };
        Ok(outcome)
    }

    async fn mark(&self, intent: &Intent, mark: &str) -> Result<(), CloudError> {
        let request = Request::Mark { group: intent.step.group().clone(), mark: mark.to_owned() };
        match self.ask(&request, CALL_MAX).await {
            Ok(response) => {
                if response == Response::Ok {
                    Ok(())
                } else {
                    Err(self.garbled("Ok"))
                }
            }
            // A destroyed group is gone with its tags.
            Err(CloudError::Refused { .. }) if matches!(intent.step, Step::Destroy { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn import_image(&self, path: &Path) -> Result<Image, CloudError> {
        // The cloud process has another working directory.
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let Response::Image(image) = self.ask(&Request::ImportImage { path }, IMPORT_MAX).await? else {
            return Err(self.garbled("Image"));
        };
        Ok(image)
    }
}
