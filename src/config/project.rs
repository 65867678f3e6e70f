//! What an operator sets of a project; the file that `hydrad apply` reads; and the rules of Hydra's web interface for names
//! and values.
//!
//! A jobset's keys are those of declarative projects (`declarative.rs`). What a repository says of jobsets needs only fit
//! into the tables, as in Hydra; what an operator writes must also keep the rules here. Does not know rows
//! (`db/jobsets.rs`), nor what an input's value means to whoever fetches it.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value};

use super::declarative::{self, JobsetSpec, SpecInput};
use super::fields::Fields;
use crate::base::text::clip;

/// The longest name of a project or input.
pub const NAME_BYTES_MAX: usize = 255;
/// The longest text of any other kind.
pub const TEXT_BYTES_MAX: usize = 65_536;

/// The types of inputs that can be fetched (`eval/inputs`), in the order of the manual.
pub const INPUT_KINDS: [&str; 20] = [
    "string",
    "boolean",
    "nix",
    "build",
    "sysbuild",
    "eval",
    "git",
    "hg",
    "svn",
    "svn-checkout",
    "bzr",
    "bzr-checkout",
    "darcs",
    "path",
    "githubpulls",
    "github_refs",
    "gitlabpulls",
    "bitbucketpulls",
    "giteapulls",
    "gitea_refs",
];

/// The words for `Jobsets.enabled`, by its number.
pub const ENABLED_WORDS: [&str; 4] = ["disabled", "enabled", "one-shot", "one-at-a-time"];

/// A number of `Jobsets.enabled` as a person says it.
pub fn enabled_word(enabled: i32) -> &'static str {
    usize::try_from(enabled)
        .ok()
        .and_then(|at| ENABLED_WORDS.get(at))
        .copied()
        .unwrap_or("unknown")
}

/// What is wrong with a specification, and where in it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub struct SpecError {
    /// Keys joined with dots, as `projects.x.jobsets.trunk`; empty for the whole.
    pub place: String,
    pub reason: String,
}

impl SpecError {
    pub fn new(place: impl Into<String>, reason: impl Into<String>) -> SpecError {
        SpecError {
            place: place.into(),
            reason: reason.into(),
        }
    }

    /// The same error seen from outside of `prefix`.
    pub fn within(self, prefix: &str) -> SpecError {
        let place = match self.place.as_str() {
            "" => prefix.to_owned(),
            place => format!("{prefix}.{place}"),
        };
        SpecError { place, ..self }
    }
}

impl fmt::Display for SpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place.as_str() {
            "" => write!(f, "{}", self.reason),
            place => write!(f, "{place}: {}", self.reason),
        }
    }
}

/// Where the specification of a declarative project's jobsets is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Declarative {
    /// A path in the input.
    pub file: String,
    /// The input's type and value.
    pub kind: String,
    pub value: String,
}

/// All that an operator sets of a project.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Project {
    pub display_name: String,
    pub description: String,
    pub homepage: String,
    pub owner: String,
    pub enabled: bool,
    pub hidden: bool,
    pub enable_dynamic_run_command: bool,
    pub declarative: Option<Declarative>,
}

impl Project {
    /// What is set, by the keys of a file for `hydrad apply`.
    pub fn fields(&self) -> Fields {
        let mut fields: Fields = [
            ("displayname", Value::from(self.display_name.as_str())),
            ("description", Value::from(self.description.as_str())),
            ("homepage", Value::from(self.homepage.as_str())),
            ("owner", Value::from(self.owner.as_str())),
            ("enabled", Value::from(self.enabled)),
            ("hidden", Value::from(self.hidden)),
            (
                "enable_dynamic_run_command",
                Value::from(self.enable_dynamic_run_command),
            ),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into_iter()
        .collect();
        if let Some(declarative) = &self.declarative {
            let parts = [
                ("declarative.file", &declarative.file),
                ("declarative.type", &declarative.kind),
                ("declarative.value", &declarative.value),
            ];
            fields.extend(parts.map(|(key, value)| (key.to_owned(), Value::from(value.as_str()))));
        }
        fields
    }
}

/// What is said of a project, and of its jobsets. What is `None` is not said: it stays as it is.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ProjectSpec {
    pub display_name: Option<String>,
    pub description: Option<String>,
    pub homepage: Option<String>,
    pub owner: Option<String>,
    pub enabled: Option<bool>,
    pub hidden: Option<bool>,
    pub enable_dynamic_run_command: Option<bool>,
    /// `Some(None)`: not declarative.
    pub declarative: Option<Option<Declarative>>,
    pub jobsets: Option<BTreeMap<String, JobsetSpec>>,
}

/// The projects of a file for `hydrad apply`: `{"projects": {NAME: {...}}}`.
///
/// # Errors
/// A key nobody knows, or a value that is not legal, with its place.
pub fn projects_from_json(file: &Value) -> Result<BTreeMap<String, ProjectSpec>, SpecError> {
    let mut keys = Keys::new(file)?;
    let projects = keys.get("projects");
    keys.end()?;
    let projects = projects.ok_or_else(|| {
        let reason = "needed: an object with an object for each project";
        SpecError::new("projects", reason)
    })?;
    let project = |(name, value): (&String, &Value)| {
        check_project_name(name)
            .and_then(|()| ProjectSpec::from_json(value))
            .map(|project| (name.clone(), project))
            .map_err(|error| error.within(&format!("projects.{name}")))
    };
    let projects = object(projects).map_err(|error| error.within("projects"))?;
    projects.iter().map(project).collect()
}

impl ProjectSpec {
    fn from_json(value: &Value) -> Result<ProjectSpec, SpecError> {
        let mut keys = Keys::new(value)?;
        let spec = ProjectSpec {
            display_name: keys.text("displayname")?,
            description: keys.text("description")?,
            homepage: keys.text("homepage")?,
            owner: keys.text("owner")?,
            enabled: keys.flag("enabled")?,
            hidden: keys.flag("hidden")?,
            enable_dynamic_run_command: keys.flag("enable_dynamic_run_command")?,
            declarative: keys
                .get("declarative")
                .map(declarative_from_json)
                .transpose()
                .map_err(|error| error.within("declarative"))?,
            jobsets: keys.get("jobsets").map(jobsets_from_json).transpose()?,
        };
        keys.end()?;
        if matches!(spec.declarative, Some(Some(_))) && spec.jobsets.is_some() {
            let reason =
                "a project with `declarative` gets its jobsets from there; leave `jobsets` out";
            return Err(SpecError::new("jobsets", reason));
        }
        spec.tidy()
    }

    /// What an operator wrote, trimmed as the web interface does it.
    ///
    /// # Errors
    /// Where it breaks a rule of the web interface.
    pub fn tidy(mut self) -> Result<ProjectSpec, SpecError> {
        for (key, text) in [
            ("displayname", &mut self.display_name),
            ("description", &mut self.description),
            ("homepage", &mut self.homepage),
            ("owner", &mut self.owner),
        ] {
            tidy_text(key, text)?;
        }
        if self.display_name.as_deref() == Some("") {
            return Err(SpecError::new("displayname", "it cannot be empty"));
        }
        if let Some(Some(declarative)) = &mut self.declarative {
            declarative.file = declarative.file.trim().to_owned();
            let mut input = SpecInput {
                kind: declarative.kind.trim().to_owned(),
                value: Some(declarative.value.clone()),
                email_responsible: false,
            };
            tidy_input(&mut input).map_err(|error| error.within("declarative"))?;
            declarative.kind = input.kind;
            declarative.value = input.value.unwrap_or_default();
        }
        Ok(self)
    }

    /// What becomes of a project, or how a new one begins.
    ///
    /// # Errors
    /// When a new one has no owner.
    pub fn over(&self, name: &str, before: Option<&Project>) -> Result<Project, SpecError> {
        let text = |said: &Option<String>, was: Option<&String>| said.clone().or(was.cloned());
        let flag = |said: Option<bool>, was: Option<bool>, default| said.or(was).unwrap_or(default);
        Ok(Project {
            display_name: text(&self.display_name, before.map(|b| &b.display_name))
                .unwrap_or_else(|| name.to_owned()),
            description: text(&self.description, before.map(|b| &b.description))
                .unwrap_or_default(),
            homepage: text(&self.homepage, before.map(|b| &b.homepage)).unwrap_or_default(),
            owner: text(&self.owner, before.map(|b| &b.owner))
                .ok_or_else(|| SpecError::new("owner", "a new project needs one"))?,
            enabled: flag(self.enabled, before.map(|b| b.enabled), true),
            hidden: flag(self.hidden, before.map(|b| b.hidden), false),
            enable_dynamic_run_command: flag(
                self.enable_dynamic_run_command,
                before.map(|b| b.enable_dynamic_run_command),
                false,
            ),
            declarative: match &self.declarative {
                Some(said) => said.clone(),
                None => before.and_then(|b| b.declarative.clone()),
            },
        })
    }
}

/// `{ file, type, value }`, or `false` or an empty file for none.
fn declarative_from_json(value: &Value) -> Result<Option<Declarative>, SpecError> {
    if *value == Value::Bool(false) {
        return Ok(None);
    }
    let mut keys = Keys::new(value)?;
    let (file, kind, value) = (keys.text("file")?, keys.text("type")?, keys.text("value")?);
    keys.end()?;
    let needed = |key: &str| SpecError::new(key, "needed");
    match file.unwrap_or_default() {
        file if file.is_empty() => Ok(None),
        file => Ok(Some(Declarative {
            file,
            kind: kind.ok_or_else(|| needed("type"))?,
            value: value.ok_or_else(|| needed("value"))?,
        })),
    }
}

fn jobsets_from_json(value: &Value) -> Result<BTreeMap<String, JobsetSpec>, SpecError> {
    let object = object(value).map_err(|error| error.within("jobsets"))?;
    let jobset = |(name, value): (&String, &Value)| {
        jobset_from_json(name, value)
            .map(|jobset| (name.clone(), jobset))
            .map_err(|error| error.within(&format!("jobsets.{name}")))
    };
    object.iter().map(jobset).collect()
}

fn jobset_from_json(name: &str, value: &Value) -> Result<JobsetSpec, SpecError> {
    check_jobset_name(name)?;
    let keys = object(value)?;
    let spec = declarative::jobset(keys).map_err(|reason| SpecError::new("", reason))?;
    // Hydra passes over what it does not know here; a misspelt key would be lost.
    for (input, value) in keys
        .get("inputs")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        let place = format!("inputs.{input}");
        let mut keys = Keys::new(value).map_err(|error| error.within(&place))?;
        for key in ["type", "value", "emailresponsible"] {
            keys.get(key);
        }
        keys.end().map_err(|error| error.within(&place))?;
    }
    tidy_jobset(spec)
}

// ---- rules of the web interface

fn is_name(name: &str, first: fn(char) -> bool) -> bool {
    name.len() <= NAME_BYTES_MAX
        && name.starts_with(first)
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))
}

fn is_attribute(name: &str) -> bool {
    is_name(name, |c| c.is_ascii_alphabetic() || c == '_')
}

fn named(what: &str, name: &str, good: bool, rule: &str) -> Result<(), SpecError> {
    match good {
        true => Ok(()),
        false => Err(SpecError::new(
            "",
            format!("`{}` cannot be the name of {what}: {rule}", clip(name, 80)),
        )),
    }
}

/// # Errors
/// When a project cannot be called so.
pub fn check_project_name(name: &str) -> Result<(), SpecError> {
    let rule = "letters, digits, `-` and `_`, a letter or `_` first";
    named("a project", name, is_attribute(name), rule)
}

/// # Errors
/// When a jobset cannot be called so.
pub fn check_jobset_name(name: &str) -> Result<(), SpecError> {
    let rule = "letters, digits, `-`, `_` and `.`, a letter or `_` first";
    named("a jobset", name, declarative::is_name(name), rule)
}

/// # Errors
/// When an input cannot be called so.
pub fn check_input_name(name: &str) -> Result<(), SpecError> {
    let rule = "letters, digits, `-` and `_`, a letter first";
    let good = is_name(name, |c| c.is_ascii_alphabetic());
    named("an input", name, good, rule)
}

fn tidy_text(key: &str, text: &mut Option<String>) -> Result<(), SpecError> {
    let Some(text) = text else {
        return Ok(());
    };
    if text.contains('\0') {
        return Err(SpecError::new(key, "a NUL character cannot be stored"));
    }
    if text.len() > TEXT_BYTES_MAX {
        let reason = format!("{} bytes, where {TEXT_BYTES_MAX} are the most", text.len());
        return Err(SpecError::new(key, reason));
    }
    *text = text.trim().to_owned();
    Ok(())
}

/// What an operator wrote of a jobset, trimmed as the web interface does it.
///
/// # Errors
/// Where it breaks a rule of the web interface.
pub fn tidy_jobset(mut spec: JobsetSpec) -> Result<JobsetSpec, SpecError> {
    for (key, text) in [
        ("flake", &mut spec.flake),
        ("description", &mut spec.description),
        ("nixexprinput", &mut spec.nix_expr_input),
        ("nixexprpath", &mut spec.nix_expr_path),
        ("emailoverride", &mut spec.email_override),
    ] {
        tidy_text(key, text)?;
    }
    if spec.kind != Some(1) {
        if let Some(input) = &spec.nix_expr_input {
            check_input_name(input).map_err(|error| error.within("nixexprinput"))?;
        }
        if let Some(path) = &spec.nix_expr_path {
            check_expression_path(path)?;
        }
    }
    if let Some(uri) = spec.flake.as_deref().filter(|_| spec.kind != Some(0)) {
        if !uri.starts_with(|c: char| c.is_ascii_alphabetic()) {
            let reason = format!("`{uri}` is not the URI of a flake, which begins with a letter");
            return Err(SpecError::new("flake", reason));
        }
    }
    for (name, input) in &mut spec.inputs {
        check_input_name(name)
            .and_then(|()| tidy_input(input))
            .map_err(|error| error.within(&format!("inputs.{name}")))?;
    }
    Ok(spec)
}

fn check_expression_path(path: &str) -> Result<(), SpecError> {
    let is_part = |part: &str| {
        part != ".."
            && !part.is_empty()
            && !part.starts_with(':')
            && part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-+._$:".contains(c))
    };
    match path.split('/').all(is_part) {
        true => Ok(()),
        false => Err(SpecError::new(
            "nixexprpath",
            format!(
                "`{path}` is not the path of a file in the input: relative, without `..`, of letters, digits and `-+._$:`"
            ),
        )),
    }
}

/// Checks an input's type and value, and trims the value where blanks mean nothing.
///
/// # Errors
/// When they are not legal.
pub fn tidy_input(input: &mut SpecInput) -> Result<(), SpecError> {
    let kind = input.kind.as_str();
    if !INPUT_KINDS.contains(&kind) {
        let reason = format!(
            "there is no input type `{kind}`; there are {}",
            INPUT_KINDS.join(", ")
        );
        return Err(SpecError::new("type", reason));
    }
    let wrong = |reason: String| Err(SpecError::new("value", reason));
    if kind == "string" {
        // Blanks are part of it.
        let mut copy = input.value.clone();
        input.value.get_or_insert_default();
        return tidy_text("value", &mut copy);
    }
    tidy_text("value", &mut input.value)?;
    let value = input.value.as_deref().unwrap_or("");
    match kind {
        _ if value.is_empty() => wrong(format!("an input of type {kind} needs a value")),
        "boolean" if !matches!(value, "true" | "false") => {
            wrong(format!("`{value}` is neither true nor false"))
        }
        "eval" if !is_evaluation(value) => wrong(format!(
            "`{value}` is no evaluation: give its number, PROJECT:JOBSET or PROJECT:JOBSET:JOB"
        )),
        _ => Ok(()),
    }
}

fn is_evaluation(value: &str) -> bool {
    let parts: Vec<&str> = value.split(':').collect();
    match parts.as_slice() {
        [id] => id.bytes().all(|b| b.is_ascii_digit()),
        [project, jobset, job @ ..] => {
            is_attribute(project)
                && declarative::is_name(jobset)
                && job.len() < 2
                && job.iter().all(|job| job.split('.').all(is_attribute))
        }
        [] => false,
    }
}

// ---- JSON

fn object(value: &Value) -> Result<&Map<String, Value>, SpecError> {
    value.as_object().ok_or_else(|| {
        let reason = format!("expected an object of keys and values, not {}", say(value));
        SpecError::new("", reason)
    })
}

/// A value in an error.
fn say(value: &Value) -> String {
    clip(&value.to_string(), 60)
}

/// The keys of an object, each of which must be asked for.
struct Keys<'a> {
    object: &'a Map<String, Value>,
    known: Vec<&'static str>,
}

impl<'a> Keys<'a> {
    fn new(value: &'a Value) -> Result<Keys<'a>, SpecError> {
        Ok(Keys {
            object: object(value)?,
            known: Vec::new(),
        })
    }

    /// The key's value, if it is there and not `null`.
    fn get(&mut self, key: &'static str) -> Option<&'a Value> {
        self.known.push(key);
        self.object.get(key).filter(|value| !value.is_null())
    }

    fn text(&mut self, key: &'static str) -> Result<Option<String>, SpecError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(other) => {
                let reason = format!("expected a string, not {}", say(other));
                Err(SpecError::new(key, reason))
            }
        }
    }

    /// True or false, also as the numbers that are in the tables.
    fn flag(&mut self, key: &'static str) -> Result<Option<bool>, SpecError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match (value.as_bool(), value.as_i64()) {
            (Some(flag), _) => Ok(Some(flag)),
            (_, Some(number @ 0..=1)) => Ok(Some(number == 1)),
            _ => {
                let reason = format!("expected true or false, not {}", say(value));
                Err(SpecError::new(key, reason))
            }
        }
    }

    /// All keys must have been asked for.
    fn end(self) -> Result<(), SpecError> {
        let mut keys = self.object.keys();
        match keys.find(|key| !self.known.contains(&key.as_str())) {
            None => Ok(()),
            Some(key) => {
                let reason = format!("unknown key; known are {}", self.known.join(", "));
                Err(SpecError::new(key.as_str(), reason))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn error(jobset: Value) -> String {
        let file = json!({"projects": {"p": {"jobsets": {"j": jobset}}}});
        projects_from_json(&file).unwrap_err().to_string()
    }

    #[test]
    fn errors_name_the_place() {
        let input = |name: &str, input: Value| json!({"inputs": {name: input}});
        for (value, words) in [
            (json!(1), "projects.p.jobsets.j: expected an object"),
            (json!({"chekinterval": 1}), "invalid keys (chekinterval)"),
            (json!({"checkinterval": -1}), "`checkinterval` has to be"),
            (json!({"flake": "./here"}), "j.flake: `./here` is not"),
            (json!({"nixexprpath": "../x.nix"}), "without `..`"),
            (json!({"nixexprpath": "/x.nix"}), "relative"),
            (json!({"nixexprinput": "a b"}), "j.nixexprinput: `a b`"),
            (
                input("1x", json!({"type": "string"})),
                "j.inputs.1x: `1x` cannot be",
            ),
            (
                input("x", json!({"type": "gti", "value": "y"})),
                "j.inputs.x.type: there is no input type `gti`",
            ),
            (
                input("x", json!({"type": "boolean", "value": "yes"})),
                "j.inputs.x.value: `yes` is neither",
            ),
            (
                input("x", json!({"type": "eval", "value": "a:b:c:d"})),
                "j.inputs.x.value: `a:b:c:d` is no evaluation",
            ),
            (
                input("x", json!({"type": "git", "value": " "})),
                "j.inputs.x.value: an input of type git needs",
            ),
            (
                input("x", json!({"type": "git", "value": "y", "vlaue": 1})),
                "j.inputs.x.vlaue: unknown key; known are type, value",
            ),
        ] {
            let said = error(value.clone());
            assert!(said.contains(words), "{value}: {said}");
        }
        for (file, words) in [
            (json!({"project": {}}), "project: unknown key"),
            (json!({}), "projects: needed"),
            (
                json!({"projects": {"a.b": {}}}),
                "projects.a.b: `a.b` cannot",
            ),
            (
                json!({"projects": {"p": {"jobsets": {"": {}}}}}),
                "projects.p.jobsets.: `` cannot",
            ),
            (
                json!({"projects": {"p": {"hidden": "no"}}}),
                "projects.p.hidden: expected true or false",
            ),
            (
                json!({"projects": {"p": {"displayname": " "}}}),
                "projects.p.displayname: it cannot be empty",
            ),
        ] {
            let said = projects_from_json(&file).unwrap_err().to_string();
            assert!(said.contains(words), "{file}: {said}");
        }
    }

    #[test]
    fn a_project_is_declarative_or_has_jobsets() {
        let project = |value: Value| ProjectSpec::from_json(&value);
        let declarative = json!({"file": "spec.json", "type": "git", "value": " u main "});
        let both = project(json!({"declarative": declarative, "jobsets": {}}));
        assert_eq!(both.unwrap_err().place, "jobsets");
        let one = project(json!({ "declarative": declarative })).unwrap();
        assert_eq!(one.declarative.unwrap().unwrap().value, "u main");
        let none =
            json!({"declarative": {"file": ""}, "jobsets": {"x.y": {"type": 1, "flake": "a:b"}}});
        let none = project(none).unwrap();
        assert_eq!(none.declarative, Some(None));
        assert_eq!(none.over("p", None).unwrap_err().place, "owner");
        let wrong = project(json!({"declarative": {"file": "f", "type": "gti", "value": "x"}}));
        assert_eq!(wrong.unwrap_err().place, "declarative.type");
    }

    #[test]
    fn strings_keep_their_blanks_and_evaluations_have_three_forms() {
        let tidy = |kind: &str, value: &str| {
            let mut input = SpecInput {
                kind: kind.into(),
                value: Some(value.into()),
                email_responsible: false,
            };
            tidy_input(&mut input).map(|()| input.value.unwrap_or_default())
        };
        assert_eq!(tidy("string", " a ").unwrap(), " a ");
        assert_eq!(tidy("path", " /a ").unwrap(), "/a");
        for good in ["12", "p:j", "p:j.1:a.b-c"] {
            assert!(tidy("eval", good).is_ok(), "{good}");
        }
        for bad in ["p", "p:", "p:j:", "p:j:a..b", ":j"] {
            assert!(tidy("eval", bad).is_err(), "{bad}");
        }
    }
}
