//! Follows a push by asking for it, until what the command wanted has come true or will not.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
use troop_policies::ClusterName;

use super::progress::Progress;
use crate::api::types::{PushTraffic, PushView};
use crate::client::{Client, ClientError};
use crate::exit::{CliError, Code};
use crate::ui;
use crate::views::running::answered;
use crate::views::time;

/// How often it is asked for: a flip takes milliseconds, but nobody reads faster.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// A control plane that is away is started again within seconds, and the push goes on with it.
const AWAY_MAX: Duration = Duration::from_secs(60);
/// How a push that a halt holds says so, at the beginning of its note.
const HELD: &str = "held:";

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    /// The new group serves and its soak has ended well.
    Serving,
    /// Traffic is where it was before, or never moved.
    Back,
}

/// How the waiting ended: the last line, and the exit code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct End {
    pub(super) code: Code,
    pub(super) text: String,
    pub(super) hint: Option<String>,
}

/// Waits for `push`, telling each phase on stderr, and returns its last view with the end.
pub(super) async fn follow(
    client: &Client,
    push: u64,
    cluster: &ClusterName,
    goal: Goal,
) -> Result<(PushView, End), CliError> {
    let mut progress = Progress::new();
    let mut told = Told::new(goal);
    let mut away: Option<Instant> = None;
    let mut interrupt = signal(SignalKind::interrupt())
        .map_err(|e| CliError::new(Code::Unavailable, format!("could not watch for signals: {e}")))?;
    loop {
        let answered = tokio::select! {
            answered = client.get::<Vec<PushView>>("pushes") => answered,
            _ = interrupt.recv() => return Err(left(push, cluster)),
        };
        match answered {
            Ok(views) => {
                if away.take().is_some() {
                    progress.line("the control plane is back");
                }
                let view = views.into_iter().find(|v| v.push == push);
                let view =
                    view.ok_or_else(|| CliError::new(Code::Bug, format!("push {push} was begun and is not listed")))?;
                told.tell(&view, &mut progress);
                if let Some(end) = end(&view, goal) {
                    return Ok((view, end));
                }
            }
            Err(e) => still_away(&mut away, e, &mut progress, push)?,
        }
        tokio::select! {
            () = tokio::time::sleep(ASK_EVERY) => {}
            _ = interrupt.recv() => return Err(left(push, cluster)),
        }
    }
}

fn left(push: u64, cluster: &ClusterName) -> CliError {
    CliError::new(Code::LeftBehind, format!("no longer watched; push {push} goes on"))
        .hint(format!("`troop pushes {cluster}` shows it, {}", rollback_hint(cluster, "undoes it")))
}

fn still_away(away: &mut Option<Instant>, e: ClientError, progress: &mut Progress, push: u64) -> Result<(), CliError> {
    let since = *away.get_or_insert_with(|| {
        progress.line(&format!("the control plane is away ({e}); push {push} goes on when it is back"));
        Instant::now()
    });
    if since.elapsed() > AWAY_MAX {
        let error = CliError::from(e);
        return Err(CliError {
            what: format!("{}; push {push} is in the ledger and goes on when it is back", error.what),
            ..error
        });
    }
    Ok(())
}

/// Which phase was told last, and since when it runs.
#[derive(Debug)]
struct Told {
    phase: Option<(String, Instant)>,
    /// A flip takes milliseconds, so it is mostly over before anybody sees it as a phase.
    flip: bool,
    goal: Goal,
    /// What was answered so far, as it was told last: who has judged it says no more of it.
    traffic: Option<PushTraffic>,
}

impl Told {
    fn new(goal: Goal) -> Self {
        Self { phase: None, flip: false, goal, traffic: None }
    }

    fn tell(&mut self, view: &PushView, progress: &mut Progress) {
        let now = Instant::now();
        match &self.phase {
            Some((phase, _)) if *phase == view.phase => {}
            Some((phase, since)) => {
                self.flip |= phase == "flip";
                let judged = self.traffic.take().filter(|_| phase == "soak");
                let answered = judged.map(|traffic| format!(": {}", answered(&traffic))).unwrap_or_default();
                let told = ended_phase(phase, now.duration_since(*since), view, self.goal);
                progress.line(&format!("{told}{answered}"));
                if view.flip_ms.is_some() && !self.flip && self.goal == Goal::Serving && view.phase != "flip" {
                    self.flip = true;
                    progress.line(&ended_phase("flip", Duration::ZERO, view, self.goal));
                }
                self.phase = Some((view.phase.clone(), now));
            }
            None => self.phase = Some((view.phase.clone(), now)),
        }
        self.traffic = view.traffic.or(self.traffic);
        let answered = view.traffic.as_ref().map(|traffic| format!("; {}", answered(traffic))).unwrap_or_default();
        progress.waiting(&format!("{}: {}{answered}", view.phase, view.note));
    }
}

/// One phase that is over. Where the push measured it, its own figure; else how long we saw it.
fn ended_phase(phase: &str, took: Duration, view: &PushView, goal: Goal) -> String {
    let figure = match (phase, view.ready_seconds, view.flip_ms) {
        ("ready", Some(seconds), _) => format!("{} after its start", time::seconds(seconds)),
        ("flip", _, Some(ms)) => format!("{ms:.0} ms"),
        _ => time::seconds(took.as_secs_f64()),
    };
    let goes_back = |phase: &str| phase.starts_with("back") || phase == "cancel" || phase == "stuck";
    let is_bad = matches!(view.result.as_deref(), Some("rolled_back" | "cancelled" | "kept_serving"));
    // What goes back is over as it should be; what was left for it is not.
    match (goes_back(phase), goes_back(&view.phase) || is_bad, goal) {
        (false, true, Goal::Serving) => format!("NO {phase} ({figure}): {}", view.note),
        (false, true, Goal::Back) => format!("-- {phase} is left: {}", view.note),
        (true, _, _) | (false, false, _) => format!("ok {phase} ({figure})"),
    }
}

/// Whether there is nothing more to wait for.
fn end(view: &PushView, goal: Goal) -> Option<End> {
    let (push, cluster, group) = (view.push, &view.cluster, &view.group);
    let over = |code, text: String| Some(End { code, text, hint: None });
    let stands = || format!("push {push}: {}", view.note);
    match (view.result.as_deref(), goal) {
        (Some("rolled_back"), Goal::Serving) => over(Code::CheckFalse, format!("push {push} went back: {}", view.note)),
        (Some("cancelled"), Goal::Serving) => {
            over(Code::CheckFalse, format!("push {push} was cancelled, no traffic moved: {}", view.note))
        }
        (Some("rolled_back"), Goal::Back) => {
            let to = view.previous.as_ref().map_or_else(|| "the group before".to_owned(), ToString::to_string);
            over(Code::Ok, format!("push {push} rolled back: traffic on {to}; {}", view.note))
        }
        (Some("cancelled"), Goal::Back) => {
            over(Code::Ok, format!("push {push} cancelled, no traffic moved: {}", view.note))
        }
        (Some("kept_serving"), _) => over(
            Code::CheckFalse,
            format!("push {push} was judged bad and there is nothing to go back to: {group} serves; {}", view.note),
        ),
        (Some("succeeded" | "superseded"), Goal::Serving) => {
            over(Code::Ok, format!("push {push} serves: {group}; {}", view.note))
        }
        (Some(other), Goal::Back) => over(
            Code::CheckFalse,
            format!("push {push} did not go back, it {}: {}", other.replace('_', " "), view.note),
        ),
        (Some(other), Goal::Serving) => {
            over(Code::CheckFalse, format!("push {push} ended as {}: {}", other.replace('_', " "), view.note))
        }
        (None, _) if view.phase == "stuck" => Some(End {
            code: Code::LeftBehind,
            text: format!("push {push} is stuck, {group} keeps serving: {}", view.note),
            hint: Some(rollback_hint(cluster, "tries again to go back")),
        }),
        (None, _) if view.note.starts_with(HELD) => Some(End {
            code: Code::Refused,
            text: stands(),
            // The note itself names `troop resume`.
            hint: Some(rollback_hint(cluster, "gives it up")),
        }),
        (None, Goal::Serving) if view.phase == "watch" || view.phase == "destroy old" => {
            let until =
                view.watch_until.map(|at| format!(", watched until {}", time::both(at, &jiff::tz::TimeZone::UTC)));
            let undo = rollback_hint(cluster, "undoes it");
            over(Code::Ok, format!("push {push} serves: {group}{}; {undo}", until.unwrap_or_default()))
        }
        (None, Goal::Serving | Goal::Back) => None,
    }
}

fn rollback_hint(cluster: &ClusterName, what: &str) -> String {
    format!("`troop rollback {cluster} --reason …` {what}")
}

/// Prints the end: what is good on stdout, what is not as an error.
pub(super) fn report(end: End) -> Result<Code, CliError> {
    if end.code == Code::Ok {
        ui::line(&end.text);
        return Ok(Code::Ok);
    }
    Err(CliError { what: end.text, hint: end.hint, code: end.code })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(phase: &str, result: Option<&str>) -> PushView {
        PushView {
            schema: 1,
            push: 58,
            cluster: "checkout-web".parse().unwrap(),
            group: "checkout-web-v042".parse().unwrap(),
            previous: Some("checkout-web-v041".parse().unwrap()),
            actor: "ana".to_owned(),
            image: "ami-1".parse().unwrap(),
            version: None,
            started_at: "2026-11-24T10:00:00Z".parse().unwrap(),
            phase: phase.to_owned(),
            note: "a note".to_owned(),
            ended: result.is_some(),
            result: result.map(str::to_owned),
            ready_seconds: Some(3.8),
            flip_ms: Some(11.2),
            traffic: None,
            watch_until: (phase == "watch").then(|| "2026-11-24T22:00:00Z".parse().unwrap()),
        }
    }

    fn code(phase: &str, result: Option<&str>, goal: Goal) -> Option<Code> {
        end(&view(phase, result), goal).map(|e| e.code)
    }

    #[test]
    fn a_deploy_is_done_when_its_soak_has_ended_well_and_says_how_to_undo() {
        for phase in ["create", "ready", "flip", "disable old", "soak", "back: enable", "cancel"] {
            assert_eq!(code(phase, None, Goal::Serving), None, "{phase}");
        }
        let done = end(&view("watch", None), Goal::Serving).unwrap();
        assert_eq!(done.code, Code::Ok);
        assert_eq!(
            done.text,
            "push 58 serves: checkout-web-v042, watched until Tue 2026-11-24 22:00:00 UTC; \
             `troop rollback checkout-web --reason …` undoes it"
        );
        assert_eq!(code("ended", Some("superseded"), Goal::Serving), Some(Code::Ok));
    }

    #[test]
    fn a_deploy_that_went_back_was_cancelled_or_kept_serving_is_exit_5() {
        for result in ["rolled_back", "cancelled", "kept_serving", "something_new"] {
            assert_eq!(code("kept", Some(result), Goal::Serving), Some(Code::CheckFalse), "{result}");
        }
    }

    #[test]
    fn a_rollback_is_done_when_traffic_is_back_or_never_moved() {
        for phase in ["soak", "watch", "back: enable", "back: flip", "cancel"] {
            assert_eq!(code(phase, None, Goal::Back), None, "{phase}");
        }
        assert_eq!(code("kept", Some("rolled_back"), Goal::Back), Some(Code::Ok));
        assert_eq!(code("kept", Some("cancelled"), Goal::Back), Some(Code::Ok));
        assert_eq!(code("ended", Some("superseded"), Goal::Back), Some(Code::CheckFalse));
        assert_eq!(code("ended", Some("kept_serving"), Goal::Back), Some(Code::CheckFalse));
    }

    #[test]
    fn a_push_that_is_stuck_or_held_says_what_to_type() {
        let stuck = end(&view("stuck", None), Goal::Back).unwrap();
        assert_eq!(stuck.code, Code::LeftBehind);
        assert!(stuck.hint.unwrap().contains("troop rollback checkout-web"));
        let held = PushView { note: "held: halted; …".to_owned(), ..view("ready", None) };
        let held = end(&held, Goal::Serving).unwrap();
        assert_eq!(held.code, Code::Refused);
        assert!(held.hint.unwrap().contains("troop rollback"));
    }

    #[test]
    fn a_phase_is_told_with_the_figure_that_the_push_measured() {
        let told = |phase: &str, now: &str, result, goal| {
            ended_phase(phase, Duration::from_millis(4_200), &view(now, result), goal)
        };
        assert_eq!(told("create", "ready", None, Goal::Serving), "ok create (4.2 s)");
        assert_eq!(told("ready", "flip", None, Goal::Serving), "ok ready (3.8 s after its start)");
        assert_eq!(told("flip", "disable old", None, Goal::Serving), "ok flip (11 ms)");
        assert_eq!(told("soak", "back: enable", None, Goal::Serving), "NO soak (4.2 s): a note");
        assert_eq!(told("create", "kept", Some("cancelled"), Goal::Serving), "NO create (4.2 s): a note");
        assert_eq!(told("watch", "back: enable", None, Goal::Back), "-- watch is left: a note");
        assert_eq!(told("back: enable", "kept", Some("rolled_back"), Goal::Back), "ok back: enable (4.2 s)");
        assert_eq!(told("soak", "watch", None, Goal::Serving), "ok soak (4.2 s)");
    }
}
