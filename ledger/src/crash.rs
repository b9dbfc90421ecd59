//! Points at which a test kills this process: between any two statements, and between any two steps of the head file.
//!
//! Outside this crate's own tests they are nothing.

#[cfg(not(test))]
pub(crate) const fn point(_name: &str) {}

#[cfg(test)]
pub(crate) use tests::point;

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::path::{Path, PathBuf};
    use std::process::{Command, Stdio};
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::{env, io};

    use serde_json::json;

    use crate::testing::{clock, event, intent};
    use crate::{EventFilter, IntentFilter, Ledger, LedgerError};

    /// Names the ledger, and makes this process the child.
    const CHILD: &str = "TROOP_LEDGER_DIES_WITH";
    /// The number of the point at which the child waits for its end.
    const AT: &str = "TROOP_LEDGER_DIES_AT";
    const THIS: &str = "crash::tests::a_writer_killed_at_any_point_leaves_all_of_a_transaction_or_nothing";
    /// More than there are; a workload without an end would else run for ever.
    const POINTS_MAX: u64 = 500;

    static PASSED: AtomicU64 = AtomicU64::new(0);

    /// Says where it is and waits to be killed, when this is the point that the parent chose.
    pub(crate) fn point(name: &str) {
        let Some(at) = env::var(AT).ok().and_then(|at| at.parse::<u64>().ok()) else { return };
        if PASSED.fetch_add(1, Ordering::SeqCst) + 1 == at {
            say(&format!("at {name}"));
            loop {
                std::thread::park();
            }
        }
    }

    fn say(line: &str) {
        let mut out = io::stdout().lock();
        writeln!(out, "\nchild: {line}").unwrap();
        out.flush().unwrap();
    }

    /// What the control plane does around an act, one transaction after the other. `committed` is told of each.
    async fn work(path: &Path, mut committed: impl AsyncFnMut(&Ledger)) -> Result<(), LedgerError> {
        let ledger = Ledger::open(path, clock(&std::sync::Arc::default())).await?;
        committed(&ledger).await;
        let mut tx = ledger.begin().await?;
        tx.insert_intent(intent("i")).await?;
        tx.append(event("intended")).await?;
        tx.set_mark("healing", "i", json!({})).await?;
        tx.take_lock("cluster", "push 1").await?;
        tx.commit().await?;
        committed(&ledger).await;
        let mut tx = ledger.begin().await?;
        tx.settle_intent("i", "done", json!({})).await?;
        tx.append(event("settled")).await?;
        tx.clear_mark("healing", "i").await?;
        tx.release_lock("cluster", "push 1", 1).await?;
        let push = tx.insert_push("cluster", json!(1)).await?;
        tx.commit().await?;
        committed(&ledger).await;
        ledger.store_plan_once("day", "team", 1, &json!({}), event("plan")).await?;
        committed(&ledger).await;
        let mut tx = ledger.begin().await?;
        tx.save_push(push, 1, json!(2), true).await?;
        tx.insert_request("rollback", "cluster", json!(1)).await?;
        tx.append(event("moved")).await?;
        tx.commit().await?;
        committed(&ledger).await;
        ledger.close().await;
        Ok(())
    }

    /// Everything that a reader can see, in words.
    async fn describe(ledger: &Ledger) -> String {
        let events: Vec<String> =
            ledger.events(&EventFilter::default()).await.unwrap().into_iter().map(|e| e.kind).collect();
        let intents: Vec<_> = ledger.intents(&IntentFilter::default()).await.unwrap();
        let intents: Vec<_> = intents.into_iter().map(|i| (i.id, i.outcome)).collect();
        let marks: Vec<_> = ledger.marks("healing").await.unwrap().into_iter().map(|m| m.key).collect();
        let locks: Vec<_> = ledger.locks().await.unwrap().into_iter().map(|l| l.holder).collect();
        let pushes: Vec<_> = ledger.pushes(9).await.unwrap().into_iter().map(|p| (p.version, p.ended)).collect();
        let requests = ledger.open_requests("rollback").await.unwrap().len();
        let plan = ledger.plan("day", "team").await.unwrap().map(|p| p.event);
        format!("{events:?} {intents:?} {marks:?} {locks:?} {pushes:?} {requests} {plan:?}")
    }

    /// Runs the child to its point and kills it there. The point's name, or nothing when the child came to its end; and
    /// how many commits it was told of.
    fn killed_at(point: u64, ledger: &Path) -> (Option<String>, usize) {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", THIS, "--nocapture"])
            .env(CHILD, ledger)
            .env(AT, point.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let (mut at, mut commits) = (None, 0);
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            match line.unwrap().strip_prefix("child: ") {
                Some("committed") => commits += 1,
                Some(place) => {
                    at = Some(place.to_owned());
                    break;
                }
                None => {}
            }
        }
        if at.is_some() {
            child.kill().unwrap();
        }
        let status = child.wait().unwrap();
        assert_eq!(status.success(), at.is_none(), "{status}");
        (at, commits)
    }

    #[tokio::test]
    async fn a_writer_killed_at_any_point_leaves_all_of_a_transaction_or_nothing() {
        if let Some(path) = env::var_os(CHILD).map(PathBuf::from) {
            return work(&path, async |_| say("committed")).await.unwrap();
        }
        let dir = tempfile::tempdir().unwrap();
        let mut after = vec![String::from("there is no ledger yet")];
        work(&dir.path().join("ledger.db"), async |ledger| after.push(describe(ledger).await)).await.unwrap();
        let mut places = std::collections::BTreeSet::new();
        for point in 1..POINTS_MAX {
            let path = dir.path().join(format!("{point}.db"));
            let (at, commits) = killed_at(point, &path);
            let ledger = Ledger::open(&path, clock(&std::sync::Arc::default())).await.unwrap();
            let found = describe(&ledger).await;
            let place = at.clone().unwrap_or_else(|| "the end".to_owned());
            // A commit may stand of which the child had no time to tell.
            let untold = usize::from(at.is_some() && commits > 0);
            let may_be = after.iter().skip(commits.max(1)).take(1 + untold);
            assert!(may_be.clone().any(|state| *state == found), "killed {place}, after {commits} commits: {found}");
            ledger.append(event("goes on")).await.unwrap();
            ledger.verify().await.unwrap();
            ledger.close().await;
            if at.is_none() {
                assert_eq!(commits + 1, after.len());
                let wanted = ["at after a statement", "at before a commit", "at after a commit", "at head: written"];
                assert!(wanted.iter().all(|place| places.contains(*place)), "{places:?}");
                return;
            }
            places.insert(place);
        }
        panic!("the child never came to its end");
    }
}
