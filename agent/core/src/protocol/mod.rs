//! What an agent and its control plane say to each other.
//!
//! One JSON object a line, both ways, over one stream that the agent opened. Agent and control plane may be one release
//! apart: each says which versions it speaks, the newest common one is used, an unknown message is skipped, an unknown
//! field ignored. Only a fault is taken whole or not at all (`troop_policies::fault::FaultSpec`): a part that an agent does not know
//! must not be left out, so it refuses that one command in words ([`heard`]), and everything else goes on.
//!
//! Times travel as durations, for no two clocks agree. Every text and list has a limit, which both sides check: the
//! sender so that it learns of it, the receiver because it need not believe the sender.

mod fault;
mod identity;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use troop_policies::fault::FaultSpec;

use crate::fault::{BadRange, Cidr};
use crate::lease::{Answer, BadLeaseId, BadTerm, Command, CommandNumber, LeaseId, Life, Ttl, Why};
pub use fault::{BadFault, Found, fault_of};
pub use identity::{Ec2Identity, Identity, NONCE_HEADER, is_nonce, statement};

/// The version this release speaks, and the oldest it still understands.
pub const VERSION: u32 = 1;
pub const OLDEST_VERSION: u32 = 1;
/// Longest message: a grant with 4,096 peers of IPv6 takes 200 KB.
pub const MESSAGE_MAX_BYTES: usize = 256 * 1024;
/// Longest text within a message: what a kernel says and a little around it.
pub const TEXT_MAX_BYTES: usize = 2_048;
/// Addresses that may be probed for one fault. Five probes go to the first that answers.
pub const PROBES_MAX: usize = 16;
/// Planes, undo's backings and the like that a host may name.
pub const LIST_MAX: usize = 32;

/// Why a message was not taken.
#[derive(Debug, thiserror::Error)]
pub enum BadMessage {
    #[error("a message of {bytes} bytes is longer than {MESSAGE_MAX_BYTES}")]
    TooLong { bytes: usize },
    #[error("a message is no JSON of the protocol")]
    Json(#[source] serde_json::Error),
    #[error("`{field}` has {count}, more than {max}")]
    TooMuch { field: &'static str, count: usize, max: usize },
    #[error(transparent)]
    Lease(#[from] BadLeaseId),
    #[error(transparent)]
    Term(#[from] BadTerm),
    #[error(transparent)]
    Range(#[from] BadRange),
}

impl BadMessage {
    pub fn hint(&self) -> &'static str {
        match self {
            Self::TooLong { .. } | Self::TooMuch { .. } => "name ranges of addresses instead of single ones",
            Self::Json(_) => "agent and control plane may be one release apart, not more",
            Self::Lease(e) => e.hint(),
            Self::Term(e) => e.hint(),
            Self::Range(e) => e.hint(),
        }
    }
}

/// What an agent says first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub newest_version: u32,
    pub oldest_version: u32,
    /// `account/region/instance`.
    pub instance: String,
    /// Of the agent's program.
    pub release: String,
    /// The highest number of a command it ever carried out; the next must be greater.
    pub highest_number: u64,
    pub host: Capabilities,
    /// What shows which instance it is, where its host says that it can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
}

/// What a host can do, as found by trying.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Capabilities {
    pub kernel: String,
    /// In the order in which they are preferred; empty where nothing can be done.
    pub planes: Vec<PlaneSeen>,
    /// Why there is not more, for people.
    pub lacks: Vec<String>,
    /// What the host's own policy allows, for people; `nothing` where there is none.
    pub allows: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaneSeen {
    pub name: String,
    /// Who undoes when the agent is killed, and when it hangs: `kernel` or `guardian`.
    pub on_death: String,
    pub on_hang: String,
}

/// From the agent to the control plane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromAgent {
    Hello(Hello),
    Answer {
        number: u64,
        answer: Answered,
    },
    /// All that is known of a lease, whenever it changes, and of each after a new connection.
    Story(Story),
    /// Something of a later version.
    #[serde(other)]
    Unknown,
}

/// From the control plane to the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToAgent {
    Welcome {
        version: u32,
    },
    Grant(Box<Grant>),
    Renew {
        number: u64,
        lease: String,
        ttl_ms: u64,
        /// Whom it concerns from now on; `None`: whom it concerned.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        peers: Option<Vec<String>>,
    },
    End {
        number: u64,
        lease: String,
    },
    Halt {
        number: u64,
    },
    Resume {
        number: u64,
    },
    /// It will not be received, and why. The connection ends with it; an older agent sees only that.
    Refused {
        why: String,
    },
    /// Never on the wire: a grant that was not understood ([`heard`]), of which this much was.
    #[serde(skip)]
    Strange {
        number: u64,
        lease: String,
        why: String,
    },
    #[serde(other)]
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    pub number: u64,
    pub lease: String,
    pub ttl_ms: u64,
    pub life_ms: u64,
    pub fault: FaultSpec,
    /// `fault.to` as addresses, which the control plane has resolved.
    pub peers: Vec<String>,
    /// Where the effect can be measured: a peer that accepts connections which the fault concerns.
    #[serde(default)]
    pub probes: Vec<SocketAddr>,
}

/// [`Answer`], as it travels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answered {
    Granted,
    Renewed,
    Gone {
        #[serde(default)]
        why: Option<End>,
    },
    Halted,
    Resumed,
    Refused {
        why: String,
    },
}

impl From<Answer> for Answered {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Granted => Self::Granted,
            Answer::Renewed => Self::Renewed,
            Answer::Gone(why) => Self::Gone { why: why.map(End::from) },
            Answer::Halted => Self::Halted,
            Answer::Resumed => Self::Resumed,
            Answer::Refused(refusal) => Self::Refused { why: refusal.to_string() },
        }
    }
}

/// [`Why`], as it travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    Lapsed,
    LifeOver,
    Ended,
    Halted,
    GivenUp,
    /// Of a later version.
    #[serde(other)]
    Unknown,
}

impl From<Why> for End {
    fn from(why: Why) -> Self {
        match why {
            Why::Lapsed => Self::Lapsed,
            Why::LifeOver => Self::LifeOver,
            Why::Ended => Self::Ended,
            Why::Halted => Self::Halted,
            Why::GivenUp => Self::GivenUp,
        }
    }
}

/// A lease from its grant to the proof that its fault is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Story {
    pub lease: String,
    pub at: Chapter,
    /// Which plane; empty until one has taken it.
    #[serde(default)]
    pub plane: String,
    #[serde(default)]
    pub baseline: Option<Measured>,
    #[serde(default)]
    pub applied: Option<Measured>,
    #[serde(default)]
    pub healed: Option<Measured>,
    /// Why it ended.
    #[serde(default)]
    pub end: Option<End>,
    /// What went wrong, in words; empty where nothing did.
    #[serde(default)]
    pub trouble: String,
}

/// How far a lease has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Chapter {
    /// The round trip without the fault is being measured.
    Baseline,
    /// It is being put up, and then measured.
    Applying,
    /// It is there, and was measured.
    Up,
    /// It is being taken down, and then measured.
    Healing,
    /// It is gone; `healed` says so, where it could be measured.
    Over,
    /// It could not be taken down whole, and is tried again.
    Stuck,
    #[serde(other)]
    Unknown,
}

/// A measurement: five probes, their median.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    /// `None`: no probe came back.
    pub median_us: Option<u64>,
    /// Probes sent, and of them those that came back.
    pub sent: u32,
    pub back: u32,
    pub by: MeasuredBy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MeasuredBy {
    /// TCP handshakes with a peer.
    Handshake,
    /// The smoothed round trips of the host's own connections that the fault concerns.
    Sockets,
    /// How long the plane held what passed it, since no peer could be asked.
    Plane,
    #[serde(other)]
    Unknown,
}

/// A command as the lease table takes it, and what goes along with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ordered {
    pub number: CommandNumber,
    pub command: Command,
    pub with: With,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum With {
    Nothing,
    /// It is answered so, whatever becomes of it.
    Refusal(String),
    Fault {
        spec: Box<FaultSpec>,
        peers: Vec<Cidr>,
        probes: Vec<SocketAddr>,
    },
    Peers(Vec<Cidr>),
}

/// Reads one line.
///
/// # Errors
/// [`BadMessage`].
pub fn read<'a, M: Deserialize<'a>>(line: &'a [u8]) -> Result<M, BadMessage> {
    if line.len() > MESSAGE_MAX_BYTES {
        return Err(BadMessage::TooLong { bytes: line.len() });
    }
    serde_json::from_slice(line).map_err(BadMessage::Json)
}

/// Reads one line that an agent was sent. A grant with a part that this release does not know becomes [`ToAgent::Strange`], which is
/// refused like any other fault that cannot be put up.
///
/// # Errors
/// [`BadMessage::TooLong`], [`BadMessage::Json`].
pub fn heard(line: &[u8]) -> Result<ToAgent, BadMessage> {
    /// What every release says of a grant.
    #[derive(Deserialize)]
    struct Bare {
        #[serde(rename = "type")]
        kind: String,
        number: u64,
        lease: String,
    }
    match read(line) {
        Err(BadMessage::Json(why)) => match serde_json::from_slice::<Bare>(line) {
            Ok(Bare { kind, number, lease }) if kind == "grant" => {
                Ok(ToAgent::Strange { number, lease, why: cut(&why.to_string()) })
            }
            Ok(_) | Err(_) => Err(BadMessage::Json(why)),
        },
        read => read,
    }
}

/// Writes one line, with its end.
///
/// # Errors
/// [`BadMessage::TooLong`].
pub fn write(message: &impl Serialize) -> Result<Vec<u8>, BadMessage> {
    let mut line = serde_json::to_vec(message).map_err(BadMessage::Json)?;
    line.push(b'\n');
    if line.len() > MESSAGE_MAX_BYTES { Err(BadMessage::TooLong { bytes: line.len() }) } else { Ok(line) }
}

impl ToAgent {
    /// The command in a message; `None` for what is none.
    ///
    /// # Errors
    /// [`BadMessage`] for one that cannot be carried out by anybody.
    pub fn ordered(self) -> Result<Option<Ordered>, BadMessage> {
        let (number, command, with) = match self {
            Self::Welcome { .. } | Self::Refused { .. } | Self::Unknown => return Ok(None),
            Self::Grant(grant) => {
                limit("probes", grant.probes.len(), PROBES_MAX)?;
                let lease = LeaseId::new(&grant.lease)?;
                let ttl = Ttl::new(Duration::from_millis(grant.ttl_ms))?;
                let life = Life::new(Duration::from_millis(grant.life_ms))?;
                let peers = ranges(&grant.peers)?;
                let with = With::Fault { spec: Box::new(grant.fault), peers, probes: grant.probes };
                (grant.number, Command::Grant { lease, ttl, life }, with)
            }
            Self::Renew { number, lease, ttl_ms, peers } => {
                let with = match peers {
                    None => With::Nothing,
                    Some(peers) => With::Peers(ranges(&peers)?),
                };
                let ttl = Ttl::new(Duration::from_millis(ttl_ms))?;
                (number, Command::Renew { lease: LeaseId::new(&lease)?, ttl }, with)
            }
            Self::End { number, lease } => (number, Command::End { lease: LeaseId::new(&lease)? }, With::Nothing),
            Self::Strange { number, lease, why } => {
                let why = format!("its agent is of another release and does not understand the fault: {why}");
                // The end of a lease that is not there: its number and name are used up, as by any refusal.
                (number, Command::End { lease: LeaseId::new(&lease)? }, With::Refusal(why))
            }
            Self::Halt { number } => (number, Command::Halt, With::Nothing),
            Self::Resume { number } => (number, Command::Resume, With::Nothing),
        };
        Ok(Some(Ordered { number: CommandNumber(number), command, with }))
    }
}

impl FromAgent {
    /// Checks what comes from a host, which need not be believed.
    ///
    /// # Errors
    /// [`BadMessage`].
    pub fn checked(self) -> Result<Self, BadMessage> {
        match &self {
            Self::Hello(hello) => {
                limit("planes", hello.host.planes.len(), LIST_MAX)?;
                limit("lacks", hello.host.lacks.len(), LIST_MAX)?;
                let texts = hello.host.planes.iter().flat_map(|p| [&p.name, &p.on_death, &p.on_hang]);
                let own = [&hello.instance, &hello.release, &hello.host.kernel, &hello.host.allows];
                texts.chain(&hello.host.lacks).chain(own).try_for_each(|text| short("hello", text))?;
                hello.identity.as_ref().map_or(Ok(()), Identity::check)?;
            }
            Self::Story(story) => {
                LeaseId::new(&story.lease)?;
                [&story.plane, &story.trouble].into_iter().try_for_each(|text| short("story", text))?;
            }
            Self::Answer { answer: Answered::Refused { why }, .. } => short("why", why)?,
            Self::Answer { .. } | Self::Unknown => {}
        }
        Ok(self)
    }
}

/// The version both sides speak; `None` when there is none.
pub fn common_version(hello: &Hello) -> Option<u32> {
    let newest = hello.newest_version.min(VERSION);
    (newest >= hello.oldest_version.max(OLDEST_VERSION)).then_some(newest)
}

/// A text cut to what a message may hold.
pub fn cut(text: &str) -> String {
    text.chars()
        .scan(0, |bytes, c| {
            *bytes += c.len_utf8();
            (*bytes <= TEXT_MAX_BYTES).then_some(c)
        })
        .collect()
}

fn ranges(texts: &[String]) -> Result<Vec<Cidr>, BadMessage> {
    limit("peers", texts.len(), crate::fault::PEERS_MAX)?;
    texts.iter().map(|text| Ok(text.parse()?)).collect()
}

fn limit(field: &'static str, count: usize, max: usize) -> Result<(), BadMessage> {
    if count > max { Err(BadMessage::TooMuch { field, count, max }) } else { Ok(()) }
}

fn short(field: &'static str, text: &str) -> Result<(), BadMessage> {
    short_of(field, text, TEXT_MAX_BYTES)
}

fn short_of(field: &'static str, text: &str, max: usize) -> Result<(), BadMessage> {
    limit(field, text.len(), max)
}
