//! An account at AWS that is made up: what an inventory asks is answered in AWS's own words (the Query protocols of EC2, Auto
//! Scaling and Elastic Load Balancing), page by page, with as much as AWS says of each thing, so that reading it costs what it costs.
//!
//! It holds nothing: each page is written when it is asked for. What AWS has published of its limits it keeps too, and answers a
//! caller who goes beyond as AWS would.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Mutex;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

/// AWS's own pages: groups where the caller names no number and at most, and instances at most.
const GROUPS_A_PAGE: usize = 50;
const GROUPS_A_PAGE_MAX: usize = 100;
const INSTANCES_A_PAGE_MAX: usize = 1_000;
/// A balancer takes 100 rules; half of them are somebody else's.
const GROUPS_A_BALANCER: usize = 50;
/// Every answer has the same request id.
const REQUEST: &str = "4d6b1c1e-0000-4000-8000-000000000000";
const ACCOUNT: &str = "123456789012";
/// Calls at once and a second that AWS takes of one account in one region: of EC2's reads for each (EC2 user guide, "Request
/// throttling"), of Elastic Load Balancing's together. Auto Scaling's are not published.
const EC2_READS: (f64, f64) = (100.0, 20.0);
const BALANCING_READS: (f64, f64) = (40.0, 10.0);

/// What is made up, over all regions.
#[derive(Debug, Clone)]
pub(super) struct Size {
    pub(super) regions: Vec<String>,
    pub(super) groups: u32,
    pub(super) instances: u32,
    /// Groups with a team, of whose targets the health is asked.
    pub(super) in_play: u32,
}

/// The account.
#[derive(Debug)]
pub(super) struct Account {
    regions: BTreeMap<String, Region>,
    made_at: Timestamp,
    buckets: Mutex<BTreeMap<(String, String), (f64, Instant)>>,
}

#[derive(Debug)]
struct Region {
    /// Of each group its number over all regions, and the number of its first instance within the region.
    groups: Vec<(u32, usize)>,
    /// How many instances there are.
    instances: usize,
    in_play: u32,
    /// Tells apart what regions name alike.
    number: usize,
}

/// An answer: the status and the body.
pub(super) type Answer = (u16, String);

impl Account {
    pub(super) fn new(size: &Size, now: Timestamp) -> Self {
        let mut regions = BTreeMap::new();
        let apart = u32::try_from(size.regions.len()).unwrap_or(1).max(1);
        let of_each = size.instances / size.groups.max(1);
        let with_one_more = size.instances % size.groups.max(1);
        for (number, name) in size.regions.iter().enumerate() {
            let mut region = Region { groups: Vec::new(), instances: 0, in_play: size.in_play, number };
            for group in (0..size.groups).skip(number).step_by(apart as usize) {
                region.groups.push((group, region.instances));
                region.instances += (of_each + u32::from(group < with_one_more)) as usize;
            }
            regions.insert(name.clone(), region);
        }
        let made_at = now.saturating_sub(SignedDuration::from_hours(24)).unwrap_or(now);
        Self { regions, made_at, buckets: Mutex::default() }
    }

    /// Answers one call of `service` in `region`, at `now`.
    pub(super) fn answer(&self, region: &str, service: &str, form: &[u8], now: Instant) -> Answer {
        let form: BTreeMap<String, String> = form_urlencoded::parse(form).into_owned().collect();
        let action = form.get("Action").map_or("", String::as_str);
        let Some(place) = self.regions.get(region) else {
            return refusal(service, 400, "InvalidParameterValue", &format!("there is no region `{region}` here"));
        };
        if !self.takes(region, service, action, now) {
            return match service {
                "ec2" => refusal(service, 503, "RequestLimitExceeded", "Request limit exceeded."),
                _ => refusal(service, 400, "Throttling", "Rate exceeded"),
            };
        }
        let at = |name: &str| form.get(name).and_then(|text| text.parse::<usize>().ok());
        let text = |name: &str| form.get(name).map_or("", String::as_str);
        let token = at("NextToken").unwrap_or(0);
        let body = match action {
            "DescribeAutoScalingGroups" => {
                let count = at("MaxRecords").unwrap_or(GROUPS_A_PAGE).min(GROUPS_A_PAGE_MAX);
                self.groups(place, region, token, count)
            }
            "DescribeScalingActivities" => "<Activities/>".to_owned(),
            "DescribeInstances" => {
                let count = at("MaxResults").unwrap_or(INSTANCES_A_PAGE_MAX).min(INSTANCES_A_PAGE_MAX);
                self.instances(place, region, token, count)
            }
            "DescribeImages" => self.images(values(&form, "Filter.1.Value.")),
            "DescribeTargetGroups" => place.target_groups(region, values(&form, "TargetGroupArns.member.")),
            "DescribeListeners" => listener(text("LoadBalancerArn")),
            "DescribeRules" => place.rules(region, text("ListenerArn")),
            "DescribeTargetHealth" => place.health(text("TargetGroupArn")),
            _ => return refusal(service, 400, "InvalidAction", &format!("`{action}` is no call of an inventory")),
        };
        (200, whole(service, action, &body))
    }

    /// Whether AWS would take one more call now.
    fn takes(&self, region: &str, service: &str, action: &str, now: Instant) -> bool {
        let (name, (burst, per_s)) = match service {
            "ec2" => (action, EC2_READS),
            "elasticloadbalancing" => (service, BALANCING_READS),
            _ => return true,
        };
        let mut buckets = self.buckets.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (tokens, at) = buckets.entry((region.to_owned(), name.to_owned())).or_insert((burst, now));
        *tokens = (*tokens + now.saturating_duration_since(*at).as_secs_f64() * per_s).min(burst);
        *at = now;
        let takes = *tokens >= 1.0;
        *tokens -= if takes { 1.0 } else { 0.0 };
        takes
    }

    fn groups(&self, place: &Region, region: &str, from: usize, count: usize) -> String {
        let mut body = "<AutoScalingGroups>".to_owned();
        let until = (from + count).min(place.groups.len());
        for index in from..until {
            let members = place.members(index);
            let name = place.name(index);
            let size = members.len();
            let arn = place.target_group(region, index);
            let number = place.groups[index].0;
            let template = format!(
                "<LaunchTemplate><LaunchTemplateId>lt-{number:017x}</LaunchTemplateId><LaunchTemplateName>{name}\
                 </LaunchTemplateName><Version>1</Version></LaunchTemplate>"
            );
            let _infallible = write!(
                body,
                "<member><AutoScalingGroupName>{name}</AutoScalingGroupName><AutoScalingGroupARN>arn:aws:autoscaling:{region}:\
                 {ACCOUNT}:autoScalingGroup:{number:08x}:autoScalingGroupName/{name}</AutoScalingGroupARN>{template}<MinSize>{size}\
                 </MinSize><MaxSize>{size}</MaxSize><DesiredCapacity>{size}</DesiredCapacity><DefaultCooldown>300</DefaultCooldown>\
                 <AvailabilityZones><member>{region}a</member><member>{region}b</member><member>{region}c</member>\
                 </AvailabilityZones><LoadBalancerNames/><TargetGroupARNs><member>{arn}</member></TargetGroupARNs>\
                 <HealthCheckType>ELB</HealthCheckType><HealthCheckGracePeriod>300</HealthCheckGracePeriod><Instances>"
            );
            for instance in members {
                let (id, zone) = (place.id(instance), zone(region, instance));
                let _infallible = write!(
                    body,
                    "<member><InstanceId>{id}</InstanceId><InstanceType>m7g.large</InstanceType><AvailabilityZone>{zone}\
                     </AvailabilityZone><LifecycleState>InService</LifecycleState><HealthStatus>Healthy</HealthStatus>{template}\
                     <ProtectedFromScaleIn>false</ProtectedFromScaleIn></member>"
                );
            }
            let _infallible = write!(
                body,
                "</Instances><CreatedTime>{}</CreatedTime><SuspendedProcesses/><VPCZoneIdentifier>subnet-{number:017x},\
                 subnet-{number:016x}1,subnet-{number:016x}2</VPCZoneIdentifier><EnabledMetrics/><Tags>",
                self.made_at
            );
            let tags = [("Name", name.as_str()), ("app", name.split('-').next().unwrap_or_default())];
            let team = (place.is_in_play(index)).then_some(("troop:team", "bench"));
            for (key, value) in tags.into_iter().chain(team) {
                let _infallible = write!(
                    body,
                    "<member><ResourceId>{name}</ResourceId><ResourceType>auto-scaling-group</ResourceType><Key>{key}</Key><Value>\
                     {value}</Value><PropagateAtLaunch>true</PropagateAtLaunch></member>"
                );
            }
            let _infallible = write!(
                body,
                "</Tags><TerminationPolicies><member>Default</member></TerminationPolicies><NewInstancesProtectedFromScaleIn>false\
                 </NewInstancesProtectedFromScaleIn><ServiceLinkedRoleARN>arn:aws:iam::{ACCOUNT}:role/aws-service-role/\
                 autoscaling.amazonaws.com/AWSServiceRoleForAutoScaling</ServiceLinkedRoleARN><CapacityRebalance>false\
                 </CapacityRebalance></member>"
            );
        }
        body.push_str("</AutoScalingGroups>");
        if until < place.groups.len() {
            let _infallible = write!(body, "<NextToken>{until}</NextToken>");
        }
        body
    }

    fn instances(&self, place: &Region, region: &str, from: usize, count: usize) -> String {
        let mut body = "<reservationSet>".to_owned();
        let until = (from + count).min(place.instances);
        // The last that begins at or before it.
        let mut index = place.groups.partition_point(|(_, first)| *first <= from).saturating_sub(1);
        for instance in from..until {
            while place.groups.get(index + 1).is_some_and(|(_, first)| *first <= instance) {
                index += 1;
            }
            let (id, zone, group, number) =
                (place.id(instance), zone(region, instance), place.name(index), place.groups[index].0);
            let [high, low] = [instance / 250 % 250, instance % 250];
            let ip = format!("10.{}.{high}.{low}", instance / 62_500 % 250);
            let host = format!("ip-{}.{region}.compute.internal", ip.replace('.', "-"));
            let at = self.made_at;
            let _infallible = write!(
                body,
                "<item><reservationId>r-{instance:017x}</reservationId><ownerId>{ACCOUNT}</ownerId><groupSet/><instancesSet><item>\
                 <instanceId>{id}</instanceId><imageId>ami-{number:017x}</imageId><instanceState><code>16</code><name>running</name>\
                 </instanceState><privateDnsName>{host}</privateDnsName><dnsName/><reason/><amiLaunchIndex>0</amiLaunchIndex>\
                 <productCodes/><instanceType>m7g.large</instanceType><launchTime>{at}</launchTime><placement><availabilityZone>{zone}\
                 </availabilityZone><groupName/><tenancy>default</tenancy></placement><monitoring><state>disabled</state></monitoring>\
                 <subnetId>subnet-{number:017x}</subnetId><vpcId>vpc-{number:017x}</vpcId><privateIpAddress>{ip}</privateIpAddress>\
                 <sourceDestCheck>true</sourceDestCheck><groupSet><item><groupId>sg-{number:017x}</groupId><groupName>web</groupName>\
                 </item></groupSet><architecture>arm64</architecture><rootDeviceType>ebs</rootDeviceType><rootDeviceName>/dev/xvda\
                 </rootDeviceName><blockDeviceMapping><item><deviceName>/dev/xvda</deviceName><ebs><volumeId>vol-{instance:017x}\
                 </volumeId><status>attached</status><attachTime>{at}</attachTime><deleteOnTermination>true</deleteOnTermination></ebs>\
                 </item></blockDeviceMapping><virtualizationType>hvm</virtualizationType><clientToken>fleet-{instance:017x}-0\
                 </clientToken><tagSet><item><key>aws:autoscaling:groupName</key><value>{group}</value></item><item>\
                 <key>aws:ec2launchtemplate:id</key><value>lt-{number:017x}</value></item><item><key>aws:ec2launchtemplate:version</key>\
                 <value>1</value></item><item><key>Name</key><value>{group}</value></item></tagSet><hypervisor>xen</hypervisor>\
                 <networkInterfaceSet><item><networkInterfaceId>eni-{instance:017x}</networkInterfaceId><subnetId>subnet-{number:017x}\
                 </subnetId><vpcId>vpc-{number:017x}</vpcId><description/><ownerId>{ACCOUNT}</ownerId><status>in-use</status><macAddress>\
                 02:00:00:00:{high:02x}:{low:02x}</macAddress><privateIpAddress>{ip}</privateIpAddress><privateDnsName>{host}\
                 </privateDnsName><sourceDestCheck>true</sourceDestCheck><groupSet><item><groupId>sg-{number:017x}</groupId><groupName>\
                 web</groupName></item></groupSet><attachment><attachmentId>eni-attach-{instance:017x}</attachmentId><deviceIndex>0\
                 </deviceIndex><status>attached</status><attachTime>{at}</attachTime><deleteOnTermination>true</deleteOnTermination>\
                 </attachment><privateIpAddressesSet><item><privateIpAddress>{ip}</privateIpAddress><privateDnsName>{host}\
                 </privateDnsName><primary>true</primary></item></privateIpAddressesSet></item></networkInterfaceSet>\
                 <iamInstanceProfile><arn>arn:aws:iam::{ACCOUNT}:instance-profile/web</arn><id>AIPA{instance:017X}</id>\
                 </iamInstanceProfile><ebsOptimized>true</ebsOptimized><enaSupport>true</enaSupport><cpuOptions><coreCount>2</coreCount>\
                 <threadsPerCore>1</threadsPerCore></cpuOptions><hibernationOptions><configured>false</configured></hibernationOptions>\
                 <metadataOptions><state>applied</state><httpTokens>required</httpTokens><httpPutResponseHopLimit>1\
                 </httpPutResponseHopLimit><httpEndpoint>enabled</httpEndpoint></metadataOptions></item></instancesSet></item>"
            );
        }
        body.push_str("</reservationSet>");
        if until < place.instances {
            let _infallible = write!(body, "<nextToken>{until}</nextToken>");
        }
        body
    }

    fn images<'a>(&self, ids: impl Iterator<Item = &'a str>) -> String {
        let mut body = "<imagesSet>".to_owned();
        for id in ids {
            let _infallible = write!(
                body,
                "<item><imageId>{id}</imageId><imageState>available</imageState><imageOwnerId>{ACCOUNT}</imageOwnerId><creationDate>{}\
                 </creationDate><architecture>arm64</architecture><tagSet><item><key>appversion</key><value>web-1.0.0</value></item>\
                 </tagSet></item>",
                self.made_at
            );
        }
        body + "</imagesSet>"
    }
}

impl Region {
    fn name(&self, index: usize) -> String {
        format!("app{:05}-web-v001", self.groups[index].0)
    }

    fn is_in_play(&self, index: usize) -> bool {
        self.groups[index].0 < self.in_play
    }

    /// The numbers of a group's instances.
    fn members(&self, index: usize) -> std::ops::Range<usize> {
        let until = self.groups.get(index + 1).map_or(self.instances, |(_, first)| *first);
        self.groups[index].1..until
    }

    fn id(&self, instance: usize) -> String {
        format!("i-{:x}{instance:016x}", self.number % 16)
    }

    fn target_group(&self, region: &str, index: usize) -> String {
        let number = self.groups[index].0;
        format!("arn:aws:elasticloadbalancing:{region}:{ACCOUNT}:targetgroup/web-{number}/{index:016x}")
    }

    /// The group whose target group this is.
    fn index(&self, target_group: &str) -> Option<usize> {
        let (_, index) = target_group.rsplit_once('/')?;
        usize::from_str_radix(index, 16).ok().filter(|index| *index < self.groups.len())
    }

    fn target_groups<'a>(&self, region: &str, arns: impl Iterator<Item = &'a str>) -> String {
        let mut body = "<TargetGroups>".to_owned();
        for (arn, index) in arns.filter_map(|arn| Some((arn, self.index(arn)?))) {
            let balancer = index / GROUPS_A_BALANCER;
            let _infallible = write!(
                body,
                "<member><TargetGroupArn>{arn}</TargetGroupArn><TargetGroupName>web-{}</TargetGroupName><Protocol>HTTP</Protocol>\
                 <Port>8080</Port><VpcId>vpc-0</VpcId><HealthCheckProtocol>HTTP</HealthCheckProtocol><HealthCheckPort>traffic-port\
                 </HealthCheckPort><HealthCheckEnabled>true</HealthCheckEnabled><HealthCheckIntervalSeconds>10\
                 </HealthCheckIntervalSeconds><HealthCheckTimeoutSeconds>5</HealthCheckTimeoutSeconds><HealthyThresholdCount>2\
                 </HealthyThresholdCount><UnhealthyThresholdCount>2</UnhealthyThresholdCount><HealthCheckPath>/health</HealthCheckPath>\
                 <Matcher><HttpCode>200</HttpCode></Matcher><LoadBalancerArns><member>arn:aws:elasticloadbalancing:{region}:{ACCOUNT}:\
                 loadbalancer/app/web/{balancer:016x}</member></LoadBalancerArns><TargetType>instance</TargetType><ProtocolVersion>HTTP1\
                 </ProtocolVersion><IpAddressType>ipv4</IpAddressType></member>",
                self.groups[index].0
            );
        }
        body + "</TargetGroups>"
    }

    fn rules(&self, region: &str, listener: &str) -> String {
        let balancer = listener.rsplit_once('/').and_then(|(_, number)| usize::from_str_radix(number, 16).ok());
        let from = balancer.map_or(self.groups.len(), |number| number.saturating_mul(GROUPS_A_BALANCER));
        let mut body = "<Rules>".to_owned();
        for index in (from..self.groups.len()).take(GROUPS_A_BALANCER) {
            let (arn, name) = (self.target_group(region, index), self.name(index));
            let _infallible = write!(
                body,
                "<member><RuleArn>{listener}/{index:016x}</RuleArn><Priority>{}</Priority><Conditions><member><Field>path-pattern</Field>\
                 <PathPatternConfig><Values><member>/{name}/*</member></Values></PathPatternConfig></member></Conditions><Actions><member>\
                 <Type>forward</Type><Order>1</Order><ForwardConfig><TargetGroups><member><TargetGroupArn>{arn}</TargetGroupArn><Weight>100\
                 </Weight></member></TargetGroups></ForwardConfig></member></Actions><IsDefault>false</IsDefault></member>",
                index - from + 1
            );
        }
        body + "<member><RuleArn>default</RuleArn><Priority>default</Priority><Conditions/><Actions><member><Type>fixed-response</Type>\
                <FixedResponseConfig><StatusCode>503</StatusCode></FixedResponseConfig></member></Actions><IsDefault>true</IsDefault>\
                </member></Rules>"
    }

    fn health(&self, target_group: &str) -> String {
        let mut body = "<TargetHealthDescriptions>".to_owned();
        for instance in self.index(target_group).map(|index| self.members(index)).into_iter().flatten() {
            let _infallible = write!(
                body,
                "<member><Target><Id>{}</Id><Port>8080</Port></Target><HealthCheckPort>8080</HealthCheckPort><TargetHealth><State>healthy\
                 </State></TargetHealth></member>",
                self.id(instance)
            );
        }
        body + "</TargetHealthDescriptions>"
    }
}

fn zone(region: &str, instance: usize) -> String {
    format!("{region}{}", ["a", "b", "c"][instance % 3])
}

fn listener(balancer: &str) -> String {
    let arn = balancer.replace(":loadbalancer/", ":listener/");
    format!(
        "<Listeners><member><ListenerArn>{arn}</ListenerArn><LoadBalancerArn>{balancer}</LoadBalancerArn><Port>80</Port><Protocol>HTTP\
         </Protocol></member></Listeners>"
    )
}

/// The values of a list in a form: `PREFIX1`, `PREFIX2` and so on.
fn values<'a>(form: &'a BTreeMap<String, String>, prefix: &'a str) -> impl Iterator<Item = &'a str> {
    form.iter().filter(move |(name, _)| name.starts_with(prefix)).map(|(_, value)| value.as_str())
}

/// The answer's envelope.
fn whole(service: &str, action: &str, body: &str) -> String {
    match service {
        "ec2" => format!(
            "<{action}Response xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\"><requestId>{REQUEST}</requestId>{body}</{action}Response>"
        ),
        _ => format!(
            "<{action}Response><{action}Result>{body}</{action}Result><ResponseMetadata><RequestId>{REQUEST}</RequestId>\
             </ResponseMetadata></{action}Response>"
        ),
    }
}

fn refusal(service: &str, status: u16, code: &str, message: &str) -> Answer {
    let text = match service {
        "ec2" => format!(
            "<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors><RequestID>{REQUEST}</RequestID>\
             </Response>"
        ),
        _ => format!(
            "<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>{message}</Message></Error><RequestId>{REQUEST}\
             </RequestId></ErrorResponse>"
        ),
    };
    (status, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(groups: u32, instances: u32) -> Account {
        let regions = vec!["r1".to_owned(), "r2".to_owned(), "r3".to_owned()];
        Account::new(&Size { regions, groups, instances, in_play: 2 }, Timestamp::UNIX_EPOCH)
    }

    /// Follows the pages of a call in a region, and returns all texts between `<tag>` and `</tag>`, and how many pages there were.
    fn all(account: &Account, region: &str, call: &str, token: &str, tag: &str) -> (Vec<String>, usize) {
        let (mut found, mut pages, mut next) = (Vec::new(), 0, String::new());
        let between = |text: &str, tag: &str| -> Vec<String> {
            let [begins, ends] = [format!("<{tag}>"), format!("</{tag}>")];
            let parts = text.split(&begins).skip(1);
            parts.filter_map(|part| Some(part.split_once(&ends)?.0.to_owned())).collect()
        };
        loop {
            let service = if token == "nextToken" { "ec2" } else { "autoscaling" };
            let (status, body) = account.answer(region, service, format!("{call}{next}").as_bytes(), Instant::now());
            assert_eq!(status, 200, "{body}");
            found.extend(between(&body, tag));
            pages += 1;
            match between(&body, token).pop() {
                Some(token) => next = format!("&NextToken={token}"),
                None => return (found, pages),
            }
        }
    }

    #[test]
    fn every_group_and_instance_is_shown_once_over_all_pages_and_regions() {
        for (groups, instances) in [(7, 23), (301, 5_003), (4, 2)] {
            let account = account(groups, instances);
            let (mut names, mut ids, mut members) = (Vec::new(), Vec::new(), Vec::new());
            for region in ["r1", "r2", "r3"] {
                let call = "Action=DescribeAutoScalingGroups&MaxRecords=100";
                names.extend(all(&account, region, call, "NextToken", "AutoScalingGroupName").0);
                members.extend(all(&account, region, call, "NextToken", "InstanceId").0);
                let (found, pages) =
                    all(&account, region, "Action=DescribeInstances&MaxResults=1000", "nextToken", "instanceId");
                assert_eq!(pages, found.len().div_ceil(1_000).max(1));
                ids.extend(found);
            }
            let unique = |all: &[String]| all.iter().collect::<std::collections::BTreeSet<_>>().len();
            assert_eq!((names.len(), unique(&names)), (groups as usize, groups as usize));
            assert_eq!((ids.len(), unique(&ids)), (instances as usize, instances as usize));
            members.sort_unstable();
            ids.sort_unstable();
            assert_eq!(members, ids);
        }
    }

    #[test]
    fn who_asks_too_often_is_throttled_until_the_bucket_refills() {
        let account = account(3, 3);
        let now = Instant::now();
        let ask = |at| account.answer("r1", "ec2", b"Action=DescribeInstances&MaxResults=5", at).0;
        assert!((0..100).all(|_| ask(now) == 200));
        assert_eq!(ask(now), 503);
        assert_eq!(ask(now + std::time::Duration::from_millis(60)), 200, "20 a second");
        assert_eq!(
            account.answer("r2", "ec2", b"Action=DescribeInstances&MaxResults=5", now).0,
            200,
            "a region of its own"
        );
        let (status, body) = account.answer("r1", "ec2", b"Action=TerminateInstances", now);
        assert!(status == 400 && body.contains("InvalidAction"), "{body}");
    }
}
