//! What every part of the control plane shares.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::Notify;
use troop_deploy::judge::SoFar;
use troop_ledger::{EventId, Ledger, NewEvent};
use troop_policies::draw::SiteSecret;
use troop_policies::plausible::{self, Memory};
use troop_policies::policy::Site;
use troop_policies::situation::{Halted, SiteLeash};
use troop_policies::{InstanceId, IntentId, Location};

use super::holds::Holds;
use super::host::{Host, Process};
use super::policy_store::Policies;
use super::ready;
use crate::agents::Agents;
use crate::ask::Asker;
use crate::clock::{Calendar, JumpWatch};
use crate::outside::Dial;
use crate::records::{RECORD_VERSION, Record};
use crate::state::StateDir;
use crate::world::World;

/// How far the cloud's clock and ours may be apart: what is done within a window, and the age of what is seen, is told by it.
pub const CLOCK_APART_MAX: SignedDuration = SignedDuration::from_secs(30);

/// The control plane's shared parts. Cheap to clone through its `Arc`.
pub struct Core {
    pub state: StateDir,
    pub site: Site,
    pub policies_dir: PathBuf,
    pub ledger: Ledger,
    pub world: World,
    pub agents: Arc<dyn Agents>,
    pub host: Arc<dyn Host>,
    pub calendar: Calendar,
    /// Absent, with the reason, when it differs from the ledger's fingerprint: then nothing is planned or done.
    pub secret: Result<SiteSecret, String>,
    pub started_at: Timestamp,
    pub jump: JumpWatch,
    pub policies: ArcSwap<Policies>,
    /// What keeps a site leashed that is unleashed by its file ([`super::ready`]).
    pub not_ready: ArcSwap<Vec<String>>,
    /// Told when a kill was carried out: from then on it is watched closely.
    pub struck: Notify,
    memories: Mutex<BTreeMap<Location, Memory>>,
    /// Ids whose end was ours since the inventory was last good.
    ended: Mutex<BTreeSet<InstanceId>>,
    /// Intents that this process is carrying out now, which nobody else of it may resolve.
    in_hand: Mutex<BTreeSet<IntentId>>,
    /// What could not be done or read at the last try, by part, for `status`.
    troubles: Mutex<BTreeMap<&'static str, String>>,
    /// What the new groups of pushes have answered since they are judged, by the push's number.
    so_far: Mutex<BTreeMap<i64, SoFar>>,
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core").field("state", &self.state).field("site", &self.site.name).finish_non_exhaustive()
    }
}

/// What [`Core::new`] is made of.
#[derive(Debug)]
pub struct Parts {
    pub state: StateDir,
    pub site: Site,
    pub policies_dir: PathBuf,
    pub ledger: Ledger,
    pub world: World,
    pub agents: Arc<dyn Agents>,
    pub calendar: Calendar,
    pub secret: Result<SiteSecret, String>,
}

impl Core {
    /// A control plane in this process. `dial` is how hold signals and channels are reached.
    pub fn new(parts: Parts, dial: Dial) -> Arc<Self> {
        let (alertmanager, ca_file) = (parts.site.alertmanager.clone(), parts.site.signals_ca_file.clone());
        let asker = Asker { dial, ca_file };
        let holds = Holds { asker: asker.clone(), alertmanager };
        let host = Arc::new(Process { halt_file: parts.state.halt_file(), holds, asker });
        Self::on(host, parts)
    }

    /// A control plane on another host than this process.
    pub fn on(host: Arc<dyn Host>, parts: Parts) -> Arc<Self> {
        let (now, boot_ms) = (host.now(), host.boot_ms());
        let core = Self {
            not_ready: ArcSwap::default(),
            state: parts.state,
            site: parts.site,
            policies_dir: parts.policies_dir,
            ledger: parts.ledger,
            world: parts.world,
            agents: parts.agents,
            host,
            calendar: parts.calendar,
            secret: parts.secret,
            started_at: now,
            jump: JumpWatch::new(now, boot_ms),
            policies: ArcSwap::default(),
            struck: Notify::new(),
            memories: Mutex::default(),
            ended: Mutex::default(),
            in_hand: Mutex::default(),
            troubles: Mutex::default(),
            so_far: Mutex::default(),
        };
        if ready::concerns(&core) {
            core.not_ready.store(Arc::new(vec![ready::NOT_CHECKED.to_owned()]));
        }
        Arc::new(core)
    }

    /// The site's leash, by its file and by what it needs before it may harm anybody.
    pub fn leash(&self) -> SiteLeash {
        if self.site.leashed {
            return SiteLeash::On;
        }
        let missing = self.not_ready.load();
        if missing.is_empty() { SiteLeash::Off } else { SiteLeash::NotYet { missing: missing.join("; ") } }
    }

    /// What keeps a site leashed that is unleashed by its file.
    pub fn not_ready(&self) -> Vec<String> {
        if self.site.leashed { Vec::new() } else { self.not_ready.load().as_ref().clone() }
    }

    /// Real time, now.
    pub fn now(&self) -> Timestamp {
        self.host.now()
    }

    /// Where the scheduler's calendar is now.
    pub fn calendar_now(&self) -> Timestamp {
        self.calendar.at(self.now())
    }

    /// The halt file, read anew. Present or unreadable means halted.
    ///
    /// # Errors
    /// Why it cannot be read, which is a halt as well.
    pub fn halt(&self) -> Result<Option<Halted>, String> {
        self.host.halt()
    }

    /// Whether nothing may start now.
    pub fn is_halted(&self) -> bool {
        !matches!(self.halt(), Ok(None))
    }

    /// # Errors
    /// What the clock gate says.
    pub fn clock(&self) -> Result<(), String> {
        self.jump.check(self.now(), self.host.boot_ms())?;
        for cloud in self.world.clouds() {
            let apart = cloud.clock_offset().unwrap_or_default();
            if apart.abs() > CLOCK_APART_MAX && !troop_policies::sabotaged!("clock") {
                let (seconds, account) = (apart.as_secs_f64(), cloud.account());
                return Err(format!("the clock of account `{account}` is {seconds:+.0} s from this host's"));
            }
        }
        Ok(())
    }

    /// Takes one reading of a region's instance count.
    pub fn plausible(&self, at: &Location, count: usize, now: Timestamp) -> plausible::Look {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let mut memories = self.memories.lock().unwrap_or_else(PoisonError::into_inner);
        let look = memories.entry(at.clone()).or_default().look(count, ended.len(), now);
        if look == plausible::Look::Good {
            ended.clear();
        }
        look
    }

    /// Remembers that an instance's end is ours and no sign of a broken inventory.
    pub fn ended_by_us(&self, instances: impl IntoIterator<Item = InstanceId>) {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).extend(instances);
    }

    /// Marks an intent as being carried out here, until the guard is dropped.
    pub fn take_in_hand(self: &Arc<Self>, id: IntentId) -> InHand {
        self.in_hand.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone());
        InHand { core: Arc::clone(self), id }
    }

    pub fn is_in_hand(&self, id: &IntentId) -> bool {
        self.in_hand.lock().unwrap_or_else(PoisonError::into_inner).contains(id)
    }

    /// Remembers, or forgets, what went wrong in a part. Logged when it changes.
    pub fn trouble(&self, part: &'static str, trouble: Option<String>) {
        let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        match trouble {
            Some(text) => {
                if troubles.get(part) != Some(&text) {
                    tracing::warn!(part, text, "trouble");
                }
                troubles.insert(part, text);
            }
            None => {
                if troubles.remove(part).is_some() {
                    tracing::info!(part, "trouble is over");
                }
            }
        }
    }

    pub fn troubles(&self) -> Vec<String> {
        let troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        troubles.iter().map(|(part, text)| format!("{part}: {text}")).collect()
    }

    /// Remembers, or forgets, what a push's new group has answered so far.
    pub fn answered(&self, push: i64, so_far: Option<SoFar>) {
        let mut all = self.so_far.lock().unwrap_or_else(PoisonError::into_inner);
        match so_far {
            Some(so_far) => drop(all.insert(push, so_far)),
            None => drop(all.remove(&push)),
        }
    }

    /// What a push's new group has answered since it is judged, while it is.
    pub fn so_far(&self, push: i64) -> Option<SoFar> {
        self.so_far.lock().unwrap_or_else(PoisonError::into_inner).get(&push).copied()
    }

    /// Appends one record outside any transaction.
    ///
    /// # Errors
    /// The ledger's.
    pub async fn record(&self, record: &Record, actor: Option<&str>) -> Result<EventId, troop_ledger::LedgerError> {
        self.ledger.append(event(record, actor)).await
    }
}

/// See [`Core::take_in_hand`].
#[derive(Debug)]
pub struct InHand {
    core: Arc<Core>,
    id: IntentId,
}

impl Drop for InHand {
    fn drop(&mut self) {
        self.core.in_hand.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

/// A record as the ledger takes it.
pub fn event(record: &Record, actor: Option<&str>) -> NewEvent {
    NewEvent {
        kind: record.kind().to_owned(),
        version: RECORD_VERSION,
        key: record.key(),
        team: record.team().map(ToString::to_string),
        actor: actor.map(str::to_owned),
        body: body(record),
    }
}

/// A value of ours as JSON. Our records hold only maps with text keys, so this cannot fail; were it ever to, the row
/// says so instead of being lost.
pub fn body(value: &impl serde::Serialize) -> serde_json::Value {
    serde_json::to_value(value).unwrap_or_else(|e| serde_json::json!({ "unrepresentable": e.to_string() }))
}

/// A new intent's id: 128 random bits, in hexadecimal.
///
/// # Errors
/// When the system has no random numbers; then nothing may be done.
pub fn new_intent_id(core: &Core) -> Result<IntentId, String> {
    intent_id(core.host.random()?)
}

/// An intent's id of these bits.
///
/// # Errors
/// Never, as ids are made; they are checked all the same.
pub fn intent_id(bits: [u8; 16]) -> Result<IntentId, String> {
    IntentId::new(hex::encode(bits)).map_err(|e| e.to_string())
}
