//! A declarative specification: the JSON that says which jobsets a project has, and what each is.
//!
//! Knows the keys and what may stand behind them. Does not know rows (`db/declarative.rs`), nor where the text comes from.
//!
//! An object of objects names jobsets. Any other object describes one jobset: the one whose job makes the first kind.

use std::collections::BTreeMap;

use serde_json::{json, Map, Value};

use super::fields::{changed, Fields};

/// The name of the jobset that makes the other jobsets of a declarative project.
pub const JOBSETS: &str = ".jobsets";
/// A specification at most, bytes.
pub const SPECIFICATION_BYTES_MAX: u64 = 16 << 20;

/// What a specification says.
#[derive(Clone, PartialEq, Debug)]
pub enum Specification {
    /// The project has these jobsets and no others. What is wrong with one does not concern the others.
    Jobsets(BTreeMap<String, Result<JobsetSpec, String>>),
    /// How the jobset is evaluated whose job `jobsets` makes a specification of the first kind.
    Generator(JobsetSpec),
}

/// One jobset. What is `None` is not said: the default of a new jobset, and what it was of one that is there.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct JobsetSpec {
    pub enabled: Option<i32>,
    pub hidden: Option<i32>,
    /// 0 an expression, 1 a flake.
    pub kind: Option<i32>,
    pub flake: Option<String>,
    pub description: Option<String>,
    pub nix_expr_input: Option<String>,
    pub nix_expr_path: Option<String>,
    /// Seconds.
    pub check_interval: Option<i32>,
    pub scheduling_shares: Option<i32>,
    pub enable_email: Option<i32>,
    pub enable_dynamic_run_command: Option<bool>,
    pub email_override: Option<String>,
    pub keep_evaluations: Option<i32>,
    /// All of its inputs.
    pub inputs: BTreeMap<String, SpecInput>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SpecInput {
    pub kind: String,
    pub value: Option<String>,
    pub email_responsible: bool,
}

/// Reads a specification.
///
/// # Errors
/// When it is no JSON object, or describes the jobset that makes the others wrongly. The text is fit for the jobset's error.
pub fn parse(text: &str) -> Result<Specification, String> {
    let object = object(text)?;
    if object.values().all(Value::is_object) {
        return Ok(Specification::Jobsets(jobsets(object)));
    }
    jobset(&object).map(Specification::Generator)
}

/// Reads a specification that has to name jobsets.
///
/// # Errors
/// When it is no JSON object of objects.
pub fn parse_jobsets(text: &str) -> Result<BTreeMap<String, Result<JobsetSpec, String>>, String> {
    let object = object(text)?;
    if let Some((key, _)) = object.iter().find(|(_, value)| !value.is_object()) {
        return Err(format!(
            "the specification has to be a JSON object with an object for each jobset; `{key}` is none"
        ));
    }
    Ok(jobsets(object))
}

fn object(text: &str) -> Result<Map<String, Value>, String> {
    let value = serde_json::from_str(text)
        .map_err(|error| format!("the specification is not JSON: {error}"))?;
    match value {
        Value::Object(object) => Ok(object),
        _ => Err("the specification is JSON, but not an object".to_owned()),
    }
}

fn jobsets(object: Map<String, Value>) -> BTreeMap<String, Result<JobsetSpec, String>> {
    let read = |(name, value): (String, Value)| {
        let spec = match value {
            _ if name == JOBSETS => Err(format!(
                "`{JOBSETS}` makes the jobsets and cannot be one of them"
            )),
            _ if !is_name(&name) => Err(
                "a jobset's name has letters, digits, `_`, `-` and `.`, a letter or `_` first"
                    .to_owned(),
            ),
            Value::Object(keys) => jobset(&keys),
            _ => unreachable!("BUG: all values were seen to be objects"),
        };
        (name, spec)
    };
    object.into_iter().map(read).collect()
}

/// As the web server wants the names of jobsets to be.
pub fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.len() <= 255
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))
}

/// Reads the description of one jobset.
///
/// # Errors
/// When a key is unknown or its value unfit.
pub fn jobset(keys: &Map<String, Value>) -> Result<JobsetSpec, String> {
    let mut spec = JobsetSpec::default();
    let mut unknown = Vec::new();
    for (key, value) in keys {
        // As in Perl, where such a value is not defined.
        if value.is_null() {
            continue;
        }
        match key.as_str() {
            "enabled" => spec.enabled = Some(number(key, value, 0, 3)?),
            "hidden" => spec.hidden = Some(number(key, value, 0, 1)?),
            "type" => spec.kind = Some(number(key, value, 0, 1)?),
            "flake" => spec.flake = Some(text(key, value)?),
            "description" => spec.description = Some(text(key, value)?),
            "nixexprinput" => spec.nix_expr_input = Some(text(key, value)?),
            "nixexprpath" => spec.nix_expr_path = Some(text(key, value)?),
            "checkinterval" => spec.check_interval = Some(number(key, value, 0, i32::MAX)?),
            "schedulingshares" => spec.scheduling_shares = Some(number(key, value, 1, i32::MAX)?),
            "enableemail" => spec.enable_email = Some(number(key, value, 0, 1)?),
            "enable_dynamic_run_command" => {
                spec.enable_dynamic_run_command = Some(number(key, value, 0, 1)? == 1);
            }
            "emailoverride" => spec.email_override = Some(text(key, value)?),
            "keepnr" => spec.keep_evaluations = Some(number(key, value, 0, i32::MAX)?),
            "inputs" => spec.inputs = inputs(value)?,
            _ => unknown.push(key.as_str()),
        }
    }
    if !unknown.is_empty() {
        return Err(format!("invalid keys ({})", unknown.join(", ")));
    }
    Ok(spec)
}

impl JobsetSpec {
    /// What a new jobset is where nothing is said: the defaults of Hydra's table, and no address instead of the maintainers'.
    pub fn defaults() -> JobsetSpec {
        JobsetSpec {
            enabled: Some(1),
            hidden: Some(0),
            kind: Some(0),
            check_interval: Some(300),
            scheduling_shares: Some(100),
            enable_email: Some(1),
            enable_dynamic_run_command: Some(false),
            email_override: Some(String::new()),
            keep_evaluations: Some(3),
            ..JobsetSpec::default()
        }
    }

    /// What becomes of a jobset that was `before`: complete, as its row has it. Inputs are those of this alone.
    ///
    /// # Errors
    /// When it would be neither an expression nor a flake.
    pub fn over(&self, before: &JobsetSpec) -> Result<JobsetSpec, String> {
        let mut after = JobsetSpec {
            enabled: self.enabled.or(before.enabled),
            hidden: self.hidden.or(before.hidden),
            kind: self.kind.or(before.kind),
            flake: self.flake.clone().or_else(|| before.flake.clone()),
            description: self
                .description
                .clone()
                .or_else(|| before.description.clone()),
            nix_expr_input: self
                .nix_expr_input
                .clone()
                .or_else(|| before.nix_expr_input.clone()),
            nix_expr_path: self
                .nix_expr_path
                .clone()
                .or_else(|| before.nix_expr_path.clone()),
            check_interval: self.check_interval.or(before.check_interval),
            scheduling_shares: self.scheduling_shares.or(before.scheduling_shares),
            enable_email: self.enable_email.or(before.enable_email),
            enable_dynamic_run_command: self
                .enable_dynamic_run_command
                .or(before.enable_dynamic_run_command),
            email_override: self
                .email_override
                .clone()
                .or_else(|| before.email_override.clone()),
            keep_evaluations: self.keep_evaluations.or(before.keep_evaluations),
            inputs: self.inputs.clone(),
        };
        if after.kind == Some(1) {
            (after.nix_expr_input, after.nix_expr_path) = (None, None);
            if after.flake.is_none() {
                return Err("`type` is 1 (a flake), but there is no `flake`".to_owned());
            }
        } else {
            if self.kind.is_none() && self.flake.is_some() {
                return Err("there is a `flake`, so `type` has to be 1".to_owned());
            }
            after.flake = None;
            if after.nix_expr_input.is_none() || after.nix_expr_path.is_none() {
                return Err(
                    "there have to be `nixexprinput` and `nixexprpath`, or `type` 1 and `flake`"
                        .to_owned(),
                );
            }
        }
        Ok(after)
    }

    /// What differs, a line each, as `keepnr: 3 -> 5`.
    pub fn differences(&self, after: &JobsetSpec) -> Vec<String> {
        let differing = changed(&self.fields(), &after.fields());
        differing.iter().map(ToString::to_string).collect()
    }

    /// What is said, as one would write it in a specification.
    pub fn as_json(&self) -> Value {
        let is_input = |key: &String| key.starts_with("inputs.");
        let mut object: Map<String, Value> = self
            .fields()
            .into_iter()
            .filter(|(key, _)| !is_input(key))
            .collect();
        let inputs = self.inputs.iter();
        let inputs: Map<String, Value> = inputs
            .map(|(name, input)| (name.clone(), input.as_json()))
            .collect();
        object.insert("inputs".to_owned(), Value::Object(inputs));
        Value::Object(object)
    }

    /// What is said, by key.
    pub fn fields(&self) -> Fields {
        let number = |value: Option<i32>| value.map(Value::from);
        let text = |value: &Option<String>| value.clone().map(Value::from);
        let fields = [
            ("enabled", number(self.enabled)),
            ("hidden", number(self.hidden)),
            ("type", number(self.kind)),
            ("flake", text(&self.flake)),
            ("description", text(&self.description)),
            ("nixexprinput", text(&self.nix_expr_input)),
            ("nixexprpath", text(&self.nix_expr_path)),
            ("checkinterval", number(self.check_interval)),
            ("schedulingshares", number(self.scheduling_shares)),
            ("enableemail", number(self.enable_email)),
            (
                "enable_dynamic_run_command",
                self.enable_dynamic_run_command.map(Value::from),
            ),
            ("emailoverride", text(&self.email_override)),
            ("keepnr", number(self.keep_evaluations)),
        ];
        let said = fields
            .into_iter()
            .filter_map(|(key, value)| Some((key.to_owned(), value?)));
        let inputs = self.inputs.iter();
        let inputs = inputs.map(|(name, input)| (format!("inputs.{name}"), input.as_json()));
        said.chain(inputs).collect()
    }
}

impl SpecInput {
    /// As one would write it in a specification.
    pub fn as_json(&self) -> Value {
        json!({"type": self.kind, "value": self.value, "emailresponsible": self.email_responsible})
    }
}

fn inputs(value: &Value) -> Result<BTreeMap<String, SpecInput>, String> {
    let object = value.as_object().ok_or("`inputs` is not an object")?;
    let read = |(name, value): (&String, &Value)| {
        let wrong = |what: String| format!("input `{name}`: {what}");
        let keys = value
            .as_object()
            .ok_or_else(|| wrong("not an object".to_owned()))?;
        let get = |key: &str| keys.get(key).filter(|value| !value.is_null());
        let kind = get("type").ok_or_else(|| wrong("there is no `type`".to_owned()))?;
        let responsible = get("emailresponsible")
            .map(|value| number("emailresponsible", value, 0, 1))
            .transpose();
        let input = SpecInput {
            kind: text("type", kind).map_err(wrong)?,
            value: get("value")
                .map(|value| text("value", value))
                .transpose()
                .map_err(wrong)?,
            email_responsible: responsible.map_err(wrong)? == Some(1),
        };
        Ok((name.clone(), input))
    };
    object.iter().map(read).collect()
}

/// A number, also as a text or a boolean, as Perl would take it.
fn number(key: &str, value: &Value, min: i32, max: i32) -> Result<i32, String> {
    let number = match value {
        Value::Bool(yes) => Some(i64::from(*yes)),
        Value::String(text) if text.is_empty() => Some(0),
        Value::String(text) => text.trim().parse().ok(),
        other => other.as_i64(),
    };
    number
        .and_then(|number| i32::try_from(number).ok())
        .filter(|number| (min..=max).contains(number))
        .ok_or_else(|| match max {
            i32::MAX => format!("`{key}` has to be a number, at least {min}, not {value}"),
            _ => format!("`{key}` has to be a number from {min} to {max}, not {value}"),
        })
}

/// A text, also from a number or a boolean.
fn text(key: &str, value: &Value) -> Result<String, String> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Bool(yes) => yes.to_string(),
        _ => return Err(format!("`{key}` has to be a text, not {value}")),
    };
    if text.contains('\0') {
        return Err(format!(
            "`{key}` has a NUL character, which no row can hold"
        ));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_of_objects_name_jobsets_and_anything_else_makes_them() {
        let Ok(Specification::Jobsets(none)) = parse("{}") else {
            panic!("an empty object names no jobset");
        };
        assert!(none.is_empty());
        let text = r#"{"enabled": 1, "nixexprpath": "j.nix", "inputs": {"src": {"type": "git", "value": "u"}}}"#;
        let Ok(Specification::Generator(spec)) = parse(text) else {
            panic!("this describes one jobset");
        };
        assert_eq!(spec.enabled, Some(1));
        assert_eq!(spec.inputs["src"].kind, "git");
        for (text, why) in [
            ("[]", "not an object"),
            ("{", "is not JSON"),
            (
                r#"{"enabled": 1, "colour": "red"}"#,
                "invalid keys (colour)",
            ),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(why), "{text}: {error}");
        }
        let error = parse_jobsets(r#"{"enabled": 1}"#).expect_err("not jobsets");
        assert!(error.contains("an object for each jobset"), "{error}");
    }

    #[test]
    fn what_is_not_said_stays_as_it_was() {
        let spec = |text: &str| match parse_jobsets(&format!(r#"{{"a": {text}}}"#)) {
            Ok(mut jobsets) => jobsets.remove("a").expect("a").expect("a jobset"),
            Err(error) => panic!("{text}: {error}"),
        };
        let legacy = spec(r#"{"nixexprinput": "src", "nixexprpath": "r.nix", "keepnr": 7}"#);
        let first = legacy.over(&JobsetSpec::defaults()).expect("complete");
        assert_eq!((first.keep_evaluations, first.enabled), (Some(7), Some(1)));
        let then = spec(r#"{"type": 1, "flake": "f"}"#)
            .over(&first)
            .expect("a flake");
        assert_eq!(
            first.differences(&then),
            [
                "flake: nothing -> \"f\"",
                "nixexprinput: \"src\" -> nothing",
                "nixexprpath: \"r.nix\" -> nothing",
                "type: 0 -> 1"
            ]
        );
        for (text, why) in [
            (r#"{"type": 1}"#, "there is no `flake`"),
            (r#"{"flake": "f"}"#, "`type` has to be 1"),
            (r#"{"nixexprpath": "r.nix"}"#, "have to be `nixexprinput`"),
        ] {
            let error = spec(text).over(&JobsetSpec::defaults()).expect_err(text);
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_wrong_with_one_jobset_concerns_it_alone() {
        let text = r#"{
            "good": {"enabled": true, "keepnr": "5", "emailoverride": null,
                     "inputs": {"n": {"type": "string", "value": 7, "emailresponsible": 1}}},
            "bad": {"schedulingshares": 0},
            "strange name": {},
            ".jobsets": {}
        }"#;
        let jobsets = parse_jobsets(text).expect("jobsets");
        let good = jobsets["good"].as_ref().expect("good");
        assert_eq!((good.enabled, good.keep_evaluations), (Some(1), Some(5)));
        assert_eq!(good.email_override, None);
        let input = &good.inputs["n"];
        assert_eq!(input.value.as_deref(), Some("7"));
        assert!(input.email_responsible);
        for (name, why) in [
            (
                "bad",
                "`schedulingshares` has to be a number, at least 1, not 0",
            ),
            ("strange name", "a jobset's name"),
            (".jobsets", "cannot be one of them"),
        ] {
            let error = jobsets[name].as_ref().expect_err(name);
            assert!(error.contains(why), "{name}: {error}");
        }
    }
}
