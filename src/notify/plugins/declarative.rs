//! DeclarativeJobsets: when the job `jobsets` of a declarative project's `.jobsets` is built, its output says which jobsets the
//! project has.

use super::{Call, Failure, Plugin};
use crate::config::declarative::{parse_jobsets, JOBSETS, SPECIFICATION_BYTES_MAX};
use crate::db::declarative::{self, Mode};
use crate::db::facts::{self, BuildFacts, Declaring};
use crate::notify::event::EVAL_ERROR_CHANGED;
use crate::notify::plan::Ended;
use crate::store::cat;
use crate::sys::clock::unix_now;

/// The job whose output is the specification.
const JOB: &str = "jobsets";

pub struct DeclarativeJobsets {
    /// Where outputs are; `None`: the local store.
    store_uri: Option<String>,
    /// The server lets jobsets have dynamic RunCommands.
    dynamic_commands: bool,
}

impl DeclarativeJobsets {
    pub fn new(store_uri: Option<String>, dynamic_commands: bool) -> DeclarativeJobsets {
        DeclarativeJobsets {
            store_uri,
            dynamic_commands,
        }
    }

    /// Makes the jobsets; gives what is wrong with some of them, or nothing.
    fn apply(
        &self,
        call: &Call<'_>,
        build: &BuildFacts,
        declaring: &Declaring,
    ) -> Result<String, Failure> {
        let id = build.id;
        let failed = |why: &str| Failure::refused(format!("Declarative jobset build {id} {why}"));
        if build.status != Some(0) {
            return Err(failed(
                "failed: the jobsets stay as they are. Its log tells why",
            ));
        }
        let path = declaring
            .path
            .as_deref()
            .ok_or_else(|| failed("has no output"))?;
        let bytes = cat::file(
            self.store_uri.as_deref(),
            path,
            SPECIFICATION_BYTES_MAX,
            call.around.time_max,
            call.stopping,
        )
        .map_err(|why| Failure::again(format!("Declarative jobset build {id}: {why}")))?;
        let text = String::from_utf8(bytes).map_err(|_| failed("made a file that is no text"))?;
        let jobsets = parse_jobsets(&text)
            .map_err(|why| failed(&format!("made a file that cannot be used: {why}")))?;
        let applied = declarative::apply(
            call.conn()?.client(),
            &declaring.project,
            &jobsets,
            self.dynamic_commands,
            Mode::Apply,
        )?;
        let Some(applied) = applied else {
            return Ok(String::new());
        };
        log::info!(
            "project {}: the specification of build {id} made {} jobsets, changed {}, disabled {}, left {} as they were",
            declaring.project,
            applied.created.len(),
            applied.changed.len(),
            applied.disabled.len(),
            applied.unchanged.len()
        );
        Ok(applied.error_text())
    }
}

impl Plugin for DeclarativeJobsets {
    fn target(&self) -> &str {
        "DeclarativeJobsets"
    }

    fn class(&self) -> Option<&'static str> {
        Some("Hydra::Plugin::DeclarativeJobsets")
    }

    fn channels(&self) -> &[&'static str] {
        &["build_finished"]
    }

    fn wants_declarations_alone(&self) -> bool {
        true
    }

    fn deliver(&self, call: &Call<'_>) -> Result<(), Failure> {
        for build in call.builds()? {
            let Some(declaring) = facts::declaring(&mut *call.conn()?, build.id)? else {
                continue;
            };
            let is_meant = declaring.is_declarative
                && declaring.jobset == JOBSETS
                && declaring.job == JOB
                && declaring.is_current
                && build.finished;
            if !is_meant {
                continue;
            }
            let (text, result) = match self.apply(call, &build, &declaring) {
                Ok(text) => (text, Ok(())),
                // It is told where the jobset is shown; no other try would help.
                Err(failure) if failure.ended == Ended::Refused => (failure.text, Ok(())),
                Err(failure) => (failure.text.clone(), Err(failure)),
            };
            if !text.is_empty() {
                log::warn!("project {}: {}", declaring.project, text.trim_end());
                let payload = format!("build.{}\t{}", build.id, declaring.jobset_id);
                facts::set_jobset_error(
                    &mut *call.conn()?,
                    declaring.jobset_id,
                    &text,
                    unix_now(),
                    (EVAL_ERROR_CHANGED, &payload),
                )?;
            }
            result?;
        }
        Ok(())
    }
}
