//! Questions of commands to the running queue runner, and its answers: rows of `hydrad.questions`, so that a command
//! works on every host that reaches the database.
//!
//! Knows the rows and their channels. Does not know what is asked.

use std::time::{Duration, Instant};

use postgres::Client;

use super::pool::Conn;
use super::{DbError, DbTarget, Listener};

/// A question was asked; payload: its number.
pub const ASKED: &str = "hydrad_question";
/// Questions were answered; empty payload.
pub const ANSWERED: &str = "hydrad_answer";

/// A question, as the queue runner sees it.
pub type Question = (i64, String);

/// Asks, and waits for the answer; `None` if nobody answers within `patience`.
///
/// # Errors
/// Of the database; also when the table is missing or may not be written.
pub fn ask(
    target: &DbTarget,
    application_name: &str,
    client: &mut Client,
    question: &str,
    patience: Duration,
) -> Result<Option<String>, DbError> {
    let mut listener = Listener::connect(target, application_name, &[ANSWERED])?;
    let sql = include_str!("../../sql/questions/insert_question.sql");
    let id: i64 = client.query_one(sql, &[&question])?.get(0);
    let until = Instant::now() + patience;
    let read = include_str!("../../sql/questions/select_answer.sql");
    let mut answered = false;
    while !answered {
        let Some(left) = until.checked_duration_since(Instant::now()) else {
            break;
        };
        // Somebody else's answer announces itself in the same way.
        if listener.next(left)?.is_some() {
            answered = client
                .query_opt(read, &[&id])?
                .is_some_and(|row| row.get(0));
        }
    }
    let sql = include_str!("../../sql/questions/take_answer.sql");
    let row = client.query_opt(sql, &[&id])?;
    Ok(row.and_then(|row| row.get(0)))
}

/// Questions without an answer, those of the last half minute.
///
/// # Errors
/// Of the database.
pub fn open(conn: &mut Conn) -> Result<Vec<Question>, DbError> {
    let sql = include_str!("../../sql/questions/select_open_questions.sql");
    let rows = conn.query(sql, &[])?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Writes answers and announces them.
///
/// # Errors
/// Of the database.
pub fn answer(conn: &mut Conn, answers: &[(i64, String)]) -> Result<(), DbError> {
    let ids: Vec<i64> = answers.iter().map(|(id, _)| *id).collect();
    let texts: Vec<&str> = answers.iter().map(|(_, text)| text.as_str()).collect();
    let mut tx = conn.transaction()?;
    let sql = include_str!("../../sql/questions/answer_questions.sql");
    tx.execute(sql, &[&ids, &texts])?;
    let sql = include_str!("../../sql/questions/delete_old_questions.sql");
    tx.execute(sql, &[])?;
    let sql = include_str!("../../sql/queue/notify_all.sql");
    tx.query(sql, &[&vec![ANSWERED], &vec![""]])?;
    tx.commit()
}
