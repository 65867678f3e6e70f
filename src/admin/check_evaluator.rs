//! What `hydrad check` says of the evaluator's service. Nothing is evaluated or fetched.

use super::check::{folder_mark, CheckRow, Mark};
use crate::base::text::bytes_text;
use crate::config::settings::{Service, Settings};
use crate::eval::service;

const SECTION: &str = "evaluator";

/// How much may be evaluated, and whether what that needs is there; nothing where `services` has no evaluator.
pub fn rows(settings: &Settings) -> Vec<CheckRow> {
    if !settings.services.contains(&Service::Evaluator) {
        return Vec::new();
    }
    let limits = service::limits(settings);
    let (slots, by_memory) = limits.slots();
    let each = bytes_text(limits.memory_bytes_each);
    let budget = bytes_text(limits.memory_bytes_max);
    let (mark, note) = if limits.memory_bytes_each > limits.memory_bytes_max {
        (
            Mark::Warning,
            format!(
                "one alone may use {each}, more than evaluator_memory_budget ({budget}): lower evaluator_workers or \
                 evaluator_max_memory_size, or raise the budget"
            ),
        )
    } else if by_memory {
        (
            Mark::Note,
            format!(
                "not max_concurrent_evals = {}: each is counted with {each}, and evaluator_memory_budget is {budget}",
                limits.evaluations_max
            ),
        )
    } else {
        let note = format!("each is counted with {each} of {budget}");
        (Mark::Ok, note)
    };
    let scm = settings.data_dir.join("scm");
    let (scm_mark, scm_note) = folder_mark(&scm, "clones of repositories".to_owned());
    let mut rows = vec![
        CheckRow::new(SECTION, "at a time", slots.to_string(), mark, note),
        CheckRow::new(
            SECTION,
            "repositories",
            scm.display().to_string(),
            scm_mark,
            scm_note,
        ),
    ];
    if let Some(program) = &settings.eval_jobset_program {
        let note = "makes evaluations instead of hydrad itself";
        rows.push(CheckRow::new(
            SECTION,
            "eval_jobset_program",
            program,
            Mark::Note,
            note,
        ));
    }
    rows
}
