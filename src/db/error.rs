//! What can go wrong with the database, and what that means for the caller: try again at once,
//! wait until the database is back, or give up.
//!
//! Does not know what was being done; callers add that.

use std::error::Error as _;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use postgres::error::SqlState;

/// Whether PostgreSQL missed a table, which `hydrad init` makes.
pub fn lacks_tables(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let statement = error.downcast_ref::<postgres::Error>();
        if statement.and_then(postgres::Error::code) == Some(&SqlState::UNDEFINED_TABLE) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The errors of this room.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// A setting that says which database to use is wrong. `origin` is the variable or file.
    #[error("{origin}: {reason}")]
    BadTarget { origin: String, reason: String },
    /// No connection could be made.
    #[error("cannot connect to PostgreSQL at {target}: {}{hint}", words(.cause))]
    Connect {
        target: String,
        cause: postgres::Error,
        /// What to try, with its leading `; `, or empty.
        hint: String,
    },
    /// What TLS needs on our side cannot be used: files of certificates and keys.
    #[error("cannot connect to PostgreSQL at {target}: {reason}")]
    Tls { target: String, reason: String },
    /// A statement failed, or the connection broke while it ran.
    #[error("{}", words(.0))]
    Statement(#[from] postgres::Error),
    /// All pooled connections stayed in use.
    #[error(
        "no database connection became free within {waited:?}: all {max} are in use; \
         raise max_db_connections, or see `hydrad check` for what holds them"
    )]
    PoolBusy { waited: Duration, max: u32 },
    /// No pooled connection could be opened in time.
    #[error("no database connection within {waited:?}: {reason}")]
    PoolUnreachable { waited: Duration, reason: String },
    /// The connection that receives notifications is gone.
    #[error("the connection to PostgreSQL that receives notifications is lost: {reason}")]
    ListenerLost { reason: String },
    /// The session that holds a service's lock is gone, and the lock with it.
    #[error("the PostgreSQL session that holds the lock of {service} is lost: {reason}")]
    LockLost {
        service: &'static str,
        reason: String,
    },
    /// Somebody else does the same work right now.
    #[error("{0}")]
    Busy(String),
    /// A proxy gives each transaction another session: locks and LISTEN cannot work.
    #[error(
        "{target} is reached through a proxy that shares sessions between clients ({evidence}); \
         connect to PostgreSQL directly, or set the proxy's pool mode to `session` (PgBouncer: \
         pool_mode = session) for hydrad"
    )]
    TransactionPooler { target: String, evidence: String },
    /// The tables are not there, or not as needed.
    #[error("{0}")]
    Schema(String),
    /// The private PostgreSQL of `--state` cannot be used.
    #[error("the PostgreSQL in {}: {reason}", .dir.display())]
    Embedded { dir: PathBuf, reason: String },
    /// A file or folder of the private PostgreSQL cannot be used.
    #[error("cannot {doing} {}: {cause}", .path.display())]
    File {
        /// A verb: `create`, `read`, ...
        doing: &'static str,
        path: PathBuf,
        cause: io::Error,
    },
}

impl DbError {
    /// The connection is gone or cannot be had: wait, connect again, repeat. Covers a closed or
    /// refused connection, a server that starts up, shuts down, has no connection, memory or disk
    /// left, or may only be read.
    pub fn is_lost(&self) -> bool {
        match self {
            DbError::Statement(e) => is_lost(e),
            DbError::Connect { cause, .. } => is_lost(cause),
            DbError::PoolBusy { .. }
            | DbError::PoolUnreachable { .. }
            | DbError::ListenerLost { .. }
            | DbError::LockLost { .. }
            // Files are replaced, and then it works again.
            | DbError::Tls { .. } => true,
            _ => false,
        }
    }

    /// The transaction lost a race and can be repeated at once: serialization failure, deadlock,
    /// or `lock_timeout` expired.
    pub fn is_retryable(&self) -> bool {
        match self {
            DbError::Statement(e) => is_retryable(e),
            _ => false,
        }
    }

    /// `lock_timeout` expired: somebody else holds a row for longer.
    pub fn is_lock_timeout(&self) -> bool {
        self.sql_state() == Some(SqlState::LOCK_NOT_AVAILABLE.code())
    }

    /// Somebody cancelled the statement, or `statement_timeout` expired.
    pub fn is_cancelled(&self) -> bool {
        self.sql_state() == Some(SqlState::QUERY_CANCELED.code())
    }

    /// The server's five-character error code.
    pub fn sql_state(&self) -> Option<&str> {
        match self {
            DbError::Statement(e) | DbError::Connect { cause: e, .. } => {
                e.code().map(SqlState::code)
            }
            _ => None,
        }
    }
}

/// See [`DbError::is_lost`].
pub fn is_lost(e: &postgres::Error) -> bool {
    if e.is_closed() {
        return true;
    }
    match e.code() {
        // 08: connection; 57P01..5: shutdown, crash, cannot connect now, database dropped, idle
        // session; 53000, 53100, 53200, 53300: resources, disk, memory, connections; 58030: disk
        // fault; 25P03: idle in transaction; 25006: read-only, as a standby is.
        Some(code) => {
            let code = code.code();
            code.starts_with("08")
                || code.starts_with("57P")
                || matches!(
                    code,
                    "53000" | "53100" | "53200" | "53300" | "58030" | "25P03" | "25006"
                )
        }
        None => {
            let mut cause = e.source();
            while let Some(c) = cause {
                if c.is::<io::Error>() {
                    return true;
                }
                cause = c.source();
            }
            // A deadline of the client library.
            e.to_string().starts_with("timeout")
        }
    }
}

/// See [`DbError::is_retryable`].
pub fn is_retryable(e: &postgres::Error) -> bool {
    matches!(
        e.code().map(SqlState::code),
        Some("40001" | "40P01" | "55P03")
    )
}

/// The message with everything the server said: `postgres::Error` alone shows only `db error`.
pub fn words(e: &postgres::Error) -> String {
    if let Some(db) = e.as_db_error() {
        let mut text = format!("{} (SQLSTATE {})", db.message(), db.code().code());
        if let Some(table) = db.table() {
            text.push_str(&format!(", table {table}"));
        }
        if let Some(column) = db.column() {
            text.push_str(&format!(", column {column}"));
        }
        for more in [db.detail(), db.hint()].into_iter().flatten() {
            text.push_str("; ");
            text.push_str(more.trim_end_matches('.'));
        }
        return text;
    }
    let mut text = e.to_string();
    let mut cause = e.source();
    while let Some(c) = cause {
        let more = c.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = c.source();
    }
    text
}
