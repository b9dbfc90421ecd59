//! A small healthy world for the unit tests of this crate: `hello-web-v000` with three instances over three zones.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::gates::Scope;
use crate::ids::{AccountName, ImageId, InstanceId, Location, RegionName, TeamName, ZoneName};
use crate::inventory::{Group, Instance, Inventory, Lifecycle, TAG_TEAM, TargetHealth};
use crate::names::{AppName, GroupName};
use crate::policy::{
    AppPolicy, ChaosPolicy, Grouping, Holidays, KillStyle, NoNotice, Place, Policy, Rate, SiteCaps, TeamCaps,
};
use crate::registry_view::{Entry, RegistryView, Status};
use crate::situation::{InventorySeen, LedgerSeen, SiteLeash, Situation, WindowSeen};
use crate::step::Size;

pub(crate) fn now() -> Timestamp {
    "2026-11-24T10:30:00Z".parse().unwrap()
}

pub(crate) fn group_name(text: &str) -> GroupName {
    GroupName::new(text).unwrap()
}

pub(crate) fn id(text: &str) -> InstanceId {
    InstanceId::new(text).unwrap()
}

pub(crate) fn group(name: &str, ids: &[&str]) -> Group {
    let zones = ["r1a", "r1b", "r1c"].map(|z| ZoneName::new(z).unwrap());
    let instance = |(n, text): (usize, &&str)| {
        let instance = Instance {
            id: id(text),
            zone: zones[n % 3].clone(),
            image: ImageId::new("ami-1").unwrap(),
            lifecycle: Lifecycle::InService,
            launched_at: now(),
            address: None,
            port: 80,
            protected: false,
            spare: false,
            target: Some(TargetHealth::new(true, now(), None)),
        };
        (instance.id.clone(), instance)
    };
    Group {
        name: group_name(name),
        created_at: now(),
        image: ImageId::new("ami-1").unwrap(),
        version: None,
        size: Size::pinned(u32::try_from(ids.len()).unwrap()),
        zones: zones.clone().into(),
        tags: BTreeMap::from([(TAG_TEAM.to_owned(), "demo".to_owned())]),
        enabled: true,
        has_targets: true,
        in_rotation: true,
        registry_required: true,
        last_failed_launch: None,
        hold: None,
        members: ids.iter().enumerate().map(instance).collect(),
    }
}

pub(crate) fn inventory(groups: Vec<Group>) -> Inventory {
    Inventory {
        account: AccountName::new("local").unwrap(),
        region: RegionName::new("r1").unwrap(),
        zones: BTreeSet::new(),
        read_at: now(),
        groups: groups.into_iter().map(|g| (g.name.clone(), g)).collect(),
    }
}

pub(crate) fn registry(inventory: &Inventory) -> RegistryView {
    let entry = |i: &Instance| Entry {
        app: "HELLO".to_owned(),
        id: i.id.to_string(),
        ip: None,
        status: Status::Up,
        data_center_instance_id: None,
        troop_instance_id: None,
        group: None,
    };
    let entries = inventory.groups.values().flat_map(|g| g.members.values()).map(entry).collect();
    RegistryView { read_at: now(), warming: false, entries }
}

pub(crate) fn place(line: usize) -> Place {
    Place { file: "demo.toml".to_owned(), line }
}

pub(crate) fn policy() -> Policy {
    let app = AppName::new("hello").unwrap();
    let chaos = ChaosPolicy {
        place: place(9),
        leashed: false,
        rate: Rate { mean_workdays: 5, min_workdays: 2 },
        kill: KillStyle::Crash,
        drain: Duration::from_secs(30),
        during_push: false,
    };
    let hello = AppPolicy {
        place: place(7),
        app: app.clone(),
        grouping: Grouping::Cluster,
        regions_independent: true,
        min_serving: 2,
        heals_within: Duration::from_secs(60),
        never_suffixes: vec!["-canary".to_owned()],
        hold_while: Vec::new(),
        chaos: Some(chaos),
        latency: None,
        exceptions: Vec::new(),
        drills: Vec::new(),
        refused: None,
    };
    Policy {
        place: place(1),
        team: TeamName::new("demo").unwrap(),
        owner: None,
        notify: Vec::new(),
        no_notice: NoNotice::Act,
        time_zone: TimeZone::UTC,
        time_zone_name: "UTC".to_owned(),
        windows: Vec::new(),
        holidays: Holidays::default(),
        blackouts: Vec::new(),
        caps: TeamCaps::default(),
        apps: BTreeMap::from([(app, hello)]),
    }
}

pub(crate) fn location() -> Location {
    "local/r1".parse().unwrap()
}

pub(crate) fn scope() -> Scope {
    Scope { app: AppName::new("hello").unwrap(), draw_key: "local/r1/hello-web".to_owned() }
}

/// A situation in which every gate says ok.
pub(crate) fn situation<'a>(policy: &'a Policy, inventory: &'a Inventory, registry: &'a RegistryView) -> Situation<'a> {
    let shuts = "2026-11-24T12:00:00Z".parse().unwrap();
    Situation {
        now: now(),
        policy: Ok(policy),
        site_leash: Ok(SiteLeash::Off),
        site_hold_while: Vec::new(),
        holds: BTreeMap::new(),
        site_channels: BTreeSet::new(),
        site_caps: SiteCaps::default(),
        halt: Ok(None),
        clock: Ok(()),
        inventories: vec![InventorySeen { inventory: Ok(inventory), shrunk: None }],
        registry: Ok(registry),
        window: Ok(WindowSeen::Open {
            day: jiff::civil::date(2026, 11, 24),
            shuts,
            shuts_in: "1h 30m".to_owned(),
            next_holiday: None,
        }),
        ledger: Ok(LedgerSeen::default()),
    }
}
