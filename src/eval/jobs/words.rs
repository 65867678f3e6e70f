//! Nix's words and ours about what went wrong, as texts. Pure.

use std::time::Duration;

use crate::base::text;

/// Bytes of an error at most; the end is kept, where newer Nix says what it is about.
const ERROR_BYTES_MAX: usize = 32 << 10;

/// The error in what a process said: from its first `error:` on, without colours and without the frames of a trace that lie in
/// our own lines (newer Nix shows them; theirs is the place `«string»`).
pub(super) fn error(words: &str) -> Option<String> {
    let words = text::plain(words);
    let mut at = 0;
    let begin = words.split_inclusive('\n').find_map(|line| {
        let begin = at;
        at += line.len();
        line.trim_start().starts_with("error:").then_some(begin)
    })?;
    // Newer Nix puts the frames first, below a line of their own.
    let said = words[begin..].trim_end();
    let (header, said) = match said.strip_prefix("error:\n") {
        Some(rest) => ("error:\n", rest),
        None => ("", said),
    };
    let frames = said.split("\n\n");
    let frames: Vec<&str> = frames
        .filter(|frame| frame.trim_start().starts_with("error:") || !is_ours(frame))
        .collect();
    let is_remark = |frame: &str| frame.trim_start().starts_with("(stack trace truncated;");
    let mut kept = match frames[..] {
        [error] => error.trim_start().to_owned(),
        // Only frames of ours were shown.
        [remark, error] if is_remark(remark) => error.trim_start().to_owned(),
        _ => format!("{header}{}", frames.join("\n\n")),
    };
    if kept.len() > ERROR_BYTES_MAX {
        let mut from = kept.len() - ERROR_BYTES_MAX;
        while !kept.is_char_boundary(from) {
            from += 1;
        }
        kept = format!("error: (its beginning is left out)\n{}", &kept[from..]);
    }
    Some(kept)
}

/// Of a job that imports a file which ends too early: `nix repl` says nothing of it.
pub(super) const CUT_SHORT: &str = "error: syntax error, unexpected end of file in a file that this job imports (`nix repl` does not say \
    which; `nix-instantiate --parse FILE` does)";

fn is_ours(frame: &str) -> bool {
    frame.contains("at «string»:")
}

pub(super) fn not_supported(name: &str, kind: &str) -> String {
    format!("error: attribute '{name}' is {kind}, which is not supported")
}

pub(super) fn too_deep(name: &str, depth_max: usize) -> String {
    format!("error: attribute '{name}' is a set {depth_max} levels deep, and is not looked into: does a set contain itself?")
}

pub(super) fn too_large(had_bytes: u64, max_bytes: u64) -> String {
    format!(
        "error: evaluating this job takes more memory than evaluator_max_memory_size allows: alone in a new process it had {} MiB \
         of {} MiB when it was ended. Raise evaluator_max_memory_size in hydra.conf, or make the job smaller",
        had_bytes >> 20,
        max_bytes >> 20
    )
}

pub(super) fn too_long(limit: Duration) -> String {
    format!(
        "error: evaluating this job took longer than evaluator_job_timeout allows ({} s). Does it loop? If it only takes long, raise \
         evaluator_job_timeout in hydra.conf",
        limit.as_secs()
    )
}

/// `how` as in `killed by signal 9`.
pub(super) fn ended(how: &str, peak_bytes: u64, words: &str) -> String {
    // Nix 2.8 ends after this one, newer versions do not.
    if let Some(error) = error(words) {
        return error;
    }
    let mut text = format!(
        "error: the process that evaluated this job ended ({how}; it had {} MiB)",
        peak_bytes >> 20
    );
    if how == "killed by signal 9" {
        text.push_str(
            ". If the kernel ended it for want of memory, lower evaluator_workers or evaluator_max_memory_size in hydra.conf",
        );
    }
    let words = text::plain(words);
    match words.trim() {
        "" => text,
        words => format!("{text}:\n{words}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_begins_where_nix_says_so() {
        let said = "warning: something\n\u{1b}[31;1merror:\u{1b}[0m thrown\n\n       at /x/y.nix:1:2:\n\n            1| x\n";
        assert_eq!(
            error(said).as_deref(),
            Some("error: thrown\n\n       at /x/y.nix:1:2:\n\n            1| x")
        );
        assert_eq!(error("trace: no error: here\n"), None);
    }

    #[test]
    fn frames_in_our_own_lines_are_left_out() {
        let said = "error:\n       … while calling 'say'\n         at «string»:1:7:\n            1| told: x\n\n       … while evaluating 'x'\n         at /src/a.nix:3:4:\n\n       error: thrown";
        let kept = error(said).expect("an error");
        assert_eq!(
            kept,
            "error:\n       … while evaluating 'x'\n         at /src/a.nix:3:4:\n\n       error: thrown"
        );
        let said = "error:\n       … in 'go'\n         at «string»:1:7:\n            1| x\n\n       error: thrown\n";
        assert_eq!(error(said).as_deref(), Some("error: thrown"));
        let said = "error:\n       … in 'go'\n         at «string»:1:7:\n\n       (stack trace truncated; use '--show-trace')\n\n       error: thrown\n";
        assert_eq!(error(said).as_deref(), Some("error: thrown"));
    }

    #[test]
    fn a_long_error_keeps_its_end() {
        let long = format!("error: {}\n\nthe end", "x".repeat(100_000));
        let kept = error(&long).expect("an error");
        assert!(kept.len() < ERROR_BYTES_MAX + 100 && kept.ends_with("the end"));
        assert!(kept.starts_with("error:"));
    }
}
