//! RunCommand: commands that run when a build has finished, with a JSON document about it.
//!
//! As in Hydra: a command that fails is told in the log and in RunCommandLogs, and is not run again; the document's path is in
//! HYDRA_JSON; the command's words go to a file under `runcommand-logs/`. Beyond Hydra: a deadline, at which the command's
//! process group is ended.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::{Call, Failure, Needs, Plugin};
use crate::config::notify::RunCommand as Block;
use crate::db::facts::{self, BuildFacts, CommandEnd, Results};
use crate::notify::document;
use crate::notify::event::Event;
use crate::sys::child::{self, plain_error};
use crate::sys::clock::unix_now;

/// What makes Perl's `system` call a shell instead of the program itself.
const SHELL_CHARACTERS: &str = "$&*(){}[]'\";\\|?<>~`\n";

pub struct RunCommand {
    blocks: Vec<Block>,
    /// For how long outputs that are run may; `None`: none is run.
    dynamic: Option<Duration>,
}

/// A command to be run.
struct Run {
    /// As it goes into RunCommandLogs.
    matcher: String,
    text: String,
    command: Command,
    time_max: Duration,
}

impl RunCommand {
    pub fn new(blocks: Vec<Block>, dynamic: Option<Duration>) -> RunCommand {
        RunCommand { blocks, dynamic }
    }

    /// The output of a build that is itself a command, if everybody lets it be run.
    fn dynamic(
        &self,
        call: &Call<'_>,
        build: &BuildFacts,
        results: &Results,
    ) -> Result<Option<Run>, Failure> {
        let is_hook = build
            .job
            .strip_prefix(HOOK)
            .is_some_and(|name| !name.is_empty());
        let (Some(time_max), true, Some(0)) = (self.dynamic, is_hook, build.status) else {
            return Ok(None);
        };
        let no = |why: &str| {
            log::warn!(
                "the output of build {} ({}) is not run: {why}",
                build.id,
                build.job_name()
            );
            Ok(None)
        };
        match facts::dynamic_allowed(&mut *call.conn()?, build.id)? {
            (true, true) => {}
            (false, _) => return no("its jobset does not enable dynamic RunCommand"),
            (true, false) => return no("its project does not enable dynamic RunCommand"),
        }
        let out = results.outputs.iter().find(|(name, _)| name == "out");
        let Some(out) = out.and_then(|(_, path)| path.as_deref()) else {
            return no("it has no output `out`");
        };
        if let Err(why) = runnable(Path::new(out)) {
            return no(&why);
        }
        Ok(Some(Run {
            matcher: format!("DynamicRunCommand({})", build.job),
            text: out.to_owned(),
            command: Command::new(out),
            time_max,
        }))
    }
}

/// Jobs of this name are commands.
const HOOK: &str = "runCommandHook.";

/// Whether an output is a program: an executable file, or a link to one.
fn runnable(out: &Path) -> Result<(), String> {
    let look = |path: &Path| {
        fs::symlink_metadata(path)
            .map_err(|error| format!("{}: {}", path.display(), plain_error(&error)))
    };
    let mut found = look(out)?;
    let mut path = out.to_owned();
    if found.is_symlink() {
        let target = fs::read_link(out).map_err(|error| plain_error(&error))?;
        path = out.parent().unwrap_or(out).join(target);
        found = look(&path)?;
    }
    let path = path.display();
    if !found.is_file() {
        return Err(format!("{path} is not a file"));
    }
    match found.permissions().mode() & 0o111 {
        0 => Err(format!("{path} is not executable")),
        _ => Ok(()),
    }
}

impl Plugin for RunCommand {
    fn target(&self) -> &str {
        "RunCommand"
    }

    fn class(&self) -> Option<&'static str> {
        Some("Hydra::Plugin::RunCommand")
    }

    fn channels(&self) -> &[&'static str] {
        &["build_finished"]
    }

    fn needs(&self) -> Needs<'_> {
        Needs {
            folders: vec!["runcommand-logs"],
            ..Needs::default()
        }
    }

    fn deliver(&self, call: &Call<'_>) -> Result<(), Failure> {
        let Event::BuildFinished { build, .. } = call.event else {
            return Ok(());
        };
        let Some(build) = call.build(*build)? else {
            return Ok(());
        };
        let blocks = self
            .blocks
            .iter()
            .filter(|block| block.events.iter().any(|event| event == "buildFinished"))
            .filter(|block| matches(&block.job, &build));
        let mut commands: Vec<Run> = blocks
            .map(|block| Run {
                matcher: block.job.clone(),
                text: block.command.clone(),
                command: command(&block.command),
                time_max: block.time_max,
            })
            .collect();
        let may_be_dynamic = self.dynamic.is_some() && build.job.starts_with(HOOK);
        if commands.is_empty() && !may_be_dynamic {
            return Ok(());
        }
        let results = call.results(build.id)?;
        commands.extend(self.dynamic(call, &build, &results)?);
        if commands.is_empty() {
            return Ok(());
        }
        let document = document::build_finished(&build, &results);
        let file = JsonFile::write(&document.to_string()).map_err(|error| {
            Failure::again(format!(
                "cannot write the JSON file: {}",
                plain_error(&error)
            ))
        })?;
        for command in commands {
            run(call, command, &build, &file.0)?;
        }
        Ok(())
    }
}

/// Whether a block's `job` names the build's job: sections are whole names or `*`, missing ones are `*`.
fn matches(matcher: &str, build: &BuildFacts) -> bool {
    let mut sections = matcher.split(':');
    [&build.project, &build.jobset, &build.job]
        .iter()
        .all(|name| match sections.next() {
            None | Some("*" | "") => true,
            Some(section) => section == name.as_str(),
        })
}

/// The document, readable by this user alone, gone when dropped.
struct JsonFile(PathBuf);

impl JsonFile {
    fn write(text: &str) -> std::io::Result<JsonFile> {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NEXT: AtomicU64 = AtomicU64::new(0);
        loop {
            let name = format!(
                "hydrad-{}-{}-{}.json",
                std::process::id(),
                unix_now(),
                NEXT.fetch_add(1, Ordering::Relaxed)
            );
            let path = std::env::temp_dir().join(name);
            let opened = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path);
            match opened {
                Ok(mut file) => {
                    let made = JsonFile(path);
                    file.write_all(text.as_bytes())?;
                    return Ok(made);
                }
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Drop for JsonFile {
    fn drop(&mut self) {
        // What cannot be removed is a small file in the folder of temporary ones.
        let _ = fs::remove_file(&self.0);
    }
}

fn run(call: &Call<'_>, run: Run, build: &BuildFacts, json: &Path) -> Result<(), Failure> {
    let Run {
        matcher,
        text,
        mut command,
        time_max,
    } = run;
    let (id, uuid) =
        facts::begin_command(&mut *call.conn()?, &matcher, build.id, &text, unix_now())?;
    let log = log_file(&call.around.data_dir, &uuid).map_err(|error| {
        Failure::again(format!(
            "cannot make the log of a command: {}",
            plain_error(&error)
        ))
    })?;
    command.env("HYDRA_JSON", json);
    let ended = child::run_logged(&mut command, &log, time_max, call.stopping);
    let (end, words) = match ended {
        Err(error) => (
            CommandEnd {
                error_number: Some(error.raw_os_error().unwrap_or(libc::EIO)),
                ..CommandEnd::default()
            },
            Some(format!("could not be started: {}", plain_error(&error))),
        ),
        Ok(ended) => {
            let status = ended.status;
            let end = CommandEnd {
                error_number: None,
                exit_code: status.and_then(|status| status.code()),
                signal: status.and_then(|status| status.signal()),
                core_dumped: status.and_then(|s| s.signal().map(|_| s.core_dumped())),
            };
            let words = match (status, ended.late) {
                (_, true) => Some(format!("was ended after {} s", time_max.as_secs())),
                (Some(status), false) if status.success() => None,
                (Some(status), false) => {
                    Some(format!("failed with {}", child::describe_status(status)))
                }
                (None, false) => Some("does not end".to_owned()),
            };
            (end, words)
        }
    };
    if let Some(words) = words {
        log::warn!(
            "notification command '{text}' about build {} {words}",
            build.id
        );
    }
    facts::end_command(&mut *call.conn()?, id, end, unix_now())?;
    Ok(())
}

/// `$HYDRA_DATA/runcommand-logs/12/1234...`, for this user's group to read.
fn log_file(data_dir: &Path, uuid: &str) -> std::io::Result<File> {
    let dir = data_dir.join("runcommand-logs").join(&uuid[..2]);
    DirBuilder::new().recursive(true).mode(0o750).create(&dir)?;
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o640)
        .open(dir.join(uuid))
}

/// As Perl's `system` would start it.
fn command(text: &str) -> Command {
    let words: Vec<&str> = text.split_whitespace().collect();
    match words.split_first() {
        Some((program, arguments))
            if !text.contains(|c| SHELL_CHARACTERS.contains(c)) && !program.contains('=') =>
        {
            let mut command = Command::new(program);
            command.args(arguments);
            command
        }
        _ => {
            let mut command = Command::new("/bin/sh");
            command.arg("-c").arg(text);
            command
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_are_whole_names_or_stars() {
        let build = BuildFacts {
            project: "p".into(),
            jobset: "s".into(),
            job: "j".into(),
            ..BuildFacts::default()
        };
        for matcher in ["*:*:*", "", "p", "p:s", "p:s:j", "*:*:j", "*:s", "p:*"] {
            assert!(matches(matcher, &build), "{matcher}");
        }
        for matcher in ["x", "p:x", "p:s:x", "p:s:j*", "*:*:x"] {
            assert!(!matches(matcher, &build), "{matcher}");
        }
    }
}
