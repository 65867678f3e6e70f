//! A pool of database connections that never exceeds its cap.
//!
//! Knows how many connections there may be, which are still good, and which statements each has
//! prepared. Does not know any statement. Built on r2d2, with a manager of our own because
//! `r2d2_postgres` caches no statements.
//!
//! Rules for users: a checkout lasts one transaction and never spans other I/O; transactions only
//! by [`Conn::transaction`], whose guard rolls back, since a raw BEGIN would stay open for the next
//! user.

use std::collections::HashMap;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use postgres::types::ToSql;
use postgres::{Client, GenericClient, Row, Statement, Transaction};
use r2d2::ManageConnection;

use super::connect::DbTarget;
use super::error::DbError;
use crate::base::lock::lock;

/// A connection idle for less than this is handed out without asking the server.
const TRUSTED_IDLE: Duration = Duration::from_secs(1);
/// The answer to "are you there" must come within this time.
const LIVENESS_TIMEOUT: Duration = Duration::from_secs(5);
/// Statements one connection keeps prepared; the program has fewer.
const STATEMENTS_MAX: usize = 512;
/// Unused connections above `IDLE_MIN` are closed after this time.
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);
/// A connection is replaced at this age: the server's side of it slowly grows.
const LIFETIME: Duration = Duration::from_secs(3600);
const IDLE_MIN: u32 = 1;

/// How long a rehearsal waits for a connection.
const REHEARSAL_CONNECTION_MAX: Duration = Duration::from_secs(1);

/// The prepared statements of one connection.
#[derive(Default)]
struct Statements(HashMap<&'static str, Statement>);

impl Statements {
    /// The prepared form of a statement of the program; asks the server once per connection.
    fn prepared(
        &mut self,
        client: &mut impl GenericClient,
        sql: &'static str,
    ) -> Result<Statement, DbError> {
        if let Some(statement) = self.0.get(sql) {
            return Ok(statement.clone());
        }
        if self.0.len() >= STATEMENTS_MAX {
            self.0.clear();
        }
        let statement = client.prepare(sql)?;
        self.0.insert(sql, statement.clone());
        Ok(statement)
    }

    fn query(
        &mut self,
        client: &mut impl GenericClient,
        sql: &'static str,
        parameters: Parameters<'_>,
    ) -> Result<Vec<Row>, DbError> {
        let statement = self.prepared(client, sql)?;
        Ok(client.query(&statement, parameters)?)
    }

    fn execute(
        &mut self,
        client: &mut impl GenericClient,
        sql: &'static str,
        parameters: Parameters<'_>,
    ) -> Result<u64, DbError> {
        let statement = self.prepared(client, sql)?;
        Ok(client.execute(&statement, parameters)?)
    }
}

/// What a statement's placeholders stand for.
pub type Parameters<'a> = &'a [&'a (dyn ToSql + Sync)];

/// A connection and its prepared statements.
pub struct Conn {
    client: Client,
    statements: Statements,
    returned_at: Instant,
}

impl Conn {
    fn new(client: Client) -> Conn {
        Conn {
            client,
            statements: Statements::default(),
            returned_at: Instant::now(),
        }
    }

    /// Forgets the prepared statements, as is needed after the tables were changed.
    pub fn forget_statements(&mut self) {
        self.statements = Statements::default();
    }

    /// A transaction; rolled back when dropped without `commit`.
    pub fn transaction(&mut self) -> Result<Tx<'_>, DbError> {
        Ok(Tx {
            transaction: self.client.transaction()?,
            statements: &mut self.statements,
        })
    }

    /// Rows of one statement of the program, in a transaction of its own.
    pub fn query(
        &mut self,
        sql: &'static str,
        parameters: Parameters<'_>,
    ) -> Result<Vec<Row>, DbError> {
        self.statements.query(&mut self.client, sql, parameters)
    }

    /// Runs one statement of the program in a transaction of its own; gives the number of rows.
    pub fn execute(
        &mut self,
        sql: &'static str,
        parameters: Parameters<'_>,
    ) -> Result<u64, DbError> {
        self.statements.execute(&mut self.client, sql, parameters)
    }

    pub fn client(&mut self) -> &mut Client {
        &mut self.client
    }
}

/// A transaction that knows its connection's prepared statements. Rolled back when dropped
/// without [`Tx::commit`].
pub struct Tx<'a> {
    transaction: Transaction<'a>,
    statements: &'a mut Statements,
}

impl Tx<'_> {
    /// Rows of one statement of the program.
    pub fn query(
        &mut self,
        sql: &'static str,
        parameters: Parameters<'_>,
    ) -> Result<Vec<Row>, DbError> {
        self.statements
            .query(&mut self.transaction, sql, parameters)
    }

    /// Runs one statement of the program; gives the number of rows.
    pub fn execute(
        &mut self,
        sql: &'static str,
        parameters: Parameters<'_>,
    ) -> Result<u64, DbError> {
        self.statements
            .execute(&mut self.transaction, sql, parameters)
    }

    pub fn commit(self) -> Result<(), DbError> {
        Ok(self.transaction.commit()?)
    }
}

/// How the pool is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PoolMetrics {
    pub max: u32,
    pub in_use: u32,
    pub idle: u32,
    /// Checkouts that found no idle connection.
    pub waits_total: u64,
    /// The time these spent waiting, also for a new connection.
    pub waited_total: Duration,
    /// Checkouts that got no connection in time.
    pub timeouts_total: u64,
    pub connects_total: u64,
    pub connect_failures_total: u64,
    /// Connections found dead and replaced.
    pub broken_total: u64,
}

#[derive(Default)]
struct Counters {
    waits: AtomicU64,
    waited_micros: AtomicU64,
    timeouts: AtomicU64,
    connects: AtomicU64,
    connect_failures: AtomicU64,
    broken: AtomicU64,
    /// The newest failure to connect; cleared by a success.
    last_failure: Mutex<Option<String>>,
}

impl Counters {
    fn set_failure(&self, failure: Option<String>) {
        *lock(&self.last_failure) = failure;
    }

    fn failure(&self) -> Option<String> {
        lock(&self.last_failure).clone()
    }
}

struct Manager {
    target: DbTarget,
    application_name: String,
    counters: Arc<Counters>,
}

impl ManageConnection for Manager {
    type Connection = Conn;
    type Error = DbError;

    fn connect(&self) -> Result<Conn, DbError> {
        match self.target.connect(&self.application_name) {
            Ok(client) => {
                self.counters.connects.fetch_add(1, Ordering::Relaxed);
                self.counters.set_failure(None);
                Ok(Conn::new(client))
            }
            Err(e) => {
                self.counters
                    .connect_failures
                    .fetch_add(1, Ordering::Relaxed);
                self.counters.set_failure(Some(e.to_string()));
                Err(e)
            }
        }
    }

    fn is_valid(&self, conn: &mut Conn) -> Result<(), DbError> {
        if conn.returned_at.elapsed() < TRUSTED_IDLE {
            return Ok(());
        }
        conn.client.is_valid(LIVENESS_TIMEOUT).map_err(|e| {
            self.counters.broken.fetch_add(1, Ordering::Relaxed);
            DbError::from(e)
        })
    }

    fn has_broken(&self, conn: &mut Conn) -> bool {
        conn.returned_at = Instant::now();
        let closed = conn.client.is_closed();
        if closed {
            self.counters.broken.fetch_add(1, Ordering::Relaxed);
        }
        closed
    }
}

/// r2d2 retries failed connections by itself and would log each as an error; who asks for a
/// connection learns the reason, so a debug line is enough.
#[derive(Debug)]
struct Quiet;

impl r2d2::HandleError<DbError> for Quiet {
    fn handle_error(&self, e: DbError) {
        log::debug!("database pool: {e}");
    }
}

/// A connection taken from the pool; goes back when dropped.
pub struct PooledConn(r2d2::PooledConnection<Manager>);

impl Deref for PooledConn {
    type Target = Conn;

    fn deref(&self) -> &Conn {
        &self.0
    }
}

impl DerefMut for PooledConn {
    fn deref_mut(&mut self) -> &mut Conn {
        &mut self.0
    }
}

/// The pool; clones share it.
#[derive(Clone)]
pub struct Pool {
    inner: r2d2::Pool<Manager>,
    counters: Arc<Counters>,
}

impl Pool {
    /// A pool of at most `max` connections to `target`. Does not wait for the first one, so it
    /// succeeds while the database is away.
    pub fn new(target: DbTarget, max: u32, application_name: &str) -> Pool {
        let counters = Arc::new(Counters::default());
        let manager = Manager {
            target,
            application_name: application_name.to_owned(),
            counters: Arc::clone(&counters),
        };
        let max = max.max(1);
        let inner = r2d2::Pool::builder()
            .max_size(max)
            .min_idle(Some(IDLE_MIN.min(max)))
            .test_on_check_out(true)
            .idle_timeout(Some(IDLE_TIMEOUT))
            .max_lifetime(Some(LIFETIME))
            .error_handler(Box::new(Quiet))
            .build_unchecked(manager);
        Pool { inner, counters }
    }

    /// A connection, within `timeout`. [`DbError::PoolBusy`] if all stay in use,
    /// [`DbError::PoolUnreachable`] if the database cannot be reached; both are `is_lost`.
    pub fn get(&self, timeout: Duration) -> Result<PooledConn, DbError> {
        let start = Instant::now();
        if let Some(conn) = self.inner.try_get() {
            return Ok(PooledConn(conn));
        }
        let got = self.inner.get_timeout(timeout);
        let waited = start.elapsed();
        let micros = u64::try_from(waited.as_micros()).unwrap_or(u64::MAX);
        self.counters.waits.fetch_add(1, Ordering::Relaxed);
        self.counters
            .waited_micros
            .fetch_add(micros, Ordering::Relaxed);
        got.map(PooledConn).map_err(|_| {
            self.counters.timeouts.fetch_add(1, Ordering::Relaxed);
            let max = self.inner.max_size();
            match self.counters.failure() {
                Some(reason) => DbError::PoolUnreachable { waited, reason },
                None => DbError::PoolBusy { waited, max },
            }
        })
    }

    /// Lets so many connections, those that are used next, go through something of which the first time takes long. Fewer
    /// if the pool is small: one is always left to others.
    pub fn rehearse(&self, connections: u32, part: impl Fn(&mut Conn) -> Result<(), DbError>) {
        let count = connections.min(self.inner.max_size().saturating_sub(1));
        let mut taken: Vec<PooledConn> = (0..count)
            .map_while(|_| self.get(REHEARSAL_CONNECTION_MAX).ok())
            .collect();
        for conn in &mut taken {
            // What is wrong with these statements says who needs them.
            if let Err(error) = part(conn) {
                log::debug!("a database connection is not rehearsed: {error}");
            }
        }
    }

    pub fn metrics(&self) -> PoolMetrics {
        let state = self.inner.state();
        let counters = &self.counters;
        let load = |c: &AtomicU64| c.load(Ordering::Relaxed);
        PoolMetrics {
            max: self.inner.max_size(),
            in_use: state.connections.saturating_sub(state.idle_connections),
            idle: state.idle_connections,
            waits_total: load(&counters.waits),
            waited_total: Duration::from_micros(load(&counters.waited_micros)),
            timeouts_total: load(&counters.timeouts),
            connects_total: load(&counters.connects),
            connect_failures_total: load(&counters.connect_failures),
            broken_total: load(&counters.broken),
        }
    }
}
