//! A user at moto, and what he may: from then on moto asks everybody for permissions.
//!
//! Moto checks names of actions and nothing else: no condition, and no resource but `*`.

use std::collections::BTreeSet;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::json;
use troop_cloud::aws::Credentials;

/// A user at moto, who may do what he is told.
pub(crate) struct User {
    moto: String,
    key_id: String,
    secret: String,
}

impl User {
    pub(crate) async fn new(moto: &str) -> Self {
        let mut user = Self { moto: moto.to_owned(), key_id: String::new(), secret: String::new() };
        user.iam("Action=CreateUser&UserName=troop").await;
        let made = user.iam("Action=CreateAccessKey&UserName=troop").await;
        let field = |name: &str| {
            let (_, rest) = made.split_once(&format!("<{name}>")).unwrap();
            rest.split_once('<').unwrap().0.to_owned()
        };
        (user.key_id, user.secret) = (field("AccessKeyId"), field("SecretAccessKey"));
        user
    }

    /// Allows these actions, and nothing else from now on.
    pub(crate) async fn may(&self, actions: &BTreeSet<String>) {
        self.enforce("inf").await;
        let statement = json!({ "Effect": "Allow", "Action": actions, "Resource": "*" });
        let document = json!({ "Version": "2012-10-17", "Statement": [statement] }).to_string();
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("Action", "PutUserPolicy").append_pair("UserName", "troop");
        form.append_pair("PolicyName", "troop").append_pair("PolicyDocument", &document);
        self.iam(&form.finish()).await;
        self.enforce("0").await;
    }

    pub(crate) fn credentials(&self) -> Credentials {
        Credentials::Static { key_id: self.key_id.clone(), secret: self.secret.clone() }
    }

    /// Lets so many calls pass before permissions are asked for.
    async fn enforce(&self, free: &str) {
        self.post("/moto-api/reset-auth", "text/plain", "", free).await;
    }

    async fn iam(&self, form: &str) -> String {
        let scope =
            "AWS4-HMAC-SHA256 Credential=AKIA/20261124/us-east-1/iam/aws4_request, SignedHeaders=host, Signature=0";
        let form = format!("{form}&Version=2010-05-08");
        self.post("/", "application/x-www-form-urlencoded", scope, &form).await
    }

    async fn post(&self, path: &str, kind: &str, authorization: &str, body: &str) -> String {
        let request = Request::post(format!("{}{path}", self.moto)).header(header::CONTENT_TYPE, kind);
        let request =
            request.header(header::AUTHORIZATION, authorization).body(Full::new(Bytes::from(body.to_owned())));
        let client = Client::builder(TokioExecutor::new()).build_http();
        let answer = client.request(request.unwrap()).await.unwrap();
        let status = answer.status();
        let text = answer.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8_lossy(&text).into_owned();
        assert_eq!(status, 200, "{path}: {text}");
        text
    }
}
