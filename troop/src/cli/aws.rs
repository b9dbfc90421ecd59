//! `troop aws`: what an account at AWS has to give Troop.

use clap::{Args, Subcommand};
use troop_cloud::aws::iam::{Allows, policy};

use crate::exit::{CliError, Code};
use crate::ui;

/// Say what an AWS account has to allow
#[derive(Debug, Subcommand)]
pub(super) enum AwsCommand {
    Policy(PolicyArgs),
}

/// Print the IAM policy that Troop needs, made from the list of its calls
///
/// It allows looking, which is all that a leashed site does.
#[derive(Debug, Args)]
pub(super) struct PolicyArgs {
    /// Allow kills and pushes as well
    #[arg(long)]
    unleashed: bool,
}

pub(super) fn run(command: &AwsCommand) -> Result<Code, CliError> {
    let AwsCommand::Policy(PolicyArgs { unleashed }) = command;
    let policy = policy(if *unleashed { Allows::Unleashed } else { Allows::Leashed });
    ui::data(format!("{policy:#}\n"));
    Ok(Code::Ok)
}
