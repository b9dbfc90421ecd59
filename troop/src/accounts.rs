//! The clouds of a site's accounts.

use std::sync::Arc;

use troop_cloud::Cloud;
#[cfg(feature = "aws")]
use troop_cloud::aws::{AwsCloud, Credentials};
use troop_policies::policy::Site;

/// A cloud an account, for the accounts of the site file. None is asked anything yet.
///
/// # Errors
/// Why there are none: this build has no AWS, or random numbers cannot be had.
#[cfg(feature = "aws")]
pub async fn clouds(site: &Site) -> Result<Vec<Arc<dyn Cloud>>, String> {
    let mut clouds: Vec<Arc<dyn Cloud>> = Vec::new();
    for cloud in aws_clouds(site).await? {
        clouds.push(Arc::new(cloud));
    }
    Ok(clouds)
}

/// The same, for who asks what only AWS can tell.
///
/// # Errors
/// As [`clouds`].
#[cfg(feature = "aws")]
pub async fn aws_clouds(site: &Site) -> Result<Vec<AwsCloud>, String> {
    aws_clouds_by(site, &Credentials::Chain).await
}

/// The same by these credentials.
///
/// # Errors
/// As [`clouds`].
#[cfg(feature = "aws")]
pub async fn aws_clouds_by(site: &Site, credentials: &Credentials) -> Result<Vec<AwsCloud>, String> {
    use troop_cloud::aws::{AwsConfig, Patience};

    let mut clouds = Vec::new();
    for account in &site.accounts {
        let mut seed = [0; 8];
        rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty()).map_err(|e| e.to_string())?;
        let config = AwsConfig {
            account: account.name.clone(),
            role_arn: account.role.clone(),
            regions: account.regions.clone(),
            credentials: credentials.clone(),
            name_tags: site.aws.name_tags.clone(),
            endpoint_url: site.aws.endpoint.clone(),
            patience: if is_a_stand_in(site) { Patience::with_a_stand_in() } else { Patience::default() },
            seed: u64::from_le_bytes(seed),
            clock: Arc::new(crate::clock::real_now),
        };
        clouds.push(AwsCloud::new(config).await);
    }
    Ok(clouds)
}

/// Whether every request goes to a server on this machine, which nobody else asks.
#[cfg(feature = "aws")]
fn is_a_stand_in(site: &Site) -> bool {
    let host = site.aws.endpoint.as_deref().and_then(|text| reqwest::Url::parse(text).ok());
    host.is_some_and(|url| matches!(url.host_str(), Some("127.0.0.1" | "localhost" | "[::1]")))
}

/// # Errors
/// Always: this build has no AWS.
#[cfg(not(feature = "aws"))]
#[expect(clippy::unused_async, reason = "as with AWS")]
pub async fn clouds(_site: &Site) -> Result<Vec<Arc<dyn Cloud>>, String> {
    Err("this build has no AWS: build it with `cargo build --release --features aws`".to_owned())
}
