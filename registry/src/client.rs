//! How the control plane reads the registry and carries steps out in it.

use std::time::Duration;

use jiff::Timestamp;
use reqwest::{Method, StatusCode, Url};
use serde::Serialize;
use troop_policies::chain;
use troop_policies::intent::{Intent, Outcome};
use troop_policies::leash::Permit;
use troop_policies::registry_view::RegistryView;

/// How long one call may take in all. The registry answers from memory after one small write.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Longest part of a refusal that is kept, in characters.
const WHY_CHARS_MAX: usize = 300;

/// Why the registry could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("`{url}` is no address of a registry: {why}; write it as http://HOST:PORT")]
    Address { url: String, why: String },
    #[error("cannot prepare an HTTP client")]
    Prepare(#[source] reqwest::Error),
    #[error("the registry at {url} did not answer; see whether it runs")]
    Call { url: String, source: reqwest::Error },
    #[error("the registry at {url} answered {status} to a reading: {body}")]
    Status { url: String, status: u16, body: String },
    #[error("the registry at {url} answered with what is no registry view; see whether another service has its port")]
    Shape { url: String, source: serde_json::Error },
}

/// A client of one registry.
#[derive(Debug, Clone)]
pub struct RegistryClient {
    base: String,
    http: reqwest::Client,
}

impl RegistryClient {
    /// A client of the registry at `base_url`, such as `http://127.0.0.1:8761`. Does not call it yet.
    ///
    /// # Errors
    /// [`ClientError::Address`] when it is no `http` URL of a host, [`ClientError::Prepare`].
    pub fn new(base_url: impl AsRef<str>) -> Result<Self, ClientError> {
        let url = base_url.as_ref();
        let bad = |why: String| ClientError::Address { url: url.to_owned(), why };
        let parsed = Url::parse(url).map_err(|e| bad(e.to_string()))?;
        if parsed.scheme() != "http" || parsed.host_str().is_none() {
            return Err(bad("only http is spoken".to_owned()));
        }
        if parsed.query().is_some() || parsed.fragment().is_some() {
            return Err(bad("it has a query or a fragment".to_owned()));
        }
        let http = reqwest::Client::builder()
            .timeout(TIMEOUT)
            .connect_timeout(TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            // A fresh connection for each call: then a failure to connect means for certain that nothing was sent.
            .pool_max_idle_per_host(0)
            .build()
            .map_err(ClientError::Prepare)?;
        Ok(Self { base: parsed.as_str().trim_end_matches('/').to_owned(), http })
    }

    /// Reads the whole registry.
    ///
    /// # Errors
    /// [`ClientError`] when it cannot be reached within two seconds or answers something else.
    pub async fn view(&self) -> Result<RegistryView, ClientError> {
        let url = self.base.clone();
        let failed = |source| ClientError::Call { url: url.clone(), source };
        let answer = self.http.get(self.at("registry")).send().await.map_err(failed)?;
        let status = answer.status();
        let body = answer.bytes().await.map_err(failed)?;
        if status != StatusCode::OK {
            return Err(ClientError::Status { url, status: status.as_u16(), body: shortened(&body) });
        }
        serde_json::from_slice(&body).map_err(|source| ClientError::Shape { url, source })
    }

    /// Carries out a step of the registry, once per intent.
    ///
    /// Refused when the permit does not cover the step, the step is not the registry's, the registry says no, or it is
    /// certain that nothing was sent. Unknown when nobody can say: then ask [`Self::resolve`].
    pub async fn perform(&self, intent: &Intent, permit: Permit<'_>, now: Timestamp) -> Outcome {
        if let Err(why) = permit.check(&intent.step, now) {
            return Outcome::refused(why.to_string());
        }
        if !intent.step.is_for_registry() {
            return Outcome::refused(format!("the service registry does not carry out `{}`", intent.step));
        }
        match self.post(&self.at("steps"), Some(intent)).await {
            Posted::Answered(outcome) => outcome,
            Posted::NotSent(why) | Posted::SaidNo(why) => Outcome::refused(why),
            Posted::InDoubt(why) => Outcome::unknown(why),
        }
    }

    /// What became of an intent. One that the registry never saw is refused, and stays so even if it comes late.
    pub async fn resolve(&self, intent: &Intent) -> Outcome {
        match self.post::<Intent>(&self.at(&format!("steps/{}/resolve", intent.id)), None).await {
            Posted::Answered(outcome) => outcome,
            // What matters is the intent's first sending, and of that nothing was learnt.
            Posted::NotSent(why) | Posted::SaidNo(why) | Posted::InDoubt(why) => Outcome::unknown(why),
        }
    }

    fn at(&self, path: &str) -> String {
        format!("{}/troop/v1/{path}", self.base)
    }

    async fn post<T: Serialize>(&self, url: &str, body: Option<&T>) -> Posted {
        let mut request = self.http.request(Method::POST, url);
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(e) if e.is_builder() => return Posted::NotSent(format!("nothing was sent: {}", chain(&e))),
            Err(e) if e.is_connect() => {
                return Posted::NotSent(format!(
                    "the registry at {} cannot be reached; nothing was sent: {}",
                    self.base,
                    chain(&e)
                ));
            }
            Err(e) => return Posted::InDoubt(format!("the registry at {} did not answer: {}", self.base, chain(&e))),
        };
        let status = answer.status();
        let body = match answer.bytes().await {
            Ok(body) => body,
            Err(e) => return Posted::InDoubt(format!("the registry's answer broke off: {}", chain(&e))),
        };
        if status == StatusCode::OK {
            return match serde_json::from_slice(&body) {
                Ok(outcome) => Posted::Answered(outcome),
                Err(e) => Posted::InDoubt(format!("the registry's answer is no outcome: {e}")),
            };
        }
        let why = format!("the registry answered {}: {}", status.as_u16(), shortened(&body));
        if status.is_client_error() { Posted::SaidNo(why) } else { Posted::InDoubt(why) }
    }
}

/// How a call ended.
enum Posted {
    Answered(Outcome),
    /// It is certain that the registry got nothing.
    NotSent(String),
    /// It got the call and did nothing.
    SaidNo(String),
    InDoubt(String),
}

fn shortened(body: &[u8]) -> String {
    String::from_utf8_lossy(body).trim().chars().take(WHY_CHARS_MAX).collect()
}
