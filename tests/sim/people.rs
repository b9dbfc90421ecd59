//! What people do in a month: with Troop, by its API, and past it, by hand.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use troop::api::types::{Actor, ControlPlane as _, DeployRequest, KillRequest, RollbackRequest};
use troop::records::MARK_UNHEALED;
use troop::serve::control::Control;
use troop::serve::host::Host as _;
use troop_policies::inventory::{Lifecycle, TAG_MARK, TAG_TEAM};
use troop_policies::step::Size;
use troop_policies::{ClusterName, GroupName, ImageId, InstanceId, TeamName};

use crate::check::Turn;
use crate::host::seconds_later;
use crate::plane::Plane;
use crate::policies::Team;
use crate::rng::Rng;
use crate::script::{Hand, Trouble};
use crate::world::calls::Site;
use crate::world::{Coming, State};

/// A cluster that is not there before its first push.
pub const FRESH: &str = "search-fresh";

fn ana() -> Actor {
    Actor { uid: 1000, name: "ana".to_owned() }
}

/// A deployment, asked for with `--plan` first where somebody wants to know what it would do.
#[derive(Debug, Clone)]
pub struct Deploy {
    pub cluster: String,
    pub image: String,
    pub soak_s: u64,
    pub watch_s: u64,
    pub plan_first: bool,
}

pub fn deploy(site: &Arc<Site>, plane: &Plane, what: Deploy) {
    let Ok(cluster) = ClusterName::new(what.cluster.as_str()) else { return };
    let (control, site, wake) = (Control(Arc::clone(&plane.core)), Arc::clone(site), Arc::clone(&plane.wake));
    let request = DeployRequest {
        location: None,
        cluster,
        image: what.image,
        team: if what.cluster == FRESH { TeamName::new("search").ok() } else { None },
        size: None,
        watch: Some(Duration::from_secs(what.watch_s)),
        soak: Some(Duration::from_secs(what.soak_s)),
        ready_within: Some(Duration::from_secs(300)),
        errors_above: None,
        drain: Some(Duration::from_secs(10)),
        plan: false,
    };
    plane.host.spawn(Box::pin(async move {
        let planned = match what.plan_first {
            true => control.deploy(DeployRequest { plan: true, ..request.clone() }, ana()).await.ok(),
            false => None,
        };
        if let Ok(begun) = control.deploy(request, ana()).await
            && let Some(push) = begun.push
        {
            let mut book = site.book();
            book.soaks.insert(push, SignedDuration::from_secs(i64::try_from(what.soak_s).unwrap_or(0)));
            if let Some(planned) = planned {
                book.promised.insert(push, planned.steps);
            }
        }
        wake.notify_one();
    }));
}

pub fn rollback(plane: &Plane, cluster: &str) {
    let Ok(cluster) = ClusterName::new(cluster) else { return };
    let (control, wake) = (Control(Arc::clone(&plane.core)), Arc::clone(&plane.wake));
    let request = RollbackRequest { cluster, push: None, reason: "sim".to_owned(), plan: false };
    plane.host.spawn(Box::pin(async move {
        drop(control.rollback(request, ana()).await);
        wake.notify_one();
    }));
}

pub fn demand(plane: &Plane, cluster: &str, outside_window: bool) {
    let (control, wake) = (Control(Arc::clone(&plane.core)), Arc::clone(&plane.wake));
    let request = KillRequest {
        target: cluster.to_owned(),
        instance: None,
        reason: "sim".to_owned(),
        outside_window,
        plan: false,
    };
    plane.host.spawn(Box::pin(async move {
        drop(control.kill(request, ana()).await);
        wake.notify_one();
    }));
}

/// Ends what is only to be ended by people: unhealed marks, and what was left lying about by hand.
pub fn clear(site: &Arc<Site>, plane: &Plane) {
    let (control, core) = (Control(Arc::clone(&plane.core)), Arc::clone(&plane.core));
    plane.host.spawn(Box::pin(async move {
        for mark in core.ledger.marks(MARK_UNHEALED).await.unwrap_or_default() {
            drop(control.clear(mark.key, "sim".to_owned(), ana()).await);
        }
    }));
    let mut state = site.now();
    let mut book = site.book();
    let now = state.now;
    for name in std::mem::take(&mut book.foreign).into_keys() {
        if let Some(group) = state.groups.get_mut(&name) {
            group.tags.remove(TAG_MARK);
        }
    }
    let foreign: Vec<_> = state.groups.values().filter(|g| g.team().is_some_and(|t| t.as_str() == "other")).collect();
    for name in foreign.into_iter().map(|g| g.name.clone()).collect::<Vec<_>>() {
        book.by_hand(name.cluster(), now);
        remove(&mut state, &name);
    }
    for group in state.groups.values_mut() {
        let cluster = group.cluster().clone();
        for member in group.members.values_mut().filter(|m| m.lifecycle == Lifecycle::Standby) {
            member.lifecycle = Lifecycle::InService;
            book.by_hand(&cluster, now);
        }
    }
    state.note_serving();
}

fn remove(state: &mut State, name: &GroupName) {
    let members: Vec<_> = state.groups.get(name).map(|g| g.members.keys().cloned().collect()).unwrap_or_default();
    for id in members {
        state.end(&id);
    }
    state.groups.remove(name);
}

/// A member of the group in rotation.
pub fn somebody(state: &mut State, cluster: &ClusterName) -> Option<InstanceId> {
    let ids: Vec<_> = state.in_rotation(cluster)?.members.keys().cloned().collect();
    state.rng.pick(&ids).cloned()
}

/// What the second operator does past Troop.
pub fn by_hand(site: &Arc<Site>, kind: Hand, cluster: &str) {
    let Ok(cluster) = ClusterName::new(cluster) else { return };
    let mut state = site.now();
    let mut book = site.book();
    let now = state.now;
    let Some(serving) = state.in_rotation(&cluster).map(|g| g.name.clone()) else { return };
    match kind {
        Hand::LaunchFails => {
            state.fails_next.insert(serving);
            if let Some(id) = somebody(&mut state, &cluster) {
                state.end(&id);
            }
            return;
        }
        Hand::Kill => {
            if let Some(id) = somebody(&mut state, &cluster) {
                state.end(&id);
            }
        }
        Hand::Grow => {
            if let Some(group) = state.groups.get_mut(&serving) {
                group.size.desired += 1;
                group.size.max = group.size.max.max(group.size.desired);
            }
            state.keep(&serving);
        }
        Hand::Mark => {
            if let Some(group) = state.groups.get_mut(&serving) {
                group.tags.insert(TAG_MARK.to_owned(), "999999 2020-01-01T00:00:00Z".to_owned());
            }
            book.foreign.insert(serving, now);
            return;
        }
        Hand::Spare => {
            let Some(id) = somebody(&mut state, &cluster) else { return };
            let protects = state.rng.percent(50);
            if let Some(member) = state.groups.get_mut(&serving).and_then(|g| g.members.get_mut(&id)) {
                member.protected = protects;
                member.spare = !protects;
            }
            book.spared.insert(id, now);
            return;
        }
        Hand::Standby => {
            let Some(id) = somebody(&mut state, &cluster) else { return };
            if let Some(member) = state.groups.get_mut(&serving).and_then(|g| g.members.get_mut(&id)) {
                member.lifecycle = Lifecycle::Standby;
            }
        }
        Hand::OtherTeam => {
            let tags = BTreeMap::from([(TAG_TEAM.to_owned(), "other".to_owned())]);
            let Ok(image) = ImageId::new("ami-1") else { return };
            state.add_group(&cluster.group(700), &image, Size { min: 1, desired: 1, max: 1 }, tags);
        }
        Hand::Leftover => {
            // Older than all others, with the number that comes next: a name that is in use and not the newest.
            let next = serving.sequence().map_or(0, |n| (n + 1) % 1_000);
            let name = cluster.group(next);
            let (Ok(image), false) = (ImageId::new("ami-1"), state.groups.contains_key(&name)) else { return };
            let tags = state.groups.get(&serving).map(|g| g.tags.clone()).unwrap_or_default();
            state.add_group(&name, &image, Size { min: 1, desired: 1, max: 1 }, tags);
            if let Some(group) = state.groups.get_mut(&name) {
                group.enabled = false;
                group.created_at = seconds_later(now, -400 * 86_400);
                group.tags.remove(TAG_MARK);
            }
        }
        Hand::FlipAway => {
            let others = state.groups.values().filter(|g| *g.cluster() == cluster && g.name != serving && g.enabled);
            let Some(to) = others.map(|g| g.name.clone()).find(|name| state.serving(name) > 0) else { return };
            state.rotate(&to);
            book.turns.entry(cluster.clone()).or_default().push(Turn { at: now, group: to, push: None });
        }
        Hand::OtherImage => {
            let fresh = state.groups.values().filter(|g| *g.cluster() == cluster && g.name != serving && g.enabled);
            let Some(name) = fresh.max_by_key(|g| g.created_at).map(|g| g.name.clone()) else { return };
            let (Ok(image), Some(group)) = (ImageId::new("ami-hand"), state.groups.get_mut(&name)) else { return };
            group.image = image;
            if let Some(id) = group.members.keys().next().cloned() {
                state.end(&id);
            }
        }
        Hand::Deploy => {
            let next = (1..1_000).map(|ahead| cluster.group((serving.sequence().unwrap_or(0) + ahead + 40) % 1_000));
            let Some(name) = next.into_iter().find(|name| !state.groups.contains_key(name)) else { return };
            let Ok(image) = ImageId::new("ami-hand") else { return };
            let Some((size, mut tags)) = state.groups.get(&serving).map(|g| (g.size, g.tags.clone())) else { return };
            tags.remove(TAG_MARK);
            state.add_group(&name, &image, size, tags);
            state.in_seconds(30, Coming::HandFlip(name));
        }
        Hand::StealLock => return,
    }
    state.note_serving();
    book.by_hand(&cluster, now);
}

/// Trouble begins.
pub fn trouble(site: &Arc<Site>, kind: Trouble, lasts_s: i64) {
    let mut state = site.now();
    let (now, until) = (state.now, seconds_later(state.now, lasts_s));
    match kind {
        Trouble::InventoryAway => state.troubles.inventory_away = until,
        Trouble::InventoryOld => {
            state.old = Some(state.groups.clone());
            (state.troubles.inventory_old, state.troubles.old_since) = (until, now);
        }
        Trouble::InventoryHalf => (state.troubles.inventory_half, state.troubles.short_since) = (until, now),
        Trouble::InventoryCut => (state.troubles.inventory_cut, state.troubles.short_since) = (until, now),
        Trouble::RegistryAway => state.troubles.registry_away = until,
        Trouble::TrafficAway => state.troubles.traffic_away = until,
        Trouble::BalancerSilent => {
            let told = |(id, life): (&InstanceId, &crate::world::Life)| Some((id.clone(), life.healthy?));
            state.silent = state.lives.iter().filter_map(told).collect();
            (state.troubles.balancer_silent, state.troubles.silent_since) = (until, now);
        }
        Trouble::Throttled => state.troubles.throttled = until,
        Trouble::AnswersLost => state.troubles.answers_lost = until,
        Trouble::Forgetful => state.troubles.forgetful = until,
        Trouble::HoldFires => site.signals.fire(now, until),
        Trouble::HoldAway => site.signals.go_away(now, until),
    }
}

/// An instance of the group that serves is unhealthy for a while.
pub fn sick(site: &Arc<Site>, cluster: &str, lasts_s: i64) {
    let Ok(cluster) = ClusterName::new(cluster) else { return };
    let mut state = site.now();
    let newest = state.groups.values().filter(|g| *g.cluster() == cluster && g.enabled).max_by_key(|g| g.created_at);
    let ids: Vec<_> = newest.map(|g| g.members.keys().cloned().collect()).unwrap_or_default();
    let several = state.rng.percent(40);
    for id in ids.into_iter().take(if several { 2 } else { 1 }) {
        if let Some(life) = state.lives.get_mut(&id) {
            life.healthy = life.healthy.map(|_| false);
        }
        state.in_seconds(lasts_s, Coming::Well(id));
    }
    state.note_serving();
}

/// A scaler takes away what an idle group has above its minimum.
pub fn scale(site: &Arc<Site>) {
    let mut state = site.now();
    let book = site.book();
    let idle = state.groups.values().filter(|g| !g.in_rotation && g.size.min < g.size.desired);
    let idle: Vec<_> = idle.filter(|g| book.disabled.contains_key(&g.name)).map(|g| g.name.clone()).collect();
    for name in idle {
        if let Some(group) = state.groups.get_mut(&name) {
            group.size.desired = group.size.min;
        }
        state.keep(&name);
    }
}

/// A team changes its file in one of many ways.
pub fn edit(team: &mut Team, change: u64, today: jiff::civil::Date) {
    let mut rng = Rng::new(change);
    team.bad = false;
    match rng.below(9) {
        0 => {
            let until = today.checked_add(jiff::Span::new().days(rng.between(1, 4))).unwrap_or(today);
            team.blackout = Some((format!("{today}T00:00"), format!("{until}T00:00")));
        }
        1 => {
            let day = today.checked_add(jiff::Span::new().days(rng.between(0, 2))).unwrap_or(today);
            team.holidays = vec![day.to_string()];
        }
        2 => team.bad = true,
        3 => {
            for app in &mut team.apps {
                app.leashed = !app.leashed;
            }
        }
        4 => {
            for app in &mut team.apps {
                app.min_serving = app.clusters.iter().map(|(_, size)| u64::from(*size)).max().unwrap_or(3);
            }
        }
        5 => team.kills_per_day = Some(1),
        6 => team.window = ("11:00", "12:30"),
        7 => {
            team.apps.truncate(1);
        }
        _ => {
            team.holidays.clear();
            team.blackout = None;
            for app in &mut team.apps {
                (app.leashed, app.min_serving) = (false, 2);
            }
        }
    }
}
