//! What `troop policy check` found, app by app.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;
use troop_policies::policy::AppPolicy;

use crate::ui;

/// One app of one policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AppRow {
    pub app: String,
    pub team: String,
    pub file: String,
    /// Null where no cloud was asked.
    pub groups: Option<usize>,
    pub instances: Option<usize>,
    pub opted_in: Vec<String>,
    pub warnings: Vec<String>,
}

/// What an app opted in to: `chaos`, `latency (leashed)`.
pub fn opted_in(app: &AppPolicy) -> Vec<String> {
    let monkey = |name: &str, leashed: bool| if leashed { format!("{name} (leashed)") } else { name.to_owned() };
    let chaos = app.chaos.as_ref().map(|chaos| monkey("chaos", chaos.leashed));
    let latency = app.latency.as_ref().map(|latency| monkey("latency", latency.leashed));
    chaos.into_iter().chain(latency).collect()
}

/// One drill of one policy, and its next runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DrillRow {
    pub app: String,
    pub team: String,
    /// Where it stands: `shop.toml:59`.
    pub place: String,
    pub monkey: String,
    pub cron: String,
    pub time_zone: String,
    pub next: Vec<DrillRun>,
    /// Why the line cannot be read, where that is so; it then never runs.
    pub problem: Option<String>,
}

/// One run to come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DrillRun {
    pub at: Timestamp,
    /// In the policy's zone: `Tue 2026-12-01 10:30 -05:00`.
    pub local: String,
    /// Why no window is open then, where that is so: it is spared.
    pub spared_because: Option<String>,
}

impl DrillRun {
    pub fn new(at: Timestamp, zone: &TimeZone, spared_because: Option<String>) -> Self {
        let local = at.to_zoned_datetime(zone.clone()).strftime("%a %Y-%m-%d %H:%M %:z").to_string();
        Self { at, local, spared_because }
    }
}

/// Each drill on a line, its next runs on lines of their own.
pub fn drills(rows: &[DrillRow]) -> String {
    let mut lines = Vec::new();
    for row in rows {
        lines.push(format!("drill of {}: {}, `{}` at {}, {}", row.app, row.monkey, row.cron, row.place, row.time_zone));
        lines.extend(row.problem.iter().map(|why| format!("  never runs: {why}")));
        lines.extend(row.next.iter().map(|run| match &run.spared_because {
            None => format!("  {}", run.local),
            Some(why) => format!("  {}  spared: {why}", run.local),
        }));
    }
    lines.join("\n")
}

pub fn text(rows: &[AppRow]) -> String {
    let number = |n: Option<usize>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
    let list = |items: &[String]| if items.is_empty() { "-".to_owned() } else { items.join("; ") };
    let row =
        |r: &AppRow| vec![r.app.clone(), number(r.groups), number(r.instances), list(&r.opted_in), list(&r.warnings)];
    ui::table(&["APP", "GROUPS", "INSTANCES", "OPTED IN", "WARNINGS"], &rows.iter().map(row).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drill_tells_its_next_runs_with_offsets_and_which_are_spared() {
        let zone = crate::views::time::zone("America/New_York");
        let run = |at: &str, why: Option<&str>| DrillRun::new(at.parse().unwrap(), &zone, why.map(str::to_owned));
        let row = DrillRow {
            app: "checkout".to_owned(),
            team: "shop".to_owned(),
            place: "shop.toml:59".to_owned(),
            monkey: "chaos".to_owned(),
            cron: "30 10 * * sat,mon".to_owned(),
            time_zone: "America/New_York".to_owned(),
            next: vec![run("2027-03-13T15:30:00Z", Some("no window is open")), run("2027-03-15T14:30:00Z", None)],
            problem: None,
        };
        assert_eq!(
            drills(&[row]),
            "\
drill of checkout: chaos, `30 10 * * sat,mon` at shop.toml:59, America/New_York
  Sat 2027-03-13 10:30 -05:00  spared: no window is open
  Mon 2027-03-15 10:30 -04:00"
        );
    }

    #[test]
    fn an_app_is_one_row() {
        let row = AppRow {
            app: "checkout".to_owned(),
            team: "shop".to_owned(),
            file: "shop.toml".to_owned(),
            groups: Some(3),
            instances: Some(17),
            opted_in: vec!["chaos".to_owned(), "latency (leashed)".to_owned()],
            warnings: vec!["checkout-pci: exception, shop.toml:42".to_owned()],
        };
        let plain = AppRow { groups: None, instances: None, opted_in: Vec::new(), warnings: Vec::new(), ..row.clone() };
        assert_eq!(
            text(&[row, plain]),
            "\
APP       GROUPS  INSTANCES  OPTED IN                  WARNINGS
checkout  3       17         chaos; latency (leashed)  checkout-pci: exception, shop.toml:42
checkout  -       -          -                         -"
        );
    }
}
