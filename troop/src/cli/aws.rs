//! `troop aws`: what an account at AWS has to give Troop, and whether it does.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use troop_cloud::aws::iam::{Allows, policy};

use super::args::Output;
use super::context::Context;
use crate::exit::{CliError, Code};
use crate::ui;

/// The site file of who names none.
pub(super) const SITE_FILE: &str = "/etc/troop/troop.toml";

/// Say what an AWS account has to allow, and find out whether it does
#[derive(Debug, Subcommand)]
pub(super) enum AwsCommand {
    Policy(PolicyArgs),
    Doctor(DoctorArgs),
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

/// Check credentials, permissions, clock, claims and caps of every account and region of a site
///
/// Makes each call that only looks, and of those that change something EC2's dry runs; nothing is changed. Needs no control
/// plane. Exit 5 when something is missing for what the site file says.
#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// Site file, troop.toml
    #[arg(long, value_name = "FILE", default_value = SITE_FILE)]
    site: PathBuf,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(cx: &Context, command: &AwsCommand) -> Result<Code, CliError> {
    match command {
        AwsCommand::Policy(PolicyArgs { unleashed }) => {
            let policy = policy(if *unleashed { Allows::Unleashed } else { Allows::Leashed });
            ui::data(format!("{policy:#}\n"));
            Ok(Code::Ok)
        }
        AwsCommand::Doctor(args) => doctor(cx, args),
    }
}

#[cfg(feature = "aws")]
fn doctor(cx: &Context, args: &DoctorArgs) -> Result<Code, CliError> {
    use crate::views::doctor::table;

    let read = crate::site::read(Some(&args.site)).map_err(|e| CliError::of(Code::Input, &e))?;
    read.warnings.iter().for_each(|warning| ui::note(warning));
    has_accounts(&args.site, &read.site)?;
    let examined = super::context::block_on(async {
        let examined = super::doctor::examine(&read.site, cx.state_of(&read.site).ok().as_ref()).await;
        examined.map_err(|why| CliError::new(Code::Unavailable, why))
    })?;
    if args.output.is_json() {
        ui::json(&examined);
    } else {
        ui::line(&table(&examined));
    }
    Ok(if examined.is_well() { Code::Ok } else { Code::CheckFalse })
}

/// Whether there is anybody to ask.
#[cfg(feature = "aws")]
pub(super) fn has_accounts(path: &std::path::Path, site: &troop_policies::policy::Site) -> Result<(), CliError> {
    if site.accounts.is_empty() {
        let what = format!("the site file `{}` names no account", path.display());
        return Err(CliError::new(Code::Input, what).hint("add `[[accounts]]`; docs/aws.md"));
    }
    Ok(())
}

#[cfg(not(feature = "aws"))]
fn doctor(_cx: &Context, _args: &DoctorArgs) -> Result<Code, CliError> {
    Err(super::context::no_aws())
}
