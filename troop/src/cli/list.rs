//! `ps`, `images` and `pushes`: what there is.

use clap::Args;
use serde::Serialize;
use troop_policies::{ClusterName, file};

use super::args::Output;
use super::context::{self, Context};
use crate::api::types::{ImageView, InstanceView, PushView};
use crate::clock;
use crate::exit::{CliError, Code};
use crate::state::StateDir;
use crate::ui;
use crate::views::running;

/// Pushes read from the ledger while nothing runs, and shown at all.
pub(super) const PUSHES_SHOWN: u32 = 200;

/// List instances: zone, registry, health, traffic
#[derive(Debug, Args)]
pub(super) struct PsArgs {
    /// Only instances of this cluster
    cluster: Option<ClusterName>,
    #[command(flatten)]
    output: Output,
}

/// List the images that are stored
#[derive(Debug, Args)]
pub(super) struct ImagesArgs {
    #[command(flatten)]
    output: Output,
}

/// List pushes, the newest first
///
/// Works while nothing runs: it then reads the ledger.
#[derive(Debug, Args)]
pub(super) struct PushesArgs {
    /// Only pushes of this cluster
    cluster: Option<ClusterName>,
    #[command(flatten)]
    output: Output,
}

pub(super) async fn ps(cx: &Context, args: &PsArgs) -> Result<Code, CliError> {
    let state = cx.state()?;
    let mut views: Vec<InstanceView> = context::client(&state).get("instances").await?;
    if let Some(cluster) = &args.cluster {
        known(cluster, views.iter().map(|v| v.group.cluster()), "no instance of cluster")?;
        views.retain(|v| v.group.cluster() == cluster);
    }
    let text = |views: &[InstanceView]| running::instances(views, clock::real_now());
    print(&views, args.output, text, "no instance runs; `troop deploy CLUSTER --image DIR --team T` starts some");
    Ok(Code::Ok)
}

pub(super) async fn images(cx: &Context, args: &ImagesArgs) -> Result<Code, CliError> {
    let state = cx.state()?;
    let views: Vec<ImageView> = context::client(&state).get("images").await?;
    print(&views, args.output, running::images, "no image is stored; `troop deploy` stores the one it is given");
    Ok(Code::Ok)
}

pub(super) async fn pushes(cx: &Context, args: &PushesArgs) -> Result<Code, CliError> {
    let state = cx.state()?;
    let mut views = match context::if_running(context::client(&state).get("pushes").await)? {
        Some(views) => views,
        None => stored_pushes(&state).await?,
    };
    if let Some(cluster) = &args.cluster {
        known(cluster, views.iter().map(|v| &v.cluster), "no push of cluster")?;
        views.retain(|v| v.cluster == *cluster);
    }
    views.sort_by_key(|view| std::cmp::Reverse(view.push));
    print(
        &views,
        args.output,
        running::pushes,
        "nothing was pushed yet; `troop deploy CLUSTER --image DIR --team T` does",
    );
    Ok(Code::Ok)
}

/// The pushes as the ledger has them, for when nothing runs.
pub(super) async fn stored_pushes(state: &StateDir) -> Result<Vec<PushView>, CliError> {
    let ledger = context::ledger_that_is_there(state).await?;
    let rows = ledger.pushes(PUSHES_SHOWN).await?;
    ui::note("the control plane does not run; this is what the ledger says");
    rows.iter().map(|row| running::push_of(row).map_err(|why| CliError::new(Code::Unavailable, why))).collect()
}

/// An error with the most similar name, when `cluster` is not among those there are.
pub(super) fn known<'a>(
    cluster: &ClusterName,
    all: impl Iterator<Item = &'a ClusterName> + Clone,
    what: &str,
) -> Result<(), CliError> {
    if all.clone().any(|c| c == cluster) {
        return Ok(());
    }
    let near = file::nearest(cluster.as_str(), all.map(ClusterName::as_str));
    let hint =
        near.map_or_else(|| "`troop ps` lists what there is".to_owned(), |near| format!("did you mean `{near}`?"));
    Err(CliError::new(Code::Input, format!("there is {what} `{cluster}`")).hint(hint))
}

fn print<T: Serialize>(views: &[T], output: Output, text: impl Fn(&[T]) -> String, empty: &str) {
    if output.is_json() {
        views.iter().for_each(ui::json);
    } else if views.is_empty() {
        ui::note(empty);
    } else {
        ui::line(&text(views));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_cluster_is_told_with_the_nearest() {
        let all: Vec<ClusterName> = ["hello-web", "quiet-web"].map(|c| c.parse().unwrap()).into();
        assert!(known(&all[0], all.iter(), "no push of cluster").is_ok());
        let error = known(&"helo-web".parse().unwrap(), all.iter(), "no push of cluster").unwrap_err();
        assert_eq!(error.to_string(), "there is no push of cluster `helo-web`");
        assert_eq!(error.hint.as_deref(), Some("did you mean `hello-web`?"));
    }
}
