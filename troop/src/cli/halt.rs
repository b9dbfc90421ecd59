//! `halt`, `resume` and `clear`: what a person says to every monkey and push at once, or about one scope.

use std::sync::Arc;

use clap::Args;
use jiff::tz::TimeZone;
use troop_ledger::{EventFilter, Ledger, LedgerError, Stamp};
use troop_policies::situation::Halted;

use super::args;
use super::context::{self, Context};
use crate::api::router::{ClearRequest, DoneAnswer, WhyRequest};
use crate::client::{ACT_WITHIN, ASK_WITHIN};
use crate::clock;
use crate::exit::{CliError, Code};
use crate::records::{MARK_UNHEALED, Record};
use crate::serve::core::event;
use crate::state::{self, StateDir};
use crate::ui;
use crate::views::time;
use crate::world::chain;

/// Stop everything: nothing new starts until `troop resume`
///
/// Writes one file and needs nobody, so that it works while the control plane is dead. It survives restarts. Undo,
/// watching and clearing go on.
#[derive(Debug, Args)]
pub(super) struct HaltArgs {
    /// Why, for the ledger and for whoever finds it halted
    #[arg(long, value_name = "WORDS", value_parser = args::reason_to_stop, help_heading = "Safety")]
    reason: String,
}

/// End a halt
#[derive(Debug, Args)]
pub(super) struct ResumeArgs {
    /// Why it is safe again, for the ledger
    #[arg(long, value_name = "WORDS", value_parser = args::reason, help_heading = "Safety")]
    reason: String,
}

/// End the sparing of a scope that has not healed
///
/// Drawn and demanded kills of the scope may then come again.
#[derive(Debug, Args)]
pub(super) struct ClearArgs {
    /// The scope as `troop status` and `troop plan` show it, such as local/r1/hello-web
    #[arg(value_name = "DRAW_KEY")]
    draw_key: String,
    /// What was found and done, for the ledger
    #[arg(long, value_name = "WORDS", value_parser = args::reason, help_heading = "Safety")]
    reason: String,
}

pub(super) async fn halt(cx: &Context, args: &HaltArgs) -> Result<Code, CliError> {
    let state = there(cx)?;
    let halt_file = state.halt_file();
    let stands = match state::read_halt(&halt_file) {
        Ok(None) => None,
        Ok(Some(halted)) => {
            let since = time::both(halted.at, &TimeZone::UTC);
            Some(format!("halted already, since {since} by {}: {}; that halt stands", halted.who, halted.why))
        }
        // Unreadable halts too, and is written anew, so that people can read why.
        Err(_) => None,
    };
    let halted = Halted { who: context::own_name(), at: clock::real_now(), why: args.reason.clone() };
    // The file first: from here on it is true, whatever becomes of the rest.
    state::write_halt(&halt_file, &halted)
        .map_err(|e| CliError::from(e).hint("NOTHING IS HALTED; run this as the user who runs `troop up`"))?;
    ui::line(&stands.unwrap_or_else(|| "halted: nothing new starts, until `troop resume --reason …`".to_owned()));
    let told = context::client(&state)
        .post::<DoneAnswer>("halt", &WhyRequest { reason: args.reason.clone() }, ASK_WITHIN)
        .await;
    match told {
        Ok(_) => {}
        Err(e) if e.is_not_running() => ui::note("the control plane does not run; the halt holds when it starts"),
        Err(e) => ui::note(&format!("the control plane was not told ({}); it looks at the file by itself", chain(&e))),
    }
    Ok(Code::Ok)
}

/// The state folder, which must be there: to halt in a wrong one would halt nothing.
fn there(cx: &Context) -> Result<StateDir, CliError> {
    let state = cx.state()?;
    if context::exists(&state) {
        return Ok(state);
    }
    let what = format!("there is no state folder `{}`: nothing of Troop runs there", state.path().display());
    Err(CliError::new(Code::Input, what).hint("name the folder of your `troop up` with `--state DIR`"))
}

pub(super) async fn resume(cx: &Context, args: &ResumeArgs) -> Result<Code, CliError> {
    let state = there(cx)?;
    let request = WhyRequest { reason: args.reason.clone() };
    let told = context::client(&state).post::<DoneAnswer>("resume", &request, ACT_WITHIN).await;
    if context::if_running(told)?.is_some() {
        ui::line("resumed");
        return Ok(Code::Ok);
    }
    resume_alone(&state, &args.reason).await
}

/// Ends a halt while no control plane runs: the ledger's rows are ours to write, so that no reason is lost.
async fn resume_alone(state: &StateDir, reason: &str) -> Result<Code, CliError> {
    let halt_file = state.halt_file();
    let halted = match state::read_halt(&halt_file) {
        Ok(None) => return Err(CliError::new(Code::Refused, "nothing is halted")),
        Ok(Some(halted)) => halted,
        Err(why) => Halted { who: "unknown".to_owned(), at: clock::real_now(), why },
    };
    let who = context::own_name();
    let recorded = match open_to_write(state).await {
        Ok(Some(ledger)) => {
            let followed = follow(&ledger, &halted).await;
            state::remove_halt(&halt_file)?;
            let resumed = Record::Resumed { who: who.clone(), why: reason.to_owned() };
            let appended = ledger.append(event(&resumed, Some(&who))).await;
            ledger.close().await;
            followed.and(appended.map(drop))
        }
        Ok(None) => {
            state::remove_halt(&halt_file)?;
            ui::note("there is no ledger here yet, so the reason is kept nowhere");
            Ok(())
        }
        Err(e) => {
            state::remove_halt(&halt_file)?;
            Err(e)
        }
    };
    ui::line("resumed; the control plane does not run, so nothing starts before it does");
    match recorded {
        Ok(()) => Ok(Code::Ok),
        Err(e) => Err(CliError::new(
            Code::LeftBehind,
            format!("the halt is over, but its end is not in the ledger: {}", chain(&e)),
        )),
    }
}

async fn open_to_write(state: &StateDir) -> Result<Option<Ledger>, LedgerError> {
    if !state.ledger().exists() {
        return Ok(None);
    }
    let clock = Arc::new(|| Stamp { at: clock::real_now(), real_at: clock::real_now() });
    Ledger::open(&state.ledger(), clock).await.map(Some)
}

/// The halt's own row, where it has none yet, so that the two never stand in the wrong order.
async fn follow(ledger: &Ledger, halted: &Halted) -> Result<(), LedgerError> {
    let newest = EventFilter {
        kinds: vec!["halted".to_owned(), "resumed".to_owned()],
        newest_first: true,
        limit: Some(1),
        ..EventFilter::default()
    };
    if ledger.events(&newest).await?.first().is_some_and(|e| e.kind == "halted") {
        return Ok(());
    }
    let record = Record::Halted { who: halted.who.clone(), why: halted.why.clone() };
    ledger.append(event(&record, Some(&halted.who))).await.map(drop)
}

pub(super) async fn clear(cx: &Context, args: &ClearArgs) -> Result<Code, CliError> {
    let state = there(cx)?;
    let request = ClearRequest { draw_key: args.draw_key.clone(), reason: args.reason.clone() };
    let told = context::client(&state).post::<DoneAnswer>("clear", &request, ACT_WITHIN).await;
    match told {
        Ok(_) => {
            ui::line(&format!("{}: cleared; it may be drawn again", args.draw_key));
            Ok(Code::Ok)
        }
        Err(e) => Err(with_nearest(&state, &args.draw_key, e.into()).await),
    }
}

/// A cluster's name is what people type; the draw key is what is meant.
async fn with_nearest(state: &StateDir, draw_key: &str, error: CliError) -> CliError {
    if error.code != Code::Input {
        return error;
    }
    let Ok(Some(ledger)) = context::ledger(state).await else { return error };
    let marked: Vec<_> = ledger.marks(MARK_UNHEALED).await.unwrap_or_default().into_iter().map(|m| m.key).collect();
    let near = marked.iter().find(|key| key.rsplit('/').next() == Some(draw_key)).map(String::as_str);
    match near.or_else(|| troop_policies::file::nearest(draw_key, marked.iter().map(String::as_str))) {
        Some(near) => error.hint(format!("did you mean `{near}`?")),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn scene(with_ledger: bool) -> (tempfile::TempDir, Context, StateDir) {
        let dir = tempfile::tempdir().unwrap();
        let cx = Context::new(Some(dir.path().to_owned()));
        let state = cx.state().unwrap();
        if with_ledger {
            let clock = Arc::new(|| Stamp { at: clock::real_now(), real_at: clock::real_now() });
            Ledger::open(&state.ledger(), clock).await.unwrap().close().await;
        }
        (dir, cx, state)
    }

    async fn kinds(state: &StateDir) -> Vec<String> {
        let ledger = Ledger::open_read_only(&state.ledger()).await.unwrap();
        ledger.events(&EventFilter::default()).await.unwrap().into_iter().map(|e| e.kind).collect()
    }

    fn halt_args() -> HaltArgs {
        HaltArgs { reason: "fire".to_owned() }
    }

    fn resume_args() -> ResumeArgs {
        ResumeArgs { reason: "it is out".to_owned() }
    }

    #[tokio::test]
    async fn a_halt_and_its_end_need_nobody_and_both_reach_the_ledger_in_order() {
        let (_dir, cx, state) = scene(true).await;
        assert_eq!(halt(&cx, &halt_args()).await, Ok(Code::Ok));
        assert_eq!(state::read_halt(&state.halt_file()).unwrap().unwrap().why, "fire");
        assert_eq!(resume(&cx, &resume_args()).await, Ok(Code::Ok));
        assert_eq!(state::read_halt(&state.halt_file()), Ok(None));
        assert_eq!(kinds(&state).await, ["halted", "resumed"]);
        assert_eq!(resume(&cx, &resume_args()).await.unwrap_err().code, Code::Refused);
    }

    #[tokio::test]
    async fn without_a_ledger_a_halt_can_still_be_ended_and_none_is_made() {
        let (_dir, cx, state) = scene(false).await;
        halt(&cx, &halt_args()).await.unwrap();
        assert_eq!(resume(&cx, &resume_args()).await, Ok(Code::Ok));
        assert!(!state.ledger().exists());
    }

    #[tokio::test]
    async fn a_ledger_that_cannot_be_written_does_not_keep_anybody_halted_and_is_told() {
        let (_dir, cx, state) = scene(false).await;
        std::fs::write(
            state.ledger(),
            "this is no database, and long enough to be looked at as one by its first bytes",
        )
        .unwrap();
        halt(&cx, &halt_args()).await.unwrap();
        let error = resume(&cx, &resume_args()).await.unwrap_err();
        assert_eq!(error.code, Code::LeftBehind);
        assert_eq!(state::read_halt(&state.halt_file()), Ok(None));
    }

    #[tokio::test]
    async fn to_halt_where_nothing_is_would_halt_nothing_and_is_an_error() {
        let cx = Context::new(Some("/nonexistent/troop".into()));
        assert_eq!(halt(&cx, &halt_args()).await.unwrap_err().code, Code::Input);
    }

    #[tokio::test]
    async fn clearing_a_cluster_names_the_draw_key() {
        let (_dir, _, state) = scene(true).await;
        let clock = Arc::new(|| Stamp { at: clock::real_now(), real_at: clock::real_now() });
        let ledger = Ledger::open(&state.ledger(), clock).await.unwrap();
        let mut tx = ledger.begin().await.unwrap();
        tx.set_mark(MARK_UNHEALED, "local/r1/hello-web", serde_json::json!({})).await.unwrap();
        tx.commit().await.unwrap();
        let error = CliError::new(Code::Input, "`hello-web` is not marked unhealed");
        let error = with_nearest(&state, "hello-web", error).await;
        assert_eq!(error.hint.as_deref(), Some("did you mean `local/r1/hello-web`?"));
    }
}
