//! The least that an IAM policy has to allow, made from the list of calls ([`super::calls`]).
//!
//! Describing has no resources to be narrowed to. What changes something is narrowed by what AWS can check: the kind of
//! resource, and tags that Troop or its operator put there. A site that is leashed needs the first statement only.

use serde_json::{Value, json};

use super::calls::{Call, Purpose};

/// What a policy is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allows {
    /// Looking, planning, noting what would have been done.
    Leashed,
    /// Kills and pushes.
    Unleashed,
}

/// Actions that no call of Troop's has for a name: AWS asks the caller for them when a group is made from a launch template
/// (its guide names these), or when something is tagged as it is made.
const IMPLIED_BY_PUSH: [&str; 2] = ["ec2:RunInstances", "elasticloadbalancing:AddTags"];

/// The policy document.
#[must_use]
pub fn policy(allows: Allows) -> Value {
    let mut statements = vec![json!({
        "Sid": "TroopLooks",
        "Effect": "Allow",
        "Action": actions(|call| call.purpose() == Purpose::Look && !needs_nothing(call)),
        "Resource": "*",
    })];
    if allows == Allows::Unleashed {
        statements.extend(changes());
    }
    json!({ "Version": "2012-10-17", "Statement": statements })
}

/// Who asks who it is needs no permission; which role may be assumed is said where the role is.
fn needs_nothing(call: Call) -> bool {
    matches!(call, Call::GetCallerIdentity | Call::AssumeRole)
}

fn actions(wanted: impl Fn(Call) -> bool) -> Vec<String> {
    let mut actions: Vec<String> = Call::ALL.iter().copied().filter(|call| wanted(*call)).map(Call::action).collect();
    actions.sort_unstable();
    actions
}

fn changes() -> Vec<Value> {
    let of = |purpose: Purpose, service: &str| {
        let prefix = format!("{service}:");
        actions(|call| call.purpose() == purpose && call.action().starts_with(&prefix))
    };
    let has_tag = |key: &str| json!({ "Null": { (format!("aws:ResourceTag/{key}")): "false" } });
    let of_templates = [of(Purpose::Journal, "ec2"), of(Purpose::Push, "ec2")].concat();
    let of_groups = [of(Purpose::Chaos, "autoscaling"), of(Purpose::Push, "autoscaling")].concat();
    let mut of_push = of(Purpose::Push, "elasticloadbalancing");
    of_push.extend(IMPLIED_BY_PUSH.map(str::to_owned));
    vec![
        json!({
            "Sid": "TroopJournals",
            "Effect": "Allow",
            // A version is also how a push makes the template of its group.
            "Action": of_templates,
            "Resource": "arn:aws:ec2:*:*:launch-template/*",
        }),
        json!({
            "Sid": "TroopTagsWhatItMakes",
            "Effect": "Allow",
            "Action": "ec2:CreateTags",
            "Resource": ["arn:aws:ec2:*:*:launch-template/*", "arn:aws:ec2:*:*:instance/*"],
            "Condition": { "StringEquals": { "ec2:CreateAction": ["CreateLaunchTemplate", "RunInstances"] } },
        }),
        json!({
            "Sid": "TroopEndsMembersOfGroups",
            "Effect": "Allow",
            "Action": of(Purpose::Chaos, "ec2"),
            "Resource": "arn:aws:ec2:*:*:instance/*",
            "Condition": has_tag("aws:autoscaling:groupName"),
        }),
        json!({
            "Sid": "TroopKeepsGroups",
            "Effect": "Allow",
            "Action": of_groups,
            "Resource": "arn:aws:autoscaling:*:*:autoScalingGroup:*:autoScalingGroupName/*",
        }),
        json!({
            "Sid": "TroopPushes",
            "Effect": "Allow",
            "Action": of_push,
            "Resource": "*",
        }),
        json!({
            "Sid": "TroopPassesInstanceRoles",
            "Effect": "Allow",
            "Action": "iam:PassRole",
            "Resource": "*",
            "Condition": { "StringEquals": { "iam:PassedToService": "ec2.amazonaws.com" } },
        }),
    ]
}

/// Every action that a policy allows.
#[must_use]
pub fn allowed(policy: &Value) -> Vec<String> {
    let statements = policy["Statement"].as_array().cloned().unwrap_or_default();
    let of = |action: &Value| match action.as_array() {
        Some(several) => several.clone(),
        None => vec![action.clone()],
    };
    let all = statements.iter().flat_map(|statement| of(&statement["Action"]));
    all.filter_map(|action| action.as_str().map(str::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_leashed_may_change_nothing() {
        let allowed = allowed(&policy(Allows::Leashed));
        for call in Call::ALL {
            assert_eq!(allowed.contains(&call.action()), !call.mutates() && !needs_nothing(*call), "{call}");
        }
    }

    #[test]
    fn who_is_unleashed_may_make_every_call_and_nothing_is_allowed_that_nobody_calls() {
        let allowed = allowed(&policy(Allows::Unleashed));
        let calls: Vec<String> =
            Call::ALL.iter().copied().filter(|call| !needs_nothing(*call)).map(Call::action).collect();
        for call in &calls {
            assert_eq!(allowed.iter().filter(|action| *action == call).count(), 1, "{call}");
        }
        let mut beside: Vec<&String> = allowed.iter().filter(|action| !calls.contains(action)).collect();
        beside.sort_unstable();
        assert_eq!(beside, ["ec2:CreateTags", "ec2:RunInstances", "elasticloadbalancing:AddTags", "iam:PassRole"]);
    }
}
