//! What the API asks of the control plane.

use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use troop_agent_core::protocol::PlaneSeen;
use troop_monkeys::{chaos, latency};
use troop_policies::gates::{Purpose, Scope, Verdict};
use troop_policies::harm::Harm;
use troop_policies::inventory::Inventory;
use troop_policies::plan::{DayPlan, PlanEntry};
use troop_policies::registry_view::Status;
use troop_policies::{ClusterName, InstanceId};
use troop_scheduler::drills;

use super::act::{self, Wanted};
use super::core::Core;
use super::look::{Look, look};
use super::policy_store::TeamPolicy;
use super::{demand, halt, ledger_seen, notices, pushes};
use crate::agents::AgentSeen;
use crate::api::types::{
    Actor, AdoptedMark, AgentView, ApiError, ControlPlane, DeployAnswer, DeployRequest, ErrorKind, ExplainView,
    GateView, ImageView, InstanceView, KillAnswer, KillRequest, LatencyRequest, LiveView, NotifyAnswer, NotifyRequest,
    PolicyView, PushView, RollbackAnswer, RollbackRequest,
};
use crate::records::{MARK_ADOPTED, MARK_UNHEALED, Record};
use crate::supervisor::UpInfo;
use crate::world::chain;

/// The version of the answers' JSON form.
pub const SCHEMA: u32 = 1;

/// The control plane behind the API.
#[derive(Debug, Clone)]
pub struct Control(pub Arc<Core>);

pub(super) fn error(kind: ErrorKind, message: impl Into<String>, hint: Option<&str>) -> ApiError {
    ApiError { kind, message: message.into(), hint: hint.map(str::to_owned) }
}

pub(super) fn could_not_ask(e: &(dyn std::error::Error + 'static)) -> ApiError {
    error(ErrorKind::CouldNotAsk, chain(e), Some("`troop status` says what is wrong"))
}

/// One scope that a word on the command line may mean.
pub(super) struct Found {
    pub(super) team: Arc<TeamPolicy>,
    pub(super) scope: Scope,
    pub(super) instance: Option<InstanceId>,
}

/// # Errors
/// Which part of the world could not be read.
pub(super) fn all_read(seen: &Look) -> Result<(), ApiError> {
    match seen.regions.iter().find_map(|(at, reading, _)| reading.as_ref().err().map(|why| (at, why))) {
        Some((at, why)) => {
            Err(error(ErrorKind::CouldNotAsk, format!("the inventory of {at} cannot be read: {why}"), None))
        }
        None => Ok(()),
    }
}

/// The scopes that `target` names: a cluster, an instance, or a draw key.
pub(super) fn find(core: &Core, seen: &Look, target: &str) -> Result<Vec<Found>, ApiError> {
    let mut clusters: Vec<(&Inventory, ClusterName, Option<InstanceId>)> = Vec::new();
    for inventory in seen.inventories() {
        let by_instance =
            InstanceId::new(target).ok().and_then(|id| inventory.instance(&id).map(|(g, i)| (g, i.id.clone())));
        if let Some((group, id)) = by_instance {
            clusters.push((inventory, group.cluster().clone(), Some(id)));
            continue;
        }
        for cluster in inventory.clusters() {
            let by_group = inventory.groups_of(cluster).iter().any(|g| g.name.as_str() == target);
            if cluster.as_str() == target || by_group {
                clusters.push((inventory, cluster.clone(), None));
            }
        }
    }
    let policies = core.policies.load_full();
    let mut found = Vec::new();
    for team in policies.good() {
        for app in team.policy.apps.values() {
            for (inventory, cluster, instance) in &clusters {
                if cluster.app() == &app.app {
                    let draw_key = app.draw_key(&inventory.account, &inventory.region, cluster);
                    let scope = Scope { app: app.app.clone(), draw_key };
                    found.push(Found { team: Arc::clone(team), scope, instance: instance.clone() });
                }
            }
            let by_key = seen.inventories().flat_map(|i| i.clusters().into_iter().map(move |c| (i, c)));
            for (inventory, cluster) in by_key.filter(|(_, c)| c.app() == &app.app) {
                if app.draw_key(&inventory.account, &inventory.region, cluster) == target {
                    let scope = Scope { app: app.app.clone(), draw_key: target.to_owned() };
                    found.push(Found { team: Arc::clone(team), scope, instance: None });
                }
            }
        }
    }
    found.dedup_by(|a, b| a.scope == b.scope && Arc::ptr_eq(&a.team, &b.team));
    if !found.is_empty() {
        return Ok(found);
    }
    all_read(seen)?;
    if let Some((_, cluster, _)) = clusters.first() {
        let bad = policies.files.iter().find(|f| f.result.is_err());
        let mut message = format!("no policy names app `{}`: nothing of it is ever touched by a monkey", cluster.app());
        if let Some((file, why)) = bad.and_then(|f| f.result.as_ref().err().map(|why| (&f.file, why))) {
            message = format!("{message} (and {file} cannot be used: {why})");
        }
        return Err(error(ErrorKind::Refused, message, Some("`troop policy init --team T` writes one")));
    }
    let known: Vec<_> = seen.inventories().flat_map(Inventory::clusters).map(ToString::to_string).collect();
    let near = troop_policies::file::nearest(target, known.iter().map(String::as_str));
    let hint =
        near.map_or_else(|| "`troop ps` lists what there is".to_owned(), |near| format!("did you mean `{near}`?"));
    Err(error(ErrorKind::NotFound, format!("no cluster, group, instance or draw key is named `{target}`"), Some(&hint)))
}

pub(super) fn day_of(team: &TeamPolicy, now: Timestamp) -> jiff::civil::Date {
    team.calendar.civil_day(now)
}

fn gates(verdict: &Verdict) -> Vec<GateView> {
    let view = |a: &troop_policies::gates::Answer| GateView {
        gate: a.gate.name().to_owned(),
        ok: a.result.is_ok(),
        text: a.result.as_ref().map_or_else(ToString::to_string, Clone::clone),
    };
    verdict.answers.iter().map(view).collect()
}

impl Control {
    async fn todays_plan(&self, team: &TeamPolicy) -> Option<DayPlan> {
        let now = self.0.calendar_now();
        let mut newest = None;
        for day in team.calendar.planning_days(now) {
            let stored = self.0.ledger.plan(&day.to_string(), team.policy.team.as_str()).await.ok().flatten();
            newest = stored.and_then(|s| serde_json::from_value(s.body).ok()).or(newest);
        }
        newest
    }

    pub(super) fn wanted(&self, found: &Found, purpose: Purpose, demand: Option<(String, String)>) -> Wanted {
        Wanted {
            team: Arc::clone(&found.team),
            scope: found.scope.clone(),
            purpose,
            day: day_of(&found.team, self.0.calendar_now()),
            demand,
            fault: None,
        }
    }
}

#[async_trait]
impl ControlPlane for Control {
    async fn live(&self) -> LiveView {
        let core = &self.0;
        let seen = look(core).await;
        let registry = match &seen.registry {
            Ok(view) if view.warming => "warming up: everything waits and is spared".to_owned(),
            Ok(view) => format!("{} entries", view.entries.len()),
            Err(why) => format!("cannot be read: {why}"),
        };
        let policies = core.policies.load_full();
        let view = |f: &super::policy_store::Loaded| PolicyView {
            file: f.file.clone(),
            team: f.team.clone(),
            ok: f.result.is_ok(),
            problem: f.result.as_ref().err().cloned(),
        };
        LiveView {
            schema: SCHEMA,
            pid: std::process::id(),
            started_at: core.started_at,
            calendar: core.calendar_now(),
            site: core.site.name.clone(),
            site_leashed: core.site.leashed,
            not_ready: core.not_ready(),
            registry,
            policies: policies.files.iter().map(view).collect(),
            troubles: core.troubles(),
            balancer: UpInfo::read(&core.state).map(|up| up.balancer),
        }
    }

    async fn plans(&self) -> Result<Vec<DayPlan>, ApiError> {
        let policies = self.0.policies.load_full();
        let mut plans = Vec::new();
        for team in policies.good() {
            plans.extend(self.todays_plan(team).await);
        }
        Ok(plans)
    }

    async fn explain(&self, target: &str) -> Result<Vec<ExplainView>, ApiError> {
        let seen = look(&self.0).await;
        let mut views = Vec::new();
        for found in find(&self.0, &seen, target)? {
            let purpose = match &found.instance {
                None => Purpose::Drawn,
                Some(id) => Purpose::Demand { outside_window: false, instance: Some(id.clone()) },
            };
            let mut entries = self.todays_plan(&found.team).await.map(|plan| plan.entries).unwrap_or_default();
            entries.retain(|e| e.draw_key == found.scope.draw_key);
            let app = found.team.policy.apps.get(&found.scope.app);
            let kills = app.is_none_or(|app| app.chaos.is_some() || app.latency.is_none());
            let slows = app.is_some_and(|app| app.latency.is_some());
            let kill = kills.then_some((chaos::MONKEY, Harm::Kill, "hurt"));
            let fault = slows.then_some((latency::MONKEY, Harm::Fault(None), "made slow"));
            let wanted = self.wanted(&found, purpose, None);
            let seen = act::look_for(&self.0, &wanted).await;
            for (monkey, harm, done) in kill.into_iter().chain(fault) {
                let verdict = act::ask_about(&self.0, &wanted, harm, &seen).await;
                let drill = |e: &&PlanEntry| drills::drilled(&e.monkey) == Some(monkey);
                views.push(ExplainView {
                    schema: SCHEMA,
                    draw_key: found.scope.draw_key.clone(),
                    monkey: monkey.to_owned(),
                    team: Some(found.team.policy.team.clone()),
                    gates: gates(&verdict),
                    eligible: verdict.candidates.clone(),
                    verdict: match &verdict.result {
                        Ok(eligible) => {
                            let count = eligible.ids().len();
                            format!("eligible: one of {count} would be {done} if a draw fell now")
                        }
                        Err(spared) => format!("spared ({}): {spared}", spared.gate().name()),
                    },
                    today: entries.iter().find(|e| e.monkey == monkey).cloned(),
                    drills: entries.iter().filter(drill).cloned().collect(),
                });
            }
        }
        Ok(views)
    }

    async fn kill(&self, request: KillRequest, actor: Actor) -> Result<KillAnswer, ApiError> {
        demand::carry_out(self, request.into(), actor).await
    }

    async fn latency(&self, request: LatencyRequest, actor: Actor) -> Result<KillAnswer, ApiError> {
        demand::carry_out(self, request.into(), actor).await
    }

    async fn agents(&self) -> Result<Vec<AgentView>, ApiError> {
        Ok(self.0.agents.seen().into_iter().map(agent).collect())
    }

    async fn deploy(&self, request: DeployRequest, actor: Actor) -> Result<DeployAnswer, ApiError> {
        pushes::start(&self.0, request, actor).await
    }

    async fn rollback(&self, request: RollbackRequest, actor: Actor) -> Result<RollbackAnswer, ApiError> {
        pushes::rollback(&self.0, request, actor).await
    }

    async fn pushes(&self) -> Result<Vec<PushView>, ApiError> {
        pushes::views(&self.0).await
    }

    async fn instances(&self) -> Result<Vec<InstanceView>, ApiError> {
        let seen = look(&self.0).await;
        let statuses = seen.statuses();
        let mut views = Vec::new();
        for inventory in seen.inventories() {
            for group in inventory.groups.values() {
                for i in group.members.values() {
                    let health = match &i.target {
                        None if !group.has_targets => "no targets".to_owned(),
                        None => "not checked yet".to_owned(),
                        Some(t) if t.is_good(seen.at) => "healthy".to_owned(),
                        Some(t) if t.healthy => "unknown (old)".to_owned(),
                        Some(t) => format!("unhealthy: {}", t.reason.as_deref().unwrap_or("no reason given")),
                    };
                    let traffic = match (group.enabled, group.in_rotation) {
                        (true, true) => "serving",
                        (true, false) => "warm",
                        (false, _) => "disabled",
                    };
                    let registry = match &seen.registry {
                        Ok(view) if !view.warming => statuses.get(&i.id).copied().map_or("-", Status::as_str),
                        Ok(_) => "warming",
                        Err(_) => "unknown",
                    };
                    views.push(InstanceView {
                        schema: SCHEMA,
                        instance: i.id.clone(),
                        group: group.name.clone(),
                        version: group.version.clone(),
                        zone: i.zone.clone(),
                        address: i.address.map(|a| format!("{a}:{}", i.port)),
                        lifecycle: i.lifecycle.as_str().to_owned(),
                        registry: registry.to_owned(),
                        health,
                        traffic: traffic.to_owned(),
                        launched_at: i.launched_at,
                        log: Some(
                            self.0.state.cloud().join("logs").join(format!("{}.log", i.id)).display().to_string(),
                        ),
                    });
                }
            }
        }
        all_read(&seen)?;
        Ok(views)
    }

    async fn images(&self) -> Result<Vec<ImageView>, ApiError> {
        let mut views = Vec::new();
        for at in self.0.world.locations() {
            let images = self.0.world.images(&at).await.map_err(|e| could_not_ask(&e))?;
            views.extend(images.into_iter().map(|i| ImageView {
                schema: SCHEMA,
                image: i.id,
                name: i.name,
                version: i.version,
                created_at: i.created_at,
            }));
        }
        Ok(views)
    }

    async fn halt(&self, why: String, actor: Actor) -> Result<(), ApiError> {
        halt::halt(&self.0, &actor.name, &why).await.map_err(|e| could_not_ask(&e))
    }

    async fn resume(&self, why: String, actor: Actor) -> Result<(), ApiError> {
        if why.trim().is_empty() {
            return Err(error(ErrorKind::Yours, "resuming needs a reason", Some("--reason \"why\"")));
        }
        if !self.0.is_halted() {
            return Err(error(ErrorKind::Refused, "nothing is halted", None));
        }
        halt::resume(&self.0, &actor.name, &why).await.map_err(|e| could_not_ask(&e))
    }

    async fn notify(&self, request: NotifyRequest, actor: Actor) -> Result<NotifyAnswer, ApiError> {
        notices::try_all(&self.0, request, actor).await
    }

    async fn adopt(&self, why: String, actor: Actor) -> Result<Vec<AdoptedMark>, ApiError> {
        if why.trim().is_empty() {
            return Err(error(ErrorKind::Yours, "adopting needs a reason", Some("--reason \"why\"")));
        }
        let seen = look(&self.0).await;
        all_read(&seen)?;
        let adopted = async {
            let mut tx = self.0.ledger.begin().await?;
            let marks = ledger_seen::marks(&mut tx, seen.inventories()).await?;
            let foreign: Vec<_> = marks.into_iter().filter(|(_, mark)| !mark.known).collect();
            let adopted: Vec<_> =
                foreign.into_iter().map(|((_, group), mark)| AdoptedMark { group, mark: mark.mark }).collect();
            for mark in &adopted {
                tx.set_mark(MARK_ADOPTED, &mark.mark, serde_json::Value::Null).await?;
            }
            let marks = adopted.iter().map(|a| format!("{} {}", a.group, a.mark)).collect();
            let record = Record::Adopted { who: actor.name.clone(), why, marks };
            if !adopted.is_empty() {
                tx.append(super::core::event(&record, Some(&actor.name))).await?;
                tx.commit().await?;
            }
            Ok::<_, troop_ledger::LedgerError>(adopted)
        };
        match adopted.await {
            Ok(adopted) if adopted.is_empty() => {
                Err(error(ErrorKind::Refused, "no group carries a mark that this ledger does not hold", None))
            }
            Ok(adopted) => Ok(adopted),
            Err(e) => Err(could_not_ask(&e)),
        }
    }

    async fn clear(&self, draw_key: String, why: String, actor: Actor) -> Result<(), ApiError> {
        if why.trim().is_empty() {
            return Err(error(ErrorKind::Yours, "clearing needs a reason", Some("--reason \"why\"")));
        }
        let cleared = async {
            let mut tx = self.0.ledger.begin().await?;
            if tx.mark(MARK_UNHEALED, &draw_key).await?.is_none() {
                return Ok(false);
            }
            tx.clear_mark(MARK_UNHEALED, &draw_key).await?;
            let record = Record::Cleared { draw_key: draw_key.clone(), who: actor.name.clone(), why };
            tx.append(super::core::event(&record, Some(&actor.name))).await?;
            tx.commit().await?;
            Ok::<_, troop_ledger::LedgerError>(true)
        };
        match cleared.await {
            Ok(true) => Ok(()),
            Ok(false) => {
                let message = format!("`{draw_key}` is not marked unhealed");
                Err(error(ErrorKind::NotFound, message, Some("`troop status` lists the scopes that are")))
            }
            Err(e) => Err(could_not_ask(&e)),
        }
    }
}

fn agent(seen: AgentSeen) -> AgentView {
    let AgentSeen { host, release, capabilities, standing, since, live } = seen;
    let plane = |plane: &PlaneSeen| format!("{} (killed: {}, hung: {})", plane.name, plane.on_death, plane.on_hang);
    AgentView {
        schema: SCHEMA,
        host: host.to_string(),
        instance: host.instance().to_owned(),
        release,
        kernel: capabilities.kernel,
        planes: capabilities.planes.iter().map(plane).collect(),
        allows: capabilities.allows,
        lacks: capabilities.lacks,
        identity: standing.in_words().to_owned(),
        since,
        live,
    }
}
