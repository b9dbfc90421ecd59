//! What an account of AWS is told about itself.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
pub use troop_policies::policy::{FirstGroup, NameTags, RegionSettings as RegionConfig};
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
    /// How long a judgment by CloudWatch takes at least: its counts are sums of whole minutes, taken three minutes late.
    pub soak_min: Duration,
    /// How many times the usual pace calls are made: 1 for AWS, more for a test's server, which nobody shares.
    pub pace: u32,
}

impl Patience {
    /// For a server on this machine that stands in for AWS: nobody shares its buckets, and it answers from one copy.
    #[must_use]
    pub fn with_a_stand_in() -> Self {
        Self {
            backoff: Duration::from_millis(100),
            look_every: Duration::from_millis(200),
            settle: Duration::from_millis(100),
            snapshot_reused_for: Duration::from_secs(1),
            soak_min: Duration::ZERO,
            pace: 50,
            ..Self::default()
        }
    }
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
            soak_min: Duration::from_secs(600),
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
    /// The tags by which groups are known whose own names say nothing.
    pub name_tags: Option<NameTags>,
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
