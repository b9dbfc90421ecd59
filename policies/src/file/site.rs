//! From the raw site file to [`Site`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use toml::de::DeTable;

use super::app::hold_while;
use super::diagnostic::{Findings, shown};
use super::policy::{bounded, named};
use super::raw_site::{RawAccount, RawAgents, RawAws, RawChannel, RawChannelKind, RawSite};
use super::scalar::Sp;
use crate::hold::Address;
use crate::ids::{AccountName, BadId, RegionName, TeamName};
use crate::policy::{Account, AgentsListener, Channel, ChannelKind, EMBEDDED_LEASE, Site, SiteCaps};

/// Eureka's own lease.
const LEASE: Duration = Duration::from_secs(90);
/// A heartbeat a second, and two that may be lost.
const LEASE_MIN: Duration = Duration::from_secs(3);
const LEASE_MAX: Duration = Duration::from_secs(3600);

/// Tables that are checked and kept, and that this build does not act on: never silence.
const NOT_YET: [(&str, &str); 2] = [
    ("accounts", "this build knows only the embedded cloud: these accounts are not looked at"),
    ("ledger", "this build keeps its ledger in the state folder: this table is not used"),
];

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
    let balancer = raw.listeners.as_ref().and_then(|l| l.get().balancer.as_ref());
    let balancer = balancer.and_then(|text| loopback(text, out));
    let signals = raw.signals.as_ref().map_or(&[][..], |s| s.get().hold_while.as_slice());
    signals.iter().for_each(|hold| hold_while(hold, out));
    let alertmanager = raw.signals.as_ref().and_then(|s| s.get().alertmanager.as_ref());
    let alertmanager = alertmanager.and_then(|text| address(text, out));
    let agents = raw.agents.as_ref().and_then(|a| agents(a.get(), out));
    let identity_certs = raw.aws.as_ref().map(|aws| identity_certs(aws.get(), out)).unwrap_or_default();
    let channels = channels(raw, out);
    let path = |text: &Option<Sp<String>>| text.as_ref().map(|t| PathBuf::from(t.get()));
    Some(Site {
        name: name?,
        leashed: raw.leashed.as_ref().is_none_or(|l| *l.get()),
        policies: path(&raw.policies).unwrap_or_else(|| PathBuf::from("policies")),
        state: path(&raw.state),
        caps: SiteCaps {
            kills_per_day: caps.and_then(|c| c.kills_per_day.as_ref()).map(|n| *n.get()),
            unhealed_per_zone: caps
                .and_then(|c| c.unhealed_per_zone.as_ref())
                .map_or(standard.unhealed_per_zone, |n| *n.get()),
        },
        registry_lease: lease?,
        accounts,
        ledger: raw.ledger.as_ref().and_then(|l| path(&l.get().file)),
        balancer,
        agents,
        identity_certs,
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
fn address(text: &Sp<String>, out: &mut Findings<'_>) -> Option<String> {
    if Address::parse(text.get()).is_some() {
        return Some(text.get().clone());
    }
    let hint = "for example alertmanager = \"https://alerts.example.com\"".to_owned();
    out.error(text.span(), format!("`{}` is no address", shown(text.get())), Some(hint));
    None
}

fn accounts(raw: &[Sp<RawAccount>], out: &mut Findings<'_>) -> Vec<Account> {
    let mut accounts: Vec<Account> = Vec::new();
    for account in raw {
        let fields = account.get();
        let name = named(fields.name.as_ref(), AccountName::new, out);
        let regions = fields.regions.iter().flatten().filter_map(|r| named(Some(r), RegionName::new, out)).collect();
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
