//! Faults on hosts: put up through an agent, renewed, ended, and known to be gone.
//!
//! A fault is an act like a kill: intended, permitted, carried out, settled, and then watched until it has healed. Its
//! lease's name is the intent's id, so nothing is ever put up twice. While its lease lives it counts as capacity lost.
//! Whoever renews is whoever watches; when nobody does, the host heals by itself.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::oneshot;
use troop_agent_core::protocol::{Answered, Chapter, End, Grant, Measured, MeasuredBy, Story};
use troop_ledger::LedgerError;
use troop_policies::fault::{FaultSpec, in_words};
use troop_policies::intent::{Intent, Outcome};
use troop_policies::inventory::Inventory;
use troop_policies::leash::Permit;
use troop_policies::policy::AbortWhen;
use troop_policies::situation::{Reading, UnhealedMark};
use troop_policies::step::Step;
use troop_policies::{InstanceId, IntentId};

use super::core::{Core, body, event};
use super::look::Look;
use crate::agents::peers::{Resolved, resolve as resolve_peers};
use crate::agents::{HostName, LEASE, NoAnswer, Order, RENEW_EVERY};
use crate::records::{HealingBody, MARK_HEALING, MARK_UNHEALED, Record, intent_key};
use crate::world::chain;

/// How long measuring before and after the fault may take: two times five probes and their patience, the kernel in between.
/// It is part of the fault's life, so that what was asked for lasts as long as it was asked for.
pub const MEASURING_MAX: Duration = Duration::from_secs(10);
/// How long after the end of its life a fault's end is waited for: a lapse, a heal, and five probes.
const ENDS_WITHIN: Duration = Duration::from_secs(15);
/// How long at a time the agents' news are waited for.
const NEWS_EVERY: Duration = Duration::from_millis(200);
/// Answers that an error rate is judged by, at least.
const ANSWERS_MIN: u64 = 20;

/// The longest that a fault may live on its host, measuring included.
pub fn life(fault: &FaultSpec, lasts: Duration) -> Duration {
    lasts + MEASURING_MAX + Duration::from_micros(fault.ramp_us)
}

/// When a fault that was begun at `at` must be known to have ended.
pub fn deadline(fault: &FaultSpec, lasts: Duration, at: Timestamp) -> Timestamp {
    let whole = SignedDuration::try_from(life(fault, lasts) + ENDS_WITHIN).unwrap_or(SignedDuration::MAX);
    at.checked_add(whole).unwrap_or(Timestamp::MAX)
}

/// Carries the intent of a fault out: leases it to the host's agent, and waits until it was measured there.
pub async fn put_up(core: &Core, intent: &Intent, permit: Permit<'_>) -> Outcome {
    let Step::Fault { instance, fault, lasts, .. } = &intent.step else {
        return Outcome::refused(format!("no agent can `{}`", intent.step));
    };
    if let Err(why) = permit.check(&intent.step, core.now()) {
        return Outcome::refused(why.to_string());
    }
    let resolved = match peers(core, intent, fault).await {
        Ok(resolved) => resolved,
        Err(why) => return Outcome::refused(why),
    };
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let grant = Grant {
        number: 0,
        lease: intent.id.to_string(),
        ttl_ms: ms(LEASE),
        life_ms: ms(life(fault, *lasts)),
        fault: (**fault).clone(),
        peers: resolved.peers,
        probes: resolved.probes,
    };
    let host = HostName::of(&intent.account, &intent.region, instance);
    match core.agents.order(&host, Order::Grant(Box::new(grant))).await {
        Ok(Answered::Granted) => until_up(core, intent, &host, fault).await,
        Ok(Answered::Refused { why }) => Outcome::refused(why),
        Ok(other) => Outcome::unknown(format!("the agent of `{host}` answered {other:?} to a grant")),
        Err(e @ NoAnswer::NotConnected(_)) => Outcome::refused(e.to_string()),
        Err(e @ NoAnswer::Silent(_)) => Outcome::unknown(e.to_string()),
    }
}

/// What became of a fault's intent, as far as its host has told.
pub fn resolve(core: &Core, intent: &Intent) -> Outcome {
    let Step::Fault { instance, .. } = &intent.step else {
        return Outcome::unknown("it is no fault");
    };
    let host = HostName::of(&intent.account, &intent.region, instance);
    match core.agents.story(&host, intent.id.as_str()) {
        Some(story) => match story.at {
            Chapter::Up => Outcome::done(measured_in_words(&story)),
            Chapter::Over if story.applied.is_some() && story.end != Some(End::GivenUp) => {
                Outcome::done(measured_in_words(&story))
            }
            Chapter::Over => Outcome::refused(why_not(&story)),
            Chapter::Baseline | Chapter::Applying | Chapter::Healing | Chapter::Stuck | Chapter::Unknown => {
                Outcome::unknown("its host is still at it")
            }
        },
        None => Outcome::unknown(format!("the agent of `{host}` has not told of it")),
    }
}

async fn until_up(core: &Core, intent: &Intent, host: &HostName, fault: &FaultSpec) -> Outcome {
    let lease = intent.id.to_string();
    let began = core.now();
    let most = MEASURING_MAX + Duration::from_micros(fault.ramp_us);
    let mut renewed = began;
    loop {
        core.agents.changed(NEWS_EVERY).await;
        let now = core.now();
        let outcome = resolve(core, intent);
        if !matches!(outcome, Outcome::Unknown { .. }) || since(began, now) > most {
            return outcome;
        }
        if core.is_halted() || since(renewed, now) >= RENEW_EVERY {
            renewed = now;
            let order = if core.is_halted() {
                Order::End { lease: lease.clone() }
            } else {
                Order::Renew { lease: lease.clone(), peers: None }
            };
            // What is not heard lapses.
            if let Ok(Answered::Gone { why: None }) = core.agents.order(host, order).await {
                return Outcome::refused("its agent has begun anew, and undone what the former one had begun");
            }
        }
    }
}

fn since(then: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(then)).unwrap_or(Duration::ZERO)
}

async fn peers(core: &Core, intent: &Intent, fault: &FaultSpec) -> Result<Resolved, String> {
    let inventory = core.world.inventory(&intent.location()).await.map_err(|e| chain(&e))?;
    resolve_peers(fault, &inventory).await
}

/// Whom it concerns by this picture; `None`, whom it did, where that cannot be known.
async fn peers_now(fault: &FaultSpec, inventory: Reading<&Inventory>) -> Option<Vec<String>> {
    resolve_peers(fault, inventory.ok()?).await.ok().map(|resolved| resolved.peers)
}

/// Watches the faults that are up, between two looks.
#[derive(Debug, Default)]
pub struct Follower {
    faults: BTreeMap<IntentId, Following>,
}

#[derive(Debug, Default)]
struct Following {
    renewed_at: Option<Timestamp>,
    up_since: Option<Timestamp>,
    /// What the balancer had counted, and when: answers, and of them errors and failures.
    counted: VecDeque<(Timestamp, u64, u64)>,
    /// Why it was told to end, once it was.
    ending: Option<String>,
    told_to_end: bool,
    /// The answer to the last order, when it comes. A host that does not answer must not keep the others waiting.
    asked: Option<oneshot::Receiver<Result<Answered, NoAnswer>>>,
}

impl Follower {
    /// Renews, ends or settles one fault by one look.
    ///
    /// # Errors
    /// The ledger's.
    pub async fn look_after(&mut self, core: &Core, watched: &HealingBody, seen: &Look) -> Result<(), LedgerError> {
        let Step::Fault { instance, fault, lasts, .. } = &watched.intent.step else { return Ok(()) };
        let intent = &watched.intent;
        let host = HostName::of(&intent.account, &intent.region, instance);
        let story = core.agents.story(&host, intent.id.as_str());
        let following = self.faults.entry(intent.id.clone()).or_default();
        let now = seen.at;
        let ended = match &story {
            Some(story) if story.at == Chapter::Over => Some(ended_in_words(story, following.ending.as_deref())),
            Some(_) | None if is_gone(instance, intent, seen) => {
                Some("the instance is gone, and the fault with it".to_owned())
            }
            None if now > watched.deadline => {
                Some("its host has not told of it since; its lease has lapsed, which heals it".to_owned())
            }
            Some(_) | None => None,
        };
        if let Some(how) = ended {
            self.faults.remove(&intent.id);
            return settle(core, watched, story, how, now).await;
        }
        if let Some(story) = story.as_ref().filter(|story| now > watched.deadline && story.at == Chapter::Stuck) {
            let why = format!("the fault on {instance} cannot be taken down: {}", story.trouble);
            self.faults.remove(&intent.id);
            return not_healed(core, watched, why, now).await;
        }
        if story.as_ref().is_some_and(|story| story.at == Chapter::Up) {
            following.up_since.get_or_insert(now);
        }
        if following.ending.is_none() {
            following.ending = why_end(core, watched, following, *lasts, now).await;
        }
        if let Some(asked) = &mut following.asked {
            match asked.try_recv() {
                // An agent undoes what an earlier one left before it speaks to anybody.
                Ok(Ok(Answered::Gone { why: None })) => {
                    self.faults.remove(&intent.id);
                    let how = "its agent has begun anew, and undone what the former one left".to_owned();
                    return settle(core, watched, story, how, now).await;
                }
                Err(oneshot::error::TryRecvError::Empty) => return Ok(()),
                Ok(Ok(_)) => {}
                // A host that does not hear lapses, and tells so when it can.
                Ok(Err(why)) => tracing::debug!(%host, %why, "a lease was not renewed"),
                Err(oneshot::error::TryRecvError::Closed) => {}
            }
            following.asked = None;
        }
        let due = following.renewed_at.is_none_or(|at| since(at, now) >= RENEW_EVERY);
        let ends_now = following.ending.is_some() && !following.told_to_end;
        if due || ends_now {
            let lease = intent.id.to_string();
            let order = match &following.ending {
                Some(_) => Order::End { lease },
                None => Order::Renew { lease, peers: peers_now(fault, seen.inventory(&intent.location())).await },
            };
            following.renewed_at = Some(now);
            following.told_to_end = following.ending.is_some();
            let (tell, asked) = oneshot::channel();
            let agents = Arc::clone(&core.agents);
            // Nobody need be there to hear it.
            core.host.spawn(Box::pin(async move { drop(tell.send(agents.order(&host, order).await)) }));
            following.asked = Some(asked);
        }
        Ok(())
    }
}

/// Why a fault must end now: its time is over, the team's own bound is exceeded, or everything is halted.
async fn why_end(
    core: &Core,
    watched: &HealingBody,
    following: &mut Following,
    lasts: Duration,
    now: Timestamp,
) -> Option<String> {
    if core.is_halted() {
        return Some("halted".to_owned());
    }
    if following.up_since.is_some_and(|up| since(up, now) >= lasts) {
        return Some("its time was over".to_owned());
    }
    let abort = abort_when(core, &watched.intent)?;
    let Step::Fault { group, .. } = &watched.intent.step else { return None };
    let traffic = core.world.traffic(&watched.intent.location(), group.cluster()).await.ok()?;
    let counted = traffic.get(group)?;
    let (answers, errors) = (counted.answers + counted.failed, counted.server_errors + counted.failed);
    following.counted.push_back((now, answers, errors));
    let window = |at: Timestamp| since(at, now) > abort.over;
    while following.counted.len() > 1 && following.counted.get(1).is_some_and(|(at, _, _)| window(*at)) {
        following.counted.pop_front();
    }
    let (_, first_answers, first_errors) = *following.counted.front()?;
    exceeds(abort, answers.saturating_sub(first_answers), errors.saturating_sub(first_errors))
}

fn exceeds(abort: AbortWhen, answers: u64, errors: u64) -> Option<String> {
    if answers < ANSWERS_MIN {
        return None;
    }
    // Counts of a few minutes are far below the 2^53 that an f64 holds exactly.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    let percent = errors as f64 / answers as f64 * 100.0;
    let (most, over) = (abort.errors_above_percent, abort.over.as_secs());
    (percent > most).then(|| format!("{percent:.1} % errors, more than the {most} % over {over} s of `abort_when`"))
}

fn abort_when(core: &Core, intent: &Intent) -> Option<AbortWhen> {
    let team = intent.cause.team()?;
    let policies = core.policies.load();
    let app = policies.team(team)?.policy.apps.get(intent.step.group().app())?;
    app.latency.as_ref()?.abort_when
}

fn is_gone(instance: &InstanceId, intent: &Intent, seen: &Look) -> bool {
    seen.inventory(&intent.location()).is_ok_and(|inventory| inventory.instance(instance).is_none())
}

async fn settle(
    core: &Core,
    watched: &HealingBody,
    story: Option<Story>,
    how: String,
    now: Timestamp,
) -> Result<(), LedgerError> {
    let Step::Fault { group, instance, .. } = &watched.intent.step else { return Ok(()) };
    let (intent, draw_key) = (watched.intent.id.clone(), intent_key(&watched.intent));
    let seconds = now.duration_since(watched.killed_at).as_secs_f64();
    tracing::info!(%instance, how, "a fault has ended");
    let ended = Record::FaultEnded {
        intent: intent.clone(),
        draw_key: draw_key.clone(),
        group: group.clone(),
        instance: instance.clone(),
        how,
        story: story.map(Box::new),
    };
    let healed =
        Record::Healed { intent: intent.clone(), draw_key, group: group.clone(), instance: instance.clone(), seconds };
    let mut tx = core.ledger.begin().await?;
    tx.clear_mark(MARK_HEALING, intent.as_str()).await?;
    tx.append(event(&ended, None)).await?;
    tx.append(event(&healed, None)).await?;
    tx.commit().await
}

async fn not_healed(core: &Core, watched: &HealingBody, why: String, now: Timestamp) -> Result<(), LedgerError> {
    let Step::Fault { group, instance, .. } = &watched.intent.step else { return Ok(()) };
    let (intent, draw_key) = (watched.intent.id.clone(), intent_key(&watched.intent));
    let after_seconds = now.duration_since(watched.killed_at).as_secs_f64();
    tracing::warn!(%instance, why, "a fault has not healed");
    let mark = UnhealedMark { since: watched.deadline, why: why.clone() };
    let (group, instance) = (group.clone(), instance.clone());
    let mut tx = core.ledger.begin().await?;
    tx.clear_mark(MARK_HEALING, intent.as_str()).await?;
    tx.set_mark(MARK_UNHEALED, &draw_key, body(&mark)).await?;
    tx.append(event(&Record::NotHealed { intent, draw_key, group, instance, after_seconds, why }, None)).await?;
    tx.commit().await
}

fn why_not(story: &Story) -> String {
    match (story.trouble.as_str(), story.end) {
        ("", Some(end)) => format!("it ended before it was up: {}", end_in_words(end)),
        ("", None) => "it ended before it was up".to_owned(),
        (trouble, _) => trouble.to_owned(),
    }
}

/// `round trip 0.3 ms -> 200.4 ms, by handshakes`.
pub fn measured_in_words(story: &Story) -> String {
    let by = match story.applied.as_ref().map(|applied| applied.by) {
        Some(MeasuredBy::Handshake) => "measured on the wire",
        Some(MeasuredBy::Sockets) => "as the host's own connections have it",
        Some(MeasuredBy::Plane) => "as its plane counts",
        Some(MeasuredBy::Unknown) | None => "not measured",
    };
    let times = [&story.baseline, &story.applied, &story.healed];
    let times: Vec<String> = times.into_iter().flatten().map(one_in_words).collect();
    format!("round trip {}, {by}", times.join(" -> "))
}

fn one_in_words(measured: &Measured) -> String {
    match measured.median_us {
        Some(us @ 0..1_000_000) => format!("{}.{} ms", us / 1_000, us % 1_000 / 100),
        Some(us) => in_words(us),
        None if measured.sent == 0 => "not measured".to_owned(),
        None => format!("{} of {} answered", measured.back, measured.sent),
    }
}

fn end_in_words(end: End) -> &'static str {
    match end {
        End::Lapsed => "its lease lapsed",
        End::LifeOver => "it had its life",
        End::Ended => "it was told to end",
        End::Halted => "halted",
        End::GivenUp => "its host gave it up",
        End::Unknown => "for a reason of a later release",
    }
}

fn ended_in_words(story: &Story, ending: Option<&str>) -> String {
    let why = match (ending, story.end) {
        (Some(why), Some(End::Ended)) => why.to_owned(),
        (_, Some(end)) => end_in_words(end).to_owned(),
        (Some(why), None) => why.to_owned(),
        (None, None) => "it ended".to_owned(),
    };
    let trouble = if story.trouble.is_empty() { String::new() } else { format!("; {}", story.trouble) };
    format!("{why}: {}{trouble}", measured_in_words(story))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn story() -> Story {
        let rtt = |us| Some(Measured { median_us: Some(us), sent: 5, back: 5, by: MeasuredBy::Handshake });
        Story {
            lease: "aa".to_owned(),
            at: Chapter::Over,
            plane: "forward".to_owned(),
            baseline: rtt(312),
            applied: rtt(200_431),
            healed: rtt(329),
            end: Some(End::Ended),
            trouble: String::new(),
        }
    }

    #[test]
    fn a_story_is_told_by_its_three_figures() {
        assert_eq!(measured_in_words(&story()), "round trip 0.3 ms -> 200.4 ms -> 0.3 ms, measured on the wire");
        let said = ended_in_words(&story(), Some("its time was over"));
        assert_eq!(said, "its time was over: round trip 0.3 ms -> 200.4 ms -> 0.3 ms, measured on the wire");
        let lapsed = Story { end: Some(End::Lapsed), healed: None, ..story() };
        assert!(ended_in_words(&lapsed, Some("its time was over")).starts_with("its lease lapsed: "));
        let failed = Story { trouble: "no room".to_owned(), ..story() };
        assert!(ended_in_words(&failed, None).ends_with("; no room"));
    }

    #[test]
    fn an_error_rate_is_judged_by_enough_answers_only() {
        let abort = AbortWhen { errors_above_percent: 2.0, over: Duration::from_secs(30) };
        assert_eq!(exceeds(abort, 19, 19), None);
        assert_eq!(exceeds(abort, 100, 2), None);
        let why = exceeds(abort, 100, 3).unwrap();
        assert_eq!(why, "3.0 % errors, more than the 2 % over 30 s of `abort_when`");
    }

    #[test]
    fn a_fault_may_live_as_long_as_it_was_asked_for_and_the_measuring_takes() {
        let fault = FaultSpec { ramp_us: 2_000_000, ..FaultSpec::default() };
        assert_eq!(life(&fault, Duration::from_secs(6)), Duration::from_secs(18));
    }
}
