//! What is said to an evaluating process and what it answers, as lines. Knows no process.
//!
//! The process is `nix repl`. Whatever is printed that way carries a nonce that no expression can know; every other line is
//! Nix's words: traces, warnings, errors. The prompt is not looked at, and names never stand in a line to the process: an
//! attribute is known by its number at each level, in the order of `builtins.attrNames`.

use std::sync::Arc;

use serde_json::Value;

use crate::eval::job::{JobDerivation, Source};
use crate::nix::expression;

/// The bindings that every process gets.
const WALK: &str = include_str!("walk.nix");

/// Bytes of the longest line to the process; longer ones are slow (editline looks at each byte again and again).
pub(super) const LINE_BYTES_MAX: usize = 900;

/// Levels of attributes below each other that are entered. A set that holds itself has no end, and a line has one.
pub(super) const DEPTH_MAX: usize = 32;

/// Where arguments and the expressions of arguments lie, by this name on the search path.
pub(super) const ARGUMENTS: &str = "hydrad-arguments";

/// An attribute set of the jobset.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Set {
    /// Where it is: the number of each attribute on the way.
    pub path: Vec<u32>,
    /// Its name as the beginning of a job's name: empty, or attribute names joined with dots and a dot behind.
    pub prefix: String,
    /// All its attributes.
    pub names: Vec<String>,
}

/// Some neighbours in an attribute set.
#[derive(Clone, Debug)]
pub(super) struct Range {
    pub set: Arc<Set>,
    pub first: u32,
    pub count: u32,
}

impl Range {
    /// The top of the jobset, as an attribute without a name.
    pub fn top() -> Range {
        Range {
            set: Arc::new(Set {
                path: Vec::new(),
                prefix: String::new(),
                names: Vec::new(),
            }),
            first: 0,
            count: 1,
        }
    }

    /// As the process takes it.
    pub fn text(&self) -> String {
        let path: Vec<String> = self.set.path.iter().map(u32::to_string).collect();
        format!("[ [ {} ] {} {} ] ", path.join(" "), self.first, self.count)
    }

    /// Whether the first of them is too deep to be entered.
    pub fn is_deepest(&self) -> bool {
        self.set.path.len() + 1 >= DEPTH_MAX
    }

    /// The name of the first of them as a job.
    pub fn name(&self) -> String {
        let name = self.set.names.get(self.first as usize);
        format!("{}{}", self.set.prefix, name.map_or("", String::as_str))
    }

    /// The set that the first of them is found to be, and the ranges of what may be evaluated in it. Names that are not
    /// legal are given to `skip`.
    pub fn enter(&self, names: Vec<String>, skip: &mut dyn FnMut(&str)) -> Vec<Range> {
        let mut path = self.set.path.clone();
        path.push(self.first);
        let prefix = format!("{}.", self.name());
        ranges(
            Set {
                path,
                prefix,
                names,
            },
            skip,
        )
    }
}

/// The ranges of the legal names in a set.
pub(super) fn ranges(set: Set, skip: &mut dyn FnMut(&str)) -> Vec<Range> {
    let set = Arc::new(set);
    let mut ranges: Vec<Range> = Vec::new();
    for (number, name) in (0..).zip(&set.names) {
        // It says how the set is meant, and is no job.
        if name == "recurseForDerivations" {
            continue;
        }
        if name.contains(['.', ' ']) {
            skip(&format!("{}{name}", set.prefix));
            continue;
        }
        match ranges.last_mut() {
            Some(last) if last.first + last.count == number => last.count += 1,
            _ => ranges.push(Range {
                set: set.clone(),
                first: number,
                count: 1,
            }),
        }
    }
    ranges
}

/// What the process is told once.
pub(super) fn preamble(nonce: &str, source: &Source) -> Vec<String> {
    let mut lines = vec![format!(
        "say = told: builtins.trace \"@{nonce} R ${{told}}\" null"
    )];
    match source {
        Source::Legacy {
            file, arguments, ..
        } => {
            lines.push(match arguments.is_empty() {
                true => "arguments = { }".to_owned(),
                false => format!("arguments = import (builtins.findFile builtins.nixPath \"{ARGUMENTS}/arguments.nix\")"),
            });
            lines.push(format!("top = import ({})", place(file)));
        }
        Source::Flake { locked } => {
            lines.push("arguments = { }".to_owned());
            lines.push(format!(
                "flake = (builtins.getFlake {}).outputs",
                expression::ascii_string(locked)
            ));
            lines.push("top = flake.hydraJobs or flake.checks".to_owned());
        }
    }
    lines.extend(bindings());
    lines
}

/// What `import` is given: a file on disk, something to download, or a place on the search path.
fn place(file: &str) -> String {
    let text = expression::ascii_string(file);
    if file.starts_with('/') {
        format!("/. + {text}")
    } else if file.contains("://") {
        format!("builtins.fetchTarball {text}")
    } else {
        format!("builtins.findFile builtins.nixPath {text}")
    }
}

/// Each binding of `walk.nix` as one line without its semicolon.
fn bindings() -> impl Iterator<Item = String> {
    WALK.split("\n\n").filter_map(|block| {
        let lines = block.lines().filter(|line| !line.starts_with('#'));
        let line = lines.map(str::trim).collect::<Vec<_>>().join(" ");
        line.trim().strip_suffix(';').map(str::to_owned)
    })
}

/// The line that evaluates the top of the jobset.
pub(super) const ROOT: &str = "say \"0 ${builtins.toJSON (is root.value)}\"";

/// The line that says whether the process evaluates purely: `nix repl` of 2.8 does not, whatever it is told; that of 2.26 does.
pub(super) const IS_PURE: &str =
    "say (\"0 \" + builtins.toJSON { other = if builtins ? currentTime then \"impure\" else \"pure\"; })";

/// The line that says whether a flake has jobs at all.
pub(super) const HAS_JOBS: &str =
    "say (\"0 \" + builtins.toJSON { other = if flake ? hydraJobs || flake ? checks then \"jobs\" else \"none\"; })";

/// The line that evaluates these.
pub(super) fn go(ranges: &[Range]) -> String {
    let ranges: String = ranges.iter().map(Range::text).collect();
    format!("go [ {ranges}]")
}

/// What follows a line, by whose answers it is known that it is done: the first of these numbers, or the second alone if the
/// line came to the end of a file within an expression. Nix (2.8 and 2.26 alike) takes that, in whatever file it is, for a line of
/// ours that goes on, keeps silent and waits. `let` cannot go on in what we have said: it is a syntax error and ends the waiting.
pub(super) fn end(nonce: &str, number: u64) -> String {
    let line = |number| format!("let end = builtins.trace \"@{nonce} E {number}\" null; in end\n");
    format!("{}{}", line(2 * number), line(2 * number + 1))
}

/// A line from the process.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Heard<'a> {
    /// Of the attribute with this number in its set. It is the next one, unless an answer was lost.
    Told { number: u32, text: &'a str },
    /// The line with this number is done, or was cut short.
    End { number: u64, cut_short: bool },
    /// Nix's words.
    Words,
}

pub(super) fn hear<'a>(nonce: &str, line: &'a str) -> Heard<'a> {
    // What Nix starts, as git, may have written something without an end of line before it.
    let after = line.match_indices('@').find_map(|(at, _)| {
        let (_, after) = line.split_at(at + 1);
        after.strip_prefix(nonce)?.strip_prefix(' ')
    });
    match after.and_then(|after| after.split_once(' ')) {
        Some(("R", told)) => match told.split_once(' ').map(|(n, text)| (n.parse(), text)) {
            Some((Ok(number), text)) => Heard::Told { number, text },
            _ => Heard::Words,
        },
        Some(("E", number)) => match number.trim().parse::<u64>() {
            Ok(number) => Heard::End {
                number: number / 2,
                cut_short: number % 2 == 1,
            },
            Err(_) => Heard::Words,
        },
        _ => Heard::Words,
    }
}

/// What an attribute is.
#[derive(PartialEq, Debug)]
pub(super) enum Told {
    Job(Box<Found>),
    /// A set, with the names of its attributes.
    Names(Vec<String>),
    Null,
    /// Neither, in Nix's words: `an integer`.
    Other(String),
}

/// A derivation as told.
#[derive(PartialEq, Debug, Default)]
pub(super) struct Found {
    pub derivation: JobDerivation,
    pub named: Named,
}

/// Constituents that an aggregate knows by name.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Named {
    pub names: Vec<String>,
    /// The names are patterns.
    pub glob: bool,
}

/// Takes an answer apart.
///
/// # Errors
/// What is wrong with it, or with the job it tells of.
pub(super) fn told(text: &str) -> Result<Told, String> {
    let value: Value =
        serde_json::from_str(text).map_err(|error| format!("Nix's answer is no JSON: {error}"))?;
    if let Some(names) = value.get("names") {
        return Ok(Told::Names(strings(names)));
    }
    if let Some(other) = value.get("other").and_then(Value::as_str) {
        return Ok(match other {
            "null" => Told::Null,
            other => Told::Other(kind(other)),
        });
    }
    let job = value.get("job").ok_or("Nix's answer tells of nothing")?;
    Ok(Told::Job(Box::new(found(job)?)))
}

/// As Nix names types in its messages.
fn kind(word: &str) -> String {
    match word {
        "int" => "an integer",
        "bool" => "a Boolean",
        "string" => "a string",
        "context" => "a string with context",
        "path" => "a path",
        "list" => "a list",
        "lambda" => "a function",
        "float" => "a float",
        other => return other.to_owned(),
    }
    .to_owned()
}

fn found(job: &Value) -> Result<Found, String> {
    let text = |key: &str| job[key].as_str().unwrap_or_default().to_owned();
    let meta = |key: &str| &job["meta"][key];
    let meta_text = |key: &str| meta(key).as_str().unwrap_or_default().to_owned();
    let system = text("system");
    if system == "unknown" {
        return Err("derivation must have a 'system' attribute".to_owned());
    }
    let outputs = job["outputs"].as_object().into_iter().flatten();
    let outputs = outputs.map(|(name, path)| (name.clone(), path.as_str().map(str::to_owned)));
    let derivation = JobDerivation {
        nix_name: text("name"),
        system,
        drv_path: text("drv"),
        outputs: outputs.collect(),
        description: meta_text("description"),
        homepage: meta_text("homepage"),
        license: meta_text("license"),
        maintainers: meta_text("maintainers"),
        scheduling_priority: number(meta("schedulingPriority"), 100),
        timeout: number(meta("timeout"), 36_000),
        max_silent: number(meta("maxSilent"), 7_200),
        is_channel: is_true(meta("isHydraChannel")) || is_true(meta("isChannel")),
        constituents: strings(&job["constituents"]),
        is_aggregate: job.get("constituents").is_some(),
    };
    let named = Named {
        names: strings(&job["named"]),
        glob: job["glob"].as_bool().unwrap_or(false),
    };
    Ok(Found { derivation, named })
}

/// Numbers in strings count, as they do in Hydra.
pub(super) fn number(value: &Value, default: i32) -> i32 {
    let number = match value {
        Value::Number(number) => number.as_i64(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    let clamped = |n: i64| n.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32;
    number.map_or(default, clamped)
}

pub(super) fn is_true(value: &Value) -> bool {
    *value == Value::Bool(true) || value.as_str() == Some("true")
}

pub(super) fn strings(value: &Value) -> Vec<String> {
    let items = value.as_array().into_iter().flatten();
    items
        .filter_map(|item| item.as_str().map(str::to_owned))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> Set {
        Set {
            path: vec![3],
            prefix: "a.".to_owned(),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    #[test]
    fn every_binding_is_one_short_line() {
        let lines: Vec<String> = bindings().collect();
        assert!(lines.len() > 10, "{lines:?}");
        for line in lines {
            assert!(line.len() <= LINE_BYTES_MAX, "{} bytes: {line}", line.len());
            assert!(line.is_ascii() && !line.contains('\n'), "{line}");
            let (name, _) = line.split_once(" = ").expect("a binding");
            assert!(name.chars().all(char::is_alphanumeric), "{line}");
        }
    }

    #[test]
    fn a_range_leaves_out_what_cannot_be_a_job() {
        let mut skipped = Vec::new();
        let names = ["a", "b.c", "d", "e", "f g", "recurseForDerivations", "z"];
        let ranges = ranges(set(&names), &mut |name| skipped.push(name.to_owned()));
        let found: Vec<(u32, u32)> = ranges.iter().map(|r| (r.first, r.count)).collect();
        assert_eq!(found, [(0, 1), (2, 2), (6, 1)]);
        assert_eq!(skipped, ["a.b.c", "a.f g"]);
        assert_eq!(go(&ranges[..2]), "go [ [ [ 3 ] 0 1 ] [ [ 3 ] 2 2 ] ]");
        let below = ranges[1].enter(vec!["x".to_owned()], &mut |_| {});
        assert_eq!(below[0].text(), "[ [ 3 2 ] 0 1 ] ");
        assert_eq!(below[0].name(), "a.d.x");
    }

    #[test]
    fn only_lines_with_the_nonce_are_ours() {
        assert_eq!(
            hear("N1", "x@ytrace: @N1 R 7 {\"x\": 1}"),
            Heard::Told {
                number: 7,
                text: "{\"x\": 1}"
            }
        );
        assert_eq!(hear("N1", "trace: @N1 R {\"x\": 1}"), Heard::Words);
        let end = |number, cut_short| Heard::End { number, cut_short };
        assert_eq!(hear("N1", "trace: @N1 E 12"), end(6, false));
        assert_eq!(hear("N1", "trace: @N1 E 13"), end(6, true));
        assert_eq!(hear("N1", "trace: @N2 E 12"), Heard::Words);
        assert_eq!(hear("N1", "trace: @N1 E x"), Heard::Words);
        assert_eq!(hear("N1", "error: a @ b"), Heard::Words);
    }

    #[test]
    fn answers_are_taken_apart() {
        let job = r#"{"job":{"name":"x-1","system":"i686-linux","drv":"/s/x.drv","outputs":{"out":"/s/x","dev":null},
            "meta":{"description":"d","schedulingPriority":"7","timeout":99999999999,"isHydraChannel":"true"},
            "constituents":["/s/y.drv"],"named":["a*"],"glob":true}}"#;
        let Ok(Told::Job(found)) = told(job) else {
            panic!("a job")
        };
        let drv = &found.derivation;
        assert_eq!((drv.scheduling_priority, drv.max_silent), (7, 7_200));
        assert_eq!((drv.timeout, drv.is_channel), (i32::MAX, true));
        assert_eq!(drv.outputs["dev"], None);
        assert!(drv.is_aggregate && found.named.glob);
        assert_eq!(found.named.names, ["a*"]);
        assert_eq!(told(r#"{"other":"null"}"#), Ok(Told::Null));
        let other = told(r#"{"other":"lambda"}"#);
        assert_eq!(other, Ok(Told::Other("a function".to_owned())));
        for bad in ["", "{}", "[1]", r#"{"job":{"system":"unknown"}}"#] {
            assert!(told(bad).is_err(), "{bad}");
        }
    }
}
