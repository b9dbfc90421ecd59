//! What AWS does by itself, and moto does not: boot times, health, staleness, other hands. Each spares.

use std::sync::Arc;

use troop_policies::inventory::Lifecycle;
use troop_policies::step::{Size, Step};

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs python3 with moto"]
async fn what_is_not_certainly_well_is_spared() {
    let stage = Stage::new().await;
    let group = stage.serving("shop-web", 3).await;
    stale(&stage, &group).await;
    launches(&stage, &group).await;
    lifecycles(&stage, &group).await;
    health(&stage, &group).await;
    other_hands(&stage, &group).await;
    protections(&stage, &group).await;
    suspended(&stage, &group).await;
}

/// A kill that is spared without a request that would end anything.
async fn spared(stage: &Stage, group: &GroupName, rule: Rule, says: &str) {
    let kill = stage.crash(group).await;
    is_refused(&act_with(stage, &kill, rule).await, says);
    assert_eq!(stage.proxy.count("TerminateInstances"), 0);
    assert!(unhurt(stage, group, &kill).await);
}

fn edit(from: &'static str, to: &'static str) -> Fault {
    Fault::Edit(Arc::new(move |text: &str| text.replace(from, to)))
}

/// 12: Auto Scaling still shows what is gone.
async fn stale(stage: &Stage, group: &GroupName) {
    let kill = stage.crash(group).await;
    // So that there is an answer from before.
    stage.inventory().await;
    is_done(&stage.perform(&kill).await);
    let again = stage.intent(kill.step.clone());
    stage.proxy.forget_audit();
    for action in ["DescribeAutoScalingGroups", "DescribeAutoScalingInstances"] {
        stage.proxy.add(Rule::every(action, Fault::Stale));
    }
    let outcome = stage.perform(&again).await;
    // In the picture as well EC2's word is heard: it is ending, not in service.
    let seen = stage.look(group).await.members;
    stage.proxy.heal();
    is_refused(&outcome, "terminating now");
    assert_eq!(stage.proxy.count("TerminateInstances"), 0);
    assert_eq!(seen[kill.step.victim().unwrap()].lifecycle, Lifecycle::Terminating);
}

/// 15: a launch failed, which only the activities show.
async fn launches(stage: &Stage, group: &GroupName) {
    let at = crate::stage::now();
    let text = format!(
        "<Activities><member><ActivityId>a</ActivityId><AutoScalingGroupName>{group}</AutoScalingGroupName><Cause>x</Cause>\
         <Description>Launching a new EC2 instance.  Status Reason: no capacity</Description><StartTime>{at}</StartTime>\
         <StatusCode>Failed</StatusCode></member></Activities>"
    );
    let failed = before(200, bodies::scaling_answer("DescribeScalingActivities", &text));
    let read = read_with(stage, vec![Rule::every("DescribeScalingActivities", failed)]).await.unwrap();
    assert!(read.groups[group].last_failed_launch.is_some());
}

/// 16: members that boot or stop.
async fn lifecycles(stage: &Stage, group: &GroupName) {
    for (state, lifecycle) in [
        ("Pending", Lifecycle::Pending),
        ("Pending:Wait", Lifecycle::Pending),
        ("Standby", Lifecycle::Standby),
        ("Terminating:Wait", Lifecycle::Terminating),
    ] {
        let fault = || {
            let to = format!("<LifecycleState>{state}</LifecycleState>");
            Fault::Edit(Arc::new(move |text: &str| text.replace("<LifecycleState>InService</LifecycleState>", &to)))
        };
        let read = read_with(stage, vec![Rule::every("DescribeAutoScalingGroups", fault())]).await.unwrap();
        assert!(read.groups[group].members.values().all(|member| member.lifecycle == lifecycle), "{state}");
        spared(stage, group, Rule::every("DescribeAutoScalingInstances", fault()), "not in service").await;
    }
}

/// 17: targets that are not healthy: no flip.
async fn health(stage: &Stage, group: &GroupName) {
    let new = group.cluster().group(1);
    stage.create(&new, 2).await;
    for state in ["initial", "unhealthy", "draining", "unused", "unavailable"] {
        let to = format!("<State>{state}</State>");
        let fault = Fault::Edit(Arc::new(move |text: &str| text.replace("<State>healthy</State>", &to)));
        let flip = stage.intent(Step::Flip { cluster: group.cluster().clone(), to: new.clone() });
        is_refused(&act_with(stage, &flip, Rule::every("DescribeTargetHealth", fault)).await, "no healthy target");
        assert_eq!(stage.proxy.count("ModifyRule"), 0, "{state}");
    }
    // So that the rows after this one have one group that serves.
    stage.done(Step::Resize { group: new.clone(), size: Size::ZERO }).await;
}

/// 18: somebody else replaced the victim; 20: AWS replaces everybody.
async fn other_hands(stage: &Stage, group: &GroupName) {
    let nothing = bodies::scaling_answer("DescribeAutoScalingInstances", "<AutoScalingInstances/>");
    spared(stage, group, Rule::every("DescribeAutoScalingInstances", before(200, nothing)), "has no instance").await;
    let refresh = "<InstanceRefreshes><member><InstanceRefreshId>r</InstanceRefreshId><Status>InProgress</Status></member>\
                   </InstanceRefreshes>";
    let refresh = before(200, bodies::scaling_answer("DescribeInstanceRefreshes", refresh));
    spared(stage, group, Rule::every("DescribeInstanceRefreshes", refresh), "an instance refresh").await;
}

/// 21: protections, which are somebody's "hands off".
async fn protections(stage: &Stage, group: &GroupName) {
    let fault =
        edit("<ProtectedFromScaleIn>false</ProtectedFromScaleIn>", "<ProtectedFromScaleIn>true</ProtectedFromScaleIn>");
    spared(stage, group, Rule::every("DescribeAutoScalingInstances", fault), "protected from scale-in").await;

    let kill = stage.crash(group).await;
    let victim = kill.step.victim().unwrap().clone();
    let protect = async |on: bool| {
        let value = aws_sdk_ec2::types::AttributeBooleanValue::builder().value(on).build();
        let request = stage.operator.ec2.modify_instance_attribute().instance_id(victim.as_str());
        request.disable_api_termination(value).send().await.unwrap();
    };
    protect(true).await;
    is_refused(&stage.perform(&kill).await, "protected from termination");
    assert!(stage.look(group).await.members[&victim].protected, "from now on it is shown so");

    let tag = aws_sdk_ec2::types::Tag::builder().key("troop:spare").value("true").build();
    let other = stage.members(group).await.into_iter().find(|id| *id != victim).unwrap();
    stage.operator.ec2.create_tags().resources(other.as_str()).tags(tag.clone()).send().await.unwrap();
    let how = troop_policies::step::How::Crash;
    let kill = stage.intent(Step::Terminate { group: group.clone(), instance: other.clone(), kill: how });
    is_refused(&stage.perform(&kill).await, "troop:spare");
    assert!(stage.look(group).await.members[&other].spare);
    stage.operator.ec2.delete_tags().resources(other.as_str()).tags(tag).send().await.unwrap();
    protect(false).await;
}

/// 24: what dies would not be replaced.
async fn suspended(stage: &Stage, group: &GroupName) {
    for process in ["Launch", "Terminate", "ReplaceUnhealthy", "HealthCheck", "AddToLoadBalancer"] {
        let suspend = stage.operator.scaling.suspend_processes().auto_scaling_group_name(group.as_str());
        suspend.scaling_processes(process).send().await.unwrap();
        let hold = stage.look(group).await.hold.unwrap();
        assert!(hold.starts_with(&format!("{process} suspended")), "{hold}");
        let kill = stage.crash(group).await;
        is_refused(&stage.perform(&kill).await, "suspended");
        let resume = stage.operator.scaling.resume_processes().auto_scaling_group_name(group.as_str());
        resume.scaling_processes(process).send().await.unwrap();
    }
    assert_eq!(stage.look(group).await.hold, None);
}
