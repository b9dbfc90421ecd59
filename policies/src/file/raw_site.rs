//! The site file `troop.toml` as it is written; see [`super::raw`] for how these types are used.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::scalar::{DurationText, Sp};

/// The site file `troop.toml`: what holds for every team. Each key but `site` has a default.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Troop site file")]
pub(crate) struct RawSite {
    /// The version of this file's form: 1, also when absent.
    #[schemars(range(min = 1, max = 1))]
    #[expect(dead_code, reason = "its bounds say all that it means")]
    pub format: Option<Sp<u32>>,
    /// The site's name, shown in plans and reports.
    #[schemars(required, length(max = 128))]
    pub site: Option<Sp<String>>,
    /// `true` (the default): the whole site plans and explains and changes nothing; pushes are refused too.
    pub leashed: Option<Sp<bool>>,
    /// The folder of the policy files (`policies` unless said otherwise), relative to this file.
    #[schemars(length(min = 1))]
    pub policies: Option<Sp<String>>,
    /// The folder in which Troop keeps its state, relative to this file; `--state` and TROOP_STATE come first.
    #[schemars(length(min = 1))]
    pub state: Option<Sp<String>>,
    /// Bounds over all teams.
    pub caps: Option<Sp<RawSiteCaps>>,
    /// The service registry.
    pub registry: Option<Sp<RawRegistry>>,
    /// AWS, over all accounts.
    pub aws: Option<Sp<RawAws>>,
    /// The cloud accounts. None: the embedded cloud.
    #[serde(default)]
    #[schemars(length(max = 200))]
    pub accounts: Vec<Sp<RawAccount>>,
    /// Where the acts are recorded.
    pub ledger: Option<Sp<RawLedger>>,
    /// Addresses on which Troop is reached.
    pub listeners: Option<Sp<RawListeners>>,
    /// Where agents on other machines dial in, over TLS.
    pub agents: Option<Sp<RawAgents>>,
    /// Signals that hold the whole site.
    pub signals: Option<Sp<RawSignals>>,
    /// Where teams are told, by the name that a policy's `notify` uses.
    #[serde(default)]
    #[schemars(extend("maxProperties" = 100))]
    pub channels: BTreeMap<Sp<String>, Sp<RawChannel>>,
}

/// Bounds over all teams.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawSiteCaps {
    /// Kills a day over all teams, at most.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub kills_per_day: Option<Sp<u32>>,
    /// Acts of all monkeys within an hour over all teams, at most. Needed on AWS before anything is harmed.
    #[schemars(range(min = 1, max = 100_000))]
    pub acts_per_hour: Option<Sp<u32>>,
    /// Acts in one account that have not healed yet, over all teams. Needed on AWS before anything is harmed.
    #[schemars(range(min = 1, max = 100_000))]
    pub unhealed_per_account: Option<Sp<u32>>,
    /// Acts in one zone that have not healed yet, over all teams (1 unless said otherwise).
    #[schemars(range(min = 1, max = 100_000))]
    pub unhealed_per_zone: Option<Sp<u32>>,
}

/// The service registry.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawRegistry {
    /// How long an entry lives without a heartbeat (`90s`; on the embedded cloud `3s`).
    pub lease: Option<Sp<DurationText>>,
    /// The base address of the registry that the accounts' instances use, such as `http://eureka.internal:8761`: a `troop registry`.
    /// Without one none counts, and an image that requires it is never ready.
    pub url: Option<Sp<String>>,
}

/// AWS, over all accounts.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawAws {
    /// Where every request goes instead of AWS, such as `http://127.0.0.1:5000`: a server that stands in for it.
    pub endpoint: Option<Sp<String>>,
    /// By region, a PEM file with the certificates by which EC2 signs instance identity documents there, relative to this file.
    #[serde(default)]
    #[schemars(extend("maxProperties" = 100))]
    pub identity_certs: BTreeMap<Sp<String>, Sp<String>>,
    /// The tags of a group that say by which name it is known, where its own name is no `app-stack-detail-v000`.
    pub name_tags: Option<Sp<RawNameTags>>,
}

/// The keys of the tags that make up a group's name.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawNameTags {
    /// The tag that holds the application's name; a group without it is known by its own name, as ever.
    #[schemars(required, length(min = 1, max = 128))]
    pub app: Option<Sp<String>>,
    /// The tag that holds the stack.
    #[schemars(length(min = 1, max = 128))]
    pub stack: Option<Sp<String>>,
    /// The tag that holds the detail.
    #[schemars(length(min = 1, max = 128))]
    pub detail: Option<Sp<String>>,
}

/// One account of a cloud.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawAccount {
    /// The name used in draw keys and exceptions, such as `prod`.
    #[schemars(required, length(max = 128))]
    pub name: Option<Sp<String>>,
    /// The role to assume, as an ARN; without it the credentials of the environment.
    pub role: Option<Sp<String>>,
    /// The regions that are looked at. One that is not named is never touched.
    #[schemars(required, length(min = 1, max = 100), extend("uniqueItems" = true, "examples" = [["us-east-1"]]))]
    pub regions: Option<Vec<Sp<String>>>,
    /// What a region has to be told, by the region's name.
    #[serde(default)]
    #[schemars(extend("maxProperties" = 100))]
    pub region: BTreeMap<Sp<String>, Sp<RawRegion>>,
}

/// What a region of an account has to be told.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawRegion {
    /// ARNs of load balancers on which Troop may route; those that already send to a group of Troop's are found by themselves.
    #[serde(default)]
    #[schemars(length(max = 200), extend("uniqueItems" = true))]
    pub load_balancers: Vec<Sp<String>>,
    /// From what a cluster's first group is made; later ones are made as the one before.
    pub first: Option<Sp<RawFirst>>,
}

/// The settings of a cluster's first group.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawFirst {
    /// The id of the launch template whose default version is taken, with another image.
    #[schemars(required, length(max = 128))]
    pub launch_template: Option<Sp<String>>,
    /// Ids of subnets; those in the group's zones are taken.
    #[schemars(required, length(min = 1, max = 100), extend("uniqueItems" = true))]
    pub subnets: Option<Vec<Sp<String>>>,
    /// The port on which instances answer.
    #[schemars(required, range(min = 1, max = 65_535))]
    pub port: Option<Sp<u16>>,
    /// The path that the balancer asks for.
    #[schemars(required, length(max = 1_024))]
    pub health_path: Option<Sp<String>>,
    /// How often the balancer asks (`10s`; from 5 to 300 s).
    pub health_every: Option<Sp<DurationText>>,
    /// How long a new instance may take before its health counts (`5m`).
    pub grace: Option<Sp<DurationText>>,
}

/// Where the acts are recorded.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawLedger {
    /// The SQLite file (in the state folder unless said otherwise), relative to this file.
    #[schemars(length(min = 1))]
    pub file: Option<Sp<String>>,
}

/// Addresses on which Troop is reached.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawListeners {
    /// The embedded cloud's balancer, on the loopback (`127.0.0.1:8080`, or a free port, unless said otherwise).
    pub balancer: Option<Sp<String>>,
}

/// Where agents on other machines dial in, over TLS.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawAgents {
    /// The address and port, such as `0.0.0.0:7443`.
    #[schemars(required)]
    pub listen: Option<Sp<String>>,
    /// A PEM file with the certificate that agents check, the issuers' after it, relative to this file.
    #[schemars(required, length(min = 1))]
    pub certificate_file: Option<Sp<String>>,
    /// A PEM file with the certificate's private key, relative to this file.
    #[schemars(required, length(min = 1))]
    pub key_file: Option<Sp<String>>,
}

/// Signals that hold the whole site.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawSignals {
    /// The base address of the site's Alertmanager, such as `https://alerts.example.com`.
    pub alertmanager: Option<Sp<String>>,
    /// A PEM file of certificates of authorities that are trusted for https beside this machine's own, relative to this file.
    #[schemars(length(min = 1))]
    pub ca_file: Option<Sp<String>>,
    /// Signals that hold everything while they fire or cannot be asked: `https://HOST/PATH` or `alertmanager:KEY=VALUE,…`.
    #[serde(default)]
    #[schemars(length(max = 20), extend("uniqueItems" = true))]
    pub hold_while: Vec<Sp<String>>,
}

/// Where teams are told.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawChannel {
    /// What kind of channel it is.
    #[schemars(required)]
    pub kind: Option<Sp<RawChannelKind>>,
    /// A file that holds the address to post to, which is a secret, so that this file can be shown to anybody.
    #[schemars(required, length(min = 1))]
    pub url_file: Option<Sp<String>>,
    /// Required of a `webhook`: a file that holds the secret by which it is signed, `whsec_…` of the Standard Webhooks specification.
    #[schemars(length(min = 1))]
    pub secret_file: Option<Sp<String>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RawChannelKind {
    Slack,
    Webhook,
}
