//! The latency monkey: picks an instance and a fault from the policy's menu. The agent on the instance's host puts it up.
//!
//! Draws are those of docs/draws.md: the victim's by `latency/victim` (on demand `latency/demand/INTENT`), the fault's by
//! [`FAULT_LABEL`] (a drill's by its entry's name and `/fault`), one draw for each range of the menu in the order delay, jitter, loss.

use std::time::Duration;

use troop_policies::draw::{DayKey, Draw};
use troop_policies::fault::{ChanceSpec, FaultSpec, Peer};
use troop_policies::gates::Eligible;
use troop_policies::policy::LatencyPolicy;

use crate::chaos::{self, Strike};

/// The monkey's name in plans, policies and draws.
pub const MONKEY: &str = "latency";
/// The label of the victim's draw for a planned act.
pub const VICTIM_LABEL: &str = "latency/victim";
/// The label of the draws of a planned act's fault.
pub const FAULT_LABEL: &str = "latency/fault";
/// Times of a menu are drawn in whole milliseconds, shares in hundredths of a percent.
const SHARE_STEP_PPM: u64 = 100;

/// Draws the fault of a planned act from the menu. `None` for a menu whose applications have no names, which no policy file has.
pub fn draw_fault(
    menu: &LatencyPolicy,
    day_key: &DayKey,
    draw_key: &str,
    label: &str,
) -> Option<(FaultSpec, Duration)> {
    let mut draws = day_key.stream(draw_key, label);
    let to: Option<Vec<Peer>> = menu.to.iter().map(|text| text.parse().ok()).collect();
    let delay = Duration::from_millis(within(&mut draws, millis(menu.delay.0), millis(menu.delay.1))?);
    let mut fault = FaultSpec::delay(delay, to.filter(|to| !to.is_empty())?);
    if let (Some((least, most)), Some(delay)) = (menu.jitter, &mut fault.delay) {
        delay.jitter_us = within(&mut draws, millis(least), millis(most))? * 1_000;
    }
    fault.of.clone_from(&menu.of);
    if let Some((least, most)) = menu.loss_percent {
        let steps = |percent: f64| {
            // A percentage of a policy file, from 0 to 100.
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 10,000")]
            let steps = (percent * 1e4).round() as u64;
            steps / SHARE_STEP_PPM
        };
        let ppm = within(&mut draws, steps(least), steps(most))? * SHARE_STEP_PPM;
        fault.loss = Some(ChanceSpec { ppm: u32::try_from(ppm).ok()?, correlation_ppm: 0 });
    }
    Some((fault, menu.lasts))
}

fn within(draws: &mut Draw, least: u64, most: u64) -> Option<u64> {
    draws.below(most.checked_sub(least)?.checked_add(1)?).map(|more| least + more)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Draws the victim from those eligible. `None` when there is nobody, or the fault is not on the menu.
pub fn choose(
    eligible: &Eligible,
    fault: (&FaultSpec, Duration),
    day_key: &DayKey,
    draw_key: &str,
    label: &str,
) -> Option<Strike> {
    let ids = eligible.ids();
    let victim = chaos::draw(&ids, day_key, draw_key, label)?;
    let (step, candidate) = eligible.fault(victim, fault.0, fault.1)?;
    Some(Strike { victim: victim.clone(), step, candidate: candidate.clone() })
}

#[cfg(test)]
mod tests {
    use troop_policies::TeamName;
    use troop_policies::draw::SiteSecret;
    use troop_policies::policy::{Place, Rate};

    use super::*;

    fn menu() -> LatencyPolicy {
        LatencyPolicy {
            place: Place { file: "shop.toml".to_owned(), line: 7 },
            leashed: false,
            rate: Rate { mean_workdays: 5, min_workdays: 1 },
            delay: (Duration::from_millis(50), Duration::from_millis(53)),
            jitter: Some((Duration::from_millis(1), Duration::from_millis(2))),
            loss_percent: Some((0.5, 1.0)),
            lasts: Duration::from_secs(60),
            instances: 1,
            to: vec!["app:pricing".to_owned()],
            of: None,
            dns: Vec::new(),
            abort_when: None,
            during_push: false,
        }
    }

    fn key(n: u8) -> DayKey {
        SiteSecret::from_bytes([n; 32]).day_key(jiff::civil::date(2027, 3, 15), &TeamName::new("shop").unwrap())
    }

    #[test]
    fn every_fault_of_the_menu_is_drawn_and_none_beside_it() {
        let mut delays = std::collections::BTreeSet::new();
        for n in 1..100 {
            let (fault, lasts) = draw_fault(&menu(), &key(n), "prod/us-east-1/shop", FAULT_LABEL).unwrap();
            assert_eq!(menu().allows(&fault, lasts), Ok(()));
            let delay = fault.delay.unwrap();
            assert!((50_000..=53_000).contains(&delay.mean_us) && (1_000..=2_000).contains(&delay.jitter_us));
            assert!((5_000..=10_000).contains(&fault.loss.unwrap().ppm));
            delays.insert(delay.mean_us);
        }
        assert_eq!(delays.len(), 4);
    }

    #[test]
    fn the_same_day_draws_the_same_fault() {
        let drawn = |n| draw_fault(&menu(), &key(n), "prod/us-east-1/shop", FAULT_LABEL);
        assert_eq!(drawn(7), drawn(7));
        assert_ne!(drawn(7), drawn(8));
    }

    #[test]
    fn a_menu_of_one_value_needs_no_luck() {
        let delay = Duration::from_millis(200);
        let fixed = LatencyPolicy { delay: (delay, delay), jitter: None, loss_percent: None, ..menu() };
        let (fault, _) = draw_fault(&fixed, &key(1), "k", FAULT_LABEL).unwrap();
        assert_eq!(fault, FaultSpec::delay(delay, vec!["app:pricing".parse().unwrap()]));
    }
}
