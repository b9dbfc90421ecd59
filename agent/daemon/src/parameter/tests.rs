//! Against a Systems Manager and a metadata service of the test's own, on the loopback.

use std::convert::Infallible;
use std::path::Path;
use std::sync::{Arc, Mutex};

use hyper::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1 as server;
use hyper::service::service_fn;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::TcpListener;

use super::*;
use crate::identity::tests::Service;

const NAME: &str = "/troop/join";
const ROLE_PATH: &str = "/latest/meta-data/iam/security-credentials/";
const KEYS: &str = r#"{"Code": "Success", "AccessKeyId": "ASIA1", "SecretAccessKey": "s", "Token": "session-1",
    "Expiration": "2026-11-24T16:00:00Z"}"#;
const GOOD: &str = r#"{"Parameter": {"Name": "/troop/join", "Type": "SecureString", "Value": "ab12\n"}}"#;
const IMPATIENT: Patience = Patience { answer: Duration::from_secs(5), tries: 1, between: Duration::ZERO };

async fn metadata() -> Service {
    Service::start(&[
        (ROLE_PATH, "troop-agent\n"),
        ("/latest/meta-data/iam/security-credentials/troop-agent", KEYS),
        ("/latest/meta-data/placement/region", "eu-west-1"),
        ("/latest/meta-data/services/domain", "amazonaws.com"),
    ])
    .await
}

/// A request as it came: its headers, and its body.
type Asked = (hyper::HeaderMap, String);

/// Answers with these, one a connection, and keeps what it was asked.
async fn systems_manager(answers: Vec<(u16, &'static str)>) -> (std::net::SocketAddr, Arc<Mutex<Vec<Asked>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let kept = asked.clone();
    tokio::spawn(async move {
        for (status, body) in answers {
            let kept = kept.clone();
            let (stream, _) = listener.accept().await.unwrap();
            let service = service_fn(move |request: Request<Incoming>| {
                let kept = kept.clone();
                async move {
                    let (head, came) = request.into_parts();
                    let came = came.collect().await.unwrap().to_bytes();
                    kept.lock().unwrap().push((head.headers, String::from_utf8(came.into()).unwrap()));
                    let mut answer = Response::new(Full::new(Bytes::from(body)));
                    *answer.status_mut() = StatusCode::from_u16(status).unwrap();
                    Ok::<_, Infallible>(answer)
                }
            });
            tokio::spawn(
                async move { drop(server::Builder::new().serve_connection(TokioIo::new(stream), service).await) },
            );
        }
    });
    (address, asked)
}

/// Asks, in the open as only a test does.
async fn ask_at(address: std::net::SocketAddr, imds: &str, name: &str) -> Result<String, ParameterError> {
    let dial = async |_: &str| {
        TcpStream::connect(address).await.map_err(|source| ParameterError::Dial {
            name: name.to_owned(),
            host: address.to_string(),
            source,
        })
    };
    token_by(name, imds, IMPATIENT, Duration::ZERO, dial).await
}

async fn error(status: u16, body: &'static str) -> ParameterError {
    let (metadata, (address, _)) = (metadata().await, systems_manager(vec![(status, body); 3]).await);
    ask_at(address, &metadata.endpoint, NAME).await.unwrap_err()
}

#[tokio::test]
async fn the_token_is_asked_for_once_with_decryption_by_the_role_and_for_the_region_of_the_instance() {
    let metadata = metadata().await;
    let (address, asked) = systems_manager(vec![(200, GOOD)]).await;
    assert_eq!(ask_at(address, &metadata.endpoint, NAME).await.unwrap(), "ab12");
    let asked = asked.lock().unwrap();
    let [(headers, body)] = &asked[..] else { panic!("{asked:?}") };
    let header = |name: &str| headers[name].to_str().unwrap();
    assert_eq!(body, r#"{"Name":"/troop/join","WithDecryption":true}"#);
    assert_eq!(header("host"), "ssm.eu-west-1.amazonaws.com");
    assert_eq!(header("x-amz-target"), "AmazonSSM.GetParameter");
    assert_eq!(header("x-amz-security-token"), "session-1");
    let day = &header("x-amz-date")[..8];
    let signed = "content-type;host;x-amz-date;x-amz-security-token;x-amz-target";
    let start = format!(
        "AWS4-HMAC-SHA256 Credential=ASIA1/{day}/eu-west-1/ssm/aws4_request, SignedHeaders={signed}, Signature="
    );
    assert!(header("authorization").starts_with(&start), "{headers:?}");
}

#[tokio::test]
async fn a_throttle_passes_and_a_no_does_not() {
    let metadata = metadata().await;
    let throttled = (400, r#"{"__type": "ThrottlingException", "message": "Rate exceeded"}"#);
    let (address, asked) = systems_manager(vec![throttled, (500, ""), (200, GOOD)]).await;
    assert_eq!(ask_at(address, &metadata.endpoint, NAME).await.unwrap(), "ab12");
    assert_eq!(asked.lock().unwrap().len(), 3);
    let no = (400, r#"{"__type": "ParameterNotFound"}"#);
    let (address, asked) = systems_manager(vec![no, (200, GOOD)]).await;
    ask_at(address, &metadata.endpoint, NAME).await.unwrap_err();
    assert_eq!(asked.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_denial_names_the_statement_that_is_missing() {
    let read = error(
        400,
        r#"{"__type": "AccessDeniedException", "Message": "User: arn:aws:sts::123456789012:assumed-role/troop-agent/i-0abc is not authorized to perform: ssm:GetParameter on resource: arn:aws:ssm:eu-west-1:123456789012:parameter/troop/join because no identity-based policy allows the ssm:GetParameter action"}"#,
    );
    let text = read.await.to_string();
    let start = "role `troop-agent` may not read the parameter `/troop/join`: its policy lacks \
                 {\"Effect\": \"Allow\", \"Action\": \"ssm:GetParameter\", \"Resource\": \
                 \"arn:aws:ssm:eu-west-1:123456789012:parameter/troop/join\"} (AWS: AccessDeniedException: User: ";
    assert!(text.starts_with(start), "{text}");

    let key = r#"{"__type": "AccessDeniedException", "message": "The ciphertext refers to a customer master key that does not exist, does not exist in this region, or you are not allowed to access. (Service: AWSKMS; kms)"}"#;
    let text = error(400, key).await.to_string();
    assert!(text.contains(r#""Action": "kms:Decrypt", "Resource": "the ARN of the key"#), "{text}");
    let bare = error(400, r#"{"__type": "AccessDeniedException"}"#).await.to_string();
    assert!(bare.contains(r#""Resource": "arn:aws:ssm:eu-west-1:*:parameter/troop/join""#), "{bare}");
}

#[tokio::test]
async fn what_else_stands_in_the_way_is_told() {
    let rows = [
        (
            400,
            r#"{"__type": "ParameterNotFound"}"#,
            "there is no parameter `/troop/join` in eu-west-1",
            "put-parameter",
        ),
        (400, r#"{"__type": "InvalidSignatureException", "message": "Signature expired"}"#, "does not take", "clock"),
        (
            400,
            r#"{"__type": "com.amazon#UnrecognizedClientException"}"#,
            "400 Bad Request: UnrecognizedClient",
            "AWS's",
        ),
        (503, "<html>no", "AWS answered 503 Service Unavailable: <html>no", "AWS's"),
        (200, r#"{"Parameter": {"Type": "String", "Value": "ab12"}}"#, "is no SecureString", "--type SecureString"),
        (200, r#"{"Parameter": {"Type": "SecureString", "Value": " "}}"#, "is empty", "troop agents --token"),
        (200, r#"{"Parameter": {"Type": "SecureString", "Value": "a b"}}"#, "something else than a token", "alone"),
        (200, "{}", "is not in the answer", "troop agents --token"),
    ];
    for (status, body, says, hint) in rows {
        let error = error(status, body).await;
        assert!(error.to_string().contains(says), "{error}");
        assert!(error.hint().contains(hint), "{error}: {}", error.hint());
        // A value is a secret, also one that is none of ours.
        assert!(!format!("{error:?}").contains("ab12"), "{error:?}");
    }
}

#[tokio::test]
async fn an_instance_without_a_role_or_whose_role_has_no_keys_is_told_so() {
    let (address, asked) = systems_manager(vec![(200, GOOD)]).await;
    let none = Service::start(&[]).await;
    let error = ask_at(address, &none.endpoint, NAME).await.unwrap_err();
    assert_eq!(troop_policies::chain(&error), "could not read the parameter `/troop/join`: this instance has no role");
    assert!(error.hint().contains("instance profile"), "{}", error.hint());
    let failed = r#"{"Code": "AssumeRoleUnauthorizedAccess", "Message": "EC2 cannot assume the role"}"#;
    let service = Service::start(&[
        (ROLE_PATH, "troop-agent"),
        ("/latest/meta-data/iam/security-credentials/troop-agent", failed),
    ])
    .await;
    let error = ask_at(address, &service.endpoint, NAME).await.unwrap_err();
    assert!(troop_policies::chain(&error).contains("is no credentials"), "{error}");
    // A region that is none would lead the request, and the keys' signature, to whoever chose it.
    let service = Service::start(&[
        (ROLE_PATH, "troop-agent"),
        ("/latest/meta-data/iam/security-credentials/troop-agent", KEYS),
        ("/latest/meta-data/placement/region", "evil.test/"),
        ("/latest/meta-data/services/domain", "amazonaws.com"),
    ])
    .await;
    let error = ask_at(address, &service.endpoint, NAME).await.unwrap_err();
    assert!(troop_policies::chain(&error).contains("is no name"), "{error}");
    assert!(asked.lock().unwrap().is_empty());
}

/// A server that shows a certificate for `host`, and its authority's file.
async fn tls_server(host: &str, folder: &Path) -> (std::net::SocketAddr, PathBuf) {
    let made = rcgen::generate_simple_self_signed(vec![host.to_owned()]).unwrap();
    let ca_file = folder.join("ca.pem");
    std::fs::write(&ca_file, made.cert.pem()).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(stream) = acceptor.accept(stream).await else { continue };
            let answer = service_fn(|_: Request<Incoming>| async {
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(GOOD))))
            });
            tokio::spawn(
                async move { drop(server::Builder::new().serve_connection(TokioIo::new(stream), answer).await) },
            );
        }
    });
    (address, ca_file)
}

#[tokio::test]
async fn whoever_does_not_show_to_be_aws_is_asked_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let host = "ssm.eu-west-1.amazonaws.com";
    let (metadata, (address, ca_file)) = (metadata().await, tls_server(host, folder.path()).await);
    let trusted = async |host: &str| tls(NAME, host, address, Some(&ca_file)).await;
    let token = token_by(NAME, &metadata.endpoint, IMPATIENT, Duration::ZERO, trusted).await;
    assert_eq!(token.unwrap(), "ab12");
    // By this machine's authorities it is nobody, and by its own it is not another host.
    let by_machine = tls(NAME, host, address, None).await.unwrap_err();
    let as_other = tls(NAME, "ssm.us-east-1.amazonaws.com", address, Some(&ca_file)).await.unwrap_err();
    assert!(as_other.hint().contains("has signed that certificate"), "{}", as_other.hint());
    for error in [by_machine, as_other] {
        assert!(matches!(error, ParameterError::Dial { .. } | ParameterError::Trust { .. }), "{error}");
    }
}

#[test]
fn names_and_arns_are_names_and_nothing_else_is() {
    for good in ["/troop/join", "join", "arn:aws:ssm:eu-west-1:123456789012:parameter/troop/join", "a.b-c_d"] {
        assert!(is_name(good), "{good}");
    }
    for bad in ["", "/troop join", "/troop\"", "/tröp", &"x".repeat(3_000)] {
        assert!(!is_name(bad), "{bad}");
    }
}
