//! One attempt of a step on a machine, from the derivation on disk to its outputs in the store.
//!
//! Owns the order of the phases and what each failure means; knows nothing of other steps.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, unbounded, Receiver, RecvTimeoutError, Sender};

use super::connection::{Connection, Trouble};
use super::machine::Machine;
use super::sender::{SendError, SendJob};
use super::{inspect, Context};
use crate::base::lock::lock;
use crate::db::writer::{Body, Entry, Message, StartAck, StartStep};
use crate::model::{BuildId, BuildOutput, BuildStatus, Phase, RunId, Ticket, UnixSecs};
use crate::nix::derivation::{Derivation, DerivationFacts, DrvKind};
use crate::nix::products::{self, MemberScan, OutputScan};
use crate::nix::realisation::{self, OutputId};
use crate::nix::{store_path, ValidPathInfo};
use crate::plan::action::Start;
use crate::plan::event::{Event, Outcome, RunEnd};
use crate::plan::signature;
use crate::store::destination::{TakeError, Trouble as DestTrouble};
use crate::store::local::PathMeta;
use crate::sys::child::plain_error;
use crate::sys::clock::unix_now;
use crate::sys::heartbeat::{self, Patience};
use crate::sys::kill::KillSwitch;
use crate::sys::pipes::{BuildLimits, ReplyWait};
use crate::sys::thread;
use crate::wire::Error as WireError;
use crate::wire::{BuildOptions, BuildResult, ResultStatus as NixStatus, ServePathInfo};

/// A remote log is complete when nothing has come for this long after the reply.
const REMOTE_LOG_SILENCE: Duration = Duration::from_millis(50);
/// How long a step waits for a free query connection before it sends everything that is missing.
const QUERY_PATIENCE: Duration = Duration::from_secs(30);
/// Lines at the end of a failed build's log in which is looked for what a broken machine says.
const LOG_LINES_JUDGED: usize = 20;
/// How long a waiting thread goes without looking at its kill switch.
const KILL_CHECK: Duration = Duration::from_millis(200);

/// The slot threads of a machine: as many as it has runs, kept a while for the next.
#[derive(Default)]
pub struct SlotThreads {
    state: Mutex<SlotState>,
}

#[derive(Default)]
struct SlotState {
    /// Threads waiting for a run that has not been promised to them.
    idle: usize,
    spawned: u64,
    queue: Option<(Sender<Start>, Receiver<Start>)>,
}

impl SlotThreads {
    /// Gives a run to an idle thread or to a new one.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(
        &self,
        context: &Arc<Context>,
        machine: &Arc<Machine>,
        start: Start,
    ) -> io::Result<()> {
        let mut state = lock(&self.state);
        // Holds at most one run for each idle thread.
        let queue = state.queue.get_or_insert_with(unbounded).clone();
        if state.idle > 0 {
            state.idle -= 1;
            let _ = queue.0.send(start);
            return Ok(());
        }
        let name = format!("slot-{}-{}", machine.name, state.spawned + 1);
        let (context, own) = (context.clone(), machine.clone());
        thread::spawn(name, move || serve(&context, &own, &queue.1, start))?;
        state.spawned += 1;
        Ok(())
    }
}

/// The body of a slot thread.
fn serve(context: &Arc<Context>, machine: &Arc<Machine>, queue: &Receiver<Start>, first: Start) {
    let mut kill = match KillSwitch::new() {
        Ok(kill) => Arc::new(kill),
        Err(error) => {
            let message = format!("cannot make a kill switch: {error}");
            context.runs.forget(first.run);
            context.void_ticket(first.ticket);
            context.end_run(
                first.run,
                ended(
                    Outcome::OurFault {
                        message: message.into(),
                    },
                    unix_now(),
                ),
            );
            return;
        }
    };
    let mut next = Some(first);
    loop {
        if let Some(start) = next.take() {
            attempt(context, machine, &kill, start);
            if kill.is_thrown() {
                // The thrown one stays with the ended run's connection, which may still wait to be sent to.
                match KillSwitch::new() {
                    Ok(new) => kill = Arc::new(new),
                    Err(_) => return,
                }
            }
        }
        lock(&machine.slots.state).idle += 1;
        heartbeat::about(None);
        heartbeat::idle("waiting for a run");
        next = match queue.recv_timeout(machine.thread_idle_max()) {
            Ok(start) => Some(start),
            Err(_) => {
                let mut state = lock(&machine.slots.state);
                match queue.try_recv() {
                    Ok(start) => Some(start),
                    Err(_) => {
                        state.idle -= 1;
                        return;
                    }
                }
            }
        };
    }
}

/// Runs one attempt and reports its end, also after a panic.
fn attempt(context: &Arc<Context>, machine: &Arc<Machine>, kill: &Arc<KillSwitch>, start: Start) {
    let run = start.run;
    let ticket = start.ticket;
    context.runs.arm(run, kill);
    heartbeat::about(Some(start.drv.clone()));
    let began = unix_now();
    let mut attempt = Attempt {
        context,
        machine,
        kill,
        start,
        began,
        build_began: None,
        announced: None,
        overhead: Duration::ZERO,
        has_log: false,
        lost: Cell::new(false),
    };
    let end = catch_unwind(AssertUnwindSafe(|| attempt.run())).unwrap_or_else(|_| {
        let message = "BUG: the slot panicked; the log of hydrad says where";
        ended(
            Outcome::OurFault {
                message: message.into(),
            },
            began,
        )
    });
    if attempt.announced.is_none() {
        context.void_ticket(ticket);
    }
    context.runs.forget(run);
    // Noted before anybody hears of the end, and may compress it.
    if let Some(uploads) = context.log_uploads.as_ref().filter(|_| end.has_log) {
        uploads.add(&attempt.start.drv);
    }
    context.end_run(run, end);
}

/// Not one of the plan's runs: what an ended process started.
const NO_RUN: RunId = RunId(0);

/// Fetches the outputs of a step that the machine finished for a process that is gone. `false`: it has not got all of
/// them, or the derivation cannot be used.
///
/// # Errors
/// A message, if the machine or this host could not do it.
pub fn collect(
    context: &Arc<Context>,
    machine: &Arc<Machine>,
    kill: &Arc<KillSwitch>,
    drv: &str,
) -> Result<bool, String> {
    let attempt = Attempt {
        context,
        machine,
        kill,
        start: Start {
            run: NO_RUN,
            ticket: Ticket(0),
            drv: drv.into(),
            machine: machine.id,
            primary: BuildId(0),
            announce: Vec::new(),
            max_silent_secs: 0,
            timeout_secs: 0,
            repeats: 0,
            wanted_by: 0,
        },
        began: unix_now(),
        build_began: None,
        announced: None,
        overhead: Duration::ZERO,
        has_log: false,
        lost: Cell::new(false),
    };
    let fetched = attempt.read_derivation().and_then(|work| {
        let connection = attempt.connect()?;
        attempt.fetch_finished(connection, &work)
    });
    match fetched {
        Ok(output) => Ok(output.is_some()),
        Err(Stop::Outcome(_)) => Ok(false),
        Err(Stop::Trouble(Trouble::Killed)) => Err("it was interrupted".into()),
        Err(Stop::Trouble(Trouble::Machine(message) | Trouble::Ours(message))) => Err(message),
    }
}

fn ended(outcome: Outcome, start: UnixSecs) -> RunEnd {
    RunEnd {
        outcome,
        start,
        stop: unix_now(),
        overhead_ms: 0,
        has_log: false,
    }
}

/// Counters of what all slots did.
#[derive(Default, Debug)]
pub struct Traffic {
    pub bytes_sent: AtomicU64,
    pub bytes_received: AtomicU64,
}

struct Attempt<'a> {
    context: &'a Arc<Context>,
    machine: &'a Arc<Machine>,
    kill: &'a Arc<KillSwitch>,
    start: Start,
    began: UnixSecs,
    build_began: Option<UnixSecs>,
    /// The busy row is on its way; tells when it is committed.
    announced: Option<Receiver<StartAck>>,
    overhead: Duration,
    has_log: bool,
    /// The connection ended in the middle of something.
    lost: Cell<bool>,
}

/// What the derivation says, as far as an attempt needs it.
struct Work {
    /// Path of the derivation that the machine builds: the step's own, or what that was resolved into.
    request: Arc<str>,
    /// The one that row and log are about.
    row: Arc<str>,
    drv: Derivation,
    /// Source inputs alone.
    sources: Vec<String>,
    /// Source inputs and the outputs wanted of the input derivations.
    inputs: Vec<String>,
    /// Name and path, ordered by name. None of them until the build has ended if only the build tells.
    outputs: Vec<(String, String)>,
    /// Names under which the outputs are registered: those of the step's derivation, then those of the resolved one.
    ids: Vec<OutputId>,
    /// The input derivations, each with the paths wanted of it.
    makers: Vec<(String, Vec<String>)>,
}

/// An attempt that ends without a result of the build.
enum Stop {
    Trouble(Trouble),
    Outcome(Outcome),
}

impl From<Trouble> for Stop {
    fn from(trouble: Trouble) -> Stop {
        Stop::Trouble(trouble)
    }
}

fn ours(message: impl Into<String>) -> Stop {
    Stop::Trouble(Trouble::Ours(message.into()))
}

impl Attempt<'_> {
    fn run(&mut self) -> RunEnd {
        let result = self.build();
        let outcome = match result {
            Ok(outcome) | Err(Stop::Outcome(outcome)) => outcome,
            Err(Stop::Trouble(Trouble::Killed)) => Outcome::Cancelled,
            Err(Stop::Trouble(Trouble::Machine(message))) => Outcome::MachineFault {
                message: message.into(),
            },
            Err(Stop::Trouble(Trouble::Ours(message))) => Outcome::OurFault {
                message: message.into(),
            },
        };
        // What a killed connection's builder still reported is nobody's result.
        let outcome = if self.kill.is_thrown() && !matches!(outcome, Outcome::Built { .. }) {
            Outcome::Cancelled
        } else {
            outcome
        };
        RunEnd {
            outcome,
            start: self.build_began.unwrap_or(self.began),
            stop: unix_now(),
            overhead_ms: u32::try_from(self.overhead.as_millis()).unwrap_or(u32::MAX),
            has_log: self.has_log,
        }
    }

    fn build(&mut self) -> Result<Outcome, Stop> {
        heartbeat::busy("reading the derivation");
        let mut work = self.read_derivation()?;
        self.announce(&work)?;
        // Two steps may have been resolved into one: its log and its outputs are one's at a time.
        let _claim = if work.ids.is_empty() {
            None
        } else {
            heartbeat::idle("waiting for another step that is resolved into the same");
            let claim = self.context.resolution.claim(&work.request, self.kill);
            Some(claim.ok_or(Trouble::Killed)?)
        };
        if let Some(outcome) = self.built_before(&mut work)? {
            return Ok(outcome);
        }
        let mut connection = self.connect()?;
        if !self.machine.line().is_localhost {
            self.enter(Phase::SendingInputs);
            let began = Instant::now();
            connection = self.send_inputs(connection, &work)?;
            self.overhead += began.elapsed();
        } else if !self.context.dest.is_local() {
            self.enter(Phase::SendingInputs);
            let began = Instant::now();
            self.bring_inputs_home(&mut connection, &work)?;
            self.overhead += began.elapsed();
        }
        // All that can be made ready is ready when the row is committed.
        let repeats = self.repeats(&work)?;
        let log = self.begin_log(&work)?;
        self.wait_for_row()
            .inspect_err(|_| self.context.logs.discard(&work.row))?;
        let (wait, result) = match self.request(&mut connection, &work, log, repeats) {
            Ok(reply) => reply,
            Err(stop) => {
                drop(connection);
                return self.after_loss(&work, stop);
            }
        };
        match wait {
            ReplyWait::Ready => {}
            limit => return Ok(self.over_limit(connection, limit)),
        }
        let Some(result) = result else {
            return Err(ours("BUG: a reply without a result"));
        };
        match self.finish(connection, &mut work, result) {
            Err(stop) => self.after_loss(&work, stop),
            outcome => outcome,
        }
    }

    /// The connection was lost after the build request: perhaps the machine finished the build all the same.
    fn after_loss(&self, work: &Work, stop: Stop) -> Result<Outcome, Stop> {
        if !self.lost.get() || self.machine.line().is_localhost {
            return Err(stop);
        }
        let found = match self.machine.quick_connection(self.kill) {
            Ok(connection) => self.fetch_finished(connection, work),
            Err(_) => return Err(stop),
        };
        let Ok(Some(output)) = found else {
            return Err(stop);
        };
        log::info!(
            "the connection to '{}' was lost, but it has finished '{}'",
            self.machine.name,
            self.start.drv
        );
        self.add_roots(work)?;
        self.register(work)?;
        Ok(Outcome::Built {
            output: Arc::new(output),
            cached: false,
            times_built: 0,
            non_deterministic: false,
        })
    }

    /// Fetches the outputs if the machine has them all; never builds.
    fn fetch_finished(
        &self,
        mut connection: Connection,
        work: &Work,
    ) -> Result<Option<BuildOutput>, Stop> {
        if work.outputs.len() < work.drv.outputs.len() {
            // Only a build tells where they are; a machine that has them is quick about it.
            self.machine.give_back(connection);
            return Ok(None);
        }
        let infos = self.output_infos(&mut connection, work)?;
        let is_there = |path: &String| infos.iter().any(|info| info.path == *path);
        if !work.outputs.iter().all(|(_, path)| is_there(path)) {
            self.machine.give_back(connection);
            return Ok(None);
        }
        let output = self.fetch(&mut connection, work)?;
        self.machine.give_back(connection);
        // What went over a limit is built again, which says so.
        Ok(output.ok())
    }

    fn output_infos(
        &self,
        connection: &mut Connection,
        work: &Work,
    ) -> Result<Vec<ServePathInfo>, Stop> {
        const DOING: &str = "asking for the outputs";
        let paths: Vec<&str> = work.outputs.iter().map(|(_, path)| path.as_str()).collect();
        connection
            .pipes
            .enter(DOING, self.machine.deadlines().query);
        connection
            .client
            .query_path_infos(&paths)
            .map_err(|error| self.trouble(connection, &error, DOING))
    }

    /// What an error in the middle of a conversation means.
    fn trouble(&self, connection: &mut Connection, error: &WireError, doing: &str) -> Stop {
        let is_cut =
            matches!(error, WireError::Io(error) if error.kind() == io::ErrorKind::BrokenPipe);
        self.lost.set(error.is_eof() || is_cut);
        connection.trouble(error, doing).into()
    }

    fn add_roots(&self, work: &Work) -> Result<(), Stop> {
        for (_, path) in &work.outputs {
            self.context.roots.add(path).map_err(|error| {
                ours(format!(
                    "cannot register a GC root for {path}: {}",
                    plain_error(&error)
                ))
            })?;
        }
        Ok(())
    }

    fn enter(&self, phase: Phase) {
        if self.start.run == NO_RUN {
            return;
        }
        self.context.tell_plan(Event::RunPhase {
            run: self.start.run,
            phase,
        });
    }

    /// Reads the derivation again: it is not kept in memory while its step waits.
    fn read_derivation(&self) -> Result<Work, Stop> {
        let store = &self.context.store;
        let bytes = match store.read_drv(&self.start.drv) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Stop::Outcome(Outcome::Collected))
            }
            Err(error) => {
                return Err(ours(format!(
                    "cannot read {}: {}",
                    self.start.drv,
                    plain_error(&error)
                )))
            }
        };
        let unusable = |message: String| {
            Stop::Outcome(Outcome::Failed {
                status: BuildStatus::Aborted,
                message: message.into(),
                can_cache: false,
                times_built: 0,
                non_deterministic: false,
            })
        };
        let drv = Derivation::parse(&bytes)
            .map_err(|error| unusable(format!("{}: {error}", self.start.drv)))?;
        let mut is_open = drv.outputs.values().any(|output| output.path.is_none());
        let mut inputs = drv.input_srcs.clone();
        let mut makers = Vec::with_capacity(drv.input_drvs.len());
        for (input, wanted) in &drv.input_drvs {
            let bytes = store.read_drv(input).map_err(|error| {
                ours(format!(
                    "cannot read the input derivation {input}: {}",
                    plain_error(&error)
                ))
            })?;
            let facts = DerivationFacts::scan(&bytes)
                .map_err(|error| unusable(format!("{input}: {error}")))?;
            let outputs: Vec<(String, Option<String>)> = if facts.kind.has_known_output_paths() {
                let known = facts.outputs.into_iter();
                known
                    .map(|(name, path)| (name.into_owned(), path.map(|path| path.into_owned())))
                    .collect()
            } else {
                is_open = true;
                let drv = Derivation::parse(&bytes)
                    .map_err(|error| unusable(format!("{input}: {error}")))?;
                self.context.outputs_of(input, &drv).map_err(ours)?
            };
            let mut paths = Vec::with_capacity(wanted.len());
            for name in wanted {
                match outputs.iter().find(|output| output.0 == *name) {
                    Some((_, Some(path))) => paths.push(path.clone()),
                    Some((_, None)) => {
                        return Err(Stop::Outcome(Outcome::InputsGone {
                            message: format!("it is not known where output '{name}' of {input} is")
                                .into(),
                            inputs: vec![input.as_str().into()],
                        }))
                    }
                    None => return Err(unusable(format!("{input} has no output '{name}'"))),
                }
            }
            inputs.extend_from_slice(&paths);
            makers.push((input.clone(), paths));
        }
        inputs.sort_unstable();
        inputs.dedup();
        let mut work = Work {
            request: self.start.drv.clone(),
            row: self.start.drv.clone(),
            outputs: drv.known_outputs(),
            sources: drv.input_srcs.clone(),
            drv,
            inputs,
            makers,
            ids: Vec::new(),
        };
        if is_open {
            self.resolve(&mut work)
                .map_err(|why| unusable(format!("cannot resolve {}: {why}", self.start.drv)))?;
        }
        Ok(work)
    }

    /// The derivation's outputs or inputs have paths that it does not tell: the one in which they are filled in is
    /// built in its place.
    fn resolve(&self, work: &mut Work) -> Result<(), String> {
        let context = self.context;
        let text = |error: crate::nix::Error| error.to_string();
        let kind = work.drv.kind();
        if let Some(why) = kind.and_then(|kind| context.resolution.refusal(&work.request, kind)) {
            return Err(why);
        }
        let ids_of = |path: &str, drv: &Derivation| -> Result<Vec<OutputId>, String> {
            context.resolution.output_ids(&context.store, path, drv)
        };
        let is_named = kind.is_some_and(DrvKind::has_known_output_paths);
        if !is_named {
            work.ids = ids_of(&work.request, &work.drv)?;
        }
        if work.makers.is_empty() {
            return Ok(());
        }
        let inputs = work.drv.input_drvs.iter().zip(&work.makers);
        let inputs = inputs.flat_map(|((input, names), (_, paths))| {
            let outputs = names.iter().zip(paths);
            outputs.map(|(name, path)| (input.as_str(), name.as_str(), path.as_str()))
        });
        let resolved = realisation::resolve(context.store.dir(), &work.request, &work.drv, inputs)
            .map_err(text)?;
        work.outputs = resolved.drv.known_outputs();
        if resolved.drv.kind() == Some(DrvKind::FloatingCa) {
            work.ids.extend(ids_of(&resolved.path, &resolved.drv)?);
        }
        work.drv = resolved.drv;
        work.request = resolved.path.into();
        if context.resolution.has_rows() {
            work.row = work.request.clone();
            if context.dest.is_local() {
                self.keep_resolved(work)?;
            }
        }
        Ok(())
    }

    /// Puts the resolved derivation, which a row names, into the local store, where people look for it.
    fn keep_resolved(&self, work: &Work) -> Result<(), String> {
        let name = store_path::name_part(&work.request);
        let path = self.context.store.add_drv(&work.drv, name)?;
        if *path != *work.request {
            return Err(format!("Nix calls it {path}, not {}", work.request));
        }
        Ok(())
    }

    /// The outputs, if what the step was resolved into was built before: then there is nothing left to do.
    fn built_before(&self, work: &mut Work) -> Result<Option<Outcome>, Stop> {
        if work.ids.is_empty() {
            return Ok(None);
        }
        heartbeat::busy("looking for its outputs");
        let mut outputs = work.outputs.clone();
        if outputs.is_empty() {
            // Of the two names of an output the one of the resolved derivation comes last.
            let ids = &work.ids[work.ids.len() - work.drv.outputs.len()..];
            let paths = self.context.realised(ids).map_err(ours)?;
            for (id, path) in ids.iter().zip(paths) {
                match path {
                    Some(path) => outputs.push((id.output.clone(), path)),
                    None => return Ok(None),
                }
            }
        }
        let paths: Vec<&str> = outputs.iter().map(|(_, path)| path.as_str()).collect();
        let valid = self.context.dest.valid_paths(&paths).map_err(ours)?;
        if !paths.iter().all(|path| valid.contains(*path)) {
            return Ok(None);
        }
        let output = inspect::describe_outputs(self.context, outputs.clone()).map_err(ours)?;
        work.outputs = outputs;
        self.register(work)?;
        log::info!("'{}' resolves to what was built before", self.start.drv);
        Ok(Some(Outcome::Built {
            output: Arc::new(output),
            cached: true,
            times_built: 0,
            non_deterministic: false,
        }))
    }

    /// Takes the paths of outputs that only their builder knows.
    fn take_paths(&self, work: &mut Work, result: &BuildResult) -> Result<(), Stop> {
        if work.outputs.len() == work.drv.outputs.len() {
            return Ok(());
        }
        let dir = self.context.store.dir();
        work.outputs.clear();
        for name in work.drv.outputs.keys() {
            let built = result.built_outputs.iter().find(|(built, _)| built == name);
            let Some((_, base)) = built else {
                let message = format!(
                    "'{}' does not say where output '{name}' is; its Nix needs the experimental feature \
                     ca-derivations",
                    self.machine.name
                );
                return Err(Trouble::Machine(message).into());
            };
            work.outputs.push((name.clone(), dir.join(base)));
        }
        Ok(())
    }

    /// Says in the destination store where the outputs are that have names.
    fn register(&self, work: &Work) -> Result<(), Stop> {
        for id in &work.ids {
            let Some((_, path)) = work.outputs.iter().find(|(name, _)| *name == id.output) else {
                continue;
            };
            let realisation = realisation::realised(id.clone(), path);
            self.context
                .dest
                .register_realisation(realisation)
                .map_err(ours)?;
        }
        Ok(())
    }

    /// Sends the busy row to the writer; it must be committed before the build request is sent.
    fn announce(&mut self, work: &Work) -> Result<(), Stop> {
        let (done, committed) = bounded(1);
        // A path that the step's own derivation does not tell is one that no failure is remembered by.
        let tells = work.ids.is_empty();
        let row = StartStep {
            run: self.start.run,
            build: self.start.primary,
            drv: work.row.to_string(),
            resolved_from: (work.row != self.start.drv).then(|| self.start.drv.to_string()),
            system: work.drv.platform.clone(),
            machine: self.machine.name.clone(),
            outputs: work
                .drv
                .outputs
                .iter()
                .map(|(name, output)| (name.clone(), output.path.clone().filter(|_| tells)))
                .collect(),
            announce: std::mem::take(&mut self.start.announce),
            start: self.began,
            done,
            maybe_written: false,
        };
        let entry = Entry {
            ticket: self.start.ticket,
            body: Body::StartStep(row),
        };
        self.context
            .writer
            .send(Message::Write(vec![entry]))
            .map_err(|_| ours("the writer has left"))?;
        self.announced = Some(committed);
        Ok(())
    }

    fn wait_for_row(&self) -> Result<(), Stop> {
        let Some(committed) = &self.announced else {
            return Err(ours("BUG: no row is on its way"));
        };
        // Not for ever: the machine could build something else. The row, once it can be written, is followed by the end
        // of this run.
        let row_max = self.machine.deadlines().row;
        let until = Instant::now() + row_max;
        heartbeat::enter("waiting for its row", Patience::Deadline(row_max));
        loop {
            match committed.recv_timeout(KILL_CHECK) {
                Ok(StartAck::Written) => return Ok(()),
                // Not "cancelled", which would be started again at once: the news that the build was deleted is on
                // its way, and if the row cannot be written for another reason there is no hurry.
                Ok(StartAck::BuildGone) => {
                    return Err(ours(format!(
                        "the step of build {} has no row: the build was deleted meanwhile",
                        self.start.primary
                    )))
                }
                Err(RecvTimeoutError::Timeout) if self.kill.is_thrown() => {
                    return Err(Trouble::Killed.into())
                }
                Err(RecvTimeoutError::Timeout) if Instant::now() >= until => {
                    return Err(ours(format!(
                        "the row of the step could not be written for {} s: the database is away, or somebody holds \
                         the row of build {}",
                        row_max.as_secs(),
                        self.start.primary
                    )))
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(ours("the writer has left")),
            }
        }
    }

    fn connect(&self) -> Result<Connection, Stop> {
        if !self.machine.has_idle_connection() {
            self.enter(Phase::Connecting);
        }
        Ok(self.machine.build_connection(self.kill)?)
    }

    /// Brings the closure of the inputs to the machine: what it has, what it can substitute, then what is left.
    fn send_inputs(&self, mut connection: Connection, work: &Work) -> Result<Connection, Stop> {
        heartbeat::busy("reading the closure of the inputs");
        let closure = self.closure_of_inputs(work)?;
        let paths: Vec<&str> = closure.iter().map(|meta| &*meta.path).collect();
        let deadlines = self.machine.deadlines();
        connection
            .pipes
            .enter("asking which inputs it has", deadlines.query);
        connection.count_temp_roots(paths.iter().copied());
        let valid = match connection.client.query_valid_paths(&paths, true, false) {
            Ok(valid) => valid,
            Err(error) => {
                return Err(connection
                    .trouble(&error, "asking which inputs it has")
                    .into())
            }
        };
        let mut missing = without(&closure, valid);
        if missing.is_empty() {
            return Ok(connection);
        }
        missing = self.substitute(missing)?;
        if missing.is_empty() {
            return Ok(connection);
        }
        self.send(connection, work, missing)
    }

    /// The closure of the inputs in the destination store, references first.
    fn closure_of_inputs(&self, work: &Work) -> Result<Vec<Arc<PathMeta>>, Stop> {
        self.context
            .dest
            .closure_of_inputs(&work.inputs, &work.sources, self.kill)
            .map_err(|trouble| self.dest_trouble(work, trouble))
    }

    /// For a build on this host: what is only in the destination store is copied from there, and kept from the garbage
    /// collector for as long as the connection lives.
    fn bring_inputs_home(&self, connection: &mut Connection, work: &Work) -> Result<(), Stop> {
        const DOING: &str = "asking which inputs it has";
        let closure = self.closure_of_inputs(work)?;
        self.context
            .dest
            .bring_home(&closure, self.kill)
            .map_err(|trouble| self.dest_trouble(work, trouble))?;
        let paths: Vec<&str> = closure.iter().map(|meta| &*meta.path).collect();
        connection
            .pipes
            .enter(DOING, self.machine.deadlines().query);
        connection.count_temp_roots(paths.iter().copied());
        match connection.client.query_valid_paths(&paths, true, false) {
            Ok(_) => Ok(()),
            Err(error) => Err(connection.trouble(&error, DOING).into()),
        }
    }

    /// What trouble with the destination store means for this run: an input that is gone is built again first.
    fn dest_trouble(&self, work: &Work, trouble: DestTrouble) -> Stop {
        match trouble {
            DestTrouble::Killed => Trouble::Killed.into(),
            DestTrouble::Gone(message) => self.gone_inputs(work, message),
            DestTrouble::Here(message) => match self.is_any_gone(work) {
                true => self.gone_inputs(work, message),
                false => ours(message),
            },
        }
    }

    /// Of the local store, whose path may have gone between two questions.
    fn sending_failed(&self, work: &Work, trouble: Trouble) -> Stop {
        match trouble {
            Trouble::Ours(message) if self.is_any_gone(work) => self.gone_inputs(work, message),
            trouble => trouble.into(),
        }
    }

    /// The local store says the same of a path that is gone and of other trouble.
    fn is_any_gone(&self, work: &Work) -> bool {
        let dest = &self.context.dest;
        dest.is_local() && dest.gone(&work.inputs).is_ok_and(|gone| !gone.is_empty())
    }

    fn gone_inputs(&self, work: &Work, message: String) -> Stop {
        let gone: HashSet<&str> = match self.context.dest.gone(&work.inputs) {
            Ok(gone) => gone.into_iter().collect(),
            Err(why) => return ours(format!("{message}; and {why}")),
        };
        let inputs: Vec<Box<str>> = work
            .makers
            .iter()
            .filter(|(_, paths)| paths.iter().any(|path| gone.contains(path.as_str())))
            .map(|(drv, _)| drv.as_str().into())
            .collect();
        if inputs.is_empty() {
            // A source, which nobody can build, or it came back meanwhile.
            return ours(message);
        }
        Stop::Outcome(Outcome::InputsGone {
            message: message.into(),
            inputs,
        })
    }

    /// Lets the machine substitute what it can, over a query connection and without the send lock. Whatever goes
    /// wrong here costs only that the paths are sent.
    fn substitute(&self, missing: Vec<Arc<PathMeta>>) -> Result<Vec<Arc<PathMeta>>, Stop> {
        let until = Instant::now() + QUERY_PATIENCE;
        let (mut query, _token) = match self.machine.query_connection(self.kill, until) {
            Ok(Some(query)) => query,
            Ok(None) => {
                log::info!(
                    "'{}' is busy substituting for other steps; sending {} paths instead",
                    self.machine.name,
                    missing.len()
                );
                return Ok(missing);
            }
            Err(trouble) => return Err(trouble.into()),
        };
        let paths: Vec<&str> = missing.iter().map(|meta| &*meta.path).collect();
        query
            .pipes
            .enter("substituting inputs", self.machine.deadlines().substitute);
        query.count_temp_roots(paths.iter().copied());
        match query.client.query_valid_paths(&paths, true, true) {
            Ok(valid) => {
                self.machine.give_back_query(query);
                Ok(without(&missing, valid))
            }
            Err(error) => match query.trouble(&error, "substituting inputs") {
                Trouble::Killed => Err(Trouble::Killed.into()),
                Trouble::Machine(message) | Trouble::Ours(message) => {
                    log::warn!("{message}; sending {} paths instead", missing.len());
                    Ok(missing)
                }
            },
        }
    }

    fn send(
        &self,
        connection: Connection,
        work: &Work,
        paths: Vec<Arc<PathMeta>>,
    ) -> Result<Connection, Stop> {
        let (reply, answer) = bounded(1);
        self.machine.sender.send(
            self.machine,
            &self.context.dest,
            SendJob {
                connection,
                paths,
                reply,
            },
        )?;
        heartbeat::idle("waiting for its inputs to be sent");
        loop {
            match answer.recv_timeout(KILL_CHECK) {
                Ok((connection, Ok(sent))) => {
                    self.context
                        .traffic
                        .bytes_sent
                        .fetch_add(sent.nar_bytes, Ordering::Relaxed);
                    return Ok(connection);
                }
                Ok((_, Err(SendError::Connection(trouble)))) => {
                    return Err(self.sending_failed(work, trouble))
                }
                Ok((_, Err(SendError::Gone(message)))) => {
                    return Err(self.gone_inputs(work, message))
                }
                // The sending thread finds the switch thrown and closes the connection when its turn comes.
                Err(RecvTimeoutError::Timeout) if self.kill.is_thrown() => {
                    return Err(Trouble::Killed.into())
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(ours("BUG: the sending thread panicked"))
                }
            }
        }
    }

    fn begin_log(&self, work: &Work) -> Result<File, Stop> {
        heartbeat::busy("beginning the log");
        self.context.logs.begin(&work.row).map_err(|error| {
            ours(format!(
                "cannot write the log of {}: {}",
                self.start.drv,
                plain_error(&error)
            ))
        })
    }

    /// How often the machine is to build it again: what the jobsets want, once if the derivation says of itself that it
    /// is deterministic, never where Nix would refuse it.
    fn repeats(&self, work: &Work) -> Result<u32, Stop> {
        let wanted = self.start.repeats.max(u32::from(is_deterministic(work)));
        match wanted > 0 && self.machine.can_repeat(self.kill)? {
            true => Ok(wanted),
            false => Ok(0),
        }
    }

    /// Sends the build request and waits for the reply, under the build's limits, writing the log.
    fn request(
        &mut self,
        connection: &mut Connection,
        work: &Work,
        log: File,
        repeats: u32,
    ) -> Result<(ReplyWait, Option<BuildResult>), Stop> {
        // The machine's limits are for each time it is built, ours for all of it.
        let times = u64::from(repeats) + 1;
        let round_log_size = self.context.limits().max_log_size;
        let max_log_size = round_log_size.saturating_mul(times);
        connection.pipes.start_log(log, max_log_size);
        self.has_log = true;
        let options = BuildOptions {
            max_silent: u64::from(self.start.max_silent_secs),
            timeout: u64::from(self.start.timeout_secs),
            max_log_size: round_log_size,
            repeats: u64::from(repeats),
            enforce_determinism: is_deterministic(work),
            keep_failed: false,
        };
        self.build_began = Some(unix_now());
        self.enter(Phase::Building);
        connection
            .pipes
            .enter("sending the build request", self.machine.deadlines().query);
        if let Err(error) = connection.client.build_derivation_start(
            &work.request,
            &work.drv,
            &work.inputs,
            &options,
        ) {
            return Err(connection
                .trouble(&error, "sending the build request")
                .into());
        }
        // The machine's own limits come first where they work; ours end what they do not.
        let limit = |secs: u32, times: u64| {
            (secs > 0).then(|| Duration::from_secs(u64::from(secs) * times) + LIMIT_MARGIN)
        };
        let limits = BuildLimits {
            total: limit(self.start.timeout_secs, times),
            silence: limit(self.start.max_silent_secs, 1),
            log_bytes_max: max_log_size,
        };
        let wait = connection
            .pipes
            .wait_for_reply(connection.client.get_ref(), &limits);
        match wait {
            Ok(ReplyWait::Ready) => {}
            Ok(limit) => return Ok((limit, None)),
            Err(_) if self.kill.is_thrown() => return Err(Trouble::Killed.into()),
            Err(error) => return Err(ours(format!("cannot wait for a reply: {error}"))),
        }
        connection
            .pipes
            .enter("reading the build's result", self.machine.deadlines().query);
        match connection.client.build_derivation_finish() {
            Ok(result) => Ok((ReplyWait::Ready, Some(result))),
            Err(error) => Err(self.trouble(connection, &error, "building")),
        }
    }

    /// The build went over a limit: its connection is closed, which ends it.
    fn over_limit(&self, connection: Connection, limit: ReplyWait) -> Outcome {
        let _ = connection.pipes.end_log(None);
        drop(connection);
        let (status, message) = match limit {
            ReplyWait::LogLimit => (
                BuildStatus::LogLimitExceeded,
                format!(
                    "the log went over its limit of {} bytes",
                    self.context.limits().max_log_size
                ),
            ),
            ReplyWait::Silent => (
                BuildStatus::TimedOut,
                format!("no output for {} seconds", self.start.max_silent_secs),
            ),
            _ => (
                BuildStatus::TimedOut,
                format!("still running after {} seconds", self.start.timeout_secs),
            ),
        };
        log::info!("'{}' on '{}': {message}", self.start.drv, self.machine.name);
        failed(status, message, false)
    }

    fn finish(
        &mut self,
        mut connection: Connection,
        work: &mut Work,
        result: BuildResult,
    ) -> Result<Outcome, Stop> {
        // How long it took by the machine's clock, up to now by ours: the two need not agree.
        let took = result.stop.checked_sub(result.start);
        if let Some(took) = took.filter(|_| result.start > 0) {
            let took = UnixSecs::try_from(took).unwrap_or(UnixSecs::MAX);
            self.build_began = self.build_began.max(Some(unix_now().saturating_sub(took)));
        }
        let cached = match result.status {
            NixStatus::Built => false,
            NixStatus::Substituted
            | NixStatus::AlreadyValid
            | NixStatus::ResolvesToAlreadyValid => true,
            status => {
                self.end_log(&connection)?;
                let log = connection.pipes.stderr_tail();
                self.machine.give_back(connection);
                return self.failure(work, status, &result, &log);
            }
        };
        self.take_paths(work, &result)?;
        let began = Instant::now();
        let output = self.fetch(&mut connection, work)?;
        self.overhead += began.elapsed();
        self.end_log(&connection)?;
        self.machine.give_back(connection);
        let output = match output {
            Ok(output) => output,
            Err(outcome) => return Ok(outcome),
        };
        if cached {
            self.context.logs.discard(&work.row);
            self.has_log = false;
            log::info!(
                "outputs of '{}' substituted or already valid on '{}'",
                self.start.drv,
                self.machine.name
            );
        }
        heartbeat::busy("making GC roots");
        self.add_roots(work)?;
        self.register(work)?;
        Ok(Outcome::Built {
            output: Arc::new(output),
            cached,
            times_built: u32::try_from(result.times_built).unwrap_or(u32::MAX),
            non_deterministic: result.non_deterministic,
        })
    }

    /// Streams one output into the destination store, hashing and scanning it on the way.
    fn receive(
        &self,
        connection: &mut Connection,
        work: &Work,
        info: &ServePathInfo,
    ) -> Result<MemberScan, Stop> {
        let dest = &self.context.dest;
        let trouble = |trouble| self.dest_trouble(work, trouble);
        let valid = ValidPathInfo::from(info.clone());
        let Some(landing) = dest.landing(&valid, self.kill).map_err(trouble)? else {
            let mut scans = dest.scan(&[&info.path]).map_err(trouble)?;
            return Ok(scans.pop().unwrap_or_default());
        };
        connection
            .pipes
            .enter("receiving outputs", self.machine.deadlines().receive);
        let mut scan = MemberScan::new();
        let taken = match connection.client.dump_store_path(&info.path, &mut scan) {
            Err(error) => Err(error),
            Ok(mut nar) => match landing.take(&valid, &mut nar) {
                Ok(()) => nar.finish().map(|_| ()),
                Err(TakeError::Source(error)) => Err(WireError::Io(error)),
                Err(TakeError::Mismatch(message)) => {
                    let message = format!("'{}': {message}", self.machine.name);
                    return Err(Trouble::Machine(message).into());
                }
                Err(TakeError::Trouble(DestTrouble::Here(message))) => {
                    return Err(ours(format!("cannot register {}: {message}", info.path)));
                }
                Err(TakeError::Trouble(other)) => return Err(trouble(other)),
            },
        };
        match taken {
            Ok(()) => Ok(scan),
            Err(error) => {
                Err(self.trouble(connection, &error, &format!("receiving {}", info.path)))
            }
        }
    }

    fn end_log(&self, connection: &Connection) -> Result<(), Stop> {
        let silence = (!self.machine.line().is_localhost).then_some(REMOTE_LOG_SILENCE);
        match connection.pipes.end_log(silence) {
            Ok(_) => Ok(()),
            Err(error) => Err(ours(format!(
                "cannot write the log of {}: {}",
                self.start.drv,
                plain_error(&error)
            ))),
        }
    }

    /// What Nix's failures mean.
    fn failure(
        &self,
        work: &Work,
        status: NixStatus,
        result: &BuildResult,
        log: &str,
    ) -> Result<Outcome, Stop> {
        let message = with_end_of_log(&result.message, log);
        let non_deterministic = result.non_deterministic;
        let times_built = u32::try_from(result.times_built).unwrap_or(u32::MAX);
        let own = |status: BuildStatus, can_cache: bool| Outcome::Failed {
            status,
            message: message.clone().into(),
            can_cache,
            times_built,
            non_deterministic,
        };
        Ok(match status {
            NixStatus::PermanentFailure | NixStatus::InputRejected | NixStatus::OutputRejected => {
                own(BuildStatus::Failed, true)
            }
            NixStatus::NotDeterministic => own(BuildStatus::NotDeterministic, true),
            NixStatus::TimedOut => own(BuildStatus::TimedOut, false),
            NixStatus::LogLimitExceeded => own(BuildStatus::LogLimitExceeded, false),
            NixStatus::TransientFailure => Outcome::Transient {
                status: BuildStatus::Failed,
                message: message.into(),
            },
            NixStatus::MiscFailure => {
                if let Some(path) = self.collected_input(work)? {
                    let message = format!("the input {path} is not in the store any more");
                    return Err(self.gone_inputs(work, message));
                }
                Outcome::Transient {
                    status: BuildStatus::Aborted,
                    message: message.into(),
                }
            }
            _ => own(BuildStatus::Aborted, false),
        })
    }

    /// An input that was collected between its own build and this one.
    fn collected_input(&self, work: &Work) -> Result<Option<String>, Stop> {
        let gone = self.context.dest.gone(&work.inputs).map_err(ours)?;
        Ok(gone.first().map(|path| (*path).to_owned()))
    }

    /// Brings the outputs into the destination store and describes them. The inner error is a failure of the build.
    fn fetch(
        &self,
        connection: &mut Connection,
        work: &Work,
    ) -> Result<Result<BuildOutput, Outcome>, Stop> {
        let (store, dest) = (&self.context.store, &self.context.dest);
        let paths: Vec<&str> = work.outputs.iter().map(|(_, path)| path.as_str()).collect();
        let infos = self.output_infos(connection, work)?;
        if let Some(missing) = paths
            .iter()
            .find(|path| !infos.iter().any(|info| info.path == **path))
        {
            let message = format!(
                "'{}' says that it built {missing}, but does not have it",
                self.machine.name
            );
            return Err(Trouble::Machine(message).into());
        }
        // What a machine says, so not to be believed to fit.
        let size = infos
            .iter()
            .fold(0u64, |sum, info| sum.saturating_add(info.nar_size));
        let size_max = self.context.limits().max_output_size;
        if size_max > 0 && size > size_max {
            let message =
                format!("the outputs have {size} bytes, more than the limit of {size_max}");
            log::info!("'{}' on '{}': {message}", self.start.drv, self.machine.name);
            return Ok(Err(failed(
                BuildStatus::NarSizeLimitExceeded,
                message,
                false,
            )));
        }
        let mut scans = HashMap::new();
        if self.machine.line().is_localhost {
            heartbeat::enter(
                "reading the outputs",
                Patience::Deadline(self.machine.deadlines().receive),
            );
            for (path, scan) in paths.iter().zip(store.scan(&paths).map_err(ours)?) {
                scans.insert((*path).to_owned(), scan);
            }
            if !dest.is_local() {
                self.enter(Phase::ReceivingOutputs);
                dest.copy_from_local(&paths, self.kill)
                    .map_err(|trouble| self.dest_trouble(work, trouble))?;
            }
        } else {
            self.enter(Phase::ReceivingOutputs);
            for info in references_first(&infos) {
                let scan = self.receive(connection, work, info)?;
                self.context
                    .traffic
                    .bytes_received
                    .fetch_add(info.nar_size, Ordering::Relaxed);
                scans.insert(info.path.clone(), scan);
            }
            if dest.is_beyond_local() {
                dest.copy_from_local(&paths, self.kill)
                    .map_err(|trouble| self.dest_trouble(work, trouble))?;
            }
        }
        for info in &infos {
            dest.learn(&info.path, &info.references, info.nar_size);
        }
        let closure_size = dest
            .closure_size(&paths)
            .map_err(|trouble| self.dest_trouble(work, trouble))?;
        let outputs: Vec<OutputScan> = work
            .outputs
            .iter()
            .filter_map(|(name, path)| {
                let info = infos.iter().find(|info| info.path == *path)?;
                let scan = scans.remove(path)?;
                Some(OutputScan {
                    name: name.clone(),
                    path: path.clone(),
                    nar_size: info.nar_size,
                    scan,
                })
            })
            .collect();
        Ok(Ok(products::build_output(
            &outputs,
            closure_size,
            store.dir(),
        )))
    }
}

/// The machine's own limits get this much time to work before ours do.
const LIMIT_MARGIN: Duration = Duration::from_secs(1);

fn failed(status: BuildStatus, message: String, can_cache: bool) -> Outcome {
    Outcome::Failed {
        status,
        message: message.into(),
        can_cache,
        times_built: 0,
        non_deterministic: false,
    }
}

/// Says a derivation of itself. (Hydra looks at this variable, by this name.)
fn is_deterministic(work: &Work) -> bool {
    work.drv.env_var("isDetermistic") == Some(b"1")
}

/// Nix's message, and the end of the build's log where that looks as if the machine were broken and the message does not
/// say so. (Since 2.4 Nix itself quotes the log, but not of every failure.)
fn with_end_of_log(message: &str, log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    let end = lines[lines.len().saturating_sub(LOG_LINES_JUDGED)..].join("\n");
    match signature::classify(message).or_else(|| signature::classify(&end)) {
        Some(_) if signature::classify(message).is_none() => {
            format!("{message}; its log ends:\n{end}")
        }
        _ => message.to_owned(),
    }
}

/// The paths that are not among the valid ones, in the same order.
fn without(paths: &[Arc<PathMeta>], valid: Vec<String>) -> Vec<Arc<PathMeta>> {
    let valid: HashSet<String> = valid.into_iter().collect();
    paths
        .iter()
        .filter(|meta| !valid.contains(&*meta.path))
        .cloned()
        .collect()
}

/// The outputs of one derivation, each after those it refers to. (A cycle among them cannot exist.)
fn references_first(infos: &[ServePathInfo]) -> Vec<&ServePathInfo> {
    let mut left: Vec<_> = infos.iter().collect();
    let mut ordered = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let free = left
            .iter()
            .position(|info| {
                !left
                    .iter()
                    .any(|other| other.path != info.path && info.references.contains(&other.path))
            })
            .unwrap_or(0);
        ordered.push(left.swap_remove(free));
    }
    ordered
}

impl Context {
    fn end_run(&self, run: crate::model::RunId, end: RunEnd) {
        self.tell_plan(Event::RunEnded { run, end });
    }
}
