//! What is aimed at, judged by what was measured.

use super::figures::Rounds;
use super::report::{Figures, Goal, Limit, Way};

/// A prototype reached 0.93 and 0.72 to 0.77.
const INGRESS_TO_VETH: f64 = 0.9;
const EGRESS_TO_VETH: f64 = 0.72;
const TO_MM_DELAY: f64 = 4.5;
/// At 40 ms with 16 flows.
const TO_MM_DELAY_DELAYED: f64 = 5.0;
const ADDED_P50_US: f64 = 40.0;
const BEYOND_RAW_P50_US: f64 = 100.0;
const IDLE_RSS_MIB: f64 = 8.0;
const IDLE_WAKEUPS_PER_S: f64 = 1.0;

/// A goal for each row that one is about.
pub(super) fn of(figures: &Figures) -> Vec<Goal> {
    let mut goals = Vec::new();
    for row in &figures.throughput {
        let (name, flows) = (row.way.name(), row.flows);
        let to_veth = match row.way {
            Way::Egress => EGRESS_TO_VETH,
            Way::Ingress => INGRESS_TO_VETH,
            Way::Veth | Way::Toxiproxy | Way::MmDelay => continue,
        };
        if row.delay_ms == 0 {
            let named = |to: &str| format!("{name} to {to}, {flows} flows, no delay");
            goals.extend(least(named("raw veth"), "ratio", to_veth, row.ratio_to_veth));
            goals.extend(least(named("mm-delay"), "ratio", TO_MM_DELAY, row.ratio_to_mm_delay));
        } else if flows == 16 {
            let named = format!("{name} to mm-delay, {flows} flows, {} ms", row.delay_ms);
            goals.extend(least(named, "ratio", TO_MM_DELAY_DELAYED, row.ratio_to_mm_delay));
        }
    }
    for row in &figures.rtt {
        goals.extend(most(
            format!("{} adds to a round trip, p50", row.way.name()),
            "us",
            ADDED_P50_US,
            row.added_p50_us,
        ));
    }
    for row in figures.delay.iter().filter(|row| row.delay_ms > 0) {
        let late = format!("{} ms are late beyond raw veth, p50", row.delay_ms);
        goals.extend(most(late, "us", BEYOND_RAW_P50_US, row.beyond_raw_p50_us));
        let early = format!("the earliest of {} ms", row.delay_ms);
        goals.push(goal(early, "us", Limit::AtLeast(0.0), row.earliest_us));
    }
    if let Some(idle) = &figures.idle {
        goals.push(goal("memory of an idle agent".to_owned(), "MiB", Limit::AtMost(IDLE_RSS_MIB), idle.rss_mib));
        let wakes = "wake-ups of an idle agent".to_owned();
        goals.push(goal(wakes, "a second", Limit::AtMost(IDLE_WAKEUPS_PER_S), idle.wakeups_per_s));
    }
    goals
}

fn least(name: String, unit: &'static str, limit: f64, measured: Option<Rounds>) -> Option<Goal> {
    measured.map(|measured| goal(name, unit, Limit::AtLeast(limit), measured.median))
}

fn most(name: String, unit: &'static str, limit: f64, measured: Option<Rounds>) -> Option<Goal> {
    measured.map(|measured| goal(name, unit, Limit::AtMost(limit), measured.median))
}

fn goal(name: String, unit: &'static str, limit: Limit, measured: f64) -> Goal {
    let met = match limit {
        Limit::AtLeast(least) => measured >= least,
        Limit::AtMost(most) => measured <= most,
    };
    Goal { name, unit, limit, measured, met }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_is_met_at_its_limit_and_what_was_not_measured_has_none() {
        let of = |limit, measured| goal(String::new(), "us", limit, measured).met;
        assert!(of(Limit::AtLeast(0.0), 0.0) && !of(Limit::AtLeast(0.0), -0.001));
        assert!(of(Limit::AtMost(40.0), 40.0) && !of(Limit::AtMost(40.0), 40.1));
        assert_eq!(least(String::new(), "ratio", 0.9, None), None);
        let text = serde_json::to_value(goal("a".to_owned(), "us", Limit::AtMost(1.0), 2.0)).unwrap();
        let expected = serde_json::json!({"name": "a", "unit": "us", "at_most": 1.0, "measured": 2.0, "met": false});
        assert_eq!(text, expected);
    }
}
