//! `troop notify`: whether a team can be told, found out by telling it.

use clap::Args;
use troop_policies::TeamName;

use super::args::{self, Output};
use super::context::{self, Context};
use crate::api::types::{NotifyAnswer, NotifyRequest};
use crate::client::ACT_WITHIN;
use crate::exit::{CliError, Code};
use crate::ui;

/// Send a test notice to everybody whom a team's policy names in `notify`
///
/// Says what each channel answered. Exit 0 when all of them took it, 5 when one did not.
#[derive(Debug, Args)]
pub(super) struct NotifyArgs {
    /// The team, as in its policy
    #[arg(value_name = "TEAM")]
    team: TeamName,
    /// What the notice says
    #[arg(long, value_name = "WORDS", value_parser = args::reason)]
    message: Option<String>,
    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(cx: &Context, args: NotifyArgs) -> Result<Code, CliError> {
    let request = NotifyRequest { team: args.team, message: args.message };
    let answer: NotifyAnswer = context::client(&cx.state()?).post("notify", &request, ACT_WITHIN).await?;
    if args.output.is_json() {
        ui::json(&answer);
    } else {
        let row = |told: &crate::api::types::RecipientView| {
            let verdict = if told.ok { "told" } else { "NOT TOLD" };
            vec![told.recipient.clone(), verdict.to_owned(), told.text.clone()]
        };
        ui::line(&ui::table(&["RECIPIENT", "VERDICT", "ANSWER"], &answer.told.iter().map(row).collect::<Vec<_>>()));
    }
    Ok(code(&answer))
}

fn code(answer: &NotifyAnswer) -> Code {
    if answer.told.iter().all(|told| told.ok) { Code::Ok } else { Code::CheckFalse }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::RecipientView;

    #[test]
    fn one_that_was_not_told_is_no_success() {
        let told = |ok| RecipientView { recipient: "slack:a".to_owned(), ok, text: String::new() };
        let answer = |told| NotifyAnswer { schema: 1, team: "demo".parse().unwrap(), told };
        assert_eq!(code(&answer(vec![told(true), told(true)])), Code::Ok);
        assert_eq!(code(&answer(vec![told(true), told(false)])), Code::CheckFalse);
    }
}
