//! `troop status`: what is broken by us right now. From the ledger and the halt file; the control plane only adds to it.

use std::collections::BTreeMap;

use clap::Args;
use jiff::Timestamp;
use troop_ledger::{EventFilter, IntentRow, Ledger, LedgerError};
use troop_policies::situation::UnhealedMark;
use troop_policies::step::Step;

use super::args::Output;
use super::context::{self, Context};
use super::curl;
use super::list::PUSHES_SHOWN;
use super::stored;
use crate::api::types::{LiveView, PushView};
use crate::clock;
use crate::exit::{CliError, Code};
use crate::records::{HealingBody, IntentBody, MARK_HEALING, MARK_UNHEALED, Record};
use crate::state::{self, StateDir};
use crate::ui;
use crate::views::running;
use crate::views::status::{self, Broken, BrokenState, OpenStep, StatusView, Zones, by};
use crate::world::chain;

/// Show what is broken by us right now
///
/// The first line answers it: since when, until when, by whom; also while the control plane is dead. Exit 0 when
/// nothing is broken, 5 when something is, 4 when it cannot be known.
#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(cx: &Context, args: &StatusArgs) -> Result<Code, CliError> {
    let state = cx.state()?;
    let (view, zones) = look(&state).await;
    let code = match (&view.unknown_because, view.broken.is_empty()) {
        (Some(_), _) => Code::Unavailable,
        (None, false) => Code::CheckFalse,
        (None, true) => Code::Ok,
    };
    if args.output.is_json() {
        ui::json(&view);
        return Ok(code);
    }
    let now = clock::real_now();
    ui::headline(&status::headline(&view, &zones, now), status::needs_somebody(&view));
    status::rest(&view, &zones, now).iter().for_each(|line| ui::line(line));
    Ok(code)
}

async fn look(state: &StateDir) -> (StatusView, Zones) {
    let mut view = StatusView {
        schema: 1,
        broken: Vec::new(),
        unknown_because: None,
        halted: None,
        halt_unreadable: None,
        control_plane: None,
        control_plane_away: None,
        balancer: None,
        open_steps: Vec::new(),
        pushes: Vec::new(),
    };
    if !context::exists(state) {
        // Nobody who looks into the wrong folder must take its silence for good news about another.
        let what = format!("never ran here: there is no state folder `{}`", state.path().display());
        view.control_plane_away = Some(what);
        return (view, Zones::new());
    }
    match state::read_halt(&state.halt_file()) {
        Ok(halted) => view.halted = halted,
        Err(why) => view.halt_unreadable = Some(why),
    }
    match context::client(state).get::<LiveView>("live").await {
        Ok(live) => {
            view.balancer = live.balancer.clone().or_else(|| curl::up_info(state).ok().map(|up| up.balancer));
            view.control_plane = Some(live);
        }
        Err(e) if e.is_not_running() => view.control_plane_away = Some("does not run".to_owned()),
        Err(e) => view.control_plane_away = Some(format!("cannot be asked: {}", chain(&e))),
    }
    let ledger = match context::ledger(state).await {
        Ok(Some(ledger)) => ledger,
        Ok(None) => return (view, Zones::new()),
        Err(e) => {
            view.unknown_because = Some(chain(&e));
            return (view, Zones::new());
        }
    };
    if let Err(why) = from_ledger(&ledger, &mut view).await {
        view.unknown_because = Some(why);
    }
    if view.control_plane.is_some() && !view.pushes.is_empty() {
        answered(state, &mut view.pushes).await;
    }
    let zones = stored::zones(&ledger).await;
    (view, zones)
}

/// What new groups have answered since they are judged, which only the control plane knows; without its word nothing is said of it.
async fn answered(state: &StateDir, pushes: &mut [PushView]) {
    let live = context::client(state).get::<Vec<PushView>>("pushes").await.unwrap_or_default();
    for push in pushes {
        push.traffic = live.iter().find(|view| view.push == push.push).and_then(|view| view.traffic);
    }
}

/// What the ledger says is broken, not settled, or on its way.
async fn from_ledger(ledger: &Ledger, view: &mut StatusView) -> Result<(), String> {
    let failed = |e: LedgerError| chain(&e);
    let open = ledger.open_intents().await.map_err(failed)?;
    let mut kills: BTreeMap<String, Broken> = BTreeMap::new();
    for row in &open {
        match kill_of(row)? {
            Some(broken) => {
                kills.insert(row.id.clone(), broken);
            }
            None => view.open_steps.push(open_step(row)?),
        }
    }
    for mark in ledger.marks(MARK_HEALING).await.map_err(failed)? {
        let what = format!("what heals since {}", mark.real_at);
        let healing: HealingBody =
            serde_json::from_value(mark.body).map_err(|e| format!("{what} cannot be read: {e}"))?;
        let is_open = kills.contains_key(&mark.key);
        let state = match (healing.intent.step.is_for_agent(), is_open) {
            (true, _) => BrokenState::Delayed,
            (false, true) => BrokenState::Ending,
            (false, false) => BrokenState::Healing,
        };
        kills.insert(mark.key, healing_of(&healing, state));
    }
    view.broken.extend(kills.into_values());
    for mark in ledger.marks(MARK_UNHEALED).await.map_err(failed)? {
        // A mark that cannot be read still marks.
        let unhealed = serde_json::from_value(mark.body)
            .unwrap_or(UnhealedMark { since: mark.real_at, why: "its reason cannot be read".to_owned() });
        view.broken.push(unhealed_of(ledger, mark.key, unhealed).await.map_err(failed)?);
    }
    view.broken.sort_by(|a, b| (a.since, &a.draw_key).cmp(&(b.since, &b.draw_key)));
    for row in ledger.pushes(PUSHES_SHOWN).await.map_err(failed)?.iter().filter(|row| !row.ended) {
        let push = running::push_of(row)?;
        // One that is over for people may still have a group that is kept.
        if !push.ended {
            view.pushes.push(push);
        }
    }
    Ok(())
}

fn intent_of(row: &IntentRow) -> Result<IntentBody, String> {
    serde_json::from_value(row.body.clone()).map_err(|e| format!("intent {} cannot be read: {e}", row.id))
}

fn kill_of(row: &IntentRow) -> Result<Option<Broken>, String> {
    let IntentBody { intent, zone } = intent_of(row)?;
    let Some(instance) = intent.step.victim() else { return Ok(None) };
    Ok(Some(Broken {
        state: if intent.step.is_for_agent() { BrokenState::Delayed } else { BrokenState::Ending },
        draw_key: row.key.clone(),
        instance: Some(instance.to_string()),
        group: Some(intent.step.group().to_string()),
        zone: zone.map(|z| z.to_string()),
        team: intent.cause.team().map(ToString::to_string),
        since: row.real_at,
        until: None,
        by: by(&intent.cause),
        why: fault_of(&intent.step),
    }))
}

fn open_step(row: &IntentRow) -> Result<OpenStep, String> {
    let IntentBody { intent, .. } = intent_of(row)?;
    Ok(OpenStep { intent: row.id.clone(), step: intent.step.to_string(), by: by(&intent.cause), since: row.real_at })
}

fn healing_of(healing: &HealingBody, state: BrokenState) -> Broken {
    let intent = &healing.intent;
    let instance = intent.step.victim().map(ToString::to_string);
    Broken {
        state,
        draw_key: crate::records::intent_key(intent),
        instance,
        group: Some(intent.step.group().to_string()),
        zone: healing.zone.as_ref().map(ToString::to_string),
        team: intent.cause.team().map(ToString::to_string),
        since: healing.killed_at,
        until: Some(healing.deadline),
        by: by(&intent.cause),
        why: fault_of(&intent.step),
    }
}

/// What a fault does; nothing for any other step.
fn fault_of(step: &Step) -> Option<String> {
    if let Step::Fault { fault, .. } = step { Some(fault.to_string()) } else { None }
}

/// An unhealed scope, with the kill that made it so.
async fn unhealed_of(ledger: &Ledger, draw_key: String, mark: UnhealedMark) -> Result<Broken, LedgerError> {
    let filter = EventFilter {
        kinds: vec!["not_healed".to_owned()],
        key: Some(draw_key.clone()),
        newest_first: true,
        limit: Some(1),
        ..EventFilter::default()
    };
    let mut broken = Broken {
        state: BrokenState::Unhealed,
        draw_key,
        instance: None,
        group: None,
        zone: None,
        team: None,
        since: mark.since,
        until: None,
        by: "an act that the ledger does not tell".to_owned(),
        why: Some(mark.why),
    };
    let event = ledger.events(&filter).await?.into_iter().next();
    let record = event.and_then(|e| serde_json::from_value::<Record>(e.body).ok());
    if let Some(Record::NotHealed { intent, group, instance, .. }) = record {
        broken.instance = Some(instance.to_string());
        broken.group = Some(group.to_string());
        if let Some(row) = ledger.intent(intent.as_str()).await? {
            broken.since = row.real_at;
            if let Ok(IntentBody { intent, zone }) = intent_of(&row) {
                broken.zone = zone.map(|z| z.to_string());
                broken.team = intent.cause.team().map(ToString::to_string);
                broken.by = by(&intent.cause);
            }
        }
    }
    Ok(broken)
}

/// The latest moment at which what heals counts as not healed; for those who wait for it.
pub(super) async fn heals_until(ledger: &Ledger, intent: &str) -> Result<Option<Timestamp>, LedgerError> {
    let mark = ledger.mark(MARK_HEALING, intent).await?;
    Ok(mark.and_then(|m| serde_json::from_value::<HealingBody>(m.body).ok()).map(|healing| healing.deadline))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use troop_ledger::Stamp;
    use troop_policies::intent::Outcome;

    use super::*;
    use crate::cli::rows::tests::kill_intent;
    use crate::serve::act;
    use crate::serve::core::{body, event};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_795_000_000 + second).unwrap()
    }

    async fn scene() -> (tempfile::TempDir, StateDir, Ledger) {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::find(Some(dir.path()), |_| None).unwrap();
        let ledger = Ledger::open(&state.ledger(), Arc::new(|| Stamp { at: at(0), real_at: at(0) })).await.unwrap();
        (dir, state, ledger)
    }

    async fn record_kill(ledger: &Ledger) {
        let intent = kill_intent();
        let mut tx = ledger.begin().await.unwrap();
        act::insert(&mut tx, &intent, Some("r1b".parse().unwrap())).await.unwrap();
        let healing = HealingBody { intent: intent.clone(), zone: None, killed_at: at(1), deadline: at(61) };
        tx.set_mark(MARK_HEALING, intent.id.as_str(), body(&healing)).await.unwrap();
        tx.commit().await.unwrap();
    }

    async fn states(state: &StateDir) -> Vec<BrokenState> {
        let (view, _) = look(state).await;
        assert_eq!(view.unknown_because, None);
        view.broken.iter().map(|b| b.state).collect()
    }

    #[tokio::test]
    async fn a_kill_is_ending_then_healing_then_unhealed_while_nothing_runs() {
        let (_dir, state, ledger) = scene().await;
        assert_eq!(states(&state).await, []);
        record_kill(&ledger).await;
        assert_eq!(states(&state).await, [BrokenState::Ending]);
        let intent = kill_intent();
        let mut tx = ledger.begin().await.unwrap();
        act::settle_in(&mut tx, &intent, &Outcome::done("gone")).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(states(&state).await, [BrokenState::Healing]);
        assert_eq!(heals_until(&ledger, intent.id.as_str()).await.unwrap(), Some(at(61)));
        let mut tx = ledger.begin().await.unwrap();
        let key = "local/r1/hello-web";
        tx.clear_mark(MARK_HEALING, intent.id.as_str()).await.unwrap();
        tx.set_mark(MARK_UNHEALED, key, body(&UnhealedMark { since: at(61), why: "no launch".to_owned() }))
            .await
            .unwrap();
        let record = Record::NotHealed {
            intent: intent.id.clone(),
            draw_key: key.to_owned(),
            group: intent.step.group().clone(),
            instance: "i-4f21".parse().unwrap(),
            after_seconds: 60.0,
            why: "no launch".to_owned(),
        };
        tx.append(event(&record, None)).await.unwrap();
        tx.commit().await.unwrap();
        let (view, zones) = look(&state).await;
        assert_eq!(view.broken[0].state, BrokenState::Unhealed);
        let line = status::headline(&view, &zones, at(100));
        assert!(line.contains("i-4f21 of hello-web-v001 in r1b has not healed in time"), "{line}");
        assert!(line.contains("by chaos's draw of 2026-11-24 (team shop): no launch"), "{line}");
    }

    #[tokio::test]
    async fn a_ledger_that_cannot_be_read_is_never_told_as_nothing_broken() {
        let (_dir, state, ledger) = scene().await;
        ledger.close().await;
        std::fs::write(
            state.ledger(),
            "this is no database, and long enough to be looked at as one by its first bytes",
        )
        .unwrap();
        let (view, _) = look(&state).await;
        assert!(view.unknown_because.is_some());
    }

    #[tokio::test]
    async fn a_folder_that_is_not_there_is_said() {
        let state = StateDir::find(Some(std::path::Path::new("/nonexistent/troop")), |_| None).unwrap();
        let (view, _) = look(&state).await;
        assert!(view.control_plane_away.unwrap().contains("no state folder"));
        assert_eq!(view.halt_unreadable, None);
    }
}
