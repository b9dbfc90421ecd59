//! The expressions of a rule: each looks at the packet or a register and either goes on to the next or ends the rule.

use crate::netlink::attributes::Attributes;

/// Four bytes of the kernel's working memory for a packet (`NFT_REG32_00` and up); longer values take the following ones too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Register(u32);

impl Register {
    /// The one that matches use.
    pub const FIRST: Self = Self(8);

    /// Four bytes further.
    #[must_use]
    pub const fn after(self, words: u32) -> Self {
        Self(self.0 + words)
    }
}

/// What is known of a packet beside its bytes (`enum nft_meta_keys`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meta {
    /// The EtherType, two bytes in the network's order.
    Protocol = 1,
    /// The mark, four bytes in the machine's order.
    Mark = 3,
    /// The number of the device that it came by, in the machine's order.
    InDevice = 4,
    OutDevice = 5,
    /// The transport protocol's number, after IPv6's extension headers; one byte.
    Transport = 16,
}

/// From where bytes of a packet are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    Network = 1,
    /// A fragment but the first has none, and the rule ends there.
    Transport = 2,
}

/// How a register must compare, byte by byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    Equal = 0,
    Unequal = 1,
    Less = 2,
    AtMost = 3,
    AtLeast = 5,
}

/// `NF_ACCEPT`, `NF_DROP`, and `NFT_RETURN` and `NFT_JUMP`, negative numbers on the wire.
const ACCEPT: i32 = 1;
const DROP: i32 = 0;
const RETURN: i32 = -5;
const JUMP: i32 = -3;

/// `IPS_SRC_NAT` and `IPS_DST_NAT` (linux/netfilter/nf_conntrack_common.h).
const STATUS_TRANSLATED: u32 = 1 << 4 | 1 << 5;

/// How a rule hands packets to nfnetlink_queue, of which kernels have one or both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueBy {
    /// The expression of nf_tables (CONFIG_NFT_QUEUE).
    Expression,
    /// The target of xtables (CONFIG_NETFILTER_XT_TARGET_NFQUEUE), in families ip and ip6 only.
    Target,
}

/// `NFQ_FLAG_BYPASS`: with nobody who takes them, packets pass.
const BYPASS: u16 = 1;

/// The expressions of one rule, in their order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Expressions(Vec<(&'static str, Attributes)>);

impl Expressions {
    /// Loads what is known of the packet.
    #[must_use]
    pub fn meta(self, what: Meta) -> Self {
        self.with("meta", |a| {
            a.put_be(1, Register::FIRST.0);
            a.put_be(2, what as u32);
        })
    }

    /// Loads bytes of the packet.
    #[must_use]
    pub fn payload(self, into: Register, base: Base, offset: u32, length: u32) -> Self {
        self.with("payload", |a| {
            a.put_be(1, into.0);
            a.put_be(2, base as u32);
            a.put_be(3, offset);
            a.put_be(4, length);
        })
    }

    /// Loads whether the addresses of the packet's connection are translated, four bytes of which all are zero when they are not. A
    /// packet of no connection ends the rule. Where a rule has it the kernel follows all connections.
    #[must_use]
    pub fn translation(self) -> Self {
        self.with("ct", |a| {
            a.put_be(1, Register::FIRST.0);
            // NFT_CT_STATUS.
            a.put_be(2, 2);
        })
        .mask(&STATUS_TRANSLATED.to_ne_bytes())
    }

    /// Ends the rule unless what was loaded compares so.
    #[must_use]
    pub fn compare(self, how: Compare, with: &[u8]) -> Self {
        self.with("cmp", |a| {
            a.put_be(1, Register::FIRST.0);
            a.put_be(2, how as u32);
            a.nest(3, |a| a.put(1, with));
        })
    }

    /// Keeps only these bits of what was loaded.
    #[must_use]
    pub fn mask(self, bits: &[u8]) -> Self {
        self.mask_and_flip(bits, &vec![0; bits.len()])
    }

    /// Keeps only these bits of what was loaded, then turns others over.
    #[must_use]
    pub fn mask_and_flip(self, bits: &[u8], flipped: &[u8]) -> Self {
        let length = u32::try_from(bits.len()).unwrap_or(u32::MAX);
        self.with("bitwise", |a| {
            a.put_be(1, Register::FIRST.0);
            a.put_be(2, Register::FIRST.0);
            a.put_be(3, length);
            a.nest(4, |a| a.put(1, bits));
            a.nest(5, |a| a.put(1, flipped));
        })
    }

    /// Ends the rule unless what was loaded is in the set.
    #[must_use]
    pub fn lookup(self, set: &str) -> Self {
        self.with("lookup", |a| {
            a.put_text(1, set);
            a.put_be(2, Register::FIRST.0);
        })
    }

    /// Ends the rule if what was loaded is in the set.
    #[must_use]
    pub fn lookup_not(self, set: &str) -> Self {
        self.with("lookup", |a| {
            a.put_text(1, set);
            a.put_be(2, Register::FIRST.0);
            // NFT_LOOKUP_F_INV.
            a.put_be(5, 1);
        })
    }

    /// Hashes `length` bytes from the first register on into a number below `below`, and puts it in their place, in the
    /// network's order so that it compares as bytes do.
    #[must_use]
    pub fn hash(self, length: u32, below: u32, seed: u32) -> Self {
        self.with("hash", |a| {
            a.put_be(1, Register::FIRST.0);
            a.put_be(2, Register::FIRST.0);
            a.put_be(3, length);
            a.put_be(4, below);
            a.put_be(5, seed);
        })
        .with("byteorder", |a| {
            a.put_be(1, Register::FIRST.0);
            a.put_be(2, Register::FIRST.0);
            // From the machine's to the network's order, one number of four bytes.
            a.put_be(3, 1);
            a.put_be(4, 4);
            a.put_be(5, 4);
        })
    }

    /// Lets the packet pass this hook's chain.
    #[must_use]
    pub fn accept(self) -> Self {
        self.verdict(ACCEPT, None)
    }

    /// Loads the number of the cgroup of version 2 that the packet's socket was made in, or of the one above it at this level, the root
    /// being 0 (`NFT_SOCKET_CGROUPV2`, Linux 5.13): eight bytes in the machine's order. The rule ends where there is no such socket. Only
    /// in family inet, before routing in and after routing out.
    #[must_use]
    pub fn cgroup(self, level: u32) -> Self {
        self.with("socket", |a| {
            a.put_be(1, 3);
            a.put_be(2, Register::FIRST.0);
            a.put_be(3, level);
        })
    }

    /// Gives the packet this mark.
    #[must_use]
    pub fn set_mark(self, mark: u32) -> Self {
        self.immediate(&mark.to_ne_bytes()).save_mark()
    }

    /// Gives the packet what was loaded as its mark.
    #[must_use]
    pub fn save_mark(self) -> Self {
        self.with("meta", |a| {
            a.put_be(2, Meta::Mark as u32);
            a.put_be(3, Register::FIRST.0);
        })
    }

    /// Goes on behind where this chain was jumped to.
    #[must_use]
    pub fn leave(self) -> Self {
        self.verdict(RETURN, None)
    }

    /// Goes on in another chain, and comes back.
    #[must_use]
    pub fn jump(self, chain: &str) -> Self {
        self.verdict(JUMP, Some(chain))
    }

    /// Hands the packet to another device, as if it were sent by it.
    #[must_use]
    pub fn forward_to(self, device: u32) -> Self {
        self.immediate(&device.to_ne_bytes()).with("fwd", |a| a.put_be(1, Register::FIRST.0))
    }

    /// Hands a copy of the packet to another device, as if it were sent by it. The copy shares the packet's bytes, and counts no more as
    /// something that its socket has still to send.
    #[must_use]
    pub fn copy_to(self, device: u32) -> Self {
        self.immediate(&device.to_ne_bytes()).with("dup", |a| a.put_be(2, Register::FIRST.0))
    }

    /// Drops the packet.
    #[must_use]
    pub fn drop(self) -> Self {
        self.verdict(DROP, None)
    }

    /// Leaves the packet to whoever has this queue; while nobody has, it passes.
    #[must_use]
    pub fn queue(self, number: u16, by: QueueBy) -> Self {
        const ONE: u16 = 1;
        match by {
            QueueBy::Expression => self.with("queue", |a| {
                a.put(1, &number.to_be_bytes());
                a.put(2, &ONE.to_be_bytes());
                a.put(3, &BYPASS.to_be_bytes());
            }),
            QueueBy::Target => self.with("target", |a| {
                a.put_text(1, "NFQUEUE");
                a.put_be(2, 3);
                // xt_NFQ_info_v3 (linux/netfilter/xt_NFQUEUE.h), as long as xtables aligns it.
                a.put(3, &[number, ONE, BYPASS, 0].map(u16::to_ne_bytes).concat());
            }),
        }
    }

    /// These steps after those.
    #[must_use]
    pub fn then(mut self, more: Self) -> Self {
        self.0.extend(more.0);
        self
    }

    fn immediate(self, value: &[u8]) -> Self {
        self.with("immediate", |a| {
            a.put_be(1, Register::FIRST.0);
            a.nest(2, |a| a.put(1, value));
        })
    }

    fn verdict(self, code: i32, chain: Option<&str>) -> Self {
        self.with("immediate", |a| {
            // The register of verdicts.
            a.put_be(1, 0);
            a.nest(2, |a| {
                a.nest(2, |a| {
                    a.put(1, &code.to_be_bytes());
                    if let Some(chain) = chain {
                        a.put_text(2, chain);
                    }
                });
            });
        })
    }

    fn with(mut self, name: &'static str, fill: impl FnOnce(&mut Attributes)) -> Self {
        let mut data = Attributes::default();
        fill(&mut data);
        self.0.push((name, data));
        self
    }

    pub(super) fn write(self, a: &mut Attributes) {
        for (name, data) in self.0 {
            a.nest(1, |a| {
                a.put_text(1, name);
                a.nest(2, |a| a.append(data));
            });
        }
    }
}
