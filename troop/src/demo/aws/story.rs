//! The story on the calls of AWS, asked of the control plane as a user would, over its socket.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use troop_cloud::{Claim, Claimant};
use troop_policies::intent::Cause;
use troop_policies::plan::{DayPlan, PlanVerdict};
use troop_policies::step::Step;
use troop_policies::{ImageId, IntentId, TeamName};

use super::super::report::{Kill, Push};
use super::super::watch::{Watch, Written, failed, has_flipped, is_serving, until};
use super::super::{CALENDAR_FACTOR, DemoError, say};
use super::CLUSTER;
use super::front::{Calls, Front, changing};
use crate::api::types::{
    DeployRequest, KillAnswer, KillRequest, LiveView, NotifyAnswer, NotifyRequest, RollbackAnswer, RollbackRequest,
};
use crate::clock::{self, Calendar};
use crate::records::Record;
use crate::serve::core::Core;
use crate::state::StateDir;

const TEAM: &str = "demo";
/// What a stand-in takes for anything is moments; a busy machine needs more.
const WITHIN: Duration = Duration::from_secs(90);
/// As the demo's policy says.
const HEALS_WITHIN: Duration = Duration::from_secs(60);
const SOAK: Duration = Duration::from_secs(1);
const DRAIN: Duration = Duration::from_secs(1);

pub(super) struct Stage {
    pub(super) state: StateDir,
    pub(super) core: Arc<Core>,
    pub(super) calendar: Calendar,
    pub(super) images: Vec<ImageId>,
    pub(super) front: Front,
    pub(super) began: Instant,
}

type Told = (Vec<Kill>, Vec<Push>, Vec<String>);

/// Tells the story.
///
/// # Errors
/// [`DemoError::Chapter`] at the first thing that did not come in its time.
pub(super) async fn tell(stage: &Stage) -> Result<Told, DemoError> {
    let watch = Watch::begin(&stage.state).await?;
    let mut story = Story { stage, watch, kills: Vec::new(), pushes: Vec::new(), broken: Vec::new() };
    story.ready().await?;
    story.push(0, "hello-web-v000").await?;
    story.drawn_kill().await?;
    story.kill_on_demand().await?;
    let second = story.push(1, "hello-web-v001").await?;
    story.rollback(second).await?;
    Ok((story.kills, story.pushes, story.broken))
}

/// What a plan's calls come to that change something.
fn planned_changes(calls: &[String]) -> Calls {
    let mut planned = Calls::new();
    for call in calls.iter().filter_map(|text| text.split(' ').next()) {
        *planned.entry(call.to_owned()).or_default() += 1;
    }
    changing(&planned)
}

struct Story<'a> {
    stage: &'a Stage,
    watch: Watch,
    kills: Vec<Kill>,
    pushes: Vec<Push>,
    broken: Vec<String>,
}

impl Story<'_> {
    fn say(&self, what: &str, text: &str) {
        say(self.stage.began, what, text);
    }

    async fn live(&self, chapter: &'static str) -> Result<LiveView, DemoError> {
        self.watch.get(chapter, "live").await
    }

    /// A site that is unleashed by its file harms nobody until it is ready; then the region is its own.
    async fn ready(&mut self) -> Result<(), DemoError> {
        const CHAPTER: &str = "ready";
        let look = || async {
            let live = self.live(CHAPTER).await.map_err(|e| e.to_string())?;
            let channel = live.not_ready.iter().find(|missing| missing.contains("channel")).cloned();
            channel.ok_or_else(|| format!("it misses {:?}", live.not_ready))
        };
        let missing = until(CHAPTER, "the site says that no channel works yet", WITHIN, look).await?;
        self.say("leash", &format!("on until there is {missing}"));
        let team = TeamName::new(TEAM).map_err(|e| failed(CHAPTER, e.to_string()))?;
        let look = || async {
            let told: NotifyAnswer =
                self.watch.post(CHAPTER, "notify", &NotifyRequest { team: team.clone(), message: None }).await?;
            let failing = told.told.iter().find(|view| !view.ok);
            failing.map_or(Ok(()), |view| Err(failed(CHAPTER, view.text.clone())))?;
            let live = self.live(CHAPTER).await?;
            if live.not_ready.is_empty() { Ok(()) } else { Err(failed(CHAPTER, live.not_ready.join("; "))) }
        };
        until(CHAPTER, "the site is ready", WITHIN, look).await?;
        let other = Claimant { site: "other".to_owned(), fingerprint: "another's".to_owned() };
        let cloud = self.stage.core.world.clouds().first().ok_or_else(|| failed(CHAPTER, "there is no account"))?;
        let region = cloud.regions().first().ok_or_else(|| failed(CHAPTER, "there is no region"))?;
        match cloud.claim(region, &other).await {
            Ok(Claim::Theirs { site, .. }) => {
                self.say(
                    "leash",
                    &format!("off: the region is claimed; a second site is told that site `{site}` has it"),
                );
            }
            Ok(Claim::Ours) => self.broken.push("two sites have one region".to_owned()),
            Err(e) => return Err(failed(CHAPTER, e.to_string())),
        }
        Ok(())
    }

    async fn push(&mut self, image: usize, group: &str) -> Result<u64, DemoError> {
        const CHAPTER: &str = "push";
        let image = self.stage.images.get(image).ok_or_else(|| failed(CHAPTER, "there is no such image"))?;
        let request = DeployRequest {
            cluster: CLUSTER.parse().map_err(|e| failed(CHAPTER, format!("{e}")))?,
            image: image.to_string(),
            location: None,
            team: TEAM.parse().ok(),
            size: None,
            watch: None,
            soak: Some(SOAK),
            ready_within: Some(WITHIN),
            errors_above: None,
            drain: Some(DRAIN),
            plan: false,
        };
        let (number, _) = self.watch.deploy(CHAPTER, &request).await?;
        self.watch.push(CHAPTER, number, WITHIN * 2, has_flipped).await?;
        let view = self.watch.push(CHAPTER, number, WITHIN * 2, is_serving).await?;
        let instances = self.watch.instances(CHAPTER, group).await?;
        let zones: BTreeSet<_> = instances.iter().map(|i| &i.zone).collect();
        let serving = instances.iter().filter(|i| i.traffic == "serving" && i.health == "healthy").count();
        let (ready, flip) = (view.ready_seconds.unwrap_or_default(), view.flip_ms.unwrap_or_default());
        self.say(
            "push",
            &format!(
                "{group} ready in {ready:.1} s, flipped in {flip:.0} ms: {serving} instances in {} zones",
                zones.len()
            ),
        );
        if serving < 3 || zones.len() < 3 {
            self.broken.push(format!("{group} serves with {serving} instances in {} zones", zones.len()));
        }
        self.pushes.push(Push::new(&view, "serving"));
        Ok(number)
    }

    async fn drawn_kill(&mut self) -> Result<(), DemoError> {
        const CHAPTER: &str = "drawn kill";
        let look = || async {
            let plans: Vec<DayPlan> = self.watch.get(CHAPTER, "plans").await.map_err(|e| e.to_string())?;
            let mut entries = plans.into_iter().flat_map(|plan| plan.entries);
            let entry = entries.find(|e| e.monkey == "chaos" && e.draw_key.ends_with(CLUSTER));
            entry.ok_or_else(|| format!("no entry for {CLUSTER} yet"))
        };
        let entry = until(CHAPTER, "the day's plan", WITHIN, look).await?;
        let (PlanVerdict::Chosen, Some(at)) = (entry.verdict, entry.at) else {
            return Err(failed(CHAPTER, format!("{CLUSTER} is not chosen: {}", entry.why)));
        };
        self.say("plan", &format!("{} chosen for {}", entry.draw_key, at.strftime("%H:%M")));
        self.stage.calendar.run(CALENDAR_FACTOR, clock::real_now());
        let drawn = |(_, record): &Written| {
            if let Record::SparedAtAct { draw_key, monkey, why, demand: false, .. } = record {
                let is_it = *draw_key == entry.draw_key && monkey == "chaos";
                return is_it.then(|| Err(format!("spared at its minute: {why}")));
            }
            let Record::Intended { intent, .. } = record else { return None };
            let (Step::Terminate { instance, .. }, Cause::Draw { .. }) = (&intent.step, &intent.cause) else {
                return None;
            };
            Some(Ok((intent.id.clone(), instance.clone())))
        };
        let kinds = ["intended", "spared_at_act"];
        let found = self.watch.record(CHAPTER, "the drawn kill", WITHIN, &kinds, drawn).await?;
        let (intent, victim) = found.map_err(|why| failed(CHAPTER, why))?;
        self.heals(CHAPTER, &intent, victim.as_str(), "draw").await
    }

    /// A kill that somebody asks for: first for its plan, and then it makes just the calls that the plan names.
    async fn kill_on_demand(&mut self) -> Result<(), DemoError> {
        const CHAPTER: &str = "kill on demand";
        let victim = self.watch.instances(CHAPTER, CLUSTER).await?.into_iter().find(|i| i.traffic == "serving");
        let victim = victim.ok_or_else(|| failed(CHAPTER, "nobody serves"))?.instance;
        let mut request = KillRequest {
            target: CLUSTER.to_owned(),
            instance: Some(victim),
            reason: "demo".to_owned(),
            outside_window: true,
            plan: true,
        };
        let planned: KillAnswer = self.watch.post(CHAPTER, "kill", &request).await?;
        let planned = planned_changes(&planned.calls);
        let before = changing(&self.stage.front.calls());
        request.plan = false;
        let answer: KillAnswer = self.watch.post(CHAPTER, "kill", &request).await?;
        let made: Calls = changing(&self.stage.front.calls())
            .into_iter()
            .filter_map(|(call, count)| {
                let new = count - before.get(&call).copied().unwrap_or_default();
                (new > 0).then_some((call, new))
            })
            .collect();
        let named = made.iter().map(|(call, count)| format!("{count} {call}")).collect::<Vec<_>>().join(", ");
        self.say(
            "plan",
            &format!("a kill was planned to change something by these calls, and made just them: {named}"),
        );
        if planned != made || planned.is_empty() {
            self.broken.push(format!("the plan names {planned:?}, and the kill made {made:?}"));
        }
        let (Some(victim), Some(intent)) = (&answer.victim, &answer.intent) else {
            return Err(failed(CHAPTER, format!("nobody was killed: {}", answer.detail)));
        };
        if answer.outcome != "done" {
            return Err(failed(CHAPTER, format!("{victim}: {}: {}", answer.outcome, answer.detail)));
        }
        let intent = IntentId::new(intent.clone()).map_err(|e| failed(CHAPTER, e.to_string()))?;
        self.heals(CHAPTER, &intent, victim.as_str(), "demand").await
    }

    async fn heals(
        &mut self,
        chapter: &'static str,
        intent: &IntentId,
        victim: &str,
        how: &str,
    ) -> Result<(), DemoError> {
        let settled = |(_, record): &Written| {
            let Record::Settled { intent: of, outcome } = record else { return None };
            (of.id == *intent).then(|| outcome.clone())
        };
        let outcome = self.watch.record(chapter, "the kill's outcome", WITHIN, &["settled"], settled).await?;
        if !outcome.is_done() {
            return Err(failed(chapter, format!("{victim}: {outcome:?}")));
        }
        let (healed, heal_seconds) = self.watch.healed(chapter, intent, HEALS_WITHIN).await?;
        let whole = if healed { "whole again" } else { "NOT whole" };
        self.say("kill", &format!("{victim}, by {how}, gone; its group {whole} after {heal_seconds:.1} s"));
        if !healed {
            self.broken.push(format!("the group of {victim} did not heal"));
        }
        self.kills.push(Kill { instance: victim.to_owned(), how: how.to_owned(), healed, heal_seconds });
        Ok(())
    }

    async fn rollback(&mut self, push: u64) -> Result<(), DemoError> {
        const CHAPTER: &str = "rollback";
        let request = RollbackRequest {
            cluster: CLUSTER.parse().map_err(|e| failed(CHAPTER, format!("{e}")))?,
            push: Some(push),
            reason: "demo".to_owned(),
            plan: false,
        };
        let answer: RollbackAnswer = self.watch.post(CHAPTER, "rollback", &request).await?;
        let look = || async {
            let old = self.watch.instances(CHAPTER, "hello-web-v000").await.map_err(|e| e.to_string())?;
            let serving = old.iter().filter(|i| i.traffic == "serving" && i.health == "healthy").count();
            if serving >= 3 { Ok(serving) } else { Err(format!("{serving} instances of v000 serve")) }
        };
        let serving = until(CHAPTER, "traffic is back", WITHIN, look).await?;
        self.say("rollback", &format!("{}: {serving} instances of hello-web-v000 serve again", answer.effect));
        Ok(())
    }
}
