//! A request to roll back, as it meets a push: it goes back, is cancelled before anything moved, or cannot.

use jiff::Timestamp;

use crate::machine::{self, Newer};
use crate::push::{Phase, Push};

/// What a request comes to.
#[derive(Debug, Clone, PartialEq)]
#[must_use]
pub enum Answer {
    /// The traffic goes back to the old group.
    GoesBack(Push),
    /// Nothing had moved: the new group is disabled and kept.
    Cancelled(Push),
    /// It goes back, or is given up, already.
    Already { what: String },
    /// A step is in flight; ask again once it has its outcome.
    Later,
    /// It cannot, and this is why.
    Cannot { why: String },
}

/// What a request would come to now. Pure; `because` is kept with the push.
pub fn ask(push: &Push, newer: Newer, because: &str, now: Timestamp) -> Answer {
    if let Some(result) = push.result {
        return Answer::Cannot { why: format!("it has ended: {}", result.as_str().replace('_', " ")) };
    }
    let back = || match push.previous_group() {
        None => Answer::Cannot { why: format!("there is no older group; {} is the cluster's first", push.group()) },
        Some(_) if push.in_flight.is_some() => Answer::Later,
        Some(_) => Answer::GoesBack(machine::going_back(push.clone(), because.to_owned(), now)),
    };
    match push.phase {
        Phase::Create | Phase::Ready { .. } | Phase::Flip if push.in_flight.is_some() => Answer::Later,
        Phase::Create | Phase::Ready { .. } | Phase::Flip => {
            let push = Push { held_since: None, ..push.clone() };
            Answer::Cancelled(machine::cancelled(push, because.to_owned(), now))
        }
        Phase::Disable | Phase::Soak { .. } => back(),
        Phase::Watch { .. } | Phase::Stuck => match newer {
            Newer::None => back(),
            Newer::Flipped { push: newer } => {
                let why = format!("push {newer} has flipped since: roll that one back first");
                Answer::Cannot { why }
            }
            Newer::Soaked { push: newer } => Answer::Cannot { why: format!("push {newer} has superseded it") },
        },
        Phase::Destroy | Phase::Reap => {
            let group = push.previous_group().map_or_else(|| "the old group".to_owned(), ToString::to_string);
            Answer::Cannot { why: format!("its watch is over and {group} is being destroyed") }
        }
        Phase::BackEnable | Phase::BackReady { .. } | Phase::BackFlip | Phase::BackDisable => {
            Answer::Already { what: "it is going back already".to_owned() }
        }
        Phase::Cancel => Answer::Already { what: "it is being cancelled already".to_owned() },
        Phase::Keep { .. } | Phase::Ended => Answer::Cannot { why: "it has ended".to_owned() },
    }
}

/// Whether the push can still be asked: it has not ended for people.
pub fn is_open(push: &Push) -> bool {
    push.result.is_none() && push.phase != Phase::Ended
}

/// What a newer push means for an older one of the same cluster.
pub fn newer_of(newer: &Push, number: u64) -> Newer {
    // Once soaked well it has superseded the older one for good, whatever became of it later.
    if newer.soaked {
        return Newer::Soaked { push: number };
    }
    let traffic_may_be_there = newer.flip_was_asked() && newer.result.is_none();
    if traffic_may_be_there && troop_policies::sabotaged!("superseded_early") {
        return Newer::Soaked { push: number };
    }
    if traffic_may_be_there { Newer::Flipped { push: number } } else { Newer::None }
}
