//! The gates of one scope, as `troop explain` shows them.

use super::time;
use crate::api::types::{ExplainView, GateView};

/// Widest line of gates; experience has shown that wider ones are no longer read.
const LINE_CHARS_MAX: usize = 118;

/// One scope and monkey: what it is, every gate, and today's entries.
pub fn text(view: &ExplainView) -> String {
    let team = view.team.as_ref().map_or_else(|| "no team".to_owned(), |team| format!("team {team}"));
    let mut lines = vec![format!("{}  {}  {team}", view.draw_key, view.monkey)];
    lines.extend(wrapped(&view.gates));
    lines.push(view.verdict.clone());
    if !view.eligible.is_empty() {
        let ids: Vec<_> = view.eligible.iter().map(ToString::to_string).collect();
        lines.push(format!("instances that may be hurt: {}", ids.join(" ")));
    }
    for entry in view.today.iter().chain(&view.drills) {
        // An entry does not say its zone; its instant in UTC is the one that cannot be misread.
        let at =
            entry.at.map(|at| format!(" at {}", time::minute(at, &jiff::tz::TimeZone::UTC) + "Z")).unwrap_or_default();
        let odds = entry.odds.map(|odds| format!(", odds {odds:.3}")).unwrap_or_default();
        let draw = entry.unit.map(|unit| format!(", draw {unit:.3}")).unwrap_or_default();
        let verdict = match entry.verdict {
            troop_policies::plan::PlanVerdict::Chosen => "chosen",
            troop_policies::plan::PlanVerdict::Spared => "spared",
        };
        // The monkey's own entry needs no name: the first line has it.
        let what = if entry.monkey == view.monkey { String::new() } else { format!("{} ", entry.monkey) };
        lines.push(format!("plan of {}: {what}{verdict}{at}{odds}{draw}: {}", entry.day, entry.why));
    }
    lines.join("\n")
}

fn gate(view: &GateView) -> String {
    let answer = if view.ok { "ok" } else { "NO" };
    if view.text.is_empty() {
        format!("{answer} {}", view.gate)
    } else {
        format!("{answer} {}: {}", view.gate, view.text)
    }
}

fn wrapped(gates: &[GateView]) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for gate in gates.iter().map(gate) {
        match lines.last_mut() {
            Some(line) if line.chars().count() + gate.chars().count() + 3 <= LINE_CHARS_MAX => {
                line.push_str(" | ");
                line.push_str(&gate);
            }
            Some(_) | None => lines.push(gate),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use troop_policies::plan::PlanVerdict;

    use super::*;

    #[test]
    fn every_gate_is_told_and_lines_stay_readable() {
        let gate = |name: &str, ok, text: &str| GateView { gate: name.to_owned(), ok, text: text.to_owned() };
        let mut entry = super::super::plan::tests::entry("prod/us-east-1/checkout-web", PlanVerdict::Chosen);
        entry.odds = Some(0.25);
        entry.unit = Some(0.113);
        entry.at = Some("2026-11-24T18:07:00Z".parse().unwrap());
        entry.why = "draw < odds".to_owned();
        let view = ExplainView {
            schema: 1,
            draw_key: "prod/us-east-1/checkout-web".to_owned(),
            monkey: "chaos".to_owned(),
            team: Some("shop".parse().unwrap()),
            gates: vec![
                gate("policy", true, "shop.toml:22, tag agrees"),
                gate("halt", true, ""),
                gate("window", true, "shuts in 4h58m, and this text goes on until the line is full and a bit more"),
                gate("floor", false, "`checkout-web-v041` has 4 serving and must keep 4"),
            ],
            eligible: vec!["i-0a".parse().unwrap(), "i-0b".parse().unwrap()],
            verdict: "spared (floor): `checkout-web-v041` has 4 serving and must keep 4".to_owned(),
            today: Some(entry.clone()),
            drills: vec![troop_policies::plan::PlanEntry {
                monkey: "drill:chaos@13:30".to_owned(),
                odds: None,
                unit: None,
                at: Some("2026-11-24T18:30:00Z".parse().unwrap()),
                why: "drill `30 13 * * tue` at shop.toml:59".to_owned(),
                ..entry
            }],
        };
        assert_eq!(
            text(&view),
            "\
prod/us-east-1/checkout-web  chaos  team shop
ok policy: shop.toml:22, tag agrees | ok halt
ok window: shuts in 4h58m, and this text goes on until the line is full and a bit more
NO floor: `checkout-web-v041` has 4 serving and must keep 4
spared (floor): `checkout-web-v041` has 4 serving and must keep 4
instances that may be hurt: i-0a i-0b
plan of 2026-11-24: chosen at 18:07Z, odds 0.250, draw 0.113: draw < odds
plan of 2026-11-24: drill:chaos@13:30 chosen at 18:30Z: drill `30 13 * * tue` at shop.toml:59"
        );
    }
}
