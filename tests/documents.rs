//! The documents say what is there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()))
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The functions of a source file that the test runner finds, and the cases of tests/outcomes.rs.
fn tests_in(text: &str) -> BTreeSet<String> {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let mut names = BTreeSet::new();
    for (at, line) in lines.iter().enumerate() {
        let is_test = lines[at.saturating_sub(3)..at].contains(&"#[test]");
        if let Some(rest) = line.strip_prefix("fn ").filter(|_| is_test) {
            names.extend(rest.split('(').next().map(str::to_owned));
        }
        if let Some(rest) = line.strip_prefix("name: \"") {
            names.extend(rest.split('"').next().map(str::to_owned));
        }
    }
    names
}

/// Is there a test of this name in the module's file or one below it?
fn has_unit_test(module: &str, name: &str) -> bool {
    let place = root().join("src").join(module.replace("::", "/"));
    let files = [
        place.with_extension("rs"),
        place.join("mod.rs"),
        place.with_file_name("mod.rs"),
    ];
    files
        .iter()
        .filter(|file| file.exists())
        .any(|file| tests_in(&read(file)).contains(name))
}

#[test]
fn every_test_that_the_manual_names_is_there() {
    let manual = read(&root().join("MANUAL.md"));
    let table = manual
        .split("## 18. Hydra's contract and the tests")
        .nth(1)
        .expect("the manual's table of tests");
    let names: Vec<&str> = table
        .lines()
        .filter(|line| line.starts_with("| "))
        .flat_map(|line| line.split('`').skip(1).step_by(2))
        .filter(|word| word.contains("::"))
        .collect();
    assert!(names.len() > 60, "the table names only {names:?}");
    let mut missing = Vec::new();
    for name in names {
        let (place, test) = name.rsplit_once("::").expect("FILE::NAME");
        let found = match place.strip_prefix("unit::") {
            Some(module) => has_unit_test(module, test),
            None => {
                let file = root().join("tests").join(place).with_extension("rs");
                file.exists() && tests_in(&read(&file)).contains(test)
            }
        };
        if !found {
            missing.push(name);
        }
    }
    assert_eq!(missing, [""; 0], "tests that the manual names");
}

#[test]
fn links_between_the_documents_lead_somewhere() {
    for name in std::fs::read_dir(root()).expect("the project's folder") {
        let path = name.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "md") {
            continue;
        }
        let text = read(&path);
        for target in text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next())
        {
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            if file.contains("://") {
                continue;
            }
            let other = if file.is_empty() {
                path.clone()
            } else {
                root().join(file)
            };
            assert!(other.exists(), "{}: {target}", path.display());
            if !anchor.is_empty() {
                let headings: Vec<String> = read(&other)
                    .lines()
                    .filter(|line| line.starts_with('#'))
                    .map(anchor_of)
                    .collect();
                assert!(
                    headings.iter().any(|heading| heading == anchor),
                    "{}: no heading for {target}",
                    path.display()
                );
            }
        }
    }
}

/// What a heading is called in a link, as the usual renderers do it.
fn anchor_of(heading: &str) -> String {
    heading
        .trim_start_matches('#')
        .trim()
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
        .map(|c| {
            if c == ' ' {
                '-'
            } else {
                c.to_ascii_lowercase()
            }
        })
        .collect()
}
