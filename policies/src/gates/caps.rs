//! The gate "caps": how much the team and the site allow at all, and in each account and zone.

use crate::ids::{AccountName, ZoneName};
use crate::policy::Policy;
use crate::situation::{LedgerSeen, Situation};
use crate::spared::Spared;

/// The caps of the team, and of the site over all accounts.
pub(super) fn caps_gate(situation: &Situation<'_>, seen: &LedgerSeen, policy: &Policy) -> Result<String, Spared> {
    let team = policy.team.to_string();
    if let Some(cap) =
        policy.caps.kills_per_day.filter(|cap| seen.team_kills_today >= *cap && !crate::sabotaged!("team_day_cap"))
    {
        return Err(Spared::DayCap { kills: seen.team_kills_today, cap, whose: format!("team `{team}`") });
    }
    if let Some(cap) = situation
        .site_caps
        .kills_per_day
        .filter(|cap| seen.site_kills_today >= *cap && !crate::sabotaged!("site_day_cap"))
    {
        return Err(Spared::DayCap { kills: seen.site_kills_today, cap, whose: "the site".to_owned() });
    }
    if let Some(cap) = situation.site_caps.acts_per_hour.filter(|cap| seen.site_acts_last_hour >= *cap) {
        return Err(Spared::HourCap { acts: seen.site_acts_last_hour, cap });
    }
    let open = count(seen.unhealed.iter().filter(|act| act.team.as_ref() == Some(&policy.team)).count());
    if open >= policy.caps.unhealed_at_once && !crate::sabotaged!("team_unhealed_cap") {
        return Err(Spared::UnhealedCap { open, cap: policy.caps.unhealed_at_once, team });
    }
    let kills = seen.team_kills_today;
    let today =
        policy.caps.kills_per_day.map_or(format!("{kills} today, no cap"), |cap| format!("{kills} of {cap} today"));
    Ok(format!("{today}, {open} unhealed"))
}

/// Whether the site's caps leave room for one more act in this account and zone.
pub(super) fn site_room(
    situation: &Situation<'_>,
    seen: &LedgerSeen,
    account: &AccountName,
    zone: &ZoneName,
) -> Result<(), Spared> {
    let in_account = || seen.unhealed.iter().filter(|act| act.location.account == *account);
    let (open, cap) = (count(in_account().count()), situation.site_caps.unhealed_per_account);
    if let Some(cap) = cap.filter(|cap| open >= *cap) {
        return Err(Spared::AccountCap { account: account.clone(), open, cap });
    }
    let open = count(in_account().filter(|act| act.zone.as_ref() == Some(zone)).count());
    let cap = situation.site_caps.unhealed_per_zone;
    if open >= cap && !crate::sabotaged!("zone_cap") {
        return Err(Spared::ZoneCap { zone: zone.clone(), open, cap });
    }
    Ok(())
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
