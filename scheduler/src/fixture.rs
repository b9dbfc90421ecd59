//! A team `shop` in New York for the unit tests of this crate.

use std::collections::{BTreeMap, BTreeSet};

use troop_policies::draw::{DayKey, SiteSecret};
use troop_policies::inventory::{Group, Inventory, TAG_TEAM};
use troop_policies::policy::Policy;
use troop_policies::step::Size;

use crate::calendar::Calendar;

/// The policy file `text`, as it would be read.
pub(crate) fn parse(text: &str) -> Policy {
    troop_policies::file::parse_policy("shop.toml", text).unwrap_or_else(|e| panic!("{e:?}")).0
}

/// A policy with these windows and whatever else stands before the apps.
pub(crate) fn policy_with(zone: &str, before: &str, app: &str) -> Policy {
    parse(&format!(
        "format = 1
team = \"shop\"
timezone = \"{zone}\"
{before}
[apps.checkout]
min_serving = 2
{app}
[apps.checkout.chaos]
leashed = false
mean_workdays = 5
min_workdays = 2

[[apps.checkout.exceptions]]
account = \"*\"
region = \"*\"
stack = \"pci\"
detail = \"*\"
reason = \"card data, audited\"
"
    ))
}

/// Monday to Friday, 10:00 to 16:00 in New York; `app` stands in the table of the app.
pub(crate) fn policy(app: &str) -> Policy {
    policy_with("America/New_York", &windows("mon tue wed thu fri", "10:00", "16:00"), app)
}

pub(crate) fn windows(days: &str, open: &str, close: &str) -> String {
    let days: Vec<_> = days.split(' ').map(|day| format!("\"{day}\"")).collect();
    format!("[[windows]]\ndays = [{}]\nopen = \"{open}\"\nclose = \"{close}\"\n", days.join(", "))
}

pub(crate) fn calendar(policy: &Policy) -> Calendar {
    Calendar::new(policy, &BTreeMap::new()).unwrap()
}

/// A region that holds empty groups of these names, all of team `shop`.
pub(crate) fn inventory(region: &str, groups: &[&str]) -> Inventory {
    let at = "2026-11-24T10:30:00Z".parse().unwrap();
    let group = |name: &&str| {
        let group = Group {
            name: name.parse().unwrap(),
            created_at: at,
            image: "ami-1".parse().unwrap(),
            version: None,
            size: Size::pinned(0),
            zones: BTreeSet::new(),
            tags: BTreeMap::from([(TAG_TEAM.to_owned(), "shop".to_owned())]),
            enabled: true,
            has_targets: true,
            in_rotation: true,
            registry_required: true,
            last_failed_launch: None,
            hold: None,
            members: BTreeMap::new(),
        };
        (group.name.clone(), group)
    };
    Inventory {
        account: "prod".parse().unwrap(),
        region: region.parse().unwrap(),
        zones: BTreeSet::new(),
        read_at: at,
        groups: groups.iter().map(group).collect(),
    }
}

/// The secret of the published vectors: 64 times the digit 1.
pub(crate) fn secret() -> SiteSecret {
    SiteSecret::parse(&"1".repeat(64)).unwrap()
}

pub(crate) fn day_key(day: &str) -> DayKey {
    secret().day_key(day.parse().unwrap(), &"shop".parse().unwrap())
}
