//! A day's plan of one team, as `troop plan` shows it.

use jiff::tz::TimeZone;
use troop_policies::plan::{DayPlan, PlanEntry, PlanVerdict};

use super::time;
use crate::ui;

/// The plan as text: one line about the day, then a row for each scope and monkey. `event` is the ledger's number of it.
pub fn text(plan: &DayPlan, event: Option<i64>) -> String {
    let zone = time::zone(&plan.time_zone);
    let mut lines = vec![headline(plan, event, &zone)];
    if let Some(why) = &plan.team_spared_because {
        lines.push(format!("the whole team is spared: {why}"));
    }
    if plan.entries.is_empty() {
        lines.push("no scope: no group carries the tag `troop:team` of this team and an app of its policy".to_owned());
    } else {
        let header = ["SCOPE", "MONKEY", "VERDICT", "AT", "UTC", "ODDS", "DRAW", "WHY"];
        let rows: Vec<_> = plan.entries.iter().map(|e| row(e, &zone)).collect();
        lines.push(ui::table(&header, &rows));
    }
    if let Some(key) = &plan.day_key {
        lines.push(format!("day key {key}: anyone can replay these draws, docs/draws.md"));
    }
    lines.join("\n")
}

fn headline(plan: &DayPlan, event: Option<i64>, zone: &TimeZone) -> String {
    let windows: Vec<_> = plan.windows.iter().map(|w| time::window(w.opens, w.shuts, zone)).collect();
    let hours = match (plan.workday, windows.len()) {
        (false, _) => {
            let why = plan.not_workday_because.as_deref().unwrap_or("no window opens");
            format!("no workday: {why}")
        }
        (true, 1) => format!("window {}", windows.join("")),
        (true, _) => format!("windows {}", windows.join(" and ")),
    };
    let mut made = format!("made {}", time::clock_both(plan.made_at, zone));
    if plan.late {
        made.push_str(", late: minutes before that never fire");
    }
    if let Some(event) = event {
        made.push_str(&format!(", ledger {event}"));
    }
    let leash = if plan.site_leashed { "site leashed" } else { "site unleashed" };
    let halted = if plan.halted { "halted" } else { "not halted" };
    let day = plan.day.strftime("%a %Y-%m-%d");
    format!("{day}, team {}, {}, {hours}; {made}; {leash}; {halted}", plan.team, plan.time_zone)
}

fn row(entry: &PlanEntry, zone: &TimeZone) -> Vec<String> {
    let dash = || "-".to_owned();
    let verdict = match (entry.verdict, entry.missed) {
        (PlanVerdict::Chosen, false) => "chosen",
        (PlanVerdict::Chosen, true) => "missed",
        (PlanVerdict::Spared, _) => "spared",
    };
    let mut why = entry.why.clone();
    if entry.leashed && entry.verdict == PlanVerdict::Chosen && !why.contains("leashed") {
        why.push_str("; leashed: it would only be noted");
    }
    if let Some(joined) = entry.joined_at {
        why.push_str(&format!("; joined at {}", time::clock_both(joined, zone)));
    }
    vec![
        entry.draw_key.clone(),
        entry.monkey.clone(),
        verdict.to_owned(),
        entry.at.map_or_else(dash, |at| time::minute(at, zone)),
        entry.at.map_or_else(dash, |at| time::minute(at, &TimeZone::UTC)),
        entry.odds.map_or_else(dash, |odds| format!("{odds:.3}")),
        entry.unit.map_or_else(dash, |unit| format!("{unit:.3}")),
        why,
    ]
}

#[cfg(test)]
pub(crate) mod tests {
    use troop_policies::plan::WindowSpan;

    use super::*;

    pub(crate) fn entry(key: &str, verdict: PlanVerdict) -> PlanEntry {
        PlanEntry {
            day: "2026-11-24".parse().unwrap(),
            team: "shop".parse().unwrap(),
            app: "checkout".parse().unwrap(),
            draw_key: key.to_owned(),
            monkey: "chaos".to_owned(),
            verdict,
            odds: None,
            unit: None,
            fell: None,
            window_minutes: 360,
            minute: None,
            at: None,
            missed: false,
            leashed: false,
            why: "exception at shop.toml:42: card data, audited".to_owned(),
            joined_at: None,
        }
    }

    pub(crate) fn plan() -> DayPlan {
        let chosen = PlanEntry {
            odds: Some(0.25),
            unit: Some(0.113),
            fell: Some(true),
            minute: Some(187),
            at: Some("2026-11-24T18:07:00Z".parse().unwrap()),
            leashed: true,
            why: "draw < odds".to_owned(),
            ..entry("prod/us-east-1/checkout-web", PlanVerdict::Chosen)
        };
        DayPlan {
            schema: 1,
            team: "shop".parse().unwrap(),
            day: "2026-11-24".parse().unwrap(),
            time_zone: "America/New_York".to_owned(),
            workday: true,
            not_workday_because: None,
            windows: vec![WindowSpan {
                opens: "2026-11-24T15:00:00Z".parse().unwrap(),
                shuts: "2026-11-24T21:00:00Z".parse().unwrap(),
            }],
            made_at: "2026-11-24T05:05:02Z".parse().unwrap(),
            late: false,
            site_leashed: false,
            halted: false,
            day_key: None,
            entries: vec![chosen, entry("prod/us-east-1/checkout-pci", PlanVerdict::Spared)],
            team_spared_because: None,
        }
    }

    #[test]
    fn a_plan_says_when_where_and_why() {
        assert_eq!(
            text(&plan(), Some(4182)),
            "\
Tue 2026-11-24, team shop, America/New_York, window 10:00-16:00 (15:00-21:00Z); made 00:05:02 (05:05:02Z), ledger 4182; site unleashed; not halted
SCOPE                        MONKEY  VERDICT  AT     UTC    ODDS   DRAW   WHY
prod/us-east-1/checkout-web  chaos   chosen   13:07  18:07  0.250  0.113  draw < odds; leashed: it would only be noted
prod/us-east-1/checkout-pci  chaos   spared   -      -      -      -      exception at shop.toml:42: card data, audited"
        );
    }

    #[test]
    fn an_empty_plan_of_a_holiday_is_told_as_such() {
        let plan = DayPlan {
            workday: false,
            not_workday_because: Some("holiday: Thanksgiving Day".to_owned()),
            windows: Vec::new(),
            late: true,
            site_leashed: true,
            halted: true,
            entries: Vec::new(),
            team_spared_because: Some("the inventory could not be read".to_owned()),
            ..plan()
        };
        let text = text(&plan, None);
        for part in [
            "no workday: holiday: Thanksgiving Day; made",
            "late: minutes before that never fire; site leashed; halted",
            "the whole team is spared: the inventory could not be read",
            "no scope",
        ] {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
    }
}
