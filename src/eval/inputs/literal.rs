//! Inputs that are their own value.

use super::task::{Task, Trouble};
use super::value::wrong;
use crate::eval::input::FetchedInput;

pub fn fetch(task: &Task<'_>) -> Result<FetchedInput, Trouble> {
    let value = &task.spec.value;
    if task.spec.kind == "boolean" && value != "true" && value != "false" {
        return Err(wrong(format!("`{value}`: expected true or false")));
    }
    Ok(FetchedInput {
        value: Some(value.clone()),
        ..task.bare()
    })
}
