//! What an account of AWS is told about itself.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use troop_policies::{AccountName, RegionName};

/// Reads the wall clock. Handed in, since nothing here reads it.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// How long things may take and how soon they are tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Reaching a host that is there takes less than this.
    pub connect: Duration,
    /// Between two bytes of an answer.
    pub read: Duration,
    /// One attempt; a page of 1,000 instances is the longest answer there is.
    pub attempt: Duration,
    /// A read with all its attempts and turns.
    pub whole_read: Duration,
    /// The longest pause before the first repetition; each further one may be twice as long.
    pub backoff: Duration,
    /// Between two looks at what was changed.
    pub look_every: Duration,
    /// Between the two looks by which a changed setting is believed: the first may be at a copy that has it, the second at
    /// one that has not.
    pub settle: Duration,
    /// How long a snapshot may be handed out again. A poll of 500 groups takes 5 to 10 calls of a bucket that all tools of the
    /// account share; what this client changes makes it read anew at once.
    pub snapshot_reused_for: Duration,
    /// How many times the usual pace calls are made: 1 for AWS, more for a test's server, which nobody shares.
    pub pace: u32,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(3),
            read: Duration::from_secs(10),
            attempt: Duration::from_secs(30),
            whole_read: Duration::from_secs(60),
            backoff: Duration::from_secs(1),
            look_every: Duration::from_secs(1),
            settle: Duration::from_secs(2),
            snapshot_reused_for: Duration::from_secs(15),
            pace: 1,
        }
    }
}

/// One account.
#[derive(Clone)]
pub struct AwsConfig {
    /// Troop's name for the account, as policies and the ledger use it.
    pub account: AccountName,
    /// A role to assume, where the account is not the credentials' own.
    pub role_arn: Option<String>,
    pub regions: BTreeMap<RegionName, RegionConfig>,
    pub credentials: Credentials,
    /// Where to send every request instead of AWS: a test's server.
    pub endpoint_url: Option<String>,
    pub patience: Patience,
    /// Feeds the jitter of pauses.
    pub seed: u64,
    pub clock: Clock,
}

impl fmt::Debug for AwsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { account, role_arn, regions, endpoint_url, .. } = self;
        f.debug_struct("AwsConfig")
            .field("account", account)
            .field("role_arn", role_arn)
            .field("regions", regions)
            .field("endpoint_url", endpoint_url)
            .finish_non_exhaustive()
    }
}

/// Who Troop is.
#[derive(Clone)]
pub enum Credentials {
    /// As every AWS tool finds them: environment, profile, the instance's role.
    Chain,
    /// These, which never expire.
    Static { key_id: String, secret: String },
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Chain => f.write_str("Chain"),
            Self::Static { key_id, .. } => write!(f, "Static({key_id})"),
        }
    }
}

/// One region of an account.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegionConfig {
    /// ARNs of load balancers whose listeners Troop may route on. Those that already send to a group of Troop's are found
    /// by themselves; a cluster's first group needs its balancer here.
    #[serde(default)]
    pub load_balancers: Vec<String>,
    /// From what a cluster's first group is made. Later ones are made as the one before.
    #[serde(default)]
    pub first: Option<FirstGroup>,
}

/// The settings of a cluster's first group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FirstGroup {
    /// The id of the launch template whose default version is taken, with another image.
    pub launch_template: String,
    /// Ids of subnets; those in the group's zones are taken.
    pub subnets: Vec<String>,
    /// The port on which instances answer.
    pub port: u16,
    /// The path that the balancer asks for.
    pub health_path: String,
    /// How often the balancer asks, in seconds (5 to 300).
    #[serde(default = "ten")]
    pub health_every_s: u16,
    /// How long a new instance may take before its health counts, in seconds.
    #[serde(default = "three_hundred")]
    pub grace_s: u32,
}

fn ten() -> u16 {
    10
}

fn three_hundred() -> u32 {
    300
}
