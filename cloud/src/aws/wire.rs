//! The clients of one region, and the one way in which every call is made: in its turn, within its time, repeated only where
//! asking twice does no harm.
//!
//! The SDK's own retries are off. It repeats changes whose answer was lost, which may kill twice, and it does so past the
//! limiter that all callers share.

use std::collections::BTreeMap;

use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials as Keys;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::{Builder, tls};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use aws_smithy_types::retry::RetryConfig;
use troop_policies::RegionName;

use super::calls::Call;
use super::config::{AwsConfig, Credentials, Patience};
use super::fault::{Fault, Kind};
use super::gatekeeper::Gatekeeper;
use super::limiter::{Bucket, Limiter};

/// How often a read is tried.
const READ_ATTEMPTS: u32 = 4;
/// How often a change is tried that AWS did not take for want of a turn.
const CHANGE_ATTEMPTS: u32 = 4;
/// As everybody sees it in CloudTrail.
const SESSION: &str = "troop";

/// Whether a change may be sent again when nobody knows what became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Again {
    /// It does something each time it is made.
    Never,
    /// It sets something to a value, and setting it twice is setting it once.
    Harmless,
}

/// The clients of one account in one region.
#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) region: RegionName,
    pub(crate) ec2: aws_sdk_ec2::Client,
    pub(crate) scaling: aws_sdk_autoscaling::Client,
    pub(crate) balancing: aws_sdk_elasticloadbalancingv2::Client,
    pub(crate) metrics: aws_sdk_cloudwatch::Client,
    pub(crate) tokens: aws_sdk_sts::Client,
    limiters: BTreeMap<Bucket, Limiter>,
    pub(crate) patience: Patience,
    gatekeeper: Gatekeeper,
}

impl Wire {
    pub(crate) async fn new(config: &AwsConfig, region: &RegionName, gatekeeper: Gatekeeper) -> Self {
        let sdk = sdk_config(config, region).await;
        let limiter = |bucket: Bucket| (bucket, Limiter::of(bucket, &config.patience, config.seed ^ bucket as u64));
        macro_rules! client {
            ($crate_name:ident) => {
                $crate_name::Client::from_conf(
                    $crate_name::config::Builder::from(&sdk).interceptor(gatekeeper.clone()).build(),
                )
            };
        }
        Self {
            region: region.clone(),
            ec2: client!(aws_sdk_ec2),
            scaling: client!(aws_sdk_autoscaling),
            balancing: client!(aws_sdk_elasticloadbalancingv2),
            metrics: client!(aws_sdk_cloudwatch),
            tokens: client!(aws_sdk_sts),
            limiters: Bucket::ALL.into_iter().map(limiter).collect(),
            patience: config.patience,
            gatekeeper,
        }
    }

    /// Asks something, again where no answer came.
    ///
    /// # Errors
    /// The last [`Fault`].
    pub(crate) async fn read<T, E, A>(&self, call: Call, ask: impl Fn() -> A) -> Result<T, Fault>
    where
        A: Future<Output = Result<T, SdkError<E, HttpResponse>>>,
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let asking = self.repeated(call, ask, READ_ATTEMPTS, Fault::may_pass);
        let late = |_| Err(Fault::late(call, self.patience.whole_read));
        tokio::time::timeout(self.patience.whole_read, asking).await.unwrap_or_else(late)
    }

    /// Changes something. What AWS did not take for want of a turn is sent again in any case: nothing came of it.
    ///
    /// # Errors
    /// The last [`Fault`]; [`Fault::may_have_happened`] says what that means.
    pub(crate) async fn change<T, E, A>(&self, call: Call, again: Again, ask: impl Fn() -> A) -> Result<T, Fault>
    where
        A: Future<Output = Result<T, SdkError<E, HttpResponse>>>,
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        // Asked here too, where it is certain that nothing was sent.
        self.gatekeeper.may_leave(call).map_err(|e| Fault {
            call,
            kind: Kind::Refused,
            code: None,
            message: e.to_string(),
        })?;
        let passes = |fault: &Fault| match again {
            Again::Never => fault.kind == Kind::Throttled,
            Again::Harmless => fault.may_pass() || fault.kind == Kind::Busy,
        };
        self.repeated(call, ask, CHANGE_ATTEMPTS, passes).await
    }

    /// Asks whether a change would be allowed. The gatekeeper lets it out because it says that it is a dry run.
    ///
    /// # Errors
    /// The [`Fault`], which is also how EC2 says yes.
    pub(crate) async fn dry_run<T, E, A>(&self, call: Call, ask: impl Fn() -> A) -> Result<T, Fault>
    where
        A: Future<Output = Result<T, SdkError<E, HttpResponse>>>,
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        self.repeated(call, ask, READ_ATTEMPTS, |fault| fault.kind == Kind::Throttled).await
    }

    async fn repeated<T, E, A>(
        &self,
        call: Call,
        ask: impl Fn() -> A,
        attempts: u32,
        passes: impl Fn(&Fault) -> bool,
    ) -> Result<T, Fault>
    where
        A: Future<Output = Result<T, SdkError<E, HttpResponse>>>,
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let limiter = &self.limiters[&Bucket::of(call)];
        let mut attempt = 1;
        // What an earlier attempt may have done cannot be taken back by a later "no".
        let mut doubt: Option<Fault> = None;
        loop {
            limiter.turn().await;
            let fault = match tokio::time::timeout(self.patience.attempt, ask()).await {
                Ok(Ok(answer)) => {
                    limiter.served();
                    return Ok(answer);
                }
                Ok(Err(error)) => Fault::of(call, &error),
                Err(_) => Fault::late(call, self.patience.attempt),
            };
            tracing::debug!(%call, region = %self.region, attempt, fault = %fault, "a call did not come off");
            if fault.kind == Kind::Throttled {
                limiter.throttled();
            }
            if fault.may_have_happened() && call.mutates() {
                doubt.get_or_insert_with(|| fault.clone());
            }
            if attempt >= attempts || !passes(&fault) {
                return Err(doubt.unwrap_or(fault));
            }
            tokio::time::sleep(limiter.backoff(attempt)).await;
            attempt += 1;
        }
    }
}

async fn sdk_config(config: &AwsConfig, region: &RegionName) -> SdkConfig {
    let http = Builder::new().tls_provider(tls::Provider::Rustls(CryptoMode::Ring)).build_https();
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(config.patience.connect)
        .read_timeout(config.patience.read)
        .operation_attempt_timeout(config.patience.attempt)
        .build();
    let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12())
        .region(Region::new(region.to_string()))
        .http_client(http)
        .timeout_config(timeouts)
        .retry_config(RetryConfig::disabled());
    if let Some(url) = &config.endpoint_url {
        loader = loader.endpoint_url(url);
    }
    if let Credentials::Static { key_id, secret } = &config.credentials {
        loader = loader.credentials_provider(Keys::new(key_id, secret, None, None, SESSION));
    }
    let sdk = loader.load().await;
    match &config.role_arn {
        None => sdk,
        Some(role) => {
            let provider = aws_config::sts::AssumeRoleProvider::builder(role).session_name(SESSION).configure(&sdk);
            let provider = provider.build().await;
            sdk.into_builder()
                .credentials_provider(aws_credential_types::provider::SharedCredentialsProvider::new(provider))
                .build()
        }
    }
}
