//! `troop up`: the embedded cloud and its control plane, until Ctrl-C.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use tokio_util::sync::CancellationToken;
use troop_cloud::local::sandbox::Isolation;
use troop_policies::policy::Site;

use super::args;
use super::context::{self, Context};
use super::policy_files;
use crate::api::types::LiveView;
use crate::exit::{CliError, Code};
use crate::serve::policy_store;
use crate::state::{self, StateDir};
use crate::supervisor::{Supervisor, UpInfo, UpOptions, stop};
use crate::{logging, site, ui};

/// How long the control plane gets to answer before it is said that it does not yet.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);
const ASK_EVERY: Duration = Duration::from_millis(100);

/// Start the embedded cloud and its control plane, and stay
///
/// One supervisor, with a registry, a balancer and the control plane in a sandbox of their own. Nothing of the host's
/// network is touched; Ctrl-C, or even kill -9, ends everything. State is kept, and the next start goes on with it.
#[derive(Debug, Args)]
pub(super) struct UpArgs {
    /// How instances are kept apart: namespaces, processes or auto
    #[arg(long, value_name = "HOW", default_value_t = Isolation::Auto)]
    isolation: Isolation,
    /// Folder of the policy files; else the site file's, else policies in the state folder
    #[arg(long, value_name = "DIR")]
    policies: Option<PathBuf>,
    /// Site file, troop.toml
    #[arg(long, value_name = "FILE")]
    site: Option<PathBuf>,
    /// Port of the balancer on 127.0.0.1; 0 takes any free one [default: the site file's, else 8080, else a free one]
    #[arg(long, value_name = "N")]
    port: Option<u16>,
    /// How long an instance boots before its command runs
    #[arg(long, value_name = "DURATION", value_parser = args::span, default_value = "1s")]
    boot_delay: Duration,
    /// How long a new instance may be unhealthy before it is replaced
    #[arg(long, value_name = "DURATION", value_parser = args::span, default_value = "30s")]
    grace: Duration,
}

pub(super) fn run(cx: &Context, args: UpArgs) -> Result<Code, CliError> {
    logging::for_a_person();
    let read = site::read(args.site.as_deref()).map_err(|e| CliError::of(Code::Input, &e))?;
    read.warnings.iter().for_each(|warning| ui::note(warning));
    if let Some(account) = read.site.accounts.first() {
        let what =
            format!("the site file names account `{}`, and `troop up` starts the embedded cloud alone", account.name);
        return Err(CliError::new(Code::Input, what).hint("`troop serve` looks after accounts"));
    }
    let state = cx.state_of(&read.site)?;
    let policies = policies(&args, &read.site, &state)?;
    let options = UpOptions {
        state: state.clone(),
        isolation: args.isolation,
        policies: policies.clone(),
        site_file: args.site.as_deref().map(|p| std::path::absolute(p).unwrap_or_else(|_| p.to_owned())),
        boot_delay: args.boot_delay,
        grace: args.grace,
        port: args.port,
        calendar_file: None,
    };
    let runtime = context::runtime()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let stop = stop::on_signals()
            .map_err(|e| CliError::new(Code::Unavailable, format!("could not watch for signals: {e}")))?;
        let supervisor = Supervisor::start(options, &stop).await?;
        let info = supervisor.info.clone();
        let mut running = tokio::task::spawn_local(supervisor.run(stop.clone()));
        let told = async {
            tell(&state, &info, &policies, stop.clone()).await;
            stop.cancelled().await;
            ui::note("ending everything; Ctrl-C again leaves at once");
            std::future::pending::<()>().await;
        };
        tokio::select! {
            ended = &mut running => match ended {
                Ok(ended) => ended?,
                Err(e) => return Err(CliError::new(Code::Bug, format!("the supervisor ended abnormally: {e}"))),
            },
            () = told => {}
        }
        Ok(Code::Ok)
    })
}

/// The folder of the policies. One that a person named must be there; our own is made.
fn policies(args: &UpArgs, site: &Site, state: &StateDir) -> Result<PathBuf, CliError> {
    let named = args.policies.clone().or_else(|| args.site.as_ref().map(|_| site.policies.clone()));
    let Some(named) = named else {
        state.create()?;
        let path = state.path().join("policies");
        let made = std::fs::create_dir_all(&path);
        made.map_err(|e| CliError::new(Code::Unavailable, format!("could not make `{}`: {e}", path.display())))?;
        return Ok(path);
    };
    if !named.is_dir() {
        return Err(CliError::new(Code::Input, format!("there is no policies folder `{}`", named.display()))
            .hint("make it, or name another with `--policies DIR`; an empty one opts nothing in"));
    }
    let named = std::path::absolute(&named).unwrap_or(named);
    policy_files::is_no_source_code(&named)?;
    Ok(named)
}

/// Where things are, and what to type next.
async fn tell(state: &StateDir, info: &UpInfo, policies: &Path, stop: CancellationToken) {
    let live = tokio::select! {
        live = answer(state) => live,
        () = stop.cancelled() => return,
    };
    ui::line(&format!(
        "balancer  http://{}  (the first label of Host names the cluster; isolation: {})",
        info.balancer, info.isolation
    ));
    if let Some(left_out) = &info.left_out {
        ui::line(&format!("isolation {}: {left_out}", info.isolation));
    }
    ui::line(&format!("state     {}", state.path().display()));
    ui::line(&format!("policies  {}{}", policies.display(), policies_note(policies)));
    if live.is_none() {
        let log = state.logs().join("serve.log");
        ui::note(&format!("the control plane does not answer yet; `{}` may say why", log.display()));
    }
    if !matches!(state::read_halt(&state.halt_file()), Ok(None)) {
        ui::line("HALTED    nothing new starts until `troop resume --reason …`; `troop status` tells by whom");
    }
    let troop = command(state);
    ui::line(&format!(
        "next      from another terminal: `troop sample-app --write hello`, then `{troop} deploy hello-web --image hello --team demo`"
    ));
    ui::line(&format!(
        "          `{troop} ps`, `{troop} status`, `{troop} curl hello-web /`; Ctrl-C here ends everything"
    ));
}

/// How a person reaches this state folder: its flag only where it is needed.
fn command(state: &StateDir) -> String {
    match StateDir::find(None, context::env) {
        Ok(usual) if usual == *state => "troop".to_owned(),
        Ok(_) | Err(_) => format!("troop --state {}", state.path().display()),
    }
}

async fn answer(state: &StateDir) -> Option<LiveView> {
    let client = context::client(state);
    let asking = async {
        loop {
            if let Ok(live) = client.get::<LiveView>("live").await {
                return live;
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    };
    tokio::time::timeout(ANSWERS_WITHIN, asking).await.ok()
}

/// Read here, with the eyes of the control plane, which at its first answer may not have read them yet.
fn policies_note(folder: &Path) -> String {
    let found = policy_store::load(folder);
    let bad = found.files.iter().filter(|file| file.result.is_err()).count();
    match (found.problem, found.files.len(), bad) {
        (Some(_), _, _) => "  (CANNOT BE READ: `troop status` says why)".to_owned(),
        (None, 0, _) => "  (none yet: no monkey touches anything; `troop policy init --team T` writes one)".to_owned(),
        (None, all, 0) => format!("  ({all} in force)"),
        (None, all, bad) => format!("  ({} in force, {bad} BAD: `troop status` says why)", all - bad),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn up(policies: Option<PathBuf>) -> UpArgs {
        UpArgs {
            isolation: Isolation::Auto,
            policies,
            site: None,
            port: None,
            boot_delay: Duration::ZERO,
            grace: Duration::ZERO,
        }
    }

    #[test]
    fn the_policies_are_ours_unless_named_and_source_code_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::find(Some(&dir.path().join("state")), |_| None).unwrap();
        let site = Site::embedded_default();
        let own = policies(&up(None), &site, &state).unwrap();
        assert_eq!(own, state.path().join("policies"));
        assert!(own.is_dir());
        let missing = policies(&up(Some(dir.path().join("none"))), &site, &state).unwrap_err();
        assert_eq!(missing.code, Code::Input);
        std::fs::write(dir.path().join("Cargo.toml"), "").unwrap();
        assert!(policies(&up(Some(dir.path().to_owned())), &site, &state).unwrap_err().what.contains("source code"));
    }
}
