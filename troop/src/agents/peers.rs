//! Whom a fault concerns, by address: applications and host names resolved here, so that no agent has to ask.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

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

/// Resolves every peer.
///
/// # Errors
/// The first that means nobody, in words: a fault on nobody is none, and never one on everybody.
pub async fn resolve(fault: &FaultSpec, inventory: &Inventory) -> Result<Resolved, String> {
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
                let found = tokio::net::lookup_host((host.as_str(), 0)).await;
                let found = found.map_err(|e| format!("`{host}` does not resolve: {e}"))?;
                let before = ranges.len();
                ranges.extend(found.map(|address| address.ip().to_canonical().to_string()));
                if ranges.len() == before {
                    return Err(format!("`{host}` resolves to no address"));
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
    tcp && fault.local_ports.is_empty() && (fault.remote_ports.is_empty() || fault.remote_ports.iter().any(named))
}

/// A single address whose port is named can be asked too.
fn probe_of(fault: &FaultSpec, address: IpAddr, single: bool) -> Option<SocketAddr> {
    let port = fault.remote_ports.first()?.first;
    (single && concerns(fault, port)).then(|| SocketAddr::new(address, port))
}
