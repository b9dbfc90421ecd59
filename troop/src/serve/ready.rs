//! What a site with accounts needs before it may harm anybody, beside `leashed = false`: caps, a channel that works, a clock that
//! agrees with the cloud's, and its claim on every region. Until all of it is there, and while any of it is not, the site
//! stays leashed and says what is missing.
//!
//! The embedded cloud alone needs none of it: it can only hurt what it started.

use std::sync::Arc;
use std::time::Duration;

use troop_cloud::{Claim, Claimant};

use super::core::Core;
use super::notices;
use crate::world::chain;

/// How often it is checked. What is found missing holds from then on; a claim that somebody takes away is seen this late.
const CHECK_EVERY: Duration = Duration::from_secs(30);
/// What is told until the first check.
pub(super) const NOT_CHECKED: &str = "it is being checked what the site needs";

/// Whether the site has to be ready at all.
pub fn concerns(core: &Core) -> bool {
    !core.site.leashed && !core.site.accounts.is_empty()
}

/// Checks for as long as the control plane runs.
pub async fn watch(core: Arc<Core>) {
    if !concerns(&core) {
        return std::future::pending().await;
    }
    let mut every = tokio::time::interval(CHECK_EVERY);
    loop {
        every.tick().await;
        check(&core).await;
    }
}

/// Checks once, and takes up what is missing.
pub async fn check(core: &Core) {
    let mut missing = caps(core);
    missing.extend(channel(core).await);
    missing.extend(clock(core));
    // Claiming changes something at the cloud, so it comes last: a site that cannot be unleashed yet changes nothing.
    if missing.is_empty() {
        missing.extend(claims(core).await);
    }
    if core.not_ready.load().as_ref() != &missing {
        match missing.join("; ") {
            none if none.is_empty() => tracing::info!("the site is ready: its leash is off"),
            missing => tracing::warn!(missing, "the site stays leashed"),
        }
        core.not_ready.store(Arc::new(missing));
    }
}

fn caps(core: &Core) -> Vec<String> {
    let unset = core.site.caps.unset().into_iter();
    unset.map(|key| format!("`{key}` under `[caps]` of the site file")).collect()
}

async fn channel(core: &Core) -> Option<String> {
    match notices::any_works(core).await {
        Ok(true) => None,
        Ok(false) => Some(
            "a channel that has taken a notice: name one in `notify` of a policy, and try it with `troop notify TEAM`"
                .to_owned(),
        ),
        Err(e) => Some(format!("the ledger, which would say whether a channel works: {}", chain(&e))),
    }
}

fn clock(core: &Core) -> Vec<String> {
    let mut missing: Vec<_> = core.clock().err().into_iter().collect();
    for cloud in core.world.clouds().iter().filter(|cloud| cloud.clock_offset().is_none()) {
        missing.push(format!("an answer of account `{}`, by whose time ours is checked", cloud.account()));
    }
    missing
}

async fn claims(core: &Core) -> Vec<String> {
    let fingerprint = match &core.secret {
        Ok(secret) => secret.fingerprint(),
        Err(why) => return vec![why.clone()],
    };
    let claimant = Claimant { site: core.site.name.clone(), fingerprint };
    let mut missing = Vec::new();
    for cloud in core.world.clouds() {
        for region in cloud.regions() {
            let at = format!("{}/{region}", cloud.account());
            match cloud.claim(region, &claimant).await {
                Ok(Claim::Ours) => {}
                Ok(Claim::Theirs { site, release }) => {
                    missing.push(format!("the claim on {at}, which site `{site}` has: {release}"));
                }
                Err(e) => missing.push(format!("the claim on {at}: {}", chain(&e))),
            }
        }
    }
    missing
}
