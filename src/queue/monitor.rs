//! The queue monitor: hears that something changed and reads what is there now.
//!
//! It listens before it first reads, takes every wake-up as "read again", and never relies on ids going
//! up: the id in `builds_added` only makes the new builds quick to find; the complete list that follows
//! finds the rest. Decides nothing: the plan says which builds of a list it wants to know.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use super::{inspect, Context, Sessions};
use crate::db::pool::Conn;
use crate::db::queue as statements;
use crate::db::{orders, questions, writer, DbError};
use crate::model::{BuildId, JobsetId, Ticket, UnixSecs};
use crate::plan::event::{Event, Pass, QueuedBuild};
use crate::plan::holds::EMERGENCIES_MAX;
use crate::sys::clock::unix_now;
use crate::sys::heartbeat;

/// Channels that concern the queue.
pub const CHANNELS: [&str; 9] = [
    "builds_added",
    "builds_restarted",
    "builds_cancelled",
    "builds_deleted",
    "builds_bumped",
    "jobset_shares_changed",
    "dump_status",
    questions::ASKED,
    orders::CHANGED,
];

/// Rows in one event.
const PAGE: usize = 1_000;
/// Builds in one chunk of a list.
const LIST_CHUNK: usize = 4_000;
/// A list is not read again before this many times its own duration has passed.
const LIST_REST_FACTOR: u32 = 5;
const LIST_REST_MAX: Duration = Duration::from_secs(30);
/// After `builds_added` with an id the complete list waits for this long: the builds just read start first, and what is
/// announced meanwhile needs no list of its own.
const LIST_DELAY: Duration = Duration::from_millis(20);
/// How often the session with the lock is asked whether it still has it.
const LOCK_CHECK: Duration = Duration::from_secs(30);
/// Pause before the database is asked again.
const AWAY_PAUSE: Duration = Duration::from_secs(1);

/// As many connections as a build that is announced needs at the same time; the pool hands out the same ones first.
const REHEARSED: u32 = 2;

/// What a build goes through from its announcement until it is started, on a connection and on nothing.
fn rehearse(conn: &mut Conn) -> Result<(), DbError> {
    statements::builds_from(conn, BuildId(i32::MAX), 1)?;
    inspect::failed_paths(conn, &[])?;
    writer::rehearse(conn)
}

/// What the monitor is told.
#[derive(Debug)]
pub enum Message {
    /// The listening connection is (again) there: anything may have happened meanwhile.
    Listening,
    Notice {
        channel: String,
        payload: String,
    },
    /// The plan wants these rows.
    Read(Vec<BuildId>),
    /// The plan has digested one event with rows.
    PageTaken,
    /// Read everything again (SIGHUP).
    Again,
}

pub struct Monitor {
    pub context: std::sync::Arc<Context>,
    inbox: Receiver<Message>,
    known_jobsets: HashSet<JobsetId>,
    wanted: VecDeque<Vec<BuildId>>,
    /// Pages sent and not yet taken.
    pages_out: usize,
    pass: u64,
    list_wanted: bool,
    shares_wanted: bool,
    status_wanted: bool,
    questions_wanted: bool,
    orders_wanted: bool,
    /// Lowest ids of builds announced and not yet read.
    added_from: Option<BuildId>,
    list_not_before: Instant,
    last_list: Instant,
    /// Builds that go before everything else, as the plan was last told.
    emergencies: Vec<(BuildId, Option<UnixSecs>)>,
    /// The first load, until it is complete: since when, how many builds, how many rows were sent.
    loading: Option<(Instant, usize, usize)>,
}

impl Monitor {
    pub fn new(context: std::sync::Arc<Context>, inbox: Receiver<Message>) -> Monitor {
        let now = Instant::now();
        Monitor {
            context,
            inbox,
            known_jobsets: HashSet::new(),
            wanted: VecDeque::new(),
            pages_out: 0,
            pass: 0,
            list_wanted: false,
            shares_wanted: false,
            // The report is there from the start on.
            status_wanted: true,
            questions_wanted: false,
            orders_wanted: false,
            added_from: None,
            list_not_before: now,
            last_list: now,
            emergencies: Vec::new(),
            loading: Some((now, usize::MAX, 0)),
        }
    }

    /// Runs until nobody can tell it anything any more.
    pub fn run(mut self) {
        let mut told_away = false;
        let mut done = Instant::now();
        loop {
            heartbeat::idle("waiting for notices");
            match self.inbox.recv_timeout(self.patience()) {
                Ok(message) => {
                    self.take(message);
                    while let Ok(message) = self.inbox.try_recv() {
                        self.take(message);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if self.context.is_stopping() {
                return;
            }
            heartbeat::busy("reading the queue");
            let woken = self.context.meters.monitor.woken(done);
            let worked = self.work();
            done = self.context.meters.monitor.done(woken);
            match worked {
                Ok(()) if told_away => {
                    log::info!("the queue monitor can read the database again");
                    told_away = false;
                }
                Ok(()) => {}
                Err(error) => {
                    if !told_away {
                        log::error!("queue monitor: {error}; trying again until it works");
                        told_away = true;
                    }
                    heartbeat::idle("waiting for the database");
                    std::thread::sleep(AWAY_PAUSE);
                }
            }
        }
    }

    fn has_work(&self) -> bool {
        self.added_from.is_some()
            || self.shares_wanted
            || self.status_wanted
            || self.questions_wanted
            || self.orders_wanted
            || (self.pages_out == 0 && !self.wanted.is_empty())
    }

    /// How long to wait for a message.
    fn patience(&self) -> Duration {
        let now = Instant::now();
        if self.has_work() {
            return Duration::ZERO;
        }
        let list = self.list_wanted.then_some(self.list_not_before);
        let poll = self.context.queue_poll.map(|every| self.last_list + every);
        let next = [list, poll].into_iter().flatten().min();
        next.map_or(Duration::from_secs(3600), |at| {
            at.saturating_duration_since(now)
        })
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Listening => {
                self.list_wanted = true;
                self.shares_wanted = true;
                self.questions_wanted = self.context.own_tables;
                self.orders_wanted = self.context.own_tables;
            }
            Message::Again => self.list_wanted = true,
            Message::Notice { channel, payload } => match channel.as_str() {
                "builds_added" => {
                    let was_wanted = std::mem::replace(&mut self.list_wanted, true);
                    if let Ok(id) = payload.trim().parse::<i32>() {
                        if !was_wanted {
                            let at = Instant::now() + LIST_DELAY;
                            self.list_not_before = self.list_not_before.max(at);
                        }
                        let id = BuildId(id);
                        self.added_from = Some(self.added_from.map_or(id, |lowest| lowest.min(id)));
                    }
                }
                "jobset_shares_changed" => self.shares_wanted = true,
                "dump_status" => self.status_wanted = true,
                questions::ASKED => self.questions_wanted = self.context.own_tables,
                orders::CHANGED => self.orders_wanted = self.context.own_tables,
                _ => self.list_wanted = true,
            },
            Message::Read(builds) => self.wanted.push_back(builds),
            Message::PageTaken => self.pages_out = self.pages_out.saturating_sub(1),
        }
    }

    /// Does what is wanted and allowed now. What fails stays wanted.
    fn work(&mut self) -> Result<(), DbError> {
        // With a build of its own to do, none that are added matter.
        if self.context.build_one.is_some() {
            self.added_from = None;
        }
        if let Some(from) = self.added_from {
            let rows = self.read_builds(|conn| statements::builds_from(conn, from, PAGE as i64))?;
            self.send_rows(rows)?;
            self.added_from = None;
        }
        if self.status_wanted {
            self.status_wanted = false;
            self.context.dump_status();
        }
        if self.orders_wanted {
            let orders = orders::read(self.conn()?.client())?;
            self.context.tell_plan(Event::Orders { orders });
            self.orders_wanted = false;
        }
        if self.questions_wanted {
            self.answer_questions()?;
        }
        if self.shares_wanted {
            let known: Vec<i32> = self.known_jobsets.iter().map(|id| id.0).collect();
            for (id, shares) in statements::jobset_shares(&mut *self.conn()?, &known)? {
                self.context.tell_plan(Event::Shares { id, shares });
            }
            self.shares_wanted = false;
        }
        while self.pages_out == 0 {
            let Some(builds) = self.wanted.front() else {
                break;
            };
            let ids: Vec<i32> = builds.iter().map(|id| id.0).collect();
            let rows = self.read_builds(|conn| statements::builds(conn, &ids))?;
            self.send_rows(rows)?;
            self.wanted.pop_front();
        }
        self.tell_loaded();
        let now = Instant::now();
        let poll_due = self
            .context
            .queue_poll
            .is_some_and(|every| now >= self.last_list + every);
        if poll_due || (self.list_wanted && now >= self.list_not_before) {
            self.read_list()?;
            self.tell_loaded();
        }
        Ok(())
    }

    /// Answers what commands ask through the database.
    fn answer_questions(&mut self) -> Result<(), DbError> {
        let open = self.conn().and_then(|mut conn| questions::open(&mut conn));
        match open {
            Ok(open) => {
                for (id, question) in open {
                    let answer = self.context.answer(&question).to_string();
                    // A writer that has left answers nobody any more.
                    let _ = self
                        .context
                        .writer
                        .send(writer::Message::Answer(id, answer));
                }
            }
            Err(error) if error.is_lost() => return Err(error),
            // The queue goes on without.
            Err(error) => log::error!("questions cannot be read: {error}"),
        }
        self.questions_wanted = false;
        Ok(())
    }

    /// Says once that the queue found at start is loaded.
    fn tell_loaded(&mut self) {
        let Some((since, wanted, sent)) = self.loading else {
            return;
        };
        if sent >= wanted && self.pages_out == 0 {
            log::info!(
                "queue loaded: {wanted} builds in {} ms",
                since.elapsed().as_millis()
            );
            self.loading = None;
            if self.context.own_tables {
                self.context.pool.rehearse(REHEARSED, rehearse);
            }
        }
    }

    /// Reads which builds are unfinished now and tells the plan.
    fn read_list(&mut self) -> Result<(), DbError> {
        let began = Instant::now();
        self.list_wanted = false;
        self.last_list = began;
        self.pass += 1;
        let pass = Pass(self.pass);
        self.context.meters.lists_begun.add(1);
        self.context.tell_plan(Event::SnapshotBegins { pass });
        let written = Ticket(self.context.written.load(Ordering::SeqCst));
        let listed = self
            .conn()
            .and_then(|mut conn| statements::unfinished(&mut conn));
        let mut builds = listed.inspect_err(|_| self.list_wanted = true)?;
        if let Some(one) = self.context.build_one {
            builds.retain(|(id, _)| *id == one);
        }
        builds.sort_unstable_by_key(|(id, priority)| (std::cmp::Reverse(*priority), *id));
        let count = builds.len();
        if let Some((_, wanted @ usize::MAX, _)) = &mut self.loading {
            *wanted = count;
        }
        let mut chunks = builds.chunks(LIST_CHUNK).peekable();
        if chunks.peek().is_none() {
            self.context.tell_plan(Event::Snapshot {
                pass,
                written,
                builds: Vec::new(),
                last: true,
            });
        }
        while let Some(chunk) = chunks.next() {
            let last = chunks.peek().is_none();
            self.context.tell_plan(Event::Snapshot {
                pass,
                written,
                builds: chunk.to_vec(),
                last,
            });
        }
        let emergencies = if self.context.own_tables {
            statements::emergencies(&mut *self.conn()?, unix_now(), EMERGENCIES_MAX as i64)
                .inspect_err(|_| self.list_wanted = true)?
        } else {
            Vec::new()
        };
        if emergencies != self.emergencies {
            self.emergencies = emergencies.clone();
            self.context.tell_plan(Event::Emergencies {
                builds: emergencies,
            });
        }
        self.context.meters.lists_read.add(1);
        let took = began.elapsed();
        self.list_not_before = Instant::now() + (took * LIST_REST_FACTOR).min(LIST_REST_MAX);
        log::debug!(
            "checking the queue for builds... {count} unfinished, read in {} ms",
            took.as_millis()
        );
        Ok(())
    }

    fn send_rows(&mut self, rows: Vec<QueuedBuild>) -> Result<(), DbError> {
        // Everything that may fail comes first: what fails is done again from the beginning.
        for build in &rows {
            self.introduce(build.jobset)?;
        }
        for page in rows.chunks(PAGE) {
            self.context.tell_plan(Event::Builds {
                rows: page.to_vec(),
            });
            self.pages_out += 1;
            if let Some((_, _, sent)) = &mut self.loading {
                *sent += page.len();
            }
        }
        if rows.is_empty() {
            // Nothing of what was asked for is unfinished any more.
            log::debug!("the builds asked for are finished or gone");
        }
        Ok(())
    }

    /// Tells the plan of a jobset before its first build.
    fn introduce(&mut self, id: JobsetId) -> Result<(), DbError> {
        if self.known_jobsets.contains(&id) {
            return Ok(());
        }
        let since = unix_now() - i64::from(self.context.share_window_secs);
        if let Some(jobset) = statements::jobset(&mut *self.conn()?, id, since)? {
            self.context.tell_plan(Event::Jobset {
                id,
                name: jobset.name.into(),
                shares: jobset.shares,
                history: jobset.history,
            });
        }
        self.known_jobsets.insert(id);
        Ok(())
    }

    fn read_builds(
        &self,
        read: impl FnOnce(&mut Conn) -> Result<Vec<QueuedBuild>, DbError>,
    ) -> Result<Vec<QueuedBuild>, DbError> {
        let mut conn = self.conn()?;
        let began = Instant::now();
        let rows = read(&mut conn)?;
        let meters = &self.context.meters;
        meters.builds_read_time.add(began.elapsed());
        meters.builds_read.add(rows.len() as u64);
        Ok(rows)
    }

    fn conn(&self) -> Result<crate::db::PooledConn, DbError> {
        self.context.pool.get(Duration::from_secs(30))
    }
}

/// The body of the listening thread: hands on what comes, connects again whenever the connection is lost, and
/// holds the service's lock with the same session, so that losing one is losing the other.
pub fn listen(context: &Context, first: Sessions, monitor: &Sender<Message>) {
    let mut sessions = Some(first);
    loop {
        let Some(mut current) = sessions.take().or_else(|| connect(context)) else {
            return;
        };
        let mut checked = Instant::now();
        if monitor.send(Message::Listening).is_err() {
            return;
        }
        heartbeat::busy("listening");
        loop {
            heartbeat::progress();
            if context.lock_proof().is_none()
                || (checked.elapsed() >= LOCK_CHECK && current.lock.check().is_err())
            {
                context.lock_lost();
                log::error!(
                    "the session with our lock on the database is lost; taking the lock again"
                );
                break;
            }
            if checked.elapsed() >= LOCK_CHECK {
                checked = Instant::now();
            }
            match current.listener.next(Duration::from_millis(500)) {
                Ok(Some(notice)) => {
                    let message = Message::Notice {
                        channel: notice.channel,
                        payload: notice.payload,
                    };
                    if monitor.send(message).is_err() {
                        return;
                    }
                }
                Ok(None) if context.is_stopping() => return,
                Ok(None) => {}
                Err(error) => {
                    context.lock_lost();
                    log::error!("the listening connection is lost: {error}; connecting again");
                    break;
                }
            }
        }
    }
}

/// Connects, listens and takes the lock again, until it works or the process stops.
fn connect(context: &Context) -> Option<Sessions> {
    let mut told = false;
    while !context.is_stopping() {
        heartbeat::busy("connecting to the database");
        match context.listen_and_lock() {
            Ok(sessions) => {
                log::info!("listening on the database again");
                return Some(sessions);
            }
            Err(error) => {
                if !told {
                    log::error!(
                        "cannot listen on the database: {error}; trying again until it works"
                    );
                    told = true;
                }
                heartbeat::idle("waiting for the database");
                std::thread::sleep(AWAY_PAUSE);
            }
        }
    }
    None
}
