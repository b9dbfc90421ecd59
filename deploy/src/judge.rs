//! The verdict of soak and watch: by the new group's errors and by its health. No data never promotes (invariant I11).

use std::collections::VecDeque;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use troop_cloud::{Timed, Traffic};

/// Errors are judged over this long.
pub const WINDOW: SignedDuration = SignedDuration::from_secs(10);
/// Fewer answers than this in the window say nothing about a rate.
pub const ANSWERS_MIN: u64 = 50;
/// Health may be below ready for this long, as when one instance dies and is replaced, before it counts.
pub const BELOW_READY_FOR: SignedDuration = SignedDuration::from_secs(10);
/// A soak passes only on this many good looks at readiness and traffic: two seconds of them in the embedded cloud.
pub const GOOD_LOOKS_MIN: u32 = 8;

/// What a push remembers between looks. Not saved: a restarted control plane begins to judge anew, which can only make
/// a soak longer.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    samples: VecDeque<Sample>,
    /// Good looks in a row.
    pub good_looks: u32,
    /// Looks in a row in which every check of ready passed.
    pub ready_looks: u32,
    below_since: Option<Timestamp>,
    /// The counts at the first look, and at the last.
    counted: Option<(Counts, Counts)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counts {
    answers: u64,
    bad: u64,
    timed: Option<Timed>,
}

/// What the new group has answered since it is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SoFar {
    pub answers: u64,
    /// Of those, answers that count as errors.
    pub errors: u64,
    /// How long an answer took on average, where anybody times them.
    pub mean: Option<Duration>,
}

impl Memory {
    /// What was counted since the first look. `None` before it.
    pub fn so_far(&self) -> Option<SoFar> {
        let (first, last) = self.counted?;
        Some(SoFar {
            answers: last.answers - first.answers,
            errors: last.bad - first.bad,
            mean: last.timed.and_then(|timed| timed.mean_since(first.timed.unwrap_or_default())),
        })
    }

    fn count(&mut self, counts: Counts) {
        let first = match self.counted {
            // Another balancer's, as below.
            Some((first, last)) if last.answers <= counts.answers && last.bad <= counts.bad => first,
            Some(_) | None => counts,
        };
        self.counted = Some((first, counts));
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sample {
    at: Timestamp,
    answers: u64,
    bad: u64,
}

/// What one look says about the new group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Good,
    /// It could not be read, or there is too little of it.
    NoData {
        why: String,
    },
    Bad {
        why: String,
    },
}

/// Takes one look in: the group's counters and the first check of ready that does not pass.
pub fn look(
    memory: &mut Memory,
    traffic: Result<&Traffic, &str>,
    not_ready: Option<&str>,
    errors_above: u32,
    now: Timestamp,
) -> Verdict {
    let traffic = match traffic {
        Ok(traffic) => traffic,
        Err(why) => {
            memory.good_looks = 0;
            return Verdict::NoData { why: why.to_owned() };
        }
    };
    if let Some(why) = errors(memory, traffic, errors_above, now) {
        return Verdict::Bad { why };
    }
    match not_ready {
        None => {
            memory.below_since = None;
            memory.good_looks = memory.good_looks.saturating_add(1);
            Verdict::Good
        }
        Some(why) => {
            memory.good_looks = 0;
            let since = *memory.below_since.get_or_insert(now);
            if now.duration_since(since) >= BELOW_READY_FOR {
                return Verdict::Bad { why: format!("below ready for {} s: {why}", BELOW_READY_FOR.as_secs()) };
            }
            Verdict::NoData { why: why.to_owned() }
        }
    }
}

/// The error rate over the window, if it is above what is allowed. Requests in flight to a recorded kill do not count.
fn errors(memory: &mut Memory, traffic: &Traffic, errors_above: u32, now: Timestamp) -> Option<String> {
    let failed = traffic.failed.saturating_sub(traffic.failed_in_flight_to_killed);
    let sample = Sample { at: now, answers: traffic.answers + failed, bad: traffic.server_errors + failed };
    memory.count(Counts { answers: sample.answers, bad: sample.bad, timed: traffic.timed });
    // Counters only grow; a smaller one is another balancer's, and the window begins anew.
    if memory.samples.back().is_some_and(|last| last.answers > sample.answers || last.bad > sample.bad) {
        memory.samples.clear();
    }
    memory.samples.push_back(sample);
    while memory.samples.get(1).is_some_and(|s| now.duration_since(s.at) >= WINDOW) {
        memory.samples.pop_front();
    }
    let first = memory.samples.front()?;
    let (answers, bad) = (sample.answers - first.answers, sample.bad - first.bad);
    if answers < ANSWERS_MIN || bad * 100 <= answers * u64::from(errors_above) {
        return None;
    }
    let over_s = now.duration_since(first.at).as_secs_f64();
    // Tenths of a percent, in whole numbers.
    let per_mille = bad * 1_000 / answers;
    let (whole, tenth) = (per_mille / 10, per_mille % 10);
    Some(format!(
        "{whole}.{tenth} % errors ({bad} of {answers} answers in {over_s:.1} s; {errors_above} % are allowed)"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millisecond(1_800_000_000_000 + ms).unwrap()
    }

    fn traffic(answers: u64, server_errors: u64) -> Traffic {
        Traffic { answers, server_errors, ..Traffic::default() }
    }

    #[test]
    fn flips_back_above_the_rate_and_not_at_it() {
        let mut memory = Memory::default();
        assert_eq!(look(&mut memory, Ok(&traffic(0, 0)), None, 5, at(0)), Verdict::Good);
        assert_eq!(look(&mut memory, Ok(&traffic(100, 5)), None, 5, at(500)), Verdict::Good);
        assert!(matches!(look(&mut memory, Ok(&traffic(110, 6)), None, 5, at(750)), Verdict::Bad { .. }));
    }

    #[test]
    fn only_what_came_within_the_window_is_counted() {
        let mut memory = Memory::default();
        look(&mut memory, Ok(&traffic(1_000, 20)), None, 5, at(0));
        // A look between which nobody asked anything changes nothing.
        look(&mut memory, Ok(&traffic(1_040, 20)), None, 5, at(250));
        look(&mut memory, Ok(&traffic(1_040, 20)), None, 5, at(500));
        let why = "12.5 % errors (7 of 56 answers in 1.0 s; 5 % are allowed)".to_owned();
        assert_eq!(look(&mut memory, Ok(&traffic(1_056, 27)), None, 5, at(1_000)), Verdict::Bad { why });
    }

    #[test]
    fn a_counter_that_shrinks_begins_the_window_anew() {
        for smaller in [traffic(10, 3), traffic(200, 1), traffic(90, 40)] {
            let mut memory = Memory::default();
            look(&mut memory, Ok(&traffic(0, 0)), None, 100, at(0));
            look(&mut memory, Ok(&traffic(100, 3)), None, 100, at(250));
            let first = look(&mut memory, Ok(&smaller), None, 5, at(500));
            assert_eq!(first, Verdict::Good, "nothing is known of it yet");
            let later = traffic(smaller.answers + 50, smaller.server_errors + 3);
            assert!(matches!(look(&mut memory, Ok(&later), None, 5, at(750)), Verdict::Bad { .. }));
        }
    }

    #[test]
    fn what_was_answered_so_far_is_counted_from_the_first_look_on() {
        let timed = |traffic, answers, ms| Traffic {
            timed: Some(Timed { answers, took: Duration::from_millis(ms) }),
            ..traffic
        };
        let mut memory = Memory::default();
        assert_eq!(memory.so_far(), None);
        look(&mut memory, Ok(&timed(traffic(1_000, 20), 900, 9_000)), None, 5, at(0));
        assert_eq!(memory.so_far(), Some(SoFar { answers: 0, errors: 0, mean: None }));
        look(&mut memory, Ok(&timed(traffic(1_040, 21), 920, 9_250)), None, 100, at(60_000));
        let so_far = SoFar { answers: 40, errors: 1, mean: Some(Duration::from_micros(12_500)) };
        assert_eq!(memory.so_far(), Some(so_far));
        // Also where the first answers that were timed come later, and where nobody times any.
        let mut memory = Memory::default();
        look(&mut memory, Ok(&traffic(0, 0)), None, 5, at(0));
        look(&mut memory, Ok(&timed(traffic(10, 0), 10, 50)), None, 5, at(250));
        assert_eq!(memory.so_far().unwrap().mean, Some(Duration::from_millis(5)));
        // Counts that fell are another balancer's.
        look(&mut memory, Ok(&traffic(4, 0)), None, 5, at(500));
        assert_eq!(memory.so_far(), Some(SoFar { answers: 0, errors: 0, mean: None }));
    }

    #[test]
    fn too_few_answers_say_nothing() {
        let mut memory = Memory::default();
        look(&mut memory, Ok(&traffic(0, 0)), None, 5, at(0));
        assert_eq!(look(&mut memory, Ok(&traffic(49, 49)), None, 5, at(500)), Verdict::Good);
        assert!(matches!(look(&mut memory, Ok(&traffic(50, 50)), None, 5, at(600)), Verdict::Bad { .. }));
    }

    #[test]
    fn old_errors_leave_the_window() {
        let mut memory = Memory::default();
        look(&mut memory, Ok(&traffic(0, 0)), None, 50, at(0));
        look(&mut memory, Ok(&traffic(100, 40)), None, 50, at(1_000));
        look(&mut memory, Ok(&traffic(200, 40)), None, 5, at(11_500));
        assert_eq!(look(&mut memory, Ok(&traffic(300, 40)), None, 5, at(12_000)), Verdict::Good);
    }

    #[test]
    fn requests_in_flight_to_a_recorded_kill_do_not_count() {
        let mut memory = Memory::default();
        look(&mut memory, Ok(&traffic(0, 0)), None, 5, at(0));
        let mut killed = traffic(60, 0);
        (killed.failed, killed.failed_in_flight_to_killed) = (40, 40);
        assert_eq!(look(&mut memory, Ok(&killed), None, 5, at(250)), Verdict::Good);
        killed.failed = 60;
        assert!(matches!(look(&mut memory, Ok(&killed), None, 5, at(500)), Verdict::Bad { .. }));
    }

    #[test]
    fn health_below_ready_counts_after_a_while_and_no_data_never_promotes() {
        let mut memory = Memory::default();
        for ms in (0..10_000).step_by(250) {
            let verdict = look(&mut memory, Ok(&traffic(0, 0)), Some("health: 2 of 3"), 5, at(ms));
            assert!(matches!(verdict, Verdict::NoData { .. }));
        }
        assert!(matches!(
            look(&mut memory, Ok(&traffic(0, 0)), Some("health: 2 of 3"), 5, at(10_000)),
            Verdict::Bad { .. }
        ));
        look(&mut memory, Err("the cloud is away"), None, 5, at(10_250));
        assert_eq!(memory.good_looks, 0);
    }
}
