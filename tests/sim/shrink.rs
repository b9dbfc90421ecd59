//! Makes a violation small: first whole kinds of events are left out, then the events after the one that mattered.

use std::collections::BTreeSet;

use crate::month::{Options, Report, run};
use crate::script::KINDS;

/// The smallest run found that still shows the same invariant broken.
#[derive(Debug, Clone)]
pub struct Small {
    pub options: Options,
    pub report: Report,
}

fn shows(options: &Options, invariant: &str) -> Option<Report> {
    let report = run(options).ok()?;
    report.violations.iter().any(|v| v.invariant == invariant).then_some(report)
}

/// Shrinks a month that broke an invariant.
pub fn shrink(options: &Options, report: &Report) -> Small {
    let Some(invariant) = report.violations.first().map(|v| v.invariant) else {
        return Small { options: options.clone(), report: report.clone() };
    };
    let mut small = Small { options: options.clone(), report: report.clone() };
    for kind in KINDS {
        let mut without: BTreeSet<String> = small.options.without.clone();
        if !without.insert(kind.to_owned()) {
            continue;
        }
        let fewer = Options { without, ..small.options.clone() };
        if let Some(report) = shows(&fewer, invariant) {
            small = Small { options: fewer, report };
        }
    }
    // The shortest prefix: fewer events show it or not, so halving finds the edge, or an edge.
    let (mut low, mut high) = (0, small.report.events);
    while low < high {
        let middle = low.midpoint(high);
        let shorter = Options { first: Some(middle), ..small.options.clone() };
        match shows(&shorter, invariant) {
            Some(report) => {
                high = middle;
                small = Small { options: shorter, report };
            }
            None => low = middle + 1,
        }
    }
    small
}
