//! The commands as somebody uses them who makes mistakes.

mod common;

use common::{stub_jobs, Pg, Site};

/// What a command says on standard error when it cannot do what it is asked for.
fn refusal(site: &Site, args: &[&str]) -> String {
    let output = site.hydrad(args).command().output().expect("start hydrad");
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{args:?}: {words}");
    words
}

#[test]
fn enqueue_takes_derivations_of_the_store_by_any_name() {
    let site = Site::new(Pg::shared());
    let drv = site.store.instantiate(&stub_jobs("a", 1, ""))[0].clone();
    let copy = site.file("copy.drv", &std::fs::read_to_string(&drv).unwrap());
    let copy = copy.to_string_lossy();
    let words = refusal(&site, &["enqueue", &copy]);
    assert!(words.contains("is not in the store"), "{words}");
    let link = site.folder("links").join("a.drv");
    std::os::unix::fs::symlink(&drv, &link).unwrap();
    let link = link.to_string_lossy();
    let done = site.hydrad(&["enqueue", &link]).command().status().unwrap();
    assert!(done.success());
    assert_eq!(site.rows("select drvPath from Builds"), [drv]);
}

#[test]
fn enqueue_names_the_attribute_that_is_not_there() {
    let site = Site::new(Pg::shared());
    let file = site.file("jobs.nix", &stub_jobs("a", 1, ""));
    let file = file.to_string_lossy();
    for attribute in ["b", "a000.out.x.y", ""] {
        let words = refusal(&site, &["enqueue", "-A", "a000", "-A", attribute, &file]);
        assert!(
            words.contains(&format!("  {attribute}: there is no such attribute")),
            "{words}"
        );
    }
    assert_eq!(site.ask::<i64>("select count(*) from Builds"), 0);
}

#[test]
fn log_follow_prints_a_compressed_log() {
    let site = Site::new(Pg::shared());
    site.machines(&Site::stub("m1", 1, 1, "-"));
    let build = site.queue(&stub_jobs("a", 1, ""))[0].to_string();
    let mut hydrad = site.start();
    site.wait_all_finished(&mut hydrad);
    let print = |args: &[&str]| common::output_of(&mut site.hydrad(args).command());
    let attempts = print(&["log", "--attempts", &build]);
    let path = attempts.split_whitespace().last().unwrap();
    let plain = print(&["log", &build]);
    assert!(plain.contains("stub line 1"), "{plain}");
    common::output_of(std::process::Command::new("bzip2").arg(path));
    assert_eq!(print(&["log", &build]), plain);
    assert_eq!(print(&["log", "--follow", &build]), plain);
}
