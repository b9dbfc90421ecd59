//! Against a metadata service of the test's own, on the loopback.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use ring::signature::{ED25519, UnparsedPublicKey};
use tokio::net::TcpListener;

use super::*;

const DOCUMENT: &str =
    "{\n  \"accountId\" : \"123456789012\",\n  \"region\" : \"us-east-1\",\n  \"instanceId\" : \"i-0abc\"\n}";

/// Answers as EC2 does: nothing without a token, which only a PUT with its lifetime gets.
pub(crate) struct Service {
    pub(crate) endpoint: String,
    _serving: Serving,
}

/// A task that ends with what it is kept in.
struct Serving(tokio::task::JoinHandle<()>);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Service {
    pub(crate) async fn start(pages: &[(&'static str, &str)]) -> Self {
        let pages: BTreeMap<&str, String> = pages.iter().map(|(path, text)| (*path, (*text).to_owned())).collect();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let serving = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let service = service_fn(|request| {
                    let answer = answer(&request, &pages);
                    async { Ok::<_, Infallible>(answer) }
                });
                drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
            }
        });
        Self { endpoint, _serving: Serving(serving) }
    }
}

fn answer(request: &Request<Incoming>, pages: &BTreeMap<&str, String>) -> Response<Full<Bytes>> {
    let says = |status, text: &str| {
        let mut response = Response::new(Full::new(Bytes::from(text.to_owned())));
        *response.status_mut() = status;
        response
    };
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    if request.uri().path() == "/latest/api/token" {
        let good = request.method() == Method::PUT && header("x-aws-ec2-metadata-token-ttl-seconds").is_some();
        return if good { says(StatusCode::OK, "the-token") } else { says(StatusCode::BAD_REQUEST, "") };
    }
    if header("x-aws-ec2-metadata-token") != Some("the-token") {
        return says(StatusCode::UNAUTHORIZED, "");
    }
    match pages.get(request.uri().path()) {
        Some(text) => says(StatusCode::OK, text),
        None => says(StatusCode::NOT_FOUND, ""),
    }
}

const PATHS: [&str; 2] = ["/latest/dynamic/instance-identity/document", "/latest/dynamic/instance-identity/rsa2048"];

fn ec2(endpoint: &str, key_file: PathBuf, account: Option<&str>) -> Who {
    Who::Ec2 { account: account.map(str::to_owned), endpoint: endpoint.to_owned(), key_file }
}

#[tokio::test]
async fn an_instance_is_named_by_its_document_and_signs_whatever_nonce_it_is_given() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(&[(PATHS[0], DOCUMENT), (PATHS[1], "c2ln\nbmF0\n")]).await;
    let key_file = dir.path().join("identity.key");
    let own = find(&ec2(&service.endpoint, key_file.clone(), Some("prod"))).await.unwrap();
    assert_eq!(own.host, "prod/us-east-1/i-0abc");
    let Some(Identity::Ec2(shown)) = own.identity("a-nonce") else { panic!("nothing is shown") };
    assert_eq!((shown.document.as_str(), shown.signature.as_str()), (DOCUMENT, "c2ln\nbmF0\n"), "to the byte");
    let key = UnparsedPublicKey::new(&ED25519, hex::decode(&shown.key).unwrap());
    let proof = hex::decode(&shown.proof).unwrap();
    key.verify(&statement("a-nonce", &own.host, DOCUMENT), &proof).unwrap();
    assert!(key.verify(&statement("another", &own.host, DOCUMENT), &proof).is_err());
    // The next start on this instance has the same key; without a name of its own the account is its number.
    let again = find(&ec2(&service.endpoint, key_file, None)).await.unwrap();
    assert_eq!(again.host, "123456789012/us-east-1/i-0abc");
    let Some(Identity::Ec2(later)) = again.identity("b") else { panic!("nothing is shown") };
    assert_eq!(later.key, shown.key);
}

#[tokio::test]
async fn a_service_that_says_something_else_is_told_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let key_file = || dir.path().join("identity.key");
    let nothing = Service::start(&[]).await;
    let error = find(&ec2(&nothing.endpoint, key_file(), None)).await.unwrap_err();
    let expected = format!("the metadata service answered GET `{}` with 404 Not Found", PATHS[0]);
    assert_eq!(error.to_string(), expected);
    let odd = Service::start(&[(PATHS[0], "{}"), (PATHS[1], "c2ln")]).await;
    let error = find(&ec2(&odd.endpoint, key_file(), None)).await.unwrap_err();
    assert!(matches!(error, IdentityError::Document(_)));
    let sly = DOCUMENT.replace("i-0abc", "../../i-0abc");
    let sly = Service::start(&[(PATHS[0], &sly), (PATHS[1], "c2ln")]).await;
    let error = find(&ec2(&sly.endpoint, key_file(), None)).await.unwrap_err();
    assert!(matches!(error, IdentityError::Name { kind: "instance", .. }), "{error}");
    let long = Service::start(&[(PATHS[0], &"x".repeat(17 * 1024)), (PATHS[1], "c2ln")]).await;
    let error = find(&ec2(&long.endpoint, key_file(), None)).await.unwrap_err();
    assert!(error.to_string().ends_with("is too long"), "{error}");
    for endpoint in ["169.254.169.254", "https://127.0.0.1:1", "http://127.0.0.1:1/latest"] {
        let error = find(&ec2(endpoint, key_file(), None)).await.unwrap_err();
        assert!(error.to_string().ends_with("is no address of a metadata service"), "{error}");
    }
    assert!(!key_file().exists(), "no key without an instance");
}

#[tokio::test]
async fn a_silent_service_is_asked_three_times_and_then_told_of_the_hop_limit() {
    let dir = tempfile::tempdir().unwrap();
    // It accepts, and says nothing: what a token looks like that has used up its hops.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(AtomicU32::new(0));
    let counts = Arc::clone(&asked);
    let _serving = Serving(tokio::spawn(async move {
        let mut held = Vec::new();
        loop {
            held.push(listener.accept().await.unwrap());
            counts.fetch_add(1, Ordering::Relaxed);
        }
    }));
    let patience =
        Patience { answer: Duration::from_millis(50), between: Duration::from_millis(1), ..Patience::STANDARD };
    let who = ec2(&endpoint, dir.path().join("identity.key"), None);
    let error = find_within(&who, patience).await.unwrap_err();
    assert_eq!(error.to_string(), "the metadata service did not answer PUT `/latest/api/token` within 50ms");
    assert!(error.hint().contains("hop limit must be 2 or more"));
    assert_eq!(asked.load(Ordering::Relaxed), 3);
}
