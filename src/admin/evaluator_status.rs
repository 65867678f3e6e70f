//! How the evaluator is, and why a jobset is or is not evaluated, for people. Asked through the database; what the evaluator
//! does not know of (a jobset that is disabled) the tables tell.

use std::process::ExitCode;

use anyhow::Result;
use postgres::Client;
use serde_json::{json, Value};

use super::system_status::{self, Answer, EVALUATOR};
use super::table;
use crate::base::text::{bytes_text, plain};
use crate::db::evaluator::{self, Standing};
use crate::db::{DbError, DbTarget};
use crate::sys::clock::unix_now;

/// Lines of a table.
const ROWS_MAX: usize = 20;
/// Of an error so many lines are shown.
const ERROR_LINES_MAX: usize = 5;

/// The evaluator's part of `hydrad status`.
pub fn print(answer: &Answer) {
    let Some(report) = answer.report.as_ref().filter(|_| answer.answered) else {
        println!("\nthe evaluator does not answer: is it running?");
        return;
    };
    let number = |key: &str| report[key].as_i64().unwrap_or(0);
    let list = |key: &str| report[key].as_array().into_iter().flatten();
    let running = list("evaluations").count();
    let due = list("jobsets").filter(|jobset| jobset["state"] == "due");
    println!(
        "\nevaluator up for {}: {running} of {} evaluations, {} jobsets due, {} enabled",
        table::duration(number("uptime")),
        number("slots"),
        due.count(),
        list("jobsets").count(),
    );
    if let Some(hold) = report["hold"].as_str() {
        println!("no evaluation is started: {hold}");
    }
    if running > 0 {
        let mut rows = vec![heading(&[
            "evaluation of",
            "for",
            "phase",
            "jobs",
            "memory",
        ])];
        rows.extend(list("evaluations").take(ROWS_MAX).map(evaluation_row));
        print!("\n{}", table::table(&rows));
    }
    let waits =
        |jobset: &&Value| matches!(jobset["state"].as_str(), Some("due" | "paused" | "builds"));
    let waiting: Vec<&Value> = list("jobsets").filter(waits).collect();
    if waiting.is_empty() {
        return;
    }
    let mut rows = vec![heading(&["jobset", "why it is not evaluated"])];
    for jobset in waiting.iter().take(ROWS_MAX) {
        let why = jobset["why"].as_str().unwrap_or_default();
        rows.push(vec![name(jobset), why.to_owned()]);
    }
    print!("\n{}", table::table(&rows));
    if waiting.len() > ROWS_MAX {
        println!(
            "and {} more (--json has them all)",
            waiting.len() - ROWS_MAX
        );
    }
}

fn heading(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn name(of: &Value) -> String {
    let word = |key: &str| of[key].as_str().unwrap_or("?").to_owned();
    format!("{}:{}", word("project"), word("jobset"))
}

fn evaluation_row(evaluation: &Value) -> Vec<String> {
    let progress = &evaluation["progress"];
    let phase = match evaluation["ending"].as_str() {
        Some(why) => format!("being ended: {why}"),
        None => progress["phase"].as_str().unwrap_or("begun").to_owned(),
    };
    let number = |key: &str| progress[key].as_u64();
    let jobs = match (number("evaluated"), number("found"), number("failed")) {
        (Some(evaluated), Some(found), Some(failed)) => {
            format!("{evaluated} of {found}, {failed} failed")
        }
        _ => String::new(),
    };
    let memory = evaluation["memoryBytes"].as_u64();
    vec![
        name(evaluation),
        table::duration(evaluation["seconds"].as_i64().unwrap_or(0)),
        plain(&phase),
        jobs,
        memory.map_or_else(String::new, bytes_text),
    ]
}

/// What hydrad's evaluator does about a jobset, in a few words; `None` if none answers, or it has nothing to say.
///
/// # Errors
/// Of the database.
pub fn words_about(
    target: &DbTarget,
    client: &mut Client,
    application_name: &str,
    jobset: i32,
) -> Result<Option<String>, DbError> {
    let answer = system_status::ask_if_up(EVALUATOR, target, client, application_name)?;
    let report = answer.filter(|answer| answer.answered);
    let Some(report) = report.and_then(|answer| answer.report) else {
        return Ok(None);
    };
    let find = |list: &str| {
        let mut told = report[list].as_array().into_iter().flatten();
        told.find(|told| told["id"] == jobset)
    };
    Ok(match (find("evaluations"), find("jobsets")) {
        (Some(evaluation), _) => {
            let row = evaluation_row(evaluation);
            let said = row.iter().skip(2).filter(|cell| !cell.is_empty());
            let said: Vec<&str> = said.map(String::as_str).collect();
            Some(format!("being evaluated: {}", said.join(", ")))
        }
        (None, Some(waiting)) => waiting["why"].as_str().map(plain),
        (None, None) => None,
    })
}

/// The two names of a word like `nixpkgs:trunk`, which is no machine (`host:22`).
pub fn jobset_names(word: &str) -> Option<(&str, &str)> {
    let (project, jobset) = word.split_once(':')?;
    let is_name = |name: &str| !name.is_empty() && !name.contains([':', '/', '@', '[']);
    let is_port = jobset.bytes().all(|byte| byte.is_ascii_digit());
    (is_name(project) && is_name(jobset) && !is_port).then_some((project, jobset))
}

/// `hydrad explain PROJECT:JOBSET`; `None` if there is no such jobset.
///
/// # Errors
/// Of the database.
pub fn explain(
    target: &DbTarget,
    client: &mut Client,
    application_name: &str,
    (project, jobset): (&str, &str),
    as_json: bool,
) -> Result<Option<ExitCode>> {
    let Some(standing) = evaluator::standing(client, project, jobset)? else {
        return Ok(None);
    };
    let answer = system_status::ask_if_up(EVALUATOR, target, client, application_name)?;
    let report = answer.filter(|answer| answer.answered);
    let report = report.and_then(|answer| answer.report);
    let answered = report.is_some();
    let state = report.as_ref().and_then(|report| {
        let jobsets = report["jobsets"].as_array()?;
        jobsets.iter().find(|told| told["id"] == standing.id.0)
    });
    let evaluation = report.as_ref().and_then(|report| {
        let evaluations = report["evaluations"].as_array()?;
        evaluations.iter().find(|told| told["id"] == standing.id.0)
    });
    let why = why(&standing, answered, state, evaluation);
    if as_json {
        println!(
            "{}",
            json!({"jobset": {"id": standing.id.0, "project": project, "jobset": jobset, "enabled": standing.enabled,
                    "projectEnabled": standing.project_enabled, "errorMsg": standing.error,
                    "fetchErrorMsg": standing.fetch_error, "lastChecked": standing.last_checked},
                "answered": answered, "state": state, "evaluation": evaluation, "text": why})
        );
    } else {
        println!("jobset {project}:{jobset} ({})", standing.id);
        for line in &why {
            println!("{line}");
        }
        if !answered {
            eprintln!("hydrad: the evaluator does not answer: is one of hydrad's running? This is what the tables tell");
        }
    }
    Ok(Some(match answered {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }))
}

fn why(
    standing: &Standing,
    answered: bool,
    state: Option<&Value>,
    evaluation: Option<&Value>,
) -> Vec<String> {
    let mut lines = Vec::new();
    match state {
        _ if standing.enabled == 0 => {
            lines.push("it is disabled: it is not evaluated".to_owned());
        }
        _ if !standing.project_enabled => {
            lines.push("its project is disabled: it is not evaluated".to_owned());
        }
        Some(state) => lines.push(state["why"].as_str().unwrap_or_default().to_owned()),
        None if answered => {
            lines.push("the evaluator has not heard of it yet; ask again".to_owned());
        }
        None => lines.push("it is enabled".to_owned()),
    }
    if let Some(evaluation) = evaluation {
        let row = evaluation_row(evaluation);
        let rest = row[2..].iter().filter(|cell| !cell.is_empty());
        let rest: Vec<&str> = rest.map(String::as_str).collect();
        lines.push(format!(
            "process {}: {}",
            evaluation["pid"],
            rest.join("; ")
        ));
    } else if let (Some(started), false) = (standing.started, answered) {
        let since = table::duration((unix_now() - started).max(0));
        lines.push(format!(
            "its row says that it has been evaluated for {since}; if no evaluator is up, that is not so (--unlock)"
        ));
    }
    lines.push(match standing.last_checked {
        None => "it was never checked".to_owned(),
        Some(at) => format!(
            "last checked {} ago",
            table::duration((unix_now() - at).max(0))
        ),
    });
    for (what, error) in [
        ("its inputs could not be fetched", &standing.fetch_error),
        ("errors of its last evaluation", &standing.error),
    ] {
        let Some(error) = error else { continue };
        lines.push(format!("{what}:"));
        let error = plain(error);
        let mut rest = error.lines().filter(|line| !line.trim().is_empty());
        lines.extend(
            rest.by_ref()
                .take(ERROR_LINES_MAX)
                .map(|line| format!("  {line}")),
        );
        if rest.next().is_some() {
            lines.push("  ...".to_owned());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jobset_is_told_from_a_machine() {
        assert_eq!(jobset_names("nixpkgs:trunk"), Some(("nixpkgs", "trunk")));
        assert_eq!(jobset_names("p:.jobsets"), Some(("p", ".jobsets")));
        for other in [
            "12",
            "host",
            "host:22",
            "ssh://host",
            "me@host:x",
            "a:b:c",
            "[::1]:x",
        ] {
            assert_eq!(jobset_names(other), None, "{other}");
        }
    }
}
