//! Answers as AWS and moto write them, through the SDK's own readers.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use troop_policies::RegionName;

use super::*;
use crate::aws::config::{AwsConfig, Credentials, Patience};
use crate::aws::gatekeeper::Gatekeeper;
use crate::aws::wire::Wire;

const EC2: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Response><Errors><Error><Code>CODE</Code><Message>MESSAGE</Message>\
                   </Error></Errors><RequestID>4d6b1c1e-0000-4000-8000-000000000000</RequestID></Response>";
const SCALING: &str = "<ErrorResponse xmlns=\"http://autoscaling.amazonaws.com/doc/2011-01-01/\"><Error><Type>Sender</Type>\
                       <Code>CODE</Code><Message>MESSAGE</Message></Error><RequestId>4d6b1c1e</RequestId></ErrorResponse>";
const BALANCING: &str = "<ErrorResponse xmlns=\"http://elasticloadbalancing.amazonaws.com/doc/2015-12-01/\"><Error>\
                         <Type>Sender</Type><Code>CODE</Code><Message>MESSAGE</Message></Error><RequestId>4d6b1c1e\
                         </RequestId></ErrorResponse>";
/// As moto denies: the same for every service, and not in a namespace.
const MOTO_DENIED: &str = "<ErrorResponse>\n  <Errors>\n    <Error>\n      <Code>AccessDenied</Code>\n      <Message>User: \
                           arn:aws:iam::123456789012:user/t is not authorized to perform: ec2:DescribeInstances</Message>\n    \
                           </Error>\n  </Errors>\n  <RequestId>4d6b1c1e</RequestId>\n</ErrorResponse>";
const HTML: &str =
    "<!doctype html>\n<html lang=en>\n<title>500 Internal Server Error</title>\n<h1>Internal Server Error</h1>";

/// Answers every request on every connection with this.
async fn serve(status: u16, body: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = vec![0; 65_536];
            let _read = stream.read(&mut request).await;
            let length = body.len();
            let answer = format!(
                "HTTP/1.1 {status} X\r\ncontent-type: text/xml\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
            );
            let _written = stream.write_all(answer.as_bytes()).await;
        }
    });
    url
}

pub(crate) async fn wire(url: String) -> Wire {
    let clock: crate::aws::config::Clock = Arc::new(|| Timestamp::UNIX_EPOCH);
    let config = AwsConfig {
        account: AccountName::new("prod").unwrap(),
        role_arn: None,
        regions: [].into(),
        credentials: Credentials::Static { key_id: "AKIA".to_owned(), secret: "s".to_owned() },
        name_tags: None,
        endpoint_url: Some(url),
        patience: Patience {
            backoff: Duration::from_millis(1),
            attempt: Duration::from_secs(5),
            ..Patience::default()
        },
        seed: 1,
        clock: clock.clone(),
    };
    Wire::new(&config, &RegionName::new("us-east-1").unwrap(), Gatekeeper::new(clock)).await
}

/// What the client makes of an answer to a call of this service.
async fn fault(service: Service, status: u16, body: &str) -> Fault {
    let wire = wire(serve(status, body.to_owned()).await).await;
    match service {
        Service::Ec2 => wire.read(Call::DescribeInstances, || wire.ec2.describe_instances().send()).await.unwrap_err(),
        Service::AutoScaling => {
            let ask = || wire.scaling.describe_auto_scaling_groups().send();
            wire.read(Call::DescribeAutoScalingGroups, ask).await.unwrap_err()
        }
        Service::LoadBalancing => {
            let ask = || wire.balancing.describe_target_groups().send();
            wire.read(Call::DescribeTargetGroups, ask).await.unwrap_err()
        }
        Service::CloudWatch | Service::Tokens => panic!("no rows"),
    }
}

#[tokio::test]
async fn answers_are_told_apart_by_the_code_in_the_body() {
    use Service::{AutoScaling, Ec2, LoadBalancing};
    let rows = [
        (Ec2, 503, EC2, "RequestLimitExceeded", "Request limit exceeded.", Kind::Throttled),
        (Ec2, 400, EC2, "EC2ThrottledException", "x", Kind::Throttled),
        (AutoScaling, 400, SCALING, "Throttling", "Rate exceeded", Kind::Throttled),
        (LoadBalancing, 400, BALANCING, "ThrottlingException", "Rate exceeded", Kind::Throttled),
        (Ec2, 500, EC2, "InternalError", "x", Kind::Server),
        (Ec2, 503, EC2, "Unavailable", "x", Kind::Server),
        (AutoScaling, 500, SCALING, "ResourceContention", "x", Kind::Server),
        (LoadBalancing, 500, BALANCING, "HealthUnavailable", "x", Kind::Server),
        (Ec2, 500, EC2, "SomethingNew", "x", Kind::Server),
        (AutoScaling, 400, SCALING, "ScalingActivityInProgress", "x", Kind::Busy),
        (AutoScaling, 400, SCALING, "ResourceInUse", "x", Kind::Busy),
        (AutoScaling, 400, SCALING, "InstanceRefreshInProgress", "x", Kind::Busy),
        (Ec2, 400, EC2, "InvalidInstanceID.NotFound", "The instance ID 'i-1' does not exist", Kind::NotFound),
        (Ec2, 400, EC2, "InvalidLaunchTemplateId.VersionNotFound", "x", Kind::NotFound),
        (LoadBalancing, 400, BALANCING, "TargetGroupNotFound", "One or more target groups not found", Kind::NotFound),
        (AutoScaling, 400, SCALING, "ValidationError", "AutoScalingGroup name not found - null", Kind::NotFound),
        (AutoScaling, 400, SCALING, "ValidationError", "desired must be below max", Kind::Refused),
        (Ec2, 400, EC2, "InvalidLaunchTemplateName.AlreadyExistsException", "x", Kind::Exists),
        (Ec2, 403, EC2, "UnauthorizedOperation", "You are not authorized to perform this operation.", Kind::Denied),
        (Ec2, 401, EC2, "AuthFailure", "AWS was not able to validate the provided access credentials", Kind::Denied),
        (Ec2, 400, EC2, "RequestExpired", "x", Kind::Denied),
        (AutoScaling, 403, SCALING, "ExpiredToken", "x", Kind::Denied),
        (LoadBalancing, 403, BALANCING, "SignatureDoesNotMatch", "x", Kind::Denied),
        (Ec2, 403, MOTO_DENIED, "AccessDenied", "", Kind::Denied),
        (Ec2, 400, EC2, "InsufficientInstanceCapacity", "x", Kind::Capacity),
        (AutoScaling, 400, SCALING, "LimitExceeded", "a quota, not a throttle", Kind::Capacity),
        (LoadBalancing, 400, BALANCING, "TooManyTargetGroups", "x", Kind::Capacity),
        (Ec2, 400, EC2, "OperationNotPermitted", "The instance 'i-1' may not be terminated.", Kind::Refused),
        (Ec2, 500, HTML, "", "", Kind::Server),
        (AutoScaling, 502, HTML, "", "", Kind::Server),
        (AutoScaling, 403, HTML, "", "", Kind::Denied),
        (LoadBalancing, 200, "<Describe", "", "", Kind::Unanswered),
    ];
    for (service, status, body, code, message, kind) in rows {
        let body = body.replace("CODE", code).replace("MESSAGE", message);
        let fault = fault(service, status, &body).await;
        assert_eq!(fault.kind, kind, "{service:?} {status} {code}: {fault}");
        assert_eq!(fault.code.as_deref().unwrap_or(""), code, "{service:?} {status} {body}");
    }
}

#[tokio::test]
async fn a_denial_names_the_action_or_the_credentials() {
    let denied = fault(Service::AutoScaling, 403, &SCALING.replace("CODE", "AccessDenied")).await.to_string();
    // Before AWS's own words, which are long.
    let action = "autoscaling:DescribeAutoScalingGroups";
    let start = format!("{action}: allow `{action}`, see `troop aws policy`: AccessDenied: ");
    assert!(denied.starts_with(&start), "{denied}");
    let expired = fault(Service::Ec2, 400, &EC2.replace("CODE", "RequestExpired")).await.to_string();
    assert!(expired.contains("check the credentials, and this machine's clock"), "{expired}");
}

#[tokio::test]
async fn nobody_there_is_no_answer_and_no_empty_list() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let wire = wire(url).await;
    let read = wire.read(Call::DescribeInstances, || wire.ec2.describe_instances().send()).await;
    assert_eq!(read.unwrap_err().kind, Kind::Unanswered);
}

#[tokio::test]
async fn a_change_that_no_act_makes_is_not_sent() {
    let wire = wire(serve(200, String::new()).await).await;
    let ask = || wire.ec2.terminate_instances().instance_ids("i-1").send();
    let change = wire.change(Call::TerminateInstances, crate::aws::wire::Again::Never, ask).await;
    let fault = change.unwrap_err();
    assert_eq!((fault.kind, fault.may_have_happened()), (Kind::Refused, false));
    // Nor by whoever forgets to ask.
    let past = ask().await.unwrap_err();
    assert!(chain(&past).contains("no act is under way"), "{}", chain(&past));
}

#[test]
fn a_fault_says_what_follows_from_it() {
    let of = |kind| Fault { call: Call::TerminateInstances, kind, code: None, message: String::new() };
    for (kind, again, happened) in [
        (Kind::Throttled, true, false),
        (Kind::Busy, false, false),
        (Kind::NotFound, false, false),
        (Kind::Exists, false, false),
        (Kind::Denied, false, false),
        (Kind::Capacity, false, false),
        (Kind::Refused, false, false),
        (Kind::Server, true, true),
        (Kind::Unanswered, true, true),
    ] {
        assert_eq!((of(kind).may_pass(), of(kind).may_have_happened()), (again, happened), "{kind:?}");
    }
}
