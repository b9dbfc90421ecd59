//! What the ledger keeps, read for people: the newest plans, the teams' zones, pushes of Troop's own words.

use std::collections::BTreeMap;

use jiff::civil::Date;
use serde::de::DeserializeOwned;
use troop_ledger::{EventFilter, EventId, Ledger, StoredPlan};
use troop_policies::TeamName;
use troop_policies::plan::DayPlan;

use crate::exit::{CliError, Code};
use crate::views::status::Zones;
use crate::views::time;

/// Newest plans looked through for each team's last: two years of one team, a month of twenty.
const PLANS_LOOKED_THROUGH: u32 = 600;

/// A plan with the number of its event.
#[derive(Debug, Clone)]
pub(super) struct Planned {
    pub(super) plan: DayPlan,
    pub(super) event: Option<EventId>,
}

pub(super) fn plan_of(stored: StoredPlan) -> Result<Planned, CliError> {
    let what = format!("the plan of {} for team {}", stored.day, stored.team);
    let plan = read(stored.body, &what)?;
    Ok(Planned { plan, event: Some(stored.event) })
}

/// A body of ours. One that cannot be read was written by another build, which is said, never left out.
pub(super) fn read<T: DeserializeOwned>(body: serde_json::Value, what: &str) -> Result<T, CliError> {
    serde_json::from_value(body).map_err(|e| {
        CliError::new(Code::Unavailable, format!("{what} in the ledger cannot be read: {e}"))
            .hint("another build of troop may have written it")
    })
}

/// The plans of one day, one a team.
pub(super) async fn plans_of_day(ledger: &Ledger, day: Date) -> Result<Vec<Planned>, CliError> {
    ledger.plans(&day.to_string()).await?.into_iter().map(plan_of).collect()
}

/// Each team's newest plan, by team.
pub(super) async fn newest_plans(ledger: &Ledger) -> Result<Vec<Planned>, CliError> {
    let made = EventFilter {
        kinds: vec!["plan_made".to_owned()],
        newest_first: true,
        limit: Some(PLANS_LOOKED_THROUGH),
        ..EventFilter::default()
    };
    let mut newest: BTreeMap<String, String> = BTreeMap::new();
    for event in ledger.events(&made).await? {
        let day = event.body.get("day").and_then(serde_json::Value::as_str);
        if let (Some(team), Some(day)) = (event.team, day) {
            newest.entry(team).or_insert_with(|| day.to_owned());
        }
    }
    let mut plans = Vec::new();
    for (team, day) in newest {
        if let Some(stored) = ledger.plan(&day, &team).await? {
            plans.push(plan_of(stored)?);
        }
    }
    Ok(plans)
}

/// The zones in which the teams' times are shown. What cannot be read is shown in UTC, which is never wrong.
pub(super) async fn zones(ledger: &Ledger) -> Zones {
    let plans = newest_plans(ledger).await.unwrap_or_default();
    plans.into_iter().map(|p| (p.plan.team.to_string(), time::zone(&p.plan.time_zone))).collect()
}

/// An error with the most similar name, when `team` is not among those there are.
pub(super) fn known_team<'a>(team: &TeamName, all: impl Iterator<Item = &'a TeamName> + Clone) -> Result<(), CliError> {
    if all.clone().any(|t| t == team) {
        return Ok(());
    }
    let near = troop_policies::file::nearest(team.as_str(), all.clone().map(TeamName::as_str));
    let hint = match near {
        Some(near) => format!("did you mean `{near}`?"),
        None => {
            let list: Vec<_> = all.map(|t| format!("`{t}`")).collect();
            if list.is_empty() { "no team has a plan".to_owned() } else { format!("the teams are {}", list.join(", ")) }
        }
    };
    Err(CliError::new(Code::Input, format!("team `{team}` has no plan here")).hint(hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_team_is_told_with_the_nearest_or_with_all() {
        let all: Vec<TeamName> = ["shop", "search"].map(|t| t.parse().unwrap()).into();
        assert!(known_team(&all[0], all.iter()).is_ok());
        let error = known_team(&"shopp".parse().unwrap(), all.iter()).unwrap_err();
        assert_eq!(error.hint.as_deref(), Some("did you mean `shop`?"));
        let error = known_team(&"xyz".parse().unwrap(), all.iter()).unwrap_err();
        assert_eq!(error.hint.as_deref(), Some("the teams are `shop`, `search`"));
    }
}
