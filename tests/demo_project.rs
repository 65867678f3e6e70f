//! The demo's project is what tests/demo/expected.tsv says, seen with Nix alone.

mod common;

use std::path::{Path, PathBuf};

use common::NixStore;

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/demo")
}

/// `(job, status)` of every line.
fn expected() -> Vec<(String, u32)> {
    let text = std::fs::read_to_string(demo().join("expected.tsv")).unwrap();
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
fn every_job_is_listed_and_builds_or_fails_as_listed() {
    let store = NixStore::new();
    let file = demo().join("project.nix");
    let jobs = store
        .command("nix-instantiate")
        .args(["--eval", "--strict", "--json", "-E"])
        .arg(format!("builtins.attrNames (import {})", file.display()))
        .output()
        .unwrap();
    let jobs: Vec<String> = serde_json::from_slice(&jobs.stdout).unwrap();
    let mut listed: Vec<_> = expected().into_iter().map(|(job, _)| job).collect();
    listed.sort();
    assert_eq!(jobs, listed);

    for (job, status) in expected() {
        let drv = store.instantiate_file(&file, &["-A", &job]).remove(0);
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
