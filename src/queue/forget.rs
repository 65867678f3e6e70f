//! `hydrad cache forget`: what is remembered of the binary cache is not believed any more.
//!
//! The question as it comes through the database, and its answer; what is remembered is the cache's business.

use serde_json::{json, Value};

use super::Context;

/// Paths in one question.
pub const PATHS_MAX: usize = 1_000;

/// A question for [`Context::answer`]; without paths all is meant.
pub fn question(paths: &[String]) -> String {
    json!({"ask": "forget", "paths": paths}).to_string()
}

impl Context {
    /// `{"place", "forgotten", "remembered"}`, or `{"refused": WHY}`.
    pub(super) fn forget(&self, question: &Value) -> Value {
        let Some(cache) = self.dest.cache() else {
            return json!({"refused": format!(
                "outputs go to {}, of which nothing is remembered", self.dest.describe()
            )});
        };
        let Some(paths) = question["paths"].as_array() else {
            return json!({"error": "the question names no paths"});
        };
        let forgotten = match paths.is_empty() {
            true => cache.forget_all(),
            false => paths
                .iter()
                .take(PATHS_MAX)
                .filter_map(Value::as_str)
                .filter(|path| cache.forget(path))
                .count(),
        };
        log::info!(
            "an operator has {forgotten} answers of {} forgotten",
            cache.describe()
        );
        json!({"place": cache.describe(), "forgotten": forgotten, "remembered": cache.remembered()})
    }
}
