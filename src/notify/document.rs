//! The JSON documents that plugins hand on. Pure.

use serde_json::{json, Map, Value};

use crate::db::facts::{BuildFacts, Results};

/// The document of RunCommand, key by key as Hydra's.
pub fn build_finished(build: &BuildFacts, results: &Results) -> Value {
    let outputs: Vec<Value> = results
        .outputs
        .iter()
        .map(|(name, path)| json!({ "name": name, "path": path }))
        .collect();
    let products: Vec<Value> = results
        .products
        .iter()
        .map(|product| {
            json!({
                "productNr": product.number,
                "type": product.kind,
                "subtype": product.subtype,
                "fileSize": product.file_size,
                "sha256hash": product.sha256,
                "path": product.path,
                "name": product.name,
                "defaultPath": product.default_path,
            })
        })
        .collect();
    let metrics: Vec<Value> = results
        .metrics
        .iter()
        .map(|metric| json!({ "name": metric.name, "unit": metric.unit, "value": metric.value }))
        .collect();
    json!({
        "event": "buildFinished",
        "build": build.id,
        "finished": build.finished,
        "timestamp": build.timestamp,
        "project": build.project,
        "jobset": build.jobset,
        "job": build.job,
        "drvPath": build.drv_path,
        "startTime": build.start_time,
        "stopTime": build.stop_time,
        "buildStatus": build.status,
        "nixName": build.nix_name,
        "system": build.system,
        "homepage": build.homepage,
        "description": build.description,
        "license": build.license,
        "outputs": outputs,
        "products": products,
        "metrics": metrics,
    })
}

/// A build without what belongs to it.
pub fn build(build: &BuildFacts, base_uri: &str) -> Value {
    json!({
        "build": build.id,
        "url": format!("{base_uri}/build/{}", build.id),
        "finished": build.finished,
        "project": build.project,
        "jobset": build.jobset,
        "job": build.job,
        "system": build.system,
        "nixName": build.nix_name,
        "drvPath": build.drv_path,
        "startTime": build.start_time,
        "stopTime": build.stop_time,
        "buildStatus": build.status,
        "status": build.status.filter(|_| build.finished).map(status_word),
    })
}

/// `success`, `failure` and so on, as InfluxDBNotification's `result` has them.
pub fn status_word(status: i32) -> &'static str {
    match status {
        0 => "success",
        1 => "failure",
        2 => "dependency-failed",
        4 => "cancelled",
        6 => "failed-with-output",
        7 => "timed-out",
        9 => "unsupported-system",
        10 => "log-limit-exceeded",
        11 => "output-limit-exceeded",
        12 => "non-deterministic-build",
        _ => "aborted",
    }
}

/// Texts within a template may nest so deep.
const DEPTH_MAX: usize = 64;

/// Fills a template: `{{a.b.0}}` in a text stands for that part of the document; a text that is nothing else becomes the part
/// itself, with its type. What is not there is null, or empty within a text.
pub fn fill(template: &Value, document: &Value) -> Value {
    filled(template, document, DEPTH_MAX)
}

fn filled(template: &Value, document: &Value, depth: usize) -> Value {
    if depth == 0 {
        return Value::Null;
    }
    match template {
        Value::String(text) => filled_text(text, document),
        Value::Array(items) => items
            .iter()
            .map(|item| filled(item, document, depth - 1))
            .collect(),
        Value::Object(fields) => {
            let fields = fields
                .iter()
                .map(|(key, value)| (key.clone(), filled(value, document, depth - 1)));
            Value::Object(fields.collect::<Map<String, Value>>())
        }
        other => other.clone(),
    }
}

fn filled_text(text: &str, document: &Value) -> Value {
    if let Some(path) = text
        .strip_prefix("{{")
        .and_then(|rest| rest.strip_suffix("}}"))
    {
        if !path.contains("{{") {
            return part(document, path).cloned().unwrap_or(Value::Null);
        }
    }
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        let Some((path, after)) = after.split_once("}}") else {
            break;
        };
        out.push_str(before);
        match part(document, path) {
            None | Some(Value::Null) => {}
            Some(Value::String(text)) => out.push_str(text),
            Some(other) => out.push_str(&other.to_string()),
        }
        rest = after;
    }
    out.push_str(rest);
    Value::String(out)
}

fn part<'a>(document: &'a Value, path: &str) -> Option<&'a Value> {
    path.trim()
        .split('.')
        .try_fold(document, |value, name| match value {
            Value::Array(items) => items.get(name.parse::<usize>().ok()?),
            value => value.get(name),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filled_template_is_json_whatever_the_texts_hold() {
        let document =
            json!({ "build": 7, "job": "a\"b\n", "outputs": [{ "path": "/x" }], "none": null });
        let template = json!({
            "id": "{{build}}", "text": "job {{ job }} is {{outputs.0.path}}{{none}}{{missing}}", "n": [1, "{{missing}}"],
            "open": "{{build", "two": "{{build}}{{build}}",
        });
        let filled = fill(&template, &document);
        let expected = json!({
            "id": 7, "text": "job a\"b\n is /x", "n": [1, null], "open": "{{build", "two": "77",
        });
        assert_eq!(filled, expected);
    }
}
