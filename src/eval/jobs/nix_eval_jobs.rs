//! The other evaluator: the program nix-eval-jobs, led as Hydra does since 2024. It prints one object a line.
//!
//! It isolates less than our own: a job at which one of its workers dies ends the whole evaluation, and no job has a time limit.

use std::io::{BufRead, BufReader};
use std::process::{ChildStderr, ChildStdout, Command};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::protocol::{is_true, number, strings};
use super::{options, search_entry, EvalError, Progress, Request, Summary};
use crate::base::lock::lock;
use crate::base::text;
use crate::eval::harmless::with_harmless_git;
use crate::eval::job::{Argument, Job, JobDerivation, Source};
use crate::sys::child::{self, describe_status, plain_error};

const PROGRAM: &str = "nix-eval-jobs";
/// What is a flake's jobset, as Hydra chooses it.
const SELECT: &str = "flake: flake.outputs.hydraJobs or flake.outputs.checks or \
    (throw \"flake '${flake.outPath}' does not provide any Hydra jobs or checks\")";
/// How often progress is told.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);
/// Bytes of its words that are kept for the error, the last ones.
const WORDS_BYTES_MAX: usize = 32 << 10;

pub(super) fn evaluate(
    request: &Request<'_>,
    take: &mut dyn FnMut(Job),
    progress: &dyn Fn(&Progress),
) -> Result<Summary, EvalError> {
    let mut command = command(request);
    let (mut child, stdout, stderr) =
        child::spawn_read(&mut command).map_err(|error| EvalError::Start {
            program: PROGRAM.to_owned(),
            why: plain_error(&error),
        })?;
    let mut now = Progress {
        workers: request.settings.workers,
        ..Progress::default()
    };
    progress(&now);
    let words = Mutex::new(String::new());
    std::thread::scope(|scope| {
        scope.spawn(|| listen(stderr, &words));
        read(stdout, &mut now, take, progress);
    });
    // It has closed its output, so it is about to end.
    let status = child.end(Duration::from_secs(60));
    match status {
        Some(status) if status.success() => {}
        status => {
            let how = status.map_or_else(|| "nothing".to_owned(), describe_status);
            let words = text::plain(&lock(&words)).trim().to_owned();
            return Err(EvalError::Program {
                program: PROGRAM,
                how,
                words,
            });
        }
    }
    now.workers = 0;
    progress(&now);
    Ok(Summary {
        jobs: now.evaluated,
        failed: now.failed,
        ..Summary::default()
    })
}

fn command(request: &Request<'_>) -> Command {
    let settings = &request.settings;
    let mut command = Command::new(PROGRAM);
    with_harmless_git(command.env_remove("NIX_PATH"));
    if let Some(heap) = &settings.initial_heap_size {
        command.env("GC_INITIAL_HEAP_SIZE", heap);
    }
    for (name, value) in options(request, request.is_restricted()) {
        command.args(["--option", &name, &value]);
    }
    command.args(["--option", "eval-cache", "false"]);
    match &request.source {
        Source::Flake { locked } => {
            command.args(["--flake", locked, "--select", SELECT]);
            if !request.is_pure() {
                command.arg("--impure");
            }
        }
        Source::Legacy {
            file,
            search,
            arguments,
        } => {
            let on_path = !file.starts_with('/') && !file.contains("://");
            match on_path {
                true => command.arg(format!("<{file}>")),
                false => command.arg(file),
            };
            for (name, path) in search {
                command.args(["-I", &search_entry(name, path)]);
            }
            for (name, argument) in arguments {
                match argument {
                    Argument::String(text) => command.args(["--argstr", name, text]),
                    Argument::Expression(text) => command.args(["--arg", name, text]),
                };
            }
        }
    }
    if let Some(dir) = request.gc_roots_dir.as_ref().filter(|_| !request.dry_run) {
        command.arg("--gc-roots-dir").arg(dir);
    }
    command.args(["--meta", "--constituents", "--force-recurse"]);
    command.args(["--workers", &settings.workers.to_string()]);
    let mebibytes = settings.memory_max_bytes >> 20;
    command.args(["--max-memory-size", &mebibytes.to_string()]);
    command
}

fn read(
    stdout: ChildStdout,
    now: &mut Progress,
    take: &mut dyn FnMut(Job),
    progress: &dyn Fn(&Progress),
) {
    let mut told = Instant::now();
    for line in BufReader::new(stdout).split(b'\n') {
        let line = match line {
            Ok(line) => line,
            Err(error) => {
                log::warn!("cannot read what {PROGRAM} prints: {}", plain_error(&error));
                return;
            }
        };
        if line.is_empty() {
            continue;
        }
        match job(&line) {
            Ok(Some(job)) => {
                now.found += 1;
                now.evaluated += 1;
                now.failed += u64::from(job.error.is_some());
                take(job);
            }
            Ok(None) => {}
            Err(why) => {
                let line = text::presentable(&line, 500);
                log::warn!("a line of {PROGRAM} is left out, since {why}: {line}");
            }
        }
        if told.elapsed() >= PROGRESS_EVERY {
            told = Instant::now();
            progress(now);
        }
    }
}

/// Its words go to the log; the last of them are kept for an error.
fn listen(stderr: ChildStderr, words: &Mutex<String>) {
    for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
        let line = text::presentable(&line, WORDS_BYTES_MAX / 2);
        log::info!("{line}");
        let mut words = lock(words);
        words.push_str(&line);
        words.push('\n');
        if words.len() > WORDS_BYTES_MAX {
            let mut from = words.len() - WORDS_BYTES_MAX / 2;
            while !words.is_char_boundary(from) {
                from += 1;
            }
            words.drain(..from);
        }
    }
}

/// A line as a job; `None` if a job cannot have its name.
fn job(line: &[u8]) -> Result<Option<Job>, String> {
    let value: Value = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    let path = match value["attrPath"].is_array() {
        true => strings(&value["attrPath"]),
        false => return Err("it has no attrPath".to_owned()),
    };
    let name = path.join(".");
    if path.iter().any(|part| part.contains(['.', ' '])) {
        super::skip(&name);
        return Ok(None);
    }
    let error = value["error"].as_str().map(text::plain);
    let derivation = match value["drvPath"].as_str() {
        Some(drv_path) => Some(derivation(&value, drv_path)),
        None if error.is_some() => None,
        None => return Err("it has neither drvPath nor error".to_owned()),
    };
    Ok(Some(Job {
        name,
        derivation,
        error,
    }))
}

fn derivation(value: &Value, drv_path: &str) -> JobDerivation {
    let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let meta = |key: &str| &value["meta"][key];
    let outputs = value["outputs"].as_object().into_iter().flatten();
    let constituents = strings(&value["constituents"]);
    let is_aggregate = !constituents.is_empty() || !strings(&value["namedConstituents"]).is_empty();
    JobDerivation {
        nix_name: text("name"),
        system: text("system"),
        drv_path: drv_path.to_owned(),
        outputs: outputs
            .map(|(name, path)| (name.clone(), path.as_str().map(str::to_owned)))
            .collect(),
        description: meta("description").as_str().unwrap_or_default().to_owned(),
        homepage: meta("homepage").as_str().unwrap_or_default().to_owned(),
        license: texts(meta("license"), "shortName").join(", "),
        maintainers: texts(meta("maintainers"), "email").join(", "),
        scheduling_priority: number(meta("schedulingPriority"), 100),
        timeout: number(meta("timeout"), 36_000),
        max_silent: number(meta("maxSilent"), 7_200),
        is_channel: is_true(meta("isHydraChannel")) || is_true(meta("isChannel")),
        constituents,
        is_aggregate,
    }
}

/// All strings in a value; of objects this key's.
fn texts(value: &Value, key: &str) -> Vec<String> {
    match value {
        Value::String(text) => vec![text.clone()],
        Value::Array(items) => items.iter().flat_map(|item| texts(item, key)).collect(),
        Value::Object(object) => {
            let text = object.get(key).and_then(Value::as_str);
            text.map(str::to_owned).into_iter().collect()
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_job() {
        let line = br#"{"attr":"a.b","attrPath":["a","b"],"name":"b-1","system":"x86_64-linux","drvPath":"/nix/store/x.drv",
            "outputs":{"out":"/nix/store/o","ca":null},"meta":{"license":[{"shortName":"mit"},"gpl"],"maintainers":{"email":"e"},
            "maxSilent":5,"isChannel":true},"constituents":[],"namedConstituents":["c"],"globConstituents":false}"#;
        let job = job(line).expect("a job").expect("a legal name");
        let drv = job.derivation.expect("a derivation");
        assert_eq!((job.name.as_str(), job.error), ("a.b", None));
        assert_eq!(
            (drv.license.as_str(), drv.maintainers.as_str()),
            ("mit, gpl", "e")
        );
        assert_eq!((drv.max_silent, drv.timeout), (5, 36_000));
        assert!(drv.is_channel && drv.is_aggregate);
        assert_eq!(drv.outputs["ca"], None);
    }

    #[test]
    fn what_is_no_job_says_why() {
        let error = br#"{"attrPath":[],"attr":"","error":"\u001b[31merror:\u001b[0m x"}"#;
        let top = job(error).expect("a job").expect("a legal name");
        assert_eq!(top.error.as_deref(), Some("error: x"));
        assert!(matches!(
            job(br#"{"attrPath":["a b"],"error":"x"}"#),
            Ok(None)
        ));
        for bad in [&b"{"[..], b"[]", b"3", br#"{"attrPath":["a"]}"#] {
            assert!(job(bad).is_err());
        }
    }
}
