//! The saboteurs, by name: each takes one guard away (see `troop_policies::sabotage`).

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::month::{Options, run};

/// All of them, with what they take away.
pub const ALL: &[(&str, &str)] = &[
    ("tag", "whose a group is"),
    ("mixed_team", "a cluster with a group of another team"),
    ("exception", "a policy's exceptions"),
    ("leash_site", "the site's leash"),
    ("leash_app", "the app's and monkey's leash"),
    ("halt_gate", "the halt, at the gates"),
    ("halt_recheck", "the halt, between record and act"),
    ("halt_hold", "a push that stands still while halted"),
    ("halted_before_flip", "the halt, right before a push's step"),
    ("deadline_shift", "deadlines that stand still while halted"),
    ("clock", "a clock that was set"),
    ("push_clock", "a push whose times a clock that was set has brought about"),
    ("mark", "the mark of another ledger"),
    ("stale_inventory", "an inventory that is too old"),
    ("shrunk_inventory", "an inventory that is implausibly small"),
    ("hold", "hold signals"),
    ("window", "the window at the act"),
    ("holiday", "holidays"),
    ("blackout", "blackouts"),
    ("push_lock", "a push that holds the cluster"),
    ("one_a_day", "one drawn kill a scope and day"),
    ("min_workdays", "the least workdays between drawn kills"),
    ("still_healing", "the last kill of the scope has healed"),
    ("unhealed", "the scope is not marked unhealed"),
    ("team_day_cap", "a team's kills a day"),
    ("site_day_cap", "the site's kills a day"),
    ("team_unhealed_cap", "a team's unhealed acts"),
    ("zone_cap", "a zone's unhealed acts"),
    ("whole", "the group is whole"),
    ("uneven", "the group is even over its zones"),
    ("failed_launch", "no launch failed within the hour"),
    ("floor", "the floor"),
    ("opt_out", "protected instances and those with troop:spare"),
    ("second_ask", "the ledger's second answer, inside the intent's transaction"),
    ("intent_first", "the intent before the act"),
    ("resolve", "an unknown outcome is asked about, not repeated"),
    ("unknown_counts", "an unknown outcome counts as a kill"),
    ("fence", "the lock is still this push's"),
    ("cancel_entry", "whoever terminates cancels"),
    ("inheritance", "later members inherit their group's override"),
    ("health", "the balancer's verdict counts"),
    ("health_age", "a health verdict that is too old is unknown"),
    ("registry", "UP in the registry counts"),
    ("ready_count", "ready: the count"),
    ("ready_zones", "ready: the zones"),
    ("ready_image", "ready: the image"),
    ("moved_on", "the recorded group still serves at the flip"),
    ("enable_first", "enable before the way back"),
    ("back_ready", "the way back is verified before the flip"),
    ("pin", "the way back keeps its size"),
    ("last_enabled", "the last enabled group stays"),
    ("name_reuse", "names in use are not given again"),
    ("way_back", "a failed group that has become a newer push's way back stays"),
    ("old_picture", "nobody but the gates acts on a picture that is too old: neither janitor nor push"),
    ("drain", "what was taken out drains before its end"),
    ("keep_failed", "a failed group is kept for a while"),
    ("superseded_early", "superseded only by what has soaked"),
    ("watch", "the old group is watched over"),
    ("no_data", "no data never promotes"),
];

/// Seeds in whose month a saboteur was caught last. Whatever changes a month may make a hint stale: then the search goes on
/// from the first seed, and a new hint is due.
const HINTS: &[(&str, u64)] = &[
    ("back_ready", 72),
    ("blackout", 6),
    ("cancel_entry", 1),
    ("clock", 8),
    ("deadline_shift", 9),
    ("drain", 49),
    ("enable_first", 1),
    ("exception", 2),
    ("failed_launch", 1),
    ("fence", 9),
    ("floor", 1),
    ("halt_gate", 2),
    ("halt_hold", 2),
    ("halt_recheck", 9),
    ("halted_before_flip", 7),
    ("health", 1),
    ("health_age", 1),
    ("hold", 25),
    ("holiday", 29),
    ("inheritance", 1),
    ("intent_first", 1),
    ("keep_failed", 1),
    ("last_enabled", 7),
    ("leash_app", 1),
    ("leash_site", 52),
    ("mark", 9),
    ("min_workdays", 1),
    ("mixed_team", 16),
    ("moved_on", 13),
    ("name_reuse", 6),
    ("no_data", 1),
    ("old_picture", 110),
    ("one_a_day", 4),
    ("opt_out", 5),
    ("pin", 21),
    ("push_clock", 25),
    ("push_lock", 2),
    ("ready_count", 2),
    ("ready_image", 29),
    ("ready_zones", 9),
    ("registry", 1),
    ("resolve", 1),
    ("second_ask", 1),
    ("shrunk_inventory", 39),
    ("site_day_cap", 6),
    ("stale_inventory", 1),
    ("still_healing", 1),
    ("superseded_early", 55),
    ("tag", 16),
    ("team_day_cap", 1),
    ("team_unhealed_cap", 3),
    ("uneven", 1),
    ("unhealed", 19),
    ("unknown_counts", 11),
    ("watch", 1),
    ("way_back", 136),
    ("whole", 28),
    ("window", 1),
    ("zone_cap", 5),
];

pub fn names() -> Vec<&'static str> {
    ALL.iter().map(|(name, _)| *name).collect()
}

/// The saboteur of this name.
pub fn named(name: &str) -> Option<&'static str> {
    names().into_iter().find(|known| *known == name)
}

/// What came of letting one loose.
#[derive(Debug, Clone)]
pub struct Caught {
    pub name: &'static str,
    pub takes_away: &'static str,
    /// The invariant that was broken, in which words, and after how many months; `None`: nobody noticed.
    pub by: Option<(&'static str, String, u64)>,
}

/// Lets each loose for at most so many months, `jobs` at a time, and tells `heard` of each at once. Only in a build for
/// sabotage is anybody at work.
pub fn table(
    first_seed: u64,
    months: u64,
    jobs: usize,
    only: Option<&str>,
    hints: bool,
    heard: impl Fn(&Caught) + Sync,
) -> Vec<Caught> {
    let next = AtomicUsize::new(0);
    let is_wanted = |name: &str| only.is_none_or(|only| only == name) && (!hints || hint(name).is_some());
    let wanted: Vec<_> = ALL.iter().filter(|(name, _)| is_wanted(name)).collect();
    let rows = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                while let Some((name, takes_away)) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let row = Caught { name, takes_away, by: caught(name, first_seed, months, hints) };
                    heard(&row);
                    if let Ok(mut rows) = rows.lock() {
                        rows.push(row);
                    }
                }
            });
        }
    });
    rows.into_inner().unwrap_or_default()
}

fn hint(name: &str) -> Option<u64> {
    HINTS.iter().find(|(hinted, _)| *hinted == name).map(|(_, seed)| *seed)
}

fn caught(name: &'static str, first_seed: u64, months: u64, hints: bool) -> Option<(&'static str, String, u64)> {
    let seeds = hint(name).filter(|_| hints).into_iter().chain((0..months).map(|month| first_seed + month));
    seeds.zip(1..=months).find_map(|(seed, month)| {
        let options = Options { seed, saboteur: Some(name), ..Options::default() };
        let found = run(&options).ok()?.violations.into_iter().next()?;
        Some((found.invariant, found.what, month))
    })
}
