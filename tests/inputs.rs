//! Inputs of evaluations: real repositories of each kind, recorded answers of forges, real PostgreSQL and Nix.

mod common;

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use common::{
    eventually, output_of, Answer, Db, NixDaemon, NixStore, Pg, Recorder, RunAs, TestDir, Told,
};
use hydrad::config::Settings;
use hydrad::db::{DbTarget, Pool};
use hydrad::eval::input::{FetchedInput, InputSpec};
use hydrad::eval::inputs::Fetcher;
use hydrad::nix::hash::{hex_encode, sha256};
use hydrad::store::local::LocalStore;

/// One store for all tests: the programs that fetch find it by this process's environment, as in an installation.
struct Ground {
    store: NixStore,
    dir: TestDir,
}

fn ground() -> &'static Ground {
    static GROUND: OnceLock<Ground> = OnceLock::new();
    extern "C" fn at_exit() {
        if let Some(ground) = GROUND.get() {
            for dir in [ground.store.dir(), &ground.dir] {
                let _ = Command::new("chmod")
                    .args(["-R", "u+w"])
                    .arg(dir.path())
                    .status();
                let _ = fs::remove_dir_all(dir.path());
            }
        }
    }
    GROUND.get_or_init(|| {
        let ground = Ground {
            store: NixStore::new(),
            dir: TestDir::new(RunAs::Me),
        };
        for (name, value) in ground.store.env() {
            std::env::set_var(name, value);
        }
        let at = |name: &str| ground.dir.join(name);
        std::env::remove_var("NIX_PATH");
        std::env::set_var("HOME", ground.store.dir().join("home"));
        std::env::set_var("GIT_TRACE", at("git-trace"));
        std::env::set_var("GIT_SSH_COMMAND", script(&ground.dir, "ssh", SSH));
        std::env::set_var("GIT_SSH_VARIANT", "simple");
        for role in ["AUTHOR", "COMMITTER"] {
            std::env::set_var(format!("GIT_{role}_NAME"), "T");
            std::env::set_var(format!("GIT_{role}_EMAIL"), "t@example.org");
            std::env::set_var(format!("GIT_{role}_DATE"), "2024-01-02T03:04:05Z");
        }
        // SAFETY: the handler only uses a static that is never dropped.
        unsafe { libc::atexit(at_exit) };
        ground
    })
}

/// As ssh: the host says what happens. `hang`: nothing, and SIGTERM is ignored. Else the folder of that name below the
/// repository's parent tells when it began and ended, and holds it up as long as there is no file `go`.
const SSH: &str = r#"
host=$1; shift
case $host in
hang) trap '' TERM; echo $$ >"$(dirname "$0")/hanging"; sleep 98761 & wait; wait;;
esac
eval "set -- $*"
gate=$(dirname "$2")
echo begin >>"$gate/log"
while [ ! -e "$gate/go" ]; do sleep 0.02; done
"$1" "$2"
echo end >>"$gate/log"
"#;

/// The root that keeps a path.
fn root_of(path: &str) -> PathBuf {
    let name = Path::new(path).file_name().expect("a name");
    ground().store.dir().join("var/gcroots/hydra").join(name)
}

fn script(dir: &TestDir, name: &str, text: &str) -> PathBuf {
    let path = dir.file(name, &format!("#!/bin/sh\n{text}"), RunAs::Me);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
    path
}

/// A database, a HYDRA_DATA and a fetcher.
struct Site {
    db: Db,
    dir: TestDir,
    fetcher: Fetcher,
    stopping: Arc<AtomicBool>,
}

impl Site {
    fn new(conf: &str) -> Site {
        let ground = ground();
        let db = Pg::shared().db();
        let dir = TestDir::new(RunAs::Me);
        let roots = ground.store.dir().join("var/gcroots/hydra");
        let conf = format!("gc_roots_dir = {}\n{conf}", roots.display());
        dir.file("hydra.conf", &conf, RunAs::Me);
        let (fetcher, stopping) = fetcher(&db, &dir, &[]);
        Site {
            db,
            dir,
            fetcher,
            stopping,
        }
    }

    fn try_fetch(&self, kind: &str, value: &str) -> Result<Option<FetchedInput>, String> {
        let spec = InputSpec {
            name: "src".into(),
            kind: kind.into(),
            value: value.into(),
            email_responsible: true,
        };
        let fetched = self.fetcher.fetch("p", "j", &spec);
        let left: Vec<_> = fs::read_dir(self.dir.join("scm/tmp"))
            .expect("the folder of trees on their way")
            .map(|entry| entry.expect("an entry").file_name())
            .filter(|name| name != ".lock" && name != "mine")
            .collect();
        assert!(left.is_empty(), "{left:?} is left");
        fetched.map_err(|error| error.to_string())
    }

    fn fetch(&self, kind: &str, value: &str) -> FetchedInput {
        let fetched = self
            .try_fetch(kind, value)
            .unwrap_or_else(|error| panic!("{kind} {value}: {error}"))
            .unwrap_or_else(|| panic!("{kind} {value} is absent"));
        assert_eq!(
            (fetched.name.as_str(), fetched.kind.as_str()),
            ("src", kind)
        );
        assert!(fetched.email_responsible);
        if let Some(path) = &fetched.store_path {
            assert!(ground().store.is_valid(path), "{path} is valid");
            assert!(root_of(path).exists(), "{path} is rooted");
        }
        fetched
    }

    fn error(&self, kind: &str, value: &str) -> String {
        match self.try_fetch(kind, value) {
            Err(error) => error,
            Ok(fetched) => panic!("{kind} {value}: {fetched:?}"),
        }
    }

    fn count(&self, table: &str) -> i64 {
        let sql = format!("select count(*) from {table}");
        self.db
            .client()
            .query_one(&sql, &[])
            .expect("a table")
            .get(0)
    }

    fn sql(&self, sql: &str) {
        self.db.client().batch_execute(sql).expect(sql);
    }

    fn clone_of(&self, kind: &str, uri: &str) -> PathBuf {
        let name = hex_encode(&sha256(uri.as_bytes()));
        self.dir.join("scm").join(kind).join(name)
    }
}

/// `nix` says how the store is reached, where that is not as the environment says.
fn fetcher(db: &Db, dir: &TestDir, nix: &[(String, String)]) -> (Fetcher, Arc<AtomicBool>) {
    let data = dir.path().display().to_string();
    let url = db.url();
    let env = |name: &str| match name {
        "HYDRA_DATA" => Some(data.clone()),
        "HYDRA_DATABASE_URL" => Some(url.clone()),
        _ => match nix.iter().find(|(known, _)| known == name) {
            Some((_, value)) => Some(value.clone()),
            None => std::env::var(name).ok(),
        },
    };
    let settings = Settings::load(&env, &[]).expect("settings");
    let target = DbTarget::from_env(&env, &settings).expect("a database");
    let store = LocalStore::from_env(&env, "nix-daemon");
    let stopping = Arc::new(AtomicBool::new(false));
    let flag = stopping.clone();
    let fetcher = Fetcher::new(
        &settings,
        Pool::new(target, 4, "test"),
        Arc::new(store),
        move || flag.load(Ordering::SeqCst),
    );
    (fetcher.expect("a fetcher"), stopping)
}

#[test]
fn an_untrusted_user_adds_inputs_through_the_daemon() {
    let mut site = Site::new("");
    // Not even root is trusted.
    let daemon = NixDaemon::start(&ground().store, &[]);
    site.fetcher = fetcher(&site.db, &site.dir, &daemon.env()).0;
    let repository = Repository::git();
    repository.commit("a", &format!("daemon {}", std::process::id()));
    let uri = repository.path();
    let fetched = site.fetch("git", &uri);
    assert_eq!(site.fetch("git", &uri), fetched);
}

/// A repository in a folder of its own.
struct Repository {
    dir: TestDir,
}

impl Repository {
    fn new() -> Repository {
        ground();
        Repository {
            dir: TestDir::new(RunAs::Me),
        }
    }

    fn git() -> Repository {
        let repository = Repository::new();
        repository.run("git init -q -b trunk repo");
        repository
    }

    fn path(&self) -> String {
        self.dir.join("repo").display().to_string()
    }

    /// A command line in the folder above.
    fn run(&self, line: &str) -> String {
        output_of(
            Command::new("sh")
                .args(["-ec", line])
                .current_dir(self.dir.path()),
        )
    }

    /// In the repository.
    fn inside(&self, line: &str) -> String {
        self.run(&format!("cd repo; {line}"))
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.dir.join("repo").join(name), text).expect("write a file");
    }

    fn commit(&self, name: &str, text: &str) -> String {
        self.write(name, text);
        self.inside("git add -A; git commit -qm x; git rev-parse HEAD")
    }
}

fn read(fetched: &FetchedInput, name: &str) -> String {
    let path = Path::new(fetched.store_path.as_deref().expect("a path")).join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The path that Nix would give to this tree under this name.
fn fixed_path(tree: &Path, name: &str) -> String {
    let store = &ground().store;
    let hash = output_of(
        store
            .command("nix-hash")
            .args(["--type", "sha256", "--base32"])
            .arg(tree),
    );
    store.store(&["--print-fixed-path", "--recursive", "sha256", &hash, name])
}

#[test]
fn values_are_taken_as_they_are_and_what_nobody_knows_is_refused() {
    let site = Site::new("");
    for (kind, value) in [
        ("string", "a b\n\"c"),
        ("nix", "{ a = 1; }"),
        ("boolean", "true"),
    ] {
        assert_eq!(site.fetch(kind, value).value.as_deref(), Some(value));
    }
    assert_eq!(
        site.error("boolean", "1"),
        "input ‘src’ (boolean): `1`: expected true or false"
    );
    let unknown = site.error("cvs", "x");
    assert!(unknown.starts_with("input ‘src’ has unknown type ‘cvs’; there are string, "));
}

/// Issue 5, show 2: changed is fetched, unchanged is not.
#[test]
fn git_fetches_what_changed_and_nothing_twice() {
    let mut site = Site::new("");
    let repository = Repository::git();
    repository.write("run.sh", "#!/bin/sh\n");
    repository.inside("chmod +x run.sh; ln -s nowhere link; printf 'a eol=crlf\nb export-ignore\n' >.gitattributes; echo b >b");
    let first = repository.commit("a", "one\n");
    let uri = repository.path();
    let exports = |revision: &str| {
        let trace = fs::read_to_string(ground().dir.join("git-trace")).expect("git's trace");
        let line = format!("read-tree --reset -u {revision}");
        trace
            .lines()
            .filter(|l| l.contains(&line) && l.contains("built-in"))
            .count()
    };
    // The default branch is what the repository says.
    let fetched = site.fetch("git", &uri);
    assert_eq!(fetched.revision.as_deref(), Some(first.as_str()));
    assert_eq!(fetched.uri.as_deref(), Some(uri.as_str()));
    assert_eq!(fetched.rev_count, Some(1));
    assert_eq!(fetched.short_rev.as_deref(), Some(&first[..7]));
    assert_eq!(fetched.git_tag.as_deref(), Some(&first[..7]));
    // The path is the one that any program gives to these files, attributes applied as in a checkout.
    repository.run("git clone -q repo plain; rm -rf plain/.git");
    let path = fetched.store_path.clone().expect("a path");
    assert_eq!(path, fixed_path(&repository.dir.join("plain"), "source"));
    assert_eq!(read(&fetched, "a"), "one\r\n");
    assert_eq!(read(&fetched, "b"), "b\n");
    assert_eq!(site.fetch("git", &uri), fetched);
    assert_eq!((site.count("CachedGitInputs"), exports(&first)), (1, 1));
    // It stays, also without the conversation in which it was put there.
    site.fetcher = fetcher(&site.db, &site.dir, &[]).0;
    let mut delete = ground().store.command("nix-store");
    let deleted = delete
        .args(["--delete", &path])
        .output()
        .expect("nix-store");
    assert!(!deleted.status.success());
    // A path that is gone is made again.
    fs::remove_file(root_of(&path)).expect("a root");
    ground().store.store(&["--delete", &path]);
    assert_eq!(site.fetch("git", &format!("{uri} trunk")), fetched);
    assert_eq!((site.count("CachedGitInputs"), exports(&first)), (1, 2));

    let second = repository.commit("a", "two\n");
    repository.inside("git tag -a -m t v1 HEAD~; git branch old HEAD~");
    let newer = site.fetch("git", &uri);
    assert_eq!(newer.revision.as_deref(), Some(second.as_str()));
    assert_eq!(
        (newer.rev_count, read(&newer, "a").as_str()),
        (Some(2), "two\r\n")
    );
    assert_eq!(newer.git_tag, Some(format!("v1-1-g{}", &second[..7])));
    for branch in ["old", "v1", "refs/heads/old", &first, &first[..10]] {
        let older = site.fetch("git", &format!("{uri} {branch} timeout=60"));
        assert_eq!(older.revision.as_deref(), Some(first.as_str()), "{branch}");
        assert_eq!(older.store_path, fetched.store_path);
    }
    // What is gone is not taken from the clone.
    repository.inside("git branch -D old");
    assert_eq!(
        site.error("git", &format!("{uri} old")),
        format!("cannot fetch input ‘src’ (git): there is no branch or tag ‘old’ in {uri}")
    );
    repository.inside("git branch cafe");
    site.fetch("git", &format!("{uri} cafe"));
    repository.inside("git branch -D cafe");
    assert!(site
        .error("git", &format!("{uri} cafe"))
        .contains("no commit cafe"));
    let unknown = "0123456789012345678901234567890123456789";
    assert!(site
        .error("git", &format!("{uri} {unknown}"))
        .contains(&format!("there is no commit {unknown} in {uri}")));
    assert!(site
        .error("git", "/nonexistent/x main")
        .contains("does not appear to be a git repository"));
}

#[test]
fn git_has_deep_clones_submodules_and_settings() {
    let conf = "<git-input>\n<p:j:src>\nfallback_branch = main\n</p:j:src>\n</git-input>\n";
    let site = Site::new(conf);
    let repository = Repository::git();
    repository.commit("a", "1");
    repository.inside("git tag -a -m t v1; git branch main");
    let revision = repository.commit("a", "2");
    repository.inside("git commit -q --allow-empty -m 3; git tag v3; git reset -q --hard HEAD~");
    let uri = repository.path();
    let deep = site.fetch("git", &format!("{uri} trunk deep"));
    let again = site.fetch("git", &format!("{uri} trunk deep"));
    assert_eq!(deep, again);
    let tree = deep.store_path.clone().expect("a path");
    let inside = |args: &[&str]| {
        let mut git = Command::new("git");
        git.args(["-c", &format!("safe.directory={tree}"), "-C", &tree]);
        output_of(git.args(args))
    };
    assert_eq!(inside(&["describe"]), format!("v1-1-g{}", &revision[..7]));
    assert_eq!(
        inside(&["for-each-ref", "--format=%(refname)"]),
        "refs/heads/fetchgit\nrefs/tags/v1"
    );
    let shallow = site.fetch("git", &format!("{uri} trunk"));
    assert_ne!(shallow.store_path, deep.store_path);
    assert!(!Path::new(shallow.store_path.as_deref().expect("a path"))
        .join(".git")
        .exists());
    // The same history has the same path, whoever asks.
    let other = Site::new("");
    assert_eq!(
        other.fetch("git", &format!("{uri} trunk deep")).store_path,
        deep.store_path
    );

    // A repository without HEAD: the branch is the one in hydra.conf.
    repository.inside("git symbolic-ref HEAD refs/heads/none");
    assert_eq!(site.fetch("git", &uri).rev_count, Some(1));

    repository.inside("git symbolic-ref HEAD refs/heads/trunk");
    let outer = Repository::git();
    outer.inside(&format!(
        "git -c protocol.file.allow=always submodule --quiet add -- {uri} sub"
    ));
    outer.commit("b", "b");
    let with = site.fetch("git", &format!("{} trunk submodules=1", outer.path()));
    let without = site.fetch("git", &format!("{} trunk", outer.path()));
    assert_eq!(
        (read(&with, "sub/a").as_str(), read(&without, "b").as_str()),
        ("2", "b")
    );
    assert_ne!(with.store_path, without.store_path);
    assert!(!Path::new(with.store_path.as_deref().expect("a path"))
        .join("sub/.git")
        .exists());
    assert!(site
        .error("git", &format!("{uri} trunk depth=1"))
        .contains("unknown key `depth`"));
}

/// What a clone can be after a power cut, or after somebody's cleaning.
#[test]
fn a_broken_clone_is_made_anew() {
    let site = Site::new("");
    let repository = Repository::git();
    repository.commit("a", "0");
    let uri = repository.path();
    site.fetch("git", &uri);
    let clone = site.clone_of("git", &uri);
    assert!(clone.join(".git/HEAD").is_file() && clone.with_extension("lock").is_file());
    let breakages: &[&str] = &[
        "echo x >.git/HEAD",
        "rm -rf .git/objects; mkdir .git/objects",
        "rm -rf .git",
        "find .git/objects -type f -exec chmod u+w {} + -exec truncate -s 0 {} +",
        "touch .git/HEAD.lock .git/refs/heads/trunk.lock .git/shallow.lock .git/packed-refs.lock",
    ];
    for (number, breakage) in breakages.iter().enumerate() {
        output_of(
            Command::new("sh")
                .args(["-ec", breakage])
                .current_dir(&clone),
        );
        let revision = repository.commit("a", &format!("{}", number + 1));
        let fetched = site.fetch("git", &uri);
        assert_eq!(
            fetched.revision.as_deref(),
            Some(revision.as_str()),
            "{breakage}"
        );
        assert_eq!(read(&fetched, "a"), (number + 1).to_string());
    }
    // A branch took the place of a folder of branches, and the other way round.
    for (before, after) in [("x", "x/y"), ("x/y", "x")] {
        repository.inside(&format!("git branch {before}"));
        site.fetch("git", &format!("{uri} {before}"));
        repository.inside(&format!("git branch -D {before}; git branch {after}"));
        site.fetch("git", &format!("{uri} {after}"));
        repository.inside(&format!("git branch -D {after}"));
    }
    // It was the repository: the clone stays.
    fs::rename(repository.dir.join("repo"), repository.dir.join("away")).expect("rename");
    site.error("git", &format!("{uri} trunk"));
    assert!(clone.join(".git/HEAD").is_file());
}

#[test]
fn hanging_fetches_are_ended_with_all_their_processes() {
    let site = Site::new("<git-input>\ntimeout = 1\n</git-input>\ninput_timeout = 1\n");
    let error = site.error("git", "ssh://hang/x main");
    assert!(
        error.contains("had to be ended after 1 s (`timeout` in <git-input>"),
        "{error}"
    );
    let hanging = fs::read_to_string(ground().dir.join("hanging")).expect("a process id");
    let with_words = |words: &str| {
        let processes = fs::read_dir("/proc").expect("/proc").flatten();
        processes
            .filter_map(|entry| fs::read(entry.path().join("cmdline")).ok())
            .filter(|line| String::from_utf8_lossy(line).contains(words))
            .count()
    };
    eventually("ssh, which ignores SIGTERM, is gone", || {
        let cmdline = fs::read(format!("/proc/{}/cmdline", hanging.trim()));
        cmdline.unwrap_or_default().is_empty().then_some(())
    });
    eventually("what it started is gone too", || {
        (with_words("98761") == 0).then_some(())
    });

    // A server that takes connections and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = silent.local_addr().expect("its address");
    for (kind, value) in [
        ("git", format!("git://{address}/x main")),
        ("hg", format!("http://{address}/x")),
        ("svn", format!("svn://{address}/x")),
        ("darcs", format!("http://{address}/x")),
        ("path", format!("http://{address}/x")),
        ("gitlabpulls", format!("http://{address} 1")),
    ] {
        let error = site.error(kind, &value);
        assert!(error.contains("1 s"), "{kind}: {error}");
        assert_eq!(with_words(&address.to_string()), 0, "{kind}");
    }

    site.stopping.store(true, Ordering::SeqCst);
    let error = site.error("git", "ssh://hang/x main");
    assert_eq!(error, "fetching input ‘src’ was interrupted");
}

#[test]
fn hostile_values_are_errors_and_start_nothing() {
    let site = Site::new("");
    let repository = Repository::git();
    let revision = repository.commit("a", "1");
    let uri = repository.path();
    let mark = site.dir.join("executed");
    let touch = format!("touch {}", mark.display());
    let kinds = [
        "git",
        "hg",
        "svn",
        "svn-checkout",
        "bzr",
        "bzr-checkout",
        "darcs",
        "path",
    ];
    let values = [
        format!("--upload-pack={touch}"),
        format!("ext::sh -c {touch}% x"),
        format!("fd::17/{uri}"),
        "-oProxyCommand=x".to_owned(),
        format!("ssh://-oProxyCommand={}/x", touch.replace(' ', "${IFS}")),
        format!("$({touch})"),
        format!("{uri}\n{touch}"),
        format!("{uri}\"; {touch}; \""),
        format!("{uri}';{touch};'"),
        format!("{uri} `{touch}`"),
        format!("{uri} --config=hooks.x={touch}"),
        format!("{uri} trunk:x"),
        format!("{uri} --output={}", mark.display()),
        String::new(),
    ];
    for kind in kinds {
        for value in &values {
            site.error(kind, value);
            assert!(!mark.exists(), "{kind} {value}");
        }
    }
    assert_eq!(
        site.error("git", &values[0]),
        format!("input ‘src’ (git): `--upload-pack=touch` begins with `-` and could be taken for an option")
    );
    let error = site.error("git", "ext::sh%20x trunk");
    assert!(
        error.contains("`ext::sh%20x`: expected https://..."),
        "{error}"
    );
    for (kind, value) in [
        ("githubpulls", "o ../../x"),
        ("githubpulls", "o r?x=1"),
        ("github_refs", "o r heads - a?b"),
        ("gitlabpulls", "ftp://h 1"),
        ("giteapulls", "h o r/../x"),
        ("gitea_refs", "h o r heads/x - y"),
        ("build", "p:j:x; drop table Builds"),
        ("eval", "p:j:x:y"),
    ] {
        let error = site.error(kind, value);
        assert!(
            error.starts_with(&format!("input ‘src’ ({kind}): ")),
            "{error}"
        );
    }
    // What a repository says of itself is not carried out either.
    let hook = repository.dir.join("repo/.git/hooks/post-checkout");
    fs::write(&hook, format!("#!/bin/sh\n{touch}\n")).expect("write a hook");
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).expect("chmod");
    repository.inside(&format!(
        "git config core.sshCommand '{touch}'; git config core.fsmonitor '{touch}'"
    ));
    assert_eq!(
        site.fetch("git", &format!("{uri} trunk deep")).revision,
        Some(revision)
    );
    let evil = Repository::git();
    evil.inside(&format!(
        "git -c protocol.file.allow=always submodule --quiet add -- {uri} sub;
         git config -f .gitmodules submodule.sub.url 'ext::sh -c {}'; git config -f .gitmodules submodule.sub.update '!{touch}'",
        touch.replace(' ', "% ")
    ));
    evil.commit("b", "b");
    site.error("git", &format!("{} trunk submodules=true", evil.path()));
    assert!(!mark.exists(), "from a repository");
}

#[test]
fn fetches_of_one_repository_take_turns() {
    let site = Site::new("");
    let repository = Repository::git();
    let revision = repository.commit("a", "1");
    let uri = format!("ssh://gate{}", repository.path());
    let lock = site.clone_of("git", &uri).with_extension("lock");
    let waiting = || {
        // Each of them has the file open.
        let open = fs::read_dir("/proc/self/fd").expect("/proc").flatten();
        open.filter(|entry| fs::read_link(entry.path()).is_ok_and(|target| target == lock))
            .count()
    };
    std::thread::scope(|scope| {
        let fetches: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    site.fetcher.fetch(
                        "p",
                        "j",
                        &InputSpec {
                            name: "src".into(),
                            kind: "git".into(),
                            value: format!("{uri} trunk"),
                            email_responsible: false,
                        },
                    )
                })
            })
            .collect();
        eventually("one holds the lock, the other wants it", || {
            (waiting() > 1).then_some(())
        });
        let begun = repository.dir.join("log");
        eventually("one is at it", || begun.exists().then_some(()));
        assert_eq!(fs::read_to_string(&begun).expect("a log"), "begin\n");
        repository.run("touch go");
        for fetch in fetches {
            let fetched = fetch
                .join()
                .expect("no panic")
                .expect("no error")
                .expect("an input");
            assert_eq!(fetched.revision.as_deref(), Some(revision.as_str()));
        }
    });
    let log = fs::read_to_string(repository.dir.join("log")).expect("a log");
    assert_eq!(log, "begin\nend\nbegin\nend\n");
}

#[test]
fn what_a_killed_process_left_is_taken_away() {
    let site = Site::new("");
    let left = site.dir.sub("scm/tmp/99999-0", RunAs::Me);
    fs::write(left.join("file"), "x").expect("write");
    let mine = site.dir.sub("scm/tmp/mine", RunAs::Me);
    let held = File::open(&mine).expect("a folder");
    // SAFETY: flock takes a descriptor that `held` keeps open.
    assert_eq!(unsafe { libc::flock(held.as_raw_fd(), libc::LOCK_EX) }, 0);
    let _other = fetcher(&site.db, &site.dir, &[]);
    assert!(!left.exists() && mine.exists());
}

/// A fetch that is killed leaves no program that goes on.
#[test]
fn programs_end_with_whoever_started_them() {
    let starting = std::thread::spawn(|| {
        let mut command = Command::new("sleep");
        let child = hydrad::sys::child::ends_with_thread(command.arg("98762")).spawn();
        child.expect("start sleep")
    });
    let mut child = starting.join().expect("no panic");
    let status = eventually("it ends long before its time", || {
        child.try_wait().expect("wait for sleep")
    });
    assert_eq!(status.signal(), Some(libc::SIGKILL));
}

#[test]
fn mercurial() {
    let site = Site::new("");
    let repository = Repository::new();
    repository.run("hg init -q repo");
    let commit = |text: &str| {
        repository.write("a", text);
        repository.inside("hg commit -qAm x -u t; hg log -r . -T '{node}'")
    };
    let first = commit("1");
    let uri = repository.path();
    let fetched = site.fetch("hg", &uri);
    assert_eq!(fetched.revision.as_deref(), Some(first.as_str()));
    assert_eq!(
        (fetched.rev_count, read(&fetched, "a").as_str()),
        (Some(0), "1")
    );
    repository.run("hg clone -q repo plain; rm -rf plain/.hg");
    assert_eq!(
        fetched.store_path,
        Some(fixed_path(&repository.dir.join("plain"), "hg-archive"))
    );
    assert_eq!(site.fetch("hg", &uri), fetched);
    let second = commit("2");
    repository.inside("hg tag -q -u t -r 0 v0");
    assert_ne!(site.fetch("hg", &uri).revision, fetched.revision);
    assert_eq!(
        site.fetch("hg", &format!("{uri} v0")).revision,
        fetched.revision
    );
    assert_eq!(
        site.fetch("hg", &format!("file://{uri} {second}")).revision,
        Some(second)
    );
    assert_eq!(site.count("CachedHgInputs"), 3);
    let clone = site.clone_of("hg", &uri);
    fs::write(clone.join(".hg/store/00changelog.i"), "garbage").expect("break it");
    let third = commit("3");
    assert_eq!(site.fetch("hg", &uri).revision, Some(third));
    assert!(site
        .error("hg", &format!("{uri} none"))
        .contains("unknown revision"));
    assert!(site.error("hg", "/nonexistent/x").contains("not found"));
}

#[test]
fn subversion() {
    let site = Site::new("");
    let repository = Repository::new();
    repository.run("svnadmin create there; svn -q checkout file://$PWD/there repo");
    let commit = |text: &str| {
        repository.write("a", text);
        repository.inside("svn -q add --force a; svn -q commit -m x");
    };
    commit("1");
    let uri = format!("file://{}", repository.dir.join("there").display());
    let fetched = site.fetch("svn", &uri);
    assert_eq!(
        (fetched.rev_number, fetched.revision.as_deref()),
        (Some(1), None)
    );
    assert_eq!(read(&fetched, "a"), "1");
    repository.run(&format!("svn -q export {uri} plain"));
    assert_eq!(
        fetched.store_path,
        Some(fixed_path(&repository.dir.join("plain"), "source"))
    );
    assert_eq!(site.fetch("svn", &uri), fetched);
    commit("2");
    let newer = site.fetch("svn", &uri);
    assert_eq!(
        (newer.rev_number, read(&newer, "a").as_str()),
        (Some(2), "2")
    );
    assert_eq!(
        site.fetch("svn", &format!("{uri} 1")).store_path,
        fetched.store_path
    );
    let checkout = site.fetch("svn-checkout", &uri);
    assert_eq!(checkout, site.fetch("svn-checkout", &uri));
    assert!(Path::new(checkout.store_path.as_deref().expect("a path"))
        .join(".svn")
        .is_dir());
    assert_eq!(site.fetch("svn", &uri), newer, "the two are not mixed up");
    fs::write(
        site.clone_of("svn", &uri).join("svn-checkout/.svn/wc.db"),
        "garbage",
    )
    .expect("break it");
    commit("3");
    assert_eq!(read(&site.fetch("svn", &uri), "a"), "3");
    assert!(site
        .error("svn", "file:///nonexistent/x")
        .contains("Unable to"));
    assert!(site
        .error("svn", &format!("{uri} x"))
        .contains("no number of a revision"));
}

#[test]
fn bazaar() {
    let site = Site::new("");
    let repository = Repository::new();
    let bzr = "BRZ_EMAIL=t BRZ_LOG=/dev/null brz";
    repository.run(&format!("{bzr} init -q repo"));
    let commit = |text: &str| {
        repository.write("a", text);
        repository.inside(&format!("{bzr} add -q; {bzr} commit -qm x"));
    };
    commit("1");
    let uri = repository.path();
    let fetched = site.fetch("bzr", &uri);
    assert_eq!(fetched.revision.as_deref(), Some("1"));
    repository.run("cp -r repo plain; rm -rf plain/.bzr");
    assert_eq!(
        fetched.store_path,
        Some(fixed_path(&repository.dir.join("plain"), "bzr-export"))
    );
    assert_eq!(site.fetch("bzr", &uri), fetched);
    commit("2");
    let newer = site.fetch("bzr-checkout", &uri);
    assert_eq!(
        (newer.revision.as_deref(), read(&newer, "a").as_str()),
        (Some("2"), "2")
    );
    assert!(Path::new(newer.store_path.as_deref().expect("a path"))
        .join(".bzr")
        .is_dir());
    assert_eq!(site.count("CachedBazaarInputs"), 2);
    assert!(site.error("bzr", "/nonexistent/x").contains("Not a branch"));
}

#[test]
fn darcs() {
    let site = Site::new("");
    let repository = Repository::new();
    repository.run("darcs init --quiet repo");
    let record = |text: &str| {
        repository.write("a", text);
        repository.inside("darcs record --quiet --all --look-for-adds -A t -m x");
    };
    record("1\n");
    let uri = repository.path();
    let fetched = site.fetch("darcs", &format!("file://{uri}"));
    assert_eq!(fetched.uri.as_deref(), Some(uri.as_str()));
    assert_eq!(
        (fetched.rev_count, read(&fetched, "a").as_str()),
        (Some(1), "1\n")
    );
    repository.run("cp -r repo plain; rm -rf plain/_darcs");
    assert_eq!(
        fetched.store_path,
        Some(fixed_path(&repository.dir.join("plain"), "export"))
    );
    assert_eq!(site.fetch("darcs", &format!("file://{uri}")), fetched);
    record("1\n2\n");
    let newer = site.fetch("darcs", &uri);
    assert_eq!(
        (newer.rev_count, read(&newer, "a").as_str()),
        (Some(2), "1\n2\n")
    );
    assert_ne!(newer.revision, fetched.revision);
    assert_eq!(site.count("CachedDarcsInputs"), 2);
    fs::remove_dir_all(site.clone_of("darcs", &uri).join("_darcs")).expect("break it");
    record("3\n");
    assert_eq!(site.fetch("darcs", &uri).rev_count, Some(3));
    assert!(site.error("darcs", "/nonexistent/x").contains("repository"));
}

#[test]
fn paths() {
    let site = Site::new("path_input_cache_validity_seconds = 0\n");
    let repository = Repository::new();
    repository.run("mkdir repo");
    repository.write("a", "1");
    let path = repository.path();
    let first = site.fetch("path", &path);
    assert_eq!(first.store_path, Some(fixed_path(Path::new(&path), "repo")));
    let hash = first.sha256.clone().expect("a hash");
    let revision = first.revision.clone().expect("a revision");
    let (time, rest) = revision.split_once(':').expect("a time and a hash");
    assert_eq!((time.len(), rest), (14, hash.as_str()));
    assert!(hash.starts_with("sha256:"));
    // As if it had been seen for the first time an hour ago.
    site.sql("update CachedPathInputs set timestamp = timestamp - 3600");
    let earlier = site.fetch("path", &path).revision;
    assert!(earlier < first.revision);
    site.sql("update CachedPathInputs set lastSeen = lastSeen - 60");
    repository.write("a", "2");
    let second = site.fetch("path", &path);
    assert!(second.revision > first.revision && read(&second, "a") == "2");
    // Within its time it is not looked at; after that what is back has its old revision.
    repository.write("a", "1");
    assert_eq!(site.fetch("path", &format!("{path} 3600")), second);
    assert_eq!(site.fetch("path", &path).revision, earlier);
    assert_eq!(site.count("CachedPathInputs"), 2);
    assert!(site
        .error("path", "/nonexistent/x")
        .contains("/nonexistent/x"));
    assert!(site.error("path", "relative/x").contains("or a full path"));

    let server = Recorder::start(|told: &Told| match told.path.as_str() {
        "/x.txt" => Answer::Text("200 OK\r\nContent-Length: 3\r\n\r\nabc".into()),
        _ => Answer::status("404 Not Found"),
    });
    let fetched = site.fetch("path", &format!("{}/x.txt", server.url()));
    let there = fetched.store_path.expect("a path");
    assert!(there.ends_with("-x.txt"));
    assert_eq!(fs::read_to_string(there).expect("a file"), "abc");
    let error = site.error("path", &format!("{}/y?token=hush", server.url()));
    assert!(error.contains("404") && !error.contains("hush"), "{error}");
}

#[test]
fn forges() {
    let page = |link: &str, body: &str| {
        let link = match link {
            "" => String::new(),
            link => format!("Link: <{link}>; rel=\"next\", <http://x/>; rel=\"last\"\r\n"),
        };
        Answer::Text(format!(
            "200 OK\r\n{link}Content-Length: {}\r\n\r\n{body}",
            body.len()
        ))
    };
    let merged = Arc::new(AtomicBool::new(false));
    let flag = merged.clone();
    let other = Recorder::accepting();
    let elsewhere = other.url();
    let server = Recorder::start(move |told: &Told| {
        let here = format!("http://{}", told.header("host").expect("a host"));
        match told.path.as_str() {
            "/repos/o/r/pulls?per_page=100" => {
                page(&format!("{here}/2"), r#"[{"number":2,"b":1,"a":[]}]"#)
            }
            "/2" if flag.load(Ordering::SeqCst) => page("", "[]"),
            "/2" => page("", r#"[{"number":1}]"#),
            "/repos/o/away/pulls?per_page=100" => page(&format!("{elsewhere}/2"), "[]"),
            "/repos/o/moved/pulls?per_page=100" => {
                Answer::Text("301 Moved\r\nLocation: /2\r\nContent-Length: 0\r\n\r\n".into())
            }
            "/repos/o/r/git/matching-refs/heads/rel/?per_page=100" => {
                page("", r#"[{"ref":"refs/heads/rel/1","object":{"sha":"x"}}]"#)
            }
            "/api/v4/projects/42" => page("", r#"{"http_url_to_repo":"https://g/o/r.git"}"#),
            "/api/v4/projects/42/merge_requests?per_page=100&state=opened" => {
                page("", r#"[{"iid":7}]"#)
            }
            "/2.0/repositories/o/r/pullrequests?state=OPEN" => page(
                "",
                &format!(r#"{{"values":[{{"id":3}}],"next":"{here}/bb2"}}"#),
            ),
            "/bb2" => page("", r#"{"values":[{"id":4}]}"#),
            "/api/v1/repos/o/r/pulls?state=open&limit=50&page=1" => {
                page("https://wrong/", r#"[{"number":5}]"#)
            }
            "/api/v1/repos/o/r/pulls?state=open&limit=50&page=2" => page("", r#"[{"number":6}]"#),
            "/api/v1/repos/o/r/git/refs/heads?limit=50&page=1" => {
                page("", r#"[{"ref":"refs/heads/a"},{"ref":"refs/heads/rel/1"}]"#)
            }
            "/repos/o/odd/pulls?per_page=100" => page("", r#"{"message":"x"}"#),
            _ => Answer::Text("403 Forbidden\r\nContent-Length: 14\r\n\r\nrate limited\n\n".into()),
        }
    });
    let url = server.url();
    let site = Site::new(&format!(
        "github_endpoint = {url}/\nbitbucket_endpoint = {url}\n
        <github_authorization>\no = Bearer hush1\n</github_authorization>
        <gitlab_authorization>\n42 = hush2\n</gitlab_authorization>
        <bitbucket_authorization>\no = Basic hush3\n</bitbucket_authorization>
        <gitea_authorization>\no = hush4\n</gitea_authorization>\n"
    ));
    let text = |fetched: &FetchedInput| {
        let path = fetched.store_path.as_deref().expect("a path");
        let (_, name) = path
            .rsplit_once('/')
            .and_then(|(_, base)| base.split_once('-'))
            .expect("a name");
        (name.to_owned(), fs::read_to_string(path).expect("a file"))
    };
    let expect = |kind: &str, value: &str, name: &str, json: &str| {
        let fetched = site.fetch(kind, value);
        assert_eq!(text(&fetched), (name.to_owned(), json.to_owned()), "{kind}");
        let revision = fetched.revision.clone().expect("a revision");
        assert!(revision.len() == 14 && revision.bytes().all(|b| b.is_ascii_digit()));
        // As if that had been an hour ago: the same list has the same revision at any time.
        site.sql("update CachedPathInputs set timestamp = timestamp - 3600");
        let again = site.fetch(kind, value);
        assert!(again.revision < fetched.revision && again.store_path == fetched.store_path);
        assert_eq!(site.fetch(kind, value), again);
        fetched
    };
    let pulls = expect(
        "githubpulls",
        "o r",
        "github-pulls.json",
        r#"{"1":{"number":1},"2":{"a":[],"b":1,"number":2}}"#,
    );
    expect("github_refs", "o r heads - rel/", "github-refs-sorted.json",
        "{\n  \"rel/1\": {\n    \"object\": {\n      \"sha\": \"x\"\n    },\n    \"ref\": \"refs/heads/rel/1\"\n  }\n}\n");
    expect(
        "gitlabpulls",
        &format!("{url} 42"),
        "gitlab-pulls-sorted.json",
        "{\n  \"7\": {\n    \"iid\": 7,\n    \"target_repo_url\": \"https://g/o/r.git\"\n  }\n}\n",
    );
    expect(
        "bitbucketpulls",
        "o r",
        "bitbucket-pulls-sorted.json",
        "{\n  \"3\": {\n    \"id\": 3\n  },\n  \"4\": {\n    \"id\": 4\n  }\n}\n",
    );
    expect(
        "giteapulls",
        &format!("{url} o r"),
        "gitea-pulls-sorted.json",
        "{\n  \"5\": {\n    \"number\": 5\n  },\n  \"6\": {\n    \"number\": 6\n  }\n}\n",
    );
    let host = url.trim_start_matches("http://");
    assert_eq!(
        site.fetch("giteapulls", &format!("{host} o r http")).kind,
        "giteapulls"
    );
    expect(
        "gitea_refs",
        &format!("{url} o r heads - rel/"),
        "gitea-refs-sorted.json",
        "{\n  \"rel/1\": {\n    \"ref\": \"refs/heads/rel/1\"\n  }\n}\n",
    );
    // Each server got its own token, and nobody else's.
    for told in server.told() {
        let sent = told
            .header("authorization")
            .or(told.header("private-token"));
        let wanted = match told.path.as_str() {
            path if path.starts_with("/api/v4") => "hush2",
            path if path.starts_with("/2.0") || path == "/bb2" => "Basic hush3",
            path if path.starts_with("/api/v1") => "token hush4",
            _ => "Bearer hush1",
        };
        assert_eq!(sent, Some(wanted), "{}", told.path);
    }
    // A pull request less: another revision.
    merged.store(true, Ordering::SeqCst);
    let fewer = site.fetch("githubpulls", "o r");
    assert_ne!(fewer.store_path, pulls.store_path);
    assert_ne!(
        fewer.revision,
        site.fetch("github_refs", "o r heads - rel/").revision
    );
    assert_eq!(text(&site.fetch("githubpulls", "o moved")).1, "{}");

    let away = site.error("githubpulls", "o away");
    assert!(
        away.contains("names a next page on another server"),
        "{away}"
    );
    assert!(other.told().is_empty(), "no token goes there");
    assert!(site
        .error("githubpulls", "o odd")
        .contains("something else than a list"));
    let refused = site.error("githubpulls", "o none");
    assert!(
        refused.ends_with("answered 403 Forbidden: rate limited"),
        "{refused}"
    );
    for error in [away, refused] {
        assert!(!error.contains("hush"), "{error}");
    }
}

/// Rows of a project `p` with a jobset `j`, a finished evaluation 1 and an unfinished one 2.
const BUILDS: &str = "
insert into Users (userName, emailAddress, password) values ('u', 'u@example.org', '!');
insert into Projects (name, displayName, owner) values ('p', 'P', 'u'), ('q', 'Q', 'u');
insert into Jobsets (id, name, project, nixExprInput, nixExprPath, emailOverride)
    values (1, 'j', 'p', '', '', ''), (2, 'j', 'q', '', '', '');
";

#[test]
fn earlier_builds_and_evaluations() {
    let site = Site::new("");
    site.sql(BUILDS);
    let store = &ground().store;
    let add = |name: &str| {
        let file = site
            .dir
            .file(name, &format!("{name} of {}", site.db.name()), RunAs::Me);
        store.store(&["--add", &file.display().to_string()])
    };
    let (one, two, gone) = (add("one"), add("two"), "/nix/store/none".to_owned());
    let mut next = 0;
    let mut build = |jobset: i32,
                     job: &str,
                     system: &str,
                     status: Option<i32>,
                     path: &str,
                     eval: i32| {
        next += 1;
        let finished = i32::from(status.is_some());
        site.sql(&format!(
            "insert into JobsetEvals (id, jobset_id, timestamp, checkoutTime, evalTime, hasNewBuilds, hash)
                values ({eval}, {jobset}, 1, 1, 1, 1, '') on conflict do nothing;
             insert into Builds (id, finished, timestamp, jobset_id, job, nixName, drvPath, system, startTime, stopTime, buildStatus, isCurrent)
                values ({next}, {finished}, 1, {jobset}, '{job}', 'pkg-1.2.{next}', '{path}.drv', '{system}', 1, 1, {}, 1);
             insert into BuildOutputs (build, name, path) values ({next}, 'out', '{path}'), ({next}, 'doc', '{gone}');
             insert into JobsetEvalMembers (eval, build, isNew) values ({eval}, {next}, 1);",
            status.map_or("null".to_owned(), |status| status.to_string()),
        ));
        next
    };
    let old = build(1, "tarball", "x", Some(0), &one, 1);
    let good = build(1, "tarball", "x", Some(0), &two, 1);
    build(1, "tarball", "x", Some(1), &one, 1);
    build(1, "other", "x", Some(0), &one, 1);
    build(1, "lost", "x", Some(0), &gone, 1);
    let busy = build(1, "tarball", "x", None, &one, 2);
    build(1, "many", "x", Some(0), &one, 1);
    build(1, "many", "y", Some(0), &two, 1);
    build(2, "tarball", "z", Some(0), &one, 3);

    let fetched = site.fetch("build", "tarball");
    assert_eq!(fetched.dependency.map(|id| id.0), Some(good));
    assert_eq!(fetched.store_path.as_deref(), Some(two.as_str()));
    assert_eq!(fetched.version, Some(format!("1.2.{good}")));
    assert_eq!(
        (fetched.output_name.as_deref(), fetched.drv_path.as_deref()),
        (Some("out"), None)
    );
    assert_eq!(site.fetch("build", "p:j:tarball"), fetched);
    assert_eq!(
        site.fetch("build", &old.to_string()).store_path.as_deref(),
        Some(one.as_str())
    );
    site.sql(&format!("insert into BuildInputs (build, name, type, value) values ({old}, 'system', 'string', 'x y')"));
    let filtered = site.fetch("build", "tarball [system = \"x y\"]");
    assert_eq!(filtered.dependency.map(|id| id.0), Some(old));
    for absent in [
        "none",
        "p:k:tarball",
        "lost",
        "999999",
        "tarball [system = \"z\"]",
    ] {
        assert_eq!(site.try_fetch("build", absent), Ok(None), "{absent}");
    }

    assert_eq!(
        site.fetch("sysbuild", "tarball").dependency,
        fetched.dependency
    );
    let theirs = site.fetch("sysbuild", "q:j:tarball");
    assert_eq!(
        theirs.store_path.as_deref(),
        Some(one.as_str()),
        "the project counts"
    );
    assert!(site
        .error("sysbuild", "many")
        .contains("builds for 2 systems"));
    assert_eq!(site.try_fetch("sysbuild", "none"), Ok(None));

    let jobs = site.fetch("eval", "1").jobs.expect("jobs");
    let of: Vec<(&str, &str)> = jobs
        .iter()
        .map(|(job, path)| (job.as_str(), path.as_str()))
        .collect();
    assert_eq!(
        of,
        [("many", two.as_str()), ("other", &one), ("tarball", &two)]
    );
    // The newest has a build that is not finished.
    assert_eq!(site.fetch("eval", "p:j").jobs.as_ref(), Some(&jobs));
    assert_eq!(site.fetch("eval", "p:j:tarball").jobs.as_ref(), Some(&jobs));
    site.sql(&format!(
        "update Builds set finished = 1, buildStatus = 1 where id = {busy}"
    ));
    assert_eq!(
        site.fetch("eval", "p:j").jobs.map(|jobs| jobs.len()),
        Some(0)
    );
    assert_eq!(site.fetch("eval", "p:j:tarball").jobs, Some(jobs));
    assert!(site
        .error("eval", "77")
        .contains("evaluation 77 does not exist"));
    assert!(site.error("eval", "p:k").contains("p:k has no evaluation"));
}

#[test]
fn builds_come_from_the_substituter_of_evaluations() {
    let cache = TestDir::new(RunAs::Me);
    let mut site = Site::new(&format!(
        "eval_substituter = file://{}\n",
        cache.path().display()
    ));
    let file = site
        .dir
        .file("far", &format!("far {}", site.db.name()), RunAs::Me);
    let path = ground()
        .store
        .store(&["--add", &file.display().to_string()]);
    let nix = |args: &[&str]| {
        let mut nix = ground().store.command("nix");
        output_of(
            nix.args(["--extra-experimental-features", "nix-command"])
                .args(args),
        )
    };
    site.sql(BUILDS);
    site.sql(&format!(
        "insert into Builds (id, finished, timestamp, jobset_id, job, drvPath, system, startTime, stopTime, buildStatus)
            values (1, 1, 1, 1, 'job', '/x.drv', 'x', 1, 1, 0);
         insert into BuildOutputs (build, name, path) values (1, 'out', '{path}');"
    ));
    ground().store.store(&["--delete", &path]);
    assert_eq!(site.try_fetch("build", "job"), Ok(None), "nobody has it");
    let again = ground()
        .store
        .store(&["--add", &file.display().to_string()]);
    assert_eq!(again, path);
    nix(&[
        "copy",
        "--to",
        &format!("file://{}", cache.path().display()),
        &path,
    ]);
    let _ = fs::remove_file(root_of(&path));
    // No conversation of ours holds it.
    site.fetcher = fetcher(&site.db, &site.dir, &[]).0;
    ground().store.store(&["--delete", &path]);
    assert!(!ground().store.is_valid(&path));
    assert_eq!(site.fetch("build", "1").store_path, Some(path));
}
