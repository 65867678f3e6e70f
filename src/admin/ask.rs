//! Questions to whoever sits at the terminal.

use std::io::{self, BufRead as _, IsTerminal as _};

use anyhow::{bail, Result};

/// What came of a question.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    Yes,
    No,
    /// There is no terminal.
    NobodyThere,
}

/// Asks a question that `yes` or `y` affirms.
///
/// # Errors
/// When the terminal cannot be read.
pub fn ask(question: &str) -> io::Result<Answer> {
    if !io::stdin().is_terminal() {
        return Ok(Answer::NobodyThere);
    }
    eprint!("{question} [yes/no] ");
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(match answer.trim() {
        "yes" | "y" => Answer::Yes,
        _ => Answer::No,
    })
}

/// Asks before something is done; `not_done` says what has not been, as `nothing was removed`.
///
/// # Errors
/// When the answer is not yes, or nobody is there to be asked.
pub fn confirm(question: &str, not_done: &str) -> Result<()> {
    match ask(question)? {
        Answer::Yes => Ok(()),
        Answer::No => bail!("{not_done}: it was not confirmed; answer `yes`, or use --yes"),
        Answer::NobodyThere => {
            bail!("{not_done}: this asks first and there is no terminal; use --yes")
        }
    }
}
