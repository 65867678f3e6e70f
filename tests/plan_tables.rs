//! Plan tables: what the plan is told, and what it wants done, as text.
//!
//! Lines that begin at the margin are events; the indented lines below are the actions they must cause, in order.
//! `UPDATE_GOLDEN=1 cargo test --test plan_tables` writes what the plan does into this file, to be reviewed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use hydrad::model::*;
use hydrad::plan::action::{Action, Record};
use hydrad::plan::event::*;
use hydrad::plan::explanation::Subject;
use hydrad::plan::Plan;

/// Unix time of the beginning, seconds.
const BEGIN: u64 = 1_700_000_000;

struct Table {
    plan: Plan,
    now: Millis,
    questions: BTreeMap<String, QuestionId>,
    runs: BTreeMap<String, RunId>,
    machines: Vec<String>,
    lines: Vec<String>,
}

fn path(name: &str) -> Box<str> {
    format!("/nix/store/{name}.drv").into()
}

fn name(drv: &str) -> String {
    drv.trim_start_matches("/nix/store/")
        .trim_end_matches(".drv")
        .to_string()
}

fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    items
        .into_iter()
        .map(|item| item.to_string())
        .collect::<Vec<_>>()
        .join(" ")
}

/// `key=value` among the words, or the default.
fn word<'a>(words: &[&'a str], key: &str, default: &'a str) -> &'a str {
    let prefix = format!("{key}=");
    words
        .iter()
        .find_map(|word| word.strip_prefix(prefix.as_str()))
        .unwrap_or(default)
}

fn given<'a>(words: &[&'a str], key: &str) -> Option<&'a str> {
    Some(word(words, key, "")).filter(|value| !value.is_empty())
}

fn number<T: std::str::FromStr>(words: &[&str], key: &str, default: &str) -> T {
    let text = word(words, key, default);
    text.parse()
        .unwrap_or_else(|_| panic!("{key}={text} is no number"))
}

fn words(text: &str) -> Vec<Box<str>> {
    text.split(',')
        .filter(|word| !word.is_empty())
        .map(Into::into)
        .collect()
}

impl Table {
    fn new(settings: PlanSettings) -> Table {
        let now = Millis::from_secs(BEGIN);
        let mut plan = Plan::new(settings, 1, now);
        plan.audit();
        Table {
            plan,
            now,
            questions: BTreeMap::new(),
            runs: BTreeMap::new(),
            machines: Vec::new(),
            lines: Vec::new(),
        }
    }

    fn tell(&mut self, line: &str) {
        self.lines.push(line.to_string());
        if let Some(question) = line.strip_prefix("why ") {
            let id = BuildId(question.parse().expect("a build"));
            let why = self.plan.why(self.now, id);
            self.lines
                .push(format!("    {}", why.unwrap_or_else(|| "unknown".into())));
            return;
        }
        if let Some(subject) = line.strip_prefix("explain ") {
            let subject = match (subject.parse(), subject.strip_prefix("machine ")) {
                (Ok(id), _) => Subject::Build(BuildId(id)),
                (_, Some(machine)) => Subject::Machine(machine.into()),
                _ => Subject::Drv(path(subject)),
            };
            let told = self.plan.explain(self.now, &subject);
            let lines = told.map_or(vec!["unknown".into()], |told| told.lines());
            let lines = lines.iter().map(|line| format!("    {line}"));
            self.lines.extend(lines);
            return;
        }
        let event = self.event(line);
        let mut actions = Vec::new();
        self.plan.turn(self.now, &mut vec![event], &mut actions);
        // What is left over is done at once; the table shows it together.
        for _ in 0..10_000 {
            if self.plan.wake_at().is_none_or(|at| at > self.now) {
                break;
            }
            self.plan.turn(self.now, &mut vec![], &mut actions);
        }
        self.plan.check_invariants();
        for action in actions {
            let line = self.show(action);
            self.lines.push(format!("    {line}"));
        }
    }

    fn event(&mut self, line: &str) -> Event {
        let all: Vec<&str> = line.split(' ').collect();
        let (verb, rest) = (all[0], &all[1..]);
        match verb {
            "jobset" => {
                let history = match word(rest, "used", "") {
                    "" => vec![],
                    secs => vec![(BEGIN as i64 - 100, secs.parse().expect("seconds"))],
                };
                Event::Jobset {
                    id: JobsetId(rest[0].parse().expect("a jobset")),
                    name: format!("p:j{}", rest[0]).into(),
                    shares: number(rest, "shares", "100"),
                    history,
                }
            }
            "machines" => {
                // name:system:slots, then features=, mandatory=, speed= for all.
                self.machines = rest
                    .iter()
                    .filter(|word| word.contains(':'))
                    .map(|word| word.split(':').next().unwrap_or("").to_string())
                    .fold(std::mem::take(&mut self.machines), |mut known, name| {
                        if !known.contains(&name) {
                            known.push(name);
                        }
                        known
                    });
                let specs = rest.iter().filter(|word| word.contains(':')).map(|word| {
                    let parts: Vec<&str> = word.split(':').collect();
                    let at = self
                        .machines
                        .iter()
                        .position(|name| name == parts[0])
                        .expect("known");
                    MachineSpec {
                        id: MachineId(at as u32),
                        name: parts[0].into(),
                        systems: words(parts[1]),
                        slots: parts[2].parse().expect("slots"),
                        speed_factor: parts
                            .get(3)
                            .map_or(1.0, |speed| speed.parse().expect("speed")),
                        supported_features: words(word_of(rest, "features")),
                        mandatory_features: words(word_of(rest, "mandatory")),
                        enabled: true,
                    }
                });
                Event::Machines {
                    machines: specs.collect(),
                    loaded_from_file: !rest.contains(&"unloaded"),
                }
            }
            "builds" => {
                let rows = rest.iter().filter(|word| word.contains(':')).map(|word| {
                    let (id, drv) = word.split_once(':').expect("id:drv");
                    QueuedBuild {
                        id: BuildId(id.parse().expect("an id")),
                        jobset: JobsetId(number(rest, "jobset", "1")),
                        drv: path(drv),
                        max_silent_secs: number(rest, "silent", "3600"),
                        timeout_secs: number(rest, "timeout", "36000"),
                        global_priority: number(rest, "global", "0"),
                        local_priority: number(rest, "local", "100"),
                    }
                });
                Event::Builds {
                    rows: rows.collect(),
                }
            }
            "begin" => Event::SnapshotBegins {
                pass: Pass(rest[0].parse().expect("a pass")),
            },
            "list" => {
                let builds = rest[1..].iter().filter(|word| !word.contains('='));
                let builds = builds.map(|id| {
                    (
                        BuildId(id.parse().expect("an id")),
                        number(rest, "global", "0"),
                    )
                });
                Event::Snapshot {
                    pass: Pass(rest[0].parse().expect("a pass")),
                    written: Ticket(number(rest, "written", "0")),
                    builds: builds.collect(),
                    last: word(rest, "last", "yes") == "yes",
                }
            }
            "needs" => {
                // drv system inputs...
                let spec = StepSpec {
                    platform: rest[1].into(),
                    required_features: words(word(rest, "features", "")),
                    prefer_local: rest.contains(&"prefer-local"),
                    inputs: rest[2..]
                        .iter()
                        .filter(|word| !word.contains('=') && **word != "prefer-local")
                        .map(|input| path(input))
                        .collect(),
                };
                self.facts(rest[0], StepFacts::Needed(spec))
            }
            "valid" => self.facts(rest[0], StepFacts::Valid),
            "later" => self.facts(rest[0], StepFacts::Later),
            "substituted" => {
                let outputs = vec![Substituted {
                    path: format!("{}-out", path(rest[0])),
                    start: 0,
                    stop: 0,
                }];
                self.facts(rest[0], StepFacts::Substituted { outputs })
            }
            "failed-before" => self.facts(rest[0], StepFacts::FailedBefore),
            "collected" => self.facts(rest[0], StepFacts::Collected),
            "unreadable" => self.facts(
                rest[0],
                StepFacts::Unreadable {
                    message: "no builder".into(),
                },
            ),
            "described" => Event::Described {
                question: self.questions[rest[0]],
                output: Ok(Arc::default()),
            },
            "not-described" => Event::Described {
                question: self.questions[rest[0]],
                output: Err("disk full".into()),
            },
            "phase" => {
                let phase = match rest[1] {
                    "connecting" => Phase::Connecting,
                    "sending" => Phase::SendingInputs,
                    "building" => Phase::Building,
                    "receiving" => Phase::ReceivingOutputs,
                    other => panic!("no phase {other}"),
                };
                Event::RunPhase {
                    run: self.runs[rest[0]],
                    phase,
                }
            }
            "built" | "fails" | "transient" | "machine-fault" | "our-fault" | "inputs-gone"
            | "vanished" | "cancelled" => self.ended(verb, rest),
            "written" => Event::Written {
                upto: Ticket(rest[0].parse().expect("a ticket")),
            },
            "wait" => {
                let secs: u64 = rest[0].trim_end_matches('s').parse().expect("seconds");
                self.now = self.now + secs * 1000;
                Event::Tick
            }
            "stop" => Event::Stop,
            "hold" => Event::Hold {
                hold: Hold::Database,
                why: (rest[0] != "over").then(|| rest.join(" ").into()),
            },
            "disk" => Event::Hold {
                hold: Hold::Disk,
                why: (rest[0] != "over").then(|| rest.join(" ").into()),
            },
            "short" => Event::Shortage {
                machine: self.machine(rest[0]),
                why: (rest[1] != "over").then(|| rest[1..].join(" ").into()),
            },
            // machine:state:who, with until= (seconds from now) and reason= for all.
            "orders" => Event::Orders {
                orders: rest
                    .iter()
                    .filter(|word| word.contains(':'))
                    .map(|word| {
                        let parts: Vec<&str> = word.split(':').collect();
                        let in_secs = given(rest, "until").map(|secs| secs.parse::<i64>());
                        MachineOrder {
                            machine: parts[0].into(),
                            state: OrderState::from_word(parts[1]).expect("a state"),
                            until: in_secs.map(|secs| self.now.secs() + secs.expect("seconds")),
                            reason: given(rest, "reason").map(Into::into),
                            who: parts[2].into(),
                            since: self.now.secs(),
                        }
                    })
                    .collect(),
            },
            "tries" => {
                let tries_max = rest[0].parse().expect("tries");
                Event::Settings(PlanSettings {
                    tries_max,
                    ..PlanSettings::default()
                })
            }
            other => panic!("no event {other}"),
        }
    }

    fn machine(&self, name: &str) -> MachineId {
        let at = self.machines.iter().position(|machine| machine == name);
        MachineId(at.expect("a machine") as u32)
    }

    fn facts(&mut self, drv: &str, facts: StepFacts) -> Event {
        let question = self
            .questions
            .get(drv)
            .copied()
            .unwrap_or(QuestionId(u64::MAX));
        Event::Facts {
            answers: vec![(question, facts)],
        }
    }

    fn ended(&mut self, verb: &str, rest: &[&str]) -> Event {
        let status = BuildStatus::from_code(number(rest, "status", "1")).expect("a status");
        let message: Box<str> = match rest.contains(&"no-space") {
            true => "cp: cannot write: No space left on device".into(),
            false => "it broke".into(),
        };
        let outcome = match verb {
            "built" => Outcome::Built {
                output: Arc::default(),
                cached: rest.contains(&"cached"),
                times_built: 1,
                non_deterministic: false,
            },
            "fails" => Outcome::Failed {
                status,
                message,
                can_cache: rest.contains(&"cache"),
                times_built: 1,
                non_deterministic: false,
            },
            "transient" => Outcome::Transient { status, message },
            "machine-fault" => Outcome::MachineFault { message },
            "our-fault" => Outcome::OurFault { message },
            "vanished" => Outcome::Collected,
            "inputs-gone" => Outcome::InputsGone {
                message,
                inputs: words(word(rest, "inputs", ""))
                    .iter()
                    .map(|input| path(input))
                    .collect(),
            },
            _ => Outcome::Cancelled,
        };
        let stop = self.now.secs();
        let start = stop - number::<i64>(rest, "secs", "10");
        let end = RunEnd {
            outcome,
            start,
            stop,
            overhead_ms: 0,
            has_log: !rest.contains(&"no-log"),
        };
        Event::RunEnded {
            run: self.runs[rest[0]],
            end,
        }
    }

    fn show(&mut self, action: Action) -> String {
        match action {
            Action::Inspect { question, drv } => {
                self.questions.insert(name(&drv), question);
                format!("inspect {}", name(&drv))
            }
            Action::Describe { question, drv } => {
                self.questions.insert(name(&drv), question);
                format!("describe {}", name(&drv))
            }
            Action::ReadBuilds { builds } => format!("read {}", list(builds)),
            Action::PageTaken => "page taken".into(),
            Action::Start(start) => {
                self.runs.insert(name(&start.drv), start.run);
                format!(
                    "#{} start {} on {}: run {} for {}, announced [{}], silent {} timeout {}, wanted by {}",
                    start.ticket,
                    name(&start.drv),
                    self.machines[start.machine.0 as usize],
                    start.run,
                    start.primary,
                    list(start.announce),
                    start.max_silent_secs,
                    start.timeout_secs,
                    start.wanted_by
                )
            }
            Action::Kill { run } => format!("kill run {run}"),
            Action::Say { level, text } => {
                let text = text.replace("/nix/store/", "").replace(".drv", "");
                format!("say {level:?}: {text}")
                    .replace("Info", "info")
                    .replace("Warn", "warn")
                    .replace("Error", "error")
            }
            Action::Record { ticket, record } => format!("#{ticket} {}", show_record(record)),
        }
    }
}

fn word_of<'a>(words: &[&'a str], key: &str) -> &'a str {
    word(words, key, "")
}

fn show_record(record: Record) -> String {
    let message =
        |message: Option<Box<str>>| message.map_or(String::new(), |text| format!(" “{text}”"));
    match record {
        Record::Phase { run, phase } => format!("phase of run {run}: {}", phase.text()),
        Record::FinishStep(finish) => {
            let mut text = format!("finish run {}: {}", finish.run, finish.status.text());
            text += &message(finish.message);
            for (flag, name) in [
                (finish.keep_attempt_log, "keep log"),
                (finish.cache_failure, "cache failure"),
                (!finish.has_log, "no log"),
            ] {
                if flag {
                    text += &format!(", {name}");
                }
            }
            text
        }
        Record::Succeed(succeed) => {
            let one = |(id, cached): (BuildId, bool)| {
                format!("{id}{}", if cached { " (cached)" } else { "" })
            };
            let secs = succeed.stop - succeed.start;
            format!(
                "succeed {} in {secs}s",
                succeed
                    .builds
                    .into_iter()
                    .map(one)
                    .collect::<Vec<_>>()
                    .join(", ")
            )
        }
        Record::Fail(fail) => {
            let one = |build: &hydrad::plan::action::FailedBuild| {
                format!(
                    "{} {}{}",
                    build.id,
                    build.status.text(),
                    if build.step_row { " +row" } else { "" }
                )
            };
            let builds = fail.builds.iter().map(one).collect::<Vec<_>>().join(", ");
            let run = fail
                .run
                .map_or(String::new(), |run| format!(" in run {run}"));
            let cached = if fail.cached { " (cached)" } else { "" };
            let (drv, status) = (name(&fail.drv), fail.step_status.text());
            let message = message(fail.message);
            format!(
                "{drv} {status}{cached}{run}{message}, primary {}: {builds}",
                fail.primary
            )
        }
        Record::Substitute {
            build,
            drv,
            outputs,
        } => format!(
            "substitute {} outputs of {} for {build}",
            outputs.len(),
            name(&drv)
        ),
        Record::Abort {
            builds,
            drv,
            message,
            ..
        } => {
            let message = message.replace("/nix/store/", "").replace(".drv", "");
            format!("abort {} for {}: {message}", list(builds), name(&drv))
        }
    }
}

static GOLDEN: Mutex<()> = Mutex::new(());

fn check_with(settings: PlanSettings, script: &str) {
    let mut table = Table::new(settings);
    for line in script
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with(' '))
    {
        table.tell(line);
    }
    let is = format!("\n{}\n", table.lines.join("\n"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        let _one_at_a_time = GOLDEN
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let source = std::fs::read_to_string(file!()).expect("this file");
        std::fs::write(file!(), source.replace(script, &is)).expect("this file");
    } else {
        assert!(is == script, "is:{is}\nshould be:{script}");
    }
}

fn check(script: &str) {
    check_with(PlanSettings::default(), script);
}

#[test]
fn one_build() {
    check(
        r#"
machines a:x86_64-linux:2
jobset 1
builds 10:top
    inspect top
    page taken
needs top x86_64-linux dep
    inspect dep
why 10
    waits for ‘/nix/store/dep.drv’, which is being inspected, since 0 s
needs dep x86_64-linux
    #1 start dep on a: run 1 for 10, announced [], silent 3600 timeout 36000, wanted by 1
phase dep building
    #2 phase of run 1: building
why 10
    waits for ‘/nix/store/dep.drv’, which is building on ‘a’ since 0 s
phase dep receiving
    #3 phase of run 1: receiving outputs
built dep
    #4 finish run 1: succeeded
    #5 start top on a: run 2 for 10, announced [10], silent 3600 timeout 36000, wanted by 1
why 10
    is preparing on ‘a’ since 0 s
built top
    #6 finish run 2: succeeded
    #7 succeed 10 in 10s
written 7
begin 1
list 1 written=7
why 10
    unknown
"#,
    );
}

#[test]
fn what_is_valid_already_succeeds_from_the_cache() {
    check(
        r#"
machines a:x86_64-linux:2
builds 10:top 11:other
    inspect top
    inspect other
    page taken
valid top
    describe top
described top
    #1 succeed 10 (cached) in 0s
needs other x86_64-linux top
    #2 start other on a: run 1 for 11, announced [11], silent 3600 timeout 36000, wanted by 1
builds 12:top
    describe top
    page taken
described top
    #3 succeed 12 (cached) in 0s
"#,
    );
}

#[test]
fn what_was_substituted_is_recorded_and_its_dependents_start() {
    check(
        r#"
machines a:x86_64-linux:2
builds 10:top 12:lib
    inspect top
    inspect lib
    page taken
later lib
needs top x86_64-linux lib
wait 5s
    inspect lib
substituted lib
    #1 substitute 1 outputs of lib for 12
    describe lib
    #2 start top on a: run 1 for 10, announced [10], silent 3600 timeout 36000, wanted by 1
described lib
    #3 succeed 12 (cached) in 0s
"#,
    );
}

#[test]
fn a_description_that_fails_is_asked_for_later_and_the_step_inspected_again() {
    check(
        r#"
machines a:x86_64-linux:2
builds 10:top
    inspect top
    page taken
valid top
    describe top
not-described top
    say warn: cannot describe the outputs of ‘top’: disk full; will ask again after 60s
why 10
    is inspected again in 1 min 0 s, after a fault of this host or since others are before it
wait 60s
    inspect top
needs top x86_64-linux
    #1 start top on a: run 1 for 10, announced [10], silent 3600 timeout 36000, wanted by 1
"#,
    );
}

#[test]
fn builds_of_one_derivation_share_its_run() {
    check(
        r#"
machines a:x86_64-linux:2
builds 12:top 10:top silent=100 timeout=0
    inspect top
    page taken
needs top x86_64-linux
    #1 start top on a: run 1 for 10, announced [10 12], silent 100 timeout 0, wanted by 2
builds 11:top silent=200 timeout=50
    page taken
built top
    #2 finish run 1: succeeded
    #3 succeed 10, 11 (cached), 12 (cached) in 10s
"#,
    );
}

#[test]
fn limits_are_the_largest_of_the_builds_that_want_the_step() {
    check(
        r#"
builds 10:one silent=100 timeout=10
    inspect one
    page taken
builds 11:two silent=50 timeout=20
    inspect two
    page taken
needs one x86_64-linux dep
    inspect dep
needs two x86_64-linux dep
needs dep x86_64-linux
builds 12:three silent=0 timeout=5
    inspect three
    page taken
needs three x86_64-linux dep
machines a:x86_64-linux:1
    #1 start dep on a: run 1 for 10, announced [], silent 0 timeout 20, wanted by 3
"#,
    );
}

#[test]
fn limits_fall_again_when_the_build_with_the_largest_is_gone() {
    check(
        r#"
builds 10:one silent=100 timeout=10
    inspect one
    page taken
builds 11:two silent=50 timeout=20
    inspect two
    page taken
builds 12:three silent=0 timeout=500
    inspect three
    page taken
needs one x86_64-linux dep
    inspect dep
needs two x86_64-linux dep
needs three x86_64-linux dep
needs dep x86_64-linux
list 1 10 11
    say info: discarding cancelled build 12
machines a:x86_64-linux:1
    #1 start dep on a: run 1 for 10, announced [], silent 100 timeout 20, wanted by 2
"#,
    );
}

#[test]
fn a_failure_fails_everything_above_it_and_drops_the_rest() {
    check(
        r#"
machines a:x86_64-linux:1
builds 10:bad 11:middle 12:top 13:unconcerned
    inspect bad
    inspect middle
    inspect top
    inspect unconcerned
    page taken
needs top x86_64-linux middle lonely
    inspect lonely
needs middle x86_64-linux bad
needs unconcerned x86_64-linux
    #1 start unconcerned on a: run 1 for 13, announced [13], silent 3600 timeout 36000, wanted by 1
needs bad x86_64-linux
fails unconcerned status=7
    #2 finish run 1: timed out
    #3 unconcerned timed out in run 1, primary 13: 13 timed out
    #4 start bad on a: run 2 for 10, announced [10], silent 3600 timeout 36000, wanted by 2
fails bad cache
    #5 finish run 2: failed, cache failure
    #6 bad failed in run 2, primary 10: 10 failed, 11 dependency failed +row, 12 dependency failed +row
"#,
    );
}

#[test]
fn what_only_a_failed_build_wanted_is_killed() {
    check(
        r#"
machines a:x86_64-linux:2
builds 10:top
    inspect top
    page taken
needs top x86_64-linux bad slow
    inspect bad
    inspect slow
needs slow x86_64-linux
    #1 start slow on a: run 1 for 10, announced [], silent 3600 timeout 36000, wanted by 1
needs bad x86_64-linux
    #2 start bad on a: run 2 for 10, announced [], silent 3600 timeout 36000, wanted by 1
phase slow building
    #3 phase of run 1: building
fails bad
    #4 finish run 2: failed
    #5 bad failed in run 2, primary 10: 10 dependency failed
    kill run 1
cancelled slow
    #6 finish run 1: cancelled
"#,
    );
}

#[test]
fn a_cached_failure() {
    check(
        r#"
builds 10:top 11:bad
    inspect top
    inspect bad
    page taken
needs top x86_64-linux bad
failed-before bad
    #1 bad cached failure (cached), primary 11: 10 dependency failed +row, 11 failed +row
"#,
    );
}

#[test]
fn collected_and_unreadable_derivations() {
    check(
        r#"
machines a:x86_64-linux:2
builds 10:gone 11:top 12:strange 13:late
    inspect gone
    inspect top
    inspect strange
    inspect late
    page taken
collected gone
    #1 abort 10 for gone: derivation ‘gone’ is not in the store any more: it was garbage-collected before it could be built
unreadable strange
    #2 abort 12 for strange: no builder
needs top x86_64-linux lost
    inspect lost
collected lost
    #3 abort 11 for lost: derivation ‘lost’ is not in the store any more: it was garbage-collected before it could be built
needs late x86_64-linux
    #4 start late on a: run 1 for 13, announced [13], silent 3600 timeout 36000, wanted by 1
vanished late
    #5 finish run 1: aborted “derivation ‘/nix/store/late.drv’ is not in the store any more: it was garbage-collected before it could be built”
    #6 abort 13 for late: derivation ‘late’ is not in the store any more: it was garbage-collected before it could be built
"#,
    );
}

#[test]
fn a_transient_failure_is_tried_again_and_fails_in_the_end() {
    check(
        r#"
tries 3
machines a:x86_64-linux:1
builds 10:top
    inspect top
    page taken
needs top x86_64-linux
    #1 start top on a: run 1 for 10, announced [10], silent 3600 timeout 36000, wanted by 1
transient top
    #2 finish run 1: failed, keep log
    say warn: possibly transient failure building ‘top’ on ‘a’: it broke
    say info: will retry ‘top’ after 65s
why 10
    is tried again in 1 min 5 s (failed tries: 1), after an error on ‘a’: it broke
wait 59s
wait 10s
    #3 start top on a: run 2 for 10, announced [10], silent 3600 timeout 36000, wanted by 1
transient top status=3
    #4 finish run 2: aborted “it broke”, keep log
    say warn: possibly transient failure building ‘top’ on ‘a’: it broke
    say info: will retry ‘top’ after 187s
wait 189s
    #5 start top on a: run 3 for 10, announced [10], silent 3600 timeout 36000, wanted by 1
transient top
    #6 finish run 3: failed
    #7 top failed in run 3, primary 10: 10 failed
"#,
    );
}

#[test]
fn a_machine_fault_sets_the_machine_aside_and_costs_the_step_nothing() {
    check(
        r#"
machines a:x86_64-linux:2 b:x86_64-linux:1
builds 10:one 11:two
    inspect one
    inspect two
    page taken
needs one x86_64-linux
    #1 start one on a: run 1 for 10, announced [10], silent 3600 timeout 36000, wanted by 1
machine-fault one
    #2 finish run 1: aborted “it broke”, keep log
    say warn: will disable machine ‘a’ for 76s: it broke
    #3 start one on b: run 2 for 10, announced [10], silent 3600 timeout 36000, wanted by 1
needs two x86_64-linux
why 11
    is ready since 0 s and waits for a machine of type x86_64-linux: all machines for it are busy (‘b’ 1/1, ‘a’ is set aside for 1 min 16 s more after a failure: it broke), nothing else waits for them
wait 100s
    #4 start two on a: run 3 for 11, announced [11], silent 3600 timeout 36000, wanted by 1
phase two building
    #5 phase of run 3: building
built two
    #6 finish run 3: succeeded
    #7 succeed 11 in 10s
"#,
    );
}

#[test]
fn the_last_machine_is_probed_with_one_run() {
    check(
        r#"
machines a:x86_64-linux:2
builds 10:one 11:two 12:three
    inspect one
    inspect two
    inspect three
    page taken
needs one x86_64-linux
    #1 start one on a: run 1 for 10, announced [10], silent 3600 timeout 36000, wanted by 1
needs two x86_64-linux
    #2 start two on a: run 2 for 11, announced [11], silent 3600 timeout 36000, wanted by 1
needs three x86_64-linux
machine-fault one
    #3 finish run 1: aborted “it broke”, keep log
    say warn: will disable machine ‘a’ for 76s: it broke
machine-fault two
    #4 finish run 2: aborted “it broke”, keep log
why 10
    is ready since 0 s and waits for a machine of type x86_64-linux: no machine for it takes anything: ‘a’ is set aside for 1 min 16 s more after a failure: it broke
wait 59s
wait 1s
    #5 start one on a: run 3 for 10, announced [10], silent 3600 timeout 36000, wanted by 1
machine-fault one
    #6 finish run 3: aborted “it broke”, keep log
    say warn: will disable machine ‘a’ for 202s: it broke
wait 60s
    #7 start one on a: run 4 for 10, announced [10], silent 3600 timeout 36000, wanted by 1
wait 60s
phase one building
    #8 phase of run 4: building
    #9 start two on a: run 5 for 11, announced [11], silent 3600 timeout 36000, wanted by 1
"#,
    );
}

#[test]
fn a_fault_of_ours_puts_the_step_off_and_blames_nobody() {
    check(
        r#"
machines a:x86_64-linux:1
builds 10:top
    inspect top
    page taken
needs top x86_64-linux
    #1 start top on a: run 1 for 10, announced [10], silent 3600 timeout 36000, wanted by 1
our-fault top no-log
    say error: cannot build ‘top’ through a fault of this host: it broke
    #2 finish run 1: aborted “it broke”, keep log, no log
    say info: will retry ‘top’ after 65s
wait 69s
    #3 start top on a: run 2 for 10, announced [10], silent 3600 timeout 36000, wanted by 1
our-fault top
    say error: cannot build ‘top’ through a fault of this host: it broke
    #4 finish run 2: aborted “it broke”, keep log
    say info: will retry ‘top’ after 187s
why 10
    is tried again in 3 min 7 s (failed tries: 0), after an error: it broke
"#,
    );
}

#[test]
fn an_input_that_is_gone_is_made_again_first() {
    check(
        r#"
machines a:x86_64-linux:1
builds 10:top
    inspect top
    page taken
needs top x86_64-linux lib
    inspect lib
valid lib
    #1 start top on a: run 1 for 10, announced [10], silent 3600 timeout 36000, wanted by 1
inputs-gone top inputs=lib no-log
    say warn: cannot build ‘top’ now: it broke; its inputs are asked about again
    #2 finish run 1: aborted “it broke”, keep log, no log
wait 1s
    inspect top
needs top x86_64-linux lib
    inspect lib
needs lib x86_64-linux
    #3 start lib on a: run 2 for 10, announced [], silent 3600 timeout 36000, wanted by 1
built lib
    #4 finish run 2: succeeded
    #5 start top on a: run 3 for 10, announced [10], silent 3600 timeout 36000, wanted by 1
inputs-gone top inputs=lib no-log
    say warn: cannot build ‘top’ now: it broke; its inputs are asked about again
    #6 finish run 3: aborted “it broke”, keep log, no log
wait 1s
wait 70s
    inspect top
needs top x86_64-linux lib
    inspect lib
valid lib
    #7 start top on a: run 4 for 10, announced [10], silent 3600 timeout 36000, wanted by 1
built top
    #8 finish run 4: succeeded
    #9 succeed 10 in 10s
"#,
    );
}

#[test]
fn cancelled_builds() {
    check(
        r#"
machines a:x86_64-linux:1
builds 10:one 11:two
    inspect one
    inspect two
    page taken
needs one x86_64-linux
    #1 start one on a: run 1 for 10, announced [10], silent 3600 timeout 36000, wanted by 1
needs two x86_64-linux
begin 1
list 1 11
    say info: discarding cancelled build 10
    kill run 1
builds 12:one
    page taken
cancelled one
    #2 finish run 1: cancelled, keep log
    #3 start one on a: run 2 for 12, announced [12], silent 3600 timeout 36000, wanted by 1
begin 2
list 2 12
    say info: discarding cancelled build 11
"#,
    );
}

#[test]
fn what_breaks_after_a_kill_is_not_the_machines_fault() {
    check(
        r#"
machines a:x86_64-linux:1
builds 10:one
    inspect one
    page taken
needs one x86_64-linux
    #1 start one on a: run 1 for 10, announced [10], silent 3600 timeout 36000, wanted by 1
begin 1
list 1
    say info: discarding cancelled build 10
    kill run 1
machine-fault one
    #2 finish run 1: cancelled
builds 11:two
    inspect two
    page taken
needs two x86_64-linux
    #3 start two on a: run 2 for 11, announced [11], silent 3600 timeout 36000, wanted by 1
"#,
    );
}

#[test]
fn a_run_nobody_waits_for_still_ends_its_row() {
    check(
        r#"
machines a:x86_64-linux:1
builds 10:one
    inspect one
    page taken
needs one x86_64-linux
    #1 start one on a: run 1 for 10, announced [10], silent 3600 timeout 36000, wanted by 1
begin 1
list 1
    say info: discarding cancelled build 10
    kill run 1
built one
    #2 finish run 1: succeeded
builds 11:one
    describe one
    page taken
described one
    #3 succeed 11 (cached) in 0s
"#,
    );
}

#[test]
fn lists_of_the_queue() {
    check(
        r#"
machines a:x86_64-linux:1
begin 1
builds 10:one
    inspect one
    page taken
list 1 20 21
    read 20 21
builds 20:two
    inspect two
    page taken
begin 2
list 2 10 20
begin 3
list 3 10 20 global=7
    say info: priority of build 10 increased
    say info: priority of build 20 increased
needs one x86_64-linux
    #1 start one on a: run 1 for 10, announced [10], silent 3600 timeout 36000, wanted by 1
needs two x86_64-linux
built one
    #2 finish run 1: succeeded
    #3 succeed 10 in 10s
    #4 start two on a: run 2 for 20, announced [20], silent 3600 timeout 36000, wanted by 1
begin 4
list 4 10 20 written=3
    read 10
built two
    #5 finish run 2: succeeded
    #6 succeed 20 in 10s
written 6
begin 5
list 5 10 written=6
builds 10:one
    describe one
    page taken
"#,
    );
}

#[test]
fn an_unsupported_system() {
    check(
        r#"
machines a:x86_64-linux:1 unloaded
builds 10:top 11:strange
    inspect top
    inspect strange
    page taken
needs top x86_64-linux strange
needs strange riscv64-linux features=big,kvm
why 10
    waits for ‘/nix/store/strange.drv’, which is ready since 0 s and waits for a machine of type riscv64-linux:big,kvm: no machine supports that; the nearest, ‘a’, lacks the system type riscv64-linux (it has x86_64-linux) and lacks the features big, kvm
machines a:x86_64-linux:1
    say error: aborting unsupported build step 'strange' (type 'riscv64-linux:big,kvm')
    #1 strange unsupported system type “unsupported system type 'riscv64-linux:big,kvm'”, primary 11: 10 unsupported system type +row, 11 unsupported system type +row
"#,
    );
}

#[test]
fn a_system_some_machine_had_an_hour_ago_is_supported() {
    check(
        r#"
machines a:x86_64-linux:1 b:riscv64-linux:1
builds 10:one
    inspect one
    page taken
needs one x86_64-linux
    #1 start one on a: run 1 for 10, announced [10], silent 3600 timeout 36000, wanted by 1
machines a:x86_64-linux:1
builds 11:strange
    inspect strange
    page taken
needs strange riscv64-linux
why 11
    is ready since 0 s and waits for a machine of type riscv64-linux: no machine supports that; the nearest, ‘a’, lacks the system type riscv64-linux (it has x86_64-linux); given up in 1 h 0 min if none comes
wait 3599s
wait 1s
    say error: aborting unsupported build step 'strange' (type 'riscv64-linux')
    #2 strange unsupported system type “unsupported system type 'riscv64-linux'”, primary 11: 11 unsupported system type +row
"#,
    );
}

#[test]
fn features_and_local_machines() {
    check(
        r#"
machines a:x86_64-linux:8 features=kvm mandatory=local
builds 10:plain 11:local 12:vm 13:any
    inspect plain
    inspect local
    inspect vm
    inspect any
    page taken
needs plain x86_64-linux
    say error: aborting unsupported build step 'plain' (type 'x86_64-linux')
    #1 plain unsupported system type “unsupported system type 'x86_64-linux'”, primary 10: 10 unsupported system type +row
needs local x86_64-linux prefer-local
    #2 start local on a: run 1 for 11, announced [11], silent 3600 timeout 36000, wanted by 1
needs vm x86_64-linux prefer-local features=kvm
    #3 start vm on a: run 2 for 12, announced [12], silent 3600 timeout 36000, wanted by 1
needs any builtin features=local
    #4 start any on a: run 3 for 13, announced [13], silent 3600 timeout 36000, wanted by 1
why 10
    it is finished; the database has yet to hear of it
"#,
    );
}

#[test]
fn the_order_of_steps() {
    check(
        r#"
jobset 1 shares=1 used=100
jobset 2 shares=100 used=100
builds 10:late jobset=1
    inspect late
    page taken
builds 11:fair jobset=2
    inspect fair
    page taken
builds 12:preferred jobset=2 local=200
    inspect preferred
    page taken
builds 13:bumped jobset=1 global=5
    inspect bumped
    page taken
builds 14:needed jobset=2
    inspect needed
    page taken
builds 15:user jobset=2
    inspect user
    page taken
needs late x86_64-linux
needs fair x86_64-linux
needs preferred x86_64-linux
needs bumped x86_64-linux
needs needed x86_64-linux
needs user x86_64-linux needed
machines a:x86_64-linux:9
    #1 start bumped on a: run 1 for 13, announced [13], silent 3600 timeout 36000, wanted by 1
    #2 start preferred on a: run 2 for 12, announced [12], silent 3600 timeout 36000, wanted by 1
    #3 start needed on a: run 3 for 14, announced [14], silent 3600 timeout 36000, wanted by 2
    #4 start fair on a: run 4 for 11, announced [11], silent 3600 timeout 36000, wanted by 1
    #5 start late on a: run 5 for 10, announced [10], silent 3600 timeout 36000, wanted by 1
"#,
    );
}

#[test]
fn the_order_of_machines() {
    check(
        r#"
machines slow:x86_64-linux:2 fast:x86_64-linux:4:2.0 other:aarch64-linux:4
builds 10:a 11:b 12:c 13:d 14:e 15:f 16:g
    inspect a
    inspect b
    inspect c
    inspect d
    inspect e
    inspect f
    inspect g
    page taken
needs a x86_64-linux
    #1 start a on fast: run 1 for 10, announced [10], silent 3600 timeout 36000, wanted by 1
needs b x86_64-linux
    #2 start b on slow: run 2 for 11, announced [11], silent 3600 timeout 36000, wanted by 1
needs c x86_64-linux
    #3 start c on fast: run 3 for 12, announced [12], silent 3600 timeout 36000, wanted by 1
needs d x86_64-linux
    #4 start d on fast: run 4 for 13, announced [13], silent 3600 timeout 36000, wanted by 1
needs e x86_64-linux
    #5 start e on slow: run 5 for 14, announced [14], silent 3600 timeout 36000, wanted by 1
needs f x86_64-linux
    #6 start f on fast: run 6 for 15, announced [15], silent 3600 timeout 36000, wanted by 1
needs g x86_64-linux
phase c receiving
    #7 phase of run 3: receiving outputs
    #8 start g on fast: run 7 for 16, announced [16], silent 3600 timeout 36000, wanted by 1
"#,
    );
}

#[test]
fn a_writer_that_lags_stops_new_starts_and_pages() {
    check_with(
        PlanSettings {
            unwritten_tickets_max: 1,
            ..PlanSettings::default()
        },
        r#"
machines a:x86_64-linux:9
builds 10:a 11:b 12:c
    inspect a
    inspect b
    inspect c
    page taken
needs a x86_64-linux
    #1 start a on a: run 1 for 10, announced [10], silent 3600 timeout 36000, wanted by 1
needs b x86_64-linux
    #2 start b on a: run 2 for 11, announced [11], silent 3600 timeout 36000, wanted by 1
builds 13:d
    inspect d
needs c x86_64-linux
why 12
    is ready since 0 s and waits for a machine of type x86_64-linux: the database is 2 records behind
written 1
    #3 start c on a: run 3 for 12, announced [12], silent 3600 timeout 36000, wanted by 1
needs d x86_64-linux
written 2
    #4 start d on a: run 4 for 13, announced [13], silent 3600 timeout 36000, wanted by 1
"#,
    );
}

/// Says that the queue does not move after 300 s.
fn watched() -> PlanSettings {
    PlanSettings {
        stall_warning_ms: 300_000,
        unsupported_ms_max: 86_400_000,
        ..PlanSettings::default()
    }
}

#[test]
fn a_queue_that_no_machine_can_work_on_says_so_once_and_when_it_moves_again() {
    check_with(
        watched(),
        r#"
machines a:x86_64-linux:2
builds 10:one 11:two 12:three
    inspect one
    inspect two
    inspect three
    page taken
needs one aarch64-linux features=kvm
needs two aarch64-linux features=kvm
needs three riscv64-linux
wait 299s
wait 1s
    say warn: nothing has begun to build for 300s, although steps are ready (3) and slots are free (2): aarch64-linux:kvm (2): no machine supports that; riscv64-linux (1): no machine supports that
wait 3600s
machines a:x86_64-linux:2 b:riscv64-linux:1
    #1 start three on b: run 1 for 12, announced [12], silent 3600 timeout 36000, wanted by 1
phase three building
    #2 phase of run 1: building
    say info: the queue moves again, after 3900s
wait 400s
built three
    #3 finish run 1: succeeded
    #4 succeed 12 in 10s
wait 30s
wait 300s
    say warn: nothing has begun to build for 300s, although steps are ready (2) and slots are free (3): aarch64-linux:kvm (2): no machine supports that
"#,
    );
}

#[test]
fn steps_that_wait_for_busy_machines_are_load_and_no_standstill() {
    check_with(
        watched(),
        r#"
machines a:x86_64-linux:1 b:aarch64-linux:4
builds 10:one 11:two
    inspect one
    inspect two
    page taken
needs one x86_64-linux
    #1 start one on a: run 1 for 10, announced [10], silent 3600 timeout 36000, wanted by 1
needs two x86_64-linux
wait 3600s
wait 36000s
built one
    #2 finish run 1: succeeded
    #3 succeed 10 in 10s
    #4 start two on a: run 2 for 11, announced [11], silent 3600 timeout 36000, wanted by 1
wait 301s
"#,
    );
}

#[test]
fn a_machine_that_is_down_is_named_however_often_it_is_tried() {
    check_with(
        watched(),
        r#"
machines a:x86_64-linux:1
builds 10:one
    inspect one
    page taken
needs one x86_64-linux
    #1 start one on a: run 1 for 10, announced [10], silent 3600 timeout 36000, wanted by 1
machine-fault one
    #2 finish run 1: aborted “it broke”, keep log
    say warn: will disable machine ‘a’ for 76s: it broke
wait 60s
    #3 start one on a: run 2 for 10, announced [10], silent 3600 timeout 36000, wanted by 1
machine-fault one
    #4 finish run 2: aborted “it broke”, keep log
    say warn: will disable machine ‘a’ for 202s: it broke
wait 60s
    #5 start one on a: run 3 for 10, announced [10], silent 3600 timeout 36000, wanted by 1
machine-fault one
    #6 finish run 3: aborted “it broke”, keep log
    say warn: will disable machine ‘a’ for 569s: it broke
wait 60s
    #7 start one on a: run 4 for 10, announced [10], silent 3600 timeout 36000, wanted by 1
machine-fault one
    #8 finish run 4: aborted “it broke”, keep log
    say warn: will disable machine ‘a’ for 1633s: it broke
wait 60s
    #9 start one on a: run 5 for 10, announced [10], silent 3600 timeout 36000, wanted by 1
machine-fault one
    #10 finish run 5: aborted “it broke”, keep log
    say warn: will disable machine ‘a’ for 1813s: it broke
wait 59s
wait 1s
    #11 start one on a: run 6 for 10, announced [10], silent 3600 timeout 36000, wanted by 1
machine-fault one
    #12 finish run 6: aborted “it broke”, keep log
    say warn: will disable machine ‘a’ for 1822s: it broke
    say warn: nothing has begun to build for 300s, although steps are ready (1) and slots are free (1): x86_64-linux (1): no machine for it takes steps: ‘a’ is set aside for 30 min 22 s more after 6 failures: it broke
wait 60s
    #13 start one on a: run 7 for 10, announced [10], silent 3600 timeout 36000, wanted by 1
phase one building
    #14 phase of run 7: building
    say info: the queue moves again, after 360s
"#,
    );
}

#[test]
fn a_database_that_is_behind_is_named_when_nothing_moves() {
    check_with(
        PlanSettings {
            unwritten_tickets_max: 0,
            ..watched()
        },
        r#"
machines a:x86_64-linux:1
builds 10:one 11:two
    inspect one
    inspect two
    page taken
needs one x86_64-linux
    #1 start one on a: run 1 for 10, announced [10], silent 3600 timeout 36000, wanted by 1
built one
    #2 finish run 1: succeeded
    #3 succeed 10 in 10s
needs two x86_64-linux
wait 300s
    say warn: nothing has begun to build for 300s, although steps are ready (1) and slots are free (1): x86_64-linux (1): the database is 3 records behind
written 3
    #4 start two on a: run 2 for 11, announced [11], silent 3600 timeout 36000, wanted by 1
    say info: the queue moves again, after 300s
"#,
    );
}

#[test]
fn after_stop_nothing_starts() {
    check(
        r#"
machines a:x86_64-linux:1
builds 10:a 11:b
    inspect a
    inspect b
    page taken
needs a x86_64-linux
    #1 start a on a: run 1 for 10, announced [10], silent 3600 timeout 36000, wanted by 1
needs b x86_64-linux
stop
built a
    #2 finish run 1: succeeded
    #3 succeed 10 in 10s
why 11
    is ready since 0 s and waits for a machine of type x86_64-linux: nothing new is started any more
"#,
    );
}

#[test]
fn stale_and_strange_answers_change_nothing() {
    check(
        r#"
machines a:x86_64-linux:1
builds 10:a
    inspect a
    page taken
valid nothing
needs a x86_64-linux a
    #1 start a on a: run 1 for 10, announced [10], silent 3600 timeout 36000, wanted by 1
needs a x86_64-linux b
built a
    #2 finish run 1: succeeded
    #3 succeed 10 in 10s
phase a building
built a
"#,
    );
}

#[test]
fn a_removed_machine_finishes_what_it_does() {
    check(
        r#"
machines a:x86_64-linux:1
builds 10:one 11:two
    inspect one
    inspect two
    page taken
needs one x86_64-linux
    #1 start one on a: run 1 for 10, announced [10], silent 3600 timeout 36000, wanted by 1
needs two x86_64-linux
machines b:aarch64-linux:1
built one
    #2 finish run 1: succeeded
    #3 succeed 10 in 10s
why 11
    is ready since 0 s and waits for a machine of type x86_64-linux: no machine supports that; the nearest, ‘b’, lacks the system type x86_64-linux (it has aarch64-linux); given up in 1 h 0 min if none comes
machines a:x86_64-linux:1
    #4 start two on a: run 2 for 11, announced [11], silent 3600 timeout 36000, wanted by 1
"#,
    );
}

#[test]
fn what_is_said_of_a_step_that_does_not_start() {
    let settings = PlanSettings {
        unsupported_ms_max: 600_000,
        ..PlanSettings::default()
    };
    check_with(
        settings,
        r#"
jobset 1 shares=100 used=500
jobset 2 shares=100
machines a:x86_64-linux:1 b:aarch64-linux:2 features=kvm
builds 9:busy 10:top 11:alone jobset=1
    inspect busy
    inspect top
    inspect alone
    page taken
builds 12:other jobset=2
    inspect other
    page taken
needs busy x86_64-linux
    #1 start busy on a: run 1 for 9, announced [9], silent 3600 timeout 36000, wanted by 1
needs top x86_64-linux left right
    inspect left
    inspect right
needs alone x86_64-linux features=big,kvm
needs other x86_64-linux
needs left x86_64-linux deep
    inspect deep
needs right riscv64-linux
needs deep x86_64-linux
explain 9
    is preparing on ‘a’ since 0 s
explain 10
    waits for ‘/nix/store/right.drv’ (and 1 other input), which is ready since 0 s and waits for a machine of type riscv64-linux: no machine supports that; the nearest, ‘a’, lacks the system type riscv64-linux (it has x86_64-linux); given up in 10 min 0 s if none comes
    all it waits for: 2 ready, 1 blocked
explain 11
    is ready since 0 s and waits for a machine of type x86_64-linux:big,kvm: no machine supports that; the nearest, ‘a’, lacks the feature big; given up in 10 min 0 s if none comes
explain 12
    is ready since 0 s and waits for a machine of type x86_64-linux: all machines for it are busy (‘a’ 1/1), 1 other waits for them too
    number 1 of 2 ready steps that the same machines could do: global priority 0, share used 0.000000 by p:j2, local priority 100, 0 features, 0 dependents, lowest build 12
explain deep
    is ready since 0 s and waits for a machine of type x86_64-linux: all machines for it are busy (‘a’ 1/1), 1 other waits for them too
    number 2 of 2 ready steps that the same machines could do: global priority 0, share used 5.000000 by p:j1, local priority 100, 0 features, 1 dependents, lowest build 10
    first of them is ‘/nix/store/other.drv’, by its share used: 0.000000 against 5.000000
explain machine a
    has all slots in use; 1 of 1 slots in use, 2 ready steps it could do
    system types x86_64-linux, features kvm, mandatory none, speed 1
    0 steps done, on average - building and - copying
    no other machine takes queued steps of x86_64-linux
    ‘/nix/store/busy.drv’ for build 9, started 0 s ago, is preparing on ‘a’ since 0 s
phase busy building
    #2 phase of run 1: building
hold PostgreSQL is away: connection refused
built busy
    #3 finish run 1: succeeded
    #4 succeed 9 in 10s
wait 30s
explain 12
    is ready since 30 s and waits for a machine of type x86_64-linux: nothing is started: PostgreSQL is away: connection refused
    number 1 of 2 ready steps that the same machines could do: global priority 0, share used 0.000000 by p:j2, local priority 100, 0 features, 0 dependents, lowest build 12
explain machine a
    takes steps; 0 of 1 slots in use, 2 ready steps it could do
    system types x86_64-linux, features kvm, mandatory none, speed 1
    1 steps done, on average 10.0 s building and 0.0 s copying
    no other machine takes queued steps of x86_64-linux
    idle since 30 s
    nothing is started since 30 s: PostgreSQL is away: connection refused
hold over
    #5 start other on a: run 2 for 12, announced [12], silent 3600 timeout 36000, wanted by 1
explain nothing
    unknown
"#,
    );
}

#[test]
fn orders_about_machines() {
    check(
        r#"
machines a:x86_64-linux:1 b:x86_64-linux:1
orders a:drained:alice reason=new-disk
    say info: ‘a’ was drained by alice: new-disk
builds 10:one
    inspect one
    page taken
needs one x86_64-linux
    #1 start one on b: run 1 for 10, announced [10], silent 3600 timeout 36000, wanted by 1
explain machine a
    was drained by alice 0 s ago, until it is enabled: new-disk; 0 of 1 slots in use, 0 ready steps it could do
    system types x86_64-linux, features none, mandatory none, speed 1
    0 steps done, on average - building and - copying
    idle since 0 s
orders a:drained:alice b:disabled:bob until=3600
    kill run 1
    say info: ‘a’ was drained by alice, for 1 h 0 min
    say info: ‘b’ was disabled by bob, for 1 h 0 min
    say warn: ‘b’ was the last machine that takes steps of x86_64-linux: they wait until it is enabled again
cancelled one
    #2 finish run 1: aborted “stopped: bob disabled ‘b’; it goes to another machine”, keep log
why 10
    is ready since 0 s and waits for a machine of type x86_64-linux: no machine for it takes anything: ‘a’ was drained by alice 0 s ago, for 1 h 0 min more; ‘b’ was disabled by bob 0 s ago, for 1 h 0 min more
wait 3600s
    say info: ‘a’ takes steps again: the order of alice to drain it is over
    say info: ‘b’ takes steps again: the order of bob to disable it is over
    #3 start one on a: run 2 for 10, announced [10], silent 3600 timeout 36000, wanted by 1
phase one building
    #4 phase of run 2: building
orders a:disabled:alice b:drained:bob
    kill run 2
    say info: ‘a’ was disabled by alice
    say warn: ‘a’ was the last machine that takes steps of x86_64-linux: they wait until it is enabled again
    say info: ‘b’ was drained by bob
    say warn: ‘b’ was the last machine that takes steps of x86_64-linux: they wait until it is enabled again
explain machine a
    was disabled by alice 0 s ago, until it is enabled (1 step still runs); 1 of 1 slots in use, 0 ready steps it could do
    system types x86_64-linux, features none, mandatory none, speed 1
    0 steps done, on average - building and - copying
    no other machine takes queued steps of x86_64-linux
    ‘/nix/store/one.drv’ for build 10, started 0 s ago, is building on ‘a’ since 0 s, being killed
cancelled one
    #5 finish run 2: aborted “stopped: alice disabled ‘a’; it goes to another machine”, keep log
orders a:enabled:carol b:drained:bob
    say info: ‘a’ was enabled by carol
    #6 start one on a: run 3 for 10, announced [10], silent 3600 timeout 36000, wanted by 1
orders a:enabled:carol
    say info: ‘b’ takes steps again: there is no order of bob to drain it any more
"#,
    );
}

#[test]
fn too_little_room_pauses_what_it_concerns_and_fails_nothing() {
    check(
        r#"
machines a:x86_64-linux:1 b:x86_64-linux:1
short a only 1 MiB are free there
    say warn: nothing is started on ‘a’: only 1 MiB are free there
short a only 2 MiB are free there
builds 10:one 11:two
    inspect one
    inspect two
    page taken
needs one x86_64-linux
    #1 start one on b: run 1 for 10, announced [10], silent 3600 timeout 36000, wanted by 1
needs two x86_64-linux
why 11
    is ready since 0 s and waits for a machine of type x86_64-linux: all machines for it are busy (‘a’ gets nothing for 0 s: only 2 MiB are free there, ‘b’ 1/1), nothing else waits for them
explain machine a
    gets nothing for 0 s: only 2 MiB are free there; 0 of 1 slots in use, 1 ready steps it could do
    system types x86_64-linux, features none, mandatory none, speed 1
    0 steps done, on average - building and - copying
    idle since 0 s
short a over
    say info: ‘a’ has enough free space again: it takes steps
    #2 start two on a: run 2 for 11, announced [11], silent 3600 timeout 36000, wanted by 1
disk only 5 MiB are free in /logs
built one
    #3 finish run 1: succeeded
    #4 succeed 10 in 10s
builds 12:three
    inspect three
    page taken
needs three x86_64-linux
why 12
    is ready since 0 s and waits for a machine of type x86_64-linux: nothing is started: only 5 MiB are free in /logs
disk over
    #5 start three on b: run 3 for 12, announced [12], silent 3600 timeout 36000, wanted by 1
"#,
    );
}

#[test]
fn steps_that_fail_alike_on_one_machine_go_elsewhere_and_set_it_aside() {
    check(
        r#"
machines a:x86_64-linux:3:9 b:x86_64-linux:1:1
builds 10:one 11:two 12:three
    inspect one
    inspect two
    inspect three
    page taken
needs one x86_64-linux
    #1 start one on a: run 1 for 10, announced [10], silent 3600 timeout 36000, wanted by 1
needs two x86_64-linux
    #2 start two on a: run 2 for 11, announced [11], silent 3600 timeout 36000, wanted by 1
needs three x86_64-linux
    #3 start three on a: run 3 for 12, announced [12], silent 3600 timeout 36000, wanted by 1
fails one no-space cache
    #4 finish run 1: failed, keep log
    say warn: building ‘one’ failed on ‘a’ as if the machine were broken (no space left on device); another one is tried first: cp: cannot write: No space left on device
    say info: will retry ‘one’ after 65s
    #5 start one on b: run 4 for 10, announced [10], silent 3600 timeout 36000, wanted by 1
fails two no-space cache
    #6 finish run 2: failed, keep log
    say warn: building ‘two’ failed on ‘a’ as if the machine were broken (no space left on device); another one is tried first: cp: cannot write: No space left on device
    say info: will retry ‘two’ after 67s
phase three building
    #7 phase of run 3: building
fails three no-space cache
    say warn: will disable machine ‘a’ for 89s: 3 different steps failed there alike within an hour (no space left on device); make room there: `df -h /nix/store /tmp`, `nix-collect-garbage`; min-free in its nix.conf
    #8 finish run 3: failed, keep log
    say warn: building ‘three’ failed on ‘a’ as if the machine were broken (no space left on device); another one is tried first: cp: cannot write: No space left on device
    say info: will retry ‘three’ after 64s
explain machine a
    is set aside for 1 min 29 s more after a failure: 3 different steps failed there alike within an hour (no space left on device); make room there: `df -h /nix/store /tmp`, `nix-collect-garbage`; min-free in its nix.conf; 0 of 3 slots in use, 0 ready steps it could do
    system types x86_64-linux, features none, mandatory none, speed 9
    0 steps done, on average - building and - copying
    idle since 0 s
    0 s ago: 3 different steps failed there alike within an hour (no space left on device); make room there: `df -h /nix/store /tmp`, `nix-collect-garbage`; min-free in its nix.conf
built one
    #9 finish run 4: succeeded
    #10 succeed 10 in 10s
    #11 start two on b: run 5 for 11, announced [11], silent 3600 timeout 36000, wanted by 1
built two
    #12 finish run 5: succeeded
    #13 succeed 11 in 10s
    #14 start three on b: run 6 for 12, announced [12], silent 3600 timeout 36000, wanted by 1
why 12
    is preparing on ‘b’ since 0 s
built three
    #15 finish run 6: succeeded
    #16 succeed 12 in 10s
wait 90s
builds 13:four
    inspect four
    page taken
needs four x86_64-linux
    #17 start four on a: run 7 for 13, announced [13], silent 3600 timeout 36000, wanted by 1
phase four building
    #18 phase of run 7: building
explain machine a
    is tried with one step after a failure; 1 of 3 slots in use, 0 ready steps it could do
    system types x86_64-linux, features none, mandatory none, speed 9
    0 steps done, on average - building and - copying
    ‘/nix/store/four.drv’ for build 13, started 0 s ago, is building on ‘a’ since 0 s
    1 min 30 s ago: 3 different steps failed there alike within an hour (no space left on device); make room there: `df -h /nix/store /tmp`, `nix-collect-garbage`; min-free in its nix.conf
built four
    #19 finish run 7: succeeded
    #20 succeed 13 in 10s
explain machine a
    takes steps; 0 of 3 slots in use, 0 ready steps it could do
    system types x86_64-linux, features none, mandatory none, speed 9
    1 steps done, on average 10.0 s building and 0.0 s copying
    idle since 0 s
    1 min 30 s ago: 3 different steps failed there alike within an hour (no space left on device); make room there: `df -h /nix/store /tmp`, `nix-collect-garbage`; min-free in its nix.conf
"#,
    );
}

#[test]
fn a_step_that_fails_alike_on_two_machines_is_at_fault_itself() {
    check(
        r#"
machines a:x86_64-linux:1:9 b:x86_64-linux:1:1
builds 10:one
    inspect one
    page taken
needs one x86_64-linux
    #1 start one on a: run 1 for 10, announced [10], silent 3600 timeout 36000, wanted by 1
fails one no-space cache
    #2 finish run 1: failed, keep log
    say warn: building ‘one’ failed on ‘a’ as if the machine were broken (no space left on device); another one is tried first: cp: cannot write: No space left on device
    say info: will retry ‘one’ after 65s
    #3 start one on b: run 2 for 10, announced [10], silent 3600 timeout 36000, wanted by 1
fails one no-space cache
    #4 finish run 2: failed, cache failure
    #5 one failed in run 2, primary 10: 10 failed
explain machine a
    takes steps; 0 of 1 slots in use, 0 ready steps it could do
    system types x86_64-linux, features none, mandatory none, speed 9
    0 steps done, on average - building and - copying
    idle since 0 s
"#,
    );
}

#[test]
fn a_step_that_looks_like_a_broken_machine_has_three_tries_where_there_is_one() {
    check(
        r#"
machines a:x86_64-linux:1
builds 10:one
    inspect one
    page taken
needs one x86_64-linux
    #1 start one on a: run 1 for 10, announced [10], silent 3600 timeout 36000, wanted by 1
fails one no-space cache
    #2 finish run 1: failed, keep log
    say warn: building ‘one’ failed on ‘a’ as if the machine were broken (no space left on device); another one is tried first: cp: cannot write: No space left on device
    say info: will retry ‘one’ after 65s
why 10
    is tried again in 1 min 5 s (failed tries: 1), after an error on ‘a’: cp: cannot write: No space left on device
wait 70s
    #3 start one on a: run 2 for 10, announced [10], silent 3600 timeout 36000, wanted by 1
fails one no-space cache
    #4 finish run 2: failed, keep log
    say warn: building ‘one’ failed on ‘a’ as if the machine were broken (no space left on device); another one is tried first: cp: cannot write: No space left on device
    say info: will retry ‘one’ after 187s
wait 190s
    #5 start one on a: run 3 for 10, announced [10], silent 3600 timeout 36000, wanted by 1
fails one no-space cache
    #6 finish run 3: failed
    #7 one failed in run 3, primary 10: 10 failed
"#,
    );
}
