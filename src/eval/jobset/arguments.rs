//! What an expression is given, and the hash by which it is told whether anything changed.
//!
//! The hash is Hydra's to the byte: a jobset that Hydra evaluated last and whose inputs are the same is not evaluated again.
//! It covers Hydra's text of the arguments, in which no value is escaped; what is evaluated is escaped.

use std::collections::BTreeMap;
use std::path::Path;

use crate::eval::input::FetchedInput;
use crate::eval::job::{Argument, Source};
use crate::nix::expression;
use crate::nix::hash::sha256;

/// The inputs that have a value, by name.
pub type Inputs = BTreeMap<String, FetchedInput>;

/// The hash of `JobsetEvals`: of the expression's place and all arguments.
///
/// Source: `getInputsHash` and `inputsToArgs` of Hydra.
pub fn hash(expr_input: &str, expr_path: &str, inputs: &Inputs) -> String {
    let mut words = vec![expr_input.to_owned(), expr_path.to_owned()];
    for (name, input) in inputs {
        if let Some(path) = &input.store_path {
            words.extend(["-I".to_owned(), format!("{name}={path}")]);
        }
        let value = || input.value.clone().unwrap_or_default();
        let (option, value) = match input.kind.as_str() {
            "string" => ("--argstr", value()),
            "boolean" | "nix" => ("--arg", value()),
            "eval" => ("--arg", jobs(input, &|name| name.to_owned())),
            _ => ("--arg", attributes(input, &|text| format!("\"{text}\""))),
        };
        words.extend([option.to_owned(), name.clone(), value]);
    }
    let bytes = sha256(&perl_bytes(&words.join(" ")));
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// As Perl hashes a text: a byte for each character while all are below 256. Perl gives up on others; those are hashed as they
/// are stored.
fn perl_bytes(text: &str) -> Vec<u8> {
    let latin: Result<Vec<u8>, _> = text.chars().map(u8::try_from).collect();
    latin.unwrap_or_else(|_| text.as_bytes().to_vec())
}

/// The expression of a jobset with its inputs.
pub fn source(expr_input: &str, expr_path: &str, inputs: &Inputs) -> Source {
    let mut search = Vec::new();
    let mut arguments = Vec::new();
    for (name, input) in inputs {
        if let Some(path) = &input.store_path {
            search.push((name.clone(), path.clone()));
        }
        let value = || input.value.clone().unwrap_or_default();
        let argument = match input.kind.as_str() {
            "string" => Argument::String(value()),
            "boolean" | "nix" => Argument::Expression(value()),
            "eval" => Argument::Expression(jobs(input, &attribute_path)),
            _ => Argument::Expression(attributes(input, &expression::string)),
        };
        arguments.push((name.clone(), argument));
    }
    Source::Legacy {
        file: format!("{expr_input}/{expr_path}"),
        search,
        arguments,
    }
}

/// Job names with dots lead into nested sets.
fn attribute_path(job: &str) -> String {
    let parts: Vec<String> = job.split('.').map(expression::string).collect();
    parts.join(".")
}

/// The argument of an `eval` input: the output of each of its jobs.
fn jobs(input: &FetchedInput, name: &dyn Fn(&str) -> String) -> String {
    let mut text = String::from("{ ");
    for (job, path) in input.jobs.iter().flatten() {
        text.push_str(&format!("{} = builtins.storePath {path}; ", name(job)));
    }
    text + "}"
}

/// The argument of an input with files.
fn attributes(input: &FetchedInput, string: &dyn Fn(&str) -> String) -> String {
    let mut text = format!(
        "{{ outPath = builtins.storePath {}; inputType = {}",
        input.store_path.as_deref().unwrap_or_default(),
        string(&input.kind)
    );
    let mut add = |key: &str, value: Option<String>| {
        if let Some(value) = value {
            text.push_str(&format!("; {key} = {value}"));
        }
    };
    let quoted = |value: &Option<String>| value.as_deref().map(string);
    add("uri", quoted(&input.uri));
    add("rev", input.rev_number.map(|number| number.to_string()));
    add("rev", quoted(&input.revision));
    add("revCount", input.rev_count.map(|count| count.to_string()));
    add("gitTag", quoted(&input.git_tag));
    add("shortRev", quoted(&input.short_rev));
    add("version", quoted(&input.version));
    add("outputName", quoted(&input.output_name));
    let drv = input.drv_path.as_ref();
    add(
        "drvPath",
        drv.map(|path| format!("builtins.storePath {path}")),
    );
    text + ";}"
}

/// How `hydra-eval-jobs` would be called, as one types it into a shell.
pub fn command_line(source: &Source, gc_roots_dir: &Path) -> String {
    let mut words = vec!["hydra-eval-jobs".to_owned()];
    match source {
        Source::Flake { locked } => words.extend(["--flake".to_owned(), locked.clone()]),
        Source::Legacy { file, .. } => words.push(format!("<{file}>")),
    }
    let roots = gc_roots_dir.display().to_string();
    words.extend(["--gc-roots-dir".to_owned(), roots]);
    if let Source::Legacy {
        search, arguments, ..
    } = source
    {
        for (name, path) in search {
            words.extend(["-I".to_owned(), format!("{name}={path}")]);
        }
        for (name, argument) in arguments {
            let (option, value) = match argument {
                Argument::String(value) => ("--argstr", value),
                Argument::Expression(value) => ("--arg", value),
            };
            words.extend([option.to_owned(), name.clone(), value.clone()]);
        }
    }
    let quoted: Vec<String> = words.iter().map(|word| shell_word(word)).collect();
    quoted.join(" ")
}

fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:+,@".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(list: Vec<FetchedInput>) -> Inputs {
        list.into_iter().map(|i| (i.name.clone(), i)).collect()
    }

    fn valued(name: &str, kind: &str, value: &str) -> FetchedInput {
        FetchedInput {
            name: name.to_owned(),
            kind: kind.to_owned(),
            value: Some(value.to_owned()),
            ..FetchedInput::default()
        }
    }

    /// `printf %s TEXT | sha256sum`, where TEXT is what Hydra joins; see the contract of the evaluator, 3.2.
    fn check(expr: (&str, &str), list: Vec<FetchedInput>, sha256sum: &str) {
        assert_eq!(hash(expr.0, expr.1, &inputs(list)), sha256sum);
    }

    fn git() -> FetchedInput {
        FetchedInput {
            store_path: Some("/nix/store/0c0d5f6c1hsrvxq8swgzy4jvsfkqlrrx-source".to_owned()),
            uri: Some("https://example.org/x.git".to_owned()),
            revision: Some("05a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3".to_owned()),
            rev_count: Some(42),
            git_tag: Some("v1.0-3-g05a1b2c".to_owned()),
            short_rev: Some("05a1b2c".to_owned()),
            sha256: Some("1ch6v2v0n2vb8xk1yvq8dqfq2rjw7cd7k6ga2l1nd5m1ccay6wq5".to_owned()),
            ..valued("src", "git", "https://example.org/x.git main")
        }
    }

    #[test]
    fn the_hash_is_hydras() {
        // printf %s 'src release.nix' | sha256sum
        check(
            ("src", "release.nix"),
            vec![],
            "aef7068e145f9963908cddf9a9a98be1e40abaa3ac6e5b5ce9d90bed17c9ffd8",
        );
        // printf %s 'src release.nix --argstr a one two --arg b true --arg n [ "x" ]' | sha256sum
        check(
            ("src", "release.nix"),
            vec![
                valued("n", "nix", "[ \"x\" ]"),
                valued("b", "boolean", "true"),
                valued("a", "string", "one two"),
            ],
            "fcdb6e89831b0735a22397f8af12d60a675ed347c085fa34d44411e96f637344",
        );
        // printf %s 'src release.nix -I src=/nix/store/0c0d5f6c1hsrvxq8swgzy4jvsfkqlrrx-source --arg src { outPath =
        // builtins.storePath /nix/store/0c0d5f6c1hsrvxq8swgzy4jvsfkqlrrx-source; inputType = "git"; uri =
        // "https://example.org/x.git"; rev = "05a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3"; revCount = 42; gitTag =
        // "v1.0-3-g05a1b2c"; shortRev = "05a1b2c";}' | sha256sum
        check(
            ("src", "release.nix"),
            vec![git()],
            "973282c10f0dd4d572a3bababd05febe7c1d7ee24457f6515264cab73d7c7a89",
        );
        // A build as input, a Subversion revision, an evaluation:
        // printf %s 'a b -I dep=/nix/store/s-x --arg dep { outPath = builtins.storePath /nix/store/s-x; inputType = "build"; version =
        // "1.2"; outputName = "out"; drvPath = builtins.storePath /nix/store/d-x.drv;} --arg jobs { a.b = builtins.storePath
        // /nix/store/1; c = builtins.storePath /nix/store/2; } -I svn=/nix/store/v --arg svn { outPath = builtins.storePath
        // /nix/store/v; inputType = "svn"; uri = "u"; rev = 7;}' | sha256sum
        check(
            ("a", "b"),
            vec![
                FetchedInput {
                    store_path: Some("/nix/store/s-x".to_owned()),
                    version: Some("1.2".to_owned()),
                    output_name: Some("out".to_owned()),
                    drv_path: Some("/nix/store/d-x.drv".to_owned()),
                    ..valued("dep", "build", "7")
                },
                FetchedInput {
                    jobs: Some(BTreeMap::from([
                        ("c".to_owned(), "/nix/store/2".to_owned()),
                        ("a.b".to_owned(), "/nix/store/1".to_owned()),
                    ])),
                    ..valued("jobs", "eval", "3")
                },
                FetchedInput {
                    store_path: Some("/nix/store/v".to_owned()),
                    uri: Some("u".to_owned()),
                    rev_number: Some(7),
                    ..valued("svn", "svn", "u")
                },
            ],
            "d487c9a0d48ee6cfc4a776de760c852736b39f6585f185173adb92ede458ca13",
        );
        // printf 'src release.nix --argstr a caf\351' | sha256sum: below 256, a character is one byte.
        check(
            ("src", "release.nix"),
            vec![valued("a", "string", "café")],
            "c456bbf2f4f303de2cefffc6683f43ec85530b38e0591340c54bde8fd27e4492",
        );
    }

    #[test]
    fn what_is_evaluated_is_escaped() {
        let odd = FetchedInput {
            uri: Some("u\"; x = throw \"${y}".to_owned()),
            ..git()
        };
        let eval = FetchedInput {
            jobs: Some(BTreeMap::from([(
                "a.b-1".to_owned(),
                "/nix/store/1".to_owned(),
            )])),
            ..valued("e", "eval", "3")
        };
        let Source::Legacy {
            file,
            search,
            arguments,
        } = source("src", "release.nix", &inputs(vec![odd, eval]))
        else {
            panic!("an expression");
        };
        assert_eq!(file, "src/release.nix");
        assert_eq!(search[0].0, "src");
        assert_eq!(
            arguments[0].1,
            Argument::Expression("{ \"a\".\"b-1\" = builtins.storePath /nix/store/1; }".to_owned())
        );
        let Argument::Expression(text) = &arguments[1].1 else {
            panic!("an expression");
        };
        assert!(
            text.contains(r#"uri = "u\"; x = throw \"\${y}"; rev ="#),
            "{text}"
        );
    }
}
