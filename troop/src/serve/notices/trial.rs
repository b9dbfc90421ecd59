//! `troop notify`: one test notice to each recipient of a team, now, and what was answered.

use std::sync::Arc;

use troop_policies::policy::Recipient;

use super::channel::Sent;
use super::follow;
use super::words::{Notice, harmless};
use crate::api::types::{Actor, ApiError, ErrorKind, NotifyAnswer, NotifyRequest, RecipientView};
use crate::serve::control::{SCHEMA, could_not_ask, error};
use crate::serve::core::Core;
use crate::serve::ready;

/// Test notices at a time; see the places of the others.
const AT_ONCE: usize = 10;
/// What is told where nothing else is wanted.
const MESSAGE: &str = "this is how Troop tells you";

/// Sends it, and waits for every answer. It is recorded nowhere, but a channel that takes it fails no more.
///
/// # Errors
/// When there is no such team, or it names nobody.
pub async fn try_all(core: &Arc<Core>, request: NotifyRequest, actor: Actor) -> Result<NotifyAnswer, ApiError> {
    let NotifyRequest { team, message } = request;
    let policies = core.policies.load_full();
    let Some(policy) = policies.team(&team) else {
        let bad = policies.files.iter().find(|f| f.team.as_ref() == Some(&team) && f.result.is_err());
        if let Some(bad) = bad {
            let hint = "`troop policy check` tells every mistake in it";
            return Err(error(ErrorKind::Refused, format!("{} does not count", bad.file), Some(hint)));
        }
        let known: Vec<_> = policies.good().map(|good| good.policy.team.to_string()).collect();
        let near = troop_policies::file::nearest(team.as_str(), known.iter().map(String::as_str));
        let hint = near.map_or_else(
            || format!("teams with a policy: {}", known.join(", ")),
            |near| format!("did you mean `{near}`?"),
        );
        return Err(error(ErrorKind::NotFound, format!("no policy is of team `{team}`"), Some(&hint)));
    };
    if policy.policy.notify.is_empty() {
        let hint = "add notify = [\"CHANNEL:TARGET\"] to its file, with a channel of the site file";
        return Err(error(
            ErrorKind::Yours,
            format!("the policy of team `{team}` names nobody in `notify`"),
            Some(hint),
        ));
    }
    let id = core.host.random().map_err(|why| error(ErrorKind::CouldNotAsk, why, None))?;
    let notice = Notice {
        event: None,
        kind: "test".to_owned(),
        team: team.clone(),
        draw_key: None,
        at: core.calendar_now(),
        text: harmless(&format!(
            "[{}] test notice of team {team}, sent by {}: {}",
            core.site.name,
            actor.name,
            message.as_deref().unwrap_or(MESSAGE)
        )),
        record: serde_json::json!({ "record": "test", "who": actor.name }),
    };
    let recipients: Vec<_> = policy.policy.notify.iter().enumerate().collect();
    let mut told = Vec::new();
    for some in recipients.chunks(AT_ONCE) {
        let sent = some.iter().map(|(number, to)| one(core, &notice, to, format!("msg_{}_{number}", hex::encode(id))));
        for view in futures::future::join_all(sent).await {
            told.push(view?);
        }
    }
    if ready::concerns(core) {
        ready::check(core).await;
    }
    Ok(NotifyAnswer { schema: SCHEMA, team, told })
}

async fn one(core: &Core, notice: &Notice, to: &Recipient, id: String) -> Result<RecipientView, ApiError> {
    let view = |ok, text| RecipientView { recipient: to.to_string(), ok, text };
    let Some(channel) = core.site.channels.get(&to.channel) else {
        return Ok(view(false, format!("the site file has no channel `{}`", to.channel)));
    };
    Ok(match follow::send(core, to, channel, notice, &id).await {
        Sent::Taken { status } => {
            follow::works(core, &notice.team, to).await.map_err(|e| could_not_ask(&e))?;
            view(true, format!("taken, it answered {status}"))
        }
        Sent::Refused { why } | Sent::NotNow { why, .. } => view(false, why),
    })
}
