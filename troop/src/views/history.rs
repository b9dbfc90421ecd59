//! What was done, spared and undone, one line each: acts joined with their outcome and healing.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;

use super::status::Zones;
use super::time;
use crate::ui;

/// One line of `troop history`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HistoryRow {
    pub schema: u32,
    /// On the scheduler's calendar.
    pub at: Timestamp,
    pub real_at: Timestamp,
    /// `kill`, `latency`, `spared`, `would_have`, `halted`, `resumed`, `cleared`, `adopted`, `push`, `rollback`, `policy_bad`, `clock_jumped`, `notice_failed`
    /// or `smaller_inventory_accepted`.
    pub what: &'static str,
    pub team: Option<String>,
    /// The draw key, or a push's cluster.
    pub scope: Option<String>,
    pub group: Option<String>,
    pub instance: Option<String>,
    pub zone: Option<String>,
    pub by: Option<String>,
    /// `done`, `refused`, `unknown`, `open`; a push's result or phase; the gate that spared.
    pub outcome: Option<String>,
    pub detail: Option<String>,
    /// `healing`, `healed` or `not_healed`, for kills.
    pub healing: Option<&'static str>,
    pub heal_seconds: Option<f64>,
    pub intent: Option<String>,
    pub push: Option<u64>,
}

impl HistoryRow {
    pub fn new(what: &'static str, at: Timestamp, real_at: Timestamp) -> Self {
        Self {
            schema: 1,
            at,
            real_at,
            what,
            team: None,
            scope: None,
            group: None,
            instance: None,
            zone: None,
            by: None,
            outcome: None,
            detail: None,
            healing: None,
            heal_seconds: None,
            intent: None,
            push: None,
        }
    }
}

/// The rows as a table; times in the team's zone where it is known, and in UTC.
pub fn text(rows: &[HistoryRow], zones: &Zones) -> String {
    const UTC: &TimeZone = &TimeZone::UTC;
    let line = |row: &HistoryRow| {
        let zone = row.team.as_ref().and_then(|team| zones.get(team)).unwrap_or(UTC);
        let on = match (&row.instance, &row.zone) {
            (Some(instance), Some(zone)) => format!("{instance} ({zone})"),
            (Some(instance), None) => instance.clone(),
            (None, _) => row.group.clone().unwrap_or_else(|| "-".to_owned()),
        };
        let dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        vec![
            time::day_and_clock(row.at, zone),
            time::day_and_clock(row.at, &TimeZone::UTC).chars().skip(11).take(8).collect(),
            row.what.replace('_', " "),
            dash(&row.scope),
            on,
            dash(&row.by),
            outcome(row),
        ]
    };
    let header = ["AT", "UTC", "WHAT", "SCOPE", "ON", "BY", "OUTCOME"];
    ui::table(&header, &rows.iter().map(line).collect::<Vec<_>>())
}

fn outcome(row: &HistoryRow) -> String {
    let mut parts = Vec::new();
    match (&row.outcome, &row.detail) {
        (Some(outcome), Some(detail)) if !detail.is_empty() => {
            parts.push(format!("{}: {detail}", outcome.replace('_', " ")));
        }
        (Some(outcome), _) => parts.push(outcome.replace('_', " ")),
        (None, Some(detail)) => parts.push(detail.clone()),
        (None, None) => {}
    }
    match (row.healing, row.heal_seconds) {
        (Some("healed"), Some(seconds)) => parts.push(format!("healed in {}", time::seconds(seconds))),
        (Some("not_healed"), Some(seconds)) => parts.push(format!("not healed after {}", time::seconds(seconds))),
        (Some(healing), _) => parts.push(healing.replace('_', " ")),
        (None, _) => {}
    }
    if parts.is_empty() { "-".to_owned() } else { parts.join("; ") }
}

/// What two leashed weeks come to: `9 would have been killed; 2 more spared at the minute: 1 floor, 1 push`.
pub fn would_have_summary(rows: &[HistoryRow]) -> String {
    let would = rows.iter().filter(|r| r.what == "would_have").count();
    let mut gates: BTreeMap<&str, usize> = BTreeMap::new();
    for row in rows.iter().filter(|r| r.what == "spared") {
        *gates.entry(row.outcome.as_deref().unwrap_or("unknown")).or_default() += 1;
    }
    let spared: usize = gates.values().sum();
    let list = gates.iter().map(|(gate, n)| format!("{n} {gate}")).collect::<Vec<_>>().join(", ");
    let more = if spared == 0 { String::new() } else { format!("; {spared} more spared at the minute: {list}") };
    format!("{would} would have been killed{more}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(what: &'static str) -> HistoryRow {
        let at = "2026-11-24T18:07:00Z".parse().unwrap();
        HistoryRow::new(what, at, at)
    }

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn an_act_its_outcome_and_its_healing_are_one_line() {
        let kill = HistoryRow {
            team: some("shop"),
            scope: some("prod/us-east-1/checkout-web"),
            instance: some("i-4f21"),
            zone: some("us-east-1b"),
            by: some("chaos's draw of 2026-11-24"),
            outcome: some("done"),
            detail: some("gone"),
            healing: Some("healed"),
            heal_seconds: Some(74.2),
            ..row("kill")
        };
        let halt = HistoryRow { by: some("ana"), detail: some("fire"), ..row("halted") };
        let zones = [("shop".to_owned(), time::zone("America/New_York"))].into();
        assert_eq!(
            text(&[kill, halt], &zones),
            "\
AT                       UTC       WHAT    SCOPE                        ON                   BY                          OUTCOME
2026-11-24 13:07:00 EST  18:07:00  kill    prod/us-east-1/checkout-web  i-4f21 (us-east-1b)  chaos's draw of 2026-11-24  done: gone; healed in 74 s
2026-11-24 18:07:00 UTC  18:07:00  halted  -                            -                    ana                         fire"
        );
    }

    #[test]
    fn leashed_weeks_are_summed_up() {
        let spared = |gate: &str| HistoryRow { outcome: some(gate), ..row("spared") };
        let rows = [row("would_have"), spared("push"), row("would_have"), spared("floor"), spared("push"), row("kill")];
        assert_eq!(would_have_summary(&rows), "2 would have been killed; 3 more spared at the minute: 1 floor, 2 push");
        assert_eq!(would_have_summary(&[]), "0 would have been killed");
    }
}
