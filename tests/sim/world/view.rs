//! What a control plane gets to see: the truth, or an old, halved or missing picture of it.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use troop_cloud::Traffic;
use troop_policies::inventory::{Group, Inventory};
use troop_policies::{ClusterName, GroupName};

use super::{Counted, State};

/// Answers a second that a serving group gives.
const ANSWERS_A_SECOND: u64 = 20;

/// How a picture differs from the truth.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flaws {
    /// Seconds since it was true.
    pub age_s: i64,
    /// Since when it differs like that, where that is known.
    pub since: Option<Timestamp>,
    pub missing: usize,
    pub of: usize,
}

impl State {
    /// The inventory as it is shown now. `now` is the asker's time.
    pub fn inventory(&self, now: Timestamp) -> (Inventory, Flaws) {
        let mut flaws = Flaws::default();
        let mut groups = self.groups.clone();
        let mut read_at = now;
        if let Some(old) = self.old.as_ref().filter(|_| self.now < self.troubles.inventory_old) {
            groups.clone_from(old);
            let age = self.now.duration_since(self.troubles.old_since);
            flaws.age_s = age.as_secs();
            let too_old = SignedDuration::from_secs(troop_policies::gates::INVENTORY_MAX_AGE_S);
            flaws.since = self.troubles.old_since.checked_add(too_old).ok();
            read_at = now.checked_sub(age).unwrap_or(now);
        }
        if self.now < self.troubles.inventory_half {
            flaws.since = Some(self.troubles.short_since);
            for group in groups.values_mut() {
                flaws.of += group.members.len();
                let shown = group.members.len() / 2;
                flaws.missing += group.members.len() - shown;
                group.members = std::mem::take(&mut group.members).into_iter().take(shown).collect();
            }
        }
        if self.now < self.troubles.inventory_cut {
            flaws.since = Some(self.troubles.short_since);
            let shown = groups.len() / 2;
            let cut: Vec<_> = groups.keys().skip(shown).cloned().collect();
            flaws.of = groups.values().map(|g| g.members.len()).sum();
            flaws.missing = cut.iter().filter_map(|name| groups.remove(name)).map(|g| g.members.len()).sum();
        }
        for member in groups.values_mut().flat_map(|g| g.members.values_mut()) {
            member.target = self.verdict(&member.id, now);
        }
        let (account, region, zones) = (self.account.clone(), self.region.clone(), self.zones.clone());
        (Inventory { account, region, zones, read_at, groups }, flaws)
    }

    /// Counts what was answered up to now.
    pub fn count_traffic(&mut self) {
        for group in self.groups.values() {
            let Some(counted) = self.counted.get_mut(&group.name) else { continue };
            let passed = u64::try_from(self.now.duration_since(counted.at).as_secs()).unwrap_or(0);
            if group.in_rotation {
                let errors = self.images.get(&group.image).map_or(0, |image| image.errors);
                let answers = passed * ANSWERS_A_SECOND;
                *counted = Counted {
                    answers: counted.answers + answers,
                    errors: counted.errors + answers * errors / 100,
                    at: self.now,
                };
            } else {
                counted.at = self.now;
            }
        }
    }

    /// What the balancer counted.
    pub fn traffic(&mut self, cluster: &ClusterName) -> BTreeMap<GroupName, Traffic> {
        self.count_traffic();
        let of_cluster = self.groups.values().filter(|group: &&Group| group.cluster() == cluster);
        let counted = |group: &Group| {
            let counted = self.counted.get(&group.name)?;
            let traffic = Traffic { answers: counted.answers, server_errors: counted.errors, ..Traffic::default() };
            Some((group.name.clone(), traffic))
        };
        of_cluster.filter_map(counted).collect()
    }
}
