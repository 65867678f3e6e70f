//! Transactions of a service, each of which first makes sure that the service's advisory lock is still held by our session.
//!
//! Knows the lock's proof and what to do about lost races. Does not know what is written.

use std::time::Duration;

use super::locks::LockProof;
use super::pool::{Conn, Pool, Tx};
use super::DbError;
use crate::config::settings::Service;

/// How long to wait for a pooled connection.
const CONNECTION_MAX: Duration = Duration::from_secs(30);
/// A row that somebody else holds is waited for no longer; the transaction is tried again.
const LOCK_TIMEOUT: &str = "2s";
/// A fenced transaction in which nothing happens for this long is ended by PostgreSQL: its process stands still.
const STANDSTILL_MAX: &str = "10s";
/// Tries of a transaction that lost a race.
const TRIES_MAX: u32 = 5;

/// What a crash of PostgreSQL may undo (one of hydrad never undoes anything that was committed).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Commit {
    OnDisk,
    /// The last moments.
    Soon,
}

impl Commit {
    /// For `synchronous_commit`.
    fn word(self) -> &'static str {
        match self {
            Commit::OnDisk => "on",
            Commit::Soon => "off",
        }
    }
}

/// The right to write for a service.
#[derive(Clone)]
pub struct Guarded {
    pool: Pool,
    service: Service,
    /// `None`: a command that does one thing of the service's, and needs no lock.
    proof: Option<LockProof>,
    fence: Option<&'static str>,
}

impl Guarded {
    pub fn new(pool: Pool, service: Service, proof: Option<LockProof>) -> Guarded {
        Guarded {
            pool,
            service,
            proof,
            fence: None,
        }
    }

    /// The same with a statement that comes first in every transaction, and keeps whoever gets the lock meanwhile from going on
    /// before that has ended.
    #[must_use]
    pub fn fenced(self, fence: &'static str) -> Guarded {
        Guarded {
            fence: Some(fence),
            ..self
        }
    }

    /// Runs a transaction, again if it lost a race. Once this returns it is on PostgreSQL's disk.
    ///
    /// # Errors
    /// Of the database; [`DbError::LockLost`] if the lock is not held any more.
    pub fn write<T>(
        &self,
        work: impl FnMut(&mut Tx<'_>) -> Result<T, DbError>,
    ) -> Result<T, DbError> {
        self.commit(Commit::OnDisk, work)
    }

    /// As [`Guarded::write`].
    ///
    /// # Errors
    /// As [`Guarded::write`].
    pub fn commit<T>(
        &self,
        commit: Commit,
        mut work: impl FnMut(&mut Tx<'_>) -> Result<T, DbError>,
    ) -> Result<T, DbError> {
        let mut tries = 0;
        loop {
            tries += 1;
            let mut conn = self.pool.get(CONNECTION_MAX)?;
            match self.write_once(&mut conn, commit, &mut work) {
                Err(error) if error.is_retryable() && tries < TRIES_MAX => {}
                result => return result,
            }
        }
    }

    fn write_once<T>(
        &self,
        conn: &mut Conn,
        commit: Commit,
        work: &mut impl FnMut(&mut Tx<'_>) -> Result<T, DbError>,
    ) -> Result<T, DbError> {
        let mut tx = conn.transaction()?;
        if let Some(fence) = self.fence {
            tx.query(fence, &[&STANDSTILL_MAX])?;
        }
        if let Some(proof) = &self.proof {
            let held: bool = tx.query(
                include_str!("../../sql/queue/guard_transaction.sql"),
                &[
                    &proof.backend_pid,
                    &proof.class,
                    &proof.object,
                    &LOCK_TIMEOUT,
                    &commit.word(),
                ],
            )?[0]
                .get(2);
            if !held {
                return Err(DbError::LockLost {
                    service: self.service.name(),
                    reason: "another session may have taken it".to_owned(),
                });
            }
        }
        let result = work(&mut tx)?;
        tx.commit()?;
        Ok(result)
    }

    /// Something that only reads.
    ///
    /// # Errors
    /// Of the database.
    pub fn read<T>(
        &self,
        work: impl FnOnce(&mut Conn) -> Result<T, DbError>,
    ) -> Result<T, DbError> {
        work(&mut *self.pool.get(CONNECTION_MAX)?)
    }
}
