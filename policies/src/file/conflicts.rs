//! Files that speak for one another's apps or team: nobody can say which one holds, so neither does.

use std::collections::BTreeMap;

use crate::ids::TeamName;
use crate::policy::{Place, Policy};

/// Refuses, in every policy concerned, each app that two policies claim, and every app of two policies of one team.
///
/// The reason stands in [`crate::policy::AppPolicy::refused`] and names the places. Returns the reasons, each once.
/// It starts anew at each call, so a conflict that was repaired is gone.
pub fn conflicts(policies: &mut [Policy]) -> Vec<String> {
    let mut teams: BTreeMap<_, Vec<Place>> = BTreeMap::new();
    let mut apps: BTreeMap<_, Vec<Place>> = BTreeMap::new();
    for policy in policies.iter() {
        teams.entry(policy.team.clone()).or_default().push(policy.place.clone());
        for app in policy.apps.values() {
            apps.entry(app.app.clone()).or_default().push(app.place.clone());
        }
    }
    let mut reasons = std::collections::BTreeSet::new();
    for policy in policies {
        let team = reason("team", policy.team.as_str(), teams.get(&policy.team));
        reasons.extend(team.clone());
        for app in policy.apps.values_mut() {
            let claimed = reason("app", app.app.as_str(), apps.get(&app.app));
            reasons.extend(claimed.clone());
            app.refused = claimed.or_else(|| team.clone());
        }
    }
    reasons.into_iter().collect()
}

/// Refuses every app of a team that also has a file with mistakes, `file`: which of the two its author meant to hold, nobody
/// knows. Call it after [`conflicts`], with what [`super::team_of`] says of each bad file.
pub fn spare_team(policies: &mut [Policy], team: &TeamName, file: &str) {
    for policy in policies.iter_mut().filter(|p| p.team == *team) {
        let why = format!("team `{team}` has a file with mistakes, {file}: the team is spared as a whole");
        policy.apps.values_mut().for_each(|app| app.refused = Some(app.refused.take().unwrap_or_else(|| why.clone())));
    }
}

fn reason(kind: &str, name: &str, places: Option<&Vec<Place>>) -> Option<String> {
    let places = places.filter(|places| places.len() > 1)?;
    let list = places.iter().map(Place::to_string).collect::<Vec<_>>().join(" and ");
    Some(format!("{kind} `{name}` is claimed by {} policy files, at {list}: none of them counts for it", places.len()))
}
