//! One Troop an account: which site may harm anybody in a region, kept at AWS itself.
//!
//! The claim is a launch template of a name that every site uses, [`NAME`], which nobody launches; its tags say whose it is. AWS
//! takes a launch template's name once in a region of an account, so that of two sites that claim at the same moment one is
//! told that the name exists, and reads there by whom. Tags alone would not do: the last to write them wins. It is never
//! given up by itself: a site that is away for a night is not gone.

use aws_sdk_ec2::types::{LaunchTemplate, ResourceType, Tag, TagSpecification};

use super::Place;
use super::calls::Call;
use super::fault::{Fault, Kind};
use super::gatekeeper::{self, ACT_MAX};
use super::journal::nothing;
use super::tags;
use super::wire::{Again, Wire};
use crate::{Claim, Claimant};

/// The template's name; deleting it by hand gives the region up.
pub(crate) const NAME: &str = "troop-site";
/// Looks for a claim that exists and is not shown yet.
const LOOKS: u32 = 5;

/// Claims the region for a site, if nobody has.
///
/// # Errors
/// [`Fault`]: then it is not claimed, or it is not known by whom.
pub(crate) async fn take(place: &Place, claimant: &Claimant) -> Result<Claim, Fault> {
    let wire = &place.wire;
    if let Some(held) = holder(wire, claimant).await? {
        return Ok(held);
    }
    let tag = |key: &str, value: &str| Tag::builder().key(key).value(value).build();
    let tagging = TagSpecification::builder()
        .resource_type(ResourceType::LaunchTemplate)
        .tags(tag(tags::SITE, &claimant.site))
        .tags(tag(tags::SITE_FINGERPRINT, &claimant.fingerprint))
        .build();
    let create = wire.change(Call::CreateLaunchTemplate, Again::Harmless, || {
        wire.ec2
            .create_launch_template()
            .launch_template_name(NAME)
            .version_description(format!("claimed by {} since {}", claimant.site, place.now()))
            .launch_template_data(nothing())
            .tag_specifications(tagging.clone())
            .send()
    });
    let until = place.now().saturating_add(ACT_MAX).map_err(|_| Fault::odd(Call::CreateLaunchTemplate, "a time"))?;
    match gatekeeper::within(until, create).await {
        Ok(_) => return Ok(Claim::Ours),
        Err(fault) if fault.kind == Kind::Exists => {}
        Err(fault) => return Err(fault),
    }
    for _ in 0..LOOKS {
        if let Some(held) = holder(wire, claimant).await? {
            return Ok(held);
        }
        tokio::time::sleep(wire.patience.look_every).await;
    }
    Err(Fault::odd(Call::DescribeLaunchTemplates, &format!("`{NAME}`, which exists")))
}

/// Who has claimed the region; `None`: nobody has, as far as can be seen.
///
/// # Errors
/// [`Fault`].
pub(crate) async fn holder(wire: &Wire, claimant: &Claimant) -> Result<Option<Claim>, Fault> {
    let ask = || wire.ec2.describe_launch_templates().launch_template_names(NAME).send();
    match wire.read(Call::DescribeLaunchTemplates, ask).await {
        Ok(answer) => Ok(answer.launch_templates().first().map(|found| read(found, claimant))),
        Err(fault) if fault.kind == Kind::NotFound => Ok(None),
        Err(fault) => Err(fault),
    }
}

fn read(found: &LaunchTemplate, claimant: &Claimant) -> Claim {
    let tag = |key: &str| found.tags().iter().find(|tag| tag.key() == Some(key)).and_then(|tag| tag.value());
    match (tag(tags::SITE), tag(tags::SITE_FINGERPRINT)) {
        (Some(site), Some(print)) if site == claimant.site && print == claimant.fingerprint => Claim::Ours,
        (site, _) => Claim::Theirs {
            site: site.unwrap_or("a site that left no name").to_owned(),
            release: format!("`aws ec2 delete-launch-template --launch-template-name {NAME}` gives it up"),
        },
    }
}
