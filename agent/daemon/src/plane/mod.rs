//! The ways of putting a fault upon a host's packets, behind one trait.
//!
//! A plane does what it is told at once and keeps no time: leases are the agent's. What the kernel takes back by itself
//! when the agent dies or hangs is the plane's own business, and it says honestly which of the two it is.

mod cgroup;
mod concern;
mod detour;
pub mod forward;
pub mod hold;
pub mod kernel;
pub mod tun;

use std::fmt;
use std::io;
use std::time::Duration;

use troop_agent_core::fault::{Cidr, Fault};
use troop_agent_core::lease::{LeaseId, Ttl};

use crate::netlink::NetlinkError;
use crate::undo::{Journal, JournalError};

/// A network device of the host, as the kernel numbers it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Device {
    pub name: String,
    pub index: u32,
}

/// A fault to be put upon the host's packets.
#[derive(Debug, Clone)]
pub struct Order {
    pub lease: LeaseId,
    pub fault: Fault,
    /// Through which the packets go; never none.
    pub devices: Vec<Device>,
    /// How long the kernel lets it live unless it is renewed, where the kernel can tell.
    pub ttl: Ttl,
}

/// What ends a fault when no process of ours can.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Backing {
    /// When the agent is killed.
    pub on_death: By,
    /// When the agent stands still.
    pub on_hang: By,
}

/// Who undoes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum By {
    Kernel,
    /// Only the guardian process, and the next start of the agent after it.
    Guardian,
}

/// What a plane holds and has done for one fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seen {
    /// Packets that the fault has concerned, as many as go on the wire where the plane can tell.
    pub concerned: u64,
    pub lost: u64,
    /// Held now.
    pub held_packets: u64,
    pub held_bytes: u64,
    /// How long a packet was held, the median of the latest; `None` where the plane cannot tell or held none.
    pub held_for: Option<Duration>,
    /// It held as much as it may and let everything go: the fault is over.
    pub full: bool,
}

/// Why a plane did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum PlaneError {
    /// This plane can never do it, and nothing was changed.
    #[error("the {plane} plane cannot do {what}")]
    Cannot { plane: &'static str, what: String },
    /// The host is in a state in which it must not be done, and nothing was changed.
    #[error("{device} has {found}, which is not the kernel's default nor ours")]
    Foreign { device: String, found: String },
    #[error("could not {doing}")]
    Kernel {
        doing: String,
        #[source]
        source: NetlinkError,
    },
    #[error("could not {doing}")]
    System {
        doing: String,
        #[source]
        source: io::Error,
    },
    #[error("could not write the undo journal")]
    Journal(#[from] JournalError),
    #[error("no fault `{0}` is up")]
    Unknown(LeaseId),
}

impl PlaneError {
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Cannot { .. } => "`troop agents` shows what each host can do",
            Self::Foreign { .. } => "remove it, or keep faults off this device in agent.toml",
            Self::Kernel { .. } | Self::System { .. } => "`troop-agent probe` says what this host lacks",
            Self::Journal(_) => "without a journal nothing is changed; make room, or mend its folder",
            Self::Unknown(_) => "it has ended already",
        }
    }
}

/// A data plane. Everything it changes is journaled before it is changed.
///
/// A call that fails has taken back what it did, or says so by what stays in the journal.
pub trait Plane: Send + fmt::Debug {
    fn name(&self) -> &'static str;

    fn backing(&self) -> Backing;

    /// Whether this plane could ever do it.
    ///
    /// # Errors
    /// [`PlaneError::Cannot`].
    fn can(&self, fault: &Fault) -> Result<(), PlaneError>;

    /// Puts a fault up. A flow that it does not concern loses no packet and waits no millisecond.
    ///
    /// # Errors
    /// [`PlaneError`]; then the fault is not up.
    fn apply(&mut self, order: &Order, journal: &mut Journal) -> Result<(), PlaneError>;

    /// Lets the kernel keep the fault up for another `ttl`, and moves a ramp on. `elapsed`: since it was applied.
    ///
    /// # Errors
    /// [`PlaneError`]; then the fault may end by itself.
    fn renew(&mut self, lease: &LeaseId, ttl: Ttl, elapsed: Duration) -> Result<(), PlaneError>;

    /// Whom the fault concerns from now on, as the control plane resolves it.
    ///
    /// # Errors
    /// [`PlaneError`]; then it concerns those from before.
    fn retarget(&mut self, lease: &LeaseId, peers: &[Cidr]) -> Result<(), PlaneError>;

    /// Takes a fault down: first nothing new is held, then everything held leaves in order, of which [`Plane::tend`] sees the
    /// end where that takes long.
    ///
    /// # Errors
    /// [`PlaneError`]; then it stands in the journal still.
    fn heal(&mut self, lease: &LeaseId, journal: &mut Journal) -> Result<(), PlaneError>;

    /// Goes on with what [`Plane::heal`] has left: packets that are held for longer than a call may wait. Says whether anything
    /// is left; then it is to be called again within a second or so.
    ///
    /// # Errors
    /// [`PlaneError`]; then what is left stands in the journal still.
    fn tend(&mut self, _journal: &mut Journal) -> Result<bool, PlaneError> {
        Ok(false)
    }

    /// What became of a fault so far.
    ///
    /// # Errors
    /// [`PlaneError`].
    fn seen(&mut self, lease: &LeaseId) -> Result<Seen, PlaneError>;
}

/// 32 bits of a lease's name (FNV-1a), for names of devices, which are at most 15 bytes.
fn fingerprint(lease: &LeaseId) -> u32 {
    let mix = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    lease.to_string().bytes().fold(0x811c_9dc5, mix)
}
