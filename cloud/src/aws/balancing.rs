//! What the load balancers do: target groups, the health of their targets, and the routes that lead traffic to them.
//!
//! A route is a rule or a listener's default. It names up to five target groups with weights; Troop flips by writing all
//! weights in one call, and keeps whatever else the route says.

use std::collections::{BTreeMap, BTreeSet};

use aws_sdk_elasticloadbalancingv2::types::{
    Action, ActionTypeEnum, ForwardActionConfig, TargetGroup, TargetGroupTuple, TargetHealthStateEnum,
};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use jiff::Timestamp;
use troop_policies::inventory::TargetHealth;

use super::calls::Call;
use super::fault::{Fault, Kind};
use super::tags;
use super::wire::{Again, Wire};

/// How many calls of a kind are under way at once.
const AT_ONCE: usize = 8;
/// AWS takes this many target groups and tagged resources a call.
const ARNS_A_CALL: usize = 20;
/// The weight of the one group in rotation. Any number does; a hundred leaves room for people who shift by hand.
const WEIGHT: i32 = 100;
/// AWS takes this many target groups in a route.
pub(crate) const TARGET_GROUPS_MAX: usize = 5;
/// For how long a verdict of the balancer's is believed: as long as the inventory it came with.
pub(crate) const HEALTH_GOOD_FOR_MS: u32 = 30_000;

/// What has to be written to change a route.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum RouteId {
    Rule(String),
    /// The listener's default.
    Listener(String),
}

impl RouteId {
    pub(crate) fn arn(&self) -> &str {
        match self {
            Self::Rule(arn) | Self::Listener(arn) => arn,
        }
    }
}

/// A rule or a listener's default, as it was read.
#[derive(Debug, Clone)]
pub(crate) struct Route {
    pub(crate) id: RouteId,
    pub(crate) actions: Vec<Action>,
}

/// The load balancers' state, as far as it concerns the groups in play.
#[derive(Debug, Clone, Default)]
pub(crate) struct Balancing {
    pub(crate) target_groups: BTreeMap<String, TargetGroup>,
    pub(crate) routes: Vec<Route>,
    /// By target group's ARN, then instance id.
    pub(crate) health: BTreeMap<String, BTreeMap<String, TargetHealth>>,
}

/// Reads the target groups with these ARNs, their targets' health, and the routes of every balancer that they or
/// `load_balancers` name.
pub(crate) async fn read(
    wire: &Wire,
    arns: &BTreeSet<String>,
    load_balancers: &[String],
    now: Timestamp,
) -> Result<Balancing, Fault> {
    let target_groups = target_groups(wire, arns).await?;
    let named = target_groups.values().flat_map(|group| group.load_balancer_arns().iter().cloned());
    let balancers: BTreeSet<String> = named.chain(load_balancers.iter().cloned()).collect();
    let (routes, health) =
        futures::try_join!(routes(wire, balancers), health(wire, target_groups.keys().cloned().collect(), now))?;
    Ok(Balancing { target_groups, routes, health })
}

async fn target_groups(wire: &Wire, arns: &BTreeSet<String>) -> Result<BTreeMap<String, TargetGroup>, Fault> {
    let arns: Vec<String> = arns.iter().cloned().collect();
    let mut found = BTreeMap::new();
    for some in arns.chunks(ARNS_A_CALL) {
        match some_target_groups(wire, some).await {
            Ok(groups) => found.extend(groups),
            // A group may name one that was deleted, which fails the whole call; the others are there all the same.
            Err(fault) if fault.kind == Kind::NotFound => {
                for one in some {
                    match some_target_groups(wire, std::slice::from_ref(one)).await {
                        Ok(groups) => found.extend(groups),
                        Err(fault) if fault.kind == Kind::NotFound => {}
                        Err(fault) => return Err(fault),
                    }
                }
            }
            Err(fault) => return Err(fault),
        }
    }
    Ok(found)
}

async fn some_target_groups(wire: &Wire, arns: &[String]) -> Result<BTreeMap<String, TargetGroup>, Fault> {
    let call = Call::DescribeTargetGroups;
    let ask = || wire.balancing.describe_target_groups().set_target_group_arns(Some(arns.to_vec())).send();
    let answer = wire.read(call, ask).await?;
    let by_arn = |group: &TargetGroup| Some((group.target_group_arn()?.to_owned(), group.clone()));
    answer.target_groups().iter().map(|group| by_arn(group).ok_or_else(|| Fault::odd(call, "an ARN"))).collect()
}

async fn routes(wire: &Wire, balancers: BTreeSet<String>) -> Result<Vec<Route>, Fault> {
    let per_balancer = stream::iter(balancers).map(|arn| async move { listeners(wire, &arn).await });
    let listeners: Vec<Vec<String>> = per_balancer.buffered(AT_ONCE).try_collect().await?;
    let per_listener = stream::iter(listeners.into_iter().flatten()).map(|arn| async move { rules(wire, &arn).await });
    let routes: Vec<Vec<Route>> = per_listener.buffered(AT_ONCE).try_collect().await?;
    Ok(routes.into_iter().flatten().collect())
}

async fn listeners(wire: &Wire, balancer: &str) -> Result<Vec<String>, Fault> {
    let mut found = Vec::new();
    let mut marker: Option<String> = None;
    loop {
        let call = Call::DescribeListeners;
        let ask = || wire.balancing.describe_listeners().load_balancer_arn(balancer).set_marker(marker.clone()).send();
        let page = wire.read(call, ask).await?;
        for listener in page.listeners() {
            found.push(listener.listener_arn().ok_or_else(|| Fault::odd(call, "a listener's ARN"))?.to_owned());
        }
        marker = page.next_marker().filter(|marker| !marker.is_empty()).map(str::to_owned);
        if marker.is_none() {
            return Ok(found);
        }
    }
}

async fn rules(wire: &Wire, listener: &str) -> Result<Vec<Route>, Fault> {
    let mut found = Vec::new();
    let mut marker: Option<String> = None;
    loop {
        let call = Call::DescribeRules;
        let ask = || wire.balancing.describe_rules().listener_arn(listener).set_marker(marker.clone()).send();
        let page = wire.read(call, ask).await?;
        for rule in page.rules() {
            let id = if rule.is_default().unwrap_or(false) {
                RouteId::Listener(listener.to_owned())
            } else {
                RouteId::Rule(rule.rule_arn().ok_or_else(|| Fault::odd(call, "a rule's ARN"))?.to_owned())
            };
            found.push(Route { id, actions: rule.actions().to_vec() });
        }
        marker = page.next_marker().filter(|marker| !marker.is_empty()).map(str::to_owned);
        if marker.is_none() {
            return Ok(found);
        }
    }
}

async fn health(
    wire: &Wire,
    arns: Vec<String>,
    now: Timestamp,
) -> Result<BTreeMap<String, BTreeMap<String, TargetHealth>>, Fault> {
    let each = stream::iter(arns).map(|arn| async move {
        let call = Call::DescribeTargetHealth;
        let answer = wire.read(call, || wire.balancing.describe_target_health().target_group_arn(&arn).send()).await?;
        let mut targets = BTreeMap::new();
        for described in answer.target_health_descriptions() {
            let id = described.target().and_then(|target| target.id());
            let state = described.target_health().and_then(|health| health.state());
            let (Some(id), Some(state)) = (id, state) else { return Err(Fault::odd(call, "a target's health")) };
            // Initial is no verdict yet.
            if *state == TargetHealthStateEnum::Initial {
                continue;
            }
            let healthy = *state == TargetHealthStateEnum::Healthy;
            let why = described.target_health().and_then(|health| health.description().or(health.reason_as_str()));
            let reason = (!healthy).then(|| why.map_or(state.as_str().to_owned(), |why| format!("{state}: {why}")));
            let verdict = TargetHealth { healthy, checked_at: now, reason, good_for_ms: HEALTH_GOOD_FOR_MS };
            targets.insert(id.to_owned(), verdict);
        }
        Ok((arn, targets))
    });
    each.buffered(AT_ONCE).try_collect().await
}

/// A name for [`aws_sdk_elasticloadbalancingv2::types::TargetHealth`]'s reason code.
trait ReasonText {
    fn reason_as_str(&self) -> Option<&str>;
}

impl ReasonText for aws_sdk_elasticloadbalancingv2::types::TargetHealth {
    fn reason_as_str(&self) -> Option<&str> {
        self.reason().map(aws_sdk_elasticloadbalancingv2::types::TargetHealthReasonEnum::as_str)
    }
}

impl Balancing {
    /// The target groups to which a balancer sends traffic.
    pub(crate) fn in_rotation(&self) -> BTreeSet<&str> {
        self.routes
            .iter()
            .flat_map(|route| weights(&route.actions))
            .filter(|(_, weight)| *weight > 0)
            .map(|(arn, _)| arn)
            .collect()
    }

    /// The routes that name any of these target groups.
    pub(crate) fn routes_to(&self, arns: &BTreeSet<String>) -> Vec<&Route> {
        let leads = |route: &&Route| weights(&route.actions).iter().any(|(arn, _)| arns.contains(*arn));
        self.routes.iter().filter(leads).collect()
    }
}

/// The one route whose tag names this cluster.
pub(crate) async fn tagged_route(wire: &Wire, routes: &[Route], cluster: &str) -> Result<Option<Route>, Fault> {
    let mut found = None;
    for some in routes.chunks(ARNS_A_CALL) {
        let arns: Vec<String> = some.iter().map(|route| route.id.arn().to_owned()).collect();
        let ask = || wire.balancing.describe_tags().set_resource_arns(Some(arns.clone())).send();
        let answer = wire.read(Call::LoadBalancingDescribeTags, ask).await?;
        for described in answer.tag_descriptions() {
            let names = described.tags().iter().any(|t| t.key() == Some(tags::CLUSTER) && t.value() == Some(cluster));
            if names {
                found = some.iter().find(|route| Some(route.id.arn()) == described.resource_arn()).cloned().or(found);
            }
        }
    }
    Ok(found)
}

/// The target groups of a route's forwarding action with their weights. One that stands alone has all of it.
pub(crate) fn weights(actions: &[Action]) -> Vec<(&str, i32)> {
    let Some(action) = actions.iter().find(|action| is_forward(action)) else { return Vec::new() };
    match action.forward_config().map(ForwardActionConfig::target_groups) {
        Some(tuples) if !tuples.is_empty() => {
            tuples.iter().filter_map(|tuple| Some((tuple.target_group_arn()?, tuple.weight().unwrap_or(1)))).collect()
        }
        Some(_) | None => action.target_group_arn().map(|arn| (arn, 1)).into_iter().collect(),
    }
}

fn is_forward(action: &Action) -> bool {
    action.r#type() == Some(&ActionTypeEnum::Forward)
}

/// The actions with these weights in place of those that the forwarding action has. A route that forwards nothing yet gets a
/// forwarding action in place of its last one, which answers by itself.
pub(crate) fn with_weights(actions: &[Action], weights: &[(String, i32)]) -> Vec<Action> {
    let tuple =
        |(arn, weight): &(String, i32)| TargetGroupTuple::builder().target_group_arn(arn).weight(*weight).build();
    let tuples: Vec<TargetGroupTuple> = weights.iter().map(tuple).collect();
    let stickiness = actions
        .iter()
        .find(|action| is_forward(action))
        .and_then(|action| action.forward_config())
        .and_then(|config| config.target_group_stickiness_config().cloned());
    let config = ForwardActionConfig::builder()
        .set_target_groups(Some(tuples))
        .set_target_group_stickiness_config(stickiness)
        .build();
    let order = actions.last().and_then(Action::order);
    let forward = Action::builder().r#type(ActionTypeEnum::Forward).forward_config(config).set_order(order).build();
    let mut kept: Vec<Action> = actions.to_vec();
    // The forwarding action, or the answering one, is always the last (the API's rule).
    kept.pop();
    for action in &mut kept {
        // What a login needs is never read back; without this it would be taken away.
        if let Some(login) = &mut action.authenticate_oidc_config {
            login.client_secret = None;
            login.use_existing_client_secret = Some(true);
        }
    }
    kept.push(forward);
    kept
}

/// The weights by which `to` has all the traffic.
pub(crate) fn all_to(now: &[(&str, i32)], to: &str) -> Vec<(String, i32)> {
    let mut weights: Vec<(String, i32)> =
        now.iter().map(|(arn, _)| ((*arn).to_owned(), if *arn == to { WEIGHT } else { 0 })).collect();
    if !now.iter().any(|(arn, _)| *arn == to) {
        weights.push((to.to_owned(), WEIGHT));
    }
    weights
}

/// The actions with this target group out of the route; `None` where nobody would be left.
pub(crate) fn without(actions: &[Action], gone: &str) -> Option<Vec<Action>> {
    let others = weights(actions).into_iter().filter(|(arn, _)| *arn != gone);
    let others: Vec<(String, i32)> = others.map(|(arn, weight)| (arn.to_owned(), weight)).collect();
    (!others.is_empty()).then(|| with_weights(actions, &others))
}

/// The weights with one more target group that gets nothing: from then on its targets are checked. Who has all by standing
/// alone keeps all.
pub(crate) fn with_waiting(now: &[(&str, i32)], new: &str) -> Vec<(String, i32)> {
    let mut weights: Vec<(String, i32)> = now.iter().map(|(arn, weight)| ((*arn).to_owned(), *weight)).collect();
    if !weights.iter().any(|(arn, _)| arn == new) {
        weights.push((new.to_owned(), 0));
    }
    weights
}

/// Writes a route's actions. Nothing compares before it sets, so whoever writes holds the cluster's lock and reads again.
///
/// # Errors
/// [`Fault`].
pub(crate) async fn write(wire: &Wire, id: &RouteId, actions: Vec<Action>) -> Result<(), Fault> {
    match id {
        RouteId::Rule(arn) => {
            let ask = || wire.balancing.modify_rule().rule_arn(arn).set_actions(Some(actions.clone())).send();
            wire.change(Call::ModifyRule, Again::Harmless, ask).await.map(|_| ())
        }
        RouteId::Listener(arn) => {
            let ask =
                || wire.balancing.modify_listener().listener_arn(arn).set_default_actions(Some(actions.clone())).send();
            wire.change(Call::ModifyListener, Again::Harmless, ask).await.map(|_| ())
        }
    }
}

/// Reads one route again.
///
/// # Errors
/// [`Fault`].
pub(crate) async fn reread(wire: &Wire, id: &RouteId) -> Result<Vec<Action>, Fault> {
    match id {
        RouteId::Rule(arn) => {
            let call = Call::DescribeRules;
            let answer = wire.read(call, || wire.balancing.describe_rules().rule_arns(arn).send()).await?;
            let rule = answer.rules().first().ok_or_else(|| Fault::odd(call, "the rule"))?;
            Ok(rule.actions().to_vec())
        }
        RouteId::Listener(arn) => {
            let call = Call::DescribeListeners;
            let answer = wire.read(call, || wire.balancing.describe_listeners().listener_arns(arn).send()).await?;
            let listener = answer.listeners().first().ok_or_else(|| Fault::odd(call, "the listener"))?;
            Ok(listener.default_actions().to_vec())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alone(arn: &str) -> Vec<Action> {
        vec![Action::builder().r#type(ActionTypeEnum::Forward).target_group_arn(arn).order(1).build()]
    }

    #[test]
    fn who_stands_alone_keeps_all_until_the_flip_which_moves_all() {
        let actions = alone("old");
        assert_eq!(weights(&actions), [("old", 1)]);
        let waiting = with_weights(&actions, &with_waiting(&weights(&actions), "new"));
        assert_eq!(weights(&waiting), [("old", 1), ("new", 0)]);
        let flipped = with_weights(&waiting, &all_to(&weights(&waiting), "new"));
        assert_eq!(weights(&flipped), [("old", 0), ("new", 100)]);
        let back = with_weights(&flipped, &all_to(&weights(&flipped), "old"));
        assert_eq!(weights(&back), [("old", 100), ("new", 0)]);
    }

    #[test]
    fn what_else_a_route_does_is_kept() {
        let login = Action::builder().r#type(ActionTypeEnum::AuthenticateOidc).order(1).build();
        let answer = Action::builder().r#type(ActionTypeEnum::FixedResponse).order(2).build();
        let actions = with_weights(&[login.clone(), answer], &with_waiting(&[], "new"));
        assert_eq!(actions[0], login);
        assert_eq!((actions.len(), weights(&actions)), (2, vec![("new", 0)]));
        assert_eq!(actions[1].order(), Some(2));
    }
}
