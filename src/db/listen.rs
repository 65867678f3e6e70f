//! Receiving PostgreSQL's notifications on a connection of its own.
//!
//! Knows LISTEN, waiting and how a dead connection shows itself. Does not know what a channel or
//! payload means, and does not reconnect: the caller does, and then looks at the tables, because
//! whatever was announced in between was announced to nobody.
//!
//! A listener must be read all the time: one that is not read fills the server's queue until
//! everybody's commits fail.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, Receiver};
use postgres::fallible_iterator::FallibleIterator;
use postgres::Client;

use super::connect::DbTarget;
use super::error::{words, DbError};
use crate::sys::{heartbeat, thread};

/// A query is sent when nothing was heard for this long: a half-open TCP connection looks just
/// like silence.
pub const LIVENESS_INTERVAL: Duration = Duration::from_secs(30);
const LIVENESS_TIMEOUT: Duration = Duration::from_secs(10);

/// How often the thread that listens looks whether it is to end.
const EAR_LOOK: Duration = Duration::from_millis(200);
/// Notifications that may wait for whoever has the thread; more wait in PostgreSQL's queue, which holds gigabytes.
const HEARD_MAX: usize = 8_192;

const QUOTE_CHANNEL: &str = include_str!("../../sql/session/quote_channel.sql");

/// Something announced with NOTIFY.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Notification {
    pub channel: String,
    pub payload: String,
    /// The backend that sent it, as in `pg_stat_activity.pid`.
    pub sender_pid: i32,
}

/// A connection that listens to some channels.
pub struct Listener {
    client: Client,
    /// Received, not yet handed out.
    pending: VecDeque<Notification>,
    heard_at: Instant,
}

impl Listener {
    /// Connects and listens. From the return on, nothing committed is missed until an error.
    pub fn connect(
        target: &DbTarget,
        application_name: &str,
        channels: &[&str],
    ) -> Result<Listener, DbError> {
        let mut client = target.connect(application_name)?;
        for channel in channels {
            // LISTEN takes no parameters; the server itself makes the statement.
            let statement: String = client.query_one(QUOTE_CHANNEL, &[channel])?.get(0);
            client.batch_execute(&statement)?;
        }
        Ok(Listener {
            client,
            pending: VecDeque::new(),
            heard_at: Instant::now(),
        })
    }

    /// The next notification; `None` if none came within `timeout`. An error means that the
    /// connection is lost and this listener of no more use.
    pub fn next(&mut self, timeout: Duration) -> Result<Option<Notification>, DbError> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(notification) = self.pending.pop_front() {
                return Ok(Some(notification));
            }
            let now = Instant::now();
            let alive_until = self.heard_at + LIVENESS_INTERVAL;
            if now >= alive_until {
                self.check()?;
                continue;
            }
            self.wait(deadline.min(alive_until).saturating_duration_since(now))?;
            if self.pending.is_empty() && Instant::now() >= deadline {
                return Ok(None);
            }
        }
    }

    /// Asks the server for a sign of life; notifications that arrive meanwhile are kept.
    pub fn check(&mut self) -> Result<(), DbError> {
        self.client
            .is_valid(LIVENESS_TIMEOUT)
            .map_err(|e| DbError::ListenerLost { reason: words(&e) })?;
        self.heard_at = Instant::now();
        self.drain()
    }

    /// Waits for the first notification and takes all that came with it.
    fn wait(&mut self, timeout: Duration) -> Result<(), DbError> {
        let first = self
            .client
            .notifications()
            .timeout_iter(timeout)
            .next()
            .map_err(|e| DbError::ListenerLost { reason: words(&e) })?;
        match first {
            Some(n) => {
                self.heard_at = Instant::now();
                self.keep(n);
                self.drain()
            }
            None if self.client.is_closed() => Err(DbError::ListenerLost {
                reason: "the server closed it".to_owned(),
            }),
            None => Ok(()),
        }
    }

    fn drain(&mut self) -> Result<(), DbError> {
        loop {
            let more = self
                .client
                .notifications()
                .iter()
                .next()
                .map_err(|e| DbError::ListenerLost { reason: words(&e) })?;
            match more {
                Some(n) => self.keep(n),
                None => return Ok(()),
            }
        }
    }

    fn keep(&mut self, n: postgres::Notification) {
        self.pending.push_back(Notification {
            channel: n.channel().to_owned(),
            payload: n.payload().to_owned(),
            sender_pid: n.process_id(),
        });
    }
}

/// A thread that listens, for whoever waits for other things too; it ends when this is dropped.
pub struct Ear {
    /// After an error nothing comes any more.
    pub heard: Receiver<Result<Notification, DbError>>,
    ending: Arc<AtomicBool>,
}

impl Ear {
    /// From the return on nothing is missed, until an error comes out.
    ///
    /// # Errors
    /// When the listening session cannot be had.
    pub fn listen(
        target: &DbTarget,
        application_name: &str,
        thread_name: &'static str,
        channels: &[&str],
    ) -> Result<Ear, DbError> {
        let mut listener = Listener::connect(target, application_name, channels)?;
        let (sender, heard) = bounded(HEARD_MAX);
        let ending = Arc::new(AtomicBool::new(false));
        let ended = ending.clone();
        let body = move || {
            while !ended.load(Ordering::SeqCst) {
                heartbeat::idle("listening");
                let message = match listener.next(EAR_LOOK) {
                    Ok(None) => continue,
                    Ok(Some(message)) => Ok(message),
                    Err(error) => Err(error),
                };
                let last = message.is_err();
                if sender.send(message).is_err() || last {
                    return;
                }
            }
        };
        thread::spawn(thread_name, body).map_err(|error| DbError::ListenerLost {
            reason: format!("no thread for it: {error}"),
        })?;
        Ok(Ear { heard, ending })
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::SeqCst);
    }
}
