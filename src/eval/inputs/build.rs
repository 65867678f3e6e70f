//! `build`: the newest success of a job, or a build by its number. `sysbuild`: the newest success of a job, one for each system;
//! since an input has one value, there may be one system alone.

use std::process::Command;
use std::sync::LazyLock;

use regex::Regex;

use super::task::{Task, Trouble};
use super::value::{plain, wrong};
use crate::db::input_builds::{self, InputBuild, WantedJob};
use crate::eval::input::FetchedInput;
use crate::model::ids::BuildId;

/// `[[PROJECT:]JOBSET:]JOB [NAME = "VALUE" ...]`; the attributes are in brackets.
static JOB: LazyLock<Regex> = LazyLock::new(|| {
    let name = "[A-Za-z_][A-Za-z0-9-_.]*";
    let attribute = r#"[A-Za-z_][A-Za-z0-9-_]*\s*=\s*"[^"]*""#;
    Regex::new(&format!(
        r#"^(?:(?:({name}):)?(\.?{name}):)?({name})\s*(?:\[\s*((?:{attribute}\s*)*)\])?$"#
    ))
    .expect("BUG: a pattern of our own")
});
static ATTRIBUTE: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r#"([A-Za-z_][A-Za-z0-9-_]*)\s*=\s*"([^"]*)""#).expect("BUG: a pattern of our own")
});
/// A package's name ends before the first dash that a digit follows.
static VERSION: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new("^(?:[A-Za-z0-9]|-[^0-9])+-([A-Za-z0-9.-]+)$").expect("BUG: a pattern of our own")
});

/// A job as a value names it; what it leaves out is that of the jobset.
fn wanted_job<'a>(task: &Task<'a>) -> Result<WantedJob<'a>, Trouble> {
    let value = task.spec.value.trim();
    plain(value)?;
    let Some(parts) = JOB.captures(value) else {
        return Err(wrong(format!(
            "`{value}`: expected `[[PROJECT:]JOBSET:]JOB [NAME = \"VALUE\" ...]`, the attributes in brackets"
        )));
    };
    let part = |n: usize| parts.get(n).map(|found| found.as_str());
    let attributes = ATTRIBUTE
        .captures_iter(part(4).unwrap_or_default())
        .map(|one| (one[1].to_owned(), one[2].to_owned()))
        .collect();
    Ok(WantedJob {
        project: part(1).unwrap_or(task.project),
        jobset: part(2).unwrap_or(task.jobset),
        job: part(3).unwrap_or_default(),
        attributes,
    })
}

pub fn fetch(task: &Task<'_>) -> Result<Option<FetchedInput>, Trouble> {
    let value = task.spec.value.trim();
    let build = if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        let id = value
            .parse()
            .map_err(|_| wrong(format!("{value} is no number of a build")))?;
        input_builds::by_id(&mut *task.conn()?, id)?
    } else {
        let wanted = wanted_job(task)?;
        input_builds::newest(&mut *task.conn()?, &wanted)?
    };
    match build {
        Some(build) => fetched(task, &build),
        None => Ok(None),
    }
}

pub fn fetch_by_system(task: &Task<'_>) -> Result<Option<FetchedInput>, Trouble> {
    let wanted = wanted_job(task)?;
    if !wanted.attributes.is_empty() {
        return Err(wrong(
            "attributes in brackets are for inputs of type `build`",
        ));
    }
    let builds = input_builds::newest_by_system(&mut *task.conn()?, &wanted)?;
    let mut there = Vec::new();
    for build in &builds {
        there.extend(fetched(task, build)?);
    }
    match there.len() {
        0 | 1 => Ok(there.pop()),
        count => Err(Trouble::Failed(format!(
            "the job has builds for {count} systems, and multiple jobset input alternatives are no longer supported"
        ))),
    }
}

/// The main output, if it is in the local store or can be fetched.
fn fetched(task: &Task<'_>, build: &InputBuild) -> Result<Option<FetchedInput>, Trouble> {
    let Some((output, Some(path))) = &build.output else {
        return Ok(None);
    };
    let there = task.hold(path)? || (substitute(task, path)? && task.hold(path)?);
    if !there {
        log::info!(
            "({}:{}) build {} is no input {}: its output {path} is not in the store",
            task.project,
            task.jobset,
            build.id,
            task.spec.name
        );
        return Ok(None);
    }
    let name = build.release_name.as_deref().or(build.nix_name.as_deref());
    let version = name.and_then(|name| Some(VERSION.captures(name)?[1].to_owned()));
    let drv_valid = task.hold(&build.drv_path)?;
    Ok(Some(FetchedInput {
        store_path: Some(path.clone()),
        dependency: Some(BuildId(build.id)),
        version,
        output_name: Some(output.clone()),
        drv_path: drv_valid.then(|| build.drv_path.clone()),
        ..task.bare()
    }))
}

/// Fetches a path from `eval_substituter`, if that is set; whether it worked.
fn substitute(task: &Task<'_>, path: &str) -> Result<bool, Trouble> {
    let Some(from) = &task.fetcher.settings.eval_substituter else {
        return Ok(false);
    };
    let mut command: Command = task.program("nix");
    command.args(["--extra-experimental-features", "nix-command"]);
    command.args(["copy", "--from", from, "--", path]);
    match task.run(&mut command, task.time_max()) {
        Ok(_) => Ok(true),
        // As in Hydra: a build that cannot be had is one that is not there. But it is said.
        Err(Trouble::Failed(what)) => {
            log::warn!(
                "({}:{}) input {}: {what}",
                task.project,
                task.jobset,
                task.spec.name
            );
            Ok(false)
        }
        Err(other) => Err(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_and_jobs() {
        let version = |name: &str| Some(VERSION.captures(name)?[1].to_owned());
        assert_eq!(version("hello-2.10").as_deref(), Some("2.10"));
        assert_eq!(version("foo-bar-1.0-rc1").as_deref(), Some("1.0-rc1"));
        assert_eq!(version("hello"), None);
        for good in ["tarball", "trunk:tarball", "p:.jobsets:job", "a.b-c"] {
            assert!(JOB.is_match(good), "{good}");
        }
        let parts = JOB
            .captures(r#"nixpkgs:trunk:tarball [ system = "x y" a="1" ]"#)
            .expect("a job");
        assert_eq!(&parts[1], "nixpkgs");
        assert_eq!(ATTRIBUTE.captures_iter(&parts[4]).count(), 2);
        for bad in ["", "a:b:c:d", "a b", "a [b]", "$(x)"] {
            assert!(!JOB.is_match(bad), "{bad}");
        }
    }
}
