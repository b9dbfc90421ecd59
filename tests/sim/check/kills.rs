//! Kills: was this allowed, now, by what its team wrote and by how the world was?

use jiff::{SignedDuration, Timestamp};
use troop_policies::intent::{Cause, Intent};
use troop_policies::inventory::{Group, Lifecycle};
use troop_policies::plan::PlanVerdict;
use troop_policies::policy::{AppPolicy, ChaosPolicy, Policy};
use troop_policies::step::Step;
use troop_policies::{GroupName, InstanceId};

use super::{Ask, Book, Kill, calendar, seen};
use crate::host::later;
use crate::world::State;

/// How long after its minute a drawn kill may still come: what the plan allows, and the call.
const FIRES_WITHIN_S: i64 = 630;

pub(super) fn asked(book: &mut Book, state: &State, ask: &Ask<'_>) {
    let now = state.now;
    let Step::Terminate { group, instance, .. } = &ask.intent.step else {
        return book.wrong("I16", now, format!("a monkey did `{}`", ask.intent.step));
    };
    let Some(kill) = kill(book, ask.intent, group, instance, now) else {
        return book.wrong("I16", now, format!("{instance} of {group} was killed without a policy"));
    };
    let wrong = wrongs(book, state, ask, &kill);
    for (invariant, what) in wrong {
        book.wrong(invariant, now, format!("{what}: {instance} of {group}, {}", cause_text(ask.intent)));
    }
    let zone = state.lives.get(instance).map(|life| life.zone.clone());
    book.kills.push(Kill { zone, ..kill });
}

fn cause_text(intent: &Intent) -> String {
    match &intent.cause {
        Cause::Draw { day, draw_key, .. } => format!("drawn {day} for {draw_key}"),
        Cause::Drill { day, monkey, .. } => format!("{monkey} of {day}"),
        Cause::Demand { actor, outside_window, .. } => format!("asked for by {actor}, outside: {outside_window}"),
        Cause::Push { .. } | Cause::Upkeep { .. } => String::new(),
    }
}

fn kill(book: &Book, intent: &Intent, group: &GroupName, instance: &InstanceId, now: Timestamp) -> Option<Kill> {
    let team = intent.cause.team()?;
    let policy = book.policies.get(team)?;
    let app = policy.apps.get(group.app())?;
    let (day, drawn) = match &intent.cause {
        Cause::Draw { day, .. } => (*day, true),
        Cause::Drill { day, .. } => (*day, false),
        Cause::Demand { .. } | Cause::Push { .. } | Cause::Upkeep { .. } => {
            (calendar::civil_day(policy, intent.at), false)
        }
    };
    let drill = match &intent.cause {
        Cause::Drill { monkey, .. } => Some(monkey.clone()),
        Cause::Draw { .. } | Cause::Demand { .. } | Cause::Push { .. } | Cause::Upkeep { .. } => None,
    };
    let heals = SignedDuration::try_from(app.heals_within).unwrap_or(SignedDuration::ZERO);
    Some(Kill {
        id: intent.id.clone(),
        at: now,
        team: team.clone(),
        draw_key: intent.cause.draw_key().unwrap_or_default().to_owned(),
        day,
        drawn,
        drill,
        group: group.clone(),
        instance: instance.clone(),
        zone: None,
        deadline: later(now, heals),
        healed: None,
    })
}

type Wrong = (&'static str, String);

fn wrongs(book: &Book, state: &State, ask: &Ask<'_>, kill: &Kill) -> Vec<Wrong> {
    let mut wrong = Vec::new();
    let Some(policy) = book.policies.get(&kill.team) else { return wrong };
    let Some(app) = policy.apps.get(kill.group.app()) else { return wrong };
    let Some(chaos) = &app.chaos else { return vec![("I16", "no monkey is named".to_owned())] };
    wrong.extend(opt_in(book, state, ask, policy, app, kill));
    wrong.extend(stops(book, state, ask, policy, chaos));
    wrong.extend(history(book, ask, policy, chaos, kill));
    wrong.extend(caps(book, state, policy, kill));
    if let Some((group, _)) = state.member(&kill.instance) {
        wrong.extend(capacity(book, state, app, kill, group));
    }
    wrong.extend(lock(ask, chaos, kill));
    if kill.drawn || kill.drill.is_some() {
        wrong.extend(drawn(ask, kill));
    }
    wrong
}

/// I16: whose it is, and whether its team wants it hurt.
fn opt_in(book: &Book, state: &State, ask: &Ask<'_>, policy: &Policy, app: &AppPolicy, kill: &Kill) -> Option<Wrong> {
    let (cluster, now) = (kill.group.cluster(), state.now);
    let groups = || state.groups.values().filter(|group| group.cluster() == cluster);
    let stood = |group: &&Group| seen(group.created_at, now) && !book.touched_since(cluster, earlier(now));
    if let Some(theirs) = groups().filter(stood).find(|group| group.team().as_ref() != Some(&policy.team)) {
        return Some(("I16", format!("{} is not of team {}", theirs.name, policy.team)));
    }
    // Asked of the exceptions themselves, not by the function that a saboteur may have taken away.
    let exception = app.exceptions.iter().find(|e| e.matches(&state.account, &state.region, cluster));
    if let Some(exception) = exception {
        return Some(("I16", format!("an exception: {}", exception.reason)));
    }
    let spells = ask.spells;
    for (spell, what) in [(spells.fire, "fire"), (spells.away, "cannot be asked")] {
        // Asked right before, and answered at once: a few seconds for the calls between.
        let within = |(since, until): (Timestamp, Timestamp)| crate::host::seconds_later(since, 5) < now && now < until;
        if !app.hold_while.is_empty() && spell.is_some_and(within) {
            return Some(("I16", format!("its team's hold signals {what}")));
        }
    }
    let foreign = |group: &&Group| book.foreign.get(&group.name).is_some_and(|since| seen(*since, now));
    if let Some(group) = groups().find(foreign) {
        return Some(("I16", format!("{} carries a mark that this ledger does not hold", group.name)));
    }
    let spared = book.spared.get(&kill.instance).is_some_and(|since| seen(*since, now));
    spared.then(|| ("I16", "it was opted out".to_owned()))
}

fn earlier(now: Timestamp) -> Timestamp {
    crate::host::seconds_later(now, -crate::world::UNSEEN_S)
}

/// I16: window, halt, leash, clock, and what was seen.
fn stops(book: &Book, state: &State, ask: &Ask<'_>, policy: &Policy, chaos: &ChaosPolicy) -> Option<Wrong> {
    let now = state.now;
    let outside = matches!(ask.intent.cause, Cause::Demand { outside_window: true, .. });
    // What its own clock said: a clock that is a little wrong is nobody's fault.
    let by_its_clock = later(now, SignedDuration::from_millis(ask.skew_ms));
    if let Some(why) = calendar::shut(policy, by_its_clock).filter(|_| !outside) {
        return Some(("I16", why.to_owned()));
    }
    if ask.halted.is_some() {
        return Some(("I16", "halted".to_owned()));
    }
    if let (Some(halted), Some(row)) = (&ask.halted, &ask.row)
        && halted.at < row.real_at
    {
        return Some(("I16", "intended while halted".to_owned()));
    }
    if book.site_leashed || chaos.leashed {
        return Some(("I16", "leashed".to_owned()));
    }
    if ask.skew_ms.abs() > 31_000 {
        return Some(("I16", format!("its clock is wrong by {} s", ask.skew_ms / 1_000)));
    }
    let ill = book.seen_ill.get(&ask.plane).filter(|_| book.seen_well.contains_key(&ask.plane));
    ill.filter(|since| seen(**since, now)).map(|_| ("I16", "the inventory is old, or half missing".to_owned()))
}

/// I15 and I17: what happened to the scope before.
fn history(book: &Book, ask: &Ask<'_>, policy: &Policy, chaos: &ChaosPolicy, kill: &Kill) -> Vec<Wrong> {
    let mut wrong = Vec::new();
    let mut of_scope = book.kills.iter().filter(|k| k.draw_key == kill.draw_key);
    if kill.drawn && of_scope.clone().any(|k| k.drawn && k.day == kill.day) {
        wrong.push(("I15", "a second drawn kill of a day".to_owned()));
    }
    if kill.drill.is_some() && of_scope.clone().any(|k| k.drill == kill.drill && k.day == kill.day) {
        wrong.push(("I15", "a drill for the second time on its day".to_owned()));
    }
    let last = of_scope.next_back();
    if let Some(last) = last.filter(|_| kill.drawn) {
        let workdays = calendar::workdays_between(policy, last.day, kill.day);
        if workdays < chaos.rate.min_workdays {
            let min = chaos.rate.min_workdays;
            wrong.push(("I17", format!("{workdays} workdays after the last kill, {min} is the minimum")));
        }
    }
    if last.is_some_and(|last| last.healed.is_none() && kill.at < last.deadline) {
        wrong.push(("I15", "the last kill has not healed".to_owned()));
    }
    let marked = ask.unhealed_since.zip(ask.row.as_ref()).is_some_and(|(since, row)| since < row.real_at);
    if marked {
        wrong.push(("I15", "the scope is marked unhealed".to_owned()));
    }
    wrong
}

fn caps(book: &Book, state: &State, policy: &Policy, kill: &Kill) -> Vec<Wrong> {
    let mut wrong = Vec::new();
    let today = calendar::start_of(policy, calendar::civil_day(policy, kill.at));
    let since = |team: bool| book.kills.iter().filter(|k| k.at >= today && (!team || k.team == kill.team)).count();
    let over = |kills: usize, cap: Option<u32>| cap.is_some_and(|cap| kills >= usize::try_from(cap).unwrap_or(0));
    if over(since(true), policy.caps.kills_per_day) {
        wrong.push(("I15", format!("{} kills of the team today already", since(true))));
    }
    if over(since(false), book.site_kills_per_day) {
        wrong.push(("I15", format!("{} kills of the site today already", since(false))));
    }
    let open = || book.kills.iter().filter(|k| k.healed.is_none() && kill.at < k.deadline);
    let of_team = open().filter(|k| k.team == kill.team).count();
    if over(of_team, Some(policy.caps.unhealed_at_once)) {
        wrong.push(("I15", format!("{of_team} kills of the team have not healed")));
    }
    let zone = state.lives.get(&kill.instance).map(|life| &life.zone);
    if open().any(|k| k.zone.as_ref() == zone) {
        wrong.push(("I15", "a second unhealed kill in one zone".to_owned()));
    }
    wrong
}

/// I1, and that only a member of the group that serves is ever hurt.
fn capacity(book: &Book, state: &State, app: &AppPolicy, kill: &Kill, group: &Group) -> Vec<Wrong> {
    let mut wrong = Vec::new();
    let (now, believed) = (state.now, state.believed(&group.name));
    let floor = usize::try_from(app.min_serving).unwrap_or(usize::MAX);
    let counts = state.lives.get(&kill.instance).is_some_and(|life| life.serves || life.lost_at.is_some());
    if believed.saturating_sub(usize::from(counts)) < floor.max(1) {
        wrong.push(("I1", format!("{believed} serve, and {floor} must be kept")));
    }
    let desired = usize::try_from(group.size.desired).unwrap_or(usize::MAX);
    let untouched = !book.touched_since(group.cluster(), earlier(now));
    if believed < desired && untouched {
        wrong.push(("I1", format!("{} is not whole: {believed} of {desired}", group.name)));
    }
    if group.last_failed_launch.is_some_and(|at| seen(at, now) && now < crate::host::seconds_later(at, 3_540)) {
        wrong.push(("I1", format!("a launch of {} failed within the hour", group.name)));
    }
    let uneven = spread(group) > 1 && untouched;
    let settled = group.members.values().all(|m| seen(m.launched_at, now));
    if uneven
        && settled
        && state.lives.values().all(|l| l.group != group.name || l.ended_at.is_none_or(|at| seen(at, now)))
    {
        wrong.push(("I1", format!("{} is uneven over its zones", group.name)));
    }
    let rotated = book.turn(group.cluster());
    if !group.in_rotation && rotated.is_none_or(|turn| seen(turn.at, now)) {
        wrong.push(("I5", format!("{} does not serve", group.name)));
    }
    if group.members.get(&kill.instance).is_some_and(|m| m.lifecycle == Lifecycle::Standby && untouched) {
        wrong.push(("I16", "it is in standby".to_owned()));
    }
    wrong
}

fn spread(group: &Group) -> usize {
    let counts = group.zones.iter().map(|zone| group.members.values().filter(|m| m.zone == *zone).count());
    let counts: Vec<_> = counts.collect();
    counts.iter().max().unwrap_or(&0) - counts.iter().min().unwrap_or(&0)
}

/// I9: no monkey while a push holds the cluster.
fn lock(ask: &Ask<'_>, chaos: &ChaosPolicy, kill: &Kill) -> Option<Wrong> {
    let lock = ask.holder(kill.group.cluster()).filter(|_| !chaos.during_push)?;
    let before = ask.row.as_ref().is_some_and(|row| lock.real_at < row.real_at);
    before.then(|| ("I9", format!("{} holds the cluster", lock.holder)))
}

/// I20: the plan says so, at this minute.
fn drawn(ask: &Ask<'_>, kill: &Kill) -> Option<Wrong> {
    let Some(plan) = &ask.plan else { return Some(("I20", "the ledger holds no plan of the day".to_owned())) };
    let monkey = kill.drill.as_deref().unwrap_or("chaos");
    let entry = plan.entries.iter().find(|e| e.draw_key == kill.draw_key && e.monkey == monkey);
    let Some(entry) = entry else { return Some(("I20", "the plan has no such entry".to_owned())) };
    let chosen =
        entry.verdict == PlanVerdict::Chosen && !entry.missed && (kill.drill.is_some() || entry.fell == Some(true));
    let by_its_clock = later(kill.at, SignedDuration::from_millis(ask.skew_ms));
    let due = entry.at.is_some_and(|at| (-1..=FIRES_WITHIN_S).contains(&by_its_clock.duration_since(at).as_secs()));
    (!chosen || !due).then(|| ("I20", format!("the plan does not say so: {}", entry.why)))
}

/// Notes which kills have healed: the victim gone, its entry too, and its group, or the one that serves now, whole.
pub(super) fn note_healed(book: &mut Book, state: &State) {
    for kill in book.kills.iter_mut().filter(|kill| kill.healed.is_none()) {
        let gone = state.member(&kill.instance).is_none() && !state.registry.lists(&kill.group, &kill.instance);
        let group = state.groups.get(&kill.group).filter(|g| g.enabled);
        let group = group.or_else(|| state.in_rotation(kill.group.cluster()));
        let whole = group.is_some_and(|group| {
            let desired = usize::try_from(group.size.desired).unwrap_or(usize::MAX);
            group.members.len() == desired && state.serving(&group.name) == desired
        });
        if gone && whole {
            kill.healed = Some(state.now);
        }
    }
}
