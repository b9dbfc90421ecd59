//! `troop serve`: the control plane of a site's accounts, until it is told to end.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use troop_registry::client::RegistryClient;

use super::context::Context;
use super::policy_files;
use crate::clock::Calendar;
use crate::exit::{CliError, Code};
use crate::serve::process::{self, Alone};
use crate::supervisor::{Seat, stop};
use crate::world::{Registry, World};
use crate::{accounts, logging, site, ui};

/// Run the control plane of a site's accounts, and stay
///
/// Reads the accounts of the site file, plans for the policies beside it, and answers the other commands on the control
/// socket of the state folder. Leashed, which a site is until its file says otherwise, it only looks. SIGTERM ends it; what
/// it has begun is on record, and the next start goes on with it.
#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// Site file, troop.toml
    #[arg(long, value_name = "FILE", default_value = "/etc/troop/troop.toml")]
    site: PathBuf,
}

pub(super) fn run(cx: &Context, args: &ServeArgs) -> Result<Code, CliError> {
    logging::for_a_log();
    let read = site::read(Some(&args.site)).map_err(|e| CliError::of(Code::Input, &e))?;
    read.warnings.iter().for_each(|warning| ui::note(warning));
    let site = read.site;
    if site.accounts.is_empty() {
        let what = format!("the site file `{}` names no account", args.site.display());
        let hint = "add `[[accounts]]` (docs/aws.md), or start the embedded cloud with `troop up`";
        return Err(CliError::new(Code::Input, what).hint(hint));
    }
    let state = cx.state_of(&site)?;
    if !site.policies.is_dir() {
        let what = format!("there is no policies folder `{}`", site.policies.display());
        return Err(CliError::new(Code::Input, what).hint("make it; an empty one opts nothing in"));
    }
    policy_files::is_no_source_code(&site.policies)?;
    let unavailable = |why: String| CliError::new(Code::Unavailable, why);
    // Reading a large account keeps a thread busy, and leases must be renewed meanwhile.
    let runtime = process::runtime(process::THREADS).map_err(|e| unavailable(e.to_string()))?;
    runtime.block_on(async {
        let stop = stop::on_signals().map_err(|e| unavailable(format!("could not watch for signals: {e}")))?;
        let clouds = accounts::clouds(&site).await.map_err(unavailable)?;
        let registry = site.registry_url.as_deref().map(RegistryClient::new).transpose();
        let registry = registry.map_err(|e| CliError::of(Code::Input, &e))?;
        let registry = registry.map(|registry| Arc::new(registry) as Arc<dyn Registry>);
        let seat = Seat::take(&state, &site)?;
        let world = World::new(clouds, registry);
        let alone = Alone::open(seat, state, site, world, Calendar::real()).await.map_err(unavailable)?;
        let core = &alone.core;
        ui::line(&format!("state     {}", core.state.path().display()));
        ui::line(&format!("policies  {}", core.policies_dir.display()));
        for at in core.world.locations() {
            ui::line(&format!("account   {at}"));
        }
        let leash = if core.site.leashed { "leashed: it plans and changes nothing" } else { "unleashed" };
        ui::line(&format!("site      {}: {leash}", core.site.name));
        alone.run(stop).await.map_err(unavailable)?;
        Ok(Code::Ok)
    })
}
