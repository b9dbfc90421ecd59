//! What every act on demand is asked with: on whom, why, and how far.

use clap::Args;
use troop_policies::InstanceId;

use super::args;

/// Flattened into the commands' own options.
#[derive(Debug, Args)]
pub(super) struct DemandArgs {
    /// A cluster, an instance id or a draw key
    pub(super) target: String,
    /// This instance, instead of one drawn from the eligible
    #[arg(long, value_name = "ID")]
    pub(super) instance: Option<InstanceId>,
    /// Why, for the ledger and for the team
    #[arg(long, value_name = "WORDS", value_parser = args::reason, required_unless_present = "plan", help_heading = "Safety")]
    reason: Option<String>,
    /// Also outside the policy's window; it is recorded
    #[arg(long, help_heading = "Safety")]
    pub(super) outside_window: bool,
    /// Only say what would be done
    #[arg(long, help_heading = "Safety")]
    pub(super) plan: bool,
}

impl DemandArgs {
    /// The reason; a plan needs none, and then says so.
    pub(super) fn reason(&self) -> String {
        self.reason.clone().unwrap_or_else(|| "planned only".to_owned())
    }
}
