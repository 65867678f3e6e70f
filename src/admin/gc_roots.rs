//! `hydrad update-gc-roots`: makes the roots of what Hydra's rules keep, and removes the others.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{anyhow, Context as _, Result};
use serde_json::json;

use super::clear_failed::age;
use super::connect::{environment, StateArgs};
use super::simulate::progress;
use crate::config::settings::Settings;
use crate::db::wanted::{self, Wanted};
use crate::model::UnixSecs;
use crate::nix::store_path::{base_name, check_store_path};
use crate::store::local::LocalStore;
use crate::store::roots::{GcRoots, Root};
use crate::sys::clock::unix_now;

const APPLICATION_NAME: &str = "hydra-update-gc-roots";
/// So many removals need no share of all.
const FEW: usize = 100;
/// Paths whose validity is asked for at once.
const BATCH: usize = 5_000;
/// Paths that are named when outputs are missing.
const NAMED_MAX: usize = 20;

/// Make the garbage collector keep what Hydra's rules keep, and let go of the rest
///
/// Kept are the derivations of queued builds; the outputs of builds marked to be kept; of each jobset the outputs of its
/// newest evaluations (`keepnr` of the jobset) and of those with unfinished builds, with the last success of each of their
/// jobs, and the derivations of what failed in them. All other roots are removed, unless they were made within the last day:
/// an evaluation that is running makes roots of what no row tells of yet.
/// Run it from a timer (the installation brings one) with the rights of the queue runner's user.
///
/// Nothing is removed when the database or the store could not be read to the end, or when more would go than
/// gc_roots_max_deletion allows.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Exit code: 0, 1 if roots that should go are still there, 2 if it could not be done.

Examples:
  hydrad update-gc-roots --dry-run                what would be made and removed, and why
  hydrad update-gc-roots --dry-run --kept         and why every other root stays
  hydrad update-gc-roots --max-deletion 100       after a clean-up of old projects"
)]
pub struct UpdateGcRootsArgs {
    #[command(flatten)]
    pub state: StateArgs,
    /// Change nothing, only say what would be done and why
    #[arg(long)]
    pub dry_run: bool,
    /// Name each root that stays, with the reason
    #[arg(long)]
    pub kept: bool,
    /// Remove only roots that were made at least this long ago (90, 15m, 12h, 1d); less is safe only while nothing evaluates
    #[arg(long, value_name = "AGE", default_value = "1d", value_parser = age)]
    pub min_age: Duration,
    /// Remove up to this share of all roots, instead of gc_roots_max_deletion in hydra.conf
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(0..=100))]
    pub max_deletion: Option<u32>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// The folder of roots, made if need be.
///
/// # Errors
/// When it cannot be used.
pub fn open(settings: &Settings) -> Result<GcRoots> {
    let dir = &settings.gc_roots_dir;
    GcRoots::open(dir).with_context(|| format!("cannot use {} (gc_roots_dir)", dir.display()))
}

/// Registers a path.
///
/// # Errors
/// With the path and the folder.
pub fn keep(roots: &GcRoots, path: &str) -> Result<()> {
    let dir = roots.dir().display();
    let context = || format!("cannot keep {path} from the garbage collector in {dir}");
    roots.add(path).with_context(context)
}

/// # Errors
/// When something could not be read or a root not be made: then nothing was removed.
pub fn run(args: &UpdateGcRootsArgs) -> Result<ExitCode> {
    let settings = args.state.settings()?;
    let target = args.state.target(&settings)?;
    let store = LocalStore::from_env(&environment, &settings.nix_daemon_program);
    let roots = if args.dry_run {
        GcRoots::reader(&settings.gc_roots_dir)
    } else {
        open(&settings)?
    };
    let now = unix_now();
    // Before the rows: what is made from now on is not in this list.
    let existing = roots
        .list()
        .with_context(|| format!("cannot read {} (gc_roots_dir)", roots.dir().display()))?;

    let mut client = target.connect(APPLICATION_NAME)?;
    // Hydra's rule. A cache in a folder counts as well: what is built here is in both.
    let outputs = settings.store_uri.as_deref().is_none_or(|uri| {
        ["local", "daemon", "auto", "file"]
            .iter()
            .any(|kind| uri.starts_with(kind))
    });
    let bar = progress(0, "jobsets");
    let wanted = wanted::wanted(&mut client, now, outputs, &mut |done, of| {
        bar.set_length(of as u64);
        bar.set_position(done as u64);
    })
    .context("the database was not read to the end, so nothing was removed")?;
    drop(client);
    bar.finish_and_clear();

    let valid = valid(&store, &wanted)?;
    let percent = args.max_deletion.unwrap_or(settings.gc_roots_max_deletion);
    let min_age = UnixSecs::try_from(args.min_age.as_secs()).unwrap_or(UnixSecs::MAX);
    let old = now.saturating_sub(min_age);
    let work = Work::new(existing, &wanted, &valid, old, percent);
    let missing = missing(&settings, &wanted, &valid);

    let mut made = 0;
    let mut removed = 0;
    if !args.dry_run {
        for path in &work.make {
            keep(&roots, path)?;
            made += 1;
        }
        if work.allowed {
            for root in &work.remove {
                let gone = roots.remove_unchanged(root);
                removed += usize::from(gone.with_context(|| {
                    format!("cannot remove {}", roots.dir().join(&root.name).display())
                })?);
            }
        }
    }
    report(args, &work, &missing, made, removed);
    let left = !work.remove.is_empty() && !work.allowed;
    if left {
        eprintln!(
            "hydrad: {} of {} roots should be removed, which is more than {percent} % (gc_roots_max_deletion): none was. See \
             with --dry-run which and why; if that is right, run it with --max-deletion 100",
            work.remove.len(),
            work.total
        );
    }
    Ok(if left {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Which of the wanted paths are in the store.
fn valid(store: &LocalStore, wanted: &[Wanted]) -> Result<HashSet<String>> {
    let mut paths: Vec<&str> = wanted.iter().map(|wanted| &*wanted.path).collect();
    paths.sort_unstable();
    paths.dedup();
    for path in &paths {
        check_store_path(store.dir(), path).map_err(|error| {
            anyhow!(
                "a row of the database names {path}, which cannot be in the store {}: {error}; nothing was removed",
                store.dir().as_str()
            )
        })?;
    }
    let bar = progress(paths.len() as u64, "paths");
    let mut valid = HashSet::with_capacity(paths.len());
    for some in paths.chunks(BATCH) {
        let answer = store.valid_paths(some).map_err(|error| anyhow!(error));
        valid.extend(answer.with_context(|| {
            format!(
                "cannot ask {} which paths are valid, so nothing was removed",
                store.describe()
            )
        })?);
        bar.inc(some.len() as u64);
    }
    bar.finish_and_clear();
    Ok(valid)
}

/// Outputs that should be here and are not.
fn missing<'a>(
    settings: &Settings,
    wanted: &'a [Wanted],
    valid: &HashSet<String>,
) -> Vec<&'a Wanted> {
    if settings.store_uri.is_some() {
        return Vec::new(); // they need not be in this store
    }
    let mut seen = HashSet::new();
    wanted
        .iter()
        .filter(|wanted| wanted.is_output && !valid.contains(&wanted.path))
        .filter(|wanted| seen.insert(&wanted.path))
        .collect()
}

/// What is to be done.
struct Work<'a> {
    total: usize,
    /// Paths without a root.
    make: Vec<&'a str>,
    /// Roots that stay, and for what.
    keep: Vec<(Root, &'a Wanted)>,
    /// Unwanted roots that are too young to be removed.
    young: Vec<Root>,
    remove: Vec<Root>,
    /// Whether so many may be removed.
    allowed: bool,
}

impl<'a> Work<'a> {
    fn new(
        existing: Vec<Root>,
        wanted: &'a [Wanted],
        valid: &HashSet<String>,
        old: UnixSecs,
        percent: u32,
    ) -> Work<'a> {
        // The first reason is the strongest.
        let mut by_name: HashMap<&str, &Wanted> = HashMap::new();
        for wanted in wanted.iter().filter(|w| valid.contains(&w.path)) {
            by_name.entry(base_name(&wanted.path)).or_insert(wanted);
        }
        let mut existing: Vec<Root> = existing.into_iter().filter(|root| root.is_root).collect();
        existing.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        let total = existing.len();
        let names: HashSet<String> = existing.iter().map(|root| root.name.clone()).collect();
        let mut make: Vec<&str> = by_name
            .iter()
            .filter(|(name, _)| !names.contains(**name))
            .map(|(_, wanted)| &*wanted.path)
            .collect();
        make.sort_unstable();
        let (mut keep, mut young, mut remove) = (Vec::new(), Vec::new(), Vec::new());
        for root in existing {
            match by_name.get(root.name.as_str()) {
                Some(wanted) => keep.push((root, *wanted)),
                None if root.changed > old => young.push(root),
                None => remove.push(root),
            }
        }
        let allowed = remove.len() <= FEW
            || remove.len() as u128 * 100 <= total as u128 * u128::from(percent);
        Work {
            total,
            make,
            keep,
            young,
            remove,
            allowed,
        }
    }
}

fn report(args: &UpdateGcRootsArgs, work: &Work, missing: &[&Wanted], made: usize, removed: usize) {
    let why = |wanted: &Wanted| format!("build {}, {}", wanted.build.0, wanted.why);
    if args.json {
        let names = |roots: &[Root]| -> Vec<String> {
            roots.iter().map(|root| root.name.clone()).collect()
        };
        let kept = work.keep.iter().map(|(root, wanted)| {
            json!({"root": root.name, "build": wanted.build.0, "why": wanted.why.to_string()})
        });
        let lost = missing.iter().map(|wanted| {
            json!({"path": wanted.path, "build": wanted.build.0, "why": wanted.why.to_string()})
        });
        let mut object = json!({
            "dryRun": args.dry_run,
            "allowed": work.allowed,
            "make": work.make,
            "remove": names(&work.remove),
            "young": names(&work.young),
            "missing": lost.collect::<Vec<_>>(),
            "kept": work.keep.len(),
            "made": made,
            "removed": removed,
        });
        if args.kept {
            object["keep"] = kept.collect();
        }
        println!("{object}");
        return;
    }
    for wanted in missing.iter().take(NAMED_MAX) {
        eprintln!("hydrad: {} has disappeared ({})", wanted.path, why(wanted));
    }
    if missing.len() > NAMED_MAX {
        eprintln!("hydrad: and {} more outputs", missing.len() - NAMED_MAX);
    }
    if args.kept {
        for (root, wanted) in &work.keep {
            println!("keep    {}  {}", root.name, why(wanted));
        }
    }
    if args.dry_run {
        for path in &work.make {
            println!("make    {}", base_name(path));
        }
        for root in &work.young {
            println!("keep    {}  nothing needs it, but it is young", root.name);
        }
        for root in &work.remove {
            println!("remove  {}  nothing that is kept needs it", root.name);
        }
    }
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, wanted) in &work.keep {
        *reasons.entry(wanted.why.kind()).or_default() += 1;
    }
    let reasons: Vec<String> = reasons
        .iter()
        .map(|(kind, count)| format!("{count} {kind}"))
        .collect();
    if !reasons.is_empty() {
        println!("wanted: {}", reasons.join(", "));
    }
    let kept = work.total - removed + made;
    if args.dry_run {
        let (make, remove) = (work.make.len(), work.remove.len());
        println!(
            "would keep {} roots ({make} of them new), delete {remove} roots",
            work.total - remove + make
        );
    } else {
        println!("kept {kept} roots ({made} of them new), deleted {removed} roots");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::wanted::Why;
    use crate::model::BuildId;

    const OLD: UnixSecs = 1_700_000_000;

    fn root(name: &str, changed: UnixSecs) -> Root {
        Root {
            name: name.to_owned(),
            is_root: true,
            changed,
        }
    }

    #[test]
    fn no_more_than_the_share_goes_at_once() {
        let wanted: Vec<Wanted> = (0..300)
            .map(|n| Wanted {
                path: format!("/nix/store/kept-{n}"),
                build: BuildId(n),
                is_output: true,
                why: Why::Marked,
            })
            .collect();
        let valid: HashSet<String> = wanted.iter().map(|wanted| wanted.path.clone()).collect();
        let work = |unwanted: usize, percent| {
            let kept = (0..300).map(|n| root(&format!("kept-{n}"), OLD));
            let old = (0..unwanted).map(|n| root(&format!("old-{n}"), OLD));
            Work::new(kept.chain(old).collect(), &wanted, &valid, OLD, percent)
        };
        assert!(work(300, 50).allowed);
        assert!(!work(301, 50).allowed);
        assert!(work(301, 51).allowed);
        assert!(work(FEW, 0).allowed);
        assert!(!work(FEW + 1, 0).allowed);
        assert_eq!(work(301, 50).remove.len(), 301);
    }

    #[test]
    fn what_is_old_goes_and_what_has_disappeared_needs_no_root() {
        let wanted = [Wanted {
            path: "/nix/store/gone".into(),
            build: BuildId(1),
            is_output: true,
            why: Why::Queued,
        }];
        let roots = vec![root("a", OLD + 1), root("b", OLD), root("gone", OLD)];
        let work = Work::new(roots, &wanted, &HashSet::new(), OLD, 50);
        let names = |roots: &[Root]| roots.iter().map(|r| r.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&work.young), ["a"]);
        assert_eq!(names(&work.remove), ["b", "gone"]);
        assert!(work.make.is_empty());
    }
}
