//! The plan decides and does nothing else: a look at its source keeps it so.

use std::path::Path;

/// What has no place in the plan, and why.
const FORBIDDEN: &[(&str, &str)] = &[
    ("std::time", "it reads no clock"),
    ("Instant::now", "it reads no clock"),
    ("SystemTime", "it reads no clock"),
    ("std::thread", "it has no threads"),
    ("thread::sleep", "it does not wait"),
    ("std::sync::Mutex", "it has no locks"),
    ("crossbeam", "it has no channels"),
    ("std::fs", "it does no input or output"),
    ("std::net", "it does no input or output"),
    ("std::process", "it starts no programs"),
    ("std::env", "it asks the environment nothing"),
    ("println!", "it says things by actions"),
    ("log::", "it says things by actions"),
    (
        "std::collections::HashMap",
        "its maps are the same in every process",
    ),
    (
        "std::collections::HashSet",
        "its maps are the same in every process",
    ),
    ("RefCell", "it has one owner"),
    ("std::rc", "it has one owner"),
    ("unsafe", "it needs nothing of the kind"),
];

fn look(directory: &Path, files: &mut usize) {
    for entry in std::fs::read_dir(directory).expect("the plan's source") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            look(&path, files);
            continue;
        }
        *files += 1;
        look_at(&path);
    }
}

fn look_at(file: &Path) {
    let source = std::fs::read_to_string(file).expect("a source file");
    for (word, why) in FORBIDDEN {
        assert!(
            !source.contains(word),
            "{} contains {word}, but the plan is pure: {why}",
            file.display()
        );
    }
}

#[test]
fn the_plan_is_pure() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = 0;
    look(&source.join("plan"), &mut files);
    assert!(files > 10, "only {files} files");
}

#[test]
fn the_plans_of_the_other_services_are_pure_too() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    look_at(&source.join("notify/plan.rs"));
    look_at(&source.join("eval/schedule.rs"));
}
