//! The service's own registration: it enters, renews every second, enters again when the registry forgot it, and leaves.
//!
//! Wire format: Eureka's REST operations in JSON (wiki of Netflix/eureka, "Eureka REST operations"; registration is
//! POST apps/APP, a heartbeat PUT apps/APP/ID). No lastDirtyTimestamp is sent: it would need the wall clock, and one
//! newer than the registry's own makes a heartbeat fail.

use std::time::Duration;

use http::StatusCode;
use http::header::ACCEPT;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::settings::Identity;
use crate::clock;
use crate::world::chain;

/// How often the lease is renewed, in seconds.
const RENEW_SECONDS: u32 = 1;
/// Length of the lease, in seconds: two renewals may be lost.
const LEASE_SECONDS: u32 = 3;
/// So much of a refusal's text is repeated in an error.
const QUOTED_CHARS: usize = 200;

/// What the service says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Starting,
    Up,
}

impl Status {
    fn word(self) -> &'static str {
        match self {
            Self::Starting => "STARTING",
            Self::Up => "UP",
        }
    }
}

/// Why a call to the registry came to nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum EurekaError {
    #[error("the registry at {base} did not answer within {} s or cannot be reached", super::CALL_TIMEOUT.as_secs())]
    NoAnswer {
        base: String,
        #[source]
        source: reqwest::Error,
    },
    #[error("the registry at {base} answered {status}: {text}")]
    Refused { base: String, status: StatusCode, text: String },
    #[error("the registry at {base} answered something that is no list of instances")]
    Strange {
        base: String,
        #[source]
        source: reqwest::Error,
    },
}

/// The registry, as the service sees it.
#[derive(Debug, Clone)]
pub(super) struct Eureka {
    base: String,
    client: reqwest::Client,
}

impl Eureka {
    pub(super) fn new(base: String, client: reqwest::Client) -> Self {
        Self { base, client }
    }

    /// Enters as STARTING, as UP once `listening`, renews until `stop`, and leaves.
    ///
    /// A registry that is away stops nothing: the service serves, and tries again every second.
    pub(super) async fn stay_registered(
        &self,
        identity: &Identity,
        mut listening: watch::Receiver<bool>,
        stop: CancellationToken,
    ) {
        let mut told = Told::default();
        let mut word = Word { status: Status::Starting, since_ms: clock::real_now().as_millisecond() };
        told.note(self.register(identity, word).await.map(|()| word.status));
        let mut tick = tokio::time::interval(Duration::from_secs(RENEW_SECONDS.into()));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // A call that has begun is finished before the stop is looked at: else its effect could come after the
            // DELETE, and the entry of a dead instance would stay for a lease.
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Ok(()) = listening.changed() => {}
                _ = tick.tick() => {}
            }
            let status = if *listening.borrow_and_update() { Status::Up } else { Status::Starting };
            if status != word.status {
                // Later than before also where the clock was set back, or within one millisecond.
                word = Word { status, since_ms: clock::real_now().as_millisecond().max(word.since_ms + 1) };
            }
            told.note(self.tell(identity, told.status, word).await);
        }
        match self.deregister(identity).await {
            Ok(()) => tracing::info!("left the registry"),
            Err(error) => tracing::warn!(error = %chain(&error), "could not leave the registry; the lease runs out"),
        }
    }

    /// Renews what the registry was last told, or registers where that is another status.
    async fn tell(&self, identity: &Identity, told: Option<Status>, word: Word) -> Result<Status, EurekaError> {
        if told != Some(word.status) || !self.renew(identity, word).await? {
            self.register(identity, word).await?;
        }
        Ok(word.status)
    }

    async fn register(&self, identity: &Identity, word: Word) -> Result<(), EurekaError> {
        let url = format!("{}/apps/{}", self.base, identity.app.to_uppercase());
        let request = self.client.post(url).json(&registration(identity, word));
        self.refused(self.send(request).await?).await
    }

    /// `false`: the registry does not know this instance, or not its newest word.
    async fn renew(&self, identity: &Identity, word: Word) -> Result<bool, EurekaError> {
        let Word { status, since_ms } = word;
        let url = format!("{}?status={}&lastDirtyTimestamp={since_ms}", self.entry(identity), status.word());
        let response = self.send(self.client.put(url)).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(false);
        }
        self.refused(response).await.map(|()| true)
    }

    async fn deregister(&self, identity: &Identity) -> Result<(), EurekaError> {
        let response = self.send(self.client.delete(self.entry(identity))).await?;
        // Unknown there: whoever ended this instance was quicker, and it is gone as wished.
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(());
        }
        self.refused(response).await
    }

    /// Base URLs of the instances of `app` that are UP, in the registry's order.
    pub(super) async fn up_instances(&self, app: &str) -> Result<Vec<String>, EurekaError> {
        let url = format!("{}/apps/{}", self.base, app.to_uppercase());
        let response = self.send(self.client.get(url).header(ACCEPT, "application/json")).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(Vec::new());
        }
        if !response.status().is_success() {
            return self.refused(response).await.map(|()| Vec::new());
        }
        let strange = |source| EurekaError::Strange { base: self.base.clone(), source };
        Ok(addresses(&response.json::<Value>().await.map_err(strange)?))
    }

    fn entry(&self, identity: &Identity) -> String {
        format!("{}/apps/{}/{}", self.base, identity.app.to_uppercase(), identity.instance)
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<reqwest::Response, EurekaError> {
        request.send().await.map_err(|source| EurekaError::NoAnswer { base: self.base.clone(), source })
    }

    async fn refused(&self, response: reqwest::Response) -> Result<(), EurekaError> {
        let status = response.status();
        if status.is_success() {
            return Ok(());
        }
        let text = response.text().await.unwrap_or_default();
        let text = text.chars().take(QUOTED_CHARS).collect();
        Err(EurekaError::Refused { base: self.base.clone(), status, text })
    }
}

/// What this instance says of itself, and since when. A registry that was killed may have taken the newer word and kept an
/// older one; the time in a renewal tells it so, and it asks to be told anew.
#[derive(Debug, Clone, Copy)]
struct Word {
    status: Status,
    since_ms: i64,
}

/// What the registry has taken from us, and whether the last call failed, so that a long absence is one line of log.
#[derive(Debug, Default)]
struct Told {
    status: Option<Status>,
    failing: bool,
}

impl Told {
    fn note(&mut self, result: Result<Status, EurekaError>) {
        match result {
            Ok(status) => {
                if self.failing || self.status != Some(status) {
                    tracing::info!(status = status.word(), "registered");
                }
                *self = Self { status: Some(status), failing: false };
            }
            Err(error) => {
                if !self.failing {
                    tracing::warn!(error = %chain(&error), "could not register or renew; trying every second");
                }
                self.failing = true;
            }
        }
    }
}

fn registration(identity: &Identity, word: Word) -> Value {
    let home = format!("http://{}:{}", identity.host, identity.port);
    let mut instance = json!({
        "instanceId": identity.instance,
        "hostName": identity.host,
        "app": identity.app.to_uppercase(),
        "ipAddr": identity.host,
        "status": word.status.word(),
        "lastDirtyTimestamp": word.since_ms.to_string(),
        "port": { "$": identity.port, "@enabled": "true" },
        "securePort": { "$": 443, "@enabled": "false" },
        "homePageUrl": format!("{home}/"),
        "statusPageUrl": format!("{home}/version"),
        "healthCheckUrl": format!("{home}/health"),
        "vipAddress": identity.cluster,
        "dataCenterInfo": {
            "@class": "com.netflix.appinfo.AmazonInfo",
            "name": "Amazon",
            "metadata": {
                "instance-id": identity.instance,
                "ami-id": identity.image,
                "availability-zone": identity.zone,
                "local-ipv4": identity.host,
            },
        },
        "leaseInfo": { "renewalIntervalInSecs": RENEW_SECONDS, "durationInSecs": LEASE_SECONDS },
        "metadata": { "troop.instance-id": identity.instance },
    });
    if !identity.group.is_empty() {
        instance["asgName"] = json!(identity.group);
    }
    json!({ "instance": instance })
}

/// Base URLs of the instances that are UP in the answer to GET apps/APP.
fn addresses(answer: &Value) -> Vec<String> {
    let instances = answer.pointer("/application/instance").and_then(Value::as_array);
    let up = |instance: &&Value| instance.get("status").and_then(Value::as_str) == Some("UP");
    let address = |instance: &Value| {
        let host = instance.get("ipAddr")?.as_str()?;
        let port = instance.pointer("/port/$")?;
        // Some registries write the port as a text.
        let port: u16 = match port.as_str() {
            Some(text) => text.parse().ok()?,
            None => u16::try_from(port.as_u64()?).ok()?,
        };
        Some(format!("http://{host}:{port}"))
    };
    instances.into_iter().flatten().filter(up).filter_map(address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_instances_that_are_up_and_have_an_address_are_found() {
        let answer = json!({ "application": { "name": "PRICING", "instance": [
            { "status": "OUT_OF_SERVICE", "ipAddr": "10.0.0.1", "port": { "$": 1, "@enabled": "true" } },
            { "status": "UP", "ipAddr": "10.0.0.2", "port": { "$": 8080, "@enabled": "true" } },
            { "status": "UP", "ipAddr": "10.0.0.3", "port": { "$": "8081", "@enabled": "true" } },
            { "status": "UP", "ipAddr": "10.0.0.4", "port": { "$": 99999, "@enabled": "true" } },
            { "status": "UP" },
        ] } });
        assert_eq!(addresses(&answer), ["http://10.0.0.2:8080", "http://10.0.0.3:8081"]);
        assert!(addresses(&json!({ "application": "none" })).is_empty());
    }
}
