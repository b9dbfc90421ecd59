//! The demo's story, chapter by chapter: each asks the control plane as a user would, waits with a deadline, and prints
//! what was measured.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::civil::Weekday;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan as _};
use tokio::time::Instant;
use troop_policies::intent::Cause;
use troop_policies::plan::{DayPlan, PlanEntry, PlanVerdict};
use troop_policies::step::Step;
use troop_policies::{GroupName, InstanceId, IntentId};

use super::images::Images;
use super::latency::{self, Came};
use super::report::{KILL, Kill, Latency, PUSH, Push, STEADY, Summary, promises};
use super::watch::{Watch, Written, failed, has_flipped, is_serving, until};
use super::{DemoError, Ended, say};
use crate::api::types::{DeployRequest, ErrorKind, ExplainView, KillAnswer, KillRequest, PushView};
use crate::client::ClientError;
use crate::clock::{self, CalendarFile};
use crate::load::{Counts, Load, WARM_UP};
use crate::records::Record;
use crate::state::StateDir;
use crate::supervisor::{UpError, UpInfo};

/// The cluster that the demo pushes and kills, and the one that no policy names.
const CLUSTER: &str = "hello-web";
const QUIET: &str = "quiet-web";
const TEAM: &str = "demo";
/// Requests a second: enough that 60 ms of trouble would show.
const PER_SECOND: u32 = 200;

/// A version that is to serve must be ready within this. It takes some four seconds, on a busy machine three times that.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// v002, which never is, gets only this, so that the demo goes on.
const NEVER_READY_WITHIN: Duration = Duration::from_secs(8);
/// The first push is judged for as short as a soak can be: nothing else is to be seen before the calendar runs.
const FIRST_SOAK: Duration = Duration::from_secs(1);
const SOAK: Duration = Duration::from_secs(3);
/// v003 goes back within its soak; this is what it would have had to last.
const BAD_SOAK: Duration = Duration::from_secs(30);
/// The sample service answers in a millisecond.
const DRAIN: Duration = Duration::from_secs(2);
/// Beyond what the steps of a push may take, for what lies between them.
const SLACK: Duration = Duration::from_secs(30);
/// As the demo's policy says.
const HEALS_WITHIN: Duration = Duration::from_secs(60);
/// A plan gets its entry at the tick after the scope was seen, four times a second.
const PLANNED_WITHIN: Duration = Duration::from_secs(10);
/// After the minute of a draw: the gates, the act, and a busy machine.
const STRUCK_WITHIN: Duration = Duration::from_secs(15);
/// The load's phase is changed so long before a draw is due, so that no request to the victim counts as steady.
const BEFORE_THE_DRAW: SignedDuration = SignedDuration::from_millis(300);
/// How long it is watched after the last chapter that all is well.
const LAST_LOOK: Duration = Duration::from_secs(2);

/// What the story is told on.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) state: StateDir,
    pub(super) info: UpInfo,
    pub(super) images: Images,
    pub(super) calendar: CalendarFile,
    pub(super) calendar_file: PathBuf,
    pub(super) began: Instant,
}

/// Where the demo's calendar stands: 09:55 UTC, five minutes before the policy's window, of the last Friday. After a
/// Friday come two days without a window, so a slow machine's demo meets no second draw.
pub(super) fn calendar_start(now: Timestamp) -> Timestamp {
    let today = now.to_zoned_datetime(TimeZone::UTC).date();
    let back = i64::from(today.weekday().since(Weekday::Friday));
    let friday = today.checked_sub(back.days()).unwrap_or(today);
    friday.at(9, 55, 0, 0).to_zoned_datetime(TimeZone::UTC).map_or(now, |start| start.timestamp())
}

/// Tells the story.
///
/// # Errors
/// [`DemoError::Chapter`] at the first thing that did not come in its time.
pub(super) async fn tell(stage: &Stage) -> Result<Ended, DemoError> {
    let mut story = Story::begin(stage).await?;
    story.first_versions().await?;
    let planned = story.plan().await?;
    story.drawn_kill(&planned).await?;
    story.kill_on_demand().await?;
    story.latency().await?;
    let good = story.good_push().await?;
    story.never_ready().await?;
    story.bad_push(&good).await?;
    story.end().await
}

struct Story<'a> {
    stage: &'a Stage,
    watch: Watch,
    load: Option<Load>,
    quiet: BTreeSet<InstanceId>,
    kills: Vec<Kill>,
    latency: Option<Latency>,
    pushes: Vec<Push>,
    broken: Vec<String>,
}

/// The drawn entry, when it falls in real time, and how many it may hit.
struct Planned {
    entry: PlanEntry,
    real_at: Timestamp,
    eligible: usize,
}

impl<'a> Story<'a> {
    async fn begin(stage: &'a Stage) -> Result<Self, DemoError> {
        let at = stage.calendar.at.strftime("%a %Y-%m-%d %H:%M");
        stage.say(
            "clock",
            &format!(
                "only the scheduler's calendar is fast ({at}, 1 s = {} min); boots, heals, delays and leases are real time",
                stage.calendar.factor / 60
            ),
        );
        let watch = Watch::begin(&stage.state).await?;
        let (quiet, kills, pushes, broken) = (BTreeSet::new(), Vec::new(), Vec::new(), Vec::new());
        Ok(Self { stage, watch, load: None, quiet, kills, latency: None, pushes, broken })
    }

    fn phase(&self, name: &str) {
        if let Some(load) = &self.load {
            load.phase(name);
        }
    }

    fn so_far(&self) -> Counts {
        self.load.as_ref().map(Load::snapshot).unwrap_or_default()
    }

    /// v000 of the cluster that is opted in, and one that is not; then the client begins.
    async fn first_versions(&mut self) -> Result<(), DemoError> {
        const CHAPTER: &str = "first versions";
        let first = |cluster, image: &Path| DeployRequest {
            team: TEAM.parse().ok(),
            soak: Some(FIRST_SOAK),
            ..request(cluster, image)
        };
        let images = &self.stage.images;
        let (hello, _) = self.watch.deploy(CHAPTER, &first(CLUSTER, &images.v0)).await?;
        let (quiet, _) = self.watch.deploy(CHAPTER, &first(QUIET, &images.quiet)).await?;
        let (pricing, _) = self.watch.deploy(CHAPTER, &first(latency::PEER, &images.pricing)).await?;
        let limit = READY_WITHIN + SLACK;
        let view = self.watch.push(CHAPTER, hello, limit, has_flipped).await?;
        let address: SocketAddr = self.stage.info.balancer.parse().map_err(|e| failed(CHAPTER, format!("{e}")))?;
        let load = Load::start(address, CLUSTER.to_owned(), PER_SECOND);
        load.phase(STEADY);
        let answered = tokio::time::timeout(SLACK, load.wait_until_first_ok()).await;
        answered.map_err(|_| failed(CHAPTER, format!("no request was answered within {} s", SLACK.as_secs())))?;
        self.load = Some(load);
        let instances = self.watch.instances(CHAPTER, CLUSTER).await?;
        let zones: BTreeSet<_> = instances.iter().map(|i| &i.zone).collect();
        self.stage.say(
            "push",
            &format!(
                "{} ready in {:.1} s: {} instances, {} zones, UP, healthy; {PER_SECOND} requests/s through http://{address}",
                view.group,
                seconds(view.ready_seconds),
                instances.len(),
                zones.len(),
            ),
        );
        // Monkeys wait while a push holds its cluster; a draw that falls due then would be spared for the day.
        let view = self.watch.push(CHAPTER, hello, limit, is_serving).await?;
        self.watch.push(CHAPTER, quiet, limit, is_serving).await?;
        self.watch.push(CHAPTER, pricing, limit, is_serving).await?;
        self.pushes.push(Push::new(&view, "serving"));
        self.quiet = self.watch.instances(CHAPTER, QUIET).await?.into_iter().map(|i| i.instance).collect();
        Ok(())
    }

    /// What the day's plan says of both clusters; then the calendar runs.
    async fn plan(&mut self) -> Result<Planned, DemoError> {
        const CHAPTER: &str = "plan";
        let look = || async {
            let plans: Vec<DayPlan> = self.watch.get(CHAPTER, "plans").await.map_err(|e| e.to_string())?;
            let mut entries = plans.into_iter().flat_map(|plan| plan.entries);
            entries.find(|e| e.draw_key.ends_with(CLUSTER)).ok_or_else(|| format!("no entry for {CLUSTER} yet"))
        };
        let entry = until(CHAPTER, "the day's plan", PLANNED_WITHIN, look).await?;
        let at = match (entry.verdict, entry.at) {
            (PlanVerdict::Chosen, Some(at)) => at,
            (PlanVerdict::Chosen | PlanVerdict::Spared, _) => {
                return Err(failed(CHAPTER, format!("{CLUSTER} is not chosen: {}", entry.why)));
            }
        };
        let explained: Vec<ExplainView> = self.watch.get(CHAPTER, &format!("explain?target={CLUSTER}")).await?;
        let eligible = explained.first().map_or(0, |view| view.eligible.len());
        let spared = match self.watch.ask::<Vec<ExplainView>>(&format!("explain?target={QUIET}")).await {
            Err(ClientError::Api(error)) if error.kind == ErrorKind::Refused => {
                error.message.split(':').next().unwrap_or_default().to_owned()
            }
            Ok(_) => return Err(failed(CHAPTER, format!("{QUIET} is named by a policy"))),
            Err(e) => return Err(failed(CHAPTER, crate::world::chain(&e))),
        };
        self.stage.say(
            "plan",
            &format!(
                "{CLUSTER} chosen for {} (mean 1, min 1: odds {:.3}); {QUIET} spared: {spared}",
                at.strftime("%H:%M"),
                entry.odds.unwrap_or_default(),
            ),
        );
        let now = clock::real_now();
        let running = CalendarFile { running_since: Some(now), ..self.stage.calendar.clone() };
        running.save(&self.stage.calendar_file).map_err(UpError::State)?;
        let away = at.duration_since(running.at) / running.factor;
        let real_at = now.checked_add(away).map_err(|e| failed(CHAPTER, e.to_string()))?;
        Ok(Planned { entry, real_at, eligible })
    }

    /// The kill that was drawn, at its minute.
    async fn drawn_kill(&mut self, planned: &Planned) -> Result<(), DemoError> {
        const CHAPTER: &str = "drawn kill";
        let wait = planned.real_at.duration_since(clock::real_now()) - BEFORE_THE_DRAW;
        tokio::time::sleep(Duration::try_from(wait).unwrap_or_default()).await;
        let before = self.so_far().in_flight_to_killed;
        self.phase(KILL);
        let key = &planned.entry.draw_key;
        let drawn = |(_, record): &Written| {
            if let Record::SparedAtAct { draw_key, why, demand: false, .. } = record {
                return (draw_key == key).then(|| Err(format!("spared at its minute: {why}")));
            }
            let Record::Intended { intent, zone } = record else { return None };
            let (Step::Terminate { instance, .. }, Cause::Draw { .. }) = (&intent.step, &intent.cause) else {
                return None;
            };
            let zone = zone.as_ref().map(ToString::to_string).unwrap_or_default();
            Some(Ok((intent.id.clone(), instance.clone(), zone)))
        };
        let kinds = ["intended", "spared_at_act"];
        let (intent, victim, zone) = self
            .watch
            .record(CHAPTER, "the drawn kill", STRUCK_WITHIN, &kinds, drawn)
            .await?
            .map_err(|why| failed(CHAPTER, why))?;
        let heal_seconds = self.heals(CHAPTER, &intent, &victim, "draw").await?;
        let lost = self.so_far().in_flight_to_killed - before;
        self.stage.say(
            "kill",
            &format!(
                "{victim} ({zone}, drawn from {} eligible) gone; group whole again in {heal_seconds:.1} s; {}",
                planned.eligible,
                in_flight(lost)
            ),
        );
        self.phase(STEADY);
        Ok(())
    }

    /// A kill that somebody asked for.
    async fn kill_on_demand(&mut self) -> Result<(), DemoError> {
        const CHAPTER: &str = "kill on demand";
        let before = self.so_far().in_flight_to_killed;
        self.phase(KILL);
        // The fast calendar has left the window by now, so it is asked for outside of it, which is recorded.
        let request = KillRequest {
            target: CLUSTER.to_owned(),
            instance: None,
            reason: "demo".to_owned(),
            outside_window: true,
            plan: false,
        };
        let answer: KillAnswer = self.watch.post(CHAPTER, "kill", &request).await?;
        let (Some(victim), Some(intent)) = (&answer.victim, &answer.intent) else {
            return Err(failed(CHAPTER, format!("nobody was killed: {}", answer.detail)));
        };
        if answer.outcome != "done" {
            return Err(failed(CHAPTER, format!("{victim}: {}: {}", answer.outcome, answer.detail)));
        }
        let intent = IntentId::new(intent.clone()).map_err(|e| failed(CHAPTER, e.to_string()))?;
        let heal_seconds = self.heals(CHAPTER, &intent, victim, "demand").await?;
        let lost = self.so_far().in_flight_to_killed - before;
        let zone = answer.zone.map(|zone| zone.to_string()).unwrap_or_default();
        self.stage.say(
            "kill",
            &format!(
                "{victim} ({zone}), on demand, reason \"demo\"; healed in {heal_seconds:.1} s; {}",
                in_flight(lost)
            ),
        );
        self.phase(STEADY);
        Ok(())
    }

    /// A delay that somebody asked for, on the packets to one application.
    async fn latency(&mut self) -> Result<(), DemoError> {
        let measured = match latency::delay(&mut self.watch, CLUSTER).await? {
            Came::Measured(measured) => measured,
            Came::LeftOut(why) => {
                self.stage.say("latency", &format!("left out: {why}"));
                return Ok(());
            }
        };
        let ms = |measured: Option<f64>| measured.map_or_else(|| "not measured".to_owned(), |ms| format!("{ms:.1} ms"));
        self.stage.say(
            "latency",
            &format!(
                "{} +{} ms to {} for {} s; round trip {} -> {} -> {}, measured on the wire",
                measured.instance,
                measured.delay_ms,
                measured.to,
                measured.lasts_seconds,
                ms(measured.before_ms),
                ms(measured.during_ms),
                ms(measured.after_ms),
            ),
        );
        if !measured.is_shown() {
            self.broken.push(format!("the delay on {} was not measured to be there and then gone", measured.instance));
        }
        self.latency = Some(measured);
        Ok(())
    }

    async fn heals(
        &mut self,
        chapter: &'static str,
        intent: &IntentId,
        victim: &InstanceId,
        how: &str,
    ) -> Result<f64, DemoError> {
        let (healed, heal_seconds) = self.watch.healed(chapter, intent, HEALS_WITHIN).await?;
        self.kills.push(Kill { instance: victim.to_string(), how: how.to_owned(), healed, heal_seconds });
        if healed {
            Ok(heal_seconds)
        } else {
            Err(failed(chapter, format!("the group did not heal after the end of {victim}")))
        }
    }

    /// v001: flips, and v000 stays warm and watched.
    async fn good_push(&mut self) -> Result<GroupName, DemoError> {
        const CHAPTER: &str = "good push";
        let before = self.so_far().failed;
        self.phase(PUSH);
        let request = DeployRequest { soak: Some(SOAK), ..request(CLUSTER, &self.stage.images.v1) };
        let (push, _) = self.watch.deploy(CHAPTER, &request).await?;
        let view = self.watch.push(CHAPTER, push, READY_WITHIN + SOAK + SLACK, is_serving).await?;
        self.stage.say(
            "push",
            &format!(
                "{} ready in {:.1} s, flipped in {:.0} ms, {} warm and watched; {} failed",
                version(&view.group),
                seconds(view.ready_seconds),
                view.flip_ms.unwrap_or_default(),
                view.previous.as_ref().map_or_else(|| "nothing".to_owned(), version),
                self.so_far().failed - before,
            ),
        );
        self.pushes.push(Push::new(&view, "serving"));
        Ok(view.group)
    }

    /// v002: its health check answers 503, so it is never flipped.
    async fn never_ready(&mut self) -> Result<(), DemoError> {
        const CHAPTER: &str = "push that is never ready";
        let request = DeployRequest {
            ready_within: Some(NEVER_READY_WITHIN),
            ..request(CLUSTER, &self.stage.images.never_ready)
        };
        let (push, answer) = self.watch.deploy(CHAPTER, &request).await?;
        let wanted = |view: &PushView| match view.result.as_deref() {
            Some("cancelled") => Some(Ok(())),
            Some(other) => Some(Err(format!("it ended as {other}: {}", view.note))),
            None => None,
        };
        let view = self.watch.push(CHAPTER, push, NEVER_READY_WITHIN + SLACK, wanted).await?;
        let instances = self.watch.instances(CHAPTER, answer.group.as_str()).await?;
        let health = if instances.iter().any(|i| i.health.contains("503")) { " (health 503)" } else { "" };
        let seen = self.answers_of(&answer.group);
        if seen > 0 {
            self.broken.push(format!("{seen} requests were answered by {}, which was never ready", answer.group));
        }
        self.stage.say(
            "push",
            &format!(
                "{} never became ready{health} within {} s: never flipped, {} saw it",
                version(&view.group),
                NEVER_READY_WITHIN.as_secs(),
                if seen == 0 { "no request".to_owned() } else { format!("{seen} REQUESTS") },
            ),
        );
        self.pushes.push(Push::new(&view, "never_ready"));
        Ok(())
    }

    fn answers_of(&self, group: &GroupName) -> u64 {
        self.so_far().by_group.get(group.as_str()).copied().unwrap_or(0)
    }

    /// v003: healthy, and 31 % of its answers are errors, so it flips back by itself.
    async fn bad_push(&mut self, good: &GroupName) -> Result<(), DemoError> {
        const CHAPTER: &str = "bad push";
        let request = DeployRequest { soak: Some(BAD_SOAK), ..request(CLUSTER, &self.stage.images.bad) };
        let (push, answer) = self.watch.deploy(CHAPTER, &request).await?;
        if let Some(load) = &self.load {
            load.mark_bad(answer.group.as_str());
        }
        let wanted = |view: &PushView| match view.result.as_deref() {
            Some("rolled_back") => Some(Ok(())),
            Some(other) => Some(Err(format!("it ended as {other}: {}", view.note))),
            None if view.phase == "watch" => Some(Err("it was judged good".to_owned())),
            None => None,
        };
        let view = self.watch.push(CHAPTER, push, READY_WITHIN + BAD_SOAK + SLACK, wanted).await?;
        let (judged_in, back_in) = self.back_times(CHAPTER, push, &answer.group, good).await?;
        let own = self.so_far().by_bad_version;
        let rate = view.note.split(" (").next().unwrap_or(&view.note);
        self.stage.say(
            "push",
            &format!(
                "{} flipped, {rate} in {judged_in:.1} s: flipped back to {} by itself in {back_in:.1} s; {own} answers were {}'s own 500s",
                version(&view.group),
                version(good),
                version(&view.group),
            ),
        );
        self.pushes.push(Push::new(&view, "rolled_back"));
        Ok(())
    }

    /// From the flip to the verdict, and from the verdict to the flip back, in seconds.
    async fn back_times(
        &self,
        chapter: &'static str,
        push: u64,
        bad: &GroupName,
        good: &GroupName,
    ) -> Result<(f64, f64), DemoError> {
        let written = self.watch.records(&["settled", "push_moved"]).await.map_err(|why| failed(chapter, why))?;
        let flip_to = |group: &GroupName| {
            written.iter().find_map(|(at, record)| {
                let Record::Settled { intent, outcome } = record else { return None };
                let (Step::Flip { to, .. }, Cause::Push { push: number, .. }) = (&intent.step, &intent.cause) else {
                    return None;
                };
                (outcome.is_done() && to == group && *number == push).then_some(*at)
            })
        };
        let judged = written.iter().find_map(|(at, record)| {
            let Record::PushMoved { push: number, phase, .. } = record else { return None };
            (*number == push && phase.starts_with("back")).then_some(*at)
        });
        match (flip_to(bad), judged, flip_to(good)) {
            (Some(flipped), Some(judged), Some(back)) => {
                Ok((judged.duration_since(flipped).as_secs_f64(), back.duration_since(judged).as_secs_f64()))
            }
            times => Err(failed(chapter, format!("the ledger does not hold its flips: {times:?}"))),
        }
    }

    /// All is well once more; then what was measured is summed up.
    async fn end(mut self) -> Result<Ended, DemoError> {
        const CHAPTER: &str = "end";
        self.phase(STEADY);
        tokio::time::sleep(LAST_LOOK).await;
        let quiet: BTreeSet<InstanceId> =
            self.watch.instances(CHAPTER, QUIET).await?.into_iter().map(|i| i.instance).collect();
        let spared_touched = self.quiet.difference(&quiet).count();
        let phases = match self.load.take() {
            Some(load) => load.finish().await,
            None => Vec::new(),
        };
        let mut broken = self.broken;
        broken.extend(promises(&phases, spared_touched));
        let summary = Summary {
            schema: 1,
            seconds: self.stage.began.elapsed().as_secs_f64(),
            isolation: self.stage.info.isolation.clone(),
            phases: phases.into_iter().filter(|p| p.name != WARM_UP).map(Into::into).collect(),
            kills: self.kills,
            latency: self.latency,
            pushes: self.pushes,
            spared_touched,
            left_over: 0,
        };
        Ok(Ended { summary, broken })
    }
}

impl Stage {
    fn say(&self, what: &str, text: &str) {
        say(self.began, what, text);
    }
}

fn request(cluster: &str, image: &Path) -> DeployRequest {
    let parsed = cluster.parse();
    let cluster = parsed.unwrap_or_else(|e| unreachable!("the demo's own names are good: {e}"));
    DeployRequest {
        cluster,
        image: image.display().to_string(),
        location: None,
        team: None,
        size: None,
        watch: None,
        soak: None,
        ready_within: Some(READY_WITHIN),
        errors_above: None,
        drain: Some(DRAIN),
        plan: false,
    }
}

fn seconds(measured: Option<f64>) -> f64 {
    measured.unwrap_or_default()
}

/// `v001` of `hello-web-v001`.
fn version(group: &GroupName) -> String {
    group.sequence().map_or_else(|| group.to_string(), |n| format!("v{n:03}"))
}

fn in_flight(lost: u64) -> String {
    match lost {
        0 => "0 failed".to_owned(),
        1 => "1 request in flight to it failed".to_owned(),
        n => format!("{n} requests in flight to it failed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_calendar_stands_before_the_window_of_the_last_friday() {
        for (now, start) in [
            ("2026-11-27T00:00:00Z", "2026-11-27T09:55:00Z"),
            ("2026-11-28T10:00:00Z", "2026-11-27T09:55:00Z"),
            ("2026-11-30T23:59:59Z", "2026-11-27T09:55:00Z"),
            ("2026-12-03T12:00:00Z", "2026-11-27T09:55:00Z"),
        ] {
            assert_eq!(calendar_start(now.parse().unwrap()).to_string(), start, "{now}");
        }
    }

    #[test]
    fn a_group_is_called_by_its_version() {
        assert_eq!(version(&"hello-web-v007".parse().unwrap()), "v007");
    }
}
