//! `hydrad explain`: why a build, a derivation or a machine does what it does, or does nothing.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{bail, Result};
use postgres::Client;
use serde_json::Value;

use super::connect::{environment, StateArgs};
use super::{evaluator_status, over_http};
use crate::db::{questions, DbTarget};
use crate::model::BuildId;
use crate::plan::explanation::Subject;
use crate::queue::explain;
use crate::store::local::LocalStore;
use crate::store::logs::LogStore;

/// A queue runner that is there answers within this time.
const ANSWER_MAX: Duration = Duration::from_secs(5);
const APPLICATION: &str = "hydrad-explain";

/// Say why a build does not build, a jobset is not evaluated, or what they are doing
///
/// BUILD is a number: the shortest chain of what it waits for, and why the end of that chain does
/// not run; for a build that has ended, how, and where its log is. DRV is a derivation's path or
/// base name. PROJECT:JOBSET: whether it is being evaluated, when it will be and what it waits for,
/// and what was wrong the last time. Anything else is a MACHINE as in the first column of the
/// machines file: its slots, running steps, last errors and standing.
///
///   hydrad explain 1234
///   hydrad explain /nix/store/...-hello-2.12.drv
///   hydrad explain ssh://builder.example.org
///   hydrad explain nixpkgs:trunk
///   hydrad explain 1234 --json | jq .now.step.at.state
///
/// Asks the running queue runner (of a jobset, the evaluator) through the database, so this works
/// on any host that reaches it; if that is away, at `status_address`; if none answers, what the
/// tables tell is shown. Exit code: 0 when there is such a thing, 1 when there is not or nobody
/// answered.
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct ExplainArgs {
    #[command(flatten)]
    pub state: StateArgs,
    /// A build's number, a derivation, a jobset, or a machine
    #[arg(value_name = "BUILD|DRV|PROJECT:JOBSET|MACHINE")]
    pub what: String,
    /// Print the whole answer as JSON
    #[arg(long)]
    pub json: bool,
}

/// # Errors
/// When the database cannot be asked.
pub fn run(args: &ExplainArgs) -> Result<ExitCode> {
    let settings = args.state.settings()?;
    let target = args.state.target(&settings)?;
    // Without the database there is nothing to be had of jobsets.
    let names = evaluator_status::jobset_names(&args.what);
    if let (Some(names), Ok(mut client)) = (names, target.connect(APPLICATION)) {
        let told = evaluator_status::explain(&target, &mut client, APPLICATION, names, args.json)?;
        if let Some(code) = told {
            return Ok(code);
        }
    }
    let subject = subject(&args.what, |base| {
        let store = LocalStore::from_env(&environment, &settings.nix_daemon_program);
        store.dir().join(base)
    });
    let (told, client, mut why_not) = match target.connect(APPLICATION) {
        Ok(mut client) => {
            let (told, why_not) = ask(&target, &mut client, &explain::question(&subject));
            (told, Ok(client), why_not)
        }
        Err(error) => {
            let why_not = format!("the database cannot be asked: {error}");
            (None, Err(error), Some(why_not))
        }
    };
    // The way through the database is not there, or nobody listens at its end: perhaps the queue runner itself is.
    let told = told.or_else(|| {
        let address = settings.status_address.as_ref();
        let (answer, more) = match over_http::explain(address, &subject) {
            Ok((answer, base)) => (Some(answer), format!("asked at {base} instead")),
            Err(why) => (None, why),
        };
        let why_not = why_not.get_or_insert_with(String::new);
        *why_not = format!("{why_not}; {more}");
        answer
    });
    let answered = told.is_some();
    let answer = match (told, client) {
        (Some(answer), _) => answer,
        (None, Ok(mut client)) => {
            let past = explain::past(&mut client, &subject);
            let logs = LogStore::reader(&settings.data_dir);
            explain::answer_json(&subject, None, Some(past), &logs, false)
        }
        (None, Err(_)) => bail!("{}", why_not.unwrap_or_default()),
    };
    if args.json {
        println!("{answer}");
    } else {
        for line in answer["text"].as_array().into_iter().flatten() {
            println!("{}", line.as_str().unwrap_or_default());
        }
        if let Some(why_not) = why_not {
            match answered {
                true => eprintln!("hydrad: {why_not}"),
                false => eprintln!("hydrad: {why_not}; this is what the tables tell"),
            }
        }
    }
    Ok(if answered && answer["known"] == true {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What the words on the command line mean.
fn subject(what: &str, in_store: impl Fn(&str) -> String) -> Subject {
    if let Ok(id) = what.parse::<i32>() {
        Subject::Build(BuildId(id))
    } else if !what.ends_with(".drv") {
        Subject::Machine(what.into())
    } else if what.starts_with('/') {
        Subject::Drv(what.into())
    } else {
        Subject::Drv(in_store(what).into())
    }
}

/// Asks the running queue runner; else why there is no answer.
pub fn ask(
    target: &DbTarget,
    client: &mut Client,
    question: &str,
) -> (Option<Value>, Option<String>) {
    let why_not = match questions::ask(target, APPLICATION, client, question, ANSWER_MAX) {
        Ok(Some(text)) => match serde_json::from_str::<Value>(&text) {
            Ok(answer) if answer.get("error").is_none() || answer.get("text").is_some() => {
                return (Some(answer), None)
            }
            Ok(answer) => {
                let error = answer["error"].as_str().unwrap_or("an unknown answer");
                format!("{error}; is it of another version?")
            }
            Err(error) => format!("the queue runner's answer is not JSON: {error}"),
        },
        Ok(None) => format!(
            "the queue runner does not answer within {} s: is it running?",
            ANSWER_MAX.as_secs()
        ),
        Err(error) if is_missing(&error) => {
            "hydrad's own tables are missing or older than this program; run `hydrad init`".into()
        }
        Err(error) => format!("the queue runner cannot be asked: {error}"),
    };
    (None, Some(why_not))
}

/// No such table or schema.
fn is_missing(error: &crate::db::DbError) -> bool {
    matches!(error.sql_state(), Some("42P01" | "3F000"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_name_builds_derivations_and_machines() {
        let subject = |what| subject(what, |base| format!("/nix/store/{base}"));
        assert_eq!(subject("12"), Subject::Build(BuildId(12)));
        for drv in ["/nix/store/x.drv", "x.drv"] {
            assert_eq!(subject(drv), Subject::Drv("/nix/store/x.drv".into()));
        }
        assert_eq!(subject("root@m1"), Subject::Machine("root@m1".into()));
    }
}
