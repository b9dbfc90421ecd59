//! What the demo measured: printed at its end, and written as JSON with `--summary`.

use serde::{Deserialize, Serialize};

use crate::ui;

/// The whole summary.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    pub schema: u32,
    pub seconds: f64,
    pub isolation: String,
    pub phases: Vec<Phase>,
    pub kills: Vec<Kill>,
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

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Push {
    pub group: String,
    /// `serving`, `never_ready` or `rolled_back`.
    pub result: String,
    pub ready_seconds: Option<f64>,
    pub flip_ms: Option<f64>,
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
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn groups_digits_by_three() {
        assert_eq!(super::thousands(7), "7");
        assert_eq!(super::thousands(999), "999");
        assert_eq!(super::thousands(6_840), "6,840");
        assert_eq!(super::thousands(1_234_567), "1,234,567");
    }
}
