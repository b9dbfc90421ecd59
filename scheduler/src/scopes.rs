//! What a policy draws for, as found in the inventories.

use std::collections::{BTreeMap, BTreeSet};

use jiff::civil::Date;
use troop_policies::inventory::{Group, Inventory, TAG_TEAM};
use troop_policies::policy::Policy;
use troop_policies::{AppName, ClusterName};

/// One scope, with what the ledger knows of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScopeSeen {
    pub app: AppName,
    pub draw_key: String,
    /// The scope's clusters of which the team owns a group, by name; a name stands once, however many regions have it.
    pub clusters: Vec<ClusterName>,
    /// Why the policy never touches any of the scope's clusters, where that is so.
    pub exempt: Option<String>,
    /// The day of the last kill of the scope by Troop that counts; set by the caller.
    pub last_kill_day: Option<Date>,
    /// The day of the last fault that Troop put on one of its instances; set by the caller.
    pub last_fault_day: Option<Date>,
    /// Why the scope is marked unhealed; set by the caller.
    pub unhealed: Option<String>,
}

/// Groups by the team that their tag `troop:team` names. Made once for all teams: a site with ten times the teams has ten
/// times the groups, and each team would go through all of them.
#[derive(Debug)]
pub struct ByTeam<'a>(BTreeMap<&'a str, Vec<(&'a Inventory, &'a Group)>>);

impl<'a> ByTeam<'a> {
    pub fn of(inventories: impl IntoIterator<Item = &'a Inventory>) -> Self {
        let mut by_team: BTreeMap<&str, Vec<_>> = BTreeMap::new();
        for inventory in inventories {
            for group in inventory.groups.values() {
                if let Some(team) = group.tags.get(TAG_TEAM) {
                    by_team.entry(team.as_str()).or_default().push((inventory, group));
                }
            }
        }
        Self(by_team)
    }

    /// The groups that opted in to this policy.
    fn owned(&self, policy: &Policy) -> impl Iterator<Item = (&'a Inventory, &'a Group)> {
        let named = self.0.get(policy.team.as_str()).into_iter().flatten().copied();
        named.filter(|(_, group)| policy.owns(group))
    }
}

/// All scopes of the policy's apps of which the team owns a group, sorted by draw key. Of the ledger they know nothing yet.
pub fn scopes_of(policy: &Policy, groups: &ByTeam<'_>) -> Vec<ScopeSeen> {
    #[derive(Default)]
    struct Found {
        clusters: BTreeSet<ClusterName>,
        reasons: Vec<String>,
        open: bool,
    }
    let mut found: BTreeMap<(String, AppName), Found> = BTreeMap::new();
    for (inventory, group) in groups.owned(policy) {
        let cluster = group.cluster();
        let Some(app) = policy.apps.get(cluster.app()) else { continue };
        let key = app.draw_key(&inventory.account, &inventory.region, cluster);
        let scope = found.entry((key, app.app.clone())).or_default();
        scope.clusters.insert(cluster.clone());
        match app.exempt(&inventory.account, &inventory.region, cluster) {
            Some(why) if scope.reasons.contains(&why) => {}
            Some(why) => scope.reasons.push(why),
            None => scope.open = true,
        }
    }
    let scope = |((draw_key, app), found): ((String, AppName), Found)| ScopeSeen {
        app,
        draw_key,
        clusters: found.clusters.into_iter().collect(),
        exempt: (!found.open).then(|| found.reasons.join("; ")),
        last_kill_day: None,
        last_fault_day: None,
        unhealed: None,
    };
    found.into_iter().map(scope).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{inventory, policy};

    fn keys(scopes: &[ScopeSeen]) -> Vec<(&str, Option<&str>)> {
        scopes.iter().map(|s| (s.draw_key.as_str(), s.exempt.as_deref())).collect()
    }

    #[test]
    fn a_scope_stands_for_each_cluster_of_the_team_and_says_why_it_is_exempt() {
        let policy = policy("");
        let seen =
            [inventory("us-east-1", &["checkout-web-v001", "checkout-web-v002", "checkout-pci-v000", "other-v000"])];
        let scopes = scopes_of(&policy, &ByTeam::of(&seen));
        assert_eq!(
            keys(&scopes),
            [
                ("prod/us-east-1/checkout-pci", Some("exception at shop.toml:17: card data, audited")),
                ("prod/us-east-1/checkout-web", None),
            ]
        );
        assert_eq!(scopes[1].clusters.len(), 1);
    }

    #[test]
    fn a_group_of_another_team_or_of_none_makes_no_scope() {
        let mut seen = inventory("us-east-1", &["checkout-web-v001", "checkout-api-v001", "checkout-sub-v001"]);
        let tag = |inventory: &mut Inventory, name: &str, team: Option<&str>| {
            let group = inventory.groups.get_mut(&name.parse().unwrap()).unwrap();
            group.tags.clear();
            group.tags.extend(team.map(|t| ("troop:team".to_owned(), t.to_owned())));
        };
        tag(&mut seen, "checkout-api-v001", Some("search"));
        tag(&mut seen, "checkout-sub-v001", None);
        assert_eq!(keys(&scopes_of(&policy(""), &ByTeam::of(&[seen]))), [("prod/us-east-1/checkout-web", None)]);
    }

    #[test]
    fn a_scope_over_regions_and_clusters_is_exempt_only_when_all_of_it_is() {
        let mut policy = policy("grouping = \"app\"\nregions_independent = false\n");
        let east = inventory("us-east-1", &["checkout-web-v001", "checkout-pci-v000"]);
        let west = inventory("us-west-2", &["checkout-web-v004"]);
        let seen = [east, west];
        let scopes = scopes_of(&policy, &ByTeam::of(&seen));
        assert_eq!(keys(&scopes), [("prod/checkout", None)]);
        assert_eq!(scopes[0].clusters.len(), 2);
        let app = policy.apps.get_mut(&"checkout".parse().unwrap()).unwrap();
        app.refused = Some("two files name it".to_owned());
        assert_eq!(keys(&scopes_of(&policy, &ByTeam::of(&seen))), [("prod/checkout", Some("two files name it"))]);
    }
}
