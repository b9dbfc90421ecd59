//! The chaos monkey: ends one instance of the serving group, and watches until the group is whole again.

pub mod healing;

use troop_policies::InstanceId;
use troop_policies::draw::DayKey;
use troop_policies::gates::{Candidate, Eligible};
use troop_policies::step::Step;

/// The monkey's name in plans, policies and draws.
pub const MONKEY: &str = "chaos";
/// The label of the victim's draw for a planned kill; on demand it is `chaos/demand/INTENT`.
pub const VICTIM_LABEL: &str = "chaos/victim";

/// What was chosen: one instance, the step that harms it, and where it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Strike {
    pub victim: InstanceId,
    pub step: Step,
    pub candidate: Candidate,
}

/// Draws the victim from those eligible, by ids sorted by bytes. `None` when there is nobody.
pub fn choose(eligible: &Eligible, day_key: &DayKey, draw_key: &str, label: &str) -> Option<Strike> {
    let ids = eligible.ids();
    let victim = draw(&ids, day_key, draw_key, label)?;
    strike(eligible, victim)
}

/// The victim among `ids`, which are sorted by bytes.
pub fn draw<'a>(ids: &'a [InstanceId], day_key: &DayKey, draw_key: &str, label: &str) -> Option<&'a InstanceId> {
    let count = u64::try_from(ids.len()).ok()?;
    let index = day_key.stream(draw_key, label).below(count)?;
    ids.get(usize::try_from(index).ok()?)
}

/// The strike on one given instance, if it is eligible.
pub fn strike(eligible: &Eligible, victim: &InstanceId) -> Option<Strike> {
    let (step, candidate) = eligible.step(victim)?;
    Some(Strike { victim: victim.clone(), step, candidate: candidate.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use troop_policies::TeamName;
    use troop_policies::draw::SiteSecret;

    fn ids(names: &[&str]) -> Vec<InstanceId> {
        names.iter().map(|n| InstanceId::new(*n).unwrap()).collect()
    }

    #[test]
    fn the_same_key_draws_the_same_victim_and_labels_differ() {
        let team = TeamName::new("shop").unwrap();
        let key = SiteSecret::from_bytes([0x11; 32]).day_key(jiff::civil::date(2027, 3, 15), &team);
        let ids = ids(&["i-1", "i-2", "i-3", "i-4", "i-5", "i-6", "i-7", "i-8"]);
        let pick = |label: &str| draw(&ids, &key, "local/r1/hello-web", label).unwrap().clone();
        assert_eq!(pick(VICTIM_LABEL), pick(VICTIM_LABEL));
        let differing = (0..20).filter(|n| pick(&format!("chaos/demand/{n}")) != pick(VICTIM_LABEL)).count();
        assert!(differing > 10, "labels do not part the streams: {differing}");
        assert_eq!(draw(&[], &key, "k", VICTIM_LABEL), None);
    }

    #[test]
    fn every_candidate_can_be_drawn() {
        let team = TeamName::new("shop").unwrap();
        let ids = ids(&["i-1", "i-2", "i-3"]);
        let drawn: std::collections::BTreeSet<_> = (1..60)
            .map(|n| SiteSecret::from_bytes([n; 32]).day_key(jiff::civil::date(2027, 3, 15), &team))
            .filter_map(|key| draw(&ids, &key, "k", VICTIM_LABEL).cloned())
            .collect();
        assert_eq!(drawn.len(), 3);
    }
}
