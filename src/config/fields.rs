//! Settings by key, and what differs between two states of them, for people and for scripts.
//!
//! Does not know what has settings.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::{json, Value};

/// Settings by key, as one would write them in JSON. What is not said is not there.
pub type Fields = BTreeMap<String, Value>;

/// One setting that differs.
#[derive(Clone, PartialEq, Debug)]
pub struct FieldChange {
    pub field: String,
    pub before: Option<Value>,
    pub after: Option<Value>,
}

/// What differs, by key.
pub fn changed(before: &Fields, after: &Fields) -> Vec<FieldChange> {
    let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    keys.into_iter()
        .filter(|key| before.get(*key) != after.get(*key))
        .map(|key| FieldChange {
            field: key.clone(),
            before: before.get(key).cloned(),
            after: after.get(key).cloned(),
        })
        .collect()
}

/// A setting's value as a person reads it: as in JSON, but for inputs.
pub fn words(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "nothing".to_owned(),
        Some(Value::Object(input)) if input.contains_key("type") => {
            let value = match input.get("value") {
                None | Some(Value::Null) => String::new(),
                Some(value) => format!(" {value}"),
            };
            let told = match input.get("emailresponsible") {
                Some(Value::Bool(true)) => ", committers told",
                _ => "",
            };
            let kind = input["type"].as_str().unwrap_or("");
            format!("{kind}{value}{told}")
        }
        Some(value) => value.to_string(),
    }
}

impl FieldChange {
    pub fn as_json(&self) -> Value {
        json!({"field": self.field, "before": self.before, "after": self.after})
    }
}

impl fmt::Display for FieldChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (before, after) = (words(self.before.as_ref()), words(self.after.as_ref()));
        write!(f, "{}: {before} -> {after}", self.field)
    }
}
