//! What people bring to an account before Troop comes, made at a server that stands in for AWS: an image, a launch template, a
//! balancer and a route. And what AWS does by itself and such a server forgets.
//!
//! None of it is a call that Troop makes of an account; the gatekeeper is not asked. So it refuses every address that is not this
//! machine's own.

use std::time::Duration;

use aws_config::retry::RetryConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials as Keys;
use aws_sdk_autoscaling::types::{LaunchTemplateSpecification, Tag as GroupTag};
use aws_sdk_ec2::types::{InstanceType, RequestLaunchTemplateData, Tag};
use aws_sdk_elasticloadbalancingv2::types::{
    Action, ActionTypeEnum, FixedResponseActionConfig, PathPatternConditionConfig, ProtocolEnum, Rule, RuleCondition,
    Tag as RuleTag, TargetDescription,
};
use aws_smithy_http_client::{Builder, tls};
use troop_policies::policy::{FirstGroup, RegionSettings};
use troop_policies::{ClusterName, ImageId, RegionName, chain};

use super::tags;

/// How often new members are looked for that no target group has.
const REGISTER_EVERY: Duration = Duration::from_millis(200);

/// The name of the launch template.
const TEMPLATE: &str = "base";

/// Why nothing was brought.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    #[error("`{endpoint}` is not on this machine, and only a server that stands in for AWS may be prepared")]
    NotAStandIn { endpoint: String },
    #[error("could not {what}: {why}")]
    Call { what: &'static str, why: String },
}

/// Somebody with every right at such a server. See the module.
#[derive(Debug, Clone)]
pub struct Operator {
    pub ec2: aws_sdk_ec2::Client,
    pub scaling: aws_sdk_autoscaling::Client,
    pub balancing: aws_sdk_elasticloadbalancingv2::Client,
}

/// What was brought to a region.
#[derive(Debug, Clone)]
pub struct Brought {
    pub settings: RegionSettings,
    pub images: Vec<ImageId>,
    /// The ARN of the listener whose rules lead to clusters.
    pub listener: String,
}

/// A group that is none of Troop's making.
#[derive(Debug, Clone, Copy)]
pub struct OtherGroup<'a> {
    pub name: &'a str,
    pub size: i32,
    pub tags: &'a [(&'a str, &'a str)],
    pub subnets: &'a [String],
    /// ARNs.
    pub target_groups: &'a [String],
}

impl Operator {
    /// Somebody with every right at the server at `endpoint`, such as `http://127.0.0.1:5000`.
    ///
    /// # Errors
    /// [`OperatorError::NotAStandIn`].
    pub fn at(endpoint: &str, region: &RegionName) -> Result<Self, OperatorError> {
        let host = endpoint.strip_prefix("http://").unwrap_or_default();
        if !["127.0.0.1:", "[::1]:", "localhost:"].iter().any(|own| host.starts_with(own)) {
            return Err(OperatorError::NotAStandIn { endpoint: endpoint.to_owned() });
        }
        let ring = tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring);
        let keys = Keys::new("OPERATOR", "secret", None, None, "a stand-in takes any");
        let sdk = SdkConfig::builder()
            .behavior_version(BehaviorVersion::v2026_01_12())
            .region(Region::new(region.to_string()))
            .endpoint_url(endpoint)
            .http_client(Builder::new().tls_provider(ring).build_https())
            .retry_config(RetryConfig::disabled())
            .credentials_provider(aws_credential_types::provider::SharedCredentialsProvider::new(keys))
            .build();
        Ok(Self {
            ec2: aws_sdk_ec2::Client::new(&sdk),
            scaling: aws_sdk_autoscaling::Client::new(&sdk),
            balancing: aws_sdk_elasticloadbalancingv2::Client::new(&sdk),
        })
    }

    /// Brings images of these appversions, a launch template, and a balancer with a route for each cluster.
    ///
    /// # Errors
    /// [`OperatorError::Call`]: the first call that did not come off.
    pub async fn bring(&self, appversions: &[&str], clusters: &[ClusterName]) -> Result<Brought, OperatorError> {
        let mut images = Vec::new();
        for appversion in appversions {
            images.push(self.image(appversion).await?);
        }
        let image = images.first().ok_or_else(|| odd("bring no image", "there must be one"))?;
        let launch_template = self.template(image).await?;
        let subnets = self.ec2.describe_subnets().send().await.map_err(|e| failed("find the subnets", &e))?;
        let subnets: Vec<_> = subnets.subnets().iter().filter_map(|subnet| subnet.subnet_id()).collect();
        let subnets: Vec<String> = subnets.into_iter().map(str::to_owned).take(3).collect();
        let (balancer, listener) = self.balancer(&subnets).await?;
        for (priority, cluster) in (1..).zip(clusters) {
            self.route(&listener, cluster, priority).await?;
        }
        let first = FirstGroup {
            launch_template,
            subnets,
            port: 7001,
            health_path: "/healthcheck".to_owned(),
            health_every_s: 5,
            grace_s: 60,
        };
        let images = images.into_iter().map(|id| ImageId::new(id).map_err(|e| odd("name an image", &e.to_string())));
        let settings = RegionSettings { load_balancers: vec![balancer], first: Some(first) };
        Ok(Brought { settings, images: images.collect::<Result<_, _>>()?, listener })
    }

    async fn image(&self, appversion: &str) -> Result<String, OperatorError> {
        let registered = self.ec2.register_image().name(appversion).send().await;
        let registered = registered.map_err(|e| failed("register an image", &e))?;
        let id = registered.image_id().ok_or_else(|| odd("register an image", "it has no id"))?;
        let tag = Tag::builder().key(tags::APPVERSION).value(appversion).build();
        self.ec2.create_tags().resources(id).tags(tag).send().await.map_err(|e| failed("tag an image", &e))?;
        Ok(id.to_owned())
    }

    async fn template(&self, image: &str) -> Result<String, OperatorError> {
        const WHAT: &str = "make a launch template";
        let data = RequestLaunchTemplateData::builder().image_id(image).instance_type(InstanceType::T3Micro).build();
        let made = self.ec2.create_launch_template().launch_template_name(TEMPLATE).launch_template_data(data);
        let made = made.send().await.map_err(|e| failed(WHAT, &e))?;
        let id = made.launch_template().and_then(|template| template.launch_template_id());
        id.map(str::to_owned).ok_or_else(|| odd(WHAT, "it has no id"))
    }

    /// The ARNs of a balancer and of its listener.
    async fn balancer(&self, subnets: &[String]) -> Result<(String, String), OperatorError> {
        const WHAT: &str = "make a balancer";
        let made = self.balancing.create_load_balancer().name("front").set_subnets(Some(subnets.to_vec()));
        let made = made.send().await.map_err(|e| failed(WHAT, &e))?;
        let arn = made.load_balancers().first().and_then(|balancer| balancer.load_balancer_arn());
        let arn = arn.ok_or_else(|| odd(WHAT, "it has no ARN"))?;
        let listener = self.balancing.create_listener().load_balancer_arn(arn).protocol(ProtocolEnum::Http).port(80);
        let listener = listener.default_actions(nobody()).send().await.map_err(|e| failed("open a listener", &e))?;
        let listener = listener.listeners().first().and_then(|listener| listener.listener_arn());
        let listener = listener.ok_or_else(|| odd("open a listener", "it has no ARN"))?;
        Ok((arn.to_owned(), listener.to_owned()))
    }

    /// Makes the rule of a listener that leads to a cluster.
    ///
    /// # Errors
    /// [`OperatorError::Call`].
    pub async fn route(&self, listener: &str, cluster: &ClusterName, priority: i32) -> Result<(), OperatorError> {
        let paths = PathPatternConditionConfig::builder().values(format!("/{cluster}/*")).build();
        let condition = RuleCondition::builder().field("path-pattern").path_pattern_config(paths).build();
        let tag = RuleTag::builder().key(tags::CLUSTER).value(cluster.as_str()).build();
        let rule = self.balancing.create_rule().listener_arn(listener).conditions(condition).tags(tag);
        let made = rule.priority(priority).actions(nobody()).send().await;
        made.map(drop).map_err(|e| failed("make a route", &e))
    }

    /// Makes a target group to which the route of a cluster, of those of a listener, sends all its traffic.
    ///
    /// # Errors
    /// [`OperatorError::Call`].
    pub async fn serve(&self, listener: &str, cluster: &ClusterName) -> Result<String, OperatorError> {
        const WHAT: &str = "lead a route to a target group";
        let vpcs = self.ec2.describe_vpcs().send().await.map_err(|e| failed("find the VPC", &e))?;
        let vpc =
            vpcs.vpcs().first().and_then(|vpc| vpc.vpc_id()).ok_or_else(|| odd("find the VPC", "there is none"))?;
        let made = self.balancing.create_target_group().name("legacy").protocol(ProtocolEnum::Http).port(7001);
        let made = made.vpc_id(vpc).send().await.map_err(|e| failed(WHAT, &e))?;
        let arn = made.target_groups().first().and_then(|group| group.target_group_arn());
        let arn = arn.ok_or_else(|| odd(WHAT, "it has no ARN"))?;
        let rules = self.balancing.describe_rules().listener_arn(listener).send().await;
        let rules = rules.map_err(|e| failed(WHAT, &e))?;
        let path = format!("/{cluster}/*");
        let leads = |rule: &&Rule| {
            let paths = rule.conditions().iter().filter_map(|condition| condition.path_pattern_config());
            paths.flat_map(|config| config.values()).any(|value| *value == path)
        };
        let rule = rules.rules().iter().find(leads).and_then(|rule| rule.rule_arn());
        let rule = rule.ok_or_else(|| odd(WHAT, "the cluster has no route"))?;
        let forward = Action::builder().r#type(ActionTypeEnum::Forward).target_group_arn(arn).build();
        let led = self.balancing.modify_rule().rule_arn(rule).actions(forward).send().await;
        led.map_err(|e| failed(WHAT, &e))?;
        Ok(arn.to_owned())
    }

    /// Makes a group as other tools do, of any name, from the launch template that was brought.
    ///
    /// # Errors
    /// [`OperatorError::Call`].
    pub async fn group(&self, group: &OtherGroup<'_>) -> Result<(), OperatorError> {
        let tag = |(key, value): &(&str, &str)| {
            let tag = GroupTag::builder().resource_id(group.name).resource_type("auto-scaling-group");
            tag.key(*key).value(*value).propagate_at_launch(true).build()
        };
        let template =
            LaunchTemplateSpecification::builder().launch_template_name(TEMPLATE).version("$Default").build();
        let made = self.scaling.create_auto_scaling_group().auto_scaling_group_name(group.name);
        let made = made.min_size(group.size).max_size(group.size).desired_capacity(group.size);
        let made = made.launch_template(template).vpc_zone_identifier(group.subnets.join(","));
        let made = made.set_target_group_arns(Some(group.target_groups.to_vec()));
        let made = made.set_tags(Some(group.tags.iter().map(tag).collect())).send().await;
        made.map(drop).map_err(|e| failed("make a group", &e))
    }

    /// Registers whoever replaced a member, as AWS does by itself, until the server is gone.
    pub async fn keep_registering(self) {
        while let Ok(read) = self.scaling.describe_auto_scaling_groups().send().await {
            for group in read.auto_scaling_groups() {
                let members: Vec<&str> = group.instances().iter().filter_map(|member| member.instance_id()).collect();
                for arn in group.target_group_arns() {
                    self.register(arn, &members).await;
                }
            }
            tokio::time::sleep(REGISTER_EVERY).await;
        }
    }

    /// What comes too late for a group that is gone is of no matter.
    async fn register(&self, arn: &str, members: &[&str]) {
        let Ok(health) = self.balancing.describe_target_health().target_group_arn(arn).send().await else { return };
        let known: Vec<&str> =
            health.target_health_descriptions().iter().filter_map(|found| found.target()?.id()).collect();
        let targets: Vec<_> = members
            .iter()
            .filter(|id| !known.contains(id))
            .map(|id| TargetDescription::builder().id(*id).build())
            .collect();
        if !targets.is_empty() {
            let _late = self.balancing.register_targets().target_group_arn(arn).set_targets(Some(targets)).send().await;
        }
    }
}

/// What a route answers as long as no version of its cluster serves.
fn nobody() -> Action {
    let answer = FixedResponseActionConfig::builder().status_code("503").build();
    Action::builder().r#type(ActionTypeEnum::FixedResponse).fixed_response_config(answer).build()
}

fn failed(what: &'static str, error: &(dyn std::error::Error + 'static)) -> OperatorError {
    OperatorError::Call { what, why: chain(error) }
}

fn odd(what: &'static str, why: &str) -> OperatorError {
    OperatorError::Call { what, why: why.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_prepared() {
        let region = RegionName::new("us-east-1").unwrap();
        for endpoint in ["http://127.0.0.1:5000", "http://localhost:1", "http://[::1]:5000"] {
            assert!(Operator::at(endpoint, &region).is_ok(), "{endpoint}");
        }
        for endpoint in ["https://ec2.us-east-1.amazonaws.com", "http://127.0.0.1.example.com:80", "127.0.0.1:5000", ""]
        {
            assert!(matches!(Operator::at(endpoint, &region), Err(OperatorError::NotAStandIn { .. })), "{endpoint}");
        }
    }
}
