//! `troop curl`: one request through the balancer, as a client of the cluster would send it.

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use clap::Args;
use troop_policies::{ClusterName, GroupName};

use super::context::{self, Context};
use super::list;
use crate::api::types::InstanceView;
use crate::exit::{CliError, Code};
use crate::state::StateDir;
use crate::supervisor::UpInfo;
use crate::ui;

/// A person waits no longer; the balancer itself gives up on an instance earlier.
const WITHIN: Duration = Duration::from_secs(30);
/// Set by the balancer on every answer.
const GROUP_HEADER: &str = "x-troop-group";
const INSTANCE_HEADER: &str = "x-troop-instance";
/// Set by the balancer on an answer of its own.
const FAILURE_HEADER: &str = "x-troop-failure";

/// Send one GET to a cluster through the balancer
///
/// The body goes to stdout, the status and who answered to stderr. Exit 5 for a status of 500 or above.
#[derive(Debug, Args)]
pub(super) struct CurlArgs {
    /// Such as hello-web
    cluster: ClusterName,
    /// Such as /version
    #[arg(default_value = "/")]
    path: String,
}

pub(super) async fn run(cx: &Context, args: &CurlArgs) -> Result<Code, CliError> {
    let state = cx.state()?;
    let up = up_info(&state)?;
    // The balancer sends an unknown Host to the cluster pushed first, which would answer for the one that was meant.
    if let Some(views) = context::if_running(context::client(&state).get::<Vec<InstanceView>>("instances").await)? {
        list::known(&args.cluster, views.iter().map(|v| v.group.cluster()), "no instance of cluster")?;
    }
    let slash = if args.path.starts_with('/') { "" } else { "/" };
    let url = format!("http://{}{slash}{}", up.balancer, args.path);
    let client =
        reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).timeout(WITHIN).build();
    let client = client.map_err(|e| CliError::of(Code::Unavailable, &e))?;
    let began = tokio::time::Instant::now();
    let sent = client.get(&url).header(http::header::HOST, args.cluster.as_str()).send().await;
    let mut answer = sent.map_err(|e| unanswered(&up, &e))?;
    let header = |name: &str| answer.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
    let (group, instance, failure) = (header(GROUP_HEADER), header(INSTANCE_HEADER), header(FAILURE_HEADER));
    other_cluster(&args.cluster, group.as_deref())?;
    let status = answer.status();
    let is_terminal = io::stdout().is_terminal();
    let mut ends_line = true;
    while let Some(chunk) = answer.chunk().await.map_err(|e| unanswered(&up, &e))? {
        ends_line = chunk.ends_with(b"\n");
        if is_terminal {
            ui::data(ui::harmless(&String::from_utf8_lossy(&chunk)));
        } else {
            ui::data(&chunk);
        }
    }
    if is_terminal && !ends_line {
        ui::data("\n");
    }
    let who = match (group, instance, failure) {
        (_, _, Some(failure)) => format!("from the balancer itself: {}", failure.replace('_', " ")),
        (Some(group), Some(instance), None) => format!("from {instance} of {group}"),
        (Some(who), None, None) | (None, Some(who), None) => format!("from {who}"),
        (None, None, None) => "from somebody unknown".to_owned(),
    };
    ui::note(&format!("{status} {who}, {:.1} ms", began.elapsed().as_secs_f64() * 1_000.0));
    Ok(if status.is_server_error() { Code::CheckFalse } else { Code::Ok })
}

/// Where the balancer listens.
pub(super) fn up_info(state: &StateDir) -> Result<UpInfo, CliError> {
    let path = state.up_file();
    let away = || {
        let what = format!("nothing runs in `{}`: there is no balancer to ask", state.path().display());
        CliError::new(Code::Unavailable, what).hint("start it with `troop up`, or name its folder with `--state DIR`")
    };
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(away()),
        Err(e) => return Err(CliError::new(Code::Unavailable, format!("could not read `{}`: {e}", path.display()))),
    };
    serde_json::from_slice(&bytes)
        .map_err(|e| CliError::new(Code::Unavailable, format!("`{}` cannot be understood: {e}", path.display())))
}

fn unanswered(up: &UpInfo, e: &reqwest::Error) -> CliError {
    // What lies between, the HTTP client's own layers, says nothing to a person.
    let mut cause: &dyn std::error::Error = e;
    while let Some(source) = cause.source() {
        cause = source;
    }
    CliError::new(Code::Unavailable, format!("the balancer at {} did not answer: {cause}", up.balancer))
        .hint("`troop status` says whether it runs; one that was killed leaves its address behind")
}

fn other_cluster(asked: &ClusterName, group: Option<&str>) -> Result<(), CliError> {
    let answered = group.and_then(|g| GroupName::new(g).ok());
    match answered {
        Some(group) if group.cluster() != asked => {
            let what = format!(
                "nothing serves `{asked}`: the balancer sent it to `{}`, which was pushed first",
                group.cluster()
            );
            Err(CliError::new(Code::Input, what).hint("`troop ps` lists what there is"))
        }
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_another_cluster_is_no_answer() {
        let asked = "hello-web".parse().unwrap();
        assert!(other_cluster(&asked, Some("hello-web-v003")).is_ok());
        assert!(other_cluster(&asked, None).is_ok());
        assert_eq!(other_cluster(&asked, Some("quiet-web-v000")).unwrap_err().code, Code::Input);
    }

    #[test]
    fn without_a_supervisor_the_error_says_what_to_type() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::find(Some(dir.path()), |_| None).unwrap();
        let error = up_info(&state).unwrap_err();
        assert_eq!(error.code, Code::Unavailable);
        assert!(error.hint.unwrap().contains("troop up"));
    }
}
