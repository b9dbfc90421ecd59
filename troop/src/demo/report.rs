//! What the demo measured: printed at its end, and written as JSON with `--summary`.

use serde::{Deserialize, Serialize};

use crate::api::types::PushView;
use crate::load::PhaseCounts;
use crate::ui;

/// Phases of the load client.
pub(super) const STEADY: &str = "steady";
pub(super) const KILL: &str = "kill";
pub(super) const PUSH: &str = "push";

/// The whole summary.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    pub schema: u32,
    pub seconds: f64,
    pub isolation: String,
    pub phases: Vec<Phase>,
    pub kills: Vec<Kill>,
    /// Null where it was left out.
    pub latency: Option<Latency>,
    pub pushes: Vec<Push>,
    /// Instances of quiet-web, which no policy names, that were not there at the end as at the start.
    pub spared_touched: usize,
    /// Processes, namespaces, mounts and interfaces of ours after the end.
    pub left_over: usize,
}

/// Requests of the load client while one chapter ran.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    pub name: String,
    pub sent: u64,
    pub failed: u64,
    /// Of the failed: their instance was ended while it had them.
    pub in_flight_to_killed: u64,
    /// Of the failed: answers of 500 and above by the version that the demo made bad.
    pub by_bad_version: u64,
    pub other: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Kill {
    pub instance: String,
    /// `draw` or `demand`.
    pub how: String,
    pub healed: bool,
    pub heal_seconds: f64,
}

/// A delay on one instance, and the round trip to its peer, by the median of five handshakes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    pub instance: String,
    pub to: String,
    pub delay_ms: u64,
    pub lasts_seconds: u64,
    /// The data plane that did it.
    pub plane: String,
    /// Null: it could not be measured.
    pub before_ms: Option<f64>,
    pub during_ms: Option<f64>,
    pub after_ms: Option<f64>,
}

impl Latency {
    /// Whether the figures show that it was there, never early, and is gone.
    pub(super) fn is_shown(&self) -> bool {
        let (Some(before), Some(during), Some(after)) = (self.before_ms, self.during_ms, self.after_ms) else {
            return false;
        };
        let delay = f64::from(u32::try_from(self.delay_ms).unwrap_or(u32::MAX));
        during >= delay && after < before + delay / 2.0
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Push {
    pub group: String,
    /// `serving`, `never_ready` or `rolled_back`.
    pub result: String,
    pub ready_seconds: Option<f64>,
    pub flip_ms: Option<f64>,
}

impl From<PhaseCounts> for Phase {
    fn from(counts: PhaseCounts) -> Self {
        Self {
            name: counts.name,
            sent: counts.sent,
            failed: counts.failed,
            in_flight_to_killed: counts.in_flight_to_killed,
            by_bad_version: counts.by_bad_version,
            other: counts.other,
        }
    }
}

impl Push {
    pub(super) fn new(view: &PushView, result: &str) -> Self {
        Self {
            group: view.group.to_string(),
            result: result.to_owned(),
            ready_seconds: view.ready_seconds,
            flip_ms: view.flip_ms,
        }
    }
}

/// What the demo promises of its requests, and of those it must not touch, where it was not kept.
pub(super) fn promises(phases: &[PhaseCounts], spared_touched: usize) -> Vec<String> {
    let mut broken = Vec::new();
    for p in phases {
        if p.other > 0 {
            broken.push(format!(
                "{}: {} requests failed for another reason: {}",
                p.name,
                p.other,
                p.reasons.join("; ")
            ));
        }
        if p.name != KILL && p.in_flight_to_killed > 0 {
            broken.push(format!("{}: {} requests were in flight to a kill", p.name, p.in_flight_to_killed));
        }
        if p.name != PUSH && p.by_bad_version > 0 {
            broken.push(format!("{}: {} answers came from the bad version", p.name, p.by_bad_version));
        }
    }
    if spared_touched > 0 {
        broken.push(format!("{spared_touched} instances of quiet-web are not those of the beginning"));
    }
    broken
}

/// Prints the closing table. What is left over is not known of a demo that is kept.
pub(super) fn print_end(summary: &Summary, kept: bool) {
    let phase = |p: &Phase| {
        format!(
            "{:<8} {:>6}  {:>6}  {:>19}  {:>14}  {:>5}",
            p.name,
            thousands(p.sent),
            thousands(p.failed),
            thousands(p.in_flight_to_killed),
            thousands(p.by_bad_version),
            thousands(p.other)
        )
    };
    let mut lines = vec![" PHASE     SENT  FAILED  IN FLIGHT TO KILLED  BY BAD VERSION  OTHER".to_owned()];
    lines.extend(summary.phases.iter().map(|p| format!(" {}", phase(p))));
    let touched = match summary.spared_touched {
        0 => "quiet-web: never touched (same ids)".to_owned(),
        n => format!("quiet-web: {n} INSTANCES CHANGED"),
    };
    lines.push(format!(" SPARED    {touched}"));
    if !kept {
        lines.push(format!(" LEFT OVER {} processes, namespaces, mounts, interfaces", summary.left_over));
    }
    lines.push(" NEXT      `troop up` to play, `troop policy init --team T` for your team".to_owned());
    for line in lines {
        ui::line(&line);
    }
}

fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(name: &str) -> PhaseCounts {
        PhaseCounts { name: name.to_owned(), sent: 10, ..PhaseCounts::default() }
    }

    #[test]
    fn only_what_is_promised_may_fail_where_it_may() {
        let killed = PhaseCounts { failed: 1, in_flight_to_killed: 1, ..counts(KILL) };
        let bad = PhaseCounts { failed: 3, by_bad_version: 3, ..counts(PUSH) };
        assert_eq!(promises(&[counts(STEADY), killed.clone(), bad.clone()], 0), Vec::<String>::new());
        let swapped = [PhaseCounts { name: PUSH.to_owned(), ..killed }, PhaseCounts { name: STEADY.to_owned(), ..bad }];
        assert_eq!(promises(&swapped, 0).len(), 2);
        let other = PhaseCounts { failed: 1, other: 1, reasons: vec!["502".to_owned()], ..counts(STEADY) };
        assert_eq!(promises(&[other], 1).len(), 2);
    }

    #[test]
    fn groups_digits_by_three() {
        assert_eq!(super::thousands(7), "7");
        assert_eq!(super::thousands(999), "999");
        assert_eq!(super::thousands(6_840), "6,840");
        assert_eq!(super::thousands(1_234_567), "1,234,567");
    }
}
