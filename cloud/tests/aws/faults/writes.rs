//! Changes that fail: one attempt, then a look; what cannot be said is unknown, and settled by the journal.

use std::time::Duration;

use jiff::SignedDuration;
use troop_policies::ClusterName;
use troop_policies::step::{How, Size, Step};

use super::*;

const CRASH: &str = "TerminateInstances";
const DRAIN: &str = "TerminateInstanceInAutoScalingGroup";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs python3 with moto"]
async fn a_kill_is_asked_for_once_whatever_becomes_of_the_answer() {
    let stage = Stage::new().await;
    let group = stage.serving("shop-web", 3).await;
    lost_answers(&stage, &group).await;
    lost_requests(&stage, &group).await;
    refused(&stage, &group).await;
    already_going(&stage, &group).await;
    // 22: never two in a call.
    assert!(stage.proxy.audit().iter().all(|seen| !seen.form.contains("InstanceId.2=")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs python3 with moto"]
async fn a_push_step_that_is_lost_is_settled_by_the_journal_and_the_world() {
    let stage = Stage::new().await;
    let group = stage.serving("shop-web", 2).await;
    settings(&stage, &group).await;
    creation(&stage, &group).await;
    flips(&stage, &group).await;
    journal(&stage, &group).await;
}

/// 7, 8, 4, 9: it happened, and nobody was told. A look tells.
async fn lost_answers(stage: &Stage, group: &GroupName) {
    let server = || bodies::ec2_error("InternalError", "x");
    let faults = [
        Fault::Reset(When::After),
        Fault::Short,
        Fault::Stall,
        after(500, server()),
        after(503, bodies::html()),
        Fault::Late(Duration::from_secs(60)),
    ];
    for fault in faults {
        let kill = stage.crash(group).await;
        is_done(&act_with(stage, &kill, Rule::next(CRASH, fault)).await);
        assert_eq!(stage.proxy.count(CRASH), 1, "it is not asked for again");
        assert!(!unhurt(stage, group, &kill).await);
        // Whoever asks again, here or from elsewhere, hears the same, and nothing more is sent.
        is_done(&stage.perform(&kill).await);
        is_done(&resolve(stage, &kill).await);
        assert_eq!(stage.proxy.count(CRASH), 1);
    }
}

/// 6, 4: it did not happen, which nobody can know: unknown until a request could not come any more, then refused.
async fn lost_requests(stage: &Stage, group: &GroupName) {
    let faults = [Fault::Reset(When::Before), Fault::Hang, before(503, bodies::ec2_error("Unavailable", "x"))];
    for fault in faults {
        let kill = stage.crash(group).await;
        is_unknown(&act_with(stage, &kill, Rule::next(CRASH, fault)).await);
        assert_eq!(stage.proxy.count(CRASH), 1);
        is_unknown(&resolve(stage, &kill).await);
        stage.age(&kill, SignedDuration::from_mins(11)).await;
        is_refused(&resolve(stage, &kill).await, "nothing came of it");
        is_refused(&stage.perform(&kill).await, "nothing came of it");
        assert!(unhurt(stage, group, &kill).await);
    }
}

/// 10, 21, 1: AWS said no, and nothing happened.
async fn refused(stage: &Stage, group: &GroupName) {
    let rows = [
        (bodies::ec2_error("UnauthorizedOperation", "x"), 403, "allow `ec2:TerminateInstances`"),
        (bodies::ec2_error("OperationNotPermitted", "may not be terminated"), 400, "OperationNotPermitted"),
    ];
    for (text, status, says) in rows {
        let kill = stage.crash(group).await;
        is_refused(&act_with(stage, &kill, Rule::next(CRASH, before(status, text))).await, says);
        assert_eq!(stage.proxy.count(CRASH), 1);
        is_refused(&resolve(stage, &kill).await, says);
        assert!(unhurt(stage, group, &kill).await);
    }
    // Who was found to be protected is shown so from then on.
    assert!(stage.look(group).await.members.values().any(|member| member.protected));
    // A throttle is no "no": its request was not taken, and is sent again in its turn.
    let victim = stage.members(group).await.pop().unwrap();
    let kill = stage.intent(Step::Terminate { group: group.clone(), instance: victim, kill: How::Crash });
    let throttled = before(503, bodies::ec2_error("RequestLimitExceeded", "x"));
    is_done(&act_with(stage, &kill, Rule::next(CRASH, throttled)).await);
    assert_eq!(stage.proxy.count(CRASH), 2);
}

/// 19: Auto Scaling will not end a member that is going already.
async fn already_going(stage: &Stage, group: &GroupName) {
    let drain = async || {
        let instance = stage.members(group).await.pop().unwrap();
        let kill = How::Drain { delay: Duration::ZERO };
        stage.intent(Step::Terminate { group: group.clone(), instance, kill })
    };
    let going = || bodies::scaling_error("ValidationError", "The instance i-1 is not in InService or Standby");
    let kill = drain().await;
    is_done(&act_with(stage, &kill, Rule::next(DRAIN, after(400, going()))).await);
    assert_eq!(stage.proxy.count(DRAIN), 1);
    assert!(!unhurt(stage, group, &kill).await);
    let kill = drain().await;
    is_refused(&act_with(stage, &kill, Rule::next(DRAIN, before(400, going()))).await, "ValidationError");
    assert!(unhurt(stage, group, &kill).await);
}

/// 20, 5, 7: what sets a value is set again.
async fn settings(stage: &Stage, group: &GroupName) {
    const UPDATE: &str = "UpdateAutoScalingGroup";
    let rows = [
        before(400, bodies::scaling_error("ScalingActivityInProgress", "x")),
        before(500, bodies::scaling_error("ResourceContention", "x")),
        Fault::Reset(When::After),
    ];
    for (size, fault) in (2..).zip(rows) {
        let resize = stage.intent(Step::Resize { group: group.clone(), size: Size { min: 1, desired: 2, max: size } });
        is_done(&act_with(stage, &resize, Rule::next(UPDATE, fault)).await);
        assert_eq!(stage.proxy.count(UPDATE), 2);
        assert_eq!(stage.look(group).await.size.max, size);
    }
    let resize = stage.intent(Step::Resize { group: group.clone(), size: Size::pinned(2) });
    let denied = before(403, bodies::scaling_error("AccessDenied", "x"));
    is_refused(
        &act_with(stage, &resize, Rule::next(UPDATE, denied)).await,
        "allow `autoscaling:UpdateAutoScalingGroup`",
    );
    assert_eq!(stage.look(group).await.size.min, 1);
}

/// 7, 10, 13, 15: making a group.
async fn creation(stage: &Stage, serving: &GroupName) {
    const CREATE: &str = "CreateAutoScalingGroup";
    let new = async |sequence| {
        let inventory = stage.inventory().await;
        let tags = inventory.groups[serving].tags.clone();
        let (name, zones) = (serving.cluster().group(sequence), inventory.zones);
        let image = stage.image.clone();
        let group = troop_policies::step::NewGroup { name, image, zones, tags, has_targets: true };
        stage.intent(Step::CreateGroup { group })
    };
    // 7: made, and nobody was told.
    let lost = new(1).await;
    is_unknown(&act_with(stage, &lost, Rule::next(CREATE, Fault::Reset(When::After))).await);
    assert_eq!(stage.proxy.count(CREATE), 1);
    is_done(&resolve(stage, &lost).await);
    // 13: made, and not visible at first.
    let nothing = bodies::scaling_answer("DescribeAutoScalingGroups", "<AutoScalingGroups/>");
    let hidden = Rule {
        holding: "AutoScalingGroupNames".to_owned(),
        times: 3,
        ..Rule::every("DescribeAutoScalingGroups", before(200, nothing))
    };
    is_done(&act_with(stage, &new(2).await, hidden).await);
    // 10, 15: AWS said no after half of it was made: all of that is taken back.
    let target_groups =
        async || stage.operator.balancing.describe_target_groups().send().await.unwrap().target_groups().len();
    let count = target_groups().await;
    let quota = before(400, bodies::scaling_error("LimitExceeded", "500 groups are the most"));
    let refused = new(3).await;
    is_refused(&act_with(stage, &refused, Rule::next(CREATE, quota)).await, "LimitExceeded");
    assert_eq!(target_groups().await, count);
    is_refused(&resolve(stage, &refused).await, "LimitExceeded");
    // 6: not made, which nobody can know.
    let unknown = new(4).await;
    is_unknown(&act_with(stage, &unknown, Rule::next(CREATE, Fault::Reset(When::Before))).await);
    stage.age(&unknown, SignedDuration::from_mins(11)).await;
    is_refused(&resolve(stage, &unknown).await, "nothing came of it");
    // What it left behind does not stand in the way of the next try.
    is_done(&stage.perform(&new(4).await).await);
}

/// 7, 10: the flip, which is set again; and what was suspended for it goes on where AWS said no.
async fn flips(stage: &Stage, old: &GroupName) {
    let cluster: ClusterName = old.cluster().clone();
    let new = cluster.group(1);
    stage.done(Step::Resize { group: new.clone(), size: Size::pinned(1) }).await;
    let flip = |to: &GroupName| stage.intent(Step::Flip { cluster: cluster.clone(), to: to.clone() });
    let suspended = async || {
        let group = stage.operator.scaling.describe_auto_scaling_groups().auto_scaling_group_names(old.as_str());
        let group = group.send().await.unwrap().auto_scaling_groups()[0].clone();
        let names = group.suspended_processes().iter().filter_map(|p| p.process_name().map(str::to_owned));
        let mut names: Vec<String> = names.collect();
        names.sort_unstable();
        names
    };
    // One that somebody else suspended stays as it is, all the way.
    let by_hand = stage.operator.scaling.suspend_processes().auto_scaling_group_name(old.as_str());
    by_hand.scaling_processes("AlarmNotification").send().await.unwrap();

    let denied = before(403, bodies::balancing_error("AccessDenied", "x"));
    let refused = flip(&new);
    is_refused(
        &act_with(stage, &refused, Rule::next("ModifyRule", denied)).await,
        "allow `elasticloadbalancing:ModifyRule`",
    );
    assert_eq!(suspended().await, ["AlarmNotification"]);
    assert!(stage.look(old).await.in_rotation);

    is_done(&act_with(stage, &flip(&new), Rule::next("ModifyRule", Fault::Reset(When::After))).await);
    assert_eq!(suspended().await, ["AZRebalance", "AlarmNotification", "ScheduledActions"]);
    let seen = stage.inventory().await;
    assert_eq!(seen.serving(&cluster).unwrap().name, new);

    stage.done(Step::Flip { cluster: cluster.clone(), to: old.clone() }).await;
    assert_eq!(suspended().await, ["AlarmNotification"]);
}

/// 7, 6: the journal's own entry is lost. Nothing else is sent, and the intent is refused in the end.
async fn journal(stage: &Stage, group: &GroupName) {
    for fault in [Fault::Reset(When::After), Fault::Reset(When::Before)] {
        let kill = stage.crash(group).await;
        let entered = matches!(fault, Fault::Reset(When::After));
        is_unknown(&act_with(stage, &kill, Rule::next("CreateLaunchTemplate", fault)).await);
        assert_eq!(stage.proxy.count(CRASH), 0);
        if entered {
            is_unknown(&resolve(stage, &kill).await);
            stage.age(&kill, SignedDuration::from_mins(11)).await;
        }
        assert!(matches!(resolve(stage, &kill).await, Outcome::Refused { .. }));
        assert!(matches!(stage.perform(&kill).await, Outcome::Refused { .. }));
        assert!(unhurt(stage, group, &kill).await);
    }
}
