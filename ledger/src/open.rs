//! Opening: is it a ledger, is it one this build knows, is it the newest copy, and can it be written.

use std::fs::{self, OpenOptions, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::pool::PoolOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _};

use crate::crash;
use crate::db::{Conn, Driver};
use crate::error::{Fault, LedgerError, OnPath as _};
use crate::events::{self, Behind};
use crate::head::{self, FILE_MODE, Head, Remembered};

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");

/// `TROO`, as the first migration sets it.
const APPLICATION_ID: i64 = 1_414_680_399;

/// SQLite's own size of a page, which no ledger was ever made without.
const PAGE_BYTES: u64 = 4096;

/// How many reads may run at once. They do not wait for the writer; more than a few only cost files.
const READERS: u32 = 4;

/// How long a write waits for others before it gives up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Waits {
    /// For a writer in another process: many times the few milliseconds that a transaction takes.
    pub(crate) other_process: Duration,
    /// For the writers of this process that came before; longer, as one of them may be waiting for another process.
    pub(crate) this_process: Duration,
}

impl Default for Waits {
    fn default() -> Self {
        Self { other_process: Duration::from_secs(5), this_process: Duration::from_secs(15) }
    }
}

/// The connections of an open ledger.
#[derive(Debug)]
pub(crate) struct Pools {
    /// One connection, so that the writers of this process queue here and not inside SQLite. `None` when only reading.
    pub(crate) writer: Option<SqlitePool>,
    pub(crate) readers: SqlitePool,
}

/// Opens for writing, and makes the ledger if there is none.
pub(crate) async fn writable(path: &Path, waits: Waits) -> Result<Pools, LedgerError> {
    if !head::folder(path).is_dir() {
        return Err(LedgerError::MissingFolder { path: path.to_owned() });
    }
    // Held to the end: two processes must not make the schema, or look at the head while it is written, at once.
    let held = lock(path).await?;
    let remembered = head::read(path)?;
    let head = remembered.as_ref().map(|remembered| &remembered.head);
    if let (Some(head), false) = (head, path.exists()) {
        return Err(LedgerError::OlderThanHead { path: path.to_owned(), newest: 0, head: head.id });
    }
    create(path)?;
    crash::point("open: created");
    // All that may refuse the file comes before a connection that may write: closing one folds the log into the file,
    // and a log that lies beside the wrong file belongs to the right one.
    let options = reader_options(path, waits);
    let found = inspect(path, options.clone(), head).await?;
    if has_log(path) && found == Found::Ledger {
        if let Some(remembered) = &remembered {
            check_base(path, remembered).await?;
        }
        examine(path, options, head).await?;
    }
    if found == Found::Nothing {
        tracing::info!(path = %path.display(), "making a new ledger");
    }
    let writer = pool(1, waits).after_release(|conn, _| Box::pin(is_clean(conn)));
    let writer = writer.connect_with(writer_options(path, waits)).await.on(path)?;
    crash::point("open: before the schema");
    MIGRATIONS.run(&writer).await.map_err(|e| migration_failed(path, e))?;
    crash::point("open: after the schema");
    probe(&writer).await.on(path)?;
    let readers = pool(READERS, waits).connect_with(reader_options(path, waits)).await.on(path)?;
    let mut conn = readers.acquire().await.on(path)?;
    if let Some(newest) = events::newest_head(&mut conn).await.on(path)? {
        head::advance_locked(path, &newest)?;
    }
    drop(conn);
    drop(held);
    Ok(Pools { writer: Some(writer), readers })
}

/// Opens for reading: changes nothing, and needs no right to write.
pub(crate) async fn read_only(path: &Path) -> Result<Pools, LedgerError> {
    // Read before the database, so that an event committed meanwhile is no contradiction.
    let remembered = head::read(path)?;
    let head = remembered.as_ref().map(|remembered| remembered.head.clone());
    if !path.exists() {
        is_not_older(path, head.as_ref(), Found::Nothing, 0)?;
        return Err(LedgerError::Missing { path: path.to_owned() });
    }
    let waits = Waits::default();
    let options = reader_options(path, waits);
    let (found, options) = match inspect(path, options.clone(), head.as_ref()).await {
        Ok(found) => (found, options),
        // SQLite wants to make a file beside a WAL database even to read it. Where it may not, nobody else writes
        // either, provided that no log waits beside it.
        Err(LedgerError::Database { .. } | LedgerError::ReadOnly { .. }) if !has_log(path) => {
            let options = options.immutable(true);
            (inspect(path, options.clone(), head.as_ref()).await?, options)
        }
        Err(e) => return Err(e),
    };
    if found == Found::Nothing {
        return Err(LedgerError::NotALedger { path: path.to_owned(), why: "it is empty".to_owned() });
    }
    if let Some(remembered) = remembered.filter(|_| has_log(path)) {
        check_base(path, &remembered).await?;
    }
    let readers = pool(READERS, waits).connect_with(options).await.on(path)?;
    Ok(Pools { writer: None, readers })
}

async fn lock(path: &Path) -> Result<fs::File, LedgerError> {
    let path = path.to_owned();
    let locked = tokio::task::spawn_blocking(move || head::lock(&path)).await;
    locked.map_err(|source| LedgerError::TaskEnded { source })?
}

/// Makes the file with its mode, or takes away what others may do with it. Rights are never added: who made the file
/// read-only meant it.
///
/// An existing file must not be opened here: to close it would drop the locks that SQLite, in this process, has on it.
fn create(path: &Path) -> Result<(), LedgerError> {
    match OpenOptions::new().create_new(true).write(true).mode(FILE_MODE).open(path) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {
            let mode = fs::metadata(path).map_err(|e| LedgerError::file("look at", path, e))?.permissions().mode();
            if mode & 0o777 & !FILE_MODE == 0 {
                return Ok(());
            }
            let tightened = fs::set_permissions(path, Permissions::from_mode(mode & FILE_MODE));
            tightened.map_err(|e| LedgerError::file("take away others' rights to", path, e))
        }
        Err(e) => Err(LedgerError::file("create", path, e)),
    }
}

/// What a file is before anything is written to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    /// An empty file, or an empty database.
    Nothing,
    /// A ledger that this build knows.
    Ledger,
}

/// Is it a ledger, of a schema that this build knows, and not older than its head. Only reads.
async fn inspect(path: &Path, options: SqliteConnectOptions, head: Option<&Head>) -> Result<Found, LedgerError> {
    let size = fs::metadata(path).map_err(|e| LedgerError::file("look at", path, e))?.len();
    let has_log = has_log(path);
    // Never shown to SQLite, which removes the log beside an empty file: it is that of the file that belongs here.
    if size == 0 {
        return match head {
            None if has_log => {
                let why = "it is empty, and the log of a ledger lies beside it: put the file back that it belongs to";
                Err(LedgerError::NotALedger { path: path.to_owned(), why: why.to_owned() })
            }
            Some(_) | None => is_not_older(path, head, Found::Nothing, 0),
        };
    }
    if has_log {
        has_its_first_page(path, size)?;
    }
    let mut conn = options.connect().await.on(path)?;
    let found = async {
        let found = look(&mut conn, path).await.on(path)?;
        if found == Found::Ledger && !has_log {
            whole_pages(&mut conn, path, size).await.on(path)?;
        }
        let newest = match (found, head) {
            (Found::Ledger, Some(head)) => match events::against_head(&mut conn, head).await.on(path)? {
                Behind::No => head.id,
                Behind::Yes { newest } => newest,
            },
            (Found::Ledger, None) | (Found::Nothing, _) => 0,
        };
        is_not_older(path, head, found, newest)
    };
    let found = found.await;
    conn.close().await.on(path)?;
    found
}

/// Refuses a file so short that SQLite would remove the log beside it. By its length alone: to open it and close it again
/// would drop the locks that SQLite, in this process, has on it.
fn has_its_first_page(path: &Path, size: u64) -> Result<(), LedgerError> {
    if size >= PAGE_BYTES {
        return Ok(());
    }
    let source = format!("it has {size} bytes, and its first page alone has {PAGE_BYTES}: it was cut").into();
    Err(LedgerError::Damaged { path: path.to_owned(), source })
}

/// SQLite notices when whole pages are gone from a file's end; of a last page that was cut it takes the rest for zeros.
async fn whole_pages(conn: &mut Conn, path: &Path, size: u64) -> Result<(), Fault> {
    let page: i64 = sqlx::query_scalar("pragma page_size").fetch_one(conn).await?;
    if u64::try_from(page).is_ok_and(|page| page > 0 && size.is_multiple_of(page)) {
        return Ok(());
    }
    let source = format!("it has {size} bytes, which is no whole number of pages: it was cut").into();
    Err(LedgerError::Damaged { path: path.to_owned(), source }.into())
}

fn is_not_older(path: &Path, head: Option<&Head>, found: Found, newest: i64) -> Result<Found, LedgerError> {
    match head {
        Some(head) if newest < head.id => {
            Err(LedgerError::OlderThanHead { path: path.to_owned(), newest, head: head.id })
        }
        Some(_) | None => Ok(found),
    }
}

/// Refuses a file that is older than the log beside it. SQLite cannot tell, and would make one of both.
async fn check_base(path: &Path, remembered: &Remembered) -> Result<(), LedgerError> {
    match newest_without_log(path).await {
        Some(newest) if newest < remembered.base_below(path) => {
            Err(LedgerError::OlderThanHead { path: path.to_owned(), newest, head: remembered.head.id })
        }
        // Unreadable it may be by a checkpoint that was cut short: the log makes it whole.
        Some(_) | None => Ok(()),
    }
}

/// The newest event of the file by itself, read under a name beside which no log lies.
async fn newest_without_log(path: &Path) -> Option<i64> {
    // Of this process alone: another one's must not go while it reads.
    let alone = head::beside(path, &format!(".alone.{}", std::process::id()));
    let _left_by_a_crash = fs::remove_file(&alone);
    if let Err(error) = fs::hard_link(path, &alone) {
        tracing::debug!(path = %path.display(), %error, "no second name for the ledger");
        return None;
    }
    let options = SqliteConnectOptions::new().filename(&alone).create_if_missing(false).read_only(true).immutable(true);
    let newest = async {
        let mut conn = options.connect().await?;
        let newest = events::newest_head(&mut conn).await;
        conn.close().await?;
        newest
    };
    let newest = newest.await;
    let _named_no_more = fs::remove_file(&alone);
    newest.ok().map(|head| head.map_or(0, |head| head.id))
}

/// Reads all of a ledger beside which a log waits: its writer was killed, or somebody exchanged the file below the log.
async fn examine(path: &Path, options: SqliteConnectOptions, head: Option<&Head>) -> Result<(), LedgerError> {
    let mut conn = options.connect().await.on(path)?;
    let examined = async {
        events::check_pages(&mut conn, path).await?;
        events::verify(&mut conn, head).await
    };
    let examined = examined.await.on(path);
    conn.close().await.on(path)?;
    examined.map(drop)
}

/// Whether a write-ahead log waits beside the database.
fn has_log(path: &Path) -> bool {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    fs::metadata(log).is_ok_and(|log| log.len() > 0)
}

async fn look(conn: &mut Conn, path: &Path) -> Result<Found, Fault> {
    let id: i64 = sqlx::query_scalar("pragma application_id").fetch_one(&mut *conn).await?;
    let tables = "select count(*) from sqlite_master where name <> '_sqlx_migrations' and name not like 'sqlite_%'";
    let tables: i64 = sqlx::query_scalar(tables).fetch_one(&mut *conn).await?;
    if id == 0 && tables == 0 {
        return Ok(Found::Nothing);
    }
    if id != APPLICATION_ID {
        let why = "it is another program's SQLite database".to_owned();
        return Err(LedgerError::NotALedger { path: path.to_owned(), why }.into());
    }
    let newest = "select coalesce(max(version), 0) from _sqlx_migrations";
    let found: i64 = sqlx::query_scalar(newest).fetch_one(conn).await?;
    let known = known_schema();
    if found > known {
        return Err(LedgerError::NewerSchema { path: path.to_owned(), found, known }.into());
    }
    Ok(Found::Ledger)
}

/// The newest migration of this build.
fn known_schema() -> i64 {
    MIGRATIONS.iter().map(|m| m.version).max().unwrap_or(0)
}

fn migration_failed(path: &Path, e: MigrateError) -> LedgerError {
    #[expect(clippy::wildcard_enum_match_arm, reason = "the driver's errors; all others are about the migrations")]
    match e {
        MigrateError::Execute(source) | MigrateError::ExecuteMigration(source, _) => Fault::Db(source).on(path),
        source => LedgerError::Schema { path: path.to_owned(), source },
    }
}

/// Takes the write lock once and gives it back: a file that cannot be written says so now, not at the first kill.
async fn probe(writer: &SqlitePool) -> Result<(), sqlx::Error> {
    writer.begin_with("BEGIN IMMEDIATE").await?.rollback().await
}

/// Whether a connection may be used again. When the disk is full SQLite rolls back by itself; the driver's own rollback
/// then fails, and it believes for ever that it is inside a transaction. Such a connection is closed.
async fn is_clean(conn: &mut Conn) -> Result<bool, sqlx::Error> {
    // The rollback of a dropped transaction is only queued; this waits for it.
    conn.ping().await?;
    Ok(!conn.is_in_transaction())
}

fn pool(connections: u32, waits: Waits) -> PoolOptions<Driver> {
    PoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(waits.this_process)
        // A file's connections do not go stale.
        .idle_timeout(None)
        .max_lifetime(None)
}

/// A committed row must outlive a power loss, hence `Full`.
fn writer_options(path: &Path, waits: Waits) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(false)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(waits.other_process)
        .foreign_keys(true)
}

fn reader_options(path: &Path, waits: Waits) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(false)
        .read_only(true)
        .busy_timeout(waits.other_process)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;

    use super::*;
    use crate::testing::{Scene, clock, event};
    use crate::{EventId, Ledger};

    async fn open(path: &Path) -> Result<Ledger, LedgerError> {
        Ledger::open(path, clock(&Arc::default())).await
    }

    fn files(dir: &Path) -> Vec<PathBuf> {
        let mut files: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
        files.sort();
        files
    }

    #[tokio::test]
    async fn every_file_is_for_this_user_only() {
        let scene = Scene::new().await;
        scene.ledger.append(event("e")).await.unwrap();
        let files = files(scene.dir.path());
        for ending in ["ledger.db", "ledger.db-wal", "ledger.db-shm", "ledger.db.head", "ledger.db.lock"] {
            assert!(files.contains(&scene.dir.path().join(ending)), "{ending} is missing in {files:?}");
        }
        for file in files {
            let mode = fs::metadata(&file).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{}", file.display());
        }
        let Scene { dir, path, ledger, .. } = scene;
        ledger.close().await;
        fs::set_permissions(&path, Permissions::from_mode(0o664)).unwrap();
        open(&path).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(dir);
    }

    #[tokio::test]
    async fn the_writer_syncs_fully_logs_ahead_and_keeps_foreign_keys() {
        let scene = Scene::new().await;
        let writer = scene.ledger.0.pools().writer.clone().unwrap();
        let mode: String = sqlx::query_scalar("pragma journal_mode").fetch_one(&writer).await.unwrap();
        let sync: i64 = sqlx::query_scalar("pragma synchronous").fetch_one(&writer).await.unwrap();
        let keys: i64 = sqlx::query_scalar("pragma foreign_keys").fetch_one(&writer).await.unwrap();
        let busy: i64 = sqlx::query_scalar("pragma busy_timeout").fetch_one(&writer).await.unwrap();
        assert_eq!((mode.as_str(), sync, keys, busy), ("wal", 2, 1, 5_000));
    }

    #[tokio::test]
    async fn a_missing_folder_and_a_missing_ledger_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let nowhere = dir.path().join("no/ledger.db");
        assert!(matches!(open(&nowhere).await, Err(LedgerError::MissingFolder { .. })));
        let path = dir.path().join("ledger.db");
        assert!(matches!(Ledger::open_read_only(&path).await, Err(LedgerError::Missing { .. })));
        assert!(files(dir.path()).is_empty(), "a refused opening must make no file");
    }

    #[tokio::test]
    async fn another_programs_file_is_refused_and_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let text = dir.path().join("text");
        fs::write(&text, "some text that is long enough to look like a header of something ".repeat(20)).unwrap();
        let foreign = dir.path().join("foreign.db");
        let options = SqliteConnectOptions::new().filename(&foreign).create_if_missing(true);
        let mut conn = options.connect().await.unwrap();
        sqlx::query("create table theirs (x integer)").execute(&mut conn).await.unwrap();
        conn.close().await.unwrap();
        for path in [text, foreign] {
            let before = fs::read(&path).unwrap();
            let written = open(&path).await;
            assert!(matches!(written, Err(LedgerError::NotALedger { .. })), "{written:?}");
            let read = Ledger::open_read_only(&path).await;
            assert!(matches!(read, Err(LedgerError::NotALedger { .. })), "{read:?}");
            assert_eq!(fs::read(&path).unwrap(), before);
        }
        let empty = dir.path().join("empty.db");
        fs::write(&empty, "").unwrap();
        assert!(matches!(Ledger::open_read_only(&empty).await, Err(LedgerError::NotALedger { .. })));
        open(&empty).await.unwrap();
    }

    #[tokio::test]
    async fn a_newer_schema_is_refused_by_name() {
        let scene = Scene::new().await;
        let newer = "insert into _sqlx_migrations values (9000, 'later', current_timestamp, true, x'00', 0)";
        scene.statement(newer).await.unwrap();
        let refused = open(&scene.path).await;
        let expected = known_schema();
        let named = matches!(refused, Err(LedgerError::NewerSchema { found: 9_000, known, .. }) if known == expected);
        assert!(named, "{refused:?}");
        assert!(matches!(Ledger::open_read_only(&scene.path).await, Err(LedgerError::NewerSchema { .. })));
    }

    #[tokio::test]
    async fn an_old_copy_put_back_is_refused_until_its_head_is_removed() {
        let scene = Scene::new().await;
        scene.ledger.append(event("kept")).await.unwrap();
        let Scene { dir, path, ledger, .. } = scene;
        ledger.close().await;
        let copy = fs::read(&path).unwrap();
        let ledger = open(&path).await.unwrap();
        ledger.append(event("lost")).await.unwrap();
        ledger.close().await;
        fs::write(&path, copy).unwrap();
        for refused in [open(&path).await, Ledger::open_read_only(&path).await] {
            assert!(matches!(refused, Err(LedgerError::OlderThanHead { newest: 1, head: 2, .. })), "{refused:?}");
        }
        fs::remove_file(head::head_path(&path)).unwrap();
        let ledger = open(&path).await.unwrap();
        assert_eq!(ledger.append(event("goes on")).await.unwrap(), EventId(2));
        drop(dir);
    }

    #[tokio::test]
    async fn a_removed_database_beside_its_head_is_refused() {
        let scene = Scene::new().await;
        scene.ledger.append(event("e")).await.unwrap();
        let Scene { dir, path, ledger, .. } = scene;
        ledger.close().await;
        fs::remove_file(&path).unwrap();
        let refused = open(&path).await;
        assert!(matches!(refused, Err(LedgerError::OlderThanHead { newest: 0, head: 1, .. })), "{refused:?}");
        drop(dir);
    }

    #[tokio::test]
    async fn a_ledger_newer_than_its_head_is_opened_and_the_head_follows() {
        let scene = Scene::new().await;
        scene.ledger.append(event("e")).await.unwrap();
        let old = fs::read(head::head_path(&scene.path)).unwrap();
        scene.ledger.append(event("e")).await.unwrap();
        let Scene { dir, path, ledger, .. } = scene;
        ledger.close().await;
        // As after a crash between the commit and the head.
        fs::write(head::head_path(&path), old).unwrap();
        Ledger::open_read_only(&path).await.unwrap();
        assert_eq!(head::read(&path).unwrap().unwrap().head.id, 1, "who only reads writes no head");
        open(&path).await.unwrap();
        assert_eq!(head::read(&path).unwrap().unwrap().head.id, 2);
        drop(dir);
    }

    #[tokio::test]
    async fn another_ledger_under_the_same_name_is_refused_even_if_it_is_longer() {
        let (one, two) = (Scene::new().await, Scene::new().await);
        one.ledger.append(event("of one")).await.unwrap();
        for _ in 0..3 {
            two.ledger.append(event("of two")).await.unwrap();
        }
        let Scene { dir: dir_one, path: path_one, ledger, .. } = one;
        ledger.close().await;
        let Scene { dir: dir_two, path: path_two, ledger, .. } = two;
        ledger.close().await;
        fs::copy(&path_two, &path_one).unwrap();
        let refused = open(&path_one).await;
        assert!(matches!(refused, Err(LedgerError::Corrupt { event: EventId(1), .. })), "{refused:?}");
        drop((dir_one, dir_two));
    }

    #[tokio::test]
    async fn a_ledger_opened_for_reading_reads_and_refuses_to_write() {
        let scene = Scene::new().await;
        scene.ledger.append(event("e")).await.unwrap();
        let reader = Ledger::open_read_only(&scene.path).await.unwrap();
        assert_eq!(reader.verify().await.unwrap().events, 1);
        scene.ledger.append(event("while it is open")).await.unwrap();
        assert_eq!(reader.newest_event().await.unwrap().unwrap().id, EventId(2));
        assert!(matches!(reader.append(event("e")).await, Err(LedgerError::ReadOnly { .. })));
        assert!(matches!(reader.begin().await, Err(LedgerError::ReadOnly { .. })));
        assert!(matches!(reader.set_meta_once("a", "b").await, Err(LedgerError::ReadOnly { .. })));
    }

    #[tokio::test]
    async fn many_openings_of_a_new_file_at_once_make_one_ledger() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.db");
        let mut openings = tokio::task::JoinSet::new();
        for _ in 0..6 {
            let path = path.clone();
            openings.spawn(async move { open(&path).await?.append(event("e")).await });
        }
        let mut ids: Vec<i64> = openings.join_all().await.into_iter().map(|id| id.unwrap().0).collect();
        ids.sort_unstable();
        assert_eq!(ids, [1, 2, 3, 4, 5, 6]);
        assert_eq!(Ledger::open_read_only(&path).await.unwrap().verify().await.unwrap().events, 6);
    }
}
