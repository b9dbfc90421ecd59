//! The agents on the hosts, as the control plane meets them: who is connected, what they are told, what they tell.
//!
//! [`Hub`] is the real one, to which agents dial in; the control plane knows only [`Agents`], so that its tests need no host.

mod hub;
pub mod identity;
pub mod peers;
pub mod proof;
mod server;
#[cfg(test)]
mod tests;
pub mod token;

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use troop_agent_core::protocol::{Answered, Capabilities, Grant, Story};
use troop_policies::{AccountName, InstanceId, RegionName};

pub use hub::Hub;
pub use proof::Standing;
pub use server::{Reception, ServerError};

/// How long a lease lives unless it is renewed: what a host may go on hurting when nobody can tell it to stop.
pub const LEASE: Duration = Duration::from_secs(5);
/// How often it is renewed: two renewals may be lost.
pub const RENEW_EVERY: Duration = Duration::from_millis(1_667);

/// A host, as its agent names it: `account/region/instance`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostName(String);

impl HostName {
    pub fn of(account: &AccountName, region: &RegionName, instance: &InstanceId) -> Self {
        Self(format!("{account}/{region}/{instance}"))
    }

    /// As an agent says it; `None` for what cannot be one.
    pub fn parse(text: &str) -> Option<Self> {
        parts(text).map(|_| Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The instance's own id.
    pub fn instance(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }

    /// `account/region`: where the instance is.
    pub fn place(&self) -> &str {
        self.0.rsplit_once('/').map_or("", |(place, _)| place)
    }

    /// Account, region and instance. Never `None`: a name was checked when it was made.
    pub fn parts(&self) -> Option<(AccountName, RegionName, InstanceId)> {
        parts(&self.0)
    }
}

fn parts(text: &str) -> Option<(AccountName, RegionName, InstanceId)> {
    let mut parts = text.split('/');
    let (account, region, instance) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    Some((AccountName::new(account).ok()?, RegionName::new(region).ok()?, InstanceId::new(instance).ok()?))
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An agent that is connected, or was.
#[derive(Debug, Clone, PartialEq)]
pub struct AgentSeen {
    pub host: HostName,
    pub release: String,
    pub capabilities: Capabilities,
    /// By what it is known to be that host's.
    pub standing: Standing,
    /// Since when it is connected; `None`: it is not.
    pub since: Option<Timestamp>,
    /// Leases whose fault is not known to be gone.
    pub live: Vec<String>,
}

/// What a host is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Its number is set on the way.
    Grant(Box<Grant>),
    Renew {
        lease: String,
        peers: Option<Vec<String>>,
    },
    End {
        lease: String,
    },
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// Nothing was sent.
    #[error("no agent of `{0}` is connected")]
    NotConnected(HostName),
    /// It may have arrived.
    #[error("the agent of `{0}` did not answer")]
    Silent(HostName),
}

/// Whoever reaches the agents.
#[async_trait]
pub trait Agents: Send + Sync + fmt::Debug {
    fn seen(&self) -> Vec<AgentSeen>;

    /// Tells a host something, and waits for its answer.
    ///
    /// # Errors
    /// [`NoAnswer`].
    async fn order(&self, host: &HostName, order: Order) -> Result<Answered, NoAnswer>;

    /// What is known of a lease.
    fn story(&self, host: &HostName, lease: &str) -> Option<Story>;

    /// Returns when a story has changed since the last call, or after `patience`.
    async fn changed(&self, patience: Duration);

    /// Ends every lease on every host, now and as long as it stays halted; or lets new ones begin.
    fn set_halted(&self, halted: bool);
}

/// No host has an agent.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoAgents;

#[async_trait]
impl Agents for NoAgents {
    fn seen(&self) -> Vec<AgentSeen> {
        Vec::new()
    }

    async fn order(&self, host: &HostName, _: Order) -> Result<Answered, NoAnswer> {
        Err(NoAnswer::NotConnected(host.clone()))
    }

    fn story(&self, _: &HostName, _: &str) -> Option<Story> {
        None
    }

    async fn changed(&self, patience: Duration) {
        tokio::time::sleep(patience).await;
    }

    fn set_halted(&self, _: bool) {}
}
