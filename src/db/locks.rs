//! One service of a kind per database: advisory locks, and who else is at work.
//!
//! Knows the locks' keys, who holds one, the names of Hydra's own programs' sessions, and how to
//! recognise a proxy under which such locks mean nothing. Does not decide what to do about it.
//!
//! Keys: `pg_try_advisory_lock(1752786034, n)`; the first number is `hydr` in ASCII, n is 1 for the
//! queue runner, 2 for the evaluator, 3 for the notifier. Advisory locks belong to one database,
//! so two farms on one server do not meet. The lock lives in a session of its own, outside the
//! pool: it is gone when that session is, for whatever reason, and must be taken again **before
//! any write**.

use std::fmt;
use std::time::Duration;

use postgres::Client;

use super::connect::DbTarget;
use super::error::{words, DbError};
use crate::config::settings::Service;

const TAKE_SERVICE_LOCK: &str = include_str!("../../sql/session/take_service_lock.sql");
const CHECK_SERVICE_LOCK: &str = include_str!("../../sql/session/check_service_lock.sql");
const FIND_LOCK_HOLDERS: &str = include_str!("../../sql/session/find_lock_holders.sql");
const FIND_NAMED_SESSIONS: &str = include_str!("../../sql/session/find_named_sessions.sql");
const SHOW_BACKEND: &str = include_str!("../../sql/session/show_backend.sql");
const SHOW_CONNECTIONS: &str = include_str!("../../sql/session/show_connections.sql");
const READ_ONLY: &str = include_str!("../../sql/session/read_only.sql");
const MARK_SESSION: &str = include_str!("../../sql/session/mark_session.sql");
const SHOW_MARK: &str = include_str!("../../sql/session/show_mark.sql");

/// `hydr`, the first key of all locks.
pub const LOCK_CLASS: i32 = 0x6879_6472;

/// The second key of a service's lock.
pub fn lock_number(service: Service) -> i32 {
    match service {
        Service::QueueRunner => 1,
        Service::Evaluator => 2,
        Service::Notify => 3,
    }
}

/// A session of some program on the same database.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Session {
    pub pid: i32,
    /// Empty if unknown: another role's session.
    pub application_name: String,
    pub user: String,
    /// An IP address; empty for a socket, or if unknown.
    pub client_address: String,
    pub age: Duration,
}

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.application_name.as_str() {
            "" => "a program without a name",
            name => name,
        };
        let from = match self.client_address.as_str() {
            "" => "this host",
            address => address,
        };
        write!(
            f,
            "{name} (server process {}, user {}, from {from}, connected for {} s)",
            self.pid,
            self.user,
            self.age.as_secs()
        )
    }
}

/// The lock of a service, held as long as this value lives and its session does.
pub struct ServiceLock {
    client: Client,
    service: Service,
}

/// Where to look for a lock in `pg_locks`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LockProof {
    pub backend_pid: i32,
    pub class: i64,
    pub object: i64,
}

/// Whether the lock was free.
pub enum Taken {
    Yes(Box<ServiceLock>),
    /// Others hold it; empty if they let go in that very moment.
    HeldBy(Vec<Session>),
}

impl ServiceLock {
    /// Takes the lock in a new session. Does not wait.
    pub fn try_take(
        target: &DbTarget,
        service: Service,
        application_name: &str,
    ) -> Result<Taken, DbError> {
        let mut client = target.connect(application_name)?;
        let keys: [&(dyn postgres::types::ToSql + Sync); 2] = [&LOCK_CLASS, &lock_number(service)];
        let taken: bool = client.query_one(TAKE_SERVICE_LOCK, &keys)?.get(0);
        if taken {
            Ok(Taken::Yes(Box::new(ServiceLock { client, service })))
        } else {
            Ok(Taken::HeldBy(holders(&mut client, service)?))
        }
    }

    /// What others need to check, in transactions of their own, that this session holds the lock.
    pub fn proof(&mut self) -> Result<LockProof, DbError> {
        let backend_pid = self.client.query_one(SHOW_BACKEND, &[])?.get(0);
        Ok(LockProof {
            backend_pid,
            class: i64::from(LOCK_CLASS),
            object: i64::from(lock_number(self.service)),
        })
    }

    /// Asks the server whether this session still holds the lock. An error means: stop writing.
    pub fn check(&mut self) -> Result<(), DbError> {
        let lost = |reason: String| DbError::LockLost {
            service: self.service.name(),
            reason,
        };
        let keys: [&(dyn postgres::types::ToSql + Sync); 2] =
            [&LOCK_CLASS, &lock_number(self.service)];
        let held: bool = self
            .client
            .query_one(CHECK_SERVICE_LOCK, &keys)
            .map_err(|e| lost(words(&e)))?
            .get(0);
        if held {
            Ok(())
        } else {
            Err(lost("the server says that it is not held".to_owned()))
        }
    }
}

/// Who holds the lock of a service.
pub fn holders(client: &mut Client, service: Service) -> Result<Vec<Session>, DbError> {
    let rows = client.query(FIND_LOCK_HOLDERS, &[&LOCK_CLASS, &lock_number(service)])?;
    Ok(rows.iter().map(session).collect())
}

/// Sessions of Hydra's own program for this job, by the name its unit gives it. A program started
/// by hand has no such name and is not seen; its lock file is (queue runner).
pub fn foreign_sessions(client: &mut Client, service: Service) -> Result<Vec<Session>, DbError> {
    let rows = client.query(FIND_NAMED_SESSIONS, &[&service.hydra_program()])?;
    Ok(rows.iter().map(session).collect())
}

/// Why a service must not start: Hydra's own program for this job, called `what`, is at work. `None` if it is not.
///
/// # Errors
/// Of the database.
pub fn foreign_at_work(
    client: &mut Client,
    service: Service,
    what: &str,
) -> Result<Option<String>, DbError> {
    let sessions = foreign_sessions(client, service)?;
    let listed: Vec<String> = sessions.iter().map(ToString::to_string).collect();
    Ok((!listed.is_empty()).then(|| {
        format!(
            "Hydra's own {what} works on this database: {}; stop it first, or start with --beside if you know better",
            listed.join(", ")
        )
    }))
}

/// Connections of a service beside its pool: one that listens, one that holds its lock.
pub const CONNECTIONS_BESIDE_POOL: u32 = 2;

/// The server's room for connections.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Connections {
    pub max: u32,
    /// Of these, kept for superusers.
    pub reserved: u32,
    /// Of all programs, now.
    pub in_use: u32,
    pub server_version: String,
}

impl Connections {
    /// Without those kept for superusers.
    pub fn room(&self) -> u32 {
        self.max.saturating_sub(self.reserved)
    }

    /// In use, without the session that asked.
    pub fn others(&self) -> u32 {
        self.in_use.saturating_sub(1)
    }

    /// Whether a service with a pool of this size finds room.
    pub fn fit(&self, pooled_max: u32) -> bool {
        self.others() + pooled_max + CONNECTIONS_BESIDE_POOL <= self.room()
    }
}

pub fn connections(client: &mut Client) -> Result<Connections, DbError> {
    let row = client.query_one(SHOW_CONNECTIONS, &[])?;
    let count = |i: usize| u32::try_from(row.get::<_, i32>(i)).unwrap_or(0);
    Ok(Connections {
        max: count(0),
        reserved: count(1),
        in_use: count(2),
        server_version: row.get(3),
    })
}

/// Makes a session unable to write.
pub fn read_only(client: &mut Client) -> Result<(), DbError> {
    Ok(client.batch_execute(READ_ONLY)?)
}

/// A session, from the rows of find_lock_holders and find_named_sessions.
pub(super) fn session(row: &postgres::Row) -> Session {
    Session {
        pid: row.get(0),
        application_name: row.get(1),
        user: row.get(2),
        client_address: row.get(3),
        age: Duration::from_secs(u64::try_from(row.get::<_, i64>(4)).unwrap_or(0)),
    }
}

/// Refuses a proxy that gives clients each other's sessions (PgBouncer's `transaction` mode).
/// Opens two connections for a moment.
pub fn refuse_transaction_pooler(target: &DbTarget) -> Result<(), DbError> {
    let mut first = target.connect("hydrad-probe")?;
    let mut second = target.connect("hydrad-probe")?;
    match detect_transaction_pooler(&mut first, &mut second)? {
        None => Ok(()),
        Some(evidence) => Err(DbError::TransactionPooler {
            target: target.describe(),
            evidence,
        }),
    }
}

/// Evidence that the two clients do not have sessions of their own; `None` if they do. One client
/// leaves a mark and lets its session go; the other then opens a transaction, for which a proxy
/// would use the session just freed, and meanwhile the first looks for its mark.
pub fn detect_transaction_pooler(
    first: &mut Client,
    second: &mut Client,
) -> Result<Option<String>, DbError> {
    for round in 0..3 {
        let mark = format!("{}-{round}", std::process::id());
        let marked = backend(first, MARK_SESSION, &[&mark])?;
        let mut transaction = second.transaction()?;
        let row = transaction.query_one(SHOW_MARK, &[])?;
        let other: (i32, String) = (row.get(0), row.get(1));
        if let Some(evidence) = shared(&marked, &other) {
            return Ok(Some(evidence));
        }
        let again = backend(first, SHOW_MARK, &[])?;
        transaction.rollback()?;
        if let Some(evidence) = moved(&marked, &again) {
            return Ok(Some(evidence));
        }
    }
    Ok(None)
}

fn backend(
    client: &mut Client,
    sql: &'static str,
    parameters: &[&(dyn postgres::types::ToSql + Sync)],
) -> Result<(i32, String), DbError> {
    let row = client.query_one(sql, parameters)?;
    Ok((row.get(0), row.get(1)))
}

/// Two clients, one session.
fn shared(marked: &(i32, String), other: &(i32, String)) -> Option<String> {
    (marked.0 == other.0 || marked.1 == other.1)
        .then(|| format!("two connections share server process {}", other.0))
}

/// One client, two sessions.
fn moved(marked: &(i32, String), again: &(i32, String)) -> Option<String> {
    (marked != again).then(|| {
        format!(
            "one connection moved from server process {} to {}",
            marked.0, again.0
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_that_move_or_are_shared_are_evidence() {
        let at = |pid, mark: &str| (pid, mark.to_owned());
        assert_eq!(shared(&at(1, "a"), &at(2, "")), None);
        assert!(shared(&at(1, "a"), &at(1, "")).is_some());
        assert!(shared(&at(1, "a"), &at(2, "a")).is_some());
        assert_eq!(moved(&at(1, "a"), &at(1, "a")), None);
        assert!(moved(&at(1, "a"), &at(3, "a")).is_some());
        assert!(moved(&at(1, "a"), &at(1, "")).is_some());
    }
}
