//! Whom a fault concerns, by address: applications and host names resolved here, so that no agent has to ask.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};

use futures::future::BoxFuture;
use troop_agent_core::protocol::PROBES_MAX;
use troop_policies::fault::{FaultSpec, Peer};
use troop_policies::inventory::{Instance, Inventory, Lifecycle};

/// A fault's peers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Resolved {
    /// As the agent reads them, sorted.
    pub peers: Vec<String>,
    /// Where an effect can be measured.
    pub probes: Vec<SocketAddr>,
}

/// Who knows the addresses of host names.
trait Names: Sync {
    fn addresses<'a>(&'a self, host: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>>;
}

/// The system's resolver, its hosts file included.
struct System;

impl Names for System {
    fn addresses<'a>(&'a self, host: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        Box::pin(async move { Ok(tokio::net::lookup_host((host, 0)).await?.map(|address| address.ip()).collect()) })
    }
}

/// Resolves every peer, anew with each call.
///
/// # Errors
/// The first that means nobody, in words: a fault on nobody is none, and never one on everybody.
pub async fn resolve(fault: &FaultSpec, inventory: &Inventory) -> Result<Resolved, String> {
    resolve_by(&System, fault, inventory).await
}

async fn resolve_by(names: &dyn Names, fault: &FaultSpec, inventory: &Inventory) -> Result<Resolved, String> {
    let mut ranges = BTreeSet::new();
    let mut probes = BTreeSet::new();
    for peer in &fault.to {
        match peer {
            Peer::App(app) => {
                let mut any = false;
                for (group, instance) in instances(inventory).filter(|(group, _)| *group == app.as_str()) {
                    let Some(address) = instance.address else { continue };
                    any = true;
                    ranges.insert(address.to_string());
                    let accepts = instance.lifecycle == Lifecycle::InService && group == app.as_str();
                    if accepts && concerns(fault, instance.port) {
                        probes.insert(SocketAddr::new(address, instance.port));
                    }
                }
                if !any {
                    return Err(format!("app `{app}` has no instance in {}", inventory.region));
                }
            }
            Peer::Host(host) => {
                let found = names.addresses(host).await.map_err(|e| format!("`{host}` does not resolve: {e}"))?;
                if found.is_empty() {
                    return Err(format!("`{host}` resolves to no address"));
                }
                for address in found.iter().map(IpAddr::to_canonical) {
                    ranges.insert(address.to_string());
                    probes.extend(probe_of(fault, address, true));
                }
            }
            Peer::Range(address, prefix) => {
                let most = if address.is_ipv4() { 32 } else { 128 };
                ranges.insert(if *prefix == most { address.to_string() } else { format!("{address}/{prefix}") });
                probes.extend(probe_of(fault, *address, *prefix == most));
            }
            Peer::Everything => {}
        }
    }
    let probes = probes.into_iter().take(PROBES_MAX).collect();
    Ok(Resolved { peers: ranges.into_iter().collect(), probes })
}

fn instances(inventory: &Inventory) -> impl Iterator<Item = (&str, &Instance)> {
    inventory.groups.values().flat_map(|group| group.members.values().map(|i| (group.name.app().as_str(), i)))
}

/// Whether a connection to this port of a peer is one that the fault concerns.
fn concerns(fault: &FaultSpec, port: u16) -> bool {
    let tcp = fault.protocol.is_none_or(|protocol| protocol == troop_policies::fault::Protocol::Tcp);
    let named = |span: &troop_policies::fault::PortSpan| (span.first..=span.last).contains(&port);
    // The agent's own handshakes are no packets of a process that is named.
    tcp && fault.of.is_none()
        && fault.local_ports.is_empty()
        && (fault.remote_ports.is_empty() || fault.remote_ports.iter().any(named))
}

/// A single address whose port is named can be asked too.
fn probe_of(fault: &FaultSpec, address: IpAddr, single: bool) -> Option<SocketAddr> {
    let port = fault.remote_ports.first()?.first;
    (single && concerns(fault, port)).then(|| SocketAddr::new(address, port))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Mutex;
    use std::time::Duration;

    use jiff::Timestamp;
    use troop_policies::fault::PortSpan;
    use troop_policies::ids::{AccountName, RegionName};

    use super::*;

    fn nobody() -> Inventory {
        Inventory {
            account: AccountName::new("local").unwrap(),
            region: RegionName::new("r1").unwrap(),
            zones: BTreeSet::new(),
            read_at: Timestamp::UNIX_EPOCH,
            groups: BTreeMap::new(),
        }
    }

    /// Answers that a test changes.
    struct Told(Mutex<Vec<&'static str>>);

    impl Names for Told {
        fn addresses<'a>(&'a self, host: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
            assert_eq!(host, "db.example.com");
            let told = self.0.lock().unwrap().iter().map(|text| text.parse().unwrap()).collect();
            Box::pin(async move { Ok(told) })
        }
    }

    fn to(peer: &str) -> FaultSpec {
        FaultSpec::delay(Duration::from_millis(200), vec![peer.parse().unwrap()])
    }

    #[tokio::test]
    async fn a_host_name_is_whatever_it_means_at_the_time() {
        let (names, inventory) = (Told(Mutex::new(vec!["10.0.0.7", "::ffff:10.0.0.8"])), nobody());
        let mut fault = to("host:db.example.com");
        fault.remote_ports = vec![PortSpan { first: 5_432, last: 5_432 }];
        let first = resolve_by(&names, &fault, &inventory).await.unwrap();
        assert_eq!(first.peers, ["10.0.0.7", "10.0.0.8"]);
        assert_eq!(first.probes, ["10.0.0.7:5432", "10.0.0.8:5432"].map(|end| end.parse().unwrap()));
        *names.0.lock().unwrap() = vec!["10.0.0.9"];
        assert_eq!(resolve_by(&names, &fault, &inventory).await.unwrap().peers, ["10.0.0.9"]);
        // Nobody is not everybody.
        names.0.lock().unwrap().clear();
        let why = resolve_by(&names, &fault, &inventory).await.unwrap_err();
        assert_eq!(why, "`db.example.com` resolves to no address");
    }

    #[tokio::test]
    async fn the_systems_resolver_is_asked_and_what_it_does_not_know_is_told() {
        let inventory = nobody();
        let known = resolve(&to("host:localhost"), &inventory).await.unwrap();
        assert!(
            !known.peers.is_empty() && known.peers.iter().all(|peer| peer.parse::<IpAddr>().unwrap().is_loopback())
        );
        // RFC 6761: never a name.
        let why = resolve(&to("host:nobody.invalid"), &inventory).await.unwrap_err();
        assert!(why.starts_with("`nobody.invalid` does not resolve: "), "{why}");
    }

    #[tokio::test]
    async fn packets_of_a_process_are_not_probed_by_the_agents_own() {
        let mut fault = to("10.0.0.7");
        fault.remote_ports = vec![PortSpan { first: 80, last: 80 }];
        let inventory = nobody();
        assert_eq!(resolve(&fault, &inventory).await.unwrap().probes.len(), 1);
        fault.of = Some("unit:web.service".parse().unwrap());
        assert_eq!(resolve(&fault, &inventory).await.unwrap().probes, []);
    }
}
