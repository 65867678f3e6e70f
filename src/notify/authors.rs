//! Who may be the reason that a build ended otherwise than the one before: the authors of what was committed in between, as the
//! evaluator's clones of the repositories know them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use super::plugins::{Call, Failure};
use crate::base::text;
use crate::db::facts::{self, ChangedInput, Previous};
use crate::nix::hash::{hex_encode, sha256};
use crate::sys::child;

/// So many commits of an input are looked at.
const COMMITS_MAX: usize = 10_000;
/// So many authors are told of.
pub const AUTHORS_MAX: usize = 100;
/// A name or an address is not longer.
const NAME_BYTES_MAX: usize = 200;

/// What was committed between two builds.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Committed {
    pub commits: usize,
    /// Name and address.
    pub authors: BTreeMap<String, String>,
    /// Addresses of those who committed to an input whose committers want to be told.
    pub responsible: BTreeSet<String>,
}

impl Committed {
    /// `3 commits by A, B or C`, each author written by `show`; empty if there are none.
    pub fn words(&self, one_commit: &str, show: impl Fn(&str, &str) -> String) -> String {
        let shown: Vec<String> = self
            .authors
            .iter()
            .map(|(name, address)| show(name, address))
            .collect();
        let Some((last, others)) = shown.split_last() else {
            return String::new();
        };
        let names = match others {
            [] => last.clone(),
            others => format!("{} or {last}", others.join(", ")),
        };
        match self.commits {
            0 | 1 => format!("{one_commit}{names}"),
            commits => format!("{commits} commits by {names}"),
        }
    }
}

/// What was committed between a build and the one before it. What cannot be found out is said in the log and left out: the mail or
/// message matters more.
///
/// # Errors
/// Of the database.
pub fn between(
    call: &Call<'_>,
    build: i32,
    previous: Option<Previous>,
) -> Result<Committed, Failure> {
    let mut committed = Committed::default();
    let Some(previous) = previous else {
        return Ok(committed);
    };
    let inputs = facts::changed_inputs(&mut *call.conn()?, build, previous.id)?;
    for input in inputs {
        match commits(call, &input) {
            Ok(text) => add(&mut committed, &input, &text),
            Err(why) => log::warn!(
                "who committed to the input `{}` since build {} is not known: {why}",
                input.name,
                previous.id
            ),
        }
    }
    Ok(committed)
}

/// A line for each commit: name, TAB, address.
fn commits(call: &Call<'_>, input: &ChangedInput) -> Result<String, String> {
    for revision in [&input.old, &input.new] {
        if revision.is_empty() || !revision.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err("a revision is not hexadecimal".to_owned());
        }
    }
    let clone = hex_encode(&sha256(input.uri.as_bytes()));
    let clone = call
        .around
        .data_dir
        .join("scm")
        .join(&input.kind)
        .join(clone);
    if !clone.is_dir() {
        return Err(format!("this host has no clone {}", clone.display()));
    }
    let (program, mut command) = command(&clone, input);
    let ended = child::capture(&mut command, call.around.time_max, call.stopping)
        .map_err(|error| child::describe_trouble(program, &error))?;
    match (ended.late, ended.status) {
        (true, _) => Err(format!("{program} was ended")),
        (false, Some(status)) if status.success() => {
            Ok(String::from_utf8_lossy(&ended.output).into_owned())
        }
        // Its words may hold an address with a password.
        (false, Some(status)) => Err(format!(
            "{program} log in {}: {}",
            clone.display(),
            child::describe_status(status)
        )),
        (false, None) => Err(format!("{program} does not end")),
    }
}

fn command(clone: &Path, input: &ChangedInput) -> (&'static str, Command) {
    if input.kind == "hg" {
        let mut command = Command::new("hg");
        command.arg("--cwd").arg(clone).args([
            "log",
            "--limit",
            &COMMITS_MAX.to_string(),
            "--template",
            "{author|person}\t{author|email}\n",
            "--rev",
            &format!("only({}, {})", input.new, input.old),
        ]);
        command.env("HGPLAIN", "1");
        return ("hg", command);
    }
    let mut command = Command::new("git");
    command.arg("-C").arg(clone).args([
        "-c",
        "log.showSignature=false",
        "log",
        &format!("--max-count={COMMITS_MAX}"),
        "--pretty=format:%an%x09%ae",
        &format!("{}..{}", input.old, input.new),
        "--",
    ]);
    ("git", command)
}

fn add(committed: &mut Committed, input: &ChangedInput, text: &str) {
    for line in text.lines() {
        let Some((name, address)) = line.split_once('\t') else {
            continue;
        };
        committed.commits += 1;
        let clean = |text: &str| {
            let text = text::presentable(text.as_bytes(), NAME_BYTES_MAX);
            text.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        let (name, address) = (clean(name), clean(address));
        if committed.authors.len() < AUTHORS_MAX || committed.authors.contains_key(&name) {
            if input.email_responsible {
                committed.responsible.insert(address.clone());
            }
            committed.authors.insert(name, address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authors_are_counted_and_written_as_hydra_does() {
        let mut committed = Committed::default();
        let mut input = ChangedInput {
            name: "src".into(),
            kind: "git".into(),
            uri: "u".into(),
            old: "a".into(),
            new: "b".into(),
            email_responsible: false,
        };
        let show = |name: &str, address: &str| format!("{name} <{address}>");
        assert_eq!(committed.words("a commit by ", show), "");
        add(&mut committed, &input, "Ann\ta@x\n");
        assert_eq!(
            committed.words("a commit by ", show),
            "a commit by Ann <a@x>"
        );
        input.email_responsible = true;
        add(
            &mut committed,
            &input,
            "Cy\tc@x\nBob\u{7}  B\tb@x\nno tab\n",
        );
        let words = committed.words("", show);
        assert!(words.starts_with("3 commits by Ann <a@x>, Bob"), "{words}");
        assert!(words.ends_with(" or Cy <c@x>"), "{words}");
        let responsible: Vec<&str> = committed.responsible.iter().map(String::as_str).collect();
        assert_eq!(responsible, ["b@x", "c@x"]);
    }
}
