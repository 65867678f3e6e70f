//! The shadow: a plan beside another queue runner, which follows what that one does and reports where it would have
//! decided otherwise. Writes nothing, takes no lock, connects to no machine.
//!
//! What the other one starts and ends is read from its rows every second and told to the plan, which starts nothing
//! itself. So the plan stays in step with reality, and each difference is one of a single decision, not of a world that
//! has drifted apart. Everything must last longer than a grace time to count, since the other one needs time to act too.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{unbounded, Receiver, RecvTimeoutError, Sender};
use serde_json::json;

use super::driver::Inbox;
use super::inspect::{self, Question};
use super::observe::{observe, Observer, APPLICATION_NAME};
use super::{
    machines_files, monitor, parsers, plan_settings, spawn, watch_machines, Context, Error,
    INSPECTORS,
};
use crate::config::settings::Settings;
use crate::db::connect::DbTarget;
use crate::db::listen::Listener;
use crate::db::observed::{self, ObservedStep};
use crate::db::DbError;
use crate::model::{BuildId, BuildOutput, BuildStatus, MachineId, Phase, RunId, Ticket, UnixSecs};
use crate::plan::action::{Action, Record};
use crate::plan::event::{Event, Outcome, PlanSettings, RunEnd};
use crate::plan::follow::Stands;
use crate::plan::Plan;
use crate::store::nix_conf;
use crate::sys::clock::{unix_now, PlanClock};
use crate::sys::signals::Signal;

/// How often the other one's rows are read.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Rows that ended this long ago are not read again.
const ENDED_SECS: i64 = 60;
/// Ended attempts are remembered so long, so that they are not taken for new ones.
const SETTLED_KEPT: Duration = Duration::from_secs(300);
/// Starts of other steps on machines that could have taken it, before a step counts as passed over.
const PASSED_OVER_MIN: u32 = 3;
/// Differences that are remembered so that they are told once.
const TOLD_MAX: usize = 100_000;
/// Examples shown for each kind in a summary.
const EXAMPLES: usize = 3;
const CONNECTION_PATIENCE: Duration = Duration::from_secs(30);
const AWAY_PAUSE: Duration = Duration::from_secs(2);

/// What the shadow is asked for.
pub struct Options {
    /// How long something has to last to be a difference.
    pub grace: Duration,
    pub summary_every: Duration,
    pub json: bool,
}

/// A kind of difference.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Kind {
    /// The other one runs a step that the plan would not have started.
    StartedEarly,
    /// A slot is free, a step is ready for it, and the other one does not start it.
    NotStarted,
    /// Others were started again and again though this step comes first.
    Order,
    /// A build ended in another way.
    BuildStatus,
    /// A build should have ended.
    BuildLate,
    /// A step was started though one of our caps is reached.
    Cap,
    /// A step runs on a machine that could not do it by our machines file.
    Machine,
    /// A machine that is not in the machines file.
    UnknownMachine,
    /// A line of the machines file that is left out.
    Configuration,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::StartedEarly => "started-early",
            Kind::NotStarted => "not-started",
            Kind::Order => "order",
            Kind::BuildStatus => "build-status",
            Kind::BuildLate => "build-late",
            Kind::Cap => "cap",
            Kind::Machine => "machine",
            Kind::UnknownMachine => "unknown-machine",
            Kind::Configuration => "configuration",
        }
    }
}

/// The differences found so far.
struct Ledger {
    json: bool,
    told: HashSet<(Kind, String)>,
    found: BTreeMap<Kind, (u64, Vec<String>)>,
    /// Starts and ended builds about which there was agreement.
    starts_alike: u64,
    builds_alike: u64,
    /// Starts on the machine that we would have chosen, and on another one that could do the step.
    machines_alike: u64,
    machines_other: u64,
}

impl Ledger {
    /// Tells a difference, once for each key.
    fn tell(&mut self, kind: Kind, key: impl Into<String>, text: String) {
        if self.told.len() >= TOLD_MAX || !self.told.insert((kind, key.into())) {
            return;
        }
        if self.json {
            println!(
                "{}",
                json!({ "type": "difference", "time": unix_now(), "kind": kind.name(), "text": text })
            );
        } else {
            println!("{}: {text}", kind.name());
        }
        let (count, examples) = self.found.entry(kind).or_default();
        *count += 1;
        if examples.len() < EXAMPLES {
            examples.push(text);
        }
    }

    fn summary(&self) {
        if self.json {
            let kinds: serde_json::Map<String, serde_json::Value> = self
                .found
                .iter()
                .map(|(kind, (count, examples))| {
                    (
                        kind.name().to_owned(),
                        json!({ "count": count, "examples": examples }),
                    )
                })
                .collect();
            println!(
                "{}",
                json!({
                    "type": "summary", "time": unix_now(), "startsAlike": self.starts_alike,
                    "buildsAlike": self.builds_alike, "machinesAlike": self.machines_alike,
                    "machinesOther": self.machines_other, "differences": kinds,
                })
            );
            return;
        }
        println!(
            "summary: {} starts and {} ended builds alike, {} differences",
            self.starts_alike,
            self.builds_alike,
            self.found.values().map(|(count, _)| count).sum::<u64>()
        );
        println!(
            "  {} of {} starts were on the machine that we would have chosen",
            self.machines_alike,
            self.machines_alike + self.machines_other
        );
        for (kind, (count, examples)) in &self.found {
            println!("  {count} {}", kind.name());
            for example in examples {
                println!("    {example}");
            }
        }
    }
}

/// An attempt of the other one that is not settled.
struct Seen {
    row: ObservedStep,
    since: Instant,
    run: Option<RunId>,
}

struct Shadow {
    context: Arc<Context>,
    plan: Plan,
    clock: PlanClock,
    options: Options,
    ledger: Ledger,
    questions: Sender<Question>,
    monitor: Sender<monitor::Message>,
    /// Events this thread makes itself.
    own: VecDeque<Event>,
    began: UnixSecs,
    seen: BTreeMap<(BuildId, i32), Seen>,
    settled: HashMap<(BuildId, i32, UnixSecs), Instant>,
    /// How the plan has ended builds of which the rows say nothing yet.
    expected: HashMap<BuildId, (BuildStatus, Instant)>,
    /// Tickets that count as written once their builds have really ended.
    owed: VecDeque<(Ticket, Vec<BuildId>)>,
    /// Builds announced as ended, and what the plan thought of them then.
    heard: HashMap<BuildId, (Instant, Option<String>)>,
    /// Machines with a free slot and a step for it.
    idle: HashMap<MachineId, Instant>,
    passed_over: HashMap<Arc<str>, (u32, Instant)>,
    /// Machines that the other one has probably set aside after an error, by name.
    aside: HashMap<String, Aside>,
}

/// Hydra's own delays: 60 · 3^(n-1) s after the nth error, and up to 30 s by chance; errors within 30 s count once.
struct Aside {
    errors: u32,
    last: Instant,
}

const ASIDE_SECS: u64 = 60;
const ASIDE_CHANCE_SECS: u64 = 30;
const ASIDE_BURST: Duration = Duration::from_secs(30);
/// More errors than these make it no longer.
const ASIDE_ERRORS_MAX: u32 = 8;

impl Aside {
    fn is_over(&self) -> bool {
        let secs = ASIDE_SECS * 3u64.pow(self.errors.clamp(1, ASIDE_ERRORS_MAX) - 1);
        self.last.elapsed() > Duration::from_secs(secs + ASIDE_CHANCE_SECS)
    }
}

/// Follows the queue runner of this database until a signal comes. True if there was no difference.
///
/// # Errors
/// What would also keep the queue runner from starting (see `observe`).
pub fn run(
    settings: &Settings,
    target: &DbTarget,
    options: Options,
    signals: &Receiver<Signal>,
) -> Result<bool, Error> {
    let Observer { context, inbox, .. } = &observe(settings, target)?;
    let (questions, asked) = unbounded();
    let (monitor_sender, monitor_inbox) = unbounded();
    // Held until the end: the machines' thread leaves without it.
    let (_reload, machines_inbox) = unbounded();
    let parsers = Arc::new(parsers()?);
    for name in ["inspect-1", "inspect-2"].iter().take(INSPECTORS) {
        let (context, parsers, asked) = (context.clone(), parsers.clone(), asked.clone());
        spawn(name, move || inspect::serve(&context, &parsers, &asked))?;
    }
    let monitor = monitor::Monitor::new(context.clone(), monitor_inbox);
    spawn("monitor", move || monitor.run())?;
    let files = machines_files(nix_conf::local_host());
    let for_machines = context.clone();
    spawn("machines", move || {
        watch_machines::watch(&for_machines, files, &machines_inbox);
    })?;
    let (heard_sender, heard) = unbounded();
    let (for_listener, to_monitor) = (context.clone(), monitor_sender.clone());
    spawn("listen", move || {
        listen(&for_listener, &to_monitor, &heard_sender)
    })?;

    let clock = PlanClock::start();
    let plan_settings = PlanSettings {
        // Builds end when the other one ends them, and nothing waits for that.
        unwritten_tickets_max: u64::MAX,
        ..plan_settings(settings)
    };
    let mut plan = Plan::new(plan_settings, 0, clock.now());
    plan.follow();
    let mut shadow = Shadow {
        context: context.clone(),
        plan,
        clock,
        ledger: Ledger {
            json: options.json,
            told: HashSet::new(),
            found: BTreeMap::new(),
            starts_alike: 0,
            builds_alike: 0,
            machines_alike: 0,
            machines_other: 0,
        },
        options,
        questions,
        monitor: monitor_sender,
        own: VecDeque::new(),
        began: unix_now(),
        seen: BTreeMap::new(),
        settled: HashMap::new(),
        expected: HashMap::new(),
        owed: VecDeque::new(),
        heard: HashMap::new(),
        idle: HashMap::new(),
        passed_over: HashMap::new(),
        aside: HashMap::new(),
    };
    shadow.look_at_machines_file();
    log::info!(
        "following the queue runner of {}; nothing is written",
        target.describe()
    );
    shadow.serve(inbox, &heard, signals);
    shadow.context.stopping.store(true, Ordering::SeqCst);
    shadow.ledger.summary();
    Ok(shadow.ledger.found.is_empty())
}

/// Hands on what is announced; connects again whenever the connection is lost.
fn listen(context: &Context, monitor: &Sender<monitor::Message>, heard: &Sender<String>) {
    // Not asked for its status: that is the other one's to answer.
    let channels: Vec<&str> = monitor::CHANNELS
        .into_iter()
        .filter(|channel| *channel != "dump_status")
        .chain(["build_finished"])
        .collect();
    while !context.is_stopping() {
        let mut listener = match Listener::connect(&context.target, APPLICATION_NAME, &channels) {
            Ok(listener) => listener,
            Err(error) => {
                log::warn!("cannot listen on the database: {error}");
                std::thread::sleep(AWAY_PAUSE);
                continue;
            }
        };
        if monitor.send(monitor::Message::Listening).is_err() {
            return;
        }
        while !context.is_stopping() {
            match listener.next(Duration::from_millis(500)) {
                Ok(Some(notice)) if notice.channel == "build_finished" => {
                    let _ = heard.send(notice.payload);
                }
                Ok(Some(notice)) => {
                    let _ = monitor.send(monitor::Message::Notice {
                        channel: notice.channel,
                        payload: notice.payload,
                    });
                }
                Ok(None) => {}
                Err(error) => {
                    log::warn!("the listening connection is lost: {error}");
                    break;
                }
            }
        }
    }
}

impl Shadow {
    fn look_at_machines_file(&mut self) {
        match machines_files(nix_conf::local_host()).read() {
            Ok(read) => {
                for error in &read.errors {
                    let text = format!("machines file: {error}");
                    self.ledger.tell(Kind::Configuration, text.clone(), text);
                }
            }
            Err(error) => {
                let text = error.to_string();
                self.ledger.tell(Kind::Configuration, text.clone(), text);
            }
        }
    }

    fn serve(
        &mut self,
        inbox: &Receiver<Inbox>,
        heard: &Receiver<String>,
        signals: &Receiver<Signal>,
    ) {
        let mut next_look = Instant::now();
        let mut next_summary = Instant::now() + self.options.summary_every;
        let mut told_away = false;
        loop {
            match signals.try_recv() {
                Ok(Signal::Stop) | Err(crossbeam_channel::TryRecvError::Disconnected) => return,
                _ => {}
            }
            let wake = self.plan.wake_at().and_then(|at| self.clock.instant(at));
            let until = wake.map_or(next_look, |wake| wake.min(next_look));
            match inbox.recv_deadline(until) {
                Ok(Inbox::Event(event)) => self.turn(event),
                // Nobody asks a shadow.
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => self.turn(Event::Tick),
                Err(RecvTimeoutError::Disconnected) => return,
            }
            for payload in heard.try_iter() {
                self.hear(&payload);
            }
            if Instant::now() >= next_look {
                match self.look() {
                    Ok(()) => told_away = false,
                    Err(error) if !told_away => {
                        log::warn!("cannot read the other queue runner's rows: {error}");
                        told_away = true;
                    }
                    Err(_) => {}
                }
                next_look = Instant::now() + LOOK_EVERY;
            }
            if Instant::now() >= next_summary {
                self.ledger.summary();
                next_summary = Instant::now() + self.options.summary_every;
            }
        }
    }

    fn turn(&mut self, event: Event) {
        self.own.push_back(event);
        let mut actions = Vec::new();
        while let Some(event) = self.own.pop_front() {
            let now = self.clock.now();
            self.plan.turn(now, &mut vec![event], &mut actions);
            let mut batch = Vec::new();
            for action in actions.drain(..) {
                match action {
                    Action::Inspect { question, drv } => batch.push((question, drv)),
                    Action::Describe { question, .. } => self.own.push_back(Event::Described {
                        question,
                        output: Ok(Arc::new(BuildOutput::default())),
                    }),
                    Action::ReadBuilds { builds } => {
                        let _ = self.monitor.send(monitor::Message::Read(builds));
                    }
                    Action::PageTaken => {
                        let _ = self.monitor.send(monitor::Message::PageTaken);
                    }
                    Action::Record { ticket, record } => self.record(ticket, record),
                    Action::Say { text, .. } => log::debug!("{text}"),
                    // It starts nothing, and what the other one runs is not ours to kill.
                    _ => {}
                }
            }
            if !batch.is_empty() {
                let _ = self.questions.send(Question::Inspect(batch));
            }
        }
    }

    /// What the plan would write is what is expected of the other one.
    fn record(&mut self, ticket: Ticket, record: Record) {
        let ended: Vec<(BuildId, BuildStatus)> = match record {
            Record::Succeed(succeed) => succeed
                .builds
                .into_iter()
                .map(|(build, _)| (build, BuildStatus::Succeeded))
                .collect(),
            Record::Fail(fail) => fail
                .builds
                .iter()
                .map(|build| (build.id, build.status))
                .collect(),
            Record::Abort { builds, .. } => builds
                .into_iter()
                .map(|build| (build, BuildStatus::Aborted))
                .collect(),
            _ => Vec::new(),
        };
        let builds = ended.iter().map(|(build, _)| *build).collect();
        for (build, status) in ended {
            self.expected.insert(build, (status, Instant::now()));
        }
        self.owed.push_back((ticket, builds));
    }

    fn hear(&mut self, payload: &str) {
        for word in payload.split('\t') {
            let Ok(build) = word.trim().parse::<i32>() else {
                continue;
            };
            let build = BuildId(build);
            let why = if self.expected.contains_key(&build) {
                None
            } else {
                self.plan.why(self.clock.now(), build)
            };
            self.heard.entry(build).or_insert((Instant::now(), why));
        }
    }

    /// Reads what the other one does, tells the plan, and compares.
    fn look(&mut self) -> Result<(), DbError> {
        let known: Vec<(BuildId, i32)> = self.seen.keys().copied().collect();
        let since = (unix_now() - ENDED_SECS).max(self.began);
        let (rows, ended) = {
            let mut conn = self.context.pool.get(CONNECTION_PATIENCE)?;
            let rows = observed::steps(&mut conn, since, &known)?;
            let mut builds: HashSet<i32> = self.expected.keys().map(|build| build.0).collect();
            builds.extend(self.heard.keys().map(|build| build.0));
            builds.extend(
                rows.iter()
                    .filter(|row| row.busy == 0)
                    .map(|row| row.build.0),
            );
            let builds: Vec<i32> = builds.into_iter().collect();
            (rows, observed::ended_builds(&mut conn, &builds)?)
        };
        let ended: HashMap<BuildId, Option<i32>> = ended.into_iter().collect();
        self.notice(rows, &known);
        // A slot is left before it is taken again; and what began and ended since the last look does both now.
        self.follow_ends(&ended, true);
        self.follow_starts();
        self.follow_ends(&ended, false);
        self.compare_builds(&ended);
        self.compare_idle();
        self.acknowledge();
        self.settled.retain(|_, at| at.elapsed() < SETTLED_KEPT);
        if self.passed_over.len() > TOLD_MAX {
            self.passed_over.clear();
        }
        Ok(())
    }

    fn notice(&mut self, rows: Vec<ObservedStep>, known: &[(BuildId, i32)]) {
        let there: HashSet<(BuildId, i32)> =
            rows.iter().map(|row| (row.build, row.stepnr)).collect();
        for row in rows {
            let key = (row.build, row.stepnr);
            if self
                .settled
                .contains_key(&(row.build, row.stepnr, row.start))
            {
                continue;
            }
            match self.seen.get_mut(&key) {
                Some(seen) => seen.row = row,
                None => {
                    self.seen.insert(
                        key,
                        Seen {
                            row,
                            since: Instant::now(),
                            run: None,
                        },
                    );
                }
            }
        }
        // Deleted with their builds.
        for key in known.iter().filter(|key| !there.contains(*key)) {
            if let Some(seen) = self.seen.remove(key) {
                self.end(seen.run, seen.row.start, Outcome::Cancelled);
            }
        }
    }

    /// Tells the plan of what the other one has started.
    fn follow_starts(&mut self) {
        let mut waiting: Vec<(UnixSecs, BuildId, i32)> = self
            .seen
            .iter()
            .filter(|(_, seen)| seen.run.is_none())
            .map(|(key, seen)| (seen.row.start, key.0, key.1))
            .collect();
        waiting.sort_unstable();
        for (_, build, stepnr) in waiting {
            let Some(seen) = self.seen.get(&(build, stepnr)) else {
                continue;
            };
            let (row, age) = (seen.row.clone(), seen.since.elapsed());
            let now = self.clock.now();
            let machine = self.context.machines.recorded_as(&row.machine);
            if machine.is_none() && !row.machine.is_empty() && self.has_machines() {
                self.ledger.tell(
                    Kind::UnknownMachine,
                    row.machine.clone(),
                    format!(
                        "step {stepnr} of build {build} runs on ‘{}’, which is not in our machines file",
                        row.machine
                    ),
                );
            }
            match self.plan.standing(now, &row.drv) {
                Stands::Ready => {
                    let first = self
                        .context
                        .machines
                        .all()
                        .first()
                        .map(|machine| machine.id);
                    let Some(machine) = machine.map(|machine| machine.id).or(first) else {
                        continue;
                    };
                    self.compare_order(&row, machine);
                    self.compare_machine(&row, machine);
                    let run = self.plan.started_elsewhere(now, &row.drv, machine);
                    if run.is_some() {
                        log::info!(
                            "started there: ‘{}’ on ‘{}’ (step {stepnr} of build {build})",
                            row.drv,
                            row.machine
                        );
                        self.ledger.starts_alike += 1;
                    }
                    if let Some(seen) = self.seen.get_mut(&(build, stepnr)) {
                        seen.run = run;
                    }
                }
                // An earlier attempt whose end is not clear yet.
                Stands::Running => {}
                Stands::Valid => {}
                Stands::Waits(why) if row.busy != 0 && age >= self.options.grace => {
                    self.ledger.tell(
                        Kind::StartedEarly,
                        row.drv.clone(),
                        format!(
                            "‘{}’ runs on ‘{}’ (step {stepnr} of build {build}); we would not have started it, it {why}",
                            row.drv, row.machine
                        ),
                    );
                }
                Stands::Unknown if row.busy != 0 && age >= self.options.grace => {
                    self.ledger.tell(
                        Kind::StartedEarly,
                        row.drv.clone(),
                        format!(
                            "‘{}’ runs on ‘{}’ (step {stepnr} of build {build}); no unfinished build that we know wants it built",
                            row.drv, row.machine
                        ),
                    );
                }
                Stands::Waits(_) | Stands::Unknown => {}
            }
        }
    }

    fn has_machines(&self) -> bool {
        !self.context.machines.all().is_empty()
    }

    /// Was something else passed over by this start?
    fn compare_order(&mut self, row: &ObservedStep, machine: MachineId) {
        let best = self
            .plan
            .would_start()
            .into_iter()
            .find(|(at, _)| *at == machine);
        self.passed_over.remove(&*row.drv);
        let Some((_, best)) = best.filter(|(_, best)| **best != *row.drv) else {
            return;
        };
        let entry = self
            .passed_over
            .entry(best.clone())
            .or_insert((0, Instant::now()));
        entry.0 += 1;
        let (times, since) = *entry;
        if times >= PASSED_OVER_MIN && since.elapsed() >= self.options.grace {
            self.ledger.tell(
                Kind::Order,
                &*best,
                format!(
                    "‘{best}’ was passed over by {times} starts in {} s, lastly by ‘{}’ on ‘{}’; by our order it comes first",
                    since.elapsed().as_secs(),
                    row.drv,
                    row.machine
                ),
            );
        }
    }

    /// Is it started where we would have started it, and would we have?
    fn compare_machine(&mut self, row: &ObservedStep, machine: MachineId) {
        if let Some(why) = self.plan.holds_back(&row.drv) {
            self.ledger.tell(
                Kind::Cap,
                row.drv.clone(),
                format!(
                    "‘{}’ was started on ‘{}’; we would have waited: {why}",
                    row.drv, row.machine
                ),
            );
        }
        if self.context.machines.recorded_as(&row.machine).is_none() {
            return;
        }
        if self.plan.could_do(&row.drv, machine) == Some(false) {
            self.ledger.tell(
                Kind::Machine,
                row.drv.clone(),
                format!(
                    "‘{}’ was started on ‘{}’, which by our machines file lacks its system type or a feature",
                    row.drv, row.machine
                ),
            );
            return;
        }
        match self.plan.would_use(&row.drv) {
            Some(ours) if ours == machine => self.ledger.machines_alike += 1,
            // All full by our count: the other one's end is not read yet.
            None => {}
            Some(ours) => {
                self.ledger.machines_other += 1;
                log::info!(
                    "‘{}’ was started on ‘{}’; we would have taken ‘{}’",
                    row.drv,
                    row.machine,
                    self.context.machines.name(ours)
                );
            }
        }
    }

    /// Remembers which machines the other one will leave alone for a while.
    fn note_machine(&mut self, row: &ObservedStep, status: Option<BuildStatus>) {
        match status {
            Some(BuildStatus::Aborted) if !row.machine.is_empty() => {
                let now = Instant::now();
                let aside = self.aside.entry(row.machine.clone()).or_insert(Aside {
                    errors: 0,
                    last: now,
                });
                if aside.errors == 0 || aside.last.elapsed() >= ASIDE_BURST {
                    aside.errors = aside.errors.saturating_add(1);
                }
                aside.last = now;
            }
            Some(BuildStatus::Cancelled) | None => {}
            Some(_) => {
                self.aside.remove(&row.machine);
            }
        }
    }

    fn is_aside(&self, machine: MachineId) -> bool {
        let Some(machine) = self.context.machines.get(machine) else {
            return false;
        };
        let mut aside = self.aside.iter();
        aside.any(|(name, aside)| !aside.is_over() && machine.line().is_recorded_as(name))
    }

    /// Tells the plan of what has ended; at first only of what it knows to run.
    fn follow_ends(&mut self, ended: &HashMap<BuildId, Option<i32>>, known_only: bool) {
        let over: Vec<(BuildId, i32)> = self
            .seen
            .iter()
            .filter(|(_, seen)| !known_only || seen.run.is_some())
            .filter(|(_, seen)| {
                seen.row.busy == 0 || seen.row.busy >= Phase::ReceivingOutputs.code()
            })
            .map(|(key, _)| *key)
            .collect();
        for key in over {
            let Some(seen) = self.seen.get(&key) else {
                continue;
            };
            let (row, run, age) = (seen.row.clone(), seen.run, seen.since.elapsed());
            if let Some(run) = run {
                // The slot is free, whatever comes of the step.
                self.turn(Event::RunPhase {
                    run,
                    phase: Phase::ReceivingOutputs,
                });
            }
            if row.busy != 0 {
                continue;
            }
            let again = self
                .seen
                .values()
                .any(|other| other.row.drv == row.drv && other.row.start > row.start);
            let status = row.status.and_then(BuildStatus::from_code);
            let outcome = match status {
                Some(BuildStatus::Succeeded) => Outcome::Built {
                    output: Arc::new(BuildOutput::default()),
                    cached: false,
                    times_built: 1,
                    non_deterministic: false,
                },
                None | Some(BuildStatus::Cancelled) => Outcome::Cancelled,
                _ if again => Outcome::Cancelled,
                // Final, if its build ended by it; else it is tried again sometime.
                Some(status) if ended.contains_key(&row.build) => Outcome::Failed {
                    status,
                    message: "".into(),
                    can_cache: false,
                    times_built: 1,
                    non_deterministic: false,
                },
                Some(_) if run.is_some() => continue,
                Some(_) => Outcome::Cancelled,
            };
            // A success that came before the plan was ready for it is told when it is.
            let waits = matches!(
                self.plan.standing(self.clock.now(), &row.drv),
                Stands::Waits(_)
            );
            if run.is_none() && waits && age < SETTLED_KEPT {
                continue;
            }
            self.end(run, row.start, outcome);
            self.note_machine(&row, status);
            self.seen.remove(&key);
            self.settled
                .insert((key.0, key.1, row.start), Instant::now());
        }
    }

    fn end(&mut self, run: Option<RunId>, start: UnixSecs, outcome: Outcome) {
        let Some(run) = run else { return };
        self.turn(Event::RunEnded {
            run,
            end: RunEnd {
                outcome,
                start,
                stop: unix_now(),
                overhead_ms: 0,
                has_log: false,
            },
        });
    }

    /// Did builds end as expected?
    fn compare_builds(&mut self, ended: &HashMap<BuildId, Option<i32>>) {
        let grace = self.options.grace;
        let expected = std::mem::take(&mut self.expected);
        for (build, (status, since)) in expected {
            match ended.get(&build) {
                Some(really) => {
                    self.heard.remove(&build);
                    let really = really.and_then(BuildStatus::from_code);
                    let alike = match really {
                        // Marked by the build itself, which is not looked into.
                        Some(BuildStatus::FailedWithOutput) => status == BuildStatus::Succeeded,
                        // Somebody's decision, not the queue runner's.
                        Some(BuildStatus::Cancelled) => true,
                        really => really == Some(status),
                    };
                    if alike {
                        log::info!("build {build} ended there as expected: {}", status.text());
                        self.ledger.builds_alike += 1;
                        continue;
                    }
                    self.ledger.tell(
                        Kind::BuildStatus,
                        build.to_string(),
                        format!(
                            "build {build} ended as ‘{}’; we would say ‘{}’",
                            really.map_or("unknown", BuildStatus::text),
                            status.text()
                        ),
                    );
                }
                None if since.elapsed() >= grace => self.ledger.tell(
                    Kind::BuildLate,
                    build.to_string(),
                    format!(
                        "build {build} is not finished; we would have ended it as ‘{}’ {} s ago",
                        status.text(),
                        since.elapsed().as_secs()
                    ),
                ),
                None => {
                    self.expected.insert(build, (status, since));
                }
            }
        }
        let heard = std::mem::take(&mut self.heard);
        for (build, (since, why)) in heard {
            if self.expected.contains_key(&build) || since.elapsed() < grace {
                self.heard.insert(build, (since, why));
                continue;
            }
            let status = ended
                .get(&build)
                .copied()
                .flatten()
                .and_then(BuildStatus::from_code);
            let (Some(why), Some(status)) = (why, status) else {
                continue;
            };
            if status != BuildStatus::Cancelled {
                self.ledger.tell(
                    Kind::BuildStatus,
                    build.to_string(),
                    format!("build {build} ended as ‘{}’; by us it {why}", status.text()),
                );
            }
        }
    }

    /// Does a machine have nothing to do though something is ready for it?
    fn compare_idle(&mut self) {
        let free = self.plan.would_start();
        let there: HashSet<MachineId> = free.iter().map(|(machine, _)| *machine).collect();
        // A start shows that the other one looks after the machine.
        let grace = self.options.grace;
        let busy: HashSet<String> = self
            .seen
            .values()
            .filter(|seen| seen.since.elapsed() < grace)
            .map(|seen| seen.row.machine.clone())
            .collect();
        self.idle.retain(|machine, _| there.contains(machine));
        for (machine, drv) in free {
            let name = self.context.machines.name(machine);
            let since = *self.idle.entry(machine).or_insert_with(Instant::now);
            let recently =
                self.context.machines.get(machine).is_some_and(|machine| {
                    busy.iter().any(|name| machine.line().is_recorded_as(name))
                });
            if recently || self.is_aside(machine) {
                self.idle.insert(machine, Instant::now());
                continue;
            }
            if since.elapsed() >= grace {
                self.ledger.tell(
                    Kind::NotStarted,
                    format!("{machine} {drv}"),
                    format!(
                        "‘{name}’ has a free slot for {} s, and ‘{drv}’ could run there, but is not started",
                        since.elapsed().as_secs()
                    ),
                );
            }
        }
    }

    /// Tickets are written once what they say is true.
    fn acknowledge(&mut self) {
        let mut upto = None;
        while let Some((ticket, builds)) = self.owed.front() {
            if builds.iter().any(|build| self.expected.contains_key(build)) {
                break;
            }
            upto = Some(*ticket);
            self.owed.pop_front();
        }
        if let Some(upto) = upto {
            self.context.written.store(upto.0, Ordering::SeqCst);
            self.turn(Event::Written { upto });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_left_alone_as_long_as_hydra_would() {
        let now = Instant::now();
        let ago = |secs| now.checked_sub(Duration::from_secs(secs));
        for (errors, secs, over) in [
            (1, 80, false),
            (1, 100, true),
            (2, 200, false),
            (2, 220, true),
        ] {
            // A machine that has just booted has no such past.
            let Some(last) = ago(secs) else { continue };
            assert_eq!(
                Aside { errors, last }.is_over(),
                over,
                "{errors} errors, {secs} s"
            );
        }
        let many = Aside {
            errors: u32::MAX,
            last: now,
        };
        assert!(!many.is_over());
    }
}
