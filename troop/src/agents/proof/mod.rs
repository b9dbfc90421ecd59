//! Whether an agent of another machine is the one of the instance that it names.
//!
//! Its token says that somebody of this site has sent it. That its instance is one of ours and runs is the cloud's word, from the picture that the
//! control plane has of it anyway. That it is on that very instance is shown by what EC2 signs about it, where the site names the certificates
//! of the region, together with a key of the agent's own: with it the agent signs a nonce of this connection, and the key is kept from its first
//! use. Every doubt turns an agent away; it dials again.

mod keys;
mod signature;
#[cfg(test)]
pub(super) mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use ring::signature::{ED25519, UnparsedPublicKey};
use serde::Deserialize;
use troop_agent_core::protocol::{Ec2Identity, Identity, statement};
use troop_policies::inventory::{Inventory, Lifecycle};
use troop_policies::{AccountName, InstanceId, RegionName, chain};

use super::HostName;
pub use keys::{Keys, KeysError};
pub use signature::{CertificatesError, SignatureError, read_certificates, verify};

/// By how much the document's time of launch may differ from the cloud's. They are of one start, and are written by two services within
/// seconds; an instance that was stopped and started between has another.
const LAUNCH_APART_MAX: SignedDuration = SignedDuration::from_mins(5);

/// What the control plane's picture of its clouds says of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sighting {
    Running {
        launched_at: Timestamp,
    },
    /// Nobody of that name runs.
    Gone,
    /// The picture is missing or too old to say so, and why.
    Unknown(String),
}

impl Sighting {
    /// What a picture says. Whether it is fresh enough is for whoever has it.
    pub fn of(inventory: &Inventory, instance: &InstanceId) -> Self {
        let members = inventory.groups.values().flat_map(|group| group.members.values());
        match members.into_iter().find(|member| member.id == *instance) {
            None => Self::Gone,
            Some(member) => match member.lifecycle {
                Lifecycle::Pending | Lifecycle::InService | Lifecycle::Standby => {
                    Self::Running { launched_at: member.launched_at }
                }
                Lifecycle::Terminating => Self::Gone,
            },
        }
    }
}

/// Whoever has a picture of the clouds.
#[async_trait]
pub trait Sightings: Send + Sync + fmt::Debug {
    /// The number that the cloud knows an account of the site by, twelve digits at AWS. `None`: nobody knows it yet.
    async fn account_number(&self, account: &AccountName) -> Option<String>;

    /// What is known of an instance. Asks the cloud nothing of its own.
    async fn instance(&self, account: &AccountName, region: &RegionName, instance: &InstanceId) -> Sighting;
}

/// By what an agent is known to be the one of its instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Standing {
    /// Its token alone: one of this machine, or of a site without accounts.
    #[default]
    Token,
    /// Its token, and that its instance runs: anybody who has the token could speak for it.
    Seen,
    /// EC2's signature, and a key of its own.
    Proven,
}

impl Standing {
    /// As `troop agents` shows it.
    pub fn in_words(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Seen => "token, instance runs",
            Self::Proven => "proven by EC2",
        }
    }
}

/// Why an agent is not received. It is told so, and shows it in its log.
#[derive(Debug, thiserror::Error)]
pub enum NotProven {
    #[error("this control plane has no picture of a cloud in which `{0}` could be")]
    NoPicture(HostName),
    #[error("whether `{host}` runs cannot be seen at the moment: {why}")]
    Unseen { host: HostName, why: String },
    #[error("no instance `{0}` runs")]
    Gone(HostName),
    #[error("`{0}` must show that it is that instance: its region has `identity_certs` in the site file")]
    Nothing(HostName),
    #[error("`{0}` shows something that this release does not know")]
    Unknown(HostName),
    #[error("which number the account of `{0}` has is not known yet")]
    NoNumber(HostName),
    #[error("the certificates for `{region}` cannot be used")]
    Certificates {
        region: RegionName,
        #[source]
        source: CertificatesError,
    },
    #[error("what `{0}` shows is no instance identity document")]
    Document(HostName, #[source] serde_json::Error),
    #[error("the document that `{host}` shows cannot be believed: its signature {}", chain(why))]
    Signature { host: HostName, why: SignatureError },
    #[error("the document that `{host}` shows is of {what} `{found}`")]
    Other { host: HostName, what: &'static str, found: String },
    #[error("`{host}` was launched at {launched_at}, and its document says {pending_at}: it is of an earlier start")]
    OtherStart { host: HostName, launched_at: Timestamp, pending_at: Timestamp },
    #[error("`{0}` does not prove that it has the key that it shows")]
    NoPossession(HostName),
    #[error(
        "another agent has spoken for `{0}` before, with another key; `troop agents --forget {0}` lets a new one in"
    )]
    OtherKey(HostName),
    #[error(transparent)]
    Keys(#[from] KeysError),
}

/// What an agent says of itself, its token being good.
#[derive(Debug)]
pub(super) struct Claim<'a> {
    pub(super) host: &'a HostName,
    pub(super) identity: Option<&'a Identity>,
    /// What it was to sign.
    pub(super) nonce: &'a str,
}

/// See the module.
#[derive(Debug)]
pub struct Prover {
    /// By region, as the site file names them. Read with every claim: a certificate that was exchanged must not need a restart.
    certificates: BTreeMap<RegionName, PathBuf>,
    keys: Keys,
    sightings: Arc<dyn Sightings>,
}

/// What of the document is looked at: names as in the user guide, "Instance identity documents".
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    account_id: String,
    region: String,
    instance_id: String,
    pending_time: Timestamp,
}

impl Prover {
    pub fn new(certificates: BTreeMap<RegionName, PathBuf>, keys: Keys, sightings: Arc<dyn Sightings>) -> Self {
        Self { certificates, keys, sightings }
    }

    /// By what it is known.
    ///
    /// # Errors
    /// [`NotProven`].
    pub(super) async fn check(&self, claim: Claim<'_>, now: Timestamp) -> Result<Standing, NotProven> {
        let host = claim.host;
        let (account, region, instance) = host.parts().ok_or_else(|| NotProven::Gone(host.clone()))?;
        let launched_at = match self.sightings.instance(&account, &region, &instance).await {
            Sighting::Running { launched_at } => launched_at,
            Sighting::Gone => return Err(NotProven::Gone(host.clone())),
            Sighting::Unknown(why) => return Err(NotProven::Unseen { host: host.clone(), why }),
        };
        let Some(path) = self.certificates.get(&region) else { return Ok(Standing::Seen) };
        let shown = match claim.identity {
            Some(Identity::Ec2(shown)) => shown,
            Some(Identity::Unknown) => return Err(NotProven::Unknown(host.clone())),
            None => return Err(NotProven::Nothing(host.clone())),
        };
        let certificates =
            read_certificates(path).map_err(|source| NotProven::Certificates { region: region.clone(), source })?;
        verify(shown.document.as_bytes(), &shown.signature, &certificates, now)
            .map_err(|why| NotProven::Signature { host: host.clone(), why })?;
        // Only now it is worth reading.
        let document: Document =
            serde_json::from_str(&shown.document).map_err(|source| NotProven::Document(host.clone(), source))?;
        let number = self.sightings.account_number(&account).await;
        let number = number.ok_or_else(|| NotProven::NoNumber(host.clone()))?;
        let said = [
            ("account", document.account_id, number.as_str()),
            ("region", document.region, region.as_str()),
            ("instance", document.instance_id, instance.as_str()),
        ];
        if let Some((what, found, _)) = said.into_iter().find(|(_, found, claimed)| found != claimed) {
            return Err(NotProven::Other { host: host.clone(), what, found });
        }
        if document.pending_time.duration_since(launched_at).abs() > LAUNCH_APART_MAX {
            let pending_at = document.pending_time;
            return Err(NotProven::OtherStart { host: host.clone(), launched_at, pending_at });
        }
        possesses(shown, host, claim.nonce)?;
        if self.keys.keep(host, &shown.key, now)? != shown.key {
            return Err(NotProven::OtherKey(host.clone()));
        }
        Ok(Standing::Proven)
    }
}

/// Whether the agent has the key that it shows.
fn possesses(shown: &Ec2Identity, host: &HostName, nonce: &str) -> Result<(), NotProven> {
    let statement = statement(nonce, host.as_str(), &shown.document);
    let [key, proof] = [&shown.key, &shown.proof].map(|text| hex::decode(text).unwrap_or_default());
    // One way to write a key: else the same one would be another's.
    let is_plain = shown.key == hex::encode(&key);
    let holds = is_plain && UnparsedPublicKey::new(&ED25519, key).verify(&statement, &proof).is_ok();
    if holds { Ok(()) } else { Err(NotProven::NoPossession(host.clone())) }
}

/// The regions of these accounts whose agents cannot prove which instance they are on, for want of certificates: what a doctor says.
pub fn unproven<'a>(
    accounts: impl IntoIterator<Item = &'a troop_policies::policy::Account>,
    certificates: &BTreeMap<RegionName, PathBuf>,
) -> Vec<String> {
    let lacks = |region: &&RegionName| !certificates.contains_key(*region);
    accounts
        .into_iter()
        .flat_map(|account| {
            account.regions.keys().filter(lacks).map(move |region| format!("{}/{region}", account.name))
        })
        .collect()
}
