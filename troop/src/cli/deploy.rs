//! `deploy` and `rollback`: a request to the control plane, then its push, followed.

use std::path::Path;
use std::time::Duration;

use clap::Args;
use troop_policies::{ClusterName, ImageId, Location, TeamName, file};

use super::args::{self, Output};
use super::context::{self, Context};
use super::follow::{self, Goal};
use super::list;
use crate::api::types::{DeployAnswer, DeployRequest, ImageView, PushView, RollbackAnswer, RollbackRequest};
use crate::client::{ACT_WITHIN, Client};
use crate::exit::{CliError, Code};
use crate::ui;
use crate::views::running;

/// What storing an image may take on top of an act: a gigabyte is copied and hashed.
const DEPLOY_WITHIN: Duration = ACT_WITHIN.saturating_mul(3);

/// Push a new version of a cluster beside the old one, and move traffic to it
///
/// A new group is made and grown, waited for until it is ready, given all traffic at once, and judged; the old group
/// stays warm as the way back. The command follows until the soak has ended well. Ctrl-C leaves the push running.
/// Exit 0 when the new version serves, 5 when it went back or was cancelled, 3 when it is refused or held by a halt.
#[derive(Debug, Args)]
pub(super) struct DeployArgs {
    /// Such as checkout-web: app, stack and detail, without a version
    cluster: ClusterName,
    /// A folder or tarball with a troop-image.toml at its root, or the id or name-version of a stored image
    #[arg(long, value_name = "IMAGE")]
    image: String,
    /// Where; needed at the first push on a site of several accounts or regions, or where several have the cluster
    #[arg(long = "in", value_name = "ACCOUNT/REGION")]
    location: Option<Location>,
    /// The team that owns the cluster (tag troop:team); needed at the first push only
    #[arg(long, value_name = "TEAM")]
    team: Option<TeamName>,
    /// Instances at a cluster's first push [default: 3]; later ones take the serving group's count
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    size: Option<u32>,
    /// How long the old group is kept as the way back after the soak [default: 12h]
    #[arg(long, value_name = "DURATION", value_parser = args::span, help_heading = "Safety")]
    watch: Option<Duration>,
    /// How long the new group is judged before the next push may come [default: 5m; on AWS 10m, the least there]
    #[arg(long, value_name = "DURATION", value_parser = args::span, help_heading = "Safety")]
    soak: Option<Duration>,
    /// How long it may take to become ready before it is given up [default: 10m]
    #[arg(long, value_name = "DURATION", value_parser = args::span, help_heading = "Safety")]
    ready_within: Option<Duration>,
    /// Go back when more of its answers than this are errors [default: 5%]
    #[arg(long, value_name = "PERCENT", value_parser = args::percent, help_heading = "Safety")]
    errors_above: Option<u32>,
    /// How long open connections to the old group may take to end [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = args::span, help_heading = "Safety")]
    drain: Option<Duration>,
    /// Only print the steps, and the API calls that each will make
    #[arg(long, help_heading = "Safety")]
    plan: bool,
    /// Do not follow the push
    #[arg(long)]
    detach: bool,
    #[command(flatten)]
    output: Output,
}

/// Move traffic back to where it was before a push
///
/// Acts on the newest push that has not ended: one that has not flipped is cancelled, and no traffic moves. Never
/// refused for a lock, a leash or a halt. Exit 0 when traffic is back, 3 when there is nothing to go back to.
#[derive(Debug, Args)]
pub(super) struct RollbackArgs {
    /// Such as checkout-web
    cluster: ClusterName,
    /// This push, as `troop pushes` numbers them
    #[arg(long, value_name = "N")]
    push: Option<u64>,
    /// Why, for the ledger
    #[arg(long, value_name = "WORDS", value_parser = args::reason, required_unless_present = "plan", help_heading = "Safety")]
    reason: Option<String>,
    /// Only print the steps, and the API calls that each will make
    #[arg(long, help_heading = "Safety")]
    plan: bool,
    /// Do not follow it
    #[arg(long)]
    detach: bool,
    #[command(flatten)]
    output: Output,
}

pub(super) async fn deploy(cx: &Context, args: DeployArgs) -> Result<Code, CliError> {
    let state = cx.state()?;
    let client = context::client(&state);
    let request = DeployRequest {
        cluster: args.cluster,
        image: image(&client, &args.image).await?,
        location: args.location,
        team: args.team,
        size: args.size,
        watch: args.watch,
        soak: args.soak,
        ready_within: args.ready_within,
        errors_above: args.errors_above,
        drain: args.drain,
        plan: args.plan,
    };
    let answer: DeployAnswer = client.post("deploy", &request, DEPLOY_WITHIN).await?;
    tell(&answer, args.output, running::deploy);
    if let Some(why) = answer.leashed {
        return Err(CliError::new(Code::Refused, format!("{why}; nothing of it is done")).hint(
            "`troop status` shows what is missing; `leashed = false` in the site file, once what it would do is what you want",
        ));
    }
    match answer.push {
        Some(push) if !args.detach => followed(&client, push, &answer.cluster, Goal::Serving, args.output).await,
        Some(_) => {
            ui::note(&format!("`troop pushes {}` shows how it goes", answer.cluster));
            Ok(Code::Ok)
        }
        None => Ok(Code::Ok),
    }
}

pub(super) async fn rollback(cx: &Context, args: RollbackArgs) -> Result<Code, CliError> {
    let state = cx.state()?;
    let client = context::client(&state);
    let cluster = args.cluster;
    let reason = args.reason.unwrap_or_else(|| "planned only".to_owned());
    let request = RollbackRequest { cluster: cluster.clone(), push: args.push, reason, plan: args.plan };
    let answered = client.post::<RollbackAnswer>("rollback", &request, ACT_WITHIN).await;
    let answer = match answered {
        Ok(answer) => answer,
        Err(e) => return Err(with_nearest(&client, &cluster, e.into()).await),
    };
    tell(&answer, args.output, |answer| running::rollback(answer, args.plan));
    if args.plan {
        return Ok(Code::Ok);
    }
    if args.detach {
        ui::note(&format!("`troop pushes {cluster}` shows how it goes"));
        return Ok(Code::Ok);
    }
    followed(&client, answer.push, &cluster, Goal::Back, args.output).await
}

/// A cluster that nobody ever pushed has most likely another name.
async fn with_nearest(client: &Client, cluster: &ClusterName, error: CliError) -> CliError {
    if !matches!(error.code, Code::Refused | Code::Input) {
        return error;
    }
    let Ok(views) = client.get::<Vec<PushView>>("pushes").await else { return error };
    let unknown = list::known(cluster, views.iter().map(|v| &v.cluster), "no push of cluster");
    unknown.err().unwrap_or(error)
}

fn tell<T: serde::Serialize>(answer: &T, output: Output, text: impl Fn(&T) -> String) {
    if output.is_json() {
        ui::json(answer);
    } else {
        ui::line(&text(answer));
    }
}

async fn followed(
    client: &Client,
    push: u64,
    cluster: &ClusterName,
    goal: Goal,
    output: Output,
) -> Result<Code, CliError> {
    let (view, end) = follow::follow(client, push, cluster, goal).await?;
    if output.is_json() {
        ui::json(&view);
        if end.code == Code::Ok {
            return Ok(Code::Ok);
        }
    }
    follow::report(end)
}

/// What the control plane shall take for the image: an absolute path, or an id.
async fn image(client: &Client, text: &str) -> Result<String, CliError> {
    let path = Path::new(text);
    if path.exists() {
        let absolute = path.canonicalize();
        let absolute = absolute.map_err(|e| CliError::new(Code::Input, format!("could not find `{text}`: {e}")))?;
        return Ok(absolute.display().to_string());
    }
    if text.starts_with("ami-") && ImageId::new(text).is_ok() {
        return Ok(text.to_owned());
    }
    if text.contains('/') {
        return Err(CliError::new(Code::Input, format!("there is no folder or tarball `{text}`"))
            .hint("give a folder or tarball with a troop-image.toml at its root; `troop sample-app --write DIR` makes one to try"));
    }
    named(text, &client.get::<Vec<ImageView>>("images").await?)
}

/// A stored image by its name and version, as `troop images` shows them; of several the newest.
fn named(text: &str, images: &[ImageView]) -> Result<String, CliError> {
    let name = |image: &ImageView| format!("{}-{}", image.name, image.version);
    let newest = images.iter().filter(|i| name(i) == text).max_by_key(|i| i.created_at);
    if let Some(image) = newest {
        return Ok(image.image.to_string());
    }
    let names: Vec<_> = images.iter().map(name).collect();
    let hint = file::nearest(text, names.iter().map(String::as_str)).map_or_else(
        || "`troop images` lists what is stored; `troop sample-app --write DIR` makes a folder to try".to_owned(),
        |near| format!("did you mean `{near}`?"),
    );
    Err(CliError::new(Code::Input, format!("there is no folder, tarball or stored image `{text}`")).hint(hint))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::StateDir;

    fn stored(id: &str, version: &str, day: u32) -> ImageView {
        ImageView {
            schema: 1,
            image: id.parse().unwrap(),
            name: "hello".to_owned(),
            version: version.to_owned(),
            created_at: format!("2026-11-{day:02}T10:00:00Z").parse().unwrap(),
        }
    }

    #[test]
    fn a_stored_image_is_named_by_its_version_and_the_newest_counts() {
        let images = [stored("ami-1", "1.0.0", 1), stored("ami-3", "1.0.0", 3), stored("ami-2", "2.0.0", 2)];
        assert_eq!(named("hello-1.0.0", &images).unwrap(), "ami-3");
        let error = named("hello-1.0.1", &images).unwrap_err();
        assert!(error.hint.unwrap().starts_with("did you mean `hello-"));
        assert_eq!(named("x", &[]).unwrap_err().code, Code::Input);
    }

    #[tokio::test]
    async fn a_path_is_made_absolute_and_a_missing_one_is_told_before_anybody_is_asked() {
        let dir = tempfile::tempdir().unwrap();
        let client = Client::new(&StateDir::find(Some(dir.path()), |_| None).unwrap());
        let path = dir.path().join("image");
        std::fs::create_dir(&path).unwrap();
        let crooked = dir.path().join("image/../image");
        let found = image(&client, crooked.to_str().unwrap()).await.unwrap();
        assert_eq!(found, path.canonicalize().unwrap().display().to_string());
        assert_eq!(image(&client, "ami-0123456789abcdef0").await.unwrap(), "ami-0123456789abcdef0");
        let error = image(&client, "./nowhere").await.unwrap_err();
        assert_eq!(error.code, Code::Input);
    }
}
