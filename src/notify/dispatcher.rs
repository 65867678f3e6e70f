//! The thread in the middle of the notifier: from what is heard to the ledger, from the ledger to the plan, from the plan to the
//! threads that tell, and what became of it back into the ledger.
//!
//! One **generation** lasts from taking the service's lock to losing it. What was being told when it was lost is answered in a
//! later generation, and recorded then unless somebody else has decided about it meanwhile.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{select, Receiver, Sender};

use super::event::{self, Event, CHANNELS, DUMP_METRICS};
use super::meters::{End, Meters};
use super::plan::{Decision, Ended, Key, Manner, Plan, Waiting, WAITING_MAX};
use super::plugins::{Failure, Plugin, Surroundings};
use super::{Config, Wanted, APPLICATION_NAME};
use crate::base::text;
use crate::db::facts::{self, Job as JobName};
use crate::db::ledger::{
    EventRow, Ledger, Outcome, State, WaitingRow, GIVEN_UP_FACTOR, PLANNED_MAX,
};
use crate::db::locks::ServiceLock;
use crate::db::pool::Pool;
use crate::db::{DbError, Ear, Notification};
use crate::model::{Millis, UnixSecs};
use crate::sys::clock::PlanClock;
use crate::sys::heartbeat;
use crate::sys::signals::Signal;

/// Notifications taken into the ledger in one transaction.
const HEARD_AT_ONCE: usize = 1_000;
/// How often the lock is made sure of, what was left over is looked at, and old rows are deleted.
const CHECK_EVERY: Duration = Duration::from_secs(10);
const SWEEP_EVERY: Duration = Duration::from_secs(60);
const CLEAN_EVERY: Duration = Duration::from_secs(3_600);
/// Of an error so many bytes are recorded.
const ERROR_BYTES_MAX: usize = 1_000;

/// Something for a thread to tell.
pub struct Job {
    pub generation: u64,
    /// When the event was.
    pub at: UnixSecs,
    pub event_id: i64,
    pub target: usize,
    pub event: Event,
    pub plugin: Arc<dyn Plugin>,
    pub around: Arc<Surroundings>,
}

/// What became of it.
pub struct Done {
    pub generation: u64,
    /// What the call took.
    pub took: Duration,
    pub channel: &'static str,
    /// From the event to the end of the call, seconds.
    pub age_secs: i64,
    pub event_id: i64,
    pub target: usize,
    /// The event, for the log.
    pub words: String,
    pub result: Result<(), Failure>,
}

/// Why serving ended without an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    Stop,
    StandBy,
}

/// Somebody who is told.
struct Addressee {
    /// In the ledger.
    name: String,
    /// As configured last.
    plugin: Arc<dyn Plugin>,
    /// Still configured.
    wanted: bool,
}

pub struct Dispatcher {
    pub meters: Arc<Meters>,
    /// Whoever is or was configured while this process lives, each with its number for good.
    targets: Vec<Addressee>,
    /// Channels that somebody wants to hear of.
    channels: Vec<&'static str>,
    around: Arc<Surroundings>,
    pool: Pool,
    ledger: Option<Ledger>,
    /// The lock of a service that is stopping: what is under way has to be recorded yet.
    kept: Option<Box<ServiceLock>>,
    clock: PlanClock,
    threads: usize,
    age_max: Duration,
    keep: Duration,
    plan: Plan,
    generation: u64,
    /// The events in the plan.
    events: BTreeMap<i64, (Event, usize, UnixSecs)>,
    /// Being told now, in whatever generation it began.
    in_flight: BTreeSet<Key>,
    /// Decided, and not yet in the ledger.
    unrecorded: Vec<Outcome>,
    /// Targets with more in the ledger than in the plan.
    more: Vec<bool>,
    /// There may be new events in the ledger.
    fresh: bool,
    jobs: Sender<Job>,
    done: Receiver<Done>,
}

impl Dispatcher {
    /// `threads` take jobs.
    pub fn new(
        wanted: &Wanted,
        threads: usize,
        jobs: Sender<Job>,
        done: Receiver<Done>,
    ) -> Dispatcher {
        let mut dispatcher = Dispatcher {
            meters: Arc::default(),
            targets: Vec::new(),
            channels: Vec::new(),
            pool: wanted.around.pool.clone(),
            around: wanted.around.clone(),
            ledger: None,
            kept: None,
            clock: PlanClock::start(),
            threads,
            age_max: wanted.age_max,
            keep: wanted.keep,
            plan: Plan::new(threads, 0, &[]),
            generation: 0,
            events: BTreeMap::new(),
            in_flight: BTreeSet::new(),
            unrecorded: Vec::new(),
            more: Vec::new(),
            fresh: true,
            jobs,
            done,
        };
        dispatcher.take(wanted);
        dispatcher
    }

    /// What is configured now counts from here on. What is under way goes on as it began.
    fn take(&mut self, wanted: &Wanted) {
        for target in &mut self.targets {
            target.wanted = false;
        }
        for plugin in &wanted.plugins {
            let known = self.targets.iter_mut().find(|t| t.name == plugin.target());
            match known {
                Some(known) => {
                    known.plugin = plugin.clone();
                    known.wanted = true;
                }
                None => self.targets.push(Addressee {
                    name: plugin.target().to_owned(),
                    plugin: plugin.clone(),
                    wanted: true,
                }),
            }
        }
        self.around = wanted.around.clone();
        self.age_max = wanted.age_max;
        self.keep = wanted.keep;
        let wants = |channel: &&'static str| {
            let mut plugins = wanted.plugins.iter();
            plugins.any(|plugin| plugin.channels().contains(channel))
        };
        self.channels = CHANNELS.into_iter().filter(wants).collect();
        // Its builds are marked as told even if nobody wants to know.
        if !self.channels.contains(&"build_finished") {
            self.channels.push("build_finished");
        }
        self.more = vec![true; self.targets.len()];
        self.configure_plan();
    }

    fn configure_plan(&mut self) {
        let age_ms_max = u64::try_from(self.age_max.as_millis()).unwrap_or(u64::MAX);
        let manner = |target: &Addressee| target.wanted.then(|| target.plugin.manner());
        let manners: Vec<Option<Manner>> = self.targets.iter().map(manner).collect();
        for key in self.plan.configure(self.clock.now(), age_ms_max, &manners) {
            self.release(key.event);
        }
    }

    fn new_plan(&mut self) {
        self.plan = Plan::new(self.threads, 0, &[]);
        self.events.clear();
        self.configure_plan();
    }

    /// SIGHUP: reads hydra.conf again. What is wrong with it changes nothing.
    pub fn read_again(&mut self, config: &Config) {
        heartbeat::busy("reading the settings");
        match super::read_again(config, &self.around) {
            Ok((wanted, remarks)) => {
                self.take(&wanted);
                self.meters.config(None);
                let names: Vec<&str> = wanted.plugins.iter().map(|p| p.target()).collect();
                log::info!("notifier: settings read again; {}", super::list(&names));
                for remark in remarks {
                    log::warn!("notifier: {remark}");
                }
            }
            Err(error) => {
                log::error!("notifier: settings not read again, the old ones stay: {error}");
                self.meters.config(Some(error.to_string()));
            }
        }
    }

    /// Those that are configured or still being told.
    fn kept_targets(&self) -> Vec<&str> {
        let kept = |number: usize, target: &Addressee| {
            target.wanted || self.in_flight.iter().any(|key| key.target == number)
        };
        let targets = self.targets.iter().enumerate();
        targets
            .filter(|(number, target)| kept(*number, target))
            .map(|(_, target)| target.name.as_str())
            .collect()
    }

    /// Calls under way.
    pub fn running(&self) -> usize {
        self.in_flight.len()
    }

    /// Serves as the active notifier until told to stop.
    ///
    /// # Errors
    /// When the database or our lock on it is lost; what is under way goes on.
    pub fn serve(
        &mut self,
        config: &Config,
        mut lock: Box<ServiceLock>,
        signals: &Receiver<Signal>,
    ) -> Result<Why, DbError> {
        self.generation += 1;
        self.new_plan();
        self.ledger = Some(Ledger::new(self.pool.clone(), lock.proof()?));
        // First, so that nothing is missed between looking and listening.
        // To all, whoever wants to hear of them: that may change, and nothing is to be missed or heard twice then.
        let channels = [&CHANNELS[..], &[DUMP_METRICS, RELEASED]].concat();
        let ear = Ear::listen(&config.target, APPLICATION_NAME, "notify-listen", &channels)?;
        self.take_over()?;
        log::info!("notifier: active");
        self.meters.active(true);
        let result = self.turns(config, &mut lock, signals, &ear);
        self.meters.active(false);
        if matches!(result, Ok(Why::Stop)) {
            self.kept = Some(lock);
        }
        result
    }

    /// Turn after turn, until told to stop or the database is lost.
    fn turns(
        &mut self,
        config: &Config,
        lock: &mut ServiceLock,
        signals: &Receiver<Signal>,
        ear: &Ear,
    ) -> Result<Why, DbError> {
        let (mut checked, mut swept, mut cleaned) =
            (Instant::now(), Instant::now(), None::<Instant>);
        let mut heard = Vec::new();
        loop {
            self.meters.turn();
            self.plan_new()?;
            self.reload()?;
            self.give_out();
            self.record()?;
            if config.queued_only && !self.plan.has_untried() && !self.more.contains(&true) {
                return Ok(Why::Stop);
            }
            let now = self.clock.now();
            let wake = match self.in_flight.len() < self.threads {
                true => self.plan.wake_at().map_or(u64::MAX, |at| at.since(now)),
                false => u64::MAX,
            };
            let pause =
                Duration::from_millis(wake).min(CHECK_EVERY.saturating_sub(checked.elapsed()));
            heartbeat::idle("waiting for something to tell");
            select! {
                recv(signals) -> signal => match signal {
                    Ok(Signal::Reload) => {
                        self.read_again(config);
                        let now = self.now_secs();
                        self.ledger().sign_of_life(now, &self.channels)?;
                        self.ledger().give_up_unconfigured(now, &self.kept_targets())?;
                    }
                    Ok(Signal::Stop) | Err(_) => return Ok(Why::Stop),
                },
                recv(ear.heard) -> message => match message {
                    Ok(Ok(message)) => heard.push(message),
                    Ok(Err(error)) => return Err(error),
                    Err(_) => return Err(DbError::ListenerLost { reason: "its thread has ended".to_owned() }),
                },
                recv(self.done) -> done => if let Ok(done) = done { self.ended(done) },
                default(pause) => {}
            }
            heartbeat::busy("writing the ledger");
            while heard.len() < HEARD_AT_ONCE {
                match ear.heard.try_recv() {
                    Ok(Ok(message)) => heard.push(message),
                    Ok(Err(error)) => {
                        self.hear(&mut heard)?;
                        return Err(error);
                    }
                    Err(_) => break,
                }
            }
            while let Ok(done) = self.done.try_recv() {
                self.ended(done);
            }
            // Calls go on while their outcomes are written.
            self.give_out();
            self.record()?;
            self.hear(&mut heard)?;
            if checked.elapsed() >= CHECK_EVERY {
                lock.check()?;
                checked = Instant::now();
            }
            if swept.elapsed() >= SWEEP_EVERY {
                self.sweep()?;
                swept = Instant::now();
            }
            if cleaned.is_none_or(|at| at.elapsed() >= CLEAN_EVERY) {
                self.clean()?;
                cleaned = Some(Instant::now());
            }
        }
    }

    /// Waits for what is under way, and records it.
    pub fn finish(&mut self, patience: Duration) {
        let until = Instant::now() + patience;
        while !self.in_flight.is_empty() {
            match self.done.recv_deadline(until) {
                Ok(done) => self.ended(done),
                Err(_) => break,
            }
            if let Err(error) = self.record() {
                log::warn!("notifier: {error}");
            }
        }
        if let Err(error) = self.record() {
            log::warn!("notifier: {error}; what was told just now may be told again");
        }
    }

    fn ledger(&self) -> &Ledger {
        self.ledger
            .as_ref()
            .expect("BUG: the ledger is written without the lock")
    }

    fn now_secs(&self) -> UnixSecs {
        crate::sys::clock::unix_now()
    }

    /// What an active notifier does first.
    fn take_over(&mut self) -> Result<(), DbError> {
        let now = self.now_secs();
        // First, since it waits for whoever was active before.
        self.ledger().sign_of_life(now, &self.channels)?;
        self.record()?;
        let held_before = now - i64::try_from(self.age_max.as_secs()).unwrap_or(0);
        self.ledger().take_over(now, held_before)?;
        self.ledger()
            .give_up_unconfigured(now, &self.kept_targets())?;
        self.adopt(held_before)?;
        self.ledger().recover_pending(now, held_before)?;
        let backlog = crate::db::ledger::backlog(&mut *self.pool.get(Duration::from_secs(30))?)?;
        if backlog.held > 0 {
            log::warn!(
                "notifier: {} events are older than {} and held; `hydrad notifications` shows them, and `hydrad notifications \
                 replay` or `discard` decides",
                backlog.held,
                text::duration(self.age_max.as_secs() as i64),
            );
        }
        self.fresh = true;
        self.more = vec![true; self.targets.len()];
        Ok(())
    }

    /// An operator has decided about rows: what is not being told is read anew.
    fn forget(&mut self) {
        for key in self.plan.forget_idle() {
            self.release(key.event);
        }
        self.more = vec![true; self.targets.len()];
    }

    fn adopt(&mut self, held_before: UnixSecs) -> Result<(), DbError> {
        let classes: Vec<(&str, String)> = self
            .targets
            .iter()
            .filter(|target| target.wanted)
            .filter_map(|target| Some((target.plugin.class()?, target.name.clone())))
            .collect();
        if classes.is_empty() {
            return Ok(());
        }
        let is_event = |channel: &str, payload: &str| event::parse(channel, payload).is_ok();
        let adopted = self
            .ledger()
            .adopt_retries(held_before, &classes, is_event)?;
        if adopted > 0 {
            log::info!(
                "notifier: {adopted} rows of TaskRetries are taken over from Hydra's notifier"
            );
            self.more = vec![true; self.targets.len()];
        }
        Ok(())
    }

    fn sweep(&mut self) -> Result<(), DbError> {
        let now = self.now_secs();
        self.ledger().sign_of_life(now, &self.channels)?;
        self.ledger().sweep()?;
        self.ledger()
            .give_up_unconfigured(now, &self.kept_targets())?;
        for target in self.targets.iter().filter(|target| target.wanted) {
            target.plugin.sweep(&self.pool)?;
        }
        let held_before = now - i64::try_from(self.age_max.as_secs()).unwrap_or(0);
        self.fresh = true;
        self.adopt(held_before)
    }

    fn clean(&self) -> Result<(), DbError> {
        let now = self.now_secs();
        let keep = i64::try_from(self.keep.as_secs()).unwrap_or(i64::MAX / GIVEN_UP_FACTOR);
        let deleted = self.ledger().delete_old(
            now.saturating_sub(keep),
            now.saturating_sub(keep.saturating_mul(GIVEN_UP_FACTOR)),
        )?;
        if deleted > 0 {
            log::debug!("notifier: {deleted} old events are deleted from the ledger");
        }
        Ok(())
    }

    /// Takes what was heard into the ledger.
    fn hear(&mut self, heard: &mut Vec<Notification>) -> Result<(), DbError> {
        if heard.iter().any(|message| message.channel == DUMP_METRICS) {
            let page = self.meters.page(None, self.now_secs());
            eprintln!("{}", page.trim_end());
        }
        if heard.iter().any(|message| message.channel == RELEASED) {
            self.forget();
        }
        heard.retain(|message| match message.channel.as_str() {
            DUMP_METRICS => false,
            RELEASED => {
                self.fresh = true;
                false
            }
            channel if !self.channels.contains(&channel) => false,
            channel => match event::parse(channel, &message.payload) {
                Ok(_) => true,
                Err(error) => {
                    self.meters.bad_event(channel);
                    log::warn!("{error}");
                    false
                }
            },
        });
        if !heard.is_empty() {
            self.fresh = true;
            self.ledger().hear(self.now_secs(), heard)?;
            heard.clear();
        }
        Ok(())
    }

    /// Plans deliveries for new events.
    fn plan_new(&mut self) -> Result<(), DbError> {
        while self.fresh {
            let targets = &self.targets;
            let (meters, now) = (&self.meters, self.now_secs());
            let targets_of = |event: &EventRow| {
                meters.event(&event.channel, now);
                targets
                    .iter()
                    .filter(|target| target.wanted)
                    .filter(|target| target.plugin.channels().contains(&event.channel.as_str()))
                    .filter(|target| event.declares || !target.plugin.wants_declarations_alone())
                    .map(|target| target.name.clone())
                    .collect()
            };
            let (looked_at, waiting) = self.ledger().plan(self.now_secs(), targets_of)?;
            self.add_all(waiting)?;
            self.fresh = looked_at >= PLANNED_MAX as usize;
            self.give_out();
        }
        Ok(())
    }

    /// Takes in what did not fit before.
    fn reload(&mut self) -> Result<(), DbError> {
        for target in 0..self.targets.len() {
            if self.more[target] && self.plan.waiting(target) <= WAITING_MAX / 2 {
                self.more[target] = false;
                let name = &self.targets[target].name;
                let rows = self.ledger().waiting(name, WAITING_MAX)?;
                self.add_all(rows)?;
            }
        }
        Ok(())
    }

    /// The jobs of the builds that these are about, where somebody has to know them.
    fn jobs_of(&self, rows: &[WaitingRow]) -> Result<HashMap<i32, JobName>, DbError> {
        let shares = |row: &&WaitingRow| {
            let mut targets = self.targets.iter().filter(|t| t.name == row.target);
            targets.any(|target| target.wanted && target.plugin.shares_statuses())
        };
        let rows = rows.iter().filter(shares);
        let builds: BTreeSet<i32> = rows.flat_map(|row| row.event.builds.clone()).collect();
        if builds.is_empty() {
            return Ok(HashMap::new());
        }
        let builds: Vec<i32> = builds.into_iter().collect();
        facts::jobs(&mut *self.pool.get(Duration::from_secs(30))?, &builds)
    }

    fn add_all(&mut self, rows: Vec<WaitingRow>) -> Result<(), DbError> {
        let jobs = self.jobs_of(&rows)?;
        for row in rows {
            self.add(row, &jobs);
        }
        Ok(())
    }

    fn add(&mut self, row: WaitingRow, jobs: &HashMap<i32, JobName>) {
        let is_meant = |target: &Addressee| target.wanted && target.name == row.target;
        let Some(target) = self.targets.iter().position(is_meant) else {
            return;
        };
        let event = row.event.id;
        let key = Key { event, target };
        if self.plan.contains(key) || self.in_flight.contains(&key) {
            return;
        }
        if !self.plan.has_room(target) {
            self.more[target] = true;
            return;
        }
        let parsed = match event::parse(&row.event.channel, &row.event.payload) {
            Ok(parsed) => parsed,
            Err(error) => {
                // Only rows that somebody wrote by hand.
                self.unrecorded.push(self.outcome(
                    key,
                    State::GivenUp,
                    row.attempts,
                    0,
                    Some(error.to_string()),
                ));
                return;
            }
        };
        self.events
            .entry(event)
            .or_insert((parsed, 0, row.event.at))
            .1 += 1;
        let plugin = &self.targets[target].plugin;
        let jobs = row.event.builds.iter().filter_map(|build| jobs.get(build));
        let statuses: BTreeSet<Arc<str>> = jobs
            .filter(|_| plugin.shares_statuses())
            .flat_map(|job| plugin.statuses(job))
            .map(Arc::from)
            .collect();
        let waiting = Waiting {
            key,
            builds: row.event.builds,
            statuses: statuses.into_iter().collect(),
            at: Millis::from_secs(u64::try_from(row.event.at).unwrap_or(0)),
            attempts: row.attempts,
            due: Millis::from_secs(u64::try_from(row.due_at).unwrap_or(0)),
        };
        for (key, decision) in self.plan.add(self.clock.now(), waiting) {
            self.decided(key, decision, None);
        }
    }

    /// Gives the threads whatever may be told now.
    fn give_out(&mut self) {
        while self.in_flight.len() < self.threads {
            let Some((key, _)) = self.plan.next(self.clock.now()) else {
                return;
            };
            let (event, _, at) = self
                .events
                .get(&key.event)
                .expect("BUG: an event of the plan is known");
            self.in_flight.insert(key);
            let job = Job {
                generation: self.generation,
                at: *at,
                event_id: key.event,
                target: key.target,
                event: event.clone(),
                plugin: self.targets[key.target].plugin.clone(),
                around: self.around.clone(),
            };
            if self.jobs.send(job).is_err() {
                log::error!("notifier: all its threads have ended");
                std::process::exit(1);
            }
        }
    }

    fn ended(&mut self, done: Done) {
        let key = Key {
            event: done.event_id,
            target: done.target,
        };
        self.in_flight.remove(&key);
        let (ended, words) = match done.result {
            Ok(()) => (Ended::Delivered, None),
            Err(failure) => (failure.ended, Some(failure.text)),
        };
        if done.generation == self.generation {
            let decision = self.plan.ended(self.clock.now(), key, ended);
            let (end, attempts) = match decision {
                Decision::Delivered { attempts } => (End::Success, attempts),
                Decision::Retry { attempts, .. } => (End::Requeue, attempts),
                Decision::GiveUp { attempts } | Decision::Superseded { attempts } => {
                    (End::Drop, attempts)
                }
                Decision::Postponed => (End::Postponed, 0),
            };
            self.meters.call(
                done.channel,
                &self.targets[key.target].name,
                done.took,
                done.age_secs,
                attempts,
                end,
            );
            self.tell(&done.words, key, decision, words.as_deref());
            self.decided(key, decision, words);
            return;
        }
        // Begun before the lock was lost: if it failed it is simply tried again.
        if ended == Ended::Delivered {
            let outcome = self.outcome(key, State::Delivered, 1, 0, None);
            self.unrecorded.push(outcome);
        } else if let Some(more) = self.more.get_mut(key.target) {
            *more = true;
        }
    }

    fn tell(&self, event: &str, key: Key, decision: Decision, words: Option<&str>) {
        let target = &self.targets[key.target].name;
        let words = words.unwrap_or("");
        match decision {
            Decision::Postponed => log::debug!("{target}: not yet {event}: {words}"),
            Decision::Delivered { .. } => log::debug!("{target}: told of {event}"),
            Decision::Retry { due, attempts } => {
                let secs = due.since(self.clock.now()).div_ceil(1_000);
                log::warn!("{target}: cannot tell of {event}: {words}; try {attempts} failed, next in {secs} s");
            }
            Decision::Superseded { .. } => {
                log::warn!(
                    "{target}: cannot tell of {event}: {words}; a newer state takes its place"
                );
            }
            Decision::GiveUp { attempts } => {
                log::error!("{target}: cannot tell of {event}: {words}; given up after {attempts} tries, `hydrad notifications` shows it");
            }
        }
    }

    fn decided(&mut self, key: Key, decision: Decision, error: Option<String>) {
        let (state, attempts, due) = match decision {
            Decision::Delivered { attempts } => (State::Delivered, attempts, 0),
            Decision::Retry { attempts, due } => (State::Waiting, attempts, due.secs()),
            Decision::GiveUp { attempts } => (State::GivenUp, attempts, 0),
            Decision::Superseded { attempts } => (State::Superseded, attempts, 0),
            Decision::Postponed => return,
        };
        let outcome = self.outcome(key, state, attempts, due, error);
        self.unrecorded.push(outcome);
        if state != State::Waiting {
            self.release(key.event);
        }
    }

    fn outcome(
        &self,
        key: Key,
        state: State,
        attempts: u32,
        due_at: UnixSecs,
        error: Option<String>,
    ) -> Outcome {
        Outcome {
            event: key.event,
            target: self.targets[key.target].name.clone(),
            class: self.targets[key.target].plugin.class(),
            ends_builds: self
                .events
                .get(&key.event)
                .is_none_or(|(event, ..)| matches!(event, Event::BuildFinished { .. })),
            state,
            attempts,
            due_at,
            error: error.map(|error| text::presentable(error.as_bytes(), ERROR_BYTES_MAX)),
        }
    }

    fn release(&mut self, event: i64) {
        if let Some((_, count, _)) = self.events.get_mut(&event) {
            *count -= 1;
            if *count == 0 {
                self.events.remove(&event);
            }
        }
    }

    /// Writes what was decided.
    fn record(&mut self) -> Result<(), DbError> {
        if self.unrecorded.is_empty() {
            return Ok(());
        }
        // A delivery may have ended twice since: only the last counts.
        let mut outcomes: BTreeMap<(i64, &str), Outcome> = BTreeMap::new();
        for outcome in &self.unrecorded {
            outcomes.insert((outcome.event, outcome.target.as_str()), outcome.clone());
        }
        let outcomes: Vec<Outcome> = outcomes.into_values().collect();
        self.ledger().record(self.now_secs(), &outcomes)?;
        self.unrecorded.clear();
        Ok(())
    }
}

/// An operator has released held events; empty payload.
pub const RELEASED: &str = "hydrad_notifications";
