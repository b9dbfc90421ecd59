//! Notices: what the ledger says of a team is told on the channels that its policy names.
//!
//! A part of the control plane that changes nothing but its own marks. It follows the ledger's events, so that whatever wrote
//! them is told, once it is on disk. Each recipient has a cursor and pauses of its own, and a recipient that fails takes
//! none of the places kept for those that do not, so that a slow channel holds up no other.

pub mod channel;
mod follow;
mod trial;
mod words;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use jiff::{SignedDuration, Timestamp};
use troop_ledger::EventId;
use troop_policies::TeamName;
use troop_policies::policy::{Recipient, Site};

use self::follow::{PAUSE_MAX, Turn};
use super::core::Core;
use super::policy_store::Policies;
use crate::records::notices_key;
use crate::world::chain;

pub use self::follow::any_works;
pub use self::trial::try_all;

/// How often the ledger is asked for new events.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Turns at a time. Test notices may have as many more; together they fit the way out of the sandbox.
const PLACES: usize = 10;
/// Of these, for recipients whose last notice was not taken.
const PLACES_OF_FAILING: usize = 5;
/// Recipients that are named as failing; the rest is a number.
const FAILING_TOLD: usize = 3;
/// The parts of `status` that are ours.
const TROUBLE: &str = "notices";
const TROUBLE_UNKNOWN: &str = "notify";

type Key = (TeamName, Recipient);

/// What is remembered of a recipient; the ledger's mark knows the rest.
#[derive(Debug, Default)]
struct Follower {
    /// `None` until its first turn.
    scanned: Option<EventId>,
    /// How often the present notice was tried in vain.
    tries: u32,
    /// Not before this.
    due: Option<Timestamp>,
    /// A turn is going on.
    is_busy: bool,
    /// Why the last turn could not be had: its mark or the ledger.
    broken: Option<String>,
}

impl Follower {
    fn has_something(&self, newest: EventId, now: Timestamp) -> bool {
        let is_behind = self.scanned.is_none_or(|scanned| scanned < newest);
        // A pause that is longer than any is of a clock that was set back.
        let longest = SignedDuration::try_from(PAUSE_MAX).unwrap_or(SignedDuration::MAX);
        let waits = self.due.is_some_and(|due| now < due && due.duration_since(now) <= longest);
        !self.is_busy && is_behind && !waits
    }

    fn fails(&self) -> bool {
        self.tries > 0 || self.broken.is_some()
    }

    fn take(&mut self, turn: Result<Turn, String>, now: Timestamp) {
        self.is_busy = false;
        let (tries, pause) = match turn {
            Ok(turn) => {
                self.scanned = Some(turn.scanned);
                self.broken = None;
                turn.waits.map_or((0, Duration::ZERO), |waits| waits)
            }
            Err(why) => {
                self.broken = Some(why);
                (self.tries, PAUSE_MAX)
            }
        };
        self.tries = tries;
        self.due = SignedDuration::try_from(pause).ok().and_then(|pause| now.checked_add(pause).ok());
    }
}

/// All recipients of all teams, and what goes on for them.
#[derive(Default)]
struct Notices {
    followers: BTreeMap<Key, Follower>,
    policies: Option<Arc<Policies>>,
    turns: FuturesUnordered<BoxFuture<'static, (Key, Result<Turn, String>)>>,
    /// Whose turn was begun last: the next in order comes first.
    last: Option<Key>,
    /// The ledger's newest event.
    newest: Option<EventId>,
}

/// Tells the teams for as long as the control plane runs. Only for a site that has channels.
pub async fn run(core: Arc<Core>) {
    let mut notices = Notices::default();
    let mut every = tokio::time::interval(LOOK_EVERY);
    loop {
        tokio::select! {
            _ = every.tick() => notices.look(&core).await,
            Some((key, turn)) = notices.turns.next() => {
                if let Some(follower) = notices.followers.get_mut(&key) {
                    follower.take(turn, core.now());
                }
            }
        }
        notices.begin(&core);
    }
}

/// Tells, for `status`, which recipients the site has no channel for. Reads nothing.
pub fn note_unknown(core: &Core, policies: &Policies) {
    let unknown: Vec<_> = recipients(policies)
        .filter(|(_, to)| !core.site.channels.contains_key(&to.channel))
        .map(|(team, to)| {
            format!("team {team} cannot be told on `{to}`: the site file has no channel `{}`", to.channel)
        })
        .collect();
    core.trouble(TROUBLE_UNKNOWN, some_of(unknown));
}

fn recipients(policies: &Policies) -> impl Iterator<Item = Key> {
    policies.good().flat_map(|team| team.policy.notify.iter().map(|to| (team.policy.team.clone(), to.clone())))
}

/// The first few, and how many more; `None` where there is none.
fn some_of(all: Vec<String>) -> Option<String> {
    let more = all.len().saturating_sub(FAILING_TOLD);
    let told = all.into_iter().take(FAILING_TOLD).collect::<Vec<_>>().join("; ");
    match (told.is_empty(), more) {
        (true, _) => None,
        (false, 0) => Some(told),
        (false, more) => Some(format!("{told}; and {more} more")),
    }
}

impl Notices {
    /// Takes up the policies and the ledger as they are now, and tells `status` who cannot be told.
    async fn look(&mut self, core: &Core) {
        self.take_up(core.policies.load_full(), &core.site);
        match core.ledger.newest_id().await {
            Ok(newest) => self.newest = newest,
            Err(e) => return core.trouble(TROUBLE, Some(chain(&e))),
        }
        if self.followers.is_empty() {
            return core.trouble(TROUBLE, None);
        }
        let marks = match follow::failing(core).await {
            Ok(marks) => marks,
            Err(e) => return core.trouble(TROUBLE, Some(chain(&e))),
        };
        let failing = self.followers.iter_mut().filter_map(|((team, to), follower)| {
            let mark = marks.get(&notices_key(team, to));
            if mark.is_none() && follower.broken.is_none() {
                // A test notice was taken meanwhile: what waits need not wait any more.
                follower.due = None;
                follower.tries = 0;
            }
            let why = follower.broken.clone().or_else(|| mark.map(ToString::to_string))?;
            Some(format!("team {team} cannot be told on `{to}`: {why}"))
        });
        core.trouble(TROUBLE, some_of(failing.collect()));
    }

    /// A team whose file has turned bad is told as before of what goes on; it is spared, and may have an act that heals.
    fn take_up(&mut self, policies: Arc<Policies>, site: &Site) {
        if self.policies.as_ref().is_some_and(|known| Arc::ptr_eq(known, &policies)) {
            return;
        }
        let named: BTreeMap<Key, ()> = recipients(&policies)
            .filter(|(_, to)| site.channels.contains_key(&to.channel))
            .map(|key| (key, ()))
            .collect();
        let is_bad =
            |team: &TeamName| policies.files.iter().any(|f| f.result.is_err() && f.team.as_ref() == Some(team));
        self.followers.retain(|key, _| named.contains_key(key) || is_bad(&key.0));
        for (key, ()) in named {
            self.followers.entry(key).or_default();
        }
        self.policies = Some(policies);
    }

    /// Begins the turns of those who have something to be told, as far as there are places.
    fn begin(&mut self, core: &Arc<Core>) {
        let (now, newest) = (core.now(), self.newest.unwrap_or(EventId(0)));
        let mut failing = self.followers.values().filter(|f| f.is_busy && f.fails()).count();
        let has_something = self.followers.iter().filter(|(_, follower)| follower.has_something(newest, now));
        let (before, after): (Vec<Key>, Vec<Key>) = has_something
            .map(|(key, _)| key.clone())
            .partition(|key| self.last.as_ref().is_some_and(|last| key <= last));
        for key in after.into_iter().chain(before) {
            if self.turns.len() >= PLACES {
                return;
            }
            let Some(follower) = self.followers.get_mut(&key) else { continue };
            if follower.fails() && failing >= PLACES_OF_FAILING {
                continue;
            }
            let Some(channel) = core.site.channels.get(&key.1.channel).cloned() else { continue };
            failing += usize::from(follower.fails());
            follower.is_busy = true;
            let (core, had) = (Arc::clone(core), (follower.scanned, follower.tries));
            self.last = Some(key.clone());
            self.turns.push(Box::pin(async move {
                let turn = follow::turn(&core, &key.0, &key.1, &channel, had).await;
                (key, turn)
            }));
        }
    }
}
