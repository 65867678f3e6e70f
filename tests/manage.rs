//! Projects, jobsets, inputs and evaluations managed without a web server: every command as it is typed, against rows that
//! Hydra's web server would write.

mod common;

use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};

use common::{
    eventually, said, Db, Hydrad, HydradBuilder, Listener, Pg, RunAs, Said, Site, TestDir,
};
use serde_json::{json, Value};

/// A database with a user, and a folder for files and hydra.conf.
struct Desk {
    db: Db,
    dir: TestDir,
}

impl Desk {
    fn new() -> Desk {
        let db = Pg::shared().db();
        let user = "insert into Users (userName, emailAddress, password) values ('alice', 'a@example.org', '!')";
        db.client().batch_execute(user).expect("a user");
        Desk {
            db,
            dir: TestDir::new(RunAs::Unprivileged),
        }
    }

    /// With the project `p`, and in it the jobset `j`.
    fn with_jobset() -> Desk {
        let desk = Desk::new();
        desk.good(&["project", "create", "p", "--owner", "alice"]);
        let jobset =
            "jobset create p:j --nixexprinput src --nixexprpath release.nix --input src path /src";
        desk.good(&jobset.split(' ').collect::<Vec<_>>());
        desk
    }

    fn hydrad(&self, args: &[&str]) -> HydradBuilder {
        let data = self.dir.path().to_string_lossy().into_owned();
        Hydrad::run(args).db(&self.db).env("HYDRA_DATA", data)
    }

    fn run(&self, args: &[&str]) -> Said {
        said(self.hydrad(args).command().stdin(Stdio::null()))
    }

    /// What a command that works prints.
    #[track_caller]
    fn good(&self, args: &[&str]) -> String {
        self.run(args).ends_with(0).out
    }

    /// The words of one command line without blanks in its words.
    #[track_caller]
    fn line(&self, line: &str) -> String {
        self.good(&line.split(' ').collect::<Vec<_>>())
    }

    #[track_caller]
    fn json(&self, line: &str) -> Value {
        let said = self.run(&line.split(' ').collect::<Vec<_>>()).ends_with(0);
        said.json()
    }

    /// A command that refuses, says these words and changes nothing.
    #[track_caller]
    fn refused(&self, args: &[&str], words: &[&str]) {
        let before = self.dump();
        self.run(args).ends_with(2).complains(words);
        assert_eq!(self.dump(), before, "{args:?} changed something");
    }

    fn sql(&self, sql: &str) {
        let done = self.db.client().batch_execute(sql);
        done.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    }

    /// The only row of a query, whose only column is JSON.
    #[track_caller]
    fn ask(&self, sql: &str) -> Value {
        let sql = format!("select (to_jsonb(t) #>> '{{}}') from ({sql}) t");
        let row = self.db.client().query_one(&sql, &[]);
        let text: String = row.unwrap_or_else(|e| panic!("{sql}: {e:?}")).get(0);
        serde_json::from_str(&text).expect("JSON")
    }

    /// All rows that managing writes, with the transactions that wrote them.
    fn dump(&self) -> Vec<String> {
        let tables = [
            "Projects",
            "Jobsets",
            "JobsetInputs",
            "JobsetInputAlts",
            "JobsetRenames",
            "JobsetEvals",
            "Builds",
        ];
        let mut client = self.db.client();
        let mut dump = Vec::new();
        for table in tables {
            let sql =
                format!("select '{table} ' || t.xmin || ' ' || t::text from {table} t order by 1");
            let rows = client.query(&sql, &[]).expect("the rows");
            dump.extend(rows.iter().map(|row| row.get::<_, String>(0)));
        }
        dump
    }

    fn listen(&self) -> Listener {
        self.db.listen(&[
            "jobsets_added",
            "jobsets_deleted",
            "jobset_scheduling_changed",
            "jobset_shares_changed",
            "builds_deleted",
            "builds_cancelled",
            "builds_restarted",
        ])
    }

    /// A file that commands can read.
    fn file(&self, name: &str, text: &str) -> String {
        let path = self.dir.file(name, text, RunAs::Unprivileged);
        path.to_string_lossy().into_owned()
    }
}

/// The channels heard, in order, once there are so many.
fn heard(listener: &Listener, channels: &[&str]) {
    listener.wait(&format!("{channels:?}"), |events| {
        (events.len() >= channels.len()).then_some(())
    });
    let heard = listener.events();
    let heard: Vec<&str> = heard.iter().map(|event| event.channel.as_str()).collect();
    assert_eq!(heard, channels);
}

const JOBSET: &str = "select *, triggertime > extract(epoch from now()) - 1000 as soon from Jobsets where name = 'j'";

// ---- projects, jobsets and inputs

#[test]
fn a_project_is_what_the_web_server_would_have_written() {
    let desk = Desk::new();
    let create = [
        "project",
        "create",
        "site",
        "--displayname",
        " Our site ",
        "--description",
        "What we sell",
        "--homepage",
        "https://example.org",
        "--owner",
        "alice",
        "--hidden",
        "true",
    ];
    let dry = [&create[..], &["--dry-run"]].concat();
    let text = desk.good(&dry);
    assert!(
        text.contains("create  project site") && text.contains("dry run"),
        "{text}"
    );
    assert_eq!(desk.dump(), [""; 0]);
    desk.good(&create);
    assert_eq!(
        desk.ask("select * from Projects"),
        json!({"name": "site", "displayname": "Our site", "description": "What we sell", "enabled": 1, "hidden": 1,
            "owner": "alice", "homepage": "https://example.org", "declfile": "", "decltype": "", "declvalue": "",
            "enable_dynamic_run_command": false})
    );
    // Evaluators hear of a project that is switched off, though Hydra has no trigger for it.
    let listener = desk.listen();
    let edited = desk.json("project edit site --enabled false --hidden false --json");
    assert_eq!(edited["changes"][0]["change"], "change");
    assert_eq!(
        edited["changes"][0]["fields"],
        json!([{"field": "enabled", "before": true, "after": false}, {"field": "hidden", "before": true, "after": false}])
    );
    heard(&listener, &["jobset_scheduling_changed"]);
    let before = desk.dump();
    let same = desk.json("project edit site --enabled false --json");
    assert_eq!((&same["changed"], desk.dump()), (&json!(false), before));

    // Declarative: the jobset that makes the others comes and goes with the declaration.
    let declare =
        "project edit site --declarative-file spec.json --declarative-type git --declarative-value";
    let declare: Vec<&str> = declare
        .split(' ')
        .chain(["https://example.org/site.git main"])
        .collect();
    desk.good(&declare);
    let declared = desk.ask(
        "select name, nixexprinput, nixexprpath, emailoverride, enabled, type, checkinterval, flake,
                triggertime is not null as soon from Jobsets",
    );
    assert_eq!(
        declared,
        json!({"name": ".jobsets", "nixexprinput": "", "nixexprpath": "", "emailoverride": "", "enabled": 1, "type": 0,
            "checkinterval": 300, "flake": null, "soon": true})
    );
    assert_eq!(
        desk.ask("select declfile || ' ' || decltype || ' ' || declvalue as d from Projects")["d"],
        "spec.json git https://example.org/site.git main"
    );
    desk.refused(
        &["jobset", "create", "site:x", "--flake", "github:a/b"],
        &["come from the specification", "--no-declarative"],
    );
    desk.refused(
        &["jobset", "delete", "site:.jobsets", "--yes"],
        &["--no-declarative"],
    );
    let text = desk.line("project edit site --no-declarative");
    assert!(text.contains("its jobset .jobsets is deleted"), "{text}");
    assert_eq!(desk.ask("select count(*) from Jobsets")["count"], 0);

    // Another name goes everywhere.
    desk.line("jobset create site:j --flake github:a/b");
    desk.line("project edit site --rename shop");
    assert_eq!(desk.ask("select project from Jobsets")["project"], "shop");
    desk.line("project create other --owner alice");
    let list = desk.json("project list --json");
    let names: Vec<&Value> = list["projects"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| &p["name"])
        .collect();
    assert_eq!(names, ["other", "shop"]);
    let shown = desk.json("project show shop --json");
    assert_eq!(
        (&shown["owner"], &shown["jobsets"][0]["flake"]),
        (&json!("alice"), &json!("github:a/b"))
    );
    for (args, words) in [
        (
            &["project", "create", "1st", "--owner", "alice"][..],
            &["`1st` cannot be the name of a project"][..],
        ),
        (
            &["project", "create", "a.b", "--owner", "alice"],
            &["`a.b` cannot"],
        ),
        (
            &["project", "create", "new", "--owner", "bob"],
            &["no user `bob`", "alice", "hydrad create-user bob"],
        ),
        (
            &[
                "project",
                "create",
                "new",
                "--owner",
                "alice",
                "--displayname",
                " ",
            ],
            &["displayname: it cannot be empty"],
        ),
        (
            &["project", "create", "shop", "--owner", "alice"],
            &["already", "hydrad project edit"],
        ),
        (
            &["project", "edit", "none", "--hidden", "true"],
            &["no project `none`", "hydrad project list"],
        ),
        (
            &["project", "edit", "shop", "--rename", "other"],
            &["there is a project `other` already"],
        ),
        (
            &[
                "project",
                "edit",
                "shop",
                "--enable-dynamic-run-command",
                "true",
            ],
            &["not enabled by the server"],
        ),
        (
            &[
                "project",
                "edit",
                "shop",
                "--declarative-file",
                "f",
                "--declarative-type",
                "gti",
                "--declarative-value",
                "x",
            ],
            &["declarative.type: there is no input type `gti`"],
        ),
    ] {
        desk.refused(args, words);
    }
    // Whose it is must be known.
    let owner = desk
        .hydrad(&["project", "create", "new"])
        .env("USER", "mallory")
        .env("SUDO_USER", "");
    said(&mut owner.command())
        .ends_with(2)
        .complains(&["--owner", "alice", "hydrad create-user"]);
    let owner = desk
        .hydrad(&["project", "create", "new"])
        .env("USER", "alice");
    said(owner.command().env_remove("SUDO_USER")).ends_with(0);
}

#[test]
fn a_jobset_is_what_the_web_server_would_have_written() {
    for version in [87, 82] {
        let desk = Desk::new();
        desk.db.at_version(version);
        desk.sql("drop schema hydrad cascade");
        desk.line("project create p --owner alice");
        let listener = desk.listen();
        desk.good(&[
            "jobset",
            "create",
            "p:j",
            "--description",
            " d ",
            "--nixexprinput",
            "src",
            "--nixexprpath",
            "nix/release.nix",
            "--input",
            "src",
            "git",
            " https://example.org/x.git main ",
            "--input",
            "word",
            "string",
            " kept ",
            "--input",
            "flag",
            "boolean",
            "true",
        ]);
        heard(&listener, &["jobsets_added"]);
        let mut row = desk.ask(JOBSET);
        let object = row.as_object_mut().unwrap();
        for key in ["id", "triggertime"] {
            object.remove(key);
        }
        assert_eq!(
            row,
            json!({"name": "j", "project": "p", "description": "d", "nixexprinput": "src", "nixexprpath": "nix/release.nix",
                "errormsg": null, "errortime": null, "lastcheckedtime": null, "soon": true, "enabled": 1, "enableemail": 1,
                "hidden": 0, "emailoverride": "", "keepnr": 3, "checkinterval": 300, "schedulingshares": 100,
                "fetcherrormsg": null, "forceeval": null, "starttime": null, "type": 0, "flake": null,
                "enable_dynamic_run_command": false})
        );
        let inputs = "select jsonb_agg(i.name || ' ' || i.type || ' ' || i.emailresponsible || ' ' || a.altnr || ' [' || a.value
                                       || '] ' || coalesce(a.revision, '-') order by i.name) as i
                      from JobsetInputs i join JobsetInputAlts a
                        on (a.project, a.jobset, a.input) = (i.project, i.jobset, i.name)";
        assert_eq!(
            desk.ask(inputs)["i"],
            json!([
                "flag boolean 0 0 [true] -",
                "src git 0 0 [https://example.org/x.git main] -",
                "word string 0 0 [ kept ] -"
            ])
        );

        // Each kind of change is heard by whom it concerns, and entails what it entails in the web interface.
        let listener = desk.listen();
        desk.line("jobset edit p:j --schedulingshares 7 --keepnr 10");
        heard(&listener, &["jobset_shares_changed"]);
        let listener = desk.listen();
        desk.line("jobset edit p:j --checkinterval 0");
        heard(&listener, &["jobset_scheduling_changed"]);
        assert_eq!(
            desk.ask(JOBSET)["triggertime"],
            json!(null),
            "an evaluation is called off"
        );
        desk.line("jobset edit p:j --enabled one-at-a-time --checkinterval 60");
        let row = desk.ask(JOBSET);
        assert_eq!((&row["enabled"], &row["soon"]), (&json!(3), &json!(true)));
        desk.sql("update Jobsets set triggerTime = 5");
        desk.line("input edit p:j:src --emailresponsible true");
        assert_eq!(
            desk.ask(JOBSET)["triggertime"],
            5,
            "a pending one keeps its time"
        );
        desk.sql("update Jobsets set triggerTime = null");
        let listener = desk.listen();
        desk.good(&[
            "input",
            "create",
            "p:j:nixpkgs",
            "git",
            "https://example.org/n.git",
        ]);
        heard(&listener, &["jobset_scheduling_changed"]);
        assert_eq!(desk.ask(JOBSET)["soon"], true);
        desk.line("input edit p:j:nixpkgs --value https://example.org/m.git --rename pkgs");
        desk.line("input delete p:j:flag");
        assert_eq!(
            desk.ask(inputs)["i"],
            json!([
                "pkgs git 0 0 [https://example.org/m.git] -",
                "src git 1 0 [https://example.org/x.git main] -",
                "word string 0 0 [ kept ] -"
            ])
        );
        assert_eq!(
            desk.json("input show p:j:src --json")["emailresponsible"],
            true
        );
        assert_eq!(
            desk.json("input list p:j --json")["inputs"][2]["value"],
            " kept "
        );

        // Another name: the web server finds the old one.
        desk.line("jobset edit p:j --rename k");
        assert_eq!(
            desk.ask("select * from JobsetRenames"),
            json!({"project": "p", "from_": "j", "to_": "k"})
        );
        desk.refused(&["jobset", "show", "p:j"], &["it is called `p:k` now"]);
        desk.line("jobset edit p:k --rename l");
        let renames = "select jsonb_agg(from_ || ' ' || to_ order by 1) as r from JobsetRenames";
        assert_eq!(desk.ask(renames)["r"], json!(["j l", "k l"]));
        desk.line("jobset create p:j --flake github:a/b");
        assert_eq!(
            desk.ask(renames)["r"],
            json!(["k l"]),
            "a new one has the name itself"
        );
        desk.line("jobset delete p:j --yes");
        desk.line("jobset edit p:l --rename j");

        // A flake has no inputs.
        desk.line("jobset edit p:j --flake github:a/b");
        let row = desk.ask(JOBSET);
        assert_eq!(
            [
                &row["type"],
                &row["nixexprinput"],
                &row["nixexprpath"],
                &row["flake"]
            ],
            [&json!(1), &json!(null), &json!(null), &json!("github:a/b")]
        );
        assert_eq!(desk.ask("select count(*) from JobsetInputs")["count"], 0);
        desk.refused(
            &["input", "create", "p:j:x", "string", "y"],
            &["p:j is a flake"],
        );
        let text = desk.line("jobset list p");
        assert!(
            text.contains("one-at-a-time") && text.contains("github:a/b"),
            "{text}"
        );
        let shown = desk.json("jobset show p:j --json");
        assert_eq!(
            (&shown["schedulingshares"], &shown["keepnr"]),
            (&json!(7), &json!(10))
        );
    }
}

#[test]
fn what_the_web_server_would_refuse_is_refused() {
    let desk = Desk::with_jobset();
    desk.line("jobset create p:f --flake github:a/b");
    let expression = ["--nixexprinput", "src", "--nixexprpath", "r.nix"];
    let with = |args: &[&'static str]| [args, &expression[..]].concat();
    let cases: Vec<(Vec<&str>, &[&str])> = vec![
        (
            with(&["jobset", "create", "p:1x"]),
            &["`1x` cannot be the name of a jobset"],
        ),
        (
            with(&["jobset", "create", "p:.jobsets"]),
            &["`.jobsets` cannot"],
        ),
        (
            with(&["jobset", "create", "p:j"]),
            &["already", "hydrad jobset edit"],
        ),
        (
            with(&["jobset", "create", "q:j"]),
            &["no project `q`", "hydrad project create q"],
        ),
        (vec!["jobset", "create", "p:k"], &["nixexprinput", "flake"]),
        (
            vec!["jobset", "create", "p:k", "--nixexprinput", "src"],
            &["nixexprpath"],
        ),
        (
            vec!["jobset", "create", "p:k", "--flake", "./x"],
            &["flake: `./x` is not the URI"],
        ),
        (
            vec!["jobset", "edit", "p:j", "--nixexprpath", "../x"],
            &["nixexprpath: `../x`"],
        ),
        (
            vec!["jobset", "edit", "p:j", "--nixexprinput", "a b"],
            &["nixexprinput: `a b`"],
        ),
        (
            vec!["jobset", "edit", "p:j", "--checkinterval=-1"],
            &["--checkinterval"],
        ),
        (
            vec!["jobset", "edit", "p:j", "--checkinterval", "3000000000"],
            &["--checkinterval"],
        ),
        (
            vec!["jobset", "edit", "p:j", "--schedulingshares", "0"],
            &["--schedulingshares"],
        ),
        (
            vec!["jobset", "edit", "p:j", "--enabled", "4"],
            &["one-at-a-time"],
        ),
        (
            vec!["jobset", "edit", "p:j", "--rename", "f"],
            &["there is a jobset `p:f` already"],
        ),
        (
            vec!["jobset", "edit", "p:j", "--rename", "a b"],
            &["`a b` cannot"],
        ),
        (
            vec!["jobset", "edit", "p:none", "--hidden", "true"],
            &["no jobset `p:none`", "hydrad jobset list p"],
        ),
        (
            vec!["jobset", "edit", "p", "--hidden", "true"],
            &["PROJECT:JOBSET"],
        ),
        (
            vec![
                "jobset",
                "edit",
                "p:j",
                "--enable-dynamic-run-command",
                "true",
            ],
            &["Dynamic RunCommand is not enabled by the server or the parent project."],
        ),
        (
            vec!["input", "create", "p:j:1x", "string", "y"],
            &["`1x` cannot be the name of an input"],
        ),
        (
            vec!["input", "create", "p:j:src", "string", "y"],
            &["has an input `src` already"],
        ),
        (
            vec!["input", "create", "p:j:x", "gti", "y"],
            &["no input type `gti`", "github_refs"],
        ),
        (
            vec!["input", "create", "p:j:x", "boolean", "yes"],
            &["`yes` is neither true nor false"],
        ),
        (
            vec!["input", "create", "p:j:x", "eval", "a:b:c:d"],
            &["is no evaluation"],
        ),
        (
            vec!["input", "create", "p:j:x", "git", " "],
            &["an input of type git needs a value"],
        ),
        (
            vec!["input", "edit", "p:j:x", "--value", "y"],
            &["p:j has no input `x`"],
        ),
        (
            vec!["input", "edit", "p:j:src", "--type", "eval"],
            &["value: `/src` is no evaluation"],
        ),
        (
            vec!["input", "delete", "p:j:src"],
            &["evaluates a file of the input `src`"],
        ),
        (vec!["input", "show", "p:j:x"], &["p:j has no input `x`"]),
    ];
    for (args, words) in cases {
        desk.refused(&args, words);
    }
    let twice = [
        "--input", "src", "path", "/a", "--input", "src", "path", "/b",
    ];
    let twice = [&with(&["jobset", "create", "p:k"])[..], &twice].concat();
    desk.refused(&twice, &["there are two of that name"]);

    // Where the server and the project allow it, a jobset may have dynamic RunCommand.
    desk.file(
        "hydra.conf",
        "<dynamicruncommand>\nenable = 1\n</dynamicruncommand>\n",
    );
    desk.refused(
        &[
            "jobset",
            "edit",
            "p:j",
            "--enable-dynamic-run-command",
            "true",
        ],
        &["the parent project"],
    );
    desk.line("project edit p --enable-dynamic-run-command true");
    desk.line("jobset edit p:j --enable-dynamic-run-command true");
    assert_eq!(desk.ask(JOBSET)["enable_dynamic_run_command"], true);
}

#[test]
fn what_an_old_hydra_left_is_kept_until_it_is_set_anew() {
    let desk = Desk::with_jobset();
    desk.sql("insert into JobsetInputAlts (project, jobset, input, altnr, value) values ('p', 'j', 'src', 1, '/other')");
    desk.line("jobset edit p:j --keepnr 4");
    desk.refused(
        &["input", "create", "p:j:x", "string", "y"],
        &[
            "`src` of p:j is of type `path with 2 values`",
            "hydrad input edit p:j:src",
        ],
    );
    desk.refused(
        &["input", "edit", "p:j:src", "--value", "/new"],
        &["no input type"],
    );
    assert_eq!(desk.ask("select count(*) from JobsetInputAlts")["count"], 2);
    desk.line("input edit p:j:src --type path --value /new");
    assert_eq!(
        desk.ask("select value from JobsetInputAlts")["value"],
        "/new"
    );
}

#[test]
fn concurrent_edits_of_one_jobset_all_count() {
    let desk = Desk::with_jobset();
    let edits = [
        "jobset edit p:j --keepnr 11",
        "jobset edit p:j --checkinterval 12",
        "jobset edit p:j --schedulingshares 13",
        "jobset edit p:j --description fourteen",
        "jobset edit p:j --emailoverride e@example.org",
        "input create p:j:one string 1",
        "input create p:j:two string 2",
        "input create p:j:three string 3",
    ];
    // All of them wait for this row, and then go one after the other.
    let mut client = desk.db.client();
    let mut held = client.transaction().unwrap();
    held.execute("update Jobsets set errorMsg = errorMsg", &[])
        .unwrap();
    let running: Vec<_> = edits
        .iter()
        .map(|line| {
            let mut command = desk.hydrad(&line.split(' ').collect::<Vec<_>>()).command();
            command.stdout(Stdio::null()).spawn().expect("hydrad")
        })
        .collect();
    let waiting = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
    // Within a transaction the view would not change.
    let mut looking = desk.db.client();
    eventually("edits wait for the row", || {
        let waiting: i64 = looking.query_one(waiting, &[]).unwrap().get(0);
        (waiting >= 4).then_some(())
    });
    held.commit().unwrap();
    for mut child in running {
        assert!(child.wait().unwrap().success());
    }
    let row = desk.ask(JOBSET);
    assert_eq!(
        [
            &row["keepnr"],
            &row["checkinterval"],
            &row["schedulingshares"],
            &row["description"],
            &row["emailoverride"]
        ],
        [
            &json!(11),
            &json!(12),
            &json!(13),
            &json!("fourteen"),
            &json!("e@example.org")
        ]
    );
    assert_eq!(desk.ask("select count(*) from JobsetInputs")["count"], 4);
}

// ---- deleting

/// Evaluation 10 of `p:j` with builds 1 (done, kept) and 2 (queued, a step running), and evaluation 20 of `q:other` with build 3.
const FILLED: &str = "
insert into Projects (name, displayname, owner) values ('q', 'Q', 'alice');
insert into Jobsets (project, name, type, flake, emailOverride) values ('q', 'other', 1, 'github:a/b', '');
insert into JobsetEvals (id, jobset_id, timestamp, checkoutTime, evalTime, hasNewBuilds, hash)
    select case name when 'j' then 10 else 20 end, id, 1000, 1, 2, 1, 'h' from Jobsets where name in ('j', 'other');
insert into Builds (id, finished, timestamp, jobset_id, job, drvPath, system, buildStatus, startTime, stopTime, keep)
    select 1, 1, 1000, id, 'a', '/nix/store/a.drv', 'x', 0, 5, 6, 1 from Jobsets where name = 'j'
    union all select 2, 0, 1000, id, 'b', '/nix/store/b.drv', 'x', null, null, null, 0 from Jobsets where name = 'j'
    union all select 3, 0, 1000, id, 'c', '/nix/store/c.drv', 'x', null, null, null, 0 from Jobsets where name = 'other';
insert into BuildOutputs (build, name, path) values (1, 'out', '/nix/store/a'), (2, 'out', '/nix/store/b');
insert into BuildSteps (build, stepnr, type, drvPath, busy, machine) values (2, 1, 0, '/nix/store/b.drv', 30, 'm');
insert into BuildMetrics (build, name, value, project, jobset, job, timestamp) values (1, 'size', 1, 'p', 'j', 'a', 5);
insert into BuildInputs (build, name, type, dependency) values (2, 'old', 'build', 1);
insert into JobsetEvalMembers (eval, build, isNew) values (10, 1, 1), (10, 2, 1), (20, 3, 1);
insert into JobsetEvalInputs (eval, name, altNr, type, dependency) values (10, 'self', 0, 'build', 1);
";

#[test]
fn deleting_tells_what_goes_asks_and_takes_everything() {
    let desk = Desk::with_jobset();
    desk.sql(FILLED);
    desk.refused(
        &["jobset", "delete", "p:j"],
        &[
            "with 1 evaluations and 2 builds, 1 of them queued",
            "no terminal",
            "--yes",
        ],
    );
    let dry = desk.line("jobset delete p:j --dry-run");
    for words in [
        "delete  jobset p:j",
        "1 builds are marked to be kept",
        "1 steps are running",
        "dry run",
    ] {
        assert!(dry.contains(words), "{words} in {dry}");
    }
    assert_eq!(desk.ask("select count(*) from Builds")["count"], 3);

    // Somebody else's evaluation had a build of it as an input.
    desk.sql("insert into JobsetEvalInputs (eval, name, altNr, type, dependency) values (20, 'x', 0, 'build', 1)");
    for args in [
        &["jobset", "delete", "p:j", "--yes"][..],
        &["project", "delete", "p", "--yes"],
    ] {
        desk.refused(args, &["20 of q:other", "disable and hide"]);
    }
    desk.sql("delete from JobsetEvalInputs where eval = 20");
    let listener = desk.listen();
    desk.line("jobset delete p:j --yes");
    heard(&listener, &["builds_deleted", "jobsets_deleted"]);
    assert_eq!(
        desk.ask("select jsonb_agg(id) as ids from Builds")["ids"],
        json!([3])
    );
    for table in [
        "BuildMetrics",
        "BuildInputs",
        "BuildSteps",
        "JobsetInputs",
        "JobsetInputAlts",
    ] {
        assert_eq!(
            desk.ask(&format!("select count(*) from {table}"))["count"],
            0,
            "{table}"
        );
    }
    assert_eq!(desk.ask("select count(*) from Projects")["count"], 2);

    desk.refused(
        &["project", "delete", "q"],
        &["with 1 jobsets: other", "--yes"],
    );
    let gone = desk.json("project delete q --yes --json");
    assert_eq!(gone["changes"][0]["change"], "delete");
    assert_eq!(
        desk.ask("select jsonb_agg(name) as n from Projects")["n"],
        json!(["p"])
    );
    assert_eq!(desk.ask("select count(*) from Builds")["count"], 0);
    desk.refused(&["project", "delete", "q", "--yes"], &["no project `q`"]);
}

// ---- apply

const FARM: &str = r#"
[projects.site]
displayname = "Our site"
owner = "alice"

[projects.site.jobsets.main]
nixexprinput = "src"
nixexprpath = "release.nix"
checkinterval = 600
inputs.src = { type = "git", value = "https://example.org/site.git main", emailresponsible = true }
inputs.fast = { type = "boolean", value = true }

[projects.site.jobsets.next]
type = 1
flake = "github:example/site/next"
enabled = 3

[projects.tools]
owner = "alice"
declarative = { file = "spec.json", type = "git", value = "https://example.org/tools.git" }
"#;

#[test]
fn applying_a_file_shows_the_difference_does_it_and_is_done_once() {
    let desk = Desk::new();
    let farm = desk.file("farm.toml", FARM);
    desk.refused(&["apply", &farm], &["no terminal", "--yes"]);
    let plan = desk
        .run(&["apply", &farm, "--dry-run", "--exit-code"])
        .ends_with(1)
        .out;
    for words in [
        "create  project site",
        "create  jobset site:main",
        "create  project tools",
        "inputs.fast",
        "dry run",
    ] {
        assert!(plan.contains(words), "{words} in {plan}");
    }
    assert_eq!(desk.dump(), [""; 0]);
    let listener = desk.listen();
    desk.good(&["apply", &farm, "--yes"]);
    heard(&listener, &["jobsets_added"]);
    let rows = "select jsonb_agg(project || ':' || name || ' ' || enabled || ' ' || checkinterval || ' ' ||
                                 (triggertime is not null) || ' ' || coalesce(flake, nixexprpath) order by 1) as r from Jobsets";
    assert_eq!(
        desk.ask(rows)["r"],
        json!([
            "site:main 1 600 true release.nix",
            "site:next 3 300 true github:example/site/next",
            "tools:.jobsets 1 300 true "
        ])
    );
    let inputs = "select jsonb_agg(name || ' ' || type || ' ' || emailresponsible order by name) as i from JobsetInputs";
    assert_eq!(
        desk.ask(inputs)["i"],
        json!(["fast boolean 0", "src git 1"])
    );

    // Again: nothing. No row is written, nobody hears anything.
    let listener = desk.listen();
    let before = desk.dump();
    let again = desk.good(&["apply", &farm]);
    assert!(
        again.contains("leave   jobset site:main") && again.contains("nothing to change"),
        "{again}"
    );
    desk.run(&["apply", &farm, "--dry-run", "--exit-code"])
        .ends_with(0);
    assert_eq!((desk.dump(), listener.events()), (before.clone(), vec![]));
    // As is the file that tells what there is.
    for project in ["site", "tools"] {
        let text = desk.good(&["project", "show", project, "--file"]);
        let file = desk.file("shown.json", &text);
        let said = desk.run(&["apply", &file, "--json"]).ends_with(0).json();
        assert_eq!(said["changed"], false, "{said}");
    }
    assert_eq!(desk.dump(), before);

    // Only what differs, field by field; what the file does not say stays; what it does not name goes with --prune.
    desk.line("jobset edit site:main --keepnr 9");
    desk.line("jobset create site:old --flake github:a/b");
    let second = FARM
        .replace("checkinterval = 600", "checkinterval = 60")
        .replace("inputs.fast = { type = \"boolean\", value = true }", "");
    let second = desk.file("second.toml", &second);
    let plan = desk.good(&["apply", &second, "--dry-run"]);
    for words in [
        "checkinterval  600 -> 60",
        "inputs.fast    boolean \"true\" -> nothing",
        "--prune disables and hides it",
    ] {
        assert!(plan.contains(words), "{words} in {plan}");
    }
    let plan = desk
        .run(&["apply", &second, "--dry-run", "--prune", "--json"])
        .ends_with(0)
        .json();
    let kinds: Vec<String> = plan["changes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|change| {
            format!(
                "{} {}",
                change["change"].as_str().unwrap(),
                change["name"].as_str().unwrap()
            )
        })
        .collect();
    assert_eq!(
        kinds,
        [
            "leave site",
            "change site:main",
            "leave site:next",
            "hide site:old",
            "leave tools"
        ]
    );
    desk.sql("update Jobsets set triggerTime = null");
    desk.good(&["apply", &second, "--yes", "--prune"]);
    let state = "select jsonb_agg(name || ' ' || enabled || hidden || ' ' || keepnr || ' ' || (triggertime is not null) order by 1)
                 as s from Jobsets where project = 'site'";
    assert_eq!(
        desk.ask(state)["s"],
        json!(["main 10 9 true", "next 30 3 false", "old 01 3 false"])
    );
    desk.run(&["apply", &second, "--dry-run", "--prune", "--exit-code"])
        .ends_with(0);
}

#[test]
fn a_file_that_is_wrong_says_where_and_changes_nothing() {
    let desk = Desk::with_jobset();
    let wrong = |name: &str, text: &str, words: &[&str]| {
        let file = desk.file(name, text);
        desk.refused(&["apply", &file, "--yes"], words);
    };
    wrong("a.json", "{", &["a.json is not JSON"]);
    wrong("a.toml", "[projects", &["a.toml is not TOML", "line 1"]);
    wrong("b.toml", "[projects.p]\n[projects.p]\n", &["duplicate"]);
    wrong(
        "a",
        "{\"project\": {}}",
        &["project: unknown key; known are projects"],
    );
    wrong(
        "b",
        "projects.p.colour = 1",
        &["projects.p.colour: unknown key", "displayname"],
    );
    wrong(
        "c.toml",
        "projects.p.jobsets.j.chekinterval = 1",
        &["projects.p.jobsets.j: invalid keys (chekinterval)"],
    );
    wrong(
        "d.toml",
        "projects.p.jobsets.j.checkinterval = 1.5",
        &["projects.p.jobsets.j: `checkinterval` has to be"],
    );
    wrong(
        "e.toml",
        "projects.p.jobsets.j.inputs.x = { type = \"git\", vlaue = \"y\" }",
        &["projects.p.jobsets.j.inputs.x.vlaue: unknown key"],
    );
    wrong(
        "f.toml",
        "projects.q.jobsets = {}",
        &["projects.q", "owner: a new project needs one"],
    );
    wrong(
        "g.toml",
        "projects.q.owner = \"bob\"",
        &["projects.q", "no user `bob`"],
    );
    // The first project is right, and not written either.
    wrong(
        "h.toml",
        "[projects.a]\nowner = \"alice\"\n[projects.p.jobsets.new]\ndescription = \"neither expression nor flake\"",
        &["projects.p", "p:new", "nixexprinput"],
    );
    desk.refused(
        &["apply", "/nowhere/x.json"],
        &["cannot read /nowhere/x.json"],
    );
    desk.sql("update Projects set declfile = 'f', decltype = 'git', declvalue = 'x'");
    wrong(
        "i.toml",
        "projects.p.jobsets.j.keepnr = 1",
        &["projects.p", "`declarative = false`"],
    );
}

#[test]
fn what_is_applied_is_what_was_shown_and_confirmed() {
    let desk = Desk::with_jobset();
    let file = desk.file(
        "p.toml",
        "[projects.p.jobsets.j]\nkeepnr = 5\ninputs.src = { type = \"path\", value = \"/src\" }",
    );
    let answering = |answer: &str, meanwhile: &str| {
        // A terminal that is typed on.
        let typed = desk.hydrad(&["apply", &file]).command();
        let words: Vec<String> = std::iter::once(typed.get_program())
            .chain(typed.get_args())
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        let mut command = Command::new("script");
        command
            .args(["-qec", &words.join(" "), "/dev/null"])
            .env("SHELL", "/bin/sh");
        for (name, value) in typed.get_envs() {
            command.env(name, value.unwrap_or_default());
        }
        let mut child = RunAs::Unprivileged
            .command("sh")
            .args(["-c", "exec \"$@\"", "sh", "script"])
            .args(command.get_args())
            .envs(
                command
                    .get_envs()
                    .filter_map(|(name, value)| Some((name, value?))),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("script, of bsdutils");
        let mut out = child.stdout.take().unwrap();
        let mut shown = Vec::new();
        let mut byte = [0];
        while !shown.ends_with(b"[yes/no] ") && out.read(&mut byte).unwrap() == 1 {
            shown.push(byte[0]);
        }
        let shown = String::from_utf8_lossy(&shown).into_owned();
        assert!(shown.contains("keepnr"), "{shown}");
        desk.sql(meanwhile);
        let mut input = child.stdin.take().unwrap();
        writeln!(input, "{answer}").unwrap();
        let mut rest = String::new();
        out.read_to_string(&mut rest).unwrap();
        (child.wait().unwrap().code(), rest)
    };
    let keepnr = || desk.ask(JOBSET)["keepnr"].clone();
    let (code, said) = answering("no", "select 1");
    assert!(
        code == Some(2) && said.contains("was not confirmed"),
        "{code:?} {said}"
    );
    assert_eq!(keepnr(), 3);
    let (code, said) = answering("yes", "update Jobsets set keepnr = 4");
    assert!(
        code == Some(2) && said.contains("somebody else has changed something"),
        "{code:?} {said}"
    );
    assert_eq!(keepnr(), 4);
    let (code, said) = answering("yes", "update Jobsets set lastCheckedTime = 4");
    assert!(code == Some(0) && said.contains("done"), "{code:?} {said}");
    assert_eq!(keepnr(), 5);
}

// ---- evaluating

/// Plays an evaluator: waits for the wish, takes the jobset, does this, and takes the wish away.
fn evaluate(desk: &Desk, steps: &[&str]) -> std::thread::JoinHandle<()> {
    let steps: Vec<String> = steps.iter().map(|sql| (*sql).to_owned()).collect();
    let mut config = desk.db.config();
    config.application_name("hydra-evaluator");
    let mut client = config.connect(postgres::NoTls).expect("a session");
    std::thread::spawn(move || {
        eventually("the wish is there", || {
            let wish = "select exists (select 1 from Jobsets where triggerTime is not null)";
            client
                .query_one(wish, &[])
                .unwrap()
                .get::<_, bool>(0)
                .then_some(())
        });
        let begin = [
            "update Jobsets set startTime = triggerTime",
            "select pg_notify('eval_started', '1.1' || chr(9) || id) from Jobsets",
        ];
        let end = [
            "update Jobsets set triggerTime = null where triggerTime <= startTime",
            "update Jobsets set startTime = null",
        ];
        let steps = steps.iter().map(String::as_str);
        for sql in begin.into_iter().chain(steps).chain(end) {
            client
                .batch_execute(sql)
                .unwrap_or_else(|e| panic!("{sql}: {e:?}"));
        }
    })
}

const ADDED: &str = "
insert into EvaluationErrors (id, errorMsg, errorTime) values (1, '', 1), (2, 'in job ‘x’:' || chr(10) || 'no', 2)
    on conflict do nothing;
insert into JobsetEvals (jobset_id, evaluationerror_id, timestamp, checkoutTime, evalTime, hasNewBuilds, hash)
    select id, 1, 1000, 1, 2, 1, 'h' from Jobsets;
with b as (insert into Builds (finished, timestamp, jobset_id, job, drvPath, system)
           select 0, 1, id, 'a', '/d', 'x' from Jobsets returning id)
insert into JobsetEvalMembers (eval, build, isNew) select max(e.id), b.id, 1 from b, JobsetEvals e group by b.id;
";

#[test]
fn evaluating_tells_the_evaluator_and_waits_for_what_comes_of_it() {
    let desk = Desk::with_jobset();
    desk.sql("update Jobsets set triggerTime = null");
    let listener = desk.listen();
    let said = desk.run(&["jobset", "evaluate", "p:j"]).ends_with(0);
    said.complains(&["no evaluator works on this database", "hydrad evaluator"]);
    heard(&listener, &["jobset_scheduling_changed"]);
    let row = desk.ask(JOBSET);
    assert_eq!(
        (&row["soon"], &row["forceeval"]),
        (&json!(true), &json!(null))
    );
    desk.line("jobset evaluate p:j --force");
    assert_eq!(desk.ask(JOBSET)["forceeval"], true);
    desk.run(&["jobset", "evaluate", "p:j", "--wait"])
        .ends_with(2)
        .complains(&["no evaluator", "--timeout"]);
    let said = desk
        .run(&["jobset", "evaluate", "p:j", "--wait", "--timeout", "1s"])
        .ends_with(1);
    said.complains(&["the time is over", "waiting for an evaluator to start"]);

    let wait = |steps: &[&str], code: i32| {
        desk.sql("update Jobsets set triggerTime = null");
        let evaluator = evaluate(&desk, steps);
        let said = desk
            .run(&["jobset", "evaluate", "p:j", "--wait", "--json"])
            .ends_with(code)
            .json();
        evaluator.join().expect("the evaluator");
        said
    };
    let announce =
        "select pg_notify('eval_added', '1.1' || chr(9) || e.jobset_id || chr(9) || e.id)
                    from JobsetEvals e order by e.id desc limit 1";
    let said = wait(&[ADDED, announce], 0);
    assert_eq!(
        said,
        json!({"jobset": "p:j", "outcome": "evaluated", "evaluation": 1, "changed": true, "builds": 1, "newBuilds": 1, "error": null})
    );
    // Nobody announces anything: the rows say it.
    let said = wait(
        &[
            ADDED,
            "update JobsetEvals set evaluationerror_id = 2 where id = 2",
        ],
        1,
    );
    assert_eq!(
        (&said["evaluation"], &said["error"]),
        (&json!(2), &json!("in job ‘x’:\nno"))
    );
    let said = wait(
        &["select pg_notify('eval_cached', '1.1' || chr(9) || id || chr(9) || 1) from Jobsets"],
        0,
    );
    assert_eq!(said["outcome"], "unchanged");
    let said = wait(&["update Jobsets set fetchErrorMsg = 'no such host'"], 1);
    assert_eq!(
        (&said["outcome"], &said["error"]),
        (&json!("fetch failed"), &json!("no such host"))
    );
    let crash = "update Jobsets set errorMsg = 'evaluation failed due to signal 9 (Killed)', errorTime = 77, fetchErrorMsg = null";
    let said = wait(&[crash], 1);
    assert_eq!(said["error"], "evaluation failed due to signal 9 (Killed)");

    for (sql, words) in [
        (
            "update Jobsets set enabled = 0",
            &[
                "p:j is not evaluated: it is disabled",
                "hydrad jobset edit p:j",
            ][..],
        ),
        (
            "update Projects set enabled = 0",
            &["its project is disabled", "hydrad project edit p"],
        ),
    ] {
        desk.sql(sql);
        desk.refused(&["jobset", "evaluate", "p:j"], words);
        desk.sql("update Jobsets set enabled = 1");
    }
    desk.refused(&["jobset", "evaluate", "p:k"], &["no jobset `p:k`"]);
}

#[test]
fn a_wish_during_an_evaluation_is_one_for_the_next() {
    let desk = Desk::with_jobset();
    desk.sql(
        "update Jobsets set triggerTime = null, startTime = extract(epoch from now())::int + 100",
    );
    let text = desk.line("jobset evaluate p:j");
    assert!(
        text.contains("the next one begins when that has ended"),
        "{text}"
    );
    let later = desk.ask("select triggerTime > startTime as later from Jobsets");
    assert_eq!(
        later["later"], true,
        "the evaluator that is at work does not take it away"
    );
}

#[test]
fn from_nothing_to_two_evaluations_compared_with_hydrads_own_evaluator() {
    let site = Site::new(Pg::shared());
    site.configure("path_input_cache_validity_seconds = 0\nevaluator_workers = 1\n");
    let run = |line: &str| said(&mut site.hydrad(&line.split(' ').collect::<Vec<_>>()).command());
    let sources = site.folder("sources");
    let jobs = |list: &str| {
        let text = format!(
            "{{ src ? null }}: let job = name: derivation {{ inherit name; system = \"{}\"; builder = \"/bin/sh\"; }}; in {{ {list} }}",
            common::system()
        );
        site.file("sources/jobs.nix", &text);
    };
    jobs("a = job \"a\"; b = job \"b\"; c = job \"c\";");
    run("create-user alice").ends_with(0);
    run("project create p --owner alice").ends_with(0);
    let create = format!(
        "jobset create p:j --nixexprinput src --nixexprpath jobs.nix --checkinterval 0 --input src path {}",
        sources.display()
    );
    run(&create).ends_with(0);
    let mut evaluator = site.hydrad(&["evaluator"]).start();
    evaluator.wait_log("evaluator: active");
    let evaluate = |more: &str, code: i32| {
        let said = run(&format!("jobset evaluate p:j --wait --json{more}"));
        said.ends_with(code).json()
    };
    let first = evaluate("", 0);
    assert_eq!(
        [
            &first["outcome"],
            &first["builds"],
            &first["newBuilds"],
            &first["error"]
        ],
        [&json!("evaluated"), &json!(3), &json!(3), &json!(null)]
    );
    assert_eq!(evaluate("", 0)["outcome"], "unchanged");
    // All have succeeded; then one changes and fails, one cannot be evaluated, one is new.
    let end = |status: i32| {
        let sql = format!("update Builds set finished = 1, buildStatus = {status}, startTime = 1, stopTime = 2 where finished = 0");
        site.db
            .client()
            .batch_execute(&sql)
            .expect("the builds end");
    };
    end(0);
    jobs("a = job \"a\"; b = job \"b2\"; c = throw \"no\"; d = job \"d\";");
    let second = evaluate("", 1);
    assert_eq!(
        (&second["outcome"], &second["newBuilds"]),
        (&json!("evaluated"), &json!(2))
    );
    assert!(
        second["error"]
            .as_str()
            .expect("an error")
            .contains("in job ‘c’"),
        "{second}"
    );
    end(1);
    let diff = run("eval diff p:j --exit-code --json").ends_with(1).json();
    let names = |key: &str| {
        diff[key]
            .as_array()
            .expect(key)
            .iter()
            .map(|job| job["job"].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        (names("newlyBroken"), names("notEvaluated"), names("added")),
        (vec![json!("b")], vec![json!("c")], vec![json!("d")])
    );
    assert_eq!(diff["stillSucceeding"], 1);
    jobs("this is no expression");
    let broken = evaluate("", 1);
    assert_eq!(broken["outcome"], "failed", "{broken}");
}

// ---- evaluations

/// Evaluations 1 and 2 of `p:j`, and their jobs as `NAME STATUS`; 9 stands for unfinished.
fn two_evaluations(desk: &Desk) {
    let before = [
        ("good", 0),
        ("breaks", 0),
        ("fixed", 1),
        ("bad", 2),
        ("gone", 0),
        ("faulty", 0),
        ("slow", 0),
        ("stopped", 0),
    ];
    let now = [
        ("good", 0),
        ("breaks", 1),
        ("fixed", 0),
        ("bad", 1),
        ("new", 6),
        ("slow", 9),
        ("stopped", 3),
        ("queued", 9),
    ];
    let mut sql = "
        insert into EvaluationErrors (id, errorMsg, errorTime) values (7, 'in job ‘faulty’:' || chr(10) || 'error: no', 2);
        insert into JobsetEvals (id, jobset_id, evaluationerror_id, timestamp, checkoutTime, evalTime, hasNewBuilds, hash,
                                 nrBuilds, nrSucceeded, nixExprInput, nixExprPath)
            select n, id, case n when 3 then 7 end, 1000 * n, 1, 2, case n when 2 then 0 else 1 end, 'h', 8, 1, 'src', 'r.nix'
            from Jobsets, generate_series(1, 3) n;
        insert into JobsetEvalInputs (eval, name, altNr, type, uri, revision)
            values (1, 'src', 0, 'git', 'u', 'aaaa'), (3, 'src', 0, 'git', 'u', 'bbbb'), (3, 'n', 0, 'git', 'v', 'cccc');
    "
    .to_owned();
    for (evaluation, first, jobs) in [(1, 100, before), (3, 200, now)] {
        for (at, (job, status)) in jobs.iter().enumerate() {
            let (id, done) = (first + at, *status != 9);
            let status = if done {
                status.to_string()
            } else {
                "null".into()
            };
            let (finished, time) = if done { (1, "5") } else { (0, "null") };
            sql.push_str(&format!(
                "insert into Builds (id, finished, timestamp, jobset_id, job, drvPath, system, buildStatus, startTime, stopTime)
                    select {id}, {finished}, 1, id, '{job}', '/nix/store/{id}.drv', 'x86_64-linux', {status}, {time}, {time}
                    from Jobsets;
                 insert into BuildOutputs values ({id}, 'out', '/nix/store/{id}');
                 insert into JobsetEvalMembers values ({evaluation}, {id}, 1);"
            ));
        }
    }
    desk.sql(&sql);
}

#[test]
fn two_evaluations_are_compared() {
    let desk = Desk::with_jobset();
    two_evaluations(&desk);
    let found = desk.json("eval diff p:j --json");
    let names = |key: &str| -> Vec<String> {
        let list = found[key]
            .as_array()
            .unwrap_or_else(|| panic!("{key} in {found}"));
        list.iter()
            .map(|job| job["job"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(
        (&found["evaluation"], &found["other"]),
        (&json!(3), &json!(1))
    );
    assert_eq!(names("newlyBroken"), ["breaks"]);
    assert_eq!(names("notEvaluated"), ["faulty"]);
    assert_eq!(names("newlyFixed"), ["fixed"]);
    assert_eq!(names("stillFailing"), ["bad"]);
    assert_eq!(found["stillSucceeding"], 1);
    assert_eq!(names("added"), ["new", "queued"]);
    assert_eq!(names("removed"), ["gone"]);
    assert_eq!(names("unfinished"), ["slow"]);
    assert_eq!(names("aborted"), ["stopped"]);
    assert_eq!(
        found["newlyBroken"][0],
        json!({"job": "breaks", "system": "x86_64-linux", "now": {"build": 201, "status": 1, "text": "failed"},
            "before": {"build": 101, "status": 0, "text": "succeeded"}})
    );
    assert_eq!(
        found["inputs"],
        json!([{"name": "n", "before": null, "now": "cccc"}, {"name": "src", "before": "aaaa", "now": "bbbb"}])
    );
    let text = desk
        .run(&["eval", "diff", "3", "--exit-code"])
        .ends_with(1)
        .out;
    for words in [
        "evaluation 3 of p:j against 1 of p:j",
        "aaaa -> bbbb",
        "newly broken: 1",
        "succeeded -> failed",
        "build 201",
    ] {
        assert!(text.contains(words), "{words} in {text}");
    }
    // The other way round something is broken that is fixed this way.
    assert_eq!(
        desk.json("eval diff 1 3 --json")["newlyBroken"][0]["job"],
        "fixed"
    );
    let first = desk
        .run(&["eval", "diff", "1", "--exit-code"])
        .ends_with(0)
        .out;
    assert!(
        first.contains("evaluation 1 of p:j, the first") && first.contains("added: 8"),
        "{first}"
    );
    desk.refused(
        &["eval", "diff", "2"],
        &["the same builds as the one before"],
    );
    desk.refused(&["eval", "diff", "99"], &["no evaluation 99"]);
    desk.refused(&["eval", "diff", "p:k"], &["no evaluation of `p:k`"]);
    desk.refused(&["eval", "diff", "x"], &["PROJECT:JOBSET"]);

    let shown = desk.json("eval show p:j --failed --json");
    let failed: Vec<&Value> = shown["jobs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|job| &job["job"])
        .collect();
    assert_eq!(failed, ["bad", "breaks", "new", "stopped"]);
    assert_eq!(
        (&shown["queued"], &shown["succeeded"], &shown["failed"]),
        (&json!(2), &json!(2), &json!(4))
    );
    let text = desk.line("eval show 3");
    for words in ["src/r.nix", "cccc", "failed with output", "in job ‘faulty’"] {
        assert!(text.contains(words), "{words} in {text}");
    }
    let list = |line: &str| desk.json(line)["evaluations"].as_array().unwrap().len();
    assert_eq!(
        (
            list("eval list p:j --json"),
            list("eval list p:j --all --json"),
            list("eval list p:j --last 1 --json")
        ),
        (2, 3, 1)
    );
    desk.refused(&["eval", "list", "p:none"], &["no jobset `p:none`"]);
}

#[test]
fn builds_of_an_evaluation_are_cancelled_and_restarted_as_in_the_web_server() {
    let desk = Desk::with_jobset();
    two_evaluations(&desk);
    let states = "select jsonb_agg(job || ' ' || finished || ' ' || coalesce(buildstatus, -1) || ' ' || coalesce(iscachedbuild, -1)
                                   order by job) as s from Builds where id >= 200";
    let before = desk.dump();
    let text = desk.line("eval cancel 3 --dry-run");
    assert!(
        text.contains("2 builds of evaluation 3 of p:j would be cancelled"),
        "{text}"
    );
    assert_eq!(
        desk.json("eval restart 3 --dry-run --json")["builds"],
        json!([203, 201, 204, 206])
    );
    assert_eq!(desk.dump(), before);

    let listener = desk.listen();
    let cancelled = desk.json("eval cancel p:j --json");
    assert_eq!(
        (&cancelled["builds"], &cancelled["changed"]),
        (&json!([207, 205]), &json!(2))
    );
    heard(&listener, &["builds_cancelled"]);
    assert_eq!(
        desk.ask(states)["s"],
        json!([
            "bad 1 1 -1",
            "breaks 1 1 -1",
            "fixed 1 0 -1",
            "good 1 0 -1",
            "new 1 6 -1",
            "queued 1 4 0",
            "slow 1 4 0",
            "stopped 1 3 -1"
        ])
    );
    let stopped = desk.ask(
        "select startTime = stopTime and stopTime > 1000000 as at_once from Builds where id = 207",
    );
    assert_eq!(stopped["at_once"], true);
    assert_eq!(desk.json("eval cancel 3 --json")["changed"], 0);

    desk.sql("insert into FailedPaths values ('/nix/store/201'), ('/nix/store/elsewhere')");
    // The derivations are looked for, unless --force.
    desk.refused(&["eval", "restart", "3", "--aborted"], &["--force"]);
    let listener = desk.listen();
    assert_eq!(
        desk.json("eval restart 3 --aborted --force --json")["builds"],
        json!([207, 205, 206])
    );
    heard(&listener, &["builds_restarted"]);
    let rest = desk.json("eval restart 3 --force --json");
    assert_eq!(
        (&rest["builds"], &rest["failuresCleared"]),
        (&json!([203, 201, 204]), &json!(1))
    );
    assert_eq!(
        desk.ask(states)["s"],
        json!([
            "bad 0 1 0",
            "breaks 0 1 0",
            "fixed 1 0 -1",
            "good 1 0 -1",
            "new 0 6 0",
            "queued 0 4 0",
            "slow 0 4 0",
            "stopped 0 3 0"
        ])
    );
    assert_eq!(
        desk.ask("select path from FailedPaths")["path"],
        "/nix/store/elsewhere"
    );
    assert_eq!(
        desk.ask("select nrsucceeded from JobsetEvals where id = 3")["nrsucceeded"],
        json!(null)
    );
}

// ---- help

#[test]
fn a_reader_who_stops_reading_is_no_error() {
    let desk = Desk::with_jobset();
    let mut command = desk.hydrad(&["project", "show", "p"]).command();
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("hydrad");
    drop(child.stdout.take());
    let ended = child.wait_with_output().expect("its end");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success() && said.is_empty(), "{said}");
}

#[test]
fn the_help_of_each_command_teaches_by_examples() {
    let desk = Desk::new();
    for command in [
        "project create",
        "project edit",
        "project show",
        "jobset create",
        "jobset edit",
        "jobset evaluate",
        "input create",
        "input edit",
        "apply",
        "eval show",
        "eval diff",
        "eval restart",
    ] {
        let text = desk.line(&format!("{command} --help"));
        let example = format!("  hydrad {command} ");
        assert!(
            text.contains("Examples:") && text.contains(&example),
            "{command}: {text}"
        );
        assert!(text.contains("--json"), "{command}");
    }
}
