//! The evaluator's thread for the database: takes the service's lock, listens, and does one wish after the other. So nothing
//! that PostgreSQL does or does not do keeps the schedule from its own work.
//!
//! While there is no database, or another evaluator has the lock, wishes to begin are refused, and ends that are to be recorded
//! are kept, or dropped when they are the other one's business.

use std::time::{Duration, Instant};

use crossbeam_channel::{select, Receiver, Sender};

use super::{Inbox, APPLICATION_NAME};
use crate::config::settings::Service;
use crate::db::evaluator::{self as rows, Begun, Finished, ASKED, BUILD_CHANNELS, JOBSET_CHANNELS};
use crate::db::guard::Guarded;
use crate::db::locks::{ServiceLock, Taken};
use crate::db::pool::Pool;
use crate::db::{DbError, DbTarget, Ear};
use crate::model::{JobsetId, ScheduledJobset};
use crate::sys::clock::unix_now;
use crate::sys::heartbeat;

/// How often one that stands by looks whether it is its turn.
const STAND_BY_LOOK: Duration = Duration::from_secs(2);
/// The pause before a lost connection is made anew, and before something that was refused is tried again.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
const REFUSED_AGAIN_AFTER: Duration = Duration::from_secs(10);
/// How often the lock is made sure of.
const CHECK_EVERY: Duration = Duration::from_secs(10);
/// Rows are read once for all changes within this time.
const GATHER: Duration = Duration::from_millis(20);

/// What the schedule wants of the tables.
pub enum Wish {
    Read,
    CountUnfinished(JobsetId),
    Begin(JobsetId),
    Finish(Finished),
    Report(String),
    Leave,
}

/// What it hears of them.
pub enum News {
    /// We are the active evaluator, and these are the jobsets.
    Active(Vec<ScheduledJobset>),
    Jobsets(Vec<ScheduledJobset>),
    /// Another evaluator is at work.
    StandBy(String),
    /// PostgreSQL is away, and why.
    Away(String),
    Unfinished {
        jobset: JobsetId,
        builds: u64,
    },
    Begun(Begun),
    NotBegun(JobsetId),
    Recorded(JobsetId),
    BuildsChanged,
    ReportWanted,
}

pub struct Tables {
    pub target: DbTarget,
    pub pool: Pool,
    pub wishes: Receiver<Wish>,
    pub inbox: Sender<Inbox>,
    /// Begun, and not yet recorded as ended.
    pub begun: Vec<JobsetId>,
    /// Ends that are not recorded yet.
    pub finished: Vec<Finished>,
}

/// Why serving ended without an error.
struct Leave;

impl Tables {
    /// The body of the thread.
    pub fn run(mut self) {
        let mut said = String::new();
        loop {
            heartbeat::idle("taking the evaluator's lock");
            let taken = ServiceLock::try_take(&self.target, Service::Evaluator, APPLICATION_NAME);
            let pause = match taken.and_then(|taken| self.serve_if(taken, &mut said)) {
                Ok(Some(Leave)) => return,
                Ok(None) => STAND_BY_LOOK,
                Err(error) => {
                    said.clear();
                    let is_lost = error.is_lost();
                    match is_lost {
                        true => log::warn!("evaluator: {error}; trying again"),
                        false => log::error!("evaluator: {error}; trying again"),
                    }
                    self.tell(News::Away(error.to_string()));
                    match is_lost {
                        true => AGAIN_AFTER,
                        false => REFUSED_AGAIN_AFTER,
                    }
                }
            };
            if self.refuse_for(pause).is_some() {
                return;
            }
        }
    }

    fn tell(&self, news: News) {
        // The schedule leaves last.
        let _ = self.inbox.send(Inbox::News(news));
    }

    fn serve_if(&mut self, taken: Taken, said: &mut String) -> Result<Option<Leave>, DbError> {
        let holders = match taken {
            Taken::Yes(lock) => {
                said.clear();
                return self.serve(lock).map(Some);
            }
            Taken::HeldBy(holders) => holders,
        };
        let holders: Vec<String> = holders.iter().map(ToString::to_string).collect();
        let holders = holders.join(", ");
        if said.is_empty() {
            log::info!("evaluator: standing by while another one is at work: {holders}");
            said.push_str("once");
        }
        // What the rows say is the other one's business now.
        self.begun.clear();
        for end in std::mem::take(&mut self.finished) {
            self.tell(News::Recorded(end.jobset));
        }
        self.tell(News::StandBy(holders));
        Ok(None)
    }

    /// Not active: for so long nothing can be begun, and what ends is kept.
    fn refuse_for(&mut self, pause: Duration) -> Option<Leave> {
        heartbeat::idle("waiting until the evaluator's lock is tried again");
        let until = Instant::now() + pause;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            match self.wishes.recv_timeout(left) {
                Ok(Wish::Begin(jobset)) => self.tell(News::NotBegun(jobset)),
                Ok(Wish::Finish(end)) => self.finished.push(end),
                Ok(Wish::Leave) => return Some(Leave),
                Ok(Wish::Read | Wish::CountUnfinished(_) | Wish::Report(_)) => {}
                Err(error) if error.is_timeout() => return None,
                Err(_) => return Some(Leave),
            }
        }
        None
    }

    fn settle(&mut self, jobset: JobsetId) {
        self.begun.retain(|id| *id != jobset);
        self.tell(News::Recorded(jobset));
    }

    /// Serves as the active evaluator.
    fn serve(&mut self, mut lock: Box<ServiceLock>) -> Result<Leave, DbError> {
        let db = Guarded::new(self.pool.clone(), Service::Evaluator, Some(lock.proof()?));
        // First, so that nothing is missed between looking and listening.
        let channels = [&JOBSET_CHANNELS[..], &BUILD_CHANNELS, &[ASKED]].concat();
        let ear = Ear::listen(&self.target, APPLICATION_NAME, "eval-listen", &channels)?;
        while let Some(end) = self.finished.first().cloned() {
            self.finish(&db, &end)?;
            self.finished.remove(0);
        }
        let forgotten = rows::forget_starts(&db, &self.begun)?;
        if forgotten > 0 {
            log::info!("evaluator: {forgotten} jobsets looked as if they were being evaluated; they are not any more");
        }
        self.tell(News::Active(rows::jobsets(&db, &self.begun)?));
        self.tell(News::ReportWanted);
        let mut checked = Instant::now();
        loop {
            heartbeat::idle("waiting for something to do with tables");
            select! {
                recv(self.wishes) -> wish => match wish {
                    Ok(Wish::Leave) | Err(_) => {
                        rows::remove_report(&db)?;
                        return Ok(Leave);
                    }
                    Ok(wish) => {
                        heartbeat::busy("reading or writing tables");
                        self.fulfil(&db, wish)?;
                    }
                },
                recv(ear.heard) -> message => {
                    let mut channels = Vec::new();
                    let first = message.map_err(|_| DbError::ListenerLost {
                        reason: "its thread has ended".to_owned(),
                    })?;
                    channels.push(first?.channel);
                    let until = Instant::now() + GATHER;
                    while let Ok(message) = ear.heard.recv_deadline(until) {
                        channels.push(message?.channel);
                    }
                    heartbeat::busy("reading tables after a notification");
                    self.hear(&db, &channels)?;
                },
                default(CHECK_EVERY.saturating_sub(checked.elapsed())) => {}
            }
            if checked.elapsed() >= CHECK_EVERY {
                heartbeat::busy("making sure of the evaluator's lock");
                lock.check()?;
                checked = Instant::now();
            }
        }
    }

    fn hear(&mut self, db: &Guarded, channels: &[String]) -> Result<(), DbError> {
        let any = |known: &[&str]| channels.iter().any(|c| known.contains(&c.as_str()));
        if any(&JOBSET_CHANNELS) {
            self.tell(News::Jobsets(rows::jobsets(db, &self.begun)?));
        }
        if any(&BUILD_CHANNELS) {
            self.tell(News::BuildsChanged);
        }
        if any(&[ASKED]) {
            self.tell(News::ReportWanted);
        }
        Ok(())
    }

    fn fulfil(&mut self, db: &Guarded, wish: Wish) -> Result<(), DbError> {
        match wish {
            Wish::Read => self.tell(News::Jobsets(rows::jobsets(db, &self.begun)?)),
            Wish::CountUnfinished(jobset) => {
                let builds = rows::unfinished(db, jobset)?;
                self.tell(News::Unfinished { jobset, builds });
            }
            Wish::Begin(jobset) => match rows::begin(db, jobset, unix_now()) {
                Ok(Some(begun)) => {
                    self.begun.push(jobset);
                    self.tell(News::Begun(begun));
                }
                Ok(None) => self.tell(News::NotBegun(jobset)),
                Err(error) => {
                    self.tell(News::NotBegun(jobset));
                    return Err(error);
                }
            },
            Wish::Finish(end) => {
                if let Err(error) = self.finish(db, &end) {
                    self.finished.push(end);
                    return Err(error);
                }
            }
            Wish::Report(report) => rows::report(db, &report)?,
            Wish::Leave => {}
        }
        Ok(())
    }

    fn finish(&mut self, db: &Guarded, end: &Finished) -> Result<(), DbError> {
        rows::finish(db, end)?;
        self.settle(end.jobset);
        Ok(())
    }
}
