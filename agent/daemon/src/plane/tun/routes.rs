//! Policy routing: what carries a fault's mark is looked up in a table of routes with the TUN only (ip-rule(8), linux/fib_rules.h).
//!
//! The route goes with the TUN. The rule stays, and leads nowhere: a table without a route is passed over.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use serde::{Deserialize, Serialize};

use crate::netlink::{Netlink, NetlinkError};

/// The first behind the table of local addresses: others' rules, as those of VPNs, would have the packet before.
pub(super) const PRIORITY: u32 = 1;

/// A rule: what carries `mark` is looked up in `table`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    pub is_ipv6: bool,
    pub priority: u32,
    pub mark: u32,
    pub table: u32,
}

impl Rule {
    /// # Errors
    /// [`NetlinkError`]: EEXIST where somebody has the same.
    pub(super) fn make(self, net: &mut Netlink) -> Result<(), NetlinkError> {
        net.change(RouteNetlinkMessage::NewRule(self.message()), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// # Errors
    /// [`NetlinkError`]: ENOENT where it is not there.
    pub(crate) fn delete(self, net: &mut Netlink) -> Result<(), NetlinkError> {
        net.change(RouteNetlinkMessage::DelRule(self.message()), 0)
    }

    /// Everything in its table goes into this device.
    ///
    /// # Errors
    /// [`NetlinkError`]: EEXIST where the table has such a route.
    pub(super) fn lead_into(self, net: &mut Netlink, device: u32) -> Result<(), NetlinkError> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(self.is_ipv6);
        message.header.table = RouteHeader::RT_TABLE_UNSPEC;
        message.header.protocol = RouteProtocol::Static;
        message.header.scope = if self.is_ipv6 { RouteScope::Universe } else { RouteScope::Link };
        message.header.kind = RouteType::Unicast;
        message.attributes = vec![RouteAttribute::Oif(device), RouteAttribute::Table(self.table)];
        net.change(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    fn message(self) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = family(self.is_ipv6);
        message.header.action = RuleAction::ToTable;
        message.attributes = vec![
            RuleAttribute::Priority(self.priority),
            RuleAttribute::FwMark(self.mark),
            RuleAttribute::FwMask(u32::MAX),
            RuleAttribute::Table(self.table),
        ];
        message
    }
}

fn family(is_ipv6: bool) -> AddressFamily {
    if is_ipv6 { AddressFamily::Inet6 } else { AddressFamily::Inet }
}
