//! What became of the jobs from one evaluation to another: pure, by job and system, as Hydra's page of an evaluation parts
//! them.
//!
//! Beyond Hydra: a job that is gone because it cannot be evaluated any more is told apart from one that is no longer there.

use std::collections::{BTreeMap, BTreeSet};

use crate::db::results::Job;

/// A job in one of the two evaluations, or both.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pair<'a> {
    pub now: Option<&'a Job>,
    pub before: Option<&'a Job>,
}

impl<'a> Pair<'a> {
    /// Either of them, for the name and system.
    pub fn any(&self) -> Option<&'a Job> {
        self.now.or(self.before)
    }
}

/// Each list by job and system.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Comparison<'a> {
    /// They succeeded and fail now.
    pub newly_broken: Vec<Pair<'a>>,
    /// They were there and cannot be evaluated now.
    pub not_evaluated: Vec<Pair<'a>>,
    /// They failed and succeed now.
    pub newly_fixed: Vec<Pair<'a>>,
    pub still_failing: Vec<Pair<'a>>,
    pub still_succeeding: usize,
    /// They were not there, and have not been aborted.
    pub added: Vec<Pair<'a>>,
    pub removed: Vec<Pair<'a>>,
    /// One of the two has not ended.
    pub unfinished: Vec<Pair<'a>>,
    /// They were aborted or cancelled, so nothing is known of them.
    pub aborted: Vec<Pair<'a>>,
}

impl Comparison<'_> {
    /// Whether something is worse than it was.
    pub fn is_worse(&self) -> bool {
        !self.newly_broken.is_empty() || !self.not_evaluated.is_empty()
    }
}

const ABORTED: [i32; 2] = [3, 4];

/// Compares the jobs of an evaluation with those of one before; `errors` is what could not be evaluated, as Hydra words it.
pub fn compare<'a>(now: &'a [Job], before: &'a [Job], errors: &str) -> Comparison<'a> {
    type Key<'a> = (&'a str, &'a str);
    let mut pairs: BTreeMap<Key<'a>, Pair<'a>> = BTreeMap::new();
    let none = Pair {
        now: None,
        before: None,
    };
    for job in before {
        let key = (job.job.as_str(), job.system.as_str());
        pairs.entry(key).or_insert(none).before = Some(job);
    }
    for job in now {
        let key = (job.job.as_str(), job.system.as_str());
        pairs.entry(key).or_insert(none).now = Some(job);
    }
    let faulty = faulty_jobs(errors);
    let mut comparison = Comparison::default();
    for pair in pairs.into_values() {
        let list = match (pair.now, pair.before) {
            (Some(now), _) if now.status.is_some_and(|code| ABORTED.contains(&code)) => {
                &mut comparison.aborted
            }
            (Some(_), None) => &mut comparison.added,
            (Some(now), Some(before)) => match (now.status, before.status) {
                (None, _) | (_, None) => &mut comparison.unfinished,
                (Some(0), Some(0)) => {
                    comparison.still_succeeding += 1;
                    continue;
                }
                (Some(0), Some(_)) => &mut comparison.newly_fixed,
                (Some(_), Some(0)) => &mut comparison.newly_broken,
                (Some(_), Some(_)) => &mut comparison.still_failing,
            },
            (None, Some(before)) if faulty.contains(before.job.as_str()) => {
                &mut comparison.not_evaluated
            }
            (None, _) => &mut comparison.removed,
        };
        list.push(pair);
    }
    comparison
}

/// The jobs that an evaluation's errors name: `in job ‘NAME’:` at the beginning of a line.
fn faulty_jobs(errors: &str) -> BTreeSet<&str> {
    let name = |line: &'_ str| -> Option<(usize, usize)> {
        let rest = line.strip_prefix("in job ‘")?;
        let start = line.len() - rest.len();
        Some((start, start + rest.find("’:")?))
    };
    errors
        .lines()
        .filter_map(|line| name(line).map(|(from, to)| &line[from..to]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jobs(list: &[(&str, Option<i32>)]) -> Vec<Job> {
        let job = |(at, (name, status)): (usize, &(&str, Option<i32>))| Job {
            job: (*name).into(),
            system: "x".into(),
            build: at as i32,
            status: *status,
            is_new: true,
            nix_name: None,
        };
        list.iter().enumerate().map(job).collect()
    }

    #[test]
    fn each_job_is_in_one_list() {
        let before = jobs(&[
            ("broken", Some(0)),
            ("fixed", Some(1)),
            ("cured", Some(3)),
            ("failing", Some(2)),
            ("good", Some(0)),
            ("gone", Some(0)),
            ("faulty", Some(0)),
            ("running", Some(0)),
            ("was-running", None),
            ("cancelled", Some(0)),
        ]);
        let now = jobs(&[
            ("broken", Some(7)),
            ("fixed", Some(0)),
            ("cured", Some(0)),
            ("failing", Some(1)),
            ("good", Some(0)),
            ("new", Some(1)),
            ("new-queued", None),
            ("running", None),
            ("was-running", Some(1)),
            ("cancelled", Some(4)),
            ("new-aborted", Some(3)),
        ]);
        let errors = "in job ‘faulty’:\nerror: in job ‘gone’:\n\nin job ‘other’:\nx";
        let found = compare(&now, &before, errors);
        let names = |list: &[Pair<'_>]| -> Vec<String> {
            let jobs = list.iter().filter_map(Pair::any);
            jobs.map(|job| job.job.clone()).collect()
        };
        assert_eq!(names(&found.newly_broken), ["broken"]);
        assert_eq!(names(&found.not_evaluated), ["faulty"]);
        assert_eq!(names(&found.newly_fixed), ["cured", "fixed"]);
        assert_eq!(names(&found.still_failing), ["failing"]);
        assert_eq!(found.still_succeeding, 1);
        assert_eq!(names(&found.added), ["new", "new-queued"]);
        assert_eq!(names(&found.removed), ["gone"]);
        assert_eq!(names(&found.unfinished), ["running", "was-running"]);
        assert_eq!(names(&found.aborted), ["cancelled", "new-aborted"]);
        assert!(found.is_worse() && !compare(&before, &before, "").is_worse());
    }
}
