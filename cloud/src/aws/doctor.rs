//! What an account lets Troop do, found out call by call, without changing anything.
//!
//! Every read of the list ([`super::calls`]) is made once, about things that are not there where it needs some: AWS asks for the
//! permission before it looks for the thing. Of the calls that change something, EC2's are asked for as dry runs, and the
//! gatekeeper sees that each says so; Auto Scaling and Elastic Load Balancing have no dry run, so nobody knows before the first.

use aws_sdk_cloudwatch::types::{Dimension, Metric, MetricDataQuery, MetricStat};
use aws_sdk_ec2::types::InstanceAttributeName;
use aws_smithy_types::DateTime;
use troop_policies::RegionName;

use super::calls::Call;
use super::claim;
use super::cloud::{AwsCloud, Place};
use super::fault::{Fault, Kind};
use crate::{Claim, Claimant, Cloud as _, CloudError};

/// Names and ARNs of things that are not there.
const NOBODY: &str = "troop-doctor";
const NO_INSTANCE: &str = "i-00000000000000000";
const NO_TEMPLATE: &str = "lt-00000000000000000";
/// What EC2 answers to a dry run that would have been done.
const WOULD: &str = "DryRunOperation";

/// Whether a call may be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Right {
    Allowed,
    /// With what was answered.
    Denied(String),
    /// Why it cannot be known.
    Unknown(String),
}

impl Right {
    fn of_read<T>(answer: Result<T, Fault>) -> Self {
        match answer {
            Ok(_) => Self::Allowed,
            Err(fault) => match fault.kind {
                Kind::Denied => Self::Denied(fault.to_string()),
                // Permissions are asked for first: whoever is told that the thing is missing may look.
                Kind::NotFound | Kind::Refused | Kind::Busy | Kind::Exists | Kind::Capacity => Self::Allowed,
                Kind::Throttled | Kind::Server | Kind::Unanswered => Self::Unknown(fault.to_string()),
            },
        }
    }

    fn of_dry_run<T>(answer: Result<T, Fault>) -> Self {
        match answer {
            Err(fault) if fault.code.as_deref() == Some(WOULD) => Self::Allowed,
            Err(fault) if fault.kind == Kind::Denied => Self::Denied(fault.to_string()),
            Err(fault) => Self::Unknown(fault.to_string()),
            Ok(_) => Self::Unknown("it was answered as if it were no dry run".to_owned()),
        }
    }
}

impl AwsCloud {
    /// Which calls may be made in a region; those that change something, as far as dry runs tell. `member` is an instance of
    /// a group, without which nobody can tell whether one may be ended: permissions go by its tags.
    ///
    /// # Errors
    /// [`CloudError::Refused`]: the region is none of the account's.
    pub async fn rights(&self, region: &RegionName, member: Option<&str>) -> Result<Vec<(Call, Right)>, CloudError> {
        let place = self.place(region)?;
        let mut rights = Vec::new();
        for call in Call::ALL.iter().copied().filter(|call| *call != Call::AssumeRole) {
            rights.push((call, right(place, call, member).await));
        }
        Ok(rights)
    }

    /// How many Auto Scaling groups a region has, and how many it may have: a push needs one more.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn groups_of_quota(&self, region: &RegionName) -> Result<(i32, i32), CloudError> {
        let (wire, call) = (&self.place(region)?.wire, Call::DescribeAccountLimits);
        let asked = wire.read(call, || async { wire.scaling.describe_account_limits().send().await }).await;
        let read = asked.and_then(|limits| {
            let both = limits.number_of_auto_scaling_groups().zip(limits.max_number_of_auto_scaling_groups());
            both.ok_or_else(|| Fault::odd(call, "both numbers"))
        });
        read.map_err(|fault| fault.into_cloud_error(self.account()))
    }

    /// Who has claimed a region; `None`: nobody.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn claimed_by(&self, region: &RegionName, claimant: &Claimant) -> Result<Option<Claim>, CloudError> {
        let held = claim::holder(&self.place(region)?.wire, claimant).await;
        held.map_err(|fault| fault.into_cloud_error(self.account()))
    }
}

/// An ARN, of the kind `resource`, of a thing that is not there.
fn nowhere(place: &Place, resource: &str) -> String {
    format!("arn:aws:elasticloadbalancing:{}:000000000000:{resource}/{NOBODY}/0000000000000000", place.wire.region)
}

async fn right(place: &Place, call: Call, member: Option<&str>) -> Right {
    let wire = &place.wire;
    macro_rules! ask {
        ($request:expr) => {
            Right::of_read(wire.read(call, || async { $request.send().await }).await)
        };
    }
    macro_rules! dry {
        ($request:expr) => {
            Right::of_dry_run(wire.dry_run(call, || async { $request.dry_run(true).send().await }).await)
        };
    }
    match call {
        Call::DescribeInstances => ask!(wire.ec2.describe_instances().max_results(5)),
        Call::DescribeInstanceAttribute => ask!(
            wire.ec2
                .describe_instance_attribute()
                .instance_id(NO_INSTANCE)
                .attribute(InstanceAttributeName::DisableApiTermination)
        ),
        Call::DescribeSubnets => ask!(wire.ec2.describe_subnets().max_results(5)),
        Call::DescribeImages => ask!(wire.ec2.describe_images().owners("self").max_results(5)),
        Call::DescribeLaunchTemplates => ask!(wire.ec2.describe_launch_templates().launch_template_names(claim::NAME)),
        Call::DescribeLaunchTemplateVersions => {
            ask!(wire.ec2.describe_launch_template_versions().launch_template_id(NO_TEMPLATE))
        }
        Call::DescribeAutoScalingGroups => ask!(wire.scaling.describe_auto_scaling_groups().max_records(1)),
        Call::DescribeAutoScalingInstances => ask!(wire.scaling.describe_auto_scaling_instances().max_records(1)),
        Call::DescribeScalingActivities => ask!(wire.scaling.describe_scaling_activities().max_records(1)),
        Call::DescribeInstanceRefreshes => {
            ask!(wire.scaling.describe_instance_refreshes().auto_scaling_group_name(NOBODY))
        }
        Call::DescribeLifecycleHooks => ask!(wire.scaling.describe_lifecycle_hooks().auto_scaling_group_name(NOBODY)),
        Call::DescribeAccountLimits => ask!(wire.scaling.describe_account_limits()),
        Call::DescribeTargetGroups => ask!(wire.balancing.describe_target_groups().page_size(1)),
        Call::DescribeTargetGroupAttributes => {
            ask!(wire.balancing.describe_target_group_attributes().target_group_arn(nowhere(place, "targetgroup")))
        }
        Call::DescribeTargetHealth => {
            ask!(wire.balancing.describe_target_health().target_group_arn(nowhere(place, "targetgroup")))
        }
        Call::DescribeListeners => {
            ask!(wire.balancing.describe_listeners().load_balancer_arn(nowhere(place, "loadbalancer/app")))
        }
        Call::DescribeRules => {
            let listener = format!("{}/0000000000000000", nowhere(place, "listener/app"));
            ask!(wire.balancing.describe_rules().listener_arn(listener.as_str()))
        }
        Call::LoadBalancingDescribeTags => {
            ask!(wire.balancing.describe_tags().resource_arns(nowhere(place, "targetgroup")))
        }
        Call::GetMetricData => {
            let until = place.now().as_second();
            let nobody = Dimension::builder().name("LoadBalancer").value(NOBODY).build();
            let metric = Metric::builder().namespace("AWS/ApplicationELB").metric_name("RequestCount");
            let metric = metric.dimensions(nobody).build();
            let stat = MetricStat::builder().metric(metric).period(60).stat("Sum").build();
            let query = MetricDataQuery::builder().id("any").metric_stat(stat).build();
            ask!(
                wire.metrics
                    .get_metric_data()
                    .start_time(DateTime::from_secs(until - 60))
                    .end_time(DateTime::from_secs(until))
                    .metric_data_queries(query.clone())
            )
        }
        Call::GetCallerIdentity => ask!(wire.tokens.get_caller_identity()),
        Call::CreateLaunchTemplate => dry!(
            wire.ec2
                .create_launch_template()
                .launch_template_name(NOBODY)
                .launch_template_data(super::journal::nothing())
        ),
        Call::CreateLaunchTemplateVersion => dry!(
            wire.ec2
                .create_launch_template_version()
                .launch_template_id(NO_TEMPLATE)
                .launch_template_data(super::journal::nothing())
        ),
        Call::DeleteLaunchTemplate => dry!(wire.ec2.delete_launch_template().launch_template_id(NO_TEMPLATE)),
        Call::DeleteLaunchTemplateVersions => {
            dry!(wire.ec2.delete_launch_template_versions().launch_template_id(NO_TEMPLATE).versions("1"))
        }
        Call::TerminateInstances => match member {
            Some(member) => dry!(wire.ec2.terminate_instances().instance_ids(member)),
            None => Right::Unknown("there is no member of a group to ask it of".to_owned()),
        },
        Call::AssumeRole => Right::Unknown("it is asked for before every other call".to_owned()),
        Call::TerminateInstanceInAutoScalingGroup
        | Call::CreateOrUpdateTags
        | Call::DeleteTags
        | Call::CreateAutoScalingGroup
        | Call::UpdateAutoScalingGroup
        | Call::DeleteAutoScalingGroup
        | Call::SuspendProcesses
        | Call::ResumeProcesses
        | Call::CreateTargetGroup
        | Call::ModifyTargetGroupAttributes
        | Call::DeleteTargetGroup
        | Call::ModifyListener
        | Call::ModifyRule => Right::Unknown("its service has no dry run".to_owned()),
    }
}
