//! Aggregates whose constituents are named: they wait until every job is known, then their derivations are made anew with
//! those as inputs.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::CString;

use super::protocol::Named;
use crate::eval::job::{Job, JobDerivation};
use crate::nix::derivation::{Derivation, DrvKind};
use crate::nix::derivation_hash::{masked_hash, DrvHashes};
use crate::nix::store_path::{drv_name, name_part, output_path};
use crate::nix::{self, StoreDir};
use crate::store::local::LocalStore;
use crate::store::roots::GcRoots;

/// A job, and the constituents it names.
pub(super) struct Held {
    pub job: Job,
    pub named: Named,
}

/// What must be known of all jobs once one of them is an aggregate that names some.
#[derive(Default)]
pub(super) struct Aggregates {
    /// Of each job by name: its derivation, or its error.
    known: BTreeMap<String, Result<String, String>>,
    waiting: BTreeMap<String, Held>,
}

impl Aggregates {
    /// Gives a job on, or keeps it until all are known.
    pub fn take(&mut self, held: Held, give: &mut dyn FnMut(Job)) {
        let name = held.job.name.clone();
        let outcome = match (&held.job.derivation, &held.job.error) {
            (Some(derivation), None) => Ok(derivation.drv_path.clone()),
            (_, error) => Err(error.clone().unwrap_or_default()),
        };
        self.known.insert(name.clone(), outcome);
        if held.named.names.is_empty() {
            give(held.job);
        } else {
            self.waiting.insert(name, held);
        }
    }

    /// All jobs are known: gives on those that were kept, each after those it names. How many have an error now.
    pub fn finish(
        mut self,
        store: &LocalStore,
        roots: Option<&GcRoots>,
        dry_run: bool,
        give: &mut dyn FnMut(Job),
    ) -> u64 {
        let named: BTreeMap<String, Constituents> = self
            .waiting
            .iter()
            .map(|(name, held)| (name.clone(), self.constituents(name, &held.named)))
            .collect();
        let mut hashes = DrvHashes::new();
        let mut failed = 0;
        let order = order(&named);
        let circles: BTreeSet<String> = order.iter().filter(|o| o.1).map(|o| o.0.clone()).collect();
        for (name, in_circle) in order {
            let Some(Held { mut job, .. }) = self.waiting.remove(&name) else {
                continue;
            };
            let mut broken: BTreeMap<&str, String> = BTreeMap::new();
            let mut drvs = Vec::new();
            for (constituent, there) in &named[&name] {
                let reason = match (there, self.known.get(constituent)) {
                    (Err(why), _) => (*why).to_owned(),
                    (Ok(()), _) if in_circle && circles.contains(constituent) => {
                        "names this aggregate in turn, directly or over others".to_owned()
                    }
                    (Ok(()), None) => "does not exist".to_owned(),
                    (Ok(()), Some(Err(error))) => error.clone(),
                    (Ok(()), Some(Ok(drv))) => {
                        drvs.push(drv.clone());
                        continue;
                    }
                };
                log::warn!("aggregate job '{name}' references job '{constituent}', which is broken: {reason}");
                broken.insert(constituent, reason);
            }
            if let Some(derivation) = &mut job.derivation {
                add_each_once(&mut derivation.constituents, &drvs);
                if broken.is_empty() && !dry_run {
                    if let Err(why) = rewrite(derivation, &drvs, store, roots, &mut hashes) {
                        broken.insert(&name, format!("its derivation cannot be made anew: {why}"));
                    }
                }
            }
            if !broken.is_empty() {
                let lines = broken.iter().map(|(job, why)| format!("{job}: {why}\n"));
                job.error = Some(lines.collect());
                failed += 1;
            }
            let outcome = match (&job.derivation, &job.error) {
                (Some(derivation), None) => Ok(derivation.drv_path.clone()),
                (_, error) => Err(error.clone().unwrap_or_default()),
            };
            self.known.insert(name, outcome);
            give(job);
        }
        failed
    }

    /// The jobs that an aggregate names, or that its patterns match, each once; a pattern without a match stands for itself.
    fn constituents(&self, aggregate: &str, named: &Named) -> Constituents {
        let mut seen = BTreeSet::new();
        let mut all = Vec::new();
        for name in &named.names {
            if !named.glob || self.known.contains_key(name) {
                if seen.insert(name.clone()) {
                    all.push((name.clone(), Ok(())));
                }
                continue;
            }
            let mut matches = false;
            for job in self.known.keys().filter(|job| *job != aggregate) {
                if glob_matches(name, job) {
                    matches = true;
                    if seen.insert(job.clone()) {
                        all.push((job.clone(), Ok(())));
                    }
                }
            }
            if !matches && seen.insert(name.clone()) {
                all.push((name.clone(), Err("constituent glob pattern had no matches")));
            }
        }
        all
    }
}

/// As the C library's fnmatch without flags: `*` matches dots too.
fn glob_matches(pattern: &str, name: &str) -> bool {
    let (Ok(pattern), Ok(name)) = (CString::new(pattern), CString::new(name)) else {
        return false;
    };
    // SAFETY: both are NUL-terminated and outlive the call.
    unsafe { libc::fnmatch(pattern.as_ptr(), name.as_ptr(), 0) == 0 }
}

/// What aggregates name: other jobs, or why there is none.
type Constituents = Vec<(String, Result<(), &'static str>)>;

/// The aggregates, each after those it names, and whether it is one of a circle that name each other.
fn order(named: &BTreeMap<String, Constituents>) -> Vec<(String, bool)> {
    let mut missing: HashMap<&str, usize> = HashMap::new();
    let mut needed_by: HashMap<&str, Vec<&str>> = HashMap::new();
    for (name, constituents) in named {
        let aggregates = constituents.iter().filter(|(c, _)| named.contains_key(c));
        missing.insert(name, aggregates.clone().count());
        for (constituent, _) in aggregates {
            needed_by.entry(constituent).or_default().push(name);
        }
    }
    let mut order = Vec::new();
    let mut next: Vec<(&str, bool)> = missing
        .iter()
        .filter(|(_, count)| **count == 0)
        .map(|(name, _)| (*name, false))
        .collect();
    while !missing.is_empty() {
        if next.is_empty() {
            // Whoever is left is in a circle or needs one; the circles first.
            let left = missing.keys();
            let circle = left.filter(|name| names_itself(name, &missing, &needed_by));
            next.extend(circle.map(|name| (*name, true)));
        }
        next.sort_unstable();
        for (name, circle) in std::mem::take(&mut next) {
            missing.remove(name);
            order.push((name.to_owned(), circle));
            for waiting in needed_by.get(name).into_iter().flatten() {
                if let Some(count) = missing.get_mut(waiting) {
                    *count -= 1;
                    if *count == 0 {
                        next.push((waiting, false));
                    }
                }
            }
        }
        // A circle's members free each other, and are done nevertheless.
        next.retain(|(name, _)| missing.contains_key(name));
    }
    order
}

/// Whether an aggregate is reached from those that need it.
fn names_itself(
    name: &str,
    left: &HashMap<&str, usize>,
    needed_by: &HashMap<&str, Vec<&str>>,
) -> bool {
    let mut seen = BTreeSet::new();
    let mut open = vec![name];
    while let Some(at) = open.pop() {
        for needing in needed_by.get(at).into_iter().flatten() {
            if *needing == name {
                return true;
            }
            if left.contains_key(needing) && seen.insert(*needing) {
                open.push(needing);
            }
        }
    }
    false
}

fn add_each_once(list: &mut Vec<String>, more: &[String]) {
    for item in more {
        if !list.contains(item) {
            list.push(item.clone());
        }
    }
}

/// Makes the aggregate's derivation anew with these derivations among its inputs, and puts it into the store. As in Hydra, the
/// first output of each is wanted; one whose output paths do not follow from its inputs stays as it is.
fn rewrite(
    aggregate: &mut JobDerivation,
    drvs: &[String],
    store: &LocalStore,
    roots: Option<&GcRoots>,
    hashes: &mut DrvHashes,
) -> Result<(), String> {
    let read = |path: &str| -> Result<Derivation, nix::Error> {
        let text = store.read_drv(path).map_err(nix::Error::Io)?;
        Derivation::parse(&text)
    };
    let text = |error: nix::Error| error.to_string();
    let old = &aggregate.drv_path;
    let mut drv = read(old).map_err(text)?;
    for path in drvs {
        let first = read(path).map_err(text)?.outputs.into_keys().next();
        drv.input_drvs
            .insert(path.clone(), first.into_iter().collect());
    }
    let name = drv_name(old).ok_or_else(|| format!("{old} does not end in .drv"))?;
    match drv.kind() {
        Some(DrvKind::InputAddressed) => {
            // What is known only after the build among the inputs makes the aggregate's own path so too: Hydra leaves it.
            if drvs.iter().any(|path| !has_known_paths(path, &read)) {
                return Ok(());
            }
            let hash = masked_hash(&drv, hashes, &mut |path| read(path)).map_err(text)?;
            set_outputs(&mut drv, store.dir(), name, &hash);
        }
        Some(DrvKind::FloatingCa) => {}
        _ => return Ok(()),
    }
    let path = store.add_drv(&drv, name_part(old))?;
    if let Some(roots) = roots {
        let made = roots.add(&path);
        made.map_err(|error| format!("cannot make a GC root for {path}: {error}"))?;
    }
    aggregate.drv_path = path;
    for (output, place) in &mut aggregate.outputs {
        if let Some(new) = drv.outputs.get(output) {
            place.clone_from(&new.path);
        }
    }
    Ok(())
}

fn has_known_paths(path: &str, read: &dyn Fn(&str) -> Result<Derivation, nix::Error>) -> bool {
    let kind = read(path).ok().and_then(|drv| drv.kind());
    kind.is_some_and(DrvKind::has_known_output_paths)
}

/// The output paths that follow from the hash, in the outputs and in the environment.
fn set_outputs(drv: &mut Derivation, dir: &StoreDir, name: &str, hash: &nix::hash::Sha256Hash) {
    for (output, fields) in &mut drv.outputs {
        let path = output_path(dir, name, output, hash);
        if let Some(value) = drv.env.get_mut(output.as_bytes()) {
            *value = path.clone().into_bytes();
        }
        fields.path = Some(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(aggregates: &[(&str, &[&str])]) -> BTreeMap<String, Constituents> {
        let names = |names: &[&str]| {
            names
                .iter()
                .map(|name| ((*name).to_owned(), Ok(())))
                .collect()
        };
        aggregates
            .iter()
            .map(|(name, constituents)| ((*name).to_owned(), names(constituents)))
            .collect()
    }

    #[test]
    fn an_aggregate_comes_after_those_it_names() {
        let order = order(&named(&[
            ("a", &["b", "x"]),
            ("b", &["c"]),
            ("c", &["x", "y"]),
            ("p", &["q"]),
            ("q", &["p"]),
            ("r", &["p"]),
        ]));
        let at = |name: &str| order.iter().position(|(n, _)| n == name).expect("is there");
        assert!(at("c") < at("b") && at("b") < at("a"), "{order:?}");
        assert!(at("q") < at("r"), "{order:?}");
        let cycle: Vec<&str> = order.iter().filter(|o| o.1).map(|o| o.0.as_str()).collect();
        assert_eq!(cycle, ["p", "q"]);
    }

    #[test]
    fn patterns_match_as_in_the_shell_but_over_dots() {
        let mut aggregates = Aggregates::default();
        for name in ["tests.a", "tests.b.c", "all", "build", "te[st"] {
            aggregates.known.insert(name.to_owned(), Ok(String::new()));
        }
        let found = |names: &[&str], glob: bool| -> Vec<String> {
            let names = names.iter().map(|name| (*name).to_owned()).collect();
            let all = aggregates.constituents("all", &Named { names, glob });
            all.iter()
                .map(|(name, there)| match there {
                    Ok(()) => name.clone(),
                    Err(why) => format!("{name}: {why}"),
                })
                .collect()
        };
        assert_eq!(
            found(&["tests.*", "build"], true),
            ["tests.a", "tests.b.c", "build"]
        );
        assert_eq!(
            found(&["*"], true),
            ["build", "te[st", "tests.a", "tests.b.c"]
        );
        assert_eq!(found(&["tests.?", "te[st"], true), ["tests.a", "te[st"]);
        assert_eq!(found(&["tests.*"], false), ["tests.*"]);
        assert_eq!(
            found(&["no*"], true),
            ["no*: constituent glob pattern had no matches"]
        );
    }
}
