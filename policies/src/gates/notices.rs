//! What a team's `no_notice` asks for: a part of the gate `hold`.

use crate::policy::{NoNotice, Policy};
use crate::situation::{LedgerSeen, NoticesSeen, Situation};
use crate::spared::Spared;

/// Whether the team was told, where its policy wants nothing to happen otherwise. Asked on demand too: a team that cannot hear
/// of a drawn act cannot hear of another one either.
pub(super) fn told(
    situation: &Situation<'_>,
    policy: &Policy,
    seen: Result<&LedgerSeen, Spared>,
) -> Result<Option<String>, Spared> {
    match policy.no_notice {
        NoNotice::Act => return Ok(None),
        NoNotice::Spare => {}
    }
    let spare = |why: String| Err(Spared::NoNotice { team: policy.team.to_string(), why });
    let seen = seen.map_err(|spared| Spared::Unknown { what: "the notices", why: spared.to_string() })?;
    let mut told_plan = 0;
    for recipient in &policy.notify {
        if !situation.site_channels.contains(&recipient.channel) {
            return spare(format!(
                "`{recipient}` cannot be told: the site file has no channel `{}`",
                recipient.channel
            ));
        }
        match seen.notices.get(recipient) {
            None => return spare(format!("nobody has looked up whether `{recipient}` was told")),
            Some(Err(why)) => return spare(format!("it cannot be known whether `{recipient}` was told: {why}")),
            Some(Ok(NoticesSeen { failing: Some(why), .. })) => {
                return spare(format!("`{recipient}` cannot be told: {why}"));
            }
            Some(Ok(NoticesSeen { plan_told, failing: None })) => told_plan += usize::from(*plan_told),
        }
    }
    match (told_plan, policy.notify.len()) {
        (_, 0) => spare("`notify` names nobody".to_owned()),
        (0, _) => spare("the day's plan was told to nobody yet".to_owned()),
        (told, all) => Ok(Some(format!("{told} of {all} were told of the plan"))),
    }
}
