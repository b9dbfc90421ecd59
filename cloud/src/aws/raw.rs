//! From AWS's words to ours: times, sizes, lifecycles.

use aws_smithy_types::DateTime;
use jiff::Timestamp;
use troop_policies::inventory::Lifecycle;

/// A time as AWS gives it.
///
/// # Errors
/// What cannot be read, for people.
pub(crate) fn time(at: &DateTime) -> Result<Timestamp, String> {
    Timestamp::from_nanosecond(at.as_nanos()).map_err(|e| format!("the time {at:?} cannot be read: {e}"))
}

/// A count, which AWS gives as a signed number.
pub(crate) fn count(number: Option<i32>) -> u32 {
    number.and_then(|n| u32::try_from(n).ok()).unwrap_or(0)
}

/// A count for AWS. Nobody has two milliards of instances.
pub(crate) fn number(count: u32) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// What a member's lifecycle state at Auto Scaling means for us. Only `InService` with a healthy verdict of Auto Scaling's and a
/// running instance is in service; a state that nobody knows keeps hands off, as standby does.
pub(crate) fn lifecycle(state: &str, health: &str, ec2: Option<&str>) -> Lifecycle {
    let leaving = ["Terminating", "Terminated", "Detaching", "Detached"];
    let ending = matches!(ec2, Some("shutting-down" | "terminated" | "stopping" | "stopped"));
    match state {
        _ if ending || leaving.iter().any(|start| state.starts_with(start)) => Lifecycle::Terminating,
        // It is about to be replaced: Auto Scaling ends what it holds unhealthy.
        "InService" if !health.eq_ignore_ascii_case("healthy") => Lifecycle::Terminating,
        "InService" if ec2 == Some("running") => Lifecycle::InService,
        // Not seen running: EC2 says otherwise, or does not know it yet.
        "InService" | "Pending" | "Pending:Wait" | "Pending:Proceed" => Lifecycle::Pending,
        // Standby, Quarantined, ReplacingRootVolume, Warmed and what comes later.
        _ => Lifecycle::Standby,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_serves_is_in_service() {
        let running = Some("running");
        let rows = [
            ("InService", "Healthy", running, Lifecycle::InService),
            ("InService", "HEALTHY", running, Lifecycle::InService),
            ("InService", "Unhealthy", running, Lifecycle::Terminating),
            ("InService", "Healthy", Some("shutting-down"), Lifecycle::Terminating),
            ("InService", "Healthy", Some("stopped"), Lifecycle::Terminating),
            ("InService", "Healthy", Some("pending"), Lifecycle::Pending),
            ("InService", "Healthy", None, Lifecycle::Pending),
            ("Pending", "Healthy", running, Lifecycle::Pending),
            ("Pending:Wait", "Healthy", running, Lifecycle::Pending),
            ("Standby", "Healthy", running, Lifecycle::Standby),
            ("EnteringStandby", "Healthy", running, Lifecycle::Standby),
            ("Quarantined", "Healthy", running, Lifecycle::Standby),
            ("ReplacingRootVolume:Wait", "Healthy", running, Lifecycle::Standby),
            ("RootVolumeReplaced", "Healthy", running, Lifecycle::Standby),
            ("Warmed:Running", "Healthy", running, Lifecycle::Standby),
            ("Warmed:Terminating", "Healthy", running, Lifecycle::Standby),
            ("Terminating", "Healthy", running, Lifecycle::Terminating),
            ("Terminating:Retained", "Healthy", running, Lifecycle::Terminating),
            ("Detaching", "Healthy", running, Lifecycle::Terminating),
            ("SomethingNew", "Healthy", running, Lifecycle::Standby),
        ];
        for (state, health, ec2, expected) in rows {
            assert_eq!(lifecycle(state, health, ec2), expected, "{state} {health} {ec2:?}");
        }
    }
}
