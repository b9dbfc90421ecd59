//! Files that are not what was written: cut, flipped, old, empty, somebody else's, replaced while in use. Each is refused
//! with an error that says what it is, and stays as it is; or nothing is lost.
//!
//! `TROOP_FAULT_SEED` chooses other places to cut and flip.

#![expect(clippy::unwrap_used, reason = "helpers of tests, which may panic as tests do")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use jiff::Timestamp;
use serde_json::json;
use tempfile::TempDir;
use troop_ledger::{Clock, Event, EventFilter, Ledger, LedgerError, NewEvent, NewIntent, Stamp};

/// Cuts and flips a test tries; each opens a ledger, which takes some milliseconds.
const TRIES: u64 = 60;

fn clock() -> Clock {
    let ticks = AtomicI64::new(1_800_000_000);
    Arc::new(move || {
        let at = Timestamp::from_second(ticks.fetch_add(1, Ordering::SeqCst)).unwrap();
        Stamp { at, real_at: at }
    })
}

/// Places in a file, the same for a seed: splitmix64.
fn places(stream: u64, below: u64) -> impl Iterator<Item = u64> {
    let seed: u64 = std::env::var("TROOP_FAULT_SEED").map_or(1, |seed| seed.parse().unwrap());
    let mut state = seed.wrapping_mul(1_000_003).wrapping_add(stream);
    std::iter::repeat_with(move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % below
    })
}

async fn open(path: &Path) -> Result<Ledger, LedgerError> {
    Ledger::open(path, clock()).await
}

/// Acts as the control plane writes them.
async fn acts(ledger: &Ledger, from: u32, to: u32) {
    for n in from..to {
        let id = format!("{n:032x}");
        let event = |kind: &str| NewEvent {
            kind: kind.to_owned(),
            version: 1,
            key: Some(id.clone()),
            team: None,
            actor: None,
            body: json!({ "text": "x".repeat(300) }),
        };
        let mut tx = ledger.begin().await.unwrap();
        let (kind, key) = ("terminate".to_owned(), "k".to_owned());
        tx.insert_intent(NewIntent { id: id.clone(), kind, key, team: None, body: json!({ "n": n }) }).await.unwrap();
        tx.append(event("intended")).await.unwrap();
        tx.set_mark("healing", &id, json!({ "n": n })).await.unwrap();
        tx.commit().await.unwrap();
        let mut tx = ledger.begin().await.unwrap();
        tx.settle_intent(&id, "done", json!({})).await.unwrap();
        tx.clear_mark("healing", &id).await.unwrap();
        tx.append(event("settled")).await.unwrap();
        tx.commit().await.unwrap();
    }
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    PathBuf::from(format!("{}{ending}", path.display()))
}

/// A ledger as a killed writer leaves it: file, log and head of one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Files {
    database: Vec<u8>,
    log: Option<Vec<u8>>,
    head: Option<Vec<u8>>,
}

impl Files {
    fn read(path: &Path) -> Self {
        let read = |ending| fs::read(beside(path, ending)).ok();
        Self { database: fs::read(path).unwrap(), log: read("-wal").filter(|log| !log.is_empty()), head: read(".head") }
    }

    /// Puts them into a folder of their own.
    fn lay(&self) -> (TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.db");
        fs::write(&path, &self.database).unwrap();
        for (ending, bytes) in [("-wal", &self.log), (".head", &self.head)] {
            if let Some(bytes) = bytes {
                fs::write(beside(&path, ending), bytes).unwrap();
            }
        }
        (dir, path)
    }
}

/// A ledger of some pages, closed: nothing waits in its log.
async fn closed(count: u32) -> Files {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.db");
    let ledger = open(&path).await.unwrap();
    acts(&ledger, 0, count).await;
    ledger.close().await;
    Files::read(&path)
}

/// `of` with more acts, in the log alone: copied while the writer lives, so as if it had been killed.
async fn killed(of: &Files, from: u32, to: u32) -> Files {
    let (_dir, path) = of.lay();
    let ledger = open(&path).await.unwrap();
    acts(&ledger, from, to).await;
    let files = Files::read(&path);
    assert!(files.log.is_some());
    ledger.close().await;
    files
}

async fn events(ledger: &Ledger) -> Vec<Event> {
    ledger.events(&EventFilter::default()).await.unwrap()
}

/// What of a ledger's errors are about a file that is not what was written.
fn says_so(error: &LedgerError) -> bool {
    matches!(
        error,
        LedgerError::Damaged { .. }
            | LedgerError::NotALedger { .. }
            | LedgerError::OlderThanHead { .. }
            | LedgerError::Corrupt { .. }
    )
}

#[tokio::test]
async fn a_file_that_was_cut_is_refused_and_left_as_it_is() {
    let whole = closed(40).await;
    let length = u64::try_from(whole.database.len()).unwrap();
    for place in [0, 1, 99, 100, 4096, length - 1].into_iter().chain(places(1, length).take(30)) {
        let mut cut = whole.clone();
        cut.database.truncate(usize::try_from(place).unwrap());
        let (_dir, path) = cut.lay();
        let refused = open(&path).await.expect_err(&format!("cut at {place} of {length} it was opened"));
        assert!(says_so(&refused), "cut at {place} of {length}: {refused:?}");
        assert!(Files::read(&path) == cut, "cut at {place}: the refusal changed it");
        assert!(Ledger::open_read_only(&path).await.is_err(), "cut at {place}");
    }
}

#[tokio::test]
async fn a_cut_file_beside_the_log_of_a_killed_writer_is_refused_and_neither_is_touched() {
    let base = closed(40).await;
    let whole = killed(&base, 40, 44).await;
    let length = u64::try_from(whole.database.len()).unwrap();
    for place in [0, 1, 99, 100, 4095, 4096].into_iter().chain(places(2, length).take(20)) {
        let mut cut = whole.clone();
        cut.database.truncate(usize::try_from(place).unwrap());
        let (_dir, path) = cut.lay();
        if place < 4096 {
            assert!(Ledger::open_read_only(&path).await.is_err());
            assert!(Files::read(&path) == cut, "who only reads removed the log");
        }
        match open(&path).await {
            Err(refused) => {
                assert!(says_so(&refused), "cut at {place} of {length}: {refused:?}");
                assert!(Files::read(&path) == cut, "cut at {place}: the refusal changed something");
            }
            // Every page that was cut off stands in the log.
            Ok(ledger) => assert_eq!(ledger.verify().await.unwrap().events, 88, "cut at {place}"),
        }
    }
}

/// The disk promised that what is in the log stays; a log that lost its end is told by the head, unless nothing is lost.
#[tokio::test]
async fn a_log_that_was_cut_loses_nothing_silently() {
    let base = closed(10).await;
    let whole = killed(&base, 10, 14).await;
    let log = whole.log.clone().unwrap();
    let length = u64::try_from(log.len()).unwrap();
    for place in [0, 1, 31, 32, length - 1].into_iter().chain(places(3, length).take(30)) {
        let mut cut = whole.clone();
        cut.log = Some(log[..usize::try_from(place).unwrap()].to_vec()).filter(|log| !log.is_empty());
        let (_dir, path) = cut.lay();
        let refused = open(&path).await.expect_err("the last commit is gone, and nobody said so");
        assert!(says_so(&refused), "cut at {place} of {length}: {refused:?}");
        assert_eq!(Files::read(&path).database, cut.database, "cut at {place}");
        assert_eq!(Files::read(&path).log, cut.log, "cut at {place}");
    }
}

/// Yesterday's file put over today's, with today's log still beside it: the log must not end up in the old file, since
/// it belongs to the one that may still be put back.
#[tokio::test]
async fn an_old_copy_beside_todays_log_is_refused_and_todays_file_can_be_put_back() {
    let yesterday = closed(40).await;
    // However little was folded in between: it may all stand in pages that were written once more since.
    for between in [1, 2, 3, 20] {
        let (_dir, path) = yesterday.lay();
        let ledger = open(&path).await.unwrap();
        acts(&ledger, 40, 40 + between).await;
        ledger.close().await;
        let folded = Files::read(&path);
        let today = killed(&folded, 60, 64).await;
        let mixed = Files { database: yesterday.database.clone(), ..today.clone() };
        let (_dir, path) = mixed.lay();
        for _ in 0..2 {
            for refused in [open(&path).await, Ledger::open_read_only(&path).await] {
                let refused = refused.expect_err("two files were made one");
                assert!(matches!(refused, LedgerError::OlderThanHead { newest: 80, .. }), "{between}: {refused:?}");
                assert!(Files::read(&path) == mixed, "the refusal changed something");
            }
        }
        fs::write(&path, &today.database).unwrap();
        let ledger = open(&path).await.unwrap();
        assert_eq!(ledger.verify().await.unwrap().events, u64::from(88 + 2 * between), "nothing is lost");
    }
}

/// A log is begun anew when all of it was folded, also in the middle of a life: 1,000 pages are some hundred acts.
#[tokio::test]
async fn a_copy_of_an_hour_ago_beside_a_log_that_was_begun_anew_since_is_refused() {
    let (_dir, path) = closed(3).await.lay();
    let living = path.clone();
    let ledger = open(&path).await.unwrap();
    acts(&ledger, 3, 4).await;
    let an_hour_ago = Files::read(&path);
    acts(&ledger, 4, 260).await;
    let now = Files::read(&path);
    assert_ne!(now.database, an_hour_ago.database, "nothing was folded meanwhile");
    let mixed = Files { database: an_hour_ago.database, ..now.clone() };
    let (_dir, path) = mixed.lay();
    for refused in [open(&path).await, Ledger::open_read_only(&path).await] {
        let refused = refused.expect_err("two files were made one");
        assert!(matches!(refused, LedgerError::OlderThanHead { newest: 6, .. }), "{refused:?}");
    }
    // Who reads beside a living writer is not mistaken.
    Ledger::open_read_only(&living).await.unwrap();
    let (_dir, path) = now.lay();
    assert_eq!(open(&path).await.unwrap().verify().await.unwrap().events, 520, "nothing is lost");
}

#[tokio::test]
async fn an_empty_file_or_none_in_place_of_a_ledger_is_refused_and_no_new_one_is_made() {
    let whole = closed(3).await;
    let mut empty = whole.clone();
    empty.database.clear();
    let (_dir, path) = empty.lay();
    let refused = open(&path).await;
    assert!(matches!(refused, Err(LedgerError::OlderThanHead { newest: 0, head: 6, .. })), "{refused:?}");
    assert_eq!(Files::read(&path), empty);
    let mut headless = killed(&whole, 3, 4).await;
    (headless.database, headless.head) = (Vec::new(), None);
    let (_other, other) = headless.lay();
    for refused in [open(&other).await, Ledger::open_read_only(&other).await] {
        assert!(matches!(&refused, Err(LedgerError::NotALedger { why, .. }) if why.contains("log")), "{refused:?}");
        assert!(Files::read(&other) == headless, "the log may still be needed");
    }
    fs::remove_file(&path).unwrap();
    for refused in [open(&path).await, Ledger::open_read_only(&path).await] {
        assert!(matches!(refused, Err(LedgerError::OlderThanHead { newest: 0, head: 6, .. })), "{refused:?}");
    }
    assert!(!path.exists());
}

/// A flipped byte is found where it changes what is read of an event, or a page; what verifies reads as it was written.
#[tokio::test]
async fn whatever_byte_is_flipped_what_verifies_reads_as_it_was_written() {
    let whole = closed(20).await;
    let (_dir, path) = whole.lay();
    let written = events(&open(&path).await.unwrap()).await;
    let (length, mut found) = (u64::try_from(whole.database.len()).unwrap(), 0);
    for place in places(4, length).take(usize::try_from(TRIES).unwrap()) {
        let mut flipped = whole.clone();
        flipped.database[usize::try_from(place).unwrap()] ^= 0x10;
        let (_dir, path) = flipped.lay();
        let read = async {
            let ledger = Ledger::open_read_only(&path).await?;
            ledger.verify().await?;
            Ok::<_, LedgerError>(events(&ledger).await)
        };
        match read.await {
            Ok(read) => assert_eq!(read, written, "byte {place} of {length}"),
            Err(_) => found += 1,
        }
    }
    assert!(found > 0, "none of {TRIES} was found");

    // Where an event's hash stands, and where a page that was split still holds an old copy of it.
    for event in &written {
        let mut flipped = whole.clone();
        let places: Vec<usize> = whole
            .database
            .windows(64)
            .enumerate()
            .filter(|(_, w)| *w == event.hash.as_bytes())
            .map(|(at, _)| at)
            .collect();
        places.iter().for_each(|at| flipped.database[at + 7] ^= 1);
        let (_dir, path) = flipped.lay();
        let verified = async { Ledger::open_read_only(&path).await?.verify().await };
        let verified = verified.await;
        assert!(matches!(&verified, Err(LedgerError::Corrupt { event: at, .. }) if *at == event.id), "{verified:?}");
    }
}

#[tokio::test]
async fn a_file_replaced_or_removed_while_it_is_open_takes_nothing_more() {
    let whole = closed(3).await;
    let (_dir, path) = whole.lay();
    let ledger = open(&path).await.unwrap();
    acts(&ledger, 3, 4).await;
    let kept = beside(&path, ".kept");
    for put in [Some(&whole.database), None] {
        fs::rename(&path, &kept).unwrap();
        if let Some(bytes) = put {
            fs::write(&path, bytes).unwrap();
        }
        assert!(matches!(ledger.begin().await, Err(LedgerError::Replaced { .. })));
        let verified = ledger.verify().await;
        assert!(matches!(verified, Err(LedgerError::Replaced { .. })), "{verified:?}");
        assert!(matches!(ledger.is_in_place(), Err(LedgerError::Replaced { .. })));
        fs::rename(&kept, &path).unwrap();
    }
    acts(&ledger, 4, 5).await;
    assert_eq!(ledger.verify().await.unwrap().events, 10);
}
