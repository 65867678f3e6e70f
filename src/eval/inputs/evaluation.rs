//! `eval`: the outputs of all jobs of an evaluation: its number, `PROJECT:JOBSET` for the newest whose builds are all finished, or
//! `PROJECT:JOBSET:JOB` for the newest of these in which that job succeeded.

use std::collections::BTreeMap;

use super::task::{Task, Trouble};
use super::value::{plain, wrong};
use crate::db::input_builds;
use crate::eval::input::FetchedInput;

pub fn fetch(task: &Task<'_>) -> Result<FetchedInput, Trouble> {
    let value = task.spec.value.trim();
    plain(value)?;
    let parts: Vec<&str> = value.split(':').collect();
    let evaluation = match parts[..] {
        [id] if !id.is_empty() && id.bytes().all(|b| b.is_ascii_digit()) => {
            let id: i32 = id
                .parse()
                .map_err(|_| wrong(format!("{id} is no number of an evaluation")))?;
            match input_builds::has_evaluation(&mut *task.conn()?, id)? {
                true => id,
                false => return Err(Trouble::Failed(format!("evaluation {id} does not exist"))),
            }
        }
        [project, jobset] if !project.is_empty() && !jobset.is_empty() => {
            let found =
                input_builds::finished_evaluation(&mut *task.conn()?, project, jobset, None)?;
            found.ok_or_else(|| {
                Trouble::Failed(format!(
                    "{project}:{jobset} has no evaluation whose builds are all finished"
                ))
            })?
        }
        [project, jobset, job] if parts.iter().all(|part| !part.is_empty()) => {
            let found =
                input_builds::finished_evaluation(&mut *task.conn()?, project, jobset, Some(job))?;
            found.ok_or_else(|| {
                Trouble::Failed(format!(
                    "{project}:{jobset} has no evaluation whose builds are all finished and in which {job} succeeded"
                ))
            })?
        }
        _ => {
            return Err(wrong(format!(
            "`{value}`: expected the number of an evaluation, PROJECT:JOBSET or PROJECT:JOBSET:JOB"
        )))
        }
    };
    let outputs = input_builds::outputs_of_evaluation(&mut *task.conn()?, evaluation)?;
    let mut jobs = BTreeMap::new();
    for (job, path) in outputs {
        if task.hold(&path)? {
            jobs.insert(job, path);
        }
    }
    Ok(FetchedInput {
        jobs: Some(jobs),
        ..task.bare()
    })
}
