//! What another process shows: a writer killed at any moment, and a user who may not write.
//!
//! Each test starts its own binary again for itself alone, with an environment variable that makes it the child.

#![expect(clippy::unwrap_used, reason = "helpers of tests, which may panic as tests do")]

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;
use std::{env, fs};

use jiff::Timestamp;
use serde_json::json;
use troop_ledger::{Clock, EventFilter, EventId, IntentFilter, Ledger, LedgerError, NewEvent, NewIntent, Stamp, Tx};

/// Names the ledger, and makes this process the child.
const CHILD: &str = "TROOP_LEDGER_CHILD";
const NOBODY: u32 = 65_534;
const ROUNDS: u32 = 10;
/// Long past what the child needs to start on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn clock() -> Clock {
    let ticks = AtomicI64::new(1_800_000_000);
    Arc::new(move || {
        let at = Timestamp::from_second(ticks.fetch_add(1, Ordering::SeqCst)).unwrap();
        Stamp { at, real_at: at }
    })
}

fn child_path() -> Option<PathBuf> {
    env::var_os(CHILD).map(PathBuf::from)
}

fn child(binary: &Path, test: &str, ledger: &Path) -> Command {
    let mut command = Command::new(binary);
    command.args(["--exact", test]).env(CHILD, ledger).stdin(Stdio::null()).stdout(Stdio::null());
    command
}

fn event(kind: &str, key: &str) -> NewEvent {
    let key = Some(key.to_owned());
    NewEvent {
        kind: kind.to_owned(),
        version: 1,
        key,
        team: None,
        actor: None,
        body: json!({ "text": "x".repeat(500) }),
    }
}

/// Writes as the control plane does, until it is killed.
async fn write_for_ever(path: &Path) -> Result<(), LedgerError> {
    let ledger = Ledger::open(path, clock()).await?;
    let run = ledger.newest_event().await?.map_or(0, |e| e.id.0);
    for n in 0_u64.. {
        let id = format!("{run}-{n}");
        let mut tx = ledger.begin().await?;
        let (kind, key) = ("terminate".to_owned(), "k".to_owned());
        tx.insert_intent(NewIntent { id: id.clone(), kind, key, team: None, body: json!({}) }).await?;
        tx.append(event("intended", &id)).await?;
        tx.set_mark("healing", &id, json!({ "since": n })).await?;
        tx.commit().await?;
        let mut tx = ledger.begin().await?;
        tx.settle_intent(&id, "done", json!({})).await?;
        tx.clear_mark("healing", &id).await?;
        tx.append(event("settled", &id)).await?;
        tx.commit().await?;
        ledger.store_plan_once(&id, "team", 1, &json!({ "of": id }), event("plan", &id)).await?;
    }
    Ok(())
}

/// Everything that was written together stands together.
async fn nothing_is_torn(ledger: &Ledger) -> u64 {
    let verified = ledger.verify().await.unwrap();
    let keys = async |kind: &str| -> Vec<String> {
        let filter = EventFilter { kinds: vec![kind.to_owned()], ..EventFilter::default() };
        let events = ledger.events(&filter).await.unwrap();
        events.into_iter().map(|e| e.key.unwrap()).collect()
    };
    let intents = ledger.intents(&IntentFilter::default()).await.unwrap();
    let ids: Vec<String> = intents.iter().map(|i| i.id.clone()).collect();
    assert_eq!(keys("intended").await, ids);
    let settled = intents.iter().filter(|i| i.outcome.is_some());
    assert_eq!(keys("settled").await, settled.map(|i| i.id.clone()).collect::<Vec<_>>());
    let open = ledger.open_intents().await.unwrap();
    let mut open: Vec<String> = open.into_iter().map(|i| i.id).collect();
    open.sort();
    let healing: Vec<String> = ledger.marks("healing").await.unwrap().into_iter().map(|m| m.key).collect();
    assert_eq!(healing, open);
    for day in keys("plan").await {
        let plan = ledger.plan(&day, "team").await.unwrap().expect("a plan's event without its plan");
        assert_eq!(plan.body, json!({ "of": day }));
        assert_eq!(ledger.event(plan.event).await.unwrap().unwrap().key, Some(day));
    }
    verified.events
}

/// The number in the head file, which grows while the child writes.
fn head(path: &Path) -> u64 {
    let text = fs::read_to_string(format!("{}.head", path.display())).unwrap_or_default();
    text.split(' ').nth(2).and_then(|id| id.parse().ok()).unwrap_or(0)
}

async fn until_it_writes(child: &mut Child, path: &Path, before: u64) {
    let watched = async {
        while head(path) <= before {
            assert_eq!(child.try_wait().unwrap(), None, "the child ended by itself");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, watched).await.expect("the child wrote nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_killed_at_any_moment_leaves_a_whole_ledger() {
    if let Some(path) = child_path() {
        return write_for_ever(&path).await.unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.db");
    let binary = env::current_exe().unwrap();
    let mut events = 0;
    for round in 0..ROUNDS {
        let mut writer = child(&binary, "a_writer_killed_at_any_moment_leaves_a_whole_ledger", &path).spawn().unwrap();
        until_it_writes(&mut writer, &path, events).await;
        let moment = RandomState::new().build_hasher().finish() % 40_000;
        tokio::time::sleep(Duration::from_micros(moment)).await;
        writer.kill().unwrap();
        let status = writer.wait().unwrap();
        assert!(!status.success(), "it was killed");
        let promised = head(&path);
        let now = nothing_is_torn(&Ledger::open(&path, clock()).await.unwrap()).await;
        assert!(now > events, "round {round} added nothing");
        assert!(now >= promised, "what the head names must be there: {promised}, {now}");
        assert_eq!(head(&path), now, "opening brings the head up to date");
        events = now;
    }
}

/// What a user sees who may read the ledger and not write it.
async fn read_what_cannot_be_written(path: &Path) {
    let refused = Ledger::open(path, clock()).await;
    assert!(matches!(refused, Err(LedgerError::ReadOnly { .. })), "{refused:?}");
    let mode = fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o400, "who made it read-only meant it");
    let ledger = Ledger::open_read_only(path).await.unwrap();
    assert_eq!(ledger.verify().await.unwrap().events, 1);
    assert_eq!(ledger.event(EventId(1)).await.unwrap().unwrap().kind, "kept");
}

/// Makes a ledger of one event, with nothing left beside it but its head and lock.
fn make(path: &Path) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let ledger = Ledger::open(path, clock()).await.unwrap();
        let mut tx: Tx = ledger.begin().await.unwrap();
        tx.append(event("kept", "k")).await.unwrap();
        tx.commit().await.unwrap();
    });
}

fn give(path: &Path, uid: Option<u32>, mode: u32) {
    chown(path, uid, uid).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// The superuser may write everything, so then the child is nobody.
fn read_only_in_a_child(test: &str, folder_mode: u32) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state/ledger.db");
    let state = path.parent().unwrap();
    fs::create_dir(state).unwrap();
    make(&path);
    // Where the tests run, nobody may have no right to go.
    let binary = dir.path().join("test");
    fs::copy(env::current_exe().unwrap(), &binary).unwrap();
    let superuser = fs::metadata("/proc/self").unwrap().uid() == 0;
    let uid = superuser.then_some(NOBODY);
    give(&binary, uid, 0o500);
    for file in fs::read_dir(state).unwrap() {
        give(&file.unwrap().path(), uid, 0o400);
    }
    give(state, uid, folder_mode);
    give(dir.path(), uid, 0o700);
    let mut child = child(&binary, test, &path);
    if let Some(uid) = uid {
        child.uid(uid).gid(uid);
    }
    // Another test that forks at this moment holds the copy open for writing until its own program begins.
    let output = loop {
        match child.stderr(Stdio::piped()).output() {
            Err(e) if e.kind() == std::io::ErrorKind::ExecutableFileBusy => std::thread::yield_now(),
            output => break output.unwrap(),
        }
    };
    give(state, uid, 0o700);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_read_only_file_says_so_when_it_is_opened_for_writing() {
    let test = "a_read_only_file_says_so_when_it_is_opened_for_writing";
    match child_path() {
        Some(path) => tokio::runtime::Runtime::new().unwrap().block_on(read_what_cannot_be_written(&path)),
        None => read_only_in_a_child(test, 0o700),
    }
}

#[test]
fn a_read_only_folder_says_so_and_can_still_be_read() {
    let test = "a_read_only_folder_says_so_and_can_still_be_read";
    match child_path() {
        Some(path) => tokio::runtime::Runtime::new().unwrap().block_on(read_what_cannot_be_written(&path)),
        None => read_only_in_a_child(test, 0o500),
    }
}

#[test]
#[ignore = "needs root"]
fn a_disk_that_fills_up_is_told_apart_and_goes_on_when_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let mount = |args: &[&str]| Command::new(args[0]).args(&args[1..]).arg(dir.path()).status().unwrap();
    assert!(mount(&["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs"]).success());
    let path = dir.path().join("ledger.db");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let outcome = runtime.block_on(async {
        let ledger = Ledger::open(&path, clock()).await.map_err(|e| e.to_string())?;
        let ballast = dir.path().join("ballast");
        fs::write(&ballast, vec![0; 100_000]).map_err(|e| e.to_string())?;
        let mut written = 0_u64;
        let error = loop {
            match ledger.append(event("e", "k")).await {
                Ok(_) => written += 1,
                Err(e) => break e,
            }
        };
        fs::remove_file(&ballast).map_err(|e| e.to_string())?;
        ledger.append(event("e", "k")).await.map_err(|e| format!("with room again: {e:?}"))?;
        let events = ledger.verify().await.map_err(|e| e.to_string())?.events;
        Ok::<_, String>((error, written, events))
    });
    drop(runtime);
    assert!(mount(&["umount", "-l"]).success());
    let (error, written, events) = outcome.unwrap();
    assert!(matches!(error, LedgerError::DiskFull { .. }), "{error:?}");
    assert!(written > 0);
    assert_eq!(events, written + 1);
}
