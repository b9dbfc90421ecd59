//! Images by id: what their tags say, and which one a group was made from. Neither changes, so both are asked once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use aws_sdk_autoscaling::types::{AutoScalingGroup, LaunchTemplateSpecification};
use aws_sdk_ec2::types::{Filter, Image as Ec2Image};
use jiff::Timestamp;
use troop_policies::ImageId;

use super::calls::Call;
use super::fault::{Fault, Kind};
use super::groups::tag;
use super::tags;
use super::wire::Wire;
use crate::Image;

/// Values that AWS takes in one filter.
const IDS_A_CALL: usize = 200;
const IMAGES_A_PAGE: i32 = 1_000;

/// What an image's tags say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct About {
    /// Package and version.
    pub(crate) appversion: Option<String>,
    pub(crate) registry_required: bool,
}

/// What was learnt so far.
#[derive(Debug, Default)]
pub(crate) struct Known {
    images: Mutex<BTreeMap<ImageId, About>>,
    versions: Mutex<BTreeMap<(String, String), ImageId>>,
}

impl Known {
    pub(crate) fn about(&self, image: &ImageId) -> Option<About> {
        self.images.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get(image).cloned()
    }

    /// Asks for those images that are not known. One that AWS does not show is asked for again the next time.
    pub(crate) async fn learn(&self, wire: &Wire, mut wanted: BTreeSet<ImageId>) -> Result<(), Fault> {
        {
            let known = self.images.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            wanted.retain(|id| !known.contains_key(id));
        }
        let wanted: Vec<String> = wanted.into_iter().map(String::from).collect();
        for some in wanted.chunks(IDS_A_CALL) {
            let filter = Filter::builder().name("image-id").set_values(Some(some.to_vec())).build();
            let ask = || wire.ec2.describe_images().filters(filter.clone()).send();
            let answer = wire.read(Call::DescribeImages, ask).await?;
            let mut known = self.images.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            for image in answer.images() {
                let Some(id) = image.image_id().and_then(|id| ImageId::new(id).ok()) else { continue };
                known.insert(id, about(image));
            }
        }
        Ok(())
    }

    /// The image of each group that has no member and no tag to tell it, by the group's name.
    pub(crate) async fn of_groups(
        &self,
        wire: &Wire,
        groups: impl Iterator<Item = &AutoScalingGroup>,
    ) -> Result<BTreeMap<String, ImageId>, Fault> {
        let mut found = BTreeMap::new();
        for group in groups {
            let name = group.auto_scaling_group_name().unwrap_or_default();
            if !group.instances().is_empty() || tag(group, tags::IMAGE).is_some() {
                continue;
            }
            let Some(template) = template_of(group) else { continue };
            if let Some(image) = self.of_template(wire, template).await? {
                found.insert(name.to_owned(), image);
            }
        }
        Ok(found)
    }

    async fn of_template(&self, wire: &Wire, from: &LaunchTemplateSpecification) -> Result<Option<ImageId>, Fault> {
        let Some(id) = from.launch_template_id() else { return Ok(None) };
        let version = from.version().unwrap_or("$Default");
        let key = (id.to_owned(), version.to_owned());
        let lock = || self.versions.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let known = lock().get(&key).cloned();
        if known.is_some() {
            return Ok(known);
        }
        let ask = || wire.ec2.describe_launch_template_versions().launch_template_id(id).versions(version).send();
        let answer = match wire.read(Call::DescribeLaunchTemplateVersions, ask).await {
            Ok(answer) => answer,
            // The group outlived its template, which AWS allows.
            Err(fault) if fault.kind == Kind::NotFound => return Ok(None),
            Err(fault) => return Err(fault),
        };
        let data = answer.launch_template_versions().first().and_then(|version| version.launch_template_data());
        let image = data.and_then(|data| data.image_id()).and_then(|image| ImageId::new(image).ok());
        if let Some(image) = &image
            && !version.starts_with('$')
        {
            lock().insert(key, image.clone());
        }
        Ok(image)
    }
}

/// The template from which a group launches, also one of several instance types.
pub(crate) fn template_of(group: &AutoScalingGroup) -> Option<&LaunchTemplateSpecification> {
    let mixed = || group.mixed_instances_policy()?.launch_template()?.launch_template_specification();
    group.launch_template().or_else(mixed)
}

/// One image that must be there.
///
/// # Errors
/// [`Fault`]; `Ok(None)` where AWS knows no such image.
pub(crate) async fn one(wire: &Wire, id: &ImageId) -> Result<Option<Ec2Image>, Fault> {
    let filter = Filter::builder().name("image-id").values(id.as_str()).build();
    let answer = wire.read(Call::DescribeImages, || wire.ec2.describe_images().filters(filter.clone()).send()).await?;
    Ok(answer.images().first().cloned())
}

/// The account's own images with an appversion, newest first.
///
/// # Errors
/// [`Fault`].
pub(crate) async fn own(wire: &Wire) -> Result<Vec<Image>, Fault> {
    let filter = Filter::builder().name("tag-key").values(tags::APPVERSION).build();
    let mut found = Vec::new();
    let mut token: Option<String> = None;
    loop {
        let ask = || {
            let request = wire.ec2.describe_images().owners("self").filters(filter.clone());
            request.max_results(IMAGES_A_PAGE).set_next_token(token.clone()).send()
        };
        let page = wire.read(Call::DescribeImages, ask).await?;
        found.extend(page.images().iter().filter_map(ours));
        token = page.next_token().filter(|token| !token.is_empty()).map(str::to_owned);
        if token.is_none() {
            break;
        }
    }
    found.sort_by(|a, b| (b.created_at, &b.id).cmp(&(a.created_at, &a.id)));
    Ok(found)
}

fn about(image: &Ec2Image) -> About {
    let value = |key: &str| image.tags().iter().find(|t| t.key() == Some(key)).and_then(|t| t.value());
    About {
        appversion: value(tags::APPVERSION).map(str::to_owned),
        registry_required: value(tags::REGISTRY) == Some("required"),
    }
}

fn ours(image: &Ec2Image) -> Option<Image> {
    let about = about(image);
    let (name, version) = name_and_version(about.appversion.as_deref()?)?;
    let created_at: Timestamp = image.creation_date()?.parse().ok()?;
    let id = ImageId::new(image.image_id()?).ok()?;
    Some(Image { id, name, version, created_at, registry_required: about.registry_required })
}

/// Parts an appversion such as `hello-web-1.2.0-h12.ab34/JOB/12` where the version begins: at the first hyphen before a
/// digit. What stands after a slash names who built it.
fn name_and_version(appversion: &str) -> Option<(String, String)> {
    let text = appversion.split('/').next()?;
    let hyphens = text.char_indices().filter(|(_, c)| *c == '-').map(|(at, _)| at);
    let at = hyphens.into_iter().find(|at| text[at + 1..].starts_with(|c: char| c.is_ascii_digit()))?;
    let (name, version) = (&text[..at], &text[at + 1..]);
    (!name.is_empty()).then(|| (name.to_owned(), version.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_appversion_is_parted_where_its_version_begins() {
        let parted = |text| name_and_version(text).map(|(name, version)| format!("{name} | {version}"));
        assert_eq!(parted("hello-1.0.0").as_deref(), Some("hello | 1.0.0"));
        assert_eq!(parted("hello-web-1.2.0-h12.ab34/JOB/12").as_deref(), Some("hello-web | 1.2.0-h12.ab34"));
        assert_eq!(parted("hello"), None);
        assert_eq!(parted("-1.0"), None);
    }
}
