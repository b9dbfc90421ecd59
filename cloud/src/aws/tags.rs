//! The tags that Troop writes and reads at AWS, and the names it gives to what it makes.

use sha2::{Digest as _, Sha256};
use troop_policies::inventory::TAG_MARK;
use troop_policies::{AccountName, RegionName};

use super::names::RealName;

/// On a group that takes no new connections: when it was disabled and for how long it drains, `RFC3339 SECONDS`.
pub(crate) const DISABLED: &str = "troop:disabled";
/// On a group that is being destroyed: since when.
pub(crate) const DESTROYING: &str = "troop:destroying";
/// On a group: the processes that Troop suspended and has to resume, with spaces between.
pub(crate) const SUSPENDED: &str = "troop:suspended";
/// On a group: the image from which it was made.
pub(crate) const IMAGE: &str = "troop:image";
/// On a group and its target group: the intent that made it.
pub(crate) const INTENT: &str = "troop:intent";
/// On a target group: whose it is. Only such a one is deleted with its group.
pub(crate) const GROUP: &str = "troop:group";
/// On a listener or rule: the cluster whose traffic it leads, written by whoever made it.
pub(crate) const CLUSTER: &str = "troop:cluster";
/// On a launch template that is an entry of the journal: `intent` or `fence`.
pub(crate) const JOURNAL: &str = "troop:journal";
/// On the launch template that is a site's claim: the site's name, and what tells it from another of that name.
pub(crate) const SITE: &str = "troop:site";
pub(crate) const SITE_FINGERPRINT: &str = "troop:site-fingerprint";
/// On an image: package and version, as bakeries write it.
pub(crate) const APPVERSION: &str = "appversion";
/// On an image: `required` where its instances serve only once they are UP in the registry.
pub(crate) const REGISTRY: &str = "troop:registry";

/// What Troop writes on a group: of one group only, and never copied to the next.
pub(crate) const OWN: [&str; 6] = [TAG_MARK, DISABLED, DESTROYING, SUSPENDED, IMAGE, INTENT];

/// The name of a group's own target group: at most 32 letters, digits and hyphens are allowed, so it is a digest, and the
/// group's name is in a tag.
pub(crate) fn target_group_name(account: &AccountName, region: &RegionName, group: &RealName) -> String {
    format!("troop-{}", &digest(&format!("{account}/{region}/{group}"))[..16])
}

/// SHA-256 in hexadecimal digits.
pub(crate) fn digest(text: &str) -> String {
    hex::encode(Sha256::digest(text.as_bytes()))
}
