//! Evaluations: real PostgreSQL, real Nix in a store of its own.

mod common;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Output;

use common::{eventually, system, Db, HydradBuilder, Listener, Pg, Running, Site};
use hydrad::config::declarative::parse_jobsets;
use hydrad::config::Settings;
use hydrad::db::declarative::{self, Applied, Mode};
use hydrad::db::evaluations::{self, EvaluationRow, Evaluator, Session};
use hydrad::db::{schema, DbTarget};
use hydrad::eval::job::{Job, JobDerivation};
use hydrad::eval::jobset::progress::Progress;
use hydrad::eval::jobset::{writing, Found};

/// A user and a project `p`.
const PROJECT: &str = "
insert into Users (userName, emailAddress, password) values ('u', 'u@example.org', '!');
insert into Projects (name, displayName, owner, enable_dynamic_run_command) values ('p', 'P', 'u', true);
";

/// Everything that an evaluation may announce.
const CHANNELS: [&str; 8] = [
    "eval_started",
    "eval_failed",
    "eval_cached",
    "eval_added",
    "build_queued",
    "cached_build_queued",
    "cached_build_finished",
    "builds_added",
];

/// A project `p` whose jobsets have an expression in a folder.
struct Farm {
    site: Site,
}

impl Farm {
    fn new() -> Farm {
        Farm::with_db(Pg::shared().db())
    }

    fn with_db(db: Db) -> Farm {
        let site = Site::with_db(db);
        site.configure("path_input_cache_validity_seconds = 0\nevaluator_workers = 1\n");
        site.db.client().batch_execute(PROJECT).expect("a project");
        Farm { site }
    }

    fn db(&self) -> &Db {
        &self.site.db
    }

    fn sql(&self, text: &str) {
        let done = self.db().client().batch_execute(text);
        done.unwrap_or_else(|e| panic!("{text}: {e:?}"));
    }

    /// The folder that is input `src` of a jobset.
    fn folder(&self, jobset: &str) -> PathBuf {
        self.site.folder(&format!("src-{jobset}"))
    }

    /// What the jobset's expression is from now on.
    fn expression(&self, jobset: &str, text: &str) {
        self.site.file(&format!("src-{jobset}/jobs.nix"), text);
    }

    /// A jobset with this expression.
    fn jobset(&self, name: &str, expression: &str) {
        let folder = self.folder(name);
        self.expression(name, expression);
        self.sql(&format!(
            "insert into Jobsets (project, name, nixExprInput, nixExprPath, emailOverride) values ('p', '{name}', 'src', 'jobs.nix', '');
             insert into JobsetInputs (project, jobset, name, type) values ('p', '{name}', 'src', 'path');
             insert into JobsetInputAlts (project, jobset, input, altnr, value) values ('p', '{name}', 'src', 0, '{}');",
            folder.display()
        ));
    }

    fn eval(&self, jobset: &str, options: &[&str]) -> HydradBuilder {
        let mut args = vec!["eval-jobset", "p", jobset];
        args.extend(options);
        self.site.hydrad(&args)
    }

    /// Evaluates to the end; exit code, standard output and standard error.
    fn evaluate(&self, jobset: &str) -> Ended {
        ended(self.eval(jobset, &[]))
    }

    /// The row of a jobset: errorMsg, fetchErrorMsg, whether it was checked, whether it is forced, enabled.
    fn row(&self, jobset: &str) -> String {
        let sql = format!(
            "select concat_ws('|', coalesce(errorMsg, 'NULL'), coalesce(fetchErrorMsg, 'NULL'), lastCheckedTime is not null,
                    coalesce(forceEval::text, 'NULL'), enabled) from Jobsets where name = '{jobset}'"
        );
        ask(self.db(), &sql)
    }

    /// Job names of the current builds of a jobset.
    fn current(&self, jobset: &str) -> Vec<String> {
        self.site.rows(&format!(
            "select b.job from Builds b join Jobsets j on j.id = b.jobset_id where j.name = '{jobset}' and b.isCurrent = 1 order by b.job, b.id"
        ))
    }

    /// The build of a job in the newest evaluation that changed anything.
    fn build(&self, jobset: &str, job: &str) -> i32 {
        ask(
            self.db(),
            &format!(
                "select b.id from Builds b join JobsetEvalMembers m on m.build = b.id
                 where b.job = '{job}' and m.eval = (select max(e.id) from JobsetEvals e join Jobsets j on j.id = e.jobset_id
                                                     where j.name = '{jobset}' and hasNewBuilds = 1)"
            ),
        )
    }
}

struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

fn ended(builder: HydradBuilder) -> Ended {
    let Output {
        status,
        stdout,
        stderr,
    } = builder.command().output().expect("hydrad starts");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ended {
        code: status.code(),
        out: text(stdout),
        err: text(stderr),
    }
}

impl Ended {
    /// It ended like this; shows what it said if not.
    fn with(self, code: i32, out: &str) -> Ended {
        let Ended {
            code: got,
            out: said,
            err,
        } = &self;
        assert!(
            *got == Some(code) && said.contains(out),
            "expected {code} and {out:?}, got {got:?}\n{said}\n{err}"
        );
        self
    }
}

/// Jobs by name, each with these words in its derivation.
fn jobs(list: &[(&str, &str)]) -> String {
    let mut text = String::from("{ src, ... }: {\n");
    for (name, words) in list {
        text.push_str(&format!("  {name} = {};\n", job(name, words)));
    }
    text + "}\n"
}

fn job(name: &str, words: &str) -> String {
    format!(
        "derivation {{ name = \"{name}\"; system = \"{}\"; builder = \"/none\"; words = \"{words}\"; }}",
        system()
    )
}

/// The channels of all that was announced so far, in order, and forget them.
fn channels(listener: &Listener, seen: &mut usize) -> Vec<(String, String)> {
    let events = listener.events();
    let new = &events[*seen..];
    *seen = events.len();
    new.iter()
        .map(|e| (e.channel.clone(), e.payload.clone()))
        .collect()
}

/// The nodes of a process tree below a process, with their command lines.
fn descendants(pid: u32) -> Vec<(u32, String)> {
    let mut found = Vec::new();
    let mut open = vec![pid];
    while let Some(parent) = open.pop() {
        for child in common::children_of(parent) {
            let line = std::fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
            found.push((child, String::from_utf8_lossy(&line).replace('\0', " ")));
            open.push(child);
        }
    }
    found
}

/// Waits for the end of an evaluation and gives its notifications.
fn heard(listener: &Listener, seen: &mut usize, last: &str) -> Vec<(String, String)> {
    let from = *seen;
    listener.wait(last, |events| {
        events[from..]
            .iter()
            .any(|event| event.channel == last)
            .then_some(())
    });
    channels(listener, seen)
}

/// The only row and column of a query.
fn ask<T>(db: &Db, sql: &str) -> T
where
    T: for<'a> postgres::types::FromSql<'a>,
{
    let row = db.client().query_one(sql, &[]);
    row.unwrap_or_else(|e| panic!("{sql}: {e:?}")).get(0)
}

fn apply(db: &Db, text: &str, mode: Mode) -> Applied {
    let jobsets = parse_jobsets(text).expect("a specification");
    declarative::apply(&mut db.client(), "p", &jobsets, true, mode)
        .expect("the database")
        .expect("the project is there")
}

/// Every jobset of the project as one line.
fn jobsets(db: &Db) -> Vec<String> {
    let sql = "select name || ' ' || enabled || hidden || type || ' ' || coalesce(flake, nixExprPath) || ' ' || keepnr || ' ' ||
                      coalesce((select string_agg(i.name || '=' || i.type || ':' || coalesce(a.value, '?') || i.emailResponsible, ',' order by i.name)
                                from JobsetInputs i join JobsetInputAlts a using (project, jobset)
                                where i.project = j.project and i.jobset = j.name and a.input = i.name), '-')
               from Jobsets j order by name";
    let rows = db.client().query(sql, &[]).expect(sql);
    rows.iter().map(|row| row.get(0)).collect()
}

#[test]
fn a_specification_makes_changes_and_disables_jobsets() {
    let db = Pg::shared().db();
    db.client().batch_execute(PROJECT).expect("a project");
    let first = r#"{
        "one": {"nixexprinput": "src", "nixexprpath": "one.nix", "keepnr": 7,
                "inputs": {"src": {"type": "git", "value": "u main", "emailresponsible": true}}},
        "two": {"type": 1, "flake": "path:/x", "enable_dynamic_run_command": true},
        "bad": {"nixexprinput": "src"},
        "odd": {"keepnr": -1}
    }"#;
    let rehearsed = apply(&db, first, Mode::Rehearse);
    assert_eq!(jobsets(&db), [""; 0], "a rehearsal writes nothing");
    let applied = apply(&db, first, Mode::Apply);
    assert_eq!(applied, rehearsed);
    assert_eq!(applied.created.keys().collect::<Vec<_>>(), ["one", "two"]);
    let wrong: BTreeMap<&str, &str> = applied
        .errors
        .iter()
        .map(|(name, error)| (name.as_str(), error.as_str()))
        .collect();
    assert!(wrong["bad"].contains("`nixexprinput` and `nixexprpath`"));
    assert!(wrong["odd"].contains("`keepnr` has to be a number, at least 0"));
    assert!(applied
        .error_text()
        .contains("failed to process declarative jobset ‘bad’: "));
    let one = "one 100 one.nix 7 src=git:u main1";
    assert_eq!(jobsets(&db), [one, "two 101 path:/x 3 -"]);

    // Again: nothing is written, so no trigger fires. One listens as hydra-evaluator does.
    let listener = db.listen(&["jobset_scheduling_changed", "jobset_shares_changed"]);
    let again = apply(&db, first, Mode::Apply);
    assert_eq!(again.unchanged, ["one", "two"]);
    assert!(again.created.is_empty() && again.changed.is_empty() && again.disabled.is_empty());

    // What is not said stays, inputs are what is said, who is not named goes.
    let second = r#"{"one": {"nixexprpath": "1.nix", "inputs": {}}}"#;
    let changed = apply(&db, second, Mode::Apply);
    assert_eq!(
        changed.changed["one"],
        [
            "inputs.src: git \"u main\", committers told -> nothing",
            "nixexprpath: \"one.nix\" -> \"1.nix\""
        ]
    );
    assert_eq!(changed.disabled, ["two"]);
    assert_eq!(jobsets(&db), ["one 100 1.nix 7 -", "two 011 path:/x 3 -"]);
    listener.wait_for("jobset_scheduling_changed", "");
    assert_eq!(listener.events().len(), 1, "two was disabled, nothing else");

    // Where the server or the project does not allow it, no jobset has it.
    let wish = r#"{"one": {"enable_dynamic_run_command": true}, "three": {"enable_dynamic_run_command": false, "type": 1, "flake": "f"}}"#;
    let wish = parse_jobsets(wish).expect("a specification");
    let refused = declarative::apply(&mut db.client(), "p", &wish, false, Mode::Apply);
    let refused = refused.expect("the database").expect("the project");
    assert_eq!(
        refused.errors["one"],
        "Dynamic RunCommand is not enabled by the server or the parent project."
    );
    assert!(refused.created.contains_key("three"));
    assert!(
        declarative::apply(&mut db.client(), "q", &wish, true, Mode::Apply)
            .expect("the database")
            .is_none()
    );
    assert_eq!(ask::<i64>(&db, "select count(*) from Jobsets"), 3);
}

#[test]
fn rows_and_notifications_of_all_ends_are_hydras() {
    let farm = Farm::new();
    farm.jobset("s", &jobs(&[("a", "1"), ("b", "1")]));
    let listener = farm.db().listen(&CHANNELS);
    let mut seen = 0;
    let names = |events: &[(String, String)]| -> Vec<String> {
        events.iter().map(|(channel, _)| channel.clone()).collect()
    };

    // Everything is new.
    farm.evaluate("s").with(0, "2 new builds, 0 kept");
    let events = heard(&listener, &mut seen, "builds_added");
    assert_eq!(
        names(&events),
        [
            "eval_started",
            "build_queued",
            "build_queued",
            "eval_added",
            "builds_added"
        ]
    );
    let jobset: i32 = ask(farm.db(), "select id from Jobsets");
    let evaluation: i32 = ask(farm.db(), "select id from JobsetEvals");
    let trace = events[0].1.split('\t').next().expect("a trace").to_owned();
    assert_eq!(events[0].1, format!("{trace}\t{jobset}"));
    assert_eq!(events[3].1, format!("{trace}\t{jobset}\t{evaluation}"));
    let lowest: i32 = ask(farm.db(), "select min(id) from Builds");
    assert_eq!(events[4].1, lowest.to_string());
    assert_eq!(farm.row("s"), "|NULL|t|NULL|1");
    assert_eq!(farm.current("s"), ["a", "b"]);
    let rows = "select e.hasNewBuilds, e.nrBuilds, e.nixExprInput, e.nixExprPath, e.flake, e.hash ~ '^[0-9a-f]{64}$',
                       (select errorMsg from EvaluationErrors r where r.id = e.evaluationerror_id) = ''
                from JobsetEvals e order by id";
    assert_eq!(farm.site.rows(rows), ["1 2 src jobs.nix NULL t t"]);
    let rows = "select x.evaluator, x.processes > 0 from hydrad.evaluations x join JobsetEvals e on e.id = x.evaluation";
    assert_eq!(farm.site.rows(rows), ["builtin t"]);
    let rows = "select job, finished, nixName, system, maxsilent, timeout, priority, isChannel, globalPriority, description, keep
                from Builds order by job";
    let expected = |name: &str| format!("{name} 0 {name} {} 7200 36000 100 0 0 NULL 0", system());
    assert_eq!(farm.site.rows(rows), [expected("a"), expected("b")]);
    let rows = "select o.name, o.path like '%-' || b.job from BuildOutputs o join Builds b on b.id = o.build order by b.job";
    assert_eq!(farm.site.rows(rows), ["out t", "out t"]);
    let rows = "select name, altNr, type, uri like '%src-s', revision is not null, value, path <> '', shortRevLength from JobsetEvalInputs";
    assert_eq!(farm.site.rows(rows), ["src 0 path t t NULL t NULL"]);

    // Nothing changed.
    farm.evaluate("s")
        .with(0, &format!("nothing changed since evaluation {evaluation}"));
    let events = heard(&listener, &mut seen, "eval_cached");
    assert_eq!(names(&events), ["eval_started", "eval_cached"]);
    assert!(events[1].1.ends_with(&format!("\t{jobset}\t{evaluation}")));
    assert_eq!(ask::<i64>(farm.db(), "select count(*) from JobsetEvals"), 1);

    // Forced: evaluated, the same builds. One of them has ended meanwhile. What is forced while it works stays so.
    farm.sql("update Jobsets set forceEval = true, enabled = 2;
              update Builds set finished = 1, buildStatus = 1, startTime = 1, stopTime = 2 where job = 'a'");
    farm.evaluate("s")
        .with(0, "0 new builds, 2 kept, the same as before");
    let events = heard(&listener, &mut seen, "eval_added");
    let mut kinds = names(&events);
    kinds[1..3].sort();
    assert_eq!(
        kinds,
        [
            "eval_started",
            "cached_build_finished",
            "cached_build_queued",
            "eval_added"
        ]
    );
    let forced: i32 = ask(farm.db(), "select max(id) from JobsetEvals");
    let cached = events
        .iter()
        .find(|event| event.0 == "cached_build_finished");
    let payload = format!("{forced}\t{}", farm.build("s", "a"));
    assert_eq!(cached.map(|event| event.1.as_str()), Some(payload.as_str()));
    // One-shot jobsets are disabled, forced ones are not forced any more.
    assert_eq!(farm.row("s"), "|NULL|t|NULL|0");
    let rows = "select hasNewBuilds, nrBuilds, (select count(*) from JobsetEvalMembers where eval = e.id),
                       (select count(*) from JobsetEvalInputs where eval = e.id) from JobsetEvals e order by id";
    assert_eq!(farm.site.rows(rows), ["1 2 2 1", "0 NULL 0 0"]);

    // One job changes, one comes.
    farm.sql("update Jobsets set enabled = 1");
    farm.expression("s", &jobs(&[("a", "1"), ("b", "2"), ("c", "1")]));
    let old = farm.build("s", "b");
    farm.evaluate("s").with(0, "2 new builds, 1 kept");
    let events = heard(&listener, &mut seen, "builds_added");
    assert_eq!(events.len(), 6);
    assert_ne!(farm.build("s", "b"), old);
    assert_eq!(farm.current("s"), ["a", "b", "c"]);
    assert_eq!(
        ask::<i32>(
            farm.db(),
            &format!("select isCurrent from Builds where id = {old}")
        ),
        0
    );

    // One goes: the builds changed, though none is new. Nobody is told of new builds.
    farm.expression("s", &jobs(&[("a", "1"), ("b", "2")]));
    farm.evaluate("s").with(0, "0 new builds, 2 kept");
    let events = heard(&listener, &mut seen, "eval_added");
    assert!(names(&events).iter().all(|name| name != "builds_added"));
    assert_eq!(farm.current("s"), ["a", "b"]);

    // All go.
    farm.expression("s", "{ src }: {}");
    farm.evaluate("s").with(0, "0 new builds, 0 kept");
    assert_eq!(farm.current("s"), [""; 0]);
    assert_eq!(
        farm.evaluate("none")
            .with(2, "")
            .err
            .matches("does not exist")
            .count(),
        1
    );
}

#[test]
fn errors_are_told_once_and_gone_when_they_are_mended() {
    let farm = Farm::new();
    farm.sql("insert into hydrad.notifier (seen_at, channels) values (extract(epoch from now())::bigint, '{eval_error_changed,eval_failed}')");
    let told = "select count(*) from hydrad.events where channel = 'eval_error_changed'";
    let told = || ask::<i64>(farm.db(), told);
    let good = jobs(&[("a", "1")]);
    farm.jobset("s", &good);
    farm.evaluate("s").with(0, "1 new builds");
    assert_eq!((farm.row("s").as_str(), told()), ("|NULL|t|NULL|1", 0));

    // One job is wrong; the other is still built.
    let bad = format!(
        "{{ src }}: {{ a = {}; b = throw \"no b today\"; }}",
        job("a", "1")
    );
    farm.expression("s", &bad);
    farm.evaluate("s")
        .with(0, "1 kept, the same as before, 1 jobs with errors");
    let row = farm.row("s");
    assert!(row.starts_with("in job ‘b’:\nerror: no b today"), "{row}");
    assert_eq!(told(), 1);
    // The same again is nothing new.
    farm.sql("update Jobsets set forceEval = true");
    farm.evaluate("s").with(0, "1 jobs with errors");
    assert_eq!(told(), 1);

    // An input cannot be fetched: the jobs' errors are still those of the last evaluation.
    let folder = farm.folder("s");
    let away = folder.with_extension("away");
    std::fs::rename(&folder, &away).expect("move the folder away");
    farm.evaluate("s").with(0, "");
    let row = farm.row("s");
    assert!(row.starts_with("in job ‘b’:"), "{row}");
    assert!(row.contains(&folder.display().to_string()), "{row}");
    std::fs::rename(&away, &folder).expect("move it back");
    farm.evaluate("s").with(0, "nothing changed");
    assert!(
        farm.row("s").ends_with("|NULL|t|NULL|1"),
        "{}",
        farm.row("s")
    );

    // It fails as a whole; the next try finds what was there before, and says what that had said.
    farm.expression("s", "{ src }: throw \"nothing today\"");
    let listener = farm.db().listen(&CHANNELS);
    farm.evaluate("s").with(1, "");
    let row = farm.row("s");
    assert!(
        row.starts_with("at top-level:\nerror: nothing today"),
        "{row}"
    );
    assert!(row.ends_with("|NULL|t|NULL|1"), "{row}");
    heard(&listener, &mut 0, "eval_failed");
    assert_eq!(told(), 2);
    assert_eq!(farm.current("s"), ["a"], "the builds stay");
    farm.expression("s", &bad);
    farm.evaluate("s").with(0, "nothing changed");
    assert!(farm.row("s").starts_with("in job ‘b’:\nerror: no b today"));
    farm.expression("s", &good);
    farm.evaluate("s").with(0, "the same as before");
    assert_eq!(farm.row("s"), "|NULL|t|NULL|1");
    assert_eq!(told(), 2, "nobody is told that nothing is wrong");

    // Other ends.
    farm.expression("s", "{ src }: 7");
    farm.evaluate("s").with(1, "");
    farm.sql("insert into JobsetInputAlts (project, jobset, input, altnr, value) select project, jobset, input, 1, value from JobsetInputAlts");
    farm.evaluate("s").with(1, "");
    assert!(farm
        .row("s")
        .contains("multiple jobset input alternatives are no longer supported"));
    farm.sql("delete from JobsetInputAlts where altnr = 1; update JobsetInputs set type = 'carrier-pigeon'");
    farm.evaluate("s").with(0, "");
    assert!(farm.row("s").contains("unknown type"), "{}", farm.row("s"));
}

#[test]
fn aggregates_have_their_constituents_and_a_broken_one_keeps_nobody_else_back() {
    let farm = Farm::new();
    let aggregate = |name: &str, constituents: &str| {
        format!(
            "{name} = derivation {{ name = \"{name}\"; system = \"{}\"; builder = \"/none\"; _hydraAggregate = true; \
             constituents = {constituents}; }};",
            system()
        )
    };
    let expression = |b: &str| {
        format!(
            "{{ src }}: rec {{ a = {}; b = {}; twin = b; nested.c = {}; {} {} {} }}",
            job("a", "1"),
            job("b", b),
            job("c", "1"),
            aggregate("byDrv", "[ a b ]"),
            aggregate("byName", "[ \"a\" \"nested.c\" ]"),
            aggregate("broken", "[ \"a\" \"nowhere\" ]"),
        )
    };
    farm.jobset("s", &expression("1"));
    farm.evaluate("s")
        .with(0, "6 new builds, 0 kept, 1 jobs with errors");
    let row = farm.row("s");
    assert!(
        row.starts_with("in job ‘broken’:\n") && row.contains("nowhere"),
        "{row}"
    );
    let constituents =
        "select g.job, c.job from AggregateConstituents x join Builds g on g.id = x.aggregate
                        join Builds c on c.id = x.constituent where g.isCurrent = 1 order by 1, 2";
    // Of two jobs with one derivation that with the shorter name.
    let expected = ["byDrv a", "byDrv b", "byName a", "byName nested.c"];
    assert_eq!(farm.site.rows(constituents), expected);
    // Those of an aggregate that changes are partly old builds.
    farm.expression("s", &expression("2"));
    farm.evaluate("s").with(0, "3 new builds, 3 kept");
    assert_eq!(farm.site.rows(constituents), expected);
    assert_eq!(
        farm.current("s"),
        ["a", "b", "byDrv", "byName", "nested.c", "twin"]
    );
}

#[test]
fn declarative_projects_make_their_jobsets() {
    let farm = Farm::new();
    let folder = farm.folder("decl");
    farm.sql(&format!(
        "update Projects set declfile = 'spec.json', decltype = 'path', declvalue = '{}';
         insert into Jobsets (project, name, nixExprInput, nixExprPath, emailOverride) values ('p', '.jobsets', '', '', ''), ('p', 'gone', 'i', 'f', '');",
        folder.display()
    ));
    let spec = |text: &str| farm.site.file("src-decl/spec.json", text);
    let checked = |name: &str| farm.row(name);

    // No specification, a bad one, one with a bad jobset, a good one: the error says so, and then is gone.
    let listener = farm.db().listen(&CHANNELS);
    farm.evaluate(".jobsets").with(1, "");
    assert!(
        checked(".jobsets").contains("spec.json’: No such file"),
        "{}",
        checked(".jobsets")
    );
    spec("{");
    farm.evaluate(".jobsets").with(1, "");
    assert!(
        checked(".jobsets").contains("not JSON"),
        "{}",
        checked(".jobsets")
    );
    let from = listener.payloads("eval_failed").len();
    spec(
        r#"{"one": {"nixexprinput": "src", "nixexprpath": "x.nix", "emailoverride": ""}, "bad": {"colour": "red"}}"#,
    );
    farm.evaluate(".jobsets")
        .with(0, "1 created, 0 changed, 1 disabled, 0 unchanged");
    assert!(
        checked(".jobsets")
            .starts_with("failed to process declarative jobset ‘bad’: invalid keys (colour)"),
        "{}",
        checked(".jobsets")
    );
    assert_eq!(
        farm.site
            .rows("select name, enabled, hidden from Jobsets order by name"),
        [".jobsets 1 0", "gone 0 1", "one 1 0"]
    );
    listener.wait("the bad jobset is told of", |_| {
        (listener.payloads("eval_failed").len() > from).then_some(())
    });
    let failed = listener.payloads("eval_failed").len();
    spec(r#"{"one": {"nixexprinput": "src", "nixexprpath": "x.nix"}}"#);
    let dry = ended(farm.eval(".jobsets", &["--dry-run"])).with(0, "");
    assert!(dry.err.contains("0 jobsets would change"), "{}", dry.err);
    farm.evaluate(".jobsets")
        .with(0, "0 created, 0 changed, 0 disabled, 1 unchanged");
    assert_eq!(farm.row(".jobsets"), "|NULL|t|NULL|1");
    assert_eq!(listener.payloads("eval_failed").len(), failed);
    assert_eq!(ask::<i64>(farm.db(), "select count(*) from JobsetEvals"), 0);

    // A specification of the jobset that makes the others: it is evaluated, with what it was made from.
    let value = format!(
        r#"{{"enabled": 1, "nixexprinput": "src", "nixexprpath": "jobs.nix", "keepnr": 9,
            "inputs": {{"src": {{"type": "path", "value": "{0}"}}, "word": {{"type": "string", "value": "w"}}}}}}"#,
        folder.display()
    );
    spec(&value);
    let expression = |jobs: &str| {
        farm.site.file(
            "src-decl/jobs.nix",
            &format!("{{ src, word, declInput, projectName }}: {{ {jobs} }}"),
        )
    };
    expression(&format!(
        "jobsets = {}; other = {};",
        job("jobsets", "1"),
        job("other", "1")
    ));
    farm.evaluate(".jobsets").with(1, "");
    assert!(checked(".jobsets").contains("must only have a single job named 'jobsets'"));
    assert_eq!(
        farm.site.rows("select nixExprPath, keepnr, (select count(*) from JobsetInputs i where i.jobset = j.name) from Jobsets j where name = '.jobsets'"),
        ["jobs.nix 9 2"]
    );
    expression(&format!(
        "jobsets = derivation {{ name = \"${{projectName}}-${{word}}-${{declInput.inputType}}\"; system = \"{}\"; builder = \"/none\"; }};",
        system()
    ));
    farm.evaluate(".jobsets").with(0, "1 new builds");
    assert_eq!(
        farm.site.rows("select job, nixName from Builds"),
        ["jobsets p-w-path"]
    );
    assert_eq!(
        farm.site
            .rows("select name, type from JobsetEvalInputs order by name"),
        [
            "declInput path",
            "projectName string",
            "src path",
            "word string"
        ]
    );
    farm.evaluate(".jobsets").with(0, "nothing changed");
    // The file of a link must not be shown.
    std::fs::remove_file(folder.join("spec.json")).expect("remove the specification");
    std::os::unix::fs::symlink("/etc/passwd", folder.join("spec.json")).expect("a link");
    farm.evaluate(".jobsets").with(1, "");
    assert!(
        checked(".jobsets").contains("a link out of the store"),
        "{}",
        checked(".jobsets")
    );
}

#[test]
fn flakes_are_locked_and_evaluated_when_their_lock_changes() {
    let farm = Farm::new();
    let folder = farm.folder("flake");
    let flake = |outputs: &str| {
        farm.site.file(
            "src-flake/flake.nix",
            &format!("{{ outputs = {{ self }}: {{ {outputs} }}; }}"),
        )
    };
    farm.sql(&format!(
        "insert into Jobsets (project, name, type, flake, emailOverride) values ('p', 'f', 1, 'path:{}', '')",
        folder.display()
    ));
    farm.evaluate("f").with(1, "");
    assert!(
        farm.row("f").starts_with("cannot lock flake ‘path:"),
        "{}",
        farm.row("f")
    );
    flake(&format!("hydraJobs.a = {}; checks.no = 7;", job("a", "1")));
    farm.evaluate("f").with(0, "1 new builds");
    assert_eq!(
        farm.site.rows(
            "select flake like 'path:%narHash=%', nixExprInput, nixExprPath from JobsetEvals"
        ),
        ["t NULL NULL"]
    );
    assert!(
        !folder.join("flake.lock").exists(),
        "nothing is written into the folder"
    );
    farm.evaluate("f").with(0, "nothing changed");
    flake(&format!("checks.x.b = {};", job("b", "1")));
    farm.evaluate("f").with(0, "1 new builds, 0 kept");
    assert_eq!(farm.current("f"), ["x.b"]);
    flake("packages = {};");
    farm.evaluate("f").with(1, "");
    assert!(
        farm.row("f")
            .contains("does not provide any Hydra jobs or checks"),
        "{}",
        farm.row("f")
    );
}

#[test]
fn a_dry_run_says_what_the_jobs_are_and_leaves_nothing() {
    let farm = Farm::new();
    farm.jobset(
        "s",
        &format!("{{ src }}: {{ a = {}; b = throw \"no\"; }}", job("a", "1")),
    );
    let listener = farm.db().listen(&CHANNELS);
    let dry = ended(
        farm.eval("s", &[])
            .env("HYDRA_DRY_RUN", "1")
            .env("HYDRA_DEBUG", "1"),
    )
    .with(0, "");
    let good = dry
        .err
        .lines()
        .find(|line| line.starts_with("good job a: "))
        .expect("a good job");
    assert!(good.ends_with("-a.drv"), "{good}");
    assert!(dry.err.contains("failed job b: error: no"), "{}", dry.err);
    assert!(
        dry.err.contains("hydra-eval-jobs '<src/jobs.nix>' "),
        "{}",
        dry.err
    );
    assert_eq!(farm.row("s"), "NULL|NULL|f|NULL|1");
    assert_eq!(ask::<i64>(farm.db(), "select count(*) from JobsetEvals"), 0);
    std::fs::remove_dir_all(farm.folder("s")).expect("remove the folder");
    std::fs::remove_dir_all(farm.site.folder("src-s")).expect("remove the folder");
    let json = ended(farm.eval("s", &["--dry-run", "--json"])).with(1, "\"end\":\"unfetched\"");
    assert!(json.out.contains("src-s"), "{}", json.out);
    // A notice of our own comes after whatever there was.
    farm.sql("notify eval_failed, 'end'");
    listener.wait_for("eval_failed", "end");
    assert_eq!(listener.events().len(), 1, "{:?}", listener.events());
}

/// Whether an evaluation waits for a lock in PostgreSQL.
const BLOCKED: &str = "select exists (select 1 from pg_stat_activity where application_name = 'hydra-eval-jobset'
                       and datname = current_database() and wait_event_type = 'Lock' and wait_event <> 'advisory')";

/// Keeps the row of a jobset as somebody does who changes it: an evaluation cannot commit.
fn hold<'c>(client: &'c mut postgres::Client, jobset: &str) -> postgres::Transaction<'c> {
    let mut tx = client.transaction().expect("a transaction");
    let sql = "select 1 from Jobsets where name = $1 for no key update";
    tx.execute(sql, &[&jobset]).expect("the lock of a row");
    tx
}

#[test]
fn s7_evaluations_that_commit_in_reverse_order_are_found_by_the_notification_alone() {
    let farm = Farm::new();
    let list = |prefix: &str, count: usize, words: &str| {
        let names: Vec<String> = (0..count).map(|n| format!("{prefix}{n}")).collect();
        let list: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), words)).collect();
        jobs(&list)
    };
    for name in ["low", "high", "load"] {
        farm.jobset(name, &list(name, 30, "1"));
    }
    farm.site.machines(&Site::stub("m1", 2, 1, "-"));
    let unfinished = |jobset: &str| {
        ask::<i64>(
            farm.db(),
            &format!("select count(*) from Builds b join Jobsets j on j.id = b.jobset_id where j.name = '{jobset}' and finished = 0"),
        )
    };
    let mut hydrad = farm.site.start();
    let listener = farm.db().listen(&["builds_added"]);
    for round in 0..2 {
        for name in ["low", "high", "load"] {
            farm.expression(name, &list(name, 30, &round.to_string()));
        }
        farm.evaluate("load").with(0, "30 new builds");
        let mut client = farm.db().client();
        let held = hold(&mut client, "low");
        let mut low = farm.eval("low", &[]).start();
        low.wait_sql(farm.db(), BLOCKED);
        farm.evaluate("high").with(0, "30 new builds");
        // Those of the later ids are built while nobody sees the others.
        hydrad.eventually("the builds of the second evaluation end", || {
            (unfinished("high") == 0).then_some(())
        });
        assert_eq!(unfinished("low"), 0, "they are not visible yet");
        held.rollback().expect("let the row go");
        assert!(low.wait().success());
        farm.site.wait_all_finished(&mut hydrad);
        let order: bool = ask(
            farm.db(),
            "select max(b.id) filter (where j.name = 'low') < min(b.id) filter (where j.name = 'high')
             from Builds b join Jobsets j on j.id = b.jobset_id where b.isCurrent = 1",
        );
        assert!(order, "the first evaluation has the lower ids");
        let told: Vec<i32> = listener.wait("three evaluations are announced", |_| {
            let all = listener.payloads("builds_added");
            let ids = all.iter().map(|id| id.parse().expect("an id"));
            (all.len() == 3 * (round + 1)).then(|| ids.collect())
        });
        assert!(told[3 * round + 2] < told[3 * round + 1], "{told:?}");
    }
    farm.site.assert_complete();
}

#[test]
fn after_a_kill_in_any_phase_the_next_evaluation_ends_right() {
    let farm = Farm::new();
    farm.jobset("s", &jobs(&[("a", "1"), ("b", "1")]));
    farm.evaluate("s").with(0, "2 new builds");
    let everything = || {
        farm.site.rows(
            "select (select count(*) from JobsetEvals), (select count(*) from Builds), (select count(*) from EvaluationErrors),
                    (select count(*) from JobsetEvalMembers), (select errorMsg from Jobsets where name = 's')",
        )
    };
    let before = everything();
    let gone = |children: &[(u32, String)]| {
        eventually("what it started is gone", || {
            let lives = |pid: u32| {
                std::fs::read_to_string(format!("/proc/{pid}/stat"))
                    .is_ok_and(|stat| !stat.contains(") Z"))
            };
            children.iter().all(|(pid, _)| !lives(*pid)).then_some(())
        });
    };

    // While it fetches: the nix that locks a flake never answers.
    let bin = farm.site.folder("bin");
    let mark = farm.site.folder("marks").join("started");
    let nix = farm.site.file(
        "bin/nix",
        &format!("#!/bin/sh\ntouch {}\nexec sleep 1000\n", mark.display()),
    );
    std::fs::set_permissions(&nix, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("chmod");
    farm.sql("insert into Jobsets (project, name, type, flake, emailOverride) values ('p', 'f', 1, 'path:/none', '')");
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").expect("PATH"));
    let mut hydrad = farm.eval("f", &[]).env("PATH", path).start();
    hydrad.eventually("it fetches", || mark.exists().then_some(()));
    let children = descendants(hydrad.pid());
    assert!(!children.is_empty());
    hydrad.kill_9();
    gone(&children);
    assert_eq!(everything(), before);

    // While it evaluates.
    farm.expression(
        "s",
        &format!(
            "{{ src }}: {{ a = {}; loop = let f = n: f (n + 1); in f 0; }}",
            job("a", "2")
        ),
    );
    let mut hydrad = farm.eval("s", &[]).start();
    let pid = hydrad.pid();
    let children = hydrad.eventually("it evaluates", || {
        let all = descendants(pid);
        all.iter()
            .any(|(_, line)| line.contains("repl"))
            .then_some(all)
    });
    hydrad.kill_9();
    gone(&children);
    assert_eq!(everything(), before);

    // While it writes.
    farm.expression("s", &jobs(&[("a", "2"), ("b", "1")]));
    let mut client = farm.db().client();
    let held = hold(&mut client, "s");
    let mut hydrad = farm.eval("s", &[]).start();
    hydrad.wait_sql(farm.db(), BLOCKED);
    hydrad.kill_9();
    held.rollback().expect("let the row go");
    assert_eq!(everything(), before);

    // After the commit, before its builds are the current ones: a mixture is.
    let old = farm.build("s", "a");
    let mut client = farm.db().client();
    let mut held = client.transaction().expect("a transaction");
    held.execute(
        "select 1 from Builds where id = $1 for no key update",
        &[&old],
    )
    .expect("the lock of a row");
    let mut hydrad = farm.eval("s", &[]).start();
    hydrad.wait_sql(farm.db(), BLOCKED);
    assert_eq!(farm.current("s"), ["a", "a", "b"]);
    assert_eq!(ask::<i64>(farm.db(), "select count(*) from JobsetEvals"), 2);
    assert_eq!(farm.row("s"), "|NULL|t|NULL|1");
    hydrad.kill_9();
    held.rollback().expect("let the row go");
    farm.evaluate("s").with(0, "nothing changed");
    assert_eq!(farm.current("s"), ["a", "b"]);
    assert_eq!(
        ask::<i32>(
            farm.db(),
            &format!("select isCurrent from Builds where id = {old}")
        ),
        0
    );
    assert_eq!(ask::<i64>(farm.db(), "select count(*) from Builds"), 3);
}

#[test]
fn a_second_evaluation_of_a_jobset_waits_and_a_signal_is_told() {
    let farm = Farm::new();
    farm.jobset("s", &jobs(&[("a", "1")]));
    let mut client = farm.db().client();
    let held = hold(&mut client, "s");
    let mut first = farm.eval("s", &[]).start();
    first.wait_sql(farm.db(), BLOCKED);
    // What is being written is finished, whoever wants to stop it.
    first.signal(libc::SIGTERM);
    first.wait_log("stops when what was evaluated is written");
    let mut second = farm.eval("s", &[]).start();
    second.wait_log("another evaluation of this jobset is at work: hydra-eval-jobset");
    held.rollback().expect("let the row go");
    assert_eq!(first.wait().code(), Some(0));
    assert_eq!(second.wait().code(), Some(0));
    second.wait_log("nothing changed since evaluation");
    assert_eq!(ask::<i64>(farm.db(), "select count(*) from Builds"), 1);

    farm.sql("insert into hydrad.notifier (seen_at, channels) values (extract(epoch from now())::bigint, '{eval_error_changed}')");
    farm.expression("s", "{ src }: { loop = let f = n: f (n + 1); in f 0; }");
    let mut stopped = farm.eval("s", &[]).start();
    let pid = stopped.pid();
    let children = stopped.eventually("it evaluates", || {
        let all = descendants(pid);
        all.iter()
            .any(|(_, line)| line.contains("repl"))
            .then_some(all)
    });
    stopped.signal(libc::SIGTERM);
    assert_eq!(stopped.wait().code(), Some(1));
    let row = farm.row("s");
    assert!(
        row.starts_with("the evaluation was stopped by a signal while evaluating"),
        "{row}"
    );
    let mails: i64 = ask(farm.db(), "select count(*) from hydrad.events");
    assert_eq!(mails, 0, "nobody is told: it is no error of the jobset");
    eventually("what it started is gone", || {
        children
            .iter()
            .all(|(pid, _)| !std::path::Path::new(&format!("/proc/{pid}")).exists())
            .then_some(())
    });
    farm.expression("s", &jobs(&[("a", "1")]));
    farm.evaluate("s").with(0, "nothing changed");
    assert_eq!(farm.row("s"), "|NULL|t|NULL|1");
}

/// Hydra's tables as they are at a version.
fn at_version(db: &Db, version: i32) {
    let mut sql = String::new();
    if version < 87 {
        sql.push_str(include_str!("../sql/schema/hydra-85-from-87.sql"));
    }
    if version < 85 {
        sql.push_str("alter table JobsetEvalInputs drop column shortRevLength;");
    }
    if version < 84 {
        sql.push_str(
            "alter table BuildOutputs alter column path set not null;
             alter table BuildStepOutputs alter column path set not null;",
        );
    }
    sql.push_str(&format!("update SchemaVersion set version = {version};"));
    db.client().batch_execute(&sql).expect("older tables");
}

/// Evaluates a plain and a content-addressed job with Hydra's tables at this version.
fn check_version(version: i32) {
    let db = Pg::shared().db();
    at_version(&db, version);
    let farm = Farm::with_db(db);
    let conf = farm.site.store.dir().join("conf/nix.conf");
    let text = std::fs::read_to_string(&conf).expect("nix.conf");
    std::fs::write(
        &conf,
        text.replace("nix-command", "nix-command ca-derivations"),
    )
    .expect("nix.conf");
    let expression = |words: &str| {
        format!(
            "{{ src }}: {{ plain = {}; floating = derivation {{ name = \"floating\"; system = \"{}\"; builder = \"/none\"; words = \"{words}\";
             __contentAddressed = true; outputHashMode = \"recursive\"; outputHashAlgo = \"sha256\"; }}; }}",
            job("plain", "1"),
            system()
        )
    };
    farm.jobset("s", &expression("1"));
    let outputs = "select b.job, o.name, o.path is not null from Builds b join BuildOutputs o on o.build = b.id where b.isCurrent = 1 order by 1";
    if version < 84 {
        farm.evaluate("s")
            .with(0, "1 new builds, 0 kept, 1 jobs with errors");
        let row = farm.row("s");
        assert!(
            row.starts_with("in job ‘floating’:\n") && row.contains("from version 84 on"),
            "{row}"
        );
        assert_eq!(farm.site.rows(outputs), ["plain out t"]);
        return;
    }
    farm.evaluate("s").with(0, "2 new builds, 0 kept");
    assert_eq!(farm.site.rows(outputs), ["floating out f", "plain out t"]);
    // Without a path the derivation tells.
    let old = farm.build("s", "floating");
    farm.sql("update Jobsets set forceEval = true");
    farm.evaluate("s")
        .with(0, "0 new builds, 2 kept, the same as before");
    farm.expression("s", &expression("2"));
    farm.evaluate("s").with(0, "1 new builds, 1 kept");
    assert_ne!(farm.build("s", "floating"), old);
}

#[test]
fn evaluations_are_written_at_schema_82() {
    check_version(82);
}

#[test]
fn evaluations_are_written_at_schema_84() {
    check_version(84);
}

#[test]
fn evaluations_are_written_at_schema_85() {
    check_version(85);
}

#[test]
fn evaluations_are_written_at_schema_87() {
    check_version(87);
}

#[test]
fn fifty_thousand_new_builds_stop_no_queue_runner() {
    const NEW: usize = 50_000;
    let farm = Farm::new();
    let names: Vec<String> = (0..20).map(|n| format!("old{n}")).collect();
    let list: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "1")).collect();
    farm.jobset("s", &jobs(&list));
    farm.evaluate("s").with(0, "20 new builds");
    let mut hydrad = farm.site.start();

    // The same jobs and many more, as they come from evaluating.
    let row = |sql: &str| farm.db().client().query(sql, &[]).expect(sql);
    let mut found: Vec<Job> =
        row("select b.job, b.drvPath, o.path from Builds b join BuildOutputs o on o.build = b.id")
            .iter()
            .map(|row| wanted(row.get(0), row.get(1), row.get(2)))
            .collect();
    found.extend((0..NEW).map(|n| {
        let path = format!("/nix/store/{n:032}-new{n}");
        wanted(format!("new{n}"), format!("{path}.drv"), path)
    }));
    let dbi = BTreeMap::from([("HYDRA_DBI", farm.db().dbi())]);
    let settings = Settings::load(&|name| dbi.get(name).cloned(), &[]).expect("settings");
    let target = DbTarget::from_env(&|name| dbi.get(name).cloned(), &settings).expect("a database");
    let mut client = target.connect("test").expect("connect");
    let features = schema::check_schema(&mut client).expect("tables").features;
    let jobset = evaluations::jobset_in(&mut client, "p", "s")
        .expect("rows")
        .expect("the jobset");
    let found = Found {
        row: EvaluationRow {
            hash: "h".to_owned(),
            timestamp: evaluations::now(),
            checkout_time: 0,
            eval_time: 0,
            builds: None,
            flake: None,
            nix_expr_input: jobset.nix_expr_input.clone(),
            nix_expr_path: jobset.nix_expr_path.clone(),
            error: String::new(),
            evaluator: Evaluator::default(),
        },
        jobset,
        inputs: BTreeMap::new(),
        jobs: found,
        after: 0,
        began: evaluations::now(),
    };
    let mut holder = farm.db().client();
    let held = hold(&mut holder, "s");
    std::thread::scope(|scope| {
        let evaluation = scope.spawn(|| {
            let session = Session::open(&target, "hydra-eval-jobset", "p", "s", &|_| {});
            let mut session = session.expect("the lock").expect("the jobset");
            let written = writing::write(&mut session, &found, "1.2", features, &Progress::new());
            let written = written.expect("it is written");
            assert_eq!(session.make_current().expect("it is marked"), 0);
            written
        });
        hydrad.wait_sql(farm.db(), BLOCKED);
        // All rows are there, invisible; the transaction is open and stays so. Nobody who builds waits for it.
        farm.site.machines(&Site::stub("m1", 2, 1, "-"));
        hydrad.hang_up();
        farm.site.wait_all_finished(&mut hydrad);
        assert!(
            ask::<bool>(farm.db(), BLOCKED),
            "the transaction is still open"
        );
        let late = ["deferred", "lock timeout"].map(|word| hydrad.log().matches(word).count());
        assert_eq!(late, [0, 0], "{}", hydrad.log());
        hydrad.kill_9();
        held.rollback().expect("let the row go");
        let written = evaluation.join().expect("it ended");
        assert_eq!((written.new, written.old, written.changed), (NEW, 20, true));
    });
    assert_eq!(
        farm.site.rows(
            "select count(*), count(*) filter (where m.isNew = 1), count(o.path), bool_and(b.isCurrent = 1)
             from JobsetEvalMembers m join Builds b on b.id = m.build join BuildOutputs o on o.build = b.id
             where m.eval = (select max(id) from JobsetEvals)"
        ),
        ["50020 50000 50020 t"]
    );
}

fn wanted(name: String, drv_path: String, path: String) -> Job {
    Job {
        derivation: Some(JobDerivation {
            nix_name: name.clone(),
            system: system(),
            drv_path,
            outputs: BTreeMap::from([("out".to_owned(), Some(path))]),
            scheduling_priority: 100,
            timeout: 36_000,
            max_silent: 7_200,
            ..JobDerivation::default()
        }),
        name,
        error: None,
    }
}

#[test]
fn a_connection_lost_in_the_transaction_leaves_one_evaluation() {
    let farm = Farm::new();
    farm.jobset("s", &jobs(&[("a", "1"), ("b", "1")]));
    let mut client = farm.db().client();
    let held = hold(&mut client, "s");
    let mut hydrad = farm.eval("s", &[]).start();
    hydrad.wait_sql(farm.db(), BLOCKED);
    let ended = "select count(pg_terminate_backend(pid)) from pg_stat_activity
                 where application_name = 'hydra-eval-jobset' and datname = current_database() and wait_event_type = 'Lock'";
    let mut superuser = farm.db().superuser();
    let count: i64 = superuser.query_one(ended, &[]).expect(ended).get(0);
    assert_eq!(count, 1);
    hydrad.wait_log("trying again");
    hydrad.wait_sql(farm.db(), BLOCKED);
    held.rollback().expect("let the row go");
    assert_eq!(hydrad.wait().code(), Some(0));
    hydrad.wait_log("2 new builds, 0 kept");
    assert_eq!(
        farm.site
            .rows("select (select count(*) from JobsetEvals), (select count(*) from Builds)"),
        ["1 2"]
    );
    assert_eq!(farm.current("s"), ["a", "b"]);
}

#[test]
fn progress_is_told_to_whoever_started_it_and_metrics_to_statsd() {
    let farm = Farm::new();
    let server = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
    let port = server.local_addr().expect("an address").port();
    farm.site.configure(&format!(
        "path_input_cache_validity_seconds = 0\n<statsd>\n  host = 127.0.0.1\n  port = {port}\n</statsd>\n"
    ));
    farm.jobset("s", &jobs(&[("a", "1")]));
    let told = farm.site.file("progress", "");
    let file = std::fs::File::options()
        .append(true)
        .open(&told)
        .expect("the file");
    let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
    let supervised = || {
        let mut command = farm.eval("s", &[]).env("HYDRAD_PROGRESS_FD", "9").command();
        // SAFETY: dup2 is async-signal-safe and touches no memory of ours.
        unsafe {
            std::os::unix::process::CommandExt::pre_exec(&mut command, move || {
                match libc::dup2(fd, 9) {
                    9 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            });
        }
        command
    };
    common::output_of(&mut supervised());
    let lines = std::fs::read_to_string(&told).expect("the file");
    let mut phases: Vec<String> = Vec::new();
    for line in lines.lines() {
        let line: serde_json::Value = serde_json::from_str(line).expect(line);
        let phase = line["phase"].as_str().expect("a phase").to_owned();
        if phase == "fetching" {
            assert_eq!(line["about"], "src");
        }
        if phases.last() != Some(&phase) {
            phases.push(phase);
        }
    }
    assert_eq!(
        phases,
        ["waiting", "fetching", "evaluating", "writing", "marking"]
    );

    let mut metrics = Vec::new();
    let mut buffer = [0; 256];
    while metrics.last().is_none_or(|name| name != "total_time:ms") {
        let length = server.recv(&mut buffer).expect("a datagram");
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        let (name, value) = text.split_once(':').expect("a name");
        let unit = value.split_once('|').expect("a unit").1;
        metrics.push(format!(
            "{}:{unit}",
            name.trim_start_matches("hydra.evaluator.")
        ));
    }
    assert_eq!(
        metrics,
        [
            "checkouts:c",
            "checkout_time:ms",
            "eval_time:ms",
            "db_time:ms",
            "evals:c",
            "total_time:ms"
        ]
    );

    // Who supervises it says why it was stopped.
    farm.expression("s", "{ src }: { loop = let f = n: f (n + 1); in f 0; }");
    let log = farm.site.file("log", "");
    let mut stopped = Running::start(supervised(), "hydrad", &log, libc::SIGKILL);
    stopped.eventually("it evaluates", || {
        let new = std::fs::read_to_string(&told).expect("the file");
        new[lines.len()..].contains("evaluating").then_some(())
    });
    stopped.signal(libc::SIGTERM);
    let signal = std::os::unix::process::ExitStatusExt::signal(&stopped.wait());
    assert_eq!(signal, Some(libc::SIGTERM));
    assert_eq!(farm.row("s"), "|NULL|t|NULL|1");
}
