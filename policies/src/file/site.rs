//! From the raw site file to [`Site`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use toml::de::DeTable;

use super::app::hold_while;
use super::diagnostic::{Findings, shown};
use super::policy::{bounded, named};
use super::raw_site::{
    RawAccount, RawAgents, RawAws, RawChannel, RawChannelKind, RawFirst, RawNameTags, RawRegion, RawSite,
};
use super::scalar::{DurationText, Sp};
use crate::hold::Address;
use crate::ids::{AccountName, BadId, RegionName, TeamName};
use crate::policy::{
    Account, AgentsListener, Aws, Channel, ChannelKind, EMBEDDED_LEASE, FirstGroup, NameTags, RegionSettings, Site,
    SiteCaps,
};

/// Eureka's own lease.
const LEASE: Duration = Duration::from_secs(90);
/// A heartbeat a second, and two that may be lost.
const LEASE_MIN: Duration = Duration::from_secs(3);
const LEASE_MAX: Duration = Duration::from_secs(3600);

/// How often a target group's health is asked for; from 5 to 300 s is what AWS takes.
const HEALTH_EVERY: Duration = Duration::from_secs(10);
const HEALTH_EVERY_MIN: Duration = Duration::from_secs(5);
const HEALTH_EVERY_MAX: Duration = Duration::from_secs(300);
/// What the console of Auto Scaling sets where nothing is said.
const GRACE: Duration = Duration::from_secs(300);
const GRACE_MAX: Duration = Duration::from_secs(7200);

/// Tables that are checked and kept, and that this build does not act on: never silence.
const NOT_YET: [(&str, &str); 1] =
    [("ledger", "this build keeps its ledger in the state folder: this table is not used")];

pub(crate) fn site(raw: &RawSite, written: &DeTable<'_>, out: &mut Findings<'_>) -> Option<Site> {
    for (key, message) in NOT_YET {
        if let Some((key, _)) = written.get_key_value(key) {
            out.warning(key.span(), message, Some("remove it, or wait for the next build".to_owned()));
        }
    }
    let name = named(raw.site.as_ref(), |text| plain("site name", text), out);
    let standard = SiteCaps::default();
    let caps = raw.caps.as_ref().map(Sp::get);
    let accounts = accounts(&raw.accounts, out);
    // As the demo: its sample apps renew every second. A real fleet keeps Eureka's lease.
    let lease = if raw.accounts.is_empty() { EMBEDDED_LEASE } else { LEASE };
    let written_lease = raw.registry.as_ref().and_then(|r| r.get().lease.as_ref());
    let lease = written_lease.map_or(Some(lease), |text| bounded(text, "lease", LEASE_MIN, LEASE_MAX, out));
    let url = raw.registry.as_ref().and_then(|r| r.get().url.as_ref());
    let registry_url = url.and_then(|text| address(text, "url = \"http://eureka.internal:8761\"", out));
    let endpoint = raw.aws.as_ref().and_then(|aws| aws.get().endpoint.as_ref());
    let endpoint = endpoint.and_then(|text| address(text, "endpoint = \"http://127.0.0.1:5000\"", out));
    let balancer = raw.listeners.as_ref().and_then(|l| l.get().balancer.as_ref());
    let balancer = balancer.and_then(|text| loopback(text, out));
    let signals = raw.signals.as_ref().map_or(&[][..], |s| s.get().hold_while.as_slice());
    signals.iter().for_each(|hold| hold_while(hold, out));
    let alertmanager = raw.signals.as_ref().and_then(|s| s.get().alertmanager.as_ref());
    let alertmanager =
        alertmanager.and_then(|text| address(text, "alertmanager = \"https://alerts.example.com\"", out));
    let agents = raw.agents.as_ref().and_then(|a| agents(a.get(), out));
    let identity_certs = raw.aws.as_ref().map(|aws| identity_certs(aws.get(), out)).unwrap_or_default();
    let name_tags = raw.aws.as_ref().and_then(|aws| aws.get().name_tags.as_ref()).and_then(|t| name_tags(t.get(), out));
    let channels = channels(raw, out);
    let path = |text: &Option<Sp<String>>| text.as_ref().map(|t| PathBuf::from(t.get()));
    Some(Site {
        name: name?,
        leashed: raw.leashed.as_ref().is_none_or(|l| *l.get()),
        policies: path(&raw.policies).unwrap_or_else(|| PathBuf::from("policies")),
        state: path(&raw.state),
        caps: SiteCaps {
            kills_per_day: caps.and_then(|c| c.kills_per_day.as_ref()).map(|n| *n.get()),
            acts_per_hour: caps.and_then(|c| c.acts_per_hour.as_ref()).map(|n| *n.get()),
            unhealed_per_account: caps.and_then(|c| c.unhealed_per_account.as_ref()).map(|n| *n.get()),
            unhealed_per_zone: caps
                .and_then(|c| c.unhealed_per_zone.as_ref())
                .map_or(standard.unhealed_per_zone, |n| *n.get()),
        },
        registry_lease: lease?,
        registry_url,
        accounts,
        aws: Aws { endpoint, identity_certs, name_tags },
        ledger: raw.ledger.as_ref().and_then(|l| path(&l.get().file)),
        balancer,
        agents,
        alertmanager,
        signals_ca_file: raw.signals.as_ref().and_then(|s| path(&s.get().ca_file)),
        hold_while: signals.iter().map(|h| h.get().clone()).collect(),
        channels,
    })
}

/// A name of the same letters as a team's, that is no team's.
fn plain(kind: &'static str, text: String) -> Result<String, BadId> {
    TeamName::new(text).map(String::from).map_err(|bad| BadId { kind, ..bad })
}

/// An address to ask.
fn address(text: &Sp<String>, example: &str, out: &mut Findings<'_>) -> Option<String> {
    if Address::parse(text.get()).is_some() {
        return Some(text.get().clone());
    }
    let hint = format!("for example {example}");
    out.error(text.span(), format!("`{}` is no address", shown(text.get())), Some(hint));
    None
}

fn accounts(raw: &[Sp<RawAccount>], out: &mut Findings<'_>) -> Vec<Account> {
    let mut accounts: Vec<Account> = Vec::new();
    for account in raw {
        let fields = account.get();
        let name = named(fields.name.as_ref(), AccountName::new, out);
        let regions = fields.regions.iter().flatten().filter_map(|r| named(Some(r), RegionName::new, out));
        let mut regions: BTreeMap<_, _> =
            regions.collect::<Vec<_>>().into_iter().map(|region| (region, RegionSettings::default())).collect();
        for (key, settings) in &fields.region {
            let Some(region) = named(Some(key), RegionName::new, out) else { continue };
            // Where the list is bad, that is told already.
            let Some(known) = regions.get_mut(&region) else {
                if regions.is_empty() {
                    continue;
                }
                let hint = format!("add it to `regions`, or remove this table: \"{region}\" is never touched");
                out.error(key.span(), format!("region `{region}` is not among the account's `regions`"), Some(hint));
                continue;
            };
            *known = region_settings(settings.get(), out);
        }
        if let Some(role) = fields.role.as_ref().filter(|r| !is_role(r.get())) {
            let hint = "write an ARN, such as \"arn:aws:iam::123456789012:role/troop-read\"".to_owned();
            out.error(role.span(), format!("`{}` is no role", shown(role.get())), Some(hint));
        }
        let Some(name) = name else { continue };
        if accounts.iter().any(|a| a.name == name) {
            let hint = "draw keys begin with the account's name: two accounts need two names".to_owned();
            let span = fields.name.as_ref().map_or(0..0, Sp::span);
            out.error(span, format!("account `{name}` stands twice"), Some(hint));
            continue;
        }
        accounts.push(Account { name, role: fields.role.as_ref().map(|r| r.get().clone()), regions });
    }
    accounts
}

fn region_settings(raw: &RawRegion, out: &mut Findings<'_>) -> RegionSettings {
    for arn in raw.load_balancers.iter().filter(|arn| !is_balancer(arn.get())) {
        let hint = "write the ARN of an application load balancer, such as \
                    \"arn:aws:elasticloadbalancing:us-east-1:123456789012:loadbalancer/app/web/50dc6c495c0c9188\"";
        out.error(arn.span(), format!("`{}` is no load balancer", shown(arn.get())), Some(hint.to_owned()));
    }
    RegionSettings {
        load_balancers: raw.load_balancers.iter().map(|arn| arn.get().clone()).collect(),
        first: raw.first.as_ref().and_then(|first| first_group(first.get(), out)),
    }
}

/// A missing key is told by the schema.
fn first_group(raw: &RawFirst, out: &mut Findings<'_>) -> Option<FirstGroup> {
    let mut has_prefix = |text: &Sp<String>, prefix: &str, kind: &str| {
        if !text.get().starts_with(prefix) {
            let hint = format!("it begins with `{prefix}`");
            out.error(text.span(), format!("`{}` is no {kind}", shown(text.get())), Some(hint));
        }
    };
    raw.launch_template.iter().for_each(|id| has_prefix(id, "lt-", "launch template's id"));
    raw.subnets.iter().flatten().for_each(|id| has_prefix(id, "subnet-", "subnet's id"));
    raw.health_path.iter().for_each(|path| has_prefix(path, "/", "path"));
    let seconds = |text: &Option<Sp<DurationText>>, key, usual, min, max, out: &mut Findings<'_>| match text {
        None => Some(usual),
        Some(text) => bounded(text, key, min, max, out),
    };
    let every = seconds(&raw.health_every, "health_every", HEALTH_EVERY, HEALTH_EVERY_MIN, HEALTH_EVERY_MAX, out)?;
    let grace = seconds(&raw.grace, "grace", GRACE, Duration::ZERO, GRACE_MAX, out)?;
    Some(FirstGroup {
        launch_template: raw.launch_template.as_ref()?.get().clone(),
        subnets: raw.subnets.iter().flatten().map(|id| id.get().clone()).collect(),
        port: *raw.port.as_ref()?.get(),
        health_path: raw.health_path.as_ref()?.get().clone(),
        health_every_s: u16::try_from(every.as_secs()).ok()?,
        grace_s: u32::try_from(grace.as_secs()).ok()?,
    })
}

fn is_balancer(text: &str) -> bool {
    text.starts_with("arn:") && text.contains(":loadbalancer/app/") && !text.contains(char::is_whitespace)
}

fn is_role(text: &str) -> bool {
    text.starts_with("arn:") && text.contains(":role/") && !text.contains(char::is_whitespace)
}

/// The balancer is opened on the loopback alone: the embedded cloud is nobody else's business.
fn loopback(text: &Sp<String>, out: &mut Findings<'_>) -> Option<SocketAddr> {
    let address = text.get().parse::<SocketAddr>().ok();
    if let Some(address) = address.filter(|a| a.ip().is_loopback()) {
        return Some(address);
    }
    let message = match address {
        Some(_) => "the embedded cloud listens on the loopback only".to_owned(),
        None => format!("`{}` is no address with a port", shown(text.get())),
    };
    out.error(text.span(), message, Some("for example balancer = \"127.0.0.1:8080\"".to_owned()));
    None
}

/// A missing key is told by the schema.
fn agents(raw: &RawAgents, out: &mut Findings<'_>) -> Option<AgentsListener> {
    let listen = raw.listen.as_ref()?;
    let Ok(address) = listen.get().parse::<SocketAddr>() else {
        let hint = "for example listen = \"0.0.0.0:7443\"".to_owned();
        out.error(listen.span(), format!("`{}` is no address with a port", shown(listen.get())), Some(hint));
        return None;
    };
    let path = |text: &Option<Sp<String>>| text.as_ref().map(|t| PathBuf::from(t.get()));
    Some(AgentsListener { address, certificate_file: path(&raw.certificate_file)?, key_file: path(&raw.key_file)? })
}

fn identity_certs(raw: &RawAws, out: &mut Findings<'_>) -> BTreeMap<RegionName, PathBuf> {
    let mut files = BTreeMap::new();
    for (region, file) in &raw.identity_certs {
        if let Some(region) = named(Some(region), RegionName::new, out) {
            files.insert(region, PathBuf::from(file.get()));
        }
    }
    files
}

/// A missing key is told by the schema.
fn name_tags(raw: &RawNameTags, out: &mut Findings<'_>) -> Option<NameTags> {
    let all = [&raw.app, &raw.stack, &raw.detail];
    let keys: Vec<&Sp<String>> = all.into_iter().flatten().collect();
    for (at, key) in keys.iter().enumerate() {
        if keys[..at].iter().any(|other| other.get() == key.get()) {
            let hint = "each part of the name has a tag of its own; leave out the part that has none".to_owned();
            out.error(key.span(), format!("the tag `{}` stands twice", shown(key.get())), Some(hint));
        }
    }
    let text = |key: &Option<Sp<String>>| key.as_ref().map(|key| key.get().clone());
    Some(NameTags { app: text(&raw.app)?, stack: text(&raw.stack), detail: text(&raw.detail) })
}

fn channels(raw: &RawSite, out: &mut Findings<'_>) -> BTreeMap<String, Channel> {
    let mut channels = BTreeMap::new();
    for (key, channel) in &raw.channels {
        let Some(name) = named(Some(key), |text| plain("channel name", text), out) else { continue };
        let Some(kind) = channel_kind(&name, key, channel.get(), out) else { continue };
        let Some(url_file) = channel.get().url_file.as_ref() else { continue };
        channels.insert(name, Channel { kind, url_file: PathBuf::from(url_file.get()) });
    }
    channels
}

fn channel_kind(name: &str, key: &Sp<String>, raw: &RawChannel, out: &mut Findings<'_>) -> Option<ChannelKind> {
    match (raw.kind.as_ref()?.get(), &raw.secret_file) {
        (RawChannelKind::Slack, None) => Some(ChannelKind::Slack),
        (RawChannelKind::Slack, Some(secret)) => {
            let hint = "remove it; Slack tells by the address alone who may post".to_owned();
            out.error(secret.span(), "a channel of kind \"slack\" is not signed", Some(hint));
            None
        }
        (RawChannelKind::Webhook, Some(secret)) => {
            Some(ChannelKind::Webhook { secret_file: PathBuf::from(secret.get()) })
        }
        (RawChannelKind::Webhook, None) => {
            let hint = "add secret_file: a file with `whsec_` and 24 to 64 random bytes in base64; without a signature anybody could \
                        forge what it tells";
            let message = format!("`secret_file` is missing: channel `{name}` is a webhook");
            out.error(key.span(), message, Some(hint.to_owned()));
            None
        }
    }
}
