//! Every API call that Troop may make, once: the service, whether it changes anything, and what for.
//!
//! No client sends a request that is not listed here (the gatekeeper of this folder sees to it), and the IAM policy is made from this
//! list ([`super::iam`]), so the policy cannot lag behind the code.

use std::fmt;

use serde::{Serialize, Serializer};

/// A service of AWS, as requests are signed for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Service {
    Ec2,
    AutoScaling,
    LoadBalancing,
    CloudWatch,
    Tokens,
}

impl Service {
    pub const ALL: [Self; 5] = [Self::Ec2, Self::AutoScaling, Self::LoadBalancing, Self::CloudWatch, Self::Tokens];

    /// The prefix of the service's actions in IAM policies.
    pub fn iam_prefix(self) -> &'static str {
        match self {
            Self::Ec2 => "ec2",
            Self::AutoScaling => "autoscaling",
            Self::LoadBalancing => "elasticloadbalancing",
            Self::CloudWatch => "cloudwatch",
            Self::Tokens => "sts",
        }
    }

    /// The service's name in the SDK's metadata of an operation.
    fn sdk_name(self) -> &'static str {
        match self {
            Self::Ec2 => "EC2",
            Self::AutoScaling => "Auto Scaling",
            Self::LoadBalancing => "Elastic Load Balancing v2",
            Self::CloudWatch => "CloudWatch",
            Self::Tokens => "STS",
        }
    }
}

/// What a call is for, and hence when its permission is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// To see: needed always, also while leashed.
    Look,
    /// The journal of intents: needed once unleashed.
    Journal,
    /// Ending instances.
    Chaos,
    /// Pushes and their way back.
    Push,
}

macro_rules! calls {
    ($($service:ident { $($name:ident $purpose:ident $kind:ident,)+ })+) => {
        /// An API call, named as the API names it; where two services share a name, the second has its service in front.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Call { $($($name,)+)+ }

        impl Call {
            pub const ALL: &'static [Self] = &[$($(Self::$name,)+)+];

            pub fn service(self) -> Service {
                match self { $($(Self::$name => Service::$service,)+)+ }
            }

            pub fn purpose(self) -> Purpose {
                match self { $($(Self::$name => Purpose::$purpose,)+)+ }
            }

            /// Whether it changes anything.
            pub fn mutates(self) -> bool {
                match self { $($(Self::$name => calls!(@mutates $kind),)+)+ }
            }

            fn variant(self) -> &'static str {
                match self { $($(Self::$name => stringify!($name),)+)+ }
            }
        }
    };
    (@mutates reads) => { false };
    (@mutates changes) => { true };
}

calls! {
    Ec2 {
        DescribeInstances Look reads,
        DescribeInstanceAttribute Look reads,
        DescribeSubnets Look reads,
        DescribeImages Look reads,
        DescribeLaunchTemplates Look reads,
        DescribeLaunchTemplateVersions Look reads,
        CreateLaunchTemplate Journal changes,
        CreateLaunchTemplateVersion Journal changes,
        DeleteLaunchTemplate Journal changes,
        TerminateInstances Chaos changes,
        DeleteLaunchTemplateVersions Push changes,
    }
    AutoScaling {
        DescribeAutoScalingGroups Look reads,
        DescribeAutoScalingInstances Look reads,
        DescribeScalingActivities Look reads,
        DescribeInstanceRefreshes Look reads,
        DescribeLifecycleHooks Look reads,
        DescribeAccountLimits Look reads,
        TerminateInstanceInAutoScalingGroup Chaos changes,
        CreateOrUpdateTags Chaos changes,
        DeleteTags Push changes,
        CreateAutoScalingGroup Push changes,
        UpdateAutoScalingGroup Push changes,
        DeleteAutoScalingGroup Push changes,
        SuspendProcesses Push changes,
        ResumeProcesses Push changes,
    }
    LoadBalancing {
        DescribeTargetGroups Look reads,
        DescribeTargetGroupAttributes Look reads,
        DescribeTargetHealth Look reads,
        DescribeListeners Look reads,
        DescribeRules Look reads,
        LoadBalancingDescribeTags Look reads,
        CreateTargetGroup Push changes,
        ModifyTargetGroupAttributes Push changes,
        DeleteTargetGroup Push changes,
        ModifyListener Push changes,
        ModifyRule Push changes,
    }
    CloudWatch {
        GetMetricData Look reads,
    }
    Tokens {
        GetCallerIdentity Look reads,
        AssumeRole Look reads,
    }
}

impl Call {
    /// The call's name in its API.
    pub fn name(self) -> &'static str {
        let variant = self.variant();
        match self.service() {
            Service::LoadBalancing => variant.strip_prefix("LoadBalancing").unwrap_or(variant),
            Service::Ec2 | Service::AutoScaling | Service::CloudWatch | Service::Tokens => variant,
        }
    }

    /// The call that an SDK's operation makes, if it is one of ours.
    pub fn of(sdk_service: &str, operation: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|call| call.service().sdk_name() == sdk_service && call.name() == operation)
    }

    /// The action that IAM asks for.
    pub fn action(self) -> String {
        format!("{}:{}", self.service().iam_prefix(), self.name())
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.service().iam_prefix(), self.name())
    }
}

impl Serialize for Call {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A call that a step will make, as known before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedCall {
    pub call: Call,
    /// What it is about: an id, a name or an ARN; of what is made only then, the name that it will have or the start of it, with `…`.
    pub on: String,
    /// When it is made, where it is not made in any case.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub when: Option<&'static str>,
}

impl fmt::Display for PlannedCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.call, self.on)?;
        if let Some(when) = self.when {
            write!(f, ", {when}")?;
        }
        if self.call.mutates() { Ok(()) } else { f.write_str(" (only reads)") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_found_by_what_the_sdk_calls_it() {
        for call in Call::ALL {
            assert_eq!(Call::of(call.service().sdk_name(), call.name()), Some(*call));
        }
        assert_eq!(Call::of("EC2", "RunInstances"), None);
        assert_eq!(Call::LoadBalancingDescribeTags.to_string(), "elasticloadbalancing:DescribeTags");
    }

    #[test]
    fn a_planned_call_says_what_it_is_about_and_whether_it_only_reads() {
        let planned = |call, when| PlannedCall { call, on: "i-0ab".to_owned(), when };
        assert_eq!(planned(Call::TerminateInstances, None).to_string(), "ec2:TerminateInstances i-0ab");
        let read = planned(Call::DescribeInstances, Some("if it is known"));
        assert_eq!(read.to_string(), "ec2:DescribeInstances i-0ab, if it is known (only reads)");
        let json = serde_json::json!({ "call": "ec2:TerminateInstances", "on": "i-0ab" });
        assert_eq!(serde_json::to_value(planned(Call::TerminateInstances, None)).unwrap(), json);
    }

    #[test]
    fn who_only_looks_changes_nothing_and_the_rest_does() {
        for call in Call::ALL {
            assert_eq!(call.mutates(), call.purpose() != Purpose::Look, "{call}");
            let says_so = ["Describe", "Get", "Assume"].iter().any(|start| call.name().starts_with(start));
            assert_eq!(call.mutates(), !says_so, "{call}");
        }
    }
}
