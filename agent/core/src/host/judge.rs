//! Whether a measurement shows a fault.

use std::time::Duration;

use troop_policies::fault::FaultSpec;

use crate::protocol::{Measured, MeasuredBy};

/// What there is to see of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wants {
    /// Round trips that are longer by this at least.
    Slower(Duration),
    /// Probes that do not come back.
    Silence,
    /// Only what the plane itself counts: it concerns some packets, not any one.
    Concerned,
}

/// What a fault shows itself by.
pub fn wants(spec: &FaultSpec) -> Wants {
    let lossy = spec.loss.is_some_and(|loss| loss.ppm >= troop_policies::fault::ALL_PPM);
    match spec.least_shown().filter(|least| !least.is_zero()) {
        _ if lossy && spec.flows_ppm.is_none() => Wants::Silence,
        // Probes are flows of their own: with a share of the flows most of them may be spared.
        Some(least) if spec.flows_ppm.is_none() => Wants::Slower(least),
        Some(_) | None => Wants::Concerned,
    }
}

/// Whether `found` is as with the fault rather than as without.
pub fn is_shown(spec: &FaultSpec, baseline: Option<&Measured>, found: &Measured) -> bool {
    let micros = |least: Duration| u64::try_from(least.as_micros()).unwrap_or(u64::MAX);
    match (found.by, wants(spec)) {
        (MeasuredBy::Sockets, Wants::Slower(least)) => match (baseline.and_then(|b| b.median_us), found.median_us) {
            (Some(before), Some(now)) => now >= before.saturating_add(micros(least)),
            // Connections that say nothing show nothing.
            (None, _) | (_, None) => false,
        },
        (MeasuredBy::Handshake, Wants::Slower(least)) => match (baseline.and_then(|b| b.median_us), found.median_us) {
            (Some(before), Some(now)) => now >= before.saturating_add(micros(least)),
            // Nothing comes back any more, and something did: beyond what the probe waits for.
            (Some(_), None) => true,
            (None, _) => false,
        },
        (MeasuredBy::Handshake, Wants::Silence) => found.back == 0 && baseline.is_some_and(|b| b.back > 0),
        // The kernel's plane cannot tell for how long it held a packet, only that its netem, read back as it was set, had it.
        (MeasuredBy::Plane, Wants::Slower(least)) => {
            found.median_us.map_or(found.sent > 0, |held| held >= micros(least) / 2)
        }
        (MeasuredBy::Plane, Wants::Silence) => found.sent > 0 && found.back == 0,
        (MeasuredBy::Plane, Wants::Concerned) => found.sent > 0,
        (MeasuredBy::Sockets, Wants::Silence | Wants::Concerned)
        | (MeasuredBy::Handshake, Wants::Concerned)
        | (MeasuredBy::Unknown, _) => false,
    }
}
