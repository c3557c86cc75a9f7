//! Opening the file, the writer thread with its grouped commits, the readers.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fairlead_planted::{self as planted, Defect};
use rusqlite::{Connection, OpenFlags, TransactionBehavior};
use tokio::sync::{mpsc, oneshot};

/// Writes that may wait for the writer; a caller beyond that waits itself.
const WRITES_WAITING_MAX: usize = 1024;
/// Writes that share one transaction: bounds how long the first of them waits for its sync.
const WRITES_PER_COMMIT_MAX: usize = 256;
/// Connections for reading, opened on demand; so many are kept.
const READERS_MAX: usize = 4;
/// Pages that each of them keeps, in SQLite's way of writing KiB. The kernel has them all; SQLite's own measure, 2 MiB
/// for each connection, fills over hours.
const READER_CACHE_KIB: i64 = -512;
/// The first SQLite in which the WAL reset race is mended.
const SQLITE_NUMBER_MIN: i32 = 3_051_003;
/// What this program's tables are called in the file's header ("FLD1").
const APPLICATION_ID: i32 = 0x464c_4431;

/// Statements that bring a file from the version before to this one.
const MIGRATIONS: &[&str] = &[include_str!("schema.sql"), include_str!("rollouts.sql")];

/// Why the store did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The disk is full, read-only or broken: nothing was written.
    #[error("cannot write {path}: {reason}")]
    Unavailable {
        /// The file.
        path: String,
        /// In SQLite's words.
        reason: String,
    },
    /// The file is not ours, or was written by a newer version.
    #[error("cannot use {path}: {reason}")]
    Foreign {
        /// The file.
        path: String,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// A statement failed: a defect of ours.
    #[error("statement failed: {0}")]
    Statement(String),
    /// The peer's message does not follow the last one: the connection is to be made anew, so that
    /// both sides agree on where they are.
    #[error("message {seq} came where {expected} was expected")]
    Gap {
        /// What came.
        seq: u64,
        /// What should have come.
        expected: u64,
    },
    /// The writer has ended: the process is shutting down.
    #[error("the store is closed")]
    Closed,
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode as Code;
        match error.sqlite_error_code() {
            Some(
                Code::DiskFull
                | Code::ReadOnly
                | Code::SystemIoFailure
                | Code::CannotOpen
                | Code::DatabaseBusy
                | Code::DatabaseCorrupt,
            ) => Self::Unavailable {
                path: String::new(),
                reason: error.to_string(),
            },
            _ => Self::Statement(error.to_string()),
        }
    }
}

impl StoreError {
    /// The same, with the file's name where it is not known yet.
    fn of(self, file: &Path) -> Self {
        match self {
            Self::Unavailable { path, reason } if path.is_empty() => Self::Unavailable {
                path: file.display().to_string(),
                reason,
            },
            other => other,
        }
    }
}

/// The tables: when writing, within one transaction; when reading, as last committed at each statement.
/// Its methods are in this crate's other modules.
pub struct Tx<'a> {
    pub(crate) sql: &'a Connection,
}

type Job = Box<dyn FnOnce(&Connection) -> JobDone + Send>;
/// Called after the commit (or its failure) with the outcome of the whole transaction.
type JobDone = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// Why nothing can be written at the moment, as far as is known.
#[derive(Clone, Default)]
struct Trouble(Arc<Mutex<(Option<StoreError>, u64)>>);

impl Trouble {
    fn inner(&self) -> std::sync::MutexGuard<'_, (Option<StoreError>, u64)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Option<StoreError> {
        self.inner().0.clone()
    }

    /// How often there was any.
    fn times(&self) -> u64 {
        self.inner().1
    }

    fn note(&self, error: &StoreError) {
        let mut inner = self.inner();
        inner.0 = Some(error.clone());
        inner.1 += 1;
    }

    fn over(&self) {
        self.inner().0 = None;
    }
}

/// Handle to the tables. Cheap to clone; the file is closed when the last handle is gone.
#[derive(Clone)]
pub struct Store {
    writer: mpsc::Sender<Job>,
    trouble: Trouble,
    readers: Arc<Readers>,
}

/// A write that waits for its turn.
pub struct Enqueued<T>(oneshot::Receiver<Result<T, StoreError>>);

impl<T> Enqueued<T> {
    /// Returns once it is synced.
    ///
    /// # Errors
    /// Those of the work, or of the sync; then nothing of it was kept.
    pub async fn outcome(self) -> Result<T, StoreError> {
        self.0.await.map_err(|_| StoreError::Closed)?
    }
}

struct Readers {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
    permits: Arc<tokio::sync::Semaphore>,
}

impl Store {
    /// Opens (or makes) the file, brings it to this version, starts the writer.
    ///
    /// # Errors
    /// When it cannot be opened, is not ours, or is of a newer version. Nothing is changed then.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let connection = open_for_writing(path)?;
        let (writer, jobs) = mpsc::channel(WRITES_WAITING_MAX);
        let shown = path.display().to_string();
        let trouble = Trouble::default();
        let writers = trouble.clone();
        std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || write_until_closed(connection, jobs, &shown, &writers))
            .map_err(|error| StoreError::Unavailable {
                path: path.display().to_string(),
                reason: error.to_string(),
            })?;
        let readers = Readers {
            path: path.to_owned(),
            idle: Mutex::new(Vec::new()),
            permits: Arc::new(tokio::sync::Semaphore::new(READERS_MAX)),
        };
        Ok(Self {
            writer,
            trouble,
            readers: Arc::new(readers),
        })
    }

    /// Why nothing can be written: the last write failed, and none has succeeded since. Somebody has to
    /// try ([`Self::probe`]) to find out that it is over.
    #[must_use]
    pub fn trouble(&self) -> Option<StoreError> {
        self.trouble.now()
    }

    /// Finds out, where writing has failed, whether it works again.
    pub async fn probe(&self) {
        if self.trouble().is_some() {
            // The outcome is noted where all are.
            let _ = self.write(|tx| tx.set_meta("probe", &[])).await;
        }
    }

    /// Runs `work` in a transaction and returns once it is synced. An error from `work` undoes only
    /// its own changes.
    ///
    /// # Errors
    /// Those of `work`, or of the sync; then nothing of it was kept.
    pub async fn write<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        self.enqueue(work).await?.outcome().await
    }

    /// Puts `work` in the writer's queue and returns at once with its place there: what one task
    /// enqueues is written in that order, and the task need not wait for a sync before it goes on.
    ///
    /// # Errors
    /// When the store is closed.
    pub async fn enqueue<T, F>(&self, work: F) -> Result<Enqueued<T>, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        let (answer, outcome) = oneshot::channel();
        let trouble = self.trouble.clone();
        let readers = Arc::clone(&self.readers);
        let job: Job = Box::new(move |sql| {
            let result = in_savepoint(sql, work).map_err(|error| error.of(&readers.path));
            if let Err(error @ StoreError::Unavailable { .. }) = &result {
                trouble.note(error);
            }
            Box::new(move |committed| {
                // A caller that has gone away does not want to know.
                let _ = answer.send(committed.and(result));
            })
        });
        self.writer
            .send(job)
            .await
            .map_err(|_| StoreError::Closed)?;
        Ok(Enqueued(outcome))
    }

    /// Reads a few rows by their key, here and now, on the calling thread: tens of microseconds,
    /// which is less than it costs to hand the work to another thread. Never for listings.
    ///
    /// # Errors
    /// Those of `work`, or when the file cannot be read.
    pub fn look<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        F: FnOnce(&Tx<'_>) -> Result<T, StoreError>,
    {
        let connection = self.readers.take()?;
        let result = work(&Tx { sql: &connection });
        self.readers.give_back(connection);
        result
    }

    /// Runs `work` on what has been committed.
    ///
    /// # Errors
    /// Those of `work`, or when the file cannot be read.
    pub async fn read<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        let permits = Arc::clone(&self.readers.permits);
        let permit = permits
            .acquire_owned()
            .await
            .map_err(|_| StoreError::Closed)?;
        let readers = Arc::clone(&self.readers);
        tokio::task::spawn_blocking(move || {
            // Given back here: who asked may not have its turn for long, and the next need not wait for that.
            let _permit = permit;
            let connection = readers.take()?;
            let result = work(&Tx { sql: &connection });
            readers.give_back(connection);
            result
        })
        .await
        .map_err(|error| StoreError::Statement(error.to_string()))?
    }
}

impl Readers {
    fn take(&self) -> Result<Connection, StoreError> {
        let idle = self
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        if let Some(connection) = idle {
            return Ok(connection);
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.path, flags)?;
        connection.busy_timeout(Duration::from_secs(5))?;
        connection.pragma_update(None, "cache_size", READER_CACHE_KIB)?;
        Ok(connection)
    }

    fn give_back(&self, connection: Connection) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < READERS_MAX {
            idle.push(connection);
        }
    }
}

fn in_savepoint<T, F>(sql: &Connection, work: F) -> Result<T, StoreError>
where
    F: FnOnce(&Tx<'_>) -> Result<T, StoreError>,
{
    sql.execute_batch("SAVEPOINT one")?;
    match work(&Tx { sql }) {
        Ok(value) => {
            sql.execute_batch("RELEASE one")?;
            Ok(value)
        }
        Err(error) => {
            sql.execute_batch("ROLLBACK TO one; RELEASE one")?;
            Err(error)
        }
    }
}

/// The writer: everything that waits goes into one transaction; answers go out after its sync.
fn write_until_closed(
    mut connection: Connection,
    mut jobs: mpsc::Receiver<Job>,
    path: &str,
    trouble: &Trouble,
) {
    let mut batch = Vec::new();
    while let Some(first) = jobs.blocking_recv() {
        batch.push(first);
        while batch.len() < WRITES_PER_COMMIT_MAX {
            match jobs.try_recv() {
                Ok(job) => batch.push(job),
                Err(_) => break,
            }
        }
        commit_batch(&mut connection, &mut batch, path, trouble);
    }
}

fn commit_batch(connection: &mut Connection, batch: &mut Vec<Job>, path: &str, trouble: &Trouble) {
    let (changes_before, times_before) = (connection.total_changes(), trouble.times());
    let mut answers = Vec::with_capacity(batch.len());
    let committed = (|| {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        while !batch.is_empty() {
            answers.push(batch.remove(0)(&transaction));
            if transaction.is_autocommit() {
                // A full disk has undone the whole transaction, not only that job's part.
                return Err(rusqlite::Error::SqliteFailure(
                    rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_FULL),
                    Some("the transaction was undone".to_owned()),
                ));
            }
        }
        transaction.commit()
    })();
    let outcome = committed.map_err(|error| match StoreError::from(error) {
        StoreError::Unavailable { reason, .. } => StoreError::Unavailable {
            path: path.to_owned(),
            reason,
        },
        other => other,
    });
    match &outcome {
        Err(error) => trouble.note(error),
        // A commit of nothing writes nothing, and proves nothing.
        Ok(()) => {
            let wrote = connection.total_changes() != changes_before;
            if wrote && trouble.times() == times_before {
                trouble.over();
            }
        }
    }
    if let Err(error) = &outcome {
        tracing::error!(error = %error, writes = answers.len(), "store could not commit");
        // These did not even run: were they only dropped, their callers would see `Closed` through the
        // dropped channel; they are told the true reason instead.
        for job in batch.drain(..) {
            refuse(job, error);
        }
    }
    for answer in answers {
        answer(outcome.clone());
    }
}

/// Answers a job that could not run, by running it against an empty database in memory whose
/// result is thrown away with the error. Only the answering half matters.
fn refuse(job: Job, error: &StoreError) {
    if let Ok(nowhere) = Connection::open_in_memory() {
        job(&nowhere)(Err(error.clone()));
    }
}

fn open_for_writing(path: &Path) -> Result<Connection, StoreError> {
    let shown = || path.display().to_string();
    if rusqlite::version_number() < SQLITE_NUMBER_MIN {
        return Err(StoreError::Foreign {
            path: shown(),
            reason: format!("SQLite {} can lose data in WAL mode", rusqlite::version()),
        });
    }
    let unavailable = |error: rusqlite::Error| StoreError::Unavailable {
        path: shown(),
        reason: error.to_string(),
    };
    let mut connection = Connection::open(path).map_err(unavailable)?;
    connection
        .busy_timeout(Duration::from_secs(5))
        .map_err(unavailable)?;
    let not_ours = |error: rusqlite::Error| StoreError::Foreign {
        path: shown(),
        reason: format!("{error}; it is not a Fairlead database, or is damaged: restore a backup"),
    };
    connection
        .pragma_update(None, "journal_mode", "WAL")
        .map_err(not_ours)?;
    let synchronous = if planted::is(Defect::AckBeforeSync) {
        "OFF"
    } else {
        "FULL"
    };
    connection
        .pragma_update(None, "synchronous", synchronous)
        .map_err(unavailable)?;
    connection
        .pragma_update(None, "foreign_keys", "ON")
        .map_err(unavailable)?;
    migrate(&mut connection, path)?;
    Ok(connection)
}

fn migrate(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    let foreign = |reason: String| StoreError::Foreign {
        path: path.display().to_string(),
        reason,
    };
    let version: usize = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let application: i32 =
        connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if application != APPLICATION_ID && tables > 0 {
        return Err(foreign(
            "it is another program's database; choose another path".to_owned(),
        ));
    }
    if version > MIGRATIONS.len() {
        return Err(foreign(format!(
            "it has format {version}, this program knows {} at most; install the newer version",
            MIGRATIONS.len()
        )));
    }
    for (index, statements) in MIGRATIONS.iter().enumerate().skip(version) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(statements)?;
        transaction.pragma_update(None, "user_version", index + 1)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.commit()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
