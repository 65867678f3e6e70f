//! Why something does not build, or what it is doing: one value, as text for people and as JSON for programs.
//!
//! Knows words only; what is true is found out in `explain`.

use serde_json::{json, Map, Value};

use super::holds::HeldBack;
use crate::base::text::duration;
use crate::model::{BuildId, Phase};

/// What is asked about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Subject {
    Build(BuildId),
    /// A derivation's full path.
    Drv(Box<str>),
    /// By the first column of the machines file.
    Machine(Box<str>),
}

/// The plan's answer.
#[derive(Clone, PartialEq, Debug)]
pub enum Explanation {
    Build(BuildExplanation),
    Step(Box<StepExplanation>),
    Machine(Box<MachineExplanation>),
}

#[derive(Clone, PartialEq, Debug)]
pub struct BuildExplanation {
    pub build: BuildId,
    pub now: BuildNow,
}

#[derive(Clone, PartialEq, Debug)]
pub enum BuildNow {
    /// It is listed; its row is being read.
    RowAsked {
        secs: u64,
    },
    /// It has ended and its record is not committed.
    Finishing,
    Finished,
    Queued(Box<StepExplanation>),
}

#[derive(Clone, PartialEq, Debug)]
pub struct StepExplanation {
    pub drv: Box<str>,
    /// Inputs that are not there yet.
    pub inputs_missing: u32,
    /// What it waits for, by the shortest way to something that waits for no other step: the last one is `at`. Empty
    /// if it waits for no step itself.
    pub chain: Vec<Box<str>>,
    /// The end of the chain.
    pub at: StepNow,
    /// Everything it waits for, directly or not.
    pub below: Below,
    /// Other ends that stand still for a reason that time alone may not cure.
    pub stuck: Vec<StepNow>,
    /// Why nothing is started at all, if nothing is.
    pub holds: Vec<HoldNow>,
}

/// Unfinished steps below another, counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Below {
    pub running: u32,
    pub ready: u32,
    pub deferred: u32,
    pub blocked: u32,
    /// Not known yet whether they have to be built.
    pub uninspected: u32,
    /// There are more, that were not looked at.
    pub more: bool,
}

/// Something that keeps everything from being started.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HoldNow {
    /// A word for programs.
    pub hold: &'static str,
    pub secs: u64,
    pub why: Box<str>,
}

/// One step, and why it is where it is.
#[derive(Clone, PartialEq, Debug)]
pub struct StepNow {
    pub drv: Box<str>,
    /// `platform:feature,feature`, once it is known to be needed.
    pub system_type: Option<Box<str>>,
    /// How long it has been in its state.
    pub secs: u64,
    /// Failed tries of its own.
    pub tries: u32,
    /// The last thing that went wrong with it.
    pub last_error: Option<StepError>,
    /// Builds that want it, the lowest first, and whether these are all.
    pub builds: (Vec<BuildId>, bool),
    pub reason: Reason,
    /// Its place among the ready steps.
    pub order: Option<Order>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StepError {
    pub text: Box<str>,
    pub machine: Option<Box<str>>,
    pub secs_ago: u64,
}

#[derive(Clone, PartialEq, Debug)]
pub enum Reason {
    /// Its question is not asked yet.
    WaitsForInspection {
        before: u64,
    },
    Inspecting,
    /// After a fault of this host.
    InspectedAgain {
        in_secs: u64,
    },
    /// It is built.
    Describing,
    /// The chain is longer than what is looked at.
    Blocked {
        inputs: u32,
    },
    Deferred {
        in_secs: u64,
    },
    Running(RunNow),
    Failing,
    /// Nothing is started.
    Held,
    Stopping,
    MachinesUnknown,
    NoMachine {
        nearest: Option<Nearest>,
        /// When it is given up; `None`: not.
        given_up_in_secs: Option<u64>,
    },
    /// Machines could, and none of them takes anything.
    NoneTakes {
        machines: Vec<MachineBrief>,
        more: usize,
    },
    /// Machines would take it, but an emergency goes before or a cap is reached.
    HeldBack(HeldBack),
    DatabaseBehind {
        records: u64,
    },
    AllFull {
        machines: Vec<MachineBrief>,
        more: usize,
        /// Other ready steps of the same type.
        others: u32,
    },
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RunNow {
    pub drv: Box<str>,
    pub build: BuildId,
    pub machine: Box<str>,
    pub phase: Phase,
    pub phase_secs: u64,
    pub secs: u64,
    pub killed: bool,
}

/// The machine that lacks least.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Nearest {
    pub machine: Box<str>,
    /// The system type, if it lacks that, and those it has.
    pub lacks_system: Option<(Box<str>, Vec<Box<str>>)>,
    pub lacks_features: Vec<Box<str>>,
    /// It takes only steps that need these.
    pub insists_on: Vec<Box<str>>,
}

#[derive(Clone, PartialEq, Debug)]
pub struct MachineBrief {
    pub name: Box<str>,
    pub used: u32,
    pub slots: u32,
    pub standing: Standing,
}

/// Whether a machine takes steps, and why not.
#[derive(Clone, PartialEq, Debug)]
pub enum Standing {
    Ready,
    Full,
    /// It has failed; one step at a time until one has shown that it works.
    OnTrial {
        failures: u32,
        busy: bool,
    },
    SetAside {
        for_secs: u64,
        failures: u32,
        why: Box<str>,
    },
    /// An operator drained or disabled it.
    Ordered {
        disabled: bool,
        for_secs: Option<u64>,
        secs: u64,
        who: Box<str>,
        reason: Option<Box<str>>,
        running: u32,
    },
    NoSlots,
    /// It has too little room.
    LowDisk {
        secs: u64,
        why: Box<str>,
    },
    /// Not in the machines file any more.
    Removed,
}

/// The keys of a ready step, in the order in which they count.
#[derive(Clone, PartialEq, Debug)]
pub struct Order {
    /// From 1, among the ready steps that the same machines could do.
    pub position: u32,
    pub of: u32,
    /// There are more, that were not looked at.
    pub more: bool,
    pub global_priority: i32,
    pub share_used: f64,
    /// The jobset of that share.
    pub jobset: Option<Box<str>>,
    pub local_priority: i32,
    pub features: u32,
    pub dependents: u32,
    pub lowest_build: i32,
    /// What comes first instead, and why.
    pub first: Option<First>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct First {
    pub drv: Box<str>,
    pub key: &'static str,
    pub its: Box<str>,
    pub ours: Box<str>,
}

#[derive(Clone, PartialEq, Debug)]
pub struct MachineExplanation {
    pub brief: MachineBrief,
    pub systems: Vec<Box<str>>,
    pub supported_features: Vec<Box<str>>,
    pub mandatory_features: Vec<Box<str>>,
    pub speed_factor: f32,
    pub runs: Vec<RunNow>,
    /// Steps that are ready and that it could do.
    pub ready: u32,
    /// System types of queued steps that no other machine is given now.
    pub alone_for: Vec<Box<str>>,
    pub steps_done: u64,
    pub average_build_secs: Option<f64>,
    pub average_copy_secs: Option<f64>,
    pub idle_secs: Option<u64>,
    /// The newest first: how long ago, and what.
    pub errors: Vec<(u64, Box<str>)>,
    pub holds: Vec<HoldNow>,
}

fn list(items: &[Box<str>]) -> String {
    items.join(", ")
}

fn secs(secs: u64) -> String {
    duration(i64::try_from(secs).unwrap_or(i64::MAX))
}

/// A message as part of a line.
fn one_line(text: &str) -> String {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join("; ")
}

/// A derivation without its folder and hash, for chains.
fn short(drv: &str) -> &str {
    let base = drv.rsplit('/').next().unwrap_or(drv);
    match base.split_once('-') {
        Some((hash, name)) if hash.len() == 32 => name,
        _ => base,
    }
}

impl Explanation {
    /// The lines a person reads; the first says it all.
    pub fn lines(&self) -> Vec<String> {
        match self {
            Explanation::Build(build) => build.lines(),
            Explanation::Step(step) => step.lines(),
            Explanation::Machine(machine) => machine.lines(),
        }
    }

    pub fn json(&self) -> Value {
        match self {
            Explanation::Build(build) => build.json(),
            Explanation::Step(step) => step.json(),
            Explanation::Machine(machine) => machine.json(),
        }
    }
}

impl BuildExplanation {
    pub fn lines(&self) -> Vec<String> {
        match &self.now {
            BuildNow::RowAsked { secs: age } => {
                vec![format!("its row is being read, since {}", secs(*age))]
            }
            BuildNow::Finishing => {
                vec!["it is finished; the database has yet to hear of it".into()]
            }
            BuildNow::Finished => vec!["it is finished".into()],
            BuildNow::Queued(step) => step.lines(),
        }
    }

    fn json(&self) -> Value {
        let (state, step) = match &self.now {
            BuildNow::RowAsked { .. } => ("reading", None),
            BuildNow::Finishing => ("finishing", None),
            BuildNow::Finished => ("finished", None),
            BuildNow::Queued(step) => ("queued", Some(step)),
        };
        let mut value = json!({"build": self.build.0, "state": state});
        if let Some(step) = step {
            value["step"] = step.json();
        }
        value
    }
}

impl StepExplanation {
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let told = self.at.tell(&self.holds);
        if self.chain.is_empty() {
            lines.push(told);
        } else {
            let others = match self.inputs_missing {
                0 | 1 => String::new(),
                2 => " (and 1 other input)".into(),
                missing => format!(" (and {} other inputs)", missing - 1),
            };
            lines.push(format!("waits for ‘{}’{others}, which {told}", self.at.drv));
        }
        if self.chain.len() > 1 {
            let names: Vec<&str> = [&*self.drv]
                .into_iter()
                .chain(self.chain.iter().map(|drv| &**drv))
                .map(short)
                .collect();
            lines.push(format!("the shortest chain: {}", names.join(" <- ")));
        }
        if self.below.all() > 1 {
            lines.push(format!("all it waits for: {}", self.below.text()));
        }
        lines.extend(self.at.more_lines());
        if self.at.reason != Reason::Held {
            lines.extend(self.holds.iter().map(HoldNow::line));
        }
        for stuck in &self.stuck {
            lines.push(format!("also ‘{}’ {}", stuck.drv, stuck.tell(&[])));
        }
        lines
    }

    fn json(&self) -> Value {
        json!({
            "drv": self.drv,
            "inputs_missing": self.inputs_missing,
            "chain": self.chain,
            "at": self.at.json(),
            "below": self.below.json(),
            "stuck": self.stuck.iter().map(StepNow::json).collect::<Vec<_>>(),
            "holds": holds_json(&self.holds),
        })
    }
}

impl HoldNow {
    pub fn line(&self) -> String {
        format!("nothing is started since {}: {}", secs(self.secs), self.why)
    }
}

/// What keeps everything from being started, for programs.
pub fn holds_json(holds: &[HoldNow]) -> Value {
    let hold = |hold: &HoldNow| json!({"hold": hold.hold, "secs": hold.secs, "why": hold.why});
    holds.iter().map(hold).collect()
}

impl Below {
    fn counts(&self) -> [(&'static str, u32); 5] {
        [
            ("running", self.running),
            ("ready", self.ready),
            ("deferred", self.deferred),
            ("blocked", self.blocked),
            ("uninspected", self.uninspected),
        ]
    }

    fn all(&self) -> u32 {
        self.counts().iter().map(|(_, count)| count).sum()
    }

    fn text(&self) -> String {
        let some = self.counts().into_iter().filter(|(_, count)| *count > 0);
        let some: Vec<String> = some
            .map(|(word, count)| format!("{count} {word}"))
            .collect();
        let more = if self.more { ", and more" } else { "" };
        format!("{}{more}", some.join(", "))
    }

    fn json(&self) -> Value {
        let mut map: Map<String, Value> = self
            .counts()
            .into_iter()
            .map(|(word, count)| (word.into(), count.into()))
            .collect();
        map.insert("more".into(), self.more.into());
        map.into()
    }
}

impl StepNow {
    /// What it does, as the predicate of a sentence.
    pub fn tell(&self, holds: &[HoldNow]) -> String {
        let age = secs(self.secs);
        let ready = |why: String| {
            let name = self.system_type.as_deref().unwrap_or("?");
            format!("is ready since {age} and waits for a machine of type {name}: {why}")
        };
        match &self.reason {
            Reason::WaitsForInspection { before } => {
                format!("waits to be inspected, {before} before it")
            }
            Reason::Inspecting => format!("is being inspected, since {age}"),
            Reason::InspectedAgain { in_secs } => format!(
                "is inspected again in {}, after a fault of this host or since others are before it",
                secs(*in_secs)
            ),
            Reason::Describing => {
                format!("is built already; its outputs are being described, since {age}")
            }
            Reason::Blocked { inputs } => format!("waits for {inputs} inputs"),
            Reason::Deferred { in_secs } => {
                let error = match &self.last_error {
                    Some(error) => format!(", after {}", error.told()),
                    None => String::new(),
                };
                format!(
                    "is tried again in {} (failed tries: {}){error}",
                    secs(*in_secs),
                    self.tries
                )
            }
            Reason::Running(run) => run.tell(),
            Reason::Failing => "has failed; this is being recorded".into(),
            Reason::Held => {
                let whys: Vec<&str> = holds.iter().map(|hold| &*hold.why).collect();
                ready(format!("nothing is started: {}", whys.join("; ")))
            }
            Reason::Stopping => ready("nothing new is started any more".into()),
            Reason::MachinesUnknown => ready("the list of machines has not been read yet".into()),
            Reason::NoMachine {
                nearest,
                given_up_in_secs,
            } => {
                let nearest = match nearest {
                    Some(nearest) => format!("; the nearest, {}", nearest.tell()),
                    None => "; there are no machines at all".into(),
                };
                let end = match given_up_in_secs {
                    Some(left) => format!("; given up in {} if none comes", secs(*left)),
                    None => String::new(),
                };
                ready(format!("no machine supports that{nearest}{end}"))
            }
            Reason::NoneTakes { machines, more } => {
                let mut told: Vec<String> = machines
                    .iter()
                    .map(|machine| format!("‘{}’ {}", machine.name, machine.standing.tell()))
                    .collect();
                if *more > 0 {
                    told.push(format!("and {more} more"));
                }
                ready(format!(
                    "no machine for it takes anything: {}",
                    told.join("; ")
                ))
            }
            Reason::DatabaseBehind { records } => {
                ready(format!("the database is {records} records behind"))
            }
            Reason::HeldBack(by) => ready(by.tell()),
            Reason::AllFull {
                machines,
                more,
                others,
            } => {
                let mut told: Vec<String> = machines
                    .iter()
                    .map(|machine| match &machine.standing {
                        Standing::Full | Standing::Ready => {
                            format!("‘{}’ {}/{}", machine.name, machine.used, machine.slots)
                        }
                        other => format!("‘{}’ {}", machine.name, other.tell()),
                    })
                    .collect();
                if *more > 0 {
                    told.push(format!("{more} more"));
                }
                let others = match others {
                    0 => "nothing else waits for them".into(),
                    1 => "1 other waits for them too".into(),
                    n => format!("{n} others wait for them too"),
                };
                ready(format!(
                    "all machines for it are busy ({}), {others}",
                    told.join(", ")
                ))
            }
        }
    }

    fn more_lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some(order) = &self.order {
            lines.extend(order.lines());
        }
        if !matches!(self.reason, Reason::Deferred { .. }) {
            if let Some(error) = &self.last_error {
                lines.push(format!(
                    "{} ago: {} (failed tries: {})",
                    secs(error.secs_ago),
                    error.told(),
                    self.tries
                ));
            }
        }
        let (builds, all) = &self.builds;
        if builds.len() > 1 || !all {
            let ids: Vec<String> = builds.iter().map(ToString::to_string).collect();
            let more = if *all { "" } else { " and more" };
            lines.push(format!("builds that want it: {}{more}", ids.join(", ")));
        }
        lines
    }

    fn json(&self) -> Value {
        let (state, mut value) = self.reason.json();
        value["state"] = state.into();
        value["drv"] = json!(self.drv);
        value["system_type"] = json!(self.system_type);
        value["secs"] = self.secs.into();
        value["tries"] = self.tries.into();
        value["told"] = self.tell(&[]).into();
        value["builds"] = self.builds.0.iter().map(|build| build.0).collect();
        value["builds_complete"] = self.builds.1.into();
        if let Some(error) = &self.last_error {
            value["last_error"] =
                json!({"text": error.text, "machine": error.machine, "secs_ago": error.secs_ago});
        }
        if let Some(order) = &self.order {
            value["order"] = order.json();
        }
        value
    }
}

impl StepError {
    fn told(&self) -> String {
        match &self.machine {
            Some(machine) => format!("an error on ‘{machine}’: {}", one_line(&self.text)),
            None => format!("an error: {}", one_line(&self.text)),
        }
    }
}

impl Reason {
    /// A word for the state, and what belongs to it.
    fn json(&self) -> (&'static str, Value) {
        let briefs = |machines: &[MachineBrief], more: usize| json!({"machines": machines.iter().map(MachineBrief::json).collect::<Vec<_>>(), "more_machines": more});
        match self {
            Reason::WaitsForInspection { before } => ("uninspected", json!({"before": before})),
            Reason::Inspecting => ("inspecting", json!({})),
            Reason::InspectedAgain { in_secs } => ("inspected-again", json!({"in_secs": in_secs})),
            Reason::Describing => ("describing", json!({})),
            Reason::Blocked { inputs } => ("blocked", json!({"inputs": inputs})),
            Reason::Deferred { in_secs } => ("deferred", json!({"in_secs": in_secs})),
            Reason::Running(run) => ("running", json!({"run": run.json()})),
            Reason::Failing => ("failing", json!({})),
            Reason::Held => ("held", json!({})),
            Reason::Stopping => ("stopping", json!({})),
            Reason::MachinesUnknown => ("machines-unknown", json!({})),
            Reason::NoMachine {
                nearest,
                given_up_in_secs,
            } => (
                "no-machine",
                json!({"nearest": nearest.as_ref().map(Nearest::json), "given_up_in_secs": given_up_in_secs}),
            ),
            Reason::NoneTakes { machines, more } => ("none-takes", briefs(machines, *more)),
            Reason::HeldBack(HeldBack::Emergency(builds)) => (
                "emergency",
                json!({"builds": builds.iter().map(|build| build.0).collect::<Vec<_>>()}),
            ),
            Reason::HeldBack(HeldBack::Cap { whose, steps }) => {
                ("cap-reached", json!({"of": whose, "cap": steps}))
            }
            Reason::DatabaseBehind { records } => ("database-behind", json!({"records": records})),
            Reason::AllFull { machines, more, .. } => ("all-full", briefs(machines, *more)),
        }
    }
}

impl RunNow {
    fn tell(&self) -> String {
        let killed = if self.killed { ", being killed" } else { "" };
        format!(
            "is {} on ‘{}’ since {}{killed}",
            self.phase.text(),
            self.machine,
            secs(self.phase_secs)
        )
    }

    fn json(&self) -> Value {
        json!({
            "drv": self.drv,
            "build": self.build.0,
            "machine": self.machine,
            "phase": self.phase.text(),
            "phase_secs": self.phase_secs,
            "secs": self.secs,
            "killed": self.killed,
        })
    }
}

impl Nearest {
    fn tell(&self) -> String {
        let mut lacks = Vec::new();
        if let Some((system, has)) = &self.lacks_system {
            let has = if has.is_empty() {
                "none".into()
            } else {
                list(has)
            };
            lacks.push(format!("lacks the system type {system} (it has {has})"));
        }
        match self.lacks_features.len() {
            0 => {}
            1 => lacks.push(format!("lacks the feature {}", self.lacks_features[0])),
            _ => lacks.push(format!("lacks the features {}", list(&self.lacks_features))),
        }
        if !self.insists_on.is_empty() {
            lacks.push(format!(
                "takes only steps that need {}",
                list(&self.insists_on)
            ));
        }
        format!("‘{}’, {}", self.machine, lacks.join(" and "))
    }

    fn json(&self) -> Value {
        json!({
            "machine": self.machine,
            "lacks_system": self.lacks_system.as_ref().map(|(system, _)| system),
            "lacks_features": self.lacks_features,
            "insists_on": self.insists_on,
        })
    }
}

impl Standing {
    /// A word for programs and tables.
    pub fn word(&self) -> &'static str {
        match self {
            Standing::Ready => "ready",
            Standing::Full => "full",
            Standing::OnTrial { .. } => "on trial",
            Standing::SetAside { .. } => "set aside",
            Standing::Ordered {
                disabled: false, ..
            } => "drained",
            Standing::Ordered { disabled: true, .. } => "disabled",
            Standing::NoSlots => "no slots",
            Standing::LowDisk { .. } => "low disk",
            Standing::Removed => "removed",
        }
    }

    /// Whether it is given steps, when it has a free slot.
    pub fn takes_steps(&self) -> bool {
        matches!(
            self,
            Standing::Ready | Standing::Full | Standing::OnTrial { .. }
        )
    }

    /// The predicate of a sentence about the machine.
    pub fn tell(&self) -> String {
        match self {
            Standing::Ready => "takes steps".into(),
            Standing::Full => "has all slots in use".into(),
            Standing::OnTrial { failures, busy } => {
                let doing = if *busy {
                    "is tried with one step"
                } else {
                    "is to be tried with one step"
                };
                format!("{doing} after {}", times(*failures))
            }
            Standing::SetAside {
                for_secs,
                failures,
                why,
            } => format!(
                "is set aside for {} more after {}: {}",
                secs(*for_secs),
                times(*failures),
                one_line(why)
            ),
            Standing::Ordered {
                for_secs,
                secs: age,
                who,
                reason,
                running,
                ..
            } => {
                let end = match for_secs {
                    Some(left) => format!("for {} more", secs(*left)),
                    None => "until it is enabled".into(),
                };
                let reason = match reason {
                    Some(reason) => format!(": {}", one_line(reason)),
                    None => String::new(),
                };
                let running = match running {
                    0 => String::new(),
                    1 => " (1 step still runs)".into(),
                    n => format!(" ({n} steps still run)"),
                };
                format!(
                    "was {} by {who} {} ago, {end}{reason}{running}",
                    self.word(),
                    secs(*age)
                )
            }
            Standing::NoSlots => "has no slots in the machines file".into(),
            Standing::LowDisk { secs: age, why } => {
                format!("gets nothing for {}: {}", secs(*age), one_line(why))
            }
            Standing::Removed => "is not in the machines file any more".into(),
        }
    }

    fn json(&self) -> Value {
        let mut value = json!({"state": self.word(), "told": self.tell()});
        match self {
            Standing::OnTrial { failures, busy } => {
                value["failures"] = (*failures).into();
                value["busy"] = (*busy).into();
            }
            Standing::SetAside {
                for_secs,
                failures,
                why,
            } => {
                value["for_secs"] = (*for_secs).into();
                value["failures"] = (*failures).into();
                value["why"] = json!(why);
            }
            Standing::Ordered {
                for_secs,
                secs,
                who,
                reason,
                ..
            } => {
                value["for_secs"] = json!(for_secs);
                value["secs"] = (*secs).into();
                value["who"] = json!(who);
                value["reason"] = json!(reason);
            }
            _ => {}
        }
        value
    }
}

fn times(failures: u32) -> String {
    match failures {
        1 => "a failure".into(),
        n => format!("{n} failures"),
    }
}

impl MachineBrief {
    fn json(&self) -> Value {
        json!({"machine": self.name, "used": self.used, "slots": self.slots, "standing": self.standing.json()})
    }
}

impl Order {
    fn lines(&self) -> Vec<String> {
        let jobset = match &self.jobset {
            Some(name) => format!(" by {name}"),
            None => String::new(),
        };
        let more = if self.more { " or more" } else { "" };
        let mut lines = vec![format!(
            "number {} of {}{more} ready steps that the same machines could do: global priority {}, share used {:.6}{jobset}, \
             local priority {}, {} features, {} dependents, lowest build {}",
            self.position,
            self.of,
            self.global_priority,
            self.share_used,
            self.local_priority,
            self.features,
            self.dependents,
            self.lowest_build
        )];
        if let Some(first) = &self.first {
            lines.push(format!(
                "first of them is ‘{}’, by its {}: {} against {}",
                first.drv, first.key, first.its, first.ours
            ));
        }
        lines
    }

    fn json(&self) -> Value {
        let first = self.first.as_ref().map(
            |first| json!({"drv": first.drv, "key": first.key, "its": first.its, "ours": first.ours}),
        );
        json!({
            "position": self.position,
            "of": self.of,
            "more": self.more,
            "global_priority": self.global_priority,
            "share_used": self.share_used,
            "jobset": self.jobset,
            "local_priority": self.local_priority,
            "features": self.features,
            "dependents": self.dependents,
            "lowest_build": self.lowest_build,
            "first": first,
        })
    }
}

impl MachineExplanation {
    pub fn lines(&self) -> Vec<String> {
        let brief = &self.brief;
        let mut lines = vec![format!(
            "{}; {} of {} slots in use, {} ready steps it could do",
            brief.standing.tell(),
            brief.used,
            brief.slots,
            self.ready
        )];
        let or_none = |items: &[Box<str>]| match items {
            [] => "none".into(),
            items => list(items),
        };
        lines.push(format!(
            "system types {}, features {}, mandatory {}, speed {}",
            or_none(&self.systems),
            or_none(&self.supported_features),
            or_none(&self.mandatory_features),
            self.speed_factor
        ));
        let average = |secs: Option<f64>| secs.map_or("-".into(), |secs| format!("{secs:.1} s"));
        lines.push(format!(
            "{} steps done, on average {} building and {} copying",
            self.steps_done,
            average(self.average_build_secs),
            average(self.average_copy_secs)
        ));
        if !self.alone_for.is_empty() {
            let types = list(&self.alone_for);
            lines.push(format!("no other machine takes queued steps of {types}"));
        }
        if let Some(idle) = self.idle_secs {
            lines.push(format!("idle since {}", secs(idle)));
        }
        for run in &self.runs {
            lines.push(format!(
                "‘{}’ for build {}, started {} ago, {}",
                run.drv,
                run.build,
                secs(run.secs),
                run.tell()
            ));
        }
        for (ago, error) in &self.errors {
            lines.push(format!("{} ago: {}", secs(*ago), one_line(error)));
        }
        lines.extend(self.holds.iter().map(HoldNow::line));
        lines
    }

    pub fn json(&self) -> Value {
        let mut value = self.brief.json();
        value["systems"] = json!(self.systems);
        value["supported_features"] = json!(self.supported_features);
        value["mandatory_features"] = json!(self.mandatory_features);
        value["speed_factor"] = json!(self.speed_factor);
        value["runs"] = self.runs.iter().map(RunNow::json).collect();
        value["ready"] = self.ready.into();
        value["alone_for"] = json!(self.alone_for);
        value["steps_done"] = self.steps_done.into();
        value["average_build_secs"] = json!(self.average_build_secs);
        value["average_copy_secs"] = json!(self.average_copy_secs);
        value["idle_secs"] = json!(self.idle_secs);
        let error = |(ago, text): &(u64, Box<str>)| json!({"secs_ago": ago, "text": text});
        value["errors"] = self.errors.iter().map(error).collect();
        value["holds"] = holds_json(&self.holds);
        value
    }
}
