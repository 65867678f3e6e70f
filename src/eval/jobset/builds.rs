//! Which builds an evaluation has: those of the evaluation before that are still what the jobs want, and new ones. Pure.

use std::collections::{BTreeMap, HashMap};

use crate::base::random::Random;
use crate::base::text;
use crate::db::evaluations::{Member, NewBuild};
use crate::eval::job::{Job, JobDerivation};

/// Bytes of a jobset's error at most; further jobs are counted.
const ERRORS_BYTES_MAX: usize = 4 << 20;
/// Bytes of a job's name: the indexes of `Builds` on `job` take rows of 2,704 bytes at most.
const NAME_BYTES_MAX: usize = 1_000;
/// Bytes of a longer one that its error shows.
const NAME_SHOWN_BYTES_MAX: usize = 100;
/// Bytes of each text of `meta` in a build's row.
const META_BYTES_MAX: usize = 64 << 10;

/// What becomes of a job.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Build {
    /// It is in [`Builds::new`], there.
    New(usize),
    /// That of the evaluation before.
    Old { id: i32, finished: bool },
}

/// The builds of an evaluation.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Builds<'a> {
    pub jobs: Vec<(&'a Job, &'a JobDerivation, Build)>,
    pub new: Vec<NewBuild>,
}

/// The jobs that can be built, in no order: builds are taken by their ids among equals, and no jobset's alphabet should rule that.
/// A job that has an error is not built, whatever else it has.
pub fn good(jobs: &[Job], seed: u64) -> Vec<&Job> {
    let good = |job: &&Job| job.error.is_none() && job.derivation.is_some();
    let mut jobs: Vec<&Job> = jobs.iter().filter(good).collect();
    let mut random = Random::new(seed);
    for at in (1..jobs.len()).rev() {
        let other = usize::try_from(random.below(at as u64 + 1)).unwrap_or(0);
        jobs.swap(at, other);
    }
    jobs
}

/// Compares jobs with the builds of the evaluation before.
///
/// Source: `checkBuild` of Hydra.
pub fn decide<'a>(members: &[Member], jobs: &[&'a Job]) -> Builds<'a> {
    let mut by_job: HashMap<&str, Vec<&Member>> = HashMap::new();
    for member in members {
        by_job.entry(&member.job).or_default().push(member);
    }
    let mut builds = Builds::default();
    for job in jobs {
        let Some(derivation) = &job.derivation else {
            continue;
        };
        // The newest, should there be several.
        let old = by_job
            .get(job.name.as_str())
            .and_then(|all| all.iter().rev().find(|member| serves(member, derivation)));
        let build = match old {
            Some(member) => Build::Old {
                id: member.id,
                finished: member.finished,
            },
            None => {
                builds.new.push(new_build(job, derivation));
                Build::New(builds.new.len() - 1)
            }
        };
        builds.jobs.push((job, derivation, build));
    }
    builds
}

/// Whether the job wants just what this build makes. The first output tells; where its path is not known before it is built,
/// the derivation.
///
/// A build that failed does not serve when the derivation is another one: the outputs may have the same paths, and yet what made
/// it fail, a server that is gone say, may be mended.
fn serves(member: &Member, derivation: &JobDerivation) -> bool {
    let same_derivation = member.drv_path == derivation.drv_path;
    match derivation.outputs.first_key_value() {
        Some((name, Some(path))) => {
            let same_output = member.outputs.get(name).and_then(Option::as_ref) == Some(path);
            let failed = member.finished && member.status != Some(0);
            same_output && (same_derivation || !failed)
        }
        _ => same_derivation,
    }
}

fn new_build(job: &Job, derivation: &JobDerivation) -> NewBuild {
    let some =
        |text: &String| (!text.is_empty()).then(|| text::clip(&column(text), META_BYTES_MAX));
    NewBuild {
        job: column(&job.name),
        nix_name: column(&derivation.nix_name),
        drv_path: derivation.drv_path.clone(),
        system: column(&derivation.system),
        outputs: derivation.outputs.clone(),
        description: some(&derivation.description),
        license: some(&derivation.license),
        homepage: some(&derivation.homepage),
        maintainers: some(&derivation.maintainers),
        max_silent: derivation.max_silent,
        timeout: derivation.timeout,
        priority: derivation.scheduling_priority,
        is_channel: derivation.is_channel,
    }
}

/// No text of PostgreSQL's has a NUL.
fn column(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// The members of aggregates, by build: aggregate and constituent. `ids` are those of the new builds. What is not a job of this
/// evaluation is passed to `missing`: the aggregate's name and the derivation.
///
/// A derivation of several jobs stands for the one with the shortest name, the first of those by the alphabet.
pub fn constituents(
    builds: &Builds<'_>,
    ids: &[i32],
    mut missing: impl FnMut(&str, &str),
) -> Vec<(i32, i32)> {
    let id = |build: Build| match build {
        Build::New(at) => ids[at],
        Build::Old { id, .. } => id,
    };
    let mut by_drv: HashMap<&str, (usize, &str, i32)> = HashMap::new();
    for (job, derivation, build) in &builds.jobs {
        let this = (job.name.len(), job.name.as_str(), id(*build));
        by_drv
            .entry(&derivation.drv_path)
            .and_modify(|known| *known = this.min(*known))
            .or_insert(this);
    }
    let mut pairs = Vec::new();
    for (job, derivation, build) in &builds.jobs {
        for drv in &derivation.constituents {
            match by_drv.get(drv.as_str()) {
                Some((_, _, constituent)) => pairs.push((id(*build), *constituent)),
                None => missing(&job.name, drv),
            }
        }
    }
    pairs
}

/// Before schema 84 no row can say that the path of an output is not known before it is built.
pub fn refuse_unknown_paths(job: &mut Job) {
    let unknown = |derivation: &JobDerivation| derivation.outputs.values().any(Option::is_none);
    if job.error.is_none() && job.derivation.as_ref().is_some_and(unknown) {
        job.error = Some(
            "the paths of its outputs are known only after the build (a content-addressed derivation), which Hydra's tables can hold \
             from version 84 on; see `hydrad init --upgrade-to`"
                .to_owned(),
        );
    }
}

/// A name that no index takes would fail the evaluation as a whole.
pub fn refuse_long_name(job: &mut Job) {
    if job.error.is_none() && job.name.len() > NAME_BYTES_MAX {
        job.error = Some(format!(
            "the name of this job has {} bytes; Hydra's tables take {NAME_BYTES_MAX} at most",
            job.name.len()
        ));
    }
}

/// What is wrong with jobs, as the web server shows it; empty if nothing is.
pub fn errors(jobs: &[Job]) -> String {
    let wrong: BTreeMap<&str, &str> = jobs
        .iter()
        .filter_map(|job| Some((job.name.as_str(), job.error.as_deref()?)))
        .collect();
    let mut all = String::new();
    for (at, (name, error)) in wrong.iter().enumerate() {
        if all.len() > ERRORS_BYTES_MAX {
            all.push_str(&format!("({} more jobs have errors)\n", wrong.len() - at));
            break;
        }
        all.push_str(&in_job(name, error));
    }
    all
}

/// The error of one job, or of the whole expression.
pub fn in_job(name: &str, error: &str) -> String {
    let error = text::plain(error);
    let shown_bytes_max = match name.len() > NAME_BYTES_MAX {
        true => NAME_SHOWN_BYTES_MAX,
        false => usize::MAX,
    };
    match name {
        "" => format!("at top-level:\n{error}\n\n"),
        name => {
            let name = text::clip(&text::plain(name), shown_bytes_max);
            format!("in job ‘{name}’:\n{error}\n\n")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(name: &str, drv: &str, output: Option<&str>) -> Job {
        Job {
            name: name.to_owned(),
            derivation: Some(JobDerivation {
                drv_path: drv.to_owned(),
                outputs: BTreeMap::from([
                    ("dev".to_owned(), output.map(|path| format!("{path}-dev"))),
                    ("out".to_owned(), output.map(str::to_owned)),
                ]),
                ..JobDerivation::default()
            }),
            error: None,
        }
    }

    fn member(id: i32, job: &Job, status: Option<i32>) -> Member {
        let derivation = job.derivation.as_ref().expect("a derivation");
        Member {
            id,
            job: job.name.clone(),
            drv_path: derivation.drv_path.clone(),
            finished: status.is_some(),
            status,
            outputs: derivation.outputs.clone(),
        }
    }

    /// What becomes of `now` if the evaluation before had `before`, which ended like this.
    fn check(before: &Job, status: Option<i32>, now: &Job) -> Build {
        decide(&[member(7, before, status)], &[now]).jobs[0].2
    }

    #[test]
    fn builds_are_taken_over_by_name_and_first_output() {
        let a = job("a", "/d1", Some("/o1"));
        let old = |finished| Build::Old { id: 7, finished };
        assert_eq!(check(&a, None, &a), old(false));
        assert_eq!(check(&a, Some(1), &a), old(true));
        assert_eq!(
            check(&a, None, &job("b", "/d1", Some("/o1"))),
            Build::New(0)
        );
        assert_eq!(
            check(&a, None, &job("a", "/d1", Some("/o2"))),
            Build::New(0)
        );
        // The same outputs from another derivation: unless that failed.
        let other = job("a", "/d2", Some("/o1"));
        assert_eq!(check(&a, None, &other), old(false));
        assert_eq!(check(&a, Some(0), &other), old(true));
        assert_eq!(check(&a, Some(1), &other), Build::New(0));
        // Where no path is known the derivation counts.
        let floating = job("a", "/d1", None);
        assert_eq!(check(&floating, None, &floating), old(false));
        assert_eq!(
            check(&floating, Some(0), &job("a", "/d2", None)),
            Build::New(0)
        );
        // Once it was built, its row has paths.
        assert_eq!(check(&a, Some(0), &floating), old(true));
    }

    #[test]
    fn constituents_are_the_jobs_with_the_shortest_names() {
        let mut aggregate = job("all", "/d0", Some("/o0"));
        let derivation = aggregate.derivation.as_mut().expect("a derivation");
        derivation.constituents = vec!["/d1".to_owned(), "/d2".to_owned(), "/d9".to_owned()];
        let jobs = [
            aggregate,
            job("longer", "/d1", Some("/o1")),
            job("bb", "/d1", Some("/o1")),
            job("aa", "/d1", Some("/o1")),
            job("c", "/d2", Some("/o2")),
        ];
        let jobs: Vec<&Job> = jobs.iter().collect();
        let builds = decide(&[member(3, jobs[4], Some(0))], &jobs);
        let mut missing = Vec::new();
        let pairs = constituents(&builds, &[10, 11, 12, 13], |job, drv| {
            missing.push(format!("{job} {drv}"));
        });
        assert_eq!(pairs, [(10, 13), (10, 3)]);
        assert_eq!(missing, ["all /d9"]);
    }

    #[test]
    fn errors_are_told_by_job_and_have_an_end() {
        let wrong = |name: &str, error: &str| Job {
            name: name.to_owned(),
            derivation: None,
            error: Some(error.to_owned()),
        };
        let jobs = [
            wrong("b", "\u{1b}[31mno\u{1b}[0m"),
            wrong("a", "yes"),
            job("c", "/d", None),
        ];
        assert_eq!(errors(&jobs), "in job ‘a’:\nyes\n\nin job ‘b’:\nno\n\n");
        assert_eq!(errors(&jobs[2..]), "");
        let long = "x".repeat(1 << 20);
        let many: Vec<Job> = (0..9).map(|n| wrong(&n.to_string(), &long)).collect();
        let text = errors(&many);
        assert!(
            text.ends_with("(5 more jobs have errors)\n"),
            "{}",
            text.len()
        );
    }

    #[test]
    fn a_name_that_no_row_takes_is_an_error_of_its_job_alone() {
        let mut jobs = [
            job(&"n".repeat(NAME_BYTES_MAX), "/d1", None),
            job(&"ü".repeat(NAME_BYTES_MAX), "/d2", None),
        ];
        jobs.iter_mut().for_each(refuse_long_name);
        assert_eq!(good(&jobs, 1), [&jobs[0]]);
        let shown = "ü".repeat(48);
        let words = "the name of this job has 2000 bytes; Hydra's tables take 1000 at most";
        assert_eq!(errors(&jobs), format!("in job ‘{shown}...’:\n{words}\n\n"));
    }

    #[test]
    fn texts_of_meta_have_a_bound() {
        let mut long = job("a", "/d", None);
        let derivation = long.derivation.as_mut().expect("a derivation");
        derivation.description = "ü\0".repeat(META_BYTES_MAX);
        derivation.homepage = "h".repeat(META_BYTES_MAX);
        let builds = decide(&[], &[&long]);
        let length = |text: &Option<String>| text.as_ref().map(String::len);
        let description = length(&builds.new[0].description);
        assert!(description.is_some_and(|bytes| bytes > META_BYTES_MAX - 10));
        assert!(description <= Some(META_BYTES_MAX));
        assert_eq!(length(&builds.new[0].homepage), Some(META_BYTES_MAX));
        assert_eq!(builds.new[0].license, None);
    }

    #[test]
    fn all_good_jobs_are_there_in_some_order() {
        let mut jobs: Vec<Job> = (0..100)
            .map(|n| job(&n.to_string(), "/d", Some("/o")))
            .collect();
        jobs[17].error = Some("an aggregate whose member is missing".to_owned());
        let mut names: Vec<&str> = good(&jobs, 4).iter().map(|job| job.name.as_str()).collect();
        let before = names.clone();
        names.sort_unstable_by_key(|name| name.parse::<u32>().expect("a number"));
        assert_ne!(names, before);
        assert_eq!(names.len(), 99);
        assert!(!names.contains(&"17"));
    }
}
