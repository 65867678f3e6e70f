//! `git`: `URI [BRANCH] [DEEP] [KEY=VALUE...]`.
//!
//! Clones are where Hydra has them (`scm/git/<sha256 of the URI>`, with `.lock` beside), one for each repository, with the branches
//! that jobsets wanted. What goes into the store is what `nix-prefetch-git` would put there: the files of a commit without
//! configuration of ours; of a deep clone, `.git` too, with the commit's history on branch `fetchgit`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::task::{file, remove, suspect, with_clone, Task, Trouble};
use super::value::{check_uri, is_ssh_short, shown, words, wrong};
use crate::config::inputs::GitSettings;
use crate::db::input_cache::{Cached, Key};
use crate::eval::harmless::with_harmless_git;
use crate::eval::input::FetchedInput;

const SCHEMES: &[&str] = &["https", "http", "ssh", "git", "file", "git+ssh", "ssh+git"];
/// What git may speak: `ext::` starts commands, helpers of other transports are anybody's.
const PROTOCOLS: &str = "file:git:http:https:ssh";
/// For submodules of a repository elsewhere: it must not name files of this host.
const REMOTE_PROTOCOLS: &str = "git:http:https:ssh";
/// A commit given by its hash is fetched under this branch, as Hydra does.
const HASH_BRANCH: &str = "_hydra_tmp";
/// What a deep clone is made from.
const EXPORT_REF: &str = "refs/hydrad/export";
/// The branch of a deep clone, as nix-prefetch-git calls it.
const DEEP_BRANCH: &str = "refs/heads/fetchgit";
/// What git says when a tag is to become a branch.
const NO_COMMIT: &str = "trying to write non-commit object";
/// Folders within folders of a repository's refs.
const REFS_DEPTH_MAX: u32 = 32;

/// What the value says.
struct Wanted<'a> {
    uri: &'a str,
    branch: Option<&'a str>,
    deep: bool,
    submodules: bool,
    time_max: Duration,
    fallback_branch: String,
}

fn parse<'a>(task: &Task<'a>) -> Result<Wanted<'a>, Trouble> {
    let words = words(&task.spec.value)?;
    let Some((&uri, rest)) = words.split_first() else {
        return Err(wrong(
            "expected `URI [BRANCH] [DEEP] [KEY=VALUE...]`, such as `https://example.org/x.git main`",
        ));
    };
    if !is_ssh_short(uri) {
        check_uri(uri, SCHEMES, true)?;
    }
    let is_option = |word: &&&str| word.contains('=');
    let mut said = GitSettings::default();
    for option in rest.iter().filter(is_option) {
        let (key, text) = option.split_once('=').unwrap_or_default();
        said.set(key, text).map_err(wrong)?;
    }
    let plain: Vec<&str> = rest.iter().filter(|w| !is_option(w)).copied().collect();
    let (branch, deep) = match plain[..] {
        [] => (None, false),
        [branch] => (Some(branch), false),
        [branch, _] => (Some(branch), true),
        _ => return Err(wrong("expected `URI [BRANCH] [DEEP] [KEY=VALUE...]`")),
    };
    if let Some(branch) = branch {
        check_branch(branch)?;
    }
    let settings = &task.fetcher.settings;
    let said = settings
        .git_input(task.project, task.jobset, &task.spec.name)
        .or(&said);
    let fallback_branch = said.fallback_branch.unwrap_or_else(|| "master".to_owned());
    check_branch(&fallback_branch)?;
    let submodules = said.submodules.unwrap_or(false);
    if submodules && deep {
        return Err(wrong(
            "a deep clone has no submodules: leave out either `submodules` or the third word",
        ));
    }
    Ok(Wanted {
        uri,
        branch,
        deep,
        submodules,
        time_max: said.timeout.unwrap_or(settings.time_max),
        fallback_branch,
    })
}

/// What git itself does not take for a branch, and what has a meaning in a refspec.
fn check_branch(branch: &str) -> Result<(), Trouble> {
    let odd = |c: char| c.is_control() || " ~^:?*[\\+".contains(c);
    let bad = branch.is_empty()
        || branch.starts_with('-')
        || branch.contains(odd)
        || branch.contains("..")
        || branch.contains("@{")
        || branch.ends_with('/')
        || branch.ends_with(".lock");
    match bad {
        true => Err(wrong(format!("`{branch}` is no name of a branch"))),
        false => Ok(()),
    }
}

fn is_hash(branch: &str) -> bool {
    matches!(branch.len(), 40 | 64) && is_hex(branch)
}

fn is_hex(word: &str) -> bool {
    let hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    !word.is_empty() && word.bytes().all(hex)
}

pub fn fetch(task: &Task<'_>) -> Result<FetchedInput, Trouble> {
    let wanted = parse(task)?;
    let clone = task.clone_dir("git", wanted.uri, wanted.time_max)?;
    let git = Git {
        task,
        dir: clone.dir.join(".git"),
        work_tree: clone.dir.clone(),
        wanted: &wanted,
    };
    with_clone(&clone, || git.fetch())
}

struct Git<'a> {
    task: &'a Task<'a>,
    /// The clone's `.git`.
    dir: PathBuf,
    work_tree: PathBuf,
    wanted: &'a Wanted<'a>,
}

impl Git<'_> {
    fn fetch(&self) -> Result<FetchedInput, Trouble> {
        self.prepare()?;
        let branch = match self.wanted.branch {
            Some(branch) => branch.to_owned(),
            None => self.default_branch()?,
        };
        let revision = self.update(&branch)?;
        // No row of Hydra's has an address with a blank in it.
        let uri = match self.wanted.submodules {
            true => format!("{} submodules", self.wanted.uri),
            false => self.wanted.uri.to_owned(),
        };
        let key = Key::Git {
            uri: &uri,
            branch: &branch,
            revision: &revision,
            deep: self.wanted.deep,
        };
        let cached = match self.task.cached(&key)? {
            Some(cached) => cached,
            None => {
                log::info!(
                    "checking out Git branch {branch} from {}",
                    shown(self.wanted.uri)
                );
                let cached = self.export(&revision)?;
                self.task.record(&key, &cached)?;
                cached
            }
        };
        let ask = |args: &[&str]| self.run(self.here().args(args)).map_err(suspect);
        let count = ask(&["rev-list", "--count", &revision])?;
        let fetched = FetchedInput {
            uri: Some(self.wanted.uri.to_owned()),
            rev_count: count.parse().ok(),
            git_tag: Some(ask(&["describe", "--always", &revision])?),
            short_rev: Some(ask(&["rev-parse", "--short", &revision])?),
            revision: Some(revision),
            ..self.task.fetched(&cached)
        };
        self.tidy();
        Ok(fetched)
    }

    /// git, which neither asks nor starts what a repository wants.
    fn git(&self) -> Command {
        let mut command = self.task.program("git");
        for name in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"] {
            command.env_remove(name);
        }
        with_harmless_git(&mut command)
            .env("GIT_ALLOW_PROTOCOL", PROTOCOLS)
            .args(["-c", "gc.auto=0"])
            .args(["-c", "init.defaultBranch=master"]);
        command
    }

    /// git in the clone.
    fn here(&self) -> Command {
        let mut command = self.git();
        command.env("GIT_DIR", &self.dir);
        command
    }

    fn run(&self, command: &mut Command) -> Result<String, Trouble> {
        self.task.run(command, self.wanted.time_max)
    }

    /// Makes the clone if it is not there, and takes away locks of processes that were killed: nobody else is at it.
    fn prepare(&self) -> Result<(), Trouble> {
        if !self.dir.exists() {
            // Something without `.git` is none of git's.
            remove(&self.work_tree)?;
            fs::create_dir_all(&self.work_tree)
                .map_err(|error| file("make", &self.work_tree, &error))?;
            self.run(self.git().args(["init", "--quiet"]).arg(&self.work_tree))?;
            // Hydra's own programs fetch from it.
            return self
                .run(
                    self.here()
                        .args(["remote", "add", "origin", "--", self.wanted.uri]),
                )
                .map(drop);
        }
        for folder in [
            self.dir.clone(),
            self.dir.join("objects"),
            self.dir.join("objects/info"),
        ] {
            remove_files(&folder, &|name| name.ends_with(".lock"));
        }
        remove_files(&self.dir.join("objects/pack"), &|name| {
            name.starts_with("tmp_") || name.starts_with(".tmp-")
        });
        remove_locks(&self.dir.join("refs"), REFS_DEPTH_MAX);
        Ok(())
    }

    /// What the repository says, else what is configured.
    fn default_branch(&self) -> Result<String, Trouble> {
        let said =
            self.run(
                self.git()
                    .args(["ls-remote", "--symref", "--", self.wanted.uri, "HEAD"]),
            )?;
        let head = said.lines().find_map(|line| {
            let (target, name) = line.strip_prefix("ref: ")?.split_once('\t')?;
            (name == "HEAD").then(|| target.strip_prefix("refs/heads/"))?
        });
        let branch = head.unwrap_or(&self.wanted.fallback_branch);
        check_branch(branch)?;
        Ok(branch.to_owned())
    }

    /// Fetches a branch, tag or commit; the commit's hash.
    fn update(&self, branch: &str) -> Result<String, Trouble> {
        if is_hash(branch) {
            // What the clone has need not be asked for: a commit does not change.
            if let (_, Some(known)) = self.commit(branch)? {
                return Ok(known);
            }
        }
        let local = match branch {
            _ if is_hash(branch) => format!("refs/heads/{HASH_BRANCH}"),
            _ if branch.starts_with("refs/") => branch.to_owned(),
            _ => format!("refs/heads/{branch}"),
        };
        let fetched = self.fetch_refs(&format!("+{branch}:{local}"));
        let tag = format!("refs/tags/{branch}");
        let (name, by_hash) = match fetched {
            Ok(()) if is_hash(branch) => (branch, true),
            Ok(()) => (local.as_str(), false),
            // What has an author and a message of its own is no branch.
            Err(Trouble::Failed(what)) if what.contains(NO_COMMIT) => {
                self.fetch_refs(&format!("+{tag}:{tag}"))?;
                (tag.as_str(), false)
            }
            // Not every server gives a commit by its hash, and none by a part of it: it is looked for among all branches.
            Err(Trouble::Failed(_)) if is_hex(branch) && branch.len() >= 4 => {
                self.fetch_refs("+refs/heads/*:refs/remotes/origin/*")?;
                (branch, true)
            }
            Err(trouble) => return Err(trouble),
        };
        match self.commit(name)? {
            // A branch that is gone may have looked like a hash.
            (_, Some(revision)) if !by_hash || revision.starts_with(branch) => Ok(revision),
            _ if by_hash => Err(Trouble::Failed(format!(
                "there is no commit {branch} in {}",
                shown(self.wanted.uri)
            ))),
            (complaint, _) => Err(Trouble::Clone(complaint)),
        }
    }

    /// The hash of the commit that a name means in the clone; else what git says.
    fn commit(&self, name: &str) -> Result<(String, Option<String>), Trouble> {
        let mut command = self.here();
        command
            .args(["rev-parse", "--verify", "--quiet", "--end-of-options"])
            .arg(format!("{name}^{{commit}}"));
        let ended = self.task.run_any(&mut command, self.wanted.time_max)?;
        let said = String::from_utf8_lossy(&ended.output).trim().to_owned();
        let complaint = self.task.complaint(&command, &ended);
        Ok((complaint, Some(said).filter(|said| is_hash(said))))
    }

    fn fetch_refs(&self, refspec: &str) -> Result<(), Trouble> {
        let uri = self.wanted.uri;
        let mut command = self.here();
        command.args(["fetch", "--quiet", "-fu", "--", uri, refspec]);
        let ended = self.task.run_any(&mut command, self.wanted.time_max)?;
        if ended.status.is_some_and(|status| status.success()) {
            return Ok(());
        }
        if ended.words.contains("couldn't find remote ref") {
            let name = refspec.trim_start_matches('+');
            let name = name.split(':').next().unwrap_or_default();
            return Err(Trouble::Failed(format!(
                "there is no branch or tag ‘{name}’ in {}",
                shown(uri)
            )));
        }
        let what = self.task.complaint(&command, &ended);
        if ended.words.contains(NO_COMMIT) {
            return Err(Trouble::Failed(what));
        }
        // Does the repository answer? Then it is the clone.
        let mut asked = self.git();
        asked.args(["ls-remote", "--quiet", "--", uri, "HEAD"]);
        let answer = self.task.run_any(&mut asked, self.wanted.time_max)?;
        let by_hash = is_hash(
            refspec
                .trim_start_matches('+')
                .split(':')
                .next()
                .unwrap_or(""),
        );
        Err(match answer.status {
            Some(status) if status.success() && !by_hash => Trouble::Clone(what),
            _ => Trouble::Failed(what),
        })
    }

    /// A commit, in the store.
    fn export(&self, revision: &str) -> Result<Cached, Trouble> {
        let scratch = self.task.scratch()?;
        let tree = scratch.join("source");
        fs::create_dir(&tree).map_err(|error| file("make", &tree, &error))?;
        if self.wanted.deep {
            self.export_deep(revision, &tree)?;
        } else if self.wanted.submodules {
            self.export_with_submodules(revision, &tree)?;
        } else {
            let mut command = self.here();
            unconfigured(&mut command)
                .env("GIT_INDEX_FILE", scratch.join("index"))
                .env("GIT_WORK_TREE", &tree)
                .current_dir(&tree)
                .args(["read-tree", "--reset", "-u", revision]);
            self.run(&mut command).map_err(suspect)?;
        }
        self.task.enter(&tree, "source")
    }

    /// A repository of its own in a scratch folder.
    fn fresh(&self, tree: &Path) -> Result<impl Fn() -> Command + '_, Trouble> {
        let mut init = self.git();
        init.args(["init", "--quiet", "--template="]).arg(tree);
        self.run(&mut init)?;
        let tree = tree.to_owned();
        Ok(move || {
            let mut command = self.git();
            command.env("GIT_DIR", tree.join(".git")).current_dir(&tree);
            command
        })
    }

    fn export_deep(&self, revision: &str, tree: &Path) -> Result<(), Trouble> {
        self.run(self.here().args(["update-ref", EXPORT_REF, revision]))
            .map_err(suspect)?;
        let there = self.fresh(tree)?;
        let run = |args: &[&str]| {
            let mut command = there();
            unconfigured(&mut command).args(args);
            self.run(&mut command).map_err(suspect)
        };
        let refspec = format!("+{EXPORT_REF}:{DEEP_BRANCH}");
        let mut fetch = there();
        unconfigured(&mut fetch).args(["fetch", "--quiet", "-fu", "--"]);
        // Tags within the history come along; others do not.
        self.run(fetch.arg(&self.dir).arg(refspec))
            .map_err(suspect)?;
        run(&["symbolic-ref", "HEAD", DEEP_BRANCH])?;
        run(&["read-tree", "--reset", "-u", "HEAD"])?;
        run(&["-c", "pack.threads=1", "repack", "-a", "-d", "-f", "-q"])?;
        run(&["pack-refs", "--all"])?;
        // What would differ from one time to the next.
        let dot_git = tree.join(".git");
        for name in ["index", "config", "FETCH_HEAD", "ORIG_HEAD"] {
            let path = dot_git.join(name);
            if path.exists() {
                fs::remove_file(&path).map_err(|error| file("remove", &path, &error))?;
            }
        }
        ["logs", "hooks"]
            .into_iter()
            .try_for_each(|name| remove(&dot_git.join(name)))
    }

    fn export_with_submodules(&self, revision: &str, tree: &Path) -> Result<(), Trouble> {
        let there = self.fresh(tree)?;
        let alternates = tree.join(".git/objects/info/alternates");
        let objects = format!("{}\n", self.dir.join("objects").display());
        fs::create_dir_all(tree.join(".git/objects/info"))
            .and_then(|()| fs::write(&alternates, objects))
            .map_err(|error| file("write", &alternates, &error))?;
        // Addresses of submodules may be relative to it.
        self.run(there().args(["config", "remote.origin.url", self.wanted.uri]))?;
        self.run(there().args(["update-ref", "--no-deref", "HEAD", revision]))
            .map_err(suspect)?;
        self.run(unconfigured(&mut there()).args(["read-tree", "--reset", "-u", "HEAD"]))
            .map_err(suspect)?;
        let local = self.wanted.uri.starts_with('/') || self.wanted.uri.starts_with("file:");
        let protocols = if local { PROTOCOLS } else { REMOTE_PROTOCOLS };
        let mut update = there();
        update
            .env_remove("GIT_DIR")
            .env("GIT_ALLOW_PROTOCOL", protocols)
            .args(["submodule", "--quiet", "update", "--init", "--recursive"])
            .arg("--checkout");
        self.run(&mut update)?;
        remove_dot_git(tree)
    }

    /// Packs a clone that has grown. What goes wrong with that is no reason not to evaluate.
    fn tidy(&self) {
        let mut command = self.here();
        command
            .args(["-c", "gc.auto=6700", "-c", "gc.autoDetach=false"])
            .args(["gc", "--auto", "--quiet"]);
        if let Err(Trouble::Failed(what)) = self.run(&mut command) {
            log::warn!("{} is not packed: {what}", self.dir.display());
        }
    }
}

/// Without configuration of the host's or the user's, which might change the files of a commit.
fn unconfigured(command: &mut Command) -> &mut Command {
    command
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_ATTR_NOSYSTEM", "1")
}

/// Files of a folder; what cannot be removed is somebody else's trouble.
fn remove_files(folder: &Path, unwanted: &dyn Fn(&str) -> bool) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        if is_file && unwanted(&name.to_string_lossy()) {
            log::info!("removing {}", entry.path().display());
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn remove_locks(folder: &Path, depth_left: u32) {
    remove_files(folder, &|name| name.ends_with(".lock"));
    if depth_left == 0 {
        return;
    }
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_locks(&entry.path(), depth_left - 1);
        }
    }
}

/// Takes `.git` away, everywhere in a tree.
fn remove_dot_git(tree: &Path) -> Result<(), Trouble> {
    let mut folders = vec![tree.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).map_err(|error| file("list", &folder, &error))?;
        for entry in entries {
            let entry = entry.map_err(|error| file("list", &folder, &error))?;
            let path = entry.path();
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            match (entry.file_name() == ".git", is_dir) {
                (true, true) => remove(&path)?,
                (true, false) => {
                    fs::remove_file(&path).map_err(|error| file("remove", &path, &error))?;
                }
                (false, true) => folders.push(path),
                (false, false) => {}
            }
        }
    }
    Ok(())
}
