//! The demo's project is what tests/demo/expected.tsv says, and after its update what expected-after-update.tsv says, seen
//! with Nix alone; and the demo itself, which is hydrad with all its services on a database of its own.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{output_of, said, NixStore};

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/demo")
}

/// `(job, status)` of every line.
fn expected(table: &str) -> Vec<(String, u32)> {
    let text = std::fs::read_to_string(demo().join(table)).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let fields: Vec<_> = line.split('\t').collect();
            assert_eq!(fields.len(), 5, "{line:?}");
            (fields[0].to_string(), fields[1].parse().unwrap())
        })
        .collect()
}

#[test]
fn every_job_is_listed_and_builds_or_fails_as_listed_before_and_after_the_update() {
    let store = NixStore::new();
    let project = store.dir().sub("project", store.owner());
    let copy = |from: PathBuf| {
        output_of(Command::new("cp").arg("-r").arg(from).arg(&project));
    };
    copy(demo().join("project.nix"));
    copy(demo().join("src"));
    let before = expected("expected.tsv");
    check(&store, &project.join("project.nix"), &before);

    let mut update = Command::new("git");
    update.arg("apply").arg(demo().join("update.patch"));
    output_of(
        update
            .current_dir(&project)
            .env("GIT_CEILING_DIRECTORIES", "/"),
    );
    let after = expected("expected-after-update.tsv");
    check(&store, &project.join("project.nix"), &after);

    let good = |status: u32| status == 0;
    let changed = before.iter().zip(&after);
    let turned = |to: bool| {
        let turned = changed
            .clone()
            .filter(|(old, new)| good(old.1) != good(new.1) && good(new.1) == to);
        turned.map(|(_, new)| new.0.as_str()).collect::<Vec<_>>()
    };
    assert_eq!(turned(false), ["tests", "release"], "broken");
    assert_eq!(
        turned(true),
        ["compile-error", "after-compile-error"],
        "fixed"
    );
}

fn check(store: &NixStore, file: &Path, expected: &[(String, u32)]) {
    let jobs = store
        .command("nix-instantiate")
        .args(["--eval", "--strict", "--json", "-E"])
        .arg(format!("builtins.attrNames (import {})", file.display()))
        .output()
        .unwrap();
    let jobs: Vec<String> = serde_json::from_slice(&jobs.stdout).unwrap();
    let mut listed: Vec<&str> = expected.iter().map(|(job, _)| job.as_str()).collect();
    listed.sort_unstable();
    assert_eq!(jobs, listed);

    for &(ref job, status) in expected {
        let drv = store.instantiate_file(file, &["-A", job]).remove(0);
        let mut build = store.command("nix-store");
        build.args([
            "-r",
            &drv,
            "--option",
            "system-features",
            "demo-local demo-ssh",
        ]);
        // The limits that `meta` asks for are the queue runner's business; ask Nix for shorter ones.
        if status == 7 {
            build.args(["--timeout", "1"]);
        }
        let output = build.output().unwrap();
        let built = output.status.success();
        assert_eq!(
            built,
            [0, 6].contains(&status),
            "{job}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        if status == 6 {
            let path = String::from_utf8(output.stdout).unwrap();
            assert!(
                Path::new(path.trim()).join("nix-support/failed").exists(),
                "{job} leaves a mark of its failure"
            );
        }
    }
}

#[test]
fn the_demo_goes_from_a_repository_to_what_a_commit_broke_and_mended() {
    let mut command = Command::new(demo().join("run.sh"));
    command.args(["--binary", env!("CARGO_BIN_EXE_hydrad")]);
    let said = said(&mut command).ends_with(0);
    for words in [
        "newly broken: 2\n  release",
        "newly fixed: 2\n  after-compile-error",
        "2 evaluations, 19 builds: 12 success",
        "all jobs ended as they should, twice",
    ] {
        assert!(said.out.contains(words), "{words} in {}", said.out);
    }
}
