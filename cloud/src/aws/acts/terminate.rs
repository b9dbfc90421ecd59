//! Ending one instance. Everything that could speak for it is asked once more, right before.

use aws_sdk_autoscaling::types::InstanceRefreshStatus;
use aws_sdk_ec2::types::{InstanceAttributeName, InstanceStateName};
use troop_policies::inventory::{Lifecycle, TAG_SPARE};
use troop_policies::step::How;
use troop_policies::{GroupName, InstanceId};

use super::{Ended, Place, Stop, read_group};
use crate::aws::calls::Call;
use crate::aws::fault::{Fault, Kind};
use crate::aws::wire::Again;
use crate::aws::{groups, raw, tags};

/// How often an end is looked for. AWS shows it at once, as a rule.
const LOOKS: u32 = 20;
/// How often, where it is not even known whether AWS took the request.
const LOOKS_IN_DOUBT: u32 = 4;

pub(super) async fn terminate(place: &Place, group: &GroupName, instance: &InstanceId, kill: How) -> Ended {
    check(place, group, instance).await?;
    let wire = &place.wire;
    let sent = match kill {
        How::Crash => {
            // One id a call: AWS ends a batch zone by zone, and may say no to the whole of it after half.
            let ask = || wire.ec2.terminate_instances().instance_ids(instance.as_str()).send();
            wire.change(Call::TerminateInstances, Again::Never, ask).await.map(|_| ())
        }
        How::Drain { .. } => {
            let ask = || {
                let request = wire.scaling.terminate_instance_in_auto_scaling_group();
                request.instance_id(instance.as_str()).should_decrement_desired_capacity(false).send()
            };
            wire.change(Call::TerminateInstanceInAutoScalingGroup, Again::Never, ask).await.map(|_| ())
        }
    };
    let doubt = match sent {
        Ok(()) => None,
        // The last two are said of an instance that is going already: who asked is then looked up, and counted.
        Err(fault)
            if fault.may_have_happened()
                || fault.kind == Kind::NotFound
                || fault.code.as_deref() == Some("ValidationError") =>
        {
            Some(fault)
        }
        Err(fault) => {
            if fault.code.as_deref() == Some("OperationNotPermitted") {
                remember_protected(place, instance);
            }
            return Err(Stop::Refused(fault.to_string()));
        }
    };
    for look in 0..LOOKS {
        if look > 0 {
            tokio::time::sleep(wire.patience.look_every).await;
        }
        match ended(place, group, instance, kill).await {
            Ok(Some(seen)) => return Ok(seen),
            Ok(None) if doubt.is_none() || look + 1 < LOOKS_IN_DOUBT => {}
            // Nothing came of it so far; that nothing will is not known.
            Ok(None) => break,
            Err(fault) => return Err(Stop::half_way("its end was asked for", fault)),
        }
    }
    Err(Stop::Unknown(match doubt {
        Some(fault) if !fault.may_have_happened() => return Err(Stop::Refused(fault.to_string())),
        Some(fault) => fault.to_string(),
        None => format!("AWS took it, and `{instance}` is not seen to end"),
    }))
}

/// What shows that the instance is ending, if anything does.
///
/// # Errors
/// [`Fault`].
pub(super) async fn ended(
    place: &Place,
    group: &GroupName,
    instance: &InstanceId,
    kill: How,
) -> Result<Option<String>, Fault> {
    let wire = &place.wire;
    let ask = || wire.ec2.describe_instances().instance_ids(instance.as_str()).send();
    let state = match wire.read(Call::DescribeInstances, ask).await {
        Ok(answer) => {
            let mut found = answer.reservations().iter().flat_map(|reservation| reservation.instances());
            found.next().and_then(|found| found.state()?.name().cloned())
        }
        Err(fault) if fault.kind == Kind::NotFound => None,
        Err(fault) => return Err(fault),
    };
    match state {
        // An instance that was a member a moment ago is forgotten only about an hour after its end.
        None => return Ok(Some(format!("`{instance}` is gone"))),
        Some(InstanceStateName::ShuttingDown | InstanceStateName::Terminated) => {
            return Ok(Some(format!("`{instance}` of `{group}` is ending")));
        }
        Some(_) => {}
    }
    if kill == How::Crash {
        return Ok(None);
    }
    // It drains first, and runs on meanwhile.
    let leaving = match member(place, instance).await? {
        None => true,
        Some(found) => {
            let (state, health) = (found.lifecycle_state().unwrap_or_default(), found.health_status());
            raw::lifecycle(state, health.unwrap_or_default(), Some("running")) == Lifecycle::Terminating
        }
    };
    Ok(leaving.then(|| format!("`{instance}` of `{group}` drains and ends")))
}

async fn member(
    place: &Place,
    instance: &InstanceId,
) -> Result<Option<aws_sdk_autoscaling::types::AutoScalingInstanceDetails>, Fault> {
    let wire = &place.wire;
    let ask = || wire.scaling.describe_auto_scaling_instances().instance_ids(instance.as_str()).send();
    let answer = wire.read(Call::DescribeAutoScalingInstances, ask).await?;
    Ok(answer.auto_scaling_instances().first().cloned())
}

/// Everything that spares an instance whatever the policy says, as it is now.
async fn check(place: &Place, name: &GroupName, instance: &InstanceId) -> Result<(), Stop> {
    let wire = &place.wire;
    let no = |why: String| Err(Stop::Refused(why));
    let real = place.real(name).await.map_err(Stop::unseen)?;
    let refreshes = async {
        let ask = || wire.scaling.describe_instance_refreshes().auto_scaling_group_name(real.as_str()).send();
        wire.read(Call::DescribeInstanceRefreshes, ask).await
    };
    let described = async {
        let ask = || wire.ec2.describe_instances().instance_ids(instance.as_str()).send();
        wire.read(Call::DescribeInstances, ask).await
    };
    let attribute = async {
        let ask = || {
            let request = wire.ec2.describe_instance_attribute().instance_id(instance.as_str());
            request.attribute(InstanceAttributeName::DisableApiTermination).send()
        };
        wire.read(Call::DescribeInstanceAttribute, ask).await
    };
    let all = futures::try_join!(read_group(place, name), member(place, instance), described, attribute, refreshes);
    let (group, member, described, attribute, refreshes) = all.map_err(Stop::unseen)?;

    let Some(group) = group else { return no(format!("there is no group `{name}`")) };
    let Some(member) = member.filter(|member| member.auto_scaling_group_name() == Some(real.as_str())) else {
        return no(format!("`{name}` has no instance `{instance}`"));
    };
    if groups::tag(&group, tags::DESTROYING).is_some() {
        return no(format!("`{name}` is being destroyed"));
    }
    if let Some(why) = groups::hold(&group) {
        return no(format!("AWS holds `{name}`: {why}"));
    }
    let found = described.reservations().iter().flat_map(|reservation| reservation.instances()).next();
    let state = found.and_then(|found| found.state()?.name()).map(InstanceStateName::as_str);
    let (lifecycle_state, health) = (member.lifecycle_state().unwrap_or_default(), member.health_status());
    let lifecycle = raw::lifecycle(lifecycle_state, health.unwrap_or_default(), state);
    if lifecycle != Lifecycle::InService {
        return no(format!("`{instance}` is {} now, not in service", lifecycle.as_str()));
    }
    let tagged = found.is_some_and(|found| found.tags().iter().any(|tag| tag.key() == Some(TAG_SPARE)));
    if tagged || groups::tag(&group, TAG_SPARE).is_some() {
        return no(format!("`{instance}` or its group carries the tag `{TAG_SPARE}`"));
    }
    if member.protected_from_scale_in().unwrap_or(false) {
        return no(format!("`{instance}` is protected from scale-in"));
    }
    if attribute.disable_api_termination().and_then(|value| value.value()).unwrap_or(false) {
        remember_protected(place, instance);
        return no(format!("`{instance}` is protected from termination"));
    }
    let running = refreshes.instance_refreshes().iter().find(|refresh| {
        !matches!(
            refresh.status(),
            Some(
                InstanceRefreshStatus::Successful
                    | InstanceRefreshStatus::Failed
                    | InstanceRefreshStatus::Cancelled
                    | InstanceRefreshStatus::RollbackFailed
                    | InstanceRefreshStatus::RollbackSuccessful
            )
        )
    });
    if running.is_some() {
        return no(format!("an instance refresh of `{name}` is running"));
    }
    Ok(())
}

fn remember_protected(place: &Place, instance: &InstanceId) {
    let mut protected = place.memory.protected.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    protected.insert(instance.to_string());
}
