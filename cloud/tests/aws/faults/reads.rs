//! Reads that fail: asked again where that helps, and otherwise an error, never an empty region.

use std::sync::Arc;
use std::time::Duration;

use super::*;

const GROUPS: &str = "DescribeAutoScalingGroups";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs python3 with moto"]
async fn a_read_that_fails_is_asked_again_and_never_empty() {
    let stage = Stage::new().await;
    let group = stage.serving("shop-web", 2).await;
    passing(&stage, &group).await;
    lasting(&stage).await;
    paging(&stage, &group).await;
}

/// Faults that pass: the region is whole, and it took more calls.
async fn passing(stage: &Stage, group: &GroupName) {
    let throttled = "RequestLimitExceeded";
    let rows = [
        // 1, 2, 3: throttles of the three services.
        ("DescribeInstances", before(503, bodies::ec2_error(throttled, "Request limit exceeded."))),
        (GROUPS, before(400, bodies::scaling_error("Throttling", "Rate exceeded"))),
        ("DescribeTargetHealth", before(400, bodies::balancing_error("ThrottlingException", "Rate exceeded"))),
        // 4: a server that failed, also in words of nobody's.
        ("DescribeInstances", before(500, bodies::ec2_error("InternalError", "x"))),
        ("DescribeImages", before(503, bodies::ec2_error("Unavailable", "x"))),
        (GROUPS, before(500, bodies::html())),
        // 5: contention.
        ("DescribeScalingActivities", before(500, bodies::scaling_error("ResourceContention", "x"))),
        // 6: a reset, before and after, which for a read is the same.
        ("DescribeInstances", Fault::Reset(When::Before)),
        ("DescribeRules", Fault::Reset(When::After)),
        ("DescribeInstances", Fault::Short),
        // 8, 9: too late; nothing at all; nothing any more.
        (GROUPS, Fault::Late(Duration::from_secs(60))),
        ("DescribeInstances", Fault::Hang),
        (GROUPS, Fault::Stall),
        // 17: a target group whose health AWS cannot say at the moment.
        ("DescribeTargetHealth", before(500, bodies::balancing_error("HealthUnavailable", "x"))),
    ];
    for (action, fault) in rows {
        // An image once known is not asked for again.
        let asked = if action == "DescribeImages" { "DescribeInstances" } else { action };
        let read = read_with(stage, vec![Rule::next(asked, fault)]).await.unwrap();
        assert_eq!(read.groups[group].members.len(), 2, "{action}");
        assert_eq!(stage.proxy.count(asked), 2, "{action}");
    }
}

/// Faults that last: an error that names what cannot be seen.
async fn lasting(stage: &Stage) {
    let rows = [
        (GROUPS, before(400, bodies::scaling_error("Throttling", "Rate exceeded")), "Throttling", 4),
        // 10: denied, which asking again does not change.
        (
            GROUPS,
            before(403, bodies::scaling_error("AccessDenied", "x")),
            "allow `autoscaling:DescribeAutoScalingGroups`",
            1,
        ),
        (
            "DescribeInstances",
            before(403, bodies::ec2_error("UnauthorizedOperation", "x")),
            "allow `ec2:DescribeInstances`",
            1,
        ),
        // 11: credentials that are not good any more.
        (GROUPS, before(403, bodies::scaling_error("ExpiredToken", "x")), "check the credentials", 1),
        ("DescribeInstances", before(401, bodies::ec2_error("AuthFailure", "x")), "check the credentials", 1),
        (
            "DescribeTargetHealth",
            before(403, bodies::balancing_error("SignatureDoesNotMatch", "x")),
            "check the credentials",
            1,
        ),
        // 23: a zone is down, and EC2 fails for all of the region.
        ("DescribeInstances", before(503, bodies::ec2_error("Unavailable", "x")), "Unavailable", 4),
        // Half of a region is no region.
        ("DescribeRules", Fault::Short, "DescribeRules", 4),
    ];
    for (action, fault, says, times) in rows {
        let failed = read_with(stage, vec![Rule::every(action, fault)]).await.unwrap_err();
        let text = troop_policies::chain(&failed);
        assert!(text.contains(says), "{action}: {text}");
        assert!(text.contains("the last whole picture is"), "{action}: {text}");
        assert_eq!(stage.proxy.count(action), times, "{action}: {text}");
    }
}

/// 14: pages.
async fn paging(stage: &Stage, group: &GroupName) {
    let more = |text: &str| {
        let end = "</DescribeAutoScalingGroupsResult>";
        text.replace(end, &format!("<NextToken>more</NextToken>{end}"))
    };
    let empty = bodies::scaling_answer(GROUPS, "<AutoScalingGroups/><NextToken>more</NextToken>");
    let without_token = || Rule { holding: "NextToken".to_owned(), ..Rule::next(GROUPS, Fault::Without("NextToken")) };
    // An empty page with a token, then the rest; then the same group on two pages.
    for first in [before(200, empty), Fault::Edit(Arc::new(more))] {
        let first = Rule { times: 1, ..Rule::every(GROUPS, first) };
        let read = read_with(stage, vec![first, without_token()]).await.unwrap();
        assert_eq!(read.groups[group].members.len(), 2);
        assert_eq!(stage.proxy.count(GROUPS), 2);
    }
    // A token that was not taken any more: the list begins anew.
    let died = before(400, bodies::scaling_error("InvalidNextToken", "The token is not valid"));
    let rules = vec![
        Rule::next(GROUPS, Fault::Edit(Arc::new(more))),
        Rule { holding: "NextToken".to_owned(), ..Rule::next(GROUPS, died) },
    ];
    let read = read_with(stage, rules).await.unwrap();
    assert_eq!(read.groups[group].members.len(), 2);
    assert_eq!(stage.proxy.count(GROUPS), 3);
}
