//! A flow: the packets between two ends, as one host sees them. The same in both directions.

use std::net::IpAddr;

use super::{BadPercent, Probability};

/// IP protocol numbers (IANA).
pub mod protocol {
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ICMPV6: u8 = 58;
}

/// What the head of a packet says about its flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flow {
    /// The number in the IP header, after extension headers.
    pub protocol: u8,
    /// The host's own address.
    pub local: IpAddr,
    /// The other end's.
    pub peer: IpAddr,
    /// `None` where the protocol has none or this packet does not carry them, as a later fragment.
    pub ports: Option<Ports>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ports {
    pub local: u16,
    pub remote: u16,
}

impl Flow {
    /// A number for the flow, the same for all its packets and hard to foresee without `seed`. A later fragment hashes
    /// without ports, so it may differ from its first fragment.
    pub fn hash(&self, seed: u64) -> FlowHash {
        let mut hash = mix(seed ^ u64::from(self.protocol));
        for address in [self.local, self.peer] {
            let bits = match address.to_canonical() {
                IpAddr::V4(v4) => u128::from(v4.to_bits()),
                IpAddr::V6(v6) => v6.to_bits(),
            };
            let [high, low] = [bits >> 64, bits & u128::from(u64::MAX)].map(|half| u64::try_from(half).unwrap_or(0));
            hash = mix(mix(hash ^ high) ^ low);
        }
        let ports = self.ports.map_or(0, |p| 1 << 32 | u64::from(p.local) << 16 | u64::from(p.remote));
        FlowHash(mix(hash ^ ports))
    }
}

/// The finishing step of SplitMix64 (Steele, Lea, Flood 2014): every bit of the input reaches every bit of the output.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

/// [`Flow::hash`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowHash(pub u64);

impl FlowHash {
    /// The upper half, by which flows are picked.
    fn high(self) -> u32 {
        u32::try_from(self.0 >> 32).unwrap_or(u32::MAX)
    }

    /// The lower half, for whoever sorts flows into buckets: it says nothing about who was picked.
    pub fn low(self) -> u32 {
        u32::try_from(self.0 & u64::from(u32::MAX)).unwrap_or(u32::MAX)
    }
}

/// How many of the targeted flows a fault concerns. A flow is concerned with all its packets or with none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowShare(Probability);

impl FlowShare {
    pub const ALL: Self = Self(Probability::ALWAYS);

    /// # Errors
    /// [`BadPercent`] unless `percent` is above 0 and at most 100: no flow at all is no fault.
    pub fn from_percent(percent: f64) -> Result<Self, BadPercent> {
        let probability = Probability::from_percent(percent)?;
        if probability.is_never() { Err(BadPercent { percent }) } else { Ok(Self(probability)) }
    }

    pub fn probability(self) -> Probability {
        self.0
    }

    pub fn picks(self, flow: FlowHash) -> bool {
        self.0.happens(flow.high())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(remote: u16) -> Flow {
        let ports = Some(Ports { local: 443, remote });
        Flow { protocol: protocol::TCP, local: [10, 0, 0, 1].into(), peer: [10, 0, 0, 2].into(), ports }
    }

    #[test]
    fn picks_about_the_share_that_was_asked_for() {
        let share = FlowShare::from_percent(30.0).unwrap();
        let picked = (1..=10_000).filter(|port| share.picks(flow(*port).hash(7))).count();
        // Five standard deviations of a binomial of 10,000 and 0.3 are 229.
        assert!((2_771..=3_229).contains(&picked), "{picked}");
    }

    #[test]
    fn picks_the_same_flows_again_and_others_by_another_seed() {
        let share = FlowShare::from_percent(50.0).unwrap();
        let picked = |seed| (1..=200).map(|port| share.picks(flow(port).hash(seed))).collect::<Vec<_>>();
        assert_eq!(picked(1), picked(1));
        assert_ne!(picked(1), picked(2));
    }

    #[test]
    fn all_picks_every_flow_and_none_is_refused() {
        assert!((1..=1_000).all(|port| FlowShare::ALL.picks(flow(port).hash(3))));
        assert!(FlowShare::from_percent(0.0).is_err());
    }

    #[test]
    fn what_tells_flows_apart_changes_the_hash() {
        let base = flow(80);
        let others = [
            flow(81),
            Flow { ports: None, ..base },
            Flow { protocol: protocol::UDP, ..base },
            Flow { peer: [10, 0, 0, 3].into(), ..base },
            Flow { local: [10, 0, 0, 3].into(), ..base },
            Flow { local: base.peer, peer: base.local, ..base },
        ];
        assert!(others.iter().all(|other| other.hash(1) != base.hash(1)));
    }
}
