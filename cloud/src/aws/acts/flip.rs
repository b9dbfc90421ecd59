//! Moving all traffic of a cluster to one of its groups: one call, read first, and read back.

use std::collections::BTreeSet;

use troop_policies::{ClusterName, GroupName};

use super::{Ended, Place, Stop, group, settings};
use crate::aws::balancing::{self, Route};
use crate::aws::fault::Fault;
use crate::aws::inventory::Snapshot;
use crate::aws::tags;

pub(super) async fn flip(place: &Place, cluster: &ClusterName, to: &GroupName) -> Ended {
    if to.cluster() != cluster {
        return Err(Stop::Refused(format!("`{to}` is no group of `{cluster}`")));
    }
    let snapshot = place.read().await.map_err(Stop::unseen)?;
    let found = group(&snapshot, to)?;
    let shown = snapshot.inventory.groups.get(to).ok_or_else(|| Stop::Refused(format!("there is no group `{to}`")))?;
    if !shown.enabled {
        return Err(Stop::Refused(format!("`{to}` is disabled; enable it first")));
    }
    if shown.healthy(snapshot.inventory.read_at).next().is_none() {
        return Err(Stop::Refused(format!("`{to}` has no healthy target; flipping to it would serve nobody")));
    }
    let [target] = found.target_group_arns() else {
        let count = found.target_group_arns().len();
        return Err(Stop::Refused(format!(
            "`{to}` has {count} target groups; it takes exactly one to flip by one call"
        )));
    };
    let route = route(&snapshot, cluster)?;
    let (id, now) = (&route.id, balancing::weights(&route.actions));
    let wanted = balancing::all_to(&now, target);
    let wire = &place.wire;
    let had_it = who_has_it(&snapshot, to);
    // What loses the traffic has to be able to take it back: from before the flip on nothing shrinks it.
    for name in &had_it {
        if let Err(fault) = settings::pause(place, name).await {
            return give_up(place, &had_it, fault).await;
        }
    }
    if !leads_only_to(&now, target) {
        let written = balancing::write(wire, id, balancing::with_weights(&route.actions, &wanted)).await;
        if let Err(fault) = written {
            return give_up(place, &had_it, fault).await;
        }
        for look in 0..2 {
            if look > 0 {
                tokio::time::sleep(wire.patience.settle).await;
            }
            let read = balancing::reread(wire, id).await;
            let actions = read.map_err(|fault| Stop::half_way("the weights were written", fault))?;
            if !leads_only_to(&balancing::weights(&actions), target) {
                let why = format!("the weights of `{cluster}` were written, and {} shows others", id.arn());
                return Err(Stop::Unknown(why));
            }
        }
    }
    // It serves now; what was suspended while it was the way back goes on.
    let resumed = settings::resume(place, to).await;
    let note = resumed.err().map(|fault| format!(" (what Troop suspended of `{to}` is still so: {fault})"));
    Ok(format!("all traffic of `{cluster}` goes to `{to}`{}", note.unwrap_or_default()))
}

/// The groups that lose the cluster's traffic when `to` gets it.
pub(super) fn who_has_it<'a>(snapshot: &'a Snapshot, to: &GroupName) -> Vec<&'a GroupName> {
    let groups = snapshot.inventory.groups.iter();
    let others = groups.filter(|(name, group)| name.cluster() == to.cluster() && *name != to && group.in_rotation);
    others.map(|(name, _)| name).collect()
}

/// Whether a route with these weights sends all traffic to one target group.
pub(super) fn leads_only_to(weights: &[(&str, i32)], target: &str) -> bool {
    weights.iter().all(|(arn, weight)| (*weight > 0) == (*arn == target))
        && weights.iter().any(|(arn, _)| *arn == target)
}

/// Takes back what came before a change that failed.
async fn give_up(place: &Place, paused: &[&GroupName], fault: Fault) -> Ended {
    if fault.may_have_happened() {
        return Err(Stop::Unknown(fault.to_string()));
    }
    for name in paused {
        settings::resume(place, name).await.map_err(|f| Stop::half_way(&format!("AWS said no ({fault})"), f))?;
    }
    Err(Stop::Refused(fault.to_string()))
}

/// The one route that leads to the cluster, and to nothing else.
pub(super) fn route<'a>(snapshot: &'a Snapshot, cluster: &ClusterName) -> Result<&'a Route, Stop> {
    let arns = target_groups(snapshot, cluster);
    let route = led_by(snapshot, cluster)?.ok_or_else(|| led_by_none(cluster))?;
    // One that gets nothing is what a creation left behind whose outcome nobody knew.
    let leads = |(arn, weight): &(&str, i32)| *weight > 0 && !arns.contains(*arn);
    if let Some((foreign, _)) = balancing::weights(&route.actions).into_iter().find(leads) {
        let why = format!("{} also leads to `{foreign}`, which is no group's of `{cluster}`", route.id.arn());
        return Err(Stop::Refused(why));
    }
    Ok(route)
}

/// The one route that leads to the cluster's groups, if any does.
pub(super) fn led_by<'a>(snapshot: &'a Snapshot, cluster: &ClusterName) -> Result<Option<&'a Route>, Stop> {
    let routes = snapshot.balancing.routes_to(&target_groups(snapshot, cluster));
    match routes.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(*one)),
        several => {
            let arns: Vec<&str> = several.iter().map(|route| route.id.arn()).collect();
            let why =
                format!("{} rules lead to `{cluster}`, and no one call flips them: {}", arns.len(), arns.join(", "));
            Err(Stop::Refused(why))
        }
    }
}

pub(super) fn led_by_none(cluster: &ClusterName) -> Stop {
    Stop::Refused(format!(
        "no rule of a balancer leads to `{cluster}`; tag one `{}` = `{cluster}` and name its balancer",
        tags::CLUSTER
    ))
}

/// The target groups of the cluster's groups.
fn target_groups(snapshot: &Snapshot, cluster: &ClusterName) -> BTreeSet<String> {
    let groups = snapshot.groups.iter().filter(|(name, _)| name.cluster() == cluster);
    groups.flat_map(|(_, group)| group.target_group_arns().iter().cloned()).collect()
}
