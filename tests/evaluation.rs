//! Evaluations: real PostgreSQL, real Nix in a store of its own.

mod common;

use std::collections::BTreeMap;

use common::{Db, Pg};
use hydrad::config::declarative::parse_jobsets;
use hydrad::db::declarative::{self, Applied, Mode};

/// A user and a project `p`.
const PROJECT: &str = "
insert into Users (userName, emailAddress, password) values ('u', 'u@example.org', '!');
insert into Projects (name, displayName, owner, enable_dynamic_run_command) values ('p', 'P', 'u', true);
";

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
